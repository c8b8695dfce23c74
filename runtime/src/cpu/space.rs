//! Spaces and indices as the cpu walks them.
//!
//! A [`Space`] is a kernel's iteration space with dims of extent 1 dropped and neighbours merged where no index
//! tells them apart. Its last dims are *inner*: a *row* is all inner coordinates at one setting of the others.
//! A flat range of points falls into *runs*: stretches of the last dim, along which an affine index is a line.

use dnx_codegen::kernel::{Atom, Check, Idx};

/// Merged dims, slowest first; the first `outer` of them number the rows.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) dims: Vec<usize>,
    pub(crate) outer: usize,
    /// For each dim the kernel dim whose coefficient it takes (the fastest one merged into it), and how many times.
    from: Vec<(usize, i64)>,
    /// For each dim the slowest kernel dim merged into it.
    begin: Vec<usize>,
}

/// A compiled [`Idx`]: coefficients per dim of a space, and quotients and remainders.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) offset: i64,
    pub(crate) coef: Vec<i64>,
    pub(crate) parts: Vec<Part>,
}

/// `coef * (index / by)` or `coef * (index % by)`.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    coef: i64,
    index: Index,
    by: i64,
    remainder: bool,
    magic: Magic,
}

/// A compiled [`Check`].
#[derive(Clone, Debug)]
pub(crate) struct Test {
    index: Index,
    lo: i64,
    hi: i64,
    multiple: i64,
    magic: Magic,
}

/// Division by a constant as a multiplication and a shift; exact below 2^31.
#[derive(Clone, Copy, Debug)]
struct Magic {
    factor: u64,
    shift: u32,
}

impl Magic {
    fn new(by: i64) -> Magic {
        let by = (by.max(1)) as u64;
        let shift = 31 + (64 - (by - 1).leading_zeros()).min(32);
        Magic { factor: ((1u128 << shift).div_ceil(by as u128)) as u64, shift }
    }

    #[inline(always)]
    fn quotient(self, x: i32) -> i32 {
        ((x as u32 as u64).wrapping_mul(self.factor) >> self.shift) as i32
    }
}

impl Space {
    /// The space of these kernel dims: `(dim, extent)` of the outer ones, then of the inner ones, with the indices
    /// that must stay expressible.
    pub(crate) fn new(outer: &[(usize, usize)], inner: &[(usize, usize)], indices: &[&Idx]) -> Space {
        let mut forms = Vec::new();
        for index in indices {
            collect_forms(index, &mut forms);
        }
        let mut space = Space { dims: vec![], outer: 0, from: vec![], begin: vec![] };
        for (which, group) in [outer, inner].into_iter().enumerate() {
            let first = space.dims.len();
            for &(dim, size) in group.iter().filter(|d| d.1 != 1) {
                let last = space.dims.len();
                let merges =
                    last > first && forms.iter().all(|f| f.coef(space.from[last - 1].0) == f.coef(dim) * size as i64);
                if merges {
                    space.dims[last - 1] *= size;
                    space.from[last - 1] = (dim, 1);
                } else {
                    space.dims.push(size);
                    space.from.push((dim, 1));
                    space.begin.push(dim);
                }
            }
            if which == 0 {
                space.outer = space.dims.len();
            }
        }
        space
    }

    /// Where in this list of kernel dims the last (merged) dim begins; its end if there is none.
    pub(crate) fn last_begins(&self, dims: &[(usize, usize)]) -> usize {
        let begin = self.begin.last();
        dims.iter().position(|d| Some(&d.0) == begin).unwrap_or(dims.len())
    }

