//! Ops that read or write at computed places: linear in the values, constant in the places.

use super::{Linear, Rule};
use dnx_ir::sharding::cotangent_type;
use dnx_ir::{Op, Sharding};

/// The cotangent at its place among zeros.
pub(super) fn dynamic_slice() -> Rule<'static> {
    Rule::linear(Linear::Only(&[0]), |a, _, ct| {
        let zeros = a.zero_cotangent(0)?;
        a.b.emit(Op::DynamicUpdateSlice, &[zeros, ct, a.x[1]])
    })
}

/// The operand gets the cotangent with a hole, the update what was in it.
pub(super) fn dynamic_update_slice() -> Rule<'static> {
    Rule::linear(Linear::Only(&[0, 1]), |a, i, ct| {
        if i == 1 {
            return a.b.emit(Op::DynamicSlice { sizes: a.ty[1].dims.clone() }, &[ct, a.x[2]]);
        }
        let hole = a.zero_cotangent(1)?;
        a.again(&[ct, hole, a.x[2]])
    })
}

/// The cotangent added to zeros at the same places. Indices split over devices give a sum yet to be taken.
pub(super) fn take(dim: usize) -> Rule<'static> {
    Rule::linear(Linear::Only(&[0]), move |a, _, ct| {
        let placed = &a.b.ty(ct).sharding;
        let split: Vec<_> = (dim..dim + a.ty[1].rank()).flat_map(|d| placed.dim(d)).cloned().collect();
        let ty = cotangent_type(&a.ty[0]);
        let sharding = Sharding::new(ty.sharding.dims.clone(), split);
        let zeros = a.b.full(&ty.with_sharding(sharding), 0.0)?;
        a.b.emit(Op::ScatterAdd { dim }, &[zeros, a.x[1], ct])
    })
}

pub(super) fn scatter_add(dim: usize) -> Rule<'static> {
    let jvp = Rule::joint(|a, d| match (d[0], d[2]) {
        (d0, None) => Ok(d0),
        (d0, Some(d2)) => {
            let base = if let Some(d0) = d0 { d0 } else { a.zero_tangent(0)? };
            a.again(&[base, a.x[1], d2]).map(Some)
        }
    });
    Rule {
        transpose: Some((
            Linear::Only(&[0, 2]),
            Box::new(move |a, i, ct| if i == 0 { Ok(ct) } else { a.b.emit(Op::Take { dim }, &[ct, a.x[1]]) }),
        )),
        ..jvp
    }
}
