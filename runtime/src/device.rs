//! Devices: which there are, opening one, memory on it, programs for it.
//!
//! A device is one of two kinds behind one struct. Each kind gives the same few things: its description,
//! zeroed allocations, reads and writes of them, and programs; see [`Inner`], [`Memory`] and the enums of
//! [`crate::program`], which are the only places that tell the kinds apart.

use crate::buffer::to_device;
use crate::company::Seat;
use crate::cpu::{CpuDevice, CpuMemory};
use crate::gpu::{GpuDevice, GpuMemory, adapters};
use crate::program::LoadedProgram;
use crate::tune::Table;
use crate::{Buffer, Error, Program, Result};
use dnx_codegen::exec::{ALIGN, Executable, Step, VERSION};
use dnx_codegen::{Options, Target};
use dnx_ir::{Array, Func, Type};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What sort of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// The host's processor, executing kernel IR.
    Cpu,
    /// A virtual or unknown adapter.
    Other,
    /// A software rasteriser: for checking shaders, never chosen unasked.
    Software,
}

/// What a device is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Name, as the adapter or processor reports.
    pub name: String,
    /// Kind.
    pub kind: DeviceKind,
    /// `cpu`, `vulkan`, `metal`, `dx12` or `gl`.
    pub backend: String,
    /// Driver and its version, or the instruction set of the cpu device.
    pub driver: String,
    /// Bytes of memory, where they are known.
    pub memory: Option<u64>,
    /// Names of optional features it has.
    pub features: Vec<String>,
    /// Named limits.
    pub limits: BTreeMap<String, u64>,
}

impl DeviceInfo {
    /// What a cache of compiled or tuned kernels depends on: adapter, driver and interface.
    pub fn fingerprint(&self) -> String {
        format!("{}; {}; {}", self.name, self.backend, self.driver)
    }
}

/// A device that runs programs. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    pub(crate) inner: Inner,
    info: Arc<DeviceInfo>,
}

/// The kinds of devices.
#[derive(Clone)]
pub(crate) enum Inner {
    /// The host's processor.
    Cpu(CpuDevice),
    /// A GPU.
    Gpu(GpuDevice),
}

/// Memory of either kind of device.
#[derive(Clone, Debug)]
pub(crate) enum Memory {
    /// Of the cpu device.
    Cpu(CpuMemory),
    /// Of a GPU.
    Gpu(GpuMemory),
}

impl Device {
    /// The cpu device. Each call opens one of its own: buffers don't mix between them.
    pub fn cpu() -> Device {
        Device { inner: Inner::Cpu(CpuDevice::new()), info: Arc::new(CpuDevice::info()) }
    }

    /// Opens a device: `None` takes a discrete GPU, else an integrated one, else the cpu. A selector is `cpu`,
    /// `gpu` (the best one), `gpu:1` (by position among the GPUs of [`Device::list`]), or a part of the name or
    /// `backend:name` of an adapter, in any case. Software rasterisers are opened only by name.
    pub fn open(selector: Option<&str>) -> Result<Device> {
        // Who asks for the cpu by name need not wait for drivers to be loaded.
        if selector == Some("cpu") {
            return Ok(Device::cpu());
        }
        let gpus = adapters();
        let mut all: Vec<DeviceInfo> = gpus.iter().map(|gpu| gpu.info()).collect();
        all.push(CpuDevice::info());
        let at = select(&all, selector)?;
        match gpus.get(at) {
            Some(gpu) => Ok(Device { inner: Inner::Gpu(gpu.open()?), info: Arc::new(all.swap_remove(at)) }),
            None => Ok(Device::cpu()),
        }
    }

    /// Opens the devices of a team, in order of rank: selectors of [`Device::open`] joined by `,`, each with `*N` behind
    /// it to open it `N` times. `cpu*4` is four cpu devices, `gpu:0*2` two logical devices on one GPU, `gpu:0,gpu:1`
    /// two GPUs. A text that names a device as it is opens that one; `None` is that of [`Device::open`].
    ///
    /// # Errors
    /// If the text is no such list, a part of it names no device, or one can't be opened.
    pub fn open_all(selector: Option<&str>) -> Result<Vec<Device>> {
        let Some(text) = selector else { return Ok(vec![Device::open(None)?]) };
        // Names of adapters have commas too.
        match Device::open(Some(text)) {
            Err(Error::NoDevice { .. }) if text.contains([',', '*']) => {}
            outcome => return Ok(vec![outcome?]),
        }
        let mut devices = vec![];
        for (selector, count) in parse_list(text)? {
            for _ in 0..count {
                devices.push(Device::open(Some(selector))?);
            }
        }
        Ok(devices)
    }

