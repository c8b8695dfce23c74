//! What a device tells, and asks for, while it walks the steps of a program: its *company*. A device on its own has
//! none; in a team the company is the other ranks, which it meets at every collective.

use std::time::{Duration, Instant};

/// The place of a program's device among those that run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Its id in the mesh.
    pub(crate) rank: usize,
    /// Threads that a cpu device may use.
    pub(crate) threads: usize,
    /// Whether a GPU goes on with other work while values are exchanged.
    pub(crate) overlap: bool,
}

impl Seat {
    /// A device on its own, with all the threads there are.
    pub(crate) fn alone() -> Seat {
        Seat { rank: 0, threads: rayon::current_num_threads(), overlap: false }
    }
}

/// Host memory of one value that is exchanged: where the operand is read and where the result goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) src: *const u8,
    pub(crate) dst: *mut u8,
}

// Addresses of memory that the bound program keeps; who touches it when is the company's business.
unsafe impl Send for Span {}
unsafe impl Sync for Span {}

/// The company has ended the run; why is known to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// Those with whom a program runs.
pub(crate) trait Company {
    /// Meets the others at the collective of this number, which is this step of the executable, and returns when the
    /// results are there.
    ///
    /// # Safety
    /// The spans are those of the step's parts, and nothing else touches them during the call.
    unsafe fn meet(&mut self, at: usize, step: usize, spans: &[Span]) -> Result<(), Stopped>;

    /// This step and all before it have run. A GPU tells of the last of several that it has waited for.
    fn done(&mut self, step: usize);

    /// Whether the run is to end only when all its work has, so that it can be timed.
    fn wants_the_end(&self) -> bool {
        false
    }
}

/// No company.
pub(crate) struct Alone;

impl Company for Alone {
    unsafe fn meet(&mut self, _: usize, _: usize, _: &[Span]) -> Result<(), Stopped> {
        Err(Stopped)
    }

    fn done(&mut self, _: usize) {}
}

/// No company, but a stopwatch: the time of each step.
pub(crate) struct Stopwatch {
    pub(crate) times: Vec<Duration>,
    before: Instant,
}

impl Stopwatch {
    pub(crate) fn new(steps: usize) -> Stopwatch {
        Stopwatch { times: vec![Duration::ZERO; steps], before: Instant::now() }
    }
}

impl Company for Stopwatch {
    unsafe fn meet(&mut self, _: usize, _: usize, _: &[Span]) -> Result<(), Stopped> {
        Err(Stopped)
    }

    fn done(&mut self, step: usize) {
        let now = Instant::now();
        self.times[step] = now - self.before;
        self.before = now;
    }
}
