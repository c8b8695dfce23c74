//! A perceptron on vectors: the score network of two-dimensional examples.

use super::{DataSpec, Inputs, Outputs, agree, wanted};
use crate::layers::{Activation, linear};
use crate::{Error, Init, Result, Scope, embed};
use dnx_ir::Tensor;
use serde::{Deserialize, Serialize};

/// How time joins the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeFeatures {
    /// As one number.
    Raw,
    /// As sinusoids, `time_width` of them.
    Sinusoid,
}

/// What the last layer's output is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputScale {
    /// Nothing.
    One,
    /// The noise scale: the network's output is then of unit size where a score is predicted.
    Sigma,
}

/// `[model] kind = "mlp"`. The defaults are the two-moons score network: on `dims = 2`, 165,634 parameters.
///
/// Tensors: `layers.{i}.{weight,bias}`; with classes `y_embedder.embedding_table.weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Length of a sample; from the data if absent.
    pub dims: Option<usize>,
    /// Width of hidden layers.
    pub hidden: usize,
    /// Hidden layers.
    pub layers: usize,
    /// Nonlinearity between layers.
    pub activation: Activation,
    /// How time joins the input.
    pub time: TimeFeatures,
    /// Width of the time embedding (and of the label embedding).
    pub time_width: usize,
    /// What the output is divided by.
    pub output: OutputScale,
    /// Classes to be conditioned on; from the data if absent.
    pub classes: Option<usize>,
    /// Whether the last layer also predicts variances (twice the outputs).
    pub learn_sigma: bool,
    /// Whether a second time joins the input too. The process decides.
    pub second_time: bool,
}

impl Default for MlpConfig {
    fn default() -> MlpConfig {
        MlpConfig {
            dims: None,
            hidden: 256,
            layers: 3,
            activation: Activation::Gelu,
            time: TimeFeatures::Sinusoid,
            time_width: 128,
            output: OutputScale::One,
            classes: None,
            learn_sigma: false,
            second_time: false,
        }
    }
}

impl MlpConfig {
    pub(super) fn resolve(&self, data: &DataSpec) -> Result<MlpConfig> {
        let &[dims] = &data.dims[..] else {
            let message = format!("an mlp takes vectors, the data has samples of dims {:?}", data.dims);
            return Err(Error::config("model.kind", message));
        };
        let dims = Some(agree(self.dims, dims, "dims")?);
        let classes = Some(self.classes.unwrap_or(data.classes));
        let resolved = MlpConfig { dims, classes, ..self.clone() };
        resolved.sample_dims()?;
        Ok(resolved)
    }

    pub(super) fn sample_dims(&self) -> Result<Vec<usize>> {
        for (key, value) in [("hidden", self.hidden), ("layers", self.layers), ("time_width", self.time_width)] {
            if value == 0 {
                return Err(Error::config(format!("model.{key}"), "is 0; it must be positive"));
            }
        }
        if !self.time_width.is_multiple_of(2) {
            return Err(Error::config("model.time_width", format!("is {}; it must be even", self.time_width)));
        }
        Ok(vec![wanted(self.dims, "dims")?])
    }

    pub(super) fn forward<'g>(&self, s: &Scope<'_, 'g>, call: Inputs<'g>, tap: Option<usize>) -> Outputs<'g> {
        let features = |time: Tensor<'g>| match self.time {
            TimeFeatures::Raw => time.unsqueeze(1),
            TimeFeatures::Sinusoid => embed::sinusoid(time, self.time_width),
        };
        let mut parts = vec![call.x, features(call.time)];
        parts.extend(call.second.filter(|_| self.second_time).map(features));
        if let (Some(label), Some(classes @ 1..)) = (call.label, self.classes) {
            parts.push(s.enter("y_embedder", |s| embed::label(s, label, classes + 1, self.time_width)));
        }
        let mut hidden = None;
        let mut h = s.graph().concat(&parts, 1);
        for i in 0..self.layers {
            h = s.enter(&format!("layers.{i}"), |s| linear(s, h, self.hidden, Init::kaiming_normal(h.dim(-1))));
            h = self.activation.apply(h);
            if tap == Some(i) {
                hidden = Some(h);
            }
        }
        if tap.is_some() && hidden.is_none() {
            s.graph().fail(format!("there is no hidden layer {}; the network has {}", tap.unwrap_or(0), self.layers));
        }
        // A small last layer makes the first predictions small, whatever the depth.
        let width = call.x.dim(-1) * if self.learn_sigma { 2 } else { 1 };
        let last = Init::Normal { std: 0.01 * (2.0 / self.hidden as f64).sqrt() };
        let out = s.enter(&format!("layers.{}", self.layers), |s| linear(s, h, width, last));
        let (mean, variance) = match self.learn_sigma {
            true => (out.slice(1, 0, width / 2), Some(out.slice(1, width / 2, width))),
            false => (out, None),
        };
        let prediction = match self.output {
            OutputScale::One => mean,
            OutputScale::Sigma => mean / call.sigma.unsqueeze(1),
        };
        Outputs { prediction, variance, hidden }
    }
}
