//! Scheduling: the order of kernels, which results go where, and which inputs are updated in place.
//!
//! Order: topological, and barrier by barrier: what stands behind more barriers comes later, so that recomputed
//! blocks are recomputed one at a time. Among what is ready, first what gives back at least the memory it takes (weight gradients,
//! as soon as the two values they read have no other reader), the most first; then the kernel whose last node
//! comes first in the program, which keeps a value's producer near its users. Collectives wait until a bucket of one kind between the
//! same devices is full, or nothing else of their depth can go on: few meetings, each of many values. Those whose
//! results are larger than their operands (gathered weights) wait for the latter alone, but for those that are asked for a
//! block ahead ([`crate::depth::gathers_ahead`]): these, and what leads up to them, come first at their depth, in order of
//! the depths that want them, each of those in meetings of its own. A donated input is overwritten by the kernel that makes its result,
//! so every other reader of that input is put before that kernel; where that is impossible, or where the kernel
//! reads the input at other elements than it writes, the result is made elsewhere and copied at the end.

use crate::exec::Collective;
use crate::fuse::{Group, Work, is_given};
use crate::kernel::{Inst, Kernel, Kind};
use dnx_ir::{Func, NodeId, Op, ValueId};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// Where a result ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A group writes the memory of the result itself.
    Direct,
    /// It is copied there from where the value lives.
    Copied,
    /// It is the donated input, unchanged.
    Unchanged,
}

/// The order of work.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Batches of group indices; a batch of several is one `Multi` step, or one meeting of several collectives.
    pub steps: Vec<Vec<usize>>,
    /// Per result.
    pub places: Vec<Place>,
    /// Per result the input whose memory it takes.
    pub donated: Vec<Option<usize>>,
}

/// When work is done.
#[derive(Clone, Copy, Debug)]
pub struct Depths<'a> {
    /// Barriers before each node.
    pub of: &'a [u32],
    /// Per node that a gather ahead of time is or needs the depth at which its results are wanted.
    pub ahead: &'a [Option<u32>],
}

/// Orders the groups. `bucket` is the most bytes of several collectives in one step.
pub fn schedule(func: &Func, groups: &[Group], depths: Depths, donate: &[(usize, usize)], bucket: u64) -> Schedule {
    let donated = |j: usize| donate.iter().find(|&&(_, o)| o == j).map(|&(i, _)| i);
    let donated: Vec<Option<usize>> = (0..func.results.len()).map(donated).collect();
    let producer: HashMap<ValueId, usize> =
        groups.iter().enumerate().flat_map(|(g, group)| group.outputs.iter().map(move |&v| (v, g))).collect();
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); groups.len()];
    for (g, group) in groups.iter().enumerate() {
        for &v in group.inputs() {
            readers.entry(v).or_default().push(g);
            if let Some(&p) = producer.get(&v) {
                after[p].insert(g);
            }
        }
    }
    let mut places = vec![Place::Copied; func.results.len()];
    let mut taken: BTreeSet<ValueId> = BTreeSet::new();
    for (j, &r) in func.results.iter().enumerate() {
        let Some(&g) = producer.get(&r) else {
            let own = donated[j].is_some_and(|i| func.params[i].value == r);
            places[j] = if own { Place::Unchanged } else { Place::Copied };
            continue;
        };
        if !taken.insert(r) {
            continue;
        }
        let Some(i) = donated[j] else {
            places[j] = Place::Direct;
            continue;
        };
        let old = func.params[i].value;
        let others: Vec<usize> = readers.get(&old).into_iter().flatten().copied().filter(|&o| o != g).collect();
        let returned = func.results.contains(&old);
        let in_place = others.len() == readers.get(&old).map_or(0, Vec::len) || updates_in_place(&groups[g], old, r);
        if !returned && in_place && others.iter().all(|&o| !reaches(&after, g, o)) {
            for o in others {
                after[o].insert(g);
            }
            places[j] = Place::Direct;
        }
    }
    let direct: BTreeSet<ValueId> =
        func.results.iter().zip(&places).filter(|(_, p)| **p == Place::Direct).map(|(&r, _)| r).collect();
    let kept = func.results.iter().zip(&places).filter(|(_, p)| **p == Place::Copied).map(|(&r, _)| r).collect();
    let costs = Costs { func, groups, depths, bucket, direct, kept };
    let batches = multi_batches(func, groups, &after);
    let steps = order(&costs, &after, &batches)
        .or_else(|| order(&costs, &after, &singles(groups)))
        .expect("the dependences of kernels have no cycle");
    Schedule { steps, places, donated }
}

