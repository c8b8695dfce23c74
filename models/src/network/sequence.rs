//! A transformer over sequences of vectors, `[T, C]`, in which every token may be at a noise level of its own: the
//! blocks of a diffusion transformer with the modulation of each token by its own time. With `causal` a token sees
//! itself and those before it alone, so that finished tokens need not be looked at again when others follow.
//!
//! Tensors are named like those of the diffusion transformer: `x_embedder.proj`, `t_embedder.mlp.{0,2}`,
//! `y_embedder.embedding_table`, `blocks.{i}.{adaLN_modulation.1, attn.{qkv, proj}, mlp.{fc1, fc2}}`, `final_layer`.

use super::dit::{EPS, embed_time};
use super::{DataSpec, Inputs, Outputs, agree, wanted};
use crate::attention::{attention_with, join_heads, split_heads};
use crate::layers::{Activation, linear, linear_stack, linear_xavier, mlp, normalize};
use crate::params::Block;
use crate::{Error, Init, Result, Scope, embed};
use dnx_ir::{Array, Tensor};
use serde::{Deserialize, Serialize};

/// `[model] kind = "sequence"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceConfig {
    /// Tokens of a sample; from the data if absent.
    pub tokens: Option<usize>,
    /// Numbers of a token; from the data if absent.
    pub channels: Option<usize>,
    /// Width of hidden tokens.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; they divide `dim`.
    pub heads: usize,
    /// Hidden width of the blocks' perceptrons, in widths.
    pub mlp_ratio: f64,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// Classes to be conditioned on, 0 for none; from the data if absent.
    pub classes: Option<usize>,
}

impl Default for SequenceConfig {
    fn default() -> SequenceConfig {
        SequenceConfig {
            tokens: None,
            channels: None,
            dim: 64,
            depth: 2,
            heads: 4,
            mlp_ratio: 4.0,
            causal: true,
            classes: None,
        }
    }
}

impl SequenceConfig {
    pub(super) fn resolve(&self, data: &DataSpec) -> Result<SequenceConfig> {
        let &[tokens, channels] = &data.dims[..] else {
            let message =
                format!("a sequence network takes tokens [T, C], the data has samples of dims {:?}", data.dims);
            return Err(Error::config("model.kind", message));
        };
        let tokens = Some(agree(self.tokens, tokens, "tokens")?);
        let channels = Some(agree(self.channels, channels, "channels")?);
        let classes = self.classes.unwrap_or(data.classes);
        if classes != 0 && classes < data.classes {
            let message = format!("is {classes}, but the data has labels up to {}", data.classes - 1);
            return Err(Error::config("model.classes", message));
        }
        let resolved = SequenceConfig { tokens, channels, classes: Some(classes), ..self.clone() };
        resolved.sample_dims()?;
        Ok(resolved)
    }

    pub(super) fn sample_dims(&self) -> Result<Vec<usize>> {
        let bad = |key: &str, message: String| Err(Error::config(format!("model.{key}"), message));
        let (tokens, channels) = (wanted(self.tokens, "tokens")?, wanted(self.channels, "channels")?);
        for (key, value) in [("tokens", tokens), ("channels", channels)] {
            if value == 0 {
                return bad(key, "is 0; it must be positive".into());
            }
        }
        if self.dim == 0 || !self.dim.is_multiple_of(2) {
            return bad("dim", format!("is {}; position embeddings want a positive even number", self.dim));
        }
        if self.heads == 0 || !self.dim.is_multiple_of(self.heads) {
            return bad("heads", format!("is {}, which does not divide dim = {}", self.heads, self.dim));
        }
        if !(1.0..1e9).contains(&(self.dim as f64 * self.mlp_ratio)) {
            return bad("mlp_ratio", format!("is {}; it must be positive", self.mlp_ratio));
        }
        Ok(vec![tokens, channels])
    }