    /// The outer dim along which a strided load has its elements side by side, and rows and columns of the tiles in which
    /// it reads whole lines of the cache. None if no load strides, or tiles don't come out even.
    pub(crate) fn tiles(&self, loads: &[Index]) -> Option<(usize, (usize, usize))> {
        /// A tile's most rows and columns: its lines stay in the innermost cache.
        const TILE: (usize, usize) = (32, 64);
        /// Points below which all lines stay there anyway.
        const FEW: usize = 4096;
        if self.dims.len() != self.outer + 1 || self.dims.len() + 2 > MAX_RANK || self.rows() * self.cols() < FEW {
            return None;
        }
        let part = |n: usize, most: usize| (8..=most).rev().find(|&part| n.is_multiple_of(part));
        loads.iter().filter(|load| load.parts.is_empty() && load.coef[self.outer].abs() > 1).find_map(|load| {
            let dim = (0..self.outer).find(|&d| load.coef[d] == 1)?;
            Some((dim, (part(self.dims[dim], TILE.0)?, part(self.cols(), TILE.1)?)))
        })
    }

    /// The same points in tiles of `rows` coordinates of outer dim `dim` by `cols` of the only inner one: these come
    /// last, and tiles follow one another along `dim`.
    pub(crate) fn cut(&self, dim: usize, (rows, cols): (usize, usize)) -> Space {
        let inner = self.outer;
        let mut space = Space { dims: vec![], outer: inner + 2, from: vec![], begin: vec![] };
        let mut push = |d: usize, size: usize, times: usize| {
            space.dims.push(size);
            space.from.push((self.from[d].0, self.from[d].1 * times as i64));
            space.begin.push(self.begin[d]);
        };
        (0..inner).filter(|&d| d != dim).for_each(|d| push(d, self.dims[d], 1));
        push(inner, self.dims[inner] / cols, cols);
        push(dim, self.dims[dim] / rows, rows);
        push(dim, rows, 1);
        push(inner, cols, 1);
        space
    }

    /// Points of one row.
    pub(crate) fn cols(&self) -> usize {
        self.dims[self.outer..].iter().product()
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.dims[..self.outer].iter().product()
    }

    /// Compiles an index over the kernel's dims.
    pub(crate) fn index(&self, idx: &Idx) -> Index {
        let parts = idx.terms.iter().filter_map(|(coef, atom)| {
            let (inner, by, remainder) = match atom {
                Atom::Dim(_) => return None,
                Atom::Div(i, n) => (i, *n, false),
                Atom::Mod(i, n) => (i, *n, true),
            };
            Some(Part { coef: *coef, index: self.index(inner), by, remainder, magic: Magic::new(by) })
        });
        Index {
            offset: idx.offset,
            coef: self.from.iter().map(|&(d, times)| times * idx.coef(d)).collect(),
            parts: parts.collect(),
        }
    }

    /// Compiles checks.
    pub(crate) fn tests(&self, checks: &[Check]) -> Vec<Test> {
        let tests = checks.iter().map(|c| Test {
            index: self.index(&c.index),
            lo: c.lo,
            hi: c.hi,
            multiple: c.multiple,
            magic: Magic::new(c.multiple),
        });
        tests.collect()
    }
}

fn collect_forms<'a>(index: &'a Idx, forms: &mut Vec<&'a Idx>) {
    forms.push(index);
    for (_, atom) in &index.terms {
        match atom {
            Atom::Dim(_) => {}
            Atom::Div(i, _) | Atom::Mod(i, _) => collect_forms(i, forms),
        }
    }
    for check in &index.checks {
        collect_forms(&check.index, forms);
    }
}

/// The longest rank a space may have.
pub(crate) const MAX_RANK: usize = 16;

/// Calls `f(coordinates, offset in the range, length)` for each run of the flat range `at .. at + n` of `dims`.
/// The coordinates are those of the run's first point.
#[inline]
pub(crate) fn for_runs(dims: &[usize], at: usize, n: usize, mut f: impl FnMut(&[usize], usize, usize)) {
    if n == 0 {
        return;
    }
    let Some(last) = dims.len().checked_sub(1) else {
        return f(&[], 0, n);
    };
    let mut place = [0usize; MAX_RANK];
    let mut rest = at;
    for d in (0..dims.len()).rev() {
        place[d] = rest % dims[d];
        rest /= dims[d];
    }
    let mut done = 0;
    loop {
        let len = (dims[last] - place[last]).min(n - done);
        f(&place[..dims.len()], done, len);
        done += len;
        if done == n {
            return;
        }
        place[last] = 0;
        for d in (0..last).rev() {
            place[d] += 1;
            if place[d] < dims[d] {
                break;
            }
            place[d] = 0;
        }
    }
}

