//! The exponential moving average of weights that samples are drawn from.

use crate::{Error, Result};
use dnx_ir::Tensor;
use serde::{Deserialize, Serialize};

/// `[ema]`. The average starts as the initial weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaConfig {
    /// Share of the old average that each step keeps; 0: no average is kept.
    pub decay: f64,
    /// Whether early steps keep less, `min(decay, (1 + s) / (10 + s))` after `s` steps, so that the initial
    /// weights are soon forgotten.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> EmaConfig {
        EmaConfig { decay: 0.9999, warmup: true }
    }
}

impl EmaConfig {
    /// Refuses a decay that is no share.
    pub fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.decay) {
            return Ok(());
        }
        Err(Error::config("ema.decay", format!("is {}; it must be in [0, 1), 0 meaning none", self.decay)))
    }

    /// Whether an average is kept.
    pub fn enabled(&self) -> bool {
        self.decay > 0.0
    }

    /// `1 - decay` of the update number `step` (`f32[]`, from 0).
    pub fn rate<'g>(&self, step: Tensor<'g>) -> Tensor<'g> {
        let least = step.scalar_like(1.0 - self.decay);
        // 1 - (1 + s) / (10 + s) is 9 / (10 + s).
        if self.warmup { (9.0 / (step + 10.0)).maximum(least) } else { least }
    }

    /// The average after a step, given the new weight.
    pub fn update<'g>(&self, average: Tensor<'g>, weight: Tensor<'g>, rate: Tensor<'g>) -> Tensor<'g> {
        average + (weight - average) * rate
    }
}
