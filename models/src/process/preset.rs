//! Named processes: each a table of what it sets.

use super::objective::{
    Consistency, Distillation, Growth, LevelLaw, MeanFlow, Metric, Scm, SelfForcing, Source, Target,
};
use super::{Objective, PathKind, Preconditioning, Prediction, Process, ProcessConfig, TimeLaw, Variance, Weighting};
use serde::{Deserialize, Serialize};

/// Named processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Linear flow: velocity of the straight path, uniform times.
    Sit,
    /// The same by its other name (Liu et al., 2023).
    RectifiedFlow,
    /// Rectified flow with logit-normal times (Esser et al., 2024).
    Sd3,
    /// EDM: preconditioned denoiser, log-normal noise levels.
    Edm,
    /// EDM with a learned log-variance of the loss at each level (Karras et al., 2024).
    Edm2,
    /// DDPM: noise of a discrete chain of 1000 steps.
    Ddpm,
    /// Improved DDPM: cosine chain, learned variances, hybrid loss (Nichol and Dhariwal, 2021).
    Iddpm,
    /// Score SDE, variance preserving: noise at continuous times.
    Vp,
    /// Score SDE, variance exploding: score at log-uniform levels from 0.01 to 50, weighted by `sigma^2`.
    Ve,
    /// Score SDE, sub-VP.
    Subvp,
    /// Denoising score matching over ten geometric noise levels, weighted by sigma squared.
    Dsm,
    /// Sliced score matching on the same levels (Song et al., 2019).
    Ssm,
    /// Mean velocities: sampling in one step (Geng et al., 2025).
    MeanFlow,
    /// Continuous-time consistency training on TrigFlow (Lu and Song, 2024).
    Sct,
    /// Continuous-time consistency distillation of a teacher.
    Scd,
    /// Consistency training (Song et al., 2023).
    Ct,
    /// Consistency distillation of a teacher.
    Cd,
    /// Improved consistency training (Song and Dhariwal, 2024).
    Ict,
    /// Distribution matching distillation of a teacher into one step (Yin et al., 2024).
    Dmd2,
    /// EDM's denoiser with a noise level of its own for every token of a sequence (Chen et al., 2024).
    DiffusionForcing,
    /// The same network trained on its own roll-outs, whose law is matched to a teacher's (Huang et al., 2025).
    SelfForcing,
}

impl Preset {
    /// All of them.
    pub const ALL: [Preset; 21] = [
        Preset::Sit,
        Preset::RectifiedFlow,
        Preset::Sd3,
        Preset::Edm,
        Preset::Edm2,
        Preset::Ddpm,
        Preset::Iddpm,
        Preset::Vp,
        Preset::Ve,
        Preset::Subvp,
        Preset::Dsm,
        Preset::Ssm,
        Preset::MeanFlow,
        Preset::Sct,
        Preset::Scd,
        Preset::Ct,
        Preset::Cd,
        Preset::Ict,
        Preset::Dmd2,
        Preset::DiffusionForcing,
        Preset::SelfForcing,
    ];

    /// The process it names.
    pub fn process(self) -> Process {
        ProcessConfig { preset: Some(self), ..ProcessConfig::default() }.resolve().expect("presets are meaningful")
    }

