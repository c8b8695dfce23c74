//! Evaluating a value at coordinates: the instructions that compute it.

use super::coords::{Coords, Space, add, linear, scale};
use super::{Context, Lowering, empty_scatter, push_inst, refuse};
use crate::kernel::{Check, DynTerm, Idx, Inst, InstId, Kind, Scatter};
use dnx_ir::{BinaryOp, CmpOp, ConvDims, DType, NodeId, Op, Scalar, UnaryOp, ValueId};
use std::collections::HashMap;

/// The evaluator of one group.
pub(crate) struct Eval<'c, 'f> {
    pub(super) cx: &'c Context<'f>,
    kind: Kind,
    members: &'c [NodeId],
    pub space: Space,
    pub insts: Vec<Inst>,
    pub dtypes: Vec<DType>,
    /// Values loaded, in order of first use: the kernel's input arguments.
    pub args: Vec<ValueId>,
    /// The anchor's iteration dims, unrefined.
    pub anchor_at: Coords,
    /// Where the values around the anchor live.
    pub placed: HashMap<ValueId, Coords>,
    seen: HashMap<Inst, InstId>,
    memo: HashMap<(ValueId, Coords, Vec<Check>), InstId>,
}

/// Operand coordinates of the element of a view at `c` (without the checks of `pad`). `None`: not a view.
pub(crate) fn through_view(cx: &Context, node: NodeId, c: &[Idx], space: &mut Space) -> Option<Coords> {
    let n = &cx.func.nodes[node.index()];
    let from = cx.func.ty(*n.operands.first()?);
    let to = cx.func.ty(n.results[0]);
    Some(match &n.op {
        Op::Reshape { .. } => space.reshape(c, &to.dims, &from.dims),
        Op::Transpose { perm } => {
            let mut out = vec![Idx::default(); perm.len()];
            for (i, &p) in perm.iter().enumerate() {
                out[p] = c[i].clone();
            }
            out
        }
        Op::Broadcast { map, .. } => {
            map.iter().zip(&from.dims).map(|(&m, &n)| if n == 1 { Idx::default() } else { c[m].clone() }).collect()
        }
        Op::Slice { start, stride, .. } => {
            c.iter().zip(start.iter().zip(stride)).map(|(c, (&s, &k))| scale(c, k as i64, s as i64)).collect()
        }
        Op::Reverse { dims } => {
            let turn = |(d, c): (usize, &Idx)| {
                if dims.contains(&d) { scale(c, -1, to.dims[d] as i64 - 1) } else { c.clone() }
            };
            c.iter().enumerate().map(turn).collect()
        }
        Op::Pad { low, interior, .. } => {
            let inner = |d: usize| {
                let shifted = scale(&c[d], 1, -(low[d] as i64));
                if interior[d] == 0 { shifted } else { exact_quotient(space, &shifted, interior[d] as i64 + 1) }
            };
            (0..c.len()).map(inner).collect::<Vec<_>>()
        }
        _ => return None,
    })
}

/// The quotient of an index that is a multiple of `n` wherever it is used.
fn exact_quotient(space: &mut Space, idx: &Idx, n: i64) -> Idx {
    if idx.offset % n == 0 && idx.terms.iter().all(|(c, _)| c % n == 0) {
        let terms = idx.terms.iter().map(|(c, a)| (c / n, a.clone())).collect();
        return Idx { offset: idx.offset / n, terms, checks: vec![] };
    }
    // No split makes this exact in general, so none is asked for.
    let kept = space.splits.len();
    let (q, _) = space.div_rem(idx, n);
    space.splits.truncate(kept);
    q
}

impl<'c, 'f> Eval<'c, 'f> {
    pub fn new(cx: &'c Context<'f>, kind: Kind, members: &'c [NodeId], space: Space) -> Eval<'c, 'f> {
        Eval {
            cx,
            kind,
            members,
            space,
            insts: vec![],
            dtypes: vec![],
            args: vec![],
            anchor_at: vec![],
            placed: HashMap::new(),
            seen: HashMap::new(),
            memo: HashMap::new(),
        }
    }

