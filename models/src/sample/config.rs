//! `[sample]` of a configuration.

use super::{Ddim, Ddpm, Euler, Grid, GridKind, Guidance, GuidanceKind, Heun, Langevin, PosteriorVariance, Sampler};
use crate::process::Process;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Samplers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SamplerKind {
    Euler,
    Heun,
    Ddpm,
    Ddim,
    Langevin,
}

/// How to sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The sampler.
    pub sampler: SamplerKind,
    /// Steps (levels, of `langevin`).
    pub steps: usize,
    /// Spacing of the levels; what suits the process if absent.
    pub grid: Option<GridKind>,
    /// Shift of uniform grids toward noise; 1: none.
    pub shift: f64,
    /// What guidance moves away from.
    pub guidance: GuidanceKind,
    /// Guidance scale; 1: none.
    pub cfg: f64,
    /// Times, in the path's unit, between which guidance acts.
    pub guidance_interval: Option<[f64; 2]>,
    /// Noise levels `sigma / alpha` between which guidance acts.
    pub guidance_sigma_interval: Option<[f64; 2]>,
    /// How many channels, from the first, are guided; all if absent. 3 for DiT's published samples.
    pub cfg_channels: Option<usize>,
    /// Share of the guided output that gets back the conditional one's deviation; 0: none.
    pub cfg_rescale: f64,
    /// Noise of `ddim`.
    pub eta: f64,
    /// Variance of `ddpm`.
    pub variance: PosteriorVariance,
    /// Bound of estimated data; 0: none.
    pub clip: f64,
    /// Steps per level of `langevin`.
    pub langevin_steps: usize,
    /// Step size of `langevin`, in units of the level's `sigma^2`.
    pub langevin_rate: f64,
}

impl Default for SampleConfig {
    fn default() -> SampleConfig {
        SampleConfig {
            sampler: SamplerKind::Heun,
            steps: 32,
            grid: None,
            shift: 1.0,
            guidance: GuidanceKind::Cfg,
            cfg: 1.0,
            guidance_interval: None,
            guidance_sigma_interval: None,
            cfg_channels: None,
            cfg_rescale: 0.0,
            eta: 0.0,
            variance: PosteriorVariance::Small,
            clip: 0.0,
            langevin_steps: 100,
            langevin_rate: 0.1,
        }
    }
}

impl SampleConfig {
    /// The sampler.
    ///
    /// # Errors
    /// Names the key that is out of range or does not fit the process.
    pub fn sampler(&self, process: &Process) -> Result<Box<dyn Sampler>> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        for (key, value) in [("eta", self.eta), ("clip", self.clip)] {
            if !(value >= 0.0) {
                return bad(key, format!("is {value}; it must be 0 or more"));
            }
        }
        if self.eta > 1.0 {
            return bad("eta", format!("is {}; it must be in [0, 1]", self.eta));
        }
        self.check_guidance()?;
        Ok(match self.sampler {
            SamplerKind::Euler => Box::new(Euler),
            SamplerKind::Heun => Box::new(Heun),
            SamplerKind::Ddpm => Box::new(Ddpm { variance: self.variance }),
            SamplerKind::Ddim => Box::new(Ddim { eta: self.eta }),
            SamplerKind::Langevin => {
                if self.langevin_steps == 0 || !(self.langevin_rate > 0.0) {
                    return bad("langevin_steps", "and langevin_rate must be positive".into());
                }
                if process.path != crate::process::Path::Ve {
                    let name = process.path.name();
                    return bad("sampler", format!("langevin anneals sigma of path ve, not of {name}"));
                }
                Box::new(Langevin { inner: self.langevin_steps, rate: self.langevin_rate })
            }
        })
    }

    /// Refuses scales and intervals that make no sense, and keys that this kind of guidance does not read.
    fn check_guidance(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        if !self.cfg.is_finite() {
            return bad("cfg", format!("is {}", self.cfg));
        }
        let intervals =
            [("guidance_interval", self.guidance_interval), ("guidance_sigma_interval", self.guidance_sigma_interval)];
        for (key, interval) in intervals {
            if let Some([low, high]) = interval
                && !(low <= high)
            {
                return bad(key, format!("is [{low}, {high}]; it wants first <= second"));
            }
        }
        if !(0.0..=1.0).contains(&self.cfg_rescale) {
            return bad("cfg_rescale", format!("is {}; it is a share, 0 to 1", self.cfg_rescale));
        }
        if self.cfg_channels == Some(0) {
            return bad("cfg_channels", "is 0; to guide no channel, set cfg to 1".into());
        }
        if self.guidance == GuidanceKind::Autoguidance {
            let unread = [("cfg_channels", self.cfg_channels.is_some()), ("cfg_rescale", self.cfg_rescale != 0.0)];
            if let Some((key, _)) = unread.into_iter().find(|(_, set)| *set) {
                return bad(key, "is read only with guidance = \"cfg\"".into());
            }
        }
        Ok(())
    }

    /// The grid.
    pub fn grid(&self, process: &Process) -> Result<Grid> {
        let usual = match self.sampler {
            SamplerKind::Langevin => GridKind::Exponential,
            _ => GridKind::default_of(process),
        };
        Grid::new(process, self.grid.unwrap_or(usual), self.steps, self.shift)
    }

    /// The guidance.
    pub fn guidance(&self) -> Guidance {
        Guidance {
            scale: self.cfg,
            interval: self.guidance_interval,
            sigma_interval: self.guidance_sigma_interval,
            channels: self.cfg_channels,
            rescale: self.cfg_rescale,
        }
    }

    /// The bound of estimated data.
    pub fn clip(&self) -> Option<f64> {
        (self.clip > 0.0).then_some(self.clip)
    }
}
