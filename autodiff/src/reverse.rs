//! The backward walk: transposing linear parts, and gradients.
//!
//! A function to be transposed is a mixture: *linear* values depend on the linear parameters, all others do
//! not. Cotangents flow through the linear nodes in reverse order. Other nodes are copied when a rule first
//! reads them, so what only a derivative needs is computed next to its use, and what nothing needs never.

use crate::composite::{self, is_linear};
use crate::forward::{Forward, Mode, active_params};
use crate::linear::{inline_mixed, linear_values};
use crate::prune::{is_param, prune};
use crate::rules::{At, Linear, rule};
use dnx_ir::sharding::cotangent_type;
use dnx_ir::{Builder, Func, Node, Op, Result, Sharding, Type, ValueId, bail};
use std::collections::HashMap;
use std::sync::Arc;

/// The gradient of a scalar: parameters of `f` in, one gradient for each of `wrt` out.
///
/// # Errors
/// When result 0 of `f` is no float scalar, or as [`crate::jvp`].
pub fn grad(f: &Func, wrt: &[usize]) -> Result<Func> {
    gradients(f, wrt, "grad", false)
}

/// As [`grad`], but gives all results of `f` first. Results after result 0 are auxiliary: no gradient is taken
/// of them.
///
/// # Errors
/// As [`grad`].
pub fn value_and_grad(f: &Func, wrt: &[usize]) -> Result<Func> {
    gradients(f, wrt, "value_and_grad", true)
}

fn gradients(f: &Func, wrt: &[usize], prefix: &str, values: bool) -> Result<Func> {
    let active = active_params(f, wrt)?;
    let Some(&scalar) = f.results.first() else { bail!("@{} has no result to take the gradient of", f.name) };
    let ty = f.ty(scalar);
    if ty.rank() > 0 || !ty.dtype.is_float() {
        bail!("result 0 of @{} is {ty}; a gradient is of a float scalar: sum or average it", f.name);
    }
    // Only result 0 is differentiated: auxiliary results need have no derivative.
    let wanted: Vec<bool> = (0..f.results.len()).map(|i| i == 0).collect();
    let d = Forward::new(Mode::Apart).differentiate(f, &active, &wanted)?;
    let j = &d.func;
    let (primal_params, tangent_params) = j.params.split_at(f.params.len());
    let linear_params: Vec<bool> = (0..j.params.len()).map(|i| i >= f.params.len()).collect();

    let b = Builder::on_mesh(&format!("{prefix}_{}", f.name), f.mesh.clone());
    let mut reverse = Reverse::new(j, &linear_params, b);
    for p in primal_params {
        reverse.read(p.value)?;
    }
    let mut results = Vec::new();
    for &r in &j.results[..f.results.len()] {
        results.push(reverse.read(r)?);
    }
    if !values {
        results.clear();
    }
    if d.out[0] {
        let one = reverse.b.full(&cotangent_type(ty), 1.0)?;
        reverse.add(j.results[f.results.len()], one)?;
    }
    reverse.walk(&mut Callees::default())?;
    for &i in wrt {
        let tangent = active[..i].iter().filter(|a| **a).count();
        results.push(reverse.cotangent_or_zero(tangent_params[tangent].value)?);
    }
    prune(&reverse.b.finish(&results))
}

