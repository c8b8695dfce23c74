//! Memory of the cpu device: ranges of aligned, zeroed allocations.

use dnx_codegen::exec::ALIGN;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

/// The system has no more memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllocError;

/// A range of an allocation. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct CpuMemory {
    block: Arc<Block>,
    offset: usize,
    bytes: usize,
}

/// One allocation, and where in it the first aligned byte is.
#[derive(Debug)]
struct Block {
    base: *mut u8,
    layout: Layout,
    first: usize,
}

// The block is plain bytes. Who touches them when is ordered by the device's queue, and inside a program by
// the kernels' disjoint tasks.
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Result<Block, AllocError> {
        // Aligned here: the allocator would clear memory of a greater alignment than its own by writing to it, where
        // the system gives fresh pages that are zero and cost nothing until they are used.
        let room = bytes.max(1).checked_add(ALIGN as usize).ok_or(AllocError)?;
        let layout = Layout::from_size_align(room, 16).map_err(|_| AllocError)?;
        // SAFETY: the layout has at least one byte.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(AllocError);
        }
        prefer_large_pages(base, layout.size());
        Ok(Block { base, layout, first: base.align_offset(ALIGN as usize) })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody holds the block any more.
        unsafe { dealloc(self.base, self.layout) }
    }
}

/// Asks the system to back a large allocation with large pages: contractions and columns step from line to line over
/// more small pages than the processor remembers.
#[cfg(target_os = "linux")]
fn prefer_large_pages(base: *mut u8, bytes: usize) {
    use std::ffi::{c_int, c_void};
    const PAGE: usize = 2 << 20;
    const MADV_HUGEPAGE: c_int = 14;
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    let ahead = base.align_offset(PAGE);
    if bytes >= ahead.saturating_add(PAGE) {
        let length = (bytes - ahead) / PAGE * PAGE;
        // SAFETY: the range lies in the allocation. A refusal changes nothing.
        unsafe { madvise(base.wrapping_add(ahead).cast(), length, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_large_pages(_base: *mut u8, _bytes: usize) {}

impl CpuMemory {
    /// Zeroed memory of these sizes, in one allocation.
    pub(crate) fn pack(bytes: &[u64]) -> Result<Vec<CpuMemory>, AllocError> {
        let total: u64 = bytes.iter().map(|b| b.next_multiple_of(ALIGN)).sum();
        let block = Arc::new(Block::new(usize::try_from(total).map_err(|_| AllocError)?)?);
        let mut offset = 0;
        let ranges = bytes.iter().map(|&b| {
            let range = CpuMemory { block: block.clone(), offset, bytes: b as usize };
            offset += b.next_multiple_of(ALIGN) as usize;
            range
        });
        Ok(ranges.collect())
    }

    /// Address of the first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: the offset lies in the block.
        unsafe { self.block.base.add(self.block.first + self.offset) }
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the ranges share a byte.
    pub(crate) fn overlaps(&self, other: &CpuMemory) -> bool {
        Arc::ptr_eq(&self.block, &other.block)
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }

    /// Replaces the content. The caller holds the queue.
    pub(crate) fn write(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes, "a write replaces the whole range");
        // SAFETY: the range lies in the block, and the caller holds the device's queue.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr(), bytes.len()) }
    }

    /// The content. The caller holds the queue.
    pub(crate) fn read(&self) -> Vec<u8> {
        // SAFETY: as for `write`; the block was zeroed, so every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.bytes) }.to_vec()
    }
}
