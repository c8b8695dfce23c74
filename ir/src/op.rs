//! The closed op set. Everything dnx computes is written in these ops; their meaning is stated here and
//! *defined* by the reference interpreter.
//!
//! Rules that hold for all of them:
//!
//! * Operands of elementwise ops have equal dims: broadcasting is the builder's work, not an op's.
//! * No op is named after a gradient: the set is closed under differentiation.
//! * Integer arithmetic wraps. Division and remainder of integers by zero give zero.
//! * Results of `max`, `min` and comparisons on NaN are unspecified; everything else follows IEEE.
//! * Sums, `dot_general` and `conv` of 16-bit floats accumulate in `f32`.

use crate::{Array, AxisName, DType, Func, Scalar, Sharding};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One-operand elementwise ops that keep the dtype (`is_finite` alone gives `bool`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum UnaryOp {
    Neg,
    Exp,
    Log,
    Sin,
    Cos,
    Tanh,
    Erf,
    Sqrt,
    Rsqrt,
    Abs,
    /// -1, 0 or 1.
    Sign,
    Floor,
    /// Bitwise on integers, logical on `bool`.
    Not,
    /// Float to `bool`: neither infinite nor NaN, by the exponent bits.
    IsFinite,
    /// The identity, with derivative zero.
    StopGradient,
}

impl UnaryOp {
    /// Every unary op.
    pub const ALL: [UnaryOp; 15] = {
        use UnaryOp::*;
        [Neg, Exp, Log, Sin, Cos, Tanh, Erf, Sqrt, Rsqrt, Abs, Sign, Floor, Not, IsFinite, StopGradient]
    };

    /// The name used in text.
    pub const fn name(self) -> &'static str {
        match self {
            UnaryOp::Neg => "neg",
            UnaryOp::Exp => "exp",
            UnaryOp::Log => "log",
            UnaryOp::Sin => "sin",
            UnaryOp::Cos => "cos",
            UnaryOp::Tanh => "tanh",
            UnaryOp::Erf => "erf",
            UnaryOp::Sqrt => "sqrt",
            UnaryOp::Rsqrt => "rsqrt",
            UnaryOp::Abs => "abs",
            UnaryOp::Sign => "sign",
            UnaryOp::Floor => "floor",
            UnaryOp::Not => "not",
            UnaryOp::IsFinite => "is_finite",
            UnaryOp::StopGradient => "stop_gradient",
        }
    }
}

/// Two-operand elementwise ops; operands and result have one dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    /// Integers truncate toward zero.
    Div,
    /// Floats only; the base must be positive, or the exponent an integer value.
    Pow,
    Max,
    Min,
    /// Sign of the dividend.
    Rem,
    And,
    Or,
    Xor,
    /// The count is taken modulo 32.
    Shl,
    /// Logical on `u32`, arithmetic on `i32`; the count is taken modulo 32.
    Shr,
}

impl BinaryOp {
    /// Every binary op.
    pub const ALL: [BinaryOp; 13] = {
        use BinaryOp::*;
        [Add, Sub, Mul, Div, Pow, Max, Min, Rem, And, Or, Xor, Shl, Shr]
    };

    /// The name used in text.
    pub const fn name(self) -> &'static str {
        match self {
            BinaryOp::Add => "add",
            BinaryOp::Sub => "sub",
            BinaryOp::Mul => "mul",
            BinaryOp::Div => "div",
            BinaryOp::Pow => "pow",
            BinaryOp::Max => "max",
            BinaryOp::Min => "min",
            BinaryOp::Rem => "rem",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Xor => "xor",
            BinaryOp::Shl => "shl",
            BinaryOp::Shr => "shr",
        }
    }
}

/// Comparison directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum CmpOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl CmpOp {
    /// Every comparison.
    pub const ALL: [CmpOp; 6] = [CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge];

    /// The name used in text.
    pub const fn name(self) -> &'static str {
        match self {
            CmpOp::Eq => "eq",
            CmpOp::Ne => "ne",
            CmpOp::Lt => "lt",
            CmpOp::Le => "le",
            CmpOp::Gt => "gt",
            CmpOp::Ge => "ge",
        }
    }
}

