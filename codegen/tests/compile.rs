//! Compiled programs against the reference interpreter, fused and unfused, in the kernel interpreter.

use dnx_codegen::exec::Step;
use dnx_codegen::kernel::interp::run_executable;
use dnx_codegen::kernel::{Atom, Inst, Kind};
use dnx_codegen::{Compiled, Options, Target, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, BinaryOp, ConvDims, DType, DotDims, Func, Graph, Op, Tensor, Type};

/// Numbers in [-1, 1) that differ from element to element.
fn noise(ty: &Type, seed: u32) -> Array {
    let value = |i: usize| {
        let x = (i as u32).wrapping_mul(2654435761).wrapping_add(seed.wrapping_mul(40503)) ^ 0x9e3779b9;
        let x = x ^ (x >> 15);
        (x.wrapping_mul(2246822519) >> 8) as f64 / (1u32 << 23) as f64 - 1.0
    };
    let data: Vec<f64> = (0..ty.elems())
        .map(|i| match ty.dtype {
            DType::F32 | DType::F16 | DType::BF16 => value(i),
            DType::Bool => f64::from(value(i) > 0.0),
            _ => (value(i).abs() * 7.0).floor(),
        })
        .collect();
    Array::from_f64(ty.clone(), &data)
}

fn args(func: &Func) -> Vec<Array> {
    func.param_types().iter().enumerate().map(|(i, t)| noise(t, i as u32 + 1)).collect()
}

/// Compiles, runs both forms, compares, and gives the fused form.
fn check_donating(func: &Func, donate: &[(usize, usize)]) -> Compiled {
    let args = args(func);
    let want = eval(func, &args, Precision::F32).unwrap();
    let mut fused = None;
    for fuse in [false, true] {
        let options = Options { fuse, ..Options::new(Target::Cpu).with_donate(donate) };
        let compiled = compile(func, &options).unwrap();
        let got = run_executable(&compiled.exec, &args).unwrap();
        assert_eq!(got.len(), want.len());
        for (r, (g, w)) in got.iter().zip(&want).enumerate() {
            assert_eq!(g.ty().dims, w.ty().dims);
            let scale = w.to_f64_vec().iter().fold(1.0f64, |m, x| m.max(x.abs()));
            let tolerance = if g.dtype() == DType::F32 { 2e-5 } else { 1e-2 };
            for (i, (a, b)) in g.to_f64_vec().iter().zip(w.to_f64_vec()).enumerate() {
                let close = (a - b).abs() <= tolerance * scale || (a.is_nan() && b.is_nan()) || *a == b;
                assert!(close, "result {r} element {i}: {a} is not {b} (fuse: {fuse})");
            }
        }
        fused = Some(compiled);
    }
    fused.unwrap()
}

fn check(func: &Func) -> Compiled {
    check_donating(func, &[])
}

fn kinds(c: &Compiled) -> Vec<Kind> {
    c.exec
        .steps
        .iter()
        .filter_map(|s| match s {
            Step::Dispatch { kernel, .. } | Step::Multi { kernel, .. } => {
                Some(c.exec.kernels[*kernel as usize].kernel.kind)
            }
            _ => None,
        })
        .collect()
}

/// A function of `f32` parameters with these dims.
fn graph(dims: &[&[usize]], body: impl for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Vec<Tensor<'g>>) -> Func {
    let g = Graph::new("main");
    let params: Vec<Tensor> = dims.iter().enumerate().map(|(i, d)| g.param(&format!("p{i}"), Type::f32(*d))).collect();
    let results = body(&g, &params);
    g.finish(&results).unwrap()
}

fn layer_norm(x: Tensor) -> Tensor {
    let last = x.rank() - 1;
    let centred = x - x.mean(&[last]).unsqueeze(last);
    centred * (centred.square().mean(&[last]).unsqueeze(last) + 1e-6).rsqrt()
}

fn softmax(x: Tensor) -> Tensor {
    let last = x.rank() - 1;
    let e = (x - x.max(&[last]).unsqueeze(last)).exp();
    e / e.sum(&[last]).unsqueeze(last)
}

#[test]
fn pointwise_chains_are_one_loop() {
    let f = graph(&[&[3, 65], &[65]], |_, p| vec![(p[0] * p[1]).tanh() + 1.0, (p[0] * p[1]).exp()]);
    let c = check(&f);
    assert_eq!(kinds(&c), [Kind::Loop]);
    assert_eq!(c.exec.kernels[0].kernel.dims.len(), 2);
}

#[test]
fn a_contiguous_loop_is_one_dim() {
    let f = graph(&[&[3, 5, 7], &[3, 5, 7]], |_, p| vec![p[0] * p[1] + p[0]]);
    let c = check(&f);
    assert_eq!(c.exec.kernels[0].kernel.dims.iter().map(|d| d.size).collect::<Vec<_>>(), [105]);
}

