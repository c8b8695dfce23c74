//! Calls, composites, recomputation and barriers; errors; where derivative nodes say they come from.

mod proof;

use dnx_autodiff::{grad, jvp, linearize, table, transpose, value_and_grad};
use dnx_ir::{BinaryOp, Builder, DType, Func, Graph, Op, ReduceKind, Tensor, Type, UnaryOp};
use proof::{arguments, prove_anywhere, run, scalarised};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A residual block of `[B, D]` with two weights and a condition; gives its output and a statistic.
fn block() -> Arc<Func> {
    let g = Graph::new("block");
    let (x, c) = (g.param("x", Type::f32([2, 3])), g.param("c", Type::f32([3])));
    let (w, v) = (g.param("w", Type::f32([3, 4])), g.param("v", Type::f32([4, 3])));
    let hidden = g.scope("up", || (x + c).matmul(w).tanh());
    let out = g.scope("down", || x + hidden.matmul(v) * x.sin());
    Arc::new(g.finish(&[out, hidden.square().mean_all()]).unwrap())
}

/// `blocks` blocks one after another, called by `call`.
fn chain<'a>(
    blocks: usize,
    call: impl for<'g> Fn(&'g Graph, &Arc<Func>, &[Tensor<'g>]) -> Vec<Tensor<'g>> + 'a,
) -> Func {
    let (g, block) = (Graph::new("chain"), block());
    let (mut x, c) = (g.param("x", Type::f32([2, 3])), g.param("c", Type::f32([3])));
    let mut statistics = g.scalar(DType::F32, 0.0);
    for i in 0..blocks {
        let w = g.param(&format!("w{i}"), Type::f32([3, 4]));
        let v = g.param(&format!("v{i}"), Type::f32([4, 3]));
        let out = g.scope(&format!("block{i}"), || call(&g, &block, &[x, c, w, v]));
        (x, statistics) = (out[0], statistics + out[1]);
    }
    g.finish(&[x.sin(), statistics]).unwrap()
}

fn nested<'g>(g: &'g Graph, f: &Arc<Func>, args: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
    let outer = Graph::new("outer");
    let params: Vec<Tensor> = f.params.iter().map(|p| outer.param(&p.name, f.ty(p.value).clone())).collect();
    let once = outer.call_remat(f, &params);
    let twice = outer.call_remat(f, &[once[0], params[1], params[2], params[3]]);
    g.call_remat(&Arc::new(outer.finish(&[twice[0], once[1]]).unwrap()), args)
}

#[test]
fn calls_prove() {
    prove_anywhere(&chain(2, |g, f, x| g.call(f, x)), 1);
    prove_anywhere(&chain(2, |g, f, x| g.composite("block", vec![], f, x)), 1);
    prove_anywhere(&chain(2, |g, f, x| g.call_remat(f, x)), 1);
    prove_anywhere(&chain(1, nested), 1);
}

#[test]
fn recomputation_changes_no_bit() {
    let plain = scalarised(&chain(3, |g, f, x| g.call(f, x)));
    let remat = scalarised(&chain(3, |g, f, x| g.call_remat(f, x)));
    // The condition is added to by every block: its sum is bracketed by calls, so it alone may round elsewhere.
    let wrt: Vec<usize> = (0..plain.params.len()).filter(|&i| i != 1).collect();
    let args = arguments(&plain, 1, 9);
    assert_eq!(run(&value_and_grad(&plain, &wrt).unwrap(), &args), run(&value_and_grad(&remat, &wrt).unwrap(), &args));
}

#[test]
fn recomputation_keeps_operands_only() {
    let f = chain(2, |g, f, x| g.call_remat(f, x));
    let wrt: Vec<usize> = (0..f.params.len()).collect();
    let split = linearize(&f, &wrt).unwrap();
    let kept: Vec<String> = split.linear.params[..split.residuals(&f)].iter().map(|p| p.name.to_string()).collect();
    // Parameters, the first block's output, and the second's for the sine outside of it.
    assert_eq!(kept.iter().filter(|n| n.starts_with("residual")).count(), 2, "{kept:?}\n{}", split.linear);

    let backward = grad(&scalarised(&f), &wrt).unwrap();
    let calls: Vec<&Arc<Func>> = backward
        .nodes
        .iter()
        .filter_map(|n| if let Op::Call { func, remat: true } = &n.op { Some(func) } else { None })
        .filter(|func| func.name.starts_with("transpose"))
        .collect();
    assert_eq!(calls.len(), 2, "{backward}");
    assert!(Arc::ptr_eq(calls[0], calls[1]), "equal blocks have one backward function\n{backward}");
    for func in calls {
        let barrier = func.nodes.iter().find(|n| n.op == Op::OptimizationBarrier).expect("a barrier");
        let params: Vec<_> = func.params.iter().map(|p| p.value).collect();
        assert_eq!(barrier.operands, params, "everything enters through the barrier\n{func}");
        assert!(
            func.nodes
                .iter()
                .all(|n| n.op == Op::OptimizationBarrier || !n.operands.iter().any(|v| params.contains(v)))
        );
    }
}

