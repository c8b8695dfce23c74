//! Every function prints and parses back to itself.

use dnx_ir::{
    Array, AttrValue, AxisName, Builder, CmpOp, ConvDims, DType, DotDims, Func, Node, NodeId, Op, ReduceKind,
};
use dnx_ir::{Mesh, Scalar, Sharding, Value, ValueId, infer};
use dnx_ir::{Type, text, verify};
use proptest::prelude::*;
use proptest::{collection, sample};
use std::sync::Arc;

fn round_trip(f: &Func) -> String {
    let text = text::print(f);
    let back = text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(&back, f, "\n{text}\n{back}");
    verify::verify(f).unwrap();
    text
}

#[test]
fn a_function_reads_like_this() {
    let mut inner = Builder::new("mlp");
    let x = inner.param("x", Type::f32([8, 4]));
    let w = inner.param("blocks.0.weight", Type::f32([4, 4]));
    inner.set_loc("fc".into());
    let dims = DotDims { lhs_contract: vec![1], rhs_contract: vec![0], ..DotDims::default() };
    let y = inner.dot(x, w, dims).unwrap();
    let inner = Arc::new(inner.finish(&[y]));

    let mut b = Builder::new("main");
    let x = b.param("x", Type::f32([8, 4]));
    let w = b.param("7 w", Type::f32([4, 4]));
    b.set_loc("net.block".into());
    let y = b.emit(Op::Call { func: inner.clone(), remat: true }, &[x, w]).unwrap();
    let attrs = vec![("scale".into(), AttrValue::Float(Scalar::from_f64(DType::F64, 0.5)))];
    let z = b.emit(Op::Composite { name: "mlp".into(), attrs, func: inner }, &[y, w]).unwrap();
    let late = b.param("late", Type::f32([]));
    let both = b.emit_multi(Op::OptimizationBarrier, &[z, late]).unwrap();
    let f = b.finish(&[both[0], both[1]]);
    insta::assert_snapshot!(round_trip(&f), @r#"
    func @mlp(%x: f32[8, 4], %blocks.0.weight: f32[4, 4]) -> f32[8, 4] {
      %2 = dot_general %x, %blocks.0.weight {contract = [1] x [0]} : f32[8, 4] at "fc"
      return %2
    }

    func @main(%x: f32[8, 4], %"7 w": f32[4, 4]) -> (f32[8, 4], f32[]) {
      %2 = call @mlp(%x, %"7 w") {remat} : f32[8, 4] at "net.block"
      %3 = composite mlp @mlp(%2, %"7 w") {scale = 0.5} : f32[8, 4] at "net.block"
      %late = param : f32[] at "net.block"
      %5, %6 = optimization_barrier %3, %late : (f32[8, 4], f32[]) at "net.block"
      return %5, %6
    }
    "#);
}

/// A function with one node of this op after three parameters; types need not be right, text is exact all the same.
fn with_node(op: Op, operands: usize, types: Vec<Type>, loc: &str) -> Func {
    let mut b = Builder::new("f");
    for name in ["x", "7", "late.name"] {
        b.param(name, Type::f32([2]));
    }
    let mut f = b.finish(&[]);
    f.results = (0..types.len() as u32).map(|i| ValueId(3 + i)).collect();
    let values = types.into_iter().enumerate().map(|(i, ty)| Value { ty, node: NodeId(3), result: i as u32 });
    f.values.extend(values);
    let operands = (0..operands as u32).map(ValueId).collect();
    f.nodes.push(Node { op, operands, results: f.results.clone(), loc: loc.into() });
    f
}

fn axis() -> impl Strategy<Value = AxisName> {
    // Words that mean something elsewhere in the text are names here.
    let words = ["dp", "x", "inf", "true", "splat", "base64", "unreduced", "at", "on", "return", "func", "_0", "f32"];
    sample::select(words.to_vec()).prop_map(AxisName::from)
}

fn list() -> impl Strategy<Value = Vec<usize>> {
    collection::vec(prop_oneof![3 => 0..4usize, 1 => 0..(1usize << 31)], 0..5)
}

fn ty() -> impl Strategy<Value = Type> {
    let dim = (0..9usize, collection::vec(axis(), 0..3));
    let parts = (sample::select(DType::ALL.to_vec()), collection::vec(dim, 0..4), collection::vec(axis(), 0..3));
    parts.prop_map(|(dtype, dims, unreduced)| {
        let (dims, axes): (Vec<usize>, Vec<_>) = dims.into_iter().unzip();
        Type::new(dtype, dims).with_sharding(Sharding::new(axes, unreduced))
    })
}

fn attr() -> impl Strategy<Value = AttrValue> {
    prop_oneof![
        any::<bool>().prop_map(AttrValue::Bool),
        any::<i64>().prop_map(AttrValue::Int),
        any::<u64>().prop_map(|bits| AttrValue::Float(Scalar::from_bits(DType::F64, bits))),
        any::<i32>().prop_map(|i| AttrValue::Float(Scalar::from_f64(DType::F64, i as f64))),
        collection::vec(any::<i64>(), 0..4).prop_map(AttrValue::Ints),
        any::<String>().prop_map(AttrValue::Str),
    ]
}

fn array(ty: Type, seed: u64) -> Array {
    let n = ty.elems() * ty.dtype.size();
    // Splats and lists, lists too long to be printed as such, and bits that are no number.
    let byte = |i: usize| if seed.is_multiple_of(3) { 1 } else { (seed >> (i % 7 * 8)) as u8 ^ i as u8 };
    Array::from_bytes(ty, (0..n).map(byte).collect())
}

/// Every op that has attributes, with any of them; the result type tells the rest.
fn op() -> impl Strategy<Value = (Op, Type)> {
    let padding = collection::vec((-9i64..9, -9i64..9), 0..3);
    let conv = (list(), padding, list(), list(), 0..9usize).prop_map(
        |(stride, padding, lhs_dilation, rhs_dilation, groups)| ConvDims {
            stride,
            padding,
            lhs_dilation,
            rhs_dilation,
            groups,
        },
    );
    let dot = (list(), list(), list(), list()).prop_map(|(lhs_batch, rhs_batch, lhs_contract, rhs_contract)| DotDims {
        lhs_batch,
        rhs_batch,
        lhs_contract,
        rhs_contract,
    });
    let kind = sample::select(vec![ReduceKind::Sum, ReduceKind::Max]);
    let pairs = collection::vec((0..9usize, 0..9usize), 0..4);
    let lists = (list(), list(), list());
    (
        0..22usize,
        ty(),
        (lists, 0..9usize, any::<u64>()),
        (conv, dot, kind),
        (axis(), collection::vec(axis(), 0..3), pairs),
    )
        .prop_map(|(which, ty, ((a, b, c), dim, seed), (conv, dot, kind), (axis, axes, pairs))| {
            let (dtype, dims) = (ty.dtype, ty.dims.clone());
            let op = match which {
                0 => Op::Const(array(ty.clone(), seed)),
                1 => Op::Iota { dtype, dims, dim },
                2 => Op::RandomBits { dims, global: if dim > 4 { Some(a) } else { None } },
                3 => Op::AxisIndex { axis },
                4 => Op::Compare(CmpOp::ALL[dim % 6]),
                5 => Op::Transpose { perm: a },
                6 => Op::Broadcast { dims, map: a },
                7 => Op::Slice { stride: if dim > 4 { vec![1; a.len()] } else { c }, start: a, limit: b },
                8 => Op::Pad { interior: if dim > 4 { vec![0; a.len()] } else { c }, low: a, high: b },
                9 => Op::Concat { dim },
                10 => Op::Reverse { dims: a },
                11 => Op::Reduce { kind, dims: a },
                12 => Op::Argmax { dim },
                13 => Op::Dot { dims: dot, out: dtype },
                14 => Op::Conv { dims: conv, out: dtype },
                15 => Op::Take { dim },
                16 => Op::ScatterAdd { dim },
                17 => Op::AllReduce { kind, axes },
                18 => Op::AllGather { axis, dim },
                19 => Op::ReduceScatter { axis, dim },
                20 => Op::AllToAll { axis, split: dim, concat: a.len() },
                _ => Op::Ppermute { axis, pairs },
            };
            (op, ty)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_attributes_read_back((op, ty) in op(), operands in 0..4usize, loc: String) {
        let operands = if matches!(op, Op::Const(_)) { 0 } else { operands };
        let f = with_node(op, operands, vec![ty], &loc);
        let text = f.to_string();
        prop_assert_eq!(text::parse(&text), Ok(f), "{}", text);
    }

    #[test]
    fn any_op_gets_types_or_an_error((op, _) in op(), operands in collection::vec(ty(), 0..4), same: bool) {
        let mesh = Mesh::new(&[("dp", 2), ("x", 1), ("inf", 3)]);
        // Random types seldom fit each other; every other time all are the first.
        let operands: Vec<&Type> = operands.iter().map(|t| if same { &operands[0] } else { t }).collect();
        if let Ok(types) = infer::infer(&op, &operands, &mesh) {
            prop_assert!(types.iter().all(|t| t.is_addressable() || !op.is_elementwise()));
        }
    }

    #[test]
    fn any_names_read_back(
        names in collection::btree_set(any::<String>(), 3),
        attrs in collection::btree_map(any::<String>(), attr(), 0..4),
        types in collection::vec(ty(), 0..3),
        remat: bool,
    ) {
        let names: Vec<String> = names.into_iter().collect();
        let mut callee = with_node(Op::OptimizationBarrier, 2, types.clone(), "");
        callee.name = names[0].as_str().into();
        let op = Op::Composite { name: names[1].as_str().into(), attrs: attrs.into_iter().collect(), func: Arc::new(callee.clone()) };
        let mut middle = with_node(op, 3, types.clone(), &names[2]);
        // Another function of the same name.
        middle.name = callee.name.clone();
        let mut f = with_node(Op::Call { func: Arc::new(middle), remat }, 1, types, "");
        f.params[1].name = names[0].as_str().into();
        f.params[2].name = names[1].as_str().into();
        f.params[0].name = names[2].as_str().into();
        let text = f.to_string();
        prop_assert_eq!(text::parse(&text), Ok(f), "{}", text);
    }

    #[test]
    fn damaged_text_is_refused_in_peace((op, ty) in op(), operands in 0..4usize, at in any::<sample::Index>(), with: char, cut in 0..9usize) {
        let text: Vec<char> = with_node(op, operands, vec![ty], "here").to_string().chars().collect();
        let at = at.index(text.len());
        let damaged: String = text[..at].iter().chain([&with]).chain(text.iter().skip(at + cut)).collect();
        if let Ok(f) = text::parse(&damaged) {
            // What still reads must print and verify without a panic.
            let _ = (f.to_string(), verify::verify(&f));
        }
    }
}

#[test]
fn deep_and_huge_text_is_refused() {
    let deep = format!("func @f() {{ %x = const {} : f32[] return }}", "[".repeat(100_000));
    assert!(text::parse(&deep).unwrap_err().message.contains("at most 64 lists in each other"));
    let huge = "func @f() { %x = const splat 0 : f32[999999999, 999999999, 0] return }";
    assert_eq!(text::parse(huge).unwrap_err().message, "line 1, column 34: f32[999999999, 999999999, 0] is too large");
}
