//! The programs of this crate, compiled, against the reference interpreter.

use dnx_codegen::kernel::interp::run_executable;
use dnx_codegen::{Options, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType};
use dnx_models::network::{DitConfig, MlpConfig, Remat};
use dnx_models::optim::{EmaConfig, OptimConfig};
use dnx_models::process::Preset;
use dnx_models::sample::{
    Accuracy, Branch, Edit, Flow, Generator, GuidanceKind, Model, NetworkCall, Repaint, Request, SampleConfig,
    SamplerKind, Trace, forward_program,
};
use dnx_models::step::{StepOptions, train_step};
use dnx_models::{DataSpec, Network, init};
use dnx_runtime::Device;

fn dit(remat: Remat) -> Network {
    let config = DitConfig { dim: Some(12), depth: Some(2), heads: Some(3), patch: 2, remat, ..DitConfig::default() };
    Network::Dit(config).resolve(&DataSpec { dims: vec![6, 4, 3], classes: 5 }).unwrap()
}

fn mlp() -> Network {
    let config = MlpConfig { hidden: 24, layers: 2, time_width: 10, ..MlpConfig::default() };
    Network::Mlp(config).resolve(&DataSpec { dims: vec![3], classes: 0 }).unwrap()
}

/// Weights with nothing at zero, so that every part of the network shows.
fn weights(specs: &[dnx_models::ParamSpec]) -> Vec<Array> {
    let normal = |s: &dnx_models::ParamSpec| init::Init::Normal { std: 0.2 }.draw(&s.dims, key(s.name.len() as u64));
    specs.iter().map(|s| if s.trainable { normal(s) } else { s.init.draw(&s.dims, key(0)) }).collect()
}

fn close(got: &Array, want: &Array, tolerance: f64, what: &str) {
    let (got, want) = (got.to_f64_vec(), want.to_f64_vec());
    let scale = want.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}] is {g}, not {w}");
    }
}

#[test]
fn training_steps_are_those_of_the_interpreter() {
    for (network, preset) in [
        (mlp(), Preset::Dsm),
        (dit(Remat::None), Preset::Sit),
        (dit(Remat::Block), Preset::Edm),
        (dit(Remat::None), Preset::Ddpm),
        (mlp(), Preset::Ssm),
        (mlp(), Preset::Edm2),
        (mlp(), Preset::Iddpm),
        (mlp(), Preset::Ct),
        (mlp(), Preset::Ict),
        (dit(Remat::None), Preset::MeanFlow),
        (dit(Remat::Block), Preset::MeanFlow),
        (dit(Remat::None), Preset::Sct),
    ] {
        let (mut network, process) = (network, preset.process());
        network.suit(&process);
        let optim = OptimConfig { lr: 1e-3, clip: 1.0, weight_decay: 0.01, ..OptimConfig::default() };
        let options = StepOptions { batch: 6, accumulate: 2, level_bins: 3, scaling: None, ..StepOptions::default() };
        let program = train_step(&network, &process, &optim, &EmaConfig::default(), &options).unwrap();
        let mut dims = network.sample_dims().unwrap();
        dims.insert(0, 6);
        let mut rest = program.constants(5);
        rest.push(init::Init::Normal { std: 1.0 }.draw(&dims, key(8)));
        if network.classes() > 0 {
            rest.push(Array::i32([6], &[0, 4, 2, 3, 1, 0]));
        }
        let mut state = program.state_from(&weights(&program.params));

        let compiled = compile(&program.func, &Options::default().with_donate(&program.donate)).unwrap();
        let device = Device::cpu();
        let loaded = device.load(compiled.exec.clone()).unwrap();
        let inputs: Vec<Array> = state.iter().chain(&rest).cloned().collect();
        let bound = loaded.bind(&device.upload_all(&inputs).unwrap()).unwrap();
        for step in 0..3 {
            let args: Vec<Array> = state.iter().chain(&rest).cloned().collect();
            let want = eval(&program.func, &args, Precision::F32).unwrap();
            let kernels = run_executable(&compiled.exec, &args).unwrap();
            bound.run().unwrap();
            for (i, want) in want.iter().enumerate() {
                let name = program.state.get(i).map_or("a metric", |s| &s.name);
                let what = format!("{preset:?} step {step} {name}");
                // Adam turns the sign of a gradient near zero into a whole step, which rounding may flip.
                let tolerance = if want.dtype() == DType::U32 { 0.0 } else { 2e-3 };
                close(&kernels[i], want, tolerance, &format!("{what} by kernels"));
                close(&bound.outputs()[i].download().unwrap(), want, tolerance, &format!("{what} on the device"));
            }
            state = want[..state.len()].to_vec();
        }
    }
}

