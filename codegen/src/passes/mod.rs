//! Graph passes: a function in, an equivalent function out, each a rebuild through [`dnx_ir::Builder`].
//!
//! [`prepare`] is the whole front half of the compiler: what comes out of it has no calls, no composite that no
//! kernel claims, no dead node, no two equal nodes, only ops that a kernel kind has, arithmetic only in
//! dtypes the target computes in, and (over one device) no shardings. Parameters keep their number, order and
//! names, results their number, order and types, whatever is unused.
//!
//! `optimization_barrier` stays: nothing is merged or moved through it, which is what makes recomputation real.
//! It disappears when kernels are made.

pub mod canonical;
pub mod dce;
pub mod decompose;
pub mod fp8;
pub mod inline;
pub mod mixed;
pub mod partition;
pub mod precision;

use crate::{Dump, InStage, Options, Result, Stage, Target};
use dnx_ir::{Builder, Func, Node, ValueId, text, verify};

/// `func` made ready for fusion: inlined, canonical, decomposed, of one device.
///
/// # Errors
/// Names the stage, the op and the model path of what can't be compiled.
pub fn prepare(func: &Func, target: &Target) -> Result<Func> {
    prepare_with(func, &Options::new(*target), cfg!(debug_assertions), &mut Dump::none())
}

/// [`prepare`] at the options' precision, recording the stages in `dump`; with `verify` the verifier runs after each pass.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_with(func: &Func, options: &Options, verify: bool, dump: &mut Dump) -> Result<Func> {
    let target = &options.target;
    let mut after = |stage: Stage, f: Func| -> Result<Func> {
        if verify {
            check(stage, &f)?;
        }
        dump.record(stage, || text::print(&f));
        Ok(f)
    };
    if verify {
        check(Stage::Model, func)?;
    }
    let f = after(Stage::Inline, inline::inline(func, options)?)?;
    // What follows sees the program of one device, without shardings.
    let f = partition::partition(&f, options.wire)?;
    let f = after(Stage::Canonical, canonical::canonical(&f)?)?;
    let f = after(Stage::Precision, precision::precision(&mixed::mixed(&f, options.precision)?, target)?)?;
    let f = after(Stage::Decompose, decompose::decompose(&f, target)?)?;
    // What the passes since then added (conversions, expanded powers, constants for indices) is canonical too.
    after(Stage::Partition, canonical::canonical(&f)?)
}

fn check(stage: Stage, f: &Func) -> Result<()> {
    verify::verify(f).in_stage(stage)
}

/// Walks `from` in order into `sink`: `param` makes the parameters, in order and first; `visit` is given every other
/// node with its operands already mapped and gives the new values of its results. Gives the mapped results.
fn walk<S>(
    from: &Func,
    sink: &mut S,
    mut param: impl FnMut(&mut S, usize) -> ValueId,
    mut visit: impl FnMut(&mut S, &Node, &[ValueId]) -> dnx_ir::Result<Vec<ValueId>>,
) -> dnx_ir::Result<Vec<ValueId>> {
    let mut map: Vec<Option<ValueId>> = vec![None; from.values.len()];
    for (i, p) in from.params.iter().enumerate() {
        map[p.value.index()] = Some(param(sink, i));
    }
    let mapped = |map: &[Option<ValueId>], v: ValueId| map[v.index()].expect("values are defined before their users");
    let mut operands = Vec::new();
    for node in &from.nodes {
        if matches!(node.op, dnx_ir::Op::Param { .. }) {
            continue;
        }
        operands.clear();
        operands.extend(node.operands.iter().map(|&v| mapped(&map, v)));
        let results = visit(sink, node, &operands)?;
        debug_assert_eq!(results.len(), node.results.len(), "{} lost results", node.op.name());
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
        }
    }
    Ok(from.results.iter().map(|&r| mapped(&map, r)).collect())
}

/// [`walk`] into a plain builder over the same mesh, parameters copied.
fn rebuild(
    from: &Func,
    visit: impl FnMut(&mut Builder, &Node, &[ValueId]) -> dnx_ir::Result<Vec<ValueId>>,
) -> dnx_ir::Result<Func> {
    let mut b = Builder::on_mesh(&from.name, from.mesh.clone());
    let results = walk(from, &mut b, |b, i| copy_param(b, from, i), visit)?;
    Ok(b.finish(&results))
}

