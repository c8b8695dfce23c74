//! Optimizers, learning-rate schedules and the moving average of weights, as graph builders.
//!
//! An update is one pointwise formula on a parameter, its gradient and its moments, with everything that depends
//! on the step alone computed once as scalars ([`Scalars`]): all parameters together become few kernels.

mod ema;
mod schedule;

pub use ema::EmaConfig;
pub use schedule::{Schedule, ScheduleConfig};

use crate::layout::settled;
use crate::{Error, Result};
use dnx_ir::Tensor;
use serde::{Deserialize, Serialize};

/// Update rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW,
    /// Adam (Kingma and Ba, 2015); weight decay is added to the gradient.
    Adam,
    /// Rectified Adam (Liu et al., 2020): plain momentum until the second moment is known well enough, then Adam with a
    /// smaller step that grows; weight decay is added to the gradient.
    RAdam,
    /// Gradient descent with momentum; weight decay is added to the gradient.
    Sgd,
}

/// `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Update rule.
    pub kind: Rule,
    /// Learning rate, before the schedule's factor.
    pub lr: f64,
    /// Decay of Adam's two moments.
    pub betas: [f64; 2],
    /// Added to the root of Adam's second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Momentum of `sgd`.
    pub momentum: f64,
    /// Greatest norm of the whole gradient, which is scaled down to it; 0: any.
    pub clip: f64,
    /// How the learning rate changes.
    pub schedule: ScheduleConfig,
}

impl Default for OptimConfig {
    fn default() -> OptimConfig {
        OptimConfig {
            kind: Rule::AdamW,
            lr: 1e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            momentum: 0.9,
            clip: 0.0,
            schedule: ScheduleConfig::default(),
        }
    }
}

/// What an update depends on besides the tensors: scalars of one step.
#[derive(Clone, Copy)]
pub struct Scalars<'g> {
    /// Learning rate.
    pub lr: Tensor<'g>,
    /// Factor on gradients, from clipping.
    pub grad_scale: Tensor<'g>,
    /// `1 / (1 - beta_i^t)`: bias corrections of Adam's moments.
    pub corrections: [Tensor<'g>; 2],
    /// Of rectified Adam: the step's factor, 0 as long as the second moment is not used.
    pub rectification: Tensor<'g>,
}

