//! Kernel IR: what one dispatch does. It is the unit of hashing, caching, interpretation and snapshotting;
//! the cpu device executes it and the WGSL writers print it.
//!
//! A kernel is an *iteration space* (dims with roles), a DAG of scalar instructions over it, and stores:
//!
//! * [`Inst::Load`] reads an argument at an [`Idx`] of the iteration coordinates. All views (reshape,
//!   transpose, broadcast, slice, reverse, pad) have become such indices, with [`Check`]s where they pad.
//! * [`Inst::Reduce`] sums or maximises an instruction over *all* dims of role [`Role::Reduce`];
//!   [`Inst::Dot`] is the sum of a product over them. What follows lives on the remaining dims.
//! * [`Store`]s write instructions to arguments at injective indices. A store of a value that does not depend
//!   on the reduced dims happens once, not per reduced coordinate.
//!
//! The [`Kind`] says how the space is walked; it never changes what is computed.

pub mod attention;
pub mod idx;
pub mod interp;
pub mod text;

pub use attention::{Attention, Given, Part};
use dnx_ir::{BinaryOp, CmpOp, DType, ReduceKind, Scalar, UnaryOp};
pub use idx::{Atom, Check, Idx};
use serde::{Deserialize, Serialize};

/// How a kernel walks its iteration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Pointwise over one space; several outputs. All dims are `Parallel`.
    Loop,
    /// Reductions over the same row, interleaved with pointwise work. The `Reduce` dims come last and are
    /// contiguous (or nearly) in the large inputs; one workgroup or subgroup walks a row.
    Row,
    /// A reduction over slow dims to a short vector or scalar, in two stages of fixed order. The `Reduce` dims
    /// come first. Pointwise stores over the full space are allowed; each point is visited once.
    Column,
    /// A contraction: one [`Inst::Dot`], a pointwise prologue on either operand, an epilogue on the sum.
    /// Dims are `Batch`, `M`, `N`, `Reduce` in that order.
    Contract,
    /// `scatter_add` without float atomics; see [`Scatter`].
    Index,
    /// Attention, its jvp or its transpose, streamed over tiles of keys and queries: scores never leave the workgroup.
    /// Dims are `Batch`, `M`, `N`, `Reduce` in that order; stores are [`Inst::Attention`]s of one body, or
    /// conversions of them, whose operands are loads without checks, constants, or conversions of these.
    Attention,
    /// One pointwise body over many tensors of any size: dims is the single dim of length 0, standing for each
    /// segment's own length; every load and store is at index `dim 0` (or a constant 0 for scalars).
    Multi,
}

/// What a dim of the iteration space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Independent work.
    Parallel,
    /// Walked by reductions.
    Reduce,
    /// Contract: batch dims, in both operands and the result. Attention: samples and heads.
    Batch,
    /// Contract: rows, in the left operand and the result. Attention: queries.
    M,
    /// Contract: columns, in the right operand and the result. Attention: keys.
    N,
}

/// One dim of the iteration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dim {
    /// Extent.
    pub size: usize,
    /// Role.
    pub role: Role,
}

/// How a kernel touches an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Only loads.
    Read,
    /// Only stores; every element is stored exactly once.
    Write,
    /// Loads and stores the same elements at the same coordinates (in place).
    ReadWrite,
}

/// An argument: a range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Arg {
    /// Element type in memory. `bool` is a `u32` of 0 or 1; 16-bit floats are packed.
    pub dtype: DType,
    /// Elements. In a `Multi` kernel 0 stands for the segment's length, 1 for a scalar.
    pub elems: usize,
    /// Access.
    pub access: Access,
}

/// Index of an instruction in [`Kernel::insts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstId(pub u32);

impl InstId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A run-time addition to an index: `clamp(value, 0, limit) * stride`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DynTerm {
    /// An integer instruction.
    pub value: InstId,
    /// Greatest value it may take.
    pub limit: i64,
    /// Elements per unit.
    pub stride: i64,
}

