//! Training over meshes on real devices: numbers of one device, volumes of the theory, memory that falls with devices.

use dnx_codegen::exec::{Collective, Executable, Step};
use dnx_codegen::stats::{CollectiveStats, Stats};
use dnx_codegen::{GpuLimits, Options, Target, Wire, compile};
use dnx_ir::attention::attention;
use dnx_ir::parts::{part, whole};
use dnx_ir::{Array, ConvDims, DType, Func, Graph, Mesh, Op, Sharding, Tensor, Type};
use dnx_models::layout::{Layout, settled};
use dnx_models::network::{DitConfig, MlpConfig, Network, Remat};
use dnx_models::optim::{EmaConfig, OptimConfig, Rule};
use dnx_models::process::Preset;
use dnx_models::step::{Role, StepOptions, TrainProgram, train_step};
use dnx_runtime::Team;

type Axes = [(&'static str, usize)];

fn mlp() -> Network {
    Network::Mlp(MlpConfig { dims: Some(2), hidden: 64, time_width: 32, classes: Some(0), ..MlpConfig::default() })
}

fn dit(remat: Remat) -> DitConfig {
    DitConfig {
        dim: Some(64),
        depth: Some(2),
        heads: Some(4),
        patch: 2,
        image: Some(8),
        channels: Some(1),
        classes: Some(3),
        remat,
        ..DitConfig::default()
    }
}

fn step(network: &Network, batch: usize, axes: &Axes) -> TrainProgram {
    let optim = OptimConfig { kind: Rule::Sgd, lr: 1e-2, clip: 1.0, ..OptimConfig::default() };
    let layout = Layout::new(axes.iter().copied(), []).unwrap();
    let options = StepOptions { batch, accumulate: 1, layout, ..StepOptions::default() };
    train_step(network, &Preset::Sit.process(), &optim, &EmaConfig::default(), &options).unwrap()
}

/// Numbers in `[-scale, scale]`.
fn numbers(ty: &Type, seed: usize, scale: f64) -> Array {
    let value = |i: usize| (((i * 37 + seed * 11) % 101) as f64 / 50.0 - 1.0) * scale;
    let data: Vec<f64> =
        (0..ty.elems()).map(|i| if ty.dtype == DType::I32 { (i % 3) as f64 } else { value(i) }).collect();
    Array::from_f64(Type::new(ty.dtype, ty.dims.clone()), &data)
}

fn inputs(p: &TrainProgram) -> Vec<Array> {
    let params: Vec<Array> = p.params.iter().enumerate().map(|(i, s)| numbers(&s.ty(), i, 0.15)).collect();
    let mut inputs = p.state_from(&params);
    inputs.extend(p.constants(3));
    inputs.extend(p.batch.iter().map(|port| numbers(&port.ty, 5, 1.0)));
    inputs
}

/// Runs a function over its mesh on a team, `times` times; gives the results, whole.
fn run(team: &Team, func: &Func, donate: &[(usize, usize)], args: &[Array], times: usize) -> Vec<Array> {
    run_with(team, func, &team.options().with_donate(donate), args, times)
}

/// The same, compiled with these options. Devices that hold the same part must hold the same bits.
fn run_with(team: &Team, func: &Func, options: &Options, args: &[Array], times: usize) -> Vec<Array> {
    let (mesh, types) = (&func.mesh, func.param_types());
    let local = |rank: usize| {
        let own: Vec<Array> =
            args.iter().zip(&types).map(|(a, ty)| part(a, &ty.sharding, mesh, rank).unwrap()).collect();
        team.upload_all(rank, &own).unwrap()
    };
    let program = team.load(compile(func, options).unwrap().exec).unwrap();
    let bound = program.bind(&team.ranks().map(local).collect::<Vec<_>>()).unwrap();
    (0..times).for_each(|_| bound.run().unwrap());
    let result = |(i, ty): (usize, &Type)| {
        let parts: Vec<Array> = team.ranks().map(|r| bound.outputs(r).unwrap()[i].download().unwrap()).collect();
        let all = whole(&parts, ty, mesh).unwrap();
        for (rank, own) in parts.iter().enumerate() {
            assert_eq!(part(&all, &ty.sharding, mesh, rank).unwrap(), *own, "result {i} of rank {rank}");
        }
        all
    };
    func.result_types().into_iter().enumerate().map(result).collect()
}

fn assert_near(what: &str, a: &Array, b: &Array) {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-3);
    assert!(apart < 1e-5, "{what} is {apart:e} apart");
}

/// Two steps on a team give the losses and the state of two steps on one cpu device.
fn check(network: &Network, axes: &Axes, device: &str) {
    let one = step(network, 8, &[]);
    let many = step(network, 8, axes);
    let cpu = Team::open(Some("cpu")).unwrap();
    let wanted = run(&cpu, &one.func, &one.donate, &inputs(&one), 2);
    let devices = many.func.mesh.devices();
    let team = Team::open(Some(&format!("{device}*{devices}"))).unwrap_or_else(|e| panic!("{e}"));
    let got = run(&team, &many.func, &many.donate, &inputs(&many), 2);
    for (i, (a, b)) in got.iter().zip(&wanted).enumerate() {
        let name = one.state.get(i).map_or("a metric".to_string(), |s| format!("{:?} {}", s.role, s.name));
        assert_near(&format!("{device} {axes:?}: {name}"), a, b);
    }
}

#[test]
fn cpu_devices_train_as_one() {
    for axes in [&[("data", 2)][..], &[("fsdp", 4)], &[("data", 2), ("fsdp", 2)], &[("data", 8)]] {
        check(&mlp(), axes, "cpu");
    }
    let meshes: [&Axes; 6] = [
        &[("data", 4)],
        &[("fsdp", 2)],
        &[("tensor", 4)],
        &[("sequence", 4)],
        &[("data", 2), ("fsdp", 2), ("tensor", 2)],
        &[("fsdp", 2), ("sequence", 2), ("tensor", 2)],
    ];
    for axes in meshes {
        check(&Network::Dit(dit(Remat::Block)), axes, "cpu");
    }
}

#[test]
fn gpu_devices_train_as_one() {
    let meshes: [&Axes; 3] = [&[("data", 2)], &[("fsdp", 2), ("tensor", 2)], &[("sequence", 2)]];
    for axes in meshes {
        check(&Network::Dit(dit(Remat::None)), axes, "vulkan:llvmpipe");
    }
}

/// The loss of a convolutional network with group norms, a grouped convolution, stride and a class embedding, and its
/// gradient; samples are split over `data`, features of the wide layer over `tensor`.
fn convolutions(axes: &Axes) -> Func {
    let mesh = Mesh::new(axes);
    let on = |name: &str| if mesh.size(name).is_some() { vec![name.into()] } else { vec![] };
    let (data, tensor) = (on("data"), on("tensor"));
    let split = |ty: Type, dim: usize, axes: &[dnx_ir::AxisName]| {
        let mut dims = vec![vec![]; ty.rank()];
        dims[dim] = axes.to_vec();
        ty.with_sharding(Sharding::new(dims, vec![]))
    };
    let g = Graph::on_mesh("convolutions", mesh.clone());
    let x = g.param("x", split(Type::f32([8, 8, 8, 3]), 0, &data));
    let label = g.param("label", split(Type::new(DType::I32, [8]), 0, &data));
    let table = g.param("table", Type::f32([3, 16]));
    let first = g.param("first", Type::f32([3, 3, 3, 16]));
    let wide = g.param("wide", split(Type::f32([3, 3, 16, 32]), 3, &tensor));
    let last = g.param("last", split(Type::f32([1, 1, 32, 3]), 2, &tensor));
    let pairs = g.param("pairs", Type::f32([3, 3, 2, 16]));
    let conv = |x: Tensor<'_>, stride: usize, pad: i64| ConvDims {
        stride: vec![stride; 2],
        padding: vec![(pad, pad); x.rank() - 2],
        lhs_dilation: vec![1; 2],
        rhs_dilation: vec![1; 2],
        groups: 1,
    };
    let out = DType::F32;
    let h = x.apply(Op::Conv { dims: conv(x, 1, 1), out }, &[first]);
    let grouped = h.reshape(&[8, 64, 4, 4]);
    let centred = grouped - grouped.mean(&[1, 3]).reshape(&[8, 1, 4, 1]);
    let h = centred * (centred.square().mean(&[1, 3]).reshape(&[8, 1, 4, 1]) + 1e-5).rsqrt();
    let h = (h.reshape(&[8, 8, 8, 16]) + table.take(label).reshape(&[8, 1, 1, 16])).silu();
    let h = h.apply(Op::Conv { dims: ConvDims { groups: 8, ..conv(h, 1, 1) }, out }, &[pairs]).silu();
    let h = h.apply(Op::Conv { dims: conv(h, 2, 1), out }, &[wide]).silu();
    let y = settled(h.apply(Op::Conv { dims: conv(h, 1, 0), out }, &[last]));
    let loss = settled(y.square().sum_all() * 0.01);
    dnx_autodiff::value_and_grad(&g.finish(&[loss]).unwrap(), &[0, 2, 3, 4, 5, 6]).unwrap()
}

