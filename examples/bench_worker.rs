//! Times training steps and sampling of fixed networks on request, in a worker protocol of JSON lines, so that a
//! driver can alternate between systems.
//!
//! ```text
//! bench_worker WORKLOAD [--batch N] [--device D] [--spec JSON] [--precision f32|f16|bf16-storage] [--check FILE]
//!              [--profile RUNS [--key KEY]]
//! ```
//!
//! On start one step is run and `{"ready":1,"t_first":..,"t_main":..}` is printed; then each line `run N [KEY]` on
//! stdin is answered by `{"ms":..,"n":N,"loss":..}` once N steps are done, until `quit`. With `--check FILE` weights
//! and one batch are read from FILE (flat little-endian f32, then i32 labels) and the losses of six AdamW steps
//! are printed instead. With `--profile RUNS` the kernels of a step, or
//! of the operation KEY, are printed with their times.
//!
//! Workloads: `W1` a perceptron that predicts noise, `W2` and `W3` a diffusion transformer's training step, `W4` its
//! guided Heun sampling; `W5` single operations, each named by its KEY as [`dnx::single`] says (`matmul.f`,
//! `attention:4x6x1024x64:f16.jvp`); `--spec` gives any other size of them, as
//! `{"img":32,"chan":3,"patch":4,"dim":192,"depth":6,"heads":3,"classes":10,"batch":32,"lr":1e-4}`. `mlp`, `dit` and
//! `ops` are W1, W2 and W5. `--precision` is that of training steps, without loss scaling.
//!
//! The networks are written here, on graph tensors, and not taken from the library, because the comparison fixes
//! their every detail: weights are `[in, out]`, the optimizer is AdamW without clipping or averages.

use dnx::codegen::Precision;
use dnx::models::attention::attention;
use dnx::prelude::*;
use dnx::runtime::Bound;
use dnx::single::Single;
use dnx::train::data::random::{Random, Stream};
use serde::Deserialize;
use std::io::BufRead;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

type Failure = Box<dyn std::error::Error>;

/// The sizes of a workload. A perceptron has `hidden` and `layers`; a transformer the rest.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Spec {
    hidden: usize,
    layers: usize,
    img: usize,
    chan: usize,
    patch: usize,
    dim: usize,
    depth: usize,
    heads: usize,
    classes: usize,
    batch: usize,
    lr: f64,
    steps: usize,
    cfg: f64,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            hidden: 0,
            layers: 0,
            img: 32,
            chan: 3,
            patch: 4,
            dim: 192,
            depth: 6,
            heads: 3,
            classes: 10,
            batch: 32,
            lr: 1e-4,
            steps: 0,
            cfg: 2.0,
        }
    }
}

impl Spec {
    fn named(name: &str) -> Option<Spec> {
        let dit = Spec::default();
        Some(match name {
            "W1" | "mlp" => Spec { hidden: 256, layers: 4, batch: 512, lr: 1e-3, ..dit },
            "W2" | "W6" | "dit" => dit,
            "W3" => Spec { chan: 4, patch: 2, dim: 384, depth: 12, heads: 6, batch: 4, ..dit },
            "W4" => Spec { batch: 16, steps: 16, ..dit },
            "W5" | "ops" => Spec { depth: 0, ..dit },
            "DIT_B2" => Spec { chan: 4, patch: 2, dim: 768, depth: 12, heads: 12, classes: 1000, batch: 64, ..dit },
            "DIT_XL2" => Spec { chan: 4, patch: 2, dim: 1152, depth: 28, heads: 16, classes: 1000, batch: 64, ..dit },
            "TINY" => Spec { img: 8, chan: 4, patch: 2, dim: 32, depth: 2, heads: 2, batch: 2, ..dit },
            _ => return None,
        })
    }

    fn is_mlp(&self) -> bool {
        self.hidden > 0
    }

    fn side(&self) -> usize {
        self.img / self.patch
    }

    fn tokens(&self) -> usize {
        self.side() * self.side()
    }

    fn patch_dim(&self) -> usize {
        self.patch * self.patch * self.chan
    }

    /// Dims of a batch.
    fn batch_dims(&self) -> Vec<usize> {
        if self.is_mlp() { vec![self.batch, 2] } else { vec![self.batch, self.img, self.img, self.chan] }
    }

