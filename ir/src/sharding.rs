//! How shardings go through ops: forward only, one rule per op, one routine for all.
//!
//! # Factors
//!
//! Each op states its index structure in *factors*: `dot_general` of `[b, i, k]` and `[b, j, k]` is
//! `abc,adc->abd` (the letters are given in order of appearance). A dim is one factor, or several, major first: the
//! reshape of `[8, 4]` to `[32]` is `a b->(a b)`, a grouped conv's channels are `(group channel)`. A factor is
//!
//! * *free*: its index runs over operands and result alike; a split passes through;
//! * *summed*: it is in operands only; when it is split, every device holds part of the sum and the result is
//!   `unreduced` over the axes that split it;
//! * *whole*: the op needs all of it in one place (the maximum along it, a concatenation, a spatial dim).
//!
//! # Rule
//!
//! 1. A factor is split by the axes of the operands that split it. An operand that does not split it is compatible: it is
//!    replicated over these axes, and taking its own part costs no communication. So constants, iotas
//!    and broadcast scalars combine with anything. Two operands that split it differently conflict.
//! 2. One mesh axis splits one factor.
//! 3. A whole factor is not split.
//! 4. An `unreduced` operand is a sum not yet taken, so only linear ops take it, and the result is unreduced over the
//!    same axes. An op that adds its operands (`add`, `select`'s cases, `concat`, `pad`, `scatter_add`...) wants them all
//!    unreduced over the same axes; one that multiplies them (`mul`, `dot_general`, `conv`) at most one of them.
//!    Conversions between floats count as linear: the sum is then of rounded terms.
//!
//! Whatever breaks the rule is an error that names operands, axes and the `reshard` that mends it; nothing is resharded
//! behind the author's back. `call` and `composite` want the very types of their parameters.
//!
//! # Cotangents
//!
//! The cotangent of a value has a type that depends on the value's type alone ([`cotangent_type`]): the same
//! dims are split the same way, and it is reduced everywhere. Where the value is `unreduced` its cotangent is
//! replicated (`x` is the sum of `x_d`, so each `x_d` has the cotangent of `x`); where it is replicated the cotangent is
//! replicated too, so a transpose rule whose contribution comes out unreduced reshards it to this type.

use crate::infer::check_sharding;
use crate::{AxisName, BinaryOp, Error, Mesh, Op, ReduceKind, Result, Sharding, Type, UnaryOp, bail};

/// What an op does with a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactorKind {
    /// In operands and result: a split passes through.
    Free,
    /// In operands only and summed over: a split leaves the result unreduced.
    Sum,
    /// Must not be split.
    Whole,
}

/// A factor of an op's index structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// Its size.
    pub size: usize,
    /// What the op does with it.
    pub kind: FactorKind,
}

/// The index structure of an op with one result: per tensor and dim the factors it is made of, major first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The factors.
    pub factors: Vec<Factor>,
    /// Per operand and dim the indices of its factors.
    pub operands: Vec<Vec<Vec<usize>>>,
    /// The same of the result.
    pub result: Vec<Vec<usize>>,
    /// Sets of operands in which the op is linear together; it is multilinear across the sets, and not linear in
    /// operands that are in none.
    pub linear: Vec<Vec<usize>>,
}

/// Where operands must lie for the op to run on every device by itself, and where its result then lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Per operand: what it has, or a finer split that each device takes from it without communication.
    pub operands: Vec<Sharding>,
    /// The result's sharding.
    pub result: Sharding,
}

/// The type of the cotangent of a value of this type: split alike, reduced.
pub fn cotangent_type(ty: &Type) -> Type {
    ty.clone().with_sharding(Sharding::new(ty.sharding.dims.clone(), vec![]))
}

