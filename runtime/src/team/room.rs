//! Rooms: where the ranks of one group meet. A meeting has three parts. A rank *enters* with what it brings and waits
//! for the others; then each does its share of the work, reading and writing what all have brought; then it *leaves*,
//! which it may only when nobody is at work any more, since others use its memory until then.
//!
//! Members in other processes bring nothing themselves; who speaks with their processes brings it for them.
//!
//! A [`Crisis`] ends all meetings of a run: who waits to enter goes, and who is at work finishes and goes.

use crate::company::{Span, Stopped};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Looks at the door before a rank sleeps.
const WATCH: usize = 2000;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Why a run has ended early: the first thing that went wrong.
pub(super) struct Crisis<F> {
    raised: AtomicBool,
    fault: Mutex<Option<F>>,
}

impl<F> Crisis<F> {
    pub(super) fn new() -> Crisis<F> {
        Crisis { raised: AtomicBool::new(false), fault: Mutex::new(None) }
    }

    /// Whether something went wrong.
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Notes what went wrong, if it is the first; all in these rooms hear of it.
    pub(super) fn raise(&self, fault: F, rooms: &[Room]) {
        locked(&self.fault).get_or_insert(fault);
        self.raised.store(true, Ordering::SeqCst);
        for room in rooms {
            // Who has seen no crisis under this lock is asleep when it is free.
            let _door = locked(&room.door);
            room.bell.notify_all();
        }
    }

    /// Looks at what went wrong.
    pub(super) fn seen<T>(&self, look: impl FnOnce(&F) -> T) -> Option<T> {
        locked(&self.fault).as_ref().map(look)
    }

    /// Gives what went wrong, and forgets it.
    pub(super) fn end(&self) -> Option<F> {
        self.raised.store(false, Ordering::SeqCst);
        locked(&self.fault).take()
    }
}

/// The meeting place of a group.
pub(super) struct Room {
    /// Their ranks, in order: the place of each is its position.
    pub(super) members: Vec<usize>,
    /// The places whose ranks are in this process.
    pub(super) here: Vec<usize>,
    /// By place what a rank brings: written by it before it enters, read by all while they work.
    spans: Vec<UnsafeCell<Vec<Span>>>,
    door: Mutex<Door>,
    bell: Condvar,
    /// Grows when all have come, and when all may go.
    turns: AtomicUsize,
    /// Looks before sleeping; none where there are more ranks than cores.
    watch: usize,
}

// What a rank brings is touched in turns that the door keeps.
unsafe impl Sync for Room {}

struct Door {
    /// By place who has come.
    here: Vec<bool>,
    /// How many are at work.
    busy: usize,
}

/// Until when a rank waits for the others, and since when. While ranks of this process wait for other processes
/// (`abroad`), it has patience.
pub(super) struct Patience<'a> {
    pub(super) since: Instant,
    pub(super) limit: Duration,
    pub(super) abroad: Option<&'a AtomicUsize>,
}

impl Patience<'_> {
    /// How long it still waits; `None`: no longer.
    fn left(&self) -> Option<Duration> {
        let left = self.limit.saturating_sub(self.since.elapsed());
        let waits = self.abroad.is_some_and(|n| n.load(Ordering::SeqCst) > 0);
        match (left.is_zero(), waits) {
            (false, _) => Some(left),
            (true, true) => Some(Duration::from_millis(100)),
            (true, false) => None,
        }
    }
}

impl Room {
    /// A room for these, of whom those at the places `here` are in this process, and whose meetings have at most so many
    /// parts.
    pub(super) fn new(members: Vec<usize>, here: Vec<usize>, parts: usize, crowded: bool) -> Room {
        let n = members.len();
        Room {
            members,
            here,
            spans: (0..n).map(|_| UnsafeCell::new(Vec::with_capacity(parts))).collect(),
            door: Mutex::new(Door { here: vec![false; n], busy: 0 }),
            bell: Condvar::new(),
            turns: AtomicUsize::new(0),
            watch: if crowded { 0 } else { WATCH },
        }
    }

    /// Makes it ready for a new run. Nobody is in it.
    pub(super) fn clear(&self) {
        let mut door = locked(&self.door);
        door.here.fill(false);
        door.busy = 0;
    }

