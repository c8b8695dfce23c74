//! From a network's output to an estimate of data and noise, with guidance.

use crate::process::{Level, Process};
use crate::{Error, Result};
use dnx_ir::Array;

/// One evaluation of the network that a denoiser asks for.
#[derive(Clone, Copy, Debug)]
pub struct NetworkCall<'a> {
    /// What the network sees: the state times `c_in`, `[B, ..]`.
    pub x: &'a Array,
    /// What its time embedding is fed with.
    pub time: f64,
    /// What the second time embedding of a network of two times is fed with; 0 where no jump is meant.
    pub second: f64,
    /// The level, for networks that use the noise scale and for analytic ones.
    pub level: Level<f64>,
    /// `c_in`.
    pub input_scale: f64,
    /// The guidance in force here: 1 is the conditional network alone.
    pub guidance: f64,
}

/// Classifier-free guidance: `u + scale (c - u)` of the unconditional and conditional outputs. All estimates are
/// linear in the output, so it is the same on data, noise and velocity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// The scale; 1: none.
    pub scale: f64,
    /// Times, in the path's unit, between which it acts (both included); elsewhere the scale is 1.
    pub interval: Option<[f64; 2]>,
}

impl Guidance {
    /// The conditional network alone.
    pub const NONE: Guidance = Guidance { scale: 1.0, interval: None };

    /// The scale at a level.
    pub fn at(&self, level: &Level<f64>) -> f64 {
        match self.interval {
            Some([low, high]) if !(low..=high).contains(&level.time) => 1.0,
            _ => self.scale,
        }
    }
}

/// What a state is made of, `x = alpha x0 + sigma n`, element by element.
pub struct Estimate {
    /// The data.
    pub x0: Vec<f64>,
    /// The noise.
    pub noise: Vec<f64>,
}

type Network<'a> = Box<dyn FnMut(&NetworkCall<'_>) -> Result<Array> + 'a>;
type Known<'a> = Box<dyn FnMut(&[f64], &Level<f64>) -> Result<Estimate> + 'a>;

/// Where estimates come from.
enum Source<'a> {
    Network(Network<'a>),
    Known(Known<'a>),
}

/// A network seen through its process.
pub struct Denoiser<'a> {
    process: &'a Process,
    dims: Vec<usize>,
    source: Source<'a>,
    guidance: Guidance,
    clip: Option<f64>,
    evaluations: usize,
}

impl<'a> Denoiser<'a> {
    /// A denoiser of states of these dims `[B, ..]` by a network: a device's program or any function.
    pub fn new(
        process: &'a Process,
        dims: &[usize],
        network: impl FnMut(&NetworkCall<'_>) -> Result<Array> + 'a,
    ) -> Denoiser<'a> {
        Denoiser::of(process, dims, Source::Network(Box::new(network)))
    }

    /// A denoiser by a law that is known in closed form, in `f64` throughout: what solvers are measured against.
    pub fn known(
        process: &'a Process,
        dims: &[usize],
        estimate: impl FnMut(&[f64], &Level<f64>) -> Result<Estimate> + 'a,
    ) -> Denoiser<'a> {
        Denoiser::of(process, dims, Source::Known(Box::new(estimate)))
    }

    fn of(process: &'a Process, dims: &[usize], source: Source<'a>) -> Denoiser<'a> {
        Denoiser { process, dims: dims.to_vec(), source, guidance: Guidance::NONE, clip: None, evaluations: 0 }
    }

    /// With guidance.
    pub fn with_guidance(self, guidance: Guidance) -> Denoiser<'a> {
        Denoiser { guidance, ..self }
    }

    /// With estimated data kept within `[-bound, bound]` (the noise estimate follows).
    pub fn with_clip(self, bound: Option<f64>) -> Denoiser<'a> {
        Denoiser { clip: bound, ..self }
    }

    /// The process.
    pub fn process(&self) -> &'a Process {
        self.process
    }

    /// How many times the network was evaluated (a guided evaluation counts once).
    pub fn evaluations(&self) -> usize {
        self.evaluations
    }

    /// The dims of states, `[B, ..]`.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The estimate of what the states `x` at a level are made of.
    pub fn estimate(&mut self, x: &[f64], level: &Level<f64>) -> Result<Estimate> {
        self.estimate_jump(x, level, level)
    }

    /// The estimate that a network of two times has for the jump from a level to `target`. With MeanFlow its velocity
    /// is the mean one over the jump, so that one Euler step makes it. A network of one time does not know the target.
    pub fn estimate_jump(&mut self, x: &[f64], level: &Level<f64>, target: &Level<f64>) -> Result<Estimate> {
        if level.sigma == 0.0 {
            return Err(Error::Domain("a clean state was given to the denoiser".into()));
        }
        self.evaluations += 1;
        let mut estimate = match &mut self.source {
            Source::Known(known) => known(x, level)?,
            Source::Network(network) => {
                let c = self.process.coefficients(level);
                let scaled: Vec<f32> = x.iter().map(|&v| (c.c_in * v) as f32).collect();
                let call = NetworkCall {
                    x: &Array::f32(self.dims.clone(), &scaled),
                    time: self.process.time_input(level),
                    second: self.process.second_input(level, target),
                    level: *level,
                    input_scale: c.c_in,
                    guidance: self.guidance.at(level),
                };
                let output = network(&call)?;
                if output.dims() != self.dims {
                    let (got, want) = (output.dims(), &self.dims);
                    return Err(Error::Domain(format!("the network gave dims {got:?} for a state of {want:?}")));
                }
                let [a, b, d, e] = c.solve(level);
                let pairs = x.iter().zip(output.to_f64_vec());
                let (x0, noise) = pairs.map(|(x, f)| (a * x + b * f, d * x + e * f)).unzip();
                Estimate { x0, noise }
            }
        };
        if let Some(bound) = self.clip {
            for ((x0, noise), &x) in estimate.x0.iter_mut().zip(&mut estimate.noise).zip(x) {
                if x0.abs() > bound {
                    *x0 = x0.clamp(-bound, bound);
                    *noise = (x - level.alpha * *x0) / level.sigma;
                }
            }
        }
        Ok(estimate)
    }
}
