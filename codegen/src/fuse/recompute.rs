//! After merging: values that are cheaper to compute again than to keep, and kernels that read the same thing.
//!
//! What reverse mode keeps for later is often pointwise work away from something that is in memory anyway (the
//! output of a contraction, a row's mean). Such a value is not written; each kernel that wants it repeats the
//! pointwise work from the *firm* values: parameters, constants, what contractions, reductions, gathers and random
//! draws give, values in narrow storage, and whatever must be in memory for another reason. The nodes repeated in a group are its *shadows*.
//!
//! Last, kernels that do no more than reduce a tensor to a number run together where their spaces are equal: the norm of
//! all gradients is one such number for each weight, and launching them would take longer than reading the small ones.

use super::{Draft, Fuser, Work};
use crate::kernel::Kind;
use crate::lower::{Refusal, lower};
use dnx_ir::{DType, NodeId, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most nodes repeated for one value.
const MAX_CHAIN: usize = 32;
/// Most kernels that reduce a tensor to a number in one launch.
const MAX_SUMS: usize = 16;

/// A group whose work is known.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub draft: Draft,
    pub shadows: BTreeSet<NodeId>,
    pub outputs: Vec<ValueId>,
    pub work: Work,
}

impl Ready {
    pub fn inputs(&self) -> &[ValueId] {
        self.work.inputs(&self.outputs)
    }

    fn all_nodes(&self, more: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let nodes: BTreeSet<NodeId> = self.draft.members.iter().chain(&self.shadows).chain(more).copied().collect();
        nodes.into_iter().collect()
    }
}

/// All groups, and who reads what.
pub(super) struct Board<'a, 'f> {
    fuser: &'a mut Fuser<'f>,
    pub groups: BTreeMap<usize, Ready>,
}

impl<'a, 'f> Board<'a, 'f> {
    pub fn new(fuser: &'a mut Fuser<'f>, groups: BTreeMap<usize, Ready>) -> Board<'a, 'f> {
        Board { fuser, groups }
    }

    /// The groups on a cycle, if there is one.
    pub fn cycle(&self) -> Option<Vec<usize>> {
        let mut waits: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (&g, ready) in &self.groups {
            let computed = |v: &&ValueId| self.fuser.cx.compute[self.fuser.cx.func.values[v.index()].node.index()];
            waits.insert(g, ready.inputs().iter().filter(computed).map(|&v| self.owner(v)).collect());
        }
        loop {
            let free: Vec<usize> = waits.iter().filter(|(_, w)| w.is_empty()).map(|(&g, _)| g).collect();
            if free.is_empty() {
                return (!waits.is_empty()).then(|| waits.into_keys().collect());
            }
            for g in free {
                waits.remove(&g);
                for w in waits.values_mut() {
                    w.remove(&g);
                }
            }
        }
    }

    fn bytes(&self, v: ValueId) -> usize {
        self.fuser.cx.func.ty(v).device_bytes()
    }

    fn owner(&self, v: ValueId) -> usize {
        self.fuser.group_of[self.fuser.cx.func.values[v.index()].node.index()]
    }

    fn readers(&self) -> HashMap<ValueId, Vec<usize>> {
        let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for (&g, ready) in &self.groups {
            for &v in ready.inputs() {
                readers.entry(v).or_default().push(g);
            }
        }
        readers
    }

