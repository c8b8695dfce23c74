//! Teams: power-of-two groups of a workgroup's invocations that reduce together, in fixed order.
//!
//! Where shaders have subgroups, members in one subgroup exchange their values by shuffles; the subgroups' results meet
//! in workgroup memory behind one barrier. Subgroups may be of any size from the least that the device reports, so no
//! exchange is wider than that. Without subgroups it is a tree in workgroup memory.

use super::row::neutral;
use super::writer::{Writer, refuse};
use crate::Result;
use crate::kernel::{Inst, InstId};
use dnx_ir::ReduceKind;
use std::ops::Range;

/// A team, and the workgroup it is part of.
pub(super) struct Team {
    /// Members.
    pub(super) size: u32,
    /// Invocations of the workgroup.
    pub(super) workgroup: u32,
    /// The least size of a subgroup.
    pub(super) subgroup: Option<u32>,
}

/// What holds the running value of a reduction: the variable, and for `argmax` that of the position.
pub(super) struct Running {
    pub(super) value: String,
    pub(super) position: Option<String>,
}

impl Team {
    /// Members that are sure to be in one subgroup.
    pub(super) fn exchange(&self) -> u32 {
        let least = self.subgroup.unwrap_or(1).max(1);
        self.size.min(1 << least.ilog2()).min(self.workgroup)
    }

    /// Begins the entry point; `lid` numbers the invocations so that subgroups follow each other.
    pub(super) fn open_main(&self, w: &mut Writer) {
        if self.exchange() <= 1 {
            w.open_main(self.workgroup);
            return;
        }
        w.line(format!("@compute @workgroup_size({})", self.workgroup));
        w.line("fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_id) subgroup: u32,");
        w.open("        @builtin(subgroup_size) lanes: u32, @builtin(subgroup_invocation_id) in_subgroup: u32) {");
        w.line("let lid = subgroup * lanes + in_subgroup;");
    }
}

/// Prints the combination of two results: those of `theirs` into the variables or places of `mine`.
fn join(w: &mut Writer, id: InstId, mine: &Running, theirs: &Running) -> Result<()> {
    let (a, b) = (&mine.value, &theirs.value);
    match (w.kernel.inst(id), &mine.position, &theirs.position) {
        (Inst::Reduce(ReduceKind::Sum, _), ..) => w.line(format!("{a} = {a} + {b};")),
        (Inst::Reduce(ReduceKind::Max, _), ..) => w.line(format!("{a} = max({a}, {b});")),
        (_, Some(here), Some(there)) => {
            w.open(format!("if ({b} > {a} || ({b} == {a} && {there} < {here})) {{"));
            w.line(format!("{a} = {b};"));
            w.line(format!("{here} = {there};"));
            w.close();
        }
        _ => return refuse("a team reduces sums, maxima and their positions, no dot"),
    }
    Ok(())
}

/// Exchanges among neighbours at power-of-two distances: afterwards each has the result of all.
pub(super) fn shuffle(w: &mut Writer, level: &[InstId], running: &[Running], distances: Range<u32>) -> Result<()> {
    let mut mask = distances.start;
    while mask < distances.end {
        for (&id, r) in level.iter().zip(running) {
            let other = Running {
                value: format!("{}_x{mask}", r.value),
                position: r.position.as_ref().map(|p| format!("{p}_x{mask}")),
            };
            w.line(format!("let {} = subgroupShuffleXor({}, {mask}u);", other.value, r.value));
            if let (Some(theirs), Some(mine)) = (&other.position, &r.position) {
                w.line(format!("let {theirs} = subgroupShuffleXor({mine}, {mask}u);"));
            }
            join(w, id, r, &other)?;
        }
        mask *= 2;
    }
    Ok(())
}

/// Combines the team's results and names the reductions; positions are at most `last`.
pub(super) fn combine(w: &mut Writer, team: &Team, level: &[InstId], running: &[Running], last: &str) -> Result<()> {
    let exchange = team.exchange();
    if exchange > 1 {
        w.open("{");
        shuffle(w, level, running, 1..exchange)?;
        w.close();
    }
    let mut place = None;
    if team.size > exchange {
        let groups = team.size / exchange;
        let at = if exchange > 1 { format!("lid / {exchange}u") } else { "lid".to_string() };
        let slots = team.workgroup / exchange;
        for (&id, r) in level.iter().zip(running) {
            let (accumulator, _) = neutral(w, id)?;
            w.declare(format!("var<workgroup> team_{}: array<{accumulator}, {slots}>;", r.value));
            if let Some(p) = &r.position {
                w.declare(format!("var<workgroup> team_{p}: array<u32, {slots}>;"));
            }
        }
        if exchange > 1 {
            w.open(format!("if (lid % {exchange}u == 0u) {{"));
        }
        for r in running {
            for name in std::iter::once(&r.value).chain(&r.position) {
                w.line(format!("team_{name}[{at}] = {name};"));
            }
        }
        if exchange > 1 {
            w.close();
        }
        w.line("workgroupBarrier();");
        if exchange > 1 {
            gather(w, team, level, running, groups)?;
        } else {
            tree(w, level, running, groups)?;
            place = Some(if team.size == team.workgroup { "0".to_string() } else { "lid - lane".to_string() });
        }
    }
    for (&id, r) in level.iter().zip(running) {
        let name = r.position.as_ref().unwrap_or(&r.value);
        let total = place.as_ref().map_or(name.clone(), |at| format!("team_{name}[{at}]"));
        let total = match r.position {
            Some(_) => format!("i32(min({total}, {last}))"),
            None => w.rounded(w.kernel.dtype(id), &total),
        };
        w.bind(id, &total)?;
    }
    Ok(())
}

/// Behind the barrier: everybody takes some of the groups' results, and neighbours exchange again.
fn gather(w: &mut Writer, team: &Team, level: &[InstId], running: &[Running], groups: u32) -> Result<()> {
    let width = team.exchange().min(groups);
    let first =
        if team.size == team.workgroup { String::new() } else { format!("lid / {}u * {groups}u + ", team.size) };
    w.open("{");
    w.line(format!("let slot = {first}lid % {width}u;"));
    for (&id, r) in level.iter().zip(running) {
        let slot = |at: &str| Running {
            value: format!("team_{}[{at}]", r.value),
            position: r.position.as_ref().map(|p| format!("team_{p}[{at}]")),
        };
        let own = slot("slot");
        w.line(format!("{} = {};", r.value, own.value));
        if let (Some(mine), Some(p)) = (&r.position, &own.position) {
            w.line(format!("{mine} = {p};"));
        }
        for other in (width..groups).step_by(width as usize) {
            join(w, id, r, &slot(&format!("slot + {other}u")))?;
        }
    }
    shuffle(w, level, running, 1..width)?;
    w.close();
    Ok(())
}

/// Without subgroups: halves the groups until the first has the result.
fn tree(w: &mut Writer, level: &[InstId], running: &[Running], groups: u32) -> Result<()> {
    let mut half = groups / 2;
    while half > 0 {
        w.open(format!("if (lane < {half}u) {{"));
        for (&id, r) in level.iter().zip(running) {
            let slot = |at: &str| Running {
                value: format!("team_{}[{at}]", r.value),
                position: r.position.as_ref().map(|p| format!("team_{p}[{at}]")),
            };
            join(w, id, &slot("lid"), &slot(&format!("lid + {half}u")))?;
        }
        w.close();
        w.line("workgroupBarrier();");
        half /= 2;
    }
    Ok(())
}
