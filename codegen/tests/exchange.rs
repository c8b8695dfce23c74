//! Programs of several devices, compiled: the kernel interpreter against the reference interpreter on the same mesh.

mod collectives;

use collectives::{DONATED, DTYPES, args, exchanges, gradients, meshes, working};
use dnx_codegen::exec::{BufRef, Collective, Executable, Part, Step};
use dnx_codegen::kernel::interp::run_executable_mesh;
use dnx_codegen::stats::{CollectiveStats, Stats};
use dnx_codegen::{Options, Target, compile};
use dnx_ir::interp::{Precision, eval_mesh};
use dnx_ir::{Func, Graph, Mesh, Op, ReduceKind, Type};

fn compiled(func: &Func, options: &Options) -> Executable {
    compile(func, options).unwrap_or_else(|e| panic!("{}: {e}", func.name)).exec
}

/// Runs fused and op by op, with buckets and without; floats may differ by `tolerance`.
fn check(func: &Func, donate: &[(usize, usize)], tolerance: f64) {
    let args = args(func);
    let want = eval_mesh(func, &args, Precision::F32).unwrap();
    for (fuse, bucket) in [(true, 32 << 20), (false, 32 << 20), (true, 0), (true, 600)] {
        let options = Options { fuse, ..Options::new(Target::Cpu) }.with_donate(donate).with_bucket_bytes(bucket);
        let got = run_executable_mesh(&compiled(func, &options), &args).unwrap();
        for (d, (got, want)) in got.iter().zip(&want).enumerate() {
            for (r, (g, w)) in got.iter().zip(want).enumerate() {
                assert_eq!(g.ty(), w.ty());
                let (g, w) = (g.to_f64_vec(), w.to_f64_vec());
                let scale = w.iter().fold(1.0f64, |m, x| m.max(x.abs()));
                let what = format!("{} on {:?}: device {d} result {r}, fuse {fuse}", func.name, func.mesh.axes);
                for (i, (a, b)) in g.iter().zip(&w).enumerate() {
                    assert!((a - b).abs() <= tolerance * scale, "{what}, element {i}: {a} is not {b}");
                }
            }
        }
    }
}

#[test]
fn every_collective_of_every_dtype() {
    for mesh in [2, 3, 4, 6].into_iter().flat_map(meshes) {
        DTYPES.iter().for_each(|&dtype| check(&exchanges(&mesh, dtype), &[], 0.0));
    }
}

#[test]
fn work_between_exchanges() {
    for mesh in [2, 3, 4].into_iter().flat_map(meshes) {
        check(&working(&mesh), &[], 2e-5);
        check(&working(&mesh), &DONATED, 2e-5);
        check(&gradients(&mesh), &[(1, 0), (2, 1), (3, 2), (4, 3)], 2e-5);
    }
}

/// The parts of every meeting, in order.
fn meetings(exec: &Executable) -> Vec<&[Part]> {
    let steps = exec.steps.iter();
    steps.filter_map(|s| if let Step::Collective { parts, .. } = s { Some(&parts[..]) } else { None }).collect()
}

#[test]
fn what_is_ready_together_is_one_meeting_in_place() {
    let func = gradients(&Mesh::new(&[("a", 2)]));
    let options = Options::new(Target::Cpu);
    let exec = compiled(&func, &options);
    let [bucket] = meetings(&exec)[..] else { panic!("{:?}", exec.steps) };
    assert_eq!(bucket.len(), 4);
    assert!(bucket.iter().all(|p| p.src == p.dst && matches!(p.src, BufRef::Slab { .. })), "{bucket:?}");
    // The order is the program's, whatever was ready first.
    assert_eq!(exec, compiled(&func, &options));

    let two = options.clone().with_bucket_bytes(2 * 2 * 400);
    assert_eq!(meetings(&compiled(&func, &two)).iter().map(|m| m.len()).collect::<Vec<_>>(), [2, 2]);
    let alone = options.with_bucket_bytes(0);
    assert_eq!(meetings(&compiled(&func, &alone)).len(), 4);
}

