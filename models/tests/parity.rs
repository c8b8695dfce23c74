//! Networks, losses, gradients, optimizers and schedules against PyTorch: `scripts/parity.py` wrote the fixtures.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
use dnx_models::network::{DitConfig, Inputs};
use dnx_models::optim::{EmaConfig, OptimConfig, Rule, Schedule, ScheduleConfig, global_norm};
use dnx_models::params::{Params, by_name};
use dnx_models::process::{Betas, Chain, Draws, Prediction, Preset, Process, ProcessConfig, Times};
use dnx_models::{DataSpec, Network, embed};
use safetensors::{Dtype, SafeTensors};
use std::path::PathBuf;

/// A safetensors file.
struct File(Vec<u8>);

impl File {
    fn open(path: PathBuf) -> Option<File> {
        std::fs::read(path).ok().map(File)
    }

    fn fixture(name: &str) -> File {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.safetensors"));
        File::open(path).expect("fixtures are committed")
    }

    fn find(&self, name: &str) -> Option<Array> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let t = file.tensor(name).ok()?;
        let dtype = match t.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::I32 => DType::I32,
            other => panic!("{name} is {other:?}"),
        };
        Some(Array::from_bytes(Type::new(dtype, t.shape()), t.data().to_vec()))
    }

    fn get(&self, name: &str) -> Array {
        self.find(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

/// Within `tolerance` of the tensor's largest element, everywhere.
fn close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}] is {g}, not {w} (scale {scale})");
    }
}

fn tiny_dit() -> Network {
    let config = DitConfig {
        dim: Some(12),
        depth: Some(2),
        heads: Some(3),
        patch: 2,
        mlp_ratio: 2.0,
        learn_sigma: true,
        ..DitConfig::default()
    };
    Network::Dit(config).resolve(&DataSpec { dims: vec![6, 4, 2], classes: 5 }).unwrap()
}

#[test]
fn dit_forward() {
    let (network, file) = (tiny_dit(), File::fixture("dit"));
    let g = Graph::new("forward");
    let specs = network.specs().unwrap();
    let params = Params::declare(&g, &specs);
    let inputs = Inputs::declare(&g, 3, &network).unwrap();
    let y = network.forward(&params.root(), inputs);
    let func = g.finish(&[y]).unwrap();
    let mut args = by_name(&specs, |name| file.find(&format!("param.{name}"))).unwrap();
    // Our fixed position table must be theirs before it is replaced by it.
    let at = specs.iter().position(|s| s.name == "pos_embed").unwrap();
    let own = specs[at].init.draw(&specs[at].dims, [0, 0]).to_f64_vec();
    close(&own, &args[at].to_f64_vec(), 1e-6, "pos_embed");
    let time = file.get("forward.time");
    args.extend([file.get("x0"), time.clone(), time, file.get("label")]);
    let got = eval(&func, &args, Precision::F32).unwrap()[0].to_f64_vec();
    close(&got, &file.get("forward.out").to_f64_vec(), 1e-4, "output");
}

/// The loss as a function of trainable parameters, frozen ones, x0, noise, time, label.
fn loss_func(network: &Network, process: &Process) -> (Func, Vec<String>, Vec<String>) {
    let (params, frozen): (Vec<_>, Vec<_>) = network.specs().unwrap().into_iter().partition(|s| s.trainable);
    let g = Graph::new("loss");
    let all: Vec<_> = params.iter().chain(&frozen).cloned().collect();
    let declared = Params::declare(&g, &all);
    let x0 = g.param("x0", Type::f32([3, 6, 4, 2]));
    let noise = g.param("noise", Type::f32([3, 6, 4, 2]));
    let values = g.param("time", Type::f32([3]));
    let label = g.param("label", Type::new(DType::I32, [3]));
    let draws = Draws { times: Times { domain: process.path.domain(), values }, noise, drop: None };
    let loss = process.loss(network, &declared.root(), x0, Some(label), &draws);
    let func = g.finish(&[loss.mean, loss.per_sample]).unwrap();
    let names = |specs: &[dnx_models::ParamSpec]| specs.iter().map(|s| s.name.clone()).collect();
    (func, names(&params), names(&frozen))
}

