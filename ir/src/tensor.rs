//! Building a graph that reads like the formula: [`Tensor`] is a copyable handle with operators and
//! broadcasting, [`Graph`] the function it grows in.
//!
//! ```
//! use dnx_ir::{Graph, Type};
//! let g = Graph::new("loss");
//! let (x, y) = (g.param("x", Type::f32([8, 2])), g.param("y", Type::f32([8, 2])));
//! let loss = (x - y).square().mean_all();
//! let func = g.finish(&[loss]).unwrap();
//! assert_eq!(func.result_types()[0].to_string(), "f32[]");
//! ```
//!
//! Methods return handles, not results, so that formulas stay formulas. The first ill-typed op is kept with
//! its model path and reported by [`Graph::finish`]; what is built after it is ignored.

use crate::{Array, AttrValue, BinaryOp, Builder, CmpOp, DType, DotDims, Error, Func, Mesh, Op, ReduceKind, Result};
use crate::{Scalar, Sharding, Type, UnaryOp, ValueId};
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::sync::Arc;

/// A function under construction, shared by the handles into it.
pub struct Graph {
    builder: RefCell<Builder>,
    error: RefCell<Option<Error>>,
}

/// A value of a [`Graph`].
#[derive(Clone, Copy)]
pub struct Tensor<'g> {
    graph: &'g Graph,
    id: ValueId,
}

impl Graph {
    /// An empty function over one device.
    pub fn new(name: &str) -> Graph {
        Graph::on_mesh(name, Mesh::single())
    }

    /// An empty function over a mesh.
    pub fn on_mesh(name: &str, mesh: Mesh) -> Graph {
        Graph { builder: RefCell::new(Builder::on_mesh(name, mesh)), error: RefCell::new(None) }
    }

