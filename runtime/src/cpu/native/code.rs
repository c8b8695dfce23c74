//! Machine code in memory.

use memmap2::{Mmap, MmapMut};
use std::io;

/// Compiled passes have this form: streams, rows, points of a row, constants.
type Function = unsafe extern "sysv64" fn(*mut Stream, usize, usize, *const u32);

/// Where a stream begins, and bytes from a row's part of it to the next row's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) ptr: *mut u8,
    pub(crate) row: isize,
}

/// A function that can be called.
#[derive(Debug)]
pub(crate) struct Code {
    memory: Mmap,
    constants: Vec<u32>,
}

impl Code {
    /// Places machine code in memory that can be executed and no longer written.
    pub(super) fn new(bytes: &[u8], constants: Vec<u32>) -> io::Result<Code> {
        let mut memory = MmapMut::map_anon(bytes.len())?;
        memory.copy_from_slice(bytes);
        Ok(Code { memory: memory.make_exec()?, constants })
    }

    /// Runs it.
    ///
    /// # Safety
    /// `streams` are as many as the pass has, with `rows` rows of `cols` points each behind them; `rows` is not 0.
    pub(crate) unsafe fn run(&self, streams: &mut [Stream], rows: usize, cols: usize) {
        // SAFETY: the memory holds the code of a function of this form.
        unsafe {
            let function: Function = std::mem::transmute(self.memory.as_ptr());
            function(streams.as_mut_ptr(), rows, cols, self.constants.as_ptr());
        }
    }
}
