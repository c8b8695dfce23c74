//! `dnx sample`.

use super::job::open as open_count;
use super::{open_devices, print};
use crate::args::SampleArgs;
use dnx::ir::{Array, Type};
use dnx::models::sample::{
    Edit, GRIDS, Generator, GuidanceKind, INVERSES, Inverse, Repaint, Request, SAMPLERS, SampleConfig,
};
use dnx::runtime::Device;
use dnx::train::config::{Config, Resolved, Source, read_source};
use dnx::train::data::Dataset;
use dnx::train::data::folder::decode;
use dnx::train::files::{refuse_existing, write_atomic};
use dnx::train::log::picture;
use dnx::train::run::find_checkpoint;
use dnx::train::sampling::{self, Trajectory};
use dnx::train::trainer::reference_points;
use dnx::train::{Error, Result, checkpoint, npy};
use std::ops::Range;
use std::path::Path;

/// What the file's extension asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Png,
    Npy,
    Npz,
    Gif,
}

pub fn run(args: &SampleArgs) -> Result<()> {
    if args.list {
        return print(&listed());
    }
    let format = format_of(&args.out)?;
    refuse_existing(&args.out, args.force)?;
    let run = args.run.as_deref().ok_or_else(|| Error::Usage("name a run's folder".into()))?;
    let (folder, run) = find_checkpoint(run)?;
    let run = run.ok_or_else(|| {
        let message = format!("{} is in no run's folder, so its config.toml is not known", folder.display());
        Error::Checkpoint(message)
    })?;
    let mut source = read_source(&run.config(), &settings(args)?)?;
    forget_unread(&mut source, &read_source(&run.config(), &[])?.parse()?, args);
    let resolved = Config::resolve(source, None)?;
    let network = &resolved.config.model;
    let seeds = match (&args.seeds, args.n) {
        (Some(text), _) => sampling::parse_seeds(text)?,
        (None, Some(0)) => return Err(Error::Usage("--n 0: ask for at least one sample".into())),
        (None, Some(n)) => (0..n).collect(),
        (None, None) => (0..resolved.config.train.sample_count.max(1) as u64).collect(),
    };
    let labels = sampling::labels(network.classes(), seeds.len(), args.class)?;
    let averaged = averaged(args.ema, args.no_ema, &folder)?;
    let weights = read_weights(&folder, averaged, &resolved)?;
    let negative = negative(network.classes(), args.negative_label)?;
    check_guidance(args, &resolved.config.sample)?;
    let painting = painting(args, &resolved)?;
    let mut devices = devices(args)?;
    let window = window(args, format)?;
    let inverse = resolved.config.sample.inverse.as_ref().filter(|_| painting.is_some());
    let batch = match inverse.map_or(1, Inverse::particles) {
        1 => (args.batch.max(1) as usize).min(seeds.len().div_ceil(devices.len()) * window).next_multiple_of(window),
        particles if format == Format::Gif => {
            let message = format!("--method: a sample is chosen of {particles} particles at the end; no .gif shows it");
            return Err(Error::Usage(message));
        }
        particles => particles,
    };
    let config = &resolved.config.sample;
    let drawn_on = |device: &mut Device, range: Range<usize>| -> Result<(Array, Vec<Vec<f32>>)> {
        let mut generator = loaded(&resolved, device, &weights, batch)?;
        if let Some(guide) = &args.guide {
            generator = generator.with_guide(guide_of(args, guide, device, batch)?)?;
        }
        let mut trajectory = (format == Format::Gif).then(|| Trajectory { frames: vec![] });
        let (seeds, labels) = (&seeds[range.clone()], labels.as_ref().map(|l| &l[range]));
        let request = Request { seeds, labels, negative, edit: painting.as_ref().map(|p| p.edit()) };
        let samples = match args.speculate {
            None => sampling::run(&mut generator, config, &request, trajectory.as_mut())?,
            Some(window) => drafted(&mut generator, config, &request, window)?,
        };
        Ok((samples, trajectory.map(|t| t.frames).unwrap_or_default()))
    };
    let parts = sampling::spread(&mut devices, seeds.len(), drawn_on).map_err(|e| located(&resolved, e))?;
    let (samples, frames) = joined(parts);
    let bytes = match format {
        Format::Png => drawn(&resolved, &samples.to_f32_vec())?.png()?,
        Format::Gif => {
            let pictures = frames.iter().map(|f| drawn(&resolved, f)).collect::<Result<Vec<_>>>()?;
            picture::gif(&pictures)?
        }
        Format::Npy => npy::npy(&samples),
        Format::Npz => archive(&samples, &seeds, labels.as_deref())?,
    };
    write_atomic(&args.out, &bytes)?;
    print(&format!("{}\n", args.out.display()))
}

