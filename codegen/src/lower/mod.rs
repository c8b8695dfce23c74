//! Lowering: a group of nodes becomes one kernel.
//!
//! The iteration space comes from the group's *anchor* (the reduction, the contraction, or the first output).
//! From it every member value gets coordinates, backwards and forwards through elementwise ops and bijective
//! views. Each output is then evaluated at its coordinates: elementwise ops become instructions, views transform
//! coordinates, values that live in memory become loads. When a reshape asks for a quotient that is not exact,
//! the dim in question is split in two and lowering starts over, so that nearly all indices end up affine.

mod attention;
pub mod coords;
mod eval;
mod normal;

use crate::kernel::{Arg, Dim, Idx, Inst, InstId, Kernel, Kind, Role, Scatter, Store, Tile};
use coords::{Coords, Space, linear};
use dnx_ir::{DType, Func, NodeId, Op, Type, ValueId};
use eval::Eval;
use std::collections::HashMap;

pub(crate) use attention::reads as attention_reads;

pub use crate::kernel::Access;

/// Why a group can't be one kernel. Not an error of the program: the fusion pass tries something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

pub(crate) type Lowering<T> = Result<T, Refusal>;

pub(crate) fn refuse<T>(why: impl Into<String>) -> Lowering<T> {
    Err(Refusal(why.into()))
}

/// What is known of the whole function while its groups are lowered.
pub struct Context<'f> {
    /// The function.
    pub func: &'f Func,
    /// For every value the nodes that use it.
    pub users: Vec<Vec<NodeId>>,
    /// Nodes that do work or must be written; all others (views, counters, splats) are read through.
    pub compute: Vec<bool>,
    /// Most arguments of one kernel.
    pub max_args: usize,
}

/// A kernel and what its arguments are.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The kernel.
    pub kernel: Kernel,
    /// The value behind every argument: inputs first, then outputs.
    pub args: Vec<ValueId>,
}

/// Greatest row that is reduced by one workgroup or thread; longer ones are columns of one.
pub const MAX_ROW: usize = 1 << 14;

impl Context<'_> {
    /// Whether the value lives in memory of its own when no group computes it inside: parameters and constants
    /// that are not one repeated number (unless that is gathered from), and coordinates in the mesh.
    pub fn is_stored(&self, v: ValueId) -> bool {
        match &self.func.def(v).op {
            Op::Param { .. } | Op::AxisIndex { .. } => true,
            Op::Const(array) if array.as_splat().is_none() => true,
            _ => self.compute[self.func.values[v.index()].node.index()],
        }
    }

    fn ty(&self, v: ValueId) -> &Type {
        self.func.ty(v)
    }
}

/// The reduction a node makes, as operand and dims.
pub(crate) fn reduction(func: &Func, node: NodeId) -> Option<(ValueId, Vec<usize>)> {
    let n = &func.nodes[node.index()];
    match &n.op {
        Op::Reduce { dims, .. } => Some((n.operands[0], dims.clone())),
        Op::Argmax { dim } => Some((n.operands[0], vec![*dim])),
        _ => None,
    }
}

/// How the reductions of a node are best walked.
pub fn reduce_kind(func: &Func, node: NodeId) -> Kind {
    let (x, dims) = reduction(func, node).expect("a reduction");
    let all = &func.ty(x).dims;
    let extent: usize = dims.iter().map(|&d| all[d]).product();
    let last = (0..all.len()).rev().find(|&d| all[d] > 1).unwrap_or(0);
    let is_argmax = matches!(func.nodes[node.index()].op, Op::Argmax { .. });
    if is_argmax || (dims.contains(&last) && extent <= MAX_ROW) || extent <= 1 { Kind::Row } else { Kind::Column }
}

