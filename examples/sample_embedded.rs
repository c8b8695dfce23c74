//! Sampling inside another program, with no run folder: any function may play the network. Here it is the exact
//! denoiser of a Gaussian, so that the samples' mean and deviation are known.
//!
//! `cargo run --example sample_embedded`

use dnx::ir::Array;
use dnx::models::process::Preset;
use dnx::models::sample::{Denoiser, Grid, GridKind, Heun, SampleNoise, sample};

/// Mean and deviation of the data.
const MEAN: f64 = 1.5;
const STD: f64 = 0.25;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Preset::Sit.process();
    let seeds: Vec<u64> = (0..2000).collect();
    let dims = [seeds.len(), 1];
    // The velocity of the straight path at (x, t): E[n - x0 | x].
    let mut denoiser = Denoiser::new(&process, &dims, |call| {
        // All samples of a step are at one level.
        let (a, s) = (call.levels[0].alpha, call.levels[0].sigma);
        let variance = (a * STD).powi(2) + s * s;
        let velocity = |x: f32| {
            let innovation = (x as f64 - a * MEAN) / variance;
            (s * innovation - (MEAN + a * STD * STD * innovation)) as f32
        };
        Ok(Array::f32(dims, &call.x.to_f32_vec().into_iter().map(velocity).collect::<Vec<_>>()))
    });
    let grid = Grid::new(&process, GridKind::Uniform, 64, 1.0)?;
    let mut noise = SampleNoise::new(&seeds, 1);
    let samples = sample(&Heun, &mut denoiser, &grid, &mut noise, &mut |_, _, _| {})?;
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let std = (samples.iter().map(|&x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    println!("{} samples: mean {mean:.3} (data {MEAN}), deviation {std:.3} (data {STD})", samples.len());
    assert!((mean - MEAN).abs() < 0.03 && (std - STD).abs() < 0.03);
    Ok(())
}