#[test]
fn seeds_give_the_same_pictures_in_any_batch() {
    let (network, process) = (dit(Remat::None), Preset::Sit.process());
    let specs = network.specs().unwrap();
    let weights = weights(&specs);
    let device = Device::cpu();
    let config = SampleConfig { steps: 4, cfg: 2.0, guidance_interval: Some([0.2, 0.8]), ..SampleConfig::default() };
    let of = |batch: usize, seeds: &[u64], labels: &[i32]| {
        let mut generator = Generator::new(&device, &network, &process, &weights, batch).unwrap();
        generator.sample(&config, seeds, Some(labels), None).unwrap()
    };
    let eight = of(4, &[0, 1, 2, 3, 4, 5, 6], &[0, 1, 2, 3, 4, 0, 1]);
    assert_eq!(eight.dims(), [7, 6, 4, 3]);
    let one = of(1, &[3], &[3]);
    let n = one.elems();
    let same = Array::f32(one.dims(), &eight.to_f32_vec()[3 * n..4 * n]);
    close(&one, &same, 1e-5, "seed 3");
    let other = of(1, &[3], &[2]);
    assert!(one.to_f32_vec().iter().zip(other.to_f32_vec()).any(|(a, b)| (a - b).abs() > 1e-3), "the label matters");
}

#[test]
fn guided_programs_evaluate_both_branches() {
    let network = dit(Remat::None);
    let plain = forward_program(&network, 2, false).unwrap();
    let guided = forward_program(&network, 2, true).unwrap();
    let weights = weights(&plain.params);
    let x = init::Init::Normal { std: 1.0 }.draw(&[2, 6, 4, 3], key(1));
    let call = |labels: [i32; 2]| {
        let mut args = weights.clone();
        args.extend([x.clone(), Array::f32([2], &[0.3, 0.9]), Array::f32([2], &[0.3, 0.9]), Array::i32([2], &labels)]);
        args
    };
    let run = |f: &dnx_ir::Func, args: &[Array]| eval(f, args, Precision::F32).unwrap().remove(0);
    for contrast in [[5, 5], [0, 2]] {
        let (c, u) = (run(&plain.func, &call([1, 4])), run(&plain.func, &call(contrast)));
        let mut args = call([1, 4]);
        args.push(Array::i32([2], &contrast));
        let both = run(&guided.func, &args);
        assert_eq!(both.dims(), [4, 6, 4, 3]);
        let want: Vec<f32> = [c.to_f32_vec(), u.to_f32_vec()].concat();
        close(&both, &Array::f32([4, 6, 4, 3], &want), 1e-5, "both branches");
    }
    let e = forward_program(&mlp(), 2, true).unwrap_err().to_string();
    assert!(e.starts_with("sample.cfg"), "{e}");
}

