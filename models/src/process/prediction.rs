//! What a network's output `F` means, and how one meaning is turned into another.
//!
//! Every prediction is a fixed mixture of data and noise, `F = p x0 + q n`; together with `x = alpha x0 + sigma n`
//! that is a linear system of two equations, whose solution is the estimate of both. All conversions among x0,
//! noise, score, velocity and the angular `v` are this one solution.

use super::path::Level;
use super::real::Real;
use serde::{Deserialize, Serialize};

/// What the network is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The data.
    X0,
    /// The noise.
    Epsilon,
    /// The angular velocity `alpha n - sigma x0` (Salimans and Ho, 2022).
    V,
    /// The velocity of the path, `alpha' x0 + sigma' n`.
    Velocity,
    /// The score `-n / sigma`.
    Score,
    /// The score times sigma, `-n`: the network leaves the division to the process.
    ScaledScore,
}

/// How a network's input and output are scaled with the noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preconditioning {
    /// Not at all.
    None,
    /// So that input, target and the effect of errors have unit size at every level (Karras et al., "Elucidating
    /// the design space", 2022, table 1). Predicts x0.
    Edm,
}

/// `F = p x0 + q n`, and the factor of the network's input.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients<R> {
    /// Share of the data in the target.
    pub p: R,
    /// Share of the noise in the target.
    pub q: R,
    /// The network sees `c_in x`.
    pub c_in: R,
}

impl Prediction {
    /// The mixture that is predicted at a level. Discrete paths have no velocity, which [`super::Process`] refuses.
    pub fn coefficients<R: Real>(self, pre: Preconditioning, sigma_data: f64, level: &Level<R>) -> Coefficients<R> {
        let Level { alpha, sigma, .. } = *level;
        let [zero, one] = [0.0, 1.0].map(|c| sigma.constant(c));
        let plain = |p: R, q: R| Coefficients { p, q, c_in: one };
        match (pre, self) {
            (Preconditioning::Edm, _) => {
                // EDM's own case is alpha = 1; any other path is that one seen through x / alpha, sigma / alpha.
                let ratio = sigma / alpha;
                let r = (ratio * ratio + sigma_data * sigma_data).sqrt();
                Coefficients { p: ratio / (r * sigma_data), q: -(one * sigma_data) / r, c_in: one / (alpha * r) }
            }
            (Preconditioning::None, Prediction::X0) => plain(one, zero),
            (Preconditioning::None, Prediction::Epsilon) => plain(zero, one),
            (Preconditioning::None, Prediction::V) => plain(-sigma, alpha),
            (Preconditioning::None, Prediction::Velocity) => match level.rates {
                Some((alpha_rate, sigma_rate)) => plain(alpha_rate, sigma_rate),
                None => plain(one * f64::NAN, one * f64::NAN),
            },
            (Preconditioning::None, Prediction::Score) => plain(zero, -(one / sigma)),
            (Preconditioning::None, Prediction::ScaledScore) => plain(zero, -one),
        }
    }
}

impl<R: Real> Coefficients<R> {
    /// The determinant of the system; where it vanishes the output does not determine the data.
    pub fn determinant(&self, level: &Level<R>) -> R {
        level.alpha * self.q - level.sigma * self.p
    }

    /// `x0 = a x + b F` and `n = c x + d F`, as `[a, b, c, d]`.
    pub fn solve(&self, level: &Level<R>) -> [R; 4] {
        let det = self.determinant(level);
        [self.q / det, -level.sigma / det, -self.p / det, level.alpha / det]
    }
}
