//! `Contract` kernels: blocks of a matrix product by the `gemm` crate, each followed by its epilogue while it is
//! in cache.
//!
//! M, N and K are the flat row-major coordinates of the dims of their roles. An operand is *plain* if it is a load
//! of floats whose index is a line along its rows and along K: the product reads it where it lies. Any other
//! operand is *packed*: its instructions are evaluated into scratch, either wholly before the product (if several
//! blocks need the same part and it is not too large) or block by block, K in tiles.
//!
//! Blocks and tiles depend on the shape alone, so the order of every sum does.

use super::exec::{Block, Env};
use super::ops::Ops;
use super::plan::{Domain, Plan};
use super::planner::{Given, Planner, indices};
use super::rows::{Shared, dims_of};
use super::scratch::{Need, Scratch, Worker};
use super::threads::share;
use dnx_codegen::kernel::{Atom, Idx, Inst, InstId, Kernel, Role};
use dnx_ir::DType;
use gemm::Parallelism;

/// Flops below which a contraction stays on one thread; tasks have about as many at least.
const SERIAL: usize = 1 << 18;
/// Flops of a task of a large contraction, about.
const TASK: usize = 96 << 20;
/// Tasks of a contraction, about, at most.
const TASKS: usize = 64;
/// Results of a block, at least, where a contraction is cut for threads: smaller ones cost more packing than they save.
const AREA: usize = 96 * 128;
/// Depth of a tile of K where an operand is packed.
const DEPTH: usize = 1024;
/// Words of an operand that may be packed before the product.
const WHOLE: usize = 16 << 20;

