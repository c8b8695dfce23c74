//! Names of samplers and grids, and the keys each sampler reads.

use serde::{Deserialize, Serialize};

/// Samplers by name; [`SAMPLERS`] says what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SamplerKind {
    Euler,
    Heun,
    Midpoint,
    Ralston,
    Rk2,
    Rk4,
    Rk23,
    Rk45,
    Tsit5,
    Edm,
    EulerMaruyama,
    SdeHeun,
    Ddpm,
    Ddim,
    EulerAncestral,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    Plms,
    Pndm,
    Ipndm,
    Deis,
    #[serde(rename = "dpm_2m")]
    Dpm2m,
    #[serde(rename = "dpm_3m")]
    Dpm3m,
    #[serde(rename = "dpm_2s")]
    Dpm2s,
    #[serde(rename = "dpm_3s")]
    Dpm3s,
    #[serde(rename = "dpm_2m_sde")]
    Dpm2mSde,
    #[serde(rename = "dpmpp_2m")]
    Dpmpp2m,
    #[serde(rename = "dpmpp_3m")]
    Dpmpp3m,
    #[serde(rename = "dpmpp_2s")]
    Dpmpp2s,
    #[serde(rename = "dpmpp_3s")]
    Dpmpp3s,
    #[serde(rename = "dpmpp_2m_sde")]
    Dpmpp2mSde,
    DpmppSde,
    Unipc,
    SaSolver,
    PredictorCorrector,
    Langevin,
    MeanFlow,
    Consistency,
    Scm,
    StochasticFlow,
    Lcm,
    Tcd,
}

/// A sampler: its name, the keys that it reads beside those that all do, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct SamplerInfo {
    /// The sampler.
    pub kind: SamplerKind,
    /// Its name in configurations.
    pub name: &'static str,
    /// Keys of `[sample]`.
    pub keys: &'static [&'static str],
    /// One line.
    pub about: &'static str,
}

const ENDS: &[&str] = &["order", "lower_order_final"];
const DPM: &[&str] = &["order", "correction", "lower_order_final", "euler_at_final"];
const SA: &[&str] = &["order", "correction", "corrector", "lower_order_final", "tau", "s_min", "s_max"];
const SDE: &[&str] = &["diffusion", "diffusion_scale", "last_step"];
const TOLERANCES: &[&str] = &["atol", "rtol"];

