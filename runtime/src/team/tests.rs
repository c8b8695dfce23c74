//! Teams of cpu devices and of software GPUs against the reference interpreter, and what happens when a rank fails.

#[path = "../../../codegen/tests/collectives/mod.rs"]
pub(crate) mod collectives;

use super::transport::{Transport, channels};
use super::{StretchKind, Team};
use crate::device::Device;
use crate::{Buffer, Error};
use collectives::{DONATED, DTYPES, args, exchanges, gradients, meshes, working};
use dnx_codegen::exec::Step;
use dnx_codegen::{Options, compile};
use dnx_ir::interp::{Precision, eval_mesh};
use dnx_ir::{Array, Func, Graph, Mesh, Op, ReduceKind, Type};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Something that goes wrong for one rank at one meeting.
pub(super) struct Trap {
    rank: usize,
    meeting: usize,
    harm: Harm,
}

enum Harm {
    Panic,
    Hang(Duration),
}

/// Called by every rank before a meeting.
pub(super) fn spring(trap: &Mutex<Option<Trap>>, rank: usize, meeting: usize) {
    let sprung = trap.lock().unwrap().take_if(|t| (t.rank, t.meeting) == (rank, meeting));
    match sprung.map(|t| t.harm) {
        None => {}
        Some(Harm::Panic) => panic!("the trap of rank {rank}"),
        Some(Harm::Hang(time)) => std::thread::sleep(time),
    }
}

fn cpus(n: usize) -> Team {
    Team::new((0..n).map(|_| Device::cpu()).collect()).unwrap()
}

fn gpus(n: usize) -> Team {
    match Team::open(Some(&format!("vulkan:llvmpipe*{n}"))) {
        Ok(team) => team,
        Err(e) => panic!("{e}\nThis test needs software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    }
}

fn upload(team: &Team, args: &[Vec<Array>]) -> Vec<Vec<Buffer>> {
    team.ranks().map(|rank| team.upload_all(rank, &args[rank]).unwrap()).collect()
}

fn download(outputs: &[Vec<Buffer>]) -> Vec<Vec<Array>> {
    outputs.iter().map(|rank| rank.iter().map(|b| b.download().unwrap()).collect()).collect()
}

/// A program on the team against the reference; results must be the same bits when run again.
fn check(team: &Team, func: &Func, donate: &[(usize, usize)], tolerance: f64) {
    let args = args(func);
    let want = eval_mesh(func, &args, Precision::F32).unwrap();
    let program = team.compile(func, donate).unwrap_or_else(|e| panic!("{}: {e}", func.name));
    let bound = program.bind(&upload(team, &args)).unwrap();
    let mut first = None;
    for _ in 0..3 {
        for rank in team.ranks() {
            bound.inputs(rank).unwrap().iter().zip(&args[rank]).for_each(|(b, a)| b.write(a).unwrap());
        }
        bound.run().unwrap_or_else(|e| panic!("{}: {e}", func.name));
        let got: Vec<Vec<Array>> =
            team.ranks().map(|r| bound.outputs(r).unwrap().iter().map(|b| b.download().unwrap()).collect()).collect();
        for (rank, (got, want)) in got.iter().zip(&want).enumerate() {
            for (r, (g, w)) in got.iter().zip(want).enumerate() {
                let what = format!("{} on {:?}: rank {rank} result {r}", func.name, func.mesh.axes);
                assert_eq!(g.ty(), w.ty(), "{what}");
                let (g, w) = (g.to_f64_vec(), w.to_f64_vec());
                let scale = w.iter().fold(1.0f64, |m, x| m.max(x.abs()));
                for (i, (a, b)) in g.iter().zip(&w).enumerate() {
                    assert!((a - b).abs() <= tolerance * scale, "{what}, element {i}: {a} is not {b}");
                }
            }
        }
        assert_eq!(first.get_or_insert(got.clone()), &got, "{}: another run, other bits", func.name);
    }
}

#[test]
fn every_collective_of_every_dtype_on_cpus() {
    for mesh in [2, 3, 4].into_iter().flat_map(meshes) {
        let team = cpus(mesh.devices());
        DTYPES.iter().for_each(|&dtype| check(&team, &exchanges(&mesh, dtype), &[], 0.0));
    }
}

#[test]
fn every_collective_of_every_dtype_on_gpus() {
    for mesh in [2, 3, 4].into_iter().flat_map(meshes) {
        let team = gpus(mesh.devices());
        DTYPES.iter().for_each(|&dtype| check(&team, &exchanges(&mesh, dtype), &[], 0.0));
    }
}

#[test]
fn work_between_exchanges() {
    for mesh in [2, 3, 4].into_iter().flat_map(meshes) {
        let n = mesh.devices();
        for team in [cpus(n), gpus(n), gpus(n).with_overlap(true)] {
            check(&team, &working(&mesh), &[], 2e-5);
            check(&team, &working(&mesh), &DONATED, 2e-5);
            check(&team, &gradients(&mesh), &[(1, 0), (2, 1), (3, 2), (4, 3)], 2e-5);
        }
    }
}

/// Values too large for one task of one thread.
#[test]
fn large_values_are_shared_among_threads() {
    let mesh = Mesh::new(&[("a", 2)]);
    let g = Graph::on_mesh("large", mesh.clone());
    let x = g.param("x", Type::f32([2, 150_001]));
    let a = || "a".into();
    let sum = x.apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec![a()] }, &[]);
    let parts = x.apply(Op::ReduceScatter { axis: a(), dim: 0 }, &[]);
    let all = x.apply(Op::AllGather { axis: a(), dim: 0 }, &[]);
    let func = g.finish(&[sum, parts, all]).unwrap();
    check(&cpus(2), &func, &[], 0.0);
    check(&gpus(2), &func, &[], 0.0);
}

