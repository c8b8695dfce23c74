//! A real pretrained transformer, built from this crate's layers, against its published reference outputs: layers
//! on trained weights, the DDPM process, and fifty DDIM steps. Skips when the data is not there.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
use dnx_models::attention::{attention, join_heads, split_heads};
use dnx_models::layers::{Activation, layer_norm, linear_xavier};
use dnx_models::params::{Params, Scope, by_name};
use dnx_models::patch::{patchify, unpatchify};
use dnx_models::process::Preset;
use dnx_models::sample::{Ddim, Denoiser, Grid, GridKind, SampleNoise, sample_from};
use dnx_models::{Init, ParamSpec};
use safetensors::SafeTensors;
use std::path::PathBuf;

const WIDTH: usize = 64;
const HEADS: usize = 4;

/// Its architecture is not DiT's: affine layer norms, separate maps for query, key and value that are wider than the
/// tokens, no activation before the modulations, ReLU, sines before cosines.
fn network<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, t: Tensor<'g>, y: Tensor<'g>) -> Tensor<'g> {
    let g = s.graph();
    let dense = |name: &str, x: Tensor<'g>, out: usize| s.enter(name, |s| linear_xavier(s, x, out));
    let freq: Vec<f32> = (0..32).map(|i| (-(1e4f64.ln()) * i as f64 / 31.0).exp() as f32).collect();
    let angle = t.unsqueeze(1) * g.constant(Array::f32([1, 32], &freq));
    let time = dense("time_emb.1", g.concat(&[angle.sin(), angle.cos()], 1), WIDTH);
    let time = dense("time_emb.3", Activation::Relu.apply(time), WIDTH);
    let c = time + s.param("label_emb.weight", &[10, WIDTH], Init::Zeros).take(y);

    let patches = patchify(x, 4);
    let conv = s.param("conv.weight", &[16, 1, 4, 4], Init::Zeros).reshape(&[16, 16]);
    let h = patches.matmul_t(conv) + s.param("conv.bias", &[16], Init::Zeros);
    let mut h = dense("patch_emb", h, WIDTH) + s.param("patch_pos_emb", &[1, 49, WIDTH], Init::Zeros);
    for i in 0..3 {
        h = s.enter(&format!("dits.{i}"), |s| {
            let dense = |name: &str, x: Tensor<'g>, out: usize| s.enter(name, |s| linear_xavier(s, x, out));
            let map = |name: &str, n: usize| dense(&format!("{name}{n}"), c, WIDTH).unsqueeze(1);
            let modulated = |x: Tensor<'g>, n: usize| {
                s.enter(&format!("ln{n}"), |s| layer_norm(s, x, 1e-5)) * (map("gamma", n) + 1.0) + map("beta", n)
            };
            let z = modulated(h, 1);
            let [q, k, v] = ["wq", "wk", "wv"].map(|name| split_heads(dense(name, z, WIDTH * HEADS), HEADS));
            let h = h + map("alpha", 1) * dense("lv", join_heads(attention(q, k, v, 1.0 / 7.0)), WIDTH);
            let z = dense("ff.0", modulated(h, 2), 256);
            h + map("alpha", 2) * dense("ff.2", Activation::Relu.apply(z), WIDTH)
        });
    }
    let h = s.enter("ln", |s| layer_norm(s, h, 1e-5));
    unpatchify(dense("linear", h, 16), 28, 28, 4)
}

fn build(batch: usize) -> (Func, Vec<ParamSpec>) {
    let g = Graph::new("forward");
    let x = g.param("x", Type::f32([batch, 28, 28, 1]));
    let t = g.param("t", Type::f32([batch]));
    let y = g.param("y", Type::new(DType::I32, [batch]));
    let params = Params::new(&g);
    let out = network(&params.root(), x, t, y);
    (g.finish(&[out]).unwrap(), params.specs())
}

struct Data {
    weights: Vec<u8>,
    reference: Vec<u8>,
}

fn data() -> Option<Data> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/mnist_dit");
    if !dir.is_dir() {
        eprintln!("skipped: no {}", dir.display());
        return None;
    }
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Some(Data { weights: read("mnist_dit.safetensors"), reference: read("reference.safetensors") })
}

/// One tensor as numbers.
fn numbers(file: &[u8], name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let file = SafeTensors::deserialize(file).unwrap();
    let t = file.tensor(name).ok()?;
    let data = t.data();
    let values = match t.dtype() {
        safetensors::Dtype::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        safetensors::Dtype::I64 => data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
        other => panic!("{name} is {other:?}"),
    };
    Some((t.shape().to_vec(), values))
}

impl Data {
    fn weights(&self, specs: &[ParamSpec]) -> Vec<Array> {
        by_name(specs, |name| numbers(&self.weights, name).map(|(dims, v)| Array::f32(dims, &v))).unwrap()
    }

    /// The first `n` samples of a reference tensor.
    fn first(&self, name: &str, n: usize) -> Vec<f32> {
        let (dims, v) = numbers(&self.reference, name).unwrap();
        v[..v.len() / dims[0] * n].to_vec()
    }
}

fn call(func: &Func, weights: &[Array], x: &[f32], t: &[f32], y: &[f32]) -> Vec<f32> {
    let n = t.len();
    let y: Vec<i32> = y.iter().map(|&y| y as i32).collect();
    let mut args = vec![Array::f32([n, 28, 28, 1], x), Array::f32([n], t), Array::i32([n], &y)];
    args.extend(weights.iter().cloned());
    eval(func, &args, Precision::F32).unwrap()[0].to_f32_vec()
}

fn greatest_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn forward_passes_are_the_published_ones() {
    let Some(data) = data() else { return };
    const N: usize = 3;
    let (func, specs) = build(N);
    let weights = data.weights(&specs);
    for (x, t, y, eps) in
        [("x", "t", "y", "eps"), ("noised_mnist_x", "noised_mnist_t", "noised_mnist_y", "noised_mnist_eps")]
    {
        let [x, t, y, want] = [x, t, y, eps].map(|name| data.first(name, N));
        let error = greatest_error(&call(&func, &weights, &x, &t, &y), &want);
        assert!(error < 1e-4, "{eps} is off by {error}");
    }
}

#[test]
fn fifty_ddim_steps_are_the_published_ones() {
    let Some(data) = data() else { return };
    let (func, specs) = build(1);
    let weights = data.weights(&specs);
    let process = Preset::Ddpm.process();
    let grid = Grid::new(&process, GridKind::Leading, 50, 1.0).unwrap();
    let start = data.first("ddim50_x_T", 1).into_iter().map(f64::from).collect();
    let want = data.first("ddim50_x_0", 1);
    let mut denoiser = Denoiser::new(&process, &[1, 28, 28, 1], |c| {
        let out = call(&func, &weights, &c.x.to_f32_vec(), &[c.times[0] as f32], &[0.0]);
        Ok(Array::f32([1, 28, 28, 1], &out))
    });
    let mut noise = SampleNoise::new(&[0], 784);
    let got = sample_from(start, &Ddim { eta: 0.0 }, &mut denoiser, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
    let got: Vec<f32> = got.iter().map(|&v| v as f32).collect();
    let error = greatest_error(&got, &want);
    assert!(error < 1e-2, "the sample is off by {error}");
}
