//! dnx-ir: the language every other room speaks.
//!
//! A program is a [`Func`]: parameters, nodes in topological order, results. Values are typed with a
//! dtype, static dims and a sharding ([`Type`]). Nodes carry an [`Op`], operands, and the model path that
//! made them ([`Loc`]). A pass is a rebuild: it walks an old function and emits a new one through
//! [`Builder`], which infers every type with the same rules the verifier checks ([`infer`]).
//!
//! * [`dtype`], [`types`], [`literal`]: what a value is.
//! * [`op`]: the closed op set, its attributes, and what each op means.
//! * [`func`]: functions, nodes, typed indices.
//! * [`builder`]: emitting nodes; [`tensor`]: the same with operators and broadcasting.
//! * [`infer`]: output types, one function per op; [`sharding`]: how shardings go through ops.
//! * [`text`]: printing and parsing; [`verify`]: the invariants every function keeps.
//! * [`interp`]: the reference interpreter, which *defines* what the ops mean.
//! * [`attention`]: attention and its derivatives, composites that a lowering may claim.
//! * [`parts`]: what each device of a mesh holds of an array.
//! * [`threefry`], [`random`]: random numbers, on the host and as graphs.

pub mod attention;
pub mod builder;
pub mod dtype;
pub mod error;
pub mod func;
pub mod infer;
pub mod interp;
pub mod literal;
pub mod op;
pub mod parts;
pub mod random;
pub mod sharding;
pub mod tensor;
pub mod text;
pub mod threefry;
pub mod types;
pub mod verify;

pub use builder::Builder;
pub use dtype::DType;
pub use error::{Error, Result};
pub use func::{Func, Loc, Node, NodeId, Param, Value, ValueId};
pub use literal::{Array, Scalar};
pub use op::{AttrValue, BinaryOp, CmpOp, ConvDims, DotDims, Op, ReduceKind, UnaryOp};
pub use tensor::{Graph, Tensor};
pub use types::{AxisName, Mesh, Sharding, Type};
