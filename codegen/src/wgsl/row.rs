//! Row kernels: reductions over the same row interleaved with pointwise work.
//!
//! A *team* of invocations (a power of two; one workgroup holds one team or several) walks a row. Reductions come
//! in *levels*: those of one level need only the results of the levels before, so they share a pass over the row.
//! A reduction ends in a combination of the team's results in fixed order; see [`super::team`].
//!
//! Rows that are contiguous in memory and a multiple of four long are walked in quads, of which each is one load.
//! If a member of the team owns few elements, they are unrolled and every value is computed once and stays in
//! registers (`v5_0`, `v5_1`...). Otherwise each pass is a loop that loads again what it needs.

use super::quad::{is_quad, is_quad_load};
use super::team::{Running, Team, combine};
use super::workgroup_size;
use super::writer::{Scope, Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Access, Inst, InstId, Kernel, Role};
use crate::{GpuClass, GpuLimits, Result};
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
    let mut team = (length as u32).div_ceil(4).next_power_of_two().min(1 << largest.ilog2());
    if length <= 8 {
        team = 1;
    }
    // On a processor's rasteriser barriers cost more than they gain.
    if let (GpuClass::Software, Some((least, _))) = (limits.class, limits.subgroup) {
        team = team.min(least.max(1));
    }
    let workgroup = if team >= 64 { team } else { 64.min(1 << largest.ilog2()) };
    let per_workgroup = (workgroup / team) as u64;
    let workgroups = rows.div_ceil(per_workgroup);
    let quad = quad_dim(&mut w, &reduce);
    let step = if quad.is_some() { 4 } else { 1 };
    let each = length.div_ceil(team as usize * step);
    let unrolled = each * step <= KEEP && each * step * kernel.insts.len() <= UNROLLED;
    let team = Team { size: team, workgroup, subgroup: limits.subgroup.map(|(least, _)| least) };
    let plan = Plan { team, length, each, reduce, unrolled, quad, step };

    let levels = levels(kernel);
    plan.team.open_main(&mut w);
    w.workgroup_index("w", workgroups);
    let (row, lane) = match (per_workgroup, plan.team.size) {
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
        let last = format!("{}u", plan.length.max(1) - 1);
        combine(&mut w, &plan.team, level, &sums, &last)?;
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
    let how = if quad.is_some() { " in quads" } else { "" };
    let what = format!("row: {} invocations per row{how}, {per_workgroup} rows per workgroup", plan.team.size);
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

/// The dim along which rows are walked in quads, if anything that is loaded lies in whole quads along it. Declares the
/// arguments wide.
fn quad_dim(w: &mut Writer, reduce: &[usize]) -> Option<usize> {
    let kernel = w.kernel;
    let dim = *reduce.iter().rfind(|&&d| kernel.dims[d].size > 1)?;
    if !kernel.dims[dim].size.is_multiple_of(4) {
        return None;
    }
    let loads: Vec<(u32, bool)> = (0..kernel.insts.len() as u32)
        .filter_map(|i| match kernel.inst(InstId(i)) {
            Inst::Load { arg, .. } if w.dependence[i as usize] >> dim & 1 == 1 => {
                Some((*arg, is_quad_load(kernel, &w.dependence, InstId(i), dim)))
            }
            _ => None,
        })
        .collect();
    let quads = |arg: u32| loads.iter().filter(|l| l.0 == arg).all(|l| l.1);
    let any_load = |arg: u32| kernel.insts.iter().any(|i| matches!(i, Inst::Load { arg: a, .. } if *a == arg));
    let stored_in_quads =
        |arg: u32| kernel.stores.iter().filter(|s| s.arg == arg).all(|s| is_quad(kernel, arg, &s.index, dim));
    for arg in 0..kernel.args.len() as u32 {
        let wide = match kernel.args[arg as usize].access {
            Access::Read => loads.iter().any(|l| l.0 == arg) && quads(arg),
            Access::Write => stored_in_quads(arg),
            Access::ReadWrite => any_load(arg) && quads(arg) && stored_in_quads(arg),
        };
        if wide {
            w.wide.insert(arg);
        }
    }
    let some = loads.iter().any(|l| w.wide.contains(&l.0));
    if !some {
        w.wide.clear();
    }
    some.then_some(dim)
}

/// How a row is walked.
struct Plan {
    team: Team,
    length: usize,
    /// Quads or elements of a member of the team.
    each: usize,
    reduce: Vec<usize>,
    unrolled: bool,
    /// The dim along which quads lie.
    quad: Option<usize>,
    /// Elements walked at a time.
    step: usize,
}

impl Plan {
    /// Whether quad or element `e` of a member exists for every member of the team.
    fn always(&self, e: usize) -> bool {
        (e + 1) * self.team.size as usize * self.step <= self.length
    }

    /// The condition that quad or element `e` exists, unless it always does.
    fn exists(&self, e: usize) -> Option<String> {
        let units = self.length / self.step;
        (!self.always(e)).then(|| format!("lane + {}u < {units}u", e as u32 * self.team.size))
    }

    /// Unrolled: computes these values for every element of this invocation; they stay in scope. The scopes of a quad
    /// follow each other.
    fn spread(&self, w: &mut Writer, elements: &mut Vec<Scope>, values: &[InstId]) -> Result<()> {
        let outer = w.scope.clone();
        for e in 0..self.each {
            if elements.len() <= e * self.step {
                w.scope = outer.clone();
                w.set_suffix(&format!("_{e}"));
                let r = format!("r_{e}");
                let at = match (e, self.team.size) {
                    (_, 1) => format!("{e}u"),
                    (0, _) => "lane".to_string(),
                    (_, t) => format!("lane + {}u", e as u32 * t),
                };
                let at = if self.always(e) { at } else { format!("min({at}, {}u)", self.length / self.step - 1) };
                let at = if self.step > 1 { format!("({at}) * {}u", self.step) } else { at };
                w.line(format!("let {r} = {at};"));
                w.decode(&self.reduce, &r);
                match self.quad {
                    Some(dim) => elements.extend(w.quad_scopes(dim)?),
                    None => elements.push(w.scope.clone()),
                }
            }
            let mine = e * self.step..(e + 1) * self.step;
            for element in &mut elements[mine.clone()] {
                element.adopt_all(&outer);
            }
            if let Some(dim) = self.quad {
                w.scope = elements[mine.start].clone();
                let loads = w.load_quads(values, dim)?;
                // With the coordinates that the loads had decoded.
                elements[mine.start] = w.scope.clone();
                for (c, element) in elements[mine.clone()].iter_mut().enumerate() {
                    std::mem::swap(&mut w.scope, element);
                    for (id, parts) in &loads {
                        w.set(*id, parts[c].clone());
                    }
                    std::mem::swap(&mut w.scope, element);
                }
            }
            for at in mine {
                w.scope = elements[at].clone();
                w.emit(values)?;
                elements[at] = w.scope.clone();
            }
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
            for e in 0..self.each {
                let exists = self.exists(e);
                if let Some(condition) = &exists {
                    w.open(format!("if ({condition}) {{"));
                }
                for c in 0..self.step {
                    w.scope = elements[e * self.step + c].clone();
                    for (&id, r) in level.iter().zip(&running) {
                        take(w, id, r, &position(e, c))?;
                    }
                }
                if exists.is_some() {
                    w.close();
                }
            }
            w.scope = outer;
        } else {
            let operands: Vec<InstId> = level.iter().flat_map(|&r| w.kernel.inst(r).operands()).collect();
            for (c, scope) in self.open_loop(w, &operands)?.into_iter().enumerate() {
                w.scope = scope;
                for (&id, running) in level.iter().zip(&running) {
                    take(w, id, running, &if c == 0 { "r".to_string() } else { format!("(r + {c}u)") })?;
                }
            }
            w.close();
        }
        Ok(running)
    }

    /// Opens the loop over the elements of this invocation, evaluates these values and gives the scopes of the
    /// elements.
    fn open_loop(&self, w: &mut Writer, values: &[InstId]) -> Result<Vec<Scope>> {
        let (step, team) = (self.step as u32, self.team.size);
        let start = if step > 1 { format!("lane * {step}u") } else { "lane".to_string() };
        w.open(format!("for (var r = {start}; r < {}u; r = r + {}u) {{", self.length, team * step));
        w.decode(&self.reduce, "r");
        match self.quad {
            Some(dim) => w.emit_quad(values, dim, &[]),
            None => {
                w.emit(values)?;
                Ok(vec![w.scope.clone()])
            }
        }
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
            for e in 0..self.each {
                let exists = self.exists(e);
                if let Some(condition) = &exists {
                    w.open(format!("if ({condition}) {{"));
                }
                self.store(w, &full, &elements[e * self.step..(e + 1) * self.step])?;
                if exists.is_some() {
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
            let scopes = self.open_loop(w, &values)?;
            self.store(w, &full, &scopes)?;
            w.close();
            if owned.is_some() {
                w.close();
            }
        }
        Ok(())
    }

    /// Prints these stores for one quad or element.
    fn store(&self, w: &mut Writer, full: &[usize], scopes: &[Scope]) -> Result<()> {
        for &s in full {
            if w.wide.contains(&w.kernel.stores[s].arg) {
                w.scope = scopes[0].clone();
                w.store_quad(s, scopes)?;
                continue;
            }
            for scope in scopes {
                w.scope = scope.clone();
                w.write_store(s)?;
            }
        }
        Ok(())
    }
}

/// The position in the row of part `c` of quad or element `e`.
fn position(e: usize, c: usize) -> String {
    if c == 0 { format!("r_{e}") } else { format!("(r_{e} + {c}u)") }
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
