//! The body of a pass: what happens to one vector of elements, as a graph of machine operations.
//!
//! Elementary functions are those of [`super::super::math`], operation for operation, so that a pass gives the bits
//! the plan's steps would.

use super::super::ops::Pointwise;
use dnx_ir::DType;
use std::collections::HashMap;

/// A node of a body.
pub(super) type Id = usize;

/// How the elements of a stream lie in memory. In registers they are words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Storage {
    Word,
    F16,
    Bf16,
}

impl Storage {
    pub(crate) fn of(dtype: DType) -> Storage {
        match dtype {
            DType::F16 => Storage::F16,
            DType::BF16 => Storage::Bf16,
            DType::F32 | DType::I32 | DType::U32 | DType::Bool | DType::F64 => Storage::Word,
        }
    }

    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Storage::Word => 4,
            Storage::F16 | Storage::Bf16 => 2,
        }
    }
}

/// Operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum One {
    Sqrt,
    Floor,
    FromI,
    FromU,
    AbsI,
    Shl(u8),
    ShrI(u8),
    ShrU(u8),
    Rotate(u8),
    /// The nearest `f16`; ties to even.
    RoundF16,
}

/// Operations of two operands. `Max` and `Min` are the processor's: the second operand where they do not compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Two {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    /// `a 2^floor(b)`
    Scale,
    AddI,
    SubI,
    MulI,
    MaxI,
    MaxU,
    MinI,
    MinU,
    And,
    Or,
    Xor,
}

/// Sums of a product, rounded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Three {
    /// `a b + c`
    Add,
    /// `a b - c`
    Sub,
    /// `-a b + c`
    From,
}

/// Comparisons, with the processor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Test {
    Float(u8),
    Signed(u8),
    Unsigned(u8),
}

/// A machine operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// The elements of a stream.
    Load(usize, Storage),
    /// One element of a stream, for all lanes.
    Splat(usize),
    /// A constant.
    Word(u32),
    One(One, Id),
    Two(Two, Id, Id),
    Three(Three, Id, Id, Id),
    /// `x` where `a` and `b` compare so, else `y`: `a, b, x, y`.
    Pick(Test, Id, Id, Id, Id),
    /// `x` where the word is not 0, else `y`: `word, x, y`.
    PickWord(Id, Id, Id),
}

impl Node {
    /// The nodes it reads.
    pub(super) fn reads(&self) -> Vec<Id> {
        match *self {
            Node::Load(..) | Node::Splat(_) | Node::Word(_) => vec![],
            Node::One(_, a) => vec![a],
            Node::Two(_, a, b) => vec![a, b],
            Node::Three(_, a, b, c) | Node::PickWord(a, b, c) => vec![a, b, c],
            Node::Pick(_, a, b, x, y) => vec![a, b, x, y],
        }
    }
}

const EQ: u8 = 0;
const NE: u8 = 4;
const LT: u8 = 17;
const LE: u8 = 18;
const GT: u8 = 30;
const GE: u8 = 29;
const UNORDERED: u8 = 3;

/// A body in the making. Equal nodes are one.
#[derive(Default)]
pub(super) struct Body {
    pub(super) nodes: Vec<Node>,
    known: HashMap<Node, Id>,
}

