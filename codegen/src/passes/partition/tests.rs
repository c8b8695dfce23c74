//! Divided programs give, on all devices of the interpreter, the parts of what the global program gives.

use super::*;
use crate::passes::{canonical::canonical, inline};
use crate::{Options, Target};
use dnx_ir::interp::{Precision, eval, eval_mesh};
use dnx_ir::parts::{part, whole};
use dnx_ir::{Array, AxisName, ConvDims, Graph, ReduceKind, Tensor, text, verify};

/// Deterministic numbers: floats in `[-1, 1)`, small integers, and booleans.
fn array(ty: &Type, seed: u64) -> Array {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let value = |x: f64| match ty.dtype {
        DType::Bool => (x < 0.5) as u8 as f64,
        dtype if dtype.is_float() => 2.0 * x - 1.0,
        _ => (x * 8.0).floor(),
    };
    Array::from_f64(Type::new(ty.dtype, ty.dims.clone()), &(0..ty.elems()).map(|_| value(next())).collect::<Vec<_>>())
}

/// Divides, runs both, compares; gives the divided program.
fn check(f: &Func) -> Func {
    verify::verify(f).unwrap_or_else(|e| panic!("{e}"));
    let divided = partition(f, Wire::F32).unwrap_or_else(|e| panic!("{e}\n{f}"));
    verify::verify(&divided).unwrap_or_else(|e| panic!("{e}"));
    assert!(divided.values.iter().all(|v| v.ty.sharding.is_replicated()), "{divided}");
    let args: Vec<Array> = f.param_types().iter().enumerate().map(|(i, ty)| array(ty, 7 + i as u64)).collect();
    let wanted = eval(f, &args, Precision::F64).unwrap();
    let local = |device: usize| -> Vec<Array> {
        let parts = args.iter().zip(f.param_types());
        // A sum lies on the first device.
        let own = |a: &Array, ty: &Type| {
            let s = Sharding::new(ty.sharding.dims.clone(), vec![]);
            let own = part(a, &s, &f.mesh, device).unwrap();
            let first = ty.sharding.unreduced.iter().all(|x| f.mesh.coordinate(device, x) == Some(0));
            if first { own } else { Array::zeros(own.ty().clone()) }
        };
        parts.map(|(a, ty)| own(a, ty)).collect()
    };
    let devices: Vec<Vec<Array>> = (0..f.mesh.devices()).map(local).collect();
    let got = eval_mesh(&divided, &devices, Precision::F64).unwrap();
    for (i, ty) in f.result_types().into_iter().enumerate() {
        let parts: Vec<Array> = got.iter().map(|r| r[i].clone()).collect();
        let got = summed(&parts, ty, &f.mesh);
        for (k, (a, b)) in got.iter().zip(wanted[i].to_f64_vec()).enumerate() {
            assert!((a - b).abs() <= 1e-9 * (1.0 + b.abs()), "result {i}[{k}]: {a}, not {b}\n{f}\n{divided}");
        }
    }
    divided
}

/// The array of parts that may be terms of a sum.
fn summed(parts: &[Array], ty: &Type, mesh: &Mesh) -> Vec<f64> {
    let dims = Sharding::new(ty.sharding.dims.clone(), vec![]);
    let mut total = vec![0.0; ty.elems()];
    let mut seen = vec![];
    for device in 0..mesh.devices() {
        let term: Vec<_> = ty.sharding.unreduced.iter().map(|a| mesh.coordinate(device, a)).collect();
        if seen.contains(&term) {
            continue;
        }
        // The devices that hold this term, and in place of the others the like ones.
        let of = |d: usize| {
            let alike = |e: &usize| {
                let split = |a: &&AxisName| !ty.sharding.unreduced.contains(a);
                let axes = mesh.axes.iter().map(|(n, _)| n).filter(split);
                let same = axes.clone().all(|a| mesh.coordinate(*e, a) == mesh.coordinate(d, a));
                same && ty.sharding.unreduced.iter().map(|a| mesh.coordinate(*e, a)).collect::<Vec<_>>() == term
            };
            (0..mesh.devices()).find(alike).unwrap()
        };
        let own: Vec<Array> = (0..mesh.devices()).map(|d| parts[of(d)].clone()).collect();
        let ty = ty.with_dtype(own[0].dtype()).with_sharding(dims.clone());
        let array = whole(&own, &ty, mesh).unwrap();
        total.iter_mut().zip(array.to_f64_vec()).for_each(|(t, x)| *t += x);
        seen.push(term);
    }
    total
}

