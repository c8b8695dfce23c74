//! Gradients of losses with held parts (targets, normalisations, other networks' samples): against finite differences
//! of the same losses written on the host from the papers' formulas, in which what is held stays where it was. Jvps
//! are differences there too, so neither autodiff nor the objectives' code is on the other side.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type, random};
use dnx_models::Layout;
use dnx_models::loss::{LossOptions, LossProgram};
use dnx_models::network::{Inputs, MlpConfig};
use dnx_models::params::{ParamSpec, Params};
use dnx_models::process::{Preset, Process, ProcessConfig, Teacher};
use dnx_models::step::key_array;
use dnx_models::{DataSpec, Network, init, streams};

const BATCH: usize = 4;
const DIM: usize = 2;
const STEP: u32 = 5;
const CLASSES: usize = 3;
const LABELS: [i32; BATCH] = [0, 2, 1, 1];
const TARGET_SEED: u64 = 9;
const H: f64 = 1e-5;

type Values = Vec<Vec<f64>>;

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn mlp(process: &Process) -> Network {
    let config = MlpConfig { hidden: 10, layers: 2, time_width: 8, classes: Some(CLASSES), ..MlpConfig::default() };
    let mut network = Network::Mlp(config).resolve(&DataSpec { dims: vec![DIM], classes: CLASSES }).unwrap();
    network.suit(process);
    network
}

fn values(specs: &[ParamSpec], seed: u64) -> Values {
    let draw = |(i, s): (usize, &ParamSpec)| {
        init::Init::Normal { std: 0.3 }.draw(&s.dims, key(seed * 1000 + i as u64)).to_f64_vec()
    };
    specs.iter().enumerate().map(draw).collect()
}

fn data() -> Vec<f64> {
    init::Init::Normal { std: 1.0 }.draw(&[BATCH, DIM], key(4)).to_f64_vec()
}

fn f64s(dims: &[usize], data: &[f64]) -> Array {
    Array::from_f64(Type::new(DType::F64, dims.to_vec()), data)
}

fn arrays(specs: &[ParamSpec], values: &[Vec<f64>]) -> Vec<Array> {
    specs.iter().zip(values).map(|(s, v)| f64s(&s.dims, v)).collect()
}

/// What is drawn in a step: each sample's numbers, by the streams of the run's seed.
fn drawn(build: impl for<'g> Fn(&'g Graph, &dyn Fn(u32) -> Tensor<'g>) -> Vec<Tensor<'g>>) -> Values {
    let g = Graph::new("draws");
    let (seed, counter) = (g.constant(key_array(key(3))), g.constant(Array::u32([], &[STEP])));
    let stream = |n: u32| random::fold_in(&g, random::fold_in_const(&g, seed, n), counter);
    let results = build(&g, &stream);
    let func = g.finish(&results).unwrap();
    eval(&func, &[], Precision::F64).unwrap().iter().map(Array::to_f64_vec).collect()
}

/// The times of a process's law in a stream, and the standard normal noise of streams.
fn times_and_noise(p: &Process, times: &[u32], noises: &[u32]) -> (Values, Values) {
    let mut all = drawn(|g, stream| {
        let time = |&n: &u32| p.time_law.draw(g, stream(n), BATCH, &p.path, 1.0).values;
        let noise = |&n: &u32| random::normal(g, stream(n), &[BATCH, DIM]);
        times.iter().map(time).chain(noises.iter().map(noise)).collect()
    });
    let noise = all.split_off(times.len());
    (all, noise)
}

/// A network's output and the hidden state after its first layer, on the host.
struct Net {
    func: Func,
    specs: Vec<ParamSpec>,
    second: bool,
}

impl Net {
    fn of(network: &Network) -> Net {
        let g = Graph::new("net");
        let specs = network.specs().unwrap();
        let declared = Params::declare(&g, &specs);
        let inputs = Inputs::declare(&g, BATCH, network).unwrap();
        let out = network.evaluate(&declared.root(), inputs, Some(0));
        let func = g.finish(&[out.prediction, out.hidden.unwrap()]).unwrap();
        Net { func, specs, second: network.second_time() }
    }

