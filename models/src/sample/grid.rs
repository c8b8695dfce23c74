//! Grids of noise levels that samplers walk down, from the noisiest to clean data.

use super::ays;
use super::quantile::beta_quantile;
use crate::process::{Level, Process, Time, TimeDomain, shifted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the levels of a grid are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridKind {
    /// Evenly in time. Of a discrete chain both the first and the last step are in it.
    #[serde(alias = "linspace")]
    Uniform,
    /// Steps `0, T/n, 2T/n..` of a discrete chain.
    Leading,
    /// Steps `T - 1, T - 1 - T/n..` of a discrete chain.
    Trailing,
    /// Evenly in the square root of time.
    Quadratic,
    /// Evenly in `(sigma / alpha)^(1 / rho)` (Karras et al., 2022).
    Karras,
    /// Evenly in the logarithm of `sigma / alpha`, which is that of the log-SNR.
    #[serde(alias = "log_snr")]
    Exponential,
    /// Quantiles of the beta(0.6, 0.6) law, dense at both ends (Lee et al., 2024): of time on unit paths, of
    /// `sigma / alpha` elsewhere.
    Beta,
    /// Align Your Steps' table of Stable Diffusion 1.5.
    Ays,
    /// Its table of Stable Diffusion XL.
    AysSdxl,
    /// Its table of Stable Video Diffusion.
    AysSvd,
}

/// Where a grid ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalLevel {
    /// At clean data.
    #[default]
    Zero,
    /// At the least noise of the process's time range.
    Min,
}

/// A grid to be: its kind and what departs from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spacing {
    /// How levels are spaced.
    pub kind: GridKind,
    /// `s` of `s t / (1 + (s - 1) t)`, which moves unit times toward noise; 1: not at all.
    pub shift: f64,
    /// Tokens of a sample, for the exponential shift `e^mu / (e^mu + 1 / t - 1)` with `mu` linear from 0.5 at 256
    /// tokens to 1.15 at 4096 (Flux).
    pub dynamic_shift: Option<usize>,
    /// The last noisy time, to which unit times are then stretched.
    pub shift_terminal: Option<f64>,
    /// `rho` of [`GridKind::Karras`].
    pub rho: f64,
    /// Where it ends.
    pub end: FinalLevel,
}

impl Spacing {
    /// A kind with nothing that departs from it.
    pub fn new(kind: GridKind) -> Spacing {
        Spacing { kind, shift: 1.0, dynamic_shift: None, shift_terminal: None, rho: 7.0, end: FinalLevel::Zero }
    }

    /// Whether times are moved, and by which key.
    fn moved(&self) -> Option<&'static str> {
        [
            ("shift", self.shift != 1.0),
            ("dynamic_shift", self.dynamic_shift.is_some()),
            ("shift_terminal", self.shift_terminal.is_some()),
        ]
        .into_iter()
        .find_map(|(key, moved)| moved.then_some(key))
    }
}

/// The factor `e^mu` of the dynamic shift for this many tokens.
pub fn dynamic_shift(tokens: usize) -> f64 {
    (0.5 + (1.15 - 0.5) * (tokens as f64 - 256.0) / (4096.0 - 256.0)).exp()
}

/// Levels from noise to data; the last is clean, unless the grid was asked to end before.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The levels, one more than there are steps.
    pub levels: Vec<Level<f64>>,
}

impl GridKind {
    /// The kind a process is usually sampled on.
    pub fn default_of(process: &Process) -> GridKind {
        match process.path.domain() {
            TimeDomain::Sigma => GridKind::Karras,
            _ => GridKind::Uniform,
        }
    }
}

impl Grid {
    /// A grid of `steps` steps. `shift` moves uniform grids of unit paths toward noise; 1 leaves them.
    ///
    /// # Errors
    /// If the kind does not fit the path, or the chain has fewer steps.
    pub fn new(process: &Process, kind: GridKind, steps: usize, shift: f64) -> Result<Grid> {
        Grid::spaced(process, &Spacing { shift, ..Spacing::new(kind) }, steps)
    }

