//! Sharing tasks among threads. Tasks are numbered; which thread takes which is left to chance, so no result may
//! depend on it. Nothing is allocated.
//!
//! The thread that shares takes tasks itself at once. Helpers join it as they wake; one that comes too late is not
//! waited for. Between one piece of work and the next they watch for a moment before they sleep, since within a
//! program the next piece follows closely.
//!
//! All threads share the helpers of the process, one at a time, except those that keep helpers of their own
//! ([`keep_helpers`]): the ranks of a team run at once, each with its share of the cores.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};

/// Looks at the turn before a helper sleeps: some tens of microseconds.
const WATCH: usize = 1500;
/// Looks at the gate before the thread that shares offers its core to others.
const LINGER: usize = 200;
/// The bit of the gate that says helpers may come in; below it they are counted.
const OPEN: usize = 1 << (usize::BITS - 1);

/// Calls `work(worker, task)` for every task. Workers are numbered below `threads`, and each is one thread at a
/// time, so that it may own scratch memory.
pub(crate) fn share(threads: usize, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let threads = threads.min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(|task| work(0, task));
        return;
    }
    OWN.with(|own| match own.try_borrow_mut().as_deref_mut() {
        Ok(Some(pool)) => share_with(Some(pool), threads, tasks, work),
        Ok(None) => match POOL.try_lock() {
            Ok(mut pool) => share_with(Some(&mut pool), threads, tasks, work),
            // Of a panic in some work, which has been waited for.
            Err(TryLockError::Poisoned(pool)) => share_with(Some(&mut pool.into_inner()), threads, tasks, work),
            Err(TryLockError::WouldBlock) => share_with(None, threads, tasks, work),
        },
        // Work within work.
        Err(_) => share_with(None, threads, tasks, work),
    });
}

/// From now on this thread has helpers of its own, for as long as it lives.
pub(crate) fn keep_helpers() {
    OWN.with(|own| {
        own.borrow_mut().get_or_insert(Pool { crew: None, helpers: 0 });
    });
}

/// [`share`] with these helpers; where others have them, this thread gets on alone.
fn share_with(pool: Option<&mut Pool>, threads: usize, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let Some(pool) = pool else {
        (0..tasks).for_each(|task| work(0, task));
        return;
    };
    let next = AtomicUsize::new(0);
    let drain = |worker: usize| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(worker, task);
        }
    };
    pool.run(threads, &drain);
}

static POOL: Mutex<Pool> = Mutex::new(Pool { crew: None, helpers: 0 });

thread_local! {
    static OWN: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// The helpers of this process, or of one thread.
struct Pool {
    crew: Option<Arc<Crew>>,
    helpers: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(crew) = &self.crew {
            crew.over.store(true, Ordering::SeqCst);
            crew.turn.fetch_add(1, Ordering::SeqCst);
            let _bed = locked(&crew.bed);
            crew.alarm.notify_all();
        }
    }
}

/// What helpers and the thread that shares have in common.
struct Crew {
    /// Grows with every piece of work.
    turn: AtomicUsize,
    /// [`OPEN`] while work may be taken up, plus how many helpers are at it.
    gate: AtomicUsize,
    /// The work: written while the gate is closed and nobody is inside.
    job: Mutex<Option<Job>>,
    failed: AtomicBool,
    /// Helpers go home.
    over: AtomicBool,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

/// Work of helpers below a number. The pointer is good until the gate is closed and all are out.
#[derive(Clone, Copy)]
struct Job {
    threads: usize,
    drain: *const (dyn Fn(usize) + Sync + 'static),
}

// The work is `Sync`, and the thread that shares waits for those who have taken it up.
unsafe impl Send for Job {}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Pool {
    fn run(&mut self, threads: usize, drain: &(dyn Fn(usize) + Sync)) {
        let crew = self.crew.get_or_insert_with(|| Arc::new(Crew::new())).clone();
        while self.helpers + 1 < threads {
            let (crew, number) = (crew.clone(), self.helpers + 1);
            let spawned =
                std::thread::Builder::new().name(format!("dnx-cpu-{number}")).spawn(move || crew.help(number));
            if spawned.is_err() {
                break;
            }
            self.helpers += 1;
        }
        // SAFETY: only the lifetime changes; `Closing` keeps the work from being used after this function.
        let drain: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(drain) };
        *locked(&crew.job) = Some(Job { threads, drain });
        crew.gate.store(OPEN, Ordering::SeqCst);
        crew.turn.fetch_add(1, Ordering::SeqCst);
        let closing = Closing(&crew);
        if crew.asleep.load(Ordering::SeqCst) > 0 {
            let _bed = locked(&crew.bed);
            crew.alarm.notify_all();
        }
        // SAFETY: it is the caller's.
        unsafe { (*drain)(0) };
        drop(closing);
        assert!(!crew.failed.swap(false, Ordering::SeqCst), "a thread of the cpu device panicked");
    }
}

/// Closes the gate and waits for those inside, even if the work panics.
struct Closing<'a>(&'a Crew);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0;
        while self.0.gate.load(Ordering::SeqCst) != 0 {
            looks += 1;
            if looks < LINGER { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Crew {
    fn new() -> Crew {
        Crew {
            turn: AtomicUsize::new(0),
            gate: AtomicUsize::new(0),
            job: Mutex::new(None),
            failed: AtomicBool::new(false),
            over: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        }
    }

    /// A helper's life.
    fn help(&self, number: usize) {
        let mut seen = 0;
        loop {
            self.wait(seen);
            seen = self.turn.load(Ordering::SeqCst);
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let enter = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter).is_err() {
                continue;
            }
            let job = *locked(&self.job);
            if let Some(job) = job.filter(|job| number < job.threads) {
                // SAFETY: the gate was open, so the thread that shares waits for this one.
                if catch_unwind(AssertUnwindSafe(|| unsafe { (*job.drain)(number) })).is_err() {
                    self.failed.store(true, Ordering::SeqCst);
                }
            }
            self.gate.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Returns when the turn is no longer `seen`.
    fn wait(&self, seen: usize) {
        for _ in 0..WATCH {
            if self.turn.load(Ordering::SeqCst) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        let mut bed = locked(&self.bed);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while self.turn.load(Ordering::SeqCst) == seen {
            bed = self.alarm.wait(bed).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        for (threads, tasks) in [(1, 5), (2, 1), (2, 1000), (5, 37), (4, 0)] {
            let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..50 {
                share(threads, tasks, &|worker, task| {
                    assert!(worker < threads);
                    done[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == round));
            }
        }
    }

    #[test]
    fn several_may_share_at_once_and_within() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let sum = AtomicUsize::new(0);
                        share(3, 20, &|_, task| {
                            share(2, 3, &|_, inner| {
                                sum.fetch_add(task * inner, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.into_inner(), 190 * 3);
                    }
                });
            }
        });
    }

    #[test]
    fn threads_with_helpers_of_their_own_share_at_once() {
        let inside = AtomicUsize::new(0);
        let most = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    keep_helpers();
                    for _ in 0..20 {
                        let done: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
                        share(2, 50, &|worker, task| {
                            assert!(worker < 2);
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_micros(100));
                            done[task].fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                        assert!(done.iter().all(|d| d.load(Ordering::SeqCst) == 1));
                    }
                });
            }
        });
        assert!((3..=4).contains(&most.into_inner()), "two threads and a helper of each");
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for _ in 0..20 {
            let run = || share(3, 64, &|_, task| assert!(task != 40, "task 40"));
            assert!(catch_unwind(run).is_err());
        }
        share(3, 10, &|_, _| ());
    }
}
