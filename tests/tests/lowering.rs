//! Compiled programs against the reference: random functions, fused and op by op, run by the kernel interpreter.

use dnx_codegen::kernel::interp::run_executable;
use dnx_codegen::{Options, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Func};
use dnx_tests::random_graph::{Config, random_func};

/// What is wrong, if anything is.
fn compare(func: &Func, args: &[Array], fuse: bool, tolerance: f64) -> Result<(), String> {
    let want = eval(func, args, Precision::F32).map_err(|e| format!("reference: {e}"))?;
    let compiled = compile(func, &Options { fuse, ..Options::default() }).map_err(|e| format!("compile: {e}"))?;
    let got = run_executable(&compiled.exec, args).map_err(|e| format!("run: {e}"))?;
    for (r, (got, want)) in got.iter().zip(&want).enumerate() {
        if got.ty() != want.ty() {
            return Err(format!("result {r} is {}, not {}", got.ty(), want.ty()));
        }
        let tolerance = if want.dtype().is_float() { tolerance } else { 0.0 };
        for (i, (x, y)) in got.to_f64_vec().iter().zip(want.to_f64_vec()).enumerate() {
            if (x - y).abs() > tolerance * y.abs().max(1.0) || x.is_nan() {
                return Err(format!("result {r}[{i}] is {x}, not {y}"));
            }
        }
    }
    Ok(())
}

fn check(seeds: std::ops::Range<u64>, cfg: &Config, tolerance: f64) {
    let failures: Vec<String> = seeds
        .flat_map(|seed| [false, true].map(|fuse| (seed, fuse)))
        .filter_map(|(seed, fuse)| {
            let (func, args) = random_func(seed, cfg);
            let outcome = std::panic::catch_unwind(|| compare(&func, &args, fuse, tolerance));
            let why = outcome.unwrap_or_else(|_| Err("panic".into())).err()?;
            Some(format!("seed {seed} fuse {fuse}: {why}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures with {cfg:?}\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn pointwise() {
    check(0..40, &Config::pointwise(), 1e-5);
}

#[test]
fn views() {
    check(0..40, &Config { views: true, ..Config::pointwise() }, 1e-5);
}

#[test]
fn reductions() {
    check(0..40, &Config { reduce: true, views: true, ..Config::pointwise() }, 2e-5);
}

#[test]
fn contractions() {
    check(0..40, &Config { dot: true, conv: true, ints: false, ..Config::pointwise() }, 2e-5);
}

#[test]
fn indices_and_randomness() {
    check(0..40, &Config { index: true, random: true, ..Config::pointwise() }, 2e-5);
}

#[test]
fn everything() {
    check(0..60, &Config { ops: 24, ..Config::default() }, 3e-5);
}

#[test]
fn half() {
    check(0..40, &Config { half: true, ..Config::default() }, 2e-2);
}

/// Thousands of programs; minutes. `cargo test -p dnx-tests --test lowering -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn deep() {
    let half = Config { half: true, ..Config::default() };
    let results = [(Config::default(), 3e-5), (Config { ops: 32, ..Config::default() }, 5e-5), (half, 2e-2)]
        .map(|(cfg, tolerance)| std::panic::catch_unwind(|| check(1000..2000, &cfg, tolerance)));
    assert!(results.iter().all(Result::is_ok));
}
