//! Per-device programs: the derivative of the function from all devices' operands to all devices' results.

mod proof;

use dnx_autodiff::{grad, jvp, linearize, transpose};
use dnx_ir::interp::{Precision, eval_mesh};
use dnx_ir::{Array, AxisName, DType, Func, Graph, Mesh, Op, ReduceKind, Tensor, Type};
use proof::{Numbers, close, dot, moved};

type Devices = Vec<Vec<Array>>;

fn run(f: &Func, args: &Devices) -> Devices {
    eval_mesh(f, args, Precision::F64).unwrap_or_else(|e| panic!("{e}\n{f}"))
}

fn inner(a: &Devices, b: &Devices) -> f64 {
    a.iter().zip(b).map(|(a, b)| dot(a, b)).sum()
}

fn draw(n: &mut Numbers, like: &Devices) -> Devices {
    like.iter().map(|args| args.iter().map(|a| n.array(a.ty())).collect()).collect()
}

fn join(a: &Devices, b: &Devices) -> Devices {
    a.iter().zip(b).map(|(a, b)| [a.clone(), b.clone()].concat()).collect()
}

/// `body` of one parameter `[6, 6]` on a mesh of 2 by 3.
fn on_mesh(body: impl for<'g> Fn(Tensor<'g>) -> Tensor<'g>) -> Func {
    let g = Graph::on_mesh("f", Mesh::new(&[("dp", 2), ("tp", 3)]));
    let x = g.param("x", Type::f32([6, 6]));
    g.finish(&[body(x)]).unwrap()
}

fn prove(f: &Func) {
    let mut n = Numbers(11);
    let args: Devices = (0..6).map(|_| vec![n.array(f.param_types()[0])]).collect();
    let (u, h) = (draw(&mut n, &args), 1e-4);
    let at = |t: f64| -> Vec<f64> {
        let args: Devices = args.iter().zip(&u).map(|(a, u)| moved(a, &[0], u, t)).collect();
        run(f, &args).iter().flat_map(|r| r[0].to_f64_vec()).collect()
    };
    let (a, b, c, d) = (at(2.0 * h), at(h), at(-h), at(-2.0 * h));
    let forward = jvp(f, &[0]).unwrap();
    let tangents: Devices = run(&forward, &join(&args, &u)).into_iter().map(|mut r| r.split_off(1)).collect();
    let flat: Vec<f64> = tangents.iter().flat_map(|t| t[0].to_f64_vec()).collect();
    assert_eq!(flat.len(), a.len());
    for i in 0..flat.len() {
        close("jvp", &forward, flat[i], (8.0 * (b[i] - c[i]) - (a[i] - d[i])) / (12.0 * h), 1e-7);
    }

    let split = linearize(f, &[0]).unwrap();
    let residuals: Devices = run(&split.primal, &args).into_iter().map(|mut r| r.split_off(1)).collect();
    let w = draw(&mut n, &tangents);
    let back = transpose(&split.linear, &split.tangents(f)).unwrap();
    close(
        "linearize",
        &split.linear,
        inner(&run(&split.linear, &join(&residuals, &u)), &w),
        inner(&tangents, &w),
        1e-12,
    );
    close("<T u, w> = <u, T' w>", &back, inner(&tangents, &w), inner(&u, &run(&back, &join(&residuals, &w))), 1e-12);

    // The gradient on each device is that of the sum of all devices' results.
    let scalar = proof::scalarised(&Func { mesh: f.mesh.clone(), ..f.clone() });
    let scalar = Func { mesh: f.mesh.clone(), ..scalar };
    let loss = |t: f64| -> f64 {
        let args: Devices = args.iter().zip(&u).map(|(a, u)| moved(a, &[0], u, t)).collect();
        run(&scalar, &args).iter().map(|r| r[0].get(0).to_f64()).sum()
    };
    let slope = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h);
    let gradient = grad(&scalar, &[0]).unwrap();
    close("grad", &gradient, inner(&run(&gradient, &args), &u), slope, 1e-7);
}

#[test]
fn collectives() {
    let (dp, tp): (AxisName, AxisName) = ("dp".into(), "tp".into());
    let all = |kind| Op::AllReduce { kind, axes: vec![dp.clone(), tp.clone()] };
    let ops = [
        all(ReduceKind::Sum),
        all(ReduceKind::Max),
        Op::AllReduce { kind: ReduceKind::Sum, axes: vec![tp.clone()] },
        Op::AllReduce { kind: ReduceKind::Max, axes: vec![dp.clone()] },
        Op::AllGather { axis: tp.clone(), dim: 1 },
        Op::ReduceScatter { axis: tp.clone(), dim: 0 },
        Op::ReduceScatter { axis: dp.clone(), dim: 1 },
        Op::AllToAll { axis: tp.clone(), split: 0, concat: 1 },
        Op::AllToAll { axis: tp.clone(), split: 1, concat: 1 },
        Op::Ppermute { axis: tp.clone(), pairs: vec![(0, 1), (1, 2), (2, 0)] },
        Op::Ppermute { axis: tp.clone(), pairs: vec![(0, 2), (1, 0)] },
    ];
    for op in ops {
        prove(&on_mesh(|x| x.sin().apply(op.clone(), &[]).sin()));
    }
    prove(&on_mesh(|x| {
        let sum = (x * 0.7).sin().apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec![tp.clone()] }, &[]);
        sum * x
    }));
}

/// The stated convention: a loss that every device holds after an `all_reduce` counts once per device.
#[test]
fn a_shared_loss_counts_once_per_device() {
    let f = on_mesh(|x| {
        let op = Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["dp".into(), "tp".into()] };
        x.sum_all().apply(op, &[])
    });
    let args: Devices = (0..6).map(|_| vec![Array::zeros(Type::new(DType::F64, [6, 6]))]).collect();
    for device in run(&grad(&f, &[0]).unwrap(), &args) {
        assert_eq!(device[0].to_f64_vec(), [6.0; 36]);
    }
}
