//! Laws of elementwise arithmetic.
//!
//! A *splat* below is a constant scalar or the broadcast of one. After `constants_last` the splat of a commutative op
//! is its second operand, so the laws look only there.

use super::{Law, Rewriter};
use dnx_ir::{BinaryOp, CmpOp, DType, Op, Result, Scalar, UnaryOp, ValueId};

/// The laws of this file.
pub const LAWS: &[Law] = &[
    Law { name: "stop_gradient", says: "stop_gradient(x) = x, derivatives having been taken", apply: stop_gradient },
    Law { name: "involution", says: "neg(neg(x)) = x, not(not(x)) = x", apply: involution },
    Law { name: "abs", says: "abs(neg(x)) = abs(abs(x)) = abs(x)", apply: abs },
    Law { name: "constants_last", says: "c + x = x + c; otherwise operands of + * max min & | ^ by age", apply: order },
    Law { name: "compare_order", says: "c < x = x > c; operands of = and /= by age", apply: compare_order },
    Law { name: "compare_same", says: "x = x is true on integers and bool", apply: compare_same },
    Law { name: "same", says: "max(x, x) = x & x = x | x = x; x ^ x = x - x = 0 on integers", apply: same },
    Law {
        name: "neutral",
        says: "x + 0 = x - 0 = x * 1 = x / 1 = x | 0 = x ^ 0 = x << 0 = x & -1 = x",
        apply: neutral,
    },
    Law { name: "absorbing", says: "x * 0 = x & 0 = 0 and x | -1 = -1 on integers and bool", apply: absorbing },
    Law { name: "minus_one", says: "x * -1 = neg(x), 0 - x = neg(x)", apply: minus_one },
    Law { name: "minus", says: "x + neg(y) = x - y, x - neg(y) = x + y, neg(x) + y = y - x", apply: minus },
    Law { name: "minus_constant", says: "x - c = x + (-c)", apply: minus_constant },
    Law {
        name: "minus_factor",
        says: "neg(x) * c = neg(x * c) = x * (-c), neg(x) * neg(y) = x * y",
        apply: minus_factor,
    },
    Law { name: "divide_power_of_two", says: "x / 2^k = x * 2^-k on floats", apply: divide_power_of_two },
    Law {
        name: "constants_join",
        says: "(x * a) * b = x * (a * b), (x + a) + b = x + (a + b) where exact",
        apply: join,
    },
    Law { name: "power", says: "x^1 = x, x^2 = x * x, x^3 = x * x * x, x^-1 = 1 / x, x^0.5 = sqrt(x)", apply: power },
    Law { name: "select_known", says: "select(true, x, y) = x, select(c, x, x) = x", apply: select_known },
    Law { name: "select_not", says: "select(not(c), x, y) = select(c, y, x)", apply: select_not },
    Law {
        name: "convert",
        says: "convert to the own dtype is x; through a dtype that holds every value, direct",
        apply: convert,
    },
    Law { name: "bitcast", says: "bitcast to the own dtype is x; bitcast of bitcast is direct", apply: bitcast },
];

/// The operand of the unary op `u`, if that is what defines `v`.
fn under(rw: &Rewriter, u: UnaryOp, v: ValueId) -> Option<ValueId> {
    (*rw.op(v) == Op::Unary(u)).then(|| rw.operands(v)[0])
}

/// `(x, splat, c)` if `v` is `x op c`.
fn with_constant(rw: &Rewriter, op: BinaryOp, v: ValueId) -> Option<(ValueId, Scalar)> {
    if *rw.op(v) != Op::Binary(op) {
        return None;
    }
    let &[x, c] = rw.operands(v) else { return None };
    Some((x, rw.splat(c)?))
}

fn is(s: Scalar, value: f64) -> bool {
    s.to_f64() == value
}

/// All bits of the dtype's word.
fn is_ones(s: Scalar) -> bool {
    match s.dtype() {
        DType::Bool => s.bits() != 0,
        DType::I32 | DType::U32 => s.bits() as u32 == u32::MAX,
        _ => false,
    }
}

fn stop_gradient(_: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    Ok((*op == Op::Unary(UnaryOp::StopGradient)).then(|| v[0]))
}

