//! A mixture of isotropic Gaussians, whose score and denoiser are known in closed form at every noise level: the
//! oracle of sampler tests, and a network that needs no training.

use crate::process::Level;
use crate::sample::{Model, NetworkCall, Resampling, SampleNoise, Uniforms};
use crate::streams;
use crate::{Result, process::Process};
use dnx_ir::Array;
use std::f64::consts::PI;

/// One Gaussian of the mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// Its share; shares sum to 1.
    pub weight: f64,
    /// Mean.
    pub mean: Vec<f64>,
    /// Standard deviation in every direction.
    pub std: f64,
}

impl Component {
    /// Variance of its states at a level, in every direction.
    fn variance(&self, level: &Level<f64>) -> f64 {
        (level.alpha * self.std).powi(2) + level.sigma.powi(2)
    }
}

/// A mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Gmm {
    /// Its Gaussians, of one dimension.
    pub components: Vec<Component>,
}

impl Gmm {
    /// The dimension.
    pub fn dim(&self) -> usize {
        self.components[0].mean.len()
    }

    /// How likely each component is to have made a state at a level, and the logarithm of the state's density.
    fn shares(&self, x: &[f64], level: &Level<f64>) -> (Vec<f64>, f64) {
        let logs: Vec<f64> = self
            .components
            .iter()
            .map(|c| {
                let d2: f64 = x.iter().zip(&c.mean).map(|(x, m)| (x - level.alpha * m).powi(2)).sum();
                c.weight.ln() - 0.5 * d2 / c.variance(level) - 0.5 * x.len() as f64 * c.variance(level).ln()
            })
            .collect();
        let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logs.iter().map(|l| (l - top).exp()).sum();
        let log = top + total.ln() - 0.5 * x.len() as f64 * (2.0 * PI).ln();
        (logs.iter().map(|l| (l - top).exp() / total).collect(), log)
    }

    /// The logarithm of the density of states at a level; that of the data at a clean one.
    pub fn log_density(&self, x: &[f64], level: &Level<f64>) -> f64 {
        self.shares(x, level).1
    }

    /// The derivative of the expected data along a direction `v` of the state. It is symmetric: the data's covariance
    /// given the state, times `alpha / sigma^2`.
    pub fn data_jvp(&self, x: &[f64], level: &Level<f64>, v: &[f64]) -> Vec<f64> {
        let a = level.alpha;
        let (shares, _) = self.shares(x, level);
        // Of each component: the mean of the data given the state, and the gradient of its log density.
        let parts: Vec<(Vec<f64>, Vec<f64>, f64)> = self
            .components
            .iter()
            .map(|c| {
                let keep = a * c.std * c.std / c.variance(level);
                let of = |i: usize| c.mean[i] + keep * (x[i] - a * c.mean[i]);
                let pull = |i: usize| -(x[i] - a * c.mean[i]) / c.variance(level);
                ((0..x.len()).map(of).collect(), (0..x.len()).map(pull).collect(), keep)
            })
            .collect();
        let along = |g: &[f64]| g.iter().zip(v).map(|(g, v)| g * v).sum::<f64>();
        let mean: f64 = parts.iter().zip(&shares).map(|((_, g, _), r)| r * along(g)).sum();
        let mut out = vec![0.0; x.len()];
        for ((data, g, keep), r) in parts.iter().zip(&shares) {
            let change = along(g) - mean;
            for i in 0..x.len() {
                out[i] += r * (keep * v[i] + change * data[i]);
            }
        }
        out
    }

