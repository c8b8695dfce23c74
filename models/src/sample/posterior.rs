//! Samplers that step through the Gaussian posterior of the next state given the estimated data: DDPM's ancestral
//! sampler and DDIM. Both are stated for any path; on a discrete chain they are the published ones.

use super::kernel::StepLaw;
use super::{Denoiser, Estimate, GaussianStep, Noise, Run, Sampler, Step, Stepper};
use crate::process::Variance;
use crate::{Error, Result};
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
    /// What the network learned, between these two in each element (Nichol and Dhariwal, 2021, equation 15).
    Learned,
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

impl Ddpm {
    pub(super) fn coefficients(&self, step: &Step) -> StepLaw {
        let Forward { ratio, variance } = forward(step);
        let (from, to) = (step.from.sigma.powi(2), step.to.sigma.powi(2));
        let std = match self.variance {
            _ if step.is_last() => 0.0,
            // Learned ones have no common deviation: this is their least.
            PosteriorVariance::Small | PosteriorVariance::Learned => (variance * to / from).sqrt(),
            PosteriorVariance::Large => variance.sqrt(),
        };
        StepLaw { state: ratio * to / from, data: step.to.alpha * variance / from, noise: 0.0, std }
    }
}

impl Ddim {
    pub(super) fn coefficients(&self, step: &Step) -> StepLaw {
        let (from, to) = (step.from, step.to);
        let remaining = 1.0 - (from.alpha * to.sigma / (to.alpha * from.sigma)).powi(2);
        let std = self.eta * to.sigma * remaining.max(0.0).sqrt();
        // What variance the fresh noise adds, the old noise gives up.
        let direction = (to.sigma.powi(2) - std * std).max(0.0).sqrt();
        StepLaw { state: 0.0, data: to.alpha, noise: direction, std }
    }
}

impl Sampler for Ddpm {
    fn law(&self) -> Option<&dyn GaussianStep> {
        self.gaussian()
    }

    fn gaussian(&self) -> Option<&dyn GaussianStep> {
        (self.variance != PosteriorVariance::Learned).then_some(self as &dyn GaussianStep)
    }

    fn is_linear(&self) -> bool {
        self.variance != PosteriorVariance::Learned
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        if self.variance == PosteriorVariance::Learned && run.process.variance == Variance::Fixed {
            let message = "is learned, and process.variance is not: take small or large";
            return Err(Error::config("sample.variance", message));
        }
        Ok(Box::new(*self))
    }
}

impl Stepper for Ddpm {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let estimate = denoiser.estimate(x, &step.from)?;
        let law = self.coefficients(step);
        if self.variance != PosteriorVariance::Learned || step.is_last() {
            draw(x, &law, &estimate, noise);
            return Ok(());
        }
        let range = denoiser.range().ok_or_else(|| Error::Domain("this network gives no variances".into()))?;
        let (large, small) = (forward(step).variance.ln(), 2.0 * law.std.ln());
        for (i, (x, z)) in x.iter_mut().zip(noise.draw()).enumerate() {
            let share = 0.5 * (range[i] + 1.0);
            let std = (0.5 * (share * large + (1.0 - share) * small)).exp();
            *x = law.mean(*x, estimate.x0[i], estimate.noise[i]) + std * z;
        }
        Ok(())
    }
}

impl Sampler for Ddim {
    fn law(&self) -> Option<&dyn GaussianStep> {
        Some(self)
    }

    fn gaussian(&self) -> Option<&dyn GaussianStep> {
        (self.eta > 0.0).then_some(self as &dyn GaussianStep)
    }

    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Ddim {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let estimate = denoiser.estimate(x, &step.from)?;
        draw(x, &self.coefficients(step), &estimate, noise);
        Ok(())
    }
}

/// Draws from a step's law; no noise is drawn for a deviation of zero.
fn draw(x: &mut [f64], law: &StepLaw, estimate: &Estimate, noise: &mut dyn Noise) {
    let z = if law.std > 0.0 { noise.draw() } else { vec![] };
    for (i, x) in x.iter_mut().enumerate() {
        let mean = law.mean(*x, estimate.x0[i], estimate.noise[i]);
        *x = mean + z.get(i).map_or(0.0, |z| law.std * z);
    }
}
