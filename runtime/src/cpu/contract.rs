//! `Contract` kernels: blocks of a matrix product, each strip of their rows followed by its epilogue while it is in
//! cache.
//!
//! M, N and K are the flat row-major coordinates of the dims of their roles. An operand is *plain* if it is a load
//! of floats whose index is a line along its rows and along K: the product reads it where it lies. So it does with a
//! left operand that is plain in [`super::segments`]. Any other operand is *computed*: its instructions are evaluated into scratch, either wholly before the product (if several
//! blocks need the same part and it is not too large) or as a block needs it. Where the product wants the right
//! operand in panels (see [`super::product`]), they are made once for all blocks or by each block.
//!
//! The tiles of K depend on the shape alone, and within a tile each sum is in order: results depend neither on the
//! blocks nor on the threads.

use super::blocks::{Blocks, Extents};
use super::exec::{Block, Env};
use super::ops::Ops;
use super::plan::{Domain, Plan};
use super::planner::{Given, Planner, indices};
use super::product::{Factor, Right, multiply, pack, padded, panels, wants_panels};
use super::rows::{Shared, dims_of};
use super::scratch::{Need, Scratch, Worker};
use super::segments::Segments;
use super::threads::share;
use dnx_codegen::kernel::{Atom, Idx, Inst, InstId, Kernel, Role};
use dnx_ir::DType;

/// Words of an operand that may be computed or packed before the product.
const WHOLE: usize = 16 << 20;

/// A planned `Contract` kernel.
pub(crate) struct Contract {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    lhs: Operand,
    rhs: Operand,
    panels: Panels,
    /// Where the product itself is a result, and whether it is the only one.
    out: Option<Matrix>,
    finished: bool,
    epilogue: Plan,
    blocks: Blocks,
    int: bool,
    args: usize,
    /// Offsets in the shared area: uniform values of epilogue, lhs, rhs; whole computed lhs and rhs; panels.
    shared: [usize; 6],
    shared_words: usize,
}

/// A matrix per batch entry, in an argument.
#[derive(Clone, Debug)]
struct Matrix {
    arg: usize,
    offset: i64,
    /// Extent and stride of the batch dims.
    batch: Vec<(usize, i64)>,
    /// Stride along M or N.
    row: i64,
    /// Stride along K (for results: along N).
    col: i64,
}

enum Operand {
    Plain(Matrix),
    /// A left operand that is plain piece by piece.
    Segments(Box<Segments>),
    /// Evaluated; `k_inner`: K runs fastest where it is put.
    Computed {
        plan: Box<Plan>,
        k_inner: bool,
        whole: bool,
    },
}

/// Whether and when the right operand is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panels {
    Never,
    /// All of it, before the product.
    Whole,
    /// Tile by tile, by each block.
    Tile,
}

/// A part of the work: rows `.0 .. .1` and so on.
type Range = (usize, usize);

impl Matrix {
    fn new(
        arg: u32,
        idx: &Idx,
        batch: &[(usize, usize)],
        rows: &[(usize, usize)],
        cols: &[(usize, usize)],
    ) -> Option<Matrix> {
        if !idx.is_affine() {
            return None;
        }
        let batch = batch.iter().map(|&(d, n)| (n, idx.coef(d))).collect();
        Some(Matrix { arg: arg as usize, offset: idx.offset, batch, row: line(idx, rows)?, col: line(idx, cols)? })
    }

    fn at(&self, mut batch: usize) -> i64 {
        let mut at = self.offset;
        for &(n, stride) in self.batch.iter().rev() {
            at += (batch % n) as i64 * stride;
            batch /= n;
        }
        at
    }
}

/// The stride of an affine index along the flat order of these dims, if it has one.
fn line(idx: &Idx, dims: &[(usize, usize)]) -> Option<i64> {
    let mut stride = None;
    let mut below = 1;
    for &(d, n) in dims.iter().rev().filter(|d| d.1 != 1) {
        let s = *stride.get_or_insert(idx.coef(d));
        if idx.coef(d) != s * below {
            return None;
        }
        below *= n as i64;
    }
    Some(stride.unwrap_or(0))
}

fn extent(dims: &[(usize, usize)]) -> usize {
    dims.iter().map(|d| d.1).product()
}

