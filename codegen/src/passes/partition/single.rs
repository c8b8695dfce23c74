//! Over one device placement means nothing: types lose their shardings, `reshard` and collectives are the identity,
//! `axis_index` is 0.

use crate::passes::walk;
use dnx_ir::{Builder, DType, Func, Mesh, Node, Op, Sharding, ValueId};
use std::sync::Arc;

/// The program without its mesh.
///
/// # Errors
/// An ill-typed node.
pub fn strip(func: &Func) -> dnx_ir::Result<Func> {
    let mut b = Builder::on_mesh(&func.name, Mesh::single());
    let param = |b: &mut Builder, i: usize| {
        let p = &func.params[i];
        b.set_loc(func.def(p.value).loc.clone());
        b.param(&p.name, func.ty(p.value).clone().with_sharding(Sharding::replicated()))
    };
    let results = walk(func, &mut b, param, one)?;
    Ok(b.finish(&results))
}

fn one(b: &mut Builder, node: &Node, v: &[ValueId]) -> dnx_ir::Result<Vec<ValueId>> {
    b.set_loc(node.loc.clone());
    Ok(match &node.op {
        Op::Reshard { .. } | Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => v.to_vec(),
        Op::AllToAll { .. } => v.to_vec(),
        // Device 0 sends to itself, or nothing arrives.
        Op::Ppermute { pairs, .. } if pairs.is_empty() => vec![b.full_like(v[0], 0.0)?],
        Op::Ppermute { .. } => v.to_vec(),
        Op::AxisIndex { .. } => vec![b.scalar(DType::I32, 0.0)],
        Op::Composite { name, attrs, func } => {
            let func = Arc::new(strip(func)?);
            b.emit_multi(Op::Composite { name: name.clone(), attrs: attrs.clone(), func }, v)?
        }
        op => b.emit_multi(op.clone(), v)?,
    })
}