/// The transpose of a linear map.
///
/// `linear` must be linear in the float parameters `linear_params` together. Parameters of the result: the other
/// parameters of `linear` in order, then one cotangent per float result. Results: the cotangents of
/// `linear_params` in their order. A result that does not depend on them must be zero; its cotangent is ignored.
///
/// # Errors
/// When an op on the way is not linear in the parameters; names the op and its model path.
pub fn transpose(linear: &Func, linear_params: &[usize]) -> Result<Func> {
    let mask = active_params(linear, linear_params)?;
    let f = inline_mixed(linear, &mask)?;
    let mut b = Builder::on_mesh(&format!("transpose_{}", f.name), f.mesh.clone());
    let others: Vec<ValueId> = f.params.iter().zip(&mask).filter(|(_, l)| !**l).map(|(p, _)| p.value).collect();
    let mut values = Vec::new();
    for &v in &others {
        let name = &f.params.iter().find(|p| p.value == v).expect("a parameter").name;
        values.push((v, b.param(name, f.ty(v).clone())));
    }
    let mut reverse = Reverse::new(&f, &mask, b);
    for (v, arg) in values {
        reverse.map[v.index()] = Some(arg);
    }
    let mut seeds = Vec::new();
    for (i, &r) in f.results.iter().enumerate().filter(|(_, r)| f.ty(**r).dtype.is_float()) {
        seeds.push((r, reverse.b.param(&format!("cotangent{i}"), cotangent_type(f.ty(r)))));
    }
    for (r, ct) in seeds {
        if reverse.linear[r.index()] {
            reverse.add(r, ct)?;
        }
    }
    reverse.walk(&mut Callees::default())?;
    let mut results = Vec::new();
    for &i in linear_params {
        results.push(reverse.cotangent_or_zero(f.params[i].value)?);
    }
    prune(&reverse.b.finish(&results))
}

/// The transpose of a recomputed callee, as it is called.
#[derive(Clone)]
struct Transposed {
    /// Parameters: the primal parameters in `reads`, then the present cotangents.
    func: Arc<Func>,
    /// Parameters of the callee that the transpose reads.
    reads: Vec<usize>,
    /// Linear parameters of the callee that get a cotangent, in the order of results.
    gives: Vec<usize>,
}

/// Transposes of recomputed callees by callee, linear parameters, and present cotangents.
#[derive(Default)]
struct Callees(HashMap<(*const Func, Vec<bool>, Vec<bool>), (Arc<Func>, Transposed)>);

impl Callees {
    fn transposed(&mut self, callee: &Arc<Func>, linear: &[bool], present: &[bool]) -> Result<Transposed> {
        let key = (Arc::as_ptr(callee), linear.to_vec(), present.to_vec());
        if let Some((_, made)) = self.0.get(&key) {
            return Ok(made.clone());
        }
        let f = &inline_mixed(callee, linear)?;
        // The primal parameters that any node reads; the transpose may read fewer, never more.
        let mut read = vec![false; f.values.len()];
        f.nodes.iter().flat_map(|n| &n.operands).for_each(|v| read[v.index()] = true);
        let reads: Vec<usize> =
            (0..f.params.len()).filter(|&i| !linear[i] && read[f.params[i].value.index()]).collect();

        let mut b = Builder::on_mesh(&format!("transpose_{}", f.name), f.mesh.clone());
        let mut values: Vec<ValueId> = Vec::new();
        for &i in &reads {
            values.push(b.param(&f.params[i].name, f.ty(f.params[i].value).clone()));
        }
        let seeds: Vec<ValueId> = f.results.iter().zip(present).filter(|(_, p)| **p).map(|(r, _)| *r).collect();
        for (i, &r) in seeds.iter().enumerate() {
            values.push(b.param(&format!("cotangent{i}"), cotangent_type(f.ty(r))));
        }
        // Behind the barrier nothing is merged with the forward pass, and nothing starts before the cotangents.
        let fenced = b.emit_multi(Op::OptimizationBarrier, &values)?;
        let mut reverse = Reverse::new(f, linear, b);
        for (&i, &v) in reads.iter().zip(&fenced) {
            reverse.map[f.params[i].value.index()] = Some(v);
        }
        for (&r, &ct) in seeds.iter().zip(&fenced[reads.len()..]) {
            reverse.add(r, ct)?;
        }
        reverse.walk(self)?;
        let (mut gives, mut results) = (Vec::new(), Vec::new());
        for i in (0..f.params.len()).filter(|&i| linear[i]) {
            if let Some(ct) = reverse.cotangents[f.params[i].value.index()] {
                gives.push(i);
                results.push(ct);
            }
        }
        let made = Transposed { func: Arc::new(prune(&reverse.b.finish(&results))?), reads, gives };
        self.0.insert(key, (callee.clone(), made.clone()));
        Ok(made)
    }
}