impl Contract {
    pub(crate) fn new(kernel: &Kernel, in_place: &[bool]) -> Result<Contract, String> {
        let of = |role| dims_of(kernel, |r| r == role);
        let (bd, mut md, nd, mut kd) = (of(Role::Batch), of(Role::M), of(Role::N), of(Role::Reduce));
        let (batch, m, n, k) = (extent(&bd), extent(&md), extent(&nd), extent(&kd));
        let mut dots = kernel.insts.iter().enumerate().filter_map(|(i, inst)| match inst {
            Inst::Dot { lhs, rhs } => Some((InstId(i as u32), *lhs, *rhs)),
            _ => None,
        });
        let (Some((dot, lhs, rhs)), None) = (dots.next(), dots.next()) else {
            return Err("a contraction without exactly one dot".to_string());
        };
        let int = !kernel.dtype(lhs).is_float();
        if let Some(better) = segmented_order(kernel, lhs, &bd, &md, &kd) {
            (md, kd) = better;
        }
        let reduce_mask: u64 = kd.iter().map(|d| 1u64 << d.0).sum();
        let masks = kernel.dependence();
        if kernel.stores.iter().any(|s| (masks[s.value.index()] | s.index.dims()) & reduce_mask != 0) {
            return Err("a contraction that stores a value of its contracted dims".to_string());
        }
        let seen = indices(kernel);
        // A store of the product itself is where it is computed; what else is made of it is made from there. Unless
        // the argument is read as well: its old content must last until the epilogue.
        let alone = kernel.stores.len() == 1;
        let direct = kernel.stores.iter().enumerate().find_map(|(at, s)| {
            let arg = s.arg as usize;
            if s.value != dot || kernel.args[arg].dtype != DType::F32 || (in_place[arg] && !alone) {
                return None;
            }
            let matrix = Matrix::new(s.arg, &s.index, &bd, &md, &nd).filter(|out| out.col == 1 || n == 1)?;
            // The epilogue reads whole rows one after another.
            (alone || matrix.row == n as i64).then_some((at, matrix))
        });
        let (stored, out) = direct.unzip();
        let outer: Vec<_> = bd.iter().chain(&md).copied().collect();
        let mut epilogue = Planner::new(kernel, in_place, &outer, &nd, &seen, false)?;
        epilogue.give(dot, Given::Acc);
        for (at, store) in kernel.stores.iter().enumerate() {
            if Some(at) != stored {
                epilogue.store(store)?;
            }
        }
        let finished = out.is_some() && alone;
        let epilogue = epilogue.finish();
        let cost = if finished { 0 } else { epilogue.cost };
        let blocks = Blocks::new(&Extents { batch, m, n, k, epilogue: cost });
        let (m_blocks, n_blocks) = (m.div_ceil(blocks.rows), n.div_ceil(blocks.cols));
        let args = kernel.args.len();
        let operand = |id: InstId, rows: &[(usize, usize)], rb: usize, others: usize, arg: usize| {
            if let Inst::Load { arg, index, dynamic } = kernel.inst(id)
                && !int
                && dynamic.is_empty()
                && kernel.args[*arg as usize].dtype == DType::F32
                && let Some(matrix) = Matrix::new(*arg, index, &bd, rows, &kd)
            {
                return Ok(Operand::Plain(matrix));
            }
            if let Inst::Load { arg: from, index, dynamic } = kernel.inst(id)
                && !int
                && dynamic.is_empty()
                && arg == args
                && kernel.args[*from as usize].dtype == DType::F32
                && let Some(segments) = Segments::new(*from, index, &outer, &kd)
            {
                return Ok(Operand::Segments(Box::new(segments)));
            }
            let r = extent(rows);
            let whole = others > 1 && batch * r * k <= WHOLE;
            let k_inner = runs_along_k(kernel, id, rows, &kd);
            // Positions in the computed tile; a whole operand is one tile per batch entry.
            let (rb, kb) = if whole { (r, k) } else { (rb, blocks.depth) };
            let (row, col) = if k_inner { (kb, 1) } else { (1, rb) };
            let mut dense = Idx::default();
            let mut place = |dims: &[(usize, usize)], stride: usize| {
                let mut stride = stride as i64;
                for &(d, n) in dims.iter().rev().filter(|d| d.1 != 1) {
                    dense.terms.push((stride, Atom::Dim(d as u32)));
                    stride *= n as i64;
                }
            };
            place(rows, row);
            place(&kd, col);
            if whole {
                place(&bd, r * k);
            }
            dense.terms.sort_by(|a, b| a.1.cmp(&b.1));
            let mut seen = seen.clone();
            seen.push(&dense);
            let (slow, fast) = if k_inner { (rows, &kd[..]) } else { (&kd[..], rows) };
            let outer: Vec<_> = bd.iter().chain(slow).copied().collect();
            let mut planner = Planner::new(kernel, in_place, &outer, fast, &seen, false)?;
            let value = planner.value(id)?;
            // With every chunk, even where the operand is one number: chunks are what packs it.
            planner.store_value(arg, DType::F32, &dense, value, Domain::Full)?;
            Ok::<Operand, String>(Operand::Computed { plan: Box::new(planner.finish()), k_inner, whole })
        };
        let lhs = operand(lhs, &md, blocks.strip.min(blocks.rows), n_blocks, args)?;
        let rhs = operand(rhs, &nd, blocks.cols, m_blocks, args + 1)?;
        let (along, deep) = match &rhs {
            Operand::Plain(matrix) => (matrix.row, matrix.col),
            Operand::Segments(_) => unreachable!("right operands have no segments"),
            Operand::Computed { k_inner: true, whole, .. } => (if *whole { k } else { blocks.depth } as i64, 1),
            Operand::Computed { whole, .. } => (1, if *whole { n } else { blocks.cols } as i64),
        };
        let ready = m_blocks == 1 || matches!(&rhs, Operand::Plain(_) | Operand::Computed { whole: true, .. });
        let rows = if m_blocks > 1 && ready { m } else { blocks.rows };
        let panels = match wants_panels(rows, n, along as isize, deep as isize) {
            true if int => Panels::Never,
            true if m_blocks > 1 && ready && batch * padded(n) * k <= WHOLE => Panels::Whole,
            true => Panels::Tile,
            false => Panels::Never,
        };
        let uniform = |o: &Operand| match o {
            Operand::Plain(_) | Operand::Segments(_) => 0,
            Operand::Computed { plan, .. } => plan.uniform_words,
        };
        let whole = |o: &Operand, r: usize| match o {
            Operand::Computed { whole: true, .. } => batch * r * k + 64,
            _ => 0,
        };
        let packed = if panels == Panels::Whole { batch * padded(n) * k } else { 0 };
        let sizes = [epilogue.uniform_words, uniform(&lhs), uniform(&rhs), whole(&lhs, m), whole(&rhs, n), packed];
        let mut shared = [0; 6];
        let mut shared_words = 0;
        for (at, size) in shared.iter_mut().zip(sizes) {
            *at = shared_words;
            shared_words += size.next_multiple_of(16);
        }
        Ok(Contract {
            batch,
            m,
            n,
            k,
            lhs,
            rhs,
            panels,
            out,
            finished,
            epilogue,
            blocks,
            int,
            args,
            shared,
            shared_words,
        })
    }

