//! Attention's own rules: first derivatives are composites again, second ones agree with the decomposition, and what
//! falls back to it does so in blocks.

mod proof;

use dnx_autodiff::{grad, jvp, linearize, transpose};
use dnx_ir::attention::{Attention, Form, HIDDEN, attention};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, DType, DotDims, Func, Graph, Mesh, Op, Tensor, Type};
use proof::{arguments, prove_anywhere, run};
use std::sync::Arc;

/// Attention of `q [B, Tq, H, d]` over `Tk` keys, with a bias of these dims; `o` and `lse` are curved functions of all.
fn program(q: [usize; 4], keys: usize, bias: Option<[usize; 4]>, causal: bool) -> Func {
    let g = Graph::new("attend");
    let [b, _, h, d] = q;
    let (k, v) = ([b, keys, h, d], [b, keys, h, d]);
    let [q, k, v] = [("q", q), ("k", k), ("v", v)].map(|(name, dims)| g.param(name, Type::f32(dims)));
    let bias = bias.map(|dims| g.param("bias", Type::f32(dims)));
    let (o, lse) = attention(q * 1.3, k, v, bias, 0.8, causal);
    g.finish(&[o, lse]).unwrap()
}

/// Names of the composites, callees included.
fn composites(f: &Func) -> Vec<String> {
    let mut names = vec![];
    for node in &f.nodes {
        match &node.op {
            Op::Composite { name, .. } => names.push(name.to_string()),
            Op::Call { func, .. } => names.extend(composites(func)),
            _ => {}
        }
    }
    names
}

#[test]
fn attention_proves() {
    prove_anywhere(&program([2, 3, 2, 2], 4, None, false), 1);
    prove_anywhere(&program([1, 4, 1, 3], 3, None, true), 1);
}

#[test]
fn attention_with_a_bias_proves() {
    prove_anywhere(&program([2, 3, 2, 1], 2, Some([1, 2, 3, 2]), false), 1);
    prove_anywhere(&program([2, 2, 2, 2], 3, Some([2, 1, 1, 3]), true), 1);
}

