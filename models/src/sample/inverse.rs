//! `[sample.inverse]`: samples that agree with what was measured of one, by name. The measurement is of some of its
//! elements, or of the means of its boxes; all methods aim at `p(x0 | y)` with Gaussian errors of `y`.

use super::{
    Denoiser, Dps, Grid, Measurement, Noise, Operator, Potential, Resampling, SampleConfig, Sampler, SamplerKind, Smc,
    Steering, Twist, Twisted, sample, steer, twisted,
};
use crate::process::Level;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a measurement acts on sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InverseMethod {
    /// Each step's result is moved along the gradient of what the estimate leaves of the measurement.
    Dps,
    /// The gradient of the measurement's likelihood is added to the score (pseudoinverse guidance).
    Pinv,
    /// Particles that are proposed with that gradient and weighted so that the posterior is right (twisted diffusion
    /// sampler).
    Tds,
    /// Particles of the sampler that are chosen by the likelihood of their estimates (Feynman-Kac steering).
    Steer,
}

/// A method, the keys that it reads, and one line about it.
pub const INVERSES: &[(InverseMethod, &str, &[&str], &str)] = &[
    (InverseMethod::Dps, "dps", &["step"], "moves each step along the gradient of the misfit (DPS)"),
    (InverseMethod::Pinv, "pinv", &["std"], "adds the likelihood's gradient to the score (pseudoinverse guidance)"),
    (
        InverseMethod::Tds,
        "tds",
        &["std", "particles", "resampling", "threshold"],
        "particles proposed with that gradient, exact with many (twisted diffusion sampler)",
    ),
    (
        InverseMethod::Steer,
        "steer",
        &["std", "particles", "resampling", "threshold", "potential"],
        "particles chosen by the likelihood, without gradients (Feynman-Kac steering)",
    ),
];

/// How samples are made to agree with a measurement. Keys that are absent are the method's usual ones; a key that it
/// does not read is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inverse {
    /// The method.
    pub method: InverseMethod,
    /// Side of the boxes whose means are measured; absent: the elements that a mask keeps are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downsample: Option<usize>,
    /// Deviation of the measurement's errors, in the data's scale; 0.1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// Step of `dps`; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<f64>,
    /// Particles of a sample; 8 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub particles: Option<usize>,
    /// How children are drawn; `systematic` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resampling: Option<Resampling>,
    /// Share of the particles below which their effective number leads to children; 0.5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// What `steer` makes of likelihoods so far; `difference` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub potential: Option<Potential>,
}

impl InverseMethod {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> &'static (InverseMethod, &'static str, &'static [&'static str], &'static str) {
        INVERSES.iter().find(|row| row.0 == self).expect("every method has a row")
    }
}

impl Inverse {
    /// Particles of a sample: 1 of methods without.
    pub fn particles(&self) -> usize {
        match self.method {
            InverseMethod::Dps | InverseMethod::Pinv => 1,
            InverseMethod::Tds | InverseMethod::Steer => self.particles.unwrap_or(8),
        }
    }

