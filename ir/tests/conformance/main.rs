//! Every op: what it accepts and the type it gives, what it rejects and how that is said, without and with
//! shardings. A case is the parameters, a node in text, and either `ok` (the stated type is the inferred one) or the
//! message. Accepted nodes also print and parse back to themselves.

use dnx_ir::{Func, Op, Type, text, verify};
use std::collections::BTreeSet;

mod sharding;

fn program(params: &str, node: &str) -> Func {
    let params = if params.is_empty() { String::new() } else { format!("%{}", params.replace("; ", ", %")) };
    let text = format!("func @t({params}) on [dp = 2, tp = 4] {{ %r = {node} at \"net.here\" return %r }}");
    text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn ok(params: &str, node: &str) -> Func {
    let f = program(params, node);
    verify::verify(&f).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(text::parse(&f.to_string()).unwrap(), f, "\n{f}");
    // The rule does give this type and no other.
    let mut wrong = f.clone();
    let ty = &mut wrong.values.last_mut().unwrap().ty;
    *ty = Type::new(ty.dtype, [ty.dims.clone(), vec![3]].concat());
    assert!(verify::verify(&wrong).unwrap_err().message.contains("breaks invariant 5"));
    f
}

fn rejected(params: &str, node: &str, wanted: &str) {
    let f = program(params, node);
    let Err(error) = verify::verify(&f) else { panic!("accepted:\n{f}") };
    let first = error.message.lines().next().unwrap();
    let said = first.strip_prefix("@t breaks invariant 5: ").unwrap_or(first);
    assert_eq!(said, wanted, "\n{f}");
}

/// The table an op is tested in. A new op must be given one here, then cases there.
fn table_of(op: &Op) -> &'static str {
    match op {
        Op::Const(_) | Op::Iota { .. } | Op::RandomBits { .. } | Op::AxisIndex { .. } => "leaves",
        Op::Unary(_) | Op::Convert(_) | Op::Bitcast(_) | Op::Binary(_) | Op::Compare(_) | Op::Select => "elementwise",
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } | Op::Pad { .. } => "shape",
        Op::Concat { .. } | Op::Reverse { .. } | Op::DynamicSlice { .. } | Op::DynamicUpdateSlice => "shape",
        Op::Reduce { .. } | Op::Argmax { .. } | Op::Dot { .. } | Op::Conv { .. } => "sums and indices",
        Op::Take { .. } | Op::ScatterAdd { .. } => "sums and indices",
        Op::Reshard { .. } | Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } => "placement",
        Op::AllToAll { .. } | Op::Ppermute { .. } => "placement",
        Op::Param { .. } => "every table, as the operands",
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier => "many results",
    }
}

/// Runs a table and gives the names of the ops that were accepted at least once.
fn run(table: &str, cases: &[(&str, &str, &str)]) -> BTreeSet<&'static str> {
    let mut names = BTreeSet::new();
    for (params, node, wanted) in cases {
        if *wanted == "ok" {
            let f = ok(params, node);
            let op = &f.nodes.last().unwrap().op;
            assert_eq!(table_of(op), table);
            names.insert(op.name());
        } else {
            rejected(params, node, wanted);
        }
    }
    names
}

