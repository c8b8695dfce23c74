//! Diffusion processes from orthogonal pieces: a [`Path`], a [`Prediction`] with its [`Preconditioning`], a
//! [`Weighting`], a [`TimeLaw`], and what the network's time input is ([`TimeInput`]). Presets name common ones.
//!
//! A [`ProcessConfig`] is `[process]` of a configuration: a preset and what departs from it. A [`Process`] is a
//! checked combination.

mod loss;
mod path;
mod prediction;
mod real;
mod time;
mod weighting;

pub use loss::{Draws, Loss};
pub use path::{Betas, Chain, Level, Path};
pub use prediction::{Coefficients, Preconditioning, Prediction};
pub use real::Real;
pub use time::{Time, TimeDomain, TimeLaw, Times, shifted};
pub use weighting::Weighting;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Named processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Linear flow: velocity of the straight path, uniform times.
    Sit,
    /// EDM: preconditioned denoiser, log-normal noise levels.
    Edm,
    /// DDPM: noise of a discrete chain of 1000 steps.
    Ddpm,
    /// Denoising score matching over ten geometric noise levels, weighted by sigma squared.
    Dsm,
}

/// Which path, in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PathKind {
    Linear,
    Cosine,
    Vp,
    Ve,
    Discrete,
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
    /// `beta` at both ends of the `vp` path.
    pub beta: Option<[f64; 2]>,
    /// Schedule of the `discrete` path.
    pub schedule: Option<Betas>,
    /// Steps of the `discrete` path.
    pub steps: Option<usize>,
    /// What the network is asked for.
    pub prediction: Option<Prediction>,
    /// Scaling of the network's input and output.
    pub preconditioning: Option<Preconditioning>,
    /// Standard deviation of the data, for preconditioning and EDM's weighting.
    pub sigma_data: Option<f64>,
    /// Weighting over noise levels.
    pub weighting: Option<Weighting>,
    /// How training draws times.
    pub time_law: Option<TimeLaw>,
    /// `s` of the shift `s t / (1 + (s - 1) t)` of training times on unit paths.
    pub time_shift: Option<f64>,
    /// What the network's time embedding is fed with.
    pub time_input: Option<TimeInput>,
    /// A factor on that.
    pub time_scale: Option<f64>,
    /// Least and greatest time that samplers use, in the path's unit.
    pub time_range: Option<[f64; 2]>,
    /// Probability that training replaces a label by the null label, for classifier-free guidance.
    pub label_dropout: Option<f64>,
}

/// A checked process.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Mixture of data and noise.
    pub path: Path,
    /// What the network is asked for.
    pub prediction: Prediction,
    /// Scaling of the network's input and output.
    pub preconditioning: Preconditioning,
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Weighting over noise levels.
    pub weighting: Weighting,
    /// How training draws times.
    pub time_law: TimeLaw,
    /// Shift of training times on unit paths.
    pub time_shift: f64,
    /// What the network's time embedding is fed with.
    pub time_input: TimeInput,
    /// A factor on that.
    pub time_scale: f64,
    /// Least and greatest time that samplers use.
    pub time_range: [f64; 2],
    /// Probability that training replaces a label by the null label.
    pub label_dropout: f64,
}

impl Preset {
    /// The process it names.
    pub fn process(self) -> Process {
        ProcessConfig { preset: Some(self), ..ProcessConfig::default() }.resolve().expect("presets are meaningful")
    }

    fn path(self) -> PathKind {
        match self {
            Preset::Sit => PathKind::Linear,
            Preset::Edm | Preset::Dsm => PathKind::Ve,
            Preset::Ddpm => PathKind::Discrete,
        }
    }
}

