//! The forward walk: tangents beside primals.
//!
//! A tangent that is zero by the structure of the function is never a value here ([`Tangent::Zero`]). One that
//! an op without a derivative would have had to give is remembered ([`Tangent::Refused`]) and becomes an error
//! when it is asked for: looking at a number's bits is no mistake, differentiating through them is.

use crate::composite::{self, has_rule};
use crate::inline::inline_active;
use crate::prune::{is_param, prune};
use crate::rules::{At, Jvp, rule, tangent};
use dnx_ir::{Builder, Error, Func, Node, Op, Result, Type, ValueId, bail};
use std::collections::HashMap;
use std::sync::Arc;

/// `f` and its derivative in the direction of a tangent.
///
/// Parameters: those of `f`, then one tangent for each of `wrt` (indices of float parameters). Results: those
/// of `f`, then one tangent for each float result. Zero tangents are materialised only here, as results.
///
/// # Errors
/// When `wrt` names no float parameter, or a float result depends on one through an op without a derivative.
pub fn jvp(f: &Func, wrt: &[usize]) -> Result<Func> {
    let active = active_params(f, wrt)?;
    let d = Forward::new(Mode::Joint).differentiate(f, &active, &vec![true; f.results.len()])?;
    let mut b = Builder::on_mesh(&format!("jvp_{}", f.name), f.mesh.clone());
    let mut params: Vec<ValueId> = f.params.iter().map(|p| b.param(&p.name, f.ty(p.value).clone())).collect();
    params.extend(add_tangents(&mut b, f, wrt));
    let values = b.inline(&d.func, &params)?;
    let (primal, tangents) = values.split_at(f.results.len());
    let mut results = primal.to_vec();
    results.extend(fill_zeros(&mut b, f, &d.out, tangents)?);
    prune(&b.finish(&results))
}

/// Adds a tangent parameter for each of `wrt` and gives them in the order of `f`'s parameters.
pub(crate) fn add_tangents(b: &mut Builder, f: &Func, wrt: &[usize]) -> Vec<ValueId> {
    let mut tangents: Vec<(usize, ValueId)> = wrt
        .iter()
        .map(|&i| (i, b.param(&format!("{}.tangent", f.params[i].name), f.ty(f.params[i].value).clone())))
        .collect();
    tangents.sort_unstable();
    tangents.into_iter().map(|(_, v)| v).collect()
}

/// One tangent per float result: those present in order, zeros for the others.
pub(crate) fn fill_zeros(b: &mut Builder, f: &Func, out: &[bool], present: &[ValueId]) -> Result<Vec<ValueId>> {
    let (mut present, mut all) = (present.iter(), Vec::new());
    for (&r, &has) in f.results.iter().zip(out) {
        if has {
            all.push(*present.next().expect("one value per tangent"));
        } else if f.ty(r).dtype.is_float() {
            all.push(b.full(f.ty(r), 0.0)?);
        }
    }
    Ok(all)
}

/// Per parameter whether `wrt` names it.
pub(crate) fn active_params(f: &Func, wrt: &[usize]) -> Result<Vec<bool>> {
    let mut active = vec![false; f.params.len()];
    for &i in wrt {
        let Some(p) = f.params.get(i) else {
            bail!("@{} has {} parameters, no number {i} to differentiate by", f.name, f.params.len());
        };
        let dtype = f.ty(p.value).dtype;
        if !dtype.is_float() {
            bail!("parameter {i} ({}) of @{} is {dtype}: only floats have derivatives", p.name, f.name);
        }
        if std::mem::replace(&mut active[i], true) {
            bail!("parameter {i} ({}) of @{} is named twice", p.name, f.name);
        }
    }
    Ok(active)
}

/// How calls that are recomputed appear in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// One call gives primals and tangents: nothing is computed twice.
    Joint,
    /// The primal call, and a call that gives tangents alone and is linear in them: it can be transposed.
    Apart,
}

/// A differentiated function.
pub(crate) struct Differentiated {
    /// Parameters: primals, then the tangents of active parameters in order.
    /// Results: primals, then the wanted tangents that are not zero.
    pub func: Func,
    /// Per primal result whether it has a tangent (that was wanted).
    pub out: Vec<bool>,
}

