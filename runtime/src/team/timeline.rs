//! Timelines: when each rank computed, waited for others and exchanged with them, in one run.

use serde_json::{Value, json};
use std::time::Duration;

/// What a rank was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StretchKind {
    /// Kernels and copies. On a cpu device one step, on a GPU all steps between two meetings.
    Compute,
    /// At a meeting, waiting for the others to come or to finish.
    Wait,
    /// At a meeting, exchanging.
    Exchange,
}

impl StretchKind {
    /// Its name in traces.
    pub const fn name(self) -> &'static str {
        match self {
            StretchKind::Compute => "compute",
            StretchKind::Wait => "wait",
            StretchKind::Exchange => "exchange",
        }
    }
}

/// A stretch of time of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The rank.
    pub rank: usize,
    /// What it was doing.
    pub kind: StretchKind,
    /// The last step of the executable that it was doing it for.
    pub step: usize,
    /// The step's name: its model path, or what is exchanged.
    pub name: String,
    /// Begin, since the run began.
    pub begin: Duration,
    /// End, since the run began.
    pub end: Duration,
}

/// One run of a team, stretch by stretch: those of each rank follow one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The ranks of this process and the names of their devices.
    pub ranks: Vec<(usize, String)>,
    /// In order of rank, then of time.
    pub stretches: Vec<Stretch>,
}

impl Timeline {
    /// The time a rank spent so.
    pub fn total(&self, rank: usize, kind: StretchKind) -> Duration {
        let of = self.stretches.iter().filter(|s| s.rank == rank && s.kind == kind);
        of.map(|s| s.end - s.begin).sum()
    }

    /// When the last rank was done.
    pub fn end(&self) -> Duration {
        self.stretches.iter().map(|s| s.end).max().unwrap_or_default()
    }

    /// The events of the trace-event format that Perfetto and chrome://tracing open: a process per rank, with a thread
    /// for what it computes and one for its meetings.
    pub fn events(&self, program: &str) -> Vec<Value> {
        let mut events = vec![];
        for (rank, device) in &self.ranks {
            let name = |what: &str, tid: usize, name: &str| json!({ "name": what, "ph": "M", "pid": rank + 1, "tid": tid, "args": { "name": name } });
            events.push(name("process_name", 0, &format!("dnx {program}, rank {rank} on {device}")));
            events.push(name("thread_name", 1, "steps"));
            events.push(name("thread_name", 2, "meetings"));
        }
        events.extend(self.stretches.iter().map(|s| {
            let micros = |d: Duration| d.as_secs_f64() * 1e6;
            json!({
                "name": s.name,
                "cat": s.kind.name(),
                "ph": "X",
                "pid": s.rank + 1,
                "tid": if s.kind == StretchKind::Compute { 1 } else { 2 },
                "ts": micros(s.begin),
                "dur": micros(s.end - s.begin),
                "args": { "step": s.step, "kind": s.kind.name() },
            })
        }));
        events
    }

    /// A whole trace of [`Timeline::events`].
    pub fn trace(&self, program: &str) -> Value {
        json!({ "displayTimeUnit": "ms", "traceEvents": self.events(program) })
    }
}