/// The factors of an op with one result, or `None` for ops that have none: leaves, `reshard`, collectives,
/// and those with any number of results.
pub fn rule(op: &Op, operands: &[&Type], result: &Type) -> Option<Rule> {
    let mut r = Rule { factors: vec![], operands: vec![], result: vec![], linear: vec![] };
    match op {
        Op::Param { .. } | Op::Const(_) | Op::Iota { .. } | Op::AxisIndex { .. } | Op::Reshard { .. } => return None,
        Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => return None,
        Op::AllToAll { .. } | Op::Ppermute { .. } => return None,
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier => return None,
        Op::Unary(_) | Op::Convert(_) | Op::Bitcast(_) | Op::Binary(_) | Op::Compare(_) | Op::Select => {
            r.result = r.dims(&result.dims, |_| FactorKind::Free);
            r.operands = vec![r.result.clone(); operands.len()];
        }
        Op::Reshape { dims } => r.reshape(&operands[0].dims, dims),
        Op::Transpose { perm } => {
            let x = r.dims(&operands[0].dims, |_| FactorKind::Free);
            r.result = perm.iter().map(|&p| x[p].clone()).collect();
            r.operands = vec![x];
        }
        Op::Broadcast { dims, map } => {
            r.result = r.dims(dims, |_| FactorKind::Free);
            let x = &operands[0].dims;
            let x = (0..x.len())
                .map(|i| if x[i] == dims[map[i]] { r.result[map[i]].clone() } else { r.whole(x[i]) })
                .collect();
            r.operands = vec![x];
        }
        Op::Slice { stride, .. } => r.partial(operands[0], result, |d| stride[d] == 1),
        Op::Pad { low, high, interior } => {
            r.partial(operands[0], result, |d| low[d] + high[d] + interior[d] == 0);
            r.operands.push(vec![]);
        }
        Op::Concat { dim } => {
            r.result = r.dims(&result.dims, |d| if d == *dim { FactorKind::Whole } else { FactorKind::Free });
            for x in operands {
                let mut own = r.result.clone();
                own[*dim] = r.whole(x.dims[*dim]);
                r.operands.push(own);
            }
        }
        Op::Reverse { dims } => r.partial(operands[0], result, |d| !dims.contains(&d)),
        Op::DynamicSlice { .. } => {
            r.partial(operands[0], result, |_| true);
            let start = r.wholes(operands[1]);
            r.operands.push(start);
        }
        Op::DynamicUpdateSlice => {
            r.partial(operands[1], result, |_| true);
            let start = r.wholes(operands[2]);
            r.operands = vec![r.result.clone(), r.operands[0].clone(), start];
        }
        Op::Reduce { kind, dims } => {
            let gone = if *kind == ReduceKind::Sum { FactorKind::Sum } else { FactorKind::Whole };
            r.reduce(operands[0], |d| if dims.contains(&d) { Some(gone) } else { None });
        }
        Op::Argmax { dim } => r.reduce(operands[0], |d| if d == *dim { Some(FactorKind::Whole) } else { None }),
        Op::RandomBits { .. } => {
            r.result = r.dims(&result.dims, |_| FactorKind::Free);
            r.operands = operands.iter().map(|t| r.wholes(t)).collect();
        }
        Op::Dot { dims: d, .. } => {
            let (x, y) = (operands[0], operands[1]);
            let left =
                r.dims(&x.dims, |i| if d.lhs_contract.contains(&i) { FactorKind::Sum } else { FactorKind::Free });
            let mut right = vec![vec![]; y.rank()];
            for (&i, &j) in d.lhs_batch.iter().zip(&d.rhs_batch).chain(d.lhs_contract.iter().zip(&d.rhs_contract)) {
                right[j] = left[i].clone();
            }
            for j in d.rhs_free(y.rank()) {
                right[j] = r.factor(y.dims[j], FactorKind::Free);
            }
            r.result = d.lhs_batch.iter().map(|&i| left[i].clone()).collect();
            r.result.extend(d.lhs_free(x.rank()).into_iter().map(|i| left[i].clone()));
            r.result.extend(d.rhs_free(y.rank()).into_iter().map(|j| right[j].clone()));
            r.operands = vec![left, right];
        }
        Op::Conv { dims: c, .. } => {
            let (x, w, spatial) = (operands[0], operands[1], c.stride.len());
            let batch = r.factor(x.dims[0], FactorKind::Free);
            let group = if c.groups > 1 { r.factor(c.groups, FactorKind::Free) } else { vec![] };
            let channel = r.factor(w.dims[spatial], FactorKind::Sum);
            let feature = r.factor(w.dims[spatial + 1] / c.groups, FactorKind::Free);
            let (mut xs, mut ws, mut out) = (vec![batch.clone()], vec![], vec![batch]);
            for d in 0..spatial {
                xs.push(r.whole(x.dims[d + 1]));
                ws.push(r.whole(w.dims[d]));
                out.push(r.whole(result.dims[d + 1]));
            }
            xs.push([group.clone(), channel.clone()].concat());
            ws.extend([channel, [group.clone(), feature.clone()].concat()]);
            out.push([group, feature].concat());
            (r.operands, r.result) = (vec![xs, ws], out);
        }
        Op::Take { dim } => {
            let (x, i) = r.indexed(operands[0], operands[1], *dim, FactorKind::Free);
            r.result = [&x[..*dim], &i, &x[dim + 1..]].concat();
            r.operands = vec![x, i];
        }
        Op::ScatterAdd { dim } => {
            let (x, i) = r.indexed(operands[0], operands[1], *dim, FactorKind::Sum);
            let updates = [&x[..*dim], &i, &x[dim + 1..]].concat();
            r.result = x.clone();
            r.operands = vec![x, i, updates];
        }
    }
    r.linear = linear(op, operands);
    Some(r)
}

