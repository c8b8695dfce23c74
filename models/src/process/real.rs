//! Numbers that formulas of a process are written in once: `f64` on the host, where samplers need coefficients,
//! and [`Tensor`] in a graph, where the loss needs them per sample.

use dnx_ir::{Array, DType, Tensor};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A real number, or a vector of them with elementwise arithmetic.
pub trait Real:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Add<f64, Output = Self>
    + Sub<f64, Output = Self>
    + Mul<f64, Output = Self>
    + Div<f64, Output = Self>
{
    /// The same number everywhere.
    fn constant(self, value: f64) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Exponential.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Sine.
    fn sin(self) -> Self;
    /// Cosine.
    fn cos(self) -> Self;
    /// `ln(1 + self)` without cancellation near zero.
    fn ln_1p(self) -> Self;
    /// How many entries of an ascending table are less.
    fn rank_in(self, table: &[f64]) -> Self;
    /// Rounded down.
    fn floor(self) -> Self;
    /// Inverse tangent.
    fn atan(self) -> Self;
    /// The smaller of the two.
    fn min(self, other: Self) -> Self;
    /// `1 - exp(-self)` without cancellation near zero.
    fn one_minus_exp_neg(self) -> Self;
    /// The entry of a table at this index, which is rounded down and kept within the table.
    fn lookup(self, table: &[f64]) -> Self;
}

impl Real for f64 {
    fn constant(self, value: f64) -> f64 {
        value
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn exp(self) -> f64 {
        libm::exp(self)
    }
    fn ln(self) -> f64 {
        libm::log(self)
    }
    fn sin(self) -> f64 {
        libm::sin(self)
    }
    fn cos(self) -> f64 {
        libm::cos(self)
    }
    fn ln_1p(self) -> f64 {
        libm::log1p(self)
    }
    fn rank_in(self, table: &[f64]) -> f64 {
        table.partition_point(|&x| x < self) as f64
    }
    fn floor(self) -> f64 {
        f64::floor(self)
    }
    fn atan(self) -> f64 {
        libm::atan(self)
    }
    fn min(self, other: f64) -> f64 {
        f64::min(self, other)
    }
    fn one_minus_exp_neg(self) -> f64 {
        -libm::expm1(-self)
    }
    fn lookup(self, table: &[f64]) -> f64 {
        table[(self.max(0.0) as usize).min(table.len() - 1)]
    }
}

impl Real for Tensor<'_> {
    fn constant(self, value: f64) -> Self {
        self.full_like(value)
    }
    fn sqrt(self) -> Self {
        Tensor::sqrt(self)
    }
    fn exp(self) -> Self {
        Tensor::exp(self)
    }
    fn ln(self) -> Self {
        self.log()
    }
    fn sin(self) -> Self {
        Tensor::sin(self)
    }
    fn cos(self) -> Self {
        Tensor::cos(self)
    }
    fn ln_1p(self) -> Self {
        // 2 artanh(h) with h = x / (2 + x), by its series where the sum with 1 would lose digits.
        let h = self / (self + 2.0);
        let h2 = h * h;
        let series = h * ((h2 * (1.0 / 5.0) + 1.0 / 3.0) * h2 + 1.0) * 2.0;
        h.abs().lt(h.full_like(0.05)).select(series, (self + 1.0).maximum(self.full_like(1e-38)).log())
    }
    fn rank_in(self, table: &[f64]) -> Self {
        let table: Vec<f32> = table.iter().map(|&x| x as f32).collect();
        let table = self.graph().constant(Array::f32([1, table.len()], &table));
        let below = table.lt(self.unsqueeze(1)).convert(DType::F32);
        below.sum(&[1])
    }
    fn floor(self) -> Self {
        Tensor::floor(self)
    }
    fn atan(self) -> Self {
        // Halving the angle three times leaves |x| <= tan(pi / 16), where six terms of the series are exact to 1e-10.
        let x = (0..3).fold(self, |x, _| x / ((x * x + 1.0).sqrt() + 1.0));
        let x2 = x * x;
        let series = [9.0, 7.0, 5.0, 3.0, 1.0].iter().fold(x.full_like(-1.0 / 11.0), |sum, k| {
            let sign = if (k - 1.0) % 4.0 == 0.0 { 1.0 } else { -1.0 };
            sum * x2 + sign / k
        });
        series * x * 8.0
    }
    fn min(self, other: Self) -> Self {
        self.minimum(other)
    }
    fn one_minus_exp_neg(self) -> Self {
        // With h = tanh(y / 2), exp(-y) = (1 - h) / (1 + h).
        let h = (self * 0.5).tanh();
        h * 2.0 / (h + 1.0)
    }
    fn lookup(self, table: &[f64]) -> Self {
        let table: Vec<f32> = table.iter().map(|&x| x as f32).collect();
        let table = self.graph().constant(Array::f32([table.len()], &table));
        table.take(self.floor().convert(DType::I32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::interp::{Precision, eval};
    use dnx_ir::{Graph, Type};

    /// Both implementations of a function agree on these arguments.
    fn agree(xs: &[f64], on_host: fn(f64) -> f64, in_graph: for<'g> fn(Tensor<'g>) -> Tensor<'g>, tolerance: f64) {
        let g = Graph::new("f");
        let x = g.param("x", Type::f32([xs.len()]));
        let f = g.finish(&[in_graph(x)]).unwrap();
        let arg = Array::f32([xs.len()], &xs.iter().map(|&x| x as f32).collect::<Vec<_>>());
        let got = eval(&f, &[arg], Precision::F32).unwrap()[0].to_f64_vec();
        for (x, got) in xs.iter().zip(got) {
            let want = on_host(*x as f32 as f64);
            assert!((got - want).abs() <= tolerance * want.abs().max(1e-30), "at {x}: {got}, not {want}");
        }
    }

    #[test]
    fn host_and_graph_agree() {
        let xs = [1e-6, 1e-3, 0.04, 0.2, 0.9, 1.0, 3.0, 160.0, 1e5];
        agree(&xs, Real::atan, |x| Real::atan(x), 1e-6);
        agree(&xs, Real::ln_1p, |x| Real::ln_1p(x), 1e-6);
        agree(&[-0.9, -0.3, -1e-4], Real::ln_1p, |x| Real::ln_1p(x), 2e-6);
        agree(&[-0.5, -20.0], Real::atan, |x| Real::atan(x), 1e-6);
        agree(&[0.5, 1.5, 9.0], |x| x.rank_in(&[1.0, 2.0]), |x| x.rank_in(&[1.0, 2.0]), 0.0);
        agree(&xs, Real::one_minus_exp_neg, |x| Real::one_minus_exp_neg(x), 2e-6);
    }
}
