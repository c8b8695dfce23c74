//! The diffusion transformer (Peebles and Xie, "Scalable diffusion models with transformers", 2023), with the
//! tensor names and layouts of its published checkpoints.

use super::{DataSpec, Inputs, Outputs, Remat, agree, wanted};
use crate::attention::{attention, join_heads, split_heads};
use crate::layers::{Activation, linear, linear_stack, linear_xavier, mlp, modulate, modulations, normalize};
use crate::params::Block;
use crate::patch::{patchify, unpatchify};
use crate::{Error, Init, Result, Scope, embed};
use dnx_ir::Tensor;
use serde::{Deserialize, Serialize};

/// Width of the sinusoids that a time is first turned into.
const FREQUENCIES: usize = 256;
/// Of every layer norm.
pub(super) const EPS: f64 = 1e-6;

/// The published sizes: width, depth, heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DitSize {
    /// 384, 12, 6.
    S,
    /// 768, 12, 12.
    B,
    /// 1024, 24, 16.
    L,
    /// 1152, 28, 16.
    XL,
}

impl DitSize {
    /// Width, depth, heads.
    pub fn shape(self) -> (usize, usize, usize) {
        match self {
            DitSize::S => (384, 12, 6),
            DitSize::B => (768, 12, 12),
            DitSize::L => (1024, 24, 16),
            DitSize::XL => (1152, 28, 16),
        }
    }
}

/// `[model] kind = "dit"`. `size` gives `dim`, `depth` and `heads` unless they are set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DitConfig {
    /// A published size.
    pub size: Option<DitSize>,
    /// Width of tokens.
    pub dim: Option<usize>,
    /// Blocks.
    pub depth: Option<usize>,
    /// Attention heads; they divide `dim`.
    pub heads: Option<usize>,
    /// Side of a patch in pixels; divides the picture's sides.
    pub patch: usize,
    /// Hidden width of the blocks' perceptrons, in widths.
    pub mlp_ratio: f64,
    /// Side of the picture; from the data if absent. Pictures that are not square set `width` too.
    pub image: Option<usize>,
    /// Width of the picture if it is not square.
    pub width: Option<usize>,
    /// Channels of the picture; from the data if absent.
    pub channels: Option<usize>,
    /// Classes to be conditioned on, 0 for none; from the data if absent.
    pub classes: Option<usize>,
    /// Whether the last layer also predicts variances (twice the channels).
    pub learn_sigma: bool,
    /// When the backward pass recomputes.
    pub remat: Remat,
    /// Whether a second time is embedded too, by an `r_embedder` like `t_embedder`. The process decides.
    pub second_time: bool,
}

impl Default for DitConfig {
    fn default() -> DitConfig {
        DitConfig {
            size: None,
            dim: None,
            depth: None,
            heads: None,
            patch: 2,
            mlp_ratio: 4.0,
            image: None,
            width: None,
            channels: None,
            classes: None,
            learn_sigma: false,
            remat: Remat::None,
            second_time: false,
        }
    }
}

/// A complete and meaningful shape.
#[derive(Clone, Copy)]
struct Shape {
    dim: usize,
    depth: usize,
    heads: usize,
    hidden: usize,
    patch: usize,
    height: usize,
    width: usize,
    channels: usize,
    out_channels: usize,
}

impl DitConfig {
    /// A published size on pictures (or latents) of `image` by `image` by `channels`.
    pub fn of_size(size: DitSize, patch: usize, image: usize, channels: usize, classes: usize) -> DitConfig {
        DitConfig {
            size: Some(size),
            patch,
            image: Some(image),
            channels: Some(channels),
            classes: Some(classes),
            ..DitConfig::default()
        }
    }

    pub(super) fn resolve(&self, data: &DataSpec) -> Result<DitConfig> {
        let &[height, width, channels] = &data.dims[..] else {
            let message = format!("a dit takes pictures [H, W, C], the data has samples of dims {:?}", data.dims);
            return Err(Error::config("model.kind", message));
        };
        let image = Some(agree(self.image, height, "image")?);
        let width = match self.width {
            None if width == height => None,
            own => Some(agree(own, width, "width")?),
        };
        let channels = Some(agree(self.channels, channels, "channels")?);
        // A network may be unconditional on labelled data, or have room for more classes.
        let classes = self.classes.unwrap_or(data.classes);
        if classes != 0 && classes < data.classes {
            let message = format!("is {classes}, but the data has labels up to {}", data.classes - 1);
            return Err(Error::config("model.classes", message));
        }
        let resolved = DitConfig { image, width, channels, classes: Some(classes), ..self.clone() };
        resolved.shape()?;
        Ok(resolved)
    }