const fn row(kind: SamplerKind, name: &'static str, keys: &'static [&'static str], about: &'static str) -> SamplerInfo {
    SamplerInfo { kind, name, keys, about }
}

/// All samplers.
#[rustfmt::skip]
pub const SAMPLERS: &[SamplerInfo] = {
    use SamplerKind::*;
    &[
        row(Euler, "euler", &[], "ODE, first order, in the path's time"),
        row(Heun, "heun", &[], "ODE, second order, two evaluations a step; EDM's deterministic sampler"),
        row(Midpoint, "midpoint", &[], "ODE, second order, the second slope half-way"),
        row(Ralston, "ralston", &[], "ODE, second order, the second slope at two thirds"),
        row(Rk2, "rk2", &["alpha"], "ODE, second order, the second slope at alpha of the step"),
        row(Rk4, "rk4", &[], "ODE, fourth order, four evaluations a step"),
        row(Rk23, "rk23", TOLERANCES, "ODE, adaptive, Bogacki-Shampine 3(2); chooses its own times"),
        row(Rk45, "rk45", TOLERANCES, "ODE, adaptive, Dormand-Prince 5(4) (dopri5); chooses its own times"),
        row(Tsit5, "tsit5", TOLERANCES, "ODE, adaptive, Tsitouras 5(4); chooses its own times"),
        row(Edm, "edm", &["s_churn", "s_min", "s_max", "s_noise"], "EDM's stochastic sampler: churn, then Heun"),
        row(EulerMaruyama, "euler_maruyama", SDE, "SDE with a choice of diffusion, first order"),
        row(SdeHeun, "sde_heun", SDE, "the same with Heun's drift, two evaluations a step"),
        row(Ddpm, "ddpm", &["variance"], "ancestral sampling through the posterior"),
        row(Ddim, "ddim", &["eta"], "deterministic (eta = 0) to ancestral (eta = 1)"),
        row(EulerAncestral, "euler_ancestral", &["eta"], "Euler down, noise up; eta = 1 if absent"),
        row(Dpm2, "dpm2", &[], "midpoint in ln sigma, two evaluations a step"),
        row(Dpm2Ancestral, "dpm2_ancestral", &["eta"], "the same, ancestral; eta = 1 if absent"),
        row(Lms, "lms", &["order"], "linear multistep in sigma, order 1 to 4"),
        row(Plms, "plms", &["order"], "Adams' weights on DDIM's step, begun by improved Euler"),
        row(Pndm, "pndm", &["order"], "the same begun by three Runge-Kutta steps"),
        row(Ipndm, "ipndm", &["order"], "the same begun with lower orders"),
        row(Deis, "deis", ENDS, "exponential multistep, polynomial in ln sigma, order 1 to 3"),
        row(Dpm2m, "dpm_2m", DPM, "DPM-Solver of the noise, multistep, order 2"),
        row(Dpm3m, "dpm_3m", DPM, "the same, order 3 with correction = heun"),
        row(Dpm2s, "dpm_2s", DPM, "DPM-Solver of the noise, singlestep, order 2"),
        row(Dpm3s, "dpm_3s", DPM, "the same, order 3"),
        row(Dpm2mSde, "dpm_2m_sde", DPM, "DPM-Solver of the noise for the SDE, multistep"),
        row(Dpmpp2m, "dpmpp_2m", DPM, "DPM-Solver++ of the data, multistep, order 2"),
        row(Dpmpp3m, "dpmpp_3m", DPM, "the same, order 3 with correction = heun"),
        row(Dpmpp2s, "dpmpp_2s", DPM, "DPM-Solver++, singlestep, order 2"),
        row(Dpmpp3s, "dpmpp_3s", DPM, "the same, order 3"),
        row(Dpmpp2mSde, "dpmpp_2m_sde", DPM, "DPM-Solver++ for the SDE, multistep"),
        row(DpmppSde, "dpmpp_sde", &["eta"], "DPM-Solver++ for the SDE, two evaluations a step; eta = 1 if absent"),
        row(Unipc, "unipc", &["order", "lower_order_final", "bh", "corrector"], "UniPC, predictor and corrector, order 1 to 3"),
        row(SaSolver, "sa_solver", SA, "SA-Solver: Adams for the SDE with tau times its noise, order 1 to 4"),
        row(PredictorCorrector, "predictor_corrector", &["snr", "corrector_steps"], "reverse diffusion and Langevin correctors"),
        row(Langevin, "langevin", &["langevin_steps", "langevin_rate"], "annealed Langevin dynamics; path ve"),
        row(MeanFlow, "mean_flow", &[], "jumps of a network of two times"),
        row(Consistency, "consistency", &[], "to clean data and noise again; floor of the least sigma"),
        row(Scm, "scm", &[], "the same to no noise at all, as sCM has it"),
        row(StochasticFlow, "stochastic_flow", &[], "the same on a straight path: (1 - t) x0 + t z"),
        row(Lcm, "lcm", &[], "the same of LCM's boundary form; discrete path"),
        row(Tcd, "tcd", &["gamma"], "DDIM below the next level, noise up to it"),
    ]
};

/// All grids with what they are.
pub const GRIDS: &[(&str, &str)] = &[
    ("uniform", "evenly in time (linspace); reads shift, dynamic_shift, shift_terminal on unit paths"),
    ("leading", "steps 0, T/n, 2T/n.. of a chain"),
    ("trailing", "steps T-1, T-1-T/n.. of a chain"),
    ("quadratic", "evenly in the square root of time"),
    ("karras", "evenly in sigma^(1/rho); reads rho"),
    ("exponential", "evenly in ln sigma (log_snr)"),
    ("beta", "quantiles of beta(0.6, 0.6)"),
    ("ays", "Align Your Steps, Stable Diffusion 1.5"),
    ("ays_sdxl", "Align Your Steps, Stable Diffusion XL"),
    ("ays_svd", "Align Your Steps, Stable Video Diffusion"),
];

impl SamplerKind {
    /// Its row in [`SAMPLERS`].
    pub fn info(self) -> &'static SamplerInfo {
        SAMPLERS.iter().find(|row| row.kind == self).expect("every sampler has a row")
    }
}
