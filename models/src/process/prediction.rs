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
    /// The input to unit size for data of unit size, `c_in = 1 / sqrt(alpha^2 + sigma^2)`: with `epsilon` or
    /// `scaled_score` on path `ve` the VP and VE columns of Karras et al., 2022, table 1.
    Input,
    /// So that input, target and the effect of errors have unit size at every level (Karras et al., "Elucidating
    /// the design space", 2022, table 1). Predicts x0.
    Edm,
    /// TrigFlow's: the network sees `x / sigma_data` and gives the velocity over `sigma_data`.
    Trig,
    /// As `edm`, shifted so that x0 is `x` itself at the least noise level: the boundary condition of consistency
    /// models (Song et al., 2023, appendix C). Predicts x0.
    Consistency,
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
    /// The solution where it is known in a form that holds at levels where `p` and `q` are infinite.
    inverse: Option<[R; 4]>,
}

impl Prediction {
    /// The mixture that is predicted at a level. Discrete paths have no velocity, which [`super::Process`] refuses.
    /// `sigma_min` is the least noise level.
    pub fn coefficients<R: Real>(
        self,
        pre: Preconditioning,
        sigma_data: f64,
        sigma_min: f64,
        level: &Level<R>,
    ) -> Coefficients<R> {
        let Level { alpha, sigma, .. } = *level;
        let one = sigma.constant(1.0);
        let scaled = |c_in: R| {
            let (p, q) = self.mixture(level);
            Coefficients { p, q, c_in, inverse: None }
        };
        match pre {
            Preconditioning::None => scaled(one),
            Preconditioning::Input => scaled(one / (alpha * alpha + sigma * sigma).sqrt()),
            Preconditioning::Trig => {
                let (p, q) = self.mixture(level);
                Coefficients { p: p / sigma_data, q: q / sigma_data, c_in: one / sigma_data, inverse: None }
            }
            Preconditioning::Edm => {
                // EDM's own case is alpha = 1; any other path is that one seen through x / alpha, sigma / alpha.
                let ratio = sigma / alpha;
                let r = (ratio * ratio + sigma_data * sigma_data).sqrt();
                let (p, q) = (ratio / (r * sigma_data), -(one * sigma_data) / r);
                Coefficients { p, q, c_in: one / (alpha * r), inverse: None }
            }
            Preconditioning::Consistency => {
                let r = (sigma * sigma + sigma_data * sigma_data).sqrt();
                let shifted = sigma - sigma_min;
                let skip = one * (sigma_data * sigma_data) / (shifted * shifted + sigma_data * sigma_data);
                let out = shifted * sigma_data / r;
                let inverse = [skip, out, (one - skip) / sigma, -out / sigma];
                Coefficients { p: (one - skip) / out, q: -(skip * sigma) / out, c_in: one / r, inverse: Some(inverse) }
            }
        }
    }

    /// `(p, q)` of the mixture `p x0 + q n`.
    fn mixture<R: Real>(self, level: &Level<R>) -> (R, R) {
        let Level { alpha, sigma, .. } = *level;
        let [zero, one] = [0.0, 1.0].map(|c| sigma.constant(c));
        match self {
            Prediction::X0 => (one, zero),
            Prediction::Epsilon => (zero, one),
            Prediction::V => (-sigma, alpha),
            Prediction::Velocity => level.rates.unwrap_or((one * f64::NAN, one * f64::NAN)),
            Prediction::Score => (zero, -(one / sigma)),
            Prediction::ScaledScore => (zero, -one),
        }
    }

    /// This quantity of a state whose data and noise are known (or estimated).
    pub fn join<R: Real>(self, x0: R, noise: R, level: &Level<R>) -> R {
        let (p, q) = self.mixture(level);
        p * x0 + q * noise
    }

    /// Data and noise of the state `x` whose quantity of this kind is `f`. Not defined where `f` does not determine
    /// them: the noise where sigma is 0, x0 from the noise where alpha is 0.
    pub fn split<R: Real>(self, x: R, f: R, level: &Level<R>) -> (R, R) {
        let (p, q) = self.mixture(level);
        let [a, b, c, d] = Coefficients { p, q, c_in: level.alpha, inverse: None }.solve(level);
        (a * x + b * f, c * x + d * f)
    }

    /// The quantity of another kind that a state has.
    pub fn convert<R: Real>(self, to: Prediction, x: R, f: R, level: &Level<R>) -> R {
        let (x0, noise) = self.split(x, f, level);
        to.join(x0, noise, level)
    }
}

/// The data, `D(x)`, given a quantity of any kind; with the score this is Tweedie's `(x + sigma^2 s) / alpha`.
pub fn x0_of<R: Real>(from: Prediction, x: R, f: R, level: &Level<R>) -> R {
    from.convert(Prediction::X0, x, f, level)
}

/// The noise given a quantity of any kind.
pub fn epsilon_of<R: Real>(from: Prediction, x: R, f: R, level: &Level<R>) -> R {
    from.convert(Prediction::Epsilon, x, f, level)
}

/// The angular velocity `alpha n - sigma x0` given a quantity of any kind.
pub fn v_of<R: Real>(from: Prediction, x: R, f: R, level: &Level<R>) -> R {
    from.convert(Prediction::V, x, f, level)
}

/// The velocity of the path given a quantity of any kind.
pub fn velocity_of<R: Real>(from: Prediction, x: R, f: R, level: &Level<R>) -> R {
    from.convert(Prediction::Velocity, x, f, level)
}

/// The score, `(alpha D - x) / sigma^2`, given a quantity of any kind.
pub fn score_of<R: Real>(from: Prediction, x: R, f: R, level: &Level<R>) -> R {
    from.convert(Prediction::Score, x, f, level)
}

impl<R: Real> Coefficients<R> {
    /// The determinant of the system; where it vanishes the output does not determine the data.
    pub fn determinant(&self, level: &Level<R>) -> R {
        level.alpha * self.q - level.sigma * self.p
    }

    /// `x0 = a x + b F` and `n = c x + d F`, as `[a, b, c, d]`.
    pub fn solve(&self, level: &Level<R>) -> [R; 4] {
        if let Some(known) = self.inverse {
            return known;
        }
        let det = self.determinant(level);
        [self.q / det, -level.sigma / det, -self.p / det, level.alpha / det]
    }
}