impl ProcessConfig {
    /// The process it describes.
    ///
    /// # Errors
    /// Names the key that is out of range or does not fit the others.
    pub fn resolve(&self) -> Result<Process> {
        let preset = self.preset.unwrap_or(Preset::Sit);
        let kind = self.path.unwrap_or(preset.path());
        let path = self.build_path(kind)?;
        let domain = path.domain();
        let (edm, dsm) = (preset == Preset::Edm, preset == Preset::Dsm);
        let preconditioning =
            self.preconditioning.unwrap_or(if edm { Preconditioning::Edm } else { Preconditioning::None });
        let prediction = self.prediction.unwrap_or(match preset {
            _ if preconditioning == Preconditioning::Edm => Prediction::X0,
            Preset::Sit => Prediction::Velocity,
            Preset::Edm => Prediction::X0,
            Preset::Ddpm => Prediction::Epsilon,
            Preset::Dsm => Prediction::Score,
        });
        let singular = matches!(prediction, Prediction::Epsilon | Prediction::Score | Prediction::ScaledScore);
        // Overriding the path also takes its default law, range and input: the preset's are of another unit.
        let time_law = self.time_law.unwrap_or(match domain {
            TimeDomain::Unit if singular => TimeLaw::Uniform { min: 1e-3, max: 0.999 },
            TimeDomain::Unit => TimeLaw::Uniform { min: 0.0, max: 1.0 },
            TimeDomain::Sigma if dsm => TimeLaw::Levels { min: 0.01, max: 1.0, count: 10 },
            TimeDomain::Sigma => TimeLaw::LogNormal { mean: -1.2, std: 1.2 },
            TimeDomain::Step { .. } => TimeLaw::Steps,
        });
        let time_range = self.time_range.unwrap_or(match domain {
            TimeDomain::Unit if singular => [1e-3, 0.999],
            TimeDomain::Unit => [0.0, 1.0],
            TimeDomain::Sigma if dsm => [0.01, 1.0],
            TimeDomain::Sigma => [0.002, 80.0],
            TimeDomain::Step { count } => [0.0, (count - 1) as f64],
        });
        let log_sigma = domain == TimeDomain::Sigma;
        let time_input = self.time_input.unwrap_or(if log_sigma { TimeInput::LogSigma } else { TimeInput::Time });
        let process = Process {
            prediction,
            preconditioning,
            sigma_data: self.sigma_data.unwrap_or(0.5),
            weighting: self.weighting.unwrap_or(match preset {
                Preset::Sit | Preset::Ddpm => Weighting::Uniform,
                Preset::Edm => Weighting::Edm,
                Preset::Dsm => Weighting::Noise,
            }),
            time_law,
            time_shift: self.time_shift.unwrap_or(1.0),
            time_input,
            time_scale: self.time_scale.unwrap_or(if time_input == TimeInput::LogSigma { 0.25 } else { 1.0 }),
            time_range,
            label_dropout: self.label_dropout.unwrap_or(0.1),
            path,
        };
        process.check()?;
        self.check_unused(kind)?;
        Ok(process)
    }

    /// The same with every default written out; it resolves to the same process.
    pub fn resolved(&self) -> Result<ProcessConfig> {
        let p = self.resolve()?;
        let preset = self.preset.unwrap_or(Preset::Sit);
        let kind = self.path.unwrap_or(preset.path());
        Ok(ProcessConfig {
            preset: Some(preset),
            path: Some(kind),
            beta: (kind == PathKind::Vp).then_some(self.beta.unwrap_or(DEFAULT_BETA)),
            schedule: (kind == PathKind::Discrete).then_some(self.schedule.unwrap_or(Betas::Linear)),
            steps: (kind == PathKind::Discrete).then_some(self.steps.unwrap_or(1000)),
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
        })
    }

