//! What the elementwise ops mean on one element.
//!
//! Float ops are computed in `f64` and rounded to their dtype: for add, sub, mul, div, sqrt, rem and floor
//! that is exactly IEEE arithmetic in the dtype, for the others it is the nearest value or next to it.
//! 16-bit floats are rounded to `f32` first, as hardware that computes in `f32` and converts does.

use crate::{BinaryOp, CmpOp, DType, Scalar, UnaryOp};
use half::{bf16, f16};

/// `x` rounded to a float dtype.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => x as f32 as f64,
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        DType::BF16 => bf16::from_f32(x as f32).to_f64(),
        DType::F64 | DType::I32 | DType::U32 | DType::Bool => x,
    }
}

/// The bits of `x` in a float dtype.
pub fn float_to_bits(dtype: DType, x: f64) -> u64 {
    match dtype {
        DType::F64 => x.to_bits(),
        DType::F32 => (x as f32).to_bits() as u64,
        DType::F16 => f16::from_f32(x as f32).to_bits() as u64,
        DType::BF16 => bf16::from_f32(x as f32).to_bits() as u64,
        DType::I32 | DType::U32 | DType::Bool => unreachable!("{dtype} is no float"),
    }
}

/// The value of these bits of a float dtype.
pub fn float_from_bits(dtype: DType, bits: u64) -> f64 {
    Scalar::from_bits(dtype, bits).to_f64()
}

/// Unary ops from float to float (before rounding).
pub fn unary_float(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Erf => libm::erf(x),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Abs => x.abs(),
        // Zeros and NaN are their own sign.
        UnaryOp::Sign => {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }
        UnaryOp::Floor => x.floor(),
        UnaryOp::StopGradient => x,
        UnaryOp::Not | UnaryOp::IsFinite => unreachable!("{} does not map float to float", op.name()),
    }
}

/// Unary ops on `i32`.
pub fn unary_i32(op: UnaryOp, x: i32) -> i32 {
    match op {
        UnaryOp::Neg => x.wrapping_neg(),
        UnaryOp::Abs => x.wrapping_abs(),
        UnaryOp::Sign => x.signum(),
        UnaryOp::Not => !x,
        UnaryOp::StopGradient => x,
        UnaryOp::Exp | UnaryOp::Log | UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Tanh | UnaryOp::Erf => no_int(op),
        UnaryOp::Sqrt | UnaryOp::Rsqrt | UnaryOp::Floor | UnaryOp::IsFinite => no_int(op),
    }
}

/// Unary ops on `u32`.
pub fn unary_u32(op: UnaryOp, x: u32) -> u32 {
    match op {
        UnaryOp::Neg => x.wrapping_neg(),
        UnaryOp::Not => !x,
        UnaryOp::StopGradient => x,
        UnaryOp::Abs | UnaryOp::Sign => no_int(op),
        UnaryOp::Exp | UnaryOp::Log | UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Tanh | UnaryOp::Erf => no_int(op),
        UnaryOp::Sqrt | UnaryOp::Rsqrt | UnaryOp::Floor | UnaryOp::IsFinite => no_int(op),
    }
}

fn no_int<T>(op: UnaryOp) -> T {
    unreachable!("{} is not defined on integers", op.name())
}

/// Binary ops on floats (before rounding).
pub fn binary_float(op: BinaryOp, x: f64, y: f64) -> f64 {
    match op {
        BinaryOp::Add => x + y,
        BinaryOp::Sub => x - y,
        BinaryOp::Mul => x * y,
        BinaryOp::Div => x / y,
        BinaryOp::Pow => x.powf(y),
        BinaryOp::Max => x.max(y),
        BinaryOp::Min => x.min(y),
        BinaryOp::Rem => x % y,
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => {
            unreachable!("{} is not defined on floats", op.name())
        }
    }
}

/// Binary ops on `i32`: wrapping; division and remainder by zero give zero.
pub fn binary_i32(op: BinaryOp, x: i32, y: i32) -> i32 {
    match op {
        BinaryOp::Add => x.wrapping_add(y),
        BinaryOp::Sub => x.wrapping_sub(y),
        BinaryOp::Mul => x.wrapping_mul(y),
        BinaryOp::Div if y == 0 => 0,
        BinaryOp::Div => x.wrapping_div(y),
        BinaryOp::Rem if y == 0 => 0,
        BinaryOp::Rem => x.wrapping_rem(y),
        BinaryOp::Max => x.max(y),
        BinaryOp::Min => x.min(y),
        BinaryOp::And => x & y,
        BinaryOp::Or => x | y,
        BinaryOp::Xor => x ^ y,
        BinaryOp::Shl => x.wrapping_shl(y as u32),
        BinaryOp::Shr => x.wrapping_shr(y as u32),
        BinaryOp::Pow => unreachable!("pow is not defined on integers"),
    }
}

