//! The meganeura worker of `compare.py`: a training step of the perceptron that predicts noise.
//!
//! `compare-meganeura mlp '{"hidden":256,"layers":4,"batch":512,"lr":1e-3}'`. The graph has matrices alone, so it takes
//! the noised points with their times `[B, 3]` and the noise `[B, 2]` as inputs; a few batches of them are drawn on the
//! host beforehand and uploaded in turn. Loss, gradients and AdamW run on the adapter. For the protocol see `compare.py`.

use meganeura::{Graph, NodeId, Session, SessionConfig};
use serde_json::{Value, json};
use std::time::Instant;

/// Batches that steps take turns with.
const POOL: usize = 8;

/// Numbers enough for a benchmark: splitmix64.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Noised points with their times, and their noise.
fn batch(random: &mut Random, size: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut x, mut eps) = (vec![], vec![]);
    for _ in 0..size {
        let t = 0.001 + 0.998 * random.uniform();
        let (alpha, sigma) = ((-t).exp(), (1.0 - (-2.0 * t).exp()).sqrt());
        for _ in 0..2 {
            let noise = random.normal();
            x.push((alpha * random.normal() + sigma * noise) as f32);
            eps.push(noise as f32);
        }
        x.push(t as f32);
    }
    (x, eps)
}

fn session(widths: &[usize], size: usize, lr: f32) -> Session {
    let mut g = Graph::new();
    let (x, eps) = (g.input("x", &[size, widths[0]]), g.input("eps", &[size, widths[widths.len() - 1]]));
    let mut h: NodeId = x;
    for (i, w) in widths.windows(2).enumerate() {
        if i > 0 {
            h = g.silu(h);
        }
        let (weight, bias) = (g.parameter(&format!("w{i}"), &[w[0], w[1]]), g.parameter(&format!("b{i}"), &[w[1]]));
        let product = g.matmul(h, weight);
        h = g.bias_add(product, bias);
    }
    let loss = g.mse_loss(h, eps);
    g.set_outputs(vec![loss]);
    let mut session = meganeura::build(&g, SessionConfig { tune: true, ..Default::default() }).0;
    let mut random = Random(1);
    for (i, w) in widths.windows(2).enumerate() {
        let std = 1.0 / (w[0] as f64).sqrt();
        let weight: Vec<f32> = (0..w[0] * w[1]).map(|_| (std * random.normal()) as f32).collect();
        session.set_parameter(&format!("w{i}"), &weight);
        session.set_parameter(&format!("b{i}"), &vec![0.0; w[1]]);
    }
    session.set_adam(lr, 0.9, 0.999, 1e-8);
    session.set_weight_decay(0.01);
    session
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, workload, spec] = &args[..] else { panic!("usage: {} mlp SPEC", args[0]) };
    assert_eq!(workload, "mlp", "the worker knows one workload");
    let spec: Value = serde_json::from_str(spec).expect("the spec is JSON");
    let size = |key: &str| spec[key].as_u64().unwrap_or_else(|| panic!("the spec wants {key}")) as usize;
    let mut widths = vec![3];
    widths.extend(vec![size("hidden"); size("layers")]);
    widths.push(2);
    let batch_size = size("batch");
    let mut random = Random(2);
    let pool: Vec<_> = (0..POOL).map(|_| batch(&mut random, batch_size)).collect();
    let began = Instant::now();
    let mut session = session(&widths, batch_size, spec["lr"].as_f64().expect("the spec wants lr") as f32);
    let mut at = 0;
    let mut steps = |session: &mut Session, n: usize| {
        for _ in 0..n {
            let (x, eps) = &pool[at % POOL];
            at += 1;
            session.set_input("x", x);
            session.set_input("eps", eps);
            session.step();
        }
        session.wait();
        session.read_loss()
    };
    let loss = steps(&mut session, 1);
    let first = began.elapsed().as_secs_f64();
    let info = session.device_information();
    let adapter = format!("{}; {}; {}", info.device_name, info.driver_name, info.driver_info);
    let version = "meganeura 0.3.0";
    println!("{}", json!({"ready": 1, "first_step_s": first, "loss": loss, "version": version, "adapter": adapter}));
    for line in std::io::stdin().lines() {
        let line = line.expect("requests are text");
        let mut words = line.split_whitespace();
        let Some("run") = words.next() else { break };
        let n: usize = words.next().and_then(|n| n.parse().ok()).expect("run wants a number");
        let began = Instant::now();
        let loss = steps(&mut session, n);
        println!("{}", json!({"ms": began.elapsed().as_secs_f64() * 1e3, "n": n, "loss": loss}));
    }
}
