//! Barriers and depths: what may share a kernel with what.
//!
//! An `optimization_barrier` says that what comes after it must not be computed early. It is dropped here; what
//! stays is a depth per node, the greatest number of barriers on a path to it, and kernels never join nodes of
//! different depth.
//!
//! Pointwise work that nobody wants before a later barrier is moved there where that keeps less in memory: the new
//! weights, moments and averages of an optimizer wait for the check that the whole step is finite, so it is the
//! gradient that is kept until then, not they.
//!
//! Where devices exchange while they compute, weights that are gathered for a block are asked for one block ahead
//! ([`gathers_ahead`]): while one block computes, the weights of the next are on their way.

use crate::fuse::is_given;
use dnx_ir::{Builder, Func, NodeId, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// The function without its barriers, and the depth of every node.
///
/// # Errors
/// Those of building, which do not occur on a verified function.
pub fn without_barriers(func: &Func) -> dnx_ir::Result<(Func, Vec<u32>)> {
    let mut b = Builder::on_mesh(&func.name, func.mesh.clone());
    let mut map = vec![None; func.values.len()];
    let mut depth_of = vec![0u32; func.values.len()];
    let mut depths = vec![];
    for node in &func.nodes {
        let mut depth = node.operands.iter().map(|o| depth_of[o.index()]).max().unwrap_or(0);
        if node.op == Op::OptimizationBarrier {
            depth += 1;
            for (&r, &o) in node.results.iter().zip(&node.operands) {
                map[r.index()] = map[o.index()];
            }
        } else {
            b.copy_node(func, node, &mut map)?;
            depths.push(depth);
        }
        node.results.iter().for_each(|r| depth_of[r.index()] = depth);
    }
    let results: Vec<ValueId> = func.results.iter().map(|r| map[r.index()].expect("topological")).collect();
    let func = b.finish(&results);
    if depths.iter().any(|&d| d > 0) {
        sink(&func, &mut depths);
    }
    Ok((func, depths))
}

/// Brings what is gathered from parameters to the depth of the gathers before it, and what leads up to it (conversions,
/// views) with it. Gives per node, if it is such a gather or leads up to one, the depth at which its results are wanted; the
/// schedule puts these first in the depth they now have, so that there are two blocks' weights at most at a time.
pub fn gathers_ahead(func: &Func, depths: &mut [u32]) -> Vec<Option<u32>> {
    // What is made of parameters alone by work that may be done at any time.
    let mut given = vec![false; func.nodes.len()];
    for (id, node) in func.iter() {
        let from = |v: &ValueId| given[func.values[v.index()].node.index()];
        given[id.index()] = is_given(&node.op) || (movable(&node.op) && node.operands.iter().all(from));
    }
    let made_by = |v: ValueId| func.values[v.index()].node.index();
    let gathers: Vec<usize> =
        func.iter().filter(|(_, n)| matches!(n.op, Op::AllGather { .. })).map(|(id, _)| id.index()).collect();
    let before: BTreeSet<u32> = gathers.iter().map(|&g| depths[g]).collect();
    let mut wanted = vec![None; func.nodes.len()];
    for g in gathers {
        if !given[made_by(func.nodes[g].operands[0])] {
            continue;
        }
        let own = depths[g];
        let ahead = before.range(..own).next_back().copied().unwrap_or(own);
        let mut stack = vec![g];
        while let Some(n) = stack.pop() {
            if is_given(&func.nodes[n].op) {
                continue;
            }
            depths[n] = depths[n].min(ahead);
            wanted[n] = Some(wanted[n].map_or(own, |w: u32| w.min(own)));
            stack.extend(func.nodes[n].operands.iter().map(|&o| made_by(o)));
        }
    }
    wanted
}

/// Ops that may be done later: elementwise work and what shapes it.
fn movable(op: &Op) -> bool {
    let pointwise =
        matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Convert(_) | Op::Bitcast(_));
    pointwise || op.is_view()
}

/// Gives regions of movable nodes the depth of their first user, where the bytes they read are fewer than those
/// they make.
fn sink(func: &Func, depths: &mut [u32]) {
    let latest = latest(func, depths);
    let users = func.users();
    let candidate: Vec<bool> =
        func.iter().map(|(id, n)| movable(&n.op) && latest[id.index()] > depths[id.index()]).collect();
    for region in regions(func, &candidate) {
        let inside = |v: ValueId| region.contains(&func.values[v.index()].node);
        let mut read = BTreeSet::new();
        let mut made = BTreeSet::new();
        for &id in &region {
            let node = &func.nodes[id.index()];
            let kept = |v: &&ValueId| !inside(**v) && !is_input(func, **v);
            read.extend(node.operands.iter().filter(kept).copied());
            // A view of what is kept is no further copy of it.
            if !node.op.is_view() && node.results.iter().any(|v| users[v.index()].iter().any(|u| !region.contains(u))) {
                made.extend(node.results.iter().copied());
            }
        }
        let bytes = |set: &BTreeSet<ValueId>| set.iter().map(|&v| func.ty(v).device_bytes()).sum::<usize>();
        if bytes(&read) < bytes(&made) {
            region.iter().for_each(|id| depths[id.index()] = latest[id.index()]);
        }
    }
}

/// Whether the value is in memory before anything runs.
fn is_input(func: &Func, v: ValueId) -> bool {
    is_given(&func.def(v).op) || matches!(func.def(v).op, Op::Iota { .. })
}

/// Per node the latest depth at which its users allow it: that of its first user, if the node may move, else its
/// own. What the function returns stays where it is.
fn latest(func: &Func, depths: &[u32]) -> Vec<u32> {
    let mut first_user: Vec<Option<u32>> = vec![None; func.nodes.len()];
    let lower = |slot: &mut Option<u32>, depth: u32| *slot = Some(slot.map_or(depth, |d| d.min(depth)));
    for r in &func.results {
        let node = func.values[r.index()].node.index();
        lower(&mut first_user[node], depths[node]);
    }
    let mut latest = depths.to_vec();
    for (id, node) in func.iter().rev() {
        let id = id.index();
        if movable(&node.op) {
            latest[id] = first_user[id].unwrap_or(depths[id]);
        }
        for o in &node.operands {
            lower(&mut first_user[func.values[o.index()].node.index()], latest[id]);
        }
    }
    latest
}

/// The connected sets of candidates, in order.
fn regions(func: &Func, candidate: &[bool]) -> Vec<BTreeSet<NodeId>> {
    let mut of: Vec<usize> = (0..func.nodes.len()).collect();
    fn root(of: &mut [usize], mut i: usize) -> usize {
        while of[i] != i {
            of[i] = of[of[i]];
            i = of[i];
        }
        i
    }
    for (id, node) in func.iter().filter(|(id, _)| candidate[id.index()]) {
        for o in &node.operands {
            let from = func.values[o.index()].node;
            // Scalars and short vectors that many regions share do not tie them together.
            if candidate[from.index()] && func.ty(*o).elems() > 1 {
                let (a, b) = (root(&mut of, from.index()), root(&mut of, id.index()));
                of[a.max(b)] = a.min(b);
            }
        }
    }
    let mut sets: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
    for (id, _) in func.iter().filter(|(id, _)| candidate[id.index()]) {
        sets.entry(root(&mut of, id.index())).or_default().insert(id);
    }
    sets.into_values().collect()
}