#[test]
fn convolutional_networks_too() {
    let run_on = |axes: &Axes, device: &str| {
        let f = convolutions(axes);
        let args: Vec<Array> = f.param_types().iter().enumerate().map(|(i, ty)| numbers(ty, i, 0.5)).collect();
        let team = Team::open(Some(&format!("{device}*{}", f.mesh.devices()))).unwrap();
        run(&team, &f, &[], &args, 1)
    };
    let wanted = run_on(&[], "cpu");
    let meshes: [&Axes; 5] =
        [&[("data", 2)], &[("data", 8)], &[("tensor", 2)], &[("tensor", 4)], &[("data", 2), ("tensor", 2)]];
    for axes in meshes {
        for (i, (a, b)) in run_on(axes, "cpu").iter().zip(&wanted).enumerate() {
            assert_near(&format!("cpu {axes:?}: result {i}"), a, b);
        }
    }
    for axes in [&[("data", 2)], &[("tensor", 2)]] {
        for (i, (a, b)) in run_on(axes, "vulkan:llvmpipe").iter().zip(&wanted).enumerate() {
            assert_near(&format!("gpu {axes:?}: result {i}"), a, b);
        }
    }
}

/// What a device exchanges in a step on the cpu.
fn exchanged(p: &TrainProgram) -> Vec<CollectiveStats> {
    let options = Options::new(Target::Cpu).with_donate(&p.donate);
    Stats::of(&compile(&p.func, &options).unwrap().exec, 0, 0).collectives
}

