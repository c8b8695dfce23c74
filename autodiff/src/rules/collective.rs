//! Placement and exchange between devices. What is differentiated is the function of all devices' operands
//! together, so each transpose sends every cotangent back along the way its element came.

use super::{Linear, Rule};
use dnx_ir::{AxisName, CmpOp, Op, ReduceKind};

/// The walk lays every cotangent out by its primal's type, which is all that is to do.
pub(super) fn reshard() -> Rule<'static> {
    Rule::linear(Linear::All, |_, _, ct| Ok(ct)).note("the cotangent is laid out by the operand's type")
}

pub(super) fn all_reduce(kind: ReduceKind, axes: &[AxisName]) -> Rule<'_> {
    let sum = || Op::AllReduce { kind: ReduceKind::Sum, axes: axes.to_vec() };
    match kind {
        ReduceKind::Sum => Rule::linear(Linear::All, |a, _, ct| a.again(&[ct])),
        ReduceKind::Max => Rule::terms(move |a, _, d| {
            let hit = a.b.compare(CmpOp::Eq, a.x[0], a.y)?;
            let hit = a.b.convert(hit, a.ty[0].dtype)?;
            let count = a.b.emit(sum(), &[hit])?;
            let share = a.b.div(hit, count)?;
            let part = a.b.mul(d, share)?;
            a.b.emit(sum(), &[part])
        })
        .note("ties share equally"),
    }
}

pub(super) fn all_gather(axis: &AxisName, dim: usize) -> Rule<'_> {
    Rule::linear(Linear::All, move |a, _, ct| a.b.emit(Op::ReduceScatter { axis: axis.clone(), dim }, &[ct]))
}

pub(super) fn reduce_scatter(axis: &AxisName, dim: usize) -> Rule<'_> {
    Rule::linear(Linear::All, move |a, _, ct| a.b.emit(Op::AllGather { axis: axis.clone(), dim }, &[ct]))
}

pub(super) fn all_to_all(axis: &AxisName, split: usize, concat: usize) -> Rule<'_> {
    Rule::linear(Linear::All, move |a, _, ct| {
        a.b.emit(Op::AllToAll { axis: axis.clone(), split: concat, concat: split }, &[ct])
    })
}

pub(super) fn ppermute<'a>(axis: &'a AxisName, pairs: &'a [(usize, usize)]) -> Rule<'a> {
    Rule::linear(Linear::All, |a, _, ct| {
        let back = pairs.iter().map(|&(from, to)| (to, from)).collect();
        a.b.emit(Op::Ppermute { axis: axis.clone(), pairs: back }, &[ct])
    })
}
