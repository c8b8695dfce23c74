//! `dnx bench`: times of single operations and of training steps, beside what the device was measured to do.

mod roof;
mod suites;

use super::{open_device, print};
use crate::args::BenchArgs;
use dnx::codegen::stats::Stats;
use dnx::codegen::{Options, compile};
use dnx::ir::{Array, DType, Func, Type};
use dnx::runtime::Device;
use dnx::train::data::random::{Random, Stream};
use dnx::train::files::{refuse_existing, write_atomic};
use dnx::train::{Error, Result};
use roof::Roof;
use serde::Serialize;
use std::time::{Duration, Instant};

/// The least time between two waits for the device, so that waiting is not what is timed.
const BURST: Duration = Duration::from_millis(5);

/// One row of results.
#[derive(Serialize)]
struct Row {
    name: String,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    gflop_per_s: f64,
    gb_per_s: f64,
    /// Achieved rates over the measured ones; above 1 where memory is the processor's cache.
    of_flop_roof: f64,
    of_byte_roof: f64,
}

/// A program to be timed.
struct Case {
    name: String,
    func: Func,
    options: Options,
    /// What contractions read.
    dtype: DType,
    inputs: Vec<Array>,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(path) = &args.json {
        refuse_existing(path, args.force)?;
    }
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Error::Usage(format!("--seconds {}: give a number of seconds, 0 or more", args.seconds)));
    }
    let device = open_device(args.device.as_deref())?;
    let cases = suites::cases(&device, args)?;
    let roof = Roof::of(&device)?;
    let header = ["median ms", "min ms", "max ms", "Gflop/s", "of roof", "GB/s", "of roof"];
    let [ms, min, max, flops, compute, bytes, memory] = header;
    let mut text = format!(
        "{}\n\n{:<40} {ms:>10} {min:>10} {max:>10} {flops:>9} {compute:>7} {bytes:>8} {memory:>7}\n",
        roof.line(),
        ""
    );
    let mut rows = vec![];
    for case in cases {
        let case = case()?;
        let measured = Measured::of(&device, &case, Duration::from_secs_f64(args.seconds))?;
        let row = row(case, &measured, &roof);
        text.push_str(&format!(
            "{:<40} {:>10.3} {:>10.3} {:>10.3} {:>9.1} {:>6.0}% {:>8.1} {:>6.0}%\n",
            row.name,
            row.median_ms,
            row.min_ms,
            row.max_ms,
            row.gflop_per_s,
            100.0 * row.of_flop_roof,
            row.gb_per_s,
            100.0 * row.of_byte_roof
        ));
        rows.push(row);
    }
    if let Some(path) = &args.json {
        let device = serde_json::json!({ "name": device.name(), "fingerprint": device.info().fingerprint() });
        let value = serde_json::json!({ "device": device, "roof": roof, "results": rows });
        write_atomic(path, format!("{value:#}\n").as_bytes())?;
    }
    print(&text)
}

fn row(case: Case, measured: &Measured, roof: &Roof) -> Row {
    let median = measured.seconds[measured.seconds.len() / 2];
    let (flops, bytes) = (measured.stats.flops as f64 / median, measured.stats.bytes as f64 / median);
    Row {
        name: case.name,
        median_ms: median * 1e3,
        min_ms: measured.seconds[0] * 1e3,
        max_ms: measured.seconds[measured.seconds.len() - 1] * 1e3,
        gflop_per_s: flops / 1e9,
        gb_per_s: bytes / 1e9,
        of_flop_roof: flops / roof.flops(case.dtype),
        of_byte_roof: bytes / roof.bytes,
    }
}

/// The times of a program.
struct Measured {
    /// Seconds a run took, increasing.
    seconds: Vec<f64>,
    stats: Stats,
}

impl Measured {
    /// Runs it in bursts for about so long: once to warm up, then at least three times.
    fn of(device: &Device, case: &Case, time: Duration) -> Result<Measured> {
        let program = device.load(compile(&case.func, &case.options)?.exec)?;
        let bound = program.bind(&device.upload_all(&case.inputs)?)?;
        let smallest = bound.outputs().iter().min_by_key(|b| b.ty().elems());
        let wait = smallest.ok_or_else(|| Error::Usage(format!("{} has no results", case.name)))?;
        let burst = |runs: u32| -> Result<Duration> {
            let began = Instant::now();
            for _ in 0..runs {
                bound.run()?;
            }
            // Reading a result back waits for the device.
            wait.download()?;
            Ok(began.elapsed())
        };
        burst(1)?;
        let one = burst(1)?;
        let runs = (BURST.as_secs_f64() / one.as_secs_f64().max(1e-9)).ceil().clamp(1.0, 1e4) as u32;
        let (mut seconds, begun) = (vec![], Instant::now());
        while seconds.len() < 3 || begun.elapsed() < time {
            seconds.push(burst(runs)?.as_secs_f64() / runs as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(Measured { seconds, stats: Stats::of(program.exec(), 0, 0) })
    }
}

/// Drawn contents, so that no device is quick on zeros: a block of numbers, repeated. Integers are small (they are
/// class labels).
fn drawn(ty: &Type) -> Array {
    const BLOCK: usize = 65521;
    let mut random = Random::new(0, Stream::Noise, ty.elems() as u64);
    let mut draw = || if ty.dtype.is_float() { random.normal() } else { (random.bits() % 2) as f64 };
    let block: Vec<f64> = (0..BLOCK.min(ty.elems())).map(|_| draw()).collect();
    let values: Vec<f64> = block.iter().copied().cycle().take(ty.elems()).collect();
    Array::from_f64(ty.clone(), &values)
}
