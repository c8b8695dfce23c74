//! Distribution matching distillation (Yin et al., "Improved distribution matching distillation", 2024): a generator
//! of one step, `x = D(sigma_max z)`, is moved along the difference of two scores at noised `x`, the teacher's and
//! that of a *fake* network, which learns the generator's own distribution while it moves.
//!
//! * generator: `x - sg(x - g)`, squared and halved, with `g = (D_fake - D_teacher) / mean |x - D_teacher|`;
//! * fake network: denoising of the generator's samples with EDM's weighting;
//! * a discriminator on the fake network's hidden state, non-saturating, on noised real and generated samples.
//!
//! All are terms of one loss, in which each term reaches its own parameters only; two time scales are the generator's
//! parameters being updated every [`Distillation::fake_updates`] steps.

use super::{FAKE_NOISE, FAKE_TIME, HEAD_NOISE, HEAD_TIME, Model, Scene};
use crate::layers::linear_xavier;
use crate::layout::settled;
use crate::params::Scope;
use crate::process::{Loss, Real, TimeDomain, Times};
use crate::{Error, Result};
use dnx_ir::{Tensor, random};
use serde::{Deserialize, Serialize};

/// `[process.objective] kind = "distillation"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Distillation {
    /// Steps of the fake network for one of the generator.
    pub fake_updates: u32,
    /// Weight of the discriminator's term in the generator's loss; 0 with `head_weight` 0: no discriminator.
    pub generator_weight: f64,
    /// Weight of the discriminator's own loss.
    pub head_weight: f64,
    /// Block of the fake network whose hidden state the discriminator sees.
    pub tap: usize,
    /// Share of the grid of noise levels, from the least, between which scores are compared.
    pub range: [f64; 2],
}

impl Default for Distillation {
    fn default() -> Distillation {
        Distillation { fake_updates: 5, generator_weight: 3e-3, head_weight: 1e-2, tap: 0, range: [0.02, 0.98] }
    }
}

impl Distillation {
    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.objective.{key}"), message));
        if self.fake_updates == 0 {
            return bad("fake_updates", "is 0; the generator is updated every so many steps".into());
        }
        if !(self.generator_weight >= 0.0) || !(self.head_weight >= 0.0) {
            return bad("generator_weight", "and head_weight must be 0 or more".into());
        }
        if (self.generator_weight > 0.0) != (self.head_weight > 0.0) {
            return bad("generator_weight", "and head_weight are both positive, or both 0".into());
        }
        let [low, high] = self.range;
        if !(0.0 <= low && low < high && high <= 1.0) {
            return bad("range", format!("is [{low}, {high}]; it wants 0 <= first < second <= 1"));
        }
        Ok(())
    }

    fn has_head(&self) -> bool {
        self.head_weight > 0.0
    }
}

