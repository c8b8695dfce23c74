//! How long a step will take, before it is run: the program's operations and bytes over the device's measured
//! rates. Two probes, a matrix product and a sum of two vectors, take a fraction of a second.

use crate::Result;
use dnx_codegen::stats::Stats;
use dnx_ir::{Array, Func, Graph, Type};
use dnx_runtime::Device;
use std::time::{Duration, Instant};

/// Side of the probed matrix product, and the length of the probed vectors.
const SIDE: usize = 512;
const LENGTH: usize = 4 << 20;
/// Runs per probe; the fastest counts.
const RUNS: usize = 3;

/// What a device was seen to do: the roof that programs run under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations a second, of a matrix product in `f32`.
    pub flops: f64,
    /// Bytes a second, of a sum of two vectors.
    pub bytes: f64,
}

impl Rates {
    /// Measures them.
    pub fn of(device: &Device) -> Result<Rates> {
        let g = Graph::new("probe_matmul");
        let (a, b) = (g.param("a", Type::f32([SIDE, SIDE])), g.param("b", Type::f32([SIDE, SIDE])));
        let matmul = fastest(device, &g.finish(&[a.matmul(b)])?)?;
        let g = Graph::new("probe_add");
        let (a, b) = (g.param("a", Type::f32([LENGTH])), g.param("b", Type::f32([LENGTH])));
        let add = fastest(device, &g.finish(&[a + b])?)?;
        Ok(Rates {
            flops: 2.0 * (SIDE as f64).powi(3) / matmul.as_secs_f64().max(1e-9),
            bytes: 12.0 * LENGTH as f64 / add.as_secs_f64().max(1e-9),
        })
    }
}

/// Estimated time of one run of a program with these costs. A lower bound of what is seen: kernels are counted
/// at the rates of large, simple ones.
pub fn step_time(device: &Device, stats: &Stats) -> Result<Duration> {
    let rates = Rates::of(device)?;
    Ok(Duration::from_secs_f64(stats.flops as f64 / rates.flops + stats.bytes as f64 / rates.bytes))
}

/// The least time of a few runs, after one that warms up.
fn fastest(device: &Device, func: &Func) -> Result<Duration> {
    let options = device.options();
    let program = device.load(dnx_codegen::compile(func, &options)?.exec)?;
    let inputs: Vec<Array> = func.param_types().into_iter().map(|ty| Array::zeros(ty.clone())).collect();
    let bound = program.bind(&device.upload_all(&inputs)?)?;
    let mut least = Duration::MAX;
    for run in 0..=RUNS {
        let began = Instant::now();
        bound.run()?;
        // Reading one result back waits for the device; on the cpu the copy would distort the vector probe.
        if device.target().gpu().is_some() {
            bound.outputs()[0].download()?;
        }
        if run > 0 {
            least = least.min(began.elapsed());
        }
    }
    Ok(least)
}
