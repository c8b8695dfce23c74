//! What exchanging costs a team: a training step of a perceptron on parts of a batch, gradients reduced over all devices.
//!
//! `cargo run --release -p dnx-runtime --example team -- cpu*2 [width] [layers] [rows] [bucket MiB]`. Prints the median
//! step, with gradients reduced (without overlap and with it) and not, in rounds, and of one run with reductions what each
//! rank did in it.

use dnx_codegen::compile;
use dnx_codegen::stats::Stats;
use dnx_ir::{Array, Func, Graph, Mesh, Op, ReduceKind, Tensor, Type};
use dnx_runtime::team::StretchKind;
use dnx_runtime::{Buffer, Result, Team, TeamBound};
use std::sync::Arc;
use std::time::Instant;

/// The step: new weights from weights and a batch, all of it per device.
fn step(devices: usize, width: usize, layers: usize, rows: usize, reduced: bool) -> Func {
    let g = Graph::new("loss");
    let weights: Vec<Tensor> = (0..layers).map(|i| g.param(&format!("w{i}"), Type::f32([width, width]))).collect();
    let x = g.param("x", Type::f32([rows, width]));
    let y = weights.iter().fold(x, |h, &w| h.matmul(w).tanh());
    let loss = g.finish(&[(y - x).square().mean_all()]).expect("well typed");
    let wrt: Vec<usize> = (0..layers).collect();
    let loss = Arc::new(dnx_autodiff::value_and_grad(&loss, &wrt).expect("smooth"));

    let g = Graph::on_mesh("step", Mesh::new(&[("data", devices)]));
    let weights: Vec<Tensor> = (0..layers).map(|i| g.param(&format!("w{i}"), Type::f32([width, width]))).collect();
    let x = g.param("x", Type::f32([rows, width]));
    let results = g.call(&loss, &[&weights[..], &[x]].concat());
    let mut out: Vec<Tensor> = vec![];
    for (&w, &gradient) in weights.iter().zip(&results[1..]) {
        let sum = Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["data".into()] };
        let gradient = if reduced { gradient.apply(sum, &[]) } else { gradient };
        out.push(w - gradient * (0.1 / devices as f64));
    }
    out.push(results[0]);
    g.finish(&out).expect("well typed")
}

/// The times of steps in a second and a half, at least three.
fn times(bound: &TeamBound) -> Result<Vec<f64>> {
    let mut times = vec![];
    let begin = Instant::now();
    while times.len() < 3 || begin.elapsed().as_millis() < 1500 {
        let begin = Instant::now();
        bound.run()?;
        // What is queued on a GPU has run when a result is read.
        bound.outputs(0)?.last().expect("the loss").download()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(times)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| words.get(i).and_then(|w| w.parse().ok()).unwrap_or(default);
    let team = Team::open(Some(words.first().map_or("cpu*2", String::as_str)))?;
    let (width, layers, rows) = (number(1, 512), number(2, 8), number(3, 256));
    let noise = |dims: [usize; 2], seed: usize| {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        Array::f32(dims, &(0..dims[0] * dims[1]).map(|i| value(i) / (width as f32).sqrt()).collect::<Vec<_>>())
    };
    let bind = |reduced: bool, overlap: bool| -> Result<TeamBound> {
        let team = team.clone().with_overlap(overlap);
        let func = step(team.size(), width, layers, rows, reduced);
        let donate: Vec<(usize, usize)> = (0..layers).map(|i| (i, i)).collect();
        let options = team.options().with_donate(&donate).with_bucket_bytes((number(4, 4) as u64) << 20);
        let program = team.load(compile(&func, &options)?.exec)?;
        let inputs = team.ranks().map(|rank| {
            let mut arrays: Vec<Array> = (0..layers).map(|i| noise([width, width], i)).collect();
            arrays.push(noise([rows, width], 100 + rank));
            team.upload_all(rank, &arrays)
        });
        let bound = program.bind(&inputs.collect::<Result<Vec<Vec<Buffer>>>>()?)?;
        bound.run()?;
        Ok(bound)
    };
    println!("{} devices, {layers} layers of {width}, {rows} rows each", team.size());
    let cases =
        [("not reduced", bind(false, false)?), ("reduced", bind(true, false)?), ("overlapped", bind(true, true)?)];
    let mut all: [Vec<f64>; 3] = Default::default();
    for _ in 0..number(5, 5) {
        for (all, (_, bound)) in all.iter_mut().zip(&cases) {
            all.extend(times(bound)?);
        }
    }
    for (mut times, (name, bound)) in all.into_iter().zip(&cases) {
        times.sort_by(f64::total_cmp);
        let ms = |i: usize| times[i] * 1e3;
        println!("{name}: {:.2} ms a step ({:.2} the quickest, of {})", ms(times.len() / 2), ms(0), times.len());
        for c in Stats::of(bound.program().exec(), 0, 0).collectives {
            println!("  {} of {}: {} in {} meetings, {} bytes", c.kind, c.axes, c.count, c.steps, c.bytes);
        }
        let line = bound.timeline()?;
        for rank in team.ranks() {
            let ms = |kind| line.total(rank, kind).as_secs_f64() * 1e3;
            println!(
                "  rank {rank}: computes {:.2} ms, exchanges {:.2} ms, waits {:.2} ms",
                ms(StretchKind::Compute),
                ms(StretchKind::Exchange),
                ms(StretchKind::Wait)
            );
        }
    }
    Ok(())
}
