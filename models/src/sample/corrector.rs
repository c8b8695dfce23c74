//! Predictor-corrector sampling (Song et al., 2021, algorithm 1), in `y = x / alpha` over `sigma / alpha`, where
//! every path is variance exploding: Langevin steps at a level, then the reverse-diffusion step to the next.

use super::chart::{is_pure_noise, ratio, transfer};
use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::{Error, Result};

/// Langevin correctors and the reverse-diffusion predictor. The last step gives the estimated data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictorCorrector {
    /// Signal-to-noise ratio of the corrector's steps: their size is `2 (snr sigma)^2`.
    pub snr: f64,
    /// Corrector steps per level.
    pub corrections: usize,
}

impl Sampler for PredictorCorrector {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        if !(self.snr > 0.0) {
            return Err(Error::config("sample.snr", format!("is {}; it must be positive", self.snr)));
        }
        Ok(Box::new(*self))
    }
}

impl Stepper for PredictorCorrector {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let (from, to) = (ratio(&step.from), ratio(&step.to));
        if is_pure_noise(&step.from) {
            let e = denoiser.estimate(x, &step.from)?;
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        // The published step divides by the score's norm over the batch. Its expected size, sqrt(d) / sigma, keeps a
        // sample independent of its neighbours, and the step of its own state: else the dynamics would leave the law.
        let e = 2.0 * (self.snr * from).powi(2);
        for _ in 0..self.corrections {
            let n = denoiser.estimate(x, &step.from)?.noise;
            for ((x, n), z) in x.iter_mut().zip(n).zip(noise.draw()) {
                // The score of y is -n / sigma.
                *x += step.from.alpha * ((2.0 * e).sqrt() * z - e * n / from);
            }
        }
        let e = denoiser.estimate(x, &step.from)?;
        if step.is_last() {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let variance = from * from - to * to;
        let z = noise.draw();
        for ((x, n), z) in x.iter_mut().zip(&e.noise).zip(z) {
            *x = step.to.alpha * (*x / step.from.alpha - variance * n / from + variance.sqrt() * z);
        }
        Ok(())
    }
}
