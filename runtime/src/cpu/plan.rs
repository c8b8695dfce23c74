//! Plans: a kernel's instructions over a space, prepared once so that running them is a walk over chunks.
//!
//! A *chunk* is some whole rows, or a piece of one row. A *value* lives in one of three domains: *uniform* (once
//! per dispatch), *outer* (once per row), *full* (once per point). A [`Step`] computes a value for all points
//! that a chunk has in its domain, into a *slot* of scratch memory, unless it can be read where it lies (a view)
//! or written where it goes (a direct store). Uniform values are computed before the chunks, uniform stores
//! happen after them; within a chunk stores come last, so that loads in place see the old content.

use super::native::Pass;
use super::ops::Pointwise;
use super::space::{Index, Space, Test};
use dnx_ir::{DType, ReduceKind};

/// How often a value is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Domain {
    Uniform,
    Outer,
    Full,
}

/// How 32-bit words are compared and added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Float,
    Signed,
    Unsigned,
}

impl Class {
    pub(crate) fn of(dtype: DType) -> Class {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Class::Float,
            DType::I32 => Class::Signed,
            DType::U32 | DType::Bool => Class::Unsigned,
        }
    }

    /// What a reduction of nothing gives.
    pub(crate) fn identity(self, kind: ReduceKind) -> u32 {
        match (kind, self) {
            (ReduceKind::Sum, _) => 0,
            (ReduceKind::Max, Class::Float) => f32::NEG_INFINITY.to_bits(),
            (ReduceKind::Max, Class::Signed) => i32::MIN as u32,
            (ReduceKind::Max, Class::Unsigned) => 0,
        }
    }
}

/// A value of a plan.
pub(crate) type Val = usize;

/// Where a value's elements are written while it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: a view, or no value at all.
    None,
    /// Words of scratch (of the uniform area in the uniform domain).
    Slot(usize),
    /// Straight to where a store wants it.
    Direct(usize),
}

/// One step of a plan.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) op: StepOp,
    pub(crate) domain: Domain,
    pub(crate) dst: Val,
    pub(crate) place: Place,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum StepOp {
    Point(Pointwise, [Val; 3]),
    Const(u32),
    Load(Box<Load>),
    Index(Index),
    Valid(Vec<Test>),
    /// An outer value at every point of its row.
    Expand(Val),
    /// A row's sum or maximum.
    Reduce(ReduceKind, Class, Val),
    /// The column of a row's first greatest element.
    Argmax(Class, Val),
    /// The block of results a contraction has left.
    Acc,
    /// Column: adds to the part's accumulators.
    Accumulate(ReduceKind, Class, Val, usize),
    /// Column: keeps the greatest element and its row, in two accumulators.
    AccumulateArgmax(Class, Val, usize),
    Store(usize, Val),
    /// A slot that a pass will fill.
    Room,
    /// Many steps at once.
    Pass(Box<Pass>),
}

/// How a load finds its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// A stretch of memory that counts along with the points; `true`: of the whole space, so that the
    /// first point's number is all that is needed.
    View(bool),
    /// Line by line.
    Runs,
    /// Each by its own index.
    Gather,
}

/// A planned load.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) arg: usize,
    pub(crate) dtype: DType,
    pub(crate) index: Index,
    pub(crate) tests: Vec<Test>,
    pub(crate) dynamic: Vec<Dynamic>,
    pub(crate) walk: Walk,
}

/// A planned [`dnx_codegen::kernel::DynTerm`].
#[derive(Debug)]
pub(crate) struct Dynamic {
    pub(crate) value: Val,
    /// Whether the value is per row while the load is per point.
    pub(crate) per_row: bool,
    pub(crate) unsigned: bool,
    pub(crate) limit: i64,
    pub(crate) stride: i64,
}

/// A planned store.
#[derive(Debug)]
pub(crate) struct StoreTo {
    pub(crate) arg: usize,
    pub(crate) dtype: DType,
    pub(crate) index: Index,
    pub(crate) domain: Domain,
    pub(crate) walk: Walk,
}

/// A plan, ready to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) space: Space,
    /// Points of a row.
    pub(crate) cols: usize,
    /// Column: words from one accumulator to the next; the points of a row unless the kernel says otherwise.
    pub(crate) stride: usize,
    /// Most rows of a chunk, and most columns.
    pub(crate) chunk: (usize, usize),
    /// A chunk's rows are of one stretch of so many.
    pub(crate) together: usize,
    pub(crate) uniform: Vec<Step>,
    pub(crate) steps: Vec<Step>,
    pub(crate) last: Vec<Step>,
    pub(crate) stores: Vec<StoreTo>,
    pub(crate) vals: usize,
    pub(crate) uniform_words: usize,
    pub(crate) words: usize,
    /// Where the index buffers begin in scratch.
    pub(crate) temp: usize,
    /// Steps per point, for deciding how much work is worth a thread.
    pub(crate) cost: usize,
}

impl StepOp {
    /// The values it reads, each as often as it reads it.
    pub(crate) fn inputs(&self) -> Vec<Val> {
        match self {
            StepOp::Point(op, v) => v[..op.operands()].to_vec(),
            _ => self.reads(),
        }
    }

    /// The values it reads; a pointwise operation's first stands for those it has not.
    pub(crate) fn reads(&self) -> Vec<Val> {
        match self {
            StepOp::Point(_, v) => v.to_vec(),
            StepOp::Const(_) | StepOp::Index(_) | StepOp::Valid(_) | StepOp::Acc | StepOp::Room => vec![],
            StepOp::Pass(pass) => pass.reads(),
            StepOp::Load(load) => load.dynamic.iter().map(|d| d.value).collect(),
            StepOp::Expand(v)
            | StepOp::Reduce(_, _, v)
            | StepOp::Argmax(_, v)
            | StepOp::Accumulate(_, _, v, _)
            | StepOp::AccumulateArgmax(_, v, _)
            | StepOp::Store(_, v) => vec![*v],
        }
    }
}
