//! The arithmetic of collectives in host memory: what one rank does of the work of a meeting.
//!
//! Results are the reference interpreter's to the bit: sums are made in the order of ranks, of `f32` in `f64` and
//! rounded once, of 16-bit floats in `f32` after every addition, of integers modulo 2^32. An all-reduce is divided by
//! elements: each rank makes its part for everybody. In all others each rank makes its own result.

use crate::company::Span;
use crate::cpu::share;
use dnx_codegen::exec::{Collective, Part};
use dnx_ir::{DType, ReduceKind};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

/// Elements summed at a time.
const BLOCK: usize = 512;
/// Elements, or bytes, of one task of a thread.
const TASK: usize = 1 << 16;

/// What a part does in a group of so many, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    what: What,
    /// Members of the group.
    n: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// All-reduce of so many elements.
    Fold { kind: ReduceKind, dtype: DType, elems: usize },
    /// Reduce-scatter: an operand is `outer` rows of `n` pieces of so many elements.
    FoldPieces { dtype: DType, outer: usize, piece: usize },
    /// All-gather: an operand is `outer` pieces of so many bytes, a result `outer` rows of `n` pieces.
    Gather { outer: usize, piece: usize },
    /// All-to-all. A part of an operand is `[outer, low, middle, run]` with `run` in bytes; `low` and `run` begin with
    /// the dims that are cut or joined. In the operand the cut one is `n` times longer, in the result the joined one.
    Turn { outer: usize, low: usize, middle: usize, run: usize, cut: Cut },
    /// Permutation of so many bytes: by place the sender, if there is one.
    Permute { bytes: usize, from: Vec<Option<usize>> },
}

/// Which dim of an all-to-all is cut, and which is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// One dim both ways: there is no `low`.
    Same,
    /// The cut one comes first.
    LowToRun,
    /// The joined one comes first.
    RunToLow,
}

impl Move {
    /// The move of a part in a group of `n`.
    pub(super) fn new(part: &Part, n: usize) -> Move {
        let (dims, dtype) = (&part.ty.dims, part.ty.dtype);
        let size = |dims: &[usize]| dims.iter().product::<usize>();
        let bytes = dtype.device_size();
        let what = match &part.op {
            Collective::AllReduce { kind, .. } => What::Fold { kind: *kind, dtype, elems: part.ty.elems() },
            Collective::ReduceScatter { dim, .. } => {
                What::FoldPieces { dtype, outer: size(&dims[..*dim]), piece: size(&dims[*dim..]) / n }
            }
            Collective::AllGather { dim, .. } => {
                What::Gather { outer: size(&dims[..*dim]), piece: size(&dims[*dim..]) * bytes }
            }
            Collective::AllToAll { split, concat, .. } => {
                let mut part = dims.clone();
                part[*split] /= n;
                let (low, high) = (*split.min(concat), *split.max(concat));
                let cut = match split.cmp(concat) {
                    std::cmp::Ordering::Equal => Cut::Same,
                    std::cmp::Ordering::Less => Cut::LowToRun,
                    std::cmp::Ordering::Greater => Cut::RunToLow,
                };
                What::Turn {
                    outer: size(&part[..low]),
                    low: if cut == Cut::Same { 1 } else { part[low] },
                    middle: if cut == Cut::Same { 1 } else { size(&part[low + 1..high]) },
                    run: size(&part[high..]) * bytes,
                    cut,
                }
            }
            Collective::Ppermute { pairs, .. } => {
                let from = |to: usize| pairs.iter().find(|&&(_, t)| t == to).map(|&(from, _)| from);
                What::Permute { bytes: part.ty.device_bytes(), from: (0..n).map(from).collect() }
            }
        };
        Move { what, n }
    }

    /// Whether it is an all-reduce, whose work is common to all members.
    pub(super) fn is_fold(&self) -> bool {
        matches!(self.what, What::Fold { .. })
    }

    /// The elements that share `i` of `n` of common work has; shares begin on lines of their own.
    fn elements(&self, (i, n): (usize, usize)) -> Range<usize> {
        let What::Fold { elems, .. } = self.what else { return 0..0 };
        let at = |i: usize| (elems / n * i + elems % n * i / n).next_multiple_of(64).min(elems);
        at(i)..at(i + 1)
    }

