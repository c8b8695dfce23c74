//! Programs of a team: loaded on every device, bound, and run by all ranks at once.

use super::run::{Inner, locked};
use super::timeline::{Stretch, Timeline};
use super::worker::Job;
use super::{Shared, Team};
use crate::company::Seat;
use crate::{Buffer, Error, Program, Result};
use dnx_codegen::exec::{Executable, VERSION};
use dnx_codegen::stats::StepCost;
use std::sync::Arc;

/// An executable made ready on every device of a team. Clones are the same program.
#[derive(Clone)]
pub struct TeamProgram {
    pub(super) team: Team,
    /// One per rank.
    programs: Vec<Program>,
}

/// A program with its inputs and outputs fixed on every rank.
pub struct TeamBound {
    program: TeamProgram,
    inner: Arc<Inner>,
    job: Job,
}

impl TeamProgram {
    pub(super) fn new(team: &Team, exec: Executable) -> Result<TeamProgram> {
        if exec.version != VERSION {
            return Err(Error::Version { expected: VERSION, got: exec.version });
        }
        team.check_size(&exec.name, exec.mesh.devices())?;
        let Shared { devices, threads, .. } = &*team.shared;
        let needed = exec.peak_bytes.saturating_mul(devices.len() as u64);
        if let Some(available) = devices[0].info().memory.filter(|&m| team.is_cpu() && needed > m) {
            return Err(Error::OutOfMemory {
                what: format!("program `{}` on {} cpu devices", exec.name, devices.len()),
                needed,
                available,
                device: devices[0].name().to_string(),
                largest: vec![format!("{} on each device", crate::error::mib(exec.peak_bytes))],
            });
        }
        if let Some(links) = &team.shared.links {
            links.agree(&format!("program `{}`", exec.name), &digest(&exec)?.to_le_bytes())?;
        }
        let exec = Arc::new(exec);
        let seat = |rank| Seat { rank, threads: *threads, overlap: team.overlap };
        let programs = team.ranks().zip(devices).map(|(rank, device)| {
            device.load_at(&exec, seat(rank)).map_err(|e| failed(rank, device.name(), &exec.name, e))
        });
        Ok(TeamProgram { team: team.clone(), programs: programs.collect::<Result<_>>()? })
    }

    /// The executable, which is the same on every rank.
    pub fn exec(&self) -> &Executable {
        self.programs[0].exec()
    }

    /// The team it was loaded on.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Runs once. `inputs` and the results are lists per rank of [`Team::ranks`]. Outputs are new buffers, except
    /// donated ones, which are their inputs' memory: those inputs hold the results afterwards.
    ///
    /// # Errors
    /// As [`TeamProgram::bind`] and [`TeamBound::run`].
    pub fn run(&self, inputs: &[Vec<Buffer>]) -> Result<Vec<Vec<Buffer>>> {
        let bound = self.bind(inputs)?;
        bound.run()?;
        Ok(bound.inner.bounds.iter().map(|b| b.outputs().to_vec()).collect())
    }

    /// Fixes inputs, a list per rank of [`Team::ranks`], and allocates outputs and what meetings need, for running many
    /// times. Nothing is compiled afterwards.
    ///
    /// # Errors
    /// If there is not one list per rank, or an input is of another type than its port or on another device than its
    /// rank's.
    pub fn bind(&self, inputs: &[Vec<Buffer>]) -> Result<TeamBound> {
        let ranks = self.team.ranks();
        if inputs.len() != ranks.len() {
            return Err(Error::Team(format!(
                "program `{}` runs on {} ranks of this process, and inputs are given for {}",
                self.exec().name,
                ranks.len(),
                inputs.len()
            )));
        }
        let each = ranks.zip(self.programs.iter().zip(inputs));
        let bounds = each.map(|(rank, (program, inputs))| {
            program.bind(inputs).map_err(|e| failed(rank, program.device().name(), &self.exec().name, e))
        });
        let inner = Arc::new(Inner::new(self, bounds.collect::<Result<_>>()?)?);
        let working = inner.clone();
        let job: Job = Arc::new(move |rank| working.work(rank));
        Ok(TeamBound { program: self.clone(), inner, job })
    }
}

