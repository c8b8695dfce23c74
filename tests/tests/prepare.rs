//! The graph passes on random programs and on training steps: same signature, same numbers, nothing left to do.

use dnx_autodiff::value_and_grad;
use dnx_codegen::passes::canonical::canonical_with;
use dnx_codegen::passes::inline::inline;
use dnx_codegen::passes::prepare;
use dnx_codegen::{GpuLimits, Options, Target};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Func, Op, verify};
use dnx_tests::random_graph::{Config, random_func};

/// The first element that differs by more than `tolerance` relative to the larger of 1 and its size.
fn difference(got: &[Array], want: &[Array], tolerance: f64) -> Option<String> {
    for (r, (got, want)) in got.iter().zip(want).enumerate() {
        for (i, (x, y)) in got.to_f64_vec().into_iter().zip(want.to_f64_vec()).enumerate() {
            let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * y.abs().max(1.0);
            if !same {
                return Some(format!("result {r}[{i}] is {x}, not {y}"));
            }
        }
    }
    None
}

fn signature(f: &Func) -> (Vec<String>, Vec<String>) {
    let params = f.params.iter().map(|p| format!("{}: {}", p.name, f.ty(p.value))).collect();
    (params, f.result_types().iter().map(|t| t.to_string()).collect())
}

fn check(func: &Func, args: &[Array]) -> Result<(), String> {
    let exact = eval(func, args, Precision::F64).map_err(|e| e.to_string())?;
    // Without folding, which rounds constants to f32, the passes are exact up to the order of a few operations.
    let inlined = inline(func, &Options::default()).map_err(|e| e.to_string())?;
    let unfolded = canonical_with(&inlined, false).map_err(|e| e.to_string())?;
    verify::verify(&unfolded).map_err(|e| e.to_string())?;
    let got = eval(&unfolded, args, Precision::F64).map_err(|e| e.to_string())?;
    if let Some(d) = difference(&got, &exact, 1e-11) {
        return Err(format!("canonical: {d}\n{func}\nbecame\n{unfolded}"));
    }
    for target in [Target::Cpu, Target::Gpu(GpuLimits::webgpu())] {
        let prepared = prepare(func, &target).map_err(|e| e.to_string())?;
        verify::verify(&prepared).map_err(|e| e.to_string())?;
        if signature(&prepared) != signature(func) {
            return Err(format!("the signature {:?} became {:?}", signature(func), signature(&prepared)));
        }
        if let Some(n) = prepared.nodes.iter().find(|n| matches!(n.op, Op::Call { .. } | Op::Composite { .. })) {
            return Err(format!("a {} is left", n.op.name()));
        }
        let got = eval(&prepared, args, Precision::F64).map_err(|e| e.to_string())?;
        if let Some(d) = difference(&got, &exact, 1e-4) {
            return Err(format!("prepare: {d}\n{func}\nbecame\n{prepared}"));
        }
        if prepare(&prepared, &target).map_err(|e| e.to_string())? != prepared {
            return Err(format!("not idempotent on\n{prepared}"));
        }
    }
    Ok(())
}

fn check_seeds(seeds: std::ops::Range<u64>, cfg: &Config, differentiate: bool) {
    let failures: Vec<String> = seeds
        .filter_map(|seed| {
            let (mut func, args) = random_func(seed, cfg);
            if differentiate {
                let wrt: Vec<usize> =
                    (0..func.params.len()).filter(|&i| func.param_types()[i].dtype.is_float()).collect();
                func = value_and_grad(&func, &wrt).unwrap();
            }
            let why = std::panic::catch_unwind(|| check(&func, &args)).unwrap_or_else(|_| Err("panic".into())).err()?;
            Some(format!("seed {seed}: {why}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures with {cfg:?}, the first\n{}", failures.len(), failures[0]);
}

#[test]
fn random_programs_keep_their_numbers() {
    check_seeds(0..150, &Config::default(), false);
}

#[test]
fn random_pointwise_programs_keep_their_numbers() {
    check_seeds(1000..1100, &Config::pointwise(), false);
}

#[test]
fn gradients_of_random_programs_keep_their_numbers() {
    check_seeds(2000..2060, &Config::smooth(), true);
}
