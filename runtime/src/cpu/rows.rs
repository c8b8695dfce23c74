//! `Loop` and `Row` kernels: independent rows, in chunks.
//!
//! A loop's row is its last (merged) dim, or a tile's part of it where a load has its elements side by side along another
//! dim; a row kernel's is all reduced dims, and a chunk holds whole rows.

use super::exec::{Block, Env};
use super::ops::Ops;
use super::plan::{Domain, Plan};
use super::planner::{CHUNK, Planner, indices};
use super::scratch::{Need, Scratch};
use super::threads::share;
use dnx_codegen::kernel::{Kernel, Kind, Role};

/// Element steps below which a kernel stays on the calling thread.
pub(crate) const SERIAL: usize = 32 * 1024;
/// Element steps of one task.
const TASK: usize = 128 * 1024;

/// A planned `Loop` or `Row` kernel.
pub(crate) struct Rows {
    plan: Plan,
    rows: usize,
    /// Rows and columns of a task.
    task: (usize, usize),
    parallel: bool,
}

/// The kernel's dims of these roles, as `(dim, extent)`.
pub(crate) fn dims_of(kernel: &Kernel, role: impl Fn(Role) -> bool) -> Vec<(usize, usize)> {
    let dims = kernel.dims.iter().enumerate().filter(|(_, d)| role(d.role));
    dims.map(|(i, d)| (i, d.size)).collect()
}

impl Rows {
    pub(crate) fn new(kernel: &Kernel, in_place: &[bool]) -> Result<Rows, String> {
        let seen = indices(kernel);
        let (mut outer, inner) = match kernel.kind {
            Kind::Row => (dims_of(kernel, |r| r != Role::Reduce), dims_of(kernel, |r| r == Role::Reduce)),
            _ => (dims_of(kernel, |_| true), vec![]),
        };
        let mut whole = kernel.kind == Kind::Row;
        let mut last = inner;
        if !whole {
            // All dims merged as far as they go; the last one is the row.
            let merged = super::space::Space::new(&outer, &[], &seen);
            let first = merged.last_begins(&outer);
            last = outer.split_off(first);
            // A store that misses the row's dim would happen once per piece; then pieces are rows.
            let inner_mask: u64 = last.iter().filter(|d| d.1 != 1).map(|d| 1u64 << d.0).sum();
            let masks = kernel.dependence();
            whole = kernel.stores.iter().any(|s| (s.index.dims() | masks[s.value.index()]) & inner_mask == 0);
        }
        let mut planner = Planner::new(kernel, in_place, &outer, &last, &seen, whole)?;
        if !whole {
            planner.tile();
        }
        for store in &kernel.stores {
            planner.store(store)?;
        }
        let plan = planner.finish();
        let (rows, cols) = (plan.space.rows(), plan.cols);
        let work = rows * cols * plan.cost;
        let chunk_work = plan.chunk.0 * plan.chunk.1 * plan.cost;
        let chunks = (TASK / chunk_work.max(1)).max(1);
        let task = if plan.chunk.1 < cols {
            (1, plan.chunk.1 * chunks)
        } else {
            ((plan.chunk.0 * chunks).min(rows.max(1)), cols)
        };
        Ok(Rows { plan, rows, task, parallel: work >= SERIAL })
    }

    pub(crate) fn need(&self, args: usize) -> Need {
        Need { shared: self.plan.uniform_words, words: self.plan.words, vals: self.plan.vals, args }
    }

    pub(crate) unsafe fn run(&self, ops: &Ops, args: &[*mut u8], scratch: &Scratch) {
        let plan = &self.plan;
        let area = scratch.shared();
        let env = |w: usize| {
            let worker = scratch.worker(w);
            Env {
                ops,
                args,
                vals: worker.vals,
                words: worker.words,
                acc: Block::NONE,
                accumulators: std::ptr::null_mut(),
            }
        };
        unsafe { plan.start(&env(0), area) };
        let pieces = if plan.cols == 0 { 1 } else { plan.cols.div_ceil(self.task.1.max(1)) };
        let tasks = self.rows.div_ceil(self.task.0) * pieces;
        let shared = Shared { args, area };
        let threads = if self.parallel { scratch.threads() } else { 1 };
        if self.rows * plan.cols == 0 && !self.stores_rows() {
            return;
        }
        share(threads, tasks, &|worker, task| {
            let shared = &shared;
            let worker = scratch.worker(worker);
            let env = Env {
                ops,
                args: shared.args,
                vals: worker.vals,
                words: worker.words,
                acc: Block::NONE,
                accumulators: std::ptr::null_mut(),
            };
            let (row, col) = (task / pieces * self.task.0, task % pieces * self.task.1);
            let rows = (row, (row + self.task.0).min(self.rows));
            // SAFETY: tasks have distinct rows or columns, so their stores are disjoint.
            unsafe {
                plan.adopt(&env, shared.area);
                plan.range(&env, rows, (col, (col + self.task.1).min(plan.cols)));
            }
        });
        unsafe { plan.end(&env(0)) };
    }

