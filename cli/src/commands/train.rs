//! `dnx train`.

use super::job::Job;
use super::{bytes, mesh_setting, print, thousands};
use crate::args::TrainArgs;
use dnx::codegen::stats::Stats;
use dnx::train::config::{Config, read_source};
use dnx::train::data::Dataset;
use dnx::train::run::{Existing, RunFolder};
use dnx::train::{Error, FitOptions, Result, Trainer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub fn run(args: &TrainArgs) -> Result<()> {
    let mut sets = args.set.clone();
    sets.extend(args.steps.map(|n| format!("train.steps={n}")));
    sets.extend(args.seed.map(|n| format!("train.seed={n}")));
    if let Some(mesh) = &args.mesh {
        sets.push(mesh_setting(mesh)?);
    }
    let source = read_source(&args.config, &sets)?;
    let raw: Config = source.parse()?;
    let data = Arc::new(Dataset::open(&raw.data, raw.train.seed)?);
    let resolved = Config::resolve(source, Some(&data))?;
    let run = RunFolder::at(args.run.clone().unwrap_or_else(|| default_run(&args.config)));
    let existing = match (&args.resume, args.force) {
        (Some(checkpoint), _) => Existing::Resume(checkpoint.clone()),
        (None, true) => Existing::Replace,
        (None, false) => Existing::Refuse,
    };
    if !args.dry_run {
        // Before the compiler runs: a refusal should not take a minute.
        run.check(&existing)?;
    }
    let job = Job::join()?;
    let team = job.team(args.device.as_deref(), resolved.layout.devices())?;
    let began = Instant::now();
    let mut trainer = Trainer::over(resolved, &team, data)?;
    let compiled_in = began.elapsed();
    if let Some(note) = trainer.note() {
        eprintln!("{note}");
    }
    let stats = stats_of(&trainer);
    let summary = format!(
        "{} parameters, {:.2} Gflop a step, {} kernels, {} dispatches, peak memory {}, compiled in {:.1} s",
        thousands(stats.parameters_trainable),
        stats.flops as f64 / 1e9,
        stats.kernels,
        stats.dispatches,
        bytes(stats.peak_bytes),
        compiled_in.as_secs_f64()
    );
    if args.dry_run {
        let estimate = dnx::train::estimate::step_time(trainer.device(), &stats)?;
        let first = trainer.placed().is_first();
        drop((trainer, team));
        job.leave()?;
        let text = format!("{summary}\nabout {:.1} ms a step\n", estimate.as_secs_f64() * 1e3);
        return if first { print(&text) } else { Ok(()) };
    }
    let first = trainer.placed().is_first();
    if first {
        eprintln!("{summary}");
    }
    let stop = stop_flag()?;
    trainer.fit(&run, FitOptions { existing: &existing, stop: &stop, quiet: args.quiet })?;
    drop((trainer, team));
    job.leave()?;
    if first { print(&format!("{}\n", run.path().display())) } else { Ok(()) }
}

/// `runs/NAME`, or, for the `config.toml` of a run, that run.
fn default_run(config: &Path) -> PathBuf {
    let parent = config.parent().unwrap_or(Path::new("."));
    if config.file_name().is_some_and(|n| n == "config.toml") && parent.join("checkpoints").is_dir() {
        return parent.to_path_buf();
    }
    let stem = config.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Path::new("runs").join(stem)
}

fn stats_of(trainer: &Trainer) -> Stats {
    let program = trainer.program();
    let count = |specs: &[dnx::models::ParamSpec]| specs.iter().map(|s| s.elems() as u64).sum::<u64>();
    let trainable = count(&program.params);
    Stats::of(trainer.executable(), trainable + count(&program.frozen), trainable)
}

/// A flag that Ctrl-C sets; the second Ctrl-C ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nfinishing the step and writing a checkpoint; Ctrl-C again ends at once");
    })
    .map_err(|e| Error::Usage(format!("Ctrl-C can't be caught: {e}")))?;
    Ok(stop)
}
