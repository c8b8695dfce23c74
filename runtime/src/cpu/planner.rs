//! Making plans: instructions to steps, values to slots.

use super::ops::Pointwise;
use super::plan::{Class, Domain, Dynamic, Load, Place, Plan, Step, StepOp, StoreTo, Val, Walk};
use super::select::{binary, compare, unary, word};
use super::space::{Index, MAX_RANK, Space, Test};
use dnx_codegen::kernel::{Access, DynTerm, Idx, Inst, InstId, Kernel, Store};
use dnx_ir::{DType, ReduceKind};
use std::collections::HashMap;

/// What stands for an instruction that another part of the kernel computes.
#[derive(Clone, Debug)]
pub(crate) enum Given {
    /// The block of a contraction.
    Acc,
    /// An array argument beyond the kernel's own, read at this index.
    Array(usize, Idx),
}

/// Points in a chunk, about: a few operands of this size fit in the innermost cache.
pub(crate) const CHUNK: usize = 1024;

/// Builds a plan.
pub(crate) struct Planner<'k> {
    kernel: &'k Kernel,
    space: Space,
    chunk: (usize, usize),
    domain_of_dim: Vec<Domain>,
    /// Per argument: whether it may be stored to while views of it live.
    in_place: &'k [bool],
    given: HashMap<InstId, Given>,
    known: HashMap<InstId, Val>,
    expanded: HashMap<Val, Val>,
    domains: Vec<Domain>,
    steps: Vec<Step>,
    stores: Vec<StoreTo>,
    temp_depth: usize,
}

