//! `[sample]` of a configuration: the sampler, the grid and the guidance that its keys ask for.

use super::names::{SAMPLERS, SamplerKind};
use super::{
    Adaptive, Bh, Correction, Ddim, Ddpm, Diffusion, Dpm2, DpmSde, DpmSolver, Edm, Euler, EulerAncestral,
    EulerMaruyama, FinalLevel, Forcing, Form, Grid, GridKind, Guidance, GuidanceKind, Heun, History, Inverse, Langevin,
    LastStep, Lcm, MeanFlow, Multistep, PosteriorVariance, PredictorCorrector, Renoise, Rule, RungeKutta, SaSolver,
    Sampler, SdeHeun, Spacing, Tableau, Tcd, UniPc,
};
use crate::process::{Process, TimeDomain, Variance};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How to sample. Keys that are absent are the sampler's usual ones; a key that the sampler does not read is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The sampler.
    pub sampler: SamplerKind,
    /// Steps (levels, of `langevin`).
    pub steps: usize,
    /// Spacing of the levels; what suits the process if absent.
    pub grid: Option<GridKind>,
    /// Exponent of `karras`; 7 if absent.
    pub rho: Option<f64>,
    /// Shift of uniform grids toward noise; 1: none.
    pub shift: f64,
    /// Tokens of a sample, for the exponential shift of uniform grids.
    pub dynamic_shift: Option<usize>,
    /// Last noisy time, to which uniform grids are stretched.
    pub shift_terminal: Option<f64>,
    /// Whether the grid ends at clean data or at the least noise.
    pub final_level: FinalLevel,
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
    /// Bound of estimated data; 0: none.
    pub clip: f64,
    /// A schedule of its own for every token of a sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forcing: Option<Forcing>,
    /// How samples are made to agree with a measurement, where one is given; without one it is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inverse: Option<Inverse>,
    /// Share of the posterior's standard deviation that is fresh noise, 0 to 1.
    pub eta: Option<f64>,
    /// Variance of `ddpm`: `small`, `large`, or `learned`, which it is if the process learned it.
    pub variance: Option<PosteriorVariance>,
    /// Where the second slope of `rk2` is, in (0, 1].
    pub alpha: Option<f64>,
    /// Absolute tolerance of adaptive solvers; 1e-6 if absent.
    pub atol: Option<f64>,
    /// Relative tolerance; 1e-3 if absent.
    pub rtol: Option<f64>,
    /// Order of multistep and exponential solvers.
    pub order: Option<usize>,
    /// Second-order term of DPM-Solver and of `sa_solver`: `midpoint` (the published default) or `heun`.
    pub correction: Option<Correction>,
    /// Whether short runs end with steps of falling order; true if absent.
    pub lower_order_final: Option<bool>,
    /// Whether the last step of DPM-Solver is of first order wherever it ends.
    pub euler_at_final: Option<bool>,
    /// `B(h)` of `unipc`.
    pub bh: Option<Bh>,
    /// Whether `unipc` and `sa_solver` correct; true if absent.
    pub corrector: Option<bool>,
    /// Churn of `edm`.
    pub s_churn: Option<f64>,
    /// Least `sigma / alpha` with churn, or with noise of `sa_solver`.
    pub s_min: Option<f64>,
    /// Greatest `sigma / alpha` with them.
    pub s_max: Option<f64>,
    /// Deviation of churn's noise.
    pub s_noise: Option<f64>,
    /// Diffusion of `euler_maruyama` and `sde_heun`.
    pub diffusion: Option<Diffusion>,
    /// Its scale; what is usual for it if absent.
    pub diffusion_scale: Option<f64>,
    /// Their last step.
    pub last_step: Option<LastStep>,
    /// Signal-to-noise ratio of Langevin correctors; 0.16 if absent.
    pub snr: Option<f64>,
    /// Corrector steps per level; 1 if absent.
    pub corrector_steps: Option<usize>,
    /// Steps per level of `langevin`; 100 if absent.
    pub langevin_steps: Option<usize>,
    /// Step size of `langevin`, in units of the level's `sigma^2`; 0.1 if absent.
    pub langevin_rate: Option<f64>,
    /// Noise of `sa_solver` in units of the reverse-time SDE's, 0 or more; 1 if absent.
    pub tau: Option<f64>,
    /// How far `tcd` goes below the next level, 0 to 1; 0.3 if absent.
    pub gamma: Option<f64>,
}

