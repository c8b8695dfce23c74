//! Passes: steps of a plan that are done at once, in registers, by machine code made for them.
//!
//! A plan's steps write every value to scratch memory. Here the steps over points are gathered into *passes* over
//! the columns: a pass ends where a row's sum or a step without machine code must be known first. A value that a
//! later pass reads is computed again if that is as cheap as reading it, else it is kept in a slot (a
//! [`StepOp::Room`] before the pass). All values have the bits that the steps would give them.
//!
//! Only processors with AVX-512 have passes; elsewhere plans stay as they are.

mod body;
#[cfg(target_arch = "x86_64")]
mod code;
#[cfg(target_arch = "x86_64")]
mod emit;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use super::ops::Pointwise;
use super::plan::{Class, Domain, Load, Place, Step, StepOp, StoreTo, Val, Walk};
use super::space::{Index, Space};
pub(crate) use body::Storage;
#[cfg(target_arch = "x86_64")]
pub(crate) use code::Stream;
use dnx_ir::ReduceKind;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Where a stream of a pass comes from, or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// A value of every point.
    Points(Val),
    /// A contraction's block of results.
    Block(Val),
    /// Rows of an argument, at this distance (in elements) from one another, where a step's load begins.
    Lines(usize, i64),
    /// A value of every row.
    Row(Val),
    /// A uniform value.
    Uniform(Val),
    /// What a store writes, with the distance of its rows (in elements).
    Store(usize, i64),
    /// The accumulators of a column reduction.
    Accumulator(usize),
}

/// A compiled pass.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) sources: Vec<Source>,
    /// The sources that are lines.
    pub(crate) lines: Vec<Lines>,
    /// Whether the distances of its rows hold only while the last of the outer dims counts.
    jumps: bool,
    /// Whether rows are told apart only by where they begin.
    pub(crate) flat: bool,
    #[cfg(target_arch = "x86_64")]
    pub(crate) code: code::Code,
}

/// Elements of an argument that a pass loads or stores where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    pub(crate) arg: usize,
    pub(crate) index: Index,
    pub(crate) storage: Storage,
}

/// Streams of a pass, at most.
pub(crate) const STREAMS: usize = 48;

impl Pass {
    /// The values it reads, rooms included.
    pub(crate) fn reads(&self) -> Vec<Val> {
        let reads = self.sources.iter().filter_map(|s| match *s {
            Source::Points(v) | Source::Block(v) | Source::Row(v) | Source::Uniform(v) => Some(v),
            Source::Lines(..) | Source::Store(..) | Source::Accumulator(_) => None,
        });
        reads.collect()
    }
}

/// When a value is known.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// After this pass, -1 for before all: it is computed by a step.
    After(i32),
    /// In this pass and, from registers or a slot, in later ones.
    In(i32),
}

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is done after this pass.
    Step(i32),
    /// It is part of this one.
    Pass(i32),
    /// It is a row's value at its points, which passes read as it is.
    Splat,
}

/// Whether this processor has the instructions.
pub(crate) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *FOUND.get_or_init(|| {
            // The escape hatch of whoever suspects the generated code.
            let wanted = std::env::var_os("DNX_CPU_NATIVE").is_none_or(|v| v != "0");
            wanted && super::ops::ops().name == "avx512" && is_x86_feature_detected!("bmi2")
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether passes have lines that lie differently for each of the slower outer coordinates.
pub(super) fn jumps(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(&step.op, StepOp::Pass(p) if p.jumps))
}

/// What is known of a plan while its passes are made.
struct Passes<'a> {
    steps: &'a [Step],
    stores: &'a [StoreTo],
    domains: &'a [Domain],
    space: &'a Space,
    made_at: HashMap<Val, usize>,
    known: HashMap<Val, Known>,
    fates: Vec<Fate>,
}

/// What the new list of steps is made of.
enum Item {
    Room(Val),
    Pass(Pass),
    /// An old step.
    Step(usize),
}