fn count(f: &Func, name: &str) -> usize {
    f.nodes.iter().filter(|n| n.op.name() == name).count()
}

/// One node on operands in every layout that its rule admits.
#[test]
fn every_op_runs_on_parts() {
    let cases = [
        ("x: f32[8@dp, 4]; y: f32[8, 4@tp]", "add %x, %y : f32[8@dp, 4@tp]"),
        ("x: f32[8@dp@tp]", "exp %x : f32[8@dp@tp]"),
        ("x: f32[8@dp]; y: f32[8]", "compare lt %x, %y : bool[8@dp]"),
        ("c: bool[8@dp]; x: f32[8]; y: f32[8]", "select %c, %x, %y : f32[8@dp]"),
        ("x: f32[8@dp, 4]", "reshape %x : f32[32@dp]"),
        ("x: f32[8@dp, 16@tp]", "reshape %x : f32[8@dp, 4@tp, 4]"),
        ("x: f32[2@dp, 4@tp]", "reshape %x : f32[8@dp@tp]"),
        ("x: f32[8@dp@tp]", "reshape %x : f32[2@dp, 4@tp]"),
        ("x: f32[8, 1, 4@tp]", "reshape %x : f32[1, 2, 4, 4@tp]"),
        ("x: f32[6@dp, 4]", "reshape %x : f32[4@dp, 6]"),
        ("x: f32[8@dp, 4@tp]", "transpose %x {perm = [1, 0]} : f32[4@tp, 8@dp]"),
        ("x: f32[8@dp, 1]", "broadcast %x {map = [1, 2]} : f32[2, 8@dp, 5]"),
        ("x: f32[8@dp, 4]", "slice %x {start = [0, 1], limit = [8, 3]} : f32[8@dp, 2]"),
        ("x: f32[8@dp, 4]; z: f32[]", "pad %x, %z {low = [0, 1], high = [0, 0]} : f32[8@dp, 5]"),
        ("x: f32[8@dp, 4]; y: f32[8, 2]", "concat %x, %y {dim = 1} : f32[8@dp, 6]"),
        ("x: f32[8@dp, 4]", "reverse %x {dims = [1]} : f32[8@dp, 4]"),
        ("x: f32[8@dp, 4]; i: i32[2]", "dynamic_slice %x, %i : f32[8@dp, 2]"),
        ("x: f32[8@dp, 4]; u: f32[8, 2]; i: i32[2]", "dynamic_update_slice %x, %u, %i : f32[8@dp, 4]"),
        ("x: f32[8@dp, 4]", "reduce_sum %x {dims = [1]} : f32[8@dp]"),
        ("x: f32[8@dp, 4@tp]", "reduce_sum %x {dims = [0]} : f32[4@tp]{unreduced dp}"),
        ("x: f32[8@dp, 4@tp]", "reduce_sum %x {dims = [0, 1]} : f32[]{unreduced dp tp}"),
        ("x: f32[8@dp, 4]", "reduce_max %x {dims = [1]} : f32[8@dp]"),
        ("x: f32[8@dp, 4]", "argmax %x {dim = 1} : i32[8@dp]"),
        ("x: f32[8@dp, 4]; y: f32[4, 16@tp]", "dot_general %x, %y {contract = [1] x [0]} : f32[8@dp, 16@tp]"),
        (
            "x: f32[8@dp, 4@tp]; y: f32[4, 16]",
            "dot_general %x, %y {contract = [1] x [0]} : f32[8@dp, 16]{unreduced tp}",
        ),
        (
            "x: f32[2@dp, 8, 4]; y: f32[2, 4@tp, 6]",
            "dot_general %x, %y {contract = [2] x [1], batch = [0] x [0]} : f32[2@dp, 8, 6]{unreduced tp}",
        ),
        ("x: f32[8@dp, 9, 4]; w: f32[3, 4, 16@tp]", "conv %x, %w {stride = [1]} : f32[8@dp, 7, 16@tp]"),
        ("x: f32[8, 9, 4@tp]; w: f32[3, 4, 16]", "conv %x, %w {stride = [1]} : f32[8, 7, 16]{unreduced tp}"),
        ("x: f32[8, 9, 4@tp]; w: f32[3, 1, 8]", "conv %x, %w {stride = [1], groups = 4} : f32[8, 7, 8@tp]"),
        ("x: f32[9, 4@tp]; i: i32[8@dp]", "take %x, %i {dim = 0} : f32[8@dp, 4@tp]"),
        ("x: f32[9, 4@tp]; i: i32[8]; u: f32[8, 4]", "scatter_add %x, %i, %u {dim = 0} : f32[9, 4@tp]"),
        (
            "x: f32[9, 4]{unreduced dp}; i: i32[8]; u: f32[8@dp, 4]",
            "scatter_add %x, %i, %u {dim = 0} : f32[9, 4]{unreduced dp}",
        ),
        ("x: f32[4]{unreduced dp}; y: f32[4]{unreduced dp}", "sub %x, %y : f32[4]{unreduced dp}"),
        ("x: f32[4]{unreduced dp}; y: f32[4@tp]", "mul %x, %y : f32[4@tp]{unreduced dp}"),
        ("x: f32[4@tp, 2]{unreduced dp}", "reshape %x : f32[8@tp]{unreduced dp}"),
        ("x: f32[4@tp, 2]{unreduced dp}", "reduce_sum %x {dims = [0]} : f32[2]{unreduced dp tp}"),
        ("x: f32[2]{unreduced dp}; y: f32[3]{unreduced dp}", "concat %x, %y {dim = 0} : f32[5]{unreduced dp}"),
    ];
    for (params, node) in cases {
        let params = format!("%{}", params.replace("; ", ", %"));
        let text = format!("func @t({params}) on [dp = 2, tp = 4] {{ %r = {node} return %r }}");
        check(&text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}")));
    }
}

