//! The whole training step as one function: noise and time draws, loss, gradient, clipping, optimizer, average.
//!
//! Inputs are, in order, the *state* (trainable parameters, moments, averages, step counter, bad-step mark), the
//! *constants* (frozen parameters, the seed's key) and the *batch*. Results are the new state, in the same order
//! so that each state buffer can be donated, then the *metrics*.
//!
//! A step whose loss or gradient norm is not finite changes nothing: the state stays that before the step, its
//! number is kept as the bad step, and later steps change nothing either. So a trainer that looks every hundred
//! steps still finds the state from which the failure replays. With [`LossScaling`] the step is skipped instead and
//! the scale lowered, until it can't be.

use crate::loss::{LossOptions, LossProgram, batch_ports};
use crate::network::Network;
use crate::optim::{EmaConfig, OptimConfig, global_norm};
use crate::params::ParamSpec;
use crate::process::{Carried, Process, TRAIN_ONLY, Teacher};
use crate::scaling::ScaleState;
use crate::{Error, Layout, Result, init};
use dnx_ir::threefry::{Key, key};
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
use std::ops::Range;
use std::sync::Arc;

pub use crate::loss::loss_program;
pub use crate::scaling::LossScaling;

/// The bad-step mark of a run in which no step was bad.
pub const NO_BAD_STEP: u32 = u32::MAX;

/// What a state tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A trainable parameter.
    Param,
    /// Moment number so and so of a parameter.
    Moment(usize),
    /// The moving average of a parameter.
    Ema,
    /// The average of a parameter that the loss compares with.
    Target,
    /// State of the loss.
    Carry,
    /// The loss scale, `f32[]`.
    LossScale,
    /// Good steps since the loss scale changed, `u32[]`.
    GoodSteps,
    /// Steps skipped because their gradient was not finite, `u32[]`.
    Skipped,
    /// The number of steps done, skipped ones included, `u32[]`.
    Step,
    /// The first step that was not finite, `u32[]`, or [`NO_BAD_STEP`].
    BadStep,
}

/// One tensor of the state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpec {
    /// The parameter's name; `step`, `bad_step`, `loss_scale` and so on for scalars.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its type.
    pub ty: Type,
}

/// An input or a result: its name and type.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Type.
    pub ty: Type,
}

/// How a step is built, beside network, process, optimizer and average.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOptions {
    /// Samples per step.
    pub batch: usize,
    /// Parts that the batch is worked through in, one after another, to save memory.
    pub accumulate: usize,
    /// Bins of the loss by noise level; 0: not computed.
    pub level_bins: usize,
    /// Whether and how the loss is scaled.
    pub scaling: Option<LossScaling>,
    /// Where tensors lie.
    pub layout: Layout,
}

/// A training step.
#[derive(Clone, Debug)]
pub struct TrainProgram {
    /// The step.
    pub func: Func,
    /// The loss that it differentiates.
    pub loss: Arc<Func>,
    /// Its value and gradient. With loss scaling the scale is a further, last parameter; gradients are multiplied
    /// with it.
    pub grad: Arc<Func>,
    /// The state: the first inputs and the first results.
    pub state: Vec<StateSpec>,
    /// Trainable parameters; their tensors lead the state.
    pub params: Vec<ParamSpec>,
    /// Frozen parameters: inputs after the state.
    pub frozen: Vec<ParamSpec>,
    /// The batch: the last inputs. `x` and, if the network is conditional, `label`.
    pub batch: Vec<Port>,
    /// Results after the state: `loss`, `grad_norm`, `lr`, with loss scaling `loss_scale` and `skipped` (both after the
    /// step), and with bins `level_loss` and `level_count`.
    pub metrics: Vec<Port>,
    /// Inputs whose buffers may become results.
    pub donate: Vec<(usize, usize)>,
    /// How the loss is scaled.
    pub scaling: Option<LossScaling>,
    /// The loss's state before the first step.
    pub carried: Vec<Carried>,
}

impl TrainProgram {
    /// The frozen parameters among the inputs.
    pub fn frozen_inputs(&self) -> Range<usize> {
        self.state.len()..self.state.len() + self.frozen.len()
    }

