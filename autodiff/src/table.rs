//! The derivative table as data, for documentation and tests.

use crate::rules::{Jvp, Linear, rule};
use dnx_ir::{Array, AxisName, BinaryOp, Builder, CmpOp, ConvDims, DType, DotDims, Op, ReduceKind, Scalar, Sharding};
use dnx_ir::{Type, UnaryOp};
use std::sync::Arc;

/// One op's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the op in text.
    pub op: &'static str,
    /// How its tangent is made: `linear`, `product`, `formula`, `zero`, `none`, `refused` or `structure`.
    pub jvp: &'static str,
    /// The operands in which it is linear, so that it has a transpose: `all`, `each`, a list, or `-`.
    pub transpose: String,
    /// What else to know.
    pub note: &'static str,
}

/// Every op's row, in the order of the op set.
pub fn table() -> Vec<Row> {
    samples().iter().map(row).collect()
}

fn row(op: &Op) -> Row {
    let rule = rule(op);
    let jvp = match rule.jvp {
        Jvp::Same => "linear",
        Jvp::Product => "product",
        Jvp::Terms(_) | Jvp::Joint(_) => "formula",
        Jvp::Zero => "zero",
        Jvp::Discrete => "none",
        Jvp::Refused => "refused",
        Jvp::Structure => "structure",
    };
    let transpose = match rule.transpose {
        None => "-".to_string(),
        Some((Linear::All, _)) => "all".to_string(),
        Some((Linear::Each, _)) => "each".to_string(),
        Some((Linear::Only(list), _)) => list.iter().map(|i| i.to_string()).collect::<Vec<_>>().join(", "),
    };
    Row { op: op.name(), jvp, transpose, note: rule.note }
}

/// One op of every name.
fn samples() -> Vec<Op> {
    let axis: AxisName = "axis".into();
    let kinds = [ReduceKind::Sum, ReduceKind::Max];
    let func = Arc::new(Builder::new("callee").finish(&[]));
    let window = ConvDims { stride: vec![], padding: vec![], lhs_dilation: vec![], rhs_dilation: vec![], groups: 1 };
    let mut ops = vec![
        Op::Param { index: 0, ty: Type::scalar(DType::F32) },
        Op::Const(Array::splat([], Scalar::zero(DType::F32))),
        Op::Iota { dtype: DType::F32, dims: vec![1], dim: 0 },
        Op::RandomBits { dims: vec![], global: None },
        Op::AxisIndex { axis: axis.clone() },
    ];
    ops.extend(UnaryOp::ALL.map(Op::Unary));
    ops.extend([Op::Convert(DType::F32), Op::Bitcast(DType::U32)]);
    ops.extend(BinaryOp::ALL.map(Op::Binary));
    ops.extend([
        Op::Compare(CmpOp::Eq),
        Op::Select,
        Op::Reshape { dims: vec![] },
        Op::Transpose { perm: vec![] },
        Op::Broadcast { dims: vec![], map: vec![] },
        Op::Slice { start: vec![], limit: vec![], stride: vec![] },
        Op::Pad { low: vec![], high: vec![], interior: vec![] },
        Op::Concat { dim: 0 },
        Op::Reverse { dims: vec![] },
        Op::DynamicSlice { sizes: vec![] },
        Op::DynamicUpdateSlice,
    ]);
    ops.extend(kinds.map(|kind| Op::Reduce { kind, dims: vec![] }));
    ops.extend([
        Op::Argmax { dim: 0 },
        Op::Dot { dims: DotDims::default(), out: DType::F32 },
        Op::Conv { dims: window, out: DType::F32 },
        Op::Take { dim: 0 },
        Op::ScatterAdd { dim: 0 },
        Op::Reshard { sharding: Sharding::default() },
    ]);
    ops.extend(kinds.map(|kind| Op::AllReduce { kind, axes: vec![axis.clone()] }));
    ops.extend([
        Op::AllGather { axis: axis.clone(), dim: 0 },
        Op::ReduceScatter { axis: axis.clone(), dim: 0 },
        Op::AllToAll { axis: axis.clone(), split: 0, concat: 0 },
        Op::Ppermute { axis, pairs: vec![] },
    ]);
    ops.extend([false, true].map(|remat| Op::Call { func: func.clone(), remat }));
    ops.extend([Op::OptimizationBarrier, Op::Composite { name: "composite".into(), attrs: vec![], func }]);
    ops
}
