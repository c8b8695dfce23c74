//! Mistakes that other programs of this field have made, one test each. Those of the same kind elsewhere:
//! `heun_second_slope_is_fresh` (solvers), `diffusion_of_the_reverse_sde_is_whole` (half the noise of the reverse SDE),
//! `defect_2_..`, `defect_3_..`, `defects_4_and_8_..` and `defect_of_002_..` (processes: scores of EDM and of mean
//! velocities, guided velocities, one level for a whole batch), `ddim_with_eta_one_is_ancestral_sampling` (samplers),
//! `only_the_first_channels_are_guided` (guidance), `golden_chains` (the first posterior variance).

use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType, Graph, Type};
use dnx_models::loss::{LossOptions, loss_program};
use dnx_models::network::{DitConfig, Inputs, MlpConfig};
use dnx_models::optim::{EmaConfig, OptimConfig};
use dnx_models::process::{Preset, Process, ProcessConfig, Time};
use dnx_models::sample::{
    Denoiser, Diffusion, Estimate, Euler, EulerMaruyama, Generator, Grid, GridKind, Guidance, Heun, LastStep,
    NetworkCall, Noise, PredictorCorrector, Request, Run, SampleConfig, SampleNoise, Sampler, Step, sample,
};
use dnx_models::step::{Role, StepOptions, key_array, train_step};
use dnx_models::{DataSpec, Layout, Network, Params, init};
use dnx_runtime::Device;
use std::cell::RefCell;

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

fn config(text: &str) -> SampleConfig {
    toml::from_str(text).unwrap()
}

fn dit() -> Network {
    let config = DitConfig { dim: Some(8), depth: Some(2), heads: Some(2), patch: 2, ..DitConfig::default() };
    Network::Dit(config).resolve(&DataSpec { dims: vec![4, 4, 1], classes: 3 }).unwrap()
}

/// The same noise in every draw.
struct Same(f64);

impl Noise for Same {
    fn draw(&mut self) -> Vec<f64> {
        vec![self.0; 2]
    }
}

/// Where one step of a sampler takes a state whose data and noise are estimated as these.
fn stepped(sampler: &dyn Sampler, p: &Process, times: [f64; 2], x: [f64; 2], z: f64, estimate: [f64; 2]) -> Vec<f64> {
    let level = |t| p.level(Time::new(p.path.domain(), t).unwrap()).unwrap();
    let grid = Grid { levels: vec![level(times[0]), level(times[1]), p.path.clean()] };
    let mut d =
        Denoiser::known(p, &[1, 2], |_, _| Ok(Estimate { x0: vec![estimate[0]; 2], noise: vec![estimate[1]; 2] }));
    let mut stepper = sampler.start(&Run { process: p, grid: &grid }).unwrap();
    let mut x = x.to_vec();
    stepper.step(&mut x, &mut d, &Step { index: 0, from: grid.levels[0], to: grid.levels[1] }, &mut Same(z)).unwrap();
    x
}

/// The calls of a guided sampler: states and numbers of branches.
fn guided_calls(sampler: &dyn Sampler, steps: usize) -> Vec<(Vec<f32>, usize)> {
    let p = Preset::Sit.process();
    let grid = Grid::new(&p, GridKind::Uniform, steps, 1.0).unwrap();
    let calls = RefCell::new(vec![]);
    let network = |call: &NetworkCall<'_>| {
        let x = call.x.to_f32_vec();
        calls.borrow_mut().push((x.clone(), call.branches.len()));
        // The two branches differ, so that guidance moves the state.
        let out = (0..call.branches.len()).flat_map(|b| x.iter().map(move |v| 0.5 * v + b as f32)).collect::<Vec<_>>();
        Ok(Array::f32([call.branches.len(), 2], &out))
    };
    let guidance = Guidance { scale: 2.0, ..Guidance::NONE };
    let mut d = Denoiser::of(&p, &[1, 2], network).with_guidance(guidance);
    sample(sampler, &mut d, &grid, &mut SampleNoise::new(&[3], 2), &mut |_, _, _| {}).unwrap();
    drop(d);
    calls.into_inner()
}

