//! Hand-made kernels and programs whose results are known.

use super::*;
use crate::exec::{KernelEntry, Part, Port, Requires, VERSION};
use crate::kernel::{Arg, Atom, Check, Dim, Store, Tile};
use dnx_ir::{BinaryOp, UnaryOp};

/// A kernel under construction.
struct Make(Kernel);

impl Make {
    fn new(kind: Kind, dims: &[(usize, Role)]) -> Make {
        let dims = dims.iter().map(|&(size, role)| Dim { size, role }).collect();
        let (args, insts, dtypes, stores) = (vec![], vec![], vec![], vec![]);
        Make(Kernel { kind, dims, args, insts, dtypes, stores, scatter: None, tile: Tile::default() })
    }

    fn arg(&mut self, dtype: DType, elems: usize, access: Access) -> u32 {
        self.0.args.push(Arg { dtype, elems, access });
        self.0.args.len() as u32 - 1
    }

    fn inst(&mut self, dtype: DType, inst: Inst) -> InstId {
        self.0.insts.push(inst);
        self.0.dtypes.push(dtype);
        InstId(self.0.insts.len() as u32 - 1)
    }

    fn load(&mut self, arg: u32, index: Idx) -> InstId {
        let dtype = self.0.args[arg as usize].dtype;
        self.inst(dtype, Inst::Load { arg, index, dynamic: vec![] })
    }

    fn store(&mut self, arg: u32, index: Idx, value: InstId) {
        self.0.stores.push(Store { arg, index, value });
    }
}

/// `offset + sum of coefficient * dim`.
fn affine(offset: i64, terms: &[(i64, u32)]) -> Idx {
    let terms = terms.iter().map(|&(c, d)| (c, Atom::Dim(d))).collect();
    Idx { offset, terms, checks: vec![] }
}

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(b: &[u8]) -> Vec<f32> {
    b.chunks_exact(4).map(|w| f32::from_le_bytes(w.try_into().unwrap())).collect()
}

const F: DType = DType::F32;

/// `[rows, n] -> [rows, n]`.
fn softmax(rows: usize, n: usize) -> Kernel {
    let mut k = Make::new(Kind::Row, &[(rows, Role::Parallel), (n, Role::Reduce)]);
    let (x, y) = (k.arg(F, rows * n, Access::Read), k.arg(F, rows * n, Access::Write));
    let at = affine(0, &[(n as i64, 0), (1, 1)]);
    let v = k.load(x, at.clone());
    let max = k.inst(F, Inst::Reduce(ReduceKind::Max, v));
    let d = k.inst(F, Inst::Binary(BinaryOp::Sub, v, max));
    let e = k.inst(F, Inst::Unary(UnaryOp::Exp, d));
    let sum = k.inst(F, Inst::Reduce(ReduceKind::Sum, e));
    let p = k.inst(F, Inst::Binary(BinaryOp::Div, e, sum));
    k.store(y, at, p);
    k.0
}

#[test]
fn row_softmax() {
    let ln = |x: f32| x.ln();
    let x = bytes(&[ln(1.0), ln(2.0), ln(5.0), 7.0, 7.0, f32::NEG_INFINITY]);
    let mut args = [x, vec![0xff; 24]];
    run(&softmax(2, 3), &mut args).unwrap();
    for (got, want) in floats(&args[1]).iter().zip([0.125, 0.25, 0.625, 0.5, 0.5, 0.0]) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
}

#[test]
fn contract_with_padded_operand() {
    // A 1-D convolution of 4 inputs with 3 taps and one zero on either side, as a contraction.
    let mut k = Make::new(Kind::Contract, &[(4, Role::M), (1, Role::N), (3, Role::Reduce)]);
    let (x, w) = (k.arg(F, 4, Access::Read), k.arg(F, 3, Access::Read));
    let y = k.arg(F, 4, Access::Write);
    let mut under = affine(-1, &[(1, 0), (1, 2)]);
    under.checks = vec![Check { index: under.clone(), lo: 0, hi: 4, multiple: 1 }];
    let (lhs, rhs) = (k.load(x, under), k.load(w, affine(0, &[(1, 2)])));
    let dot = k.inst(F, Inst::Dot { lhs, rhs });
    let neg = k.inst(F, Inst::Unary(UnaryOp::Neg, dot));
    k.store(y, affine(0, &[(1, 0), (1, 1)]), neg);
    let mut args = [bytes(&[1.0, 2.0, 3.0, 4.0]), bytes(&[1.0, 10.0, 100.0]), vec![0; 16]];
    run(&k.0, &mut args).unwrap();
    assert_eq!(floats(&args[2]), [-210.0, -321.0, -432.0, -43.0]);
}

