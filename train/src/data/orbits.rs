//! The built-in `orbits`: sequences of points in the plane, `[T, 2]`, that go round the origin by an eighth of a turn
//! at a time, left (class 0) or right (class 1), at a radius of their own. The first two points say all about the
//! others, so a sequence shows how well a network keeps to what it began.

use super::random::{Random, Stream};
use std::f64::consts::{FRAC_PI_4, TAU};

/// Tokens of a sequence where none are asked for.
pub const LENGTH: usize = 8;
/// Names of the classes.
pub const CLASSES: [&str; 2] = ["left", "right"];
/// Deviation of a point from its orbit where none is asked for.
const NOISE: f64 = 0.02;

/// Writes sequence `index` of a seed into `out`, `[T, 2]`: radius uniform from 0.5 to 1.5, any first angle.
pub fn draw(seed: u64, index: usize, noise: Option<f64>, out: &mut [f32]) {
    let mut random = Random::new(seed, Stream::Points, index as u64);
    let turn = if label(index) == 0 { FRAC_PI_4 } else { -FRAC_PI_4 };
    let (radius, start) = (random.between(0.5, 1.5), TAU * random.uniform());
    let noise = noise.unwrap_or(NOISE);
    for (t, point) in out.chunks_exact_mut(2).enumerate() {
        let angle = start + turn * t as f64;
        point[0] = (radius * angle.cos() + noise * random.normal()) as f32;
        point[1] = (radius * angle.sin() + noise * random.normal()) as f32;
    }
}

/// The class of sequence `index`.
pub fn label(index: usize) -> u32 {
    (index % 2) as u32
}

/// How far the points of a sequence `[T, 2]` are from where the one before each would turn to, by the direction of
/// its first two points: the root of the mean square. Of the data it is `2 noise`.
pub fn drift(sequence: &[f32]) -> f64 {
    let points: Vec<[f64; 2]> = sequence.chunks_exact(2).map(|p| [p[0] as f64, p[1] as f64]).collect();
    let [a, b] = [points[0], points[1]];
    let turn = if a[0] * b[1] - a[1] * b[0] >= 0.0 { FRAC_PI_4 } else { -FRAC_PI_4 };
    let (sin, cos) = turn.sin_cos();
    let miss = |pair: &[[f64; 2]]| {
        let [p, q] = [pair[0], pair[1]];
        (q[0] - (cos * p[0] - sin * p[1])).powi(2) + (q[1] - (sin * p[0] + cos * p[1])).powi(2)
    };
    (points.windows(2).map(miss).sum::<f64>() / (points.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_keep_their_turn() {
        let mut sum = 0.0;
        for index in 0..400 {
            let mut clean = [0f32; 24];
            draw(3, index, Some(0.0), &mut clean);
            assert!(drift(&clean) < 1e-6);
            let radius = clean[0].hypot(clean[1]);
            assert!((0.5..1.5).contains(&radius) && (radius - clean[22].hypot(clean[23])).abs() < 1e-5);
            let left = clean[0] * clean[3] - clean[1] * clean[2] > 0.0;
            assert_eq!(left, label(index) == 0);
            let mut noisy = [0f32; 24];
            draw(3, index, None, &mut noisy);
            sum += drift(&noisy).powi(2) / 400.0;
        }
        assert!((sum.sqrt() / (2.0 * NOISE) - 1.0).abs() < 0.03, "{}", sum.sqrt());
    }

    #[test]
    fn a_wrong_turn_is_seen() {
        let mut sequence = [0f32; 16];
        draw(0, 0, Some(0.0), &mut sequence);
        sequence[14..].fill(0.0);
        let radius = sequence[0].hypot(sequence[1]) as f64;
        assert!((drift(&sequence) - radius / 7f64.sqrt()).abs() < 1e-5);
    }
}
