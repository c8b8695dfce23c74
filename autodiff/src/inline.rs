//! Inlining before differentiation: calls and composites that a derivative passes through.
//!
//! What no tangent reaches stays as it is, so a frozen network keeps its composites.

use crate::prune::is_param;
use dnx_ir::{Builder, DType, Func, Node, Op, Result, UnaryOp, ValueId};
use std::sync::Arc;

/// `f` with every `call` (not remat) and `composite` inlined that has a float operand depending on one of the
/// parameters in `active`.
pub(crate) fn inline_active(f: &Func, active: &[bool]) -> Result<Func> {
    inline_while(f, active, |node, _| match &node.op {
        Op::Call { func, remat: false } | Op::Composite { func, .. } => Some(func.clone()),
        _ => None,
    })
}

/// As [`inline_active`] for the calls that `inlined` picks, given which operands depend on the parameters.
pub(crate) fn inline_while(
    f: &Func,
    active: &[bool],
    inlined: impl Fn(&Node, &[bool]) -> Option<Arc<Func>>,
) -> Result<Func> {
    let mut f = f.clone();
    loop {
        let depends = dependents(&f, active);
        let pick = |node: &Node| {
            let operands: Vec<bool> = node.operands.iter().map(|v| depends[v.index()]).collect();
            if operands.contains(&true) { inlined(node, &operands) } else { None }
        };
        if !f.nodes.iter().any(|n| pick(n).is_some()) {
            return Ok(f);
        }
        let mut b = Builder::on_mesh(&f.name, f.mesh.clone());
        let mut map: Vec<Option<ValueId>> = vec![None; f.values.len()];
        for p in &f.params {
            b.copy_node(&f, f.def(p.value), &mut map)?;
        }
        for node in f.nodes.iter().filter(|n| !is_param(n)) {
            let Some(callee) = pick(node) else {
                b.copy_node(&f, node, &mut map)?;
                continue;
            };
            let args: Vec<ValueId> = node.operands.iter().map(|v| map[v.index()].expect("topological")).collect();
            b.set_loc(node.loc.clone());
            for (old, new) in node.results.iter().zip(b.inline(&callee, &args)?) {
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
