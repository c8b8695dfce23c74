//! Programs in forms for other tools: Graphviz, JSON; and kernel listings.

use crate::exec::Executable;
use dnx_ir::{Func, NodeId, Op, ReduceKind};
use petgraph::dot::{Config, Dot};
use petgraph::graph::DiGraph;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The function as a Graphviz graph: one box per node, labelled with op and type, edges from operand to user.
pub fn func_dot(func: &Func) -> String {
    let mut graph = DiGraph::<String, ()>::new();
    let ids: Vec<_> = func.iter().map(|(id, _)| graph.add_node(node_label(func, id))).collect();
    for (id, node) in func.iter() {
        for v in &node.operands {
            graph.add_edge(ids[func.values[v.index()].node.index()], ids[id.index()], ());
        }
    }
    for (i, &r) in func.results.iter().enumerate() {
        let out = graph.add_node(format!("result {i}"));
        graph.add_edge(ids[func.values[r.index()].node.index()], out, ());
    }
    boxes(&graph)
}

/// The clusters of a function as a Graphviz graph: one box per cluster, with its name and ops, and an edge where a
/// value passes from one to another. `cluster` gives the cluster of a node; nodes without one (parameters,
/// constants, views read through) belong to nobody, and clusters that read through them are joined to what is behind.
pub fn cluster_dot(func: &Func, cluster: impl Fn(NodeId) -> Option<usize>, names: &[String]) -> String {
    let mut graph = DiGraph::<String, ()>::new();
    let mut labels: Vec<String> = names.to_vec();
    for (id, node) in func.iter() {
        if let Some(c) = cluster(id) {
            let _ = write!(labels[c], "\n{}", node.op.name());
        }
    }
    let ids: Vec<_> = labels.into_iter().map(|l| graph.add_node(l)).collect();
    // For every node the clusters (and parameters) its value comes from.
    let mut sources: Vec<BTreeSet<usize>> = Vec::with_capacity(func.nodes.len());
    let mut edges = BTreeSet::new();
    for (id, node) in func.iter() {
        let from: BTreeSet<usize> =
            node.operands.iter().flat_map(|v| sources[func.values[v.index()].node.index()].clone()).collect();
        sources.push(match cluster(id) {
            Some(c) => {
                edges.extend(from.into_iter().filter(|&f| f != c).map(|f| (f, c)));
                BTreeSet::from([c])
            }
            None => from,
        });
    }
    for (f, t) in edges {
        graph.add_edge(ids[f], ids[t], ());
    }
    boxes(&graph)
}

fn boxes(graph: &DiGraph<String, ()>) -> String {
    let node = |_, _: (_, &String)| "shape=box".to_string();
    format!("{:?}", Dot::with_attr_getters(graph, &[Config::EdgeNoLabel], &|_, _| String::new(), &node))
}

fn node_label(func: &Func, id: NodeId) -> String {
    let node = &func.nodes[id.index()];
    let mut label = match &node.op {
        Op::Param { index, .. } => func.params[*index].name.to_string(),
        op => op.name().to_string(),
    };
    for &r in &node.results {
        let _ = write!(label, "\n{}", func.ty(r));
    }
    if !node.loc.is_empty() {
        let _ = write!(label, "\n{}", node.loc);
    }
    label
}

/// The function as JSON: `{name, mesh, params, nodes, results}`; values are numbers, types are text. Callees are given
/// by name; constants by type, and by their elements where they have at most 32.
pub fn func_json(func: &Func) -> Value {
    let types = |vs: &[dnx_ir::ValueId]| -> Vec<String> { vs.iter().map(|&v| func.ty(v).to_string()).collect() };
    let values = |vs: &[dnx_ir::ValueId]| -> Vec<u32> { vs.iter().map(|v| v.0).collect() };
    let node = |node: &dnx_ir::Node| {
        json!({
            "op": node.op.name(), "attributes": attributes(&node.op), "operands": values(&node.operands),
            "results": values(&node.results), "types": types(&node.results), "loc": &*node.loc,
        })
    };
    let param =
        |p: &dnx_ir::Param| json!({ "name": &*p.name, "value": p.value.0, "type": func.ty(p.value).to_string() });
    json!({
        "name": &*func.name,
        "mesh": func.mesh.axes.iter().map(|(n, s)| json!({ "axis": &**n, "size": s })).collect::<Vec<_>>(),
        "params": func.params.iter().map(param).collect::<Vec<_>>(),
        "nodes": func.nodes.iter().map(node).collect::<Vec<_>>(),
        "results": values(&func.results),
    })
}

