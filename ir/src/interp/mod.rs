//! The reference interpreter: what the ops mean, in code. It is not fast; it is what everything else is
//! tested against.
//!
//! * [`Precision::F32`] computes in the dtypes of the program: every op's result is rounded to its dtype, sums are
//!   accumulated wider ([`reduce`] says how). [`Precision::F64`] keeps every float in `f64` and rounds nothing: a
//!   program's derivatives can be compared with differences in it.
//! * [`eval`] runs a program on one device; shardings are ignored there, since the types of a global program are
//!   those of the whole values. [`eval_mesh`] runs a per-device program on all devices of its mesh in lockstep,
//!   collectives included, in a fixed order.
//! * [`eval_with`] shows every value as it is made; [`first_non_finite`] names the op where the first NaN or infinity
//!   is born.

mod collective;
mod data;
mod elementwise;
mod movement;
mod non_finite;
mod reduce;
pub mod scalar;
#[cfg(test)]
mod tests;

use crate::{Array, Func, Mesh, Node, NodeId, Op, Result, bail};
use data::{Data, Value};
pub use non_finite::{NonFinite, Range, first_non_finite};

/// How floats are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// In the program's dtypes.
    F32,
    /// All in `f64`, nothing rounded; float results come back as `f64` arrays, and arguments may be any float.
    F64,
}

/// The results of a function on one device.
///
/// # Errors
/// If an argument does not have its parameter's type, or the program has collectives over several devices.
pub fn eval(func: &Func, args: &[Array], p: Precision) -> Result<Vec<Array>> {
    run_arrays(func, &[args.to_vec()], p, &mut |_, _, _, _| {}).map(|mut r| r.remove(0))
}

/// As [`eval`]; `observe` is called after every node (parameters too) with the node's results. Callees' nodes come
/// with the callee, before the call itself.
///
/// # Errors
/// As [`eval`].
pub fn eval_with(
    func: &Func,
    args: &[Array],
    p: Precision,
    observe: &mut dyn FnMut(&Func, NodeId, &[Array]),
) -> Result<Vec<Array>> {
    let mut show = |func: &Func, id: NodeId, _: &[&Value], results: &[&Value]| {
        observe(func, id, &results.iter().map(|v| v.to_array()).collect::<Vec<_>>());
    };
    run_arrays(func, &[args.to_vec()], p, &mut show).map(|mut r| r.remove(0))
}

/// The results, per device, of a per-device program on every device of its mesh.
///
/// # Errors
/// If there is not one list of arguments per device, or an argument does not have its parameter's type.
pub fn eval_mesh(func: &Func, args_per_device: &[Vec<Array>], p: Precision) -> Result<Vec<Vec<Array>>> {
    let n = func.mesh.devices();
    if args_per_device.len() != n {
        bail!("@{} runs on {n} devices; arguments are given for {}", func.name, args_per_device.len());
    }
    run_arrays(func, args_per_device, p, &mut |_, _, _, _| {})
}

/// Sees a node's operands and results on device 0.
type Observer<'a> = &'a mut dyn FnMut(&Func, NodeId, &[&Value], &[&Value]);

fn run_arrays(func: &Func, args: &[Vec<Array>], p: Precision, observe: Observer) -> Result<Vec<Vec<Array>>> {
    let types = func.param_types();
    let mut values = Vec::with_capacity(args.len());
    for args in args {
        if args.len() != types.len() {
            bail!("@{} takes {} arguments, not {}", func.name, types.len(), args.len());
        }
        let mut own = Vec::with_capacity(args.len());
        for ((array, ty), param) in args.iter().zip(&types).zip(&func.params) {
            let value = Value::from_array(array, ty, p);
            own.push(value.map_err(|e| e.at_op(&format!("argument {:?} of @{}", param.name, func.name)))?);
        }
        values.push(own);
    }
    let results = run(func, values, p, observe)?;
    Ok(results.iter().map(|device| device.iter().map(Value::to_array).collect()).collect())
}

/// Runs a function on `args.len()` devices in lockstep.
fn run(func: &Func, args: Vec<Vec<Value>>, p: Precision, observe: Observer) -> Result<Vec<Vec<Value>>> {
    let devices = args.len();
    let mut last_use = vec![0; func.values.len()];
    for (id, node) in func.iter() {
        for v in node.operands.iter().chain(&node.results) {
            last_use[v.index()] = id.index();
        }
    }
    for r in &func.results {
        last_use[r.index()] = usize::MAX;
    }
    // Per value, one per device while it is alive.
    let mut alive: Vec<Vec<Value>> = vec![Vec::new(); func.values.len()];
    for (id, node) in func.iter() {
        let at = |d: usize| -> Vec<&Value> { node.operands.iter().map(|v| &alive[v.index()][d]).collect() };
        let results = match &node.op {
            Op::Call { func: callee, .. } | Op::Composite { func: callee, .. } => {
                let args = (0..devices).map(|d| at(d).into_iter().cloned().collect()).collect();
                run(callee, args, p, &mut *observe)?
            }
            op if op.is_collective() || matches!(op, Op::AxisIndex { .. }) => {
                if devices != func.mesh.devices() {
                    let message =
                        format!("is of a per-device program on {} devices: use eval_mesh", func.mesh.devices());
                    return Err(crate::Error::new(message).at_op(op.name()).at_loc(&node.loc));
                }
                let x: Vec<Value> = (0..devices).flat_map(at).cloned().collect();
                exchange(op, &func.mesh, &x, p).into_iter().map(|v| vec![v]).collect()
            }
            op => (0..devices).map(|d| local(op, &args[d], func, node, &at(d), p)).collect(),
        };
        observe(func, id, &at(0), &results[0].iter().collect::<Vec<_>>());
        for v in node.operands.iter().filter(|v| last_use[v.index()] == id.index()) {
            alive[v.index()] = Vec::new();
        }
        for device in results {
            for (v, value) in node.results.iter().zip(device) {
                if last_use[v.index()] > id.index() {
                    alive[v.index()].push(value);
                }
            }
        }
    }
    Ok((0..devices).map(|d| func.results.iter().map(|r| alive[r.index()][d].clone()).collect()).collect())
}

