//! `Attention` kernels: tiles of scores in cache, multiplied by the same microkernels as contractions.
//!
//! A task is a block of queries of one sample and head, which goes over the keys in tiles; or, for cotangents, a whole
//! sample and head (a block of queries or of keys where these are few), which computes each score once for all three.
//! Blocks depend on the shape alone, and no two tasks add to one number, so the order of every sum is fixed.

use super::matrix::{Matrix, Tile};
use super::ops::Ops;
use super::product::{self, Factor, Right};
use super::rows::Shared;
use super::scores::Scores;
use super::scratch::{Need, Scratch};
use super::threads::share;
use dnx_codegen::kernel::{Given, Inst, InstId, Kernel, Part, Role};
use dnx_ir::attention::HIDDEN;

/// Flops below which a kernel stays on one thread.
const SERIAL: u64 = 1 << 18;
/// Scores of a tile, about: with their tangents they stay in the second cache.
const SCORES: usize = 32 * 1024;
/// From one row of a tile of scores to the next: an odd number of cache lines, so that a column's are not in each
/// other's way.
fn pitch(keys: usize) -> usize {
    (keys.div_ceil(16) | 1) * 16
}
/// Samples and heads from which on each is one task for the cotangents.
const MANY: usize = 8;

/// A planned attention kernel.
pub(crate) struct Attend {
    batch: usize,
    queries: usize,
    keys: usize,
    head: usize,
    scale: f32,
    causal: bool,
    qkv: [Matrix; 3],
    bias: Option<Matrix>,
    given: Form,
    /// Where results go: over queries (`o` or `q`), its statistic, `k`, `v`.
    out: Outputs,
    /// Queries and keys of a tile.
    tile: (usize, usize),
    parallel: bool,
}

#[derive(Default)]
struct Outputs {
    rows: Option<Matrix>,
    lse: Option<Matrix>,
    k: Option<Matrix>,
    v: Option<Matrix>,
}

/// There is one per kernel, so its size is of no matter.
#[allow(clippy::large_enum_variant)]
enum Form {
    Forward,
    Jvp { o: Matrix, lse: Matrix, of: [Matrix; 3], bias: Option<Matrix> },
    Backward { o: Matrix, lse: Matrix, ct: Matrix, ct_lse: Matrix },
}

/// A worker's scratch, carved up.
struct Room {
    scores: *mut f32,
    other: *mut f32,
    /// Packed operands of queries, packed operands of keys.
    rows: [*mut f32; 3],
    keys: [*mut f32; 4],
    /// Sums that don't lie in memory as they are computed: over queries, `k`, `v`.
    sums: [*mut f32; 3],
    /// Two numbers a query.
    stats: [*mut f32; 2],
    /// Keys and values (or tangents of keys) as right factors of scores.
    panels: [*mut f32; 2],
}

/// A stretch of queries or keys.
#[derive(Clone, Copy)]
struct Span {
    from: usize,
    len: usize,
}

