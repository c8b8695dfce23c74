//! Attention over heads; see [`dnx_ir::attention`] for what it means and what a device may claim.

use dnx_ir::Tensor;

/// `softmax(scale q k^T) v` per head. `q` is `[B, Tq, H, d]`, `k` and `v` `[B, Tk, H, d]`; the result is like `q`.
pub fn attention<'g>(q: Tensor<'g>, k: Tensor<'g>, v: Tensor<'g>, scale: f64) -> Tensor<'g> {
    attention_with(q, k, v, None, scale, false)
}

/// [`attention`] with a `bias` that broadcasts to `[B, H, Tq, Tk]` added to the scores (0 and
/// [`dnx_ir::attention::HIDDEN`] for a mask); if `causal`, query `i` sees the keys up to `i` only.
pub fn attention_with<'g>(
    q: Tensor<'g>,
    k: Tensor<'g>,
    v: Tensor<'g>,
    bias: Option<Tensor<'g>>,
    scale: f64,
    causal: bool,
) -> Tensor<'g> {
    let bias = bias.map(|b| {
        let missing = 4usize.saturating_sub(b.rank());
        b.reshape(&[&vec![1; missing][..], &b.dims()].concat())
    });
    dnx_ir::attention::attention(q, k, v, bias, scale, causal).0
}

/// `[B, T, H d] -> [B, T, H, d]`.
pub fn split_heads(x: Tensor<'_>, heads: usize) -> Tensor<'_> {
    let (b, t, width) = (x.dim(0), x.dim(1), x.dim(2));
    x.reshape(&[b, t, heads, width / heads.max(1)])
}

/// `[B, T, H, d] -> [B, T, H d]`.
pub fn join_heads(x: Tensor<'_>) -> Tensor<'_> {
    let (b, t, h, d) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    x.reshape(&[b, t, h * d])
}
