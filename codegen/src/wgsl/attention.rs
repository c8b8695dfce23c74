//! Attention: a block of rows per workgroup, over which tiles of the other side are streamed.
//!
//! A *stage* owns rows (queries, or for the cotangents of keys and values the keys) and streams columns (the other
//! side). Per tile it forms *scores*, products of row and column operands over the head's dim, turns them into
//! *weights*, puts these into workgroup memory, and adds their products with column operands to sums that stay in
//! registers. An invocation holds a patch of four rows by four columns, as one `vec4` of rows for each column, and of
//! the sums four rows by quads of the head's dim. Scores exist nowhere else.
//!
//! `q_at(z, r, e)` and the like give operands, zero outside, so ragged sizes need no other care; a column beyond the end
//! has a score so low that it weighs nothing. Cotangents take two stages, each of which forms the scores: sums are
//! never shared between workgroups, so their order is fixed without atomics.

use super::writer::{Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Attention, Given, Inst, InstId, Kernel, Part, Role};
use crate::{GpuLimits, Result};
use dnx_ir::attention::HIDDEN;

/// Depth of a tile of the head's dim.
const DEPTH: u32 = 16;
/// Less than any score, and less than the least maximum.
const BEYOND: &str = "-3.0e38f";
/// Where the maximum begins.
const LEAST: &str = "-2.0e38f";

/// The stages of an attention kernel.
pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let Some((body, parts)) = kernel.attention() else { return refuse("an attention kernel has one attention") };
    let wanted = |part: Part| {
        let result = parts.iter().find(|(p, _)| *p == part).map(|(_, id)| *id);
        let store = |id: InstId| kernel.stores.iter().position(|s| source(kernel, s.value) == id);
        result.and_then(|id| store(id).map(|store| (part, id, store)))
    };
    let pick = |list: &[Part]| list.iter().filter_map(|p| wanted(*p)).collect::<Vec<_>>();
    let stage = |own: Role, list: &[Part]| Stage::new(kernel, body, limits, own, pick(list));
    let stages = match &body.given {
        Given::Cotangents { .. } => {
            vec![stage(Role::M, &[Part::Q]), stage(Role::N, &[Part::K, Part::V])]
        }
        _ => vec![stage(Role::M, &[Part::O, Part::Lse])],
    };
    let stages: Vec<Stage> = stages.into_iter().filter(|s| !s.results.is_empty()).collect();
    stages.iter().map(Stage::write).collect()
}

/// What a conversion converts.
fn source(kernel: &Kernel, mut id: InstId) -> InstId {
    while let Inst::Convert(_, x) = kernel.inst(id) {
        id = *x;
    }
    id
}

fn is_zero(kernel: &Kernel, id: InstId) -> bool {
    matches!(kernel.inst(source(kernel, id)), Inst::Const(c) if c.to_f64() == 0.0)
}

struct Stage<'a> {
    kernel: &'a Kernel,
    body: &'a Attention,
    limits: &'a GpuLimits,
    /// The side that rows are of; the other one is streamed.
    own: Role,
    /// Part, its instruction, its store.
    results: Vec<(Part, InstId, usize)>,
    batch: usize,
    /// Extents of the two sides.
    edges: [usize; 2],
    head: usize,
    /// Rows and columns of a block.
    rows: u32,
    columns: u32,
    /// Columns of an operand that are in workgroup memory at once.
    chunk: u32,
}

