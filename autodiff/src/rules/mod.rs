//! The derivative table: one [`Rule`] per op.
//!
//! A rule is written for the op alone, at one node ([`At`]). The walks in `forward` and `reverse` know which
//! operands have tangents or cotangents, add up terms, and never hand a rule a zero. Factors that depend on
//! primal values only are emitted apart from the one linear op they feed, so that reverse mode can place them.

mod collective;
mod contract;
mod elementwise;
mod index;
mod reduce;
mod shape;

use dnx_ir::sharding::cotangent_type;
use dnx_ir::{Builder, Op, Result, Type, ValueId};

/// A node under differentiation, as its rule sees it.
pub(crate) struct At<'b> {
    /// Where derivatives are emitted.
    pub b: &'b mut Builder,
    /// The node's op.
    pub op: &'b Op,
    /// Operands. A transpose rule may read those that are not linear.
    pub x: &'b [ValueId],
    /// Operand types.
    pub ty: &'b [Type],
    /// The primal result; for jvp rules only.
    pub y: ValueId,
}

/// The term that the tangent `d` of operand `i` adds to the result's tangent.
type Term<'a> = Box<dyn Fn(&mut At, usize, ValueId) -> Result<ValueId> + 'a>;
/// The result's tangent from all operands' tangents; `None` is zero.
type Joint<'a> = Box<dyn Fn(&mut At, &[Option<ValueId>]) -> Result<Option<ValueId>> + 'a>;
/// The cotangent of operand `i` from the result's.
type Cotangent<'a> = Box<dyn Fn(&mut At, usize, ValueId) -> Result<ValueId> + 'a>;