    /// A grid of `steps` steps.
    ///
    /// # Errors
    /// Names what is out of range or does not fit the path.
    pub fn spaced(process: &Process, spacing: &Spacing, steps: usize) -> Result<Grid> {
        let kind = spacing.kind;
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        if steps == 0 {
            return bad("steps", "is 0; sampling takes at least one step".into());
        }
        for (key, value) in [("shift", spacing.shift), ("rho", spacing.rho)] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(key, format!("is {value}; it must be positive"));
            }
        }
        let domain = process.path.domain();
        let count = if let TimeDomain::Step { count } = domain { Some(count) } else { None };
        if let Some(count) = count
            && steps > count
        {
            return bad("steps", format!("is {steps}, more than the {count} steps of the chain"));
        }
        if let Some(key) = spacing.moved()
            && (domain != TimeDomain::Unit || kind != GridKind::Uniform)
        {
            return bad(key, "moves only uniform grids of paths whose time is in [0, 1]".into());
        }
        if spacing.shift != 1.0 && spacing.dynamic_shift.is_some() {
            return bad("dynamic_shift", "and shift are two answers to one question; give one".into());
        }
        if let Some(terminal) = spacing.shift_terminal
            && !(0.0 < terminal && terminal < 1.0)
        {
            return bad("shift_terminal", format!("is {terminal}; it must be in (0, 1)"));
        }
        let [low, high] = process.time_range;
        let step_gap = |steps: usize| (high - low) / (steps - 1).max(1) as f64;
        let mut levels = Vec::with_capacity(steps + 1);
        let mut push = |t: f64| -> Result<()> {
            levels.push(process.level(Time::new(domain, t)?)?);
            Ok(())
        };
        match (kind, count) {
            (GridKind::Uniform, Some(_)) => {
                (0..steps).try_for_each(|i| push((high - step_gap(steps) * i as f64).round()))?;
            }
            (GridKind::Quadratic, Some(_)) => {
                let at = |i: usize| 1.0 - i as f64 / (steps - 1).max(1) as f64;
                (0..steps).try_for_each(|i| push((low + (high - low) * at(i).powi(2)).round()))?;
            }
            (GridKind::Leading, Some(count)) => {
                (0..steps).rev().try_for_each(|i| push((i * (count / steps)) as f64))?;
            }
            (GridKind::Trailing, Some(count)) => {
                let gap = count as f64 / steps as f64;
                (0..steps).try_for_each(|i| push((count as f64 - gap * i as f64).round() - 1.0))?;
            }
            (GridKind::Leading | GridKind::Trailing, None) => {
                return bad(
                    "grid",
                    format!("{kind:?} spaces the steps of a chain; path {} has none", process.path.name()),
                );
            }
            (GridKind::Uniform, None) => {
                let even = |i: usize| high * (1.0 - i as f64 / steps as f64);
                let shift = spacing.dynamic_shift.map_or(spacing.shift, dynamic_shift);
                let mut times: Vec<f64> = (0..steps).map(|i| shifted(even(i), shift)).collect();
                if let Some(terminal) = spacing.shift_terminal {
                    let q = (1.0 - times[steps - 1]) / (1.0 - terminal);
                    times.iter_mut().for_each(|t| *t = 1.0 - (1.0 - *t) / q);
                }
                times.into_iter().try_for_each(|t| push(t.max(low)))?;
            }
            (GridKind::Quadratic, None) => {
                (0..steps).try_for_each(|i| push((high * (1.0 - i as f64 / steps as f64).powi(2)).max(low)))?;
            }
            (GridKind::Beta, None) if domain == TimeDomain::Unit => {
                let at = |i: usize| beta_quantile(1.0 - i as f64 / steps as f64, BETA, BETA);
                (0..steps).try_for_each(|i| push(low + (high - low) * at(i)))?;
            }
            (
                GridKind::Karras
                | GridKind::Exponential
                | GridKind::Beta
                | GridKind::Ays
                | GridKind::AysSdxl
                | GridKind::AysSvd,
                _,
            ) => levels = by_ratio(process, spacing, steps)?,
        };
        let end = process.level(Time::new(domain, low)?)?;
        let end = if spacing.end == FinalLevel::Min { end } else { process.path.clean() };
        // Two times may fall on one step of a chain, and the last of them on the end, if but for rounding.
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
        levels.dedup_by(|a, b| a.time == b.time && a.sigma == b.sigma);
        levels.pop_if(|last| same(last.time, end.time) && same(last.sigma, end.sigma));
        levels.push(end);
        if levels.len() < 2 {
            return bad("final_level", "leaves no step: the grid's only level is its end".into());
        }
        Ok(Grid { levels })
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.levels.len() - 1
    }
}

