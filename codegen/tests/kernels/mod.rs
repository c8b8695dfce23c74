//! Kernels built by hand, one or more of each kind, over sizes that are no multiple of anything. Tests of the WGSL
//! writers and of the devices share them.
#![allow(dead_code)]

use dnx_codegen::kernel::*;
use dnx_ir::attention::Form;
use dnx_ir::{BinaryOp, CmpOp, DType, ReduceKind, Scalar, UnaryOp};

/// Builds a kernel instruction by instruction.
pub struct Build(pub Kernel);

impl Build {
    pub fn new(kind: Kind, dims: &[(usize, Role)]) -> Build {
        Build(Kernel {
            kind,
            dims: dims.iter().map(|&(size, role)| Dim { size, role }).collect(),
            args: vec![],
            insts: vec![],
            dtypes: vec![],
            stores: vec![],
            scatter: None,
            tile: Tile::default(),
        })
    }

    pub fn arg(&mut self, dtype: DType, elems: usize, access: Access) -> u32 {
        self.0.args.push(Arg { dtype, elems, access });
        self.0.args.len() as u32 - 1
    }

    pub fn read(&mut self, dtype: DType, elems: usize) -> u32 {
        self.arg(dtype, elems, Access::Read)
    }

    pub fn write(&mut self, dtype: DType, elems: usize) -> u32 {
        self.arg(dtype, elems, Access::Write)
    }

    pub fn inst(&mut self, dtype: DType, inst: Inst) -> InstId {
        self.0.insts.push(inst);
        self.0.dtypes.push(dtype);
        InstId(self.0.insts.len() as u32 - 1)
    }

    pub fn of(&self, id: InstId) -> DType {
        self.0.dtype(id)
    }

    pub fn load(&mut self, arg: u32, index: Idx) -> InstId {
        self.inst(self.0.args[arg as usize].dtype, Inst::Load { arg, index, dynamic: vec![] })
    }

    pub fn f32(&mut self, value: f64) -> InstId {
        self.constant(DType::F32, value)
    }

    pub fn constant(&mut self, dtype: DType, value: f64) -> InstId {
        self.inst(dtype, Inst::Const(Scalar::from_f64(dtype, value)))
    }

    pub fn unary(&mut self, op: UnaryOp, a: InstId) -> InstId {
        let dtype = if op == UnaryOp::IsFinite { DType::Bool } else { self.of(a) };
        self.inst(dtype, Inst::Unary(op, a))
    }

    pub fn binary(&mut self, op: BinaryOp, a: InstId, b: InstId) -> InstId {
        self.inst(self.of(a), Inst::Binary(op, a, b))
    }

    pub fn compare(&mut self, op: CmpOp, a: InstId, b: InstId) -> InstId {
        self.inst(DType::Bool, Inst::Compare(op, a, b))
    }

    pub fn select(&mut self, c: InstId, a: InstId, b: InstId) -> InstId {
        self.inst(self.of(a), Inst::Select(c, a, b))
    }

    pub fn convert(&mut self, to: DType, a: InstId) -> InstId {
        self.inst(to, Inst::Convert(to, a))
    }

    pub fn bitcast(&mut self, to: DType, a: InstId) -> InstId {
        self.inst(to, Inst::Bitcast(to, a))
    }

    pub fn reduce(&mut self, kind: ReduceKind, a: InstId) -> InstId {
        self.inst(self.of(a), Inst::Reduce(kind, a))
    }

    pub fn store(&mut self, arg: u32, index: Idx, value: InstId) {
        self.0.stores.push(Store { arg, index, value });
    }
}

/// `offset + sum of coefficient * coordinate`.
pub fn affine(offset: i64, terms: &[(i64, usize)]) -> Idx {
    let mut terms: Vec<(i64, Atom)> = terms.iter().map(|&(c, d)| (c, Atom::Dim(d as u32))).collect();
    terms.sort_by(|a, b| a.1.cmp(&b.1));
    Idx { offset, terms, checks: vec![] }
}

fn check(index: Idx, lo: i64, hi: i64, multiple: i64) -> Check {
    Check { index, lo, hi, multiple }
}

