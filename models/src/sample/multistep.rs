//! Linear multistep solvers of `dy = n d(sigma / alpha)`, `y = x / alpha`: one evaluation a step, and the noise
//! estimates of the steps before. They differ in the weights of these.
//!
//! LMS integrates the polynomial in `sigma / alpha` through them (Crowson, k-diffusion), DEIS that in its logarithm
//! (Zhang and Chen, 2022), iPNDM and PLMS take Adams' weights of even spacing (Liu et al., 2022). From pure noise,
//! which has no `x / alpha`, the first step is DDIM's and leaves nothing to remember.

use super::chart::{is_pure_noise, level_at, level_at_ratio, ratio, transfer, transfer_along};
use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::process::{Level, Process, Time};
use crate::{Error, Result};
use std::collections::VecDeque;

/// How the estimates of the past are weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The integral of the polynomial in `sigma / alpha`.
    Lms,
    /// The integral of the polynomial in `ln(sigma / alpha)`.
    Deis,
    /// Adams-Bashforth for even steps, of lower order while the history is short.
    IPndm,
    /// The same after one step of improved Euler.
    Plms,
    /// The same after three Runge-Kutta steps of four evaluations.
    Pndm,
}

/// A linear multistep solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multistep {
    /// The weights.
    pub rule: Rule,
    /// Most estimates used, the newest included: 1 to 4, of DEIS to 3.
    pub order: usize,
    /// Whether runs of fewer than 15 steps end with steps of falling order (read by DEIS alone).
    pub lower_order_final: bool,
}

/// Adams-Bashforth.
const ADAMS: [&[f64]; 4] = [
    &[1.0],
    &[1.5, -0.5],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// Coefficients of the Lagrange polynomials through `nodes`, ascending: `out[j]` is 1 at node `j`, 0 at the others.
fn lagrange(nodes: &[f64]) -> Vec<Vec<f64>> {
    let basis = |j: usize| {
        let mut p = vec![1.0];
        for (_, node) in nodes.iter().enumerate().filter(|(k, _)| *k != j) {
            let d = nodes[j] - node;
            let mut q = vec![0.0; p.len() + 1];
            for (i, c) in p.iter().enumerate() {
                q[i] -= c * node / d;
                q[i + 1] += c / d;
            }
            p = q;
        }
        p
    };
    (0..nodes.len()).map(basis).collect()
}

/// `int_0^h v^k dv` and `int_0^h v^k e^v dv`, `k` ascending.
fn moments(h: f64, count: usize, exponential: bool) -> Vec<f64> {
    if !exponential {
        return (1..=count as i32).map(|k| h.powi(k) / k as f64).collect();
    }
    // By the series, not by parts: the recursion would subtract nearly equal numbers for short steps.
    if h.abs() < 1.0 {
        let term = |k: usize| {
            let (mut sum, mut power) = (0.0, h.powi(k as i32 + 1));
            for n in 0..40 {
                sum += power / (k + n + 1) as f64;
                power *= h / (n + 1) as f64;
            }
            sum
        };
        return (0..count).map(term).collect();
    }
    let mut out = vec![libm::expm1(h)];
    for k in 1..count {
        out.push(h.powi(k as i32) * h.exp() - k as f64 * out[k - 1]);
    }
    out
}

/// The weights of estimates at the ratios `past`, newest first, for the step from `past[0]` to `to`.
fn weights(rule: Rule, past: &[f64], to: f64) -> Vec<f64> {
    let from = past[0];
    let integrate = |nodes: Vec<f64>, h: f64, scale: f64, exponential: bool| {
        let m = moments(h, nodes.len(), exponential);
        lagrange(&nodes).iter().map(|p| scale * p.iter().zip(&m).map(|(p, m)| p * m).sum::<f64>()).collect()
    };
    match rule {
        // Nodes are taken from the step's beginning, so that the polynomials stay small.
        Rule::Lms => integrate(past.iter().map(|r| r - from).collect(), to - from, 1.0, false),
        Rule::Deis if past.len() == 1 => vec![to - from],
        Rule::Deis => integrate(past.iter().map(|r| (r / from).ln()).collect(), (to / from).ln(), from, true),
        Rule::IPndm | Rule::Plms | Rule::Pndm => ADAMS[past.len() - 1].iter().map(|c| c * (to - from)).collect(),
    }
}

struct MultistepRun {
    solver: Multistep,
    steps: usize,
    /// Ratios and noise estimates, newest first.
    history: VecDeque<(f64, Vec<f64>)>,
    /// Steps of the starting procedure still to take.
    starting: usize,
}

impl Sampler for Multistep {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        let most = match self.rule {
            Rule::Deis => 3,
            Rule::Lms | Rule::IPndm | Rule::Plms | Rule::Pndm => 4,
        };
        if !(1..=most).contains(&self.order) {
            let message = format!("is {}; this solver has orders 1 to {most}", self.order);
            return Err(Error::config("sample.order", message));
        }
        let starting = match self.rule {
            Rule::Plms => 1,
            Rule::Pndm => 3,
            Rule::Lms | Rule::Deis | Rule::IPndm => 0,
        };
        let starting = starting.min(self.order - 1);
        Ok(Box::new(MultistepRun { solver: *self, steps: run.grid.steps(), history: VecDeque::new(), starting }))
    }
}

