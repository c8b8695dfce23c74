//! What a device was seen to do at best: the roof that rows are measured against. Matrix products and sums of two
//! vectors are made larger until one takes long.

use super::{Case, Measured, drawn};
use dnx::ir::{DType, Func, Graph, Type};
use dnx::runtime::Device;
use dnx::train::Result;
use serde::Serialize;
use std::time::Duration;

/// Sides of the products, lengths of the vectors.
const SIDES: [usize; 5] = [512, 1024, 2048, 4096, 8192];
const LENGTHS: [usize; 3] = [4 << 20, 16 << 20, 64 << 20];
/// A size that takes longer, in seconds, is the last.
const LONG: f64 = 0.05;
/// How long each size is run; the quickest run counts.
const EACH: Duration = Duration::from_millis(100);

/// The best rates seen.
#[derive(Serialize)]
pub struct Roof {
    /// Floating-point operations a second of products of `f32`.
    pub f32_flops: f64,
    /// The same of products of `f16`.
    pub f16_flops: f64,
    /// Bytes a second.
    pub bytes: f64,
}

impl Roof {
    /// Measures them.
    pub fn of(device: &Device) -> Result<Roof> {
        let product = |dtype: DType| {
            best(device, dtype, &SIDES, |n| {
                let g = Graph::new("product");
                let (a, b) = (g.param("a", Type::new(dtype, [n, n])), g.param("b", Type::new(dtype, [n, n])));
                let y = a.matmul(b);
                Ok((g.finish(&[y, y.slice(0, 0, 1).slice(1, 0, 1)])?, 2.0 * (n as f64).powi(3)))
            })
        };
        let bytes = best(device, DType::F32, &LENGTHS, |n| {
            let g = Graph::new("sum");
            let (a, b) = (g.param("a", Type::f32([n])), g.param("b", Type::f32([n])));
            let y = a + b;
            Ok((g.finish(&[y, y.slice(0, 0, 1)])?, 12.0 * n as f64))
        })?;
        Ok(Roof { f32_flops: product(DType::F32)?, f16_flops: product(DType::F16)?, bytes })
    }

    /// The rate of products that read this type.
    pub fn flops(&self, dtype: DType) -> f64 {
        if dtype == DType::F16 { self.f16_flops } else { self.f32_flops }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "roof, measured: {:.1} Gflop/s in f32, {:.1} in f16, {:.1} GB/s",
            self.f32_flops / 1e9,
            self.f16_flops / 1e9,
            self.bytes / 1e9
        )
    }
}

/// The best rate of programs of growing size; each comes with its work.
fn best(
    device: &Device,
    dtype: DType,
    sizes: &[usize],
    program: impl Fn(usize) -> dnx::ir::Result<(Func, f64)>,
) -> Result<f64> {
    let mut best = 0.0f64;
    for &size in sizes {
        let (func, work) = program(size)?;
        let inputs = func.param_types().into_iter().map(drawn).collect();
        let case = Case { name: func.name.to_string(), func, options: device.options(), dtype, inputs };
        let least = Measured::of(device, &case, EACH)?.seconds[0];
        best = best.max(work / least);
        if least > LONG {
            break;
        }
    }
    Ok(best)
}