use Role::{Batch, M, N, Parallel, Reduce};

/// `silu(x) * y + 0.5` over n points.
pub fn loop_silu(n: usize) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let (x, y, out) = (b.read(DType::F32, n), b.read(DType::F32, n), b.write(DType::F32, n));
    let i = affine(0, &[(1, 0)]);
    let x = b.load(x, i.clone());
    let y = b.load(y, i.clone());
    let minus = b.unary(UnaryOp::Neg, x);
    let e = b.unary(UnaryOp::Exp, minus);
    let one = b.f32(1.0);
    let d = b.binary(BinaryOp::Add, one, e);
    let s = b.binary(BinaryOp::Div, x, d);
    let p = b.binary(BinaryOp::Mul, s, y);
    let half = b.f32(0.5);
    let r = b.binary(BinaryOp::Add, p, half);
    b.store(out, i, r);
    b.0
}

/// A transposed, padded, reversed and dilated view of `[h, w]`, in `[w + 3, 2 h + 1]`; and the row-major index.
pub fn loop_views(h: usize, w: usize) -> Kernel {
    let (rows, columns) = (w + 3, 2 * h + 1);
    let mut b = Build::new(Kind::Loop, &[(rows, Parallel), (columns, Parallel)]);
    let x = b.read(DType::F32, h * w);
    let (out, count) = (b.write(DType::F32, rows * columns), b.write(DType::I32, rows * columns));
    // Row r reads column w - 1 - (r - 1); column c reads row (c - 1) / 2 where c is odd.
    let half = Idx { offset: 0, terms: vec![(1, Atom::Div(Box::new(affine(-1, &[(1, 1)])), 2))], checks: vec![] };
    let mut index = affine(w as i64, &[(-1, 0)]);
    index.terms.push((w as i64, half.terms[0].1.clone()));
    index.checks =
        vec![check(affine(0, &[(1, 0)]), 1, 1 + w as i64, 1), check(affine(0, &[(1, 1)]), 1, 1 + 2 * h as i64, 2)];
    let v = b.load(x, index);
    let linear = affine(0, &[(columns as i64, 0), (1, 1)]);
    let n = b.inst(DType::I32, Inst::Index(DType::I32, linear.clone()));
    b.store(out, linear.clone(), v);
    b.store(count, linear, n);
    b.0
}

/// Every float function, each to its own output.
pub fn loop_functions(n: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let x = b.read(dtype, n);
    let x = b.load(x, i.clone());
    use UnaryOp::*;
    for op in [Neg, Exp, Log, Sin, Cos, Tanh, Erf, Sqrt, Rsqrt, Abs, Sign, Floor] {
        let out = b.write(dtype, n);
        let v = b.unary(op, x);
        b.store(out, i.clone(), v);
    }
    b.0
}

/// Every float function of two operands that is defined on all of them, and comparisons.
pub fn loop_binary(n: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let (x, y) = (b.read(dtype, n), b.read(dtype, n));
    let (x, y) = (b.load(x, i.clone()), b.load(y, i.clone()));
    use BinaryOp::*;
    let ops: &[BinaryOp] = match dtype {
        DType::I32 | DType::U32 => &[Add, Sub, Mul, Div, Max, Min, Rem, And, Or, Xor, Shl, Shr],
        DType::Bool => &[And, Or, Xor],
        _ => &[Add, Sub, Mul, Div, Max, Min, Rem],
    };
    for &op in ops {
        let out = b.write(dtype, n);
        let v = b.binary(op, x, y);
        b.store(out, i.clone(), v);
    }
    b.0
}

/// Comparisons of two operands, each to a `bool` output.
pub fn loop_compare(n: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let (x, y) = (b.read(dtype, n), b.read(dtype, n));
    let (x, y) = (b.load(x, i.clone()), b.load(y, i.clone()));
    for op in CmpOp::ALL {
        let out = b.write(DType::Bool, n);
        let v = b.compare(op, x, y);
        b.store(out, i.clone(), v);
    }
    b.0
}