/// A scalar instruction. Operands are earlier instructions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Inst {
    /// A constant.
    Const(Scalar),
    /// The element of argument `arg` at `index` (plus `dynamic`), or zero where a check fails.
    /// `bf16` and `f16` arrive in their own dtype; a `Convert` follows where arithmetic is wanted.
    Load {
        /// Argument.
        arg: u32,
        /// Index and checks.
        index: Idx,
        /// Gathered parts of the index (`take`, `dynamic_slice`).
        dynamic: Vec<DynTerm>,
    },
    /// The value of an index expression, as `i32` or `u32` (iota, random counters). Its checks are ignored.
    Index(DType, Idx),
    /// Whether all checks hold (`bool`).
    Valid(Vec<Check>),
    /// Elementwise, one operand.
    Unary(UnaryOp, InstId),
    /// Elementwise, two operands.
    Binary(BinaryOp, InstId, InstId),
    /// Comparison.
    Compare(CmpOp, InstId, InstId),
    /// `c ? a : b`.
    Select(InstId, InstId, InstId),
    /// Conversion as [`dnx_ir::Op::Convert`].
    Convert(DType, InstId),
    /// The same bits.
    Bitcast(DType, InstId),
    /// threefry2x32 under key words `(k0, k1)` of the counter `(0, counter)`, words xored; see
    /// [`dnx_ir::Op::RandomBits`].
    Threefry {
        /// First key word.
        k0: InstId,
        /// Second key word.
        k1: InstId,
        /// Counter, `u32`.
        counter: InstId,
    },
    /// Reduction over all `Reduce` dims.
    Reduce(ReduceKind, InstId),
    /// The `i32` linear coordinate in the `Reduce` dims of the first greatest value.
    Argmax(InstId),
    /// Contract: the sum over the `Reduce` dims of `lhs * rhs`, accumulated in `f32` (or `i32`/`u32`).
    /// `lhs` depends on Batch, M and Reduce dims, `rhs` on Batch, N and Reduce dims.
    Dot {
        /// Left factor.
        lhs: InstId,
        /// Right factor.
        rhs: InstId,
    },
    /// A result of attention.
    Attention(Box<Attention>),
}

/// A write of an instruction's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Store {
    /// Argument.
    pub arg: u32,
    /// Where; injective over the dims the value lives on. No checks.
    pub index: Idx,
    /// What; of the argument's dtype.
    pub value: InstId,
}

/// The body of an `Index` kernel. The dims are `[outer.., indices.. (Reduce), inner..]`:
/// `out[outer, clamp(target, 0, rows - 1), inner] += update`, over the indices in row-major order,
/// starting from `base` (or zero).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scatter {
    /// Row to add to; depends on the `Reduce` dims only.
    pub target: InstId,
    /// What to add; over all dims.
    pub update: InstId,
    /// The rows of the table.
    pub rows: usize,
    /// Argument of the initial table, if it is not zero. Same layout as `out`.
    pub base: Option<u32>,
    /// Argument written: `[outer.., rows, inner..]`, row-major.
    pub out: u32,
}

/// How a `Contract` kernel divides its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// A block of the result per workgroup, operand tiles in workgroup memory.
    #[default]
    Blocks,
    /// A block of the result per subgroup, operands in registers and passed between its invocations.
    Broadcast,
    /// A result per invocation: for contractions that are hardly ones, such as depthwise convolutions.
    Serial,
    /// As `Blocks`, with `f16` operands in cooperative matrices, which a subgroup multiplies.
    Matrix,
}