    pub(super) fn forward<'g>(&self, s: &Scope<'_, 'g>, call: Inputs<'g>, tap: Option<usize>) -> Outputs<'g> {
        match self.blocks(s, call, tap) {
            Ok((prediction, hidden)) => Outputs { prediction, variance: None, hidden },
            Err(error) => {
                s.graph().fail(error.to_string());
                Outputs { prediction: call.x, variance: None, hidden: None }
            }
        }
    }

    fn blocks<'g>(
        &self,
        s: &Scope<'_, 'g>,
        call: Inputs<'g>,
        tap: Option<usize>,
    ) -> Result<(Tensor<'g>, Option<Tensor<'g>>)> {
        let (batch, tokens, channels, dim) = (call.x.dim(0), call.x.dim(1), call.x.dim(2), self.dim);
        let layout = s.layout();
        layout.check_heads(self.heads)?;
        let x = layout.along_sequence(call.x, 1);
        let positions = s.frozen("pos_embed", positions(tokens, dim));
        let mut h = s.enter("x_embedder.proj", |s| linear_xavier(s, x, dim)) + positions;

        // One time for a whole sample is the same time for each of its tokens.
        let each = match call.time.rank() {
            1 => call.time.unsqueeze(1).broadcast_to(&[batch, tokens]),
            _ => call.time,
        };
        let flat = each.reshape(&[batch * tokens]);
        let mut c = s.enter("t_embedder", |s| embed_time(s, flat, dim)).reshape(&[batch, tokens, dim]);
        if let (Some(label), Some(classes @ 1..)) = (call.label, self.classes) {
            c = c + s.enter("y_embedder", |s| embed::label(s, label, classes + 1, dim)).unsqueeze(1);
        }
        let c = layout.along_sequence(c.silu(), 1);

        let types = [("x", h.ty()), ("c", c.ty())];
        let block = Block::build(s, "blocks.0", "sequence_block", &types, |s, x| vec![self.block(s, x[0], x[1])])?;
        let mut hidden = None;
        for i in 0..self.depth {
            h = s.enter(&format!("blocks.{i}"), |s| s.call(&block, &[h, c], false)[0]);
            if tap == Some(i) {
                hidden = Some(h);
            }
        }
        if tap.is_some() && hidden.is_none() {
            s.graph().fail(format!("there is no block {}; the network has {}", tap.unwrap_or(0), self.depth));
        }
        let y = s.enter("final_layer", |s| {
            let m = s.enter("adaLN_modulation.1", |s| linear(s, c, 2 * dim, Init::Zeros)).split(2, 2);
            s.enter("linear", |s| linear(s, modulated(h, m[0], m[1]), channels, Init::Zeros))
        });
        Ok((y, hidden))
    }

    /// One block, the identity at first: `x` and `c` are `[B, T, dim]`.
    fn block<'g>(&self, s: &Scope<'_, 'g>, x: Tensor<'g>, c: Tensor<'g>) -> Tensor<'g> {
        let (dim, heads) = (self.dim, self.heads);
        let m = s.enter("adaLN_modulation.1", |s| linear(s, c, 6 * dim, Init::Zeros)).split(2, 6);
        let attended = s.enter("attn", |s| {
            let qkv = s.enter("qkv", |s| linear_stack(s, modulated(x, m[0], m[1]), 3, dim));
            let [q, k, v] = [0, 1, 2].map(|i| split_heads(qkv[i], heads));
            let scale = ((dim / heads) as f64).powf(-0.5);
            s.enter("proj", |s| linear_xavier(s, join_heads(attention_with(q, k, v, None, scale, self.causal)), dim))
        });
        let x = x + m[2] * attended;
        let width = (dim as f64 * self.mlp_ratio).floor() as usize;
        x + m[5] * s.enter("mlp", |s| mlp(s, modulated(x, m[3], m[4]), width, Activation::GeluTanh))
    }
}

/// The normalised tokens under their own shift and scale, all `[B, T, D]`.
fn modulated<'g>(x: Tensor<'g>, shift: Tensor<'g>, scale: Tensor<'g>) -> Tensor<'g> {
    normalize(x, EPS) * (scale + 1.0) + shift
}

/// The fixed position embedding `[1, T, dim]`: `[sin(w pos), cos(w pos)]` with `w_i = 1e4^(-i / (dim / 2))`.
fn positions(tokens: usize, dim: usize) -> Array {
    let half = dim / 2;
    let angle = |pos: usize, i: usize| pos as f64 * 1e4f64.powf(-(i as f64) / half as f64);
    let row = |pos: usize| {
        let sines = (0..half).map(move |i| angle(pos, i).sin() as f32);
        sines.chain((0..half).map(move |i| angle(pos, i).cos() as f32))
    };
    Array::f32([1, tokens, dim], &(0..tokens).flat_map(row).collect::<Vec<f32>>())
}