impl Attend {
    pub(crate) fn new(kernel: &Kernel, shared: &[bool]) -> Result<Attend, String> {
        if shared.contains(&true) {
            return Err("attention in place".to_string());
        }
        let (body, _) = kernel.attention().ok_or("an attention kernel without one attention")?;
        let [batch, queries, keys, head] = kernel.attention_extents();
        let (on_rows, on_keys) = ([Role::M, Role::Reduce], [Role::N, Role::Reduce]);
        let rows = |id: InstId| Matrix::operand(kernel, id, on_rows);
        let keyed = |id: InstId| Matrix::operand(kernel, id, on_keys);
        let biased = |id: &Option<InstId>| id.map(|id| Matrix::operand(kernel, id, [Role::M, Role::N])).transpose();
        let [q, k, v] = body.qkv;
        let given = match &body.given {
            Given::Nothing => Form::Forward,
            Given::Tangents { o, lse, of: [dq, dk, dv], bias } => Form::Jvp {
                o: rows(*o)?,
                lse: rows(*lse)?,
                of: [rows(*dq)?, keyed(*dk)?, keyed(*dv)?],
                bias: biased(bias)?,
            },
            Given::Cotangents { o, lse, of: [ct, ct_lse] } => {
                Form::Backward { o: rows(*o)?, lse: rows(*lse)?, ct: rows(*ct)?, ct_lse: rows(*ct_lse)? }
            }
        };
        let mut out = Outputs::default();
        for store in &kernel.stores {
            let mut id = store.value;
            while let Inst::Convert(_, x) = kernel.inst(id) {
                id = *x;
            }
            let Inst::Attention(a) = kernel.inst(id) else { return Err("attention with an epilogue".to_string()) };
            let (place, roles) = match a.part {
                Part::O | Part::Q => (&mut out.rows, on_rows),
                Part::Lse => (&mut out.lse, on_rows),
                Part::K => (&mut out.k, on_keys),
                Part::V => (&mut out.v, on_keys),
            };
            *place = Some(Matrix::memory(kernel, store.arg, &store.index, roles));
        }
        let tall = if keys <= 512 { keys } else { 256 };
        let wide = (SCORES / tall.max(1)).clamp(16, 256).min(queries);
        Ok(Attend {
            batch,
            queries,
            keys,
            head,
            scale: body.scale.to_f64() as f32,
            causal: body.causal,
            qkv: [rows(q)?, keyed(k)?, keyed(v)?],
            bias: biased(&body.bias)?,
            given,
            out,
            tile: (wide.max(1), tall.max(1)),
            parallel: body.flops(kernel) >= SERIAL,
        })
    }

    /// Words of the parts of a [`Room`], in order.
    fn sizes(&self) -> [usize; 16] {
        let (wide, tall) = self.tile;
        let packed = |m: &Matrix, n: usize| if m.is_plain() { 0 } else { n * self.head };
        let sum =
            |m: &Option<Matrix>, n: usize| if m.as_ref().is_some_and(Matrix::is_plain) { 0 } else { n * self.head };
        let [q, k, v] = &self.qkv;
        let panels = if product::panels(1) == 0 { 0 } else { product::padded(tall) * self.head };
        let (scores, (q, k, v)) = (wide * pitch(tall), (packed(q, wide), packed(k, tall), packed(v, tall)));
        let sizes = match &self.given {
            Form::Forward => [scores, 0, q, 0, 0, k, v, 0, 0, sum(&self.out.rows, wide), 0, 0, wide, wide, panels, 0],
            Form::Jvp { o, of: [dq, dk, dv], .. } => [
                scores,
                scores,
                q,
                packed(dq, wide),
                packed(o, wide),
                k,
                v,
                packed(dk, tall),
                packed(dv, tall),
                sum(&self.out.rows, wide),
                0,
                0,
                wide,
                wide,
                panels,
                panels,
            ],
            Form::Backward { o, ct, .. } => [
                scores,
                scores,
                q,
                packed(ct, wide),
                packed(o, wide),
                k,
                v,
                0,
                0,
                sum(&self.out.rows, self.queries),
                sum(&self.out.k, tall),
                sum(&self.out.v, tall),
                self.queries,
                self.queries,
                panels,
                panels,
            ],
        };
        sizes.map(|n| n.next_multiple_of(16))
    }

    pub(crate) fn need(&self) -> Need {
        Need { shared: 0, words: self.sizes().iter().sum(), vals: 0, args: 0 }
    }

    fn room(&self, words: *mut u32) -> Room {
        let mut at = words as *mut f32;
        let places = self.sizes().map(|n| {
            let place = at;
            at = at.wrapping_add(n);
            place
        });
        let [scores, other, r0, r1, r2, k0, k1, k2, k3, s0, s1, s2, t0, t1, p0, p1] = places;
        Room {
            scores,
            other,
            rows: [r0, r1, r2],
            keys: [k0, k1, k2, k3],
            sums: [s0, s1, s2],
            stats: [t0, t1],
            panels: [p0, p1],
        }
    }