/// The callee's derivative as it is called, and which results have tangents.
type Callee = (Arc<Func>, Vec<bool>);

/// The walk, with the derivatives of recomputed callees made so far.
pub(crate) struct Forward {
    mode: Mode,
    /// By callee and active parameters. The callee is kept so that its address stays its own.
    callees: HashMap<(*const Func, Vec<bool>), (Arc<Func>, Callee)>,
}

/// What is known of a value's tangent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tangent {
    Zero,
    Value(ValueId),
    /// Lost at this node of the function.
    Refused(usize),
}

impl Tangent {
    fn value(self) -> Option<ValueId> {
        if let Tangent::Value(v) = self { Some(v) } else { None }
    }
}

impl Forward {
    pub(crate) fn new(mode: Mode) -> Forward {
        Forward { mode, callees: HashMap::new() }
    }

    /// The derivative, in the parameters that are `active`, of the results of `f` that are `wanted`.
    pub(crate) fn differentiate(&mut self, f: &Func, active: &[bool], wanted: &[bool]) -> Result<Differentiated> {
        let f = &inline_active(f, active)?;
        let mut b = Builder::on_mesh(&f.name, f.mesh.clone());
        let mut map: Vec<Option<ValueId>> = vec![None; f.values.len()];
        let mut tangents = vec![Tangent::Zero; f.values.len()];
        for p in &f.params {
            b.copy_node(f, f.def(p.value), &mut map)?;
        }
        for (p, _) in f.params.iter().zip(active).filter(|(_, a)| **a) {
            let d = b.param(&format!("{}.tangent", p.name), f.ty(p.value).clone());
            tangents[p.value.index()] = Tangent::Value(d);
        }
        for (at, node) in f.nodes.iter().enumerate().filter(|(_, n)| !is_param(n)) {
            self.node(f, at, node, &mut b, &mut map, &mut tangents)
                .map_err(|e| e.at_op(node.op.name()).at_loc(&node.loc))?;
        }
        let mut results: Vec<ValueId> = f.results.iter().map(|r| map[r.index()].expect("defined")).collect();
        let mut out = Vec::with_capacity(f.results.len());
        for (r, &wanted) in f.results.iter().zip(wanted) {
            out.push(match tangents[r.index()] {
                Tangent::Value(d) if wanted => Some(d),
                Tangent::Refused(n) if wanted && f.ty(*r).dtype.is_float() => return Err(refusal(f, &f.nodes[n])),
                _ => None,
            });
        }
        results.extend(out.iter().flatten());
        Ok(Differentiated { func: b.finish(&results), out: out.iter().map(Option::is_some).collect() })
    }

    /// One node: its primal and the tangents of its results.
    fn node(
        &mut self,
        f: &Func,
        at: usize,
        node: &Node,
        b: &mut Builder,
        map: &mut [Option<ValueId>],
        tangents: &mut [Tangent],
    ) -> Result<()> {
        let operands: Vec<Tangent> = node.operands.iter().map(|v| tangents[v.index()]).collect();
        let dx: Vec<Option<ValueId>> = operands.iter().map(|t| t.value()).collect();
        let lost = operands.iter().find(|t| matches!(t, Tangent::Refused(_))).copied();
        b.set_loc(node.loc.clone());
        let moves = dx.iter().any(Option::is_some);
        if let (Op::Call { func, remat: true }, true, None) = (&node.op, moves, lost) {
            return self.recomputed(func, node, &dx, b, map, tangents);
        }
        b.copy_node(f, node, map)?;
        if !moves && lost.is_none() {
            return Ok(());
        }
        if let Op::Call { .. } | Op::Composite { .. } = &node.op {
            let active: Vec<bool> = dx.iter().map(Option::is_some).collect();
            if lost.is_some() || !has_rule(&node.op, &active) {
                // Those without a rule are still here because no result's derivative asks for theirs.
                let lost = lost.unwrap_or(Tangent::Refused(at));
                node.results.iter().for_each(|r| tangents[r.index()] = lost);
                return Ok(());
            }
            let [x, y] = [&node.operands, &node.results]
                .map(|vs| vs.iter().map(|v| map[v.index()].expect("copied")).collect::<Vec<_>>());
            for (r, t) in node.results.iter().zip(composite::tangents(b, &node.op, &x, &y, &dx)?) {
                tangents[r.index()] = t.map_or(Tangent::Zero, Tangent::Value);
            }
            return Ok(());
        }
        if node.op == Op::OptimizationBarrier {
            let present: Vec<ValueId> = dx.iter().copied().flatten().collect();
            let mut fenced = if moves { b.emit_multi(Op::OptimizationBarrier, &present)? } else { vec![] }.into_iter();
            for (r, t) in node.results.iter().zip(&operands) {
                tangents[r.index()] = match t {
                    Tangent::Value(_) => Tangent::Value(fenced.next().expect("one per tangent")),
                    other => *other,
                };
            }
            return Ok(());
        }
        let result = node.results[0];
        let rule = rule(&node.op);
        tangents[result.index()] = match (rule.jvp, lost) {
            (Jvp::Zero, _) => Tangent::Zero,
            (Jvp::Refused, lost) => lost.unwrap_or(Tangent::Refused(at)),
            (_, Some(lost)) => lost,
            _ if !f.ty(result).dtype.is_float() => Tangent::Zero,
            _ => {
                let x: Vec<ValueId> = node.operands.iter().map(|v| map[v.index()].expect("topological")).collect();
                let ty: Vec<Type> = node.operands.iter().map(|&v| f.ty(v).clone()).collect();
                let y = map[result.index()].expect("copied");
                tangent(&mut At { b, op: &node.op, x: &x, ty: &ty, y }, &dx)?.map_or(Tangent::Zero, Tangent::Value)
            }
        };
        Ok(())
    }

