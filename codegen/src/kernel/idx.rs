//! Index expressions over iteration coordinates: sums of coefficients times atoms, an atom being a coordinate or
//! the quotient or remainder of an index by a constant. Most are affine; division appears only where a reshape
//! does not factor through the iteration space.

use serde::{Deserialize, Serialize};

/// A factor of a term.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Atom {
    /// Coordinate of an iteration dim.
    Dim(u32),
    /// Quotient rounded down; the inner index is never negative where it is used.
    Div(Box<Idx>, i64),
    /// Remainder; likewise.
    Mod(Box<Idx>, i64),
}

/// `offset + sum of coefficient * atom`. Terms are sorted by atom, have nonzero coefficients, and no atom twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Idx {
    /// Constant part.
    pub offset: i64,
    /// `(coefficient, atom)`.
    pub terms: Vec<(i64, Atom)>,
    /// Conditions under which the element exists; empty almost always. Only meaningful on a whole index, not
    /// inside an atom.
    pub checks: Vec<Check>,
}

/// `lo <= index < hi`, and `index` is a multiple of `multiple` (1: any) after subtracting `lo`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Check {
    /// What is checked; has no checks of its own.
    pub index: Idx,
    /// Least value.
    pub lo: i64,
    /// End, exclusive.
    pub hi: i64,
    /// Step from `lo`.
    pub multiple: i64,
}

impl Idx {
    /// A constant.
    pub fn constant(offset: i64) -> Idx {
        Idx { offset, ..Idx::default() }
    }

    /// A coordinate.
    pub fn dim(d: usize) -> Idx {
        Idx { terms: vec![(1, Atom::Dim(d as u32))], ..Idx::default() }
    }

    /// Dims it depends on, checks included, as a bit mask.
    pub fn dims(&self) -> u64 {
        let terms = self.terms.iter().fold(0, |m, (_, a)| {
            m | match a {
                Atom::Dim(d) => 1u64 << d,
                Atom::Div(i, _) | Atom::Mod(i, _) => i.dims(),
            }
        });
        self.checks.iter().fold(terms, |m, c| m | c.index.dims())
    }

    /// Whether every atom is a coordinate and there are no checks.
    pub fn is_affine(&self) -> bool {
        self.checks.is_empty() && self.terms.iter().all(|(_, a)| matches!(a, Atom::Dim(_)))
    }

    /// The coefficient of coordinate `d` among the affine terms.
    pub fn coef(&self, d: usize) -> i64 {
        self.terms.iter().find(|(_, a)| *a == Atom::Dim(d as u32)).map_or(0, |(c, _)| *c)
    }

    /// The value at these coordinates (checks aside).
    pub fn eval(&self, at: &[usize]) -> i64 {
        self.terms.iter().fold(self.offset, |sum, (c, a)| {
            sum + c * match a {
                Atom::Dim(d) => at[*d as usize] as i64,
                Atom::Div(i, n) => i.eval(at).div_euclid(*n),
                Atom::Mod(i, n) => i.eval(at).rem_euclid(*n),
            }
        })
    }

    /// Whether all checks hold at these coordinates.
    pub fn valid(&self, at: &[usize]) -> bool {
        self.checks.iter().all(|c| c.holds(at))
    }
}

impl Check {
    /// Whether it holds at these coordinates.
    pub fn holds(&self, at: &[usize]) -> bool {
        let i = self.index.eval(at);
        i >= self.lo && i < self.hi && (i - self.lo) % self.multiple == 0
    }
}