/// The composites mean what plain ops mean.
#[test]
fn it_is_softmax_of_scaled_products() {
    let f = program([2, 3, 2, 4], 5, None, false);
    let g = Graph::new("plain");
    let [q, k, v] = ["q", "k", "v"].map(|n| g.param(n, Type::f32([2, if n == "q" { 3 } else { 5 }, 2, 4])));
    let [q, k, v] = [q, k, v].map(|x| x.transpose(&[0, 2, 1, 3]));
    let dims =
        |l, r| DotDims { lhs_batch: vec![0, 1], rhs_batch: vec![0, 1], lhs_contract: vec![l], rhs_contract: vec![r] };
    let e = ((q * 1.3).dot(k, dims(3, 3)) * 0.8).exp();
    let sum = e.sum(&[3]);
    let o = (e / sum.unsqueeze(3)).dot(v, dims(3, 2)).transpose(&[0, 2, 1, 3]);
    let plain = g.finish(&[o, sum.log()]).unwrap();
    let args = arguments(&f, 1, 3);
    for (a, b) in run(&f, &args).iter().zip(run(&plain, &args)) {
        assert!(a.to_f64_vec().iter().zip(b.to_f64_vec()).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn hidden_keys_weigh_nothing_and_a_row_without_keys_is_finite() {
    let f = program([1, 2, 1, 1], 3, Some([1, 1, 2, 3]), false);
    let mut args = arguments(&f, 1, 3);
    let bias = [0.0, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN];
    args[3] = Array::from_f64(Type::new(DType::F64, [1, 1, 2, 3]), &bias);
    let o = run(&f, &args)[0].to_f64_vec();
    let v = args[2].to_f64_vec();
    assert!((o[0] - v[0]).abs() < 1e-15 && (o[1] - (v[0] + v[1] + v[2]) / 3.0).abs() < 1e-12, "{o:?} {v:?}");
    let loss = proof::scalarised(&f);
    let slopes = run(&grad(&loss, &[0, 1, 2]).unwrap(), &args);
    assert!(slopes.iter().flat_map(|a| a.to_f64_vec()).all(f64::is_finite));
}

#[test]
fn first_derivatives_are_composites() {
    let f = program([2, 3, 2, 2], 4, Some([1, 2, 3, 4]), false);
    assert_eq!(composites(&jvp(&f, &[0]).unwrap()), ["attention", "attention_jvp"]);
    let loss = proof::scalarised(&f);
    assert_eq!(composites(&grad(&loss, &[0, 1, 2]).unwrap()), ["attention", "attention_bwd"]);
    // The bias's cotangent is written out; it is as large as the bias in any case.
    let d = grad(&loss, &[3]).unwrap();
    assert_eq!(composites(&d), ["attention"]);
    assert_eq!(composites(&grad(&loss, &[0, 3]).unwrap()), ["attention", "attention_bwd"]);
}

#[test]
fn the_transpose_of_the_transpose_is_the_jvp() {
    let f = program([2, 3, 2, 2], 4, None, false);
    let split = linearize(&f, &[0, 1, 2]).unwrap();
    assert_eq!(composites(&split.linear), ["attention_jvp"]);
    let back = transpose(&split.linear, &split.tangents(&f)).unwrap();
    assert_eq!(composites(&back), ["attention_bwd"]);
    let n = back.params.len();
    let again = transpose(&back, &[n - 2, n - 1]).unwrap();
    assert_eq!(composites(&again), ["attention_jvp"]);
}

/// The network's jvp as a target, as MeanFlow has it: nothing but the velocity is differentiated.
#[test]
fn a_jvp_behind_stop_gradient_stays_whole() {
    let f = program([1, 3, 2, 2], 3, None, false);
    let velocity = Arc::new(jvp(&f, &[0, 1, 2]).unwrap());
    let loss = |stopped: bool| {
        let g = Graph::new("meanflow");
        let params: Vec<Tensor> = f.params.iter().map(|p| g.param(&p.name, f.ty(p.value).clone())).collect();
        let tangents = params.iter().map(|p| p.sin());
        let args: Vec<Tensor> = params.iter().copied().chain(tangents).collect();
        let out = g.call(&velocity, &args);
        let target = if stopped { out[2].stop_gradient() } else { out[2] };
        g.finish(&[(out[0] - target).square().mean_all() + out[1].sum_all()]).unwrap()
    };
    let d = grad(&loss(true), &[0, 1, 2]).unwrap();
    assert_eq!(composites(&d), ["attention", "attention_jvp", "attention_bwd"]);
    let d = grad(&loss(false), &[0, 1, 2]).unwrap();
    assert!(composites(&d).iter().all(|n| n != "attention_jvp"), "{d}");
    prove_anywhere(&loss(false), 1);
}

#[test]
fn blocks_change_nothing_and_hold_one_block_of_scores() {
    let dims = [1, 1100, 1, 2];
    for form in [Form::Jvp, Form::Backward] {
        let spec = Attention { form, scale: 0.7, causal: true };
        let (q, k) = (Type::f32(dims), Type::f32([1, 1000, 1, 2]));
        let (lse, bias) = (Type::f32([1, 1, 1100]), Type::f32([1, 1, 1100, 1]));
        let types: Vec<&Type> = match form {
            Form::Jvp => vec![&q, &k, &k, &q, &lse, &q, &k, &k, &bias],
            _ => vec![&q, &k, &k, &q, &lse, &q, &lse, &bias],
        };
        let whole = spec.decomposition(&types, &Mesh::single()).unwrap();
        let blocks = spec.in_blocks(&types, &Mesh::single()).unwrap();
        let callees = |f: &Func| f.nodes.iter().filter(|n| matches!(n.op, Op::Call { remat: true, .. })).count();
        assert_eq!((callees(&whole), callees(&blocks)), (0, 2));
        let args = arguments(&whole, 1, 5);
        let (a, b) = (eval(&whole, &args, Precision::F64).unwrap(), eval(&blocks, &args, Precision::F64).unwrap());
        for (a, b) in a.iter().zip(&b) {
            for (a, b) in a.to_f64_vec().into_iter().zip(b.to_f64_vec()) {
                assert!((a - b).abs() <= 1e-9 * (1.0 + a.abs()), "{form:?}: {a} is not {b}");
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let g = Graph::new("f");
    let (q, k) = (g.param("q", Type::f32([2, 3, 2, 4])), g.param("k", Type::f32([2, 5, 2, 3])));
    attention(q, k, k, None, 1.0, false);
    let e = g.finish(&[q]).unwrap_err().to_string();
    assert!(e.contains("operand k of attention") && e.contains("f32[2, 5, 2, 3]"), "{e}");
}
