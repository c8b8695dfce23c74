//! Particles: several weighted copies of a sample that are moved by a sampler and chosen among as they go.
//!
//! A *cloud* holds groups of `K` particles, each group an independent answer to one question. A step multiplies
//! weights by a *potential*; when few particles carry most of the weight (the effective number `(sum w)^2 / sum w^2`
//! falls below a share of `K`) children of the heavy take the place of the light (*resampling*), and weights are
//! equal again. The mean of the potentials along the way is an unbiased estimate of their expectation under the
//! sampler, the *evidence* (Del Moral, "Feynman-Kac formulae", 2004; Doucet and Johansen, 2009).
//!
//! * [`steer`]: toward a reward `r`, from `p(x0)` to `p(x0) exp(lambda r(x0))` (Singhal et al., "A general framework
//!   for inference-time scaling and steering of diffusion models", 2025).
//! * [`twisted`]: toward a likelihood, with proposals that lean toward it (Wu et al., "Practical and asymptotically
//!   exact conditional sampling in diffusion models", 2023).
//! * [`geometric`]: toward `q1^(1 - beta) q2^beta` of two networks, which guidance by scale `beta` only pretends to
//!   (Skreta et al., "Feynman-Kac correctors in diffusion", 2025).

use super::steer::{Twist, twist_gradient};
use super::{Denoiser, Estimate, GaussianStep, Grid, Noise, Resampling, Run, Sampler, Step, Uniforms, marginal_std};
use crate::process::Level;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How particles are chosen among.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smc {
    /// Particles of a group.
    pub particles: usize,
    /// Resampling begins when the effective number is below this share of the particles: 0 never, 1 always.
    pub threshold: f64,
    /// How children are drawn.
    pub scheme: Resampling,
    /// Seed of what is drawn for that.
    pub seed: u64,
}

impl Smc {
    /// Systematic resampling at half of `particles`.
    pub fn new(particles: usize) -> Smc {
        Smc { particles, threshold: 0.5, scheme: Resampling::Systematic, seed: 0 }
    }
}

/// Weights of groups of particles.
#[derive(Clone, Debug)]
pub struct Cloud {
    smc: Smc,
    uniforms: Uniforms,
    log_weights: Vec<f64>,
    log_evidence: Vec<f64>,
    resamplings: usize,
}

impl Cloud {
    /// `samples` particles of equal weight.
    ///
    /// # Errors
    /// If they do not make whole groups.
    pub fn new(smc: &Smc, samples: usize) -> Result<Cloud> {
        let k = smc.particles;
        if k == 0 || samples == 0 || !samples.is_multiple_of(k) {
            return Err(Error::Domain(format!("{samples} samples are no whole groups of {k} particles")));
        }
        if !(0.0..=1.0).contains(&smc.threshold) {
            return Err(Error::Domain(format!("a threshold of {} is no share of the particles", smc.threshold)));
        }
        Ok(Cloud {
            smc: *smc,
            uniforms: Uniforms::resampling(smc.seed),
            log_weights: vec![0.0; samples],
            log_evidence: vec![0.0; samples / k],
            resamplings: 0,
        })
    }

    /// The logarithm of the evidence of each group: of the mean, over the sampler's law, of all potentials' product.
    pub fn log_evidence(&self) -> &[f64] {
        &self.log_evidence
    }

    /// Groups times steps at which children were drawn.
    pub fn resamplings(&self) -> usize {
        self.resamplings
    }

    /// The weight of each particle; those of a group sum to 1.
    pub fn weights(&self) -> Vec<f64> {
        self.log_weights.chunks(self.smc.particles).flat_map(normalized).collect()
    }

    /// The effective number of particles of a group, 1 to `K`.
    pub fn effective(&self, group: usize) -> f64 {
        let k = self.smc.particles;
        let weights = normalized(&self.log_weights[group * k..(group + 1) * k]);
        1.0 / weights.iter().map(|w| w * w).sum::<f64>()
    }

