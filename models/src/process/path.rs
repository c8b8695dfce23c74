//! Paths from data to noise: `x_t = alpha(t) x0 + sigma(t) n`, `n ~ N(0, I)`.

use super::real::Real;
use super::time::{Time, TimeDomain, Times};
use crate::{Error, Result};
use dnx_ir::Tensor;
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// Which mixture of data and noise a time stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Path {
    /// `alpha = 1 - t`, `sigma = t`.
    Linear,
    /// `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`.
    Cosine,
    /// Variance preserving with `beta(t) = beta_min + t (beta_max - beta_min)`:
    /// `ln alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, `sigma^2 = 1 - alpha^2`.
    Vp {
        /// At `t = 0`.
        beta_min: f64,
        /// At `t = 1`.
        beta_max: f64,
    },
    /// The drift of `vp` with less noise: `sigma = 1 - alpha^2` (Song et al., 2021, sub-VP).
    SubVp {
        /// At `t = 0`.
        beta_min: f64,
        /// At `t = 1`.
        beta_max: f64,
    },
    /// A cosine path between two angles and with its log-SNR shifted by `2 ln kappa`: `sigma / alpha = tan(angle) /
    /// kappa`, `alpha^2 + sigma^2 = 1`, the angle going from the first to the second.
    GeneralCosine {
        /// Angles at `t = 0` and `t = 1`, within `[0, pi / 2]`.
        angles: [f64; 2],
        /// Greater than 1: less noise.
        kappa: f64,
    },
    /// `alpha = cos t`, `sigma = sigma_data sin t`, `t` in `[0, pi / 2]` (Lu and Song, "Simplifying continuous-time
    /// consistency models", 2024).
    Trig {
        /// Standard deviation of the data, which the noise has too.
        sigma_data: f64,
    },
    /// `alpha = 1`, `sigma = t`: variance exploding, in EDM's parametrisation.
    Ve,
    /// A chain of steps with `alpha = sqrt(alpha_bar)`, `sigma = sqrt(1 - alpha_bar)`.
    Discrete(Chain),
}

/// The `alpha_bar` of each step of a discrete chain, with its two square roots.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    alpha: Vec<f64>,
    sigma: Vec<f64>,
}

/// Named schedules of `beta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Betas {
    /// 1e-4 to 0.02 in equal steps, times `1000 / steps`.
    Linear,
    /// `alpha_bar(u) = cos^2((u + 0.008) / 1.008 pi / 2)`, `beta` at most 0.999.
    Cosine,
    /// 0.00085 to 0.012 in equal steps of the square root.
    ScaledLinear,
}

