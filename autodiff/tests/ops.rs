//! Every op's derivative, proved numerically at first and second order.

mod proof;

use dnx_ir::{Array, BinaryOp, CmpOp, ConvDims, DType, DotDims, Func, Graph, Op, Tensor, Type, UnaryOp};
use proof::{Numbers, arguments, prove, prove_anywhere};

/// A function of float parameters with these dims.
fn func<'a>(dims: &[&[usize]], body: impl for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Tensor<'g> + 'a) -> Func {
    let g = Graph::new("f");
    let params: Vec<Tensor> = dims.iter().map(|d| g.param("x", Type::f32(d.to_vec()))).collect();
    let y = g.scope("here", || body(&g, &params));
    g.finish(&[y]).unwrap()
}

fn positive(f: &Func) -> Vec<Array> {
    let positive = |a: &Array| {
        let data: Vec<f64> = a.to_f64_vec().iter().map(|x| x.abs() + 0.3).collect();
        Array::from_f64(a.ty().clone(), &data)
    };
    arguments(f, 1, 3).iter().map(positive).collect()
}

#[test]
fn unary() {
    for op in UnaryOp::ALL {
        if matches!(op, UnaryOp::Not | UnaryOp::IsFinite | UnaryOp::StopGradient) {
            continue;
        }
        let f = func(&[&[2, 3]], |_, x| x[0].apply(Op::Unary(op), &[]));
        if matches!(op, UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Rsqrt) {
            prove(&f, &positive(&f), 2);
        } else {
            prove_anywhere(&f, 1);
        }
    }
}

#[test]
fn binary() {
    use BinaryOp::*;
    for op in [Add, Sub, Mul, Div, Max, Min, Rem, Pow] {
        let f = func(&[&[2, 3], &[2, 3]], |_, x| x[0].apply(Op::Binary(op), &[x[1]]));
        prove(&f, &positive(&f), 2);
        if op != Pow {
            prove_anywhere(&f, 1);
        }
        let left = func(&[&[2, 3]], |_, x| (x[0] + 2.5).apply(Op::Binary(op), &[x[0].full_like(1.3)]));
        prove_anywhere(&left, 1);
        let right = func(&[&[2, 3]], |_, x| x[0].full_like(1.3).apply(Op::Binary(op), &[x[0] + 2.5]));
        prove_anywhere(&right, 1);
        let same = func(&[&[2, 3]], |_, x| (x[0] + 1.5).sin().apply(Op::Binary(op), &[(x[0] + 1.5).sin()]));
        if op != Rem {
            prove_anywhere(&same, 1);
        }
    }
    prove_anywhere(&func(&[&[4]], |_, x| x[0] * x[0]), 1);
}

#[test]
fn pow_of_constants() {
    for p in [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, 2.5] {
        let f = func(&[&[5]], |_, x| x[0].pow(x[0].scalar_like(p)));
        prove(&f, &positive(&f), 2);
    }
    // Integer powers of negative and zero bases have finite slopes.
    for p in [0.0, 1.0, 2.0, 3.0] {
        let f = func(&[&[2]], |_, x| x[0].pow(x[0].scalar_like(p)));
        prove(&f, &[Array::from_f64(Type::new(DType::F64, [2]), &[-0.7, 0.0])], 1);
    }
}

#[test]
fn select_and_convert() {
    prove_anywhere(&func(&[&[2, 3], &[2, 3]], |_, x| x[0].lt(x[1]).select(x[0].sin(), x[1] * x[0])), 1);
    prove_anywhere(&func(&[&[3]], |_, x| (x[0].convert(DType::F16) * 2.0).convert(DType::F32).sin()), 1);
}

#[test]
fn shapes() {
    let sliced = |start: [usize; 2], limit: [usize; 2], stride: [usize; 2]| {
        let op = Op::Slice { start: start.to_vec(), limit: limit.to_vec(), stride: stride.to_vec() };
        func(&[&[5, 7]], move |_, x| x[0].apply(op.clone(), &[]).sin())
    };
    prove_anywhere(&func(&[&[2, 6]], |_, x| x[0].reshape(&[3, 4]).sin()), 1);
    prove_anywhere(&func(&[&[2, 3, 4]], |_, x| x[0].transpose(&[2, 0, 1]).sin()), 1);
    prove_anywhere(&func(&[&[3, 1]], |_, x| x[0].broadcast_in_dim(&[2, 3, 5, 4], &[1, 3]).sin()), 1);
    prove_anywhere(&func(&[&[1, 3, 1]], |_, x| x[0].broadcast_in_dim(&[1, 3, 4], &[0, 1, 2]).sin()), 1);
    prove_anywhere(&func(&[&[]], |_, x| x[0].broadcast_to(&[2, 3]).sin()), 1);
    prove_anywhere(&sliced([1, 0], [4, 7], [1, 1]), 1);
    prove_anywhere(&sliced([1, 2], [5, 7], [3, 2]), 1);
    prove_anywhere(&sliced([0, 1], [5, 6], [2, 3]), 1);
    prove_anywhere(&sliced([2, 3], [2, 6], [1, 1]), 1);
    prove_anywhere(&func(&[&[2, 3], &[2, 1], &[2, 4]], |g, x| g.concat(x, 1).sin()), 1);
    prove_anywhere(&func(&[&[2, 3], &[2, 1]], |g, x| g.concat(&[x[0], x[1], x[0]], 1).sin()), 1);
    prove_anywhere(&func(&[&[2, 3, 2]], |_, x| x[0].reverse(&[0, 1]).sin()), 1);
}

