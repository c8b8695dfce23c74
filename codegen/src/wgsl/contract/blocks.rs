//! Blocks: a block of the result per workgroup, operand tiles in workgroup memory, a register block per invocation.
//!
//! Tiles are stored depth first as quads (`vec4`) of rows or columns, one pad quad per depth so that neither writing
//! nor reading them hits one bank. The next tile is fetched to registers while the present one is multiplied.

use super::Plan;
use super::fetch::Fetch;
use super::operand::Operand;
use crate::exec::Shader;
use crate::kernel::{Kernel, Role};
use crate::wgsl::quad::COMPONENTS;
use crate::wgsl::writer::Writer;
use crate::{GpuLimits, Result};

/// Multiplications of a quad between two loop heads, at most (about).
const UNROLLED: u32 = 128;

pub(super) fn product(plan: &Plan, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
    let mut w = Writer::new(kernel, limits);
    let ([bm, bn, bk], t) = (plan.block, plan.accumulator);
    let (row_quads, column_quads) = (bm / 4, bn / 4);
    let quads = plan.each.map(|n| n / 4);
    w.declare(format!("var<workgroup> lhs_tile: array<vec4<{t}>, {}>;", bk * (row_quads + 1)));
    w.declare(format!("var<workgroup> rhs_tile: array<vec4<{t}>, {}>;", bk * (column_quads + 1)));
    let operands =
        [(plan.lhs, Role::M), (plan.rhs, Role::N)].map(|(value, role)| Operand::new(kernel, value, role, bk));
    for operand in &operands {
        operand.print(&mut w, plan)?;
    }
    plan.print_finish(&mut w)?;

    w.fresh_scope();
    w.open_main(plan.workgroup);
    plan.print_place(&mut w);
    let (threads_m, threads_n) = (bm / plan.each[0], bn / plan.each[1]);
    w.line(format!("let tx = lid % {threads_n}u;"));
    w.line(format!("let ty = lid / {threads_n}u;"));
    let [lhs, rhs] = &operands;
    let fetches = [Fetch::new(lhs, bk, row_quads, plan.workgroup), Fetch::new(rhs, bk, column_quads, plan.workgroup)];
    fetches.iter().for_each(|f| f.places(&mut w));
    for i in 0..plan.each[0] {
        for j in 0..quads[1] {
            w.line(format!("var sum_{i}_{j} = vec4<{t}>();"));
        }
    }
    for fetch in &fetches {
        fetch.registers(&mut w, t);
        fetch.load(&mut w, "begin");
    }
    w.open(format!("for (var k0 = begin; k0 < end; k0 = k0 + {bk}u) {{"));
    fetches.iter().for_each(|f| put(f, &mut w));
    w.line("workgroupBarrier();");
    w.open(format!("if (k0 + {bk}u < end) {{"));
    let next = format!("k0 + {bk}u");
    fetches.iter().for_each(|f| f.load(&mut w, &next));
    w.close();
    let most = (UNROLLED / (plan.each[0] * quads[1])).clamp(1, bk);
    let unroll = (1..=most).rev().find(|u| bk % u == 0).unwrap_or(1);
    // Without a loop the depth is a constant.
    let depth = |u: u32| if unroll == bk { format!("{u}u") } else { format!("(k + {u}u)") };
    if unroll < bk {
        w.open(format!("for (var k = 0u; k < {bk}u; k = k + {unroll}u) {{"));
    }
    for u in 0..unroll {
        w.open("{");
        for i in 0..quads[0] {
            let at = format!("{} * {}u + ty + {}u", depth(u), row_quads + 1, i * threads_m);
            w.line(format!("let left{i} = lhs_tile[{at}];"));
        }
        for j in 0..quads[1] {
            let at = format!("{} * {}u + tx + {}u", depth(u), column_quads + 1, j * threads_n);
            w.line(format!("let right{j} = rhs_tile[{at}];"));
        }
        for i in 0..plan.each[0] {
            for j in 0..quads[1] {
                let component = COMPONENTS[(i % 4) as usize];
                w.line(format!("sum_{i}_{j} = sum_{i}_{j} + left{}.{component} * right{j};", i / 4));
            }
        }
        w.close();
    }
    if unroll < bk {
        w.close();
    }
    w.line("workgroupBarrier();");
    w.close();
    let part = if plan.parts > 1 { "part, " } else { "" };
    for i in 0..plan.each[0] {
        let m = format!("tile_m + (ty + {}u) * 4u + {}u", i / 4 * threads_m, i % 4);
        for j in 0..quads[1] {
            let n = format!("tile_n + (tx + {}u) * 4u", j * threads_n);
            w.line(format!("finish_quad({part}z, {m}, {n}, sum_{i}_{j});"));
        }
    }
    w.close();
    let what = format!(
        "contract: {bm} x {bn} x {bk} tiles, {} x {} per invocation, {} part(s)",
        plan.each[0], plan.each[1], plan.parts
    );
    w.finish(&what, plan.workgroups(), plan.scratch_bytes())
}

/// Puts a tile: quads along the depth are taken apart.
fn put(fetch: &Fetch, w: &mut Writer) {
    let (name, stride) = (fetch.name, fetch.quads + 1);
    fetch.put(w, |w, k, x, quad| {
        if !fetch.depth_quads {
            w.line(format!("{name}_tile[{k} * {stride}u + {x} / 4u] = {quad};"));
            return;
        }
        for (c, component) in COMPONENTS.into_iter().enumerate() {
            w.line(format!("{name}_tile[({k} + {c}u) * {stride}u + {x} / 4u][{x} % 4u] = {quad}.{component};"));
        }
    });
}
