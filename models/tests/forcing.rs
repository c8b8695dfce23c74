//! Sequences with a noise level for every token: the network, the objectives, and sampling with schedules of their own
//! against a Gaussian chain whose conditional expectations are known.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType, Graph, Type};
use dnx_models::Layout;
use dnx_models::loss::LossOptions;
use dnx_models::network::{Inputs, SequenceConfig};
use dnx_models::process::{Model, Process, ProcessConfig, Scene, SelfForcing, Teacher};
use dnx_models::sample::{
    Ddim, Denoiser, Forcing, GaussianStep, Generator, Grid, GridKind, NetworkCall, Noise, Renoise, Request,
    SampleConfig, SampleNoise, forced,
};
use dnx_models::step::key_array;
use dnx_models::{DataSpec, Network, Params, init};
use dnx_runtime::Device;

const TOKENS: usize = 4;
const BATCH: usize = 3;

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn sequence(tokens: usize, causal: bool, classes: usize) -> Network {
    let config = SequenceConfig { dim: 16, depth: 2, heads: 2, causal, ..SequenceConfig::default() };
    Network::Sequence(config).resolve(&DataSpec { dims: vec![tokens, 2], classes }).unwrap()
}

fn normal(dims: &[usize], seed: u64) -> Array {
    init::Init::Normal { std: 1.0 }.draw(dims, key(seed))
}

/// Weights with nothing at zero, so that every part of the network shows.
fn weights(network: &Network) -> Vec<Array> {
    let draw = |(i, s): (usize, dnx_models::ParamSpec)| match s.trainable {
        true => init::Init::Normal { std: 0.3 }.draw(&s.dims, key(70 + i as u64)),
        false => s.init.draw(&s.dims, key(0)),
    };
    network.specs().unwrap().into_iter().enumerate().map(draw).collect()
}

/// The network on states `[B, T, 2]` with times of this shape.
fn output(network: &Network, x: &[f32], times: &Array) -> Vec<f64> {
    let g = Graph::new("forward");
    let params = Params::declare(&g, &network.specs().unwrap());
    let time = g.constant(times.clone());
    let x = g.constant(Array::f32([BATCH, TOKENS, 2], x));
    let call = Inputs { x, time, sigma: time, label: None, second: None };
    let y = network.forward(&params.root(), call);
    let f = g.finish(&[y]).unwrap();
    eval(&f, &weights(network), Precision::F64).unwrap()[0].to_f64_vec()
}

#[test]
fn a_token_sees_its_own_time_and_of_a_causal_network_none_after_it() {
    let x = normal(&[BATCH, TOKENS, 2], 1).to_f32_vec();
    let mut times = vec![0.3f32; BATCH * TOKENS];
    let whole = Array::f32([BATCH], &[0.3; BATCH]);
    for causal in [true, false] {
        let network = sequence(TOKENS, causal, 0);
        let base = output(&network, &x, &Array::f32([BATCH, TOKENS], &times));
        assert_eq!(base, output(&network, &x, &whole), "one time is that of all tokens");
        // Token 2 of sample 1 is moved, in its value or in its time alone.
        let at = TOKENS + 2;
        let mut moved = x.clone();
        moved[2 * at] += 0.5;
        times[at] = 0.9;
        for changed in [
            output(&network, &moved, &Array::f32([BATCH, TOKENS], &[0.3; BATCH * TOKENS])),
            output(&network, &x, &Array::f32([BATCH, TOKENS], &times)),
        ] {
            for (i, (a, b)) in changed.iter().zip(&base).enumerate() {
                let (sample, token) = (i / 2 / TOKENS, i / 2 % TOKENS);
                let sees = sample == 1 && (token >= 2 || !causal);
                assert_eq!(a != b, sees, "causal {causal}, sample {sample}, token {token}: {a} {b}");
            }
        }
        times[at] = 0.3;
    }
}

