//! Terms of the score: what pulls samples toward a label, a measurement or a reward.
//!
//! A sampler follows the score of `p(x_t)`; with `grad log p(y | x_t)` added it follows that of `p(x_t | y)`. A
//! classifier that knows noisy states gives the term itself ([`Classifier`]). A likelihood of clean data gives it
//! through the network: a [`Twist`] stands for `p(y | x_t)` as a function of the estimated data, and [`Twisted`]
//! pulls its gradient back to the state.

use super::{Denoiser, Estimate};
use crate::process::{Level, Process};
use crate::{Error, Result};

/// A term added to the score.
pub trait ScoreTerm {
    /// Adds the term's gradient by the states `x` `[B, ..]` at their levels to `score`. `estimate` is that of the
    /// network and its guidance alone.
    fn add(
        &mut self,
        denoiser: &mut Denoiser<'_>,
        x: &[f64],
        levels: &[Level<f64>],
        estimate: &Estimate,
        score: &mut [f64],
    ) -> Result<()>;
}

/// Classifier guidance (Dhariwal and Nichol, "Diffusion models beat GANs", 2021): `scale grad log p(y | x_t)` of a
/// classifier of noisy states.
pub struct Classifier<F> {
    /// The scale; 1 samples the posterior.
    pub scale: f64,
    /// The gradient of `log p(y | x_t)` by the states `[B, ..]`, given their levels.
    pub gradient: F,
}

impl<F: FnMut(&[f64], &[Level<f64>]) -> Result<Vec<f64>>> ScoreTerm for Classifier<F> {
    fn add(
        &mut self,
        _: &mut Denoiser<'_>,
        x: &[f64],
        levels: &[Level<f64>],
        _: &Estimate,
        score: &mut [f64],
    ) -> Result<()> {
        let gradient = (self.gradient)(x, levels)?;
        if gradient.len() != x.len() {
            let (got, want) = (gradient.len(), x.len());
            return Err(Error::Domain(format!("the classifier gave a gradient of {got} numbers for {want}")));
        }
        score.iter_mut().zip(gradient).for_each(|(s, g)| *s += self.scale * g);
        Ok(())
    }
}

/// An approximate `p(y | x_t)` as a function of one sample's estimated data. On clean data it must be exact.
pub trait Twist {
    /// `log p(y | x_t)`.
    fn log(&self, process: &Process, level: &Level<f64>, x0: &[f64]) -> f64;

    /// Its gradient by the estimated data.
    fn gradient(&self, process: &Process, level: &Level<f64>, x0: &[f64]) -> Vec<f64>;
}

/// The gradient by the states `[B, ..]` of a twist, through the network.
pub(super) fn twist_gradient(
    twist: &dyn Twist,
    denoiser: &mut Denoiser<'_>,
    x: &[f64],
    levels: &[Level<f64>],
    estimate: &Estimate,
) -> Result<Vec<f64>> {
    let process = denoiser.process();
    let each = x.len() / levels.len();
    let of = |(x0, level)| twist.gradient(process, level, x0);
    let cotangent: Vec<f64> = estimate.x0.chunks(each).zip(levels).flat_map(of).collect();
    denoiser.pull_back(x, levels, &cotangent)
}

/// A twist as a term of the score. With a [`Measurement`] this is pseudoinverse guidance (Song et al., 2023); with a
/// reward, its gradient guidance.
pub struct Twisted<T>(pub T);

impl<T: Twist> ScoreTerm for Twisted<T> {
    fn add(
        &mut self,
        denoiser: &mut Denoiser<'_>,
        x: &[f64],
        levels: &[Level<f64>],
        estimate: &Estimate,
        score: &mut [f64],
    ) -> Result<()> {
        let gradient = twist_gradient(&self.0, denoiser, x, levels, estimate)?;
        score.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
        Ok(())
    }
}

/// What is measured of a sample's elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    /// The elements where it is true.
    Mask(Vec<bool>),
    /// Rows of weights over the elements.
    Matrix(Vec<Vec<f64>>),
    /// Means of boxes of `factor` by `factor` pixels of pictures `dims`, `[H, W, C]`.
    Boxes {
        /// Dims of a picture, whose sides `factor` divides.
        dims: [usize; 3],
        /// Side of a box.
        factor: usize,
    },
}

