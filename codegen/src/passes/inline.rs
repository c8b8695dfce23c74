//! Calls and composites are replaced by their bodies, all the way down. A composite that the target's lowering
//! claims by name stays. Model paths of a body are prefixed with the path of the call.
//!
//! `remat` of a call has had its effect when the derivative was taken; here it is only a call.

use super::rebuild;
use crate::{GpuClass, InStage, Options, Result, Stage};
use dnx_ir::attention::Attention;
use dnx_ir::{Builder, DType, Func, Loc, Node, Op, ValueId};
use std::collections::BTreeSet;

/// Greatest head dim of an attention kernel.
const HEAD: usize = 256;

/// Workgroup memory in which every attention kernel finds room for a tile.
const ROOM: u32 = 16 << 10;

/// Whether the target lowers the composite itself on these operands.
pub fn claims(options: &Options, func: &Func, op: &Op, operands: &[ValueId]) -> bool {
    let (Op::Composite { func: callee, .. }, Some(_)) = (op, Attention::of(op)) else { return false };
    let types = callee.param_types();
    let fits = types.iter().all(|ty| ty.dtype != DType::F64 && ty.elems() > 0) && types[0].dims[3] <= HEAD;
    let Some(limits) = options.target.gpu() else { return fits };
    let (queries, keys) = (&types[0].dims, &types[1].dims);
    let scores = [queries[0], queries[1], queries[2], keys[1]].iter().fold(4u64, |n, &d| n.saturating_mul(d as u64));
    if limits.class == GpuClass::Software && scores <= options.held_scores {
        return false;
    }
    let mut buffers = BTreeSet::new();
    operands.iter().for_each(|&v| origins(func, v, &mut buffers));
    let bound = buffers.len() + callee.results.len();
    // One binding is kept for scratch memory.
    fits && limits.workgroup_bytes >= ROOM && bound < limits.storage_buffers as usize
}

/// The values in memory that a value is a view of.
fn origins(func: &Func, v: ValueId, into: &mut BTreeSet<ValueId>) {
    let node = func.def(v);
    match &node.op {
        Op::Concat { .. } => node.operands.iter().for_each(|&x| origins(func, x, into)),
        Op::Const(array) if array.as_splat().is_some() => {}
        op if op.is_view() => origins(func, node.operands[0], into),
        _ => {
            into.insert(v);
        }
    }
}

/// The function without calls and unclaimed composites.
///
/// # Errors
/// A callee whose body is ill-typed.
pub fn inline(func: &Func, options: &Options) -> Result<Func> {
    rebuild(func, |b, node, operands| {
        b.set_loc(node.loc.clone());
        emit(b, node, operands, options)
    })
    .in_stage(Stage::Inline)
}

/// Emits a node at the path in force, or the body of its callee.
fn emit(b: &mut Builder, node: &Node, operands: &[ValueId], options: &Options) -> dnx_ir::Result<Vec<ValueId>> {
    match &node.op {
        op if claims(options, b.func(), op, operands) => b.emit_multi(op.clone(), operands),
        Op::Call { func, .. } | Op::Composite { func, .. } => splice(b, func, operands, options),
        op => b.emit_multi(op.clone(), operands),
    }
}

fn splice(b: &mut Builder, callee: &Func, args: &[ValueId], options: &Options) -> dnx_ir::Result<Vec<ValueId>> {
    let prefix = b.loc().clone();
    let mut paths = Paths { prefix: prefix.clone(), last: None };
    let results = super::walk(
        callee,
        b,
        |_, i| args[i],
        |b, node, operands| {
            b.set_loc(paths.of(&node.loc));
            emit(b, node, operands, options)
        },
    )?;
    b.set_loc(prefix);
    Ok(results)
}

/// Prefixes paths, remembering the last: neighbours mostly share theirs.
struct Paths {
    prefix: Loc,
    last: Option<(Loc, Loc)>,
}

impl Paths {
    fn of(&mut self, loc: &Loc) -> Loc {
        if self.prefix.is_empty() {
            return loc.clone();
        }
        if loc.is_empty() {
            return self.prefix.clone();
        }
        match &self.last {
            Some((from, to)) if from == loc => to.clone(),
            _ => {
                let to: Loc = format!("{}.{loc}", self.prefix).into();
                self.last = Some((loc.clone(), to.clone()));
                to
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::{Graph, Type};
    use std::sync::Arc;

    fn square() -> Arc<Func> {
        let g = Graph::new("square");
        let x = g.param("x", Type::f32([4]));
        let y = g.scope("inner", || x * x);
        Arc::new(g.finish(&[y]).unwrap())
    }

    #[test]
    fn nested_calls_and_composites_disappear_and_paths_are_prefixed() {
        let outer = {
            let g = Graph::new("outer");
            let x = g.param("x", Type::f32([4]));
            let y = g.scope("mid", || g.composite("square", vec![], &square(), &[x])[0]);
            Arc::new(g.finish(&[y]).unwrap())
        };
        let g = Graph::new("main");
        let x = g.param("x", Type::f32([4]));
        let y = g.scope("top", || g.call_remat(&outer, &[x])[0]);
        let f = inline(&g.finish(&[y]).unwrap(), &Options::default()).unwrap();
        assert_eq!(f.nodes.len(), 2);
        assert_eq!(f.nodes[1].op, Op::Binary(dnx_ir::BinaryOp::Mul));
        assert_eq!(&*f.nodes[1].loc, "top.mid.inner");
    }

    #[test]
    fn a_callee_that_returns_its_argument_gives_the_argument() {
        let g = Graph::new("id");
        let x = g.param("x", Type::f32([4]));
        let id = Arc::new(g.finish(&[x, x]).unwrap());
        let g = Graph::new("main");
        let x = g.param("x", Type::f32([4]));
        let ys = g.call(&id, &[x]);
        let f = inline(&g.finish(&ys).unwrap(), &Options::default()).unwrap();
        assert_eq!(f.results, [f.params[0].value; 2]);
    }
}
