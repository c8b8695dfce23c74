//! `[process]` of a configuration: a preset and what departs from it.

use super::objective::{Alignment, Objective, Variance};
use super::{
    Betas, Chain, Path, Preconditioning, Prediction, Preset, Process, Resampling, Shift, TimeDomain, TimeLaw, Weighting,
};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// Which path, in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PathKind {
    Linear,
    /// `gvp` in SiT's words.
    #[serde(alias = "gvp")]
    Cosine,
    GeneralCosine,
    Vp,
    SubVp,
    Trig,
    Ve,
    Discrete,
}

impl PathKind {
    /// Whether two paths count time in the same unit.
    fn same_unit(self, other: PathKind) -> bool {
        let unit = |kind| match kind {
            PathKind::Linear | PathKind::Cosine | PathKind::GeneralCosine | PathKind::Vp | PathKind::SubVp => 0,
            PathKind::Trig => 1,
            PathKind::Ve => 2,
            PathKind::Discrete => 3,
        };
        unit(self) == unit(other)
    }
}

/// What the network's time embedding is fed with (times [`Process::time_scale`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeInput {
    /// The path's own time.
    Time,
    /// One minus it: 1 is data, as in SiT's published weights.
    DataTime,
    /// `ln(sigma / alpha)`; with `time_scale` 0.25 EDM's noise input.
    LogSigma,
}

/// `[process]`: a preset and overrides. Fields that are absent are the preset's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessConfig {
    /// Where defaults come from; `sit` if absent.
    pub preset: Option<Preset>,
    /// Mixture of data and noise.
    pub path: Option<PathKind>,
    /// `beta` at both ends of the `vp` and `sub_vp` paths.
    pub beta: Option<[f64; 2]>,
    /// Angles at both ends of the `general_cosine` path.
    pub angles: Option<[f64; 2]>,
    /// Shift of the `general_cosine` path.
    pub kappa: Option<f64>,
    /// Schedule of the `discrete` path.
    pub schedule: Option<Betas>,
    /// Steps of the `discrete` path.
    pub steps: Option<usize>,
    /// Whether the `discrete` path is rescaled so that nothing of the data is left at its last step.
    pub zero_terminal_snr: Option<bool>,
    /// What the network is asked for.
    pub prediction: Option<Prediction>,
    /// Scaling of the network's input and output.
    pub preconditioning: Option<Preconditioning>,
    /// Standard deviation of the data, for preconditioning and EDM's weighting.
    pub sigma_data: Option<f64>,
    /// `s` of the shift `s t / (1 + (s - 1) t)` of training times on unit paths, or `"dimension"`.
    pub time_shift: Option<Shift>,
    /// What the network's time embedding is fed with.
    pub time_input: Option<TimeInput>,
    /// A factor on that.
    pub time_scale: Option<f64>,
    /// Least and greatest time that samplers use, in the path's unit.
    pub time_range: Option<[f64; 2]>,
    /// Probability that training replaces a label by the null label, for classifier-free guidance.
    pub label_dropout: Option<f64>,
    /// Features of the noise level from which the log-variance of the loss is learned; 0: it is not.
    pub log_variance: Option<usize>,
    /// Weighting over noise levels.
    pub weighting: Option<Weighting>,
    /// How training draws times.
    pub time_law: Option<TimeLaw>,
    /// Whether steps of the `discrete` path with greater losses are drawn more often.
    pub resampling: Option<Resampling>,
    /// Variances of the steps of the `discrete` path.
    pub variance: Option<Variance>,
    /// What training minimises.
    pub objective: Option<Objective>,
    /// Alignment of hidden states with features of the data, beside the regression.
    pub alignment: Option<Alignment>,
}

/// `beta` at both ends of the usual variance-preserving path.
const DEFAULT_BETA: [f64; 2] = [0.1, 20.0];
const DEFAULT_ANGLES: [f64; 2] = [0.0, FRAC_PI_2];

