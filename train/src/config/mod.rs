//! Configurations: TOML files of sections, each a plain struct with visible defaults. `[model]`, `[process]`,
//! `[optim]` and `[ema]` are those of the models; the others are here and in [`crate::data`].
//!
//! A configuration is *resolved* once the data is known: what it left open is filled in, what contradicts itself
//! or the data is refused, and the result, written to the run folder, reproduces the run.

mod bytes;
pub mod load;

pub use bytes::Bytes;
use dnx_codegen::Options;
pub use dnx_codegen::{Precision, Wire};
pub use load::Source;

use crate::data::{DataConfig, Dataset};
pub use crate::teacher::TeacherConfig;
use crate::{Error, Result};
use dnx_models::network::Remat;
use dnx_models::optim::{EmaConfig, OptimConfig};
use dnx_models::process::{Process, ProcessConfig};
use dnx_models::sample::{GuidanceKind, SampleConfig};
use dnx_models::scaling::{GREATEST_SCALE, LossScaling};
use dnx_models::{DataSpec, Layout, Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: Network,
    /// Path, prediction, weighting, time law.
    #[serde(default)]
    pub process: ProcessConfig,
    /// A trained network that this one learns from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
    /// What is read and how it is batched.
    pub data: DataConfig,
    /// Optimizer and learning-rate schedule.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Average of the weights.
    #[serde(default)]
    pub ema: EmaConfig,
    /// The loop.
    #[serde(default)]
    pub train: TrainConfig,
    /// Defaults for pictures and `dnx sample`.
    #[serde(default)]
    pub sample: SampleConfig,
    /// Devices.
    #[serde(default)]
    pub mesh: MeshConfig,
    /// What is logged.
    #[serde(default)]
    pub log: LogConfig,
}

/// `[train]`: the loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps in all.
    pub steps: u64,
    /// Seed of everything random: initial weights, order of data, noise, times, dropped labels.
    pub seed: u64,
    /// How activations are stored and what matrix products read, in training and sampling: `f32`, `f16`,
    /// `bf16-storage`, `fp8-e4m3` or `fp8-e5m2`. Weights, sums and everything else are `f32`.
    pub precision: Precision,
    /// With `f16`: what the loss is multiplied with at first, a power of two. It is halved when a gradient overflows.
    pub loss_scale: u32,
    /// With `f16`: good steps in a row after which the loss scale is doubled.
    pub loss_scale_every: u32,
    /// Steps between checkpoints; the last step gets one in any case. 0: only the last.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, newest first; 0: all.
    pub keep: usize,
    /// Checkpoints at multiples of this many steps are kept in any case; 0: none.
    pub keep_every: u64,
    /// Steps between pictures of samples; the last step gets one in any case. 0: none at all.
    pub sample_every: u64,
    /// Samples in a picture, and what `dnx sample` draws by default.
    pub sample_count: usize,
    /// Steps between logged records.
    pub log_every: u64,
    /// Parts that a batch is worked through in, one after another, to save memory.
    pub accumulate: usize,
    /// What the backward pass recomputes: `none`, `block` or `group`.
    pub remat: Remat,
    /// Memory that a step may take, as `"24GiB"`: blocks are recomputed where it would take more. Without it, the
    /// memory of the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Bytes>,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            steps: 10_000,
            seed: 0,
            precision: Precision::F32,
            loss_scale: LossScaling::default().initial,
            loss_scale_every: LossScaling::default().growth_every,
            checkpoint_every: 1_000,
            keep: 3,
            keep_every: 0,
            sample_every: 1_000,
            sample_count: 64,
            log_every: 50,
            accumulate: 1,
            remat: Remat::None,
            memory_limit: None,
        }
    }
}

/// `[mesh]`: named axes of devices, and what they split; see [`dnx_models::layout`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeshConfig {
    /// What large values cross between devices as: `f32`, or half the bytes, rounded: `bf16` or `f16`. Losses, statistics,
    /// weights and their moments stay `f32`; with `f16` the loss is scaled as `train.precision = "f16"` does.
    pub transport: Wire,
    /// Sizes of axes by name.
    pub axes: BTreeMap<String, usize>,
    /// Parameter-name patterns to the axes that split each of their dims.
    pub rules: BTreeMap<String, Vec<String>>,
}

impl MeshConfig {
    /// Where tensors lie.
    ///
    /// # Errors
    /// Axes and rules that contradict each other.
    pub fn layout(&self) -> dnx_models::Result<Layout> {
        let axes = self.axes.iter().map(|(name, &size)| (name.as_str(), size));
        Layout::new(axes, self.rules.iter().map(|(pattern, dims)| (pattern.as_str(), &dims[..])))
    }
}

/// `[log]`: what is written beside checkpoints and pictures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// TensorBoard event files.
    pub tensorboard: bool,
    /// `metrics.jsonl`.
    pub jsonl: bool,
    /// Ranges of noise level of which the loss is logged (`loss_level_0` and so on, from the least) and charted in
    /// `levels.svg`; 0: none.
    pub levels: usize,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { tensorboard: true, jsonl: true, levels: 0 }
    }
}