/// Lowers a group. `members` are sorted; `outputs` are the values that must be written.
///
/// # Errors
/// Says why the group is not one kernel.
pub fn lower(cx: &Context, kind: Kind, members: &[NodeId], outputs: &[ValueId]) -> Lowering<Lowered> {
    let mut splits: Vec<(usize, usize)> = Vec::new();
    loop {
        let (result, wanted) = attempt(cx, kind, members, outputs, &splits);
        let lowered = result?;
        // Splitting the same dim for ever is excluded by the bound; what is left is an index with a division.
        match wanted {
            Some(split) if splits.len() < 12 => splits.push(split),
            _ => return Ok(normal::normalise(lowered)),
        }
    }
}

/// The iteration dims before refinement, and where the anchor's values are in it.
struct Frame {
    dims: Vec<Dim>,
    /// Values with known coordinates.
    placed: Vec<(ValueId, Coords)>,
}

fn attempt(
    cx: &Context,
    kind: Kind,
    members: &[NodeId],
    outputs: &[ValueId],
    splits: &[(usize, usize)],
) -> (Lowering<Lowered>, Option<(usize, usize)>) {
    let mut dims = match frame_dims(cx, kind, members, outputs) {
        Ok(dims) => dims,
        Err(r) => return (Err(r), None),
    };
    // Each original dim as an index over the refined ones.
    let mut at: Coords = (0..dims.len()).map(Idx::dim).collect();
    for &(d, inner) in splits {
        let outer = dims[d].size / inner;
        dims[d].size = outer;
        dims.insert(d + 1, Dim { size: inner, role: dims[d].role });
        for idx in &mut at {
            *idx = normal::split_dim(idx, d, inner as i64);
        }
    }
    let space = Space::new(dims.iter().map(|d| d.size).collect());
    let mut eval = Eval::new(cx, kind, members, space);
    let result = (|| {
        let frame = Frame { dims: dims.clone(), placed: place_anchor(cx, kind, members, outputs, &at)? };
        build(cx, kind, members, outputs, frame, &at, &mut eval)
    })();
    let wanted = eval.space.splits.first().copied();
    (result, wanted)
}

/// The node a group is built around, if its kind has one.
fn anchor(cx: &Context, kind: Kind, members: &[NodeId]) -> Option<NodeId> {
    members.iter().copied().find(|n| {
        matches!(
            (&cx.func.nodes[n.index()].op, kind),
            (Op::Reduce { .. } | Op::Argmax { .. }, Kind::Row | Kind::Column)
                | (Op::Dot { .. } | Op::Conv { .. }, Kind::Contract)
                | (Op::ScatterAdd { .. }, Kind::Index)
                | (Op::Composite { .. }, Kind::Attention)
        )
    })
}

fn frame_dims(cx: &Context, kind: Kind, members: &[NodeId], outputs: &[ValueId]) -> Lowering<Vec<Dim>> {
    let func = cx.func;
    let dim = |size: usize, role: Role| Dim { size, role };
    let Some(node) = anchor(cx, kind, members) else {
        let Some(&first) = outputs.first() else { return refuse("nothing is written") };
        return Ok(cx.ty(first).dims.iter().map(|&n| dim(n, Role::Parallel)).collect());
    };
    let n = &func.nodes[node.index()];
    Ok(match &n.op {
        Op::Reduce { .. } | Op::Argmax { .. } => {
            let (x, dims) = reduction(func, node).expect("checked");
            let all = &cx.ty(x).dims;
            let kept = (0..all.len()).filter(|d| !dims.contains(d)).map(|d| dim(all[d], Role::Parallel));
            let reduced = dims.iter().map(|&d| dim(all[d], Role::Reduce));
            if kind == Kind::Row { kept.chain(reduced).collect() } else { reduced.chain(kept).collect() }
        }
        Op::Dot { dims: d, .. } => {
            let (x, y) = (cx.ty(n.operands[0]), cx.ty(n.operands[1]));
            let batch = d.lhs_batch.iter().map(|&i| dim(x.dims[i], Role::Batch));
            let m = d.lhs_free(x.rank()).into_iter().map(|i| dim(x.dims[i], Role::M));
            let k = d.lhs_contract.iter().map(|&i| dim(x.dims[i], Role::Reduce));
            let free = d.rhs_free(y.rank()).into_iter().map(|i| dim(y.dims[i], Role::N));
            batch.chain(m).chain(free).chain(k).collect()
        }
        Op::Conv { dims: c, .. } => {
            let (w, out) = (cx.ty(n.operands[1]), cx.ty(n.results[0]));
            let spatial = c.stride.len();
            let mut dims = vec![dim(c.groups, Role::Batch)];
            dims.extend(out.dims[..=spatial].iter().map(|&s| dim(s, Role::M)));
            dims.push(dim(w.dims[spatial + 1] / c.groups, Role::N));
            dims.extend(w.dims[..=spatial].iter().map(|&s| dim(s, Role::Reduce)));
            dims
        }
        Op::ScatterAdd { dim: axis } => {
            let (x, i) = (cx.ty(n.operands[0]), cx.ty(n.operands[1]));
            let outer = x.dims[..*axis].iter().map(|&s| dim(s, Role::Parallel));
            // A single index is a walk of one.
            let walk = if i.dims.is_empty() { &[1][..] } else { &i.dims };
            let idx = walk.iter().map(|&s| dim(s, Role::Reduce));
            let inner = x.dims[axis + 1..].iter().map(|&s| dim(s, Role::Parallel));
            outer.chain(idx).chain(inner).collect()
        }
        Op::Composite { .. } => attention::dims(func, node),
        _ => unreachable!("anchors are reductions, contractions, scatters and attention"),
    })
}