    /// Names and dims of the weights, in the order of the check file.
    fn params(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![];
        let mut linear = |name: String, from: usize, to: usize| {
            all.push((format!("{name}.w"), vec![from, to]));
            all.push((format!("{name}.b"), vec![to]));
        };
        if self.is_mlp() {
            let mut widths = vec![3];
            widths.extend(vec![self.hidden; self.layers]);
            widths.push(2);
            widths.windows(2).enumerate().for_each(|(i, w)| linear(format!("l{i}"), w[0], w[1]));
            return all;
        }
        let (d, p) = (self.dim, self.patch_dim());
        linear("patch".into(), p, d);
        linear("t1".into(), 256, d);
        linear("t2".into(), d, d);
        all.push(("label".into(), vec![self.classes + 1, d]));
        let mut linear = |name: String, from: usize, to: usize| {
            all.push((format!("{name}.w"), vec![from, to]));
            all.push((format!("{name}.b"), vec![to]));
        };
        for i in 0..self.depth {
            for (name, from, to) in
                [("ada", d, 6 * d), ("qkv", d, 3 * d), ("proj", d, d), ("fc1", d, 4 * d), ("fc2", 4 * d, d)]
            {
                linear(format!("b{i}.{name}"), from, to);
            }
        }
        linear("fada".into(), d, 2 * d);
        linear("out".into(), d, p);
        all
    }

    /// The fixed 2-D sin-cos embedding `[tokens, dim]`: rows in the first half of the channels, columns in the second.
    fn positions(&self) -> Array {
        let (side, quarter) = (self.side(), self.dim / 4);
        let mut table = Vec::with_capacity(self.tokens() * self.dim);
        for token in 0..self.tokens() {
            for place in [token / side, token % side] {
                let angle = |i: usize| place as f64 / 10000f64.powf(i as f64 / quarter as f64);
                table.extend((0..quarter).map(|i| angle(i).sin() as f32));
                table.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
        Array::f32([self.tokens(), self.dim], &table)
    }

    /// Starting weights: the last and the gating layers at zero, biases at zero.
    fn initial(&self) -> Vec<Array> {
        let mut random = Random::new(0, Stream::Noise, 0);
        let draw = |(name, dims): (String, Vec<usize>)| {
            let zero = name.ends_with(".b") || (!self.is_mlp() && (name.contains("ada") || name == "out.w"));
            let std = match (zero, name == "label") {
                (true, _) => 0.0,
                (_, true) => 0.02,
                _ => 1.0 / (dims[0] as f64).sqrt(),
            };
            let n: usize = dims.iter().product();
            let values: Vec<f32> = (0..n).map(|_| (std * random.normal()) as f32).collect();
            Array::f32(dims, &values)
        };
        self.params().into_iter().map(draw).collect()
    }
}

/// The weights of a graph, taken in order.
struct Weights<'w, 'g> {
    tensors: std::slice::Iter<'w, Tensor<'g>>,
}

impl<'g> Weights<'_, 'g> {
    fn next(&mut self) -> Tensor<'g> {
        *self.tensors.next().expect("as many weights as the network names")
    }

    fn linear(&mut self, x: Tensor<'g>) -> Tensor<'g> {
        let (w, b) = (self.next(), self.next());
        x.matmul(w) + b
    }
}

fn mlp<'g>(s: &Spec, weights: &[Tensor<'g>], x: Tensor<'g>, t: Tensor<'g>) -> Tensor<'g> {
    let mut w = Weights { tensors: weights.iter() };
    let mut h = x.graph().concat(&[x, t.unsqueeze(1)], 1);
    for _ in 0..s.layers {
        h = w.linear(h).silu();
    }
    w.linear(h)
}

/// Layer norm without affine part.
fn norm<'g>(x: Tensor<'g>) -> Tensor<'g> {
    let last = x.rank() - 1;
    let centred = x - x.mean(&[last]).unsqueeze(last);
    centred * (centred.square().mean(&[last]).unsqueeze(last) + 1e-6).rsqrt()
}

fn gelu<'g>(x: Tensor<'g>) -> Tensor<'g> {
    let inner = (x + x * x * x * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    x * 0.5 * (inner.tanh() + 1.0)
}