/// Every layout of `[8, 8]` over two axes to every other.
#[test]
fn every_layout_becomes_every_other() {
    let mesh = Mesh::new(&[("a", 2), ("b", 2)]);
    let (a, b): (AxisName, AxisName) = ("a".into(), "b".into());
    let mut layouts = vec![];
    // Per axis: nowhere, dim 0, dim 1, a sum; on one dim both in either order.
    for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
        let mut dims = vec![vec![]; 2];
        let mut unreduced = vec![];
        for (axis, at) in [(&a, i), (&b, j)] {
            match at {
                0 => {}
                3 => unreduced.push(axis.clone()),
                d => dims[d - 1].push(axis.clone()),
            }
        }
        layouts.push(Sharding::new(dims.clone(), unreduced));
        if i == j && (1..3).contains(&i) {
            dims[i - 1].reverse();
            layouts.push(Sharding::new(dims, vec![]));
        }
    }
    for from in &layouts {
        for to in &layouts {
            let g = Graph::on_mesh("f", mesh.clone());
            let x = g.param("x", Type::f32([8, 8]).with_sharding(from.clone()));
            check(&g.finish(&[x.reshard(to.clone())]).unwrap());
        }
    }
}

fn split(axes: &[&str]) -> Sharding {
    Sharding::new(axes.iter().map(|a| if a.is_empty() { vec![] } else { vec![(*a).into()] }).collect(), vec![])
}

#[test]
fn layouts_change_by_the_cheapest_collectives() {
    let mesh = Mesh::new(&[("a", 2), ("b", 2)]);
    let sum = |of: &[&str]| Sharding::new(vec![], of.iter().map(|a| (*a).into()).collect());
    let cases = [
        (sum(&["a", "b"]), split(&["", ""]), "all_reduce"),
        (sum(&["a", "b"]), split(&["a", ""]), "reduce_scatter all_reduce"),
        (sum(&["a", "b"]), split(&["a", "b"]), "reduce_scatter reduce_scatter"),
        (split(&["a", ""]), split(&["", "a"]), "all_to_all"),
        (split(&["a", ""]), split(&["", ""]), "all_gather"),
        (split(&["", ""]), split(&["a", "b"]), ""),
        (sum(&["a"]), split(&["b", ""]), "all_reduce"),
    ];
    for (from, to, wanted) in cases {
        let g = Graph::on_mesh("f", mesh.clone());
        let x = g.param("x", Type::f32([4, 4]).with_sharding(from.clone()));
        let f = check(&g.finish(&[x.reshard(to.clone())]).unwrap());
        let names: Vec<&str> = f.nodes.iter().filter(|n| n.op.is_collective()).map(|n| n.op.name()).collect();
        assert_eq!(names.join(" "), wanted, "{from:?} to {to:?}");
    }
}

