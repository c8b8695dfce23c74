//! Programs of a team: loaded on every device, bound, and run by all ranks at once.

use super::abroad::{Abroad, Desk, Division, Waiting};
use super::host::{Common, Move};
use super::links::{Links, Trouble};
use super::room::{Crisis, Patience, Room};
use super::timeline::{Stretch, StretchKind, Timeline};
use super::worker::Job;
use super::{Shared, Team};
use crate::company::{Company, Seat, Span, Stopped};
use crate::{Bound, Buffer, Error, Program, Result};
use dnx_codegen::exec::{Executable, Part, Step, VERSION, group};
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
        if let Some(links) = &team.shared.links {
            links.agree(&format!("program `{}`", exec.name), &digest(&exec)?.to_le_bytes())?;
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

/// A meeting of the program.
struct Meeting {
    /// By local rank its group's room and its place there.
    rooms: Vec<(usize, usize)>,
    /// What is done with each part.
    moves: Vec<Move>,
    /// By room, for groups with members in other processes.
    abroad: Vec<(usize, Abroad)>,
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
    /// By room how its group is divided among processes, and the memory for what crosses.
    divisions: Vec<Option<(Division, Desk)>>,
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
    fn new(program: &TeamProgram, bounds: Vec<Bound>) -> Result<Inner> {
        let (exec, team) = (program.exec(), &program.team);
        let links = team.shared.links.as_deref();
        let collectives: Vec<&Vec<Part>> = exec.steps.iter().filter_map(parts).collect();
        let most = collectives.iter().map(|p| p.len()).max().unwrap_or(0);
        let crowded = team.devices().len() > rayon::current_num_threads();
        // Groups are numbered alike in all processes; those with members here have rooms.
        let mut groups: Vec<Vec<usize>> = vec![];
        let mut rooms: Vec<(usize, Room)> = vec![];
        let mut meetings = vec![];
        for &parts in &collectives {
            let axes = parts[0].op.axes();
            let mut of = vec![];
            for rank in 0..team.size() {
                let members = group(&exec.mesh, axes, rank);
                let number = groups.iter().position(|g| *g == members).unwrap_or_else(|| {
                    groups.push(members.clone());
                    groups.len() - 1
                });
                if !team.ranks().contains(&rank) {
                    continue;
                }
                let place = members.iter().position(|&m| m == rank).expect("a device is in its own group");
                let at = rooms.iter().position(|(n, _)| *n == number).unwrap_or_else(|| {
                    let here = (0..members.len()).filter(|&p| team.ranks().contains(&members[p])).collect();
                    rooms.push((number, Room::new(members, here, most, crowded)));
                    rooms.len() - 1
                });
                of.push((at, place));
            }
            let n = group(&exec.mesh, axes, 0).len();
            let moves = parts.iter().map(|p| Move::new(p, n)).collect();
            meetings.push(Meeting { rooms: of, moves, abroad: vec![] });
        }
        let mut divisions = vec![];
        for (at, (number, room)) in rooms.iter().enumerate() {
            let Some(division) = Division::new(&room.members, links) else {
                divisions.push(None);
                continue;
            };
            let mut bytes = 0;
            for meeting in meetings.iter_mut().filter(|m| m.rooms.iter().any(|r| r.0 == at)) {
                let (abroad, images) = Abroad::new(&meeting.moves, &division, *number);
                bytes = bytes.max(images);
                meeting.abroad.push((at, abroad));
            }
            let desk = Desk::new(bytes)?;
            for meeting in &mut meetings {
                let parts = meeting.moves.len();
                meeting.abroad.iter_mut().filter(|(r, _)| *r == at).for_each(|(_, a)| a.place(&desk, parts));
            }
            divisions.push(Some((division, desk)));
        }
        let rooms = rooms.into_iter().map(|(_, room)| room).collect();
        let logs = bounds.iter().map(|_| Mutex::default()).collect();
        let spans = bounds.iter().map(|_| Mutex::new(Vec::with_capacity(team.size()))).collect();
        Ok(Inner {
            team: team.clone(),
            bounds,
            meetings,
            rooms,
            divisions,
            crisis: Crisis::new(),
            run: Mutex::new(Run { began: Instant::now(), left: 0 }),
            bell: Condvar::new(),
            recording: AtomicBool::new(false),
            logs,
            spans,
            #[cfg(test)]
            trap: Mutex::new(None),
        })
    }

    fn links(&self) -> Option<&Links> {
        self.team.shared.links.as_deref()
    }

    /// Ends the run for everybody, here and elsewhere.
    fn raise(&self, fault: Error) {
        if let (Some(links), false) = (self.links(), matches!(fault, Error::Elsewhere { .. })) {
            links.raise(&fault.to_string());
        }
        self.crisis.raise(fault, &self.rooms);
    }

    /// Of ranks that are missing those that nobody keeps: one that waits for others in another room is not to blame,
    /// they are.
    fn to_blame(&self, mut missing: Vec<usize>) -> Vec<usize> {
        let waiting: Vec<(Vec<usize>, Vec<usize>)> = self.rooms.iter().map(Room::waiting).collect();
        for _ in 0..self.rooms.len() {
            let kept =
                |rank: usize| waiting.iter().find(|(come, _)| come.contains(&rank)).map(|(_, for_whom)| for_whom);
            missing = missing.iter().flat_map(|&r| kept(r).cloned().unwrap_or_else(|| vec![r])).collect();
            missing.sort_unstable();
            missing.dedup();
        }
        missing
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
            self.raise(failed(rank, device, &program(), error));
        }
        locked(&self.run).left -= 1;
        self.bell.notify_all();
    }
}

