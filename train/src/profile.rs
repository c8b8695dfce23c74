//! Where the time of a step goes: every step of an executable timed on its device, beside what it should take.
//!
//! The *floor* of a step is the greater of its operations over the device's rate of them and its bytes over the
//! device's rate of those, both rates measured on the spot ([`Rates`]).

use crate::Result;
use crate::estimate::Rates;
use dnx_codegen::stats::StepCost;
use dnx_runtime::Bound;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

/// The times of the steps of one program.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Per step of the executable: what it is, and its median time.
    pub steps: Vec<(StepCost, Duration)>,
    /// The device's roof.
    pub rates: Rates,
}

/// A row of the table: all steps of one kernel.
struct Row<'a> {
    cost: &'a StepCost,
    count: usize,
    time: f64,
    flops: f64,
    bytes: f64,
    floor: f64,
}

impl Profile {
    /// Runs a program `runs` times (at least once, after one run that is not counted) and takes medians.
    ///
    /// # Errors
    /// If the device fails, or can't tell the times of single steps.
    pub fn of(bound: &Bound, rates: Rates, runs: usize) -> Result<Profile> {
        let exec = bound.program().exec();
        let mut times: Vec<Vec<Duration>> = vec![vec![]; exec.steps.len()];
        bound.profile()?;
        for _ in 0..runs.max(1) {
            for (all, time) in times.iter_mut().zip(bound.profile()?) {
                all.push(time);
            }
        }
        let median = |mut all: Vec<Duration>| {
            all.sort_unstable();
            all[all.len() / 2]
        };
        let costs = exec.steps.iter().map(|step| StepCost::of(exec, step));
        Ok(Profile { steps: costs.zip(times.into_iter().map(median)).collect(), rates })
    }

    /// The time of all steps.
    pub fn total(&self) -> Duration {
        self.steps.iter().map(|(_, time)| *time).sum()
    }

    fn floor(&self, cost: &StepCost) -> f64 {
        (cost.flops as f64 / self.rates.flops).max(cost.bytes as f64 / self.rates.bytes)
    }

    /// A row per kernel, the longest first.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<Row> = vec![];
        for (cost, time) in &self.steps {
            let at = rows.iter().position(|r| r.cost.kernel == cost.kernel && r.cost.kind == cost.kind);
            let at = at.unwrap_or_else(|| {
                rows.push(Row { cost, count: 0, time: 0.0, flops: 0.0, bytes: 0.0, floor: 0.0 });
                rows.len() - 1
            });
            let row = &mut rows[at];
            row.count += 1;
            row.time += time.as_secs_f64();
            row.flops += cost.flops as f64;
            row.bytes += cost.bytes as f64;
            row.floor += self.floor(cost);
        }
        rows.sort_by(|a, b| b.time.total_cmp(&a.time));
        rows
    }

    /// A table for people: per kernel its share of the time, what it reached, and its time over the floor.
    pub fn table(&self) -> String {
        let total = self.total().as_secs_f64().max(1e-12);
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<10} {:>6} {:>10} {:>6} {:>9} {:>8} {:>8}  name",
            "kind", "count", "ms", "%", "Gflop/s", "GB/s", "x floor"
        );
        let mut line = |kind: &str, count: usize, [time, flops, bytes, floor]: [f64; 4], name: &str| {
            let rate = |x: f64| if time > 0.0 { x / time / 1e9 } else { 0.0 };
            let over = if floor > 0.0 { format!("{:.1}", time / floor) } else { "-".to_string() };
            let _ = writeln!(
                out,
                "{kind:<10} {count:>6} {:>10.3} {:>6.1} {:>9.1} {:>8.1} {over:>8}  {name}",
                time * 1e3,
                100.0 * time / total,
                rate(flops),
                rate(bytes)
            );
        };
        let rows = self.rows();
        for r in &rows {
            line(r.cost.kind, r.count, [r.time, r.flops, r.bytes, r.floor], &r.cost.name);
        }
        let sum = |part: fn(&Row) -> f64| rows.iter().map(part).sum::<f64>();
        let all = [total, sum(|r| r.flops), sum(|r| r.bytes), sum(|r| r.floor)];
        line("total", self.steps.len(), all, "");
        let _ = writeln!(
            out,
            "the roof of this device, measured now: {:.0} Gflop/s, {:.1} GB/s",
            self.rates.flops / 1e9,
            self.rates.bytes / 1e9
        );
        out
    }

    /// The steps one after another in the trace-event format that Perfetto and chrome://tracing open.
    pub fn trace(&self, program: &str, device: &str) -> Value {
        let name =
            |what: &str, name: &str| json!({ "name": what, "ph": "M", "pid": 1, "tid": 1, "args": { "name": name } });
        let mut events = vec![name("process_name", &format!("dnx {program}")), name("thread_name", device)];
        let mut at = 0.0;
        for (cost, time) in &self.steps {
            let (seconds, micros) = (time.as_secs_f64(), time.as_secs_f64() * 1e6);
            events.push(json!({
                "name": if cost.name.is_empty() { cost.kind } else { &cost.name },
                "cat": cost.kind,
                "ph": "X",
                "pid": 1,
                "tid": 1,
                "ts": at,
                "dur": micros,
                "args": {
                    "kernel": cost.kernel,
                    "flops": cost.flops,
                    "bytes": cost.bytes,
                    "over_floor": seconds / self.floor(cost).max(1e-12),
                },
            }));
            at += micros;
        }
        json!({ "displayTimeUnit": "ms", "traceEvents": events })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::{Array, Graph, Type};
    use dnx_runtime::Device;

    #[test]
    fn every_step_is_timed_and_counted() {
        let g = Graph::new("f");
        let (a, b) = (g.param("a", Type::f32([64, 32])), g.param("b", Type::f32([32, 48])));
        let func = g.finish(&[a.matmul(b).exp().sum(&[0])]).unwrap();
        let device = Device::cpu();
        let program = device.compile(&func, &[]).unwrap();
        let inputs = [Array::zeros(Type::f32([64, 32])), Array::zeros(Type::f32([32, 48]))];
        let bound = program.bind(&device.upload_all(&inputs).unwrap()).unwrap();
        let profile = Profile::of(&bound, Rates { flops: 1e9, bytes: 1e9 }, 3).unwrap();
        assert_eq!(profile.steps.len(), program.exec().steps.len());
        let flops: u64 = profile.steps.iter().map(|(c, _)| c.flops).sum();
        assert_eq!(flops, dnx_codegen::stats::Stats::of(program.exec(), 0, 0).flops);
        let table = profile.table();
        assert!(table.contains("contract") && table.contains("1 Gflop/s"), "{table}");
        assert!(table.lines().any(|l| l.starts_with("total") && l.contains("100.0")), "{table}");
        let trace = profile.trace("f", "cpu");
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 2 + profile.steps.len());
        let ends = events.iter().filter(|e| e["ph"] == "X").map(|e| e["ts"].as_f64().unwrap());
        assert!(ends.is_sorted());
    }
}