/// See [`Rule::linear`].
fn linear(op: &Op, operands: &[&Type]) -> Vec<Vec<usize>> {
    match op {
        Op::Unary(u) => match u {
            UnaryOp::Neg | UnaryOp::StopGradient => vec![vec![0]],
            UnaryOp::Exp | UnaryOp::Log | UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Tanh | UnaryOp::Erf => vec![],
            UnaryOp::Sqrt | UnaryOp::Rsqrt | UnaryOp::Abs | UnaryOp::Sign | UnaryOp::Floor => vec![],
            UnaryOp::Not | UnaryOp::IsFinite => vec![],
        },
        Op::Binary(b) => match b {
            BinaryOp::Add | BinaryOp::Sub => vec![vec![0, 1]],
            BinaryOp::Mul => vec![vec![0], vec![1]],
            // Truncation makes the division of integers nonlinear.
            BinaryOp::Div if operands[0].dtype.is_float() => vec![vec![0]],
            BinaryOp::Div | BinaryOp::Pow | BinaryOp::Max | BinaryOp::Min | BinaryOp::Rem => vec![],
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => vec![],
        },
        Op::Convert(to) if to.is_float() && operands[0].dtype.is_float() => vec![vec![0]],
        Op::Convert(_) | Op::Bitcast(_) | Op::Compare(_) | Op::Argmax { .. } | Op::RandomBits { .. } => vec![],
        Op::Select => vec![vec![1, 2]],
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => vec![vec![0]],
        Op::Reverse { .. } | Op::DynamicSlice { .. } | Op::Take { .. } => vec![vec![0]],
        Op::Pad { .. } | Op::DynamicUpdateSlice => vec![vec![0, 1]],
        Op::Concat { .. } => vec![(0..operands.len()).collect()],
        Op::Reduce { kind: ReduceKind::Sum, .. } => vec![vec![0]],
        Op::Reduce { kind: ReduceKind::Max, .. } => vec![],
        Op::Dot { .. } | Op::Conv { .. } => vec![vec![0], vec![1]],
        Op::ScatterAdd { .. } => vec![vec![0, 2]],
        Op::Param { .. } | Op::Const(_) | Op::Iota { .. } | Op::AxisIndex { .. } | Op::Reshard { .. } => vec![],
        Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => vec![],
        Op::AllToAll { .. } | Op::Ppermute { .. } => vec![],
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier => vec![],
    }
}

