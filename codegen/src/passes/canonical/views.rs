//! Laws of views and of the leaves they stand on. Views compose, identities vanish, and broadcasts move outward
//! (toward the results), so that work is done before it is repeated.
//!
//! Normal forms: no operand of `broadcast` has a dim of size 1; a transpose really reorders; a constant whose elements
//! are all equal is the broadcast of a scalar; an `iota` has one dim.

use super::{Law, Rewriter};
use dnx_ir::{Array, Op, Result, Scalar, ValueId};

/// The laws of this file.
pub const LAWS: &[Law] = &[
    Law { name: "empty", says: "an array without elements is a constant", apply: empty },
    Law { name: "splat_constant", says: "a constant of equal elements is a broadcast scalar", apply: splat_constant },
    Law { name: "iota_1d", says: "iota over many dims is the broadcast of one over a single dim", apply: iota },
    Law { name: "identity_view", says: "a view that changes nothing is its operand", apply: identity },
    Law { name: "reshape", says: "reshape(reshape(x)) = reshape(x); of a constant, a constant", apply: reshape },
    Law { name: "reshape_broadcast", says: "reshape(broadcast(x)) = broadcast(reshape(x))", apply: reshape_broadcast },
    Law { name: "transpose", says: "transpose(transpose(x)) = transpose(x)", apply: transpose },
    Law {
        name: "transpose_broadcast",
        says: "transpose(broadcast(x)) = broadcast(transpose(x))",
        apply: transpose_broadcast,
    },
    Law {
        name: "transpose_units",
        says: "a transpose that moves only dims of size 1 is a reshape",
        apply: transpose_units,
    },
    Law { name: "broadcast", says: "broadcast(broadcast(x)) = broadcast(x)", apply: broadcast },
    Law { name: "broadcast_units", says: "broadcast(x[1, n]) = broadcast(x[n])", apply: broadcast_units },
    Law { name: "slice", says: "slice(slice(x)) = slice(x)", apply: slice },
    Law { name: "slice_broadcast", says: "slice(broadcast(x)) = broadcast(slice(x))", apply: slice_broadcast },
    Law { name: "slice_pad", says: "slice(pad(x)) = slice(x) inside, the padding outside", apply: slice_pad },
    Law { name: "slice_concat", says: "slice(concat(x, y)) = slice(x) if it is all there", apply: slice_concat },
    Law { name: "pad", says: "pad(pad(x, c), c) = pad(x, c); c padded with c is c", apply: pad },
    Law {
        name: "reverse",
        says: "reverse(reverse(x)) = reverse(x), reverse(broadcast(x)) = broadcast(reverse(x))",
        apply: reverse,
    },
    Law {
        name: "concat",
        says: "concat(concat(x, y), z) = concat(x, y, z); adjacent slices and splats join",
        apply: concat,
    },
    Law {
        name: "elementwise_broadcast",
        says: "f(broadcast(x), c) = broadcast(f(x, c))",
        apply: elementwise_broadcast,
    },
];

/// Operand, result dims and map if `v` is a broadcast.
fn broadcast_of(rw: &Rewriter, v: ValueId) -> Option<(ValueId, Vec<usize>, Vec<usize>)> {
    match rw.op(v) {
        Op::Broadcast { dims, map } => Some((rw.operands(v)[0], dims.clone(), map.clone())),
        _ => None,
    }
}

fn empty(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    // Nothing is known about the results of ops that move data between devices, nor about what they wait for.
    if matches!(op, Op::Const(_) | Op::Param { .. } | Op::Reshard { .. }) || op.is_collective() || op.is_multi_result()
    {
        return Ok(None);
    }
    if v.iter().all(|&x| !rw.dims(x).contains(&0))
        && !matches!(op, Op::Slice { .. } | Op::Iota { .. } | Op::Broadcast { .. })
    {
        return Ok(None);
    }
    let ty = rw.infer(op, v)?;
    if ty.elems() > 0 {
        return Ok(None);
    }
    rw.emit(Op::Const(Array::zeros(dnx_ir::Type::new(ty.dtype, ty.dims))), &[]).map(Some)
}