fn copy_param(b: &mut Builder, from: &Func, i: usize) -> ValueId {
    let p = &from.params[i];
    b.set_loc(from.def(p.value).loc.clone());
    b.param(&p.name, from.ty(p.value).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::{Graph, Op, Type};
    use std::sync::Arc;

    #[test]
    fn nothing_is_merged_through_a_barrier() {
        let build = |barrier: bool| {
            let g = Graph::new("f");
            let x = g.param("x", Type::f32([4]));
            let again = if barrier { x.apply(Op::OptimizationBarrier, &[]) } else { x };
            g.finish(&[x.exp(), again.exp()]).unwrap()
        };
        let count = |f: &Func, name: &str| f.nodes.iter().filter(|n| n.op.name() == name).count();
        let merged = prepare(&build(false), &Target::Cpu).unwrap();
        let kept = prepare(&build(true), &Target::Cpu).unwrap();
        assert_eq!((count(&merged, "exp"), count(&kept, "exp")), (1, 2));
        assert_eq!(count(&kept, "optimization_barrier"), 1);
    }

    #[test]
    fn two_equal_barriers_are_two() {
        let g = Graph::new("f");
        let x = g.param("x", Type::f32([4]));
        let (a, b) = (x.apply(Op::OptimizationBarrier, &[]), x.apply(Op::OptimizationBarrier, &[]));
        let f = prepare(&g.finish(&[a.exp(), b.exp()]).unwrap(), &Target::Cpu).unwrap();
        assert_eq!(f.nodes.iter().filter(|n| n.op.name() == "exp").count(), 2);
    }

    #[test]
    fn the_signature_stays_whatever_is_unused_or_trivial() {
        let g = Graph::new("f");
        let (x, unused) = (g.param("x", Type::f32([4])), g.param("unused", Type::f32([2])));
        let _ = unused.exp();
        let f = g.finish(&[x + 0.0, x, x.full_like(3.0)]).unwrap();
        let p = prepare(&f, &Target::Cpu).unwrap();
        assert_eq!(p.param_types(), f.param_types());
        assert_eq!(p.result_types(), f.result_types());
        assert_eq!(p.params[1].name, f.params[1].name);
        assert_eq!(p.results[0], p.params[0].value);
        assert_eq!(prepare(&p, &Target::Cpu).unwrap(), p);
    }

    #[test]
    fn stages_are_dumped_in_order_and_parse_back() {
        let g = Graph::new("square");
        let x = g.param("x", Type::f32([4]));
        let square = Arc::new(g.finish(&[x * x + 0.0]).unwrap());
        let g = Graph::new("f");
        let x = g.param("x", Type::f32([4]));
        let f = g.finish(&g.call(&square, &[x])).unwrap();
        let mut dump = Dump::all();
        prepare_with(&f, &Options::default(), true, &mut dump).unwrap();
        let stages: Vec<Stage> = dump.texts().map(|(s, _)| s).collect();
        let passes = [Stage::Inline, Stage::Canonical, Stage::Precision, Stage::Decompose, Stage::Partition];
        assert_eq!(stages, passes);
        for (stage, text) in dump.texts() {
            assert_eq!(text::print(&text::parse(text).unwrap()), text, "{stage}");
        }
        let inline = dump.text(Stage::Inline).unwrap();
        assert!(inline.contains("add") && !inline.contains("call"), "{inline}");
        assert!(!dump.text(Stage::Canonical).unwrap().contains("add"));
    }

    #[test]
    fn an_ill_formed_function_is_refused_with_its_stage() {
        let g = Graph::new("f");
        let x = g.param("x", Type::f32([4]));
        let mut f = g.finish(&[x.exp()]).unwrap();
        f.values[1].ty = Type::f32([5]);
        let e = prepare_with(&f, &Options::default(), true, &mut Dump::none()).unwrap_err().to_string();
        assert!(e.contains("model") && e.contains("exp"), "{e}");
    }
}
