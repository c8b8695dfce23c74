//! The burn worker of `compare.py`, on burn's wgpu back end with fusion and autotuning.
//!
//! `compare-burn mlp|dit|ops [SPEC]`, SPEC as JSON with the sizes that `compare.py` lists. For the protocol and the
//! workloads see there.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::{gelu_approximate, silu, softmax};
use burn::tensor::module::{attention, conv2d, layer_norm};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use serde_json::{Value, json};
use std::time::Instant;

/// Batches that training steps take turns with.
const POOL: usize = 8;

/// The sizes of a workload.
#[derive(Clone)]
struct Spec(Value);

impl Spec {
    fn size(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap_or_else(|| panic!("the spec wants {key}")) as usize
    }

    fn side(&self) -> usize {
        self.size("img") / self.size("patch")
    }

    fn patch_width(&self) -> usize {
        self.size("patch").pow(2) * self.size("chan")
    }

    fn optimizer(&self) -> (ModuleOptimizer, f64) {
        let config = AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.999).with_epsilon(1e-8).with_weight_decay(0.01);
        (config.init(), self.0["lr"].as_f64().expect("the spec wants lr"))
    }
}

fn normal<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
}

fn uniform<const D: usize>(dims: [usize; D], low: f64, high: f64, device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Uniform(low, high), device)
}

fn linear(from: usize, to: usize, device: &Device) -> Linear {
    LinearConfig::new(from, to).init(device)
}

/// A layer that starts at zero: gates and the last one.
fn zero(from: usize, to: usize, device: &Device) -> Linear {
    LinearConfig::new(from, to).with_initializer(Initializer::Zeros).init(device)
}

#[derive(Module, Debug)]
struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    fn new(s: &Spec, device: &Device) -> Mlp {
        let mut widths = vec![3];
        widths.extend(vec![s.size("hidden"); s.size("layers")]);
        widths.push(2);
        Mlp { layers: widths.windows(2).map(|w| linear(w[0], w[1], device)).collect() }
    }

    /// The error of the predicted noise at noised points.
    fn loss(&self, x0: Tensor<2>, eps: Tensor<2>, t: Tensor<1>) -> Tensor<1> {
        let t: Tensor<2> = t.unsqueeze_dim(1);
        let alpha = t.clone().neg().exp();
        let sigma = (t.clone().mul_scalar(-2.0).exp().neg() + 1.0).sqrt();
        let mut h = Tensor::cat(vec![alpha * x0 + sigma * eps.clone(), t], 1);
        for (i, layer) in self.layers.iter().enumerate() {
            h = layer.forward(if i > 0 { silu(h) } else { h });
        }
        (h - eps).square().mean()
    }
}

#[derive(Module, Debug)]
struct Block {
    ada: Linear,
    qkv: Linear,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
}

#[derive(Module, Debug)]
struct Dit {
    patch: Linear,
    t1: Linear,
    t2: Linear,
    label: Embedding,
    blocks: Vec<Block>,
    fada: Linear,
    out: Linear,
}

/// What the transformer needs beside its weights.
struct Fixed {
    spec: Spec,
    /// `[1, tokens, dim]`: sines and cosines of the row, then of the column.
    positions: Tensor<3>,
    frequencies: Tensor<2>,
    ones: Tensor<1>,
}