/// Under guidance the second slope took the conditional output of the first, so that Heun was Euler.
#[test]
fn defect_1_guided_heun_evaluates_both_branches_of_its_second_slope_anew() {
    let calls = guided_calls(&Heun, 4);
    assert_eq!(calls.len(), 7);
    assert!(calls.iter().all(|c| c.1 == 2));
    assert!(calls.windows(2).all(|pair| pair[0].0 != pair[1].0), "no state is seen twice in a row");
}

/// The last step of Euler-Maruyama gave the guide the wrong condition, which switched guidance off.
#[test]
fn defect_5_guidance_acts_in_the_last_step_of_euler_maruyama() {
    for last in [LastStep::Mean, LastStep::Tweedie, LastStep::Euler] {
        let calls = guided_calls(&EulerMaruyama { diffusion: Diffusion::Sigma, scale: 2.0, last }, 5);
        assert_eq!(calls.len(), 5);
        assert!(calls.iter().all(|c| c.1 == 2), "{last:?}");
    }
}

/// A constant diffusion crashed, another could not be chosen for a misspelt key; documentation said `sqrt(2 w)` where
/// the code had `sqrt(w)`.
#[test]
fn defect_5_every_diffusion_can_be_chosen_and_its_noise_is_the_root_of_w() {
    let p = Preset::Sit.process();
    let names = ["sigma", "constant", "linear", "decreasing", "increasing_decreasing", "concave"];
    for name in names {
        let c = config(&format!("sampler = \"euler_maruyama\"\ndiffusion = \"{name}\"\ndiffusion_scale = 0.7"));
        let sampler = c.sampler(&p).unwrap();
        let of = |z: f64| stepped(&*sampler, &p, [0.8, 0.5], [0.3, -0.4], z, [0.2, 0.6])[0];
        let (t, k) = (0.8f64, 0.7);
        let angle = std::f64::consts::PI * t;
        let w = match name {
            "sigma" | "linear" => k * t,
            "constant" => k,
            "decreasing" => 0.25 * (1.0 - k * angle.cos()).powi(2),
            "increasing_decreasing" => k * angle.sin().powi(2),
            _ => 0.25 * (1.0 + k * angle.sin()).powi(2),
        };
        let noise = of(1.0) - of(0.0);
        assert!((noise - (w * 0.3).sqrt()).abs() < 1e-12, "{name}: {noise}");
    }
    assert_eq!(names.len() + 1, Diffusion::ALL.len(), "and `reverse`, which begins later than at pure noise");
}

/// The reverse SDE's own diffusion is infinite at pure noise.
#[test]
fn defect_6_infinite_diffusions_are_refused_and_the_usual_one_is_finite() {
    let p = Preset::Sit.process();
    let e = config("sampler = \"euler_maruyama\"\ndiffusion = \"reverse\"").sampler(&p).err().unwrap().to_string();
    assert!(e.starts_with("sample.diffusion") && e.contains("time 1"), "{e}");
    let usual = config("sampler = \"euler_maruyama\"\nsteps = 8");
    let mut d = Denoiser::known(&p, &[1, 2], |x, _| Ok(Estimate { x0: vec![0.1; 2], noise: x.to_vec() }));
    let (sampler, grid) = (usual.sampler(&p).unwrap(), usual.grid(&p).unwrap());
    let x = sample(&*sampler, &mut d, &grid, &mut SampleNoise::new(&[1], 2), &mut |_, _, _| {}).unwrap();
    assert!(x.iter().all(|v| v.is_finite()), "{x:?}");
}