/// Of a network that gives nothing the loss at a level is known, so per-token draws show: as many levels as tokens,
/// each counted once, and the mean of the losses at independent levels.
#[test]
fn diffusion_forcing_draws_a_level_for_every_token() {
    let (tokens, batch, bins) = (5, 400, 4);
    let p = process("preset = \"diffusion_forcing\"\nsigma_data = 1.0\nlabel_dropout = 0.0");
    let network = sequence(tokens, true, 0);
    let options = LossOptions {
        network: &network,
        process: &p,
        teacher: None,
        batch,
        accumulate: 1,
        level_bins: bins,
        layout: &Layout::single(),
    };
    let program = options.build().unwrap();
    let specs = program.params.iter().chain(&program.frozen);
    let mut inputs: Vec<Array> = specs.map(|s| s.init.draw(&s.dims, key(5))).collect();
    inputs.extend([key_array(key(3)), Array::u32([], &[1]), normal(&[batch, tokens, 2], 9)]);
    let out = eval(&program.func, &inputs, Precision::F64).unwrap();
    let (sums, counts) = (out[1].to_f64_vec(), out[2].to_f64_vec());
    let all = (batch * tokens) as f64;
    assert_eq!(counts.iter().sum::<f64>(), all);
    // Uniform in ln sigma, which the bins are even in.
    let even = (all / bins as f64 * (1.0 - 1.0 / bins as f64)).sqrt();
    assert!(counts.iter().all(|c| (c - all / bins as f64).abs() < 4.0 * even), "{counts:?}");
    // The first output is zero: x0 is estimated as c_skip x, whose weighted error is 1 for unit data at every level.
    for (sum, count) in sums.iter().zip(&counts) {
        assert!((sum / count - 1.0).abs() < 0.2, "{sums:?} {counts:?}");
    }
    assert!((out[0].get(0).to_f64() - 1.0).abs() < 0.07);
}

/// A stationary chain of unit variance, `x_t = r x_{t-1} + sqrt(1 - r^2) z`, in two independent coordinates.
const R: f64 = 0.8;

/// The expectation of clean tokens given noisy ones, each at its own level, on path ve: `C (C + S)^-1 x`, of a causal
/// network the last row of that for the tokens so far. All samples are at the same levels.
fn chain(tokens: usize, causal: bool) -> impl FnMut(&NetworkCall<'_>) -> dnx_models::Result<Array> {
    move |call: &NetworkCall<'_>| {
        assert_eq!(call.levels.len() * 2, call.x.elems(), "a level for each token");
        let cov = |i: usize, j: usize| R.powi((i as i32 - j as i32).abs());
        let weights: Vec<Vec<f64>> = (0..tokens)
            .map(|t| {
                let seen = if causal { t + 1 } else { tokens };
                let noise = |i: usize, j: usize| if i == j { call.levels[i].sigma.powi(2) } else { 0.0 };
                let row = |i: usize| (0..seen).map(|j| cov(i, j) + noise(i, j)).collect();
                solve((0..seen).map(row).collect(), (0..seen).map(|i| cov(t, i)).collect())
            })
            .collect();
        let x = call.x.to_f64_vec();
        let of = |x: &[f64]| -> Vec<f32> {
            let at = |w: &[f64], c: usize| w.iter().enumerate().map(|(i, w)| w * x[2 * i + c]).sum::<f64>() as f32;
            weights.iter().flat_map(|w| [at(w, 0), at(w, 1)]).collect()
        };
        Ok(Array::f32(call.x.dims(), &x.chunks(2 * tokens).flat_map(of).collect::<Vec<f32>>()))
    }
}

fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for j in i + 1..n {
            let f = a[j][i] / a[i][i];
            (i..n).for_each(|k| a[j][k] -= f * a[i][k]);
            b[j] -= f * b[i];
        }
    }
    for i in (0..n).rev() {
        b[i] = (b[i] - (i + 1..n).map(|k| a[i][k] * b[k]).sum::<f64>()) / a[i][i];
    }
    b
}

