//! Elements and arrays as text, exactly.

use crate::{Array, DType, Scalar};
use half::{bf16, f16};

/// Arrays of up to this many elements are printed as lists.
const LIST: usize = 32;

/// An array as it stands after `const`.
pub(super) fn print_array(array: &Array) -> String {
    if array.elems() == 0 {
        return "empty".into();
    }
    if array.dims().is_empty() {
        return print_scalar(array.get(0));
    }
    if let Some(value) = array.as_splat() {
        return format!("splat {}", print_scalar(value));
    }
    if array.elems() > LIST {
        return format!("base64 \"{}\"", encode_base64(array.bytes()));
    }
    let mut out = String::new();
    print_list(array, array.dims(), 0, &mut out);
    out
}

fn print_list(array: &Array, dims: &[usize], first: usize, out: &mut String) {
    let Some((&n, inner)) = dims.split_first() else {
        out.push_str(&print_scalar(array.get(first)));
        return;
    };
    let step: usize = inner.iter().product();
    out.push('[');
    for i in 0..n {
        if i > 0 {
            out.push_str(", ");
        }
        print_list(array, inner, first + i * step, out);
    }
    out.push(']');
}

/// An element: shortest form that parses back, hexadecimal bits where there is no number for it.
pub(super) fn print_scalar(s: Scalar) -> String {
    let bits = || format!("0x{:x}", s.bits());
    match s.dtype() {
        DType::Bool => match s.bits() {
            0 => "false".into(),
            1 => "true".into(),
            _ => bits(),
        },
        DType::I32 => (s.bits() as u32 as i32).to_string(),
        DType::U32 => (s.bits() as u32).to_string(),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => {
            let x = s.to_f64();
            if x.is_nan() {
                return bits();
            }
            if x.is_infinite() {
                return if x > 0.0 { "inf".into() } else { "-inf".into() };
            }
            match s.dtype() {
                DType::F32 => format!("{:?}", x as f32),
                DType::F64 => format!("{x:?}"),
                _ => shortest(s),
            }
        }
    }
}

/// The decimal with fewest digits that rounds to this 16-bit float.
fn shortest(s: Scalar) -> String {
    let exact = s.to_f64();
    for digits in 0..12 {
        let decimal: f64 = format!("{exact:.digits$e}").parse().expect("a printed float parses");
        if Scalar::from_f64(s.dtype(), decimal) == s {
            return format!("{decimal:?}");
        }
    }
    format!("{exact:?}")
}

/// The element of this dtype that `text` (a number, `true`, `false`, `inf`, `-inf`, or bits as `0x..`) denotes.
pub(super) fn parse_scalar(dtype: DType, text: &str) -> Result<Scalar, String> {
    let wrong = || format!("`{text}` is no {dtype}");
    if let Some(hex) = text.strip_prefix("0x") {
        let bits = u64::from_str_radix(hex, 16).map_err(|_| wrong())?;
        if dtype.size() < 8 && bits >> (8 * dtype.size()) != 0 {
            return Err(format!("`{text}` has more bits than {dtype}"));
        }
        return Ok(Scalar::from_bits(dtype, bits));
    }
    let bits = match dtype {
        DType::Bool => match text {
            "false" => 0,
            "true" => 1,
            _ => return Err(wrong()),
        },
        DType::I32 => text.parse::<i32>().map_err(|_| wrong())? as u32 as u64,
        DType::U32 => text.parse::<u32>().map_err(|_| wrong())? as u64,
        DType::F32 => text.parse::<f32>().map_err(|_| wrong())?.to_bits() as u64,
        DType::F64 => text.parse::<f64>().map_err(|_| wrong())?.to_bits(),
        DType::F16 => f16::from_f64(text.parse().map_err(|_| wrong())?).to_bits() as u64,
        DType::BF16 => bf16::from_f64(text.parse().map_err(|_| wrong())?).to_bits() as u64,
    };
    Ok(Scalar::from_bits(dtype, bits))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |w, i| w << 8 | chunk.get(i).copied().unwrap_or(0) as u32);
        for i in 0..4 {
            let index = (word >> (18 - 6 * i)) as usize % 64;
            out.push(if i <= chunk.len() { ALPHABET[index] as char } else { '=' });
        }
    }
    out
}

/// The bytes of a base64 string with padding, or what is wrong with it.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(4) {
        return Err(format!("base64 of {} characters, which 4 does not divide", text.len()));
    }
    let body = text.trim_end_matches('=');
    if text.len() - body.len() > 2 {
        return Err("base64 with more than two padding characters".into());
    }
    let mut out = Vec::with_capacity(body.len() * 3 / 4);
    let (mut word, mut held) = (0u32, 0);
    for c in body.bytes() {
        let Some(value) = ALPHABET.iter().position(|&a| a == c) else {
            return Err(format!("`{}` is no base64 character", c as char));
        };
        word = word << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((word >> held) as u8);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_16_bit_float_reads_back() {
        for dtype in [DType::F16, DType::BF16] {
            for bits in 0..=u16::MAX {
                let s = Scalar::from_bits(dtype, bits as u64);
                assert_eq!(parse_scalar(dtype, &print_scalar(s)), Ok(s), "{}", print_scalar(s));
            }
        }
        assert_eq!(print_scalar(Scalar::from_f64(DType::F16, 0.1)), "0.1");
        assert_eq!(print_scalar(Scalar::from_f64(DType::BF16, 3e38)), "3e38");
    }

    #[test]
    fn odd_elements_read_back() {
        let f32 = |x: f32| print_scalar(Scalar::from_bits(DType::F32, x.to_bits() as u64));
        assert_eq!(f32(-0.0), "-0.0");
        assert_eq!(f32(1.0), "1.0");
        assert_eq!(f32(f32::NEG_INFINITY), "-inf");
        assert_eq!(f32(f32::NAN), "0x7fc00000");
        assert_eq!(print_scalar(Scalar::from_bits(DType::Bool, 3)), "0x3");
        assert_eq!(print_scalar(Scalar::from_f64(DType::I32, -7.0)), "-7");
    }

    #[test]
    fn wrong_elements_are_named() {
        assert_eq!(parse_scalar(DType::U32, "-1"), Err("`-1` is no u32".into()));
        assert_eq!(parse_scalar(DType::Bool, "1"), Err("`1` is no bool".into()));
        assert_eq!(parse_scalar(DType::F16, "0x10000"), Err("`0x10000` has more bits than f16".into()));
        assert_eq!(decode_base64("abc"), Err("base64 of 3 characters, which 4 does not divide".into()));
        assert_eq!(decode_base64("ab-d"), Err("`-` is no base64 character".into()));
    }

    proptest! {
        #[test]
        fn wide_elements_read_back(bits: u64) {
            for dtype in [DType::F32, DType::F64, DType::I32, DType::U32] {
                let bits = if dtype.size() == 8 { bits } else { bits & 0xffff_ffff };
                let s = Scalar::from_bits(dtype, bits);
                prop_assert_eq!(parse_scalar(dtype, &print_scalar(s)), Ok(s));
            }
        }

        #[test]
        fn base64_reads_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode_base64(&encode_base64(&bytes)), Ok(bytes));
        }
    }
}
