//! Sharing tasks among threads. Tasks are numbered; which thread takes which is left to chance, so no result may
//! depend on it. Nothing is allocated.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work(worker, task)` for every task. Workers are numbered below `threads`, and each is one thread at a
/// time, so that it may own scratch memory.
pub(crate) fn share(threads: usize, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let threads = threads.min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(|task| work(0, task));
        return;
    }
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
    fork(0, threads, &drain);
}

fn fork(from: usize, to: usize, drain: &(dyn Fn(usize) + Sync)) {
    if to - from == 1 {
        return drain(from);
    }
    let middle = from + (to - from) / 2;
    let before = WAITS.replace(true);
    rayon::join(|| fork(from, middle, drain), || fork(middle, to, drain));
    WAITS.set(before);
}

thread_local! {
    static WAITS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a fork, where the pool may give it foreign tasks while it waits.
pub(crate) fn waits() -> bool {
    WAITS.get()
}