fn splat_constant(rw: &mut Rewriter, op: &Op, _: &[ValueId]) -> Result<Option<ValueId>> {
    match op {
        Op::Const(a) if !a.dims().is_empty() => match a.as_splat() {
            Some(s) => rw.full(a.dims(), s).map(Some),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

fn iota(rw: &mut Rewriter, op: &Op, _: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Iota { dtype, dims, dim } = op else { return Ok(None) };
    if dims[*dim] == 1 {
        return rw.full(dims, Scalar::zero(*dtype)).map(Some);
    }
    if dims.len() == 1 {
        return Ok(None);
    }
    let line = rw.emit(Op::Iota { dtype: *dtype, dims: vec![dims[*dim]], dim: 0 }, &[])?;
    rw.emit(Op::Broadcast { dims: dims.clone(), map: vec![*dim] }, &[line]).map(Some)
}

fn identity(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let same = match op {
        Op::Reshape { dims } | Op::Broadcast { dims, .. } => dims == rw.dims(v[0]),
        Op::Transpose { perm } => perm.is_sorted(),
        Op::Slice { start, limit, stride } => {
            start.iter().all(|&s| s == 0) && limit == rw.dims(v[0]) && stride.iter().all(|&s| s == 1)
        }
        Op::Pad { low, high, interior } => {
            let between = interior.iter().zip(rw.dims(v[0])).all(|(&i, &n)| i == 0 || n < 2);
            low.iter().chain(high).all(|&n| n == 0) && between
        }
        Op::Reverse { dims } => dims.iter().all(|&d| rw.dims(v[0])[d] == 1),
        Op::Concat { .. } => v.len() == 1,
        _ => false,
    };
    Ok(same.then(|| v[0]))
}

fn reshape(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Reshape { dims } = op else { return Ok(None) };
    match rw.op(v[0]) {
        Op::Reshape { .. } => {
            let x = rw.operands(v[0])[0];
            rw.emit(op.clone(), &[x]).map(Some)
        }
        Op::Const(a) => {
            let a = a.reshaped(dims.clone());
            rw.emit(Op::Const(a), &[]).map(Some)
        }
        _ => Ok(None),
    }
}

/// Cuts two factorisations of one number into the shortest runs of equal product. Dims of size 1 at a boundary
/// belong to the run before it.
fn runs(old: &[usize], new: &[usize]) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        let (i0, j0, mut p, mut q) = (i, j, 1, 1);
        if i < old.len() {
            p = old[i];
            i += 1;
        }
        while p != q || (j == j0 && j < new.len()) {
            if q <= p && j < new.len() {
                q *= new[j];
                j += 1;
            } else {
                p *= old[i];
                i += 1;
            }
        }
        while i < old.len() && old[i] == 1 {
            i += 1;
        }
        while j < new.len() && new[j] == 1 {
            j += 1;
        }
        out.push((i0..i, j0..j));
    }
    out
}

/// Each run of dims must be all from the operand or all repeated.
fn reshape_broadcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Reshape { dims } = op else { return Ok(None) };
    let Some((x, old, map)) = broadcast_of(rw, v[0]) else { return Ok(None) };
    if old.contains(&0) {
        return Ok(None);
    }
    let own = rw.dims(x).to_vec();
    let from_operand = |d: usize| map.iter().position(|&m| m == d).is_some_and(|i| own[i] == old[d]);
    let (mut inner, mut new_map) = (Vec::new(), Vec::new());
    for (o, n) in runs(&old, dims) {
        let (kept, repeated) =
            o.filter(|&d| old[d] != 1).fold((0, 0), |(k, r), d| if from_operand(d) { (k + 1, r) } else { (k, r + 1) });
        match (kept, repeated) {
            (0, _) => {}
            (_, 0) => {
                for d in n.filter(|&d| dims[d] != 1) {
                    inner.push(dims[d]);
                    new_map.push(d);
                }
            }
            _ => return Ok(None),
        }
    }
    let x = rw.emit(Op::Reshape { dims: inner }, &[x])?;
    rw.emit(Op::Broadcast { dims: dims.clone(), map: new_map }, &[x]).map(Some)
}

