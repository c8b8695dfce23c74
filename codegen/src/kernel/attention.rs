//! The body of an attention kernel: what [`dnx_ir::attention`] defines, as reductions over the dims of a kernel.
//!
//! `Batch` dims are samples and heads, `M` queries, `N` keys, and `Reduce` dims the head's own. All in `f32`.

use super::{Inst, InstId, Kernel, Role};
use dnx_ir::Scalar;
use dnx_ir::attention::HIDDEN;
use serde::{Deserialize, Serialize};

/// Which result of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// The mixed values, or their tangent; over queries and the head's dim.
    O,
    /// The logarithm of the sum of exponentials, or its tangent; over queries.
    Lse,
    /// The cotangent of the queries.
    Q,
    /// The cotangent of the keys; over keys and the head's dim.
    K,
    /// The cotangent of the values; likewise.
    V,
}

impl Part {
    /// The name used in text.
    pub const fn name(self) -> &'static str {
        match self {
            Part::O => "o",
            Part::Lse => "lse",
            Part::Q => "q",
            Part::K => "k",
            Part::V => "v",
        }
    }

    /// Whether it lives on a dim of this role.
    pub const fn lives_on(self, role: Role) -> bool {
        match role {
            Role::Batch => true,
            Role::M => matches!(self, Part::O | Part::Lse | Part::Q),
            Role::N => matches!(self, Part::K | Part::V),
            Role::Reduce => !matches!(self, Part::Lse),
            Role::Parallel => false,
        }
    }
}

/// What is given beside queries, keys, values and bias; it says which form of attention the body is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Given {
    /// Nothing: the results are the mixed values and the logarithms.
    Nothing,
    /// The results and the operands' tangents: wanted are the results' tangents.
    Tangents {
        /// The mixed values.
        o: InstId,
        /// The logarithms.
        lse: InstId,
        /// Tangents of queries, keys and values.
        of: [InstId; 3],
        /// The bias's tangent.
        bias: Option<InstId>,
    },
    /// The results and their cotangents: wanted are those of queries, keys and values.
    Cotangents {
        /// The mixed values.
        o: InstId,
        /// The logarithms.
        lse: InstId,
        /// Cotangents of the two.
        of: [InstId; 2],
    },
}

/// One result of attention. All that are stored by a kernel have the same body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attention {
    /// Which result.
    pub part: Part,
    /// `f32`: factor of the products of queries and keys.
    pub scale: Scalar,
    /// Whether query `i` sees the keys up to `i` only.
    pub causal: bool,
    /// Queries, over `Batch`, `M` and `Reduce` dims; keys and values, over `Batch`, `N` and `Reduce` dims.
    pub qkv: [InstId; 3],
    /// Added to the scores; over `Batch`, `M` and `N` dims.
    pub bias: Option<InstId>,
    /// What else is given.
    pub given: Given,
}

impl Attention {
    /// The instructions it reads.
    pub fn operands(&self) -> Vec<InstId> {
        let mut ids = self.qkv.to_vec();
        ids.extend(self.bias);
        match &self.given {
            Given::Nothing => {}
            Given::Tangents { o, lse, of, bias } => ids.extend([*o, *lse].iter().chain(of).chain(bias)),
            Given::Cotangents { o, lse, of } => ids.extend([*o, *lse].iter().chain(of)),
        }
        ids
    }

    /// The same body as another's.
    pub fn same_body(&self, other: &Attention) -> bool {
        Attention { part: other.part, ..self.clone() } == *other
    }

    /// Pairs of a query and a key it sees.
    pub fn pairs(&self, queries: usize, keys: usize) -> u64 {
        if !self.causal {
            return queries as u64 * keys as u64;
        }
        let (short, rest) = (queries.min(keys) as u64, queries.saturating_sub(keys) as u64);
        short * (short + 1) / 2 + rest * keys as u64
    }

    /// Floating-point operations of this part where all parts share the scores, counted with the first of them.
    pub fn flops(&self, kernel: &Kernel) -> u64 {
        let [batch, queries, keys, d] = kernel.attention_extents();
        // Products of matrices, and pointwise operations a score.
        let (products, pointwise) = match (&self.given, self.part) {
            (Given::Nothing, Part::O) => (2, 5),
            (Given::Tangents { .. }, Part::O) => (5, 6),
            (Given::Cotangents { .. }, Part::Q) => (3, 5),
            (Given::Cotangents { .. }, _) => (1, 0),
            _ => (0, 0),
        };
        batch as u64 * self.pairs(queries, keys) * (2 * products * d as u64 + pointwise)
    }
}

impl Kernel {
    /// Extents of an attention kernel: samples and heads, queries, keys, the head's dim.
    pub fn attention_extents(&self) -> [usize; 4] {
        [Role::Batch, Role::M, Role::N, Role::Reduce].map(|r| self.extent(r))
    }