/// What a reduction (or an all-reduce) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ReduceKind {
    Sum,
    Max,
}

/// Dimension numbers of `dot_general`. The result's dims are the batch dims (in the order of
/// `lhs_batch`), then the free dims of the left operand, then those of the right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DotDims {
    /// Batch dims of the left operand.
    pub lhs_batch: Vec<usize>,
    /// Batch dims of the right operand, in the same order.
    pub rhs_batch: Vec<usize>,
    /// Contracted dims of the left operand.
    pub lhs_contract: Vec<usize>,
    /// Contracted dims of the right operand, in the same order.
    pub rhs_contract: Vec<usize>,
}

impl DotDims {
    /// The free (neither batch nor contracted) dims of the left operand.
    pub fn lhs_free(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|d| !self.lhs_batch.contains(d) && !self.lhs_contract.contains(d)).collect()
    }

    /// The free dims of the right operand.
    pub fn rhs_free(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|d| !self.rhs_batch.contains(d) && !self.rhs_contract.contains(d)).collect()
    }
}

/// Window of `conv`. All vectors have one entry per spatial dim.
///
/// Left operand `[N, S.., C]`, right `[K.., C / groups, O]`, result `[N, S'.., O]`, where with
/// `S_d = (S - 1) * lhs_dilation + 1` and `K_d = (K - 1) * rhs_dilation + 1`,
/// `S' = (padding.0 + S_d + padding.1 - K_d) / stride + 1`. It is a cross-correlation: the kernel is not flipped.
/// Output channel `o` reads the input channels of group `o / (O / groups)`. Padding may be negative.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConvDims {
    /// Step between windows.
    pub stride: Vec<usize>,
    /// Zeros before and after each spatial dim; negative values crop.
    pub padding: Vec<(i64, i64)>,
    /// Distance between input elements (1: dense; s: s - 1 zeros between).
    pub lhs_dilation: Vec<usize>,
    /// Distance between kernel taps.
    pub rhs_dilation: Vec<usize>,
    /// Feature groups.
    pub groups: usize,
}

/// The value of a composite's attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum AttrValue {
    Bool(bool),
    Int(i64),
    /// Kept as an `f64` scalar so that it compares and hashes exactly.
    Float(Scalar),
    Ints(Vec<i64>),
    Str(String),
}