    fn shape(&self) -> Result<Shape> {
        let sized = |own: Option<usize>, at: fn((usize, usize, usize)) -> usize, key: &str| {
            own.or(self.size.map(|s| at(s.shape()))).ok_or_else(|| {
                Error::config(format!("model.{key}"), "is not set; set it, or size = \"S\", \"B\", \"L\" or \"XL\"")
            })
        };
        let height = wanted(self.image, "image")?;
        let shape = Shape {
            dim: sized(self.dim, |s| s.0, "dim")?,
            depth: sized(self.depth, |s| s.1, "depth")?,
            heads: sized(self.heads, |s| s.2, "heads")?,
            hidden: 0,
            patch: self.patch,
            height,
            width: self.width.unwrap_or(height),
            channels: wanted(self.channels, "channels")?,
            out_channels: 0,
        };
        let bad = |key: &str, message: String| Err(Error::config(format!("model.{key}"), message));
        if shape.dim == 0 || !shape.dim.is_multiple_of(4) {
            return bad("dim", format!("is {}; position embeddings want a positive multiple of 4", shape.dim));
        }
        if shape.heads == 0 || !shape.dim.is_multiple_of(shape.heads) {
            return bad("heads", format!("is {}, which does not divide dim = {}", shape.heads, shape.dim));
        }
        if ![shape.height, shape.width].iter().all(|s| shape.patch > 0 && s.is_multiple_of(shape.patch)) {
            let sides = format!("{}x{}", shape.height, shape.width);
            return bad("patch", format!("is {}, which does not divide a picture of {sides}", shape.patch));
        }
        if shape.height == 0 || shape.width == 0 || shape.channels == 0 {
            return bad("image", "the picture has no pixels".into());
        }
        let hidden = (shape.dim as f64 * self.mlp_ratio).floor();
        if !(1.0..1e9).contains(&hidden) {
            return bad("mlp_ratio", format!("is {}; it must be positive", self.mlp_ratio));
        }
        let out_channels = shape.channels * if self.learn_sigma { 2 } else { 1 };
        Ok(Shape { hidden: hidden as usize, out_channels, ..shape })
    }

    pub(super) fn sample_dims(&self) -> Result<Vec<usize>> {
        let s = self.shape()?;
        Ok(vec![s.height, s.width, s.channels])
    }

