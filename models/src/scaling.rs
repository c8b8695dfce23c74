//! Dynamic loss scaling, for gradients in a type of narrow range.
//!
//! The loss is multiplied by a power of two before it is differentiated and the gradient divided by it after, so that
//! small cotangents don't vanish on the way. A step whose gradient is not finite is *skipped*: parameters, moments and
//! averages stay, the scale is halved, and the next batch is tried. After a number of good steps in a row the scale is
//! doubled. A step that is not finite at the least scale is no overflow of the scale's making: it is a bad step, and
//! the run stops as it does in `f32`.
//!
//! A skipped step counts as a step: it has had its batch and its draws. The optimizer, its schedule and the average go
//! by the steps that were not skipped.

use dnx_ir::Tensor;

/// The scale below which it is not halved.
pub const LEAST_SCALE: f64 = 1.0;
/// The scale above which it is not doubled: gradients are `f32` once they leave the contractions, and must stay finite.
pub const GREATEST_SCALE: f64 = (1u32 << 24) as f64;

/// How the scale starts and grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossScaling {
    /// First scale, a power of two.
    pub initial: u32,
    /// Good steps in a row after which it is doubled.
    pub growth_every: u32,
}

impl Default for LossScaling {
    fn default() -> LossScaling {
        LossScaling { initial: 1 << 16, growth_every: 2000 }
    }
}

/// What is kept from step to step.
#[derive(Clone, Copy)]
pub(crate) struct ScaleState<'g> {
    /// The scale, `f32[]`.
    pub scale: Tensor<'g>,
    /// Good steps since the scale last changed, `u32[]`.
    pub good: Tensor<'g>,
    /// Steps skipped so far, `u32[]`.
    pub skipped: Tensor<'g>,
}

impl LossScaling {
    /// Whether the scale can't be lowered further, `bool[]`.
    pub(crate) fn is_least<'g>(&self, state: ScaleState<'g>) -> Tensor<'g> {
        state.scale.le(state.scale.full_like(LEAST_SCALE))
    }

    /// The state after a step that was `finite` or not.
    pub(crate) fn next<'g>(&self, state: ScaleState<'g>, finite: Tensor<'g>) -> ScaleState<'g> {
        let ScaleState { scale, good, skipped } = state;
        let (zero, one) = (good.full_like(0.0), good.full_like(1.0));
        let more = good + one;
        let grows = more.ge(good.full_like(self.growth_every as f64));
        let grown = grows.select((scale * 2.0).minimum(scale.full_like(GREATEST_SCALE)), scale);
        let halved = (scale * 0.5).maximum(scale.full_like(LEAST_SCALE));
        ScaleState {
            scale: finite.select(grown, halved),
            good: finite.select(grows.select(zero, more), zero),
            skipped: finite.select(skipped, skipped + one),
        }
    }
}