impl<'k> Planner<'k> {
    /// A planner over a space whose rows are the `outer` kernel dims and whose columns are the `inner` ones.
    /// `whole` rows are kept in one chunk. `seen` are all indices that will be used.
    pub(crate) fn new(
        kernel: &'k Kernel,
        in_place: &'k [bool],
        outer: &[(usize, usize)],
        inner: &[(usize, usize)],
        seen: &[&Idx],
        whole: bool,
    ) -> Result<Planner<'k>, String> {
        let space = Space::new(outer, inner, seen);
        if space.dims.len() > MAX_RANK {
            return Err(format!("an iteration space of rank {} (at most {MAX_RANK})", space.dims.len()));
        }
        let mut domain_of_dim = vec![Domain::Uniform; kernel.dims.len().max(64)];
        for (group, domain) in [(outer, Domain::Outer), (inner, Domain::Full)] {
            for &(d, _) in group.iter().filter(|d| d.1 != 1) {
                domain_of_dim[d] = domain;
            }
        }
        let cols = space.cols();
        let chunk = if whole || cols <= CHUNK + CHUNK / 2 {
            ((CHUNK / cols.max(1)).max(1), cols)
        } else {
            (1, cols.div_ceil(cols.div_ceil(CHUNK)).next_multiple_of(64))
        };
        Ok(Planner {
            kernel,
            space,
            chunk,
            domain_of_dim,
            in_place,
            given: HashMap::new(),
            known: HashMap::new(),
            expanded: HashMap::new(),
            domains: vec![],
            steps: vec![],
            stores: vec![],
            temp_depth: 0,
        })
    }

    /// Walks the points in tiles if that serves the kernel's loads; see [`Space::tiles`]. Before anything is added.
    pub(crate) fn tile(&mut self) {
        let loads = self.kernel.insts.iter().filter_map(|inst| match inst {
            Inst::Load { index, .. } => Some(self.space.index(index)),
            _ => None,
        });
        let loads: Vec<Index> = loads.collect();
        if let Some((dim, tile)) = self.space.tiles(&loads) {
            self.space = self.space.cut(dim, tile);
            self.chunk = tile;
        }
    }

    /// What stands for an instruction.
    pub(crate) fn give(&mut self, id: InstId, given: Given) {
        self.given.insert(id, given);
    }

    fn dims(&self, domain: Domain) -> &[usize] {
        match domain {
            Domain::Uniform => &[],
            Domain::Outer => &self.space.dims[..self.space.outer],
            Domain::Full => &self.space.dims,
        }
    }

    fn domain_of_mask(&self, mask: u64) -> Domain {
        let dims = (0..64).filter(|d| mask >> d & 1 == 1).map(|d| self.domain_of_dim[d]);
        dims.max().unwrap_or(Domain::Uniform)
    }

    fn push(&mut self, op: StepOp, domain: Domain) -> Val {
        let dst = self.domains.len();
        self.domains.push(domain);
        self.steps.push(Step { op, domain, dst, place: Place::None });
        dst
    }

    fn operand(&mut self, v: Val, domain: Domain) -> Val {
        if domain == Domain::Full && self.domains[v] == Domain::Outer { self.expand(v) } else { v }
    }

    fn expand(&mut self, v: Val) -> Val {
        if let Some(&e) = self.expanded.get(&v) {
            return e;
        }
        let e = self.push(StepOp::Expand(v), Domain::Full);
        self.expanded.insert(v, e);
        e
    }

    fn point(&mut self, op: Pointwise, operands: &[Val]) -> Val {
        let domain = operands.iter().map(|&v| self.domains[v]).max().unwrap_or(Domain::Uniform);
        let mut vals = [0; 3];
        for (slot, &v) in vals.iter_mut().zip(operands) {
            *slot = self.operand(v, domain);
        }
        for slot in operands.len()..3 {
            vals[slot] = vals[0];
        }
        self.push(StepOp::Point(op, vals), domain)
    }

    fn constant(&mut self, bits: u32) -> Val {
        self.push(StepOp::Const(bits), Domain::Uniform)
    }

    /// Float results of 16 bits are rounded to them.
    fn rounded(&mut self, v: Val, dtype: DType) -> Val {
        match dtype {
            DType::F16 => self.point(Pointwise::RoundF16, &[v]),
            DType::BF16 => self.point(Pointwise::RoundBf16, &[v]),
            DType::F32 | DType::I32 | DType::U32 | DType::Bool | DType::F64 => v,
        }
    }

    /// The value of an instruction.
    pub(crate) fn value(&mut self, id: InstId) -> Result<Val, String> {
        if let Some(&v) = self.known.get(&id) {
            return Ok(v);
        }
        let dtype = self.kernel.dtype(id);
        if dtype == DType::F64 {
            return Err("f64 arithmetic; only the reference interpreter computes in f64".to_string());
        }
        let v = match self.given.get(&id).cloned() {
            Some(Given::Acc) => {
                let v = self.push(StepOp::Acc, Domain::Full);
                self.rounded(v, dtype)
            }
            Some(Given::Array(arg, index)) => {
                let kept = DType::F32;
                let v = self.load_with(arg, kept, &index, &[], Some(Domain::Outer))?;
                self.rounded(v, dtype)
            }
            None => self.compute(id, dtype)?,
        };
        self.known.insert(id, v);
        Ok(v)
    }

    fn compute(&mut self, id: InstId, dtype: DType) -> Result<Val, String> {
        let kernel = self.kernel;
        Ok(match kernel.inst(id) {
            Inst::Const(scalar) => self.constant(word(*scalar)?),
            Inst::Load { arg, index, dynamic } => {
                let arg = *arg as usize;
                self.load_with(arg, kernel.args[arg].dtype, index, dynamic, None)?
            }
            Inst::Index(_, index) => {
                let domain = self.domain_of_mask(terms_only(index).dims());
                let index = self.space.index(index);
                self.check_reach(&index, &[], domain, false)?;
                self.temp_depth = self.temp_depth.max(index.depth());
                self.push(StepOp::Index(index), domain)
            }
            Inst::Valid(checks) => {
                let mask = checks.iter().fold(0, |m, c| m | c.index.dims());
                let domain = self.domain_of_mask(mask);
                let tests = self.space.tests(checks);
                self.check_reach(&Index { offset: 0, coef: vec![], parts: vec![] }, &tests, domain, false)?;
                self.temp_depth = self.temp_depth.max(tests.iter().map(Test::depth).max().unwrap_or(0));
                self.push(StepOp::Valid(tests), domain)
            }
            Inst::Unary(op, a) => {
                let v = self.value(*a)?;
                match unary(*op, kernel.dtype(*a))? {
                    Pointwise::Copy => v,
                    op => {
                        let y = self.point(op, &[v]);
                        self.rounded(y, dtype)
                    }
                }
            }
            Inst::Binary(op, a, b) => {
                let (x, y) = (self.value(*a)?, self.value(*b)?);
                let z = self.point(binary(*op, kernel.dtype(*a))?, &[x, y]);
                self.rounded(z, dtype)
            }
            Inst::Compare(op, a, b) => {
                let (x, y) = (self.value(*a)?, self.value(*b)?);
                self.point(compare(*op, Class::of(kernel.dtype(*a))), &[x, y])
            }
            Inst::Select(c, a, b) => {
                let (c, x, y) = (self.value(*c)?, self.value(*a)?, self.value(*b)?);
                self.point(Pointwise::Select, &[c, x, y])
            }
            Inst::Convert(to, a) => {
                let v = self.value(*a)?;
                self.convert(v, kernel.dtype(*a), *to)?
            }
            Inst::Bitcast(to, a) => {
                let v = self.value(*a)?;
                match (kernel.dtype(*a), *to) {
                    (DType::F16, DType::BF16) => self.point(Pointwise::F16BitsAsBf16, &[v]),
                    (DType::BF16, DType::F16) => self.point(Pointwise::Bf16BitsAsF16, &[v]),
                    (from, to) if from == to || (from.size() == 4 && to.size() == 4) => v,
                    (from, to) => return Err(format!("a bitcast from {from} to {to}")),
                }
            }
            Inst::Threefry { k0, k1, counter } => {
                let operands = [self.value(*k0)?, self.value(*k1)?, self.value(*counter)?];
                self.point(Pointwise::Threefry, &operands)
            }
            Inst::Reduce(kind, a) => {
                let v = self.value(*a)?;
                let class = Class::of(kernel.dtype(*a));
                let y = self.reduce(*kind, class, v);
                self.rounded(y, dtype)
            }
            Inst::Argmax(a) => {
                let v = self.value(*a)?;
                let class = Class::of(kernel.dtype(*a));
                match self.domains[v] {
                    Domain::Full => self.push(StepOp::Argmax(class, v), Domain::Outer),
                    Domain::Outer | Domain::Uniform => self.constant(0),
                }
            }
            Inst::Dot { .. } => return Err("a dot outside a contraction".to_string()),
            Inst::Attention(_) => return Err("attention outside a kernel of its own".to_string()),
        })
    }

    fn reduce(&mut self, kind: ReduceKind, class: Class, v: Val) -> Val {
        let cols = self.space.cols();
        if self.domains[v] == Domain::Full {
            return self.push(StepOp::Reduce(kind, class, v), Domain::Outer);
        }
        match (kind, class) {
            _ if cols == 0 => self.constant(class.identity(kind)),
            (ReduceKind::Max, _) => v,
            (ReduceKind::Sum, Class::Float) => {
                let n = self.constant((cols as f32).to_bits());
                self.point(Pointwise::MulF, &[v, n])
            }
            (ReduceKind::Sum, _) => {
                let n = self.constant(cols as u32);
                self.point(Pointwise::MulI, &[v, n])
            }
        }
    }

    fn convert(&mut self, v: Val, from: DType, to: DType) -> Result<Val, String> {
        use Pointwise::*;
        let (float, int) = (from.is_float(), from.is_int() || from == DType::Bool);
        Ok(match to {
            DType::F64 => return Err("a conversion to f64".to_string()),
            _ if from == to => v,
            DType::F32 | DType::F16 | DType::BF16 => {
                let wide = match from {
                    DType::I32 => self.point(IToFloat, &[v]),
                    DType::U32 | DType::Bool => self.point(UToFloat, &[v]),
                    DType::F32 | DType::F16 | DType::BF16 | DType::F64 => v,
                };
                self.rounded(wide, to)
            }
            DType::I32 if float => self.point(FloatToI, &[v]),
            DType::U32 if float => self.point(FloatToU, &[v]),
            DType::I32 | DType::U32 => v,
            DType::Bool if int => self.point(IntToBool, &[v]),
            DType::Bool => self.point(FloatToBool, &[v]),
        })
    }

    fn load_with(
        &mut self,
        arg: usize,
        dtype: DType,
        idx: &Idx,
        dynamic: &[DynTerm],
        least: Option<Domain>,
    ) -> Result<Val, String> {
        if dtype == DType::F64 {
            return Err("an f64 argument".to_string());
        }
        let own = self.domain_of_mask(idx.dims());
        let mut planned = Vec::new();
        let mut domain = own.max(least.unwrap_or(Domain::Uniform));
        for term in dynamic {
            let value = self.value(term.value)?;
            domain = domain.max(self.domains[value]);
            let unsigned = Class::of(self.kernel.dtype(term.value)) == Class::Unsigned;
            planned.push(Dynamic { value, per_row: false, unsigned, limit: term.limit, stride: term.stride });
        }
        for term in &mut planned {
            term.per_row = domain == Domain::Full && self.domains[term.value] == Domain::Outer;
        }
        let (index, tests) = (self.space.index(idx), self.space.tests(&idx.checks));
        let dims = self.dims(domain);
        let rank = dims.len();
        let plain = tests.is_empty() && planned.is_empty();
        let steady = planned.iter().all(|t| t.per_row || self.domains[t.value] == Domain::Uniform);
        let line = index.is_line(rank) && tests.iter().all(|t| t.is_stretch(rank)) && steady;
        let long = rank == 0 || dims[rank - 1] >= 8;
        let walk = match self.contiguous(&index, domain) {
            Some(flat) if plain && dtype.size() != 2 => Walk::View(flat),
            _ if line && (long || (plain && index.parts.is_empty())) => Walk::Runs,
            _ => Walk::Gather,
        };
        if walk == Walk::Gather {
            self.check_reach(&index, &tests, domain, true)?;
            // The index, the mask of its tests, and what they need.
            let depth = tests.iter().map(Test::depth).max().unwrap_or(0).max(index.depth());
            self.temp_depth = self.temp_depth.max(2 + depth);
            for term in planned.iter_mut().filter(|t| t.per_row) {
                term.value = self.expand(term.value);
                term.per_row = false;
            }
        }
        let load = Load { arg, dtype, index, tests, dynamic: planned, walk };
        Ok(self.push(StepOp::Load(Box::new(load)), domain))
    }

    /// Whether the elements of every chunk lie one after another; `Some(true)`: those of the whole space do.
    fn contiguous(&self, index: &Index, domain: Domain) -> Option<bool> {
        let dims = self.dims(domain);
        if index.is_flat(dims) {
            return Some(true);
        }
        let single_row = self.chunk.0 == 1;
        let fits = match domain {
            Domain::Uniform => true,
            Domain::Outer => single_row,
            Domain::Full => {
                let inner = &dims[self.space.outer..];
                let tail = Index { offset: 0, coef: index.coef[self.space.outer..].to_vec(), parts: vec![] };
                single_row && tail.is_flat(inner) && index.is_line(dims.len()) && self.parts_are_outer(index)
            }
        };
        fits.then_some(false)
    }

    fn parts_are_outer(&self, index: &Index) -> bool {
        index.parts.is_empty() || self.space.dims.len() == self.space.outer + 1
    }

    /// Indices that are computed as 32-bit integers must fit them.
    fn check_reach(&self, index: &Index, tests: &[Test], domain: Domain, whole: bool) -> Result<(), String> {
        let dims = self.dims(domain);
        let inner = if whole || !index.parts.is_empty() { index.reach(dims) } else { 0 };
        let reach = tests.iter().map(|t| t.reach(dims)).fold(inner, i64::max);
        if reach > i32::MAX as i64 && whole {
            return Err(format!("an index that reaches {reach}, beyond 2^31, and is not affine"));
        }
        Ok(())
    }

    /// Adds a store.
    pub(crate) fn store(&mut self, store: &Store) -> Result<(), String> {
        let value = self.value(store.value)?;
        let arg = store.arg as usize;
        let dtype = self.kernel.args[arg].dtype;
        self.store_value(arg, dtype, &store.index, value, Domain::Uniform)
    }

    /// Adds a store of a value to an argument, which may be one beyond the kernel's own, in this domain at least.
    pub(crate) fn store_value(
        &mut self,
        arg: usize,
        dtype: DType,
        idx: &Idx,
        value: Val,
        least: Domain,
    ) -> Result<(), String> {
        let domain = self.domain_of_mask(terms_only(idx).dims()).max(self.domains[value]).max(least);
        let mut value = self.operand(value, domain);
        let index = self.space.index(idx);
        let in_place = self.in_place.get(arg).copied().unwrap_or(false);
        let producer = self.steps.iter().rposition(|s| s.dst == value);
        let source = producer.map(|at| &self.steps[at].op);
        if let Some(StepOp::Load(load)) = source
            && load.arg != arg
            && self.in_place.get(load.arg).copied().unwrap_or(false)
        {
            value = self.point(Pointwise::Copy, &[value]);
        }
        let walk = match self.contiguous(&index, domain) {
            Some(flat) => Walk::View(flat),
            None if index.is_line(self.dims(domain).len()) => Walk::Runs,
            None => {
                self.check_reach(&index, &[], domain, true)?;
                self.temp_depth = self.temp_depth.max(1 + index.depth());
                Walk::Gather
            }
        };
        let id = self.stores.len();
        let direct = matches!(walk, Walk::View(_)) && dtype.size() != 2 && !in_place && domain == Domain::Full;
        self.stores.push(StoreTo { arg, dtype, index, domain, walk });
        if direct
            && let Some(at) = self.steps.iter().rposition(|s| s.dst == value && s.place == Place::None)
            && self.domains[value] == Domain::Full
            && matches!(self.steps[at].op, StepOp::Point(..))
        {
            self.steps[at].place = Place::Direct(id);
            return Ok(());
        }
        let dst = self.domains.len();
        self.domains.push(domain);
        self.steps.push(Step { op: StepOp::Store(id, value), domain, dst, place: Place::None });
        Ok(())
    }

    /// Column: adds the instruction into accumulator `at` (and `at + 1`, for an argmax).
    pub(crate) fn accumulate(&mut self, reduction: &Inst, at: usize) -> Result<(), String> {
        let (kind, operand) = match reduction {
            Inst::Reduce(kind, a) => (Some(*kind), *a),
            Inst::Argmax(a) => (None, *a),
            other => return Err(format!("{other:?} in a column kernel")),
        };
        let class = Class::of(self.kernel.dtype(operand));
        let v = self.value(operand)?;
        let v = self.operand(v, Domain::Full);
        let op = match kind {
            Some(kind) => StepOp::Accumulate(kind, class, v, at),
            None => StepOp::AccumulateArgmax(class, v, at),
        };
        self.push(op, Domain::Full);
        Ok(())
    }

    /// The value at every point.
    pub(crate) fn everywhere(&mut self, v: Val) -> Val {
        self.operand(v, Domain::Full)
    }

    /// How often a value is computed.
    pub(crate) fn domain(&self, v: Val) -> Domain {
        self.domains[v]
    }

    /// A value that the caller will read after each chunk.
    pub(crate) fn keep(&mut self, v: Val) {
        // A store without place: see [`Planner::finish`], which frees slots after their last reader.
        let dst = self.domains.len();
        let domain = self.domains[v];
        self.domains.push(domain);
        self.steps.push(Step { op: StepOp::Store(usize::MAX, v), domain, dst, place: Place::None });
    }

    /// The finished plan.
    pub(crate) fn finish(self) -> Plan {
        let (rows, cols) = self.chunk;
        let (full, outer) = ((rows * cols).next_multiple_of(16) + 16, rows.next_multiple_of(16));
        let (mut uniform, mut steps, mut last) = (vec![], vec![], vec![]);
        for step in self.steps {
            let is_store = matches!(step.op, StepOp::Store(..));
            match step.domain {
                Domain::Uniform if is_store => last.push(step),
                Domain::Uniform => uniform.push(step),
                Domain::Outer | Domain::Full => steps.push(step),
            }
        }
        // Stores after everything else, in their order.
        let (mut work, stores): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|s| !matches!(s.op, StepOp::Store(..)));
        work.extend(stores);
        super::pairs::join(&mut work);
        // How much is done does not depend on how it is done: cuts of the work follow from it.
        let cost = work.iter().filter(|s| s.domain == Domain::Full).count();
        let mut vals = self.domains.len();
        if super::native::available() && !(cols == 1 && sums_columns(&work)) {
            (work, vals) = super::native::gather(work, &self.stores, &self.domains, self.in_place, &self.space);
        }
        for (i, step) in uniform.iter_mut().enumerate() {
            step.place = Place::Slot(i);
        }
        // Rows that passes find by their distance follow one another in the last of the outer dims only.
        let together = match self.space.outer {
            outer if outer > 0 && super::native::jumps(&work) => self.space.dims[outer - 1],
            _ => usize::MAX,
        };
        let mut last_use = vec![0; vals];
        for (at, step) in work.iter().enumerate() {
            for v in step.op.reads() {
                last_use[v] = at;
            }
        }
        // An expansion may be a view of what it expands.
        for step in work.iter().rev() {
            if let StepOp::Expand(v) = step.op {
                last_use[v] = last_use[v].max(last_use[step.dst]);
            }
        }
        let mut words = 0;
        let mut free: [Vec<usize>; 2] = [vec![], vec![]];
        let mut ends: Vec<Vec<(usize, usize)>> = vec![vec![]; work.len()];
        for at in 0..work.len() {
            let step = &mut work[at];
            let pool = usize::from(step.domain == Domain::Full);
            let view = match &step.op {
                StepOp::Load(load) => matches!(load.walk, Walk::View(_)),
                StepOp::Acc
                | StepOp::Store(..)
                | StepOp::Accumulate(..)
                | StepOp::AccumulateArgmax(..)
                | StepOp::Pass(_) => true,
                _ => false,
            };
            if step.place == Place::None && !view {
                let slot = free[pool].pop().unwrap_or_else(|| {
                    words += [outer, full][pool];
                    words - [outer, full][pool]
                });
                step.place = Place::Slot(slot);
                ends[last_use[step.dst].max(at)].push((pool, slot));
            }
            for (pool, slot) in std::mem::take(&mut ends[at]) {
                free[pool].push(slot);
            }
        }
        // Uniform values are made in the first words of a worker and then moved to the shared area; what they are made
        // of must not lie where they are made.
        let temp = words.max(uniform.len());
        words = temp + self.temp_depth * full.max(outer).max(1);
        let uniform_words = uniform.len();
        Plan {
            cols: self.space.cols(),
            stride: self.space.cols(),
            space: self.space,
            chunk: self.chunk,
            together,
            uniform,
            steps: work,
            last,
            stores: self.stores,
            vals,
            uniform_words,
            words,
            temp,
            cost: cost.max(1),
        }
    }
}

/// Whether a column reduction adds to accumulators; columns of one point are summed along the rows, by lanes.
fn sums_columns(work: &[Step]) -> bool {
    work.iter().any(|s| matches!(s.op, StepOp::Accumulate(..)))
}

fn terms_only(idx: &Idx) -> Idx {
    Idx { checks: vec![], ..idx.clone() }
}

/// All indices of a kernel.
pub(crate) fn indices(kernel: &Kernel) -> Vec<&Idx> {
    let mut all: Vec<&Idx> = kernel.stores.iter().map(|s| &s.index).collect();
    for inst in &kernel.insts {
        match inst {
            Inst::Load { index, .. } | Inst::Index(_, index) => all.push(index),
            Inst::Valid(checks) => all.extend(checks.iter().map(|c| &c.index)),
            _ => {}
        }
    }
    all
}

/// Which arguments are stored to while they are read.
pub(crate) fn in_place(kernel: &Kernel) -> Vec<bool> {
    kernel.args.iter().map(|a| a.access == Access::ReadWrite).collect()
}