/// Noise is drawn where it is used, and is that of one device.
#[test]
fn draws_are_parts_of_the_whole() {
    let mesh = Mesh::new(&[("data", 4)]);
    let g = Graph::on_mesh("f", mesh);
    let x = g.param("x", Type::f32([8, 6]).with_sharding(split(&["data", ""])));
    let key = g.param("key", Type::new(DType::U32, [2]));
    let bits = key.apply(Op::RandomBits { dims: vec![8, 6], global: None }, &[]);
    let noise = bits.convert(DType::F32) * 2.0f64.powi(-32) + g.iota(DType::F32, &[8, 6], 0);
    let f = check(&g.finish(&[x + noise]).unwrap());
    let draw = f.nodes.iter().find(|n| n.op.name() == "random_bits").unwrap();
    assert_eq!(f.ty(draw.results[0]).dims, [2, 6]);
    assert_eq!(draw.op, Op::RandomBits { dims: vec![2, 6], global: Some(vec![8, 6]) });
}

#[test]
fn a_sum_whose_reader_is_split_is_scattered() {
    let g = Graph::on_mesh("f", Mesh::new(&[("data", 2)]));
    let x = g.param("x", Type::f32([8, 6]).with_sharding(split(&["data", ""])));
    let w = g.param("w", Type::f32([6]).with_sharding(split(&["data"])));
    let sum = x.sum(&[0]).reshard(Sharding::replicated());
    let f = check(&g.finish(&[sum * w]).unwrap());
    assert_eq!((count(&f, "reduce_scatter"), count(&f, "all_reduce")), (1, 0), "{f}");
}

/// A perceptron on data and tensor axes, with its gradient.
#[test]
fn a_parallel_pair_of_layers_and_its_gradient() {
    let mesh = Mesh::new(&[("data", 2), ("tensor", 2)]);
    let g = Graph::on_mesh("mlp", mesh);
    let p = |name: &str, dims: &[usize], axes: &[&str]| g.param(name, Type::f32(dims).with_sharding(split(axes)));
    let x = p("x", &[4, 6], &["data", ""]);
    let (w, b) = (p("w", &[6, 8], &["", "tensor"]), p("b", &[8], &["tensor"]));
    let v = p("v", &[8, 6], &["tensor", ""]);
    let hidden = (x.matmul(w) + b).tanh();
    let out = hidden.matmul(v).reshard(split(&["data", ""])) + x;
    let loss = out.square().sum_all().reshard(Sharding::replicated());
    let f = g.finish(&[loss]).unwrap();
    let grad = dnx_autodiff::value_and_grad(&f, &[1, 2, 3]).unwrap();
    let divided = canonical(&check(&grad)).unwrap();
    // Forward: the sum after the second layer, and the loss. Backward: one per weight. The first layer's input has no
    // gradient.
    assert_eq!(count(&divided, "all_reduce"), 5, "{divided}");
    insta::assert_snapshot!("parallel_layers", text::print(&divided));
}

/// A layer whose weights are stored in parts, with its gradient and update: the gathered weights are read forward and
/// backward, and their gradient is scattered to who updates the part.
#[test]
fn a_layer_whose_weights_are_stored_in_parts() {
    let g = Graph::on_mesh("layer", Mesh::new(&[("fsdp", 2)]));
    let x = g.param("x", Type::f32([4, 6]).with_sharding(split(&["fsdp", ""])));
    let w = g.param("w", Type::f32([6, 8]).with_sharding(split(&["", "fsdp"])));
    let y = x.matmul(w.reshard(Sharding::replicated())).tanh();
    let loss = y.square().sum_all().reshard(Sharding::replicated());
    let grad = dnx_autodiff::value_and_grad(&g.finish(&[loss]).unwrap(), &[1]).unwrap();
    let divided = canonical(&check(&grad)).unwrap();
    assert_eq!((count(&divided, "all_gather"), count(&divided, "reduce_scatter")), (1, 1), "{divided}");
    insta::assert_snapshot!("stored_in_parts", text::print(&divided));
}

