//! `Column` kernels: sums over the slow dims to a short vector or a scalar.
//!
//! The rows (the reduced coordinates) are cut into *parts* whose number depends on the shape alone. Each part adds
//! its rows in order into accumulators of its own; then the parts are added in order. What is stored over the full
//! space is stored in the same pass. Then the rest of the kernel runs over the kept dims.
//!
//! Kept dims that lie in memory further out than the reduced ones number *bands*: memory is walked in order, and
//! values that differ by band and reduced coordinate are computed once per row.

use super::exec::{Block, Env, combine, combine_argmax};
use super::ops::Ops;
use super::plan::{Class, Plan};
use super::planner::{CHUNK, Given, Planner, indices};
use super::rows::{SERIAL, Shared, dims_of};
use super::scratch::{Need, Scratch};
use super::threads::share;
use dnx_codegen::kernel::{Idx, Inst, InstId, Kernel, Role};
use dnx_ir::ReduceKind;

/// Points of a part, at least.
const PART: usize = 16 * 1024;
/// Parts, at most.
const PARTS: usize = 64;
/// Words of all parts' accumulators, at most (unless there is one part).
const PARTIALS: usize = 1 << 18;

/// A planned `Column` kernel.
pub(crate) struct Column {
    pass: Plan,
    rest: Plan,
    reductions: Vec<Reduction>,
    /// Accumulators of one part: rows of `cols` words.
    slots: usize,
    bands: usize,
    /// Rows of a band: the reduced coordinates.
    rows: usize,
    /// Rows of a part, and how many parts.
    part: usize,
    parts: usize,
    /// Columns of a task.
    piece: usize,
    args: usize,
    parallel: bool,
}

struct Reduction {
    kind: Option<ReduceKind>,
    class: Class,
    slot: usize,
}

impl Column {
    pub(crate) fn new(kernel: &Kernel, in_place: &[bool]) -> Result<Column, String> {
        let reduced = dims_of(kernel, |r| r == Role::Reduce);
        let (slow, fast) = bands(kernel, &reduced, dims_of(kernel, |r| r != Role::Reduce));
        let kept: Vec<_> = slow.iter().chain(&fast).copied().collect();
        let reduce_mask: u64 = reduced.iter().map(|d| 1u64 << d.0).sum();
        let masks = kernel.dependence();
        // The accumulators are arrays over the kept dims, row-major.
        let mut dense = Idx::default();
        let mut stride = 1;
        for &(d, n) in kept.iter().rev().filter(|d| d.1 != 1) {
            dense.terms.insert(0, (stride, dnx_codegen::kernel::Atom::Dim(d as u32)));
            stride *= n as i64;
        }
        let mut seen = indices(kernel);
        seen.push(&dense);
        let outer: Vec<_> = slow.iter().chain(&reduced).copied().collect();
        let mut pass = Planner::new(kernel, in_place, &outer, &fast, &seen, false)?;
        let mut rest = Planner::new(kernel, in_place, &[], &kept, &seen, false)?;
        let args = kernel.args.len();
        let (mut reductions, mut slots) = (vec![], 0);
        for (i, inst) in kernel.insts.iter().enumerate() {
            let (kind, operand) = match inst {
                Inst::Reduce(kind, a) => (Some(*kind), *a),
                Inst::Argmax(a) => (None, *a),
                _ => continue,
            };
            pass.accumulate(inst, slots)?;
            let class = Class::of(kernel.dtype(operand));
            // An argmax keeps the value, then the place: the result is the place.
            let result = if kind.is_some() { slots } else { slots + 1 };
            rest.give(InstId(i as u32), Given::Array(args + result, dense.clone()));
            reductions.push(Reduction { kind, class, slot: slots });
            slots = result + 1;
        }
        for store in &kernel.stores {
            let full = (masks[store.value.index()] | store.index.dims()) & reduce_mask != 0;
            if full { pass.store(store)? } else { rest.store(store)? }
        }
        let (mut pass, rest) = (pass.finish(), rest.finish());
        let bands: usize = slow.iter().map(|d| d.1).product();
        let (rows, cols) = (pass.space.rows() / bands.max(1), pass.cols);
        pass.stride = rest.cols;
        let points = rows * rest.cols;
        let parts = (points / PART).min(PARTS / bands.max(1)).min(PARTIALS / (rest.cols * slots).max(1));
        let parts = parts.clamp(1, rows.max(1));
        let part = rows.div_ceil(parts);
        let parts = if part == 0 { 1 } else { rows.div_ceil(part) };
        // With few parts the columns are shared among threads too.
        let piece = if parts * bands >= 16 { cols } else { pass.chunk.1.max(1) };
        let parallel = points * pass.cost >= SERIAL;
        Ok(Column { pass, rest, reductions, slots, bands, rows, part, parts, piece, args, parallel })
    }

    pub(crate) fn need(&self) -> Need {
        Need {
            shared: self.pass.uniform_words + self.rest.uniform_words + self.parts * self.slots * self.rest.cols,
            words: self.pass.words.max(self.rest.words),
            vals: self.pass.vals.max(self.rest.vals),
            args: self.args + self.slots,
        }
    }