fn volume(of: &[CollectiveStats], axes: &str, kinds: &[&str]) -> f64 {
    of.iter().filter(|c| c.axes == axes && kinds.contains(&&*c.kind)).map(|c| c.ring_bytes as f64).sum()
}

/// Bytes of the parameters for which `which` holds.
fn bytes(p: &TrainProgram, which: impl Fn(&Type) -> bool) -> f64 {
    let params = p.state.iter().filter(|s| s.role == Role::Param && which(&s.ty));
    params.map(|s| s.ty.elems() as f64 * 4.0).sum()
}

/// Per device and step: `2 (n - 1) / n` of the gradients with replicated parameters; `3 (n - 1) / n` of the weights with
/// split ones, two gathers and a scatter, where blocks are recomputed, and `2 (n - 1) / n` where gathered weights are kept.
#[test]
fn volumes_are_those_of_the_theory() {
    for n in [2, 4, 8] {
        let share = (n as f64 - 1.0) / n as f64;
        let p = step(&Network::Dit(dit(Remat::None)), 8, &[("data", n)]);
        let moved = volume(&exchanged(&p), "data", &["all_reduce"]);
        let theory = 2.0 * share * bytes(&p, |_| true);
        // The loss and the like are a few scalars more.
        assert!((moved / theory - 1.0).abs() < 1e-3, "data={n}: {moved}, by theory {theory}");

        for (remat, times) in [(Remat::None, 2.0), (Remat::Block, 3.0)] {
            let p = step(&Network::Dit(dit(remat)), 8, &[("fsdp", n)]);
            let moved = volume(&exchanged(&p), "fsdp", &["all_gather", "reduce_scatter"]);
            let in_blocks = |s: &dnx_models::step::StateSpec| s.name.starts_with("blocks.");
            let sized = |blocks: bool| -> f64 {
                let params = p.state.iter().filter(|s| s.role == Role::Param && !s.ty.sharding.is_replicated());
                params.filter(|s| in_blocks(s) == blocks).map(|s| s.ty.elems() as f64 * 4.0).sum()
            };
            let frozen: f64 = p.frozen.iter().map(|s| s.elems() as f64 * 4.0).filter(|&b| b >= 16384.0).sum();
            // Outside of blocks nothing is recomputed, and what is frozen is gathered alone.
            let theory = share * (times * sized(true) + 2.0 * sized(false) + frozen);
            assert!((moved / theory - 1.0).abs() < 1e-6, "fsdp={n} {remat:?}: {moved}, by theory {theory}");
        }

        if n <= 4 {
            // Each block sums activations twice forward and their cotangents twice backward: 4 sums of [B, T, D]. Its
            // modulations, and two of the last layer, are gathered from their parts, and the condition's cotangents summed.
            let p = step(&Network::Dit(dit(Remat::None)), 8, &[("tensor", n)]);
            let (activations, condition) = (8.0 * 16.0 * 64.0 * 4.0, 8.0 * 64.0 * 4.0);
            let all = exchanged(&p);
            let moved = volume(&all, "tensor", &["all_reduce"]);
            let theory = 2.0 * share * (4.0 * 2.0 * activations + 3.0 * condition);
            assert!((moved / theory - 1.0).abs() < 1e-3, "tensor={n}: {moved}, by theory {theory}");
            let (moved, theory) = (volume(&all, "tensor", &["all_gather"]), share * (2.0 * 6.0 + 2.0) * condition);
            assert_eq!(moved, theory, "tensor={n}");
            let gathers = all.iter().find(|c| c.kind == "all_gather").unwrap();
            assert_eq!(gathers.steps, 1, "modulations are gathered at once, before the first block");
        }
    }
}

