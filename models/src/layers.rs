//! Layers: functions of a scope and tensors. Activations are `[.., width]`; every layer acts on the last dim.

use crate::layout::{settled, whole_rows};
use crate::{Init, Scope};
use dnx_ir::{DotDims, Tensor};
use serde::{Deserialize, Serialize};

/// `y = x W^T + b`: weight `[out, in]`, bias `[out]` starting at zero. Where inputs are split over devices, so is the
/// sum, which is taken before the bias is added.
pub fn linear<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, out: usize, weight: Init) -> Tensor<'g> {
    linear_no_bias(s, x, out, weight) + s.param("bias", &[out], Init::Zeros)
}

/// `y = x W^T`: weight `[out, in]`.
pub fn linear_no_bias<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, out: usize, weight: Init) -> Tensor<'g> {
    settled(x.matmul_t(s.param("weight", &[out, x.dim(-1)], weight)))
}

/// `parts` layers of `x` `[B, T, in]` with `out` outputs each, in one: weight `[parts out, in]`, bias `[parts out]`.
pub fn linear_stack<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, parts: usize, out: usize) -> Vec<Tensor<'g>> {
    let (width, all) = (x.dim(-1), parts * out);
    let weight = s.stack("weight", &[all, width], Init::xavier_uniform(width, all), parts);
    let bias = s.stack("bias", &[all], Init::Zeros, parts);
    if weight.rank() == 2 {
        return (x.matmul_t(weight) + bias).split(2, parts);
    }
    let dims = DotDims { lhs_contract: vec![2], rhs_contract: vec![2], ..DotDims::default() };
    let y = x.dot(weight, dims) + bias;
    y.split(2, parts).into_iter().map(|y| y.reshape(&[x.dim(0), x.dim(1), out])).collect()
}

/// `parts` modulations `[B, out]` of samples with the condition `c` `[B, in]`, starting at zero: weight `[parts out, in]`, bias
/// `[parts out]`. Where their rows are split over devices, the modulations are gathered.
pub fn modulations<'g>(s: &Scope<'_, 'g>, c: Tensor<'g>, parts: usize, out: usize) -> Vec<Tensor<'g>> {
    let (width, all) = (c.dim(-1), parts * out);
    let weight = s.stack("weight", &[all, width], Init::Zeros, parts);
    let bias = s.stack("bias", &[all], Init::Zeros, parts);
    if weight.rank() == 2 {
        return (c.matmul_t(weight) + bias).split(1, parts);
    }
    let dims = DotDims { lhs_contract: vec![1], rhs_contract: vec![2], ..DotDims::default() };
    let y = whole_rows(c.dot(weight, dims) + bias);
    y.split(1, parts).into_iter().map(|y| y.reshape(&[c.dim(0), out])).collect()
}

/// [`linear`] with a Xavier-uniform weight.
pub fn linear_xavier<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, out: usize) -> Tensor<'g> {
    linear(s, x, out, Init::xavier_uniform(x.dim(-1), out))
}

/// `(x - mean) / sqrt(var + eps)` over the last dim, without weights.
pub fn normalize(x: Tensor<'_>, eps: f64) -> Tensor<'_> {
    let last = x.rank().saturating_sub(1);
    let centred = x - x.mean(&[last]).unsqueeze(last);
    let var = centred.square().mean(&[last]).unsqueeze(last);
    centred * (var + eps).rsqrt()
}

/// Layer normalisation with weight and bias `[width]`.
pub fn layer_norm<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, eps: f64) -> Tensor<'g> {
    let width = x.dim(-1);
    normalize(x, eps) * s.param("weight", &[width], Init::Ones) + s.param("bias", &[width], Init::Zeros)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dim, times weight `[width]`.
pub fn rms_norm<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, eps: f64) -> Tensor<'g> {
    let last = x.rank().saturating_sub(1);
    let mean = x.square().mean(&[last]).unsqueeze(last);
    x * (mean + eps).rsqrt() * s.param("weight", &[x.dim(-1)], Init::Ones)
}

/// Group normalisation of `[B, .., C]`: statistics over all middle dims and the channels of a group; weight and
/// bias `[C]`.
pub fn group_norm<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, groups: usize, eps: f64) -> Tensor<'g> {
    let dims = x.dims();
    let channels = x.dim(-1);
    if dims.len() < 2 || groups == 0 || !channels.is_multiple_of(groups) {
        s.graph().fail(format!("{groups} groups do not divide the {channels} channels of {dims:?}"));
        return x;
    }
    let middle: usize = dims[1..dims.len() - 1].iter().product();
    let grouped = x.reshape(&[dims[0], middle, groups, channels / groups]);
    let mean = |t: Tensor<'g>| t.mean(&[1, 3]).reshape(&[dims[0], 1, groups, 1]);
    let centred = grouped - mean(grouped);
    let y = centred * (mean(centred.square()) + eps).rsqrt();
    y.reshape(&dims) * s.param("weight", &[channels], Init::Ones) + s.param("bias", &[channels], Init::Zeros)
}

/// `x (1 + scale) + shift`, the adaptive layer norm's modulation: `x` is `[B, T, D]`, the others `[B, D]`.
pub fn modulate<'g>(x: Tensor<'g>, shift: Tensor<'g>, scale: Tensor<'g>) -> Tensor<'g> {
    x * (scale.unsqueeze(1) + 1.0) + shift.unsqueeze(1)
}

/// Softmax over the last dim. The maximum is subtracted first and carries no gradient: the result does not
/// depend on it.
pub fn softmax(x: Tensor<'_>) -> Tensor<'_> {
    let last = x.rank().saturating_sub(1);
    let e = (x - x.stop_gradient().max(&[last]).unsqueeze(last)).exp();
    e / e.sum(&[last]).unsqueeze(last)
}

/// Pointwise nonlinearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)` with the error function.
    Gelu,
    /// GELU's usual approximation with `tanh`.
    GeluTanh,
}

impl Activation {
    /// Applies it.
    pub fn apply(self, x: Tensor<'_>) -> Tensor<'_> {
        match self {
            Activation::Relu => x.maximum(x.full_like(0.0)),
            Activation::Silu => x.silu(),
            Activation::Gelu => x * 0.5 * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0),
            Activation::GeluTanh => {
                let inner = (x + 0.044715 * x * x * x) * (2.0 / std::f64::consts::PI).sqrt();
                x * 0.5 * (inner.tanh() + 1.0)
            }
        }
    }
}

/// Two linear layers `fc1`, `fc2` with an activation between, back to the width of `x`.
pub fn mlp<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, hidden: usize, activation: Activation) -> Tensor<'g> {
    let h = activation.apply(s.enter("fc1", |s| linear_xavier(s, x, hidden)));
    s.enter("fc2", |s| linear_xavier(s, h, x.dim(-1)))
}
