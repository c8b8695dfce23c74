//! Every invariant of the verifier, broken by hand: no builder makes such functions.

use dnx_ir::{AttrValue, Builder, DType, Func, Mesh, NodeId, Op, Scalar, Sharding, Type, UnaryOp, ValueId, verify};
use std::sync::Arc;

/// `exp(x) + y`, on a mesh.
fn sound() -> Func {
    let mut b = Builder::on_mesh("f", Mesh::new(&[("dp", 2), ("tp", 2)]));
    let (x, y) = (b.param("x", Type::f32([4])), b.param("y", Type::f32([4])));
    let e = b.unary(UnaryOp::Exp, x).unwrap();
    let z = b.add(e, y).unwrap();
    b.finish(&[z])
}

/// The message after this edit, without the lines around the culprit.
fn broken(edit: impl FnOnce(&mut Func)) -> String {
    let mut f = sound();
    verify::verify(&f).unwrap();
    edit(&mut f);
    let message = verify::verify(&f).expect_err("the edit breaks an invariant").message;
    // Printing a broken function must not panic either.
    let _ = f.to_string();
    message.lines().next().unwrap().strip_prefix("@f breaks invariant ").expect("an invariant").to_string()
}

#[test]
fn invariant_1_mesh_axes() {
    let wanted = "1: mesh axis \"d p\" of size 2 has no plain name or no devices";
    assert_eq!(broken(|f| f.mesh = Mesh::new(&[("d p", 2)])), wanted);
    let wanted = "1: mesh axis \"dp\" of size 0 has no plain name or no devices";
    assert_eq!(broken(|f| f.mesh = Mesh::new(&[("dp", 0)])), wanted);
    assert_eq!(broken(|f| f.mesh = Mesh::new(&[("dp", 2), ("dp", 2)])), "1: the mesh has two axes dp");
}

#[test]
fn invariant_2_params() {
    assert_eq!(broken(|f| f.params.swap(0, 1)), "2: parameter 0 (\"y\") is not the value of param 0");
    assert_eq!(broken(|f| f.params[1].value = ValueId(3)), "2: parameter 1 (\"y\") is not the value of param 1");
    assert_eq!(broken(|f| f.params[1].value = ValueId(99)), "2: parameter 1 (\"y\") is not the value of param 1");
    assert_eq!(broken(|f| drop(f.params.pop())), "2: param 1 is no parameter of the function");
    let wanted = "2: parameter 1 has an empty name or one that is taken: \"x\"";
    assert_eq!(broken(|f| f.params[1].name = "x".into()), wanted);
    assert_eq!(broken(|f| f.params[1].name = "".into()), wanted.replace("\"x\"", "\"\""));
}

#[test]
fn invariant_3_the_table_of_values() {
    assert_eq!(
        broken(|f| f.values[2].node = NodeId(3)),
        "3: %2 is result 0 of node 2, the table says result 0 of node 3"
    );
    assert_eq!(broken(|f| drop(f.values.pop())), "3: %3 is not in the table of values");
    assert_eq!(broken(|f| f.nodes[2].results = vec![ValueId(3)]), "3: value %3 is defined where %2 is due");
    assert_eq!(broken(|f| f.values.push(f.values[0].clone())), "3: 5 values are in the table, 4 are defined");
}

#[test]
fn invariant_4_the_order() {
    assert_eq!(broken(|f| f.nodes[2].operands[0] = ValueId(3)), "4: operand %3 is not defined before its use");
    assert_eq!(broken(|f| f.nodes[2].operands[0] = ValueId(2)), "4: operand %2 is not defined before its use");
    assert_eq!(broken(|f| f.nodes[3].operands[0] = ValueId(77)), "4: operand %77 is not defined before its use");
}

#[test]
fn invariant_5_types() {
    assert_eq!(broken(|f| f.values[3].ty = Type::f32([5])), "5: add: has type (f32[5]), its rule gives (f32[4])");
    assert_eq!(broken(|f| f.nodes[2].op = Op::Unary(UnaryOp::Not)), "5: not: is not defined on f32");
    assert_eq!(broken(|f| f.nodes[3].operands.truncate(1)), "5: add: takes 2 operands, not 1");
    let split = Sharding::new(vec![vec!["dp".into()]], vec![]);
    assert_eq!(broken(|f| f.values[2].ty.sharding = split), "5: exp: has type (f32[4@dp]), its rule gives (f32[4])");
}

#[test]
fn invariant_6_results() {
    assert_eq!(broken(|f| f.results.push(ValueId(4))), "6: result %4 is not defined");
}

