//! Times and how training draws them.
//!
//! A time without its unit is the commonest mistake in this field: 0.3 of a unit path, sigma 0.3, step 300. So a
//! time carries its [`TimeDomain`], and a path refuses one of another.

use super::path::Path;
use super::real::Real;
use crate::{Error, Result};
use dnx_ir::{DType, Graph, Tensor, random};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a time counts. In every domain noise grows with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeDomain {
    /// `t` in `[0, 1]`: 0 is data, 1 is noise.
    Unit,
    /// The noise level `sigma >= 0` itself, data having `alpha = 1`.
    Sigma,
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeLaw {
    /// Uniform in `[min, max)`, in the path's own unit.
    Uniform {
        /// Least.
        min: f64,
        /// Greatest.
        max: f64,
    },
    /// `sigmoid(mean + std z)` on unit paths.
    LogitNormal {
        /// Of the logit.
        mean: f64,
        /// Of the logit.
        std: f64,
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
    /// Refuses a law that does not fit the path or whose numbers make no sense.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let bad = |message: String| Err(Error::config("process.time_law", message));
        let domain = path.domain();
        let fits = match self {
            TimeLaw::Uniform { .. } => matches!(domain, TimeDomain::Unit | TimeDomain::Sigma),
            TimeLaw::LogitNormal { .. } => domain == TimeDomain::Unit,
            TimeLaw::LogNormal { .. } | TimeLaw::LogUniform { .. } | TimeLaw::Levels { .. } => {
                domain == TimeDomain::Sigma
            }
            TimeLaw::Steps => matches!(domain, TimeDomain::Step { .. }),
        };
        if !fits {
            return bad(format!("{self:?} does not draw times of path {}, which are {domain}", path.name()));
        }
        match *self {
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
            TimeLaw::LogitNormal { std, .. } | TimeLaw::LogNormal { std, .. } if !(std > 0.0) => {
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
    pub fn draw<'g>(&self, g: &'g Graph, key: Tensor<'g>, batch: usize, domain: TimeDomain, shift: f64) -> Times<'g> {
        let uniform = || random::uniform(g, key, &[batch]);
        let normal = || random::normal(g, key, &[batch]);
        let values = match *self {
            TimeLaw::Uniform { min, max } => uniform() * (max - min) + min,
            TimeLaw::LogitNormal { mean, std } => (normal() * std + mean).sigmoid(),
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

/// `s t / (1 + (s - 1) t)`: more time near noise for `s > 1`.
pub fn shifted<R: Real>(t: R, s: f64) -> R {
    if s == 1.0 { t } else { t * s / (t * (s - 1.0) + 1.0) }
}
