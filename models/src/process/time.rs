//! Times and how training draws them.
//!
//! A time without its unit is the commonest mistake in this field: 0.3 of a unit path, sigma 0.3, step 300. So a
//! time carries its [`TimeDomain`], and a path refuses one of another.

use super::path::Path;
use super::real::Real;
use crate::{Error, Result};
use dnx_ir::{DType, Graph, Tensor, random};
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;
use std::fmt;

/// What a time counts. In every domain noise grows with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeDomain {
    /// `t` in `[0, 1]`: 0 is data, 1 is noise.
    Unit,
    /// The noise level `sigma >= 0` itself, data having `alpha = 1`.
    Sigma,
    /// The angle `t` in `[0, pi / 2]` of TrigFlow: 0 is data, `pi / 2` is noise.
    Angle,
    /// Steps `0..count` of a discrete chain; step 0 already has a little noise.
    Step {
        /// Their number.
        count: usize,
    },
}

impl fmt::Display for TimeDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeDomain::Unit => f.write_str("t in [0, 1]"),
            TimeDomain::Sigma => f.write_str("sigma"),
            TimeDomain::Angle => f.write_str("t in [0, pi / 2]"),
            TimeDomain::Step { count } => write!(f, "step in 0..{count}"),
        }
    }
}

/// A time on the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time {
    domain: TimeDomain,
    value: f64,
}

impl Time {
    /// A time of this domain.
    ///
    /// # Errors
    /// If the value is not in the domain.
    pub fn new(domain: TimeDomain, value: f64) -> Result<Time> {
        let inside = match domain {
            TimeDomain::Unit => (0.0..=1.0).contains(&value),
            TimeDomain::Sigma => (0.0..f64::INFINITY).contains(&value),
            TimeDomain::Angle => (0.0..=FRAC_PI_2).contains(&value),
            TimeDomain::Step { count } => (0.0..count as f64).contains(&value),
        };
        if inside { Ok(Time { domain, value }) } else { Err(Error::Domain(format!("{value} is no {domain}"))) }
    }

    /// `t` in `[0, 1]`.
    pub fn unit(t: f64) -> Result<Time> {
        Time::new(TimeDomain::Unit, t)
    }

    /// A noise level.
    pub fn sigma(sigma: f64) -> Result<Time> {
        Time::new(TimeDomain::Sigma, sigma)
    }

    /// A step of a chain of `count`.
    pub fn step(step: usize, count: usize) -> Result<Time> {
        Time::new(TimeDomain::Step { count }, step as f64)
    }

    /// The domain.
    pub fn domain(self) -> TimeDomain {
        self.domain
    }

    /// The value in its domain.
    pub fn value(self) -> f64 {
        self.value
    }
}

/// Times of a batch in a graph.
#[derive(Clone, Copy)]
pub struct Times<'g> {
    /// What they count.
    pub domain: TimeDomain,
    /// `f32[B]`.
    pub values: Tensor<'g>,
}

/// How training draws times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeLaw {
    /// Uniform in `[min, max)`, in the path's own unit.
    Uniform {
        /// Least.
        min: f64,
        /// Greatest.
        max: f64,
    },
    /// `sigmoid(mean + std z)` on unit paths, truncated to `[min, max]`.
    LogitNormal {
        /// Of the logit.
        mean: f64,
        /// Of the logit.
        std: f64,
        /// Least.
        #[serde(default)]
        min: f64,
        /// Greatest.
        #[serde(default = "one")]
        max: f64,
    },
    /// `1 - u - scale (cos^2(pi u / 2) - 1 + u)` with `u` uniform, on unit paths: times gather around the middle
    /// (Esser et al., "Scaling rectified flow transformers", 2024; `scale` 1.29 there).
    Mode {
        /// From `-1` to `2 / (pi - 2)`, where the law stops being one.
        scale: f64,
    },
    /// `atan(exp(mean + std z) / sigma_data)` on angle paths: log-normal in `sigma / alpha`.
    LogTangent {
        /// Of the logarithm.
        mean: f64,
        /// Of the logarithm.
        std: f64,
    },
    /// One of these times, with equal probability, in the path's own unit.
    Table {
        /// The times.
        times: Vec<f64>,
    },
    /// `exp(mean + std z)` on sigma paths.
    LogNormal {
        /// Of the logarithm.
        mean: f64,
        /// Of the logarithm.
        std: f64,
    },
    /// Uniform in the logarithm on sigma paths.
    LogUniform {
        /// Least.
        min: f64,
        /// Greatest.
        max: f64,
    },
    /// One of `count` geometrically spaced levels from `min` to `max`, on sigma paths.
    Levels {
        /// Least.
        min: f64,
        /// Greatest.
        max: f64,
        /// Their number.
        count: usize,
    },
    /// Any step of a discrete path.
    Steps,
}