fn dit<'g>(s: &Spec, weights: &[Tensor<'g>], x: Tensor<'g>, t: Tensor<'g>, y: Tensor<'g>) -> Tensor<'g> {
    let g = x.graph();
    let mut w = Weights { tensors: weights.iter() };
    let (b, side, p, d) = (x.dim(0), s.side(), s.patch, s.dim);
    let grid = [b, side, side, p, p, s.chan];
    let patches = x.reshape(&[b, side, p, side, p, s.chan]).transpose(&[0, 1, 3, 2, 4, 5]);
    let mut h = w.linear(patches.reshape(&[b, s.tokens(), s.patch_dim()])) + g.constant(s.positions());
    let frequencies: Vec<f32> = (0..128).map(|i| (-(10000f64.ln()) * i as f64 / 128.0).exp() as f32).collect();
    let angles = (t * 1000.0).unsqueeze(1) * g.constant(Array::f32([1, 128], &frequencies));
    let embedded = w.linear(g.concat(&[angles.cos(), angles.sin()], 1)).silu();
    let time = w.linear(embedded);
    let condition = (time + w.next().take(y)).silu();
    let modulated = |h: Tensor<'g>, shift: Tensor<'g>, scale: Tensor<'g>| norm(h) * (scale + 1.0) + shift;
    for _ in 0..s.depth {
        let m: Vec<Tensor> = w.linear(condition).unsqueeze(1).split(2, 6);
        let qkv = w.linear(modulated(h, m[0], m[1]));
        let heads = [b, s.tokens(), s.heads, d / s.heads];
        let parts = qkv.split(2, 3);
        let [q, k, v] = [0, 1, 2].map(|i| parts[i].reshape(&heads));
        let mixed = attention(q, k, v, ((d / s.heads) as f64).powf(-0.5)).reshape(&[b, s.tokens(), d]);
        h = h + m[2] * w.linear(mixed);
        let hidden = gelu(w.linear(modulated(h, m[3], m[4])));
        h = h + m[5] * w.linear(hidden);
    }
    let m = w.linear(condition).unsqueeze(1).split(2, 2);
    let out = w.linear(modulated(h, m[0], m[1]));
    out.reshape(&grid).transpose(&[0, 1, 3, 2, 4, 5]).reshape(&[b, s.img, s.img, s.chan])
}