    /// A call that reverse mode recomputes.
    fn recomputed(
        &mut self,
        callee: &Arc<Func>,
        node: &Node,
        dx: &[Option<ValueId>],
        b: &mut Builder,
        map: &mut [Option<ValueId>],
        tangents: &mut [Tangent],
    ) -> Result<()> {
        let active: Vec<bool> = dx.iter().map(Option::is_some).collect();
        let (func, out) = self.callee(callee, &active)?;
        let x: Vec<ValueId> = node.operands.iter().map(|v| map[v.index()].expect("topological")).collect();
        let all: Vec<ValueId> = x.iter().copied().chain(dx.iter().copied().flatten()).collect();
        let call = |b: &mut Builder, func: &Arc<Func>, args: &[ValueId]| {
            b.emit_multi(Op::Call { func: func.clone(), remat: true }, args)
        };
        let (primals, present) = match self.mode {
            Mode::Joint => {
                let mut both = call(b, &func, &all)?;
                let present = both.split_off(node.results.len());
                (both, present)
            }
            Mode::Apart => {
                let primals = call(b, callee, &x)?;
                (primals, if out.contains(&true) { call(b, &func, &all)? } else { vec![] })
            }
        };
        let mut present = present.into_iter();
        for ((r, p), has) in node.results.iter().zip(primals).zip(out) {
            map[r.index()] = Some(p);
            if has {
                tangents[r.index()] = Tangent::Value(present.next().expect("one per tangent"));
            }
        }
        Ok(())
    }

    /// The derivative of a recomputed callee, made once per callee and set of active parameters.
    fn callee(&mut self, callee: &Arc<Func>, active: &[bool]) -> Result<Callee> {
        let key = (Arc::as_ptr(callee), active.to_vec());
        if let Some((_, made)) = self.callees.get(&key) {
            return Ok(made.clone());
        }
        let Differentiated { mut func, out } = self.differentiate(callee, active, &vec![true; callee.results.len()])?;
        let prefix = match self.mode {
            Mode::Joint => "jvp",
            Mode::Apart => {
                func.results.drain(..callee.results.len());
                "tangent"
            }
        };
        func.name = format!("{prefix}_{}", callee.name).into();
        let made = (Arc::new(prune(&func)?), out);
        self.callees.insert(key, (callee.clone(), made.clone()));
        Ok(made)
    }
}

/// The error for a wanted tangent that was lost at `node`.
fn refusal(f: &Func, node: &Node) -> Error {
    let message = format!(
        "has no derivative, and a result of @{} depends on a differentiated parameter through it; \
         put stop_gradient before it if none is meant",
        f.name
    );
    Error::new(message).at_op(node.op.name()).at_loc(&node.loc)
}
