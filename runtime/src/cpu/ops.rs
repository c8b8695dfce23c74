//! Pointwise operations over a chunk, and reductions of a stretch, compiled for several instruction sets and
//! chosen once at run time. Values are 32-bit words: `f32` (16-bit floats are held widened), `i32`, `u32`, and
//! `bool` as 0 or 1.

use super::math;
use half::{bf16, f16};
use std::sync::OnceLock;

/// An operand: words in memory, or one word for all elements (`step` 0).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Src {
    pub(crate) ptr: *const u32,
    pub(crate) step: usize,
}

/// Pointwise operations. The letter names the operands: `F` float, `I` `i32`, `U` `u32` (or `bool`). Those from
/// `MulAdd` to `SubThenMul` are two at once, on floats: see [`super::pairs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Pointwise {
    Copy,
    NegF, Exp, Log, Sin, Cos, Tanh, Erf, Sqrt, Rsqrt, AbsF, SignF, Floor, IsFinite,
    NegI, AbsI, SignI, SignU, Not, NotBool,
    AddF, SubF, MulF, DivF, PowF, MaxF, MinF, RemF,
    AddI, SubI, MulI, DivI, DivU, MaxI, MaxU, MinI, MinU, RemI, RemU,
    And, Or, Xor, Shl, ShrI, ShrU,
    EqF, NeF, LtF, LeF, GtF, GeF,
    EqI, NeI, LtI, LeI, GtI, GeI,
    LtU, LeU, GtU, GeU,
    Select,
    MulAdd, MulSub, SubMul, MulMul, AddAdd, AddThenMul, SubThenMul,
    FloatToI, FloatToU, IToFloat, UToFloat, FloatToBool, IntToBool,
    RoundF16, RoundBf16, F16BitsAsBf16, Bf16BitsAsF16,
    Threefry,
}

impl Pointwise {
    /// How many operands it has.
    #[rustfmt::skip]
    pub(crate) fn operands(self) -> usize {
        use Pointwise::*;
        match self {
            Copy | NegF | Exp | Log | Sin | Cos | Tanh | Erf | Sqrt | Rsqrt | AbsF | SignF | Floor | IsFinite | NegI
            | AbsI | SignI | SignU | Not | NotBool | FloatToI | FloatToU | IToFloat | UToFloat | FloatToBool
            | IntToBool | RoundF16 | RoundBf16 | F16BitsAsBf16 | Bf16BitsAsF16 => 1,
            AddF | SubF | MulF | DivF | PowF | MaxF | MinF | RemF | AddI | SubI | MulI | DivI | DivU | MaxI | MaxU
            | MinI | MinU | RemI | RemU | And | Or | Xor | Shl | ShrI | ShrU | EqF | NeF | LtF | LeF | GtF | GeF | EqI
            | NeI | LtI | LeI | GtI | GeI | LtU | LeU | GtU | GeU => 2,
            Select | MulAdd | MulSub | SubMul | MulMul | AddAdd | AddThenMul | SubThenMul | Threefry => 3,
        }
    }
}

/// Lanes of a sum: element `i` of a stretch is added to lane `i % LANES`, then the lanes are added as a tree. The
/// order is part of the results, so it is the same for every instruction set.
const LANES: usize = 64;

/// The operations of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Ops {
    /// `d[i] = op(a[i], b[i], c[i])`. `d` overlaps no operand.
    pub(crate) pointwise: unsafe fn(Pointwise, usize, *mut u32, Src, Src, Src),
    /// Sum of a stretch of floats.
    pub(crate) sum: unsafe fn(*const f32, usize) -> f32,
    /// Greatest of a stretch of floats; minus infinity if empty.
    pub(crate) max: unsafe fn(*const f32, usize) -> f32,
    /// `acc[i] += a[i]`
    pub(crate) accumulate: unsafe fn(usize, *mut f32, Src),
    /// `acc[i] = max(acc[i], a[i])`
    pub(crate) accumulate_max: unsafe fn(usize, *mut f32, Src),
    /// Name of the instruction set.
    pub(crate) name: &'static str,
}

