//! Elementary functions of `f32` written so that a loop over them vectorises: no branches and no calls.
//!
//! `FUSED` says whether a product and a sum are rounded once, by one instruction, as they are wherever the processor
//! has it. All such processors give the same bits; the bounds hold either way.
//!
//! The polynomials interpolate at Chebyshev nodes of the interval given beside each. Error bounds (in units in
//! the last place of the `f32` result, over all normal results) are stated per function and tested.

#![allow(clippy::excessive_precision)]

use std::f32::consts::{FRAC_2_SQRT_PI, LOG2_E};

/// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;
/// The first bits of ln 2, few enough that products with exponents are exact, and the rest.
pub(super) const LN2_HI: f32 = 0.693_359_375;
pub(super) const LN2_LO: f32 = -2.121_944_4e-4;
/// Of [`exp`], on [-ln 2 / 2, ln 2 / 2].
pub(super) const EXP: [f32; 5] = [1.392618181e-3, 8.363177630e-3, 4.166655463e-2, 1.666657700e-1, 0.5];
/// Of [`log`], on [0, 0.02944].
pub(super) const LOG: [f32; 4] = [2.333057433e-1, 2.855081688e-1, 4.000012187e-1, 6.666666655e-1];
/// Of [`tanh`], the quotient of two polynomials in the square, on [-8.8, 8.8].
pub(super) const TANH_P: [f32; 7] = [
    -9.033319746517762e-14,
    5.4831236733189573e-11,
    -2.0639392417365343e-8,
    1.1254299352003727e-5,
    3.1134102027863264e-3,
    1.3092446327209473e-1,
    1.0,
];
pub(super) const TANH_Q: [f32; 4] = [2.5599723448976874e-4, 2.4532739073038101e-2, 4.6425774693489075e-1, 1.0];
/// Of [`erf`] on [0, 1], in the square.
pub(super) const ERF_NEAR: [f32; 7] = [
    -9.667044571e-6,
    1.126595903e-4,
    -8.484080406e-4,
    5.221031808e-3,
    -2.686543073e-2,
    1.128378250e-1,
    -3.761263847e-1,
];
/// What 2 / sqrt(pi) loses as an `f32`: its rounding error alone would be half an ulp.
pub(super) const ERF_REST: f32 = -5.863538344e-08;
/// Of erfc(a) e^(a^2) = t P(t), t = 1 / (a + 2), on [1, 4].
pub(super) const ERFC: [f32; 8] = [
    1.357140047e+1,
    -1.168827561e+1,
    -6.914057478e+0,
    6.674368871e+0,
    1.776340114e+0,
    2.123267991e+0,
    1.117129780e+0,
    5.645462035e-1,
];
/// Rotations of threefry2x32, by round, and the constant of its third key.
pub(super) const TURNS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
pub(super) const PARITY: u32 = 0x1bd1_1bda;

/// `a b + c`
#[inline(always)]
pub(crate) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// A polynomial in `x`, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<const FUSED: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut y = coefficients[0];
    for i in 1..N {
        y = mul_add::<FUSED>(y, x, coefficients[i]);
    }
    y
}

/// `e^x`, within 2 ulp; 0 below -103.98, infinite above 88.72; gradual underflow.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.5 { -104.5 } else { x };
    let t = mul_add::<FUSED>(x, LOG2_E, ROUND);
    let n = t - ROUND;
    let k = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let r = mul_add::<FUSED>(-n, LN2_LO, mul_add::<FUSED>(-n, LN2_HI, x));
    let p = polynomial::<FUSED, 5>(r, EXP);
    let y = mul_add::<FUSED>(p, r * r, r) + 1.0;
    // Two factors, since 2^k itself may not be a normal number.
    let half = k >> 1;
    let a = f32::from_bits((half.wrapping_add(127) << 23) as u32);
    let b = f32::from_bits((k.wrapping_sub(half).wrapping_add(127) << 23) as u32);
    y * a * b
}

/// `ln x`, within 2 ulp; negative: NaN, 0: minus infinity.
#[inline(always)]
pub(crate) fn log<const FUSED: bool>(x: f32) -> f32 {
    let small = x < f32::MIN_POSITIVE;
    let y = if small { x * 8_388_608.0 } else { x };
    let bits = y.to_bits() as i32;
    // Exponent such that the fraction lies in [sqrt(1/2), sqrt(2)).
    let k = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(k << 23) as u32);
    let k = k as f32 - if small { 23.0 } else { 0.0 };
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let r = polynomial::<FUSED, 4>(z, LOG) * z;
    let half = 0.5 * f * f;
    let low = mul_add::<FUSED>(s, half + r, k * LN2_LO);
    let y = mul_add::<FUSED>(k, LN2_HI, f - (half - low));
    let y = if x == f32::INFINITY { f32::INFINITY } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f32::NAN }
}

