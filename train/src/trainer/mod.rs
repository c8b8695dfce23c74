//! The trainer: a compiled step, its state on a device, and the loop around it.
//!
//! * [`Trainer`] builds, compiles and holds the state; one [`Trainer::step`] uploads a batch and runs the program.
//! * [`fit`](Trainer::fit) is the loop: metrics, pictures, checkpoints, interruption, failure.
//! * A step that is not finite changes nothing (the program sees to that), so the state in which it happened can
//!   be saved and the step replayed to find the op.

mod failure;
mod fit;
mod fits;
mod placed;

pub use fit::{FitOptions, reference_points};
pub use fits::{Fitting, fit_step};
pub use placed::Placed;

use crate::checkpoint::tensors::{self, Named};
use crate::checkpoint::{self, Checkpoint, State, shards};
use crate::config::{Config, Resolved};
use crate::data::{Batch, Dataset};
use crate::files::create_folder;
use crate::{Error, Result};
use dnx_ir::{Array, DType, Sharding, Type};
use dnx_models::loss::{LossOptions, LossProgram, TEACHER};
use dnx_models::process::Teacher;
use dnx_models::sample::GuidanceKind;
use dnx_models::step::{NO_BAD_STEP, Role, StateSpec, StepOptions, TrainProgram, train_only, train_step_with};
use dnx_runtime::{Buffer, Device, Team};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A compiled training step and its state.
pub struct Trainer {
    resolved: Resolved,
    team: Team,
    data: Arc<Dataset>,
    program: TrainProgram,
    placed: Placed,
    step: u64,
    note: Option<String>,
}

/// Builds the training step of a configuration, with the teacher it names.
pub fn build_step(resolved: &Resolved) -> Result<TrainProgram> {
    build_with(resolved, crate::teacher::load(resolved)?.as_ref())
}

/// Builds the loss of a whole batch of a configuration, with the teacher it names.
pub fn build_loss(resolved: &Resolved) -> Result<LossProgram> {
    let (config, teacher) = (&resolved.config, crate::teacher::load(resolved)?);
    let options = LossOptions {
        network: &config.model,
        process: &resolved.process,
        teacher: teacher.as_ref(),
        batch: resolved.batch(),
        accumulate: 1,
        level_bins: 0,
        layout: &resolved.layout,
    };
    options.build().map_err(|e| resolved.locate(e))
}

fn build_with(resolved: &Resolved, teacher: Option<&Teacher>) -> Result<TrainProgram> {
    let config = &resolved.config;
    let options = StepOptions {
        batch: resolved.batch(),
        accumulate: config.train.accumulate,
        level_bins: config.log.levels,
        scaling: resolved.scaling(),
        layout: resolved.layout.clone(),
    };
    train_step_with(&config.model, &resolved.process, teacher, &config.optim, &config.ema, &options)
        .map_err(|e| resolved.locate(e))
}

impl Trainer {
    /// [`Trainer::over`] one device.
    pub fn new(resolved: Resolved, device: &Device, data: Arc<Dataset>) -> Result<Trainer> {
        Trainer::over(resolved, &Team::new(vec![device.clone()])?, data)
    }

    /// Builds and compiles the step so that it fits, and uploads the state before the first one. The mesh of the
    /// configuration has as many devices as the team.
    pub fn over(resolved: Resolved, team: &Team, data: Arc<Dataset>) -> Result<Trainer> {
        let Config { sample, train, .. } = &resolved.config;
        if sample.guidance == GuidanceKind::Autoguidance && sample.cfg != 1.0 && train.sample_every > 0 {
            let message = "is autoguidance, but pictures in training have no second network: ask dnx sample for it";
            return Err(resolved.source.wrong("sample.guidance", message));
        }
        let Fitting { program, exec, resolved, note } = fit_step(resolved, team)?;
        let seed = resolved.config.train.seed;
        let teacher = crate::teacher::load(&resolved)?;
        let mut inputs = program.state_from(&crate::teacher::initial(&resolved, &program, teacher.as_ref())?);
        inputs.extend(program.constants(seed));
        inputs.extend(program.batch.iter().map(|port| Array::zeros(Type::new(port.ty.dtype, port.ty.dims.clone()))));
        let placed = Placed::new(team, &program.func, exec, &inputs)?;
        Ok(Trainer { resolved, team: team.clone(), data, program, placed, step: 0, note })
    }