/// A function in the course of being transposed into `b`.
struct Reverse<'a> {
    f: &'a Func,
    linear: Vec<bool>,
    b: Builder,
    /// Values of `f` that are not linear, where they have been copied.
    map: Vec<Option<ValueId>>,
    /// Sums of the cotangents of linear values so far.
    cotangents: Vec<Option<ValueId>>,
}

impl<'a> Reverse<'a> {
    fn new(f: &'a Func, linear_params: &[bool], b: Builder) -> Reverse<'a> {
        let n = f.values.len();
        Reverse { f, linear: linear_values(f, linear_params), b, map: vec![None; n], cotangents: vec![None; n] }
    }

    /// A value that is not linear, copied with all it needs.
    fn read(&mut self, v: ValueId) -> Result<ValueId> {
        let (mut nodes, mut stack) = (Vec::new(), vec![v]);
        let mut seen = std::collections::HashSet::new();
        while let Some(v) = stack.pop() {
            let id = self.f.values[v.index()].node;
            if self.map[v.index()].is_none() && seen.insert(id) {
                nodes.push(id);
                stack.extend(&self.f.nodes[id.index()].operands);
            }
        }
        nodes.sort_unstable();
        for id in nodes {
            self.b.copy_node(self.f, &self.f.nodes[id.index()], &mut self.map)?;
        }
        Ok(self.map[v.index()].expect("copied"))
    }

    /// Adds to the cotangent of a linear value. Sums still to be taken over devices are added as they are, so that
    /// they are taken once.
    fn add(&mut self, v: ValueId, ct: ValueId) -> Result<()> {
        let sum = match self.cotangents[v.index()] {
            None => ct,
            Some(sum) => {
                let (s, t) = (&self.b.ty(sum).sharding, &self.b.ty(ct).sharding);
                let agree = s.unreduced == t.unreduced && (refines(s, t) || refines(t, s));
                let (sum, ct) = if agree { (sum, ct) } else { (self.placed(v, sum)?, self.placed(v, ct)?) };
                self.b.add(sum, ct)?
            }
        };
        self.cotangents[v.index()] = Some(sum);
        Ok(())
    }

    /// `ct` laid out as the cotangent of `v`.
    fn placed(&mut self, v: ValueId, ct: ValueId) -> Result<ValueId> {
        let sharding = cotangent_type(self.f.ty(v)).sharding;
        if self.b.ty(ct).sharding == sharding { Ok(ct) } else { self.b.emit(Op::Reshard { sharding }, &[ct]) }
    }

    /// The finished cotangent of a linear value, if it has one.
    fn cotangent(&mut self, v: ValueId) -> Result<Option<ValueId>> {
        let Some(sum) = self.cotangents[v.index()] else { return Ok(None) };
        let placed = self.placed(v, sum)?;
        self.cotangents[v.index()] = Some(placed);
        Ok(Some(placed))
    }

    /// The cotangent of the result of `op`. Elementwise ops and views of single dims take it split further than
    /// its primal: a bias repeated over samples gets its sum from where the samples are.
    fn arriving(&mut self, op: &Op, v: ValueId) -> Result<Option<ValueId>> {
        let Some(ct) = self.cotangents[v.index()] else { return Ok(None) };
        let own = &self.b.ty(ct).sharding;
        let finer = own.unreduced.is_empty() && refines(own, &cotangent_type(self.f.ty(v)).sharding);
        let takes = op.is_elementwise() || matches!(op, Op::Broadcast { .. } | Op::Transpose { .. });
        if finer && takes { Ok(Some(ct)) } else { self.cotangent(v) }
    }

    fn cotangent_or_zero(&mut self, v: ValueId) -> Result<ValueId> {
        match self.cotangent(v)? {
            Some(ct) => Ok(ct),
            None => self.b.full(&cotangent_type(self.f.ty(v)), 0.0),
        }
    }

    /// Sends the cotangents of results back to the parameters.
    fn walk(&mut self, callees: &mut Callees) -> Result<()> {
        for node in self.f.nodes.iter().rev().filter(|n| !is_param(n)) {
            if node.results.iter().any(|r| self.cotangents[r.index()].is_some()) {
                self.node(node, callees).map_err(|e| e.at_op(node.op.name()).at_loc(&node.loc))?;
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Node, callees: &mut Callees) -> Result<()> {
        let linear: Vec<bool> = node.operands.iter().map(|v| self.linear[v.index()]).collect();
        match &node.op {
            Op::Call { func, .. } => return self.call(node, func, &linear, callees),
            Op::OptimizationBarrier => return self.barrier(node),
            Op::Composite { .. } if is_linear(&node.op, &linear) => return self.composite(node, &linear),
            _ => {}
        }
        let op = &node.op;
        let Some((admits, rule)) = rule(op).transpose else {
            bail!("is not linear, so it cannot be transposed");
        };
        let several = linear.iter().filter(|l| **l).count() > 1;
        if let Some(i) = (0..linear.len()).find(|&i| linear[i] && !admits.admits(i)) {
            bail!("is not linear in operand {i}, so it cannot be transposed");
        }
        if admits == Linear::Each && several {
            bail!("is not linear in all its operands together, so it cannot be transposed");
        }
        let mut x = Vec::with_capacity(linear.len());
        for (&v, &l) in node.operands.iter().zip(&linear) {
            // A linear operand has no value here; its rule does not read it.
            x.push(if l { ValueId(u32::MAX) } else { self.read(v)? });
        }
        let ty: Vec<Type> = node.operands.iter().map(|&v| self.f.ty(v).clone()).collect();
        self.b.set_loc(node.loc.clone());
        let Some(ct) = self.arriving(op, node.results[0])? else { return Ok(()) };
        for i in (0..linear.len()).filter(|&i| linear[i]) {
            let mut at = At { b: &mut self.b, op, x: &x, ty: &ty, y: ValueId(u32::MAX) };
            let term = rule(&mut at, i, ct)?;
            self.add(node.operands[i], term)?;
        }
        Ok(())
    }

    fn barrier(&mut self, node: &Node) -> Result<()> {
        self.b.set_loc(node.loc.clone());
        let (mut operands, mut cts) = (Vec::new(), Vec::new());
        for (&v, &r) in node.operands.iter().zip(&node.results) {
            if let Some(ct) = self.cotangent(r)? {
                operands.push(v);
                cts.push(ct);
            }
        }
        for (v, ct) in operands.into_iter().zip(self.b.emit_multi(Op::OptimizationBarrier, &cts)?) {
            self.add(v, ct)?;
        }
        Ok(())
    }

    fn composite(&mut self, node: &Node, linear: &[bool]) -> Result<()> {
        let mut x = Vec::with_capacity(linear.len());
        for (&v, &l) in node.operands.iter().zip(linear) {
            x.push(if l { ValueId(u32::MAX) } else { self.read(v)? });
        }
        self.b.set_loc(node.loc.clone());
        let mut cts = Vec::with_capacity(node.results.len());
        for &r in &node.results {
            cts.push(self.cotangent(r)?);
        }
        let ty: Vec<Type> = node.operands.iter().map(|&v| self.f.ty(v).clone()).collect();
        for (i, ct) in composite::cotangents(&mut self.b, &node.op, &x, &ty, linear, &cts)? {
            self.add(node.operands[i], ct)?;
        }
        Ok(())
    }

    fn call(&mut self, node: &Node, callee: &Arc<Func>, linear: &[bool], callees: &mut Callees) -> Result<()> {
        let present: Vec<bool> = node.results.iter().map(|r| self.cotangents[r.index()].is_some()).collect();
        let made = callees.transposed(callee, linear, &present)?;
        let mut args = Vec::new();
        for &i in &made.reads {
            args.push(self.read(node.operands[i])?);
        }
        self.b.set_loc(node.loc.clone());
        for &r in &node.results {
            args.extend(self.cotangent(r)?);
        }
        let cts = self.b.emit_multi(Op::Call { func: made.func, remat: true }, &args)?;
        for (&i, ct) in made.gives.iter().zip(cts) {
            self.add(node.operands[i], ct)?;
        }
        Ok(())
    }
}

/// Whether `a` splits every dim as `b` does or further.
fn refines(a: &Sharding, b: &Sharding) -> bool {
    (0..a.dims.len().max(b.dims.len())).all(|d| a.dim(d).starts_with(b.dim(d)))
}