#[test]
fn barriers_prove() {
    let mut b = Builder::new("f");
    let (x, y) = (b.param("x", Type::f32([3])), b.param("y", Type::f32([3])));
    let i = b.emit(Op::Iota { dtype: DType::I32, dims: vec![3], dim: 0 }, &[]).unwrap();
    let x2 = b.unary(UnaryOp::Sin, x).unwrap();
    let fenced = b.emit_multi(Op::OptimizationBarrier, &[x2, i, y]).unwrap();
    let z = b.mul(fenced[0], fenced[2]).unwrap();
    prove_anywhere(&b.clone().finish(&[z]), 1);
    prove_anywhere(&b.finish(&[fenced[0], fenced[1], z]), 1);
}

#[test]
fn composites_without_tangents_stay() {
    let (g, block) = (Graph::new("f"), block());
    let (x, y) = (g.param("x", Type::f32([2, 3])), g.param("y", Type::f32([2, 3])));
    let args = [y, g.param("c", Type::f32([3])), g.param("w", Type::f32([3, 4])), g.param("v", Type::f32([4, 3]))];
    let frozen = g.composite("frozen", vec![], &block, &args);
    let f = g.finish(&[(x * frozen[0]).sum_all()]).unwrap();
    let d = grad(&f, &[0]).unwrap();
    assert!(d.nodes.iter().any(|n| n.op.name() == "composite"), "{d}");
    let d = grad(&f, &[1]).unwrap();
    assert!(d.nodes.iter().all(|n| n.op.name() != "composite"), "{d}");
}

#[test]
fn derivatives_know_their_place() {
    let f = scalarised(&chain(1, |g, f, x| g.call(f, x)));
    let d = grad(&f, &[0, 2, 3]).unwrap();
    let dots: Vec<&str> = d.nodes.iter().filter(|n| n.op.name() == "dot_general").map(|n| &*n.loc).collect();
    // One contraction forward (the outer one is not needed by gradients), two backward for each.
    assert_eq!(dots.iter().filter(|l| **l == "block0.up").count(), 3, "{dots:?}\n{d}");
    assert_eq!(dots.iter().filter(|l| **l == "block0.down").count(), 3, "{dots:?}\n{d}");
}

#[test]
fn bits_have_no_derivative() {
    let g = Graph::new("f");
    let x = g.param("x", Type::f32([3]));
    let bits = g.scope("hack", || x.sin().bitcast(DType::U32));
    let low = bits.shr(bits.full_like(1.0));
    let back = low.bitcast(DType::F32);
    let f = g.finish(&[x.sum_all(), back.sum_all(), low]).unwrap();
    let message = jvp(&f, &[0]).unwrap_err().to_string();
    assert!(message.starts_with("bitcast: ") && message.ends_with("(at hack)"), "{message}");
    // Auxiliary results may look at bits, integers may come from them, and comparisons of them are flat.
    assert!(value_and_grad(&f, &[0]).is_ok());
    assert!(jvp(&Func { results: vec![f.results[0], f.results[2]], ..f.clone() }, &[0]).is_ok());
    let flat = low.compare(dnx_ir::CmpOp::Gt, low.full_like(3.0)).select(x, x * 2.0);
    assert!(grad(&g.finish(&[flat.sum_all()]).unwrap(), &[0]).is_ok());
    let stopped = x.stop_gradient().bitcast(DType::U32).bitcast(DType::F32) * x;
    assert!(grad(&g.finish(&[stopped.sum_all()]).unwrap(), &[0]).is_ok());
    // Through a call too.
    let called = g.call_remat(&Arc::new(f.clone()), &[x])[1];
    assert!(grad(&g.finish(&[called]).unwrap(), &[0]).unwrap_err().to_string().contains("bitcast"));
}