    /// The configuration.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// What was changed so that the step fits into memory, and what that costs.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The devices.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// The device that does what one is enough for: pictures.
    pub fn device(&self) -> &Device {
        &self.team.devices()[0]
    }

    /// The data.
    pub fn data(&self) -> &Arc<Dataset> {
        &self.data
    }

    /// The step's program.
    pub fn program(&self) -> &TrainProgram {
        &self.program
    }

    /// The compiled step.
    pub fn executable(&self) -> &dnx_codegen::exec::Executable {
        self.placed.exec()
    }

    /// The compiled step on its state.
    pub fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Runs one step on a batch. Nothing comes back: see [`Trainer::metrics`].
    pub fn step(&mut self, batch: &Batch) -> Result<()> {
        for (array, i) in self.batch_arrays(batch).iter().zip(self.program.batch_inputs()) {
            self.placed.write(i, array)?;
        }
        self.placed.run()?;
        self.step += 1;
        Ok(())
    }

    /// Which samples of a batch the devices of this process take.
    pub(super) fn rows(&self) -> Vec<bool> {
        let mut rows = vec![false; self.resolved.batch()];
        let Some(bound) = self.placed.team() else { return vec![true; rows.len()] };
        let ty = self.placed.ty(self.program.batch_inputs().start);
        // The dims before the first of a sample: samples, or micro-batches and samples.
        let dims: Vec<usize> = match ty.dims[0] == rows.len() {
            true => ty.dims[..1].to_vec(),
            false => ty.dims[..2].to_vec(),
        };
        let sharding = Sharding::new((0..dims.len()).map(|d| ty.sharding.dim(d).to_vec()).collect(), vec![]);
        let numbers = Array::i32(dims, &(0..rows.len() as i32).collect::<Vec<_>>());
        for rank in bound.program().team().ranks() {
            match dnx_ir::parts::part(&numbers, &sharding, self.placed.mesh(), rank) {
                Ok(own) => own.to_i32_vec().into_iter().for_each(|row| rows[row as usize] = true),
                Err(_) => rows.fill(true),
            }
        }
        rows
    }

    /// A batch as the program takes it.
    fn batch_arrays(&self, batch: &Batch) -> Vec<Array> {
        let array = |ty: &Type| match ty.dtype {
            DType::I32 => Array::i32(ty.dims.clone(), &batch.labels.iter().map(|&l| l as i32).collect::<Vec<_>>()),
            _ => Array::f32(ty.dims.clone(), &batch.samples),
        };
        self.program.batch.iter().map(|port| array(&port.ty)).collect()
    }

    /// The scalars of the last step, brought down: `loss`, `grad_norm`, `lr`, in `f16` `loss_scale` and `skipped`, and
    /// with `log.levels` `loss_level_0` and so on, where the batch had samples there.
    pub fn metrics(&self) -> Result<Vec<(String, f64)>> {
        let mut scalars = vec![];
        let mut levels: Vec<Vec<f64>> = vec![];
        for (port, i) in self.program.metrics.iter().zip(self.program.metric_results()) {
            if port.ty.dims.is_empty() {
                scalars.push((port.name.clone(), self.placed.result(i)?.get(0).to_f64()));
            } else {
                levels.push(self.placed.result(i)?.to_f64_vec());
            }
        }
        if let [sums, counts] = &levels[..] {
            let means = sums.iter().zip(counts).map(|(sum, count)| sum / count);
            let named = means.enumerate().filter(|(i, _)| counts[*i] > 0.0);
            scalars.extend(named.map(|(i, mean)| (level_name(i), mean)));
        }
        Ok(scalars)
    }

    /// The number of the first step whose loss or gradient was not finite, if there was one.
    pub fn bad_step(&self) -> Result<Option<u64>> {
        let at = self.state_index(Role::BadStep, "bad_step")?;
        let mark = self.placed.read(at)?.to_u32_vec()[0];
        Ok((mark != NO_BAD_STEP).then_some(mark as u64))
    }

    fn state_index(&self, role: Role, name: &str) -> Result<usize> {
        let missing = || Error::Graph(dnx_ir::Error::new(format!("the step's state has no {role:?} {name}")));
        self.program.state_index(role, name).ok_or_else(missing)
    }

