//! Every op against results worked out by hand or by a formula written another way.

use super::*;
use crate::{BinaryOp, Builder, CmpOp, ConvDims, DType, DotDims, Mesh, ReduceKind, Type, UnaryOp, ValueId};
use std::f64::consts::{FRAC_PI_2, LN_2, PI};

/// One op on constants' worth of arguments.
fn apply_in(op: Op, args: &[Array], p: Precision) -> Array {
    let mut b = Builder::new("one");
    let params: Vec<ValueId> = args.iter().map(|a| b.param("x", a.ty().clone())).collect();
    let y = b.emit(op, &params).unwrap();
    eval(&b.finish(&[y]), args, p).unwrap().remove(0)
}

fn apply(op: Op, args: &[Array]) -> Array {
    apply_in(op, args, Precision::F32)
}

fn f(dims: &[usize], data: &[f32]) -> Array {
    Array::f32(dims, data)
}

fn i(dims: &[usize], data: &[i32]) -> Array {
    Array::i32(dims, data)
}

fn typed(dtype: DType, data: &[f64]) -> Array {
    Array::from_f64(Type::new(dtype, [data.len()]), data)
}

fn counting(dims: &[usize]) -> Array {
    let n: usize = dims.iter().product();
    Array::f32(dims, &(0..n).map(|i| i as f32).collect::<Vec<_>>())
}

#[track_caller]
fn close(got: &Array, want: &[f64], tolerance: f64) {
    let got = got.to_f64_vec();
    assert_eq!(got.len(), want.len());
    for (k, (g, w)) in got.iter().zip(want).enumerate() {
        let same = (g.is_nan() && w.is_nan()) || g == w || (g - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(same, "element {k}: {g} is not {w}");
    }
}

#[test]
fn unary_floats() {
    use UnaryOp::*;
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let table: &[(UnaryOp, &[f64], &[f64])] = &[
        (Neg, &[1.5, -0.0], &[-1.5, 0.0]),
        (Exp, &[0.0, LN_2, -inf, 1000.0], &[1.0, 2.0, 0.0, inf]),
        (Log, &[1.0, 8.0, 0.0, -1.0], &[0.0, 3.0 * LN_2, -inf, nan]),
        (Sin, &[0.0, FRAC_PI_2, PI / 6.0], &[0.0, 1.0, 0.5]),
        (Cos, &[0.0, PI, PI / 3.0], &[1.0, -1.0, 0.5]),
        (Tanh, &[0.0, 0.5 * 3f64.ln(), 1e4], &[0.0, 0.5, 1.0]),
        (Erf, &[0.0, 1.0, -2.0], &[0.0, 0.842700792949715, -0.995322265018953]),
        (Sqrt, &[0.0, 2.25, -1.0], &[0.0, 1.5, nan]),
        (Rsqrt, &[4.0, 0.0], &[0.5, inf]),
        (Abs, &[-3.0, 2.0, -inf], &[3.0, 2.0, inf]),
        (Sign, &[-3.0, 0.0, 7.0], &[-1.0, 0.0, 1.0]),
        (Floor, &[-1.5, 1.5, 2.0], &[-2.0, 1.0, 2.0]),
        (IsFinite, &[1.0, inf, -inf, nan], &[1.0, 0.0, 0.0, 0.0]),
        (StopGradient, &[3.0], &[3.0]),
    ];
    for (op, x, want) in table {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tolerance =
                [1e-6, 2e-3, 2e-2][[DType::F32, DType::F16, DType::BF16].iter().position(|&d| d == dtype).unwrap()];
            close(&apply(Op::Unary(*op), &[typed(dtype, x)]), want, tolerance);
        }
        close(&apply_in(Op::Unary(*op), &[typed(DType::F64, x)], Precision::F64), want, 1e-12);
    }
    let tested: Vec<UnaryOp> = table.iter().map(|t| t.0).collect();
    assert!(UnaryOp::ALL.iter().all(|o| tested.contains(o) || *o == Not));
}