/// The mean squared error of a batch given noise, times and labels.
fn loss<'g>(s: &Spec, weights: &[Tensor<'g>], batch: &[Tensor<'g>]) -> Tensor<'g> {
    let (x0, eps, t) = (batch[0], batch[1], batch[2]);
    if s.is_mlp() {
        let (alpha, sigma) = ((-t).exp().unsqueeze(1), (1.0 - (t * -2.0).exp()).sqrt().unsqueeze(1));
        return (mlp(s, weights, alpha * x0 + sigma * eps, t) - eps).square().mean_all();
    }
    let tt = t.expand_right(4);
    let x = (1.0 - tt) * x0 + tt * eps;
    (dit(s, weights, x, t, batch[3]) - (eps - x0)).square().mean_all()
}

/// Types of a batch: `x0`, `eps`, `t`, and `y` for the transformer.
fn batch_types(s: &Spec) -> Vec<Type> {
    let mut types = vec![Type::f32(s.batch_dims()), Type::f32(s.batch_dims()), Type::f32([s.batch])];
    if !s.is_mlp() {
        types.push(Type::new(DType::I32, [s.batch]));
    }
    types
}

/// The loss as a function of weights and batch.
fn loss_func(s: &Spec) -> dnx::ir::Result<Func> {
    let g = Graph::new("loss");
    let weights: Vec<Tensor> = s.params().into_iter().map(|(n, d)| g.param(&n, Type::f32(d))).collect();
    let batch: Vec<Tensor> = batch_types(s).into_iter().map(|ty| g.param("batch", ty)).collect();
    g.finish(&[loss(s, &weights, &batch)])
}

/// One AdamW step. Inputs: weights, first and second moments, step counter `f32[]`, then the batch, or, with
/// `draws`, the pool's batch and a key from which noise, times and labels are drawn. Results: the same state, the loss.
fn step_func(s: &Spec, draws: bool) -> Result<Func, Failure> {
    let specs = s.params();
    let n = specs.len();
    let wrt: Vec<usize> = (0..n).collect();
    let grad = std::sync::Arc::new(value_and_grad(&loss_func(s)?, &wrt)?);
    let g = Graph::new("step");
    let mut state: Vec<Tensor> = vec![];
    for kind in ["", "m/", "v/"] {
        state.extend(specs.iter().map(|(name, d)| g.param(&format!("{kind}{name}"), Type::f32(d.clone()))));
    }
    let count = g.param("count", Type::f32([]));
    let batch: Vec<Tensor> = if draws {
        let x0 = g.param("x0", Type::f32(s.batch_dims()));
        drawn(s, &g, x0, count)
    } else {
        batch_types(s).into_iter().map(|ty| g.param("batch", ty)).collect()
    };
    let mut args = state[..n].to_vec();
    args.extend(&batch);
    let results = g.call(&grad, &args);
    let (b1, b2, eps, decay) = (0.9f64, 0.999f64, 1e-8, 0.01);
    let now = count + 1.0;
    let correction = |beta: f64| {
        // 1 - beta^t through tanh, exact where beta^t is close to 1.
        let h = (now * (-0.5 * beta.ln())).tanh();
        (h * 2.0) / (h + 1.0)
    };
    let (c1, c2) = (correction(b1), correction(b2));
    let mut new = state.clone();
    for i in 0..n {
        let grad = results[1 + i];
        let m = state[n + i] * b1 + grad * (1.0 - b1);
        let v = state[2 * n + i] * b2 + grad * grad * (1.0 - b2);
        new[i] = state[i] * (1.0 - s.lr * decay) - (m / c1) / ((v / c2).sqrt() + eps) * s.lr;
        (new[n + i], new[2 * n + i]) = (m, v);
    }
    new.extend([now, results[0]]);
    Ok(g.finish(&new)?)
}

/// Noise, times and labels of a training batch, from the step's number.
fn drawn<'g>(s: &Spec, g: &'g Graph, x0: Tensor<'g>, count: Tensor<'g>) -> Vec<Tensor<'g>> {
    use dnx::ir::random::{normal, uniform};
    let number = count.convert(DType::U32).reshape(&[1]);
    let key = |stream: u32| g.concat(&[g.full(DType::U32, &[1], stream as f64), number], 0);
    let eps = normal(g, key(1), &s.batch_dims());
    let t = uniform(g, key(2), &[s.batch]) * 0.998 + 0.001;
    let mut batch = vec![x0, eps, t];
    if !s.is_mlp() {
        let classes = s.classes as f64;
        let y = (uniform(g, key(3), &[s.batch]) * classes).floor().convert(DType::I32);
        let null = g.full(DType::I32, &[s.batch], classes);
        let keep = uniform(g, key(4), &[s.batch]).ge(g.full(DType::F32, &[s.batch], 0.1));
        batch.push(keep.select(y, null));
    }
    batch
}

/// The guided velocity at one time for a whole batch; `both` holds the labels, then as many null labels.
fn velocity<'g>(
    s: &Spec,
    network: &std::sync::Arc<Func>,
    weights: &[Tensor<'g>],
    x: Tensor<'g>,
    t: Tensor<'g>,
    both: Tensor<'g>,
) -> Tensor<'g> {
    let g = x.graph();
    let mut args = weights.to_vec();
    args.extend([g.concat(&[x, x], 0), t.broadcast_to(&[2 * s.batch]), both]);
    let v = g.call(network, &args)[0].split(0, 2);
    v[1] + (v[0] - v[1]) * s.cfg
}

/// One Heun step of the sampler: weights, labels `i32[2B]`, `x`, times `t` and `u`; gives the next `x` and its mean.
fn heun_func(s: &Spec) -> Result<Func, Failure> {
    let network = {
        let g = Graph::new("velocity");
        let weights: Vec<Tensor> = s.params().into_iter().map(|(n, d)| g.param(&n, Type::f32(d))).collect();
        let mut twice = s.batch_dims();
        twice[0] *= 2;
        let (x, t) = (g.param("x", Type::f32(twice)), g.param("t", Type::f32([2 * s.batch])));
        let y = g.param("y", Type::new(DType::I32, [2 * s.batch]));
        std::sync::Arc::new(g.finish(&[dit(s, &weights, x, t, y)])?)
    };
    let g = Graph::new("heun");
    let weights: Vec<Tensor> = s.params().into_iter().map(|(n, d)| g.param(&n, Type::f32(d))).collect();
    let both = g.param("y", Type::new(DType::I32, [2 * s.batch]));
    let x = g.param("x", Type::f32(s.batch_dims()));
    let (t, u) = (g.param("t", Type::f32([])), g.param("u", Type::f32([])));
    let a = velocity(s, &network, &weights, x, t, both);
    let b = velocity(s, &network, &weights, x + a * (u - t), u, both);
    let next = x + (a + b) * ((u - t) * 0.5);
    Ok(g.finish(&[next, next.mean_all()])?)
}

