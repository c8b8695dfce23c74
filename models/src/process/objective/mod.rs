//! What training minimises. [`Objective::Regression`] is the weighted squared error of the network's own output;
//! the others are losses of their own, built of the same path, prediction and draws.
//!
//! An objective sees its [`Scene`]: networks with their parameters, data, draws, and the number of the step. Where it
//! needs parameters that sampling does not (a second score network, a discriminator), it declares them under
//! [`TRAIN_ONLY`]; they are trained and saved with the optimizer's state, not with the weights.

mod alignment;
mod consistency;
mod distillation;
mod forcing;
mod mean_flow;
mod regression;
mod scm;
mod sliced;

pub use alignment::Alignment;
pub use consistency::{Consistency, Growth, LevelLaw, Metric, Target, consistency_levels};
pub use distillation::Distillation;
pub use forcing::SelfForcing;
pub use mean_flow::MeanFlow;
pub use regression::{Resampling, Variance};
pub use scm::Scm;

use super::{Draws, Level, Loss, Path, Prediction, Process, Times};
use crate::layout::{beside, settled};
use crate::network::{Inputs, Network, Outputs};
use crate::params::{Block, Scope};
use crate::{Error, Result, streams};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType, Tensor, Type, random};
use serde::{Deserialize, Serialize};

/// First segment of the names of parameters that only training needs.
pub const TRAIN_ONLY: &str = "train";

/// What training minimises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Objective {
    /// Squared error of the network's output.
    Regression,
    /// Sliced score matching: `sigma^2 (v' ds/dx v + |s|^2 / 2)` with random `v`, without a target.
    SlicedScore {},
    /// Mean velocities.
    MeanFlow(MeanFlow),
    /// Discrete-time consistency.
    Consistency(Consistency),
    /// Continuous-time consistency on TrigFlow.
    Scm(Scm),
    /// Distribution matching distillation.
    Distillation(Distillation),
    /// Squared error with a noise level of its own for every token.
    DiffusionForcing {},
    /// Distribution matching of the network's own roll-outs.
    SelfForcing(SelfForcing),
}

/// Where the direction of a trajectory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The sample's own data and noise: consistency training.
    Data,
    /// A teacher network: distillation.
    Teacher,
}

/// A trained network that a student learns from.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// Its network, complete.
    pub network: Network,
    /// Its process, which may be another than the student's.
    pub process: Process,
    /// Its weights, all parameters in the network's order.
    pub weights: Vec<Array>,
}

/// A network with its parameters in a graph, seen through its process.
#[derive(Clone, Copy)]
pub struct Model<'a, 'g> {
    /// The process.
    pub process: &'a Process,
    /// The network.
    pub network: &'a Network,
    /// Where its parameters are.
    pub scope: &'a Scope<'a, 'g>,
}

/// What a loss is built from.
pub struct Scene<'a, 'g> {
    /// The network in training.
    pub model: Model<'a, 'g>,
    /// The same with averaged parameters, for objectives that ask for it ([`Objective::target`]).
    pub target: Option<Model<'a, 'g>>,
    /// The teacher, for objectives that ask for it ([`Objective::needs_teacher`]).
    pub teacher: Option<Model<'a, 'g>>,
    /// Parameters of training alone.
    pub own: &'a Scope<'a, 'g>,
    /// Data `[B, ..]`.
    pub x0: Tensor<'g>,
    /// Labels `i32[B]` as they are in the data.
    pub label: Option<Tensor<'g>>,
    /// Times, noise and dropped labels.
    pub draws: Draws<'g>,
    /// The run's key and a counter that no two evaluations share.
    pub seed: (Tensor<'g>, Tensor<'g>),
    /// Steps done, `f32[]`.
    pub step: Tensor<'g>,
    /// State of the loss, as [`Process::carried`] says.
    pub carry: Vec<Tensor<'g>>,
}

/// State that a loss reads and leaves changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    /// Name.
    pub name: String,
    /// Value before the first step.
    pub start: Array,
}