const LEAVES: &[(&str, &str, &str)] = &[
    ("", "const 1.5 : f32[]", "ok"),
    ("", "const [[1, -2], [3, 4]] : i32[2, 2]", "ok"),
    ("", "const splat -inf : f16[8, 8]", "ok"),
    ("", "const 0x7fc00001 : f32[]", "ok"),
    ("", "const empty : f32[2, 0]", "ok"),
    ("", "const [true, false] : bool[2]", "ok"),
    ("", "const base64 \"AAECAw==\" : bool[4]", "ok"),
    ("", "iota {dim = 1} : i32[2, 3]", "ok"),
    ("", "iota {dim = 0} : bf16[3]", "ok"),
    ("", "iota {dim = 0} : bool[3]", "iota: cannot count in bool"),
    ("", "iota {dim = 1} : f32[3]", "iota: dim 1 is beyond rank 1"),
    ("k: u32[2]", "random_bits %k : u32[8, 3]", "ok"),
    ("k: u32[2]; s: i32[2]", "random_bits %k, %s {global = [8, 6]} : u32[4, 3]", "ok"),
    ("k: u32[3]", "random_bits %k : u32[8]", "random_bits: the key (operand 0) is u32[3], not u32[2]"),
    ("k: u32[2]; s: i32[1]", "random_bits %k, %s : u32[8]", "random_bits: has 2 operands, not 1"),
    ("k: u32[2]", "random_bits %k {global = [8]} : u32[4]", "random_bits: has 1 operands, not 2"),
    (
        "k: u32[2]; s: i32[1]",
        "random_bits %k, %s {global = [2]} : u32[4]",
        "random_bits: block [4] is larger than the array [2] it is part of",
    ),
    ("k: u32[2]", "random_bits %k : f32[8]", "random_bits: has type (f32[8]), its rule gives (u32[8])"),
    ("", "axis_index {axis = tp} : i32[]", "ok"),
    ("", "axis_index {axis = pp} : i32[]", "axis_index: the mesh has no axis \"pp\"; it has [\"dp\", \"tp\"]"),
];

const ELEMENTWISE: &[(&str, &str, &str)] = &[
    ("x: f32[3]", "is_finite %x : bool[3]", "ok"),
    ("x: u32[3]", "neg %x : u32[3]", "ok"),
    ("x: bool[3]", "stop_gradient %x : bool[3]", "ok"),
    ("x: i32[3]", "exp %x : i32[3]", "exp: is not defined on i32"),
    ("x: f32[3]", "not %x : f32[3]", "not: is not defined on f32"),
    ("x: u32[3]", "sign %x : u32[3]", "sign: is not defined on u32"),
    ("x: bool[3]", "neg %x : bool[3]", "neg: is not defined on bool"),
    ("x: f32[3]; y: f32[3]", "neg %x, %y : f32[3]", "neg: takes 1 operand, not 2"),
    ("x: f32[3]", "convert %x : bf16[3]", "ok"),
    ("x: f32[3]", "bitcast %x : u32[3]", "ok"),
    ("x: f32[3]", "bitcast %x : f16[3]", "bitcast: f32 and f16 differ in width"),
    ("x: f32[3]", "bitcast %x : bool[3]", "bitcast: f32 and bool differ in width"),
    ("x: f32[3]", "add %x : f32[3]", "add: takes 2 operands, not 1"),
    ("x: f32[3]; y: f16[3]", "add %x, %y : f32[3]", "add: operands are f32 and f16; convert one of them"),
    (
        "x: f32[3]; y: f32[1]",
        "add %x, %y : f32[3]",
        "add: operand 1 has dims [1], operand 0 has [3]; broadcast one of them",
    ),
    ("x: i32[3]; y: i32[3]", "pow %x, %y : i32[3]", "pow: is not defined on i32"),
    ("x: f32[3]; y: f32[3]", "and %x, %y : f32[3]", "and: is not defined on f32"),
    ("x: bool[3]; y: bool[3]", "shl %x, %y : bool[3]", "shl: is not defined on bool"),
    ("x: bool[3]; y: bool[3]", "mul %x, %y : bool[3]", "mul: is not defined on bool"),
    ("x: bool[3]; y: bool[3]", "compare eq %x, %y : bool[3]", "ok"),
    ("x: f32[3]; y: i32[3]", "compare lt %x, %y : bool[3]", "compare: operands are f32 and i32; convert one of them"),
    ("c: bool[3]; x: f32[3]; y: f32[3]", "select %c, %x, %y : f32[3]", "ok"),
    (
        "c: i32[3]; x: f32[3]; y: f32[3]",
        "select %c, %x, %y : f32[3]",
        "select: the condition (operand 0) is i32, not bool",
    ),
    (
        "c: bool[3]; x: f32[3]; y: f16[3]",
        "select %c, %x, %y : f32[3]",
        "select: the cases are f32 and f16; convert one of them",
    ),
    (
        "c: bool[]; x: f32[3]; y: f32[3]",
        "select %c, %x, %y : f32[3]",
        "select: operand 1 has dims [3], operand 0 has []; broadcast one of them",
    ),
];