    pub(crate) unsafe fn run(&self, ops: &Ops, args: &[*mut u8], scratch: &Scratch) {
        let cols = self.pass.cols;
        let area = scratch.shared();
        let rest_area = unsafe { area.add(self.pass.uniform_words) };
        let partials = unsafe { rest_area.add(self.rest.uniform_words) };
        let env = |worker: usize, args, accumulators: *mut u32| {
            let worker = scratch.worker(worker);
            Env { ops, args, vals: worker.vals, words: worker.words, acc: Block::NONE, accumulators }
        };
        let first = env(0, args, partials);
        unsafe { self.pass.start(&first, area) };
        let pieces = cols.div_ceil(self.piece.max(1)).max(1);
        let shared = (Shared { args, area }, Partials(partials));
        let threads = if self.parallel { scratch.threads() } else { 1 };
        share(threads, self.bands * self.parts * pieces, &|worker, task| {
            let (shared, Partials(partials)) = &shared;
            let (part, col) = (task / pieces, task % pieces * self.piece);
            let (band, part) = (part / self.parts, part % self.parts);
            let columns = (col, (col + self.piece).min(cols));
            let rows = (part * self.part, ((part + 1) * self.part).min(self.rows));
            let rows = (band * self.rows + rows.0, band * self.rows + rows.1);
            // SAFETY: tasks have distinct bands, parts or columns.
            unsafe {
                let accumulators = partials.add(part * self.slots * self.rest.cols + band * cols);
                self.clear(accumulators, columns);
                let env = env(worker, shared.args, accumulators);
                self.pass.adopt(&env, shared.area);
                self.pass.range(&env, rows, columns);
            }
        });
        unsafe {
            self.pass.end(&first);
            self.merge(ops, partials);
            let all = scratch.worker(0).args;
            std::ptr::copy_nonoverlapping(args.as_ptr(), all, args.len());
            for slot in 0..self.slots {
                *all.add(self.args + slot) = partials.add(slot * self.rest.cols) as *mut u8;
            }
            let args = std::slice::from_raw_parts(all, self.args + self.slots);
            let env = env(0, args, std::ptr::null_mut());
            self.rest.start(&env, rest_area);
            if self.rest.cols > 0 {
                self.rest.range(&env, (0, 1), (0, self.rest.cols));
            }
            self.rest.end(&env);
        }
    }

    /// Sets the accumulators of these columns to what a reduction of nothing gives.
    unsafe fn clear(&self, accumulators: *mut u32, columns: (usize, usize)) {
        let fill = |slot: usize, word: u32| unsafe {
            let line = accumulators.add(slot * self.pass.stride + columns.0);
            std::slice::from_raw_parts_mut(line, columns.1 - columns.0).fill(word);
        };
        for r in &self.reductions {
            match r.kind {
                Some(kind) => fill(r.slot, r.class.identity(kind)),
                None => {
                    fill(r.slot, 0);
                    fill(r.slot + 1, u32::MAX);
                }
            }
        }
    }

    /// Adds all parts into the first, in order.
    unsafe fn merge(&self, ops: &Ops, partials: *mut u32) {
        let cols = self.rest.cols;
        for part in 1..self.parts {
            for r in &self.reductions {
                let (to, from) = unsafe {
                    (partials.add(r.slot * cols), partials.add((part * self.slots + r.slot) * cols).cast_const())
                };
                match (r.kind, r.class) {
                    (Some(ReduceKind::Sum), Class::Float) => unsafe {
                        (ops.accumulate)(cols, to as *mut f32, super::ops::Src { ptr: from, step: 1 })
                    },
                    (Some(kind), class) => {
                        for i in 0..cols {
                            unsafe { *to.add(i) = combine(kind, class, *to.add(i), *from.add(i)) };
                        }
                    }
                    (None, class) => {
                        for i in 0..cols {
                            unsafe {
                                let (best, place) = (&mut *to.add(i), &mut *to.add(cols + i));
                                combine_argmax(class, best, place, *from.add(i), *from.add(cols + i));
                            }
                        }
                    }
                }
            }
        }
        if self.rows == 0 {
            for r in self.reductions.iter().filter(|r| r.kind.is_none()) {
                let line = unsafe { std::slice::from_raw_parts_mut(partials.add((r.slot + 1) * cols), cols) };
                line.fill(0);
            }
        }
    }
}

/// The kept dims that number bands, and the others. Judged by the largest load of reduced dims; a band has some
/// columns, and an argmax is not cut into bands.
fn bands(kernel: &Kernel, reduced: &[(usize, usize)], kept: Vec<(usize, usize)>) -> (Vec<Dim>, Vec<Dim>) {
    let size = |index: &Idx| -> usize {
        let dims = kernel.dims.iter().enumerate().filter(|(d, _)| index.coef(*d) != 0);
        dims.map(|(_, dim)| dim.size).product()
    };
    let loads = kernel.insts.iter().filter_map(|inst| match inst {
        Inst::Load { index, .. } if reduced.iter().any(|d| d.1 > 1 && index.coef(d.0) != 0) => Some(index),
        _ => None,
    });
    let Some(index) = loads.max_by_key(|index| size(index)) else { return (vec![], kept) };
    let step = |d: &Dim| index.coef(d.0).unsigned_abs();
    let most = reduced.iter().filter(|d| d.1 > 1).map(step).max().unwrap_or(0);
    let (slow, fast): (Vec<Dim>, Vec<Dim>) = kept.iter().partition(|d| d.1 > 1 && step(d) > most);
    let whole = kernel.insts.iter().any(|i| matches!(i, Inst::Argmax(_)));
    let columns: usize = fast.iter().map(|d| d.1).product();
    if whole || columns < 16 { (vec![], kept) } else { (slow, fast) }
}

/// A kernel dim and its extent.
type Dim = (usize, usize);

struct Partials(*mut u32);

// Tasks write distinct parts or columns.
unsafe impl Send for Partials {}
unsafe impl Sync for Partials {}

const _: () = assert!(PART >= CHUNK);