/// Binary ops on `u32`: wrapping; division and remainder by zero give zero.
pub fn binary_u32(op: BinaryOp, x: u32, y: u32) -> u32 {
    match op {
        BinaryOp::Add => x.wrapping_add(y),
        BinaryOp::Sub => x.wrapping_sub(y),
        BinaryOp::Mul => x.wrapping_mul(y),
        BinaryOp::Div => x.checked_div(y).unwrap_or(0),
        BinaryOp::Rem => x.checked_rem(y).unwrap_or(0),
        BinaryOp::Max => x.max(y),
        BinaryOp::Min => x.min(y),
        BinaryOp::And => x & y,
        BinaryOp::Or => x | y,
        BinaryOp::Xor => x ^ y,
        BinaryOp::Shl => x.wrapping_shl(y),
        BinaryOp::Shr => x.wrapping_shr(y),
        BinaryOp::Pow => unreachable!("pow is not defined on integers"),
    }
}

/// Binary ops on `bool`.
pub fn binary_bool(op: BinaryOp, x: bool, y: bool) -> bool {
    match op {
        BinaryOp::And => x & y,
        BinaryOp::Or => x | y,
        BinaryOp::Xor => x ^ y,
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Pow | BinaryOp::Max => no_bool(op),
        BinaryOp::Min | BinaryOp::Rem | BinaryOp::Shl | BinaryOp::Shr => no_bool(op),
    }
}

fn no_bool(op: BinaryOp) -> bool {
    unreachable!("{} is not defined on bool", op.name())
}

/// Comparisons, on anything ordered.
pub fn compare<T: PartialOrd>(op: CmpOp, x: T, y: T) -> bool {
    match op {
        CmpOp::Eq => x == y,
        CmpOp::Ne => x != y,
        CmpOp::Lt => x < y,
        CmpOp::Le => x <= y,
        CmpOp::Gt => x > y,
        CmpOp::Ge => x >= y,
    }
}

/// [`crate::Op::Unary`] on a scalar.
pub fn unary(op: UnaryOp, x: Scalar) -> Scalar {
    let dtype = x.dtype();
    match (op, dtype) {
        (UnaryOp::StopGradient, _) => x,
        (UnaryOp::IsFinite, _) => boolean(x.to_f64().is_finite()),
        (_, DType::Bool) => boolean(x.bits() == 0),
        (_, DType::I32) => Scalar::from_bits(dtype, unary_i32(op, x.bits() as u32 as i32) as u32 as u64),
        (_, DType::U32) => Scalar::from_bits(dtype, unary_u32(op, x.bits() as u32) as u64),
        (_, DType::F32 | DType::F16 | DType::BF16 | DType::F64) => float(dtype, unary_float(op, x.to_f64())),
    }
}

/// [`crate::Op::Binary`] on scalars of one dtype.
pub fn binary(op: BinaryOp, x: Scalar, y: Scalar) -> Scalar {
    let dtype = x.dtype();
    match dtype {
        DType::Bool => boolean(binary_bool(op, x.bits() != 0, y.bits() != 0)),
        DType::I32 => {
            let z = binary_i32(op, x.bits() as u32 as i32, y.bits() as u32 as i32);
            Scalar::from_bits(dtype, z as u32 as u64)
        }
        DType::U32 => Scalar::from_bits(dtype, binary_u32(op, x.bits() as u32, y.bits() as u32) as u64),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => float(dtype, binary_float(op, x.to_f64(), y.to_f64())),
    }
}

/// [`crate::Op::Compare`] on scalars of one dtype (every dtype is exact in `f64`).
pub fn compare_scalars(op: CmpOp, x: Scalar, y: Scalar) -> Scalar {
    boolean(compare(op, x.to_f64(), y.to_f64()))
}

/// [`crate::Op::Convert`] on a scalar.
pub fn convert(to: DType, x: Scalar) -> Scalar {
    match to {
        DType::Bool => boolean(x.to_f64() != 0.0),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => float(to, x.to_f64()),
        DType::I32 => Scalar::from_bits(to, to_i32(x.dtype(), x.to_f64()) as u32 as u64),
        DType::U32 => Scalar::from_bits(to, to_u32(x.dtype(), x.to_f64()) as u64),
    }
}

/// A value of dtype `from` as `i32`: floats truncate and saturate (NaN gives 0), integers wrap.
pub fn to_i32(from: DType, x: f64) -> i32 {
    if from.is_float() { x as i32 } else { x as i64 as i32 }
}

/// A value of dtype `from` as `u32`: floats truncate and saturate (NaN gives 0), integers wrap.
pub fn to_u32(from: DType, x: f64) -> u32 {
    if from.is_float() { x as u32 } else { x as i64 as u32 }
}

/// A truth value.
pub fn boolean(x: bool) -> Scalar {
    Scalar::from_bits(DType::Bool, x as u64)
}

/// A float, rounded to the dtype.
pub fn float(dtype: DType, x: f64) -> Scalar {
    Scalar::from_bits(dtype, float_to_bits(dtype, x))
}