/// The result types with their shardings, from result types without.
pub(crate) fn apply(op: &Op, operands: &[&Type], types: Vec<Type>, mesh: &Mesh) -> Result<Vec<Type>> {
    match op {
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier | Op::Reshard { .. } => Ok(types),
        Op::Param { .. } | Op::Const(_) | Op::Iota { .. } | Op::AxisIndex { .. } => Ok(types),
        _ if op.is_collective() => {
            let all: Vec<String> = operands.iter().map(|t| t.to_string()).collect();
            bail!("belongs to a per-device program, where no type is sharded, and has operand {}", all.join(", "))
        }
        _ => {
            let placement = place(op, operands, &types[0], mesh)?;
            Ok(types.into_iter().map(|t| t.with_sharding(placement.result.clone())).collect())
        }
    }
}

/// Where an op with factors runs: see [`Placement`].
///
/// # Errors
/// What breaks the rule of this module, and the remedy.
pub fn place(op: &Op, operands: &[&Type], result: &Type, mesh: &Mesh) -> Result<Placement> {
    let Some(rule) = rule(op, operands, result) else {
        bail!("has no index structure of its own");
    };
    let axes = split_factors(&rule, operands, mesh)?;
    let unreduced = unreduced(&rule, operands, &axes)?;
    let dims = |factors: &[Vec<usize>]| -> Result<Vec<Vec<AxisName>>> {
        factors.iter().enumerate().map(|(d, f)| join(&rule, f, d, &axes, mesh)).collect()
    };
    let sharding = Sharding::new(dims(&rule.result)?, unreduced);
    check_sharding(&sharding, &result.dims, mesh)?;
    let operands = rule.operands.iter().zip(operands);
    let operands = operands.map(|(f, t)| Ok(Sharding::new(dims(f)?, t.sharding.unreduced.clone())));
    Ok(Placement { operands: operands.collect::<Result<_>>()?, result: sharding })
}

/// [`place`] where the result is to be split as the type of `result` says, or further than the operands make it:
/// operands that are replicated over these axes give their own parts. `None` where the op cannot run so.
pub fn place_as(op: &Op, operands: &[&Type], result: &Type, mesh: &Mesh) -> Option<Placement> {
    let rule = rule(op, operands, result)?;
    let mut with_result = rule.clone();
    with_result.operands.push(rule.result.clone());
    let types: Vec<&Type> = operands.iter().copied().chain([result]).collect();
    let axes = split_factors(&with_result, &types, mesh).ok()?;
    let unreduced = unreduced(&rule, operands, &axes).ok()?;
    let dims = |factors: &[Vec<usize>]| -> Option<Vec<Vec<AxisName>>> {
        factors.iter().enumerate().map(|(d, f)| join(&rule, f, d, &axes, mesh).ok()).collect()
    };
    let sharding = Sharding::new(dims(&rule.result)?, unreduced);
    if sharding != result.sharding {
        return None;
    }
    let operands = rule.operands.iter().zip(operands);
    let operands = operands.map(|(f, t)| Some(Sharding::new(dims(f)?, t.sharding.unreduced.clone())));
    Some(Placement { operands: operands.collect::<Option<_>>()?, result: sharding })
}

