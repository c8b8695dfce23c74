//! Resampling of weighted particles, and the random numbers of particle methods.

use crate::streams;
use dnx_ir::threefry::{Key, bits, fold_in, key};
use serde::{Deserialize, Serialize};

/// How the number of children of each particle is drawn. All are unbiased: a particle of weight `w` among `n` has
/// `n w` children on average (Douc, Cappé and Moulines, "Comparison of resampling schemes", 2005).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// One uniform number shifts `n` evenly spaced points: numbers of children are within 1 of `n w`.
    #[default]
    Systematic,
    /// One uniform number in each of `n` equal cells.
    Stratified,
    /// `n` independent draws.
    Multinomial,
    /// `floor(n w)` children surely, the rest by independent draws.
    Residual,
}

impl Resampling {
    /// All schemes.
    pub const ALL: [Resampling; 4] =
        [Resampling::Systematic, Resampling::Stratified, Resampling::Multinomial, Resampling::Residual];

    /// The parents of `count` children, in ascending order. `weights` are not negative and sum to a positive number;
    /// `uniform` draws from `[0, 1)`.
    pub fn parents(self, weights: &[f64], count: usize, uniform: &mut dyn FnMut() -> f64) -> Vec<usize> {
        let total: f64 = weights.iter().sum();
        let n = count as f64;
        match self {
            Resampling::Systematic => {
                let shift = uniform();
                choose(weights, total, (0..count).map(|i| (i as f64 + shift) / n))
            }
            Resampling::Stratified => {
                let points: Vec<f64> = (0..count).map(|i| (i as f64 + uniform()) / n).collect();
                choose(weights, total, points.into_iter())
            }
            Resampling::Multinomial => {
                let mut points: Vec<f64> = (0..count).map(|_| uniform()).collect();
                points.sort_by(f64::total_cmp);
                choose(weights, total, points.into_iter())
            }
            Resampling::Residual => {
                let sure: Vec<f64> = weights.iter().map(|w| (n * w / total).floor()).collect();
                let rest: Vec<f64> = weights.iter().zip(&sure).map(|(w, s)| (n * w / total - s).max(0.0)).collect();
                let mut parents: Vec<usize> =
                    sure.iter().enumerate().flat_map(|(i, s)| std::iter::repeat_n(i, *s as usize)).collect();
                let open = count.saturating_sub(parents.len());
                if open > 0 && rest.iter().sum::<f64>() > 0.0 {
                    parents.extend(Resampling::Multinomial.parents(&rest, open, uniform));
                }
                parents.sort_unstable();
                parents
            }
        }
    }
}

/// For each of ascending points in `[0, 1)` the particle in whose share of the total it lies.
fn choose(weights: &[f64], total: f64, points: impl Iterator<Item = f64>) -> Vec<usize> {
    let last = weights.iter().rposition(|w| *w > 0.0).unwrap_or(0);
    let (mut at, mut passed) = (0, weights[0]);
    points
        .map(|p| {
            while p * total >= passed && at < last {
                at += 1;
                passed += weights[at];
            }
            at
        })
        .collect()
}

/// Uniform numbers in `(0, 1)` of a seed, one after another.
#[derive(Clone, Debug)]
pub struct Uniforms {
    key: Key,
    next: u64,
}

impl Uniforms {
    /// Those of a seed and stream.
    pub fn new(seed: u64, stream: u32) -> Uniforms {
        Uniforms { key: fold_in(key(seed), stream), next: 0 }
    }

    /// Those that decide resampling.
    pub fn resampling(seed: u64) -> Uniforms {
        Uniforms::new(seed, streams::RESAMPLE)
    }

    /// The next number.
    pub fn draw(&mut self) -> f64 {
        self.next += 1;
        (bits(self.key, self.next - 1) as f64 + 0.5) / 2f64.powi(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: [f64; 5] = [0.05, 0.4, 0.0, 0.32, 0.23];

    fn counts(parents: &[usize]) -> [f64; 5] {
        let mut counts = [0.0; 5];
        parents.iter().for_each(|&p| counts[p] += 1.0);
        counts
    }

    #[test]
    fn every_scheme_is_unbiased() {
        const RUNS: usize = 20_000;
        for scheme in Resampling::ALL {
            let mut uniforms = Uniforms::resampling(3);
            let (mut sum, mut squares) = ([0.0; 5], [0.0; 5]);
            for _ in 0..RUNS {
                let parents = scheme.parents(&WEIGHTS, 7, &mut || uniforms.draw());
                assert_eq!(parents.len(), 7);
                for (i, c) in counts(&parents).into_iter().enumerate() {
                    sum[i] += c;
                    squares[i] += c * c;
                }
            }
            for i in 0..5 {
                let (mean, want) = (sum[i] / RUNS as f64, 7.0 * WEIGHTS[i]);
                let error = ((squares[i] / RUNS as f64 - mean * mean) / RUNS as f64).sqrt();
                assert!((mean - want).abs() <= 4.0 * error + 1e-12, "{scheme:?}: {mean} children of {i}, not {want}");
            }
        }
    }

    #[test]
    fn spread_differs_as_it_should() {
        // Variance of the number of children of the particle with n w = 2.8.
        let variance = |scheme: Resampling| {
            let mut uniforms = Uniforms::resampling(4);
            let mut drawn = || counts(&scheme.parents(&WEIGHTS, 7, &mut || uniforms.draw()))[1];
            let v: Vec<f64> = (0..4000).map(|_| drawn()).collect();
            let mean = v.iter().sum::<f64>() / 4000.0;
            v.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 4000.0
        };
        // n w (1 - w) and, of systematic, that of a coin for the 0.8 left over.
        assert!((variance(Resampling::Multinomial) - 7.0 * 0.4 * 0.6).abs() < 0.12);
        assert!((variance(Resampling::Systematic) - 0.8 * 0.2).abs() < 0.02);
        let (stratified, residual) = (variance(Resampling::Stratified), variance(Resampling::Residual));
        assert!(stratified < 0.5 && residual < 1.0, "{stratified} {residual}");
    }

    #[test]
    fn systematic_counts_are_within_one() {
        let mut uniforms = Uniforms::resampling(5);
        for _ in 0..2000 {
            let weights: Vec<f64> = (0..9).map(|_| uniforms.draw().powi(3)).collect();
            let total: f64 = weights.iter().sum();
            let parents = Resampling::Systematic.parents(&weights, 20, &mut || uniforms.draw());
            for (i, w) in weights.iter().enumerate() {
                let count = parents.iter().filter(|p| **p == i).count() as f64;
                assert!((count - 20.0 * w / total).abs() < 1.0, "{count} children for {}", 20.0 * w / total);
            }
        }
    }

    #[test]
    fn what_weighs_nothing_has_no_children() {
        for scheme in Resampling::ALL {
            for u in [0.0, 0.5, 1.0 - f64::EPSILON] {
                let parents = scheme.parents(&[0.0, 0.3, 0.0, 0.7, 0.0], 6, &mut || u);
                assert!(parents.iter().all(|p| [1, 3].contains(p)), "{scheme:?} {u}: {parents:?}");
                assert_eq!(scheme.parents(&[0.0, 2.0, 0.0], 4, &mut || u), [1; 4]);
            }
        }
    }
}
