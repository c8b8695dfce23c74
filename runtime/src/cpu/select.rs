//! Tables: which pointwise operation computes which op of which dtype.

use super::ops::Pointwise;
use super::plan::Class;
use dnx_ir::{BinaryOp, CmpOp, DType, Scalar, UnaryOp};
use half::{bf16, f16};

/// A constant as a word of a register.
pub(super) fn word(scalar: Scalar) -> Result<u32, String> {
    Ok(match scalar.dtype() {
        DType::F64 => return Err("an f64 constant".to_string()),
        DType::F16 => f16::from_bits(scalar.bits() as u16).to_f32().to_bits(),
        DType::BF16 => bf16::from_bits(scalar.bits() as u16).to_f32().to_bits(),
        DType::F32 | DType::I32 | DType::U32 | DType::Bool => scalar.bits() as u32,
    })
}

/// The pointwise operation of a unary op; `Copy` where there is nothing to do.
pub(super) fn unary(op: UnaryOp, dtype: DType) -> Result<Pointwise, String> {
    use Pointwise::*;
    let class = Class::of(dtype);
    Ok(match (op, class) {
        (UnaryOp::StopGradient, _) => Copy,
        (UnaryOp::Neg, Class::Float) => NegF,
        (UnaryOp::Neg, _) => NegI,
        (UnaryOp::Abs, Class::Float) => AbsF,
        (UnaryOp::Abs, Class::Signed) => AbsI,
        (UnaryOp::Abs, Class::Unsigned) => Copy,
        (UnaryOp::Sign, Class::Float) => SignF,
        (UnaryOp::Sign, Class::Signed) => SignI,
        (UnaryOp::Sign, Class::Unsigned) => SignU,
        (UnaryOp::Not, _) if dtype == DType::Bool => NotBool,
        (UnaryOp::Not, Class::Signed | Class::Unsigned) => Not,
        (UnaryOp::Exp, Class::Float) => Exp,
        (UnaryOp::Log, Class::Float) => Log,
        (UnaryOp::Sin, Class::Float) => Sin,
        (UnaryOp::Cos, Class::Float) => Cos,
        (UnaryOp::Tanh, Class::Float) => Tanh,
        (UnaryOp::Erf, Class::Float) => Erf,
        (UnaryOp::Sqrt, Class::Float) => Sqrt,
        (UnaryOp::Rsqrt, Class::Float) => Rsqrt,
        (UnaryOp::Floor, Class::Float) => Floor,
        (UnaryOp::IsFinite, Class::Float) => IsFinite,
        (op, _) => return Err(format!("{} of {dtype}", op.name())),
    })
}

/// The pointwise operation of a binary op.
pub(super) fn binary(op: BinaryOp, dtype: DType) -> Result<Pointwise, String> {
    use Pointwise::*;
    Ok(match (op, Class::of(dtype)) {
        (BinaryOp::Add, Class::Float) => AddF,
        (BinaryOp::Sub, Class::Float) => SubF,
        (BinaryOp::Mul, Class::Float) => MulF,
        (BinaryOp::Div, Class::Float) => DivF,
        (BinaryOp::Pow, Class::Float) => PowF,
        (BinaryOp::Max, Class::Float) => MaxF,
        (BinaryOp::Min, Class::Float) => MinF,
        (BinaryOp::Rem, Class::Float) => RemF,
        (BinaryOp::Add, _) => AddI,
        (BinaryOp::Sub, _) => SubI,
        (BinaryOp::Mul, _) => MulI,
        (BinaryOp::Div, Class::Signed) => DivI,
        (BinaryOp::Div, Class::Unsigned) => DivU,
        (BinaryOp::Max, Class::Signed) => MaxI,
        (BinaryOp::Max, Class::Unsigned) => MaxU,
        (BinaryOp::Min, Class::Signed) => MinI,
        (BinaryOp::Min, Class::Unsigned) => MinU,
        (BinaryOp::Rem, Class::Signed) => RemI,
        (BinaryOp::Rem, Class::Unsigned) => RemU,
        (BinaryOp::And, Class::Signed | Class::Unsigned) => And,
        (BinaryOp::Or, Class::Signed | Class::Unsigned) => Or,
        (BinaryOp::Xor, Class::Signed | Class::Unsigned) => Xor,
        (BinaryOp::Shl, Class::Signed | Class::Unsigned) => Shl,
        (BinaryOp::Shr, Class::Signed) => ShrI,
        (BinaryOp::Shr, Class::Unsigned) => ShrU,
        (op, _) => return Err(format!("{} of {dtype}", op.name())),
    })
}

/// The pointwise operation of a comparison.
pub(super) fn compare(op: CmpOp, class: Class) -> Pointwise {
    use Pointwise::*;
    match (op, class) {
        (CmpOp::Eq, Class::Float) => EqF,
        (CmpOp::Ne, Class::Float) => NeF,
        (CmpOp::Lt, Class::Float) => LtF,
        (CmpOp::Le, Class::Float) => LeF,
        (CmpOp::Gt, Class::Float) => GtF,
        (CmpOp::Ge, Class::Float) => GeF,
        (CmpOp::Eq, _) => EqI,
        (CmpOp::Ne, _) => NeI,
        (CmpOp::Lt, Class::Signed) => LtI,
        (CmpOp::Le, Class::Signed) => LeI,
        (CmpOp::Gt, Class::Signed) => GtI,
        (CmpOp::Ge, Class::Signed) => GeI,
        (CmpOp::Lt, Class::Unsigned) => LtU,
        (CmpOp::Le, Class::Unsigned) => LeU,
        (CmpOp::Gt, Class::Unsigned) => GtU,
        (CmpOp::Ge, Class::Unsigned) => GeU,
    }
}