/// An op with its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Parameter number `index` of the function.
    Param {
        /// Position in [`Func::params`].
        index: usize,
        /// Its type, sharding included.
        ty: crate::Type,
    },
    /// A constant.
    Const(Array),
    /// Counts 0, 1, 2... along `dim` and is the same along the others.
    Iota {
        /// Result dtype: `f32`, `i32`, `u32` (or another float).
        dtype: DType,
        /// Result dims.
        dims: Vec<usize>,
        /// The dim that counts.
        dim: usize,
    },
    /// Uniform `u32` bits: threefry2x32 under the key `u32[2]` (operand 0) of the counter
    /// `(0, linear index)`, the two output words xored. With `global`, the result is the block of a larger
    /// array of dims `global` that begins at operand 1 (`i32[rank]`), so that a device draws its own part.
    RandomBits {
        /// Result dims.
        dims: Vec<usize>,
        /// Dims of the array whose indices are the counters, when that is not `dims`.
        global: Option<Vec<usize>>,
    },
    /// Per-device program: this device's coordinate along a mesh axis, `i32[]`.
    AxisIndex {
        /// Mesh axis.
        axis: AxisName,
    },
    /// Elementwise, one operand.
    Unary(UnaryOp),
    /// Conversion between dtypes: floats round to nearest even, float to integer truncates toward zero and
    /// saturates, anything to `bool` is `!= 0`.
    Convert(DType),
    /// The same bits as another dtype of the same width.
    Bitcast(DType),
    /// Elementwise, two operands.
    Binary(BinaryOp),
    /// Elementwise comparison; gives `bool`.
    Compare(CmpOp),
    /// `select(c, a, b)`: `a` where `c` (a `bool` of the same dims) is true, else `b`.
    Select,
    /// The same elements, row-major, with other dims.
    Reshape {
        /// Result dims.
        dims: Vec<usize>,
    },
    /// Result dim `i` is operand dim `perm[i]`.
    Transpose {
        /// Permutation.
        perm: Vec<usize>,
    },
    /// Operand dim `i` becomes result dim `map[i]` (strictly increasing); it has that dim's size or size 1.
    /// All other result dims repeat.
    Broadcast {
        /// Result dims.
        dims: Vec<usize>,
        /// Where each operand dim goes.
        map: Vec<usize>,
    },
    /// `start <= i < limit` by steps of `stride`, per dim.
    Slice {
        /// First index per dim.
        start: Vec<usize>,
        /// End (exclusive) per dim.
        limit: Vec<usize>,
        /// Step per dim.
        stride: Vec<usize>,
    },
    /// Operand 0 surrounded by operand 1 (a scalar): `low` before, `high` after, `interior` between elements.
    Pad {
        /// Elements before, per dim.
        low: Vec<usize>,
        /// Elements after, per dim.
        high: Vec<usize>,
        /// Elements between neighbours, per dim.
        interior: Vec<usize>,
    },
    /// Operands one after another along `dim`.
    Concat {
        /// Dim.
        dim: usize,
    },
    /// Reversed along these dims.
    Reverse {
        /// Dims, increasing.
        dims: Vec<usize>,
    },
    /// The block of operand 0 of these sizes that begins at operand 1 (`i32[rank]`), clamped to fit.
    DynamicSlice {
        /// Result dims.
        sizes: Vec<usize>,
    },
    /// Operand 0 with the block that begins at operand 2 (`i32[rank]`, clamped to fit) replaced by operand 1.
    DynamicUpdateSlice,
    /// Reduction over `dims`, which disappear. The maximum over nothing is minus infinity (or the least integer).
    Reduce {
        /// Sum or maximum.
        kind: ReduceKind,
        /// Dims, increasing.
        dims: Vec<usize>,
    },
    /// The `i32` index along `dim` of the first greatest element; `dim` disappears.
    Argmax {
        /// Dim.
        dim: usize,
    },
    /// `dot_general`: contraction with batch dims.
    Dot {
        /// Dimension numbers.
        dims: DotDims,
        /// Result dtype.
        out: DType,
    },
    /// Convolution.
    Conv {
        /// Window.
        dims: ConvDims,
        /// Result dtype.
        out: DType,
    },
    /// Operand 0 at the indices of operand 1 (integers of any rank, clamped into range) along `dim`: that dim
    /// is replaced by the indices' dims.
    Take {
        /// Dim.
        dim: usize,
    },
    /// Operand 0 with operand 2 added at the indices of operand 1 (clamped into range) along `dim`: the
    /// transpose of `take`. Contributions to one element are added in row-major order of the indices.
    ScatterAdd {
        /// Dim.
        dim: usize,
    },
    /// Global program: the same value, laid out so.
    Reshard {
        /// The new sharding.
        sharding: Sharding,
    },
    /// Per-device: the reduction over all devices of `axes`, on each of them.
    AllReduce {
        /// Sum or maximum.
        kind: ReduceKind,
        /// Mesh axes.
        axes: Vec<AxisName>,
    },
    /// Per-device: the operands of all devices of `axis`, one after another along `dim`.
    AllGather {
        /// Mesh axis.
        axis: AxisName,
        /// Dim.
        dim: usize,
    },
    /// Per-device: the sum over all devices of `axis`, of which each keeps its part along `dim`.
    ReduceScatter {
        /// Mesh axis.
        axis: AxisName,
        /// Dim.
        dim: usize,
    },
    /// Per-device: `split` is cut into one part per device, part `j` goes to device `j`, and what arrives is
    /// put together along `concat`.
    AllToAll {
        /// Mesh axis.
        axis: AxisName,
        /// The dim that is cut.
        split: usize,
        /// The dim along which the parts are put together.
        concat: usize,
    },
    /// Per-device: device `from` of `axis` sends its operand to `to`; who receives nothing holds zeros.
    Ppermute {
        /// Mesh axis.
        axis: AxisName,
        /// `(from, to)` pairs, each device at most once on either side.
        pairs: Vec<(usize, usize)>,
    },
    /// A call. With `remat` the reverse mode recomputes the callee instead of keeping its intermediates.
    Call {
        /// Callee.
        func: Arc<Func>,
        /// Recompute in the backward pass.
        remat: bool,
    },
    /// The identity on all its operands, through which nothing is moved, merged or fused.
    OptimizationBarrier,
    /// A named op whose meaning is that of `func`. A lowering may claim the name; otherwise it is inlined.
    Composite {
        /// Name, as `attention`.
        name: Arc<str>,
        /// Attributes, sorted by name.
        attrs: Vec<(String, AttrValue)>,
        /// The decomposition that defines it.
        func: Arc<Func>,
    },
}