#[test]
fn unary_integers() {
    let x = i(&[3], &[i32::MIN, -3, 5]);
    assert_eq!(apply(Op::Unary(UnaryOp::Neg), std::slice::from_ref(&x)).to_i32_vec(), [i32::MIN, 3, -5]);
    assert_eq!(apply(Op::Unary(UnaryOp::Abs), std::slice::from_ref(&x)).to_i32_vec(), [i32::MIN, 3, 5]);
    assert_eq!(apply(Op::Unary(UnaryOp::Sign), std::slice::from_ref(&x)).to_i32_vec(), [-1, -1, 1]);
    assert_eq!(apply(Op::Unary(UnaryOp::Not), &[x]).to_i32_vec(), [i32::MAX, 2, -6]);
    let u = Array::u32([2], &[1, 0]);
    assert_eq!(apply(Op::Unary(UnaryOp::Neg), std::slice::from_ref(&u)).to_u32_vec(), [u32::MAX, 0]);
    assert_eq!(apply(Op::Unary(UnaryOp::Not), &[u]).to_u32_vec(), [u32::MAX - 1, u32::MAX]);
    assert_eq!(apply(Op::Unary(UnaryOp::Not), &[typed(DType::Bool, &[1.0, 0.0])]).to_u32_vec(), [0, 1]);
}

#[test]
fn binary_tables() {
    use BinaryOp::*;
    let (x, y) = ([7.5, -7.5, 2.0, 1.0], [2.0, 2.0, -1.0, 0.0]);
    let floats: &[(BinaryOp, [f64; 4])] = &[
        (Add, [9.5, -5.5, 1.0, 1.0]),
        (Sub, [5.5, -9.5, 3.0, 1.0]),
        (Mul, [15.0, -15.0, -2.0, 0.0]),
        (Div, [3.75, -3.75, -2.0, f64::INFINITY]),
        (Pow, [56.25, 56.25, 0.5, 1.0]),
        (Max, [7.5, 2.0, 2.0, 1.0]),
        (Min, [2.0, -7.5, -1.0, 0.0]),
        (Rem, [1.5, -1.5, 0.0, f64::NAN]),
    ];
    for (op, want) in floats {
        close(&apply(Op::Binary(*op), &[typed(DType::F32, &x), typed(DType::F32, &y)]), want, 1e-6);
        close(&apply(Op::Binary(*op), &[typed(DType::F16, &x), typed(DType::F16, &y)]), want, 1e-3);
    }
    let (m, n) = (i(&[5], &[7, -7, i32::MIN, 6, i32::MAX]), i(&[5], &[2, 2, -1, 0, 33]));
    let ints: &[(BinaryOp, [i32; 5])] = &[
        (Add, [9, -5, i32::MAX, 6, i32::MIN + 32]),
        (Sub, [5, -9, i32::MIN + 1, 6, i32::MAX - 33]),
        (Mul, [14, -14, i32::MIN, 0, 0x7fff_ffdf]),
        (Div, [3, -3, i32::MIN, 0, i32::MAX / 33]),
        (Rem, [1, -1, 0, 0, i32::MAX % 33]),
        (Max, [7, 2, -1, 6, i32::MAX]),
        (Min, [2, -7, i32::MIN, 0, 33]),
        (And, [2, 0, i32::MIN, 0, 33]),
        (Or, [7, -5, -1, 6, i32::MAX]),
        (Xor, [5, -5, i32::MAX, 6, i32::MAX ^ 33]),
        (Shl, [28, -28, 0, 6, -2]),
        (Shr, [1, -2, -1, 6, 0x3fff_ffff]),
    ];
    for (op, want) in ints {
        assert_eq!(apply(Op::Binary(*op), &[m.clone(), n.clone()]).to_i32_vec(), want, "{}", op.name());
    }
    let (m, n) = (Array::u32([3], &[7, 1 << 31, 6]), Array::u32([3], &[2, 31, 0]));
    for (op, want) in [(Div, [3, 0x0421_0842, 0]), (Rem, [1, 2, 0]), (Shr, [1, 1, 6]), (Max, [7, 1 << 31, 6])] {
        assert_eq!(apply(Op::Binary(op), &[m.clone(), n.clone()]).to_u32_vec(), want, "{}", op.name());
    }
    let (a, b) = (typed(DType::Bool, &[0.0, 0.0, 1.0, 1.0]), typed(DType::Bool, &[0.0, 1.0, 0.0, 1.0]));
    for (op, want) in [(And, [0, 0, 0, 1]), (Or, [0, 1, 1, 1]), (Xor, [0, 1, 1, 0])] {
        assert_eq!(apply(Op::Binary(op), &[a.clone(), b.clone()]).to_u32_vec(), want, "{}", op.name());
    }
}