    fn all(&self, w: &[Vec<f64>], x: &[f64], time: &[f64], second: &[f64], label: &[i32]) -> Values {
        let mut args = arrays(&self.specs, w);
        args.extend([f64s(&[BATCH, DIM], x), f64s(&[BATCH], time), f64s(&[BATCH], &[1.0; BATCH])]);
        args.push(Array::i32([BATCH], label));
        if self.second {
            args.push(f64s(&[BATCH], second));
        }
        eval(&self.func, &args, Precision::F64).unwrap().iter().map(Array::to_f64_vec).collect()
    }

    fn call(&self, w: &[Vec<f64>], x: &[f64], time: &[f64], second: &[f64]) -> Vec<f64> {
        self.all(w, x, time, second, &LABELS).swap_remove(0)
    }

    /// The derivative along a direction of `x`, `time` and `second`, by central differences.
    fn along(&self, w: &[Vec<f64>], at: [&[f64]; 3], direction: [&[f64]; 3], label: &[i32]) -> Vec<f64> {
        let moved = |h: f64| {
            let [x, t, s] = [0, 1, 2].map(|k| add(at[k], direction[k], h));
            self.all(w, &x, &t, &s, label).swap_remove(0)
        };
        let (up, down) = (moved(1e-4), moved(-1e-4));
        up.iter().zip(&down).map(|(a, b)| (a - b) / 2e-4).collect()
    }
}

fn add(a: &[f64], b: &[f64], h: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + h * b).collect()
}

/// A number for each element from its sample and place.
fn each(f: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..BATCH * DIM).map(|i| f(i / DIM, i)).collect()
}

fn square(x: f64) -> f64 {
    x * x
}

/// The sum over a sample.
fn sum(v: &[f64], b: usize) -> f64 {
    v[b * DIM..(b + 1) * DIM].iter().sum()
}

fn mean(f: impl Fn(usize) -> f64) -> f64 {
    (0..BATCH).map(f).sum::<f64>() / BATCH as f64
}

/// Holds a loss's value and its slope along random directions of groups of parameters to those of `reference`, whose
/// first argument moves while what it holds is made of the second.
fn check(
    what: &str,
    network: &Network,
    p: &Process,
    teacher: Option<&Teacher>,
    groups: &[&str],
    reference: &dyn Fn(&LossProgram, &[Vec<f64>], &[Vec<f64>]) -> f64,
) {
    let options = LossOptions {
        network,
        process: p,
        teacher,
        batch: BATCH,
        accumulate: 1,
        level_bins: 0,
        layout: &Layout::single(),
    };
    let program = options.build().unwrap();
    let base = values(&program.params, 1);
    let mut args = arrays(&program.params, &base);
    args.extend(program.frozen.iter().map(|s| s.init.draw(&s.dims, key(0))));
    args.extend(arrays(&program.targets, &values(&program.targets, TARGET_SEED)));
    args.extend([key_array(key(3)), Array::u32([], &[STEP]), f64s(&[BATCH, DIM], &data())]);
    args.push(Array::i32([BATCH], &LABELS));
    let wrt: Vec<usize> = (0..base.len()).collect();
    let grad = dnx_autodiff::value_and_grad(&program.func, &wrt).unwrap();
    let results = eval(&grad, &args, Precision::F64).unwrap();
    let (value, want) = (results[0].get(0).to_f64(), reference(&program, &base, &base));
    assert!((value - want).abs() < 1e-6 * want.abs().max(1e-3), "{what}: the loss is {value}, not {want}");
    let group_of = |name: &str| groups.iter().rposition(|g| name.starts_with(g)).expect("a group");
    for (i, group) in groups.iter().enumerate() {
        let direction: Values = values(&program.params, 2 + i as u64)
            .into_iter()
            .zip(&program.params)
            .map(|(v, s)| if group_of(&s.name) == i { v } else { vec![0.0; v.len()] })
            .collect();
        let slope: f64 = results[1..]
            .iter()
            .zip(&direction)
            .flat_map(|(g, d)| g.to_f64_vec().into_iter().zip(d.clone()))
            .map(|(g, d)| g * d)
            .sum();
        let at = |h: f64| {
            let moved: Values = base.iter().zip(&direction).map(|(b, d)| add(b, d, h)).collect();
            reference(&program, &moved, &base)
        };
        let numeric = (at(H) - at(-H)) / (2.0 * H);
        println!("{what} {group:?}: {slope:e} {numeric:e}");
        assert!(numeric.abs() > 1e-6, "{what} {group:?}: nothing to see, {numeric}");
        assert!((slope - numeric).abs() < 1e-5 * numeric.abs(), "{what} {group:?}: {slope}, not {numeric}");
    }
}