#[test]
fn layer_norm_and_softmax_are_one_row_kernel_each() {
    let f = graph(&[&[2, 3, 63]], |_, p| vec![layer_norm(p[0])]);
    assert_eq!(kinds(&check(&f)), [Kind::Row]);
    let f = graph(&[&[2, 3, 63]], |_, p| vec![softmax(p[0] * 3.0)]);
    assert_eq!(kinds(&check(&f)), [Kind::Row]);
}

#[test]
fn modulated_norm_joins_the_row() {
    let f = graph(&[&[2, 5, 16], &[2, 16], &[2, 16]], |_, p| {
        vec![layer_norm(p[0]) * (p[1].unsqueeze(1) + 1.0) + p[2].unsqueeze(1)]
    });
    assert_eq!(kinds(&check(&f)), [Kind::Row]);
}

#[test]
fn a_linear_layer_with_gelu_is_one_contraction() {
    let f = graph(&[&[2, 5, 16], &[24, 16], &[24]], |_, p| {
        let h = p[0].matmul_t(p[1]) + p[2];
        let t = ((h + h * h * h * 0.044715) * 0.7978845608).tanh();
        vec![h * (t + 1.0) * 0.5]
    });
    assert_eq!(kinds(&check(&f)), [Kind::Contract]);
}

#[test]
fn attention_reads_heads_through_views() {
    let (b, t, h, d) = (2, 5, 3, 4);
    let f = graph(&[&[b, t, 3 * h * d]], |_, p| {
        let qkv = p[0].reshape(&[b, t, 3, h, d]).transpose(&[2, 0, 3, 1, 4]);
        let part = |i: usize| qkv.slice(0, i, i + 1).reshape(&[b, h, t, d]);
        let (q, k, v) = (part(0), part(1), part(2));
        let batch = |l: usize, r: usize| DotDims {
            lhs_batch: vec![0, 1],
            rhs_batch: vec![0, 1],
            lhs_contract: vec![l],
            rhs_contract: vec![r],
        };
        let w = softmax(q.dot(k, batch(3, 3)) * 0.5);
        vec![w.dot(v, batch(3, 2)).transpose(&[0, 2, 1, 3]).reshape(&[b, t, h * d])]
    });
    let c = check(&f);
    assert_eq!(kinds(&c), [Kind::Contract, Kind::Row, Kind::Contract]);
    for k in &c.exec.kernels {
        for inst in &k.kernel.insts {
            if let Inst::Load { index, .. } = inst {
                assert!(index.is_affine(), "{index:?}");
            }
        }
        assert!(k.kernel.stores.iter().all(|s| s.index.is_affine()));
    }
}

#[test]
fn bias_gradients_are_columns() {
    let f = graph(&[&[4, 7, 33], &[33]], |_, p| {
        let y = p[0] * p[1];
        vec![y.sum(&[0, 1]) * 2.0, y]
    });
    assert_eq!(kinds(&check(&f)), [Kind::Column]);
}

#[test]
fn reductions_to_scalars_and_over_middle_dims() {
    check(&graph(&[&[70, 300]], |_, p| vec![p[0].square().sum_all(), p[0].mean_all()]));
    check(&graph(&[&[4, 65, 3]], |_, p| vec![p[0].sum(&[1]), p[0].max(&[0]), p[0].max(&[1, 2])]));
    check(&graph(&[&[200, 257]], |_, p| vec![p[0].sum(&[0, 1]), p[0].max(&[0, 1])]));
}

#[test]
fn views_that_do_not_factor_still_read_right() {
    let f = graph(&[&[4, 6]], |_, p| vec![p[0].transpose(&[1, 0]).reshape(&[3, 8]).exp()]);
    let c = check(&f);
    let divides =
        c.exec.kernels[0].kernel.insts.iter().any(
            |i| matches!(i, Inst::Load { index, .. } if index.terms.iter().any(|(_, a)| !matches!(a, Atom::Dim(_)))),
        );
    let _ = divides; // either form is right; the numbers were compared
    check(&graph(&[&[2, 3, 4]], |_, p| vec![p[0].reverse(&[0, 2]).reshape(&[6, 4]).transpose(&[1, 0])]));
}