/// Per factor the axes that split it.
fn split_factors(rule: &Rule, operands: &[&Type], mesh: &Mesh) -> Result<Vec<Vec<AxisName>>> {
    // By factor: the axes, and the operand and dim they come from.
    let mut axes: Vec<(Vec<AxisName>, usize, usize)> = vec![(vec![], 0, 0); rule.factors.len()];
    for (o, t) in operands.iter().enumerate() {
        for d in 0..t.rank() {
            let factors = &rule.operands[o][d];
            let parts = split_dim(rule, factors, t.sharding.dim(d), mesh).ok_or_else(|| {
                let remedy = whole_dim(t, d);
                Error::new(format!(
                    "operand {o} is {t}: the op takes dim {d} apart into sizes {:?}, which {} does not split; \
                     reshard operand {o} to {remedy}",
                    factors.iter().map(|&f| rule.factors[f].size).collect::<Vec<_>>(),
                    t.sharding.dim(d).join(", "),
                ))
            })?;
            for (&f, new) in factors.iter().zip(parts) {
                if new.is_empty() {
                    continue;
                }
                if rule.factors[f].kind == FactorKind::Whole {
                    bail!(
                        "dim {d} of operand {o} {t} is split over {}, but the op needs it whole; \
                         reshard operand {o} to {}",
                        new.join(", "),
                        whole_dim(t, d)
                    );
                }
                let (old, other, other_dim) = &axes[f];
                if old.is_empty() {
                    axes[f] = (new, o, d);
                } else if *old != new {
                    bail!(
                        "dim {other_dim} of operand {other} {} and dim {d} of operand {o} {t} run together, but one \
                         is split over {}, the other over {}; reshard one of them like the other",
                        operands[*other],
                        old.join(", "),
                        new.join(", ")
                    );
                }
            }
        }
    }
    for (f, (own, o, d)) in axes.iter().enumerate() {
        for (other, o2, d2) in &axes[..f] {
            if let Some(axis) = own.iter().find(|a| other.contains(a)) {
                bail!(
                    "mesh axis {axis} splits both dim {d2} of operand {o2} {} and dim {d} of operand {o} {}, which \
                     are different dims of the op; reshard operand {o} to {}",
                    operands[*o2],
                    operands[*o],
                    whole_dim(operands[*o], *d)
                );
            }
        }
    }
    Ok(axes.into_iter().map(|(axes, _, _)| axes).collect())
}

/// The axes of a dim given to its factors, major first; `None` when an axis does not fit.
fn split_dim(rule: &Rule, factors: &[usize], axes: &[AxisName], mesh: &Mesh) -> Option<Vec<Vec<AxisName>>> {
    let mut parts = vec![vec![]; factors.len()];
    let mut at = 0;
    let mut left = factors.first().map_or(1, |&f| rule.factors[f].size);
    for axis in axes {
        let size = mesh.size(axis)?;
        while left == 1 && size > 1 && at + 1 < factors.len() {
            at += 1;
            left = rule.factors[factors[at]].size;
        }
        if at >= factors.len() || !left.is_multiple_of(size) {
            return None;
        }
        left /= size;
        parts[at].push(axis.clone());
    }
    Some(parts)
}

/// The axes of a dim from those of its factors: a minor factor may be split only where the majors are split entirely.
fn join(rule: &Rule, factors: &[usize], d: usize, axes: &[Vec<AxisName>], mesh: &Mesh) -> Result<Vec<AxisName>> {
    let mut joined: Vec<AxisName> = Vec::new();
    let mut entire = true;
    for &f in factors {
        if !axes[f].is_empty() && !entire {
            bail!(
                "the split over {} would cut dim {d} of the result into pieces that are not blocks; \
                 reshard the operand so that the dim it comes from is whole",
                axes[f].join(", ")
            );
        }
        let parts: usize = axes[f].iter().map(|a| mesh.size(a).unwrap_or(1)).product();
        entire &= parts == rule.factors[f].size;
        joined.extend(axes[f].iter().cloned());
    }
    Ok(joined)
}

