//! The weighted squared error of the network's output, with learned variances of a chain's steps, a learned
//! log-variance of the loss, and resampling of times by the second moment of their losses.

use super::{Carried, Scene};
use crate::process::{Chain, Level, Loss, Path, Process, Real, TimeLaw};
use crate::{Error, Result};
use dnx_ir::{Array, DType, Tensor};
use serde::{Deserialize, Serialize};

/// Variances of the reverse steps of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Variance {
    /// Not learned; the sampler chooses.
    Fixed,
    /// `exp(f ln(beta) + (1 - f) ln(beta~))` with `f` from the network's second half, trained by the variational bound
    /// with the mean held (Nichol and Dhariwal, 2021).
    LearnedRange {
        /// Of the whole bound, a sum over all steps, beside the squared error.
        weight: f64,
        /// Levels of a number in the data, which is in `[-1, 1]`, for the last step's likelihood; 0: it is a density.
        bins: u32,
    },
}

/// How steps of a chain are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resampling {
    /// As the time law says.
    None,
    /// With probability `sqrt(E[loss^2])` over the last losses of the step, mixed with `uniform` of the uniform law;
    /// losses are divided by that probability. Uniform until every step has its history.
    LossSecondMoment {
        /// Losses that are remembered per step.
        #[serde(default = "ten")]
        history: usize,
        /// Share of the uniform law.
        #[serde(default = "thousandth")]
        uniform: f64,
    },
}

fn ten() -> usize {
    10
}

fn thousandth() -> f64 {
    1e-3
}

impl Process {
    /// The state that the loss carries from step to step.
    pub fn carried(&self) -> Vec<Carried> {
        match (self.resampling, &self.path) {
            (Resampling::LossSecondMoment { history, .. }, Path::Discrete(chain)) => {
                let of = |name: &str, dims: Vec<usize>| {
                    let start = Array::zeros(dnx_ir::Type::f32(dims));
                    Carried { name: format!("resampling.{name}"), start }
                };
                vec![of("history", vec![chain.steps(), history]), of("count", vec![chain.steps()])]
            }
            _ => vec![],
        }
    }

    pub(in crate::process) fn check_regression(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.{key}"), message));
        let plain = matches!(self.objective, super::Objective::Regression);
        if let Variance::LearnedRange { weight, .. } = self.variance {
            if !matches!(self.path, Path::Discrete(_)) {
                let name = self.path.name();
                return bad("variance", format!("is learned for the steps of a chain; path {name} has none"));
            }
            if !plain {
                return bad("variance", format!("is not learned by objective {}", self.objective.name()));
            }
            if !(weight > 0.0) {
                return bad("variance", format!("has weight = {weight}; it must be positive"));
            }
        }
        if let Resampling::LossSecondMoment { history, uniform } = self.resampling {
            if !plain || self.time_law != TimeLaw::Steps {
                return bad("resampling", "redraws the steps of time_law = \"steps\" under a regression".into());
            }
            if history == 0 || !(0.0..=1.0).contains(&uniform) {
                let message = format!("has history = {history}, uniform = {uniform}; it wants 1 or more, and a share");
                return bad("resampling", message);
            }
        }
        Ok(())
    }
}

/// Probabilities `f32[T]` of the steps of a chain given what is remembered of their losses.
pub(super) fn probabilities<'g>(history: Tensor<'g>, count: Tensor<'g>, uniform: f64) -> Tensor<'g> {
    let (steps, length) = (history.dim(0), history.dim(1));
    let size = (history.mean(&[1]) + 1e-20).sqrt();
    let learned = size / size.sum_all().broadcast_to(&[steps]) * (1.0 - uniform) + uniform / steps as f64;
    let missing = count.lt(count.full_like(length as f64)).convert(DType::F32).sum_all();
    let complete = missing.lt(missing.scalar_like(0.5)).broadcast_to(&[steps]);
    complete.select(learned, learned.full_like(1.0 / steps as f64))
}

