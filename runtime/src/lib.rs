//! dnx-runtime: an [`Executable`](dnx_codegen::exec::Executable) in, numbers out.
//!
//! * A [`Device`] runs programs: the embedded cpu, or a GPU through wgpu. Everything a device makes stays on it.
//! * A [`Buffer`] is a range of a device's memory with a type. Clones share the memory.
//! * A [`Program`] is an executable made ready on a device: kernels planned or compiled, temporaries allocated.
//! * A [`Bound`] is a program with its inputs and outputs fixed: [`Bound::run`] allocates nothing.
//! * A [`Team`] is several devices that run one program together and exchange values at its collectives.
//! * A [`Jit`] traces a function of graph tensors once per signature of argument types and runs the program.
//!
//! Host arrays hold `bool` as one byte, devices as a `u32`; [`Device::upload`] and [`Buffer::download`] convert.

pub mod buffer;
mod company;
mod cpu;
pub mod device;
pub mod error;
mod gpu;
pub mod jit;
pub mod program;
pub mod team;
pub mod tune;

pub use buffer::Buffer;
pub use device::{Device, DeviceInfo, DeviceKind};
pub use error::{Error, Result};
pub use gpu::GpuError;
pub use jit::Jit;
pub use program::{Bound, Program, executable_from_bytes, executable_to_bytes};
pub use team::{Team, TeamBound, TeamProgram, Timeline, Transport};