/// A teacher of another path than its students'.
fn teacher() -> Teacher {
    let process = Preset::Vp.process();
    let network = mlp(&process);
    let weights = arrays(&network.specs().unwrap(), &values(&network.specs().unwrap(), 7))
        .iter()
        .map(|a| Array::f32(a.dims(), &a.to_f32_vec()))
        .collect();
    Teacher { network, process, weights }
}

/// The teacher's estimate of the data of `x_edm = x0 + ratio n`.
fn denoised(teacher: &Teacher, net: &Net, x_edm: &[f64], ratio: &[f64]) -> Vec<f64> {
    let p = &teacher.process;
    let levels: Vec<_> = ratio.iter().map(|&r| p.path.level_of_ratio(r)).collect();
    let x = each(|b, i| levels[b].alpha * x_edm[i]);
    let time: Vec<f64> = levels.iter().map(|l| p.time_input(l)).collect();
    let w: Values = teacher.weights.iter().map(Array::to_f64_vec).collect();
    let out = net.call(&w, &x, &time, &[]);
    // The noise is predicted: x0 = (x - sigma n) / alpha.
    each(|b, i| (x[i] - levels[b].sigma * out[i]) / levels[b].alpha)
}

/// `|F - sg(F + g)|^2 / D` with the tangent of algorithm 1 of Lu and Song, half way through its warm-up.
#[test]
fn continuous_time_consistency() {
    let teacher = teacher();
    for (preset, source) in [("sct", "data"), ("scd", "teacher")] {
        let p = process(&format!(
            "preset = \"{preset}\"\nlog_variance = 0\nlabel_dropout = 0.0\ntime_scale = 1.7\n\
             objective = {{ kind = \"scm\", source = \"{source}\", warmup = 10 }}"
        ));
        let network = mlp(&p);
        let (net, of_teacher) = (Net::of(&network), Net::of(&teacher.network));
        let (times, noise) = times_and_noise(&p, &[streams::TIME], &[streams::NOISE]);
        let (t, z, sd) = (&times[0], &noise[0], p.sigma_data);
        let (cos, sin) = (|b: usize| t[b].cos(), |b: usize| t[b].sin());
        let (c, r) = (0.1, 0.5);
        let reference = |_: &LossProgram, moved: &[Vec<f64>], base: &[Vec<f64>]| {
            let x0 = data();
            let x = each(|b, i| cos(b) * x0[i] + sin(b) * sd * z[i]);
            let dx = if source == "data" {
                each(|b, i| cos(b) * sd * z[i] - sin(b) * x0[i])
            } else {
                let ratio: Vec<f64> = t.iter().map(|t| sd * t.tan()).collect();
                let d = denoised(&teacher, &of_teacher, &each(|b, i| x[i] / cos(b)), &ratio);
                each(|b, i| cos(b) * (x[i] - cos(b) * d[i]) / sin(b) - sin(b) * d[i])
            };
            let seen = each(|_, i| x[i] / sd);
            let time: Vec<f64> = t.iter().map(|t| t * p.time_scale).collect();
            let f0 = net.call(base, &seen, &time, &[]);
            let rate: Vec<f64> = (0..BATCH).map(|b| cos(b) * sin(b) * p.time_scale).collect();
            let j =
                net.along(base, [&seen, &time, &[]], [&each(|b, i| cos(b) * sin(b) * dx[i] / sd), &rate, &[]], &LABELS);
            let g = each(|b, i| -square(cos(b)) * (sd * f0[i] - dx[i]) - r * (cos(b) * sin(b) * x[i] + sd * j[i]));
            let norm = |b: usize| sum(&each(|_, i| g[i] * g[i]), b).sqrt() + c;
            let f = net.call(moved, &seen, &time, &[]);
            mean(|b| sum(&each(|b, i| square(f[i] - f0[i] - g[i] / norm(b))), b) / DIM as f64)
        };
        check(preset, &network, &p, (source == "teacher").then_some(&teacher), &[""], &reference);
    }
}