/// The devices that draw: those of `--device`, as many as `--mesh` says.
fn devices(args: &SampleArgs) -> Result<Vec<Device>> {
    let Some(mesh) = &args.mesh else { return open_devices(args.device.as_deref()) };
    let count = mesh.strip_prefix("data=").and_then(|n| n.trim().parse::<usize>().ok()).filter(|&n| n > 0);
    let Some(count) = count else {
        let message = format!("--mesh {mesh}: samples are drawn side by side, by axis data alone; write data=2");
        return Err(Error::Usage(message));
    };
    let devices = open_count(args.device.as_deref(), count, 0)?;
    if devices.len() != count {
        let message =
            format!("--mesh {mesh}: --device gives {} devices; write --device cpu*{count}, say", devices.len());
        return Err(Error::Usage(message));
    }
    Ok(devices)
}

/// The samples of several devices as one array, and the frames of their trajectories side by side.
fn joined(parts: Vec<(Array, Vec<Vec<f32>>)>) -> (Array, Vec<Vec<f32>>) {
    let mut parts = parts.into_iter();
    let Some((first, mut frames)) = parts.next() else { return (Array::f32([0], &[]), vec![]) };
    let rest: Vec<(Array, Vec<Vec<f32>>)> = parts.collect();
    if rest.is_empty() {
        return (first, frames);
    }
    let mut dims = first.dims().to_vec();
    let mut all = first.to_f32_vec();
    for (samples, more) in rest {
        dims[0] += samples.dims()[0];
        all.extend(samples.to_f32_vec());
        frames.iter_mut().zip(more).for_each(|(frame, more)| frame.extend(more));
    }
    // Adaptive solvers may take other steps on each device: what all have seen is shown.
    frames.retain(|frame| frame.len() == all.len());
    (Array::f32(dims, &all), frames)
}

/// Samplers with the keys they read, grids, kinds of guidance, and what else steers samples.
fn listed() -> String {
    let mut out = "samplers (--sampler NAME) [keys of sample]:\n".to_string();
    for row in SAMPLERS {
        let keys = if row.keys.is_empty() { String::new() } else { format!(" [{}]", row.keys.join(", ")) };
        out.push_str(&format!("  {:<20} {}{keys}\n", row.name, row.about));
    }
    out.push_str("grids (--grid NAME):\n");
    for (name, about) in GRIDS {
        out.push_str(&format!("  {name:<20} {about}\n"));
    }
    out.push_str("guidance (--guidance NAME, --cfg SCALE):\n");
    for kind in GuidanceKind::ALL {
        out.push_str(&format!("  {:<14} {}\n", kind.name(), kind.about()));
    }
    out.push_str("pictures (--init FILE):\n");
    out.push_str(&format!("  {:<14} {}\n", "--strength S", "begin with its last steps (SDEdit)"));
    out.push_str(&format!("  {:<14} {}\n", "--mask FILE", "keep what is black in the mask (replacement)"));
    out.push_str(&format!("  {:<14} {}\n", "--repaint N", "go over what is filled in N times (RePaint)"));
    out.push_str("sequences (presets diffusion_forcing, self_forcing) [keys of sample.forcing]:\n");
    let about = "each token begins lag steps after the one before it; one after the other without it";
    out.push_str(&format!("  {:<14} {about} [lag, history_sigma, length, context]\n", "forcing"));
    out.push_str(
        "measurements (--init FILE with --mask FILE or --downsample SIDE; --method NAME) [keys of sample.inverse]:\n",
    );
    for (_, name, keys, about) in INVERSES {
        out.push_str(&format!("  {name:<14} {about} [{}]\n", keys.join(", ")));
    }
    out
}

/// A generator with these weights on the device.
pub fn loaded(resolved: &Resolved, device: &Device, weights: &[(String, Array)], batch: usize) -> Result<Generator> {
    let (names, arrays): (Vec<String>, Vec<Array>) = weights.iter().cloned().unzip();
    let buffers: Vec<_> = names.into_iter().zip(device.upload_all(&arrays)?).collect();
    sampling::generator(resolved, device, &buffers, batch)
}

/// The guide: another run's network with its own configuration, process and weights.
fn guide_of(args: &SampleArgs, guide: &Path, device: &Device, batch: usize) -> Result<Generator> {
    let (folder, run) = find_checkpoint(guide)?;
    let run = run.ok_or_else(|| {
        let message = format!("{} is in no run's folder, so its config.toml is not known", folder.display());
        Error::Checkpoint(message)
    })?;
    let resolved = Config::resolve(read_source(&run.config(), &[])?, None)?;
    let averaged = checkpoint::has(&folder, "ema") && !args.no_ema;
    let weights = read_weights(&folder, averaged, &resolved)?;
    loaded(&resolved, device, &weights, batch)
}