    /// The seed's key, `u32[2]`, among the inputs.
    pub fn seed_input(&self) -> usize {
        self.frozen_inputs().end
    }

    /// The batch among the inputs.
    pub fn batch_inputs(&self) -> Range<usize> {
        self.seed_input() + 1..self.seed_input() + 1 + self.batch.len()
    }

    /// The metrics among the results.
    pub fn metric_results(&self) -> Range<usize> {
        self.state.len()..self.state.len() + self.metrics.len()
    }

    /// The index in the state of the tensor of this role and name.
    pub fn state_index(&self, role: Role, name: &str) -> Option<usize> {
        self.state.iter().position(|s| s.role == role && s.name == name)
    }

    /// The state before the first step: initial weights of this seed, zero moments, averages equal to the weights.
    pub fn initial_state(&self, seed: u64) -> Vec<Array> {
        self.state_from(&init::init(&self.params, seed))
    }

    /// The state of a run that starts from these trainable parameters.
    pub fn state_from(&self, params: &[Array]) -> Vec<Array> {
        let word = |value: u32| Array::u32([], &[value]);
        let of = |name: &str| params[self.params.iter().position(|p| p.name == name).expect("a parameter")].clone();
        let value = |s: &StateSpec| match s.role {
            Role::Param | Role::Ema | Role::Target => of(&s.name),
            Role::Carry => self.carried.iter().find(|c| c.name == s.name).expect("a state of the loss").start.clone(),
            Role::Moment(_) => Array::zeros(Type::new(s.ty.dtype, s.ty.dims.clone())),
            Role::LossScale => Array::f32([], &[self.scaling.unwrap_or_default().initial as f32]),
            Role::GoodSteps | Role::Skipped | Role::Step => word(0),
            Role::BadStep => word(NO_BAD_STEP),
        };
        self.state.iter().map(value).collect()
    }

    /// The constants: frozen parameters, then the seed's key.
    pub fn constants(&self, seed: u64) -> Vec<Array> {
        let mut constants = init::init(&self.frozen, seed);
        constants.push(key_array(key(seed)));
        constants
    }
}

/// A key as the array that programs take.
pub fn key_array(key: Key) -> Array {
    Array::u32([2], &key)
}

/// Builds the training step of a resolved network, of objectives without a teacher.
///
/// # Errors
/// Names the configuration key that is wrong, or the op that could not be built.
pub fn train_step(
    network: &Network,
    process: &Process,
    optim: &OptimConfig,
    ema: &EmaConfig,
    options: &StepOptions,
) -> Result<TrainProgram> {
    train_step_with(network, process, None, optim, ema, options)
}