/// Gathers the steps of a chunk into passes; as they were if that is not possible. `domains` are those of the plan's
/// values, `in_place` says which arguments are read and written. Gives the steps and the number of values.
pub(super) fn gather(
    steps: Vec<Step>,
    stores: &[StoreTo],
    domains: &[Domain],
    in_place: &[bool],
    space: &Space,
) -> (Vec<Step>, usize) {
    let Some(items) = items(&steps, stores, domains, in_place, space) else { return (steps, domains.len()) };
    let mut old: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    let mut values = domains.len();
    let mut new = Vec::with_capacity(items.len());
    for item in items {
        new.push(match item {
            Item::Room(v) => Step { op: StepOp::Room, domain: domains[v], dst: v, place: Place::None },
            Item::Pass(pass) => {
                values += 1;
                let op = StepOp::Pass(Box::new(pass));
                Step { op, domain: Domain::Full, dst: values - 1, place: Place::None }
            }
            Item::Step(at) => old[at].take().expect("a step is done once"),
        });
    }
    (new, values)
}

fn items(
    steps: &[Step],
    stores: &[StoreTo],
    domains: &[Domain],
    in_place: &[bool],
    space: &Space,
) -> Option<Vec<Item>> {
    let mut passes = Passes {
        steps,
        stores,
        domains,
        space,
        made_at: HashMap::new(),
        known: HashMap::new(),
        fates: Vec::with_capacity(steps.len()),
    };
    for (at, step) in steps.iter().enumerate() {
        passes.made_at.insert(step.dst, at);
    }
    let late = |store: usize| in_place.get(stores[store].arg).copied().unwrap_or(false);
    for step in steps {
        let fate = passes.fate(step);
        passes.settle(step, fate);
    }
    let last = passes.fates.iter().filter_map(|f| if let Fate::Pass(p) = f { Some(*p) } else { None }).max()?;
    // What is stored in place must be read before: by passes, and by steps if there are any after the last pass.
    let is_store = |step: &Step| matches!(step.op, StepOp::Store(..));
    let reads_on = steps.iter().zip(&passes.fates).any(|(s, f)| !is_store(s) && *f == Fate::Step(last));
    for (step, fate) in steps.iter().zip(&mut passes.fates) {
        let StepOp::Store(store, _) = &step.op else { continue };
        match fate {
            Fate::Pass(_) if late(*store) && reads_on => *fate = Fate::Step(last),
            Fate::Pass(p) if late(*store) => *p = last,
            Fate::Step(after) => *after = last,
            Fate::Pass(_) | Fate::Splat => {}
        }
    }
    passes.items(last, &late)
}