#[test]
fn pads() {
    for (low, high, interior) in [([1, 0], [0, 2], [0, 0]), ([0, 3], [1, 1], [2, 1]), ([0, 0], [0, 0], [1, 3])] {
        let op = Op::Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() };
        prove_anywhere(&func(&[&[2, 3], &[]], |_, x| x[0].apply(op.clone(), &[x[1]]).sin()), 1);
        prove_anywhere(&func(&[&[2, 3]], |_, x| x[0].sin().apply(op.clone(), &[x[0].scalar_like(0.0)])), 1);
        prove_anywhere(&func(&[&[0, 3], &[]], |_, x| x[0].apply(op.clone(), &[x[1]]).sin()), 1);
    }
}

#[test]
fn dynamic_slices() {
    // Starts beyond the end are clamped; their cotangents must land in the clamped place.
    for start in [[0, 0], [2, 1], [9, -4]] {
        let at = Array::i32([2], &start);
        let f = func(&[&[4, 5]], |g, x| {
            x[0].apply(Op::DynamicSlice { sizes: vec![2, 3] }, &[g.constant(at.clone())]).sin()
        });
        prove_anywhere(&f, 1);
        let update = |which: usize| {
            let at = at.clone();
            func(&[&[4, 5], &[2, 3]], move |g, x| {
                let fixed = [x[0].full_like(0.5), x[1].full_like(0.5)];
                let pick = |i: usize| if which == 2 || which == i { x[i] } else { fixed[i] };
                pick(0).apply(Op::DynamicUpdateSlice, &[pick(1), g.constant(at.clone())]).sin()
            })
        };
        (0..3).for_each(|which| prove_anywhere(&update(which), 1));
    }
}

#[test]
fn reductions() {
    prove_anywhere(&func(&[&[2, 3, 4]], |_, x| x[0].sum(&[0, 2]).sin()), 1);
    prove_anywhere(&func(&[&[2, 3, 4]], |_, x| x[0].max(&[1]).sin()), 1);
    prove_anywhere(&func(&[&[2, 3]], |_, x| x[0].sin().max(&[0, 1])), 1);
}

#[test]
fn dots() {
    let d = |lb: &[usize], rb: &[usize], lc: &[usize], rc: &[usize]| DotDims {
        lhs_batch: lb.to_vec(),
        rhs_batch: rb.to_vec(),
        lhs_contract: lc.to_vec(),
        rhs_contract: rc.to_vec(),
    };
    let cases: [(&[usize], &[usize], DotDims); 9] = [
        (&[2, 3], &[3, 4], d(&[], &[], &[1], &[0])),
        (&[2, 3], &[4, 3], d(&[], &[], &[1], &[1])),
        (&[3, 2], &[3, 4], d(&[], &[], &[0], &[0])),
        (&[2, 5, 3], &[2, 3, 4], d(&[0], &[0], &[2], &[1])),
        (&[5, 2, 3, 6], &[3, 4, 6, 2], d(&[1, 3], &[3, 2], &[2], &[0])),
        (&[3, 2, 4, 5], &[5, 3, 6, 4], d(&[2], &[3], &[0, 3], &[1, 0])),
        (&[2, 3], &[2, 3], d(&[], &[], &[0, 1], &[0, 1])),
        (&[2], &[3], d(&[], &[], &[], &[])),
        (&[4, 2, 3], &[3, 2, 5, 4], d(&[2, 0], &[0, 3], &[1], &[1])),
    ];
    for (l, r, dims) in cases {
        let both = func(&[l, r], |_, x| x[0].dot(x[1], dims.clone()));
        prove_anywhere(&both, 1);
    }
    let square = func(&[&[3, 3]], |_, x| x[0].matmul(x[0]));
    prove_anywhere(&square, 1);
}

#[test]
fn dot_that_widens() {
    let g = Graph::new("f");
    let (x, y) = (g.param("x", Type::new(DType::F16, [2, 3])), g.param("y", Type::new(DType::F16, [3, 4])));
    let dims = DotDims { lhs_contract: vec![1], rhs_contract: vec![0], ..DotDims::default() };
    let f = g.finish(&[x.apply(Op::Dot { dims, out: DType::F32 }, &[y])]).unwrap();
    prove_anywhere(&f, 1);
}

fn conv(input: &[usize], kernel: &[usize], dims: ConvDims) -> Func {
    func(&[input, kernel], move |_, x| x[0].apply(Op::Conv { dims: dims.clone(), out: DType::F32 }, &[x[1]]))
}

