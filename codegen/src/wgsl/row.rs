//! Row kernels: reductions over the same row interleaved with pointwise work.
//!
//! A *team* of invocations (a power of two; one workgroup holds one team or several) walks a row. Reductions come
//! in *levels*: those of one level need only the results of the levels before, so they share a pass over the row.
//! A reduction ends in a tree over the team in workgroup memory, in fixed order.
//!
//! If a member of the team owns few elements, they are unrolled and every value is computed once and stays in
//! registers (`v5_0`, `v5_1`...). Otherwise each pass is a loop that loads again what it needs.

use super::workgroup_size;
use super::writer::{Scope, Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Inst, InstId, Kernel, Role};
use crate::{GpuLimits, Result};
use dnx_ir::ReduceKind;

/// Elements of one invocation kept in registers, at most.
const KEEP: usize = 8;

/// Lines of unrolled text, at most (about).
const UNROLLED: usize = 640;

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let mut w = Writer::new(kernel, limits);
    let rows_dims: Vec<usize> = (0..kernel.dims.len()).filter(|&d| kernel.dims[d].role != Role::Reduce).collect();
    let reduce = w.dims_of(Role::Reduce);
    let rows: u64 = rows_dims.iter().map(|&d| kernel.dims[d].size as u64).product();
    let length = kernel.extent(Role::Reduce);

    let largest = workgroup_size(&kernel.tile, 256, limits);
    let team = (length as u32).div_ceil(4).next_power_of_two().min(1 << largest.ilog2());
    let team = if length <= 8 { 1 } else { team };
    let workgroup = if team >= 64 { team } else { 64.min(1 << largest.ilog2()) };
    let per_workgroup = (workgroup / team) as u64;
    let workgroups = rows.div_ceil(per_workgroup);
    let each = length.div_ceil(team as usize);
    let plan =
        Plan { team, workgroup, length, each, reduce, unrolled: each <= KEEP && each * kernel.insts.len() <= UNROLLED };

    let levels = levels(kernel);
    w.open_main(workgroup);
    w.workgroup_index("w", workgroups);
    let (row, lane) = match (per_workgroup, team) {
        (1, _) => ("w".to_string(), "lid".to_string()),
        (n, 1) => (format!("w * {n}u + lid"), "0u".to_string()),
        (n, t) => (format!("w * {n}u + lid / {t}u"), format!("lid % {t}u")),
    };
    w.line(format!("let lane = {lane};"));
    if rows.is_multiple_of(per_workgroup) {
        w.line(format!("let row = {row};"));
    } else {
        // Teams without a row do the last one again and store nothing: barriers want every invocation.
        w.line(format!("let own_row = {row};"));
        w.line(format!("let row = min(own_row, {}u);", rows.max(1) - 1));
    }
    let owned = (!rows.is_multiple_of(per_workgroup)).then(|| format!("own_row < {rows}u"));
    w.decode(&rows_dims, "row");

    let all: Vec<InstId> = kernel.stores.iter().map(|s| s.value).collect();
    let mask = w.reduce_mask();
    let mut elements: Vec<Scope> = Vec::new();
    for level in &levels {
        w.hoist(&all, mask)?;
        let operands: Vec<InstId> = level.iter().flat_map(|&r| kernel.inst(r).operands()).collect();
        if plan.unrolled {
            plan.spread(&mut w, &mut elements, &operands)?;
        }
        let sums = plan.accumulate(&mut w, level, &elements)?;
        plan.combine(&mut w, level, &sums)?;
        for scope in &mut elements {
            scope.adopt(&w.scope, level);
        }
    }
    w.hoist(&all, mask)?;
    for scope in &mut elements {
        scope.adopt_all(&w.scope);
    }
    plan.stores(&mut w, &mut elements, owned)?;
    w.close();
    let what = format!("row: {team} invocations per row, {per_workgroup} rows per workgroup");
    Ok(vec![w.finish(&what, workgroups, 0)?])
}

/// The reductions by the number of reductions that must come before.
fn levels(kernel: &Kernel) -> Vec<Vec<InstId>> {
    let mut depth = vec![0usize; kernel.insts.len()];
    let mut levels: Vec<Vec<InstId>> = Vec::new();
    for (i, inst) in kernel.insts.iter().enumerate() {
        let before = inst.operands().iter().map(|o| depth[o.index()]).max().unwrap_or(0);
        depth[i] = before;
        if inst.is_reduction() {
            depth[i] = before + 1;
            if levels.len() <= before {
                levels.resize(before + 1, Vec::new());
            }
            levels[before].push(InstId(i as u32));
        }
    }
    levels
}

