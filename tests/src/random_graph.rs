//! Random programs, for comparing one execution with another.
//!
//! [`random_func`] builds a well-typed [`Func`] from a seed, over the op groups of a [`Config`], with matching
//! arguments. Three things make its results comparable:
//!
//! * Every float carries a *bound* on its size, kept near 1 by `tanh` and `sin`; logarithms, roots and divisors see
//!   positive numbers only. Nothing is infinite, nothing cancels to noise that is then magnified.
//! * Ops that jump (`floor`, `sign`, `rem`, comparisons, `argmax`, conversion to integers, `bitcast`) see *exact* values
//!   only: arguments and what is exact on them, since a value in the last bit of doubt may fall on either side.
//!   Arguments are multiples of 1/64, so that ties and zeros occur.
//! * Dims are ragged: 1, 3, 5, 7, 33, 63, 64, 65.
//!
//! Every value that no op uses is a result, so that nothing generated is dead.

mod ops;

use dnx_ir::{Array, CmpOp, DType, Func, Graph, Op, Tensor, Type, threefry};

/// What programs are made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ops to add (about; each choice adds a handful of nodes).
    pub ops: usize,
    /// Greatest number of elements of a value.
    pub max_elems: usize,
    /// Reshape, transpose, broadcast, slice, pad, concat, reverse.
    pub views: bool,
    /// Sums, maxima, argmax, softmax, norms.
    pub reduce: bool,
    /// `dot_general`.
    pub dot: bool,
    /// `conv`.
    pub conv: bool,
    /// Take, scatter_add, dynamic_slice, dynamic_update_slice.
    pub index: bool,
    /// Random draws from a key argument.
    pub random: bool,
    /// Integers and truth values beside floats.
    pub ints: bool,
    /// 16-bit floats here and there (compare with a tolerance of 1e-2).
    pub half: bool,
    /// Calls, barriers.
    pub calls: bool,
    /// Attention over heads; a composite with derivatives and kernels of its own.
    pub attention: bool,
    /// Only ops that are differentiable wherever they are applied.
    pub smooth: bool,
    /// The first result is an `f32` scalar that depends on every float result.
    pub scalar_first: bool,
}

impl Default for Config {
    /// Everything but 16-bit floats and attention.
    fn default() -> Config {
        Config {
            ops: 16,
            max_elems: 2048,
            views: true,
            reduce: true,
            dot: true,
            conv: true,
            index: true,
            random: true,
            ints: true,
            half: false,
            calls: true,
            attention: false,
            smooth: false,
            scalar_first: false,
        }
    }
}

impl Config {
    /// Only pointwise ops (and the broadcasts they need).
    pub fn pointwise() -> Config {
        let c = Config::default();
        Config { views: false, reduce: false, dot: false, conv: false, index: false, random: false, calls: false, ..c }
    }

    /// Programs to differentiate: smooth ops on floats, a scalar first result.
    pub fn smooth() -> Config {
        Config { smooth: true, ints: false, scalar_first: true, max_elems: 256, ..Config::default() }
    }
}

/// A program and arguments for it, the same for the same seed and configuration.
///
/// # Panics
/// If the generator makes an ill-typed program, which is a defect of it.
pub fn random_func(seed: u64, cfg: &Config) -> (Func, Vec<Array>) {
    let g = Graph::new(&format!("random_{seed}"));
    let mut gen_ = Gen { g: &g, rng: Rng::new(seed), cfg, pool: vec![], args: Some(vec![]), depth: 0 };
    for _ in 0..2 {
        let dims = gen_.dims();
        gen_.leaf(&dims);
    }
    for _ in 0..cfg.ops {
        gen_.grow();
    }
    let results = gen_.results();
    let args = gen_.args.take().expect("the outermost generator has arguments");
    let func = g.finish(&results).unwrap_or_else(|e| panic!("seed {seed} with {cfg:?} is ill-typed: {e}"));
    (func, args)
}

/// Random choices, a function of seed and position.
struct Rng {
    key: threefry::Key,
    counter: u64,
}

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng { key: threefry::fold_in(threefry::key(seed), 0x6e78), counter: 0 }
    }

    fn bits(&mut self) -> u32 {
        self.counter += 1;
        threefry::bits(self.key, self.counter)
    }

    /// `0..n`.
    fn below(&mut self, n: usize) -> usize {
        ((self.bits() as u64 * n as u64) >> 32) as usize
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// True once in `n`.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A value that later ops may use.
#[derive(Clone, Copy)]
struct Item<'g> {
    t: Tensor<'g>,
    /// No element is greater in size (floats).
    bound: f64,
    /// The same bits however it is computed.
    exact: bool,
}

