//! `[sample.inverse]`: measurements by name, on a Gaussian law whose posterior is known, and what is refused.

use dnx_ir::Array;
use dnx_ir::threefry::key;
use dnx_models::gmm::{Component, Gmm};
use dnx_models::network::DitConfig;
use dnx_models::process::{Preset, Process, ProcessConfig};
use dnx_models::sample::{Denoiser, Edit, Generator, INVERSES, Inverse, Repaint, Request, SampleConfig, SampleNoise};
use dnx_models::{DataSpec, Network, init};
use dnx_runtime::Device;

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

fn config(text: &str) -> SampleConfig {
    toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Data N(0.3, 0.8^2) in each of four numbers.
const MEAN: f64 = 0.3;
const STD: f64 = 0.8;
const GROUPS: usize = 800;

/// Samples `[GROUPS, 4]` by a method, of data of which `init` was measured.
fn solved(p: &Process, text: &str, init: [f64; 4], dims: &[usize], keep: Option<&[bool]>) -> Vec<f64> {
    let law = Gmm { components: vec![Component { weight: 1.0, mean: vec![MEAN; 4], std: STD }] };
    let config = config(text);
    let inverse: &Inverse = config.inverse.as_ref().unwrap();
    let measurement = inverse.measurement(&init, dims, keep).unwrap();
    let (sampler, grid) = (config.sampler(p).unwrap(), config.grid(p).unwrap());
    let particles = inverse.particles();
    let mut out = vec![];
    let at_once = if particles == 1 { GROUPS } else { 1 };
    for group in (0..GROUPS).step_by(at_once) {
        let seeds: Vec<u64> = (0..(at_once * particles) as u64).map(|i| group as u64 + (i << 20)).collect();
        let denoiser = Denoiser::of(p, &[seeds.len(), 4], law.model(p));
        let noise = &mut SampleNoise::new(&seeds, 4);
        let x = inverse.run(&measurement, &*sampler, denoiser, &grid, noise, group as u64, &mut |_, _, _| {}).unwrap();
        assert_eq!(x.len(), 4 * at_once, "one sample of a group");
        out.extend(x);
    }
    out
}

fn moments(x: &[f64], element: usize) -> (f64, f64) {
    let v: Vec<f64> = x.chunks(4).map(|x| x[element]).collect();
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64)
}

/// Two numbers measured as 1.4 and -0.2 with deviation 0.4: the posterior's mean and variance where the method is exact,
/// or nearly; what was not measured keeps its law.
#[test]
fn methods_sample_the_posterior() {
    let p = process("preset = \"edm\"\nsigma_data = 0.8");
    let (init, keep) = ([1.4, -0.2, 9.0, 9.0], [true, true, false, false]);
    let (data, error) = (STD * STD, 0.16);
    let gain = data / (data + error);
    let posterior = |y: f64| (MEAN + gain * (y - MEAN), data * (1.0 - gain));
    for (text, mean_within, var_within) in [
        ("sampler = \"ddim\"\nsteps = 60\ninverse = { method = \"pinv\", std = 0.4 }", 0.05, 0.2),
        ("sampler = \"heun\"\nsteps = 30\ninverse = { method = \"pinv\", std = 0.4 }", 0.05, 0.1),
        ("sampler = \"ddpm\"\nsteps = 30\ninverse = { method = \"tds\", std = 0.4, particles = 8 }", 0.06, 0.3),
        (
            "sampler = \"ddpm\"\nsteps = 30\ninverse = { method = \"steer\", std = 0.4, particles = 64, \
             resampling = \"stratified\" }",
            0.07,
            0.3,
        ),
    ] {
        let x = solved(&p, text, init, &[4], Some(&keep));
        for (element, y) in [(0, 1.4), (1, -0.2)] {
            let ((mean, var), (want, wide)) = (moments(&x, element), posterior(y));
            println!("{text}: {mean:.3} ({want:.3}), {var:.3} ({wide:.3})");
            assert!((mean - want).abs() < mean_within, "{text}: mean {mean}, not {want}");
            assert!((var / wide - 1.0).abs() < var_within, "{text}: variance {var}, not {wide}");
        }
        let (mean, var) = moments(&x, 2);
        assert!((mean - MEAN).abs() < 0.1 && (var / data - 1.0).abs() < 0.3, "{text}: {mean} {var} of the others");
    }
    // DPS knows no deviation: what was measured comes out, all but its step.
    let dps = "sampler = \"ddim\"\nsteps = 60\ninverse = { method = \"dps\", step = 0.3 }";
    let x = solved(&p, dps, init, &[4], Some(&keep));
    for (element, y) in [(0, 1.4), (1, -0.2)] {
        let misfit = x.chunks(4).map(|x| (x[element] - y).abs()).sum::<f64>() / GROUPS as f64;
        assert!(misfit < 0.15, "{misfit}");
    }
}

/// The mean of a box of four is measured: its deviation shrinks, and what is within it stays free.
#[test]
fn boxes_are_measured() {
    let p = process("preset = \"edm\"\nsigma_data = 0.8");
    let text = "sampler = \"heun\"\nsteps = 30\ninverse = { method = \"pinv\", std = 0.1, downsample = 2 }";
    let x = solved(&p, text, [1.0, 0.6, 0.8, 0.4], &[2, 2, 1], None);
    let means: Vec<f64> = x.chunks(4).map(|x| x.iter().sum::<f64>() / 4.0).collect();
    // The mean of four has variance 0.16; measured as 0.7 with variance 0.01.
    let want = MEAN + 0.16 / 0.17 * (0.7 - MEAN);
    let mean = means.iter().sum::<f64>() / GROUPS as f64;
    let var = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / GROUPS as f64;
    assert!((mean - want).abs() < 0.02, "{mean}, not {want}");
    assert!((var / (0.16 * 0.01 / 0.17) - 1.0).abs() < 0.3, "{var}");
    let (_, one) = moments(&x, 1);
    assert!((one / (0.64 * 0.75) - 1.0).abs() < 0.2, "{one}");
}