const SHAPE: &[(&str, &str, &str)] = &[
    ("x: f32[6, 4]", "reshape %x : f32[24]", "ok"),
    ("x: f32[6]", "reshape %x : f32[4]", "reshape: [6] has 6 elements, [4] has 4"),
    ("x: f32[2, 3, 4]", "transpose %x {perm = [2, 0, 1]} : f32[4, 2, 3]", "ok"),
    (
        "x: f32[2, 3]",
        "transpose %x {perm = [0, 0]} : f32[2, 2]",
        "transpose: [0, 0] is not a permutation of the 2 dims of [2, 3]",
    ),
    ("x: f32[1, 3]", "broadcast %x {map = [0, 2]} : f32[5, 2, 3]", "ok"),
    ("x: f32[]", "broadcast %x {map = []} : f32[5]", "ok"),
    (
        "x: f32[2]",
        "broadcast %x {map = [0]} : f32[4]",
        "broadcast: operand dim 0 has size 2, result dim 0 has 4; only size 1 expands",
    ),
    ("x: f32[2, 3]", "broadcast %x {map = [0]} : f32[2]", "broadcast: has 1 entries in map, not 2"),
    (
        "x: f32[2, 3]",
        "broadcast %x {map = [1, 0]} : f32[3, 2]",
        "broadcast: map [1, 0] are not increasing dims below rank 2",
    ),
    ("x: f32[8, 3]", "slice %x {start = [1, 0], limit = [8, 2], stride = [3, 1]} : f32[3, 2]", "ok"),
    ("x: f32[8]", "slice %x {start = [2], limit = [2]} : f32[0]", "ok"),
    ("x: f32[8]", "slice %x {start = [2], limit = [9]} : f32[7]", "slice: 2..9 by 1 is no range of dim 0 of [8]"),
    (
        "x: f32[8]",
        "slice %x {start = [2], limit = [4], stride = [0]} : f32[2]",
        "slice: 2..4 by 0 is no range of dim 0 of [8]",
    ),
    ("x: f32[8]", "slice %x {start = [], limit = []} : f32[]", "slice: has 0 entries per attribute, not 1"),
    ("x: f32[3, 2]; z: f32[]", "pad %x, %z {low = [1, 0], high = [0, 2], interior = [2, 0]} : f32[8, 4]", "ok"),
    ("x: f32[0]; z: f32[]", "pad %x, %z {low = [1], high = [1], interior = [3]} : f32[2]", "ok"),
    (
        "x: f32[3]; z: f32[1]",
        "pad %x, %z {low = [1], high = [1]} : f32[5]",
        "pad: the padding value (operand 1) is f32[1], not f32[]",
    ),
    ("x: f32[3]; z: f32[]", "pad %x, %z {low = [1], high = []} : f32[4]", "pad: has 0 entries per attribute, not 1"),
    ("x: f32[2, 3]; y: f32[2, 1]", "concat %x, %y, %x {dim = 1} : f32[2, 7]", "ok"),
    ("", "concat {dim = 0} : f32[0]", "concat: takes at least one operand"),
    ("x: f32[2]; y: f16[2]", "concat %x, %y {dim = 0} : f32[4]", "concat: operand 1 is f16[2], operand 0 is f32[2]"),
    (
        "x: f32[2, 3]; y: f32[3, 3]",
        "concat %x, %y {dim = 1} : f32[2, 6]",
        "concat: operand 1 has size 3 in dim 0, operand 0 has 2",
    ),
    ("x: f32[2]", "concat %x {dim = 1} : f32[2]", "concat: dim 1 is beyond rank 1"),
    ("x: f32[2, 3]", "reverse %x {dims = [0, 1]} : f32[2, 3]", "ok"),
    ("x: f32[2]", "reverse %x {dims = [0, 0]} : f32[2]", "reverse: dims [0, 0] are not increasing dims below rank 1"),
    ("x: f32[8, 3]; i: i32[2]", "dynamic_slice %x, %i : f32[4, 3]", "ok"),
    (
        "x: f32[8]; i: u32[1]",
        "dynamic_slice %x, %i : f32[4]",
        "dynamic_slice: the start (operand 1) is u32[1], not i32[1]",
    ),
    ("x: f32[8]; i: i32[1]", "dynamic_slice %x, %i : f32[9]", "dynamic_slice: sizes [9] do not fit into [8]"),
    ("x: f32[8, 3]; u: f32[4, 3]; i: i32[2]", "dynamic_update_slice %x, %u, %i : f32[8, 3]", "ok"),
    (
        "x: f32[8]; u: f16[4]; i: i32[1]",
        "dynamic_update_slice %x, %u, %i : f32[8]",
        "dynamic_update_slice: the update is f16, the operand f32",
    ),
    (
        "x: f32[8]; u: f32[9]; i: i32[1]",
        "dynamic_update_slice %x, %u, %i : f32[8]",
        "dynamic_update_slice: the update [9] do not fit into [8]",
    ),
    (
        "x: f32[8]; u: f32[4]; i: i32[2]",
        "dynamic_update_slice %x, %u, %i : f32[8]",
        "dynamic_update_slice: the start (operand 2) is i32[2], not i32[1]",
    ),
];

