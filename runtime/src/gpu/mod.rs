//! The gpu device: wgpu over Vulkan, Metal or DX12. This folder owns every wgpu call of the house.
//!
//! * [`device`]: adapters, opening one, its limits, and the *fault*: the first error that came outside any scope,
//!   or the loss of the device. Everything asks for it before and after its work, so nothing fails in silence.
//! * [`memory`]: ranges of allocations, and their traffic with the host.
//! * [`program`]: pipelines, bind groups made once, and the encoding of a run.
//! * [`exchange`]: what goes to other devices and comes from them, through host memory.
//! * [`portions`]: how much of it goes to the queue at once.
//! * [`multi`]: segment tables of `Multi` kernels.
//! * [`trial`]: whether cooperative matrices give the right numbers.
//! * [`profile`]: the times of single steps.
//!
//! Programs, reads and writes of one device take its *turn*, a lock, so that they reach the queue one after another.

mod device;
mod error;
mod exchange;
mod memory;
mod multi;
mod portions;
mod profile;
mod program;
#[cfg(test)]
mod tests;
mod trial;

pub(crate) use device::{GpuDevice, adapters};
pub use error::GpuError;
pub(crate) use memory::GpuMemory;
pub(crate) use program::{GpuBound, GpuProgram};

/// Why a run ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The device failed.
    Gpu(GpuError),
    /// The company stopped it.
    Stopped,
}

impl From<GpuError> for Halt {
    fn from(error: GpuError) -> Halt {
        Halt::Gpu(error)
    }
}
