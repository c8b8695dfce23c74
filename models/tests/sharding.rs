//! Training steps over meshes: losses, gradients and states equal to one device's, on the interpreter's devices.

use dnx_codegen::Target;
use dnx_codegen::passes::prepare;
use dnx_ir::interp::{Precision, eval, eval_mesh};
use dnx_ir::parts::{part, whole};
use dnx_ir::{Array, DType, Func};
use dnx_models::network::{DitConfig, MlpConfig, Network, Remat, SequenceConfig};
use dnx_models::optim::{EmaConfig, OptimConfig, Rule};
use dnx_models::process::{Preset, Process, ProcessConfig};
use dnx_models::step::{StepOptions, TrainProgram, train_step};
use dnx_models::{DataSpec, Layout, ParamSpec};

const BATCH: usize = 8;

fn process(preset: Preset) -> Process {
    ProcessConfig { preset: Some(preset), ..ProcessConfig::default() }.resolve().unwrap()
}

fn mlp() -> Network {
    Network::Mlp(MlpConfig { dims: Some(2), hidden: 64, time_width: 16, classes: Some(0), ..MlpConfig::default() })
}

fn sequence() -> Network {
    let config = SequenceConfig { dim: 16, depth: 1, heads: 2, ..SequenceConfig::default() };
    Network::Sequence(config).resolve(&DataSpec { dims: vec![4, 2], classes: 0 }).unwrap()
}

fn dit(remat: Remat) -> Network {
    Network::Dit(DitConfig {
        dim: Some(32),
        depth: Some(2),
        heads: Some(4),
        patch: 2,
        image: Some(8),
        channels: Some(1),
        classes: Some(3),
        remat,
        ..DitConfig::default()
    })
}

