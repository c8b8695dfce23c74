//! Shardings through every op: accepted with the layout of the result, or rejected with the remedy.

use super::{ok, rejected};
use dnx_ir::sharding::{cotangent_type, place, rule};
use dnx_ir::{Builder, Mesh, Sharding, Type};

/// The notation of the rule of the last node of a program, which is accepted.
fn notation(params: &str, node: &str) -> String {
    let f = ok(params, node);
    let node = f.nodes.last().unwrap();
    let operands: Vec<&Type> = node.operands.iter().map(|&v| f.ty(v)).collect();
    rule(&node.op, &operands, f.ty(node.results[0])).map_or("none".into(), |r| r.notation())
}

#[test]
fn accepted() {
    let cases = [
        // Elementwise: what one operand splits is split.
        ("x: f32[8@dp, 4]; y: f32[8, 4@tp]", "add %x, %y : f32[8@dp, 4@tp]", "ab,ab->ab"),
        ("x: f32[8@dp@tp]", "exp %x : f32[8@dp@tp]", "a->a"),
        ("x: f32[8@dp]; y: f32[8]", "compare lt %x, %y : bool[8@dp]", "a,a->a"),
        ("c: bool[8@dp]; x: f32[8]; y: f32[8]", "select %c, %x, %y : f32[8@dp]", "a,a,a->a"),
        ("x: f32[8@dp]", "bitcast %x : u32[8@dp]", "a->a"),
        // Shape.
        ("x: f32[8@dp, 4]", "reshape %x : f32[32@dp]", "ab->(a b)"),
        ("x: f32[8@dp, 16@tp]", "reshape %x : f32[8@dp, 4@tp, 4]", "a(b c)->abc"),
        ("x: f32[2@dp, 4@tp]", "reshape %x : f32[8@dp@tp]", "ab->(a b)"),
        ("x: f32[8@dp@tp]", "reshape %x : f32[2@dp, 4@tp]", "(a b)->ab"),
        ("x: f32[8, 1, 4@tp]", "reshape %x : f32[1, 2, 4, 4@tp]", "(a b)cd->eabd whole ce"),
        ("x: f32[6@dp, 4]", "reshape %x : f32[4@dp, 6]", "(a b)c->(a d)e whole bcde"),
        ("x: f32[8@dp, 4@tp]", "transpose %x {perm = [1, 0]} : f32[4@tp, 8@dp]", "ab->ba"),
        ("x: f32[8@dp, 1]", "broadcast %x {map = [1, 2]} : f32[2, 8@dp, 5]", "ab->cad whole b"),
        ("x: f32[8@dp, 4]", "slice %x {start = [0, 1], limit = [8, 3]} : f32[8@dp, 2]", "ab->ac whole bc"),
        ("x: f32[8@dp, 4]; z: f32[]", "pad %x, %z {low = [0, 1], high = [0, 0]} : f32[8@dp, 5]", "ab,->ac whole bc"),
        ("x: f32[8@dp, 4]; y: f32[8, 2]", "concat %x, %y {dim = 1} : f32[8@dp, 6]", "ab,ac->ad whole bcd"),
        ("x: f32[8@dp, 4]", "reverse %x {dims = [1]} : f32[8@dp, 4]", "ab->ac whole bc"),
        ("x: f32[8@dp, 4]; i: i32[2]", "dynamic_slice %x, %i : f32[8@dp, 2]", "ab,c->ad whole bcd"),
        (
            "x: f32[8@dp, 4]; u: f32[8, 2]; i: i32[2]",
            "dynamic_update_slice %x, %u, %i : f32[8@dp, 4]",
            "ab,ac,d->ab whole bcd",
        ),
        // Sums.
        ("x: f32[8@dp, 4]", "reduce_sum %x {dims = [1]} : f32[8@dp]", "ab->a sum b"),
        ("x: f32[8@dp, 4@tp]", "reduce_sum %x {dims = [0]} : f32[4@tp]{unreduced dp}", "ab->b sum a"),
        ("x: f32[8@dp, 4@tp]", "reduce_sum %x {dims = [0, 1]} : f32[]{unreduced dp tp}", "ab-> sum ab"),
        ("x: f32[8@dp, 4]", "reduce_max %x {dims = [1]} : f32[8@dp]", "ab->a whole b"),
        ("x: f32[8@dp, 4]", "argmax %x {dim = 1} : i32[8@dp]", "ab->a whole b"),
        (
            "x: f32[8@dp, 4]; y: f32[4, 16@tp]",
            "dot_general %x, %y {contract = [1] x [0]} : f32[8@dp, 16@tp]",
            "ab,bc->ac sum b",
        ),
        (
            "x: f32[8@dp, 4@tp]; y: f32[4@tp, 16]",
            "dot_general %x, %y {contract = [1] x [0]} : f32[8@dp, 16]{unreduced tp}",
            "ab,bc->ac sum b",
        ),
        (
            "x: f32[2@dp, 8, 4]; y: f32[2, 4@tp, 6]",
            "dot_general %x, %y {contract = [2] x [1], batch = [0] x [0]} : f32[2@dp, 8, 6]{unreduced tp}",
            "abc,acd->abd sum c",
        ),
        (
            "x: f32[8@dp, 9, 4]; w: f32[3, 4, 16@tp]",
            "conv %x, %w {stride = [1]} : f32[8@dp, 7, 16@tp]",
            "abc,dce->afe sum c whole bdf",
        ),
        (
            "x: f32[8, 9, 4@tp]; w: f32[3, 4, 16]",
            "conv %x, %w {stride = [1]} : f32[8, 7, 16]{unreduced tp}",
            "abc,dce->afe sum c whole bdf",
        ),
        (
            "x: f32[8, 9, 4@tp]; w: f32[3, 1, 8]",
            "conv %x, %w {stride = [1], groups = 4} : f32[8, 7, 8@tp]",
            "ab(c d),ed(c f)->ag(c f) sum d whole beg",
        ),
        // Indices.
        ("x: f32[9, 4@tp]; i: i32[8@dp]", "take %x, %i {dim = 0} : f32[8@dp, 4@tp]", "ab,c->cb whole a"),
        (
            "x: f32[9, 4@tp]; i: i32[8]; u: f32[8, 4]",
            "scatter_add %x, %i, %u {dim = 0} : f32[9, 4@tp]",
            "ab,c,cb->ab sum c whole a",
        ),
        (
            "x: f32[9, 4]{unreduced dp}; i: i32[8]; u: f32[8@dp, 4]",
            "scatter_add %x, %i, %u {dim = 0} : f32[9, 4]{unreduced dp}",
            "ab,c,cb->ab sum c whole a",
        ),
        // Sums not yet taken go through what is linear.
        ("x: f32[4]{unreduced dp}", "neg %x : f32[4]{unreduced dp}", "a->a"),
        ("x: f32[4]{unreduced dp}", "convert %x : bf16[4]{unreduced dp}", "a->a"),
        ("x: f32[4]{unreduced dp}; y: f32[4]{unreduced dp}", "sub %x, %y : f32[4]{unreduced dp}", "a,a->a"),
        ("x: f32[4]{unreduced dp}; y: f32[4@tp]", "mul %x, %y : f32[4@tp]{unreduced dp}", "a,a->a"),
        ("x: f32[4]{unreduced dp}; y: f32[4]", "div %x, %y : f32[4]{unreduced dp}", "a,a->a"),
        (
            "c: bool[4]; x: f32[4]{unreduced dp}; y: f32[4]{unreduced dp}",
            "select %c, %x, %y : f32[4]{unreduced dp}",
            "a,a,a->a",
        ),
        ("x: f32[4@tp, 2]{unreduced dp}", "reshape %x : f32[8@tp]{unreduced dp}", "ab->(a b)"),
        ("x: f32[4@tp, 2]{unreduced dp}", "reduce_sum %x {dims = [0]} : f32[2]{unreduced dp tp}", "ab->b sum a"),
        (
            "x: f32[8, 4@tp]{unreduced dp}; y: f32[4, 3]",
            "dot_general %x, %y {contract = [1] x [0]} : f32[8, 3]{unreduced dp tp}",
            "ab,bc->ac sum b",
        ),
        (
            "x: f32[2]{unreduced dp}; y: f32[3]{unreduced dp}",
            "concat %x, %y {dim = 0} : f32[5]{unreduced dp}",
            "a,b->c whole abc",
        ),
        ("x: f32[9]{unreduced tp}; i: i32[8@dp]", "take %x, %i {dim = 0} : f32[8@dp]{unreduced tp}", "a,b->b whole a"),
    ];
    for (params, node, wanted) in cases {
        assert_eq!(notation(params, node), wanted, "{node}");
    }
}