/// `tanh x`, within 6 ulp, and within 4 for `|x| <= 1`: a quotient, since an exponential takes twice as long.
#[inline(always)]
pub(crate) fn tanh<const FUSED: bool>(x: f32) -> f32 {
    // Beyond this the quotient's value rounds to 1.
    let x = if x > 8.8 { 8.8 } else { x };
    let x = if x < -8.8 { -8.8 } else { x };
    let z = x * x;
    let y = x * polynomial::<FUSED, 7>(z, TANH_P) / polynomial::<FUSED, 4>(z, TANH_Q);
    let y = if y > 1.0 { 1.0 } else { y };
    if y < -1.0 { -1.0 } else { y }
}

/// The error function, within 3 ulp.
#[inline(always)]
pub(crate) fn erf<const FUSED: bool>(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let rest = mul_add::<FUSED>(x, polynomial::<FUSED, 7>(z, ERF_NEAR) * z, x * ERF_REST);
    let near = mul_add::<FUSED>(x, FRAC_2_SQRT_PI, rest);
    let b = if a > 4.0 { 4.0 } else { a };
    let t = 1.0 / (b + 2.0);
    let far = mul_add::<FUSED>(-polynomial::<FUSED, 8>(t, ERFC) * t, exp::<FUSED>(-(b * b)), 1.0).copysign(x);
    let y = if a < 1.0 { near } else { far };
    if x.is_nan() { x } else { y }
}

/// Beyond this the reduction of [`sin_cos`] loses digits; see [`sin`].
const REDUCIBLE: f64 = 1_048_576.0;

/// `sin(x + quarter pi/2)` for `|x| <= 2^20`.
#[inline(always)]
fn sin_cos(x: f32, quarter: u64) -> f32 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const HI: f64 = 1.570_796_326_734_125_6;
    const LO: f64 = 6.077_100_506_506_192e-11;
    let x = x as f64;
    let t = x * std::f64::consts::FRAC_2_PI + ROUND;
    let n = t - ROUND;
    let q = t.to_bits().wrapping_add(quarter);
    let r = (x - n * HI) - n * LO;
    let z = r * r;
    let s = ((((-2.5052108385441720e-8 * z + 2.7557319223985893e-6) * z - 1.9841269841269841e-4) * z
        + 8.3333333333333333e-3)
        * z
        - 1.6666666666666667e-1)
        * z
        * r
        + r;
    let c = ((((-2.7557319223985888e-7 * z + 2.4801587301587302e-5) * z - 1.3888888888888889e-3) * z
        + 4.1666666666666667e-2)
        * z
        - 0.5)
        * z
        + 1.0;
    let y = if q & 1 == 0 { s } else { c };
    (if q & 2 == 0 { y } else { -y }) as f32
}

/// `sin x`, within 1 ulp.
#[inline(always)]
pub(crate) fn sin(x: f32) -> f32 {
    sin_cos(x, 0)
}

/// `cos x`, within 1 ulp.
#[inline(always)]
pub(crate) fn cos(x: f32) -> f32 {
    sin_cos(x, 1)
}

/// Whether [`sin`] and [`cos`] hold for `x`; elsewhere the standard library's are taken.
#[inline(always)]
pub(crate) fn reducible(x: f32) -> bool {
    (x.abs() as f64) <= REDUCIBLE
}

/// -1, 0 or 1, and NaN of NaN.
#[inline(always)]
pub(crate) fn sign(x: f32) -> f32 {
    let s = if x > 0.0 { 1.0 } else { 0.0 };
    let s = if x < 0.0 { -1.0 } else { s };
    if x.is_nan() { x } else { s }
}