#[test]
fn column_sum_and_argmax_over_all_reduced_dims() {
    // `[2, 2, 3]`, the first two dims reduced.
    let dims = [(2, Role::Reduce), (2, Role::Reduce), (3, Role::Parallel)];
    let mut k = Make::new(Kind::Column, &dims);
    let x = k.arg(F, 12, Access::Read);
    let (sum, best) = (k.arg(F, 3, Access::Write), k.arg(DType::I32, 3, Access::Write));
    let v = k.load(x, affine(0, &[(6, 0), (3, 1), (1, 2)]));
    let s = k.inst(F, Inst::Reduce(ReduceKind::Sum, v));
    let a = k.inst(DType::I32, Inst::Argmax(v));
    // A value that does not depend on the reduced dims is still summed once per reduced point.
    let one = k.inst(F, Inst::Const(Scalar::one(F)));
    let count = k.inst(F, Inst::Reduce(ReduceKind::Sum, one));
    let out = k.inst(F, Inst::Binary(BinaryOp::Add, s, count));
    k.store(sum, affine(0, &[(1, 2)]), out);
    k.store(best, affine(0, &[(1, 2)]), a);
    let data = [0.0, 5.0, 1.0, 9.0, 5.0, 2.0, 9.0, 0.0, 3.0, 1.0, 1.0, 4.0];
    let mut args = [bytes(&data), vec![0; 12], vec![0; 12]];
    run(&k.0, &mut args).unwrap();
    assert_eq!(floats(&args[1]), [23.0, 15.0, 14.0]);
    assert_eq!(args[2].chunks(4).map(|w| w[0]).collect::<Vec<_>>(), [1, 0, 3]);
}

/// `out[o, clamp(row(i)), c] += update[o, i, c]`.
fn scatter_kernel(base: bool) -> Kernel {
    let mut k = Make::new(Kind::Index, &[(2, Role::Parallel), (3, Role::Reduce), (2, Role::Parallel)]);
    let (rows, update) = (k.arg(DType::I32, 3, Access::Read), k.arg(F, 12, Access::Read));
    let out = k.arg(F, 16, Access::Write);
    let base = base.then(|| k.arg(F, 16, Access::Read));
    let target = k.load(rows, affine(0, &[(1, 1)]));
    let update = k.load(update, affine(0, &[(6, 0), (2, 1), (1, 2)]));
    k.0.scatter = Some(Scatter { target, update, rows: 4, base, out });
    k.0
}

#[test]
fn index_scatter_adds_and_clamps() {
    let rows: Vec<u8> = [9i32, 1, 9].iter().flat_map(|i| i.to_le_bytes()).collect();
    let update: Vec<f32> = (1..=12).map(|i| i as f32).collect();
    let mut want = vec![0.0; 16];
    (want[6], want[7], want[2], want[3]) = (6.0, 8.0, 3.0, 4.0);
    (want[14], want[15], want[10], want[11]) = (18.0, 20.0, 9.0, 10.0);
    let mut args = vec![rows, bytes(&update), vec![0xff; 64]];
    run(&scatter_kernel(false), &mut args).unwrap();
    assert_eq!(floats(&args[2]), want);
    args.push(bytes(&[100.0; 16]));
    run(&scatter_kernel(true), &mut args).unwrap();
    assert_eq!(floats(&args[2]), want.iter().map(|x| x + 100.0).collect::<Vec<_>>());
}

#[test]
fn gathers_clamp_and_random_bits_are_threefry() {
    let mut k = Make::new(Kind::Loop, &[(3, Role::Parallel)]);
    let (table, rows) = (k.arg(F, 4, Access::Read), k.arg(DType::I32, 3, Access::Read));
    let (y, r) = (k.arg(F, 3, Access::Write), k.arg(DType::U32, 3, Access::Write));
    let at = affine(0, &[(1, 0)]);
    let row = k.load(rows, at.clone());
    let dynamic = vec![DynTerm { value: row, limit: 3, stride: 1 }];
    let taken = k.inst(F, Inst::Load { arg: table, index: Idx::constant(0), dynamic });
    k.store(y, at.clone(), taken);
    let word = |x: u64| Inst::Const(Scalar::from_bits(DType::U32, x));
    let (k0, k1) = (k.inst(DType::U32, word(3)), k.inst(DType::U32, word(4)));
    let counter = k.inst(DType::U32, Inst::Index(DType::U32, at.clone()));
    let bits = k.inst(DType::U32, Inst::Threefry { k0, k1, counter });
    k.store(r, at, bits);
    let rows: Vec<u8> = [-5i32, 2, 77].iter().flat_map(|i| i.to_le_bytes()).collect();
    let mut args = [bytes(&[1.0, 2.0, 3.0, 4.0]), rows, vec![0; 12], vec![0; 12]];
    run(&k.0, &mut args).unwrap();
    assert_eq!(floats(&args[2]), [1.0, 3.0, 4.0]);
    for (i, word) in args[3].chunks(4).enumerate() {
        assert_eq!(word, threefry::bits([3, 4], i as u64).to_le_bytes());
    }
}