/// The sampler's start: from the number of the run, labels with as many null labels, and noise.
fn start_func(s: &Spec) -> Result<Func, Failure> {
    use dnx::ir::random::{normal, uniform};
    let g = Graph::new("start");
    let number = g.param("number", Type::new(DType::U32, [1]));
    let key = |stream: u32| g.concat(&[g.full(DType::U32, &[1], stream as f64), number], 0);
    let x = normal(&g, key(1), &s.batch_dims());
    let y = (uniform(&g, key(2), &[s.batch]) * s.classes as f64).floor().convert(DType::I32);
    let both = g.concat(&[y, g.full(DType::I32, &[s.batch], s.classes as f64)], 0);
    Ok(g.finish(&[both, x])?)
}

/// Work that can be repeated: each call runs once. The word is the request's KEY; the flag asks for the loss.
type Work = Box<dyn FnMut(&str, bool) -> Result<f64, Failure>>;

/// Batches that training steps take turns with.
const POOL: usize = 8;

/// The training step, bound to each batch of a small pool; everything is on the device.
fn training(s: &Spec, device: &Device, precision: Precision) -> Result<Vec<Bound>, Failure> {
    let func = step_func(s, true)?;
    let n = s.params().len();
    let donate: Vec<(usize, usize)> = (0..=3 * n).map(|i| (i, i)).collect();
    let options = device.options().with_donate(&donate).with_precision(precision);
    let program = device.load(dnx::codegen::compile(&func, &options)?.exec)?;
    let weights = s.initial();
    let mut state = weights.clone();
    state.extend(weights.iter().chain(&weights).map(|w| Array::zeros(w.ty().clone())));
    state.push(Array::f32([], &[0.0]));
    let state = device.upload_all(&state)?;
    let mut bound = vec![];
    for i in 0..POOL {
        let mut random = Random::new(1, Stream::Noise, i as u64);
        let dims = s.batch_dims();
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| random.normal() as f32).collect();
        let mut inputs = state.clone();
        inputs.push(device.upload(&Array::f32(dims, &values))?);
        bound.push(program.bind(&inputs)?);
    }
    Ok(bound)
}

/// A training step on the batches of the pool in turn.
fn trainer(s: &Spec, device: &Device, precision: Precision) -> Result<Work, Failure> {
    let (bound, n) = (training(s, device, precision)?, s.params().len());
    let mut at = 0;
    Ok(Box::new(move |_, wants_loss| {
        let step = &bound[at % POOL];
        at += 1;
        step.run()?;
        if !wants_loss {
            return Ok(0.0);
        }
        Ok(step.outputs()[3 * n + 1].download()?.get(0).to_f64())
    }))
}