/// [`train_step`] of a network that learns from a teacher, if the objective wants one. The teacher's weights are among
/// the frozen parameters.
///
/// # Errors
/// As [`train_step`].
pub fn train_step_with(
    network: &Network,
    process: &Process,
    teacher: Option<&Teacher>,
    optim: &OptimConfig,
    ema: &EmaConfig,
    options: &StepOptions,
) -> Result<TrainProgram> {
    optim.check()?;
    ema.check()?;
    let &StepOptions { batch, accumulate, level_bins, scaling, ref layout } = options;
    if batch == 0 || accumulate == 0 || batch % accumulate != 0 {
        let message = format!("is {accumulate}, which does not divide a batch of {batch}");
        return Err(Error::config("train.accumulate", message));
    }
    let micro = batch / accumulate;
    if !micro.is_multiple_of(layout.batch_parts()) {
        let parts = layout.batch_parts();
        let message = format!("gives {micro} samples at a time, which {parts} devices can't share evenly");
        return Err(Error::config("data.batch", message));
    }
    let built = LossOptions { network, process, teacher, batch: micro, accumulate, level_bins, layout }.build()?;
    let LossProgram { func: loss, params, frozen, targets, carried } = built;
    let wrt: Vec<usize> = (0..params.len()).collect();
    let loss = Arc::new(loss);
    let grad = match scaling {
        None => dnx_autodiff::value_and_grad(&loss, &wrt)?,
        Some(_) => without_first(&dnx_autodiff::value_and_grad(&scaled(&loss)?, &wrt)?),
    };
    let grad = Arc::new(grad);

    let state = state_specs(layout, &params, optim.moments(), ema.enabled(), &targets, &carried, scaling.is_some());
    let at = |role: Role, name: &str| state.iter().position(|s| s.role == role && s.name == name);
    let slot = |role: Role, name: &str| at(role, name).expect("a state tensor");
    let g = Graph::on_mesh("step", layout.mesh().clone());
    let old: Vec<Tensor> = state.iter().map(|s| g.param(&port_name(s), s.ty.clone())).collect();
    let constants: Vec<Tensor> = frozen.iter().map(|s| g.param(&s.name, layout.stored(s))).collect();
    let seed = g.param("seed", Type::new(DType::U32, [2]));
    let ports: Vec<Port> =
        batch_ports(network, micro)?.into_iter().map(|p| batch_port(p, accumulate, layout)).collect();
    let inputs: Vec<Tensor> = ports.iter().map(|p| g.param(&p.name, p.ty.clone())).collect();

    let n = params.len();
    let [step, bad] = [old[old.len() - 2], old[old.len() - 1]];
    let scale_state = scaling.map(|_| {
        let [scale, good, skipped] = [5, 4, 3].map(|from_end| old[old.len() - from_end]);
        ScaleState { scale, good, skipped }
    });
    let word = |value: u32| g.scalar(DType::U32, value as f64);
    let mut carry: Vec<Tensor> = carried.iter().map(|c| old[slot(Role::Carry, &c.name)]).collect();
    // Of the loss's results: those that are summed over micro-batches, and then the state that is handed on.
    let extra = loss.results.len() - carried.len();
    let mut sums: Vec<Tensor> = vec![];
    for i in 0..accumulate {
        // One micro-batch after another: the next does not begin before the gradients of the last are there.
        let waiting: Vec<Tensor> = [&[step], &inputs[..], &carry[..], &sums[..]].concat();
        let ready = if i == 0 { waiting } else { g.barrier(&waiting) };
        let (batch, before) = ready.split_at(1 + inputs.len());
        let (handed, before) = before.split_at(carry.len());
        // Micro-batches of one step differ in their counter, so that they differ in their draws.
        let counter = if accumulate == 1 { step } else { batch[0] * word(accumulate as u32) + word(i as u32) };
        let mut args: Vec<Tensor> = old[..n].to_vec();
        args.extend(&constants);
        args.extend(targets.iter().map(|s| old[slot(Role::Target, &s.name)]));
        args.extend(handed);
        args.extend([seed, counter]);
        args.extend(batch[1..].iter().map(|t| part(*t, i, accumulate, micro)));
        args.extend(scale_state.map(|s| s.scale));
        let mut terms = g.call(&grad, &args);
        carry = terms.splice(extra..extra + carried.len(), []).collect();
        sums = if i == 0 { terms } else { before.iter().zip(terms).map(|(&a, b)| a + b).collect() };
    }
    let loss_value = mean_of(sums[0], accumulate);
    let mut grads: Vec<Tensor> = sums[extra..].iter().map(|&t| mean_of(t, accumulate)).collect();

    let (new, grad_norm, lr) = g.scope("update", || {
        if let Some(state) = scale_state {
            let inverse = 1.0 / state.scale;
            grads.iter_mut().for_each(|t| *t = *t * inverse);
        }
        let grad_norm = global_norm(&grads).unwrap_or_else(|| g.scalar(DType::F32, 0.0));
        let updates = scale_state.map_or(step, |s| step - s.skipped);
        let untouched = bad.eq(word(NO_BAD_STEP));
        // By the exponent bits. The norm is a sum of squares: one infinity or NaN in any gradient makes it one.
        let finite = loss_value.is_finite().and(grad_norm.is_finite());
        // The whole gradient is known first; the update is not begun inside the kernels that make its parts.
        let go = g.barrier(&[untouched.and(finite)])[0];
        let slots = optim.moments();
        let mut new = old.clone();
        // Parameters that are updated every so many steps: each such group counts its own updates and is clipped alone.
        let every: Vec<u32> = params.iter().map(|p| process.objective.update_every(&p.name)).collect();
        let mut groups = every.clone();
        groups.sort_unstable();
        groups.dedup();
        let mut lr = None;
        for group in &groups {
            let members: Vec<usize> = (0..n).filter(|&i| every[i] == *group).collect();
            let (norm, count, go) = match (groups.len(), group) {
                (1, 1) => (grad_norm, updates.convert(DType::F32), go),
                (_, &every) => {
                    let own: Vec<Tensor> = members.iter().map(|&i| grads[i]).collect();
                    let norm = global_norm(&own).unwrap_or(grad_norm);
                    let turn = updates.rem(word(every)).eq(word(0));
                    let count = (updates.convert(DType::F32) * (1.0 / every as f64) + 1e-6).floor();
                    (norm, count, go.and(turn))
                }
            };
            let scalars = optim.scalars(count, norm);
            let rate = ema.rate(count);
            lr.get_or_insert(scalars.lr);
            let decay = process.objective.target().map(|t| t.decay(count));
            for i in members {
                let name = &params[i].name;
                let moments: Vec<Tensor> = (0..slots).map(|k| old[slot(Role::Moment(k), name)]).collect();
                g.scope(name, || {
                    let (p, m) = optim.update(old[i], grads[i], &moments, &scalars);
                    new[i] = go.select(p, old[i]);
                    for (k, m) in m.into_iter().enumerate() {
                        let at = slot(Role::Moment(k), name);
                        new[at] = go.select(m, old[at]);
                    }
                    if let Some(at) = at(Role::Ema, name) {
                        new[at] = go.select(ema.update(old[at], p, rate), old[at]);
                    }
                    if let (Some(at), Some(decay)) = (at(Role::Target, name), decay) {
                        new[at] = go.select(p + (old[at] - p) * decay, old[at]);
                    }
                });
            }
        }
        for (c, &value) in carried.iter().zip(&carry) {
            let at = slot(Role::Carry, &c.name);
            new[at] = go.select(value, old[at]);
        }
        let last = old.len();
        let least = scaling.zip(scale_state).map(|(scaling, state)| scaling.is_least(state));
        let fails = || least.iter().fold(untouched.and(finite.not()), |fails, &least| fails.and(least));
        let mut counts = go;
        if let (Some(scaling), Some(state)) = (scaling, scale_state) {
            counts = untouched.and(fails().not());
            let next = scaling.next(state, finite);
            new[last - 5] = counts.select(next.scale, state.scale);
            new[last - 4] = counts.select(next.good, state.good);
            new[last - 3] = counts.select(next.skipped, state.skipped);
        }
        new[last - 2] = counts.select(step + word(1), step);
        new[last - 1] = fails().select(step, bad);
        (new, grad_norm, lr.unwrap_or(grad_norm))
    });

    let mut metrics: Vec<Port> = ["loss", "grad_norm", "lr"].map(scalar_port).into();
    let mut measured = vec![loss_value, grad_norm, lr];
    if scaling.is_some() {
        metrics.extend(["loss_scale", "skipped"].map(scalar_port));
        // Results of their own: those of the state are given back in place of the inputs.
        measured.extend([5, 3].map(|from_end| new[new.len() - from_end].convert(DType::F32)));
    }
    let mut results = new;
    results.extend(measured);
    results.extend(&sums[1..extra]);
    if level_bins > 0 {
        metrics.extend(["level_loss", "level_count"].map(|n| Port { name: n.into(), ty: Type::f32([level_bins]) }));
    }
    let donate = (0..state.len()).map(|i| (i, i)).collect();
    Ok(TrainProgram {
        func: g.finish(&results)?,
        loss,
        grad,
        state,
        params,
        frozen,
        batch: ports,
        metrics,
        donate,
        scaling,
        carried,
    })
}

