//! Attention kernels: the composites of [`dnx_ir::attention`], operands read through views, results stored where their
//! own views want them.

use super::coords::Coords;
use super::eval::Eval;
use super::{Lowering, refuse};
use crate::kernel::{Attention, Dim, Given, Idx, Inst, InstId, Kernel, Part, Role};
use dnx_ir::attention::{Attention as Spec, Form};
use dnx_ir::{DType, Func, NodeId, Op, Scalar, ValueId};

/// The iteration dims: samples, heads, queries, keys, the head's dim.
pub(super) fn dims(func: &Func, node: NodeId) -> Vec<Dim> {
    let n = &func.nodes[node.index()];
    let (q, k) = (&func.ty(n.operands[0]).dims, &func.ty(n.operands[1]).dims);
    let sizes = [q[0], q[2], q[1], k[1], q[3]];
    let roles = [Role::Batch, Role::Batch, Role::M, Role::N, Role::Reduce];
    sizes.into_iter().zip(roles).map(|(size, role)| Dim { size, role }).collect()
}

fn spec(func: &Func, node: NodeId) -> Lowering<Spec> {
    Spec::of(&func.nodes[node.index()].op).map_or_else(|| refuse("a composite that no kernel claims"), Ok)
}

fn parts(form: Form) -> &'static [Part] {
    match form {
        Form::Forward | Form::Jvp => &[Part::O, Part::Lse],
        Form::Backward => &[Part::Q, Part::K, Part::V],
    }
}

/// Coordinates of the results; `at` gives each dim of [`dims`].
pub(super) fn places(func: &Func, node: NodeId, at: &[Idx]) -> Lowering<Vec<(ValueId, Coords)>> {
    let results = &func.nodes[node.index()].results;
    let place = |part: &Part| match part {
        Part::Lse => [0, 1, 2].map(|d| at[d].clone()).to_vec(),
        Part::O | Part::Q => [0, 2, 1, 4].map(|d| at[d].clone()).to_vec(),
        Part::K | Part::V => [0, 3, 1, 4].map(|d| at[d].clone()).to_vec(),
    };
    Ok(results.iter().copied().zip(parts(spec(func, node)?.form).iter().map(place)).collect())
}

/// Whether a kernel can read the operand where it lies: through views that add nothing, from memory or as a number.
pub(crate) fn reads(func: &Func, mut v: ValueId) -> bool {
    loop {
        let node = func.def(v);
        match &node.op {
            Op::Pad { .. } | Op::Iota { .. } => return false,
            op if op.is_view() => v = node.operands[0],
            _ => return true,
        }
    }
}

/// What the kind can't do.
pub(super) fn check(kernel: &Kernel) -> Lowering<()> {
    let Some((body, _)) = kernel.attention() else { return refuse("not one attention") };
    let through = |mut id: InstId| {
        while let Inst::Convert(_, x) = kernel.inst(id) {
            id = *x;
        }
        kernel.inst(id)
    };
    let plain = |id: &InstId| match through(*id) {
        Inst::Load { index, dynamic, .. } => index.checks.is_empty() && dynamic.is_empty(),
        inst => matches!(inst, Inst::Const(_)),
    };
    if !body.operands().iter().all(plain) {
        return refuse("an operand of attention is computed");
    }
    if !kernel.stores.iter().all(|s| matches!(through(s.value), Inst::Attention(_))) {
        return refuse("attention has no epilogue");
    }
    Ok(())
}

impl Eval<'_, '_> {
    /// A result of attention at its own coordinates.
    pub(super) fn attention(&mut self, v: ValueId) -> Lowering<InstId> {
        let func = self.cx.func;
        let id = func.values[v.index()].node;
        let (node, spec) = (&func.nodes[id.index()], spec(func, id)?);
        let at = self.anchor_at.clone();
        let mut operands = vec![];
        for (i, &x) in node.operands.iter().enumerate() {
            let pick = |dims: &[usize]| -> Coords { dims.iter().map(|&d| at[d].clone()).collect() };
            let bias = [spec.bias(node.operands.len()), spec.bias_tangent(node.operands.len())].contains(&Some(i));
            let place = match (spec.form, i) {
                _ if bias => {
                    let own = pick(&[0, 1, 2, 3]);
                    let one = |(c, &n): (Idx, &usize)| if n == 1 { Idx::default() } else { c };
                    own.into_iter().zip(&func.ty(x).dims).map(one).collect()
                }
                (_, 1 | 2) | (Form::Jvp, 6 | 7) => pick(&[0, 3, 1, 4]),
                (_, 4) | (Form::Backward, 6) => pick(&[0, 1, 2]),
                _ => pick(&[0, 2, 1, 4]),
            };
            let value = self.value(x, &place, &[])?;
            operands.push(self.convert(value, DType::F32));
        }
        let given = match spec.form {
            Form::Forward => Given::Nothing,
            Form::Jvp => Given::Tangents {
                o: operands[3],
                lse: operands[4],
                of: [operands[5], operands[6], operands[7]],
                bias: spec.bias_tangent(operands.len()).map(|i| operands[i]),
            },
            Form::Backward => Given::Cotangents { o: operands[3], lse: operands[4], of: [operands[5], operands[6]] },
        };
        let result = node.results.iter().position(|&r| r == v).expect("a result of its node");
        let inst = Inst::Attention(Box::new(Attention {
            part: parts(spec.form)[result],
            scale: Scalar::from_f64(DType::F32, spec.scale),
            causal: spec.causal,
            qkv: [operands[0], operands[1], operands[2]],
            bias: spec.bias(operands.len()).map(|i| operands[i]),
            given,
        }));
        let value = self.push(inst, DType::F32);
        Ok(self.convert(value, func.ty(v).dtype))
    }
}