#[test]
fn pads_slices_and_concatenations() {
    check(&graph(&[&[3, 4], &[3, 2]], |g, p| {
        let joined = g.concat(&[p[0], p[1] * 2.0, p[0].slice(1, 1, 2)], 1);
        let op = Op::Pad { low: vec![1, 0], high: vec![0, 2], interior: vec![1, 2] };
        let padded = p[0].tanh().apply(op, &[g.scalar(DType::F32, 3.0)]);
        vec![joined, joined.exp(), padded, padded.pad_zero(&[1, 1], &[0, 0]).slice(0, 0, 3)]
    }));
    check(&graph(&[&[5, 7]], |_, p| {
        let op = Op::Slice { start: vec![1, 0], limit: vec![5, 7], stride: vec![2, 3] };
        vec![p[0].apply(op, &[]).exp()]
    }));
}

#[test]
fn convolutions() {
    for (stride, padding, lhs, rhs, groups) in [
        (1, (1, 1), 1, 1, 1),
        (2, (1, 0), 1, 1, 1),
        (1, (2, 2), 1, 2, 1),
        (1, (1, 2), 2, 1, 1),
        (2, (0, 1), 3, 1, 2),
        (1, (-1, 1), 1, 1, 2),
    ] {
        let f = graph(&[&[2, 5, 6, 4], &[3, 3, 4 / groups, 6], &[6]], |_, p| {
            let dims = ConvDims {
                stride: vec![stride, 1],
                padding: vec![padding, (1, 1)],
                lhs_dilation: vec![lhs, 1],
                rhs_dilation: vec![rhs, 1],
                groups,
            };
            let y = p[0].apply(Op::Conv { dims, out: DType::F32 }, &[p[1]]);
            vec![(y + p[2]).tanh()]
        });
        assert_eq!(kinds(&check(&f)), [Kind::Contract]);
    }
}

#[test]
fn gathers_scatters_and_dynamic_slices() {
    let g = Graph::new("main");
    let table = g.param("table", Type::f32([7, 5]));
    let index = g.param("index", Type::new(DType::I32, [4, 2]));
    let start = g.param("start", Type::new(DType::I32, [2]));
    let block = g.param("block", Type::f32([2, 3]));
    let rows = table.tanh().take(index) * 2.0;
    let summed = table.apply(Op::ScatterAdd { dim: 0 }, &[index, rows]);
    let zero = g.full(DType::F32, &[7, 5], 0.0).apply(Op::ScatterAdd { dim: 0 }, &[index, rows.exp()]);
    let part = table.apply(Op::DynamicSlice { sizes: vec![3, 2] }, &[start]);
    let updated = table.apply(Op::DynamicUpdateSlice, &[block * 3.0, start]);
    let columns = table.apply(Op::Take { dim: 1 }, &[index]);
    let f = g.finish(&[rows, summed, zero, part, updated, columns]).unwrap();
    check(&f);
}

#[test]
fn random_bits_and_counters() {
    let g = Graph::new("main");
    let key = g.param("key", Type::new(DType::U32, [2]));
    let bits = g.random_bits(key, &[3, 65]);
    let unit = bits.shr(g.full(DType::U32, &[], 8.0)).convert(DType::F32) * (1.0 / (1u32 << 24) as f64);
    let count = g.iota(DType::F32, &[3, 65], 1) + g.iota(DType::I32, &[3, 65], 0).convert(DType::F32);
    let f = g.finish(&[bits.slice(1, 2, 9), unit, count.transpose(&[1, 0])]).unwrap();
    check(&f);
}

#[test]
fn sixteen_bit_floats_round_where_the_program_says() {
    let g = Graph::new("main");
    let x = g.param("x", Type::new(DType::F16, [33]));
    let y = g.param("y", Type::new(DType::BF16, [33]));
    let z = (x * x + x).convert(DType::F32) + (y * 3.0).convert(DType::F32);
    let dims = DotDims { lhs_contract: vec![0], rhs_contract: vec![0], ..DotDims::default() };
    let dot = x.apply(Op::Dot { dims, out: DType::F32 }, &[x]);
    let f = g.finish(&[z, dot, y.sum(&[0]), x.gt(x * 2.0)]).unwrap();
    check(&f);
}

#[test]
fn integers_and_truth_values() {
    let g = Graph::new("main");
    let x = g.param("x", Type::new(DType::I32, [13]));
    let b = g.param("b", Type::new(DType::Bool, [13]));
    let y = g.param("y", Type::f32([5, 13]));
    let masked = b.select(x, x * x);
    let f = g
        .finish(&[masked, b.not().and(x.gt(g.full(DType::I32, &[13], 2.0))), y.apply(Op::Argmax { dim: 1 }, &[])])
        .unwrap();
    check(&f);
}

#[test]
fn results_that_nobody_computes_are_copied() {
    let g = Graph::new("main");
    let x = g.param("x", Type::f32([4, 3]));
    let c = g.constant(Array::f32([3], &[1.0, 2.0, 3.0]));
    let f = g.finish(&[x, x, c, x.transpose(&[1, 0]), g.full(DType::F32, &[2], 7.0), g.iota(DType::I32, &[5], 0)]);
    check(&f.unwrap());
}

