//! Sliced score matching (Song et al., "Sliced score matching", 2019), in its form with analytic variance
//! reduction, on noisy data: `v' (ds/dx) v + |s|^2 / 2`, weighted by `sigma^2`.
//!
//! Its expectation is that of denoising score matching up to a constant of the network, so both have the same
//! minimum; here no target is needed, but the derivative of the network in a random direction.

use super::{PROBE, Scene};
use crate::network::Inputs;
use crate::process::Loss;
use dnx_ir::Tensor;

impl<'g> Scene<'_, 'g> {
    pub(super) fn sliced_score(&self) -> Loss<'g> {
        let process = self.model.process;
        let level = process.path.levels(self.draws.times);
        let x = self.state(&level);
        let v = self.signs(PROBE);
        let call = self.model.inputs(x, &level, self.dropped_label());
        let c = process.coefficients(&level);
        let still = call.time.full_like(0.0);
        let direction = Inputs { x: v * self.wide(c.c_in), time: still, sigma: still, label: None, second: None };
        let (output, moved) = self.model.jvp(&call, &direction);
        // The noise is d x + e F, and sigma s is its negative.
        let [.., d, e] = c.solve(&level);
        let scaled = |x: Tensor<'g>, f: Tensor<'g>| -(self.wide(d) * x + self.wide(e) * f);
        let sigma = level.sigma;
        let (score, slope) = (scaled(x, output), scaled(v, moved));
        let per_sample = (v * slope).mean_per_sample() * sigma + score.square().mean_per_sample() * 0.5;
        self.mean_of(per_sample, &level)
    }
}