    /// The bytes of the result that share `i` of `n` of common work makes; none if nothing is common.
    pub(super) fn share(&self, (i, n): (usize, usize)) -> Range<usize> {
        let What::Fold { dtype, .. } = self.what else { return 0..0 };
        let elements = self.elements((i, n));
        elements.start * dtype.device_size()..elements.end * dtype.device_size()
    }

    /// The bytes of the operand at place `from` that the members at the places `to` read, if they do the `share` of
    /// common work: increasing, apart.
    pub(super) fn needed(&self, from: usize, to: &[usize], share: (usize, usize)) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = vec![];
        match &self.what {
            What::Fold { .. } => ranges.push(self.share(share)),
            What::FoldPieces { dtype, outer, piece } => {
                let bytes = piece * dtype.device_size();
                let at = |o: usize, p: &usize| (o * self.n + p) * bytes;
                ranges.extend((0..*outer).flat_map(|o| to.iter().map(move |p| at(o, p)..at(o, p) + bytes)));
            }
            What::Gather { outer, piece } => ranges.push(0..outer * piece),
            What::Turn { run, .. } => {
                for &place in to {
                    self.runs(place, from, |src, _| ranges.push(src..src + run));
                }
            }
            What::Permute { bytes, from: senders } => {
                if to.iter().any(|&p| senders[p] == Some(from)) {
                    ranges.push(0..*bytes);
                }
            }
        }
        ranges.retain(|r| !r.is_empty());
        ranges.sort_by_key(|r| r.start);
        ranges.dedup_by(|b, a| {
            let joined = b.start == a.end;
            if joined {
                a.end = b.end;
            }
            joined
        });
        ranges
    }

    /// The runs of an all-to-all from the member at `from` to the one at `to`: where each begins in the operand and in
    /// the result.
    fn runs(&self, to: usize, from: usize, mut each: impl FnMut(usize, usize)) {
        let What::Turn { outer, low, middle, run, cut } = self.what else { return };
        // How many of `low` and `run` one side has, and where this part begins there.
        let (whole, whole_run) = ((low, 0), (run, 0));
        let (cut_low, cut_run) = ((low * self.n, to * low), (run * self.n, to * run));
        let (join_low, join_run) = ((low * self.n, from * low), (run * self.n, from * run));
        let (src_low, src_run, dst_low, dst_run) = match cut {
            Cut::Same => (whole, cut_run, whole, join_run),
            Cut::LowToRun => (cut_low, whole_run, whole, join_run),
            Cut::RunToLow => (whole, cut_run, join_low, whole_run),
        };
        let at = |o: usize, l: usize, m: usize, low: (usize, usize), run: (usize, usize)| {
            ((o * low.0 + low.1 + l) * middle + m) * run.0 + run.1
        };
        for o in 0..outer {
            for l in 0..low {
                for m in 0..middle {
                    each(at(o, l, m, src_low, src_run), at(o, l, m, dst_low, dst_run));
                }
            }
        }
    }

    /// Does what the member at `place` does of the work. `spans` are those of all members for this part, by place.
    /// Of common work it does share `member` of its process's `share`, for the results at `here`.
    ///
    /// # Safety
    /// The spans are memory of the part's operand and result. Until all members have returned nobody else touches
    /// them. They overlap at most where one is operand and result of one member's all-reduce.
    pub(super) unsafe fn run(&self, spans: &[Span], place: usize, common: &Common, threads: usize) {
        let dst = spans[place].dst;
        unsafe {
            match &self.what {
                What::Fold { kind, dtype, .. } => {
                    let all = self.elements(common.share);
                    let own = Move { what: What::Fold { kind: *kind, dtype: *dtype, elems: all.len() }, n: self.n };
                    let own = own.elements(common.member);
                    let (from, results) = (all.start + own.start, Results::All { spans, here: common.here });
                    fold(*dtype, *kind, spans, from, own.len(), from, &results, threads);
                }
                What::FoldPieces { dtype, outer, piece } => {
                    for o in 0..*outer {
                        let from = (o * self.n + place) * piece;
                        fold(*dtype, ReduceKind::Sum, spans, from, *piece, o * piece, &Results::One(dst), threads);
                    }
                }
                What::Gather { outer, piece } => {
                    for o in 0..*outer {
                        for (j, span) in spans.iter().enumerate() {
                            copy(span.src.wrapping_add(o * piece), dst.add((o * self.n + j) * piece), *piece, threads);
                        }
                    }
                }
                What::Turn { run, .. } => {
                    for (j, span) in spans.iter().enumerate() {
                        self.runs(place, j, |from, to| copy(span.src.wrapping_add(from), dst.add(to), *run, threads));
                    }
                }
                What::Permute { bytes, from } => match from[place] {
                    Some(sender) => copy(spans[sender].src, dst, *bytes, threads),
                    None => std::ptr::write_bytes(dst, 0, *bytes),
                },
            }
        }
    }
}