/// `from` converted to every dtype.
pub fn loop_convert(n: usize, from: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let x = b.read(from, n);
    let x = b.load(x, i.clone());
    for to in [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::Bool] {
        let out = b.write(to, n);
        let v = b.convert(to, x);
        b.store(out, i.clone(), v);
    }
    b.0
}

/// `pow(x, y)` and `is_finite(x)`, and a NaN, an infinity and a constant expression.
pub fn loop_special(n: usize) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let (x, y) = (b.read(DType::F32, n), b.read(DType::F32, n));
    let (power, finite) = (b.write(DType::F32, n), b.write(DType::Bool, n));
    let (nan, infinite, quotient) = (b.write(DType::Bool, n), b.write(DType::F32, n), b.write(DType::F32, n));
    let (x, y) = (b.load(x, i.clone()), b.load(y, i.clone()));
    let p = b.binary(BinaryOp::Pow, x, y);
    let f = b.unary(UnaryOp::IsFinite, x);
    let c = b.f32(f64::NAN);
    let s = b.binary(BinaryOp::Add, x, c);
    let is_number = b.unary(UnaryOp::IsFinite, s);
    let inf = b.f32(f64::NEG_INFINITY);
    let (one, zero) = (b.f32(1.0), b.f32(0.0));
    let q = b.binary(BinaryOp::Div, one, zero);
    b.store(power, i.clone(), p);
    b.store(finite, i.clone(), f);
    b.store(nan, i.clone(), is_number);
    b.store(infinite, i.clone(), inf);
    b.store(quotient, i, q);
    b.0
}

/// Random bits, and a uniform number made of them.
pub fn loop_random(n: usize) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let key = b.read(DType::U32, 2);
    let (bits, uniform) = (b.write(DType::U32, n), b.write(DType::F32, n));
    let k0 = b.load(key, affine(0, &[]));
    let k1 = b.load(key, affine(1, &[]));
    let counter = b.inst(DType::U32, Inst::Index(DType::U32, affine(7, &[(1, 0)])));
    let r = b.inst(DType::U32, Inst::Threefry { k0, k1, counter });
    let nine = b.constant(DType::U32, 9.0);
    let mantissa = b.binary(BinaryOp::Shr, r, nine);
    let one = b.constant(DType::U32, 0x3f80_0000 as f64);
    let word = b.binary(BinaryOp::Or, mantissa, one);
    let f = b.bitcast(DType::F32, word);
    let c = b.f32(1.0);
    let u = b.binary(BinaryOp::Sub, f, c);
    b.store(bits, i.clone(), r);
    b.store(uniform, i, u);
    b.0
}

/// `take` along the rows of a `[rows, d]` table at `n` indices of any value, of a 16-bit table too.
pub fn loop_take(n: usize, rows: usize, d: usize, table: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel), (d, Parallel)]);
    let (t, at, out) = (b.read(table, rows * d), b.read(DType::I32, n), b.write(table, n * d));
    let value = b.load(at, affine(0, &[(1, 0)]));
    let dynamic = vec![DynTerm { value, limit: rows as i64 - 1, stride: d as i64 }];
    let v = b.inst(table, Inst::Load { arg: t, index: affine(0, &[(1, 1)]), dynamic });
    b.store(out, affine(0, &[(d as i64, 0), (1, 1)]), v);
    b.0
}

/// `[m, n]` transposed, of any dtype: every invocation writes far from its neighbours.
pub fn loop_transpose(m: usize, n: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(m, Parallel), (n, Parallel)]);
    let (x, out) = (b.read(dtype, m * n), b.write(dtype, m * n));
    let v = b.load(x, affine(0, &[(n as i64, 0), (1, 1)]));
    b.store(out, affine(0, &[(1, 0), (m as i64, 1)]), v);
    b.0
}

/// `x += y` in place.
pub fn loop_in_place(n: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Loop, &[(n, Parallel)]);
    let i = affine(0, &[(1, 0)]);
    let (x, y) = (b.arg(dtype, n, Access::ReadWrite), b.read(dtype, n));
    let (v, y) = (b.load(x, i.clone()), b.load(y, i.clone()));
    let s = b.binary(BinaryOp::Add, v, y);
    b.store(x, i, s);
    b.0
}

