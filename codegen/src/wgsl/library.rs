//! The functions shaders may call: what WGSL has no builtin for, or where builtins differ between drivers by more
//! than a few units in the last place. A shader carries only those it uses.
//!
//! Polynomials are Chebyshev fits made for this file; the stated errors are against exact functions.

use std::collections::BTreeSet;

/// A WGSL function with the functions it calls.
struct Function {
    name: &'static str,
    calls: &'static [&'static str],
    text: &'static str,
}

/// Callees before callers.
const FUNCTIONS: &[Function] = &[
    Function {
        name: "is_finite",
        calls: &[],
        text: "\
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}
",
    },
    Function {
        name: "div_i32",
        calls: &[],
        text: "\
// Wrapping division; by zero gives zero.
fn div_i32(a: i32, b: i32) -> i32 {
    if (b == 0i) { return 0i; }
    if (b == -1i) { return 0i - a; }
    return a / b;
}
",
    },
    Function {
        name: "div_u32",
        calls: &[],
        text: "\
// Division; by zero gives zero.
fn div_u32(a: u32, b: u32) -> u32 {
    if (b == 0u) { return 0u; }
    return a / b;
}
",
    },
    Function {
        name: "rem_i32",
        calls: &[],
        text: "\
// Remainder with the sign of the dividend; by zero gives zero.
fn rem_i32(a: i32, b: i32) -> i32 {
    if (b == 0i || b == -1i) { return 0i; }
    return a - (a / b) * b;
}
",
    },
    Function {
        name: "rem_u32",
        calls: &[],
        text: "\
// Remainder; by zero gives zero.
fn rem_u32(a: u32, b: u32) -> u32 {
    if (b == 0u) { return 0u; }
    return a % b;
}
",
    },
    Function {
        name: "rem_f32",
        calls: &["is_finite"],
        text: "\
// Remainder with the sign of the dividend. The quotient may round across an integer: one correction each way.
fn rem_f32(a: f32, b: f32) -> f32 {
    let n = abs(b);
    if (bitcast<u32>(n) == 0x7f800000u && is_finite(a)) { return a; }
    var r = abs(a) - n * trunc(abs(a) / n);
    if (r < 0.0f) { r = r + n; }
    if (r >= n) { r = r - n; }
    return select(r, -r, a < 0.0f);
}
",
    },
    Function {
        name: "floor_div",
        calls: &[],
        text: "\
// Quotient rounded down, n > 0.
fn floor_div(a: i32, n: i32) -> u32 {
    let q = a / n;
    return u32(select(q, q - 1i, q * n > a));
}
",
    },
    Function {
        name: "floor_mod",
        calls: &[],
        text: "\
// Remainder in [0, n), n > 0.
fn floor_mod(a: i32, n: i32) -> u32 {
    let r = a - (a / n) * n;
    return u32(select(r, r + n, r < 0i));
}
",
    },
    Function {
        name: "is_nan",
        calls: &[],
        text: "\
// By the bits: drivers may assume that comparisons see no NaN.
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}
",
    },
    Function {
        name: "to_i32",
        calls: &["is_nan"],
        text: "\
// Toward zero, saturating; NaN gives zero.
fn to_i32(x: f32) -> i32 {
    if (is_nan(x)) { return 0i; }
    if (x >= 2147483648.0f) { return 2147483647i; }
    if (x <= -2147483648.0f) { return bitcast<i32>(0x80000000u); }
    return i32(x);
}
",
    },
    Function {
        name: "to_u32",
        calls: &["is_nan"],
        text: "\
// Toward zero, saturating; NaN gives zero.
fn to_u32(x: f32) -> u32 {
    if (is_nan(x) || x <= 0.0f) { return 0u; }
    if (x >= 4294967296.0f) { return 0xffffffffu; }
    return u32(x);
}
",
    },
    Function {
        name: "bf16_round",
        calls: &["is_nan"],
        text: "\
// The nearest bfloat16, ties to even, as f32.
fn bf16_round(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let b = bitcast<u32>(x);
    return bitcast<f32>((b + 0x7fffu + ((b >> 16u) & 1u)) & 0xffff0000u);
}
",
    },
    Function {
        name: "f16_bits",
        calls: &[],
        text: "\
// The bits of the nearest binary16, ties to even.
fn f16_bits(x: f32) -> u32 {
    let b = bitcast<u32>(x);
    let sign = (b >> 16u) & 0x8000u;
    let a = b & 0x7fffffffu;
    if (a > 0x7f800000u) { return sign | 0x7e00u; }
    if (a >= 0x477ff000u) { return sign | 0x7c00u; }
    if (a >= 0x38800000u) {
        return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
    }
    if (a < 0x33000000u) { return sign; }
    // Below the least normal number: shift the significand, and round on what falls off.
    let shift = 126u - (a >> 23u);
    let significand = (a & 0x7fffffu) | 0x800000u;
    let kept = significand >> shift;
    let rest = significand & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let up = rest > half || (rest == half && (kept & 1u) == 1u);
    return sign | (kept + select(0u, 1u, up));
}
",
    },
    Function {
        name: "f16_value",
        calls: &[],
        text: "\
// The value of binary16 bits.
fn f16_value(h: u32) -> f32 {
    let sign = (h & 0x8000u) << 16u;
    let a = h & 0x7fffu;
    if (a >= 0x7c00u) { return bitcast<f32>(sign | 0x7f800000u | ((a & 0x3ffu) << 13u)); }
    if (a >= 0x400u) { return bitcast<f32>(sign | ((a << 13u) + 0x38000000u)); }
    let tiny = f32(a) * 5.9604645e-8f;
    return select(tiny, -tiny, sign != 0u);
}
",
    },
    Function {
        name: "f16_round",
        calls: &["f16_bits", "f16_value"],
        text: "\
// The nearest binary16, ties to even, as f32.
fn f16_round(x: f32) -> f32 {
    return f16_value(f16_bits(x));
}
",
    },
    Function {
        name: "log_f32",
        calls: &["is_nan"],
        text: "\
// Natural logarithm, relative error 2e-7 also near 1 (drivers' own: 4e-5 there).
fn log_f32(x: f32) -> f32 {
    if (is_nan(x) || x < 0.0f) { return bitcast<f32>(bitcast<u32>(x) | 0x7fc00000u); }
    if (bitcast<u32>(x) == 0x7f800000u) { return x; }
    let tiny = x < 1.1754944e-38f;
    let y = select(x, x * 8388608.0f, tiny);
    if (y == 0.0f) { return bitcast<f32>((bitcast<u32>(y) & 0u) | 0xff800000u); }
    // y = m * 2^e with m in [sqrt(1/2), sqrt(2)).
    let b = bitcast<u32>(y) - 0x3f3504f3u;
    let e = (bitcast<i32>(b) >> 23u) - select(0i, 23i, tiny);
    let f = bitcast<f32>((b & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    var p = 0.06971612f;
    p = p * f - 0.11479734f;
    p = p * f + 0.1168542f;
    p = p * f - 0.12425687f;
    p = p * f + 0.14249058f;
    p = p * f - 0.16667803f;
    p = p * f + 0.20000716f;
    p = p * f - 0.24999997f;
    p = p * f + 0.3333333f;
    let n = f32(e);
    let z = f * f;
    // ln 2 in two parts, so that n times the first is exact.
    return n * 0.693359375f + (f + (p * f * z - 0.5f * z - n * 2.12194442e-4f));
}
",
    },
    Function {
        name: "pow_f32",
        calls: &["log_f32"],
        text: "\
// A negative base needs an integer exponent.
fn pow_f32(x: f32, y: f32) -> f32 {
    if (y == 0.0f || x == 1.0f) { return 1.0f; }
    let odd = abs(y - 2.0f * floor(0.5f * y)) == 1.0f;
    let p = exp(y * log_f32(abs(x)));
    return select(p, -p, x < 0.0f && odd);
}
",
    },
    Function {
        name: "trig_f32",
        calls: &[],
        text: "\
// sin(x + quarter * pi / 2), absolute error 2e-7 up to |x| = 1e5: drivers promise far less.
fn trig_f32(x: f32, quarter: i32) -> f32 {
    // pi / 2 in three parts; n times the first two is exact.
    let n = floor(x * 0.63661975f + 0.5f);
    let r = ((x - n * 1.5703125f) - n * 4.837512969970703e-4f) - n * 7.549790126404332e-8f;
    let z = r * r;
    let s = r + r * z * (-0.16666664f + z * (0.008332748f - z * 0.00019587891f));
    let c = 1.0f - 0.5f * z + z * z * (0.041666664f + z * (-0.0013888302f + z * 2.4547948e-5f));
    let q = i32(n - 4.0f * floor(0.25f * n)) + quarter;
    let v = select(s, c, (q & 1i) == 1i);
    return select(v, -v, (q & 2i) == 2i);
}
",
    },
    Function {
        name: "tanh_f32",
        calls: &["is_nan"],
        text: "\
// Relative error 2e-7 also near 0; saturates without overflow.
fn tanh_f32(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let a = min(abs(x), 10.0f);
    let z = a * a;
    let near = a + a * z * (-0.33333328f + z * (0.13332719f + z * (-0.053843264f + z * (0.02096133f - z * 0.006045165f))));
    let far = 1.0f - 2.0f / (exp(2.0f * a) + 1.0f);
    let t = select(far, near, a < 0.6f);
    return select(t, -t, x < 0.0f);
}
",
    },
    Function {
        name: "erf_f32",
        calls: &["is_nan"],
        text: "\
// Absolute error 1e-7; relative error 1e-7 below 1.
fn erf_f32(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let a = min(abs(x), 4.0f);
    let z = a * a;
    var p = 7.875875e-5f;
    p = p * z - 0.00080168643f;
    p = p * z + 0.0051890872f;
    p = p * z - 0.026854211f;
    p = p * z + 0.11283594f;
    p = p * z - 0.37612626f;
    p = p * z + 1.1283791f;
    let near = a * p;
    // ln(erfc(a)) about 2.5.
    let u = a - 2.5f;
    var q = -1.3272362e-5f;
    q = q * u + 8.467069e-5f;
    q = q * u - 0.00042029354f;
    q = q * u + 0.002154903f;
    q = q * u - 0.010858344f;
    q = q * u - 0.943889f;
    q = q * u - 5.3526807f;
    q = q * u - 7.8068156f;
    let far = 1.0f - exp(q);
    let e = select(far, near, a < 1.0f);
    return select(e, -e, x < 0.0f);
}
",
    },
    Function {
        name: "threefry",
        calls: &[],
        text: "\
fn threefry_round(x: vec2<u32>, r: u32) -> vec2<u32> {
    let a = x.x + x.y;
    return vec2<u32>(a, ((x.y << r) | (x.y >> (32u - r))) ^ a);
}

// threefry2x32, 20 rounds, of the counter (0, counter) under the key (k0, k1); both output words xored.
fn threefry(k0: u32, k1: u32, counter: u32) -> u32 {
    let k2 = k0 ^ k1 ^ 0x1bd11bdau;
    var x = vec2<u32>(k0, counter + k1);
    x = threefry_round(threefry_round(threefry_round(threefry_round(x, 13u), 15u), 26u), 6u);
    x = x + vec2<u32>(k1, k2 + 1u);
    x = threefry_round(threefry_round(threefry_round(threefry_round(x, 17u), 29u), 16u), 24u);
    x = x + vec2<u32>(k2, k0 + 2u);
    x = threefry_round(threefry_round(threefry_round(threefry_round(x, 13u), 15u), 26u), 6u);
    x = x + vec2<u32>(k0, k1 + 3u);
    x = threefry_round(threefry_round(threefry_round(threefry_round(x, 17u), 29u), 16u), 24u);
    x = x + vec2<u32>(k1, k2 + 4u);
    x = threefry_round(threefry_round(threefry_round(threefry_round(x, 13u), 15u), 26u), 6u);
    x = x + vec2<u32>(k2, k0 + 5u);
    return x.x ^ x.y;
}
",
    },
];

/// The functions a shader has asked for.
#[derive(Default)]
pub(super) struct Library {
    used: BTreeSet<&'static str>,
}

impl Library {
    /// The name of a function, which the shader will contain.
    pub(super) fn call(&mut self, name: &'static str) -> &'static str {
        let Some(function) = FUNCTIONS.iter().find(|f| f.name == name) else {
            unreachable!("no library function {name}");
        };
        if self.used.insert(function.name) {
            for callee in function.calls {
                self.call(callee);
            }
        }
        name
    }

    /// The text of all functions asked for.
    pub(super) fn text(&self) -> String {
        let used = FUNCTIONS.iter().filter(|f| self.used.contains(f.name));
        used.map(|f| format!("{}\n", f.text)).collect()
    }
}
