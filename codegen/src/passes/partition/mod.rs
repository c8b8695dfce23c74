//! From the global program to the program of one device.
//!
//! A value of the global program is a global array with a layout over the mesh; each device's program holds its local
//! part. An op runs on local parts as it is, with local dims, once its operands lie where its factors want them
//! ([`dnx_ir::sharding::place`]); `reshard` becomes the collectives that change the layout ([`moves`]). The program is the
//! same on every device: what differs is the value of `axis_index`.
//!
//! * Values that are held whole but only ever read in parts are computed in parts ([`layout`]): noise is drawn
//!   for the samples that a device has, and a sum over devices whose reader is split is a `reduce_scatter`.
//! * `iota` and `random_bits` count from the part's place in the whole, so numbers do not depend on the mesh.
//! * Attention over keys that are split runs around a ring ([`ring`]).
//!
//! It comes before the other passes, which then see one device's program without shardings. Over one device (no mesh, or
//! axes of size 1) placement disappears ([`single`]). A program that is one device's already (collectives explicit, no
//! shardings) passes through.

mod layout;
mod local;
mod moves;
mod ring;
mod single;

use crate::options::Wire;
use crate::{CompileError, InStage, Result, Stage};
use dnx_ir::attention::Attention;
use dnx_ir::parts::{local_dims, local_type};
use dnx_ir::sharding::place_as;
use dnx_ir::{Builder, DType, Func, Mesh, Node, Op, Sharding, Type, ValueId, bail};

/// The program of one device. Between devices large values cross as `wire` says ([`moves`]); results of the function, and
/// sums that travel round a ring, cross as they are.
///
/// # Errors
/// A global program with explicit collectives; names the op and its model path.
pub fn partition(func: &Func, wire: Wire) -> Result<Func> {
    let reshards = |n: &Node| matches!(n.op, Op::Reshard { .. });
    if func.mesh.devices() == 1 {
        let placed = !func.mesh.axes.is_empty() || func.nodes.iter().any(reshards);
        return if placed { single::strip(func).in_stage(Stage::Partition) } else { Ok(func.clone()) };
    }
    let global = |n: &Node| reshards(n) || n.results.iter().any(|&v| is_split(func.ty(v)));
    if !func.nodes.iter().any(global) {
        return Ok(func.clone());
    }
    if let Some(node) = func.nodes.iter().find(|n| n.op.is_collective() || matches!(n.op, Op::AxisIndex { .. })) {
        let what = format!(
            "{} in a program with shardings; a collective belongs to one device's program: write reshard instead",
            node.op.name()
        );
        return Err(CompileError::unsupported(Stage::Partition, what, &node.loc));
    }
    divide(func, wire).in_stage(Stage::Partition)
}

fn is_split(ty: &Type) -> bool {
    !ty.sharding.is_replicated()
}

fn divide(func: &Func, wire: Wire) -> dnx_ir::Result<Func> {
    let func = &super::dce::eliminate(func)?;
    let mut d = Divide {
        func,
        mesh: func.mesh.clone(),
        layouts: layout::layouts(func),
        local: vec![None; func.values.len()],
        b: Builder::on_mesh(&func.name, func.mesh.clone()),
        wire,
    };
    for (_, node) in func.iter() {
        d.b.set_loc(node.loc.clone());
        let results = d.node(node).map_err(|e| e.at_op(node.op.name()).at_loc(&node.loc))?;
        for (old, new) in node.results.iter().zip(results) {
            debug_assert_eq!(d.b.dims(new), local_dims(&func.ty(*old).dims, &d.layouts[old.index()], &d.mesh));
            d.local[old.index()] = Some(new);
        }
    }
    d.wire = Wire::F32;
    let mut results = Vec::with_capacity(func.results.len());
    for &r in &func.results {
        results.push(d.taken(r, &func.ty(r).sharding)?);
    }
    Ok(d.b.finish(&results))
}

/// A function in the course of being divided.
struct Divide<'a> {
    func: &'a Func,
    mesh: Mesh,
    /// Per global value the layout it is computed in.
    layouts: Vec<Sharding>,
    /// Per global value this device's part.
    local: Vec<Option<ValueId>>,
    b: Builder,
    wire: Wire,
}

