//! Teams: several devices as one. All run the same per-device program, each on its own thread; at every collective
//! they meet and exchange values through host memory.
//!
//! * A [`Team`] is the devices. The *rank* of a device is its id in the mesh of the programs: the first device is rank
//!   0, and a program's mesh has as many devices as the team.
//! * A [`TeamProgram`] is a program loaded on all of them, a [`TeamBound`] one with its inputs fixed, as [`Program`]
//!   and [`crate::Bound`] are for one device. Inputs and outputs are lists per rank of [`Buffer`]s.
//!
//! ```no_run
//! # fn main() -> dnx_runtime::Result<()> {
//! # let (func, x): (dnx_ir::Func, dnx_ir::Array) = unimplemented!();
//! use dnx_runtime::Team;
//! let team = Team::open(Some("cpu*4"))?;
//! let program = team.compile(&func, &[])?;
//! let inputs = team.ranks().map(|rank| Ok(vec![team.upload(rank, &x)?])).collect::<dnx_runtime::Result<Vec<_>>>()?;
//! let bound = program.bind(&inputs)?;
//! bound.run()?;
//! let first = bound.outputs(0)?[0].download()?;
//! # Ok(())
//! # }
//! ```
//!
//! Results do not depend on chance: sums are made in the order of ranks, so all members of a group hold
//! the same bits, and another run gives them again.
//!
//! A team may span processes and hosts: [`Team::across`] joins the devices of several processes over a [`Transport`]. Each
//! process then has the ranks of its own devices ([`Team::ranks`]), and lists per rank are of those.
//!
//! A rank that fails (a device error, a panic) ends the run for all: each stops at its next meeting, and the run's
//! error names the rank and what happened to it. A rank that does not come to a meeting at all is waited for as long as
//! [`Team::with_timeout`] says; then the run ends with an error that names it.

mod abroad;
mod host;
mod links;
mod program;
mod room;
mod run;
#[cfg(test)]
pub(crate) mod tests;
mod timeline;
pub mod transport;
mod worker;

pub use program::{TeamBound, TeamProgram};
pub use timeline::{Stretch, StretchKind, Timeline};
pub use transport::Transport;

use crate::device::{DeviceKind, Inner};
use crate::{Buffer, Device, Error, Result};
use dnx_codegen::exec::Executable;
use dnx_codegen::{GpuClass, GpuLimits, Options, Target};
use dnx_ir::{Array, Func, Type};
use links::{Hello, Links};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use worker::Workers;

/// How long a rank waits for the others at a meeting, beyond what it needed itself since the run began.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Several devices that run one program together. Clones are the same team.
#[derive(Clone)]
pub struct Team {
    shared: Arc<Shared>,
    timeout: Duration,
    overlap: bool,
}

/// What the clones share.
struct Shared {
    devices: Vec<Device>,
    /// Threads that each rank may use.
    threads: usize,
    workers: Workers,
    /// The other processes, if there are any.
    links: Option<Arc<Links>>,
}

impl Team {
    /// A team of these devices, in order of rank: cpu devices ([`Device::cpu`], which share the cores of the machine
    /// evenly), or GPUs (of one adapter opened several times, or of several adapters).
    ///
    /// # Errors
    /// If there is no device, one is given twice, or there are cpu devices and GPUs.
    pub fn new(devices: Vec<Device>) -> Result<Team> {
        check_devices(&devices)?;
        Team::with_links(devices, None, TIMEOUT)
    }

    /// A team of the devices of several processes, each of which calls this with its own: the first process has the
    /// first ranks. All processes then load the same programs in the same order, and run them together.
    ///
    /// A process of which nothing is heard for `timeout` ([`TIMEOUT`], say) is taken for lost and named by its ranks. So is a
    /// rank that gets no further in a run, as in one process, though its process is alive. A process that is alive and not yet in
    /// the run is waited for 30 times as long, since it may compile or write a checkpoint. After a failure the team is of no
    /// more use.
    ///
    /// # Errors
    /// As [`Team::new`]; if the processes have different kinds of devices, or one does not come.
    pub fn across(devices: Vec<Device>, transport: Arc<dyn Transport>, timeout: Duration) -> Result<Team> {
        check_devices(&devices)?;
        if transport.processes() == 1 {
            return Team::with_links(devices, None, timeout);
        }
        let fingerprints: Vec<String> = devices.iter().map(|d| d.info().fingerprint()).collect();
        let hello = Hello {
            devices: devices.len(),
            target: devices.iter().map(Device::target).reduce(common).expect("a team has at least one device"),
            fingerprint: fingerprints.windows(2).all(|w| w[0] == w[1]).then(|| fingerprints[0].clone()),
        };
        let links = Links::new(transport, &hello, timeout)?;
        let is_cpu = |h: &Hello| h.target == Target::Cpu;
        if let Some(other) = links.hellos.iter().position(|h| is_cpu(h) != is_cpu(&hello)) {
            return Err(Error::Team(format!(
                "process {other} has another kind of devices than this one: a team has cpu devices alone or GPUs alone"
            )));
        }
        Team::with_links(devices, Some(links), timeout)
    }