#[test]
fn losses_and_gradients() {
    let (network, file) = (tiny_dit(), File::fixture("dit"));
    let ddpm = |prediction| ProcessConfig {
        preset: Some(Preset::Ddpm),
        prediction: Some(prediction),
        ..ProcessConfig::default()
    };
    let cases = [
        ("sit", Preset::Sit.process()),
        ("edm", Preset::Edm.process()),
        ("ddpm", Preset::Ddpm.process()),
        ("ddpm_v", ddpm(Prediction::V).resolve().unwrap()),
        ("ddpm_x0", ddpm(Prediction::X0).resolve().unwrap()),
    ];
    let mut gradients = 0;
    for (name, process) in cases {
        let (loss, params, frozen) = loss_func(&network, &process);
        let grad = dnx_autodiff::value_and_grad(&loss, &(0..params.len()).collect::<Vec<_>>()).unwrap();
        let mut args: Vec<Array> = params.iter().chain(&frozen).map(|n| file.get(&format!("param.{n}"))).collect();
        args.extend([file.get("x0"), file.get("noise"), file.get(&format!("{name}.time")), file.get("label")]);
        let results = eval(&grad, &args, Precision::F32).unwrap();
        close(&results[0].to_f64_vec(), &file.get(&format!("{name}.loss")).to_f64_vec(), 1e-4, name);
        let per_sample = file.get(&format!("{name}.per_sample")).to_f64_vec();
        close(&results[1].to_f64_vec(), &per_sample, 1e-4, &format!("{name} per sample"));
        for (param, got) in params.iter().zip(&results[2..]) {
            if let Some(want) = file.find(&format!("{name}.grad.{param}")) {
                close(&got.to_f64_vec(), &want.to_f64_vec(), 1e-4, &format!("{name} gradient of {param}"));
                gradients += 1;
            }
        }
        if name == "sit" {
            assert_eq!(gradients, params.len(), "every gradient of one loss is compared");
        }
    }
    assert!(gradients > 30);
}

#[test]
fn optimizers_and_averages() {
    let file = File::fixture("optim");
    let names = ["w", "b"];
    let base = OptimConfig { lr: 1e-2, ..OptimConfig::default() };
    let cases = [
        ("adamw", OptimConfig { weight_decay: 0.1, ..base.clone() }),
        (
            "adam",
            OptimConfig {
                kind: Rule::Adam,
                betas: [0.8, 0.95],
                eps: 1e-6,
                weight_decay: 0.1,
                clip: 1.0,
                ..base.clone()
            },
        ),
        ("sgd", OptimConfig { kind: Rule::Sgd, momentum: 0.9, weight_decay: 0.1, ..base.clone() }),
        ("sgd_plain", OptimConfig { kind: Rule::Sgd, momentum: 0.0, clip: 0.5, ..base }),
    ];
    let ema = EmaConfig { decay: 0.15, warmup: true };
    for (case, optim) in cases {
        optim.check().unwrap();
        // Parameters, gradients, moments, averages, step -> parameters, moments, averages, norm.
        let g = Graph::new("update");
        let types: Vec<Type> = names.iter().map(|n| file.get(&format!("start.{n}")).ty().clone()).collect();
        let declare = |what: &str| -> Vec<Tensor<'_>> { types.iter().map(|t| g.param(what, t.clone())).collect() };
        let (params, grads) = (declare("p"), declare("g"));
        let moments: Vec<Vec<Tensor>> = (0..optim.moments()).map(|_| declare("m")).collect();
        let averages = declare("ema");
        let step = g.param("step", Type::f32([]));
        let norm = global_norm(&grads).unwrap();
        let scalars = optim.scalars(step, norm);
        let rate = ema.rate(step);
        let (mut p2, mut m2, mut e2) = (vec![], vec![vec![]; moments.len()], vec![]);
        for i in 0..names.len() {
            let m: Vec<Tensor> = moments.iter().map(|m| m[i]).collect();
            let (p, m) = optim.update(params[i], grads[i], &m, &scalars);
            m2.iter_mut().zip(m).for_each(|(all, m)| all.push(m));
            e2.push(ema.update(averages[i], p, rate));
            p2.push(p);
        }
        let results: Vec<Tensor> = p2.into_iter().chain(m2.into_iter().flatten()).chain(e2).chain([norm]).collect();
        let func = g.finish(&results).unwrap();

        let start: Vec<Array> = names.iter().map(|n| file.get(&format!("start.{n}"))).collect();
        let zeros = || types.iter().map(|t| Array::zeros(t.clone()));
        let mut state: Vec<Array> = start.clone();
        state.extend((0..optim.moments()).flat_map(|_| zeros()));
        state.extend(start);
        for i in 0..5 {
            let mut args = state[..2].to_vec();
            args.extend(names.iter().map(|n| file.get(&format!("grad.{i}.{n}"))));
            args.extend(state[2..].iter().cloned());
            args.push(Array::f32([], &[i as f32]));
            let mut results = eval(&func, &args, Precision::F32).unwrap();
            let norm = results.pop().unwrap();
            if let Some(want) = file.find(&format!("{case}.{i}.norm")) {
                close(&norm.to_f64_vec(), &want.to_f64_vec(), 1e-5, "norm");
            }
            for (k, name) in names.iter().enumerate() {
                let what = format!("{case}.{i}.{name}");
                close(&results[k].to_f64_vec(), &file.get(&what).to_f64_vec(), 1e-5, &what);
                if let Some(want) = file.find(&format!("{case}.{i}.ema.{name}")) {
                    let got = results[results.len() - 2 + k].to_f64_vec();
                    close(&got, &want.to_f64_vec(), 1e-5, &format!("{what} average"));
                }
            }
            state = results;
        }
    }
}

