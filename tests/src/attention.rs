//! Attention in all its forms over ragged shapes, as programs with arguments.

use dnx_ir::attention::{Attention, Form, HIDDEN};
use dnx_ir::{Array, Builder, DType, Func, Type, threefry};

/// Samples, queries, heads, the head's dim, keys; and dims of a bias.
pub type Shape = ([usize; 5], Option<[usize; 4]>, bool);

/// Ragged shapes: queries and keys of different number, head dims that are no multiple of a tile, causal or not, with
/// and without a bias of each kind.
pub const SHAPES: &[Shape] = &[
    ([1, 1, 1, 1, 1], None, false),
    ([2, 65, 2, 17, 63], None, false),
    ([1, 3, 2, 32, 64], Some([1, 2, 3, 64]), false),
    ([1, 64, 1, 64, 65], None, true),
    ([2, 63, 3, 16, 17], Some([2, 1, 1, 17]), true),
    ([1, 33, 1, 65, 7], None, true),
    ([1, 40, 1, 72, 70], Some([1, 1, 40, 1]), false),
    ([1, 5, 2, 128, 600], None, false),
    ([1, 600, 1, 8, 300], None, true),
    ([1, 20, 1, 256, 33], None, false),
    ([3, 20, 3, 8, 20], Some([3, 3, 20, 20]), true),
];

/// Numbers in `[-1, 1)`; of a mask zeros and the number that hides.
fn noise(ty: &Type, seed: u64, mask: bool) -> Array {
    let key = threefry::key(seed);
    let data: Vec<f64> = (0..ty.elems() as u64)
        .map(|i| {
            let x = f64::from(threefry::bits(key, i)) / f64::from(1u32 << 31) - 1.0;
            if mask && x > 0.7 { HIDDEN } else { x }
        })
        .collect();
    Array::from_f64(ty.clone(), &data)
}

/// One form on operands of its own; with `projected` these are slices of one array, as a linear layer gives them, and
/// the first result is laid out as the next layer wants it.
pub fn program(form: Form, shape: &Shape, dtype: DType, projected: bool) -> (Func, Vec<Array>) {
    let &([b, tq, h, d, tk], bias, causal) = shape;
    let (q, k, lse) = (Type::new(dtype, [b, tq, h, d]), Type::new(dtype, [b, tk, h, d]), Type::f32([b, h, tq]));
    let mut types = match form {
        Form::Forward => vec![&q, &k, &k],
        Form::Jvp => vec![&q, &k, &k, &q, &lse, &q, &k, &k],
        Form::Backward => vec![&q, &k, &k, &q, &lse, &q, &lse],
    };
    let bias = bias.map(Type::f32);
    types.extend(&bias);
    if form == Form::Jvp {
        types.extend(&bias);
    }
    let mut g = Builder::new(form.name());
    let mut args = vec![];
    let mut operands = vec![];
    let packed = projected && tq == tk;
    if packed {
        let ty = Type::new(dtype, [b, tq, 3 * h * d]);
        let all = g.param("qkv", ty.clone());
        args.push(noise(&ty, 7, false));
        for i in 0..3 {
            let (from, to) = (i * h * d, (i + 1) * h * d);
            let op = dnx_ir::Op::Slice { start: vec![0, 0, from], limit: vec![b, tq, to], stride: vec![1; 3] };
            let part = g.emit(op, &[all]).expect("a slice");
            operands.push(g.reshape(part, &[b, tq, h, d]).expect("heads"));
        }
    }
    for (i, ty) in types.iter().enumerate().skip(operands.len()) {
        let array = noise(ty, i as u64, i == form.operands());
        operands.push(g.param(&format!("x{i}"), (*ty).clone()));
        args.push(array);
    }
    let mut results = Attention { form, scale: (d as f64).powf(-0.5), causal }.emit(&mut g, &operands).expect("typed");
    if projected {
        let dims = g.dims(results[0]).to_vec();
        let turned = g.transpose(results[0], &[0, 2, 1, 3]).expect("a permutation");
        results[0] = g.reshape(turned, &[dims[0] * dims[2], dims[1] * dims[3]]).expect("the same elements");
    }
    (g.finish(&results), args)
}