/// Weights, moments and averages of a device are `1 / n` of all, by the plan and as allocated.
#[test]
fn states_fall_with_the_number_of_devices() {
    let network = Network::Mlp(MlpConfig {
        hidden: 512,
        ..match mlp() {
            Network::Mlp(c) => c,
            _ => unreachable!(),
        }
    });
    let held = |axes: &Axes| -> (f64, f64) {
        let p = step(&network, 16, axes);
        let devices = p.func.mesh.devices();
        let team = Team::open(Some(&format!("cpu*{devices}"))).unwrap();
        let program = team.compile(&p.func, &p.donate).unwrap();
        let state = p.state.len();
        let planned: usize = program.exec().inputs[..state].iter().map(|port| port.ty.device_bytes()).sum();
        let types = p.func.param_types();
        let mesh = &p.func.mesh;
        let local = |rank: usize| {
            let own: Vec<Array> =
                inputs(&p).iter().zip(&types).map(|(a, ty)| part(a, &ty.sharding, mesh, rank).unwrap()).collect();
            team.upload_all(rank, &own).unwrap()
        };
        let bound = program.bind(&team.ranks().map(local).collect::<Vec<_>>()).unwrap();
        let allocated: usize = bound.inputs(devices - 1).unwrap()[..state].iter().map(|b| b.ty().device_bytes()).sum();
        (planned as f64, allocated as f64)
    };
    let (whole, _) = held(&[]);
    for n in [2, 4, 8] {
        let (planned, allocated) = held(&[("fsdp", n)]);
        assert_eq!(planned, allocated);
        let ratio = planned * n as f64 / whole;
        assert!(ratio < 1.1, "fsdp={n}: a device holds {ratio:.3} of its share");
    }
}

