//! Samplers whose steps are Gaussian: what particle methods and speculation need to know about a step beyond how to
//! make it.

use super::{Ddim, Ddpm, Renoise, Step};

/// A step's law: normal around `state x + data x0 + noise n`, with standard deviation `std` in every element, where
/// `x0` and `n` are the estimate at the state `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLaw {
    /// Share of the state.
    pub state: f64,
    /// Share of the estimated data.
    pub data: f64,
    /// Share of the estimated noise.
    pub noise: f64,
    /// Standard deviation.
    pub std: f64,
}

impl StepLaw {
    /// The mean of one element.
    pub fn mean(&self, x: f64, x0: f64, noise: f64) -> f64 {
        self.state * x + self.data * x0 + self.noise * noise
    }
}

/// A sampler with Gaussian steps.
pub trait GaussianStep {
    /// The law of a step. Its deviation is zero in steps that draw nothing, as most last ones.
    fn law(&self, step: &Step) -> StepLaw;
}

impl GaussianStep for Ddpm {
    fn law(&self, step: &Step) -> StepLaw {
        self.coefficients(step)
    }
}

impl GaussianStep for Ddim {
    fn law(&self, step: &Step) -> StepLaw {
        self.coefficients(step)
    }
}

impl GaussianStep for Renoise {
    fn law(&self, step: &Step) -> StepLaw {
        self.coefficients(step)
    }
}
