//! Exchanges with other devices, through host memory: operands are copied to a buffer that the host maps, the company
//! does the rest, and the results are written back. Both buffers are allocated when a program is bound and hold the
//! largest meeting; what wgpu takes for its own uploads is its own.

use super::device::Shared;
use super::memory::GpuMemory;
use super::program::Work;
use super::{GpuError, Halt};
use crate::company::{Company, Span};
use dnx_codegen::exec::ALIGN;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A meeting of the program.
pub(super) struct Exchange {
    /// Its number among them.
    pub(super) at: usize,
    /// The step of the executable.
    pub(super) step: usize,
    /// Its name in errors.
    pub(super) what: String,
    /// Operand and result of every part.
    pub(super) ranges: Vec<(GpuMemory, GpuMemory)>,
}

/// The memory of all meetings of a bound program.
pub(super) struct Exchanger {
    down: wgpu::Buffer,
    up: Mutex<Up>,
}

/// Where results are put before they go to the device.
struct Up {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

/// A mapped buffer, which is given back to the device even if the company panics.
struct Mapped<'a>(&'a wgpu::Buffer);

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        self.0.unmap();
    }
}

/// Bytes of a range in staging memory, so that the next begins aligned.
fn padded(memory: &GpuMemory) -> u64 {
    memory.whole_words().next_multiple_of(ALIGN)
}

impl Exchanger {
    /// Memory for the largest of these exchanges; `None` if there are none.
    pub(super) fn new(shared: &Shared, work: &[Work]) -> Result<Option<Exchanger>, GpuError> {
        let (mut down, mut up, mut parts) = (0, 0, 0);
        for work in work {
            if let Work::Exchange(e) = work {
                down = down.max(e.ranges.iter().map(|(src, _)| padded(src)).sum());
                up = up.max(e.ranges.iter().map(|(_, dst)| padded(dst)).sum());
                parts = parts.max(e.ranges.len());
            }
        }
        if parts == 0 {
            return Ok(None);
        }
        let what = format!("a staging buffer of {down} bytes");
        let down = shared.guarded(&what, || {
            shared.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("exchange"),
                size: down,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        let up = Up { bytes: vec![0; up as usize], spans: Vec::with_capacity(parts) };
        Ok(Some(Exchanger { down, up: Mutex::new(up) }))
    }

    /// Meets the others at `exchange`. All work submitted before has run when they are met.
    pub(super) fn exchange(&self, shared: &Shared, exchange: &Exchange, company: &mut dyn Company) -> Result<(), Halt> {
        let what = &exchange.what;
        // Nothing of it outlives a meeting, so a panic in one leaves it sound.
        let mut up = self.up.lock().unwrap_or_else(|p| p.into_inner());
        let Up { bytes, spans } = &mut *up;
        let words: u64 = exchange.ranges.iter().map(|(src, _)| padded(src)).sum();
        let mapped = Arc::new(AtomicBool::new(false));
        let outcome = mapped.clone();
        shared.guarded(what, || {
            let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            for (src, _) in &exchange.ranges {
                if src.bytes > 0 {
                    let from = &src.allocation.buffer;
                    encoder.copy_buffer_to_buffer(from, src.offset, &self.down, at, src.whole_words());
                }
                at += padded(src);
            }
            shared.queue.submit([encoder.finish()]);
            self.down.slice(..words).map_async(wgpu::MapMode::Read, move |result| {
                outcome.store(result.is_ok(), Ordering::SeqCst);
            });
        })?;
        shared.wait(what)?;
        let failed = |message: String| Halt::Gpu(GpuError::Driver { what: what.clone(), message });
        if !mapped.load(Ordering::SeqCst) {
            return Err(failed("its memory can't be read".to_string()));
        }
        if let Some(before) = exchange.step.checked_sub(1) {
            company.done(before);
        }
        let met = {
            let _mapped = Mapped(&self.down);
            let view = self.down.slice(..words).get_mapped_range().map_err(|e| failed(e.to_string()))?;
            let (mut src, mut dst) = (view.as_ptr(), bytes.as_mut_ptr());
            spans.clear();
            for (from, to) in &exchange.ranges {
                spans.push(Span { src, dst });
                src = src.wrapping_add(padded(from) as usize);
                dst = dst.wrapping_add(padded(to) as usize);
            }
            // SAFETY: the spans have the bytes of the parts, as was checked when the program was bound; the view is
            // mapped and the results' memory locked until the call returns.
            unsafe { company.meet(exchange.at, exchange.step, spans) }
        };
        met.map_err(|_| Halt::Stopped)?;
        shared.guarded(what, || {
            let mut at = 0;
            for (_, dst) in &exchange.ranges {
                if dst.bytes > 0 {
                    let from = &bytes[at..at + dst.whole_words() as usize];
                    shared.queue.write_buffer(&dst.allocation.buffer, dst.offset, from);
                }
                at += padded(dst) as usize;
            }
        })?;
        company.done(exchange.step);
        Ok(())
    }
}
