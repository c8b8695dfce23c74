//! Numeric proofs of derivatives, in `f64`. [`prove`] takes a function at a point through all of them; no test
//! states a derivative by hand.

#![allow(dead_code)]

use dnx_autodiff::{grad, jvp, linearize, transpose, value_and_grad};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::verify::verify;
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
use std::sync::Arc;

/// Deterministic numbers in `[-1, 1)`.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn array(&mut self, ty: &Type) -> Array {
        let data: Vec<f64> = (0..ty.elems()).map(|_| self.next()).collect();
        Array::from_f64(Type::new(DType::F64, ty.dims.clone()), &data)
    }
}

/// Every float parameter's index.
pub fn float_params(f: &Func) -> Vec<usize> {
    (0..f.params.len()).filter(|&i| f.param_types()[i].dtype.is_float()).collect()
}

pub fn run(f: &Func, args: &[Array]) -> Vec<Array> {
    verify(f).unwrap_or_else(|e| panic!("{e}\n{f}"));
    eval(f, args, Precision::F64).unwrap_or_else(|e| panic!("{e}\n{f}"))
}

pub fn floats(results: &[Array]) -> Vec<Array> {
    results.iter().filter(|a| a.dtype().is_float()).cloned().collect()
}

/// `args` with `t * u` added at `wrt`.
pub fn moved(args: &[Array], wrt: &[usize], u: &[Array], t: f64) -> Vec<Array> {
    let mut args = args.to_vec();
    for (&i, u) in wrt.iter().zip(u) {
        let sum: Vec<f64> = args[i].to_f64_vec().iter().zip(u.to_f64_vec()).map(|(x, u)| x + t * u).collect();
        args[i] = Array::from_f64(u.ty().clone(), &sum);
    }
    args
}

/// The derivative of the float results of `f` in direction `u`, by central differences of fourth order.
pub fn differences(f: &Func, args: &[Array], wrt: &[usize], u: &[Array]) -> Vec<Vec<f64>> {
    let h = 1e-4;
    let at =
        |t: f64| -> Vec<Vec<f64>> { floats(&run(f, &moved(args, wrt, u, t))).iter().map(Array::to_f64_vec).collect() };
    let [a, b, c, d] = [at(2.0 * h), at(h), at(-h), at(-2.0 * h)];
    (0..a.len())
        .map(|r| (0..a[r].len()).map(|i| (8.0 * (b[r][i] - c[r][i]) - (a[r][i] - d[r][i])) / (12.0 * h)).collect())
        .collect()
}

pub fn dot(a: &[Array], b: &[Array]) -> f64 {
    a.iter().zip(b).flat_map(|(a, b)| a.to_f64_vec().into_iter().zip(b.to_f64_vec())).map(|(a, b)| a * b).sum()
}

pub fn close(what: &str, f: &Func, a: f64, b: f64, tolerance: f64) {
    let scale = 1.0f64.max(a.abs()).max(b.abs());
    assert!((a - b).abs() <= tolerance * scale, "{what}: {a} is not {b}\n{f}");
}

fn all_close(what: &str, f: &Func, a: &[Array], b: &[Vec<f64>], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}: number of results\n{f}");
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.elems(), b.len(), "{what}: sizes\n{f}");
        for (a, &b) in a.to_f64_vec().into_iter().zip(b) {
            close(what, f, a, b, tolerance);
        }
    }
}

/// A scalar of all float results of `f` with no two elements weighed alike, and curved in each: every gradient
/// in it is taken in the middle of a graph, with cotangents that are not one.
pub fn scalarised(f: &Func) -> Func {
    let g = Graph::new("scalarised");
    let params: Vec<Tensor> = f.params.iter().map(|p| g.param(&p.name, f.ty(p.value).clone())).collect();
    let mut sum = g.scalar(DType::F32, 0.0);
    for r in g.call(&Arc::new(f.clone()), &params) {
        if r.dtype().is_float() {
            let n = r.ty().elems();
            let weight = g.iota(DType::F32, &[n], 0) * 0.3 + 0.7;
            let r = r.convert(DType::F32).reshape(&[n]);
            sum = sum + ((r * 0.8 + 0.2).sin() * weight + r * r * 0.1).sum_all();
        }
    }
    g.finish(&[sum]).unwrap()
}

/// `<grad f, u>`: parameters of `f`, then one direction per `wrt`.
pub fn slope_by_reverse(f: &Func, wrt: &[usize]) -> Func {
    let g = Graph::new("slope");
    let params: Vec<Tensor> = f.params.iter().map(|p| g.param(&p.name, f.ty(p.value).clone())).collect();
    let us: Vec<Tensor> = wrt.iter().map(|&i| g.param("u", f.param_types()[i].clone())).collect();
    let mut sum = g.scalar(DType::F32, 0.0);
    for (d, u) in g.call(&Arc::new(grad(f, wrt).unwrap()), &params).into_iter().zip(us) {
        sum = sum + (d * u).sum_all().convert(DType::F32);
    }
    g.finish(&[sum]).unwrap()
}

