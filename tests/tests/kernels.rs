//! What the compiler makes of small named programs for a GPU: steps, kernel IR and WGSL, kept as snapshots. Every
//! shader also passes naga.
//!
//! Sizes are ragged where the code depends on it. A snapshot that changes is read before it is accepted: the index
//! maps, the number of kernels and what is stored are the point.

use dnx_codegen::exec::Step;
use dnx_codegen::{Compiled, GpuLimits, Options, Target, compile, wgsl};
use dnx_ir::{Array, ConvDims, DType, DotDims, Func, Graph, Op, Tensor, Type, random};
use dnx_models::layers::{self, Activation};
use dnx_models::{Params, attention, embed, patch};
use std::fmt::Write;

type Build = for<'g> fn(&'g Graph) -> Vec<Tensor<'g>>;

fn f32<'g>(g: &'g Graph, name: &str, dims: &[usize]) -> Tensor<'g> {
    g.param(name, Type::f32(dims))
}

fn of<'g>(g: &'g Graph, name: &str, dtype: DType, dims: &[usize]) -> Tensor<'g> {
    g.param(name, Type::new(dtype, dims))
}

fn slice<'g>(x: Tensor<'g>, start: &[usize], limit: &[usize], stride: &[usize]) -> Tensor<'g> {
    x.apply(Op::Slice { start: start.to_vec(), limit: limit.to_vec(), stride: stride.to_vec() }, &[])
}

fn conv<'g>(x: Tensor<'g>, w: Tensor<'g>, stride: usize, padding: i64, groups: usize) -> Tensor<'g> {
    let dims = ConvDims {
        stride: vec![stride; 2],
        padding: vec![(padding, padding); 2],
        lhs_dilation: vec![1; 2],
        rhs_dilation: vec![1; 2],
        groups,
    };
    x.apply(Op::Conv { dims, out: DType::F32 }, &[w])
}

/// `sum(y * ct)`, whose gradients are those of `y` on the cotangent `ct`.
fn against<'g>(g: &'g Graph, y: Tensor<'g>) -> Vec<Tensor<'g>> {
    vec![(y * f32(g, "ct", &y.dims())).sum_all()]
}