/// `<w, J v>` by differences of the network, by its jvp and by its vjp.
#[test]
fn networks_have_derivatives_by_their_input() {
    let network = dit(Remat::None);
    let weights = weights(&network.specs().unwrap());
    let process = Preset::Sit.process();
    let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
    let draw = |seed: u64| init::Init::Normal { std: 1.0 }.draw(&[2, 6, 4, 3], key(seed));
    let (x, v, w) = (draw(1), draw(2), draw(3));
    let level = |t: f64| process.level(dnx_models::process::Time::unit(t).unwrap()).unwrap();
    let levels = [level(0.3), level(0.9)];
    let (times, input_scales) = ([0.3, 0.9], [1.0, 1.0]);
    let mut model = generator.conditioned(&[1, 4], 5);
    for branch in [Branch::Conditional, Branch::Contrast] {
        let branches = [branch];
        fn call<'a>(
            x: &'a Array,
            times: &'a [f64],
            levels: &'a [dnx_models::process::Level<f64>],
            input_scales: &'a [f64],
            branches: &'a [Branch],
        ) -> NetworkCall<'a> {
            NetworkCall { x, times, seconds: &[0.0; 2], levels, input_scales, branches }
        }
        let dot = |a: &Array, b: &Array| a.to_f64_vec().iter().zip(b.to_f64_vec()).map(|(a, b)| a * b).sum::<f64>();
        let moved = |h: f32| {
            let at: Vec<f32> = x.to_f32_vec().iter().zip(v.to_f32_vec()).map(|(x, v)| x + h * v).collect();
            Array::f32(x.dims(), &at)
        };
        let at = call(&x, &times, &levels, &input_scales, &branches);
        let (output, tangent) = model.jvp(&at, &v).unwrap();
        close(&output, &model.forward(&at).unwrap(), 1e-5, "the primal");
        let back = model.vjp(&at, &w).unwrap();
        let (forward, backward) = (dot(&w, &tangent), dot(&back, &v));
        let (up, down) = (moved(1e-2), moved(-1e-2));
        let up = model.forward(&call(&up, &times, &levels, &input_scales, &branches)).unwrap();
        let down = model.forward(&call(&down, &times, &levels, &input_scales, &branches)).unwrap();
        let difference = (dot(&w, &up) - dot(&w, &down)) / 2e-2;
        assert!((forward - backward).abs() < 1e-4 * forward.abs().max(1.0), "{forward} {backward}");
        assert!((forward - difference).abs() < 5e-3 * forward.abs().max(1.0), "{forward} {difference}");
    }
}

#[test]
fn negative_labels_and_guides_have_conditions_of_their_own() {
    let (network, process) = (dit(Remat::None), Preset::Sit.process());
    let specs = network.specs().unwrap();
    let own = weights(&specs);
    let worse: Vec<Array> = own
        .iter()
        .map(|a| {
            if a.dtype() == DType::F32 {
                Array::f32(a.dims(), &a.to_f32_vec().iter().map(|x| 0.8 * x).collect::<Vec<_>>())
            } else {
                a.clone()
            }
        })
        .collect();
    let device = Device::cpu();
    let generator = |w: &[Array]| Generator::new(&device, &network, &process, w, 2).unwrap();
    let config = |cfg: f64, guidance: GuidanceKind| SampleConfig { steps: 3, cfg, guidance, ..SampleConfig::default() };
    let labels = [1, 4];
    let run = |g: &mut Generator, c: &SampleConfig, labels: &[i32; 2], negative: Option<i32>| {
        let request = Request { seeds: &[7, 8], labels: Some(labels), negative, edit: None };
        g.run(c, &request, None).unwrap().to_f32_vec()
    };
    let cfg = config(2.0, GuidanceKind::Cfg);
    let mut plain = generator(&own);
    let null = run(&mut plain, &cfg, &labels, None);
    assert_eq!(run(&mut plain, &cfg, &labels, Some(5)), null, "the network's own null label is its class count");
    assert_ne!(run(&mut plain, &cfg, &labels, Some(2)), null);
    // Against its own condition guidance changes nothing, but for the rounding of the mixture.
    let free = run(&mut plain, &config(1.0, GuidanceKind::Cfg), &[2, 2], None);
    for (a, b) in run(&mut plain, &cfg, &[2, 2], Some(2)).iter().zip(&free) {
        assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{a} {b}");
    }

    let auto = config(2.0, GuidanceKind::Autoguidance);
    let e = plain.sample(&auto, &[7], Some(&[1]), None).unwrap_err().to_string();
    assert!(e.starts_with("sample.guidance") && e.contains("--guide"), "{e}");
    let mut itself = generator(&own).with_guide(generator(&own)).unwrap();
    for (a, b) in run(&mut itself, &auto, &[2, 2], None).iter().zip(&free) {
        assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "guided by itself: {a} {b}");
    }
    let mut guided = generator(&own).with_guide(generator(&worse)).unwrap();
    let (a, b) =
        (run(&mut guided, &auto, &labels, None), run(&mut plain, &config(1.0, GuidanceKind::Cfg), &labels, None));
    assert!(a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-2), "the guide matters");
    // At scale 1 nothing is a no-op but nothing at all: bit for bit.
    assert_eq!(run(&mut guided, &config(1.0, GuidanceKind::Autoguidance), &labels, None), b);
}

