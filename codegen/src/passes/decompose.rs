//! Ops that no kernel kind has, or not on this target, written in others.
//!
//! * A `concat` of more operands than a kernel may bind becomes a tree of concats.
//! * A `pow` whose exponent is a known whole number becomes products by repeated squaring: shaders take powers through
//!   logarithms, which are NaN for negative bases.

use super::rebuild;
use crate::{InStage, Result, Stage, Target};
use dnx_ir::{BinaryOp, Builder, Func, Node, Op, ValueId};

/// Whole exponents up to this are products.
const GREATEST_POWER: f64 = 64.0;

/// The function in ops that kernels have.
///
/// # Errors
/// An ill-typed node.
pub fn decompose(func: &Func, target: &Target) -> Result<Func> {
    // One binding is the result's.
    let most = target.storage_buffers().saturating_sub(1).max(2);
    rebuild(func, |b, node, operands| one(b, node, operands, most)).in_stage(Stage::Decompose)
}

fn one(b: &mut Builder, node: &Node, v: &[ValueId], most: usize) -> dnx_ir::Result<Vec<ValueId>> {
    b.set_loc(node.loc.clone());
    match &node.op {
        Op::Concat { dim } if v.len() > most => Ok(vec![concat(b, *dim, v, most)?]),
        Op::Binary(BinaryOp::Pow) => match splat(b, v[1]) {
            Some(n) if n.fract() == 0.0 && n != 0.0 && n.abs() <= GREATEST_POWER => Ok(vec![power(b, v[0], n)?]),
            _ => b.emit_multi(node.op.clone(), v),
        },
        op => b.emit_multi(op.clone(), v),
    }
}

fn concat(b: &mut Builder, dim: usize, parts: &[ValueId], most: usize) -> dnx_ir::Result<ValueId> {
    let mut parts = parts.to_vec();
    while parts.len() > most {
        let mut joined = Vec::with_capacity(parts.len().div_ceil(most));
        for group in parts.chunks(most) {
            joined.push(if group.len() == 1 { group[0] } else { b.emit(Op::Concat { dim }, group)? });
        }
        parts = joined;
    }
    b.emit(Op::Concat { dim }, &parts)
}

fn splat(b: &Builder, v: ValueId) -> Option<f64> {
    let node = b.func().def(v);
    match &node.op {
        Op::Const(a) => a.as_splat().map(|s| s.to_f64()),
        Op::Broadcast { .. } => splat(b, node.operands[0]),
        _ => None,
    }
}

fn power(b: &mut Builder, x: ValueId, n: f64) -> dnx_ir::Result<ValueId> {
    let (mut bits, mut square, mut product) = (n.abs() as u32, x, None);
    while bits > 0 {
        if bits & 1 == 1 {
            product = Some(match product {
                Some(p) => b.mul(p, square)?,
                None => square,
            });
        }
        bits >>= 1;
        if bits > 0 {
            square = b.mul(square, square)?;
        }
    }
    let product = product.unwrap_or(x);
    if n > 0.0 {
        return Ok(product);
    }
    let one = b.full_like(x, 1.0)?;
    b.div(one, product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GpuLimits;
    use crate::passes::canonical::canonical;
    use dnx_ir::interp::{Precision, eval};
    use dnx_ir::{Array, Graph, Type};

    #[test]
    fn wide_concats_become_trees_that_fit_the_bindings() {
        let g = Graph::new("f");
        let parts: Vec<_> = (0..20).map(|i| g.param(&format!("p{i}"), Type::f32([i % 3 + 1, 2]))).collect();
        let f = g.finish(&[g.concat(&parts, 0)]).unwrap();
        let target = Target::Gpu(GpuLimits { storage_buffers: 8, ..GpuLimits::default() });
        let d = decompose(&f, &target).unwrap();
        assert!(d.nodes.iter().all(|n| n.operands.len() <= 7));
        assert_eq!(decompose(&f, &Target::Cpu).unwrap(), f);
        let args: Vec<Array> = (0..20)
            .map(|i| Array::splat([i % 3 + 1, 2], dnx_ir::Scalar::from_f64(dnx_ir::DType::F32, i as f64)))
            .collect();
        assert_eq!(eval(&f, &args, Precision::F32).unwrap(), eval(&d, &args, Precision::F32).unwrap());
    }

    #[test]
    fn whole_powers_are_products_also_of_negative_bases() {
        for n in [4.0, 5.0, 7.0, -3.0, 64.0] {
            let g = Graph::new("f");
            let x = g.param("x", Type::f32([3]));
            let f = g.finish(&[x.pow(x.full_like(n))]).unwrap();
            let d = decompose(&f, &Target::Cpu).unwrap();
            assert!(d.nodes.iter().all(|n| n.op != Op::Binary(BinaryOp::Pow) || n.operands.is_empty()));
            let x = [-1.5f64, 0.5, 1.25];
            let got = eval(&d, &[Array::f32([3], &x.map(|x| x as f32))], Precision::F64).unwrap();
            for (got, x) in got[0].to_f64_vec().iter().zip(x) {
                assert!((got / x.powf(n) - 1.0).abs() < 1e-12, "{x}^{n} = {got}");
            }
        }
    }

    #[test]
    fn other_powers_stay() {
        for n in [0.3, 65.0] {
            let g = Graph::new("f");
            let x = g.param("x", Type::f32([3]));
            let f = canonical(&g.finish(&[x.pow(x.full_like(n))]).unwrap()).unwrap();
            assert_eq!(decompose(&f, &Target::Cpu).unwrap(), f);
        }
    }
}