impl Passes<'_> {
    /// The first pass in which a value can be read.
    fn from(&self, v: Val) -> i32 {
        match self.known.get(&v) {
            Some(Known::After(a)) => a + 1,
            Some(Known::In(p)) => *p,
            None => 0,
        }
    }

    /// After which pass a step can read a value.
    fn after(&self, v: Val) -> i32 {
        match self.known.get(&v) {
            Some(Known::After(a) | Known::In(a)) => *a,
            None => -1,
        }
    }

    fn fate(&self, step: &Step) -> Fate {
        let joins = match &step.op {
            StepOp::Point(op, _) => step.domain == Domain::Full && body::known(*op),
            StepOp::Reduce(_, class, _) | StepOp::Accumulate(_, class, _, _) => *class == Class::Float,
            StepOp::Expand(_) => return Fate::Splat,
            StepOp::Store(store, v) => {
                let computed = matches!(self.known.get(v), Some(Known::In(_)));
                (computed || self.widens(*v)) && step.domain == Domain::Full && self.distance(*store).is_some()
            }
            _ => false,
        };
        let reads = step.op.inputs();
        match joins {
            true => Fate::Pass(reads.iter().map(|&v| self.from(v)).max().unwrap_or(0)),
            false => Fate::Step(reads.iter().map(|&v| self.after(v)).max().unwrap_or(-1)),
        }
    }

    fn settle(&mut self, step: &Step, fate: Fate) {
        let known = match (fate, &step.op) {
            (Fate::Step(after), _) => Known::After(after),
            (Fate::Pass(p), StepOp::Reduce(..)) => Known::After(p),
            (Fate::Pass(p), _) => Known::In(p),
            (Fate::Splat, StepOp::Expand(v)) => Known::After(self.after(*v)),
            (Fate::Splat, _) => unreachable!("only expansions are splats"),
        };
        self.known.insert(step.dst, known);
        self.fates.push(fate);
    }

    /// The load that a pass can do itself, copying nothing, and the distance between its rows.
    fn lines<'s>(&self, step: &'s Step) -> Option<(&'s Load, i64)> {
        let StepOp::Load(load) = &step.op else { return None };
        let plain = step.domain == Domain::Full && load.tests.is_empty() && load.dynamic.is_empty();
        if !plain || load.walk != Walk::Runs {
            return None;
        }
        Some((load, load.index.lines(&self.space.dims, self.space.outer)?))
    }

    /// Whether a value is a load of 16 bits that a pass can do itself.
    fn widens(&self, v: Val) -> bool {
        let load = self.made_at.get(&v).and_then(|&at| self.lines(&self.steps[at]));
        load.is_some_and(|(load, _)| load.dtype.size() == 2)
    }

    /// The distance between the rows of a store that a pass can do itself.
    fn distance(&self, store: usize) -> Option<i64> {
        let to = self.stores.get(store)?;
        match to.walk {
            Walk::View(_) => Some(self.space.cols() as i64),
            Walk::Runs => to.index.lines(&self.space.dims, self.space.outer),
            Walk::Gather => None,
        }
    }

    fn jumps(&self, index: &Index) -> bool {
        index.jumps(&self.space.dims, self.space.outer)
    }

    /// The step that makes a value in a pass.
    fn made(&self, v: Val) -> Option<(&Step, i32)> {
        let at = *self.made_at.get(&v)?;
        match (self.fates[at], &self.steps[at].op) {
            (Fate::Pass(p), StepOp::Point(..)) => Some((&self.steps[at], p)),
            _ => None,
        }
    }

    /// What it takes to compute a value again; beyond the limit it is kept instead.
    fn again(&self, v: Val) -> usize {
        const NEVER: usize = 100;
        let Some((step, _)) = self.made(v) else { return 0 };
        let StepOp::Point(op, _) = &step.op else { return NEVER };
        if !body::cheap(*op) {
            return NEVER;
        }
        let mut reads = step.op.inputs();
        reads.dedup();
        reads.iter().fold(1, |sum, &v| (sum + self.again(v)).min(NEVER))
    }

    fn items(self, last: i32, late: &dyn Fn(usize) -> bool) -> Option<Vec<Item>> {
        /// Operations that are rather done again than their result read from a slot.
        const AGAIN: usize = 2;
        let is_splat = |v: &Val| self.made_at.get(v).is_some_and(|&at| self.fates[at] == Fate::Splat);
        let mut by_pass: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        // Values that steps read must be kept, and rows' values spread over their points.
        let (mut kept, mut spread, mut read) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (at, step) in self.steps.iter().enumerate() {
            match self.fates[at] {
                Fate::Pass(p) => by_pass.entry(p).or_default().push(at),
                Fate::Step(_) => {
                    kept.extend(step.op.reads().into_iter().filter(|&v| self.made(v).is_some()));
                    spread.extend(step.op.reads().into_iter().filter(is_splat));
                    read.extend(step.op.reads());
                }
                Fate::Splat => {}
            }
        }
        // What a later pass reads of an earlier one, through values that are computed again down to those kept.
        for (&p, members) in &by_pass {
            let mut open: Vec<Val> = members.iter().flat_map(|&at| self.steps[at].op.inputs()).collect();
            let mut seen = HashSet::new();
            while let Some(v) = open.pop() {
                if seen.insert(v)
                    && let Some((step, q)) = self.made(v)
                    && q < p
                    && !kept.contains(&v)
                {
                    if self.again(v) <= AGAIN {
                        open.extend(step.op.inputs());
                    } else {
                        kept.insert(v);
                    }
                }
            }
        }
        let mut items = Vec::new();
        for p in -1..=last {
            if let Some(members) = by_pass.get(&p) {
                let mut pass = Builder::default();
                for &at in members {
                    self.member(&mut pass, at, p, &kept, late)?;
                }
                items.extend(pass.rooms.iter().map(|&v| Item::Room(v)));
                items.push(Item::Pass(pass.finish()?));
            }
            for (at, step) in self.steps.iter().enumerate() {
                let here = match self.fates[at] {
                    Fate::Step(after) => after == p && (read.contains(&step.dst) || self.lines(step).is_none()),
                    Fate::Splat => spread.contains(&step.dst) && self.after(step.dst) == p,
                    Fate::Pass(_) => false,
                };
                if here {
                    items.push(Item::Step(at));
                }
            }
        }
        Some(items)
    }

    fn member(
        &self,
        pass: &mut Builder,
        at: usize,
        p: i32,
        kept: &HashSet<Val>,
        late: &dyn Fn(usize) -> bool,
    ) -> Option<()> {
        let step = &self.steps[at];
        match &step.op {
            StepOp::Point(..) => {
                let node = self.value(pass, step.dst, p, kept)?;
                if let Place::Direct(store) = step.place {
                    pass.store(node, Source::Store(store, self.distance(store)?), late(store), Storage::Word);
                }
                if kept.contains(&step.dst) {
                    pass.rooms.push(step.dst);
                    pass.store(node, Source::Points(step.dst), false, Storage::Word);
                }
            }
            StepOp::Reduce(kind, _, v) => {
                let node = self.value(pass, *v, p, kept)?;
                pass.rooms.push(step.dst);
                pass.reduce(node, *kind, Source::Row(step.dst));
            }
            StepOp::Accumulate(kind, _, v, slot) => {
                let node = self.value(pass, *v, p, kept)?;
                pass.accumulate(node, *kind, Source::Accumulator(*slot));
            }
            StepOp::Store(store, v) => {
                let node = self.value(pass, *v, p, kept)?;
                let storage = Storage::of(self.stores[*store].dtype);
                let rounded =
                    self.made(*v).is_some_and(|(s, _)| matches!(s.op, StepOp::Point(Pointwise::RoundBf16, _)));
                let node = match storage {
                    Storage::Bf16 if !rounded => pass.body.round_bf16(node),
                    Storage::Word | Storage::F16 | Storage::Bf16 => node,
                };
                let to = Source::Store(*store, self.distance(*store)?);
                pass.jumps |= self.stores[*store].walk == Walk::Runs && self.jumps(&self.stores[*store].index);
                pass.store(node, to, late(*store), storage);
            }
            _ => return None,
        }
        Some(())
    }

    /// A value in a pass.
    fn value(&self, pass: &mut Builder, v: Val, p: i32, kept: &HashSet<Val>) -> Option<usize> {
        if let Some(&node) = pass.values.get(&v) {
            return Some(node);
        }
        let own = self.made(v).filter(|(_, q)| *q == p || !kept.contains(&v));
        let node = match own {
            Some((step, _)) => {
                let StepOp::Point(op, operands) = &step.op else { return None };
                let mut nodes = [0; 3];
                for (node, &operand) in nodes.iter_mut().zip(&operands[..op.operands()]) {
                    *node = self.value(pass, operand, p, kept)?;
                }
                pass.body.point(*op, nodes)?
            }
            None => {
                let made = self.made_at.get(&v).map(|&at| &self.steps[at]);
                let lines = made.and_then(|step| self.lines(step));
                let source = match (self.domains[v], made.map(|s| &s.op)) {
                    _ if lines.is_some() => {
                        let (load, row) = lines?;
                        let (index, storage) = (load.index.clone(), Storage::of(load.dtype));
                        pass.jumps |= self.jumps(&index);
                        pass.lines.push(Lines { arg: load.arg, index, storage });
                        Source::Lines(pass.lines.len() - 1, row)
                    }
                    (Domain::Uniform, _) => Source::Uniform(v),
                    (Domain::Outer, _) => Source::Row(v),
                    (Domain::Full, Some(StepOp::Expand(row))) => match self.domains[*row] {
                        Domain::Outer => Source::Row(*row),
                        Domain::Uniform | Domain::Full => return None,
                    },
                    (Domain::Full, Some(StepOp::Acc)) => Source::Block(v),
                    (Domain::Full, _) => Source::Points(v),
                };
                pass.read(source)
            }
        };
        pass.values.insert(v, node);
        Some(node)
    }
}

