//! Solvers that are stated for `y = x / alpha` over `sigma / alpha`: EDM's stochastic sampler, Euler ancestral, DPM2
//! and DPM2 ancestral (Karras et al., 2022, algorithm 2; Crowson, k-diffusion). On every path, through that change
//! of variable. From pure noise, which has no `x / alpha`, the first step is DDIM's.

use super::chart::{is_pure_noise, level_at_ratio, ratio, transfer};
use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::process::Level;
use crate::{Error, Result};

/// EDM's stochastic sampler: noise is raised a little, then Heun's step goes from there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edm {
    /// Total churn, spread over the steps; 0: Heun.
    pub churn: f64,
    /// Least `sigma / alpha` at which there is churn.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// Standard deviation of the fresh noise, a little above 1 against the blur of imperfect networks.
    pub noise: f64,
}

impl Default for Edm {
    fn default() -> Edm {
        Edm { churn: 0.0, min: 0.0, max: f64::INFINITY, noise: 1.0 }
    }
}

/// Euler's step to a little below the next level, and noise up to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EulerAncestral {
    /// Share of the posterior's standard deviation that is fresh noise; 0: Euler.
    pub eta: f64,
}

/// The midpoint rule in `ln sigma`, ancestral with `eta > 0`. Two evaluations a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpm2 {
    /// As in [`EulerAncestral`].
    pub eta: f64,
}

/// The deviation that a deterministic step goes down to and the noise that is then added.
pub(super) fn split(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = (eta * (to * to * (from * from - to * to)).max(0.0).sqrt() / from).min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// `y += h n`, in `x`.
fn moved(x: &[f64], n: &[f64], from: &Level<f64>, to_alpha: f64, h: f64) -> Vec<f64> {
    x.iter().zip(n).map(|(x, n)| to_alpha * (x / from.alpha + h * n)).collect()
}

fn add_noise(x: &mut [f64], std: f64, noise: &mut dyn Noise) {
    if std > 0.0 {
        x.iter_mut().zip(noise.draw()).for_each(|(x, z)| *x += std * z);
    }
}

fn bad<T>(key: &str, message: String) -> Result<T> {
    Err(Error::config(format!("sample.{key}"), message))
}

struct EdmRun {
    edm: Edm,
    gamma: f64,
    top: f64,
}

impl Sampler for Edm {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        for (key, value) in [("s_churn", self.churn), ("s_min", self.min), ("s_noise", self.noise)] {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(key, format!("is {value}; it must be 0 or more"));
            }
        }
        if !(self.max >= self.min) {
            return bad("s_max", format!("is {}, below s_min = {}", self.max, self.min));
        }
        let gamma = (self.churn / run.grid.steps() as f64).min(2f64.sqrt() - 1.0);
        let high =
            run.process.level(crate::process::Time::new(run.process.path.domain(), run.process.time_range[1])?)?;
        // EDM's own sigma may be raised above its range, as published; other paths end there.
        let top =
            if run.process.path.domain() == crate::process::TimeDomain::Sigma { f64::INFINITY } else { ratio(&high) };
        Ok(Box::new(EdmRun { edm: *self, gamma, top }))
    }
}

impl Stepper for EdmRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        if is_pure_noise(&step.from) {
            let e = denoiser.estimate(x, &step.from)?;
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let process = denoiser.process();
        let (sigma, to) = (ratio(&step.from), ratio(&step.to));
        let within = (self.edm.min..=self.edm.max).contains(&sigma);
        let raised = if within { (sigma * (1.0 + self.gamma)).min(self.top).max(sigma) } else { sigma };
        let mut from = step.from;
        if raised > sigma {
            let (level, std) = (level_at_ratio(process, raised)?, (raised * raised - sigma * sigma).sqrt());
            for (x, z) in x.iter_mut().zip(noise.draw()) {
                *x = level.alpha * (*x / from.alpha + self.edm.noise * std * z);
            }
            from = level;
        }
        let h = to - ratio(&from);
        let mut n = denoiser.estimate(x, &from)?.noise;
        let euler = moved(x, &n, &from, step.to.alpha, h);
        if step.is_last() {
            x.copy_from_slice(&euler);
            return Ok(());
        }
        let second = denoiser.estimate(&euler, &step.to)?.noise;
        n.iter_mut().zip(second).for_each(|(a, b)| *a = 0.5 * (*a + b));
        x.copy_from_slice(&moved(x, &n, &from, step.to.alpha, h));
        Ok(())
    }
}

fn check_eta(eta: f64) -> Result<()> {
    if (0.0..=1.0).contains(&eta) { Ok(()) } else { bad("eta", format!("is {eta}; it must be in [0, 1]")) }
}

impl Sampler for EulerAncestral {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        check_eta(self.eta)?;
        Ok(Box::new(*self))
    }
}

impl Stepper for EulerAncestral {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let e = denoiser.estimate(x, &step.from)?;
        if is_pure_noise(&step.from) {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let (down, up) = split(ratio(&step.from), ratio(&step.to), self.eta);
        x.copy_from_slice(&moved(x, &e.noise, &step.from, step.to.alpha, down - ratio(&step.from)));
        add_noise(x, step.to.alpha * up, noise);
        Ok(())
    }
}

impl Sampler for Dpm2 {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        check_eta(self.eta)?;
        Ok(Box::new(*self))
    }
}

impl Stepper for Dpm2 {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let process = denoiser.process();
        let e = denoiser.estimate(x, &step.from)?;
        if is_pure_noise(&step.from) || step.is_last() {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let from = ratio(&step.from);
        let (down, up) = split(from, ratio(&step.to), self.eta);
        let n = if down > 0.0 {
            let middle = level_at_ratio(process, (from * down).sqrt())?;
            let x = moved(x, &e.noise, &step.from, middle.alpha, ratio(&middle) - from);
            denoiser.estimate(&x, &middle)?.noise
        } else {
            e.noise
        };
        x.copy_from_slice(&moved(x, &n, &step.from, step.to.alpha, down - from));
        add_noise(x, step.to.alpha * up, noise);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn down_and_up_make_the_level() {
        for (from, to) in [(80.0, 57.0), (1.0, 0.1), (0.3, 0.0)] {
            for eta in [0.0, 0.5, 1.0] {
                let (down, up) = split(from, to, eta);
                assert!((down * down + up * up - to * to).abs() < 1e-12 * from * from);
                assert!((up - eta * to * (1.0 - to * to / (from * from)).sqrt()).abs() < 1e-12 * from);
            }
        }
    }
}
