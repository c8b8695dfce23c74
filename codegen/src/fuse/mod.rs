//! Fusion: nodes become groups, one kernel each.
//!
//! Every node that does work begins as a group of its own; views, counters and repeated numbers belong to nobody
//! and are read through. Edges are tried in order of the bytes that merging would save. A merge is made if the
//! lowering accepts the union as one kernel, no cycle arises, and nothing expensive would be computed more often
//! than before. A value that is also wanted elsewhere becomes a further output of the merged kernel. Every merge
//! and every refusal is recorded with its reason.
//!
//! The result is deterministic: ties are broken by value and group numbers.

mod recompute;

use crate::exec::Collective;
use crate::kernel::{Kernel, Kind};
use crate::lower::{Context, Lowered, Refusal, lower, reduce_kind};
use dnx_ir::{BinaryOp, Func, NodeId, Op, UnaryOp, ValueId};
use recompute::{Board, Ready};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};

/// A set of nodes that one step computes.
#[derive(Clone, Debug)]
pub struct Group {
    /// What it runs as.
    pub work: Work,
    /// Member nodes, sorted.
    pub members: Vec<NodeId>,
    /// Values that are wanted outside, in order.
    pub outputs: Vec<ValueId>,
}

/// What a group runs as.
#[derive(Clone, Debug)]
pub enum Work {
    /// A kernel.
    Kernel(Lowered),
    /// An exchange of the operand between devices; always the only node of its group.
    Collective(Collective, ValueId),
}

impl Work {
    /// The values it reads from memory; `outputs` are those it writes.
    fn inputs(&self, outputs: &[ValueId]) -> &[ValueId] {
        match self {
            Work::Kernel(lowered) => &lowered.args[..lowered.args.len() - outputs.len()],
            Work::Collective(_, operand) => std::slice::from_ref(operand),
        }
    }

    /// The kernel, if it is one.
    pub fn kernel(&self) -> Option<&Kernel> {
        match self {
            Work::Kernel(lowered) => Some(&lowered.kernel),
            Work::Collective(..) => None,
        }
    }

    /// Kernel kind, or the collective's name.
    pub fn name(&self) -> String {
        match self {
            Work::Kernel(lowered) => format!("{:?}", lowered.kernel.kind),
            Work::Collective(op, _) => op.name().to_string(),
        }
    }
}

impl Group {
    /// The values it reads from memory.
    pub fn inputs(&self) -> &[ValueId] {
        self.work.inputs(&self.outputs)
    }
}

/// The grouping of a function.
#[derive(Clone, Debug)]
pub struct Fusion {
    /// Groups in the order of their first member; their kernels are not yet scheduled.
    pub groups: Vec<Group>,
    /// One line per decision.
    pub reasons: Vec<String>,
}

/// Where a value is used, views in between looked through.
#[derive(Clone, Copy, Debug)]
struct Use {
    user: NodeId,
    /// The views in between are bijective: the user sees each element once.
    bijective: bool,
    /// Elements the user sees.
    elems: usize,
    /// The user reads it from memory whatever happens (a contraction's operand, a gathered table).
    opaque: bool,
}

/// Most instructions of one kernel.
const MAX_INSTS: usize = 400;

struct Fuser<'f> {
    cx: Context<'f>,
    /// Per value.
    uses: Vec<Vec<Use>>,
    is_result: Vec<bool>,
    /// Group of every compute node.
    group_of: Vec<usize>,
    groups: Vec<Option<Draft>>,
    /// A topological order of the groups, with gaps where groups were merged away, and each group's place in it.
    order: Vec<Option<usize>>,
    place: Vec<usize>,
    reasons: Vec<String>,
}

#[derive(Clone, Debug)]
struct Draft {
    /// How the kernel walks its space; `None` for a collective.
    kind: Option<Kind>,
    members: Vec<NodeId>,
    depth: u32,
}