impl Betas {
    /// `beta` of each step.
    pub fn betas(self, steps: usize) -> Vec<f64> {
        let n = steps as f64;
        let at = |i: usize| i as f64 / (n - 1.0).max(1.0);
        let lerp = |a: f64, b: f64, i: usize| a + (b - a) * at(i);
        match self {
            Betas::Linear => (0..steps).map(|i| lerp(1e-4, 0.02, i) * 1000.0 / n).collect(),
            Betas::Cosine => {
                let bar = |u: f64| ((u + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                (0..steps).map(|i| (1.0 - bar((i + 1) as f64 / n) / bar(i as f64 / n)).min(0.999)).collect()
            }
            Betas::ScaledLinear => (0..steps).map(|i| lerp(0.00085f64.sqrt(), 0.012f64.sqrt(), i).powi(2)).collect(),
        }
    }
}

impl Chain {
    /// The chain of these `beta`, each in `(0, 1)`.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn new(betas: &[f64]) -> Result<Chain> {
        if betas.is_empty() {
            return Err(Error::config("process.steps", "is 0; a chain has at least one step"));
        }
        let mut chain = Chain { alpha: vec![], sigma: vec![] };
        // ln alpha_bar: the first steps' 1 - alpha_bar is small and must not be a difference of large numbers.
        let mut log = 0.0;
        for (i, &beta) in betas.iter().enumerate() {
            if !(0.0 < beta && beta < 1.0) {
                return Err(Error::config("process.steps", format!("beta of step {i} is {beta}, not in (0, 1)")));
            }
            log += (-beta).ln_1p();
            chain.alpha.push((0.5 * log).exp());
            chain.sigma.push((-log.exp_m1()).sqrt());
        }
        Ok(chain)
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.alpha.len()
    }

    /// The same chain with nothing of the data left at its last step: `alpha` is shifted and scaled so that it ends at
    /// 0 and begins where it did (Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2023,
    /// algorithm 1). Its network cannot predict noise, which says nothing about the data there.
    pub fn zero_terminal(&self) -> Chain {
        let (first, last) = (self.alpha[0], self.alpha[self.steps() - 1]);
        if self.steps() == 1 {
            return self.clone();
        }
        let alpha: Vec<f64> = self.alpha.iter().map(|a| (a - last) * first / (first - last)).collect();
        let sigma = alpha.iter().map(|a| ((1.0 - a) * (1.0 + a)).sqrt()).collect();
        Chain { alpha, sigma }
    }

    /// `alpha_bar` of a step.
    pub fn alpha_bar(&self, step: usize) -> f64 {
        self.alpha[step].powi(2)
    }
}

/// A point on a path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level<R> {
    /// Time, in the path's unit.
    pub time: R,
    /// Share of data.
    pub alpha: R,
    /// Share of noise.
    pub sigma: R,
    /// Derivatives of `alpha` and `sigma` by time; discrete paths have none.
    pub rates: Option<(R, R)>,
}