#[test]
fn all_ranks_run_the_same_kernels_and_know_their_coordinates() {
    let mesh = Mesh::new(&[("a", 2), ("b", 2)]);
    let g = Graph::on_mesh("where", mesh);
    let here = g.axis_index("a") * g.scalar(dnx_ir::DType::I32, 10.0) + g.axis_index("b");
    let func = g.finish(&[here]).unwrap();
    for team in [cpus(4), gpus(4)] {
        let program = team.compile(&func, &[]).unwrap();
        let out = download(&program.run(&vec![vec![]; 4]).unwrap());
        assert_eq!(out.iter().map(|o| o[0].to_f64_vec()[0]).collect::<Vec<_>>(), [0.0, 1.0, 10.0, 11.0]);
    }
}

#[test]
fn a_team_of_one_is_a_device() {
    let g = Graph::new("one");
    let func = g.finish(&[g.param("x", Type::f32([3])).exp()]).unwrap();
    check(&cpus(1), &func, &[], 2e-5);
}

#[test]
fn what_is_no_team_is_refused() {
    let refused = |devices: Vec<Device>, why: &str| {
        let e = Team::new(devices).unwrap_err().to_string();
        assert!(e.contains(why), "{e:?} does not say {why:?}");
    };
    refused(vec![], "none is given");
    let cpu = Device::cpu();
    refused(vec![Device::cpu(), cpu.clone(), cpu], "ranks 1 and 2 are one device");
    refused(vec![Device::cpu(), Device::open(Some("vulkan:llvmpipe")).unwrap()], "cpu devices alone or GPUs alone");

    let team = cpus(3);
    let func = gradients(&Mesh::new(&[("a", 2)]));
    let e = team.compile(&func, &[]).err().unwrap().to_string();
    assert!(e.contains("mesh of 2 devices") && e.contains("the team has 3"), "{e}");
    let e = Device::cpu().compile(&func, &[]).err().unwrap().to_string();
    assert!(e.contains("load it with a team"), "{e}");
    assert!(team.upload(3, &Array::f32([1], &[0.0])).unwrap_err().to_string().contains("no rank 3"));

    let program = cpus(2).compile(&func, &[]).unwrap();
    let e = program.bind(&[vec![]]).err().unwrap().to_string();
    assert!(e.contains("2 ranks") && e.contains("given for 1"), "{e}");
    let others = upload(&cpus(2), &args(&func));
    let e = program.bind(&others).err().unwrap().to_string();
    assert!(e.contains("rank 0") && e.contains("lives on device"), "{e}");
}