#[test]
fn broken_kernels_are_refused() {
    let refused = |change: &dyn Fn(&mut Kernel), why: &str| {
        let mut kernel = softmax(2, 3);
        change(&mut kernel);
        let e = run(&kernel, &mut [bytes(&[0.0; 6]), vec![0; 24]]).unwrap_err().to_string();
        assert!(e.contains(why), "{e:?} does not say {why:?}");
    };
    refused(&|k| k.stores[0].index.offset = 1, "out of the 6 elements");
    refused(&|k| k.stores[0].index.terms[1].0 = 0, "is stored 3 times");
    refused(&|k| k.stores[0].index.terms[0].0 = 1, "element 1 of argument 1 (Write) is stored 2 times");
    refused(&|k| k.stores.clear(), "is stored 0 times");
    refused(&|k| k.stores[0].arg = 0, "(Read) is stored 1 times");
    refused(&|k| k.dtypes[2] = DType::F16, "its dtype is said to be f16");
    refused(&|k| k.insts.swap(1, 2), "not earlier");
    refused(&|k| k.args[0].elems = 7, "argument 0 has 24 bytes");
}

fn port(name: &str, dims: &[usize], donated: Option<u32>) -> Port {
    Port { name: name.into(), ty: Type::f32(dims), donated }
}

fn program(
    kernels: Vec<Kernel>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    slabs: Vec<u64>,
    steps: Vec<Step>,
) -> Executable {
    let entry = |kernel| KernelEntry { hash: String::new(), name: "k".into(), kernel, shaders: vec![] };
    Executable {
        version: VERSION,
        name: "program".into(),
        requires: Requires::default(),
        mesh: Mesh::single(),
        inputs,
        outputs,
        slabs,
        constants: vec![],
        kernels: kernels.into_iter().map(entry).collect(),
        steps,
        peak_bytes: 0,
    }
}

fn dispatch(args: Vec<BufRef>) -> Step {
    Step::Dispatch { kernel: 0, args, scratch: None, loc: "a.b".into() }
}

#[test]
fn programs_run_through_slabs() {
    let slab = BufRef::Slab { slab: 0, offset: 256, bytes: 24 };
    let steps = vec![dispatch(vec![BufRef::Input(0), slab]), Step::Copy { src: slab, dst: BufRef::Output(0) }];
    let make = |steps| {
        program(vec![softmax(2, 3)], vec![port("x", &[2, 3], None)], vec![port("", &[2, 3], None)], vec![512], steps)
    };
    let x = Array::f32([2, 3], &[0.0; 6]);
    let out = run_executable(&make(steps), std::slice::from_ref(&x)).unwrap();
    assert!(out[0].to_f32_vec().iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-7));

    let unwritten = make(vec![Step::Copy { src: slab, dst: BufRef::Output(0) }]);
    assert!(run_executable(&unwritten, std::slice::from_ref(&x)).unwrap()[0].to_f32_vec()[0].is_nan());
    let near = BufRef::Slab { slab: 0, offset: 264, bytes: 24 };
    let e = run_executable(&make(vec![dispatch(vec![near, slab])]), std::slice::from_ref(&x)).unwrap_err();
    assert!(e.to_string().contains("also touches") && e.to_string().contains("a.b"), "{e}");
}

