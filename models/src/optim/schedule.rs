//! Learning-rate schedules: a factor on the learning rate as a function of the step counter, in the graph.

use crate::{Error, Result};
use dnx_ir::Tensor;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// 1.
    Constant,
    /// From 1 to `end` along half a cosine.
    Cosine,
    /// From 1 to `end` in a straight line.
    Linear,
    /// Times `factor` after every `every` steps.
    Step,
}

/// `[optim.schedule]`.
///
/// During the first `warmup` steps the factor is `(step + 1) / warmup`; the shape begins after them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Shape.
    pub kind: Schedule,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// The step (warm-up included) at which `cosine` and `linear` reach `end`; if absent, the end of training.
    pub steps: Option<usize>,
    /// The last factor of `cosine` and `linear`.
    pub end: f64,
    /// Of `step`.
    pub every: usize,
    /// Of `step`.
    pub factor: f64,
}

impl Default for ScheduleConfig {
    fn default() -> ScheduleConfig {
        ScheduleConfig { kind: Schedule::Constant, warmup: 0, steps: None, end: 0.0, every: 2000, factor: 0.9 }
    }
}

impl ScheduleConfig {
    /// The same with `steps` set, if it was open.
    pub fn resolve(&self, training_steps: usize) -> ScheduleConfig {
        ScheduleConfig { steps: Some(self.steps.unwrap_or(training_steps)), ..self.clone() }
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("optim.schedule.{key}"), message));
        match (self.kind, self.steps) {
            (Schedule::Cosine | Schedule::Linear, None) => return bad("steps", "is not set".into()),
            (Schedule::Cosine | Schedule::Linear, Some(steps)) if steps <= self.warmup => {
                return bad("steps", format!("is {steps}, not after the warm-up of {}", self.warmup));
            }
            _ => {}
        }
        if self.every == 0 {
            return bad("every", "is 0; it must be positive".into());
        }
        if !(self.factor > 0.0) {
            return bad("factor", format!("is {}; it must be positive", self.factor));
        }
        if !(self.end >= 0.0) {
            return bad("end", format!("is {}; it must be 0 or more", self.end));
        }
        Ok(())
    }

    /// The factor at a step (`f32[]`, from 0).
    pub fn factor<'g>(&self, step: Tensor<'g>) -> Tensor<'g> {
        let (zero, one) = (step.scalar_like(0.0), step.scalar_like(1.0));
        let after = (step - self.warmup as f64).maximum(zero);
        let span = self.steps.unwrap_or(1).saturating_sub(self.warmup).max(1) as f64;
        let done = || (after / span).minimum(one);
        let shape = match self.kind {
            Schedule::Constant => one,
            Schedule::Cosine => ((done() * PI).cos() + 1.0) * (0.5 * (1.0 - self.end)) + self.end,
            Schedule::Linear => one - done() * (1.0 - self.end),
            // The half keeps the division's rounding from moving a boundary.
            Schedule::Step => (((after + 0.5) / self.every as f64).floor() * self.factor.ln()).exp(),
        };
        match self.warmup {
            0 => shape,
            n => step.lt(step.scalar_like(n as f64)).select((step + 1.0) / n as f64, shape),
        }
    }
}