/// The best operations of this processor.
pub(crate) fn ops() -> &'static Ops {
    static BEST: OnceLock<Ops> = OnceLock::new();
    BEST.get_or_init(|| *all().last().expect("the baseline always runs"))
}

macro_rules! instruction_sets {
    ($($module:ident $name:literal $features:literal;)*) => {
        $(mod $module {
            use super::*;
            #[target_feature(enable = $features)]
            pub(super) unsafe fn pointwise(op: Pointwise, n: usize, d: *mut u32, a: Src, b: Src, c: Src) {
                unsafe { super::pointwise::<true>(op, n, d, a, b, c) }
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn sum(x: *const f32, n: usize) -> f32 {
                unsafe { super::sum(x, n) }
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn max(x: *const f32, n: usize) -> f32 {
                unsafe { super::max(x, n) }
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn accumulate(n: usize, acc: *mut f32, a: Src) {
                unsafe { super::accumulate(n, acc, a) }
            }
            #[target_feature(enable = $features)]
            pub(super) unsafe fn accumulate_max(n: usize, acc: *mut f32, a: Src) {
                unsafe { super::accumulate_max(n, acc, a) }
            }
            pub(super) const OPS: Ops = Ops { pointwise, sum, max, accumulate, accumulate_max, name: $name };
        })*
    };
}

#[cfg(target_arch = "x86_64")]
instruction_sets! {
    avx2 "avx2" "avx,avx2,fma,f16c";
    avx512 "avx512" "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl";
}

/// Whether all processors of this kind have fused multiply-adds.
const FUSED: bool = cfg!(target_arch = "aarch64");

/// The operations of every instruction set this processor has, from the plainest to the best.
pub(crate) fn all() -> Vec<Ops> {
    let base = Ops { pointwise: pointwise::<FUSED>, sum, max, accumulate, accumulate_max, name: "baseline" };
    let mut found = vec![base];
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx2 {
            found.push(avx2::OPS);
        }
        if avx2 && avx512 {
            found.push(avx512::OPS);
        }
    }
    found
}

// SAFETY of the loops below: the caller gives `n` words at each pointer whose step is 1, one word where it is 0,
// and a destination that overlaps no operand.

#[inline(always)]
unsafe fn map1<A: Copy, D: Copy>(n: usize, d: *mut u32, a: Src, f: impl Fn(A) -> D) {
    let d = unsafe { std::slice::from_raw_parts_mut(d as *mut D, n) };
    let a_ptr = a.ptr as *const A;
    if a.step == 0 {
        d.fill(f(unsafe { *a_ptr }));
    } else {
        let a = unsafe { std::slice::from_raw_parts(a_ptr, n) };
        for i in 0..n {
            d[i] = f(a[i]);
        }
    }
}

#[inline(always)]
unsafe fn map2<A: Copy, B: Copy, D: Copy>(n: usize, d: *mut u32, a: Src, b: Src, f: impl Fn(A, B) -> D) {
    let d = unsafe { std::slice::from_raw_parts_mut(d as *mut D, n) };
    let (a_ptr, b_ptr) = (a.ptr as *const A, b.ptr as *const B);
    match (a.step, b.step) {
        (0, 0) => d.fill(f(unsafe { *a_ptr }, unsafe { *b_ptr })),
        (0, _) => {
            let (x, b) = unsafe { (*a_ptr, std::slice::from_raw_parts(b_ptr, n)) };
            for i in 0..n {
                d[i] = f(x, b[i]);
            }
        }
        (_, 0) => {
            let (a, y) = unsafe { (std::slice::from_raw_parts(a_ptr, n), *b_ptr) };
            for i in 0..n {
                d[i] = f(a[i], y);
            }
        }
        _ => {
            let (a, b) = unsafe { (std::slice::from_raw_parts(a_ptr, n), std::slice::from_raw_parts(b_ptr, n)) };
            for i in 0..n {
                d[i] = f(a[i], b[i]);
            }
        }
    }
}

/// Which operands are one word for all elements decides which loop it is: each is simple enough to vectorise.
#[inline(always)]
unsafe fn map3<A: Copy, D: Copy>(n: usize, d: *mut u32, a: Src, b: Src, c: Src, f: impl Fn(A, A, A) -> D) {
    let d = unsafe { std::slice::from_raw_parts_mut(d as *mut D, n) };
    let (x, y, z) = (a.ptr as *const A, b.ptr as *const A, c.ptr as *const A);
    let many = |p: *const A| unsafe { std::slice::from_raw_parts(p, n) };
    macro_rules! all {
        ($x:expr, $y:expr, $z:expr) => {
            for i in 0..n {
                d[i] = f($x(i), $y(i), $z(i));
            }
        };
    }
    macro_rules! third {
        ($x:expr, $y:expr) => {
            if c.step == 0 {
                let one = unsafe { *z };
                all!($x, $y, |_: usize| one)
            } else {
                let z = many(z);
                all!($x, $y, |i: usize| z[i])
            }
        };
    }
    macro_rules! second {
        ($x:expr) => {
            if b.step == 0 {
                let one = unsafe { *y };
                third!($x, |_: usize| one)
            } else {
                let y = many(y);
                third!($x, |i: usize| y[i])
            }
        };
    }
    if a.step == 0 {
        let one = unsafe { *x };
        second!(|_: usize| one)
    } else {
        let x = many(x);
        second!(|i: usize| x[i])
    }
}

#[inline(always)]
unsafe fn trigonometric(n: usize, d: *mut u32, a: Src, fast: impl Fn(f32) -> f32, far: fn(f64) -> f64) {
    unsafe { map1(n, d, a, fast) };
    for i in 0..n {
        let x = unsafe { *(a.ptr as *const f32).add(i * a.step) };
        if !math::reducible(x) {
            unsafe { *(d as *mut f32).add(i) = far(x as f64) as f32 };
        }
    }
}

#[inline(always)]
unsafe fn pointwise<const FUSED: bool>(op: Pointwise, n: usize, d: *mut u32, a: Src, b: Src, c: Src) {
    use Pointwise::*;
    unsafe {
        match op {
            Copy => map1(n, d, a, |x: u32| x),
            NegF => map1(n, d, a, |x: f32| -x),
            Exp => map1(n, d, a, math::exp::<FUSED>),
            Log => map1(n, d, a, math::log::<FUSED>),
            Sin => trigonometric(n, d, a, math::sin, f64::sin),
            Cos => trigonometric(n, d, a, math::cos, f64::cos),
            Tanh => map1(n, d, a, math::tanh::<FUSED>),
            Erf => map1(n, d, a, math::erf::<FUSED>),
            Sqrt => map1(n, d, a, f32::sqrt),
            Rsqrt => map1(n, d, a, |x: f32| 1.0 / x.sqrt()),
            AbsF => map1(n, d, a, f32::abs),
            SignF => map1(n, d, a, math::sign),
            Floor => map1(n, d, a, f32::floor),
            IsFinite => map1(n, d, a, |x: u32| u32::from(x & 0x7f80_0000 != 0x7f80_0000)),
            NegI => map1(n, d, a, |x: i32| x.wrapping_neg()),
            AbsI => map1(n, d, a, |x: i32| x.wrapping_abs()),
            SignI => map1(n, d, a, |x: i32| i32::from(x > 0) - i32::from(x < 0)),
            SignU => map1(n, d, a, |x: u32| u32::from(x > 0)),
            Not => map1(n, d, a, |x: u32| !x),
            NotBool => map1(n, d, a, |x: u32| u32::from(x == 0)),
            AddF => map2(n, d, a, b, |x: f32, y: f32| x + y),
            SubF => map2(n, d, a, b, |x: f32, y: f32| x - y),
            MulF => map2(n, d, a, b, |x: f32, y: f32| x * y),
            DivF => map2(n, d, a, b, |x: f32, y: f32| x / y),
            PowF => map2(n, d, a, b, |x: f32, y: f32| x.powf(y)),
            MaxF => map2(n, d, a, b, |x: f32, y: f32| if x > y { x } else { y }),
            MinF => map2(n, d, a, b, |x: f32, y: f32| if x < y { x } else { y }),
            RemF => map2(n, d, a, b, |x: f32, y: f32| x % y),
            AddI => map2(n, d, a, b, |x: u32, y: u32| x.wrapping_add(y)),
            SubI => map2(n, d, a, b, |x: u32, y: u32| x.wrapping_sub(y)),
            MulI => map2(n, d, a, b, |x: u32, y: u32| x.wrapping_mul(y)),
            DivI => map2(n, d, a, b, |x: i32, y: i32| if y == 0 { 0 } else { x.wrapping_div(y) }),
            DivU => map2(n, d, a, b, |x: u32, y: u32| x.checked_div(y).unwrap_or(0)),
            MaxI => map2(n, d, a, b, |x: i32, y: i32| x.max(y)),
            MaxU => map2(n, d, a, b, |x: u32, y: u32| x.max(y)),
            MinI => map2(n, d, a, b, |x: i32, y: i32| x.min(y)),
            MinU => map2(n, d, a, b, |x: u32, y: u32| x.min(y)),
            RemI => map2(n, d, a, b, |x: i32, y: i32| if y == 0 { 0 } else { x.wrapping_rem(y) }),
            RemU => map2(n, d, a, b, |x: u32, y: u32| x.checked_rem(y).unwrap_or(0)),
            And => map2(n, d, a, b, |x: u32, y: u32| x & y),
            Or => map2(n, d, a, b, |x: u32, y: u32| x | y),
            Xor => map2(n, d, a, b, |x: u32, y: u32| x ^ y),
            Shl => map2(n, d, a, b, |x: u32, y: u32| x.wrapping_shl(y)),
            ShrI => map2(n, d, a, b, |x: i32, y: u32| x.wrapping_shr(y)),
            ShrU => map2(n, d, a, b, |x: u32, y: u32| x.wrapping_shr(y)),
            EqF => map2(n, d, a, b, |x: f32, y: f32| u32::from(x == y)),
            NeF => map2(n, d, a, b, |x: f32, y: f32| u32::from(x != y)),
            LtF => map2(n, d, a, b, |x: f32, y: f32| u32::from(x < y)),
            LeF => map2(n, d, a, b, |x: f32, y: f32| u32::from(x <= y)),
            GtF => map2(n, d, a, b, |x: f32, y: f32| u32::from(x > y)),
            GeF => map2(n, d, a, b, |x: f32, y: f32| u32::from(x >= y)),
            EqI => map2(n, d, a, b, |x: u32, y: u32| u32::from(x == y)),
            NeI => map2(n, d, a, b, |x: u32, y: u32| u32::from(x != y)),
            LtI => map2(n, d, a, b, |x: i32, y: i32| u32::from(x < y)),
            LeI => map2(n, d, a, b, |x: i32, y: i32| u32::from(x <= y)),
            GtI => map2(n, d, a, b, |x: i32, y: i32| u32::from(x > y)),
            GeI => map2(n, d, a, b, |x: i32, y: i32| u32::from(x >= y)),
            LtU => map2(n, d, a, b, |x: u32, y: u32| u32::from(x < y)),
            LeU => map2(n, d, a, b, |x: u32, y: u32| u32::from(x <= y)),
            GtU => map2(n, d, a, b, |x: u32, y: u32| u32::from(x > y)),
            GeU => map2(n, d, a, b, |x: u32, y: u32| u32::from(x >= y)),
            Select => map3(n, d, a, b, c, |c: u32, x: u32, y: u32| if c != 0 { x } else { y }),
            MulAdd => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| math::mul_add::<FUSED>(x, y, z)),
            MulSub => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| math::mul_add::<FUSED>(x, y, -z)),
            SubMul => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| math::mul_add::<FUSED>(-x, y, z)),
            MulMul => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| x * y * z),
            AddAdd => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| x + y + z),
            AddThenMul => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| (x + y) * z),
            SubThenMul => map3(n, d, a, b, c, |x: f32, y: f32, z: f32| (x - y) * z),
            FloatToI => map1(n, d, a, |x: f32| x as i32),
            FloatToU => map1(n, d, a, |x: f32| x as u32),
            IToFloat => map1(n, d, a, |x: i32| x as f32),
            UToFloat => map1(n, d, a, |x: u32| x as f32),
            FloatToBool => map1(n, d, a, |x: f32| u32::from(x != 0.0)),
            IntToBool => map1(n, d, a, |x: u32| u32::from(x != 0)),
            RoundF16 => map1(n, d, a, round_f16),
            RoundBf16 => map1(n, d, a, round_bf16),
            F16BitsAsBf16 => map1(n, d, a, |x: f32| bf16::from_bits(f16::from_f32(x).to_bits()).to_f32()),
            Bf16BitsAsF16 => map1(n, d, a, |x: f32| f16::from_bits(bf16::from_f32(x).to_bits()).to_f32()),
            Threefry => map3(n, d, a, b, c, math::threefry),
        }
    }
}

