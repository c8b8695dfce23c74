//! Likelihood of data by the probability-flow ODE: a normalising flow without training as one (Song et al., "Score-based
//! generative modeling through stochastic differential equations", 2021, section 4.3).
//!
//! Along the flow the density of a state changes by the divergence of its velocity, so that
//! `log p(x0) = log p(x_T) + integral of div v dt` from data to noise. The divergence is a trace of the network's
//! derivative: exact, by one direction per element, or estimated by the mean of `e . J e` over a few random
//! directions of signs, which is unbiased (Hutchinson, 1989; Grathwohl et al., 2019).

use super::runge_kutta::Tableau;
use super::{Denoiser, marginal_std};
use crate::process::{Level, Time, TimeDomain};
use crate::{Error, Result, streams};
use dnx_ir::threefry::{bits, fold_in, key};

/// How a trace is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// By as many directions as a sample has elements.
    Exact,
    /// By the mean over this many random directions of signs, the same all along the flow.
    Hutchinson {
        /// Their number.
        probes: usize,
    },
}

/// How the flow is followed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Accuracy {
    /// Steps as long as the estimated error allows (Dormand and Prince's rule), the same for a whole batch.
    Adaptive {
        /// Greatest error of a step, relative to what is above 1 in size and absolute below.
        tolerance: f64,
    },
    /// A number of steps of fourth order, evenly in the logarithm of `sigma` where times are noise levels.
    Fixed {
        /// Their number.
        steps: usize,
    },
}

/// How likelihood is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    /// The trace.
    pub trace: Trace,
    /// The solver.
    pub accuracy: Accuracy,
    /// Least time, in the path's unit: data is taken to be there already. `None`: that of the process, but at least
    /// 1e-4 of a unit path.
    pub start: Option<f64>,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow { trace: Trace::Hutchinson { probes: 1 }, accuracy: Accuracy::Adaptive { tolerance: 1e-4 }, start: None }
    }
}

/// Steps that an adaptive solver gives up after.
const MOST_STEPS: usize = 10_000;

/// `ln p(x)` of each of the samples `x` `[B, ..]`, in nats per sample, by the conditional network. `seeds` are those
/// of the random directions, one per sample; an exact trace has none.
///
/// # Errors
/// The network's errors, which needs a derivative; guidance in force; and a flow that no step is short enough for.
pub fn log_likelihood(denoiser: &mut Denoiser<'_>, x: &[f64], seeds: &[u64], flow: &Flow) -> Result<Vec<f64>> {
    let process = denoiser.process();
    let samples = denoiser.dims()[0];
    let elems: usize = denoiser.dims()[1..].iter().product();
    if x.len() != samples * elems || seeds.len() != samples {
        let (got, dims) = (x.len(), denoiser.dims());
        return Err(Error::Domain(format!("{got} numbers and {} seeds are no samples of {dims:?}", seeds.len())));
    }
    let domain = process.path.domain();
    let [low, high] = process.time_range;
    let low = flow.start.unwrap_or(if domain == TimeDomain::Unit { low.max(1e-4) } else { low });
    let [bottom, top] = [low, high].map(|t| Time::new(domain, t).and_then(|t| process.level(t)));
    let (bottom, top) = (bottom?, top?);
    if !(bottom.sigma > 0.0 && low < high) {
        return Err(Error::Domain(format!("likelihood cannot start at time {low}: there is no noise yet")));
    }
    let probes = directions(flow.trace, seeds, elems)?;
    let mut slope = |y: &[f64], at: &Level<f64>| -> Result<Vec<f64>> {
        let (a, b) = at.rates.ok_or_else(chainless)?;
        let x = &y[..samples * elems];
        let levels = vec![*at; samples];
        let mut traces = vec![0.0; samples];
        let mut out = vec![];
        for probe in &probes {
            let (estimate, moved) = denoiser.push_forward(x, &levels, probe)?;
            for (s, trace) in traces.iter_mut().enumerate() {
                let range = s * elems..(s + 1) * elems;
                *trace += probe[range.clone()].iter().zip(&moved[range]).map(|(e, m)| e * m).sum::<f64>();
            }
            out = estimate.x0.iter().zip(&estimate.noise).map(|(x0, n)| a * x0 + b * n).collect();
        }
        let share = if flow.trace == Trace::Exact { 1.0 } else { 1.0 / probes.len() as f64 };
        // The trace is that of x0's derivative; n = (x - alpha x0) / sigma.
        let divergence = |trace: f64| a * share * trace + b * (elems as f64 - at.alpha * share * trace) / at.sigma;
        out.extend(traces.into_iter().map(divergence));
        Ok(out)
    };
    // Noiseless data as the state at the least time: the state is alpha x0, whose density is alpha^-d that of x0.
    let mut y: Vec<f64> = x.iter().map(|x| bottom.alpha * x).collect();
    y.extend(vec![0.0; samples]);
    let level = |t: f64| process.level(Time::new(domain, t.clamp(low, high))?);
    let y = match flow.accuracy {
        Accuracy::Fixed { steps } => fixed(y, [low, high], steps, domain, &level, &mut slope)?,
        Accuracy::Adaptive { tolerance } => adaptive(y, [low, high], tolerance, &level, &mut slope)?,
    };
    let std = marginal_std(process, &top);
    let mut out = Vec::with_capacity(samples);
    for s in 0..samples {
        let square: f64 = y[s * elems..(s + 1) * elems].iter().map(|y| (y / std).powi(2)).sum();
        let normal = -0.5 * (square + elems as f64 * (2.0 * std::f64::consts::PI * std * std).ln());
        out.push(normal + y[samples * elems + s] + elems as f64 * bottom.alpha.ln());
    }
    Ok(out)
}

