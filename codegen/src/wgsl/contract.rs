//! Contractions: a tile of the result per workgroup, operand tiles in workgroup memory, a register block per
//! invocation.
//!
//! `lhs_at(z, m, k)` and `rhs_at(z, n, k)` give the operands with their pointwise prologues, and zero outside the
//! matrix, so ragged sizes need no other care; `finish_at(z, m, n, sum)` holds the epilogue and the stores. Tiles
//! are stored depth first as quads (`vec4`) of rows or columns, one pad quad per depth so that neither writing nor
//! reading them hits one bank. The next tile is fetched to registers while the present one is multiplied.
//!
//! With a split, each part of the depth leaves its sums in scratch, `[part, z, m, n]`, and a second stage adds them
//! in order and finishes.

use super::writer::{Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Atom, Idx, Inst, InstId, Kernel, Role, Tile};
use crate::{GpuLimits, Result};

/// Workgroups below which a deep contraction is split.
const BUSY: usize = 128;

/// Tile parameters for a contraction: smaller blocks where the result is narrow, parts where it is small and deep.
pub fn choose_tile(kernel: &Kernel, limits: &GpuLimits) -> Tile {
    let (m, n, k) = (kernel.extent(Role::M), kernel.extent(Role::N), kernel.extent(Role::Reduce));
    let edge = |extent: usize| match extent {
        0..=16 => 16,
        17..=32 => 32,
        _ => 64,
    };
    let (mut rows, mut columns) = (edge(m), edge(n));
    while (rows / 4) * (columns / 4) > limits.max_invocations {
        if rows >= columns { rows /= 2 } else { columns /= 2 }
    }
    let tiles = m.div_ceil(rows as usize) * n.div_ceil(columns as usize) * kernel.extent(Role::Batch);
    // Each part should still have a few hundred products per element.
    let split = if tiles == 0 || tiles >= BUSY { 1 } else { (2 * BUSY / tiles).min(k / 256).clamp(1, 64) };
    Tile { workgroup: 0, block: [rows, columns, 16], per_invocation: [4, 4], split: split as u32 }
}

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let plan = Plan::new(kernel, limits)?;
    let mut stages = vec![plan.product(kernel, limits)?];
    if plan.parts > 1 {
        stages.push(plan.second(kernel, limits)?);
    }
    Ok(stages)
}

struct Plan {
    dot: InstId,
    lhs: InstId,
    rhs: InstId,
    accumulator: &'static str,
    /// Extents: batch, rows, columns, depth.
    extent: [usize; 4],
    /// Rows, columns and depth of the tile.
    block: [u32; 3],
    /// Quads of rows and of columns per invocation.
    quads: [u32; 2],
    parts: usize,
    /// Depth of a part.
    part: usize,
    /// Invocations of a workgroup.
    workgroup: u32,
}

impl Plan {
    fn new(kernel: &Kernel, limits: &GpuLimits) -> Result<Plan> {
        let mut dots = (0..kernel.insts.len()).filter(|&i| kernel.insts[i].is_reduction());
        let (Some(dot), None) = (dots.next(), dots.next()) else {
            return refuse("a contract kernel has exactly one reduction, a dot");
        };
        let Inst::Dot { lhs, rhs } = kernel.insts[dot] else {
            return refuse("a contract kernel's reduction is a dot");
        };
        let default = choose_tile(kernel, limits);
        let asked = &kernel.tile;
        let block = [0, 1, 2].map(|i| if asked.block[i] == 0 { default.block[i] } else { asked.block[i] });
        let each = [0, 1].map(|i| if asked.per_invocation[i] == 0 { 4 } else { asked.per_invocation[i] });
        let divides = |i: usize| each[i] % 4 == 0 && each[i] != 0 && block[i] % each[i] == 0;
        if !divides(0) || !divides(1) || block[2] == 0 {
            return refuse(format!(
                "tile {block:?} with {each:?} per invocation: rows and columns per invocation must be multiples of 4 \
                 that divide the block"
            ));
        }
        let workgroup = (block[0] / each[0]) * (block[1] / each[1]);
        let bytes = block[2] * ((block[0] / 4 + 1) + (block[1] / 4 + 1)) * 16;
        if workgroup > limits.max_invocations || bytes > limits.workgroup_bytes {
            return refuse(format!(
                "tile {block:?} takes {workgroup} invocations and {bytes} bytes of workgroup memory; the device has \
                 {} and {}",
                limits.max_invocations, limits.workgroup_bytes
            ));
        }
        let extent = [Role::Batch, Role::M, Role::N, Role::Reduce].map(|r| kernel.extent(r));
        let parts = (asked.split.max(1) as usize).min(extent[3].div_ceil(block[2] as usize)).max(1);
        let part = extent[3].div_ceil(parts).next_multiple_of(block[2] as usize);
        let w = Writer::new(kernel, limits);
        let accumulator = w.accumulator(kernel.dtypes[dot])?;
        Ok(Plan {
            dot: InstId(dot as u32),
            lhs,
            rhs,
            accumulator,
            extent,
            block,
            quads: [each[0] / 4, each[1] / 4],
            parts: extent[3].div_ceil(part.max(1)).max(1),
            part,
            workgroup,
        })
    }

