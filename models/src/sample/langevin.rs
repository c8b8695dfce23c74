//! Annealed Langevin dynamics (Song and Ermon, 2019).

use super::{Denoiser, Noise, Sampler, Step};
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
    fn step(&self, x: &mut [f32], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let level = &step.from;
        let a = self.rate * level.sigma * level.sigma;
        for _ in 0..self.inner {
            let n = denoiser.estimate(x, level)?.noise;
            let z = noise.draw();
            for ((x, n), z) in x.iter_mut().zip(n).zip(z) {
                // The score is -n / sigma.
                *x = (*x as f64 - a * n / level.sigma + (2.0 * a).sqrt() * z) as f32;
            }
        }
        if step.is_last() {
            let x0 = denoiser.estimate(x, level)?.x0;
            x.iter_mut().zip(x0).for_each(|(x, x0)| *x = x0 as f32);
        } else if step.to.alpha != level.alpha {
            let scale = step.to.alpha / level.alpha;
            x.iter_mut().for_each(|x| *x = (*x as f64 * scale) as f32);
        }
        Ok(())
    }
}
