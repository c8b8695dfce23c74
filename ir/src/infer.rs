//! Output types: one rule per op, called by the builder and by the verifier, so that they can't drift.
//!
//! Each rule first decides dtype and dims; shardings then follow from the op's factors.

use crate::sharding;
use crate::{BinaryOp, ConvDims, DType, DotDims, Error, Mesh, Op, Result, Sharding, Type, UnaryOp, bail};

/// The result types of `op` on operands of these types.
///
/// # Errors
/// Says which operand or attribute is wrong and what was expected.
pub fn infer(op: &Op, operands: &[&Type], mesh: &Mesh) -> Result<Vec<Type>> {
    let types = shapes(op, operands, mesh)?;
    if operands.iter().all(|t| t.sharding.is_replicated()) {
        return Ok(types);
    }
    sharding::apply(op, operands, types, mesh)
}

fn shapes(op: &Op, operands: &[&Type], mesh: &Mesh) -> Result<Vec<Type>> {
    if let Some(n) = operand_count(op)
        && operands.len() != n
    {
        bail!("takes {n} operand{}, not {}", if n == 1 { "" } else { "s" }, operands.len());
    }
    let one = |dtype: DType, dims: &[usize]| Ok(vec![Type::new(dtype, dims.to_vec())]);
    match op {
        Op::Param { ty, .. } => Ok(vec![ty.clone()]),
        Op::Const(array) => Ok(vec![array.ty().clone()]),
        Op::Iota { dtype, dims, dim } => {
            if *dtype == DType::Bool {
                bail!("cannot count in bool");
            }
            check_dim(*dim, dims.len())?;
            one(*dtype, dims)
        }
        Op::RandomBits { dims, global } => {
            check_count("operands", operands.len(), if global.is_some() { 2 } else { 1 })?;
            expect(operands[0], "the key (operand 0)", DType::U32, &[2])?;
            match global {
                None => {}
                Some(g) => {
                    check_count("global dims", g.len(), dims.len())?;
                    expect(operands[1], "the start (operand 1)", DType::I32, &[dims.len()])?;
                    if dims.iter().zip(g).any(|(d, g)| d > g) {
                        bail!("block {dims:?} is larger than the array {g:?} it is part of");
                    }
                }
            }
            one(DType::U32, dims)
        }
        Op::AxisIndex { axis } => {
            axis_size(mesh, axis)?;
            one(DType::I32, &[])
        }
        Op::Unary(u) => {
            let x = operands[0];
            unary_accepts(*u, x.dtype)?;
            let dtype = if *u == UnaryOp::IsFinite { DType::Bool } else { x.dtype };
            one(dtype, &x.dims)
        }
        Op::Convert(to) => one(*to, &operands[0].dims),
        Op::Bitcast(to) => {
            let x = operands[0];
            if x.dtype.size() != to.size() || (x.dtype == DType::Bool) != (*to == DType::Bool) {
                bail!("{} and {to} differ in width", x.dtype);
            }
            one(*to, &x.dims)
        }
        Op::Binary(b) => {
            same_dims(operands)?;
            let (x, y) = (operands[0], operands[1]);
            if x.dtype != y.dtype {
                bail!("operands are {} and {}; convert one of them", x.dtype, y.dtype);
            }
            binary_accepts(*b, x.dtype)?;
            one(x.dtype, &x.dims)
        }
        Op::Compare(_) => {
            same_dims(operands)?;
            if operands[0].dtype != operands[1].dtype {
                bail!("operands are {} and {}; convert one of them", operands[0].dtype, operands[1].dtype);
            }
            one(DType::Bool, &operands[0].dims)
        }
        Op::Select => {
            same_dims(operands)?;
            if operands[0].dtype != DType::Bool {
                bail!("the condition (operand 0) is {}, not bool", operands[0].dtype);
            }
            if operands[1].dtype != operands[2].dtype {
                bail!("the cases are {} and {}; convert one of them", operands[1].dtype, operands[2].dtype);
            }
            one(operands[1].dtype, &operands[1].dims)
        }
        Op::Reshape { dims } => {
            let x = operands[0];
            if x.elems() != dims.iter().product::<usize>() {
                bail!("{:?} has {} elements, {dims:?} has {}", x.dims, x.elems(), dims.iter().product::<usize>());
            }
            one(x.dtype, dims)
        }
        Op::Transpose { perm } => {
            let x = operands[0];
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if sorted != (0..x.rank()).collect::<Vec<_>>() {
                bail!("{perm:?} is not a permutation of the {} dims of {:?}", x.rank(), x.dims);
            }
            one(x.dtype, &perm.iter().map(|&p| x.dims[p]).collect::<Vec<_>>())
        }
        Op::Broadcast { dims, map } => {
            let x = operands[0];
            check_count("entries in map", map.len(), x.rank())?;
            increasing("map", map, dims.len())?;
            for (i, &m) in map.iter().enumerate() {
                if x.dims[i] != dims[m] && x.dims[i] != 1 {
                    bail!(
                        "operand dim {i} has size {}, result dim {m} has {}; only size 1 expands",
                        x.dims[i],
                        dims[m]
                    );
                }
            }
            one(x.dtype, dims)
        }
        Op::Slice { start, limit, stride } => {
            let x = operands[0];
            for v in [start, limit, stride] {
                check_count("entries per attribute", v.len(), x.rank())?;
            }
            let mut dims = Vec::with_capacity(x.rank());
            for d in 0..x.rank() {
                let (s, l, k) = (start[d], limit[d], stride[d]);
                if s > l || l > x.dims[d] || k == 0 {
                    bail!("{s}..{l} by {k} is no range of dim {d} of {:?}", x.dims);
                }
                dims.push((l - s).div_ceil(k));
            }
            one(x.dtype, &dims)
        }
        Op::Pad { low, high, interior } => {
            let x = operands[0];
            expect(operands[1], "the padding value (operand 1)", x.dtype, &[])?;
            for v in [low, high, interior] {
                check_count("entries per attribute", v.len(), x.rank())?;
            }
            let dims: Vec<usize> = (0..x.rank())
                .map(|d| low[d] + high[d] + x.dims[d] + x.dims[d].saturating_sub(1) * interior[d])
                .collect();
            one(x.dtype, &dims)
        }
        Op::Concat { dim } => {
            let Some(&first) = operands.first() else { bail!("takes at least one operand") };
            check_dim(*dim, first.rank())?;
            let mut dims = first.dims.clone();
            dims[*dim] = 0;
            for (i, x) in operands.iter().enumerate() {
                if x.dtype != first.dtype || x.rank() != first.rank() {
                    bail!("operand {i} is {x}, operand 0 is {first}");
                }
                for d in 0..dims.len() {
                    if d == *dim {
                        dims[d] += x.dims[d];
                    } else if x.dims[d] != dims[d] {
                        bail!("operand {i} has size {} in dim {d}, operand 0 has {}", x.dims[d], dims[d]);
                    }
                }
            }
            one(first.dtype, &dims)
        }
        Op::Reverse { dims } => {
            increasing("dims", dims, operands[0].rank())?;
            one(operands[0].dtype, &operands[0].dims)
        }
        Op::DynamicSlice { sizes } => {
            let x = operands[0];
            expect(operands[1], "the start (operand 1)", DType::I32, &[x.rank()])?;
            fits("sizes", sizes, &x.dims)?;
            one(x.dtype, sizes)
        }
        Op::DynamicUpdateSlice => {
            let (x, u) = (operands[0], operands[1]);
            expect(operands[2], "the start (operand 2)", DType::I32, &[x.rank()])?;
            if u.dtype != x.dtype {
                bail!("the update is {}, the operand {}", u.dtype, x.dtype);
            }
            fits("the update", &u.dims, &x.dims)?;
            one(x.dtype, &x.dims)
        }
        Op::Reduce { dims, .. } => {
            let x = operands[0];
            increasing("dims", dims, x.rank())?;
            if x.dtype == DType::Bool {
                bail!("cannot reduce bool; convert it first");
            }
            one(x.dtype, &without(&x.dims, dims))
        }
        Op::Argmax { dim } => {
            let x = operands[0];
            check_dim(*dim, x.rank())?;
            if x.dtype == DType::Bool || x.dims[*dim] == 0 {
                bail!("no maximum along dim {dim} of {x}");
            }
            one(DType::I32, &without(&x.dims, &[*dim]))
        }
        Op::Dot { dims, out } => dot(dims, *out, operands[0], operands[1]).map(|t| vec![t]),
        Op::Conv { dims, out } => conv(dims, *out, operands[0], operands[1]).map(|t| vec![t]),
        Op::Take { dim } => {
            let (x, i) = (operands[0], operands[1]);
            check_dim(*dim, x.rank())?;
            check_indices(i)?;
            if x.dims[*dim] == 0 {
                bail!("nothing to take along dim {dim} of {x}");
            }
            one(x.dtype, &taken(&x.dims, *dim, &i.dims))
        }
        Op::ScatterAdd { dim } => {
            let (x, i, u) = (operands[0], operands[1], operands[2]);
            check_dim(*dim, x.rank())?;
            check_indices(i)?;
            if x.dtype == DType::Bool {
                bail!("cannot add bool");
            }
            expect(u, "the updates (operand 2)", x.dtype, &taken(&x.dims, *dim, &i.dims))?;
            one(x.dtype, &x.dims)
        }
        Op::Reshard { sharding } => {
            check_sharding(sharding, &operands[0].dims, mesh)?;
            Ok(vec![Type::new(operands[0].dtype, operands[0].dims.clone()).with_sharding(sharding.clone())])
        }
        Op::AllReduce { axes, .. } => {
            if axes.is_empty() {
                bail!("names no mesh axis");
            }
            for a in axes {
                axis_size(mesh, a)?;
            }
            numeric(operands[0])?;
            one(operands[0].dtype, &operands[0].dims)
        }
        Op::AllGather { axis, dim } => {
            let x = operands[0];
            check_dim(*dim, x.rank())?;
            let mut dims = x.dims.clone();
            dims[*dim] *= axis_size(mesh, axis)?;
            one(x.dtype, &dims)
        }
        Op::ReduceScatter { axis, dim } => {
            let x = operands[0];
            numeric(x)?;
            one(x.dtype, &split_dim(x, *dim, axis_size(mesh, axis)?)?)
        }
        Op::AllToAll { axis, split, concat } => {
            let (x, n) = (operands[0], axis_size(mesh, axis)?);
            check_dim(*concat, x.rank())?;
            let mut dims = split_dim(x, *split, n)?;
            dims[*concat] *= n;
            one(x.dtype, &dims)
        }
        Op::Ppermute { axis, pairs } => {
            let n = axis_size(mesh, axis)?;
            for (i, &(from, to)) in pairs.iter().enumerate() {
                if from >= n || to >= n {
                    bail!("{from}->{to} names a device beyond the {n} of axis {axis}");
                }
                if pairs[..i].iter().any(|&(f, t)| f == from || t == to) {
                    bail!("{from}->{to} uses a device twice on one side");
                }
            }
            one(operands[0].dtype, &operands[0].dims)
        }
        Op::Call { func, .. } | Op::Composite { func, .. } => {
            let params = func.param_types();
            check_count("arguments", operands.len(), params.len())?;
            for (i, (given, wanted)) in operands.iter().zip(&params).enumerate() {
                if given != wanted {
                    bail!("argument {i} of @{} is {given}, not {wanted}", func.name);
                }
            }
            Ok(func.result_types().into_iter().cloned().collect())
        }
        Op::OptimizationBarrier => Ok(operands.iter().map(|&t| t.clone()).collect()),
    }
}

