//! dnx-autodiff: derivatives as graph transforms, `Func` in, `Func` out.
//!
//! One table of rules ([`rules`](self::table())) serves every transform: for each op its *jvp* (the tangent of its
//! result from the tangents of its operands) and, where it is linear in some operands, its *transpose*
//! (their cotangents from the cotangent of its result).
//!
//! * [`jvp`] walks a function forward and emits tangents beside primals.
//! * [`linearize`] splits that into what depends on tangents (the *linear* part) and what does not.
//! * [`transpose`] walks a linear part backward.
//! * [`grad`] and [`value_and_grad`] are all three, emitted as one function: primal nodes first, then
//!   cotangent nodes; what a derivative needs beyond primal values is computed just before its use.
//!
//! The results are ordinary functions, so the transforms compose: a jvp of a gradient, a gradient of a jvp,
//! a gradient of a gradient.
//!
//! ```
//! use dnx_ir::{Array, Graph, Type, interp};
//! let g = Graph::new("loss");
//! let (x, w) = (g.param("x", Type::f32([2])), g.param("w", Type::f32([2])));
//! let loss = g.finish(&[(x * w).square().sum_all()]).unwrap();
//! let step = dnx_autodiff::value_and_grad(&loss, &[1]).unwrap();
//! let args = [Array::f32([2], &[1.0, 2.0]), Array::f32([2], &[3.0, 4.0])];
//! let out = interp::eval(&step, &args, interp::Precision::F32).unwrap();
//! assert_eq!(out[0].to_f32_vec(), [73.0]);
//! assert_eq!(out[1].to_f32_vec(), [6.0, 32.0]); // 2 x² w
//! ```
//!
//! # Conventions
//!
//! * A tangent or cotangent has the dtype and dims of its primal. Integers and `bool` have none.
//! * Where ties make a maximum ambiguous (`max`, `min`, `reduce_max`, `all_reduce` of `max`) the tied
//!   elements share the derivative equally. `abs` has derivative zero at zero; `floor`, `sign`, comparisons,
//!   `argmax` and conversions to integers have derivative zero everywhere.
//! * `bitcast` has no derivative: a float result that depends on a differentiated parameter through one is an
//!   error that names it.
//! * `dot_general` and `conv` with a result wider than their operands round the incoming cotangent to the
//!   operands' dtype: the backward contraction runs at the precision of the forward one.
//! * In a global program a gradient is laid out as its parameter is, and reduced. On the way cotangents stay split
//!   or summed in part where the next op can take them so: what has to be added over devices is added once.
//! * In a per-device program the function that is differentiated is the one from the operands of all devices
//!   to the results of all devices. So `all_reduce` (sum) is its own transpose, `all_gather` and
//!   `reduce_scatter` are each other's, and the gradient of a scalar is that of its *sum over devices*: a loss
//!   that every one of `n` devices holds after an `all_reduce` has `n` times the gradient of the one loss.
//! * `call` and `composite` are inlined where a tangent reaches them, except attention, whose derivatives are
//!   composites too: a first derivative never holds its weights. `call{remat}` stays a call: reverse
//!   mode keeps its operands only and calls a function that recomputes the rest behind an
//!   `optimization_barrier`.
//! * Every derivative node has the model path of the node it belongs to, and cotangents are added in the
//!   reverse order of the uses.

mod composite;
mod forward;
mod inline;
mod linear;
mod prune;
mod reverse;
mod rules;
mod table;

pub use forward::jvp;
pub use linear::{Linearized, linearize};
pub use reverse::{grad, transpose, value_and_grad};
pub use table::{Row, table};