fn layout(axes: &[(&'static str, usize)]) -> Layout {
    Layout::new(axes.iter().copied(), []).unwrap()
}

fn step(network: &Network, process: &Process, accumulate: usize, layout: &Layout) -> TrainProgram {
    // Adam would blow up gradients that are zero but for rounding, as those of the keys' bias.
    let optim = OptimConfig { kind: Rule::Sgd, lr: 1e-2, clip: 0.5, weight_decay: 0.1, ..OptimConfig::default() };
    let options = StepOptions { batch: BATCH, accumulate, level_bins: 3, scaling: None, layout: layout.clone() };
    train_step(network, process, &optim, &EmaConfig::default(), &options).unwrap()
}

/// Numbers that are not zero where layers start at zero: every parameter takes part.
fn stirred(spec: &ParamSpec, i: usize) -> Array {
    let n = spec.elems();
    let data: Vec<f32> = (0..n).map(|k| (((k * 37 + i * 11) % 101) as f32 / 101.0 - 0.5) * 0.3).collect();
    Array::f32(spec.ty().dims, &data)
}

/// All inputs, global.
fn inputs(p: &TrainProgram) -> Vec<Array> {
    let params: Vec<Array> = p.params.iter().enumerate().map(|(i, s)| stirred(s, i)).collect();
    let mut inputs = p.state_from(&params);
    inputs.extend(p.constants(3));
    for port in &p.batch {
        let n = port.ty.elems();
        inputs.push(match port.ty.dtype {
            DType::I32 => Array::i32(port.ty.dims.clone(), &(0..n as i32).map(|i| i % 3).collect::<Vec<_>>()),
            _ => Array::f32(
                port.ty.dims.clone(),
                &(0..n).map(|i| ((i * 7 % 23) as f32) / 11.0 - 1.0).collect::<Vec<_>>(),
            ),
        });
    }
    inputs
}

/// `steps` steps of a program on all devices of its mesh; the last results, whole.
fn run(p: &TrainProgram, steps: usize) -> Vec<Array> {
    let mut args = inputs(p);
    let mut results = vec![];
    let divided: Option<Func> = (p.func.mesh.devices() > 1).then(|| prepare(&p.func, &Target::Cpu).unwrap());
    for _ in 0..steps {
        results = match &divided {
            None => eval(&p.func, &args, Precision::F32).unwrap(),
            Some(divided) => {
                let (types, mesh) = (p.func.param_types(), &p.func.mesh);
                let local = |d: usize| -> Vec<Array> {
                    args.iter().zip(&types).map(|(a, ty)| part(a, &ty.sharding, mesh, d).unwrap()).collect()
                };
                let all: Vec<Vec<Array>> = (0..mesh.devices()).map(local).collect();
                let got = eval_mesh(divided, &all, Precision::F32).unwrap();
                let of = |i: usize| -> Vec<Array> { got.iter().map(|r| r[i].clone()).collect() };
                let assembled = |(i, ty): (usize, &dnx_ir::Type)| {
                    let all = whole(&of(i), ty, mesh).unwrap();
                    // Devices that hold the same part hold the same bits.
                    for (d, own) in of(i).iter().enumerate() {
                        assert_eq!(part(&all, &ty.sharding, mesh, d).unwrap(), *own, "result {i} of device {d}");
                    }
                    all
                };
                p.func.result_types().into_iter().enumerate().map(assembled).collect()
            }
        };
        let state = p.state.len();
        args[..state].clone_from_slice(&results[..state]);
    }
    results
}

/// The relative distance of two arrays as vectors, or the absolute one of small ones.
fn distance(a: &Array, b: &Array) -> f64 {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    apart / norm(&mut b.iter().copied()).max(1e-3)
}

fn check(network: &Network, process: &Process, accumulate: usize, axes: &[(&'static str, usize)]) {
    let one = step(network, process, accumulate, &Layout::single());
    let many = step(network, process, accumulate, &layout(axes));
    let (wanted, got) = (run(&one, 2), run(&many, 2));
    let names: Vec<String> = one.state.iter().map(|s| format!("{:?} {}", s.role, s.name)).collect();
    for (i, (a, b)) in got.iter().zip(&wanted).enumerate() {
        let name = names.get(i).cloned().unwrap_or_else(|| one.metrics[i - names.len()].name.clone());
        let apart = distance(a, b);
        assert!(apart < 1e-5, "{axes:?}: {name} is {apart:e} apart");
    }
}

/// Every axis and product of axes on meshes of 2, 4 and 8.
#[test]
fn a_transformer_over_every_mesh_trains_as_on_one_device() {
    let meshes: [&[(&'static str, usize)]; 11] = [
        &[("data", 2)],
        &[("data", 8)],
        &[("fsdp", 2)],
        &[("fsdp", 8)],
        &[("tensor", 2)],
        &[("tensor", 4)],
        &[("sequence", 2)],
        &[("sequence", 4)],
        &[("data", 2), ("fsdp", 2), ("tensor", 2)],
        &[("fsdp", 2), ("sequence", 2), ("tensor", 2)],
        &[("data", 2), ("sequence", 4)],
    ];
    for axes in meshes {
        check(&dit(Remat::None), &process(Preset::Sit), 1, axes);
    }
}

#[test]
fn recomputed_blocks_and_micro_batches_too() {
    for remat in [Remat::Block, Remat::Group] {
        check(&dit(remat), &process(Preset::Sit), 2, &[("fsdp", 2), ("tensor", 2)]);
    }
    check(&mlp(), &process(Preset::Sit), 4, &[("data", 2)]);
}

#[test]
fn a_perceptron_over_every_mesh() {
    for axes in [&[("data", 4)][..], &[("fsdp", 4)], &[("data", 2), ("fsdp", 2)]] {
        check(&mlp(), &process(Preset::Sit), 1, axes);
    }
}

/// Tokens with noise levels of their own, in an order that hides what comes later: over every axis.
#[test]
fn a_causal_sequence_over_every_mesh() {
    let process = process(Preset::DiffusionForcing);
    let mut network = sequence();
    network.suit(&process);
    let Network::Sequence(config) = &network else { unreachable!() };
    for causal in [true, false] {
        let network = Network::Sequence(SequenceConfig { causal, ..config.clone() });
        for axes in [&[("sequence", 2)][..], &[("sequence", 4)], &[("tensor", 2)], &[("data", 2), ("sequence", 2)]] {
            check(&network, &process, 1, axes);
        }
    }
}

#[test]
fn processes_over_devices() {
    for preset in Preset::ALL {
        let process = process(preset);
        if process.objective.needs_teacher() {
            continue;
        }
        let mut network = if process.objective.token_levels() { sequence() } else { mlp() };
        network.suit(&process);
        println!("{preset:?}");
        check(&network, &process, 1, &[("data", 2), ("fsdp", 2)]);
    }
}