    /// Expected data and noise of a state at a level.
    pub fn estimate(&self, x: &[f64], level: &Level<f64>) -> (Vec<f64>, Vec<f64>) {
        let (a, s) = (level.alpha, level.sigma);
        let (shares, _) = self.shares(x, level);
        let (mut x0, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for (c, r) in self.components.iter().zip(shares) {
            let var = c.variance(level);
            for i in 0..x.len() {
                let pull = (x[i] - a * c.mean[i]) / var;
                x0[i] += r * (c.mean[i] + a * c.std * c.std * pull);
                noise[i] += r * s * pull;
            }
        }
        (x0, noise)
    }

    /// A tree in the plane, of two classes (the boughs to the left and to the right) or one of them: fine branches of
    /// small Gaussians, each fork finer and lighter than the last. After the toy of Karras et al. ("Guiding a diffusion
    /// model with a bad version of itself", 2024, section 3), on which guidance shows what it does.
    pub fn tree(class: Option<bool>) -> Gmm {
        const FORKS: usize = 5;
        const BEADS: usize = 6;
        let mut components = vec![];
        let boughs = [(false, 0.75 * PI), (true, 0.25 * PI)];
        for (_, angle) in boughs.into_iter().filter(|(right, _)| class.is_none_or(|c| c == *right)) {
            let mut tips = vec![([0.0, -0.4], angle)];
            for fork in 0..FORKS {
                let length = 0.5 * 0.72f64.powi(fork as i32);
                let std = 0.02 * 0.8f64.powi(fork as i32);
                let mut next = vec![];
                for (at, angle) in tips {
                    let along = |u: f64| [at[0] + u * length * angle.cos(), at[1] + u * length * angle.sin()];
                    // A branch weighs as much as both it forks into.
                    let weight = 0.5f64.powi(fork as i32);
                    let bead = |i: usize| Component { weight, mean: along(i as f64 / BEADS as f64).to_vec(), std };
                    components.extend((1..=BEADS).map(bead));
                    next.extend([-0.42, 0.42].map(|turn| (along(1.0), angle + turn)));
                }
                tips = next;
            }
        }
        let total: f64 = components.iter().map(|c| c.weight).sum();
        components.iter_mut().for_each(|c| c.weight /= total);
        Gmm { components }
    }

    /// The mixture with noise of this deviation added: what a network has learnt that has not learnt it well.
    pub fn blurred(&self, std: f64) -> Gmm {
        let blurred = |c: &Component| Component { std: c.std.hypot(std), ..c.clone() };
        Gmm { components: self.components.iter().map(blurred).collect() }
    }

    /// Draws from the mixture, `[seeds, dim]`.
    pub fn draw(&self, seeds: &[u64]) -> Vec<f64> {
        let weights: Vec<f64> = self.components.iter().map(|c| c.weight).collect();
        let noise = SampleNoise::new(seeds, self.dim());
        let of = |(s, &seed): (usize, &u64)| {
            let mut uniforms = Uniforms::new(seed, streams::DATA);
            let c = &self.components[Resampling::Multinomial.parents(&weights, 1, &mut || uniforms.draw())[0]];
            c.mean.iter().zip(noise.at(s, 0)).map(|(m, z)| m + c.std * z).collect::<Vec<_>>()
        };
        seeds.iter().enumerate().flat_map(of).collect()
    }

    /// Mean and variance of each coordinate.
    pub fn moments(&self) -> (Vec<f64>, Vec<f64>) {
        let sum = |f: &dyn Fn(&Component, usize) -> f64, i: usize| {
            self.components.iter().map(|c| c.weight * f(c, i)).sum::<f64>()
        };
        let mean: Vec<f64> = (0..self.dim()).map(|i| sum(&|c, i| c.mean[i], i)).collect();
        let var = (0..self.dim()).map(|i| sum(&|c, i| c.std.powi(2) + c.mean[i].powi(2), i) - mean[i].powi(2));
        (mean.clone(), var.collect())
    }

    /// The mixture as a perfect network of a process: what it would output for this call. It has no labels: all
    /// branches are alike.
    pub fn network(&self, process: &Process, call: &NetworkCall<'_>) -> Result<Array> {
        let mut out = Vec::with_capacity(call.branches.len() * call.x.elems());
        for (s, x) in states(call, self.dim()).iter().enumerate() {
            let c = process.coefficients(&call.levels[s]);
            let (x0, n) = self.estimate(x, &call.levels[s]);
            out.extend(x0.iter().zip(&n).map(|(x0, n)| (c.p * x0 + c.q * n) as f32));
        }
        let mut dims = call.x.dims().to_vec();
        dims[0] *= call.branches.len();
        Ok(Array::f32(dims, &out.repeat(call.branches.len())))
    }

    /// The mixture as a network that has derivatives.
    pub fn model<'a>(&'a self, process: &'a Process) -> GmmModel<'a> {
        GmmModel { gmm: self, process }
    }
}

/// The states of a call, which sees them scaled.
fn states(call: &NetworkCall<'_>, dim: usize) -> Vec<Vec<f64>> {
    let scaled = call.x.to_f64_vec();
    scaled.chunks(dim).zip(call.input_scales).map(|(x, c)| x.iter().map(|x| x / c).collect()).collect()
}

/// A mixture as a [`Model`].
#[derive(Clone, Copy, Debug)]
pub struct GmmModel<'a> {
    gmm: &'a Gmm,
    process: &'a Process,
}