#[test]
fn compare_and_select() {
    let (x, y) = (f(&[3], &[1.0, 2.0, 3.0]), f(&[3], &[2.0, 2.0, 2.0]));
    let want = [[0, 1, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]];
    for (op, want) in CmpOp::ALL.into_iter().zip(want) {
        assert_eq!(apply(Op::Compare(op), &[x.clone(), y.clone()]).to_u32_vec(), want, "{}", op.name());
    }
    let big = Array::u32([1], &[1 << 31]);
    assert_eq!(apply(Op::Compare(CmpOp::Gt), &[big, Array::u32([1], &[1])]).to_u32_vec(), [1]);
    let c = typed(DType::Bool, &[1.0, 0.0, 1.0]);
    assert_eq!(apply(Op::Select, &[c, x, y]).to_f32_vec(), [1.0, 2.0, 3.0]);
}

#[test]
fn conversions() {
    let x = typed(DType::F32, &[-1.7, 1.7, 3e9, -3e9, f64::NAN, 0.0]);
    let to = |d, x: &Array| apply(Op::Convert(d), std::slice::from_ref(x));
    assert_eq!(to(DType::I32, &x).to_i32_vec(), [-1, 1, i32::MAX, i32::MIN, 0, 0]);
    assert_eq!(to(DType::U32, &x).to_u32_vec(), [0, 1, 3_000_000_000, 0, 0, 0]);
    assert_eq!(to(DType::Bool, &x).to_u32_vec(), [1, 1, 1, 1, 1, 0]);
    assert_eq!(to(DType::U32, &i(&[1], &[-1])).to_u32_vec(), [u32::MAX]);
    assert_eq!(to(DType::I32, &Array::u32([1], &[u32::MAX])).to_i32_vec(), [-1]);
    assert_eq!(to(DType::F32, &i(&[1], &[(1 << 24) + 1])).to_f32_vec(), [(1 << 24) as f32]);
    // Ties go to even: 2049 and 2051 lie between the halves 2048, 2050 and 2052.
    assert_eq!(to(DType::F16, &f(&[3], &[2049.0, 2051.0, 1e6])).to_f64_vec(), [2048.0, 2052.0, f64::INFINITY]);
    assert_eq!(to(DType::BF16, &f(&[2], &[257.0, 259.0])).to_f64_vec(), [256.0, 260.0]);
    let bits = apply(Op::Bitcast(DType::U32), &[f(&[2], &[1.0, -2.0])]);
    assert_eq!(bits.to_u32_vec(), [0x3f80_0000, 0xc000_0000]);
    assert_eq!(apply(Op::Bitcast(DType::F32), &[bits]).to_f32_vec(), [1.0, -2.0]);
    let half = typed(DType::F16, &[1.0]);
    assert_eq!(apply(Op::Bitcast(DType::BF16), &[half]).get(0).bits(), 0x3c00);
    // In f64 nothing is rounded, and bits are those of the rounded value.
    let third = Array::from_f64(Type::new(DType::F64, [1]), &[1.0 / 3.0]);
    let mut b = Builder::new("f64");
    let x = b.param("x", Type::f32([1]));
    let (h, u) = (b.convert(x, DType::F16).unwrap(), b.emit(Op::Bitcast(DType::U32), &[x]).unwrap());
    let out = eval(&b.finish(&[h, u]), &[third], Precision::F64).unwrap();
    assert_eq!((out[0].get(0).to_f64(), out[1].to_u32_vec()[0]), (1.0 / 3.0, (1f32 / 3.0).to_bits()));
}