    fn with_links(devices: Vec<Device>, links: Option<Arc<Links>>, timeout: Duration) -> Result<Team> {
        let threads = (rayon::current_num_threads() / devices.len()).max(1);
        let workers = Workers::new(devices.len())?;
        let overlap = devices.iter().all(|d| !matches!(d.info().kind, DeviceKind::Cpu | DeviceKind::Software));
        Ok(Team { shared: Arc::new(Shared { devices, threads, workers, links }), timeout, overlap })
    }

    /// A team of the devices that a selector means; see [`Device::open_all`].
    ///
    /// # Errors
    /// If there is no such device, or they are no team.
    pub fn open(selector: Option<&str>) -> Result<Team> {
        Team::new(Device::open_all(selector)?)
    }

    /// The same team with another limit on waiting for ranks of this process, for programs loaded from now on: a rank waits for the others of a
    /// meeting so long and as long again as it took itself since the run began. All ranks do the same work, so one that
    /// has not come by then ([`TIMEOUT`] unless changed) is taken for lost.
    pub fn with_timeout(self, timeout: Duration) -> Team {
        Team { timeout, ..self }
    }

    /// The same team with or without overlap, for programs loaded from now on: whether a GPU goes on with work that does
    /// not want the results while values are exchanged. GPUs do unless they are software, whose work would take the
    /// cores that exchange; cpu devices don't. Results are the same.
    pub fn with_overlap(self, overlap: bool) -> Team {
        Team { overlap, ..self }
    }

    /// How many devices a program's mesh has.
    pub fn size(&self) -> usize {
        match &self.shared.links {
            None => self.shared.devices.len(),
            Some(links) => links.hellos.iter().map(|h| h.devices).sum(),
        }
    }

    /// The ranks whose devices are in this process, which are those whose buffers can be made and read here. Lists per
    /// rank are in this order.
    pub fn ranks(&self) -> Range<usize> {
        match &self.shared.links {
            None => 0..self.shared.devices.len(),
            Some(links) => links.ranks(links.transport.process()),
        }
    }

    /// The devices of [`Team::ranks`], in order.
    pub fn devices(&self) -> &[Device] {
        &self.shared.devices
    }

    /// The device of a rank.
    ///
    /// # Errors
    /// If the rank is not one of this process.
    pub fn device(&self, rank: usize) -> Result<&Device> {
        let at = rank.checked_sub(self.ranks().start).and_then(|i| self.shared.devices.get(i));
        at.ok_or_else(|| {
            let here = self.ranks();
            Error::Team(format!(
                "there is no rank {rank} here; this process has ranks {} to {}",
                here.start,
                here.end - 1
            ))
        })
    }

    /// What to compile for: all devices run the same kernels, so the least that each of them can do.
    pub fn target(&self) -> Target {
        let here = self.shared.devices.iter().map(Device::target);
        let elsewhere = self.shared.links.iter().flat_map(|l| l.hellos.iter().map(|h| h.target));
        here.chain(elsewhere).reduce(common).expect("a team has at least one device")
    }

    /// How to compile for it: its target, and what tuning found where all devices are alike.
    pub fn options(&self) -> Options {
        let [first, rest @ ..] = &self.shared.devices[..] else { unreachable!("a team has at least one device") };
        let own = first.info().fingerprint();
        let elsewhere = self.shared.links.iter().flat_map(|l| &l.hellos);
        let alike = rest.iter().all(|d| d.info().fingerprint() == own)
            && elsewhere.into_iter().all(|h| h.fingerprint.as_ref() == Some(&own));
        if alike { first.options() } else { Options::new(self.target()) }
    }

