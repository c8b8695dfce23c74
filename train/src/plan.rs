//! What a training step would take on a mesh of devices that is not at hand.
//!
//! The program of one device is compiled as it would run; from it come memory, operations, bytes and what is exchanged. The
//! model of time:
//!
//! * arithmetic: `slowdown * sum over kernels of max(flops / F, bytes / B)`, with the rates `F` and `B` of a device. The
//!   slowdown is measured over floor, seen where the step of one device was run, or 1;
//! * exchange: `ring bytes / L + meetings * (n - 1) * latency`, over a link of `L` bytes a second between neighbours of a
//!   ring of `n` devices;
//! * a step: arithmetic + exchange. Nothing is taken to overlap;
//! * devices that share the cores of one machine are measured with their share of them. Where there are more devices than
//!   cores, all of it takes as many times as long: `crowding` is devices over cores, or 1.
//!
//! The *efficiency* is the arithmetic of the whole batch on one device, shared evenly, over the step.

use crate::estimate::Rates;
use crate::{Error, Result};
use dnx_codegen::exec::Executable;
use dnx_codegen::stats::{Stats, StepCost};
use dnx_ir::Array;
use dnx_models::step::TrainProgram;
use dnx_runtime::Device;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Timed runs of one device's step; the median counts.
const RUNS: usize = 5;

/// The machine that is planned for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Bytes a second between two devices that are neighbours in a ring.
    pub link: f64,
    /// Seconds until the first byte arrives.
    pub latency: f64,
    /// What a device does; `None`: what the device at hand is measured to do.
    pub rates: Option<Rates>,
}

impl Machine {
    /// Parses `link=100Gbit,latency=5us,gpu=60T:3.3T`: a link in bits (`bit`) or bytes (`B`) a second, and a device's
    /// floating-point operations and bytes a second, with `k`, `M`, `G` or `T`. `gpu=here`, or none, measures the device
    /// at hand; without a latency it is 10 us.
    ///
    /// # Errors
    /// Says which part can't be read.
    pub fn parse(text: &str) -> Result<Machine> {
        let wrong = |part: &str| {
            Error::Usage(format!("--plan {text}: {part} can't be read; write link=100Gbit,latency=5us,gpu=60T:3.3T"))
        };
        let mut machine = Machine { link: f64::NAN, latency: 10e-6, rates: None };
        for part in text.split(',').map(str::trim) {
            let (key, value) = part.split_once('=').ok_or_else(|| wrong(part))?;
            match key {
                "link" => {
                    let (number, bits) = match (value.strip_suffix("bit"), value.strip_suffix('B')) {
                        (Some(number), _) => (number, 8.0),
                        (None, Some(number)) => (number, 1.0),
                        (None, None) => return Err(wrong(part)),
                    };
                    machine.link = scaled(number).ok_or_else(|| wrong(part))? / bits;
                }
                "latency" => {
                    let (number, unit) = match (value.strip_suffix("us"), value.strip_suffix("ms")) {
                        (Some(number), _) => (number, 1e-6),
                        (None, Some(number)) => (number, 1e-3),
                        (None, None) => return Err(wrong(part)),
                    };
                    let number = number.parse::<f64>().ok().filter(|n| (0.0..1e6).contains(n));
                    machine.latency = number.ok_or_else(|| wrong(part))? * unit;
                }
                "gpu" if value == "here" => machine.rates = None,
                "gpu" => {
                    let (flops, bytes) = value.split_once(':').ok_or_else(|| wrong(part))?;
                    let number = |s: &str| scaled(s).ok_or_else(|| wrong(part));
                    machine.rates = Some(Rates { flops: number(flops)?, bytes: number(bytes)? });
                }
                _ => return Err(wrong(part)),
            }
        }
        if machine.link.is_nan() {
            return Err(Error::Usage(format!("--plan {text}: says no link; write link=100Gbit")));
        }
        Ok(machine)
    }
}

/// A number with `k`, `M`, `G` or `T`, at least a thousand: no machine is slower, and no time overflows.
fn scaled(text: &str) -> Option<f64> {
    let text = text.trim();
    let factor = match text.chars().last()? {
        'k' => 1e3,
        'M' => 1e6,
        'G' => 1e9,
        'T' => 1e12,
        _ => 1.0,
    };
    let number = if factor == 1.0 { text } else { &text[..text.len() - 1] };
    number.parse::<f64>().ok().map(|n| n * factor).filter(|n| (1e3..1e30).contains(n))
}