    fn scratch_bytes(&self) -> u64 {
        if self.parts == 1 { 0 } else { self.parts as u64 * self.results() * 4 }
    }

    fn results(&self) -> u64 {
        self.extent[..3].iter().map(|&n| n as u64).product()
    }

    /// Prints `lhs_at` or `rhs_at`.
    fn operand(&self, w: &mut Writer, name: &str, value: InstId, role: Role) -> Result<()> {
        let letter = if role == Role::M { "m" } else { "n" };
        let (edge, depth) = (w.kernel.extent(role), self.extent[3]);
        w.fresh_scope();
        w.open(format!("fn {name}_at(z: u32, {letter}: u32, k: u32) -> {} {{", self.accumulator));
        w.line(format!("if ({letter} >= {edge}u || k >= {depth}u) {{ return {}(0); }}", self.accumulator));
        self.decode(w, &[(Role::Batch, "z"), (role, letter), (Role::Reduce, "k")]);
        w.emit(&[value])?;
        let x = w.value(value)?;
        let dtype = w.kernel.dtype(value);
        let x = w.widened(dtype, &x);
        w.line(format!("return {x};"));
        w.close();
        w.line("");
        Ok(())
    }

    fn decode(&self, w: &mut Writer, roles: &[(Role, &str)]) {
        for (role, name) in roles {
            let dims = w.dims_of(*role);
            w.decode(&dims, name);
        }
    }

    /// Prints `finish_at`: epilogue and stores, or the store to scratch.
    fn finish(&self, w: &mut Writer, to_scratch: bool) -> Result<()> {
        let (rows, columns) = (self.extent[1], self.extent[2]);
        w.fresh_scope();
        if to_scratch {
            w.use_scratch();
            w.open(format!("fn finish_at(part: u32, z: u32, m: u32, n: u32, sum: {}) {{", self.accumulator));
            w.line(format!("if (m >= {rows}u || n >= {columns}u) {{ return; }}"));
            let at = format!("((part * {}u + z) * {rows}u + m) * {columns}u + n", self.extent[0]);
            w.line(format!("scratch[{at}] = bitcast<u32>(sum);"));
        } else {
            w.open(format!("fn finish_at(z: u32, m: u32, n: u32, sum: {}) {{", self.accumulator));
            w.line(format!("if (m >= {rows}u || n >= {columns}u) {{ return; }}"));
            self.epilogue(w)?;
        }
        w.close();
        w.line("");
        Ok(())
    }

    /// Prints what follows the sum, which is called `sum`, at `(z, m, n)`.
    fn epilogue(&self, w: &mut Writer) -> Result<()> {
        let kernel = w.kernel;
        self.decode(w, &[(Role::Batch, "z"), (Role::M, "m"), (Role::N, "n")]);
        let sum = w.rounded(kernel.dtype(self.dot), "sum");
        w.set(self.dot, sum.clone());
        if sum != "sum" {
            w.bind(self.dot, &sum)?;
        }
        let values: Vec<InstId> = kernel.stores.iter().map(|s| s.value).collect();
        w.emit(&values)?;
        for s in 0..kernel.stores.len() {
            if w.store_is_full(s) {
                return refuse("a contract kernel stores results only, not its operands");
            }
            w.write_store(s)?;
        }
        Ok(())
    }

