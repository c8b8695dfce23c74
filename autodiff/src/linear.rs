//! Linear parts: which values depend on tangents, and the split along that line.

use crate::composite::{expansion, is_linear};
use crate::forward::{Forward, Mode, active_params, add_tangents, fill_zeros};
use crate::inline::inline_while;
use crate::prune::{is_param, needed};
use dnx_ir::{Builder, Func, Op, Result, ValueId};
use std::collections::BTreeSet;

/// A function split into what does not depend on tangents and what does. See [`linearize`].
#[derive(Clone, Debug)]
pub struct Linearized {
    /// Parameters: those of the function. Results: those of the function, then the residuals: the primal
    /// values that `linear` reads.
    pub primal: Func,
    /// Parameters: the residuals, then one tangent per `wrt`. Results: one tangent per float result.
    pub linear: Func,
}

impl Linearized {
    /// The number of residuals.
    pub fn residuals(&self, f: &Func) -> usize {
        self.primal.results.len() - f.results.len()
    }

    /// The indices of the tangent parameters of `linear`, for [`crate::transpose`].
    pub fn tangents(&self, f: &Func) -> Vec<usize> {
        (self.residuals(f)..self.linear.params.len()).collect()
    }
}

/// Splits the jvp of `f` in the parameters `wrt` into the primal function, which also gives the residuals, and
/// the linear map from tangents to tangents at that point. Residuals are primal values: what the derivative
/// makes of them alone is computed in `linear`.
///
/// # Errors
/// As [`crate::jvp`].
pub fn linearize(f: &Func, wrt: &[usize]) -> Result<Linearized> {
    let active = active_params(f, wrt)?;
    let d = Forward::new(Mode::Apart).differentiate(f, &active, &vec![true; f.results.len()])?;
    let j = &d.func;
    let (primal_results, tangents) = j.results.split_at(f.results.len());
    let (primal_params, tangent_params) = j.params.split_at(f.params.len());

    // Nodes of the linear part, upward from its results to tangents and residuals.
    let primal = needed(j, primal_results);
    let kept = |v: ValueId| {
        let node = j.def(v);
        is_param(node) || (node.results.iter().any(|r| primal[r.index()]) && !is_constant(j, v))
    };
    let (mut residuals, mut inside, mut stack) = (BTreeSet::new(), BTreeSet::new(), tangents.to_vec());
    while let Some(v) = stack.pop() {
        if tangent_params.iter().any(|p| p.value == v) {
            continue;
        } else if kept(v) {
            residuals.insert(v);
        } else if inside.insert(j.values[v.index()].node) {
            stack.extend(&j.def(v).operands);
        }
    }

    let mut b = Builder::on_mesh(&format!("primal_{}", f.name), f.mesh.clone());
    let mut map = vec![None; j.values.len()];
    let wanted: Vec<ValueId> = primal_results.iter().chain(&residuals).copied().collect();
    let above = needed(j, &wanted);
    let body = j.nodes.iter().filter(|n| !is_param(n) && n.results.iter().any(|r| above[r.index()]));
    for node in primal_params.iter().map(|p| j.def(p.value)).chain(body) {
        b.copy_node(j, node, &mut map)?;
    }
    let results: Vec<ValueId> = wanted.iter().map(|v| map[v.index()].expect("copied")).collect();
    let primal = b.finish(&results);

    let mut b = Builder::on_mesh(&format!("linear_{}", f.name), f.mesh.clone());
    let mut map = vec![None; j.values.len()];
    for (i, &v) in residuals.iter().enumerate() {
        let name = primal_params.iter().find(|p| p.value == v).map(|p| p.name.to_string());
        map[v.index()] = Some(b.param(&name.unwrap_or(format!("residual{i}")), j.ty(v).clone()));
    }
    for (p, v) in tangent_params.iter().zip(add_tangents(&mut b, f, wrt)) {
        map[p.value.index()] = Some(v);
    }
    for id in inside {
        b.copy_node(j, &j.nodes[id.index()], &mut map)?;
    }
    let present: Vec<ValueId> = tangents.iter().map(|v| map[v.index()].expect("copied")).collect();
    let results = fill_zeros(&mut b, f, &d.out, &present)?;
    Ok(Linearized { primal, linear: b.finish(&results) })
}

/// Constants are repeated rather than kept.
fn is_constant(f: &Func, v: ValueId) -> bool {
    let node = f.def(v);
    match node.op {
        Op::Const(_) | Op::Iota { .. } => true,
        Op::Broadcast { .. } | Op::Reshape { .. } => is_constant(f, node.operands[0]),
        _ => false,
    }
}

/// For every value whether it depends on the parameters in `params`.
pub(crate) fn linear_values(f: &Func, params: &[bool]) -> Vec<bool> {
    let mut linear = vec![false; f.values.len()];
    for (p, &l) in f.params.iter().zip(params) {
        linear[p.value.index()] = l;
    }
    for node in f.nodes.iter().filter(|n| !is_param(n)) {
        let operands: Vec<bool> = node.operands.iter().map(|v| linear[v.index()]).collect();
        if !operands.contains(&true) {
            continue;
        }
        let results = match &node.op {
            Op::OptimizationBarrier => operands,
            Op::Call { func, .. } | Op::Composite { func, .. } => {
                let inner = linear_values(func, &operands);
                func.results.iter().map(|r| inner[r.index()]).collect()
            }
            _ => vec![true; node.results.len()],
        };
        for (r, l) in node.results.iter().zip(results) {
            linear[r.index()] = l;
        }
    }
    linear
}

/// `f` with every call inlined that is not, as a whole, a linear map to be transposed: calls that are not
/// recomputed, composites without a rule, and calls whose results do not all depend on the linear parameters.
pub(crate) fn inline_mixed(f: &Func, params: &[bool]) -> Result<Func> {
    inline_while(f, params, |node, operands| match &node.op {
        Op::Call { func, remat: false } => Ok(Some(func.clone())),
        Op::Composite { .. } if !is_linear(&node.op, operands) => expansion(&node.op).map(Some),
        Op::Call { func, remat: true } => {
            let inner = linear_values(func, operands);
            let pure = func.results.iter().all(|r| inner[r.index()]);
            Ok(if pure { None } else { Some(func.clone()) })
        }
        _ => Ok(None),
    })
}
