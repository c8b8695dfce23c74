//! Exponential integrators in `lambda = ln alpha - ln sigma`: DPM-Solver, DPM-Solver++ and their stochastic forms
//! (Lu et al., 2022).
//!
//! The data and the noise prediction are one formula. With `c` the carrier and `d` the driver of a level and
//! `l = ln d - ln c`, the ODE is `d(x / c) = e^l m dl`: for data `c = sigma`, `d = alpha`, `l = lambda`, and for noise
//! `c = alpha`, `d = sigma`, `l = -lambda`.

use super::chart::{is_pure_noise, level_at_ratio, ratio, transfer};
use super::karras::split;
use super::{Denoiser, Estimate, Noise, Run, Sampler, Step, Stepper};
use crate::process::Level;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Which estimate is extrapolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The data: the `++` solvers, steadier under guidance.
    Data,
    /// The noise.
    Noise,
}

/// How the second-order term is weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// As a midpoint; the third-order multistep solver's as published, which leaves it of second order.
    #[default]
    Midpoint,
    /// As the integral of the interpolating polynomial.
    Heun,
}

/// How a solver of several evaluations comes by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// From the steps before.
    Multi,
    /// Groups of steps begin anew; the levels within a group are the solver's own stages.
    Single,
}

/// DPM-Solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DpmSolver {
    /// Data or noise.
    pub form: Form,
    /// Multistep or singlestep.
    pub history: History,
    /// 1 to 3; stochastic 1 or 2.
    pub order: usize,
    /// Whether it solves the SDE.
    pub stochastic: bool,
    /// Second-order term.
    pub correction: Correction,
    /// Whether runs of fewer than 15 steps end with steps of falling order.
    pub lower_order_final: bool,
    /// Whether the last step is of first order however it ends; to clean data it always is.
    pub euler_at_final: bool,
}

/// Where a level is in the form's own coordinates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub carrier: f64,
    pub driver: f64,
    pub l: f64,
}

impl Form {
    pub(super) fn frame(self, level: &Level<f64>) -> Frame {
        let (carrier, driver) = match self {
            Form::Data => (level.sigma, level.alpha),
            Form::Noise => (level.alpha, level.sigma),
        };
        Frame { carrier, driver, l: driver.ln() - carrier.ln() }
    }

    pub(super) fn of(self, e: Estimate) -> Vec<f64> {
        match self {
            Form::Data => e.x0,
            Form::Noise => e.noise,
        }
    }
}

/// Estimates with their `l`, newest first.
pub(super) type Past = VecDeque<(f64, Vec<f64>)>;

/// The order of a step of a multistep solver.
fn multistep_order(solver: &DpmSolver, step: &Step, steps: usize, known: usize) -> usize {
    let left = steps - step.index;
    let end = match solver.lower_order_final && steps < 15 {
        true => left,
        false if left == 1 && solver.euler_at_final => 1,
        false => solver.order,
    };
    let end = if step.is_last() { 1 } else { end };
    solver.order.min(end).min(known).max(1)
}

/// The orders of a singlestep solver's steps: `1, 2, 3, 1, 2, 3..` counts the stages of each group.
fn singlestep_orders(solver: &DpmSolver, steps: usize, to_clean: bool) -> Vec<usize> {
    let group = |k: usize| (1..=k).collect::<Vec<usize>>();
    let order = solver.order;
    let mut out: Vec<usize> = (0..steps / order).flat_map(|_| group(order)).collect();
    out.extend(group(steps % order));
    // A group that ends on clean data would look at it; such runs end with a step of first order.
    let lower = to_clean || solver.lower_order_final || solver.euler_at_final;
    if lower && order > 1 && steps.is_multiple_of(order) {
        out.truncate(steps - order);
        out.extend(group(order - 1));
        out.push(1);
    } else if to_clean && order > 1 && steps % order > 1 {
        out.truncate(steps - steps % order);
        out.extend(group(steps % order - 1));
        out.push(1);
    }
    out
}

