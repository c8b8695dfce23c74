//! Products of matrices of `f32`: the least that `Contract` kernels and others need to build theirs on.
//!
//! The left factor may have any strides. The right factor is either read where it lies, if its columns lie side by
//! side, or copied into *panels* first: groups of a few vectors of columns, each group line by line along `k`, so
//! that a tile's microkernel walks through memory in order. Where the processor has no microkernels (see [`micro`])
//! the `gemm` crate multiplies, and nothing is ever copied here.
//!
//! Every element of a product is a sum over `k` in order, whatever the extents and the cuts are.

mod micro;

use gemm::Parallelism;
use micro::{Micro, Tile};

/// A factor: numbers at `ptr + i * along + p * k`, `i` counting its rows (of the left factor) or columns (of the
/// right one) and `p` what is summed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor {
    pub(crate) ptr: *const f32,
    pub(crate) along: isize,
    pub(crate) k: isize,
}

/// A right factor that is ready to be multiplied by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right {
    /// Where it lies. With microkernels `along` must be 1, unless there is a single column.
    Lines(Factor),
    /// From line `from` on of the panels that [`pack`] has made of `depth` lines.
    Panels { ptr: *const f32, depth: usize, from: usize },
}

impl Right {
    /// Without its first `lines` lines along `k`.
    pub(crate) fn after(self, lines: usize) -> Right {
        match self {
            Right::Lines(f) => Right::Lines(Factor { ptr: f.ptr.wrapping_offset(lines as isize * f.k), ..f }),
            Right::Panels { ptr, depth, from } => Right::Panels { ptr, depth, from: from + lines },
        }
    }
}

/// Left rows from which on panels are worth making of a right factor that could be read where it lies.
const MANY: usize = 768;
/// The same if its lines are so far apart that they evict each other from the caches.
const SOME: usize = 96;

/// Whether a right factor of these strides is to be packed before it multiplies `m` rows.
pub(crate) fn wants_panels(m: usize, n: usize, along: isize, k: isize) -> bool {
    if micro::best().is_none() || n <= 1 {
        return false;
    }
    let clashes = k != 0 && k % 512 == 0;
    along != 1 || m >= MANY || (clashes && m >= SOME)
}

/// How the columns of a right factor are cut: `count` panels of about equally many of all `vectors`.
#[derive(Clone, Copy)]
struct Cut {
    vectors: usize,
    count: usize,
    /// Rows of a tile.
    rows: usize,
}

impl Cut {
    fn new(micro: &Micro, n: usize) -> Cut {
        let vectors = n.div_ceil(micro.lanes).max(1);
        let most = micro.rows.len();
        let each = match vectors {
            v if v <= most => v,
            v if v <= 16 => [3, 4].into_iter().find(|&e| e <= most && v.is_multiple_of(e)).unwrap_or(most.min(3)),
            _ => most.min(3),
        };
        Cut { vectors, count: vectors.div_ceil(each), rows: micro.rows[each - 1] }
    }

    /// The first vector of a panel.
    fn first(&self, panel: usize) -> usize {
        panel * self.vectors / self.count
    }
}

/// Panels of a right factor of `n` columns: the pieces in which [`pack`] makes them.
pub(crate) fn panels(n: usize) -> usize {
    micro::best().map_or(0, |micro| Cut::new(micro, n).count)
}

/// Columns that the panels of `n` columns have room for.
pub(crate) fn padded(n: usize) -> usize {
    micro::best().map_or(n, |micro| n.next_multiple_of(micro.lanes))
}

