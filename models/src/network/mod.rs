//! Networks: `[model]` of a configuration, as functions of a noisy sample, a time and a label.

mod dit;
mod mlp;
mod sequence;

pub use dit::{DitConfig, DitSize};
pub use mlp::{MlpConfig, OutputScale, TimeFeatures};
pub use sequence::SequenceConfig;

use crate::params::{ParamSpec, Params, Scope};
use crate::process::{Process, Variance};
use crate::{Error, Layout, Result};
use dnx_ir::{DType, Graph, Tensor, Type};
use serde::{Deserialize, Serialize};

/// What a data set gives: the dims of one sample, and how many classes its labels have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Dims of a sample: `[2]` for points, `[H, W, C]` for pictures.
    pub dims: Vec<usize>,
    /// Classes; 0 when there are no labels.
    pub classes: usize,
}

/// When the backward pass recomputes instead of keeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remat {
    /// Keep everything the backward pass needs.
    #[default]
    None,
    /// Keep the inputs of each block and recompute the rest.
    Block,
    /// Keep the inputs of groups of about as many blocks as there are groups; recompute a group's block inputs, then
    /// each block (Chen et al., "Training deep nets with sublinear memory cost", 2016).
    Group,
}

impl Remat {
    /// All of them, in ascending order of what is recomputed.
    pub const ALL: [Remat; 3] = [Remat::None, Remat::Block, Remat::Group];
}

/// A network and its shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Network {
    /// Perceptron on vectors.
    Mlp(MlpConfig),
    /// Diffusion transformer on pictures or latents.
    Dit(DitConfig),
    /// Transformer on sequences of vectors, whose tokens have noise levels of their own.
    Sequence(SequenceConfig),
}

impl Network {
    /// The same network with what it left open taken from the data.
    ///
    /// # Errors
    /// If the two contradict each other, or the shape is not meaningful.
    pub fn resolve(&self, data: &DataSpec) -> Result<Network> {
        Ok(match self {
            Network::Mlp(c) => Network::Mlp(c.resolve(data)?),
            Network::Dit(c) => Network::Dit(c.resolve(data)?),
            Network::Sequence(c) => Network::Sequence(c.resolve(data)?),
        })
    }

    /// Dims of one sample, which are also those of the prediction.
    ///
    /// # Errors
    /// If the shape is not complete or not meaningful: every method needs a network that [`Network::resolve`]
    /// accepts.
    pub fn sample_dims(&self) -> Result<Vec<usize>> {
        match self {
            Network::Mlp(c) => c.sample_dims(),
            Network::Dit(c) => c.sample_dims(),
            Network::Sequence(c) => c.sample_dims(),
        }
    }

    /// Classes the network can be conditioned on; 0: none. The null label of guidance is this number.
    pub fn classes(&self) -> usize {
        match self {
            Network::Mlp(c) => c.classes.unwrap_or(0),
            Network::Dit(c) => c.classes.unwrap_or(0),
            Network::Sequence(c) => c.classes.unwrap_or(0),
        }
    }

    /// The number of tokens, of networks whose tokens may each be at a noise level of their own. These take times and
    /// noise scales `[B, T]`, and as well `[B]` for samples at one level.
    pub fn tokens(&self) -> Option<usize> {
        match self {
            Network::Mlp(_) | Network::Dit(_) => None,
            Network::Sequence(c) => c.tokens,
        }
    }

    /// Whether each token's output depends on itself and those before it alone.
    pub fn causal(&self) -> bool {
        match self {
            Network::Mlp(_) | Network::Dit(_) => false,
            Network::Sequence(c) => c.causal,
        }
    }

    /// When the backward pass recomputes.
    pub fn set_remat(&mut self, remat: Remat) {
        match self {
            Network::Mlp(_) | Network::Sequence(_) => {}
            Network::Dit(c) => c.remat = remat,
        }
    }

    /// Whether the network takes a second time: that of the other end of a jump, beside the one it starts from.
    pub fn second_time(&self) -> bool {
        match self {
            Network::Mlp(c) => c.second_time,
            Network::Dit(c) => c.second_time,
            Network::Sequence(_) => false,
        }
    }

    /// Makes it a network of two times, or of one.
    pub fn set_second_time(&mut self, second: bool) {
        match self {
            Network::Mlp(c) => c.second_time = second,
            Network::Dit(c) => c.second_time = second,
            Network::Sequence(_) => {}
        }
    }

