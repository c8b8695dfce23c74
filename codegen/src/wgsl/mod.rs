//! WGSL from kernel IR: one writer per kernel kind, readable text, every shader parsed, validated and turned into
//! SPIR-V by naga before anybody sees it.
//!
//! * [`shaders`]: the stages of a kernel, run in order. Most have one; a split reduction or contraction has two,
//!   which share the scratch buffer.
//! * [`widen_access`]: for a device that binds one allocation to a read and to a written argument at once.
//! * [`MULTI_BLOCK`]: the convention between a `Multi` shader and the device that makes its segment table.
//!
//! Vocabulary: a *stage* is one entry point; a *full* store lives on the `Reduce` dims too; *scratch* holds the
//! partial results of the first stage. Bindings are the arguments a stage uses, in order, then scratch.

mod attention;
mod column;
mod contract;
mod expr;
mod index;
mod library;
mod loops;
mod multi;
mod quad;
mod row;
mod scatter;
mod team;
mod writer;

use crate::exec::Shader;
use crate::kernel::{Kernel, Kind, Tile};
use crate::{CompileError, GpuLimits, Result};

pub use contract::{candidate_tiles, choose_tile};
pub use multi::MULTI_BLOCK;

/// The shaders of a kernel, in the order they run.
///
/// # Errors
/// If the kernel can't be expressed in WGSL (`f64`, an instruction of another kind of kernel), or, which is a bug
/// of a writer, if naga refuses the text.
pub fn shaders(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    match kernel.kind {
        Kind::Loop => loops::write(kernel, limits),
        Kind::Row => row::write(kernel, limits),
        Kind::Column => column::write(kernel, limits),
        Kind::Contract => contract::write(kernel, limits),
        Kind::Attention => attention::write(kernel, limits),
        Kind::Index => scatter::write(kernel, limits),
        Kind::Multi => multi::write(kernel, limits),
    }
}

/// Parses and validates WGSL and writes it as SPIR-V.
///
/// # Errors
/// naga's message with the source lines it is about.
pub fn check(wgsl: &str) -> Result<()> {
    spirv(wgsl).map(|_| ())
}

/// A shader as SPIR-V words; it is parsed and validated on the way.
///
/// # Errors
/// naga's message with the source lines it is about.
pub fn spirv(wgsl: &str) -> Result<Vec<u32>> {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let refused = |message: String| CompileError::Shader { kernel: title(wgsl), message };
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| refused(e.emit_to_string(wgsl)))?;
    let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP | Capabilities::COOPERATIVE_MATRIX;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| refused(e.emit_to_string(wgsl)))?;
    let options = naga::back::spv::Options::default();
    let entry =
        naga::back::spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".to_string() };
    naga::back::spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|e| refused(format!("{e:?}")))
}

/// The same shader with the binding declared `read_write` instead of `read`.
///
/// A dispatch may not see one buffer as readable through one binding and writable through another. Where arguments
/// of both kinds lie in one allocation (at different bytes), the device binds them all as writable.
pub fn widen_access(wgsl: &str, binding: u32) -> String {
    let declared = format!("@binding({binding}) var<storage, read>");
    wgsl.replacen(&declared, &format!("@binding({binding}) var<storage, read_write>"), 1)
}

/// The workgroup size a tile asks for, or `default`, within the limits.
fn workgroup_size(tile: &Tile, default: u32, limits: &GpuLimits) -> u32 {
    let wanted = if tile.workgroup == 0 { default } else { tile.workgroup };
    wanted.clamp(1, limits.max_invocations.max(1))
}

/// The first line of a shader, which says what it is.
fn title(wgsl: &str) -> String {
    wgsl.lines().next().unwrap_or("").trim_start_matches("// ").to_string()
}