#[test]
fn a_full_bucket_of_gradients_does_not_wait_and_gathered_weights_do() {
    let mesh = Mesh::new(&[("a", 2)]);
    // Without room for two, the first gradient is reduced before the last is made.
    let exec = compiled(&gradients(&mesh), &Options::new(Target::Cpu).with_bucket_bytes(1));
    let first = exec.steps.iter().position(|s| matches!(s, Step::Collective { .. })).unwrap();
    assert!(exec.steps[first..].iter().filter(|s| matches!(s, Step::Dispatch { .. })).count() > 3);
    // Nobody wants it before all others are made: their squares are summed together.
    let wanted = exec.wanted_at(first);
    let between = &exec.steps[first + 1..wanted];
    assert!(between.iter().filter(|s| matches!(s, Step::Dispatch { .. })).count() >= 3, "{first} to {wanted}");
    let Step::Collective { parts, .. } = &exec.steps[first] else { unreachable!() };
    let touches = |s: &Step| s.ranges().into_iter().any(|r| r.overlaps(&parts[0].dst));
    assert!(!between.iter().any(touches) && touches(&exec.steps[wanted]));

    // Weights in parts: each layer's is gathered when the one before has been used, so that their memory is one's.
    let g = Graph::on_mesh("layers", mesh);
    let mut h = g.param("x", Type::f32([4, 64]));
    for i in 0..6 {
        let part = g.param(&format!("w{i}"), Type::f32([32, 64]));
        h = h.matmul(part.apply(Op::AllGather { axis: "a".into(), dim: 0 }, &[])).tanh();
    }
    let func = g.finish(&[h]).unwrap();
    let exec = compiled(&func, &Options::new(Target::Cpu).with_bucket_bytes(1));
    assert_eq!(meetings(&exec).len(), 6);
    let weight = 4 * 64 * 64;
    assert!(exec.slabs.iter().sum::<u64>() < 2 * weight, "{:?}", exec.slabs);
    let exec = compiled(&func, &Options::new(Target::Cpu));
    assert_eq!(meetings(&exec).len(), 1);
    assert!(exec.slabs.iter().sum::<u64>() >= 6 * weight);
}

#[test]
fn a_value_reduced_in_two_ways_is_not_overwritten() {
    let mesh = Mesh::new(&[("a", 2)]);
    let g = Graph::on_mesh("both", mesh);
    let x = g.param("x", Type::f32([5])).exp();
    let of = |kind| x.apply(Op::AllReduce { kind, axes: vec!["a".into()] }, &[]);
    let (sum, max) = (of(ReduceKind::Sum), of(ReduceKind::Max));
    let func = g.finish(&[sum.sin() + max.sin()]).unwrap();
    check(&func, &[], 2e-5);
    let g = Graph::on_mesh("kept", Mesh::new(&[("a", 2)]));
    let x = g.param("x", Type::f32([5])).exp();
    let sum = x.apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["a".into()] }, &[]);
    check(&g.finish(&[sum.sin() + x.sin()]).unwrap(), &[], 2e-5);
}

#[test]
fn statistics_tell_what_devices_exchange() {
    let mesh = Mesh::new(&[("a", 2), ("b", 2)]);
    let exec = compiled(&gradients(&mesh), &Options::new(Target::Cpu));
    let stats = Stats::of(&exec, 0, 0);
    let row = CollectiveStats {
        axes: "a+b".into(),
        kind: "all_reduce".into(),
        devices: 4,
        count: 4,
        steps: 1,
        bytes: 2 * 4 * 400,
        ring_bytes: 2 * 3 * 4 * 400 / 4,
    };
    assert_eq!(stats.collectives, [row]);
    let line = "all_reduce along a+b of 4 devices: 4 in 1 meetings, 3.20kB per device and step (ring: 2.40kB)";
    assert!(stats.table().contains(line), "{}", stats.table());
    let json: serde_json::Value = serde_json::from_str(&stats.json()).unwrap();
    assert_eq!(json["collectives"][0]["ring_bytes"], 2400);

    let g = Graph::on_mesh("gather", mesh);
    let x = g.param("x", Type::f32([4, 3]));
    let y = x.apply(Op::AllGather { axis: "b".into(), dim: 0 }, &[]);
    let z = y.apply(Op::ReduceScatter { axis: "a".into(), dim: 0 }, &[]);
    let exec = compiled(&g.finish(&[z]).unwrap(), &Options::new(Target::Cpu));
    let all = Stats::of(&exec, 0, 0).collectives;
    let rows: Vec<_> = all.iter().map(|c| (c.axes.as_str(), c.kind.as_str(), c.bytes, c.ring_bytes)).collect();
    assert_eq!(rows, [("a", "reduce_scatter", 96 + 48, 48), ("b", "all_gather", 48 + 96, 48)]);
    let op = |p: &[Part]| matches!(p[0].op, Collective::AllGather { .. });
    assert_eq!(meetings(&exec).into_iter().map(op).collect::<Vec<_>>(), [true, false]);
}
