//! SA-Solver (Xue et al., 2023): Adams methods, predictor and corrector, for the SDE whose noise is `tau` times that of
//! the reverse-time one.
//!
//! With `h = lambda' - lambda` and `k = 1 + tau^2` a step of constant `tau` is `x' = sigma' / sigma e^(-tau^2 h) x +
//! alpha' k int_{-h}^0 e^(k u) m(lambda' + u) du + sigma' sqrt(1 - e^(-2 tau^2 h)) z` (eq. 14), where `m` is the
//! estimated data: the polynomial through the last estimates (predictor), or through the new one as well (corrector, with
//! the same `z`). The corrector uses the next step's own evaluation, so it costs none.

use super::chart::{is_pure_noise, ratio, transfer};
use super::exponential::{Correction, Form, Past};
use super::unipc::solve;
use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::process::Level;
use crate::{Error, Result};

/// SA-Solver, of the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SaSolver {
    /// Estimates that the polynomials go through, 1 to 4; of the corrector the new one is among them.
    pub order: usize,
    /// Noise in units of the reverse-time SDE's; 0: the ODE.
    pub tau: f64,
    /// Least and greatest `sigma / alpha` at which there is noise.
    pub range: [f64; 2],
    /// Whether states are corrected.
    pub corrector: bool,
    /// How the slope of two estimates is weighted: as published, `k h^2 / 2`, or by the integral.
    pub correction: Correction,
    /// Whether the last steps are of falling order; to clean data the last is of first order in any case.
    pub lower_order_final: bool,
}

/// The step that was made last.
struct Made {
    x: Vec<f64>,
    from: Level<f64>,
    tau: f64,
    z: Vec<f64>,
    /// Points of the corrector.
    points: usize,
}

struct SaRun {
    solver: SaSolver,
    steps: usize,
    past: Past,
    last: Option<Made>,
}

impl Sampler for SaSolver {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        if !(1..=4).contains(&self.order) {
            return bad("order", format!("is {}; this solver has orders 1 to 4", self.order));
        }
        if !(self.tau >= 0.0 && self.tau.is_finite()) {
            return bad("tau", format!("is {}; it must be 0 or more", self.tau));
        }
        let [least, most] = self.range;
        if !(least >= 0.0 && most >= least) {
            return bad("s_max", format!("is {most}, where s_min is {least}; they are a range of sigma / alpha"));
        }
        Ok(Box::new(SaRun { solver: *self, steps: run.grid.steps(), past: Past::new(), last: None }))
    }
}

/// `int_0^1 a e^(-a s) s^p ds` for `p` below `count`.
fn moments(a: f64, count: usize) -> Vec<f64> {
    if a > 1.0 {
        let mut out = vec![-libm::expm1(-a)];
        for p in 1..count {
            out.push(p as f64 / a * out[p - 1] - (-a).exp());
        }
        return out;
    }
    // The recursion would lose all digits of short steps.
    let series = |p: usize| {
        let (mut term, mut sum) = (a, 0.0);
        for n in 0..24 {
            sum += term / (n + p + 1) as f64;
            term *= -a / (n + 1) as f64;
        }
        sum
    };
    (0..count).map(series).collect()
}

/// Weights of the estimates at the nodes `s`, in steps before the end of the step: 0 is its end, 1 its beginning.
/// `a = k h`.
fn weights(a: f64, s: &[f64], correction: Correction) -> Vec<f64> {
    if s.len() == 2 && correction == Correction::Midpoint {
        // `(1 - e^-a) m` of the beginning and `a h / 2` times the slope, which is of the newer less the older node.
        let slope = 0.5 * a / (s[1] - s[0]);
        let mut out = vec![slope, -slope];
        let beginning = s.iter().position(|&s| s == 1.0).expect("the beginning of a step is a node of two");
        out[beginning] -= libm::expm1(-a);
        return out;
    }
    let rows = (0..s.len() as i32).map(|p| s.iter().map(|s| s.powi(p)).collect()).collect();
    solve(rows, moments(a, s.len()))
}

impl SaRun {
    /// `tau` of a step from this level.
    fn tau(&self, level: &Level<f64>) -> f64 {
        let [least, most] = self.solver.range;
        if (least..=most).contains(&ratio(level)) { self.solver.tau } else { 0.0 }
    }