impl Index {
    /// The value at these coordinates (of a prefix of the dims; the others count as 0).
    #[inline]
    pub(crate) fn at(&self, place: &[usize]) -> i64 {
        let mut sum = self.offset;
        for (x, c) in place.iter().zip(&self.coef) {
            sum += *x as i64 * c;
        }
        for p in &self.parts {
            let v = p.index.at(place);
            sum += p.coef * if p.remainder { v.rem_euclid(p.by) } else { v.div_euclid(p.by) };
        }
        sum
    }

    /// Whether the last of `rank` dims enters linearly, if at all.
    pub(crate) fn is_line(&self, rank: usize) -> bool {
        self.parts.iter().all(|p| !p.index.uses(rank))
    }

    /// Whether the last of `rank` dims enters at all.
    fn uses(&self, rank: usize) -> bool {
        rank > 0 && (self.coef[rank - 1] != 0 || self.parts.iter().any(|p| p.index.uses(rank)))
    }

    /// Whether it counts up by one along the flat order of `dims`, a prefix of the space's.
    pub(crate) fn is_flat(&self, dims: &[usize]) -> bool {
        let mut stride = 1;
        for d in (0..dims.len()).rev() {
            if self.coef[d] != stride {
                return false;
            }
            stride *= dims[d] as i64;
        }
        self.parts.is_empty()
    }

    /// Whether the elements of a row lie side by side, and if so the distance from a row to the next one among the
    /// slowest `outer` of `dims`; rows that differ in more than their last coordinate may be anywhere.
    pub(crate) fn lines(&self, dims: &[usize], outer: usize) -> Option<i64> {
        let tail = Index { offset: 0, coef: self.coef[outer..dims.len()].to_vec(), parts: vec![] };
        let flat = self.parts.is_empty() && tail.is_flat(&dims[outer..]);
        flat.then(|| if outer == 0 { 0 } else { self.coef[outer - 1] })
    }

    /// Whether the distance of rows holds only while the last of the slowest `outer` of `dims` counts.
    pub(crate) fn jumps(&self, dims: &[usize], outer: usize) -> bool {
        (1..outer).any(|d| self.coef[d - 1] != self.coef[d] * dims[d] as i64)
    }

    /// Along the flat range `at .. at + n` of `dims`, some whole rows: the first element and the step, if these are
    /// side by side from row to row instead of along the rows.
    pub(crate) fn turned(&self, dims: &[usize], at: usize, n: usize) -> Option<(i64, i64)> {
        let [.., rows, cols] = *dims else { return None };
        let rank = dims.len();
        let (first, count) = (at / cols.max(1) % rows.max(1), n / cols.max(1));
        let whole = n > 0 && at.is_multiple_of(cols) && n.is_multiple_of(cols) && first + count <= rows;
        if !self.parts.is_empty() || !whole || self.coef[rank - 2] != 1 || self.coef[rank - 1] == 1 {
            return None;
        }
        let mut place = [0; MAX_RANK];
        let mut rest = at;
        for d in (0..rank).rev() {
            place[d] = rest % dims[d];
            rest /= dims[d];
        }
        Some((self.at(&place[..rank]), self.coef[rank - 1]))
    }

    /// Step along the last of `rank` dims.
    pub(crate) fn step(&self, rank: usize) -> i64 {
        if rank == 0 { 0 } else { self.coef[rank - 1] }
    }

    /// Buffers of the chunk's length that [`Index::fill`] needs.
    pub(crate) fn depth(&self) -> usize {
        self.parts.iter().map(|p| 1 + p.index.depth()).max().unwrap_or(0)
    }

