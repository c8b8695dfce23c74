//! dnx-codegen: a graph in, an [`exec::Executable`] out: passes, fusion, kernel IR, WGSL.

mod depth;
mod dumps;
pub mod emit;
pub mod error;
pub mod exec;
pub mod kernel;
pub mod options;
pub mod passes;
pub mod stages;
pub mod stats;
pub mod wgsl;

pub use error::{CompileError, InStage, Result};
pub use options::{GpuClass, GpuLimits, Options, Precision, Target, Wire};
pub use stages::{Dump, Stage};
pub mod compile;
pub mod fuse;
pub mod lower;
pub mod memory;
pub mod schedule;

pub use compile::{Compiled, compile, compile_with};