/// A generator runs each method on its network, whose samples then depend on their seeds alone.
#[test]
fn generators_solve_by_name() {
    let network = DitConfig { dim: Some(8), depth: Some(1), heads: Some(2), patch: 2, ..DitConfig::default() };
    let network = Network::Dit(network).resolve(&DataSpec { dims: vec![4, 4, 1], classes: 0 }).unwrap();
    let specs = network.specs().unwrap();
    let draw = |s: &dnx_models::ParamSpec| match s.trainable {
        true => init::Init::Normal { std: 0.2 }.draw(&s.dims, key(s.name.len() as u64)),
        false => s.init.draw(&s.dims, key(0)),
    };
    let weights: Vec<Array> = specs.iter().map(draw).collect();
    let p = Preset::Edm.process();
    let picture: Vec<f32> = (0..16).map(|i| (i as f32 * 0.9).sin()).collect();
    let keep: Vec<bool> = (0..16).map(|i| i % 3 == 0).collect();
    let run = |text: &str, batch: usize, seeds: &[u64], keep: Option<&[bool]>, strength: f64| {
        let mut generator = Generator::new(&Device::cpu(), &network, &p, &weights, batch).unwrap();
        let edit = Edit { init: &picture, strength, keep, repaint: Repaint::NONE };
        let request = Request { seeds, edit: Some(edit), ..Request::default() };
        generator.run(&config(text), &request, None).map(|a| a.to_f32_vec()).map_err(|e| e.to_string())
    };
    for (_, name, keys, _) in INVERSES {
        let particles = if keys.contains(&"particles") { 3 } else { 1 };
        let more = if particles > 1 { ", particles = 3" } else { "" };
        let masked = format!("sampler = \"ddpm\"\nsteps = 6\ninverse = {{ method = \"{name}\"{more} }}");
        let boxes = masked.replace(" }", ", downsample = 2 }");
        let batch = if particles > 1 { particles } else { 2 };
        let x = run(&masked, batch, &[4, 9, 7], Some(&keep), 1.0).unwrap();
        assert_eq!(x.len(), 3 * 16);
        assert_eq!(x[16..32], run(&masked, batch, &[9], Some(&keep), 1.0).unwrap(), "{name}");
        let y = run(&boxes, batch, &[4, 9, 7], None, 1.0).unwrap();
        assert!(x != y && y.iter().all(|v| v.is_finite()), "{name}");
        let e = run(&masked, batch, &[4], None, 1.0).unwrap_err();
        assert!(e.starts_with("sample.inverse.downsample"), "{e}");
        let e = run(&boxes, batch, &[4], Some(&keep), 1.0).unwrap_err();
        assert!(e.contains("leave one of them out"), "{e}");
        let e = run(&masked, batch, &[4], Some(&keep), 0.5).unwrap_err();
        assert!(e.starts_with("sample.inverse.method"), "{e}");
        if particles > 1 {
            assert!(run(&masked, 4, &[4], Some(&keep), 1.0).unwrap_err().contains("3 particles"));
        }
    }
    let e = run("sampler = \"ddpm\"\nsteps = 4\ninverse = { method = \"dps\", downsample = 3 }", 1, &[0], None, 1.0);
    assert!(e.unwrap_err().contains("3 by 3"));
}

#[test]
fn keys_and_samplers_that_do_not_fit_are_refused() {
    let p = Preset::Edm.process();
    for (text, want) in [
        ("sampler = \"heun\"\ninverse = { method = \"tds\" }", "sample.inverse.method"),
        ("sampler = \"ddim\"\ninverse = { method = \"tds\" }", "sample.inverse.method"),
        ("sampler = \"dpmpp_2m\"\ninverse = { method = \"steer\" }", "sample.inverse.method"),
        ("sampler = \"edm\"\ninverse = { method = \"steer\" }", "sample.inverse.method"),
        ("inverse = { method = \"dps\", particles = 4 }", "sample.inverse.particles"),
        ("inverse = { method = \"dps\", std = 0.1 }", "sample.inverse.std"),
        ("inverse = { method = \"pinv\", step = 0.1 }", "sample.inverse.step"),
        ("inverse = { method = \"pinv\", std = 0.0 }", "sample.inverse.std"),
        ("sampler = \"ddpm\"\ninverse = { method = \"tds\", potential = \"max\" }", "sample.inverse.potential"),
        ("sampler = \"ddpm\"\ninverse = { method = \"tds\", threshold = 1.5 }", "sample.inverse.threshold"),
        ("sampler = \"ddpm\"\ninverse = { method = \"tds\", particles = 0 }", "sample.inverse.particles"),
        ("sampler = \"ddim\"\nforcing = {}\ninverse = { method = \"dps\" }", "sample.inverse.method"),
    ] {
        let e = config(text).sampler(&p).err().unwrap_or_else(|| panic!("{text} is accepted")).to_string();
        assert!(e.starts_with(want), "{text}: {e}");
    }
    for text in [
        "sampler = \"ddim\"\neta = 0.5\ninverse = { method = \"tds\", resampling = \"residual\", threshold = 1.0 }",
        "sampler = \"edm\"\ns_churn = 20.0\ninverse = { method = \"steer\", potential = \"sum\" }",
    ] {
        config(text).sampler(&p).unwrap();
        let back: SampleConfig = toml::from_str(&toml::to_string(&config(text)).unwrap()).unwrap();
        assert_eq!(back, config(text));
    }
}