    /// The weights on [`Trainer::device`] in the network's order: the averaged ones if wanted and kept. Frozen parameters
    /// are among them. On one device they change with the next step; of several these are copies.
    pub fn weights(&self, averaged: bool) -> Result<Vec<(String, Buffer)>> {
        let of = |(name, i, dims): (String, usize, Vec<usize>)| match self.placed.buffer(i) {
            Some(buffer) => Ok((name, buffer.clone())),
            None => Ok((name, self.device().upload(&self.placed.read(i)?.reshaped(dims))?)),
        };
        self.weight_inputs(averaged)?.into_iter().map(of).collect()
    }

    /// The averaged weights on every device of this process, for pictures: of one device those it trains, of several copies.
    fn weights_everywhere(&self) -> Result<Vec<(Device, Vec<(String, Buffer)>)>> {
        if self.placed.bound().is_some() {
            return Ok(vec![(self.device().clone(), self.weights(true)?)]);
        }
        let inputs = self.weight_inputs(true)?;
        let read = |(_, i, dims): &(String, usize, Vec<usize>)| Ok(self.placed.read(*i)?.reshaped(dims.clone()));
        let whole = inputs.iter().map(read).collect::<Result<Vec<Array>>>()?;
        let on = |device: &Device| {
            let names = inputs.iter().map(|(name, ..)| name.clone());
            Ok((device.clone(), names.zip(device.upload_all(&whole)?).collect()))
        };
        self.team.devices().iter().map(on).collect()
    }