/// Where blocks are recomputed no device ever holds the whole weights of many of them.
#[test]
fn weights_are_gathered_a_block_at_a_time() {
    let network = Network::Dit(DitConfig { dim: Some(128), depth: Some(8), ..dit(Remat::Block) });
    let p = step(&network, 8, &[("fsdp", 8)]);
    let exec = compile(&p.func, &Options::new(Target::Cpu).with_donate(&p.donate)).unwrap().exec;
    let stats = Stats::of(&exec, 0, 0);
    let gathers = stats.collectives.iter().find(|c| c.kind == "all_gather").unwrap();
    assert!(gathers.steps >= 16, "8 blocks forward and backward gather in {} meetings", gathers.steps);
    let in_slabs: u64 = exec.slabs.iter().sum();
    let weights = bytes(&p, |_| true);
    assert!((in_slabs as f64) < 0.5 * weights, "{in_slabs} bytes of temporaries beside weights of {weights}");
}

/// Values that cross in 16 bits take half the bytes; small ones and sums under way don't.
#[test]
fn narrow_transport_halves_what_crosses() {
    let large = |s: &Type| s.elems() >= 4096;
    let of = |axes: &Axes, wire: Wire| -> Vec<CollectiveStats> {
        let p = step(&Network::Dit(dit(Remat::None)), 8, axes);
        let options = Options::new(Target::Cpu).with_donate(&p.donate).with_wire(wire);
        Stats::of(&compile(&p.func, &options).unwrap().exec, 0, 0).collectives
    };
    let all = |of: &[CollectiveStats], kinds: &[&str]| -> f64 {
        of.iter().filter(|c| kinds.contains(&&*c.kind)).map(|c| c.ring_bytes as f64).sum()
    };
    for wire in [Wire::Bf16, Wire::F16] {
        for axes in [&[("data", 4)][..], &[("fsdp", 4)], &[("data", 2), ("fsdp", 2)]] {
            let (wide, narrow) = (of(axes, Wire::F32), of(axes, wire));
            let kinds = ["all_reduce", "all_gather", "reduce_scatter"];
            let saved = all(&wide, &kinds) - all(&narrow, &kinds);
            // All that is exchanged of large parameters, forward and backward.
            let p = step(&Network::Dit(dit(Remat::None)), 8, axes);
            let params = bytes(&p, large);
            let frozen: f64 = p.frozen.iter().map(|s| s.elems() as f64 * 4.0).filter(|&b| b >= 16384.0).sum();
            let share = |n: f64| (n - 1.0) / n;
            let theory = match axes {
                [("data", _)] => 2.0 * share(4.0) * params,
                [("fsdp", _)] => share(4.0) * (2.0 * params + frozen),
                // Gathered and scattered over one axis, halves summed over the other, of which some are small.
                _ => share(2.0) * (2.0 * params + frozen) + share(2.0) * bytes(&p, |s| s.elems() >= 8192),
            };
            assert!((saved / (theory / 2.0) - 1.0).abs() < 1e-6, "{axes:?} {wire:?}: {saved} of {theory}");
        }
        let (wide, narrow) = (of(&[("tensor", 2)], Wire::F32), of(&[("tensor", 2)], wire));
        let ratio = all(&narrow, &["all_reduce"]) / all(&wide, &["all_reduce"]);
        assert!((0.5..0.52).contains(&ratio), "tensor=2 {wire:?}: {ratio}");
        // A round of four: keys and values three times forward and three backward, their cotangents four times.
        let (wide, narrow) = (of(&[("sequence", 4)], Wire::F32), of(&[("sequence", 4)], wire));
        let ratio = all(&narrow, &["ppermute"]) / all(&wide, &["ppermute"]);
        assert_eq!(ratio, (3.0 + 4.0) / (6.0 + 4.0), "sequence=4 {wire:?}");
    }
}