/// `(name, program)`.
const PROGRAMS: &[(&str, Build)] = &[
    ("pointwise_chain", |g| {
        let (x, y) = (f32(g, "x", &[5, 7]), f32(g, "y", &[5, 7]));
        vec![(x * y + 1.0).silu() - y]
    }),
    ("broadcasted_bias", |g| vec![(f32(g, "x", &[3, 5, 7]) + f32(g, "b", &[7])).maximum(g.scalar(DType::F32, 0.0))]),
    ("transposed_copy", |g| vec![f32(g, "x", &[5, 7, 3]).transpose(&[2, 0, 1])]),
    ("reshape_between", |g| vec![f32(g, "x", &[6, 10]).exp().reshape(&[4, 15]) + f32(g, "b", &[15])]),
    ("pad_edges", |g| vec![f32(g, "x", &[3, 5]).exp().pad_zero(&[1, 2], &[0, 3])]),
    ("pad_interior", |g| {
        let zero = g.scalar(DType::F32, 0.0);
        vec![f32(g, "x", &[4]).apply(Op::Pad { low: vec![1], high: vec![2], interior: vec![2] }, &[zero])]
    }),
    ("reverse", |g| vec![f32(g, "x", &[3, 5]).reverse(&[1]) * 2.0]),
    ("strided_slice", |g| vec![slice(f32(g, "x", &[9, 8]), &[1, 2], &[9, 7], &[3, 2]).exp()]),
    ("concat", |g| {
        let (x, y) = (f32(g, "x", &[3, 5]), f32(g, "y", &[3, 2]));
        vec![g.concat(&[x.exp(), y, x], 1)]
    }),
    ("random_normal", |g| vec![random::normal(g, of(g, "key", DType::U32, &[2]), &[3, 5])]),
    ("sinusoid", |g| vec![embed::sinusoid(f32(g, "t", &[3]), 8)]),
    ("iota_mask", |g| {
        let (row, column) = (g.iota(DType::I32, &[5, 5], 0), g.iota(DType::I32, &[5, 5], 1));
        vec![column.le(row).select(f32(g, "x", &[5, 5]), g.scalar(DType::F32, -1e30))]
    }),
    ("bools_and_integers", |g| {
        let (a, b) = (of(g, "a", DType::Bool, &[7]), of(g, "b", DType::Bool, &[7]));
        let (i, u) = (of(g, "i", DType::I32, &[7]), of(g, "u", DType::U32, &[7]));
        let seven = g.scalar(DType::I32, 7.0);
        vec![
            a.and(b.not()).xor(i.gt(seven)),
            (i / seven + i.rem(seven)).convert(DType::F32),
            u.shr(i.bitcast(DType::U32)),
        ]
    }),
    ("half_in_and_out", |g| {
        let (x, y) = (of(g, "x", DType::F16, &[7]), of(g, "y", DType::BF16, &[7]));
        let z = x.convert(DType::F32) * y.convert(DType::F32);
        vec![z.convert(DType::BF16), z.convert(DType::F16)]
    }),
    ("reduce_to_scalar", |g| vec![f32(g, "x", &[70, 90]).square().sum_all()]),
    ("reduce_to_scalar_long", |g| vec![f32(g, "x", &[1000, 1100]).square().sum_all()]),
    ("row_mean", |g| vec![f32(g, "x", &[5, 70]).mean(&[1])]),
    ("column_sum", |g| vec![f32(g, "x", &[70, 9]).sum(&[0])]),
    ("column_sum_tall", |g| vec![f32(g, "x", &[20000, 24]).sum(&[0])]),
    ("argmax", |g| vec![f32(g, "x", &[5, 70]).apply(Op::Argmax { dim: 1 }, &[])]),
    ("softmax", |g| vec![layers::softmax(f32(g, "x", &[5, 70]))]),
    ("layer_norm", |g| vec![layers::layer_norm(&Params::new(g).root(), f32(g, "x", &[3, 5, 24]), 1e-6)]),
    ("layer_norm_modulate", |g| {
        let x = layers::normalize(f32(g, "x", &[3, 5, 24]), 1e-6);
        vec![layers::modulate(x, f32(g, "shift", &[3, 24]), f32(g, "scale", &[3, 24]))]
    }),
    ("rms_norm", |g| vec![layers::rms_norm(&Params::new(g).root(), f32(g, "x", &[15, 24]), 1e-6)]),
    ("group_norm", |g| vec![layers::group_norm(&Params::new(g).root(), f32(g, "x", &[2, 3, 5, 8]), 4, 1e-5)]),
    ("cross_entropy", |g| {
        let (x, label) = (f32(g, "x", &[5, 11]), of(g, "label", DType::I32, &[5]));
        let centred = x - x.max(&[1]).unsqueeze(1);
        let hit = g.iota(DType::I32, &[5, 11], 1).eq(label.unsqueeze(1)).convert(DType::F32);
        vec![(centred.exp().sum(&[1]).log() - (centred * hit).sum(&[1])).mean_all()]
    }),
    ("modulate", |g| {
        vec![layers::modulate(f32(g, "x", &[3, 5, 8]), f32(g, "shift", &[3, 8]), f32(g, "scale", &[3, 8]))]
    }),
    ("matmul_nn", |g| vec![f32(g, "x", &[33, 40]).matmul(f32(g, "w", &[40, 50]))]),
    ("matmul_nt", |g| vec![f32(g, "x", &[33, 40]).matmul_t(f32(g, "w", &[50, 40]))]),
    ("matmul_tn", |g| {
        let dims = DotDims { lhs_contract: vec![0], rhs_contract: vec![0], ..DotDims::default() };
        vec![f32(g, "x", &[40, 33]).dot(f32(g, "w", &[40, 50]), dims)]
    }),
    ("matmul_deep", |g| {
        let dims = DotDims { lhs_contract: vec![0], rhs_contract: vec![0], ..DotDims::default() };
        vec![f32(g, "x", &[8192, 33]).dot(f32(g, "w", &[8192, 50]), dims)]
    }),
    ("matmul_batched", |g| {
        let dims = DotDims { lhs_batch: vec![0], rhs_batch: vec![0], lhs_contract: vec![2], rhs_contract: vec![1] };
        vec![f32(g, "x", &[3, 17, 20]).dot(f32(g, "y", &[3, 20, 19]), dims)]
    }),
    ("matmul_bias_gelu", |g| {
        vec![Activation::GeluTanh.apply(f32(g, "x", &[33, 40]).matmul_t(f32(g, "w", &[50, 40])) + f32(g, "b", &[50]))]
    }),
    ("matmul_gate_residual", |g| {
        let y = f32(g, "h", &[3, 5, 40]).matmul_t(f32(g, "w", &[24, 40])) + f32(g, "b", &[24]);
        vec![f32(g, "x", &[3, 5, 24]) + f32(g, "gate", &[3, 24]).unsqueeze(1) * y]
    }),
    ("matmul_half", |g| vec![of(g, "x", DType::BF16, &[33, 40]).matmul_t(of(g, "w", DType::BF16, &[50, 40]))]),
    ("attention", |g| {
        let (x, heads) = (f32(g, "qkv", &[2, 9, 36]), 3);
        let [q, k, v] = [0, 1, 2].map(|i| attention::split_heads(x.slice(2, 12 * i, 12 * i + 12), heads));
        vec![attention::join_heads(attention::attention(q, k, v, 0.5))]
    }),
    ("conv", |g| vec![conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 4, 5]), 1, 1, 1) + f32(g, "b", &[5])]),
    ("conv_stride_2", |g| vec![conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 4, 5]), 2, 1, 1)]),
    ("conv_groups", |g| vec![conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 2, 6]), 1, 1, 2)]),
    ("conv_depthwise", |g| vec![conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 1, 4]), 1, 1, 4)]),
    ("take_rows", |g| vec![f32(g, "table", &[11, 6]).take(of(g, "i", DType::I32, &[2, 5]))]),
    ("scatter_add", |g| {
        let (i, rows) = (of(g, "i", DType::I32, &[5]), f32(g, "rows", &[5, 6]));
        vec![f32(g, "table", &[11, 6]).apply(Op::ScatterAdd { dim: 0 }, &[i, rows])]
    }),
    ("dynamic_slice", |g| {
        vec![f32(g, "x", &[9, 6]).apply(Op::DynamicSlice { sizes: vec![4, 6] }, &[of(g, "at", DType::I32, &[2])])]
    }),
    ("dynamic_update_slice", |g| {
        let (part, at) = (f32(g, "part", &[4, 6]), of(g, "at", DType::I32, &[2]));
        vec![f32(g, "x", &[9, 6]).apply(Op::DynamicUpdateSlice, &[part, at])]
    }),
    ("patchify", |g| vec![patch::patchify(f32(g, "x", &[2, 6, 4, 3]), 2)]),
    ("unpatchify", |g| vec![patch::unpatchify(f32(g, "x", &[2, 6, 12]), 6, 4, 2)]),
    ("patch_embedding", |g| {
        let table = g.constant(Array::f32([1, 6, 5], &(0..30).map(|i| i as f32).collect::<Vec<_>>()));
        let tokens = patch::patchify(f32(g, "x", &[2, 6, 4, 3]), 2);
        vec![tokens.matmul_t(f32(g, "w", &[5, 12])) + f32(g, "b", &[5]) + table]
    }),
    ("adamw", |g| {
        let lr = f32(g, "lr", &[]);
        let tensors: [(&str, &[usize]); 3] = [("w1", &[6, 10]), ("b1", &[6]), ("w2", &[3, 7])];
        let update = |(name, dims): (&str, &[usize])| {
            let [p, grad, m, v] = ["", ".grad", ".m", ".v"].map(|s| f32(g, &format!("{name}{s}"), dims));
            let m = m * 0.9 + grad * 0.1;
            let v = v * 0.95 + grad.square() * 0.05;
            [p - p * (lr * 0.01) - m / (v.sqrt() + 1e-8) * lr, m, v]
        };
        tensors.into_iter().flat_map(update).collect()
    }),
];

