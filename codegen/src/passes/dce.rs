//! Dead code: nodes from which no result can be reached. Parameters stay, used or not: they are the signature.

use super::copy_param;
use crate::{InStage, Result, Stage};
use dnx_ir::{Builder, Func, Op, ValueId};

/// For every node whether a result depends on it.
pub fn live(func: &Func) -> Vec<bool> {
    let mut live = vec![false; func.nodes.len()];
    for &r in &func.results {
        live[func.values[r.index()].node.index()] = true;
    }
    for (id, node) in func.iter().rev() {
        if live[id.index()] {
            for v in &node.operands {
                live[func.values[v.index()].node.index()] = true;
            }
        }
    }
    live
}

/// The function without dead nodes, parameters first.
///
/// # Errors
/// An ill-typed node.
pub fn dce(func: &Func) -> Result<Func> {
    eliminate(func).in_stage(Stage::Canonical)
}

pub(super) fn eliminate(func: &Func) -> dnx_ir::Result<Func> {
    let live = live(func);
    let mut b = Builder::on_mesh(&func.name, func.mesh.clone());
    let mut map: Vec<Option<ValueId>> = vec![None; func.values.len()];
    for (i, p) in func.params.iter().enumerate() {
        map[p.value.index()] = Some(copy_param(&mut b, func, i));
    }
    for (id, node) in func.iter() {
        if live[id.index()] && !matches!(node.op, Op::Param { .. }) {
            b.copy_node(func, node, &mut map)?;
        }
    }
    let results: Vec<ValueId> = func.results.iter().map(|r| map[r.index()].expect("results are live")).collect();
    Ok(b.finish(&results))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::{Graph, Type};

    #[test]
    fn dead_nodes_go_and_unused_parameters_stay() {
        let g = Graph::new("f");
        let (x, _unused) = (g.param("x", Type::f32([4])), g.param("unused", Type::f32([9])));
        let _dead = (x * x).exp();
        let f = dce(&g.finish(&[x + x]).unwrap()).unwrap();
        assert_eq!(f.params.len(), 2);
        assert_eq!(f.nodes.len(), 3);
        assert_eq!(f.nodes[2].op.name(), "add");
    }
}