impl<'a> Stage<'a> {
    fn new(
        kernel: &'a Kernel,
        body: &'a Attention,
        limits: &'a GpuLimits,
        own: Role,
        results: Vec<(Part, InstId, usize)>,
    ) -> Stage<'a> {
        let [batch, queries, keys, head] = kernel.attention_extents();
        let edges = if own == Role::M { [queries, keys] } else { [keys, queries] };
        let edge = |extent: usize| match extent {
            0..=16 => 16,
            17..=32 => 32,
            _ => 64,
        };
        let (rows, mut columns) = (edge(edges[0]), edge(edges[1]));
        // An invocation keeps at most four quads of each sum.
        while columns < 64 && 4 * columns < head as u32 {
            columns *= 2;
        }
        let chunk = if head <= 128 { 16 } else { 8 };
        let mut stage = Stage { kernel, body, limits, own, results, batch, edges, head, rows, columns, chunk };
        let fits = |s: &Stage| s.workgroup() <= limits.max_invocations && s.bytes() <= limits.workgroup_bytes;
        while !fits(&stage) && (stage.rows > 8 || stage.columns > 8) {
            if stage.rows >= stage.columns { stage.rows /= 2 } else { stage.columns /= 2 }
        }
        stage
    }

    fn row_quads(&self) -> u32 {
        self.rows / 4
    }

    fn column_quads(&self) -> u32 {
        self.columns / 4
    }

    fn workgroup(&self) -> u32 {
        self.row_quads() * self.column_quads()
    }

    /// Quads of the head's dim that an invocation sums.
    fn quads(&self) -> u32 {
        (self.head as u32).div_ceil(4 * self.column_quads())
    }

    /// Quads between columns of an operand in workgroup memory.
    fn pitch(&self) -> u32 {
        self.quads() * self.column_quads() + 1
    }

    /// Quads of the tile that operands and row statistics take turns in.
    fn tile(&self) -> u32 {
        let operands = DEPTH * (self.row_quads() + 1 + self.column_quads() + 1);
        operands.max(self.chunk * self.pitch()).max(self.workgroup())
    }

    fn bytes(&self) -> u32 {
        let weights = self.columns * (self.row_quads() + 1);
        16 * (self.tile() + weights) + if self.own == Role::N { 8 * self.columns } else { 0 }
    }

    fn write(&self) -> Result<Shader> {
        let mut w = Writer::new(self.kernel, self.limits);
        w.declare(format!("var<workgroup> tile: array<vec4<f32>, {}>;", self.tile()));
        let weights = self.columns * (self.row_quads() + 1);
        w.declare(format!("var<workgroup> weights: array<vec4<f32>, {weights}>;"));
        if self.own == Role::N {
            w.declare(format!("var<workgroup> statistics: array<vec2<f32>, {}>;", self.columns));
        }
        self.operands(&mut w)?;
        for &(part, id, store) in &self.results {
            self.result(&mut w, part, id, store)?;
        }
        let blocks = self.edges[0].div_ceil(self.rows as usize).max(1) as u64;
        let workgroups = blocks * self.batch as u64;
        w.fresh_scope();
        w.open_main(self.workgroup());
        w.workgroup_index("w", workgroups);
        let [x, y, _] = super::writer::grid(workgroups);
        if u64::from(x) * u64::from(y) > workgroups {
            w.line(format!("if (w >= {workgroups}u) {{ return; }}"));
        }
        w.line(format!("let z = w / {blocks}u;"));
        w.line(format!("let first = w % {blocks}u * {}u;", self.rows));
        w.line(format!("let tx = lid % {}u;", self.column_quads()));
        w.line(format!("let ty = lid / {}u;", self.column_quads()));
        w.line("let row = first + ty * 4u;");
        match (&self.body.given, self.own) {
            (Given::Nothing, _) => self.forward(&mut w),
            (Given::Tangents { of, bias, .. }, _) => self.jvp(&mut w, *of, bias.is_some()),
            (Given::Cotangents { .. }, Role::M) => self.of_queries(&mut w),
            (Given::Cotangents { .. }, _) => self.of_keys(&mut w),
        }
        w.close();
        let form = match (&self.body.given, self.own) {
            (Given::Nothing, _) => "mixed values",
            (Given::Tangents { .. }, _) => "tangents of the mixed values",
            (_, Role::M) => "cotangents of queries",
            _ => "cotangents of keys and values",
        };
        let what = format!("attention: {form}, {} rows by {} columns", self.rows, self.columns);
        w.finish(&what, workgroups, 0)
    }

    // ---- operands and results as functions ----

    fn operands(&self, w: &mut Writer) -> Result<()> {
        let [q, k, v] = self.body.qkv;
        let mut list: Vec<(&str, InstId, Role, bool)> = vec![("q", q, Role::M, true), ("k", k, Role::N, true)];
        list.push(("v", v, Role::N, true));
        let mut biases: Vec<(&str, InstId)> = self.body.bias.map(|b| ("bias", b)).into_iter().collect();
        match &self.body.given {
            Given::Nothing => {}
            Given::Tangents { o, lse, of: [dq, dk, dv], bias } => {
                list.extend([("o", *o, Role::M, true), ("lse", *lse, Role::M, false)]);
                list.extend([("q_tangent", *dq, Role::M, true), ("k_tangent", *dk, Role::N, true)]);
                list.push(("v_tangent", *dv, Role::N, true));
                list.retain(|(name, id, ..)| !name.ends_with("_tangent") || !is_zero(self.kernel, *id));
                biases.extend(bias.map(|b| ("bias_tangent", b)));
            }
            Given::Cotangents { o, lse, of: [ct, ct_lse] } => {
                list.extend([("o", *o, Role::M, true), ("lse", *lse, Role::M, false)]);
                list.extend([("ct", *ct, Role::M, true), ("ct_lse", *ct_lse, Role::M, false)]);
            }
        }
        for (name, id, role, has_head) in list {
            let edge = self.kernel.extent(role);
            w.fresh_scope();
            if has_head {
                w.open(format!("fn {name}_at(z: u32, r: u32, e: u32) -> f32 {{"));
                w.line(format!("if (r >= {edge}u || e >= {}u) {{ return 0.0f; }}", self.head));
                self.decode(w, &[(Role::Batch, "z"), (role, "r"), (Role::Reduce, "e")]);
            } else {
                w.open(format!("fn {name}_at(z: u32, r: u32) -> f32 {{"));
                w.line(format!("if (r >= {edge}u) {{ return 0.0f; }}"));
                self.decode(w, &[(Role::Batch, "z"), (role, "r")]);
            }
            self.give(w, id)?;
        }
        for (name, id) in biases {
            let (queries, keys) = (self.kernel.extent(Role::M), self.kernel.extent(Role::N));
            w.fresh_scope();
            w.open(format!("fn {name}_at(z: u32, m: u32, n: u32) -> f32 {{"));
            w.line(format!("if (m >= {queries}u || n >= {keys}u) {{ return 0.0f; }}"));
            self.decode(w, &[(Role::Batch, "z"), (Role::M, "m"), (Role::N, "n")]);
            self.give(w, id)?;
        }
        Ok(())
    }

    fn decode(&self, w: &mut Writer, roles: &[(Role, &str)]) {
        for (role, name) in roles {
            let dims = w.dims_of(*role);
            w.decode(&dims, name);
        }
    }

    fn give(&self, w: &mut Writer, id: InstId) -> Result<()> {
        w.emit(&[id])?;
        let value = w.value(id)?;
        w.line(format!("return {value};"));
        w.close();
        w.line("");
        Ok(())
    }

    fn result(&self, w: &mut Writer, part: Part, id: InstId, store: usize) -> Result<()> {
        w.fresh_scope();
        let edge = self.edges[0];
        let name = part.name();
        if part == Part::Lse {
            w.open(format!("fn put_{name}(z: u32, r: u32, x: f32) {{"));
            w.line(format!("if (r >= {edge}u) {{ return; }}"));
            self.decode(w, &[(Role::Batch, "z"), (self.own, "r")]);
        } else {
            w.open(format!("fn put_{name}(z: u32, r: u32, e: u32, x: f32) {{"));
            w.line(format!("if (r >= {edge}u || e >= {}u) {{ return; }}", self.head));
            self.decode(w, &[(Role::Batch, "z"), (self.own, "r"), (Role::Reduce, "e")]);
        }
        w.set(id, "x");
        w.emit(&[self.kernel.stores[store].value])?;
        w.write_store(store)?;
        w.close();
        w.line("");
        Ok(())
    }

    // ---- pieces of the walk ----

    /// `name0..name3 += a b`, a row operand and a column operand, over the head's dim.
    fn product(&self, w: &mut Writer, name: &str, a: &str, b: &str) {
        let (rq, cq, wg) = (self.row_quads(), self.column_quads(), self.workgroup());
        let columns_at = DEPTH * (rq + 1);
        w.open(format!("for (var e0 = 0u; e0 < {}u; e0 = e0 + {DEPTH}u) {{", self.head));
        for (x, quads, from, pitch, start) in [(a, rq, "first", rq + 1, 0), (b, cq, "begin", cq + 1, columns_at)] {
            w.open(format!("for (var i = lid; i < {}u; i = i + {wg}u) {{", DEPTH * quads));
            w.line(format!("let e = e0 + i % {DEPTH}u;"));
            w.line(format!("let r = {from} + i / {DEPTH}u * 4u;"));
            let elements: Vec<String> = (0..4).map(|c| format!("{x}_at(z, r + {c}u, e)")).collect();
            let at = format!("i % {DEPTH}u * {pitch}u + i / {DEPTH}u");
            let at = if start == 0 { at } else { format!("{start}u + {at}") };
            w.line(format!("tile[{at}] = vec4<f32>({});", elements.join(", ")));
            w.close();
        }
        w.line("workgroupBarrier();");
        w.open(format!("for (var k = 0u; k < {DEPTH}u; k = k + 4u) {{"));
        for u in 0..4 {
            w.open("{");
            w.line(format!("let left = tile[(k + {u}u) * {}u + ty];", rq + 1));
            w.line(format!("let right = tile[{columns_at}u + (k + {u}u) * {}u + tx];", cq + 1));
            for (c, component) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
                w.line(format!("{name}{c} = {name}{c} + left * right.{component};"));
            }
            w.close();
        }
        w.close();
        w.line("workgroupBarrier();");
        w.close();
    }

    fn registers(&self, w: &mut Writer, name: &str) {
        for c in 0..4 {
            w.line(format!("var {name}{c} = vec4<f32>();"));
        }
    }

    /// Adds to `name0..name3` a bias, a `vec4` of rows for each column.
    fn add_bias(&self, w: &mut Writer, name: &str, bias: &str) {
        for c in 0..4 {
            let element = |r: u32| match self.own {
                Role::M => format!("{bias}_at(z, row + {r}u, column + {c}u)"),
                _ => format!("{bias}_at(z, column + {c}u, row + {r}u)"),
            };
            let elements: Vec<String> = (0..4).map(element).collect();
            w.line(format!("{name}{c} = {name}{c} + vec4<f32>({});", elements.join(", ")));
        }
    }

    /// The scores `s0..s3` of a tile: product, scale, bias, what is hidden and what is beyond the end.
    fn scores(&self, w: &mut Writer) {
        self.registers(w, "s");
        let (a, b) = if self.own == Role::M { ("q", "k") } else { ("k", "q") };
        self.product(w, "s", a, b);
        let scale = w.f32_bits((self.body.scale.to_f64() as f32).to_bits());
        for c in 0..4 {
            w.line(format!("s{c} = s{c} * {scale};"));
        }
        if self.body.bias.is_some() {
            self.add_bias(w, "s", "bias");
        }
        for c in 0..4 {
            if self.body.causal {
                let symbol = if self.own == Role::M { "<=" } else { ">=" };
                let seen = format!("vec4<u32>(column + {c}u) {symbol} vec4<u32>(row, row + 1u, row + 2u, row + 3u)");
                w.line(format!("s{c} = select(vec4<f32>({:?}f), s{c}, {seen});", HIDDEN as f32));
            }
            let end = self.edges[1];
            if !end.is_multiple_of(self.columns as usize) {
                w.line(format!("s{c} = select(vec4<f32>({BEYOND}), s{c}, column + {c}u < {end}u);"));
            }
        }
    }

    /// Begins the loop over tiles of columns: those that a causal block can see.
    fn open_stream(&self, w: &mut Writer) {
        let end = self.edges[1];
        let (begin, end) = match (self.body.causal, self.own) {
            (false, _) => ("0u".to_string(), format!("{end}u")),
            (true, Role::M) => ("0u".to_string(), format!("min({end}u, first + {}u)", self.rows)),
            (true, _) => (format!("first / {0}u * {0}u", self.columns), format!("{end}u")),
        };
        w.line(format!("let end = {end};"));
        w.open(format!("for (var begin = {begin}; begin < end; begin = begin + {}u) {{", self.columns));
        w.line("let column = begin + tx * 4u;");
    }

    fn sums(&self, w: &mut Writer, name: &str) {
        for n in 0..self.quads() {
            for i in 0..4 {
                w.line(format!("var {name}_{i}_{n} = vec4<f32>();"));
            }
        }
    }

    /// Adds the products of the weights `p0..p3` with a column operand to the sums of this name.
    fn accumulate(&self, w: &mut Writer, name: &str, p: &str, x: &str) {
        let (rq, cq, wg, pitch) = (self.row_quads(), self.column_quads(), self.workgroup(), self.pitch());
        let (columns, chunk) = (self.columns, self.chunk.min(self.columns));
        for c in 0..4 {
            w.line(format!("weights[(tx * 4u + {c}u) * {}u + ty] = {p}{c};", rq + 1));
        }
        w.open(format!("for (var j0 = 0u; j0 < {columns}u; j0 = j0 + {chunk}u) {{"));
        let quads = self.quads() * cq;
        w.open(format!("for (var i = lid; i < {}u; i = i + {wg}u) {{", chunk * quads));
        w.line(format!("let r = begin + j0 + i / {quads}u;"));
        w.line(format!("let e = i % {quads}u * 4u;"));
        let elements: Vec<String> = (0..4).map(|c| format!("{x}_at(z, r, e + {c}u)")).collect();
        w.line(format!("tile[i / {quads}u * {pitch}u + i % {quads}u] = vec4<f32>({});", elements.join(", ")));
        w.close();
        w.line("workgroupBarrier();");
        w.open(format!("for (var j = 0u; j < {chunk}u; j = j + 1u) {{"));
        w.line(format!("let weight = weights[(j0 + j) * {}u + ty];", rq + 1));
        for n in 0..self.quads() {
            w.line(format!("let x{n} = tile[j * {pitch}u + tx + {}u];", n * cq));
            for (i, component) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
                w.line(format!("{name}_{i}_{n} = {name}_{i}_{n} + weight.{component} * x{n};"));
            }
        }
        w.close();
        w.line("workgroupBarrier();");
        w.close();
    }

    /// `let name = value` of each row combined over the invocations that share it, by `max` or `+`.
    fn over_row(&self, w: &mut Writer, name: &str, value: &str, max: bool) {
        let cq = self.column_quads();
        w.line(format!("tile[lid] = {value};"));
        w.line("workgroupBarrier();");
        w.line(format!("var {name} = tile[ty * {cq}u];"));
        w.open(format!("for (var i = 1u; i < {cq}u; i = i + 1u) {{"));
        let next = format!("tile[ty * {cq}u + i]");
        let combined = if max { format!("max({name}, {next})") } else { format!("{name} + {next}") };
        w.line(format!("{name} = {combined};"));
        w.close();
        w.line("workgroupBarrier();");
    }

    /// Stores the sums of this name, each element as `value` says with `SUM`, `ROW` and `E` replaced.
    fn put(&self, w: &mut Writer, part: Part, name: &str, value: &str) {
        if !self.results.iter().any(|(p, ..)| *p == part) {
            return;
        }
        for n in 0..self.quads() {
            for (i, lane) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
                for (c, component) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
                    let e = format!("(tx + {}u) * 4u + {c}u", n * self.column_quads());
                    let sum = format!("{name}_{i}_{n}.{component}");
                    let value = value.replace("SUM", &sum).replace("LANE", &lane.to_string());
                    let value = value.replace("ROW", &format!("row + {i}u")).replace("ELEMENT", &e);
                    w.line(format!("put_{}(z, row + {i}u, {e}, {value});", part.name()));
                }
            }
        }
    }

    /// Stores a `vec4` of rows, once a row.
    fn put_rows(&self, w: &mut Writer, value: &str) {
        if !self.results.iter().any(|(p, ..)| *p == Part::Lse) {
            return;
        }
        w.open("if (tx == 0u) {");
        for (i, lane) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
            w.line(format!("put_lse(z, row + {i}u, {value}.{lane});"));
        }
        w.close();
    }

    fn rows_of(&self, call: &str) -> String {
        let elements: Vec<String> = (0..4).map(|i| format!("{call}(z, row + {i}u)")).collect();
        format!("vec4<f32>({})", elements.join(", "))
    }

    // ---- the forms ----

    fn forward(&self, w: &mut Writer) {
        self.sums(w, "sum");
        w.line(format!("var greatest = vec4<f32>({LEAST});"));
        w.line("var total = vec4<f32>();");
        self.open_stream(w);
        self.scores(w);
        self.over_row(w, "most", "max(max(s0, s1), max(s2, s3))", true);
        w.line("let now = max(greatest, most);");
        w.line("let shrink = exp(greatest - now);");
        w.line("greatest = now;");
        for c in 0..4 {
            w.line(format!("s{c} = exp(s{c} - now);"));
        }
        w.line("total = total * shrink + (s0 + s1 + s2 + s3);");
        for n in 0..self.quads() {
            for (i, lane) in ['x', 'y', 'z', 'w'].into_iter().enumerate() {
                w.line(format!("sum_{i}_{n} = sum_{i}_{n} * shrink.{lane};"));
            }
        }
        self.accumulate(w, "sum", "s", "v");
        w.close();
        self.over_row(w, "all", "total", false);
        w.line("let share = 1.0f / all;");
        self.put(w, Part::O, "sum", "SUM * share.LANE");
        let log = w.library.call("log_f32");
        let logs = ['x', 'y', 'z', 'w'].map(|lane| format!("{log}(all.{lane})"));
        if self.results.iter().any(|(p, ..)| *p == Part::Lse) {
            w.line(format!("let logs = greatest + vec4<f32>({});", logs.join(", ")));
            self.put_rows(w, "logs");
        }
    }

    fn jvp(&self, w: &mut Writer, of: [InstId; 3], biased: bool) {
        let [dq, dk, dv] = of.map(|id| !is_zero(self.kernel, id));
        self.sums(w, "sum");
        w.line("var total = vec4<f32>();");
        w.line(format!("let lse = {};", self.rows_of("lse_at")));
        self.open_stream(w);
        self.scores(w);
        for c in 0..4 {
            w.line(format!("s{c} = exp(s{c} - lse);"));
        }
        self.registers(w, "t");
        if dq {
            self.product(w, "t", "q_tangent", "k");
        }
        if dk {
            self.product(w, "t", "q", "k_tangent");
        }
        let scale = w.f32_bits((self.body.scale.to_f64() as f32).to_bits());
        for c in 0..4 {
            w.line(format!("t{c} = t{c} * {scale};"));
        }
        if biased {
            self.add_bias(w, "t", "bias_tangent");
        }
        for c in 0..4 {
            w.line(format!("t{c} = s{c} * t{c};"));
        }
        w.line("total = total + (t0 + t1 + t2 + t3);");
        self.accumulate(w, "sum", "t", "v");
        if dv {
            self.accumulate(w, "sum", "s", "v_tangent");
        }
        w.close();
        self.over_row(w, "all", "total", false);
        self.put(w, Part::O, "sum", "SUM - all.LANE * o_at(z, ROW, ELEMENT)");
        self.put_rows(w, "all");
    }

    /// Weights `s0..s3` and cotangents of scores `t0..t3`, from a logarithm and a statistic a query.
    fn score_cotangents(&self, w: &mut Writer, at: impl Fn(u32) -> (String, String)) {
        self.scores(w);
        self.registers(w, "t");
        let (a, b) = if self.own == Role::M { ("ct", "v") } else { ("v", "ct") };
        self.product(w, "t", a, b);
        for c in 0..4 {
            let (lse, row) = at(c);
            w.line(format!("s{c} = exp(s{c} - {lse});"));
            w.line(format!("t{c} = s{c} * (t{c} - {row});"));
        }
    }

    fn of_queries(&self, w: &mut Writer) {
        self.sums(w, "sum");
        w.line(format!("let lse = {};", self.rows_of("lse_at")));
        w.line("var part = vec4<f32>();");
        w.open(format!("for (var e = tx; e < {}u; e = e + {}u) {{", self.head, self.column_quads()));
        let [o, ct] = ["o", "ct"].map(|x| {
            let elements: Vec<String> = (0..4).map(|i| format!("{x}_at(z, row + {i}u, e)")).collect();
            format!("vec4<f32>({})", elements.join(", "))
        });
        w.line(format!("part = part + {o} * {ct};"));
        w.close();
        self.over_row(w, "dot", "part", false);
        w.line(format!("let centre = dot - {};", self.rows_of("ct_lse_at")));
        self.open_stream(w);
        self.score_cotangents(w, |_| ("lse".to_string(), "centre".to_string()));
        self.accumulate(w, "sum", "t", "k");
        w.close();
        let scale = w.f32_bits((self.body.scale.to_f64() as f32).to_bits());
        self.put(w, Part::Q, "sum", &format!("SUM * {scale}"));
    }

    fn of_keys(&self, w: &mut Writer) {
        let wants = |part: Part| self.results.iter().any(|(p, ..)| *p == part);
        for (part, name) in [(Part::K, "of_k"), (Part::V, "of_v")] {
            if wants(part) {
                self.sums(w, name);
            }
        }
        self.open_stream(w);
        w.open(format!("for (var c = lid; c < {}u; c = c + {}u) {{", self.columns, self.workgroup()));
        w.line("var dot = 0.0f;");
        w.open(format!("for (var e = 0u; e < {}u; e = e + 1u) {{", self.head));
        w.line("dot = dot + o_at(z, begin + c, e) * ct_at(z, begin + c, e);");
        w.close();
        w.line("statistics[c] = vec2<f32>(lse_at(z, begin + c), dot - ct_lse_at(z, begin + c));");
        w.close();
        // The products that follow begin with a barrier.
        self.score_cotangents(w, |c| {
            let at = format!("statistics[tx * 4u + {c}u]");
            (format!("{at}.x"), format!("{at}.y"))
        });
        if wants(Part::V) {
            self.accumulate(w, "of_v", "s", "ct");
        }
        if wants(Part::K) {
            self.accumulate(w, "of_k", "t", "q");
        }
        // Otherwise the next tile's statistics could overtake a reader of this one's.
        w.line("workgroupBarrier();");
        w.close();
        let scale = w.f32_bits((self.body.scale.to_f64() as f32).to_bits());
        self.put(w, Part::K, "of_k", &format!("SUM * {scale}"));
        self.put(w, Part::V, "of_v", "SUM");
    }
}
