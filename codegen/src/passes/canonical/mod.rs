//! The canonical form: algebra, common subexpressions, constant folding, dead code, to a fixpoint.
//!
//! One round walks the function and re-emits every node through [`Rewriter::emit`], which first tries the laws
//! (tables [`algebra::LAWS`], [`views::LAWS`], [`reductions::LAWS`], [`folding::LAWS`]) and then returns the
//! existing node if an equal one was emitted before (hash consing). Operands are canonical when a node is emitted,
//! so a round nearly always suffices and the next finds nothing to do. Each law makes the program smaller in the
//! order of: work, number of nodes, distance of constants and views from the leaves; so rounds end.
//!
//! Laws preserve values. What they may change of floating-point results is exactly this:
//!
//! * the sign of a zero (`x + 0` is `x`);
//! * a product of constants is formed first where it is exact (`(x * 0.5) * 4` is `x * 2`), likewise a sum of
//!   constants of one sign;
//! * a sum of n equal terms is their product with n;
//! * integer powers are products.
//!
//! Never: `x * 0` on floats (NaN, infinity), `x - x`, reassociation of non-constants, division by anything but a
//! power of two turned into a product.

pub mod algebra;
pub mod folding;
pub mod reductions;
pub mod views;

#[cfg(test)]
mod tests;

use crate::{InStage, Result, Stage};
use dnx_ir::{Array, Builder, DType, Func, Node, NodeId, Op, Scalar, Type, ValueId, infer};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A rewriting law: what it says, and the code that applies it to a node about to be emitted.
pub struct Law {
    /// Name, for counts and tests.
    pub name: &'static str,
    /// The equation.
    pub says: &'static str,
    /// The equal value if the law applies.
    pub apply: Apply,
}

/// Gives a value equal to `op` on these operands, or `None` where the law does not apply.
pub type Apply = fn(&mut Rewriter, &Op, &[ValueId]) -> dnx_ir::Result<Option<ValueId>>;

/// All laws, in the order they are tried: views before folding, so that splats stay splats.
pub fn laws() -> impl Iterator<Item = &'static Law> {
    [views::LAWS, folding::LAWS, algebra::LAWS, reductions::LAWS].into_iter().flatten()
}

/// Rounds after which a program that still changes is taken as it is; two or three are the rule.
const ROUNDS: usize = 12;

/// Laws applied within one another before a node is emitted as it is.
const DEPTH: usize = 64;

/// The canonical form of a function.
///
/// # Errors
/// An ill-typed node.
pub fn canonical(func: &Func) -> Result<Func> {
    canonical_with(func, true)
}

/// [`canonical`], with or without `fold`: arithmetic on constants at compile time, in `f32`.
///
/// # Errors
/// An ill-typed node.
pub fn canonical_with(func: &Func, fold: bool) -> Result<Func> {
    explained(func, fold).map(|(f, _)| f)
}

/// [`canonical_with`] and, in order, the name of every law that was applied (`"merged"` for a node equal to an earlier
/// one).
///
/// # Errors
/// An ill-typed node.
pub fn explained(func: &Func, fold: bool) -> Result<(Func, Vec<&'static str>)> {
    let mut f = super::dce::eliminate(func).in_stage(Stage::Canonical)?;
    let mut applied = Vec::new();
    for _ in 0..ROUNDS {
        let (next, changes) = round(&f, fold).in_stage(Stage::Canonical)?;
        f = super::dce::eliminate(&next).in_stage(Stage::Canonical)?;
        if changes.is_empty() {
            break;
        }
        applied.extend(changes);
    }
    Ok((f, applied))
}

fn round(func: &Func, fold: bool) -> dnx_ir::Result<(Func, Vec<&'static str>)> {
    let mut rw = Rewriter::new(func, fold);
    let results = super::walk(func, &mut rw, |rw, i| super::copy_param(&mut rw.b, func, i), Rewriter::node)?;
    Ok((rw.b.finish(&results), rw.changes))
}

/// A builder that knows the laws and never emits a node twice.
pub struct Rewriter {
    /// The function under construction.
    pub b: Builder,
    /// Nodes by hash of op and operands.
    seen: HashMap<u64, Vec<NodeId>>,
    fold: bool,
    sharded: bool,
    depth: usize,
    changes: Vec<&'static str>,
}

impl Rewriter {
    fn new(func: &Func, fold: bool) -> Rewriter {
        Rewriter {
            b: Builder::on_mesh(&func.name, func.mesh.clone()),
            seen: HashMap::with_capacity(func.nodes.len()),
            fold,
            sharded: !func.mesh.axes.is_empty(),
            depth: 0,
            changes: Vec::new(),
        }
    }

    /// Whether arithmetic on constants is done at compile time.
    pub fn folds(&self) -> bool {
        self.fold
    }

    /// Re-emits a node of the function being rewritten.
    fn node(&mut self, node: &Node, operands: &[ValueId]) -> dnx_ir::Result<Vec<ValueId>> {
        self.b.set_loc(node.loc.clone());
        if node.op.is_multi_result() {
            // A barrier is not equal to its operands nor to another barrier: that is its purpose. Calls and
            // composites that are still here are opaque.
            return self.b.emit_multi(node.op.clone(), operands);
        }
        let emitted = self.b.func().nodes.len();
        let changes = self.changes.len();
        let value = self.emit(node.op.clone(), operands)?;
        if self.changes.len() == changes && self.b.func().nodes.len() == emitted {
            self.changes.push("merged");
        }
        Ok(vec![value])
    }