    /// Multiplies the weight of each particle by `exp(logs[i])`.
    ///
    /// # Errors
    /// If a logarithm is not a number, or no particle of a group is left with any weight.
    pub fn weigh(&mut self, logs: &[f64]) -> Result<()> {
        if let Some(i) = logs.iter().position(|l| l.is_nan() || *l == f64::INFINITY) {
            return Err(Error::Domain(format!("the potential of particle {i} has the logarithm {}", logs[i])));
        }
        let k = self.smc.particles;
        for (g, (weights, logs)) in self.log_weights.chunks_mut(k).zip(logs.chunks(k)).enumerate() {
            let before = log_sum_exp(weights);
            weights.iter_mut().zip(logs).for_each(|(w, l)| *w += l);
            let after = log_sum_exp(weights);
            if after == f64::NEG_INFINITY {
                return Err(Error::Domain(format!("no particle of group {g} has any weight left; take more")));
            }
            self.log_evidence[g] += after - before;
        }
        Ok(())
    }

    /// Draws children in the groups that need it: the parent of each particle, or `None` if no group did.
    pub fn resample(&mut self) -> Option<Vec<usize>> {
        let k = self.smc.particles;
        let needy: Vec<usize> = (0..self.log_evidence.len())
            .filter(|&g| self.effective(g) < self.smc.threshold * k as f64 * (1.0 - 1e-12))
            .collect();
        if needy.is_empty() {
            return None;
        }
        let mut parents: Vec<usize> = (0..self.log_weights.len()).collect();
        for g in needy {
            let weights = normalized(&self.log_weights[g * k..(g + 1) * k]);
            let uniforms = &mut self.uniforms;
            let chosen = self.smc.scheme.parents(&weights, k, &mut || uniforms.draw());
            for (i, parent) in chosen.into_iter().enumerate() {
                parents[g * k + i] = g * k + parent;
                self.log_weights[g * k + i] = 0.0;
            }
            self.resamplings += 1;
        }
        Some(parents)
    }
}

fn log_sum_exp(logs: &[f64]) -> f64 {
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY { top } else { top + logs.iter().map(|l| (l - top).exp()).sum::<f64>().ln() }
}

fn normalized(logs: &[f64]) -> Vec<f64> {
    let total = log_sum_exp(logs);
    logs.iter().map(|l| (l - total).exp()).collect()
}

/// Rows of `each` elements, the parents' in place of the children's.
pub(super) fn gather<T: Copy>(rows: &[T], parents: &[usize], each: usize) -> Vec<T> {
    parents.iter().flat_map(|&p| rows[p * each..(p + 1) * each].iter().copied()).collect()
}

/// Samples with weights.
#[derive(Clone, Debug)]
pub struct Particles {
    /// The particles, `[B, ..]`.
    pub x: Vec<f64>,
    /// Their weights, and what else is known of the groups.
    pub cloud: Cloud,
}

impl Particles {
    /// One particle of each group, drawn by weight: `[groups, ..]`.
    pub fn choose(&self, seed: u64) -> Vec<f64> {
        let each = self.x.len() / self.cloud.log_weights.len();
        let k = self.cloud.smc.particles;
        let mut uniforms = Uniforms::resampling(seed);
        let chosen: Vec<usize> = self
            .cloud
            .weights()
            .chunks(k)
            .enumerate()
            .map(|(g, w)| g * k + Resampling::Multinomial.parents(w, 1, &mut || uniforms.draw())[0])
            .collect();
        gather(&self.x, &chosen, each)
    }
}

/// What a particle's reward so far is made into: potentials whose product along a whole path is `exp(lambda r(x0))`
/// for each of them, since the last one makes up for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Potential {
    /// `exp lambda (r(x0^) - r before)`: favours what improves.
    #[default]
    Difference,
    /// `exp lambda max r(x0^)` so far: favours who once was good.
    Max,
    /// `exp lambda sum r(x0^)` so far.
    Sum,
}

/// Steering toward a reward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steering {
    /// The potential.
    pub potential: Potential,
    /// `lambda`.
    pub strength: f64,
}

/// What steering remembers of each particle.
struct Record {
    /// Last reward, best reward, sum of rewards.
    last: f64,
    best: f64,
    sum: f64,
    /// The logarithm of the product of its potentials.
    spent: f64,
}

impl Steering {
    fn log(&self, record: &mut Record, reward: f64, last: bool) -> f64 {
        let gain = reward - record.last;
        record.last = reward;
        record.best = record.best.max(reward);
        record.sum += reward;
        let log = match self.potential {
            _ if last => self.strength * reward - record.spent,
            Potential::Difference => self.strength * gain,
            Potential::Max => self.strength * record.best,
            Potential::Sum => self.strength * record.sum,
        };
        record.spent += log;
        log
    }
}