    pub(super) fn push(&mut self, inst: Inst, dtype: DType) -> InstId {
        push_inst(&mut self.insts, &mut self.dtypes, &mut self.seen, inst, dtype)
    }

    fn dtype(&self, id: InstId) -> DType {
        self.dtypes[id.index()]
    }

    fn constant(&mut self, value: Scalar) -> InstId {
        self.push(Inst::Const(value), value.dtype())
    }

    fn int(&mut self, value: i64) -> InstId {
        self.constant(Scalar::from_f64(DType::I32, value as f64))
    }

    fn binary(&mut self, op: BinaryOp, a: InstId, b: InstId) -> InstId {
        let dtype = self.dtype(a);
        self.push(Inst::Binary(op, a, b), dtype)
    }

    pub(super) fn convert(&mut self, a: InstId, to: DType) -> InstId {
        if self.dtype(a) == to { a } else { self.push(Inst::Convert(to, a), to) }
    }

    /// The checks that can fail, or `None` if one of them always does.
    fn live_checks(&self, checks: &[Check], more: Option<Check>) -> Option<Vec<Check>> {
        let mut out = checks.to_vec();
        if let Some(c) = more {
            if self.space.never(&c) {
                return None;
            }
            if !self.space.always(&c) && !out.contains(&c) {
                out.push(c);
            }
        }
        out.sort();
        Some(out)
    }

    fn load(&mut self, v: ValueId, mut index: Idx, checks: &[Check], dynamic: Vec<DynTerm>) -> InstId {
        let arg = match self.args.iter().position(|&a| a == v) {
            Some(at) => at,
            None => {
                self.args.push(v);
                self.args.len() - 1
            }
        };
        index.checks = checks.to_vec();
        let dtype = self.cx.func.ty(v).dtype;
        self.push(Inst::Load { arg: arg as u32, index, dynamic }, dtype)
    }

    /// The element of `v` at `c`, where `checks` hold; where they don't any value, but no access out of range.
    pub fn value(&mut self, v: ValueId, c: &[Idx], checks: &[Check]) -> Lowering<InstId> {
        let key = (v, c.to_vec(), checks.to_vec());
        if let Some(&id) = self.memo.get(&key) {
            return Ok(id);
        }
        let id = self.fresh(v, c, checks)?;
        self.memo.insert(key, id);
        Ok(id)
    }

    /// Like [`Eval::value`], with `fill` where the checks don't hold.
    fn guarded(&mut self, v: ValueId, c: &[Idx], checks: &[Check], fill: InstId) -> Lowering<InstId> {
        let inner = self.value(v, c, checks)?;
        let zero = Inst::Const(Scalar::zero(self.dtype(fill)));
        let loads_zero = matches!(&self.insts[inner.index()], Inst::Load { index, .. } if index.checks == checks);
        if checks.is_empty() || inner == fill || (loads_zero && self.insts[fill.index()] == zero) {
            return Ok(inner);
        }
        let valid = self.push(Inst::Valid(checks.to_vec()), DType::Bool);
        let dtype = self.dtype(inner);
        Ok(self.push(Inst::Select(valid, inner, fill), dtype))
    }