/// Softmax of `[rows, n]`; stores the log-sum-exp of each row too.
pub fn row_softmax(rows: usize, n: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Row, &[(rows, Parallel), (n, Reduce)]);
    let (x, out, lse) = (b.read(dtype, rows * n), b.write(dtype, rows * n), b.write(DType::F32, rows));
    let i = affine(0, &[(n as i64, 0), (1, 1)]);
    let v = b.load(x, i.clone());
    let v = b.convert(DType::F32, v);
    let max = b.reduce(ReduceKind::Max, v);
    let d = b.binary(BinaryOp::Sub, v, max);
    let e = b.unary(UnaryOp::Exp, d);
    let sum = b.reduce(ReduceKind::Sum, e);
    let p = b.binary(BinaryOp::Div, e, sum);
    let p = b.convert(dtype, p);
    let log = b.unary(UnaryOp::Log, sum);
    let l = b.binary(BinaryOp::Add, log, max);
    b.store(out, i, p);
    b.store(lse, affine(0, &[(1, 0)]), l);
    b.0
}

/// Layer norm of `[a, b, n]` with a weight of `[n]`, the row being the last dim; two dims of rows.
pub fn row_norm(a: usize, c: usize, n: usize) -> Kernel {
    let mut b = Build::new(Kind::Row, &[(a, Parallel), (c, Parallel), (n, Reduce)]);
    let (x, weight, out) = (b.read(DType::F32, a * c * n), b.read(DType::F32, n), b.write(DType::F32, a * c * n));
    let i = affine(0, &[((c * n) as i64, 0), (n as i64, 1), (1, 2)]);
    let v = b.load(x, i.clone());
    let sum = b.reduce(ReduceKind::Sum, v);
    let scale = b.f32(1.0 / n as f64);
    let mean = b.binary(BinaryOp::Mul, sum, scale);
    let d = b.binary(BinaryOp::Sub, v, mean);
    let square = b.binary(BinaryOp::Mul, d, d);
    let squares = b.reduce(ReduceKind::Sum, square);
    let variance = b.binary(BinaryOp::Mul, squares, scale);
    let eps = b.f32(1e-5);
    let variance = b.binary(BinaryOp::Add, variance, eps);
    let r = b.unary(UnaryOp::Rsqrt, variance);
    let y = b.binary(BinaryOp::Mul, d, r);
    let weight = b.load(weight, affine(0, &[(1, 2)]));
    let y = b.binary(BinaryOp::Mul, y, weight);
    b.store(out, i, y);
    b.0
}

/// Argmax of the rows of `[rows, h, w]` over the last two dims, and their sum.
pub fn row_argmax(rows: usize, h: usize, w: usize, dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Row, &[(rows, Parallel), (h, Reduce), (w, Reduce)]);
    let (x, at, total) = (b.read(dtype, rows * h * w), b.write(DType::I32, rows), b.write(dtype, rows));
    let v = b.load(x, affine(0, &[((h * w) as i64, 0), (w as i64, 1), (1, 2)]));
    let i = b.inst(DType::I32, Inst::Argmax(v));
    let s = b.reduce(ReduceKind::Sum, v);
    b.store(at, affine(0, &[(1, 0)]), i);
    b.store(total, affine(0, &[(1, 0)]), s);
    b.0
}

/// Bias gradient: the sum over rows of `[rows, n]`, the maximum of the squares, and the squares themselves.
pub fn column_sum(rows: usize, n: usize, split: u32) -> Kernel {
    let mut b = Build::new(Kind::Column, &[(rows, Reduce), (n, Parallel)]);
    b.0.tile.split = split;
    let x = b.read(DType::F32, rows * n);
    let (sum, max, squares) = (b.write(DType::F32, n), b.write(DType::F32, n), b.write(DType::F32, rows * n));
    let i = affine(0, &[(n as i64, 0), (1, 1)]);
    let v = b.load(x, i.clone());
    let s = b.reduce(ReduceKind::Sum, v);
    let square = b.binary(BinaryOp::Mul, v, v);
    let m = b.reduce(ReduceKind::Max, square);
    let scale = b.f32(0.5);
    let s = b.binary(BinaryOp::Mul, s, scale);
    b.store(sum, affine(0, &[(1, 1)]), s);
    b.store(max, affine(0, &[(1, 1)]), m);
    b.store(squares, i, square);
    b.0
}