struct DpmRun {
    solver: DpmSolver,
    steps: usize,
    past: Past,
    /// Of singlestep solvers: each step's order, the state and the level at the group's beginning.
    orders: Vec<usize>,
    begun: Option<(Vec<f64>, Level<f64>)>,
}

impl Sampler for DpmSolver {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        let bad = |message: String| Err(Error::config("sample.order", message));
        let most = if self.stochastic { 2 } else { 3 };
        if !(1..=most).contains(&self.order) {
            return bad(format!("is {}; this solver has orders 1 to {most}", self.order));
        }
        if self.stochastic && self.history == History::Single {
            return bad("of a stochastic singlestep solver is dpmpp_sde's own".into());
        }
        let steps = run.grid.steps();
        let to_clean = run.grid.levels[steps].sigma == 0.0;
        let orders = match self.history {
            History::Multi => vec![],
            History::Single => singlestep_orders(self, steps, to_clean),
        };
        Ok(Box::new(DpmRun { solver: *self, steps, past: Past::new(), orders, begun: None }))
    }
}

/// `(x - state) / share`, the difference quotients of estimates.
fn slope(a: &[f64], b: &[f64], by: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| (a - b) / by).collect()
}

/// `keep x + sum w_k v_k`.
fn combine(x: &[f64], keep: f64, terms: &[(f64, &[f64])]) -> Vec<f64> {
    let sum = |i: usize| terms.iter().map(|(w, v)| w * v[i]).sum::<f64>();
    x.iter().enumerate().map(|(i, x)| keep * x + sum(i)).collect()
}

impl DpmRun {
    /// The weight of the second-order term for a step of length `h` to this driver.
    fn second(&self, h: f64, driver: f64) -> f64 {
        match self.solver.correction {
            Correction::Midpoint => -0.5 * driver * libm::expm1(-h),
            Correction::Heun => driver * (libm::expm1(-h) / h + 1.0),
        }
    }

    /// A step from a state at `from` with the estimates of the past.
    fn multistep(&self, x: &[f64], from: Frame, to: Frame, order: usize) -> Vec<f64> {
        let h = to.l - from.l;
        let (keep, m0) = (to.carrier / from.carrier, &self.past[0].1);
        // In this form, not as -d expm1(-h), it is also finite to clean data and from pure noise.
        let first = to.driver - keep * from.driver;
        if order == 1 {
            return combine(x, keep, &[(first, m0)]);
        }
        let (l1, m1) = &self.past[1];
        let r0 = (from.l - l1) / h;
        let d1a = slope(m0, m1, r0);
        if order == 2 {
            return combine(x, keep, &[(first, m0), (self.second(h, to.driver), &d1a)]);
        }
        let (l2, m2) = &self.past[2];
        let r1 = (l1 - l2) / h;
        let d1b = slope(m1, m2, r1);
        let d2 = slope(&d1a, &d1b, r0 + r1);
        let d1: Vec<f64> = d1a.iter().zip(&d2).map(|(a, d)| a + r0 * d).collect();
        let e = libm::expm1(-h);
        // d2 is half the second derivative, which the published solver takes for the whole: it is of second order.
        let whole = match self.solver.correction {
            Correction::Midpoint => 1.0,
            Correction::Heun => 2.0,
        };
        let (w1, w2) = (to.driver * (e / h + 1.0), -whole * to.driver * ((e + h) / (h * h) - 0.5));
        combine(x, keep, &[(first, m0), (w1, &d1), (w2, &d2)])
    }