/// Coordinates of the values around the anchor; `at` gives each dim of [`frame_dims`].
fn place_anchor(
    cx: &Context,
    kind: Kind,
    members: &[NodeId],
    outputs: &[ValueId],
    at: &[Idx],
) -> Lowering<Vec<(ValueId, Coords)>> {
    let func = cx.func;
    let Some(node) = anchor(cx, kind, members) else {
        return Ok(vec![(outputs[0], at.to_vec())]);
    };
    let n = &func.nodes[node.index()];
    Ok(match &n.op {
        Op::Reduce { .. } | Op::Argmax { .. } => {
            let (x, dims) = reduction(func, node).expect("checked");
            let rank = cx.ty(x).rank();
            let kept: Vec<usize> = (0..rank).filter(|d| !dims.contains(d)).collect();
            let (kept_at, reduced_at) = if kind == Kind::Row { (0, kept.len()) } else { (dims.len(), 0) };
            let mut full = vec![Idx::default(); rank];
            for (i, &d) in kept.iter().enumerate() {
                full[d] = at[kept_at + i].clone();
            }
            for (i, &d) in dims.iter().enumerate() {
                full[d] = at[reduced_at + i].clone();
            }
            let row: Coords = kept.iter().map(|&d| full[d].clone()).collect();
            let mut placed = Vec::new();
            for &m in members {
                if let Some((y, other)) = reduction(func, m) {
                    if other != dims || cx.ty(y).dims != cx.ty(x).dims {
                        return refuse("reductions over different rows");
                    }
                    placed.push((func.nodes[m.index()].results[0], row.clone()));
                    placed.push((y, full.clone()));
                }
            }
            placed
        }
        Op::Dot { .. } => {
            let rank = cx.ty(n.results[0]).rank();
            vec![(n.results[0], at[..rank].to_vec())]
        }
        Op::Conv { dims: c, .. } => {
            let spatial = c.stride.len();
            let per_group = cx.ty(n.operands[1]).dims[spatial + 1] / c.groups;
            let mut out = at[1..spatial + 2].to_vec();
            out.push(coords::add(&coords::scale(&at[0], per_group as i64, 0), &at[spatial + 2]));
            vec![(n.results[0], out)]
        }
        Op::ScatterAdd { .. } => vec![],
        Op::Composite { .. } => attention::places(func, node, at)?,
        _ => unreachable!("anchors are reductions, contractions, scatters and attention"),
    })
}