    /// Brings the copies of [`Trainer::weights_everywhere`] up to date.
    fn refresh<'a>(&self, copies: impl Iterator<Item = &'a [(String, Buffer)]>) -> Result<()> {
        let copies: Vec<&[(String, Buffer)]> = copies.collect();
        for (at, (_, i, dims)) in self.weight_inputs(true)?.into_iter().enumerate() {
            if self.placed.buffer(i).is_none() {
                let whole = self.placed.read(i)?.reshaped(dims);
                copies.iter().try_for_each(|copy| copy[at].1.write(&whole))?;
            }
        }
        Ok(())
    }

    /// Names of weights, the inputs that they are, and their dims in files.
    fn weight_inputs(&self, averaged: bool) -> Result<Vec<(String, usize, Vec<usize>)>> {
        let role = if averaged && self.resolved.config.ema.enabled() { Role::Ema } else { Role::Param };
        let mut weights = vec![];
        for spec in self.program.params.iter().filter(|s| !train_only(&s.name)) {
            weights.push((spec.name.clone(), self.state_index(role, &spec.name)?, spec.dims.clone()));
        }
        weights.extend(self.frozen().into_iter().map(|(i, name, ty)| (name, i, ty.dims)));
        Ok(weights)
    }

    /// Everything a checkpoint holds, brought down.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { model: vec![], ema: vec![], optimizer: vec![] };
        for saved in self.saved() {
            let place = match saved.file {
                Place::Model => &mut checkpoint.model,
                Place::Ema => &mut checkpoint.ema,
                Place::Optimizer => &mut checkpoint.optimizer,
            };
            place.push((saved.name, self.placed.read(saved.input)?.reshaped(saved.ty.dims)));
        }
        Ok(checkpoint)
    }

    /// What checkpoints keep.
    fn saved(&self) -> Vec<Saved> {
        // The dims of a parameter in files, whatever they are on several devices.
        let dims = |s: &StateSpec| match s.role {
            Role::Param | Role::Moment(_) | Role::Ema | Role::Target => {
                self.program.params.iter().find(|p| p.name == s.name).map(|p| p.dims.clone())
            }
            _ => None,
        };
        let mut saved = vec![];
        for (input, spec) in self.program.state.iter().enumerate() {
            if let Some((file, name)) = place_of(spec) {
                let ty = Type::new(spec.ty.dtype, dims(spec).unwrap_or_else(|| spec.ty.dims.clone()));
                saved.push(Saved { file, name, ty, input });
            }
        }
        let averaged = saved.iter().any(|s| s.file == Place::Ema);
        for (input, name, ty) in self.frozen() {
            if averaged {
                saved.push(Saved { file: Place::Ema, name: name.clone(), ty: ty.clone(), input });
            }
            saved.push(Saved { file: Place::Model, name, ty, input });
        }
        saved
    }

    /// The network's own frozen parameters: input, name, type. A teacher's are in its run.
    fn frozen(&self) -> Vec<(usize, String, Type)> {
        let all = self.program.frozen_inputs().zip(&self.program.frozen);
        let own = all.filter(|(_, s)| s.name.split('.').next() != Some(TEACHER));
        own.map(|(i, s)| (i, s.name.clone(), Type::f32(s.dims.clone()))).collect()
    }

    /// Writes a checkpoint of the steps done and removes old ones.
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let train = &self.resolved.config.train;
        let state = State {
            version: checkpoint::VERSION,
            dnx: env!("CARGO_PKG_VERSION").to_string(),
            step: self.step,
            cursor: self.step * self.resolved.batch() as u64,
            seed: train.seed,
            device: self.device().name().to_string(),
            mesh: self.placed.mesh().axes.iter().map(|(name, size)| (name.to_string(), *size)).collect(),
            files: BTreeMap::new(),
        };
        let split = self.saved().iter().any(|s| !self.placed.ty(s.input).sharding.is_replicated());
        let path = match (split, self.placed.has_others()) {
            (false, false) => checkpoint::write(folder, &self.checkpoint()?, state)?,
            (false, true) => {
                let whole = self.checkpoint()?;
                let written = match self.placed.is_first() {
                    true => checkpoint::write(folder, &whole, state),
                    false => Ok(folder.join(checkpoint::folder_name(self.step))),
                };
                self.placed.together(written)?
            }
            (true, _) => self.save_parts(folder, state)?,
        };
        if self.placed.is_first() {
            checkpoint::prune(folder, train.keep, train.keep_every)?;
        }
        Ok(path)
    }

    /// Every process writes the parts of its devices; the first one puts them together.
    fn save_parts(&self, folder: &Path, state: State) -> Result<PathBuf> {
        let of = |s: Saved| shards::Split {
            file: s.file.name(),
            name: s.name,
            dims: s.ty.dims,
            ty: self.placed.ty(s.input).clone(),
            input: s.input,
        };
        let tensors: Vec<shards::Split> = self.saved().into_iter().map(of).collect();
        let write = |into: &Path| {
            let read = |input, rank| self.placed.read_part(input, rank);
            shards::write(into, self.placed.mesh(), self.team.ranks(), &tensors, read)
        };
        if !self.placed.has_others() {
            return checkpoint::write_with(folder, state, write);
        }
        // Where the other processes write.
        let parts = folder.join(format!(".{}.parts", checkpoint::folder_name(self.step)));
        let first = self.placed.is_first();
        let made = || -> Result<()> {
            // What an earlier attempt left there is of no use.
            if parts.exists() {
                std::fs::remove_dir_all(&parts).map_err(Error::io("cannot remove", &parts))?;
            }
            create_folder(&parts)
        };
        self.placed.together(if first { made() } else { Ok(()) })?;
        let mut met = false;
        let written = match first {
            true => checkpoint::write_with(folder, state, |into| {
                met = true;
                let mut names = self.placed.together(write(into))?;
                names.extend(move_files(&parts, into)?);
                Ok(names)
            }),
            false => self.placed.together(write(&parts)).map(|_| folder.join(checkpoint::folder_name(self.step))),
        };
        if first && !met {
            // It failed before the meeting at which the others wait.
            self.placed.any(true)?;
        }
        self.placed.together(written)
    }

    /// Continues from a checkpoint. Tensors that do not fit are named with both shapes, and nothing is changed then.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let (mut saved, state) = checkpoint::read(path)?;
        let seed = self.resolved.config.train.seed;
        if state.seed != seed {
            let message = format!(
                "{} was made with seed {}, not {seed}; a run continues with its own (leave --seed out)",
                path.display(),
                state.seed
            );
            return Err(Error::Checkpoint(message));
        }
        self.fit_scaling(&mut saved.optimizer)?;
        let wanted = self.saved();
        let mut fitted: Vec<(usize, Array)> = vec![];
        for (place, saved) in
            [(Place::Model, saved.model), (Place::Ema, saved.ema), (Place::Optimizer, saved.optimizer)]
        {
            let own = || wanted.iter().filter(|s| s.file == place);
            let types: Vec<(String, Type)> = own().map(|s| (s.name.clone(), s.ty.clone())).collect();
            let arrays = tensors::fit(&checkpoint::single(path, place.name()), saved, &types)?;
            fitted.extend(own().map(|s| s.input).zip(arrays));
        }
        for (i, array) in fitted {
            self.placed.write(i, &array.reshaped(self.placed.ty(i).dims.clone()))?;
        }
        self.clear_bad_step()?;
        self.step = state.step;
        Ok(())
    }

    /// A run may go on in another precision: the state of the loss scaling then starts anew, or is left behind.
    fn fit_scaling(&self, optimizer: &mut Named) -> Result<()> {
        for (role, name) in
            [(Role::LossScale, "loss_scale"), (Role::GoodSteps, "good_steps"), (Role::Skipped, "skipped")]
        {
            let saved = optimizer.iter().any(|(n, _)| n == name);
            match self.program.state_index(role, name) {
                Some(at) if !saved => optimizer.push((name.into(), self.placed.read(at)?)),
                None if saved => optimizer.retain(|(n, _)| n != name),
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn clear_bad_step(&self) -> Result<()> {
        let at = self.state_index(Role::BadStep, "bad_step")?;
        self.placed.write(at, &Array::u32([], &[NO_BAD_STEP]))
    }

    /// Starts from published or earlier weights instead of random ones; averages start from them too. Parameters of
    /// training alone keep their start.
    pub fn start_from(&mut self, path: &Path, weights: Named) -> Result<()> {
        let frozen = self.frozen();
        let params = &self.program.params;
        let own: Vec<usize> = (0..params.len()).filter(|&i| !train_only(&params[i].name)).collect();
        let mut wanted: Vec<(String, Type)> =
            own.iter().map(|&i| (params[i].name.clone(), Type::f32(params[i].dims.clone()))).collect();
        wanted.extend(frozen.iter().map(|(_, name, ty)| (name.clone(), ty.clone())));
        let arrays = tensors::fit(path, weights, &wanted)?;
        let mut start = dnx_models::init::init(params, self.resolved.config.train.seed);
        for (&i, array) in own.iter().zip(&arrays) {
            start[i] = array.reshaped(params[i].ty().dims);
        }
        for (i, array) in self.program.state_from(&start).iter().enumerate() {
            self.placed.write(i, array)?;
        }
        for (array, (i, ..)) in arrays[own.len()..].iter().zip(frozen) {
            self.placed.write(i, &array.reshaped(self.placed.ty(i).dims.clone()))?;
        }
        Ok(())
    }
}

/// Moves all files of a folder into another, removes it, and gives their names.
fn move_files(from: &Path, into: &Path) -> Result<Vec<String>> {
    let mut names = vec![];
    for entry in std::fs::read_dir(from).map_err(Error::io("cannot list", from))? {
        let path = entry.map_err(Error::io("cannot list", from))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        std::fs::rename(&path, into.join(&name)).map_err(Error::io("cannot move", &path))?;
        names.push(name);
    }
    std::fs::remove_dir(from).map_err(Error::io("cannot remove", from))?;
    Ok(names)
}

/// Files of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Model,
    Ema,
    Optimizer,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Place::Model => "model",
            Place::Ema => "ema",
            Place::Optimizer => "optimizer",
        }
    }
}

/// A tensor that checkpoints keep.
struct Saved {
    file: Place,
    name: String,
    /// As it is in the file.
    ty: Type,
    /// The input of the step that it is.
    input: usize,
}

/// Where a checkpoint keeps a state tensor, and under which name. A saved state is always that before the bad step;
/// continued with other settings it may go well, so that mark is not kept.
fn place_of(spec: &StateSpec) -> Option<(Place, String)> {
    let name = &spec.name;
    Some(match spec.role {
        Role::Param if train_only(name) => (Place::Optimizer, format!("param/{name}")),
        Role::Param => (Place::Model, name.clone()),
        Role::Ema => (Place::Ema, name.clone()),
        Role::Moment(i) => (Place::Optimizer, moment_name(i, name)),
        Role::Target => (Place::Optimizer, format!("target/{name}")),
        Role::Step | Role::LossScale | Role::GoodSteps | Role::Skipped | Role::Carry => {
            (Place::Optimizer, name.clone())
        }
        Role::BadStep => return None,
    })
}

/// The metric of the loss in a range of noise levels.
pub(super) fn level_name(i: usize) -> String {
    format!("loss_level_{i}")
}

fn moment_name(i: usize, name: &str) -> String {
    format!("moment{}/{name}", i + 1)
}
