//! The verifier: what is true of every function, whatever pass made it. It runs between all passes.
//!
//! 1. Mesh axes have plain names (letters, digits, `_`, no digit first), each once, and positive sizes.
//! 2. Parameter `i` is the value of a `param` node with index `i`; every `param` node is a parameter; parameter
//!    names are not empty and unique.
//! 3. Every value is defined by one node, as the values table says, and values are numbered in order of definition.
//! 4. Operands are defined by earlier nodes: the order is topological.
//! 5. The types of a node's results are those that [`infer`] gives for its op, attributes and operands.
//! 6. The function's results are defined.
//! 7. Shardings are well formed: normal, with axes of the mesh, each used once, that divide the dims they split.
//! 8. A program is global or per-device: one with collectives or `axis_index` has no sharded type and no `reshard`,
//!    its callees included.
//! 9. Callees verify, and have the caller's mesh (or none).
//! 10. Attributes of a composite are sorted by name, each once, and its floats are `f64`.
//! 11. Model paths have no control characters.
//! 12. Dims are below 2^31 and types have at most 2^48 elements.
//!
//! A failure names the invariant and shows the nodes around the culprit.

use crate::infer::{check_sharding, infer};
use crate::text::node_line;
use crate::{AttrValue, DType, Error, Func, Node, NodeId, Op, Result, Type};
use std::collections::{HashMap, HashSet};

/// Nodes shown before and after the culprit.
const AROUND: usize = 3;

/// Checks every invariant of a function and of its callees.
///
/// # Errors
/// The first broken invariant: its number, what is wrong, and the nodes around it.
pub fn verify(func: &Func) -> Result<()> {
    Verifier { done: HashMap::new() }.func(func).map(|_| ())
}

/// Whether types say how values lie over the mesh, or every device runs its own part; a program that does
/// neither can be called from both.
#[derive(Clone, Copy, Default)]
struct Kind {
    global: bool,
    per_device: bool,
}

struct Verifier {
    /// Callees that verified, by address.
    done: HashMap<*const Func, Kind>,
}

/// A broken invariant: its number, what is wrong, and the node it is seen at.
struct Broken {
    invariant: usize,
    message: String,
    node: Option<NodeId>,
}

fn broken<T>(invariant: usize, node: impl Into<Option<NodeId>>, message: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { invariant, message: message.into(), node: node.into() })
}

impl Verifier {
    fn func(&mut self, func: &Func) -> Result<Kind> {
        for (_, node) in func.iter() {
            if let Op::Call { func: callee, .. } | Op::Composite { func: callee, .. } = &node.op
                && !self.done.contains_key(&(&**callee as *const Func))
            {
                let kind = self.func(callee)?;
                self.done.insert(&**callee, kind);
            }
        }
        self.check(func).map_err(|b| report(func, b))
    }

    fn check(&self, func: &Func) -> Result<Kind, Broken> {
        check_mesh(func)?;
        check_params(func)?;
        check_values(func)?;
        let mut kind = Kind::default();
        let mut defined = 0;
        for (id, node) in func.iter() {
            for v in &node.operands {
                if v.index() >= defined {
                    return broken(4, id, format!("operand %{} is not defined before its use", v.0));
                }
            }
            defined += node.results.len();
            check_types(func, id, node)?;
            check_composite(id, node)?;
            if node.loc.chars().any(char::is_control) {
                return broken(11, id, format!("the model path {:?} has control characters", node.loc));
            }
            kind = self.check_kind(func, id, node, kind)?;
        }
        match func.results.iter().find(|r| r.index() >= defined) {
            Some(r) => broken(6, None, format!("result %{} is not defined", r.0)),
            None => Ok(kind),
        }
    }

    fn check_kind(&self, func: &Func, id: NodeId, node: &Node, mut kind: Kind) -> Result<Kind, Broken> {
        kind.per_device |= node.op.is_collective() || matches!(node.op, Op::AxisIndex { .. });
        kind.global |= matches!(node.op, Op::Reshard { .. });
        kind.global |= node.results.iter().any(|&r| !func.ty(r).sharding.is_replicated());
        if let Op::Call { func: callee, .. } | Op::Composite { func: callee, .. } = &node.op {
            if callee.mesh != func.mesh && !callee.mesh.axes.is_empty() {
                return broken(9, id, format!("@{} is over another mesh than @{}", callee.name, func.name));
            }
            let callee = self.done[&(&**callee as *const Func)];
            kind.per_device |= callee.per_device;
            kind.global |= callee.global;
        }
        if kind.global && kind.per_device {
            let message = "a per-device program (one with collectives) has no sharded types and no reshard";
            return broken(8, id, message);
        }
        Ok(kind)
    }
}

