//! Ops from their parts: name, head, attributes and result types.

use super::constant::{decode_base64, parse_scalar};
use super::lex::Pos;
use crate::types::MAX_DIM;
use crate::{Array, AttrValue, AxisName, BinaryOp, CmpOp, ConvDims, DType, DotDims, Func, Op, ReduceKind, Result};
use crate::{Scalar, Type, UnaryOp};
use std::sync::Arc;

/// A value of an attribute, or of a constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Number(String),
    Word(String),
    Str(String),
    List(Vec<Literal>),
    /// `a x b`, `a -> b` or `a:b`.
    Pair(Box<Literal>, Box<Literal>),
    Splat(Box<Literal>),
    Base64(String),
}

/// What stands between an op's name and its operands.
pub(super) enum Head {
    None,
    Word(Pos, String),
    Const(Pos, Literal),
    Callee { name: Option<String>, func: Arc<Func> },
}

/// A node as it stands in text.
pub(super) struct Parts<'t> {
    pub name: &'t str,
    pub pos: Pos,
    pub head: Head,
    pub attributes: Vec<(String, Literal, Pos)>,
    pub types: &'t [Type],
}

/// The op of these parts.
pub(super) fn build(mut p: Parts<'_>) -> Result<Op> {
    let multi = matches!(p.name, "call" | "composite" | "optimization_barrier");
    if !multi && p.types.len() != 1 {
        return Err(p.pos.error(format!("`{}` has one result, not {}", p.name, p.types.len())));
    }
    let op = simple(p.name, p.types).map_or_else(|| with_attributes(&mut p), Ok)?;
    match p.attributes.first() {
        Some((key, _, pos)) => Err(pos.error(format!("`{}` has no attribute `{key}`", p.name))),
        None => Ok(op),
    }
}

/// Ops that are told by name and result type alone.
fn simple(name: &str, types: &[Type]) -> Option<Op> {
    if let Some(&u) = UnaryOp::ALL.iter().find(|u| u.name() == name) {
        return Some(Op::Unary(u));
    }
    if let Some(&b) = BinaryOp::ALL.iter().find(|b| b.name() == name) {
        return Some(Op::Binary(b));
    }
    Some(match (name, types) {
        ("convert", [ty]) => Op::Convert(ty.dtype),
        ("bitcast", [ty]) => Op::Bitcast(ty.dtype),
        ("select", _) => Op::Select,
        ("reshape", [ty]) => Op::Reshape { dims: ty.dims.clone() },
        ("dynamic_slice", [ty]) => Op::DynamicSlice { sizes: ty.dims.clone() },
        ("dynamic_update_slice", _) => Op::DynamicUpdateSlice,
        ("reshard", [ty]) => Op::Reshard { sharding: ty.sharding.clone() },
        ("optimization_barrier", _) => Op::OptimizationBarrier,
        _ => return None,
    })
}

