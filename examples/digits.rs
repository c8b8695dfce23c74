//! MNIST by three processes, drawn side by side: the straight flow by 24 Heun steps, EDM's denoiser by the same, and
//! mean velocities in one evaluation. Digits 0 to 9 from left to right in each.
//!
//! `cargo run --release --example digits -- FOLDER [OUT.png]`
//!
//! FOLDER holds MNIST's idx files. Runs go to `runs/digits-*`, each about eight minutes on two processor cores, the last
//! one, whose steps take twice as long, half as much again; what is trained already is only drawn.

use dnx::ir::{Array, Type};
use dnx::models::sample::SampleConfig;
use dnx::runtime::Device;
use dnx::train::config::{Config, read_source};
use dnx::train::data::Dataset;
use dnx::train::log::picture::Picture;
use dnx::train::run::{Existing, RunFolder, find_checkpoint};
use dnx::train::{FitOptions, Trainer, checkpoint, sampling};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A run's name and what departs from configs/mnist_dit.toml.
const RUNS: [(&str, &[&str]); 3] = [
    ("flow", &["train.steps=4000"]),
    ("edm", &["train.steps=4000", "process.preset=edm", "process.time_scale=1.0"]),
    (
        "mean_flow",
        &[
            "train.steps=3000",
            "optim.betas=[0.9, 0.95]",
            "process.preset=mean_flow",
            "process.time_scale=1.0",
            "process.objective={kind=\"mean_flow\", kappa=0.5, instant=0.5}",
            "sample.sampler=mean_flow",
            "sample.steps=1",
            "sample.cfg=1.0",
        ],
    ),
];

/// Rows of a grid, pixels per pixel, pixels between digits, and between grids.
const ROWS: usize = 3;
const SCALE: usize = 2;
const GAP: usize = 2;
const APART: usize = 24;
const SIDE: usize = 28;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let data = arguments.next().ok_or("name the folder of MNIST's idx files")?;
    let out = arguments.next().unwrap_or_else(|| "digits.png".into());
    let device = Device::cpu();
    let cell = SIDE * SCALE + GAP;
    let width = 10 * cell + GAP;
    let mut picture = Picture::filled(3 * width + 2 * APART, ROWS * cell + GAP, [255; 3]);
    for (n, (name, sets)) in RUNS.iter().enumerate() {
        let folder = Path::new("runs").join(format!("digits-{name}"));
        if !folder.is_dir() {
            train(&folder, &data, sets, &device)?;
        }
        place(&mut picture, &draw(&folder, &device)?, n * (width + APART), cell);
    }
    std::fs::write(&out, picture.png()?)?;
    println!("{out}");
    Ok(())
}

fn train(folder: &Path, data: &str, sets: &[&str], device: &Device) -> Result<(), Box<dyn Error>> {
    let mut sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    sets.extend([format!("data.path={data}"), "train.sample_every=500".into()]);
    let source = read_source(Path::new("configs/mnist_dit.toml"), &sets)?;
    let raw: Config = source.parse()?;
    let data = Arc::new(Dataset::open(&raw.data, raw.train.seed)?);
    let mut trainer = Trainer::new(Config::resolve(source, Some(&data))?, device, data)?;
    let stop = AtomicBool::new(false);
    trainer.fit(&RunFolder::at(folder), FitOptions { existing: &Existing::Refuse, stop: &stop, quiet: false })?;
    Ok(())
}

/// `[ROWS * 10, 28, 28, 1]` from averaged weights, as the run's file says.
fn draw(folder: &Path, device: &Device) -> Result<Vec<f32>, Box<dyn Error>> {
    let (found, run) = find_checkpoint(folder)?;
    let run = run.ok_or("a run without a configuration")?;
    let resolved = Config::resolve(read_source(&run.config(), &[])?, None)?;
    let file = found.join("ema.safetensors");
    let specs = resolved.config.model.specs()?;
    let wanted: Vec<(String, Type)> = specs.iter().map(|s| (s.name.clone(), s.ty())).collect();
    let weights: Vec<Array> = checkpoint::tensors::fit(&file, checkpoint::tensors::read(&file)?, &wanted)?;
    let buffers: Vec<_> = wanted.into_iter().map(|(name, _)| name).zip(device.upload_all(&weights)?).collect();
    let seeds: Vec<u64> = (0..10 * ROWS as u64).collect();
    let mut generator = sampling::generator(&resolved, device, &buffers, seeds.len())?;
    let labels = sampling::labels(10, seeds.len(), None)?;
    let config: &SampleConfig = &resolved.config.sample;
    Ok(sampling::sample(&mut generator, config, &seeds, labels.as_deref(), None)?.to_f32_vec())
}

/// Puts a grid of digits into the picture.
fn place(picture: &mut Picture, digits: &[f32], left: usize, cell: usize) {
    let (columns, rows) = (10 * cell + GAP, ROWS * cell + GAP);
    for y in 0..rows {
        let at = 3 * (y * picture.width + left);
        picture.rgb[at..at + 3 * columns].fill(24);
    }
    for (n, digit) in digits.chunks_exact(SIDE * SIDE).enumerate() {
        let (x0, y0) = (left + n % 10 * cell + GAP, n / 10 * cell + GAP);
        for y in 0..SIDE * SCALE {
            for x in 0..SIDE * SCALE {
                let value = (digit[y / SCALE * SIDE + x / SCALE] * 127.5 + 128.0).clamp(0.0, 255.0) as u8;
                let at = 3 * ((y0 + y) * picture.width + x0 + x);
                picture.rgb[at..at + 3].fill(value);
            }
        }
    }
}