/// A planned `Contract` kernel.
pub(crate) struct Contract {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    lhs: Operand,
    rhs: Operand,
    /// Where the product itself is the result.
    out: Option<Matrix>,
    epilogue: Plan,
    /// Rows, columns and depth of a block.
    block: (usize, usize, usize),
    /// Batch entries of a task.
    batches: usize,
    int: bool,
    args: usize,
    parallel: bool,
    /// Offsets in the shared area: uniform values of epilogue, lhs, rhs; whole packed lhs and rhs.
    shared: [usize; 5],
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
    /// Evaluated; `true`: K runs fastest in the packed block.
    Packed {
        plan: Box<Plan>,
        k_inner: bool,
        whole: bool,
    },
}

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
        let (bd, md, nd, kd) = (of(Role::Batch), of(Role::M), of(Role::N), of(Role::Reduce));
        let (batch, m, n, k) = (extent(&bd), extent(&md), extent(&nd), extent(&kd));
        let mut dots = kernel.insts.iter().enumerate().filter_map(|(i, inst)| match inst {
            Inst::Dot { lhs, rhs } => Some((InstId(i as u32), *lhs, *rhs)),
            _ => None,
        });
        let (Some((dot, lhs, rhs)), None) = (dots.next(), dots.next()) else {
            return Err("a contraction without exactly one dot".to_string());
        };
        let int = !kernel.dtype(lhs).is_float();
        let reduce_mask: u64 = kd.iter().map(|d| 1u64 << d.0).sum();
        let masks = kernel.dependence();
        if kernel.stores.iter().any(|s| (masks[s.value.index()] | s.index.dims()) & reduce_mask != 0) {
            return Err("a contraction that stores a value of its contracted dims".to_string());
        }
        let plain = |id: InstId, rows: &[(usize, usize)]| match kernel.inst(id) {
            Inst::Load { arg, index, dynamic }
                if !int && dynamic.is_empty() && kernel.args[*arg as usize].dtype == DType::F32 =>
            {
                Matrix::new(*arg, index, &bd, rows, &kd)
            }
            _ => None,
        };
        let (plain_lhs, plain_rhs) = (plain(lhs, &md), plain(rhs, &nd));
        let packs = plain_lhs.is_none() || plain_rhs.is_none();
        let (mb, nb) = blocks(batch, m, n, k, plain_lhs.is_none(), plain_rhs.is_none());
        let kb = if packs { k.div_ceil(k.div_ceil(DEPTH).max(1)) } else { k };
        let (m_blocks, n_blocks) = (m.div_ceil(mb.max(1)), n.div_ceil(nb.max(1)));
        let seen = indices(kernel);
        let args = kernel.args.len();
        let operand =
            |plain: Option<Matrix>, id: InstId, rows: &[(usize, usize)], rb: usize, others: usize, arg: usize| {
                if let Some(matrix) = plain {
                    return Ok(Operand::Plain(matrix));
                }
                let r = extent(rows);
                let whole = others > 1 && batch * r * k <= WHOLE;
                let k_inner = runs_along_k(kernel, id, rows, &kd);
                // Positions in the packed block; a whole operand is one block per batch entry.
                let (rb, kb) = if whole { (r, k) } else { (rb, kb) };
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
                Ok::<Operand, String>(Operand::Packed { plan: Box::new(planner.finish()), k_inner, whole })
            };
        let lhs = operand(plain_lhs, lhs, &md, mb, n_blocks, args)?;
        let rhs = operand(plain_rhs, rhs, &nd, nb, m_blocks, args + 1)?;
        let out = match &kernel.stores[..] {
            [s] if s.value == dot && !int && kernel.args[s.arg as usize].dtype == DType::F32 => {
                Matrix::new(s.arg, &s.index, &bd, &md, &nd)
            }
            _ => None,
        };
        let outer: Vec<_> = bd.iter().chain(&md).copied().collect();
        let mut epilogue = Planner::new(kernel, in_place, &outer, &nd, &seen, false)?;
        epilogue.give(dot, Given::Acc);
        if out.is_none() {
            for store in &kernel.stores {
                epilogue.store(store)?;
            }
        }
        let epilogue = epilogue.finish();
        let flops = 2 * m * n * k;
        let batches = (SERIAL * 4 / flops.max(1)).clamp(1, batch.max(1));
        let uniform = |o: &Operand| match o {
            Operand::Plain(_) => 0,
            Operand::Packed { plan, .. } => plan.uniform_words,
        };
        let whole = |o: &Operand, r: usize| match o {
            Operand::Packed { whole: true, .. } => batch * r * k,
            _ => 0,
        };
        let sizes = [epilogue.uniform_words, uniform(&lhs), uniform(&rhs), whole(&lhs, m) + 64, whole(&rhs, n) + 64];
        let mut shared = [0; 5];
        let mut shared_words = 0;
        for (at, size) in shared.iter_mut().zip(sizes) {
            *at = shared_words;
            shared_words += size.next_multiple_of(16);
        }
        let parallel = batch * flops >= SERIAL;
        let block = (mb, nb, kb);
        Ok(Contract {
            batch,
            m,
            n,
            k,
            lhs,
            rhs,
            out,
            epilogue,
            block,
            batches,
            int,
            args,
            parallel,
            shared,
            shared_words,
        })
    }

    fn plans(&self) -> impl Iterator<Item = &Plan> {
        let packed = [&self.lhs, &self.rhs].into_iter().filter_map(|o| match o {
            Operand::Plain(_) => None,
            Operand::Packed { plan, .. } => Some(&**plan),
        });
        std::iter::once(&self.epilogue).chain(packed)
    }

    /// Words of a worker's block of results, packed left and packed right operand.
    fn areas(&self) -> [usize; 3] {
        let (mb, nb, kb) = self.block;
        let packed = |o: &Operand, r: usize| match o {
            Operand::Packed { whole: false, .. } => (r * kb).next_multiple_of(16) + 16,
            _ => 0,
        };
        let acc = if self.out.is_some() { 0 } else { (mb * nb).next_multiple_of(16) + 16 };
        [acc, packed(&self.lhs, mb), packed(&self.rhs, nb)]
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
        let (mb, nb, _) = self.block;
        let threads = if self.parallel { scratch.threads() } else { 1 };
        let first = self.env(ops, args, scratch.worker(0));
        unsafe {
            self.epilogue.start(&first, at(0));
            for (i, operand) in [&self.lhs, &self.rhs].into_iter().enumerate() {
                let Operand::Packed { plan, whole, .. } = operand else { continue };
                plan.start(&first, at(1 + i));
                if *whole {
                    self.pack_whole(ops, plan, args, scratch, threads, i);
                }
            }
        }
        let (m_blocks, n_blocks) = (self.m.div_ceil(mb.max(1)), self.n.div_ceil(nb.max(1)));
        let groups = self.batch.div_ceil(self.batches.max(1));
        let shared = Shared { args, area };
        share(threads, groups * m_blocks * n_blocks, &|worker, task| {
            let shared = &shared;
            let (group, block) = (task / (m_blocks * n_blocks), task % (m_blocks * n_blocks));
            let (row, col) = (block / n_blocks * mb, block % n_blocks * nb);
            let rows = (row, (row + mb).min(self.m));
            let cols = (col, (col + nb).min(self.n));
            let worker = scratch.worker(worker);
            for batch in group * self.batches..((group + 1) * self.batches).min(self.batch) {
                // SAFETY: tasks compute disjoint blocks of the results.
                unsafe { self.block(ops, shared, worker, batch, rows, cols) };
            }
        });
        unsafe { self.epilogue.end(&first) };
    }

    /// An environment whose arguments are a worker's copy, with room for the packed operands.
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

    unsafe fn pack_whole(
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

    unsafe fn block(
        &self,
        ops: &Ops,
        shared: &Shared,
        worker: Worker,
        batch: usize,
        rows: (usize, usize),
        cols: (usize, usize),
    ) {
        let (m, n) = (rows.1 - rows.0, cols.1 - cols.0);
        let areas = self.areas();
        let acc = worker.words;
        let packs = unsafe { [acc.add(areas[0]), acc.add(areas[0] + areas[1])] };
        let mut env = self.env(ops, shared.args, worker);
        let (dst, row_stride, col_stride) = match &self.out {
            Some(out) => {
                let at = out.at(batch) + rows.0 as i64 * out.row + cols.0 as i64 * out.col;
                (unsafe { (shared.args[out.arg] as *mut u32).offset(at as isize) }, out.row, out.col)
            }
            None => (acc, n as i64, 1),
        };
        let depth = self.block.2;
        let mut from = 0;
        loop {
            let to = (from + depth).min(self.k);
            let depths = (from, to);
            let a = unsafe { self.operand(&self.lhs, 0, &env, shared, worker, packs[0], batch, rows, depths, self.m) };
            let b = unsafe { self.operand(&self.rhs, 1, &env, shared, worker, packs[1], batch, cols, depths, self.n) };
            let k = to - from;
            unsafe {
                if self.int {
                    product_int(m, n, k, dst, (row_stride, col_stride), from > 0, a, b);
                } else {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        dst as *mut f32,
                        col_stride as isize,
                        row_stride as isize,
                        from > 0,
                        a.0 as *const f32,
                        a.2 as isize,
                        a.1 as isize,
                        b.0 as *const f32,
                        b.1 as isize,
                        b.2 as isize,
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        Parallelism::None,
                    );
                }
            }
            from = to;
            if from >= self.k {
                break;
            }
        }
        if self.out.is_none() {
            let first = batch * self.m;
            env.acc = Block { ptr: acc, row0: first + rows.0, col0: cols.0, ld: n };
            unsafe {
                self.epilogue.adopt(&env, shared.area.add(self.shared[0]));
                self.epilogue.range(&env, (first + rows.0, first + rows.1), cols);
            }
        }
    }

    /// An operand's tile: its address, stride along M or N, stride along K.
    unsafe fn operand(
        &self,
        operand: &Operand,
        which: usize,
        env: &Env,
        shared: &Shared,
        worker: Worker,
        pack: *mut u32,
        batch: usize,
        rows: (usize, usize),
        depths: (usize, usize),
        extent: usize,
    ) -> (*const u32, i64, i64) {
        match operand {
            Operand::Plain(matrix) => {
                let at = matrix.at(batch) + rows.0 as i64 * matrix.row + depths.0 as i64 * matrix.col;
                let base = shared.args[matrix.arg] as *const u32;
                (unsafe { base.offset(at as isize) }, matrix.row, matrix.col)
            }
            Operand::Packed { k_inner, whole: true, .. } => {
                let (row, col) = if *k_inner { (self.k, 1) } else { (1, extent) };
                let at = batch * extent * self.k + rows.0 * row + depths.0 * col;
                (unsafe { shared.area.add(self.shared[3 + which] + at) }, row as i64, col as i64)
            }
            Operand::Packed { plan, k_inner, whole: false } => {
                let block = [self.block.0, self.block.1][which];
                let (row, col) = if *k_inner { (self.block.2, 1) } else { (1, block) };
                // The plan stores at positions of the whole operand: begin as far before the tile.
                let before = rows.0 * row + depths.0 * col;
                unsafe { *worker.args.add(self.args + which) = pack.wrapping_sub(before) as *mut u8 };
                unsafe { plan.adopt(env, shared.area.add(self.shared[1 + which])) };
                let (slow, fast, slow_extent) = if *k_inner { (rows, depths, extent) } else { (depths, rows, self.k) };
                let first = batch * slow_extent;
                unsafe { plan.range(env, (first + slow.0, first + slow.1), fast) };
                (pack, row as i64, col as i64)
            }
        }
    }
}