fn with_attributes(p: &mut Parts<'_>) -> Result<Op> {
    let ty = p.types.first().cloned().unwrap_or_else(|| Type::scalar(DType::F32));
    let (dtype, dims) = (ty.dtype, ty.dims.clone());
    Ok(match p.name {
        "const" => {
            let Head::Const(pos, literal) = &p.head else { return Err(p.pos.error("expected a value")) };
            Op::Const(array(literal, &ty).map_err(|message| pos.error(message))?)
        }
        "iota" => Op::Iota { dtype, dims, dim: p.need("dim")? },
        "random_bits" => Op::RandomBits { dims, global: p.find("global")? },
        "axis_index" => Op::AxisIndex { axis: p.need("axis")? },
        "compare" => {
            let (pos, word) = p.head_word()?;
            match CmpOp::ALL.iter().find(|c| c.name() == word) {
                Some(&c) => Op::Compare(c),
                None => return Err(pos.error(format!("expected eq, ne, lt, le, gt or ge, found `{word}`"))),
            }
        }
        "transpose" => Op::Transpose { perm: p.need("perm")? },
        "broadcast" => Op::Broadcast { dims, map: p.need("map")? },
        "slice" => {
            let start: Vec<usize> = p.need("start")?;
            let stride = p.find("stride")?.unwrap_or_else(|| vec![1; start.len()]);
            Op::Slice { start, limit: p.need("limit")?, stride }
        }
        "pad" => {
            let low: Vec<usize> = p.need("low")?;
            let interior = p.find("interior")?.unwrap_or_else(|| vec![0; low.len()]);
            Op::Pad { low, high: p.need("high")?, interior }
        }
        "concat" => Op::Concat { dim: p.need("dim")? },
        "reverse" => Op::Reverse { dims: p.need("dims")? },
        "reduce_sum" => Op::Reduce { kind: ReduceKind::Sum, dims: p.need("dims")? },
        "reduce_max" => Op::Reduce { kind: ReduceKind::Max, dims: p.need("dims")? },
        "argmax" => Op::Argmax { dim: p.need("dim")? },
        "dot_general" => {
            let (lhs_contract, rhs_contract) = p.need("contract")?;
            let (lhs_batch, rhs_batch) = p.find("batch")?.unwrap_or_default();
            Op::Dot { dims: DotDims { lhs_batch, rhs_batch, lhs_contract, rhs_contract }, out: dtype }
        }
        "conv" => {
            let stride: Vec<usize> = p.need("stride")?;
            let n = stride.len();
            Op::Conv {
                dims: ConvDims {
                    padding: p.find("padding")?.unwrap_or_else(|| vec![(0, 0); n]),
                    lhs_dilation: p.find("lhs_dilation")?.unwrap_or_else(|| vec![1; n]),
                    rhs_dilation: p.find("rhs_dilation")?.unwrap_or_else(|| vec![1; n]),
                    groups: p.find("groups")?.unwrap_or(1),
                    stride,
                },
                out: dtype,
            }
        }
        "take" => Op::Take { dim: p.need("dim")? },
        "scatter_add" => Op::ScatterAdd { dim: p.need("dim")? },
        "all_reduce" => {
            let (pos, word) = p.head_word()?;
            let kind = match &word[..] {
                "sum" => ReduceKind::Sum,
                "max" => ReduceKind::Max,
                _ => return Err(pos.error(format!("expected sum or max, found `{word}`"))),
            };
            Op::AllReduce { kind, axes: p.need("axes")? }
        }
        "all_gather" => Op::AllGather { axis: p.need("axis")?, dim: p.need("dim")? },
        "reduce_scatter" => Op::ReduceScatter { axis: p.need("axis")?, dim: p.need("dim")? },
        "all_to_all" => Op::AllToAll { axis: p.need("axis")?, split: p.need("split")?, concat: p.need("concat")? },
        "ppermute" => Op::Ppermute { axis: p.need("axis")?, pairs: p.need("pairs")? },
        "call" => Op::Call { func: p.callee()?.1, remat: p.find("remat")?.unwrap_or(false) },
        "composite" => {
            let (name, func) = p.callee()?;
            let mut attrs = Vec::new();
            for (key, literal, pos) in std::mem::take(&mut p.attributes) {
                let wanted = "a truth value, number, list of integers or string";
                let value = AttrValue::read(&literal).ok_or_else(|| pos.error(format!("`{key}` is not {wanted}")))?;
                attrs.push((key, value));
            }
            Op::Composite { name: name.unwrap_or_default().into(), attrs, func }
        }
        name => return Err(p.pos.error(format!("there is no op `{name}`"))),
    })
}

impl Parts<'_> {
    /// Takes the attribute of this name out, if it is there.
    fn find<T: Read>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(at) = self.attributes.iter().position(|(k, _, _)| k == key) else { return Ok(None) };
        let (_, literal, pos) = self.attributes.remove(at);
        match T::read(&literal) {
            Some(value) => Ok(Some(value)),
            None => Err(pos.error(format!("`{key}` of `{}` should be {}", self.name, T::WHAT))),
        }
    }

    /// Takes the attribute of this name out.
    fn need<T: Read>(&mut self, key: &str) -> Result<T> {
        let value = self.find(key)?;
        value.ok_or_else(|| self.pos.error(format!("`{}` needs the attribute `{key}`: {}", self.name, T::WHAT)))
    }

    fn head_word(&self) -> Result<(Pos, String)> {
        match &self.head {
            Head::Word(pos, word) => Ok((*pos, word.clone())),
            _ => Err(self.pos.error("expected a word after the op")),
        }
    }

    fn callee(&self) -> Result<(Option<String>, Arc<Func>)> {
        match &self.head {
            Head::Callee { name, func } => Ok((name.clone(), func.clone())),
            _ => Err(self.pos.error("expected a function after the op")),
        }
    }
}

/// What an attribute can be read as.
trait Read: Sized {
    /// For messages.
    const WHAT: &str;
    fn read(literal: &Literal) -> Option<Self>;
}

impl Read for usize {
    const WHAT: &str = "a number below 2^31";
    fn read(literal: &Literal) -> Option<usize> {
        if let Literal::Number(n) = literal { n.parse().ok().filter(|n| *n < MAX_DIM) } else { None }
    }
}

impl Read for i64 {
    const WHAT: &str = "an integer";
    fn read(literal: &Literal) -> Option<i64> {
        if let Literal::Number(n) = literal { n.parse().ok() } else { None }
    }
}

impl Read for bool {
    const WHAT: &str = "true or false";
    fn read(literal: &Literal) -> Option<bool> {
        if let Literal::Word(w) = literal { w.parse().ok() } else { None }
    }
}

