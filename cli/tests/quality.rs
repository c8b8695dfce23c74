//! Sets of points learnt from the configurations, shortened to a part of their steps: 10,000 samples lie as close to fresh data as data
//! that was never seen, by the energy distance.

use dnx::models::sample::Generator;
use dnx::runtime::Device;
use dnx::train::config::{Config, read_source};
use dnx::train::data::Dataset;
use dnx::train::data::points::{PointSet, energy_distance};
use dnx::train::{Trainer, sampling};
use std::path::Path;
use std::sync::Arc;

const COUNT: usize = 10_000;
const STEPS: &str = "train.steps=1500";

/// Trains a configuration and gives its samples.
fn learnt(name: &str) -> Vec<[f32; 2]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name);
    let source = read_source(&path, &[STEPS.to_string()]).unwrap();
    let raw: Config = source.parse().unwrap();
    let data = Arc::new(Dataset::open(&raw.data, raw.train.seed).unwrap());
    let resolved = Config::resolve(source, Some(&data)).unwrap();
    let device = Device::cpu();
    let mut trainer = Trainer::new(resolved, &device, data.clone()).unwrap();
    let steps = trainer.resolved().config.train.steps;
    for step in 0..steps {
        trainer.step(&data.batch(step, trainer.resolved().batch()).unwrap()).unwrap();
    }
    assert_eq!(trainer.bad_step().unwrap(), None);
    let resolved = trainer.resolved();
    let mut generator: Generator =
        sampling::generator(resolved, &device, &trainer.weights(true).unwrap(), 1000).unwrap();
    let seeds: Vec<u64> = (0..COUNT as u64).collect();
    let labels = sampling::labels(resolved.config.model.classes(), COUNT, None).unwrap();
    let samples = sampling::sample(&mut generator, &resolved.config.sample, &seeds, labels.as_deref(), None).unwrap();
    samples.to_f32_vec().chunks_exact(2).map(|p| [p[0], p[1]]).collect()
}

/// Energy distance of samples to fresh data below twice that of two fresh sets to each other plus 0.01.
fn holds(name: &str, set: PointSet) {
    let samples = learnt(name);
    let (one, two) = (set.generate(COUNT, 101, None).0, set.generate(COUNT, 202, None).0);
    let (ours, theirs) = (energy_distance(&samples, &one), energy_distance(&two, &one));
    println!("{name}: {ours:.5} to fresh data, {theirs:.5} between fresh sets");
    assert!(ours < 2.0 * theirs + 0.01, "{name}: {ours} to fresh data, {theirs} between fresh sets");
}

#[test]
fn two_moons() {
    holds("two_moons.toml", PointSet::TwoMoons);
}

#[test]
fn swiss_roll() {
    holds("swiss_roll.toml", PointSet::SwissRoll);
}

#[test]
fn eight_gaussians() {
    holds("eight_gaussians.toml", PointSet::EightGaussians);
}
