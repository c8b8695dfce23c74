//! Diffusion processes from orthogonal pieces: a [`Path`], a [`Prediction`] with its [`Preconditioning`], a
//! [`Weighting`], a [`TimeLaw`], and what the network's time input is ([`TimeInput`]). Presets name common ones.
//!
//! A [`ProcessConfig`] is `[process]` of a configuration: a preset and what departs from it. A [`Process`] is a
//! checked combination.

mod config;
mod loss;
mod objective;
mod path;
mod prediction;
mod preset;
mod real;
mod time;
mod weighting;

pub use config::{PathKind, ProcessConfig, TimeInput};
pub use loss::{Draws, Loss};
pub use objective::{
    Alignment, Carried, Consistency, Distillation, Growth, LevelLaw, MeanFlow, Metric, Model, Objective, Resampling,
    Scene, Scm, SelfForcing, Source, TRAIN_ONLY, Target, Teacher, Variance, consistency_levels,
};
pub use path::{Betas, Chain, Level, Path};
pub use prediction::{Coefficients, Preconditioning, Prediction, epsilon_of, score_of, v_of, velocity_of, x0_of};
pub use preset::Preset;
pub use real::Real;
use time::normal_between;
pub use time::{Shift, ShiftRule, Time, TimeDomain, TimeLaw, Times, shifted};
pub use weighting::Weighting;

use crate::{Error, Result};

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
    pub time_shift: Shift,
    /// What the network's time embedding is fed with.
    pub time_input: TimeInput,
    /// A factor on that.
    pub time_scale: f64,
    /// Least and greatest time that samplers use.
    pub time_range: [f64; 2],
    /// Probability that training replaces a label by the null label.
    pub label_dropout: f64,
    /// Features from which the log-variance of the loss is learned; 0: it is not.
    pub log_variance: usize,
    /// How steps of a chain are redrawn.
    pub resampling: Resampling,
    /// Variances of a chain's steps.
    pub variance: Variance,
    /// What training minimises.
    pub objective: Objective,
    /// Alignment of hidden states, beside the regression.
    pub alignment: Alignment,
}

