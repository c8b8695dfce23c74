//! Matrix: a block of the result per workgroup, operand tiles of `f16` in workgroup memory, cooperative matrices with
//! `f32` accumulators.
//!
//! Every subgroup owns a part of the block. The size of a subgroup is known only within limits, so the workgroup is
//! made for the largest; where subgroups turn out smaller, those in excess fetch like all others, repeat another's
//! products (cooperative operations want uniform control flow) and drop them. Sums pass through workgroup memory, one
//! matrix at a time, to the same epilogue as in the other tiers.
//!
//! A tile lies in memory as it was fetched, depth first or last, and is loaded row- or column-major accordingly.
//! Matrices are variables with names, never arrays: naga does not translate those.

use super::Plan;
use super::fetch::Fetch;
use super::operand::Operand;
use crate::exec::Shader;
use crate::kernel::{Inst, Kernel, Role};
use crate::wgsl::quad::COMPONENTS;
use crate::wgsl::writer::{Writer, refuse};
use crate::{GpuClass, GpuLimits, Result};
use dnx_ir::DType;

/// Quads of padding after each row of a tile: rows stay aligned to 16 bytes and begin in different banks.
const PAD: u32 = 2;

/// What the device has for this tier.
pub(super) struct Unit {
    /// Rows and columns of a matrix.
    pub(super) edge: u32,
    /// Least and greatest subgroup.
    subgroup: (u32, u32),
}

impl Unit {
    /// The device's, if there are matrices and the operands are `f16`.
    pub(super) fn of(kernel: &Kernel, limits: &GpuLimits) -> Option<Unit> {
        let half = |id: crate::kernel::InstId| kernel.dtype(id) == DType::F16;
        let halves = kernel.insts.iter().any(|i| matches!(i, Inst::Dot { lhs, rhs } if half(*lhs) && half(*rhs)));
        let (edge, subgroup) = (limits.cooperative_matrix?, limits.subgroup?);
        (halves && limits.f16).then_some(Unit { edge, subgroup })
    }

    /// Subgroups of which each owns a part of the block.
    fn owners(block: [u32; 3], each: [u32; 2]) -> u32 {
        (block[0] / each[0]) * (block[1] / each[1])
    }

    /// Subgroups there may be at most.
    fn subgroups(&self, workgroup: u32) -> u32 {
        workgroup / self.subgroup.0.max(1)
    }
}

/// Quads of a row of an operand's tile, padding included, and the number of rows.
fn tile_shape(depth_quads: bool, edge: u32, depth: u32) -> (u32, u32) {
    if depth_quads { (depth / 4 + PAD, edge) } else { (edge / 4 + PAD, depth) }
}

/// The workgroup of a tile.
///
/// # Errors
/// If the device or the tile does not fit.
pub(super) fn workgroup(kernel: &Kernel, block: [u32; 3], each: [u32; 2], limits: &GpuLimits) -> Result<u32> {
    let Some(unit) = Unit::of(kernel, limits) else {
        return refuse("cooperative matrices need a device that has them, and f16 operands");
    };
    let edge = unit.edge;
    let whole = |n: u32, of: u32| n > 0 && of > 0 && n.is_multiple_of(of);
    let parts = [0, 1].iter().all(|&i| whole(each[i], edge) && whole(block[i], each[i]));
    if !parts || !whole(block[2], edge) || !edge.is_multiple_of(4) {
        return refuse(format!(
            "tile {block:?} with {each:?} per subgroup: both must be multiples of the device's matrices of {edge}"
        ));
    }
    let workgroup = Unit::owners(block, each) * unit.subgroup.1;
    let tile = |side: u32| [true, false].map(|d| tile_shape(d, side, block[2])).map(|(a, b)| a * b * 8);
    let most = |bytes: [u32; 2]| bytes[0].max(bytes[1]);
    let bytes = most(tile(block[0])) + most(tile(block[1])) + unit.subgroups(workgroup) * edge * edge * 4;
    if workgroup > limits.max_invocations || bytes > limits.workgroup_bytes {
        return refuse(format!(
            "tile {block:?} takes {workgroup} invocations and {bytes} bytes of workgroup memory; the device has {} \
             and {}",
            limits.max_invocations, limits.workgroup_bytes
        ));
    }
    Ok(workgroup)
}

