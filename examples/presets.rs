//! Every preset of `[process]`, trained on points in the plane: the energy distance of 4,000 samples to fresh points,
//! as the table in docs/presets.md.
//!
//! `cargo run --example presets [-- OUT.md [NAME..]]`
//!
//! With names only these rows are made anew; the others, and what follows the table, stay as they are in OUT.md.

use dnx::models::process::{Objective, Path as NoisePath, Preset, Process, Time};
use dnx::models::sample::{Denoiser, Generator, Grid, Noise, SampleNoise};
use dnx::runtime::Device;
use dnx::train::config::{Config, Source};
use dnx::train::data::Dataset;
use dnx::train::data::points::{PointSet, energy_distance};
use dnx::train::run::{Existing, RunFolder};
use dnx::train::{FitOptions, Trainer, sampling};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

const COUNT: usize = 4000;
const SETS: [(&str, PointSet); 3] = [
    ("two_moons", PointSet::TwoMoons),
    ("eight_gaussians", PointSet::EightGaussians),
    ("checkerboard", PointSet::Checkerboard),
];

/// How a preset is trained and sampled here.
struct Plan {
    preset: Preset,
    /// What its rows are called where they are not its preset's only ones.
    label: &'static str,
    /// Its name in configurations.
    name: &'static str,
    /// Steps of training.
    steps: u64,
    /// Keys of `[process]` beside the preset.
    process: &'static str,
    /// `[sample]`, or nothing where samples are made in one and two evaluations.
    sample: &'static str,
    /// The run it learns from.
    teacher: Option<&'static str>,
}

const HEUN: &str = "sampler = \"heun\"\nsteps = 32\n";
const FLOW: &str = "time_scale = 10.0\n";
/// The published schedule with another average: that of the schedule remembers 1,960 steps at its end.
const SHORT_CT: &str = "sigma_data = 1.0\ntime_scale = 1.0\nobjective = { kind = \"consistency\", steps = [2, 200], \
                        growth = \"root\", metric = \"l2\", levels = { kind = \"uniform\" }, inverse_gap = false, \
                        target = { kind = \"average\", decay = 0.95 } }\n";
/// Uniform times: of jumps from 1 to 0, those of the preset are too few for so short a training.
const EVEN_FLOW: &str = "time_scale = 10.0\ntime_law = { kind = \"uniform\", min = 0.0, max = 1.0 }\n";
const EDM: &str = "sigma_data = 1.0\ntime_scale = 1.0\n";

fn plans() -> Vec<Plan> {
    let plan = |preset, name, steps, process, sample| Plan {
        preset,
        label: name,
        name,
        steps,
        process,
        sample,
        teacher: None,
    };
    let taught = |preset, name, steps, process, teacher| Plan {
        preset,
        label: name,
        name,
        steps,
        process,
        sample: "",
        teacher: Some(teacher),
    };
    vec![
        plan(Preset::Sit, "sit", 1500, FLOW, HEUN),
        plan(Preset::RectifiedFlow, "rectified_flow", 1500, FLOW, HEUN),
        plan(Preset::Sd3, "sd3", 1500, FLOW, HEUN),
        plan(Preset::Edm, "edm", 1500, EDM, HEUN),
        plan(Preset::Edm2, "edm2", 1500, EDM, HEUN),
        plan(Preset::Ddpm, "ddpm", 1500, "time_scale = 0.1\n", "sampler = \"ddpm\"\nsteps = 250\n"),
        plan(
            Preset::Iddpm,
            "iddpm",
            1500,
            "time_scale = 0.1\nvariance = { kind = \"learned_range\", weight = 1e-3, bins = 0 }\n",
            "sampler = \"ddpm\"\nsteps = 250\nvariance = \"small\"\n",
        ),
        plan(Preset::Vp, "vp", 1500, FLOW, "sampler = \"heun\"\nsteps = 64\ngrid = \"karras\"\n"),
        plan(Preset::Ve, "ve", 1500, "time_scale = 1.0\n", "sampler = \"heun\"\nsteps = 64\n"),
        plan(Preset::Subvp, "subvp", 1500, FLOW, "sampler = \"heun\"\nsteps = 64\ngrid = \"karras\"\n"),
        plan(Preset::Dsm, "dsm", 1500, "time_scale = 1.0\n", "sampler = \"langevin\"\nsteps = 10\n"),
        plan(Preset::Ssm, "ssm", 1500, "time_scale = 1.0\n", "sampler = \"langevin\"\nsteps = 10\n"),
        plan(Preset::MeanFlow, "mean_flow", 3000, FLOW, ""),
        Plan { label: "mean_flow, uniform times", ..plan(Preset::MeanFlow, "mean_flow", 3000, EVEN_FLOW, "") },
        plan(Preset::Ct, "ct", 3000, EDM, ""),
        Plan { label: "ct, decay 0.95", ..plan(Preset::Ct, "ct", 3000, SHORT_CT, "") },
        plan(Preset::Ict, "ict", 3000, EDM, ""),
        taught(Preset::Cd, "cd", 3000, EDM, "edm"),
        plan(
            Preset::Sct,
            "sct",
            3000,
            "sigma_data = 1.0\ntime_scale = 3.0\nobjective = { kind = \"scm\", warmup = 1000 }\n",
            "",
        ),
        taught(
            Preset::Scd,
            "scd",
            3000,
            "sigma_data = 1.0\ntime_scale = 3.0\nobjective = { kind = \"scm\", source = \"teacher\", warmup = 1000 }\n",
            "edm",
        ),
        taught(Preset::Dmd2, "dmd2", 3000, EDM, "edm"),
    ]
}