    /// Every device: the GPUs in the order of `gpu:0`, `gpu:1`.., then the cpu.
    pub fn list() -> Vec<DeviceInfo> {
        let mut all: Vec<DeviceInfo> = adapters().iter().map(|gpu| gpu.info()).collect();
        all.push(CpuDevice::info());
        all
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// What it is and can do.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// What to compile for.
    pub fn target(&self) -> Target {
        match &self.inner {
            Inner::Cpu(_) => Target::Cpu,
            Inner::Gpu(gpu) => Target::Gpu(*gpu.limits()),
        }
    }

    /// How to compile for it: its target, and the tiles that tuning found for it.
    pub fn options(&self) -> Options {
        let options = Options::new(self.target());
        match &self.inner {
            Inner::Cpu(_) => options,
            Inner::Gpu(_) => options.with_tuned(Table::load(&self.info).tiles().clone()),
        }
    }

    /// How often work, uploads too large to go with it, or downloads were handed to a GPU's queue since it was opened; 0 on
    /// the cpu, which has none.
    pub fn submissions(&self) -> u64 {
        match &self.inner {
            Inner::Cpu(_) => 0,
            Inner::Gpu(gpu) => gpu.submissions(),
        }
    }

    /// A copy of a host array.
    pub fn upload(&self, array: &Array) -> Result<Buffer> {
        Ok(self.upload_all(std::slice::from_ref(array))?.remove(0))
    }

    /// Copies of host arrays, packed in few allocations.
    pub fn upload_all(&self, arrays: &[Array]) -> Result<Vec<Buffer>> {
        let types: Vec<Type> = arrays.iter().map(|a| a.ty().clone()).collect();
        let buffers = self.zeros_all(&types)?;
        for (buffer, array) in buffers.iter().zip(arrays) {
            self.write(&buffer.memory, &to_device(array))?;
        }
        Ok(buffers)
    }

    /// A buffer of zeros.
    pub fn zeros(&self, ty: &Type) -> Result<Buffer> {
        Ok(self.zeros_all(std::slice::from_ref(ty))?.remove(0))
    }

    /// Buffers of zeros, packed in few allocations.
    pub fn zeros_all(&self, types: &[Type]) -> Result<Vec<Buffer>> {
        let bytes: Vec<u64> = types.iter().map(|t| t.device_bytes() as u64).collect();
        let total: u64 = bytes.iter().map(|b| b.next_multiple_of(ALIGN)).sum();
        if self.info.memory.is_some_and(|m| total > m) {
            let parts = types.iter().map(|t| (t.device_bytes() as u64, t.to_string())).collect();
            return Err(self.out_of_memory("the buffers".to_string(), total, parts));
        }
        let memory: Vec<Memory> = match &self.inner {
            Inner::Cpu(cpu) => {
                let memory = cpu.alloc(&bytes).map_err(|_| {
                    let parts = types.iter().map(|t| (t.device_bytes() as u64, t.to_string())).collect();
                    self.out_of_memory("the buffers".to_string(), total, parts)
                })?;
                memory.into_iter().map(Memory::Cpu).collect()
            }
            Inner::Gpu(gpu) => gpu.alloc(&bytes)?.into_iter().map(Memory::Gpu).collect(),
        };
        let buffers = types.iter().zip(memory);
        Ok(buffers.map(|(ty, memory)| Buffer { ty: ty.clone(), device: self.clone(), memory }).collect())
    }

    /// Makes an executable ready to run here. Refuses one that needs more memory than there is.
    pub fn load(&self, exec: Executable) -> Result<Program> {
        if exec.version != VERSION {
            return Err(Error::Version { expected: VERSION, got: exec.version });
        }
        if exec.mesh.devices() != 1 || exec.steps.iter().any(|s| matches!(s, Step::Collective { .. })) {
            return Err(Error::Unsupported {
                program: exec.name.clone(),
                device: self.name().to_string(),
                reason: format!(
                    "it is one device's part of a mesh of {}; load it with a team of as many devices",
                    exec.mesh.devices()
                ),
            });
        }
        self.load_at(&Arc::new(exec), Seat::alone())
    }

    /// [`Device::load`] for one of the devices of a program's mesh.
    pub(crate) fn load_at(&self, exec: &Arc<Executable>, seat: Seat) -> Result<Program> {
        if self.info.memory.is_some_and(|m| exec.peak_bytes > m) {
            let ports = exec.inputs.iter().chain(exec.outputs.iter().filter(|o| o.donated.is_none()));
            let mut parts: Vec<(u64, String)> =
                ports.map(|p| (p.ty.device_bytes() as u64, format!("`{}` {}", p.name, p.ty))).collect();
            parts.push((exec.slabs.iter().sum(), "temporaries".to_string()));
            return Err(self.out_of_memory(format!("program `{}`", exec.name), exec.peak_bytes, parts));
        }
        let loaded = match &self.inner {
            Inner::Cpu(cpu) => LoadedProgram::Cpu(cpu.load(exec, self.name(), seat)?),
            Inner::Gpu(gpu) => LoadedProgram::Gpu(gpu.load(exec, seat)?),
        };
        Ok(Program::new(self.clone(), exec.clone(), loaded))
    }

    /// Compiles a function for this device and loads it. `donate` pairs an input whose memory is given up with the
    /// output that takes it over.
    pub fn compile(&self, func: &Func, donate: &[(usize, usize)]) -> Result<Program> {
        let options = self.options().with_donate(donate);
        self.load(dnx_codegen::compile(func, &options)?.exec)
    }

    /// Whether the other handle is of the same device.
    pub fn same(&self, other: &Device) -> bool {
        match (&self.inner, &other.inner) {
            (Inner::Cpu(a), Inner::Cpu(b)) => a.same(b),
            (Inner::Gpu(a), Inner::Gpu(b)) => a.same(b),
            (Inner::Cpu(_), Inner::Gpu(_)) | (Inner::Gpu(_), Inner::Cpu(_)) => false,
        }
    }

    pub(crate) fn write(&self, memory: &Memory, bytes: &[u8]) -> Result<()> {
        match (&self.inner, memory) {
            (Inner::Cpu(cpu), Memory::Cpu(memory)) => cpu.write(memory, bytes),
            (Inner::Gpu(gpu), Memory::Gpu(memory)) => gpu.write(memory, bytes)?,
            (Inner::Cpu(_), Memory::Gpu(_)) | (Inner::Gpu(_), Memory::Cpu(_)) => {
                unreachable!("a buffer keeps its own device")
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self, memory: &Memory) -> Result<Vec<u8>> {
        match (&self.inner, memory) {
            (Inner::Cpu(cpu), Memory::Cpu(memory)) => Ok(cpu.read(memory)),
            (Inner::Gpu(gpu), Memory::Gpu(memory)) => Ok(gpu.read(memory)?),
            (Inner::Cpu(_), Memory::Gpu(_)) | (Inner::Gpu(_), Memory::Cpu(_)) => {
                unreachable!("a buffer keeps its own device")
            }
        }
    }

    /// Loses a GPU, as a driver that resets it does.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        match &self.inner {
            Inner::Gpu(gpu) => gpu.lose(),
            Inner::Cpu(_) => unreachable!("the host's processor is not lost"),
        }
    }

    fn out_of_memory(&self, what: String, needed: u64, mut parts: Vec<(u64, String)>) -> Error {
        parts.sort_by_key(|&(bytes, _)| std::cmp::Reverse(bytes));
        let largest = parts.iter().take(3).map(|(b, n)| format!("{n} ({})", crate::error::mib(*b))).collect();
        let available = self.info.memory.unwrap_or(0);
        Error::OutOfMemory { what, needed, available, device: self.name().to_string(), largest }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.info.name)
    }
}