    /// Least and greatest value over `dims`, in absolute terms of the sums that lead to it.
    pub(crate) fn reach(&self, dims: &[usize]) -> i64 {
        let line: i64 = self
            .coef
            .iter()
            .zip(dims)
            .map(|(c, &d)| c.saturating_abs().saturating_mul(d as i64))
            .fold(0, i64::saturating_add);
        let parts = self.parts.iter().map(|p| {
            let inner = p.index.reach(dims);
            let own = if p.remainder { p.by } else { inner / p.by };
            inner.max(own.saturating_mul(p.coef.saturating_abs()))
        });
        parts.fold(line.saturating_add(self.offset.saturating_abs()), i64::saturating_add)
    }

    /// Writes the values over the flat range `at ..` of `dims` to `out`; `temp` has [`Index::depth`] buffers.
    pub(crate) fn fill(&self, dims: &[usize], at: usize, out: &mut [i32], temp: &mut [i32]) {
        let n = out.len();
        let step = self.step(dims.len()) as i32;
        for_runs(dims, at, n, |place, done, len| {
            let mut base = self.offset;
            for (x, c) in place.iter().zip(&self.coef) {
                base += *x as i64 * c;
            }
            let base = base as i32;
            for (i, o) in out[done..done + len].iter_mut().enumerate() {
                *o = base.wrapping_add((i as i32).wrapping_mul(step));
            }
        });
        for p in &self.parts {
            let (inner, temp) = temp.split_at_mut(n);
            p.index.fill(dims, at, inner, temp);
            let (coef, by, magic) = (p.coef as i32, p.by as i32, p.magic);
            if p.remainder {
                for (o, &x) in out.iter_mut().zip(inner.iter()) {
                    let r = x.wrapping_sub(magic.quotient(x).wrapping_mul(by));
                    *o = o.wrapping_add(coef.wrapping_mul(r));
                }
            } else {
                for (o, &x) in out.iter_mut().zip(inner.iter()) {
                    *o = o.wrapping_add(coef.wrapping_mul(magic.quotient(x)));
                }
            }
        }
    }
}

impl Test {
    /// Whether it holds at these coordinates.
    pub(crate) fn holds(&self, place: &[usize]) -> bool {
        let i = self.index.at(place);
        i >= self.lo && i < self.hi && (i - self.lo) % self.multiple == 0
    }

    /// Whether it holds along one stretch of each run: see [`Test::clip`].
    pub(crate) fn is_stretch(&self, rank: usize) -> bool {
        !self.index.uses(rank) || (self.multiple == 1 && self.index.is_line(rank))
    }

    /// Which points of a run it holds for, given a test of which [`Test::is_stretch`] says so.
    pub(crate) fn clip(&self, place: &[usize], len: usize) -> (usize, usize) {
        let step = self.index.step(place.len());
        if step == 0 {
            return if self.holds(place) { (0, len) } else { (0, 0) };
        }
        self.stretch(self.index.at(place), step, len)
    }

    /// For which of `len` points in a line it holds: at the first of them its index is `first`, and from each to the
    /// next it grows by `step`. Only for tests that ask for no multiple.
    pub(crate) fn stretch(&self, first: i64, step: i64, len: usize) -> (usize, usize) {
        if step == 0 {
            return if first >= self.lo && first < self.hi { (0, len) } else { (0, 0) };
        }
        // The first points at or beyond either end of the interval, counted along the line.
        let (from, to) =
            if step > 0 { (self.lo - first, self.hi - first) } else { (first - self.hi + 1, first - self.lo + 1) };
        let count = |x: i64| (x + step.abs() - 1).div_euclid(step.abs()).clamp(0, len as i64) as usize;
        (count(from), count(to))
    }

    /// Its index, if it is affine and asks for no multiple.
    pub(crate) fn plain(&self) -> Option<&Index> {
        (self.multiple == 1 && self.index.parts.is_empty()).then_some(&self.index)
    }

