//! Sequences denoised with a schedule of their own for every token (Chen et al., "Diffusion forcing", 2024, section
//! 3.3): a token begins some steps, the *lag*, after the one before it. With no lag all tokens go together; with a lag
//! of all steps one is finished before the next begins; between the two, later tokens are the noisier the further
//! they are off. A network that is trained with one level for a whole sample does not know these states.
//!
//! Finished tokens are shown to the network as if they had a little noise, since they are not quite what data is.
//! Sequences longer than the network's are made in windows, each continuing the last tokens of the one before.

use super::{Denoiser, GaussianStep, Grid, Noise, Step, marginal_std};
use crate::process::{Level, Time};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[sample.forcing]`: how the tokens of a sequence follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forcing {
    /// Steps by which a token is behind the one before it; absent: one token after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<usize>,
    /// `sigma / alpha` at which finished tokens are shown to the network; at least that of the process's time range.
    pub history_sigma: f64,
    /// Tokens of a sample; absent: as many as the network has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Tokens that a window continues where `length` is more than the network has; absent: half of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
}

impl Default for Forcing {
    fn default() -> Forcing {
        Forcing { lag: None, history_sigma: 0.02, length: None, context: None }
    }
}

impl Forcing {
    /// Refuses numbers that make no sense.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.forcing.{key}"), message));
        if !(self.history_sigma > 0.0 && self.history_sigma.is_finite()) {
            return bad("history_sigma", format!("is {}; it must be positive", self.history_sigma));
        }
        if self.length == Some(0) {
            return bad("length", "is 0; a sample has at least one token".into());
        }
        if self.context == Some(0) {
            return bad("context", "is 0; a window continues at least one token".into());
        }
        Ok(())
    }

    /// Tokens of a sample of a network of so many.
    pub fn tokens(&self, network: usize) -> usize {
        self.length.unwrap_or(network)
    }
}

/// Sequences `[B, length, ..]` by a denoiser of `[B, T, ..]` whose network has levels of its tokens. `observe` sees
/// the states of the window that is being made, numbered in the order of the steps, with the level of its last token.
///
/// # Errors
/// The network's errors, a context that leaves nothing to be made, and a state that is no longer finite.
pub fn forced(
    kernel: &dyn GaussianStep,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    forcing: &Forcing,
    observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
) -> Result<Vec<f64>> {
    forcing.check()?;
    let dims = denoiser.dims().to_vec();
    let &[samples, tokens, ..] = &dims[..] else {
        return Err(Error::Domain(format!("states of dims {dims:?} are no sequences")));
    };
    let each: usize = dims[2..].iter().product();
    let length = forcing.tokens(tokens);
    let context = forcing.context.unwrap_or((tokens / 2).max(1));
    if length > tokens && context >= tokens {
        let message = format!("is {context}, which leaves nothing to be made of a window of {tokens} tokens");
        return Err(Error::config("sample.forcing.context", message));
    }
    // Long sequences are windows after windows; the tokens of each that are new are kept.
    let mut out: Vec<Vec<f64>> = vec![vec![]; samples];
    let (mut known, mut seen) = (0, 0);
    let mut window = vec![0.0; samples * tokens * each];
    loop {
        let plan = Window { kernel, grid, forcing, samples, tokens, each, known };
        plan.run(&mut window, denoiser, noise, &mut seen, observe)?;
        for (row, x) in out.iter_mut().zip(window.chunks(tokens * each)) {
            row.extend(&x[known * each..]);
        }
        if out[0].len() >= length * each {
            break;
        }
        // The last tokens are the first of the next window.
        known = context;
        for x in window.chunks_mut(tokens * each) {
            x.copy_within((tokens - context) * each.., 0);
        }
    }
    Ok(out
        .into_iter()
        .flat_map(|mut row| {
            row.truncate(length * each);
            row
        })
        .collect())
}

/// One window of tokens of which the first ones are known.
struct Window<'a> {
    kernel: &'a dyn GaussianStep,
    grid: &'a Grid,
    forcing: &'a Forcing,
    samples: usize,
    tokens: usize,
    each: usize,
    known: usize,
}

impl Window<'_> {
    fn run(
        &self,
        x: &mut [f64],
        denoiser: &mut Denoiser<'_>,
        noise: &mut dyn Noise,
        seen: &mut usize,
        observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
    ) -> Result<()> {
        let &Window { kernel, grid, samples, tokens, each, known, .. } = self;
        let process = denoiser.process();
        let steps = grid.steps();
        let lag = self.forcing.lag.unwrap_or(steps).min(steps);
        let finished = self.finished(denoiser)?;
        let std = marginal_std(process, &grid.levels[0]);
        let z = noise.draw();
        for (i, (x, z)) in x.iter_mut().zip(z).enumerate() {
            if i / each % tokens >= known {
                *x = std * z;
            }
        }
        observe(*seen, &grid.levels[0], x);
        // How many of its steps a token has made before this one.
        let made = |at: usize, token: usize| match token < known {
            true => steps,
            false => at.saturating_sub(lag * (token - known)).min(steps),
        };
        for at in 0..steps + lag * (tokens - known - 1) {
            let place: Vec<(usize, usize)> = (0..tokens).map(|t| (made(at, t), made(at + 1, t))).collect();
            let of = |&(from, _): &(usize, usize)| if from < steps { grid.levels[from] } else { finished };
            let levels: Vec<Level<f64>> = place.iter().map(of).collect();
            let estimate = denoiser.estimate_each(x, &levels.repeat(samples))?;
            let laws: Vec<_> = place
                .iter()
                .map(|&(from, to)| {
                    let step = |index: usize| Step { index, from: grid.levels[index], to: grid.levels[index + 1] };
                    (to > from).then(|| kernel.law(&step(from)))
                })
                .collect();
            let draws = laws.iter().flatten().any(|law| law.std > 0.0);
            let z = if draws { noise.draw() } else { vec![] };
            for (i, x) in x.iter_mut().enumerate() {
                if let Some(law) = &laws[i / each % tokens] {
                    let mean = law.mean(*x, estimate.x0[i], estimate.noise[i]);
                    *x = mean + if law.std > 0.0 { law.std * z[i] } else { 0.0 };
                }
            }
            if let Some(value) = x.iter().find(|v| !v.is_finite()) {
                return Err(Error::Domain(format!("the state became {value} in step {at}")));
            }
            *seen += 1;
            observe(*seen, &grid.levels[made(at + 1, tokens - 1)], x);
        }
        Ok(())
    }

    /// The level at which finished tokens are shown.
    fn finished(&self, denoiser: &Denoiser<'_>) -> Result<Level<f64>> {
        let process = denoiser.process();
        let least = process.level(Time::new(process.path.domain(), process.time_range[0])?)?;
        process.level(process.path.time_of_ratio(self.forcing.history_sigma.max(least.sigma / least.alpha))?)
    }
}