/// The wrapping product of integers, accumulated into `dst` or replacing it.
unsafe fn product_int(
    m: usize,
    n: usize,
    k: usize,
    dst: *mut u32,
    strides: (i64, i64),
    add: bool,
    a: (*const u32, i64, i64),
    b: (*const u32, i64, i64),
) {
    let at = |p: (*const u32, i64, i64), r: usize, k: usize| unsafe {
        *p.0.offset((r as i64 * p.1 + k as i64 * p.2) as isize)
    };
    for row in 0..m {
        for col in 0..n {
            let place = unsafe { dst.offset((row as i64 * strides.0 + col as i64 * strides.1) as isize) };
            let mut sum = if add { unsafe { *place } } else { 0 };
            for i in 0..k {
                sum = sum.wrapping_add(at(a, row, i).wrapping_mul(at(b, col, i)));
            }
            unsafe { *place = sum };
        }
    }
}

/// Rows and columns of a block. An operand that is evaluated is better cut along its own rows.
fn blocks(batch: usize, m: usize, n: usize, k: usize, lhs_packed: bool, rhs_packed: bool) -> (usize, usize) {
    let flops = (2 * m * n * k).saturating_mul(batch.max(1));
    let wanted = match flops {
        f if f < SERIAL => 1,
        f => (f / TASK).clamp(4.min(f / SERIAL), TASKS),
    };
    let (mut mb, mut nb) = (m, n);
    let halve = |x: usize| x.div_ceil(2).next_multiple_of(16);
    while batch * m.div_ceil(mb.max(1)) * n.div_ceil(nb.max(1)) < wanted {
        if mb * nb < 2 * AREA && batch * m.div_ceil(mb) * n.div_ceil(nb) >= 4 {
            break;
        }
        let m_first = match (lhs_packed, rhs_packed) {
            (true, false) => mb > 128 || nb <= 64,
            (false, true) => mb > 64 && nb <= 128,
            _ => mb >= nb,
        };
        if m_first && mb > 32 {
            mb = halve(mb);
        } else if nb > 32 {
            nb = halve(nb);
        } else if mb > 32 {
            mb = halve(mb);
        } else {
            break;
        }
    }
    // A packed block of a tile stays in the second cache.
    while lhs_packed && mb > 256 {
        mb = halve(mb);
    }
    while rhs_packed && nb > 1024 {
        nb = halve(nb);
    }
    (mb, nb)
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
