//! Per-device programs with collectives, over sizes that are no multiple of anything. Tests of the compiler and of teams
//! of devices share them.
#![allow(dead_code)]

use dnx_ir::{Array, AxisName, DType, DotDims, Func, Graph, Mesh, Op, ReduceKind, Tensor, Type};

/// Numbers in [-1, 1) that differ from element to element and from device to device; integers from 0 to 6.
pub fn noise(ty: &Type, seed: u32) -> Array {
    let value = |i: usize| {
        let x = (i as u32).wrapping_mul(2654435761).wrapping_add(seed.wrapping_mul(40503)) ^ 0x9e3779b9;
        let x = x ^ (x >> 15);
        (x.wrapping_mul(2246822519) >> 8) as f64 / (1u32 << 23) as f64 - 1.0
    };
    let data: Vec<f64> = (0..ty.elems())
        .map(|i| match ty.dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F64 => value(i),
            DType::Bool => f64::from(value(i) > 0.0),
            DType::I32 | DType::U32 => (value(i).abs() * 7.0).floor(),
        })
        .collect();
    Array::from_f64(ty.clone(), &data)
}

/// Arguments for every device, all different.
pub fn args(func: &Func) -> Vec<Vec<Array>> {
    let of =
        |d: usize| func.param_types().iter().enumerate().map(|(i, t)| noise(t, (100 * d + i + 1) as u32)).collect();
    (0..func.mesh.devices()).map(of).collect()
}

/// Meshes of so many devices.
pub fn meshes(devices: usize) -> Vec<Mesh> {
    match devices {
        4 => vec![Mesh::new(&[("a", 4)]), Mesh::new(&[("a", 2), ("b", 2)])],
        6 => vec![Mesh::new(&[("a", 2), ("b", 3)])],
        n => vec![Mesh::new(&[("a", n)])],
    }
}

pub const DTYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::Bool];

fn names(mesh: &Mesh) -> Vec<AxisName> {
    mesh.axes.iter().map(|(name, _)| name.clone()).collect()
}

/// Every collective that takes the dtype, along every axis, of operands of several shapes. Results are exact.
pub fn exchanges(mesh: &Mesh, dtype: DType) -> Func {
    let g = Graph::on_mesh(&format!("exchanges_{dtype}"), mesh.clone());
    let n = mesh.axes.iter().map(|&(_, n)| n).product::<usize>();
    let shapes = [vec![n], vec![3 * n, 5, n], vec![n, 7, 2 * n], vec![0, n]];
    let params: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, dims)| g.param(&format!("p{i}"), Type::new(dtype, dims.clone()))).collect();
    let numeric = dtype != DType::Bool;
    let mut out = vec![];
    for &x in &params {
        let last = x.rank() - 1;
        for axis in names(mesh) {
            let size = mesh.size(&axis).unwrap();
            let a = || axis.clone();
            if numeric {
                for kind in [ReduceKind::Sum, ReduceKind::Max] {
                    out.push(x.apply(Op::AllReduce { kind, axes: vec![a()] }, &[]));
                }
                out.push(x.apply(Op::ReduceScatter { axis: a(), dim: last }, &[]));
                out.push(x.apply(Op::ReduceScatter { axis: a(), dim: 0 }, &[]));
            }
            out.push(x.apply(Op::AllGather { axis: a(), dim: 0 }, &[]));
            out.push(x.apply(Op::AllGather { axis: a(), dim: last }, &[]));
            out.push(x.apply(Op::AllToAll { axis: a(), split: 0, concat: last }, &[]));
            out.push(x.apply(Op::AllToAll { axis: a(), split: last, concat: 0 }, &[]));
            let turn = (0..size).map(|i| (i, (i + 1) % size)).collect();
            out.push(x.apply(Op::Ppermute { axis: a(), pairs: turn }, &[]));
            out.push(x.apply(Op::Ppermute { axis: a(), pairs: vec![(1, 0)] }, &[]));
        }
        if numeric && mesh.axes.len() > 1 {
            out.push(x.apply(Op::AllReduce { kind: ReduceKind::Sum, axes: names(mesh) }, &[]));
        }
    }
    g.finish(&out).unwrap()
}