/// The sum of everything.
pub fn column_total(n: usize) -> Kernel {
    let mut b = Build::new(Kind::Column, &[(n, Reduce)]);
    let (x, out) = (b.read(DType::F32, n), b.write(DType::F32, 1));
    let v = b.load(x, affine(0, &[(1, 0)]));
    let square = b.binary(BinaryOp::Mul, v, v);
    let s = b.reduce(ReduceKind::Sum, square);
    let root = b.unary(UnaryOp::Sqrt, s);
    b.store(out, affine(0, &[]), root);
    b.0
}

/// `out[z, m, n] = silu(a[z, m, k]) b[z, k, n] + bias[n]`, the left side transposed in memory if asked.
pub fn contract_matmul(z: usize, m: usize, n: usize, k: usize, dtype: DType, transposed: bool) -> Kernel {
    let mut b = Build::new(Kind::Contract, &[(z, Batch), (m, M), (n, N), (k, Reduce)]);
    let (x, y) = (b.read(dtype, z * m * k), b.read(dtype, z * k * n));
    let sum = if dtype.is_float() { DType::F32 } else { dtype };
    let (bias, out) = (b.read(sum, n), b.write(sum, z * m * n));
    let at = if transposed { [(m * k, 0), (1, 1), (m, 3)] } else { [(m * k, 0), (k, 1), (1, 3)] };
    let at: Vec<(i64, usize)> = at.iter().map(|&(c, d)| (c as i64, d)).collect();
    let mut lhs = b.load(x, affine(0, &at));
    if dtype.is_float() {
        lhs = b.convert(DType::F32, lhs);
        lhs = b.unary(UnaryOp::Tanh, lhs);
    }
    let mut rhs = b.load(y, affine(0, &[((k * n) as i64, 0), (n as i64, 3), (1, 2)]));
    if dtype.is_float() {
        rhs = b.convert(DType::F32, rhs);
    }
    let dot = b.inst(sum, Inst::Dot { lhs, rhs });
    let bias = b.load(bias, affine(0, &[(1, 2)]));
    let v = b.binary(BinaryOp::Add, dot, bias);
    b.store(out, affine(0, &[((m * n) as i64, 0), (n as i64, 1), (1, 2)]), v);
    b.0
}

/// Which of both operands is transposed in memory: nothing, the left, the right, both.
pub const LAYOUTS: [&str; 4] = ["nn", "tn", "nt", "tt"];

/// `out[z, m, n] = a b * scale[m] + out[z, m, n]`, in place and rounded to `dtype`, operands in any layout.
pub fn contract_layout(z: usize, m: usize, n: usize, k: usize, dtype: DType, layout: &str) -> Kernel {
    let mut b = Build::new(Kind::Contract, &[(z, Batch), (m, M), (n, N), (k, Reduce)]);
    let (x, y) = (b.read(dtype, z * m * k), b.read(dtype, z * k * n));
    let (scale, out) = (b.read(DType::F32, m), b.arg(dtype, z * m * n, Access::ReadWrite));
    let [zl, zr, zo] = [m * k, k * n, m * n].map(|c| (c as i64, 0));
    let lhs = if layout.starts_with('t') { [zl, (1, 1), (m as i64, 3)] } else { [zl, (k as i64, 1), (1, 3)] };
    let rhs = if layout.ends_with('t') { [zr, (k as i64, 2), (1, 3)] } else { [zr, (1, 2), (n as i64, 3)] };
    let lhs = b.load(x, affine(0, &lhs));
    let rhs = b.load(y, affine(0, &rhs));
    let dot = b.inst(DType::F32, Inst::Dot { lhs, rhs });
    let scale = b.load(scale, affine(0, &[(1, 1)]));
    let v = b.binary(BinaryOp::Mul, dot, scale);
    let at = affine(0, &[zo, (n as i64, 1), (1, 2)]);
    let old = b.load(out, at.clone());
    let old = b.convert(DType::F32, old);
    let v = b.binary(BinaryOp::Add, v, old);
    let v = b.convert(dtype, v);
    b.store(out, at, v);
    b.0
}