    /// The network's output for noisy samples `x` `[B, ..dims]`, what its time embedding is fed with `time` `[B]`,
    /// the path's noise scale `sigma` `[B]` (used only by networks that divide by it), and, if it has classes,
    /// `label` `i32[B]`. The result has the dims of `x`: of a network with learned variances the first half.
    pub fn forward<'g>(&self, s: &Scope<'_, 'g>, call: Inputs<'g>) -> Tensor<'g> {
        self.evaluate(s, call, None).prediction
    }

    /// Whether the network predicts variances too.
    pub fn learns_variance(&self) -> bool {
        match self {
            Network::Mlp(c) => c.learn_sigma,
            Network::Dit(c) => c.learn_sigma,
            Network::Sequence(_) => false,
        }
    }

    /// Makes it what a process asks for: a second time, and variances where they are learned.
    pub fn suit(&mut self, process: &Process) {
        self.set_second_time(process.objective.second_time());
        if process.variance != Variance::Fixed {
            match self {
                Network::Mlp(c) => c.learn_sigma = true,
                Network::Dit(c) => c.learn_sigma = true,
                Network::Sequence(_) => {}
            }
        }
    }

    /// As [`Network::forward`], all that the network gives: with `tap` also the hidden state after that block (of a
    /// perceptron: that layer).
    pub fn evaluate<'g>(&self, s: &Scope<'_, 'g>, call: Inputs<'g>, tap: Option<usize>) -> Outputs<'g> {
        let dims = call.x.dims();
        match self.sample_dims() {
            Ok(own) if own == dims[1..] => {}
            Ok(own) => s.graph().fail(format!("the network takes samples of dims {own:?}, not {:?}", &dims[1..])),
            Err(error) => s.graph().fail(error.to_string()),
        }
        if self.classes() > 0 && call.label.is_none() {
            s.graph().fail(format!("the network has {} classes and was given no labels", self.classes()));
        }
        if self.second_time() && call.second.is_none() {
            s.graph().fail("the network takes a second time and was given none");
        }
        match self {
            Network::Mlp(c) => c.forward(s, call, tap),
            Network::Dit(c) => c.forward(s, call, tap),
            Network::Sequence(c) => c.forward(s, call, tap),
        }
    }

    /// The parameters, in the order in which the network declares them.
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        self.specs_over(&Layout::single())
    }

    /// [`Network::specs`] as they are declared over several devices.
    pub fn specs_over(&self, layout: &Layout) -> Result<Vec<ParamSpec>> {
        let g = Graph::on_mesh("forward", layout.mesh().clone());
        let params = Params::laid(&g, layout);
        let call = Inputs::declare(&g, 1, self)?;
        let y = self.forward(&params.root(), call);
        g.finish(&[y])?;
        Ok(params.specs())
    }
}

/// What a network gives.
#[derive(Clone, Copy)]
pub struct Outputs<'g> {
    /// The prediction, like `x`.
    pub prediction: Tensor<'g>,
    /// Of networks with learned variances: the second half of the output, like `x`.
    pub variance: Option<Tensor<'g>>,
    /// The hidden state that was asked for: `[B, T, D]`, of a perceptron `[B, D]`.
    pub hidden: Option<Tensor<'g>>,
}

/// What a network is applied to.
#[derive(Clone, Copy)]
pub struct Inputs<'g> {
    /// Noisy samples, scaled as the process says: `[B, ..dims]`.
    pub x: Tensor<'g>,
    /// What the time embedding is fed with: `[B]`, or `[B, T]` where tokens have levels of their own.
    pub time: Tensor<'g>,
    /// The noise scale, like `time`.
    pub sigma: Tensor<'g>,
    /// Labels `i32[B]`; the class count is the null label.
    pub label: Option<Tensor<'g>>,
    /// What the second time embedding is fed with, of networks that have one: `[B]`. It is 0 where the jump goes
    /// nowhere.
    pub second: Option<Tensor<'g>>,
}

impl<'g> Inputs<'g> {
    /// Parameters `x`, `time`, `sigma` and, as the network needs them, `label` and `second` of a graph, for a batch.
    /// Times and noise scales of a network with levels of its tokens are `[B, T]`.
    ///
    /// # Errors
    /// If the network's shape is not complete.
    pub fn declare(g: &'g Graph, batch: usize, network: &Network) -> Result<Inputs<'g>> {
        let x_dims: Vec<usize> = std::iter::once(batch).chain(network.sample_dims()?).collect();
        let levels: Vec<usize> = std::iter::once(batch).chain(network.tokens()).collect();
        Ok(Inputs {
            x: g.param("x", Type::f32(x_dims)),
            time: g.param("time", Type::f32(levels.clone())),
            sigma: g.param("sigma", Type::f32(levels)),
            label: (network.classes() > 0).then(|| g.param("label", Type::new(DType::I32, [batch]))),
            second: network.second_time().then(|| g.param("second", Type::f32([batch]))),
        })
    }
}

/// A value the configuration or the data must give.
fn wanted<T: Copy>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| Error::config(format!("model.{key}"), "is not set and no data gives it"))
}

/// What the configuration says, or else the data; an error if both speak and differ.
fn agree<T: PartialEq + std::fmt::Display>(own: Option<T>, data: T, key: &str) -> Result<T> {
    match own {
        Some(own) if own != data => Err(Error::config(
            format!("model.{key}"),
            format!("is {own}, but the data has {data}; remove the key or change the data"),
        )),
        _ => Ok(data),
    }
}