fn config(plan: &Plan, set: &str, runs: &Path) -> String {
    let teacher = match plan.teacher {
        Some(name) => format!("[teacher]\npath = {:?}\n", runs.join(format!("{set}-{name}")).display().to_string()),
        None => String::new(),
    };
    let lr = if plan.teacher == Some("edm") && plan.preset == Preset::Dmd2 { "2e-4" } else { "1e-3" };
    let sample = if plan.sample.is_empty() { "sampler = \"euler\"\nsteps = 1\n" } else { plan.sample };
    format!(
        "[model]\nkind = \"mlp\"\nhidden = 128\ntime_width = 64\nclasses = 0\n[process]\npreset = \"{}\"\n{}\
         [data]\nkind = \"{set}\"\nbatch = 256\n[optim]\nkind = \"adam\"\nlr = {lr}\nclip = 5.0\n\
         schedule = {{ kind = \"cosine\", warmup = 100, end = 0.05 }}\n[ema]\ndecay = 0.998\n\
         [train]\nsteps = {}\nsample_every = 0\ncheckpoint_every = 0\nlog_every = 500\n\
         [log]\ntensorboard = false\n[sample]\n{sample}{teacher}",
        plan.name, plan.process, plan.steps
    )
}

/// Trains into a run's folder.
fn train(plan: &Plan, set: &str, runs: &Path, device: &Device) -> Result<Trainer, Box<dyn Error>> {
    let source = Source::new(plan.name, &config(plan, set, runs), &[])?;
    let raw: Config = source.parse()?;
    let data = Arc::new(Dataset::open(&raw.data, raw.train.seed)?);
    let mut trainer = Trainer::new(Config::resolve(source, Some(&data))?, device, data)?;
    let run = RunFolder::at(runs.join(format!("{set}-{}", plan.name)));
    let stop = AtomicBool::new(false);
    trainer.fit(&run, FitOptions { existing: &Existing::Replace, stop: &stop, quiet: true })?;
    Ok(trainer)
}

/// Samples as the configuration says, or in `evaluations` of the network.
fn draw(trainer: &Trainer, device: &Device, evaluations: Option<usize>) -> Result<Vec<[f32; 2]>, Box<dyn Error>> {
    let resolved = trainer.resolved();
    let mut generator = sampling::generator(resolved, device, &trainer.weights(true)?, COUNT)?;
    let seeds: Vec<u64> = (0..COUNT as u64).collect();
    let flat = match evaluations {
        None => sampling::sample(&mut generator, &resolved.config.sample, &seeds, None, None)?.to_f64_vec(),
        Some(n) => few(&mut generator, &resolved.process, &seeds, n)?,
    };
    Ok(flat.chunks_exact(2).map(|p| [p[0] as f32, p[1] as f32]).collect())
}

/// One or two evaluations: jumps of mean velocities, or estimates of the data that are made noisy again.
fn few(generator: &mut Generator, process: &Process, seeds: &[u64], n: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut noise = SampleNoise::new(seeds, 2);
    let domain = process.path.domain();
    let high = process.time_range[1];
    // Where the second evaluation is: usual places of each family.
    let middle = match process.path {
        NoisePath::Ve => 0.8,
        NoisePath::Trig { .. } => 1.1,
        _ => 0.5,
    };
    let level = |t: f64| process.level(Time::new(domain, t)?);
    let mut levels = vec![level(if matches!(process.path, NoisePath::Trig { .. }) { 1.565 } else { high })?];
    if n == 2 {
        levels.push(level(middle)?);
    }
    levels.push(process.path.clean());
    let grid = Grid { levels };
    let labels = vec![0; seeds.len()];
    let mut denoiser = Denoiser::of(process, &[seeds.len(), 2], generator.conditioned(&labels, 0));
    let std = dnx::models::sample::marginal_std(process, &grid.levels[0]);
    let mut x: Vec<f64> = noise.draw().iter().map(|z| std * z).collect();
    let jumps = matches!(process.objective, Objective::MeanFlow(_));
    for pair in grid.levels.windows(2) {
        let estimate = denoiser.estimate_jump(&x, &pair[0], &pair[1])?;
        if jumps {
            let (a, s) = pair[0].rates.ok_or("a continuous path")?;
            let h = pair[1].time - pair[0].time;
            for i in 0..x.len() {
                x[i] += h * (a * estimate.x0[i] + s * estimate.noise[i]);
            }
        } else {
            let z = noise.draw();
            for i in 0..x.len() {
                x[i] = pair[1].alpha * estimate.x0[i] + pair[1].sigma * z[i];
            }
        }
    }
    Ok(x)
}