/// A program of four meetings.
fn chain_of(devices: usize) -> Func {
    let g = Graph::on_mesh("chain", Mesh::new(&[("a", devices)]));
    let mut x = g.param("x", Type::f32([5, 7]));
    for _ in 0..4 {
        x = x.sin().apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["a".into()] }, &[]);
    }
    g.finish(&[x]).unwrap()
}

/// [`chain_of`] on a team, and what it should give.
fn chain(team: &Team) -> (super::TeamBound, Vec<Vec<Array>>) {
    let func = chain_of(team.size());
    let args = args(&func);
    let want = eval_mesh(&func, &args, Precision::F32).unwrap();
    let bound = team.compile(&func, &[]).unwrap().bind(&upload(team, &args)).unwrap();
    assert_eq!(bound.program().exec().steps.iter().filter(|s| matches!(s, Step::Collective { .. })).count(), 4);
    (bound, want)
}

fn results(bound: &super::TeamBound) -> Vec<Vec<Array>> {
    bound.run().unwrap();
    download(&bound.program().team().ranks().map(|r| bound.outputs(r).unwrap().to_vec()).collect::<Vec<_>>())
}

#[test]
fn a_rank_that_fails_ends_the_run_of_all_and_the_next_run_is_whole() {
    for team in [cpus(3), gpus(3)] {
        let (bound, _) = chain(&team);
        let before = results(&bound);
        for rank in 0..3 {
            for meeting in 0..4 {
                bound.trap(Trap { rank, meeting, harm: Harm::Panic });
                let begin = Instant::now();
                let e = bound.run().unwrap_err();
                assert!(begin.elapsed() < Duration::from_secs(5));
                assert!(matches!(&e, Error::Rank { rank: r, .. } if *r == rank), "{e}");
                let text = e.to_string();
                assert!(text.contains(&format!("the trap of rank {rank}")) && text.contains("`chain`"), "{text}");
                assert_eq!(results(&bound), before);
            }
        }
    }
}

/// Exchanges that have begun when a rank fails are given up, and the next run is whole.
#[test]
fn a_rank_that_fails_while_exchanges_are_under_way() {
    let team = gpus(2).with_overlap(true);
    let func = gradients(&Mesh::new(&[("a", 2)]));
    let exec = compile(&func, &team.options().with_bucket_bytes(1)).unwrap().exec;
    let args = args(&func);
    let want = eval_mesh(&func, &args, Precision::F32).unwrap();
    let bound = team.load(exec).unwrap().bind(&upload(&team, &args)).unwrap();
    let before = results(&bound);
    for (got, want) in before.iter().flatten().zip(want.iter().flatten()) {
        let (got, want) = (got.to_f64_vec(), want.to_f64_vec());
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-5), "{got:?} is not {want:?}");
    }
    for meeting in 0..4 {
        bound.trap(Trap { rank: 1, meeting, harm: Harm::Panic });
        assert!(bound.run().unwrap_err().to_string().contains("the trap of rank 1"));
        assert_eq!(results(&bound), before);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_and_a_slow_one_is_waited_for() {
    let team = cpus(3).with_timeout(Duration::from_secs(1));
    let (bound, _) = chain(&team);
    let before = results(&bound);
    bound.trap(Trap { rank: 1, meeting: 2, harm: Harm::Hang(Duration::from_millis(500)) });
    assert_eq!(results(&bound), before);

    // It comes back within the grace of the run, and the team goes on.
    bound.trap(Trap { rank: 1, meeting: 2, harm: Harm::Hang(Duration::from_secs(2)) });
    let e = bound.run().unwrap_err();
    assert!(matches!(&e, Error::Missing { ranks, .. } if ranks == &[1]), "{e}");
    let text = e.to_string();
    assert!(text.contains("rank 1 of a team did not come") && text.contains("all_reduce"), "{text}");
    assert_eq!(results(&bound), before);

    // It does not, and the team says so.
    bound.trap(Trap { rank: 2, meeting: 0, harm: Harm::Hang(Duration::from_secs(6)) });
    let begin = Instant::now();
    assert!(bound.run().unwrap_err().to_string().contains("rank 2"));
    assert!(begin.elapsed() < Duration::from_secs(5));
    let text = bound.run().unwrap_err().to_string();
    assert!(text.contains("can't run any more") && text.contains("rank 2"), "{text}");
}

#[test]
fn a_lost_gpu_ends_the_run_of_all() {
    let team = gpus(2);
    let (bound, _) = chain(&team);
    bound.run().unwrap();
    team.devices()[1].lose();
    let e = bound.run().unwrap_err();
    assert!(matches!(&e, Error::Rank { rank: 1, source, .. } if matches!(**source, Error::Gpu(_))), "{e}");
}

#[test]
fn a_timeline_has_every_rank_at_work_waiting_and_exchanging() {
    for team in [cpus(2), gpus(2)] {
        let (bound, _) = chain(&team);
        let steps = &bound.program().exec().steps;
        let begin = Instant::now();
        let line = bound.timeline().unwrap();
        assert!(line.end() <= begin.elapsed());
        for rank in team.ranks() {
            let own: Vec<_> = line.stretches.iter().filter(|s| s.rank == rank).collect();
            assert!(own.windows(2).all(|w| w[0].end <= w[1].begin && w[0].begin <= w[0].end), "{own:?}");
            let exchanges = own.iter().filter(|s| s.kind == StretchKind::Exchange).map(|s| s.step);
            let meetings = steps.iter().enumerate().filter(|(_, s)| matches!(s, Step::Collective { .. }));
            assert_eq!(exchanges.collect::<Vec<_>>(), meetings.map(|(i, _)| i).collect::<Vec<_>>());
            assert!(line.total(rank, StretchKind::Compute) > Duration::ZERO);
        }
        let trace = line.trace("chain");
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 3 * 2 + line.stretches.len());
        assert!(events.iter().any(|e| e["cat"] == "exchange" && e["name"].as_str().unwrap().contains("all_reduce")));
    }
}

