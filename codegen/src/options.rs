//! What the compiler is asked for: the target and its limits, donated inputs, fusion on or off.

use crate::kernel::Tile;
use dnx_ir::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Options of [`crate::compile`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Options {
    /// What will run the program.
    pub target: Target,
    /// `(input, output)` pairs: the input's memory is given up and holds the output after the run.
    pub donate: Vec<(usize, usize)>,
    /// How values are stored between kernels and what contractions read.
    pub precision: Precision,
    /// Whether kernels are fused. Without it every op is its own kernel, which is slow and easy to check.
    pub fuse: bool,
    /// Tiles that tuning found, by the hash of the kernel without a tile; the table's choice for the others.
    pub tuned: BTreeMap<String, Tile>,
    /// On [`GpuClass::Software`], attention whose scores (`f32`, of all samples and heads) take at most so many bytes is
    /// computed by products and rows of softmax, which are faster there than the attention kernel. Longer sequences keep
    /// the kernel, which never holds their scores. 0: all do.
    pub held_scores: u64,
    /// Collectives of one kind between the same devices that are ready together are one meeting, up to this many bytes
    /// of operands and results (a single larger one is alone). 0: each is alone.
    pub bucket_bytes: u64,
    /// Whether weights that are gathered for a block are asked for while the block before it computes. It takes the memory
    /// of another block's weights, and time is won where a device goes on while values are exchanged: by default on GPUs that
    /// are no software.
    pub gather_ahead: bool,
    /// What large `f32` values cross between devices as.
    pub wire: Wire,
}

/// The default of [`Options::bucket_bytes`]: large enough that the cost of a meeting is small beside that of the bytes.
const BUCKET_BYTES: u64 = 32 << 20;

/// The default of [`Options::held_scores`].
const HELD_SCORES: u64 = 64 << 20;

impl Options {
    /// The defaults for a target: nothing donated, fusion on.
    pub fn new(target: Target) -> Options {
        Options {
            target,
            donate: Vec::new(),
            precision: Precision::F32,
            fuse: true,
            tuned: BTreeMap::new(),
            held_scores: HELD_SCORES,
            bucket_bytes: BUCKET_BYTES,
            gather_ahead: target.gpu().is_some_and(|limits| limits.class != GpuClass::Software),
            wire: Wire::F32,
        }
    }

    /// The same options with these `(input, output)` pairs donated.
    pub fn with_donate(mut self, donate: &[(usize, usize)]) -> Options {
        self.donate = donate.to_vec();
        self
    }

    /// The same options with attention decomposed up to this size of its scores; see [`Options::held_scores`].
    pub fn with_held_scores(self, held_scores: u64) -> Options {
        Options { held_scores, ..self }
    }

    /// The same options with meetings of this size; see [`Options::bucket_bytes`].
    pub fn with_bucket_bytes(self, bucket_bytes: u64) -> Options {
        Options { bucket_bytes, ..self }
    }

    /// The same options with or without weights gathered ahead of time; see [`Options::gather_ahead`].
    pub fn with_gather_ahead(self, gather_ahead: bool) -> Options {
        Options { gather_ahead, ..self }
    }

    /// The same options with values crossing between devices as these.
    pub fn with_wire(self, wire: Wire) -> Options {
        Options { wire, ..self }
    }

    /// The same options with this precision.
    pub fn with_precision(self, precision: Precision) -> Options {
        Options { precision, ..self }
    }

    /// The same options with these tiles, by the hash of a kernel without a tile.
    pub fn with_tuned(self, tuned: BTreeMap<String, Tile>) -> Options {
        Options { tuned, ..self }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options::new(Target::Cpu)
    }
}

/// How values are stored between kernels and what contractions read. Arithmetic and sums are in `f32` in any case,
/// and so are parameters and results; see [`crate::passes::mixed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Everything in `f32`.
    #[default]
    F32,
    /// In `f16`. Gradients need loss scaling.
    F16,
    /// In `bf16`: half the memory with the range of `f32`. No tensor cores: products are of `f32`.
    Bf16Storage,
    /// What contractions read is rounded to 8 bits, 4 of exponent and 3 of mantissa, with a scale per tensor. An
    /// emulation: it costs time and saves no memory.
    Fp8E4m3,
    /// The same with 5 bits of exponent and 2 of mantissa.
    Fp8E5m2,
}

