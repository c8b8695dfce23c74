//! Hand-built and random kernels on the cpu device against the kernel interpreter; the same bits on any number of
//! threads.

mod support;

use dnx_codegen::exec::{BufRef, Executable, KernelEntry, Port, Requires, Step, VERSION};
use dnx_codegen::kernel::interp::{device_bytes, from_device_bytes, run};
use dnx_codegen::kernel::{
    Access, Arg, Atom, Check, Dim, DynTerm, Idx, Inst, InstId, Kernel, Kind, Role, Scatter, Store, Tile,
};
use dnx_ir::{Array, BinaryOp, CmpOp, DType, Mesh, ReduceKind, Scalar, Type, UnaryOp};
use dnx_runtime::Device;
use support::{assert_close, noise};

/// A kernel under construction.
struct Make {
    kernel: Kernel,
}

impl Make {
    fn new(kind: Kind, dims: &[(usize, Role)]) -> Make {
        let dims = dims.iter().map(|&(size, role)| Dim { size, role }).collect();
        let (args, insts, dtypes, stores) = (vec![], vec![], vec![], vec![]);
        Make { kernel: Kernel { kind, dims, args, insts, dtypes, stores, scatter: None, tile: Tile::default() } }
    }

    fn arg(&mut self, dtype: DType, elems: usize, access: Access) -> u32 {
        self.kernel.args.push(Arg { dtype, elems, access });
        self.kernel.args.len() as u32 - 1
    }

    fn push(&mut self, inst: Inst, dtype: DType) -> InstId {
        self.kernel.insts.push(inst);
        self.kernel.dtypes.push(dtype);
        InstId(self.kernel.insts.len() as u32 - 1)
    }

    /// Loads a fresh argument of `elems` elements.
    fn load(&mut self, dtype: DType, elems: usize, index: Idx) -> InstId {
        let arg = self.arg(dtype, elems, Access::Read);
        self.push(Inst::Load { arg, index, dynamic: vec![] }, dtype)
    }

    fn unary(&mut self, op: UnaryOp, a: InstId) -> InstId {
        self.push(Inst::Unary(op, a), self.kernel.dtype(a))
    }

    fn binary(&mut self, op: BinaryOp, a: InstId, b: InstId) -> InstId {
        self.push(Inst::Binary(op, a, b), self.kernel.dtype(a))
    }

    fn constant(&mut self, x: f64) -> InstId {
        self.push(Inst::Const(Scalar::from_f64(DType::F32, x)), DType::F32)
    }

    /// Stores to a fresh argument.
    fn store(&mut self, value: InstId, elems: usize, index: Idx) {
        let arg = self.arg(self.kernel.dtype(value), elems, Access::Write);
        self.kernel.stores.push(Store { arg, index, value });
    }

    /// The row-major index over these of the kernel's dims.
    fn dense(&self, dims: &[usize]) -> Idx {
        let mut stride = 1;
        let mut coefs = vec![];
        for &d in dims.iter().rev() {
            coefs.push((d, stride));
            stride *= self.kernel.dims[d].size as i64;
        }
        affine(0, &coefs)
    }

    fn extent(&self, dims: &[usize]) -> usize {
        dims.iter().map(|&d| self.kernel.dims[d].size).product()
    }
}

fn affine(offset: i64, coefs: &[(usize, i64)]) -> Idx {
    let mut terms: Vec<(i64, Atom)> =
        coefs.iter().filter(|c| c.1 != 0).map(|&(d, c)| (c, Atom::Dim(d as u32))).collect();
    terms.sort_by(|a, b| a.1.cmp(&b.1));
    Idx { offset, terms, checks: vec![] }
}