    pub(super) fn forward<'g>(&self, s: &Scope<'_, 'g>, call: Inputs<'g>, tap: Option<usize>) -> Outputs<'g> {
        match self.tokens(s, call, tap) {
            Ok(y) => y,
            Err(error) => {
                s.graph().fail(error.to_string());
                Outputs { prediction: call.x, variance: None, hidden: None }
            }
        }
    }

    fn tokens<'g>(&self, s: &Scope<'_, 'g>, call: Inputs<'g>, tap: Option<usize>) -> Result<Outputs<'g>> {
        let shape = self.shape()?;
        let Shape { dim, patch, height, width, .. } = shape;
        let layout = s.layout();
        layout.check_heads(shape.heads)?;
        // Rows of patches are runs of tokens.
        let x = layout.along_sequence(call.x, 1);
        let positions = s.frozen("pos_embed", embed::grid_positions(height / patch, width / patch, dim));
        let mut h = s.enter("x_embedder.proj", |s| embed_patches(s, x, patch, dim)) + positions;

        let mut c = s.enter("t_embedder", |s| embed_time(s, call.time, dim));
        if let Some(second) = call.second.filter(|_| self.second_time) {
            c = c + s.enter("r_embedder", |s| embed_time(s, second, dim));
        }
        if let (Some(label), Some(classes @ 1..)) = (call.label, self.classes) {
            c = c + s.enter("y_embedder", |s| embed::label(s, label, classes + 1, dim));
        }

        let inputs = [("x", h.ty()), ("c", c.ty())];
        let block = Block::build(s, "blocks.0", "dit_block", &inputs, |s, x| vec![block(s, x[0], x[1], shape)])?;
        let tap = tap.filter(|&at| {
            if at >= shape.depth {
                s.graph().fail(format!("there is no block {at}; the network has {}", shape.depth));
            }
            at < shape.depth
        });
        let mut hidden = None;
        match self.remat {
            Remat::None | Remat::Block => {
                for i in 0..shape.depth {
                    let remat = self.remat == Remat::Block;
                    h = s.enter(&format!("blocks.{i}"), |s| s.call(&block, &[h, c], remat)[0]);
                    if tap == Some(i) {
                        hidden = Some(h);
                    }
                }
            }
            Remat::Group => {
                let size = ((shape.depth as f64).sqrt().round() as usize).max(1);
                for first in (0..shape.depth).step_by(size) {
                    let members = first..(first + size).min(shape.depth);
                    let group = Block::build(s, "", "dit_blocks", &inputs, |s, x| {
                        let mut results = vec![x[0]];
                        for i in members.clone() {
                            results[0] =
                                s.enter(&format!("blocks.{i}"), |s| s.call(&block, &[results[0], x[1]], true)[0]);
                            if tap == Some(i) {
                                results.push(results[0]);
                            }
                        }
                        results
                    })?;
                    let results = s.call(&group, &[h, c], true);
                    h = results[0];
                    hidden = results.get(1).copied().or(hidden);
                }
            }
        }

        let y = s.enter("final_layer", |s| {
            let m = s.enter("adaLN_modulation.1", |s| modulations(s, c.silu(), 2, dim));
            let out = patch * patch * shape.out_channels;
            s.enter("linear", |s| linear(s, modulate(normalize(h, EPS), m[0], m[1]), out, Init::Zeros))
        });
        let y = unpatchify(y, height, width, patch);
        let half = |i: usize| y.slice(3, i * shape.channels, (i + 1) * shape.channels);
        Ok(match self.learn_sigma {
            true => Outputs { prediction: half(0), variance: Some(half(1)), hidden },
            false => Outputs { prediction: y, variance: None, hidden },
        })
    }
}

/// Patches of a picture as tokens `[B, T, dim]`: a convolution with stride and kernel `p`, weight `[dim, C, p, p]`.
fn embed_patches<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, p: usize, dim: usize) -> Tensor<'g> {
    let c = x.dim(3);
    let fan_in = c * p * p;
    let weight = s.param("weight", &[dim, c, p, p], Init::xavier_uniform(fan_in, dim));
    patchify(x, p).matmul_t(weight.reshape(&[dim, fan_in])) + s.param("bias", &[dim], Init::Zeros)
}

/// A time `[B]` as `[B, dim]`: sinusoids through two layers.
pub(super) fn embed_time<'g>(s: &Scope<'_, 'g>, time: Tensor<'g>, dim: usize) -> Tensor<'g> {
    let init = Init::Normal { std: 0.02 };
    let h = s.enter("mlp.0", |s| linear(s, embed::sinusoid(time, FREQUENCIES), dim, init.clone())).silu();
    s.enter("mlp.2", |s| linear(s, h, dim, init))
}

/// One block with adaptive layer norm whose gates start at zero: the identity at first.
fn block<'g>(s: &Scope<'_, 'g>, x: Tensor<'g>, c: Tensor<'g>, shape: Shape) -> Tensor<'g> {
    let Shape { dim, heads, hidden, .. } = shape;
    let m = s.enter("adaLN_modulation.1", |s| modulations(s, c.silu(), 6, dim));
    let attended = s.enter("attn", |s| {
        let h = modulate(normalize(x, EPS), m[0], m[1]);
        let qkv = s.enter("qkv", |s| linear_stack(s, h, 3, dim));
        let [q, k, v] = [0, 1, 2].map(|i| split_heads(qkv[i], heads));
        let o = join_heads(attention(q, k, v, ((dim / heads) as f64).powf(-0.5)));
        s.enter("proj", |s| linear_xavier(s, o, dim))
    });
    let x = x + m[2].unsqueeze(1) * attended;
    let h = modulate(normalize(x, EPS), m[3], m[4]);
    x + m[5].unsqueeze(1) * s.enter("mlp", |s| mlp(s, h, hidden, Activation::GeluTanh))
}