/// The parts of a collective step.
fn parts(step: &Step) -> Option<&Vec<Part>> {
    match step {
        Step::Collective { parts, .. } => Some(parts),
        Step::Dispatch { .. } | Step::Multi { .. } | Step::Copy { .. } => None,
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

impl<'a> Member<'a> {
    /// Enters a room with what this rank brings.
    fn enter(&self, step: usize, room: &'a Room, place: usize, spans: &[Span]) -> Result<Leaving<'a>, Stopped> {
        let inner = self.inner;
        let since = Instant::now();
        let limit = inner.team.timeout + (since - self.began);
        let patience = Patience { since, limit, abroad: inner.links().map(|l| &l.abroad) };
        // SAFETY: the place is this rank's, and what it gets back makes it leave.
        match unsafe { room.enter(place, spans, &inner.crisis, &patience) } {
            Ok(()) => Ok(Leaving { room, crisis: &inner.crisis }),
            Err(None) => Err(Stopped),
            Err(Some(ranks)) => {
                inner.raise(self.missing(step, inner.to_blame(ranks), limit));
                Err(Stopped)
            }
        }
    }

    /// Speaks with the other processes.
    fn speak(
        &self,
        step: usize,
        room: &Room,
        links: &Links,
        say: impl FnOnce(&Waiting) -> Result<(), Trouble>,
    ) -> Result<(), Stopped> {
        let inner = self.inner;
        let stop = || inner.crisis.is_raised();
        let waiting = Waiting { limit: self.began.elapsed(), stop: &stop };
        links.abroad.fetch_add(1, Ordering::SeqCst);
        let said = say(&waiting);
        links.abroad.fetch_sub(1, Ordering::SeqCst);
        let fault = match said {
            Ok(()) => return Ok(()),
            Err(Trouble::Stopped) => return Err(Stopped),
            Err(Trouble::Alarm(error)) => error,
            Err(Trouble::Lost(processes, waited)) => {
                let lost = |rank: &usize| processes.contains(&links.process_of(*rank));
                self.missing(step, room.members.iter().copied().filter(lost).collect(), waited)
            }
            Err(Trouble::Transport(why)) => {
                let program = self.inner.bounds[self.local].program();
                let error = Error::Team(format!("the transport between processes failed: {why}"));
                let rank = inner.team.ranks().start + self.local;
                failed(rank, program.device().name(), &program.exec().name, error)
            }
        };
        inner.raise(fault);
        Err(Stopped)
    }

    /// Does this rank's share of the work of a meeting, between enter and leave.
    ///
    /// # Safety
    /// All that the moves read is there.
    unsafe fn share(&mut self, meeting: &Meeting, room: &Room, place: usize, share: (usize, usize)) {
        let own = room.here.iter().position(|&p| p == place).expect("a rank of this process");
        let common = Common { share, member: (own, room.here.len()), here: &room.here };
        for (part, what) in meeting.moves.iter().enumerate() {
            // SAFETY: between enter and leave what all have brought is theirs to read, and the parts of the work are
            // disjoint.
            unsafe {
                room.spans(part, &mut self.spans);
                what.run(&self.spans, place, &common, self.inner.team.shared.threads);
            }
        }
    }
}

impl Company for Member<'_> {
    unsafe fn meet(&mut self, at: usize, step: usize, spans: &[Span]) -> Result<(), Stopped> {
        let inner = self.inner;
        #[cfg(test)]
        super::tests::spring(&inner.trap, self.local, at);
        let meeting = &inner.meetings[at];
        let (number, place) = meeting.rooms[self.local];
        let room = &inner.rooms[number];
        if let Some(error) = inner.links().and_then(Links::alarm) {
            inner.raise(error);
            return Err(Stopped);
        }
        let mut inside = self.enter(step, room, place, spans)?;
        self.mark(StretchKind::Wait, step);
        let abroad = meeting.abroad.iter().find(|(room, _)| *room == number).map(|(_, abroad)| abroad);
        let (Some(abroad), Some((division, desk)), Some(links)) = (abroad, &inner.divisions[number], inner.links())
        else {
            // SAFETY: all members are here and have brought their operands.
            unsafe { self.share(meeting, room, place, (0, 1)) };
            self.mark(StretchKind::Exchange, step);
            inside.leave()?;
            self.mark(StretchKind::Wait, step);
            return Ok(());
        };
        let speaks = place == room.here[0];
        if speaks {
            // SAFETY: the other members wait in `leave` until this one has spoken.
            self.speak(step, room, links, |w| unsafe { abroad.operands(room, desk, links, w) })?;
            self.mark(StretchKind::Exchange, step);
        }
        inside.leave()?;
        inside = self.enter(step, room, place, spans)?;
        self.mark(StretchKind::Wait, step);
        // SAFETY: all operands that are read are here.
        unsafe { self.share(meeting, room, place, (division.own, division.processes.len())) };
        self.mark(StretchKind::Exchange, step);
        if abroad.has_results {
            inside.leave()?;
            inside = self.enter(step, room, place, spans)?;
            self.mark(StretchKind::Wait, step);
            if speaks {
                // SAFETY: as above; all members at home have done their shares.
                self.speak(step, room, links, |w| unsafe { abroad.results(room, place, desk, links, w) })?;
                self.mark(StretchKind::Exchange, step);
            }
            inside.leave()?;
            inside = self.enter(step, room, place, spans)?;
            self.mark(StretchKind::Wait, step);
            // SAFETY: these results are this rank's.
            unsafe { abroad.fetch(spans, desk) };
            self.mark(StretchKind::Exchange, step);
        }
        inside.leave()?;
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
