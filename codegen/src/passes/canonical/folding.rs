//! Constant folding: an op on small constants is evaluated by the reference interpreter, in `f32`. Splats need no law
//! of their own: `elementwise_broadcast` brings their arithmetic down to scalars, which are folded here.
//!
//! Only ops that don't make arrays larger than [`LIMIT`] are folded, so that programs don't grow by tables.

use super::{Law, Rewriter};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Builder, Op, Result, UnaryOp, ValueId};

/// The laws of this file.
pub const LAWS: &[Law] = &[Law { name: "fold", says: "an op on small constants is a constant", apply: fold }];

/// Elements of the largest array that is folded or results from folding.
pub const LIMIT: usize = 4096;

fn fold(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if !rw.folds() || !folds(op) || v.iter().all(|&x| rw.array(x).is_none()) {
        return Ok(None);
    }
    let mut args: Vec<Array> = Vec::with_capacity(v.len());
    for &x in v {
        args.push(match (rw.array(x), rw.splat(x)) {
            (Some(a), _) if a.elems() <= LIMIT => a.clone(),
            (None, Some(s)) if rw.b.ty(x).elems() <= LIMIT => Array::splat(rw.dims(x).to_vec(), s),
            _ => return Ok(None),
        });
    }
    if rw.infer(op, v)?.elems() > LIMIT {
        return Ok(None);
    }
    // What the interpreter refuses is no constant; the op stays and fails, if it does, where it stands.
    match evaluate(op, args) {
        Ok(a) => rw.emit(Op::Const(a), &[]).map(Some),
        Err(_) => Ok(None),
    }
}

fn evaluate(op: &Op, args: Vec<Array>) -> Result<Array> {
    let mut b = Builder::new("fold");
    let values: Vec<ValueId> = args.into_iter().map(|a| b.constant(a)).collect();
    let result = b.emit(op.clone(), &values)?;
    Ok(eval(&b.finish(&[result]), &[], Precision::F32)?.swap_remove(0))
}

/// Ops worth folding. Not: leaves, what repeats elements, what is heavy, and what is not a function of its operands.
fn folds(op: &Op) -> bool {
    match op {
        Op::Unary(UnaryOp::StopGradient) => false,
        Op::Unary(_) | Op::Convert(_) | Op::Bitcast(_) | Op::Binary(_) | Op::Compare(_) | Op::Select => true,
        Op::Transpose { .. } | Op::Slice { .. } | Op::Pad { .. } | Op::Concat { .. } | Op::Reverse { .. } => true,
        Op::Reduce { .. } | Op::Argmax { .. } | Op::Take { .. } => true,
        Op::Reshape { .. } | Op::Broadcast { .. } => false, // laws of views
        Op::Param { .. } | Op::Const(_) | Op::Iota { .. } | Op::RandomBits { .. } | Op::AxisIndex { .. } => false,
        Op::DynamicSlice { .. } | Op::DynamicUpdateSlice | Op::ScatterAdd { .. } => false,
        Op::Dot { .. } | Op::Conv { .. } => false,
        Op::Reshard { .. } | Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => false,
        Op::AllToAll { .. } | Op::Ppermute { .. } => false,
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier => false,
    }
}