    /// A stage of a singlestep solver, from the group's beginning: the past holds the group's estimates.
    fn singlestep(&self, x: &[f64], from: Frame, to: Frame, order: usize) -> Vec<f64> {
        let h = to.l - from.l;
        let (keep, m0) = (to.carrier / from.carrier, &self.past[order - 1].1);
        let first = to.driver - keep * from.driver;
        if order == 1 {
            return combine(x, keep, &[(first, m0)]);
        }
        let ((la, ma), (lb, mb)) = (&self.past[0], &self.past[order - 2]);
        let (ra, rb) = ((la - from.l) / h, (lb - from.l) / h);
        let da = slope(ma, m0, ra);
        if order == 2 {
            return combine(x, keep, &[(first, m0), (self.second(h, to.driver), &da)]);
        }
        let db = slope(mb, m0, rb);
        let e = libm::expm1(-h);
        let w1 = to.driver * (e / h + 1.0);
        match self.solver.correction {
            Correction::Midpoint => combine(x, keep, &[(first, m0), (w1, &da)]),
            Correction::Heun => {
                let d1: Vec<f64> = da.iter().zip(&db).map(|(a, b)| (ra * b - rb * a) / (ra - rb)).collect();
                let d2: Vec<f64> = da.iter().zip(&db).map(|(a, b)| 2.0 * (a - b) / (ra - rb)).collect();
                let w2 = -to.driver * ((e + h) / (h * h) - 0.5);
                combine(x, keep, &[(first, m0), (w1, &d1), (w2, &d2)])
            }
        }
    }

    /// A step of the SDE's solver.
    fn stochastic(&self, x: &[f64], step: &Step, order: usize, noise: &mut dyn Noise) -> Vec<f64> {
        let (from, to) = (self.solver.form.frame(&step.from), self.solver.form.frame(&step.to));
        let m0 = &self.past[0].1;
        let keep = to.carrier / from.carrier;
        // To clean data the noise form would end with noise; both take the mean.
        if step.is_last() {
            return combine(x, keep, &[(to.driver - keep * from.driver, m0)]);
        }
        // h is in lambda in both forms here.
        let h = match self.solver.form {
            Form::Data => to.l - from.l,
            Form::Noise => from.l - to.l,
        };
        let (keep, first, second, std) = match self.solver.form {
            Form::Data => {
                let whole = -libm::expm1(-2.0 * h);
                let second = match self.solver.correction {
                    Correction::Midpoint => 0.5 * step.to.alpha * whole,
                    Correction::Heun => step.to.alpha * (1.0 - whole / (2.0 * h)),
                };
                (keep * (-h).exp(), step.to.alpha * whole, second, step.to.sigma * whole.sqrt())
            }
            Form::Noise => {
                let whole = step.to.sigma * libm::expm1(h);
                let second = match self.solver.correction {
                    Correction::Midpoint => -whole,
                    Correction::Heun => -2.0 * (whole / h - step.to.sigma),
                };
                (keep, -2.0 * whole, second, step.to.sigma * libm::expm1(2.0 * h).sqrt())
            }
        };
        let mut out = if order == 1 {
            combine(x, keep, &[(first, m0)])
        } else {
            let (l1, m1) = &self.past[1];
            let r0 = (from.l - l1) / (to.l - from.l);
            combine(x, keep, &[(first, m0), (second, &slope(m0, m1, r0))])
        };
        out.iter_mut().zip(noise.draw()).for_each(|(x, z)| *x += std * z);
        out
    }
}

impl Stepper for DpmRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let e = denoiser.estimate(x, &step.from)?;
        let form = self.solver.form;
        let bare = is_pure_noise(&step.from);
        if bare && !(self.solver.stochastic && form == Form::Data) {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let (from, to) = (form.frame(&step.from), form.frame(&step.to));
        if self.solver.history == History::Single {
            let order = self.orders[step.index];
            if order == 1 || self.begun.is_none() {
                self.begun = Some((x.to_vec(), step.from));
                self.past.clear();
            }
            self.past.push_front((from.l, form.of(e)));
            let (start, level) = self.begun.clone().expect("set above");
            // A group that began at pure noise has lost its first estimates.
            let order = order.min(self.past.len());
            x.copy_from_slice(&self.singlestep(&start, form.frame(&level), to, order));
            return Ok(());
        }
        self.past.push_front((from.l, form.of(e)));
        self.past.truncate(self.solver.order);
        let order = multistep_order(&self.solver, step, self.steps, self.past.len());
        let next = if self.solver.stochastic {
            self.stochastic(x, step, order, noise)
        } else {
            self.multistep(x, from, to, order)
        };
        x.copy_from_slice(&next);
        if bare {
            self.past.clear();
        }
        Ok(())
    }
}