#[test]
fn donated_inputs_are_updated_in_place_after_their_readers() {
    // Both states are read by the other's update, so one of them has to be made elsewhere and copied.
    let f = graph(&[&[6, 6], &[6, 6]], |_, p| vec![p[0] + p[1] * 2.0, p[1] - p[0]]);
    check_donating(&f, &[(0, 0), (1, 1)]);
    // A transposed read can't be in place.
    let f = graph(&[&[6, 6]], |_, p| vec![p[0].transpose(&[1, 0]) * 2.0]);
    let c = check_donating(&f, &[(0, 0)]);
    assert!(c.exec.steps.iter().any(|s| matches!(s, Step::Copy { .. })));
    // Swapping two states goes through saved copies.
    let f = graph(&[&[5], &[5]], |_, p| vec![p[1], p[0]]);
    check_donating(&f, &[(0, 0), (1, 1)]);
    let f = graph(&[&[5], &[5]], |_, p| vec![p[0], p[0] + p[1]]);
    check_donating(&f, &[(0, 1)]);
}

#[test]
fn updates_of_many_tensors_are_one_step() {
    let dims: [&[usize]; 9] = [&[3, 5], &[7], &[64, 2], &[3, 5], &[7], &[64, 2], &[3, 5], &[7], &[64, 2]];
    let f = graph(&dims, |g, p| {
        let lr = g.scalar(DType::F32, 0.5);
        let mut out = vec![];
        for i in 0..3 {
            let (w, m, grad) = (p[i], p[i + 3], p[i + 6]);
            let m = m * 0.9 + grad * 0.1;
            out.push(w - m * lr);
            out.push(m);
        }
        out
    });
    let donate: Vec<(usize, usize)> = (0..3).flat_map(|i| [(i, 2 * i), (i + 3, 2 * i + 1)]).collect();
    let c = check_donating(&f, &donate);
    assert_eq!(kinds(&c), [Kind::Multi]);
    assert_eq!(c.exec.kernels[0].kernel.args.len(), 3);
}

#[test]
fn sums_over_equal_spaces_are_one_kernel() {
    // As the norm of all gradients: 18 tensors of one shape, 2 of its transposed, 3 vectors.
    let dims: Vec<&[usize]> = [&[48, 32][..]; 18].into_iter().chain([&[32, 48][..]; 2]).chain([&[7][..]; 3]).collect();
    let norm = graph(&dims, |_, x| {
        let squares = x.iter().map(|&x| (x * x).sum_all());
        vec![squares.reduce(|a, b| a + b).expect("some").sqrt()]
    });
    let c = check(&norm);
    assert_eq!(kinds(&c), [Kind::Row; 3], "at most 16 at once; vectors apart");
    let reads = |k: &dnx_codegen::exec::KernelEntry| k.kernel.args.iter().filter(|a| a.elems > 1).count();
    assert_eq!(c.exec.kernels.iter().map(reads).sum::<usize>(), 23, "each is read once");
    // A sum that needs another one's result waits for it.
    let chained = graph(&[&[32, 32], &[32, 32]], |_, x| {
        let y = x[1].matmul(x[1]) * x[0].sum_all();
        let z = y.matmul(x[1]);
        vec![(z * z).sum_all()]
    });
    let sums = kinds(&check(&chained)).into_iter().filter(|&k| k == Kind::Row);
    assert_eq!(sums.count(), 2);
}

#[test]
fn a_producer_wanted_twice_is_written_once() {
    let f = graph(&[&[8, 16], &[16, 16]], |_, p| {
        let h = (p[0] * 2.0).exp();
        vec![h.matmul(p[1]) + h]
    });
    assert_eq!(kinds(&check(&f)), [Kind::Loop, Kind::Contract]);
}

#[test]
fn nothing_expensive_is_computed_once_per_repetition() {
    let f = graph(&[&[16], &[8, 16]], |_, p| vec![p[1] * p[0].exp() + (p[0] + 1.0)]);
    assert_eq!(kinds(&check(&f)), [Kind::Loop, Kind::Loop]);
}

#[test]
fn hashes_do_not_depend_on_names() {
    let make = |name: &str| {
        let g = Graph::new(name);
        let x = g.param(name, Type::f32([9]));
        let y = g.scope(name, || x.apply(Op::Binary(BinaryOp::Mul), &[x]));
        compile(&g.finish(&[y]).unwrap(), &Options::default()).unwrap().exec.kernels[0].hash.clone()
    };
    assert_eq!(make("a"), make("b"));
}