/// A sample's log density in bits per element of 8-bit data, whose levels are 2 / 255 apart in [-1, 1]. Of data with
/// uniform noise between the levels ([`dequantized`]) the mean bounds the code length of the levels from above.
pub fn bits_per_dim(log: f64, elems: usize) -> f64 {
    -log / (elems as f64 * std::f64::consts::LN_2) + LEVELS_PER_UNIT.log2()
}

/// Levels of 8-bit data in a length of 1.
const LEVELS_PER_UNIT: f64 = 127.5;

/// Samples `[seeds, ..]` of 8-bit data in [-1, 1] with uniform noise of each one's seed between the levels.
pub fn dequantized(x: &[f32], seeds: &[u64]) -> Vec<f64> {
    let each = x.len() / seeds.len().max(1);
    let mut out = Vec::with_capacity(x.len());
    for (sample, &seed) in x.chunks(each.max(1)).zip(seeds) {
        let key = fold_in(key(seed), streams::DEQUANTIZE);
        for (i, &v) in sample.iter().enumerate() {
            let uniform = (bits(key, i as u64) as f64 + 0.5) / 2f64.powi(32);
            out.push(v as f64 + (uniform - 0.5) / LEVELS_PER_UNIT);
        }
    }
    out
}

/// The directions of a trace, each `[B, ..]`.
fn directions(trace: Trace, seeds: &[u64], elems: usize) -> Result<Vec<Vec<f64>>> {
    let samples = seeds.len();
    Ok(match trace {
        Trace::Exact => {
            let unit = |i: usize| (0..samples * elems).map(|j| (j % elems == i) as u8 as f64).collect();
            (0..elems).map(unit).collect()
        }
        Trace::Hutchinson { probes: 0 } => {
            return Err(Error::Domain("a trace cannot be estimated by 0 probes".into()));
        }
        Trace::Hutchinson { probes } => {
            let sign = |seed: u64, probe: usize, i: usize| {
                let key = fold_in(fold_in(key(seed), streams::PROBE), probe as u32);
                1.0 - 2.0 * (bits(key, i as u64) >> 31) as f64
            };
            let of =
                |probe: usize| seeds.iter().flat_map(|&seed| (0..elems).map(move |i| sign(seed, probe, i))).collect();
            (0..probes).map(of).collect()
        }
    })
}