impl ProcessConfig {
    /// The preset with these overrides, as one table.
    fn merged(&self) -> ProcessConfig {
        let preset = self.preset.unwrap_or(Preset::Sit);
        let mut base = preset.config();
        if let (Some(own), Some(usual)) = (self.path, base.path)
            && !own.same_unit(usual)
        {
            // The preset's times are of another unit.
            let times = ProcessConfig { time_law: None, time_range: None, time_input: None, time_scale: None, ..base };
            base = ProcessConfig { variance: None, ..times };
        }
        if self.path.is_some() {
            (base.beta, base.schedule) = (None, None);
        }
        if let Some(own) = self.preconditioning {
            base.prediction = forced(own).or(base.prediction);
        }
        ProcessConfig {
            preset: Some(preset),
            path: self.path.or(base.path),
            beta: self.beta.or(base.beta),
            angles: self.angles,
            kappa: self.kappa,
            schedule: self.schedule.or(base.schedule),
            steps: self.steps.or(base.steps),
            zero_terminal_snr: self.zero_terminal_snr,
            prediction: self.prediction.or(base.prediction),
            preconditioning: self.preconditioning.or(base.preconditioning),
            sigma_data: self.sigma_data,
            weighting: self.weighting.or(base.weighting),
            time_law: self.time_law.clone().or(base.time_law),
            time_shift: self.time_shift,
            time_input: self.time_input.or(base.time_input),
            time_scale: self.time_scale.or(base.time_scale),
            time_range: self.time_range.or(base.time_range),
            label_dropout: self.label_dropout,
            log_variance: self.log_variance.or(base.log_variance),
            resampling: self.resampling,
            variance: self.variance.or(base.variance),
            objective: self.objective.clone().or(base.objective),
            alignment: self.alignment,
        }
    }

    /// The process it describes.
    ///
    /// # Errors
    /// Names the key that is out of range or does not fit the others.
    pub fn resolve(&self) -> Result<Process> {
        let c = self.merged();
        let kind = c.path.unwrap_or(PathKind::Linear);
        let sigma_data = c.sigma_data.unwrap_or(0.5);
        let path = c.build_path(kind, sigma_data)?;
        let domain = path.domain();
        let preconditioning = c.preconditioning.unwrap_or(Preconditioning::None);
        let prediction = c.prediction.or(forced(preconditioning)).unwrap_or(Prediction::Velocity);
        let singular = matches!(prediction, Prediction::Epsilon | Prediction::Score | Prediction::ScaledScore);
        let time_law = c.time_law.unwrap_or(match domain {
            TimeDomain::Unit if singular => TimeLaw::Uniform { min: 1e-3, max: 0.999 },
            TimeDomain::Unit => TimeLaw::Uniform { min: 0.0, max: 1.0 },
            TimeDomain::Angle => TimeLaw::LogTangent { mean: -1.0, std: 1.4 },
            TimeDomain::Sigma => TimeLaw::LogNormal { mean: -1.2, std: 1.2 },
            TimeDomain::Step { .. } => TimeLaw::Steps,
        });
        let time_range = c.time_range.unwrap_or(match domain {
            TimeDomain::Unit if singular => [1e-3, 0.999],
            TimeDomain::Unit => [0.0, 1.0],
            TimeDomain::Angle if singular => [1e-3, 1.57],
            TimeDomain::Angle => [0.0, FRAC_PI_2],
            TimeDomain::Sigma => [0.002, 80.0],
            TimeDomain::Step { count } => [0.0, (count - 1) as f64],
        });
        let log_sigma = domain == TimeDomain::Sigma;
        let time_input = c.time_input.unwrap_or(if log_sigma { TimeInput::LogSigma } else { TimeInput::Time });
        let process = Process {
            prediction,
            preconditioning,
            sigma_data,
            weighting: c.weighting.unwrap_or(Weighting::Uniform),
            time_law,
            time_shift: c.time_shift.unwrap_or(Shift::NONE),
            time_input,
            time_scale: c.time_scale.unwrap_or(if time_input == TimeInput::LogSigma { 0.25 } else { 1.0 }),
            time_range,
            label_dropout: c.label_dropout.unwrap_or(0.1),
            log_variance: c.log_variance.unwrap_or(0),
            resampling: c.resampling.unwrap_or(Resampling::None),
            variance: c.variance.unwrap_or(Variance::Fixed),
            objective: c.objective.unwrap_or(Objective::Regression),
            alignment: c.alignment.unwrap_or_default(),
            path,
        };
        self.check_unused(kind)?;
        process.check_terminal()?;
        process.check()?;
        Ok(process)
    }