    /// Refuses keys that are not read, numbers that make no sense, and samplers that the method cannot use.
    pub(super) fn check(&self, config: &SampleConfig, sampler: &dyn Sampler) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.inverse.{key}"), message));
        let given = [
            ("std", self.std.is_some()),
            ("step", self.step.is_some()),
            ("particles", self.particles.is_some()),
            ("resampling", self.resampling.is_some()),
            ("threshold", self.threshold.is_some()),
            ("potential", self.potential.is_some()),
        ];
        let (_, name, keys, _) = self.method.row();
        if let Some((key, _)) = given.iter().find(|(key, given)| *given && !keys.contains(key)) {
            let readers: Vec<&str> = INVERSES.iter().filter(|r| r.2.contains(key)).map(|r| r.1).collect();
            return bad(key, format!("is read only by {}; the method is {name}", readers.join(", ")));
        }
        if self.particles == Some(0) {
            return bad("particles", "is 0; there is at least one".into());
        }
        if self.downsample == Some(0) {
            return bad("downsample", "is 0; a box has at least one pixel".into());
        }
        for (key, value) in [("std", self.std), ("step", self.step)] {
            if let Some(value) = value
                && !(value > 0.0 && value.is_finite())
            {
                return bad(key, format!("is {value}; it must be positive"));
            }
        }
        if let Some(threshold) = self.threshold
            && !(0.0..=1.0).contains(&threshold)
        {
            return bad("threshold", format!("is {threshold}; it is a share of the particles"));
        }
        let kind = config.sampler.info().name;
        if config.forcing.is_some() {
            return bad("method", format!("{name} wants all of a sample at one level; leave forcing out"));
        }
        match self.method {
            InverseMethod::Tds if sampler.gaussian().is_none() => {
                let message = format!(
                    "tds weighs Gaussian steps, which {kind} has not; take ddpm with variance small or large, or ddim \
                     with eta above 0"
                );
                bad("method", message)
            }
            InverseMethod::Steer if !draws(config) => {
                let message = format!(
                    "steer needs children that part again, and {kind} draws no noise; take ddpm, euler_ancestral, \
                     euler_maruyama, or ddim with eta above 0"
                );
                bad("method", message)
            }
            InverseMethod::Dps | InverseMethod::Pinv | InverseMethod::Tds | InverseMethod::Steer => Ok(()),
        }
    }

    /// What is measured of a sample `init` of these dims: its boxes, or the elements that are kept.
    ///
    /// # Errors
    /// If there is no mask and no box, or boxes do not fit.
    pub fn measurement(&self, init: &[f64], dims: &[usize], keep: Option<&[bool]>) -> Result<Measurement> {
        let bad = |message: &str| Err(Error::config("sample.inverse.downsample", message));
        let operator = match (self.downsample, keep, dims) {
            (Some(factor), None, &[height, width, channels]) => {
                Operator::Boxes { dims: [height, width, channels], factor }
            }
            (None, Some(keep), _) => Operator::Mask(keep.to_vec()),
            (Some(_), Some(_), _) => {
                return bad("measures boxes, and a mask the elements it keeps: leave one of them out");
            }
            (Some(_), None, _) => return bad("is of pictures; these samples are none"),
            (None, None, _) => return bad("is not set, and no mask says which elements were measured"),
        };
        match Measurement::of(operator, init, self.std.unwrap_or(0.1)) {
            Err(Error::Domain(message)) => bad(&format!("or the mask does not fit: {message}")),
            made => made,
        }
    }

    /// Samples of a whole batch that agree with a measurement. Of methods with particles the batch is the particles of
    /// one sample, of which one is drawn by weight; `seed` is of what is drawn for that.
    ///
    /// # Errors
    /// The network's errors, which of all but `steer` needs a derivative, and those of [`super::Cloud`].
    pub fn run(
        &self,
        measurement: &Measurement,
        sampler: &dyn Sampler,
        denoiser: Denoiser<'_>,
        grid: &Grid,
        noise: &mut dyn Noise,
        seed: u64,
        observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
    ) -> Result<Vec<f64>> {
        let smc = Smc {
            particles: self.particles(),
            threshold: self.threshold.unwrap_or(0.5),
            scheme: self.resampling.unwrap_or_default(),
            seed,
        };
        match self.method {
            InverseMethod::Dps => {
                let (measurement, step) = (measurement.clone(), self.step.unwrap_or(1.0));
                let dps = Dps { inner: sampler, measurement, step };
                sample(&dps, &mut denoiser.with_memory(), grid, noise, observe)
            }
            InverseMethod::Pinv => {
                let mut denoiser = denoiser.with_term(Twisted(measurement.clone()));
                sample(sampler, &mut denoiser, grid, noise, observe)
            }
            InverseMethod::Tds => {
                let kernel = sampler.gaussian().ok_or_else(|| Error::Domain("tds wants Gaussian steps".into()))?;
                let particles = twisted(kernel, &mut { denoiser }, grid, noise, &smc, measurement)?;
                Ok(particles.choose(seed))
            }
            InverseMethod::Steer => {
                let steering = Steering { potential: self.potential.unwrap_or_default(), strength: 1.0 };
                let process = denoiser.process();
                let clean = process.path.clean();
                let mut reward = |x0: &[f64]| measurement.log(process, &clean, x0);
                let mut denoiser = denoiser.with_memory();
                let particles = steer(sampler, &mut denoiser, grid, noise, &smc, &steering, &mut reward)?;
                Ok(particles.choose(seed))
            }
        }
    }
}

/// Whether a sampler draws noise on the way.
fn draws(config: &SampleConfig) -> bool {
    use SamplerKind::*;
    match config.sampler {
        Ddim => config.eta.unwrap_or(0.0) > 0.0,
        EulerAncestral | Dpm2Ancestral | DpmppSde => config.eta.unwrap_or(1.0) > 0.0,
        Edm => config.s_churn.unwrap_or(0.0) > 0.0,
        Tcd => config.gamma.unwrap_or(0.3) > 0.0,
        SaSolver => config.tau.unwrap_or(1.0) > 0.0,
        Ddpm | EulerMaruyama | SdeHeun | Dpm2mSde | Dpmpp2mSde | PredictorCorrector | Langevin | Consistency | Scm
        | StochasticFlow | Lcm => true,
        Euler | Heun | Midpoint | Ralston | Rk2 | Rk4 | Rk23 | Rk45 | Tsit5 | Dpm2 | Lms | Plms | Pndm | Ipndm
        | Deis | Dpm2m | Dpm3m | Dpm2s | Dpm3s | Dpmpp2m | Dpmpp3m | Dpmpp2s | Dpmpp3s | Unipc | MeanFlow => false,
    }
}