/// The number of operands of ops that have a fixed one.
fn operand_count(op: &Op) -> Option<usize> {
    Some(match op {
        Op::Param { .. } | Op::Const(_) | Op::Iota { .. } | Op::AxisIndex { .. } => 0,
        Op::RandomBits { .. } | Op::Concat { .. } => return None,
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier => return None,
        Op::Binary(_) | Op::Compare(_) | Op::Pad { .. } | Op::DynamicSlice { .. } => 2,
        Op::Dot { .. } | Op::Conv { .. } | Op::Take { .. } => 2,
        Op::Select | Op::DynamicUpdateSlice | Op::ScatterAdd { .. } => 3,
        Op::Unary(_) | Op::Convert(_) | Op::Bitcast(_) | Op::Argmax { .. } | Op::Reduce { .. } => 1,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } | Op::Reverse { .. } => 1,
        Op::Reshard { .. } | Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => 1,
        Op::AllToAll { .. } | Op::Ppermute { .. } => 1,
    })
}

fn unary_accepts(op: UnaryOp, dtype: DType) -> Result<()> {
    use UnaryOp::*;
    let ok = match op {
        StopGradient => true,
        Neg | Abs | Sign => dtype != DType::Bool && (op == Neg || dtype != DType::U32),
        Not => !dtype.is_float(),
        Exp | Log | Sin | Cos | Tanh | Erf | Sqrt | Rsqrt | Floor | IsFinite => dtype.is_float(),
    };
    if ok { Ok(()) } else { Err(Error::new(format!("is not defined on {dtype}"))) }
}