    pub(crate) unsafe fn run(&self, ops: &Ops, args: &[*mut u8], scratch: &Scratch) {
        let rows = Scores::of(ops.name);
        let threads = if self.parallel { scratch.threads() } else { 1 };
        let shared = Shared { args, area: std::ptr::null_mut() };
        let work = |worker: usize| {
            let shared = &shared;
            Work { plan: self, ops, rows, args: shared.args, room: self.room(scratch.worker(worker).words) }
        };
        let (all_queries, all_keys) = (Span { from: 0, len: self.queries }, Span { from: 0, len: self.keys });
        let query_blocks = spans(all_queries, self.tile.0);
        // SAFETY of the tasks: they write disjoint parts of the results.
        match &self.given {
            Form::Backward { .. } if self.batch >= MANY => share(threads, self.batch, &|worker, batch| unsafe {
                work(worker).backward(batch, all_queries, all_keys, true, true);
            }),
            Form::Backward { .. } => {
                let key_blocks = spans(all_keys, self.tile.1);
                let (a, b) = (query_blocks.len(), key_blocks.len());
                share(threads, self.batch * (a + b), &|worker, task| unsafe {
                    let (batch, block) = (task / (a + b), task % (a + b));
                    match block.checked_sub(a) {
                        None => work(worker).backward(batch, query_blocks[block], all_keys, true, false),
                        Some(block) => work(worker).backward(batch, all_queries, key_blocks[block], false, true),
                    }
                });
            }
            Form::Forward | Form::Jvp { .. } => {
                let blocks = query_blocks.len();
                share(threads, self.batch * blocks, &|worker, task| unsafe {
                    let (batch, block) = (task / blocks, query_blocks[task % blocks]);
                    match &self.given {
                        Form::Forward => work(worker).forward(batch, block),
                        _ => work(worker).jvp(batch, block),
                    }
                });
            }
        }
    }
}

/// A span in pieces.
fn spans(span: Span, most: usize) -> Vec<Span> {
    let end = span.from + span.len;
    (span.from..end).step_by(most.max(1)).map(|from| Span { from, len: most.min(end - from) }).collect()
}

/// A task's view of the kernel.
struct Work<'a> {
    plan: &'a Attend,
    ops: &'a Ops,
    rows: Scores,
    args: &'a [*mut u8],
    room: Room,
}