    /// The same with every default written out; it resolves to the same process.
    pub fn resolved(&self) -> Result<ProcessConfig> {
        let p = self.resolve()?;
        let c = self.merged();
        let kind = c.path.unwrap_or(PathKind::Linear);
        let discrete = kind == PathKind::Discrete;
        let general = kind == PathKind::GeneralCosine;
        let beta = matches!(kind, PathKind::Vp | PathKind::SubVp);
        Ok(ProcessConfig {
            preset: c.preset,
            path: Some(kind),
            beta: beta.then_some(c.beta.unwrap_or(DEFAULT_BETA)),
            angles: general.then_some(c.angles.unwrap_or(DEFAULT_ANGLES)),
            kappa: general.then_some(c.kappa.unwrap_or(1.0)),
            schedule: discrete.then_some(c.schedule.unwrap_or(Betas::Linear)),
            steps: discrete.then_some(c.steps.unwrap_or(1000)),
            zero_terminal_snr: discrete.then_some(c.zero_terminal_snr.unwrap_or(false)),
            prediction: Some(p.prediction),
            preconditioning: Some(p.preconditioning),
            sigma_data: Some(p.sigma_data),
            weighting: Some(p.weighting),
            time_law: Some(p.time_law),
            time_shift: Some(p.time_shift),
            time_input: Some(p.time_input),
            time_scale: Some(p.time_scale),
            time_range: Some(p.time_range),
            label_dropout: Some(p.label_dropout),
            log_variance: Some(p.log_variance),
            resampling: discrete.then_some(p.resampling),
            variance: discrete.then_some(p.variance),
            objective: Some(p.objective),
            alignment: c.alignment,
        })
    }

    fn build_path(&self, kind: PathKind, sigma_data: f64) -> Result<Path> {
        let [beta_min, beta_max] = self.beta.unwrap_or(DEFAULT_BETA);
        if !(0.0 < beta_min && beta_min <= beta_max && beta_max.is_finite()) {
            let message = format!("is [{beta_min}, {beta_max}]; it wants 0 < first <= second");
            return Err(Error::config("process.beta", message));
        }
        let [low, high] = self.angles.unwrap_or(DEFAULT_ANGLES);
        if !(0.0 <= low && low < high && high <= FRAC_PI_2) {
            let message = format!("is [{low}, {high}]; it wants 0 <= first < second <= pi / 2");
            return Err(Error::config("process.angles", message));
        }
        let kappa = self.kappa.unwrap_or(1.0);
        if !(kappa > 0.0 && kappa.is_finite()) {
            return Err(Error::config("process.kappa", format!("is {kappa}; it must be positive")));
        }
        Ok(match kind {
            PathKind::Linear => Path::Linear,
            PathKind::Cosine => Path::Cosine,
            PathKind::GeneralCosine => Path::GeneralCosine { angles: [low, high], kappa },
            PathKind::Trig => Path::Trig { sigma_data },
            PathKind::Ve => Path::Ve,
            PathKind::Vp => Path::Vp { beta_min, beta_max },
            PathKind::SubVp => Path::SubVp { beta_min, beta_max },
            PathKind::Discrete => {
                let betas = self.schedule.unwrap_or(Betas::Linear).betas(self.steps.unwrap_or(1000));
                let chain = Chain::new(&betas)?;
                Path::Discrete(if self.zero_terminal_snr == Some(true) { chain.zero_terminal() } else { chain })
            }
        })
    }

    /// A key that the path does not read is a mistake, not a wish to be ignored.
    fn check_unused(&self, kind: PathKind) -> Result<()> {
        let unit = kind.same_unit(PathKind::Linear);
        let beta = matches!(kind, PathKind::Vp | PathKind::SubVp);
        let (discrete, general) = (kind == PathKind::Discrete, kind == PathKind::GeneralCosine);
        let chain = "with path = \"discrete\"";
        let shifted = self.time_shift.is_some_and(|s| s != Shift::NONE);
        let rules = [
            ("beta", self.beta.is_some(), beta, "with path = \"vp\" or \"sub_vp\""),
            ("angles", self.angles.is_some(), general, "with path = \"general_cosine\""),
            ("kappa", self.kappa.is_some(), general, "with path = \"general_cosine\""),
            ("schedule", self.schedule.is_some(), discrete, chain),
            ("steps", self.steps.is_some(), discrete, chain),
            ("zero_terminal_snr", self.zero_terminal_snr.is_some(), discrete, chain),
            ("resampling", self.resampling.is_some(), discrete, chain),
            ("variance", self.variance.is_some(), discrete, chain),
            ("time_shift", shifted, unit, "on paths whose time is in [0, 1]"),
        ];
        for (key, given, read, when) in rules {
            if given && !read {
                return Err(Error::config(format!("process.{key}"), format!("is read only {when}")));
            }
        }
        Ok(())
    }
}

/// The one prediction that a preconditioning is stated for.
fn forced(preconditioning: Preconditioning) -> Option<Prediction> {
    match preconditioning {
        Preconditioning::Edm | Preconditioning::Consistency => Some(Prediction::X0),
        Preconditioning::Trig => Some(Prediction::Velocity),
        Preconditioning::None | Preconditioning::Input => None,
    }
}