    fn build_path(&self, kind: PathKind) -> Result<Path> {
        Ok(match kind {
            PathKind::Linear => Path::Linear,
            PathKind::Cosine => Path::Cosine,
            PathKind::Ve => Path::Ve,
            PathKind::Vp => {
                let [beta_min, beta_max] = self.beta.unwrap_or(DEFAULT_BETA);
                if !(0.0 < beta_min && beta_min <= beta_max && beta_max.is_finite()) {
                    let message = format!("is [{beta_min}, {beta_max}]; it wants 0 < first <= second");
                    return Err(Error::config("process.beta", message));
                }
                Path::Vp { beta_min, beta_max }
            }
            PathKind::Discrete => {
                let betas = self.schedule.unwrap_or(Betas::Linear).betas(self.steps.unwrap_or(1000));
                Path::Discrete(Chain::new(&betas)?)
            }
        })
    }

    /// A key that the path does not read is a mistake, not a wish to be ignored.
    fn check_unused(&self, kind: PathKind) -> Result<()> {
        let unread =
            |key: &str, path: &str| Err(Error::config(format!("process.{key}"), format!("is read only {path}")));
        if self.beta.is_some() && kind != PathKind::Vp {
            return unread("beta", "with path = \"vp\"");
        }
        if self.schedule.is_some() && kind != PathKind::Discrete {
            return unread("schedule", "with path = \"discrete\"");
        }
        if self.steps.is_some() && kind != PathKind::Discrete {
            return unread("steps", "with path = \"discrete\"");
        }
        let unit = matches!(kind, PathKind::Linear | PathKind::Cosine | PathKind::Vp);
        if self.time_shift.is_some_and(|s| s != 1.0) && !unit {
            return unread("time_shift", "on paths whose time is in [0, 1]");
        }
        Ok(())
    }
}

/// `beta` at both ends of the usual variance-preserving path.
const DEFAULT_BETA: [f64; 2] = [0.1, 20.0];

