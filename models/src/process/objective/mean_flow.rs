//! MeanFlow (Geng et al., "Mean flows for one-step generative modeling", 2025). The network `u(x, t, r)` gives the
//! mean velocity of the path between times `r <= t`, so that `x_r = x_t - (t - r) u` in one step. By the identity
//! `u = v - (t - r) du/dt`, with the total derivative along the path, it is regressed onto
//! `sg(v - (t - r) du/dt)`; the derivative is one jvp of the network in the direction `(v, 1, 0)` of `(x, t, r)`.
//!
//! With labels the velocity may be a guided one, mixed of the network's own (section 4.2 there): the network then
//! learns guided mean velocities and sampling takes one evaluation a step.

use super::{SECOND_TIME, Scene};
use crate::network::Inputs;
use crate::process::{Loss, Times};
use crate::{Error, Result};
use dnx_ir::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// `[process.objective] kind = "mean_flow"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeanFlow {
    /// Share of the batch with `r = t`: plain flow matching.
    pub instant: f64,
    /// Weight of the sample's own velocity in the guided one; 1 with `kappa` 0: no guidance. The effective guidance
    /// scale is `omega / (1 - kappa)`.
    pub omega: f64,
    /// Weight of the network's own conditional velocity.
    pub kappa: f64,
    /// Times between which the velocity is guided.
    pub interval: [f64; 2],
    /// Power of the adaptive weight `1 / (loss + c)^power`; 0: none.
    pub power: f64,
    /// `c` of that weight.
    pub c: f64,
}

impl Default for MeanFlow {
    fn default() -> MeanFlow {
        MeanFlow { instant: 0.75, omega: 1.0, kappa: 0.0, interval: [0.0, 1.0], power: 1.0, c: 0.01 }
    }
}

impl MeanFlow {
    pub(super) fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.objective.{key}"), message));
        if !(0.0..=1.0).contains(&self.instant) {
            return bad("instant", format!("is {}; it is a share of the batch", self.instant));
        }
        if !(0.0..1.0).contains(&self.kappa) {
            return bad("kappa", format!("is {}; it must be in [0, 1)", self.kappa));
        }
        if !(self.omega > 0.0 && self.omega.is_finite()) {
            return bad("omega", format!("is {}; it must be positive", self.omega));
        }
        let [low, high] = self.interval;
        if !(low <= high) {
            return bad("interval", format!("is [{low}, {high}]; it wants first <= second"));
        }
        if !(self.power >= 0.0) || !(self.c > 0.0) {
            return bad("power", format!("is {} with c = {}; it wants power >= 0 and c > 0", self.power, self.c));
        }
        Ok(())
    }

    /// Whether the velocity is a guided one.
    pub fn guided(&self) -> bool {
        self.omega != 1.0 || self.kappa != 0.0
    }
}

impl<'g> Scene<'_, 'g> {
    pub(super) fn mean_flow(&self, m: &MeanFlow) -> Loss<'g> {
        let (g, process) = (self.x0.graph(), self.model.process);
        let batch = self.x0.dim(0);
        let iota = g.iota(DType::F32, &[batch], 0);
        // Two draws in order; the first samples of the batch go nowhere.
        let (a, b) = (self.draws.times.values, self.more_times(SECOND_TIME).values);
        let t = a.maximum(b);
        let instant = iota.lt(iota.full_like((m.instant * batch as f64).floor()));
        let r = instant.select(t, a.minimum(b));
        let domain = self.draws.times.domain;
        let [level, end] = [t, r].map(|values| process.path.levels(Times { domain, values }));
        let x = self.state(&level);
        let velocity = self.velocity(&level);

        // As many of the batch's first samples lose their label as draws say; they are not guided either.
        let classes = self.model.network.classes();
        let (label, velocity) = match (self.label.filter(|_| classes > 0), self.draws.drop) {
            (Some(label), drop) => {
                let drop = match drop {
                    Some(drop) => iota.lt(drop.convert(DType::F32).sum_all().broadcast_to(&[batch])),
                    None => iota.lt(iota.full_like(0.0)),
                };
                let seen = crate::embed::drop_labels(label, drop, classes);
                let guided = if m.guided() { self.guided_velocity(m, x, &level, label, velocity) } else { velocity };
                (Some(seen), self.wide(drop).select(velocity, guided))
            }
            (None, _) => {
                if m.guided() {
                    g.fail("process.objective.kappa and omega guide by labels, and the network has no classes");
                }
                (None, velocity)
            }
        };

        let mut call = self.model.inputs(x, &level, label);
        call.second = Some(process.second_input(&level, &end));
        let scale = t.full_like(process.time_scale);
        let sigma_rate = level.rates.map_or(t.full_like(0.0), |rates| rates.1);
        let direction = Inputs { x: velocity, time: scale, sigma: sigma_rate, label: None, second: Some(scale) };
        let (u, moved) = self.model.jvp(&call, &direction);
        let gap = (t - r).maximum(t.full_like(0.0)).minimum(t.full_like(1.0));
        let target = (velocity - self.wide(gap) * moved).stop_gradient();
        let dims: Vec<usize> = (1..x.rank()).collect();
        let error = (u - target).square().sum(&dims);
        let per_sample = match m.power {
            0.0 => error,
            p => {
                let denominator = (error + m.c).stop_gradient();
                error / if p == 1.0 { denominator } else { (denominator.log() * p).exp() }
            }
        };
        self.mean_of(per_sample, &level)
    }

    /// The path's velocity, `alpha' x0 + sigma' n`.
    pub(super) fn velocity(&self, level: &crate::process::Level<Tensor<'g>>) -> Tensor<'g> {
        let zero = level.time.full_like(0.0);
        let (alpha, sigma) = level.rates.unwrap_or((zero, zero));
        self.wide(alpha) * self.x0 + self.wide(sigma) * self.draws.noise
    }

    /// `omega v + (1 - omega - kappa) u(x, t, t | null) + kappa u(x, t, t | label)` within the interval.
    fn guided_velocity(
        &self,
        m: &MeanFlow,
        x: Tensor<'g>,
        level: &crate::process::Level<Tensor<'g>>,
        label: Tensor<'g>,
        velocity: Tensor<'g>,
    ) -> Tensor<'g> {
        let null = label.full_like(self.model.network.classes() as f64);
        let at = |label: Tensor<'g>| self.model.output(x, level, Some(label)).stop_gradient();
        let mut mixed = velocity * m.omega + at(null) * (1.0 - m.omega - m.kappa);
        if m.kappa > 0.0 {
            mixed = mixed + at(label) * m.kappa;
        }
        let t = level.time;
        let inside = t.ge(t.full_like(m.interval[0])).and(t.le(t.full_like(m.interval[1])));
        self.wide(inside).select(mixed, velocity)
    }
}