#[test]
fn convolutions_over_samples() {
    let g = Graph::on_mesh("conv", Mesh::new(&[("data", 2)]));
    let x = g.param("x", Type::f32([4, 5, 5, 4]).with_sharding(split(&["data", "", "", ""])));
    let w = g.param("w", Type::f32([3, 3, 4, 4]));
    let dims = ConvDims {
        stride: vec![2, 2],
        padding: vec![(1, 1); 2],
        lhs_dilation: vec![1; 2],
        rhs_dilation: vec![1; 2],
        groups: 1,
    };
    let h = x.apply(Op::Conv { dims, out: DType::F32 }, &[w]);
    let y = h - h.mean(&[1, 2]).unsqueeze(1).unsqueeze(1);
    let loss = y.square().sum_all().reshard(Sharding::replicated());
    check(&dnx_autodiff::value_and_grad(&g.finish(&[loss]).unwrap(), &[0, 1]).unwrap());
}

/// Groups whose samples are split: their weights' gradient is that of one device, at strides, dilations and paddings of
/// either sign, with groups split too.
#[test]
fn grouped_convolutions_over_samples() {
    let one = |v: usize| vec![v; 2];
    let cases = [
        // Groups, channels, features, stride, padding, dilations of input and kernel.
        (2, 4, 6, one(1), vec![(1, 1), (1, 1)], one(1), one(1)),
        (4, 4, 4, one(2), vec![(1, 0), (0, 2)], one(1), one(1)),
        (4, 4, 8, vec![2, 1], vec![(2, 2), (-1, 1)], one(1), vec![1, 2]),
        (2, 4, 2, one(1), vec![(0, -1), (1, 1)], vec![2, 1], one(1)),
    ];
    for (groups, channels, features, stride, padding, lhs_dilation, rhs_dilation) in cases {
        let dims = ConvDims { stride, padding, lhs_dilation, rhs_dilation, groups };
        let grad = |mesh: &Mesh| {
            let (x, w) = match mesh.axes.len() {
                0 => (Sharding::replicated(), Sharding::replicated()),
                1 => (split(&["data", "", "", ""]), Sharding::replicated()),
                _ => (split(&["data", "", "", "tensor"]), split(&["", "", "", "tensor"])),
            };
            let g = Graph::on_mesh("conv", mesh.clone());
            let x = g.param("x", Type::f32([4, 5, 6, channels]).with_sharding(x));
            let w = g.param("w", Type::f32([3, 2, channels / groups, features]).with_sharding(w));
            let y = x.apply(Op::Conv { dims: dims.clone(), out: DType::F32 }, &[w]);
            let loss = (y * y.sin()).sum_all().reshard(Sharding::replicated());
            dnx_autodiff::value_and_grad(&g.finish(&[loss]).unwrap(), &[0, 1]).unwrap()
        };
        let alone = grad(&Mesh::single());
        let args: Vec<Array> = alone.param_types().iter().enumerate().map(|(i, ty)| array(ty, 7 + i as u64)).collect();
        let wanted = eval(&alone, &args, Precision::F64).unwrap();
        for mesh in [Mesh::new(&[("data", 2)]), Mesh::new(&[("data", 2), ("tensor", 2)])] {
            let f = grad(&mesh);
            check(&f);
            for (i, (a, b)) in eval(&f, &args, Precision::F64).unwrap().iter().zip(&wanted).enumerate() {
                let apart = a.to_f64_vec().iter().zip(b.to_f64_vec()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(apart < 1e-9, "{dims:?}: result {i} is {apart:e} apart");
            }
        }
    }
}

/// Attention of two heads: how queries and keys lie, how keys are hidden.
#[derive(Clone, Copy)]
struct Attend<'a> {
    queries: &'a [&'a str],
    keys: &'a [&'a str],
    causal: bool,
    /// The bias's dims, and how it lies.
    bias: Option<([usize; 4], &'a [&'a str])>,
}

