//! A mixture of isotropic Gaussians, whose score and denoiser are known in closed form at every noise level: the
//! oracle of sampler tests, and a network that needs no training.

use crate::process::Level;
use crate::sample::NetworkCall;
use crate::{Result, process::Process};
use dnx_ir::Array;

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

    /// Expected data and noise of a state at a level.
    pub fn estimate(&self, x: &[f64], level: &Level<f64>) -> (Vec<f64>, Vec<f64>) {
        let (a, s) = (level.alpha, level.sigma);
        let variance = |c: &Component| (a * c.std).powi(2) + s * s;
        let logs: Vec<f64> = self
            .components
            .iter()
            .map(|c| {
                let d2: f64 = x.iter().zip(&c.mean).map(|(x, m)| (x - a * m).powi(2)).sum();
                c.weight.ln() - 0.5 * d2 / variance(c) - 0.5 * x.len() as f64 * variance(c).ln()
            })
            .collect();
        let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logs.iter().map(|l| (l - top).exp()).sum();
        let (mut x0, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for (c, log) in self.components.iter().zip(&logs) {
            let (r, var) = ((log - top).exp() / total, variance(c));
            for i in 0..x.len() {
                let pull = (x[i] - a * c.mean[i]) / var;
                x0[i] += r * (c.mean[i] + a * c.std * c.std * pull);
                noise[i] += r * s * pull;
            }
        }
        (x0, noise)
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

    /// The mixture as a perfect network of a process: what it would output for this call.
    pub fn network(&self, process: &Process, call: &NetworkCall<'_>) -> Result<Array> {
        let c = process.coefficients(&call.level);
        let mut out = Vec::with_capacity(call.x.elems());
        for x in call.x.to_f64_vec().chunks(self.dim()) {
            let x: Vec<f64> = x.iter().map(|x| x / call.input_scale).collect();
            let (x0, n) = self.estimate(&x, &call.level);
            out.extend(x0.iter().zip(&n).map(|(x0, n)| (c.p * x0 + c.q * n) as f32));
        }
        Ok(Array::f32(call.x.dims(), &out))
    }
}
