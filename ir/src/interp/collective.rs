//! Collectives over simulated devices: every device's operand in, every device's result out. The devices of a
//! group are taken in order of their coordinate, and sums are made in that order.

use super::data::{Data, Value};
use super::{Precision, movement, reduce};
use crate::{AxisName, Mesh, ReduceKind};

/// The devices that differ from `device` only along `axes`, `device` among them, in order of device id.
fn group(mesh: &Mesh, device: usize, axes: &[AxisName]) -> Vec<usize> {
    let fixed: Vec<&AxisName> = mesh.axes.iter().map(|(n, _)| n).filter(|n| !axes.contains(n)).collect();
    (0..mesh.devices()).filter(|&d| fixed.iter().all(|a| mesh.coordinate(d, a) == mesh.coordinate(device, a))).collect()
}

/// For every device what `f` makes of its group's operands and its own place among them.
fn each(mesh: &Mesh, axes: &[AxisName], operands: &[Value], f: impl Fn(&[&Value], usize) -> Value) -> Vec<Value> {
    let one = |device| {
        let members = group(mesh, device, axes);
        let place = members.iter().position(|&m| m == device).expect("a device is in its own group");
        f(&members.iter().map(|&m| &operands[m]).collect::<Vec<_>>(), place)
    };
    (0..operands.len()).map(one).collect()
}

pub(super) fn all_reduce(mesh: &Mesh, kind: ReduceKind, axes: &[AxisName], x: &[Value], p: Precision) -> Vec<Value> {
    each(mesh, axes, x, |group, _| reduce::across(kind, group, p))
}

fn concat(parts: &[&Value], dim: usize, p: Precision) -> Value {
    let mut dims = parts[0].dims.clone();
    dims[dim] = parts.iter().map(|v| v.dims[dim]).sum();
    movement::concat(parts, dim, &dims, p)
}

/// Part `i` of `n` along `dim`.
fn part(x: &Value, dim: usize, i: usize, n: usize) -> Value {
    let mut dims = x.dims.clone();
    dims[dim] /= n;
    let mut start = vec![0; dims.len()];
    start[dim] = i * dims[dim];
    movement::slice(x, &start, &vec![1; dims.len()], &dims)
}

pub(super) fn all_gather(mesh: &Mesh, axis: &AxisName, dim: usize, x: &[Value], p: Precision) -> Vec<Value> {
    each(mesh, std::slice::from_ref(axis), x, |group, _| concat(group, dim, p))
}

pub(super) fn reduce_scatter(mesh: &Mesh, axis: &AxisName, dim: usize, x: &[Value], p: Precision) -> Vec<Value> {
    each(mesh, std::slice::from_ref(axis), x, |group, place| {
        part(&reduce::across(ReduceKind::Sum, group, p), dim, place, group.len())
    })
}

pub(super) fn all_to_all(
    mesh: &Mesh,
    axis: &AxisName,
    split: usize,
    join: usize,
    x: &[Value],
    p: Precision,
) -> Vec<Value> {
    each(mesh, std::slice::from_ref(axis), x, |group, place| {
        let parts: Vec<Value> = group.iter().map(|v| part(v, split, place, group.len())).collect();
        concat(&parts.iter().collect::<Vec<_>>(), join, p)
    })
}

pub(super) fn ppermute(
    mesh: &Mesh,
    axis: &AxisName,
    pairs: &[(usize, usize)],
    x: &[Value],
    p: Precision,
) -> Vec<Value> {
    each(mesh, std::slice::from_ref(axis), x, |group, place| match pairs.iter().find(|&&(_, to)| to == place) {
        Some(&(from, _)) => group[from].clone(),
        None => {
            let v = group[place];
            Value::new(v.dtype, &v.dims, Data::zeros(v.dtype, p, v.elems()))
        }
    })
}