/// `(name, program with a scalar result, parameters)`: the gradient in these parameters.
const GRADIENTS: &[(&str, Build, &[usize])] = &[
    (
        "grad_linear_bias",
        |g| {
            let y = f32(g, "x", &[33, 40]).matmul_t(f32(g, "w", &[50, 40])) + f32(g, "b", &[50]);
            against(g, y)
        },
        &[0, 1, 2],
    ),
    ("grad_conv_input", |g| against(g, conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 4, 5]), 1, 1, 1)), &[0]),
    (
        "grad_conv_stride_2_input",
        |g| against(g, conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 4, 5]), 2, 1, 1)),
        &[0],
    ),
    ("grad_conv_weight", |g| against(g, conv(f32(g, "x", &[2, 7, 6, 4]), f32(g, "w", &[3, 3, 4, 5]), 1, 1, 1)), &[1]),
    ("grad_softmax", |g| against(g, layers::softmax(f32(g, "x", &[5, 70]))), &[0]),
    (
        "grad_layer_norm",
        |g| {
            let x = f32(g, "x", &[15, 24]);
            against(g, layers::layer_norm(&Params::new(g).root(), x, 1e-6))
        },
        &[0, 1, 2],
    ),
    (
        "grad_take",
        |g| {
            let table = f32(g, "table", &[11, 6]);
            against(g, table.take(of(g, "i", DType::I32, &[5])))
        },
        &[0],
    ),
    (
        "grad_attention",
        |g| {
            let [q, k, v] = ["q", "k", "v"].map(|name| f32(g, name, &[2, 3, 9, 4]));
            against(g, attention::attention(q, k, v, 0.5))
        },
        &[0, 1, 2],
    ),
];