#[test]
fn invariant_7_shardings() {
    let set = |dims: Vec<Vec<&str>>, unreduced: Vec<&str>| {
        let axes = |list: Vec<&str>| list.into_iter().map(Into::into).collect::<Vec<_>>();
        let sharding = Sharding { dims: dims.into_iter().map(axes).collect(), unreduced: axes(unreduced) };
        broken(|f| f.values[0].ty.sharding = sharding)
    };
    assert_eq!(set(vec![vec!["pp"]], vec![]), "7: f32[4@pp]: the mesh has no axis \"pp\"; it has [\"dp\", \"tp\"]");
    assert_eq!(set(vec![vec!["dp"], vec![]], vec![]), "7: f32[4@dp]: the sharding has 2 dims, the value 1");
    assert_eq!(set(vec![vec!["dp"]], vec!["dp"]), "7: f32[4@dp]{unreduced dp}: mesh axis dp is used twice");
    let wanted = "7: f32[4]: the sharding is not in normal form; make it with Sharding::new";
    assert_eq!(set(vec![vec![]], vec![]), wanted);
    let wanted = "7: f32[4]{unreduced tp dp}: the sharding is not in normal form; make it with Sharding::new";
    assert_eq!(set(vec![], vec!["tp", "dp"]), wanted);
}

#[test]
fn invariant_8_global_or_per_device() {
    let wanted = "8: a per-device program (one with collectives) has no sharded types and no reshard";
    let split = Sharding::new(vec![vec!["dp".into()]], vec![]);
    let message = broken(|f| {
        let mut b = Builder::on_mesh("f", f.mesh.clone());
        let x = b.param("x", Type::f32([4]));
        let i = b.emit(Op::AxisIndex { axis: "dp".into() }, &[]).unwrap();
        let y = b.emit(Op::Reshard { sharding: split }, &[x]).unwrap();
        *f = b.finish(&[i, y]);
    });
    assert_eq!(message, wanted);
}

#[test]
fn invariant_9_callees() {
    let call = |callee: Func| {
        broken(|f| {
            let mut b = Builder::on_mesh("f", f.mesh.clone());
            let (x, y) = (b.param("x", Type::f32([4])), b.param("y", Type::f32([4])));
            let r = b.emit(Op::Call { func: Arc::new(callee), remat: false }, &[x, y]).unwrap();
            *f = b.finish(&[r]);
        })
    };
    let mut callee = sound();
    callee.mesh = Mesh::new(&[("pp", 2)]);
    callee.name = "g".into();
    assert_eq!(call(callee), "9: @g is over another mesh than @f");
    let mut callee = sound();
    callee.nodes[2].operands[0] = ValueId(3);
    assert_eq!(call(callee), "4: operand %3 is not defined before its use");
    // A callee that knows no mesh serves every caller.
    let mut callee = sound();
    callee.mesh = Mesh::single();
    let mut b = Builder::on_mesh("f", Mesh::new(&[("dp", 2)]));
    let x = b.param("x", Type::f32([4]));
    let r = b.emit(Op::Call { func: Arc::new(callee), remat: false }, &[x, x]).unwrap();
    verify::verify(&b.finish(&[r])).unwrap();
}

#[test]
fn invariant_10_attributes() {
    let with = |attrs: Vec<(String, AttrValue)>| {
        broken(|f| {
            let mut b = Builder::on_mesh("f", f.mesh.clone());
            let x = b.param("x", Type::f32([4]));
            let op = Op::Composite { name: "c".into(), attrs, func: Arc::new(sound()) };
            let r = b.emit(op, &[x, x]).unwrap();
            *f = b.finish(&[r]);
        })
    };
    let int = |key: &str| (key.to_string(), AttrValue::Int(1));
    assert_eq!(with(vec![int("b"), int("a")]), "10: attribute \"b\" stands before \"a\"");
    assert_eq!(with(vec![int("a"), int("a")]), "10: attribute \"a\" stands before \"a\"");
    let float = ("a".to_string(), AttrValue::Float(Scalar::one(DType::F32)));
    assert_eq!(with(vec![float]), "10: attribute \"a\" is a float of f32");
}

#[test]
fn invariant_11_paths() {
    let wanted = "11: the model path \"a\\nb\" has control characters";
    assert_eq!(broken(|f| f.nodes[2].loc = "a\nb".into()), wanted);
}

#[test]
fn invariant_12_sizes() {
    assert_eq!(broken(|f| f.values[0].ty.dims = vec![1 << 31]), "12: f32[2147483648] is too large");
    assert_eq!(broken(|f| f.values[0].ty.dims = vec![1 << 20; 3]), "12: f32[1048576, 1048576, 1048576] is too large");
}