/// The least time of a program's arithmetic at these rates.
pub fn floor(exec: &Executable, rates: Rates) -> Duration {
    let of = |cost: StepCost| match cost.kind {
        "collective" => 0.0,
        _ => (cost.flops as f64 / rates.flops).max(cost.bytes as f64 / rates.bytes),
    };
    Duration::from_secs_f64(exec.steps.iter().map(|step| of(StepCost::of(exec, step))).sum())
}

/// What a device at hand does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Here {
    /// Its rates.
    pub rates: Rates,
    /// What a step takes over the floor at these rates.
    pub slowdown: f64,
    /// How many devices share a core, or 1.
    pub crowding: f64,
}

impl Here {
    /// A device that is not at hand, at its rates.
    pub fn at(rates: Rates) -> Here {
        Here { rates, slowdown: 1.0, crowding: 1.0 }
    }

    /// Measures a device with a step of one device, one of `sharing` that share the cores of this machine evenly.
    ///
    /// # Errors
    /// As [`slowdown`].
    pub fn measured(device: &Device, sharing: usize, program: &TrainProgram, exec: &Executable) -> Result<Here> {
        let cores = rayon::current_num_threads();
        let share = rayon::ThreadPoolBuilder::new().num_threads((cores / sharing.max(1)).max(1)).build();
        let share = share.map_err(|e| Error::Usage(format!("--plan gpu=here: no threads to measure with: {e}")))?;
        share.install(|| {
            let rates = Rates::of(device)?;
            let crowding = (sharing as f64 / cores as f64).max(1.0);
            Ok(Here { rates, slowdown: slowdown(device, program, exec, rates)?, crowding })
        })
    }
}

/// What one step of a program takes on a device, over its floor. The state is that before the first step, the batch zeros.
///
/// # Errors
/// If the device has no room for it, or fails.
pub fn slowdown(device: &Device, program: &TrainProgram, exec: &Executable, rates: Rates) -> Result<f64> {
    let mut inputs = program.initial_state(0);
    inputs.extend(program.constants(0));
    inputs.extend(program.batch.iter().map(|port| Array::zeros(port.ty.clone())));
    let bound = device.load(exec.clone())?.bind(&device.upload_all(&inputs)?)?;
    let last = program.metric_results().start;
    let mut times = vec![];
    for _ in 0..=RUNS {
        let began = Instant::now();
        bound.run()?;
        // Reading a result back waits for the device.
        bound.outputs()[last].download()?;
        times.push(began.elapsed());
    }
    // The first warms up.
    times.remove(0);
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() / floor(exec, rates).as_secs_f64().max(1e-12))
}

/// A step on a mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Axes of the mesh and their sizes.
    pub mesh: Vec<(String, usize)>,
    /// Peak memory of a device in bytes.
    pub memory: u64,
    /// Arithmetic of a device.
    pub arithmetic: Duration,
    /// Per kind and axes of collectives: a line about it, the bytes over a link, and the time.
    pub exchange: Vec<(String, u64, Duration)>,
    /// The arithmetic of the whole batch on one device.
    pub alone: Duration,
}

impl Plan {
    /// The plan of a step compiled for a mesh; `one` is the step of the whole batch on one device.
    pub fn of(exec: &Executable, machine: Machine, here: Here, one: &Executable) -> Plan {
        let arithmetic = |exec: &Executable| floor(exec, here.rates).mul_f64(here.slowdown * here.crowding);
        let stats = Stats::of(exec, 0, 0);
        let exchange = stats.collectives.iter().map(|c| {
            let waits = (c.steps * c.devices.saturating_sub(1)) as f64 * machine.latency;
            let time = Duration::from_secs_f64((c.ring_bytes as f64 / machine.link + waits) * here.crowding);
            let what = format!("{} of {} along {}, {} meetings", c.kind, c.devices, c.axes, c.steps);
            (what, c.ring_bytes, time)
        });
        Plan {
            mesh: exec.mesh.axes.iter().map(|(name, size)| (name.to_string(), *size)).collect(),
            memory: exec.peak_bytes,
            arithmetic: arithmetic(exec),
            exchange: exchange.collect(),
            alone: arithmetic(one),
        }
    }

    /// The number of devices.
    pub fn devices(&self) -> usize {
        self.mesh.iter().map(|(_, size)| size).product()
    }

    /// A step.
    pub fn step(&self) -> Duration {
        self.arithmetic + self.exchange.iter().map(|(_, _, time)| *time).sum::<Duration>()
    }

