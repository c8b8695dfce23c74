//! Samples by recordings on a device against the same samplers on the host.

use dnx_codegen::Precision;
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType};
use dnx_models::network::{DitConfig, MlpConfig, SequenceConfig};
use dnx_models::process::{Level, Preset, Process, ProcessConfig};
use dnx_models::sample::{
    Denoiser, Edit, Generator, Guidance, Noise, Recording, Repaint, Request, SAMPLERS, SampleConfig, SampleNoise,
    SamplerKind, marginal_std, noised, sample, sample_from,
};
use dnx_models::{DataSpec, Network, ParamSpec, init};
use dnx_runtime::Device;

fn dit() -> Network {
    let config = DitConfig { dim: Some(12), depth: Some(1), heads: Some(3), patch: 2, ..DitConfig::default() };
    Network::Dit(config).resolve(&DataSpec { dims: vec![4, 4, 2], classes: 5 }).unwrap()
}

fn mlp() -> Network {
    let config = MlpConfig { hidden: 24, layers: 2, time_width: 10, ..MlpConfig::default() };
    Network::Mlp(config).resolve(&DataSpec { dims: vec![3], classes: 0 }).unwrap()
}

/// Weights with nothing at zero, so that every part of the network shows.
fn weights(network: &Network) -> Vec<Array> {
    let draw = |s: &ParamSpec| match s.trainable {
        true => init::Init::Normal { std: 0.15 }.draw(&s.dims, key(s.name.len() as u64)),
        false => s.init.draw(&s.dims, key(0)),
    };
    network.specs().unwrap().iter().map(draw).collect()
}

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

const LABELS: [i32; 3] = [1, 4, 0];

/// The samples that the host's own arithmetic makes, all in one batch.
fn by_host(generator: &mut Generator, config: &SampleConfig, seeds: &[u64], contrast: i32) -> Vec<f64> {
    let (process, dims) = (generator.process().clone(), generator.dims().to_vec());
    let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
    let elems = dims[1..].iter().product();
    let labels: Vec<i32> = (0..dims[0]).map(|i| LABELS[i % 3]).collect();
    let model = generator.conditioned(&labels, contrast);
    let mut denoiser = Denoiser::of(&process, &dims, model).with_guidance(config.guidance());
    let noise = &mut SampleNoise::new(seeds, elems);
    sample(&*sampler, &mut denoiser, &grid, noise, &mut |_, _, _| {}).unwrap()
}

fn by_device(generator: &mut Generator, config: &SampleConfig, request: &Request<'_>) -> Vec<f64> {
    let (process, guidance) = (generator.process().clone(), Guidance::NONE);
    let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
    assert!(Recording::of(&*sampler, &process, &grid, &guidance).unwrap().is_some(), "{config:?} is the host's");
    generator.run(config, request, None).unwrap().to_f64_vec()
}

/// The greatest difference, in units of the greatest element or 1.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

/// What rounding to `f32` may cost: some 30 units in the last place of the greatest element, in nine steps of a network
/// of slope about 1.
const BOUND: f64 = 2e-6;

/// Half a unit in the last place: solvers that go back to an earlier state find it rounded once, and at sigma 80 that is
/// more than the bound at the end.
const ROUNDED: f64 = 3e-8;

/// Every linear sampler on every kind of path, as the cpu device makes it.
#[test]
fn devices_make_what_the_host_makes() {
    let network = mlp();
    let weights = weights(&network);
    let mut compared = 0;
    for text in [
        "",
        "preset = \"edm\"",
        "preset = \"ve\"",
        "path = \"vp\"\nprediction = \"epsilon\"",
        "path = \"cosine\"\nprediction = \"v\"",
        "preset = \"ddpm\"",
    ] {
        let process = process(text);
        let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
        for row in SAMPLERS {
            let few = (row.kind == SamplerKind::Langevin).then_some(3);
            let config = SampleConfig { sampler: row.kind, steps: 9, langevin_steps: few, ..SampleConfig::default() };
            let Ok(sampler) = config.sampler(&process) else { continue };
            if !sampler.is_linear() || row.kind == SamplerKind::MeanFlow {
                continue;
            }
            compared += 1;
            let want = by_host(&mut generator, &config, &[7, 8], 0);
            let got = by_device(&mut generator, &config, &Request { seeds: &[7, 8], ..Request::default() });
            let first = marginal_std(&process, &config.grid(&process).unwrap().levels[0]);
            let start = SampleNoise::new(&[7, 8], 3).draw().iter().fold(0.0f64, |m, z| m.max(first * z.abs()));
            let off = distance(&got, &want);
            assert!(off < BOUND + ROUNDED * start, "{} on {text:?}: {off:e}", row.name);
        }
    }
    assert!(compared > 150, "{compared}");
}

