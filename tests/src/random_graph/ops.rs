//! One idea per function: what [`Gen::grow`] adds to a program.

use super::{Gen, Item, Rng};
use dnx_ir::attention::attention;
use dnx_ir::{BinaryOp, CmpOp, ConvDims, DType, DotDims, Graph, Op, Tensor, UnaryOp, random, threefry};
use std::sync::Arc;

impl<'g> Gen<'g, '_> {
    pub(super) fn unary(&mut self) {
        let x = self.float();
        let (t, b) = (x.t, x.bound);
        let one_plus_square = t * t + 1.0;
        let shrink = |t: Tensor<'g>| if b > 1.0 { t * (1.0 / b) } else { t };
        let (y, bound) = match self.rng.below(if self.cfg.smooth { 11 } else { 12 }) {
            0 => (-t, b),
            1 => (shrink(t).exp(), 1f64.exp()),
            2 => (one_plus_square.log(), (1.0 + b * b).ln()),
            3 => (t.sin(), 1.0),
            4 => (t.cos(), 1.0),
            5 => (t.tanh(), 1.0),
            6 => (t.erf(), 1.0),
            7 => (one_plus_square.sqrt(), 1.0 + b),
            8 => (one_plus_square.rsqrt(), 1.0),
            9 => (t.silu(), b),
            10 if self.rng.once_in(3) => (t.stop_gradient(), b),
            10 => (t * 0.75 + 0.25, 0.75 * b + 0.25),
            _ => (t.abs(), b),
        };
        self.push(y, bound, false);
    }

    pub(super) fn binary(&mut self) {
        let x = self.float();
        let y = self.mate(&x.t.dims(), false);
        let (a, b) = (x.bound, y.bound);
        let (t, bound) = match self.rng.below(if self.cfg.smooth { 5 } else { 7 }) {
            0 => (x.t + y.t, a + b),
            1 => (x.t - y.t, a + b),
            2 => (x.t * y.t, a * b),
            3 => (x.t / (y.t * y.t + 1.0), a),
            4 => ((x.t * x.t + 1.0).pow(y.t.tanh()), 1.0 + a * a),
            5 => (x.t.maximum(y.t), a.max(b)),
            _ => (x.t.minimum(y.t), a.max(b)),
        };
        self.push(t, bound, false);
    }

    pub(super) fn select(&mut self) {
        let x = self.float();
        let y = self.mate(&x.t.dims(), false);
        let c = self.condition(&x.t.dims());
        self.push(c.select(x.t, y.t), x.bound.max(y.bound), x.exact && y.exact);
    }

    /// Ops that jump, on exact values.
    pub(super) fn jump(&mut self) {
        let x = self.exact_float();
        let dims = x.t.dims();
        match self.rng.below(7) {
            0 => self.push(x.t.floor(), x.bound.ceil(), true),
            1 => self.push(x.t.sign(), 1.0, true),
            2 => {
                // Multiples of 1/64 of moderate size have an exact remainder.
                let y = self.mate(&dims, true);
                self.push(x.t.rem(y.t.abs() + 0.5), x.bound, true)
            }
            3 => {
                let y = self.mate(&dims, true);
                let op = self.rng.one_of(&CmpOp::ALL);
                self.push(x.t.compare(op, y.t), 0.0, true)
            }
            4 => self.push(x.t.is_finite(), 0.0, true),
            5 => self.push((x.t * 8.0).convert(DType::I32), 0.0, true),
            // The sum is never -0, whose sign is nobody's promise.
            _ => self.push((x.t + 0.5).bitcast(DType::U32), 0.0, true),
        };
    }

    pub(super) fn int_op(&mut self) {
        let dtype = self.rng.one_of(&[DType::I32, DType::U32, DType::Bool]);
        let x = self.int(dtype, None);
        let y = self.int(dtype, Some(&x.dims()));
        let bits = [BinaryOp::And, BinaryOp::Or, BinaryOp::Xor];
        let numbers = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Max, BinaryOp::Min];
        let words = [BinaryOp::Rem, BinaryOp::Shl, BinaryOp::Shr];
        let t = match (dtype, self.rng.below(6)) {
            (_, 0) => x.not(),
            (DType::I32, 1) => x.apply(Op::Unary(self.rng.one_of(&[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Sign])), &[]),
            (_, 2) => x.compare(self.rng.one_of(&CmpOp::ALL), y),
            (DType::Bool, 3) => x.convert(self.rng.one_of(&[DType::I32, DType::U32])),
            (_, 3) => x.convert(self.rng.one_of(&[DType::I32, DType::U32, DType::Bool])),
            (DType::Bool, _) => x.apply(Op::Binary(self.rng.one_of(&bits)), &[y]),
            (_, _) => x.apply(Op::Binary(self.rng.one_of(&[&bits[..], &numbers, &words].concat())), &[y]),
        };
        self.push(t, 0.0, true);
    }

    pub(super) fn int_to_float(&mut self) {
        let dtype = self.rng.one_of(&[DType::I32, DType::U32, DType::Bool]);
        let x = self.int(dtype, None);
        let small = if dtype == DType::Bool { x } else { x.rem(x.scalar_like(5.0)) };
        self.push(small.convert(DType::F32) * 0.25, 1.0, true);
    }

    /// Attention of queries over keys of another number, through views, with and without a bias.
    pub(super) fn attention(&mut self) {
        let (b, h) = (1 + self.rng.below(2), 1 + self.rng.below(3));
        let d = self.rng.one_of(&[1, 3, 8, 17]);
        let most = self.cfg.max_elems / (b * h * d);
        let [tq, tk] = [0, 1].map(|_| self.rng.one_of(&[1, 3, 7, 33]).min(most).max(1));
        let mut operand = |t: usize| {
            if self.rng.once_in(2) {
                return self.mate(&[b, t, h, d], false);
            }
            let x = self.mate(&[b, h, t, d], false);
            Item { t: x.t.transpose(&[0, 2, 1, 3]), ..x }
        };
        let [q, k, v] = [operand(tq), operand(tk), operand(tk)];
        let bias = self.rng.once_in(2).then(|| {
            let dims = [b, h, tq, tk].map(|n| if self.rng.once_in(2) { 1 } else { n });
            self.mate(&dims, false)
        });
        let causal = self.rng.once_in(3);
        // Scores stay about as large as the operands.
        let (o, lse) = attention(q.t, k.t, v.t, bias.map(|b| b.t), 1.0 / d as f64, causal);
        self.push(o, v.bound, false);
        self.push(lse, q.bound * k.bound + bias.map_or(0.0, |b| b.bound) + (tk as f64).ln(), false);
    }

    /// Any value: views do not care for dtypes.
    pub(super) fn any(&mut self) -> Item<'g> {
        self.find(|_| true).expect("the pool begins with two values")
    }

    pub(super) fn reshape(&mut self) {
        let x = self.any();
        // Merge all dims, then split the whole into random factors.
        let mut left: usize = x.t.dims().iter().product();
        let mut dims = Vec::new();
        while left > 1 && dims.len() < 3 {
            let factors: Vec<usize> = (1..=left).filter(|f| left.is_multiple_of(*f)).collect();
            let f = self.rng.one_of(&factors);
            dims.push(f);
            left /= f;
        }
        if left > 1 || self.rng.once_in(4) {
            dims.insert(self.rng.below(dims.len() + 1), left);
        }
        self.push(x.t.reshape(&dims), x.bound, x.exact);
    }

    pub(super) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut perm: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            perm.swap(i, self.rng.below(i + 1));
        }
        perm
    }

    pub(super) fn transpose(&mut self) {
        let x = self.any();
        let perm = self.permutation(x.t.rank());
        self.push(x.t.transpose(&perm), x.bound, x.exact);
    }

    pub(super) fn broadcast(&mut self) {
        let x = self.any();
        let mut dims = x.t.dims();
        let mut map: Vec<usize> = (0..dims.len()).collect();
        for d in &mut dims {
            if *d == 1 && self.rng.once_in(2) {
                *d = 3;
            }
        }
        let at = self.rng.below(dims.len() + 1);
        dims.insert(at, self.rng.one_of(&[1, 2, 3]));
        map.iter_mut().filter(|m| **m >= at).for_each(|m| *m += 1);
        if dims.iter().product::<usize>() <= self.cfg.max_elems {
            self.push(x.t.broadcast_in_dim(&dims, &map), x.bound, x.exact);
        }
    }

    pub(super) fn slice(&mut self) {
        let x = self.any();
        let (mut start, mut limit, mut stride) = (vec![], vec![], vec![]);
        for n in x.t.dims() {
            let s = self.rng.below(n);
            start.push(s);
            limit.push(s + 1 + self.rng.below(n - s));
            stride.push(self.rng.one_of(&[1, 1, 2]));
        }
        self.push(x.t.apply(Op::Slice { start, limit, stride }, &[]), x.bound, x.exact);
    }

    pub(super) fn pad(&mut self) {
        let x = self.any();
        let rank = x.t.rank();
        let mut some = |list: &[usize]| -> Vec<usize> { (0..rank).map(|_| self.rng.one_of(list)).collect() };
        let op = Op::Pad { low: some(&[0, 0, 1, 2]), high: some(&[0, 0, 1]), interior: some(&[0, 0, 0, 1]) };
        let value = x.t.scalar_like(self.rng.below(2) as f64);
        let y = x.t.apply(op, &[value]);
        if y.dims().iter().product::<usize>() <= self.cfg.max_elems {
            self.push(y, x.bound.max(1.0), x.exact);
        }
    }

    pub(super) fn concat(&mut self) {
        let x = self.float_of_rank(1);
        let mut dims = x.t.dims();
        let dim = self.rng.below(dims.len());
        if self.rng.once_in(2) {
            dims[dim] = self.rng.one_of(&[1, 2, 3]);
        }
        if dims.iter().product::<usize>() + x.t.dims().iter().product::<usize>() <= self.cfg.max_elems {
            let y = self.mate(&dims, false);
            self.push(self.g.concat(&[x.t, y.t], dim), x.bound.max(y.bound), x.exact && y.exact);
        }
    }

    pub(super) fn some_dims(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|_| self.rng.once_in(2)).collect()
    }

    pub(super) fn reverse(&mut self) {
        let x = self.any();
        let dims = self.some_dims(x.t.rank());
        self.push(x.t.reverse(&dims), x.bound, x.exact);
    }

    pub(super) fn reduce(&mut self) {
        let x = self.float();
        let dims = self.some_dims(x.t.rank());
        if !self.cfg.smooth && self.rng.once_in(3) {
            self.push(x.t.max(&dims), x.bound, x.exact);
        } else {
            self.push(x.t.mean(&dims) * 2.0, 2.0 * x.bound, false);
        }
    }

    pub(super) fn softmax(&mut self) {
        let x = self.float_of_rank(1);
        let (dims, d) = (x.t.dims(), x.t.rank() - 1);
        let row = |t: Tensor<'g>| t.unsqueeze(d).broadcast_to(&dims);
        let e = (x.t - row(x.t.max(&[d])).stop_gradient()).exp();
        self.push(e / row(e.sum(&[d])), 1.0, false);
    }

    pub(super) fn norm(&mut self) {
        let x = self.float_of_rank(2);
        let (dims, d) = (x.t.dims(), x.t.rank() - 1);
        let row = |t: Tensor<'g>| t.unsqueeze(d).broadcast_to(&dims);
        let centred = x.t - row(x.t.mean(&[d]));
        // An epsilon of this size keeps rows without variance from being magnified noise.
        let y = centred * row((centred.square().mean(&[d]) + 0.1).rsqrt());
        self.push(y, (dims[d] as f64).sqrt().min(x.bound * 2.0 / 0.3), false);
    }

    pub(super) fn argmax(&mut self) {
        let x = self.exact_float();
        if x.t.rank() > 0 {
            let dim = self.rng.below(x.t.rank());
            self.push(x.t.apply(Op::Argmax { dim }, &[]), 0.0, true);
        }
    }

    pub(super) fn dot(&mut self) {
        let x = self.float_of_rank(1);
        let dims = x.t.dims();
        let order = self.permutation(dims.len());
        let batch = self.rng.below(2).min(dims.len() - 1);
        let contract = 1 + self.rng.below((dims.len() - batch).min(2));
        let (lhs_batch, rest) = order.split_at(batch);
        let lhs_contract = &rest[..contract];
        let k: usize = lhs_contract.iter().map(|&d| dims[d]).product();
        let kept: usize = dims.iter().product::<usize>() / k;
        // The right operand's dims, in some order: batch, contracted, free.
        let free: Vec<usize> = (0..self.rng.below(3)).map(|_| self.rng.one_of(&[1, 2, 3, 5, 17])).collect();
        let n: usize = free.iter().product();
        let shared: usize = lhs_batch.iter().chain(lhs_contract).map(|&d| dims[d]).product();
        if kept * n > self.cfg.max_elems || shared * n > self.cfg.max_elems {
            return;
        }
        let whole: Vec<usize> = lhs_batch.iter().chain(lhs_contract).map(|&d| dims[d]).chain(free).collect();
        let perm = self.permutation(whole.len());
        let place = |i: usize| perm.iter().position(|&p| p == i).expect("a permutation has every index");
        let y = self.mate(&perm.iter().map(|&p| whole[p]).collect::<Vec<_>>(), false);
        let d = DotDims {
            lhs_batch: lhs_batch.to_vec(),
            rhs_batch: (0..batch).map(place).collect(),
            lhs_contract: lhs_contract.to_vec(),
            rhs_contract: (batch..batch + contract).map(place).collect(),
        };
        let root = (k as f64).sqrt();
        self.push(x.t.dot(y.t, d) * (1.0 / root), x.bound * y.bound * root, false);
    }

    pub(super) fn conv(&mut self) {
        let spatial = 1 + self.rng.below(2);
        let groups = 1 + self.rng.below(2);
        let (inner, features) = (1 + self.rng.below(3), groups * (1 + self.rng.below(3)));
        let mut dims = vec![1 + self.rng.below(2)];
        dims.extend((0..spatial).map(|_| 5 + self.rng.below(4)));
        dims.push(groups * inner);
        let x = self.mate(&dims, false);
        let mut kernel: Vec<usize> = (0..spatial).map(|_| 1 + self.rng.below(3)).collect();
        kernel.extend([inner, features]);
        let w = self.mate(&kernel, false);
        let r = &mut self.rng;
        let c = ConvDims {
            stride: (0..spatial).map(|_| r.one_of(&[1, 1, 2])).collect(),
            padding: (0..spatial).map(|_| (r.one_of(&[-1, 0, 1, 2]), r.one_of(&[-1, 0, 1, 2]))).collect(),
            lhs_dilation: (0..spatial).map(|_| r.one_of(&[1, 1, 2])).collect(),
            // Five inputs less two cropped hold three taps only undilated.
            rhs_dilation: (0..spatial).map(|d| if kernel[d] < 3 { r.one_of(&[1, 2]) } else { 1 }).collect(),
            groups,
        };
        let y = x.t.apply(Op::Conv { dims: c, out: DType::F32 }, &[w.t]);
        let terms = kernel[..=spatial].iter().product::<usize>() as f64;
        self.push(y * (1.0 / terms.sqrt()), x.bound * w.bound * terms.sqrt(), false);
    }

    /// Indices, some of them out of range.
    pub(super) fn indices(&mut self, rows: usize, dims: &[usize]) -> Tensor<'g> {
        let dtype = self.rng.one_of(&[DType::I32, DType::U32]);
        if self.rng.once_in(4) {
            return self.int(dtype, Some(dims));
        }
        self.int(dtype, Some(dims)).rem(self.g.scalar(dtype, rows as f64))
    }

    pub(super) fn take(&mut self) {
        let x = self.float_of_rank(1);
        let (dims, dim) = (x.t.dims(), self.rng.below(x.t.rank()));
        let picks = self.rng.one_of(&[&[][..], &[3], &[7], &[2, 3]]);
        let indices = self.indices(dims[dim], picks);
        let y = x.t.apply(Op::Take { dim }, &[indices]);
        if y.dims().iter().product::<usize>() <= self.cfg.max_elems {
            self.push(y, x.bound, x.exact);
        }
    }

    pub(super) fn scatter_add(&mut self) {
        let x = self.float_of_rank(1);
        let (dims, dim) = (x.t.dims(), self.rng.below(x.t.rank()));
        let picks = self.rng.one_of(&[&[1][..], &[3], &[7], &[2, 3]]);
        let update = [&dims[..dim], picks, &dims[dim + 1..]].concat();
        let n: usize = picks.iter().product();
        if update.iter().product::<usize>() <= self.cfg.max_elems {
            let indices = self.indices(dims[dim], picks);
            let u = self.mate(&update, false);
            let y = x.t.apply(Op::ScatterAdd { dim }, &[indices, u.t]);
            self.push(y, x.bound + n as f64 * u.bound, false);
        }
    }

    pub(super) fn block(&mut self, dims: &[usize]) -> (Vec<usize>, Tensor<'g>) {
        let sizes = dims.iter().map(|&n| 1 + self.rng.below(n)).collect();
        (sizes, self.int(DType::I32, Some(&[dims.len()])))
    }

    pub(super) fn dynamic_slice(&mut self) {
        let x = self.float_of_rank(1);
        let (sizes, start) = self.block(&x.t.dims());
        self.push(x.t.apply(Op::DynamicSlice { sizes }, &[start]), x.bound, x.exact);
    }

    pub(super) fn dynamic_update_slice(&mut self) {
        let x = self.float_of_rank(1);
        let (sizes, start) = self.block(&x.t.dims());
        let u = self.mate(&sizes, false);
        let y = x.t.apply(Op::DynamicUpdateSlice, &[u.t, start]);
        self.push(y, x.bound.max(u.bound), x.exact && u.exact);
    }

    pub(super) fn draw(&mut self) {
        let key = self.source(DType::U32, &[2]);
        let key = if self.rng.once_in(3) { random::fold_in_const(self.g, key, 5) } else { key };
        let dims = self.dims();
        match self.rng.below(4) {
            0 => self.push(random::normal(self.g, key, &dims), 5.5, false),
            1 if self.cfg.ints => self.push(random::randint(self.g, key, &dims, 11), 0.0, true),
            2 if self.cfg.ints => self.push(random::bernoulli(self.g, key, &dims, 0.3), 0.0, true),
            _ => self.push(random::uniform(self.g, key, &dims), 1.0, true),
        };
    }

    /// A few ops in a 16-bit float.
    pub(super) fn half(&mut self) {
        let x = self.float();
        let h = x.t.convert(self.rng.one_of(&[DType::F16, DType::BF16]));
        let (y, bound) = match self.rng.below(4) {
            0 => (h.tanh(), 1.0),
            1 => (h * h + 0.5, x.bound * x.bound + 0.5),
            2 => (h.mean(&self.some_dims(h.rank())), x.bound),
            _ => (h, x.bound),
        };
        self.push(y.convert(DType::F32), bound, false);
    }

    /// A call of a function of one or two values, which may keep its intermediates or not.
    pub(super) fn call(&mut self) {
        let inputs: Vec<Item<'g>> = (0..1 + self.rng.below(2)).map(|_| self.float()).collect();
        let callee = Graph::new(&format!("callee_{}", self.rng.bits()));
        let results: Vec<(f64, bool)>;
        let func = {
            let rng = Rng { key: threefry::fold_in(self.rng.key, self.rng.bits()), counter: 0 };
            let mut inner = Gen { g: &callee, rng, cfg: self.cfg, pool: vec![], args: None, depth: self.depth + 1 };
            for (i, x) in inputs.iter().enumerate() {
                let t = callee.param(&format!("a{i}"), x.t.ty());
                inner.pool.push(Item { t, ..*x });
            }
            for _ in 0..3 {
                inner.grow();
            }
            let out: Vec<Item<'_>> = inner.pool.iter().rev().take(2).copied().collect();
            results = out.iter().map(|o| (o.bound, o.exact)).collect();
            callee.finish(&out.iter().map(|o| o.t).collect::<Vec<_>>())
        };
        match func {
            Ok(func) => {
                let (func, args) = (Arc::new(func), inputs.iter().map(|x| x.t).collect::<Vec<_>>());
                let out = match self.rng.below(3) {
                    0 => self.g.call(&func, &args),
                    1 => self.g.call_remat(&func, &args),
                    _ => self.g.composite("random", vec![], &func, &args),
                };
                for (t, (bound, exact)) in out.into_iter().zip(results) {
                    self.pool.push(Item { t, bound, exact });
                }
            }
            Err(e) => self.g.fail(e.to_string()),
        }
    }

    pub(super) fn barrier(&mut self) {
        let x = self.any();
        self.push(x.t.apply(Op::OptimizationBarrier, &[]), x.bound, x.exact);
    }
}