    /// What it sets; the rest follows from the path and the prediction.
    pub(super) fn config(self) -> ProcessConfig {
        let of = |path: PathKind, prediction: Prediction, weighting: Weighting| ProcessConfig {
            path: Some(path),
            prediction: Some(prediction),
            weighting: Some(weighting),
            ..ProcessConfig::default()
        };
        let flow = of(PathKind::Linear, Prediction::Velocity, Weighting::Uniform);
        let edm = ProcessConfig {
            preconditioning: Some(Preconditioning::Edm),
            time_law: Some(TimeLaw::LogNormal { mean: -1.2, std: 1.2 }),
            ..of(PathKind::Ve, Prediction::X0, Weighting::Edm)
        };
        let levels = ProcessConfig {
            time_law: Some(TimeLaw::Levels { min: 0.01, max: 1.0, count: 10 }),
            time_range: Some([0.01, 1.0]),
            ..of(PathKind::Ve, Prediction::Score, Weighting::Noise)
        };
        let trig = |mean: f64, std: f64, source: Source| ProcessConfig {
            preconditioning: Some(Preconditioning::Trig),
            time_law: Some(TimeLaw::LogTangent { mean, std }),
            log_variance: Some(128),
            objective: Some(Objective::Scm(Scm { source, ..Scm::default() })),
            ..of(PathKind::Trig, Prediction::Velocity, Weighting::Uniform)
        };
        let consistency = |objective: Consistency| ProcessConfig {
            preconditioning: Some(Preconditioning::Consistency),
            objective: Some(Objective::Consistency(objective)),
            ..of(PathKind::Ve, Prediction::X0, Weighting::Data)
        };
        match self {
            Preset::Sit | Preset::RectifiedFlow => flow,
            Preset::Sd3 => ProcessConfig { time_law: Some(TimeLaw::logit_normal(0.0, 1.0)), ..flow },
            Preset::Edm => edm,
            Preset::Edm2 => ProcessConfig {
                time_law: Some(TimeLaw::LogNormal { mean: -0.4, std: 1.0 }),
                log_variance: Some(128),
                ..edm
            },
            Preset::Ddpm => of(PathKind::Discrete, Prediction::Epsilon, Weighting::Uniform),
            Preset::Iddpm => ProcessConfig {
                schedule: Some(super::Betas::Cosine),
                variance: Some(Variance::LearnedRange { weight: 1e-3, bins: 255 }),
                ..of(PathKind::Discrete, Prediction::Epsilon, Weighting::Uniform)
            },
            Preset::Vp => ProcessConfig {
                time_law: Some(TimeLaw::Uniform { min: 1e-5, max: 1.0 }),
                time_range: Some([1e-3, 1.0]),
                ..of(PathKind::Vp, Prediction::Epsilon, Weighting::Noise)
            },
            Preset::Subvp => ProcessConfig {
                time_law: Some(TimeLaw::Uniform { min: 1e-5, max: 1.0 }),
                time_range: Some([1e-3, 1.0]),
                ..of(PathKind::SubVp, Prediction::Epsilon, Weighting::Noise)
            },
            Preset::Ve => ProcessConfig {
                time_law: Some(TimeLaw::LogUniform { min: 0.01, max: 50.0 }),
                time_range: Some([0.01, 50.0]),
                preconditioning: Some(Preconditioning::Input),
                ..of(PathKind::Ve, Prediction::ScaledScore, Weighting::Noise)
            },
            Preset::Dsm => levels,
            Preset::Ssm => ProcessConfig { objective: Some(Objective::SlicedScore {}), ..levels },
            Preset::MeanFlow => ProcessConfig {
                time_law: Some(TimeLaw::logit_normal(-0.4, 1.0)),
                objective: Some(Objective::MeanFlow(MeanFlow::default())),
                ..flow
            },
            Preset::Sct => trig(-1.0, 1.4, Source::Data),
            Preset::Scd => trig(-0.8, 1.6, Source::Teacher),
            Preset::Ct => consistency(Consistency {
                steps: [2, 200],
                growth: Growth::Root,
                target: Target::Scheduled { start: 0.95 },
                metric: Metric::L2,
                levels: LevelLaw::Uniform,
                inverse_gap: false,
                ..Consistency::default()
            }),
            Preset::Cd => consistency(Consistency {
                source: Source::Teacher,
                steps: [39, 39],
                growth: Growth::Constant,
                target: Target::Average { decay: 0.95 },
                metric: Metric::L2,
                levels: LevelLaw::Uniform,
                inverse_gap: false,
                ..Consistency::default()
            }),
            Preset::Ict => consistency(Consistency::default()),
            Preset::Dmd2 => ProcessConfig { objective: Some(Objective::Distillation(Distillation::default())), ..edm },
            // Finished tokens and those that have not begun are as frequent as those half-way.
            Preset::DiffusionForcing => ProcessConfig {
                time_law: Some(TimeLaw::LogUniform { min: 0.002, max: 80.0 }),
                objective: Some(Objective::DiffusionForcing {}),
                ..edm
            },
            Preset::SelfForcing => {
                ProcessConfig { objective: Some(Objective::SelfForcing(SelfForcing::default())), ..edm }
            }
        }
    }
}
