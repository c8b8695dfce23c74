//! What forcing is for, on sequences of points that go round a circle: roll-outs of a network that knows tokens of
//! different noise, beside one that does not, and of one that was trained on its own, beside one that was not.

use dnx_models::sample::{Ddim, Denoiser, Forcing, GaussianStep, Grid, Renoise, SampleNoise, forced};
use dnx_runtime::Device;
use dnx_train::config::{Config, Source};
use dnx_train::data::{Dataset, orbits};
use dnx_train::run::{Existing, RunFolder};
use dnx_train::{FitOptions, Trainer, sampling};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const TOKENS: usize = 4;
const COUNT: usize = 256;

/// Trains a transformer of two blocks; `optim` and `process` are keys of these tables.
fn train(process: &str, optim: &str, steps: u64, more: &str, folder: &Path, device: &Device) -> Trainer {
    let text = format!(
        "[model]\nkind = \"sequence\"\nclasses = 0\n[process]\nsigma_data = 0.75\ntime_scale = 4.0\n{process}\n\
         [data]\nkind = \"orbits\"\nlength = {TOKENS}\nbatch = 64\n[optim]\nkind = \"adam\"\nclip = 1.0\n\
         schedule = {{ kind = \"cosine\", warmup = 50, end = 0.05 }}\n{optim}\n[ema]\ndecay = 0.99\n\
         [train]\nsteps = {steps}\nsample_every = 0\ncheckpoint_every = 0\nlog_every = 100\n\
         [log]\ntensorboard = false\n{more}"
    );
    let source = Source::new("forcing.toml", &text, &[]).unwrap();
    let raw: Config = source.parse().unwrap();
    let data = Arc::new(Dataset::open(&raw.data, 0).unwrap());
    let mut trainer = Trainer::new(Config::resolve(source, Some(&data)).unwrap(), device, data).unwrap();
    let options = FitOptions { existing: &Existing::Refuse, stop: &AtomicBool::new(false), quiet: true };
    trainer.fit(&RunFolder::at(folder), options).unwrap();
    trainer
}

/// One token after the other, whatever the network was trained for.
fn rolled_out(trainer: &Trainer, kernel: &dyn GaussianStep, grid: &Grid, length: usize, device: &Device) -> Vec<f32> {
    let weights = trainer.weights(true).unwrap();
    let mut generator = sampling::generator(trainer.resolved(), device, &weights, COUNT).unwrap();
    let process = trainer.resolved().process.clone();
    let seeds: Vec<u64> = (0..COUNT as u64).collect();
    let labels = vec![0; COUNT];
    let mut denoiser = Denoiser::of(&process, &[COUNT, TOKENS, 2], generator.conditioned(&labels, 0));
    let forcing = Forcing { length: Some(length), ..Forcing::default() };
    let noise = &mut SampleNoise::new(&seeds, 2 * TOKENS);
    let x = forced(kernel, &mut denoiser, grid, noise, &forcing, &mut |_, _, _| {}).unwrap();
    x.into_iter().map(|v| v as f32).collect()
}

/// The median drift of sequences of this length.
fn drift(x: &[f32], length: usize) -> f64 {
    let mut all: Vec<f64> = x.chunks(2 * length).map(orbits::drift).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn grid(trainer: &Trainer, text: &str) -> Grid {
    let config: dnx_models::sample::SampleConfig = toml::from_str(text).unwrap();
    config.grid(&trainer.resolved().process).unwrap()
}

/// Energy distance of sequences as vectors, by pairs of two sets of equal size.
fn distance(a: &[f32], b: &[f32], each: usize) -> f64 {
    let mean = |a: &[f32], b: &[f32]| {
        let apart = |p: &[f32], q: &[f32]| p.iter().zip(q).map(|(p, q)| (p - q).powi(2)).sum::<f32>().sqrt() as f64;
        let row = |p: &[f32]| b.chunks(each).map(|q| apart(p, q)).sum::<f64>();
        a.chunks(each).map(row).sum::<f64>() / (a.len() / each * (b.len() / each)) as f64
    };
    2.0 * mean(a, b) - mean(a, a) - mean(b, b)
}

/// Sequences of the data, of another seed than those of training.
fn fresh(length: usize) -> Vec<f32> {
    let mut all = vec![0f32; COUNT * 2 * length];
    all.chunks_mut(2 * length).enumerate().for_each(|(i, x)| orbits::draw(77, i, None, x));
    all
}

#[test]
fn forcing_closes_the_gap_between_training_and_rolling_out() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::cpu();
    let usual = "lr = 2e-3";
    let whole = "preset = \"edm\"\ntime_law = { kind = \"log_uniform\", min = 0.002, max = 80.0 }";
    let whole = train(whole, usual, 1200, "", &dir.path().join("whole"), &device);
    let folder = dir.path().join("forcing");
    let forcing = train("preset = \"diffusion_forcing\"", usual, 1200, "", &folder, &device);

    // With one level for a whole sample in training, clean tokens before noisy ones are a state never seen.
    let many = "sampler = \"ddim\"\nsteps = 16\n";
    let ddim = Ddim { eta: 0.0 };
    for length in [TOKENS, 3 * TOKENS] {
        let [without, with] =
            [&whole, &forcing].map(|t| drift(&rolled_out(t, &ddim, &grid(t, many), length, &device), length));
        println!("16 evaluations a token, {length} tokens: drift {with:.3}, without forcing {without:.3}");
        assert!(with < 0.25 && with < 0.5 * without, "{length} tokens: {with}, not {without}");
    }

    // In two evaluations a token, estimates are means of what may follow, and the next token builds on them.
    let teacher = format!("[teacher]\npath = {:?}\n", folder.display().to_string());
    let process = "preset = \"self_forcing\"\nobjective = { kind = \"self_forcing\", steps = 2 }";
    let own = train(process, "lr = 5e-4\nbetas = [0.5, 0.99]", 600, &teacher, &dir.path().join("own"), &device);
    let few = "sampler = \"consistency\"\nsteps = 3\nfinal_level = \"min\"\n";
    let kernel = Renoise { floor: 0.002 };
    for length in [TOKENS, 3 * TOKENS] {
        let data = fresh(length);
        let [without, with] = [&forcing, &own]
            .map(|t| distance(&rolled_out(t, &kernel, &grid(t, few), length, &device), &data, 2 * length));
        println!("2 evaluations a token, {length} tokens: distance {with:.3}, without self forcing {without:.3}");
        assert!(with < 0.65 * without, "{length} tokens: {with}, not {without}");
    }
}
