//! Dropping nodes that no result needs.

use dnx_ir::{Builder, Func, Result, ValueId};

/// For every value whether one of `roots` needs it.
pub(crate) fn needed(f: &Func, roots: &[ValueId]) -> Vec<bool> {
    let mut needed = vec![false; f.values.len()];
    for r in roots {
        needed[r.index()] = true;
    }
    for node in f.nodes.iter().rev() {
        if node.results.iter().any(|r| needed[r.index()]) {
            for v in &node.operands {
                needed[v.index()] = true;
            }
        }
    }
    needed
}

/// `f` without the nodes that no result needs. All parameters stay.
pub(crate) fn prune(f: &Func) -> Result<Func> {
    let needed = needed(f, &f.results);
    let mut b = Builder::on_mesh(&f.name, f.mesh.clone());
    let mut map = vec![None; f.values.len()];
    let params = f.params.iter().map(|p| f.def(p.value));
    let body = f.nodes.iter().filter(|n| !is_param(n) && n.results.iter().any(|r| needed[r.index()]));
    for node in params.chain(body) {
        b.copy_node(f, node, &mut map)?;
    }
    let results: Vec<ValueId> = f.results.iter().map(|r| map[r.index()].expect("results are needed")).collect();
    Ok(b.finish(&results))
}

/// Whether the node is a parameter.
pub(crate) fn is_param(node: &dnx_ir::Node) -> bool {
    matches!(node.op, dnx_ir::Op::Param { .. })
}