/// The axes over which the result is unreduced.
fn unreduced(rule: &Rule, operands: &[&Type], axes: &[Vec<AxisName>]) -> Result<Vec<AxisName>> {
    let summed: Vec<(usize, &AxisName)> = (0..axes.len())
        .filter(|&f| rule.factors[f].kind == FactorKind::Sum)
        .flat_map(|f| axes[f].iter().map(move |a| (f, a)))
        .collect();
    let mut total: Vec<AxisName> = Vec::new();
    let mut bearer = None;
    for (o, t) in operands.iter().enumerate() {
        let Some(group) = rule.linear.iter().find(|g| g.contains(&o)) else {
            if !t.sharding.unreduced.is_empty() {
                bail!(
                    "is not linear in operand {o} {t}, which is a sum not yet taken; reshard operand {o} to {}",
                    cotangent_type(t)
                );
            }
            continue;
        };
        for (f, split) in axes.iter().enumerate() {
            // A term added to partial sums may itself be such a sum.
            let alone = !rule.operands[o].iter().any(|d| d.contains(&f));
            let counted = group.len() > 1 && rule.factors[f].kind == FactorKind::Sum && alone;
            if let Some(axis) = split.iter().find(|a| t.sharding.unreduced.contains(a) && !counted) {
                bail!(
                    "operand {o} {t} is unreduced over mesh axis {axis}, which also splits a dim of the op; \
                     reshard operand {o} to {}",
                    cotangent_type(t)
                );
            }
        }
        // What the terms of this operand are spread over once the factors are split.
        let spread = |o: usize| {
            let mut spread = operands[o].sharding.unreduced.clone();
            if group.len() > 1 {
                let has = |f: &usize| rule.operands[o].iter().any(|d| d.contains(f));
                spread.extend(summed.iter().filter(|(f, _)| has(f)).map(|(_, a)| (*a).clone()));
            }
            Sharding::new(vec![], spread).unreduced
        };
        let (first, own) = (spread(group[0]), spread(o));
        if own != first {
            let (a, b) = (group[0], o);
            let shown = |s: &[AxisName]| if s.is_empty() { "none".to_string() } else { s.join(", ") };
            let (t, mended) = if first.len() < own.len() { (a, &own) } else { (b, &first) };
            let mended = operands[t]
                .clone()
                .with_sharding(Sharding { dims: operands[t].sharding.dims.clone(), unreduced: mended.clone() });
            bail!(
                "adds operand {a} {} and operand {b} {}, whose sums are yet to be taken over different axes ({} and \
                 {}); reshard operand {t} to {mended}, or reduce the other first",
                operands[a],
                operands[b],
                shown(&first),
                shown(&own)
            );
        }
        match bearer {
            _ if own.is_empty() => {}
            None => bearer = Some((o, group)),
            Some((_, g)) if g == group => {}
            Some((other, _)) => bail!(
                "multiplies operand {other} {} and operand {o} {t}, both sums not yet taken; reshard operand {other} to {}",
                operands[other],
                cotangent_type(operands[other])
            ),
        }
        total.extend(own);
    }
    total.extend(summed.into_iter().map(|(_, a)| a.clone()));
    total.sort();
    total.dedup();
    Ok(total)
}

/// The type with dim `d` not split.
fn whole_dim(t: &Type, d: usize) -> Type {
    let mut dims = t.sharding.dims.clone();
    dims[d].clear();
    t.clone().with_sharding(Sharding::new(dims, t.sharding.unreduced.clone()))
}

impl Rule {
    /// A new factor, as the factors of a dim.
    fn factor(&mut self, size: usize, kind: FactorKind) -> Vec<usize> {
        self.factors.push(Factor { size, kind });
        vec![self.factors.len() - 1]
    }

    fn whole(&mut self, size: usize) -> Vec<usize> {
        self.factor(size, FactorKind::Whole)
    }

    fn wholes(&mut self, t: &Type) -> Vec<Vec<usize>> {
        self.dims(&t.dims, |_| FactorKind::Whole)
    }

    /// A factor per dim.
    fn dims(&mut self, sizes: &[usize], kind: impl Fn(usize) -> FactorKind) -> Vec<Vec<usize>> {
        sizes.iter().enumerate().map(|(d, &n)| self.factor(n, kind(d))).collect()
    }

    /// One operand of the result's rank that the op acts on along some dims only: there both are whole. The others
    /// are those for which `untouched` holds and whose size stays.
    fn partial(&mut self, x: &Type, result: &Type, untouched: impl Fn(usize) -> bool) {
        let mut own = Vec::new();
        for d in 0..x.rank() {
            if x.dims[d] == result.dims[d] && untouched(d) {
                let free = self.factor(x.dims[d], FactorKind::Free);
                own.push(free.clone());
                self.result.push(free);
            } else {
                own.push(self.whole(x.dims[d]));
                let out = self.whole(result.dims[d]);
                self.result.push(out);
            }
        }
        self.operands.push(own);
    }