    /// Drops outputs that their readers can compute again from less.
    pub fn recompute(&mut self) {
        let ids: Vec<usize> = self.groups.keys().rev().copied().collect();
        let mut readers = self.readers();
        for g in ids {
            let droppable =
                |b: &Self, v: &ValueId| !b.fuser.is_result[v.index()] && !b.is_opaque(*v) && b.is_repeatable(*v);
            let mut outputs: Vec<ValueId> =
                self.groups[&g].outputs.iter().copied().filter(|v| droppable(self, v)).collect();
            outputs.sort_by_key(|&v| (std::cmp::Reverse(self.bytes(v)), v));
            // Together they may share a firm value that none of them alone would pay for.
            let mut trials = vec![outputs.clone()];
            trials.extend(outputs.iter().map(|&v| vec![v]));
            for trial in trials {
                let outputs = &self.groups[&g].outputs;
                if trial.is_empty() || !trial.iter().all(|v| outputs.contains(v)) {
                    continue;
                }
                for (c, ready) in self.try_drop(g, &trial, &readers).unwrap_or_default() {
                    let old = self.groups.insert(c, ready).expect("the group exists");
                    for v in old.inputs() {
                        readers.entry(*v).or_default().retain(|&r| r != c);
                    }
                    for &v in self.groups[&c].inputs() {
                        readers.entry(v).or_default().push(c);
                    }
                }
            }
        }
    }

    /// The pointwise nodes between `v` and firm values, and the firm values.
    fn chain(&self, g: usize, v: ValueId) -> Option<(BTreeSet<NodeId>, BTreeSet<ValueId>)> {
        let func = self.fuser.cx.func;
        let (mut nodes, mut firm) = (BTreeSet::new(), BTreeSet::new());
        let mut stack = vec![v];
        while let Some(at) = stack.pop() {
            let id = func.values[at.index()].node;
            let node = &func.nodes[id.index()];
            let works = self.fuser.cx.compute[id.index()];
            let repeatable = self.is_repeatable(at) || node.op.is_view();
            let kept = at != v && (self.fuser.is_result[at.index()] || self.is_opaque(at));
            // Another group's value is in memory unless it was dropped there before.
            let elsewhere = works && self.owner(at) != g && self.groups[&self.owner(at)].outputs.contains(&at);
            if works && (!repeatable || kept || elsewhere) {
                firm.insert(at);
                continue;
            }
            if !works && self.fuser.cx.is_stored(at) {
                firm.insert(at);
                continue;
            }
            if works && nodes.insert(id) && nodes.len() > MAX_CHAIN {
                return None;
            }
            stack.extend(&node.operands);
        }
        Some((nodes, firm))
    }

    /// Whether the value is pointwise work that may be repeated. What has been rounded to a narrow type is not: it was
    /// made to be kept instead of what it is made of.
    fn is_repeatable(&self, v: ValueId) -> bool {
        let func = self.fuser.cx.func;
        let narrows = matches!(func.def(v).op, Op::Convert(DType::F16 | DType::BF16));
        func.def(v).op.is_elementwise() && !narrows
    }

    /// Whether somebody reads the value from memory whatever happens.
    fn is_opaque(&self, v: ValueId) -> bool {
        self.fuser.uses[v.index()].iter().any(|u| u.opaque)
    }

