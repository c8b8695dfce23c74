//! Forcing: sequences whose tokens are at noise levels of their own, so that finished ones condition the next.
//!
//! *Diffusion forcing* (Chen et al., "Diffusion forcing: next-token prediction meets full-sequence diffusion", 2024)
//! is the regression with an independent level for every token. One network then denoises whole sequences, continues
//! given ones and rolls out token after token, by the levels that sampling gives it.
//!
//! *Self forcing* (Huang et al., "Self forcing: bridging the train-test gap in autoregressive video diffusion", 2025)
//! trains the roll-out as it is sampled: token after token in a few steps each, conditioned on the network's own
//! earlier tokens, which are held. Each sample stops at a step drawn at random, whose estimate is what its token
//! becomes and the only one with a gradient. Whole sequences are then matched to a teacher's distribution as in
//! [`Distillation`]; where networks are causal, it is the law of each token given those before it that is matched.

use super::{Distillation, FORCED_NOISE, SECOND_TIME, STOPS, Scene};
use crate::layout::whole_rows;
use crate::process::{Level, Loss, TimeDomain, Times};
use crate::{Error, Result};
use dnx_ir::{DType, Tensor, random};
use serde::{Deserialize, Serialize};

/// `[process.objective] kind = "self_forcing"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelfForcing {
    /// Evaluations of a token: levels evenly on Karras' grid from the greatest on, as `sample.grid = "karras"` with
    /// `final_level = "min"` and one step more has them.
    pub steps: usize,
    /// The noise level at which finished tokens are shown to the network.
    pub history_sigma: f64,
    /// How the distribution is matched.
    pub matching: Distillation,
}

impl Default for SelfForcing {
    fn default() -> SelfForcing {
        let matching = Distillation { generator_weight: 0.0, head_weight: 0.0, ..Distillation::default() };
        SelfForcing { steps: 4, history_sigma: 0.02, matching }
    }
}

impl SelfForcing {
    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.objective.{key}"), message));
        if self.steps == 0 || self.steps > 64 {
            return bad("steps", format!("is {}; a token takes 1 to 64 evaluations", self.steps));
        }
        if !(self.history_sigma > 0.0 && self.history_sigma.is_finite()) {
            return bad("history_sigma", format!("is {}; it must be positive", self.history_sigma));
        }
        self.matching.check()
    }
}