impl Precision {
    /// Whether gradients are stored in a type of narrow range, so that the loss must be scaled.
    pub const fn needs_scaling(self) -> bool {
        match self {
            Precision::F16 => true,
            Precision::F32 | Precision::Bf16Storage | Precision::Fp8E4m3 | Precision::Fp8E5m2 => false,
        }
    }
}

/// What `f32` values cross between devices as, those of a few thousand elements and more; see
/// [`crate::passes::partition`]. Sums over devices are made in `f32` in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// Rounded to `f16`: 11 bits, up to 65504. Gradients need loss scaling.
    F16,
    /// Rounded to `bf16`: 8 bits, with the range of `f32`.
    Bf16,
}

impl Wire {
    /// The type of narrow values; `None` where they stay as they are.
    pub const fn narrow(self) -> Option<DType> {
        match self {
            Wire::F32 => None,
            Wire::F16 => Some(DType::F16),
            Wire::Bf16 => Some(DType::BF16),
        }
    }

    /// Whether gradients cross in a type of narrow range, so that the loss must be scaled.
    pub const fn needs_scaling(self) -> bool {
        match self {
            Wire::F16 => true,
            Wire::F32 | Wire::Bf16 => false,
        }
    }
}

/// What runs a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The host's processor, which executes kernel IR.
    #[default]
    Cpu,
    /// A GPU reached through WGSL shaders.
    Gpu(GpuLimits),
}

impl Target {
    /// The limits of the GPU; `None` for the cpu.
    pub fn gpu(&self) -> Option<&GpuLimits> {
        match self {
            Target::Cpu => None,
            Target::Gpu(limits) => Some(limits),
        }
    }

    /// Storage buffers one kernel may bind.
    pub fn storage_buffers(&self) -> usize {
        match self {
            Target::Cpu => usize::MAX,
            Target::Gpu(limits) => limits.storage_buffers as usize,
        }
    }
}

/// What sort of hardware a GPU is, as far as the choice of tiles depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GpuClass {
    /// Anything not named below.
    #[default]
    Other,
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Apple.
    Apple,
    /// A rasteriser on the host's processor: loads are slow, and so are barriers.
    Software,
}

/// What a GPU can do, as its adapter reports. Shaders are written for exactly these limits, so the struct is
/// part of every cache key that concerns shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GpuLimits {
    /// What sort of hardware it is.
    pub class: GpuClass,
    /// Storage buffers one shader may bind.
    pub storage_buffers: u32,
    /// Largest range of one binding, in bytes.
    pub binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub workgroup_bytes: u32,
    /// Invocations of one workgroup.
    pub max_invocations: u32,
    /// Workgroups in each dimension of a dispatch.
    pub max_workgroups_per_dim: u32,
    /// Least and greatest subgroup size; `None` where shaders can't use subgroups.
    pub subgroup: Option<(u32, u32)>,
    /// Whether shaders may compute in `f16`.
    pub f16: bool,
    /// Edge of the square cooperative matrices (`f16` in, `f32` accumulated); `None` where there are none.
    pub cooperative_matrix: Option<u32>,
}

impl Default for GpuLimits {
    /// What a desktop GPU gives through Vulkan or DX12, without optional features: the WebGPU baseline with 16
    /// instead of 8 storage buffers, bindings of 2 GiB - 4 bytes, and 32 KiB of workgroup memory.
    fn default() -> GpuLimits {
        GpuLimits {
            class: GpuClass::Other,
            storage_buffers: 16,
            binding_bytes: (1 << 31) - 4,
            buffer_bytes: (1 << 31) - 4,
            workgroup_bytes: 32 << 10,
            max_invocations: 256,
            max_workgroups_per_dim: 65_535,
            subgroup: None,
            f16: false,
            cooperative_matrix: None,
        }
    }
}

impl GpuLimits {
    /// What every WebGPU implementation gives, browsers included.
    pub fn webgpu() -> GpuLimits {
        GpuLimits {
            storage_buffers: 8,
            binding_bytes: 128 << 20,
            buffer_bytes: 256 << 20,
            workgroup_bytes: 16 << 10,
            ..GpuLimits::default()
        }
    }
}