/// The kernel as a program: read arguments are inputs, written ones outputs, those in place donated inputs.
fn program(kernel: &Kernel) -> Executable {
    let (mut inputs, mut outputs, mut args) = (vec![], vec![], vec![]);
    for (i, arg) in kernel.args.iter().enumerate() {
        let ty = Type::new(arg.dtype, [arg.elems]);
        let port = |donated| Port { name: format!("arg{i}"), ty: ty.clone(), donated };
        match arg.access {
            Access::Read => {
                args.push(BufRef::Input(inputs.len() as u32));
                inputs.push(port(None));
            }
            Access::Write => {
                args.push(BufRef::Output(outputs.len() as u32));
                outputs.push(port(None));
            }
            Access::ReadWrite => {
                args.push(BufRef::Input(inputs.len() as u32));
                outputs.push(port(Some(inputs.len() as u32)));
                inputs.push(port(None));
            }
        }
    }
    let (hash, name) = (String::new(), "kernel".to_string());
    Executable {
        version: VERSION,
        name: "test".to_string(),
        requires: Requires::default(),
        mesh: Mesh::single(),
        inputs,
        outputs,
        slabs: vec![],
        constants: vec![],
        kernels: vec![KernelEntry { hash, name, kernel: kernel.clone(), shaders: vec![] }],
        steps: vec![Step::Dispatch { kernel: 0, args, scratch: None, loc: String::new() }],
        peak_bytes: 0,
    }
}

fn on_cpu(kernel: &Kernel, inputs: &[Array]) -> Vec<Array> {
    let device = Device::cpu();
    let program = device.load(program(kernel)).unwrap();
    let outputs = program.run(&device.upload_all(inputs).unwrap()).unwrap();
    outputs.iter().map(|b| b.download().unwrap()).collect()
}

