//! Memory of GPUs: ranges of buffers, and their traffic with the host.

use super::GpuError;
use super::device::Shared;
use dnx_codegen::exec::ALIGN;
use std::sync::Arc;

/// Bytes moved between host and device at a time.
const CHUNK: u64 = 64 << 20;

/// A buffer of the device.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) buffer: wgpu::Buffer,
    pub(super) bytes: u64,
}

/// A range of an allocation. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct GpuMemory {
    pub(super) allocation: Arc<Allocation>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The buffer through which the host reads, kept for the next time.
#[derive(Default)]
pub(super) struct Staging {
    buffer: Option<wgpu::Buffer>,
}

impl Allocation {
    /// One zeroed allocation. `what` names it in errors.
    pub(super) fn new(shared: &Shared, bytes: u64, what: &str) -> Result<Arc<Allocation>, GpuError> {
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        let limit = shared.limits.buffer_bytes;
        if bytes > limit {
            return Err(GpuError::TooLarge { what: what.to_string(), bytes, limit });
        }
        let what = format!("{what} of {bytes} bytes");
        let buffer = shared.guarded(&what, || {
            shared.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&what),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        Ok(Arc::new(Allocation { buffer, bytes }))
    }

    /// Zeroed memory of these sizes in as few allocations as can be bound whole.
    pub(super) fn pack(shared: &Shared, bytes: &[u64]) -> Result<Vec<GpuMemory>, GpuError> {
        let padded = |b: u64| b.max(1).next_multiple_of(ALIGN);
        let limit = (shared.limits.binding_bytes.min(shared.limits.buffer_bytes)) & !(ALIGN - 1);
        let mut ranges = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut total = 0;
            let fits = |b: &&u64| {
                total += padded(**b);
                total <= limit
            };
            // One that is too large to be bound whole has an allocation of its own.
            let count = rest.iter().take_while(fits).count().max(1);
            let (group, others) = rest.split_at(count);
            let allocation = Allocation::new(shared, group.iter().map(|&b| padded(b)).sum(), "a buffer")?;
            let mut offset = 0;
            for &b in group {
                ranges.push(GpuMemory { allocation: allocation.clone(), offset, bytes: b });
                offset += padded(b);
            }
            rest = others;
        }
        Ok(ranges)
    }
}

impl GpuMemory {
    /// Whether both are ranges of one allocation.
    pub(super) fn same_allocation(&self, other: &GpuMemory) -> bool {
        Arc::ptr_eq(&self.allocation, &other.allocation)
    }

    /// Whether the ranges share a byte.
    pub(crate) fn overlaps(&self, other: &GpuMemory) -> bool {
        self.same_allocation(other)
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }

    /// Bytes of a binding or a copy of the range: whole words, of which there is at least one. Ranges end on
    /// multiples of [`ALIGN`], so the padding is the range's own.
    pub(super) fn whole_words(&self) -> u64 {
        self.bytes.max(4).next_multiple_of(4)
    }

    /// Replaces the content.
    pub(super) fn write(&self, shared: &Shared, bytes: &[u8]) -> Result<(), GpuError> {
        assert_eq!(bytes.len() as u64, self.bytes, "a write replaces the whole range");
        let chunks = bytes.chunks(CHUNK as usize).enumerate();
        for (i, chunk) in chunks {
            let at = self.offset + i as u64 * CHUNK;
            let whole = chunk.len() & !3;
            let what = format!("an upload of {} bytes", chunk.len());
            shared.guarded(&what, || {
                if whole > 0 {
                    shared.queue.write_buffer(&self.allocation.buffer, at, &chunk[..whole]);
                }
                if whole < chunk.len() {
                    let mut word = [0u8; 4];
                    word[..chunk.len() - whole].copy_from_slice(&chunk[whole..]);
                    shared.queue.write_buffer(&self.allocation.buffer, at + whole as u64, &word);
                }
                // Lets go of the staging memory before the next chunk.
                if bytes.len() as u64 > CHUNK {
                    shared.submit([]);
                }
            })?;
            if bytes.len() as u64 > CHUNK {
                shared.wait(&what)?;
            }
        }
        Ok(())
    }

    /// The content.
    pub(super) fn read(&self, shared: &Shared, staging: &mut Staging) -> Result<Vec<u8>, GpuError> {
        let mut out = Vec::with_capacity(self.bytes as usize);
        while (out.len() as u64) < self.bytes {
            let done = out.len() as u64;
            let length = (self.bytes - done).min(CHUNK);
            staging.read(shared, self, self.offset + done, length, &mut out)?;
        }
        Ok(out)
    }
}

impl Staging {
    /// Appends `length` bytes of the allocation, from byte `at`, to `out`.
    fn read(
        &mut self,
        shared: &Shared,
        memory: &GpuMemory,
        at: u64,
        length: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), GpuError> {
        let what = format!("a download of {length} bytes");
        let words = length.next_multiple_of(4);
        let buffer = match self.buffer.take() {
            Some(buffer) if buffer.size() >= words => buffer,
            _ => shared.guarded(&what, || {
                shared.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("staging"),
                    size: words.next_power_of_two().max(4096),
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })?,
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        shared.guarded(&what, || {
            let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&memory.allocation.buffer, at, &buffer, 0, words);
            shared.submit([encoder.finish()]);
            buffer.slice(..words).map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only if this function returned early with another error.
                let _ = sender.send(result);
            });
        })?;
        shared.wait(&what)?;
        let failed = |message: String| GpuError::Driver { what: what.clone(), message };
        receiver.try_recv().map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        {
            let view = buffer.slice(..words).get_mapped_range().map_err(|e| failed(e.to_string()))?;
            out.extend_from_slice(&view[..length as usize]);
        }
        buffer.unmap();
        self.buffer = Some(buffer);
        Ok(())
    }
}
