//! Loop kernels: one invocation per point.

use super::workgroup_size;
use super::writer::Writer;
use crate::exec::Shader;
use crate::kernel::{InstId, Kernel};
use crate::{GpuLimits, Result};

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let mut w = Writer::new(kernel, limits);
    let workgroup = workgroup_size(&kernel.tile, 64, limits);
    let points = kernel.points() as u64;
    let workgroups = points.div_ceil(workgroup as u64);
    w.open_main(workgroup);
    w.workgroup_index("w", workgroups);
    w.line(format!("let i = w * {workgroup}u + lid;"));
    w.line(format!("if (i >= {points}u) {{ return; }}"));
    let dims: Vec<usize> = (0..kernel.dims.len()).collect();
    w.decode(&dims, "i");
    w.scope.linear = Some("i".to_string());
    // All loads come before the first store: an argument updated in place is read at the same point only.
    let values: Vec<InstId> = kernel.stores.iter().map(|s| s.value).collect();
    w.emit(&values)?;
    for store in 0..kernel.stores.len() {
        w.write_store(store)?;
    }
    w.close();
    Ok(vec![w.finish("loop: one invocation per point", workgroups, 0)?])
}
