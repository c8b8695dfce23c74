//! Every law is shown to apply where it should, to give what it says, and to keep the numbers; and to leave alone what
//! looks like its case and is not.

mod accepted;
mod refused;

use super::{canonical, explained, laws};
use accepted::ACCEPTED;
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, ConvDims, DType, DotDims, Func, Graph, Op, Tensor, Type, ValueId, verify};
use refused::REFUSED;

type Build = for<'g> fn(&'g Graph) -> Vec<Tensor<'g>>;

fn build(f: Build) -> Func {
    let g = Graph::new("f");
    let results = f(&g);
    let f = g.finish(&results).unwrap();
    verify::verify(&f).unwrap();
    f
}

/// Numbers of both signs, none special, from a small generator.
fn arguments(f: &Func) -> Vec<Array> {
    let mut state = 0x9e37_79b9u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f64 / (1 << 24) as f64
    };
    let value = |dtype: DType, u: f64| match dtype {
        DType::Bool => (u < 0.5) as u8 as f64,
        DType::I32 => (u * 21.0).floor() - 10.0,
        DType::U32 => (u * 21.0).floor(),
        _ => u * 4.0 - 2.0,
    };
    let types = f.param_types().into_iter().cloned();
    types
        .map(|t| Array::from_f64(t.clone(), &(0..t.elems()).map(|_| value(t.dtype, next())).collect::<Vec<_>>()))
        .collect()
}

fn assert_same_numbers(f: &Func, g: &Func) {
    assert_eq!(f.result_types(), g.result_types());
    let args = arguments(f);
    let (a, b) = (eval(f, &args, Precision::F64).unwrap(), eval(g, &args, Precision::F64).unwrap());
    for (a, b) in a.iter().zip(&b) {
        for (x, y) in a.to_f64_vec().into_iter().zip(b.to_f64_vec()) {
            let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= 1e-12 * x.abs().max(1.0);
            assert!(same, "{x} became {y} in\n{}\n{}", f, g);
        }
    }
}

/// A value as an expression, in which the order of nodes does not show.
fn expression(f: &Func, v: ValueId) -> String {
    let node = f.def(v);
    let operands: Vec<String> = node.operands.iter().map(|&v| expression(f, v)).collect();
    format!("{:?}({})", node.op, operands.join(", "))
}

fn expressions(f: &Func) -> Vec<String> {
    f.results.iter().map(|&r| expression(f, r)).collect()
}

/// The law applies to the first function, which becomes the second (in which there is nothing left to do but to put
/// operands in order).
fn becomes(law: &str, from: Build, to: Build) -> Result<(), String> {
    let (from, to) = (build(from), build(to));
    let (got, applied) = explained(&from, true).unwrap();
    verify::verify(&got).unwrap();
    if !applied.contains(&law) {
        return Err(format!("{law} did not apply, but {applied:?}, to\n{from}"));
    }
    let (wanted, tidied) = explained(&to, true).unwrap();
    let tidy = ["constants_last", "compare_order", "merged", "splat_constant"];
    if !tidied.iter().all(|l| tidy.contains(l)) {
        return Err(format!("{law}: {tidied:?} applies to the wanted form\n{to}"));
    }
    if expressions(&got) != expressions(&wanted) {
        return Err(format!("{law} made\n{got}of\n{from}wanted was\n{wanted}"));
    }
    assert_same_numbers(&from, &got);
    if canonical(&got).unwrap() != got {
        return Err(format!("{law}: not idempotent on\n{got}"));
    }
    Ok(())
}

/// The law does not apply.
fn keeps(law: &str, f: Build) -> Result<(), String> {
    let f = build(f);
    let (got, applied) = explained(&f, true).unwrap();
    assert_same_numbers(&f, &got);
    if applied.contains(&law) { Err(format!("{law} applied to\n{f}")) } else { Ok(()) }
}

fn x(g: &Graph) -> Tensor<'_> {
    g.param("x", Type::f32([2, 3]))
}

fn two(g: &Graph) -> (Tensor<'_>, Tensor<'_>) {
    (x(g), g.param("y", Type::f32([2, 3])))
}

fn int(g: &Graph) -> Tensor<'_> {
    g.param("i", Type::new(DType::I32, [2, 3]))
}

fn slice<'g>(x: Tensor<'g>, start: &[usize], limit: &[usize], stride: &[usize]) -> Tensor<'g> {
    x.apply(Op::Slice { start: start.to_vec(), limit: limit.to_vec(), stride: stride.to_vec() }, &[])
}

fn pad<'g>(x: Tensor<'g>, low: &[usize], high: &[usize], interior: &[usize], value: f64) -> Tensor<'g> {
    let op = Op::Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() };
    x.apply(op, &[x.scalar_like(value)])
}

fn dot_dims(lhs_contract: usize, rhs_contract: usize) -> DotDims {
    DotDims { lhs_contract: vec![lhs_contract], rhs_contract: vec![rhs_contract], ..DotDims::default() }
}

fn conv_dims(stride: usize, padding: i64, groups: usize) -> ConvDims {
    ConvDims {
        stride: vec![stride; 2],
        padding: vec![(padding, padding); 2],
        lhs_dilation: vec![1; 2],
        rhs_dilation: vec![1; 2],
        groups,
    }
}

#[test]
fn every_law_gives_what_it_says() {
    let wrong: Vec<String> = ACCEPTED.iter().filter_map(|(law, from, to)| becomes(law, *from, *to).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_law_applies_to_what_only_looks_like_its_case() {
    let wrong: Vec<String> = REFUSED.iter().filter_map(|(law, f)| keeps(law, *f).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_law_has_its_cases() {
    let always = ["stop_gradient", "transpose_broadcast", "broadcast", "slice", "slice_broadcast"];
    for law in laws() {
        assert!(ACCEPTED.iter().any(|(l, ..)| *l == law.name), "no case where {} applies", law.name);
        let refused = REFUSED.iter().any(|(l, _)| *l == law.name) || always.contains(&law.name);
        assert!(refused, "no case where {} does not apply", law.name);
    }
    for (l, ..) in ACCEPTED {
        assert!(*l == "merged" || laws().any(|law| law.name == *l), "no law {l}");
    }
}