/// A configuration whose open keys are filled in and that is known to be meaningful.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The configuration, every default written out.
    pub config: Config,
    /// Its process.
    pub process: Process,
    /// Where its keys were given, for later errors.
    pub source: Source,
    /// Where tensors lie over its mesh.
    pub layout: Layout,
}

impl Config {
    /// Reads a file with `--set` on top, and resolves it against `data` (or, where there is none, against the
    /// network alone, which must then be complete).
    pub fn resolve(source: Source, data: Option<&Dataset>) -> Result<Resolved> {
        let raw: Config = source.parse()?;
        raw.check(&source)?;
        let place = |e: dnx_models::Error| at_place(&source, e);
        let model = match data {
            Some(data) => raw.model.resolve(&spec(data)).map_err(place)?,
            None => complete(&raw.model).map_err(place)?,
        };
        let mut config = Config { model, ..raw };
        config.model.set_remat(config.train.remat);
        let mut process = config.process.resolve().map_err(place)?;
        process.objective.set_steps(config.train.steps);
        config.process = config.process.resolved().map_err(place)?;
        config.process.objective = Some(process.objective.clone());
        config.model.suit(&process);
        // A run cut shorter than its warm-up never gets to the schedule's shape, which must end somewhere all the same.
        let end = (config.train.steps as usize).max(config.optim.schedule.warmup + 1);
        config.optim.schedule = config.optim.schedule.resolve(end);
        config.optim.check().map_err(place)?;
        config.ema.check().map_err(place)?;
        config.sample.sampler(&process).map_err(place)?;
        config.sample.grid(&process).map_err(place)?;
        config.sample = config.sample.resolved(&process);
        let cfg = config.sample.guidance == GuidanceKind::Cfg && config.sample.cfg != 1.0;
        if cfg && config.model.classes() == 0 {
            return Err(source.wrong("sample.cfg", "guidance needs a network with classes; model.classes is 0"));
        }
        let layout = config.mesh.layout().map_err(place)?;
        Ok(Resolved { config, process, source, layout })
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Config(format!("the configuration can't be written: {e}")))
    }

    fn check(&self, source: &Source) -> Result<()> {
        let positive = |path: &str, value: u64| match value {
            0 => Err(source.wrong(path, "is 0; it must be at least 1")),
            _ => Ok(()),
        };
        positive("train.steps", self.train.steps)?;
        positive("train.log_every", self.train.log_every)?;
        positive("data.batch", self.data.batch as u64)?;
        positive("train.accumulate", self.train.accumulate as u64)?;
        if self.log.levels > 1000 {
            return Err(source.wrong("log.levels", "is more than 1000"));
        }
        positive("train.loss_scale_every", self.train.loss_scale_every as u64)?;
        let scale = self.train.loss_scale;
        if !scale.is_power_of_two() || scale as f64 > GREATEST_SCALE {
            let message = format!("is {scale}; it must be a power of two, at most {GREATEST_SCALE}");
            return Err(source.wrong("train.loss_scale", &message));
        }
        if self.train.steps >= u32::MAX as u64 {
            return Err(source.wrong("train.steps", "is more than 4,294,967,294, the most a run counts"));
        }
        if !self.data.batch.is_multiple_of(self.train.accumulate) {
            let message = format!("{} does not divide data.batch = {}", self.train.accumulate, self.data.batch);
            return Err(source.wrong("train.accumulate", &message));
        }
        Ok(())
    }
}

impl Resolved {
    /// Turns an error of the models into one that names the place in the configuration.
    pub fn locate(&self, error: dnx_models::Error) -> Error {
        at_place(&self.source, error)
    }

    /// How its programs are compiled, beyond what the device asks for (`base`).
    pub fn options(&self, base: Options) -> Options {
        base.with_precision(self.config.train.precision).with_wire(self.config.mesh.transport)
    }

    /// How the loss is scaled, if gradients are stored or cross between devices in a type of narrow range.
    pub fn scaling(&self) -> Option<LossScaling> {
        let train = &self.config.train;
        let crosses = self.layout.devices() > 1 && self.config.mesh.transport.needs_scaling();
        let scaling = LossScaling { initial: train.loss_scale, growth_every: train.loss_scale_every };
        (train.precision.needs_scaling() || crosses).then_some(scaling)
    }

    /// The number of samples a step takes.
    pub fn batch(&self) -> usize {
        self.config.data.batch
    }
}

/// Reads a file into a [`Source`].
pub fn read_source(path: &Path, sets: &[String]) -> Result<Source> {
    let text = std::fs::read_to_string(path).map_err(Error::io("cannot read", path))?;
    Source::new(&path.display().to_string(), &text, sets)
}

fn at_place(source: &Source, error: dnx_models::Error) -> Error {
    match error {
        dnx_models::Error::Config { key, message } => source.wrong(&key, &message),
        other => other.into(),
    }
}

/// What the models know about the data.
fn spec(data: &Dataset) -> DataSpec {
    DataSpec { dims: data.dims().to_vec(), classes: data.classes() }
}

/// The network without data: its own dims and classes are taken.
fn complete(model: &Network) -> dnx_models::Result<Network> {
    let dims = model.sample_dims()?;
    model.resolve(&DataSpec { dims, classes: model.classes() })
}