    fn plans(&self) -> impl Iterator<Item = &Plan> {
        let computed = [&self.lhs, &self.rhs].into_iter().filter_map(|o| match o {
            Operand::Plain(_) | Operand::Segments(_) => None,
            Operand::Computed { plan, .. } => Some(&**plan),
        });
        std::iter::once(&self.epilogue).chain(computed)
    }

    /// Whether K is a single tile: then results need room for one strip only.
    fn shallow(&self) -> bool {
        self.blocks.depth >= self.k
    }

    /// Words of a worker's results, left and right tile, panels.
    fn areas(&self) -> [usize; 4] {
        let Blocks { rows, cols, depth, strip, .. } = self.blocks;
        let computed = |o: &Operand, r: usize| match o {
            Operand::Computed { whole: false, .. } => (r * depth).next_multiple_of(16) + 16,
            _ => 0,
        };
        let held = if self.shallow() { strip.min(rows) } else { rows };
        let results = if self.out.is_some() && !self.int { 0 } else { (held * cols).next_multiple_of(16) + 16 };
        let panels = if self.panels == Panels::Tile { padded(cols) * depth } else { 0 };
        [results, computed(&self.lhs, strip.min(rows)), computed(&self.rhs, cols), panels]
    }

    pub(crate) fn need(&self) -> Need {
        Need {
            shared: self.shared_words,
            words: self.areas().iter().sum::<usize>() + self.plans().map(|p| p.words).max().unwrap_or(0),
            vals: self.plans().map(|p| p.vals).max().unwrap_or(0),
            args: self.args + 2,
        }
    }