/// Who does which part of work that is common to a group.
pub(super) struct Common<'a> {
    /// Of the processes of the group which this is, and how many.
    pub(super) share: (usize, usize),
    /// Of the members in this process which this is, and how many.
    pub(super) member: (usize, usize),
    /// The places of the members in this process.
    pub(super) here: &'a [usize],
}

/// Copies bytes, many of them by several threads.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize, threads: usize) {
    const PIECE: usize = 4 * TASK;
    let ends = Span { src: from, dst: to };
    share(threads, bytes.div_ceil(PIECE), &|_, task| {
        let (ends, at) = (&ends, task * PIECE);
        // SAFETY: the caller's ranges, of which tasks have disjoint pieces.
        unsafe { std::ptr::copy_nonoverlapping(ends.src.add(at), ends.dst.add(at), PIECE.min(bytes - at)) };
    });
}

/// Where a fold is written.
enum Results<'a> {
    /// To this rank.
    One(*mut u8),
    /// To all members at these places.
    All { spans: &'a [Span], here: &'a [usize] },
}

// As spans are.
unsafe impl Sync for Results<'_> {}

/// Folds `len` elements of all operands, from element `from`, and writes them from element `to` on.
unsafe fn fold(
    dtype: DType,
    kind: ReduceKind,
    spans: &[Span],
    from: usize,
    len: usize,
    to: usize,
    results: &Results,
    threads: usize,
) {
    share(threads, len.div_ceil(TASK), &|_, task| {
        let at = task * TASK;
        let (from, to, len) = (from + at, to + at, TASK.min(len - at));
        // SAFETY: the caller's ranges, of which tasks have disjoint pieces.
        unsafe {
            match dtype {
                DType::F32 => blocks::<f32>(kind, spans, from, len, to, results),
                DType::F64 => blocks::<f64>(kind, spans, from, len, to, results),
                DType::F16 => blocks::<f16>(kind, spans, from, len, to, results),
                DType::BF16 => blocks::<bf16>(kind, spans, from, len, to, results),
                DType::I32 => blocks::<i32>(kind, spans, from, len, to, results),
                DType::U32 | DType::Bool => blocks::<u32>(kind, spans, from, len, to, results),
            }
        }
    });
}

unsafe fn blocks<T: Number>(kind: ReduceKind, spans: &[Span], from: usize, len: usize, to: usize, results: &Results) {
    let first = match kind {
        ReduceKind::Sum => T::ZERO,
        ReduceKind::Max => T::LEAST,
    };
    let mut wide = [first; BLOCK];
    let mut narrow = [T::narrow(first); BLOCK];
    let mut done = 0;
    while done < len {
        let n = BLOCK.min(len - done);
        let mut sums = [first; BLOCK];
        for span in spans {
            // SAFETY: elements of the operand, which nobody writes before this block is.
            let x = unsafe { std::slice::from_raw_parts((span.src as *const T).wrapping_add(from + done), n) };
            T::widen(x, &mut wide[..n]);
            match kind {
                ReduceKind::Sum => sums[..n].iter_mut().zip(&wide).for_each(|(s, &x)| *s = T::add(*s, x)),
                ReduceKind::Max => sums[..n].iter_mut().zip(&wide).for_each(|(s, &x)| *s = T::max(*s, x)),
            }
        }
        narrow[..n].iter_mut().zip(&sums).for_each(|(to, &s)| *to = T::narrow(s));
        // SAFETY: elements of the results that are this task's alone.
        let put = |dst: *mut u8| unsafe {
            std::ptr::copy_nonoverlapping(narrow.as_ptr(), (dst as *mut T).add(to + done), n);
        };
        match results {
            Results::One(dst) => put(*dst),
            Results::All { spans, here } => here.iter().for_each(|&place| put(spans[place].dst)),
        }
        done += n;
    }
}