/// Particles of a sampler, steered toward a reward of clean samples. `reward` is asked of one sample's elements: of
/// estimated data on the way, of the sample at the end. A sampler that remembers earlier steps begins anew at each
/// one, since particles change places.
///
/// # Errors
/// The network's errors, and those of [`Cloud`].
pub fn steer(
    sampler: &dyn Sampler,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    smc: &Smc,
    steering: &Steering,
    reward: &mut dyn FnMut(&[f64]) -> f64,
) -> Result<Particles> {
    let samples = denoiser.dims()[0];
    let mut cloud = Cloud::new(smc, samples)?;
    let grid = sampler.levels(denoiser.process(), grid)?;
    let mut x = begin(denoiser, &grid, noise);
    let each = x.len() / samples;
    let mut records: Vec<Record> =
        (0..samples).map(|_| Record { last: 0.0, best: f64::NEG_INFINITY, sum: 0.0, spent: 0.0 }).collect();
    let mut weigh = |data: &[f64], records: &mut [Record], cloud: &mut Cloud, last: bool| {
        let logs: Vec<f64> = data.chunks(each).zip(records).map(|(x0, r)| steering.log(r, reward(x0), last)).collect();
        cloud.weigh(&logs)
    };
    for (index, pair) in grid.levels.windows(2).enumerate() {
        let step = Step { index, from: pair[0], to: pair[1] };
        let estimate = denoiser.estimate(&x, &step.from)?;
        weigh(&estimate.x0, &mut records, &mut cloud, false)?;
        if let Some(parents) = cloud.resample() {
            x = gather(&x, &parents, each);
            let copy = |p: &usize| Record { ..records[*p] };
            records = parents.iter().map(copy).collect();
            denoiser.select(&parents);
        }
        let mut stepper = sampler.start(&Run { process: denoiser.process(), grid: &grid })?;
        stepper.step(&mut x, denoiser, &step, noise)?;
    }
    weigh(&x, &mut records, &mut cloud, true)?;
    Ok(Particles { x, cloud })
}

/// Noise at the grid's first level.
fn begin(denoiser: &Denoiser<'_>, grid: &Grid, noise: &mut dyn Noise) -> Vec<f64> {
    let std = marginal_std(denoiser.process(), &grid.levels[0]);
    noise.draw().iter().map(|z| std * z).collect()
}

/// Particles of a Gaussian sampler conditioned on what `twist` is the likelihood of. Each step is proposed from the
/// estimate with the twist's gradient in it; weights make up for the difference, so that with more particles the
/// posterior becomes exact whatever the twist is before the end. Steps that draw nothing are the sampler's own.
///
/// # Errors
/// The network's errors, which needs a derivative, and those of [`Cloud`].
pub fn twisted(
    kernel: &dyn GaussianStep,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    smc: &Smc,
    twist: &dyn Twist,
) -> Result<Particles> {
    let process = denoiser.process();
    let samples = denoiser.dims()[0];
    let mut cloud = Cloud::new(smc, samples)?;
    let mut x = begin(denoiser, grid, noise);
    let each = x.len() / samples;
    let logs = |level: &Level<f64>, x0: &[f64]| -> Vec<f64> {
        x0.chunks(each).map(|x0| twist.log(process, level, x0)).collect()
    };
    let mut estimate = denoiser.estimate(&x, &grid.levels[0])?;
    let mut belief = logs(&grid.levels[0], &estimate.x0);
    cloud.weigh(&belief)?;
    for (index, pair) in grid.levels.windows(2).enumerate() {
        let step = Step { index, from: pair[0], to: pair[1] };
        if let Some(parents) = cloud.resample() {
            x = gather(&x, &parents, each);
            belief = gather(&belief, &parents, 1);
            estimate =
                Estimate { x0: gather(&estimate.x0, &parents, each), noise: gather(&estimate.noise, &parents, each) };
        }
        let law = kernel.law(&step);
        let mut change = vec![0.0; samples];
        if law.std > 0.0 {
            let levels = vec![step.from; samples];
            let gradient = twist_gradient(twist, denoiser, &x, &levels, &estimate)?;
            let Level { alpha, sigma, .. } = step.from;
            let reach = if alpha > 0.0 { sigma * sigma / alpha } else { 0.0 };
            let z = noise.draw();
            for i in 0..x.len() {
                let plain = law.mean(x[i], estimate.x0[i], estimate.noise[i]);
                let x0 = estimate.x0[i] + reach * gradient[i];
                let leaning = law.mean(x[i], x0, (x[i] - alpha * x0) / sigma);
                x[i] = leaning + law.std * z[i];
                let own = (x[i] - plain) / law.std;
                change[i / each] += 0.5 * (z[i] * z[i] - own * own);
            }
        } else {
            for i in 0..x.len() {
                x[i] = law.mean(x[i], estimate.x0[i], estimate.noise[i]);
            }
        }
        let before = belief;
        belief = if step.is_last() {
            logs(&step.to, &x)
        } else {
            estimate = denoiser.estimate(&x, &step.to)?;
            logs(&step.to, &estimate.x0)
        };
        (0..samples).for_each(|s| change[s] += belief[s] - before[s]);
        cloud.weigh(&change)?;
    }
    Ok(Particles { x, cloud })
}

