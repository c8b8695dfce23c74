//! Coordinates: where in a value an iteration point reads, one index per dim of the value. Views transform them;
//! reshapes are where division would appear, and where the iteration space is refined to avoid it.

use crate::kernel::{Atom, Check, Idx};
use dnx_ir::types::row_major_strides;

/// One index per dim of a value.
pub type Coords = Vec<Idx>;

/// The extents of the iteration dims, and the refinements that would make indices affine.
#[derive(Clone, Debug, Default)]
pub struct Space {
    /// Extent of every iteration dim.
    pub sizes: Vec<usize>,
    /// `(dim, inner extent)`: splitting the dim so would have made a quotient exact.
    pub splits: Vec<(usize, usize)>,
}

/// `a + b`. Checks are not carried: coordinates have none.
pub fn add(a: &Idx, b: &Idx) -> Idx {
    let mut terms = a.terms.clone();
    for (c, atom) in &b.terms {
        match terms.binary_search_by(|(_, t)| t.cmp(atom)) {
            Ok(at) => {
                terms[at].0 += c;
                if terms[at].0 == 0 {
                    terms.remove(at);
                }
            }
            Err(at) => terms.insert(at, (*c, atom.clone())),
        }
    }
    Idx { offset: a.offset + b.offset, terms, checks: vec![] }
}

/// `a * k + offset`.
pub fn scale(a: &Idx, k: i64, offset: i64) -> Idx {
    if k == 0 {
        return Idx::constant(offset);
    }
    let terms = a.terms.iter().map(|(c, t)| (c * k, t.clone())).collect();
    Idx { offset: a.offset * k + offset, terms, checks: vec![] }
}

/// The sum of coordinates times strides.
pub fn linear(coords: &[Idx], strides: &[usize]) -> Idx {
    rejoined(coords.iter().zip(strides).fold(Idx::default(), |sum, (c, &s)| add(&sum, &scale(c, s as i64, 0))))
}

/// `n (i / n) + i % n` as `i`: what a reshape has taken apart, read from an array in which it lies in one piece.
fn rejoined(mut idx: Idx) -> Idx {
    let whole = |idx: &Idx| {
        idx.terms.iter().enumerate().find_map(|(rem, (c, atom))| {
            let Atom::Mod(i, n) = atom else { return None };
            let quotient = (c * n, Atom::Div(i.clone(), *n));
            let div = idx.terms.iter().position(|t| *t == quotient)?;
            Some((rem, div, scale(i, *c, 0)))
        })
    };
    while let Some((rem, div, i)) = whole(&idx) {
        let mut place = 0..;
        idx.terms.retain(|_| !place.next().is_some_and(|p| p == rem || p == div));
        idx = add(&idx, &i);
    }
    idx
}

impl Space {
    /// A space with these extents.
    pub fn new(sizes: Vec<usize>) -> Space {
        Space { sizes, splits: vec![] }
    }

    /// Least and greatest value of an index over the space.
    pub fn range(&self, idx: &Idx) -> (i64, i64) {
        idx.terms.iter().fold((idx.offset, idx.offset), |(lo, hi), (c, atom)| {
            let (a, b) = match atom {
                Atom::Dim(d) => (0, self.sizes[*d as usize].max(1) as i64 - 1),
                Atom::Div(i, n) => {
                    let (a, b) = self.range(i);
                    (a.div_euclid(*n), b.div_euclid(*n))
                }
                Atom::Mod(_, n) => (0, n - 1),
            };
            if *c >= 0 { (lo + c * a, hi + c * b) } else { (lo + c * b, hi + c * a) }
        })
    }

    /// Quotient and remainder of an index by `n`, as affine as they come. Notes the split that would make them
    /// exact when they are not.
    pub fn div_rem(&mut self, idx: &Idx, n: i64) -> (Idx, Idx) {
        if n == 1 {
            return (idx.clone(), Idx::default());
        }
        // What is a multiple of n goes to the quotient; the rest must stay below n to be the remainder.
        let mut quotient = Idx::constant(idx.offset.div_euclid(n));
        let mut rest = Idx::constant(idx.offset.rem_euclid(n));
        for (c, atom) in &idx.terms {
            let part = Idx { offset: 0, terms: vec![(1, atom.clone())], checks: vec![] };
            quotient = add(&quotient, &scale(&part, c.div_euclid(n), 0));
            rest = add(&rest, &scale(&part, c.rem_euclid(n), 0));
        }
        let (lo, hi) = self.range(&rest);
        if lo >= 0 && hi < n {
            return (quotient, rest);
        }
        for (c, atom) in &rest.terms {
            if let Atom::Dim(d) = atom {
                let (d, size) = (*d as usize, self.sizes[*d as usize] as i64);
                let inner = n / c;
                if n % c == 0 && inner > 1 && size > inner && size % inner == 0 {
                    self.splits.push((d, inner as usize));
                }
            }
        }
        // Only the part that is not a whole multiple has to be divided at run time.
        let carry = Idx { offset: 0, terms: vec![(1, Atom::Div(Box::new(rest.clone()), n))], checks: vec![] };
        let rem = Idx { offset: 0, terms: vec![(1, Atom::Mod(Box::new(rest), n))], checks: vec![] };
        (add(&quotient, &carry), rem)
    }

