//! Consistency models (Song et al., "Consistency models", 2023) and their improved training (Song and Dhariwal,
//! "Improved techniques for training consistency models", 2024): the network's x0 at a noise level is compared with
//! that of the next lower level on the same trajectory, of itself or of an average of itself.
//!
//! Levels are Karras' grid of `N` levels, which grows in training. The lower point of a trajectory is that of the
//! same data and noise (training) or one step of a teacher's probability-flow ODE (distillation).

use super::{Scene, Source};
use crate::process::{Level, Loss, Real, TimeDomain, Times, normal_between};
use crate::{Error, Result};
use dnx_ir::{Tensor, random};
use serde::{Deserialize, Serialize};

/// Of the grid.
const RHO: f64 = 7.0;

/// How the number of levels grows from `steps[0]` to `steps[1]` intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Growth {
    /// It does not: `steps[1]`.
    Constant,
    /// `N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1` levels.
    Root,
    /// Doubling at equal distances: `min(s0 2^floor(k / K'), s1) + 1` levels, `K' = floor(K / (log2(s1 / s0) + 1))`.
    Doubling,
}

/// What the network is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// Itself, without gradient.
    Own,
    /// A moving average of its parameters.
    Average {
        /// What a step keeps of it.
        decay: f64,
    },
    /// A moving average whose decay `exp(s0 ln(start) / N(k))` grows with the number of levels.
    Scheduled {
        /// The decay at `N = s0`.
        start: f64,
    },
}

/// Distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean square.
    L2,
    /// Mean size.
    L1,
    /// `sqrt(|d|^2 + c^2) - c`.
    Huber,
}

/// How intervals of the grid are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LevelLaw {
    /// All alike.
    Uniform,
    /// By the mass that a log-normal law has between their ends.
    LogNormal {
        /// Of the logarithm.
        mean: f64,
        /// Of the logarithm.
        std: f64,
    },
}

/// How a teacher's ODE is stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// First order.
    Euler,
    /// Second order.
    Heun,
}

/// `[process.objective] kind = "consistency"`. The defaults are improved consistency training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Consistency {
    /// Consistency training, or distillation of a teacher.
    pub source: Source,
    /// Least and greatest number of intervals, `s0` and `s1`.
    pub steps: [u32; 2],
    /// How it grows.
    pub growth: Growth,
    /// `K`, the steps in which it grows; the length of training if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// How intervals are drawn.
    pub levels: LevelLaw,
    /// What the network is compared with.
    pub target: Target,
    /// The distance.
    pub metric: Metric,
    /// `c` of the `huber` metric; `0.00054 sqrt(dim)` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c: Option<f64>,
    /// Whether an interval weighs `1 / (its length)`.
    pub inverse_gap: bool,
    /// The teacher's solver.
    pub solver: Solver,
}

impl Default for Consistency {
    fn default() -> Consistency {
        Consistency {
            source: Source::Data,
            steps: [10, 1280],
            growth: Growth::Doubling,
            total: None,
            levels: LevelLaw::LogNormal { mean: -1.1, std: 2.0 },
            target: Target::Own,
            metric: Metric::Huber,
            c: None,
            inverse_gap: true,
            solver: Solver::Heun,
        }
    }
}

/// The number of levels after `step` steps, in floats that are exact: for host and graph.
pub fn consistency_levels<R: Real>(c: &Consistency, step: R) -> R {
    let [s0, s1] = c.steps.map(f64::from);
    let total = c.total.unwrap_or(1).max(1) as f64;
    match c.growth {
        Growth::Constant => step.constant(s1 + 1.0),
        Growth::Root => {
            let inside = step * (((s1 + 1.0).powi(2) - s0 * s0) / total) + s0 * s0;
            // The ceiling, a little below so that rounding does not pass an exact integer.
            let root = -(-(inside.sqrt() - 1.0 - 1e-4)).floor() + 1.0;
            root.min(step.constant(s1 + 1.0))
        }
        Growth::Doubling => {
            let each = (total / ((s1 / s0).log2().floor() + 1.0)).floor().max(1.0);
            // The half keeps the division's rounding from moving a boundary.
            let doublings = ((step + 0.5) / each).floor().min(step.constant(40.0));
            ((doublings * std::f64::consts::LN_2).exp() * s0 + 1e-3).min(step.constant(s1)).floor() + 1.0
        }
    }
}

