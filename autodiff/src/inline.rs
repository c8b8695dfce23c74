//! Inlining before differentiation: calls and composites that a derivative passes through.
//!
//! What no tangent reaches stays as it is, so a frozen network keeps its composites; and what reaches no result but
//! through `stop_gradient`. Composites with rules of their own ([`crate::composite`]) stay where these apply.

use crate::composite::{expansion, has_rule};
use crate::prune::is_param;
use dnx_ir::{Builder, DType, Func, Node, Op, Result, UnaryOp, ValueId};
use std::sync::Arc;

/// `f` with every `call` (not remat) and `composite` inlined that has a float operand depending on one of the
/// parameters in `active`.
pub(crate) fn inline_active(f: &Func, active: &[bool]) -> Result<Func> {
    inline_while(f, active, |node, operands| match &node.op {
        Op::Call { func, remat: false } => Ok(Some(func.clone())),
        Op::Composite { .. } if !has_rule(&node.op, operands) => expansion(&node.op).map(Some),
        _ => Ok(None),
    })
}

/// As [`inline_active`] for the calls that `inlined` picks, given which operands depend on the parameters.
pub(crate) fn inline_while(
    f: &Func,
    active: &[bool],
    inlined: impl Fn(&Node, &[bool]) -> Result<Option<Arc<Func>>>,
) -> Result<Func> {
    let mut f = f.clone();
    loop {
        let (depends, matters) = (dependents(&f, active), matter(&f));
        let mut picked = vec![None; f.nodes.len()];
        for (node, pick) in f.nodes.iter().zip(&mut picked) {
            let operands: Vec<bool> = node.operands.iter().map(|v| depends[v.index()]).collect();
            if operands.contains(&true) && node.results.iter().any(|r| matters[r.index()]) {
                *pick = inlined(node, &operands)?;
            }
        }
        if picked.iter().all(Option::is_none) {
            return Ok(f);
        }
        let mut b = Builder::on_mesh(&f.name, f.mesh.clone());
        let mut map: Vec<Option<ValueId>> = vec![None; f.values.len()];
        for p in &f.params {
            b.copy_node(&f, f.def(p.value), &mut map)?;
        }
        for (node, callee) in f.nodes.iter().zip(&picked).filter(|(n, _)| !is_param(n)) {
            let Some(callee) = callee else {
                b.copy_node(&f, node, &mut map)?;
                continue;
            };
            let args: Vec<ValueId> = node.operands.iter().map(|v| map[v.index()].expect("topological")).collect();
            b.set_loc(node.loc.clone());
            for (old, new) in node.results.iter().zip(b.inline(callee, &args)?) {
                map[old.index()] = Some(new);
            }
        }
        let results: Vec<ValueId> = f.results.iter().map(|r| map[r.index()].expect("defined")).collect();
        f = b.finish(&results);
    }
}

/// For every value whether it may have a tangent when the parameters in `active` have one.
fn dependents(f: &Func, active: &[bool]) -> Vec<bool> {
    let mut depends = vec![false; f.values.len()];
    for (p, &a) in f.params.iter().zip(active) {
        depends[p.value.index()] = a;
    }
    for node in &f.nodes {
        let stops = node.op == Op::Unary(UnaryOp::StopGradient) || is_param(node);
        if !stops && node.operands.iter().any(|v| depends[v.index()]) {
            for r in &node.results {
                depends[r.index()] = f.ty(*r).dtype != DType::Bool;
            }
        }
    }
    depends
}

/// For every value whether a result's derivative may depend on its own.
fn matter(f: &Func) -> Vec<bool> {
    let mut matters = vec![false; f.values.len()];
    f.results.iter().for_each(|r| matters[r.index()] = true);
    for node in f.nodes.iter().rev() {
        let stops = node.op == Op::Unary(UnaryOp::StopGradient);
        if !stops && node.results.iter().any(|r| matters[r.index()]) {
            node.operands.iter().for_each(|v| matters[v.index()] = true);
        }
    }
    matters
}