    fn product(&self, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
        let mut w = Writer::new(kernel, limits);
        let [bm, bn, bk] = self.block;
        let (row_quads, column_quads) = (bm / 4, bn / 4);
        let (tiles_m, tiles_n) =
            (self.extent[1].div_ceil(bm as usize) as u64, self.extent[2].div_ceil(bn as usize) as u64);
        let workgroups = tiles_m * tiles_n * self.extent[0] as u64 * self.parts as u64;
        let t = self.accumulator;
        w.declare(format!("var<workgroup> lhs_tile: array<vec4<{t}>, {}>;", bk * (row_quads + 1)));
        w.declare(format!("var<workgroup> rhs_tile: array<vec4<{t}>, {}>;", bk * (column_quads + 1)));
        self.operand(&mut w, "lhs", self.lhs, Role::M)?;
        self.operand(&mut w, "rhs", self.rhs, Role::N)?;
        self.finish(&mut w, self.parts > 1)?;

        w.fresh_scope();
        w.open_main(self.workgroup);
        w.workgroup_index("w", workgroups);
        w.line(format!("let tile_n = (w % {tiles_n}u) * {bn}u;"));
        w.line(format!("let tile_m = (w / {tiles_n}u % {tiles_m}u) * {bm}u;"));
        if self.parts > 1 {
            w.line(format!("let z = w / {}u % {}u;", tiles_n * tiles_m, self.extent[0]));
            w.line(format!("let part = w / {}u;", tiles_n * tiles_m * self.extent[0] as u64));
            w.line(format!("let begin = part * {}u;", self.part));
            w.line(format!("let end = min(begin + {}u, {}u);", self.part, self.extent[3]));
        } else {
            w.line(format!("let z = w / {}u;", tiles_n * tiles_m));
            w.line("let begin = 0u;");
            w.line(format!("let end = {}u;", self.extent[3]));
        }
        let threads_n = bn / (4 * self.quads[1]);
        let threads_m = bm / (4 * self.quads[0]);
        w.line(format!("let tx = lid % {threads_n}u;"));
        w.line(format!("let ty = lid / {threads_n}u;"));
        // The quads of the tiles this invocation fetches.
        let lhs = Fetch::new(kernel, "lhs", self.lhs, bk, row_quads, self.workgroup);
        let rhs = Fetch::new(kernel, "rhs", self.rhs, bk, column_quads, self.workgroup);
        lhs.places(&mut w);
        rhs.places(&mut w);
        for i in 0..self.quads[0] * 4 {
            for j in 0..self.quads[1] {
                w.line(format!("var sum_{i}_{j} = vec4<{t}>();"));
            }
        }
        for fetch in [&lhs, &rhs] {
            fetch.registers(&mut w, t);
            fetch.load(&mut w, t, "begin");
        }
        w.open(format!("for (var k0 = begin; k0 < end; k0 = k0 + {bk}u) {{"));
        lhs.put(&mut w);
        rhs.put(&mut w);
        w.line("workgroupBarrier();");
        w.open(format!("if (k0 + {bk}u < end) {{"));
        let next = format!("k0 + {bk}u");
        lhs.load(&mut w, t, &next);
        rhs.load(&mut w, t, &next);
        w.close();
        let unroll = (1..=8).rev().find(|u| bk % u == 0).unwrap_or(1);
        w.open(format!("for (var k = 0u; k < {bk}u; k = k + {unroll}u) {{"));
        for u in 0..unroll {
            w.open("{");
            for i in 0..self.quads[0] {
                let at = format!("(k + {u}u) * {}u + ty + {}u", row_quads + 1, i * threads_m);
                w.line(format!("let left{i} = lhs_tile[{at}];"));
            }
            for j in 0..self.quads[1] {
                let at = format!("(k + {u}u) * {}u + tx + {}u", column_quads + 1, j * threads_n);
                w.line(format!("let right{j} = rhs_tile[{at}];"));
            }
            for i in 0..self.quads[0] * 4 {
                for j in 0..self.quads[1] {
                    let component = ['x', 'y', 'z', 'w'][(i % 4) as usize];
                    w.line(format!("sum_{i}_{j} = sum_{i}_{j} + left{}.{component} * right{j};", i / 4));
                }
            }
            w.close();
        }
        w.close();
        w.line("workgroupBarrier();");
        w.close();
        let part = if self.parts > 1 { "part, " } else { "" };
        for i in 0..self.quads[0] * 4 {
            let m = format!("tile_m + (ty + {}u) * 4u + {}u", i / 4 * threads_m, i % 4);
            for j in 0..self.quads[1] {
                for (c, component) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
                    let n = format!("tile_n + (tx + {}u) * 4u + {c}u", j * threads_n);
                    w.line(format!("finish_at({part}z, {m}, {n}, sum_{i}_{j}.{component});"));
                }
            }
        }
        w.close();
        let what = format!(
            "contract: {bm} x {bn} x {bk} tiles, {} x {} per invocation, {} part(s)",
            self.quads[0] * 4,
            self.quads[1] * 4,
            self.parts
        );
        w.finish(&what, workgroups, self.scratch_bytes())
    }

    fn second(&self, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
        let mut w = Writer::new(kernel, limits);
        let results = self.results();
        let workgroups = results.div_ceil(64);
        w.use_scratch();
        w.open_main(64);
        w.workgroup_index("w", workgroups);
        w.line("let i = w * 64u + lid;");
        w.line(format!("if (i >= {results}u) {{ return; }}"));
        w.line(format!("var sum = {}(0);", self.accumulator));
        w.open(format!("for (var part = 0u; part < {}u; part = part + 1u) {{", self.parts));
        w.line(format!("sum = sum + bitcast<{}>(scratch[part * {results}u + i]);", self.accumulator));
        w.close();
        w.line(format!("let n = i % {}u;", self.extent[2]));
        w.line(format!("let m = i / {}u % {}u;", self.extent[2], self.extent[1]));
        w.line(format!("let z = i / {}u;", self.extent[2] * self.extent[1]));
        self.epilogue(&mut w)?;
        w.close();
        w.finish(&format!("contract, second stage: adds {} parts", self.parts), workgroups, self.scratch_bytes())
    }
}

