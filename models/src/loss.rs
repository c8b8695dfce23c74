//! A loss as one function of parameters, draws and data: what the training step differentiates.

use crate::network::Network;
use crate::params::{ParamSpec, Params};
use crate::process::{Carried, Model, Process, Scene, TRAIN_ONLY, Teacher};
use crate::step::Port;
use crate::{Error, Init, Layout, Result};
use dnx_ir::{DType, Func, Graph, Tensor, Type};

/// First segment of the names of a teacher's parameters.
pub const TEACHER: &str = "teacher";
/// First segment of the names of averaged parameters that a loss compares with.
const TARGET: &str = "target";

/// A loss as a function of parameters, seed, counter and batch.
pub struct LossProgram {
    /// Inputs: trainable parameters, frozen ones, averaged ones (`targets`), the loss's state (`carried`), `seed`
    /// `u32[2]`, `counter` `u32[]`, `x`, and `label` if the network is conditional. Results: the mean loss, with bins
    /// the sums and numbers by noise level, and the loss's new state.
    pub func: Func,
    /// Trainable parameters: the network's, then those of training alone.
    pub params: Vec<ParamSpec>,
    /// Frozen parameters: the network's, then a teacher's.
    pub frozen: Vec<ParamSpec>,
    /// Parameters of whose averages the loss is a function too.
    pub targets: Vec<ParamSpec>,
    /// State of the loss.
    pub carried: Vec<Carried>,
}

/// What a loss is of.
#[derive(Clone, Copy)]
pub struct LossOptions<'a> {
    /// The network in training.
    pub network: &'a Network,
    /// Its process, which says what is minimised.
    pub process: &'a Process,
    /// The network it learns from, if it does.
    pub teacher: Option<&'a Teacher>,
    /// Samples in the batch.
    pub batch: usize,
    /// Evaluations per step: the counter counts evaluations.
    pub accumulate: usize,
    /// Bins of the loss by noise level; 0: not computed.
    pub level_bins: usize,
    /// Where tensors lie.
    pub layout: &'a Layout,
}

/// The loss of a batch, as a function, of objectives without a teacher.
pub fn loss_program(network: &Network, process: &Process, batch: usize, level_bins: usize) -> Result<LossProgram> {
    let layout = &Layout::single();
    LossOptions { network, process, teacher: None, batch, accumulate: 1, level_bins, layout }.build()
}

/// What a batch consists of.
pub fn batch_ports(network: &Network, batch: usize) -> Result<Vec<Port>> {
    let dims: Vec<usize> = std::iter::once(batch).chain(network.sample_dims()?).collect();
    let mut ports = vec![Port { name: "x".into(), ty: Type::f32(dims) }];
    if network.classes() > 0 {
        ports.push(Port { name: "label".into(), ty: Type::new(DType::I32, [batch]) });
    }
    Ok(ports)
}

impl<'a> LossOptions<'a> {
    /// The loss.
    ///
    /// # Errors
    /// Names the key of a network, process and teacher that do not go together, or the op that could not be built.
    pub fn build(self) -> Result<LossProgram> {
        self.check()?;
        let (mut params, mut frozen): (Vec<_>, Vec<_>) =
            self.network.specs_over(self.layout)?.into_iter().partition(|s| s.trainable);
        let targets = if self.process.objective.target().is_some() { params.clone() } else { vec![] };
        if let Some(teacher) = self.teacher {
            for (spec, weight) in teacher.network.specs_over(self.layout)?.into_iter().zip(&teacher.weights) {
                let (name, init) = (format!("{TEACHER}.{}", spec.name), Init::Table(weight.clone()));
                frozen.push(ParamSpec { name, init, trainable: false, ..spec });
            }
        }
        let carried = self.process.carried();
        let (func, more) = self.attempt(&params, &frozen, &targets, &carried)?;
        if more.is_empty() {
            return Ok(LossProgram { func, params, frozen, targets, carried });
        }
        // The objective declared parameters of its own: they join the others in their place.
        params.extend(more);
        let (func, _) = self.attempt(&params, &frozen, &targets, &carried)?;
        Ok(LossProgram { func, params, frozen, targets, carried })
    }