/// How a row is walked.
struct Plan {
    team: u32,
    workgroup: u32,
    length: usize,
    each: usize,
    reduce: Vec<usize>,
    unrolled: bool,
}

/// What holds the running value of a reduction: the variable, and for `argmax` that of the position.
struct Running {
    value: String,
    position: Option<String>,
}

impl Plan {
    /// Whether element `e` of a member exists for every member of the team.
    fn always(&self, e: usize) -> bool {
        (e + 1) * self.team as usize <= self.length
    }

    /// Unrolled: computes these values for every element of this invocation; they stay in scope.
    fn spread(&self, w: &mut Writer, elements: &mut Vec<Scope>, values: &[InstId]) -> Result<()> {
        let outer = w.scope.clone();
        for e in 0..self.each {
            if elements.len() <= e {
                w.scope = outer.clone();
                w.set_suffix(&format!("_{e}"));
                let r = format!("r_{e}");
                let at = match (e, self.team) {
                    (_, 1) => format!("{e}u"),
                    (0, _) => "lane".to_string(),
                    (_, t) => format!("lane + {}u", e as u32 * t),
                };
                let at = if self.always(e) { at } else { format!("min({at}, {}u)", self.length - 1) };
                w.line(format!("let {r} = {at};"));
                w.decode(&self.reduce, &r);
                elements.push(w.scope.clone());
            }
            w.scope = elements[e].clone();
            w.scope.adopt_all(&outer);
            w.emit(values)?;
            elements[e] = w.scope.clone();
        }
        w.scope = outer;
        Ok(())
    }

