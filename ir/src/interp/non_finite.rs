//! Where a NaN or an infinity is born.

use super::data::Value;
use super::{Precision, run_arrays};
use crate::{Array, Func, Loc, NodeId, Op, Result, Type};
use std::fmt;
use std::sync::Arc;

/// What a value holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Type.
    pub ty: Type,
    /// Least finite element; infinity if there is none.
    pub min: f64,
    /// Greatest finite element; minus infinity if there is none.
    pub max: f64,
    /// NaNs.
    pub nan: usize,
    /// Infinite elements.
    pub infinite: usize,
}

/// The node whose result is the first to have a NaN or an infinity that none of its operands has.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    /// The function it is in, which may be a callee.
    pub func: Arc<str>,
    /// The node.
    pub node: NodeId,
    /// The op's name (of a parameter: `param` and its name).
    pub op: String,
    /// Model path.
    pub loc: Loc,
    /// What its operands hold.
    pub operands: Vec<Range>,
    /// What its results hold.
    pub results: Vec<Range>,
}

impl Range {
    fn of(v: &Value) -> Range {
        let mut r = Range {
            ty: Type::new(v.dtype, v.dims.clone()),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            nan: 0,
            infinite: 0,
        };
        for x in v.data.to_f64() {
            if x.is_nan() {
                r.nan += 1;
            } else if x.is_infinite() {
                r.infinite += 1;
            } else {
                (r.min, r.max) = (r.min.min(x), r.max.max(x));
            }
        }
        r
    }
}

/// Runs the function in its own dtypes and names the op where the first NaN (or infinity) appears, with what its
/// operands held: `None` if there is none. Infinite constants, which masks use, are not counted, nor what only
/// passes an infinity on.
///
/// # Errors
/// As [`super::eval`].
pub fn first_non_finite(func: &Func, args: &[Array]) -> Result<Option<NonFinite>> {
    let mut found = None;
    let mut look = |func: &Func, id: NodeId, operands: &[&Value], results: &[&Value]| {
        let node = &func.nodes[id.index()];
        if found.is_some() || matches!(node.op, Op::Const(_)) {
            return;
        }
        let results: Vec<Range> = results.iter().map(|v| Range::of(v)).collect();
        if results.iter().all(|r| r.nan + r.infinite == 0) {
            return;
        }
        let operands: Vec<Range> = operands.iter().map(|v| Range::of(v)).collect();
        let nan = |rs: &[Range]| rs.iter().any(|r| r.nan > 0);
        let any = |rs: &[Range]| rs.iter().any(|r| r.nan + r.infinite > 0);
        if any(&operands) && (nan(&operands) || !nan(&results)) {
            return;
        }
        let op = match &node.op {
            Op::Param { index, .. } => format!("param {}", func.params[*index].name),
            Op::Composite { name, .. } => format!("composite {name}"),
            op => op.name().to_string(),
        };
        found = Some(NonFinite { func: func.name.clone(), node: id, op, loc: node.loc.clone(), operands, results });
    };
    run_arrays(func, &[args.to_vec()], Precision::F32, &mut look)?;
    Ok(found)
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ty)?;
        if self.min <= self.max {
            write!(f, " from {} to {}", self.min, self.max)?;
        }
        if self.nan > 0 {
            write!(f, ", {} NaN", self.nan)?;
        }
        if self.infinite > 0 {
            write!(f, ", {} infinite", self.infinite)?;
        }
        Ok(())
    }
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in @{}", self.op, self.func)?;
        if !self.loc.is_empty() {
            write!(f, " (at {})", self.loc)?;
        }
        for (i, r) in self.operands.iter().enumerate() {
            write!(f, "\n  operand {i}: {r}")?;
        }
        for r in &self.results {
            write!(f, "\n  result: {r}")?;
        }
        Ok(())
    }
}