fn reaches(after: &[BTreeSet<usize>], from: usize, to: usize) -> bool {
    let mut seen = vec![false; after.len()];
    let mut stack = vec![from];
    while let Some(g) = stack.pop() {
        if g == to {
            return true;
        }
        if !std::mem::replace(&mut seen[g], true) {
            stack.extend(&after[g]);
        }
    }
    false
}

/// Whether every element of `old` is read only by the point that writes that element of `new`.
fn updates_in_place(group: &Group, old: ValueId, new: ValueId) -> bool {
    let lowered = match &group.work {
        Work::Kernel(lowered) => lowered,
        Work::Collective(op, operand) => return op.in_place() && *operand == old,
    };
    let kernel = &lowered.kernel;
    let arg = |v: ValueId| lowered.args.iter().position(|&a| a == v).map(|a| a as u32);
    let (Some(from), Some(to)) = (arg(old), arg(new)) else { return false };
    let (a, b) = (kernel.args[from as usize], kernel.args[to as usize]);
    let Some(store) = kernel.stores.iter().find(|s| s.arg == to) else { return false };
    // These kinds visit each written element once, and read what the same point writes there.
    matches!(kernel.kind, Kind::Loop | Kind::Contract | Kind::Column)
        && (a.dtype, a.elems) == (b.dtype, b.elems)
        && kernel.insts.iter().all(|inst| match inst {
            Inst::Load { arg, index, dynamic } => *arg != from || (dynamic.is_empty() && *index == store.index),
            _ => true,
        })
}

fn singles(groups: &[Group]) -> Vec<Vec<usize>> {
    (0..groups.len()).map(|g| vec![g]).collect()
}

/// Groups with one pointwise body over tensors of different sizes whose results nobody reads: the updates of an
/// optimizer. They run as one `Multi` step.
fn multi_batches(func: &Func, groups: &[Group], after: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = vec![];
    let mut by_body: HashMap<Kernel, usize> = HashMap::new();
    for (g, group) in groups.iter().enumerate() {
        let sink = group.outputs.iter().all(|v| func.results.contains(v)) && after[g].is_empty();
        match group.work.kernel().and_then(as_multi).filter(|_| sink) {
            Some(body) => match by_body.get(&body) {
                Some(&at) => batches[at].push(g),
                None => {
                    by_body.insert(body, batches.len());
                    batches.push(vec![g]);
                }
            },
            None => batches.push(vec![g]),
        }
    }
    batches
}

/// The kernel as a body over segments of any length, if it is one: a single dim, every access at that dim or a
/// scalar.
pub fn as_multi(kernel: &Kernel) -> Option<Kernel> {
    let [dim] = kernel.dims[..] else { return None };
    if kernel.kind != Kind::Loop || dim.size <= 1 {
        return None;
    }
    let whole = crate::kernel::Idx::dim(0);
    let fits = |arg: u32, index: &crate::kernel::Idx| {
        let elems = kernel.args[arg as usize].elems;
        (*index == whole && elems == dim.size) || (*index == crate::kernel::Idx::default() && elems == 1)
    };
    let pointwise = kernel.stores.iter().all(|s| s.index == whole && fits(s.arg, &s.index))
        && kernel.insts.iter().all(|inst| match inst {
            Inst::Load { arg, index, dynamic } => dynamic.is_empty() && fits(*arg, index),
            Inst::Index(..) | Inst::Valid(_) => false,
            _ => true,
        });
    if !pointwise {
        return None;
    }
    let mut body = kernel.clone();
    body.kind = Kind::Multi;
    body.dims[0].size = 0;
    for arg in &mut body.args {
        arg.elems = usize::from(arg.elems == 1);
    }
    Some(body)
}