/// Averages of weights that start from zero without a correction are small for a long time.
#[test]
fn defect_7_averages_start_as_the_weights_and_forget_them_soon() {
    let config = MlpConfig { hidden: 8, layers: 1, time_width: 4, ..MlpConfig::default() };
    let network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 0 }).unwrap();
    let options = StepOptions { batch: 4, accumulate: 1, level_bins: 0, scaling: None, layout: Layout::single() };
    let optim = OptimConfig { lr: 1e-2, ..OptimConfig::default() };
    let program = train_step(&network, &Preset::Sit.process(), &optim, &EmaConfig::default(), &options).unwrap();
    let start = program.initial_state(1);
    let [average, weight] = [Role::Ema, Role::Param].map(|role| program.state_index(role, "layers.0.weight").unwrap());
    assert_eq!(start[average], start[weight]);
    let mut args = start.clone();
    args.extend(program.constants(1));
    args.push(init::Init::Normal { std: 1.0 }.draw(&[4, 2], key(3)));
    let after = eval(&program.func, &args, Precision::F64).unwrap();
    let of = |state: &[Array], at: usize| state[at].to_f64_vec();
    for ((old, new), averaged) in of(&start, weight).iter().zip(of(&after, weight)).zip(of(&after, average)) {
        // The first rate is 9 / 10, whatever the decay.
        assert!((averaged - (old + 0.9 * (new - old))).abs() < 1e-6, "{old} {new} {averaged}");
    }
}

/// Null labels 1000 and 10 were written into samplers: right for one data set alone.
#[test]
fn defect_8_the_null_label_is_the_number_of_classes() {
    let network = dit();
    let specs = network.specs().unwrap();
    let draw = |s: &dnx_models::ParamSpec| match s.trainable {
        true => init::Init::Normal { std: 0.3 }.draw(&s.dims, key(s.name.len() as u64)),
        false => s.init.draw(&s.dims, key(0)),
    };
    let weights: Vec<Array> = specs.iter().map(draw).collect();
    let mut generator = Generator::new(&Device::cpu(), &network, &Preset::Sit.process(), &weights, 2).unwrap();
    assert_eq!(generator.null_label(), 3);
    let guided = config("sampler = \"euler\"\nsteps = 3\ncfg = 2.0");
    let request = Request { seeds: &[0, 1], labels: Some(&[0, 2]), ..Request::default() };
    let mut run = |negative: Option<i32>| {
        let request = Request { negative, ..request };
        generator.run(&guided, &request, None).map(|a| a.to_f32_vec())
    };
    let usual = run(None).unwrap();
    assert_eq!(usual, run(Some(3)).unwrap());
    assert_ne!(usual, run(Some(1)).unwrap());
    assert!(run(Some(10)).is_err() && run(Some(1000)).is_err());
}

/// Score matching without a weight is all about the least noise.
#[test]
fn defect_of_002_score_matching_is_weighted_by_the_variance() {
    for preset in [Preset::Dsm, Preset::Ve] {
        let p = preset.process();
        for sigma in [0.01, 0.1, 0.9] {
            let level = p.level(Time::sigma(sigma).unwrap()).unwrap();
            let c = p.coefficients(&level);
            // The loss of an error of the noise is its square, whatever the level: sigma^2 on that of the score.
            let per_noise = p.weighting.factor(&level, &c, p.sigma_data) / c.solve(&level)[3].powi(2);
            assert!((per_noise - 1.0).abs() < 1e-9, "{preset:?} at {sigma}: {per_noise}");
        }
    }
}

/// Sliced score matching drew its directions from a key that did not exist.
#[test]
fn defect_of_002_sliced_score_matching_draws_its_directions() {
    let network = Network::Mlp(MlpConfig { hidden: 8, layers: 1, time_width: 4, ..MlpConfig::default() });
    let network = network.resolve(&DataSpec { dims: vec![2], classes: 0 }).unwrap();
    let program = loss_program(&network, &Preset::Ssm.process(), 4, 0).unwrap();
    let mut args = init::init(&program.params, 2);
    args.extend(init::init(&program.frozen, 2));
    args.extend([key_array(key(1)), Array::u32([], &[0]), init::Init::Normal { std: 1.0 }.draw(&[4, 2], key(3))]);
    let at = args.len() - 2;
    let mut losses = vec![];
    for counter in 0..4 {
        args[at] = Array::u32([], &[counter]);
        losses.push(eval(&program.func, &args, Precision::F64).unwrap()[0].get(0).to_f64());
    }
    assert!(losses.iter().all(|l| l.is_finite()));
    assert!(losses.windows(2).all(|l| l[0] != l[1]), "{losses:?}");
}