impl TimeLaw {
    /// `sigmoid(mean + std z)`, not truncated.
    pub fn logit_normal(mean: f64, std: f64) -> TimeLaw {
        TimeLaw::LogitNormal { mean, std, min: 0.0, max: 1.0 }
    }

    /// Refuses a law that does not fit the path or whose numbers make no sense.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let bad = |message: String| Err(Error::config("process.time_law", message));
        let domain = path.domain();
        let fits = match self {
            TimeLaw::Uniform { .. } => !matches!(domain, TimeDomain::Step { .. }),
            TimeLaw::LogitNormal { .. } | TimeLaw::Mode { .. } => domain == TimeDomain::Unit,
            TimeLaw::LogTangent { .. } => domain == TimeDomain::Angle,
            TimeLaw::Table { .. } => true,
            TimeLaw::LogNormal { .. } | TimeLaw::LogUniform { .. } | TimeLaw::Levels { .. } => {
                domain == TimeDomain::Sigma
            }
            TimeLaw::Steps => matches!(domain, TimeDomain::Step { .. }),
        };
        if !fits {
            return bad(format!("{self:?} does not draw times of path {}, which are {domain}", path.name()));
        }
        match *self {
            TimeLaw::LogitNormal { min, max, .. } if !(0.0 <= min && min < max && max <= 1.0) => {
                return bad(format!("wants 0 <= min < max <= 1, not {min} and {max}"));
            }
            TimeLaw::Mode { scale } if !(-1.0..=2.0 / (std::f64::consts::PI - 2.0)).contains(&scale) => {
                return bad(format!("scale is {scale}; it must be from -1 to 1.75"));
            }
            TimeLaw::Table { ref times } if times.is_empty() => return bad("has no times".into()),
            TimeLaw::Table { ref times } => {
                for &t in times {
                    Time::new(domain, t)?;
                }
            }
            TimeLaw::Uniform { min, max } => {
                Time::new(domain, min)?;
                Time::new(domain, max)?;
                if min >= max {
                    return bad(format!("min = {min} is not below max = {max}"));
                }
            }
            TimeLaw::LogUniform { min, max } | TimeLaw::Levels { min, max, .. } if !(0.0 < min && min < max) => {
                return bad(format!("wants 0 < min < max, not {min} and {max}"));
            }
            TimeLaw::Levels { count, .. } if count < 2 => return bad(format!("wants 2 levels or more, not {count}")),
            TimeLaw::LogitNormal { std, .. } | TimeLaw::LogNormal { std, .. } | TimeLaw::LogTangent { std, .. }
                if !(std > 0.0) =>
            {
                return bad(format!("std is {std}; it must be positive"));
            }
            _ => {}
        }
        Ok(())
    }

    /// The levels of [`TimeLaw::Levels`], from the least.
    pub fn levels(min: f64, max: f64, count: usize) -> Vec<f64> {
        let ratio = (max / min).ln() / (count.max(2) - 1) as f64;
        (0..count).map(|i| min * (ratio * i as f64).exp()).collect()
    }

    /// Times of a batch. `shift` is the `s` of `s t / (1 + (s - 1) t)`, applied to unit times.
    pub fn draw<'g>(&self, g: &'g Graph, key: Tensor<'g>, batch: usize, path: &Path, shift: f64) -> Times<'g> {
        let domain = path.domain();
        let uniform = || random::uniform(g, key, &[batch]);
        let normal = || random::normal(g, key, &[batch]);
        let values = match *self {
            TimeLaw::Uniform { min, max } => uniform() * (max - min) + min,
            TimeLaw::LogitNormal { mean, std, min, max } => {
                let z = if (min, max) == (0.0, 1.0) {
                    normal()
                } else {
                    let logit = |t: f64| ((t / (1.0 - t)).ln() - mean) / std;
                    normal_between(g, key, batch, logit(min), logit(max))
                };
                let t = (z * std + mean).sigmoid();
                if (min, max) == (0.0, 1.0) { t } else { t.maximum(t.full_like(min)).minimum(t.full_like(max)) }
            }
            TimeLaw::Mode { scale } => {
                let u = uniform();
                let c = (u * FRAC_PI_2).cos();
                1.0 - u - (c * c - 1.0 + u) * scale
            }
            TimeLaw::LogTangent { mean, std } => {
                let ratio = (normal() * std + mean).exp();
                path.level_of_ratio(ratio).time
            }
            TimeLaw::Table { ref times } => {
                let index = random::randint(g, key, &[batch], times.len() as u32).convert(DType::F32);
                Real::lookup(index, times)
            }
            TimeLaw::LogNormal { mean, std } => (normal() * std + mean).exp(),
            TimeLaw::LogUniform { min, max } => (uniform() * (max / min).ln() + min.ln()).exp(),
            TimeLaw::Levels { min, max, count } => {
                let index = random::randint(g, key, &[batch], count as u32).convert(DType::F32);
                Real::lookup(index, &TimeLaw::levels(min, max, count))
            }
            TimeLaw::Steps => {
                let count = if let TimeDomain::Step { count } = domain { count } else { 1 };
                random::randint(g, key, &[batch], count as u32).convert(DType::F32)
            }
        };
        let values = if domain == TimeDomain::Unit { shifted(values, shift) } else { values };
        Times { domain, values }
    }
}