impl Divide<'_> {
    /// The part of a value in another layout.
    fn taken(&mut self, v: ValueId, to: &Sharding) -> dnx_ir::Result<ValueId> {
        let part = self.local[v.index()].expect("values are defined before their users");
        moves::moved(&mut self.b, part, &self.layouts[v.index()], to, self.wire)
    }

    /// The type of a value in the layout it is computed in.
    fn ty(&self, v: ValueId) -> Type {
        self.func.ty(v).clone().with_sharding(self.layouts[v.index()].clone())
    }

    fn node(&mut self, node: &Node) -> dnx_ir::Result<Vec<ValueId>> {
        let one = |v: ValueId| Ok(vec![v]);
        let result = node.results.first().map(|&r| self.ty(r));
        match (&node.op, &result) {
            (Op::Param { index, ty }, _) => {
                let name = self.func.params[*index].name.clone();
                one(self.b.param(&name, local_type(ty, &self.mesh)))
            }
            (Op::Const(array), Some(ty)) => match array.as_splat() {
                Some(value) if !ty.dims.is_empty() => {
                    let part = local_type(ty, &self.mesh);
                    one(self.b.full(&part, value.to_f64())?)
                }
                _ => {
                    let whole = self.b.constant(array.clone());
                    one(moves::moved(&mut self.b, whole, &Sharding::replicated(), &ty.sharding, Wire::F32)?)
                }
            },
            (Op::Iota { dtype, dim, .. }, Some(ty)) => one(self.iota(*dtype, *dim, ty)?),
            (Op::RandomBits { global, .. }, Some(ty)) => one(self.random_bits(node, global.as_deref(), ty)?),
            (Op::Reshard { .. }, Some(ty)) => one(self.taken(node.operands[0], &ty.sharding)?),
            (Op::OptimizationBarrier, _) => {
                let mut parts = Vec::with_capacity(node.operands.len());
                for (&v, &r) in node.operands.iter().zip(&node.results) {
                    let to = self.layouts[r.index()].clone();
                    parts.push(self.taken(v, &to)?);
                }
                self.b.emit_multi(Op::OptimizationBarrier, &parts)
            }
            (Op::Composite { .. }, _) => self.composite(node),
            (Op::Call { .. }, _) => bail!("is to be inlined before a program is divided"),
            (op, Some(ty)) => {
                let types: Vec<Type> = node.operands.iter().map(|&v| self.ty(v)).collect();
                let types: Vec<&Type> = types.iter().collect();
                let Some(placement) = place_as(op, &types, ty, &self.mesh) else {
                    let shown: Vec<String> = types.iter().map(|t| t.to_string()).collect();
                    bail!("can't be run by parts on {} to give {ty}", shown.join(", "));
                };
                let mut parts = Vec::with_capacity(node.operands.len());
                for (&v, to) in node.operands.iter().zip(&placement.operands) {
                    parts.push(self.taken(v, to)?);
                }
                let op = local::local(op, &types, ty, &placement, &self.mesh);
                one(self.b.emit(op, &parts)?)
            }
            (op, None) => bail!("{} has no result", op.name()),
        }
    }

    fn iota(&mut self, dtype: DType, dim: usize, ty: &Type) -> dnx_ir::Result<ValueId> {
        let dims = local_dims(&ty.dims, &ty.sharding, &self.mesh);
        let count = self.b.emit(Op::Iota { dtype, dims: dims.clone(), dim }, &[])?;
        let axes = ty.sharding.dim(dim);
        if axes.is_empty() {
            return Ok(count);
        }
        let first = moves::start(&mut self.b, axes, dims[dim])?;
        let first = self.b.convert(first, dtype)?;
        let first = self.b.broadcast(first, &dims, &[])?;
        self.b.add(count, first)
    }

    /// The part's bits are those of the same elements of the whole.
    fn random_bits(&mut self, node: &Node, global: Option<&[usize]>, ty: &Type) -> dnx_ir::Result<ValueId> {
        let key = self.taken(node.operands[0], &Sharding::replicated())?;
        let dims = local_dims(&ty.dims, &ty.sharding, &self.mesh);
        let mut start = moves::starts(&mut self.b, &dims, |d| ty.sharding.dim(d))?;
        if global.is_some() {
            let own = self.taken(node.operands[1], &Sharding::replicated())?;
            start = Some(match start {
                Some(start) => self.b.add(own, start)?,
                None => own,
            });
        }
        match start {
            None => self.b.emit(Op::RandomBits { dims, global: None }, &[key]),
            Some(start) => {
                let global = Some(global.unwrap_or(&ty.dims).to_vec());
                self.b.emit(Op::RandomBits { dims, global }, &[key, start])
            }
        }
    }

    /// Attention that the target claims: on local batches, heads and queries, and where the keys are split, in a ring.
    fn composite(&mut self, node: &Node) -> dnx_ir::Result<Vec<ValueId>> {
        let Some(spec) = Attention::of(&node.op) else {
            bail!("is to be inlined before a program is divided");
        };
        let mut parts = Vec::with_capacity(node.operands.len());
        for &v in &node.operands {
            let to = self.func.ty(v).sharding.clone();
            parts.push(self.taken(v, &to)?);
        }
        let types: Vec<&Type> = node.operands.iter().map(|&v| self.func.ty(v)).collect();
        ring::attention(&mut self.b, spec, &types, &parts, self.wire)
    }
}

#[cfg(test)]
mod tests;
