//! UniPC (Zhao et al., 2023): a predictor and a corrector of one family, orders 1 to 3. The corrector uses the next
//! step's own evaluation, so it costs none.

use super::chart::{is_pure_noise, transfer};
use super::exponential::{Form, Frame, Past};
use super::{Denoiser, Noise, Run, Sampler, Step, Stepper};
use crate::process::Level;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `B(h)` of the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bh {
    /// `h`.
    Bh1,
    /// `e^h - 1`.
    #[default]
    Bh2,
}

/// UniPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniPc {
    /// Data or noise.
    pub form: Form,
    /// 1 to 3.
    pub order: usize,
    /// `B(h)`.
    pub bh: Bh,
    /// Whether states are corrected.
    pub corrector: bool,
    /// Whether the last steps are of falling order; to clean data the last is of first order in any case.
    pub lower_order_final: bool,
}

struct UniPcRun {
    solver: UniPc,
    steps: usize,
    past: Past,
    /// The state before the last step, its level, and the step's order.
    last: Option<(Vec<f64>, Level<f64>, usize)>,
}

impl Sampler for UniPc {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        if !(1..=3).contains(&self.order) {
            return Err(Error::config("sample.order", format!("is {}; this solver has orders 1 to 3", self.order)));
        }
        Ok(Box::new(UniPcRun { solver: *self, steps: run.grid.steps(), past: Past::new(), last: None }))
    }
}

/// The solution of a small linear system by elimination with pivots.
pub(super) fn solve(mut rows: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| rows[p][i].abs().total_cmp(&rows[q][i].abs())).expect("rows are left");
        rows.swap(i, pivot);
        b.swap(i, pivot);
        for k in i + 1..n {
            let f = rows[k][i] / rows[i][i];
            let (above, below) = rows.split_at_mut(k);
            below[0].iter_mut().zip(&above[i]).for_each(|(x, p)| *x -= f * p);
            b[k] -= f * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| rows[i][k] * b[k]).sum();
        b[i] = (b[i] - known) / rows[i][i];
    }
    b
}

/// Weights of the differences `(m_k - m_0) / r_k`: `count` equations of the order conditions at the nodes `r`.
fn weights(bh: Bh, hh: f64, r: &[f64], count: usize) -> Vec<f64> {
    // The paper's constant for a single unknown, which the system would give only in the limit of short steps.
    if count == 1 {
        return vec![0.5];
    }
    let big = match bh {
        Bh::Bh1 => hh,
        Bh::Bh2 => libm::expm1(hh),
    };
    let (mut q, mut factorial) = (libm::expm1(hh) / hh - 1.0, 1.0);
    let (mut rows, mut b) = (vec![], vec![]);
    for i in 1..=count {
        rows.push(r[..count].iter().map(|r| r.powi(i as i32 - 1)).collect());
        b.push(q * factorial / big);
        factorial *= (i + 1) as f64;
        q = q / hh - 1.0 / factorial;
    }
    solve(rows, b)
}

impl UniPcRun {
    /// The state at `to` from that at `from`, with `order` estimates of the past and, for the corrector, the new one.
    fn go(&self, x: &[f64], from: Frame, to: Frame, order: usize, new: Option<&[f64]>) -> Vec<f64> {
        let h = to.l - from.l;
        let keep = to.carrier / from.carrier;
        let m0 = &self.past[0].1;
        let first = to.driver - keep * from.driver;
        let older: Vec<&(f64, Vec<f64>)> = self.past.iter().skip(1).take(order - 1).collect();
        let mut r: Vec<f64> = older.iter().map(|(l, _)| (l - from.l) / h).collect();
        let mut others: Vec<&[f64]> = older.iter().map(|(_, m)| &m[..]).collect();
        if let Some(new) = new {
            r.push(1.0);
            others.push(new);
        }
        let hh = -h;
        let (rho, big) = match others.len() {
            0 => (vec![], 0.0),
            n => (
                weights(self.solver.bh, hh, &r, n),
                match self.solver.bh {
                    Bh::Bh1 => hh,
                    Bh::Bh2 => libm::expm1(hh),
                },
            ),
        };
        let scale: Vec<f64> = rho.iter().zip(&r).map(|(rho, r)| -to.driver * big * rho / r).collect();
        let add = |i: usize| scale.iter().zip(&others).map(|(w, m)| w * (m[i] - m0[i])).sum::<f64>();
        x.iter().enumerate().map(|(i, x)| keep * x + first * m0[i] + add(i)).collect()
    }
}

impl Stepper for UniPcRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        let form = self.solver.form;
        let e = denoiser.estimate(x, &step.from)?;
        if is_pure_noise(&step.from) {
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let (from, to) = (form.frame(&step.from), form.frame(&step.to));
        let m = form.of(e);
        if let Some((before, level, order)) = self.last.take()
            && self.solver.corrector
        {
            x.copy_from_slice(&self.go(&before, form.frame(&level), from, order, Some(&m)));
        }
        self.past.push_front((from.l, m));
        self.past.truncate(self.solver.order);
        let left = self.steps - step.index;
        let end = if step.is_last() { 1 } else { self.solver.order };
        let end = if self.solver.lower_order_final { end.min(left) } else { end };
        let order = end.min(self.past.len());
        let next = self.go(x, from, to, order, None);
        self.last = Some((x.to_vec(), step.from, order));
        x.copy_from_slice(&next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_solved() {
        let x = solve(vec![vec![0.0, 2.0, 1.0], vec![1.0, 1.0, 1.0], vec![2.0, 0.0, -1.0]], vec![7.0, 6.0, -1.0]);
        for (x, want) in x.iter().zip([1.0, 2.0, 3.0]) {
            assert!((x - want).abs() < 1e-12);
        }
    }

    /// With all its weights the family integrates polynomials in `l` under `e^l` exactly.
    #[test]
    fn weights_fulfil_the_order_conditions() {
        for bh in [Bh::Bh1, Bh::Bh2] {
            let (hh, r) = (-0.7f64, [-0.8, -1.9, 1.0]);
            let rho = weights(bh, hh, &r, 3);
            let big = if bh == Bh::Bh1 { hh } else { libm::expm1(hh) };
            // For m = u^k, u = (l - l0) / h: B sum rho_k r_k^(k-1) = -h int_0^1 e^{(1 - u) hh} u^k du.
            for k in 1..=3 {
                let n = 20_000;
                let f = |u: f64| ((1.0 - u) * hh).exp() * u.powi(k);
                let integral: f64 = (0..n).map(|i| f((i as f64 + 0.5) / n as f64) / n as f64).sum();
                let got: f64 = rho.iter().zip(r).map(|(w, r)| w * r.powi(k - 1)).sum::<f64>() * big;
                assert!((got - hh * integral).abs() < 1e-8, "{bh:?} {k}: {got} {}", hh * integral);
            }
        }
    }
}