fn binary_accepts(op: BinaryOp, dtype: DType) -> Result<()> {
    use BinaryOp::*;
    let ok = match op {
        Add | Sub | Mul | Div | Max | Min | Rem => dtype != DType::Bool,
        Pow => dtype.is_float(),
        And | Or | Xor => !dtype.is_float(),
        Shl | Shr => dtype.is_int(),
    };
    if ok { Ok(()) } else { Err(Error::new(format!("is not defined on {dtype}"))) }
}

fn dot(d: &DotDims, out: DType, x: &Type, y: &Type) -> Result<Type> {
    check_count("right batch dims", d.rhs_batch.len(), d.lhs_batch.len())?;
    check_count("right contracted dims", d.rhs_contract.len(), d.lhs_contract.len())?;
    if x.dtype != y.dtype {
        bail!("operands are {} and {}; convert one of them", x.dtype, y.dtype);
    }
    numeric(x)?;
    accumulates(x.dtype, out)?;
    for (side, t, batch, contract) in
        [("left", x, &d.lhs_batch, &d.lhs_contract), ("right", y, &d.rhs_batch, &d.rhs_contract)]
    {
        let mut used = vec![false; t.rank()];
        for &dim in batch.iter().chain(contract) {
            if dim >= t.rank() || std::mem::replace(&mut used[dim], true) {
                bail!("dim {dim} of the {side} operand {:?} does not exist or is named twice", t.dims);
            }
        }
    }
    let pairs = |what: &str, l: &[usize], r: &[usize]| {
        for (&a, &b) in l.iter().zip(r) {
            if x.dims[a] != y.dims[b] {
                bail!("{what} dims differ: left dim {a} has size {}, right dim {b} has {}", x.dims[a], y.dims[b]);
            }
        }
        Ok(())
    };
    pairs("batch", &d.lhs_batch, &d.rhs_batch)?;
    pairs("contracted", &d.lhs_contract, &d.rhs_contract)?;
    let mut dims: Vec<usize> = d.lhs_batch.iter().map(|&i| x.dims[i]).collect();
    dims.extend(d.lhs_free(x.rank()).iter().map(|&i| x.dims[i]));
    dims.extend(d.rhs_free(y.rank()).iter().map(|&i| y.dims[i]));
    Ok(Type::new(out, dims))
}

