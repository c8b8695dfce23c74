//! Functions: parameters, nodes in topological order, results.

use crate::{Mesh, Op, Type};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A value of a function: an index into [`Func::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub u32);

/// A node of a function: an index into [`Func::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u32);

impl ValueId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The model path that made a node, as `dit.block3.attn.qkv`; empty when there is none.
pub type Loc = Arc<str>;

/// A value: its type and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    /// Type.
    pub ty: Type,
    /// The node that defines it.
    pub node: NodeId,
    /// Which of the node's results it is.
    pub result: u32,
}

/// A node: an op, its operands, the values it defines, and its model path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The op with its attributes.
    pub op: Op,
    /// Operands, defined by earlier nodes.
    pub operands: Vec<ValueId>,
    /// The values this node defines; one for every op but `call`, `composite` and `optimization_barrier`.
    pub results: Vec<ValueId>,
    /// Model path.
    pub loc: Loc,
}

/// A parameter: its name and value. The value's node has [`Op::Param`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Param {
    /// Name, unique in the function: for weights the published tensor name.
    pub name: Arc<str>,
    /// Value.
    pub value: ValueId,
}

/// A function. Made by [`crate::Builder`] alone, so that every type in it was inferred.
///
/// Callees of `call` and `composite` are held by the op itself, so a function is a whole program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Func {
    /// Name, printed as `@name`.
    pub name: Arc<str>,
    /// The mesh its types and collectives refer to.
    pub mesh: Mesh,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// All values.
    pub values: Vec<Value>,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
    /// Results in order.
    pub results: Vec<ValueId>,
}

impl Func {
    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &Type {
        &self.values[v.index()].ty
    }

    /// The node that defines a value.
    pub fn def(&self, v: ValueId) -> &Node {
        &self.nodes[self.values[v.index()].node.index()]
    }

    /// The types of the parameters.
    pub fn param_types(&self) -> Vec<&Type> {
        self.params.iter().map(|p| self.ty(p.value)).collect()
    }

    /// The types of the results.
    pub fn result_types(&self) -> Vec<&Type> {
        self.results.iter().map(|&r| self.ty(r)).collect()
    }

    /// The index of the parameter of this name.
    pub fn param_index(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|p| &*p.name == name)
    }

    /// Nodes with their ids, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    /// For every value the nodes that use it (once per use), in order. Results are not uses.
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut users = vec![Vec::new(); self.values.len()];
        for (id, node) in self.iter() {
            for v in &node.operands {
                users[v.index()].push(id);
            }
        }
        users
    }
}
