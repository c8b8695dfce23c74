//! Samplers that step through the Gaussian posterior of the next state given the estimated data: DDPM's ancestral
//! sampler and DDIM. Both are stated for any path; on a discrete chain they are the published ones.

use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::Result;
use serde::{Deserialize, Serialize};

/// Variance of DDPM's steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PosteriorVariance {
    /// That of the posterior given the data.
    #[default]
    Small,
    /// That of the forward step.
    Large,
}

/// Ancestral sampling (Ho et al., 2020). The last step gives the mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ddpm {
    /// Variance of the steps.
    pub variance: PosteriorVariance,
}

/// DDIM (Song et al., 2021): `eta = 0` is deterministic, `eta = 1` has the posterior's variance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ddim {
    /// Share of the posterior's standard deviation.
    pub eta: f64,
}

/// What remains of the data's and the noise's share over a step: `x_from = ratio x_to + spread z`.
struct Forward {
    ratio: f64,
    variance: f64,
}

fn forward(step: &Step) -> Forward {
    let ratio = step.from.alpha / step.to.alpha;
    Forward { ratio, variance: step.from.sigma.powi(2) - (ratio * step.to.sigma).powi(2) }
}

impl Sampler for Ddpm {
    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Ddpm {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let x0 = denoiser.estimate(x, &step.from)?.x0;
        let Forward { ratio, variance } = forward(step);
        let (from, to) = (step.from.sigma.powi(2), step.to.sigma.powi(2));
        let (keep, data) = (ratio * to / from, step.to.alpha * variance / from);
        let std = match self.variance {
            _ if step.is_last() => 0.0,
            PosteriorVariance::Small => (variance * to / from).sqrt(),
            PosteriorVariance::Large => variance.sqrt(),
        };
        add_noise(x, std, noise, |i, x| keep * x + data * x0[i]);
        Ok(())
    }
}

impl Sampler for Ddim {
    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Ddim {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let estimate = denoiser.estimate(x, &step.from)?;
        let (from, to) = (step.from, step.to);
        let remaining = 1.0 - (from.alpha * to.sigma / (to.alpha * from.sigma)).powi(2);
        let std = self.eta * to.sigma * remaining.max(0.0).sqrt();
        // What variance the fresh noise adds, the old noise gives up.
        let direction = (to.sigma.powi(2) - std * std).max(0.0).sqrt();
        add_noise(x, std, noise, |i, _| to.alpha * estimate.x0[i] + direction * estimate.noise[i]);
        Ok(())
    }
}

/// `x[i] = mean(i, x[i]) + std z[i]`; no noise is drawn for `std` zero.
fn add_noise(x: &mut [f64], std: f64, noise: &mut dyn Noise, mean: impl Fn(usize, f64) -> f64) {
    let z = if std > 0.0 { noise.draw() } else { vec![] };
    for (i, x) in x.iter_mut().enumerate() {
        *x = mean(i, *x) + z.get(i).map_or(0.0, |z| std * z);
    }
}
