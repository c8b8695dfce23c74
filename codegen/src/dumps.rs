//! What the last stages look like when they are printed.

use crate::exec::{Executable, Part, Step};
use crate::fuse::Group;
use crate::memory::{Life, at_peak};
use crate::schedule::Schedule;
use dnx_ir::Func;
use std::cmp::Reverse;

/// Values of the peak that are listed.
const AT_PEAK: usize = 40;

/// Clusters with their nodes, then the reasons.
pub fn fusion_text(func: &Func, groups: &[Group], reasons: &[String]) -> String {
    let mut out = String::new();
    for (i, g) in groups.iter().enumerate() {
        let outputs: Vec<String> = g.outputs.iter().map(|v| format!("%{}: {}", v.0, func.ty(*v))).collect();
        out += &format!("cluster {i}: {} -> {}\n", g.work.name(), outputs.join(", "));
        for m in &g.members {
            let n = &func.nodes[m.index()];
            let operands: Vec<String> = n.operands.iter().map(|o| format!("%{}", o.0)).collect();
            out += &format!("  %{} = {} {}  {}\n", n.results[0].0, n.op.name(), operands.join(", "), n.loc);
        }
    }
    for r in reasons {
        out += &format!("// {r}\n");
    }
    out
}

/// The order of work, and where results go.
pub fn schedule_text(func: &Func, groups: &[Group], plan: &Schedule) -> String {
    let mut out = String::new();
    for (s, batch) in plan.steps.iter().enumerate() {
        let names: Vec<String> = batch
            .iter()
            .map(|&g| {
                let last = groups[g].members.last().expect("groups have members");
                format!("cluster {g} ({} {})", groups[g].work.name(), func.nodes[last.index()].loc)
            })
            .collect();
        out += &format!("{s}: {}\n", names.join(", "));
    }
    for (j, place) in plan.places.iter().enumerate() {
        let donated = plan.donated[j].map_or(String::new(), |i| format!(" in the memory of input {i}"));
        out += &format!("result {j}: {place:?}{donated}\n");
    }
    out
}

/// The plan of memory: the peak, the largest values that live there, and where each step reads and writes.
pub fn memory_text(func: &Func, exec: &Executable, lives: &[Life]) -> String {
    let mut out = format!("peak {} bytes, slabs {:?}\n", exec.peak_bytes, exec.slabs);
    let (step, mut living) = at_peak(lives);
    let bytes: u64 = living.iter().map(|l| l.bytes).sum();
    out += &format!("most temporary values live at step {step}: {} of {bytes} bytes; the largest:\n", living.len());
    living.sort_by_key(|l| (Reverse(l.bytes), l.value));
    for l in living.iter().take(AT_PEAK) {
        let node = func.def(l.value);
        let (ty, op) = (func.ty(l.value), node.op.name());
        out += &format!("  %{} {ty} steps {} to {}: {op} {}\n", l.value.0, l.first, l.last, node.loc);
    }
    for (s, step) in exec.steps.iter().enumerate() {
        out += &match step {
            Step::Dispatch { kernel, args, scratch, loc } => {
                format!("{s}: kernel {kernel} {args:?} scratch {scratch:?} // {loc}\n")
            }
            Step::Multi { kernel, segments, loc } => {
                format!("{s}: kernel {kernel} over {} tensors // {loc}\n", segments.len())
            }
            Step::Copy { src, dst } => format!("{s}: copy {src:?} to {dst:?}\n"),
            Step::Collective { parts, loc } => {
                let part = |p: &Part| format!("{s}: {:?} {:?} to {:?} // {loc}\n", p.op, p.src, p.dst);
                parts.iter().map(part).collect()
            }
        };
    }
    out
}
