//! `(law, program it does not apply to)`.

#![allow(clippy::eq_op)] // x - x is a case

use super::*;

pub const REFUSED: &[(&str, Build)] = &[
    ("involution", |g| vec![-(-x(g)).exp(), int(g).not().bitcast(DType::U32).not()]),
    ("abs", |g| vec![-x(g).abs()]),
    ("constants_last", |g| {
        let x = x(g);
        vec![x.full_like(1.0) / x, x.full_like(1.0) - x]
    }),
    ("compare_order", |g| {
        let (x, y) = two(g);
        vec![y.lt(x), x.gt(x.full_like(0.0))]
    }),
    // NaN is not equal to itself, nor at most itself.
    ("compare_same", |g| {
        let x = x(g).log();
        vec![x.eq(x), x.le(x)]
    }),
    ("same", |g| {
        let x = x(g).log();
        vec![x - x]
    }),
    ("neutral", |g| {
        let x = x(g);
        vec![x * 0.5, x.full_like(0.0).maximum(x), x.full_like(1.0) / x]
    }),
    // NaN and infinity times zero are NaN.
    ("absorbing", |g| {
        let x = x(g).log();
        vec![x * 0.0]
    }),
    ("minus_one", |g| {
        let u = g.param("u", Type::new(DType::U32, [3]));
        vec![u.full_like(0.0) - u, u * u.full_like(-1.0)]
    }),
    ("minus", |g| {
        let (x, y) = two(g);
        vec![-(x + y), -x - y]
    }),
    ("minus_constant", |g| {
        let x = x(g);
        vec![x.full_like(2.0) - x]
    }),
    ("minus_factor", |g| {
        let (x, y) = two(g);
        vec![-x * y]
    }),
    ("divide_power_of_two", |g| {
        let (x, i) = (x(g), int(g));
        vec![x / x.full_like(3.0), x / x.full_like(2f64.powi(127)), (i / i.full_like(4.0)).convert(DType::F32)]
    }),
    // 0.1 * 0.3 rounds; the two additions round x to a grid, on purpose perhaps.
    ("constants_join", |g| vec![x(g) * 0.1 * 0.3, x(g) + 12582912.0 + -12582912.0, x(g) * 1e30 * 1e30]),
    ("power", |g| {
        let (x, y) = two(g);
        vec![x.exp().pow(y), x.exp().pow(x.full_like(0.3))]
    }),
    ("select_known", |g| {
        let (x, y) = two(g);
        vec![x.gt(y).select(x, y)]
    }),
    ("select_not", |g| {
        let (x, y) = two(g);
        vec![x.gt(y).select(x, y)]
    }),
    // f32 -> f16 -> f32 rounds; i32 -> f32 -> i32 rounds beyond 2^24.
    ("convert", |g| {
        vec![
            x(g).convert(DType::F16).convert(DType::F32),
            int(g).convert(DType::F32).convert(DType::I32).convert(DType::F32),
        ]
    }),
    ("bitcast", |g| vec![(int(g).bitcast(DType::F32) + 1.0).bitcast(DType::U32)]),
    ("empty", |g| vec![x(g).slice(1, 0, 1)]),
    ("splat_constant", |g| vec![x(g) + g.constant(Array::f32([2, 3], &[1., 1., 1., 1., 1., 2.]))]),
    ("iota_1d", |g| vec![g.iota(DType::F32, &[3], 0)]),
    ("identity_view", |g| {
        let q = g.param("q", Type::f32([3, 3]));
        vec![
            q.transpose(&[1, 0]),
            q.reverse(&[0]),
            slice(q, &[0, 0], &[3, 3], &[1, 2]),
            pad(q, &[0, 0], &[0, 0], &[1, 0], 0.0),
        ]
    }),
    ("reshape", |g| vec![x(g).transpose(&[1, 0]).reshape(&[6])]),
    // A dim half repeated, half not.
    ("reshape_broadcast", |g| vec![g.param("v", Type::f32([3])).broadcast_to(&[2, 3]).reshape(&[6])]),
    ("transpose", |g| vec![x(g).exp().transpose(&[1, 0])]),
    ("transpose_units", |g| vec![x(g).reshape(&[2, 1, 3]).transpose(&[2, 1, 0])]),
    ("broadcast_units", |g| vec![x(g).broadcast_to(&[4, 2, 3])]),
    ("slice_pad", |g| {
        vec![
            slice(pad(x(g), &[1, 2], &[0, 3], &[0, 0], 9.0), &[0, 2], &[3, 5], &[1, 1]),
            slice(pad(x(g), &[0, 0], &[0, 0], &[0, 1], 9.0), &[0, 0], &[2, 2], &[1, 1]),
        ]
    }),
    ("slice_concat", |g| {
        let (x, y) = two(g);
        vec![g.concat(&[x, y], 1).slice(1, 2, 4)]
    }),
    ("pad", |g| {
        vec![
            pad(pad(x(g), &[1, 0], &[0, 2], &[0, 1], 0.5), &[0, 3], &[1, 0], &[0, 0], 0.25),
            pad(pad(x(g), &[1, 0], &[0, 0], &[0, 0], 0.5), &[0, 0], &[0, 0], &[1, 0], 0.5),
        ]
    }),
    ("reverse", |g| vec![x(g).transpose(&[1, 0]).reverse(&[0])]),
    ("concat", |g| {
        let (x, y) = two(g);
        vec![
            g.concat(&[g.concat(&[x, y], 0), g.concat(&[y, x], 0)], 1),
            g.concat(&[x.slice(1, 1, 3), x.slice(1, 0, 1)], 1),
            g.concat(&[x.slice(1, 0, 1), y.slice(1, 1, 3)], 1),
        ]
    }),
    ("elementwise_broadcast", |g| {
        let (a, b) = (g.param("a", Type::f32([3])), g.param("b", Type::f32([3])));
        vec![a.broadcast_in_dim(&[3, 3], &[0]) + b.broadcast_in_dim(&[3, 3], &[1])]
    }),
    ("reduce_nothing", |g| vec![g.param("u", Type::f32([2, 1, 3])).sum(&[1, 2])]),
    ("reduce_no_elements", |g| vec![x(g).sum(&[0])]),
    ("reduce_broadcast", |g| vec![x(g).broadcast_in_dim(&[2, 5, 3], &[0, 2]).exp().sum(&[0])]),
    ("reduce_transpose", |g| vec![x(g).transpose(&[1, 0]).exp()]),
    // The order of the free dims is that of the result.
    ("dot_transpose", |g| {
        let (t, w) = (g.param("t", Type::f32([2, 3, 4])), g.param("w", Type::f32([4, 5])));
        vec![t.transpose(&[1, 0, 2]).dot(w, dot_dims(2, 0))]
    }),
    ("conv_pointwise", |g| {
        let (x, w) = (g.param("x", Type::f32([2, 3, 4, 4])), g.param("w", Type::f32([1, 1, 4, 6])));
        let (v, k) = (g.param("v", Type::f32([1, 1, 2, 6])), g.param("k", Type::f32([3, 3, 4, 1])));
        let conv = |w, dims| x.apply(Op::Conv { dims, out: DType::F32 }, &[w]);
        vec![
            conv(w, conv_dims(2, 0, 1)),
            conv(w, conv_dims(1, 1, 1)),
            conv(v, conv_dims(1, 0, 2)),
            conv(k, conv_dims(1, 1, 1)),
        ]
    }),
    ("scatter_nothing", |g| {
        let (t, i) = (g.param("t", Type::f32([7, 3])), int(g));
        vec![t.apply(Op::ScatterAdd { dim: 0 }, &[i, g.full(DType::F32, &[2, 3, 3], 1.0)])]
    }),
    ("dynamic_slice_known", |g| {
        vec![x(g).apply(Op::DynamicSlice { sizes: vec![1, 2] }, &[g.param("at", Type::new(DType::I32, [2]))])]
    }),
    ("fold", |g| {
        vec![
            g.iota(DType::F32, &[8], 0).exp(),
            g.constant(Array::f32([4097], &(0..4097).map(|i| i as f32).collect::<Vec<_>>())).exp(),
        ]
    }),
    ("merged", |g| {
        let (x, y) = two(g);
        vec![x - y, y - x]
    }),
];
