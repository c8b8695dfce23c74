//! Derivatives of random programs against differences, in `f64`, and recomputation against keeping.

use dnx_autodiff::{grad, jvp, value_and_grad};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::verify::verify;
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
use dnx_tests::random_graph::{Config, random_func};
use std::sync::Arc;

fn run(f: &Func, args: &[Array]) -> Vec<Array> {
    verify(f).unwrap_or_else(|e| panic!("{e}\n{f}"));
    eval(f, args, Precision::F64).unwrap_or_else(|e| panic!("{e}\n{f}"))
}

/// A random program whose differences are its derivatives: what `stop_gradient` hides from the one but not from
/// the other is let through. Seeds from 400 on have attention.
fn program(seed: u64, ops: usize) -> (Func, Vec<Array>) {
    let (f, args) = random_func(seed, &Config { ops, max_elems: 64, attention: seed >= 400, ..Config::smooth() });
    let text = f.to_string().replace(" stop_gradient ", " optimization_barrier ");
    (dnx_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}")), args)
}

fn float_params(f: &Func) -> Vec<usize> {
    (0..f.params.len()).filter(|&i| f.param_types()[i].dtype.is_float()).collect()
}

/// A direction of irregular steps, and `args` moved along it.
fn direction(args: &[Array], wrt: &[usize]) -> Vec<Array> {
    let step = |i: usize, j: usize| ((i * 7919 + j * 104_729) as f64 * 0.618_033_988_749).fract() * 2.0 - 1.0;
    let at = |&i: &usize| {
        let data: Vec<f64> = (0..args[i].elems()).map(|j| step(i, j)).collect();
        Array::from_f64(Type::new(DType::F64, args[i].dims()), &data)
    };
    wrt.iter().map(at).collect()
}

fn moved(args: &[Array], wrt: &[usize], u: &[Array], t: f64) -> Vec<Array> {
    let mut args = args.to_vec();
    for (&i, u) in wrt.iter().zip(u) {
        let sum: Vec<f64> = args[i].to_f64_vec().iter().zip(u.to_f64_vec()).map(|(x, u)| x + t * u).collect();
        args[i] = Array::from_f64(u.ty().clone(), &sum);
    }
    args
}

/// The slope of result 0 along `u` by differences of fourth order.
fn slope(f: &Func, args: &[Array], wrt: &[usize], u: &[Array]) -> f64 {
    let h = 1e-4;
    let at = |t: f64| run(f, &moved(args, wrt, u, t))[0].get(0).to_f64();
    (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h)
}

fn inner(a: &[Array], b: &[Array]) -> f64 {
    a.iter().zip(b).flat_map(|(a, b)| a.to_f64_vec().into_iter().zip(b.to_f64_vec())).map(|(a, b)| a * b).sum()
}

fn close(seed: u64, what: &str, f: &Func, a: f64, b: f64, tolerance: f64) {
    let scale = 1.0f64.max(a.abs()).max(b.abs());
    assert!((a - b).abs() <= tolerance * scale, "seed {seed}: {what}: {a} is not {b}\n{f}");
}

#[test]
fn random_programs() {
    let mut differentiated = 0;
    for seed in (0..120).chain(400..430) {
        let (f, args) = program(seed, 16);
        let wrt = float_params(&f);
        let u = direction(&args, &wrt);
        let expected = slope(&f, &args, &wrt, &u);
        let d = value_and_grad(&f, &wrt).unwrap();
        let out = run(&d, &args);
        let (values, gradients) = out.split_at(f.results.len());
        assert_eq!(values, &run(&f, &args)[..], "seed {seed}");
        close(seed, "grad", &f, inner(gradients, &u), expected, 1e-6);
        let forward = jvp(&f, &wrt).unwrap();
        let t = run(&forward, &[&args[..], &u].concat())[f.results.len()].get(0).to_f64();
        close(seed, "jvp and grad", &f, t, inner(gradients, &u), 1e-11);
        differentiated += usize::from(expected != 0.0);
    }
    assert!(differentiated > 100, "only {differentiated} programs have a slope");
}

/// `f` called with recomputation from a function that does nothing else.
fn recomputed(f: &Func) -> Func {
    let g = Graph::new("outer");
    let params: Vec<Tensor> = f.params.iter().map(|p| g.param(&p.name, f.ty(p.value).clone())).collect();
    g.finish(&g.call_remat(&Arc::new(f.clone()), &params)).unwrap()
}

#[test]
fn random_programs_recomputed() {
    for seed in (200..240).chain(400..410) {
        let (f, args) = program(seed, 16);
        let wrt = float_params(&f);
        let plain = run(&value_and_grad(&f, &wrt).unwrap(), &args);
        assert_eq!(plain, run(&value_and_grad(&recomputed(&f), &wrt).unwrap(), &args), "seed {seed}\n{f}");
        let twice = recomputed(&recomputed(&f));
        assert_eq!(plain, run(&value_and_grad(&twice, &wrt).unwrap(), &args), "seed {seed}, nested\n{f}");
    }
}

/// Second order in random programs: forward over reverse against differences of the slope.
#[test]
fn random_programs_at_second_order() {
    for seed in (300..330).chain(400..410) {
        let (f, args) = program(seed, 10);
        let wrt = float_params(&f);
        let u = direction(&args, &wrt);
        let d = grad(&f, &wrt).unwrap();
        let hu = run(&jvp(&d, &wrt).unwrap(), &[&args[..], &u].concat()).split_off(wrt.len());
        let h = 1e-4;
        let at = |t: f64| inner(&run(&d, &moved(&args, &wrt, &u, t)), &u);
        let bend = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        close(seed, "<u, H u>", &f, inner(&hu, &u), bend, 1e-5);
    }
}