/// `to[i * to_stride + j] = from[i + j * from_stride]` for `rows` of `i` and `cols` of `j`, whatever the words are.
///
/// # Safety
/// Both sides are as large as said and don't overlap.
pub(crate) unsafe fn turn(
    (rows, cols): (usize, usize),
    from: *const f32,
    from_stride: isize,
    to: *mut f32,
    to_stride: usize,
) {
    let lanes = micro::best().map_or(1, |micro| micro.lanes);
    let squares = micro::best().map_or((0, 0), |_| (rows / lanes * lanes, cols / lanes * lanes));
    // SAFETY: the caller gives the memory.
    unsafe {
        if let Some(micro) = micro::best() {
            for i in (0..squares.0).step_by(lanes) {
                for j in (0..squares.1).step_by(lanes) {
                    let from = from.add(i).offset(j as isize * from_stride);
                    (micro.turn)(from, from_stride, to.add(i * to_stride + j), to_stride as isize);
                }
            }
        }
        for i in 0..rows {
            for j in if i < squares.0 { squares.1 } else { 0 }..cols {
                let from = from.add(i).offset(j as isize * from_stride);
                *(to.add(i * to_stride + j) as *mut u32) = *(from as *const u32);
            }
        }
    }
}

/// Makes one of the [`panels`] of a right factor of `n` columns; all of them have `padded(n) * k` numbers.
///
/// # Safety
/// The factor and the room are as large as said; nobody else touches this panel.
pub(crate) unsafe fn pack(right: Factor, n: usize, k: usize, panel: usize, to: *mut f32) {
    let micro = micro::best().expect("panels are for microkernels");
    unsafe { pack_with(micro, right, n, k, panel, to) }
}

unsafe fn pack_with(micro: &Micro, right: Factor, n: usize, k: usize, panel: usize, to: *mut f32) {
    let (cut, lanes) = (Cut::new(micro, n), micro.lanes);
    let (first, end) = (cut.first(panel) * lanes, cut.first(panel + 1) * lanes);
    let (width, columns) = (end - first, n.min(end) - first);
    // SAFETY: the caller gives the room.
    unsafe {
        let to = to.add(first * k);
        let from = right.ptr.offset(first as isize * right.along);
        if right.along == 1 {
            for p in 0..k {
                let (from, to) = (from.offset(p as isize * right.k), to.add(p * width));
                std::ptr::copy_nonoverlapping(from, to, columns);
                std::ptr::write_bytes(to.add(columns), 0, width - columns);
            }
            return;
        }
        let squares = if right.k == 1 { (columns / lanes * lanes, k / lanes * lanes) } else { (0, 0) };
        for p in (0..squares.1).step_by(lanes) {
            for i in (0..squares.0).step_by(lanes) {
                let from = from.offset(i as isize * right.along).add(p);
                (micro.turn)(from, right.along, to.add(p * width + i), width as isize);
            }
        }
        for p in 0..k {
            let begin = if p < squares.1 { squares.0 } else { 0 };
            for i in begin..columns {
                *to.add(p * width + i) = *from.offset(i as isize * right.along + p as isize * right.k);
            }
            std::ptr::write_bytes(to.add(p * width + columns), 0, width - columns);
        }
    }
}

/// `to[i * stride + j] = sum over p of left[i, p] right[p, j]`, or that added to what is there, for `m` rows and
/// `n` columns.
///
/// # Safety
/// The factors are as large as said, and nobody else touches the result.
pub(crate) unsafe fn multiply(
    (m, n, k): (usize, usize, usize),
    left: Factor,
    right: Right,
    to: *mut f32,
    stride: isize,
    add: bool,
) {
    match (micro::best(), right) {
        (Some(micro), _) => unsafe { multiply_with(micro, (m, n, k), left, right, to, stride, add) },
        (None, Right::Lines(right)) => unsafe { foreign((m, n, k), left, right, to, stride, add) },
        (None, Right::Panels { .. }) => unreachable!("panels are for microkernels"),
    }
}

