//! Collectives of an executable: what they do, between whom, and how much of it crosses a link.

use super::BufRef;
use dnx_ir::{AxisName, Mesh, Op, ReduceKind, Type};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A collective with its attributes; see [`dnx_ir::Op`] for their meaning.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Collective {
    AllReduce { kind: ReduceKind, axes: Vec<String> },
    AllGather { axis: String, dim: usize },
    ReduceScatter { axis: String, dim: usize },
    AllToAll { axis: String, split: usize, concat: usize },
    Ppermute { axis: String, pairs: Vec<(usize, usize)> },
}

/// One value that a step exchanges.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// What is done with it.
    pub op: Collective,
    /// Operand.
    pub src: BufRef,
    /// Result.
    pub dst: BufRef,
    /// Local type of the operand.
    pub ty: Type,
}

/// The devices of the mesh that differ from `device` only along `axes`, itself among them, in order of device id: those
/// it exchanges with. Sums are made in this order.
pub fn group(mesh: &Mesh, axes: &[String], device: usize) -> Vec<usize> {
    let fixed: Vec<&AxisName> =
        mesh.axes.iter().map(|(n, _)| n).filter(|n| !axes.iter().any(|a| **a == ***n)).collect();
    (0..mesh.devices()).filter(|&d| fixed.iter().all(|a| mesh.coordinate(d, a) == mesh.coordinate(device, a))).collect()
}

impl Collective {
    /// The collective that an op is; `None` for any other op.
    pub fn of(op: &Op) -> Option<Collective> {
        let name = |axis: &AxisName| axis.to_string();
        Some(match op {
            Op::AllReduce { kind, axes } => {
                Collective::AllReduce { kind: *kind, axes: axes.iter().map(name).collect() }
            }
            Op::AllGather { axis, dim } => Collective::AllGather { axis: name(axis), dim: *dim },
            Op::ReduceScatter { axis, dim } => Collective::ReduceScatter { axis: name(axis), dim: *dim },
            Op::AllToAll { axis, split, concat } => {
                Collective::AllToAll { axis: name(axis), split: *split, concat: *concat }
            }
            Op::Ppermute { axis, pairs } => Collective::Ppermute { axis: name(axis), pairs: pairs.clone() },
            _ => return None,
        })
    }

    /// The op that it came from.
    pub fn op(&self) -> Op {
        let name = |axis: &String| Arc::from(axis.as_str());
        match self {
            Collective::AllReduce { kind, axes } => {
                Op::AllReduce { kind: *kind, axes: axes.iter().map(name).collect() }
            }
            Collective::AllGather { axis, dim } => Op::AllGather { axis: name(axis), dim: *dim },
            Collective::ReduceScatter { axis, dim } => Op::ReduceScatter { axis: name(axis), dim: *dim },
            Collective::AllToAll { axis, split, concat } => {
                Op::AllToAll { axis: name(axis), split: *split, concat: *concat }
            }
            Collective::Ppermute { axis, pairs } => Op::Ppermute { axis: name(axis), pairs: pairs.clone() },
        }
    }

    /// The mesh axes along which devices exchange.
    pub fn axes(&self) -> &[String] {
        match self {
            Collective::AllReduce { axes, .. } => axes,
            Collective::AllGather { axis, .. }
            | Collective::ReduceScatter { axis, .. }
            | Collective::AllToAll { axis, .. }
            | Collective::Ppermute { axis, .. } => std::slice::from_ref(axis),
        }
    }