fn sum<'g>(x: Tensor<'g>, axes: &[AxisName]) -> Tensor<'g> {
    x.apply(Op::AllReduce { kind: ReduceKind::Sum, axes: axes.to_vec() }, &[])
}

/// Work between exchanges: a product whose depth is split, a norm over a split dim, weights gathered where they are
/// needed, their gradients scattered, noise drawn by place, and coordinates as numbers.
pub fn working(mesh: &Mesh) -> Func {
    let g = Graph::on_mesh("working", mesh.clone());
    let all = names(mesh);
    let (first, n) = (all[0].clone(), mesh.axes[0].1);
    let x = g.param("x", Type::f32([9, 14]));
    let w = g.param("w", Type::f32([14, 6 * n]));
    let split = g.param("split", Type::f32([5, 6 * n]));
    let key = g.param("key", Type::new(DType::U32, [2]));

    // Rows that are parts of longer ones.
    let h = sum(x.matmul(w).tanh(), &all);
    let mean = sum(h.mean(&[1]), std::slice::from_ref(&first)) / n as f64;
    let h = h - mean.unsqueeze(1);
    // A weight of which each device has a part.
    let full = split.apply(Op::AllGather { axis: first.clone(), dim: 0 }, &[]);
    let depth = DotDims { lhs_contract: vec![1], rhs_contract: vec![1], ..DotDims::default() };
    let y = h.dot(full, depth);
    let gradient = y.transpose(&[1, 0]).matmul(h);
    let own = gradient.apply(Op::ReduceScatter { axis: first.clone(), dim: 0 }, &[]);
    let again = split - own * 0.1;

    // Each device's rows of one array of noise.
    let at = g.axis_index(&first);
    let rows = (at * g.constant(Array::from_f64(Type::scalar(DType::I32), &[9.0]))).reshape(&[1]);
    let none = g.constant(Array::from_f64(Type::new(DType::I32, [1]), &[0.0]));
    let start = rows.apply(Op::Concat { dim: 0 }, &[none]);
    let bits = key.apply(Op::RandomBits { dims: vec![9, 14], global: Some(vec![9 * n, 14]) }, &[start]);
    let noisy = bits.convert(DType::F32) * (1.0 / 4294967296.0) + x;
    let total = sum(noisy.sum_all(), &all);
    let largest = noisy.max(&[0, 1]).apply(Op::AllReduce { kind: ReduceKind::Max, axes: all.clone() }, &[]);
    g.finish(&[again, y, bits, total, largest, at, at.convert(DType::F32) + total]).unwrap()
}

/// `(input, output)` of [`working`] that may be donated.
pub const DONATED: [(usize, usize); 1] = [(2, 0)];

/// Gradients of several parameters, all reduced at once, as a training step has them.
pub fn gradients(mesh: &Mesh) -> Func {
    let g = Graph::on_mesh("gradients", mesh.clone());
    let all = names(mesh);
    let x = g.param("x", Type::f32([6, 10]));
    let mut h = x;
    let mut out = vec![];
    let mut norm = g.constant(Array::from_f64(Type::scalar(DType::F32), &[0.0]));
    for i in 0..4 {
        let w = g.param(&format!("w{i}"), Type::f32([10, 10]));
        let gradient = sum(h.transpose(&[1, 0]).matmul(h.cos()), &all);
        norm = norm + gradient.square().sum(&[0, 1]);
        h = h.matmul(w).tanh();
        out.push((w, gradient));
    }
    let scale = (norm + 1.0).rsqrt();
    let news: Vec<Tensor> = out.into_iter().map(|(w, gradient)| w - gradient * scale.broadcast_to(&[10, 10])).collect();
    g.finish(&[&news[..], &[h]].concat()).unwrap()
}
