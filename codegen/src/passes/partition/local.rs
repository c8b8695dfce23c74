//! Ops with the dims of a device's part.

use dnx_ir::parts::local_dims;
use dnx_ir::sharding::Placement;
use dnx_ir::{ConvDims, Mesh, Op, Type};

/// `op` as it runs on parts: `operands` and `result` are the global types, `placement` says where the parts lie.
pub fn local(op: &Op, operands: &[&Type], result: &Type, placement: &Placement, mesh: &Mesh) -> Op {
    let part = |i: usize| local_dims(&operands[i].dims, &placement.operands[i], mesh);
    let out = local_dims(&result.dims, &placement.result, mesh);
    match op {
        Op::Reshape { .. } => Op::Reshape { dims: out },
        Op::Broadcast { map, .. } => Op::Broadcast { dims: out, map: map.clone() },
        Op::Slice { start, limit, stride } => {
            // A dim that is split is taken whole.
            let split = |d: usize| !placement.result.dim(d).is_empty();
            let limit = limit.iter().enumerate().map(|(d, &l)| if split(d) { out[d] } else { l }).collect();
            Op::Slice { start: start.clone(), limit, stride: stride.clone() }
        }
        Op::DynamicSlice { .. } => Op::DynamicSlice { sizes: out },
        Op::Conv { dims, out: dtype } => {
            // Where groups are split, so are the channels of both sides, each device having whole groups.
            let (channels, per_group) = (part(0), part(1));
            let groups = channels[channels.len() - 1] / per_group[per_group.len() - 2];
            Op::Conv { dims: ConvDims { groups, ..dims.clone() }, out: *dtype }
        }
        other => other.clone(),
    }
}
