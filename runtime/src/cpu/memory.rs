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

/// One allocation.
#[derive(Debug)]
struct Block {
    base: *mut u8,
    layout: Layout,
}

// The block is plain bytes. Who touches them when is ordered by the device's queue, and inside a program by
// the kernels' disjoint tasks.
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Result<Block, AllocError> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGN as usize).map_err(|_| AllocError)?;
        // SAFETY: the layout has at least one byte.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() { Err(AllocError) } else { Ok(Block { base, layout }) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody holds the block any more.
        unsafe { dealloc(self.base, self.layout) }
    }
}

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
        unsafe { self.block.base.add(self.offset) }
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