fn transpose(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Transpose { perm } = op else { return Ok(None) };
    let Op::Transpose { perm: inner } = rw.op(v[0]) else { return Ok(None) };
    let perm = perm.iter().map(|&p| inner[p]).collect();
    let x = rw.operands(v[0])[0];
    rw.emit(Op::Transpose { perm }, &[x]).map(Some)
}

fn transpose_broadcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Transpose { perm } = op else { return Ok(None) };
    let Some((x, old, map)) = broadcast_of(rw, v[0]) else { return Ok(None) };
    let dims = perm.iter().map(|&p| old[p]).collect();
    // Operand dims in the order in which the transposed result has them.
    let (inner, new_map): (Vec<usize>, Vec<usize>) =
        perm.iter().enumerate().filter_map(|(to, p)| map.iter().position(|m| m == p).map(|i| (i, to))).unzip();
    let x = rw.emit(Op::Transpose { perm: inner }, &[x])?;
    rw.emit(Op::Broadcast { dims, map: new_map }, &[x]).map(Some)
}

fn transpose_units(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Transpose { perm } = op else { return Ok(None) };
    let old = rw.dims(v[0]);
    if !perm.iter().filter(|&&p| old[p] != 1).is_sorted() {
        return Ok(None);
    }
    let dims = perm.iter().map(|&p| old[p]).collect();
    rw.emit(Op::Reshape { dims }, v).map(Some)
}

fn broadcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Broadcast { dims, map } = op else { return Ok(None) };
    let Some((x, _, inner)) = broadcast_of(rw, v[0]) else { return Ok(None) };
    let map = inner.iter().map(|&i| map[i]).collect();
    rw.emit(Op::Broadcast { dims: dims.clone(), map }, &[x]).map(Some)
}

fn broadcast_units(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Broadcast { dims, map } = op else { return Ok(None) };
    let own = rw.dims(v[0]).to_vec();
    // A constant of one element stays the broadcast of a scalar.
    let constant = own.is_empty() && rw.array(v[0]).is_some();
    if !constant && own.iter().product::<usize>() == dims.iter().product::<usize>() && !dims.contains(&0) {
        return rw.emit(Op::Reshape { dims: dims.clone() }, v).map(Some);
    }
    if !own.contains(&1) {
        return Ok(None);
    }
    let (inner, map) = own.iter().zip(map).filter(|(n, _)| **n != 1).map(|(&n, &m)| (n, m)).unzip();
    let x = rw.emit(Op::Reshape { dims: inner }, v)?;
    rw.emit(Op::Broadcast { dims: dims.clone(), map }, &[x]).map(Some)
}

fn slice(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Slice { start, limit, stride } = op else { return Ok(None) };
    let Op::Slice { start: s, stride: k, .. } = rw.op(v[0]) else { return Ok(None) };
    let rank = start.len();
    let joined = Op::Slice {
        start: (0..rank).map(|d| s[d] + start[d] * k[d]).collect(),
        // The last element taken, plus one: a limit in units of the inner stride may be beyond the array.
        limit: (0..rank)
            .map(|d| match limit[d] - start[d] {
                0 => s[d] + start[d] * k[d],
                n => s[d] + (start[d] + (n - 1) / stride[d] * stride[d]) * k[d] + 1,
            })
            .collect(),
        stride: (0..rank).map(|d| stride[d] * k[d]).collect(),
    };
    let x = rw.operands(v[0])[0];
    rw.emit(joined, &[x]).map(Some)
}

