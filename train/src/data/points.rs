//! Built-in sets of points in the plane, `[2]`, without classes (eight Gaussians and the two moons have one
//! class per component). Each is a function of (kind, count, seed).

use super::random::{Random, Stream};
use std::f64::consts::{PI, TAU};

/// Which set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointSet {
    /// Two interleaved half circles with Gaussian noise, standardised; classes 0 and 1 are the moons.
    TwoMoons,
    /// The spiral of the Swiss roll seen from its end, with noise, standardised.
    SwissRoll,
    /// Eight Gaussians of deviation 0.2 on a ring of radius 2; the class is the component.
    EightGaussians,
    /// The dark squares of a 4 by 4 checkerboard over [-2, 2] squared.
    Checkerboard,
}

impl PointSet {
    /// Number of classes; 0 where points have no labels.
    pub fn classes(self) -> usize {
        match self {
            PointSet::TwoMoons => 2,
            PointSet::EightGaussians => 8,
            PointSet::SwissRoll | PointSet::Checkerboard => 0,
        }
    }

    /// `count` points with their classes. `noise` replaces the set's own noise (0.05 for the moons, 0.5 of a
    /// roll of radius 15 for the spiral, 0.2 for the Gaussians); the checkerboard has none.
    pub fn generate(self, count: usize, seed: u64, noise: Option<f64>) -> (Vec<[f32; 2]>, Vec<u32>) {
        let mut points = Vec::with_capacity(count);
        let mut labels = Vec::with_capacity(count);
        for i in 0..count {
            let mut random = Random::new(seed, Stream::Points, i as u64);
            let (point, label) = match self {
                PointSet::TwoMoons => moon(&mut random, i, noise.unwrap_or(0.05)),
                PointSet::SwissRoll => (roll(&mut random, noise.unwrap_or(0.5)), 0),
                PointSet::EightGaussians => gaussian(&mut random, noise.unwrap_or(0.2)),
                PointSet::Checkerboard => (square(&mut random), 0),
            };
            points.push(point);
            labels.push(label);
        }
        if matches!(self, PointSet::TwoMoons | PointSet::SwissRoll) {
            standardise(&mut points);
        }
        (points.into_iter().map(|[x, y]| [x as f32, y as f32]).collect(), labels)
    }
}

fn moon(random: &mut Random, index: usize, noise: f64) -> ([f64; 2], u32) {
    let label = (index % 2) as u32;
    let angle = PI * random.uniform();
    let (x, y) = match label {
        0 => (angle.cos(), angle.sin()),
        _ => (1.0 - angle.cos(), 0.5 - angle.sin()),
    };
    ([x + noise * random.normal(), y + noise * random.normal()], label)
}

fn roll(random: &mut Random, noise: f64) -> [f64; 2] {
    let t = 1.5 * PI * (1.0 + 2.0 * random.uniform());
    [t * t.cos() + noise * random.normal(), t * t.sin() + noise * random.normal()]
}

fn gaussian(random: &mut Random, std: f64) -> ([f64; 2], u32) {
    let label = random.bits() % 8;
    let angle = TAU * label as f64 / 8.0;
    ([2.0 * angle.cos() + std * random.normal(), 2.0 * angle.sin() + std * random.normal()], label)
}

fn square(random: &mut Random) -> [f64; 2] {
    let row = (random.bits() % 4) as f64;
    let column = 2.0 * (random.bits() % 2) as f64 + (row + 1.0) % 2.0;
    [column + random.uniform() - 2.0, row + random.uniform() - 2.0]
}

/// Mean 0 and (population) deviation 1 per coordinate.
fn standardise(points: &mut [[f64; 2]]) {
    let n = points.len().max(1) as f64;
    for axis in 0..2 {
        let mean = points.iter().map(|p| p[axis]).sum::<f64>() / n;
        let variance = points.iter().map(|p| (p[axis] - mean).powi(2)).sum::<f64>() / n;
        let scale = if variance > 0.0 { variance.sqrt().recip() } else { 1.0 };
        for p in points.iter_mut() {
            p[axis] = (p[axis] - mean) * scale;
        }
    }
}