fn build(
    cx: &Context,
    kind: Kind,
    members: &[NodeId],
    outputs: &[ValueId],
    frame: Frame,
    at: &[Idx],
    eval: &mut Eval,
) -> Lowering<Lowered> {
    let places = propagate(cx, members, &frame.placed, &mut eval.space)?;
    eval.anchor_at = at.to_vec();
    eval.placed = frame.placed.iter().cloned().collect();
    let mut stores = Vec::new();
    let mut scatter = None;
    if kind == Kind::Index {
        let node = anchor(cx, kind, members).expect("an Index group has a scatter");
        if outputs != [cx.func.nodes[node.index()].results[0]] {
            return refuse("a scatter writes its own result alone");
        }
        scatter = Some(eval.scatter(node, at)?);
    } else {
        for &v in outputs {
            let Some(place) = places.get(&v) else {
                return refuse("an output does not cover the iteration space once");
            };
            let value = eval.value(v, place, &[])?;
            stores.push((v, linear(place, &cx.ty(v).strides()), value));
        }
    }
    let mut args = eval.args.clone();
    let inputs = args.len();
    let arg = |v: ValueId, access: Access| Arg { dtype: cx.ty(v).dtype, elems: cx.ty(v).elems(), access };
    let mut kernel_args: Vec<Arg> = args.iter().map(|&v| arg(v, Access::Read)).collect();
    for &v in outputs {
        args.push(v);
        kernel_args.push(arg(v, Access::Write));
    }
    if args.len() > cx.max_args {
        return refuse(format!("{} buffers where a kernel binds {}", args.len(), cx.max_args));
    }
    let stores = stores
        .into_iter()
        .enumerate()
        .map(|(i, (_, index, value))| Store { arg: (inputs + i) as u32, index, value })
        .collect();
    if let Some(s) = &mut scatter {
        s.out = inputs as u32;
    }
    let kernel = Kernel {
        kind,
        dims: frame.dims,
        args: kernel_args,
        insts: std::mem::take(&mut eval.insts),
        dtypes: std::mem::take(&mut eval.dtypes),
        stores,
        scatter,
        tile: Tile::default(),
    };
    check_kind(&kernel)?;
    Ok(Lowered { kernel, args })
}

/// What each kind can't do.
fn check_kind(kernel: &Kernel) -> Lowering<()> {
    let reduce: u64 =
        kernel.dims.iter().enumerate().filter(|(_, d)| d.role == Role::Reduce).map(|(i, _)| 1u64 << i).sum();
    let masks = kernel.dependence();
    let mut reduced = vec![false; kernel.insts.len()];
    for (i, inst) in kernel.insts.iter().enumerate() {
        reduced[i] = inst.is_reduction() || inst.operands().iter().any(|o| reduced[o.index()]);
        let walks = masks[i] & reduce != 0;
        match kernel.kind {
            Kind::Column | Kind::Contract
                if reduced[i] && (walks || (inst.is_reduction() && i_reads(inst, &reduced))) =>
            {
                return refuse("a reduced value is used again over the reduced dims");
            }
            Kind::Loop | Kind::Multi if reduced[i] => return refuse("a reduction in a pointwise group"),
            _ => {}
        }
    }
    if kernel.kind == Kind::Attention {
        attention::check(kernel)?;
    }
    for s in &kernel.stores {
        let over = |mask: u64| mask & reduce != 0;
        match kernel.kind {
            Kind::Contract if over(masks[s.value.index()] | s.index.dims()) => {
                return refuse("a contraction writes a value over the contracted dims");
            }
            // These are written while the reduction is still going on.
            Kind::Column if reduced[s.value.index()] && over(s.index.dims()) => {
                return refuse("a reduced value is written over the reduced dims");
            }
            _ => {}
        }
    }
    Ok(())
}

fn i_reads(inst: &Inst, reduced: &[bool]) -> bool {
    inst.operands().iter().any(|o| reduced[o.index()])
}