impl Consistency {
    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.objective.{key}"), message));
        let [s0, s1] = self.steps;
        if !(1 <= s0 && s0 <= s1) {
            return bad("steps", format!("is [{s0}, {s1}]; it wants 1 <= first <= second"));
        }
        let decay = match self.target {
            Target::Own => 0.5,
            Target::Average { decay } => decay,
            Target::Scheduled { start } => start,
        };
        if !(0.0 < decay && decay < 1.0) {
            return bad("target", format!("keeps {decay} of the average; it must be in (0, 1)"));
        }
        if self.c.is_some() && self.metric != Metric::Huber {
            return bad("c", "is read only with metric = \"huber\"".into());
        }
        if !(self.c.unwrap_or(1.0) > 0.0) {
            return bad("c", "must be positive".into());
        }
        if let LevelLaw::LogNormal { std, .. } = self.levels
            && !(std > 0.0)
        {
            return bad("levels", format!("has std = {std}; it must be positive"));
        }
        Ok(())
    }

    /// What a step keeps of the target's average.
    pub fn decay<'g>(&self, step: Tensor<'g>) -> Tensor<'g> {
        match self.target {
            Target::Own => step.scalar_like(0.0),
            Target::Average { decay } => step.scalar_like(decay),
            Target::Scheduled { start } => {
                let n = consistency_levels(self, step);
                (n.scalar_like(self.steps[0] as f64 * start.ln()) / n).exp()
            }
        }
    }
}

impl<'g> Scene<'_, 'g> {
    pub(super) fn consistency(&self, c: &Consistency) -> Loss<'g> {
        let process = self.model.process;
        let batch = self.x0.dim(0);
        let [low, high] = process.time_range;
        let [a, b] = [low, high].map(|s| s.powf(1.0 / RHO));
        let power = |x: Tensor<'g>, p: f64| (x.log() * p).exp();
        let intervals = (consistency_levels(c, self.step) - 1.0).broadcast_to(&[batch]);
        let g = self.x0.graph();
        let key = self.key(crate::streams::TIME);
        // Where on the grid, 0 to 1 from the least level.
        let u = match c.levels {
            LevelLaw::Uniform => random::uniform(g, key, &[batch]),
            LevelLaw::LogNormal { mean, std } => {
                let bound = |s: f64| (s.ln() - mean) / std;
                let sigma = (normal_between(g, key, batch, bound(low), bound(high)) * std + mean).exp();
                (power(sigma, 1.0 / RHO) - a) / (b - a)
            }
        };
        let index = (u * intervals).floor().minimum(intervals - 1.0).maximum(intervals.full_like(0.0));
        let level_at = |i: Tensor<'g>| {
            let sigma = power(i / intervals * (b - a) + a, RHO);
            let values = sigma.maximum(sigma.full_like(low)).minimum(sigma.full_like(high));
            process.path.levels(Times { domain: TimeDomain::Sigma, values })
        };
        let (near, far) = (level_at(index), level_at(index + 1.0));
        let label = self.dropped_label();
        let x_far = self.state(&far);
        let x_near = match c.source {
            Source::Data => self.state(&near),
            Source::Teacher => self.teacher_step(c.solver, x_far, &far, &near, label).stop_gradient(),
        };
        let online = self.model.x0(x_far, &far, label);
        let target = self.target.unwrap_or(self.model).x0(x_near, &near, label).stop_gradient();
        let dims: Vec<usize> = (1..x_far.rank()).collect();
        let difference = online - target;
        let distance = match c.metric {
            Metric::L2 => difference.square().mean_per_sample(),
            Metric::L1 => difference.abs().mean_per_sample(),
            Metric::Huber => {
                let dim: usize = x_far.dims()[1..].iter().product();
                let c = c.c.unwrap_or(0.00054 * (dim as f64).sqrt());
                (difference.square().sum(&dims) + c * c).sqrt() - c
            }
        };
        let per_sample = if c.inverse_gap { distance / (far.sigma - near.sigma) } else { distance };
        self.mean_of(per_sample, &far)
    }

    /// A step of the teacher's ODE from level to level of path `ve`, `dx / d sigma = (x - D) / sigma`.
    fn teacher_step(
        &self,
        solver: Solver,
        x: Tensor<'g>,
        from: &Level<Tensor<'g>>,
        to: &Level<Tensor<'g>>,
        label: Option<Tensor<'g>>,
    ) -> Tensor<'g> {
        let teacher = self.teacher();
        let slope = |x: Tensor<'g>, sigma: Tensor<'g>| (x - teacher.denoise(x, sigma, label)) / self.wide(sigma);
        let h = self.wide(to.sigma - from.sigma);
        let first = slope(x, from.sigma);
        let euler = x + h * first;
        match solver {
            Solver::Euler => euler,
            Solver::Heun => x + h * (first + slope(euler, to.sigma)) * 0.5,
        }
    }
}