fn conv(c: &ConvDims, out: DType, x: &Type, w: &Type) -> Result<Type> {
    let spatial = c.stride.len();
    check_count("padding entries", c.padding.len(), spatial)?;
    check_count("lhs_dilation entries", c.lhs_dilation.len(), spatial)?;
    check_count("rhs_dilation entries", c.rhs_dilation.len(), spatial)?;
    if x.rank() != spatial + 2 || w.rank() != spatial + 2 {
        bail!("with {spatial} spatial dims the operands have {} dims, not {x} and {w}", spatial + 2);
    }
    if x.dtype != w.dtype || !x.dtype.is_float() {
        bail!("operands must be floats of one dtype, not {} and {}", x.dtype, w.dtype);
    }
    accumulates(x.dtype, out)?;
    let (channels, inner, features) = (x.dims[spatial + 1], w.dims[spatial], w.dims[spatial + 1]);
    if c.groups == 0 || channels != inner * c.groups || features % c.groups != 0 {
        bail!("{} groups do not divide {channels} input channels into {inner}, or {features} features", c.groups);
    }
    let mut dims = vec![x.dims[0]];
    for d in 0..spatial {
        let (s, k) = (x.dims[d + 1], w.dims[d]);
        if c.stride[d] == 0 || c.lhs_dilation[d] == 0 || c.rhs_dilation[d] == 0 || s == 0 || k == 0 {
            bail!("spatial dim {d}: sizes, stride and dilations must be positive");
        }
        let input = ((s - 1) * c.lhs_dilation[d] + 1) as i64 + c.padding[d].0 + c.padding[d].1;
        let kernel = ((k - 1) * c.rhs_dilation[d] + 1) as i64;
        if input < kernel {
            bail!("spatial dim {d}: the padded input has size {input}, the dilated kernel {kernel}");
        }
        dims.push((input - kernel) as usize / c.stride[d] + 1);
    }
    dims.push(features);
    Ok(Type::new(out, dims))
}

