//! Exchanges with other devices, through host memory, in two halves. An exchange *begins* when its operands are there:
//! they are copied to a buffer that the host will map. It *finishes* before its results are touched: the host waits for
//! that copy alone, the company does the rest, and the results are written back. Work that was submitted in between
//! runs meanwhile.
//!
//! Buffers are allocated when a program is bound; what wgpu takes for its own uploads is its own.

use super::device::Shared;
use super::memory::GpuMemory;
use super::program::Work;
use super::{GpuError, Halt};
use crate::company::{Company, Span};
use dnx_codegen::exec::ALIGN;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Most exchanges between begin and finish.
pub(super) const OPEN: usize = 4;

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
    /// The buffer it uses.
    pub(super) slot: usize,
}

/// The memory of all meetings of a bound program.
pub(super) struct Exchanger {
    slots: Vec<Slot>,
    up: Mutex<Up>,
}

/// Where operands are read by the host.
struct Slot {
    down: wgpu::Buffer,
    /// Whether it is mapped.
    mapped: Arc<AtomicBool>,
    /// The copy to it, between begin and finish.
    begun: Mutex<Option<wgpu::SubmissionIndex>>,
}

/// Where results are put before they go to the device.
struct Up {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

/// Bytes of a range in staging memory, so that the next begins aligned.
fn padded(memory: &GpuMemory) -> u64 {
    memory.whole_words().next_multiple_of(ALIGN)
}

impl Exchange {
    fn down(&self) -> u64 {
        self.ranges.iter().map(|(src, _)| padded(src)).sum()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of them outlives a run, so a panic in one leaves them sound.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Exchanger {
    /// Memory for these exchanges; `None` if there are none.
    pub(super) fn new(shared: &Shared, work: &[Work]) -> Result<Option<Exchanger>, GpuError> {
        let begin = |w: &Work| if let Work::Begin(e) = w { Some(e.clone()) } else { None };
        let exchanges: Vec<Arc<Exchange>> = work.iter().filter_map(begin).collect();
        if exchanges.is_empty() {
            return Ok(None);
        }
        let used = exchanges.iter().map(|e| e.slot + 1).max().unwrap_or(0);
        let slot = |slot: usize| {
            let bytes = exchanges.iter().filter(|e| e.slot == slot).map(|e| e.down()).max().unwrap_or(ALIGN);
            let down = shared.guarded(&format!("a staging buffer of {bytes} bytes"), || {
                shared.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("exchange"),
                    size: bytes,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })?;
            Ok(Slot { down, mapped: Arc::default(), begun: Mutex::default() })
        };
        let slots = (0..used).map(slot).collect::<Result<Vec<_>, GpuError>>()?;
        let up = exchanges.iter().map(|e| e.ranges.iter().map(|(_, dst)| padded(dst)).sum()).max().unwrap_or(0u64);
        let parts = exchanges.iter().map(|e| e.ranges.len()).max().unwrap_or(0);
        let up = Up { bytes: vec![0; up as usize], spans: Vec::with_capacity(parts) };
        Ok(Some(Exchanger { slots, up: Mutex::new(up) }))
    }

    /// Takes the operands along.
    pub(super) fn begin(&self, shared: &Shared, exchange: &Exchange) -> Result<(), GpuError> {
        let slot = &self.slots[exchange.slot];
        let mut begun = locked(&slot.begun);
        slot.mapped.store(false, Ordering::SeqCst);
        let mapped = slot.mapped.clone();
        let index = shared.guarded(&exchange.what, || {
            let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            for (src, _) in &exchange.ranges {
                if src.bytes > 0 {
                    let from = &src.allocation.buffer;
                    encoder.copy_buffer_to_buffer(from, src.offset, &slot.down, at, src.whole_words());
                }
                at += padded(src);
            }
            let index = shared.submit([encoder.finish()]);
            slot.down.slice(..exchange.down()).map_async(wgpu::MapMode::Read, move |result| {
                mapped.store(result.is_ok(), Ordering::SeqCst);
            });
            index
        })?;
        *begun = Some(index);
        Ok(())
    }

    /// Meets the others at an exchange that has begun, and brings the results.
    pub(super) fn finish(&self, shared: &Shared, exchange: &Exchange, company: &mut dyn Company) -> Result<(), Halt> {
        let what = &exchange.what;
        let slot = &self.slots[exchange.slot];
        let mut up = locked(&self.up);
        let Up { bytes, spans } = &mut *up;
        let failed = |message: String| Halt::Gpu(GpuError::Driver { what: what.clone(), message });
        let index = locked(&slot.begun).clone().ok_or_else(|| failed("it has not begun".to_string()))?;
        shared.wait_for(index, what)?;
        if !slot.mapped.load(Ordering::SeqCst) {
            return Err(failed("its memory can't be read".to_string()));
        }
        if let Some(before) = exchange.step.checked_sub(1) {
            company.done(before);
        }
        {
            let view = slot.down.slice(..exchange.down()).get_mapped_range().map_err(|e| failed(e.to_string()))?;
            let (mut src, mut dst) = (view.as_ptr(), bytes.as_mut_ptr());
            spans.clear();
            for (from, to) in &exchange.ranges {
                spans.push(Span { src, dst });
                src = src.wrapping_add(padded(from) as usize);
                dst = dst.wrapping_add(padded(to) as usize);
            }
            // SAFETY: the spans have the bytes of the parts, as was checked when the program was bound; the view is
            // mapped and the results' memory locked until the call returns.
            unsafe { company.meet(exchange.at, exchange.step, spans) }.map_err(|_| Halt::Stopped)?;
        }
        slot.close();
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

    /// Gives up what has begun and not finished, when it goes out of scope: in a run that went well, nothing.
    pub(super) fn guard(&self) -> Guard<'_> {
        Guard(self)
    }
}

impl Slot {
    /// Gives the buffer back to the device.
    fn close(&self) {
        if locked(&self.begun).take().is_some() {
            self.down.unmap();
        }
    }
}

/// See [`Exchanger::guard`].
pub(super) struct Guard<'a>(&'a Exchanger);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.slots.iter().for_each(Slot::close);
    }
}
