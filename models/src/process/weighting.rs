//! How squared errors are weighted over noise levels. A weighting is stated for the error of a fixed quantity
//! and turned into a factor on the squared error of the network's own output, which is never badly scaled.

use super::path::Level;
use super::prediction::Coefficients;
use super::real::Real;
use serde::{Deserialize, Serialize};

/// A weighting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Weighting {
    /// 1 on the network's own output.
    Uniform,
    /// 1 on the noise, whatever is predicted: the same as `sigma^2` on the score and as SNR on x0.
    #[serde(alias = "sigma_squared", alias = "snr")]
    Noise,
    /// `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2` on x0 (with EDM's preconditioning: 1 on the output).
    Edm,
    /// `min(SNR, gamma)` on x0, with `SNR = (alpha / sigma)^2` (Hang et al., "Min-SNR", 2023).
    MinSnr {
        /// The bound.
        gamma: f64,
    },
}

impl Weighting {
    /// The factor on the squared error of the network's output at a level.
    pub fn factor<R: Real>(self, level: &Level<R>, coefficients: &Coefficients<R>, sigma_data: f64) -> R {
        let Level { alpha, sigma, .. } = *level;
        let det = coefficients.determinant(level);
        let one = sigma.constant(1.0);
        // Squared derivative of the estimates by the output.
        let x0 = (sigma / det) * (sigma / det);
        let noise = (alpha / det) * (alpha / det);
        let snr = (alpha / sigma) * (alpha / sigma);
        match self {
            Weighting::Uniform => one,
            Weighting::Noise => noise,
            Weighting::Edm => {
                let ratio = sigma / alpha;
                let (r2, d2) = (ratio * ratio, sigma_data * sigma_data);
                x0 * (r2 + d2) / (r2 * d2)
            }
            Weighting::MinSnr { gamma } => x0 * snr.min(one * gamma),
        }
    }
}