/// What is remembered after a batch: of each step that was drawn, the mean square of its losses is one entry.
fn remembered<'g>(carry: &[Tensor<'g>], steps: Tensor<'g>, losses: Tensor<'g>) -> Vec<Tensor<'g>> {
    let (history, count) = (carry[0], carry[1]);
    let g = history.graph();
    let (total, length, batch) = (history.dim(0), history.dim(1), steps.dim(0));
    let hit = steps.unsqueeze(1).eq(g.iota(DType::F32, &[batch, total], 1)).convert(DType::F32);
    let hits = hit.sum(&[0]);
    let square = (hit * losses.square().unsqueeze(1)).sum(&[0]) / hits.maximum(hits.full_like(1.0));
    let drawn = hits.gt(hits.full_like(0.0));
    let shifted = match length {
        1 => square.unsqueeze(1),
        _ => g.concat(&[history.slice(1, 1, length), square.unsqueeze(1)], 1),
    };
    let counted = (count + 1.0).minimum(count.full_like(length as f64));
    vec![drawn.unsqueeze(1).select(shifted, history), drawn.select(counted, count)]
}

impl<'g> Scene<'_, 'g> {
    pub(super) fn regression(&self) -> (Loss<'g>, Vec<Tensor<'g>>) {
        let process = self.model.process;
        let mut times = self.draws.times;
        let mut importance = None;
        if let (Resampling::LossSecondMoment { uniform, .. }, [history, count]) = (process.resampling, &self.carry[..])
        {
            let p = probabilities(*history, *count, uniform);
            (times.values, importance) = self.redraw(p);
        }
        let level = process.path.levels(times);
        let c = process.coefficients(&level);
        let x = self.state(&level);
        let outputs = {
            let tap = (process.alignment.weight > 0.0).then_some(process.alignment.depth);
            self.model.outputs(x, &level, self.dropped_label(), tap)
        };
        let target = self.wide(c.p) * self.x0 + self.wide(c.q) * self.draws.noise;
        let error = (outputs.prediction - target).square().mean_per_sample();
        let mut per_sample = error * process.weighting.factor(&level, &c, process.sigma_data);
        if let Some(u) = self.log_variance(&level) {
            per_sample = per_sample * (-u).exp() + u;
        }
        if let (Variance::LearnedRange { weight, bins }, Path::Discrete(chain)) = (process.variance, &process.path) {
            match outputs.variance {
                Some(range) => {
                    let mean = outputs.prediction.stop_gradient();
                    let bound = self.bound(chain, bins, &level, x, mean, range);
                    per_sample = per_sample + bound * (weight * chain.steps() as f64);
                }
                None => self.x0.graph().fail("process.variance is learned, and the network has no variances"),
            }
        }
        if let Some(hidden) = outputs.hidden {
            per_sample = per_sample + self.alignment(process.alignment, hidden) * process.alignment.weight;
        }
        let carry = match importance {
            Some(_) => remembered(&self.carry, times.values, per_sample.stop_gradient()),
            None => self.carry.clone(),
        };
        if let Some(weight) = importance {
            per_sample = per_sample * weight;
        }
        (self.mean_of(per_sample, &level), carry)
    }

    /// Steps drawn with these probabilities, and `1 / (T p)` of each.
    fn redraw(&self, p: Tensor<'g>) -> (Tensor<'g>, Option<Tensor<'g>>) {
        let (g, total, batch) = (p.graph(), p.dim(0), self.x0.dim(0));
        let (row, column) = (g.iota(DType::F32, &[total, total], 0), g.iota(DType::F32, &[total, total], 1));
        let upto = (column.le(row).convert(DType::F32) * p.unsqueeze(0)).sum(&[1]);
        let u = dnx_ir::random::uniform(g, self.key(super::SECOND_TIME), &[batch]).unsqueeze(1);
        let index = upto.unsqueeze(0).le(u).convert(DType::F32).sum(&[1]);
        let index = index.minimum(index.full_like((total - 1) as f64));
        let probability = p.take(index.convert(DType::I32));
        (index, Some((probability * total as f64).full_like(1.0) / (probability * total as f64)))
    }

    /// One step's term of the variational bound, in bits per number: the divergence of the posterior given the data
    /// from the model's step, or at the chain's first step the likelihood of the data.
    fn bound(
        &self,
        chain: &Chain,
        bins: u32,
        level: &Level<Tensor<'g>>,
        x: Tensor<'g>,
        mean_output: Tensor<'g>,
        range: Tensor<'g>,
    ) -> Tensor<'g> {
        let steps = Posterior::of(chain);
        let t = level.time;
        let at = |table: &[f64]| self.wide(t.lookup(table));
        let estimate = self.model.x0_from(x, mean_output, level);
        let mean = |x0: Tensor<'g>| at(&steps.data) * x0 + at(&steps.state) * x;
        let (own, wanted) = (mean(estimate), mean(self.x0));
        let (log_beta, log_small) = (at(&steps.log_beta), at(&steps.log_small));
        let f = (range + 1.0) * 0.5;
        let log = f * log_beta + (f.full_like(1.0) - f) * log_small;
        let kl = ((log - log_small) - 1.0 + (log_small - log).exp() + (wanted - own).square() * (-log).exp()) * 0.5;
        let nll = match bins {
            0 => (log + std::f64::consts::TAU.ln() + (self.x0 - own).square() * (-log).exp()) * 0.5,
            bins => discrete_nll(self.x0, own, log, bins),
        };
        let nats = self.wide(t.lt(t.full_like(0.5))).select(nll, kl);
        nats.mean_per_sample() * std::f64::consts::LOG2_E
    }
}