    fn fresh(&mut self, v: ValueId, c: &[Idx], checks: &[Check]) -> Lowering<InstId> {
        let cx = self.cx;
        let def = cx.func.values[v.index()].node;
        let node = &cx.func.nodes[def.index()];
        let ty = cx.func.ty(v);
        if ty.dtype == DType::F64 {
            return refuse("f64 is for the reference interpreter alone");
        }
        let inside = self.members.binary_search(&def).is_ok();
        if !inside && cx.is_stored(v) {
            return Ok(self.load(v, linear(c, &ty.strides()), checks, vec![]));
        }
        match &node.op {
            Op::Const(array) => match array.as_splat() {
                Some(s) => Ok(self.constant(s)),
                None => Ok(self.load(v, linear(c, &ty.strides()), checks, vec![])),
            },
            Op::Iota { dtype, dim, .. } => {
                let int = if *dtype == DType::U32 { DType::U32 } else { DType::I32 };
                let i = self.push(Inst::Index(int, c[*dim].clone()), int);
                Ok(self.convert(i, *dtype))
            }
            Op::Pad { low, interior, .. } => {
                let from = cx.func.ty(node.operands[0]);
                let inner = through_view(cx, def, c, &mut self.space).expect("pad is a view");
                let mut all = Some(checks.to_vec());
                for d in 0..c.len() {
                    let step = interior[d] as i64 + 1;
                    let (lo, n) = (low[d] as i64, from.dims[d] as i64);
                    let hi = if n == 0 { lo } else { lo + (n - 1) * step + 1 };
                    let check = Check { index: c[d].clone(), lo, hi, multiple: step };
                    all = all.and_then(|a| self.live_checks(&a, Some(check)));
                }
                let fill = self.value(node.operands[1], &[], &[])?;
                match all {
                    Some(all) => self.guarded(node.operands[0], &inner, &all, fill),
                    None => Ok(fill),
                }
            }
            op if op.is_view() => {
                let inner = through_view(cx, def, c, &mut self.space).expect("a view");
                self.value(node.operands[0], &inner, checks)
            }
            op if op.is_elementwise() => {
                let operands: Lowering<Vec<InstId>> = node.operands.iter().map(|&o| self.value(o, c, checks)).collect();
                Ok(self.elementwise(op, &operands?))
            }
            Op::Concat { dim } => self.concat(def, *dim, c, checks),
            Op::RandomBits { dims, global } => {
                let k0 = self.value(node.operands[0], &[Idx::constant(0)], &[])?;
                let k1 = self.value(node.operands[0], &[Idx::constant(1)], &[])?;
                let strides = dnx_ir::types::row_major_strides(global.as_ref().unwrap_or(dims));
                let local = linear(c, &strides);
                let mut counter = self.push(Inst::Index(DType::U32, local), DType::U32);
                if global.is_some() {
                    for (d, &s) in strides.iter().enumerate() {
                        let start = self.value(node.operands[1], &[Idx::constant(d as i64)], &[])?;
                        let start = self.convert(start, DType::U32);
                        let s = self.constant(Scalar::from_f64(DType::U32, s as f64));
                        let part = self.binary(BinaryOp::Mul, start, s);
                        counter = self.binary(BinaryOp::Add, counter, part);
                    }
                }
                Ok(self.push(Inst::Threefry { k0, k1, counter }, DType::U32))
            }
            Op::DynamicSlice { sizes } => {
                let x = self.stored(node.operands[0])?;
                let from = cx.func.ty(x);
                let mut dynamic = vec![];
                for (d, (&n, s)) in from.dims.iter().zip(from.strides()).enumerate() {
                    let value = self.value(node.operands[1], &[Idx::constant(d as i64)], &[])?;
                    if n > sizes[d] {
                        dynamic.push(DynTerm { value, limit: (n - sizes[d]) as i64, stride: s as i64 });
                    }
                }
                Ok(self.load(x, linear(c, &from.strides()), checks, dynamic))
            }
            Op::DynamicUpdateSlice => self.update_slice(def, c, checks),
            Op::Take { dim } => {
                let x = self.stored(node.operands[0])?;
                let (from, rank) = (cx.func.ty(x), cx.func.ty(node.operands[1]).rank());
                let strides = from.strides();
                let mut rest = c[..*dim].to_vec();
                rest.push(Idx::default());
                rest.extend_from_slice(&c[dim + rank..]);
                let value = self.value(node.operands[1], &c[*dim..dim + rank], checks)?;
                let value = self.index_value(value, from.dims[*dim]);
                let limit = from.dims[*dim] as i64 - 1;
                let dynamic = vec![DynTerm { value, limit, stride: strides[*dim] as i64 }];
                Ok(self.load(x, linear(&rest, &strides), checks, dynamic))
            }
            Op::Reduce { kind, .. } => {
                let x = self.reduced(v, c, node.operands[0])?;
                let wide = self.widen(x);
                let dtype = self.dtype(wide);
                let r = self.push(Inst::Reduce(*kind, wide), dtype);
                Ok(self.convert(r, ty.dtype))
            }
            Op::Argmax { .. } => {
                let x = self.reduced(v, c, node.operands[0])?;
                let wide = self.widen(x);
                Ok(self.push(Inst::Argmax(wide), DType::I32))
            }
            Op::Dot { dims, out } => {
                self.expect_place(v, c)?;
                let (x, y) = (node.operands[0], node.operands[1]);
                let (rx, ry) = (cx.func.ty(x).rank(), cx.func.ty(y).rank());
                let (batch, contract) = (dims.lhs_batch.len(), dims.lhs_contract.len());
                let (fx, fy) = (dims.lhs_free(rx), dims.rhs_free(ry));
                let k0 = batch + fx.len() + fy.len();
                let (mut cx_, mut cy) = (vec![Idx::default(); rx], vec![Idx::default(); ry]);
                for i in 0..batch {
                    cx_[dims.lhs_batch[i]] = self.anchor_at[i].clone();
                    cy[dims.rhs_batch[i]] = self.anchor_at[i].clone();
                }
                for (i, &d) in fx.iter().enumerate() {
                    cx_[d] = self.anchor_at[batch + i].clone();
                }
                for (i, &d) in fy.iter().enumerate() {
                    cy[d] = self.anchor_at[batch + fx.len() + i].clone();
                }
                for i in 0..contract {
                    cx_[dims.lhs_contract[i]] = self.anchor_at[k0 + i].clone();
                    cy[dims.rhs_contract[i]] = self.anchor_at[k0 + i].clone();
                }
                let (lhs, rhs) = (self.value(x, &cx_, &[])?, self.value(y, &cy, &[])?);
                Ok(self.dot(lhs, rhs, *out))
            }
            Op::Conv { dims, out } => {
                self.expect_place(v, c)?;
                self.conv(def, dims, *out)
            }
            Op::Composite { .. } if self.kind == Kind::Attention => {
                self.expect_place(v, c)?;
                self.attention(v)
            }
            other => refuse(format!("{} is not part of a {:?} kernel", other.name(), self.kind)),
        }
    }