/// The loss times a scale, which is a further parameter; then the loss's own results.
fn scaled(loss: &Arc<Func>) -> Result<Func> {
    let g = Graph::on_mesh(&format!("scaled_{}", loss.name), loss.mesh.clone());
    let args: Vec<Tensor> = loss.params.iter().map(|p| g.param(&p.name, loss.ty(p.value).clone())).collect();
    let scale = g.param("loss_scale", Type::f32([]));
    let mut results = g.call(loss, &args);
    results.insert(0, results[0] * scale);
    Ok(g.finish(&results)?)
}

/// The function without its first result.
fn without_first(func: &Func) -> Func {
    Func { results: func.results[1..].to_vec(), ..func.clone() }
}

/// The port of `accumulate` micro-batches, one after another. Where samples are split over devices the micro-batches have
/// a dim of their own, so that each of them is split.
fn batch_port(micro: Port, accumulate: usize, layout: &Layout) -> Port {
    let Port { name, ty } = micro;
    let (samples, rest) = (ty.dims[0], &ty.dims[1..]);
    let ty = match (accumulate, layout.batch_parts()) {
        (1, _) => layout.samples(ty, 0),
        (n, 1) => Type::new(ty.dtype, [&[n * samples], rest].concat()),
        (n, _) => layout.samples(Type::new(ty.dtype, [&[n, samples], rest].concat()), 1),
    };
    Port { name, ty }
}

