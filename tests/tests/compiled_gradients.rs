//! Gradients of random programs, compiled, against the reference interpreter.

use dnx_codegen::kernel::interp::run_executable;
use dnx_codegen::{Options, Target, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Func};
use dnx_tests::random_graph::{Config, random_func};

/// Compiled fused and unfused; both must give what the interpreter gives.
fn check(name: &str, func: &Func, args: &[Array], tolerance: f64) {
    let want = eval(func, args, Precision::F32).unwrap();
    for fuse in [true, false] {
        let options = Options { fuse, ..Options::new(Target::Cpu) };
        let compiled = compile(func, &options).unwrap_or_else(|e| panic!("{name} (fuse: {fuse}): {e}\n{func}"));
        let got = run_executable(&compiled.exec, args).unwrap_or_else(|e| panic!("{name} (fuse: {fuse}): {e}\n{func}"));
        for (r, (g, w)) in got.iter().zip(&want).enumerate() {
            let (g, w) = (g.to_f64_vec(), w.to_f64_vec());
            let scale = w.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            for (i, (a, b)) in g.iter().zip(&w).enumerate() {
                let close = a == b || (a - b).abs() <= tolerance * scale || (a.is_nan() && b.is_nan());
                assert!(close, "{name} (fuse: {fuse}): result {r}, element {i}: {a} is not {b}\n{func}");
            }
        }
    }
}

#[test]
fn gradients_of_random_programs() {
    for seed in 200..230 {
        let (func, args) = random_func(seed, &Config { scalar_first: true, ..Config::smooth() });
        let wrt: Vec<usize> = (0..args.len()).filter(|&i| args[i].dtype().is_float()).collect();
        let grad = dnx_autodiff::value_and_grad(&func, &wrt).unwrap();
        check(&format!("seed {seed}"), &grad, &args, 1e-4);
    }
}
