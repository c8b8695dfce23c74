//! The gpu device against the cpu device: the same configuration gives the same losses and the same samples.

use dnx::runtime::{Device, DeviceKind};
use dnx::train::config::{Config, Source};
use dnx::train::data::Dataset;
use dnx::train::{Trainer, sampling};
use std::sync::Arc;

/// Any adapter; software ones are taken too.
fn gpu() -> Device {
    let adapter = Device::list().into_iter().find(|d| d.kind != DeviceKind::Cpu);
    let adapter = adapter.expect("no Vulkan, Metal or DX12 adapter: install libvulkan1 and mesa-vulkan-drivers");
    Device::open(Some(&adapter.name)).expect("a listed adapter opens")
}

const MLP: &str = r#"
[model]
kind = "mlp"
hidden = 48
[process]
preset = "edm"
[data]
kind = "eight_gaussians"
batch = 33
[optim]
lr = 1e-3
clip = 1.0
[sample]
steps = 6
cfg = 1.5
"#;

const DIT: &str = r#"
[model]
kind = "dit"
dim = 24
depth = 2
heads = 3
patch = 4
[process]
preset = "sit"
time_scale = 1000.0
[data]
kind = "shapes"
batch = 5
[optim]
lr = 1e-3
[sample]
steps = 4
cfg = 2.0
"#;

struct Outcome {
    losses: Vec<f64>,
    samples: Vec<f32>,
}

fn run(device: &Device, text: &str, steps: u64) -> Outcome {
    let source = Source::new("test.toml", text, &[]).unwrap();
    let raw: Config = source.parse().unwrap();
    let data = Arc::new(Dataset::open(&raw.data, raw.train.seed).unwrap());
    let resolved = Config::resolve(source, Some(&data)).unwrap();
    let mut trainer = Trainer::new(resolved, device, data.clone()).unwrap();
    let mut losses = vec![];
    for step in 0..steps {
        trainer.step(&data.batch(step, trainer.resolved().batch()).unwrap()).unwrap();
        losses.push(trainer.metrics().unwrap()[0].1);
    }
    let resolved = trainer.resolved();
    let mut generator = sampling::generator(resolved, device, &trainer.weights(true).unwrap(), 4).unwrap();
    let labels = sampling::labels(resolved.config.model.classes(), 4, None).unwrap();
    let samples =
        sampling::sample(&mut generator, &resolved.config.sample, &[0, 1, 2, 3], labels.as_deref(), None).unwrap();
    Outcome { losses, samples: samples.to_f32_vec() }
}

fn agree(text: &str) {
    agree_within(text, 20, 1e-4, 1e-2);
}

/// Relative differences of losses and absolute ones of samples stay under these bounds.
fn agree_within(text: &str, steps: u64, losses: f64, samples: f32) {
    let gpu = gpu();
    let (ours, theirs) = (run(&gpu, text, steps), run(&Device::cpu(), text, steps));
    for (step, (a, b)) in ours.losses.iter().zip(&theirs.losses).enumerate() {
        assert!(((a - b) / b).abs() < losses, "step {step}: loss {a} on {}, {b} on the cpu", gpu.name());
    }
    let largest = ours.samples.iter().zip(&theirs.samples).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < samples, "samples differ by {largest}");
}

#[test]
fn a_perceptron_trains_and_samples_alike() {
    agree(MLP);
}

#[test]
fn a_transformer_trains_and_samples_alike() {
    agree(DIT);
}

/// Sums in another order round to neighbours now and then, so bounds are those of the storage type.
#[test]
fn in_narrow_storage_they_train_and_sample_alike() {
    for (precision, text, losses, samples) in [("f16", DIT, 2e-3, 2e-2), ("bf16-storage", MLP, 2e-2, 0.15)] {
        agree_within(&format!("{text}[train]\nprecision = \"{precision}\"\n"), 4, losses, samples);
    }
}