#[test]
fn rejections() {
    let cases = [
        (
            "x: f32[8@dp]; y: f32[8@tp]",
            "add %x, %y : f32[8]",
            "add: dim 0 of operand 0 f32[8@dp] and dim 0 of operand 1 f32[8@tp] run together, but one is split over dp, \
             the other over tp; reshard one of them like the other",
        ),
        (
            "x: f32[8@dp, 4]; y: f32[8, 4@dp]",
            "add %x, %y : f32[8, 4]",
            "add: mesh axis dp splits both dim 0 of operand 0 f32[8@dp, 4] and dim 1 of operand 1 f32[8, 4@dp], which \
             are different dims of the op; reshard operand 1 to f32[8, 4]",
        ),
        (
            "x: f32[8@dp, 4]; y: f32[4, 16@dp]",
            "dot_general %x, %y {contract = [1] x [0]} : f32[8, 16]",
            "dot_general: mesh axis dp splits both dim 0 of operand 0 f32[8@dp, 4] and dim 1 of operand 1 \
             f32[4, 16@dp], which are different dims of the op; reshard operand 1 to f32[4, 16]",
        ),
        (
            "x: f32[8, 4@tp]; y: f32[4@dp, 16]",
            "dot_general %x, %y {contract = [1] x [0]} : f32[8, 16]",
            "dot_general: dim 1 of operand 0 f32[8, 4@tp] and dim 0 of operand 1 f32[4@dp, 16] run together, but one \
             is split over tp, the other over dp; reshard one of them like the other",
        ),
        (
            "x: f32[8, 4@tp]",
            "reduce_max %x {dims = [1]} : f32[8]",
            "reduce_max: dim 1 of operand 0 f32[8, 4@tp] is split over tp, but the op needs it whole; reshard operand \
             0 to f32[8, 4]",
        ),
        (
            "x: f32[8, 4@tp]",
            "slice %x {start = [0, 0], limit = [8, 2]} : f32[8, 2]",
            "slice: dim 1 of operand 0 f32[8, 4@tp] is split over tp, but the op needs it whole; reshard operand 0 to \
             f32[8, 4]",
        ),
        (
            "x: f32[8, 4@tp]; y: f32[8, 4]",
            "concat %x, %y {dim = 1} : f32[8, 8]",
            "concat: dim 1 of operand 0 f32[8, 4@tp] is split over tp, but the op needs it whole; reshard operand 0 to \
             f32[8, 4]",
        ),
        (
            "x: f32[8@tp, 4]; i: i32[3]",
            "take %x, %i {dim = 0} : f32[3, 4]",
            "take: dim 0 of operand 0 f32[8@tp, 4] is split over tp, but the op needs it whole; reshard operand 0 to \
             f32[8, 4]",
        ),
        (
            "x: f32[8, 12@tp, 4]; w: f32[3, 4, 16]",
            "conv %x, %w {stride = [1]} : f32[8, 10, 16]",
            "conv: dim 1 of operand 0 f32[8, 12@tp, 4] is split over tp, but the op needs it whole; reshard operand 0 \
             to f32[8, 12, 4]",
        ),
        (
            "x: f32[8, 4@tp]",
            "reshape %x : f32[32]",
            "reshape: the split over tp would cut dim 0 of the result into pieces that are not blocks; reshard the \
             operand so that the dim it comes from is whole",
        ),
        (
            "x: f32[12@tp]",
            "reshape %x : f32[6, 2]",
            "reshape: operand 0 is f32[12@tp]: the op takes dim 0 apart into sizes [6, 2], which tp does not split; \
             reshard operand 0 to f32[12]",
        ),
        (
            "x: f32[4]{unreduced dp}",
            "exp %x : f32[4]",
            "exp: is not linear in operand 0 f32[4]{unreduced dp}, which is a sum not yet taken; reshard operand 0 to \
             f32[4]",
        ),
        (
            "x: f32[4]; y: f32[4]{unreduced dp}",
            "div %x, %y : f32[4]",
            "div: is not linear in operand 1 f32[4]{unreduced dp}, which is a sum not yet taken; reshard operand 1 to \
             f32[4]",
        ),
        (
            "x: f32[4]{unreduced dp}",
            "convert %x : i32[4]",
            "convert: is not linear in operand 0 f32[4]{unreduced dp}, which is a sum not yet taken; reshard operand 0 \
             to f32[4]",
        ),
        (
            "x: f32[4]{unreduced dp}; y: f32[4]",
            "add %x, %y : f32[4]",
            "adds operand 0 f32[4]{unreduced dp} and operand 1 f32[4], whose sums are yet to be taken over different \
             axes (dp and none); reshard operand 1 to f32[4]{unreduced dp}, or reduce the other first",
        ),
        (
            "x: f32[4]{unreduced dp}; z: f32[]",
            "pad %x, %z {low = [1], high = [0]} : f32[5]",
            "adds operand 0 f32[4]{unreduced dp} and operand 1 f32[], whose sums are yet to be taken over different \
             axes (dp and none); reshard operand 1 to f32[]{unreduced dp}, or reduce the other first",
        ),
        (
            "x: f32[9, 4]; i: i32[8]; u: f32[8@dp, 4]",
            "scatter_add %x, %i, %u {dim = 0} : f32[9, 4]",
            "adds operand 0 f32[9, 4] and operand 2 f32[8@dp, 4], whose sums are yet to be taken over different axes \
             (none and dp); reshard operand 0 to f32[9, 4]{unreduced dp}, or reduce the other first",
        ),
        (
            "x: f32[4]{unreduced dp}; y: f32[4]{unreduced tp}",
            "mul %x, %y : f32[4]",
            "multiplies operand 0 f32[4]{unreduced dp} and operand 1 f32[4]{unreduced tp}, both sums not yet taken; \
             reshard operand 0 to f32[4]",
        ),
        (
            "x: f32[4]{unreduced dp}; y: f32[4@dp]",
            "mul %x, %y : f32[4]",
            "operand 0 f32[4]{unreduced dp} is unreduced over mesh axis dp, which also splits a dim of the op; \
             reshard operand 0 to f32[4]",
        ),
        (
            "x: f32[4@dp]; y: f32[4]{unreduced dp}",
            "dot_general %x, %y {contract = [0] x [0]} : f32[]",
            "operand 1 f32[4]{unreduced dp} is unreduced over mesh axis dp, which also splits a dim of the op; \
             reshard operand 1 to f32[4]",
        ),
    ];
    for (params, node, wanted) in cases {
        let name = node.split(' ').next().unwrap();
        let wanted =
            if wanted.starts_with(&format!("{name}: ")) { wanted.to_string() } else { format!("{name}: {wanted}") };
        rejected(params, node, &wanted);
    }
}

