//! Attention as a composite: a named op whose meaning is its decomposition, so that a device may claim it.

use crate::layers::softmax;
use dnx_ir::{AttrValue, DType, DotDims, Func, Graph, Result, Scalar, Tensor, Type};
use std::sync::Arc;

/// `softmax(scale q k^T) v` per head. `q` is `[B, H, Tq, d]`, `k` and `v` `[B, H, Tk, d]`; the result is like `q`.
pub fn attention<'g>(q: Tensor<'g>, k: Tensor<'g>, v: Tensor<'g>, scale: f64) -> Tensor<'g> {
    let g = q.graph();
    match decomposition(&[q, k, v].map(|t| t.ty()), scale) {
        Ok(func) => {
            let attrs = vec![("scale".to_string(), AttrValue::Float(Scalar::from_f64(DType::F64, scale)))];
            g.composite("attention", attrs, &Arc::new(func), &[q, k, v])[0]
        }
        Err(error) => {
            g.fail(error.to_string());
            q
        }
    }
}

/// The function that defines `attention` on operands of these types.
fn decomposition(types: &[Type; 3], scale: f64) -> Result<Func> {
    let g = Graph::new("attention");
    let [q, k, v] = [("q", 0), ("k", 1), ("v", 2)].map(|(name, i)| g.param(name, types[i].clone()));
    let heads = |lhs: usize, rhs: usize| DotDims {
        lhs_batch: vec![0, 1],
        rhs_batch: vec![0, 1],
        lhs_contract: vec![lhs],
        rhs_contract: vec![rhs],
    };
    let weights = softmax(q.dot(k, heads(3, 3)) * scale);
    g.finish(&[weights.dot(v, heads(3, 2))])
}

/// `[B, T, H d] -> [B, H, T, d]`.
pub fn split_heads(x: Tensor<'_>, heads: usize) -> Tensor<'_> {
    let (b, t, width) = (x.dim(0), x.dim(1), x.dim(2));
    x.reshape(&[b, t, heads, width / heads.max(1)]).transpose(&[0, 2, 1, 3])
}

/// `[B, H, T, d] -> [B, T, H d]`.
pub fn join_heads(x: Tensor<'_>) -> Tensor<'_> {
    let (b, h, t, d) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    x.transpose(&[0, 2, 1, 3]).reshape(&[b, t, h * d])
}