#[test]
fn leaves() {
    let iota = |dtype| apply(Op::Iota { dtype, dims: vec![2, 3], dim: 1 }, &[]).to_f64_vec();
    for dtype in [DType::F32, DType::F16, DType::I32, DType::U32] {
        assert_eq!(iota(dtype), [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    }
    assert_eq!(apply(Op::Iota { dtype: DType::I32, dims: vec![2, 2, 1], dim: 0 }, &[]).to_i32_vec(), [0, 0, 1, 1]);
    assert_eq!(apply(Op::Const(f(&[2], &[1.0, 2.0])), &[]).to_f32_vec(), [1.0, 2.0]);
}

#[test]
fn movement() {
    let x = counting(&[2, 3]);
    let one = |op, x: &Array| {
        let y = apply(op, std::slice::from_ref(x));
        (y.dims().to_vec(), y.to_f32_vec())
    };
    assert_eq!(one(Op::Reshape { dims: vec![3, 2] }, &x), (vec![3, 2], vec![0., 1., 2., 3., 4., 5.]));
    assert_eq!(one(Op::Transpose { perm: vec![1, 0] }, &x), (vec![3, 2], vec![0., 3., 1., 4., 2., 5.]));
    let perm = one(Op::Transpose { perm: vec![2, 0, 1] }, &counting(&[2, 1, 3]));
    assert_eq!(perm, (vec![3, 2, 1], vec![0., 3., 1., 4., 2., 5.]));
    let wide = one(Op::Broadcast { dims: vec![2, 2, 3], map: vec![0, 2] }, &f(&[2, 1], &[5., 6.]));
    assert_eq!(wide.1, [5., 5., 5., 5., 5., 5., 6., 6., 6., 6., 6., 6.]);
    let slice = Op::Slice { start: vec![0, 1], limit: vec![2, 6], stride: vec![1, 2] };
    assert_eq!(one(slice, &counting(&[2, 6])), (vec![2, 3], vec![1., 3., 5., 7., 9., 11.]));
    assert_eq!(one(Op::Reverse { dims: vec![1] }, &x).1, [2., 1., 0., 5., 4., 3.]);
    assert_eq!(one(Op::Reverse { dims: vec![0, 1] }, &x).1, [5., 4., 3., 2., 1., 0.]);
    assert_eq!(one(Op::Reverse { dims: vec![] }, &f(&[], &[3.])).1, [3.]);

    let pad = Op::Pad { low: vec![0, 1], high: vec![1, 0], interior: vec![1, 1] };
    let padded = apply(pad, &[f(&[2, 2], &[1., 2., 3., 4.]), f(&[], &[9.])]);
    assert_eq!(padded.dims(), [4, 4]);
    let row = [9.; 4];
    let want = [&[9., 1., 9., 2.][..], &row, &[9., 3., 9., 4.], &row].concat();
    assert_eq!(padded.to_f32_vec(), want);
    let of_nothing = Op::Pad { low: vec![1], high: vec![1], interior: vec![3] };
    assert_eq!(apply(of_nothing, &[f(&[0], &[]), f(&[], &[7.])]).to_f32_vec(), [7., 7.]);

    let joined = apply(Op::Concat { dim: 1 }, &[x.clone(), f(&[2, 1], &[8., 9.]), f(&[2, 0], &[])]);
    assert_eq!(joined.to_f32_vec(), [0., 1., 2., 8., 3., 4., 5., 9.]);
    let truth = typed(DType::Bool, &[1.0, 0.0]);
    assert_eq!(apply(Op::Concat { dim: 0 }, &[truth.clone(), truth]).to_u32_vec(), [1, 0, 1, 0]);
}

#[test]
fn dynamic_blocks_are_clamped() {
    let x = counting(&[3, 4]);
    let cut =
        |start: [i32; 2]| apply(Op::DynamicSlice { sizes: vec![2, 3] }, &[x.clone(), i(&[2], &start)]).to_f32_vec();
    assert_eq!(cut([1, 0]), [4., 5., 6., 8., 9., 10.]);
    assert_eq!(cut([-5, 9]), [1., 2., 3., 5., 6., 7.]);
    let put = apply(Op::DynamicUpdateSlice, &[x, f(&[1, 2], &[50., 60.]), i(&[2], &[7, 3])]);
    assert_eq!(put.to_f32_vec(), [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 50., 60.]);
}

#[test]
fn take_and_scatter_add() {
    let x = counting(&[2, 3, 2]);
    let indices = i(&[2, 2], &[2, 0, -1, 99]);
    let taken = apply(Op::Take { dim: 1 }, &[x, indices.clone()]);
    assert_eq!(taken.dims(), [2, 2, 2, 2]);
    assert_eq!(taken.to_f32_vec(), [4., 5., 0., 1., 0., 1., 4., 5., 10., 11., 6., 7., 6., 7., 10., 11.]);
    // Huge unsigned indices are large, not negative.
    let far = apply(Op::Take { dim: 0 }, &[counting(&[3]), Array::u32([], &[u32::MAX])]);
    assert_eq!(far.to_f32_vec(), [2.]);
    let updates = counting(&[1, 2, 2, 2]);
    let sum = apply(Op::ScatterAdd { dim: 1 }, &[f(&[1, 3, 2], &[100.; 6]), indices, updates]);
    // Rows 2, 0, 0, 2 get (0, 1), (2, 3), (4, 5), (6, 7).
    assert_eq!(sum.to_f32_vec(), [106., 108., 100., 100., 106., 108.]);
    let ints = apply(Op::ScatterAdd { dim: 0 }, &[i(&[1], &[i32::MAX]), i(&[2], &[0, 0]), i(&[2], &[1, 1])]);
    assert_eq!(ints.to_i32_vec(), [i32::MIN + 1]);
}

#[test]
fn reductions() {
    let x = counting(&[2, 3, 2]);
    let reduce = |kind, dims: &[usize], x: &Array| {
        let y = apply(Op::Reduce { kind, dims: dims.to_vec() }, std::slice::from_ref(x));
        (y.dims().to_vec(), y.to_f64_vec())
    };
    assert_eq!(reduce(ReduceKind::Sum, &[0, 2], &x), (vec![3], vec![14., 22., 30.]));
    assert_eq!(reduce(ReduceKind::Sum, &[], &f(&[2], &[1., 2.])), (vec![2], vec![1., 2.]));
    assert_eq!(reduce(ReduceKind::Max, &[1], &x), (vec![2, 2], vec![4., 5., 10., 11.]));
    assert_eq!(reduce(ReduceKind::Sum, &[1], &f(&[2, 0], &[])).1, [0., 0.]);
    assert_eq!(reduce(ReduceKind::Max, &[0], &f(&[0], &[])).1, [f64::NEG_INFINITY]);
    assert_eq!(reduce(ReduceKind::Max, &[0], &i(&[0], &[])).1, [i32::MIN as f64]);
    assert_eq!(reduce(ReduceKind::Sum, &[0], &i(&[2], &[i32::MAX, 1])).1, [i32::MIN as f64]);
    // 4096 halves would stop growing at 2048 if the sum were kept in the dtype.
    assert_eq!(reduce(ReduceKind::Sum, &[0], &typed(DType::F16, &[1.0; 4096])).1, [4096.]);
    let ties = f(&[2, 3], &[1., 5., 5., 7., 7., 0.]);
    assert_eq!(apply(Op::Argmax { dim: 1 }, std::slice::from_ref(&ties)).to_i32_vec(), [1, 0]);
    assert_eq!(apply(Op::Argmax { dim: 0 }, &[ties]).to_i32_vec(), [1, 1, 0]);
}

#[test]
fn dot_general_is_its_formula() {
    // Left `[k, b, m, l]`, right `[n, l, b, k]`: batch b, contracted (k, l).
    let (nb, nm, nn, nk, nl) = (2, 3, 4, 5, 2);
    let x = counting(&[nk, nb, nm, nl]);
    let y = counting(&[nn, nl, nb, nk]);
    let dims = DotDims { lhs_batch: vec![1], rhs_batch: vec![2], lhs_contract: vec![0, 3], rhs_contract: vec![3, 1] };
    let got = apply(Op::Dot { dims, out: DType::F32 }, &[x, y]);
    assert_eq!(got.dims(), [nb, nm, nn]);
    for (at, got) in got.to_f64_vec().into_iter().enumerate() {
        let (b, m, n) = (at / (nm * nn), at / nn % nm, at % nn);
        let mut want = 0;
        for k in 0..nk {
            for l in 0..nl {
                want += (((k * nb + b) * nm + m) * nl + l) * (((n * nl + l) * nb + b) * nk + k);
            }
        }
        assert_eq!(got, want as f64, "[{b}, {m}, {n}]");
    }
    let plain = DotDims { lhs_contract: vec![0], rhs_contract: vec![0], ..DotDims::default() };
    let ints = apply(Op::Dot { dims: plain.clone(), out: DType::I32 }, &[i(&[2], &[1 << 30, 3]), i(&[2], &[4, 5])]);
    assert_eq!(ints.to_i32_vec(), [15]);
    // Products of halves beyond 65504 survive in the f32 accumulator and in an f32 result.
    let (big, small) = (typed(DType::F16, &[300.0, 300.0]), typed(DType::F16, &[300.0, -299.0]));
    let wide = apply(Op::Dot { dims: plain.clone(), out: DType::F32 }, &[big.clone(), small.clone()]);
    assert_eq!((wide.dtype(), wide.to_f64_vec()), (DType::F32, vec![300.0]));
    assert_eq!(apply(Op::Dot { dims: plain, out: DType::F16 }, &[big, small]).to_f64_vec(), [300.0]);
    let outer = apply(Op::Dot { dims: DotDims::default(), out: DType::F32 }, &[counting(&[2]), counting(&[3])]);
    assert_eq!(outer.to_f32_vec(), [0., 0., 0., 0., 1., 2.]);
}

/// The convolution by materialising the padded, dilated input and kernel.
fn conv_by_definition(c: &ConvDims, x: &[f64], xd: [usize; 4], w: &[f64], wd: [usize; 4]) -> Vec<f64> {
    let [n, h, width, channels] = xd;
    let [kh, kw, inner, features] = wd;
    let spread = |s: usize, d: usize| (s - 1) * d + 1;
    let size = |s: usize, d: usize| (spread(s, c.lhs_dilation[d]) as i64 + c.padding[d].0 + c.padding[d].1) as usize;
    let (ph, pw) = (size(h, 0), size(width, 1));
    let mut padded = vec![0.0; n * ph * pw * channels];
    for b in 0..n {
        for i in 0..h {
            for j in 0..width {
                let row = (i * c.lhs_dilation[0]) as i64 + c.padding[0].0;
                let col = (j * c.lhs_dilation[1]) as i64 + c.padding[1].0;
                if row < 0 || row >= ph as i64 || col < 0 || col >= pw as i64 {
                    continue;
                }
                for ch in 0..channels {
                    padded[((b * ph + row as usize) * pw + col as usize) * channels + ch] =
                        x[((b * h + i) * width + j) * channels + ch];
                }
            }
        }
    }
    let (oh, ow) = (
        (ph - spread(kh, c.rhs_dilation[0])) / c.stride[0] + 1,
        (pw - spread(kw, c.rhs_dilation[1])) / c.stride[1] + 1,
    );
    let mut out = Vec::new();
    for b in 0..n {
        for i in 0..oh {
            for j in 0..ow {
                for o in 0..features {
                    let group = o / (features / c.groups);
                    let mut sum = 0.0;
                    for u in 0..kh {
                        for v in 0..kw {
                            for ci in 0..inner {
                                let row = i * c.stride[0] + u * c.rhs_dilation[0];
                                let col = j * c.stride[1] + v * c.rhs_dilation[1];
                                sum += padded[((b * ph + row) * pw + col) * channels + group * inner + ci]
                                    * w[((u * kw + v) * inner + ci) * features + o];
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

#[test]
fn conv_is_its_definition() {
    let pairs = [[1, 1], [2, 1], [1, 2]];
    let paddings = [[(0, 0), (0, 0)], [(1, 2), (2, 0)], [(-1, 1), (0, -2)], [(-2, -1), (3, -1)]];
    let mut cases = 0;
    for groups in [1, 2, 3] {
        for stride in [[1, 1], [2, 3]] {
            for padding in paddings {
                for lhs_dilation in pairs {
                    for rhs_dilation in pairs {
                        let (inner, features) = (2, 2 * groups);
                        let c = ConvDims {
                            stride: stride.to_vec(),
                            padding: padding.to_vec(),
                            lhs_dilation: lhs_dilation.to_vec(),
                            rhs_dilation: rhs_dilation.to_vec(),
                            groups,
                        };
                        let (xd, wd) = ([2, 6, 7, inner * groups], [2, 3, inner, features]);
                        let wave = |dims: &[usize], k: f64| -> Vec<f64> {
                            (0..dims.iter().product::<usize>()).map(|i| (i as f64 * k).sin()).collect()
                        };
                        let (xs, ws) = (wave(&xd, 0.7), wave(&wd, 1.3));
                        let array = |dims: &[usize], v: &[f64]| Array::from_f64(Type::new(DType::F64, dims), v);
                        let op = Op::Conv { dims: c.clone(), out: DType::F64 };
                        let got = apply_in(op, &[array(&xd, &xs), array(&wd, &ws)], Precision::F64);
                        close(&got, &conv_by_definition(&c, &xs, xd, &ws, wd), 1e-12);
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 3 * 2 * 4 * 9);
    // No spatial dims: a matrix product.
    let none = ConvDims { stride: vec![], padding: vec![], lhs_dilation: vec![], rhs_dilation: vec![], groups: 1 };
    let y = apply(Op::Conv { dims: none, out: DType::F32 }, &[counting(&[1, 3]), counting(&[3, 2])]);
    assert_eq!(y.to_f32_vec(), [10., 13.]);
}

/// Runs one op on a mesh of 2 by 2 (`a` outer, `b` inner); device `d` holds `[10 d, 10 d + 1, ...]`.
fn on_mesh(op: Op, dims: &[usize]) -> Vec<Vec<f32>> {
    let mesh = Mesh::new(&[("a", 2), ("b", 2)]);
    let mut b = Builder::on_mesh("mesh", mesh);
    let x = b.param("x", Type::f32(dims));
    let y = b.emit(op, &[x]).unwrap();
    let func = b.finish(&[y]);
    let n: usize = dims.iter().product();
    let arg = |d: usize| vec![Array::f32(dims, &(0..n).map(|i| (10 * d + i) as f32).collect::<Vec<_>>())];
    let out = eval_mesh(&func, &(0..4).map(arg).collect::<Vec<_>>(), Precision::F32).unwrap();
    out.into_iter().map(|r| r[0].to_f32_vec()).collect()
}

#[test]
fn collectives() {
    let all =
        |kind, axes: &[&str]| on_mesh(Op::AllReduce { kind, axes: axes.iter().map(|&a| a.into()).collect() }, &[1]);
    assert_eq!(all(ReduceKind::Sum, &["a"]), [[20.], [40.], [20.], [40.]]);
    assert_eq!(all(ReduceKind::Sum, &["b"]), [[10.], [10.], [50.], [50.]]);
    assert_eq!(all(ReduceKind::Sum, &["a", "b"]), [[60.]; 4]);
    assert_eq!(all(ReduceKind::Max, &["b"]), [[10.], [10.], [30.], [30.]]);
    let gather = |dim| on_mesh(Op::AllGather { axis: "a".into(), dim }, &[2, 1]);
    assert_eq!(gather(0)[1], [10., 11., 30., 31.]);
    assert_eq!(gather(1)[3], [10., 30., 11., 31.]);
    let scatter = on_mesh(Op::ReduceScatter { axis: "b".into(), dim: 0 }, &[4]);
    assert_eq!(scatter, [[10., 12.], [14., 16.], [50., 52.], [54., 56.]]);
    // Device j of the group gets part j of each, in order.
    let swap = on_mesh(Op::AllToAll { axis: "b".into(), split: 0, concat: 1 }, &[2, 1]);
    assert_eq!(swap, [[0., 10.], [1., 11.], [20., 30.], [21., 31.]]);
    let shift = on_mesh(Op::Ppermute { axis: "a".into(), pairs: vec![(0, 1)] }, &[1]);
    assert_eq!(shift, [[0.], [0.], [0.], [10.]]);
}

#[test]
fn axis_index_in_a_callee_and_misuse() {
    let mesh = Mesh::new(&[("a", 2), ("b", 3)]);
    let mut inner = Builder::on_mesh("inner", mesh.clone());
    let at: Vec<ValueId> = ["a", "b"].map(|a| inner.emit(Op::AxisIndex { axis: a.into() }, &[]).unwrap()).to_vec();
    let inner = std::sync::Arc::new(inner.finish(&at));
    let mut b = Builder::on_mesh("outer", mesh);
    let at = b.emit_multi(Op::Call { func: inner, remat: false }, &[]).unwrap();
    let func = b.finish(&at);
    let out = eval_mesh(&func, &vec![vec![]; 6], Precision::F32).unwrap();
    let seen: Vec<[i32; 2]> = out.iter().map(|r| [r[0].to_i32_vec()[0], r[1].to_i32_vec()[0]]).collect();
    assert_eq!(seen, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]);
    assert!(eval(&func, &[], Precision::F32).unwrap_err().to_string().contains("use eval_mesh"));
    assert!(eval_mesh(&func, &[vec![]], Precision::F32).unwrap_err().to_string().contains("6 devices"));
}

#[test]
fn arguments_are_checked() {
    let mut b = Builder::new("f");
    let x = b.param("weight", Type::f32([2]));
    let func = b.finish(&[x, x]);
    let wrong = |args: &[Array], p| eval(&func, args, p).unwrap_err().to_string();
    assert!(wrong(&[], Precision::F32).contains("takes 1 arguments, not 0"));
    assert!(wrong(&[f(&[3], &[0.; 3])], Precision::F32).contains("\"weight\""));
    assert!(wrong(&[typed(DType::F16, &[0.; 2])], Precision::F32).contains("f16[2], not f32[2]"));
    assert!(wrong(&[i(&[2], &[0; 2])], Precision::F64).contains("i32[2]"));
    let out = eval(&func, &[typed(DType::F16, &[0.5, 1.0])], Precision::F64).unwrap();
    assert_eq!((out.len(), out[1].dtype(), out[1].to_f64_vec()), (2, DType::F64, vec![0.5, 1.0]));
}

#[test]
fn every_value_is_shown_and_the_first_nan_named() {
    let g = crate::Graph::new("net");
    let x = g.param("x", Type::f32([3]));
    let mask = g.constant(f(&[3], &[0.0, f32::NEG_INFINITY, 0.0]));
    let y = g.scope("block0.norm", || (x + mask).exp().log());
    let z = g.scope("block1", || (x - 2.0).sqrt());
    let func = g.finish(&[y + z]).unwrap();
    let mut seen = 0;
    let args = [f(&[3], &[3.0, 4.0, 6.0])];
    eval_with(&func, &args, Precision::F32, &mut |at, id, results| {
        assert_eq!((&at.name, id.index(), results.len()), (&func.name, seen, 1));
        seen += 1;
    })
    .unwrap();
    assert_eq!(seen, func.nodes.len());
    // exp(-inf) is a plain 0; its logarithm is where an infinity is born.
    let born = first_non_finite(&func, &args).unwrap().unwrap();
    assert_eq!((&*born.op, &*born.loc), ("log", "block0.norm"));
    assert_eq!((born.results[0].infinite, born.operands[0].min), (1, 0.0));

    let g = crate::Graph::new("net");
    let x = g.param("x", Type::f32([3]));
    let z = g.scope("block1", || (x - 2.0).sqrt());
    let func = g.finish(&[z * 2.0]).unwrap();
    assert_eq!(first_non_finite(&func, &args).unwrap(), None);
    let born = first_non_finite(&func, &[f(&[3], &[3.0, 1.0, 6.0])]).unwrap().unwrap();
    let text = born.to_string();
    assert!(text.starts_with("sqrt in @net (at block1)\n  operand 0: f32[3] from -1 to 4"), "{text}");
    assert!(text.ends_with("result: f32[3] from 1 to 2, 1 NaN"), "{text}");
    let born = first_non_finite(&func, &[f(&[3], &[3.0, f32::NAN, 6.0])]).unwrap().unwrap();
    assert_eq!(born.op, "param x");
}