impl Path {
    /// The name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Path::Linear => "linear",
            Path::Cosine => "cosine",
            Path::Vp { .. } => "vp",
            Path::SubVp { .. } => "sub_vp",
            Path::GeneralCosine { .. } => "general_cosine",
            Path::Trig { .. } => "trig",
            Path::Ve => "ve",
            Path::Discrete(_) => "discrete",
        }
    }

    /// What its time counts.
    pub fn domain(&self) -> TimeDomain {
        match self {
            Path::Linear | Path::Cosine | Path::Vp { .. } | Path::SubVp { .. } | Path::GeneralCosine { .. } => {
                TimeDomain::Unit
            }
            Path::Trig { .. } => TimeDomain::Angle,
            Path::Ve => TimeDomain::Sigma,
            Path::Discrete(chain) => TimeDomain::Step { count: chain.steps() },
        }
    }

    /// The formulas, once for host and graph.
    pub(super) fn at<R: Real>(&self, t: R) -> Level<R> {
        let (alpha, sigma, rates) = match self {
            Path::Linear => (-t + 1.0, t, Some((t.constant(-1.0), t.constant(1.0)))),
            Path::Cosine => {
                let (c, s) = ((t * FRAC_PI_2).cos(), (t * FRAC_PI_2).sin());
                (c, s, Some((-s * FRAC_PI_2, c * FRAC_PI_2)))
            }
            Path::SubVp { beta_min, beta_max } => {
                let (integral, beta) = vp_integral(t, *beta_min, *beta_max);
                let (alpha, sigma) = ((integral * -0.5).exp(), integral.one_minus_exp_neg());
                (alpha, sigma, Some((beta * alpha * -0.5, beta * alpha * alpha)))
            }
            Path::GeneralCosine { angles: [low, high], kappa } => {
                let angle = t * (high - low) + *low;
                let (c, s) = (angle.cos() * *kappa, angle.sin());
                let size2 = c * c + s * s;
                let (alpha, sigma) = (c / size2.sqrt(), s / size2.sqrt());
                // The angle of (alpha, sigma) turns with kappa / size^2 of the other's speed.
                let turn = t.constant(kappa * (high - low)) / size2;
                (alpha, sigma, Some((-sigma * turn, alpha * turn)))
            }
            Path::Trig { sigma_data } => {
                let (c, s) = (t.cos(), t.sin());
                (c, s * *sigma_data, Some((-s, c * *sigma_data)))
            }
            Path::Vp { beta_min, beta_max } => {
                let (integral, beta) = vp_integral(t, *beta_min, *beta_max);
                let (alpha, sigma) = ((integral * -0.5).exp(), integral.one_minus_exp_neg().sqrt());
                (alpha, sigma, Some((beta * alpha * -0.5, beta * alpha * alpha / sigma * 0.5)))
            }
            Path::Ve => (t.constant(1.0), t, Some((t.constant(0.0), t.constant(1.0)))),
            Path::Discrete(chain) => (t.lookup(&chain.alpha), t.lookup(&chain.sigma), None),
        };
        Level { time: t, alpha, sigma, rates }
    }

    /// The level at a time.
    ///
    /// # Errors
    /// If the time is of another domain.
    pub fn level(&self, time: Time) -> Result<Level<f64>> {
        if time.domain() != self.domain() {
            let (name, own) = (self.name(), self.domain());
            return Err(Error::Domain(format!("path {name} takes {own}, not {}", time.domain())));
        }
        Ok(self.at(time.value()))
    }

    /// The levels of a batch; building fails if the times are of another domain.
    pub fn levels<'g>(&self, times: Times<'g>) -> Level<Tensor<'g>> {
        if times.domain != self.domain() {
            let message = format!("path {} takes {}, not {}", self.name(), self.domain(), times.domain);
            times.values.graph().fail(message);
        }
        self.at(times.values)
    }

    /// The end of the path: data without noise.
    pub fn clean(&self) -> Level<f64> {
        let rates = match self {
            Path::Discrete(_) => None,
            path => path.at(0.0).rates,
        };
        Level { time: 0.0, alpha: 1.0, sigma: 0.0, rates }
    }

    /// The time at which `sigma / alpha` is `ratio`; of a chain the step that comes nearest.
    ///
    /// # Errors
    /// If the path does not reach that ratio.
    pub fn time_of_ratio(&self, ratio: f64) -> Result<Time> {
        Time::new(self.domain(), self.ratio_inverse(ratio))
    }

    /// The level at which `sigma / alpha` is `ratio`, once for host and graph; of a chain the step that comes nearest.
    pub fn level_of_ratio<R: Real>(&self, ratio: R) -> Level<R> {
        self.at(self.ratio_inverse(ratio))
    }

    fn ratio_inverse<R: Real>(&self, ratio: R) -> R {
        // With c = -2 ln alpha, c = t^2 slope / 2 + t beta_min, in the form that also holds for slope 0.
        let vp = |c: R, beta_min: f64, beta_max: f64| {
            c * 2.0 / ((c * (2.0 * (beta_max - beta_min)) + beta_min * beta_min).sqrt() + beta_min)
        };
        match self {
            Path::Linear => ratio / (ratio + 1.0),
            Path::Cosine => ratio.atan() / FRAC_PI_2,
            Path::Vp { beta_min, beta_max } => vp((ratio * ratio).ln_1p(), *beta_min, *beta_max),
            Path::SubVp { beta_min, beta_max } => {
                // alpha^2 + ratio alpha - 1 = 0; 1 - alpha^2 is taken as ratio alpha, which keeps small ratios.
                let alpha = ratio.constant(2.0) / ((ratio * ratio + 4.0).sqrt() + ratio);
                vp(-(-(ratio * alpha)).ln_1p(), *beta_min, *beta_max)
            }
            Path::GeneralCosine { angles: [low, high], kappa } => ((ratio * *kappa).atan() - *low) / (high - low),
            Path::Trig { sigma_data } => (ratio / *sigma_data).atan(),
            Path::Ve => ratio,
            Path::Discrete(chain) => {
                // Half way between neighbours in the logarithm.
                let log = |i: usize| (chain.sigma[i] / chain.alpha[i]).ln();
                let borders: Vec<f64> = (1..chain.steps()).map(|i| 0.5 * (log(i - 1) + log(i))).collect();
                ratio.ln().rank_in(&borders)
            }
        }
    }
}

