//! Annealed Langevin dynamics (Song and Ermon, 2019).

use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::Result;

/// At each level `inner` steps `x + a s + sqrt(2 a) z` along the score `s`, with `a = rate sigma^2`; after the last
/// level the estimated data. It needs a path on which data keeps its scale between levels, as `ve`.
#[derive(Clone, Copy, Debug)]
pub struct Langevin {
    /// Steps per level.
    pub inner: usize,
    /// Step size in units of `sigma^2`.
    pub rate: f64,
}

impl Sampler for Langevin {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(*self))
    }
}

impl Stepper for Langevin {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let level = &step.from;
        let a = self.rate * level.sigma * level.sigma;
        for _ in 0..self.inner {
            let n = denoiser.estimate(x, level)?.noise;
            let z = noise.draw();
            for ((x, n), z) in x.iter_mut().zip(n).zip(z) {
                // The score is -n / sigma.
                *x += (2.0 * a).sqrt() * z - a * n / level.sigma;
            }
        }
        if step.is_last() {
            let x0 = denoiser.estimate(x, level)?.x0;
            x.copy_from_slice(&x0);
        } else if step.to.alpha != level.alpha {
            let scale = step.to.alpha / level.alpha;
            x.iter_mut().for_each(|x| *x *= scale);
        }
        Ok(())
    }
}