/// DPM-Solver++ for the SDE by steps of two evaluations, the second half-way in `lambda`; the noise of both is of one
/// Brownian path (Crowson, k-diffusion).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmSde {
    /// Share of the posterior's standard deviation that is fresh noise.
    pub eta: f64,
}

impl Sampler for DpmSde {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::config("sample.eta", format!("is {}; it must be in [0, 1]", self.eta)));
        }
        Ok(Box::new(*self))
    }
}

impl Stepper for DpmSde {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let process = denoiser.process();
        let e = denoiser.estimate(x, &step.from)?;
        if is_pure_noise(&step.from) || step.is_last() {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let (from, to) = (ratio(&step.from), ratio(&step.to));
        let middle = level_at_ratio(process, (from * to).sqrt())?;
        let half = ratio(&middle);
        let y: Vec<f64> = x.iter().map(|x| x / step.from.alpha).collect();
        // In x / alpha: sigma shrinks the state, the data estimate fills what is missing.
        let go = |down: f64, m: &[f64]| -> Vec<f64> {
            y.iter().zip(m).map(|(y, m)| down / from * y + (1.0 - down / from) * m).collect()
        };
        let (z1, z2) = if self.eta > 0.0 { (noise.draw(), noise.draw()) } else { (vec![], vec![]) };
        let (down, up) = split(from, half, self.eta);
        let mut x2 = go(down, &e.x0);
        x2.iter_mut().zip(&z1).for_each(|(x, z)| *x += up * z);
        x2.iter_mut().for_each(|x| *x *= middle.alpha);
        let second = denoiser.estimate(&x2, &middle)?.x0;
        let (down, up) = split(from, to, self.eta);
        let mut y = go(down, &second);
        // The Brownian path's share before the midpoint was drawn for it.
        let share = (from - half) / (from - to);
        for (i, y) in y.iter_mut().enumerate().filter(|_| self.eta > 0.0) {
            *y += up * (share.sqrt() * z1[i] + (1.0 - share).sqrt() * z2[i]);
        }
        x.iter_mut().zip(y).for_each(|(x, y)| *x = step.to.alpha * y);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solver(order: usize, lower_order_final: bool) -> DpmSolver {
        DpmSolver {
            form: Form::Data,
            history: History::Single,
            order,
            stochastic: false,
            correction: Correction::Midpoint,
            lower_order_final,
            euler_at_final: false,
        }
    }

    #[test]
    fn groups_of_a_singlestep_solver() {
        for (order, steps, want) in [
            (3, 9, vec![1, 2, 3, 1, 2, 3, 1, 2, 1]),
            (3, 7, vec![1, 2, 3, 1, 2, 3, 1]),
            (2, 6, vec![1, 2, 1, 2, 1, 1]),
            (2, 5, vec![1, 2, 1, 2, 1]),
            (1, 3, vec![1, 1, 1]),
        ] {
            assert_eq!(singlestep_orders(&solver(order, true), steps, false), want);
            assert_eq!(singlestep_orders(&solver(order, true), steps, true), want);
        }
        assert_eq!(singlestep_orders(&solver(3, true), 8, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(singlestep_orders(&solver(3, true), 8, true), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(singlestep_orders(&solver(2, false), 4, false), [1, 2, 1, 2]);
    }
}