    /// Buffers that [`Test::fill`] needs.
    pub(crate) fn depth(&self) -> usize {
        1 + self.index.depth()
    }

    pub(crate) fn reach(&self, dims: &[usize]) -> i64 {
        self.index.reach(dims).saturating_add(self.lo.saturating_abs()).max(self.hi.saturating_abs())
    }

    /// Clears `mask` where it does not hold.
    pub(crate) fn fill(&self, dims: &[usize], at: usize, mask: &mut [u32], temp: &mut [i32]) {
        let (index, temp) = temp.split_at_mut(mask.len());
        self.index.fill(dims, at, index, temp);
        let (lo, hi, by, magic) = (self.lo as i32, self.hi as i32, self.multiple as i32, self.magic);
        if by == 1 {
            for (m, &x) in mask.iter_mut().zip(index.iter()) {
                *m &= u32::from(x >= lo) & u32::from(x < hi);
            }
        } else {
            for (m, &x) in mask.iter_mut().zip(index.iter()) {
                let y = x.wrapping_sub(lo);
                let r = y.wrapping_sub(magic.quotient(y).wrapping_mul(by));
                *m &= u32::from(x >= lo) & u32::from(x < hi) & u32::from(r == 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index `sum of coef * dim`.
    fn line(coef: &[i64]) -> Idx {
        let terms = coef.iter().enumerate().map(|(d, &c)| (c, Atom::Dim(d as u32)));
        Idx { terms: terms.collect(), ..Idx::default() }
    }

    #[test]
    fn tiles_hold_every_point_once() {
        // Results in order; operands whose elements lie side by side along a slower dim.
        for (dims, load) in [
            ([1, 96, 160], [0, 1, 96]),
            ([5, 40, 72], [2880, 1, 40]),
            ([64, 5, 72], [1, 64 * 72, 64]),
            ([64, 9, 1000], [1, 64_000, 64]),
        ] {
            let store = line(&[(dims[1] * dims[2]) as i64, dims[2] as i64, 1]);
            let load = line(&load);
            let outer = [(0, dims[0]), (1, dims[1])];
            let space = Space::new(&outer, &[(2, dims[2])], &[&store, &load]);
            let (dim, tile) = space.tiles(&[space.index(&load)]).expect("it strides");
            let cut = space.cut(dim, tile);
            assert_eq!((cut.cols(), cut.rows() * cut.cols()), (tile.1, dims.iter().product()));
            let (to, from) = (cut.index(&store), cut.index(&load));
            assert!(from.turned(&cut.dims, 0, tile.0 * tile.1).is_some());
            let mut seen = vec![false; dims.iter().product()];
            for_runs(&cut.dims, 0, seen.len(), |place, _, len| {
                for i in 0..len {
                    let along = |index: &Index| index.at(place) + i as i64 * index.step(cut.dims.len());
                    let at = along(&to) as usize;
                    assert!(!std::mem::replace(&mut seen[at], true));
                    let point = [at / (dims[1] * dims[2]), at / dims[2] % dims[1], at % dims[2]];
                    assert_eq!(along(&from), load.eval(&point));
                }
            });
            assert!(seen.into_iter().all(|s| s));
        }
    }

    #[test]
    fn what_does_not_stride_has_no_tiles() {
        let dims = [(0, 512), (1, 512)];
        let rows = line(&[512, 1]);
        let space = Space::new(&dims[..1], &dims[1..], &[&rows, &line(&[1, 512])]);
        assert_eq!(space.tiles(&[space.index(&rows), space.index(&line(&[1, 0]))]), None);
        let odd = [(0, 509), (1, 509)];
        let space = Space::new(&odd[..1], &odd[1..], &[&line(&[509, 1]), &line(&[1, 509])]);
        assert_eq!(space.tiles(&[space.index(&line(&[1, 509]))]), None);
    }
}
