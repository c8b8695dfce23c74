//! A function of tensors, its gradient, its directional derivative, and its program on a device.
//!
//! `cargo run --example quickstart [-- DEVICE]`

use dnx::prelude::*;
use dnx::runtime::Jit;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let selector = std::env::args().nth(1);
    let device = Device::open(selector.as_deref())?;
    println!("device: {}", device.name());

    // A graph reads like the formula: the mean squared error of a linear map.
    let g = Graph::new("error");
    let (w, x, y) = (g.param("w", Type::f32([3, 1])), g.param("x", Type::f32([4, 3])), g.param("y", Type::f32([4, 1])));
    let error = g.finish(&[(x.matmul(w) - y).square().mean_all()])?;
    println!("{error}");

    // Derivatives are functions of the same kind: graph in, graph out.
    let slope = grad(&error, &[0])?;
    let along = jvp(&error, &[0])?;

    let w = Array::f32([3, 1], &[0.5, -1.0, 2.0]);
    let x = Array::f32([4, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    let y = Array::f32([4, 1], &[1.0, 2.0, 3.0, 6.0]);
    let inputs = device.upload_all(&[w.clone(), x, y])?;
    let run = |func: &Func, more: &[Array]| -> Result<Vec<Array>, Box<dyn std::error::Error>> {
        let mut inputs = inputs.clone();
        inputs.extend(device.upload_all(more)?);
        let outputs = device.compile(func, &[])?.run(&inputs)?;
        Ok(outputs.iter().map(|b| b.download()).collect::<Result<_, _>>()?)
    };
    let value = run(&error, &[])?[0].get(0).to_f64();
    let gradient = run(&slope, &[])?[0].to_f64_vec();
    // Along the direction of the weights themselves the derivative is their product with the gradient.
    let directional = run(&along, std::slice::from_ref(&w))?[1].get(0).to_f64();
    let product: f64 = gradient.iter().zip(w.to_f64_vec()).map(|(g, w)| g * w).sum();
    println!("error {value:.4}, gradient {gradient:.4?}, along w {directional:.4} = {product:.4}");
    assert!((directional - product).abs() < 1e-4 * product.abs().max(1.0));

    // A Jit traces a Rust function once per signature of argument types.
    let softmax = Jit::new(device.clone(), "softmax", |_, args| {
        let e = (args[0] - args[0].max(&[1]).unsqueeze(1)).exp();
        vec![e / e.sum(&[1]).unsqueeze(1)]
    });
    let logits = device.upload(&Array::f32([1, 3], &[1.0, 2.0, 3.0]))?;
    let p = softmax.run(&[logits])?[0].download()?.to_f32_vec();
    println!("softmax {p:.4?}");
    assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    Ok(())
}
