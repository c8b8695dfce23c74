//! Microkernels: a tile of a matrix product in registers. Every element of a tile is the sum over `k` in order, one
//! fused multiply-add each, whatever the tile's shape: how a product is cut into tiles never shows in its results.
//!
//! The left factor is read one number at a time and spread over the lanes, so it may lie in memory with any strides.
//! The right factor is read in vectors along its columns, which therefore lie side by side.

use std::sync::OnceLock;

/// A tile of a product: `c[r, j] (+)= sum over k of a[r, k] b[k, j]`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) k: usize,
    pub(super) a: *const f32,
    /// Strides of `a` along its rows and along `k`.
    pub(super) a_strides: (isize, isize),
    pub(super) b: *const f32,
    /// Stride of `b` along `k`.
    pub(super) b_stride: isize,
    pub(super) c: *mut f32,
    /// Stride of `c` along its rows.
    pub(super) c_stride: isize,
    /// Columns of the last vector.
    pub(super) last: usize,
    /// Whether to add to what `c` holds.
    pub(super) add: bool,
}

/// Lines along `k` that are asked for before they are used. Those of a wide matrix are too far apart for the processor to
/// guess them, and when a factor comes from beyond the caches, waiting for them takes half as long as the product.
#[cfg(target_arch = "x86_64")]
const AHEAD: isize = 16;

/// Asks for the memory at an address, which may be none.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn soon(p: *const f32) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: an address that cannot be read is ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
}

/// The microkernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Micro {
    /// Numbers in a vector.
    pub(super) lanes: usize,
    /// Most rows of a tile of so many vectors (1, 2, ...), as registers allow.
    pub(super) rows: &'static [usize],
    /// Computes a tile of so many rows and vectors.
    pub(super) tile: unsafe fn(usize, usize, &Tile),
    /// Turns a square of `lanes` by `lanes` numbers, rows of the given strides.
    pub(super) turn: unsafe fn(*const f32, isize, *mut f32, isize),
    /// Name of the instruction set.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) name: &'static str,
}

/// The best microkernels of this processor, if there are any for it.
pub(crate) fn best() -> Option<&'static Micro> {
    static BEST: OnceLock<Option<Micro>> = OnceLock::new();
    BEST.get_or_init(|| all().pop()).as_ref()
}

/// All that this processor can run, the best last.
pub(super) fn all() -> Vec<Micro> {
    #[allow(unused_mut)]
    let mut found = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found.push(avx2::MICRO);
        }
        if is_x86_feature_detected!("avx512f") {
            found.push(avx512::MICRO);
        }
    }
    found
}