#[test]
fn who_is_kept_from_a_meeting_is_not_blamed() {
    // Rank 3 hangs before its meeting with 2; 0 and 1 then wait for 2 and 3 elsewhere.
    let team = cpus(4).with_timeout(Duration::from_millis(700));
    let g = Graph::on_mesh("both", Mesh::new(&[("a", 2), ("b", 2)]));
    let mut x = g.param("x", Type::f32([3]));
    for axis in ["b", "a", "b", "a"] {
        x = x.sin().apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec![axis.into()] }, &[]);
    }
    let func = g.finish(&[x]).unwrap();
    let bound = team.compile(&func, &[]).unwrap().bind(&upload(&team, &args(&func))).unwrap();
    for meeting in [0, 2] {
        bound.trap(Trap { rank: 3, meeting, harm: Harm::Hang(Duration::from_secs(2)) });
        let e = bound.run().unwrap_err();
        assert!(matches!(&e, Error::Missing { ranks, .. } if ranks == &[3]), "{e}");
        bound.run().unwrap();
    }
}

/// Teams that are one over several processes, each standing for one process with so many devices.
fn processes(devices: &[usize], timeout: Duration, open: impl Fn(usize) -> Vec<Device> + Sync) -> Vec<Team> {
    let ends = channels(devices.len());
    let open = &open;
    std::thread::scope(|scope| {
        let join =
            |(end, &n): (Arc<dyn Transport>, &usize)| scope.spawn(move || Team::across(open(n), end, timeout).unwrap());
        let teams: Vec<_> = ends.into_iter().zip(devices).map(join).collect();
        teams.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn several_cpus(n: usize) -> Vec<Device> {
    (0..n).map(|_| Device::cpu()).collect()
}

/// Runs a program over several processes; the bits must be those of one process.
fn check_across(teams: &[Team], one: &Team, func: &Func) {
    let args = args(func);
    let want = download(&one.compile(func, &[]).unwrap().run(&upload(one, &args)).unwrap());
    let of = |team: &Team| {
        let program = team.compile(func, &[]).unwrap();
        let inputs: Vec<Vec<Buffer>> = team.ranks().map(|r| team.upload_all(r, &args[r]).unwrap()).collect();
        let bound = program.bind(&inputs).unwrap();
        (0..2).for_each(|_| bound.run().unwrap());
        team.ranks().map(|r| (r, bound.outputs(r).unwrap().to_vec())).collect::<Vec<_>>()
    };
    let of = &of;
    let got: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = teams.iter().map(|team| scope.spawn(move || of(team))).collect();
        runs.into_iter().flat_map(|r| r.join().unwrap()).collect()
    });
    assert_eq!(got.len(), one.size());
    for (rank, outputs) in got {
        for (r, output) in outputs.iter().enumerate() {
            assert_eq!(output.download().unwrap(), want[rank][r], "{}: rank {rank} result {r}", func.name);
        }
    }
}

#[test]
fn several_processes_give_the_bits_of_one() {
    let limit = Duration::from_secs(10);
    for (devices, meshes) in [
        (vec![1, 1], meshes(2)),
        (vec![1, 2], meshes(3)),
        (vec![1, 1, 1, 1], meshes(4)),
        (vec![2, 2], meshes(4)),
        (vec![3, 1], meshes(4)),
        (vec![4, 2], meshes(6)),
    ] {
        let teams = processes(&devices, limit, several_cpus);
        let first: Vec<usize> = teams.iter().map(|t| t.ranks().start).collect();
        assert_eq!(first, (0..devices.len()).map(|p| devices[..p].iter().sum::<usize>()).collect::<Vec<_>>());
        let one = cpus(devices.iter().sum());
        for mesh in meshes {
            DTYPES.iter().for_each(|&dtype| check_across(&teams, &one, &exchanges(&mesh, dtype)));
            check_across(&teams, &one, &working(&mesh));
            check_across(&teams, &one, &gradients(&mesh));
        }
    }
    let teams = processes(&[2, 1], limit, |n| Device::open_all(Some(&format!("vulkan:llvmpipe*{n}"))).unwrap());
    check_across(&teams, &gpus(3), &working(&meshes(3)[0]));
}

/// What each process says of a run of [`chain`] in which one of them sets a trap.
fn run_across(teams: &[Team], trap: impl Fn(usize, &super::TeamBound) + Sync) -> Vec<(Result<(), Error>, Duration)> {
    let trap = &trap;
    std::thread::scope(|scope| {
        let runs: Vec<_> = teams
            .iter()
            .enumerate()
            .map(|(process, team)| {
                scope.spawn(move || {
                    let func = chain_of(team.size());
                    let inputs: Vec<Vec<Buffer>> =
                        team.ranks().map(|r| team.upload_all(r, &args(&func)[r]).unwrap()).collect();
                    let bound = team.compile(&func, &[]).unwrap().bind(&inputs).unwrap();
                    bound.run().unwrap();
                    trap(process, &bound);
                    let begin = Instant::now();
                    let outcome = bound.run();
                    let time = begin.elapsed();
                    if outcome.is_err() {
                        assert!(bound.run().is_err());
                    }
                    (outcome, time)
                })
            })
            .collect();
        runs.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

#[test]
fn a_rank_that_fails_ends_the_run_in_all_processes() {
    let teams = processes(&[2, 1, 1], Duration::from_secs(5), several_cpus);
    let outcomes = run_across(&teams, |process, bound| {
        if process == 1 {
            bound.trap(Trap { rank: 0, meeting: 2, harm: Harm::Panic });
        }
    });
    for (process, (outcome, time)) in outcomes.iter().enumerate() {
        let text = outcome.as_ref().unwrap_err().to_string();
        assert!(text.contains("rank 2 of a team") && text.contains("the trap of rank 0"), "process {process}: {text}");
        assert!(*time < Duration::from_secs(3), "process {process} took {time:?}");
    }
}

/// A transport that falls silent when it is told to.
struct Mute {
    inner: Arc<dyn Transport>,
    silent: Arc<std::sync::atomic::AtomicBool>,
}

impl Transport for Mute {
    fn processes(&self) -> usize {
        self.inner.processes()
    }

    fn process(&self) -> usize {
        self.inner.process()
    }

    fn post(&self, to: usize, tag: u32, bytes: &[u8]) -> Result<(), String> {
        if self.silent.load(std::sync::atomic::Ordering::SeqCst) { Ok(()) } else { self.inner.post(to, tag, bytes) }
    }

    fn take(&self, from: usize, tag: u32, into: &mut Vec<u8>) -> Result<bool, String> {
        self.inner.take(from, tag, into)
    }

    fn is_settled(&self, _tag: u32) -> Result<bool, String> {
        Ok(true)
    }
}

#[test]
fn a_process_that_dies_is_named_and_a_busy_one_is_waited_for() {
    let timeout = Duration::from_secs(2);
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut ends = channels(2);
    ends[1] = Arc::new(Mute { inner: ends[1].clone(), silent: silent.clone() });
    let teams: Vec<Team> = std::thread::scope(|scope| {
        let join = |end| scope.spawn(move || Team::across(several_cpus(1), end, timeout).unwrap());
        let teams: Vec<_> = ends.into_iter().map(join).collect();
        teams.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // Longer than the timeout, but alive, and before it is at work: it may write a checkpoint.
    let late = run_across(&teams, |process, _| {
        if process == 1 {
            std::thread::sleep(timeout * 2);
        }
    });
    late.iter().for_each(|(outcome, _)| assert!(outcome.is_ok(), "{outcome:?}"));
    let dead = run_across(&teams, |process, bound| {
        if process == 1 {
            bound.trap(Trap { rank: 0, meeting: 1, harm: Harm::Hang(timeout * 3) });
            silent.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let (outcome, time) = &dead[0];
    let text = outcome.as_ref().unwrap_err().to_string();
    assert!(text.contains("rank 1 of a team did not come"), "{text}");
    assert!(*time < timeout * 2, "{time:?}");
}

/// A rank that gets no further in a run is named though its process lives on, also where others wait for those that wait
/// for it; one that is slow, but gets further, is not.
#[test]
fn a_rank_that_hangs_is_named_though_its_process_lives() {
    let timeout = Duration::from_secs(2);
    let teams = processes(&[1, 1, 1], timeout, several_cpus);
    let hung = run_across(&teams, |process, bound| {
        if process == 2 {
            bound.trap(Trap { rank: 0, meeting: 3, harm: Harm::Hang(timeout * 4) });
        }
    });
    for (process, (outcome, time)) in hung.iter().enumerate().take(2) {
        let text = outcome.as_ref().unwrap_err().to_string();
        assert!(text.contains("rank 2 of a team did not come"), "process {process}: {text}");
        assert!(timeout < *time && *time < timeout * 2, "process {process} took {time:?}");
    }

    let teams = processes(&[1, 1], timeout, several_cpus);
    let slow = run_across(&teams, |process, bound| {
        if process == 1 {
            bound.trap(Trap { rank: 0, meeting: 1, harm: Harm::Hang(timeout / 2) });
        }
    });
    slow.iter().for_each(|(outcome, _)| assert!(outcome.is_ok(), "{outcome:?}"));
}

#[test]
fn processes_that_run_different_programs_are_told() {
    let teams = processes(&[1, 1], Duration::from_secs(5), several_cpus);
    let errors: Vec<String> = std::thread::scope(|scope| {
        let load = |(i, team)| {
            scope.spawn(move || {
                let team: &Team = team;
                let func = if i == 0 { chain_of(2) } else { gradients(&Mesh::new(&[("a", 2)])) };
                team.compile(&func, &[]).err().unwrap().to_string()
            })
        };
        let loads: Vec<_> = teams.iter().enumerate().map(load).collect();
        loads.into_iter().map(|l| l.join().unwrap()).collect()
    });
    assert!(errors.iter().all(|e| e.contains("differ in program")), "{errors:?}");
}

#[test]
fn ranks_of_one_team_may_be_bound_to_several_programs() {
    let team = cpus(2);
    let ((a, _), (b, _)) = (chain(&team), chain(&team));
    let want = results(&a);
    std::thread::scope(|scope| {
        for bound in [&a, &b] {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(results(bound), want)));
        }
    });
}

#[test]
fn targets_have_what_all_devices_can_do() {
    let team = gpus(2);
    assert_eq!(team.target(), team.devices()[0].target());
    let mut limits = *team.target().gpu().unwrap();
    (limits.storage_buffers, limits.subgroup, limits.f16) = (10, None, false);
    let least = super::common(team.target(), dnx_codegen::Target::Gpu(limits));
    let least = *least.gpu().unwrap();
    assert_eq!((least.storage_buffers, least.subgroup, least.f16), (10, None, false));
    // What is compiled for the least runs on all.
    let func = working(&Mesh::new(&[("a", 2)]));
    let exec = compile(&func, &Options::new(dnx_codegen::Target::Gpu(least))).unwrap().exec;
    let args = args(&func);
    team.load(exec).unwrap().run(&upload(&team, &args)).unwrap();
}