fn involution(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    Ok(match op {
        Op::Unary(u @ (UnaryOp::Neg | UnaryOp::Not)) => under(rw, *u, v[0]),
        _ => None,
    })
}

fn abs(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if *op != Op::Unary(UnaryOp::Abs) {
        return Ok(None);
    }
    if under(rw, UnaryOp::Abs, v[0]).is_some() {
        return Ok(Some(v[0]));
    }
    match under(rw, UnaryOp::Neg, v[0]) {
        Some(x) => rw.emit(op.clone(), &[x]).map(Some),
        None => Ok(None),
    }
}

fn order(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    use BinaryOp::*;
    match op {
        Op::Binary(Add | Mul | Max | Min | And | Or | Xor) if swaps(rw, v) => {
            rw.emit(op.clone(), &[v[1], v[0]]).map(Some)
        }
        _ => Ok(None),
    }
}

/// Splats come last; values that are equal in this come in order of emission.
fn swaps(rw: &Rewriter, v: &[ValueId]) -> bool {
    (rw.splat(v[0]).is_some(), v[0]) > (rw.splat(v[1]).is_some(), v[1])
}

fn compare_order(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Compare(c) = op else { return Ok(None) };
    let swapped = match c {
        CmpOp::Eq | CmpOp::Ne => {
            return if swaps(rw, v) { rw.emit(op.clone(), &[v[1], v[0]]).map(Some) } else { Ok(None) };
        }
        CmpOp::Lt => CmpOp::Gt,
        CmpOp::Le => CmpOp::Ge,
        CmpOp::Gt => CmpOp::Lt,
        CmpOp::Ge => CmpOp::Le,
    };
    if rw.splat(v[0]).is_none() || rw.splat(v[1]).is_some() {
        return Ok(None);
    }
    rw.emit(Op::Compare(swapped), &[v[1], v[0]]).map(Some)
}

fn compare_same(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Compare(c) = op else { return Ok(None) };
    // A NaN is not equal to itself.
    if v[0] != v[1] || rw.dtype(v[0]).is_float() {
        return Ok(None);
    }
    let holds = matches!(c, CmpOp::Eq | CmpOp::Le | CmpOp::Ge);
    let dims = rw.dims(v[0]).to_vec();
    rw.full(&dims, Scalar::from_f64(DType::Bool, holds as u8 as f64)).map(Some)
}

fn same(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    use BinaryOp::*;
    match op {
        Op::Binary(Max | Min | And | Or) if v[0] == v[1] => Ok(Some(v[0])),
        // Infinity minus infinity is NaN, so only on integers.
        Op::Binary(Xor | Sub) if v[0] == v[1] && !rw.dtype(v[0]).is_float() => rw.full_like(v[0], 0.0).map(Some),
        _ => Ok(None),
    }
}

fn neutral(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    use BinaryOp::*;
    let Op::Binary(b) = op else { return Ok(None) };
    let Some(c) = rw.splat(v[1]) else { return Ok(None) };
    let neutral = match b {
        Add | Sub | Or | Xor => is(c, 0.0),
        Mul | Div => is(c, 1.0),
        And => is_ones(c),
        Shl | Shr => c.bits() % 32 == 0,
        Pow | Max | Min | Rem => false,
    };
    Ok(neutral.then(|| v[0]))
}

fn absorbing(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    use BinaryOp::*;
    let Op::Binary(b @ (Mul | And | Or)) = op else { return Ok(None) };
    // NaN and infinity times zero are NaN, so only on integers.
    if rw.dtype(v[0]).is_float() {
        return Ok(None);
    }
    let Some(c) = rw.splat(v[1]) else { return Ok(None) };
    let absorbs = if *b == Or { is_ones(c) } else { is(c, 0.0) };
    Ok(absorbs.then(|| v[1]))
}

