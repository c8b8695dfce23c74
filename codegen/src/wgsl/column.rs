//! Column kernels: reductions over the slow dims to a short vector or a scalar.
//!
//! A workgroup is `lanes x columns`: each invocation runs down its column with step `lanes`, then the lanes of a column
//! are added up, within subgroups by shuffles where there are some, beyond by a tree in workgroup memory. If the reduced extent is split over several
//! workgroups, the partial results go to scratch, `[part, reduction, column]`, and a second stage of the same shape
//! reduces those. Every order is fixed by the sizes alone. Full stores happen in the first stage, each point once;
//! what follows the reductions happens in the last.

use super::row::neutral;
use super::team::{Running, Team, shuffle};
use super::workgroup_size;
use super::writer::{Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Inst, InstId, Kernel, Role};
use crate::{GpuLimits, Result};
use dnx_ir::ReduceKind;

/// Rows an invocation should at least have before another workgroup is worth its overhead.
const ROWS_EACH: usize = 16;

/// Parts the reduced extent is split into, at most.
const PARTS: usize = 256;

/// Workgroups that keep a large GPU busy.
const WORKGROUPS: usize = 1024;

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let rows = kernel.extent(Role::Reduce);
    let column_dims: Vec<usize> = (0..kernel.dims.len()).filter(|&d| kernel.dims[d].role != Role::Reduce).collect();
    let columns: usize = column_dims.iter().map(|&d| kernel.dims[d].size).product();
    let largest = 1u32 << workgroup_size(&kernel.tile, 256, limits).ilog2();
    let wide = (columns.clamp(1, 64) as u32).next_power_of_two().min(largest);
    let lanes = (largest / wide).min(rows.max(1).next_power_of_two() as u32);
    let column_blocks = columns.div_ceil(wide as usize);
    let parts = match kernel.tile.split {
        0 => (rows / (lanes as usize * ROWS_EACH)).min(PARTS).min(WORKGROUPS / column_blocks.max(1)),
        n => (n as usize).min(rows),
    };
    let parts = parts.max(1);
    let reductions: Vec<InstId> =
        (0..kernel.insts.len()).map(|i| InstId(i as u32)).filter(|&id| kernel.inst(id).is_reduction()).collect();
    let plan = Plan {
        rows,
        // Parts of equal length, so that the last may be short or even empty.
        part: rows.div_ceil(parts),
        parts,
        columns,
        column_dims,
        column_blocks,
        wide,
        lanes,
        team: Team { size: wide * lanes, workgroup: wide * lanes, subgroup: limits.subgroup.map(|(least, _)| least) },
        reductions,
    };
    plan.refuse_chains(kernel)?;
    let scratch = if parts > 1 { (parts * plan.reductions.len() * columns) as u64 * 4 } else { 0 };
    let mut stages = vec![plan.first(kernel, limits, scratch)?];
    if parts > 1 {
        stages.push(plan.second(kernel, limits, scratch)?);
    }
    Ok(stages)
}

struct Plan {
    rows: usize,
    part: usize,
    parts: usize,
    columns: usize,
    column_dims: Vec<usize>,
    column_blocks: usize,
    wide: u32,
    lanes: u32,
    team: Team,
    reductions: Vec<InstId>,
}

impl Plan {
    /// One pass over the points: nothing that lives on them may need a finished reduction.
    fn refuse_chains(&self, kernel: &Kernel) -> Result<()> {
        let mut after = vec![false; kernel.insts.len()];
        for (i, inst) in kernel.insts.iter().enumerate() {
            let below = inst.operands().iter().any(|o| after[o.index()]);
            if inst.is_reduction() && (below || !matches!(inst, Inst::Reduce(..))) {
                return refuse("a column kernel has sums and maxima only, none of which needs another's result");
            }
            after[i] = below || inst.is_reduction();
        }
        let dependence = kernel.dependence();
        let reduce: u64 = (0..kernel.dims.len()).filter(|&d| kernel.dims[d].role == Role::Reduce).map(|d| 1 << d).sum();
        for s in &kernel.stores {
            if after[s.value.index()] && (dependence[s.value.index()] | s.index.dims()) & reduce != 0 {
                return refuse("a column kernel's full store can't need the result of its reductions");
            }
        }
        Ok(())
    }