/// Steps of a window: 1 without speculation.
fn window(args: &SampleArgs, format: Format) -> Result<usize> {
    match args.speculate {
        Some(0) => Err(Error::Usage("--speculate 0: a window has at least one step".into())),
        Some(_) if format == Format::Gif => {
            Err(Error::Usage("--speculate: samples are at different steps, which no .gif can show".into()))
        }
        window => Ok(window.unwrap_or(1)),
    }
}

/// Samples by speculation; says what it saved.
fn drafted(generator: &mut Generator, config: &SampleConfig, request: &Request<'_>, window: usize) -> Result<Array> {
    let (samples, cost) = generator.speculate(config, request, window)?;
    eprintln!("speculation: {:.1} % of drafts kept, {} evaluations", 100.0 * cost.acceptance(), cost.rounds);
    Ok(samples)
}

/// Refuses what the guidance that is in force would not look at.
fn check_guidance(args: &SampleArgs, config: &SampleConfig) -> Result<()> {
    let kind = config.guidance;
    if args.guide.is_some() && kind != GuidanceKind::Autoguidance {
        return Err(Error::Usage(format!("--guide is of autoguidance, not of {}: leave one of them out", kind.name())));
    }
    if args.negative_label.is_some() && (kind != GuidanceKind::Cfg || config.cfg == 1.0) {
        return Err(Error::Usage("--negative-label is what --cfg moves away from: give a scale other than 1".into()));
    }
    Ok(())
}

/// The label of `--negative-label`.
fn negative(classes: usize, label: Option<u32>) -> Result<Option<i32>> {
    match label {
        Some(label) if label as usize >= classes => Err(Error::Usage(match classes {
            0 => format!("--negative-label {label}: this network has no classes"),
            _ => format!("--negative-label {label}: this network has classes 0 to {}", classes - 1),
        })),
        label => Ok(label.map(|l| l as i32)),
    }
}

/// What `--init` and `--mask` give.
struct Painting {
    init: Vec<f32>,
    keep: Option<Vec<bool>>,
    strength: f64,
    repaint: Repaint,
}

/// Steps that `--repaint` goes back.
const JUMP: usize = 10;

impl Painting {
    fn edit(&self) -> Edit<'_> {
        Edit { init: &self.init, strength: self.strength, keep: self.keep.as_deref(), repaint: self.repaint }
    }
}

fn painting(args: &SampleArgs, resolved: &Resolved) -> Result<Option<Painting>> {
    let Some(file) = &args.init else { return Ok(None) };
    let dims = resolved.config.model.sample_dims()?;
    let &[size, width, channels @ (1 | 3)] = &dims[..] else {
        return Err(Error::Usage(format!("--init: samples of dims {dims:?} are no pictures")));
    };
    if size != width {
        return Err(Error::Usage(format!("--init: pictures are read as squares, samples are {size} by {width}")));
    }
    let init = decode(file, size, channels)?.into_iter().map(|b| b as f32 / 127.5 - 1.0).collect();
    let keep = args.mask.as_ref().map(|mask| decode(mask, size, 1)).transpose()?;
    let keep = keep.map(|m| m.iter().flat_map(|&b| vec![b < 128; channels]).collect());
    let measured = args.mask.is_some() || resolved.config.sample.inverse.is_some();
    let strength = args.strength.unwrap_or(if measured { 1.0 } else { 0.5 });
    if !(0.0 < strength && strength <= 1.0) {
        return Err(Error::Usage(format!("--strength {strength}: it is a share of the steps, above 0 and at most 1")));
    }
    if args.repaint == 0 {
        return Err(Error::Usage("--repaint 0: each stretch is walked at least once".into()));
    }
    Ok(Some(Painting { init, keep, strength, repaint: Repaint { times: args.repaint, jump: JUMP } }))
}

/// Where another sampler or grid is asked for than the run's, what the run's file says to its own does not count.
fn forget_unread(source: &mut Source, run: &Config, args: &SampleArgs) {
    let own = run.sample.sampler.info();
    if args.sampler.as_deref().is_some_and(|name| name != own.name) {
        own.keys.iter().for_each(|key| source.forget(&format!("sample.{key}")));
    }
    if args.grid.as_deref().is_some_and(|name| name != "karras") {
        source.forget("sample.rho");
    }
}
fn format_of(path: &Path) -> Result<Format> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    Ok(match extension.as_str() {
        "png" => Format::Png,
        "npy" => Format::Npy,
        "npz" => Format::Npz,
        "gif" => Format::Gif,
        _ => {
            let message = format!("--out {}: its name must end in .png, .npy, .npz or .gif", path.display());
            return Err(Error::Usage(message));
        }
    })
}