/// `|u - sg(v - (t - r) du/dt)|^2`, adaptively weighted, of unguided and guided velocities; the first samples go
/// nowhere, and of those that lost their label the velocity is not guided.
#[test]
fn mean_velocities() {
    let cases = [("", 1.0, 0.0), ("omega = 1.6, kappa = 0.0", 1.6, 0.0), ("omega = 0.4, kappa = 0.7", 0.4, 0.7)];
    for (keys, omega, kappa) in cases {
        let comma = if keys.is_empty() { "" } else { ", " };
        let p = process(&format!(
            "preset = \"mean_flow\"\nlabel_dropout = 0.3\ntime_scale = 1.7\n\
             objective = {{ kind = \"mean_flow\", instant = 0.25, interval = [0.1, 0.9], power = 0.7{comma}{keys} }}"
        ));
        let network = mlp(&p);
        let net = Net::of(&network);
        let (times, noise) = times_and_noise(&p, &[streams::TIME, streams::OBJECTIVE], &[streams::NOISE]);
        let hits = drawn(|g, stream| {
            vec![random::bernoulli(g, stream(streams::LABEL), &[BATCH], 0.3).convert(DType::F32).sum_all()]
        })[0][0] as usize;
        let t: Vec<f64> = (0..BATCH).map(|b| times[0][b].max(times[1][b])).collect();
        let r: Vec<f64> = (0..BATCH).map(|b| if b == 0 { t[0] } else { times[0][b].min(times[1][b]) }).collect();
        let seen: Vec<i32> = (0..BATCH).map(|b| if b < hits { CLASSES as i32 } else { LABELS[b] }).collect();
        let reference = |_: &LossProgram, moved: &[Vec<f64>], base: &[Vec<f64>]| {
            let (x0, n) = (data(), &noise[0]);
            let x = each(|b, i| (1.0 - t[b]) * x0[i] + t[b] * n[i]);
            let v = each(|_, i| n[i] - x0[i]);
            let time: Vec<f64> = t.iter().map(|t| t * p.time_scale).collect();
            let gap: Vec<f64> = (0..BATCH).map(|b| (t[b] - r[b]) * p.time_scale).collect();
            let at = |label: &[i32]| net.all(base, &x, &time, &[0.0; BATCH], label).swap_remove(0);
            let (null, own) = (at(&[CLASSES as i32; BATCH]), at(&LABELS));
            let guided = each(|b, i| {
                if b < hits || !(0.1..=0.9).contains(&t[b]) || (omega, kappa) == (1.0, 0.0) {
                    return v[i];
                }
                omega * v[i] + (1.0 - omega - kappa) * null[i] + kappa * own[i]
            });
            let rate = [p.time_scale; BATCH];
            let du = net.along(base, [&x, &time, &gap], [&guided, &rate, &rate], &seen);
            let target = each(|b, i| guided[i] - (t[b] - r[b]) * du[i]);
            let error = |w: &[Vec<f64>]| {
                let u = net.all(w, &x, &time, &gap, &seen).swap_remove(0);
                move |b: usize, target: &[f64]| sum(&each(|_, i| square(u[i] - target[i])), b)
            };
            let (now, held) = (error(moved), error(base));
            mean(|b| now(b, &target) / (held(b, &target) + 0.01).powf(0.7))
        };
        check(&format!("mean_flow {keys}"), &network, &p, None, &[""], &reference);
    }
}