impl Operator {
    /// `A x`.
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        match self {
            Operator::Mask(mask) => x.iter().zip(mask).filter(|(_, m)| **m).map(|(x, _)| *x).collect(),
            Operator::Matrix(rows) => rows.iter().map(|r| dot(r, x)).collect(),
            Operator::Boxes { dims, factor } => {
                let mut means = vec![0.0; self.elems() / (factor * factor)];
                (0..x.len()).for_each(|i| means[box_of(i, *dims, *factor)] += x[i] / (factor * factor) as f64);
                means
            }
        }
    }

    /// `A^T y`, of `elems` elements.
    pub fn transpose(&self, y: &[f64], elems: usize) -> Vec<f64> {
        match self {
            Operator::Mask(mask) => {
                let mut y = y.iter();
                mask.iter().map(|m| if *m { y.next().copied().unwrap_or(0.0) } else { 0.0 }).collect()
            }
            Operator::Matrix(rows) => (0..elems).map(|i| rows.iter().zip(y).map(|(row, y)| row[i] * y).sum()).collect(),
            Operator::Boxes { dims, factor } => {
                (0..elems).map(|i| y[box_of(i, *dims, *factor)] / (factor * factor) as f64).collect()
            }
        }
    }

    /// `A A^T`.
    fn gram(&self) -> Gram {
        match self {
            Operator::Mask(_) => Gram::Diagonal(1.0),
            Operator::Boxes { factor, .. } => Gram::Diagonal(1.0 / (factor * factor) as f64),
            Operator::Matrix(rows) => {
                Gram::Full(rows.iter().map(|a| rows.iter().map(|b| dot(a, b)).collect()).collect())
            }
        }
    }

    /// Refuses boxes that do not fill the picture.
    fn check(&self) -> Result<()> {
        match *self {
            Operator::Boxes { dims: [height, width, _], factor }
                if factor == 0 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) =>
            {
                let message = format!("boxes of {factor} by {factor} do not fill a picture of {height} by {width}");
                Err(Error::Domain(message))
            }
            Operator::Boxes { .. } | Operator::Mask(_) | Operator::Matrix(_) => Ok(()),
        }
    }

    /// Elements of a sample.
    fn elems(&self) -> usize {
        match self {
            Operator::Mask(mask) => mask.len(),
            Operator::Matrix(rows) => rows.first().map_or(0, Vec::len),
            Operator::Boxes { dims, .. } => dims.iter().product(),
        }
    }
}

/// `A A^T`: a number times the identity, or a matrix.
enum Gram {
    Diagonal(f64),
    Full(Vec<Vec<f64>>),
}

/// The number of the box in which element `i` of a picture lies: boxes are in the order of a smaller picture's elements.
fn box_of(i: usize, [_, width, channels]: [usize; 3], factor: usize) -> usize {
    let (y, x, c) = (i / channels / width, i / channels % width, i % channels);
    (y / factor * (width / factor) + x / factor) * channels + c
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A measurement `y = A x0 + std e` of clean data with Gaussian error.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    operator: Operator,
    y: Vec<f64>,
    std: f64,
}

impl Measurement {
    /// What `operator` measures of a sample, taken to have errors of this standard deviation.
    ///
    /// # Errors
    /// As [`Measurement::new`].
    pub fn of(operator: Operator, sample: &[f64], std: f64) -> Result<Measurement> {
        operator.check()?;
        if operator.elems() != sample.len() {
            let (wanted, given) = (operator.elems(), sample.len());
            return Err(Error::Domain(format!("the operator measures samples of {wanted} numbers, not of {given}")));
        }
        let y = operator.apply(sample);
        Measurement::new(operator, y, std)
    }

    /// What `operator` measured, with errors of this standard deviation.
    ///
    /// # Errors
    /// If the operator does not give as many numbers, or the deviation is not positive.
    pub fn new(operator: Operator, y: Vec<f64>, std: f64) -> Result<Measurement> {
        operator.check()?;
        let rows = operator.apply(&vec![0.0; operator.elems()]).len();
        if rows != y.len() || rows == 0 {
            return Err(Error::Domain(format!("the operator measures {rows} numbers, {} were given", y.len())));
        }
        if !(std > 0.0) {
            return Err(Error::Domain(format!("the deviation of a measurement is {std}; it must be positive")));
        }
        Ok(Measurement { operator, y, std })
    }

    /// `y - A x0` of one sample.
    pub fn residual(&self, x0: &[f64]) -> Vec<f64> {
        self.operator.apply(x0).iter().zip(&self.y).map(|(a, y)| y - a).collect()
    }

    /// `A^T r`.
    pub fn transpose(&self, r: &[f64], elems: usize) -> Vec<f64> {
        self.operator.transpose(r, elems)
    }

    /// The residual, what `A C A^T + std^2` divides it to, and the logarithm of that matrix's determinant, where `C`
    /// is the variance that data of the process's own deviation still has at this level.
    fn whitened(&self, process: &Process, level: &Level<f64>, x0: &[f64]) -> (Vec<f64>, Vec<f64>, f64) {
        let (data, sigma) = (process.sigma_data.powi(2), level.sigma.powi(2));
        let open = if sigma > 0.0 { data * sigma / (level.alpha.powi(2) * data + sigma) } else { 0.0 };
        let r = self.residual(x0);
        let mut covariance = match self.operator.gram() {
            Gram::Diagonal(gram) => {
                let variance = open * gram + self.std.powi(2);
                let solved = r.iter().map(|r| r / variance).collect();
                let log = r.len() as f64 * variance.ln();
                return (r, solved, log);
            }
            Gram::Full(gram) => gram,
        };
        for (i, row) in covariance.iter_mut().enumerate() {
            row.iter_mut().for_each(|c| *c *= open);
            row[i] += self.std.powi(2);
        }
        let (solved, log) = solve(covariance, r.clone());
        (r, solved, log)
    }
}

