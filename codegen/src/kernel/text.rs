//! Kernel IR as text, for people: dumps, failing tests, bug reports.
//!
//! ```text
//! row [64, 512 reduce]
//!   a0: f32[32768] read
//!   a1: f32[64] write
//!   %0 f32 = load a0[d0*512 + d1]
//!   %1 f32 = reduce_sum %0
//!   a1[d0] = %1
//! ```
//!
//! `d0`, `d1`... are the iteration coordinates and `aN` the arguments. `a0[i] if 0 <= d1 - 1 < 7` is a load that
//! gives zero where the condition fails; `+ clamp(%3, 0, 9)*64` is a run-time part of an index.

use super::{Access, Atom, Attention, Check, DynTerm, Given, Idx, Inst, InstId, Kernel, Kind, Role, Tile};
use dnx_ir::{DType, ReduceKind};
use std::fmt::{self, Display, Formatter};

impl Kind {
    /// The name used in text and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Loop => "loop",
            Kind::Row => "row",
            Kind::Column => "column",
            Kind::Contract => "contract",
            Kind::Index => "index",
            Kind::Attention => "attention",
            Kind::Multi => "multi",
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Display for Role {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Parallel => "parallel",
            Role::Reduce => "reduce",
            Role::Batch => "batch",
            Role::M => "m",
            Role::N => "n",
        })
    }
}

impl Display for Access {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "read_write",
        })
    }
}

impl Display for InstId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// The sum alone; checks are printed where the index is used.
impl Display for Idx {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (coef, atom)) in self.terms.iter().enumerate() {
            match (i, *coef < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            write!(f, "{atom}")?;
            if coef.unsigned_abs() != 1 {
                write!(f, "*{}", coef.unsigned_abs())?;
            }
        }
        match (self.terms.is_empty(), self.offset) {
            (true, n) => write!(f, "{n}"),
            (false, 0) => Ok(()),
            (false, n) if n < 0 => write!(f, " - {}", n.unsigned_abs()),
            (false, n) => write!(f, " + {n}"),
        }
    }
}

impl Display for Atom {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Dim(d) => write!(f, "d{d}"),
            Atom::Div(i, n) => write!(f, "(({i}) / {n})"),
            Atom::Mod(i, n) => write!(f, "(({i}) % {n})"),
        }
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} <= {} < {}", self.lo, self.index, self.hi)?;
        if self.multiple != 1 { write!(f, " by {}", self.multiple) } else { Ok(()) }
    }
}

impl Display for DynTerm {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "clamp({}, 0, {})*{}", self.value, self.limit, self.stride)
    }
}

impl Display for Inst {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Inst::Const(s) if s.dtype() == DType::Bool => write!(f, "const {}", s.bits() != 0),
            Inst::Const(s) => write!(f, "const {:?}", s.to_f64()),
            Inst::Load { arg, index, dynamic } => {
                write!(f, "load a{arg}[{index}")?;
                for term in dynamic {
                    write!(f, " + {term}")?;
                }
                f.write_str("]")?;
                conditions(f, " if ", &index.checks)
            }
            Inst::Index(_, index) => write!(f, "index {index}"),
            Inst::Valid(checks) if checks.is_empty() => f.write_str("valid always"),
            Inst::Valid(checks) => {
                f.write_str("valid")?;
                conditions(f, " ", checks)
            }
            Inst::Unary(op, x) => write!(f, "{} {x}", op.name()),
            Inst::Binary(op, x, y) => write!(f, "{} {x}, {y}", op.name()),
            Inst::Compare(op, x, y) => write!(f, "{} {x}, {y}", op.name()),
            Inst::Select(c, x, y) => write!(f, "select {c}, {x}, {y}"),
            Inst::Convert(_, x) => write!(f, "convert {x}"),
            Inst::Bitcast(_, x) => write!(f, "bitcast {x}"),
            Inst::Threefry { k0, k1, counter } => write!(f, "threefry ({k0}, {k1}), {counter}"),
            Inst::Reduce(ReduceKind::Sum, x) => write!(f, "reduce_sum {x}"),
            Inst::Reduce(ReduceKind::Max, x) => write!(f, "reduce_max {x}"),
            Inst::Argmax(x) => write!(f, "argmax {x}"),
            Inst::Dot { lhs, rhs } => write!(f, "dot {lhs}, {rhs}"),
            Inst::Attention(a) => a.fmt(f),
        }
    }
}