impl Default for SampleConfig {
    fn default() -> SampleConfig {
        SampleConfig {
            sampler: SamplerKind::Heun,
            steps: 32,
            grid: None,
            rho: None,
            shift: 1.0,
            dynamic_shift: None,
            shift_terminal: None,
            final_level: FinalLevel::Zero,
            guidance: GuidanceKind::Cfg,
            cfg: 1.0,
            guidance_interval: None,
            guidance_sigma_interval: None,
            cfg_channels: None,
            cfg_rescale: 0.0,
            clip: 0.0,
            forcing: None,
            inverse: None,
            eta: None,
            variance: None,
            alpha: None,
            atol: None,
            rtol: None,
            order: None,
            correction: None,
            lower_order_final: None,
            euler_at_final: None,
            bh: None,
            corrector: None,
            s_churn: None,
            s_min: None,
            s_max: None,
            s_noise: None,
            diffusion: None,
            diffusion_scale: None,
            last_step: None,
            snr: None,
            corrector_steps: None,
            langevin_steps: None,
            langevin_rate: None,
            tau: None,
            gamma: None,
        }
    }
}

impl SampleConfig {
    /// The same with every key that its sampler and grid read written out; it samples alike.
    pub fn resolved(&self, process: &Process) -> SampleConfig {
        use SamplerKind::{
            Ddim, Deis, Dpm2m, Dpm2mSde, Dpm2s, Dpm3m, Dpm3s, Dpmpp2m, Dpmpp2mSde, Dpmpp2s, Dpmpp3m, Dpmpp3s,
        };
        let mut c = self.clone();
        c.grid = Some(self.grid_kind(process));
        if c.grid == Some(GridKind::Karras) {
            c.rho.get_or_insert(7.0);
        }
        let diffusion = self.diffusion.unwrap_or_default();
        for key in self.sampler.info().keys {
            match *key {
                "eta" => {
                    c.eta.get_or_insert(if self.sampler == Ddim { 0.0 } else { 1.0 });
                }
                "variance" => {
                    c.variance.get_or_insert(match process.variance {
                        Variance::Fixed => PosteriorVariance::Small,
                        Variance::LearnedRange { .. } => PosteriorVariance::Learned,
                    });
                }
                "alpha" => {
                    c.alpha.get_or_insert(0.5);
                }
                "atol" => {
                    c.atol.get_or_insert(1e-6);
                }
                "rtol" => {
                    c.rtol.get_or_insert(1e-3);
                }
                "order" => {
                    c.order.get_or_insert(match self.sampler {
                        Dpm2m | Dpm2s | Dpm2mSde | Dpmpp2m | Dpmpp2s | Dpmpp2mSde => 2,
                        SamplerKind::Unipc | SamplerKind::SaSolver => 2,
                        Deis | Dpm3m | Dpm3s | Dpmpp3m | Dpmpp3s => 3,
                        _ => 4,
                    });
                }
                "correction" => {
                    c.correction.get_or_insert_default();
                }
                "lower_order_final" => {
                    c.lower_order_final.get_or_insert(true);
                }
                "euler_at_final" => {
                    c.euler_at_final.get_or_insert(false);
                }
                "bh" => {
                    c.bh.get_or_insert_default();
                }
                "corrector" => {
                    c.corrector.get_or_insert(true);
                }
                "s_churn" => {
                    c.s_churn.get_or_insert(0.0);
                }
                "s_min" => {
                    c.s_min.get_or_insert(0.0);
                }
                "s_max" => {
                    c.s_max.get_or_insert(f64::INFINITY);
                }
                "s_noise" => {
                    c.s_noise.get_or_insert(1.0);
                }
                "diffusion" => {
                    c.diffusion.get_or_insert(diffusion);
                }
                "diffusion_scale" => {
                    c.diffusion_scale.get_or_insert(diffusion.usual_scale());
                }
                "last_step" => {
                    c.last_step.get_or_insert_default();
                }
                "snr" => {
                    c.snr.get_or_insert(0.16);
                }
                "corrector_steps" => {
                    c.corrector_steps.get_or_insert(1);
                }
                "langevin_steps" => {
                    c.langevin_steps.get_or_insert(100);
                }
                "langevin_rate" => {
                    c.langevin_rate.get_or_insert(0.1);
                }
                "tau" => {
                    c.tau.get_or_insert(1.0);
                }
                "gamma" => {
                    c.gamma.get_or_insert(0.3);
                }
                other => unreachable!("key {other} of {} has no default", self.sampler.info().name),
            }
        }
        c
    }