/// Ten steps whose exchange is rounded move the weights as those whose exchange is not, on devices that hold the same bits.
#[test]
fn narrow_transport_trains_alike() {
    let meshes: [&Axes; 5] = [
        &[("data", 2)],
        &[("fsdp", 2)],
        &[("tensor", 2)],
        &[("sequence", 2)],
        &[("data", 2), ("fsdp", 2), ("tensor", 2)],
    ];
    for axes in meshes {
        let p = step(&Network::Dit(dit(Remat::Block)), 8, axes);
        let team = Team::open(Some(&format!("cpu*{}", p.func.mesh.devices()))).unwrap();
        let weights = |arrays: Vec<Array>| -> Vec<f64> {
            let params = p.state.iter().zip(arrays).filter(|(s, _)| s.role == Role::Param);
            params.flat_map(|(_, a)| a.to_f64_vec()).collect()
        };
        let trained = |wire: Wire| {
            let options = team.options().with_donate(&p.donate).with_wire(wire);
            weights(run_with(&team, &p.func, &options, &inputs(&p), 10))
        };
        let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let (start, wide) = (weights(inputs(&p)), trained(Wire::F32));
        // Each value is rounded by up to 2^-8 or 2^-11 of it, and a sum once more.
        for (wire, bound) in [(Wire::Bf16, 2f64.powi(-8)), (Wire::F16, 2f64.powi(-11))] {
            let error = apart(&trained(wire), &wide) / apart(&start, &wide);
            assert!((1e-5..bound).contains(&error), "{axes:?} {wire:?}: weights move {error:.2e} apart");
        }
    }
}

/// The steps at which weights are gathered.
fn gathers(exec: &Executable) -> Vec<usize> {
    let gathers =
        |s: &Step| matches!(s, Step::Collective { parts, .. } if matches!(parts[0].op, Collective::AllGather { .. }));
    (0..exec.steps.len()).filter(|&i| gathers(&exec.steps[i])).collect()
}

/// A block's weights are asked for before the block before it begins: two blocks' weights are held, and no more crosses.
#[test]
fn weights_are_gathered_one_block_ahead() {
    for (remat, wire) in [(Remat::Block, Wire::F32), (Remat::Block, Wire::Bf16), (Remat::None, Wire::F32)] {
        let network = Network::Dit(DitConfig { dim: Some(128), depth: Some(8), ..dit(remat) });
        let p = step(&network, 8, &[("fsdp", 8)]);
        let compiled = |ahead: bool| {
            let options = Options::new(Target::Gpu(GpuLimits::default())).with_donate(&p.donate).with_wire(wire);
            compile(&p.func, &options.with_gather_ahead(ahead)).unwrap().exec
        };
        let (late, ahead) = (compiled(false), compiled(true));
        assert_eq!(ahead, compiled(true));
        let moved = |exec: &Executable| {
            let all = Stats::of(exec, 0, 0).collectives;
            all.into_iter().map(|c| (c.kind, c.axes, c.count, c.bytes, c.ring_bytes)).collect::<Vec<_>>()
        };
        assert_eq!(moved(&ahead), moved(&late));
        let at = gathers(&ahead);
        let blocks = if remat == Remat::Block { 16 } else { 8 };
        assert!(at.len() >= blocks, "{} gathers", at.len());
        for pair in at.windows(2) {
            let begins = ahead.wanted_at(pair[0]);
            assert!(pair[1] < begins, "{remat:?}: the gather of step {} comes after step {begins}", pair[1]);
        }
        // While weights are on their way a block computes.
        let between = |exec: &Executable| gathers(exec).iter().filter(|&&g| exec.wanted_at(g) > g + 10).count();
        assert!(between(&ahead) >= blocks - 1 && between(&late) <= 1, "{} {}", between(&ahead), between(&late));
        let block: u64 = p
            .state
            .iter()
            .filter(|s| s.role == Role::Param && s.name.starts_with("blocks.3."))
            .map(|s| s.ty.elems() as u64 * 4)
            .sum();
        let more = ahead.peak_bytes as i64 - late.peak_bytes as i64;
        assert!(more <= block as i64, "{remat:?} {wire:?}: {more} bytes more, a block has {block}");
    }
}