unsafe fn multiply_with(
    micro: &Micro,
    (m, n, k): (usize, usize, usize),
    left: Factor,
    right: Right,
    to: *mut f32,
    stride: isize,
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let (cut, lanes) = (Cut::new(micro, n), micro.lanes);
    let tiles = m.div_ceil(cut.rows);
    // A panel stays in the first cache while all rows pass by it.
    for panel in 0..cut.count {
        let (first, next) = (cut.first(panel), cut.first(panel + 1));
        let vectors = next - first;
        let last = if next == cut.vectors { n - (next - 1) * lanes } else { lanes };
        for tile in 0..tiles {
            // Tiles of about equally many rows: a last tile of one row would take nearly as long as a whole one.
            let (row, end) = (tile * m / tiles, (tile + 1) * m / tiles);
            // SAFETY: the caller gives factors and results of these extents.
            unsafe {
                let (b, b_stride) = match right {
                    Right::Lines(right) => (right.ptr.add(first * lanes), right.k),
                    Right::Panels { ptr, depth, from } => {
                        let width = vectors * lanes;
                        (ptr.add(first * lanes * depth + from * width), width as isize)
                    }
                };
                let a = left.ptr.offset(row as isize * left.along);
                let c = to.offset(row as isize * stride).add(first * lanes);
                let a_strides = (left.along, left.k);
                let tile = Tile { k, a, a_strides, b, b_stride, c, c_stride: stride, last, add };
                (micro.tile)(end - row, vectors, &tile);
            }
        }
    }
}