#[test]
fn multi_updates_donated_inputs_of_any_length() {
    // p = p - rate * g over two tensors.
    let mut k = Make::new(Kind::Multi, &[(0, Role::Parallel)]);
    let (p, g, rate) = (k.arg(F, 0, Access::ReadWrite), k.arg(F, 0, Access::Read), k.arg(F, 1, Access::Read));
    let at = affine(0, &[(1, 0)]);
    let (pv, gv, rv) = (k.load(p, at.clone()), k.load(g, at.clone()), k.load(rate, Idx::constant(0)));
    let step = k.inst(F, Inst::Binary(BinaryOp::Mul, rv, gv));
    let new = k.inst(F, Inst::Binary(BinaryOp::Sub, pv, step));
    k.store(p, at, new);
    let segments = vec![
        (3, vec![BufRef::Input(0), BufRef::Input(2), BufRef::Input(4)]),
        (2, vec![BufRef::Input(1), BufRef::Input(3), BufRef::Input(4)]),
    ];
    let inputs = [&[3][..], &[2, 1], &[3], &[2, 1], &[]].iter().map(|d| port("x", d, None)).collect();
    let outputs = vec![port("", &[3], Some(0)), port("", &[2, 1], Some(1))];
    let exec =
        program(vec![k.0], inputs, outputs, vec![], vec![Step::Multi { kernel: 0, segments, loc: String::new() }]);
    let args = [
        Array::f32([3], &[1.0, 2.0, 3.0]),
        Array::f32([2, 1], &[4.0, 5.0]),
        Array::f32([3], &[1.0, 0.0, -1.0]),
        Array::f32([2, 1], &[2.0, 2.0]),
        Array::f32([], &[0.5]),
    ];
    let out = run_executable(&exec, &args).unwrap();
    assert_eq!(out[0].to_f32_vec(), [0.5, 2.0, 3.5]);
    assert_eq!(out[1].to_f32_vec(), [3.0, 4.0]);
}

#[test]
fn collectives_cross_devices() {
    let op = Collective::AllGather { axis: "dp".into(), dim: 0 };
    let part = Part { op, src: BufRef::Input(0), dst: BufRef::Output(0), ty: Type::f32([1]) };
    let step = |parts| Step::Collective { parts, loc: "a.b".into() };
    let steps = vec![step(vec![part.clone()])];
    let mut exec = program(vec![], vec![port("x", &[1], None)], vec![port("", &[2], None)], vec![], steps);
    exec.mesh = Mesh::new(&[("dp", 2)]);
    let out = run_executable_mesh(&exec, &[vec![Array::f32([1], &[1.0])], vec![Array::f32([1], &[2.0])]]).unwrap();
    assert_eq!([out[0][0].to_f32_vec(), out[1][0].to_f32_vec()], [[1.0, 2.0], [1.0, 2.0]]);

    let args = [vec![Array::f32([1], &[1.0])], vec![Array::f32([1], &[2.0])]];
    let mut refused = |parts: Vec<Part>, why: &str| {
        exec.steps = vec![step(parts)];
        let e = run_executable_mesh(&exec, &args).unwrap_err().to_string();
        assert!(e.contains(why) && e.contains("a.b"), "{e:?} does not say {why:?}");
    };
    refused(vec![Part { dst: BufRef::Input(0), ..part.clone() }], "which it also reads");
    refused(vec![part.clone(), part.clone()], "which part 1 also touches");
    refused(vec![Part { dst: BufRef::Axis(0), ..part.clone() }], "writes a constant");
}

#[test]
fn truth_values_and_half_floats_have_their_device_layout() {
    let mut k = Make::new(Kind::Loop, &[(2, Role::Parallel)]);
    let (c, h) = (k.arg(DType::Bool, 2, Access::Read), k.arg(DType::F16, 2, Access::ReadWrite));
    let at = affine(0, &[(1, 0)]);
    let (cv, hv) = (k.load(c, at.clone()), k.load(h, at.clone()));
    let zero = k.inst(DType::F16, Inst::Const(Scalar::zero(DType::F16)));
    let v = k.inst(DType::F16, Inst::Select(cv, hv, zero));
    k.store(h, at, v);
    let half = Array::from_f64(Type::new(DType::F16, [2]), &[1.5, 2.5]);
    let truth = Array::from_bytes(Type::new(DType::Bool, [2]), vec![0, 1]);
    let mut args = [device_bytes(&truth), device_bytes(&half)];
    assert_eq!((args[0].len(), args[1].len()), (8, 4));
    assert_eq!(from_device_bytes(truth.ty(), &args[0]), truth);
    run(&k.0, &mut args).unwrap();
    assert_eq!(from_device_bytes(half.ty(), &args[1]).to_f64_vec(), [0.0, 2.5]);
    args[0][0] = 2;
    assert!(run(&k.0, &mut args).unwrap_err().to_string().contains("neither 0 nor 1"));
}
