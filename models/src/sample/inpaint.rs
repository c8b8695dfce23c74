//! Samples that begin with, or keep, something given.
//!
//! *SDEdit* (Meng et al., 2022): data with noise of some level put on it, denoised from there: [`noised`],
//! [`Grid::tail`]. *Replacement* (Song et al., 2021, appendix I.2): after every step the known elements are those of
//! the data with noise of that level. What is filled in then never saw the known elements at the level it was made
//! at; *RePaint* (Lugmayr et al., 2022) goes back some steps by adding noise and down again, a number of times:
//! [`inpaint`]. *DPS* (Chung et al., "Diffusion posterior sampling for general noisy inverse problems", 2023) moves
//! every step's result along the gradient of what the estimated data leaves of a measurement: [`Dps`].

use super::{Denoiser, Grid, Measurement, Noise, Run, Sampler, Step, Stepper};
use crate::process::Level;
use crate::{Error, Result};

/// `alpha x0 + sigma z`: data at a level.
pub fn noised(x0: &[f64], level: &Level<f64>, noise: &mut dyn Noise) -> Vec<f64> {
    x0.iter().zip(noise.draw()).map(|(x, z)| level.alpha * x + level.sigma * z).collect()
}

/// States brought from a level to one of more noise, as the process itself would.
fn renoised(x: &[f64], from: &Level<f64>, to: &Level<f64>, noise: &mut dyn Noise) -> Vec<f64> {
    let keep = to.alpha / from.alpha;
    let std = (to.sigma.powi(2) - (keep * from.sigma).powi(2)).max(0.0).sqrt();
    x.iter().zip(noise.draw()).map(|(x, z)| keep * x + std * z).collect()
}

impl Grid {
    /// The last `strength` of the steps, in `(0, 1]`: at 1 the whole grid.
    ///
    /// # Errors
    /// If that is no step at all.
    pub fn tail(&self, strength: f64) -> Result<Grid> {
        if !(0.0 < strength && strength <= 1.0) {
            return Err(Error::Domain(format!("a strength of {strength} is no share of the steps; it is in (0, 1]")));
        }
        let steps = (strength * self.steps() as f64).round() as usize;
        if steps == 0 {
            let all = self.steps();
            return Err(Error::Domain(format!("a strength of {strength} leaves none of {all} steps; take more steps")));
        }
        Ok(Grid { levels: self.levels[self.steps() - steps..].to_vec() })
    }
}

/// What is known of samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Data, `[B, ..]`; what is not known may be anything.
    pub data: Vec<f64>,
    /// Which elements are known, `[B, ..]`.
    pub mask: Vec<bool>,
}

impl Known {
    fn put(&self, x: &mut [f64], level: &Level<f64>, noise: &mut dyn Noise) {
        let at = match level.sigma > 0.0 {
            true => noised(&self.data, level, noise),
            false => self.data.clone(),
        };
        for ((x, known), mask) in x.iter_mut().zip(at).zip(&self.mask) {
            if *mask {
                *x = known;
            }
        }
    }
}

/// How often RePaint goes back, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaint {
    /// Times that each stretch of steps is walked; 1 is plain replacement.
    pub times: usize,
    /// Steps of a stretch.
    pub jump: usize,
}

impl Repaint {
    /// Plain replacement.
    pub const NONE: Repaint = Repaint { times: 1, jump: 1 };
}

/// Samples whose known elements are kept, from a state at the grid's first level. A sampler that remembers earlier
/// steps begins anew after going back. `observe` sees every state, numbered in the order in which they are visited.
///
/// # Errors
/// The network's errors, and a mask or jumps that do not fit.
pub fn inpaint(
    mut x: Vec<f64>,
    sampler: &dyn Sampler,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    known: &Known,
    repaint: Repaint,
    observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
) -> Result<Vec<f64>> {
    if known.data.len() != x.len() || known.mask.len() != x.len() {
        let (data, mask, n) = (known.data.len(), known.mask.len(), x.len());
        return Err(Error::Domain(format!("{data} known numbers and a mask of {mask} do not fit a state of {n}")));
    }
    if repaint.times == 0 || repaint.jump == 0 {
        return Err(Error::Domain("RePaint walks each stretch at least once, of at least one step".into()));
    }
    let grid = sampler.levels(denoiser.process(), grid)?;
    let steps = grid.steps();
    let mut left: Vec<usize> = (0..=steps).map(|i| if i % repaint.jump == 0 { repaint.times - 1 } else { 0 }).collect();
    let mut stepper = sampler.start(&Run { process: denoiser.process(), grid: &grid })?;
    known.put(&mut x, &grid.levels[0], noise);
    observe(0, &grid.levels[0], &x);
    let (mut at, mut seen) = (0, 0);
    while at < steps {
        let step = Step { index: at, from: grid.levels[at], to: grid.levels[at + 1] };
        stepper.step(&mut x, denoiser, &step, noise)?;
        at += 1;
        known.put(&mut x, &step.to, noise);
        if let Some(value) = x.iter().find(|v| !v.is_finite()) {
            return Err(Error::Domain(format!("the state became {value} in step {}", at - 1)));
        }
        seen += 1;
        observe(seen, &step.to, &x);
        if left[at] > 0 && at >= repaint.jump {
            left[at] -= 1;
            let back = at - repaint.jump;
            // Stretches within this one have been walked as often as they should.
            x = renoised(&x, &grid.levels[at], &grid.levels[back], noise);
            at = back;
            stepper = sampler.start(&Run { process: denoiser.process(), grid: &grid })?;
        }
    }
    Ok(x)
}

/// A sampler that moves the result of each step by `-step grad |y - A x0^|`, the gradient at the state before.
pub struct Dps<S> {
    /// The sampler.
    pub inner: S,
    /// What was measured, of every sample alike.
    pub measurement: Measurement,
    /// The step.
    pub step: f64,
}

struct DpsRun {
    inner: Box<dyn Stepper>,
    measurement: Measurement,
    step: f64,
}

impl<S: Sampler> Sampler for Dps<S> {
    fn is_linear(&self) -> bool {
        false
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        let (inner, measurement) = (self.inner.start(run)?, self.measurement.clone());
        Ok(Box::new(DpsRun { inner, measurement, step: self.step }))
    }
}

impl Stepper for DpsRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let samples = denoiser.dims()[0];
        let each = x.len() / samples;
        let estimate = denoiser.estimate(x, &step.from)?;
        let mut cotangent = Vec::with_capacity(x.len());
        for x0 in estimate.x0.chunks(each) {
            let r = self.measurement.residual(x0);
            let norm = r.iter().map(|r| r * r).sum::<f64>().sqrt();
            let scale = if norm > 0.0 { self.step / norm } else { 0.0 };
            cotangent.extend(self.measurement.transpose(&r, each).into_iter().map(|c| scale * c));
        }
        let gradient = denoiser.pull_back(x, &vec![step.from; samples], &cotangent)?;
        self.inner.step(x, denoiser, step, noise)?;
        x.iter_mut().zip(gradient).for_each(|(x, g)| *x += g);
        Ok(())
    }
}
