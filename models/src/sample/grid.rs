//! Grids of noise levels that samplers walk down, from the noisiest to clean data.

use crate::process::{Level, Path, Process, Time, TimeDomain, shifted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the levels of a grid are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridKind {
    /// Evenly in time. Of a discrete chain both the first and the last step are in it.
    Uniform,
    /// Steps `0, T/n, 2T/n..` of a discrete chain.
    Leading,
    /// Steps `T - 1, T - 1 - T/n..` of a discrete chain.
    Trailing,
    /// Evenly in `(sigma / alpha)^(1 / 7)` (Karras et al., 2022).
    Karras,
    /// Evenly in the logarithm of `sigma / alpha`.
    Exponential,
}

/// Levels from noise to data; the last is clean.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The levels, one more than there are steps.
    pub levels: Vec<Level<f64>>,
}

impl GridKind {
    /// The kind a process is usually sampled on.
    pub fn default_of(process: &Process) -> GridKind {
        match process.path.domain() {
            TimeDomain::Unit | TimeDomain::Step { .. } => GridKind::Uniform,
            TimeDomain::Sigma => GridKind::Karras,
        }
    }
}

impl Grid {
    /// A grid of `steps` steps. `shift` moves uniform grids of unit paths toward noise; 1 leaves them.
    ///
    /// # Errors
    /// If the kind does not fit the path, or the chain has fewer steps.
    pub fn new(process: &Process, kind: GridKind, steps: usize, shift: f64) -> Result<Grid> {
        let bad = |key: &str, message: String| Err(Error::config(format!("sample.{key}"), message));
        if steps == 0 {
            return bad("steps", "is 0; sampling takes at least one step".into());
        }
        if !(shift > 0.0) {
            return bad("shift", format!("is {shift}; it must be positive"));
        }
        let domain = process.path.domain();
        let count = if let TimeDomain::Step { count } = domain { Some(count) } else { None };
        if let Some(count) = count
            && steps > count
        {
            return bad("steps", format!("is {steps}, more than the {count} steps of the chain"));
        }
        if shift != 1.0 && (domain != TimeDomain::Unit || kind != GridKind::Uniform) {
            return bad("shift", "moves only uniform grids of paths whose time is in [0, 1]".into());
        }
        let [low, high] = process.time_range;
        let times: Vec<f64> = match (kind, count) {
            (GridKind::Uniform, Some(_)) => {
                let gap = (high - low) / (steps - 1).max(1) as f64;
                (0..steps).map(|i| (high - gap * i as f64).round()).collect()
            }
            (GridKind::Leading, Some(count)) => (0..steps).rev().map(|i| (i * (count / steps)) as f64).collect(),
            (GridKind::Trailing, Some(count)) => {
                let gap = count as f64 / steps as f64;
                (0..steps).map(|i| (count as f64 - gap * i as f64).round() - 1.0).collect()
            }
            (GridKind::Leading | GridKind::Trailing, None) => {
                return bad(
                    "grid",
                    format!("{kind:?} spaces the steps of a chain; path {} has none", process.path.name()),
                );
            }
            (GridKind::Uniform, None) => {
                let at = |i: usize| shifted(high * (1.0 - i as f64 / steps as f64), shift);
                (0..steps).map(|i| at(i).max(low)).collect()
            }
            (GridKind::Karras | GridKind::Exponential, _) => by_ratio(process, kind, steps)?,
        };
        let mut levels = Vec::with_capacity(steps + 1);
        for t in times {
            levels.push(process.level(Time::new(domain, t)?)?);
        }
        // Two ratios may fall on one step of a chain.
        levels.dedup_by(|a, b| a.time == b.time);
        levels.push(process.path.clean());
        Ok(Grid { levels })
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.levels.len() - 1
    }
}

/// Times of levels that are evenly spaced in a function of `sigma / alpha`.
fn by_ratio(process: &Process, kind: GridKind, steps: usize) -> Result<Vec<f64>> {
    const RHO: f64 = 7.0;
    // Unit paths reach ratio 0 and infinity; EDM's range covers what matters of them.
    let ratio = |t: f64, least: f64, most: f64| -> Result<f64> {
        let level = process.level(Time::new(process.path.domain(), t)?)?;
        let ratio = level.sigma / level.alpha;
        Ok(if process.path == Path::Ve { ratio } else { ratio.clamp(least, most) })
    };
    let [low, high] = process.time_range;
    let (min, max) = (ratio(low, 0.002, 80.0)?, ratio(high, 0.002, 80.0)?);
    if !(min > 0.0) {
        return Err(Error::config("process.time_range", "begins at no noise at all, which this grid cannot space"));
    }
    let at = |i: usize| {
        let u = i as f64 / (steps - 1).max(1) as f64;
        match kind {
            GridKind::Exponential => max * (min / max).powf(u),
            _ => (max.powf(1.0 / RHO) + u * (min.powf(1.0 / RHO) - max.powf(1.0 / RHO))).powf(RHO),
        }
    };
    // Powers need not come back to the ends exactly, and a time beyond an end is not allowed.
    let inside = |t: f64| t.clamp(low, high);
    (0..steps).map(|i| Ok(inside(process.path.time_of_ratio(at(i))?.value()))).collect()
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
}