    /// The keys of solvers, and whether they are given.
    fn given(&self) -> [(&'static str, bool); 24] {
        [
            ("eta", self.eta.is_some()),
            ("variance", self.variance.is_some()),
            ("alpha", self.alpha.is_some()),
            ("atol", self.atol.is_some()),
            ("rtol", self.rtol.is_some()),
            ("order", self.order.is_some()),
            ("correction", self.correction.is_some()),
            ("lower_order_final", self.lower_order_final.is_some()),
            ("euler_at_final", self.euler_at_final.is_some()),
            ("bh", self.bh.is_some()),
            ("corrector", self.corrector.is_some()),
            ("s_churn", self.s_churn.is_some()),
            ("s_min", self.s_min.is_some()),
            ("s_max", self.s_max.is_some()),
            ("s_noise", self.s_noise.is_some()),
            ("diffusion", self.diffusion.is_some()),
            ("diffusion_scale", self.diffusion_scale.is_some()),
            ("last_step", self.last_step.is_some()),
            ("snr", self.snr.is_some()),
            ("corrector_steps", self.corrector_steps.is_some()),
            ("langevin_steps", self.langevin_steps.is_some()),
            ("langevin_rate", self.langevin_rate.is_some()),
            ("tau", self.tau.is_some()),
            ("gamma", self.gamma.is_some()),
        ]
    }

    /// The keys that are given and that this sampler does not read.
    pub fn unread(&self, sampler: SamplerKind) -> Vec<&'static str> {
        let keys = sampler.info().keys;
        self.given().into_iter().filter(|(key, given)| *given && !keys.contains(key)).map(|(key, _)| key).collect()
    }