/// Annealed Langevin dynamics went up the levels.
#[test]
fn defect_of_002_annealed_langevin_goes_down_the_levels() {
    let p = Preset::Dsm.process();
    let grid = config("sampler = \"langevin\"\nsteps = 10").grid(&p).unwrap();
    assert!(grid.levels.windows(2).all(|pair| pair[0].sigma > pair[1].sigma));
    assert!((grid.levels[0].sigma - 1.0).abs() < 1e-9 && (grid.levels[9].sigma - 0.01).abs() < 1e-9);
}

/// A predictor of the wrong sign and scale; an ODE whose drift was half of what it is over sigma.
#[test]
fn defect_of_002_predictor_and_drift_have_their_sign_and_scale() {
    let p = Preset::Ve.process();
    let (from, to, x, n) = (2.0, 1.5, 0.7, -0.6);
    let score = -n / from;
    let predictor = PredictorCorrector { snr: 0.16, corrections: 0 };
    let variance: f64 = from * from - to * to;
    for z in [0.0, 1.3] {
        let got = stepped(&predictor, &p, [from, to], [x, x], z, [x - from * n, n])[0];
        assert!((got - (x + variance * score + variance.sqrt() * z)).abs() < 1e-12, "{got}");
    }
    // dx / dsigma = -sigma s.
    let got = stepped(&Euler, &p, [from, to], [x, x], 0.0, [x - from * n, n])[0];
    assert!((got - (x + (to - from) * (-from * score))).abs() < 1e-12, "{got}");
}

/// Adaptive layer norms that do not start at zero: a transformer whose blocks are not the identity at first.
#[test]
fn defect_of_003_a_new_transformer_gives_exactly_nothing() {
    let network = dit();
    let specs = network.specs().unwrap();
    let g = Graph::new("new");
    let params = Params::declare(&g, &specs);
    let [x, t] = [(vec![2, 4, 4, 1], 1), (vec![2], 2)].map(|(dims, seed)| {
        let values = init::Init::Normal { std: 1.0 }.draw(&dims, key(seed));
        g.constant(values)
    });
    let label = g.constant(Array::i32([2], &[0, 3]));
    let call = Inputs { x, time: t, sigma: t, label: Some(label), second: None };
    let scope = params.root();
    let outputs = network.evaluate(&scope, call, Some(1));
    let embedded = network.evaluate(&scope, call, Some(0));
    let f = g.finish(&[outputs.prediction, outputs.hidden.unwrap(), embedded.hidden.unwrap()]).unwrap();
    let weights: Vec<Array> = specs.iter().map(|s| s.init.draw(&s.dims, key(s.name.len() as u64))).collect();
    let out = eval(&f, &weights, Precision::F32).unwrap();
    assert!(out[0].to_f64_vec().iter().all(|v| *v == 0.0));
    assert_eq!(out[1], out[2], "the second block is the identity");
    assert!(out[1].to_f64_vec().iter().any(|v| *v != 0.0));
}

/// Aligned features that are all zero have no direction: without care, 0 / 0.
#[test]
fn defect_of_repa_tokens_without_direction_are_finite() {
    let p = process("[alignment]\nweight = 0.5\ndepth = 0\nwidth = 8\nfeatures = 6");
    let network = dit();
    let options = LossOptions {
        network: &network,
        process: &p,
        teacher: None,
        batch: 2,
        accumulate: 1,
        level_bins: 0,
        layout: &Layout::single(),
    };
    let program = options.build().unwrap();
    let zero = |s: &dnx_models::ParamSpec| Array::zeros(Type::new(DType::F32, s.dims.clone()));
    let mut args: Vec<Array> = program.params.iter().map(zero).collect();
    args.extend(init::init(&program.frozen, 0));
    let x = init::Init::Normal { std: 1.0 }.draw(&[2, 4, 4, 1], key(1));
    args.extend([key_array(key(1)), Array::u32([], &[0]), x, Array::i32([2], &[0, 1])]);
    let wrt: Vec<usize> = (0..program.params.len()).collect();
    let grad = dnx_autodiff::value_and_grad(&program.func, &wrt).unwrap();
    for result in eval(&grad, &args, Precision::F32).unwrap() {
        assert!(result.to_f64_vec().iter().all(|v| v.is_finite()));
    }
}
