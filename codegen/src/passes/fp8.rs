//! The 8-bit floats of the Open Compute Project, emulated in `f32` arithmetic: a value is rounded to the nearest of a
//! format's values, ties to even, and what is too large becomes the largest.
//!
//! Only integer ops on bits, products with powers of two, `floor` and differences of neighbours are used: each is
//! exact, so the result does not depend on a driver's division or on its liberties with sums.

use dnx_ir::{BinaryOp, Builder, CmpOp, DType, Op, ReduceKind, Result, Type, UnaryOp, ValueId};

/// An 8-bit float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bits of exponent, 3 of mantissa: up to 448, no infinities.
    E4m3,
    /// 5 bits of exponent, 2 of mantissa: up to 57344.
    E5m2,
}

impl Format {
    /// Bits of mantissa.
    const fn mantissa(self) -> u32 {
        match self {
            Format::E4m3 => 3,
            Format::E5m2 => 2,
        }
    }

    /// Exponent of the smallest normal value.
    const fn min_exponent(self) -> i32 {
        match self {
            Format::E4m3 => -6,
            Format::E5m2 => -14,
        }
    }

    /// The largest finite value.
    pub const fn max(self) -> f64 {
        match self {
            Format::E4m3 => 448.0,
            Format::E5m2 => 57344.0,
        }
    }
}

/// Smaller tensors are scaled as if this were their largest element, so that scales stay far from the ends of `f32`.
const LEAST: f64 = 1.0 / (1u128 << 100) as f64;
const EXPONENT: u32 = 0x7f80_0000;
const SIGN: u32 = 0x8000_0000;

/// An `f32` tensor as values of the format (in `f32`) and the scale `f32[]` by which they are multiplied to get it
/// back. The scale is a power of two, the least that brings the largest element into the format's range.
pub fn quantize(b: &mut Builder, x: ValueId, format: Format) -> Result<(ValueId, ValueId)> {
    let mut largest = b.unary(UnaryOp::Abs, x)?;
    let dims = b.dims(x).to_vec();
    if !dims.is_empty() {
        let all = (0..dims.len()).collect();
        largest = b.emit(Op::Reduce { kind: ReduceKind::Max, dims: all }, &[largest])?;
    }
    let least = b.scalar(DType::F32, LEAST);
    let largest = b.binary(BinaryOp::Max, largest, least)?;
    let limit = b.scalar(DType::F32, format.max());
    let ratio = b.div(limit, largest)?;
    // The mantissa dropped: a power of two.
    let ratio = b.emit(Op::Bitcast(DType::U32), &[ratio])?;
    let exponent = b.scalar(DType::U32, EXPONENT as f64);
    let power = b.binary(BinaryOp::And, ratio, exponent)?;
    // 2^e has the bits (127 + e) << 23, so those of 2^-e are 254 << 23 less that.
    let twice = b.scalar(DType::U32, (254u32 << 23) as f64);
    let inverse = b.sub(twice, power)?;
    let [power, inverse] = [power, inverse].map(|bits| b.emit(Op::Bitcast(DType::F32), &[bits]));
    let (power, inverse) = (power?, inverse?);
    let power = b.broadcast(power, &dims, &[])?;
    let scaled = b.mul(x, power)?;
    Ok((round(b, scaled, format)?, inverse))
}

