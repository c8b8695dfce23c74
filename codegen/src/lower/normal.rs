//! The normal form of a lowered kernel: no dims of extent 1, neighbours that always move together merged, loops in
//! the order their first output is laid out. Kernels that do the same thing become equal, so they share a hash.

use super::Lowered;
use super::coords::{add, scale};
use crate::kernel::{Atom, Check, Dim, Idx, Inst, Kernel, Kind, Role};

/// `idx` with every coordinate replaced.
pub(crate) fn substitute(idx: &Idx, with: &dyn Fn(usize) -> Idx) -> Idx {
    let mut out = Idx::constant(idx.offset);
    for (c, atom) in &idx.terms {
        let part = match atom {
            Atom::Dim(d) => with(*d as usize),
            Atom::Div(i, n) => Idx { terms: vec![(1, Atom::Div(Box::new(substitute(i, with)), *n))], ..Idx::default() },
            Atom::Mod(i, n) => Idx { terms: vec![(1, Atom::Mod(Box::new(substitute(i, with)), *n))], ..Idx::default() },
        };
        out = add(&out, &scale(&part, *c, 0));
    }
    out.checks = idx.checks.iter().map(|c| Check { index: substitute(&c.index, with), ..c.clone() }).collect();
    out
}

/// `idx` over a space in which dim `d` has been split into `d` and `d + 1`, the inner of extent `inner`.
pub(crate) fn split_dim(idx: &Idx, d: usize, inner: i64) -> Idx {
    substitute(idx, &|i| match i {
        _ if i < d => Idx::dim(i),
        _ if i == d => add(&scale(&Idx::dim(d), inner, 0), &Idx::dim(d + 1)),
        _ => Idx::dim(i + 1),
    })
}

pub(crate) fn normalise(mut lowered: Lowered) -> Lowered {
    let kernel = &mut lowered.kernel;
    if kernel.kind == Kind::Loop {
        sort_by_output(kernel);
    }
    drop_unit_dims(kernel);
    let mut d = 0;
    while d + 1 < kernel.dims.len() {
        if kernel.dims[d].role == kernel.dims[d + 1].role && all_indices(kernel, |i| moves_together(i, d, kernel)) {
            merge(kernel, d);
            d = d.saturating_sub(1);
        } else {
            d += 1;
        }
    }
    lowered
}

fn all_indices(kernel: &Kernel, test: impl Fn(&Idx) -> bool) -> bool {
    kernel.stores.iter().all(|s| test(&s.index))
        && kernel.insts.iter().all(|inst| match inst {
            Inst::Load { index, .. } | Inst::Index(_, index) => {
                test(index) && index.checks.iter().all(|c| test(&c.index))
            }
            Inst::Valid(checks) => checks.iter().all(|c| test(&c.index)),
            _ => true,
        })
}

fn map_indices(kernel: &mut Kernel, map: impl Fn(&Idx) -> Idx) {
    for s in &mut kernel.stores {
        s.index = map(&s.index);
    }
    for inst in &mut kernel.insts {
        match inst {
            Inst::Load { index, .. } | Inst::Index(_, index) => *index = map(index),
            Inst::Valid(checks) => checks.iter_mut().for_each(|c| c.index = map(&c.index)),
            _ => {}
        }
    }
}

/// Whether dims `d` and `d + 1` appear only as `d * size(d + 1) + (d + 1)`.
fn moves_together(idx: &Idx, d: usize, kernel: &Kernel) -> bool {
    idx.coef(d) == idx.coef(d + 1) * kernel.dims[d + 1].size as i64
        && idx.terms.iter().all(|(_, a)| match a {
            Atom::Dim(_) => true,
            Atom::Div(i, _) | Atom::Mod(i, _) => moves_together(i, d, kernel),
        })
}

fn merge(kernel: &mut Kernel, d: usize) {
    // The inner coordinate carries the merged one's coefficient; the outer's term vanishes.
    map_indices(kernel, |idx| {
        substitute(idx, &|i| match i {
            _ if i < d => Idx::dim(i),
            _ if i == d => Idx::default(),
            _ => Idx::dim(i - 1),
        })
    });
    let inner = kernel.dims.remove(d + 1);
    kernel.dims[d].size *= inner.size;
}

fn drop_unit_dims(kernel: &mut Kernel) {
    let old = std::mem::take(&mut kernel.dims);
    let mut new_at: Vec<Option<usize>> = Vec::with_capacity(old.len());
    let walks = |role: Role| old.iter().any(|d| d.role == role && d.size != 1);
    let mut kept_reduce = walks(Role::Reduce);
    for d in &old {
        // One dim of the role that the kind is about stays, so that the writers find it.
        let keep = d.size != 1 || (d.role == Role::Reduce && !std::mem::replace(&mut kept_reduce, true));
        new_at.push(keep.then_some(kernel.dims.len()));
        if keep {
            kernel.dims.push(*d);
        }
    }
    if kernel.dims.is_empty() {
        kernel.dims.push(Dim { size: 1, role: Role::Parallel });
    }
    map_indices(kernel, |idx| substitute(idx, &|i| new_at[i].map_or(Idx::default(), Idx::dim)));
}

fn sort_by_output(kernel: &mut Kernel) {
    let index = &kernel.stores[0].index;
    let mut order: Vec<usize> = (0..kernel.dims.len()).collect();
    order.sort_by_key(|&d| std::cmp::Reverse(index.coef(d)));
    if order.windows(2).all(|w| w[0] < w[1]) {
        return;
    }
    let mut place = vec![0; order.len()];
    for (new, &old) in order.iter().enumerate() {
        place[old] = new;
    }
    kernel.dims = order.iter().map(|&d| kernel.dims[d]).collect();
    map_indices(kernel, |idx| substitute(idx, &|i| Idx::dim(place[i])));
}