/// How a workgroup fetches one operand's tile.
struct Fetch {
    name: &'static str,
    letter: char,
    depth: u32,
    quads: u32,
    /// Whether neighbouring invocations fetch neighbouring depths (rather than neighbouring quads).
    along_depth: bool,
    workgroup: u32,
    /// Quads one invocation fetches.
    each: u32,
}

impl Fetch {
    fn new(kernel: &Kernel, name: &'static str, value: InstId, depth: u32, quads: u32, workgroup: u32) -> Fetch {
        let each = (depth * quads).div_ceil(workgroup);
        let letter = if name == "lhs" { 'm' } else { 'n' };
        Fetch { name, letter, depth, quads, along_depth: depth_is_contiguous(kernel, value), workgroup, each }
    }

    /// Whether the last fetches fall outside the tile for some invocations.
    fn ragged(&self, e: u32) -> bool {
        (e + 1) * self.workgroup > self.depth * self.quads
    }

    fn places(&self, w: &mut Writer) {
        for e in 0..self.each {
            let (name, slot) = (self.name, format!("(lid + {}u)", e * self.workgroup));
            let (depth, quads) = (self.depth, self.quads);
            if self.along_depth {
                w.line(format!("let {name}_k{e} = {slot} % {depth}u;"));
                w.line(format!("let {name}_q{e} = {slot} / {depth}u;"));
            } else {
                w.line(format!("let {name}_q{e} = {slot} % {quads}u;"));
                w.line(format!("let {name}_k{e} = {slot} / {quads}u;"));
            }
        }
    }

    fn registers(&self, w: &mut Writer, t: &str) {
        for e in 0..self.each {
            w.line(format!("var {}_next{e} = vec4<{t}>();", self.name));
        }
    }

    /// Fetches this invocation's quads of the tile that begins at depth `from`. Parts are whole tiles deep, so only
    /// the last tile passes the end, where the operands are zero.
    fn load(&self, w: &mut Writer, t: &str, from: &str) {
        let (name, x) = (self.name, self.letter);
        for e in 0..self.each {
            w.open("{");
            w.line(format!("let k = {from} + {name}_k{e};"));
            w.line(format!("let {x} = tile_{x} + {name}_q{e} * 4u;"));
            let elements: Vec<String> = (0..4).map(|c| format!("{name}_at(z, {x} + {c}u, k)")).collect();
            w.line(format!("{name}_next{e} = vec4<{t}>({});", elements.join(", ")));
            w.close();
        }
    }

    fn put(&self, w: &mut Writer) {
        for e in 0..self.each {
            let name = self.name;
            let store = format!("{name}_tile[{name}_k{e} * {}u + {name}_q{e}] = {name}_next{e};", self.quads + 1);
            if self.ragged(e) {
                let (at, end) = if self.along_depth { ("q", self.quads) } else { ("k", self.depth) };
                w.line(format!("if ({name}_{at}{e} < {end}u) {{ {store} }}"));
            } else {
                w.line(store);
            }
        }
    }
}

/// Whether the operand's largest argument is contiguous along the innermost `Reduce` dim.
fn depth_is_contiguous(kernel: &Kernel, value: InstId) -> bool {
    let Some(innermost) =
        (0..kernel.dims.len()).rfind(|&d| kernel.dims[d].role == Role::Reduce && kernel.dims[d].size > 1)
    else {
        return false;
    };
    let mut stack = vec![value];
    let mut best: Option<(usize, bool)> = None;
    while let Some(id) = stack.pop() {
        if let Inst::Load { arg, index, .. } = kernel.inst(id) {
            let elems = kernel.args[*arg as usize].elems;
            if best.is_none_or(|(n, _)| elems > n) {
                best = Some((elems, steps_by_one(index, innermost)));
            }
        }
        stack.extend(kernel.inst(id).operands());
    }
    best.is_some_and(|(_, contiguous)| contiguous)
}

/// Whether the index grows by one with this dim (for most coordinates).
fn steps_by_one(index: &Idx, dim: usize) -> bool {
    index.terms.iter().any(|(c, atom)| match atom {
        Atom::Dim(d) => *d as usize == dim && *c == 1,
        Atom::Mod(inner, _) => *c == 1 && steps_by_one(inner, dim),
        Atom::Div(..) => false,
    })
}