#[test]
fn an_operand_takes_its_part() {
    let mesh = Mesh::new(&[("dp", 2), ("tp", 4)]);
    let f = ok("x: f32[8@dp, 4]; y: f32[8, 4@tp]", "mul %x, %y : f32[8@dp, 4@tp]");
    let node = f.nodes.last().unwrap();
    let operands: Vec<&Type> = node.operands.iter().map(|&v| f.ty(v)).collect();
    let placement = place(&node.op, &operands, f.ty(node.results[0]), &mesh).unwrap();
    let both = Sharding::new(vec![vec!["dp".into()], vec!["tp".into()]], vec![]);
    assert_eq!(placement.operands, [both.clone(), both.clone()]);
    assert_eq!(placement.result, both);
}

#[test]
fn constants_take_any_layout() {
    let mut b = Builder::on_mesh("f", Mesh::new(&[("dp", 2)]));
    let split = Sharding::new(vec![vec!["dp".into()], vec![]], vec![]);
    let x = b.param("x", Type::f32([8, 4]).with_sharding(split.clone()));
    let one = b.full_like(x, 1.0).unwrap();
    assert_eq!(b.ty(one).sharding, split);
    let y = b.add(x, one).unwrap();
    let y = b.scale(y, 2.0).unwrap();
    assert_eq!(b.ty(y).sharding, split);
    let f = b.finish(&[y]);
    dnx_ir::verify::verify(&f).unwrap();
}

#[test]
fn a_cotangent_is_split_alike_and_reduced() {
    let (dp, tp) = ("dp".into(), "tp".into());
    let x = Type::f32([8, 4]).with_sharding(Sharding::new(vec![vec![dp], vec![]], vec![tp]));
    assert_eq!(cotangent_type(&x).to_string(), "f32[8@dp, 4]");
    assert_eq!(cotangent_type(&Type::f32([2])), Type::f32([2]));
}