const HEAD: &str = "# Presets

Every preset of `[process]` for points, trained on three sets of them by a perceptron of 3 layers of 128 and sampled from
averaged weights: the energy distance of 4,000 samples to 4,000 fresh points, less is better. Batch 256, Adam with
cosine decay from 1e-3 (dmd2: 2e-4), no labels. Made by `cargo run --example presets -- docs/presets.md`
on the cpu device; names after that make only those rows anew. Seconds are those of training and sampling all three,
on a machine that did other work too.

`ct` compares with an average whose published schedule ends with a memory of 1,960 steps, made for runs of 800,000;
in 3,000 it does not keep up. With an average of decay 0.95 and all else as published it does.
`mean_flow` rarely draws jumps from 1 to 0 with its published times; with uniform ones it learns them in so few steps.
`iddpm` is sampled with the posterior's variances. `rectified_flow` is `sit` by another name. `diffusion_forcing` and
`self_forcing` are of sequences; what they reach is in [processes.md](processes.md).

| preset | steps | evaluations | two moons | eight Gaussians | checkerboard | seconds |
|---|---|---|---|---|---|---|
";

/// What a row is of: its first cell.
fn subject(line: &str) -> &str {
    line.split('|').nth(1).unwrap_or_default().trim()
}

/// The rows of the table of an earlier page, and what follows it.
fn earlier(page: &str) -> (Vec<String>, String) {
    let mut lines = page.lines().skip_while(|line| !line.starts_with("|---"));
    lines.next();
    let rows = lines.by_ref().take_while(|line| line.starts_with('|')).map(str::to_string).collect();
    (rows, lines.map(|line| format!("{line}\n")).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().map(PathBuf::from);
    let wanted: Vec<String> = arguments.collect();
    let plans = plans();
    if let Some(name) = wanted.iter().find(|name| plans.iter().all(|plan| plan.label != **name)) {
        return Err(format!("there is no row {name}").into());
    }
    let (old, tail) =
        out.as_ref().and_then(|out| std::fs::read_to_string(out).ok()).map_or_else(Default::default, |p| earlier(&p));
    let device = Device::cpu();
    let runs = std::env::temp_dir().join(format!("dnx-presets-{}", std::process::id()));
    let fresh = |set: PointSet, seed: u64| set.generate(COUNT, seed, None).0;
    let floor: Vec<String> =
        SETS.iter().map(|(_, s)| format!("{:.4}", energy_distance(&fresh(*s, 101), &fresh(*s, 202)))).collect();
    let mut rows = vec![format!("| fresh points themselves | | | {} | |", floor.join(" | "))];
    for plan in &plans {
        if !wanted.is_empty() && wanted.iter().all(|name| name != plan.label) {
            rows.extend(old.iter().filter(|line| subject(line) == plan.label).cloned());
            continue;
        }
        for (name, _) in SETS {
            let teacher = plans.iter().find(|p| Some(p.label) == plan.teacher);
            if let Some(teacher) = teacher.filter(|t| !runs.join(format!("{name}-{}", t.name)).is_dir()) {
                train(teacher, name, &runs, &device)?;
            }
        }
        rows.extend(measured(plan, &runs, &device)?);
    }
    if let Some(out) = &out {
        std::fs::write(out, format!("{HEAD}{}\n\n{}", rows.join("\n"), tail.trim_start()))?;
    }
    std::fs::remove_dir_all(runs)?;
    Ok(())
}

/// The rows of a plan.
fn measured(plan: &Plan, runs: &Path, device: &Device) -> Result<Vec<String>, Box<dyn Error>> {
    let began = Instant::now();
    let ways: &[Option<usize>] = match (plan.sample.is_empty(), plan.preset) {
        (false, _) => &[None],
        (true, Preset::Dmd2) => &[Some(1)],
        (true, _) => &[Some(1), Some(2)],
    };
    let mut cells = vec![vec![]; ways.len()];
    for (name, set) in SETS {
        let trainer = train(plan, name, runs, device)?;
        for (cells, way) in cells.iter_mut().zip(ways) {
            let fresh = set.generate(COUNT, 101, None).0;
            cells.push(format!("{:.4}", energy_distance(&draw(&trainer, device, *way)?, &fresh)));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let row = |(cells, way): (&Vec<String>, &Option<usize>)| {
        let evaluations = way.map_or("many".to_string(), |n| n.to_string());
        let line =
            format!("| {} | {} | {evaluations} | {} | {seconds:.0} |", plan.label, plan.steps, cells.join(" | "));
        println!("{line}");
        line
    };
    Ok(cells.iter().zip(ways).map(row).collect())
}