fn check(what: &str, make: Make) {
    let kernel = make.kernel;
    let read = |a: &&Arg| a.access != Access::Write;
    let inputs: Vec<Array> = kernel
        .args
        .iter()
        .filter(read)
        .enumerate()
        .map(|(i, a)| noise(&Type::new(a.dtype, [a.elems]), i as u32 + 1))
        .collect();
    let mut next = inputs.iter();
    let mut memory: Vec<Vec<u8>> = kernel
        .args
        .iter()
        .map(|a| match a.access {
            Access::Write => vec![0xff; a.elems * a.dtype.device_size()],
            Access::Read | Access::ReadWrite => device_bytes(next.next().unwrap()),
        })
        .collect();
    run(&kernel, &mut memory).unwrap_or_else(|e| panic!("{what}: {e}\n{kernel}"));
    let written = kernel.args.iter().zip(&memory).filter(|(a, _)| a.access != Access::Read);
    let want: Vec<Array> = written.map(|(a, bytes)| from_device_bytes(&Type::new(a.dtype, [a.elems]), bytes)).collect();
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let one = pool(1).install(|| on_cpu(&kernel, &inputs));
    let four = pool(4).install(|| on_cpu(&kernel, &inputs));
    for (i, (got, want)) in one.iter().zip(&want).enumerate() {
        assert_close(&format!("{what}, output {i} of\n{kernel}"), got, want);
    }
    assert_eq!(one, four, "{what}: other bits on four threads than on one");
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const RAGGED: [usize; 6] = [1, 3, 63, 64, 65, 1000];
use Role::{Batch, M, N, Parallel, Reduce};

/// A load over some of these dims, any way a view can make it: strided, permuted, broadcast, reversed, shifted
/// with a check, or through quotients and remainders.
fn random_load(make: &mut Make, r: &mut Random, dims: &[usize], dtype: DType) -> InstId {
    let mut order: Vec<usize> = dims.iter().copied().filter(|_| r.below(5) > 0).collect();
    if r.below(3) == 0 {
        order.reverse();
    }
    let mut index = make.dense(&order);
    let mut elems = make.extent(&order).max(1);
    match r.below(6) {
        // Every second element.
        0 => {
            index.terms.iter_mut().for_each(|t| t.0 *= 2);
            index.offset = 1;
            elems *= 2;
        }
        // Reversed along one dim.
        1 if !order.is_empty() => {
            let d = r.pick(&order);
            let n = make.kernel.dims[d].size as i64;
            if let Some(t) = index.terms.iter_mut().find(|t| t.1 == Atom::Dim(d as u32)) {
                t.0 = -t.0;
                index.offset -= t.0 * (n - 1);
            }
        }
        // Padded: the first element along one dim is missing, and every third after it.
        2 if !order.is_empty() => {
            let d = r.pick(&order);
            let c = index.coef(d);
            index.offset -= c;
            let n = make.kernel.dims[d].size as i64;
            let multiple = r.pick(&[1, 1, 3]);
            index.checks.push(Check { index: affine(0, &[(d, 1)]), lo: 1, hi: n.max(1), multiple });
        }
        // A stretch of the flat order, forwards or backwards: what a concatenation leaves of an operand.
        3 if r.below(2) == 0 => {
            let (lo, hi) = (r.below(elems) as i64, 1 + r.below(elems) as i64);
            let mut flat = Idx { checks: vec![], ..index.clone() };
            if r.below(2) == 0 {
                flat.terms.iter_mut().for_each(|t| t.0 = -t.0);
                flat.offset = elems as i64 - 1;
            }
            index.checks.push(Check { index: flat, lo, hi, multiple: 1 });
        }
        // Transposed by a reshape that does not factor.
        3 => {
            let flat = Idx { checks: vec![], ..index.clone() };
            let by = r.pick(&[2, 3, 5, 7]);
            let high = (elems as i64 + by - 1) / by;
            let flat = Box::new(flat);
            index = Idx {
                offset: 0,
                terms: vec![(1, Atom::Div(flat.clone(), by)), (high, Atom::Mod(flat, by))],
                checks: vec![],
            };
            elems = (high * by) as usize;
        }
        _ => {}
    }
    make.load(dtype, elems, index)
}

/// A random expression over these dims, in bounds that keep it comparable.
fn random_value(make: &mut Make, r: &mut Random, dims: &[usize], known: &[InstId]) -> InstId {
    let mut floats: Vec<InstId> = known.to_vec();
    for _ in 0..1 + r.below(3) {
        let dtype = r.pick(&[DType::F32, DType::F32, DType::F32, DType::F16, DType::BF16, DType::I32, DType::Bool]);
        let v = random_load(make, r, dims, dtype);
        floats.push(if dtype == DType::F32 { v } else { make.push(Inst::Convert(DType::F32, v), DType::F32) });
    }
    if r.below(3) == 0 {
        let index = make.push(Inst::Index(DType::I32, make.dense(dims)), DType::I32);
        let seven = make.push(Inst::Const(Scalar::from_f64(DType::I32, 7.0)), DType::I32);
        let small = make.binary(BinaryOp::Rem, index, seven);
        floats.push(make.push(Inst::Convert(DType::F32, small), DType::F32));
    }
    for _ in 0..r.below(8) {
        let (a, b) = (r.pick(&floats), r.pick(&floats));
        let v = match r.below(8) {
            0 => make.binary(BinaryOp::Add, a, b),
            1 => make.binary(BinaryOp::Sub, a, b),
            2 => {
                let (a, b) = (make.unary(UnaryOp::Tanh, a), make.unary(UnaryOp::Sin, b));
                make.binary(BinaryOp::Mul, a, b)
            }
            3 => make.binary(BinaryOp::Max, a, b),
            4 => {
                let c = make.push(Inst::Compare(CmpOp::Lt, a, b), DType::Bool);
                make.push(Inst::Select(c, b, a), DType::F32)
            }
            5 => {
                let c = make.constant(0.5);
                make.binary(BinaryOp::Mul, a, c)
            }
            6 => {
                let c = make.unary(UnaryOp::Cos, a);
                make.unary(UnaryOp::Exp, c)
            }
            _ => make.unary(UnaryOp::Neg, a),
        };
        floats.push(v);
    }
    *floats.last().unwrap()
}

fn random_sizes(r: &mut Random, rank: usize, most: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut product = 1;
    for _ in 0..rank {
        let n = r.pick(&[1, 2, 3, 5, 17, 63, 64, 65, 1000]);
        let n = if product * n > most { r.pick(&[1, 2, 3]) } else { n };
        product *= n;
        sizes.push(n);
    }
    sizes
}

#[test]
fn random_loops() {
    for seed in 0..90 {
        let r = &mut Random(seed);
        let sizes: Vec<(usize, Role)> =
            random_sizes(r, 1 + seed as usize % 4, 20_000).into_iter().map(|n| (n, Parallel)).collect();
        let mut make = Make::new(Kind::Loop, &sizes);
        let dims: Vec<usize> = (0..sizes.len()).collect();
        let first = random_value(&mut make, r, &dims, &[]);
        let second = random_value(&mut make, r, &dims, &[first]);
        let mut order = dims.clone();
        if r.below(2) == 0 {
            order.reverse();
        }
        make.store(first, make.extent(&dims), make.dense(&dims));
        make.store(second, make.extent(&dims), make.dense(&order));
        let half = make.push(Inst::Convert(DType::BF16, second), DType::BF16);
        make.store(half, make.extent(&dims), make.dense(&dims));
        check(&format!("loop {seed}"), make);
    }
}

#[test]
fn random_rows() {
    for seed in 0..60 {
        let r = &mut Random(seed + 1000);
        let rank = 1 + seed as usize % 2;
        let mut sizes: Vec<(usize, Role)> = random_sizes(r, rank, 100).into_iter().map(|n| (n, Parallel)).collect();
        let reduced = 1 + r.below(2);
        sizes.extend(random_sizes(r, reduced, 3000).into_iter().map(|n| (n, Reduce)));
        let mut make = Make::new(Kind::Row, &sizes);
        let all: Vec<usize> = (0..sizes.len()).collect();
        let outer: Vec<usize> = (0..rank).collect();
        let x = random_value(&mut make, r, &all, &[]);
        let max = make.push(Inst::Reduce(ReduceKind::Max, x), DType::F32);
        let y = make.binary(BinaryOp::Sub, x, max);
        let y = random_value(&mut make, r, &all, &[y]);
        let y = make.unary(UnaryOp::Tanh, y);
        let sum = make.push(Inst::Reduce(ReduceKind::Sum, y), DType::F32);
        let n = make.constant(1.0 / make.extent(&all[rank..]) as f64);
        let mean = make.binary(BinaryOp::Mul, sum, n);
        let per_row = random_value(&mut make, r, &outer, &[mean]);
        let z = make.binary(BinaryOp::Sub, y, per_row);
        make.store(z, make.extent(&all), make.dense(&all));
        make.store(mean, make.extent(&outer), make.dense(&outer));
        make.store(max, make.extent(&outer), make.dense(&outer));
        check(&format!("row {seed}"), make);
    }
}

#[test]
fn argmax_takes_the_first() {
    for n in RAGGED {
        for dtype in [DType::F32, DType::I32, DType::U32] {
            let mut make = Make::new(Kind::Row, &[(5, Parallel), (n, Reduce)]);
            let x = make.load(dtype, 5 * n, make.dense(&[0, 1]));
            let at = make.push(Inst::Argmax(x), DType::I32);
            make.store(at, 5, make.dense(&[0]));
            check("row argmax", make);
            let mut make = Make::new(Kind::Column, &[(n, Reduce), (5, Parallel)]);
            let x = make.load(dtype, 5 * n, make.dense(&[0, 1]));
            let at = make.push(Inst::Argmax(x), DType::I32);
            make.store(at, 5, make.dense(&[1]));
            check("column argmax", make);
        }
    }
}

#[test]
fn random_columns() {
    for seed in 0..60 {
        let r = &mut Random(seed + 2000);
        let reduced = 1 + seed as usize % 2;
        let mut sizes: Vec<(usize, Role)> = random_sizes(r, reduced, 2000).into_iter().map(|n| (n, Reduce)).collect();
        let kept = r.below(3);
        sizes.extend(random_sizes(r, kept, 2000 / reduced).into_iter().map(|n| (n, Parallel)));
        let mut make = Make::new(Kind::Column, &sizes);
        let all: Vec<usize> = (0..sizes.len()).collect();
        let kept: Vec<usize> = (reduced..sizes.len()).collect();
        let x = random_value(&mut make, r, &all, &[]);
        let x = make.unary(UnaryOp::Tanh, x);
        let sum = make.push(Inst::Reduce(ReduceKind::Sum, x), DType::F32);
        let max = make.push(Inst::Reduce(ReduceKind::Max, x), DType::F32);
        let scaled = make.constant(0.1);
        let scaled = make.binary(BinaryOp::Mul, sum, scaled);
        let rest = random_value(&mut make, r, &kept, &[scaled]);
        make.store(x, make.extent(&all), make.dense(&all));
        make.store(rest, make.extent(&kept), make.dense(&kept));
        make.store(max, make.extent(&kept), make.dense(&kept));
        check(&format!("column {seed}"), make);
    }
}

#[test]
fn integer_reductions_wrap() {
    for n in RAGGED {
        for dtype in [DType::I32, DType::U32] {
            for (kind, sizes, all, kept) in [
                (Kind::Row, [(7, Parallel), (n, Reduce)], [0, 1], 0),
                (Kind::Column, [(n, Reduce), (7, Parallel)], [0, 1], 1),
            ] {
                let mut make = Make::new(kind, &sizes);
                let x = make.load(dtype, 7 * n, make.dense(&all));
                let big = make.push(Inst::Const(Scalar::from_f64(dtype, 700_000_000.0)), dtype);
                let x = make.binary(BinaryOp::Mul, x, big);
                for reduce in [ReduceKind::Sum, ReduceKind::Max] {
                    let y = make.push(Inst::Reduce(reduce, x), dtype);
                    make.store(y, 7, make.dense(&[kept]));
                }
                check("integers", make);
            }
        }
    }
}

/// A contraction with multi-dim M, N and K; operands plain, permuted or with a prologue; with and without epilogue.
#[test]
fn random_contractions() {
    for seed in 0..80 {
        let r = &mut Random(seed + 3000);
        let mut sizes: Vec<(usize, Role)> = vec![];
        let mut of = |r: &mut Random, role, rank: usize, from: &[usize]| {
            let first = sizes.len();
            sizes.extend((0..rank).map(|_| (r.pick(from), role)));
            (first..sizes.len()).collect::<Vec<usize>>()
        };
        let (rb, rm, rn, rk) = (r.below(2), 1 + r.below(2), 1 + r.below(2), 1 + r.below(2));
        let b = of(r, Batch, rb, &[1, 3]);
        let m = of(r, M, rm, &[1, 3, 8, 17, 33]);
        let n = of(r, N, rn, &[1, 3, 8, 17, 33]);
        let k = of(r, Reduce, rk, &[1, 5, 16, 31]);
        let mut make = Make::new(Kind::Contract, &sizes);
        let join = |parts: &[&Vec<usize>]| parts.iter().flat_map(|p| p.iter().copied()).collect::<Vec<usize>>();
        let operand = |make: &mut Make, r: &mut Random, rows: &Vec<usize>| {
            let order = match r.below(4) {
                0 => join(&[&b, &k, rows]),
                1 => join(&[rows, &b, &k]),
                _ => join(&[&b, rows, &k]),
            };
            if r.below(3) == 0 {
                return random_value(make, r, &order, &[]);
            }
            let dtype = r.pick(&[DType::F32, DType::F32, DType::F32, DType::BF16]);
            let x = make.load(dtype, make.extent(&order), make.dense(&order));
            if dtype == DType::F32 { x } else { make.push(Inst::Convert(DType::F32, x), DType::F32) }
        };
        let lhs = operand(&mut make, r, &m);
        let rhs = operand(&mut make, r, &n);
        let dot = make.push(Inst::Dot { lhs, rhs }, DType::F32);
        let space = join(&[&b, &m, &n]);
        let value = if r.below(2) == 0 { dot } else { random_value(&mut make, r, &space, &[dot]) };
        let order = if r.below(3) == 0 { join(&[&n, &b, &m]) } else { space.clone() };
        make.store(value, make.extent(&space), make.dense(&order));
        if r.below(3) == 0 {
            make.store(dot, make.extent(&space), make.dense(&space));
        }
        check(&format!("contraction {seed}"), make);
    }
}

#[test]
fn large_contractions_split_and_tile() {
    // Deeper than a tile of K, with a prologue on either side or both, and blocks along M and N.
    for (lhs_prologue, rhs_prologue) in [(false, false), (true, false), (false, true), (true, true)] {
        let (m, n, k) = (150, 140, 1100);
        let mut make = Make::new(Kind::Contract, &[(m, M), (n, N), (k, Reduce)]);
        let operand = |make: &mut Make, dims: &[usize], prologue: bool| {
            let x = make.load(DType::F32, make.extent(dims), make.dense(dims));
            if prologue { make.unary(UnaryOp::Sin, x) } else { x }
        };
        let lhs = operand(&mut make, &[0, 2], lhs_prologue);
        let rhs = operand(&mut make, &[2, 1], rhs_prologue);
        let dot = make.push(Inst::Dot { lhs, rhs }, DType::F32);
        let y = make.unary(UnaryOp::Tanh, dot);
        make.store(y, m * n, make.dense(&[0, 1]));
        check("large contraction", make);
    }
}

#[test]
fn integer_contractions() {
    let mut make = Make::new(Kind::Contract, &[(9, M), (33, N), (65, Reduce)]);
    let lhs = make.load(DType::I32, 9 * 65, make.dense(&[0, 2]));
    let rhs = make.load(DType::I32, 33 * 65, make.dense(&[1, 2]));
    let dot = make.push(Inst::Dot { lhs, rhs }, DType::I32);
    make.store(dot, 9 * 33, make.dense(&[0, 1]));
    check("integer contraction", make);
}

#[test]
fn gathers_clamp() {
    for (rows, inner, wild) in [(7, 65, 1), (7, 1, 3), (3, 1000, -2)] {
        let mut make = Make::new(Kind::Loop, &[(20, Parallel), (inner, Parallel)]);
        let at = make.load(DType::I32, 20, make.dense(&[0]));
        let wild = make.push(Inst::Const(Scalar::from_f64(DType::I32, wild as f64)), DType::I32);
        let at = make.binary(BinaryOp::Mul, at, wild);
        let arg = make.arg(DType::F32, rows * inner, Access::Read);
        let dynamic = vec![DynTerm { value: at, limit: rows as i64 - 1, stride: inner as i64 }];
        let x = make.push(Inst::Load { arg, index: affine(0, &[(1, 1)]), dynamic }, DType::F32);
        make.store(x, 20 * inner, make.dense(&[0, 1]));
        check("gather", make);
    }
}

#[test]
fn scatters_add_in_order() {
    for (outer, count, inner, base) in [(1, 50, 65, true), (3, 20, 1, false), (2, 9, 1000, true), (1, 1, 3, false)] {
        for dtype in [DType::F32, DType::I32] {
            let rows = 7;
            let mut make = Make::new(Kind::Index, &[(outer, Parallel), (count, Reduce), (inner, Parallel)]);
            let target = make.load(DType::I32, count, make.dense(&[1]));
            let update = make.load(dtype, outer * count * inner, make.dense(&[0, 1, 2]));
            let update = make.binary(BinaryOp::Add, update, update);
            let base = base.then(|| make.arg(dtype, outer * rows * inner, Access::Read));
            let out = make.arg(dtype, outer * rows * inner, Access::Write);
            make.kernel.scatter = Some(Scatter { target, update, rows, base, out });
            check("scatter", make);
        }
    }
}

#[test]
fn in_place_reads_before_it_writes() {
    for n in RAGGED {
        let mut make = Make::new(Kind::Loop, &[(n, Parallel)]);
        let (x, y) = (make.arg(DType::F32, n, Access::ReadWrite), make.arg(DType::F32, n, Access::ReadWrite));
        let index = affine(0, &[(0, 1)]);
        let a = make.push(Inst::Load { arg: x, index: index.clone(), dynamic: vec![] }, DType::F32);
        let b = make.push(Inst::Load { arg: y, index: index.clone(), dynamic: vec![] }, DType::F32);
        // Swap, and keep the sum.
        make.kernel.stores.push(Store { arg: x, index: index.clone(), value: b });
        make.kernel.stores.push(Store { arg: y, index: index.clone(), value: a });
        let sum = make.binary(BinaryOp::Add, a, b);
        make.store(sum, n, index);
        check("in place", make);
    }
}

#[test]
fn uniform_values_and_constants_are_stored() {
    let mut make = Make::new(Kind::Loop, &[(65, Parallel), (3, Parallel)]);
    let x = make.load(DType::F32, 1, Idx::default());
    let y = make.unary(UnaryOp::Exp, x);
    make.store(y, 195, make.dense(&[0, 1]));
    let seven = make.constant(7.0);
    make.store(seven, 195, make.dense(&[1, 0]));
    check("uniform", make);
    let mut make = Make::new(Kind::Loop, &[]);
    let x = make.load(DType::F32, 1, Idx::default());
    let y = make.unary(UnaryOp::Exp, x);
    make.store(y, 1, Idx::default());
    check("scalar", make);
}

#[test]
fn multi_kernels_run_over_segments() {
    let mut make = Make::new(Kind::Multi, &[(0, Parallel)]);
    let x = make.arg(DType::F32, 0, Access::ReadWrite);
    let g = make.arg(DType::F32, 0, Access::Read);
    let s = make.arg(DType::F32, 1, Access::Read);
    let out = make.arg(DType::F32, 0, Access::Write);
    let line = affine(0, &[(0, 1)]);
    let a = make.push(Inst::Load { arg: x, index: line.clone(), dynamic: vec![] }, DType::F32);
    let b = make.push(Inst::Load { arg: g, index: line.clone(), dynamic: vec![] }, DType::F32);
    let c = make.push(Inst::Load { arg: s, index: Idx::default(), dynamic: vec![] }, DType::F32);
    let step = make.binary(BinaryOp::Mul, b, c);
    let y = make.binary(BinaryOp::Sub, a, step);
    make.kernel.stores.push(Store { arg: x, index: line.clone(), value: y });
    make.kernel.stores.push(Store { arg: out, index: line, value: step });
    let kernel = make.kernel;
    let lengths = [1usize, 3, 5000, 64, 1];
    let (mut inputs, mut outputs, mut segments, mut arrays) = (vec![], vec![], vec![], vec![]);
    for (i, &n) in lengths.iter().enumerate() {
        let first = inputs.len() as u32;
        for (j, n) in [n, n, 1].into_iter().enumerate() {
            let ty = Type::f32([n]);
            inputs.push(Port { name: format!("in{i}.{j}"), ty: ty.clone(), donated: None });
            arrays.push(noise(&ty, (i * 3 + j) as u32 + 1));
        }
        let out = BufRef::Output(outputs.len() as u32 + 1);
        outputs.push(Port { name: String::new(), ty: Type::f32([n]), donated: Some(first) });
        outputs.push(Port { name: String::new(), ty: Type::f32([n]), donated: None });
        let args = vec![BufRef::Input(first), BufRef::Input(first + 1), BufRef::Input(first + 2), out];
        segments.push((n as u64, args));
    }
    let steps = vec![Step::Multi { kernel: 0, segments, loc: String::new() }];
    let exec = Executable { inputs, outputs, steps, ..program(&kernel) };
    let device = Device::cpu();
    let results = device.load(exec).unwrap().run(&device.upload_all(&arrays).unwrap()).unwrap();
    for (i, _) in lengths.iter().enumerate() {
        let mut memory: Vec<Vec<u8>> = arrays[3 * i..3 * i + 3].iter().map(device_bytes).collect();
        memory.push(vec![0; memory[0].len()]);
        run(&kernel, &mut memory).unwrap();
        for (at, result) in [(0, 2 * i), (3, 2 * i + 1)] {
            let got = results[result].download().unwrap();
            assert_close("multi", &got, &from_device_bytes(got.ty(), &memory[at]));
        }
    }
}

#[test]
fn step_by_step() {
    support::pass_without_machine_code("step_by_step");
}
