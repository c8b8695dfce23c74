//! Speculative sampling: several steps drafted without the network, then verified by one evaluation of it.
//!
//! The draft of a step takes the last estimate of the data for the next ones (a *frozen* target, so that no second
//! network is needed). Drafted and true step are normal laws of one deviation; *reflection coupling* accepts the
//! draft where it can and otherwise mirrors its noise, so that what comes out has exactly the law of the true step,
//! and drafts are kept as often as any coupling can keep them (De Bortoli et al., "Accelerated diffusion models via
//! speculative sampling", 2025). A batch holds a window of steps of each sample, all verified at once.

use super::{Denoiser, GaussianStep, Grid, SampleNoise, Step, marginal_std};
use crate::process::Level;
use crate::{Error, Result, streams};
use dnx_ir::threefry::{bits, fold_in, key};

/// A draw from `N(target, std^2)` made of `draft + std z`, where `z` is standard normal and `uniform` in `[0, 1)`; and
/// whether it is the draft itself.
pub fn couple(draft: &[f64], target: &[f64], std: f64, z: &[f64], uniform: f64) -> (Vec<f64>, bool) {
    let delta: Vec<f64> = draft.iter().zip(target).map(|(p, q)| (p - q) / std).collect();
    let (own, moved): (f64, f64) =
        z.iter().zip(&delta).fold((0.0, 0.0), |(own, moved), (z, d)| (own + z * z, moved + (z + d).powi(2)));
    if uniform <= (0.5 * (own - moved)).exp() {
        return (draft.iter().zip(z).map(|(m, z)| m + std * z).collect(), true);
    }
    let square: f64 = delta.iter().map(|d| d * d).sum();
    let along = 2.0 * z.iter().zip(&delta).map(|(z, d)| z * d).sum::<f64>() / square;
    let mirrored = |((m, z), d): ((&f64, &f64), &f64)| m + std * (z - along * d);
    (target.iter().zip(z).zip(&delta).map(mirrored).collect(), false)
}

/// Samples and what they cost.
#[derive(Clone, Debug)]
pub struct Speculated {
    /// One sample per seed.
    pub x: Vec<f64>,
    /// Evaluations of the network, each for a window of steps of every sample.
    pub rounds: usize,
    /// Drafted steps that were verified.
    pub drafted: usize,
    /// Those of them that were kept.
    pub accepted: usize,
}

impl Speculated {
    /// Share of verified drafts that were kept.
    pub fn acceptance(&self) -> f64 {
        if self.drafted == 0 { 1.0 } else { self.accepted as f64 / self.drafted as f64 }
    }
}

/// One sample's way.
struct Chain {
    /// Steps done.
    done: usize,
    x: Vec<f64>,
    /// The data that drafts aim at; none before the first evaluation.
    aim: Option<Vec<f64>>,
}

/// One sample per seed by a Gaussian sampler, of the law that the sampler itself draws from. The denoiser evaluates
/// `seeds * window` states at once.
///
/// # Errors
/// The network's errors, and a denoiser of another size.
pub fn speculate(
    kernel: &dyn GaussianStep,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    seeds: &[u64],
    window: usize,
) -> Result<Speculated> {
    if window == 0 || seeds.is_empty() || denoiser.dims()[0] != window * seeds.len() {
        let (got, n) = (denoiser.dims()[0], seeds.len());
        return Err(Error::Domain(format!("windows of {window} steps of {n} samples are no batch of {got}")));
    }
    let each: usize = denoiser.dims()[1..].iter().product();
    let steps = grid.steps();
    let step = |index: usize| Step { index, from: grid.levels[index], to: grid.levels[index + 1] };
    let noise = SampleNoise::new(seeds, each);
    let std = marginal_std(denoiser.process(), &grid.levels[0]);
    let start = |s: usize| noise.at(s, 0).iter().map(|z| std * z).collect();
    let mut chains: Vec<Chain> = (0..seeds.len()).map(|s| Chain { done: 0, x: start(s), aim: None }).collect();
    let accept: Vec<_> = seeds.iter().map(|&seed| fold_in(key(seed), streams::ACCEPT)).collect();
    let mut out = Speculated { x: vec![], rounds: 0, drafted: 0, accepted: 0 };
    // Noise `i + 1` of a sample is that of its step `i`, as in a sampler that draws once a step.
    let mean = |law: &super::StepLaw, from: &Level<f64>, x: &[f64], x0: &[f64]| -> Vec<f64> {
        let of = |(x, x0): (&f64, &f64)| law.mean(*x, *x0, (x - from.alpha * x0) / from.sigma);
        x.iter().zip(x0).map(of).collect()
    };
    while chains.iter().any(|c| c.done < steps) {
        let (mut states, mut levels) = (Vec::with_capacity(each * window * seeds.len()), vec![]);
        let mut lengths = vec![];
        for (s, chain) in chains.iter().enumerate() {
            let mut path = vec![chain.x.clone()];
            if let Some(aim) = &chain.aim {
                for at in (chain.done..steps - 1).take(window - 1) {
                    let (step, z) = (step(at), noise.at(s, at as u32 + 1));
                    let law = kernel.law(&step);
                    let mut next = mean(&law, &step.from, &path[path.len() - 1], aim);
                    next.iter_mut().zip(z).for_each(|(x, z)| *x += law.std * z);
                    path.push(next);
                }
            }
            lengths.push(if chain.done < steps { path.len() } else { 0 });
            // What of a window is not drafted repeats its last state, and is not looked at.
            for j in (0..window).map(|j| j.min(path.len() - 1)) {
                states.extend(&path[j]);
                levels.push(grid.levels[(chain.done + j).min(steps - 1)]);
            }
        }
        let estimate = denoiser.estimate_each(&states, &levels)?;
        out.rounds += 1;
        for (s, chain) in chains.iter_mut().enumerate() {
            let aim = chain.aim.take();
            for j in 0..lengths[s] {
                let here = (s * window + j) * each..(s * window + j + 1) * each;
                let data = &estimate.x0[here.clone()];
                let (step, at) = (step(chain.done), chain.done as u32);
                let law = kernel.law(&step);
                let target = mean(&law, &step.from, &chain.x, data);
                chain.aim = Some(data.to_vec());
                chain.done += 1;
                let z = noise.at(s, at + 1);
                let Some(aim) = aim.as_ref().filter(|_| law.std > 0.0 && j + 1 < lengths[s]) else {
                    // Nothing was drafted from here; or this is a step without noise, which no draft hits.
                    chain.x = target.iter().zip(z).map(|(m, z)| m + law.std * z).collect();
                    break;
                };
                let draft = mean(&law, &step.from, &chain.x, aim);
                let uniform = bits(fold_in(accept[s], at), 0) as f64 / 2f64.powi(32);
                let (next, kept) = couple(&draft, &target, law.std, &z, uniform);
                chain.x = next;
                out.drafted += 1;
                out.accepted += kept as usize;
                if !kept {
                    break;
                }
            }
        }
    }
    out.x = chains.into_iter().flat_map(|c| c.x).collect();
    Ok(out)
}