/// A transformer's likelihood by compiled directional derivatives: estimates come near the exact trace, and a sample's
/// value does not depend on its batch.
#[test]
fn likelihood_is_of_each_sample_alone() {
    let (network, process) = (dit(Remat::None), Preset::Sit.process());
    let weights = weights(&network.specs().unwrap());
    let n: usize = network.sample_dims().unwrap().iter().product();
    let x = init::Init::Normal { std: 0.7 }.draw(&[3, n], key(4)).to_f64_vec();
    let accuracy = Accuracy::Fixed { steps: 6 };
    let of = |batch: usize, trace: Trace, which: std::ops::Range<usize>| {
        let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, batch).unwrap();
        let seeds: Vec<u64> = which.clone().map(|i| i as u64 + 10).collect();
        let labels: Vec<i32> = which.clone().map(|i| i as i32).collect();
        let flow = Flow { trace, accuracy, start: Some(0.05) };
        generator.log_likelihood(&x[which.start * n..which.end * n], &seeds, Some(&labels), &flow).unwrap()
    };
    let probes = Trace::Hutchinson { probes: 2 };
    let (all, last) = (of(2, probes, 0..3), of(1, probes, 2..3));
    assert!(all.iter().all(|l| l.is_finite()));
    assert!((all[2] - last[0]).abs() < 1e-3 * last[0].abs(), "{} {}", all[2], last[0]);
    let exact = of(1, Trace::Exact, 2..3)[0];
    let many = of(1, Trace::Hutchinson { probes: 150 }, 2..3)[0];
    let one = of(1, Trace::Hutchinson { probes: 1 }, 2..3)[0];
    println!("exact {exact}, 150 probes {many}, one {one}");
    assert!((many - exact).abs() < 0.02 * exact.abs(), "{many} {exact}");
}

#[test]
fn edits_keep_what_they_should() {
    let (network, process) = (dit(Remat::None), Preset::Sit.process());
    let weights = weights(&network.specs().unwrap());
    let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
    let n: usize = network.sample_dims().unwrap().iter().product();
    let init: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
    let keep: Vec<bool> = (0..n).map(|i| i % 3 != 0).collect();
    let config = SampleConfig { steps: 10, ..SampleConfig::default() };
    let mut run = |strength: f64, keep: Option<&[bool]>, seeds: &[u64]| {
        let edit = Edit { init: &init, strength, keep, repaint: Repaint { times: 2, jump: 2 } };
        let request = Request { seeds, edit: Some(edit), ..Request::default() };
        generator.run(&config, &request, None).unwrap().to_f32_vec()
    };
    let distance = |x: &[f32]| x.iter().zip(&init).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (near, far) = (distance(&run(0.1, None, &[1])), distance(&run(1.0, None, &[1])));
    assert!(near < 0.6 && far > 2.0 * near, "{near} {far}");
    let three = run(1.0, Some(&keep), &[1, 2, 3]);
    for x in three.chunks(n) {
        assert!(x.iter().zip(&init).zip(&keep).all(|((x, i), k)| !k || x == i), "what is kept is kept");
        assert!(distance(x) > 0.1);
    }
    for (a, b) in run(1.0, Some(&keep), &[3]).iter().zip(&three[2 * n..]) {
        assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "a seed gives the same sample in any batch: {a} {b}");
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let (network, process) = (dit(Remat::None), Preset::Sit.process());
    let weights = weights(&network.specs().unwrap());
    let mut generator = Generator::new(&Device::cpu(), &network, &process, &weights, 2).unwrap();
    let mut refused = |config: SampleConfig, seeds: &[u64], labels: &[i32]| {
        generator.sample(&config, seeds, Some(labels), None).unwrap_err().to_string()
    };
    let e = refused(SampleConfig::default(), &[1], &[7]);
    assert!(e.contains("class 7") && e.contains('5'), "{e}");
    let e = refused(SampleConfig::default(), &[1, 2], &[0]);
    assert!(e.contains("1 labels for 2 seeds"), "{e}");
    let e = refused(SampleConfig { sampler: SamplerKind::Langevin, ..SampleConfig::default() }, &[1], &[0]);
    assert!(e.starts_with("sample.sampler"), "{e}");
}