const SUMS_AND_INDICES: &[(&str, &str, &str)] = &[
    ("x: f32[2, 3, 4]", "reduce_sum %x {dims = [0, 2]} : f32[3]", "ok"),
    ("x: i32[2, 3]", "reduce_max %x {dims = [1]} : i32[2]", "ok"),
    ("x: bool[2]", "reduce_sum %x {dims = [0]} : bool[]", "reduce_sum: cannot reduce bool; convert it first"),
    (
        "x: f32[2, 3]",
        "reduce_max %x {dims = [1, 0]} : f32[]",
        "reduce_max: dims [1, 0] are not increasing dims below rank 2",
    ),
    ("x: f32[2, 3]", "argmax %x {dim = 1} : i32[2]", "ok"),
    ("x: f32[2, 0]", "argmax %x {dim = 1} : i32[2]", "argmax: no maximum along dim 1 of f32[2, 0]"),
    ("x: f32[2]", "argmax %x {dim = 1} : i32[2]", "argmax: dim 1 is beyond rank 1"),
    ("x: f32[8, 4]; y: f32[4, 3]", "dot_general %x, %y {contract = [1] x [0]} : f32[8, 3]", "ok"),
    (
        "x: f16[2, 8, 5, 4]; y: f16[5, 4, 2, 3]",
        "dot_general %x, %y {contract = [3] x [1], batch = [0, 2] x [2, 0]} : f32[2, 5, 8, 3]",
        "ok",
    ),
    ("x: i32[4]; y: i32[4]", "dot_general %x, %y {contract = [0] x [0]} : i32[]", "ok"),
    (
        "x: f32[8, 4]; y: f32[5, 3]",
        "dot_general %x, %y {contract = [1] x [0]} : f32[8, 3]",
        "dot_general: contracted dims differ: left dim 1 has size 4, right dim 0 has 5",
    ),
    (
        "x: f32[8, 4]; y: f32[7, 4]",
        "dot_general %x, %y {contract = [1] x [1], batch = [0] x [0]} : f32[8]",
        "dot_general: batch dims differ: left dim 0 has size 8, right dim 0 has 7",
    ),
    (
        "x: f32[8, 4]; y: f32[4, 3]",
        "dot_general %x, %y {contract = [1] x []} : f32[8, 3]",
        "dot_general: has 0 right contracted dims, not 1",
    ),
    (
        "x: f32[8, 4]; y: f32[4, 3]",
        "dot_general %x, %y {contract = [1] x [0], batch = [0] x []} : f32[8, 3]",
        "dot_general: has 0 right batch dims, not 1",
    ),
    (
        "x: f32[8, 4]; y: f32[4, 3]",
        "dot_general %x, %y {contract = [1, 1] x [0, 1]} : f32[8]",
        "dot_general: dim 1 of the left operand [8, 4] does not exist or is named twice",
    ),
    (
        "x: f32[8, 4]; y: f32[4, 3]",
        "dot_general %x, %y {contract = [1] x [2]} : f32[8]",
        "dot_general: dim 2 of the right operand [4, 3] does not exist or is named twice",
    ),
    (
        "x: f32[4]; y: f16[4]",
        "dot_general %x, %y {contract = [0] x [0]} : f32[]",
        "dot_general: operands are f32 and f16; convert one of them",
    ),
    (
        "x: f32[4]; y: f32[4]",
        "dot_general %x, %y {contract = [0] x [0]} : f16[]",
        "dot_general: operands of f32 do not give f16: only the same or a wider float",
    ),
    (
        "x: bool[4]; y: bool[4]",
        "dot_general %x, %y {contract = [0] x [0]} : bool[]",
        "dot_general: is not defined on bool",
    ),
    ("x: f32[2, 9, 8, 4]; w: f32[3, 3, 4, 6]", "conv %x, %w {stride = [1, 1]} : f32[2, 7, 6, 6]", "ok"),
    (
        "x: f16[2, 9, 4]; w: f16[3, 2, 6]",
        "conv %x, %w {stride = [2], padding = [1:-2], lhs_dilation = [2], rhs_dilation = [3], groups = 2} : f32[2, 5, 6]",
        "ok",
    ),
    ("x: f32[2, 4]; w: f32[4, 3]", "conv %x, %w {stride = []} : f32[2, 3]", "ok"),
    (
        "x: f32[2, 9, 4]; w: f32[3, 3, 6]",
        "conv %x, %w {stride = [1]} : f32[2, 7, 6]",
        "conv: 1 groups do not divide 4 input channels into 3, or 6 features",
    ),
    (
        "x: f32[2, 9, 4]; w: f32[3, 2, 5]",
        "conv %x, %w {stride = [1], groups = 2} : f32[2, 7, 5]",
        "conv: 2 groups do not divide 4 input channels into 2, or 5 features",
    ),
    (
        "x: f32[2, 9, 4]; w: f32[3, 4, 5]",
        "conv %x, %w {stride = [0]} : f32[2, 7, 5]",
        "conv: spatial dim 0: sizes, stride and dilations must be positive",
    ),
    (
        "x: f32[2, 2, 4]; w: f32[3, 4, 5]",
        "conv %x, %w {stride = [1]} : f32[2, 0, 5]",
        "conv: spatial dim 0: the padded input has size 2, the dilated kernel 3",
    ),
    (
        "x: f32[2, 9, 4]; w: f32[3, 4, 5]",
        "conv %x, %w {stride = [1, 1]} : f32[2, 7, 5]",
        "conv: with 2 spatial dims the operands have 4 dims, not f32[2, 9, 4] and f32[3, 4, 5]",
    ),
    (
        "x: f32[2, 9, 4]; w: f32[3, 4, 5]",
        "conv %x, %w {stride = [1], padding = []} : f32[2, 7, 5]",
        "conv: has 0 padding entries, not 1",
    ),
    (
        "x: i32[2, 9, 4]; w: i32[3, 4, 5]",
        "conv %x, %w {stride = [1]} : i32[2, 7, 5]",
        "conv: operands must be floats of one dtype, not i32 and i32",
    ),
    ("x: f32[9, 4]; i: u32[2, 3]", "take %x, %i {dim = 0} : f32[2, 3, 4]", "ok"),
    ("x: f32[9, 4]; i: i32[]", "take %x, %i {dim = 1} : f32[9]", "ok"),
    ("x: f32[9]; i: f32[2]", "take %x, %i {dim = 0} : f32[2]", "take: indices are f32, not i32 or u32"),
    ("x: f32[0]; i: i32[2]", "take %x, %i {dim = 0} : f32[2]", "take: nothing to take along dim 0 of f32[0]"),
    ("x: f32[9, 4]; i: i32[2]; u: f32[2, 4]", "scatter_add %x, %i, %u {dim = 0} : f32[9, 4]", "ok"),
    (
        "x: f32[9, 4]; i: i32[2]; u: f32[9, 4]",
        "scatter_add %x, %i, %u {dim = 0} : f32[9, 4]",
        "scatter_add: the updates (operand 2) is f32[9, 4], not f32[2, 4]",
    ),
    ("x: bool[9]; i: i32[2]; u: bool[2]", "scatter_add %x, %i, %u {dim = 0} : bool[9]", "scatter_add: cannot add bool"),
];