impl Op {
    /// The name used in text.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Param { .. } => "param",
            Op::Const(_) => "const",
            Op::Iota { .. } => "iota",
            Op::RandomBits { .. } => "random_bits",
            Op::AxisIndex { .. } => "axis_index",
            Op::Unary(u) => u.name(),
            Op::Convert(_) => "convert",
            Op::Bitcast(_) => "bitcast",
            Op::Binary(b) => b.name(),
            Op::Compare(_) => "compare",
            Op::Select => "select",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Broadcast { .. } => "broadcast",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::Concat { .. } => "concat",
            Op::Reverse { .. } => "reverse",
            Op::DynamicSlice { .. } => "dynamic_slice",
            Op::DynamicUpdateSlice => "dynamic_update_slice",
            Op::Reduce { kind: ReduceKind::Sum, .. } => "reduce_sum",
            Op::Reduce { kind: ReduceKind::Max, .. } => "reduce_max",
            Op::Argmax { .. } => "argmax",
            Op::Dot { .. } => "dot_general",
            Op::Conv { .. } => "conv",
            Op::Take { .. } => "take",
            Op::ScatterAdd { .. } => "scatter_add",
            Op::Reshard { .. } => "reshard",
            Op::AllReduce { .. } => "all_reduce",
            Op::AllGather { .. } => "all_gather",
            Op::ReduceScatter { .. } => "reduce_scatter",
            Op::AllToAll { .. } => "all_to_all",
            Op::Ppermute { .. } => "ppermute",
            Op::Call { .. } => "call",
            Op::OptimizationBarrier => "optimization_barrier",
            Op::Composite { .. } => "composite",
        }
    }

    /// Whether the op may define other than one value.
    pub fn is_multi_result(&self) -> bool {
        matches!(self, Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier)
    }

    /// Pure elementwise ops: result dims equal every operand's dims.
    pub fn is_elementwise(&self) -> bool {
        matches!(self, Op::Unary(_) | Op::Convert(_) | Op::Bitcast(_) | Op::Binary(_) | Op::Compare(_) | Op::Select)
    }

    /// Ops that only rename elements (`pad` also adds some): index maps, not work.
    pub fn is_view(&self) -> bool {
        matches!(
            self,
            Op::Reshape { .. }
                | Op::Transpose { .. }
                | Op::Broadcast { .. }
                | Op::Slice { .. }
                | Op::Pad { .. }
                | Op::Reverse { .. }
        )
    }

    /// Collectives: ops of a per-device program that exchange data.
    pub fn is_collective(&self) -> bool {
        matches!(
            self,
            Op::AllReduce { .. }
                | Op::AllGather { .. }
                | Op::ReduceScatter { .. }
                | Op::AllToAll { .. }
                | Op::Ppermute { .. }
        )
    }
}
