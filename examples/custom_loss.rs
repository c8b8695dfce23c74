//! A loss of one's own: a network from the library, an objective written here, its gradient and an optimizer step
//! as one program.
//!
//! The objective is a robust (Huber-like) flow-matching loss, `sqrt(1 + |v - (n - x0)|^2) - 1`.
//!
//! `cargo run --example custom_loss [-- DEVICE]`

use dnx::ir::random;
use dnx::models::network::{Inputs, MlpConfig};
use dnx::models::{DataSpec, Network, Params, init};
use dnx::prelude::*;
use dnx::train::data::{DataConfig, DataKind, Dataset};

const BATCH: usize = 128;
const STEPS: u64 = 200;
const RATE: f64 = 0.02;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open(std::env::args().nth(1).as_deref())?;
    let config = MlpConfig { hidden: 64, time_width: 32, classes: Some(0), ..MlpConfig::default() };
    let network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 0 })?;
    let specs = network.specs()?;

    // The loss: parameters, then a key and a batch of data.
    let g = Graph::new("robust_flow");
    let params = Params::declare(&g, &specs);
    let key = g.param("key", Type::new(DType::U32, [2]));
    let x0 = g.param("x0", Type::f32([BATCH, 2]));
    let noise = random::normal(&g, random::fold_in_const(&g, key, 0), &[BATCH, 2]);
    let t = random::uniform(&g, random::fold_in_const(&g, key, 1), &[BATCH]);
    let tt = t.unsqueeze(1);
    let x_t = (1.0 - tt) * x0 + tt * noise;
    let v = network.forward(&params.root(), Inputs { x: x_t, time: t * 100.0, sigma: t, label: None, second: None });
    let error = (v - (noise - x0)).square().sum(&[1]);
    let loss = g.finish(&[((error + 1.0).sqrt() - 1.0).mean_all()])?;

    // The step: plain gradient descent, parameters updated in place.
    let n = specs.len();
    let slope = std::sync::Arc::new(value_and_grad(&loss, &(0..n).collect::<Vec<_>>())?);
    let g = Graph::new("step");
    let inputs: Vec<Tensor> = loss.params.iter().map(|p| g.param(&p.name, loss.ty(p.value).clone())).collect();
    let results = g.call(&slope, &inputs);
    let mut new: Vec<Tensor> = (0..n).map(|i| inputs[i] - results[1 + i] * RATE).collect();
    new.push(results[0]);
    let step = g.finish(&new)?;
    let program = device.compile(&step, &(0..n).map(|i| (i, i)).collect::<Vec<_>>())?;

    let data = Dataset::open(&DataConfig { kind: DataKind::EightGaussians, ..DataConfig::default() }, 0)?;
    let mut arrays = init::init(&specs, 0);
    arrays.push(Array::u32([2], &[0, 0]));
    arrays.push(Array::zeros(Type::f32([BATCH, 2])));
    let bound = program.bind(&device.upload_all(&arrays)?)?;
    let mut losses = vec![];
    for i in 0..STEPS {
        bound.inputs()[n].write(&Array::u32([2], &[0, i as u32]))?;
        bound.inputs()[n + 1].write(&Array::f32([BATCH, 2], &data.batch(i, BATCH)?.samples))?;
        bound.run()?;
        losses.push(bound.outputs()[n].download()?.get(0).to_f64());
    }
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    let (first, last) = (mean(&losses[..20]), mean(&losses[losses.len() - 20..]));
    println!("loss {first:.3} at first, {last:.3} after {STEPS} steps on {}", device.name());
    assert!(last < first);
    Ok(())
}