/// Coordinates of every value reachable from the placed ones through elementwise ops and bijective views.
fn propagate(
    cx: &Context,
    members: &[NodeId],
    placed: &[(ValueId, Coords)],
    space: &mut Space,
) -> Lowering<HashMap<ValueId, Coords>> {
    let func = cx.func;
    let is_member = |n: NodeId| members.binary_search(&n).is_ok();
    // A transparent view is walked only between members.
    let walkable = |n: NodeId| is_member(n) || (!cx.compute[n.index()] && func.nodes[n.index()].op.is_view());
    let mut places: HashMap<ValueId, Coords> = HashMap::new();
    let mut work: Vec<ValueId> = Vec::new();
    for (v, c) in placed {
        if places.insert(*v, c.clone()).is_none() {
            work.push(*v);
        }
    }
    // Forward steps through views must not leave the group, or they would walk the whole function.
    let leads_inside = |v: ValueId| {
        let mut stack = vec![v];
        while let Some(v) = stack.pop() {
            for &u in &cx.users[v.index()] {
                if is_member(u) {
                    return true;
                }
                if walkable(u) {
                    stack.extend(&func.nodes[u.index()].results);
                }
            }
        }
        false
    };
    while let Some(v) = work.pop() {
        let c = places[&v].clone();
        let def = func.values[v.index()].node;
        let node = &func.nodes[def.index()];
        let mut found: Vec<(ValueId, Coords)> = Vec::new();
        if walkable(def) {
            if node.op.is_elementwise() {
                found.extend(node.operands.iter().map(|&o| (o, c.clone())));
            } else if let Some(b) = backward(cx, def, &c, space) {
                found.push((node.operands[0], b));
            }
        }
        for &u in &cx.users[v.index()] {
            let user = &func.nodes[u.index()];
            if !walkable(u) || (!is_member(u) && !leads_inside(user.results[0])) {
                continue;
            }
            if user.op.is_elementwise() {
                found.push((user.results[0], c.clone()));
            } else if let Some(f) = forward(cx, u, &c, space) {
                found.push((user.results[0], f));
            } else if matches!(user.op, Op::Broadcast { .. }) {
                // A row's value repeated along the row it was reduced from is back at the row's coordinates.
                for (x, full) in placed {
                    let repeats = cx.ty(*x).dims == cx.ty(user.results[0]).dims;
                    if repeats && eval::through_view(cx, u, full, space).is_some_and(|b| b == c) {
                        found.push((user.results[0], full.clone()));
                        break;
                    }
                }
            }
        }
        for (w, c) in found {
            if let std::collections::hash_map::Entry::Vacant(e) = places.entry(w) {
                e.insert(c);
                work.push(w);
            }
        }
    }
    Ok(places)
}

/// Operand coordinates of a bijective view.
fn backward(cx: &Context, node: NodeId, c: &[Idx], space: &mut Space) -> Option<Coords> {
    match cx.func.nodes[node.index()].op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Reverse { .. } => eval::through_view(cx, node, c, space),
        _ => None,
    }
}

/// Result coordinates of a bijective view.
fn forward(cx: &Context, node: NodeId, c: &[Idx], space: &mut Space) -> Option<Coords> {
    let n = &cx.func.nodes[node.index()];
    let (from, to) = (cx.ty(n.operands[0]), cx.ty(n.results[0]));
    match &n.op {
        Op::Reshape { .. } => Some(space.reshape(c, &from.dims, &to.dims)),
        Op::Transpose { perm } => Some(perm.iter().map(|&p| c[p].clone()).collect()),
        Op::Reverse { .. } => eval::through_view(cx, node, c, space),
        _ => None,
    }
}

/// Shared by the evaluator: an instruction list with equal instructions merged.
pub(crate) fn push_inst(
    insts: &mut Vec<Inst>,
    dtypes: &mut Vec<DType>,
    seen: &mut HashMap<Inst, InstId>,
    inst: Inst,
    dtype: DType,
) -> InstId {
    if let Some(&id) = seen.get(&inst) {
        return id;
    }
    let id = InstId(insts.len() as u32);
    seen.insert(inst.clone(), id);
    insts.push(inst);
    dtypes.push(dtype);
    id
}

pub(crate) fn empty_scatter(target: InstId, update: InstId, rows: usize, base: Option<u32>) -> Scatter {
    Scatter { target, update, rows, base, out: 0 }
}