fn slice_broadcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Slice { start, limit, stride } = op else { return Ok(None) };
    let Some((x, old, map)) = broadcast_of(rw, v[0]) else { return Ok(None) };
    let own = rw.dims(x).to_vec();
    let dims = (0..old.len()).map(|d| (limit[d] - start[d]).div_ceil(stride[d])).collect();
    let part = |of: &[usize], whole: &dyn Fn(usize) -> usize| -> Vec<usize> {
        map.iter().enumerate().map(|(i, &m)| if own[i] == old[m] { of[m] } else { whole(i) }).collect()
    };
    let inner = Op::Slice { start: part(start, &|_| 0), limit: part(limit, &|i| own[i]), stride: part(stride, &|_| 1) };
    let x = rw.emit(inner, &[x])?;
    rw.emit(Op::Broadcast { dims, map }, &[x]).map(Some)
}

fn slice_pad(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Slice { start, limit, stride } = op else { return Ok(None) };
    let Op::Pad { low, interior, .. } = rw.op(v[0]) else { return Ok(None) };
    let (x, value) = (rw.operands(v[0])[0], rw.operands(v[0])[1]);
    if interior.iter().any(|&i| i != 0) {
        return Ok(None);
    }
    let own = rw.dims(x);
    if (0..own.len()).any(|d| limit[d] <= low[d] || start[d] >= low[d] + own[d]) {
        let dims = (0..own.len()).map(|d| (limit[d] - start[d]).div_ceil(stride[d])).collect();
        return rw.emit(Op::Broadcast { dims, map: vec![] }, &[value]).map(Some);
    }
    if (0..own.len()).any(|d| start[d] < low[d] || limit[d] > low[d] + own[d]) {
        return Ok(None);
    }
    let inner = Op::Slice {
        start: start.iter().zip(low).map(|(s, l)| s - l).collect(),
        limit: limit.iter().zip(low).map(|(s, l)| s - l).collect(),
        stride: stride.clone(),
    };
    rw.emit(inner, &[x]).map(Some)
}

fn slice_concat(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Slice { start, limit, stride } = op else { return Ok(None) };
    let Op::Concat { dim } = *rw.op(v[0]) else { return Ok(None) };
    let mut before = 0;
    for &part in rw.operands(v[0]) {
        let n = rw.dims(part)[dim];
        if start[dim] >= before && limit[dim] <= before + n {
            let (mut start, mut limit) = (start.clone(), limit.clone());
            start[dim] -= before;
            limit[dim] -= before;
            return rw.emit(Op::Slice { start, limit, stride: stride.clone() }, &[part]).map(Some);
        }
        before += n;
    }
    Ok(None)
}

fn pad(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Pad { low, high, interior } = op else { return Ok(None) };
    if rw.dims(v[0]).contains(&0) || (rw.splat(v[0]).is_some() && rw.splat(v[0]) == rw.splat(v[1])) {
        let dims = rw.infer(op, v)?.dims;
        return rw.emit(Op::Broadcast { dims, map: vec![] }, &[v[1]]).map(Some);
    }
    let Op::Pad { low: l, high: h, interior: i } = rw.op(v[0]) else { return Ok(None) };
    if rw.operands(v[0])[1] != v[1] || interior.iter().any(|&n| n != 0) {
        return Ok(None);
    }
    let sum = |a: &[usize], b: &[usize]| a.iter().zip(b).map(|(a, b)| a + b).collect();
    let joined = Op::Pad { low: sum(low, l), high: sum(high, h), interior: i.clone() };
    let x = rw.operands(v[0])[0];
    rw.emit(joined, &[x, v[1]]).map(Some)
}

fn reverse(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Reverse { dims } = op else { return Ok(None) };
    if let Op::Reverse { dims: inner } = rw.op(v[0]) {
        let rank = rw.dims(v[0]).len();
        let dims = (0..rank).filter(|d| dims.contains(d) != inner.contains(d)).collect();
        let x = rw.operands(v[0])[0];
        return rw.emit(Op::Reverse { dims }, &[x]).map(Some);
    }
    let Some((x, old, map)) = broadcast_of(rw, v[0]) else { return Ok(None) };
    let inner = map.iter().enumerate().filter(|(_, m)| dims.contains(m)).map(|(i, _)| i).collect();
    let x = rw.emit(Op::Reverse { dims: inner }, &[x])?;
    rw.emit(Op::Broadcast { dims: old, map }, &[x]).map(Some)
}