/// Devices that go on while weights are on their way compute the same.
#[test]
fn weights_gathered_ahead_change_no_number() {
    let p = step(&Network::Dit(dit(Remat::Block)), 8, &[("fsdp", 2)]);
    for device in ["cpu*2", "vulkan:llvmpipe*2"] {
        let team = Team::open(Some(device)).unwrap().with_overlap(true);
        let of = |ahead: bool| {
            let options = team.options().with_donate(&p.donate).with_gather_ahead(ahead);
            run_with(&team, &p.func, &options, &inputs(&p), 3)
        };
        assert_eq!(of(true), of(false), "{device}");
    }
}

/// 8192 tokens on four devices: the memory of each, and the numbers of attention with its gradients.
#[test]
fn long_sequences_go_round_a_ring() {
    let network = Network::Dit(DitConfig {
        depth: Some(4),
        patch: 1,
        image: Some(128),
        width: Some(64),
        channels: Some(4),
        classes: Some(0),
        ..dit(Remat::None)
    });
    let peak = |axes: &Axes| {
        let p = step(&network, 2, axes);
        compile(&p.func, &Options::new(Target::Cpu).with_donate(&p.donate)).unwrap().exec.peak_bytes as f64
    };
    let ratio = peak(&[("sequence", 4)]) / peak(&[]);
    assert!(ratio <= 0.3, "a device of four has {ratio:.3} of the memory of one");

    let args: Vec<Array> = (0..3).map(|i| numbers(&Type::f32([1, 8192, 1, 16]), 3 * i, 2.0)).collect();
    let of = |mesh: Mesh, device: &str| {
        run(&Team::open(Some(device)).unwrap(), &attending(&mesh, 8192, false), &[], &args, 1)
    };
    let (one, four) = (of(Mesh::single(), "cpu"), of(Mesh::new(&[("sequence", 4)]), "cpu*4"));
    for (i, (a, b)) in four.iter().zip(&one).enumerate() {
        assert_near(&format!("result {i} at 8192 tokens"), a, b);
    }
}

/// Attention over tokens that are split as axis `sequence` is, and its gradient.
fn attending(mesh: &Mesh, tokens: usize, causal: bool) -> Func {
    let split = match mesh.devices() {
        1 => Sharding::replicated(),
        _ => Sharding::new(vec![vec![], vec!["sequence".into()], vec![], vec![]], vec![]),
    };
    let g = Graph::on_mesh("attend", mesh.clone());
    let [q, k, v] = ["q", "k", "v"].map(|n| g.param(n, Type::f32([1, tokens, 1, 16]).with_sharding(split.clone())));
    let (o, _) = attention(q, k, v, None, 0.25, causal);
    let f = g.finish(&[o.square().sum_all().reshard(Sharding::replicated()), o]).unwrap();
    dnx_autodiff::value_and_grad(&f, &[0, 1, 2]).unwrap()
}

/// A causal order hides the same keys where they go round.
#[test]
fn causal_rings_hide_what_comes_later() {
    let args: Vec<Array> = (0..3).map(|i| numbers(&Type::f32([1, 768, 1, 16]), 3 * i, 2.0)).collect();
    let of = |devices: usize, device: &str, causal: bool| {
        let mesh = if devices == 1 { Mesh::single() } else { Mesh::new(&[("sequence", devices)]) };
        run(&Team::open(Some(device)).unwrap(), &attending(&mesh, 768, causal), &[], &args, 1)
    };
    let (one, even) = (of(1, "cpu", true), of(1, "cpu", false));
    assert_ne!(one, even);
    for (devices, device) in [(4, "cpu*4"), (3, "cpu*3"), (2, "vulkan:llvmpipe*2")] {
        for (i, (a, b)) in of(devices, device, true).iter().zip(&one).enumerate() {
            assert_near(&format!("{device}: result {i}"), a, b);
        }
    }
}
