//! dnx: trains and samples diffusion and flow-matching models on any GPU, from the processor's own cores to
//! whatever Vulkan, Metal or DX12 reach, with no Python and no CUDA.
//!
//! This crate is the library's face; each room is a crate of its own:
//!
//! * [`ir`]: the language. Build a graph with operators on [`ir::Tensor`] handles.
//! * [`autodiff`]: `jvp`, `grad`, `value_and_grad`: graph in, graph out.
//! * [`codegen`]: graph in, executable out: fusion, kernels, WGSL.
//! * [`runtime`]: devices, buffers, programs, `jit`.
//! * [`models`]: networks, processes, optimizers, samplers.
//! * [`train`]: data, the loop, checkpoints, metrics, pictures.
//!
//! [`single`] names operations that are timed by themselves, for `dnx bench` and the worker of comparisons.

pub use dnx_autodiff as autodiff;
pub use dnx_codegen as codegen;
pub use dnx_ir as ir;
pub use dnx_models as models;
pub use dnx_runtime as runtime;
pub use dnx_train as train;

pub mod single;

/// The names most programs use.
pub mod prelude {
    pub use dnx_autodiff::{grad, jvp, value_and_grad};
    pub use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
    pub use dnx_runtime::{Buffer, Device, Program};
    pub use dnx_train::{FitOptions, Trainer};
}
