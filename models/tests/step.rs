//! The training step, run by the reference interpreter.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType};
use dnx_models::network::{DitConfig, MlpConfig};
use dnx_models::optim::{EmaConfig, OptimConfig, Rule};
use dnx_models::process::{Preset, Process, ProcessConfig};
use dnx_models::step::{NO_BAD_STEP, Role, StepOptions, TrainProgram, key_array, loss_program, train_step};
use dnx_models::{DataSpec, Network, init};

fn small_mlp() -> Network {
    let config = MlpConfig { hidden: 16, layers: 2, time_width: 8, ..MlpConfig::default() };
    Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 0 }).unwrap()
}

fn small_dit() -> Network {
    let config =
        DitConfig { dim: Some(8), depth: Some(2), heads: Some(2), mlp_ratio: 2.0, patch: 2, ..DitConfig::default() };
    Network::Dit(config).resolve(&DataSpec { dims: vec![4, 4, 1], classes: 3 }).unwrap()
}

fn options(batch: usize) -> StepOptions {
    StepOptions { batch, accumulate: 1, level_bins: 0, scaling: None, ..StepOptions::default() }
}

fn normal_array(dims: &[usize], seed: u64) -> Array {
    init::Init::Normal { std: 1.0 }.draw(dims, key(seed))
}

struct Run<'a> {
    program: &'a TrainProgram,
    state: Vec<Array>,
    constants: Vec<Array>,
}

impl Run<'_> {
    fn new(program: &TrainProgram) -> Run<'_> {
        Run { program, state: program.initial_state(7), constants: program.constants(7) }
    }

    fn step(&mut self, batch: &[Array]) -> Vec<f64> {
        let args: Vec<Array> = self.state.iter().chain(&self.constants).chain(batch).cloned().collect();
        let mut results = eval(&self.program.func, &args, Precision::F32).unwrap();
        let metrics = results.split_off(self.program.state.len());
        self.state = results;
        metrics.iter().flat_map(|m| m.to_f64_vec()).collect()
    }

    fn get(&self, role: Role, name: &str) -> Vec<f64> {
        self.state[self.program.state_index(role, name).unwrap()].to_f64_vec()
    }
}

#[test]
fn ports_agree_with_the_function() {
    for network in [small_mlp(), small_dit()] {
        let process = Preset::Sit.process();
        let options = StepOptions { batch: 4, accumulate: 2, level_bins: 5, scaling: None, ..StepOptions::default() };
        let p = train_step(&network, &process, &OptimConfig::default(), &EmaConfig::default(), &options).unwrap();
        dnx_ir::verify::verify(&p.func).unwrap();
        let types = p.func.param_types();
        assert_eq!(p.batch_inputs().end, types.len());
        for (spec, ty) in p.state.iter().zip(&types) {
            assert_eq!(&&spec.ty, ty, "{}", spec.name);
        }
        for (port, i) in p.batch.iter().zip(p.batch_inputs()) {
            assert_eq!(&port.ty, types[i], "{}", port.name);
            assert_eq!(port.name, &*p.func.params[i].name);
        }
        let results = p.func.result_types();
        assert_eq!(p.metric_results().end, results.len());
        for &(input, output) in &p.donate {
            assert_eq!(types[input], results[output]);
        }
        for (port, i) in p.metrics.iter().zip(p.metric_results()) {
            assert_eq!(&port.ty, results[i], "{}", port.name);
        }
        let count = network.specs().unwrap().iter().filter(|s| s.trainable).count();
        assert_eq!(p.state.len(), 4 * count + 2);
        assert_eq!(p.initial_state(1).len(), p.state.len());
        assert_eq!(p.constants(1).len(), p.frozen.len() + 1);
    }
}

#[test]
fn losses_fall_and_the_average_follows() {
    let process = ProcessConfig { preset: Some(Preset::Sit), ..Default::default() }.resolve().unwrap();
    let optim = OptimConfig { lr: 1e-2, clip: 5.0, ..OptimConfig::default() };
    let program = train_step(&small_mlp(), &process, &optim, &EmaConfig::default(), &options(64)).unwrap();
    let mut run = Run::new(&program);
    let before = run.get(Role::Ema, "layers.0.weight");
    assert_eq!(before, run.get(Role::Param, "layers.0.weight"), "the average starts as the weights");
    let x = Array::f32([64, 2], &(0..128).map(|i| if i % 2 == 0 { 2.0 } else { -1.0 }).collect::<Vec<_>>());
    let losses: Vec<f64> = (0..60).map(|_| run.step(std::slice::from_ref(&x))[0]).collect();
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    // Data at one point: the velocity n - x0 = (x - x0) / t is learnt quickly.
    assert!(mean(&losses[50..]) < 0.6 * mean(&losses[..5]), "{losses:?}");
    assert_eq!(run.get(Role::Step, "step"), [60.0]);
    assert_eq!(run.get(Role::BadStep, "bad_step"), [NO_BAD_STEP as f64]);
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let (ema, now) = (run.get(Role::Ema, "layers.0.weight"), run.get(Role::Param, "layers.0.weight"));
    assert!(distance(&ema, &now) < distance(&before, &now));
}