/// What the order of work costs in temporary memory.
struct Costs<'a> {
    func: &'a Func,
    groups: &'a [Group],
    depths: Depths<'a>,
    /// Most bytes of several collectives in one step.
    bucket: u64,
    /// Results written to memory of their own.
    direct: BTreeSet<ValueId>,
    /// Results that are copied at the end: their temporaries live until then.
    kept: BTreeSet<ValueId>,
}

impl Costs<'_> {
    /// Bytes of temporary memory that a value takes while it lives.
    fn bytes(&self, v: ValueId) -> i64 {
        let outside = self.direct.contains(&v) || is_given(&self.func.def(v).op);
        if outside { 0 } else { self.func.ty(v).device_bytes() as i64 }
    }

    /// The distinct values that a batch reads and that may be given back.
    fn reads(&self, batch: &[usize]) -> Vec<ValueId> {
        let mut reads: Vec<ValueId> = batch.iter().flat_map(|&g| self.groups[g].inputs()).copied().collect();
        reads.retain(|v| self.bytes(*v) > 0 && !self.kept.contains(v));
        reads.sort_unstable();
        reads.dedup();
        reads
    }

    /// The depth that wants what this batch gathers ahead of time, or leads up to.
    fn wanted(&self, batch: &[usize]) -> Option<u32> {
        let nodes = batch.iter().flat_map(|&g| &self.groups[g].members);
        nodes.filter_map(|n| self.depths.ahead.get(n.index()).copied().flatten()).min()
    }

    fn takes(&self, batch: &[usize]) -> i64 {
        batch.iter().flat_map(|&g| &self.groups[g].outputs).map(|&v| self.bytes(v)).sum()
    }
}

