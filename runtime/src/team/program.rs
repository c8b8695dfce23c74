//! Programs of a team: loaded on every device, bound, and run by all ranks at once.

use super::host::Move;
use super::room::{Crisis, Patience, Room};
use super::timeline::{Stretch, StretchKind, Timeline};
use super::worker::Job;
use super::{Shared, Team};
use crate::company::{Company, Seat, Span, Stopped};
use crate::{Bound, Buffer, Error, Program, Result};
use dnx_codegen::exec::{Executable, Step, VERSION, group};
use dnx_codegen::stats::StepCost;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a run waits for a rank that was missing at a meeting, once it has failed.
const GRACE: Duration = Duration::from_secs(2);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// An executable made ready on every device of a team. Clones are the same program.
#[derive(Clone)]
pub struct TeamProgram {
    team: Team,
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
        let exec = Arc::new(exec);
        let seat = |rank| Seat { rank, threads: *threads };
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
        let inner = Arc::new(Inner::new(self, bounds.collect::<Result<_>>()?));
        let working = inner.clone();
        let job: Job = Arc::new(move |rank| working.work(rank));
        Ok(TeamBound { program: self.clone(), inner, job })
    }
}

/// An error of one rank, said with the rank.
fn failed(rank: usize, device: &str, program: &str, source: Error) -> Error {
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
        inner.begin(record);
        workers.send(&self.job);
        let left = inner.wait();
        let fault = inner.crisis.end();
        if left > 0 {
            let why = fault.as_ref().map_or_else(String::new, ToString::to_string);
            *turn = Some(format!("a rank has not come back from an earlier run, in which {why}"));
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

/// A meeting of the program.
struct Meeting {
    /// By local rank its group's room and its place there.
    rooms: Vec<(usize, usize)>,
    /// What is done with each part.
    moves: Vec<Move>,
}

/// A stretch of time of a rank.
struct Mark {
    kind: StretchKind,
    step: usize,
    begin: Duration,
    end: Duration,
}

/// What the ranks share.
struct Inner {
    team: Team,
    bounds: Vec<Bound>,
    meetings: Vec<Meeting>,
    rooms: Vec<Room>,
    crisis: Crisis<Error>,
    run: Mutex<Run>,
    /// Rings when a rank is done.
    bell: Condvar,
    recording: AtomicBool,
    logs: Vec<Mutex<Vec<Mark>>>,
    /// By local rank room for what the members of a group bring for one part.
    spans: Vec<Mutex<Vec<Span>>>,
    #[cfg(test)]
    trap: Mutex<Option<super::tests::Trap>>,
}

/// The run in progress.
struct Run {
    began: Instant,
    /// Ranks that are not done.
    left: usize,
}

impl Inner {
    fn new(program: &TeamProgram, bounds: Vec<Bound>) -> Inner {
        let (exec, team) = (program.exec(), &program.team);
        let collectives = exec.steps.iter().filter_map(|step| match step {
            Step::Collective { parts, .. } => Some(parts),
            Step::Dispatch { .. } | Step::Multi { .. } | Step::Copy { .. } => None,
        });
        let most = collectives.clone().map(Vec::len).max().unwrap_or(0);
        let crowded = team.size() > rayon::current_num_threads();
        let mut rooms: Vec<Room> = vec![];
        let meetings = collectives.map(|parts| {
            let axes = parts[0].op.axes();
            let mut room = |rank: usize| {
                let members = group(&exec.mesh, axes, rank);
                let place = members.iter().position(|&m| m == rank).expect("a device is in its own group");
                let found = rooms.iter().position(|r| r.members == members);
                let at = found.unwrap_or_else(|| {
                    rooms.push(Room::new(members, most, crowded));
                    rooms.len() - 1
                });
                (at, place)
            };
            let of: Vec<(usize, usize)> = team.ranks().map(&mut room).collect();
            let n = group(&exec.mesh, axes, 0).len();
            Meeting { rooms: of, moves: parts.iter().map(|p| Move::new(p, n)).collect() }
        });
        let meetings = meetings.collect();
        let logs = bounds.iter().map(|_| Mutex::default()).collect();
        let spans = bounds.iter().map(|_| Mutex::new(Vec::with_capacity(team.size()))).collect();
        Inner {
            team: team.clone(),
            bounds,
            meetings,
            rooms,
            crisis: Crisis::new(),
            run: Mutex::new(Run { began: Instant::now(), left: 0 }),
            bell: Condvar::new(),
            recording: AtomicBool::new(false),
            logs,
            spans,
            #[cfg(test)]
            trap: Mutex::new(None),
        }
    }

    fn begin(&self, record: bool) {
        self.rooms.iter().for_each(Room::clear);
        self.logs.iter().for_each(|log| locked(log).clear());
        self.recording.store(record, Ordering::SeqCst);
        *locked(&self.run) = Run { began: Instant::now(), left: self.bounds.len() };
    }

    /// Waits for all ranks; after a failure, for as long as they would wait for each other. Gives how many are not done.
    fn wait(&self) -> usize {
        let mut run = locked(&self.run);
        let mut until: Option<Instant> = None;
        while run.left > 0 {
            if self.crisis.is_raised() {
                let missing = |fault: &Error| matches!(fault, Error::Missing { .. });
                let until = *until.get_or_insert_with(|| match self.crisis.seen(missing) {
                    // It was waited for.
                    Some(true) => Instant::now() + GRACE,
                    Some(false) | None => Instant::now() + self.team.timeout + run.began.elapsed(),
                });
                if Instant::now() >= until {
                    break;
                }
            }
            // A crisis rings no bell here; it is seen soon enough.
            run = self.bell.wait_timeout(run, GRACE / 4).unwrap_or_else(|p| p.into_inner()).0;
        }
        run.left
    }

    /// What the thread of a local rank does in a run.
    fn work(&self, local: usize) {
        let began = locked(&self.run).began;
        let recording = self.recording.load(Ordering::SeqCst);
        let mut member =
            Member { inner: self, local, began, last: began, recording, spans: locked(&self.spans[local]) };
        let outcome = catch_unwind(AssertUnwindSafe(|| self.bounds[local].run_with(&mut member)));
        let program = || self.bounds[local].program().exec().name.clone();
        let error = match outcome {
            Ok(Ok(Some(()))) => None,
            // Somebody else failed.
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => Some(Error::Run { program: program(), reason: format!("panic: {}", message(&*panic)) }),
        };
        if let Some(error) = error {
            let device = self.team.devices()[local].name();
            let rank = self.team.ranks().start + local;
            self.crisis.raise(failed(rank, device, &program(), error), &self.rooms);
        }
        locked(&self.run).left -= 1;
        self.bell.notify_all();
    }
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// One rank in a run: the company of its device.
struct Member<'a> {
    inner: &'a Inner,
    local: usize,
    began: Instant,
    /// Until when the log goes.
    last: Instant,
    recording: bool,
    /// Room for what the members bring for one part.
    spans: MutexGuard<'a, Vec<Span>>,
}

impl Member<'_> {
    /// Logs the time since the last mark.
    fn mark(&mut self, kind: StretchKind, step: usize) {
        if self.recording {
            let now = Instant::now();
            let (begin, end) = (self.last - self.began, now - self.began);
            locked(&self.inner.logs[self.local]).push(Mark { kind, step, begin, end });
            self.last = now;
        }
    }

    /// The error of ranks that did not come.
    fn missing(&self, step: usize, ranks: Vec<usize>, waited: Duration) -> Error {
        let exec = self.inner.bounds[self.local].program().exec();
        Error::Missing {
            program: exec.name.clone(),
            ranks,
            rank: self.inner.team.ranks().start + self.local,
            waited,
            step,
            what: StepCost::of(exec, &exec.steps[step]).name,
        }
    }
}

impl Company for Member<'_> {
    unsafe fn meet(&mut self, at: usize, step: usize, spans: &[Span]) -> Result<(), Stopped> {
        let inner = self.inner;
        #[cfg(test)]
        super::tests::spring(&inner.trap, self.local, at);
        let meeting = &inner.meetings[at];
        let (room, place) = meeting.rooms[self.local];
        let room = &inner.rooms[room];
        let since = Instant::now();
        let patience = Patience { since, limit: inner.team.timeout + (since - self.began) };
        // SAFETY: the place is this rank's, and it leaves below.
        match unsafe { room.enter(place, spans, &inner.crisis, &patience) } {
            Ok(()) => {}
            Err(None) => return Err(Stopped),
            Err(Some(ranks)) => {
                inner.crisis.raise(self.missing(step, ranks, patience.limit), &inner.rooms);
                return Err(Stopped);
            }
        }
        let leaving = Leaving { room, crisis: &inner.crisis };
        self.mark(StretchKind::Wait, step);
        let n = room.members.len();
        for (part, what) in meeting.moves.iter().enumerate() {
            // SAFETY: between enter and leave what all have brought is theirs to read, and the parts of the work are
            // disjoint.
            unsafe {
                room.spans(part, &mut self.spans);
                what.run(&self.spans, place, (place, n), &room.here, inner.team.shared.threads);
            }
        }
        self.mark(StretchKind::Exchange, step);
        leaving.leave()?;
        self.mark(StretchKind::Wait, step);
        Ok(())
    }

    fn done(&mut self, step: usize) {
        let exec = self.inner.bounds[self.local].program().exec();
        if !matches!(exec.steps[step], Step::Collective { .. }) {
            self.mark(StretchKind::Compute, step);
        }
    }

    fn wants_the_end(&self) -> bool {
        self.recording
    }
}

/// A rank at work in a room, which it leaves even if the work panics.
struct Leaving<'a> {
    room: &'a Room,
    crisis: &'a Crisis<Error>,
}

impl Leaving<'_> {
    fn leave(self) -> Result<(), Stopped> {
        let left = self.room.leave(self.crisis);
        std::mem::forget(self);
        left
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let _ = self.room.leave(self.crisis);
    }
}