/// The same by forward mode.
pub fn slope_by_forward(f: &Func, wrt: &[usize]) -> Func {
    let mut d = jvp(f, wrt).unwrap();
    d.results.remove(0);
    d
}

/// Takes `f` at `args` through every identity its derivatives must keep. `orders`: 1 or 2.
pub fn prove(f: &Func, args: &[Array], orders: usize) {
    let wrt = float_params(f);
    let mut n = Numbers(7);
    let draw = |n: &mut Numbers| -> Vec<Array> { wrt.iter().map(|&i| n.array(args[i].ty())).collect() };
    let (u, v) = (draw(&mut n), draw(&mut n));
    let joined = |args: &[Array], more: &[Array]| [args, more].concat();

    // jvp against differences, its primal results against the function.
    let forward = jvp(f, &wrt).unwrap();
    let out = run(&forward, &joined(args, &u));
    let primal = run(f, args);
    assert_eq!(&out[..primal.len()], &primal[..], "primal results of jvp\n{forward}");
    let tangents = &out[primal.len()..];
    let (own, derived) = (f.result_types(), forward.result_types());
    let float_types: Vec<&Type> = own.into_iter().filter(|t| t.dtype.is_float()).collect();
    assert_eq!(derived[primal.len()..], float_types, "a tangent has the type of its primal\n{forward}");
    all_close("jvp", &forward, tangents, &differences(f, args, &wrt, &u), 2e-7);

    // The linear part, and <T u, v> = <u, T' v>.
    let split = linearize(f, &wrt).unwrap();
    let out = run(&split.primal, args);
    assert_eq!(&out[..primal.len()], &primal[..], "primal results of linearize\n{}", split.primal);
    let residuals = &out[primal.len()..];
    let tu = run(&split.linear, &joined(residuals, &u));
    let expected: Vec<Vec<f64>> = tangents.iter().map(Array::to_f64_vec).collect();
    all_close("linearize", &split.linear, &tu, &expected, 1e-12);
    let back = transpose(&split.linear, &split.tangents(f)).unwrap();
    let w: Vec<Array> = tu.iter().map(|t| n.array(t.ty())).collect();
    let tw = run(&back, &joined(residuals, &w));
    close("<T u, w> = <u, T' w>", &back, dot(&tu, &w), dot(&u, &tw), 1e-11);

    // Gradients with curved, unequal cotangents.
    let scalar = scalarised(f);
    let gradient = grad(&scalar, &wrt).unwrap();
    let g = run(&gradient, args);
    close("grad", &gradient, dot(&g, &u), differences(&scalar, args, &wrt, &u)[0][0], 2e-7);
    let param_types: Vec<&Type> = wrt.iter().map(|&i| f.param_types()[i]).collect();
    assert_eq!(gradient.result_types(), param_types, "a gradient has the type of its parameter\n{gradient}");
    let both = value_and_grad(&scalar, &wrt).unwrap();
    assert_eq!(run(&both, args), [run(&scalar, args), g].concat(), "value_and_grad\n{both}");
    if orders < 2 {
        return;
    }

    // Second order four ways: differences, forward over reverse, reverse over forward, reverse over reverse.
    let hu = differences(&gradient, args, &wrt, &u);
    let over = jvp(&gradient, &wrt).unwrap();
    let count = wrt.len();
    let fr = run(&over, &joined(args, &u)).split_off(count);
    all_close("jvp of grad", &over, &fr, &hu, 2e-6);
    let flat: Vec<Vec<f64>> = fr.iter().map(Array::to_f64_vec).collect();
    for slope in [slope_by_forward(&scalar, &wrt), slope_by_reverse(&scalar, &wrt)] {
        let over = grad(&slope, &wrt).unwrap();
        all_close("grad of slope", &over, &run(&over, &joined(args, &u)), &flat, 1e-9);
    }
    let hv = run(&over, &joined(args, &v)).split_off(count);
    close("<v, H u> = <u, H v>", &over, dot(&v, &fr), dot(&u, &hv), 1e-10);
}

/// As [`prove`] at random arguments in `[-1, 1)` for float parameters; integer ones are drawn below `below`.
pub fn prove_anywhere(f: &Func, below: u32) {
    prove(f, &arguments(f, below, 1), 2);
}

/// Random arguments.
pub fn arguments(f: &Func, below: u32, seed: u64) -> Vec<Array> {
    let mut n = Numbers(seed);
    f.param_types()
        .into_iter()
        .map(|ty| {
            if ty.dtype.is_float() {
                return n.array(ty);
            }
            let data: Vec<f64> = (0..ty.elems()).map(|_| ((n.next() + 1.0) * 0.5 * f64::from(below)).floor()).collect();
            Array::from_f64(Type::new(ty.dtype, ty.dims.clone()), &data)
        })
        .collect()
}
