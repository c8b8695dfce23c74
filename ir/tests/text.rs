//! Every function prints and parses back to itself.

use dnx_ir::{AttrValue, Builder, DType, DotDims, Func, Op, Scalar};
use dnx_ir::{Type, text, verify};
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