/// A topological order of the batches; `None` if batching made a cycle.
fn order(costs: &Costs, after: &[BTreeSet<usize>], batches: &[Vec<usize>]) -> Option<Vec<Vec<usize>>> {
    let groups = costs.groups;
    let mut batch_of = vec![0; groups.len()];
    for (b, members) in batches.iter().enumerate() {
        members.iter().for_each(|&g| batch_of[g] = b);
    }
    let mut next: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); batches.len()];
    let mut waits = vec![0usize; batches.len()];
    for (g, users) in after.iter().enumerate() {
        for &u in users {
            let (a, b) = (batch_of[g], batch_of[u]);
            if a != b && next[a].insert(b) {
                waits[b] += 1;
            }
        }
    }
    let place = |b: usize| -> Option<(u32, NodeId)> {
        let last = |&g: &usize| *groups[g].members.last().expect("groups have members");
        batches[b].iter().map(last).map(|n| (costs.depths.of[n.index()], n)).max()
    };
    let reads: Vec<Vec<ValueId>> = batches.iter().map(|b| costs.reads(b)).collect();
    let takes: Vec<i64> = batches.iter().map(|b| costs.takes(b)).collect();
    let wanted: Vec<Option<u32>> = batches.iter().map(|b| costs.wanted(b)).collect();
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    reads.iter().flatten().for_each(|&v| *readers.entry(v).or_default() += 1);

    let mut ready: BTreeSet<Ready> = BTreeSet::new();
    let mut waiting: BTreeSet<Ready> = BTreeSet::new();
    let is_collective = |b: usize| groups[batches[b][0]].work.kernel().is_none();
    let at_hand = |ready: &mut BTreeSet<Ready>, waiting: &mut BTreeSet<Ready>, b: usize| {
        if is_collective(b) {
            waiting.insert((place(b), b))
        } else {
            ready.insert((place(b), b))
        };
    };
    (0..batches.len()).filter(|&b| waits[b] == 0).for_each(|b| at_hand(&mut ready, &mut waiting, b));
    let (mut out, mut done) = (vec![], 0);
    loop {
        let depth = |set: &BTreeSet<Ready>| set.first().map(|(place, _)| place.map(|(depth, _)| depth));
        let now = match (depth(&ready), depth(&waiting)) {
            (None, None) => break,
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b).expect("one of them is there"),
        };
        let stuck = depth(&ready) != Some(now);
        let here = |set: &BTreeSet<Ready>| -> Vec<Ready> {
            set.iter().take_while(|(place, _)| place.map(|(depth, _)| depth) == now).copied().collect()
        };
        let (able, mut meeting) = (here(&ready), here(&waiting));
        let first = able.iter().chain(&meeting).filter_map(|&(_, b)| wanted[b]).min();
        if first.is_some() {
            meeting.retain(|&(_, b)| wanted[b] == first);
        }
        let leading = able.iter().find(|&&(_, b)| first.is_some() && wanted[b] == first);
        let chosen = match (leading, bucket(costs, batches, &meeting, stuck || first.is_some())) {
            (Some(&leading), _) => vec![leading],
            (None, Some(bucket)) => bucket,
            (None, None) => {
                let gives =
                    |b: usize| reads[b].iter().filter(|v| readers[*v] == 1).map(|&v| costs.bytes(v)).sum::<i64>();
                let best = able.iter().max_by_key(|&&(_, b)| (gives(b) - takes[b], Reverse(b)));
                let best = best.filter(|&&(_, b)| gives(b) > 0 && gives(b) >= takes[b]);
                vec![*best.or(ready.first()).expect("not stuck")]
            }
        };
        out.push(chosen.iter().flat_map(|&(_, b)| batches[b].iter().copied()).collect());
        for at in &chosen {
            ready.remove(at);
            waiting.remove(at);
            done += 1;
            reads[at.1].iter().for_each(|v| *readers.get_mut(v).expect("counted") -= 1);
        }
        for &(_, b) in &chosen {
            for &n in &next[b] {
                waits[n] -= 1;
                if waits[n] == 0 {
                    at_hand(&mut ready, &mut waiting, n);
                }
            }
        }
    }
    (done == batches.len()).then_some(out)
}

/// A batch that nothing keeps from being next: its depth and last node, and its number.
type Ready = (Option<(u32, NodeId)>, usize);

/// Of collectives that wait at one depth those that are next, if any are: those of the first full bucket or, where nothing
/// else is to go on (`now`), of the first one.
fn bucket(costs: &Costs, batches: &[Vec<usize>], here: &[Ready], now: bool) -> Option<Vec<Ready>> {
    let collective = |at: &Ready| -> (&Collective, u64) {
        let group = &costs.groups[batches[at.1][0]];
        let Work::Collective(op, operand) = &group.work else { unreachable!("only collectives wait") };
        let bytes = |v: ValueId| costs.func.ty(v).device_bytes() as u64;
        (op, bytes(*operand) + group.outputs.iter().map(|&v| bytes(v)).sum::<u64>())
    };
    let together = |a: &Collective, b: &Collective| a.name() == b.name() && a.axes() == b.axes();
    let mut tried: Vec<&Collective> = vec![];
    for first in here {
        let (op, mut total) = collective(first);
        if tried.iter().any(|t| together(t, op)) {
            continue;
        }
        tried.push(op);
        let (mut chosen, mut full) = (vec![*first], total >= costs.bucket);
        for at in here.iter().filter(|&at| at > first) {
            let (other, bytes) = collective(at);
            if full || !together(op, other) {
                continue;
            }
            full = total + bytes > costs.bucket;
            if !full {
                total += bytes;
                chosen.push(*at);
            }
        }
        if now || (full && !op.grows()) {
            return Some(chosen);
        }
    }
    None
}

/// Whether the value is a parameter of the function.
pub fn is_param(func: &Func, v: ValueId) -> bool {
    matches!(func.def(v).op, Op::Param { .. })
}
