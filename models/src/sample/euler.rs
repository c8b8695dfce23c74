//! Solvers of the probability-flow ODE: Euler and Heun.
//!
//! On a continuous path they follow the velocity `alpha' x0 + sigma' n` in the path's time. A discrete chain has
//! no velocity; there they follow the same curve as `x / alpha` over `sigma / alpha`, whose slope is the noise.

use super::{Denoiser, Estimate, Noise, Run, Sampler, Step, Stepper};
use crate::Result;
use crate::process::Level;

/// `x + h d(x, t)`: first order.
#[derive(Clone, Copy, Debug)]
pub struct Euler;

/// The mean of the slopes at both ends: second order, two evaluations a step. The second is a fresh evaluation at
/// the Euler step's end; the last step, to clean data, is Euler's.
#[derive(Clone, Copy, Debug)]
pub struct Heun;

/// Coordinates in which the ODE is solved: `y = x / scale` over `s`.
#[derive(Clone, Copy)]
struct Chart {
    scale: f64,
    s: f64,
}

fn chart(level: &Level<f64>) -> Chart {
    match level.rates {
        Some(_) => Chart { scale: 1.0, s: level.time },
        None => Chart { scale: level.alpha, s: level.sigma / level.alpha },
    }
}

/// `dy / ds` per element.
fn slopes(e: &Estimate, level: &Level<f64>) -> Vec<f64> {
    let (a, b) = level.rates.unwrap_or((0.0, 1.0));
    // A rate may be infinite where its factor is zero (sigma' of the vp path at t = 0), but nothing is asked there.
    e.x0.iter().zip(&e.noise).map(|(x0, n)| a * x0 + b * n).collect()
}

/// `x` moved by `slopes` from one level to another.
fn moved(x: &[f64], slopes: &[f64], from: &Level<f64>, to: &Level<f64>) -> Vec<f64> {
    let (from, to) = (chart(from), chart(to));
    let h = to.s - from.s;
    x.iter().zip(slopes).map(|(&x, d)| to.scale * (x / from.scale + h * d)).collect()
}

impl Sampler for Euler {
    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Euler {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        let d = slopes(&denoiser.estimate(x, &step.from)?, &step.from);
        x.copy_from_slice(&moved(x, &d, &step.from, &step.to));
        Ok(())
    }
}

impl Sampler for Heun {
    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Heun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        let mut d = slopes(&denoiser.estimate(x, &step.from)?, &step.from);
        let euler = moved(x, &d, &step.from, &step.to);
        if step.is_last() {
            x.copy_from_slice(&euler);
            return Ok(());
        }
        let end = slopes(&denoiser.estimate(&euler, &step.to)?, &step.to);
        d.iter_mut().zip(end).for_each(|(d, e)| *d = 0.5 * (*d + e));
        x.copy_from_slice(&moved(x, &d, &step.from, &step.to));
        Ok(())
    }
}
