//! Progress for the person at the terminal: a bar there, plain lines otherwise. It goes to stderr, so that
//! stdout stays for results.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Steps done.
    pub step: u64,
    /// Last loss brought down.
    pub loss: f64,
    /// Steps a second, lately.
    pub steps_per_s: f64,
    /// Samples a second, lately.
    pub samples_per_s: f64,
}

/// Shows progress.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    quiet: bool,
    last_line: Option<Instant>,
}

/// Least time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

impl Progress {
    /// Progress to `total` steps. `quiet` shows nothing.
    pub fn new(total: u64, done: u64, quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            // The template is ours; should it not parse, the default bar does.
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ETA {eta}") {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, total, quiet, last_line: None }
    }

    /// Says where the run stands; the last step is always said.
    pub fn show(&mut self, status: Status) {
        let text =
            format!("loss {:.4}  {:.1} it/s  {:.0} samples/s", status.loss, status.steps_per_s, status.samples_per_s);
        if let Some(bar) = &self.bar {
            bar.set_position(status.step);
            bar.set_message(text);
            return;
        }
        let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) || status.step == self.total;
        if due && !self.quiet {
            let left = (self.total.saturating_sub(status.step)) as f64 / status.steps_per_s.max(1e-9);
            eprintln!("step {}/{}  {text}  ETA {}", status.step, self.total, duration(left));
            self.last_line = Some(Instant::now());
        }
    }

    /// A line that stays, above the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None if !self.quiet => eprintln!("{text}"),
            None => {}
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn duration(seconds: f64) -> String {
    let s = seconds.round().clamp(0.0, 1e9) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!([7.4, 61.0, 3600.0 * 2.5, f64::INFINITY].map(duration), ["7s", "1m01s", "2h30m", "277777h46m"]);
    }
}