impl<'g> Scene<'_, 'g> {
    pub(super) fn distillation(&self, d: &Distillation) -> Loss<'g> {
        let (model, process) = (self.model, self.model.process);
        let label = self.label.filter(|_| model.network.classes() > 0);
        let values = self.draws.times.values.full_like(process.time_range[1]);
        let top = process.path.levels(Times { domain: TimeDomain::Sigma, values });
        self.matching(d, model.x0(self.wide(top.sigma) * self.draws.noise, &top, label))
    }

    /// The loss that moves generated samples `x` toward the teacher's distribution.
    pub(super) fn matching(&self, d: &Distillation, x: Tensor<'g>) -> Loss<'g> {
        let (model, teacher) = (self.model, self.teacher());
        let process = model.process;
        let batch = self.x0.dim(0);
        let label = self.label.filter(|_| model.network.classes() > 0);
        let at = |values: Tensor<'g>| process.path.levels(Times { domain: TimeDomain::Sigma, values });
        let noised = |x: Tensor<'g>, sigma: Tensor<'g>, stream: u32| x + self.wide(sigma) * self.normal(stream);

        let still = x.stop_gradient();

        // The fake network learns them. It is called first, which declares its parameters.
        self.own.enter("fake", |scope| {
            let fake = Model { scope, ..model };
            let sigma = self.grid_sigma([0.0, 1.0], FAKE_TIME);
            let level = at(sigma);
            let denoised = fake.x0(noised(still, sigma, FAKE_NOISE), &level, label);
            let weight = sigma.full_like(1.0) / (sigma * sigma) + 1.0 / process.sigma_data.powi(2);
            let fake_loss = (denoised - still).square().mean_per_sample() * weight;

            // The discriminator: real and generated samples at the same levels.
            let head_sigma = self.grid_sigma([0.0, 1.0], HEAD_TIME);
            let logit = |scope: &Scope<'_, 'g>, head: &Scope<'_, 'g>, x: Tensor<'g>, stream: u32| {
                let fake = Model { scope, ..model };
                let seen = noised(x, head_sigma, stream);
                let hidden = fake.outputs(seen, &at(head_sigma), label, Some(d.tap)).hidden;
                hidden.map(|h| discriminator(head, h)).unwrap_or_else(|| head_sigma.full_like(0.0))
            };
            let mut per_sample = fake_loss;
            if d.has_head() {
                let judged = self.own.enter("head", |head| {
                    softplus(-logit(scope, head, self.x0, HEAD_NOISE))
                        + softplus(logit(scope, head, still, HEAD_NOISE + 1))
                });
                per_sample = per_sample + judged * d.head_weight;
            }

            // The generator: neither the fake network nor the discriminator moves with it.
            let fixed = self.own.stopped();
            let fixed = fixed.scope(self.own);
            let sigma = self.grid_sigma(d.range, crate::streams::TIME);
            let level = at(sigma);
            let seen = noised(still, sigma, super::PROBE);
            let real = teacher.denoise(seen, sigma, label);
            let own = fixed.enter("fake", |scope| Model { scope, ..model }.x0(seen, &level, label));
            let size = self.wide((still - real).abs().mean_per_sample()) + 1e-8;
            let gradient = ((own - real) / size).stop_gradient();
            let matching = (x - (still - gradient)).square().mean_per_sample() * 0.5;
            let mut generator = matching;
            if d.has_head() {
                let fooled = fixed.enter("fake", |scope| {
                    fixed.enter("head", |head| softplus(-logit(scope, head, x, HEAD_NOISE + 2)))
                });
                generator = generator + fooled * d.generator_weight;
            }
            let total = per_sample + generator;
            debug_assert_eq!(total.dims(), [batch]);
            Loss { per_sample: total, mean: settled(total.mean_all()), position: process.position(&level) }
        })
    }

    /// Noise levels that are uniform on Karras' grid between two shares of it.
    fn grid_sigma(&self, range: [f64; 2], stream: u32) -> Tensor<'g> {
        let [low, high] = self.model.process.time_range;
        let [a, b] = [low, high].map(|s| s.powf(1.0 / 7.0));
        let u = random::uniform(self.x0.graph(), self.key(stream), &[self.x0.dim(0)]);
        let u = u * (range[1] - range[0]) + range[0];
        let sigma = ((u * (b - a) + a).log() * 7.0).exp();
        sigma.maximum(sigma.full_like(low)).minimum(sigma.full_like(high))
    }
}

/// One number per sample from a hidden state `[B, .., D]`, the mean of its positions: two layers.
fn discriminator<'g>(s: &Scope<'_, 'g>, hidden: Tensor<'g>) -> Tensor<'g> {
    let rank = hidden.rank();
    let pooled = if rank > 2 { hidden.mean(&(1..rank - 1).collect::<Vec<_>>()) } else { hidden };
    let width = pooled.dim(1);
    let h = s.enter("fc1", |s| linear_xavier(s, pooled, width)).silu();
    s.enter("fc2", |s| linear_xavier(s, h, 1)).reshape(&[hidden.dim(0)])
}

/// `ln(1 + exp(x))`, for large sizes too.
fn softplus(x: Tensor<'_>) -> Tensor<'_> {
    x.maximum(x.full_like(0.0)) + Real::ln_1p((-x.abs()).exp())
}