/// Tile sizes of `Contract` and workgroup sizes of the others, chosen by a table and by tuning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tile {
    /// Contract: how the work is divided.
    pub tier: Tier,
    /// Invocations per workgroup; 0: the writer's choice.
    pub workgroup: u32,
    /// Contract: rows, columns and depth of the block; 0: the writer's choice.
    pub block: [u32; 3],
    /// Contract: rows and columns per invocation (`Matrix`: per subgroup); 0: the writer's choice.
    pub per_invocation: [u32; 2],
    /// Contract and Column: parts the reduction is split into; 0 or 1: one.
    pub split: u32,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kernel {
    /// How the space is walked.
    pub kind: Kind,
    /// Iteration space, slowest first.
    pub dims: Vec<Dim>,
    /// Arguments.
    pub args: Vec<Arg>,
    /// Instructions, operands before users.
    pub insts: Vec<Inst>,
    /// Dtype of each instruction's value.
    pub dtypes: Vec<DType>,
    /// Writes.
    pub stores: Vec<Store>,
    /// Body of an `Index` kernel.
    pub scatter: Option<Scatter>,
    /// Tile parameters.
    pub tile: Tile,
}

impl Inst {
    /// The instructions this one reads.
    pub fn operands(&self) -> Vec<InstId> {
        match self {
            Inst::Const(_) | Inst::Index(..) | Inst::Valid(_) => vec![],
            Inst::Load { dynamic, .. } => dynamic.iter().map(|d| d.value).collect(),
            Inst::Unary(_, a) | Inst::Convert(_, a) | Inst::Bitcast(_, a) => vec![*a],
            Inst::Reduce(_, a) | Inst::Argmax(a) => vec![*a],
            Inst::Binary(_, a, b) | Inst::Compare(_, a, b) => vec![*a, *b],
            Inst::Dot { lhs, rhs } => vec![*lhs, *rhs],
            Inst::Select(c, a, b) => vec![*c, *a, *b],
            Inst::Threefry { k0, k1, counter } => vec![*k0, *k1, *counter],
            Inst::Attention(a) => a.operands(),
        }
    }

    /// Whether it consumes the `Reduce` dims.
    pub fn is_reduction(&self) -> bool {
        matches!(self, Inst::Reduce(..) | Inst::Argmax(_) | Inst::Dot { .. } | Inst::Attention(_))
    }
}

impl Kernel {
    /// The instruction.
    pub fn inst(&self, id: InstId) -> &Inst {
        &self.insts[id.index()]
    }

    /// The dtype of an instruction's value.
    pub fn dtype(&self, id: InstId) -> DType {
        self.dtypes[id.index()]
    }

    /// The number of points of the iteration space.
    pub fn points(&self) -> usize {
        self.dims.iter().map(|d| d.size).product()
    }

    /// The product of the extents of the dims of this role.
    pub fn extent(&self, role: Role) -> usize {
        self.dims.iter().filter(|d| d.role == role).map(|d| d.size).product()
    }

    /// The dims whose roles are wanted, as a bit mask.
    pub fn mask(&self, wanted: impl Fn(Role) -> bool) -> u64 {
        self.dims.iter().enumerate().filter(|(_, d)| wanted(d.role)).fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// For every instruction, the set of dims its value depends on, as a bit mask.
    pub fn dependence(&self) -> Vec<u64> {
        let reduce: u64 =
            self.dims.iter().enumerate().filter(|(_, d)| d.role == Role::Reduce).map(|(i, _)| 1u64 << i).sum();
        let mut masks: Vec<u64> = Vec::with_capacity(self.insts.len());
        for inst in &self.insts {
            let mut mask = inst.operands().iter().fold(0, |m, o| m | masks[o.index()]);
            match inst {
                Inst::Load { index, .. } | Inst::Index(_, index) => mask |= index.dims(),
                Inst::Valid(checks) => mask |= checks.iter().fold(0, |m, c| m | c.index.dims()),
                Inst::Attention(a) => mask = self.mask(|role| a.part.lives_on(role)),
                i if i.is_reduction() => mask &= !reduce,
                _ => {}
            }
            masks.push(mask);
        }
        masks
    }
}