/// `-ln` of the mass of a Gaussian in the bin of each number of `x` in `[-1, 1]`; the outermost bins are open.
fn discrete_nll<'g>(x: Tensor<'g>, mean: Tensor<'g>, log_variance: Tensor<'g>, bins: u32) -> Tensor<'g> {
    let cdf = |z: Tensor<'g>| ((z * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let inverse = (log_variance * -0.5).exp();
    let half = 1.0 / bins as f64;
    let (upper, lower) = (cdf((x + half - mean) * inverse), cdf((x - half - mean) * inverse));
    let least = x.full_like(1e-12);
    let (low, high) = (x.lt(x.full_like(-0.999)), x.gt(x.full_like(0.999)));
    let mass = low.select(upper, high.select(1.0 - lower, upper - lower));
    -mass.maximum(least).log()
}

/// Coefficients of a chain's posterior `q(x_{t-1} | x_t, x0)` by step.
struct Posterior {
    data: Vec<f64>,
    state: Vec<f64>,
    log_beta: Vec<f64>,
    log_small: Vec<f64>,
}

impl Posterior {
    fn of(chain: &Chain) -> Posterior {
        let n = chain.steps();
        let before = |i: usize| if i == 0 { 1.0 } else { chain.alpha_bar(i - 1) };
        let beta = |i: usize| 1.0 - chain.alpha_bar(i) / before(i);
        let small = |i: usize| beta(i) * (1.0 - before(i)) / (1.0 - chain.alpha_bar(i));
        let all = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<f64>>();
        Posterior {
            data: all(&|i| before(i).sqrt() * beta(i) / (1.0 - chain.alpha_bar(i))),
            state: all(&|i| (1.0 - beta(i)).sqrt() * (1.0 - before(i)) / (1.0 - chain.alpha_bar(i))),
            log_beta: all(&|i| beta(i).ln()),
            // The first is zero; the second stands for it.
            log_small: all(&|i| small(i.max(1).min(n - 1)).max(1e-20).ln()),
        }
    }
}
