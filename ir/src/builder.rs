//! Emitting nodes. Every pass and every model builds functions through [`Builder::emit`], which infers the
//! result types with the rules of [`crate::infer`]: an ill-typed function can't be made.

use crate::infer::infer;
use crate::{Array, BinaryOp, CmpOp, DType, DotDims, Func, Loc, Mesh, Node, NodeId, Op, Param, ReduceKind, Result};
use crate::{Error, Scalar, Type, UnaryOp, Value, ValueId};
use std::sync::Arc;

/// A function under construction.
#[derive(Clone, Debug)]
pub struct Builder {
    func: Func,
    loc: Loc,
}

impl Builder {
    /// An empty function over one device.
    pub fn new(name: &str) -> Builder {
        Builder::on_mesh(name, Mesh::single())
    }

    /// An empty function over a mesh.
    pub fn on_mesh(name: &str, mesh: Mesh) -> Builder {
        let func = Func { name: name.into(), mesh, params: vec![], values: vec![], nodes: vec![], results: vec![] };
        Builder { func, loc: "".into() }
    }

    /// The function so far (without results).
    pub fn func(&self) -> &Func {
        &self.func
    }

    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &Type {
        self.func.ty(v)
    }

    /// The dims of a value.
    pub fn dims(&self, v: ValueId) -> &[usize] {
        &self.func.ty(v).dims
    }

    /// The model path given to the nodes emitted from here on.
    pub fn set_loc(&mut self, loc: Loc) {
        self.loc = loc;
    }

    /// The model path now in force.
    pub fn loc(&self) -> &Loc {
        &self.loc
    }

    /// Adds a parameter. Names must be unique; a taken name gets a numbered suffix.
    pub fn param(&mut self, name: &str, ty: Type) -> ValueId {
        let mut unique: Arc<str> = name.into();
        let mut n = 1;
        while self.func.params.iter().any(|p| p.name == unique) {
            n += 1;
            unique = format!("{name}_{n}").into();
        }
        let op = Op::Param { index: self.func.params.len(), ty: ty.clone() };
        let value = self.push(op, &[], vec![ty])[0];
        self.func.params.push(Param { name: unique, value });
        value
    }

    /// Emits a node with one result.
    pub fn emit(&mut self, op: Op, operands: &[ValueId]) -> Result<ValueId> {
        let results = self.emit_multi(op, operands)?;
        match results[..] {
            [one] => Ok(one),
            _ => Err(Error::new(format!("has {} results where one is wanted", results.len()))),
        }
    }

    /// Emits a node with any number of results.
    pub fn emit_multi(&mut self, op: Op, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let operand_types: Vec<&Type> = operands.iter().map(|&v| self.func.ty(v)).collect();
        let types = infer(&op, &operand_types, &self.func.mesh).map_err(|e| e.at_op(op.name()).at_loc(&self.loc))?;
        Ok(self.push(op, operands, types))
    }

    fn push(&mut self, op: Op, operands: &[ValueId], types: Vec<Type>) -> Vec<ValueId> {
        let node = NodeId(self.func.nodes.len() as u32);
        let results: Vec<ValueId> = (0..types.len()).map(|i| ValueId((self.func.values.len() + i) as u32)).collect();
        self.func.values.extend(types.into_iter().enumerate().map(|(i, ty)| Value { ty, node, result: i as u32 }));
        let (operands, loc) = (operands.to_vec(), self.loc.clone());
        self.func.nodes.push(Node { op, operands, results: results.clone(), loc });
        results
    }

    /// The finished function.
    pub fn finish(mut self, results: &[ValueId]) -> Func {
        self.func.results = results.to_vec();
        self.func
    }

    /// Copies a node of `from` here, operands mapped by `map` (indexed by old value), and records its results
    /// in `map`. Its model path is kept. Parameters become parameters.
    pub fn copy_node(&mut self, from: &Func, node: &Node, map: &mut [Option<ValueId>]) -> Result<()> {
        let saved = std::mem::replace(&mut self.loc, node.loc.clone());
        let results = match &node.op {
            Op::Param { index, ty } => vec![self.param(&from.params[*index].name.clone(), ty.clone())],
            op => {
                let operands: Vec<ValueId> =
                    node.operands.iter().map(|v| map[v.index()].expect("operands are mapped before users")).collect();
                self.emit_multi(op.clone(), &operands)?
            }
        };
        self.loc = saved;
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
        }
        Ok(())
    }

    /// Copies the body of `callee` here with these arguments for its parameters; gives its results.
    /// Model paths of the callee are prefixed with the path in force.
    pub fn inline(&mut self, callee: &Func, args: &[ValueId]) -> Result<Vec<ValueId>> {
        if args.len() != callee.params.len() {
            crate::bail!("@{} takes {} arguments, not {}", callee.name, callee.params.len(), args.len());
        }
        let prefix = self.loc.clone();
        let mut map = vec![None; callee.values.len()];
        for node in &callee.nodes {
            if let Op::Param { index, .. } = node.op {
                map[node.results[0].index()] = Some(args[index]);
                continue;
            }
            self.loc = match (&*prefix, &*node.loc) {
                ("", _) => node.loc.clone(),
                (_, "") => prefix.clone(),
                (p, l) => format!("{p}.{l}").into(),
            };
            let operands: Vec<ValueId> = node.operands.iter().map(|v| map[v.index()].expect("topological")).collect();
            let results = self.emit_multi(node.op.clone(), &operands)?;
            for (old, new) in node.results.iter().zip(results) {
                map[old.index()] = Some(new);
            }
        }
        self.loc = prefix;
        Ok(callee.results.iter().map(|r| map[r.index()].expect("results are defined")).collect())
    }
}