impl Work<'_> {
    /// `to = a b`, or that added to it: `a` is `m` by `k`, the result has its columns side by side.
    unsafe fn product(&self, extents: [usize; 3], to: Tile, add: bool, a: Tile, b: Right) {
        let [m, n, k] = extents;
        let left = Factor { ptr: a.ptr, along: a.row, k: a.col };
        unsafe { product::multiply((m, n, k), left, b, to.ptr, to.row, add) };
    }

    /// A block of an operand as the right factor of a product over its rows.
    fn lines(&self, x: Tile) -> Right {
        Right::Lines(Factor { ptr: x.ptr, along: x.col, k: x.row })
    }

    /// A block of `n` keys or values as the right factor of a product over the head's dim.
    unsafe fn panels(&self, x: Tile, n: usize, room: *mut f32) -> Right {
        let turned = Factor { ptr: x.ptr, along: x.row, k: x.col };
        let count = product::panels(n);
        if count == 0 {
            return Right::Lines(turned);
        }
        (0..count).for_each(|p| unsafe { product::pack(turned, n, self.plan.head, p, room) });
        Right::Panels { ptr: room, depth: self.plan.head, from: 0 }
    }

    /// A block of an operand over queries or keys.
    unsafe fn read(&self, m: &Matrix, batch: usize, span: Span, pack: *mut f32) -> Tile {
        unsafe { m.read(self.args, batch, (span.from, span.len), (0, self.plan.head), pack) }
    }

    /// Where sums over a span go: a result in memory, or scratch whose first row is `from`.
    fn sum(&self, m: &Option<Matrix>, batch: usize, span: Span, from: usize, scratch: *mut f32) -> Tile {
        match m {
            Some(m) if m.is_plain() => m.plain(self.args, batch, span.from, 0),
            _ => Tile { ptr: scratch, row: self.plan.head as isize, col: 1 }.from(span.from - from, 0),
        }
    }

    /// Stores sums that were made in scratch.
    unsafe fn put(&self, m: &Option<Matrix>, batch: usize, span: Span, tile: Tile) {
        let Some(m) = m.as_ref().filter(|m| !m.is_plain()) else { return };
        unsafe { m.put(self.args, batch, (span.from, span.len), self.plan.head, tile) };
    }

    unsafe fn clear(&self, rows: usize, tile: Tile) {
        for i in 0..rows {
            for e in 0..self.plan.head {
                unsafe { *tile.from(i, e).ptr = 0.0 };
            }
        }
    }

    unsafe fn dot(&self, x: Tile, y: Tile) -> f32 {
        let head = self.plan.head;
        if x.col == 1 && y.col == 1 {
            return unsafe { (self.rows.dot)(head, x.ptr, y.ptr) };
        }
        (0..head).fold(0.0, |sum, e| unsafe { sum + *x.from(0, e).ptr * *y.from(0, e).ptr })
    }

    /// The keys that a block of queries sees.
    fn seen(&self, queries: Span, keys: Span) -> Span {
        if !self.plan.causal {
            return keys;
        }
        let end = (keys.from + keys.len).min(queries.from + queries.len).max(keys.from);
        Span { len: end - keys.from, ..keys }
    }

    /// A tile over this many keys, in room of its own.
    fn tile(&self, ptr: *mut f32, keys: usize) -> Tile {
        Tile { ptr, row: pitch(keys) as isize, col: 1 }
    }

    /// The scores of a tile, in `scores`.
    unsafe fn scores(&self, batch: usize, queries: Span, keys: Span, q: Tile, k: Right) {
        let (plan, n) = (self.plan, keys.len);
        let s = self.tile(self.room.scores, n);
        unsafe {
            self.product([queries.len, n, plan.head], s, false, q, k);
            (0..queries.len).for_each(|i| (self.rows.scale)(n, s.from(i, 0).ptr, plan.scale));
        }
        if let Some(bias) = &plan.bias {
            unsafe { self.add_bias(bias, batch, queries, keys, s) };
        }
        if plan.causal {
            for i in 0..queries.len {
                let seen = (queries.from + i + 1).saturating_sub(keys.from).min(n);
                unsafe { std::slice::from_raw_parts_mut(s.from(i, seen).ptr, n - seen).fill(HIDDEN as f32) };
            }
        }
    }

    unsafe fn add_bias(&self, bias: &Matrix, batch: usize, queries: Span, keys: Span, s: Tile) {
        let n = keys.len;
        for i in 0..queries.len {
            let row = s.from(i, 0).ptr;
            let at = queries.from + i;
            if bias.is_plain() {
                let from = bias.plain(self.args, batch, at, keys.from);
                if from.col == 1 {
                    unsafe { (self.rows.add)(n, row, from.ptr, 1.0) };
                    continue;
                }
            }
            for j in 0..n {
                unsafe { *row.add(j) += bias.get(self.args, batch, at, keys.from + j) };
            }
        }
    }

    /// The mixed values of a block of queries.
    unsafe fn forward(&self, batch: usize, block: Span) {
        let (plan, head) = (self.plan, self.plan.head);
        let [greatest, total] = self.room.stats;
        unsafe {
            let q = self.read(&plan.qkv[0], batch, block, self.room.rows[0]);
            let o = self.sum(&plan.out.rows, batch, block, block.from, self.room.sums[0]);
            let all = self.seen(block, Span { from: 0, len: plan.keys });
            for (t, keys) in spans(all, plan.tile.1).into_iter().enumerate() {
                let k = self.read(&plan.qkv[1], batch, keys, self.room.keys[0]);
                let v = self.read(&plan.qkv[2], batch, keys, self.room.keys[1]);
                let k = self.panels(k, keys.len, self.room.panels[0]);
                self.scores(batch, block, keys, q, k);
                let p = self.tile(self.room.scores, keys.len);
                for i in 0..block.len {
                    let row = p.from(i, 0).ptr;
                    let before = if t == 0 { f32::MIN } else { *greatest.add(i) };
                    let now = (self.ops.max)(row, keys.len).max(before);
                    (self.rows.weigh)(keys.len, row, now);
                    let sum = (self.ops.sum)(row, keys.len);
                    *greatest.add(i) = now;
                    if t == 0 {
                        *total.add(i) = sum;
                    } else {
                        let shrink = super::math::exp::<false>(before - now);
                        *total.add(i) = *total.add(i) * shrink + sum;
                        if shrink != 1.0 {
                            self.scale_row(o.from(i, 0), shrink);
                        }
                    }
                }
                self.product([block.len, head, keys.len], o, t > 0, p, self.lines(v));
            }
            for i in 0..block.len {
                self.scale_row(o.from(i, 0), 1.0 / *total.add(i));
                *greatest.add(i) += super::math::log::<false>(*total.add(i));
            }
            if let Some(lse) = &plan.out.lse {
                lse.set_column(self.args, batch, (block.from, block.len), greatest);
            }
            self.put(&plan.out.rows, batch, block, o);
        }
    }

    unsafe fn scale_row(&self, row: Tile, factor: f32) {
        if row.col == 1 {
            unsafe { (self.rows.scale)(self.plan.head, row.ptr, factor) };
        } else {
            (0..self.plan.head).for_each(|e| unsafe { *row.from(0, e).ptr *= factor });
        }
    }

    /// Turns the scores of a tile into weights.
    unsafe fn weights(&self, rows: usize, keys: usize, lse: *const f32) {
        for i in 0..rows {
            unsafe { (self.rows.weigh)(keys, self.tile(self.room.scores, keys).from(i, 0).ptr, *lse.add(i)) };
        }
    }

    /// The tangents of the mixed values of a block of queries.
    unsafe fn jvp(&self, batch: usize, block: Span) {
        let (plan, head) = (self.plan, self.plan.head);
        let Form::Jvp { o, lse, of: [dq, dk, dv], bias } = &plan.given else { unreachable!("the form is the task's") };
        let [logs, total] = self.room.stats;
        unsafe {
            let q = self.read(&plan.qkv[0], batch, block, self.room.rows[0]);
            let q_tangent = self.read(dq, batch, block, self.room.rows[1]);
            let out = self.sum(&plan.out.rows, batch, block, block.from, self.room.sums[0]);
            lse.column(self.args, batch, (block.from, block.len), logs);
            std::slice::from_raw_parts_mut(total, block.len).fill(0.0);
            let all = self.seen(block, Span { from: 0, len: plan.keys });
            for (t, keys) in spans(all, plan.tile.1).into_iter().enumerate() {
                let n = keys.len;
                let k = self.read(&plan.qkv[1], batch, keys, self.room.keys[0]);
                let v = self.read(&plan.qkv[2], batch, keys, self.room.keys[1]);
                let (p, r) = (self.tile(self.room.scores, n), self.tile(self.room.other, n));
                let k = self.panels(k, n, self.room.panels[0]);
                self.scores(batch, block, keys, q, k);
                self.weights(block.len, n, logs);
                self.product([block.len, n, head], r, false, q_tangent, k);
                if !dk.is_zero() {
                    let k = self.read(dk, batch, keys, self.room.keys[2]);
                    self.product([block.len, n, head], r, true, q, self.panels(k, n, self.room.panels[1]));
                }
                (0..block.len).for_each(|i| (self.rows.scale)(n, r.from(i, 0).ptr, plan.scale));
                if let Some(bias) = bias {
                    self.add_bias(bias, batch, block, keys, r);
                }
                for i in 0..block.len {
                    let row = r.from(i, 0).ptr;
                    (self.rows.multiply)(n, row, p.from(i, 0).ptr);
                    *total.add(i) += (self.ops.sum)(row, n);
                }
                self.product([block.len, head, n], out, t > 0, r, self.lines(v));
                if !dv.is_zero() {
                    let v = self.read(dv, batch, keys, self.room.keys[3]);
                    self.product([block.len, head, n], out, true, p, self.lines(v));
                }
            }
            let o = self.read(o, batch, block, self.room.rows[2]);
            for i in 0..block.len {
                for e in 0..head {
                    *out.from(i, e).ptr -= *total.add(i) * *o.from(i, e).ptr;
                }
            }
            if let Some(lse) = &plan.out.lse {
                lse.set_column(self.args, batch, (block.from, block.len), total);
            }
            self.put(&plan.out.rows, batch, block, out);
        }
    }

    /// The cotangents that these queries and keys give each other: of the queries, or of the keys and values, or all.
    unsafe fn backward(&self, batch: usize, queries: Span, keys: Span, of_queries: bool, of_keys: bool) {
        let (plan, head) = (self.plan, self.plan.head);
        let Form::Backward { o, lse, ct, ct_lse } = &plan.given else { unreachable!("the form is the task's") };
        let [logs, row] = self.room.stats;
        let out = &plan.out;
        unsafe {
            for block in spans(queries, plan.tile.0) {
                let (o, ct) =
                    (self.read(o, batch, block, self.room.rows[2]), self.read(ct, batch, block, self.room.rows[1]));
                let at = block.from - queries.from;
                ct_lse.column(self.args, batch, (block.from, block.len), row.add(at));
                lse.column(self.args, batch, (block.from, block.len), logs.add(at));
                for i in 0..block.len {
                    *row.add(at + i) = self.dot(o.from(i, 0), ct.from(i, 0)) - *row.add(at + i);
                }
            }
            let dq = self.sum(&out.rows, batch, queries, queries.from, self.room.sums[0]);
            for (t, keys) in spans(keys, plan.tile.1).into_iter().enumerate() {
                let n = keys.len;
                let dk = self.sum(&out.k, batch, keys, keys.from, self.room.sums[1]);
                let dv = self.sum(&out.v, batch, keys, keys.from, self.room.sums[2]);
                // Whether `dk` and `dv` hold anything yet; every query sees the first tile.
                let mut begun = false;
                let k = self.read(&plan.qkv[1], batch, keys, self.room.keys[0]);
                let v = self.read(&plan.qkv[2], batch, keys, self.room.keys[1]);
                let (p, ds) = (self.tile(self.room.scores, n), self.tile(self.room.other, n));
                let k_turned = self.panels(k, n, self.room.panels[0]);
                let v_turned = self.panels(v, n, self.room.panels[1]);
                for block in spans(queries, plan.tile.0) {
                    if self.seen(block, keys).len == 0 {
                        continue;
                    }
                    let (m, at) = (block.len, block.from - queries.from);
                    let q = self.read(&plan.qkv[0], batch, block, self.room.rows[0]);
                    let ct = self.read(ct, batch, block, self.room.rows[1]);
                    self.scores(batch, block, keys, q, k_turned);
                    self.weights(m, n, logs.add(at));
                    self.product([m, n, head], ds, false, ct, v_turned);
                    for i in 0..m {
                        (self.rows.centre)(n, ds.from(i, 0).ptr, p.from(i, 0).ptr, *row.add(at + i));
                        (self.rows.scale)(n, ds.from(i, 0).ptr, plan.scale);
                    }
                    if of_keys {
                        self.product([n, head, m], dv, begun, p.turned(), self.lines(ct));
                        self.product([n, head, m], dk, begun, ds.turned(), self.lines(q));
                        begun = true;
                    }
                    if of_queries {
                        self.product([m, head, n], dq.from(at, 0), t > 0, ds, self.lines(k));
                    }
                }
                if of_keys {
                    if !begun {
                        self.clear(n, dk);
                        self.clear(n, dv);
                    }
                    self.put(&out.k, batch, keys, dk);
                    self.put(&out.v, batch, keys, dv);
                }
            }
            if of_queries {
                self.put(&out.rows, batch, queries, dq);
            }
        }
    }
}