    /// The value of a one-result op on these operands, by the laws, merged with an equal earlier node if there is one.
    ///
    /// # Errors
    /// An ill-typed op.
    pub fn emit(&mut self, op: Op, operands: &[ValueId]) -> dnx_ir::Result<ValueId> {
        if self.depth < DEPTH {
            self.depth += 1;
            for law in laws() {
                let value = match (law.apply)(self, &op, operands) {
                    Ok(Some(value)) => value,
                    Ok(None) => continue,
                    // What a law emits on the way may have no placement, although the op it replaces has.
                    Err(_) if self.sharded => continue,
                    Err(e) => return Err(e),
                };
                if self.keeps_type(&op, operands, value, law)? {
                    self.depth -= 1;
                    self.changes.push(law.name);
                    return Ok(value);
                }
            }
            self.depth -= 1;
        } else {
            debug_assert!(false, "laws do not come to an end at {}", op.name());
        }
        self.cons(op, operands)
    }

    /// Over a mesh a law may be right about the value and wrong about its placement; then it does not apply.
    fn keeps_type(&self, op: &Op, operands: &[ValueId], value: ValueId, law: &Law) -> dnx_ir::Result<bool> {
        if !self.sharded && !cfg!(debug_assertions) {
            return Ok(true);
        }
        let wanted = self.infer(op, operands)?;
        let given = self.b.ty(value);
        let same_shape = wanted.dtype == given.dtype && wanted.dims == given.dims;
        assert!(same_shape, "law {} turned {} into {given}", law.name, wanted);
        Ok(wanted == *given)
    }

    /// The type that a one-result op has on these operands.
    ///
    /// # Errors
    /// An ill-typed op.
    pub fn infer(&self, op: &Op, operands: &[ValueId]) -> dnx_ir::Result<Type> {
        let types: Vec<&Type> = operands.iter().map(|&v| self.b.ty(v)).collect();
        let found = infer::infer(op, &types, &self.b.func().mesh);
        found.map(|mut t| t.swap_remove(0)).map_err(|e| e.at_op(op.name()).at_loc(self.b.loc()))
    }

    fn cons(&mut self, op: Op, operands: &[ValueId]) -> dnx_ir::Result<ValueId> {
        let hash = hash_node(&op, operands);
        for id in self.seen.get(&hash).into_iter().flatten() {
            let node = &self.b.func().nodes[id.index()];
            if node.operands == operands && node.op == op {
                return Ok(node.results[0]);
            }
        }
        let value = self.b.emit(op, operands)?;
        self.seen.entry(hash).or_default().push(self.b.func().values[value.index()].node);
        Ok(value)
    }

    /// The op that defines a value.
    pub fn op(&self, v: ValueId) -> &Op {
        &self.b.func().def(v).op
    }

    /// The operands of the node that defines a value.
    pub fn operands(&self, v: ValueId) -> &[ValueId] {
        &self.b.func().def(v).operands
    }

    /// The dims of a value.
    pub fn dims(&self, v: ValueId) -> &[usize] {
        self.b.dims(v)
    }

    /// The dtype of a value.
    pub fn dtype(&self, v: ValueId) -> DType {
        self.b.ty(v).dtype
    }

    /// The array, if the value is a constant.
    pub fn array(&self, v: ValueId) -> Option<&Array> {
        match self.op(v) {
            Op::Const(a) => Some(a),
            _ => None,
        }
    }

    /// The scalar that every element equals, if the value is a scalar constant or a broadcast one.
    pub fn splat(&self, v: ValueId) -> Option<Scalar> {
        match self.op(v) {
            Op::Const(a) if a.dims().is_empty() => Some(a.get(0)),
            Op::Broadcast { .. } => match self.op(self.operands(v)[0]) {
                Op::Const(a) if a.dims().is_empty() => Some(a.get(0)),
                _ => None,
            },
            _ => None,
        }
    }

    /// A scalar constant broadcast to `dims`.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn full(&mut self, dims: &[usize], value: Scalar) -> dnx_ir::Result<ValueId> {
        let s = self.cons(Op::Const(Array::splat([], value)), &[])?;
        if dims.is_empty() { Ok(s) } else { self.cons(Op::Broadcast { dims: dims.to_vec(), map: vec![] }, &[s]) }
    }

    /// [`Rewriter::full`] of the dtype and dims of `like`.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn full_like(&mut self, like: ValueId, value: f64) -> dnx_ir::Result<ValueId> {
        let (dims, dtype) = (self.dims(like).to_vec(), self.dtype(like));
        self.full(&dims, Scalar::from_f64(dtype, value))
    }
}

/// Large constants are told apart by type and a sample of their bytes; equality looks at all of them.
fn hash_node(op: &Op, operands: &[ValueId]) -> u64 {
    let mut h = DefaultHasher::new();
    match op {
        Op::Const(a) => {
            a.ty().hash(&mut h);
            let bytes = a.bytes();
            for chunk in bytes.chunks(64).step_by((bytes.len() / 1024).max(1)) {
                chunk.hash(&mut h);
            }
        }
        other => other.hash(&mut h),
    }
    operands.hash(&mut h);
    h.finish()
}