/// An `f32` tensor with each element rounded to the nearest value of the format, ties to even. Elements beyond the
/// largest value, infinities included, become it; NaN stays.
pub fn round(b: &mut Builder, x: ValueId, format: Format) -> Result<ValueId> {
    let like = b.ty(x).clone();
    let word = Type { dtype: DType::U32, ..like.clone() };
    let bits = b.emit(Op::Bitcast(DType::U32), &[x])?;
    let int = |b: &mut Builder, value: u32| b.full(&word, value as f64);
    let float = |b: &mut Builder, value: f64| b.full(&like, value);

    let magnitude_bits = int(b, !SIGN)?;
    let magnitude = b.binary(BinaryOp::And, bits, magnitude_bits)?;
    let infinity = int(b, EXPONENT)?;
    let is_nan = b.compare(CmpOp::Gt, magnitude, infinity)?;
    let size = b.emit(Op::Bitcast(DType::F32), &[magnitude])?;
    let limit = float(b, format.max())?;
    let size = b.binary(BinaryOp::Min, size, limit)?;

    // The distance between neighbours at this size is a power of two; its exponent with f32's bias.
    let size_bits = b.emit(Op::Bitcast(DType::U32), &[size])?;
    let shift = int(b, 23)?;
    let exponent = b.binary(BinaryOp::Shr, size_bits, shift)?;
    let least = int(b, (format.min_exponent() + 127) as u32)?;
    let exponent = b.binary(BinaryOp::Max, exponent, least)?;
    let mantissa = int(b, format.mantissa())?;
    let step = b.sub(exponent, mantissa)?;
    let twice_bias = int(b, 254)?;
    let per_step = b.sub(twice_bias, step)?;
    let power = |b: &mut Builder, exponent: ValueId| {
        let bits = b.binary(BinaryOp::Shl, exponent, shift)?;
        b.emit(Op::Bitcast(DType::F32), &[bits])
    };
    let (step, per_step) = (power(b, step)?, power(b, per_step)?);

    // Steps below, and what is left of one; both exact.
    let steps = b.mul(size, per_step)?;
    let below = b.unary(UnaryOp::Floor, steps)?;
    let left = b.sub(steps, below)?;
    let (half, one, zero) = (float(b, 0.5)?, float(b, 1.0)?, float(b, 0.0)?);
    let halved = b.mul(below, half)?;
    let pairs = b.unary(UnaryOp::Floor, halved)?;
    let is_odd = b.compare(CmpOp::Gt, halved, pairs)?;
    let more = b.compare(CmpOp::Gt, left, half)?;
    let tie = b.compare(CmpOp::Eq, left, half)?;
    let tie_up = b.binary(BinaryOp::And, tie, is_odd)?;
    let up = b.binary(BinaryOp::Or, more, tie_up)?;
    let up = b.select(up, one, zero)?;
    let steps = b.add(below, up)?;
    let size = b.mul(steps, step)?;

    let size_bits = b.emit(Op::Bitcast(DType::U32), &[size])?;
    let sign_bit = int(b, SIGN)?;
    let sign = b.binary(BinaryOp::And, bits, sign_bit)?;
    let signed = b.binary(BinaryOp::Or, size_bits, sign)?;
    let signed = b.emit(Op::Bitcast(DType::F32), &[signed])?;
    b.select(is_nan, x, signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::interp::{Precision, eval};
    use dnx_ir::{Array, Func, threefry};

    /// The value of a code, by the layout's definition; `None` for NaN, infinities included as such.
    fn decode(format: Format, code: u8) -> Option<f64> {
        let (exponent_bits, bias) = match format {
            Format::E4m3 => (4, 7),
            Format::E5m2 => (5, 15),
        };
        let mantissa_bits = 7 - exponent_bits;
        let exponent = (code as i32 >> mantissa_bits) & ((1 << exponent_bits) - 1);
        let mantissa = code as i32 & ((1 << mantissa_bits) - 1);
        let last = (1 << exponent_bits) - 1;
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let fraction = mantissa as f64 / (1 << mantissa_bits) as f64;
        match format {
            Format::E4m3 if exponent == last && mantissa == 7 => return None,
            Format::E5m2 if exponent == last && mantissa == 0 => return Some(sign * f64::INFINITY),
            Format::E5m2 if exponent == last => return None,
            _ => {}
        }
        Some(
            sign * if exponent == 0 {
                fraction * 2f64.powi(1 - bias)
            } else {
                (1.0 + fraction) * 2f64.powi(exponent - bias)
            },
        )
    }

    /// All non-negative finite values in the order of their codes, which is that of size.
    fn table(format: Format) -> Vec<f64> {
        (0..128u8).filter_map(|code| decode(format, code)).filter(|v| v.is_finite()).collect()
    }

    fn rounder(format: Format, n: usize) -> Func {
        let mut b = Builder::new("round");
        let x = b.param("x", Type::f32([n]));
        let y = round(&mut b, x, format).unwrap();
        b.finish(&[y])
    }

    fn rounded(format: Format, values: &[f32]) -> Vec<f32> {
        eval(&rounder(format, values.len()), &[Array::f32([values.len()], values)], Precision::F32).unwrap()[0]
            .to_f32_vec()
    }

    /// The nearest value, ties to the even code, by search.
    fn nearest(table: &[f64], x: f64) -> f64 {
        let distance = |code: usize| (table[code] - x.abs()).abs();
        let best = (0..table.len()).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
        table[best.unwrap()].copysign(x)
    }

    #[test]
    fn every_code_is_its_own_rounding() {
        for (format, largest, least, finite) in
            [(Format::E4m3, 448.0, 2f64.powi(-9), 127), (Format::E5m2, 57344.0, 2f64.powi(-16), 124)]
        {
            let table = table(format);
            assert_eq!((table.len(), table[1], *table.last().unwrap()), (finite, least, largest));
            assert_eq!(format.max(), largest);
            let codes: Vec<f32> = (0..=255).filter_map(|c| decode(format, c)).map(|v| v as f32).collect();
            for (got, want) in rounded(format, &codes).iter().zip(&codes) {
                let want = want.clamp(-largest as f32, largest as f32);
                assert_eq!(got.to_bits(), want.to_bits(), "{format:?} {want}");
            }
        }
    }

    #[test]
    fn between_codes_the_nearest_wins_and_ties_go_to_even() {
        for format in [Format::E4m3, Format::E5m2] {
            let table = table(format);
            let mut values = vec![];
            for pair in table.windows(2) {
                let middle = ((pair[0] + pair[1]) / 2.0) as f32;
                values.extend([middle, middle.next_down(), middle.next_up(), -middle, -middle.next_up()]);
            }
            let key = threefry::key(5);
            // Sizes from far below the least value to far above the largest.
            values.extend((0..4000).map(|i| {
                let (bits, more) = (threefry::bits(key, 2 * i), threefry::bits(key, 2 * i + 1));
                let exponent = more % 44;
                f32::from_bits((bits & 0x807f_ffff) | ((100 + exponent) << 23))
            }));
            for (got, x) in rounded(format, &values).iter().zip(&values) {
                let want = nearest(&table, *x as f64);
                assert_eq!(got.to_bits(), (want as f32).to_bits(), "{format:?}: {x} gave {got}, not {want}");
            }
        }
    }

    #[test]
    fn what_is_too_large_saturates_and_nan_stays() {
        for format in [Format::E4m3, Format::E5m2] {
            let max = format.max() as f32;
            let got = rounded(
                format,
                &[max * 1.5, 1e30, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 1e-44],
            );
            assert_eq!(got[..5], [max, max, max, max, -max]);
            assert!(got[5].is_nan());
            assert_eq!([got[6], got[7], got[8]].map(f32::to_bits), [0, SIGN, 0]);
        }
    }

    #[test]
    fn a_scale_uses_the_whole_range_and_is_exact() {
        for format in [Format::E4m3, Format::E5m2] {
            for largest in [0.0f32, 1e-38, 3e-7, 0.11, 1.0, 447.0, 448.0, 60000.0, 3e20] {
                let mut b = Builder::new("quantize");
                let x = b.param("x", Type::f32([2, 3]));
                let (q, s) = quantize(&mut b, x, format).unwrap();
                let f = b.finish(&[q, s]);
                let data = [largest, -largest / 3.0, largest / 7.0, 0.0, largest * 0.9, -largest * 0.01];
                let out = eval(&f, &[Array::f32([2, 3], &data)], Precision::F32).unwrap();
                let (q, s) = (out[0].to_f32_vec(), out[1].to_f32_vec()[0]);
                assert_eq!(s.to_bits() & 0x7f_ffff, 0, "a power of two");
                if largest > 1e-30 {
                    let used = q[0] as f64 / format.max();
                    assert!((0.5..=1.0).contains(&used), "{format:?} {largest}: {used}");
                }
                for (q, x) in q.iter().zip(data) {
                    // Half a step of the mantissa, or of the smallest values.
                    let bound = (x.abs() as f64 / (2 << format.mantissa()) as f64).max(largest as f64 * 2f64.powi(-15));
                    assert!((*q as f64 * s as f64 - x as f64).abs() <= bound.max(1e-30), "{format:?} {x}: {q} * {s}");
                }
            }
        }
    }
}
