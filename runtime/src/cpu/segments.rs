//! Left operands of contractions that lie in memory in *segments*: an affine index with checks, as of convolutions and
//! of heads that lie apart. Where all slower dims are fixed, the rows of the last M dim and the depths of the last K
//! dim are a matrix that the product reads where it lies; checks make it smaller, since what they refuse is zero.

use super::product::{Factor, Right, multiply};
use super::space::{Index, MAX_RANK, Space, Test, for_runs};
use dnx_codegen::kernel::Idx;

/// Rows and depths of a segment, at least, that make it worth a product of its own.
const ROWS: usize = 4;
const DEPTH: usize = 8;

/// A left operand in segments.
#[derive(Debug)]
pub(crate) struct Segments {
    pub(crate) arg: usize,
    space: Space,
    index: Index,
    tests: Vec<Test>,
}

impl Segments {
    /// The operand of argument `arg` at `idx`, its rows being the flat coordinates of `rows`, its depths those of `k`.
    pub(crate) fn new(arg: u32, idx: &Idx, rows: &[(usize, usize)], k: &[(usize, usize)]) -> Option<Segments> {
        let space = Space::new(rows, k, &[idx]);
        let (index, tests) = (space.index(idx), space.tests(&idx.checks));
        let long = |dims: &[usize], least: usize| dims.last().is_some_and(|&d| d >= least);
        let enough = long(&space.dims[..space.outer], ROWS) && long(&space.dims[space.outer..], DEPTH);
        if !enough || !index.parts.is_empty() || space.dims.len() > MAX_RANK {
            return None;
        }
        let last = space.dims.len() - 1;
        // A check of rows and depths at once would leave no rectangle.
        let one_way = |test: &Test| test.plain().is_some_and(|i| i.coef[space.outer - 1] == 0 || i.coef[last] == 0);
        if !tests.iter().all(one_way) {
            return None;
        }
        Some(Segments { arg: arg as usize, space, index, tests })
    }

    /// Sets or, from the second tile of K on, adds to `n` columns of results at `to`: those of `rows`, over `depths`.
    /// `right` begins with the first of the depths.
    ///
    /// # Safety
    /// As [`multiply`]; `base` is the argument.
    pub(crate) unsafe fn multiply(
        &self,
        base: *const f32,
        rows: (usize, usize),
        n: usize,
        depths: (usize, usize),
        right: Right,
        to: *mut f32,
        stride: isize,
        add: bool,
    ) {
        let outer = self.space.outer;
        let (row_dims, k_dims) = self.space.dims.split_at(outer);
        let last = self.space.dims.len() - 1;
        let (row_step, k_step) = (self.index.coef[outer - 1], self.index.coef[last]);
        let mut place = [0; MAX_RANK];
        for_runs(row_dims, rows.0, rows.1 - rows.0, |at, row, count| {
            place[..outer].copy_from_slice(at);
            let to = unsafe { to.offset(row as isize * stride) };
            if !add {
                // SAFETY: the caller gives these rows.
                (0..count).for_each(|i| unsafe { std::ptr::write_bytes(to.offset(i as isize * stride), 0, n) });
            }
            for_runs(k_dims, depths.0, depths.1 - depths.0, |at, depth, length| {
                place[outer..=last].copy_from_slice(at);
                let (mut i, mut p) = ((0, count), (0, length));
                for test in &self.tests {
                    let Some(index) = test.plain() else { continue };
                    let (first, steps) = (index.at(&place[..=last]), (index.coef[outer - 1], index.coef[last]));
                    if steps.0 != 0 {
                        let (from, end) = test.stretch(first, steps.0, count);
                        i = (i.0.max(from), i.1.min(end));
                    } else {
                        let (from, end) = test.stretch(first, steps.1, length);
                        p = (p.0.max(from), p.1.min(end));
                    }
                }
                if i.0 >= i.1 || p.0 >= p.1 {
                    return;
                }
                let at = self.index.at(&place[..=last]) + i.0 as i64 * row_step + p.0 as i64 * k_step;
                // SAFETY: the checks hold for all of this segment.
                unsafe {
                    let left = Factor { ptr: base.offset(at as isize), along: row_step as isize, k: k_step as isize };
                    let to = to.offset(i.0 as isize * stride);
                    multiply((i.1 - i.0, n, p.1 - p.0), left, right.after(depth + p.0), to, stride, true);
                }
            });
        });
    }
}
