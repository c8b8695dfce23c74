//! Index kernels: `scatter_add`. One invocation per element of the result looks at all indices in order, so that
//! contributions to one element are added in the order the language promises, without atomics.

use super::workgroup_size;
use super::writer::{Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Kernel, Role};
use crate::{GpuLimits, Result};
use dnx_ir::DType;

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let Some(scatter) = &kernel.scatter else {
        return refuse("an index kernel has no scatter body");
    };
    if !kernel.stores.is_empty() {
        return refuse("an index kernel stores nothing but its scatter");
    }
    let mut w = Writer::new(kernel, limits);
    let reduce = w.dims_of(Role::Reduce);
    let (Some(&first), Some(&last)) = (reduce.first(), reduce.last()) else {
        return refuse("an index kernel has no dim of indices");
    };
    let outer: Vec<usize> = (0..first).collect();
    let inner: Vec<usize> = (last + 1..kernel.dims.len()).collect();
    let extent = |dims: &[usize]| dims.iter().map(|&d| kernel.dims[d].size).product::<usize>();
    let (n_outer, n_inner, n_indices) = (extent(&outer), extent(&inner), extent(&reduce));
    let elems = (n_outer * scatter.rows * n_inner) as u64;
    let workgroup = workgroup_size(&kernel.tile, 64, limits);
    let workgroups = elems.div_ceil(workgroup as u64);
    let out = kernel.args[scatter.out as usize].dtype;
    let accumulator = w.accumulator(out)?;

    w.open_main(workgroup);
    w.workgroup_index("w", workgroups);
    w.line(format!("let e = w * {workgroup}u + lid;"));
    w.line(format!("if (e >= {elems}u) {{ return; }}"));
    w.line(format!("let inner = e % {}u;", n_inner.max(1)));
    w.line(format!("let row = e / {}u % {}u;", n_inner.max(1), scatter.rows.max(1)));
    w.line(format!("let outer = e / {}u;", (n_inner * scatter.rows).max(1)));
    let base = match scatter.base {
        Some(arg) => {
            let element = w.load(arg, "e")?;
            let dtype = kernel.args[arg as usize].dtype;
            w.widened(dtype, &element)
        }
        None => format!("{accumulator}(0)"),
    };
    w.line(format!("var sum: {accumulator} = {base};"));
    w.decode(&outer, "outer");
    w.decode(&inner, "inner");
    let mask = w.reduce_mask();
    w.hoist(&[scatter.target, scatter.update], mask)?;
    w.open(format!("for (var j = 0u; j < {n_indices}u; j = j + 1u) {{"));
    w.decode(&reduce, "j");
    w.emit(&[scatter.target])?;
    let target = w.value(scatter.target)?;
    let greatest = scatter.rows.saturating_sub(1);
    let target = match kernel.dtype(scatter.target) {
        DType::U32 => format!("min({target}, {greatest}u)"),
        _ => format!("u32(clamp({target}, 0i, {greatest}i))"),
    };
    w.open(format!("if ({target} == row) {{"));
    w.emit(&[scatter.update])?;
    let update = w.value(scatter.update)?;
    let update = w.widened(kernel.dtype(scatter.update), &update);
    w.line(format!("sum = sum + {update};"));
    w.close();
    w.close();
    let sum = w.rounded(out, "sum");
    w.store(scatter.out, "e", &sum)?;
    w.close();
    Ok(vec![w.finish("index: scatter_add, one invocation per element of the result", workgroups, 0)?])
}