    fn check(&self) -> Result<()> {
        let objective = &self.process.objective;
        let name = objective.name();
        if objective.second_time() != self.network.second_time() {
            let message = match objective.second_time() {
                true => format!("must be true: objective {name} asks for the time of a jump's end too"),
                false => format!("is true, but objective {name} has one time alone"),
            };
            return Err(Error::config("model.second_time", message));
        }
        if let crate::process::Objective::MeanFlow(m) = objective
            && m.guided()
            && self.network.classes() == 0
        {
            let message = "and omega guide by labels; model.classes is 0";
            return Err(Error::config("process.objective.kappa", message));
        }
        if objective.token_levels() && self.network.tokens().is_none() {
            let message = format!("has one noise level for a whole sample; objective {name} wants kind = \"sequence\"");
            return Err(Error::config("model.kind", message));
        }
        if matches!(objective, crate::process::Objective::SelfForcing(_)) && !self.network.causal() {
            let message = format!("must be true: objective {name} finishes a token before it begins the next");
            return Err(Error::config("model.causal", message));
        }
        let bad = |message: String| Err(Error::config("teacher.path", message));
        match (objective.needs_teacher(), self.teacher) {
            (true, None) => return bad(format!("is not set, and objective {name} learns from a teacher")),
            (false, Some(_)) => return bad(format!("is not read by objective {name}")),
            (false, None) => {}
            (true, Some(teacher)) => {
                let [own, other] = [self.network, &teacher.network].map(Network::sample_dims);
                let (own, other) = (own?, other?);
                if own != other {
                    return bad(format!("is of samples of dims {other:?}, the network of {own:?}"));
                }
                let [own, other] = [self.network, &teacher.network].map(Network::classes);
                if own > 0 && other > 0 && own != other {
                    return bad(format!("has {other} classes, the network {own}"));
                }
                let wanted = teacher.network.specs()?.len();
                if wanted != teacher.weights.len() {
                    return bad(format!("has {wanted} tensors, {} were given", teacher.weights.len()));
                }
            }
        }
        Ok(())
    }

    /// The function with these parameters, and the trainable ones that it asked for beyond them.
    fn attempt(
        &self,
        params: &[ParamSpec],
        frozen: &[ParamSpec],
        targets: &[ParamSpec],
        carried: &[Carried],
    ) -> Result<(Func, Vec<ParamSpec>)> {
        let g = Graph::on_mesh("loss", self.layout.mesh().clone());
        let all: Vec<ParamSpec> = params.iter().chain(frozen).cloned().collect();
        let declared = Params::laid(&g, self.layout).with(&all);
        for spec in targets {
            let name = format!("{TARGET}.{}", spec.name);
            let tensor = g.param(&name, self.layout.stored(spec));
            declared.push(ParamSpec { name, ..spec.clone() }, tensor);
        }
        if !targets.is_empty() {
            // What is not trained is its own average.
            for (spec, tensor) in declared.entries() {
                if !spec.trainable && spec.name.split('.').next() != Some(TEACHER) {
                    declared.push(ParamSpec { name: format!("{TARGET}.{}", spec.name), ..spec }, tensor);
                }
            }
        }
        let carry: Vec<Tensor> = carried.iter().map(|c| g.param(&c.name, c.start.ty().clone())).collect();
        let seed = g.param("seed", Type::new(DType::U32, [2]));
        let counter = g.param("counter", Type::scalar(DType::U32));
        let inputs: Vec<Tensor> = batch_ports(self.network, self.batch)?
            .into_iter()
            .map(|p| g.param(&p.name, self.layout.samples(p.ty, 0)))
            .collect();
        let known = declared.specs().len();

        let process = self.process;
        let draws = g.scope("draw", || process.draw(&g, seed, counter, inputs[0]));
        let root = declared.root();
        let model = Model { process, network: self.network, scope: &root };
        let step = (counter.convert(DType::F32) * (1.0 / self.accumulate as f64) + 1e-6).floor();
        let [teacher, target, own] = [TEACHER, TARGET, TRAIN_ONLY].map(|prefix| root.under(prefix));
        let of = |t: &'a Teacher| Model { process: &t.process, network: &t.network, scope: &teacher };
        let scene = Scene {
            model,
            target: (!targets.is_empty()).then_some(Model { scope: &target, ..model }),
            teacher: self.teacher.map(of),
            own: &own,
            x0: inputs[0],
            label: inputs.get(1).copied(),
            draws,
            seed: (seed, counter),
            step,
            carry,
        };
        let (loss, new) = scene.loss();
        let mut results = vec![loss.mean];
        if self.level_bins > 0 {
            results.extend(loss.by_level(self.level_bins));
        }
        results.extend(new);
        let more = declared.specs().split_off(known);
        Ok((g.finish(&results)?, more))
    }
}