/// The same by the `gemm` crate.
unsafe fn foreign(
    (m, n, k): (usize, usize, usize),
    left: Factor,
    right: Factor,
    to: *mut f32,
    stride: isize,
    add: bool,
) {
    // SAFETY: the caller gives factors and results of these extents.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to,
            1,
            stride,
            add,
            left.ptr,
            left.k,
            left.along,
            right.ptr,
            right.along,
            right.k,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small integer, so that sums are exact in any order.
    fn number(i: usize) -> f32 {
        ((i * 7919 + 13) % 17) as f32 - 8.0
    }

    /// A factor of `n` by `k` numbers, laid out by `layout`: 0 `k` fastest, 1 `n` fastest, 2 neither.
    fn factor(n: usize, k: usize, layout: usize) -> (Vec<f32>, isize, isize) {
        let (along, step) = [(k + 3, 1), (1, n + 5), (2 * k + 1, 2)][layout];
        let data = (0..along * n + step * k + 1).map(number).collect();
        (data, along as isize, step as isize)
    }

    fn expected(m: usize, n: usize, k: usize, left: Factor, right: Factor, before: f32) -> Vec<f32> {
        let at = |f: Factor, i: usize, p: usize| unsafe { *f.ptr.offset(i as isize * f.along + p as isize * f.k) };
        let sum = |i: usize, j: usize| (0..k).map(|p| at(left, i, p) * at(right, j, p)).sum::<f32>();
        (0..m * n).map(|c| sum(c / n, c % n) + before).collect()
    }

    #[test]
    fn every_microkernel_multiplies() {
        let sizes = [1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 63, 64, 65, 96, 130];
        for micro in &micro::all() {
            for (s, &n) in sizes.iter().enumerate() {
                let (m, k) = (sizes[(s * 7 + 3) % sizes.len()], sizes[(s * 11 + 5) % sizes.len()]);
                for case in 0..18 {
                    let (l, r, add) = (case % 3, case / 3 % 3, case >= 9);
                    let ((a, a_along, a_k), (b, b_along, b_k)) = (factor(m, k, l), factor(n, k, r));
                    let left = Factor { ptr: a.as_ptr(), along: a_along, k: a_k };
                    let lines = Factor { ptr: b.as_ptr(), along: b_along, k: b_k };
                    let before = if add { 5.0 } else { 0.0 };
                    let want = expected(m, n, k, left, lines, before);
                    let mut panels = vec![f32::NAN; n.next_multiple_of(micro.lanes) * k];
                    for panel in 0..Cut::new(micro, n).count {
                        unsafe { pack_with(micro, lines, n, k, panel, panels.as_mut_ptr()) };
                    }
                    let mut rights = vec![Right::Panels { ptr: panels.as_ptr(), depth: k, from: 0 }];
                    rights.extend((b_along == 1).then_some(Right::Lines(lines)));
                    for right in rights {
                        // One number beyond each row must stay as it was.
                        let mut got = vec![5.0; m * (n + 1)];
                        unsafe { multiply_with(micro, (m, n, k), left, right, got.as_mut_ptr(), n as isize + 1, add) };
                        for (i, (got, want)) in got.chunks(n + 1).zip(want.chunks(n)).enumerate() {
                            let what = format!("{} {m}x{n}x{k} case {case} row {i}", micro.name);
                            assert_eq!(&got[..n], want, "{what}");
                            assert_eq!(got[n], 5.0, "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn cuts_do_not_show() {
        // Sums that round: a part of a product has the bits it has in the whole.
        for micro in &micro::all() {
            let (m, n, k) = (37, 101, 50);
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.71).cos()).collect();
            let (left, right) = (
                Factor { ptr: a.as_ptr(), along: k as isize, k: 1 },
                Factor { ptr: b.as_ptr(), along: 1, k: n as isize },
            );
            let run = |rows: (usize, usize), columns: (usize, usize)| {
                let (m, n) = (rows.1 - rows.0, columns.1 - columns.0);
                let mut out = vec![0.0; m * n];
                let left = Factor { ptr: unsafe { left.ptr.add(rows.0 * k) }, ..left };
                let right = Right::Lines(Factor { ptr: unsafe { right.ptr.add(columns.0) }, ..right });
                unsafe { multiply_with(micro, (m, n, k), left, right, out.as_mut_ptr(), n as isize, false) };
                out
            };
            let whole = run((0, m), (0, n));
            let part = run((3, 20), (40, 91));
            for (i, row) in part.chunks(51).enumerate() {
                assert_eq!(row, &whole[(3 + i) * n + 40..][..51]);
            }
        }
    }

    #[test]
    fn products_continue_where_they_stopped() {
        for micro in &micro::all() {
            let (m, n, k, stop) = (11, 70, 29, 13);
            let ((a, a_along, a_k), (b, b_along, b_k)) = (factor(m, k, 0), factor(n, k, 0));
            let left = Factor { ptr: a.as_ptr(), along: a_along, k: a_k };
            let lines = Factor { ptr: b.as_ptr(), along: b_along, k: b_k };
            let mut panels = vec![f32::NAN; n.next_multiple_of(micro.lanes) * k];
            for panel in 0..Cut::new(micro, n).count {
                unsafe { pack_with(micro, lines, n, k, panel, panels.as_mut_ptr()) };
            }
            let right = Right::Panels { ptr: panels.as_ptr(), depth: k, from: 0 };
            let rest = Factor { ptr: unsafe { left.ptr.add(stop) }, ..left };
            let mut got = vec![0.0; m * n];
            unsafe {
                multiply_with(micro, (m, n, stop), left, right, got.as_mut_ptr(), n as isize, false);
                multiply_with(micro, (m, n, k - stop), rest, right.after(stop), got.as_mut_ptr(), n as isize, true);
            }
            assert_eq!(got, expected(m, n, k, left, lines, 0.0));
        }
    }

    #[test]
    fn the_gemm_crate_agrees() {
        let (m, n, k) = (13, 21, 9);
        let ((a, a_along, a_k), (b, b_along, b_k)) = (factor(m, k, 0), factor(n, k, 1));
        let left = Factor { ptr: a.as_ptr(), along: a_along, k: a_k };
        let right = Factor { ptr: b.as_ptr(), along: b_along, k: b_k };
        let mut got = vec![2.0; m * n];
        unsafe { foreign((m, n, k), left, right, got.as_mut_ptr(), n as isize, true) };
        assert_eq!(got, expected(m, n, k, left, right, 2.0));
    }
}