impl Process {
    fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.{key}"), message));
        self.time_law.check(&self.path)?;
        if self.prediction == Prediction::Velocity && matches!(self.path, Path::Discrete(_)) {
            return bad("prediction", "velocity is the derivative along a continuous path; a chain has none".into());
        }
        if self.preconditioning == Preconditioning::Edm && self.prediction != Prediction::X0 {
            return bad("prediction", format!("edm preconditioning predicts x0, not {:?}", self.prediction));
        }
        if !(self.sigma_data > 0.0) {
            return bad("sigma_data", format!("is {}; it must be positive", self.sigma_data));
        }
        if !(self.time_shift > 0.0) {
            return bad("time_shift", format!("is {}; it must be positive", self.time_shift));
        }
        if !(0.0..=1.0).contains(&self.label_dropout) {
            return bad("label_dropout", format!("is {}; it is a probability", self.label_dropout));
        }
        if !(self.time_scale.is_finite() && self.time_scale != 0.0) {
            return bad("time_scale", format!("is {}; it must be finite and not 0", self.time_scale));
        }
        if self.time_input == TimeInput::DataTime && self.path.domain() != TimeDomain::Unit {
            return bad("time_input", "data_time needs a path whose time is in [0, 1]".into());
        }
        if let Weighting::MinSnr { gamma } = self.weighting
            && !(gamma > 0.0)
        {
            return bad("weighting", format!("gamma is {gamma}; it must be positive"));
        }
        let [low, high] = self.time_range;
        if !(low < high) {
            return bad("time_range", format!("is [{low}, {high}]; it wants first < second"));
        }
        let domain = self.path.domain();
        self.level(Time::new(domain, low)?)?;
        let top = self.level(Time::new(domain, high)?)?;
        // At its noisiest the output must still say what the data is, or sampling starts with a division by zero.
        let det = self.coefficients(&top).determinant(&top);
        if !(det.abs() > 1e-8) {
            let message =
                format!("ends at {high}, where {:?} says nothing about the data; end earlier", self.prediction);
            return bad("time_range", message);
        }
        Ok(())
    }

    /// The level at a time.
    pub fn level(&self, time: Time) -> Result<Level<f64>> {
        self.path.level(time)
    }

    /// What is predicted at a level.
    pub fn coefficients<R: Real>(&self, level: &Level<R>) -> Coefficients<R> {
        self.prediction.coefficients(self.preconditioning, self.sigma_data, level)
    }

    /// What the network's time embedding is fed with at a level.
    pub fn time_input<R: Real>(&self, level: &Level<R>) -> R {
        let t = match self.time_input {
            TimeInput::Time => level.time,
            TimeInput::DataTime => -level.time + 1.0,
            TimeInput::LogSigma => (level.sigma / level.alpha).ln(),
        };
        if self.time_scale == 1.0 { t } else { t * self.time_scale }
    }

    /// What the second time embedding of a network of two times is fed with for a jump between levels: the time
    /// between them, times the time scale.
    pub fn second_input<R: Real>(&self, from: &Level<R>, to: &Level<R>) -> R {
        (from.time - to.time) * self.time_scale
    }

    /// Where a level lies between the ends of the sampled range, 0 to 1: for the loss by noise level.
    pub fn position<R: Real>(&self, level: &Level<R>) -> R {
        let [low, high] = self.time_range;
        match self.path.domain() {
            TimeDomain::Sigma => (level.time.ln() - low.ln()) / (high / low).ln(),
            TimeDomain::Unit | TimeDomain::Step { .. } => (level.time - low) / (high - low),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq as close;

    fn all() -> Vec<Process> {
        let mut all: Vec<Process> = [Preset::Sit, Preset::Edm, Preset::Ddpm, Preset::Dsm].map(Preset::process).into();
        for path in [PathKind::Linear, PathKind::Cosine, PathKind::Vp, PathKind::Ve, PathKind::Discrete] {
            for prediction in [
                Prediction::X0,
                Prediction::Epsilon,
                Prediction::V,
                Prediction::Velocity,
                Prediction::Score,
                Prediction::ScaledScore,
            ] {
                let config = ProcessConfig { path: Some(path), prediction: Some(prediction), ..Default::default() };
                match config.resolve() {
                    Ok(p) => all.push(p),
                    Err(e) => assert!(path == PathKind::Discrete && prediction == Prediction::Velocity, "{e}"),
                }
            }
        }
        all
    }

    #[test]
    fn every_prediction_determines_data_and_noise() {
        let (x0, n) = (0.83, -1.47);
        for p in all() {
            let [low, high] = p.time_range;
            for u in [0.02, 0.5, 0.9] {
                let t = if p.path.domain() == TimeDomain::Unit {
                    low + u * (high - low)
                } else {
                    (high * u).floor().max(low)
                };
                let level = p.level(Time::new(p.path.domain(), t).unwrap()).unwrap();
                let c = p.coefficients(&level);
                let (x, f) = (level.alpha * x0 + level.sigma * n, c.p * x0 + c.q * n);
                let [a, b, d, e] = c.solve(&level);
                if level.sigma == 0.0 {
                    continue;
                }
                close!(a * x + b * f, x0, max_relative = 1e-7, epsilon = 1e-9);
                close!(d * x + e * f, n, max_relative = 1e-7);
            }
        }
    }

    #[test]
    fn golden_edm_coefficients() {
        let p = Preset::Edm.process();
        for (sigma, skip, out, c_in, noise, w) in [
            (0.5, 0.5, 0.353553391, std::f64::consts::SQRT_2, -0.173286795, 8.0),
            (80.0, 3.9061e-5, 0.499990235, 0.0124997559, 1.09550666, 4.00015625),
        ] {
            let level = p.level(Time::sigma(sigma).unwrap()).unwrap();
            let c = p.coefficients(&level);
            let [a, b, ..] = c.solve(&level);
            close!(a, skip, max_relative = 1e-5);
            close!(b, out, max_relative = 1e-8);
            close!(c.c_in, c_in, max_relative = 1e-8);
            close!(p.time_input(&level), noise, max_relative = 1e-8);
            // On the output the weighting is 1 by construction; on x0 it is that over c_out squared.
            let on_output = p.weighting.factor(&level, &c, p.sigma_data);
            close!(on_output, 1.0, max_relative = 1e-10);
            close!(on_output / (b * b), w, max_relative = 1e-8);
        }
        let level = p.level(Time::sigma(0.002).unwrap()).unwrap();
        let c = p.coefficients(&level);
        close!(p.weighting.factor(&level, &c, 0.5) / c.solve(&level)[1].powi(2), 250004.0, max_relative = 1e-9);
    }

    #[test]
    fn weightings_do_not_depend_on_what_is_predicted() {
        // The same weighting must give the same loss for the same error of x0, whatever the network outputs.
        let level = Path::Cosine.level(Time::unit(0.3).unwrap()).unwrap();
        let snr = (level.alpha / level.sigma).powi(2);
        for (w, on_x0) in [(Weighting::Noise, snr), (Weighting::MinSnr { gamma: 2.0 }, snr.min(2.0))] {
            for prediction in
                [Prediction::X0, Prediction::Epsilon, Prediction::V, Prediction::Velocity, Prediction::Score]
            {
                let c = prediction.coefficients(Preconditioning::None, 0.5, &level);
                let by_output = c.solve(&level)[1].powi(2);
                close!(w.factor(&level, &c, 0.5) / by_output, on_x0, max_relative = 1e-10);
            }
        }
        // Known closed forms: min(SNR, g) / SNR on the noise, / (SNR + 1) on the angular velocity.
        let min_snr = |prediction: Prediction| {
            let c = prediction.coefficients(Preconditioning::None, 0.5, &level);
            Weighting::MinSnr { gamma: 2.0 }.factor(&level, &c, 0.5)
        };
        close!(min_snr(Prediction::Epsilon), snr.min(2.0) / snr, max_relative = 1e-10);
        close!(min_snr(Prediction::V), snr.min(2.0) / (snr + 1.0), max_relative = 1e-10);
    }

    #[test]
    fn shift_is_golden() {
        close!(shifted(0.5, 3.0), 0.75);
        close!(shifted(0.5, 48f64.sqrt()), 0.873868016, max_relative = 1e-8);
        close!(shifted(0.5, 0.3), 0.230769231, max_relative = 1e-8);
    }

    #[test]
    fn combinations_that_make_no_sense_are_refused_by_key() {
        let refused = |text: &str| toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap_err().to_string();
        for (text, key) in [
            ("path = \"discrete\"\nprediction = \"velocity\"", "process.prediction"),
            ("preset = \"edm\"\nprediction = \"epsilon\"", "process.prediction"),
            ("preset = \"edm\"\ntime_law = { kind = \"steps\" }", "process.time_law"),
            ("prediction = \"epsilon\"\ntime_range = [0.0, 1.0]", "process.time_range"),
            ("label_dropout = 1.5", "process.label_dropout"),
            ("beta = [0.1, 20.0]", "process.beta"),
            ("steps = 10", "process.steps"),
            ("preset = \"ddpm\"\nsteps = 0", "process.steps"),
            ("path = \"vp\"\nbeta = [0.0, 20.0]", "process.beta"),
            ("preset = \"ddpm\"\ntime_shift = 3.0", "process.time_shift"),
        ] {
            let e = refused(text);
            assert!(e.starts_with(key), "{text}: {e}");
        }
        assert!(toml::from_str::<ProcessConfig>("pressets = \"edm\"").is_err());
    }

    #[test]
    fn resolved_configurations_reproduce() {
        for preset in [Preset::Sit, Preset::Edm, Preset::Ddpm, Preset::Dsm] {
            let config = ProcessConfig { preset: Some(preset), ..Default::default() };
            let text = toml::to_string(&config.resolved().unwrap()).unwrap();
            let back: ProcessConfig = toml::from_str(&text).unwrap();
            assert_eq!(back.resolve().unwrap(), config.resolve().unwrap());
        }
    }
}