    pub(crate) unsafe fn run(&self, ops: &Ops, args: &[*mut u8], scratch: &Scratch) {
        let area = scratch.shared();
        let at = |i: usize| unsafe { area.add(self.shared[i]) };
        let Blocks { rows: mb, cols: nb, batches, parallel, .. } = self.blocks;
        let threads = if parallel { scratch.threads() } else { 1 };
        let first = self.env(ops, args, scratch.worker(0));
        unsafe {
            self.epilogue.start(&first, at(0));
            for (i, operand) in [&self.lhs, &self.rhs].into_iter().enumerate() {
                let Operand::Computed { plan, whole, .. } = operand else { continue };
                plan.start(&first, at(1 + i));
                if *whole {
                    self.compute_whole(ops, plan, args, scratch, threads, i);
                }
            }
        }
        let shared = Shared { args, area };
        let (m_blocks, n_blocks) = (self.m.div_ceil(mb), self.n.div_ceil(nb));
        if self.panels == Panels::Whole {
            // Panels of a tile, tiles, blocks of columns, batch entries.
            // The last block may have more of them than the others: how columns are cut depends on their number.
            let pieces = panels(nb.min(self.n)).max(panels(self.n - (n_blocks.max(1) - 1) * nb));
            let tiles = self.k.div_ceil(self.blocks.depth).max(1);
            share(threads, self.batch * n_blocks * tiles * pieces, &|_, task| {
                let shared = &shared;
                let (tile, piece) = (task / pieces, task % pieces);
                let (block, from) = (tile / tiles, tile % tiles * self.blocks.depth);
                let (batch, col) = (block / n_blocks, block % n_blocks * nb);
                let cols = (col, (col + nb).min(self.n));
                if piece < panels(cols.1 - col) {
                    let depths = (from, (from + self.blocks.depth).min(self.k));
                    // SAFETY: tasks make distinct panels.
                    unsafe { self.pack_shared(shared, batch, cols, depths, piece) };
                }
            });
        }
        let groups = self.batch.div_ceil(batches);
        share(threads, groups * m_blocks * n_blocks, &|worker, task| {
            let shared = &shared;
            let (group, block) = (task / (m_blocks * n_blocks), task % (m_blocks * n_blocks));
            let (col, row) = (block / m_blocks * nb, block % m_blocks * mb);
            let rows = (row, (row + mb).min(self.m));
            let cols = (col, (col + nb).min(self.n));
            let worker = scratch.worker(worker);
            for batch in group * batches..((group + 1) * batches).min(self.batch) {
                // SAFETY: tasks compute disjoint blocks of the results.
                unsafe { self.block(ops, shared, worker, batch, rows, cols) };
            }
        });
        unsafe { self.epilogue.end(&first) };
    }

