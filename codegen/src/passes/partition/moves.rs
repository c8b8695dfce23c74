//! From one layout to another: which collectives, in which order.
//!
//! 1. Dims that are to be split further, and whose split needs no other device, are cut first: less is moved after.
//! 2. A sum that is to be taken over an axis, and to be split by it, is a `reduce_scatter`; other sums follow as one
//!    `all_reduce`, of what is left.
//! 3. An axis that goes from one dim to another is an `all_to_all`, one that splits no longer an `all_gather`.
//! 4. What is now whole and is to be split is cut.
//! 5. What is to become a sum over an axis stays on its first device and is zero on the others.
//!
//! Large values cross as [`Wire`] says: rounded before the collective and widened after it, on all devices alike, so that
//! those that hold the same value hold the same bits. A sum is of rounded terms, is made in `f32` and rounded once more.

use crate::options::Wire;
use dnx_ir::parts::local_dims;
use dnx_ir::{AxisName, Builder, CmpOp, DType, Op, ReduceKind, Result, Sharding, ValueId};

/// Values of fewer elements, counted over the group of devices, cross as they are: losses, statistics, norms and biases,
/// of which a meeting takes its time whatever their bytes.
const WIDE_BELOW: usize = 1 << 12;

/// A device's part `x` of a value in layout `from`, in layout `to`.
///
/// # Errors
/// None but a dim that its axes do not divide.
pub fn moved(b: &mut Builder, x: ValueId, from: &Sharding, to: &Sharding, wire: Wire) -> Result<ValueId> {
    if from == to {
        return Ok(x);
    }
    let rank = b.dims(x).len();
    let dims = |s: &Sharding| -> Vec<Vec<AxisName>> { (0..rank).map(|d| s.dim(d).to_vec()).collect() };
    let mut m = Move { b, x, dims: dims(from), unreduced: from.unreduced.clone(), to: dims(to), wire };
    m.cut()?;
    m.reduce(&to.unreduced)?;
    m.join()?;
    m.cut()?;
    m.mask(&to.unreduced)?;
    debug_assert_eq!((m.dims, m.unreduced), (dims(to), to.unreduced.clone()));
    Ok(m.x)
}

struct Move<'a> {
    b: &'a mut Builder,
    x: ValueId,
    /// The layout so far.
    dims: Vec<Vec<AxisName>>,
    unreduced: Vec<AxisName>,
    /// The dims' axes in the end.
    to: Vec<Vec<AxisName>>,
    wire: Wire,
}

/// The collective `op` of `x`, which crosses as `wire` says.
///
/// # Errors
/// If the op refuses the value.
pub fn exchanged(b: &mut Builder, op: Op, x: ValueId, wire: Wire) -> Result<ValueId> {
    let size = |axis: &AxisName| b.func().mesh.size(axis).unwrap_or(1);
    // Of how many operands the value is, and into how many results it is cut.
    let (operands, cuts) = match &op {
        Op::AllGather { axis, .. } | Op::AllToAll { axis, .. } | Op::Ppermute { axis, .. } => (size(axis), 1),
        Op::ReduceScatter { axis, .. } => (1, size(axis)),
        _ => (1, 1),
    };
    let ty = b.ty(x);
    // Devices copy whole words, of which each has two narrow values.
    let is_large = ty.elems() * operands >= WIDE_BELOW && ty.elems().is_multiple_of(2 * cuts);
    match wire.narrow().filter(|_| ty.dtype == DType::F32 && is_large) {
        None => b.emit(op, &[x]),
        Some(narrow) => {
            let x = b.convert(x, narrow)?;
            let x = b.emit(op, &[x])?;
            b.convert(x, DType::F32)
        }
    }
}