impl Display for Attention {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [q, k, v] = self.qkv;
        let form = match &self.given {
            Given::Nothing => "attention",
            Given::Tangents { .. } => "attention_jvp",
            Given::Cotangents { .. } => "attention_bwd",
        };
        write!(f, "{form}.{} {q}, {k}, {v} by {:?}", self.part.name(), self.scale.to_f64())?;
        if let Some(bias) = self.bias {
            write!(f, " bias {bias}")?;
        }
        if self.causal {
            f.write_str(" causal")?;
        }
        match &self.given {
            Given::Nothing => Ok(()),
            Given::Tangents { o, lse, of: [q, k, v], bias } => {
                write!(f, " at {o}, {lse} along {q}, {k}, {v}")?;
                bias.map_or(Ok(()), |b| write!(f, " bias {b}"))
            }
            Given::Cotangents { o, lse, of: [ct, ct_lse] } => write!(f, " at {o}, {lse} against {ct}, {ct_lse}"),
        }
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} [", self.kind)?;
        for (i, dim) in self.dims.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{}", dim.size)?;
            if dim.role != Role::Parallel {
                write!(f, " {}", dim.role)?;
            }
        }
        f.write_str("]")?;
        let t = &self.tile;
        if *t != Tile::default() {
            let Tile { tier, workgroup, block, per_invocation, split } = t;
            write!(f, " tile({tier:?}, workgroup {workgroup}, block {block:?}, per_invocation {per_invocation:?}")?;
            write!(f, ", split {split})")?;
        }
        for (i, arg) in self.args.iter().enumerate() {
            write!(f, "\n  a{i}: {}[{}] {}", arg.dtype, arg.elems, arg.access)?;
        }
        for (i, inst) in self.insts.iter().enumerate() {
            match self.dtypes.get(i) {
                Some(dtype) => write!(f, "\n  %{i} {dtype} = {inst}")?,
                None => write!(f, "\n  %{i} = {inst}")?,
            }
        }
        for store in &self.stores {
            write!(f, "\n  a{}[{}] = {}", store.arg, store.index, store.value)?;
        }
        if let Some(s) = &self.scatter {
            write!(f, "\n  a{}[.., clamp({}, 0, {}), ..] += {}", s.out, s.target, s.rows.saturating_sub(1), s.update)?;
            match s.base {
                Some(base) => write!(f, " from a{base}")?,
                None => f.write_str(" from 0")?,
            }
        }
        f.write_str("\n")
    }
}

fn conditions(f: &mut Formatter<'_>, lead: &str, checks: &[Check]) -> fmt::Result {
    for (i, check) in checks.iter().enumerate() {
        write!(f, "{}{check}", if i == 0 { lead } else { " and " })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Arg, Dim, Store};
    use dnx_ir::{BinaryOp, Scalar};

    #[test]
    fn a_kernel_prints_its_space_arguments_instructions_and_stores() {
        let check = Check { index: Idx { offset: -1, ..Idx::dim(1) }, lo: 0, hi: 7, multiple: 2 };
        let index = Idx { offset: -1, terms: vec![(512, Atom::Dim(0)), (-1, Atom::Dim(1))], checks: vec![check] };
        let div = Idx { terms: vec![(3, Atom::Div(Box::new(Idx::dim(0)), 4))], ..Idx::default() };
        let kernel = Kernel {
            kind: Kind::Row,
            dims: vec![Dim { size: 64, role: Role::Parallel }, Dim { size: 512, role: Role::Reduce }],
            args: vec![
                Arg { dtype: DType::F32, elems: 32768, access: Access::Read },
                Arg { dtype: DType::F32, elems: 64, access: Access::Write },
            ],
            insts: vec![
                Inst::Index(DType::I32, div),
                Inst::Load { arg: 0, index, dynamic: vec![DynTerm { value: InstId(0), limit: 9, stride: 64 }] },
                Inst::Const(Scalar::from_f64(DType::F32, 0.5)),
                Inst::Binary(BinaryOp::Mul, InstId(1), InstId(2)),
                Inst::Reduce(ReduceKind::Sum, InstId(3)),
            ],
            dtypes: vec![DType::I32, DType::F32, DType::F32, DType::F32, DType::F32],
            stores: vec![Store { arg: 1, index: Idx::dim(0), value: InstId(4) }],
            scatter: None,
            tile: Tile::default(),
        };
        let want = "row [64, 512 reduce]
  a0: f32[32768] read
  a1: f32[64] write
  %0 i32 = index ((d0) / 4)*3
  %1 f32 = load a0[d0*512 - d1 - 1 + clamp(%0, 0, 9)*64] if 0 <= d1 - 1 < 7 by 2
  %2 f32 = const 0.5
  %3 f32 = mul %1, %2
  %4 f32 = reduce_sum %3
  a1[d0] = %4
";
        assert_eq!(kernel.to_string(), want);
    }
}
