//! Workers: one thread per rank, which lives as long as the team. Work is sent to all at once.

use crate::{Error, Result};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

/// Work of a run: called on every thread with its number.
pub(super) type Job = Arc<dyn Fn(usize) + Send + Sync>;

/// The threads of a team.
pub(super) struct Workers {
    /// Held during a run: jobs reach all threads in one order. `Some`: a thread has not come back from a run, and why.
    pub(super) turn: Mutex<Option<String>>,
    desks: Vec<Mutex<Sender<Job>>>,
}

impl Workers {
    /// So many threads, each with helpers of its own (a single one has those of the process). They end when the team is
    /// gone.
    pub(super) fn new(ranks: usize) -> Result<Workers> {
        let desk = |rank: usize| {
            let (sender, jobs) = channel::<Job>();
            let work = move || {
                if ranks > 1 {
                    crate::cpu::keep_helpers();
                }
                jobs.into_iter().for_each(|job| job(rank));
            };
            let spawned = std::thread::Builder::new().name(format!("dnx-rank-{rank}")).spawn(work);
            spawned.map_err(|e| Error::Team(format!("there is no thread for rank {rank}: {e}")))?;
            Ok(Mutex::new(sender))
        };
        Ok(Workers { turn: Mutex::new(None), desks: (0..ranks).map(desk).collect::<Result<_>>()? })
    }

    /// Has every thread do the job.
    pub(super) fn send(&self, job: &Job) {
        for desk in &self.desks {
            // A thread ends only when its desk is gone.
            let _ = desk.lock().unwrap_or_else(|p| p.into_inner()).send(job.clone());
        }
    }
}