/// The tile kernels of an instruction set, for tiles of `vectors: rows`, from operations on its vectors. A
/// masked load gives zeros, a masked store leaves memory alone, beyond the first columns.
#[cfg(target_arch = "x86_64")]
macro_rules! tiles {
    ($features:literal, [$($vectors:literal: $($rows:literal)*;)*]) => {
        #[target_feature(enable = $features)]
        unsafe fn compute<const V: usize, const R: usize>(t: &Tile) {
            // SAFETY: the caller gives `R` rows of `a` and `c` and `k` lines of `V` vectors of `b`, the last of
            // them of `last` columns.
            unsafe {
                let mask = mask(t.last);
                let mut sums = [[zero(); V]; R];
                let (mut a, mut b) = (t.a, t.b);
                for _ in 0..t.k {
                    for v in 0..V {
                        soon(b.wrapping_offset(AHEAD * t.b_stride).wrapping_add(v * LANES));
                    }
                    soon(a.wrapping_offset(AHEAD * t.a_strides.1));
                    let mut line = [zero(); V];
                    for v in 0..V - 1 {
                        line[v] = load(b.add(v * LANES));
                    }
                    line[V - 1] = load_masked(b.add((V - 1) * LANES), mask);
                    for r in 0..R {
                        let x = spread(a.offset(r as isize * t.a_strides.0));
                        for v in 0..V {
                            sums[r][v] = fused(x, line[v], sums[r][v]);
                        }
                    }
                    a = a.wrapping_offset(t.a_strides.1);
                    b = b.wrapping_offset(t.b_stride);
                }
                for r in 0..R {
                    let c = t.c.offset(r as isize * t.c_stride);
                    for v in 0..V {
                        let c = c.add(v * LANES);
                        let whole = v + 1 < V || t.last == LANES;
                        let mut y = sums[r][v];
                        if t.add {
                            let before = if whole { load(c) } else { load_masked(c, mask) };
                            y = plus(before, y);
                        }
                        if whole { store(c, y) } else { store_masked(c, mask, y) }
                    }
                }
            }
        }

        unsafe fn tile(rows: usize, vectors: usize, t: &Tile) {
            match (vectors, rows) {
                $($(($vectors, $rows) => unsafe { compute::<$vectors, $rows>(t) },)*)*
                _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{AHEAD, Micro, Tile, soon};
    use std::arch::x86_64::*;

    const LANES: usize = 16;

    pub(super) const MICRO: Micro = Micro { lanes: LANES, rows: &[8, 8, 8, 6], tile, turn, name: "avx512" };

    #[inline(always)]
    fn mask(columns: usize) -> __mmask16 {
        ((1u32 << columns) - 1) as __mmask16
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_masked(p: *const f32, mask: __mmask16) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn spread(p: *const f32) -> __m512 {
        unsafe { _mm512_set1_ps(*p) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn fused(x: __m512, y: __m512, z: __m512) -> __m512 {
        _mm512_fmadd_ps(x, y, z)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn plus(x: __m512, y: __m512) -> __m512 {
        _mm512_add_ps(x, y)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store_masked(p: *mut f32, mask: __mmask16, x: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, mask, x) }
    }

    tiles! { "avx512f", [
        1: 1 2 3 4 5 6 7 8;
        2: 1 2 3 4 5 6 7 8;
        3: 1 2 3 4 5 6 7 8;
        4: 1 2 3 4 5 6;
    ] }

    #[target_feature(enable = "avx512f")]
    unsafe fn turn(from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize) {
        // Squares of 8, 4, 2, 1 off the diagonal change places.
        const fn places(width: i32, second: bool) -> [i32; 16] {
            let mut all = [0; 16];
            let mut l = 0;
            while l < 16 {
                let right = l as i32 & width != 0;
                all[l] = match (right, second) {
                    (false, false) => l as i32,
                    (true, false) => 16 + l as i32 - width,
                    (false, true) => l as i32 + width,
                    (true, true) => 16 + l as i32,
                };
                l += 1;
            }
            all
        }
        const PLACES: [[[i32; 16]; 2]; 4] = [
            [places(8, false), places(8, true)],
            [places(4, false), places(4, true)],
            [places(2, false), places(2, true)],
            [places(1, false), places(1, true)],
        ];
        // SAFETY: the caller gives 16 rows of 16 numbers on either side.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                rows[i] = _mm512_loadu_ps(from.offset(i as isize * from_stride));
            }
            for stage in 0..4 {
                let width = 8 >> stage;
                let first = _mm512_loadu_si512(PLACES[stage][0].as_ptr().cast());
                let second = _mm512_loadu_si512(PLACES[stage][1].as_ptr().cast());
                for i in 0..16 {
                    if i & width == 0 {
                        let (x, y) = (rows[i], rows[i + width]);
                        rows[i] = _mm512_permutex2var_ps(x, first, y);
                        rows[i + width] = _mm512_permutex2var_ps(x, second, y);
                    }
                }
            }
            for i in 0..16 {
                _mm512_storeu_ps(to.offset(i as isize * to_stride), rows[i]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{AHEAD, Micro, Tile, soon};
    use std::arch::x86_64::*;

    const LANES: usize = 8;

    pub(super) const MICRO: Micro = Micro { lanes: LANES, rows: &[6, 6], tile, turn, name: "avx2" };

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn mask(columns: usize) -> __m256i {
        const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        unsafe { _mm256_loadu_si256(ONES.as_ptr().add(LANES - columns).cast()) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load_masked(p: *const f32, mask: __m256i) -> __m256 {
        unsafe { _mm256_maskload_ps(p, mask) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn spread(p: *const f32) -> __m256 {
        unsafe { _mm256_broadcast_ss(&*p) }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn fused(x: __m256, y: __m256, z: __m256) -> __m256 {
        _mm256_fmadd_ps(x, y, z)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn plus(x: __m256, y: __m256) -> __m256 {
        _mm256_add_ps(x, y)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn store(p: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(p, x) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn store_masked(p: *mut f32, mask: __m256i, x: __m256) {
        unsafe { _mm256_maskstore_ps(p, mask, x) }
    }

    tiles! { "avx2,fma", [
        1: 1 2 3 4 5 6;
        2: 1 2 3 4 5 6;
    ] }

    #[target_feature(enable = "avx2")]
    unsafe fn turn(from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize) {
        // SAFETY: the caller gives 8 rows of 8 numbers on either side.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for i in 0..8 {
                rows[i] = _mm256_loadu_ps(from.offset(i as isize * from_stride));
            }
            let mut pairs = rows;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            for i in 0..2 {
                for j in 0..2 {
                    let (x, y) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                    rows[4 * i + 2 * j] = _mm256_shuffle_ps::<0x44>(x, y);
                    rows[4 * i + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(x, y);
                }
            }
            for i in 0..4 {
                let (x, y) = (rows[i], rows[4 + i]);
                _mm256_storeu_ps(to.offset(i as isize * to_stride), _mm256_permute2f128_ps::<0x20>(x, y));
                _mm256_storeu_ps(to.offset((4 + i) as isize * to_stride), _mm256_permute2f128_ps::<0x31>(x, y));
            }
        }
    }
}
