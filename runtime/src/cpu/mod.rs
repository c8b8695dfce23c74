//! The cpu device: executes kernel IR on the host.
//!
//! Memory is plain host memory. All programs, reads and writes of one device take its *queue*, a lock, so
//! that they happen one after another as on any other device.

mod attention;
mod blocks;
mod column;
mod contract;
mod exec;
mod math;
mod matrix;
mod memory;
mod native;
mod ops;
mod pairs;
mod plan;
mod planner;
mod product;
mod program;
mod rows;
mod scatter;
mod scores;
mod scratch;
mod segments;
mod select;
mod space;
mod threads;

pub(crate) use memory::CpuMemory;
pub(crate) use program::{CpuBound, CpuProgram};
pub(crate) use threads::{keep_helpers, share};

use crate::company::Seat;
use crate::device::{DeviceInfo, DeviceKind};
use crate::{Error, Result};
use dnx_codegen::exec::Executable;
use memory::AllocError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// A cpu device. Clones are the same device.
#[derive(Clone)]
pub(crate) struct CpuDevice {
    queue: Arc<Queue>,
}

/// What orders the work of one device.
#[derive(Default)]
pub(crate) struct Queue {
    lock: Mutex<()>,
}

impl Queue {
    /// Waits for the turn to touch memory.
    pub(crate) fn enter(&self) -> MutexGuard<'_, ()> {
        // The lock guards no invariant: after a panic elsewhere memory is still memory.
        self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl CpuDevice {
    pub(crate) fn new() -> CpuDevice {
        CpuDevice { queue: Arc::default() }
    }

    pub(crate) fn same(&self, other: &CpuDevice) -> bool {
        Arc::ptr_eq(&self.queue, &other.queue)
    }

    pub(crate) fn info() -> DeviceInfo {
        let threads = rayon::current_num_threads();
        DeviceInfo {
            name: processor().unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            kind: DeviceKind::Cpu,
            backend: "cpu".to_string(),
            driver: ops::ops().name.to_string(),
            memory: memory_bytes(),
            features: vec![],
            limits: BTreeMap::from([("threads".to_string(), threads as u64)]),
        }
    }

    pub(crate) fn alloc(&self, bytes: &[u64]) -> Result<Vec<CpuMemory>, AllocError> {
        CpuMemory::pack(bytes)
    }

    pub(crate) fn write(&self, memory: &CpuMemory, bytes: &[u8]) {
        let _turn = self.queue.enter();
        memory.write(bytes);
    }

    pub(crate) fn read(&self, memory: &CpuMemory) -> Vec<u8> {
        let _turn = self.queue.enter();
        memory.read()
    }

    pub(crate) fn load(&self, exec: &Arc<Executable>, device: &str, seat: Seat) -> Result<Arc<CpuProgram>> {
        CpuProgram::new(self.queue.clone(), exec.clone(), seat).map(Arc::new).map_err(|reason| Error::Unsupported {
            program: exec.name.clone(),
            device: device.to_string(),
            reason,
        })
    }
}

/// Bytes of the host's memory, where the system tells.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The processor's name, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