/// Both parameters of the beta grid.
const BETA: f64 = 0.6;

/// Levels that are spaced in a function of `sigma / alpha`. Of a chain they are whole steps, the nearest, as its
/// network was trained on no others.
fn by_ratio(process: &Process, spacing: &Spacing, steps: usize) -> Result<Vec<Level<f64>>> {
    // Unit paths reach ratio 0 and infinity; EDM's range covers what matters of them.
    let ratio = |t: f64, least: f64, most: f64| -> Result<f64> {
        let level = process.level(Time::new(process.path.domain(), t)?)?;
        let ratio = level.sigma / level.alpha;
        Ok(if process.path.domain() == TimeDomain::Sigma { ratio } else { ratio.clamp(least, most) })
    };
    let [low, high] = process.time_range;
    let (min, max) = (ratio(low, 0.002, 80.0)?, ratio(high, 0.002, 80.0)?);
    if !(min > 0.0) {
        return Err(Error::config("process.time_range", "begins at no noise at all, which this grid cannot space"));
    }
    let rho = spacing.rho;
    let even = |i: usize| i as f64 / (steps - 1).max(1) as f64;
    let by = |f: &dyn Fn(f64) -> f64| (0..steps).map(|i| f(even(i))).collect::<Vec<f64>>();
    let table = |t: &[f64]| ays::levels(t, steps).into_iter().map(|r| r.clamp(min, max)).collect();
    let ratios: Vec<f64> = match spacing.kind {
        GridKind::Karras => by(&|u| (max.powf(1.0 / rho) + u * (min.powf(1.0 / rho) - max.powf(1.0 / rho))).powf(rho)),
        GridKind::Beta => by(&|u| min + (max - min) * beta_quantile(1.0 - u, BETA, BETA)),
        GridKind::Ays => table(&ays::SD15),
        GridKind::AysSdxl => table(&ays::SDXL),
        GridKind::AysSvd => table(&ays::SVD),
        GridKind::Exponential | GridKind::Uniform | GridKind::Quadratic | GridKind::Leading | GridKind::Trailing => {
            by(&|u| max * (min / max).powf(u))
        }
    };
    let level = |r: f64| {
        // Powers need not come back to the ends exactly, and a time beyond an end is not allowed.
        let t = process.path.time_of_ratio(r)?.value().clamp(low, high);
        process.level(Time::new(process.path.domain(), t)?)
    };
    ratios.into_iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Preset, ProcessConfig};
    use approx::assert_relative_eq as close;

    fn times(process: &Process, kind: GridKind, steps: usize) -> Vec<f64> {
        Grid::new(process, kind, steps, 1.0).unwrap().levels.iter().map(|l| l.time).collect()
    }

    #[test]
    fn karras_is_golden() {
        let got = times(&Preset::Edm.process(), GridKind::Karras, 18);
        let want = [
            80.0, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817, 0.585348,
            0.296442, 0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002, 0.0,
        ];
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            close!(*got, want, max_relative = 1e-5);
        }
    }

    #[test]
    fn steps_of_a_chain() {
        let ddpm = Preset::Ddpm.process();
        let leading = times(&ddpm, GridKind::Leading, 50);
        assert_eq!(leading[..3], [980.0, 960.0, 940.0]);
        assert_eq!(leading[49..], [0.0, 0.0]);
        let trailing = times(&ddpm, GridKind::Trailing, 4);
        assert_eq!(trailing, [999.0, 749.0, 499.0, 249.0, 0.0]);
        let uniform = times(&ddpm, GridKind::Uniform, 3);
        assert_eq!(uniform, [999.0, 500.0, 0.0, 0.0]);
        let all = times(&ddpm, GridKind::Uniform, 1000);
        assert!(all[..1000].iter().enumerate().all(|(i, &t)| t == 999.0 - i as f64));
        let e = Grid::new(&ddpm, GridKind::Uniform, 1001, 1.0).unwrap_err().to_string();
        assert!(e.starts_with("sample.steps") && e.contains("1000"), "{e}");
        let karras = times(&ddpm, GridKind::Karras, 20);
        assert!(karras.len() <= 21 && karras.windows(2).all(|w| w[0] > w[1] || w[1] == 0.0));
    }

    #[test]
    fn unit_grids() {
        let sit = Preset::Sit.process();
        assert_eq!(times(&sit, GridKind::Uniform, 4), [1.0, 0.75, 0.5, 0.25, 0.0]);
        let shifted = Grid::new(&sit, GridKind::Uniform, 2, 3.0).unwrap();
        assert_eq!(shifted.levels.iter().map(|l| l.time).collect::<Vec<_>>(), [1.0, 0.75, 0.0]);
        let karras = times(&sit, GridKind::Karras, 5);
        close!(karras[0], 80.0 / 81.0, max_relative = 1e-12);
        assert!(Grid::new(&sit, GridKind::Leading, 4, 1.0).is_err());
        assert!(Grid::new(&sit, GridKind::Uniform, 0, 1.0).is_err());
        let epsilon = ProcessConfig { prediction: Some(crate::process::Prediction::Epsilon), ..Default::default() };
        assert_eq!(times(&epsilon.resolve().unwrap(), GridKind::Uniform, 2), [0.999, 0.4995, 0.0]);
    }

    #[test]
    fn shifts_are_golden() {
        close!(dynamic_shift(1024).ln(), 0.63, max_relative = 1e-12);
        close!(dynamic_shift(4096).ln(), 1.15, max_relative = 1e-12);
        let sit = Preset::Sit.process();
        let spaced =
            |s: Spacing, n| Grid::spaced(&sit, &s, n).map(|g| g.levels.iter().map(|l| l.time).collect::<Vec<_>>());
        let uniform = Spacing::new(GridKind::Uniform);
        let dynamic = spaced(Spacing { dynamic_shift: Some(1024), ..uniform }, 2).unwrap();
        close!(dynamic[1], 0.652489462, max_relative = 1e-9);
        let terminal = spaced(Spacing { shift: 3.0, shift_terminal: Some(0.1), ..uniform }, 4).unwrap();
        close!(terminal[3], 0.1, max_relative = 1e-12);
        assert_eq!((terminal[0], terminal[4]), (1.0, 0.0));
        for (s, key) in [
            (Spacing { shift: 2.0, dynamic_shift: Some(256), ..uniform }, "sample.dynamic_shift"),
            (Spacing { shift_terminal: Some(0.1), ..Spacing::new(GridKind::Karras) }, "sample.shift_terminal"),
            (Spacing { shift_terminal: Some(1.0), ..uniform }, "sample.shift_terminal"),
            (Spacing { rho: 0.0, ..Spacing::new(GridKind::Karras) }, "sample.rho"),
        ] {
            let e = spaced(s, 4).unwrap_err().to_string();
            assert!(e.starts_with(key), "{e}");
        }
    }

    /// Every kind, on every path it has a meaning on: falling noise from the first level to the end asked for.
    #[test]
    fn all_kinds_fall_to_their_end() {
        use GridKind::*;
        for preset in [Preset::Sit, Preset::Edm, Preset::Ddpm, Preset::Dsm] {
            let p = preset.process();
            for kind in [Uniform, Leading, Trailing, Quadratic, Karras, Exponential, Beta, Ays, AysSdxl, AysSvd] {
                for end in [FinalLevel::Zero, FinalLevel::Min] {
                    let grid = Grid::spaced(&p, &Spacing { end, ..Spacing::new(kind) }, 10);
                    let chain = matches!(p.path.domain(), TimeDomain::Step { .. });
                    if matches!(kind, Leading | Trailing) && !chain {
                        assert!(grid.is_err());
                        continue;
                    }
                    let levels = grid.unwrap_or_else(|e| panic!("{kind:?} of {preset:?}: {e}")).levels;
                    assert!(levels.windows(2).all(|w| w[0].sigma / w[0].alpha > w[1].sigma / w[1].alpha), "{kind:?}");
                    let last = levels[levels.len() - 1];
                    assert_eq!(last.time, if end == FinalLevel::Zero { 0.0 } else { p.time_range[0] });
                }
            }
        }
        let edm = Grid::spaced(&Preset::Edm.process(), &Spacing::new(Beta), 3).unwrap();
        close!(edm.levels[1].sigma, 0.002 + 0.5 * (80.0 - 0.002), max_relative = 1e-9);
        let quadratic = times(&Preset::Sit.process(), Quadratic, 4);
        assert_eq!(quadratic, [1.0, 0.5625, 0.25, 0.0625, 0.0]);
    }
}
