//! `dnx profile`: where the time of a training step goes.

use super::{open_device, print};
use crate::args::ProfileArgs;
use dnx::train::Result;
use dnx::train::config::{Config, read_source};
use dnx::train::data::Dataset;
use dnx::train::estimate::Rates;
use dnx::train::files::{refuse_existing, write_atomic};
use dnx::train::profile::Profile;
use dnx::train::trainer::Trainer;
use std::sync::Arc;

pub fn run(args: &ProfileArgs) -> Result<()> {
    if let Some(path) = &args.out {
        refuse_existing(path, args.force)?;
    }
    let source = read_source(&args.config, &args.set)?;
    let raw: Config = source.parse()?;
    let data = Arc::new(Dataset::open(&raw.data, raw.train.seed)?);
    let resolved = Config::resolve(source, Some(&data))?;
    let device = open_device(args.device.as_deref())?;
    let rates = Rates::of(&device)?;
    let trainer = Trainer::new(resolved, &device, data)?;
    let profile = Profile::of(trainer.bound(), rates, args.runs)?;
    if let Some(path) = &args.out {
        let trace = profile.trace(&args.config.display().to_string(), device.name());
        write_atomic(path, format!("{trace}\n").as_bytes())?;
    }
    print(&profile.table())
}
