//! Reductions over dims.

use super::{At, Linear, Rule};
use dnx_ir::{CmpOp, ReduceKind, Result, ValueId};

pub(super) fn reduce(kind: ReduceKind, dims: &[usize]) -> Rule<'_> {
    match kind {
        ReduceKind::Sum => Rule::linear(Linear::All, |a, _, ct| spread(a, ct, dims)),
        // The sum of d over the greatest elements, divided by their number.
        ReduceKind::Max => Rule::terms(|a, _, d| {
            let greatest = spread(a, a.y, dims)?;
            let hit = a.b.compare(CmpOp::Eq, a.x[0], greatest)?;
            let hit = a.b.convert(hit, a.ty[0].dtype)?;
            let count = a.b.reduce_sum(hit, dims)?;
            let count = spread(a, count, dims)?;
            let share = a.b.div(hit, count)?;
            let part = a.b.mul(d, share)?;
            a.b.reduce_sum(part, dims)
        })
        .note("ties share equally"),
    }
}

/// `v` repeated along the reduced `dims`, to the operand's dims.
fn spread(a: &mut At, v: ValueId, dims: &[usize]) -> Result<ValueId> {
    let kept: Vec<usize> = (0..a.ty[0].rank()).filter(|d| !dims.contains(d)).collect();
    if dims.is_empty() { Ok(v) } else { a.b.broadcast(v, &a.ty[0].dims, &kept) }
}
