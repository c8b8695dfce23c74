//! Learned variances of reverse steps, and chains that end with no data at all.

// `!(x < y)` is meant where it stands: it refuses NaN too.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Graph};
use dnx_models::network::{Inputs, MlpConfig};
use dnx_models::params::Params;
use dnx_models::process::{Preset, Process, ProcessConfig, Time};
use dnx_models::sample::{
    Ddpm, Denoiser, Generator, Grid, GridKind, Model, NetworkCall, PosteriorVariance, SampleConfig, SampleNoise, sample,
};
use dnx_models::{DataSpec, Network};
use dnx_runtime::Device;

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

/// Data of a normal law with the variances of its reverse steps: those of the posterior, and what is not known of the
/// data on top. The network says where they lie between the posterior's and the forward step's.
struct Reverse<'a> {
    process: &'a Process,
    grid: &'a Grid,
    variance: f64,
}

impl Model for Reverse<'_> {
    fn forward(&mut self, call: &NetworkCall<'_>) -> dnx_models::Result<Array> {
        Ok(self.forward_ranges(call)?.0)
    }

    fn forward_ranges(&mut self, call: &NetworkCall<'_>) -> dnx_models::Result<(Array, Option<Array>)> {
        let from = call.levels[0];
        let at = self.grid.levels.iter().position(|l| l.time == from.time).expect("a level of the grid");
        let to = self.grid.levels[at + 1];
        let total = from.alpha.powi(2) * self.variance + from.sigma.powi(2);
        let noise: Vec<f64> = call.x.to_f64_vec().iter().map(|x| from.sigma / total * x).collect();
        // var(x_to | x_from) of the joint normal law.
        let before = to.alpha.powi(2) * self.variance + to.sigma.powi(2);
        let wanted = before - (from.alpha / to.alpha * before).powi(2) / total;
        let large = from.sigma.powi(2) - (from.alpha / to.alpha * to.sigma).powi(2);
        let small = large * (to.sigma / from.sigma).powi(2);
        let share = (wanted / small).ln() / (large / small).ln();
        let array = |v: &[f64]| Array::f32(call.x.dims(), &v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        assert_eq!(self.process.time_input(&from), call.times[0]);
        Ok((array(&noise), Some(array(&vec![if to.sigma > 0.0 { 2.0 * share - 1.0 } else { 0.0 }; noise.len()]))))
    }
}

