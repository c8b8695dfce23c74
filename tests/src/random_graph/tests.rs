//! The generator keeps its promises.

use super::*;
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{BinaryOp, UnaryOp, text, verify};
use std::collections::BTreeSet;

fn configs() -> Vec<Config> {
    vec![
        Config::default(),
        Config::pointwise(),
        Config::smooth(),
        Config { ops: 40, ..Config::default() },
        Config { half: true, ..Config::default() },
    ]
}

#[test]
fn programs_are_valid_and_print() {
    for cfg in configs() {
        for seed in 0..40 {
            let (func, args) = random_func(seed, &cfg);
            verify::verify(&func).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(text::parse(&text::print(&func)).unwrap(), func, "seed {seed} does not round-trip");
            assert_eq!(random_func(seed, &cfg), (func, args), "seed {seed} is not repeatable");
        }
    }
}

/// Float results agree between the precisions, integers are the same: what comparisons of executions rely on.
#[test]
fn programs_are_tame() {
    for cfg in configs() {
        for seed in 0..60 {
            let (func, args) = random_func(seed, &cfg);
            let narrow = eval(&func, &args, Precision::F32).unwrap();
            let wide = eval(&func, &args, Precision::F64).unwrap();
            for (r, (a, b)) in narrow.iter().zip(&wide).enumerate() {
                let exact = !a.dtype().is_float();
                let bound = if cfg.scalar_first && r == 0 { 100.0 } else { 6.0 };
                let tolerance = if exact {
                    0.0
                } else if cfg.half {
                    0.1
                } else {
                    2e-5
                };
                for (i, (x, y)) in a.to_f64_vec().iter().zip(b.to_f64_vec()).enumerate() {
                    let close = (x - y).abs() <= tolerance * y.abs().max(1.0);
                    assert!(close, "seed {seed} result {r}[{i}]: {x} and {y}, {cfg:?}\n{func}");
                    assert!(exact || x.abs() <= bound, "seed {seed} result {r}[{i}] is {x}");
                }
            }
        }
    }
}

fn ops_of(func: &Func, into: &mut BTreeSet<&'static str>) {
    for (_, node) in func.iter() {
        match &node.op {
            Op::Call { func, .. } | Op::Composite { func, .. } => ops_of(func, into),
            Op::Const(_) | Op::Param { .. } => {}
            op => drop(into.insert(Op::name(op).to_string().leak())),
        }
    }
}

#[test]
fn every_local_op_occurs() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        ops_of(&random_func(seed, &Config::default()).0, &mut seen);
    }
    let mut names: Vec<&str> = UnaryOp::ALL.iter().map(|o| o.name()).collect();
    names.extend(BinaryOp::ALL.iter().map(|o| o.name()));
    names.extend(["compare", "select", "convert", "bitcast", "random_bits", "optimization_barrier"]);
    names.extend(["reshape", "transpose", "broadcast", "slice", "pad", "concat", "reverse"]);
    names.extend(["dynamic_slice", "dynamic_update_slice", "reduce_sum", "reduce_max", "argmax"]);
    names.extend(["dot_general", "conv", "take", "scatter_add"]);
    let missing: Vec<&&str> = names.iter().filter(|n| !seen.contains(**n)).collect();
    assert!(missing.is_empty(), "no program has {missing:?}");
}