/// The position in `all` of the device that the selector means.
fn select(all: &[DeviceInfo], selector: Option<&str>) -> Result<usize> {
    let is_gpu = |d: &DeviceInfo| d.kind != DeviceKind::Cpu;
    let best = |kinds: &[DeviceKind]| kinds.iter().find_map(|&k| all.iter().position(|d| d.kind == k));
    let gpus = [DeviceKind::Discrete, DeviceKind::Integrated, DeviceKind::Other];
    let found = match selector.map(str::to_lowercase).as_deref() {
        None => best(&[DeviceKind::Discrete, DeviceKind::Integrated, DeviceKind::Cpu]),
        Some("cpu") => best(&[DeviceKind::Cpu]),
        Some("gpu") => best(&gpus),
        Some(text) => {
            let number = text.strip_prefix("gpu:").and_then(|n| n.parse::<usize>().ok());
            match number {
                Some(n) => all.iter().enumerate().filter(|(_, d)| is_gpu(d)).map(|(i, _)| i).nth(n),
                None => all
                    .iter()
                    .position(|d| format!("{}:{}", d.backend, d.name).to_lowercase().contains(text))
                    .or_else(|| {
                        let (backend, name) = text.split_once(':')?;
                        all.iter().position(|d| d.backend == backend && d.name.to_lowercase().contains(name))
                    }),
            }
        }
    };
    found.ok_or_else(|| Error::NoDevice {
        selector: selector.unwrap_or("").to_string(),
        available: all.iter().map(|d| format!("{}:{}", d.backend, d.name)).collect(),
    })
}

