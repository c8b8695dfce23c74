//! Compiled programs on the cpu device against the reference interpreter.

mod support;

use dnx_codegen::{Options, Target, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{ConvDims, DType, DotDims, Func, Graph, Op, Tensor, Type};
use dnx_runtime::{Device, Error, Jit, executable_from_bytes, executable_to_bytes};
use support::{args, assert_close};

fn check_donating(func: &Func, donate: &[(usize, usize)]) {
    let args = args(func);
    let want = eval(func, &args, Precision::F32).unwrap();
    let device = Device::cpu();
    for fuse in [false, true] {
        let options = Options { fuse, ..Options::new(Target::Cpu).with_donate(donate) };
        let exec = compile(func, &options).unwrap().exec;
        let program = device.load(exec).unwrap();
        let inputs = device.upload_all(&args).unwrap();
        let outputs = program.run(&inputs).unwrap();
        assert_eq!(outputs.len(), want.len());
        for (r, (got, want)) in outputs.iter().zip(&want).enumerate() {
            assert_close(&format!("{} result {r}, fuse {fuse}", func.name), &got.download().unwrap(), want);
        }
    }
}

fn check(func: &Func) {
    check_donating(func, &[]);
}

fn graph(dims: &[&[usize]], body: impl for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Vec<Tensor<'g>>) -> Func {
    let types: Vec<Type> = dims.iter().map(|d| Type::f32(*d)).collect();
    typed("main", &types, body)
}

fn typed(name: &str, types: &[Type], body: impl for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Vec<Tensor<'g>>) -> Func {
    let g = Graph::new(name);
    let params: Vec<Tensor> = types.iter().enumerate().map(|(i, t)| g.param(&format!("p{i}"), t.clone())).collect();
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

fn gelu(x: Tensor) -> Tensor {
    x * 0.5 * (((x + x * x * x * 0.044715) * 0.7978845608).tanh() + 1.0)
}

const RAGGED: [usize; 6] = [1, 3, 63, 64, 65, 1000];

#[test]
fn pointwise() {
    for n in RAGGED {
        check(&graph(&[&[3, n], &[n]], |_, p| vec![(p[0] * p[1]).tanh() + 1.0, gelu(p[0]) - p[1].exp()]));
        check(&graph(&[&[n, 3], &[n, 1]], |_, p| vec![p[0] * p[1] + p[1], p[1].cos()]));
    }
    check(&graph(&[&[5000]], |_, p| vec![p[0].sin(), p[0].erf(), (p[0].abs() + 0.1).log()]));
}

#[test]
fn norms_and_softmax() {
    for n in RAGGED {
        check(&graph(&[&[5, n]], |_, p| vec![layer_norm(p[0]), softmax(p[0])]));
        check(&graph(&[&[n, 7], &[7]], |_, p| vec![layer_norm(p[0]) * p[1], p[0].max(&[1])]));
    }
    check(&graph(&[&[2, 20_000]], |_, p| vec![softmax(p[0] * 3.0)]));
}

#[test]
fn sums_over_leading_dims() {
    for n in RAGGED {
        check(&graph(&[&[n, 65], &[n, 65]], |_, p| vec![p[0].sum(&[0]), (p[0] * p[1]).sum(&[0]) * 2.0]));
        check(&graph(&[&[65, n]], |_, p| vec![p[0].sum(&[0]), p[0].max(&[0]), p[0].square().mean_all()]));
    }
    check(&graph(&[&[100, 5000]], |_, p| vec![p[0].sum(&[0])]));
    check(&graph(&[&[30, 4, 50]], |_, p| vec![p[0].sum(&[0, 2]), p[0].sum(&[0, 1])]));
}

#[test]
fn matmuls_with_epilogues() {
    for (m, k, n) in [(1, 1, 1), (3, 65, 1), (1, 63, 64), (64, 64, 64), (65, 63, 1000), (200, 192, 130), (300, 1, 7)] {
        check(&graph(&[&[m, k], &[k, n], &[n]], |_, p| vec![gelu(p[0].matmul(p[1]) + p[2])]));
        check(&graph(&[&[m, k], &[n, k]], |_, p| vec![p[0].matmul_t(p[1])]));
        let t = DotDims { lhs_contract: vec![0], rhs_contract: vec![0], ..DotDims::default() };
        check(&graph(&[&[k, m], &[k, n]], |_, p| {
            vec![p[0].dot(p[1], t.clone()), p[0].tanh().dot(p[1] * 2.0, t.clone())]
        }));
    }
}

#[test]
fn attention() {
    for t in [1, 16, 65] {
        let split = |x: Tensor<'_>| x.dims()[0];
        let f = graph(&[&[2, t, 3, 8], &[2, t, 3, 8], &[2, t, 3, 8], &[24, 24]], |_, p| {
            assert_eq!(split(p[0]), 2);
            let [q, k, v] = [0, 1, 2].map(|i| p[i].transpose(&[0, 2, 1, 3]));
            let qk =
                DotDims { lhs_batch: vec![0, 1], rhs_batch: vec![0, 1], lhs_contract: vec![3], rhs_contract: vec![3] };
            let av = DotDims { lhs_contract: vec![3], rhs_contract: vec![2], ..qk.clone() };
            let o = softmax(q.dot(k, qk) * 0.35).dot(v, av);
            vec![o.transpose(&[0, 2, 1, 3]).reshape(&[2, t, 24]).matmul(p[3])]
        });
        check(&f);
    }
}

#[test]
fn convolutions() {
    for (stride, pad, groups) in [(1, 1, 1), (2, 1, 1), (1, 0, 2), (2, 2, 1)] {
        let dims = ConvDims {
            stride: vec![stride; 2],
            padding: vec![(pad, pad); 2],
            lhs_dilation: vec![1; 2],
            rhs_dilation: vec![1; 2],
            groups,
        };
        let f = graph(&[&[2, 9, 10, 8], &[3, 3, 8 / groups, 6]], |_, p| {
            vec![p[0].apply(Op::Conv { dims: dims.clone(), out: DType::F32 }, &[p[1]]).tanh()]
        });
        check(&f);
        let grad = dnx_autodiff::grad(
            &graph(&[&[2, 9, 10, 8], &[3, 3, 8 / groups, 6]], |_, p| {
                vec![p[0].apply(Op::Conv { dims: dims.clone(), out: DType::F32 }, &[p[1]]).square().sum_all()]
            }),
            &[0, 1],
        );
        check(&grad.unwrap());
    }
}

#[test]
fn integers_half_floats_and_gathers() {
    let i32s = |d: &[usize]| Type::new(DType::I32, d);
    check(&typed("ints", &[i32s(&[7, 65]), i32s(&[65])], |_, p| {
        vec![p[0] * p[1] - p[0], p[0].maximum(p[1]), p[0].sum(&[1]), p[0].max(&[0]), p[0].lt(p[1])]
    }));
    check(&typed("int_dot", &[i32s(&[7, 65]), i32s(&[65, 9])], |_, p| vec![p[0].matmul(p[1])]));
    for dtype in [DType::F16, DType::BF16] {
        let ty = |d: &[usize]| Type::new(dtype, d);
        check(&typed("half", &[ty(&[7, 65]), ty(&[65])], |_, p| {
            vec![p[0] * p[1] + p[0], p[0].convert(DType::F32).exp(), p[0].sum(&[1])]
        }));
        check(&typed("half_dot", &[ty(&[33, 65]), ty(&[65, 40])], |_, p| vec![p[0].matmul(p[1])]));
    }
    check(&typed("take", &[Type::f32([7, 33]), i32s(&[5, 4])], |_, p| vec![p[0].take(p[1]) * 2.0]));
    check(&typed("scatter", &[Type::f32([7, 33]), i32s(&[50]), Type::f32([50, 33])], |_, p| {
        vec![p[0].apply(Op::ScatterAdd { dim: 0 }, &[p[1], p[2]])]
    }));
    check(&typed("argmax", &[Type::f32([9, 65])], |_, p| {
        vec![p[0].apply(Op::Argmax { dim: 1 }, &[]), p[0].apply(Op::Argmax { dim: 0 }, &[])]
    }));
    check(&typed("random", &[Type::new(DType::U32, [2])], |g, p| vec![dnx_ir::random::normal(g, p[0], &[3, 333])]));
}

#[test]
fn views() {
    check(&graph(&[&[6, 10, 4]], |_, p| {
        vec![
            p[0].transpose(&[2, 0, 1]) * 2.0,
            p[0].reverse(&[0, 2]).exp(),
            p[0].slice(1, 2, 9).tanh(),
            p[0].pad_zero(&[1, 0, 2], &[0, 3, 1]) + 1.0,
            p[0].transpose(&[1, 0, 2]).reshape(&[15, 16]) * 3.0,
        ]
    }));
    check(&graph(&[&[3, 40], &[5, 40]], |g, p| vec![g.concat(&[p[0].exp(), p[1]], 0)]));
}

#[test]
fn layouts() {
    // In tiles, and where those don't come out even; wide and narrow elements on either side.
    for dims in [[96, 160], [64, 1000], [72, 136], [131, 37], [24, 509]] {
        for (from, to) in [(DType::F32, DType::F32), (DType::F16, DType::F32), (DType::BF16, DType::F16)] {
            let types = [Type::new(from, dims), Type::f32([dims[1], dims[0]]), Type::f32([dims[1], 1])];
            check(&typed("turned", &types, |_, p| {
                let x = p[0].convert(DType::F32).transpose(&[1, 0]);
                vec![x.convert(to), (x * p[1] + p[2]).convert(to)]
            }));
        }
    }
    for order in [[2, 0, 1], [1, 2, 0], [0, 2, 1], [2, 1, 0], [1, 0, 2]] {
        check(&graph(&[&[16, 24, 40]], |_, p| vec![p[0].transpose(&order) + 1.0, p[0].transpose(&order).sin()]));
    }
    // What is read in order too.
    check(&graph(&[&[48, 16, 48], &[48]], |_, p| {
        let turned = p[0].transpose(&[2, 1, 0]);
        vec![turned * p[0] + p[1].reshape(&[48, 1, 1]), turned.sin() - p[1]]
    }));
}

#[test]
fn donated_steps() {
    let f = graph(&[&[100, 30], &[100, 30], &[7], &[]], |_, p| {
        let m = p[1] * 0.9 + p[0] * 0.1;
        vec![p[0] - m * 0.01, m, p[2] * 2.0, p[3] + 1.0]
    });
    check_donating(&f, &[(0, 0), (1, 1), (2, 2), (3, 3)]);
    let device = Device::cpu();
    let program = device.compile(&f, &[(0, 0), (1, 1), (2, 2), (3, 3)]).unwrap();
    let bound = program.bind(&device.upload_all(&args(&f)).unwrap()).unwrap();
    let mut want = args(&f);
    for _ in 0..3 {
        bound.run().unwrap();
        want = eval(&f, &want, Precision::F32).unwrap();
    }
    for (got, want) in bound.outputs().iter().zip(&want) {
        assert_close("after three steps", &got.download().unwrap(), want);
    }
    let x = &bound.inputs()[0];
    let twice = [x.clone(), x.clone(), bound.inputs()[2].clone(), bound.inputs()[3].clone()];
    assert!(matches!(program.bind(&twice), Err(Error::DonatedTwice { .. })));
}

#[test]
fn errors_say_what_is_wrong() {
    let f = graph(&[&[4, 3], &[3]], |_, p| vec![p[0] * p[1]]);
    let device = Device::cpu();
    let program = device.compile(&f, &[]).unwrap();
    let buffers = device.upload_all(&args(&f)).unwrap();
    assert!(matches!(program.run(&buffers[..1]), Err(Error::InputCount { expected: 2, got: 1, .. })));
    let error = program.run(&[buffers[1].clone(), buffers[0].clone()]).err().unwrap();
    assert!(error.to_string().contains("`p0`"), "{error}");
    let elsewhere = Device::cpu().upload_all(&args(&f)).unwrap();
    assert!(matches!(program.run(&elsewhere), Err(Error::DeviceMismatch { .. })));
    assert!(buffers[0].write(&args(&f)[1]).is_err());

    let bytes = executable_to_bytes(program.exec()).unwrap();
    assert_eq!(&executable_from_bytes(&bytes).unwrap(), program.exec());
    let mut old = program.exec().clone();
    old.version += 1;
    assert!(matches!(executable_from_bytes(&executable_to_bytes(&old).unwrap()), Err(Error::Version { .. })));
    assert!(matches!(device.load(old), Err(Error::Version { .. })));
    assert!(matches!(executable_from_bytes(&bytes[..bytes.len() / 2]), Err(Error::Decode(_))));
    let mut huge = program.exec().clone();
    huge.peak_bytes = u64::MAX / 2;
    let error = device.load(huge).err().unwrap();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}

#[test]
fn bool_crosses_the_border() {
    let ty = Type::new(DType::Bool, [5]);
    let device = Device::cpu();
    let array = support::noise(&ty, 3);
    let buffer = device.upload(&array).unwrap();
    assert_eq!(buffer.download().unwrap(), array);
    check(&typed("not", &[ty.clone(), ty], |_, p| vec![p[0].not(), p[0].xor(p[1]), p[0].convert(DType::F32)]));
}

#[test]
fn jit_traces_once_per_signature() {
    let device = Device::cpu();
    let norm = Jit::new(device.clone(), "norm", |_, a| vec![a[0].square().sum_all().sqrt()]);
    for n in [3, 4, 3] {
        let x = device.upload(&dnx_ir::Array::f32([n], &vec![2.0; n])).unwrap();
        let y = norm.run(&[x]).unwrap()[0].download().unwrap();
        assert!((y.to_f64_vec()[0] - 2.0 * (n as f64).sqrt()).abs() < 1e-6);
    }
    assert_eq!(norm.signatures(), 2);
}

#[test]
fn a_constant_test_of_an_index_is_not_made_where_its_index_is() {
    // The last element of a padded tensor, picked by a slice: whether it is padding depends on no dim.
    check(&graph(&[&[2, 5, 1]], |g, p| {
        let pad = Op::Pad { low: vec![0, 2, 1], high: vec![1, 0, 0], interior: vec![0, 1, 0] };
        let padded = p[0].apply(pad, &[g.scalar(DType::F32, 1.0)]);
        let picked = padded.slice(0, 1, 2).slice(1, 10, 11).slice(2, 1, 2);
        let (lhs_batch, rhs_batch) = (vec![1], vec![2]);
        let dims = DotDims { lhs_batch, rhs_batch, lhs_contract: vec![0, 2], rhs_contract: vec![1, 0] };
        vec![picked.dot(picked, dims)]
    }));
}

#[test]
fn a_column_sum_spread_over_the_column_again_is_complete() {
    check(&graph(&[&[33, 3]], |_, p| {
        let mean = p[0].mean(&[0]);
        vec![mean, mean.sin().broadcast_to(&[33, 3])]
    }));
}

#[test]
fn step_by_step() {
    support::pass_without_machine_code("step_by_step");
}
