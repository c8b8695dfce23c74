//! Solvers of the stochastic differential equations that share the process's marginals.
//!
//! With any `w(t) >= 0`, integrating `dx = (v - w s / 2) dt + sqrt(w) dW` from noise to data, `v` the velocity of
//! the probability-flow ODE and `s` the score, leaves the law of `x_t` what it is (Ma et al., 2024, eq. 4-5): `w = 0`
//! is the ODE, `w = g^2` the reverse-time SDE. Where a published name gives `D` with noise `sqrt(2 D)`, `w = 2 D`.

use super::chart::{Point, transfer};
use super::{Denoiser, Estimate, Noise, Run, Sampler, Step, Stepper};
use crate::process::{Level, TimeDomain};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// `w`, up to its scale `k`, as a function of the level; `t` runs from 0 at data to 1 at noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Diffusion {
    /// `k sigma`: with `k = 2` finite on every path, and the reverse-time SDE's own on `ve`.
    #[default]
    Sigma,
    /// `k g^2`: with `k = 1` the reverse-time SDE's. Infinite where nothing of the data is left.
    Reverse,
    /// `k`.
    Constant,
    /// `k t`.
    Linear,
    /// `(1 - k cos(pi t))^2 / 4`: most at noise.
    Decreasing,
    /// `k sin^2(pi t)`: none at both ends.
    IncreasingDecreasing,
    /// `(1 + k sin(pi t))^2 / 4`: most half-way.
    Concave,
}

impl Diffusion {
    /// All of them.
    pub const ALL: [Diffusion; 7] = [
        Diffusion::Sigma,
        Diffusion::Reverse,
        Diffusion::Constant,
        Diffusion::Linear,
        Diffusion::Decreasing,
        Diffusion::IncreasingDecreasing,
        Diffusion::Concave,
    ];

    /// The scale that is usual.
    pub fn usual_scale(self) -> f64 {
        match self {
            Diffusion::Sigma | Diffusion::Linear => 2.0,
            _ => 1.0,
        }
    }

    /// Whether it is a function of a time in `[0, 1]`.
    fn wants_unit_time(self) -> bool {
        match self {
            Diffusion::Sigma | Diffusion::Reverse | Diffusion::Constant => false,
            Diffusion::Linear | Diffusion::Decreasing | Diffusion::IncreasingDecreasing | Diffusion::Concave => true,
        }
    }

    /// `w` at a level, in the coordinates of its [`Point`].
    fn at(self, k: f64, level: &Level<f64>, point: &Point) -> f64 {
        let t = level.time;
        match self {
            Diffusion::Sigma => k * point.sigma,
            Diffusion::Reverse => k * point.diffusion(),
            Diffusion::Constant => k,
            Diffusion::Linear => k * t,
            Diffusion::Decreasing => 0.25 * (1.0 - k * (PI * t).cos()).powi(2),
            Diffusion::IncreasingDecreasing => k * (PI * t).sin().powi(2),
            Diffusion::Concave => 0.25 * (1.0 + k * (PI * t).sin()).powi(2),
        }
    }
}

/// How the step to clean data is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastStep {
    /// The SDE's step without its noise.
    #[default]
    Mean,
    /// The estimated data, `(x + sigma^2 s) / alpha`.
    Tweedie,
    /// A step of the ODE.
    Euler,
    /// Not at all: the state stays at the last noisy level.
    None,
}

/// Euler-Maruyama: first order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EulerMaruyama {
    /// The diffusion.
    pub diffusion: Diffusion,
    /// Its scale.
    pub scale: f64,
    /// The last step.
    pub last: LastStep,
}

/// Heun's method after the noise: it is added first, then the drift is the mean of both ends'. Two evaluations a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SdeHeun(pub EulerMaruyama);

impl EulerMaruyama {
    /// `dy / ds` of the drift.
    fn drift(&self, e: &Estimate, level: &Level<f64>) -> Vec<f64> {
        let point = Point::of(level);
        let mut v = point.velocity(e);
        // The score of y is -n / sigma.
        let half = 0.5 * self.diffusion.at(self.scale, level, &point) / point.sigma;
        v.iter_mut().zip(&e.noise).for_each(|(v, n)| *v += half * n);
        v
    }

