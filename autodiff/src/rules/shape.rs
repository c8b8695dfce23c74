//! Ops that move elements: all linear, each the transpose of another.

use super::{Linear, Rule};
use dnx_ir::Op;

pub(super) fn reshape() -> Rule<'static> {
    Rule::linear(Linear::All, |a, _, ct| a.b.reshape(ct, &a.ty[0].dims))
}

pub(super) fn transpose(perm: &[usize]) -> Rule<'_> {
    Rule::linear(Linear::All, |a, _, ct| {
        let mut inverse = vec![0; perm.len()];
        perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
        a.b.transpose(ct, &inverse)
    })
}

/// Sums over every result dim that is new or was expanded from size 1.
pub(super) fn broadcast<'a>(dims: &'a [usize], map: &'a [usize]) -> Rule<'a> {
    Rule::linear(Linear::All, |a, _, ct| {
        let from = |d: usize| map.iter().position(|&m| m == d).map(|i| a.ty[0].dims[i]);
        let repeated: Vec<usize> = (0..dims.len()).filter(|&d| from(d) != Some(dims[d])).collect();
        let sum = a.b.reduce_sum(ct, &repeated)?;
        a.b.reshape(sum, &a.ty[0].dims)
    })
}

/// Zeros around and, for a stride, between.
pub(super) fn slice<'a>(start: &'a [usize], stride: &'a [usize]) -> Rule<'a> {
    Rule::linear(Linear::All, |a, _, ct| {
        let (whole, part) = (&a.ty[0].dims, a.b.dims(ct).to_vec());
        if part.contains(&0) {
            return a.zero_cotangent(0);
        }
        let covered = |d: usize| start[d] + (part[d] - 1) * stride[d] + 1;
        let high = (0..part.len()).map(|d| whole[d] - covered(d)).collect();
        let interior = stride.iter().map(|s| s - 1).collect();
        let zero = a.b.scalar(a.ty[0].dtype, 0.0);
        a.b.emit(Op::Pad { low: start.to_vec(), high, interior }, &[ct, zero])
    })
}

/// The operand's elements back; the padding value gets the sum of all the others.
pub(super) fn pad<'a>(low: &'a [usize], interior: &'a [usize]) -> Rule<'a> {
    Rule::linear(Linear::Only(&[0, 1]), |a, i, ct| {
        let n = &a.ty[0].dims;
        let limit = (0..n.len()).map(|d| low[d] + n[d] + n[d].saturating_sub(1) * interior[d]).collect();
        let stride = interior.iter().map(|k| k + 1).collect();
        let inner = a.b.emit(Op::Slice { start: low.to_vec(), limit, stride }, &[ct])?;
        if i == 0 {
            return Ok(inner);
        }
        let every: Vec<usize> = (0..n.len()).collect();
        let (all, inner) = (a.b.reduce_sum(ct, &every)?, a.b.reduce_sum(inner, &every)?);
        a.b.sub(all, inner)
    })
}

pub(super) fn concat(dim: usize) -> Rule<'static> {
    Rule::linear(Linear::All, move |a, i, ct| {
        let mut limit = a.b.dims(ct).to_vec();
        let (mut start, stride) = (vec![0; limit.len()], vec![1; limit.len()]);
        start[dim] = a.ty[..i].iter().map(|t| t.dims[dim]).sum();
        limit[dim] = start[dim] + a.ty[i].dims[dim];
        a.b.emit(Op::Slice { start, limit, stride }, &[ct])
    })
}

pub(super) fn reverse() -> Rule<'static> {
    Rule::linear(Linear::All, |a, _, ct| a.again(&[ct]))
}
