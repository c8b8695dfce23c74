//! What the suites of `dnx bench` are made of.

use super::{Case, drawn};
use crate::args::{BenchArgs, Suite};
use dnx::codegen::Precision;
use dnx::ir::{DType, Graph, Tensor, Type};
use dnx::models::network::{DitConfig, MlpConfig};
use dnx::models::optim::{EmaConfig, OptimConfig};
use dnx::models::process::Preset;
use dnx::models::step::{StepOptions, train_step};
use dnx::models::{DataSpec, Network};
use dnx::runtime::Device;
use dnx::single::Single;
use dnx::train::Result;

/// Operations that are timed in `f32` and in `f16`, at the sizes that networks have.
const OPS: [&str; 12] = [
    "matmul:512x512x512.f",
    "matmul.f",
    "matmul.fb",
    "conv2d.f",
    "conv2d.fb",
    "softmax.f",
    "softmax.fb",
    "layernorm.f",
    "layernorm.fb",
    "attention.f",
    "attention.fb",
    "attention.jvp",
];

/// The cases of a call, made when they are asked for: weights and inputs of one at a time are in memory.
pub fn cases<'d>(device: &'d Device, args: &BenchArgs) -> Result<Vec<Box<dyn FnOnce() -> Result<Case> + 'd>>> {
    let mut all: Vec<Box<dyn FnOnce() -> Result<Case> + 'd>> = vec![];
    let mut add = |one: Single| all.push(Box::new(move || single(device, &one)));
    if !args.ops.is_empty() {
        args.ops.iter().cloned().for_each(add);
        return Ok(all);
    }
    if matches!(args.suite, Suite::Ops | Suite::All) {
        for dtype in [DType::F32, DType::F16] {
            for op in OPS {
                add(Single { dtype, ..op.parse().expect("the table's entries are operations") });
            }
        }
        for (name, operands, body) in POINTWISE {
            all.push(Box::new(move || pointwise(device, name, operands, body)));
        }
    }
    if matches!(args.suite, Suite::Models | Suite::All) {
        for (name, network, data, batch) in models() {
            for precision in [Precision::F32, Precision::F16] {
                let (name, network, data) = (name, network.clone(), data.clone());
                all.push(Box::new(move || step(device, name, &network, &data, batch, precision)));
            }
        }
    }
    Ok(all)
}

fn single(device: &Device, single: &Single) -> Result<Case> {
    let func = single.func()?;
    let inputs = func.param_types().into_iter().map(drawn).collect();
    Ok(Case { name: single.to_string(), func, options: device.options(), dtype: single.dtype, inputs })
}

/// Work that memory bounds, on `[4096, 1024]`: name, operands, what is computed.
type Pointwise = (&'static str, usize, for<'g> fn(&[Tensor<'g>]) -> Tensor<'g>);
const POINTWISE: [Pointwise; 4] = [
    ("add", 2, |x| x[0] + x[1]),
    ("silu", 1, |x| x[0].silu()),
    ("sum over rows", 1, |x| x[0].sum(&[0])),
    ("transpose", 1, |x| x[0].transpose(&[1, 0]) + 1.0),
];

fn pointwise(
    device: &Device,
    name: &str,
    operands: usize,
    body: for<'g> fn(&[Tensor<'g>]) -> Tensor<'g>,
) -> Result<Case> {
    let g = Graph::new(name);
    let x: Vec<Tensor> = (0..operands).map(|i| g.param(&format!("x{i}"), Type::f32([4096, 1024]))).collect();
    let y = body(&x);
    // One element more, to be read back to wait for the device.
    let func = g.finish(&[y, y.reshape(&[y.dims().iter().product()]).slice(0, 0, 1)])?;
    let inputs = func.param_types().into_iter().map(drawn).collect();
    let name = format!("{name}:4096x1024:f32");
    Ok(Case { name, func, options: device.options(), dtype: DType::F32, inputs })
}

/// Networks with the data they see and a batch.
fn models() -> Vec<(&'static str, Network, DataSpec, usize)> {
    let mlp = Network::Mlp(MlpConfig::default());
    let dit = |dim, depth, heads| {
        Network::Dit(DitConfig {
            dim: Some(dim),
            depth: Some(depth),
            heads: Some(heads),
            patch: 4,
            ..Default::default()
        })
    };
    let points = DataSpec { dims: vec![2], classes: 0 };
    let digits = DataSpec { dims: vec![32, 32, 1], classes: 10 };
    let colour = DataSpec { dims: vec![32, 32, 3], classes: 10 };
    vec![
        ("mlp step, batch 256", mlp, points, 256),
        ("dit 128x4/4 step, 32x32x1, batch 16", dit(128, 4, 4), digits, 16),
        ("dit 192x6/4 step, 32x32x3, batch 16", dit(192, 6, 3), colour, 16),
    ]
}

/// A whole training step. In `f16` without loss scaling: it is timed, not trained.
fn step(
    device: &Device,
    name: &str,
    network: &Network,
    data: &DataSpec,
    batch: usize,
    precision: Precision,
) -> Result<Case> {
    let network = network.resolve(data)?;
    let options = StepOptions { batch, accumulate: 1, level_bins: 0, scaling: None, ..StepOptions::default() };
    let program =
        train_step(&network, &Preset::Sit.process(), &OptimConfig::default(), &EmaConfig::default(), &options)?;
    let mut inputs = program.initial_state(0);
    inputs.extend(program.constants(0));
    inputs.extend(program.batch.iter().map(|p| drawn(&p.ty)));
    let (shown, dtype) = match precision {
        Precision::F16 => ("f16", DType::F16),
        _ => ("f32", DType::F32),
    };
    let options = device.options().with_donate(&program.donate).with_precision(precision);
    Ok(Case { name: format!("{name}, {shown}"), func: program.func, options, dtype, inputs })
}