    fn dot(&mut self, lhs: InstId, rhs: InstId, out: DType) -> InstId {
        let acc = if self.dtype(lhs).is_float() { DType::F32 } else { self.dtype(lhs) };
        let d = self.push(Inst::Dot { lhs, rhs }, acc);
        self.convert(d, out)
    }

    fn conv(&mut self, def: NodeId, d: &ConvDims, out: DType) -> Lowering<InstId> {
        let cx = self.cx;
        let node = &cx.func.nodes[def.index()];
        let (x, w) = (cx.func.ty(node.operands[0]), cx.func.ty(node.operands[1]));
        let spatial = d.stride.len();
        let at = self.anchor_at.clone();
        let (group, n, k0) = (&at[0], &at[spatial + 2], spatial + 3);
        let mut left = vec![at[1].clone()];
        let mut checks = Some(vec![]);
        for s in 0..spatial {
            let window = scale(&at[2 + s], d.stride[s] as i64, -d.padding[s].0);
            let index = add(&window, &scale(&at[k0 + s], d.rhs_dilation[s] as i64, 0));
            let step = d.lhs_dilation[s] as i64;
            let hi = (x.dims[s + 1] as i64 - 1) * step + 1;
            left.push(exact_quotient(&mut self.space, &index, step));
            let check = Check { index, lo: 0, hi, multiple: step };
            checks = checks.and_then(|c| self.live_checks(&c, Some(check)));
        }
        let channel = &at[k0 + spatial];
        left.push(add(&scale(group, w.dims[spatial] as i64, 0), channel));
        let mut right: Coords = (0..spatial).map(|s| at[k0 + s].clone()).collect();
        right.push(channel.clone());
        right.push(add(&scale(group, (w.dims[spatial + 1] / d.groups) as i64, 0), n));
        let zero = self.constant(Scalar::zero(x.dtype));
        let lhs = match checks {
            Some(checks) => self.guarded(node.operands[0], &left, &checks, zero)?,
            None => zero,
        };
        let rhs = self.value(node.operands[1], &right, &[])?;
        Ok(self.dot(lhs, rhs, out))
    }

