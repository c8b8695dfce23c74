//! `dnx profile`: where the time of a training step goes.

use super::job::Job;
use super::print;
use crate::args::ProfileArgs;
use dnx::runtime::team::StretchKind;
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
    let job = Job::join()?;
    let team = job.team(args.device.as_deref(), resolved.layout.devices())?;
    let trainer = Trainer::over(resolved, &team, data)?;
    let name = args.config.display().to_string();
    let Some(bound) = trainer.placed().bound() else {
        timeline(args, &trainer, &name)?;
        drop((trainer, team));
        return job.leave();
    };
    let profile = Profile::of(bound, Rates::of(trainer.device())?, args.runs)?;
    if let Some(path) = &args.out {
        let trace = profile.trace(&name, trainer.device().name());
        write_atomic(path, format!("{trace}\n").as_bytes())?;
    }
    print(&profile.table())
}

/// Of several devices: when each computed, waited and exchanged.
fn timeline(args: &ProfileArgs, trainer: &Trainer, name: &str) -> Result<()> {
    let Some(bound) = trainer.placed().team() else { return Ok(()) };
    for _ in 0..args.runs {
        bound.run()?;
    }
    let timeline = bound.timeline()?;
    if let Some(path) = &args.out {
        write_atomic(path, format!("{}\n", timeline.trace(name)).as_bytes())?;
    }
    let ms = |rank: usize, kind| format!("{:9.3} ms", timeline.total(rank, kind).as_secs_f64() * 1e3);
    let mut text = format!("{:<6}{:>13}{:>13}{:>13}\n", "rank", "computes", "waits", "exchanges");
    for rank in trainer.team().ranks() {
        let [c, w, e] = [StretchKind::Compute, StretchKind::Wait, StretchKind::Exchange].map(|kind| ms(rank, kind));
        text.push_str(&format!("{rank:<6}{c:>13}{w:>13}{e:>13}\n"));
    }
    text.push_str(&format!("one run, {:.3} ms\n", timeline.end().as_secs_f64() * 1e3));
    print(&text)
}