impl<'g> Scene<'_, 'g> {
    /// Regression with a level for each token of `x0` `[B, T, ..]`. Its losses are per token, `[B T]`.
    pub(super) fn diffusion_forcing(&self) -> Loss<'g> {
        let (g, process) = (self.x0.graph(), self.model.process);
        let (batch, tokens) = (self.x0.dim(0), self.x0.dim(1));
        let shift = process.time_shift.factor(self.x0.dims()[1..].iter().product());
        let drawn = process.time_law.draw(g, self.key(SECOND_TIME), batch * tokens, &process.path, shift);
        let flat = process.path.levels(drawn);
        let level = per_token(&flat, batch, tokens);
        let c = process.coefficients(&level);
        let output = self.model.output(self.state(&level), &level, self.dropped_label());
        let target = self.wide(c.p) * self.x0 + self.wide(c.q) * self.draws.noise;
        let inner: Vec<usize> = (2..self.x0.rank()).collect();
        let error = (output - target).square().mean(&inner);
        let per_token = error * process.weighting.factor(&level, &c, process.sigma_data);
        self.mean_of(whole_rows(per_token).reshape(&[batch * tokens]), &flat)
    }

    pub(super) fn self_forcing(&self, f: &SelfForcing) -> Loss<'g> {
        self.matching(&f.matching, self.rolled_out(f))
    }

    /// Sequences that the network makes token after token, as they are sampled. Gradients reach the last evaluation
    /// of each token alone.
    pub fn rolled_out(&self, f: &SelfForcing) -> Tensor<'g> {
        let (g, process) = (self.x0.graph(), self.model.process);
        let dims = self.x0.dims();
        let (batch, tokens) = (dims[0], dims[1]);
        let label = self.label.filter(|_| self.model.network.classes() > 0);
        let sigmas = levels(process.time_range, f.steps);
        let stop = random::randint(g, self.key(STOPS), &[batch], f.steps as u32);
        let column = |value: f64, rows: usize, n: usize| g.full(DType::F32, &[rows, n], value);
        let at = |values: Tensor<'g>| process.path.levels(Times { domain: TimeDomain::Sigma, values });
        // What follows a token is as noisy as can be: a causal network does not look at it.
        let later = self.draws.noise * sigmas[0];
        let with = |done: &[Tensor<'g>], own: Tensor<'g>| {
            let mut parts = done.to_vec();
            parts.push(own);
            if parts.len() < tokens {
                parts.push(later.slice(1, parts.len(), tokens));
            }
            g.concat(&parts, 1)
        };
        let around = |t: usize, own: Tensor<'g>| {
            let mut parts = vec![];
            parts.extend((t > 0).then(|| column(f.history_sigma, batch, t)));
            parts.push(own.reshape(&[batch, 1]));
            parts.extend((t + 1 < tokens).then(|| column(sigmas[0], batch, tokens - t - 1)));
            g.concat(&parts, 1)
        };

        let fresh: Vec<Tensor<'g>> = (1..f.steps).map(|s| self.normal(FORCED_NOISE + s as u32)).collect();
        let mut done: Vec<Tensor<'g>> = vec![];
        let (mut seen, mut noises) = (vec![], vec![]);
        for t in 0..tokens {
            let mut own = later.slice(1, t, t + 1);
            let (mut kept, mut last, mut last_sigma) = (own, own, column(sigmas[0], batch, 1).reshape(&[batch]));
            for (s, &sigma) in sigmas.iter().enumerate() {
                let here = stop.eq(stop.full_like(s as f64));
                let wide = here.expand_right(own.rank());
                last = wide.select(own, last);
                last_sigma = here.select(last_sigma.full_like(sigma), last_sigma);
                let x = with(&done, own);
                let levels = around(t, last_sigma.full_like(sigma));
                let estimate = self.model.x0(x, &at(levels), label).slice(1, t, t + 1).stop_gradient();
                kept = wide.select(estimate, kept);
                if let Some(next) = sigmas.get(s + 1) {
                    own = estimate + fresh[s].slice(1, t, t + 1) * *next;
                }
            }
            seen.push(with(&done, last));
            noises.push(around(t, last_sigma));
            done.push(kept);
        }

        // The last evaluations of all tokens once more, as one batch, with a gradient.
        let x = g.concat(&seen, 0).stop_gradient();
        let label = label.map(|l| g.concat(&vec![l; tokens], 0));
        let all = self.model.x0(x, &at(g.concat(&noises, 0)), label);
        let own = |t: usize| all.slice(0, t * batch, (t + 1) * batch).slice(1, t, t + 1);
        g.concat(&(0..tokens).map(own).collect::<Vec<_>>(), 1)
    }
}

/// `steps` noise levels from the greatest on, evenly on Karras' grid of one more, which ends at the least.
fn levels([low, high]: [f64; 2], steps: usize) -> Vec<f64> {
    let [a, b] = [low, high].map(|s| s.powf(1.0 / 7.0));
    (0..steps).map(|i| (b + (a - b) * i as f64 / steps as f64).powi(7)).collect()
}

/// A level of each token, `[B T]`, as `[B, T]`.
fn per_token<'g>(level: &Level<Tensor<'g>>, batch: usize, tokens: usize) -> Level<Tensor<'g>> {
    let of = |t: Tensor<'g>| t.reshape(&[batch, tokens]);
    Level {
        time: of(level.time),
        alpha: of(level.alpha),
        sigma: of(level.sigma),
        rates: level.rates.map(|(a, s)| (of(a), of(s))),
    }
}