/// Marks the nodes that do work or whose result must be in memory.
pub fn compute_nodes(func: &Func) -> Vec<bool> {
    let mut compute: Vec<bool> =
        func.nodes.iter().map(|n| !n.op.is_view() && !is_given(&n.op) && !matches!(n.op, Op::Iota { .. })).collect();
    // What is gathered from, exchanged or returned is in memory even if it is a view or a splat.
    let mut demand = |v: ValueId| {
        let node = func.values[v.index()].node;
        let stored = match &func.nodes[node.index()].op {
            Op::Param { .. } | Op::AxisIndex { .. } => true,
            Op::Const(a) => a.as_splat().is_none(),
            _ => false,
        };
        if !stored {
            compute[node.index()] = true;
        }
    };
    for node in &func.nodes {
        match node.op {
            ref op if op.is_collective() => demand(node.operands[0]),
            Op::Take { .. } | Op::DynamicSlice { .. } => demand(node.operands[0]),
            Op::DynamicUpdateSlice => demand(node.operands[1]),
            Op::Composite { .. } => {
                node.operands.iter().filter(|&&v| !crate::lower::attention_reads(func, v)).for_each(|&v| demand(v));
            }
            // What starts from zeros has none to read.
            Op::ScatterAdd { .. } if !is_zeros(func, node.operands[0]) => demand(node.operands[0]),
            _ => {}
        }
    }
    func.results.iter().for_each(|&r| demand(r));
    sink_views(func, &mut compute);
    compute
}

/// Ops whose value is in memory before anything runs: no work.
pub(crate) fn is_given(op: &Op) -> bool {
    matches!(op, Op::Param { .. } | Op::Const(_) | Op::AxisIndex { .. })
}

/// Whether every bit of a value is zero, as a constant or a repeated one.
fn is_zeros(func: &Func, v: ValueId) -> bool {
    let node = func.def(v);
    match &node.op {
        Op::Const(a) => a.as_splat().is_some_and(|s| s.bits() == 0),
        Op::Broadcast { .. } => is_zeros(func, node.operands[0]),
        _ => false,
    }
}

/// A value whose only user is a bijective view is written as that view's result: the view joins the work.
fn sink_views(func: &Func, compute: &mut [bool]) {
    let users = func.users();
    let bijective =
        |n: NodeId| matches!(func.nodes[n.index()].op, Op::Reshape { .. } | Op::Transpose { .. } | Op::Reverse { .. });
    let mut result = vec![false; func.values.len()];
    func.results.iter().for_each(|r| result[r.index()] = true);
    for (id, node) in func.iter() {
        let works = compute[id.index()]
            && matches!(
                node.op,
                Op::Dot { .. }
                    | Op::Conv { .. }
                    | Op::Unary(_)
                    | Op::Binary(_)
                    | Op::Select
                    | Op::Convert(_)
                    | Op::Concat { .. }
            );
        if !works {
            continue;
        }
        let mut chain = vec![];
        let mut v = node.results[0];
        while let [user] = users[v.index()][..] {
            if result[v.index()] || !bijective(user) || compute[user.index()] {
                break;
            }
            chain.push(user);
            v = func.nodes[user.index()].results[0];
        }
        // Worth it only where somebody reads the end of the chain as it is.
        let read = result[v.index()] || users[v.index()].iter().any(|u| !func.nodes[u.index()].op.is_view());
        if read && chain.iter().any(|&n| matches!(func.nodes[n.index()].op, Op::Transpose { .. } | Op::Reverse { .. }))
        {
            chain.iter().for_each(|n| compute[n.index()] = true);
        }
    }
}

/// Groups the nodes of a function that holds primitive ops alone.
///
/// `depths` gives per node the number of optimization barriers before it: nodes of different depth are not merged.
///
/// # Errors
/// A node that is no kernel even by itself.
pub fn fuse(func: &Func, depths: &[u32], max_args: usize, enabled: bool) -> Result<Fusion, dnx_ir::Error> {
    let compute = compute_nodes(func);
    let cx = Context { func, users: func.users(), compute, max_args };
    let mut fuser = Fuser::new(cx, depths);
    if enabled {
        fuser.merge_all();
    }
    fuser.finish(enabled)
}

