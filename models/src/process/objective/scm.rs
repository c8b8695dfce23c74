//! Continuous-time consistency models on TrigFlow (Lu and Song, "Simplifying, stabilizing and scaling
//! continuous-time consistency models", 2024, algorithm 1): `f(x, t) = cos(t) x - sin(t) sigma_data F(x / sigma_data,
//! t)` is constant along trajectories, so its tangent along one is driven to zero.
//!
//! With `dx = cos(t) z - sin(t) x0` (training) or the teacher's velocity (distillation) and the jvp
//! `J = cos(t) sin(t) dF/dt`, in the rearranged form in which nothing overflows,
//! `g = -cos^2(t) (sigma_data F - dx) - r (cos(t) sin(t) x + sigma_data J)`, normalised to `g / (|g| + c)`. The loss
//! `|F - sg(F + g)|^2 / D` has the gradient `-g` at `F`; `r` grows from 0 to 1 in the first steps.

use super::{Scene, Source};
use crate::network::Inputs;
use crate::process::Loss;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[process.objective] kind = "scm"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scm {
    /// Consistency training, or distillation of a teacher.
    pub source: Source,
    /// Steps in which `r` grows to 1; 0: it is 1 from the first.
    pub warmup: u64,
    /// `c` of the tangent's normalisation.
    pub c: f64,
}

impl Default for Scm {
    fn default() -> Scm {
        Scm { source: Source::Data, warmup: 10_000, c: 0.1 }
    }
}

impl Scm {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.c > 0.0) {
            return Err(Error::config("process.objective.c", format!("is {}; it must be positive", self.c)));
        }
        Ok(())
    }
}

impl<'g> Scene<'_, 'g> {
    pub(super) fn scm(&self, scm: &Scm) -> Loss<'g> {
        let process = self.model.process;
        let level = process.path.levels(self.draws.times);
        let sigma_data = process.sigma_data;
        let x = self.state(&level);
        let label = self.dropped_label();
        // sin and cos of the angle: alpha, and sigma over sigma_data.
        let (cos, sin) = (self.wide(level.alpha), self.wide(level.sigma / sigma_data));
        let dx = match scm.source {
            Source::Data => self.velocity(&level),
            Source::Teacher => {
                let ratio = level.sigma / level.alpha;
                let x0 = self.teacher().denoise(x / cos, ratio, label);
                // cos z - sin x0 with z = (x - cos x0) / sin, the noise of deviation sigma_data.
                ((x - cos * x0) * cos / sin - sin * x0).stop_gradient()
            }
        };
        let call = self.model.inputs(x, &level, label);
        let both = cos * sin;
        let flat = level.alpha * (level.sigma / sigma_data);
        let direction = Inputs {
            x: both * dx / sigma_data,
            time: flat * process.time_scale,
            sigma: flat * level.alpha * sigma_data,
            label: None,
            second: None,
        };
        let (f, j) = self.model.jvp(&call, &direction);
        let (still, j) = (f.stop_gradient(), j.stop_gradient());
        let r = match scm.warmup {
            0 => self.step.scalar_like(1.0),
            n => (self.step / n as f64).minimum(self.step.scalar_like(1.0)),
        };
        let consistency = cos * cos * (still * sigma_data - dx);
        let g = -consistency - (both * x + j * sigma_data) * r;
        let dims: Vec<usize> = (1..x.rank()).collect();
        let norm = self.wide(g.square().sum(&dims).sqrt());
        let g = (g / (norm + scm.c)).stop_gradient();
        let error = (f - still - g).square().mean_per_sample();
        let per_sample = match self.log_variance(&level) {
            Some(u) => error * (-u).exp() + u,
            None => error,
        };
        self.mean_of(per_sample, &level)
    }
}