/// An array of quads in workgroup memory, or of their elements where the shading language behind wants scalars.
struct Quads {
    name: String,
    element: &'static str,
    scalars: bool,
}

impl Quads {
    fn declare(&self, w: &mut Writer, quads: u32) {
        let Quads { name, element, scalars } = self;
        match scalars {
            true => w.declare(format!("var<workgroup> {name}: array<{element}, {}>;", quads * 4)),
            false => w.declare(format!("var<workgroup> {name}: array<vec4<{element}>, {quads}>;")),
        }
    }

    /// The address of an element, at an index that is a multiple of four, and the stride of rows of so many quads.
    fn place(&self, quad: &str, stride: u32) -> String {
        match self.scalars {
            true => format!("&{}[({quad}) * 4u], {}u", self.name, stride * 4),
            false => format!("&{}[{quad}], {stride}u", self.name),
        }
    }

    fn put(&self, w: &mut Writer, quad: &str, value: &str) {
        if !self.scalars {
            w.line(format!("{}[{quad}] = {value};", self.name));
            return;
        }
        for (c, component) in COMPONENTS.into_iter().enumerate() {
            w.line(format!("{}[({quad}) * 4u + {c}u] = {value}.{component};", self.name));
        }
    }

    fn get(&self, quad: &str) -> String {
        if !self.scalars {
            return format!("{}[{quad}]", self.name);
        }
        let parts = [0, 1, 2, 3].map(|c| format!("{}[({quad}) * 4u + {c}u]", self.name));
        format!("vec4<{}>({})", self.element, parts.join(", "))
    }
}