/// A collective, or the coordinate of each device.
fn exchange(op: &Op, mesh: &Mesh, x: &[Value], p: Precision) -> Vec<Value> {
    match op {
        Op::AllReduce { kind, axes } => collective::all_reduce(mesh, *kind, axes, x, p),
        Op::AllGather { axis, dim } => collective::all_gather(mesh, axis, *dim, x, p),
        Op::ReduceScatter { axis, dim } => collective::reduce_scatter(mesh, axis, *dim, x, p),
        Op::AllToAll { axis, split, concat } => collective::all_to_all(mesh, axis, *split, *concat, x, p),
        Op::Ppermute { axis, pairs } => collective::ppermute(mesh, axis, pairs, x, p),
        Op::AxisIndex { axis } => {
            let index = |d| mesh.coordinate(d, axis).expect("infer checked the axis") as i32;
            let value = |d| Value::new(crate::DType::I32, &[], Data::I32(vec![index(d)]));
            (0..mesh.devices()).map(value).collect()
        }
        other => unreachable!("{} exchanges nothing", other.name()),
    }
}

/// An op that needs nothing from other devices.
fn local(op: &Op, args: &[Value], func: &Func, node: &Node, x: &[&Value], p: Precision) -> Vec<Value> {
    let ty = |i: usize| func.ty(node.results[i]);
    let one = match op {
        Op::Param { index, .. } => args[*index].clone(),
        Op::Const(array) => Value::from_array(array, array.ty(), p).expect("an array has its own type"),
        Op::Iota { dtype, dims, dim } => elementwise::iota(*dtype, dims, *dim, p),
        Op::RandomBits { dims, global } => elementwise::random_bits(x[0], x.get(1).copied(), dims, global.as_deref()),
        Op::Unary(u) => elementwise::unary(*u, x[0], p),
        Op::Convert(to) => elementwise::convert(*to, x[0], p),
        Op::Bitcast(to) => elementwise::bitcast(*to, x[0], p),
        Op::Binary(b) => elementwise::binary(*b, x[0], x[1], p),
        Op::Compare(c) => elementwise::compare(*c, x[0], x[1]),
        Op::Select => elementwise::select(x[0], x[1], x[2]),
        Op::Reshape { dims } => movement::reshape(x[0], dims),
        Op::Transpose { perm } => movement::transpose(x[0], perm),
        Op::Broadcast { dims, map } => movement::broadcast(x[0], dims, map),
        Op::Slice { start, stride, .. } => movement::slice(x[0], start, stride, &ty(0).dims),
        Op::Pad { low, interior, .. } => movement::pad(x[0], x[1], low, interior, &ty(0).dims),
        Op::Concat { dim } => movement::concat(x, *dim, &ty(0).dims, p),
        Op::Reverse { dims } => movement::reverse(x[0], dims),
        Op::DynamicSlice { sizes } => movement::dynamic_slice(x[0], x[1], sizes),
        Op::DynamicUpdateSlice => movement::dynamic_update_slice(x[0], x[1], x[2]),
        Op::Reduce { kind, dims } => reduce::reduce(*kind, x[0], dims, p),
        Op::Argmax { dim } => reduce::argmax(x[0], *dim),
        Op::Dot { dims, out } => reduce::dot(dims, *out, x[0], x[1], &ty(0).dims, p),
        Op::Conv { dims, out } => reduce::conv(dims, *out, x[0], x[1], &ty(0).dims, p),
        Op::Take { dim } => movement::take(x[0], x[1], *dim),
        Op::ScatterAdd { dim } => movement::scatter_add(x[0], x[1], x[2], *dim, p),
        Op::Reshard { .. } => x[0].clone(),
        Op::OptimizationBarrier => return x.iter().map(|&v| v.clone()).collect(),
        Op::AxisIndex { .. } | Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => {
            unreachable!("run as an exchange")
        }
        Op::AllToAll { .. } | Op::Ppermute { .. } => unreachable!("run as an exchange"),
        Op::Call { .. } | Op::Composite { .. } => unreachable!("run as a function"),
    };
    debug_assert_eq!((one.dtype, &one.dims), (ty(0).dtype, &ty(0).dims), "{}", op.name());
    vec![one]
}