    fn try_drop(
        &mut self,
        g: usize,
        drop: &[ValueId],
        readers: &HashMap<ValueId, Vec<usize>>,
    ) -> Option<Vec<(usize, Ready)>> {
        let ready = &self.groups[&g];
        let kept = |v: &ValueId| !drop.contains(v);
        let (mut before, mut after) = (0, 0);
        let mut missing: BTreeSet<ValueId> = BTreeSet::new();
        // Per reader the nodes it repeats and the values it reads instead.
        let mut repeats: BTreeMap<usize, (BTreeSet<NodeId>, BTreeSet<ValueId>)> = BTreeMap::new();
        for &v in drop {
            let (nodes, firm) = self.chain(g, v)?;
            let owned: Vec<ValueId> = firm.into_iter().filter(|&f| self.fuser.cx.is_stored(f)).collect();
            missing.extend(owned.iter().filter(|&&f| self.owner_is(f, g) && !ready.outputs.contains(&f)));
            let consumers = readers.get(&v)?;
            before += self.bytes(v) * (1 + consumers.len());
            for &c in consumers {
                let (all, reads) = repeats.entry(c).or_default();
                all.extend(&nodes);
                let has = self.groups[&c].inputs();
                reads.extend(owned.iter().filter(|f| !has.contains(f)));
            }
        }
        after += missing.iter().map(|&f| self.bytes(f)).sum::<usize>();
        after += repeats.values().flat_map(|(_, reads)| reads).map(|&f| self.bytes(f)).sum::<usize>();
        if after >= before {
            return None;
        }
        let mut changed = vec![];
        for (&c, (nodes, _)) in &repeats {
            let other = &self.groups[&c];
            let lowered = lower(&self.fuser.cx, other.draft.kind?, &other.all_nodes(nodes), &other.outputs).ok()?;
            let mut shadows = other.shadows.clone();
            shadows.extend(nodes);
            let next = Ready { shadows, work: Work::Kernel(lowered), ..other.clone() };
            if next.inputs().iter().any(|v| drop.contains(v)) {
                return None;
            }
            changed.push((c, next));
        }
        let mut outputs: Vec<ValueId> = ready.outputs.iter().copied().filter(kept).collect();
        outputs.extend(&missing);
        outputs.sort();
        if outputs.is_empty() {
            return None;
        }
        let all = ready.all_nodes(&BTreeSet::new());
        let lowered = lower(&self.fuser.cx, ready.draft.kind?, &all, &outputs).ok()?;
        changed.push((g, Ready { outputs, work: Work::Kernel(lowered), ..ready.clone() }));
        let names: Vec<String> = drop.iter().map(|v| format!("%{}", v.0)).collect();
        self.fuser.reasons.push(format!(
            "{} computed again by {} readers: {after} bytes instead of {before}",
            names.join(", "),
            repeats.len(),
        ));
        Some(changed)
    }

    fn owner_is(&self, v: ValueId, g: usize) -> bool {
        self.fuser.cx.compute[self.fuser.cx.func.values[v.index()].node.index()] && self.owner(v) == g
    }