#[test]
fn learning_rates() {
    let file = File::fixture("schedules");
    let of = |kind, warmup, steps| ScheduleConfig { kind, warmup, steps: Some(steps), ..ScheduleConfig::default() };
    for (name, schedule) in [
        ("constant", of(Schedule::Constant, 0, 1)),
        ("cosine", ScheduleConfig { end: 0.1, ..of(Schedule::Cosine, 0, 30) }),
        ("linear", ScheduleConfig { end: 0.2, ..of(Schedule::Linear, 0, 30) }),
        ("step", ScheduleConfig { every: 7, factor: 0.9, ..of(Schedule::Step, 0, 1) }),
        ("warmup_constant", of(Schedule::Constant, 8, 1)),
        ("warmup_cosine", of(Schedule::Cosine, 8, 48)),
    ] {
        let want = file.get(&format!("lr.{name}")).to_f64_vec();
        let g = Graph::new("lr");
        let step = g.param("step", Type::f32([]));
        let func = g.finish(&[schedule.factor(step)]).unwrap();
        let at = |i: usize| eval(&func, &[Array::f32([], &[i as f32])], Precision::F32).unwrap()[0].get(0).to_f64();
        let got: Vec<f64> = (0..want.len()).map(at).collect();
        close(&got, &want, 1e-5, name);
    }
}

#[test]
fn chains_and_time_embeddings() {
    let file = File::fixture("schedules");
    for (name, betas) in [("linear", Betas::Linear), ("cosine", Betas::Cosine), ("scaled_linear", Betas::ScaledLinear)]
    {
        let want = file.get(&format!("f64.alpha_bar.{name}")).to_f64_vec();
        let chain = Chain::new(&betas.betas(1000)).unwrap();
        for (i, want) in want.iter().enumerate() {
            let got = chain.alpha_bar(37 * i);
            assert!((got - want).abs() < 1e-9 * want, "{name} step {}: {got}, not {want}", 37 * i);
        }
    }
    let time = file.get("f64.time").to_f64_vec();
    let g = Graph::new("embed");
    let t = g.param("t", Type::f32([time.len()]));
    let func = g.finish(&[embed::sinusoid(t, 256)]).unwrap();
    let t = Array::from_f64(Type::f32([time.len()]), &time);
    let all = eval(&func, &[t], Precision::F32).unwrap()[0].to_f64_vec();
    let got: Vec<f64> = all.chunks(256).flat_map(|row| row.iter().copied().step_by(9).collect::<Vec<_>>()).collect();
    // A time of 999 in f32 has a phase error of 3e-5.
    close(&got, &file.get("f64.time_embedding").to_f64_vec(), 1e-4, "time embedding");
}