    pub fn scatter(&mut self, def: NodeId, at: &[Idx]) -> Lowering<Scatter> {
        let cx = self.cx;
        let node = &cx.func.nodes[def.index()];
        let Op::ScatterAdd { dim } = node.op else { return refuse("not a scatter") };
        let (base, indices) = (node.operands[0], node.operands[1]);
        let rank = cx.func.ty(indices).rank();
        let rows = cx.func.ty(base).dims[dim];
        let target = self.value(indices, &at[dim..dim + rank], &[])?;
        let target = self.index_value(target, rows);
        let mut place = at.to_vec();
        if rank == 0 {
            place.remove(dim);
        }
        let update = self.value(node.operands[2], &place, &[])?;
        let zero = matches!(self.splat(base), Some(s) if s.bits() == 0);
        let base = if zero {
            None
        } else {
            let base = self.stored(base)?;
            self.load(base, Idx::default(), &[], vec![]);
            self.args.iter().position(|&a| a == base).map(|a| a as u32)
        };
        Ok(empty_scatter(target, update, rows, base))
    }

    /// The one number a value consists of, looking through views.
    fn splat(&self, v: ValueId) -> Option<Scalar> {
        let node = self.cx.func.def(v);
        match &node.op {
            Op::Const(array) => array.as_splat(),
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } => self.splat(node.operands[0]),
            _ => None,
        }
    }

    /// An index as `i32` that is right after clamping to `0..rows`.
    fn index_value(&mut self, value: InstId, rows: usize) -> InstId {
        if self.dtype(value) == DType::I32 {
            return value;
        }
        let last = self.constant(Scalar::from_f64(DType::U32, rows as f64 - 1.0));
        let value = self.binary(BinaryOp::Min, value, last);
        self.convert(value, DType::I32)
    }

    fn stored(&self, v: ValueId) -> Lowering<ValueId> {
        let def = self.cx.func.values[v.index()].node;
        if self.members.binary_search(&def).is_err() && self.cx.is_stored(v) {
            Ok(v)
        } else {
            refuse("a gathered operand must be in memory")
        }
    }

    fn expect_place(&self, v: ValueId, c: &[Idx]) -> Lowering<()> {
        match self.placed.get(&v) {
            Some(place) if place == c => Ok(()),
            _ => refuse("a reduced value is wanted at other coordinates than its own"),
        }
    }

    fn reduced(&mut self, v: ValueId, c: &[Idx], x: ValueId) -> Lowering<InstId> {
        self.expect_place(v, c)?;
        let full = self.placed.get(&x).cloned();
        match full {
            Some(full) => self.value(x, &full, &[]),
            None => refuse("a reduction over another space"),
        }
    }

    /// 16-bit floats are computed with in `f32`.
    fn widen(&mut self, a: InstId) -> InstId {
        match self.dtype(a) {
            DType::F16 | DType::BF16 => self.convert(a, DType::F32),
            _ => a,
        }
    }

    fn elementwise(&mut self, op: &Op, x: &[InstId]) -> InstId {
        match op {
            Op::Unary(UnaryOp::StopGradient) => x[0],
            Op::Unary(u) => {
                let own = self.dtype(x[0]);
                let a = self.widen(x[0]);
                let wide = if *u == UnaryOp::IsFinite { DType::Bool } else { self.dtype(a) };
                let r = self.push(Inst::Unary(*u, a), wide);
                if *u == UnaryOp::IsFinite { r } else { self.convert(r, own) }
            }
            Op::Binary(b) => {
                let own = self.dtype(x[0]);
                let (a, c) = (self.widen(x[0]), self.widen(x[1]));
                let r = self.binary(*b, a, c);
                self.convert(r, own)
            }
            Op::Compare(cmp) => {
                let (a, b) = (self.widen(x[0]), self.widen(x[1]));
                self.push(Inst::Compare(*cmp, a, b), DType::Bool)
            }
            Op::Select => {
                let dtype = self.dtype(x[1]);
                self.push(Inst::Select(x[0], x[1], x[2]), dtype)
            }
            Op::Convert(to) => {
                let a = if to.is_float() { self.widen(x[0]) } else { x[0] };
                self.convert(a, *to)
            }
            Op::Bitcast(to) if self.dtype(x[0]) == *to => x[0],
            Op::Bitcast(to) => self.push(Inst::Bitcast(*to, x[0]), *to),
            _ => unreachable!("elementwise ops are these"),
        }
    }

    fn concat(&mut self, def: NodeId, dim: usize, c: &[Idx], checks: &[Check]) -> Lowering<InstId> {
        let cx = self.cx;
        let node = &cx.func.nodes[def.index()];
        let mut start = 0i64;
        let mut parts: Vec<(ValueId, Coords, Check)> = vec![];
        for &o in &node.operands {
            let n = cx.func.ty(o).dims[dim] as i64;
            let check = Check { index: c[dim].clone(), lo: start, hi: start + n, multiple: 1 };
            let mut inner = c.to_vec();
            inner[dim] = scale(&c[dim], 1, -start);
            start += n;
            if n > 0 && !self.space.never(&check) {
                parts.push((o, inner, check));
            }
        }
        let Some((last, at, check)) = parts.pop() else { return refuse("a concatenation of nothing") };
        let live = self.live_checks(checks, Some(check)).expect("a part that never holds was dropped");
        let mut result = self.value(last, &at, &live)?;
        for (o, at, check) in parts.into_iter().rev() {
            let live = self.live_checks(checks, Some(check.clone())).expect("a part that never holds was dropped");
            let here = self.value(o, &at, &live)?;
            let valid = self.push(Inst::Valid(vec![check]), DType::Bool);
            let dtype = self.dtype(here);
            result = self.push(Inst::Select(valid, here, result), dtype);
        }
        Ok(result)
    }

    fn update_slice(&mut self, def: NodeId, c: &[Idx], checks: &[Check]) -> Lowering<InstId> {
        let cx = self.cx;
        let node = &cx.func.nodes[def.index()];
        let update = self.stored(node.operands[1])?;
        let (x, u) = (cx.func.ty(node.operands[0]), cx.func.ty(update));
        let mut inside: Option<InstId> = None;
        let mut dynamic = vec![];
        for (d, stride) in u.strides().into_iter().enumerate() {
            let start = self.value(node.operands[2], &[Idx::constant(d as i64)], &[])?;
            let (zero, most) = (self.int(0), self.int((x.dims[d] - u.dims[d]) as i64));
            let start = self.binary(BinaryOp::Max, start, zero);
            let start = self.binary(BinaryOp::Min, start, most);
            let at = self.push(Inst::Index(DType::I32, c[d].clone()), DType::I32);
            let value = self.binary(BinaryOp::Sub, at, start);
            let size = self.int(u.dims[d] as i64);
            let ge = self.push(Inst::Compare(CmpOp::Ge, value, zero), DType::Bool);
            let lt = self.push(Inst::Compare(CmpOp::Lt, value, size), DType::Bool);
            for test in [ge, lt] {
                inside = Some(match inside {
                    Some(all) => self.binary(BinaryOp::And, all, test),
                    None => test,
                });
            }
            dynamic.push(DynTerm { value, limit: u.dims[d] as i64 - 1, stride: stride as i64 });
        }
        let new = self.load(update, Idx::default(), checks, dynamic);
        let Some(inside) = inside else { return Ok(new) };
        let old = self.value(node.operands[0], c, checks)?;
        let dtype = self.dtype(new);
        Ok(self.push(Inst::Select(inside, new, old), dtype))
    }
}