impl<'a> Attend<'a> {
    /// Queries and keys alike, every key seen.
    fn plain(layout: &'a [&'a str]) -> Attend<'a> {
        Attend { queries: layout, keys: layout, causal: false, bias: None }
    }

    /// It, its gradient and its forward derivative, divided, claimed or not.
    fn check(&self, mesh: &Mesh, claimed: bool) -> Vec<Func> {
        let g = Graph::on_mesh("attend", mesh.clone());
        let p = |name: &str, layout: &[&str]| g.param(name, Type::f32([2, 8, 2, 4]).with_sharding(split(layout)));
        let (q, k, v) = (p("q", self.queries), p("k", self.keys), p("v", self.keys));
        let bias = self.bias.map(|(dims, layout)| g.param("bias", Type::f32(dims).with_sharding(split(layout))));
        let (o, lse) = dnx_ir::attention::attention(q, k, v, bias, 0.5, self.causal);
        fn loss(t: Tensor<'_>) -> Tensor<'_> {
            t.square().sum_all().reshard(Sharding::replicated())
        }
        let total = loss(o) + loss(lse);
        let f = g.finish(&[total, o, lse]).unwrap();
        let options = Options::new(Target::Cpu);
        let ready = |f: &Func| match claimed {
            true => inline::inline(f, &options).unwrap(),
            false => inline_all(f),
        };
        let wrt: Vec<usize> = (0..f.params.len()).collect();
        let grad = dnx_autodiff::value_and_grad(&f, &wrt).unwrap();
        let jvp = dnx_autodiff::jvp(&f, &wrt).unwrap();
        [f, grad, jvp].iter().map(|f| check(&ready(f))).collect()
    }
}

/// [`Attend::plain`], checked.
fn attend(mesh: &Mesh, layout: &[&str], claimed: bool) -> Vec<Func> {
    Attend::plain(layout).check(mesh, claimed)
}

/// Every composite replaced by its decomposition.
fn inline_all(f: &Func) -> Func {
    super::super::rebuild(f, |b, node, operands| {
        b.set_loc(node.loc.clone());
        match &node.op {
            Op::Call { func, .. } | Op::Composite { func, .. } => b.inline(func, operands),
            op => b.emit_multi(op.clone(), operands),
        }
    })
    .unwrap()
}

#[test]
fn attention_on_parts() {
    let mesh = Mesh::new(&[("data", 2), ("tensor", 2)]);
    for f in attend(&mesh, &["data", "", "tensor", ""], true) {
        assert!(f.nodes.iter().filter(|n| n.op.is_collective()).all(|n| n.op.name() == "all_reduce"), "{f}");
    }
    attend(&mesh, &["data", "", "tensor", ""], false);
}

#[test]
fn attention_around_a_ring() {
    for n in [2, 4] {
        let mesh = Mesh::new(&[("data", 2), ("sequence", n)]);
        let [forward, grad, jvp] = &attend(&mesh, &["data", "sequence", "", ""], true)[..] else { unreachable!() };
        assert_eq!(count(forward, "ppermute"), 2 * (n - 1), "{forward}");
        assert_eq!(count(grad, "ppermute"), 2 * (n - 1) + 2 * (n - 1) + 2 * n, "{grad}");
        assert!(count(jvp, "ppermute") > 0 && [forward, grad, jvp].iter().all(|f| count(f, "all_gather") == 0));
        attend(&mesh, &["data", "sequence", "", ""], false);
    }
}

/// A causal order over split tokens hides the same keys, whether keys go round, are gathered or are whole.
#[test]
fn causal_attention_over_split_tokens() {
    for n in [2, 4] {
        let mesh = Mesh::new(&[("data", 2), ("sequence", n)]);
        let (split, whole) = (["data", "sequence", "", ""], ["data", "", "", ""]);
        for (queries, keys) in [(split, split), (split, whole), (whole, split)] {
            for (bias, claimed) in
                [(None, true), (None, false), (Some(([2, 1, 8, 8], &["data", "", "", ""][..])), true)]
            {
                Attend { queries: &queries, keys: &keys, causal: true, bias }.check(&mesh, claimed);
            }
        }
        let ring = Attend { causal: true, ..Attend::plain(&split) }.check(&mesh, true);
        assert!(ring.iter().all(|f| count(f, "all_gather") == 0), "{}", ring[0]);
    }
}

