//! Programs of the cpu device: planned kernels and the walk over the steps.

use super::{CpuMemory, Queue};
use crate::Result;
use dnx_codegen::exec::Executable;
use std::sync::Arc;

/// An executable with its kernels planned.
pub(crate) struct CpuProgram {
    queue: Arc<Queue>,
    exec: Arc<Executable>,
}

/// A program with its memory resolved.
pub(crate) struct CpuBound {
    program: Arc<CpuProgram>,
    inputs: Vec<CpuMemory>,
    outputs: Vec<CpuMemory>,
}

impl CpuProgram {
    pub(crate) fn new(queue: Arc<Queue>, exec: Arc<Executable>) -> Result<CpuProgram, String> {
        Ok(CpuProgram { queue, exec })
    }

    pub(crate) fn bind(self: &Arc<Self>, inputs: Vec<CpuMemory>, outputs: Vec<CpuMemory>) -> CpuBound {
        CpuBound { program: self.clone(), inputs, outputs }
    }
}

impl CpuBound {
    pub(crate) fn run(&self) -> Result<()> {
        let _turn = self.program.queue.enter();
        let _ = (&self.program.exec, &self.inputs, &self.outputs);
        Err(crate::Error::Run { program: self.program.exec.name.clone(), reason: "kernels are not planned yet".into() })
    }
}
