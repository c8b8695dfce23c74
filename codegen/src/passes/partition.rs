//! From the global program to the program of one device.
//!
//! Over one device (no mesh, or axes of size 1) shardings mean nothing: types lose them, `reshard` and collectives
//! are the identity, `axis_index` is 0. A per-device program over several devices (collectives explicit, no
//! shardings) passes through.

use crate::{CompileError, InStage, Result, Stage};
use dnx_ir::{Builder, DType, Func, Mesh, Node, Op, Sharding, ValueId};
use std::sync::Arc;

/// The program of one device.
///
/// # Errors
/// A global program with shardings over several devices.
pub fn partition(func: &Func) -> Result<Func> {
    if func.mesh.devices() == 1 {
        return if func.mesh.axes.is_empty() { Ok(func.clone()) } else { strip(func).in_stage(Stage::Partition) };
    }
    for node in &func.nodes {
        let sharded = node.results.iter().find(|&&v| !func.ty(v).sharding.is_replicated());
        if sharded.is_some() || matches!(node.op, Op::Reshard { .. }) {
            let ty = func.ty(sharded.copied().unwrap_or(node.results[0]));
            let what = format!(
                "{} of type {ty} is sharded over {} devices, and a global program is not divided yet; \
                 write the per-device program (local shapes, explicit collectives) or use a mesh of one device",
                node.op.name(),
                func.mesh.devices()
            );
            return Err(CompileError::unsupported(Stage::Partition, what, &node.loc));
        }
    }
    Ok(func.clone())
}

fn strip(func: &Func) -> dnx_ir::Result<Func> {
    let mut b = Builder::on_mesh(&func.name, Mesh::single());
    let param = |b: &mut Builder, i: usize| {
        let p = &func.params[i];
        b.set_loc(func.def(p.value).loc.clone());
        b.param(&p.name, func.ty(p.value).clone().with_sharding(Sharding::replicated()))
    };
    let results = super::walk(func, &mut b, param, one)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::{AxisName, Graph, ReduceKind, Type};

    fn data() -> AxisName {
        "data".into()
    }

    #[test]
    fn over_one_device_placement_disappears() {
        let mut b = Builder::on_mesh("f", Mesh::new(&[("data", 1)]));
        let x = b.param("x", Type::f32([4, 2]).with_sharding(Sharding::new(vec![vec![data()], vec![]], vec![])));
        let y = b.emit(Op::Reshard { sharding: Sharding::replicated() }, &[x]).unwrap();
        let f = partition(&b.finish(&[y])).unwrap();
        assert_eq!(f.results, [f.params[0].value]);
        assert!(f.ty(f.results[0]).sharding.is_replicated() && f.mesh == Mesh::single());

        let mut b = Builder::on_mesh("f", Mesh::new(&[("data", 1)]));
        let x = b.param("x", Type::f32([4]));
        let y = b.emit(Op::AllReduce { kind: ReduceKind::Sum, axes: vec![data()] }, &[x]).unwrap();
        let z = b.emit(Op::Ppermute { axis: data(), pairs: vec![] }, &[x]).unwrap();
        let i = b.emit(Op::AxisIndex { axis: data() }, &[]).unwrap();
        let f = partition(&b.finish(&[y, z, i])).unwrap();
        assert_eq!(f.results[0], f.params[0].value);
        assert!(f.nodes.iter().all(|n| !n.op.is_collective() && !matches!(n.op, Op::AxisIndex { .. })));
    }

    #[test]
    fn several_devices_take_per_device_programs_and_refuse_shardings() {
        let mesh = Mesh::new(&[("data", 2)]);
        let mut b = Builder::on_mesh("f", mesh.clone());
        let x = b.param("x", Type::f32([4]));
        let y = b.emit(Op::AllReduce { kind: ReduceKind::Sum, axes: vec![data()] }, &[x]).unwrap();
        let f = b.finish(&[y]);
        assert_eq!(partition(&f).unwrap(), f);

        let g = Graph::on_mesh("f", mesh);
        let x = g.param("x", Type::f32([4]).with_sharding(Sharding::new(vec![vec![data()]], vec![])));
        let e = partition(&g.finish(&[x]).unwrap()).unwrap_err().to_string();
        assert!(e.contains("f32[4@data]") && e.contains("2 devices"), "{e}");
    }
}
