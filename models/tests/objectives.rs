//! Every preset's loss: gradients against finite differences, and what the objectives are by their definition.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType};
use dnx_models::loss::{LossOptions, LossProgram};
use dnx_models::network::{DitConfig, MlpConfig, SequenceConfig};
use dnx_models::optim::{EmaConfig, OptimConfig};
use dnx_models::process::{Objective, Preset, Process, ProcessConfig, Teacher};
use dnx_models::step::{Role, StepOptions, key_array, train_step_with};
use dnx_models::{DataSpec, Layout, Network, init};

const BATCH: usize = 4;

fn mlp(process: &Process, classes: usize) -> Network {
    let config = MlpConfig { hidden: 12, layers: 2, time_width: 8, classes: Some(classes), ..MlpConfig::default() };
    let mut network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes }).unwrap();
    network.suit(process);
    network
}

fn dit(process: &Process) -> Network {
    let config =
        DitConfig { dim: Some(8), depth: Some(2), heads: Some(2), mlp_ratio: 2.0, patch: 2, ..DitConfig::default() };
    let mut network = Network::Dit(config).resolve(&DataSpec { dims: vec![4, 4, 1], classes: 3 }).unwrap();
    network.suit(process);
    network
}

fn sequence() -> Network {
    let config = SequenceConfig { dim: 8, depth: 2, heads: 2, mlp_ratio: 2.0, ..SequenceConfig::default() };
    Network::Sequence(config).resolve(&DataSpec { dims: vec![3, 2], classes: 3 }).unwrap()
}

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn normal_array(dims: &[usize], seed: u64) -> Array {
    init::Init::Normal { std: 1.0 }.draw(dims, key(seed))
}

/// A teacher with random weights, of another process than any student's.
fn teacher(network: impl Fn(&Process) -> Network) -> Teacher {
    let process = Preset::Vp.process();
    let network = network(&process);
    let weights = random(&network.specs().unwrap(), 7);
    Teacher { network, process, weights }
}

/// Weights with nothing at zero, so that every part of the network shows.
fn random(specs: &[dnx_models::ParamSpec], seed: u64) -> Vec<Array> {
    let draw = |(i, s): (usize, &dnx_models::ParamSpec)| match s.trainable {
        true => init::Init::Normal { std: 0.3 }.draw(&s.dims, key(seed * 1000 + i as u64)),
        false => s.init.draw(&s.dims, key(0)),
    };
    specs.iter().enumerate().map(draw).collect()
}

fn build(network: &Network, process: &Process, teacher: Option<&Teacher>) -> LossProgram {
    LossOptions { network, process, teacher, batch: BATCH, accumulate: 1, level_bins: 0, layout: &Layout::single() }
        .build()
        .unwrap()
}

/// Everything after the trainable parameters.
fn rest(program: &LossProgram, network: &Network, params: &[Array], counter: u32) -> Vec<Array> {
    let mut rest: Vec<Array> = program.frozen.iter().map(|s| s.init.draw(&s.dims, key(0))).collect();
    rest.extend(params[..program.targets.len()].iter().cloned());
    rest.extend(program.carried.iter().map(|c| c.start.clone()));
    rest.extend([key_array(key(3)), Array::u32([], &[counter])]);
    let mut dims = network.sample_dims().unwrap();
    dims.insert(0, BATCH);
    rest.push(normal_array(&dims, 4));
    if network.classes() > 0 {
        rest.push(Array::i32([BATCH], &[0, 2, 1, 1]));
    }
    rest
}

/// The slope of a loss along a random direction in its parameters: by its gradient, and by central differences.
fn slopes(program: &LossProgram, params: &[Array], rest: &[Array], only: &dyn Fn(&str) -> bool) -> (f64, f64) {
    let wrt: Vec<usize> = (0..params.len()).collect();
    let grad = dnx_autodiff::value_and_grad(&program.func, &wrt).unwrap();
    let mut direction: Vec<Vec<f64>> =
        params.iter().enumerate().map(|(i, p)| normal_array(p.dims(), 900 + i as u64).to_f64_vec()).collect();
    for (d, spec) in direction.iter_mut().zip(&program.params) {
        if !only(&spec.name) {
            d.fill(0.0);
        }
    }
    let moved = |h: f64| -> Vec<Array> {
        let step = |(p, d): (&Array, &Vec<f64>)| {
            let data: Vec<f64> = p.to_f64_vec().iter().zip(d).map(|(p, d)| p + h * d).collect();
            Array::from_f64(p.ty().with_dtype(DType::F64), &data)
        };
        params.iter().zip(&direction).map(step).chain(rest.iter().cloned()).collect()
    };
    let loss = |h: f64| eval(&program.func, &moved(h), Precision::F64).unwrap()[0].get(0).to_f64();
    let results = eval(&grad, &moved(0.0), Precision::F64).unwrap();
    let grads = &results[program.func.results.len()..];
    let dot = |(g, d): (&Array, &Vec<f64>)| g.to_f64_vec().iter().zip(d).map(|(g, d)| g * d).sum::<f64>();
    let slope: f64 = grads.iter().zip(&direction).map(dot).sum();
    let h = 1e-5;
    (slope, (loss(h) - loss(-h)) / (2.0 * h))
}

fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * b.abs().max(0.1), "{what}: {a}, not {b}");
}

/// Losses whose gradient is that of their value: no part of them is held.
#[test]
fn gradients_of_plain_losses_are_derivatives() {
    for text in [
        "preset = \"sit\"",
        "preset = \"sd3\"\nweighting = { kind = \"cosmap\" }",
        "preset = \"edm2\"",
        "preset = \"ddpm\"\nweighting = { kind = \"p2\" }",
        "preset = \"vp\"\nweighting = { kind = \"likelihood\" }",
        "preset = \"ve\"",
        "preset = \"subvp\"",
        "preset = \"dsm\"",
        "preset = \"ssm\"",
        "preset = \"sit\"\n[alignment]\nweight = 0.5\ndepth = 1\nwidth = 8\nfeatures = 6",
        "path = \"general_cosine\"\nkappa = 2.0\nprediction = \"v\"",
        "path = \"trig\"\nprediction = \"velocity\"\npreconditioning = \"trig\"",
        "preset = \"ddpm\"\nresampling = { kind = \"loss_second_moment\", history = 2 }",
    ] {
        let p = process(text);
        let network = mlp(&p, 3);
        let program = build(&network, &p, None);
        let params = random(&program.params, 1);
        let (slope, numeric) = slopes(&program, &params, &rest(&program, &network, &params, 5), &|_| true);
        close(slope, numeric, 1e-5, text);
    }
    let (p, network) = (Preset::DiffusionForcing.process(), sequence());
    let program = build(&network, &p, None);
    let params = random(&program.params, 1);
    let (slope, numeric) = slopes(&program, &params, &rest(&program, &network, &params, 5), &|_| true);
    close(slope, numeric, 1e-5, "diffusion_forcing");
    let p = process("[alignment]\nweight = 0.5\ndepth = 0\nwidth = 8\nfeatures = 6");
    let network = dit(&p);
    let program = build(&network, &p, None);
    assert_eq!(program.params.iter().filter(|s| s.name.starts_with("train.projector.")).count(), 6);
    let params = random(&program.params, 1);
    let more = rest(&program, &network, &params, 5);
    let (slope, numeric) = slopes(&program, &params, &more, &|name| name.starts_with("train."));
    close(slope, numeric, 1e-5, "the projector");
    assert!(slope.abs() > 1e-4);
}

/// With the network's own variances the mean is held in the bound: only the last layer's second half sees it, and
/// there the gradient is that of the value.
#[test]
fn learned_variances_are_trained_by_the_bound_alone() {
    let p = process("preset = \"iddpm\"\nvariance = { kind = \"learned_range\", weight = 1.0, bins = 0 }");
    let network = mlp(&p, 0);
    let program = build(&network, &p, None);
    let mut params = random(&program.params, 1);
    let last = params.len() - 1;
    let wrt: Vec<usize> = (0..params.len()).collect();
    let grad = dnx_autodiff::value_and_grad(&program.func, &wrt).unwrap();
    let more = rest(&program, &network, &params, 5);
    let at = |params: &[Array]| {
        let args: Vec<Array> = params.iter().chain(&more).cloned().collect();
        eval(&grad, &args, Precision::F64).unwrap()
    };
    // The bias of the last layer: two means, two variances.
    let own = at(&params)[1 + last].to_f64_vec();
    let plain = process("preset = \"iddpm\"\nvariance = { kind = \"learned_range\", weight = 1e-30, bins = 0 }");
    let plain = build(&network, &plain, None);
    let plain_grad = dnx_autodiff::value_and_grad(&plain.func, &wrt).unwrap();
    let args: Vec<Array> = params.iter().chain(&more).cloned().collect();
    let simple = eval(&plain_grad, &args, Precision::F64).unwrap()[1 + last].to_f64_vec();
    for i in 0..2 {
        close(own[i], simple[i], 1e-9, "the mean's gradient is that of the squared error");
        assert!(simple[2 + i].abs() < 1e-20 && own[2 + i].abs() > 1e-6, "{own:?} {simple:?}");
    }
    let bias = params[last].to_f64_vec();
    let h = 1e-5;
    let mut values = [0.0; 2];
    for (value, sign) in values.iter_mut().zip([1.0, -1.0]) {
        let mut moved = bias.clone();
        moved[2] += sign * h;
        params[last] = Array::from_f64(params[last].ty().with_dtype(DType::F64), &moved);
        *value = at(&params)[0].get(0).to_f64();
    }
    close(own[2], (values[0] - values[1]) / (2.0 * h), 1e-5, "the variance's gradient");
}

