//! Global programs over a mesh: every gradient is laid out as its parameter, and sums over devices are taken once.

mod proof;

use dnx_autodiff::{grad, jvp};
use dnx_ir::sharding::cotangent_type;
use dnx_ir::{ConvDims, DType, Func, Graph, Mesh, Op, Sharding, Type};
use proof::{arguments, float_params, run};

fn mesh() -> Mesh {
    Mesh::new(&[("dp", 2), ("tp", 2)])
}

fn split(dims: &[usize], axes: &[&str]) -> Type {
    let axes = axes.iter().map(|a| if a.is_empty() { vec![] } else { vec![(*a).into()] }).collect();
    Type::f32(dims).with_sharding(Sharding::new(axes, vec![]))
}

fn check(f: &Func) -> Func {
    let wrt = float_params(f);
    let d = grad(f, &wrt).unwrap_or_else(|e| panic!("{e}\n{f}"));
    for (r, &i) in d.result_types().iter().zip(&wrt) {
        assert_eq!(**r, cotangent_type(f.param_types()[i]), "gradient of {}\n{d}", f.params[i].name);
    }
    let t = jvp(f, &wrt).unwrap();
    assert_eq!(t.result_types()[0], t.result_types()[1], "{t}");
    // Numbers: shardings never change them.
    let args = arguments(f, 3, 4);
    let g = run(&d, &args);
    let u: Vec<_> = wrt.iter().map(|&i| proof::Numbers(i as u64).array(args[i].ty())).collect();
    proof::close("grad", &d, proof::dot(&g, &u), proof::differences(f, &args, &wrt, &u)[0][0], 1e-7);
    d
}

fn reshards(f: &Func) -> usize {
    f.nodes.iter().filter(|n| n.op.name() == "reshard").count()
}

/// Data by `dp`, the hidden dim by `tp`: what a Megatron pair of layers does.
#[test]
fn parallel_mlp() {
    let g = Graph::on_mesh("mlp", mesh());
    let x = g.param("x", split(&[4, 6], &["dp", ""]));
    let (w, b) = (g.param("w", split(&[6, 8], &["", "tp"])), g.param("b", split(&[8], &["tp"])));
    let v = g.param("v", split(&[8, 6], &["tp", ""]));
    let scale = g.param("scale", Type::f32([6]));
    let rows = Sharding::new(vec![vec!["dp".into()], vec![]], vec![]);
    let hidden = ((x * scale).matmul(w) + b).tanh();
    let out = hidden.matmul(v).reshard(rows) * scale + x;
    let loss = out.square().sum_all().reshard(Sharding::replicated());
    let f = g.finish(&[loss]).unwrap();
    let d = check(&f);
    // One sum over devices forward, one for the input of the layer, one for each of four replicated parameters.
    assert_eq!(reshards(&d), 6, "{d}");
}

#[test]
fn parallel_conv_and_norm() {
    let g = Graph::on_mesh("conv", mesh());
    let axes = ["dp", "", "", ""];
    let x = g.param("x", split(&[4, 5, 5, 3], &axes));
    let w = g.param("w", Type::f32([3, 3, 3, 4]));
    let window = ConvDims {
        stride: vec![2, 2],
        padding: vec![(1, 1); 2],
        lhs_dilation: vec![1; 2],
        rhs_dilation: vec![1; 2],
        groups: 1,
    };
    let h = x.apply(Op::Conv { dims: window, out: DType::F32 }, &[w]);
    let mean = h.mean(&[1, 2]).unsqueeze(1).unsqueeze(1);
    let top = h.max(&[3]).unsqueeze(3);
    let table = g.param("table", Type::f32([5, 4]));
    let ids = g.param("ids", Type { dtype: DType::I32, ..split(&[4], &["dp"]) });
    let emb = table.take(ids).reshape(&[4, 1, 1, 4]);
    let y = h.gt(mean).select(h * top, h - mean + emb);
    let loss = g.concat(&[y, h.slice(2, 0, 2)], 2).square().sum_all().reshard(Sharding::replicated());
    check(&g.finish(&[loss]).unwrap());
}