/// A pass in the making.
#[derive(Default)]
struct Builder {
    body: body::Body,
    values: HashMap<Val, usize>,
    sources: Vec<Source>,
    lines: Vec<Lines>,
    jumps: bool,
    /// Values that need slots before it.
    rooms: Vec<Val>,
    #[cfg(target_arch = "x86_64")]
    outputs: Vec<(usize, emit::Output)>,
}

impl Builder {
    fn stream(&mut self, source: Source) -> usize {
        self.sources.iter().position(|&s| s == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        })
    }

    fn read(&mut self, source: Source) -> usize {
        let stream = self.stream(source);
        self.body.node(match source {
            Source::Row(_) | Source::Uniform(_) => body::Node::Splat(stream),
            Source::Lines(which, _) => body::Node::Load(stream, self.lines[which].storage),
            Source::Points(_) | Source::Block(_) | Source::Store(..) | Source::Accumulator(_) => {
                body::Node::Load(stream, Storage::Word)
            }
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn store(&mut self, node: usize, to: Source, late: bool, storage: Storage) {
        let stream = self.stream(to);
        self.outputs.push((node, emit::Output::Store { stream, late, storage }));
    }

    #[cfg(target_arch = "x86_64")]
    fn reduce(&mut self, node: usize, kind: ReduceKind, to: Source) {
        let stream = self.stream(to);
        self.outputs.push((node, emit::Output::Reduce(kind, stream)));
    }

    #[cfg(target_arch = "x86_64")]
    fn accumulate(&mut self, node: usize, kind: ReduceKind, to: Source) {
        let stream = self.stream(to);
        self.outputs.push((node, emit::Output::Accumulate(kind, stream)));
    }

    #[cfg(target_arch = "x86_64")]
    fn finish(self) -> Option<Pass> {
        if self.sources.len() > STREAMS {
            return None;
        }
        let flat = self.outputs.iter().all(|(_, o)| matches!(o, emit::Output::Store { .. }))
            && !self.sources.iter().any(|s| matches!(s, Source::Row(_)));
        let pass = emit::Pass { nodes: &self.body.nodes, outputs: &self.outputs, streams: self.sources.len() };
        match pass.emit() {
            Ok(code) => Some(Pass { sources: self.sources, lines: self.lines, jumps: self.jumps, flat, code }),
            Err(emit::Refused::Registers) => None,
            Err(refused) => {
                tracing::warn!("no machine code for a pass, its steps are taken one by one: {refused}");
                None
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn store(&mut self, _: usize, _: Source, _: bool, _: Storage) {}

    #[cfg(not(target_arch = "x86_64"))]
    fn reduce(&mut self, _: usize, _: ReduceKind, _: Source) {}

    #[cfg(not(target_arch = "x86_64"))]
    fn accumulate(&mut self, _: usize, _: ReduceKind, _: Source) {}

    #[cfg(not(target_arch = "x86_64"))]
    fn finish(self) -> Option<Pass> {
        None
    }
}