    /// The name of the op.
    pub const fn name(&self) -> &'static str {
        match self {
            Collective::AllReduce { .. } => "all_reduce",
            Collective::AllGather { .. } => "all_gather",
            Collective::ReduceScatter { .. } => "reduce_scatter",
            Collective::AllToAll { .. } => "all_to_all",
            Collective::Ppermute { .. } => "ppermute",
        }
    }

    /// Whether the result may take the operand's memory: each of its elements is made of the operands' elements at the
    /// same place.
    pub const fn in_place(&self) -> bool {
        match self {
            Collective::AllReduce { .. } => true,
            Collective::AllGather { .. } | Collective::ReduceScatter { .. } => false,
            Collective::AllToAll { .. } | Collective::Ppermute { .. } => false,
        }
    }

    /// Whether the result is larger than the operand, so that it is better made when it is wanted than when it can be.
    pub const fn grows(&self) -> bool {
        match self {
            Collective::AllGather { .. } => true,
            Collective::AllReduce { .. } | Collective::ReduceScatter { .. } => false,
            Collective::AllToAll { .. } | Collective::Ppermute { .. } => false,
        }
    }

    /// Type of the result for an operand of this type.
    ///
    /// # Errors
    /// If the op refuses the operand.
    pub fn result(&self, operand: &Type, mesh: &Mesh) -> dnx_ir::Result<Type> {
        let mut b = dnx_ir::Builder::on_mesh("collective", mesh.clone());
        let x = b.param("x", Type::new(operand.dtype, operand.dims.clone()));
        let y = b.emit(self.op(), &[x])?;
        Ok(b.func().ty(y).clone())
    }

    /// Bytes that a device of a group of `n` sends over its link in the ring algorithm, the least for large values: for
    /// a full value of `S` bytes `2 (n - 1) / n S` in an all-reduce, `(n - 1) / n S` in an all-gather, a reduce-scatter
    /// and an all-to-all, and `S` for who sends in a permutation. `bytes` are those of the operand.
    ///
    /// Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009.
    pub fn ring_bytes(&self, bytes: u64, n: u64) -> u64 {
        let others = n.saturating_sub(1);
        match self {
            Collective::AllReduce { .. } => 2 * others * bytes / n.max(1),
            // The full value is n operands.
            Collective::AllGather { .. } => others * bytes,
            Collective::ReduceScatter { .. } | Collective::AllToAll { .. } => others * bytes / n.max(1),
            Collective::Ppermute { pairs, .. } if pairs.iter().any(|(from, to)| from != to) => bytes,
            Collective::Ppermute { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_differ_along_their_axes_only() {
        let mesh = Mesh::new(&[("a", 2), ("b", 3)]);
        let name = |axes: &[&str]| axes.iter().map(|a| a.to_string()).collect::<Vec<_>>();
        assert_eq!(group(&mesh, &name(&["a"]), 4), [1, 4]);
        assert_eq!(group(&mesh, &name(&["b"]), 4), [3, 4, 5]);
        assert_eq!(group(&mesh, &name(&["b", "a"]), 4), [0, 1, 2, 3, 4, 5]);
        assert_eq!(group(&mesh, &[], 4), [4]);
    }

    #[test]
    fn ops_and_collectives_are_each_others_image() {
        let axis = || AxisName::from("a");
        let ops = [
            Op::AllReduce { kind: ReduceKind::Max, axes: vec![axis(), "b".into()] },
            Op::AllGather { axis: axis(), dim: 1 },
            Op::ReduceScatter { axis: axis(), dim: 0 },
            Op::AllToAll { axis: axis(), split: 0, concat: 1 },
            Op::Ppermute { axis: axis(), pairs: vec![(0, 1)] },
        ];
        for op in ops {
            let c = Collective::of(&op).unwrap();
            assert_eq!((c.op(), c.name()), (op.clone(), op.name()));
            assert!(op.is_collective() && c.axes()[0] == "a");
        }
        assert_eq!(Collective::of(&Op::AxisIndex { axis: axis() }), None);
    }

    #[test]
    fn ring_volumes() {
        let a = || "a".to_string();
        let all = Collective::AllReduce { kind: ReduceKind::Sum, axes: vec![a()] };
        assert_eq!((all.ring_bytes(1200, 4), all.ring_bytes(1200, 1)), (1800, 0));
        assert_eq!(Collective::AllGather { axis: a(), dim: 0 }.ring_bytes(300, 4), 900);
        assert_eq!(Collective::ReduceScatter { axis: a(), dim: 0 }.ring_bytes(1200, 4), 900);
        assert_eq!(Collective::Ppermute { axis: a(), pairs: vec![(0, 1)] }.ring_bytes(300, 4), 300);
        assert_eq!(Collective::Ppermute { axis: a(), pairs: vec![(1, 1)] }.ring_bytes(300, 4), 0);
    }
}