impl Fixed {
    fn new(spec: &Spec, device: &Device) -> Fixed {
        let (side, dim) = (spec.side(), spec.size("dim"));
        let quarter = dim / 4;
        let mut table: Vec<f32> = vec![];
        for token in 0..side * side {
            for place in [token / side, token % side] {
                let angle = |i: usize| place as f64 / 10000f64.powf(i as f64 / quarter as f64);
                table.extend((0..quarter).map(|i| angle(i).sin() as f32));
                table.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
        let frequencies: Vec<f32> = (0..128).map(|i| (-(10000f64.ln()) * i as f64 / 128.0).exp() as f32).collect();
        Fixed {
            spec: spec.clone(),
            positions: Tensor::from_data(TensorData::new(table, [1, side * side, dim]), device),
            frequencies: Tensor::from_data(TensorData::new(frequencies, [1, 128]), device),
            ones: Tensor::ones([dim], device),
        }
    }

    /// Layer norm, scaled and shifted by the condition.
    fn modulated(&self, x: Tensor<3>, shift: &Tensor<3>, scale: &Tensor<3>) -> Tensor<3> {
        layer_norm(x, self.ones.clone(), None, 1e-6) * (scale.clone() + 1.0) + shift.clone()
    }
}

/// `[B, n D]` as n of `[B, 1, D]`.
fn parts(x: Tensor<2>, n: usize) -> Vec<Tensor<3>> {
    x.chunk(n, 1).into_iter().map(|part| part.unsqueeze_dim(1)).collect()
}

impl Dit {
    fn new(s: &Spec, device: &Device) -> Dit {
        let (d, p) = (s.size("dim"), s.patch_width());
        let block = |_| Block {
            ada: zero(d, 6 * d, device),
            qkv: linear(d, 3 * d, device),
            proj: linear(d, d, device),
            fc1: linear(d, 4 * d, device),
            fc2: linear(4 * d, d, device),
        };
        Dit {
            patch: linear(p, d, device),
            t1: linear(256, d, device),
            t2: linear(d, d, device),
            label: EmbeddingConfig::new(s.size("classes") + 1, d).init(device),
            blocks: (0..s.size("depth")).map(block).collect(),
            fada: zero(d, 2 * d, device),
            out: zero(d, p, device),
        }
    }

    fn forward(&self, fixed: &Fixed, x: Tensor<4>, t: Tensor<1>, y: Tensor<1, Int>) -> Tensor<4> {
        let s = &fixed.spec;
        let [batch, img, _, chan] = x.dims();
        let (side, p, d, heads) = (s.side(), s.size("patch"), s.size("dim"), s.size("heads"));
        let tokens = side * side;
        let patches: Tensor<6> = x.reshape([batch, side, p, side, p, chan]).permute([0, 1, 3, 2, 4, 5]);
        let patches: Tensor<3> = patches.reshape([batch, tokens, p * p * chan]);
        let mut h = self.patch.forward(patches) + fixed.positions.clone();
        let angles = t.mul_scalar(1000.0).unsqueeze_dim::<2>(1) * fixed.frequencies.clone();
        let time: Tensor<2> = Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1);
        let time = self.t2.forward(silu(self.t1.forward(time)));
        let label: Tensor<2> = self.label.forward(y.unsqueeze_dim::<2>(1)).squeeze_dim(1);
        let condition = silu(time + label);
        for block in &self.blocks {
            let m = parts(block.ada.forward(condition.clone()), 6);
            let qkv = block.qkv.forward(fixed.modulated(h.clone(), &m[0], &m[1]));
            let qkv: Tensor<5> = qkv.reshape([batch, tokens, 3, heads, d / heads]).permute([2, 0, 3, 1, 4]);
            let qkv: Vec<Tensor<4>> = qkv.chunk(3, 0).into_iter().map(|part| part.squeeze_dim(0)).collect();
            let [q, k, v]: [Tensor<4>; 3] = qkv.try_into().expect("three parts");
            let mixed = attention(q, k, v, None, None, Default::default());
            let mixed: Tensor<3> = mixed.swap_dims(1, 2).reshape([batch, tokens, d]);
            h = h + m[2].clone() * block.proj.forward(mixed);
            let hidden = block.fc1.forward(fixed.modulated(h.clone(), &m[3], &m[4]));
            h = h + m[5].clone() * block.fc2.forward(gelu_approximate(hidden));
        }
        let m = parts(self.fada.forward(condition), 2);
        let out: Tensor<3> = self.out.forward(fixed.modulated(h, &m[0], &m[1]));
        let out: Tensor<6> = out.reshape([batch, side, side, p, p, chan]).permute([0, 1, 3, 2, 4, 5]);
        out.reshape([batch, img, img, chan])
    }

    /// The error of the predicted velocity on the straight path.
    fn loss(&self, fixed: &Fixed, x0: Tensor<4>, eps: Tensor<4>, t: Tensor<1>, y: Tensor<1, Int>) -> Tensor<1> {
        let tt: Tensor<4> = t.clone().reshape([-1, 1, 1, 1]);
        let x = (tt.clone().neg() + 1.0) * x0.clone() + tt * eps.clone();
        (self.forward(fixed, x, t, y) - (eps - x0)).square().mean()
    }
}

/// Work that can be repeated: so many runs, by KEY; gives the last loss with the device idle.
type Work = Box<dyn FnMut(usize, &str) -> f64>;

fn read(loss: Tensor<1>, device: &Device) -> f64 {
    let value = loss.into_scalar::<f32>() as f64;
    device.sync().expect("the device waits");
    value
}

fn train_mlp(s: Spec, device: Device) -> Work {
    let (b, (mut optimizer, lr)) = (s.size("batch"), s.optimizer());
    let pool: Vec<Tensor<2>> = (0..POOL).map(|_| normal([b, 2], &device)).collect();
    let (mut model, mut at) = (Some(Mlp::new(&s, &device)), 0);
    Box::new(move |n, _| {
        let mut last = None;
        for _ in 0..n {
            let m = model.take().expect("a model between steps");
            let loss = m.loss(pool[at % POOL].clone(), normal([b, 2], &device), uniform([b], 0.001, 0.999, &device));
            let gradients = GradientsParams::from_grads(loss.backward(), &m);
            model = Some(optimizer.step(lr, m, gradients));
            last = Some(loss);
            at += 1;
        }
        device.sync().expect("the device waits");
        read(last.expect("one step at least"), &device)
    })
}

fn train_dit(s: Spec, device: Device) -> Work {
    let dims = [s.size("batch"), s.size("img"), s.size("img"), s.size("chan")];
    let (b, classes, (mut optimizer, lr)) = (dims[0], s.size("classes"), s.optimizer());
    let pool: Vec<Tensor<4>> = (0..POOL).map(|_| normal(dims, &device)).collect();
    let (mut model, fixed, mut at) = (Some(Dit::new(&s, &device)), Fixed::new(&s, &device), 0);
    Box::new(move |n, _| {
        let mut last = None;
        for _ in 0..n {
            let m = model.take().expect("a model between steps");
            let y: Tensor<1, Int> = Tensor::random([b], Distribution::Uniform(0.0, classes as f64), &device);
            let y = y.mask_fill(uniform([b], 0.0, 1.0, &device).lower_elem(0.1), classes as i32);
            let t = uniform([b], 0.001, 0.999, &device);
            let loss = m.loss(&fixed, pool[at % POOL].clone(), normal(dims, &device), t, y);
            let gradients = GradientsParams::from_grads(loss.backward(), &m);
            model = Some(optimizer.step(lr, m, gradients));
            last = Some(loss);
            at += 1;
        }
        device.sync().expect("the device waits");
        read(last.expect("one step at least"), &device)
    })
}

/// Runs an operation, with its gradients if it has a cotangent, and waits for all of it. Execution is lazy, so one
/// element of every result is read back.
fn run<const D: usize, const R: usize>(
    inputs: &[Tensor<D>],
    cotangent: Option<&Tensor<R>>,
    device: &Device,
    body: impl Fn(&[Tensor<D>]) -> Tensor<R>,
) {
    fn touch<const D: usize>(t: Tensor<D>) {
        let n = t.shape().num_elements();
        t.reshape([n]).slice([0..1]).into_scalar::<f32>();
    }
    let y = body(inputs);
    match cotangent {
        None => touch(y),
        Some(cotangent) => {
            let mut gradients = (y * cotangent.clone()).sum().backward();
            inputs.iter().for_each(|x| touch(x.grad_remove(&mut gradients).expect("a gradient of every input")));
        }
    }
    device.sync().expect("the device waits");
}

/// One operation as `compare.py` writes it: `NAME:SIZES:f32.PASS`.
fn single(key: &str, device: &Device) -> Work {
    let (body, pass) = key.split_once('.').expect("an operation has a pass");
    let mut words = body.split(':');
    let (name, sizes) = (words.next().expect("a name"), words.next().expect("sizes"));
    assert_eq!(words.next(), Some("f32"), "burn's operations are timed in f32");
    let sizes: Vec<usize> = sizes.split('x').map(|s| s.parse().expect("sizes are numbers")).collect();
    let backward = match pass {
        "f" => false,
        "fb" => true,
        other => panic!("burn has no pass {other}"),
    };
    let device = if backward { device.clone().autodiff() } else { device.clone() };
    fn draw<const D: usize>(all: &[[usize; D]], backward: bool, device: &Device) -> Vec<Tensor<D>> {
        let one = |dims: &[usize; D]| normal(*dims, device);
        all.iter().map(one).map(|x| if backward { x.require_grad() } else { x }).collect()
    }
    match (name, &sizes[..]) {
        ("matmul", &[m, k, n]) => {
            let inputs = [draw(&[[m, k]], backward, &device), draw(&[[k, n]], backward, &device)].concat();
            let cotangent = backward.then(|| normal([m, n], &device));
            Box::new(move |times, _| {
                for _ in 0..times {
                    run(&inputs, cotangent.as_ref(), &device, |x| x[0].clone().matmul(x[1].clone()));
                }
                0.0
            })
        }
        ("softmax", &[r, c]) => {
            let inputs = draw(&[[r, c]], backward, &device);
            let cotangent = backward.then(|| normal([r, c], &device));
            Box::new(move |times, _| {
                for _ in 0..times {
                    run(&inputs, cotangent.as_ref(), &device, |x| softmax(x[0].clone(), 1));
                }
                0.0
            })
        }
        ("layernorm", &[r, c]) => {
            // Scale and shift have one row, so that all inputs have two dims.
            let inputs = draw(&[[r, c]], backward, &device);
            let affine = draw(&[[1, c], [1, c]], backward, &device);
            let inputs = [inputs, affine].concat();
            let cotangent = backward.then(|| normal([r, c], &device));
            Box::new(move |times, _| {
                for _ in 0..times {
                    run(&inputs, cotangent.as_ref(), &device, |x| {
                        let [scale, shift] = [1, 2].map(|i| x[i].clone().reshape([c]));
                        layer_norm(x[0].clone(), scale, Some(shift), 1e-5)
                    });
                }
                0.0
            })
        }
        ("conv2d", &[b, s, c]) => {
            let inputs = draw(&[[b, c, s, s], [c, c, 3, 3]], backward, &device);
            let cotangent = backward.then(|| normal([b, c, s, s], &device));
            Box::new(move |times, _| {
                for _ in 0..times {
                    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
                    run(&inputs, cotangent.as_ref(), &device, |x| {
                        conv2d(x[0].clone(), x[1].clone(), None, options.clone())
                    });
                }
                0.0
            })
        }
        ("attention", &[b, h, t, d]) => {
            let inputs = draw(&[[b, h, t, d]; 3], backward, &device);
            let cotangent = backward.then(|| normal([b, h, t, d], &device));
            Box::new(move |times, _| {
                for _ in 0..times {
                    run(&inputs, cotangent.as_ref(), &device, |x| {
                        attention(x[0].clone(), x[1].clone(), x[2].clone(), None, None, Default::default())
                    });
                }
                0.0
            })
        }
        (name, sizes) => panic!("no operation {name} of {} sizes", sizes.len()),
    }
}

fn singles(device: Device) -> Work {
    let mut ready = std::collections::HashMap::new();
    Box::new(move |n, key| ready.entry(key.to_string()).or_insert_with(|| single(key, &device))(n, key))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let workload = args.get(1).expect("which workload? mlp, dit, ops").as_str();
    let spec = Spec(args.get(2).map_or(Value::Null, |s| serde_json::from_str(s).expect("the spec is JSON")));
    let device = Device::wgpu(Default::default());
    let adapter = device.identity().map_or("unknown".to_string(), |i| i.name);
    let began = Instant::now();
    let (mut work, warm) = match workload {
        "mlp" => (train_mlp(spec, device.autodiff()), true),
        "dit" => (train_dit(spec, device.autodiff()), true),
        "ops" => (singles(device), false),
        other => panic!("no workload {other}; there are mlp, dit, ops"),
    };
    let loss = if warm { work(1, "") } else { 0.0 };
    let first = began.elapsed().as_secs_f64();
    let version = "burn 0.22.1, wgpu";
    println!("{}", json!({"ready": 1, "first_step_s": first, "loss": loss, "version": version, "adapter": adapter}));
    for line in std::io::stdin().lines() {
        let line = line.expect("requests are text");
        let mut words = line.split_whitespace();
        let Some("run") = words.next() else { break };
        let n: usize = words.next().and_then(|n| n.parse().ok()).expect("run wants a number");
        let key = words.next().unwrap_or("");
        let began = Instant::now();
        let loss = work(n, key);
        println!("{}", json!({"ms": began.elapsed().as_secs_f64() * 1e3, "n": n, "loss": loss}));
    }
}
