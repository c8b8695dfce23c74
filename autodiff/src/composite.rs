//! Composites with derivatives of their own: one table of rules, by form.
//!
//! | composite | jvp | transpose |
//! |---|---|---|
//! | `attention` | itself, and `attention_jvp` | |
//! | `attention_jvp`, in the tangents | itself | `attention_bwd`; the bias's by its decomposition |
//! | `attention_bwd`, in the cotangents | itself | `attention_jvp` |
//!
//! Everything else about them (second derivatives) goes through the decomposition, in blocks of queries under
//! `call{remat}` where there are many, so that a block's scores are all that is held. Other composites have no rules
//! and are inlined.

use dnx_ir::attention::{Attention, Form};
use dnx_ir::sharding::cotangent_type;
use dnx_ir::{Builder, Func, Op, Result, Type, ValueId};
use std::sync::Arc;

/// What stands for a composite where no rule applies.
pub(crate) fn expansion(op: &Op) -> Result<Arc<Func>> {
    let Op::Composite { func, .. } = op else { unreachable!("asked for composites alone") };
    match Attention::of(op) {
        Some(spec) => spec.in_blocks(&func.param_types(), &func.mesh).map(Arc::new),
        None => Ok(func.clone()),
    }
}

/// Whether tangents of these operands go through by a rule.
pub(crate) fn has_rule(op: &Op, active: &[bool]) -> bool {
    Attention::of(op).is_some_and(|spec| spec.form == Form::Forward) || is_linear(op, active)
}

/// Whether the composite is linear in these operands together and has a transpose.
pub(crate) fn is_linear(op: &Op, operands: &[bool]) -> bool {
    let Some(spec) = Attention::of(op) else { return false };
    let tangent = spec.bias_tangent(operands.len());
    operands.iter().enumerate().all(|(i, &l)| !l || spec.form.linear().contains(&i) || Some(i) == tangent)
}

/// The tangents of a composite's results, `None` where they are zero. `x` and `y` are its operands and results.
pub(crate) fn tangents(
    b: &mut Builder,
    op: &Op,
    x: &[ValueId],
    y: &[ValueId],
    dx: &[Option<ValueId>],
) -> Result<Vec<Option<ValueId>>> {
    let spec = Attention::of(op).expect("a composite with a rule");
    let given = |b: &mut Builder, i: usize| match dx[i] {
        Some(d) => Ok(d),
        None => {
            let ty = b.ty(x[i]).clone();
            b.full(&ty, 0.0)
        }
    };
    let mut operands = x.to_vec();
    // Per result the operands whose tangents it depends on: what is zero must not look as if it were not.
    let from: &[&[usize]] = match spec.form {
        Form::Forward => {
            operands.truncate(3);
            operands.extend(y);
            for i in 0..3 {
                operands.push(given(b, i)?);
            }
            if let Some(bias) = spec.bias(x.len()) {
                operands.push(x[bias]);
                operands.extend(dx[bias]);
            }
            &[&[0, 1, 2, 3], &[0, 1, 3]]
        }
        Form::Jvp => {
            for &i in spec.form.linear().iter().chain(&spec.bias_tangent(x.len())) {
                operands[i] = given(b, i)?;
            }
            &[&[5, 6, 7, 9], &[5, 6, 9]]
        }
        Form::Backward => {
            for &i in spec.form.linear() {
                operands[i] = given(b, i)?;
            }
            &[&[5, 6], &[5, 6], &[5]]
        }
    };
    let form = if spec.form == Form::Forward { Form::Jvp } else { spec.form };
    let results = spec.with(form).emit(b, &operands)?;
    let depends = |on: &[usize]| on.iter().any(|&i| dx.get(i).is_some_and(Option::is_some));
    Ok(results.into_iter().zip(from).map(|(r, on)| depends(on).then_some(r)).collect())
}

/// The cotangents of the `linear` operands, as `(operand, cotangent)`. `x` are the operands, of which the linear ones
/// are not read, `ty` their types, and `cts` the cotangents of the results; one at least is there.
pub(crate) fn cotangents(
    b: &mut Builder,
    op: &Op,
    x: &[ValueId],
    ty: &[Type],
    linear: &[bool],
    cts: &[Option<ValueId>],
) -> Result<Vec<(usize, ValueId)>> {
    let Op::Composite { func, .. } = op else { unreachable!("asked for composites alone") };
    let spec = Attention::of(op).expect("a composite with a transpose");
    let mut operands = x[..5].to_vec();
    for (ct, result) in cts.iter().zip(func.result_types()) {
        operands.push(match ct {
            Some(ct) => *ct,
            None => b.full(&cotangent_type(result), 0.0)?,
        });
    }
    operands.extend(spec.bias(x.len()).map(|i| x[i]));
    let mut out = Vec::new();
    let form = if spec.form == Form::Jvp { Form::Backward } else { Form::Jvp };
    if spec.form.linear().iter().any(|&i| linear[i]) {
        let results = spec.with(form).emit(b, &operands)?;
        out.extend(spec.form.linear().iter().copied().zip(results).filter(|(i, _)| linear[*i]));
    }
    if let Some(i) = spec.bias_tangent(x.len()).filter(|&i| linear[i]) {
        let types: Vec<Type> = operands.iter().map(|&v| b.ty(v).clone()).collect();
        let func = spec.bias_cotangent(&types.iter().collect::<Vec<_>>(), &b.func().mesh)?;
        debug_assert_eq!(func.result_types()[0].dims, ty[i].dims, "a cotangent has the dims of its tangent");
        out.push((i, b.inline(&func, &operands)?[0]));
    }
    Ok(out)
}
