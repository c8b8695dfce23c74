//! Scalar instructions as WGSL expressions.
//!
//! Floats of 16 bits follow the interpreter: each op computes in `f32` and rounds, except where native `f16`
//! arithmetic gives the same bits.

use super::writer::{Writer, refuse};
use crate::Result;
use crate::kernel::{Inst, InstId};
use dnx_ir::{BinaryOp, CmpOp, DType, Scalar, UnaryOp};

impl Writer<'_> {
    /// The expression of an instruction other than a load or a reduction. Its operands have names.
    pub(super) fn expression(&mut self, id: InstId, inst: &Inst) -> Result<String> {
        let dtype = self.kernel.dtype(id);
        match inst {
            Inst::Const(scalar) => self.constant(*scalar),
            Inst::Index(_, index) => {
                let value = self.index(index)?;
                Ok(if dtype == DType::I32 { format!("i32({value})") } else { value })
            }
            Inst::Valid(checks) => Ok(self.checks(checks)?.unwrap_or_else(|| "true".to_string())),
            Inst::Unary(op, a) => self.unary(*op, *a),
            Inst::Binary(op, a, b) => self.binary(*op, *a, *b),
            Inst::Compare(op, a, b) => self.compare(*op, *a, *b),
            Inst::Select(c, a, b) => {
                Ok(format!("select({}, {}, {})", self.value(*b)?, self.value(*a)?, self.value(*c)?))
            }
            Inst::Convert(to, a) => self.convert(*to, *a),
            Inst::Bitcast(to, a) => self.bitcast(*to, *a),
            Inst::Threefry { k0, k1, counter } => {
                let (k0, k1) = (self.word(*k0)?, self.word(*k1)?);
                let counter = self.word(*counter)?;
                Ok(format!("{}({k0}, {k1}, {counter})", self.library.call("threefry")))
            }
            Inst::Load { .. } | Inst::Reduce(..) | Inst::Argmax(_) | Inst::Dot { .. } | Inst::Attention(_) => {
                refuse(format!("instruction %{} is not an expression", id.0))
            }
        }
    }

    /// Whether a constant can stand as a literal in all its uses: an expression of constants alone would be
    /// evaluated, and possibly refused, by the WGSL front end.
    pub(super) fn inlines(&self, id: InstId) -> bool {
        self.kernel.insts.iter().filter(|i| i.operands().contains(&id)).all(|user| {
            matches!(user, Inst::Binary(..) | Inst::Compare(..))
                && user.operands().iter().any(|&o| !matches!(self.kernel.inst(o), Inst::Const(_)))
        }) && self.kernel.stores.iter().all(|s| s.value != id)
    }

    /// Names for the load of an instruction.
    pub(super) fn value_name(&self, id: InstId) -> String {
        format!("v{}{}", id.0, self.suffix())
    }

    /// Names for the index of a load.
    pub(super) fn index_name(&self, id: InstId) -> String {
        format!("i{}{}", id.0, self.suffix())
    }

    fn constant(&mut self, scalar: Scalar) -> Result<String> {
        self.register(scalar.dtype())?;
        Ok(match scalar.dtype() {
            DType::F32 => self.f32_bits(scalar.bits() as u32),
            DType::BF16 => self.f32_bits((scalar.bits() as u32) << 16),
            DType::F16 => {
                let value = scalar.to_f64() as f32;
                let literal = self.f32_bits(value.to_bits());
                if self.native_f16() { format!("f16({literal})") } else { literal }
            }
            DType::I32 => match scalar.bits() as u32 as i32 {
                i32::MIN => "bitcast<i32>(0x80000000u)".to_string(),
                value => format!("{value}i"),
            },
            DType::U32 => format!("{}u", scalar.bits() as u32),
            DType::Bool => (scalar.bits() != 0).to_string(),
            DType::F64 => return refuse("f64 does not exist on GPUs; convert to f32 first"),
        })
    }

    fn unary(&mut self, op: UnaryOp, a: InstId) -> Result<String> {
        let dtype = self.kernel.dtype(a);
        let x = self.value(a)?;
        if !dtype.is_float() {
            return Ok(match (op, dtype) {
                (UnaryOp::Neg, DType::I32) => format!("0i - {x}"),
                (UnaryOp::Neg, DType::U32) => format!("0u - {x}"),
                (UnaryOp::Abs | UnaryOp::Sign, DType::I32) => format!("{}({x})", op.name()),
                (UnaryOp::Sign, DType::U32) => format!("min({x}, 1u)"),
                (UnaryOp::Not, DType::Bool) => format!("!{x}"),
                (UnaryOp::Not, _) => format!("~{x}"),
                (UnaryOp::Abs | UnaryOp::Floor | UnaryOp::StopGradient, _) => x,
                _ => return refuse(format!("{} has no meaning on {dtype}", op.name())),
            });
        }
        let wide = self.widened(dtype, &x);
        let computed = match op {
            // Exact in any width.
            UnaryOp::Neg => return Ok(format!("-{x}")),
            UnaryOp::Abs | UnaryOp::Sign | UnaryOp::Floor => return Ok(format!("{}({x})", op.name())),
            UnaryOp::StopGradient => return Ok(x),
            UnaryOp::IsFinite => return Ok(format!("{}({wide})", self.library.call("is_finite"))),
            UnaryOp::Not => return refuse("not has no meaning on floats"),
            UnaryOp::Exp => format!("exp({wide})"),
            UnaryOp::Log => format!("{}({wide})", self.library.call("log_f32")),
            UnaryOp::Sin => format!("{}({wide}, 0i)", self.library.call("trig_f32")),
            UnaryOp::Cos => format!("{}({wide}, 1i)", self.library.call("trig_f32")),
            UnaryOp::Tanh => format!("{}({wide})", self.library.call("tanh_f32")),
            UnaryOp::Erf => format!("{}({wide})", self.library.call("erf_f32")),
            UnaryOp::Sqrt => format!("sqrt({wide})"),
            UnaryOp::Rsqrt => format!("inverseSqrt({wide})"),
        };
        Ok(self.rounded(dtype, &computed))
    }

    fn binary(&mut self, op: BinaryOp, a: InstId, b: InstId) -> Result<String> {
        let dtype = self.kernel.dtype(a);
        let (x, y) = (self.operand(a)?, self.operand(b)?);
        if dtype.is_float() {
            return self.binary_float(op, dtype, &x, &y, b);
        }
        let symbol = match (op, dtype) {
            (BinaryOp::And | BinaryOp::Min, DType::Bool) => "&",
            (BinaryOp::Or | BinaryOp::Max, DType::Bool) => "|",
            (BinaryOp::Xor, DType::Bool) => "!=",
            (_, DType::Bool) => return refuse(format!("{} has no meaning on bool", op.name())),
            (BinaryOp::Add, _) => "+",
            (BinaryOp::Sub, _) => "-",
            (BinaryOp::Mul, _) => "*",
            (BinaryOp::And, _) => "&",
            (BinaryOp::Or, _) => "|",
            (BinaryOp::Xor, _) => "^",
            (BinaryOp::Max | BinaryOp::Min, _) => return Ok(format!("{}({x}, {y})", op.name())),
            (BinaryOp::Shl | BinaryOp::Shr, _) => {
                let count = match self.kernel.inst(b) {
                    Inst::Const(c) => format!("{}u", c.bits() as u32 & 31),
                    _ if dtype == DType::I32 => format!("(u32({y}) & 31u)"),
                    _ => format!("({y} & 31u)"),
                };
                let symbol = if op == BinaryOp::Shl { "<<" } else { ">>" };
                return Ok(format!("{x} {symbol} {count}"));
            }
            (BinaryOp::Div | BinaryOp::Rem, _) => {
                let function = match (op, dtype) {
                    (BinaryOp::Div, DType::I32) => "div_i32",
                    (BinaryOp::Div, _) => "div_u32",
                    (_, DType::I32) => "rem_i32",
                    _ => "rem_u32",
                };
                return Ok(format!("{}({x}, {y})", self.library.call(function)));
            }
            (BinaryOp::Pow, _) => return refuse("pow is for floats only; convert first"),
        };
        Ok(format!("{x} {symbol} {y}"))
    }

    fn binary_float(&mut self, op: BinaryOp, dtype: DType, x: &str, y: &str, b: InstId) -> Result<String> {
        let native = dtype != DType::F16 || self.native_f16();
        let symbol = match op {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Max | BinaryOp::Min => return Ok(format!("{}({x}, {y})", op.name())),
            BinaryOp::Pow => {
                let (x, y) = (self.widened(dtype, x), self.widened(dtype, y));
                let power = match self.kernel.inst(b) {
                    Inst::Const(c) if c.to_f64() == 1.0 => x,
                    Inst::Const(c) if c.to_f64() == 2.0 => format!("{x} * {x}"),
                    Inst::Const(c) if c.to_f64() == 3.0 => format!("{x} * {x} * {x}"),
                    Inst::Const(c) if c.to_f64() == -1.0 => format!("1.0f / {x}"),
                    Inst::Const(c) if c.to_f64() == 0.5 => format!("sqrt({x})"),
                    _ => format!("{}({x}, {y})", self.library.call("pow_f32")),
                };
                return Ok(self.rounded(dtype, &power));
            }
            BinaryOp::Rem => {
                let (x, y) = (self.widened(dtype, x), self.widened(dtype, y));
                let remainder = format!("{}({x}, {y})", self.library.call("rem_f32"));
                return Ok(self.rounded(dtype, &remainder));
            }
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => {
                return refuse(format!("{} has no meaning on floats", op.name()));
            }
        };
        let computed = format!("{x} {symbol} {y}");
        Ok(if dtype == DType::F32 || (dtype == DType::F16 && native) {
            computed
        } else {
            self.rounded(dtype, &computed)
        })
    }

    fn compare(&mut self, op: CmpOp, a: InstId, b: InstId) -> Result<String> {
        let dtype = self.kernel.dtype(a);
        let (mut x, mut y) = (self.operand(a)?, self.operand(b)?);
        let symbol = match op {
            CmpOp::Eq => "==",
            // Of floats: naga's `!=` is false for NaN.
            CmpOp::Ne if dtype.is_float() => return Ok(format!("!({x} == {y})")),
            CmpOp::Ne => "!=",
            CmpOp::Lt => "<",
            CmpOp::Le => "<=",
            CmpOp::Gt => ">",
            CmpOp::Ge => ">=",
        };
        if dtype == DType::Bool && !matches!(op, CmpOp::Eq | CmpOp::Ne) {
            (x, y) = (format!("u32({x})"), format!("u32({y})"));
        }
        Ok(format!("{x} {symbol} {y}"))
    }

    fn convert(&mut self, to: DType, a: InstId) -> Result<String> {
        let from = self.kernel.dtype(a);
        let x = self.value(a)?;
        self.register(to)?;
        if from == to {
            return Ok(x);
        }
        let wide = self.widened(from, &x);
        Ok(match (from.is_float(), to) {
            (_, DType::F64) => return refuse("f64 does not exist on GPUs"),
            (true, DType::F32) => wide,
            (true, DType::F16 | DType::BF16) => self.rounded(to, &wide),
            (true, DType::I32) => format!("{}({wide})", self.library.call("to_i32")),
            (true, DType::U32) => format!("{}({wide})", self.library.call("to_u32")),
            (true, DType::Bool) => format!("!({wide} == 0.0f)"),
            (false, DType::F32) => format!("f32({x})"),
            (false, DType::F16 | DType::BF16) => self.rounded(to, &format!("f32({x})")),
            (false, DType::I32) => format!("i32({x})"),
            (false, DType::U32) => format!("u32({x})"),
            (false, DType::Bool) => format!("{x} != 0{}", if from == DType::I32 { 'i' } else { 'u' }),
        })
    }

    fn bitcast(&mut self, to: DType, a: InstId) -> Result<String> {
        let from = self.kernel.dtype(a);
        let x = self.value(a)?;
        if from == to {
            return Ok(x);
        }
        let word = |d: DType| matches!(d, DType::F32 | DType::I32 | DType::U32);
        if word(from) && word(to) {
            return Ok(format!("bitcast<{}>({x})", self.register(to)?));
        }
        let wide = self.widened(from, &x);
        match (from, to) {
            (DType::F16, DType::BF16) => Ok(format!("bitcast<f32>({}({wide}) << 16u)", self.library.call("f16_bits"))),
            (DType::BF16, DType::F16) => {
                let value = format!("{}(bitcast<u32>({wide}) >> 16u)", self.library.call("f16_value"));
                Ok(if self.native_f16() { format!("f16({value})") } else { value })
            }
            _ => refuse(format!("bitcast from {from} to {to}: the widths differ")),
        }
    }

    /// A value as an operand of an infix operator.
    fn operand(&self, id: InstId) -> Result<String> {
        let value = self.value(id)?;
        Ok(if value.starts_with('-') { format!("({value})") } else { value })
    }

    /// An integer value as `u32`.
    fn word(&self, id: InstId) -> Result<String> {
        let value = self.value(id)?;
        Ok(if self.kernel.dtype(id) == DType::U32 { value } else { format!("u32({value})") })
    }
}