/// Mean of products of coordinates of tokens so far apart.
fn products(x: &[f64], tokens: usize, apart: usize) -> f64 {
    let mut sum = (0.0, 0.0);
    for x in x.chunks(2 * tokens) {
        for i in 0..2 * (tokens - apart) {
            sum = (sum.0 + x[i] * x[i + 2 * apart], sum.1 + 1.0);
        }
    }
    sum.0 / sum.1
}

/// Whole sequences, pyramids and one token after the other: the same law, from the same network.
#[test]
fn schedules_of_tokens_all_sample_the_joint_law() {
    let p = process("path = \"ve\"\nprediction = \"x0\"\nsigma_data = 1.0");
    let samples = 1500;
    let seeds: Vec<u64> = (0..samples as u64).collect();
    let steps = 160;
    let grid = Grid::new(&p, GridKind::Karras, steps, 1.0).unwrap();
    // Fresh noise in every step loses some of the variance, 6 % of it here, whatever the schedule.
    for (eta, kept) in [(0.0, 1.0), (1.0, 0.94)] {
        for (lag, causal) in [(0, false), (40, false), (steps, false), (steps, true)] {
            let mut d = Denoiser::of(&p, &[samples, TOKENS, 2], chain(TOKENS, causal));
            let forcing = Forcing { lag: Some(lag), history_sigma: 0.005, ..Forcing::default() };
            let noise = &mut SampleNoise::new(&seeds, 2 * TOKENS);
            let x = forced(&Ddim { eta }, &mut d, &grid, noise, &forcing, &mut |_, _, _| {}).unwrap();
            assert_eq!(d.evaluations(), steps + lag * (TOKENS - 1));
            for apart in 0..TOKENS {
                let (got, want) = (products(&x, TOKENS, apart), kept * R.powi(apart as i32));
                assert!((got - want).abs() < 0.06, "lag {lag}, eta {eta}, causal {causal}: {apart}: {got}, not {want}");
            }
        }
    }
}

