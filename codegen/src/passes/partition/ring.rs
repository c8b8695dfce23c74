//! Attention on parts. Batches and heads are parts of their own. Where queries and keys are split over one axis, every
//! device keeps its queries, and the keys and values go round the ring of devices: at each turn a device attends to
//! the keys it has, and hands them on (Liu, Zaharia, Abbeel, "Ring attention with blockwise transformers", 2023).
//!
//! * Forward: two results over disjoint keys make one, weighted by their sums of exponentials.
//! * The derivative forms take their weights as `exp(s - lse)` of the whole sum, so their results over disjoint keys are
//!   terms of a sum. Backward, the cotangents of keys and values travel with them and are home after a whole round.
//!
//! * A causal order hides the keys of devices that come after this one, all of them; those of its own it hides as always.
//!   A bias has its rows where the queries are, and at each turn the columns of the keys that are there.
//!
//! Keys that are split while the queries are not, or over other axes, are gathered.

use super::moves;
use crate::options::Wire;
use dnx_ir::attention::{Attention, Form, HIDDEN};
use dnx_ir::{AxisName, BinaryOp, Builder, CmpOp, DType, Op, Result, Sharding, Type, UnaryOp, ValueId};

/// Where queries and where keys are counted: dim 1 of `[B, T, H, d]`.
const SEQUENCE: usize = 1;

/// Attention of parts `x` of operands of these global types.
///
/// # Errors
/// If the types do not fit together.
pub fn attention(b: &mut Builder, spec: Attention, types: &[&Type], x: &[ValueId], wire: Wire) -> Result<Vec<ValueId>> {
    let keys = types[1].sharding.dim(SEQUENCE).to_vec();
    let queries = types[0].sharding.dim(SEQUENCE).to_vec();
    if keys.is_empty() && queries.is_empty() {
        return spec.emit(b, x);
    }
    // A bias is cut into the rows of the device's queries, and has the columns of all keys.
    let mut x = x.to_vec();
    for i in spec.bias(types.len()).into_iter().chain(spec.bias_tangent(types.len())) {
        let mut dims: Vec<Vec<AxisName>> = (0..4).map(|d| types[i].sharding.dim(d).to_vec()).collect();
        dims[2] = if types[i].dims[2] > 1 { queries.clone() } else { vec![] };
        dims[3].clear();
        x[i] = moves::moved(b, x[i], &types[i].sharding, &Sharding::new(dims, vec![]), wire)?;
    }
    match &keys[..] {
        [axis] if keys == queries => Ring { b, spec, axis: axis.clone(), wire }.run(types, &x),
        _ => gathered(b, spec, types, x, wire),
    }
}

/// Attention over all keys on every device.
fn gathered(
    b: &mut Builder,
    spec: Attention,
    types: &[&Type],
    mut x: Vec<ValueId>,
    wire: Wire,
) -> Result<Vec<ValueId>> {
    let queries = types[0].sharding.dim(SEQUENCE).to_vec();
    let whole = |s: &Sharding| {
        let mut dims = s.dims.clone();
        if let Some(axes) = dims.get_mut(SEQUENCE) {
            axes.clear();
        }
        Sharding::new(dims, vec![])
    };
    for i in keyed(spec.form) {
        x[i] = moves::moved(b, x[i], &types[i].sharding, &whole(&types[i].sharding), wire)?;
    }
    let mut own = spec;
    if spec.causal && !queries.is_empty() {
        // The device's first query is not the first of all.
        let (rows, columns) = (b.dims(x[0])[SEQUENCE], b.dims(x[1])[SEQUENCE]);
        let first = moves::start(b, &queries, rows)?;
        let dims = [1, 1, rows, columns];
        let [query, key] = [2, 3].map(|dim| b.emit(Op::Iota { dtype: DType::I32, dims: dims.to_vec(), dim }, &[]));
        let first = b.broadcast(first, &dims, &[])?;
        let query = b.add(query?, first)?;
        let sees = b.compare(CmpOp::Ge, query, key?)?;
        hide(b, spec, &mut x, sees)?;
        own.causal = false;
    }
    let mut results = own.emit(b, &x)?;
    if spec.form == Form::Backward {
        // Each device has the terms of its own queries.
        for (i, result) in results.iter_mut().enumerate().skip(1) {
            let from = Sharding::new(whole(&types[i].sharding).dims, queries.clone());
            *result = moves::moved(b, *result, &from, &types[i].sharding, wire)?;
        }
    }
    Ok(results)
}