/// threefry2x32 (20 rounds) of the counter `(0, counter)` under the key, the two words xored.
#[inline(always)]
pub(crate) fn threefry(k0: u32, k1: u32, counter: u32) -> u32 {
    let keys = [k0, k1, k0 ^ k1 ^ PARITY];
    let (mut a, mut b) = (k0, counter.wrapping_add(k1));
    for round in 0..5u32 {
        for turn in TURNS[round as usize % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(turn) ^ a;
        }
        a = a.wrapping_add(keys[(round as usize + 1) % 3]);
        b = b.wrapping_add(keys[(round as usize + 2) % 3]).wrapping_add(round + 1);
    }
    a ^ b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::ops::{Pointwise, Src, all};

    /// The greatest distance, in units in the last place, over a dense walk through the floats of a range.
    fn worst(from: f32, to: f32, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0f64;
        for i in 0..200_001 {
            let x = from + (to - from) * (i as f32 / 200_000.0);
            let (got, want) = (f(x), exact(x as f64));
            let near = want as f32;
            let ulp = (f32::from_bits((near.abs().to_bits()).max(0x0080_0000) + 1) as f64
                - f32::from_bits((near.abs().to_bits()).max(0x0080_0000)) as f64)
                .abs();
            let distance = (got as f64 - want).abs() / ulp;
            assert!(distance.is_finite(), "f({x}) = {got}, not {want}");
            worst = worst.max(distance);
        }
        worst
    }

    fn within(name: &str, bound: f64, found: f64) {
        assert!(found <= bound, "{name}: {found} ulp, stated {bound}");
    }

    fn errors<const FUSED: bool>() {
        for (from, to) in [(-1.0, 1.0), (-87.0, 88.7), (-1e-3, 1e-3)] {
            within("exp", 2.0, worst(from, to, exp::<FUSED>, f64::exp));
        }
        for (from, to) in [(0.5, 2.0), (0.999, 1.001), (1e-30, 1e-20), (1e-3, 100.0), (1.0, 3e38)] {
            within("log", 2.0, worst(from, to, log::<FUSED>, f64::ln));
        }
        for (from, to, bound) in [(-1.0, 1.0, 4.0), (-12.0, 12.0, 6.0), (-1e-3, 1e-3, 4.0), (5.0, 9.0, 6.0)] {
            within("tanh", bound, worst(from, to, tanh::<FUSED>, f64::tanh));
        }
        for (from, to) in [(-1.0, 1.0), (-5.0, 5.0), (-1e-3, 1e-3), (0.9, 1.1)] {
            within("erf", 3.0, worst(from, to, erf::<FUSED>, libm::erf));
        }
        for (from, to) in [(-7.0, 7.0), (-1000.0, 1000.0), (-1e6, 1e6), (3.1, 3.2)] {
            within("sin", 1.0, worst(from, to, sin, f64::sin));
            within("cos", 1.0, worst(from, to, cos, f64::cos));
        }
    }

    #[test]
    fn errors_are_within_the_stated_bounds() {
        errors::<false>();
        errors::<true>();
    }

    fn special<const FUSED: bool>() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let [exp, log, tanh, erf]: [fn(f32) -> f32; 4] = [exp::<FUSED>, log::<FUSED>, tanh::<FUSED>, erf::<FUSED>];
        assert_eq!((exp(0.0), exp(-inf), exp(inf), exp(-200.0), exp(200.0)), (1.0, 0.0, inf, 0.0, inf));
        assert!(exp(-100.0) > 0.0 && exp(-100.0) < f32::MIN_POSITIVE);
        assert_eq!((log(1.0), log(0.0), log(-0.0), log(inf)), (0.0, -inf, -inf, inf));
        assert!(log(-1.0).is_nan());
        assert!((log(1e-42) as f64 - (1e-42f32 as f64).ln()).abs() < 1e-5);
        assert_eq!((tanh(0.0), tanh(inf), tanh(-inf), tanh(1e30), tanh(1e-30)), (0.0, 1.0, -1.0, 1.0, 1e-30));
        assert_eq!((erf(0.0), erf(inf), erf(-inf), erf(100.0)), (0.0, 1.0, -1.0, 1.0));
        assert_eq!((sign(-3.0), sign(0.0), sign(5.0)), (-1.0, 0.0, 1.0));
        for f in [exp, log, tanh, erf, sin, cos, sign] {
            assert!(f(nan).is_nan());
        }
    }

    #[test]
    fn special_values() {
        special::<false>();
        special::<true>();
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> =
            (0..1000).map(|i| (i as f32 - 500.0) * 0.037).chain([f32::INFINITY, 1e9, -3e7, 0.0]).collect();
        let src = Src { ptr: x.as_ptr() as *const u32, step: 1 };
        let one = Src { ptr: src.ptr, step: 0 };
        use Pointwise::*;
        for op in [Exp, Log, Sin, Cos, Tanh, Erf, Sqrt, Rsqrt, Floor, AddF, MulF, MaxF, FloatToI, RoundBf16, Threefry] {
            let results: Vec<Vec<u32>> = all()
                .iter()
                .map(|ops| {
                    let mut out = vec![0u32; x.len()];
                    // SAFETY: all operands have the length of `out` or step 0.
                    unsafe { (ops.pointwise)(op, x.len(), out.as_mut_ptr(), src, one, src) };
                    out
                })
                .collect();
            // Without fused multiply-adds these round otherwise.
            let first = usize::from(matches!(op, Exp | Log | Tanh | Erf)).min(results.len() - 1);
            for r in &results[first + 1..] {
                let same = r.iter().zip(&results[first]).all(|(a, b)| a == b || f32::from_bits(*a).is_nan());
                assert!(same, "{op:?}");
            }
        }
        let sums: Vec<u32> = all().iter().map(|o| unsafe { (o.sum)(x.as_ptr(), 1000) }.to_bits()).collect();
        assert!(sums.iter().all(|s| *s == sums[0]));
    }

    #[test]
    fn threefry_is_that_of_the_language() {
        assert_eq!(threefry(7, 9, 11), dnx_ir::threefry::bits([7, 9], 11));
    }
}