/// Particles of `q1^(1 - beta) q2^beta`, normalised, of what two networks of one path have learnt. With the
/// unconditional one first and the conditional one second `beta` is the scale of classifier-free guidance; here the
/// weights `d log w = g^2 beta (beta - 1) |s1 - s2|^2 dt / 2` correct for guided densities not being each other's
/// diffusions.
///
/// # Errors
/// The networks' errors; a grid that begins where there is no data at all; and those of [`Cloud`].
pub fn geometric(
    kernel: &dyn GaussianStep,
    first: &mut Denoiser<'_>,
    second: &mut Denoiser<'_>,
    beta: f64,
    grid: &Grid,
    noise: &mut dyn Noise,
    smc: &Smc,
) -> Result<Particles> {
    if first.dims() != second.dims() || first.process().path != second.process().path {
        return Err(Error::Domain("a product of densities wants two networks of one path and of equal samples".into()));
    }
    if grid.levels[0].alpha == 0.0 {
        return Err(Error::Domain(
            "the grid begins at noise without data, where weights are infinite; begin later".into(),
        ));
    }
    let samples = first.dims()[0];
    let mut cloud = Cloud::new(smc, samples)?;
    let mut x = begin(first, grid, noise);
    let each = x.len() / samples;
    // The rate of the weights over ln (sigma / alpha)^2, in which it changes least, and the mixed estimate.
    let ratio = |level: &Level<f64>| level.sigma / level.alpha;
    let mut look = |x: &[f64], level: &Level<f64>| -> Result<(Vec<f64>, Estimate)> {
        let (a, b) = (first.estimate(x, level)?, second.estimate(x, level)?);
        let scale = 0.5 * beta * (beta - 1.0) / ratio(level).powi(2);
        let distance = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let rates = a.x0.chunks(each).zip(b.x0.chunks(each)).map(|pair| scale * distance(pair)).collect();
        let x0: Vec<f64> = a.x0.iter().zip(&b.x0).map(|(a, b)| a + beta * (b - a)).collect();
        Ok((rates, Estimate::of_data(x0, x, &vec![*level; samples])))
    };
    let (mut rates, mut estimate) = look(&x, &grid.levels[0])?;
    for (index, pair) in grid.levels.windows(2).enumerate() {
        let step = Step { index, from: pair[0], to: pair[1] };
        let law = kernel.law(&step);
        let z = if law.std > 0.0 { noise.draw() } else { vec![] };
        for i in 0..x.len() {
            let mean = law.mean(x[i], estimate.x0[i], estimate.noise[i]);
            x[i] = mean + z.get(i).map_or(0.0, |z| law.std * z);
        }
        if step.is_last() {
            // Down to no noise at all the difference of the scores stays what it is.
            cloud.weigh(&rates)?;
            break;
        }
        let (after, next) = look(&x, &step.to)?;
        let width = 2.0 * (ratio(&step.from) / ratio(&step.to)).ln();
        let logs: Vec<f64> = rates.iter().zip(&after).map(|(a, b)| 0.5 * width * (a + b)).collect();
        (rates, estimate) = (after, next);
        cloud.weigh(&logs)?;
        if let Some(parents) = cloud.resample() {
            x = gather(&x, &parents, each);
            rates = gather(&rates, &parents, 1);
            estimate =
                Estimate { x0: gather(&estimate.x0, &parents, each), noise: gather(&estimate.noise, &parents, each) };
        }
    }
    Ok(Particles { x, cloud })
}