/// Consistency training and distillation as first published: every interval weighs the same (Song et al., 2023,
/// lambda = 1), the target is an average, and it is at the lower end of the interval.
#[test]
fn consistency_in_discrete_time() {
    let teacher = teacher();
    for preset in ["ct", "cd"] {
        let mut p = process(&format!("preset = \"{preset}\"\nlabel_dropout = 0.0"));
        p.objective.set_steps(20);
        let network = mlp(&p);
        let (net, of_teacher) = (Net::of(&network), Net::of(&teacher.network));
        let noise = times_and_noise(&p, &[], &[streams::NOISE]).1.swap_remove(0);
        let u = drawn(|g, stream| vec![random::uniform(g, stream(streams::TIME), &[BATCH])]).swap_remove(0);
        let root = (STEP as f64 / 20.0 * (201.0 * 201.0 - 4.0) + 4.0).sqrt();
        let intervals = if preset == "ct" { (root - 1.0).ceil() } else { 39.0 };
        let level = |i: f64| {
            let [a, b] = [0.002f64, 80.0].map(|s| s.powf(1.0 / 7.0));
            (a + i / intervals * (b - a)).powi(7)
        };
        let near: Vec<f64> = u.iter().map(|u| level((u * intervals).floor())).collect();
        let far: Vec<f64> = u.iter().map(|u| level((u * intervals).floor() + 1.0)).collect();
        let sd = p.sigma_data;
        let consistent = |w: &[Vec<f64>], x: &[f64], sigma: &[f64]| {
            let scaled = each(|b, i| x[i] / (square(sigma[b]) + sd * sd).sqrt());
            let time: Vec<f64> = sigma.iter().map(|s| 0.25 * s.ln()).collect();
            let f = net.call(w, &scaled, &time, &[]);
            each(|b, i| {
                let s = sigma[b] - 0.002;
                sd * sd / (s * s + sd * sd) * x[i] + s * sd / (square(sigma[b]) + sd * sd).sqrt() * f[i]
            })
        };
        let reference = |program: &LossProgram, moved: &[Vec<f64>], _: &[Vec<f64>]| {
            let x0 = data();
            let x_far = each(|b, i| x0[i] + far[b] * noise[i]);
            let x_near = if preset == "ct" {
                each(|b, i| x0[i] + near[b] * noise[i])
            } else {
                let slope = |x: &[f64], sigma: &[f64]| {
                    let d = denoised(&teacher, &of_teacher, x, sigma);
                    each(|b, i| (x[i] - d[i]) / sigma[b])
                };
                let first = slope(&x_far, &far);
                let euler = each(|b, i| x_far[i] + (near[b] - far[b]) * first[i]);
                let second = slope(&euler, &near);
                each(|b, i| x_far[i] + (near[b] - far[b]) * 0.5 * (first[i] + second[i]))
            };
            let target = consistent(&values(&program.targets, TARGET_SEED), &x_near, &near);
            let online = consistent(moved, &x_far, &far);
            mean(|b| sum(&each(|_, i| square(online[i] - target[i])), b) / DIM as f64)
        };
        check(preset, &network, &p, (preset == "cd").then_some(&teacher), &[""], &reference);
    }
}