fn check_mesh(func: &Func) -> Result<(), Broken> {
    for (i, (axis, size)) in func.mesh.axes.iter().enumerate() {
        let plain = axis.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && axis.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !plain || *size == 0 {
            return broken(1, None, format!("mesh axis {axis:?} of size {size} has no plain name or no devices"));
        }
        if func.mesh.axes[..i].iter().any(|(a, _)| a == axis) {
            return broken(1, None, format!("the mesh has two axes {axis}"));
        }
    }
    Ok(())
}

fn check_params(func: &Func) -> Result<(), Broken> {
    let mut names = HashSet::new();
    for (i, param) in func.params.iter().enumerate() {
        let def = func.values.get(param.value.index()).map(|v| v.node);
        let node = def.and_then(|n| func.nodes.get(n.index()));
        if !node.is_some_and(|n| matches!(n.op, Op::Param { index, .. } if index == i) && n.results == [param.value]) {
            return broken(2, def, format!("parameter {i} ({:?}) is not the value of param {i}", param.name));
        }
        if param.name.is_empty() || !names.insert(&*param.name) {
            return broken(2, def, format!("parameter {i} has an empty name or one that is taken: {:?}", param.name));
        }
    }
    for (id, node) in func.iter() {
        if let Op::Param { index, .. } = node.op
            && func.params.get(index).is_none_or(|p| node.results != [p.value])
        {
            return broken(2, id, format!("param {index} is no parameter of the function"));
        }
    }
    Ok(())
}

fn check_values(func: &Func) -> Result<(), Broken> {
    let mut next = 0;
    for (id, node) in func.iter() {
        for (i, r) in node.results.iter().enumerate() {
            if r.index() != next {
                return broken(3, id, format!("value %{} is defined where %{next} is due", r.0));
            }
            match func.values.get(next) {
                Some(v) if v.node == id && v.result as usize == i => {}
                Some(v) => {
                    let table = format!("result {} of node {}", v.result, v.node.0);
                    return broken(3, id, format!("%{next} is result {i} of node {}, the table says {table}", id.0));
                }
                None => return broken(3, id, format!("%{next} is not in the table of values")),
            }
            next += 1;
        }
    }
    if next != func.values.len() {
        return broken(3, None, format!("{} values are in the table, {next} are defined", func.values.len()));
    }
    Ok(())
}

fn check_types(func: &Func, id: NodeId, node: &Node) -> Result<(), Broken> {
    let operands: Vec<&Type> = node.operands.iter().map(|&v| func.ty(v)).collect();
    let given: Vec<&Type> = node.results.iter().map(|&v| func.ty(v)).collect();
    for ty in &given {
        if !ty.is_addressable() {
            return broken(12, id, format!("{ty} is too large"));
        }
        if let Err(e) = check_sharding(&ty.sharding, &ty.dims, &func.mesh) {
            return broken(7, id, format!("{ty}: {}", e.message));
        }
    }
    let inferred = match infer(&node.op, &operands, &func.mesh) {
        Ok(types) => types,
        Err(e) => return broken(5, id, format!("{}: {}", node.op.name(), e.message)),
    };
    if inferred.iter().collect::<Vec<_>>() != given {
        let list = |types: &[&Type]| types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
        let (given, inferred) = (list(&given), list(&inferred.iter().collect::<Vec<_>>()));
        return broken(5, id, format!("{}: has type ({given}), its rule gives ({inferred})", node.op.name()));
    }
    Ok(())
}

fn check_composite(id: NodeId, node: &Node) -> Result<(), Broken> {
    let Op::Composite { attrs, .. } = &node.op else { return Ok(()) };
    if let Some(w) = attrs.windows(2).find(|w| w[0].0 >= w[1].0) {
        return broken(10, id, format!("attribute {:?} stands before {:?}", w[0].0, w[1].0));
    }
    for (key, value) in attrs {
        if let AttrValue::Float(s) = value
            && s.dtype() != DType::F64
        {
            return broken(10, id, format!("attribute {key:?} is a float of {}", s.dtype()));
        }
    }
    Ok(())
}

fn report(func: &Func, b: Broken) -> Error {
    let mut message = format!("@{} breaks invariant {}: {}", func.name, b.invariant, b.message);
    if let Some(at) = b.node.map(NodeId::index) {
        let first = at.saturating_sub(AROUND);
        for (i, node) in func.nodes.iter().enumerate().take(at + AROUND + 1).skip(first) {
            message += &format!("\n  {} {}", if i == at { ">" } else { " " }, node_line(func, node));
        }
    }
    Error::new(message)
}