/// What a device of a causal ring does, to be read.
#[test]
fn a_causal_ring_of_two() {
    let g = Graph::on_mesh("attend", Mesh::new(&[("sequence", 2)]));
    let p = |name: &str| g.param(name, Type::f32([1, 8, 1, 4]).with_sharding(split(&["", "sequence", "", ""])));
    let (o, _) = dnx_ir::attention::attention(p("q"), p("k"), p("v"), None, 0.5, true);
    let f = g.finish(&[o]).unwrap();
    let divided = canonical(&check(&inline::inline(&f, &Options::new(Target::Cpu)).unwrap())).unwrap();
    insta::assert_snapshot!("causal_ring", text::print(&divided));
}

/// A bias over all keys is read where the keys are.
#[test]
fn biases_over_split_keys() {
    let mesh = Mesh::new(&[("tensor", 2), ("sequence", 2)]);
    let tokens = ["", "sequence", "tensor", ""];
    let biases: [([usize; 4], [&str; 4]); 5] = [
        ([2, 2, 8, 8], ["", "tensor", "sequence", ""]),
        ([1, 1, 8, 8], ["", "", "", ""]),
        ([1, 2, 1, 8], ["", "tensor", "", ""]),
        ([2, 1, 8, 1], ["", "", "sequence", ""]),
        ([1, 1, 1, 1], ["", "", "", ""]),
    ];
    for (dims, layout) in &biases {
        for keys in [tokens, ["", "", "tensor", ""]] {
            for causal in [false, true] {
                Attend { queries: &tokens, keys: &keys, causal, bias: Some((*dims, layout)) }.check(&mesh, true);
            }
        }
    }
}

/// Large values cross rounded, and a sum is that of the rounded terms, rounded once; small ones and results cross as they are.
#[test]
fn large_values_cross_as_the_wire_says() {
    let mesh = Mesh::new(&[("a", 2)]);
    let sum = |ty: Type| ty.with_sharding(Sharding::new(vec![], vec!["a".into()]));
    let program = |rows: usize| {
        let g = Graph::on_mesh("f", mesh.clone());
        let x = g.param("x", sum(Type::f32([rows, 64])));
        let y = g.param("y", Type::f32([rows, 64]).with_sharding(split(&["a", ""])));
        let ways = [(x, ["", ""]), (x, ["a", ""]), (y, ["", ""]), (y, ["", "a"])];
        g.finish(&ways.map(|(t, axes)| t.reshard(split(&axes)).abs())).unwrap()
    };
    for (wire, narrow) in [(Wire::F16, DType::F16), (Wire::Bf16, DType::BF16)] {
        let options = Options::new(Target::Cpu).with_wire(wire);
        let ready = |f: &Func| super::super::prepare_with(f, &options, true, &mut crate::Dump::none()).unwrap();
        let crosses = |f: &Func| -> Vec<DType> {
            f.nodes.iter().filter(|n| n.op.is_collective()).map(|n| f.ty(n.operands[0]).dtype).collect()
        };
        assert_eq!(crosses(&ready(&program(32))), [DType::F32; 4], "{wire:?}");
        let f = program(64);
        let divided = ready(&f);
        assert_eq!(crosses(&divided), [narrow; 4], "{divided}");
        // Terms of a sum on both devices.
        let (a, b) = (array(&Type::f32([64, 64]), 1), array(&Type::f32([64, 64]), 2));
        let y = array(&Type::f32([64, 64]), 3);
        let own = |d: usize| part(&y, &split(&["a", ""]), &mesh, d).unwrap();
        let got = eval_mesh(&divided, &[vec![a.clone(), own(0)], vec![b.clone(), own(1)]], Precision::F32).unwrap();
        let round = |v: &[f64]| Array::from_f64(Type::new(narrow, [v.len()]), v).to_f64_vec();
        let (ra, rb) = (round(&a.to_f64_vec()), round(&b.to_f64_vec()));
        let total = round(&ra.iter().zip(&rb).map(|(a, b)| a + b).collect::<Vec<_>>());
        let abs = |v: Vec<f64>| v.into_iter().map(f64::abs).collect::<Vec<_>>();
        let (total, moved) = (abs(total), abs(round(&y.to_f64_vec())));
        let lies = [&["", ""], &["a", ""], &["", ""], &["", "a"]];
        for (i, (axes, wanted)) in lies.iter().zip([&total, &total, &moved, &moved]).enumerate() {
            let parts: Vec<Array> = got.iter().map(|r| r[i].clone()).collect();
            let ty = Type::f32([64, 64]).with_sharding(split(&axes[..]));
            assert_eq!(whole(&parts, &ty, &mesh).unwrap().to_f64_vec(), *wanted, "{wire:?}: result {i}");
            assert!(i % 2 == 1 || parts[0] == parts[1], "{wire:?}: devices differ in result {i}");
        }
    }
}