/// Guidance where it acts, both kinds of programs in one run, labels to move away from, and what is done to the mixture.
#[test]
fn guidance_is_that_of_the_host() {
    let network = dit();
    let weights = weights(&network);
    let process = Preset::Sit.process();
    let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 3).unwrap();
    let mut seen = vec![];
    for text in [
        "cfg = 2.5",
        "cfg = 2.5\nguidance_interval = [0.3, 0.8]",
        "cfg = 0.0\nguidance_sigma_interval = [0.2, 3.0]",
        "cfg = 3.0\ncfg_channels = 1",
        "cfg = 3.0\ncfg_rescale = 0.7",
        "cfg = 3.0\ncfg_rescale = 1.0\ncfg_channels = 1\nsampler = \"dpmpp_2m\"",
        "cfg = 2.0\nsampler = \"euler_ancestral\"",
    ] {
        let config: SampleConfig = toml::from_str(&format!("steps = 5\n{text}")).unwrap();
        for negative in [None, Some(2)] {
            let request = Request { seeds: &[7, 8, 9], labels: Some(&LABELS), negative, edit: None };
            let got = by_device(&mut generator, &config, &request);
            let want = by_host(&mut generator, &config, &[7, 8, 9], negative.unwrap_or(5));
            let off = distance(&got, &want);
            assert!(off < BOUND, "{text:?}, {negative:?}: {off:e}");
            seen.push(got);
        }
    }
    for (i, a) in seen.iter().enumerate() {
        assert!(seen[..i].iter().all(|b| distance(a, b) > 1e-4), "each of these matters: {i}");
    }
}

/// Networks of two times, with variances of their own, and with levels of their tokens.
#[test]
fn networks_of_every_kind_are_played() {
    let of = |network: Network, text: &str, sampler: &str| {
        let process = process(text);
        let mut network = network;
        network.suit(&process);
        let weights = weights(&network);
        let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
        let config: SampleConfig = toml::from_str(&format!("steps = 5\n{sampler}")).unwrap();
        let labels = (network.classes() > 0).then_some(&LABELS[..2]);
        let got = by_device(&mut generator, &config, &Request { seeds: &[3, 4], labels, ..Request::default() });
        let off = distance(&got, &by_host(&mut generator, &config, &[3, 4], 0));
        assert!(off < BOUND, "{text} by {sampler}: {off:e}");
    };
    of(dit(), "preset = \"mean_flow\"", "sampler = \"mean_flow\"");
    of(dit(), "preset = \"iddpm\"", "sampler = \"ddim\"\neta = 0.5");
    let tokens = SequenceConfig { tokens: Some(4), dim: 16, depth: 1, heads: 2, ..SequenceConfig::default() };
    let tokens = Network::Sequence(tokens).resolve(&DataSpec { dims: vec![4, 2], classes: 0 }).unwrap();
    of(tokens, "preset = \"diffusion_forcing\"", "sampler = \"heun\"");
}

/// From sigma 80 to 0.002 in a thousand steps of a network that says nothing, so that each only scales the state: what a
/// state of one `f32` loses on the way is seen, and that a sum of two does not lose it.
#[test]
fn states_do_not_wear_off() {
    let network = mlp();
    let process = Preset::Edm.process();
    let zero = |a: &Array| if a.dtype() == DType::F32 { Array::zeros(a.ty().clone()) } else { a.clone() };
    let weights: Vec<Array> = weights(&network).iter().map(zero).collect();
    let config: SampleConfig = toml::from_str("sampler = \"euler\"\nsteps = 1000").unwrap();
    let seeds: Vec<u64> = (0..32).collect();
    let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
    let recording = Recording::of(&*sampler, &process, &grid, &Guidance::NONE).unwrap().unwrap();
    let worst = |got: &[f64], want: &[f64]| got.iter().zip(want).map(|(g, w)| ((g - w) / w).abs()).fold(0.0, f64::max);
    const ENOUGH: f64 = 2e-7;
    // Whatever the network's own precision is.
    let narrow = Precision::Bf16Storage;
    for (device, precision) in [(Device::cpu(), Precision::F32), (Device::cpu(), narrow), (software(), Precision::F32)]
    {
        let generator = Generator::new(&device, &network, &process, &weights, 32).unwrap();
        let mut generator = generator.with_precision(precision);
        let want = by_host(&mut generator, &config, &seeds, 0);
        let got = by_device(&mut generator, &config, &Request { seeds: &seeds, ..Request::default() });
        let std = marginal_std(&process, &grid.levels[0]);
        let updates = || recording.evaluations.iter().map(|e| e.update.state).chain([recording.last.state]);
        let single = |z: f64| f64::from(updates().fold((std * z) as f32, |x, c| c as f32 * x));
        let plain: Vec<f64> = SampleNoise::new(&seeds, 3).draw().into_iter().map(single).collect();
        assert!(worst(&got, &want) < ENOUGH, "{device:?}: {:e}", worst(&got, &want));
        assert!(worst(&plain, &want) > 3.0 * ENOUGH, "{:e}", worst(&plain, &want));
    }
}