impl Move<'_> {
    /// The axis by which dim `d` is to be split next, if it is split rightly so far.
    fn next(&self, d: usize) -> Option<&AxisName> {
        self.to[d].strip_prefix(&self.dims[d][..]).and_then(|rest| rest.first())
    }

    fn exchange(&mut self, op: Op) -> Result<()> {
        self.x = exchanged(self.b, op, self.x, self.wire)?;
        Ok(())
    }

    fn is_used(&self, axis: &AxisName) -> bool {
        self.unreduced.contains(axis) || self.dims.iter().any(|d| d.contains(axis))
    }

    /// Cuts dims by axes over which the value is whole.
    fn cut(&mut self) -> Result<()> {
        let before = self.b.dims(self.x).to_vec();
        let mut added: Vec<Vec<AxisName>> = vec![vec![]; self.dims.len()];
        for d in 0..self.dims.len() {
            while let Some(axis) = self.next(d).cloned() {
                if self.is_used(&axis) {
                    break;
                }
                self.dims[d].push(axis.clone());
                added[d].push(axis);
            }
        }
        let sharding = Sharding::new(added.clone(), vec![]);
        let sizes = local_dims(&before, &sharding, &self.b.func().mesh.clone());
        if let Some(start) = starts(self.b, &sizes, |d| &added[d])? {
            self.x = self.b.emit(Op::DynamicSlice { sizes }, &[self.x, start])?;
        }
        Ok(())
    }

    /// Takes the sums that `kept` does not list.
    fn reduce(&mut self, kept: &[AxisName]) -> Result<()> {
        while let Some((dim, axis)) = (0..self.dims.len()).find_map(|d| {
            let axis = self.next(d).filter(|a| self.unreduced.contains(a) && !kept.contains(a))?;
            Some((d, axis.clone()))
        }) {
            self.exchange(Op::ReduceScatter { axis: axis.clone(), dim })?;
            self.unreduced.retain(|a| *a != axis);
            self.dims[dim].push(axis);
            self.cut()?;
        }
        let axes: Vec<AxisName> = self.unreduced.iter().filter(|a| !kept.contains(a)).cloned().collect();
        if !axes.is_empty() {
            self.unreduced.retain(|a| kept.contains(a));
            self.exchange(Op::AllReduce { kind: ReduceKind::Sum, axes })?;
        }
        Ok(())
    }

    /// Takes away the axes that split a dim and are not to.
    fn join(&mut self) -> Result<()> {
        for dim in 0..self.dims.len() {
            while !self.to[dim].starts_with(&self.dims[dim]) {
                let axis = self.dims[dim].pop().expect("an empty split begins every other");
                let other = (0..self.dims.len()).find(|&e| e != dim && self.next(e) == Some(&axis));
                match other {
                    Some(split) => {
                        self.exchange(Op::AllToAll { axis: axis.clone(), split, concat: dim })?;
                        self.dims[split].push(axis);
                    }
                    None => self.exchange(Op::AllGather { axis, dim })?,
                }
            }
        }
        Ok(())
    }

    /// Leaves the value on the first devices of new axes of a sum.
    fn mask(&mut self, to: &[AxisName]) -> Result<()> {
        for axis in to {
            if self.unreduced.contains(axis) {
                continue;
            }
            self.unreduced.push(axis.clone());
            self.unreduced.sort();
            if is_zero(self.b, self.x) {
                continue;
            }
            let index = self.b.emit(Op::AxisIndex { axis: axis.clone() }, &[])?;
            let zero = self.b.scalar(DType::I32, 0.0);
            let first = self.b.compare(CmpOp::Eq, index, zero)?;
            let dims = self.b.dims(self.x).to_vec();
            let first = self.b.broadcast(first, &dims, &[])?;
            let none = self.b.full_like(self.x, 0.0)?;
            self.x = self.b.select(first, self.x, none)?;
        }
        Ok(())
    }
}

fn is_zero(b: &Builder, v: ValueId) -> bool {
    let node = b.func().def(v);
    match &node.op {
        Op::Const(a) => a.as_splat().is_some_and(|s| s.to_f64() == 0.0),
        Op::Broadcast { .. } => is_zero(b, node.operands[0]),
        _ => false,
    }
}

/// Where this device's part begins in a dim that `axes` split into parts of `size`, `i32[]`.
pub fn start(b: &mut Builder, axes: &[AxisName], size: usize) -> Result<ValueId> {
    let mut at: Option<ValueId> = None;
    for axis in axes {
        let index = b.emit(Op::AxisIndex { axis: axis.clone() }, &[])?;
        let n = b.func().mesh.size(axis).unwrap_or(1);
        at = Some(match at {
            None => index,
            Some(at) => {
                let at = b.scale(at, n as f64)?;
                b.add(at, index)?
            }
        });
    }
    match at {
        None => Ok(b.scalar(DType::I32, 0.0)),
        Some(at) => b.scale(at, size as f64),
    }
}

/// [`start`] of every dim as `i32[rank]`; `None` if nothing is split.
pub fn starts<'a>(b: &mut Builder, sizes: &[usize], axes: impl Fn(usize) -> &'a [AxisName]) -> Result<Option<ValueId>> {
    if (0..sizes.len()).all(|d| axes(d).is_empty()) {
        return Ok(None);
    }
    let mut all = Vec::with_capacity(sizes.len());
    for (d, &size) in sizes.iter().enumerate() {
        let at = start(b, axes(d), size)?;
        all.push(b.reshape(at, &[1])?);
    }
    Ok(Some(if all.len() == 1 { all[0] } else { b.emit(Op::Concat { dim: 0 }, &all)? }))
}