/// The three terms of DMD2, each of which moves its own parameters alone.
#[test]
fn distribution_matching() {
    let teacher = teacher();
    let (generator_weight, head_weight) = (0.3, 0.7);
    let p = process(&format!(
        "preset = \"dmd2\"\nobjective = {{ kind = \"distillation\", generator_weight = {generator_weight}, \
         head_weight = {head_weight} }}"
    ));
    let network = mlp(&p);
    let (net, of_teacher) = (Net::of(&network), Net::of(&teacher.network));
    let sd = p.sigma_data;
    let of = |n: u32| streams::OBJECTIVE + n;
    let all = drawn(|g, stream| {
        let uniform = |n: u32| random::uniform(g, stream(n), &[BATCH]);
        let normal = |n: u32| random::normal(g, stream(n), &[BATCH, DIM]);
        vec![
            uniform(streams::TIME),
            uniform(of(2)),
            uniform(of(4)),
            normal(streams::NOISE),
            normal(of(1)),
            normal(of(3)),
            normal(of(5)),
            normal(of(6)),
            normal(of(7)),
        ]
    });
    let sigma = |u: &[f64], low: f64, high: f64| -> Vec<f64> {
        let [a, b] = [0.002f64, 80.0].map(|s| s.powf(1.0 / 7.0));
        u.iter().map(|u| (a + (low + u * (high - low)) * (b - a)).powi(7)).collect()
    };
    let match_sigma = sigma(&all[0], 0.02, 0.98);
    let [fake_sigma, head_sigma] = [sigma(&all[1], 0.0, 1.0), sigma(&all[2], 0.0, 1.0)];
    let [start, match_noise, fake_noise, head_real, head_fake, head_own] = [3, 4, 5, 6, 7, 8].map(|i| &all[i]);
    let inputs = |x: &[f64], sigma: &[f64]| {
        let scaled = each(|b, i| x[i] / (sigma[b] * sigma[b] + sd * sd).sqrt());
        (scaled, sigma.iter().map(|s| 0.25 * s.ln()).collect::<Vec<f64>>())
    };
    let denoise = |w: &[Vec<f64>], x: &[f64], sigma: &[f64]| {
        let (scaled, time) = inputs(x, sigma);
        let f = net.call(w, &scaled, &time, &[]);
        each(|b, i| {
            let r2 = sigma[b] * sigma[b] + sd * sd;
            sd * sd / r2 * x[i] + sigma[b] * sd / r2.sqrt() * f[i]
        })
    };
    let noised = |x: &[f64], sigma: &[f64], noise: &[f64]| each(|b, i| x[i] + sigma[b] * noise[i]);
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let reference = |program: &LossProgram, moved: &[Vec<f64>], base: &[Vec<f64>]| {
        let named = |values: &[Vec<f64>], prefix: &str| -> Values {
            let wanted = net.specs.iter().map(|s| format!("{prefix}{}", s.name));
            let find = |name: String| program.params.iter().position(|p| p.name == name).expect("a parameter");
            wanted.map(|name| values[find(name)].clone()).collect()
        };
        let one = |values: &[Vec<f64>], name: &str| {
            values[program.params.iter().position(|p| p.name == name).expect("a parameter")].clone()
        };
        // The discriminator on the first layer of the fake network.
        let logit = |fake: &[Vec<f64>], head: &[Vec<f64>], x: &[f64]| -> Vec<f64> {
            let (scaled, time) = inputs(x, &head_sigma);
            let hidden = net.all(fake, &scaled, &time, &[], &LABELS).swap_remove(1);
            let width = hidden.len() / BATCH;
            let [w1, b1, w2, b2] =
                ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"].map(|n| one(head, &format!("train.head.{n}")));
            (0..BATCH)
                .map(|b| {
                    let layer = (0..width).map(|o| {
                        let h: f64 = (0..width).map(|k| w1[o * width + k] * hidden[b * width + k]).sum();
                        let h = h + b1[o];
                        w2[o] * h / (1.0 + (-h).exp())
                    });
                    layer.sum::<f64>() + b2[0]
                })
                .collect()
        };
        let top = [80.0; BATCH];
        let begin = each(|_, i| 80.0 * start[i]);
        let x = denoise(&named(moved, ""), &begin, &top);
        let still = denoise(&named(base, ""), &begin, &top);
        // The fake network and the discriminator.
        let (fake, fake_still) = (named(moved, "train.fake."), named(base, "train.fake."));
        let d = denoise(&fake, &noised(&still, &fake_sigma, fake_noise), &fake_sigma);
        let real = logit(&fake, moved, &noised(&data(), &head_sigma, head_real));
        let made = logit(&fake, moved, &noised(&still, &head_sigma, head_fake));
        // The generator.
        let seen = noised(&still, &match_sigma, match_noise);
        let wanted = denoised(&teacher, &of_teacher, &seen, &match_sigma);
        let own = denoise(&fake_still, &seen, &match_sigma);
        let fooled = logit(&fake_still, base, &noised(&x, &head_sigma, head_own));
        mean(|b| {
            let weight = 1.0 / square(fake_sigma[b]) + 1.0 / square(sd);
            let per = |v: Vec<f64>| sum(&v, b) / DIM as f64;
            let fake_loss = per(each(|_, i| square(d[i] - still[i]))) * weight;
            let judged = softplus(-real[b]) + softplus(made[b]);
            let size = per(each(|_, i| (still[i] - wanted[i]).abs()));
            let matching = 0.5 * per(each(|_, i| square(x[i] - (still[i] - (own[i] - wanted[i]) / size))));
            fake_loss + head_weight * judged + matching + generator_weight * softplus(-fooled[b])
        })
    };
    check("dmd2", &network, &p, Some(&teacher), &["", "train.fake.", "train.head."], &reference);
}
