//! Links: what a team knows of its other processes, and how long it waits for them.
//!
//! Every process tells all others from time to time that it is alive, from a thread of its own, so that one that died
//! is told from one that is busy. A process of which nothing is heard for most of the team's timeout is lost. One that is
//! alive is waited for [`PATIENCE`] times as long while it is elsewhere: it compiles, or writes a checkpoint. With its signs of
//! life it says how far its ranks have come in their run; a rank at work that gets no further is lost after the timeout and the
//! time that who waits for it took itself, as in one process. Who fails tells all others why at once.
//!
//! After a failure messages of the broken run may still be under way, so such a team does not run again.

use super::abroad::Waiting;
use super::transport::Transport;
use crate::{Error, Result};
use dnx_codegen::Target;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How many timeouts a process that is alive may take to come to a meeting.
const PATIENCE: u32 = 30;

/// How often a thread looks for what others say.
const LOOK: Duration = Duration::from_millis(20);

/// Tags: agreements, signs of life and alarms, and from here on one per group.
const AGREE: u32 = 0;
const CONTROL: u32 = 1;
pub(super) const GROUPS: u32 = 2;

/// What a process says of its devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) devices: usize,
    pub(super) target: Target,
    /// Of the devices if they are alike.
    pub(super) fingerprint: Option<String>,
}

/// What a rank does, as its process tells the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing of a run: its process may do whatever it likes.
    Nothing = 0,
    /// Its share of a run.
    Work = 1,
    /// It is at a meeting: others keep it, and they are to blame.
    Meet = 2,
}

/// How far a rank has come: the count of its [`Links::pulse`]s and, in the two lowest bits, what it does.
type Pulse = u32;

/// What was heard of a process.
struct Heard {
    at: Instant,
    /// By its ranks the last pulse, and since when it is that.
    ranks: Vec<(Pulse, Instant)>,
}