/// Windows that continue each other: tokens beyond the network's length have the chain's law too.
#[test]
fn sequences_longer_than_the_network_keep_their_law() {
    let p = process("path = \"ve\"\nprediction = \"x0\"\nsigma_data = 1.0");
    let (samples, length) = (1500, 11);
    let seeds: Vec<u64> = (0..samples as u64).collect();
    let grid = Grid::new(&p, GridKind::Karras, 160, 1.0).unwrap();
    let mut d = Denoiser::of(&p, &[samples, TOKENS, 2], chain(TOKENS, true));
    let forcing = Forcing { length: Some(length), context: Some(1), history_sigma: 0.005, ..Forcing::default() };
    let noise = &mut SampleNoise::new(&seeds, 2 * TOKENS);
    let x = forced(&Ddim { eta: 0.0 }, &mut d, &grid, noise, &forcing, &mut |_, _, _| {}).unwrap();
    assert_eq!(x.len(), samples * length * 2);
    for token in [0, 4, 10] {
        let var: f64 = x.chunks(2 * length).map(|x| x[2 * token].powi(2)).sum::<f64>() / samples as f64;
        assert!((var - 1.0).abs() < 0.12, "token {token}: {var}");
    }
    // Neighbours within windows and across their seams.
    for token in 0..length - 1 {
        let of = |x: &[f64]| (0..2).map(|c| x[2 * token + c] * x[2 * token + 2 + c]).sum::<f64>();
        let got = x.chunks(2 * length).map(of).sum::<f64>() / (2 * samples) as f64;
        assert!((got - R).abs() < 0.09, "tokens {token} and {}: {got}", token + 1);
    }
    let wide = Forcing { length: Some(9), context: Some(TOKENS), ..Forcing::default() };
    let mut d = Denoiser::of(&p, &[1, TOKENS, 2], chain(TOKENS, true));
    let noise = &mut SampleNoise::new(&[0], 2 * TOKENS);
    let e = forced(&Ddim { eta: 0.0 }, &mut d, &grid, noise, &wide, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(e.starts_with("sample.forcing.context"), "{e}");
}

/// Noise that was drawn elsewhere.
struct Given(Vec<f64>);

impl Noise for Given {
    fn draw(&mut self) -> Vec<f64> {
        self.0.clone()
    }
}

/// What self forcing trains on is what the sampler makes of the same noise.
#[test]
fn roll_outs_in_training_are_those_of_the_sampler() {
    let p = process("preset = \"self_forcing\"\nsigma_data = 0.8");
    let network = sequence(TOKENS, true, 0);
    let values = weights(&network);
    let noise = normal(&[BATCH, TOKENS, 2], 21);
    let g = Graph::new("rolled");
    let specs = network.specs().unwrap();
    let declared = Params::declare(&g, &specs);
    let root = declared.root();
    let x0 = g.param("x0", Type::f32([BATCH, TOKENS, 2]));
    let seed = (g.constant(key_array(key(1))), g.scalar(DType::U32, 0.0));
    let draws = p.draw(&g, seed.0, seed.1, x0);
    let scene = Scene {
        model: Model { process: &p, network: &network, scope: &root },
        target: None,
        teacher: None,
        own: &root,
        x0,
        label: None,
        draws: dnx_models::process::Draws { noise: g.constant(noise.clone()), ..draws },
        seed,
        step: g.scalar(DType::F32, 0.0),
        carry: vec![],
    };
    let forcing = SelfForcing { steps: 1, ..SelfForcing::default() };
    let f = g.finish(&[scene.rolled_out(&forcing)]).unwrap();
    let args: Vec<Array> = values.iter().cloned().chain([normal(&[BATCH, TOKENS, 2], 2)]).collect();
    let trained = eval(&f, &args, Precision::F32).unwrap()[0].to_f64_vec();

    let config: SampleConfig =
        toml::from_str("sampler = \"consistency\"\nsteps = 2\nfinal_level = \"min\"\nforcing = {}").unwrap();
    let grid = config.grid(&p).unwrap();
    assert_eq!(grid.steps(), 1);
    let mut generator = Generator::new(&Device::cpu(), &network, &p, &values, BATCH).unwrap();
    let labels = [0; BATCH];
    let mut d = Denoiser::of(&p, &[BATCH, TOKENS, 2], generator.conditioned(&labels, 0));
    let z: Vec<f64> = noise.to_f64_vec();
    // The sampler starts at the deviation of noisy data, training at that of the noise.
    let top = grid.levels[0].sigma;
    let scale = top / dnx_models::sample::marginal_std(&p, &grid.levels[0]);
    let mut source = Given(z.iter().map(|z| z * scale).collect());
    let kernel = Renoise { floor: p.time_range[0] };
    let kernel: &dyn GaussianStep = &kernel;
    let sampled = forced(kernel, &mut d, &grid, &mut source, &config.forcing.unwrap(), &mut |_, _, _| {}).unwrap();
    for (a, b) in trained.iter().zip(&sampled) {
        assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} {b}");
    }
}

/// A sequence of one token that is made in one evaluation is a sample of distillation: the same loss and gradient.
#[test]
fn self_forcing_of_one_token_is_distribution_matching() {
    let own = process("preset = \"self_forcing\"\nsigma_data = 0.8\n[objective]\nkind = \"self_forcing\"\nsteps = 1");
    let plain = process(
        "preset = \"dmd2\"\nsigma_data = 0.8\n[objective]\nkind = \"distillation\"\ngenerator_weight = 0.0\n\
         head_weight = 0.0",
    );
    let network = sequence(1, true, 0);
    let teacher = Teacher { network: network.clone(), process: plain.clone(), weights: weights(&network) };
    let run = |p: &Process| {
        let options = LossOptions {
            network: &network,
            process: p,
            teacher: Some(&teacher),
            batch: 2,
            accumulate: 1,
            level_bins: 0,
            layout: &Layout::single(),
        };
        let program = options.build().unwrap();
        let draw =
            |(i, s): (usize, &dnx_models::ParamSpec)| init::Init::Normal { std: 0.3 }.draw(&s.dims, key(i as u64));
        let mut args: Vec<Array> = program.params.iter().enumerate().map(draw).collect();
        args.extend(program.frozen.iter().map(|s| s.init.draw(&s.dims, key(0))));
        args.extend([key_array(key(3)), Array::u32([], &[4]), normal(&[2, 1, 2], 9)]);
        let wrt: Vec<usize> = (0..program.params.len()).collect();
        let grad = dnx_autodiff::value_and_grad(&program.func, &wrt).unwrap();
        let out = eval(&grad, &args, Precision::F64).unwrap();
        (program.params.len(), out.iter().map(Array::to_f64_vec).collect::<Vec<_>>())
    };
    let ((n, a), (m, b)) = (run(&own), run(&plain));
    assert_eq!(n, m);
    let mut moved = 0;
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1e-6), "{a} {b}");
        moved += (*b != 0.0) as usize;
    }
    assert!(moved > 100, "gradients are there");
}