/// With the right variances ancestral sampling is exact however few its steps are; with those of the posterior given
/// the data samples spread too little, with those of the forward step too much.
#[test]
fn learned_variances_make_few_steps_exact() {
    let p = process("preset = \"iddpm\"");
    let deviation = |variance: PosteriorVariance| {
        let grid = Grid::new(&p, GridKind::Uniform, 6, 1.0).unwrap();
        let model = Reverse { process: &p, grid: &grid, variance: 0.49 };
        let mut d = Denoiser::of(&p, &[20_000, 2], model);
        let mut noise = SampleNoise::new(&(0..20_000).collect::<Vec<_>>(), 2);
        let sampler = Ddpm { variance };
        // The chain's first state is normal with the deviation of its own level.
        let x = sample(&sampler, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
        (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt()
    };
    let [small, large, learned] =
        [PosteriorVariance::Small, PosteriorVariance::Large, PosteriorVariance::Learned].map(deviation);
    println!("deviations of samples of 0.7: small {small}, large {large}, learned {learned}");
    let last = Grid::new(&p, GridKind::Uniform, 6, 1.0).unwrap().levels[5];
    // The last step gives the mean, which takes what is not known of the data at the last level away.
    let rest = 1.0 / (1.0 / 0.49 + (last.alpha / last.sigma).powi(2));
    let want = (0.49 - rest).sqrt();
    assert!((learned - want).abs() < 0.006, "{learned}, not {want}");
    assert!(small < want - 0.02 && large > want + 0.02, "{small} {large}");
}

/// They are what a process that learned them is sampled with, and only such a process is.
#[test]
fn learned_variances_are_for_those_who_learned_them() {
    let ddpm: SampleConfig = toml::from_str("sampler = \"ddpm\"").unwrap();
    for (preset, want) in [(Preset::Iddpm, PosteriorVariance::Learned), (Preset::Ddpm, PosteriorVariance::Small)] {
        assert_eq!(ddpm.resolved(&preset.process()).variance, Some(want));
        let sampler = ddpm.sampler(&preset.process()).unwrap();
        assert_eq!(sampler.gaussian().is_some(), want == PosteriorVariance::Small);
    }
    let learned: SampleConfig = toml::from_str("sampler = \"ddpm\"\nvariance = \"learned\"").unwrap();
    let e = learned.sampler(&Preset::Ddpm.process()).err().unwrap().to_string();
    assert!(e.starts_with("sample.variance"), "{e}");
    // A function that gives none is no network of such a process.
    let p = Preset::Iddpm.process();
    let grid = Grid::new(&p, GridKind::Uniform, 3, 1.0).unwrap();
    let mut d = Denoiser::new(&p, &[1, 2], |call| Ok(call.x.clone()));
    let mut noise = SampleNoise::new(&[0], 2);
    let sampler = learned.sampler(&p).unwrap();
    let e = sample(&*sampler, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(e.contains("no variances"), "{e}");
}

/// A generator's network says its variances with its output, under guidance those of the wanted label.
#[test]
fn generators_read_the_second_half_of_the_output() {
    let p = process("preset = \"iddpm\"\ntime_scale = 0.1");
    let config = MlpConfig { hidden: 8, layers: 1, time_width: 4, classes: Some(2), ..MlpConfig::default() };
    let mut network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 2 }).unwrap();
    network.suit(&p);
    let specs = network.specs().unwrap();
    let weights: Vec<Array> = specs
        .iter()
        .enumerate()
        .map(|(i, s)| dnx_models::Init::Normal { std: 0.4 }.draw(&s.dims, dnx_ir::threefry::key(i as u64)))
        .collect();
    let g = Graph::new("both");
    let declared = Params::declare(&g, &specs);
    let inputs = Inputs::declare(&g, 2, &network).unwrap();
    let outputs = network.evaluate(&declared.root(), inputs, None);
    let func = g.finish(&[outputs.prediction, outputs.variance.unwrap()]).unwrap();
    let mut generator = Generator::new(&Device::cpu(), &network, &p, &weights, 2).unwrap();
    let level = p.level(Time::step(500, 1000).unwrap()).unwrap();
    let x = [0.3, -1.2, 0.7, 0.4];
    for cfg in [1.0, 2.5] {
        let labels = [1, 0];
        let guidance = SampleConfig { cfg, ..Default::default() }.guidance();
        let mut d = Denoiser::of(&p, &[2, 2], generator.conditioned(&labels, 2)).with_guidance(guidance);
        d.estimate(&x, &level).unwrap();
        let range = d.range().expect("variances").to_vec();
        let mut args = weights.clone();
        let floats = |v: &[f64]| Array::f32([v.len()], &v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        args.push(Array::f32([2, 2], &x.map(|v| v as f32)));
        args.extend([floats(&[50.0; 2]), floats(&[level.sigma; 2]), Array::i32([2], &labels)]);
        let want = eval(&func, &args, Precision::F32).unwrap()[1].to_f64_vec();
        for (a, b) in range.iter().zip(&want) {
            assert!((a - b).abs() < 1e-4, "{range:?}, not {want:?}");
        }
    }
}

/// A chain without data at its end is trained with every weighting that it may have.
#[test]
fn zero_terminal_snr_leaves_losses_finite() {
    for weighting in ["uniform", "noise", "data", "edm", "min_snr", "p2"] {
        for prediction in ["v", "x0"] {
            let kind = match weighting {
                "min_snr" => "{ kind = \"min_snr\", gamma = 5.0 }".to_string(),
                "p2" => "{ kind = \"p2\", gamma = 1.0, k = 1.0 }".to_string(),
                other => format!("{{ kind = \"{other}\" }}"),
            };
            let p = process(&format!(
                "preset = \"ddpm\"\nprediction = \"{prediction}\"\nzero_terminal_snr = true\nweighting = {kind}"
            ));
            let last = p.level(Time::step(999, 1000).unwrap()).unwrap();
            assert_eq!(last.alpha, 0.0);
            let factor = p.weighting.factor(&last, &p.coefficients(&last), p.sigma_data);
            // What says how far the noise is known says nothing here.
            let none = matches!(weighting, "noise" | "min_snr" | "p2");
            assert!(if none { factor == 0.0 } else { factor > 0.0 && factor.is_finite() }, "{weighting}: {factor}");
        }
    }
}