/// Adds to the bias what hides the keys that a query does not see; `sees` is a bool of the dims of a bias. Without a bias it
/// becomes one.
fn hide(b: &mut Builder, spec: Attention, x: &mut Vec<ValueId>, sees: ValueId) -> Result<()> {
    let dims = b.dims(sees).to_vec();
    let seen = b.full(&Type::f32(dims.clone()), 0.0)?;
    let hidden = b.full(&Type::f32(dims.clone()), HIDDEN)?;
    let mask = b.select(sees, seen, hidden)?;
    let Some(bias) = spec.bias(x.len()) else {
        x.push(mask);
        return Ok(());
    };
    let all: Vec<usize> = b.dims(x[bias]).iter().zip(&dims).map(|(&a, &m)| a.max(m)).collect();
    let wide = b.convert(x[bias], DType::F32)?;
    let (wide, mask) = (b.broadcast(wide, &all, &[0, 1, 2, 3])?, b.broadcast(mask, &all, &[0, 1, 2, 3])?);
    x[bias] = b.add(wide, mask)?;
    if let Some(tangent) = spec.bias_tangent(x.len()) {
        x[tangent] = b.broadcast(x[tangent], &all, &[0, 1, 2, 3])?;
    }
    Ok(())
}

/// The operands that are laid out like keys.
fn keyed(form: Form) -> Vec<usize> {
    match form {
        Form::Forward | Form::Backward => vec![1, 2],
        Form::Jvp => vec![1, 2, 6, 7],
    }
}

struct Ring<'a> {
    b: &'a mut Builder,
    spec: Attention,
    axis: AxisName,
    wire: Wire,
}