    /// Merges kernels of one kind that read the same large value and do not depend on each other.
    pub fn merge_siblings(&mut self) {
        let readers = self.readers();
        let mut shared: Vec<(ValueId, Vec<usize>)> = readers.into_iter().filter(|(_, r)| r.len() > 1).collect();
        shared.sort_by_key(|(v, _)| (std::cmp::Reverse(self.bytes(*v)), *v));
        // Where each merged group went.
        let mut moved: HashMap<usize, usize> = HashMap::new();
        let find = |moved: &HashMap<usize, usize>, mut g: usize| {
            while let Some(&to) = moved.get(&g) {
                g = to;
            }
            g
        };
        for (v, groups) in shared {
            for i in 0..groups.len() {
                for j in i + 1..groups.len() {
                    let (a, b) = (find(&moved, groups[i]), find(&moved, groups[j]));
                    if a == b {
                        continue;
                    }
                    match self.try_siblings(a, b, v) {
                        Ok(merged) => {
                            self.fuser.reasons.push(format!(
                                "merged two {} kernels that both read %{}",
                                merged.work.name(),
                                v.0
                            ));
                            self.join(a, b, merged);
                            moved.insert(a, b);
                        }
                        Err(Refusal(why)) => {
                            let line = format!("kept apart two readers of %{}: {why}", v.0);
                            if self.fuser.reasons.last() != Some(&line) {
                                self.fuser.reasons.push(line);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Merges kernels that reduce tensors of one shape to a number each.
    pub fn merge_sums(&mut self) {
        let mut alike: BTreeMap<(bool, u32, Vec<usize>), Vec<usize>> = BTreeMap::new();
        for (&g, ready) in &self.groups {
            let Work::Kernel(lowered) = &ready.work else { continue };
            let kernel = &lowered.kernel;
            let numbers = ready.outputs.iter().all(|&v| self.fuser.cx.func.ty(v).elems() == 1);
            if numbers && matches!(kernel.kind, Kind::Row | Kind::Column) {
                let space = kernel.dims.iter().map(|d| d.size).collect();
                alike.entry((kernel.kind == Kind::Row, ready.draft.depth, space)).or_default().push(g);
            }
        }
        for groups in alike.into_values() {
            // Tensors of other dims may number as many: each sum goes to the first that it runs with.
            let mut open: Vec<usize> = vec![];
            for g in groups {
                let mut home = None;
                for (i, &into) in open.iter().enumerate() {
                    if self.groups[&into].outputs.len() >= MAX_SUMS {
                        continue;
                    }
                    match self.try_union(into, g) {
                        Ok(merged) => {
                            self.fuser.reasons.push(format!("{} sums run as one kernel", merged.outputs.len()));
                            self.join(into, g, merged);
                            home = Some(i);
                            break;
                        }
                        Err(Refusal(why)) => {
                            self.fuser.reasons.push(format!("kept apart two sums over equal spaces: {why}"));
                        }
                    }
                }
                match home {
                    Some(i) => open[i] = g,
                    None => open.push(g),
                }
            }
        }
    }

    /// Puts `merged` in the place of group `b`, whose members those of `a` now are too.
    fn join(&mut self, a: usize, b: usize, merged: Ready) {
        for m in &merged.draft.members {
            self.fuser.group_of[m.index()] = b;
        }
        self.groups.remove(&a);
        self.groups.insert(b, merged);
    }

    fn try_siblings(&self, a: usize, b: usize, v: ValueId) -> Result<Ready, Refusal> {
        // Little vectors are read by everybody; sharing them is worth nothing.
        if let Work::Kernel(lowered) = &self.groups[&a].work
            && self.fuser.cx.func.ty(v).elems() * 4 < lowered.kernel.points()
        {
            return Err(Refusal("they walk different spaces".to_string()));
        }
        self.try_union(a, b)
    }

    /// Two groups as one kernel over the space that both walk.
    fn try_union(&self, a: usize, b: usize) -> Result<Ready, Refusal> {
        let refuse = |why: &str| Err(Refusal(why.to_string()));
        let (x, y) = (&self.groups[&a], &self.groups[&b]);
        let (Work::Kernel(p), Work::Kernel(q)) = (&x.work, &y.work) else {
            return refuse("a collective is no kernel");
        };
        let kind = match (p.kernel.kind, q.kernel.kind) {
            (p, q) if p == q && matches!(p, Kind::Column | Kind::Row | Kind::Loop) => p,
            (p, q) => return refuse(&format!("a {p:?} and a {q:?} kernel do not run as one")),
        };
        if x.draft.depth != y.draft.depth {
            return refuse("a barrier stands between them");
        }
        let points = p.kernel.points();
        if points != q.kernel.points() {
            return refuse("they walk different spaces");
        }
        if self.depends(a, b) || self.depends(b, a) {
            return refuse("one depends on the other");
        }
        let mut members = [x.draft.members.as_slice(), y.draft.members.as_slice()].concat();
        members.sort_unstable();
        let shadows: BTreeSet<NodeId> = x.shadows.union(&y.shadows).copied().collect();
        let mut outputs = [x.outputs.as_slice(), y.outputs.as_slice()].concat();
        outputs.sort();
        let draft = Draft { kind: Some(kind), members, depth: x.draft.depth };
        let all: BTreeSet<NodeId> = draft.members.iter().chain(&shadows).copied().collect();
        let all: Vec<NodeId> = all.into_iter().collect();
        let lowered = lower(&self.fuser.cx, kind, &all, &outputs)?;
        if lowered.kernel.insts.len() > super::MAX_INSTS {
            return refuse("the kernel would be too long");
        }
        if lowered.kernel.points() != points {
            return refuse("the union walks more points");
        }
        Ok(Ready { draft, shadows, outputs, work: Work::Kernel(lowered) })
    }

    /// Whether group `b` needs, directly or not, what group `a` makes.
    fn depends(&self, b: usize, a: usize) -> bool {
        let mut seen = BTreeSet::from([b]);
        let mut stack = vec![b];
        while let Some(g) = stack.pop() {
            if g == a {
                return true;
            }
            for &v in self.groups[&g].inputs() {
                let node = self.fuser.cx.func.values[v.index()].node;
                if self.fuser.cx.compute[node.index()] && seen.insert(self.owner(v)) {
                    stack.push(self.owner(v));
                }
            }
        }
        false
    }
}