    /// Prints which column and lane this invocation has; `column` is in range, `owned` says whether it is ours.
    fn place(&self, w: &mut Writer, block: &str) {
        w.line(format!("let lane = lid / {}u;", self.wide));
        if self.columns.is_multiple_of(self.wide as usize) {
            w.line(format!("let column = {block} * {}u + lid % {}u;", self.wide, self.wide));
            w.line("let owned = true;");
        } else {
            w.line(format!("let own_column = {block} * {}u + lid % {}u;", self.wide, self.wide));
            w.line(format!("let owned = own_column < {}u;", self.columns));
            w.line(format!("let column = min(own_column, {}u);", self.columns.max(1) - 1));
        }
    }

    fn declare(&self, w: &mut Writer) -> Result<()> {
        for &id in &self.reductions {
            let (accumulator, neutral) = neutral(w, id)?;
            w.line(format!("var s{}: {accumulator} = {neutral};", id.0));
            if self.lanes > self.exchanged() {
                w.declare(format!("var<workgroup> lanes_s{}: array<{accumulator}, {}>;", id.0, self.lanes * self.wide));
            }
        }
        Ok(())
    }

    fn take(&self, w: &mut Writer, id: InstId, x: &str) {
        let s = format!("s{}", id.0);
        match w.kernel.inst(id) {
            Inst::Reduce(ReduceKind::Max, _) => w.line(format!("{s} = max({s}, {x});")),
            _ => w.line(format!("{s} = {s} + {x};")),
        }
    }

    /// Lanes of a column that are sure to be in one subgroup.
    fn exchanged(&self) -> u32 {
        (self.team.exchange() / self.wide).clamp(1, self.lanes)
    }

    /// Begins the entry point.
    fn open_main(&self, w: &mut Writer) {
        match self.exchanged() {
            1 => w.open_main(self.wide * self.lanes),
            _ => self.team.open_main(w),
        }
    }

    /// Adds up the lanes; afterwards lane 0 has the result of its column in `s<id>`.
    fn combine(&self, w: &mut Writer) -> Result<()> {
        if self.lanes == 1 || self.reductions.is_empty() {
            return Ok(());
        }
        let exchanged = self.exchanged();
        if exchanged > 1 {
            let running: Vec<Running> =
                self.reductions.iter().map(|id| Running { value: format!("s{}", id.0), position: None }).collect();
            w.open("{");
            shuffle(w, &self.reductions, &running, self.wide..exchanged * self.wide)?;
            w.close();
        }
        if self.lanes == exchanged {
            return Ok(());
        }
        for &id in &self.reductions {
            w.line(format!("lanes_s{0}[lid] = s{0};", id.0));
        }
        w.line("workgroupBarrier();");
        let mut half = self.lanes / 2;
        while half >= exchanged {
            w.open(format!("if (lane < {half}u) {{"));
            for &id in &self.reductions {
                let (mine, theirs) =
                    (format!("lanes_s{}[lid]", id.0), format!("lanes_s{}[lid + {}u]", id.0, half * self.wide));
                match w.kernel.inst(id) {
                    Inst::Reduce(ReduceKind::Max, _) => w.line(format!("{mine} = max({mine}, {theirs});")),
                    _ => w.line(format!("{mine} = {mine} + {theirs};")),
                }
            }
            w.close();
            w.line("workgroupBarrier();");
            half /= 2;
        }
        for &id in &self.reductions {
            w.line(format!("s{0} = lanes_s{0}[lid];", id.0));
        }
        Ok(())
    }

    /// Names the reductions and prints what follows them.
    fn finish(&self, w: &mut Writer, once: &[usize]) -> Result<()> {
        w.open("if (lane == 0u && owned) {");
        for &id in &self.reductions {
            let value = w.rounded(w.kernel.dtype(id), &format!("s{}", id.0));
            w.bind(id, &value)?;
        }
        for &s in once {
            w.emit(&[w.kernel.stores[s].value])?;
            w.write_store(s)?;
        }
        w.close();
        Ok(())
    }

