//! A run of a team: every rank walks the steps of its device in a thread of its own, with the other ranks as company.

use super::Team;
use super::abroad::{Abroad, Desk, Division, Waiting};
use super::host::{Common, Move};
use super::links::{Doing, Links, Trouble};
use super::program::{TeamProgram, failed};
use super::room::{Crisis, Patience, Room};
use super::timeline::StretchKind;
use crate::company::{Company, Span, Stopped};
use crate::{Bound, Error, Result};
use dnx_codegen::exec::{Part, Step, group};
use dnx_codegen::stats::StepCost;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a run waits for a rank that was missing at a meeting, once it has failed.
const GRACE: Duration = Duration::from_secs(2);

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
pub(super) struct Mark {
    pub(super) kind: StretchKind,
    pub(super) step: usize,
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

/// What the ranks share.
pub(super) struct Inner {
    team: Team,
    pub(super) bounds: Vec<Bound>,
    meetings: Vec<Meeting>,
    rooms: Vec<Room>,
    /// By room how its group is divided among processes, and the memory for what crosses.
    divisions: Vec<Option<(Division, Desk)>>,
    pub(super) crisis: Crisis<Error>,
    run: Mutex<Run>,
    /// Rings when a rank is done.
    bell: Condvar,
    recording: AtomicBool,
    pub(super) logs: Vec<Mutex<Vec<Mark>>>,
    /// By local rank room for what the members of a group bring for one part.
    spans: Vec<Mutex<Vec<Span>>>,
    #[cfg(test)]
    pub(super) trap: Mutex<Option<super::tests::Trap>>,
}

/// The run in progress.
struct Run {
    began: Instant,
    /// Ranks that are not done.
    left: usize,
}

impl Inner {
    pub(super) fn new(program: &TeamProgram, bounds: Vec<Bound>) -> Result<Inner> {
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

    pub(super) fn links(&self) -> Option<&Links> {
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

    pub(super) fn begin(&self, record: bool) {
        self.rooms.iter().for_each(Room::clear);
        self.logs.iter().for_each(|log| locked(log).clear());
        self.recording.store(record, Ordering::SeqCst);
        *locked(&self.run) = Run { began: Instant::now(), left: self.bounds.len() };
    }

    /// Waits for all ranks; after a failure, for as long as they would wait for each other. Gives how many are not done.
    pub(super) fn wait(&self) -> usize {
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
    pub(super) fn work(&self, local: usize) {
        let began = locked(&self.run).began;
        let recording = self.recording.load(Ordering::SeqCst);
        let mut member =
            Member { inner: self, local, began, last: began, recording, spans: locked(&self.spans[local]) };
        member.pulse(Doing::Work);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.bounds[local].run_with(&mut member)));
        member.pulse(Doing::Nothing);
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
        let waiting = Waiting { members: &room.members, limit: self.began.elapsed(), stop: &stop };
        links.abroad.fetch_add(1, Ordering::SeqCst);
        let said = say(&waiting);
        links.abroad.fetch_sub(1, Ordering::SeqCst);
        let fault = match said {
            Ok(()) => return Ok(()),
            Err(Trouble::Stopped) => return Err(Stopped),
            Err(Trouble::Alarm(error)) => error,
            Err(Trouble::Lost(ranks, waited)) => self.missing(step, ranks, waited),
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
        if let Some(error) = inner.links().and_then(Links::alarm) {
            inner.raise(error);
            return Err(Stopped);
        }
        self.pulse(Doing::Meet);
        let met = self.exchange(meeting, number, place, step, spans);
        self.pulse(Doing::Work);
        met
    }

    fn done(&mut self, step: usize) {
        self.pulse(Doing::Work);
        let exec = self.inner.bounds[self.local].program().exec();
        if !matches!(exec.steps[step], Step::Collective { .. }) {
            self.mark(StretchKind::Compute, step);
        }
    }

    fn wants_the_end(&self) -> bool {
        self.recording
    }
}

impl<'a> Member<'a> {
    /// Tells other processes that this rank has come further.
    fn pulse(&self, doing: Doing) {
        if let Some(links) = self.inner.links() {
            links.pulse(self.local, doing);
        }
    }

    /// Meets the others of a room.
    fn exchange(
        &mut self,
        meeting: &'a Meeting,
        number: usize,
        place: usize,
        step: usize,
        spans: &[Span],
    ) -> Result<(), Stopped> {
        let inner = self.inner;
        let room = &inner.rooms[number];
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