impl Body {
    pub(super) fn node(&mut self, node: Node) -> Id {
        if let Some(&id) = self.known.get(&node) {
            return id;
        }
        self.nodes.push(node);
        self.known.insert(node, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn word(&mut self, bits: u32) -> Id {
        self.node(Node::Word(bits))
    }

    fn float(&mut self, x: f32) -> Id {
        self.word(x.to_bits())
    }

    fn one(&mut self, op: One, a: Id) -> Id {
        self.node(Node::One(op, a))
    }

    fn two(&mut self, op: Two, a: Id, b: Id) -> Id {
        self.node(Node::Two(op, a, b))
    }

    fn three(&mut self, op: Three, a: Id, b: Id, c: Id) -> Id {
        self.node(Node::Three(op, a, b, c))
    }

    fn pick(&mut self, test: Test, a: Id, b: Id, x: Id, y: Id) -> Id {
        self.node(Node::Pick(test, a, b, x, y))
    }

    /// 1 where it holds, else 0.
    fn truth(&mut self, test: Test, a: Id, b: Id) -> Id {
        let (one, zero) = (self.word(1), self.word(0));
        self.pick(test, a, b, one, zero)
    }

    fn polynomial<const N: usize>(&mut self, x: Id, coefficients: [f32; N]) -> Id {
        let mut y = self.float(coefficients[0]);
        for c in &coefficients[1..] {
            let c = self.float(*c);
            y = self.three(Three::Add, y, x, c);
        }
        y
    }

    fn negative(&mut self, x: Id) -> Id {
        let sign = self.word(0x8000_0000);
        self.two(Two::Xor, x, sign)
    }

    fn magnitude(&mut self, x: Id) -> Id {
        let rest = self.word(0x7fff_ffff);
        self.two(Two::And, x, rest)
    }

    /// `if x > bound { bound } else { x }`
    fn at_most(&mut self, x: Id, bound: f32) -> Id {
        let bound = self.float(bound);
        self.two(Two::Min, bound, x)
    }

    /// `if x < bound { bound } else { x }`
    fn at_least(&mut self, x: Id, bound: f32) -> Id {
        let bound = self.float(bound);
        self.two(Two::Max, bound, x)
    }

    fn exp(&mut self, x: Id) -> Id {
        use super::super::math::{LN2_HI, LN2_LO, ROUND};
        let x = self.at_most(x, 89.0);
        let x = self.at_least(x, -104.5);
        let (log2_e, round) = (self.float(std::f32::consts::LOG2_E), self.float(ROUND));
        let t = self.three(Three::Add, x, log2_e, round);
        let n = self.two(Two::Sub, t, round);
        let (hi, lo) = (self.float(LN2_HI), self.float(LN2_LO));
        let r = self.three(Three::From, n, hi, x);
        let r = self.three(Three::From, n, lo, r);
        let p = self.polynomial(r, super::super::math::EXP);
        let square = self.two(Two::Mul, r, r);
        let y = self.three(Three::Add, p, square, r);
        let one = self.float(1.0);
        let y = self.two(Two::Add, y, one);
        self.two(Two::Scale, y, n)
    }

    fn log(&mut self, x: Id) -> Id {
        use super::super::math::{LN2_HI, LN2_LO, LOG};
        let (least, zero) = (self.float(f32::MIN_POSITIVE), self.word(0));
        let two_to_23 = self.float(8_388_608.0);
        let scaled = self.two(Two::Mul, x, two_to_23);
        let bits = self.pick(Test::Float(LT), x, least, scaled, x);
        let root = self.word(0x3f35_04f3);
        let k = self.two(Two::SubI, bits, root);
        let k = self.one(One::ShrI(23), k);
        let shifted = self.one(One::Shl(23), k);
        let m = self.two(Two::SubI, bits, shifted);
        let k = self.one(One::FromI, k);
        let places = self.float(23.0);
        let less = self.pick(Test::Float(LT), x, least, places, zero);
        let k = self.two(Two::Sub, k, less);
        let one = self.float(1.0);
        let f = self.two(Two::Sub, m, one);
        let two = self.float(2.0);
        let below = self.two(Two::Add, two, f);
        let s = self.two(Two::Div, f, below);
        let z = self.two(Two::Mul, s, s);
        let p = self.polynomial(z, LOG);
        let r = self.two(Two::Mul, p, z);
        let half = self.float(0.5);
        let half = self.two(Two::Mul, half, f);
        let half = self.two(Two::Mul, half, f);
        let (hi, lo) = (self.float(LN2_HI), self.float(LN2_LO));
        let sum = self.two(Two::Add, half, r);
        let low = self.two(Two::Mul, k, lo);
        let low = self.three(Three::Add, s, sum, low);
        let rest = self.two(Two::Sub, half, low);
        let rest = self.two(Two::Sub, f, rest);
        let y = self.three(Three::Add, k, hi, rest);
        let infinite = self.float(f32::INFINITY);
        let y = self.pick(Test::Float(EQ), x, infinite, infinite, y);
        let none = self.float(f32::NEG_INFINITY);
        let y = self.pick(Test::Float(EQ), x, zero, none, y);
        let nan = self.float(f32::NAN);
        self.pick(Test::Float(GE), x, zero, y, nan)
    }

    fn tanh(&mut self, x: Id) -> Id {
        use super::super::math::{TANH_P, TANH_Q};
        let x = self.at_most(x, 8.8);
        let x = self.at_least(x, -8.8);
        let z = self.two(Two::Mul, x, x);
        let p = self.polynomial(z, TANH_P);
        let p = self.two(Two::Mul, x, p);
        let q = self.polynomial(z, TANH_Q);
        let y = self.two(Two::Div, p, q);
        let y = self.at_most(y, 1.0);
        self.at_least(y, -1.0)
    }

    fn erf(&mut self, x: Id) -> Id {
        use super::super::math::{ERF_NEAR, ERF_REST, ERFC};
        let a = self.magnitude(x);
        let z = self.two(Two::Mul, x, x);
        let p = self.polynomial(z, ERF_NEAR);
        let p = self.two(Two::Mul, p, z);
        let small = self.float(ERF_REST);
        let small = self.two(Two::Mul, x, small);
        let rest = self.three(Three::Add, x, p, small);
        let slope = self.float(std::f32::consts::FRAC_2_SQRT_PI);
        let near = self.three(Three::Add, x, slope, rest);
        let b = self.at_most(a, 4.0);
        let (one, two) = (self.float(1.0), self.float(2.0));
        let t = self.two(Two::Add, b, two);
        let t = self.two(Two::Div, one, t);
        let q = self.polynomial(t, ERFC);
        let q = self.two(Two::Mul, q, t);
        let square = self.two(Two::Mul, b, b);
        let square = self.negative(square);
        let e = self.exp(square);
        let far = self.three(Three::From, q, e, one);
        let far = self.magnitude(far);
        let sign = self.word(0x8000_0000);
        let sign = self.two(Two::And, x, sign);
        let far = self.two(Two::Or, far, sign);
        let y = self.pick(Test::Float(LT), a, one, near, far);
        self.pick(Test::Float(UNORDERED), x, x, x, y)
    }

    fn threefry(&mut self, k0: Id, k1: Id, counter: Id) -> Id {
        use super::super::math::TURNS;
        let parity = self.word(super::super::math::PARITY);
        let k2 = self.two(Two::Xor, k0, k1);
        let keys = [k0, k1, self.two(Two::Xor, k2, parity)];
        let (mut a, mut b) = (k0, self.two(Two::AddI, counter, k1));
        for round in 0..5u32 {
            for turn in TURNS[round as usize % 2] {
                a = self.two(Two::AddI, a, b);
                b = self.one(One::Rotate(turn as u8), b);
                b = self.two(Two::Xor, b, a);
            }
            a = self.two(Two::AddI, a, keys[(round as usize + 1) % 3]);
            let number = self.word(round + 1);
            b = self.two(Two::AddI, b, keys[(round as usize + 2) % 3]);
            b = self.two(Two::AddI, b, number);
        }
        self.two(Two::Xor, a, b)
    }

    pub(super) fn round_bf16(&mut self, x: Id) -> Id {
        let (one, seven, high) = (self.word(1), self.word(0x7fff), self.word(0xffff_0000));
        let odd = self.one(One::ShrU(16), x);
        let odd = self.two(Two::And, odd, one);
        let up = self.two(Two::AddI, odd, seven);
        let rounded = self.two(Two::AddI, x, up);
        let rounded = self.two(Two::And, rounded, high);
        let quiet = self.word(0x0040_0000);
        let quiet = self.two(Two::Or, x, quiet);
        let quiet = self.two(Two::And, quiet, high);
        self.pick(Test::Float(UNORDERED), x, x, quiet, rounded)
    }

    /// A pointwise operation; `None` if it has no machine operations here.
    pub(super) fn point(&mut self, op: Pointwise, [a, b, c]: [Id; 3]) -> Option<Id> {
        use Pointwise::*;
        let zero = |s: &mut Body| s.word(0);
        Some(match op {
            Copy => a,
            NegF => self.negative(a),
            Exp => self.exp(a),
            Log => self.log(a),
            Tanh => self.tanh(a),
            Erf => self.erf(a),
            Sqrt => self.one(One::Sqrt, a),
            Rsqrt => {
                let (one, root) = (self.float(1.0), self.one(One::Sqrt, a));
                self.two(Two::Div, one, root)
            }
            AbsF => self.magnitude(a),
            SignF => {
                let (zero, one, less) = (zero(self), self.float(1.0), self.float(-1.0));
                let s = self.pick(Test::Float(GT), a, zero, one, zero);
                let s = self.pick(Test::Float(LT), a, zero, less, s);
                self.pick(Test::Float(UNORDERED), a, a, a, s)
            }
            Floor => self.one(One::Floor, a),
            IsFinite => {
                let mask = self.word(0x7f80_0000);
                let exponent = self.two(Two::And, a, mask);
                self.truth(Test::Signed(NE), exponent, mask)
            }
            NegI => {
                let zero = zero(self);
                self.two(Two::SubI, zero, a)
            }
            AbsI => self.one(One::AbsI, a),
            Not => {
                let ones = self.word(!0);
                self.two(Two::Xor, a, ones)
            }
            NotBool => {
                let zero = zero(self);
                self.truth(Test::Signed(EQ), a, zero)
            }
            AddF => self.two(Two::Add, a, b),
            SubF => self.two(Two::Sub, a, b),
            MulF => self.two(Two::Mul, a, b),
            DivF => self.two(Two::Div, a, b),
            MaxF => self.two(Two::Max, a, b),
            MinF => self.two(Two::Min, a, b),
            AddI => self.two(Two::AddI, a, b),
            SubI => self.two(Two::SubI, a, b),
            MulI => self.two(Two::MulI, a, b),
            MaxI => self.two(Two::MaxI, a, b),
            MaxU => self.two(Two::MaxU, a, b),
            MinI => self.two(Two::MinI, a, b),
            MinU => self.two(Two::MinU, a, b),
            And => self.two(Two::And, a, b),
            Or => self.two(Two::Or, a, b),
            Xor => self.two(Two::Xor, a, b),
            EqF => self.truth(Test::Float(EQ), a, b),
            NeF => self.truth(Test::Float(NE), a, b),
            LtF => self.truth(Test::Float(LT), a, b),
            LeF => self.truth(Test::Float(LE), a, b),
            GtF => self.truth(Test::Float(GT), a, b),
            GeF => self.truth(Test::Float(GE), a, b),
            // The processor's integer comparisons: 0 equal, 1 less, 2 less or equal, 4 to 6 their opposites.
            EqI => self.truth(Test::Signed(0), a, b),
            NeI => self.truth(Test::Signed(4), a, b),
            LtI => self.truth(Test::Signed(1), a, b),
            LeI => self.truth(Test::Signed(2), a, b),
            GtI => self.truth(Test::Signed(6), a, b),
            GeI => self.truth(Test::Signed(5), a, b),
            LtU => self.truth(Test::Unsigned(1), a, b),
            LeU => self.truth(Test::Unsigned(2), a, b),
            GtU => self.truth(Test::Unsigned(6), a, b),
            GeU => self.truth(Test::Unsigned(5), a, b),
            Select => self.node(Node::PickWord(a, b, c)),
            MulAdd => self.three(Three::Add, a, b, c),
            MulSub => self.three(Three::Sub, a, b, c),
            SubMul => self.three(Three::From, a, b, c),
            MulMul => {
                let product = self.two(Two::Mul, a, b);
                self.two(Two::Mul, product, c)
            }
            AddAdd => {
                let sum = self.two(Two::Add, a, b);
                self.two(Two::Add, sum, c)
            }
            AddThenMul => {
                let sum = self.two(Two::Add, a, b);
                self.two(Two::Mul, sum, c)
            }
            SubThenMul => {
                let difference = self.two(Two::Sub, a, b);
                self.two(Two::Mul, difference, c)
            }
            IToFloat => self.one(One::FromI, a),
            UToFloat => self.one(One::FromU, a),
            FloatToBool => {
                let zero = zero(self);
                self.truth(Test::Float(NE), a, zero)
            }
            IntToBool => {
                let zero = zero(self);
                self.truth(Test::Signed(4), a, zero)
            }
            RoundF16 => self.one(One::RoundF16, a),
            RoundBf16 => self.round_bf16(a),
            Threefry => self.threefry(a, b, c),
            SignI | SignU | Sin | Cos | PowF | RemF | DivI | DivU | RemI | RemU | Shl | ShrI | ShrU | FloatToI
            | FloatToU | F16BitsAsBf16 | Bf16BitsAsF16 => return None,
        })
    }
}

/// Whether an operation has machine operations.
pub(super) fn known(op: Pointwise) -> bool {
    Body::default().point(op, [0, 0, 0]).is_some()
}

/// Whether it is as cheap to do again as to keep the result.
pub(super) fn cheap(op: Pointwise) -> bool {
    use Pointwise::*;
    matches!(op, NegF | AbsF | AddF | SubF | MulF | MaxF | MinF | MulAdd | MulSub | SubMul | Copy)
}