/// The solution of a symmetric positive definite system and the logarithm of its determinant, by elimination.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> (Vec<f64>, f64) {
    let n = b.len();
    let mut log = 0.0;
    for i in 0..n {
        log += a[i][i].ln();
        for j in i + 1..n {
            let factor = a[j][i] / a[i][i];
            for k in i..n {
                a[j][k] -= factor * a[i][k];
            }
            b[j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let rest: f64 = (i + 1..n).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - rest) / a[i][i];
    }
    (b, log)
}

impl Twist for Measurement {
    fn log(&self, process: &Process, level: &Level<f64>, x0: &[f64]) -> f64 {
        let (r, solved, log) = self.whitened(process, level, x0);
        -0.5 * (dot(&r, &solved) + log + r.len() as f64 * (2.0 * std::f64::consts::PI).ln())
    }

    fn gradient(&self, process: &Process, level: &Level<f64>, x0: &[f64]) -> Vec<f64> {
        self.transpose(&self.whitened(process, level, x0).1, x0.len())
    }
}

/// A reward as a twist, `strength r(x0)`: a function that gives the reward of one sample and its gradient.
pub struct Reward<F> {
    /// What the reward is multiplied with.
    pub strength: f64,
    /// The reward and its gradient.
    pub reward: F,
}

impl<F: Fn(&[f64]) -> (f64, Vec<f64>)> Twist for Reward<F> {
    fn log(&self, _: &Process, _: &Level<f64>, x0: &[f64]) -> f64 {
        self.strength * (self.reward)(x0).0
    }

    fn gradient(&self, _: &Process, _: &Level<f64>, x0: &[f64]) -> Vec<f64> {
        (self.reward)(x0).1.into_iter().map(|g| self.strength * g).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Preset, Time};

    #[test]
    fn gradients_of_measurements_are_those_of_their_logarithm() {
        let p = Preset::Sit.process();
        let matrix = Operator::Matrix(vec![vec![1.0, 0.5, -0.2], vec![0.1, -1.0, 0.7]]);
        for operator in [Operator::Mask(vec![true, false, true]), matrix] {
            let m = Measurement::new(operator, vec![0.4, -1.1], 0.3).unwrap();
            for t in [0.0, 0.2, 0.9, 1.0] {
                let level = p.level(Time::unit(t).unwrap()).unwrap();
                let x0 = [0.2, -0.7, 1.3];
                let gradient = m.gradient(&p, &level, &x0);
                for i in 0..3 {
                    let at = |h: f64| {
                        let mut x = x0;
                        x[i] += h;
                        m.log(&p, &level, &x)
                    };
                    let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                    assert!((gradient[i] - difference).abs() < 1e-6, "{t}: {} {difference}", gradient[i]);
                }
            }
        }
    }

    /// Means of boxes are the matrix with those rows.
    #[test]
    fn boxes_are_a_matrix() {
        let (dims, factor) = ([4, 6, 2], 2);
        let boxes = Operator::Boxes { dims, factor };
        let row = |k: usize| (0..48).map(|i| if box_of(i, dims, factor) == k { 0.25 } else { 0.0 }).collect();
        let matrix = Operator::Matrix((0..12).map(row).collect());
        let x: Vec<f64> = (0..48).map(|i| (i as f64 * 0.7).sin()).collect();
        // The second box of the first row holds columns 2 and 3 of rows 0 and 1; this is its second channel.
        assert!((boxes.apply(&x)[3] - (x[5] + x[7] + x[17] + x[19]) / 4.0).abs() < 1e-12);
        let y: Vec<f64> = (0..12).map(|i| (i as f64).cos()).collect();
        let p = Preset::Sit.process();
        let level = p.level(Time::unit(0.4).unwrap()).unwrap();
        let [a, b] = [boxes, matrix].map(|o| Measurement::new(o, y.clone(), 0.3).unwrap());
        assert!((a.log(&p, &level, &x) - b.log(&p, &level, &x)).abs() < 1e-9);
        for (a, b) in a.gradient(&p, &level, &x).iter().zip(b.gradient(&p, &level, &x)) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
        let e = Measurement::new(Operator::Boxes { dims, factor: 3 }, y, 0.3).unwrap_err().to_string();
        assert!(e.contains("3 by 3"), "{e}");
    }

    /// On a standard normal the density of a measurement integrates to one, whatever the level.
    #[test]
    fn measurements_are_densities() {
        let p = Preset::Sit.process();
        let level = p.level(Time::unit(0.6).unwrap()).unwrap();
        let density = |y: f64| {
            let operator = Operator::Matrix(vec![vec![0.6, -0.8]]);
            Measurement::new(operator, vec![y], 0.2).unwrap().log(&p, &level, &[0.3, 0.1]).exp()
        };
        let sum: f64 = (-400..=400).map(|i| density(i as f64 * 0.01) * 0.01).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn measurements_that_do_not_fit_are_refused() {
        let mask = Operator::Mask(vec![true, false]);
        assert!(Measurement::new(mask.clone(), vec![1.0, 2.0], 0.1).unwrap_err().to_string().contains("1 numbers"));
        assert!(Measurement::new(mask, vec![1.0], 0.0).unwrap_err().to_string().contains("positive"));
    }
}
