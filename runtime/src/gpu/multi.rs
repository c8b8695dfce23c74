//! Segments of `Multi` kernels as dispatches: which allocations each binds, and its table.
//!
//! Segments whose arguments lie in the same allocations share a dispatch, as long as for every argument a window
//! that covers all its ranges can be bound.

use super::GpuError;
use super::memory::GpuMemory;
use dnx_codegen::kernel::Kernel;
use dnx_codegen::wgsl::MULTI_BLOCK;

/// One dispatch over some segments.
pub(super) struct Batch {
    /// Per argument the range to bind.
    pub(super) windows: Vec<GpuMemory>,
    /// Words of the table; see [`dnx_codegen::wgsl`].
    pub(super) table: Vec<u32>,
    /// Workgroups.
    pub(super) grid: [u32; 3],
}

/// A segment: its length in elements and one range per argument.
pub(super) type Segment = (u64, Vec<GpuMemory>);

/// Groups segments into dispatches. `limit` is the most bytes of one binding.
pub(super) fn batches(kernel: &Kernel, segments: Vec<Segment>, limit: u64, what: &str) -> Result<Vec<Batch>, GpuError> {
    let mut groups: Vec<(Vec<GpuMemory>, Vec<Segment>)> = Vec::new();
    for (length, ranges) in segments {
        if length == 0 {
            continue;
        }
        if length > u32::MAX as u64 {
            return Err(GpuError::TooLarge { what: what.to_string(), bytes: length, limit: u32::MAX as u64 });
        }
        for (a, range) in ranges.iter().enumerate() {
            if range.whole_words() > limit {
                let what = format!("argument {a} of {what}");
                return Err(GpuError::TooLarge { what, bytes: range.bytes, limit });
            }
        }
        let joined = groups.iter_mut().find_map(|(windows, members)| {
            let wider: Option<Vec<GpuMemory>> =
                windows.iter().zip(&ranges).map(|(window, range)| widened(window, range, limit)).collect();
            wider.map(|wider| (windows, members, wider))
        });
        match joined {
            Some((windows, members, wider)) => {
                *windows = wider;
                members.push((length, ranges));
            }
            None => groups.push((ranges.clone(), vec![(length, ranges)])),
        }
    }
    Ok(groups.into_iter().map(|(windows, members)| batch(kernel, windows, &members)).collect())
}

/// The least range that covers both, if they lie in one allocation and it can be bound.
fn widened(window: &GpuMemory, range: &GpuMemory, limit: u64) -> Option<GpuMemory> {
    let offset = window.offset.min(range.offset);
    let end = (window.offset + window.bytes).max(range.offset + range.bytes);
    let wide = GpuMemory { allocation: window.allocation.clone(), offset, bytes: end - offset };
    (window.same_allocation(range) && wide.whole_words() <= limit).then_some(wide)
}

fn batch(kernel: &Kernel, windows: Vec<GpuMemory>, segments: &[Segment]) -> Batch {
    let mut table = vec![0u32];
    let mut records = Vec::new();
    for (number, (length, ranges)) in segments.iter().enumerate() {
        let first = table.len() as u32 - 1;
        let blocks = length.div_ceil(MULTI_BLOCK) as usize;
        table.resize(table.len() + blocks, number as u32);
        records.extend([first, *length as u32]);
        for ((range, window), arg) in ranges.iter().zip(&windows).zip(&kernel.args) {
            records.push(((range.offset - window.offset) / arg.dtype.device_size() as u64) as u32);
        }
    }
    let blocks = table.len() as u32 - 1;
    table[0] = blocks;
    table.extend(records);
    let rows = blocks.div_ceil(65_535).max(1);
    Batch { windows, table, grid: [blocks.div_ceil(rows), rows, 1] }
}