#[test]
fn misuse_is_explained() {
    let g = Graph::new("f");
    let (x, i) = (g.param("x", Type::f32([3])), g.param("i", Type::new(DType::I32, [3])));
    let f = g.finish(&[x * i.convert(DType::F32)]).unwrap();
    let text = |r: dnx_ir::Result<Func>| r.unwrap_err().to_string();
    assert_eq!(text(grad(&f, &[0])), "result 0 of @f is f32[3]; a gradient is of a float scalar: sum or average it");
    assert_eq!(text(jvp(&f, &[1])), "parameter 1 (i) of @f is i32: only floats have derivatives");
    assert_eq!(text(jvp(&f, &[2])), "@f has 2 parameters, no number 2 to differentiate by");
    assert_eq!(text(jvp(&f, &[0, 0])), "parameter 0 (x) of @f is named twice");
    assert!(transpose(&f, &[0]).is_ok());
    let y = g.scope("bend", || x.exp());
    let bent = text(transpose(&g.finish(&[y]).unwrap(), &[0]));
    assert_eq!(bent, "exp: is not linear, so it cannot be transposed (at bend)");
    let square = text(transpose(&g.finish(&[x * x]).unwrap(), &[0]));
    assert_eq!(square, "mul: is not linear in all its operands together, so it cannot be transposed");
    let under = g.finish(&[g.scalar(DType::F32, 1.0).broadcast_to(&[3]) / x]).unwrap();
    assert_eq!(text(transpose(&under, &[0])), "div: is not linear in operand 1, so it cannot be transposed");
}

/// Unrelated parameters and results get zeros of the right types, in the order asked for.
#[test]
fn zeros_and_order() {
    let g = Graph::new("f");
    let (x, y) = (g.param("x", Type::f32([2])), g.param("y", Type::f32([3])));
    let z = g.param("z", Type::new(DType::F16, [1, 4]));
    let f =
        g.finish(&[(x.sum_all() * 2.0 + y.sum_all() * 3.0), g.iota(DType::I32, &[5], 0), z.full_like(1.0)]).unwrap();
    let args = arguments(&f, 1, 2);
    let d = run(&grad(&f, &[2, 1, 0]).unwrap(), &args);
    let flat: Vec<Vec<f64>> = d.iter().map(|a| a.to_f64_vec()).collect();
    assert_eq!(flat, [vec![0.0; 4], vec![3.0; 3], vec![2.0; 2]]);
    let t = jvp(&f, &[1, 0]).unwrap();
    let types: Vec<String> = t.result_types().iter().map(|t| t.to_string()).collect();
    assert_eq!(types, ["f32[]", "i32[5]", "f16[1, 4]", "f32[]", "f16[1, 4]"]);
    let names: Vec<&str> = t.params.iter().map(|p| &*p.name).collect();
    assert_eq!(names, ["x", "y", "z", "y.tangent", "x.tangent"]);
    let out = run(&t, &[args.clone(), vec![args[1].clone(), args[0].clone()]].concat());
    let sum = |i: usize| args[i].to_f64_vec().iter().sum::<f64>();
    proof::close("slope", &t, out[3].get(0).to_f64(), 2.0 * sum(0) + 3.0 * sum(1), 1e-14);
}

/// Every op has a row: a new op is a new name here, and the rule's own `match` does not compile without it.
#[test]
fn every_op_has_a_row() {
    let names: BTreeSet<&str> = table().iter().map(|r| r.op).collect();
    let unary = UnaryOp::ALL.iter().map(|u| u.name());
    let binary = BinaryOp::ALL.iter().map(|b| b.name());
    let rest = "param const iota random_bits axis_index convert bitcast compare select reshape transpose broadcast \
        slice pad concat reverse dynamic_slice dynamic_update_slice reduce_sum reduce_max argmax dot_general conv take \
        scatter_add reshard all_reduce all_gather reduce_scatter all_to_all ppermute call optimization_barrier composite";
    let wanted: BTreeSet<&str> = unary.chain(binary).chain(rest.split_whitespace()).collect();
    assert_eq!(names, wanted);
    for row in table() {
        let reasoned = !row.note.is_empty() || !matches!(row.jvp, "zero" | "none" | "refused");
        assert!(reasoned, "{} has no derivative and no reason", row.op);
        assert!(row.jvp != "linear" || row.transpose != "-", "{} is linear without a transpose", row.op);
    }
    assert_eq!(Op::Reduce { kind: ReduceKind::Max, dims: vec![] }.name(), "reduce_max");
}