    /// One operand of which the dims with a kind disappear.
    fn reduce(&mut self, x: &Type, gone: impl Fn(usize) -> Option<FactorKind>) {
        let own = self.dims(&x.dims, |d| gone(d).unwrap_or(FactorKind::Free));
        self.result = (0..x.rank()).filter(|&d| gone(d).is_none()).map(|d| own[d].clone()).collect();
        self.operands = vec![own];
    }

    /// A table that is whole along `dim`, and its indices.
    fn indexed(&mut self, x: &Type, i: &Type, dim: usize, kind: FactorKind) -> (Vec<Vec<usize>>, Vec<Vec<usize>>) {
        let table = self.dims(&x.dims, |d| if d == dim { FactorKind::Whole } else { FactorKind::Free });
        (table, self.dims(&i.dims, |_| kind))
    }

    /// Common factors of the dims of both sides, from the major end. Where the sizes left over have no
    /// common divisor, nothing can be split until the products meet again.
    fn reshape(&mut self, from: &[usize], to: &[usize]) {
        let mut sides = [vec![vec![]; from.len()], vec![vec![]; to.len()]];
        let sizes = [from, to];
        let (mut at, mut left) = ([0, 0], [1, 1]);
        if from.contains(&0) || to.contains(&0) {
            self.operands = vec![self.dims(from, |_| FactorKind::Whole)];
            self.result = self.dims(to, |_| FactorKind::Whole);
            return;
        }
        loop {
            for s in 0..2 {
                while left[s] == 1 && at[s] < sizes[s].len() {
                    left[s] = sizes[s][at[s]];
                    at[s] += 1;
                    if left[s] == 1 {
                        sides[s][at[s] - 1] = self.whole(1);
                    }
                }
            }
            let common = gcd(left[0], left[1]);
            if common > 1 {
                let f = self.factor(common, FactorKind::Free);
                for s in 0..2 {
                    sides[s][at[s] - 1].extend(f.iter().copied());
                    left[s] /= common;
                }
            } else if left == [1, 1] {
                break;
            } else {
                // Sizes that share no divisor: take whole dims until both sides have seen as many elements.
                let mut seen = left;
                for s in 0..2 {
                    let f = self.whole(left[s]);
                    sides[s][at[s].max(1) - 1].extend(f);
                }
                while seen[0] != seen[1] {
                    let s = if seen[0] < seen[1] { 0 } else { 1 };
                    let Some(&n) = sizes[s].get(at[s]) else { break };
                    sides[s][at[s]] = self.whole(n);
                    at[s] += 1;
                    seen[s] *= n;
                }
                left = [1, 1];
            }
        }
        let [from, to] = sides;
        (self.operands, self.result) = (vec![from], to);
    }

    /// The rule as text, factors as letters: `ab,bc->ac`; summed ones and whole ones are listed after it.
    pub fn notation(&self) -> String {
        let mut order: Vec<usize> = Vec::new();
        for &f in self.operands.iter().flatten().flatten().chain(self.result.iter().flatten()) {
            if !order.contains(&f) {
                order.push(f);
            }
        }
        let letter = |f: usize| {
            let n = order.iter().position(|&o| o == f).unwrap_or(0);
            if n < 26 { ((b'a' + n as u8) as char).to_string() } else { format!("<{n}>") }
        };
        let dims = |dims: &[Vec<usize>]| -> String {
            dims.iter()
                .map(|d| {
                    let letters: Vec<String> = d.iter().map(|&f| letter(f)).collect();
                    if d.len() == 1 { letters.concat() } else { format!("({})", letters.join(" ")) }
                })
                .collect()
        };
        let operands: Vec<String> = self.operands.iter().map(|o| dims(o)).collect();
        let mut out = format!("{}->{}", operands.join(","), dims(&self.result));
        for (kind, what) in [(FactorKind::Sum, "sum"), (FactorKind::Whole, "whole")] {
            let of: String = order.iter().filter(|&&f| self.factors[f].kind == kind).map(|&f| letter(f)).collect();
            if !of.is_empty() {
                out += &format!(" {what} {of}");
            }
        }
        out
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
