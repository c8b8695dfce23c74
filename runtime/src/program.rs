//! Programs: executables ready to run on a device, and their bindings to buffers.

use crate::company::{Alone, Company, Stopped, Stopwatch};
use crate::cpu::{CpuBound, CpuMemory, CpuProgram};
use crate::device::{Device, Memory};
use crate::gpu::{GpuBound, GpuMemory, GpuProgram, Halt};
use crate::{Buffer, Error, Result};
use dnx_codegen::exec::{Executable, VERSION};
use std::sync::Arc;
use std::time::Duration;

/// An executable made ready on a device. Clones are the same program.
#[derive(Clone)]
pub struct Program {
    device: Device,
    exec: Arc<Executable>,
    loaded: LoadedProgram,
}

/// The device's own form of a program.
#[derive(Clone)]
pub(crate) enum LoadedProgram {
    /// Planned kernels.
    Cpu(Arc<CpuProgram>),
    /// Slabs, constants and pipelines.
    Gpu(Arc<GpuProgram>),
}

/// A program with its inputs and outputs fixed.
pub struct Bound {
    program: Program,
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    loaded: LoadedBound,
}

enum LoadedBound {
    Cpu(CpuBound),
    Gpu(GpuBound),
}

impl Program {
    pub(crate) fn new(device: Device, exec: Arc<Executable>, loaded: LoadedProgram) -> Program {
        Program { device, exec, loaded }
    }

    /// The executable.
    pub fn exec(&self) -> &Executable {
        &self.exec
    }

    /// The device it was loaded on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs once. Outputs are new buffers, except donated ones, which are their inputs' memory: those inputs hold
    /// the results afterwards.
    pub fn run(&self, inputs: &[Buffer]) -> Result<Vec<Buffer>> {
        let bound = self.bind(inputs)?;
        bound.run()?;
        Ok(bound.outputs)
    }

    /// Fixes inputs and allocates outputs, for running many times.
    pub fn bind(&self, inputs: &[Buffer]) -> Result<Bound> {
        self.check(inputs)?;
        let fresh: Vec<_> = self.exec.outputs.iter().filter(|o| o.donated.is_none()).map(|o| o.ty.clone()).collect();
        let mut fresh = self.device.zeros_all(&fresh)?.into_iter();
        let outputs: Vec<Buffer> = self
            .exec
            .outputs
            .iter()
            .map(|port| match port.donated {
                Some(input) => Buffer { ty: port.ty.clone(), ..inputs[input as usize].clone() },
                None => fresh.next().expect("one buffer for each output that is not donated"),
            })
            .collect();
        let loaded = match &self.loaded {
            LoadedProgram::Cpu(program) => LoadedBound::Cpu(program.bind(cpu_memory(inputs), cpu_memory(&outputs))),
            LoadedProgram::Gpu(program) => LoadedBound::Gpu(program.bind(&gpu_memory(inputs), &gpu_memory(&outputs))?),
        };
        Ok(Bound { program: self.clone(), inputs: inputs.to_vec(), outputs, loaded })
    }

    fn check(&self, inputs: &[Buffer]) -> Result<()> {
        let program = || self.exec.name.clone();
        let ports = &self.exec.inputs;
        if inputs.len() != ports.len() {
            return Err(Error::InputCount { program: program(), expected: ports.len(), got: inputs.len() });
        }
        for (index, (buffer, port)) in inputs.iter().zip(ports).enumerate() {
            if buffer.ty.dtype != port.ty.dtype || buffer.ty.dims != port.ty.dims {
                return Err(Error::InputType {
                    program: program(),
                    index,
                    port: port.name.clone(),
                    expected: port.ty.clone().into(),
                    got: buffer.ty.clone().into(),
                });
            }
            if !buffer.device.same(&self.device) {
                return Err(Error::DeviceMismatch {
                    what: format!("input {index} (`{}`) of program `{}`", port.name, program()),
                    buffer: buffer.device.name().to_string(),
                    device: self.device.name().to_string(),
                });
            }
        }
        for donated in self.exec.outputs.iter().filter_map(|o| o.donated).map(|i| i as usize) {
            for other in (0..inputs.len()).filter(|&i| i != donated) {
                if inputs[donated].memory.overlaps(&inputs[other].memory) {
                    let (first, second) = (ports[donated].name.clone(), ports[other].name.clone());
                    return Err(Error::DonatedTwice { program: program(), first, second });
                }
            }
        }
        Ok(())
    }
}

/// The memory of buffers that were checked to live on a cpu device.
fn cpu_memory(buffers: &[Buffer]) -> Vec<CpuMemory> {
    let memory = buffers.iter().map(|b| match &b.memory {
        Memory::Cpu(memory) => memory.clone(),
        Memory::Gpu(_) => unreachable!("inputs were checked to live on the program's device"),
    });
    memory.collect()
}