    /// The sampler.
    ///
    /// # Errors
    /// Names the key that is out of range, is not read, or does not fit the process.
    pub fn sampler(&self, process: &Process) -> Result<Box<dyn Sampler>> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        if let Some(key) = self.unread(self.sampler).first() {
            let readers: Vec<&str> = SAMPLERS.iter().filter(|r| r.keys.contains(key)).map(|r| r.name).collect();
            let (readers, name) = (readers.join(", "), self.sampler.info().name);
            return bad(key, format!("is read only by {readers}; the sampler is {name}"));
        }
        if !(self.clip >= 0.0) {
            return bad("clip", format!("is {}; it must be 0 or more", self.clip));
        }
        self.check_guidance()?;
        for (key, value) in [("eta", self.eta), ("gamma", self.gamma)] {
            if let Some(value) = value
                && !(0.0..=1.0).contains(&value)
            {
                return bad(key, format!("is {value}; it must be in [0, 1]"));
            }
        }
        for (key, value) in [("atol", self.atol), ("rtol", self.rtol), ("snr", self.snr)] {
            if let Some(value) = value
                && !(value > 0.0)
            {
                return bad(key, format!("is {value}; it must be positive"));
            }
        }
        let sampler = self.resolved(process).build(process)?;
        if let Some(forcing) = &self.forcing {
            forcing.check()?;
            if sampler.law().is_none() {
                let name = self.sampler.info().name;
                let message = format!(
                    "wants steps of one estimate each, which {name} has not; take ddim, ddpm, consistency, scm or \
                     stochastic_flow"
                );
                return bad("forcing", message);
            }
        }
        if let Some(inverse) = &self.inverse {
            inverse.check(self, &*sampler)?;
        }
        // Whether it has a meaning on this path and grid is the sampler's to say; better before training than after.
        sampler.start(&super::Run { process, grid: &sampler.levels(process, &self.grid(process)?)? })?;
        Ok(sampler)
    }

    /// The sampler of a configuration whose keys are all written out.
    fn build(&self, process: &Process) -> Result<Box<dyn Sampler>> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        Ok(match self.sampler {
            SamplerKind::Euler => Box::new(Euler),
            SamplerKind::Heun => Box::new(Heun),
            SamplerKind::Midpoint => Box::new(RungeKutta::second_order(0.5)),
            SamplerKind::Ralston => Box::new(RungeKutta::second_order(2.0 / 3.0)),
            SamplerKind::Rk2 => {
                let alpha = self.alpha.unwrap_or_default();
                if !(alpha > 0.0 && alpha <= 1.0) {
                    return bad("alpha", format!("is {alpha}; it must be in (0, 1]"));
                }
                Box::new(RungeKutta::second_order(alpha))
            }
            SamplerKind::Rk4 => Box::new(RungeKutta::rk4()),
            SamplerKind::Rk23 => self.adaptive(Tableau::bogacki_shampine()),
            SamplerKind::Rk45 => self.adaptive(Tableau::dormand_prince()),
            SamplerKind::Tsit5 => self.adaptive(Tableau::tsitouras()),
            SamplerKind::Edm => Box::new(Edm {
                churn: self.s_churn.unwrap_or_default(),
                min: self.s_min.unwrap_or_default(),
                max: self.s_max.unwrap_or_default(),
                noise: self.s_noise.unwrap_or_default(),
            }),
            SamplerKind::EulerMaruyama => Box::new(self.sde()),
            SamplerKind::SdeHeun => Box::new(SdeHeun(self.sde())),
            SamplerKind::Ddpm => Box::new(Ddpm { variance: self.variance.unwrap_or_default() }),
            SamplerKind::Ddim => Box::new(Ddim { eta: self.eta.unwrap_or_default() }),
            SamplerKind::EulerAncestral => Box::new(EulerAncestral { eta: self.eta.unwrap_or_default() }),
            SamplerKind::Dpm2 => Box::new(Dpm2 { eta: 0.0 }),
            SamplerKind::Dpm2Ancestral => Box::new(Dpm2 { eta: self.eta.unwrap_or_default() }),
            SamplerKind::Lms => self.multistep(Rule::Lms),
            SamplerKind::Plms => self.multistep(Rule::Plms),
            SamplerKind::Pndm => self.multistep(Rule::Pndm),
            SamplerKind::Ipndm => self.multistep(Rule::IPndm),
            SamplerKind::Deis => self.multistep(Rule::Deis),
            SamplerKind::Dpm2m => self.dpm(Form::Noise, History::Multi, false),
            SamplerKind::Dpm3m => self.dpm(Form::Noise, History::Multi, false),
            SamplerKind::Dpm2s => self.dpm(Form::Noise, History::Single, false),
            SamplerKind::Dpm3s => self.dpm(Form::Noise, History::Single, false),
            SamplerKind::Dpm2mSde => self.dpm(Form::Noise, History::Multi, true),
            SamplerKind::Dpmpp2m => self.dpm(Form::Data, History::Multi, false),
            SamplerKind::Dpmpp3m => self.dpm(Form::Data, History::Multi, false),
            SamplerKind::Dpmpp2s => self.dpm(Form::Data, History::Single, false),
            SamplerKind::Dpmpp3s => self.dpm(Form::Data, History::Single, false),
            SamplerKind::Dpmpp2mSde => self.dpm(Form::Data, History::Multi, true),
            SamplerKind::DpmppSde => Box::new(DpmSde { eta: self.eta.unwrap_or_default() }),
            SamplerKind::Unipc => Box::new(UniPc {
                form: Form::Data,
                order: self.order.unwrap_or_default(),
                bh: self.bh.unwrap_or_default(),
                corrector: self.corrector.unwrap_or_default(),
                lower_order_final: self.lower_order_final.unwrap_or_default(),
            }),
            SamplerKind::SaSolver => Box::new(SaSolver {
                order: self.order.unwrap_or_default(),
                tau: self.tau.unwrap_or_default(),
                range: [self.s_min.unwrap_or_default(), self.s_max.unwrap_or_default()],
                corrector: self.corrector.unwrap_or_default(),
                correction: self.correction.unwrap_or_default(),
                lower_order_final: self.lower_order_final.unwrap_or_default(),
            }),
            SamplerKind::PredictorCorrector => Box::new(PredictorCorrector {
                snr: self.snr.unwrap_or_default(),
                corrections: self.corrector_steps.unwrap_or_default(),
            }),
            SamplerKind::Langevin => {
                let (inner, rate) = (self.langevin_steps.unwrap_or_default(), self.langevin_rate.unwrap_or_default());
                if inner == 0 {
                    return bad("langevin_steps", "is 0; it must be positive".into());
                }
                if !(rate > 0.0) {
                    return bad("langevin_rate", format!("is {rate}; it must be positive"));
                }
                if process.path != crate::process::Path::Ve {
                    let name = process.path.name();
                    return bad("sampler", format!("langevin anneals sigma of path ve, not of {name}"));
                }
                Box::new(Langevin { inner, rate })
            }
            SamplerKind::MeanFlow => Box::new(MeanFlow),
            SamplerKind::Consistency => {
                let clean = process.path.domain() == TimeDomain::Sigma;
                Box::new(Renoise { floor: if clean { process.time_range[0] } else { 0.0 } })
            }
            SamplerKind::Scm | SamplerKind::StochasticFlow => Box::new(Renoise::default()),
            SamplerKind::Lcm => Box::new(Lcm::default()),
            SamplerKind::Tcd => Box::new(Tcd { gamma: self.gamma.unwrap_or_default() }),
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

    fn adaptive(&self, rule: Tableau) -> Box<dyn Sampler> {
        Box::new(Adaptive { rule, atol: self.atol.unwrap_or_default(), rtol: self.rtol.unwrap_or_default() })
    }

    fn sde(&self) -> EulerMaruyama {
        let (diffusion, scale) = (self.diffusion.unwrap_or_default(), self.diffusion_scale.unwrap_or_default());
        EulerMaruyama { diffusion, scale, last: self.last_step.unwrap_or_default() }
    }

    fn multistep(&self, rule: Rule) -> Box<dyn Sampler> {
        let order = self.order.unwrap_or_default();
        Box::new(Multistep { rule, order, lower_order_final: self.lower_order_final.unwrap_or_default() })
    }

    fn dpm(&self, form: Form, history: History, stochastic: bool) -> Box<dyn Sampler> {
        Box::new(DpmSolver {
            form,
            history,
            order: self.order.unwrap_or_default(),
            stochastic,
            correction: self.correction.unwrap_or_default(),
            lower_order_final: self.lower_order_final.unwrap_or_default(),
            euler_at_final: self.euler_at_final.unwrap_or_default(),
        })
    }

    fn grid_kind(&self, process: &Process) -> GridKind {
        self.grid.unwrap_or(match self.sampler {
            SamplerKind::Langevin => GridKind::Exponential,
            _ => GridKind::default_of(process),
        })
    }

    /// The grid.
    pub fn grid(&self, process: &Process) -> Result<Grid> {
        let kind = self.grid_kind(process);
        if self.rho.is_some() && kind != GridKind::Karras {
            return Err(Error::config("sample.rho", "is read only by grid karras"));
        }
        let spacing = Spacing {
            kind,
            shift: self.shift,
            dynamic_shift: self.dynamic_shift,
            shift_terminal: self.shift_terminal,
            rho: self.rho.unwrap_or(7.0),
            end: self.final_level,
        };
        Grid::spaced(process, &spacing, self.steps)
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

#[cfg(test)]
mod tests {
    use super::super::GRIDS;
    use super::*;
    use crate::process::Preset;

    /// The tables, serde's names and the enum say the same.
    #[test]
    fn names_and_tables_agree() {
        for row in SAMPLERS {
            let c: SampleConfig = toml::from_str(&format!("sampler = \"{}\"", row.name)).unwrap();
            assert_eq!(c.sampler, row.kind);
            let known: Vec<&str> = c.given().iter().map(|(key, _)| *key).collect();
            assert!(row.keys.iter().all(|key| known.contains(key)), "{}", row.name);
        }
        for (name, _) in GRIDS {
            assert!(toml::from_str::<SampleConfig>(&format!("grid = \"{name}\"")).is_ok(), "{name}");
        }
        for name in ["linspace", "log_snr"] {
            assert!(toml::from_str::<SampleConfig>(&format!("grid = \"{name}\"")).is_ok(), "{name}");
        }
        for preset in [Preset::Edm, Preset::Ddpm] {
            let process = preset.process();
            for row in SAMPLERS {
                let all = SampleConfig { sampler: row.kind, ..Default::default() }.resolved(&process);
                assert!(row.keys.iter().all(|key| all.given().contains(&(key, true))), "{all:?}");
                assert!(all.unread(row.kind).is_empty() && all.grid.is_some());
                assert_eq!(all.resolved(&process), all);
                let back: SampleConfig = toml::from_str(&toml::to_string(&all).unwrap()).unwrap();
                assert_eq!(back, all);
            }
        }
        let read: Vec<&str> = SAMPLERS.iter().flat_map(|row| row.keys).copied().collect();
        assert!(SampleConfig::default().given().iter().all(|(key, _)| read.contains(key)));
    }

    #[test]
    fn keys_that_are_not_read_are_refused() {
        let ddpm = Preset::Ddpm.process();
        let refused = |text: &str| {
            let c: SampleConfig = toml::from_str(text).unwrap();
            c.sampler(&ddpm).err().unwrap_or_else(|| panic!("{text} is accepted")).to_string()
        };
        for (text, key) in [
            ("eta = 0.5", "sample.eta"),
            ("sampler = \"ddim\"\nvariance = \"large\"", "sample.variance"),
            ("sampler = \"ddim\"\neta = 1.5", "sample.eta"),
            ("sampler = \"lms\"\norder = 5", "sample.order"),
            ("sampler = \"dpmpp_2m\"\norder = 4", "sample.order"),
            ("sampler = \"unipc\"\norder = 0", "sample.order"),
            ("sampler = \"sa_solver\"\norder = 5", "sample.order"),
            ("sampler = \"sa_solver\"\ntau = -0.1", "sample.tau"),
            ("sampler = \"sa_solver\"\ns_min = 2.0\ns_max = 1.0", "sample.s_max"),
            ("sampler = \"rk2\"\nalpha = 0.0", "sample.alpha"),
            ("sampler = \"edm\"\ns_churn = -1.0", "sample.s_churn"),
            ("sampler = \"edm\"\ns_min = 1.0\ns_max = 0.5", "sample.s_max"),
            ("sampler = \"rk45\"\natol = 0.0", "sample.atol"),
            ("sampler = \"euler_maruyama\"\ndiffusion = \"linear\"", "sample.diffusion"),
            ("sampler = \"mean_flow\"", "sample.sampler"),
            ("sampler = \"langevin\"", "sample.sampler"),
            ("rho = 5.0", "sample.rho"),
        ] {
            let e = refused(text);
            assert!(e.starts_with(key), "{text}: {e}");
        }
        let sit = Preset::Sit.process();
        let reverse: SampleConfig = toml::from_str("sampler = \"sde_heun\"\ndiffusion = \"reverse\"").unwrap();
        let e = reverse.sampler(&sit).err().unwrap().to_string();
        assert!(e.starts_with("sample.diffusion") && e.contains("time 1"), "{e}");
        let lcm: SampleConfig = toml::from_str("sampler = \"lcm\"").unwrap();
        assert!(lcm.sampler(&sit).err().unwrap().to_string().contains("path linear"));
    }
}