/// Ops that are worth computing again rather than keeping.
fn is_cheap(op: &Op) -> bool {
    match op {
        Op::Unary(u) => matches!(
            u,
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Sign | UnaryOp::Not | UnaryOp::StopGradient | UnaryOp::Floor
        ),
        Op::Binary(b) => !matches!(b, BinaryOp::Pow | BinaryOp::Div | BinaryOp::Rem),
        Op::Convert(_) | Op::Bitcast(_) | Op::Compare(_) | Op::Select => true,
        op => op.is_view(),
    }
}

impl<'f> Fuser<'f> {
    fn new(cx: Context<'f>, depths: &[u32]) -> Fuser<'f> {
        let func = cx.func;
        let mut is_result = vec![false; func.values.len()];
        func.results.iter().for_each(|r| is_result[r.index()] = true);
        let mut groups = vec![];
        let mut group_of = vec![usize::MAX; func.nodes.len()];
        for (id, node) in func.iter() {
            if cx.compute[id.index()] {
                let kind = match &node.op {
                    Op::Reduce { .. } | Op::Argmax { .. } => Some(reduce_kind(func, id)),
                    Op::Dot { .. } | Op::Conv { .. } => Some(Kind::Contract),
                    Op::ScatterAdd { .. } => Some(Kind::Index),
                    Op::Composite { .. } => Some(Kind::Attention),
                    op if op.is_collective() => None,
                    _ => Some(Kind::Loop),
                };
                group_of[id.index()] = groups.len();
                groups.push(Some(Draft { kind, members: vec![id], depth: depths[id.index()] }));
            }
        }
        let order = (0..groups.len()).map(Some).collect();
        let place = (0..groups.len()).collect();
        let mut fuser = Fuser { cx, uses: vec![], is_result, group_of, groups, order, place, reasons: vec![] };
        fuser.uses = (0..func.values.len()).map(|v| fuser.find_uses(ValueId(v as u32))).collect();
        fuser
    }

    /// Uses of a value by compute nodes, transparent views looked through.
    fn find_uses(&self, v: ValueId) -> Vec<Use> {
        let func = self.cx.func;
        let node = func.values[v.index()].node;
        if !self.cx.compute[node.index()] {
            return vec![];
        }
        let mut uses = vec![];
        let mut stack = vec![(v, true)];
        while let Some((at, bijective)) = stack.pop() {
            let mut users = self.cx.users[at.index()].clone();
            users.dedup();
            for user in users {
                let n = &func.nodes[user.index()];
                if self.cx.compute[user.index()] {
                    let reads = |i: usize| n.operands.get(i) == Some(&at);
                    let opaque = match n.op {
                        Op::Dot { .. } | Op::Conv { .. } | Op::Composite { .. } => true,
                        ref op if op.is_collective() => true,
                        Op::Take { .. } | Op::DynamicSlice { .. } | Op::ScatterAdd { .. } => reads(0),
                        Op::DynamicUpdateSlice => reads(1),
                        _ => false,
                    };
                    let bijective = match n.op {
                        Op::Concat { .. } => bijective && n.operands.len() == 1,
                        Op::Slice { .. } | Op::Pad { .. } | Op::Broadcast { .. } => false,
                        Op::Take { .. } | Op::DynamicSlice { .. } | Op::RandomBits { .. } => false,
                        _ => bijective,
                    };
                    let elems = match n.op {
                        // A padded or joined operand is read about once; a key or start once per element.
                        Op::Pad { .. } | Op::Concat { .. } | Op::ScatterAdd { .. } => func.ty(at).elems(),
                        Op::Reduce { .. } | Op::Argmax { .. } => func.ty(at).elems(),
                        _ => func.ty(n.results[0]).elems(),
                    };
                    uses.push(Use { user, bijective, elems, opaque });
                } else {
                    let keeps = matches!(n.op, Op::Reshape { .. } | Op::Transpose { .. } | Op::Reverse { .. });
                    stack.push((n.results[0], bijective && keeps));
                }
            }
        }
        uses.sort_by_key(|u| u.user);
        uses
    }

    /// Values of the group that are wanted outside of it.
    fn outputs(&self, members: &[NodeId]) -> Vec<ValueId> {
        let mut out = vec![];
        for m in members {
            for &v in &self.cx.func.nodes[m.index()].results {
                let outside = |u: &Use| members.binary_search(&u.user).is_err();
                if self.is_result[v.index()] || self.uses[v.index()].iter().any(outside) {
                    out.push(v);
                }
            }
        }
        out
    }

    fn merge_all(&mut self) {
        let func = self.cx.func;
        // (bytes saved, value, user): the largest first, then the earliest.
        let mut queue: BinaryHeap<(usize, std::cmp::Reverse<(u32, u32)>)> = BinaryHeap::new();
        for v in 0..func.values.len() {
            let bytes = func.values[v].ty.device_bytes();
            for u in &self.uses[v] {
                if !u.opaque {
                    queue.push((bytes, std::cmp::Reverse((v as u32, u.user.0))));
                }
            }
        }
        let mut refused: HashSet<(usize, usize, usize)> = HashSet::new();
        // A merge can make another possible that was refused before; few rounds reach the fixpoint.
        let mut edges: Vec<_> = queue.into_sorted_vec();
        edges.reverse();
        for round in 0..3 {
            let mut merged = false;
            for &(_, std::cmp::Reverse((v, user))) in &edges {
                let v = ValueId(v);
                let p = self.group_of[func.values[v.index()].node.index()];
                let c = self.group_of[user as usize];
                if p == c {
                    continue;
                }
                let size = |g: usize| self.groups[g].as_ref().map_or(0, |d| d.members.len());
                let key = (p.min(c), p.max(c), size(p) * 4096 + size(c));
                if refused.contains(&key) {
                    continue;
                }
                match self.try_merge(p, c) {
                    Ok(()) => merged = true,
                    Err(Refusal(why)) => {
                        if round == 0 {
                            let (a, b) = (func.def(v), &func.nodes[user as usize]);
                            self.reasons.push(format!(
                                "kept apart {} %{} and {} %{}: {why}",
                                a.op.name(),
                                v.0,
                                b.op.name(),
                                b.results[0].0
                            ));
                        }
                        refused.insert(key);
                    }
                }
            }
            if !merged {
                break;
            }
        }
    }

    fn try_merge(&mut self, p: usize, c: usize) -> Result<(), Refusal> {
        let refuse = |why: &str| Err(Refusal(why.to_string()));
        let (Some(from), Some(to)) = (&self.groups[p], &self.groups[c]) else { return refuse("already merged") };
        if from.depth != to.depth {
            return refuse("a barrier stands between them");
        }
        let depth = to.depth;
        let (Some(from_kind), Some(to_kind)) = (from.kind, to.kind) else {
            return refuse("a collective exchanges what is in memory");
        };
        let kind = match (from_kind, to_kind) {
            (Kind::Loop, k) if !matches!(k, Kind::Contract | Kind::Attention) => k,
            (k @ (Kind::Row | Kind::Column | Kind::Contract | Kind::Attention), Kind::Loop) => k,
            (Kind::Row, Kind::Row) => Kind::Row,
            (Kind::Column, Kind::Column) => Kind::Column,
            (a, b) => return refuse(&format!("a {a:?} kernel does not continue as a {b:?} kernel")),
        };
        // Edges between the two: none may need memory, and what is not seen element by element must be cheap to
        // compute again and wanted nowhere else.
        for &m in &from.members {
            for &v in &self.cx.func.nodes[m.index()].results {
                for u in &self.uses[v.index()] {
                    if self.group_of[u.user.index()] != c {
                        continue;
                    }
                    if u.opaque {
                        return refuse("the consumer reads it from memory");
                    }
                    if !u.bijective && u.elems > self.cx.func.ty(v).elems() && kind_repeats(from_kind) {
                        let cheap = from.members.iter().all(|n| is_cheap(&self.cx.func.nodes[n.index()].op));
                        if !cheap {
                            return refuse("it would be computed once per repetition");
                        }
                    }
                }
            }
        }
        let Some(between) = self.reached(p, c) else { return refuse("a third kernel stands between them") };
        let mut members = [from.members.as_slice(), to.members.as_slice()].concat();
        members.sort_unstable();
        let outputs = self.outputs(&members);
        let lowered = lower(&self.cx, kind, &members, &outputs)?;
        if lowered.kernel.insts.len() > MAX_INSTS {
            return refuse("the kernel would be too long");
        }
        self.reasons.push(format!(
            "merged {} nodes into a {kind:?} kernel of {} with {} outputs",
            from.members.len(),
            members.len(),
            outputs.len()
        ));
        for m in &members {
            self.group_of[m.index()] = c;
        }
        self.groups[c] = Some(Draft { kind: Some(kind), members, depth });
        self.groups[p] = None;
        self.reorder(p, c, &between);
        Ok(())
    }

    /// The groups ordered before `c` that depend on `p`; `None` if one of them leads on to `c`, so that merging the
    /// two would make a cycle.
    fn reached(&self, p: usize, c: usize) -> Option<HashSet<usize>> {
        let mut reached = HashSet::new();
        let mut stack = vec![p];
        while let Some(g) = stack.pop() {
            for m in &self.groups[g].as_ref().expect("live").members {
                for &v in &self.cx.func.nodes[m.index()].results {
                    for u in &self.uses[v.index()] {
                        let next = self.group_of[u.user.index()];
                        if next == c && g != p {
                            return None;
                        }
                        if next != g && next != p && self.place[next] < self.place[c] && reached.insert(next) {
                            stack.push(next);
                        }
                    }
                }
            }
        }
        Some(reached)
    }

    /// Keeps the order topological after `p` went into `c`: what depends on `p` moves behind them.
    fn reorder(&mut self, p: usize, c: usize, reached: &HashSet<usize>) {
        let (from, to) = (self.place[p], self.place[c]);
        let window: Vec<usize> =
            self.order[from..=to].iter().flatten().copied().filter(|&g| g != p && g != c).collect();
        let (after, before): (Vec<usize>, Vec<usize>) = window.into_iter().partition(|g| reached.contains(g));
        let mut at = to;
        for &g in after.iter().rev().chain([&c]).chain(before.iter().rev()) {
            self.order[at] = Some(g);
            self.place[g] = at;
            at -= 1;
        }
        self.order[from..=at].fill(None);
    }

    fn finish(mut self, enabled: bool) -> Result<Fusion, dnx_ir::Error> {
        let mut ready = BTreeMap::new();
        for (g, draft) in self.groups.iter().enumerate() {
            let Some(draft) = draft else { continue };
            let outputs = self.outputs(&draft.members);
            if outputs.is_empty() {
                continue;
            }
            let node = &self.cx.func.nodes[draft.members[0].index()];
            let work = match (draft.kind, Collective::of(&node.op)) {
                (None, Some(op)) => Work::Collective(op, node.operands[0]),
                (kind, _) => {
                    let kind = kind.expect("only collectives have no kind");
                    let lowered = lower(&self.cx, kind, &draft.members, &outputs);
                    Work::Kernel(
                        lowered
                            .map_err(|Refusal(why)| dnx_ir::Error::new(why).at_op(node.op.name()).at_loc(&node.loc))?,
                    )
                }
            };
            ready.insert(g, Ready { draft: draft.clone(), shadows: BTreeSet::new(), outputs, work });
        }
        let mut board = Board::new(&mut self, ready);
        if enabled {
            debug_assert_eq!(board.cycle(), None, "merging made a cycle");
            board.recompute();
            debug_assert_eq!(board.cycle(), None, "recomputing made a cycle");
            board.merge_siblings();
            debug_assert_eq!(board.cycle(), None, "merging readers made a cycle");
            board.merge_sums();
            debug_assert_eq!(board.cycle(), None, "merging sums made a cycle");
        }
        let mut groups: Vec<Group> = std::mem::take(&mut board.groups)
            .into_values()
            .map(|r| Group { work: r.work, members: r.draft.members, outputs: r.outputs })
            .collect();
        groups.sort_by_key(|g| g.members[0]);
        Ok(Fusion { groups, reasons: self.reasons })
    }
}

/// Whether recomputing a group of this kind is even possible.
fn kind_repeats(kind: Kind) -> bool {
    kind == Kind::Loop
}