    /// One device's time shared evenly over the step.
    pub fn efficiency(&self) -> f64 {
        self.alone.as_secs_f64() / self.devices() as f64 / self.step().as_secs_f64().max(1e-12)
    }

    /// The plan as lines of text.
    pub fn table(&self) -> String {
        let mesh: Vec<String> = self.mesh.iter().map(|(name, size)| format!("{name}={size}")).collect();
        let ms = |t: Duration| format!("{:.3} ms", t.as_secs_f64() * 1e3);
        let mut out = String::new();
        let mut line = |what: &str, size: String, time: String| {
            let _ = writeln!(out, "{what:<56} {size:>12} {time:>14}");
        };
        line(&format!("plan for {} ({} devices)", mesh.join(","), self.devices()), String::new(), String::new());
        line("memory of a device", crate::config::Bytes(self.memory).to_string(), String::new());
        line("arithmetic", String::new(), ms(self.arithmetic));
        for (what, bytes, time) in &self.exchange {
            line(what, crate::config::Bytes(*bytes).to_string(), ms(*time));
        }
        line("step", String::new(), ms(self.step()));
        line("efficiency", String::new(), format!("{:.1} %", 100.0 * self.efficiency()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum over two devices, and the same on one.
    fn compiled(devices: usize) -> Executable {
        use dnx_ir::{Graph, Mesh, Sharding, Type};
        let axis: dnx_ir::AxisName = "data".into();
        let mesh = if devices == 1 { Mesh::single() } else { Mesh::new(&[("data", devices)]) };
        let split = if devices == 1 { Sharding::replicated() } else { Sharding::new(vec![vec![axis], vec![]], vec![]) };
        let g = Graph::on_mesh("f", mesh);
        let x = g.param("x", Type::f32([64, 256]).with_sharding(split));
        let f = g.finish(&[x.exp().sum(&[0]).reshard(Sharding::replicated())]).unwrap();
        dnx_codegen::compile(&f, &dnx_codegen::Options::default()).unwrap().exec
    }

    /// Four devices on two cores take twice as long for everything; the efficiency is that of the even share.
    #[test]
    fn devices_that_share_cores_take_their_time() {
        let machine = Machine::parse("link=1MB,latency=1ms,gpu=1M:1M").unwrap();
        let here = Here { slowdown: 3.0, ..Here::at(machine.rates.unwrap()) };
        let (one, four) = (compiled(1), compiled(4));
        let plan = Plan::of(&four, machine, here, &one);
        let close =
            |a: Duration, seconds: f64| assert!((a.as_secs_f64() / seconds - 1.0).abs() < 1e-6, "{a:?} {seconds}");
        // 16 rows: an exponential and an addition per element, of which a device has 4096; then 256 sums.
        close(plan.arithmetic, 3.0 * floor(&four, here.rates).as_secs_f64());
        assert!(floor(&four, here.rates).as_secs_f64() >= 2.0 * 4096.0 / 1e6);
        // A ring of four sends 2 * 3 / 4 of 1 KiB, and waits for three neighbours.
        close(plan.exchange[0].2, 1536.0 / 1e6 + 3.0 * 1e-3);
        let crowded = Plan::of(&four, machine, Here { crowding: 2.0, ..here }, &one);
        close(crowded.step(), 2.0 * plan.step().as_secs_f64());
        assert!((crowded.efficiency() - plan.efficiency()).abs() < 1e-6);
    }

    #[test]
    fn machines_are_read() {
        let m = Machine::parse("link=100Gbit,latency=5us,gpu=60T:3.3T").unwrap();
        assert_eq!(m.link, 12.5e9);
        assert_eq!(m.latency, 5.0 * 1e-6);
        assert_eq!(m.rates, Some(Rates { flops: 60e12, bytes: 3.3e12 }));
        assert_eq!(Machine::parse("link=900GB").unwrap().link, 900e9);
        assert_eq!(Machine::parse("gpu=here,link=1GB").unwrap().rates, None);
        for (text, part) in [
            ("link=100", "link=100"),
            ("gpu=1T:1T", "no link"),
            ("link=1GB,gpu=fast", "gpu=fast"),
            ("link=1GB,latency=5", "latency=5"),
            ("speed=1", "speed=1"),
            ("link=-1GB", "link=-1GB"),
            ("link=1GB,latency=-5us", "latency=-5us"),
            ("link=0.001bit", "link=0.001bit"),
            ("link=1GB,gpu=NaN:1T", "gpu=NaN:1T"),
        ] {
            let message = Machine::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
