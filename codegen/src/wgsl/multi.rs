//! Multi kernels: one pointwise body over many tensors.
//!
//! The device binds whole allocations and makes a table of `u32` words, bound last (a `None` in
//! [`Shader::bindings`]):
//!
//! * word 0: the number of blocks; words 1 to that number: the segment of each block;
//! * then per segment `2 + arguments` words: its first block, its length in elements, and for every argument of the
//!   kernel (used or not) the offset in elements from the beginning of the binding.
//!
//! A block is [`MULTI_BLOCK`] elements of one segment, done by one workgroup. Workgroups beyond the last block do
//! nothing, so the device may make any grid of at least as many: workgroup `(x, y)` does block
//! `y * (grid width) + x`.

use super::writer::{Coord, Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{InstId, Kernel};
use crate::{GpuLimits, Result};

/// Elements of a segment that one workgroup of a `Multi` shader processes.
pub const MULTI_BLOCK: u64 = 1024;

const WORKGROUP: u64 = 256;

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    if kernel.dims.len() != 1 {
        return refuse("a multi kernel has one dim");
    }
    let mut w = Writer::new(kernel, limits);
    let workgroup = WORKGROUP.min(limits.max_invocations as u64);
    w.use_scratch();
    w.line(format!("@compute @workgroup_size({workgroup})"));
    w.open(
        "fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, \
         @builtin(local_invocation_index) lid: u32) {",
    );
    w.line("let block = wid.y * grid.x + wid.x;");
    w.line("let blocks = table[0];");
    w.line("if (block >= blocks) { return; }");
    w.line(format!("let segment = blocks + 1u + table[block + 1u] * {}u;", kernel.args.len() + 2));
    w.line(format!("let first = (block - table[segment]) * {MULTI_BLOCK}u;"));
    w.line(format!("let end = min(first + {MULTI_BLOCK}u, table[segment + 1u]);"));
    for arg in 0..kernel.args.len() {
        w.line(format!("let offset_a{arg} = table[segment + {}u];", arg + 2));
    }
    let values: Vec<InstId> = kernel.stores.iter().map(|s| s.value).collect();
    w.hoist(&values, 1)?;
    w.open(format!("for (var i = first + lid; i < end; i = i + {workgroup}u) {{"));
    w.scope.coords[0] = Coord::Ready("i".to_string());
    w.emit(&values)?;
    for store in &kernel.stores {
        let value = w.value(store.value)?;
        let index = w.index(&store.index)?;
        w.store(store.arg, &format!("offset_a{} + {index}", store.arg), &value)?;
    }
    w.close();
    w.close();
    Ok(vec![w.finish("multi: one workgroup per block of a segment", 0, 0)?])
}
