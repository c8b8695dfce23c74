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