const PLACEMENT: &[(&str, &str, &str)] = &[
    ("x: f32[8, 4]", "reshard %x : f32[8@dp@tp, 4]", "ok"),
    ("x: f32[8, 4]", "reshard %x : f32[8@tp, 4]{unreduced dp}", "ok"),
    ("x: f32[8]", "all_reduce sum %x {axes = [dp, tp]} : f32[8]", "ok"),
    ("x: i32[8]", "all_reduce max %x {axes = [tp]} : i32[8]", "ok"),
    ("x: f32[8]", "all_reduce sum %x {axes = []} : f32[8]", "all_reduce: names no mesh axis"),
    ("x: bool[8]", "all_reduce max %x {axes = [dp]} : bool[8]", "all_reduce: is not defined on bool"),
    ("x: f32[8, 3]", "all_gather %x {axis = tp, dim = 1} : f32[8, 12]", "ok"),
    ("x: f32[8]", "all_gather %x {axis = tp, dim = 1} : f32[8]", "all_gather: dim 1 is beyond rank 1"),
    ("x: f32[8, 3]", "reduce_scatter %x {axis = tp, dim = 0} : f32[2, 3]", "ok"),
    (
        "x: f32[6]",
        "reduce_scatter %x {axis = tp, dim = 0} : f32[2]",
        "reduce_scatter: dim 0 of f32[6] does not split into 4 equal parts",
    ),
    ("x: f32[8, 3]", "all_to_all %x {axis = tp, split = 0, concat = 1} : f32[2, 12]", "ok"),
    (
        "x: f32[8, 3]",
        "all_to_all %x {axis = tp, split = 1, concat = 0} : f32[32, 0]",
        "all_to_all: dim 1 of f32[8, 3] does not split into 4 equal parts",
    ),
    ("x: f32[8]", "ppermute %x {axis = tp, pairs = [0 -> 1, 1 -> 2, 3 -> 0]} : f32[8]", "ok"),
    ("x: f32[8]", "ppermute %x {axis = dp, pairs = []} : f32[8]", "ok"),
    (
        "x: f32[8]",
        "ppermute %x {axis = dp, pairs = [0 -> 2]} : f32[8]",
        "ppermute: 0->2 names a device beyond the 2 of axis dp",
    ),
    (
        "x: f32[8]",
        "ppermute %x {axis = tp, pairs = [0 -> 1, 2 -> 1]} : f32[8]",
        "ppermute: 2->1 uses a device twice on one side",
    ),
    (
        "x: f32[8@dp]",
        "all_gather %x {axis = dp, dim = 0} : f32[16]",
        "all_gather: belongs to a per-device program, where no type is sharded, and has operand f32[8@dp]",
    ),
];

