//! Networks written in primitive ops, and how their gradients read.

mod proof;

use dnx_autodiff::{grad, jvp, value_and_grad};
use dnx_ir::{ConvDims, DType, DotDims, Func, Graph, Op, Tensor, Type};
use proof::{arguments, prove_anywhere, run};

fn mlp() -> Func {
    let g = Graph::new("mlp");
    let x = g.param("x", Type::f32([8, 2]));
    let (w1, b1) = (g.param("w1", Type::f32([2, 16])), g.param("b1", Type::f32([16])));
    let (w2, y) = (g.param("w2", Type::f32([16, 2])), g.param("y", Type::f32([8, 2])));
    let hidden = g.scope("up", || (x.matmul(w1) + b1).tanh());
    let out = g.scope("down", || hidden.matmul(w2));
    let loss = g.scope("loss", || (out - y).square().mean_all());
    g.finish(&[loss]).unwrap()
}

#[test]
fn mlp_reads_well() {
    insta::assert_snapshot!(value_and_grad(&mlp(), &[1, 2, 3]).unwrap());
}

#[test]
fn mlp_jvp_reads_well() {
    insta::assert_snapshot!(jvp(&mlp(), &[0]).unwrap());
}

fn softmax(x: Tensor<'_>) -> Tensor<'_> {
    let last = x.rank() - 1;
    let e = (x - x.max(&[last]).stop_gradient().unsqueeze(last)).exp();
    e / e.sum(&[last]).unsqueeze(last)
}

fn layer_norm(x: Tensor<'_>) -> Tensor<'_> {
    let last = x.rank() - 1;
    let centred = x - x.mean(&[last]).unsqueeze(last);
    centred / (centred.square().mean(&[last]).unsqueeze(last) + 1e-5).sqrt()
}

#[test]
fn mlp_proves() {
    prove_anywhere(&mlp(), 1);
}

#[test]
fn norms_prove() {
    let g = Graph::new("norms");
    let (x, scale) = (g.param("x", Type::f32([3, 5])), g.param("scale", Type::f32([5])));
    let rms = x * (x.square().mean(&[1]).unsqueeze(1) + 1e-6).rsqrt();
    prove_anywhere(&g.finish(&[layer_norm(x) * scale, rms * scale, softmax(x)]).unwrap(), 1);
}

#[test]
fn attention_proves() {
    let g = Graph::new("attention");
    let dims = [2, 3, 2, 4]; // [B, T, H, D]
    let (q, k, v) = (g.param("q", Type::f32(dims)), g.param("k", Type::f32(dims)), g.param("v", Type::f32(dims)));
    let over = |lhs: usize, rhs: usize, rhs_batch: [usize; 2], lhs_batch: [usize; 2]| DotDims {
        lhs_batch: lhs_batch.to_vec(),
        rhs_batch: rhs_batch.to_vec(),
        lhs_contract: vec![lhs],
        rhs_contract: vec![rhs],
    };
    let scores = q.dot(k, over(3, 3, [0, 2], [0, 2])) * 0.5; // [B, H, T, T]
    let out = softmax(scores).dot(v, over(3, 1, [0, 2], [0, 1])); // [B, H, T, D]
    prove_anywhere(&g.finish(&[out.transpose(&[0, 2, 1, 3])]).unwrap(), 1);
}

#[test]
fn unet_piece_proves() {
    let g = Graph::new("unet");
    let (x, w) = (g.param("x", Type::f32([2, 5, 4, 4])), g.param("w", Type::f32([3, 3, 4, 4])));
    let (t, table) = (g.param("t", Type::new(DType::I32, [2])), g.param("table", Type::f32([7, 4])));
    let window = |stride| ConvDims {
        stride: vec![stride; 2],
        padding: vec![(0, 1), (1, 1)],
        lhs_dilation: vec![1; 2],
        rhs_dilation: vec![1; 2],
        groups: 1,
    };
    let emb = table.take(t).reshape(&[2, 1, 1, 4]);
    let h = (x.apply(Op::Conv { dims: window(2), out: DType::F32 }, &[w]) + emb).silu();
    let [b, y, z, c] = h.dims()[..] else { panic!() };
    let up = h.reshape(&[b, y, 1, z, 1, c]).broadcast_to(&[b, y, 2, z, 2, c]).reshape(&[b, 2 * y, 2 * z, c]);
    let back = up.apply(Op::Conv { dims: window(1), out: DType::F32 }, &[w]);
    prove_anywhere(
        &g.finish(&[g.concat(&[back, up.slice(1, 0, back.dim(1)).slice(2, 0, back.dim(2))], 3)]).unwrap(),
        7,
    );
}

/// The loss of a MeanFlow: the jvp of the network inside a loss whose gradient is taken.
#[test]
fn gradient_of_a_loss_with_a_jvp_inside() {
    let mlp = mlp();
    let velocity = jvp(&mlp, &[0]).unwrap();
    let g = Graph::new("meanflow");
    let params: Vec<Tensor> = mlp.params.iter().map(|p| g.param(&p.name, mlp.ty(p.value).clone())).collect();
    let args: Vec<Tensor> = params.iter().copied().chain([params[0].sin()]).collect();
    let out = g.call(&std::sync::Arc::new(velocity), &args);
    let f = g.finish(&[out[0] + out[1].square()]).unwrap();
    prove_anywhere(&f, 1);
}

/// Deep graphs: no recursion over nodes, and cost that stays near linear in their number.
#[test]
fn ten_thousand_layers() {
    let g = Graph::new("deep");
    let mut x = g.param("x", Type::f32([2]));
    for _ in 0..10_000 {
        x = x.sin() + x;
    }
    let f = g.finish(&[x.sum_all()]).unwrap();
    let d = grad(&f, &[0]).unwrap();
    assert!(d.nodes.len() < 6 * f.nodes.len(), "{} nodes from {}", d.nodes.len(), f.nodes.len());
    assert_eq!(run(&d, &arguments(&f, 1, 1))[0].elems(), 2);
}