impl GmmModel<'_> {
    /// The output's derivative along a direction of its input, per sample. It is symmetric.
    fn derivative(&self, call: &NetworkCall<'_>, direction: &Array) -> Array {
        let dim = self.gmm.dim();
        let mut out = Vec::with_capacity(call.x.elems());
        for (s, (x, v)) in states(call, dim).iter().zip(direction.to_f64_vec().chunks(dim)).enumerate() {
            let level = &call.levels[s];
            let c = self.process.coefficients(level);
            let data = self.gmm.data_jvp(x, level, v);
            let output = |(v, d): (&f64, f64)| {
                let noise = (v - level.alpha * d) / level.sigma;
                ((c.p * d + c.q * noise) / call.input_scales[s]) as f32
            };
            out.extend(v.iter().zip(data).map(output));
        }
        Array::f32(call.x.dims(), &out)
    }
}

impl Model for GmmModel<'_> {
    fn forward(&mut self, call: &NetworkCall<'_>) -> Result<Array> {
        self.gmm.network(self.process, call)
    }

    fn jvp(&mut self, call: &NetworkCall<'_>, tangent: &Array) -> Result<(Array, Array)> {
        Ok((self.forward(call)?, self.derivative(call, tangent)))
    }

    fn vjp(&mut self, call: &NetworkCall<'_>, cotangent: &Array) -> Result<Array> {
        Ok(self.derivative(call, cotangent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture() -> Gmm {
        let c = |weight, x, y, std| Component { weight, mean: vec![x, y], std };
        Gmm { components: vec![c(0.5, 0.8, 0.2, 0.3), c(0.3, -0.6, 0.5, 0.25), c(0.2, -0.2, -0.9, 0.4)] }
    }

    #[test]
    fn noise_is_the_score_and_the_derivative_that_of_the_estimate() {
        let level = Level { time: 0.4, alpha: 0.8, sigma: 0.35, rates: None };
        let (gmm, x) = (mixture(), [0.1, 0.3]);
        let (_, noise) = gmm.estimate(&x, &level);
        for i in 0..2 {
            let at = |h: f64| {
                let mut moved = x;
                moved[i] += h;
                moved
            };
            let (up, down) = (at(1e-5), at(-1e-5));
            let score = (gmm.log_density(&up, &level) - gmm.log_density(&down, &level)) / 2e-5;
            assert!((score + noise[i] / level.sigma).abs() < 1e-7, "{score} {}", noise[i]);
            let mut v = [0.0; 2];
            v[i] = 1.0;
            let got = gmm.data_jvp(&x, &level, &v);
            let (up, down) = (gmm.estimate(&up, &level).0, gmm.estimate(&down, &level).0);
            for k in 0..2 {
                let want = (up[k] - down[k]) / 2e-5;
                assert!((got[k] - want).abs() < 1e-7, "{} {want}", got[k]);
            }
        }
    }

    #[test]
    fn densities_integrate_to_one() {
        let level = Level { time: 0.0, alpha: 1.0, sigma: 0.0, rates: None };
        let gmm = mixture();
        let at = |i: i32| i as f64 * 0.04;
        let cells = (-100..100).flat_map(|i| (-100..100).map(move |j| [at(i), at(j)]));
        let sum: f64 = cells.map(|x| gmm.log_density(&x, &level).exp() * 0.0016).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }
}