    /// Comes with `spans` and waits for the others.
    ///
    /// # Errors
    /// If there is a crisis; or some have not come in time: `Err(Some(who))`.
    ///
    /// # Safety
    /// `place` is the caller's own. After `Ok` it must [`Room::leave`] before it touches what it has brought.
    pub(super) unsafe fn enter<F>(
        &self,
        place: usize,
        spans: &[Span],
        crisis: &Crisis<F>,
        patience: &Patience,
    ) -> Result<(), Option<Vec<usize>>> {
        // SAFETY: the others read it only between their enter and leave, for which they wait for this rank.
        unsafe { self.bring(place, spans) };
        let mut door = locked(&self.door);
        if crisis.is_raised() {
            return Err(None);
        }
        door.here[place] = true;
        if self.here.iter().all(|&p| door.here[p]) {
            door.here.fill(false);
            door.busy = self.here.len();
            self.turn(door);
            return Ok(());
        }
        let seen = self.turns.load(Ordering::SeqCst);
        drop(door);
        self.watch(seen);
        let mut door = locked(&self.door);
        while self.turns.load(Ordering::SeqCst) == seen {
            if crisis.is_raised() {
                return Err(None);
            }
            let Some(left) = patience.left() else {
                return Err(Some(self.missing(&door)));
            };
            door = self.bell.wait_timeout(door, left).unwrap_or_else(|p| p.into_inner()).0;
        }
        if crisis.is_raised() {
            // It counts as one at work since all have come.
            self.finish(door);
            return Err(None);
        }
        Ok(())
    }

    /// Puts down what a member brings.
    ///
    /// # Safety
    /// Nobody reads it now.
    pub(super) unsafe fn bring(&self, place: usize, spans: &[Span]) {
        let own = unsafe { &mut *self.spans[place].get() };
        own.clear();
        own.extend_from_slice(spans);
    }

    /// Who waits here to enter, and for whom.
    pub(super) fn waiting(&self) -> (Vec<usize>, Vec<usize>) {
        let door = locked(&self.door);
        let come = self.here.iter().filter(|&&p| door.here[p]).map(|&p| self.members[p]).collect();
        (come, self.missing(&door))
    }

    fn missing(&self, door: &Door) -> Vec<usize> {
        self.here.iter().filter(|&&p| !door.here[p]).map(|&p| self.members[p]).collect()
    }

    /// What the members have brought for a part, by place.
    ///
    /// # Safety
    /// Between the caller's enter and leave.
    pub(super) unsafe fn spans(&self, part: usize, out: &mut Vec<Span>) {
        out.clear();
        let nothing = Span { src: std::ptr::null(), dst: std::ptr::null_mut() };
        // An absent member of whom nothing is read has brought nothing.
        out.extend(self.spans.iter().map(|s| unsafe { &*s.get() }.get(part).copied().unwrap_or(nothing)));
    }

    /// Waits until nobody is at work.
    ///
    /// # Errors
    /// If there is a crisis: the work may not be done.
    pub(super) fn leave<F>(&self, crisis: &Crisis<F>) -> Result<(), Stopped> {
        let door = locked(&self.door);
        let seen = self.turns.load(Ordering::SeqCst);
        if let Some(door) = self.finish(door) {
            drop(door);
            self.watch(seen);
            let mut door = locked(&self.door);
            while self.turns.load(Ordering::SeqCst) == seen {
                door = self.bell.wait(door).unwrap_or_else(|p| p.into_inner());
            }
        }
        if crisis.is_raised() { Err(Stopped) } else { Ok(()) }
    }

    /// One is no longer at work. Gives the door back if others still are.
    fn finish<'a>(&self, mut door: MutexGuard<'a, Door>) -> Option<MutexGuard<'a, Door>> {
        door.busy -= 1;
        if door.busy > 0 {
            return Some(door);
        }
        self.turn(door);
        None
    }

    fn turn(&self, door: MutexGuard<'_, Door>) {
        self.turns.fetch_add(1, Ordering::SeqCst);
        self.bell.notify_all();
        drop(door);
    }

    fn watch(&self, seen: usize) {
        for _ in 0..self.watch {
            if self.turns.load(Ordering::SeqCst) != seen {
                return;
            }
            std::hint::spin_loop();
        }
    }
}