    /// The state at `to` of a step, through the `points` last estimates, of which the first is the `new` one if it is given.
    fn go(&self, made: &Made, to: &Level<f64>, points: usize, new: Option<&[f64]>) -> Vec<f64> {
        let (from, to) = (Form::Data.frame(&made.from), Form::Data.frame(to));
        let (h, squared) = (to.l - from.l, made.tau * made.tau);
        let new = new.map(|m| (to.l, m));
        let nodes: Vec<(f64, &[f64])> =
            new.into_iter().chain(self.past.iter().map(|(l, m)| (*l, &m[..]))).take(points).collect();
        let s: Vec<f64> = nodes
            .iter()
            .map(|(l, _)| match *l {
                l if l == to.l => 0.0,
                l if l == from.l => 1.0,
                l => (to.l - l) / h,
            })
            .collect();
        let weights = weights((1.0 + squared) * h, &s, self.solver.correction);
        let keep = to.carrier / from.carrier * (-squared * h).exp();
        let std = to.carrier * (-libm::expm1(-2.0 * squared * h)).sqrt();
        let element = |i: usize| {
            let data: f64 = weights.iter().zip(&nodes).map(|(w, (_, m))| w * m[i]).sum();
            keep * made.x[i] + to.driver * data + made.z.get(i).map_or(0.0, |z| std * z)
        };
        (0..made.x.len()).map(element).collect()
    }
}

impl Stepper for SaRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, noise: &mut dyn Noise) -> Result<()> {
        let e = denoiser.estimate(x, &step.from)?;
        if is_pure_noise(&step.from) || step.is_last() {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let m = Form::Data.of(e);
        if let Some(last) = self.last.take().filter(|_| self.solver.corrector) {
            x.copy_from_slice(&self.go(&last, &step.from, last.points, Some(&m)));
        }
        self.past.push_front((Form::Data.frame(&step.from).l, m));
        self.past.truncate(self.solver.order);
        let left = self.steps - step.index;
        let order = if self.solver.lower_order_final { self.solver.order.min(left) } else { self.solver.order };
        let points = if self.solver.lower_order_final { self.solver.order.min(left + 1) } else { self.solver.order };
        let tau = self.tau(&step.from);
        let made = Made {
            x: x.to_vec(),
            from: step.from,
            tau,
            z: if tau > 0.0 { noise.draw() } else { vec![] },
            points: points.min(self.past.len() + 1),
        };
        let next = self.go(&made, &step.to, order.min(self.past.len()), None);
        x.copy_from_slice(&next);
        self.last = Some(made);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By quadrature, for short and long steps and across the point where the way of computing changes.
    #[test]
    fn moments_are_the_integrals() {
        for a in [1e-4, 0.3, 1.0, 1.0001, 4.0, 20.0] {
            let got = moments(a, 4);
            for (p, got) in got.iter().enumerate() {
                let n = 40_000;
                let f = |s: f64| a * (-a * s).exp() * s.powi(p as i32);
                let want: f64 = (0..n).map(|i| f((i as f64 + 0.5) / n as f64) / n as f64).sum();
                assert!((got - want).abs() < 1e-7 * want, "{a} {p}: {got} {want}");
            }
        }
    }

    /// Weights integrate the polynomials that they go through; the published ones of two estimates are the same up to the
    /// square of the step.
    #[test]
    fn weights_integrate_polynomials() {
        for s in [&[1.0][..], &[1.0, 1.8], &[0.0, 1.0], &[0.0, 1.0, 2.3], &[1.0, 1.7, 3.0, 4.1]] {
            let w = weights(0.6, s, Correction::Heun);
            for (p, want) in moments(0.6, s.len()).into_iter().enumerate() {
                let got: f64 = w.iter().zip(s).map(|(w, s)| w * s.powi(p as i32)).sum();
                assert!((got - want).abs() < 1e-12, "{s:?}: {got} {want}");
            }
        }
        for s in [[1.0, 1.8], [0.0, 1.0]] {
            let off = |a: f64| {
                let pair = [Correction::Heun, Correction::Midpoint].map(|c| weights(a, &s, c));
                (0..2).map(|i| (pair[0][i] - pair[1][i]).abs()).fold(0.0, f64::max)
            };
            assert!((off(0.02) / off(0.01) - 4.0).abs() < 0.05, "{}", off(0.02) / off(0.01));
        }
    }
}