/// The nearest `f16`, as `f32`; ties to even. Without branches, so that loops over it are vectorised.
#[inline(always)]
pub(crate) fn round_f16(x: f32) -> f32 {
    let (sign, a) = (x.to_bits() & 0x8000_0000, x.to_bits() & 0x7fff_ffff);
    let normal = (a.wrapping_add(0xfff + ((a >> 13) & 1))) & !0x1fff;
    // Below the least normal value steps are 2^-24, the last place of numbers from one half to one.
    let tiny = ((f32::from_bits(a) + 0.5) - 0.5).to_bits();
    let finite = if a < 0x3880_0000 { tiny } else { normal };
    let special = if a > 0x7f80_0000 { a } else { 0x7f80_0000 };
    f32::from_bits(sign | if a >= 0x477f_f000 { special } else { finite })
}

/// The nearest `bf16`, as `f32`; ties to even.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let quiet = (bits | 0x0040_0000) & 0xffff_0000;
    f32::from_bits(if x.is_nan() { quiet } else { rounded })
}

#[inline(always)]
unsafe fn sum(x: *const f32, n: usize) -> f32 {
    let x = unsafe { std::slice::from_raw_parts(x, n) };
    let mut lanes = [0f32; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += block[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[inline(always)]
unsafe fn max(x: *const f32, n: usize) -> f32 {
    let x = unsafe { std::slice::from_raw_parts(x, n) };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
    }
    lanes[0]
}

#[inline(always)]
unsafe fn accumulate(n: usize, acc: *mut f32, a: Src) {
    let acc = unsafe { std::slice::from_raw_parts_mut(acc, n) };
    if a.step == 0 {
        let x = unsafe { *(a.ptr as *const f32) };
        acc.iter_mut().for_each(|s| *s += x);
    } else {
        let a = unsafe { std::slice::from_raw_parts(a.ptr as *const f32, n) };
        for i in 0..n {
            acc[i] += a[i];
        }
    }
}

#[inline(always)]
unsafe fn accumulate_max(n: usize, acc: *mut f32, a: Src) {
    let acc = unsafe { std::slice::from_raw_parts_mut(acc, n) };
    for i in 0..n {
        let x = unsafe { *(a.ptr as *const f32).add(i * a.step) };
        acc[i] = if x > acc[i] { x } else { acc[i] };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_f16_is_that_of_the_crate() {
        // Every value, the middle to its neighbour, and what lies next to either.
        for code in 0..=u16::MAX {
            let (value, next) = (f16::from_bits(code).to_f32(), f16::from_bits(code.wrapping_add(1)).to_f32());
            let middle = (value + next) / 2.0;
            let near = [value, value.next_up(), value.next_down(), middle, middle.next_up(), middle.next_down()];
            // 65520 is the middle between the largest value and what would be the next.
            for x in near.into_iter().chain([value * 3e5, 65520.0, 65519.996]) {
                let (got, want) = (round_f16(x), f16::from_f32(x).to_f32());
                assert!(
                    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                    "{x:e}: {got:e}, not {want:e}"
                );
            }
        }
    }
}