    /// Adds a parameter.
    pub fn param(&self, name: &str, ty: Type) -> Tensor<'_> {
        let id = self.builder.borrow_mut().param(name, ty);
        Tensor { graph: self, id }
    }

    /// A constant.
    pub fn constant(&self, array: Array) -> Tensor<'_> {
        let id = self.builder.borrow_mut().constant(array);
        Tensor { graph: self, id }
    }

    /// A scalar constant.
    pub fn scalar(&self, dtype: DType, value: f64) -> Tensor<'_> {
        self.constant(Array::splat([], Scalar::from_f64(dtype, value)))
    }

    /// An array of one value.
    pub fn full(&self, dtype: DType, dims: &[usize], value: f64) -> Tensor<'_> {
        self.scalar(dtype, value).broadcast_to(dims)
    }

    /// Counts along `dim`.
    pub fn iota(&self, dtype: DType, dims: &[usize], dim: usize) -> Tensor<'_> {
        self.emit(Op::Iota { dtype, dims: dims.to_vec(), dim }, &[])
    }

    /// Uniform bits `u32[dims]` under the key `u32[2]`; see [`Op::RandomBits`].
    pub fn random_bits<'g>(&'g self, key: Tensor<'g>, dims: &[usize]) -> Tensor<'g> {
        self.emit(Op::RandomBits { dims: dims.to_vec(), global: None }, &[key])
    }

    /// Per-device program: this device's coordinate along a mesh axis, `i32[]`.
    pub fn axis_index(&self, axis: &str) -> Tensor<'_> {
        self.emit(Op::AxisIndex { axis: axis.into() }, &[])
    }

    /// Joins tensors along `dim`.
    pub fn concat<'g>(&'g self, parts: &[Tensor<'g>], dim: usize) -> Tensor<'g> {
        self.emit(Op::Concat { dim }, parts)
    }

    /// Calls a function.
    pub fn call<'g>(&'g self, func: &Arc<Func>, args: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
        self.emit_multi(Op::Call { func: func.clone(), remat: false }, args, func.results.len())
    }

    /// Calls a function that reverse mode recomputes instead of keeping its intermediates.
    pub fn call_remat<'g>(&'g self, func: &Arc<Func>, args: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
        self.emit_multi(Op::Call { func: func.clone(), remat: true }, args, func.results.len())
    }

    /// A named op defined by `func`; see [`Op::Composite`].
    pub fn composite<'g>(
        &'g self,
        name: &str,
        mut attrs: Vec<(String, AttrValue)>,
        func: &Arc<Func>,
        args: &[Tensor<'g>],
    ) -> Vec<Tensor<'g>> {
        attrs.sort_by(|a, b| a.0.cmp(&b.0));
        let op = Op::Composite { name: name.into(), attrs, func: func.clone() };
        self.emit_multi(op, args, func.results.len())
    }

    /// The same values, none of which is available before all of them are: what is computed from them is neither
    /// begun early nor joined with what made them. See [`Op::OptimizationBarrier`].
    pub fn barrier<'g>(&'g self, values: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
        self.emit_multi(Op::OptimizationBarrier, values, values.len())
    }

    /// Runs `body` with `segment` appended to the model path.
    pub fn scope<R>(&self, segment: &str, body: impl FnOnce() -> R) -> R {
        let old = self.builder.borrow().loc().clone();
        let new = if old.is_empty() { segment.to_string() } else { format!("{old}.{segment}") };
        self.builder.borrow_mut().set_loc(new.into());
        let result = body();
        self.builder.borrow_mut().set_loc(old);
        result
    }

    /// The model path in force.
    pub fn path(&self) -> String {
        self.builder.borrow().loc().to_string()
    }

    /// The mesh it is over.
    pub fn mesh(&self) -> Mesh {
        self.builder.borrow().func().mesh.clone()
    }

    /// Records an error found while building (a width that heads do not divide, say), unless one is known.
    pub fn fail(&self, message: impl Into<String>) {
        let error = Error::new(message).at_loc(&self.path());
        self.error.borrow_mut().get_or_insert(error);
    }

    /// The function with these results, or the first error made while it was built.
    pub fn finish(&self, results: &[Tensor<'_>]) -> Result<Func> {
        let ids: Vec<ValueId> = results.iter().map(|t| t.id).collect();
        match &*self.error.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(self.builder.borrow().clone().finish(&ids)),
        }
    }

    fn emit<'g>(&'g self, op: Op, operands: &[Tensor<'g>]) -> Tensor<'g> {
        self.emit_multi(op, operands, 1)[0]
    }

    /// Any op, with this many results.
    pub(crate) fn emit_multi<'g>(&'g self, op: Op, operands: &[Tensor<'g>], results: usize) -> Vec<Tensor<'g>> {
        let ids: Vec<ValueId> = operands.iter().map(|t| t.id).collect();
        let mut builder = self.builder.borrow_mut();
        if self.error.borrow().is_none() {
            match builder.emit_multi(op, &ids) {
                Ok(values) if values.len() == results => {
                    return values.into_iter().map(|id| Tensor { graph: self, id }).collect();
                }
                Ok(values) => {
                    let message = format!("{} results where {results} are wanted", values.len());
                    *self.error.borrow_mut() = Some(Error::new(message).at_loc(builder.loc()));
                }
                Err(error) => *self.error.borrow_mut() = Some(error),
            }
        }
        let id = ids.first().copied().unwrap_or_else(|| builder.scalar(DType::F32, 0.0));
        vec![Tensor { graph: self, id }; results]
    }
}

impl<'g> Tensor<'g> {
    /// The graph it belongs to.
    pub fn graph(self) -> &'g Graph {
        self.graph
    }

    /// The value.
    pub fn id(self) -> ValueId {
        self.id
    }

    /// The type.
    pub fn ty(self) -> Type {
        self.graph.builder.borrow().ty(self.id).clone()
    }

    /// The dtype.
    pub fn dtype(self) -> DType {
        self.graph.builder.borrow().ty(self.id).dtype
    }

    /// The dims.
    pub fn dims(self) -> Vec<usize> {
        self.graph.builder.borrow().dims(self.id).to_vec()
    }

    /// The number of dims.
    pub fn rank(self) -> usize {
        self.dims().len()
    }

    /// The size of dim `d`, negative `d` counting from the end; 1 (and an error kept) if there is none.
    pub fn dim(self, d: isize) -> usize {
        let dims = self.dims();
        let at = if d < 0 { d + dims.len() as isize } else { d };
        match dims.get(at as usize) {
            Some(&n) if at >= 0 => n,
            _ => {
                self.graph.fail(format!("dim {d} of a tensor with dims {dims:?}"));
                1
            }
        }
    }

    /// Any op on this and more operands, with one result.
    pub fn apply(self, op: Op, more: &[Tensor<'g>]) -> Tensor<'g> {
        let operands: Vec<Tensor<'g>> = std::iter::once(self).chain(more.iter().copied()).collect();
        self.graph.emit(op, &operands)
    }

    fn unary(self, op: UnaryOp) -> Tensor<'g> {
        self.apply(Op::Unary(op), &[])
    }

    fn binary(self, op: BinaryOp, other: Tensor<'g>) -> Tensor<'g> {
        let (x, y) = self.broadcast_with(other);
        x.apply(Op::Binary(op), &[y])
    }

    /// A scalar of this tensor's dtype.
    pub fn scalar_like(self, value: f64) -> Tensor<'g> {
        self.graph.scalar(self.dtype(), value)
    }

    /// An array of this tensor's dtype and dims, every element `value`.
    pub fn full_like(self, value: f64) -> Tensor<'g> {
        self.graph.full(self.dtype(), &self.dims(), value)
    }

    /// Both tensors at their common dims: aligned at the last dim, size 1 or missing dims repeat (NumPy's rule).
    pub fn broadcast_with(self, other: Tensor<'g>) -> (Tensor<'g>, Tensor<'g>) {
        let (a, b) = (self.dims(), other.dims());
        let rank = a.len().max(b.len());
        let at = |d: &[usize], i: usize| if i + d.len() >= rank { d[i + d.len() - rank] } else { 1 };
        let dims: Vec<usize> = (0..rank).map(|i| if at(&a, i) == 1 { at(&b, i) } else { at(&a, i) }).collect();
        (self.broadcast_to(&dims), other.broadcast_to(&dims))
    }

    /// Broadcast to `dims` by NumPy's rule.
    pub fn broadcast_to(self, dims: &[usize]) -> Tensor<'g> {
        let own = self.dims();
        if own == dims {
            return self;
        }
        if own.len() > dims.len() {
            self.graph.fail(format!("a tensor with dims {own:?} does not broadcast to {dims:?}"));
            return self;
        }
        let map = (dims.len() - own.len()..dims.len()).collect();
        self.apply(Op::Broadcast { dims: dims.to_vec(), map }, &[])
    }

    /// Broadcast to `dims` with this tensor's dim `i` at `map[i]`.
    pub fn broadcast_in_dim(self, dims: &[usize], map: &[usize]) -> Tensor<'g> {
        self.apply(Op::Broadcast { dims: dims.to_vec(), map: map.to_vec() }, &[])
    }

    /// With dims of size 1 appended until the rank is `rank`: a per-sample `[B]` beside `[B, H, W, C]`.
    pub fn expand_right(self, rank: usize) -> Tensor<'g> {
        let mut dims = self.dims();
        dims.resize(rank.max(dims.len()), 1);
        self.reshape(&dims)
    }

    /// Other dims, same elements.
    pub fn reshape(self, dims: &[usize]) -> Tensor<'g> {
        if self.dims() == dims { self } else { self.apply(Op::Reshape { dims: dims.to_vec() }, &[]) }
    }

    /// Result dim `i` is this tensor's dim `perm[i]`.
    pub fn transpose(self, perm: &[usize]) -> Tensor<'g> {
        self.apply(Op::Transpose { perm: perm.to_vec() }, &[])
    }

    /// `start..end` along `dim`.
    pub fn slice(self, dim: usize, start: usize, end: usize) -> Tensor<'g> {
        let dims = self.dims();
        let (mut low, mut high) = (vec![0; dims.len()], dims.clone());
        if dim < dims.len() {
            (low[dim], high[dim]) = (start, end);
        } else {
            self.graph.fail(format!("no dim {dim} in {dims:?}"));
        }
        self.apply(Op::Slice { start: low, limit: high, stride: vec![1; dims.len()] }, &[])
    }

    /// `parts` equal pieces along `dim`.
    pub fn split(self, dim: usize, parts: usize) -> Vec<Tensor<'g>> {
        let n = self.dim(dim as isize) / parts.max(1);
        if n * parts != self.dim(dim as isize) {
            self.graph.fail(format!("dim {dim} of {:?} does not split into {parts} equal parts", self.dims()));
        }
        (0..parts).map(|i| self.slice(dim, i * n, (i + 1) * n)).collect()
    }

    /// Zeros around: `low` and `high` per dim.
    pub fn pad_zero(self, low: &[usize], high: &[usize]) -> Tensor<'g> {
        let zero = self.scalar_like(0.0);
        let op = Op::Pad { low: low.to_vec(), high: high.to_vec(), interior: vec![0; low.len()] };
        self.apply(op, &[zero])
    }

    /// Reversed along these dims.
    pub fn reverse(self, dims: &[usize]) -> Tensor<'g> {
        self.apply(Op::Reverse { dims: dims.to_vec() }, &[])
    }

    /// Another dtype.
    pub fn convert(self, dtype: DType) -> Tensor<'g> {
        if self.dtype() == dtype { self } else { self.apply(Op::Convert(dtype), &[]) }
    }

    /// The same bits as another dtype.
    pub fn bitcast(self, dtype: DType) -> Tensor<'g> {
        self.apply(Op::Bitcast(dtype), &[])
    }

    /// The same value in another layout over the mesh.
    pub fn reshard(self, sharding: Sharding) -> Tensor<'g> {
        self.apply(Op::Reshard { sharding }, &[])
    }

    /// Compares with broadcasting.
    pub fn compare(self, op: CmpOp, other: Tensor<'g>) -> Tensor<'g> {
        let (x, y) = self.broadcast_with(other);
        x.apply(Op::Compare(op), &[y])
    }

    /// Where this `bool` tensor is true `a`, else `b`; all three broadcast.
    pub fn select(self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        let (a, b) = a.broadcast_with(b);
        let (c, a) = self.broadcast_with(a);
        let b = b.broadcast_to(&c.dims());
        c.apply(Op::Select, &[a, b])
    }

    /// Rows of this table at integer `indices`, along dim 0.
    pub fn take(self, indices: Tensor<'g>) -> Tensor<'g> {
        self.apply(Op::Take { dim: 0 }, &[indices])
    }

    /// Contraction with batch dims; the result keeps this tensor's dtype.
    pub fn dot(self, other: Tensor<'g>, dims: DotDims) -> Tensor<'g> {
        let out = self.dtype();
        self.apply(Op::Dot { dims, out }, &[other])
    }

    /// `[.., K] x [K, N] -> [.., N]`.
    pub fn matmul(self, other: Tensor<'g>) -> Tensor<'g> {
        let k = self.rank().saturating_sub(1);
        self.dot(other, DotDims { lhs_contract: vec![k], rhs_contract: vec![0], ..DotDims::default() })
    }

    /// `[.., K] x [N, K] -> [.., N]`: a linear layer with the weight in PyTorch's layout.
    pub fn matmul_t(self, other: Tensor<'g>) -> Tensor<'g> {
        let k = self.rank().saturating_sub(1);
        self.dot(other, DotDims { lhs_contract: vec![k], rhs_contract: vec![1], ..DotDims::default() })
    }

    fn reduce(self, kind: ReduceKind, dims: &[usize]) -> Tensor<'g> {
        self.apply(Op::Reduce { kind, dims: dims.to_vec() }, &[])
    }

    /// Sum over `dims`, which disappear.
    pub fn sum(self, dims: &[usize]) -> Tensor<'g> {
        self.reduce(ReduceKind::Sum, dims)
    }

    /// Maximum over `dims`, which disappear.
    pub fn max(self, dims: &[usize]) -> Tensor<'g> {
        self.reduce(ReduceKind::Max, dims)
    }

    /// Mean over `dims`, which disappear.
    pub fn mean(self, dims: &[usize]) -> Tensor<'g> {
        let n: usize = dims.iter().map(|&d| self.dim(d as isize)).product();
        self.sum(dims) * (1.0 / n.max(1) as f64)
    }

    /// The mean of every element, a scalar.
    pub fn mean_all(self) -> Tensor<'g> {
        self.mean(&(0..self.rank()).collect::<Vec<_>>())
    }

    /// The sum of every element, a scalar.
    pub fn sum_all(self) -> Tensor<'g> {
        self.sum(&(0..self.rank()).collect::<Vec<_>>())
    }

    /// The mean over all dims but the first.
    pub fn mean_per_sample(self) -> Tensor<'g> {
        self.mean(&(1..self.rank()).collect::<Vec<_>>())
    }

    /// With dim `dim` of size 1 put back after a reduction.
    pub fn unsqueeze(self, dim: usize) -> Tensor<'g> {
        let mut dims = self.dims();
        dims.insert(dim.min(dims.len()), 1);
        self.reshape(&dims)
    }
}

