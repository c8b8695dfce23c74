//! dnx-codegen: a graph in, an [`exec::Executable`] out: passes, fusion, kernel IR, WGSL.

pub mod exec;
pub mod kernel;