    /// The body of an attention kernel and its parts, in order of instructions.
    pub fn attention(&self) -> Option<(&Attention, Vec<(Part, InstId)>)> {
        let mut parts = vec![];
        let mut body: Option<&Attention> = None;
        for (i, inst) in self.insts.iter().enumerate() {
            let Inst::Attention(a) = inst else { continue };
            if body.is_some_and(|b| !b.same_body(a)) {
                return None;
            }
            body = Some(a);
            parts.push((a.part, InstId(i as u32)));
        }
        body.map(|b| (b, parts))
    }
}

/// A matrix per batch entry, in `f64`: `at(batch, row, column)`.
pub(super) type Matrix<'a> = dyn Fn(InstId, [usize; 4]) -> f64 + 'a;

/// The part's values for one batch entry, row-major over the dims it lives on. `at` gives an operand at
/// `[batch, query, key, head dim]`.
pub(super) fn evaluate(a: &Attention, batch: usize, extents: [usize; 4], at: &Matrix) -> Vec<f64> {
    let [_, queries, keys, d] = extents;
    let dot = |x: InstId, y: InstId, i: usize, j: usize| -> f64 {
        (0..d).map(|e| at(x, [batch, i, j, e]) * at(y, [batch, i, j, e])).sum()
    };
    let [q, k, v] = a.qkv;
    let score = |i: usize, j: usize| {
        if a.causal && j > i {
            return HIDDEN;
        }
        dot(q, k, i, j) * a.scale.to_f64() + a.bias.map_or(0.0, |b| at(b, [batch, i, j, 0]))
    };
    // Per query a weight of every key, and what a linear form of the values is made with.
    let mixed = |w: &dyn Fn(usize, usize) -> f64, x: InstId, i: usize, e: usize| -> f64 {
        (0..keys).map(|j| w(i, j) * at(x, [batch, i, j, e])).sum()
    };
    let table = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..queries * keys).map(|ij| f(ij / keys, ij % keys)).collect()
    };
    let over = |rows: usize, columns: usize, f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..rows * columns).map(|at| f(at / columns, at % columns)).collect()
    };
    match &a.given {
        Given::Nothing => {
            let s = table(&score);
            let lse: Vec<f64> = (0..queries)
                .map(|i| {
                    let row = &s[i * keys..(i + 1) * keys];
                    let greatest = row.iter().copied().fold(f64::MIN, f64::max);
                    greatest + row.iter().map(|s| (s - greatest).exp()).sum::<f64>().ln()
                })
                .collect();
            match a.part {
                Part::Lse => lse,
                _ => over(queries, d, &|i, e| mixed(&|i, j| (s[i * keys + j] - lse[i]).exp(), v, i, e)),
            }
        }
        Given::Tangents { o, lse, of, bias } => {
            let p = table(&|i, j| (score(i, j) - at(*lse, [batch, i, j, 0])).exp());
            let r = table(&|i, j| {
                let product = dot(of[0], k, i, j) + dot(q, of[1], i, j);
                p[i * keys + j] * (product * a.scale.to_f64() + bias.map_or(0.0, |b| at(b, [batch, i, j, 0])))
            });
            let sum = |i: usize| r[i * keys..(i + 1) * keys].iter().sum::<f64>();
            match a.part {
                Part::Lse => (0..queries).map(sum).collect(),
                _ => over(queries, d, &|i, e| {
                    let new = mixed(&|i, j| r[i * keys + j], v, i, e) + mixed(&|i, j| p[i * keys + j], of[2], i, e);
                    new - sum(i) * at(*o, [batch, i, 0, e])
                }),
            }
        }
        Given::Cotangents { o, lse, of } => {
            let p = table(&|i, j| (score(i, j) - at(*lse, [batch, i, j, 0])).exp());
            let row: Vec<f64> = (0..queries).map(|i| dot(*o, of[0], i, 0) - at(of[1], [batch, i, 0, 0])).collect();
            let ds = table(&|i, j| p[i * keys + j] * (dot(of[0], v, i, j) - row[i]));
            let scale = a.scale.to_f64();
            let turned = |w: &[f64], x: InstId, j: usize, e: usize| -> f64 {
                (0..queries).map(|i| w[i * keys + j] * at(x, [batch, i, j, e])).sum()
            };
            match a.part {
                Part::K => over(keys, d, &|j, e| scale * turned(&ds, q, j, e)),
                Part::V => over(keys, d, &|j, e| turned(&p, of[0], j, e)),
                _ => over(queries, d, &|i, e| scale * mixed(&|i, j| ds[i * keys + j], k, i, e)),
            }
        }
    }
}