/// The flags as settings over the run's `[sample]`.
fn settings(args: &SampleArgs) -> Result<Vec<String>> {
    let mut sets = args.set.clone();
    sets.extend(args.sampler.iter().map(|v| format!("sample.sampler={v}")));
    sets.extend(args.grid.iter().map(|v| format!("sample.grid={v}")));
    sets.extend(args.steps.iter().map(|v| format!("sample.steps={v}")));
    sets.extend(args.cfg.iter().map(|v| format!("sample.cfg={v:?}")));
    match args.method.as_deref() {
        Some("replacement") if args.mask.is_none() => {
            return Err(Error::Usage("--method replacement keeps what --mask says: give a mask".into()));
        }
        Some("replacement") if args.particles.is_some() => {
            return Err(Error::Usage("--particles: replacement has none; take --method tds or steer".into()));
        }
        Some("replacement") => {}
        method => {
            sets.extend(method.map(|v| format!("sample.inverse.method={v}")));
            sets.extend(args.downsample.map(|v| format!("sample.inverse.downsample={v}")));
            sets.extend(args.particles.map(|v| format!("sample.inverse.particles={v}")));
        }
    }
    let guided = args.guide.as_ref().map(|_| GuidanceKind::Autoguidance.name().to_string());
    sets.extend(args.guidance.clone().or(guided).map(|v| format!("sample.guidance={v}")));
    if let Some(text) = &args.guidance_interval {
        let wrong = || Error::Usage(format!("--guidance-interval {text}: write two times, as 0.1,0.8"));
        let (low, high) = text.split_once(',').ok_or_else(wrong)?;
        let number = |s: &str| s.trim().parse::<f64>().map_err(|_| wrong());
        sets.push(format!("sample.guidance_interval=[{:?}, {:?}]", number(low)?, number(high)?));
    }
    Ok(sets)
}

/// Whether the averaged weights are used.
pub fn averaged(asked: bool, refused: bool, folder: &Path) -> Result<bool> {
    let there = checkpoint::has(folder, "ema");
    if asked && !there {
        let message = format!("--ema: {} keeps no averaged weights (ema.decay was 0)", folder.display());
        return Err(Error::Usage(message));
    }
    Ok(there && !refused)
}

pub fn read_weights(folder: &Path, averaged: bool, resolved: &Resolved) -> Result<checkpoint::tensors::Named> {
    if folder.join("state.json").is_file() {
        checkpoint::verify(folder)?;
    }
    let file = if averaged { "ema" } else { "model" };
    let specs = resolved.config.model.specs()?;
    let wanted: Vec<(String, Type)> = specs.iter().map(|s| (s.name.clone(), s.ty())).collect();
    let (place, saved) = (checkpoint::single(folder, file), checkpoint::load(folder, file)?);
    let arrays = checkpoint::tensors::fit(&place, saved, &wanted)?;
    Ok(wanted.into_iter().map(|(name, _)| name).zip(arrays).collect())
}

pub fn located(resolved: &Resolved, error: Error) -> Error {
    match error {
        Error::Model(inner) => resolved.locate(inner),
        other => other,
    }
}

/// Samples as a picture; points over some of the data, where that is built in and so at hand.
fn drawn(resolved: &Resolved, samples: &[f32]) -> Result<picture::Picture> {
    let dims = resolved.config.model.sample_dims()?;
    let reference = match dims[..] {
        [2] | [_, 2] => reference_points(&Dataset::open(&resolved.config.data, resolved.config.train.seed)?)?,
        _ => vec![],
    };
    picture::draw(samples, &dims, &reference)
}

fn archive(samples: &Array, seeds: &[u64], labels: Option<&[i32]>) -> Result<Vec<u8>> {
    let words: Vec<u32> = seeds
        .iter()
        .map(|&s| {
            u32::try_from(s).map_err(|_| Error::Usage(format!("seed {s} does not fit .npz's u32 seeds; use .npy")))
        })
        .collect::<Result<_>>()?;
    let seeds = Array::u32([words.len()], &words);
    let labels = labels.map(|l| Array::i32([l.len()], l));
    let mut arrays = vec![("samples", samples), ("seeds", &seeds)];
    arrays.extend(labels.as_ref().map(|l| ("labels", l)));
    Ok(npy::npz(&arrays))
}