fn attributes(op: &Op) -> Value {
    match op {
        Op::Param { index, .. } => json!({ "index": index }),
        Op::Const(a) if a.elems() <= 32 => {
            json!({ "values": a.to_f64_vec().iter().map(|x| x.to_string()).collect::<Vec<_>>() })
        }
        Op::Const(_) => json!({}),
        Op::Iota { dim, .. } => json!({ "dim": dim }),
        Op::RandomBits { global, .. } => json!({ "global": global }),
        Op::AxisIndex { axis } => json!({ "axis": &**axis }),
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::DynamicUpdateSlice | Op::OptimizationBarrier => json!({}),
        Op::Convert(to) | Op::Bitcast(to) => json!({ "to": to.name() }),
        Op::Compare(c) => json!({ "direction": c.name() }),
        Op::Reshape { dims } => json!({ "dims": dims }),
        Op::Transpose { perm } => json!({ "perm": perm }),
        Op::Broadcast { dims, map } => json!({ "dims": dims, "map": map }),
        Op::Slice { start, limit, stride } => json!({ "start": start, "limit": limit, "stride": stride }),
        Op::Pad { low, high, interior } => json!({ "low": low, "high": high, "interior": interior }),
        Op::Concat { dim } | Op::Argmax { dim } | Op::Take { dim } | Op::ScatterAdd { dim } => json!({ "dim": dim }),
        Op::Reverse { dims } | Op::Reduce { dims, .. } => json!({ "dims": dims }),
        Op::DynamicSlice { sizes } => json!({ "sizes": sizes }),
        Op::Dot { dims, .. } => json!(dims),
        Op::Conv { dims, .. } => json!(dims),
        Op::Reshard { sharding } => json!(sharding),
        Op::AllReduce { kind, axes } => {
            let kind = if *kind == ReduceKind::Sum { "sum" } else { "max" };
            json!({ "kind": kind, "axes": axes.iter().map(|a| &**a).collect::<Vec<_>>() })
        }
        Op::AllGather { axis, dim } | Op::ReduceScatter { axis, dim } => json!({ "axis": &**axis, "dim": dim }),
        Op::AllToAll { axis, split, concat } => json!({ "axis": &**axis, "split": split, "concat": concat }),
        Op::Ppermute { axis, pairs } => json!({ "axis": &**axis, "pairs": pairs }),
        Op::Call { func, remat } => json!({ "func": &*func.name, "remat": remat }),
        Op::Composite { name, func, .. } => json!({ "name": &**name, "func": &*func.name }),
    }
}

/// The executable as JSON, from which it can be read again.
///
/// # Errors
/// None that a program can cause.
pub fn executable_json(exec: &Executable) -> serde_json::Result<String> {
    serde_json::to_string_pretty(exec)
}

/// Every unique kernel of an executable, in readable text.
pub fn kernels_text(exec: &Executable) -> String {
    exec.kernels.iter().map(|k| format!("// {} {}\n{}\n", k.name, k.hash, k.kernel)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Target, compile};
    use dnx_ir::{Graph, Type};

    fn program() -> Func {
        let g = Graph::new("f");
        let (x, w) = (g.param("x", Type::f32([4, 3])), g.param("w", Type::f32([3, 2])));
        let y = g.scope("layer", || x.matmul(w).exp());
        g.finish(&[y, x.sum(&[0])]).unwrap()
    }

    #[test]
    fn the_graph_has_a_box_per_node_and_an_edge_per_use() {
        let dot = func_dot(&program());
        assert!(dot.starts_with("digraph"), "{dot}");
        // x, w, dot, exp, sum and two results.
        assert_eq!(dot.matches("shape=box").count(), 7, "{dot}");
        assert_eq!(dot.matches("->").count(), 6, "{dot}");
        assert!(dot.contains("layer") && dot.contains("f32[4, 2]"), "{dot}");
    }

    #[test]
    fn clusters_are_joined_through_what_belongs_to_nobody() {
        let g = Graph::new("f");
        let x = g.param("x", Type::f32([4, 3]));
        let y = x.exp().transpose(&[1, 0]);
        let f = g.finish(&[y.log()]).unwrap();
        let of = |id: NodeId| match f.nodes[id.index()].op.name() {
            "exp" => Some(0),
            "log" => Some(1),
            _ => None,
        };
        let dot = cluster_dot(&f, of, &["first".into(), "second".into()]);
        assert_eq!((dot.matches("shape=box").count(), dot.matches("->").count()), (2, 1), "{dot}");
        assert!(dot.contains("first\\nexp") || dot.contains("first\\\\nexp"), "{dot}");
    }

    #[test]
    fn json_tells_ops_operands_types_and_attributes() {
        let j = func_json(&program());
        assert_eq!(j["params"][1]["name"], "w");
        assert_eq!(j["nodes"][2]["op"], "dot_general");
        assert_eq!(j["nodes"][2]["attributes"]["lhs_contract"][0], 1);
        assert_eq!(j["nodes"][2]["loc"], "layer");
        assert_eq!(j["results"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn an_executable_can_be_read_again_and_its_kernels_listed() {
        let exec = compile(&program(), &Options::new(Target::Cpu)).unwrap().exec;
        let back: Executable = serde_json::from_str(&executable_json(&exec).unwrap()).unwrap();
        assert_eq!(back, exec);
        assert!(kernels_text(&exec).contains("contract ["));
    }
}
