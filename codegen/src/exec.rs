//! `Executable`: what codegen hands to a device. Static: every kernel, every address and the order of all work
//! are decided; a device only binds memory and walks [`Executable::steps`].

use crate::kernel::Kernel;
use dnx_ir::{Mesh, Type};
use serde::{Deserialize, Serialize};

pub mod collective;

pub use collective::{Collective, Part, group};

/// Version of the serialised form and of the meaning of kernels; part of every cache key.
pub const VERSION: u32 = 2;

/// Alignment, in bytes, of every range handed to a kernel.
pub const ALIGN: u64 = 256;

/// A compiled program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Executable {
    /// [`VERSION`] of the compiler that made it.
    pub version: u32,
    /// Name of the program.
    pub name: String,
    /// What the device must have.
    pub requires: Requires,
    /// Mesh of the per-device program.
    pub mesh: Mesh,
    /// Inputs in order.
    pub inputs: Vec<Port>,
    /// Outputs in order.
    pub outputs: Vec<Port>,
    /// Memory for temporaries, one size in bytes per slab.
    pub slabs: Vec<u64>,
    /// Constants too large to be baked into kernels, uploaded once: device bytes.
    pub constants: Vec<Vec<u8>>,
    /// Unique kernels.
    pub kernels: Vec<KernelEntry>,
    /// The work, in order.
    pub steps: Vec<Step>,
    /// Greatest number of bytes alive at once: inputs, outputs, constants and slabs.
    pub peak_bytes: u64,
}

impl Step {
    /// The ranges it reads or writes.
    pub fn ranges(&self) -> Vec<&BufRef> {
        match self {
            Step::Dispatch { args, scratch, .. } => args.iter().chain(scratch).collect(),
            Step::Multi { segments, .. } => segments.iter().flat_map(|(_, args)| args).collect(),
            Step::Copy { src, dst } => vec![src, dst],
            Step::Collective { parts, .. } => parts.iter().flat_map(|p| [&p.src, &p.dst]).collect(),
        }
    }
}

impl Executable {
    /// The first step after a collective one that touches its results, or the number of steps: until then a device that
    /// has taken the operands along may go on, and have the results later.
    pub fn wanted_at(&self, step: usize) -> usize {
        let Step::Collective { parts, .. } = &self.steps[step] else { return step + 1 };
        let touches = |s: &Step| s.ranges().into_iter().any(|r| parts.iter().any(|p| p.dst.overlaps(r)));
        let later = self.steps[step + 1..].iter().position(touches);
        later.map_or(self.steps.len(), |after| step + 1 + after)
    }

    /// The coordinates of a device along the axes of the mesh: what [`BufRef::Axis`] holds there.
    pub fn coordinates(&self, device: usize) -> Vec<i32> {
        let axes = self.mesh.axes.iter();
        axes.map(|(name, _)| self.mesh.coordinate(device, name).expect("an axis of this mesh") as i32).collect()
    }
}

/// Features a program needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requires {
    /// 16-bit float arithmetic in shaders.
    pub f16: bool,
    /// Most storage bindings of one kernel.
    pub storage_buffers: u32,
    /// Largest single binding in bytes.
    pub binding_bytes: u64,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name (outputs may have none).
    pub name: String,
    /// Local type.
    pub ty: Type,
    /// Outputs: the input whose memory holds this result after the run (donated, updated in place).
    pub donated: Option<u32>,
}

/// A range of memory known when the program is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BufRef {
    /// The whole of input `i`.
    Input(u32),
    /// The whole of output `i` (which is not donated; a donated one is its `Input`).
    Output(u32),
    /// The whole of constant `i`.
    Constant(u32),
    /// One `i32`: the device's coordinate along axis `i` of the mesh. What [`dnx_ir::Op::AxisIndex`] gives; the device
    /// that binds the program fills it, so that all devices share the kernels.
    Axis(u32),
    /// Bytes of a slab, aligned to [`ALIGN`].
    Slab {
        /// Slab.
        slab: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
}

impl BufRef {
    /// Whether the ranges share a byte.
    pub fn overlaps(&self, other: &BufRef) -> bool {
        match (self, other) {
            (BufRef::Slab { slab: s, offset: x, bytes: n }, BufRef::Slab { slab: t, offset: y, bytes: m }) => {
                s == t && *x < y + m && *y < x + n
            }
            (a, b) => a == b,
        }
    }
}

/// A unique kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelEntry {
    /// Content hash of kernel and codegen version, hexadecimal: stable across runs and builds.
    pub hash: String,
    /// A readable name from the first place that uses it; not part of the hash.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Its shaders, when compiled for a GPU: one per stage, run in order.
    pub shaders: Vec<Shader>,
}

/// One WGSL entry point of a kernel.
///
/// Bindings of group 0: the kernel's arguments in order, then, if `scratch_bytes` is not 0, a scratch buffer
/// (read-write) shared by the stages of one dispatch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shader {
    /// WGSL text with an entry point `main`.
    pub wgsl: String,
    /// The arguments it binds, in order of `@binding`; `None` stands for the scratch buffer.
    pub bindings: Vec<Option<u32>>,
    /// Workgroups. For a `Multi` kernel: `[0, 0, 0]`, the runtime derives it from the segments.
    pub grid: [u32; 3],
    /// Bytes of scratch it needs.
    pub scratch_bytes: u64,
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Runs a kernel.
    Dispatch {
        /// Index in [`Executable::kernels`].
        kernel: u32,
        /// One range per argument.
        args: Vec<BufRef>,
        /// Scratch for kernels whose shaders need it.
        scratch: Option<BufRef>,
        /// Model path, for errors and profiles.
        loc: String,
    },
    /// Runs a `Multi` kernel over segments; each has one range per argument.
    Multi {
        /// Index in [`Executable::kernels`].
        kernel: u32,
        /// `(length in elements, arguments)`.
        segments: Vec<(u64, Vec<BufRef>)>,
        /// Model path.
        loc: String,
    },
    /// Copies bytes between ranges of equal length.
    Copy {
        /// From.
        src: BufRef,
        /// To.
        dst: BufRef,
    },
    /// Exchanges data between devices: every device of a group meets the others, and all parts are exchanged at once.
    /// A group is the devices that differ only along the parts' mesh axes, which are the same for all parts. Every
    /// device takes the same steps in the same order, so the meetings of a group are the same on all of them.
    ///
    /// No part's `dst` overlaps another part's `src` or `dst`. It is its own `src` or is apart from it; the former
    /// only in an all-reduce, which then is in place.
    Collective {
        /// What is exchanged: at least one part.
        parts: Vec<Part>,
        /// Model path of the first part, for errors and profiles.
        loc: String,
    },
}