impl Objective {
    /// The name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Objective::Regression => "regression",
            Objective::SlicedScore {} => "sliced_score",
            Objective::MeanFlow(_) => "mean_flow",
            Objective::Consistency(_) => "consistency",
            Objective::Scm(_) => "scm",
            Objective::Distillation(_) => "distillation",
            Objective::DiffusionForcing {} => "diffusion_forcing",
            Objective::SelfForcing(_) => "self_forcing",
        }
    }

    /// Whether the network takes a second time.
    pub fn second_time(&self) -> bool {
        matches!(self, Objective::MeanFlow(_))
    }

    /// Whether tokens have noise levels of their own.
    pub fn token_levels(&self) -> bool {
        matches!(self, Objective::DiffusionForcing {} | Objective::SelfForcing(_))
    }

    /// Whether a teacher is needed.
    pub fn needs_teacher(&self) -> bool {
        match self {
            Objective::Regression | Objective::SlicedScore {} | Objective::MeanFlow(_) => false,
            Objective::DiffusionForcing {} => false,
            Objective::SelfForcing(_) => true,
            Objective::Consistency(c) => c.source == Source::Teacher,
            Objective::Scm(c) => c.source == Source::Teacher,
            Objective::Distillation(_) => true,
        }
    }

    /// The average of the network's parameters that the loss compares with, if it is one.
    pub fn target(&self) -> Option<&Consistency> {
        match self {
            Objective::Consistency(c) if c.target != Target::Own => Some(c),
            _ => None,
        }
    }

    /// Every how many steps a parameter is updated.
    pub fn update_every(&self, name: &str) -> u32 {
        let own = name.split('.').next() == Some(TRAIN_ONLY);
        match self {
            Objective::Distillation(d) | Objective::SelfForcing(SelfForcing { matching: d, .. }) if !own => {
                d.fake_updates
            }
            _ => 1,
        }
    }

    /// Fills in the length of training, where a schedule depends on it and it was left open.
    pub fn set_steps(&mut self, steps: u64) {
        match self {
            Objective::Consistency(c) => c.total = c.total.or(Some(steps)),
            Objective::Scm(_) | Objective::MeanFlow(_) | Objective::Distillation(_) => {}
            Objective::DiffusionForcing {} | Objective::SelfForcing(_) => {}
            Objective::Regression | Objective::SlicedScore {} => {}
        }
    }

    pub(super) fn check(&self, process: &Process) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.{key}"), message));
        let path = process.path.name();
        match self {
            Objective::Regression => return Ok(()),
            Objective::SlicedScore {} => {}
            Objective::MeanFlow(m) => {
                m.check()?;
                if process.prediction != Prediction::Velocity {
                    return bad("prediction", "mean_flow learns mean velocities; prediction must be velocity".into());
                }
                if process.path.domain() != super::TimeDomain::Unit {
                    return bad("path", format!("mean_flow needs a path whose time is in [0, 1], not {path}"));
                }
                if process.time_input != super::TimeInput::Time {
                    return bad("time_input", "mean_flow differentiates by the path's own time: time".into());
                }
            }
            Objective::Consistency(c) => {
                c.check()?;
                if process.preconditioning != super::Preconditioning::Consistency {
                    let message = "the consistency objective needs preconditioning = \"consistency\", which keeps \
                                   x0 = x at the least noise level";
                    return bad("preconditioning", message.into());
                }
            }
            Objective::Scm(c) => {
                c.check()?;
                if !matches!(process.path, Path::Trig { .. }) {
                    return bad("path", format!("scm is stated on path trig, not {path}"));
                }
                if process.preconditioning != super::Preconditioning::Trig {
                    return bad("preconditioning", "scm needs preconditioning = \"trig\"".into());
                }
                if process.time_input != super::TimeInput::Time {
                    return bad("time_input", "scm differentiates by the path's own time: time".into());
                }
            }
            Objective::Distillation(d) => {
                d.check()?;
                if process.path != Path::Ve {
                    return bad("path", format!("distillation starts from sigma on path ve, not {path}"));
                }
            }
            Objective::DiffusionForcing {} => {}
            Objective::SelfForcing(f) => {
                f.check()?;
                if process.path != Path::Ve {
                    return bad("path", format!("self_forcing starts from sigma on path ve, not {path}"));
                }
            }
        }
        if process.log_variance > 0 && !matches!(self, Objective::Scm(_)) {
            let message = format!("is read by the regression and scm objectives, not by {}", self.name());
            return bad("log_variance", message);
        }
        Ok(())
    }
}