/// The steps, then every kernel with its shaders.
fn show(compiled: &Compiled) -> String {
    let exec = &compiled.exec;
    let mut out = String::new();
    for step in &exec.steps {
        match step {
            Step::Dispatch { kernel, args, scratch, .. } => {
                let scratch = if scratch.is_some() { " with scratch" } else { "" };
                writeln!(out, "run kernel {kernel} on {args:?}{scratch}").unwrap();
            }
            Step::Multi { kernel, segments, .. } => {
                writeln!(out, "run kernel {kernel} on {} segments", segments.len()).unwrap();
                segments.iter().for_each(|(n, args)| writeln!(out, "  {n}: {args:?}").unwrap());
            }
            Step::Copy { src, dst } => writeln!(out, "copy {src:?} to {dst:?}").unwrap(),
            Step::Collective { parts, .. } => {
                parts.iter().for_each(|p| writeln!(out, "{:?} {:?} to {:?}", p.op, p.src, p.dst).unwrap());
            }
        }
    }
    for (i, entry) in exec.kernels.iter().enumerate() {
        writeln!(out, "\n==== kernel {i}\n{}", entry.kernel).unwrap();
        for shader in &entry.shaders {
            writeln!(out, "---- grid {:?}, scratch {}\n{}", shader.grid, shader.scratch_bytes, shader.wgsl).unwrap();
        }
    }
    out
}

fn programs() -> Vec<(&'static str, Func)> {
    let build = |name: &str, build: Build| {
        let g = Graph::new(name);
        let results = build(&g);
        g.finish(&results).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let mut out: Vec<(&str, Func)> = PROGRAMS.iter().map(|&(name, b)| (name, build(name, b))).collect();
    out.extend(GRADIENTS.iter().map(|&(name, b, wrt)| {
        (name, dnx_autodiff::grad(&build(name, b), wrt).unwrap_or_else(|e| panic!("{name}: {e}")))
    }));
    out
}

#[test]
fn kernels_of_named_programs() {
    let options = Options::new(Target::Gpu(GpuLimits::default()));
    for (name, func) in programs() {
        let compiled = compile(&func, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        for entry in &compiled.exec.kernels {
            assert!(!entry.shaders.is_empty(), "{name} has a kernel without shaders");
            for shader in &entry.shaders {
                wgsl::check(&shader.wgsl).unwrap_or_else(|e| panic!("{name}: {e}\n{}", shader.wgsl));
            }
        }
        insta::with_settings!({ omit_expression => true, description => func.to_string() }, {
            insta::assert_snapshot!(name, show(&compiled));
        });
    }
}