fn minus_one(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let x = match op {
        // Shaders have no minus on u32.
        Op::Binary(_) if rw.dtype(v[0]) == DType::U32 => return Ok(None),
        Op::Binary(BinaryOp::Mul) if rw.splat(v[1]).is_some_and(|c| is(c, -1.0)) => v[0],
        Op::Binary(BinaryOp::Sub) if rw.splat(v[0]).is_some_and(|c| is(c, 0.0)) => v[1],
        _ => return Ok(None),
    };
    rw.emit(Op::Unary(UnaryOp::Neg), &[x]).map(Some)
}

fn minus(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let (to, x, y) = match op {
        Op::Binary(BinaryOp::Add) => match (under(rw, UnaryOp::Neg, v[1]), under(rw, UnaryOp::Neg, v[0])) {
            (Some(y), _) => (BinaryOp::Sub, v[0], y),
            (None, Some(x)) => (BinaryOp::Sub, v[1], x),
            (None, None) => return Ok(None),
        },
        Op::Binary(BinaryOp::Sub) => match under(rw, UnaryOp::Neg, v[1]) {
            Some(y) => (BinaryOp::Add, v[0], y),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    rw.emit(Op::Binary(to), &[x, y]).map(Some)
}

/// `-c`, exactly; integers wrap.
fn negated(c: Scalar) -> Scalar {
    match c.dtype() {
        DType::I32 | DType::U32 => Scalar::from_bits(c.dtype(), (c.bits() as u32).wrapping_neg() as u64),
        dtype => Scalar::from_f64(dtype, -c.to_f64()),
    }
}

fn minus_constant(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if *op != Op::Binary(BinaryOp::Sub) {
        return Ok(None);
    }
    let Some(c) = rw.splat(v[1]) else { return Ok(None) };
    let dims = rw.dims(v[0]).to_vec();
    let c = rw.full(&dims, negated(c))?;
    rw.emit(Op::Binary(BinaryOp::Add), &[v[0], c]).map(Some)
}

fn minus_factor(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let (x, c) = match op {
        Op::Binary(BinaryOp::Mul) => {
            let (x, y) = (under(rw, UnaryOp::Neg, v[0]), under(rw, UnaryOp::Neg, v[1]));
            match (x, y, rw.splat(v[1])) {
                (Some(x), Some(y), _) => return rw.emit(op.clone(), &[x, y]).map(Some),
                (Some(x), None, Some(c)) => (x, c),
                _ => return Ok(None),
            }
        }
        Op::Unary(UnaryOp::Neg) => match with_constant(rw, BinaryOp::Mul, v[0]) {
            Some(found) => found,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let dims = rw.dims(x).to_vec();
    let c = rw.full(&dims, negated(c))?;
    rw.emit(Op::Binary(BinaryOp::Mul), &[x, c]).map(Some)
}

fn divide_power_of_two(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if *op != Op::Binary(BinaryOp::Div) || !rw.dtype(v[0]).is_float() {
        return Ok(None);
    }
    let Some(c) = rw.splat(v[1]) else { return Ok(None) };
    let inverse = Scalar::from_f64(c.dtype(), 1.0 / c.to_f64());
    let power_of_two = c.to_f64().to_bits() << 12 == 0;
    if !power_of_two || !is_normal(c) || !is_normal(inverse) {
        return Ok(None);
    }
    let dims = rw.dims(v[0]).to_vec();
    let inverse = rw.full(&dims, inverse)?;
    rw.emit(Op::Binary(BinaryOp::Mul), &[v[0], inverse]).map(Some)
}

/// Finite, not zero, not subnormal in its own dtype.
fn is_normal(s: Scalar) -> bool {
    let least = match s.dtype() {
        DType::F16 => 6.103515625e-5,
        DType::F64 => f64::MIN_POSITIVE,
        _ => f32::MIN_POSITIVE as f64,
    };
    s.to_f64().is_finite() && s.to_f64().abs() >= least
}

/// `a op b` if it is exact, for `add` only if both have one sign (else `(x + a) - a`, which rounds `x` on purpose,
/// would be undone).
fn joined(op: BinaryOp, a: Scalar, b: Scalar) -> Option<Scalar> {
    let dtype = a.dtype();
    if dtype.is_int() {
        let (x, y) = (a.bits() as u32, b.bits() as u32);
        let z = if op == BinaryOp::Add { x.wrapping_add(y) } else { x.wrapping_mul(y) };
        return Some(Scalar::from_bits(dtype, z as u64));
    }
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || !is_normal(a) || !is_normal(b) {
        return None;
    }
    let (x, y) = (a.to_f64(), b.to_f64());
    // A product of two 24-bit significands is exact in f64; a sum may not be, and the remainder tells.
    let z = match op {
        BinaryOp::Add if (x < 0.0) == (y < 0.0) && (x + y) - x == y && (x + y) - y == x => x + y,
        BinaryOp::Mul => x * y,
        _ => return None,
    };
    let joined = Scalar::from_f64(dtype, z);
    (joined.to_f64() == z && is_normal(joined)).then_some(joined)
}

fn join(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Binary(b @ (BinaryOp::Add | BinaryOp::Mul)) = op else { return Ok(None) };
    let Some(outer) = rw.splat(v[1]) else { return Ok(None) };
    let Some((x, inner)) = with_constant(rw, *b, v[0]) else { return Ok(None) };
    let Some(c) = joined(*b, inner, outer) else { return Ok(None) };
    let dims = rw.dims(x).to_vec();
    let c = rw.full(&dims, c)?;
    rw.emit(op.clone(), &[x, c]).map(Some)
}

fn power(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if *op != Op::Binary(BinaryOp::Pow) {
        return Ok(None);
    }
    let Some(n) = rw.splat(v[1]).map(Scalar::to_f64) else { return Ok(None) };
    let x = v[0];
    let mul = Op::Binary(BinaryOp::Mul);
    Ok(Some(if n == 0.0 {
        rw.full_like(x, 1.0)?
    } else if n == 1.0 {
        x
    } else if n == 2.0 {
        rw.emit(mul, &[x, x])?
    } else if n == 3.0 {
        let square = rw.emit(mul.clone(), &[x, x])?;
        rw.emit(mul, &[square, x])?
    } else if n == -1.0 {
        let one = rw.full_like(x, 1.0)?;
        rw.emit(Op::Binary(BinaryOp::Div), &[one, x])?
    } else if n == 0.5 {
        rw.emit(Op::Unary(UnaryOp::Sqrt), &[x])?
    } else if n == -0.5 {
        rw.emit(Op::Unary(UnaryOp::Rsqrt), &[x])?
    } else {
        return Ok(None);
    }))
}

fn select_known(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if *op != Op::Select {
        return Ok(None);
    }
    if v[1] == v[2] {
        return Ok(Some(v[1]));
    }
    Ok(rw.splat(v[0]).map(|c| if c.bits() != 0 { v[1] } else { v[2] }))
}

fn select_not(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    if *op != Op::Select {
        return Ok(None);
    }
    match under(rw, UnaryOp::Not, v[0]) {
        Some(c) => rw.emit(Op::Select, &[c, v[2], v[1]]).map(Some),
        None => Ok(None),
    }
}

/// Whether `to` holds every value of `from`.
fn holds_all(from: DType, to: DType) -> bool {
    use DType::*;
    match from {
        Bool => true,
        F16 | BF16 => matches!(to, F32 | F64),
        F32 | I32 | U32 => to == F64,
        F64 => false,
    }
}

fn convert(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Convert(to) = op else { return Ok(None) };
    if rw.dtype(v[0]) == *to {
        return Ok(Some(v[0]));
    }
    let Op::Convert(mid) = *rw.op(v[0]) else { return Ok(None) };
    let x = rw.operands(v[0])[0];
    if holds_all(rw.dtype(x), mid) { rw.emit(Op::Convert(*to), &[x]).map(Some) } else { Ok(None) }
}

fn bitcast(rw: &mut Rewriter, op: &Op, v: &[ValueId]) -> Result<Option<ValueId>> {
    let Op::Bitcast(to) = op else { return Ok(None) };
    if rw.dtype(v[0]) == *to {
        return Ok(Some(v[0]));
    }
    let Op::Bitcast(_) = rw.op(v[0]) else { return Ok(None) };
    let x = rw.operands(v[0])[0];
    rw.emit(Op::Bitcast(*to), &[x]).map(Some)
}