#[test]
fn draws_depend_on_seed_and_counter_alone() {
    let network = small_mlp();
    let p = loss_program(&network, &Preset::Edm.process(), 8, 0).unwrap();
    let params = init::init(&p.params, 1);
    let x = normal_array(&[8, 2], 2);
    let loss = |seed: u64, counter: u32| {
        let mut args = params.clone();
        args.extend([key_array(key(seed)), Array::u32([], &[counter]), x.clone()]);
        eval(&p.func, &args, Precision::F32).unwrap()[0].get(0).to_f64()
    };
    assert_eq!(loss(1, 0), loss(1, 0));
    assert_ne!(loss(1, 0), loss(1, 1));
    assert_ne!(loss(1, 0), loss(2, 0));
}

#[test]
fn a_bad_step_changes_nothing_and_is_remembered() {
    let optim = OptimConfig { lr: 1e-2, ..OptimConfig::default() };
    let program = train_step(&small_mlp(), &Preset::Sit.process(), &optim, &EmaConfig::default(), &options(4)).unwrap();
    let mut run = Run::new(&program);
    let good = normal_array(&[4, 2], 3);
    run.step(std::slice::from_ref(&good));
    let before = run.state.clone();
    let mut data = good.to_f32_vec();
    data[3] = f32::NAN;
    let metrics = run.step(&[Array::f32([4, 2], &data)]);
    assert!(metrics[0].is_nan());
    run.step(std::slice::from_ref(&good));
    assert_eq!(run.get(Role::BadStep, "bad_step"), [1.0]);
    let last = before.len() - 1;
    assert_eq!(run.state[..last], before[..last], "the state of the bad step is kept for its replay");
}

#[test]
fn accumulation_is_the_mean_over_parts() {
    let (network, process) = (small_mlp(), Preset::Sit.process());
    let optim = OptimConfig { kind: Rule::Sgd, momentum: 0.0, lr: 0.5, ..OptimConfig::default() };
    let ema = EmaConfig { decay: 0.0, ..EmaConfig::default() };
    let options = StepOptions { batch: 6, accumulate: 3, level_bins: 0, scaling: None, ..StepOptions::default() };
    let program = train_step(&network, &process, &optim, &ema, &options).unwrap();
    assert_eq!(program.state.len(), program.params.len() + 2, "plain descent keeps no moments and no average");
    let mut run = Run::new(&program);
    let x = normal_array(&[6, 2], 3);
    let params = run.state[..program.params.len()].to_vec();
    let metrics = run.step(std::slice::from_ref(&x));

    let mut loss = 0.0;
    let mut sums = vec![vec![]; params.len()];
    for i in 0..3 {
        let mut args = params.clone();
        let part = Array::f32([2, 2], &x.to_f32_vec()[4 * i..4 * i + 4]);
        args.extend([key_array(key(7)), Array::u32([], &[i as u32]), part]);
        let results = eval(&program.grad, &args, Precision::F32).unwrap();
        loss += results[0].get(0).to_f64() / 3.0;
        for (sum, g) in sums.iter_mut().zip(&results[1..]) {
            let g = g.to_f64_vec();
            sum.resize(g.len(), 0.0);
            sum.iter_mut().zip(g).for_each(|(s, g)| *s += g / 3.0);
        }
    }
    assert!((metrics[0] - loss).abs() < 1e-6 * loss);
    let norm = sums.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    assert!((metrics[1] - norm).abs() < 1e-5 * norm);
    for (i, sum) in sums.iter().enumerate() {
        for (j, g) in sum.iter().enumerate() {
            let want = params[i].get(j).to_f64() - 0.5 * g;
            assert!((run.state[i].get(j).to_f64() - want).abs() < 1e-5);
        }
    }
    let e = train_step(&network, &process, &optim, &ema, &StepOptions { accumulate: 4, ..options }).unwrap_err();
    assert!(e.to_string().starts_with("train.accumulate"), "{e}");
}

