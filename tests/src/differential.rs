//! Comparing one way of running a program with the reference interpreter, over random programs.

use crate::random_graph::{Config, random_func};
use dnx_codegen::passes::{inline::inline, mixed::mixed};
use dnx_codegen::{Options, Target, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Func};
use dnx_runtime::Device;
use std::ops::Range;

/// A way of running a program, fused or op by op.
pub type Run<'a> = &'a (dyn Fn(&Func, &[Array], bool) -> Result<Vec<Array>, String> + std::panic::RefUnwindSafe);

/// Compiles for the cpu target and runs the kernel interpreter.
pub fn interpreted(func: &Func, args: &[Array], fuse: bool) -> Result<Vec<Array>, String> {
    let options = Options { fuse, ..Options::new(Target::Cpu) };
    let compiled = compile(func, &options).map_err(|e| format!("compile: {e}"))?;
    dnx_codegen::kernel::interp::run_executable(&compiled.exec, args).map_err(|e| format!("run: {e}"))
}

/// Compiles for a device and runs there.
pub fn on_device(device: &Device, func: &Func, args: &[Array], fuse: bool) -> Result<Vec<Array>, String> {
    at_precision(device, dnx_codegen::Precision::F32, func, args, fuse)
}

/// [`on_device`] with narrow storage.
pub fn at_precision(
    device: &Device,
    precision: dnx_codegen::Precision,
    func: &Func,
    args: &[Array],
    fuse: bool,
) -> Result<Vec<Array>, String> {
    // Attention by its kernel on every device; its decomposition is made of kernels that are compared by themselves.
    let options = Options { fuse, precision, held_scores: 0, ..Options::new(device.target()) };
    let compiled = compile(func, &options).map_err(|e| format!("compile: {e}"))?;
    let program = device.load(compiled.exec).map_err(|e| format!("load: {e}"))?;
    let inputs = device.upload_all(args).map_err(|e| format!("upload: {e}"))?;
    let outputs = program.run(&inputs).map_err(|e| format!("run: {e}"))?;
    outputs.iter().map(|o| o.download().map_err(|e| format!("download: {e}"))).collect()
}

/// What is wrong with a way of running one program, if anything is. Floats may differ by `tolerance`, relative where
/// they exceed one; everything else must be equal.
pub fn compare(run: Run, func: &Func, args: &[Array], fuse: bool, tolerance: f64) -> Result<(), String> {
    compare_with(func, run, func, args, fuse, tolerance)
}

/// [`compare`] with a reference that is another program.
fn compare_with(
    reference: &Func,
    run: Run,
    func: &Func,
    args: &[Array],
    fuse: bool,
    tolerance: f64,
) -> Result<(), String> {
    let want = eval(reference, args, Precision::F32).map_err(|e| format!("reference: {e}"))?;
    let got = run(func, args, fuse)?;
    for (r, (got, want)) in got.iter().zip(&want).enumerate() {
        if got.ty() != want.ty() {
            return Err(format!("result {r} is {}, not {}", got.ty(), want.ty()));
        }
        let tolerance = if want.dtype().is_float() { tolerance } else { 0.0 };
        for (i, (x, y)) in got.to_f64_vec().iter().zip(want.to_f64_vec()).enumerate() {
            // Written so that NaN on either side is a difference.
            let close = (x - y).abs() <= tolerance * y.abs().max(1.0);
            if !close {
                return Err(format!("result {r}[{i}] ({}) is {x}, not {y}", want.ty()));
            }
        }
    }
    Ok(())
}

/// Runs the random programs of these seeds, each fused and op by op, and panics with every difference found.
pub fn check(run: Run, seeds: Range<u64>, cfg: &Config, tolerance: f64) {
    check_of(run, seeds, cfg, tolerance, &|func, _| func);
}

/// The same for the gradients of the programs' first results, which must be scalars.
pub fn check_gradients(run: Run, seeds: Range<u64>, cfg: &Config, tolerance: f64) {
    check_of(run, seeds, cfg, tolerance, &gradients_of);
}

fn gradients_of(func: Func, args: &[Array]) -> Func {
    let wrt: Vec<usize> = (0..args.len()).filter(|&i| args[i].dtype().is_float()).collect();
    dnx_autodiff::value_and_grad(&func, &wrt).expect("smooth programs have gradients")
}

/// Runs random programs (smooth ones: their gradients) at a precision on a device, against what the precision pass
/// makes of them.
pub fn check_mixed(
    device: &Device,
    precision: dnx_codegen::Precision,
    seeds: Range<u64>,
    cfg: &Config,
    tolerance: f64,
) {
    let device = std::panic::AssertUnwindSafe(device.clone());
    let run = move |func: &Func, args: &[Array], fuse: bool| at_precision(&device, precision, func, args, fuse);
    let of: &(dyn Fn(Func, &[Array]) -> Func + std::panic::RefUnwindSafe) = match cfg.smooth {
        true => &gradients_of,
        false => &|func, _| func,
    };
    check_by(&run, seeds, cfg, tolerance, of, &|func| mixed(&inlined(func), precision).expect("narrows"));
}

fn inlined(func: &Func) -> Func {
    inline(func, &Options::default()).expect("random programs inline")
}

fn check_of(
    run: Run,
    seeds: Range<u64>,
    cfg: &Config,
    tolerance: f64,
    of: &(dyn Fn(Func, &[Array]) -> Func + std::panic::RefUnwindSafe),
) {
    check_by(run, seeds, cfg, tolerance, of, &Func::clone);
}

fn check_by(
    run: Run,
    seeds: Range<u64>,
    cfg: &Config,
    tolerance: f64,
    of: &(dyn Fn(Func, &[Array]) -> Func + std::panic::RefUnwindSafe),
    reference: &(dyn Fn(&Func) -> Func + std::panic::RefUnwindSafe),
) {
    let failures: Vec<String> = seeds
        .flat_map(|seed| [false, true].map(|fuse| (seed, fuse)))
        .filter_map(|(seed, fuse)| {
            let outcome = std::panic::catch_unwind(|| {
                let (func, args) = random_func(seed, cfg);
                let func = of(func, &args);
                compare_with(&reference(&func), run, &func, &args, fuse, tolerance)
            });
            let why = outcome.unwrap_or_else(|_| Err("panic".into())).err()?;
            Some(format!("seed {seed} fuse {fuse}: {why}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures with {cfg:?}\n{}", failures.len(), failures.join("\n"));
}
