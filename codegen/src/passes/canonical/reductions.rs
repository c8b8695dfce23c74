//! Laws of reductions, contractions and indexing.

use super::{Law, Rewriter};
use dnx_ir::{BinaryOp, DotDims, Op, ReduceKind, Result, Scalar, ValueId};

/// The laws of this file.
pub const LAWS: &[Law] = &[
    Law { name: "reduce_nothing", says: "a reduction over dims of size 1 is a reshape", apply: reduce_nothing },
    Law { name: "reduce_no_elements", says: "a sum over no elements is 0", apply: reduce_no_elements },
    Law {
        name: "reduce_broadcast",
        says: "sum(broadcast(x), n times) = x * n, max(broadcast(x)) = x",
        apply: reduce_broadcast,
    },
    Law { name: "reduce_transpose", says: "reduce(transpose(x)) = transpose(reduce(x))", apply: reduce_transpose },
    Law {
        name: "dot_transpose",
        says: "dot(transpose(x), y) = dot(x, y) with other dimension numbers",
        apply: dot_transpose,
    },
    Law { name: "conv_pointwise", says: "a convolution with a kernel of one tap is a dot", apply: conv_pointwise },
    Law { name: "scatter_nothing", says: "scatter_add(x, i, 0) = x", apply: scatter_nothing },
    Law { name: "dynamic_slice_known", says: "dynamic_slice at a constant is a slice", apply: dynamic_slice_known },
];

fn reduce_nothing(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let gone: &[usize] = match op {
        Op::Reduce { dims, .. } => dims,
        _ => return Ok(None),
    };
    let own = rw.dims(v[0]);
    if gone.iter().any(|&d| own[d] != 1) {
        return Ok(None);
    }
    let dims = own.iter().enumerate().filter(|(d, _)| !gone.contains(d)).map(|(_, &n)| n).collect();
    rw.emit(Op::Reshape { dims }, v).map(Some)
}

fn reduce_no_elements(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let over_nothing = match op {
        Op::Reduce { kind: ReduceKind::Sum, dims } => dims.iter().any(|&d| rw.dims(v[0])[d] == 0),
        Op::Dot { dims, .. } => dims.lhs_contract.iter().any(|&d| rw.dims(v[0])[d] == 0),
        _ => false,
    };
    if !over_nothing {
        return Ok(None);
    }
    let ty = rw.infer(op, v)?;
    rw.full(&ty.dims, Scalar::zero(ty.dtype)).map(Some)
}

fn reduce_broadcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Reduce { kind, dims: gone } = op else { return Ok(None) };
    let Op::Broadcast { dims, map } = rw.op(v[0]) else { return Ok(None) };
    let (dims, map, x) = (dims.clone(), map.clone(), rw.operands(v[0])[0]);
    let own = rw.dims(x).to_vec();
    let from_operand = |d: usize| map.iter().position(|&m| m == d).filter(|&i| own[i] == dims[d]);
    let times: usize = gone.iter().filter(|&&d| from_operand(d).is_none()).map(|&d| dims[d]).product();
    let factor = Scalar::from_f64(rw.dtype(x), times as f64);
    if times < 2 || (rw.dtype(x).is_float() && factor.to_f64() != times as f64) {
        return Ok(None);
    }
    let inner: Vec<usize> = (0..own.len()).filter(|&i| gone.contains(&map[i]) && own[i] == dims[map[i]]).collect();
    let rest: Vec<usize> = (0..own.len()).filter(|i| !inner.contains(i)).collect();
    // An operand dim of size 1 that is repeated and summed would need a reshape first; `broadcast_units` makes it.
    if rest.iter().any(|&i| gone.contains(&map[i])) {
        return Ok(None);
    }
    let mut y = rw.emit(Op::Reduce { kind: *kind, dims: inner }, &[x])?;
    if *kind == ReduceKind::Sum {
        let own = rw.dims(y).to_vec();
        let factor = rw.full(&own, factor)?;
        y = rw.emit(Op::Binary(BinaryOp::Mul), &[y, factor])?;
    }
    let kept: Vec<usize> = (0..dims.len()).filter(|d| !gone.contains(d)).collect();
    let map = rest.iter().map(|&i| kept.iter().position(|&d| d == map[i]).expect("kept")).collect();
    rw.emit(Op::Broadcast { dims: kept.iter().map(|&d| dims[d]).collect(), map }, &[y]).map(Some)
}