impl Read for AxisName {
    const WHAT: &str = "a mesh axis";
    fn read(literal: &Literal) -> Option<AxisName> {
        if let Literal::Word(w) = literal { Some(w.as_str().into()) } else { None }
    }
}

fn read_list<T: Read>(literal: &Literal) -> Option<Vec<T>> {
    if let Literal::List(list) = literal { list.iter().map(T::read).collect() } else { None }
}

fn read_pair<T>(literal: &Literal, item: impl Fn(&Literal) -> Option<T>) -> Option<(T, T)> {
    if let Literal::Pair(a, b) = literal { Some((item(a)?, item(b)?)) } else { None }
}

impl Read for Vec<usize> {
    const WHAT: &str = "a list of numbers below 2^31";
    fn read(literal: &Literal) -> Option<Vec<usize>> {
        read_list(literal)
    }
}

impl Read for Vec<AxisName> {
    const WHAT: &str = "a list of mesh axes";
    fn read(literal: &Literal) -> Option<Vec<AxisName>> {
        read_list(literal)
    }
}

impl Read for (Vec<usize>, Vec<usize>) {
    const WHAT: &str = "dims of both operands, as `[1] x [0]`";
    fn read(literal: &Literal) -> Option<Self> {
        read_pair(literal, read_list)
    }
}

impl Read for (usize, usize) {
    const WHAT: &str = "a pair, as `0 -> 1`";
    fn read(literal: &Literal) -> Option<Self> {
        read_pair(literal, usize::read)
    }
}

impl Read for (i64, i64) {
    const WHAT: &str = "a pair, as `0:1`";
    fn read(literal: &Literal) -> Option<Self> {
        read_pair(literal, |l| i64::read(l).filter(|n| n.unsigned_abs() < MAX_DIM as u64))
    }
}

impl Read for Vec<(usize, usize)> {
    const WHAT: &str = "a list of pairs, as `[0 -> 1]`";
    fn read(literal: &Literal) -> Option<Self> {
        read_list(literal)
    }
}

impl Read for Vec<(i64, i64)> {
    const WHAT: &str = "a list of pairs, as `[1:1, 0:1]`";
    fn read(literal: &Literal) -> Option<Self> {
        read_list(literal)
    }
}

impl Read for AttrValue {
    const WHAT: &str = "an attribute";
    fn read(literal: &Literal) -> Option<AttrValue> {
        Some(match literal {
            Literal::Word(w) if w == "true" || w == "false" => AttrValue::Bool(w == "true"),
            Literal::Word(w) => AttrValue::Float(parse_scalar(DType::F64, w).ok()?),
            Literal::Number(n) => match n.parse() {
                Ok(i) => AttrValue::Int(i),
                Err(_) => AttrValue::Float(parse_scalar(DType::F64, n).ok()?),
            },
            Literal::Str(s) => AttrValue::Str(s.clone()),
            Literal::List(list) => AttrValue::Ints(list.iter().map(i64::read).collect::<Option<_>>()?),
            Literal::Pair(..) | Literal::Splat(_) | Literal::Base64(_) => return None,
        })
    }
}

/// The array of this type that a literal denotes, or what is wrong with it.
fn array(literal: &Literal, ty: &Type) -> Result<Array, String> {
    let mut bytes = Vec::new();
    match literal {
        Literal::Word(w) if w == "empty" && ty.elems() == 0 => {}
        Literal::Splat(value) => {
            let value = scalar(value, ty.dtype)?;
            (0..ty.elems()).for_each(|_| value.write_bytes(&mut bytes));
        }
        Literal::Base64(text) => bytes = decode_base64(text)?,
        _ => nested(literal, ty, &ty.dims, &mut bytes)?,
    }
    if bytes.len() != ty.elems() * ty.dtype.size() {
        return Err(format!("{} bytes for {ty}, which has {}", bytes.len(), ty.elems() * ty.dtype.size()));
    }
    Ok(Array::from_bytes(ty.clone(), bytes))
}

fn nested(literal: &Literal, ty: &Type, dims: &[usize], bytes: &mut Vec<u8>) -> Result<(), String> {
    match (dims.split_first(), literal) {
        (None, _) => scalar(literal, ty.dtype)?.write_bytes(bytes),
        (Some((&n, inner)), Literal::List(list)) if list.len() == n => {
            for item in list {
                nested(item, ty, inner, bytes)?;
            }
        }
        (Some((n, _)), Literal::List(list)) => return Err(format!("a list of {} where {ty} has {n}", list.len())),
        _ => return Err(format!("expected the elements of {ty}, as `splat`, lists or base64")),
    }
    Ok(())
}

fn scalar(literal: &Literal, dtype: DType) -> Result<Scalar, String> {
    match literal {
        Literal::Number(text) | Literal::Word(text) => parse_scalar(dtype, text),
        _ => Err(format!("expected one {dtype}")),
    }
}
