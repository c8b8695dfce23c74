//! Teams over MPI, checked and measured: `mpirun -n 4 target/debug/examples/mpi check 2`. See `tests/mpi`.
//!
//! * `check K`: every process joins with `K` cpu devices; every collective of every dtype, and work between them, must
//!   give the bits of one process with all the devices.
//! * `die P HOW`: process `P` ends in the middle of a run (`exit`, or `fail` with an error of its own); the others must
//!   say so within ten seconds.
//! * `measure BYTES`: the time of an all-reduce of so many bytes.

#[path = "../../codegen/tests/collectives/mod.rs"]
mod collectives;

use collectives::{DTYPES, args, exchanges, gradients, working};
use dnx_ir::{Array, Func, Graph, Mesh, Op, ReduceKind, Type};
use dnx_runtime::team::TIMEOUT;
use dnx_runtime::team::transport::mpi::Mpi;
use dnx_runtime::{Buffer, Device, Result, Team, TeamBound, Transport};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mpi = Mpi::join().unwrap_or_else(|e| fail(&e.to_string()));
    let outcome = match words[..] {
        ["check", k] => check(&mpi, k.parse().expect("a number of devices")),
        ["die", process, how] => die(&mpi, process.parse().expect("a process"), how),
        ["measure", bytes] => measure(&mpi, bytes.parse().expect("a number of bytes")),
        _ => fail("check K | die P HOW | measure BYTES"),
    };
    outcome.and_then(|()| mpi.finish()).unwrap_or_else(|e| fail(&e.to_string()));
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(1)
}

fn cpus(n: usize) -> Vec<Device> {
    (0..n).map(|_| Device::cpu()).collect()
}

fn across(mpi: &Arc<Mpi>, devices: usize) -> Result<Team> {
    Team::across(cpus(devices), mpi.clone(), TIMEOUT)
}

fn bind(team: &Team, func: &Func, args: &[Vec<Array>]) -> Result<TeamBound> {
    let inputs = team.ranks().map(|r| team.upload_all(r, &args[r])).collect::<Result<Vec<Vec<Buffer>>>>()?;
    team.compile(func, &[])?.bind(&inputs)
}

fn check(mpi: &Arc<Mpi>, devices: usize) -> Result<()> {
    let team = across(mpi, devices)?;
    let n = team.size();
    let one = Team::new(cpus(n))?;
    let mut meshes = vec![Mesh::new(&[("a", n)])];
    if n % 2 == 0 && n > 2 {
        meshes.push(Mesh::new(&[("a", n / 2), ("b", 2)]));
        meshes.push(Mesh::new(&[("a", 2), ("b", n / 2)]));
    }
    let mut funcs: Vec<Func> = meshes.iter().flat_map(|m| DTYPES.map(|dtype| exchanges(m, dtype))).collect();
    funcs.extend(meshes.iter().flat_map(|m| [working(m), gradients(m)]));
    funcs.push(large(n, 80 << 20));
    for func in &funcs {
        let args = args(func);
        let (got, want) = (bind(&team, func, &args)?, bind(&one, func, &args)?);
        want.run()?;
        for _ in 0..2 {
            got.run()?;
            for rank in team.ranks() {
                for (r, (got, want)) in got.outputs(rank)?.iter().zip(want.outputs(rank)?).enumerate() {
                    if got.download()? != want.download()? {
                        fail(&format!("{}: result {r} of rank {rank} has other bits", func.name));
                    }
                }
            }
        }
    }
    if mpi.process() == 0 {
        println!("{} programs on {n} ranks of {} processes: the bits of one process", funcs.len(), mpi.processes());
    }
    Ok(())
}

/// An all-reduce of so many bytes.
fn large(devices: usize, bytes: usize) -> Func {
    let g = Graph::on_mesh("large", Mesh::new(&[("a", devices)]));
    let x = g.param("x", Type::f32([bytes / 4]));
    let sum = x.apply(Op::AllReduce { kind: ReduceKind::Sum, axes: vec!["a".into()] }, &[]);
    g.finish(&[sum]).expect("it is well formed")
}

fn die(mpi: &Arc<Mpi>, process: usize, how: &str) -> Result<()> {
    let team = across(mpi, 1)?;
    let func = large(team.size(), 4000);
    let bound = bind(&team, &func, &args(&func))?;
    bound.run()?;
    if mpi.process() == process {
        match how {
            "exit" => std::process::abort(),
            "hang" => std::thread::sleep(Duration::from_secs(3600)),
            _ => {
                // A rank of this process fails: another shape than the others'.
                let other = large(team.size(), 8000);
                bind(&team, &other, &args(&other))?.run()?;
            }
        }
    }
    let begin = Instant::now();
    let outcome = if how == "fail" { bind(&team, &func, &args(&func)).and_then(|b| b.run()) } else { bound.run() };
    match outcome {
        Ok(()) => fail("the run went on as if nothing had happened"),
        Err(e) => fail(&format!("process {} after {:.1} s: {e}", mpi.process(), begin.elapsed().as_secs_f64())),
    }
}

fn measure(mpi: &Arc<Mpi>, bytes: usize) -> Result<()> {
    let team = across(mpi, 1)?;
    let func = large(team.size(), bytes);
    let bound = bind(&team, &func, &args(&func))?;
    bound.run()?;
    let mut times: Vec<f64> = (0..10)
        .map(|_| {
            let begin = Instant::now();
            bound.run().map(|()| begin.elapsed().as_secs_f64())
        })
        .collect::<Result<_>>()?;
    times.sort_by(f64::total_cmp);
    if mpi.process() == 0 {
        println!("all-reduce of {bytes} bytes on {} processes: {:.1} ms", mpi.processes(), times[5] * 1e3);
    }
    Ok(())
}