impl Ring<'_> {
    fn run(&mut self, types: &[&Type], x: &[ValueId]) -> Result<Vec<ValueId>> {
        let turns = self.b.func().mesh.size(&self.axis).unwrap_or(1);
        let dtypes: Vec<DType> = match self.spec.form {
            Form::Forward | Form::Jvp => vec![types[0].dtype, DType::F32],
            Form::Backward => vec![types[0].dtype; 3],
        };
        // Backward, keys and values go round once more: those that came by in the forward pass are not kept until then.
        let mut x = match self.spec.form {
            Form::Forward | Form::Jvp => x.to_vec(),
            Form::Backward => self.b.emit_multi(Op::OptimizationBarrier, x)?,
        };
        let mut total: Vec<ValueId> = vec![];
        for turn in 0..turns {
            let (spec, own) = self.at_turn(turn, turns, &x)?;
            let part = spec.emit(self.b, &own)?;
            let mut wide = Vec::with_capacity(part.len());
            for v in part {
                wide.push(self.b.convert(v, DType::F32)?);
            }
            total = match (turn, self.spec.form) {
                (0, _) => wide,
                (_, Form::Forward) => self.merged(&total, &wide)?,
                (_, Form::Jvp | Form::Backward) => self.added(&total, &wide)?,
            };
            let last = turn + 1 == turns;
            if !last {
                for i in keyed(self.spec.form) {
                    x[i] = self.handed_on(x[i], self.wire)?;
                }
            }
            if self.spec.form == Form::Backward {
                for v in &mut total[1..] {
                    // Sums under way: rounded at every turn they would lose more than what comes and goes once.
                    *v = self.handed_on(*v, Wire::F32)?;
                }
            }
        }
        let mut results = Vec::with_capacity(total.len());
        for (v, dtype) in total.into_iter().zip(dtypes) {
            results.push(self.b.convert(v, dtype)?);
        }
        Ok(results)
    }

    /// What is attended to at a turn: the keys of the device so many places before this one. In a causal order, with as many
    /// queries as keys on each device, these are all seen or, if that device comes after this one, none is; at the first turn
    /// they are the device's own.
    fn at_turn(&mut self, turn: usize, turns: usize, x: &[ValueId]) -> Result<(Attention, Vec<ValueId>)> {
        let mut own = x.to_vec();
        let mut spec = self.spec;
        let biases = [spec.bias(x.len()), spec.bias_tangent(x.len())];
        if biases == [None, None] && (turn == 0 || !spec.causal) {
            return Ok((spec, own));
        }
        let b = &mut *self.b;
        let here = b.emit(Op::AxisIndex { axis: self.axis.clone() }, &[])?;
        let keys = b.dims(x[1])[SEQUENCE];
        for i in biases.into_iter().flatten() {
            let mut sizes = b.dims(x[i]).to_vec();
            if sizes[3] == 1 {
                continue;
            }
            sizes[3] = keys;
            let back = b.scalar(DType::I32, (turns - turn) as f64);
            let from = b.add(here, back)?;
            let n = b.scalar(DType::I32, turns as f64);
            let from = b.binary(BinaryOp::Rem, from, n)?;
            let column = b.scale(from, keys as f64)?;
            let column = b.reshape(column, &[1])?;
            let zeros = b.full(&Type::new(DType::I32, [3]), 0.0)?;
            let start = b.emit(Op::Concat { dim: 0 }, &[zeros, column])?;
            own[i] = b.emit(Op::DynamicSlice { sizes }, &[x[i], start])?;
        }
        if spec.causal && turn > 0 {
            let turn = b.scalar(DType::I32, turn as f64);
            let before = b.compare(CmpOp::Ge, here, turn)?;
            let before = b.reshape(before, &[1, 1, 1, 1])?;
            hide(b, spec, &mut own, before)?;
            spec.causal = false;
        }
        Ok((spec, own))
    }

    /// To the next device of the ring.
    fn handed_on(&mut self, v: ValueId, wire: Wire) -> Result<ValueId> {
        let n = self.b.func().mesh.size(&self.axis).unwrap_or(1);
        let pairs = (0..n).map(|i| (i, (i + 1) % n)).collect();
        moves::exchanged(self.b, Op::Ppermute { axis: self.axis.clone(), pairs }, v, wire)
    }

    fn added(&mut self, a: &[ValueId], b: &[ValueId]) -> Result<Vec<ValueId>> {
        a.iter().zip(b).map(|(&a, &b)| self.b.add(a, b)).collect()
    }

    /// `(o, lse)` over the keys of both.
    fn merged(&mut self, one: &[ValueId], other: &[ValueId]) -> Result<Vec<ValueId>> {
        let [(o1, l1), (o2, l2)] = [one, other].map(|x| (x[0], x[1]));
        let b = &mut *self.b;
        let greatest = b.binary(BinaryOp::Max, l1, l2)?;
        let mut weights = vec![];
        for l in [l1, l2] {
            let d = b.sub(l, greatest)?;
            weights.push(b.unary(UnaryOp::Exp, d)?);
        }
        let sum = b.add(weights[0], weights[1])?;
        let log = b.unary(UnaryOp::Log, sum)?;
        let lse = b.add(greatest, log)?;
        let dims = b.dims(o1).to_vec();
        let mut parts = vec![];
        for (o, w) in [(o1, weights[0]), (o2, weights[1])] {
            let w = b.div(w, sum)?;
            // [B, H, T] to [B, T, H, d].
            let w = b.transpose(w, &[0, 2, 1])?;
            let w = b.broadcast(w, &dims, &[0, 1, 2])?;
            parts.push(b.mul(o, w)?);
        }
        Ok(vec![b.add(parts[0], parts[1])?, lse])
    }
}