/// Micro-batch `i` of `parts`, each of `samples` samples.
fn part(t: Tensor<'_>, i: usize, parts: usize, samples: usize) -> Tensor<'_> {
    match parts {
        1 => t,
        _ if t.dim(0) == parts * samples => t.slice(0, i * samples, (i + 1) * samples),
        _ => t.slice(0, i, i + 1).reshape(&t.dims()[1..]),
    }
}

/// A sum over micro-batches as their mean.
fn mean_of(sum: Tensor<'_>, parts: usize) -> Tensor<'_> {
    if parts == 1 { sum } else { sum * (1.0 / parts as f64) }
}

fn scalar_port(name: &str) -> Port {
    Port { name: name.into(), ty: Type::f32([]) }
}

/// Whether a parameter is of training alone, and so not averaged or saved among the weights.
pub fn train_only(name: &str) -> bool {
    name.split('.').next() == Some(TRAIN_ONLY)
}

fn state_specs(
    layout: &Layout,
    params: &[ParamSpec],
    moments: usize,
    ema: bool,
    targets: &[ParamSpec],
    carried: &[Carried],
    scaling: bool,
) -> Vec<StateSpec> {
    let mut roles = vec![Role::Param];
    roles.extend((0..moments).map(Role::Moment));
    roles.extend(ema.then_some(Role::Ema));
    let mut state = Vec::new();
    for role in roles {
        let kept = params.iter().filter(|p| role != Role::Ema || !train_only(&p.name));
        state.extend(kept.map(|p| StateSpec { name: p.name.clone(), role, ty: layout.stored(p) }));
    }
    state.extend(targets.iter().map(|p| StateSpec { name: p.name.clone(), role: Role::Target, ty: layout.stored(p) }));
    let of = |c: &Carried| StateSpec { name: c.name.clone(), role: Role::Carry, ty: c.start.ty().clone() };
    state.extend(carried.iter().map(of));
    let mut scalar = |name: &str, role: Role, dtype: DType| {
        state.push(StateSpec { name: name.into(), role, ty: Type::scalar(dtype) });
    };
    if scaling {
        scalar("loss_scale", Role::LossScale, DType::F32);
        scalar("good_steps", Role::GoodSteps, DType::U32);
        scalar("skipped", Role::Skipped, DType::U32);
    }
    scalar("step", Role::Step, DType::U32);
    scalar("bad_step", Role::BadStep, DType::U32);
    state
}

/// The name of a state tensor as a parameter of the step.
fn port_name(s: &StateSpec) -> String {
    match s.role {
        Role::Param | Role::Step | Role::BadStep | Role::Carry => s.name.clone(),
        Role::LossScale | Role::GoodSteps | Role::Skipped => s.name.clone(),
        Role::Moment(i) => format!("moment{}/{}", i + 1, s.name),
        Role::Ema => format!("ema/{}", s.name),
        Role::Target => format!("target/{}", s.name),
    }
}
