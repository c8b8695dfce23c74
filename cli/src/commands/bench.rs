//! `dnx bench`: times of single ops and of training steps on a device.

use super::{open_device, print};
use crate::args::{BenchArgs, Suite};
use dnx::codegen::stats::Stats;
use dnx::ir::{Array, Func, Graph, Tensor, Type};
use dnx::models::optim::{EmaConfig, OptimConfig};
use dnx::models::process::Preset;
use dnx::models::step::{StepOptions, train_step};
use dnx::models::{DataSpec, Network};
use dnx::runtime::Device;
use dnx::train::data::random::{Random, Stream};
use dnx::train::files::{refuse_existing, write_atomic};
use dnx::train::{Error, Result};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Runs of one program: as many as fit, at least three after one that warms up.
const TIME_EACH: Duration = Duration::from_millis(1500);

/// One row of results.
#[derive(Serialize)]
struct Row {
    name: String,
    median_ms: f64,
    min_ms: f64,
    gflop_per_s: f64,
    gb_per_s: f64,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(path) = &args.json {
        refuse_existing(path, args.force)?;
    }
    let device = open_device(args.device.as_deref())?;
    let mut rows = vec![];
    if matches!(args.suite, Suite::Ops | Suite::All) {
        for (name, func) in ops()? {
            rows.push(time(&device, &name, &func, vec![], None)?);
        }
    }
    if matches!(args.suite, Suite::Models | Suite::All) {
        for (name, network, data, batch) in models()? {
            let network = network.resolve(&data)?;
            let options = StepOptions { batch, accumulate: 1, level_bins: 0, scaling: None };
            let optim = OptimConfig::default();
            let program = train_step(&network, &Preset::Sit.process(), &optim, &EmaConfig::default(), &options)?;
            let mut inputs = program.initial_state(0);
            inputs.extend(program.constants(0));
            inputs.extend(program.batch.iter().map(|p| random(&p.ty)));
            rows.push(time(&device, &name, &program.func, program.donate.clone(), Some(inputs))?);
        }
    }
    let mut text = format!("{:<34} {:>10} {:>10} {:>10} {:>8}\n", "", "median ms", "min ms", "Gflop/s", "GB/s");
    for r in &rows {
        text.push_str(&format!(
            "{:<34} {:>10.3} {:>10.3} {:>10.1} {:>8.1}\n",
            r.name, r.median_ms, r.min_ms, r.gflop_per_s, r.gb_per_s
        ));
    }
    if let Some(path) = &args.json {
        let value = serde_json::json!({ "device": device.name(), "results": rows });
        write_atomic(path, format!("{value:#}\n").as_bytes())?;
    }
    print(&text)
}

/// Random contents, so that no device is quick on zeros. Integers are small (they are class labels).
fn random(ty: &Type) -> Array {
    let mut random = Random::new(0, Stream::Noise, ty.elems() as u64);
    let values: Vec<f64> = (0..ty.elems())
        .map(|_| if ty.dtype.is_float() { random.normal() } else { (random.bits() % 2) as f64 })
        .collect();
    Array::from_f64(ty.clone(), &values)
}

fn time(
    device: &Device,
    name: &str,
    func: &Func,
    donate: Vec<(usize, usize)>,
    inputs: Option<Vec<Array>>,
) -> Result<Row> {
    let options = device.options().with_donate(&donate);
    let program = device.load(dnx::codegen::compile(func, &options)?.exec)?;
    let inputs = inputs.unwrap_or_else(|| func.param_types().into_iter().map(random).collect());
    let bound = program.bind(&device.upload_all(&inputs)?)?;
    let smallest = bound.outputs().iter().min_by_key(|b| b.ty().elems());
    let wait = smallest.ok_or_else(|| Error::Usage(format!("{name} has no results")))?;
    let (mut times, begun) = (vec![], Instant::now());
    bound.run()?;
    wait.download()?;
    while times.len() < 3 || begun.elapsed() < TIME_EACH {
        let began = Instant::now();
        bound.run()?;
        // Reading a result back waits for the device.
        wait.download()?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (median, least) = (times[times.len() / 2], times[0]);
    let stats = Stats::of(program.exec(), 0, 0);
    Ok(Row {
        name: name.to_string(),
        median_ms: median * 1e3,
        min_ms: least * 1e3,
        gflop_per_s: stats.flops as f64 / median / 1e9,
        gb_per_s: stats.bytes as f64 / median / 1e9,
    })
}

/// Single ops on shapes that networks have. Each ends in a sum, so that what comes back is one number.
fn ops() -> Result<Vec<(String, Func)>> {
    fn op(
        name: &str,
        dims: &[&[usize]],
        body: impl for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Tensor<'g>,
    ) -> Result<(String, Func)> {
        let g = Graph::new(name);
        let inputs: Vec<Tensor> =
            dims.iter().enumerate().map(|(i, d)| g.param(&format!("x{i}"), Type::f32(d.to_vec()))).collect();
        let y = body(&g, &inputs);
        let shown: Vec<String> = dims.iter().map(|d| format!("{d:?}")).collect();
        Ok((format!("{name} {}", shown.join(" ")), g.finish(&[y, y.sum_all()])?))
    }
    let mut all = vec![];
    for n in [256, 512, 1024] {
        all.push(op("matmul", &[&[n, n], &[n, n]], |_, x| x[0].matmul(x[1]))?);
    }
    let rows: &[usize] = &[4096, 1024];
    all.push(op("add", &[rows, rows], |_, x| x[0] + x[1])?);
    all.push(op("silu", &[rows], |_, x| x[0].silu())?);
    all.push(op("sum over rows", &[rows], |_, x| x[0].sum(&[0]))?);
    all.push(op("softmax", &[rows], |_, x| {
        let e = (x[0] - x[0].max(&[1]).unsqueeze(1)).exp();
        e / e.sum(&[1]).unsqueeze(1)
    })?);
    all.push(op("layer norm", &[rows], |_, x| {
        let centred = x[0] - x[0].mean(&[1]).unsqueeze(1);
        centred * (centred.square().mean(&[1]).unsqueeze(1) + 1e-6).rsqrt()
    })?);
    all.push(op("transpose", &[rows], |_, x| x[0].transpose(&[1, 0]) + 1.0)?);
    Ok(all)
}

/// Networks with the data they see and a batch.
fn models() -> Result<Vec<(String, Network, DataSpec, usize)>> {
    use dnx::models::network::{DitConfig, MlpConfig};
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
    Ok(vec![
        ("mlp step, batch 256".into(), mlp, points, 256),
        ("dit 128x4/4 step, 32x32x1, batch 16".into(), dit(128, 4, 4), digits, 16),
        ("dit 192x6/4 step, 32x32x3, batch 16".into(), dit(192, 6, 3), colour, 16),
    ])
}
