//! `[teacher]`: a trained network that another learns from.

use crate::checkpoint::{self, tensors};
use crate::config::{Config, Resolved, read_source};
use crate::run::find_checkpoint;
use crate::{Error, Result};
use dnx_ir::{Array, Type};
use dnx_models::process::{Preconditioning, TRAIN_ONLY, Teacher};
use dnx_models::step::TrainProgram;
use dnx_models::{Network, init};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[teacher]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// A run's folder, or one of its checkpoints.
    pub path: PathBuf,
    /// Whether its averaged weights are taken, where there are any.
    #[serde(default = "yes")]
    pub averaged: bool,
    /// Whether training starts from its weights. If absent: where network and process are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<bool>,
}

fn yes() -> bool {
    true
}

/// The teacher of a configuration, if it names one.
///
/// # Errors
/// If there is no such run, or its weights do not fit its configuration.
pub fn load(resolved: &Resolved) -> Result<Option<Teacher>> {
    let Some(config) = &resolved.config.teacher else { return Ok(None) };
    let (folder, run) = find_checkpoint(&config.path)?;
    let run = run.ok_or_else(|| {
        let message = format!("teacher {} is in no run's folder, so its config.toml is not known", folder.display());
        Error::Checkpoint(message)
    })?;
    let own = Config::resolve(read_source(&run.config(), &[])?, None)?;
    let file = if config.averaged && checkpoint::has(&folder, "ema") { "ema" } else { "model" };
    let wanted: Vec<(String, Type)> =
        own.config.model.specs()?.iter().map(|spec| (spec.name.clone(), spec.ty())).collect();
    let weights = tensors::fit(&checkpoint::single(&folder, file), checkpoint::load(&folder, file)?, &wanted)?;
    Ok(Some(Teacher { network: own.config.model, process: own.process, weights }))
}

/// Trainable parameters before the first step: those of the teacher where training starts from it, else drawn.
///
/// # Errors
/// If the configuration asks for the teacher's weights and they do not fit.
pub fn initial(resolved: &Resolved, program: &TrainProgram, teacher: Option<&Teacher>) -> Result<Vec<Array>> {
    let mut params = init::init(&program.params, resolved.config.train.seed);
    let (Some(config), Some(teacher)) = (&resolved.config.teacher, teacher) else { return Ok(params) };
    let alike = alike(resolved, teacher);
    match (config.start, &alike) {
        (Some(true), Err(why)) => return Err(resolved.source.wrong("teacher.start", why)),
        (Some(false), _) | (None, Err(_)) => return Ok(params),
        (Some(true) | None, Ok(())) => {}
    }
    let specs = teacher.network.specs()?;
    // A second network of training alone, as the fake score network, begins as the teacher too.
    let fake = format!("{TRAIN_ONLY}.fake.");
    for (param, spec) in params.iter_mut().zip(&program.params) {
        let name = spec.name.strip_prefix(&fake).unwrap_or(&spec.name);
        if let Some(at) = specs.iter().position(|s| s.name == name && s.dims == spec.dims) {
            *param = teacher.weights[at].clone();
        }
    }
    Ok(params)
}

/// Whether the teacher's weights mean the same in the network in training.
fn alike(resolved: &Resolved, teacher: &Teacher) -> std::result::Result<(), String> {
    let mut network: Network = teacher.network.clone();
    network.suit(&resolved.process);
    network.set_remat(resolved.config.train.remat);
    let (own, other) = (&resolved.process, &teacher.process);
    // A consistency model is EDM's, shifted by less than the least noise level.
    let scaling = |p: Preconditioning| if p == Preconditioning::Consistency { Preconditioning::Edm } else { p };
    let differs = [
        ("network", network != resolved.config.model),
        ("path", own.path != other.path),
        ("prediction", own.prediction != other.prediction),
        ("preconditioning", scaling(own.preconditioning) != scaling(other.preconditioning)),
        ("sigma_data", own.sigma_data != other.sigma_data),
        ("time_input", own.time_input != other.time_input || own.time_scale != other.time_scale),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(format!("is true, but the teacher's {what} is another, so its weights mean another")),
        None => Ok(()),
    }
}