/// The memory of buffers that were checked to live on a GPU.
fn gpu_memory(buffers: &[Buffer]) -> Vec<GpuMemory> {
    let memory = buffers.iter().map(|b| match &b.memory {
        Memory::Gpu(memory) => memory.clone(),
        Memory::Cpu(_) => unreachable!("inputs were checked to live on the program's device"),
    });
    memory.collect()
}

impl Memory {
    fn overlaps(&self, other: &Memory) -> bool {
        match (self, other) {
            (Memory::Cpu(a), Memory::Cpu(b)) => a.overlaps(b),
            (Memory::Gpu(a), Memory::Gpu(b)) => a.overlaps(b),
            (Memory::Cpu(_), Memory::Gpu(_)) | (Memory::Gpu(_), Memory::Cpu(_)) => false,
        }
    }
}

impl Bound {
    /// Runs the program on the bound buffers. Nothing is allocated.
    pub fn run(&self) -> Result<()> {
        match &self.loaded {
            LoadedBound::Cpu(bound) => bound.run(&mut Alone).map_err(|Stopped| self.needs_company()),
            LoadedBound::Gpu(bound) => Ok(bound.run()?),
        }
    }

    /// Runs programs of one device one after another. Beside a run each, a GPU gets them in fewer submissions: as much work
    /// at once as it can do before its driver would take it for hung.
    ///
    /// # Errors
    /// Those of the runs, and if the programs are of different devices.
    pub fn run_all(bounds: &[&Bound]) -> Result<()> {
        let mut of_gpu = Vec::with_capacity(bounds.len());
        for bound in bounds {
            let (first, own) = (&bounds[0].program, &bound.program);
            if !own.device.same(&first.device) {
                return Err(Error::DeviceMismatch {
                    what: format!("program `{}`, which is to run with `{}`,", own.exec.name, first.exec.name),
                    buffer: own.device.name().to_string(),
                    device: first.device.name().to_string(),
                });
            }
            match &bound.loaded {
                LoadedBound::Cpu(_) => bound.run()?,
                LoadedBound::Gpu(gpu) => of_gpu.push(gpu),
            }
        }
        Ok(GpuBound::run_all(&of_gpu)?)
    }

    /// [`Bound::run`] as one of the devices of the program's mesh. `None`: the company has stopped it.
    pub(crate) fn run_with(&self, company: &mut dyn Company) -> Result<Option<()>> {
        match &self.loaded {
            LoadedBound::Cpu(bound) => Ok(bound.run(company).ok()),
            LoadedBound::Gpu(bound) => match bound.run_with(company) {
                Ok(()) => Ok(Some(())),
                Err(Halt::Stopped) => Ok(None),
                Err(Halt::Gpu(error)) => Err(error.into()),
            },
        }
    }

    fn needs_company(&self) -> Error {
        Error::Unsupported {
            program: self.program.exec.name.clone(),
            device: self.program.device.name().to_string(),
            reason: "it meets other devices, and here is a single one; load it with a team".to_string(),
        }
    }

    /// Runs once and gives the time of each of the executable's steps, on the device's own clock. A GPU without
    /// timestamp queries can't tell.
    pub fn profile(&self) -> Result<Vec<Duration>> {
        match &self.loaded {
            LoadedBound::Cpu(bound) => {
                let mut watch = Stopwatch::new(self.program.exec.steps.len());
                bound.run(&mut watch).map_err(|Stopped| self.needs_company())?;
                Ok(watch.times)
            }
            LoadedBound::Gpu(bound) if bound.has_timestamps() => Ok(bound.profile(self.program.exec.steps.len())?),
            LoadedBound::Gpu(_) => Err(Error::Unsupported {
                program: self.program.exec.name.clone(),
                device: self.program.device.name().to_string(),
                reason: "its driver has no timestamp queries, so the times of single steps are not known".to_string(),
            }),
        }
    }

    /// The inputs, in order.
    pub fn inputs(&self) -> &[Buffer] {
        &self.inputs
    }

    /// The outputs, in order; donated ones are their inputs' memory.
    pub fn outputs(&self) -> &[Buffer] {
        &self.outputs
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

/// The serialised form: bytes that [`executable_from_bytes`] reads back.
pub fn executable_to_bytes(exec: &Executable) -> Result<Vec<u8>> {
    postcard::to_allocvec(exec).map_err(|e| Error::Encode(e.to_string()))
}

/// Reads a serialised executable; refuses one of another version.
pub fn executable_from_bytes(bytes: &[u8]) -> Result<Executable> {
    // The version comes first, so that it can be read even where the rest has changed.
    let (version, _) = postcard::take_from_bytes::<u32>(bytes).map_err(|e| Error::Decode(e.to_string()))?;
    if version != VERSION {
        return Err(Error::Version { expected: VERSION, got: version });
    }
    postcard::from_bytes(bytes).map_err(|e| Error::Decode(e.to_string()))
}