/// `out[z, m, n] = tanh(a) b + bias[n]` with operands of `f16` and sums of `f32`.
pub fn contract_half(z: usize, m: usize, n: usize, k: usize) -> Kernel {
    let mut b = Build::new(Kind::Contract, &[(z, Batch), (m, M), (n, N), (k, Reduce)]);
    let (x, y) = (b.read(DType::F16, z * m * k), b.read(DType::F16, z * k * n));
    let (bias, out) = (b.read(DType::F32, n), b.write(DType::F32, z * m * n));
    let lhs = b.load(x, affine(0, &[((m * k) as i64, 0), (k as i64, 1), (1, 3)]));
    let lhs = b.unary(UnaryOp::Tanh, lhs);
    let rhs = b.load(y, affine(0, &[((k * n) as i64, 0), (1, 2), (n as i64, 3)]));
    let dot = b.inst(DType::F32, Inst::Dot { lhs, rhs });
    let bias = b.load(bias, affine(0, &[(1, 2)]));
    let v = b.binary(BinaryOp::Add, dot, bias);
    b.store(out, affine(0, &[((m * n) as i64, 0), (n as i64, 1), (1, 2)]), v);
    b.0
}

/// A 3x3 convolution with stride and padding 1: `[n, s, s, c]` by `[3, 3, c, o]`.
pub fn contract_conv(n: usize, s: usize, c: usize, o: usize, stride: usize) -> Kernel {
    let t = (s + 2 - 3) / stride + 1;
    let dims = [(n, M), (t, M), (t, M), (o, N), (3, Reduce), (3, Reduce), (c, Reduce)];
    let mut b = Build::new(Kind::Contract, &dims);
    let (x, y, out) =
        (b.read(DType::F32, n * s * s * c), b.read(DType::F32, 9 * c * o), b.write(DType::F32, n * t * t * o));
    let (s, c, o, t, stride) = (s as i64, c as i64, o as i64, t as i64, stride as i64);
    let row = affine(-1, &[(stride, 1), (1, 4)]);
    let column = affine(-1, &[(stride, 2), (1, 5)]);
    let terms = [(s * s * c, 0), (stride * s * c, 1), (stride * c, 2), (s * c, 4), (c, 5), (1, 6)];
    let mut index = affine(-s * c - c, &terms);
    index.checks = vec![check(row, 0, s, 1), check(column, 0, s, 1)];
    let lhs = b.load(x, index);
    let rhs = b.load(y, affine(0, &[(3 * c * o, 4), (c * o, 5), (o, 6), (1, 3)]));
    let dot = b.inst(DType::F32, Inst::Dot { lhs, rhs });
    b.store(out, affine(0, &[(t * t * o, 0), (t * o, 1), (o, 2), (1, 3)]), dot);
    b.0
}

/// `scatter_add` of `n` updates of `d` into `[outer, rows, d]`.
pub fn index_scatter(outer: usize, n: usize, rows: usize, d: usize, dtype: DType, base: bool) -> Kernel {
    let mut b = Build::new(Kind::Index, &[(outer, Parallel), (n, Reduce), (d, Parallel)]);
    let elems = outer * rows * d;
    let (at, x) = (b.read(DType::I32, n), b.read(dtype, outer * n * d));
    let base = base.then(|| b.read(dtype, elems));
    let out = b.write(dtype, elems);
    let target = b.load(at, affine(0, &[(1, 1)]));
    let update = b.load(x, affine(0, &[((n * d) as i64, 0), (d as i64, 1), (1, 2)]));
    b.0.scatter = Some(Scatter { target, update, rows, base, out });
    b.0
}