    /// Coordinates in an array of dims `to` of the element at `coords` in the same elements with dims `from`.
    pub fn reshape(&mut self, coords: &[Idx], from: &[usize], to: &[usize]) -> Coords {
        let mut out = vec![Idx::default(); to.len()];
        // Work block by block: the shortest leading runs of both sides with equal products.
        let (mut i, mut j) = (0, 0);
        while i < from.len() || j < to.len() {
            let (i0, j0) = (i, j);
            let (mut a, mut b) = (1usize, 1usize);
            loop {
                if i < from.len() && (a < b || (a == b && i == i0)) {
                    a *= from[i];
                    i += 1;
                } else if j < to.len() && (b < a || j == j0) {
                    b *= to[j];
                    j += 1;
                } else if a == b {
                    break;
                } else if i < from.len() {
                    a *= from[i];
                    i += 1;
                } else if j < to.len() {
                    b *= to[j];
                    j += 1;
                } else {
                    break;
                }
            }
            // Dims of extent 1 belong to whatever block they stand next to.
            while i < from.len() && from[i] == 1 && j >= to.len() {
                i += 1;
            }
            while j < to.len() && to[j] == 1 && i >= from.len() {
                j += 1;
            }
            if i - i0 == 1 && j - j0 == 1 {
                out[j0] = coords[i0].clone();
                continue;
            }
            let mut rest = linear(&coords[i0..i], &row_major_strides(&from[i0..i]));
            let strides = row_major_strides(&to[j0..j]);
            for (k, &s) in strides.iter().enumerate() {
                if to[j0 + k] == 1 {
                    continue;
                }
                // The outermost coordinate needs no remainder; later ones divide what the earlier left.
                let (q, r) = self.div_rem(&rest, s as i64);
                out[j0 + k] = q;
                rest = r;
            }
        }
        out
    }

    /// Whether a check holds everywhere.
    pub fn always(&self, c: &Check) -> bool {
        let (lo, hi) = self.range(&c.index);
        lo >= c.lo && hi < c.hi && c.multiple == 1
    }

    /// Whether a check holds nowhere.
    pub fn never(&self, c: &Check) -> bool {
        let (lo, hi) = self.range(&c.index);
        hi < c.lo || lo >= c.hi
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every coordinate tuple of the space.
    fn points(sizes: &[usize]) -> Vec<Vec<usize>> {
        sizes.iter().fold(vec![vec![]], |acc, &n| {
            acc.into_iter().flat_map(|p| (0..n).map(move |i| [p.clone(), vec![i]].concat())).collect()
        })
    }

    #[test]
    fn reshape_keeps_the_linear_index() {
        for (from, to) in [
            (vec![6], vec![2, 3]),
            (vec![2, 3], vec![6]),
            (vec![2, 3, 4], vec![6, 4]),
            (vec![2, 12], vec![2, 3, 4]),
            (vec![4, 6], vec![3, 8]),
            (vec![1, 5, 1], vec![5]),
            (vec![5], vec![1, 5, 1]),
            (vec![], vec![1, 1]),
            (vec![2, 1, 3], vec![2, 3, 1]),
            (vec![4, 4, 3], vec![2, 8, 3, 1]),
            (vec![6, 10], vec![4, 15]),
            (vec![6, 10], vec![5, 3, 4]),
        ] {
            let mut space = Space::new(from.clone());
            let coords: Coords = (0..from.len()).map(Idx::dim).collect();
            let out = space.reshape(&coords, &from, &to);
            // Where the array lies in one piece, what was divided comes together again.
            let whole = linear(&out, &row_major_strides(&to));
            assert_eq!(whole, linear(&coords, &row_major_strides(&from)), "{from:?} -> {to:?}");
            for p in points(&from) {
                let want: usize = p.iter().zip(row_major_strides(&from)).map(|(a, b)| a * b).sum();
                let got: i64 = out.iter().zip(row_major_strides(&to)).map(|(c, s)| c.eval(&p) * s as i64).sum();
                assert_eq!(got, want as i64, "{from:?} -> {to:?} at {p:?}");
                for (c, &n) in out.iter().zip(&to) {
                    assert!((0..n as i64).contains(&c.eval(&p)), "{from:?} -> {to:?} at {p:?}: {out:?}");
                }
            }
        }
    }

    #[test]
    fn a_merge_is_affine_and_a_split_asks_for_refinement() {
        let mut space = Space::new(vec![2, 3]);
        let merged = space.reshape(&[Idx::dim(0), Idx::dim(1)], &[2, 3], &[6]);
        assert!(merged[0].is_affine() && space.splits.is_empty());
        let mut space = Space::new(vec![6]);
        let split = space.reshape(&[Idx::dim(0)], &[6], &[2, 3]);
        assert!(!split[0].is_affine());
        assert_eq!(space.splits[0], (0, 3));
        // With the refined dim the same reshape is affine.
        let mut space = Space::new(vec![2, 3]);
        let whole = linear(&[Idx::dim(0), Idx::dim(1)], &[3, 1]);
        let split = space.reshape(&[whole], &[6], &[2, 3]);
        assert!(split.iter().all(Idx::is_affine) && space.splits.is_empty(), "{split:?}");
    }
}