/// Of a loss with a held target, `|F - sg(T)|^2`, the gradient is that of the value with the target fixed. A target
/// that is an average, given apart, is fixed by itself.
#[test]
fn gradients_of_consistency_losses_are_derivatives_with_the_target_fixed() {
    let teacher = teacher(|p| mlp(p, 3));
    for text in [
        "preset = \"ct\"",
        "preset = \"cd\"",
        "preset = \"ct\"\n[objective]\nkind = \"consistency\"\nsteps = [4, 8]\nmetric = \"huber\"\ntarget = { kind = \"average\", decay = 0.5 }",
    ] {
        let p = process(text);
        let network = mlp(&p, 3);
        let program = build(&network, &p, p.objective.needs_teacher().then_some(&teacher));
        let params = random(&program.params, 1);
        assert_eq!(program.targets.len(), params.len(), "{text}");
        let (slope, numeric) = slopes(&program, &params, &rest(&program, &network, &params, 5), &|_| true);
        close(slope, numeric, 1e-5, text);
    }
}

#[test]
fn every_preset_makes_finite_steps_and_changes_what_it_should() {
    for preset in Preset::ALL {
        let p = preset.process();
        let networks = match p.objective.token_levels() {
            true => vec![sequence()],
            false => vec![mlp(&p, 3), dit(&p)],
        };
        for network in networks {
            let like = |p: &Process| match &network {
                Network::Mlp(_) => mlp(p, 3),
                Network::Dit(_) => dit(p),
                Network::Sequence(_) => sequence(),
            };
            let teacher = p.objective.needs_teacher().then(|| teacher(like));
            let options =
                StepOptions { batch: BATCH, accumulate: 2, level_bins: 2, scaling: None, ..StepOptions::default() };
            let (optim, ema) = (OptimConfig { lr: 1e-3, ..OptimConfig::default() }, EmaConfig::default());
            let program = train_step_with(&network, &p, teacher.as_ref(), &optim, &ema, &options)
                .unwrap_or_else(|e| panic!("{preset:?}: {e}"));
            dnx_ir::verify::verify(&program.func).unwrap();
            let start = program.state_from(&random(&program.params, 1));
            let mut dims = network.sample_dims().unwrap();
            dims.insert(0, BATCH);
            let mut args = start.clone();
            args.extend(program.constants(7));
            args.push(normal_array(&dims, 4));
            args.push(Array::i32([BATCH], &[0, 2, 1, 1]));
            let results = eval(&program.func, &args, Precision::F32).unwrap();
            let bad = program.state_index(Role::BadStep, "bad_step").unwrap();
            assert_eq!(results[bad].to_u32_vec(), [dnx_models::step::NO_BAD_STEP], "{preset:?}");
            for (i, spec) in program.state.iter().enumerate() {
                if matches!(spec.role, Role::Param | Role::Target | Role::Ema) {
                    let moved = results[i] != start[i];
                    // The second output of an adaptive layer may be unused; every tensor else moves.
                    assert!(moved, "{preset:?}: {:?} {} did not move", spec.role, spec.name);
                }
            }
        }
    }
}

#[test]
fn impossible_combinations_say_why() {
    let mean_flow = Preset::MeanFlow.process();
    let fails = |network: &Network, p: &Process, teacher: Option<&Teacher>| {
        let options = LossOptions {
            network,
            process: p,
            teacher,
            batch: 2,
            accumulate: 1,
            level_bins: 0,
            layout: &Layout::single(),
        };
        options.build().err().expect("an error").to_string()
    };
    let e = fails(&mlp(&Preset::Sit.process(), 0), &mean_flow, None);
    assert!(e.starts_with("model.second_time"), "{e}");
    let e = fails(&mlp(&mean_flow, 0), &Preset::Sit.process(), None);
    assert!(e.starts_with("model.second_time"), "{e}");
    let guided = process("preset = \"mean_flow\"\n[objective]\nkind = \"mean_flow\"\nomega = 2.0");
    let e = fails(&mlp(&guided, 0), &guided, None);
    assert!(e.starts_with("process.objective.kappa") && e.contains("classes"), "{e}");
    let dmd = Preset::Dmd2.process();
    let e = fails(&mlp(&dmd, 0), &dmd, None);
    assert!(e.starts_with("teacher.path") && e.contains("not set"), "{e}");
    let teacher = teacher(|p| mlp(p, 3));
    let sit = Preset::Sit.process();
    let e = fails(&mlp(&sit, 0), &sit, Some(&teacher));
    assert!(e.starts_with("teacher.path") && e.contains("not read"), "{e}");
    let e = fails(&dit(&dmd), &dmd, Some(&teacher));
    assert!(e.contains("dims"), "{e}");
    let e = fails(&mlp(&dmd, 5), &dmd, Some(&teacher));
    assert!(e.contains("classes"), "{e}");
    let Objective::Distillation(mut d) = dmd.objective.clone() else { panic!("dmd2 distils") };
    d.tap = 9;
    let deep = Process { objective: Objective::Distillation(d), ..dmd };
    let e = fails(&mlp(&deep, 3), &deep, Some(&teacher));
    assert!(e.contains("no hidden layer 9"), "{e}");
}