    /// An environment whose arguments are a worker's copy, with room for the computed operands.
    fn env<'a>(&self, ops: &'a Ops, args: &[*mut u8], worker: Worker) -> Env<'a> {
        unsafe {
            std::ptr::copy_nonoverlapping(args.as_ptr(), worker.args, self.args.min(args.len()));
            Env {
                ops,
                args: std::slice::from_raw_parts(worker.args, self.args + 2),
                vals: worker.vals,
                words: worker.words.add(self.areas().iter().sum::<usize>()),
                acc: Block::NONE,
                accumulators: std::ptr::null_mut(),
            }
        }
    }

    unsafe fn compute_whole(
        &self,
        ops: &Ops,
        plan: &Plan,
        args: &[*mut u8],
        scratch: &Scratch,
        threads: usize,
        which: usize,
    ) {
        let rows = plan.space.rows();
        let per = (64 * 1024 / (plan.cols * plan.cost).max(1)).max(1);
        let shared = Shared { args, area: scratch.shared() };
        share(threads, rows.div_ceil(per), &|worker, task| {
            let shared = &shared;
            let worker = scratch.worker(worker);
            // SAFETY: tasks have distinct rows.
            unsafe {
                let env = self.env(ops, shared.args, worker);
                *worker.args.add(self.args + which) = shared.area.add(self.shared[3 + which]).cast_mut() as *mut u8;
                plan.adopt(&env, shared.area.add(self.shared[1 + which]));
                plan.range(&env, (task * per, ((task + 1) * per).min(rows)), (0, plan.cols));
            }
        });
    }

    /// Where the shared panels of a tile begin.
    unsafe fn shared_panels(&self, shared: &Shared, batch: usize, cols: Range, depths: Range) -> *mut f32 {
        // Blocks but the last have no padding, so that those before a block have `cols.0` columns.
        let at = (batch * padded(self.n) + cols.0) * self.k + depths.0 * padded(cols.1 - cols.0);
        unsafe { shared.area.add(self.shared[5] + at) as *mut f32 }
    }

    unsafe fn pack_shared(&self, shared: &Shared, batch: usize, cols: Range, depths: Range, piece: usize) {
        unsafe {
            let from = self.ready(&self.rhs, 1, shared, batch, cols, depths, self.n);
            let to = self.shared_panels(shared, batch, cols, depths);
            pack(from, cols.1 - cols.0, depths.1 - depths.0, piece, to);
        }
    }

    unsafe fn block(&self, ops: &Ops, shared: &Shared, worker: Worker, batch: usize, rows: Range, cols: Range) {
        let n = cols.1 - cols.0;
        let areas = self.areas();
        let acc = worker.words;
        let tiles = unsafe { [acc.add(areas[0]), acc.add(areas[0] + areas[1])] };
        let panels = unsafe { acc.add(areas[0] + areas[1] + areas[2]) } as *mut f32;
        let mut env = self.env(ops, shared.args, worker);
        let mut from = 0;
        loop {
            let depths = (from, (from + self.blocks.depth).min(self.k));
            let (k, done) = (depths.1 - from, depths.1 >= self.k);
            // SAFETY: the ranges lie in the operands, and nobody else computes this block.
            unsafe {
                let right = match self.panels {
                    Panels::Whole => {
                        let ptr = self.shared_panels(shared, batch, cols, depths);
                        Right::Panels { ptr, depth: k, from: 0 }
                    }
                    _ => {
                        let right =
                            self.operand(&self.rhs, 1, &env, shared, worker, tiles[1], batch, cols, depths, self.n);
                        if self.panels == Panels::Tile {
                            (0..super::product::panels(n)).for_each(|piece| pack(right, n, k, piece, panels));
                            Right::Panels { ptr: panels, depth: k, from: 0 }
                        } else {
                            Right::Lines(right)
                        }
                    }
                };
                let mut row = rows.0;
                while row < rows.1 {
                    let strip = (row, (row + self.blocks.strip).min(rows.1));
                    let m = strip.1 - row;
                    let (to, stride) = match &self.out {
                        Some(out) => {
                            let at = out.at(batch) + row as i64 * out.row + cols.0 as i64;
                            ((shared.args[out.arg] as *mut f32).offset(at as isize), out.row as isize)
                        }
                        None if self.shallow() => (acc as *mut f32, n as isize),
                        None => (acc.add((row - rows.0) * n) as *mut f32, n as isize),
                    };
                    if let Operand::Segments(segments) = &self.lhs {
                        let base = shared.args[segments.arg] as *const f32;
                        let rows = (batch * self.m + strip.0, batch * self.m + strip.1);
                        segments.multiply(base, rows, n, depths, right, to, stride, from > 0);
                    } else {
                        let left =
                            self.operand(&self.lhs, 0, &env, shared, worker, tiles[0], batch, strip, depths, self.m);
                        match right {
                            Right::Lines(right) if self.int => {
                                product_int((m, n, k), left, right, to as *mut u32, stride, from > 0)
                            }
                            right => multiply((m, n, k), left, right, to, stride, from > 0),
                        }
                    }
                    if done && !self.finished {
                        let first = batch * self.m;
                        let ld = stride as usize;
                        env.acc = Block { ptr: to as *const u32, row0: first + row, col0: cols.0, ld };
                        self.epilogue.adopt(&env, shared.area.add(self.shared[0]));
                        self.epilogue.range(&env, (first + row, first + strip.1), cols);
                    }
                    row = strip.1;
                }
            }
            from = depths.1;
            if done {
                return;
            }
        }
    }

    /// The part of an operand that lies ready in memory: plain, or computed before.
    unsafe fn ready(
        &self,
        operand: &Operand,
        which: usize,
        shared: &Shared,
        batch: usize,
        rows: Range,
        depths: Range,
        extent: usize,
    ) -> Factor {
        let (base, at, along, k) = match operand {
            Operand::Plain(matrix) => {
                let base = shared.args[matrix.arg] as *const f32;
                (base, matrix.at(batch), matrix.row, matrix.col)
            }
            Operand::Segments(_) => unreachable!("segments multiply by themselves"),
            Operand::Computed { k_inner, .. } => {
                let (row, col) = if *k_inner { (self.k, 1) } else { (1, extent) };
                let base = unsafe { shared.area.add(self.shared[3 + which]) } as *const f32;
                (base, (batch * extent * self.k) as i64, row as i64, col as i64)
            }
        };
        let at = at + rows.0 as i64 * along + depths.0 as i64 * k;
        Factor { ptr: unsafe { base.offset(at as isize) }, along: along as isize, k: k as isize }
    }

    /// A part of an operand, computed now if it is not ready.
    unsafe fn operand(
        &self,
        operand: &Operand,
        which: usize,
        env: &Env,
        shared: &Shared,
        worker: Worker,
        tile: *mut u32,
        batch: usize,
        rows: Range,
        depths: Range,
        extent: usize,
    ) -> Factor {
        let Operand::Computed { plan, k_inner, whole: false } = operand else {
            return unsafe { self.ready(operand, which, shared, batch, rows, depths, extent) };
        };
        let most = [self.blocks.strip.min(self.blocks.rows), self.blocks.cols][which];
        let (row, col) = if *k_inner { (self.blocks.depth, 1) } else { (1, most) };
        // The plan stores at positions of the whole operand: begin as far before the tile.
        let before = rows.0 * row + depths.0 * col;
        unsafe {
            *worker.args.add(self.args + which) = tile.wrapping_sub(before) as *mut u8;
            plan.adopt(env, shared.area.add(self.shared[1 + which]));
            let (slow, fast, slow_extent) = if *k_inner { (rows, depths, extent) } else { (depths, rows, self.k) };
            let first = batch * slow_extent;
            plan.range(env, (first + slow.0, first + slow.1), fast);
        }
        Factor { ptr: tile as *const f32, along: row as isize, k: col as isize }
    }
}