#[test]
fn every_op_with_its_types_and_rejections() {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    seen.extend(run("leaves", LEAVES));
    seen.extend(run("elementwise", ELEMENTWISE));
    seen.extend(run("shape", SHAPE));
    seen.extend(run("sums and indices", SUMS_AND_INDICES));
    seen.extend(run("placement", PLACEMENT));
    for u in dnx_ir::UnaryOp::ALL {
        let dtype = if u == dnx_ir::UnaryOp::Not { "i32" } else { "f32" };
        let out = if u == dnx_ir::UnaryOp::IsFinite { "bool" } else { dtype };
        seen.extend(run(
            "elementwise",
            &[(&format!("x: {dtype}[2, 3]"), &format!("{} %x : {out}[2, 3]", u.name()), "ok")],
        ));
    }
    for b in dnx_ir::BinaryOp::ALL {
        use dnx_ir::BinaryOp::*;
        let dtype = if matches!(b, And | Or | Xor | Shl | Shr) { "u32" } else { "f32" };
        let params = format!("x: {dtype}[2]; y: {dtype}[2]");
        seen.extend(run("elementwise", &[(&params, &format!("{} %x, %y : {dtype}[2]", b.name()), "ok")]));
    }
    for c in dnx_ir::CmpOp::ALL {
        run("elementwise", &[("x: f32[2]; y: f32[2]", &format!("compare {} %x, %y : bool[2]", c.name()), "ok")]);
    }
    // 4 leaves, 15 unary and 2 conversions, 13 binary and 2 more, 9 of shape, 3 reductions, 2 contractions, 2 of
    // index, 6 of placement.
    assert_eq!(seen.len(), 4 + 17 + 15 + 9 + 3 + 2 + 2 + 6, "{seen:?}");
}