/// A number by which processes tell whether they have the same executable.
fn digest(exec: &Executable) -> Result<u64> {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(&crate::executable_to_bytes(exec)?);
    Ok(hasher.finish())
}

/// An error of one rank, said with the rank.
pub(super) fn failed(rank: usize, device: &str, program: &str, source: Error) -> Error {
    Error::Rank { rank, device: device.to_string(), program: program.to_string(), source: Box::new(source) }
}

impl TeamBound {
    /// Runs the program on the bound buffers, all ranks at once. Nothing is allocated but what wgpu takes for its
    /// uploads. Returns when all ranks are done; GPUs may still be at work after their last meeting, and what reads
    /// their memory waits for it.
    ///
    /// # Errors
    /// [`Error::Rank`] if a rank failed, [`Error::Missing`] if one did not come to a meeting. Buffers may then hold
    /// part of the results of this run. After [`Error::Missing`], when the rank has not come back, the team is of no
    /// more use.
    pub fn run(&self) -> Result<()> {
        self.run_recording(false)
    }

    /// Runs once and records when each rank computed, waited and exchanged, on the host's clock.
    ///
    /// # Errors
    /// As [`TeamBound::run`].
    pub fn timeline(&self) -> Result<Timeline> {
        self.run_recording(true)?;
        let (exec, team) = (self.program.exec(), &self.program.team);
        let names: Vec<String> = exec.steps.iter().map(|step| StepCost::of(exec, step).name).collect();
        let mut stretches = vec![];
        for (rank, log) in team.ranks().zip(&self.inner.logs) {
            stretches.extend(locked(log).drain(..).map(|mark| Stretch {
                rank,
                kind: mark.kind,
                step: mark.step,
                name: names[mark.step].clone(),
                begin: mark.begin,
                end: mark.end,
            }));
        }
        let ranks = team.ranks().zip(team.devices()).map(|(rank, d)| (rank, d.name().to_string())).collect();
        Ok(Timeline { ranks, stretches })
    }

    fn run_recording(&self, record: bool) -> Result<()> {
        let (inner, workers) = (&self.inner, &self.program.team.shared.workers);
        let mut turn = locked(&workers.turn);
        if let Some(why) = &*turn {
            return Err(Error::Team(format!("the team can't run any more: {why}")));
        }
        if let Some(error) = inner.links().and_then(|l| l.alarm()) {
            return Err(error);
        }
        inner.begin(record);
        workers.send(&self.job);
        let left = inner.wait();
        let fault = inner.crisis.end();
        if left > 0 {
            let why = fault.as_ref().map_or_else(String::new, ToString::to_string);
            *turn = Some(format!("a rank has not come back from an earlier run, in which {why}"));
        } else if let (Some(_), Some(why)) = (inner.links(), &fault) {
            *turn = Some(format!("messages of an earlier run may be under way, in which {why}"));
        }
        fault.map_or(Ok(()), Err)
    }

    /// The inputs of a rank, in order.
    ///
    /// # Errors
    /// If the rank is not one of this process.
    pub fn inputs(&self, rank: usize) -> Result<&[Buffer]> {
        self.program.team.device(rank)?;
        Ok(self.inner.bounds[rank - self.program.team.ranks().start].inputs())
    }

    /// The outputs of a rank, in order; donated ones are their inputs' memory.
    ///
    /// # Errors
    /// If the rank is not one of this process.
    pub fn outputs(&self, rank: usize) -> Result<&[Buffer]> {
        self.program.team.device(rank)?;
        Ok(self.inner.bounds[rank - self.program.team.ranks().start].outputs())
    }

    /// The program.
    pub fn program(&self) -> &TeamProgram {
        &self.program
    }

    /// Has a rank fail at a meeting, once.
    #[cfg(test)]
    pub(super) fn trap(&self, trap: super::tests::Trap) {
        *locked(&self.inner.trap) = Some(trap);
    }
}