fn concat(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Concat { dim } = *op else { return Ok(None) };
    let mut parts: Vec<ValueId> = Vec::with_capacity(v.len());
    for &x in v {
        match rw.op(x) {
            _ if rw.dims(x)[dim] == 0 => {}
            Op::Concat { dim: d } if *d == dim => parts.extend(rw.operands(x)),
            _ => parts.push(x),
        }
    }
    let mut joined: Vec<ValueId> = Vec::with_capacity(parts.len());
    for x in parts {
        match joined.last().copied() {
            Some(last) => match side_by_side(rw, last, x, dim) {
                Some((op, of)) => {
                    joined.pop();
                    let both = rw.emit(op, &[of])?;
                    joined.push(both);
                }
                None => joined.push(x),
            },
            None => joined.push(x),
        }
    }
    if joined == v || joined.is_empty() { Ok(None) } else { rw.emit(op.clone(), &joined).map(Some) }
}

/// The one view that is `a` followed by `b`: of slices that touch, of splats that are equal.
fn side_by_side(rw: &Rewriter, a: ValueId, b: ValueId, dim: usize) -> Option<(Op, ValueId)> {
    match (rw.op(a), rw.op(b)) {
        (Op::Slice { start, limit, stride }, Op::Slice { start: s, limit: l, stride: k }) => {
            let elsewhere = |d: usize| d == dim || (start[d] == s[d] && limit[d] == l[d] && stride[d] == k[d]);
            let touch = limit[dim] == s[dim] && stride[dim] == 1 && k[dim] == 1;
            if rw.operands(a) != rw.operands(b) || !touch || !(0..start.len()).all(elsewhere) {
                return None;
            }
            let mut limit = limit.clone();
            limit[dim] = l[dim];
            Some((Op::Slice { start: start.clone(), limit, stride: stride.clone() }, rw.operands(a)[0]))
        }
        (Op::Broadcast { dims, map }, Op::Broadcast { dims: e, map: m }) => {
            // Repeated along `dim` on both sides, of the same operand.
            if rw.operands(a) != rw.operands(b) || map != m || map.contains(&dim) {
                return None;
            }
            let mut dims = dims.clone();
            dims[dim] += e[dim];
            Some((Op::Broadcast { dims, map: map.clone() }, rw.operands(a)[0]))
        }
        _ => None,
    }
}

/// All operands are broadcasts: of scalars, or of arrays of the same dims in the same way.
fn elementwise_broadcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if !op.is_elementwise() {
        return Ok(None);
    }
    let mut form: Option<(Vec<usize>, Vec<usize>, Vec<usize>)> = None;
    for &x in v {
        let Some((inner, dims, map)) = broadcast_of(rw, x) else { return Ok(None) };
        let own = rw.dims(inner).to_vec();
        match &form {
            None => form = Some((own, dims, map)),
            Some((of, ..)) if of.is_empty() => form = Some((own, dims, map)),
            Some((of, _, m)) if !own.is_empty() && (of, m) != (&own, &map) => return Ok(None),
            Some(_) => {}
        }
    }
    let Some((own, dims, map)) = form else { return Ok(None) };
    let mut inner = Vec::with_capacity(v.len());
    for &x in v {
        let x = rw.operands(x)[0];
        inner.push(match rw.dims(x).is_empty() && !own.is_empty() {
            true => rw.emit(Op::Broadcast { dims: own.clone(), map: vec![] }, &[x])?,
            false => x,
        });
    }
    let y = rw.emit(op.clone(), &inner)?;
    rw.emit(Op::Broadcast { dims, map }, &[y]).map(Some)
}