/// Energy distance between two sets of points, `2 E|x - y| - E|x - x'| - E|y - y'|` with the pairs of a point
/// with itself counted, so that it is never negative and 0 only for equal sets. Takes `n * m` time.
pub fn energy_distance(xs: &[[f32; 2]], ys: &[[f32; 2]]) -> f64 {
    fn mean(a: &[[f32; 2]], b: &[[f32; 2]]) -> f64 {
        let row = |p: &[f32; 2]| b.iter().map(|q| ((p[0] - q[0]).hypot(p[1] - q[1])) as f64).sum::<f64>();
        a.iter().map(row).sum::<f64>() / (a.len() as f64 * b.len() as f64)
    }
    2.0 * mean(xs, ys) - mean(xs, xs) - mean(ys, ys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moons_are_standardised_and_balanced() {
        let (points, labels) = PointSet::TwoMoons.generate(10_000, 0, None);
        for axis in 0..2 {
            let mean = points.iter().map(|p| p[axis] as f64).sum::<f64>() / 1e4;
            let var = points.iter().map(|p| (p[axis] as f64).powi(2)).sum::<f64>() / 1e4;
            assert!(mean.abs() < 1e-5 && (var - 1.0).abs() < 1e-5, "axis {axis}: mean {mean}, variance {var}");
        }
        assert_eq!(labels.iter().filter(|&&l| l == 1).count(), 5_000);
        // Unstandardised, class 0 lies on the unit circle: its noiseless radius is 1.
        let (clean, labels) = PointSet::TwoMoons.generate(1_000, 0, Some(0.0));
        let upper: Vec<_> = clean.iter().zip(&labels).filter(|(_, l)| **l == 0).map(|(p, _)| p[1]).collect();
        let lower: Vec<_> = clean.iter().zip(&labels).filter(|(_, l)| **l == 1).map(|(p, _)| p[1]).collect();
        let top = |v: &[f32]| v.iter().cloned().fold(f32::MIN, f32::max);
        assert!(top(&upper) > top(&lower));
    }

    #[test]
    fn gaussians_sit_on_the_ring() {
        let (points, labels) = PointSet::EightGaussians.generate(8_000, 3, None);
        for class in 0..8u32 {
            let own: Vec<_> = points.iter().zip(&labels).filter(|(_, l)| **l == class).map(|(p, _)| p).collect();
            assert!(own.len() > 800, "class {class} has {}", own.len());
            let angle = TAU * class as f64 / 8.0;
            let mean_x = own.iter().map(|p| p[0] as f64).sum::<f64>() / own.len() as f64;
            let mean_y = own.iter().map(|p| p[1] as f64).sum::<f64>() / own.len() as f64;
            assert!((mean_x - 2.0 * angle.cos()).abs() < 0.05 && (mean_y - 2.0 * angle.sin()).abs() < 0.05);
        }
    }

    #[test]
    fn checkerboard_fills_only_dark_squares() {
        let (points, _) = PointSet::Checkerboard.generate(4_000, 0, None);
        let mut seen = std::collections::BTreeMap::new();
        for [x, y] in points {
            let (column, row) = ((x + 2.0).floor() as i32, (y + 2.0).floor() as i32);
            assert!((0..4).contains(&column) && (0..4).contains(&row));
            assert_eq!((column + row) % 2, 1);
            *seen.entry((column, row)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 8);
        assert!(seen.values().all(|&n| n > 400), "{seen:?}");
    }

    #[test]
    fn sets_depend_on_the_seed_alone() {
        let a = PointSet::SwissRoll.generate(100, 5, None);
        assert_eq!(a, PointSet::SwissRoll.generate(100, 5, None));
        assert_ne!(a, PointSet::SwissRoll.generate(100, 6, None));
    }

    #[test]
    fn energy_distance_tells_sets_apart() {
        let (a, _) = PointSet::TwoMoons.generate(1_000, 0, None);
        let (b, _) = PointSet::TwoMoons.generate(1_000, 1, None);
        let (c, _) = PointSet::EightGaussians.generate(1_000, 0, None);
        assert!(energy_distance(&a, &a).abs() < 1e-9);
        assert!(energy_distance(&a, &b) < 0.02);
        assert!(energy_distance(&a, &c) > 0.1);
    }
}