impl MultistepRun {
    fn order(&self, step: &Step) -> usize {
        let left = self.steps - step.index;
        match self.solver.rule {
            // Its logarithm is infinite at clean data.
            Rule::Deis if step.is_last() => 1,
            Rule::Deis if self.solver.lower_order_final && self.steps < 15 => self.solver.order.min(left),
            _ => self.solver.order,
        }
    }

    fn remember(&mut self, level: &Level<f64>, noise: Vec<f64>) {
        self.history.push_front((ratio(level), noise));
        self.history.truncate(self.solver.order);
    }

    /// A step of the starting procedure; gives the estimate at its beginning.
    fn begin(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step) -> Result<()> {
        let (from, to) = (&step.from, &step.to);
        let first = denoiser.estimate(x, from)?.noise;
        let mut sum = first.clone();
        let mut add = |w: f64, n: &[f64]| sum.iter_mut().zip(n).for_each(|(s, n)| *s += w * n);
        match self.solver.rule {
            Rule::Plms => {
                let ahead = transfer_along(x, &first, from, to);
                add(1.0, &denoiser.estimate(&ahead, to)?.noise);
                sum.iter_mut().for_each(|s| *s *= 0.5);
            }
            _ => {
                let middle = halfway(denoiser.process(), from, to)?;
                let ahead = transfer_along(x, &first, from, &middle);
                let second = denoiser.estimate(&ahead, &middle)?.noise;
                let ahead = transfer_along(x, &second, from, &middle);
                let third = denoiser.estimate(&ahead, &middle)?.noise;
                let ahead = transfer_along(x, &third, from, to);
                let fourth = denoiser.estimate(&ahead, to)?.noise;
                add(2.0, &second);
                add(2.0, &third);
                add(1.0, &fourth);
                sum.iter_mut().for_each(|s| *s /= 6.0);
            }
        }
        x.copy_from_slice(&transfer_along(x, &sum, from, to));
        self.remember(from, first);
        Ok(())
    }
}

/// The level half-way in time.
fn halfway(process: &Process, from: &Level<f64>, to: &Level<f64>) -> Result<Level<f64>> {
    let time = 0.5 * (from.time + to.time);
    if from.rates.is_some() {
        return level_at(process, from, time);
    }
    let domain = process.path.domain();
    let (low, high) =
        (process.level(Time::new(domain, time.floor())?)?, process.level(Time::new(domain, time.ceil())?)?);
    level_at_ratio(process, (ratio(&low) * ratio(&high)).sqrt())
}

impl Stepper for MultistepRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        if is_pure_noise(&step.from) {
            let e = denoiser.estimate(x, &step.from)?;
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        if self.starting > 0 && !step.is_last() {
            self.starting -= 1;
            return self.begin(x, denoiser, step);
        }
        let noise = denoiser.estimate(x, &step.from)?.noise;
        self.remember(&step.from, noise);
        let used = self.order(step).min(self.history.len());
        let past: Vec<f64> = self.history.iter().take(used).map(|(r, _)| *r).collect();
        let weights = weights(self.solver.rule, &past, ratio(&step.to));
        for (i, x) in x.iter_mut().enumerate() {
            let slope: f64 = weights.iter().zip(&self.history).map(|(w, (_, n))| w * n[i]).sum();
            *x = step.to.alpha * (*x / step.from.alpha + slope);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq as close;

    /// Each rule integrates the polynomials it is made of exactly.
    #[test]
    fn weights_integrate_polynomials() {
        let past = [2.0, 2.7, 3.9, 5.0];
        for n in 1..=4 {
            for k in 0..n as i32 {
                let w = weights(Rule::Lms, &past[..n], 1.3);
                let got: f64 = w.iter().zip(past).map(|(w, r)| w * r.powi(k)).sum();
                close!(got, (1.3f64.powi(k + 1) - 2f64.powi(k + 1)) / (k + 1) as f64, max_relative = 1e-11);
            }
        }
        // int ln r dr = r ln r - r, int ln^2 r dr = r ln^2 r - 2 r ln r + 2 r; over short and long steps.
        for to in [1.9f64, 0.4] {
            let w = weights(Rule::Deis, &past[..3], to);
            let sum = |f: &dyn Fn(f64) -> f64| w.iter().zip(past).map(|(w, r)| w * f(r)).sum::<f64>();
            let (one, two) = (|r: f64| r * r.ln() - r, |r: f64| r * (r.ln().powi(2) - 2.0 * r.ln() + 2.0));
            close!(sum(&|_| 1.0), to - 2.0, max_relative = 1e-11);
            close!(sum(&|r| r.ln()), one(to) - one(2.0), max_relative = 1e-10);
            close!(sum(&|r| r.ln().powi(2)), two(to) - two(2.0), max_relative = 1e-10);
        }
        let even = weights(Rule::IPndm, &[4.0, 5.0, 6.0, 7.0], 3.0);
        let same = weights(Rule::Lms, &[4.0, 5.0, 6.0, 7.0], 3.0);
        even.iter().zip(same).for_each(|(a, b)| close!(*a, b, max_relative = 1e-12));
    }
}