#[test]
fn losses_by_noise_level_add_up() {
    for preset in [Preset::Sit, Preset::Edm, Preset::Ddpm, Preset::Dsm] {
        let options = StepOptions { batch: 32, accumulate: 2, level_bins: 4, scaling: None, ..StepOptions::default() };
        let (optim, ema) = (OptimConfig::default(), EmaConfig::default());
        let program = train_step(&small_mlp(), &preset.process(), &optim, &ema, &options).unwrap();
        let metrics = Run::new(&program).step(&[normal_array(&[32, 2], 3)]);
        let (loss, sums, counts) = (metrics[0], &metrics[3..7], &metrics[7..11]);
        assert_eq!(counts.iter().sum::<f64>(), 32.0, "{preset:?}");
        assert!((sums.iter().sum::<f64>() / 32.0 - loss).abs() < 1e-5 * loss.abs(), "{preset:?}");
        assert!(counts.iter().filter(|&&c| c > 0.0).count() >= 2, "{preset:?} {counts:?}");
    }
}

#[test]
fn dropped_labels_become_the_null_label() {
    // With dropout 1 the labels must not matter, with 0 they must.
    let network = small_dit();
    let with = |label_dropout: f64| {
        let config = ProcessConfig { label_dropout: Some(label_dropout), ..Default::default() };
        loss_program(&network, &config.resolve().unwrap(), 3, 0).unwrap()
    };
    let loss = |dropout: f64, labels: &[i32; 3]| {
        let p = with(dropout);
        let mut args: Vec<Array> = p.params.iter().map(|s| normal_array(&s.dims, s.elems() as u64)).collect();
        args.extend(init::init(&p.frozen, 0));
        args.extend([key_array(key(1)), Array::u32([], &[0]), normal_array(&[3, 4, 4, 1], 2), Array::i32([3], labels)]);
        eval(&p.func, &args, Precision::F32).unwrap()[0].get(0).to_f64()
    };
    assert_eq!(loss(1.0, &[0, 1, 2]), loss(1.0, &[2, 2, 0]));
    assert_eq!(loss(1.0, &[0, 1, 2]), loss(0.0, &[3, 3, 3]));
    assert_ne!(loss(0.0, &[0, 1, 2]), loss(0.0, &[2, 2, 0]));
}

/// The gradient of a DiT's loss against central differences in f64, along a random direction.
#[test]
fn gradients_are_derivatives() {
    let cases: [(Network, Process); 3] = [
        (small_dit(), Preset::Sit.process()),
        (small_dit(), Preset::Edm.process()),
        (small_mlp(), Preset::Dsm.process()),
    ];
    for (network, process) in cases {
        let ema = EmaConfig::default();
        let program = train_step(&network, &process, &OptimConfig::default(), &ema, &options(3)).unwrap();
        let params: Vec<Array> = program
            .params
            .iter()
            .enumerate()
            // Zero-initialised gates would hide most of the network.
            .map(|(i, s)| init::Init::Normal { std: 0.3 }.draw(&s.dims, key(100 + i as u64)))
            .collect();
        let mut rest = program.constants(1);
        rest.push(Array::u32([], &[5]));
        let mut dims = network.sample_dims().unwrap();
        dims.insert(0, 3);
        rest.push(normal_array(&dims, 4));
        if network.classes() > 0 {
            rest.push(Array::i32([3], &[0, 2, 1]));
        }
        let directions: Vec<Vec<f64>> =
            params.iter().enumerate().map(|(i, p)| normal_array(p.dims(), 900 + i as u64).to_f64_vec()).collect();
        let moved = |h: f64| -> Vec<Array> {
            let step = |(p, d): (&Array, &Vec<f64>)| {
                let data: Vec<f64> = p.to_f64_vec().iter().zip(d).map(|(p, d)| p + h * d).collect();
                Array::from_f64(p.ty().with_dtype(DType::F64), &data)
            };
            params.iter().zip(&directions).map(step).chain(rest.clone()).collect()
        };
        let loss = |h: f64| eval(&program.loss, &moved(h), Precision::F64).unwrap()[0].get(0).to_f64();
        let results = eval(&program.grad, &moved(0.0), Precision::F64).unwrap();
        let slope: f64 = results[1..]
            .iter()
            .zip(&directions)
            .map(|(g, d)| g.to_f64_vec().iter().zip(d).map(|(g, d)| g * d).sum::<f64>())
            .sum();
        let h = 1e-5;
        let numeric = (loss(h) - loss(-h)) / (2.0 * h);
        assert!((slope - numeric).abs() < 1e-6 * numeric.abs().max(1.0), "{slope} {numeric}");
    }
}