impl Process {
    fn check(&self) -> Result<()> {
        let bad = |key: &str, message: String| Err(Error::config(format!("process.{key}"), message));
        self.time_law.check(&self.path)?;
        let chain = matches!(self.path, Path::Discrete(_));
        if self.prediction == Prediction::Velocity && chain {
            return bad("prediction", "velocity is the derivative along a continuous path; a chain has none".into());
        }
        let (pre, path) = (self.preconditioning, self.path.name());
        if matches!(pre, Preconditioning::Edm | Preconditioning::Consistency) && self.prediction != Prediction::X0 {
            return bad("prediction", format!("{pre:?} preconditioning predicts x0, not {:?}", self.prediction));
        }
        if pre == Preconditioning::Trig && self.prediction != Prediction::Velocity {
            return bad("prediction", format!("trig preconditioning predicts the velocity, not {:?}", self.prediction));
        }
        if pre == Preconditioning::Trig && !matches!(self.path, Path::Trig { .. }) {
            return bad("preconditioning", format!("trig is stated on path trig, not {path}"));
        }
        if pre == Preconditioning::Consistency && self.path != Path::Ve {
            return bad("preconditioning", format!("consistency is stated on path ve, not {path}"));
        }
        if self.weighting.needs_velocity() && chain {
            return bad("weighting", "is stated for the velocity of a continuous path; a chain has none".into());
        }
        if !(self.sigma_data > 0.0) {
            return bad("sigma_data", format!("is {}; it must be positive", self.sigma_data));
        }
        if let Shift::Fixed(s) = self.time_shift
            && !(s > 0.0)
        {
            return bad("time_shift", format!("is {s}; it must be positive"));
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
        if let Weighting::MinSnr { gamma } | Weighting::P2 { gamma, .. } = self.weighting
            && !(gamma > 0.0)
        {
            return bad("weighting", format!("gamma is {gamma}; it must be positive"));
        }
        if let Weighting::P2 { k, .. } = self.weighting
            && !(k > 0.0)
        {
            return bad("weighting", format!("k is {k}; it must be positive"));
        }
        self.objective.check(self)?;
        self.check_regression()?;
        self.check_alignment()?;
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

    /// Where nothing of the data is left at a chain's last step, the output alone must say what the data is.
    fn check_terminal(&self) -> Result<()> {
        let Path::Discrete(chain) = &self.path else { return Ok(()) };
        let last = self.level(Time::step(chain.steps() - 1, chain.steps())?)?;
        if last.alpha > 0.0 || self.coefficients(&last).determinant(&last).abs() > 1e-8 {
            return Ok(());
        }
        let (own, pre) = (self.prediction, self.preconditioning);
        let message = format!(
            "leaves no data at the last step, of which {own:?} with {pre:?} preconditioning says nothing; predict v or \
             x0 without edm preconditioning"
        );
        Err(Error::config("process.zero_terminal_snr", message))
    }

    /// The level at a time.
    pub fn level(&self, time: Time) -> Result<Level<f64>> {
        self.path.level(time)
    }

    /// What is predicted at a level.
    pub fn coefficients<R: Real>(&self, level: &Level<R>) -> Coefficients<R> {
        self.prediction.coefficients(self.preconditioning, self.sigma_data, self.time_range[0], level)
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
            TimeDomain::Unit | TimeDomain::Angle | TimeDomain::Step { .. } => (level.time - low) / (high - low),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq as close;

    fn all() -> Vec<Process> {
        let mut all: Vec<Process> = Preset::ALL.map(Preset::process).into();
        for path in [
            PathKind::Linear,
            PathKind::Cosine,
            PathKind::GeneralCosine,
            PathKind::Vp,
            PathKind::SubVp,
            PathKind::Trig,
            PathKind::Ve,
            PathKind::Discrete,
        ] {
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
                let t = if matches!(p.path.domain(), TimeDomain::Unit | TimeDomain::Angle) {
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
                let c = prediction.coefficients(Preconditioning::None, 0.5, 0.002, &level);
                let by_output = c.solve(&level)[1].powi(2);
                close!(w.factor(&level, &c, 0.5) / by_output, on_x0, max_relative = 1e-10);
            }
        }
        // Known closed forms: min(SNR, g) / SNR on the noise, / (SNR + 1) on the angular velocity.
        let min_snr = |prediction: Prediction| {
            let c = prediction.coefficients(Preconditioning::None, 0.5, 0.002, &level);
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
            ("zero_terminal_snr = true", "process.zero_terminal_snr"),
            ("preset = \"ddpm\"\nzero_terminal_snr = true", "process.zero_terminal_snr"),
            ("preset = \"ddpm\"\nzero_terminal_snr = true\nprediction = \"score\"", "process.zero_terminal_snr"),
            ("preset = \"ddpm\"\nzero_terminal_snr = true\npreconditioning = \"edm\"", "process.zero_terminal_snr"),
            ("path = \"vp\"\nbeta = [0.0, 20.0]", "process.beta"),
            ("preset = \"ddpm\"\ntime_shift = 3.0", "process.time_shift"),
            ("preset = \"ddpm\"\nweighting = { kind = \"cosmap\" }", "process.weighting"),
            ("kappa = 2.0", "process.kappa"),
            ("path = \"ve\"\npreconditioning = \"trig\"", "process.preconditioning"),
            ("preset = \"edm\"\npreconditioning = \"consistency\"\npath = \"linear\"", "process.preconditioning"),
            ("preset = \"mean_flow\"\nprediction = \"x0\"", "process.prediction"),
            ("preset = \"mean_flow\"\npath = \"ve\"", "process.path"),
            ("preset = \"sct\"\npath = \"linear\"", "process.preconditioning"),
            ("preset = \"ict\"\nlog_variance = 8", "process.log_variance"),
            (
                "preset = \"ddpm\"\nobjective = { kind = \"sliced_score\" }\nresampling = { kind = \"loss_second_moment\" }",
                "process.resampling",
            ),
            ("variance = { kind = \"learned_range\", weight = 1.0, bins = 0 }", "process.variance"),
            ("[objective]\nkind = \"mean_flow\"\nkappa = 1.0", "process.objective.kappa"),
            ("time_law = { kind = \"mode\", scale = 3.0 }", "process.time_law"),
            ("time_law = { kind = \"table\", times = [] }", "process.time_law"),
        ] {
            let e = refused(text);
            assert!(e.starts_with(key), "{text}: {e}");
        }
        assert!(toml::from_str::<ProcessConfig>("pressets = \"edm\"").is_err());
    }

    #[test]
    fn resolved_configurations_reproduce() {
        for preset in Preset::ALL {
            let config = ProcessConfig { preset: Some(preset), ..Default::default() };
            let text = toml::to_string(&config.resolved().unwrap()).unwrap();
            let back: ProcessConfig = toml::from_str(&text).unwrap();
            assert_eq!(back.resolve().unwrap(), config.resolve().unwrap());
        }
    }
}