/// The integral of `beta` from 0 to `t`, and `beta(t)`.
fn vp_integral<R: Real>(t: R, beta_min: f64, beta_max: f64) -> (R, R) {
    let slope = beta_max - beta_min;
    (t * t * (0.5 * slope) + t * beta_min, t * slope + beta_min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq as close;

    fn sampled() -> Vec<Path> {
        vec![
            Path::Linear,
            Path::Cosine,
            Path::Vp { beta_min: 0.1, beta_max: 20.0 },
            Path::SubVp { beta_min: 0.1, beta_max: 20.0 },
            Path::GeneralCosine { angles: [0.0, FRAC_PI_2], kappa: 1.0 },
            Path::GeneralCosine { angles: [0.01, 1.5], kappa: 2.5 },
            Path::Trig { sigma_data: 0.5 },
            Path::Ve,
        ]
    }

    #[test]
    fn paths_that_are_each_other_agree() {
        let general = Path::GeneralCosine { angles: [0.0, FRAC_PI_2], kappa: 1.0 };
        let shifted = Path::GeneralCosine { angles: [0.0, FRAC_PI_2], kappa: 4.0 };
        for t in [0.1, 0.5, 0.8] {
            let (cosine, own) = (Path::Cosine.at(t), general.at(t));
            close!(own.alpha, cosine.alpha, max_relative = 1e-12);
            close!(own.sigma, cosine.sigma, max_relative = 1e-12);
            // Log-SNR is shifted by 2 ln kappa.
            let (a, b) = (shifted.at(t), own);
            close!((a.alpha / a.sigma).ln() - (b.alpha / b.sigma).ln(), 4f64.ln(), max_relative = 1e-12);
            close!(a.alpha.hypot(a.sigma), 1.0, max_relative = 1e-12);
            let (vp, sub) = [false, true].map(|sub| at_beta(sub).at(t)).into();
            close!(sub.alpha, vp.alpha);
            close!(sub.sigma, 1.0 - vp.alpha * vp.alpha, max_relative = 1e-12);
            // g^2 = beta (1 - exp(-2 int beta)), from sigma' = -beta sigma / 2 + g^2 / (2 sigma).
            let (rates, beta) = (sub.rates.unwrap(), 0.1 + 19.9 * t);
            let g2 = 2.0 * sub.sigma * (rates.1 + 0.5 * beta * sub.sigma);
            close!(g2, beta * (1.0 - sub.alpha.powi(4)), max_relative = 1e-9);
        }
        // TrigFlow's last time of EDM's range.
        close!(Path::Trig { sigma_data: 0.5 }.time_of_ratio(80.0).unwrap().value(), 1.56454641, max_relative = 1e-8);
    }

    fn at_beta(sub: bool) -> Path {
        let (beta_min, beta_max) = (0.1, 20.0);
        if sub { Path::SubVp { beta_min, beta_max } } else { Path::Vp { beta_min, beta_max } }
    }

    #[test]
    fn golden_chains() {
        let chain = |b: Betas| Chain::new(&b.betas(1000)).unwrap();
        let linear = chain(Betas::Linear);
        for (i, want) in [(0, 0.9999), (499, 0.0785872429), (999, 4.03582977e-5)] {
            close!(linear.alpha_bar(i), want, max_relative = 1e-8);
        }
        let scaled = chain(Betas::ScaledLinear);
        for (i, want) in [(0, 0.99915), (499, 0.27766965), (999, 0.0046600985)] {
            close!(scaled.alpha_bar(i), want, max_relative = 1e-7);
        }
        close!(scaled.sigma[999] / scaled.alpha[999], 14.6146412, max_relative = 1e-8);
        let betas = Betas::Cosine.betas(1000);
        for (i, want) in [(0, 4.12842248e-5), (499, 0.00314588623), (999, 0.999)] {
            close!(betas[i], want, max_relative = 1e-8);
        }
        let cosine = chain(Betas::Cosine);
        close!(cosine.alpha_bar(499), 0.493843590, max_relative = 1e-8);
        close!(cosine.alpha_bar(999), 2.4288e-9, max_relative = 1e-4);
    }

    #[test]
    fn chains_of_zero_terminal_snr() {
        let chain = Chain::new(&Betas::ScaledLinear.betas(1000)).unwrap().zero_terminal();
        for (i, want) in [(0, 0.99957491), (499, 0.49229987), (999, 0.0)] {
            close!(chain.alpha[i], want, max_relative = 1e-7);
            close!(chain.alpha[i].hypot(chain.sigma[i]), 1.0, max_relative = 1e-12);
        }
        assert_eq!(Chain::new(&[0.1]).unwrap().zero_terminal(), Chain::new(&[0.1]).unwrap());
    }

    #[test]
    fn golden_vp() {
        let vp = Path::Vp { beta_min: 0.1, beta_max: 20.0 };
        for (t, want) in [(1e-5, 0.00100049763), (1e-3, 0.0104859928), (0.5, 3.41291831), (1.0, 152.166970)] {
            let level = vp.level(Time::unit(t).unwrap()).unwrap();
            close!(level.sigma / level.alpha, want, max_relative = 1e-8);
        }
        // The transport convention runs backwards: its alpha at data time 0 is ours at t = 1.
        for (t, want) in [(1.0, 0.00657158649), (0.5, 0.281182881), (0.0, 1.0)] {
            close!(vp.level(Time::unit(t).unwrap()).unwrap().alpha, want, max_relative = 1e-8);
        }
    }

    #[test]
    fn rates_are_derivatives() {
        for path in sampled() {
            for t in [0.1, 0.37, 0.8] {
                let at = |t: f64| path.at(t);
                let h = 1e-5;
                let (a, s) = at(t).rates.unwrap();
                close!(a, (at(t + h).alpha - at(t - h).alpha) / (2.0 * h), max_relative = 1e-6, epsilon = 1e-9);
                close!(s, (at(t + h).sigma - at(t - h).sigma) / (2.0 * h), max_relative = 1e-6);
            }
        }
    }

    #[test]
    fn ratios_invert() {
        for path in sampled().into_iter().chain([Path::Vp { beta_min: 2.0, beta_max: 2.0 }]) {
            for t in [0.05, 0.5, 0.95] {
                let level = path.at::<f64>(t);
                close!(path.time_of_ratio(level.sigma / level.alpha).unwrap().value(), t, max_relative = 1e-9);
            }
        }
        let chain = Path::Discrete(Chain::new(&Betas::Linear.betas(100)).unwrap());
        let level = chain.at(42.0);
        assert_eq!(chain.time_of_ratio(level.sigma / level.alpha).unwrap().value(), 42.0);
        assert!(Path::Linear.time_of_ratio(-2.0).is_err());
    }

    #[test]
    fn times_of_another_unit_are_refused() {
        let e = Path::Linear.level(Time::sigma(0.3).unwrap()).unwrap_err().to_string();
        assert_eq!(e, "path linear takes t in [0, 1], not sigma");
        assert!(Time::unit(1.5).is_err() && Time::sigma(-1.0).is_err() && Time::step(1000, 1000).is_err());
        assert!(Time::unit(f64::NAN).is_err());
    }

    #[test]
    fn bad_chains_are_refused() {
        assert!(Chain::new(&[]).is_err());
        assert!(Chain::new(&[0.1, 1.0]).unwrap_err().to_string().contains("step 1"));
    }
}
