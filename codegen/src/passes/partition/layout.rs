//! The layout each value is computed in: the one of its type, or a finer one that all its readers ask for.
//!
//! One walk from the results back. A reader asks for its operands as its own factors want them, so that what is split at
//! the end (a sample's loss, a parameter's update) is split from the beginning wherever nothing holds it together: the
//! draws of noise and times, constants, and sums over devices, which then give each device its part.

use dnx_ir::sharding::place_as;
use dnx_ir::{Func, Node, Op, Sharding, Type, ValueId};

/// Per value the layout to compute it in.
pub fn layouts(func: &Func) -> Vec<Sharding> {
    let mut asked = Asked { func, layouts: vec![None; func.values.len()] };
    let mut layouts: Vec<Sharding> = func.values.iter().map(|v| v.ty.sharding.clone()).collect();
    for &r in &func.results {
        asked.ask(r, &func.ty(r).sharding);
    }
    for node in func.nodes.iter().rev() {
        for &r in &node.results {
            if let Some(layout) = asked.layouts[r.index()].take()
                && computes(func, node, r, &layout)
            {
                layouts[r.index()] = layout;
            }
        }
        let result =
            |i: usize| func.ty(node.results[i]).clone().with_sharding(layouts[node.results[i].index()].clone());
        match &node.op {
            Op::OptimizationBarrier => {
                (0..node.operands.len()).for_each(|i| asked.ask(node.operands[i], &result(i).sharding));
            }
            Op::Reshard { .. } => asked.ask(node.operands[0], &result(0).sharding),
            op => {
                let types: Vec<&Type> = node.operands.iter().map(|&v| func.ty(v)).collect();
                let placement = match node.results.len() {
                    1 => place_as(op, &types, &result(0), &func.mesh),
                    _ => None,
                };
                for (i, &v) in node.operands.iter().enumerate() {
                    asked.ask(v, placement.as_ref().map_or(&types[i].sharding, |p| &p.operands[i]));
                }
            }
        }
    }
    layouts
}

/// What the readers seen so far ask for.
struct Asked<'a> {
    func: &'a Func,
    layouts: Vec<Option<Sharding>>,
}

impl Asked<'_> {
    /// A reader that would rather have this layout; its own where that is no refinement, or readers differ.
    fn ask(&mut self, v: ValueId, layout: &Sharding) {
        let own = &self.func.ty(v).sharding;
        let layout = if refines(layout, own) { layout } else { own };
        let agreed = self.layouts[v.index()].as_ref().is_none_or(|other| other == layout);
        self.layouts[v.index()] = Some(if agreed { layout.clone() } else { own.clone() });
    }
}

/// Whether each device can take its part in layout `a` from its part in layout `b`.
fn refines(a: &Sharding, b: &Sharding) -> bool {
    let whole = a.unreduced.is_empty() && b.unreduced.is_empty();
    whole && (0..a.dims.len().max(b.dims.len())).all(|d| a.dim(d).starts_with(b.dim(d)))
}

/// Whether the node can give its result `r` in this layout without its whole.
fn computes(func: &Func, node: &Node, r: ValueId, layout: &Sharding) -> bool {
    let ty = func.ty(r);
    if ty.sharding == *layout {
        return true;
    }
    match &node.op {
        Op::Param { .. } | Op::Composite { .. } | Op::Call { .. } => false,
        Op::Const(array) => array.as_splat().is_some(),
        Op::Iota { .. } | Op::Reshard { .. } | Op::OptimizationBarrier => true,
        op => {
            let types: Vec<&Type> = node.operands.iter().map(|&v| func.ty(v)).collect();
            place_as(op, &types, &ty.clone().with_sharding(layout.clone()), &func.mesh).is_some()
        }
    }
}