fn accumulates(from: DType, out: DType) -> Result<()> {
    if from == out || (from.is_float() && out.is_float() && from.size() < out.size()) {
        return Ok(());
    }
    Err(Error::new(format!("operands of {from} do not give {out}: only the same or a wider float")))
}

fn numeric(t: &Type) -> Result<()> {
    if t.dtype == DType::Bool { Err(Error::new("is not defined on bool")) } else { Ok(()) }
}

fn check_indices(t: &Type) -> Result<()> {
    if t.dtype.is_int() { Ok(()) } else { Err(Error::new(format!("indices are {}, not i32 or u32", t.dtype))) }
}

fn check_dim(dim: usize, rank: usize) -> Result<()> {
    if dim < rank { Ok(()) } else { Err(Error::new(format!("dim {dim} is beyond rank {rank}"))) }
}

fn check_count(what: &str, given: usize, wanted: usize) -> Result<()> {
    if given == wanted { Ok(()) } else { Err(Error::new(format!("has {given} {what}, not {wanted}"))) }
}

fn expect(t: &Type, what: &str, dtype: DType, dims: &[usize]) -> Result<()> {
    if t.dtype == dtype && t.dims == dims {
        return Ok(());
    }
    Err(Error::new(format!("{what} is {t}, not {}", Type::new(dtype, dims.to_vec()))))
}

fn same_dims(operands: &[&Type]) -> Result<()> {
    for (i, t) in operands.iter().enumerate() {
        if t.dims != operands[0].dims {
            bail!("operand {i} has dims {:?}, operand 0 has {:?}; broadcast one of them", t.dims, operands[0].dims);
        }
    }
    Ok(())
}

fn increasing(what: &str, list: &[usize], rank: usize) -> Result<()> {
    if list.iter().any(|&d| d >= rank) || list.windows(2).any(|w| w[0] >= w[1]) {
        bail!("{what} {list:?} are not increasing dims below rank {rank}");
    }
    Ok(())
}

fn fits(what: &str, inner: &[usize], outer: &[usize]) -> Result<()> {
    if inner.len() != outer.len() || inner.iter().zip(outer).any(|(i, o)| i > o) {
        bail!("{what} {inner:?} do not fit into {outer:?}");
    }
    Ok(())
}

fn axis_size(mesh: &Mesh, axis: &str) -> Result<usize> {
    mesh.size(axis).ok_or_else(|| {
        let names: Vec<&str> = mesh.axes.iter().map(|(n, _)| &**n).collect();
        Error::new(format!("the mesh has no axis {axis:?}; it has {names:?}"))
    })
}

fn split_dim(x: &Type, dim: usize, parts: usize) -> Result<Vec<usize>> {
    check_dim(dim, x.rank())?;
    if !x.dims[dim].is_multiple_of(parts) {
        bail!("dim {dim} of {x} does not split into {parts} equal parts");
    }
    let mut dims = x.dims.clone();
    dims[dim] /= parts;
    Ok(dims)
}

fn without(dims: &[usize], gone: &[usize]) -> Vec<usize> {
    dims.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, &d)| d).collect()
}

fn taken(dims: &[usize], dim: usize, indices: &[usize]) -> Vec<usize> {
    [&dims[..dim], indices, &dims[dim + 1..]].concat()
}

/// Checks that a sharding names axes of the mesh, each once, and divides the dims.
pub fn check_sharding(s: &Sharding, dims: &[usize], mesh: &Mesh) -> Result<()> {
    if !s.dims.is_empty() && s.dims.len() != dims.len() {
        bail!("the sharding has {} dims, the value {}", s.dims.len(), dims.len());
    }
    if *s != Sharding::new(s.dims.clone(), s.unreduced.clone()) {
        bail!("the sharding is not in normal form; make it with Sharding::new");
    }
    let mut seen: Vec<&str> = Vec::new();
    for axis in s.dims.iter().flatten().chain(&s.unreduced) {
        axis_size(mesh, axis)?;
        if seen.contains(&&**axis) {
            bail!("mesh axis {axis} is used twice");
        }
        seen.push(axis);
    }
    for (d, axes) in s.dims.iter().enumerate() {
        let parts: usize = axes.iter().map(|a| mesh.size(a).unwrap_or(1)).product();
        if !dims[d].is_multiple_of(parts) {
            bail!("dim {d} of size {} does not split into {parts} parts over {}", dims[d], axes.join(", "));
        }
    }
    Ok(())
}
