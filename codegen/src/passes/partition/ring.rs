//! Attention on parts. Batches and heads are parts of their own. Where queries and keys are split over one axis, every
//! device keeps its queries, and the keys and values go round the ring of devices: at each turn a device attends to
//! the keys it has, and hands them on (Liu, Zaharia, Abbeel, "Ring attention with blockwise transformers", 2023).
//!
//! * Forward: two results over disjoint keys make one, weighted by their sums of exponentials.
//! * The derivative forms take their weights as `exp(s - lse)` of the whole sum, so their results over disjoint keys are
//!   terms of a sum. Backward, the cotangents of keys and values travel with them and are home after a whole round.
//!
//! Keys that are split while the queries are not, or over other axes, are gathered.

use super::moves;
use dnx_ir::attention::{Attention, Form};
use dnx_ir::{AxisName, BinaryOp, Builder, DType, Op, Result, Sharding, Type, UnaryOp, ValueId, bail};

/// Where queries and where keys are counted: dim 1 of `[B, T, H, d]`.
const SEQUENCE: usize = 1;

/// Attention of parts `x` of operands of these global types.
///
/// # Errors
/// Where a causal order or a bias goes over the split of the keys.
pub fn attention(b: &mut Builder, spec: Attention, types: &[&Type], x: &[ValueId]) -> Result<Vec<ValueId>> {
    let keys = types[1].sharding.dim(SEQUENCE).to_vec();
    let queries = types[0].sharding.dim(SEQUENCE).to_vec();
    if keys.is_empty() && queries.is_empty() {
        return spec.emit(b, x);
    }
    if spec.causal {
        bail!("is causal and its sequence is split over {}; reshard queries and keys to whole sequences", shown(&keys));
    }
    if keys.is_empty() {
        return spec.emit(b, x);
    }
    if let Some(bias) = spec.bias(types.len())
        && types[bias].dims[3] > 1
    {
        bail!("has a bias over keys that are split over {}; reshard keys and values to whole sequences", shown(&keys));
    }
    match &keys[..] {
        [axis] if keys == queries => Ring { b, spec, axis: axis.clone() }.run(types, x),
        _ => gathered(b, spec, types, x),
    }
}

fn shown(axes: &[AxisName]) -> String {
    axes.join(", ")
}

/// Attention over all keys on every device.
fn gathered(b: &mut Builder, spec: Attention, types: &[&Type], x: &[ValueId]) -> Result<Vec<ValueId>> {
    let whole = |s: &Sharding| {
        let mut dims = s.dims.clone();
        dims[SEQUENCE].clear();
        Sharding::new(dims, vec![])
    };
    let mut x = x.to_vec();
    for i in keyed(spec.form) {
        x[i] = moves::moved(b, x[i], &types[i].sharding, &whole(&types[i].sharding))?;
    }
    let mut results = spec.emit(b, &x)?;
    if spec.form == Form::Backward {
        // Each device has the terms of its own queries.
        let queries = types[0].sharding.dim(SEQUENCE).to_vec();
        for (i, result) in results.iter_mut().enumerate().skip(1) {
            let from = Sharding::new(whole(&types[i].sharding).dims, queries.clone());
            *result = moves::moved(b, *result, &from, &types[i].sharding)?;
        }
    }
    Ok(results)
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
            let part = self.spec.emit(self.b, &x)?;
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
                    x[i] = self.handed_on(x[i])?;
                }
            }
            if self.spec.form == Form::Backward {
                for v in &mut total[1..] {
                    *v = self.handed_on(*v)?;
                }
            }
        }
        let mut results = Vec::with_capacity(total.len());
        for (v, dtype) in total.into_iter().zip(dtypes) {
            results.push(self.b.convert(v, dtype)?);
        }
        Ok(results)
    }

    /// To the next device of the ring.
    fn handed_on(&mut self, v: ValueId) -> Result<ValueId> {
        let n = self.b.func().mesh.size(&self.axis).unwrap_or(1);
        let pairs = (0..n).map(|i| (i, (i + 1) % n)).collect();
        self.b.emit(Op::Ppermute { axis: self.axis.clone(), pairs }, &[v])
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