/// An element and what it is summed in.
trait Number: Copy {
    type Wide: Copy;
    const ZERO: Self::Wide;
    const LEAST: Self::Wide;
    fn widen(from: &[Self], to: &mut [Self::Wide]);
    fn narrow(wide: Self::Wide) -> Self;
    fn add(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn max(a: Self::Wide, b: Self::Wide) -> Self::Wide;
}

impl Number for f32 {
    type Wide = f64;
    const ZERO: f64 = 0.0;
    const LEAST: f64 = f64::NEG_INFINITY;

    fn widen(from: &[f32], to: &mut [f64]) {
        to.iter_mut().zip(from).for_each(|(to, &x)| *to = f64::from(x));
    }

    fn narrow(wide: f64) -> f32 {
        wide as f32
    }

    fn add(a: f64, b: f64) -> f64 {
        a + b
    }

    fn max(a: f64, b: f64) -> f64 {
        a.max(b)
    }
}

impl Number for f64 {
    type Wide = f64;
    const ZERO: f64 = 0.0;
    const LEAST: f64 = f64::NEG_INFINITY;

    fn widen(from: &[f64], to: &mut [f64]) {
        to.copy_from_slice(from);
    }

    fn narrow(wide: f64) -> f64 {
        wide
    }

    fn add(a: f64, b: f64) -> f64 {
        a + b
    }

    fn max(a: f64, b: f64) -> f64 {
        a.max(b)
    }
}

impl Number for f16 {
    type Wide = f32;
    const ZERO: f32 = 0.0;
    const LEAST: f32 = f32::NEG_INFINITY;

    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(wide: f32) -> f16 {
        f16::from_f32(wide)
    }

    fn add(a: f32, b: f32) -> f32 {
        a + b
    }

    fn max(a: f32, b: f32) -> f32 {
        a.max(b)
    }
}

impl Number for bf16 {
    type Wide = f32;
    const ZERO: f32 = 0.0;
    const LEAST: f32 = f32::NEG_INFINITY;