/// The wrapping product of integers, added to `to` or replacing it.
unsafe fn product_int(
    (m, n, k): (usize, usize, usize),
    left: Factor,
    right: Factor,
    to: *mut u32,
    stride: isize,
    add: bool,
) {
    let at = |f: Factor, i: usize, p: usize| unsafe {
        *(f.ptr as *const u32).offset(i as isize * f.along + p as isize * f.k)
    };
    for row in 0..m {
        for col in 0..n {
            let place = unsafe { to.offset(row as isize * stride).add(col) };
            let mut sum = if add { unsafe { *place } } else { 0 };
            for i in 0..k {
                sum = sum.wrapping_add(at(left, row, i).wrapping_mul(at(right, col, i)));
            }
            unsafe { *place = sum };
        }
    }
}

/// An order of the dims of M and of K in which the left operand lies in segments, if it does not in theirs: as it is
/// in memory. Gradients of convolutions by their weights come with channels outermost.
fn segmented_order(
    kernel: &Kernel,
    lhs: InstId,
    batch: &[(usize, usize)],
    rows: &[(usize, usize)],
    k: &[(usize, usize)],
) -> Option<(Vec<(usize, usize)>, Vec<(usize, usize)>)> {
    let Inst::Load { arg, index, .. } = kernel.inst(lhs) else { return None };
    let outer = |rows: &[(usize, usize)]| -> Vec<_> { batch.iter().chain(rows).copied().collect() };
    if Matrix::new(*arg, index, batch, rows, k).is_some() || Segments::new(*arg, index, &outer(rows), k).is_some() {
        return None;
    }
    let sorted = |dims: &[(usize, usize)]| {
        let mut dims = dims.to_vec();
        dims.sort_by_key(|d| std::cmp::Reverse(index.coef(d.0).unsigned_abs()));
        dims
    };
    let (rows, k) = (sorted(rows), sorted(k));
    Segments::new(*arg, index, &outer(&rows), &k).map(|_| (rows, k))
}

/// Whether the loads under an operand run along K rather than along its rows.
fn runs_along_k(kernel: &Kernel, operand: InstId, rows: &[(usize, usize)], k: &[(usize, usize)]) -> bool {
    let last = |dims: &[(usize, usize)]| dims.iter().rev().find(|d| d.1 != 1).map(|d| d.0);
    let (row, k) = (last(rows), last(k));
    let mut open = vec![operand];
    let (mut along_k, mut along_rows) = (0, 0);
    while let Some(id) = open.pop() {
        if let Inst::Load { index, .. } = kernel.inst(id) {
            let step = |d: Option<usize>| d.map_or(0, |d| index.coef(d).unsigned_abs());
            along_k += usize::from(step(k) == 1);
            along_rows += usize::from(step(row) == 1 && step(k) != 1);
        }
        open.extend(kernel.inst(id).operands());
    }
    along_k >= along_rows
}