pub(super) fn product(plan: &Plan, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
    let Some(unit) = Unit::of(kernel, limits) else {
        return refuse("cooperative matrices need a device that has them, and f16 operands");
    };
    let mut w = Writer::new(kernel, limits);
    let ([bm, bn, bk], [sm, sn], edge) = (plan.block, plan.each, unit.edge);
    // Metal loads matrices from arrays of scalars only.
    let scalars = limits.class == GpuClass::Apple;
    let quads = |name: &str, element| Quads { name: name.to_string(), element, scalars };
    let operands =
        [(plan.lhs, Role::M), (plan.rhs, Role::N)].map(|(value, role)| Operand::new(kernel, value, role, bk));
    let [lhs, rhs] = [(&operands[0], bm), (&operands[1], bn)].map(|(operand, side)| {
        let (stride, rows) = tile_shape(operand.depth_quads, side, bk);
        let tile = quads(&format!("{}_tile", operand.name), "f16");
        tile.declare(&mut w, stride * rows);
        Side { fetch: Fetch::new(operand, bk, side / 4, plan.workgroup), tile, stride }
    });
    let sums = quads("sums", "f32");
    let matrix_quads = edge * edge / 4;
    sums.declare(&mut w, unit.subgroups(plan.workgroup) * matrix_quads);
    w.use_matrices()?;
    for operand in &operands {
        operand.print(&mut w, plan)?;
    }
    plan.print_finish(&mut w)?;

    w.fresh_scope();
    w.open_matrix_main(plan.workgroup);
    plan.print_place(&mut w);
    let owners = Unit::owners(plan.block, plan.each);
    w.line(format!("let owner = subgroup % {owners}u;"));
    w.line(format!("let own_m = owner / {}u * {sm}u;", bn / sn));
    w.line(format!("let own_n = owner % {}u * {sn}u;", bn / sn));
    for side in [&lhs, &rhs] {
        side.fetch.places(&mut w);
    }
    let (rows, columns) = (sm / edge, sn / edge);
    for i in 0..rows {
        for j in 0..columns {
            w.line(format!("var sum_{i}_{j} = coop_mat{edge}x{edge}<f32, C>();"));
        }
    }
    for side in [&lhs, &rhs] {
        side.fetch.registers(&mut w, "f16");
        side.fetch.load(&mut w, "begin");
    }
    w.open(format!("for (var k0 = begin; k0 < end; k0 = k0 + {bk}u) {{"));
    for side in [&lhs, &rhs] {
        side.put(&mut w);
    }
    w.line("workgroupBarrier();");
    w.open(format!("if (k0 + {bk}u < end) {{"));
    for side in [&lhs, &rhs] {
        side.fetch.load(&mut w, &format!("k0 + {bk}u"));
    }
    w.close();
    for k in (0..bk).step_by(edge as usize) {
        w.open("{");
        for i in 0..rows {
            w.line(format!("let left{i} = {};", lhs.load("A", edge, &format!("own_m + {}u", i * edge), k)));
        }
        for j in 0..columns {
            w.line(format!("let right{j} = {};", rhs.load("B", edge, &format!("own_n + {}u", j * edge), k)));
        }
        for i in 0..rows {
            for j in 0..columns {
                w.line(format!("sum_{i}_{j} = coopMultiplyAdd(left{i}, right{j}, sum_{i}_{j});"));
            }
        }
        w.close();
    }
    w.line("workgroupBarrier();");
    w.close();
    let part = if plan.parts > 1 { "part, " } else { "" };
    w.line(format!("let region = subgroup * {matrix_quads}u;"));
    for i in 0..rows {
        for j in 0..columns {
            w.line(format!("coopStoreT(sum_{i}_{j}, {});", sums.place("region", edge / 4)));
            w.line("workgroupBarrier();");
            w.open(format!("if (subgroup < {owners}u) {{"));
            w.open(format!("for (var q = lane; q < {matrix_quads}u; q = q + lanes) {{"));
            let m = format!("tile_m + own_m + {}u + q / {}u", i * edge, edge / 4);
            let n = format!("tile_n + own_n + {}u + q % {}u * 4u", j * edge, edge / 4);
            w.line(format!("finish_quad({part}z, {m}, {n}, {});", sums.get("region + q")));
            w.close();
            w.close();
            w.line("workgroupBarrier();");
        }
    }
    w.close();
    let what = format!(
        "contract: {bm} x {bn} x {bk} tiles, cooperative matrices of {edge}, {sm} x {sn} per subgroup, {} part(s)",
        plan.parts
    );
    w.finish(&what, plan.workgroups(), plan.scratch_bytes())
}

/// One operand's tile in workgroup memory.
struct Side {
    fetch: Fetch,
    tile: Quads,
    /// Quads of a row.
    stride: u32,
}

impl Side {
    fn put(&self, w: &mut Writer) {
        self.fetch.put(w, |w, k, x, quad| {
            let (row, column) = if self.fetch.depth_quads { (x, k) } else { (k, x) };
            self.tile.put(w, &format!("{row} * {}u + {column} / 4u", self.stride), quad);
        });
    }

    /// The matrix at row or column `x` and depth `k` of the tile.
    fn load(&self, role: &str, edge: u32, x: &str, k: u32) -> String {
        let quad = match self.fetch.depth_quads {
            true => format!("({x}) * {}u + {}u", self.stride, k / 4),
            false => format!("({x}) / 4u + {}u", k * self.stride),
        };
        // The left operand has its depth along rows, the right one along columns.
        let row_major = self.fetch.depth_quads == (role == "A");
        let name = if row_major { "coopLoadT" } else { "coopLoad" };
        format!("{name}<coop_mat{edge}x{edge}<f16, {role}>>({})", self.tile.place(&quad, self.stride))
    }
}
