//! The training loss of a process, in the graph: times and noise are drawn there too.

use super::{Model, Process, Scene, TRAIN_ONLY, Times};
use crate::layout::settled;
use crate::network::Network;
use crate::{Scope, streams};
use dnx_ir::{Array, DType, Graph, Tensor, random};

/// What one loss evaluation is random in.
#[derive(Clone, Copy)]
pub struct Draws<'g> {
    /// `f32[B]`.
    pub times: Times<'g>,
    /// Standard normal, like the data.
    pub noise: Tensor<'g>,
    /// `bool[B]`: which labels become the null label.
    pub drop: Option<Tensor<'g>>,
}

/// A loss.
#[derive(Clone, Copy)]
pub struct Loss<'g> {
    /// Weighted mean squared error of each sample, `f32[B]`.
    pub per_sample: Tensor<'g>,
    /// Its mean, a scalar.
    pub mean: Tensor<'g>,
    /// Where each sample's noise level lies between the ends of the sampled range, `f32[B]` in 0 to 1.
    pub position: Tensor<'g>,
}

impl Process {
    /// Draws for a batch like `x0`, as functions of the run's `seed` key (`u32[2]`) and a `counter` (`u32[]`) that
    /// no two evaluations share.
    pub fn draw<'g>(&self, g: &'g Graph, seed: Tensor<'g>, counter: Tensor<'g>, x0: Tensor<'g>) -> Draws<'g> {
        let stream = |n: u32| random::fold_in(g, random::fold_in_const(g, seed, n), counter);
        let batch = x0.dim(0);
        let shift = self.time_shift.factor(x0.dims()[1..].iter().product());
        let drop = (self.label_dropout > 0.0)
            .then(|| random::bernoulli(g, stream(streams::LABEL), &[batch], self.label_dropout));
        Draws {
            times: self.time_law.draw(g, stream(streams::TIME), batch, &self.path, shift),
            noise: random::normal(g, stream(streams::NOISE), &x0.dims()),
            drop,
        }
    }

    /// The loss of a network on data `x0` `[B, ..dims]` with labels `i32[B]` if it is conditional, for objectives
    /// that need no more draws than these, no teacher and no state.
    pub fn loss<'g>(
        &self,
        network: &Network,
        s: &Scope<'_, 'g>,
        x0: Tensor<'g>,
        label: Option<Tensor<'g>>,
        draws: &Draws<'g>,
    ) -> Loss<'g> {
        let g = s.graph();
        s.enter(TRAIN_ONLY, |own| {
            let scene = Scene {
                model: Model { process: self, network, scope: s },
                target: None,
                teacher: None,
                own,
                x0,
                label,
                draws: *draws,
                seed: (g.constant(Array::u32([2], &[0, 0])), g.scalar(DType::U32, 0.0)),
                step: g.scalar(DType::F32, 0.0),
                carry: vec![],
            };
            scene.loss().0
        })
    }
}

impl<'g> Loss<'g> {
    /// The sums of per-sample losses and the numbers of samples in `bins` equal ranges of noise level, two
    /// `f32[bins]`: what a log by noise level is made of. Levels beyond the range count in the outermost bins.
    pub fn by_level(&self, bins: usize) -> [Tensor<'g>; 2] {
        let g = self.mean.graph();
        let batch = self.per_sample.dim(0);
        let top = self.position.full_like((bins - 1) as f64);
        let bin = (self.position * bins as f64).floor().maximum(self.position.full_like(0.0)).minimum(top);
        let hit = bin.unsqueeze(1).eq(g.iota(DType::F32, &[batch, bins], 1)).convert(DType::F32);
        [settled((hit * self.per_sample.unsqueeze(1)).sum(&[0])), settled(hit.sum(&[0]))]
    }
}