    fn first(&self, kernel: &Kernel, limits: &GpuLimits, scratch: u64) -> Result<Shader> {
        let mut w = Writer::new(kernel, limits);
        let workgroups = (self.column_blocks * self.parts) as u64;
        self.open_main(&mut w);
        w.workgroup_index("w", workgroups);
        let block = match (self.parts, self.column_blocks) {
            (1, _) => "w".to_string(),
            (_, n) => {
                w.line(format!("let part = w / {n}u;"));
                format!("(w % {n}u)")
            }
        };
        self.place(&mut w, &block);
        w.decode(&self.column_dims.clone(), "column");
        self.declare(&mut w)?;
        let (full, once): (Vec<usize>, Vec<usize>) = (0..kernel.stores.len()).partition(|&s| w.store_is_full(s));
        let mut values: Vec<InstId> = self.reductions.iter().flat_map(|&r| kernel.inst(r).operands()).collect();
        values.extend(full.iter().map(|&s| kernel.stores[s].value));
        let mask = w.reduce_mask();
        w.hoist(&values, mask)?;
        let (start, end) = if self.parts == 1 {
            ("lane".to_string(), format!("{}u", self.rows))
        } else {
            w.line(format!("let end = min((part + 1u) * {}u, {}u);", self.part, self.rows));
            (format!("part * {}u + lane", self.part), "end".to_string())
        };
        w.open(format!("for (var r = {start}; r < {end}; r = r + {}u) {{", self.lanes));
        let reduce = w.dims_of(Role::Reduce);
        w.decode(&reduce, "r");
        w.emit(&values)?;
        for &id in &self.reductions {
            let operand = kernel.inst(id).operands()[0];
            let x = w.value(operand)?;
            let x = w.widened(kernel.dtype(operand), &x);
            self.take(&mut w, id, &x);
        }
        if !full.is_empty() {
            w.open("if (owned) {");
            for &s in &full {
                w.write_store(s)?;
            }
            w.close();
        }
        w.close();
        self.combine(&mut w)?;
        if self.parts == 1 {
            self.finish(&mut w, &once)?;
        } else if !self.reductions.is_empty() {
            w.use_scratch();
            w.open("if (lane == 0u && owned) {");
            for (n, &id) in self.reductions.iter().enumerate() {
                let at = format!("(part * {}u + {n}u) * {}u + column", self.reductions.len(), self.columns);
                w.line(format!("scratch[{at}] = bitcast<u32>(s{});", id.0));
            }
            w.close();
        }
        w.close();
        let what = format!(
            "column: {} lanes x {} columns per workgroup, {} part(s) of {} rows",
            self.lanes, self.wide, self.parts, self.part
        );
        w.finish(&what, workgroups, scratch)
    }

    fn second(&self, kernel: &Kernel, limits: &GpuLimits, scratch: u64) -> Result<Shader> {
        let mut w = Writer::new(kernel, limits);
        let workgroups = self.column_blocks as u64;
        w.use_scratch();
        self.open_main(&mut w);
        w.workgroup_index("w", workgroups);
        self.place(&mut w, "w");
        w.decode(&self.column_dims.clone(), "column");
        self.declare(&mut w)?;
        w.open(format!("for (var part = lane; part < {}u; part = part + {}u) {{", self.parts, self.lanes));
        for (n, &id) in self.reductions.iter().enumerate() {
            let (accumulator, _) = neutral(&mut w, id)?;
            let at = format!("(part * {}u + {n}u) * {}u + column", self.reductions.len(), self.columns);
            self.take(&mut w, id, &format!("bitcast<{accumulator}>(scratch[{at}])"));
        }
        w.close();
        self.combine(&mut w)?;
        let once: Vec<usize> = (0..kernel.stores.len()).filter(|&s| !w.store_is_full(s)).collect();
        self.finish(&mut w, &once)?;
        w.close();
        w.finish(&format!("column, second stage: reduces {} parts", self.parts), workgroups, scratch)
    }
}