/// Momentum descent on many tensors: `m = 0.9 m + g`, `x -= rate * m`.
pub fn multi_momentum(dtype: DType) -> Kernel {
    let mut b = Build::new(Kind::Multi, &[(0, Parallel)]);
    let (x, m) = (b.arg(dtype, 0, Access::ReadWrite), b.arg(DType::F32, 0, Access::ReadWrite));
    let (g, rate) = (b.read(DType::F32, 0), b.read(DType::F32, 1));
    let i = affine(0, &[(1, 0)]);
    let value = b.load(x, i.clone());
    let value = b.convert(DType::F32, value);
    let momentum = b.load(m, i.clone());
    let gradient = b.load(g, i.clone());
    let rate = b.load(rate, affine(0, &[]));
    let decay = b.f32(0.9);
    let kept = b.binary(BinaryOp::Mul, momentum, decay);
    let momentum = b.binary(BinaryOp::Add, kept, gradient);
    let step = b.binary(BinaryOp::Mul, momentum, rate);
    let value = b.binary(BinaryOp::Sub, value, step);
    let value = b.convert(dtype, value);
    b.store(x, i.clone(), value);
    b.store(m, i, momentum);
    b.0
}

/// Attention of `[b, m, h, d]` over `n` keys: forward, along tangents, or against cotangents. A bias of a number a query
/// and key; of half floats everything but the logarithms.
pub fn attention(form: Form, [b, m, h, d]: [usize; 4], n: usize, dtype: DType, biased: bool, causal: bool) -> Kernel {
    let mut k = Build::new(Kind::Attention, &[(b, Batch), (h, Batch), (m, M), (n, N), (d, Reduce)]);
    let (of_m, of_n) = (
        affine(0, &[((m * h * d) as i64, 0), (d as i64, 1), ((h * d) as i64, 2), (1, 4)]),
        affine(0, &[((n * h * d) as i64, 0), (d as i64, 1), ((h * d) as i64, 3), (1, 4)]),
    );
    let of_row = affine(0, &[((h * m) as i64, 0), (m as i64, 1), (1, 2)]);
    let operand = |k: &mut Build, dtype: DType, elems: usize, at: &Idx| {
        let arg = k.read(dtype, elems);
        let x = k.load(arg, at.clone());
        if dtype == DType::F32 { x } else { k.convert(DType::F32, x) }
    };
    let (rows, columns) = (b * m * h * d, b * n * h * d);
    let one = |k: &mut Build, at: &Idx| operand(k, dtype, if *at == of_m { rows } else { columns }, at);
    let qkv = [one(&mut k, &of_m), one(&mut k, &of_n), one(&mut k, &of_n)];
    let given = match form {
        Form::Forward => Given::Nothing,
        Form::Jvp => Given::Tangents {
            o: one(&mut k, &of_m),
            lse: operand(&mut k, DType::F32, b * h * m, &of_row),
            of: [one(&mut k, &of_m), one(&mut k, &of_n), one(&mut k, &of_n)],
            bias: biased.then(|| operand(&mut k, DType::F32, m * n, &affine(0, &[(n as i64, 2), (1, 3)]))),
        },
        Form::Backward => Given::Cotangents {
            o: one(&mut k, &of_m),
            lse: operand(&mut k, DType::F32, b * h * m, &of_row),
            of: [one(&mut k, &of_m), operand(&mut k, DType::F32, b * h * m, &of_row)],
        },
    };
    let bias = biased.then(|| operand(&mut k, DType::F32, n, &affine(0, &[(1, 3)])));
    let parts: &[Part] = if form == Form::Backward { &[Part::Q, Part::K, Part::V] } else { &[Part::O, Part::Lse] };
    for &part in parts {
        let scale = Scalar::from_f64(DType::F32, 0.25);
        let body = Attention { part, scale, causal, qkv, bias, given: given.clone() };
        let value = k.inst(DType::F32, Inst::Attention(Box::new(body)));
        let (elems, at) = match part {
            Part::Lse => (b * h * m, &of_row),
            Part::O | Part::Q => (rows, &of_m),
            Part::K | Part::V => (columns, &of_n),
        };
        let dtype = if part == Part::Lse { DType::F32 } else { dtype };
        let value = if dtype == DType::F32 { value } else { k.convert(dtype, value) };
        let out = k.write(dtype, elems);
        k.store(out, at.clone(), value);
    }
    k.0
}