struct Gen<'g, 'c> {
    g: &'g Graph,
    rng: Rng,
    cfg: &'c Config,
    pool: Vec<Item<'g>>,
    /// `None` in a callee, where leaves are constants.
    args: Option<Vec<Array>>,
    depth: usize,
}

const TAME: f64 = 4.0;
const SIZES: [usize; 8] = [1, 3, 5, 7, 33, 63, 64, 65];

impl<'g> Gen<'g, '_> {
    fn push(&mut self, t: Tensor<'g>, bound: f64, exact: bool) -> Item<'g> {
        let mut item = Item { t, bound, exact };
        if t.dtype().is_float() && bound > TAME {
            let tamed = if bound > 16.0 || self.rng.once_in(2) { t.tanh() } else { t.sin() };
            item = Item { t: tamed, bound: 1.0, exact: false };
        }
        self.pool.push(item);
        item
    }

    /// Ragged dims of rank 0 to 4.
    fn dims(&mut self) -> Vec<usize> {
        let rank = self.rng.one_of(&[0, 1, 2, 2, 3, 3, 4]);
        let mut dims: Vec<usize> = Vec::new();
        for _ in 0..rank {
            let left = self.cfg.max_elems / dims.iter().product::<usize>();
            let fitting: Vec<usize> = SIZES.into_iter().filter(|&n| n <= left).collect();
            let small = self.rng.below(3) > 0;
            dims.push(if small { self.rng.one_of(&[1, 2, 3, 5]).min(left) } else { self.rng.one_of(&fitting) });
        }
        dims
    }

    fn array(&mut self, dtype: DType, dims: &[usize]) -> Array {
        let n: usize = dims.iter().product();
        let values: Vec<f64> = (0..n)
            .map(|_| match dtype {
                DType::Bool => self.rng.below(2) as f64,
                DType::I32 if self.rng.once_in(4) => self.rng.bits() as i32 as f64,
                DType::U32 if self.rng.once_in(4) => self.rng.bits() as f64,
                DType::I32 => self.rng.below(9) as f64 - 2.0,
                DType::U32 => self.rng.below(9) as f64,
                DType::F32 | DType::F16 | DType::BF16 | DType::F64 => (self.rng.below(193) as f64 - 96.0) / 64.0,
            })
            .collect();
        Array::from_f64(Type::new(dtype, dims), &values)
    }

    /// A new parameter (in a callee: constant).
    fn source(&mut self, dtype: DType, dims: &[usize]) -> Tensor<'g> {
        let array = self.array(dtype, dims);
        match &mut self.args {
            Some(args) => {
                let t = self.g.param(&format!("p{}", args.len()), array.ty().clone());
                args.push(array);
                t
            }
            None => self.g.constant(array),
        }
    }

    /// A new float.
    fn leaf(&mut self, dims: &[usize]) -> Item<'g> {
        let t = self.source(DType::F32, dims);
        self.push(t, 1.5, true)
    }

    fn find(&mut self, want: impl Fn(&Item<'g>) -> bool) -> Option<Item<'g>> {
        let found: Vec<Item<'g>> = self.pool.iter().copied().filter(want).collect();
        // Younger values are likelier, so that programs are deep.
        let at = |r: &mut Rng| r.below(found.len()).max(r.below(found.len()));
        (!found.is_empty()).then(|| found[at(&mut self.rng)])
    }

    fn float(&mut self) -> Item<'g> {
        match self.find(|i| i.t.dtype() == DType::F32) {
            Some(item) => item,
            None => {
                let dims = self.dims();
                self.leaf(&dims)
            }
        }
    }

    /// A float of at least this rank.
    fn float_of_rank(&mut self, rank: usize) -> Item<'g> {
        match self.find(|i| i.t.dtype() == DType::F32 && i.t.rank() >= rank && i.t.rank() <= rank + 2) {
            Some(item) => item,
            None => {
                let mut dims = self.dims();
                dims.truncate(rank);
                dims.resize(rank, 3);
                while dims.iter().product::<usize>() > self.cfg.max_elems {
                    *dims.iter_mut().max().expect("rank is positive") = 3;
                }
                self.leaf(&dims)
            }
        }
    }

    fn exact_float(&mut self) -> Item<'g> {
        match self.find(|i| i.t.dtype() == DType::F32 && i.exact) {
            Some(item) => item,
            None => {
                let dims = self.dims();
                self.leaf(&dims)
            }
        }
    }

    /// Another float of these dims: one there is, or a new one broadcast from fewer dims.
    fn mate(&mut self, dims: &[usize], exact: bool) -> Item<'g> {
        let is = |i: &Item<'g>| i.t.dtype() == DType::F32 && i.t.dims() == dims && (!exact || i.exact);
        if self.rng.below(3) > 0
            && let Some(item) = self.find(is)
        {
            return item;
        }
        let mut own: Vec<usize> = dims[self.rng.below(dims.len() + 1)..].to_vec();
        for d in &mut own {
            if self.rng.once_in(4) {
                *d = 1;
            }
        }
        let item = self.leaf(&own);
        Item { t: item.t.broadcast_to(dims), ..item }
    }

    fn int(&mut self, dtype: DType, dims: Option<&[usize]>) -> Tensor<'g> {
        if self.rng.once_in(2)
            && let Some(item) = self.find(|i| i.t.dtype() == dtype && dims.is_none_or(|d| i.t.dims() == d))
        {
            return item.t;
        }
        let dims = dims.map(<[usize]>::to_vec).unwrap_or_else(|| self.dims());
        let t = self.source(dtype, &dims);
        self.push(t, 0.0, true).t
    }

    /// A truth value of these dims.
    fn condition(&mut self, dims: &[usize]) -> Tensor<'g> {
        if self.cfg.smooth || self.rng.once_in(3) {
            return self.int(DType::Bool, Some(dims));
        }
        let (x, y) = (self.mate(dims, true), self.mate(dims, true));
        let op = self.rng.one_of(&CmpOp::ALL);
        x.t.compare(op, y.t)
    }

    /// Adds one idea.
    fn grow(&mut self) {
        let c = self.cfg;
        let mut choices: Vec<fn(&mut Self)> = vec![Self::unary, Self::unary, Self::binary, Self::binary, Self::select];
        let mut when = |on: bool, more: &[fn(&mut Self)]| {
            if on {
                choices.extend_from_slice(more);
            }
        };
        when(!c.smooth, &[Self::jump]);
        when(c.ints, &[Self::int_op, Self::int_op, Self::int_to_float]);
        when(c.views, &[Self::reshape, Self::transpose, Self::slice, Self::pad, Self::concat, Self::reverse]);
        when(c.views, &[Self::broadcast]);
        when(c.reduce, &[Self::reduce, Self::reduce, Self::norm, Self::softmax]);
        when(c.reduce && !c.smooth, &[Self::argmax]);
        when(c.dot, &[Self::dot, Self::dot]);
        when(c.conv, &[Self::conv]);
        when(c.index, &[Self::take, Self::scatter_add, Self::dynamic_slice, Self::dynamic_update_slice]);
        when(c.random, &[Self::draw]);
        when(c.half, &[Self::half]);
        when(c.calls && self.depth < 2, &[Self::call]);
        when(c.calls, &[Self::barrier]);
        when(c.attention, &[Self::attention, Self::attention, Self::attention]);
        let pick = self.rng.one_of(&choices);
        pick(self);
    }

    /// The values nothing uses; first the scalar, if one is wanted.
    fn results(&mut self) -> Vec<Tensor<'g>> {
        let func = self.g.finish(&[]).unwrap_or_else(|e| panic!("a random program is ill-typed: {e}"));
        let users = func.users();
        let is_param = |t: Tensor<'g>| matches!(func.def(t.id()).op, Op::Param { .. });
        let free = |i: &&Item<'g>| users[i.t.id().index()].is_empty() && !is_param(i.t);
        let mut results: Vec<Tensor<'g>> = self.pool.iter().filter(free).map(|i| i.t).collect();
        if results.is_empty() {
            results.push(self.pool[0].t);
        }
        if self.cfg.scalar_first {
            let floats = results.iter().filter(|t| t.dtype() == DType::F32);
            // Weights that differ from element to element, so that no cotangent is uniform.
            let weighed = floats.map(|&t| (t * (t.sin() + 1.25)).mean_all()).collect::<Vec<_>>();
            let total = weighed.into_iter().reduce(|a, b| a + b).unwrap_or_else(|| self.g.scalar(DType::F32, 0.0));
            results.insert(0, total);
        }
        results
    }
}

#[cfg(test)]
mod tests;
