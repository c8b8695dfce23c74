//! How squared errors are weighted over noise levels. A weighting is stated for the error of a fixed quantity
//! and turned into a factor on the squared error of the network's own output, which is never badly scaled.

use super::path::Level;
use super::prediction::Coefficients;
use super::real::Real;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// A weighting. `SNR` is `(alpha / sigma)^2`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Weighting {
    /// 1 on the network's own output.
    Uniform,
    /// 1 on the noise, whatever is predicted: the same as `sigma^2` on the score and as SNR on x0.
    #[serde(alias = "sigma_squared", alias = "snr")]
    Noise,
    /// 1 on x0: of a velocity network SD3's `precondition_outputs`.
    Data,
    /// 1 on the path's velocity: `(sigma' - alpha' sigma / alpha)^2` on the noise.
    Velocity,
    /// `g^2` on the score, the diffusion coefficient of the forward process: bounds the likelihood (Song et al.,
    /// "Maximum likelihood training of score-based diffusion models", 2021).
    Likelihood,
    /// `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2` on x0 (with EDM's preconditioning: 1 on the output).
    Edm,
    /// `min(SNR, gamma)` on x0 (Hang et al., "Min-SNR", 2023): `/ SNR` on the noise, `/ (SNR + 1)` on the angular `v`.
    MinSnr {
        /// The bound.
        gamma: f64,
    },
    /// `(k + SNR)^-gamma` on the noise (Choi et al., "Perception prioritized training", 2022).
    P2 {
        /// Added to the SNR.
        #[serde(default = "one")]
        k: f64,
        /// The power.
        #[serde(default = "one")]
        gamma: f64,
    },
    /// `sigma^-2` on the velocity (Esser et al., 2024).
    SigmaSqrt,
    /// `2 / (pi (1 - 2 sigma + 2 sigma^2))` on the velocity (Esser et al., 2024).
    Cosmap,
}

fn one() -> f64 {
    1.0
}

impl Weighting {
    /// Whether it is stated for the velocity, which only continuous paths have.
    pub fn needs_velocity(self) -> bool {
        match self {
            Weighting::Velocity | Weighting::Likelihood | Weighting::SigmaSqrt | Weighting::Cosmap => true,
            Weighting::Uniform | Weighting::Noise | Weighting::Data | Weighting::Edm => false,
            Weighting::MinSnr { .. } | Weighting::P2 { .. } => false,
        }
    }

    /// The factor on the squared error of the network's output at a level.
    pub fn factor<R: Real>(self, level: &Level<R>, coefficients: &Coefficients<R>, sigma_data: f64) -> R {
        let Level { alpha, sigma, .. } = *level;
        let det = coefficients.determinant(level);
        let one = sigma.constant(1.0);
        let square = |x: R| x * x;
        // Squared derivatives of the estimates by the output.
        let x0 = square(sigma / det);
        let noise = square(alpha / det);
        let snr = square(alpha / sigma);
        let (alpha_rate, sigma_rate) = level.rates.unwrap_or((one * f64::NAN, one * f64::NAN));
        // alpha' (-sigma / det) + sigma' (alpha / det), in which nothing is divided by alpha.
        let wronskian = alpha * sigma_rate - sigma * alpha_rate;
        let velocity = square(wronskian / det);
        match self {
            Weighting::Uniform => one,
            Weighting::Noise => noise,
            Weighting::Data => x0,
            Weighting::Velocity => velocity,
            // g^2 = 2 (sigma sigma' - alpha' sigma^2 / alpha); on the noise it is divided by sigma^2.
            Weighting::Likelihood => wronskian * alpha * 2.0 / (sigma * square(det)),
            Weighting::Edm => {
                // 1 / sigma_data^2 + 1 / ratio^2, which holds where nothing of the data is left.
                x0 * (snr + 1.0 / (sigma_data * sigma_data))
            }
            Weighting::MinSnr { gamma } => x0 * snr.min(one * gamma),
            Weighting::P2 { k, gamma } => noise * ((snr + k).ln() * -gamma).exp(),
            Weighting::SigmaSqrt => velocity / square(sigma),
            Weighting::Cosmap => velocity * (2.0 / PI) / (one - sigma * 2.0 + square(sigma) * 2.0),
        }
    }
}