/// One-line emitters, for rules and passes.
#[allow(missing_docs)]
impl Builder {
    pub fn constant(&mut self, array: Array) -> ValueId {
        let ty = array.ty().clone();
        self.push(Op::Const(array), &[], vec![ty])[0]
    }

    /// A scalar constant of this dtype.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> ValueId {
        self.constant(Array::splat([], Scalar::from_f64(dtype, value)))
    }

    /// A constant of the dtype, dims and sharding of `like`, every element `value`.
    pub fn full_like(&mut self, like: ValueId, value: f64) -> Result<ValueId> {
        let ty = self.ty(like).clone();
        self.full(&ty, value)
    }

    /// A broadcast scalar of this type.
    pub fn full(&mut self, ty: &Type, value: f64) -> Result<ValueId> {
        let s = self.scalar(ty.dtype, value);
        let b = if ty.dims.is_empty() { s } else { self.broadcast(s, &ty.dims, &[])? };
        if ty.sharding.is_replicated() {
            return Ok(b);
        }
        // The sum of zeros is zero, so only a nonzero constant must not be called unreduced.
        self.emit(Op::Reshard { sharding: ty.sharding.clone() }, &[b])
    }

    pub fn unary(&mut self, op: UnaryOp, x: ValueId) -> Result<ValueId> {
        self.emit(Op::Unary(op), &[x])
    }

    pub fn binary(&mut self, op: BinaryOp, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.emit(Op::Binary(op), &[x, y])
    }

    pub fn neg(&mut self, x: ValueId) -> Result<ValueId> {
        self.unary(UnaryOp::Neg, x)
    }

    pub fn add(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Add, x, y)
    }

    pub fn sub(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Sub, x, y)
    }

    pub fn mul(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Mul, x, y)
    }

    pub fn div(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Div, x, y)
    }

    /// `x * s` for a scalar `s` of the dtype of `x`.
    pub fn scale(&mut self, x: ValueId, s: f64) -> Result<ValueId> {
        let ty = Type::new(self.ty(x).dtype, self.ty(x).dims.clone());
        let s = self.full(&ty, s)?;
        self.mul(x, s)
    }

    pub fn compare(&mut self, op: CmpOp, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.emit(Op::Compare(op), &[x, y])
    }

    pub fn select(&mut self, c: ValueId, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.emit(Op::Select, &[c, x, y])
    }

    /// Conversion; nothing is emitted when `x` already has the dtype.
    pub fn convert(&mut self, x: ValueId, dtype: DType) -> Result<ValueId> {
        if self.ty(x).dtype == dtype { Ok(x) } else { self.emit(Op::Convert(dtype), &[x]) }
    }

    /// Reshape; nothing is emitted when `x` already has these dims.
    pub fn reshape(&mut self, x: ValueId, dims: &[usize]) -> Result<ValueId> {
        if self.dims(x) == dims { Ok(x) } else { self.emit(Op::Reshape { dims: dims.to_vec() }, &[x]) }
    }

    /// Transpose; nothing is emitted for the identity.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Result<ValueId> {
        if perm.len() == self.dims(x).len() && perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        self.emit(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    pub fn broadcast(&mut self, x: ValueId, dims: &[usize], map: &[usize]) -> Result<ValueId> {
        self.emit(Op::Broadcast { dims: dims.to_vec(), map: map.to_vec() }, &[x])
    }

    /// Sum over `dims`; nothing is emitted when there are none.
    pub fn reduce_sum(&mut self, x: ValueId, dims: &[usize]) -> Result<ValueId> {
        if dims.is_empty() {
            return Ok(x);
        }
        self.emit(Op::Reduce { kind: ReduceKind::Sum, dims: dims.to_vec() }, &[x])
    }

    pub fn dot(&mut self, x: ValueId, y: ValueId, dims: DotDims) -> Result<ValueId> {
        let out = self.ty(x).dtype;
        self.emit(Op::Dot { dims, out }, &[x, y])
    }
}
