//! Coordinates in which solvers work.
//!
//! Solvers of differential equations follow a continuous path in its own time. A discrete chain has no velocity;
//! there they follow the same curve as `y = x / alpha` over `sigma / alpha`, whose slope is the noise (Karras et al.,
//! 2022, section 2). Solvers that are stated for `sigma` alone use these second coordinates on every path.

use super::Estimate;
use crate::process::{Level, Process, Time, TimeDomain};
use crate::{Error, Result};

/// Less data than this in a state is none: `x / alpha` would be all rounding.
const NOTHING: f64 = 1e-8;

/// `sigma / alpha`: the noise level of `x / alpha`.
pub fn ratio(level: &Level<f64>) -> f64 {
    level.sigma / level.alpha
}

/// Whether no data is left at a level, so that it has no `x / alpha`.
pub fn is_pure_noise(level: &Level<f64>) -> bool {
    level.alpha <= NOTHING * level.sigma
}

/// The level at which `sigma / alpha` is `ratio`. Between the steps of a chain the time is interpolated in the
/// logarithm of the ratio, and below its first step it is that step's.
///
/// # Errors
/// If the path does not reach that ratio.
pub fn level_at_ratio(process: &Process, ratio: f64) -> Result<Level<f64>> {
    if ratio == 0.0 {
        return Ok(process.path.clean());
    }
    let TimeDomain::Step { count } = process.path.domain() else {
        return process.level(process.path.time_of_ratio(ratio)?);
    };
    let of = |step: usize| -> Result<f64> { Ok(self::ratio(&process.level(Time::step(step, count)?)?)) };
    let (mut low, mut high) = (0, count - 1);
    if ratio > of(high)? * (1.0 + 1e-12) {
        return Err(Error::Domain(format!("sigma / alpha = {ratio} is beyond the chain's last step")));
    }
    while high - low > 1 {
        let middle = (low + high) / 2;
        if of(middle)? <= ratio {
            low = middle;
        } else {
            high = middle;
        }
    }
    let (a, b) = (of(low)?, of(high)?);
    let share = if high == low { 0.0 } else { ((ratio / a).ln() / (b / a).ln()).clamp(0.0, 1.0) };
    let alpha = 1.0 / ratio.hypot(1.0);
    Ok(Level { time: low as f64 + share, alpha, sigma: ratio * alpha, rates: None })
}

/// A level in the coordinates of the differential equations: `y = x / scale` over `s`.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// `x = scale y`.
    pub scale: f64,
    /// What is integrated over.
    pub s: f64,
    /// Share of data in `y`.
    pub alpha: f64,
    /// Share of noise in `y`.
    pub sigma: f64,
    /// Derivatives of both by `s`.
    pub rates: (f64, f64),
}

impl Point {
    /// Of a level.
    pub fn of(level: &Level<f64>) -> Point {
        let Level { time, alpha, sigma, rates } = *level;
        match rates {
            Some(rates) => Point { scale: 1.0, s: time, alpha, sigma, rates },
            None => Point { scale: alpha, s: ratio(level), alpha: 1.0, sigma: ratio(level), rates: (0.0, 1.0) },
        }
    }

    /// `dy / ds` of the probability-flow ODE, `alpha' x0 + sigma' n`.
    pub fn velocity(&self, e: &Estimate) -> Vec<f64> {
        let (a, b) = self.rates;
        e.x0.iter().zip(&e.noise).map(|(x0, n)| a * x0 + b * n).collect()
    }

    /// `g^2` of the process's own SDE in these coordinates, `2 (sigma sigma' - alpha' sigma^2 / alpha)`.
    pub fn diffusion(&self) -> f64 {
        let (a, b) = self.rates;
        2.0 * self.sigma * (b - a * self.sigma / self.alpha)
    }
}

/// The level with this `s`, between two others.
pub fn level_at(process: &Process, like: &Level<f64>, s: f64) -> Result<Level<f64>> {
    match like.rates {
        Some(_) => process.level(Time::new(process.path.domain(), s)?),
        None => level_at_ratio(process, s),
    }
}

/// The step of DDIM, which is Euler's in `x / alpha` over `sigma / alpha` and holds from pure noise and to clean data.
pub fn transfer(e: &Estimate, to: &Level<f64>) -> Vec<f64> {
    e.x0.iter().zip(&e.noise).map(|(x0, n)| to.alpha * x0 + to.sigma * n).collect()
}

/// The same along a noise that several evaluations were combined to: `y + (ratio' - ratio) n`.
pub fn transfer_along(x: &[f64], noise: &[f64], from: &Level<f64>, to: &Level<f64>) -> Vec<f64> {
    let keep = to.alpha / from.alpha;
    let add = to.sigma - keep * from.sigma;
    x.iter().zip(noise).map(|(x, n)| keep * x + add * n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Preset;
    use approx::assert_relative_eq as close;

    #[test]
    fn ratios_between_the_steps_of_a_chain() {
        let p = Preset::Ddpm.process();
        let at = |i: usize| p.level(Time::step(i, 1000).unwrap()).unwrap();
        let level = level_at_ratio(&p, ratio(&at(417))).unwrap();
        close!(level.time, 417.0, max_relative = 1e-10);
        close!(level.sigma, at(417).sigma, max_relative = 1e-10);
        let between = level_at_ratio(&p, (ratio(&at(10)) * ratio(&at(11))).sqrt()).unwrap();
        close!(between.time, 10.5, max_relative = 1e-10);
        close!(between.sigma.powi(2) + between.alpha.powi(2), 1.0, max_relative = 1e-12);
        assert_eq!(level_at_ratio(&p, 1e-4).unwrap().time, 0.0);
        assert!(level_at_ratio(&p, 1e4).is_err());
        assert_eq!(level_at_ratio(&p, 0.0).unwrap(), p.path.clean());
    }

    /// `g^2` of the straight path is `2 t / (1 - t)`: taking half of it, `t / (1 - t)`, halves the noise.
    #[test]
    fn diffusion_of_the_reverse_sde_is_whole() {
        let p = Preset::Sit.process();
        for t in [0.1, 0.5, 0.9] {
            let level = p.level(Time::unit(t).unwrap()).unwrap();
            close!(Point::of(&level).diffusion(), 2.0 * t / (1.0 - t), max_relative = 1e-12);
        }
        let edm = Preset::Edm.process();
        let level = edm.level(Time::sigma(3.0).unwrap()).unwrap();
        close!(Point::of(&level).diffusion(), 6.0);
        let chain = Preset::Ddpm.process().level(Time::step(300, 1000).unwrap()).unwrap();
        close!(Point::of(&chain).diffusion(), 2.0 * ratio(&chain));
    }
}
