//! Memory: where every value lives, decided before anything runs.
//!
//! Temporaries live in slabs, at offsets found by first fit over their lifetimes. wgpu tracks hazards per buffer
//! and forbids a dispatch to read one range of a buffer and write another, so a value is placed in a slab from
//! which its producer reads nothing. The cpu has no such rule and uses a single slab.

use crate::exec::{ALIGN, BufRef};
use dnx_ir::ValueId;
use std::collections::BTreeMap;

/// Most slabs; engines that bind few buffers rarely need more than eight.
const MAX_SLABS: usize = 32;

/// Slabs under construction.
#[derive(Clone, Debug)]
pub struct Slabs {
    slabs: Vec<Slab>,
    /// Reads and writes of one dispatch must be in different slabs.
    apart: bool,
    /// Largest slab.
    limit: u64,
}

#[derive(Clone, Debug, Default)]
struct Slab {
    bytes: u64,
    /// Live ranges: offset to length.
    live: BTreeMap<u64, u64>,
}

/// The life of a value in a slab: from the step that writes it to the last that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The value.
    pub value: ValueId,
    /// Its bytes.
    pub bytes: u64,
    /// Step that writes it.
    pub first: usize,
    /// Last step that touches it.
    pub last: usize,
}

/// The step at which the living values are largest together (the first of those), and what lives then.
pub fn at_peak(lives: &[Life]) -> (usize, Vec<Life>) {
    let living = |step: usize| lives.iter().filter(move |l| (l.first..=l.last).contains(&step));
    let mut change: BTreeMap<usize, i128> = BTreeMap::new();
    for l in lives {
        *change.entry(l.first).or_default() += i128::from(l.bytes);
        *change.entry(l.last + 1).or_default() -= i128::from(l.bytes);
    }
    let (mut bytes, mut peak) = (0, (0, 0));
    for (step, by) in change {
        bytes += by;
        if bytes > peak.0 {
            peak = (bytes, step);
        }
    }
    (peak.1, living(peak.1).copied().collect())
}

/// No slab can take a value of these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Slabs {
    /// No slabs yet. `limit` is the largest buffer of the device.
    pub fn new(apart: bool, limit: u64) -> Slabs {
        Slabs { slabs: vec![], apart, limit }
    }

    /// Places a value of `bytes` written by a dispatch that reads `reads`.
    ///
    /// # Errors
    /// [`Full`] when the value exceeds the device's largest buffer, or every slab is read.
    pub fn place(&mut self, bytes: u64, reads: &[BufRef]) -> Result<BufRef, Full> {
        let (exact, bytes) = (bytes, bytes.max(4).next_multiple_of(ALIGN));
        let read = |s: usize| reads.iter().any(|r| matches!(r, BufRef::Slab { slab, .. } if *slab == s as u32));
        // The slab that grows least; the first of those.
        let mut best: Option<(u64, usize, u64)> = None;
        for (s, slab) in self.slabs.iter().enumerate() {
            if self.apart && read(s) {
                continue;
            }
            let offset = slab.first_fit(bytes);
            let growth = (offset + bytes).saturating_sub(slab.bytes);
            if offset + bytes <= self.limit && best.is_none_or(|(g, ..)| growth < g) {
                best = Some((growth, s, offset));
            }
        }
        let (_, s, offset) = match best {
            Some(found) => found,
            None if self.slabs.len() < MAX_SLABS && bytes <= self.limit => {
                self.slabs.push(Slab::default());
                (0, self.slabs.len() - 1, 0)
            }
            None => return Err(Full),
        };
        let slab = &mut self.slabs[s];
        slab.live.insert(offset, bytes);
        slab.bytes = slab.bytes.max(offset + bytes);
        Ok(BufRef::Slab { slab: s as u32, offset, bytes: exact })
    }

    /// Gives a range back.
    pub fn free(&mut self, range: BufRef) {
        if let BufRef::Slab { slab, offset, .. } = range {
            self.slabs[slab as usize].live.remove(&offset);
        }
    }

    /// The sizes.
    pub fn sizes(&self) -> Vec<u64> {
        self.slabs.iter().map(|s| s.bytes).collect()
    }
}

impl Slab {
    /// The lowest offset at which `bytes` are free.
    fn first_fit(&self, bytes: u64) -> u64 {
        let mut at = 0;
        for (&offset, &length) in &self.live {
            if offset >= at + bytes {
                break;
            }
            at = at.max(offset + length);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(r: BufRef) -> (u32, u64, u64) {
        match r {
            BufRef::Slab { slab, offset, bytes } => (slab, offset, bytes),
            other => panic!("{other:?} is not in a slab"),
        }
    }

    #[test]
    fn freed_memory_is_used_again_and_live_ranges_never_overlap() {
        let mut s = Slabs::new(false, 1 << 30);
        let a = s.place(1000, &[]).unwrap();
        let b = s.place(300, &[]).unwrap();
        assert_eq!((range(a), range(b)), ((0, 0, 1000), (0, 1024, 300)));
        s.free(a);
        assert_eq!(range(s.place(512, &[]).unwrap()), (0, 0, 512));
        assert_eq!(range(s.place(513, &[]).unwrap()), (0, 1536, 513));
        assert_eq!(s.sizes(), [2304]);
    }

    #[test]
    fn what_is_read_is_in_another_slab_than_what_is_written() {
        let mut s = Slabs::new(true, 1 << 30);
        let a = s.place(256, &[]).unwrap();
        let b = s.place(256, &[a]).unwrap();
        let c = s.place(256, &[a, b]).unwrap();
        let d = s.place(256, &[c]).unwrap();
        assert_eq!([a, b, c, d].map(|r| range(r).0), [0, 1, 2, 0]);
    }

    #[test]
    fn the_peak_is_the_step_at_which_most_bytes_live() {
        let life = |v: u32, bytes, first, last| Life { value: ValueId(v), bytes, first, last };
        let lives = [life(0, 8, 0, 3), life(1, 4, 1, 1), life(2, 2, 2, 5), life(3, 3, 3, 3)];
        let (step, living) = at_peak(&lives);
        assert_eq!((step, living), (3, vec![lives[0], lives[2], lives[3]]));
        assert_eq!(at_peak(&[]), (0, vec![]));
    }

    #[test]
    fn a_value_beyond_the_limit_is_refused() {
        assert_eq!(Slabs::new(true, 4096).place(5000, &[]), Err(Full));
    }
}
