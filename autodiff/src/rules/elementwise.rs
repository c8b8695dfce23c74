//! Elementwise ops. `d` is the operand's tangent, `x` the operand, `y` the result.

use super::{Linear, Rule};
use dnx_ir::{BinaryOp, CmpOp, DType, UnaryOp, ValueId};
use std::f64::consts::FRAC_2_SQRT_PI;

pub(super) fn unary(op: UnaryOp) -> Rule<'static> {
    match op {
        UnaryOp::Neg => Rule::linear(Linear::All, |a, _, ct| a.b.neg(ct)),
        // d y
        UnaryOp::Exp => Rule::terms(|a, _, d| a.b.mul(d, a.y)),
        // d / x
        UnaryOp::Log => Rule::terms(|a, _, d| a.b.div(d, a.x[0])),
        // d cos x
        UnaryOp::Sin => Rule::terms(|a, _, d| {
            let cos = a.b.unary(UnaryOp::Cos, a.x[0])?;
            a.b.mul(d, cos)
        }),
        // d (-sin x)
        UnaryOp::Cos => Rule::terms(|a, _, d| {
            let sin = a.b.unary(UnaryOp::Sin, a.x[0])?;
            let minus = a.b.neg(sin)?;
            a.b.mul(d, minus)
        }),
        // d (1 - y²)
        UnaryOp::Tanh => Rule::terms(|a, _, d| {
            let (one, square) = (a.constant(a.y, 1.0)?, a.b.mul(a.y, a.y)?);
            let slope = a.b.sub(one, square)?;
            a.b.mul(d, slope)
        }),
        // d 2/√π exp(-x²)
        UnaryOp::Erf => Rule::terms(|a, _, d| {
            let square = a.b.mul(a.x[0], a.x[0])?;
            let minus = a.b.neg(square)?;
            let bell = a.b.unary(UnaryOp::Exp, minus)?;
            let slope = a.b.scale(bell, FRAC_2_SQRT_PI)?;
            a.b.mul(d, slope)
        }),
        // d / 2y
        UnaryOp::Sqrt => Rule::terms(|a, _, d| {
            let twice = a.b.add(a.y, a.y)?;
            a.b.div(d, twice)
        }),
        // d (-y³/2)
        UnaryOp::Rsqrt => Rule::terms(|a, _, d| {
            let square = a.b.mul(a.y, a.y)?;
            let cube = a.b.mul(square, a.y)?;
            let slope = a.b.scale(cube, -0.5)?;
            a.b.mul(d, slope)
        }),
        // d sign x
        UnaryOp::Abs => Rule::terms(|a, _, d| {
            let sign = a.b.unary(UnaryOp::Sign, a.x[0])?;
            a.b.mul(d, sign)
        })
        .note("zero at zero"),
        UnaryOp::Sign | UnaryOp::Floor => Rule::zero("constant between jumps"),
        UnaryOp::Not => Rule::discrete("integers and bool only"),
        UnaryOp::IsFinite => Rule::zero("gives bool"),
        UnaryOp::StopGradient => Rule::zero("by definition"),
    }
}

