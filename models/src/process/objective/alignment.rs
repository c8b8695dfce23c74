//! Representation alignment (Yu et al., "Representation alignment for generation", 2025): the hidden state of an early
//! block, through a projector, is pulled towards features of the clean data by the mean cosine of tokens.
//!
//! The features here are those of a fixed random network of the token's own patch. That trains the projector and the
//! loss as they are published; what a pretrained encoder would add is not in this crate.

use super::Scene;
use crate::layers::linear_xavier;
use crate::patch::patchify;
use crate::process::{Objective, Process};
use crate::{Error, Init, Result};
use dnx_ir::Tensor;
use dnx_ir::threefry::{fold_in, key};
use serde::{Deserialize, Serialize};

/// `[process.alignment]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alignment {
    /// Weight of the term; 0: none.
    pub weight: f64,
    /// Block whose hidden state is aligned.
    pub depth: usize,
    /// Width of the projector's two hidden layers.
    pub width: usize,
    /// Features per token.
    pub features: usize,
    /// Seed of the fixed random network.
    pub seed: u64,
}

impl Default for Alignment {
    fn default() -> Alignment {
        Alignment { weight: 0.0, depth: 3, width: 2048, features: 128, seed: 0 }
    }
}

impl Process {
    pub(in crate::process) fn check_alignment(&self) -> Result<()> {
        let Alignment { weight, width, features, .. } = self.alignment;
        let bad = |key: &str, message: String| Err(Error::config(format!("process.alignment.{key}"), message));
        if !(weight >= 0.0 && weight.is_finite()) {
            return bad("weight", format!("is {weight}; it must be 0 (none) or more"));
        }
        if weight > 0.0 && self.objective != Objective::Regression {
            return bad("weight", format!("joins a regression, not objective {}", self.objective.name()));
        }
        if weight > 0.0 && (width == 0 || features == 0) {
            return bad("width", "and features must be positive".into());
        }
        Ok(())
    }
}

impl<'g> Scene<'_, 'g> {
    /// `-mean cos(projected hidden state, features)` of each sample.
    pub(super) fn alignment(&self, a: Alignment, hidden: Tensor<'g>) -> Tensor<'g> {
        let wanted = self.features(a, hidden);
        let projected = self.own.enter("projector", |s| {
            let h = s.enter("0", |s| linear_xavier(s, hidden, a.width)).silu();
            let h = s.enter("2", |s| linear_xavier(s, h, a.width)).silu();
            s.enter("4", |s| linear_xavier(s, h, a.features))
        });
        let last = wanted.rank() - 1;
        // With an epsilon: a token of zeros has no direction, and 0 / 0 would end the run.
        let unit = |t: Tensor<'g>| t * (t.square().sum(&[last]) + 1e-8).rsqrt().unsqueeze(last);
        let cosine = (unit(projected) * unit(wanted)).sum(&[last]);
        -(if last == 1 { cosine } else { cosine.mean_per_sample() })
    }

    /// Features of the clean data beside a hidden state: per token of a picture, or of a whole vector.
    fn features(&self, a: Alignment, hidden: Tensor<'g>) -> Tensor<'g> {
        let g = self.x0.graph();
        let tokens = match (hidden.rank(), self.x0.rank()) {
            (3, 4) => {
                let pixels = self.x0.dim(1) * self.x0.dim(2) / hidden.dim(1).max(1);
                let side = (1..=pixels).find(|s| s * s == pixels).unwrap_or(1);
                patchify(self.x0, side)
            }
            _ => self.x0,
        };
        let fixed = |layer: u32, out: usize, inside: usize| {
            let init = Init::Normal { std: (2.0 / inside as f64).sqrt() };
            g.constant(init.draw(&[out, inside], fold_in(key(a.seed), layer)))
        };
        let inside = tokens.dim(-1);
        let h = tokens.matmul_t(fixed(0, a.features, inside));
        let h = h.maximum(h.full_like(0.0)).matmul_t(fixed(1, a.features, a.features));
        h.tanh().stop_gradient()
    }
}