#[test]
fn impossible_forcing_says_why() {
    let fails = |text: &str, network: &Network| {
        let p = process(text);
        LossOptions {
            network,
            process: &p,
            teacher: None,
            batch: 2,
            accumulate: 1,
            level_bins: 0,
            layout: &Layout::single(),
        }
        .build()
        .err()
        .expect("an error")
        .to_string()
    };
    let mlp = Network::Mlp(Default::default()).resolve(&DataSpec { dims: vec![2], classes: 0 }).unwrap();
    let e = fails("preset = \"diffusion_forcing\"", &mlp);
    assert!(e.starts_with("model.kind") && e.contains("sequence"), "{e}");
    let e = fails("preset = \"self_forcing\"", &sequence(4, false, 0));
    assert!(e.starts_with("model.causal"), "{e}");
    let e = fails("preset = \"self_forcing\"", &sequence(4, true, 0));
    assert!(e.starts_with("teacher.path"), "{e}");
    let e = toml::from_str::<ProcessConfig>("preset = \"self_forcing\"\npath = \"linear\"\npreconditioning = \"none\"")
        .unwrap()
        .resolve()
        .unwrap_err()
        .to_string();
    assert!(e.starts_with("process.path"), "{e}");

    // Sampling: samplers without steps of one estimate, networks and trainings that know one level a sample.
    let forcing = |text: &str| toml::from_str::<SampleConfig>(text).unwrap();
    let p = process("preset = \"diffusion_forcing\"");
    let e = forcing("sampler = \"heun\"\nforcing = {}").sampler(&p).err().unwrap().to_string();
    assert!(e.starts_with("sample.forcing") && e.contains("heun"), "{e}");
    let e = forcing("sampler = \"ddim\"\nforcing = { history_sigma = 0.0 }").sampler(&p).err().unwrap().to_string();
    assert!(e.starts_with("sample.forcing.history_sigma"), "{e}");
    let config = forcing("sampler = \"ddim\"\nsteps = 4\nforcing = {}");
    let request = Request { seeds: &[0, 1], ..Request::default() };
    let sampled = |network: &Network, process: &Process, request: &Request<'_>| {
        let mut generator = Generator::new(&Device::cpu(), network, process, &weights(network), 2).unwrap();
        generator.run(&config, request, None).map(|a| a.dims().to_vec()).map_err(|e| e.to_string())
    };
    let e = sampled(&mlp, &process("preset = \"edm\""), &request).unwrap_err();
    assert!(e.starts_with("sample.forcing") && e.contains("whole sample"), "{e}");
    let network = sequence(TOKENS, true, 0);
    let e = sampled(&network, &process("preset = \"edm\""), &request).unwrap_err();
    assert!(e.starts_with("sample.forcing") && e.contains("diffusion_forcing"), "{e}");
    assert_eq!(sampled(&network, &p, &request).unwrap(), [2, TOKENS, 2]);
    let init = [0f32; 2 * TOKENS];
    let edit =
        dnx_models::sample::Edit { init: &init, strength: 1.0, keep: None, repaint: dnx_models::sample::Repaint::NONE };
    let e = sampled(&network, &p, &Request { edit: Some(edit), ..request }).unwrap_err();
    assert!(e.starts_with("sample.forcing"), "{e}");
}
