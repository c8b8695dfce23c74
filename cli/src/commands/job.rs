//! The processes of a run: this one alone, or those that a launcher of MPI started (feature `mpi`).

use super::describe;
use dnx::runtime::{Device, DeviceKind, Team};
use dnx::train::{Error, Result};

/// What this process is part of.
pub struct Job {
    #[cfg(feature = "mpi")]
    mpi: Option<std::sync::Arc<dnx::runtime::team::transport::mpi::Mpi>>,
}

/// Variables in which launchers say which of the processes on its host this is.
#[cfg(feature = "mpi")]
const LOCAL: [&str; 4] = ["OMPI_COMM_WORLD_LOCAL_RANK", "PMI_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// Variables that launchers set.
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];

impl Job {
    /// Joins the job in which this process was started, if it was.
    ///
    /// # Errors
    /// If MPI can't begin, or a launcher started several processes and this program was built without MPI.
    pub fn join() -> Result<Job> {
        let launched = LAUNCHED.iter().any(|name| std::env::var_os(name).is_some());
        #[cfg(feature = "mpi")]
        return Ok(Job { mpi: if launched { Some(dnx::runtime::team::transport::mpi::Mpi::join()?) } else { None } });
        #[cfg(not(feature = "mpi"))]
        match launched && ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].iter().any(|v| std::env::var(v).is_ok_and(|n| n != "1"))
        {
            false => Ok(Job {}),
            true => {
                let message = "a launcher of MPI started several processes, and this program was built without MPI: build it with \
                               cargo build --release --features mpi";
                Err(Error::Usage(message.into()))
            }
        }
    }

    /// The team of a mesh of `devices`: this process opens its share of them. `selector` says which, on every process.
    ///
    /// # Errors
    /// If there are no such devices, or the processes can't share the mesh evenly.
    pub fn team(&self, selector: Option<&str>, devices: usize) -> Result<Team> {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            use dnx::runtime::{Transport, team::TIMEOUT};
            let processes = mpi.processes();
            if !devices.is_multiple_of(processes) {
                let message = format!("a mesh of {devices} devices can't be shared evenly by {processes} processes");
                return Err(Error::Usage(message));
            }
            let place = LOCAL.iter().find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
            let own = open(selector, devices / processes, place.unwrap_or(0))?;
            let team = Team::across(own, mpi.clone(), TIMEOUT)?;
            if mpi.process() == 0 {
                eprintln!("device: {processes} processes of {}", describe(&team));
            }
            return Ok(team);
        }
        let team = Team::new(open(selector, devices, 0)?)?;
        eprintln!("device: {}", describe(&team));
        Ok(team)
    }

    /// Leaves the job, when all is done.
    ///
    /// # Errors
    /// If MPI can't end.
    pub fn leave(self) -> Result<()> {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.finish()?;
        }
        Ok(())
    }
}

/// So many devices. Without a selector they are GPUs in their order, from that on which belongs to this process on its
/// host, if there are enough, else so many logical devices on the one that would be chosen for one.
pub fn open(selector: Option<&str>, devices: usize, place: usize) -> Result<Vec<Device>> {
    let list = match selector {
        Some(text) => return Ok(Device::open_all(Some(text))?),
        None if devices == 1 && place == 0 => return Ok(Device::open_all(None)?),
        None => {
            let gpus = Device::list().iter().filter(|d| d.kind == DeviceKind::Discrete).count();
            let own = place * devices..(place + 1) * devices;
            match gpus >= own.end {
                true => own.map(|i| format!("gpu:{i}")).collect::<Vec<_>>().join(","),
                false if Device::open(None)?.target().gpu().is_some() => format!("gpu*{devices}"),
                false => format!("cpu*{devices}"),
            }
        }
    };
    Ok(Device::open_all(Some(&list))?)
}
