//! Batches made ahead of time by worker threads. Workers claim steps in order and may finish out of order; the
//! consumer takes them in order. At most `depth` batches wait; dropping the [`Prefetch`] stops the workers.

use super::{Batch, Dataset};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Batches of consecutive steps, made in the background.
pub struct Prefetch {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
}

struct Shared {
    dataset: Arc<Dataset>,
    /// The samples of a batch that are wanted.
    rows: Vec<bool>,
    depth: u64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    /// The next step a worker may claim.
    claim: u64,
    /// The step the consumer wants next.
    wanted: u64,
    ready: BTreeMap<u64, Result<Batch>>,
    stop: bool,
}

impl Shared {
    /// The lock; a worker that panicked has left the queue in a usable state.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Prefetch {
    /// Batches of `batch` samples from step `first` on. With no workers they are made when asked for.
    pub fn new(dataset: Arc<Dataset>, batch: usize, first: u64, workers: usize) -> Prefetch {
        Prefetch::of_rows(dataset, vec![true; batch], first, workers)
    }

    /// [`Prefetch::new`] that reads only the wanted samples of each batch; the others are zeros.
    pub fn of_rows(dataset: Arc<Dataset>, rows: Vec<bool>, first: u64, workers: usize) -> Prefetch {
        let queue = Queue { claim: first, wanted: first, ready: BTreeMap::new(), stop: false };
        let depth = 2 * workers as u64 + 1;
        let shared = Arc::new(Shared { dataset, rows, depth, queue: Mutex::new(queue), changed: Condvar::new() });
        let workers = (0..workers)
            .filter_map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("data-{i}")).spawn(move || work(&shared)).ok()
            })
            .collect();
        Prefetch { shared, workers, next: first }
    }

    /// The batch of the next step.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let step = self.next;
        self.next += 1;
        if self.workers.is_empty() {
            return self.shared.dataset.batch_of(step, &self.shared.rows);
        }
        let mut queue = self.shared.lock();
        queue.wanted = step;
        self.shared.changed.notify_all();
        loop {
            if let Some(batch) = queue.ready.remove(&step) {
                queue.wanted = step + 1;
                self.shared.changed.notify_all();
                return batch;
            }
            queue = self.shared.changed.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was already handed to the consumer as the error of its step.
            worker.join().ok();
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let step = {
            let mut queue = shared.lock();
            loop {
                if queue.stop {
                    return;
                }
                if queue.claim < queue.wanted + shared.depth {
                    break;
                }
                queue = shared.changed.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            queue.claim += 1;
            queue.claim - 1
        };
        let made = catch_unwind(AssertUnwindSafe(|| shared.dataset.batch_of(step, &shared.rows)))
            .unwrap_or_else(|_| Err(Error::Data(format!("reading the batch of step {step} panicked; this is a bug"))));
        shared.lock().ready.insert(step, made);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataConfig, DataKind};
    use super::*;

    fn dataset() -> Arc<Dataset> {
        let config = DataConfig { kind: DataKind::Shapes, count: 50, ..DataConfig::default() };
        Arc::new(Dataset::open(&config, 3).unwrap())
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let batches = |workers: usize, first: u64| -> Vec<Batch> {
            let mut prefetch = Prefetch::new(dataset(), 8, first, workers);
            (0..12).map(|_| prefetch.next_batch().unwrap()).collect()
        };
        let reference = batches(0, 0);
        assert_eq!(reference, batches(1, 0));
        assert_eq!(reference, batches(4, 0));
        assert_eq!(reference[5..], batches(2, 5)[..7]);
    }

    #[test]
    fn dropping_early_ends_the_workers() {
        let mut prefetch = Prefetch::new(dataset(), 4, 0, 3);
        prefetch.next_batch().unwrap();
        let shared = Arc::downgrade(&prefetch.shared);
        drop(prefetch);
        assert!(shared.upgrade().is_none(), "a worker still holds the queue");
    }

    #[test]
    fn an_error_surfaces_at_its_step() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..4 {
            image::RgbImage::new(8, 8).save(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let config = DataConfig {
            kind: DataKind::Images,
            path: Some(dir.path().to_path_buf()),
            size: Some(8),
            ..DataConfig::default()
        };
        let dataset = Arc::new(Dataset::open(&config, 0).unwrap());
        std::fs::write(dir.path().join("2.png"), b"broken").unwrap();
        let mut prefetch = Prefetch::new(dataset, 1, 0, 2);
        let results: Vec<Result<Batch>> = (0..4).map(|_| prefetch.next_batch()).collect();
        let errors: Vec<String> = results.iter().filter_map(|r| r.as_ref().err().map(|e| e.to_string())).collect();
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("2.png"), "{}", errors[0]);
    }
}