    /// Adds to `y` the noise of a step of this length.
    fn disturb(&self, y: &mut [f64], level: &Level<f64>, h: f64, noise: &mut dyn Noise) {
        let std = (self.diffusion.at(self.scale, level, &Point::of(level)) * h.abs()).sqrt();
        if std > 0.0 {
            y.iter_mut().zip(noise.draw()).for_each(|(y, z)| *y += std * z);
        }
    }

    fn finish(&self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step) -> Result<()> {
        if self.last == LastStep::None {
            return Ok(());
        }
        let e = denoiser.estimate(x, &step.from)?;
        let slope = match self.last {
            LastStep::Tweedie | LastStep::None => {
                x.copy_from_slice(&transfer(&e, &step.to));
                return Ok(());
            }
            LastStep::Mean => self.drift(&e, &step.from),
            LastStep::Euler => Point::of(&step.from).velocity(&e),
        };
        let (from, to) = (Point::of(&step.from), Point::of(&step.to));
        x.iter_mut().zip(slope).for_each(|(x, d)| *x = to.scale * (*x / from.scale + (to.s - from.s) * d));
        Ok(())
    }

    fn check(&self, run: &Run<'_>) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        if !(self.scale >= 0.0) {
            return bad("diffusion_scale", format!("is {}; it must be 0 or more", self.scale));
        }
        if self.diffusion.wants_unit_time() && run.process.path.domain() != TimeDomain::Unit {
            let name = run.process.path.name();
            return bad(
                "diffusion",
                format!("{:?} is a function of t in [0, 1]; path {name} has none", self.diffusion),
            );
        }
        let first = &run.grid.levels[0];
        let w = self.diffusion.at(self.scale, first, &Point::of(first));
        if !(w.is_finite() && w < 1e12) {
            let t = first.time;
            return bad(
                "diffusion",
                format!(
                    "{:?} is {w:.3e} at time {t}, where nothing of the data is left; begin below it (process.time_range) or choose sigma",
                    self.diffusion
                ),
            );
        }
        Ok(())
    }
}

impl Sampler for EulerMaruyama {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        self.check(run)?;
        Ok(Box::new(*self))
    }
}

impl Stepper for EulerMaruyama {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        if step.is_last() {
            return self.finish(x, denoiser, step);
        }
        let (from, to) = (Point::of(&step.from), Point::of(&step.to));
        let h = to.s - from.s;
        let d = self.drift(&denoiser.estimate(x, &step.from)?, &step.from);
        let mut y: Vec<f64> = x.iter().zip(d).map(|(x, d)| x / from.scale + h * d).collect();
        self.disturb(&mut y, &step.from, h, noise);
        x.iter_mut().zip(y).for_each(|(x, y)| *x = to.scale * y);
        Ok(())
    }
}

impl Sampler for SdeHeun {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        self.0.check(run)?;
        Ok(Box::new(*self))
    }
}

impl Stepper for SdeHeun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        if step.is_last() {
            return self.0.finish(x, denoiser, step);
        }
        let (from, to) = (Point::of(&step.from), Point::of(&step.to));
        let h = to.s - from.s;
        let mut y: Vec<f64> = x.iter().map(|x| x / from.scale).collect();
        self.0.disturb(&mut y, &step.from, h, noise);
        let at = |y: &[f64], scale: f64| y.iter().map(|y| scale * y).collect::<Vec<f64>>();
        let first = self.0.drift(&denoiser.estimate(&at(&y, from.scale), &step.from)?, &step.from);
        let euler: Vec<f64> = y.iter().zip(&first).map(|(y, d)| y + h * d).collect();
        let second = self.0.drift(&denoiser.estimate(&at(&euler, to.scale), &step.to)?, &step.to);
        for (x, ((y, a), b)) in x.iter_mut().zip(y.iter().zip(first).zip(second)) {
            *x = to.scale * (y + 0.5 * h * (a + b));
        }
        Ok(())
    }
}