    /// Reduces the elements of this invocation.
    fn accumulate(&self, w: &mut Writer, level: &[InstId], elements: &[Scope]) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for &id in level {
            let (accumulator, neutral) = neutral(w, id)?;
            let value = format!("s{}", id.0);
            w.line(format!("var {value}: {accumulator} = {neutral};"));
            let position = matches!(w.kernel.inst(id), Inst::Argmax(_)).then(|| format!("p{}", id.0));
            if let Some(p) = &position {
                w.line(format!("var {p} = 0xffffffffu;"));
            }
            running.push(Running { value, position });
        }
        if self.unrolled {
            let outer = w.scope.clone();
            for (e, scope) in elements.iter().enumerate() {
                w.scope = scope.clone();
                let exists = (!self.always(e)).then(|| format!("lane + {}u < {}u", e as u32 * self.team, self.length));
                if let Some(condition) = &exists {
                    w.open(format!("if ({condition}) {{"));
                }
                for (&id, r) in level.iter().zip(&running) {
                    take(w, id, r, &format!("r_{e}"))?;
                }
                if exists.is_some() {
                    w.close();
                }
            }
            w.scope = outer;
        } else {
            let operands: Vec<InstId> = level.iter().flat_map(|&r| w.kernel.inst(r).operands()).collect();
            w.open(self.loop_line());
            w.decode(&self.reduce, "r");
            w.emit(&operands)?;
            for (&id, running) in level.iter().zip(&running) {
                take(w, id, running, "r")?;
            }
            w.close();
        }
        Ok(running)
    }

    fn loop_line(&self) -> String {
        format!("for (var r = lane; r < {}u; r = r + {}u) {{", self.length, self.team)
    }

    /// Combines the team's results and names the reductions.
    fn combine(&self, w: &mut Writer, level: &[InstId], running: &[Running]) -> Result<()> {
        if self.team > 1 {
            for (&id, r) in level.iter().zip(running) {
                let (accumulator, _) = neutral(w, id)?;
                w.declare(format!("var<workgroup> team_{}: array<{accumulator}, {}>;", r.value, self.workgroup));
                w.line(format!("team_{}[lid] = {};", r.value, r.value));
                if let Some(p) = &r.position {
                    w.declare(format!("var<workgroup> team_{p}: array<u32, {}>;", self.workgroup));
                    w.line(format!("team_{p}[lid] = {p};"));
                }
            }
            w.line("workgroupBarrier();");
            let mut half = self.team / 2;
            while half > 0 {
                w.open(format!("if (lane < {half}u) {{"));
                for (&id, r) in level.iter().zip(running) {
                    let (mine, theirs) = (format!("team_{}[lid]", r.value), format!("team_{}[lid + {half}u]", r.value));
                    match (w.kernel.inst(id), &r.position) {
                        (Inst::Reduce(ReduceKind::Sum, _), _) => w.line(format!("{mine} = {mine} + {theirs};")),
                        (Inst::Reduce(ReduceKind::Max, _), _) => w.line(format!("{mine} = max({mine}, {theirs});")),
                        (_, Some(p)) => {
                            let (here, there) = (format!("team_{p}[lid]"), format!("team_{p}[lid + {half}u]"));
                            w.open(format!("if ({theirs} > {mine} || ({theirs} == {mine} && {there} < {here})) {{"));
                            w.line(format!("{mine} = {theirs};"));
                            w.line(format!("{here} = {there};"));
                            w.close();
                        }
                        _ => return refuse("a row kernel has reductions only, no dot"),
                    }
                }
                w.close();
                w.line("workgroupBarrier();");
                half /= 2;
            }
        }
        for (&id, r) in level.iter().zip(running) {
            let name = r.position.as_ref().unwrap_or(&r.value);
            let total = match self.team {
                1 => name.clone(),
                t if t == self.workgroup => format!("team_{name}[0]"),
                _ => format!("team_{name}[lid - lane]"),
            };
            let total = match r.position {
                Some(_) => format!("i32(min({total}, {}u))", self.length.max(1) - 1),
                None => w.rounded(w.kernel.dtype(id), &total),
            };
            w.bind(id, &total)?;
        }
        Ok(())
    }

    /// Prints all stores.
    fn stores(&self, w: &mut Writer, elements: &mut Vec<Scope>, owned: Option<String>) -> Result<()> {
        let kernel = w.kernel;
        let (full, once): (Vec<usize>, Vec<usize>) = (0..kernel.stores.len()).partition(|&s| w.store_is_full(s));
        if !once.is_empty() {
            let condition = match &owned {
                Some(o) => format!("lane == 0u && {o}"),
                None => "lane == 0u".to_string(),
            };
            w.open(format!("if ({condition}) {{"));
            for &s in &once {
                w.emit(&[kernel.stores[s].value])?;
                w.write_store(s)?;
            }
            w.close();
        }
        if full.is_empty() {
            return Ok(());
        }
        let values: Vec<InstId> = full.iter().map(|&s| kernel.stores[s].value).collect();
        if self.unrolled {
            self.spread(w, elements, &values)?;
            let outer = w.scope.clone();
            if let Some(o) = &owned {
                w.open(format!("if ({o}) {{"));
            }
            for (e, scope) in elements.iter().enumerate() {
                w.scope = scope.clone();
                let guarded = !self.always(e);
                if guarded {
                    w.open(format!("if (lane + {}u < {}u) {{", e as u32 * self.team, self.length));
                }
                for &s in &full {
                    w.write_store(s)?;
                }
                if guarded {
                    w.close();
                }
            }
            w.scope = outer;
            if owned.is_some() {
                w.close();
            }
        } else {
            if let Some(o) = &owned {
                w.open(format!("if ({o}) {{"));
            }
            w.open(self.loop_line());
            w.decode(&self.reduce, "r");
            w.emit(&values)?;
            for &s in &full {
                w.write_store(s)?;
            }
            w.close();
            if owned.is_some() {
                w.close();
            }
        }
        Ok(())
    }
}

/// The accumulator type of a reduction and its neutral element.
pub(super) fn neutral(w: &mut Writer, id: InstId) -> Result<(&'static str, String)> {
    let (operand, sum) = match w.kernel.inst(id) {
        Inst::Reduce(kind, a) => (*a, *kind == ReduceKind::Sum),
        Inst::Argmax(a) => (*a, false),
        _ => return refuse("not a reduction"),
    };
    let accumulator = w.accumulator(w.kernel.dtype(operand))?;
    let neutral = if sum { format!("{accumulator}(0)") } else { w.lowest(accumulator) };
    Ok((accumulator, neutral))
}

/// Takes the operand's value at `position` into a running reduction.
fn take(w: &mut Writer, id: InstId, running: &Running, position: &str) -> Result<()> {
    let s = &running.value;
    let operand = w.kernel.inst(id).operands()[0];
    let x = w.value(operand)?;
    let x = w.widened(w.kernel.dtype(operand), &x);
    match (w.kernel.inst(id), &running.position) {
        (Inst::Reduce(ReduceKind::Sum, _), _) => w.line(format!("{s} = {s} + {x};")),
        (Inst::Reduce(ReduceKind::Max, _), _) => w.line(format!("{s} = max({s}, {x});")),
        (_, Some(p)) => {
            w.line(format!("if ({x} > {s} || ({x} == {s} && {position} < {p})) {{ {s} = {x}; {p} = {position}; }}"))
        }
        _ => return refuse("a row kernel has reductions only, no dot"),
    }
    Ok(())
}