    /// Whether rows are stored even if they have no points.
    fn stores_rows(&self) -> bool {
        self.plan.stores.iter().any(|s| s.domain != Domain::Full)
    }
}

/// Addresses that tasks share.
pub(crate) struct Shared<'a> {
    pub(crate) args: &'a [*mut u8],
    pub(crate) area: *const u32,
}

// The tasks touch disjoint elements; see the kernels.
unsafe impl Send for Shared<'_> {}
unsafe impl Sync for Shared<'_> {}

/// A `Multi` kernel: one pointwise body over segments.
pub(crate) struct Multi {
    plan: Plan,
}

/// A segment's length that planning takes for the unknown one.
const UNKNOWN: usize = 1 << 40;

impl Multi {
    pub(crate) fn new(kernel: &Kernel, in_place: &[bool]) -> Result<Multi, String> {
        let mut planner = Planner::new(kernel, in_place, &[], &[(0, UNKNOWN)], &indices(kernel), false)?;
        for store in &kernel.stores {
            planner.store(store)?;
        }
        Ok(Multi { plan: planner.finish() })
    }

    pub(crate) fn need(&self, args: usize, segments: usize) -> Need {
        let shared = self.plan.uniform_words * segments;
        Need { shared, words: self.plan.words, vals: self.plan.vals, args }
    }

    /// Tasks of these segments: `(segment, first element, end)`.
    pub(crate) fn tasks(&self, lengths: &[usize]) -> Vec<(usize, usize, usize)> {
        let most = (TASK / self.plan.cost).next_multiple_of(CHUNK);
        let mut tasks = Vec::new();
        for (segment, &n) in lengths.iter().enumerate() {
            let mut at = 0;
            while at < n {
                tasks.push((segment, at, (at + most).min(n)));
                at += most;
            }
        }
        tasks
    }

    /// `args` holds the arguments of all segments, `per` each.
    pub(crate) unsafe fn run(
        &self,
        ops: &Ops,
        args: &[*mut u8],
        per: usize,
        tasks: &[(usize, usize, usize)],
        scratch: &Scratch,
    ) {
        let plan = &self.plan;
        let segments = args.len() / per.max(1);
        let area = scratch.shared();
        let env = |worker: usize, segment: usize, args| {
            let worker = scratch.worker(worker);
            let args: &[*mut u8] = args;
            Env {
                ops,
                args: &args[segment * per..(segment + 1) * per],
                vals: worker.vals,
                words: worker.words,
                acc: Block::NONE,
                accumulators: std::ptr::null_mut(),
            }
        };
        for segment in 0..segments {
            unsafe { plan.start(&env(0, segment, args), area.add(segment * plan.uniform_words)) };
        }
        let work: usize = tasks.iter().map(|t| (t.2 - t.1) * plan.cost).sum();
        let threads = if work >= SERIAL { scratch.threads() } else { 1 };
        let shared = Shared { args, area };
        share(threads, tasks.len(), &|worker, task| {
            let shared = &shared;
            let (segment, from, to) = tasks[task];
            let env = env(worker, segment, shared.args);
            // SAFETY: tasks are disjoint ranges.
            unsafe {
                plan.adopt(&env, shared.area.add(segment * plan.uniform_words));
                plan.range(&env, (0, 1), (from, to));
            }
        });
        for segment in 0..segments {
            let env = env(0, segment, args);
            unsafe {
                plan.adopt(&env, area.add(segment * plan.uniform_words));
                plan.end(&env);
            }
        }
    }
}
