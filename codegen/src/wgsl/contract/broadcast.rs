//! Broadcast: a block of the result per subgroup, no workgroup memory and no barriers. Every invocation owns some
//! columns of all rows; the left operand is loaded once per subgroup, each invocation having a part of it, and passed
//! around by `subgroupBroadcast`. Software rasterisers, whose loads are slow and whose barriers are slower, are several
//! times faster so.

use super::Plan;
use super::operand::Operand;
use crate::exec::Shader;
use crate::kernel::{Kernel, Role};
use crate::wgsl::quad::COMPONENTS;
use crate::wgsl::writer::Writer;
use crate::{GpuLimits, Result};

/// Depth of a step: one quad.
pub(super) const DEPTH: u32 = 4;

pub(super) fn product(plan: &Plan, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
    let mut w = Writer::new(kernel, limits);
    let ([rows, columns, _], t, lanes) = (plan.block, plan.accumulator, plan.workgroup);
    let quads = plan.each[1] / 4;
    let lhs = Operand::new(kernel, plan.lhs, Role::M, DEPTH);
    let rhs = Operand::new(kernel, plan.rhs, Role::N, DEPTH);
    lhs.print(&mut w, plan)?;
    rhs.print(&mut w, plan)?;
    plan.print_finish(&mut w)?;

    w.fresh_scope();
    w.open_subgroup_main(lanes);
    plan.print_place(&mut w);
    for i in 0..rows {
        for j in 0..quads {
            w.line(format!("var sum_{i}_{j} = vec4<{t}>();"));
        }
    }
    w.open(format!("for (var k = begin; k < end; k = k + {DEPTH}u) {{"));
    // The left operand: `rows / lanes` quads per invocation.
    let row_quads = rows / 4;
    let depths = lanes / row_quads.max(1);
    for v in 0..rows / lanes {
        let (m, k) = if lhs.depth_quads {
            (format!("lane + {}u", v * lanes), "k".to_string())
        } else {
            (format!("lane % {row_quads}u * 4u"), format!("k + lane / {row_quads}u + {}u", v * depths))
        };
        w.line(format!("let left{v} = lhs_quad(z, tile_m + {m}, {k});"));
    }
    let column = |j: u32| format!("tile_n + lane * 4u + {}u", j * lanes * 4);
    if rhs.depth_quads {
        for j in 0..quads {
            for c in 0..4 {
                w.line(format!("let column{j}_{c} = rhs_quad(z, {} + {c}u, k);", column(j)));
            }
        }
    }
    for d in 0..DEPTH {
        w.open("{");
        for j in 0..quads {
            if rhs.depth_quads {
                let parts = [0, 1, 2, 3].map(|c| format!("column{j}_{c}.{}", COMPONENTS[d as usize]));
                w.line(format!("let right{j} = vec4<{t}>({});", parts.join(", ")));
            } else {
                w.line(format!("let right{j} = rhs_quad(z, {}, k + {d}u);", column(j)));
            }
        }
        for i in 0..rows {
            let (v, component, from) = if lhs.depth_quads {
                (i / lanes, d, i % lanes)
            } else {
                (d / depths, i % 4, d % depths * row_quads + i / 4)
            };
            let component = COMPONENTS[component as usize];
            w.line(format!("let x{i} = subgroupBroadcast(left{v}.{component}, {from}u);"));
            for j in 0..quads {
                w.line(format!("sum_{i}_{j} = sum_{i}_{j} + x{i} * right{j};"));
            }
        }
        w.close();
    }
    w.close();
    let part = if plan.parts > 1 { "part, " } else { "" };
    for i in 0..rows {
        for j in 0..quads {
            w.line(format!("finish_quad({part}z, tile_m + {i}u, {}, sum_{i}_{j});", column(j)));
        }
    }
    w.close();
    let what = format!("contract: {rows} x {columns} per subgroup of {lanes}, {} part(s)", plan.parts);
    w.finish(&what, plan.workgroups(), plan.scratch_bytes())
}