/// Elementwise functions.
#[allow(missing_docs, clippy::should_implement_trait)]
impl<'g> Tensor<'g> {
    pub fn exp(self) -> Tensor<'g> {
        self.unary(UnaryOp::Exp)
    }
    pub fn log(self) -> Tensor<'g> {
        self.unary(UnaryOp::Log)
    }
    pub fn sin(self) -> Tensor<'g> {
        self.unary(UnaryOp::Sin)
    }
    pub fn cos(self) -> Tensor<'g> {
        self.unary(UnaryOp::Cos)
    }
    pub fn tanh(self) -> Tensor<'g> {
        self.unary(UnaryOp::Tanh)
    }
    pub fn erf(self) -> Tensor<'g> {
        self.unary(UnaryOp::Erf)
    }
    pub fn sqrt(self) -> Tensor<'g> {
        self.unary(UnaryOp::Sqrt)
    }
    pub fn rsqrt(self) -> Tensor<'g> {
        self.unary(UnaryOp::Rsqrt)
    }
    pub fn abs(self) -> Tensor<'g> {
        self.unary(UnaryOp::Abs)
    }
    pub fn sign(self) -> Tensor<'g> {
        self.unary(UnaryOp::Sign)
    }
    pub fn floor(self) -> Tensor<'g> {
        self.unary(UnaryOp::Floor)
    }
    /// Logical or bitwise complement.
    pub fn not(self) -> Tensor<'g> {
        self.unary(UnaryOp::Not)
    }
    pub fn is_finite(self) -> Tensor<'g> {
        self.unary(UnaryOp::IsFinite)
    }
    /// The identity, with derivative zero.
    pub fn stop_gradient(self) -> Tensor<'g> {
        self.unary(UnaryOp::StopGradient)
    }
    pub fn square(self) -> Tensor<'g> {
        self * self
    }
    /// `1 / (1 + exp(-x))`, written with `tanh` so that it never overflows.
    pub fn sigmoid(self) -> Tensor<'g> {
        ((self * 0.5).tanh() + 1.0) * 0.5
    }
    /// `x * sigmoid(x)`.
    pub fn silu(self) -> Tensor<'g> {
        self * self.sigmoid()
    }
    pub fn maximum(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Max, other)
    }
    pub fn minimum(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Min, other)
    }
    pub fn pow(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Pow, other)
    }
    pub fn rem(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Rem, other)
    }
    pub fn and(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::And, other)
    }
    pub fn or(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Or, other)
    }
    pub fn xor(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Xor, other)
    }
    pub fn shl(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Shl, other)
    }
    pub fn shr(self, other: Tensor<'g>) -> Tensor<'g> {
        self.binary(BinaryOp::Shr, other)
    }
    pub fn lt(self, other: Tensor<'g>) -> Tensor<'g> {
        self.compare(CmpOp::Lt, other)
    }
    pub fn le(self, other: Tensor<'g>) -> Tensor<'g> {
        self.compare(CmpOp::Le, other)
    }
    pub fn gt(self, other: Tensor<'g>) -> Tensor<'g> {
        self.compare(CmpOp::Gt, other)
    }
    pub fn ge(self, other: Tensor<'g>) -> Tensor<'g> {
        self.compare(CmpOp::Ge, other)
    }
    pub fn eq(self, other: Tensor<'g>) -> Tensor<'g> {
        self.compare(CmpOp::Eq, other)
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:ident),*) => {$(
        impl<'g> $trait for Tensor<'g> {
            type Output = Tensor<'g>;
            fn $method(self, other: Tensor<'g>) -> Tensor<'g> {
                self.binary(BinaryOp::$op, other)
            }
        }
        impl<'g> $trait<f64> for Tensor<'g> {
            type Output = Tensor<'g>;
            fn $method(self, other: f64) -> Tensor<'g> {
                self.binary(BinaryOp::$op, self.scalar_like(other))
            }
        }
        impl<'g> $trait<Tensor<'g>> for f64 {
            type Output = Tensor<'g>;
            fn $method(self, other: Tensor<'g>) -> Tensor<'g> {
                other.scalar_like(self).binary(BinaryOp::$op, other)
            }
        }
    )*};
}
operators!(Add add Add, Sub sub Sub, Mul mul Mul, Div div Div);

impl<'g> Neg for Tensor<'g> {
    type Output = Tensor<'g>;
    fn neg(self) -> Tensor<'g> {
        self.unary(UnaryOp::Neg)
    }
}