/// Prints where the time of a program goes: the kernels, those that take longest first, with the medians of `runs`
/// runs summed over their dispatches.
fn profile(bound: &Bound, runs: usize) -> Result<(), Failure> {
    let exec = bound.program().exec();
    let mut times = vec![vec![]; exec.steps.len()];
    for run in 0..runs + 3 {
        for (all, time) in times.iter_mut().zip(bound.profile()?) {
            all.extend((run >= 3).then_some(time.as_secs_f64() * 1e3));
        }
    }
    let mut rows = std::collections::BTreeMap::new();
    for (step, mut time) in exec.steps.iter().zip(times) {
        time.sort_by(f64::total_cmp);
        let alone = dnx::codegen::exec::Executable { steps: vec![step.clone()], ..exec.clone() };
        let costs = dnx::codegen::stats::Stats::of(&alone, 0, 0);
        let of = &costs.per_kernel[0];
        let dims = match step {
            dnx::codegen::exec::Step::Dispatch { kernel, .. } => {
                let dims = &exec.kernels[*kernel as usize].kernel.dims;
                dims.iter().map(|d| format!("{}{:?}", d.size, d.role)).collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        };
        let row = rows.entry((of.kind.clone(), of.name.clone(), dims)).or_insert((0, 0.0, 0, 0));
        *row = (row.0 + 1, row.1 + time[runs / 2], row.2 + of.flops, row.3 + of.bytes);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    println!("{:>9} {:>5} {:>8} {:>8}  kernel", "ms", "count", "GF/s", "GB/s");
    let mut total = 0.0;
    for ((kind, name, dims), (count, ms, flops, bytes)) in rows {
        total += ms;
        let (flops, bytes) = (flops as f64 / ms / 1e6, bytes as f64 / ms / 1e6);
        println!("{ms:9.3} {count:5} {flops:8.1} {bytes:8.1}  {kind} {name} [{dims}]");
    }
    println!("{total:9.3} {:5}", exec.steps.len());
    Ok(())
}

/// Guided Heun sampling: the start, and one step.
fn sampling(s: &Spec, device: &Device) -> Result<(Bound, Bound), Failure> {
    let n = s.params().len();
    let start = device.compile(&start_func(s)?, &[])?.bind(&[device.upload(&Array::u32([1], &[0]))?])?;
    let mut inputs = device.upload_all(&s.initial())?;
    inputs.extend(start.outputs().iter().cloned());
    inputs.extend([device.upload(&Array::f32([], &[0.0]))?, device.upload(&Array::f32([], &[0.0]))?]);
    let step = device.compile(&heun_func(s)?, &[(n + 1, 0)])?.bind(&inputs)?;
    Ok((start, step))
}

/// Guided Heun sampling of one batch.
fn sampler(s: &Spec, device: &Device) -> Result<Work, Failure> {
    let ((start, step), n) = (sampling(s, device)?, s.params().len());
    let (steps, mut number) = (s.steps, 0u32);
    Ok(Box::new(move |_, _| {
        start.inputs()[0].write(&Array::u32([1], &[number]))?;
        number += 1;
        start.run()?;
        for i in 0..steps {
            for (k, at) in [i, i + 1].into_iter().enumerate() {
                let time = (1.0 - at as f64 / steps as f64) as f32;
                step.inputs()[n + 2 + k].write(&Array::f32([], &[time]))?;
            }
            step.run()?;
        }
        Ok(step.outputs()[1].download()?.get(0).to_f64())
    }))
}

/// The operation of a request's KEY, on drawn inputs.
fn single(key: &str, device: &Device) -> Result<Bound, Failure> {
    let func = key.parse::<Single>()?.func()?;
    let draw = |(i, ty): (usize, &Type)| {
        let mut random = Random::new(2, Stream::Noise, i as u64);
        let values: Vec<f64> = (0..ty.elems()).map(|_| random.normal()).collect();
        Array::from_f64(ty.clone(), &values)
    };
    let inputs: Vec<Array> = func.param_types().into_iter().enumerate().map(draw).collect();
    Ok(device.compile(&func, &[])?.bind(&device.upload_all(&inputs)?)?)
}

/// Single operations, made ready when they are first asked for.
fn singles(device: &Device) -> Work {
    let device = device.clone();
    let mut ready = std::collections::HashMap::new();
    Box::new(move |key, wants_loss| {
        if !ready.contains_key(key) {
            // One at a time: large ones would fill the device together.
            ready.clear();
            ready.insert(key.to_string(), single(key, &device)?);
        }
        let bound = &ready[key];
        bound.run()?;
        // The last result is one element: reading it waits for the device and moves nothing else.
        let mark = bound.outputs().last().ok_or("an operation has results")?;
        Ok(if wants_loss { mark.download()?.get(0).to_f64() } else { 0.0 })
    })
}

/// Six steps on the weights and the batch of a file.
fn check(s: &Spec, device: &Device, path: &str) -> Result<Vec<f64>, Failure> {
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let mut at = 0;
    let mut take = |ty: Type| -> Result<Array, Failure> {
        let end = at + ty.elems() * 4;
        let part =
            bytes.get(at..end).ok_or_else(|| format!("{path} is too short: {} bytes, {end} wanted", bytes.len()))?;
        at = end;
        Ok(Array::from_bytes(ty, part.to_vec()))
    };
    let weights = s.params().into_iter().map(|(_, d)| take(Type::f32(d))).collect::<Result<Vec<_>, _>>()?;
    let n = weights.len();
    let mut inputs = weights.clone();
    inputs.extend(weights.iter().chain(&weights).map(|w| Array::zeros(w.ty().clone())));
    inputs.push(Array::f32([], &[0.0]));
    for ty in batch_types(s) {
        inputs.push(take(ty)?);
    }
    if at != bytes.len() {
        return Err(format!("{path} has {} bytes, {at} wanted", bytes.len()).into());
    }
    let donate: Vec<(usize, usize)> = (0..=3 * n).map(|i| (i, i)).collect();
    let bound = device.compile(&step_func(s, false)?, &donate)?.bind(&device.upload_all(&inputs)?)?;
    let mut losses = vec![];
    for _ in 0..6 {
        bound.run()?;
        losses.push(bound.outputs()[3 * n + 1].download()?.get(0).to_f64());
    }
    Ok(losses)
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn main() -> Result<(), Failure> {
    let t_main = unix_time();
    let mut args = std::env::args().skip(1);
    let workload = args.next().ok_or("which workload? W1, W2, W3, W4, W5, DIT_B2, DIT_XL2, TINY")?;
    let (mut batch, mut file, mut selector, mut spec) = (None, None, "cpu".to_string(), Spec::named(&workload));
    let (mut runs, mut key, mut precision) = (None, None, Precision::F32);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
        match flag.as_str() {
            "--batch" => batch = Some(value.parse::<usize>()?),
            "--check" => file = Some(value),
            "--device" => selector = value,
            "--key" => key = Some(value),
            "--precision" => precision = serde_json::from_value(value.into())?,
            "--profile" => runs = Some(value.parse::<usize>()?),
            "--spec" => spec = Some(serde_json::from_str(&value)?),
            other => {
                let flags = "--batch, --check, --device, --key, --precision, --profile, --spec";
                return Err(format!("no flag {other}; there are {flags}").into());
            }
        }
    }
    let mut spec = spec.ok_or_else(|| format!("no workload {workload}; give its sizes with --spec"))?;
    spec.batch = batch.unwrap_or(spec.batch);
    let device = Device::open(Some(&selector))?;
    if let Some(path) = file {
        println!("{}", serde_json::json!({ "losses": check(&spec, &device, &path)? }));
        return Ok(());
    }
    if let Some(runs) = runs {
        let bound = match (&key, spec.steps) {
            (Some(key), _) => single(key, &device)?,
            (None, 0) => training(&spec, &device, precision)?.remove(0),
            (None, _) => sampling(&spec, &device)?.1,
        };
        return profile(&bound, runs.max(1));
    }
    let began = Instant::now();
    let is_single = matches!(workload.as_str(), "W5" | "ops");
    let mut work = match spec.steps {
        _ if is_single => singles(&device),
        0 => trainer(&spec, &device, precision)?,
        _ => sampler(&spec, &device)?,
    };
    let loss = if is_single { 0.0 } else { work("", true)? };
    let params: usize = spec.params().iter().map(|(_, d)| d.iter().product::<usize>()).sum();
    let ready = serde_json::json!({
        "ready": 1, "t_first": unix_time(), "t_main": t_main, "first_step_s": began.elapsed().as_secs_f64(),
        "loss": loss, "params": params, "version": format!("dnx {} on {}", env!("CARGO_PKG_VERSION"), device.name()),
        "adapter": device.info().fingerprint(),
    });
    println!("{ready}");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        match words.next() {
            None | Some("quit") => break,
            Some("run") => {}
            Some(other) => return Err(format!("no request {other}; there are run N and quit").into()),
        }
        let n: usize = words.next().ok_or("run wants a number")?.parse()?;
        let key = words.next().unwrap_or("");
        let (began, mut loss) = (Instant::now(), 0.0);
        for i in 0..n {
            loss = work(key, i + 1 == n)?;
        }
        println!("{}", serde_json::json!({ "ms": began.elapsed().as_secs_f64() * 1e3, "n": n, "loss": loss }));
    }
    Ok(())
}