fn software() -> Device {
    match Device::open(Some("vulkan:llvmpipe")) {
        Ok(device) => device,
        Err(e) => panic!("{e}\nThis test needs software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    }
}

/// The same on a GPU's driver, with and without draws, guided here and there.
#[test]
fn gpus_make_what_the_host_makes() {
    let network = dit();
    let weights = weights(&network);
    for (text, sampler) in [
        ("", "sampler = \"heun\"\ncfg = 2.0\nguidance_interval = [0.3, 0.8]"),
        ("preset = \"edm\"", "sampler = \"dpmpp_2m_sde\""),
        ("preset = \"ddpm\"", "sampler = \"lms\""),
    ] {
        let process = process(text);
        let mut generator = Generator::new(&software(), &network, &process, &weights, 3).unwrap();
        let config: SampleConfig = toml::from_str(&format!("steps = 6\n{sampler}")).unwrap();
        let request = Request { seeds: &[7, 8, 9], labels: Some(&LABELS), ..Request::default() };
        let got = by_device(&mut generator, &config, &request);
        let off = distance(&got, &by_host(&mut generator, &config, &[7, 8, 9], 5));
        assert!(off < BOUND, "{sampler} on {text:?}: {off:e}");
    }
}

/// A guided step of Heun's of the transformer that MNIST is trained with goes to the GPU at once: it is estimated to keep
/// the slowest class of GPUs busy for so short a time that it may. Of a small network several steps go at once, if
/// nothing is drawn between them.
#[test]
fn a_step_is_one_submission() {
    let shape = DitConfig { dim: Some(128), depth: Some(4), heads: Some(4), patch: 4, ..DitConfig::default() };
    let large = Network::Dit(shape).resolve(&DataSpec { dims: vec![28, 28, 1], classes: 10 }).unwrap();
    let (device, process) = (software(), Preset::Sit.process());
    for (network, sampler, batch, most) in
        [(large, "heun", 16, [3, 4]), (dit(), "heun", 2, [2, 2]), (dit(), "sde_heun", 2, [3, 4])]
    {
        let mut generator = Generator::new(&device, &network, &process, &weights(&network), batch).unwrap();
        let (seeds, labels) = ((0..batch as u64).collect::<Vec<u64>>(), vec![3; batch]);
        let mut of = |steps: usize| {
            let text = format!("sampler = \"{sampler}\"\nsteps = {steps}\ncfg = 2.0");
            let before = device.submissions();
            generator.sample(&toml::from_str(&text).unwrap(), &seeds, Some(&labels), None).unwrap();
            device.submissions() - before
        };
        let submissions = [of(2), of(3)];
        // The result is brought back in one more.
        assert!(submissions <= most, "{sampler}: {submissions:?} submissions for two and three steps");
    }
}

#[test]
fn seeds_and_batches_do_not_meet() {
    let network = dit();
    let weights = weights(&network);
    for sampler in ["heun", "euler_ancestral", "dpmpp_sde"] {
        let config: SampleConfig = toml::from_str(&format!("sampler = \"{sampler}\"\nsteps = 4\ncfg = 2.0")).unwrap();
        let of = |batch: usize, seeds: &[u64], labels: &[i32]| {
            let process = Preset::Sit.process();
            let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, batch).unwrap();
            generator.sample(&config, seeds, Some(labels), None).unwrap().to_f64_vec()
        };
        // Two batches and a ragged one, and each of its own.
        let all = of(3, &[0, 1, 2, 3, 4, 5, 6], &[0, 1, 2, 3, 4, 0, 1]);
        let each = all.len() / 7;
        for (seed, label) in [(3, 3), (6, 1)] {
            let alone = of(1, &[seed], &[label]);
            let off = distance(&alone, &all[seed as usize * each..(seed as usize + 1) * each]);
            assert!(off < BOUND, "{sampler}, seed {seed}: {off:e}");
        }
        // What is left of one batch in slots and noise is nothing to the next.
        assert_eq!(of(3, &[0, 1, 2], &[0, 1, 2]), all[..3 * each]);
    }
}

/// Whoever looks sees each state once, in order, as the host has it; the last is the sample.
#[test]
fn states_are_seen_by_those_who_look() {
    let network = dit();
    let (process, weights) = (Preset::Sit.process(), weights(&network));
    let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
    for text in
        ["steps = 4", "steps = 4\nsampler = \"lms\"", "steps = 4\nsampler = \"euler_maruyama\"\nlast_step = \"none\""]
    {
        let config: SampleConfig = toml::from_str(text).unwrap();
        let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
        let dims = generator.dims().to_vec();
        let mut want = vec![];
        {
            let mut denoiser = Denoiser::of(&process, &dims, generator.conditioned(&[1, 4], 5));
            let noise = &mut SampleNoise::new(&[5, 6], 32);
            sample(&*sampler, &mut denoiser, &grid, noise, &mut |step, level, x| {
                want.push((step, level.time, x.to_vec()));
            })
            .unwrap();
        }
        let mut got = vec![];
        let mut look = |first: usize, step: usize, level: &Level<f64>, x: &[f64]| {
            assert_eq!(first, 0);
            got.push((step, level.time, x.to_vec()));
        };
        let last = generator.sample(&config, &[5, 6], Some(&[1, 4]), Some(&mut look)).unwrap();
        assert_eq!(got.len(), want.len(), "{text}");
        for ((step, time, x), (own, at, want)) in got.iter().zip(&want) {
            assert_eq!((step, time), (own, at), "{text}");
            assert!(distance(x, want) < BOUND, "{text}, step {step}: {:e}", distance(x, want));
        }
        assert_eq!(got.last().unwrap().2, last.to_f64_vec(), "{text}");
    }
}

/// A run that begins with a picture is a run like any other.
#[test]
fn pictures_to_begin_with_are_played() {
    let network = dit();
    let (process, weights) = (Preset::Edm.process(), weights(&network));
    let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
    let config: SampleConfig = toml::from_str("steps = 8\nsampler = \"dpmpp_2m_sde\"").unwrap();
    let init: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
    let edit = Edit { init: &init, strength: 0.5, keep: None, repaint: Repaint::NONE };
    let request = Request { seeds: &[1, 2], labels: Some(&[1, 4]), edit: Some(edit), ..Request::default() };
    let got = generator.run(&config, &request, None).unwrap().to_f64_vec();
    let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap().tail(0.5).unwrap());
    let noise = &mut SampleNoise::new(&[1, 2], 32);
    let data: Vec<f64> = init.iter().map(|&x| f64::from(x)).collect::<Vec<_>>().repeat(2);
    let start = noised(&data, &grid.levels[0], noise);
    let dims = generator.dims().to_vec();
    let mut denoiser = Denoiser::of(&process, &dims, generator.conditioned(&[1, 4], 5));
    let want = sample_from(start, &*sampler, &mut denoiser, &grid, noise, &mut |_, _, _| {}).unwrap();
    assert!(distance(&got, &want) < BOUND, "{:e}", distance(&got, &want));
}

/// The step in which a state becomes infinite is named, and the next run knows nothing of it.
#[test]
fn states_that_are_not_finite_are_reported_with_their_step() {
    let network = mlp();
    let (process, fine) = (Preset::Sit.process(), weights(&network));
    let device = Device::cpu();
    let buffers = device.upload_all(&fine).unwrap();
    let mut generator = Generator::with_buffers(&device, &network, &process, buffers.clone(), 2).unwrap();
    let config: SampleConfig = toml::from_str("steps = 4\nsampler = \"lms\"").unwrap();
    let want = generator.sample(&config, &[1, 2], None, None).unwrap();
    let bad = fine.last().unwrap();
    let endless = Array::f32(bad.dims(), &vec![f32::INFINITY; bad.elems()]);
    buffers.last().unwrap().write(&endless).unwrap();
    let e = generator.sample(&config, &[1, 2], None, None).unwrap_err().to_string();
    assert!(e.contains("in step 0 (from time 1)"), "{e}");
    buffers.last().unwrap().write(bad).unwrap();
    assert_eq!(generator.sample(&config, &[1, 2], None, None).unwrap(), want);
}
