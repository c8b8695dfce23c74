//! Few-step samplers of networks that jump: flow maps between two levels, and consistency functions, which go to
//! clean data at once and are noised again for the next level.

use super::chart::{Point, is_pure_noise, ratio, transfer, transfer_along};
use super::kernel::StepLaw;
use super::{Denoiser, GaussianStep, Noise, Run, Sampler, Step, Stepper};
use crate::process::{Level, Process, Time, TimeDomain};
use crate::{Error, Result};

/// `x + (r - t) u(x, t, r)` with a network of the mean velocity `u` (Geng et al., 2025, eq. 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeanFlow;

impl Sampler for MeanFlow {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        if run.grid.levels[0].rates.is_none() {
            let message = "mean_flow jumps along a continuous path; a chain has no velocity";
            return Err(Error::config("sample.sampler", message));
        }
        Ok(Box::new(*self))
    }
}

impl Stepper for MeanFlow {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        let u = Point::of(&step.from).velocity(&denoiser.estimate_jump(x, &step.from, &step.to)?);
        let h = step.to.time - step.from.time;
        x.iter_mut().zip(u).for_each(|(x, u)| *x += h * u);
        Ok(())
    }
}

/// Goes to the estimated data and adds fresh noise for the next level: multistep consistency sampling (Song et al.,
/// 2023, algorithm 1), sCM's on a trigonometric path, flow-matching LCM and stochastic flow sampling on the straight
/// one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Renoise {
    /// The `sigma / alpha` that a consistency function takes for clean, which the fresh noise is less by.
    pub floor: f64,
}

impl Renoise {
    /// `alpha x0` and noise of the level less the floor's.
    pub(super) fn coefficients(&self, step: &Step) -> StepLaw {
        let std = (step.to.sigma.powi(2) - (step.to.alpha * self.floor).powi(2)).max(0.0).sqrt();
        StepLaw { state: 0.0, data: step.to.alpha, noise: 0.0, std }
    }
}

impl Sampler for Renoise {
    fn law(&self) -> Option<&dyn GaussianStep> {
        Some(self)
    }

    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Renoise {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let x0 = denoiser.estimate(x, &step.from)?.x0;
        renoise(x, &x0, &step.to, self.floor, noise);
        Ok(())
    }
}

/// `alpha x0` and noise of the level less the floor's.
fn renoise(x: &mut [f64], x0: &[f64], to: &Level<f64>, floor: f64, noise: &mut dyn Noise) {
    let std = (to.sigma.powi(2) - (to.alpha * floor).powi(2)).max(0.0).sqrt();
    let z = if std > 0.0 { noise.draw() } else { vec![] };
    for (i, (x, x0)) in x.iter_mut().zip(x0).enumerate() {
        *x = to.alpha * x0 + z.get(i).map_or(0.0, |z| std * z);
    }
}

/// LCM (Luo et al., 2023): as [`Renoise`], of the boundary form `c_skip x + c_out x0`, whose step 0 is the identity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lcm {
    /// Factor of the time in the boundary coefficients.
    pub time_scaling: f64,
    /// Their `sigma_data`.
    pub sigma_data: f64,
}

impl Default for Lcm {
    fn default() -> Lcm {
        Lcm { time_scaling: 10.0, sigma_data: 0.5 }
    }
}

impl Sampler for Lcm {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        chain(run.process, "lcm")?;
        Ok(Box::new(*self))
    }
}

impl Stepper for Lcm {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let mut x0 = denoiser.estimate(x, &step.from)?.x0;
        let t = step.from.time * self.time_scaling;
        let variance = t * t + self.sigma_data.powi(2);
        let (skip, out) = (self.sigma_data.powi(2) / variance, t / variance.sqrt());
        x0.iter_mut().zip(x.iter()).for_each(|(x0, x)| *x0 = out * *x0 + skip * x);
        renoise(x, &x0, &step.to, 0.0, noise);
        Ok(())
    }
}

/// TCD (Zheng et al., 2024): goes to the level a share `gamma` of the way from the next to clean data, then adds
/// noise up to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tcd {
    /// 0: DDIM; 1: through clean data.
    pub gamma: f64,
}

struct TcdRun {
    gamma: f64,
    process: Process,
}

impl Sampler for Tcd {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        if !(0.0..=1.0).contains(&self.gamma) {
            return Err(Error::config("sample.gamma", format!("is {}; it must be in [0, 1]", self.gamma)));
        }
        Ok(Box::new(TcdRun { gamma: self.gamma, process: run.process.clone() }))
    }
}

impl Stepper for TcdRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let e = denoiser.estimate(x, &step.from)?;
        if step.is_last() {
            x.copy_from_slice(&e.x0);
            return Ok(());
        }
        let domain = self.process.path.domain();
        let s = (1.0 - self.gamma) * step.to.time;
        // Steps of a chain are whole.
        let s = if matches!(domain, TimeDomain::Step { .. }) { s.floor() } else { s };
        let below = if s == step.to.time { step.to } else { self.process.level(Time::new(domain, s)?)? };
        let at = transfer(&e, &below);
        let keep = step.to.alpha / below.alpha;
        let std = (step.to.sigma.powi(2) - (keep * below.sigma).powi(2)).max(0.0).sqrt();
        let z = if std > 0.0 { noise.draw() } else { vec![] };
        for (i, (x, at)) in x.iter_mut().zip(at).enumerate() {
            *x = keep * at + z.get(i).map_or(0.0, |z| std * z);
        }
        Ok(())
    }
}

fn chain(process: &Process, sampler: &str) -> Result<()> {
    match process.path.domain() {
        TimeDomain::Step { .. } => Ok(()),
        _ => {
            let name = process.path.name();
            let message =
                format!("{sampler} counts the steps of a chain; path {name} has none (consistency has no need)");
            Err(Error::config("sample.sampler", message))
        }
    }
}

/// DDIM backwards: from data to the noise that DDIM takes to it, along a grid walked upwards. The noise is estimated
/// at the level gone to, so that the step from clean data has one.
///
/// # Errors
/// The network's errors.
pub fn invert(mut x: Vec<f64>, denoiser: &mut Denoiser<'_>, grid: &super::Grid) -> Result<Vec<f64>> {
    for pair in grid.levels.windows(2).rev() {
        let (from, to) = (&pair[1], &pair[0]);
        let noise = denoiser.estimate(&x, to)?.noise;
        if is_pure_noise(to) || ratio(to) <= ratio(from) {
            let time = to.time;
            return Err(Error::Domain(format!("inversion ends where data is left, not at time {time}")));
        }
        x = transfer_along(&x, &noise, from, to);
    }
    Ok(x)
}