#[test]
fn convs() {
    let window = |stride: usize, padding: (i64, i64), lhs: usize, rhs: usize, groups: usize| ConvDims {
        stride: vec![stride],
        padding: vec![padding],
        lhs_dilation: vec![lhs],
        rhs_dilation: vec![rhs],
        groups,
    };
    // Ragged on purpose: strides that leave a remainder, windows wholly in the padding, cropping.
    for (size, taps) in [(7, 3), (8, 3), (5, 1), (6, 4)] {
        for stride in 1..=3 {
            for padding in [(0, 0), (1, 1), (0, 2), (-1, 1), (3, -2), (4, 5)] {
                for (lhs, rhs, groups) in [(1, 1, 1), (2, 1, 2), (1, 2, 1), (3, 2, 2)] {
                    let dims = window(stride, padding, lhs, rhs, groups);
                    let long = (size - 1) as i64 * lhs as i64 + 1 + padding.0 + padding.1;
                    if long < ((taps - 1) * rhs + 1) as i64 {
                        continue;
                    }
                    let f = conv(&[2, size, 2 * groups], &[taps, 2, 3 * groups], dims);
                    prove(&f, &arguments(&f, 1, 5), 1);
                }
            }
        }
    }
}

#[test]
fn convs_in_two_dims() {
    let dims = ConvDims {
        stride: vec![2, 1],
        padding: vec![(1, 0), (1, 1)],
        lhs_dilation: vec![1, 2],
        rhs_dilation: vec![1, 2],
        groups: 1,
    };
    prove_anywhere(&conv(&[2, 4, 3, 2], &[3, 2, 2, 3], dims.clone()), 1);
    prove_anywhere(&conv(&[1, 4, 3, 4], &[2, 3, 1, 8], ConvDims { groups: 4, ..dims }), 1);
}

#[test]
fn takes_and_scatters() {
    for dim in 0..2 {
        for indices in [&[3][..], &[2, 2], &[]] {
            let g = Graph::new("f");
            let x = g.param("x", Type::f32([3, 4]));
            let i = g.param("i", Type::new(DType::I32, indices.to_vec()));
            let taken = x.apply(Op::Take { dim }, &[i]);
            let u = g.param("u", Type::f32(taken.dims()));
            // Indices are drawn below 6: repeated ones add up, those beyond the end are clamped.
            prove_anywhere(&g.finish(&[taken]).unwrap(), 6);
            let sum = x.apply(Op::ScatterAdd { dim }, &[i, u]).sin();
            prove_anywhere(&g.finish(&[sum]).unwrap(), 6);
            let only = x.full_like(0.5).apply(Op::ScatterAdd { dim }, &[i, u]).sin();
            prove_anywhere(&g.finish(&[only]).unwrap(), 6);
        }
    }
}

/// Ties share equally: the slope of a maximum of equal elements is their mean slope.
#[test]
fn ties() {
    let share = |f: &Func, args: &[Array]| {
        let gradient = dnx_autodiff::grad(f, &[0]).unwrap();
        proof::run(&gradient, args)[0].to_f64_vec()
    };
    let f64s = |data: &[f64]| Array::from_f64(Type::new(DType::F64, [data.len()]), data);
    let reduce = func(&[&[4]], |_, x| x[0].max(&[0]) * 3.0);
    assert_eq!(share(&reduce, &[f64s(&[1.0, 2.0, 2.0, 0.0])]), [0.0, 1.5, 1.5, 0.0]);
    let max = func(&[&[3]], |_, x| x[0].maximum(x[0].scalar_like(1.0)).sum_all());
    assert_eq!(share(&max, &[f64s(&[0.0, 1.0, 2.0])]), [0.0, 0.5, 1.0]);
    let min = func(&[&[3]], |_, x| x[0].minimum(x[0].scalar_like(1.0)).sum_all());
    assert_eq!(share(&min, &[f64s(&[0.0, 1.0, 2.0])]), [1.0, 0.5, 0.0]);
    let abs = func(&[&[3]], |_, x| x[0].abs().sum_all());
    assert_eq!(share(&abs, &[f64s(&[-2.0, 0.0, 2.0])]), [-1.0, 0.0, 1.0]);
}

/// What is constant almost everywhere has no slope, and says nothing else about the rest.
#[test]
fn flat_ops() {
    let cut = func(&[&[2, 3]], |g, x| {
        let x = x[0];
        let mask = x.compare(CmpOp::Gt, x.scalar_like(0.1)).convert(DType::F32);
        let top = x.apply(Op::Argmax { dim: 1 }, &[]).convert(DType::F32).reshape(&[2, 1]);
        let count = g.iota(DType::F32, &[2, 3], 1);
        x.sin() * (mask + top + x.floor() + x.sign() + count) + x.is_finite().convert(DType::F32)
    });
    prove_anywhere(&cut, 1);
    let stopped = func(&[&[3]], |_, x| (x[0].sin().stop_gradient() * 3.0).sum_all());
    let d = proof::run(&dnx_autodiff::grad(&stopped, &[0]).unwrap(), &[Numbers(1).array(&Type::f32([3]))]);
    assert_eq!(d[0].to_f64_vec(), [0.0; 3]);
}
