//! Scratch memory, allocated once: one shared area per program, and for each worker an area, values and argument
//! addresses of its own.

use super::memory::CpuMemory;
use super::ops::Src;

/// What a kernel needs; for a program the maximum over its kernels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Need {
    /// Words shared by all workers.
    pub(crate) shared: usize,
    /// Words per worker.
    pub(crate) words: usize,
    /// Values per worker.
    pub(crate) vals: usize,
    /// Arguments, those beyond the kernel's own included.
    pub(crate) args: usize,
}

impl Need {
    pub(crate) fn max(self, other: Need) -> Need {
        Need {
            shared: self.shared.max(other.shared),
            words: self.words.max(other.words),
            vals: self.vals.max(other.vals),
            args: self.args.max(other.args),
        }
    }
}

/// The memory.
pub(crate) struct Scratch {
    shared: CpuMemory,
    workers: Vec<(CpuMemory, Vec<Src>, Vec<*mut u8>)>,
}

// Addresses inside are of the scratch itself or of a run's arguments, which the run keeps alive.
unsafe impl Send for Scratch {}
unsafe impl Sync for Scratch {}

/// One worker's part.
#[derive(Clone, Copy)]
pub(crate) struct Worker {
    pub(crate) words: *mut u32,
    pub(crate) vals: *mut Src,
    pub(crate) args: *mut *mut u8,
}

impl Scratch {
    pub(crate) fn new(need: Need, threads: usize) -> Result<Scratch, String> {
        let area = |words: usize| -> Result<CpuMemory, String> {
            let memory = CpuMemory::pack(&[(words * 4 + 256) as u64]);
            Ok(memory.map_err(|_| format!("no memory for {words} words of scratch"))?.remove(0))
        };
        let worker = |_| -> Result<_, String> {
            let vals = vec![Src { ptr: std::ptr::null(), step: 0 }; need.vals];
            Ok((area(need.words)?, vals, vec![std::ptr::null_mut(); need.args]))
        };
        Ok(Scratch { shared: area(need.shared)?, workers: (0..threads.max(1)).map(worker).collect::<Result<_, _>>()? })
    }

    /// How many workers there is memory for.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len()
    }

    /// The shared words.
    pub(crate) fn shared(&self) -> *mut u32 {
        self.shared.ptr() as *mut u32
    }

    /// A worker's part. Each worker is one thread at a time; see [`super::threads::share`].
    pub(crate) fn worker(&self, worker: usize) -> Worker {
        let (words, vals, args) = &self.workers[worker];
        Worker { words: words.ptr() as *mut u32, vals: vals.as_ptr().cast_mut(), args: args.as_ptr().cast_mut() }
    }
}