/// Keys and values go round rounded; the sums that travel with them don't.
#[test]
fn a_ring_hands_on_narrow_keys_and_wide_sums() {
    let g = Graph::on_mesh("attend", Mesh::new(&[("sequence", 4)]));
    let p = |name: &str| g.param(name, Type::f32([2, 256, 2, 32]).with_sharding(split(&["", "sequence", "", ""])));
    let (o, _) = dnx_ir::attention::attention(p("q"), p("k"), p("v"), None, 0.2, false);
    let f = g.finish(&[o.square().sum_all().reshard(Sharding::replicated())]).unwrap();
    let grad = dnx_autodiff::value_and_grad(&f, &[0, 1, 2]).unwrap();
    let options = Options::new(Target::Cpu).with_wire(Wire::Bf16);
    let f = super::super::prepare_with(&grad, &options, true, &mut crate::Dump::none()).unwrap();
    let of = |dtype: DType| {
        let hops = f.nodes.iter().filter(|n| matches!(n.op, Op::Ppermute { .. }));
        hops.filter(|n| f.ty(n.operands[0]).dtype == dtype).count()
    };
    assert_eq!((of(DType::BF16), of(DType::F32)), (2 * 3 + 2 * 3, 2 * 4), "{f}");
}

#[test]
fn what_can_not_be_divided_is_said() {
    let g = Graph::on_mesh("f", Mesh::new(&[("data", 2)]));
    let x = g.param("x", Type::f32([4]).with_sharding(split(&["data"])));
    let y = g.param("y", Type::f32([4]));
    let sum = y.apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["data".into()] }, &[]);
    let e = partition(&g.finish(&[x, sum]).unwrap(), Wire::F32).unwrap_err().to_string();
    assert!(e.contains("all_reduce") && e.contains("reshard"), "{e}");
}

#[test]
fn over_one_device_placement_disappears() {
    let data: AxisName = "data".into();
    let mut b = Builder::on_mesh("f", Mesh::new(&[("data", 1)]));
    let x = b.param("x", Type::f32([4, 2]).with_sharding(split(&["data", ""])));
    let y = b.emit(Op::Reshard { sharding: Sharding::replicated() }, &[x]).unwrap();
    let f = partition(&b.finish(&[y]), Wire::F32).unwrap();
    assert_eq!(f.results, [f.params[0].value]);
    assert!(f.ty(f.results[0]).sharding.is_replicated() && f.mesh == Mesh::single());

    let mut b = Builder::on_mesh("f", Mesh::new(&[("data", 1)]));
    let x = b.param("x", Type::f32([4]));
    let y = b.emit(Op::AllReduce { kind: ReduceKind::Sum, axes: vec![data.clone()] }, &[x]).unwrap();
    let z = b.emit(Op::Ppermute { axis: data.clone(), pairs: vec![] }, &[x]).unwrap();
    let i = b.emit(Op::AxisIndex { axis: data }, &[]).unwrap();
    let f = partition(&b.finish(&[y, z, i]), Wire::F32).unwrap();
    assert_eq!(f.results[0], f.params[0].value);
    assert!(f.nodes.iter().all(|n| !n.op.is_collective() && !matches!(n.op, Op::AxisIndex { .. })));
}

#[test]
fn one_device_s_program_passes_through() {
    let mut b = Builder::on_mesh("f", Mesh::new(&[("data", 2)]));
    let x = b.param("x", Type::f32([4]));
    let y = b.emit(Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["data".into()] }, &[x]).unwrap();
    let f = b.finish(&[y]);
    assert_eq!(partition(&f, Wire::F32).unwrap(), f);
}