fn reduce_transpose(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Reduce { kind, dims: gone } = op else { return Ok(None) };
    let Op::Transpose { perm } = rw.op(v[0]) else { return Ok(None) };
    let mut inner: Vec<usize> = gone.iter().map(|&d| perm[d]).collect();
    inner.sort_unstable();
    let kept: Vec<usize> = (0..perm.len()).filter(|d| !inner.contains(d)).collect();
    let outer = (0..perm.len())
        .filter(|d| !gone.contains(d))
        .map(|d| kept.iter().position(|&k| k == perm[d]).expect("kept"))
        .collect();
    let x = rw.operands(v[0])[0];
    let y = rw.emit(Op::Reduce { kind: *kind, dims: inner }, &[x])?;
    rw.emit(Op::Transpose { perm: outer }, &[y]).map(Some)
}

/// The order of batch and contracted dims is free; the free dims must stay in order, for it is that of the result.
fn dot_transpose(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Dot { dims, out } = op else { return Ok(None) };
    let read_through = |x: ValueId, batch: &[usize], contract: &[usize], free: &[usize]| {
        let Op::Transpose { perm } = rw.op(x) else { return None };
        let through = |d: &[usize]| d.iter().map(|&d| perm[d]).collect::<Vec<_>>();
        through(free).is_sorted().then(|| (rw.operands(x)[0], through(batch), through(contract)))
    };
    let (lhs_free, rhs_free) = (dims.lhs_free(rw.dims(v[0]).len()), dims.rhs_free(rw.dims(v[1]).len()));
    let lhs = read_through(v[0], &dims.lhs_batch, &dims.lhs_contract, &lhs_free);
    let rhs = read_through(v[1], &dims.rhs_batch, &dims.rhs_contract, &rhs_free);
    if lhs.is_none() && rhs.is_none() {
        return Ok(None);
    }
    let (x, lhs_batch, lhs_contract) = lhs.unwrap_or((v[0], dims.lhs_batch.clone(), dims.lhs_contract.clone()));
    let (y, rhs_batch, rhs_contract) = rhs.unwrap_or((v[1], dims.rhs_batch.clone(), dims.rhs_contract.clone()));
    let dims = DotDims { lhs_batch, rhs_batch, lhs_contract, rhs_contract };
    rw.emit(Op::Dot { dims, out: *out }, &[x, y]).map(Some)
}

fn conv_pointwise(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Conv { dims, out } = op else { return Ok(None) };
    let (input, kernel) = (rw.dims(v[0]), rw.dims(v[1]));
    let spatial = dims.stride.len();
    let plain = (0..spatial)
        .all(|d| kernel[d] == 1 && dims.stride[d] == 1 && dims.padding[d] == (0, 0) && dims.lhs_dilation[d] == 1);
    if !plain || dims.groups != 1 {
        return Ok(None);
    }
    let (rank, matrix) = (input.len(), kernel[spatial..].to_vec());
    let w = rw.emit(Op::Reshape { dims: matrix }, &[v[1]])?;
    let dims = DotDims { lhs_contract: vec![rank - 1], rhs_contract: vec![0], ..DotDims::default() };
    rw.emit(Op::Dot { dims, out: *out }, &[v[0], w]).map(Some)
}

fn scatter_nothing(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::ScatterAdd { .. } = op else { return Ok(None) };
    let nothing = rw.dims(v[2]).contains(&0) || rw.splat(v[2]).is_some_and(|s| s.to_f64() == 0.0);
    Ok(nothing.then(|| v[0]))
}

fn dynamic_slice_known(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::DynamicSlice { sizes } = op else { return Ok(None) };
    let at: Vec<f64> = match (rw.array(v[1]), rw.splat(v[1])) {
        (_, Some(s)) => vec![s.to_f64(); sizes.len()],
        (Some(a), None) => a.to_f64_vec(),
        (None, None) => return Ok(None),
    };
    let own = rw.dims(v[0]);
    let start: Vec<usize> = (0..sizes.len()).map(|d| (at[d].max(0.0) as usize).min(own[d] - sizes[d])).collect();
    let limit = start.iter().zip(sizes).map(|(s, n)| s + n).collect();
    rw.emit(Op::Slice { start, limit, stride: vec![1; sizes.len()] }, &v[..1]).map(Some)
}