/// One of each, with names.
pub fn gallery() -> Vec<(String, Kernel)> {
    let mut all: Vec<(String, Kernel)> = Vec::new();
    let mut add = |name: &str, kernel: Kernel| all.push((name.to_string(), kernel));
    add("loop_silu", loop_silu(257));
    add("loop_views", loop_views(5, 7));
    add("loop_functions", loop_functions(65, DType::F32));
    add("loop_functions_f16", loop_functions(65, DType::F16));
    add("loop_functions_bf16", loop_functions(65, DType::BF16));
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::Bool] {
        add(&format!("loop_binary_{dtype}"), loop_binary(65, dtype));
        add(&format!("loop_compare_{dtype}"), loop_compare(65, dtype));
        add(&format!("loop_convert_{dtype}"), loop_convert(65, dtype));
        add(&format!("loop_transpose_{dtype}"), loop_transpose(5, 13, dtype));
    }
    add("loop_special", loop_special(65));
    add("loop_random", loop_random(65));
    add("loop_take", loop_take(9, 5, 7, DType::F32));
    add("loop_take_bf16", loop_take(9, 5, 7, DType::BF16));
    add("loop_in_place", loop_in_place(65, DType::F32));
    add("loop_in_place_bf16", loop_in_place(65, DType::BF16));
    add("loop_two_rows_of_workgroups", loop_silu(64 * 65_536 + 3));
    add("row_softmax", row_softmax(3, 300, DType::F32));
    add("row_softmax_short", row_softmax(70, 5, DType::F32));
    add("row_softmax_long", row_softmax(2, 5000, DType::F32));
    add("row_softmax_f16", row_softmax(3, 65, DType::F16));
    add("row_norm", row_norm(2, 5, 65));
    add("row_argmax", row_argmax(3, 7, 11, DType::F32));
    add("row_argmax_i32", row_argmax(3, 7, 11, DType::I32));
    add("column_sum", column_sum(300, 65, 0));
    add("column_sum_split", column_sum(300, 65, 4));
    add("column_total", column_total(100_001));
    add("contract_matmul", contract_matmul(1, 65, 63, 17, DType::F32, false));
    add("contract_matmul_f16", contract_matmul(2, 65, 63, 17, DType::F16, true));
    add("contract_matmul_i32", contract_matmul(2, 3, 5, 65, DType::I32, true));
    add("contract_conv", contract_conv(2, 7, 3, 5, 2));
    let mut split = contract_matmul(2, 5, 3, 257, DType::F32, false);
    split.tile.split = 3;
    add("contract_split", split);
    let mut large = contract_matmul(1, 130, 130, 20, DType::F32, false);
    large.tile.block = [128, 128, 8];
    large.tile.per_invocation = [8, 8];
    add("contract_large_tile", large);
    for layout in LAYOUTS {
        add(&format!("contract_{layout}"), contract_layout(2, 36, 20, 28, DType::F32, layout));
        add(&format!("contract_{layout}_bf16"), contract_layout(2, 36, 20, 28, DType::BF16, layout));
        add(&format!("contract_{layout}_f16"), contract_layout(2, 36, 20, 28, DType::F16, layout));
    }
    for (name, form) in [("attention", Form::Forward), ("attention_jvp", Form::Jvp), ("attention_bwd", Form::Backward)]
    {
        add(name, attention(form, [2, 17, 3, 20], 35, DType::F32, false, false));
        add(&format!("{name}_f16"), attention(form, [1, 65, 1, 256], 70, DType::F16, true, true));
    }
    add("index_scatter", index_scatter(2, 9, 4, 3, DType::F32, true));
    add("index_scatter_bf16", index_scatter(1, 9, 4, 3, DType::BF16, false));
    add("multi_momentum", multi_momentum(DType::F32));
    add("multi_momentum_bf16", multi_momentum(DType::BF16));
    all
}
