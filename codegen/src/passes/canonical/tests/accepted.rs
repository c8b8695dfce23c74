//! `(law, program, what it becomes)`.

#![allow(clippy::eq_op)] // x - x is a case

use super::*;

pub const ACCEPTED: &[(&str, Build, Build)] = &[
    ("stop_gradient", |g| vec![x(g).stop_gradient()], |g| vec![x(g)]),
    ("involution", |g| vec![-(-x(g))], |g| vec![x(g)]),
    ("involution", |g| vec![int(g).not().not()], |g| vec![int(g)]),
    ("abs", |g| vec![(-x(g)).abs()], |g| vec![x(g).abs()]),
    ("abs", |g| vec![x(g).abs().abs()], |g| vec![x(g).abs()]),
    (
        "constants_last",
        |g| {
            let x = x(g);
            vec![x.full_like(2.0) + x]
        },
        |g| vec![x(g) + 2.0],
    ),
    (
        "constants_last",
        |g| {
            let (x, y) = two(g);
            vec![y * x, x * y]
        },
        |g| {
            let (x, y) = two(g);
            vec![x * y; 2]
        },
    ),
    (
        "compare_order",
        |g| {
            let x = x(g);
            vec![x.full_like(1.0).lt(x)]
        },
        |g| {
            let x = x(g);
            vec![x.gt(x.full_like(1.0))]
        },
    ),
    (
        "compare_order",
        |g| {
            let x = x(g);
            vec![x.full_like(1.0).ge(x)]
        },
        |g| {
            let x = x(g);
            vec![x.le(x.full_like(1.0))]
        },
    ),
    (
        "compare_order",
        |g| {
            let (x, y) = two(g);
            vec![y.eq(x)]
        },
        |g| {
            let (x, y) = two(g);
            vec![x.eq(y)]
        },
    ),
    (
        "compare_same",
        |g| {
            let i = int(g);
            vec![i.le(i), i.lt(i)]
        },
        |g| {
            int(g);
            vec![g.full(DType::Bool, &[2, 3], 1.0), g.full(DType::Bool, &[2, 3], 0.0)]
        },
    ),
    (
        "same",
        |g| {
            let x = x(g);
            vec![x.maximum(x)]
        },
        |g| vec![x(g)],
    ),
    (
        "same",
        |g| {
            let i = int(g);
            vec![i - i, i.xor(i)]
        },
        |g| {
            let z = int(g).full_like(0.0);
            vec![z, z]
        },
    ),
    (
        "neutral",
        |g| {
            let x = x(g);
            vec![x + 0.0, x - x.full_like(0.0), x * 1.0, x / x.full_like(1.0)]
        },
        |g| vec![x(g); 4],
    ),
    (
        "neutral",
        |g| {
            let i = int(g);
            vec![i.shl(i.full_like(32.0)), i.and(i.full_like(-1.0)), i.or(i.full_like(0.0))]
        },
        |g| vec![int(g); 3],
    ),
    (
        "absorbing",
        |g| {
            let i = int(g);
            vec![i * i.full_like(0.0), i.or(i.full_like(-1.0))]
        },
        |g| {
            let i = int(g);
            vec![i.full_like(0.0), i.full_like(-1.0)]
        },
    ),
    (
        "minus_one",
        |g| {
            let x = x(g);
            vec![x * -1.0, x.full_like(0.0) - x]
        },
        |g| {
            let n = -x(g);
            vec![n, n]
        },
    ),
    (
        "minus",
        |g| {
            let (x, y) = two(g);
            vec![x + -y, x - -y, -x + y]
        },
        |g| {
            let (x, y) = two(g);
            vec![x - y, x + y, y - x]
        },
    ),
    (
        "minus_constant",
        |g| {
            let x = x(g);
            vec![x - x.full_like(2.5)]
        },
        |g| vec![x(g) + -2.5],
    ),
    (
        "minus_constant",
        |g| {
            let i = int(g);
            vec![i - i.full_like(7.0)]
        },
        |g| {
            let i = int(g);
            vec![i + i.full_like(-7.0)]
        },
    ),
    (
        "minus_factor",
        |g| {
            let x = x(g);
            vec![-x * 3.0, -(x * 3.0)]
        },
        |g| {
            let y = x(g) * -3.0;
            vec![y, y]
        },
    ),
    (
        "minus_factor",
        |g| {
            let (x, y) = two(g);
            vec![-x * -y]
        },
        |g| {
            let (x, y) = two(g);
            vec![x * y]
        },
    ),
    (
        "divide_power_of_two",
        |g| {
            let x = x(g);
            vec![x / x.full_like(-8.0)]
        },
        |g| vec![x(g) * -0.125],
    ),
    ("constants_join", |g| vec![x(g) * 0.5 * 6.0], |g| vec![x(g) * 3.0]),
    ("constants_join", |g| vec![x(g) + 0.5 + 6.0], |g| vec![x(g) + 6.5]),
    (
        "constants_join",
        |g| {
            let i = int(g);
            vec![i + i.full_like(5.0) + i.full_like(-9.0)]
        },
        |g| {
            let i = int(g);
            vec![i + i.full_like(-4.0)]
        },
    ),
    (
        "power",
        |g| {
            let x = x(g);
            vec![x.pow(x.full_like(2.0)), x.pow(x.full_like(3.0)), x.pow(x.full_like(1.0)), x.pow(x.full_like(0.0))]
        },
        |g| {
            let x = x(g);
            vec![x * x, x * x * x, x, x.full_like(1.0)]
        },
    ),
    (
        "power",
        |g| {
            let x = x(g).exp();
            vec![x.pow(x.full_like(0.5)), x.pow(x.full_like(-0.5)), x.pow(x.full_like(-1.0))]
        },
        |g| {
            let x = x(g).exp();
            vec![x.sqrt(), x.rsqrt(), x.full_like(1.0) / x]
        },
    ),
    (
        "select_known",
        |g| {
            let (x, y) = two(g);
            vec![g.full(DType::Bool, &[2, 3], 0.0).select(x, y), x.gt(y).select(x, x)]
        },
        |g| {
            let (x, y) = two(g);
            vec![y, x]
        },
    ),
    (
        "select_not",
        |g| {
            let (x, y) = two(g);
            vec![x.gt(y).not().select(x, y)]
        },
        |g| {
            let (x, y) = two(g);
            vec![x.gt(y).select(y, x)]
        },
    ),
    (
        "convert",
        |g| vec![g.param("h", Type::new(DType::F16, [3])).convert(DType::F32).convert(DType::F16)],
        |g| vec![g.param("h", Type::new(DType::F16, [3]))],
    ),
    (
        "convert",
        |g| vec![g.param("b", Type::new(DType::Bool, [3])).convert(DType::I32).convert(DType::F32)],
        |g| vec![g.param("b", Type::new(DType::Bool, [3])).convert(DType::F32)],
    ),
    ("bitcast", |g| vec![int(g).bitcast(DType::F32).bitcast(DType::U32)], |g| vec![int(g).bitcast(DType::U32)]),
    ("bitcast", |g| vec![int(g).bitcast(DType::U32).bitcast(DType::I32)], |g| vec![int(g)]),
    // views
    (
        "empty",
        |g| {
            let x = x(g);
            vec![x.exp().slice(1, 2, 2)]
        },
        |g| {
            x(g);
            vec![g.constant(Array::zeros(Type::f32([2, 0])))]
        },
    ),
    (
        "empty",
        |g| vec![g.param("e", Type::f32([0, 4])).exp()],
        |g| {
            g.param("e", Type::f32([0, 4]));
            vec![g.constant(Array::zeros(Type::f32([0, 4])))]
        },
    ),
    ("splat_constant", |g| vec![x(g) + g.constant(Array::f32([2, 3], &[0.7; 6]))], |g| vec![x(g) + 0.7f32 as f64]),
    ("iota_1d", |g| vec![g.iota(DType::I32, &[2, 3], 1)], |g| vec![g.iota(DType::I32, &[3], 0).broadcast_to(&[2, 3])]),
    ("iota_1d", |g| vec![g.iota(DType::I32, &[1, 3], 0)], |g| vec![g.full(DType::I32, &[1, 3], 0.0)]),
    (
        "identity_view",
        |g| {
            let x = x(g);
            vec![
                x.transpose(&[0, 1]),
                slice(x, &[0, 0], &[2, 3], &[1, 1]),
                pad(x, &[0, 0], &[0, 0], &[0, 0], 0.0),
                g.concat(&[x], 1),
                x.broadcast_in_dim(&[2, 3], &[0, 1]),
                x.reverse(&[]),
            ]
        },
        |g| vec![x(g); 6],
    ),
    ("reshape", |g| vec![x(g).reshape(&[6]).reshape(&[3, 2])], |g| vec![x(g).reshape(&[3, 2])]),
    (
        "reshape",
        |g| vec![g.constant(Array::f32([4], &[1., 2., 3., 4.])).reshape(&[2, 2])],
        |g| vec![g.constant(Array::f32([2, 2], &[1., 2., 3., 4.]))],
    ),
    (
        "reshape_broadcast",
        |g| vec![x(g).broadcast_in_dim(&[4, 2, 3, 5], &[1, 2]).reshape(&[2, 2, 6, 1, 5])],
        |g| vec![x(g).reshape(&[6]).broadcast_in_dim(&[2, 2, 6, 1, 5], &[2])],
    ),
    (
        "transpose",
        |g| vec![g.param("t", Type::f32([2, 3, 4])).transpose(&[1, 2, 0]).transpose(&[1, 2, 0])],
        |g| vec![g.param("t", Type::f32([2, 3, 4])).transpose(&[2, 0, 1])],
    ),
    (
        "transpose_broadcast",
        |g| vec![x(g).broadcast_in_dim(&[2, 4, 3], &[0, 2]).transpose(&[2, 1, 0])],
        |g| vec![x(g).transpose(&[1, 0]).broadcast_in_dim(&[3, 4, 2], &[0, 2])],
    ),
    (
        "transpose_units",
        |g| vec![g.param("u", Type::f32([2, 1, 3])).transpose(&[0, 2, 1])],
        |g| vec![g.param("u", Type::f32([2, 1, 3])).reshape(&[2, 3, 1])],
    ),
    (
        "broadcast",
        |g| vec![g.param("v", Type::f32([3])).broadcast_to(&[2, 3]).broadcast_in_dim(&[5, 2, 3], &[1, 2])],
        |g| vec![g.param("v", Type::f32([3])).broadcast_to(&[5, 2, 3])],
    ),
    (
        "broadcast_units",
        |g| vec![g.param("v", Type::f32([2, 1])).broadcast_to(&[2, 3])],
        |g| vec![g.param("v", Type::f32([2, 1])).reshape(&[2]).broadcast_in_dim(&[2, 3], &[0])],
    ),
    ("broadcast_units", |g| vec![x(g).broadcast_in_dim(&[2, 1, 3], &[0, 2])], |g| vec![x(g).reshape(&[2, 1, 3])]),
    (
        "slice",
        |g| vec![slice(slice(g.param("l", Type::f32([20])), &[3], &[19], &[2]), &[1], &[8], &[3])],
        |g| vec![slice(g.param("l", Type::f32([20])), &[5], &[18], &[6])],
    ),
    (
        "slice_broadcast",
        |g| vec![slice(x(g).broadcast_in_dim(&[2, 7, 3], &[0, 2]), &[0, 1, 1], &[2, 6, 3], &[1, 2, 1])],
        |g| vec![x(g).slice(1, 1, 3).broadcast_in_dim(&[2, 3, 2], &[0, 2])],
    ),
    (
        "slice_pad",
        |g| {
            let p = pad(x(g), &[1, 2], &[0, 3], &[0, 0], 9.0);
            vec![
                slice(p, &[1, 2], &[3, 5], &[1, 1]),
                slice(p, &[2, 3], &[3, 5], &[1, 1]),
                slice(p, &[0, 0], &[1, 4], &[1, 2]),
            ]
        },
        |g| {
            let x = x(g);
            vec![x, slice(x, &[1, 1], &[2, 3], &[1, 1]), g.full(DType::F32, &[1, 2], 9.0)]
        },
    ),
    (
        "slice_concat",
        |g| {
            let (x, y) = two(g);
            let c = g.concat(&[x, y], 1);
            vec![c.slice(1, 3, 6), c.slice(1, 1, 2)]
        },
        |g| {
            let (x, y) = two(g);
            vec![y, x.slice(1, 1, 2)]
        },
    ),
    (
        "pad",
        |g| vec![pad(pad(x(g), &[1, 0], &[0, 2], &[0, 1], 0.5), &[0, 3], &[1, 0], &[0, 0], 0.5)],
        |g| vec![pad(x(g), &[1, 3], &[1, 2], &[0, 1], 0.5)],
    ),
    (
        "pad",
        |g| vec![pad(g.full(DType::F32, &[2], 0.5), &[1], &[1], &[1], 0.5)],
        |g| vec![g.full(DType::F32, &[5], 0.5)],
    ),
    ("reverse", |g| vec![x(g).reverse(&[0, 1]).reverse(&[1])], |g| vec![x(g).reverse(&[0])]),
    (
        "reverse",
        |g| vec![x(g).broadcast_in_dim(&[2, 4, 3], &[0, 2]).reverse(&[1, 2])],
        |g| vec![x(g).reverse(&[1]).broadcast_in_dim(&[2, 4, 3], &[0, 2])],
    ),
    (
        "concat",
        |g| {
            let (x, y) = two(g);
            let c = g.concat(&[x, y], 0);
            vec![g.concat(&[c, x], 0)]
        },
        |g| {
            let (x, y) = two(g);
            vec![g.concat(&[x, y, x], 0)]
        },
    ),
    (
        "concat",
        |g| {
            let x = x(g);
            vec![g.concat(&[x.slice(1, 0, 1), x.slice(1, 1, 3)], 1)]
        },
        |g| vec![x(g)],
    ),
    (
        "concat",
        |g| {
            let x = x(g);
            vec![g.concat(&[x, x.full_like(0.0), g.full(DType::F32, &[1, 3], 0.0)], 0)]
        },
        |g| {
            let x = x(g);
            vec![g.concat(&[x, g.full(DType::F32, &[3, 3], 0.0)], 0)]
        },
    ),
    (
        "elementwise_broadcast",
        |g| vec![g.param("v", Type::f32([3])).broadcast_to(&[2, 3]).exp()],
        |g| vec![g.param("v", Type::f32([3])).exp().broadcast_to(&[2, 3])],
    ),
    (
        "elementwise_broadcast",
        |g| {
            let (s, v) = (g.param("s", Type::f32([])), g.param("v", Type::f32([3])));
            vec![s.broadcast_to(&[2, 3]) * v.broadcast_to(&[2, 3]) * 3.0]
        },
        |g| {
            let (s, v) = (g.param("s", Type::f32([])), g.param("v", Type::f32([3])));
            vec![(s.broadcast_to(&[3]) * v * 3.0).broadcast_to(&[2, 3])]
        },
    ),
    (
        "elementwise_broadcast",
        |g| {
            let c = x(g).full_like(4.0);
            vec![c * c + c.sqrt()]
        },
        |g| vec![x(g).full_like(18.0)],
    ),
    // reductions
    (
        "reduce_nothing",
        |g| vec![g.param("u", Type::f32([2, 1, 3])).sum(&[1])],
        |g| vec![g.param("u", Type::f32([2, 1, 3])).reshape(&[2, 3])],
    ),
    (
        "reduce_no_elements",
        |g| vec![g.param("e", Type::f32([0, 3])).sum(&[0])],
        |g| {
            g.param("e", Type::f32([0, 3]));
            vec![g.full(DType::F32, &[3], 0.0)]
        },
    ),
    (
        "reduce_broadcast",
        |g| {
            let b = x(g).broadcast_in_dim(&[2, 5, 3], &[0, 2]);
            vec![b.sum(&[1]), b.sum(&[0, 1]), b.max(&[1, 2])]
        },
        |g| {
            let x = x(g);
            vec![x * 5.0, x.sum(&[0]) * 5.0, x.max(&[1])]
        },
    ),
    (
        "reduce_transpose",
        |g| vec![g.param("t", Type::f32([2, 3, 4])).transpose(&[2, 0, 1]).sum(&[1])],
        |g| vec![g.param("t", Type::f32([2, 3, 4])).sum(&[0]).transpose(&[1, 0])],
    ),
    (
        "dot_transpose",
        |g| {
            let (x, y) = two(g);
            vec![x.transpose(&[1, 0]).dot(y, dot_dims(1, 0)), x.dot(y.transpose(&[1, 0]), dot_dims(1, 0))]
        },
        |g| {
            let (x, y) = two(g);
            vec![x.dot(y, dot_dims(0, 0)), x.dot(y, dot_dims(1, 1))]
        },
    ),
    (
        "dot_transpose",
        |g| {
            let (q, k) = (g.param("q", Type::f32([2, 5, 3, 4])), g.param("k", Type::f32([2, 6, 3, 4])));
            let dims =
                DotDims { lhs_batch: vec![0, 1], rhs_batch: vec![0, 1], lhs_contract: vec![3], rhs_contract: vec![3] };
            vec![q.transpose(&[0, 2, 1, 3]).dot(k.transpose(&[0, 2, 1, 3]), dims)]
        },
        |g| {
            let (q, k) = (g.param("q", Type::f32([2, 5, 3, 4])), g.param("k", Type::f32([2, 6, 3, 4])));
            vec![q.dot(
                k,
                DotDims { lhs_batch: vec![0, 2], rhs_batch: vec![0, 2], lhs_contract: vec![3], rhs_contract: vec![3] },
            )]
        },
    ),
    (
        "conv_pointwise",
        |g| {
            let (x, w) = (g.param("x", Type::f32([2, 3, 4, 5])), g.param("w", Type::f32([1, 1, 5, 6])));
            vec![x.apply(Op::Conv { dims: conv_dims(1, 0, 1), out: DType::F32 }, &[w])]
        },
        |g| {
            let (x, w) = (g.param("x", Type::f32([2, 3, 4, 5])), g.param("w", Type::f32([1, 1, 5, 6])));
            vec![x.dot(w.reshape(&[5, 6]), dot_dims(3, 0))]
        },
    ),
    (
        "scatter_nothing",
        |g| {
            let (t, i) = (g.param("t", Type::f32([7, 3])), int(g));
            vec![t.apply(Op::ScatterAdd { dim: 0 }, &[i, g.full(DType::F32, &[2, 3, 3], 0.0)])]
        },
        |g| {
            let t = g.param("t", Type::f32([7, 3]));
            int(g);
            vec![t]
        },
    ),
    (
        "dynamic_slice_known",
        |g| vec![x(g).apply(Op::DynamicSlice { sizes: vec![1, 2] }, &[g.constant(Array::i32([2], &[-4, 9]))])],
        |g| vec![slice(x(g), &[0, 1], &[1, 3], &[1, 1])],
    ),
    (
        "fold",
        |g| vec![x(g) + g.constant(Array::f32([3], &[1., 4., 9.])).sqrt().broadcast_to(&[2, 3])],
        |g| vec![x(g) + g.constant(Array::f32([3], &[1., 2., 3.])).broadcast_to(&[2, 3])],
    ),
    (
        "fold",
        |g| vec![g.constant(Array::i32([4], &[5, 6, 7, 8])).slice(0, 1, 3)],
        |g| vec![g.constant(Array::i32([2], &[6, 7]))],
    ),
    (
        "merged",
        |g| {
            let (x, y) = two(g);
            vec![(x + y).exp(), (y + x).exp()]
        },
        |g| {
            let (x, y) = two(g);
            vec![(x + y).exp(); 2]
        },
    ),
];