    /// A copy of a host array on a rank's device.
    ///
    /// # Errors
    /// If the rank is not one of this process, or its device has no room.
    pub fn upload(&self, rank: usize, array: &Array) -> Result<Buffer> {
        self.device(rank)?.upload(array)
    }

    /// Copies of host arrays on a rank's device, packed in few allocations.
    ///
    /// # Errors
    /// As [`Team::upload`].
    pub fn upload_all(&self, rank: usize, arrays: &[Array]) -> Result<Vec<Buffer>> {
        self.device(rank)?.upload_all(arrays)
    }

    /// Buffers of zeros on a rank's device, packed in few allocations.
    ///
    /// # Errors
    /// As [`Team::upload`].
    pub fn zeros_all(&self, rank: usize, types: &[Type]) -> Result<Vec<Buffer>> {
        self.device(rank)?.zeros_all(types)
    }

    /// Compiles a function whose mesh has as many devices as the team, and loads it on all. `donate` pairs an input whose
    /// memory is given up with the output that takes it over, on every rank.
    ///
    /// # Errors
    /// If it can't be compiled, or as [`Team::load`].
    pub fn compile(&self, func: &Func, donate: &[(usize, usize)]) -> Result<TeamProgram> {
        self.check_size(&func.name, func.mesh.devices())?;
        self.load(dnx_codegen::compile(func, &self.options().with_donate(donate))?.exec)
    }

    /// Makes an executable ready on every device.
    ///
    /// # Errors
    /// If its mesh has not as many devices as the team, a device refuses it, or there is not enough memory.
    pub fn load(&self, exec: Executable) -> Result<TeamProgram> {
        TeamProgram::new(self, exec)
    }

    fn check_size(&self, program: &str, devices: usize) -> Result<()> {
        if devices == self.size() {
            return Ok(());
        }
        Err(Error::Team(format!(
            "program `{program}` is over a mesh of {devices} devices, and the team has {}; make the product of the mesh's \
             axes {} or choose as many devices (--device cpu*{devices}, say)",
            self.size(),
            self.size()
        )))
    }

    fn is_cpu(&self) -> bool {
        matches!(self.shared.devices[0].inner, Inner::Cpu(_))
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Team").field(&self.shared.devices).finish()
    }
}

/// What makes devices a team.
fn check_devices(devices: &[Device]) -> Result<()> {
    let Some(first) = devices.first() else {
        return Err(Error::Team("a team has at least one device, and none is given".to_string()));
    };
    let is_cpu = |d: &Device| d.info().kind == DeviceKind::Cpu;
    if let Some(other) = devices.iter().find(|d| is_cpu(d) != is_cpu(first)) {
        let (a, b) = (first.name(), other.name());
        return Err(Error::Team(format!(
            "`{a}` and `{b}` can't run one program: a team has cpu devices alone or GPUs alone"
        )));
    }
    for (j, b) in devices.iter().enumerate() {
        if let Some(i) = devices[..j].iter().position(|a| a.same(b)) {
            return Err(Error::Team(format!(
                "ranks {i} and {j} are one device (`{}`): open a device once for each rank",
                b.name()
            )));
        }
    }
    Ok(())
}

/// What two targets have in common.
fn common(a: Target, b: Target) -> Target {
    let (Target::Gpu(a), Target::Gpu(b)) = (a, b) else { return Target::Cpu };
    Target::Gpu(GpuLimits {
        class: if a.class == b.class { a.class } else { GpuClass::Other },
        storage_buffers: a.storage_buffers.min(b.storage_buffers),
        binding_bytes: a.binding_bytes.min(b.binding_bytes),
        buffer_bytes: a.buffer_bytes.min(b.buffer_bytes),
        workgroup_bytes: a.workgroup_bytes.min(b.workgroup_bytes),
        max_invocations: a.max_invocations.min(b.max_invocations),
        max_workgroups_per_dim: a.max_workgroups_per_dim.min(b.max_workgroups_per_dim),
        subgroup: if a.subgroup == b.subgroup { a.subgroup } else { None },
        f16: a.f16 && b.f16,
        cooperative_matrix: if a.cooperative_matrix == b.cooperative_matrix { a.cooperative_matrix } else { None },
    })
}