/// Standard normal numbers `f32[batch]` given that they are between two bounds, by the inverse of the distribution
/// function.
pub(super) fn normal_between<'g>(g: &'g Graph, key: Tensor<'g>, batch: usize, low: f64, high: f64) -> Tensor<'g> {
    let cdf = |z: f64| 0.5 * libm::erfc(-z / std::f64::consts::SQRT_2);
    let (low, high) = (cdf(low), cdf(high));
    // Symmetric and never at the bounds, where the inverse is infinite.
    let u = random::uniform(g, key, &[batch]) + 2f64.powi(-25);
    let x = u * (2.0 * (high - low)) + (2.0 * low - 1.0);
    let edge = 1.0 - 2f64.powi(-24);
    let x = x.maximum(x.full_like(-edge)).minimum(x.full_like(edge));
    random::erfinv(x) * std::f64::consts::SQRT_2
}

fn one() -> f64 {
    1.0
}

/// Shift of training times on unit paths.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Shift {
    /// This `s` of `s t / (1 + (s - 1) t)`.
    Fixed(f64),
    /// By a rule.
    Rule(ShiftRule),
}

/// Rules of [`Shift`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShiftRule {
    /// `sqrt(n / 4096)` for samples of `n` numbers: more noise where neighbouring numbers say the same.
    Dimension,
}

impl Shift {
    /// No shift.
    pub const NONE: Shift = Shift::Fixed(1.0);

    /// `s` for samples of so many numbers.
    pub fn factor(self, dim: usize) -> f64 {
        match self {
            Shift::Fixed(s) => s,
            Shift::Rule(ShiftRule::Dimension) => (dim as f64 / 4096.0).sqrt(),
        }
    }
}

/// `s t / (1 + (s - 1) t)`: more time near noise for `s > 1`.
pub fn shifted<R: Real>(t: R, s: f64) -> R {
    if s == 1.0 { t } else { t * s / (t * (s - 1.0) + 1.0) }
}