impl<'g> Model<'_, 'g> {
    /// The call for states `x` at a level.
    pub fn inputs(&self, x: Tensor<'g>, level: &Level<Tensor<'g>>, label: Option<Tensor<'g>>) -> Inputs<'g> {
        let c = self.process.coefficients(level);
        let x = x * c.c_in.expand_right(x.rank());
        // What there is one of per sample lies where the sample is.
        let time = beside(self.process.time_input(level), x);
        let label = match (self.network.classes(), label) {
            (0, _) => None,
            (classes, None) => Some(x.graph().full(DType::I32, &[x.dim(0)], classes as f64)),
            (_, label) => label,
        };
        Inputs {
            x,
            time,
            sigma: beside(level.sigma, x),
            label: label.map(|label| beside(label, x)),
            second: self.network.second_time().then(|| time.full_like(0.0)),
        }
    }

    /// Everything the network gives at a level, with the hidden state after block `tap`.
    pub fn outputs(
        &self,
        x: Tensor<'g>,
        level: &Level<Tensor<'g>>,
        label: Option<Tensor<'g>>,
        tap: Option<usize>,
    ) -> Outputs<'g> {
        self.network.evaluate(self.scope, self.inputs(x, level, label), tap)
    }

    /// The network's output at a level.
    pub fn output(&self, x: Tensor<'g>, level: &Level<Tensor<'g>>, label: Option<Tensor<'g>>) -> Tensor<'g> {
        self.outputs(x, level, label, None).prediction
    }

    /// The estimated data.
    pub fn x0(&self, x: Tensor<'g>, level: &Level<Tensor<'g>>, label: Option<Tensor<'g>>) -> Tensor<'g> {
        self.x0_from(x, self.output(x, level, label), level)
    }

    /// The estimated data given the network's output.
    pub fn x0_from(&self, x: Tensor<'g>, output: Tensor<'g>, level: &Level<Tensor<'g>>) -> Tensor<'g> {
        let [a, b, ..] = self.process.coefficients(level).solve(level);
        a.expand_right(x.rank()) * x + b.expand_right(x.rank()) * output
    }

    /// The estimated data of `x_edm = x0 + ratio n`, which this model sees on its own path.
    pub fn denoise(&self, x_edm: Tensor<'g>, ratio: Tensor<'g>, label: Option<Tensor<'g>>) -> Tensor<'g> {
        let level = self.process.path.level_of_ratio(ratio);
        self.x0(x_edm * level.alpha.expand_right(x_edm.rank()), &level, label)
    }

    /// The network as a function of its call alone, and what that function's inputs are.
    fn block(&self, call: &Inputs<'g>) -> Result<(Block, Vec<Tensor<'g>>)> {
        let mut named = vec![("x", call.x), ("time", call.time), ("sigma", call.sigma)];
        named.extend(call.second.map(|t| ("second", t)));
        named.extend(call.label.map(|t| ("label", t)));
        let types: Vec<(&str, Type)> = named.iter().map(|(name, t)| (*name, t.ty())).collect();
        let (second, labelled) = (call.second.is_some(), call.label.is_some());
        let block = Block::build(self.scope, "", "network", &types, |s, t| {
            let (x, time, sigma) = (t[0], t[1], t[2]);
            let second = second.then(|| t[3]);
            let label = labelled.then(|| t[t.len() - 1]);
            vec![self.network.forward(s, Inputs { x, time, sigma, second, label })]
        })?;
        Ok((block, named.into_iter().map(|(_, t)| t).collect()))
    }

    /// The network's output for a call, and its derivative in the direction in which `x`, `time`, `sigma` and (of
    /// networks that take it) `second` move as `direction` says. Nothing else moves.
    pub fn jvp(&self, call: &Inputs<'g>, direction: &Inputs<'g>) -> (Tensor<'g>, Tensor<'g>) {
        let mut tangents = vec![direction.x, direction.time, direction.sigma];
        tangents.extend(call.second.map(|own| direction.second.unwrap_or(own.full_like(0.0))));
        let wrt: Vec<usize> = (0..tangents.len()).collect();
        let result = self.block(call).and_then(|(block, inputs)| self.scope.jvp(&block, &inputs, &wrt, &tangents));
        match result {
            Ok((primals, moves)) => (primals[0], moves[0]),
            Err(error) => {
                self.scope.graph().fail(error.to_string());
                (call.x, call.x)
            }
        }
    }
}

impl<'a, 'g> Scene<'a, 'g> {
    /// The key of a stream of this evaluation.
    pub fn key(&self, stream: u32) -> Tensor<'g> {
        let g = self.x0.graph();
        random::fold_in(g, random::fold_in_const(g, self.seed.0, stream), self.seed.1)
    }

    /// Labels with dropped ones replaced by the null label, for a network with classes.
    pub fn dropped_label(&self) -> Option<Tensor<'g>> {
        let classes = self.model.network.classes();
        let label = self.label.filter(|_| classes > 0)?;
        Some(match self.draws.drop {
            Some(drop) => crate::embed::drop_labels(label, drop, classes),
            None => label,
        })
    }

    /// A value per sample beside samples.
    pub fn wide(&self, t: Tensor<'g>) -> Tensor<'g> {
        t.expand_right(self.x0.rank())
    }

    /// The state of data and noise at a level.
    pub fn state(&self, level: &Level<Tensor<'g>>) -> Tensor<'g> {
        self.wide(level.alpha) * self.x0 + self.wide(level.sigma) * self.draws.noise
    }

    /// The teacher; building fails without one.
    fn teacher(&self) -> Model<'a, 'g> {
        self.teacher.unwrap_or_else(|| {
            let message = format!("objective {} needs a teacher", self.model.process.objective.name());
            self.x0.graph().fail(message);
            self.model
        })
    }

    /// The loss, and the new state of the loss.
    pub fn loss(&self) -> (Loss<'g>, Vec<Tensor<'g>>) {
        match &self.model.process.objective {
            Objective::Regression => self.regression(),
            Objective::SlicedScore {} => (self.sliced_score(), vec![]),
            Objective::MeanFlow(m) => (self.mean_flow(m), vec![]),
            Objective::Consistency(c) => (self.consistency(c), vec![]),
            Objective::Scm(c) => (self.scm(c), vec![]),
            Objective::Distillation(d) => (self.distillation(d), vec![]),
            Objective::DiffusionForcing {} => (self.diffusion_forcing(), vec![]),
            Objective::SelfForcing(f) => (self.self_forcing(f), vec![]),
        }
    }

    /// The learned log-variance `u` of the loss at each sample's level (Karras et al., 2024, section A.5): random
    /// features of `ln(sigma / alpha) / 4`, and a linear layer that starts at zero.
    pub fn log_variance(&self, level: &Level<Tensor<'g>>) -> Option<Tensor<'g>> {
        let width = self.model.process.log_variance;
        if width == 0 {
            return None;
        }
        let g = self.x0.graph();
        let ratio = level.sigma / level.alpha;
        let ratio = ratio.maximum(ratio.full_like(1e-4)).minimum(ratio.full_like(1e4));
        let of = |stream: u32, scale: f64, normal: bool| {
            let values: Vec<f32> = (0..width as u64)
                .map(|i| {
                    let (k, tau) = (key(stream as u64), std::f64::consts::TAU);
                    let v = if normal { crate::init::normal(k, i) } else { crate::init::uniform(k, i) };
                    (tau * scale * v) as f32
                })
                .collect();
            g.constant(Array::f32([1, width], &values))
        };
        let angle = (ratio.log() * 0.25).unsqueeze(1) * of(1, 1.0, true) + of(2, 1.0, false);
        let features = angle.cos() * std::f64::consts::SQRT_2;
        let u = self.own.enter("log_variance", |s| crate::layers::linear(s, features, 1, crate::Init::Zeros));
        Some(u.reshape(&[self.x0.dim(0)]))
    }

    /// A loss whose batch mean is minimised.
    fn mean_of(&self, per_sample: Tensor<'g>, level: &Level<Tensor<'g>>) -> Loss<'g> {
        Loss { per_sample, mean: settled(per_sample.mean_all()), position: self.model.process.position(level) }
    }

    /// Times of the process's own law from another stream.
    fn more_times(&self, stream: u32) -> Times<'g> {
        let dim: usize = self.x0.dims()[1..].iter().product();
        let p = self.model.process;
        let shift = p.time_shift.factor(dim);
        p.time_law.draw(self.x0.graph(), self.key(stream), self.x0.dim(0), &p.path, shift)
    }

    /// Independent Rademacher numbers, like the data.
    fn signs(&self, stream: u32) -> Tensor<'g> {
        let g = self.x0.graph();
        let bit = random::bernoulli(g, self.key(stream), &self.x0.dims(), 0.5);
        bit.convert(DType::F32) * 2.0 - 1.0
    }

    /// Standard normal numbers like the data.
    fn normal(&self, stream: u32) -> Tensor<'g> {
        random::normal(self.x0.graph(), self.key(stream), &self.x0.dims())
    }
}

/// Streams of objectives.
const SECOND_TIME: u32 = streams::OBJECTIVE;
const PROBE: u32 = streams::OBJECTIVE + 1;
const FAKE_TIME: u32 = streams::OBJECTIVE + 2;
const FAKE_NOISE: u32 = streams::OBJECTIVE + 3;
const HEAD_TIME: u32 = streams::OBJECTIVE + 4;
const HEAD_NOISE: u32 = streams::OBJECTIVE + 5;
const STOPS: u32 = streams::OBJECTIVE + 8;
/// And those after it, one for each step of a token.
const FORCED_NOISE: u32 = streams::OBJECTIVE + 16;