type Slope<'a> = dyn FnMut(&[f64], &Level<f64>) -> Result<Vec<f64>> + 'a;

fn chainless() -> Error {
    Error::Domain("likelihood follows the velocity of a continuous path; a discrete chain has none".into())
}

/// `y` moved by a rule over `h`, and the error that the rule itself estimates.
fn stage(
    rule: &Tableau,
    y: &[f64],
    [s, h]: [f64; 2],
    level: &dyn Fn(f64) -> Result<Level<f64>>,
    slope: &mut Slope<'_>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut slopes: Vec<Vec<f64>> = vec![];
    let sum = |weights: &[f64], slopes: &[Vec<f64>]| -> Vec<f64> {
        let of = |i: usize| h * weights.iter().zip(slopes).map(|(w, k)| w * k[i]).sum::<f64>();
        (0..y.len()).map(of).collect()
    };
    let plus = |d: Vec<f64>| -> Vec<f64> { y.iter().zip(d).map(|(y, d)| y + d).collect() };
    for (a, c) in rule.a.iter().zip(&rule.c) {
        slopes.push(slope(&plus(sum(a, &slopes)), &level(s + c * h)?)?);
    }
    let error = rule.error.as_deref().map_or(vec![], |weights| sum(weights, &slopes));
    Ok((plus(sum(&rule.b, &slopes)), error))
}

fn fixed(
    mut y: Vec<f64>,
    [start, end]: [f64; 2],
    steps: usize,
    domain: TimeDomain,
    level: &dyn Fn(f64) -> Result<Level<f64>>,
    slope: &mut Slope<'_>,
) -> Result<Vec<f64>> {
    if steps == 0 {
        return Err(Error::Domain("likelihood takes at least one step".into()));
    }
    let at = |i: usize| match (i as f64 / steps as f64, domain) {
        (u, TimeDomain::Unit | TimeDomain::Angle) => start + u * (end - start),
        (u, TimeDomain::Sigma | TimeDomain::Step { .. }) => start * (end / start).powf(u),
    };
    let rule = Tableau::rk4();
    for i in 0..steps {
        // Powers need not come back to the end exactly, and a time beyond it is not allowed.
        let (s, next) = (at(i).min(end), if i + 1 == steps { end } else { at(i + 1).min(end) });
        y = stage(&rule, &y, [s, next - s], level, slope)?.0;
    }
    Ok(y)
}

fn adaptive(
    mut y: Vec<f64>,
    [start, end]: [f64; 2],
    tolerance: f64,
    level: &dyn Fn(f64) -> Result<Level<f64>>,
    slope: &mut Slope<'_>,
) -> Result<Vec<f64>> {
    if !(tolerance > 0.0) {
        return Err(Error::Domain(format!("a tolerance of {tolerance} is met by no step; it must be positive")));
    }
    let rule = Tableau::dormand_prince();
    let (mut s, mut h) = (start, start.max(1e-3 * (end - start)).min(end - start));
    for _ in 0..MOST_STEPS {
        let last = s + h >= end;
        if last {
            h = end - s;
        }
        let (next, error) = stage(&rule, &y, [s, h], level, slope)?;
        let worst =
            |w: f64, ((a, b), e): ((&f64, &f64), &f64)| w.max(e.abs() / (tolerance * a.abs().max(b.abs()).max(1.0)));
        let size = y.iter().zip(&next).zip(&error).fold(0.0, worst);
        if !size.is_finite() {
            return Err(Error::Domain(format!("the flow is no longer finite at time {s}")));
        }
        if size <= 1.0 {
            y = next;
            if last {
                return Ok(y);
            }
            s += h;
        }
        h *= (0.9 * size.max(1e-10).powf(-0.2)).clamp(0.2, 5.0);
    }
    Err(Error::Domain(format!("the flow took more than {MOST_STEPS} steps; raise the tolerance")))
}