/// How an op's tangent is made.
pub(crate) enum Jvp<'a> {
    /// The op itself on the tangents, zeros where there are none.
    Same,
    /// The op itself on one tangent and the other operand, a term for each.
    Product,
    /// A sum of terms, one per operand with a tangent.
    Terms(Term<'a>),
    /// From all tangents together.
    Joint(Joint<'a>),
    /// Always zero: the op is constant almost everywhere.
    Zero,
    /// No tangent, because operands or result are no floats.
    Discrete,
    /// No derivative and no convention for one.
    Refused,
    /// Differentiated by the walk itself: calls and the barrier.
    Structure,
}

/// In which operands an op is linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linear {
    /// In all operands together.
    All,
    /// In these operands together.
    Only(&'static [usize]),
    /// In each operand while the others are fixed.
    Each,
}

impl Linear {
    /// Whether operand `i` may be linear.
    pub(crate) fn admits(self, i: usize) -> bool {
        match self {
            Linear::All | Linear::Each => true,
            Linear::Only(list) => list.contains(&i),
        }
    }
}

/// The derivative of an op.
pub(crate) struct Rule<'a> {
    /// Forward.
    pub jvp: Jvp<'a>,
    /// Backward, for ops that occur in linear parts.
    pub transpose: Option<(Linear, Cotangent<'a>)>,
    /// What a reader of the table should know.
    pub note: &'static str,
}

impl<'a> Rule<'a> {
    /// A linear op.
    fn linear(linear: Linear, transpose: impl Fn(&mut At, usize, ValueId) -> Result<ValueId> + 'a) -> Rule<'a> {
        Rule { jvp: Jvp::Same, transpose: Some((linear, Box::new(transpose))), note: "" }
    }

    /// A product: linear in each of two operands.
    fn product(transpose: impl Fn(&mut At, usize, ValueId) -> Result<ValueId> + 'a) -> Rule<'a> {
        Rule { jvp: Jvp::Product, transpose: Some((Linear::Each, Box::new(transpose))), note: "" }
    }

    /// An op whose tangent is a sum of terms.
    fn terms(term: impl Fn(&mut At, usize, ValueId) -> Result<ValueId> + 'a) -> Rule<'a> {
        Rule { jvp: Jvp::Terms(Box::new(term)), transpose: None, note: "" }
    }

    /// An op whose tangent is one formula of all operands' tangents.
    fn joint(jvp: impl Fn(&mut At, &[Option<ValueId>]) -> Result<Option<ValueId>> + 'a) -> Rule<'a> {
        Rule { jvp: Jvp::Joint(Box::new(jvp)), transpose: None, note: "" }
    }

    fn zero(note: &'static str) -> Rule<'a> {
        Rule { jvp: Jvp::Zero, transpose: None, note }
    }

    fn discrete(note: &'static str) -> Rule<'a> {
        Rule { jvp: Jvp::Discrete, transpose: None, note }
    }

    fn refused(note: &'static str) -> Rule<'a> {
        Rule { jvp: Jvp::Refused, transpose: None, note }
    }

    fn structure(note: &'static str) -> Rule<'a> {
        Rule { jvp: Jvp::Structure, transpose: None, note }
    }

    fn note(self, note: &'static str) -> Rule<'a> {
        Rule { note, ..self }
    }
}

/// The rule of an op.
pub(crate) fn rule(op: &Op) -> Rule<'_> {
    match op {
        Op::Param { .. } => Rule::structure("its tangent is a parameter too, or zero"),
        Op::Const(_) | Op::Iota { .. } => Rule::zero("a constant"),
        Op::RandomBits { .. } => Rule::discrete("bits of an integer key"),
        Op::AxisIndex { .. } => Rule::discrete("an integer constant"),
        Op::Unary(u) => elementwise::unary(*u),
        Op::Convert(to) => elementwise::convert(*to),
        Op::Bitcast(_) => Rule::refused("bits have no derivative"),
        Op::Binary(b) => elementwise::binary(*b),
        Op::Compare(_) => Rule::zero("gives bool"),
        Op::Select => elementwise::select(),
        Op::Reshape { .. } => shape::reshape(),
        Op::Transpose { perm } => shape::transpose(perm),
        Op::Broadcast { dims, map } => shape::broadcast(dims, map),
        Op::Slice { start, stride, .. } => shape::slice(start, stride),
        Op::Pad { low, interior, .. } => shape::pad(low, interior),
        Op::Concat { dim } => shape::concat(*dim),
        Op::Reverse { .. } => shape::reverse(),
        Op::DynamicSlice { .. } => index::dynamic_slice(),
        Op::DynamicUpdateSlice => index::dynamic_update_slice(),
        Op::Reduce { kind, dims } => reduce::reduce(*kind, dims),
        Op::Argmax { .. } => Rule::zero("gives an index"),
        Op::Dot { dims, .. } => contract::dot(dims),
        Op::Conv { dims, .. } => contract::conv(dims),
        Op::Take { dim } => index::take(*dim),
        Op::ScatterAdd { dim } => index::scatter_add(*dim),
        Op::Reshard { .. } => collective::reshard(),
        Op::AllReduce { kind, axes } => collective::all_reduce(*kind, axes),
        Op::AllGather { axis, dim } => collective::all_gather(axis, *dim),
        Op::ReduceScatter { axis, dim } => collective::reduce_scatter(axis, *dim),
        Op::AllToAll { axis, split, concat } => collective::all_to_all(axis, *split, *concat),
        Op::Ppermute { axis, pairs } => collective::ppermute(axis, pairs),
        Op::Call { remat: false, .. } => Rule::structure("inlined where a tangent reaches it"),
        Op::Call { remat: true, .. } => Rule::structure("a call of the derivative; reverse mode recomputes the callee"),
        Op::OptimizationBarrier => Rule::structure("linear: a barrier for tangents, a barrier for cotangents"),
        Op::Composite { .. } => Rule::structure("inlined where a tangent reaches it; attention has rules of its own"),
    }
}

impl At<'_> {
    /// `value` at the dims of `like`. A constant is in no place: it combines with operands laid out anyhow.
    fn constant(&mut self, like: ValueId, value: f64) -> Result<ValueId> {
        let like = self.b.ty(like);
        let ty = Type::new(like.dtype, like.dims.clone());
        self.b.full(&ty, value)
    }

    /// A zero tangent of operand `i`.
    fn zero_tangent(&mut self, i: usize) -> Result<ValueId> {
        self.b.full(&self.ty[i], 0.0)
    }

    /// A zero cotangent of operand `i`.
    fn zero_cotangent(&mut self, i: usize) -> Result<ValueId> {
        self.b.full(&cotangent_type(&self.ty[i]), 0.0)
    }

    /// The node's own op on other operands.
    fn again(&mut self, operands: &[ValueId]) -> Result<ValueId> {
        self.b.emit(self.op.clone(), operands)
    }

    /// The value every element of `v` has, if it is plainly constant.
    fn splat(&self, v: ValueId) -> Option<f64> {
        let node = self.b.func().def(v);
        match &node.op {
            Op::Const(array) => array.as_splat().map(|s| s.to_f64()),
            Op::Broadcast { .. } | Op::Reshape { .. } | Op::Reshard { .. } => self.splat(node.operands[0]),
            _ => None,
        }
    }
}

/// The result's tangent at a node of which some operands have tangents.
pub(crate) fn tangent(at: &mut At, dx: &[Option<ValueId>]) -> Result<Option<ValueId>> {
    let op = at.op;
    let rule = rule(op);
    let present = || dx.iter().enumerate().filter_map(|(i, d)| d.map(|d| (i, d)));
    let mut sum = None;
    let add = |at: &mut At, sum: Option<ValueId>, term| match sum {
        None => Ok::<_, dnx_ir::Error>(Some(term)),
        Some(s) => at.b.add(s, term).map(Some),
    };
    match rule.jvp {
        Jvp::Same => {
            let (linear, _) = rule.transpose.as_ref().expect("a linear op has a transpose");
            let mut operands = at.x.to_vec();
            for i in 0..operands.len() {
                if linear.admits(i) {
                    operands[i] = match dx[i] {
                        Some(d) => d,
                        None => at.zero_tangent(i)?,
                    };
                }
            }
            sum = Some(at.again(&operands)?);
        }
        Jvp::Product => {
            for (i, d) in present() {
                let mut operands = at.x.to_vec();
                operands[i] = d;
                let term = at.again(&operands)?;
                sum = add(at, sum, term)?;
            }
        }
        Jvp::Terms(term) => {
            for (i, d) in present() {
                let term = term(at, i, d)?;
                sum = add(at, sum, term)?;
            }
        }
        Jvp::Joint(jvp) => sum = jvp(at, dx)?,
        Jvp::Zero | Jvp::Discrete => {}
        Jvp::Refused | Jvp::Structure => unreachable!("the walk does not ask {} for a tangent", op.name()),
    }
    Ok(sum)
}
