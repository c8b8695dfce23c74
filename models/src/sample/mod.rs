//! Samplers: from noise to data along a grid of noise levels.
//!
//! A [`Sampler`] is a choice of solver with its settings; it starts a [`Stepper`] per run, which keeps what the run
//! needs (the history of a multistep solver, the step size of an adaptive one) and makes one [`Step`] from a level
//! to the next. [`sample`] drives it over a grid. It asks a [`Denoiser`] what data and noise a state consists of, so
//! any network is sampled by any sampler: the process turns the network's output into that estimate. The network is
//! compiled once.
//!
//! Written like this, the steps are host arithmetic: states are `f64` and rounded to `f32` for the network alone, since
//! from sigma 80 to 0.002 an `f32` state would keep three digits of what the last steps add. Of most samplers a
//! [`Generator`] has the steps made by the device ([`Recording`]), with states that are sums of two `f32`.
//!
//! The noise of each sample is a function of that sample's own seed ([`SampleNoise`]), and all steps act on each
//! sample alone, so a seed gives the same picture whatever batch it is drawn in.

mod adams;
mod ays;
mod chart;
mod conditioned;
mod config;
mod corrector;
mod denoise;
mod exponential;
mod flow_map;
mod forcing;
mod generator;
mod grid;
mod guidance;
mod inpaint;
mod inverse;
mod karras;
mod kernel;
mod langevin;
mod likelihood;
mod multistep;
mod names;
mod noise;
mod play;
mod posterior;
mod programs;
mod quantile;
mod record;
mod resample;
mod runge_kutta;
mod sheet;
mod smc;
mod speculative;
mod steer;
mod stochastic;
mod unipc;

pub use adams::SaSolver;
pub use chart::{is_pure_noise, level_at_ratio, ratio};
pub use conditioned::Conditioned;
pub use config::SampleConfig;
pub use corrector::PredictorCorrector;
pub use denoise::{Branch, Denoiser, Estimate, Model, NetworkCall};
pub use exponential::{Correction, DpmSde, DpmSolver, Form, History};
pub use flow_map::{Lcm, MeanFlow, Renoise, Tcd, invert};
pub use forcing::{Forcing, forced};
pub use generator::{Edit, Generator, Observe, Request};
pub use grid::{FinalLevel, Grid, GridKind, Spacing, dynamic_shift};
pub use guidance::{Guidance, GuidanceKind};
pub use inpaint::{Dps, Known, Repaint, inpaint, noised};
pub use inverse::{INVERSES, Inverse, InverseMethod};
pub use karras::{Dpm2, Edm, EulerAncestral};
pub use kernel::{GaussianStep, StepLaw};
pub use langevin::Langevin;
pub use likelihood::{Accuracy, Flow, Trace, bits_per_dim, dequantized, log_likelihood};
pub use multistep::{Multistep, Rule};
pub use names::{GRIDS, SAMPLERS, SamplerInfo, SamplerKind};
pub use noise::{Noise, SampleNoise};
pub use posterior::{Ddim, Ddpm, PosteriorVariance};
pub use programs::{ForwardProgram, forward_program, jvp_program, vjp_program};
pub use record::{Evaluation, MOST_SLOTS, Recording, Sum, Term};
pub use resample::{Resampling, Uniforms};
pub use runge_kutta::{Adaptive, Euler, Heun, RungeKutta, Tableau};
pub use smc::{Cloud, Particles, Potential, Smc, Steering, geometric, steer, twisted};
pub use speculative::{Speculated, couple, speculate};
pub use steer::{Classifier, Measurement, Operator, Reward, ScoreTerm, Twist, Twisted};
pub use stochastic::{Diffusion, EulerMaruyama, LastStep, SdeHeun};
pub use unipc::{Bh, UniPc};

use crate::process::{Level, Process};
use crate::{Error, Result};

