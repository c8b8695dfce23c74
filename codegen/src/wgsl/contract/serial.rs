//! Serial: one invocation per result (and part), in the order in which results lie in memory.

use super::Plan;
use crate::exec::Shader;
use crate::kernel::{Kernel, Role};
use crate::wgsl::writer::Writer;
use crate::{GpuLimits, Result};

pub(super) fn product(plan: &Plan, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
    let mut w = Writer::new(kernel, limits);
    let results = plan.results();
    let points = results * plan.parts as u64;
    let workgroups = plan.workgroups();
    w.open_main(plan.workgroup);
    w.workgroup_index("w", workgroups);
    w.line(format!("let point = w * {}u + lid;", plan.workgroup));
    w.line(format!("if (point >= {points}u) {{ return; }}"));
    if plan.parts > 1 {
        w.line(format!("let i = point % {results}u;"));
        w.line(format!("let begin = point / {results}u * {}u;", plan.part));
        w.line(format!("let end = min(begin + {}u, {}u);", plan.part, plan.extent[3]));
    } else {
        w.line("let i = point;");
        w.line("let begin = 0u;");
        w.line(format!("let end = {}u;", plan.extent[3]));
    }
    w.decode(&results_order(kernel), "i");
    let mask = w.reduce_mask();
    let factors = [plan.lhs, plan.rhs];
    w.hoist(&factors, mask)?;
    w.line(format!("var sum = {}(0);", plan.accumulator));
    w.open("for (var k = begin; k < end; k = k + 1u) {");
    let reduce = w.dims_of(Role::Reduce);
    w.decode(&reduce, "k");
    w.emit(&factors)?;
    let mut product = Vec::new();
    for id in factors {
        product.push(w.widened(kernel.dtype(id), &w.value(id)?));
    }
    w.line(format!("sum = sum + {};", product.join(" * ")));
    w.close();
    if plan.parts > 1 {
        w.use_scratch();
        w.line("scratch[point] = bitcast<u32>(sum);");
    } else {
        plan.epilogue(&mut w)?;
    }
    w.close();
    let what = format!("contract: one invocation per result, {} part(s)", plan.parts);
    w.finish(&what, workgroups, plan.scratch_bytes())
}

/// The dims of the result as the first store lays them out, slowest first.
pub(super) fn results_order(kernel: &Kernel) -> Vec<usize> {
    let mut dims: Vec<usize> = (0..kernel.dims.len()).filter(|&d| kernel.dims[d].role != Role::Reduce).collect();
    if let Some(store) = kernel.stores.first() {
        dims.sort_by_key(|&d| std::cmp::Reverse(store.index.coef(d).unsigned_abs()));
    }
    dims
}