/// Most devices of one list; more are a slip of the finger.
const MOST: usize = 1024;

/// The selectors of a list, and how often each is to be opened.
fn parse_list(text: &str) -> Result<Vec<(&str, usize)>> {
    let wrong =
        |part: &str, why: &str| Error::DeviceList { list: text.to_string(), part: part.to_string(), why: why.into() };
    let mut list = vec![];
    for part in text.split(',').map(str::trim) {
        let (selector, count) = match part.rsplit_once('*') {
            None => (part, 1),
            Some((selector, count)) => match count.trim().parse::<usize>() {
                Ok(0) => return Err(wrong(part, "no device is opened 0 times")),
                Ok(count) if count <= MOST => (selector.trim(), count),
                Ok(_) => return Err(wrong(part, &format!("at most {MOST} are opened"))),
                Err(_) => return Err(wrong(part, "what stands behind the * is no number")),
            },
        };
        if selector.is_empty() {
            return Err(wrong(part, "a device is missing"));
        }
        list.push((selector, count));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, kind: DeviceKind, backend: &str) -> DeviceInfo {
        let (features, limits) = (vec![], BTreeMap::new());
        DeviceInfo {
            name: name.into(),
            kind,
            backend: backend.into(),
            driver: String::new(),
            memory: None,
            features,
            limits,
        }
    }

    #[test]
    fn selectors() {
        let all = [
            info("llvmpipe (LLVM 15)", DeviceKind::Software, "vulkan"),
            info("Iris Xe", DeviceKind::Integrated, "vulkan"),
            info("GeForce RTX", DeviceKind::Discrete, "vulkan"),
            info("EPYC", DeviceKind::Cpu, "cpu"),
        ];
        let at = |s| select(&all, s).unwrap();
        assert_eq!(at(None), 2);
        assert_eq!(at(Some("gpu")), 2);
        assert_eq!(at(Some("gpu:1")), 1);
        assert_eq!(at(Some("cpu")), 3);
        assert_eq!(at(Some("iris")), 1);
        assert_eq!(at(Some("vulkan:llvmpipe")), 0);
        assert!(matches!(select(&all, Some("tpu")), Err(Error::NoDevice { .. })));
        let soft = [all[0].clone(), all[3].clone()];
        assert_eq!(select(&soft, None).unwrap(), 1);
        assert!(select(&soft, Some("gpu")).is_err());
        assert_eq!(select(&soft, Some("LLVMpipe")).unwrap(), 0);
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("cpu*4").unwrap(), [("cpu", 4)]);
        assert_eq!(parse_list("gpu:0 * 2, gpu:1").unwrap(), [("gpu:0", 2), ("gpu:1", 1)]);
        let refused = |text: &str, why: &str| {
            let e = parse_list(text).unwrap_err().to_string();
            assert!(e.contains(why) && e.contains(&format!("`{text}`")), "{e}");
        };
        refused("cpu*0", "0 times");
        refused("cpu*many", "no number");
        refused("cpu*4000000", "at most 1024");
        refused("gpu:0,,cpu", "a device is missing");
        refused("*3", "a device is missing");
        assert_eq!(Device::open_all(Some("cpu*3")).unwrap().len(), 3);
        assert_eq!(Device::open_all(Some("cpu")).unwrap().len(), 1);
        let e = Device::open_all(Some("cpu,quantum*2")).unwrap_err();
        assert!(matches!(&e, Error::NoDevice { selector, .. } if selector == "quantum"), "{e}");
    }
}
