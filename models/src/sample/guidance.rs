//! Guidance: what is made of two estimates, one of them the contrast that the other is pushed away from.
//!
//! The contrast is the same network under the null label or a negative one (*classifier-free guidance*), or a
//! second, worse network (*autoguidance*). Either way the result is `contrast + scale (estimate - contrast)`.
//! Estimates of data are linear in the network's output, so for classifier-free guidance it does not matter
//! whether output, data, noise or velocity is mixed; the outputs of two networks that predict different things are
//! mixed as data.

use crate::process::Level;
use serde::{Deserialize, Serialize};

/// Kinds of guidance by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceKind {
    /// Classifier-free (Ho and Salimans, 2021): the contrast is the network without, or with a negative, label.
    #[default]
    Cfg,
    /// Autoguidance (Karras et al., "Guiding a diffusion model with a bad version of itself", 2024): the contrast is
    /// a smaller or less trained network under the same label.
    Autoguidance,
}

impl GuidanceKind {
    /// All kinds.
    pub const ALL: [GuidanceKind; 2] = [GuidanceKind::Cfg, GuidanceKind::Autoguidance];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            GuidanceKind::Cfg => "cfg",
            GuidanceKind::Autoguidance => "autoguidance",
        }
    }

    /// What it does, in a line.
    pub fn about(self) -> &'static str {
        match self {
            GuidanceKind::Cfg => "away from the network without a label, or with a negative one",
            GuidanceKind::Autoguidance => "away from a second, worse network under the same label (--guide)",
        }
    }
}

/// How strongly, where and how an estimate is pushed away from its contrast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// The scale; 1: none.
    pub scale: f64,
    /// Times, in the path's unit, between which it acts (both included); elsewhere the scale is 1.
    pub interval: Option<[f64; 2]>,
    /// The same as noise levels `sigma / alpha` (Kynkäänniemi et al., 2024). With both, it acts where both hold.
    pub sigma_interval: Option<[f64; 2]>,
    /// Only the first so many channels (of the last axis) are guided, as DiT's published samples are; all if absent.
    pub channels: Option<usize>,
    /// Share `phi` in `[0, 1]` of the guided output that is brought back to the standard deviation that the
    /// conditional one has within a sample (Lin et al., "Common diffusion noise schedules and sample steps are
    /// flawed", 2023, section 3.4).
    pub rescale: f64,
}

impl Guidance {
    /// The conditional network alone.
    pub const NONE: Guidance = Guidance::scale(1.0);

    /// This scale everywhere.
    pub const fn scale(scale: f64) -> Guidance {
        Guidance { scale, interval: None, sigma_interval: None, channels: None, rescale: 0.0 }
    }

    /// The scale at a level.
    pub fn at(&self, level: &Level<f64>) -> f64 {
        let inside =
            |range: Option<[f64; 2]>, value: f64| range.is_none_or(|[low, high]| (low..=high).contains(&value));
        match inside(self.interval, level.time) && inside(self.sigma_interval, level.sigma / level.alpha) {
            true => self.scale,
            false => 1.0,
        }
    }

    /// Weights of estimate and contrast for an element of this channel where the scale is `scale`.
    pub(super) fn weights(&self, scale: f64, channel: usize) -> [f64; 2] {
        match self.channels {
            Some(first) if channel >= first => [1.0, 0.0],
            _ => [scale, 1.0 - scale],
        }
    }

    /// Guides one sample's output in place. `width` is the number of channels.
    pub(super) fn mix(&self, output: &mut [f64], contrast: &[f64], scale: f64, width: usize) {
        if scale == 1.0 {
            return;
        }
        let before = if self.rescale > 0.0 { std(output) } else { 0.0 };
        for (i, (c, u)) in output.iter_mut().zip(contrast).enumerate() {
            let [a, b] = self.weights(scale, i % width);
            *c = a * *c + b * u;
        }
        if self.rescale > 0.0 {
            let after = std(output);
            if after > 0.0 {
                let factor = self.rescale * before / after + 1.0 - self.rescale;
                output.iter_mut().for_each(|c| *c *= factor);
            }
        }
    }
}

/// Standard deviation of the elements.
fn std(v: &[f64]) -> f64 {
    let n = v.len() as f64;
    let mean = v.iter().sum::<f64>() / n;
    (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(time: f64) -> Level<f64> {
        Level { time, alpha: 1.0 - time, sigma: time, rates: None }
    }

    #[test]
    fn intervals_include_their_ends() {
        let g = Guidance { interval: Some([0.25, 0.75]), ..Guidance::scale(3.0) };
        let at: Vec<f64> = [0.0, 0.25, 0.5, 0.75, 0.8].iter().map(|&t| g.at(&level(t))).collect();
        assert_eq!(at, [1.0, 3.0, 3.0, 3.0, 1.0]);
        // sigma / alpha of the straight path: 1 at 0.5, 3 at 0.75.
        let g = Guidance { sigma_interval: Some([1.0, 3.0]), ..Guidance::scale(2.0) };
        let at: Vec<f64> = [0.4, 0.5, 0.75, 0.9, 1.0].iter().map(|&t| g.at(&level(t))).collect();
        assert_eq!(at, [1.0, 2.0, 2.0, 1.0, 1.0]);
    }

    #[test]
    fn only_the_first_channels_are_guided() {
        let g = Guidance { channels: Some(3), ..Guidance::scale(4.0) };
        let mut c = [1.0; 8];
        g.mix(&mut c, &[0.5; 8], 4.0, 4);
        assert_eq!(c, [2.5, 2.5, 2.5, 1.0, 2.5, 2.5, 2.5, 1.0]);
    }

    #[test]
    fn rescaling_restores_the_deviation() {
        let (c, u) = ([1.0, -2.0, 0.5, 3.0], [0.3, 0.1, -0.7, 1.0]);
        for (phi, scale) in [(1.0, 5.0), (0.7, 2.0), (0.0, 3.0)] {
            let mut plain = c;
            Guidance::NONE.mix(&mut plain, &u, scale, 4);
            let mut got = c;
            Guidance { rescale: phi, ..Guidance::NONE }.mix(&mut got, &u, scale, 4);
            let want = phi * std(&c) + (1.0 - phi) * std(&plain);
            assert!((std(&got) - want).abs() < 1e-12, "{phi}: {} {want}", std(&got));
        }
    }

    #[test]
    fn scale_one_changes_no_bit() {
        let c = [0.1, 1.0 / 3.0, -7e-9];
        let mut got = c;
        Guidance { rescale: 0.5, ..Guidance::NONE }.mix(&mut got, &[9.0; 3], 1.0, 1);
        assert_eq!(got, c);
    }
}
