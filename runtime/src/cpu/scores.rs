//! What attention does to a row of scores, compiled for several instruction sets like [`super::ops`], with the same
//! bits on all that have fused multiply-adds.

use super::math;

/// The loops of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    /// `s[i] = exp(s[i] - c)`
    pub(crate) weigh: unsafe fn(usize, *mut f32, f32),
    /// `t[i] *= p[i]`
    pub(crate) multiply: unsafe fn(usize, *mut f32, *const f32),
    /// `t[i] = p[i] * (t[i] - c)`
    pub(crate) centre: unsafe fn(usize, *mut f32, *const f32, f32),
    /// `x[i] *= c`
    pub(crate) scale: unsafe fn(usize, *mut f32, f32),
    /// `x[i] += c * y[i]`
    pub(crate) add: unsafe fn(usize, *mut f32, *const f32, f32),
    /// The sum of `x[i] * y[i]`, in 16 sums that are added in order.
    pub(crate) dot: unsafe fn(usize, *const f32, *const f32) -> f32,
}

macro_rules! instruction_sets {
    ($($module:ident $features:literal;)*) => {
        $(mod $module {
            use super::Scores;
            #[target_feature(enable = $features)]
            unsafe fn weigh(n: usize, s: *mut f32, c: f32) {
                unsafe { super::weigh::<true>(n, s, c) }
            }
            #[target_feature(enable = $features)]
            unsafe fn multiply(n: usize, t: *mut f32, p: *const f32) {
                unsafe { super::multiply(n, t, p) }
            }
            #[target_feature(enable = $features)]
            unsafe fn centre(n: usize, t: *mut f32, p: *const f32, c: f32) {
                unsafe { super::centre(n, t, p, c) }
            }
            #[target_feature(enable = $features)]
            unsafe fn scale(n: usize, x: *mut f32, c: f32) {
                unsafe { super::scale(n, x, c) }
            }
            #[target_feature(enable = $features)]
            unsafe fn add(n: usize, x: *mut f32, y: *const f32, c: f32) {
                unsafe { super::add(n, x, y, c) }
            }
            #[target_feature(enable = $features)]
            unsafe fn dot(n: usize, x: *const f32, y: *const f32) -> f32 {
                unsafe { super::dot(n, x, y) }
            }
            pub(super) const SCORES: Scores = Scores { weigh, multiply, centre, scale, add, dot };
        })*
    };
}

#[cfg(target_arch = "x86_64")]
instruction_sets! {
    avx2 "avx,avx2,fma";
    avx512 "avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl";
}

impl Scores {
    /// The loops for the instruction set of this name, as [`super::ops::Ops`] found it.
    pub(crate) fn of(name: &str) -> Scores {
        match name {
            #[cfg(target_arch = "x86_64")]
            "avx2" => avx2::SCORES,
            #[cfg(target_arch = "x86_64")]
            "avx512" => avx512::SCORES,
            _ => Scores { weigh: weigh::<false>, multiply, centre, scale, add, dot },
        }
    }
}

// SAFETY of the loops: the caller gives `n` words at each pointer, and a destination that overlaps no operand.

#[inline(always)]
unsafe fn weigh<const FUSED: bool>(n: usize, s: *mut f32, c: f32) {
    let s = unsafe { std::slice::from_raw_parts_mut(s, n) };
    s.iter_mut().for_each(|s| *s = math::exp::<FUSED>(*s - c));
}

#[inline(always)]
unsafe fn multiply(n: usize, t: *mut f32, p: *const f32) {
    let (t, p) = unsafe { (std::slice::from_raw_parts_mut(t, n), std::slice::from_raw_parts(p, n)) };
    t.iter_mut().zip(p).for_each(|(t, p)| *t *= p);
}

#[inline(always)]
unsafe fn centre(n: usize, t: *mut f32, p: *const f32, c: f32) {
    let (t, p) = unsafe { (std::slice::from_raw_parts_mut(t, n), std::slice::from_raw_parts(p, n)) };
    t.iter_mut().zip(p).for_each(|(t, p)| *t = p * (*t - c));
}

#[inline(always)]
unsafe fn scale(n: usize, x: *mut f32, c: f32) {
    let x = unsafe { std::slice::from_raw_parts_mut(x, n) };
    x.iter_mut().for_each(|x| *x *= c);
}

#[inline(always)]
unsafe fn add(n: usize, x: *mut f32, y: *const f32, c: f32) {
    let (x, y) = unsafe { (std::slice::from_raw_parts_mut(x, n), std::slice::from_raw_parts(y, n)) };
    x.iter_mut().zip(y).for_each(|(x, y)| *x += c * y);
}

#[inline(always)]
unsafe fn dot(n: usize, x: *const f32, y: *const f32) -> f32 {
    let (x, y) = unsafe { (std::slice::from_raw_parts(x, n), std::slice::from_raw_parts(y, n)) };
    let mut sums = [0.0f32; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest = rest.fold(0.0, |sum, (x, y)| sum + x * y);
    for (x, y) in xs.zip(ys) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    let mut width = 16;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0] + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::ops::all;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.037).chain([-1e30, f32::NEG_INFINITY]).collect();
        let sets = all();
        let results = sets.iter().map(|ops| {
            let (s, n) = (Scores::of(ops.name), x.len() - 3);
            let (mut a, mut b) = (x.clone(), x.clone());
            // SAFETY: both have more than `n` elements.
            unsafe {
                (s.weigh)(x.len(), a.as_mut_ptr(), 0.5);
                (s.centre)(n, b.as_mut_ptr(), a.as_ptr(), 0.25);
                (s.multiply)(n, b.as_mut_ptr(), a.as_ptr());
                (s.scale)(n, b.as_mut_ptr(), 1.0e-3);
                (s.add)(n, b.as_mut_ptr(), a.as_ptr(), 0.1);
                b[n] = (s.dot)(n, a.as_ptr(), b.as_ptr());
            }
            assert_eq!(a[1000..], [0.0, 0.0]);
            [a, b].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        let results: Vec<Vec<u32>> = results.collect();
        // The first is the baseline, without fused multiply-adds.
        assert!(results[1..].iter().all(|r| *r == results[1]));
    }
}