impl OptimConfig {
    /// Refuses numbers that make no sense.
    pub fn check(&self) -> Result<()> {
        let within = |key: &str, value: f64, ok: bool, wanted: &str| match ok {
            true => Ok(()),
            false => Err(Error::config(format!("optim.{key}"), format!("is {value}; it must be {wanted}"))),
        };
        within("lr", self.lr, self.lr > 0.0 && self.lr.is_finite(), "positive")?;
        for beta in self.betas {
            within("betas", beta, (0.0..1.0).contains(&beta), "in [0, 1)")?;
        }
        within("eps", self.eps, self.eps > 0.0, "positive")?;
        within("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more")?;
        within("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "in [0, 1)")?;
        within("clip", self.clip, self.clip >= 0.0, "0 (no clipping) or more")?;
        self.schedule.check()
    }

    /// How many moments are kept per parameter.
    pub fn moments(&self) -> usize {
        match self.kind {
            Rule::AdamW | Rule::Adam | Rule::RAdam => 2,
            Rule::Sgd => (self.momentum > 0.0) as usize,
        }
    }

    /// The scalars of the update number `step` (`f32[]`, from 0), given the norm of the whole gradient.
    pub fn scalars<'g>(&self, step: Tensor<'g>, grad_norm: Tensor<'g>) -> Scalars<'g> {
        let one = step.scalar_like(1.0);
        let grad_scale = match self.clip {
            0.0 => one,
            clip => (clip / (grad_norm + 1e-6)).minimum(one),
        };
        // 1 - beta^t with h = tanh(-t ln(beta) / 2) is 2 h / (1 + h): exact where beta^t is close to 1.
        let corrections = self.betas.map(|beta| match beta {
            0.0 => one,
            beta => {
                let h = ((step + 1.0) * (-0.5 * beta.ln())).tanh();
                (h + 1.0) / (h * 2.0)
            }
        });
        let rectification = match self.kind {
            Rule::RAdam => rectification(step + 1.0, corrections[1], self.betas[1]),
            Rule::AdamW | Rule::Adam | Rule::Sgd => one,
        };
        Scalars { lr: self.schedule.factor(step) * self.lr, grad_scale, corrections, rectification }
    }

    /// A parameter and its moments after one step, given its gradient.
    pub fn update<'g>(
        &self,
        p: Tensor<'g>,
        grad: Tensor<'g>,
        moments: &[Tensor<'g>],
        s: &Scalars<'g>,
    ) -> (Tensor<'g>, Vec<Tensor<'g>>) {
        let mut g = if self.clip == 0.0 { grad } else { grad * s.grad_scale };
        let decoupled = self.kind == Rule::AdamW;
        if self.weight_decay > 0.0 && !decoupled {
            g = g + p * self.weight_decay;
        }
        match self.kind {
            Rule::AdamW | Rule::Adam => {
                let [b1, b2] = self.betas;
                let m = moments[0] * b1 + g * (1.0 - b1);
                let v = moments[1] * b2 + g * g * (1.0 - b2);
                let step = m * s.corrections[0] / ((v * s.corrections[1]).sqrt() + self.eps);
                let kept = if self.weight_decay > 0.0 && decoupled { p - p * (s.lr * self.weight_decay) } else { p };
                (kept - step * s.lr, vec![m, v])
            }
            Rule::RAdam => {
                let [b1, b2] = self.betas;
                let m = moments[0] * b1 + g * (1.0 - b1);
                let v = moments[1] * b2 + g * g * (1.0 - b2);
                let mean = m * s.corrections[0];
                let adaptive = mean * s.rectification / ((v * s.corrections[1]).sqrt() + self.eps);
                let known = s.rectification.gt(s.rectification.scalar_like(0.0));
                (p - known.select(adaptive, mean) * s.lr, vec![m, v])
            }
            Rule::Sgd => match moments {
                [] => (p - g * s.lr, vec![]),
                [m, ..] => {
                    let m = *m * self.momentum + g;
                    (p - m * s.lr, vec![m])
                }
            },
        }
    }
}

/// The factor of rectified Adam's step number `t` (from 1): `sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4)
/// (rho_inf - 2) rho))` where `rho = rho_inf - 2 t beta^t / (1 - beta^t)` exceeds 5, else 0. `correction` is
/// `1 / (1 - beta^t)`.
fn rectification<'g>(t: Tensor<'g>, correction: Tensor<'g>, beta: f64) -> Tensor<'g> {
    let most = 2.0 / (1.0 - beta) - 1.0;
    let rho = most - t * (correction - 1.0) * 2.0;
    let inside = (rho - 4.0) * (rho - 2.0) / rho * (most / ((most - 4.0) * (most - 2.0)));
    let zero = t.scalar_like(0.0);
    rho.gt(t.scalar_like(5.0)).select(inside.maximum(zero).sqrt(), zero)
}

/// The norm of all these tensors as one vector. Those that are split over the same axes are summed over them together.
pub fn global_norm<'g>(tensors: &[Tensor<'g>]) -> Option<Tensor<'g>> {
    let mut sums: Vec<Tensor<'g>> = vec![];
    for t in tensors {
        let square = t.square().sum_all();
        match sums.iter_mut().find(|s| s.ty() == square.ty()) {
            Some(sum) => *sum = *sum + square,
            None => sums.push(square),
        }
    }
    sums.into_iter().map(settled).reduce(|a, b| a + b).map(Tensor::sqrt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::interp::{Precision, eval};
    use dnx_ir::{Array, Graph, Type};

    #[test]
    fn rectified_adam_is_its_recurrence() {
        let optim = OptimConfig { kind: Rule::RAdam, lr: 0.1, betas: [0.9, 0.99], ..OptimConfig::default() };
        let g = Graph::new("update");
        let [p, grad, m, v, step] = ["p", "g", "m", "v", "step"].map(|n| g.param(n, Type::f32([])));
        let scalars = optim.scalars(step, grad);
        let (new, moments) = optim.update(p, grad, &[m, v], &scalars);
        let f = g.finish(&[new, moments[0], moments[1]]).unwrap();
        let mut state = [0.5f32, 0.0, 0.0];
        let (mut p, mut m, mut v) = (0.5f64, 0.0, 0.0);
        let mut rectified = 0;
        for t in 1..=40 {
            let grad = (t as f64 * 0.7).sin() + 0.3;
            let arg = |x: f32| Array::f32([], &[x]);
            let args = [arg(state[0]), arg(grad as f32), arg(state[1]), arg(state[2]), arg((t - 1) as f32)];
            let out = eval(&f, &args, Precision::F32).unwrap();
            state = [0, 1, 2].map(|i| out[i].to_f32_vec()[0]);
            m = 0.9 * m + 0.1 * grad;
            v = 0.99 * v + 0.01 * grad * grad;
            let (b1, b2) = (1.0 - 0.9f64.powi(t), 1.0 - 0.99f64.powi(t));
            let most = 2.0 / 0.01 - 1.0;
            let rho = most - 2.0 * t as f64 * 0.99f64.powi(t) / b2;
            p -= 0.1
                * if rho > 5.0 {
                    rectified += 1;
                    let r = ((rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)).sqrt();
                    r * m / b1 / ((v / b2).sqrt() + 1e-8)
                } else {
                    m / b1
                };
            assert!((state[0] as f64 - p).abs() < 1e-4, "step {t}: {} and {p}", state[0]);
        }
        assert!((30..40).contains(&rectified), "{rectified} steps are rectified");
    }
}
