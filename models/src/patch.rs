//! Pictures to tokens and back. Pictures are `[B, H, W, C]`; token `i` is patch `i` in row-major order.

use dnx_ir::Tensor;

/// `[B, H, W, C] -> [B, T, C p p]`: one row per patch in the order channel, row, column, which is how a
/// convolution's weight `[D, C, p, p]` flattens.
pub fn patchify(x: Tensor<'_>, p: usize) -> Tensor<'_> {
    let (b, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    if p == 0 || h % p != 0 || w % p != 0 {
        x.graph().fail(format!("patches of {p}x{p} do not tile a picture of {h}x{w}"));
        return x;
    }
    x.reshape(&[b, h / p, p, w / p, p, c]).transpose(&[0, 1, 3, 5, 2, 4]).reshape(&[b, h / p * (w / p), c * p * p])
}

/// `[B, T, p p C] -> [B, H, W, C]` for patches whose order is row, column, channel (that of DiT's last layer).
pub fn unpatchify(x: Tensor<'_>, height: usize, width: usize, p: usize) -> Tensor<'_> {
    let (h, w) = (height / p.max(1), width / p.max(1));
    let (b, c) = (x.dim(0), x.dim(2) / (p * p).max(1));
    x.reshape(&[b, h, w, p, p, c]).transpose(&[0, 1, 3, 2, 4, 5]).reshape(&[b, height, width, c])
}