/// One step of a sampler: from a level of the grid to the next.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its number, from 0.
    pub index: usize,
    /// The level the state is at.
    pub from: Level<f64>,
    /// The level it goes to; the last one is clean.
    pub to: Level<f64>,
}

impl Step {
    /// Whether this is the step to clean data.
    pub fn is_last(&self) -> bool {
        self.to.sigma == 0.0
    }
}

/// What a run of a sampler is over.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The process.
    pub process: &'a Process,
    /// The grid, as [`Sampler::levels`] left it.
    pub grid: &'a Grid,
}

/// A way to go from noise to data, with its settings.
pub trait Sampler {
    /// The levels it stops at: all of the grid's, unless the solver chooses its own times between the grid's ends.
    fn levels(&self, process: &Process, grid: &Grid) -> Result<Grid> {
        let _ = process;
        Ok(grid.clone())
    }

    /// The law of its steps, if each is made of one estimate alone: what forcing needs.
    fn law(&self) -> Option<&dyn GaussianStep> {
        None
    }

    /// The same if they draw something: what speculation and twisted particles need.
    fn gaussian(&self) -> Option<&dyn GaussianStep> {
        None
    }

    /// Whether its runs can be recorded ([`Recording`]): every state and every state that the network is asked about is
    /// a linear combination of the first state, the network's outputs and the draws, one for all elements, whose
    /// coefficients the grid alone decides, as it does how often and where the network is asked.
    fn is_linear(&self) -> bool;

    /// Begins a run, with nothing remembered of any other.
    ///
    /// # Errors
    /// If the solver has no meaning on this path or grid, and why.
    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>>;
}

impl Sampler for &dyn Sampler {
    fn levels(&self, process: &Process, grid: &Grid) -> Result<Grid> {
        (**self).levels(process, grid)
    }

    fn law(&self) -> Option<&dyn GaussianStep> {
        (**self).law()
    }

    fn gaussian(&self) -> Option<&dyn GaussianStep> {
        (**self).gaussian()
    }

    fn is_linear(&self) -> bool {
        (**self).is_linear()
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        (**self).start(run)
    }
}

/// A run of a sampler. Its steps are taken in the grid's order, each once.
pub trait Stepper {
    /// Replaces the state `x` (`[B, ..]`, at level `step.from`) by one at level `step.to`.
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()>;
}

/// The standard deviation of states at a level, for data of the process's own deviation: that of the first state.
pub fn marginal_std(process: &Process, level: &Level<f64>) -> f64 {
    level.sigma.hypot(level.alpha * process.sigma_data)
}

/// Samples: starts from noise at the grid's first level and steps to its last. `observe` sees the state after
/// every step (and the first one, as step 0 of its own) with the level it is at.
///
/// # Errors
/// The network's errors, and a state that is no longer finite, with the step that made it so.
pub fn sample(
    sampler: &dyn Sampler,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
) -> Result<Vec<f64>> {
    let std = marginal_std(denoiser.process(), &grid.levels[0]);
    let x: Vec<f64> = noise.draw().iter().map(|&z| std * z).collect();
    sample_from(x, sampler, denoiser, grid, noise, observe)
}

/// [`sample`] from a given state at the grid's first level.
pub fn sample_from(
    mut x: Vec<f64>,
    sampler: &dyn Sampler,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
) -> Result<Vec<f64>> {
    let grid = sampler.levels(denoiser.process(), grid)?;
    let mut stepper = sampler.start(&Run { process: denoiser.process(), grid: &grid })?;
    observe(0, &grid.levels[0], &x);
    for (index, pair) in grid.levels.windows(2).enumerate() {
        let step = Step { index, from: pair[0], to: pair[1] };
        stepper.step(&mut x, denoiser, &step, noise)?;
        if let Some(at) = x.iter().position(|v| !v.is_finite()) {
            let (value, time) = (x[at], step.from.time);
            return Err(Error::Domain(format!("the state became {value} in step {index} (from time {time})")));
        }
        observe(index + 1, &step.to, &x);
    }
    Ok(x)
}