/// The other processes.
pub(super) struct Links {
    pub(super) transport: Arc<dyn Transport>,
    /// Devices of every process.
    pub(super) hellos: Vec<Hello>,
    heard: Vec<Mutex<Heard>>,
    /// Of the ranks of this process.
    own: Vec<AtomicU32>,
    /// What another process has said went wrong, and which.
    alarm: Mutex<Option<(usize, String)>>,
    /// Ranks of this process that wait for others abroad: those at home have patience meanwhile.
    pub(super) abroad: AtomicUsize,
    timeout: Duration,
    over: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Links {
    /// Meets the other processes, each of which calls this too.
    ///
    /// # Errors
    /// If one does not come, or the transport fails.
    pub(super) fn new(transport: Arc<dyn Transport>, hello: &Hello, timeout: Duration) -> Result<Arc<Links>> {
        let n = transport.processes();
        let nothing = |_| Mutex::new(Heard { at: Instant::now(), ranks: vec![] });
        let mut links = Links {
            transport,
            hellos: vec![],
            heard: (0..n).map(nothing).collect(),
            own: (0..hello.devices).map(|_| AtomicU32::new(0)).collect(),
            alarm: Mutex::new(None),
            abroad: AtomicUsize::new(0),
            timeout,
            over: AtomicBool::new(false),
        };
        let bytes = postcard::to_allocvec(hello).map_err(|e| Error::Team(e.to_string()))?;
        // Nobody gives signs of life yet.
        let all = links.gather(&bytes, timeout * PATIENCE)?;
        let read =
            |b: &Vec<u8>| postcard::from_bytes(b).map_err(|e| Error::Team(format!("another version of dnx: {e}")));
        links.hellos = all.iter().map(read).collect::<Result<_>>()?;
        let links = Arc::new(links);
        let pulse = Arc::downgrade(&links);
        let beat = move || {
            let mut last: Option<Instant> = None;
            while let Some(links) = pulse.upgrade().filter(|l| !l.over.load(Ordering::SeqCst)) {
                if last.is_none_or(|t| t.elapsed() >= links.timeout / 10) {
                    last = Some(Instant::now());
                    let pulses = links.own.iter().flat_map(|p| p.load(Ordering::SeqCst).to_le_bytes());
                    links.tell(&[0].into_iter().chain(pulses).collect::<Vec<u8>>());
                }
                links.listen();
                drop(links);
                std::thread::sleep(LOOK);
            }
        };
        let spawned = std::thread::Builder::new().name("dnx-links".to_string()).spawn(beat);
        spawned.map_err(|e| Error::Team(format!("there is no thread for signs of life: {e}")))?;
        Ok(links)
    }

    /// The ranks of a process.
    pub(super) fn ranks(&self, process: usize) -> std::ops::Range<usize> {
        let first = self.hellos[..process].iter().map(|h| h.devices).sum();
        first..first + self.hellos[process].devices
    }

    /// The process of a rank.
    pub(super) fn process_of(&self, rank: usize) -> usize {
        (0..self.hellos.len()).find(|&p| self.ranks(p).contains(&rank)).expect("a rank of the team")
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.transport.process();
        (0..self.transport.processes()).filter(move |&p| p != own)
    }

    /// Notes that a rank of this process has come further, and what it does now.
    pub(super) fn pulse(&self, local: usize, doing: Doing) {
        let further = |pulse: Pulse| Some((pulse >> 2).wrapping_add(1) << 2 | doing as Pulse);
        // Each rank has its own, so there is nobody to race with.
        let _ = self.own[local].fetch_update(Ordering::SeqCst, Ordering::SeqCst, further);
    }

    /// Says something to all others. A transport that fails shows where somebody waits.
    fn tell(&self, bytes: &[u8]) {
        for process in self.others() {
            let _ = self.transport.post(process, CONTROL, bytes);
        }
        let _ = self.transport.is_settled(CONTROL);
    }

    /// Tells all others what went wrong here.
    pub(super) fn raise(&self, why: &str) {
        self.tell(&[&[1], why.as_bytes()].concat());
    }

    /// Hears what others have said.
    fn listen(&self) {
        let mut bytes = vec![];
        for process in self.others() {
            while let Ok(true) = self.transport.take(process, CONTROL, &mut bytes) {
                let mut heard = locked(&self.heard[process]);
                heard.at = Instant::now();
                match bytes.split_first() {
                    Some((1, why)) => {
                        locked(&self.alarm).get_or_insert((process, String::from_utf8_lossy(why).into_owned()));
                    }
                    Some((_, pulses)) => heard.hear(pulses),
                    None => {}
                }
            }
        }
    }

    /// What another process has said went wrong.
    pub(super) fn alarm(&self) -> Option<Error> {
        let alarm = locked(&self.alarm);
        alarm.as_ref().map(|(process, why)| Error::Elsewhere { process: *process, why: why.clone() })
    }

    /// Whether a process that has kept this one waiting since `since` is to be given up: within the timeout, the time that
    /// it takes to hear of it included. `limit` is how long one that is
    /// alive may take.
    fn is_lost(&self, process: usize, since: Instant, limit: Duration) -> bool {
        locked(&self.heard[process]).at.max(since).elapsed() > self.timeout * 4 / 5 || since.elapsed() > limit
    }

    /// Whether a rank that is waited for since `since` is at work and has come no further for `limit`.
    fn is_stuck(&self, rank: usize, since: Instant, limit: Duration) -> bool {
        let process = self.process_of(rank);
        let heard = locked(&self.heard[process]);
        heard
            .ranks
            .get(rank - self.ranks(process).start)
            .is_some_and(|(pulse, from)| pulse & 3 == Doing::Work as Pulse && (*from).max(since).elapsed() > limit)
    }

    /// Takes one message from each of these processes, and sees that what was posted is under way.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) fn collect(&self, tag: u32, inboxes: &mut [(usize, Vec<u8>)], waits: &Waiting) -> Result<(), Trouble> {
        let Waiting { limit, stop, members } = *waits;
        let since = Instant::now();
        let mut waiting: Vec<usize> = (0..inboxes.len()).collect();
        for round in 0u32.. {
            let mut failed = None;
            waiting.retain(|&i| {
                let (process, into) = &mut inboxes[i];
                self.transport.take(*process, tag, into).map_or_else(
                    |e| {
                        failed = Some(e);
                        true
                    },
                    |taken| !taken,
                )
            });
            if let Some(why) = failed {
                return Err(Trouble::Transport(why));
            }
            if waiting.is_empty() && self.transport.is_settled(tag).map_err(Trouble::Transport)? {
                return Ok(());
            }
            if stop() {
                return Err(Trouble::Stopped);
            }
            if let Some(error) = self.alarm() {
                return Err(Trouble::Alarm(error));
            }
            let kept_by: Vec<usize> = waiting.iter().map(|&i| inboxes[i].0).collect();
            let lost: Vec<usize> =
                kept_by.iter().copied().filter(|&p| self.is_lost(p, since, self.timeout * PATIENCE + limit)).collect();
            let of = |processes: &[usize], rank: usize| processes.contains(&self.process_of(rank));
            let lost: Vec<usize> = match lost.is_empty() {
                true => members
                    .iter()
                    .copied()
                    .filter(|&r| of(&kept_by, r))
                    .filter(|&r| self.is_stuck(r, since, self.timeout + limit))
                    .collect(),
                false => members.iter().copied().filter(|&r| of(&lost, r)).collect(),
            };
            if !lost.is_empty() {
                return Err(Trouble::Lost(lost, since.elapsed()));
            }
            // The others are a moment away, or longer.
            if round < 200 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(50)) }
        }
        unreachable!("rounds have no end")
    }

    /// What every process says, this one included, in order.
    ///
    /// # Errors
    /// If one does not come within `limit`, or the transport fails.
    fn gather(&self, bytes: &[u8], limit: Duration) -> Result<Vec<Vec<u8>>> {
        let own = self.transport.process();
        let failed = |why: String| Error::Team(format!("the transport between processes failed: {why}"));
        for process in self.others() {
            self.transport.post(process, AGREE, bytes).map_err(failed)?;
        }
        let mut inboxes: Vec<(usize, Vec<u8>)> = self.others().map(|p| (p, vec![])).collect();
        let since = Instant::now();
        for (process, into) in &mut inboxes {
            while !self.transport.take(*process, AGREE, into).map_err(failed)? {
                if let Some(error) = self.alarm() {
                    return Err(error);
                }
                // Before all have said hello nobody gives signs of life.
                let silent = !self.hellos.is_empty() && self.is_lost(*process, since, limit);
                if silent || since.elapsed() > limit {
                    let ranks = match self.hellos.is_empty() {
                        true => String::new(),
                        false => format!(" (ranks from {})", self.ranks(*process).start),
                    };
                    return Err(Error::Team(format!(
                        "process {process} of {}{ranks} has not come within {:.0} s: it has died, or it does something \
                         else; all processes load the same programs in the same order",
                        self.transport.processes(),
                        since.elapsed().as_secs_f64()
                    )));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        while !self.transport.is_settled(AGREE).map_err(failed)? {
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut all: Vec<Vec<u8>> = inboxes.into_iter().map(|(_, b)| b).collect();
        all.insert(own, bytes.to_vec());
        Ok(all)
    }

    /// Sees that all processes say the same; `what` they say it of.
    ///
    /// # Errors
    /// If they don't, or one does not come.
    pub(super) fn agree(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let all = self.gather(bytes, self.timeout * PATIENCE)?;
        match all.iter().position(|b| b != bytes) {
            None => Ok(()),
            Some(process) => Err(Error::Team(format!(
                "process {process} and process {} differ in {what}: start all with the same configuration",
                self.transport.process()
            ))),
        }
    }
}

impl Heard {
    /// Takes the pulses of the process's ranks, in order.
    fn hear(&mut self, pulses: &[u8]) {
        let told = pulses.chunks_exact(4).map(|b| Pulse::from_le_bytes([b[0], b[1], b[2], b[3]]));
        for (i, pulse) in told.enumerate() {
            match self.ranks.get_mut(i) {
                Some((last, _)) if *last == pulse => {}
                Some(rank) => *rank = (pulse, self.at),
                None => self.ranks.push((pulse, self.at)),
            }
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Why messages did not come.
#[derive(Debug)]
pub(super) enum Trouble {
    /// These ranks are lost; how long they were waited for.
    Lost(Vec<usize>, Duration),
    /// Another process says so.
    Alarm(Error),
    /// The transport's words.
    Transport(String),
    /// Somebody here has failed.
    Stopped,
}