pub(super) fn binary(op: BinaryOp) -> Rule<'static> {
    match op {
        BinaryOp::Add => {
            Rule { transpose: Some((Linear::All, Box::new(|_, _, ct| Ok(ct)))), ..Rule::terms(|_, _, d| Ok(d)) }
        }
        BinaryOp::Sub => {
            let jvp = Rule::joint(|a, d| match (d[0], d[1]) {
                (Some(d0), Some(d1)) => a.b.sub(d0, d1).map(Some),
                (d0, None) => Ok(d0),
                (None, Some(d1)) => a.b.neg(d1).map(Some),
            });
            Rule {
                transpose: Some((Linear::All, Box::new(|a, i, ct| if i == 0 { Ok(ct) } else { a.b.neg(ct) }))),
                ..jvp
            }
        }
        // d0 x1 + x0 d1; a square is d (x + x)
        BinaryOp::Mul => {
            let jvp = Rule::joint(|a, d| {
                let term = |a: &mut super::At, d: Option<ValueId>, x| d.map(|d| times(a, d, x)).transpose();
                if a.x[0] == a.x[1] {
                    let twice = a.b.add(a.x[0], a.x[0])?;
                    return term(a, d[0], twice);
                }
                Ok(match (term(a, d[0], a.x[1])?, term(a, d[1], a.x[0])?) {
                    (Some(s), Some(t)) => Some(a.b.add(s, t)?),
                    (s, t) => s.or(t),
                })
            });
            Rule { transpose: Some((Linear::Each, Box::new(|a, i, ct| times(a, ct, a.x[1 - i])))), ..jvp }
        }
        // (d0 - y d1) / x1
        BinaryOp::Div => {
            let jvp = Rule::joint(|a, d| {
                let numerator = match (d[0], d[1]) {
                    (d0, None) => d0,
                    (d0, Some(d1)) => {
                        let part = a.b.mul(d1, a.y)?;
                        Some(if let Some(d0) = d0 { a.b.sub(d0, part)? } else { a.b.neg(part)? })
                    }
                };
                numerator.map(|n| a.b.div(n, a.x[1])).transpose()
            });
            Rule { transpose: Some((Linear::Only(&[0]), Box::new(|a, _, ct| a.b.div(ct, a.x[1])))), ..jvp }
        }
        BinaryOp::Pow => Rule::terms(pow).note("by the exponent y log x, zero where the base is zero"),
        BinaryOp::Max => Rule::terms(|a, i, d| extreme(a, i, d, CmpOp::Gt)).note("ties share equally"),
        BinaryOp::Min => Rule::terms(|a, i, d| extreme(a, i, d, CmpOp::Lt)).note("ties share equally"),
        // d0 - trunc(x0 / x1) d1, the quotient taken from the result so that both agree
        BinaryOp::Rem => Rule::terms(|a, i, d| {
            if i == 0 {
                return Ok(d);
            }
            let whole = a.b.sub(a.y, a.x[0])?;
            let quotient = a.b.div(whole, a.x[1])?;
            a.b.mul(d, quotient)
        }),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => {
            Rule::discrete("integers and bool only")
        }
    }
}

/// `d * x`, without the multiplication where either is plainly one.
fn times(a: &mut super::At, d: ValueId, x: ValueId) -> dnx_ir::Result<ValueId> {
    match (a.splat(d), a.splat(x)) {
        (_, Some(1.0)) => Ok(d),
        (Some(1.0), _) => Ok(x),
        _ => a.b.mul(d, x),
    }
}

/// `d p x^(p-1)` by the base, `d y log x` by the exponent. A power zero has slope zero everywhere, and a base
/// zero has slope zero by the exponent: the formulas would give 0 * inf there.
fn pow(a: &mut super::At, i: usize, d: ValueId) -> dnx_ir::Result<ValueId> {
    let (x, p) = (a.x[0], a.x[1]);
    let zero = a.constant(p, 0.0)?;
    let one = a.constant(p, 1.0)?;
    let slope = match (i, a.splat(p)) {
        (0, Some(2.0)) => a.b.add(x, x)?,
        (0, constant) => {
            let mut less = a.b.sub(p, one)?;
            if constant.is_none_or(|c| c == 0.0) {
                let flat = a.b.compare(CmpOp::Eq, p, zero)?;
                less = a.b.select(flat, one, less)?;
            }
            let power = a.b.binary(BinaryOp::Pow, x, less)?;
            a.b.mul(p, power)?
        }
        _ => {
            let empty = a.b.compare(CmpOp::Eq, x, zero)?;
            let safe = a.b.select(empty, one, x)?;
            let log = a.b.unary(UnaryOp::Log, safe)?;
            a.b.mul(a.y, log)?
        }
    };
    a.b.mul(d, slope)
}

/// `d` where operand `i` wins against the other by `wins`, `d / 2` where they tie, else zero.
fn extreme(a: &mut super::At, i: usize, d: ValueId, wins: CmpOp) -> dnx_ir::Result<ValueId> {
    let (own, other) = (a.x[i], a.x[1 - i]);
    let (won, tied) = (a.b.compare(wins, own, other)?, a.b.compare(CmpOp::Eq, own, other)?);
    let (zero, half, one) = (a.constant(own, 0.0)?, a.constant(own, 0.5)?, a.constant(own, 1.0)?);
    let rest = a.b.select(tied, half, zero)?;
    let share = a.b.select(won, one, rest)?;
    a.b.mul(d, share)
}

pub(super) fn convert(to: DType) -> Rule<'static> {
    if !to.is_float() {
        return Rule::zero("to integers: constant between jumps");
    }
    Rule::linear(Linear::All, |a, _, ct| a.b.convert(ct, a.ty[0].dtype)).note("between floats; zero from integers")
}

pub(super) fn select() -> Rule<'static> {
    Rule::linear(Linear::Only(&[1, 2]), |a, i, ct| {
        let zero = a.zero_cotangent(i)?;
        if i == 1 { a.b.select(a.x[0], ct, zero) } else { a.b.select(a.x[0], zero, ct) }
    })
}