    fn widen(from: &[bf16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(wide: f32) -> bf16 {
        bf16::from_f32(wide)
    }

    fn add(a: f32, b: f32) -> f32 {
        a + b
    }

    fn max(a: f32, b: f32) -> f32 {
        a.max(b)
    }
}

impl Number for i32 {
    type Wide = i32;
    const ZERO: i32 = 0;
    const LEAST: i32 = i32::MIN;

    fn widen(from: &[i32], to: &mut [i32]) {
        to.copy_from_slice(from);
    }

    fn narrow(wide: i32) -> i32 {
        wide
    }

    fn add(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }

    fn max(a: i32, b: i32) -> i32 {
        a.max(b)
    }
}

impl Number for u32 {
    type Wide = u32;
    const ZERO: u32 = 0;
    const LEAST: u32 = 0;

    fn widen(from: &[u32], to: &mut [u32]) {
        to.copy_from_slice(from);
    }

    fn narrow(wide: u32) -> u32 {
        wide
    }

    fn add(a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }

    fn max(a: u32, b: u32) -> u32 {
        a.max(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuMemory;
    use dnx_codegen::exec::BufRef;
    use dnx_ir::Type;

    /// What `n` members make of a part whose operands are these bytes, the work divided among processes of `crews`
    /// members each. Members of other processes are read from copies that hold only what is needed.
    fn exchanged(part: &Part, operands: &[Vec<u8>], result: usize, crews: &[usize], threads: usize) -> Vec<Vec<u8>> {
        let n = operands.len();
        let what = Move::new(part, n);
        let memory = |bytes: usize| CpuMemory::pack(&[bytes as u64]).unwrap().remove(0);
        let results: Vec<CpuMemory> = (0..n).map(|_| memory(result)).collect();
        let mut first = 0;
        for (process, &crew) in crews.iter().enumerate() {
            let here: Vec<usize> = (first..first + crew).collect();
            let share = (process, crews.len());
            let own: Vec<CpuMemory> = operands.iter().map(|o| memory(o.len())).collect();
            for (place, (image, operand)) in own.iter().zip(operands).enumerate() {
                let mut bytes = vec![0xff; operand.len()];
                if here.contains(&place) {
                    bytes.copy_from_slice(operand);
                } else {
                    let ranges = what.needed(place, &here, share);
                    assert!(ranges.windows(2).all(|w| w[0].end < w[1].start), "{ranges:?}");
                    ranges.into_iter().for_each(|r| bytes[r.clone()].copy_from_slice(&operand[r]));
                }
                image.write(&bytes);
            }
            let spans: Vec<Span> = own.iter().zip(&results).map(|(s, d)| Span { src: s.ptr(), dst: d.ptr() }).collect();
            for (i, &place) in here.iter().enumerate() {
                let common = Common { share, member: (i, crew), here: &here };
                // SAFETY: the memory has the part's sizes.
                unsafe { what.run(&spans, place, &common, threads) };
            }
            first += crew;
        }
        // Of an all-reduce each process has made its share.
        let mut out: Vec<Vec<u8>> = results.iter().map(CpuMemory::read).collect();
        if what.is_fold() {
            let mut whole = vec![0; result];
            let mut first = 0;
            for (process, &crew) in crews.iter().enumerate() {
                let r = what.share((process, crews.len()));
                for own in &out[first..first + crew] {
                    assert_eq!(own[r.clone()], out[first][r.clone()]);
                }
                whole[r.clone()].copy_from_slice(&out[first][r]);
                first += crew;
            }
            out.fill(whole);
        }
        out
    }

    /// However work is divided among processes and threads, the bits are the same.
    #[test]
    fn divisions_of_work_change_nothing() {
        let n = 4;
        let a = || "a".to_string();
        let dims = [8, 3, 12_004];
        let ops = [
            (Collective::AllReduce { kind: ReduceKind::Sum, axes: vec![a()] }, 1),
            (Collective::AllReduce { kind: ReduceKind::Max, axes: vec![a()] }, 1),
            (Collective::ReduceScatter { axis: a(), dim: 0 }, 0),
            (Collective::ReduceScatter { axis: a(), dim: 2 }, 0),
            (Collective::AllGather { axis: a(), dim: 1 }, 2),
            (Collective::AllToAll { axis: a(), split: 0, concat: 2 }, 1),
            (Collective::AllToAll { axis: a(), split: 2, concat: 1 }, 1),
            (Collective::AllToAll { axis: a(), split: 2, concat: 2 }, 1),
            (Collective::Ppermute { axis: a(), pairs: vec![(0, 3), (2, 0)] }, 1),
        ];
        for dtype in [DType::F32, DType::BF16] {
            let ty = Type::new(dtype, dims);
            let bytes = ty.device_bytes();
            let operand = |seed: u32| -> Vec<u8> {
                let value =
                    |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 8) as f64 / 1e6 - 8.0;
                let values: Vec<f64> = (0..ty.elems() as u32).map(value).collect();
                dnx_ir::Array::from_f64(ty.clone(), &values).bytes().to_vec()
            };
            let operands: Vec<Vec<u8>> = (0..n).map(operand).collect();
            for (op, size) in &ops {
                let at = BufRef::Input(0);
                let part = Part { op: op.clone(), src: at, dst: at, ty: ty.clone() };
                let result = [bytes / n as usize, bytes, bytes * n as usize][*size];
                let want = exchanged(&part, &operands, result, &[4], 1);
                for (crews, threads) in [(&[4][..], 3), (&[2, 2], 1), (&[1, 3], 2), (&[1, 1, 1, 1], 1)] {
                    let got = exchanged(&part, &operands, result, crews, threads);
                    assert!(got == want, "{op:?} of {ty} by {crews:?} on {threads} threads");
                }
            }
        }
    }
}
