//! `shapes`: a procedural set of 32 by 32 RGB pictures in ten classes, one clear figure on a soft background.
//!
//! A picture is a function of (seed, index); its class is `index % 10`. Figures are signed distances (negative
//! inside, in units of half the picture's width), drawn with one pixel of antialiasing, at a random place,
//! size and rotation, in the class's own hue with some variation.

use super::random::{Random, Stream};

/// Width and height in pixels.
pub const SIZE: usize = 32;

/// Names of the classes, in order.
pub const CLASSES: [&str; 10] =
    ["disc", "ring", "square", "frame", "triangle", "star", "cross", "bars", "crescent", "heart"];

/// Hue of each class, in turns.
const HUES: [f64; 10] = [0.00, 0.08, 0.15, 0.30, 0.42, 0.50, 0.58, 0.68, 0.78, 0.90];

/// The class of picture `index`.
pub fn label(index: usize) -> u32 {
    (index % CLASSES.len()) as u32
}

/// Draws picture `index` of the set of this seed into `out`: `[32, 32, 3]` in [-1, 1].
pub fn draw(seed: u64, index: usize, out: &mut [f32]) {
    let class = label(index) as usize;
    let mut random = Random::new(seed, Stream::Shapes, index as u64);
    let centre = [random.between(-0.22, 0.22), random.between(-0.22, 0.22)];
    let radius = random.between(0.48, 0.68);
    let (sin, cos) = random.between(-0.5, 0.5).sin_cos();
    let colour = hsv(HUES[class] + random.between(-0.025, 0.025), random.between(0.75, 1.0), random.between(0.8, 1.0));
    // The background is dark, weakly coloured, and brighter toward one corner.
    let (ground, slope) = (random.between(0.05, 0.22), [random.between(-0.06, 0.06), random.between(-0.06, 0.06)]);
    let tint = hsv(random.uniform(), 0.35, 1.0);
    let pixel = 2.0 / SIZE as f64;
    for y in 0..SIZE {
        for x in 0..SIZE {
            let p = [(x as f64 + 0.5) * pixel - 1.0, (y as f64 + 0.5) * pixel - 1.0];
            let d = [p[0] - centre[0], p[1] - centre[1]];
            let local = [(cos * d[0] + sin * d[1]) / radius, (cos * d[1] - sin * d[0]) / radius];
            let coverage = (0.5 - distance(class, local) * radius / pixel).clamp(0.0, 1.0);
            let light = ground + slope[0] * p[0] + slope[1] * p[1];
            for c in 0..3 {
                let value = coverage * colour[c] + (1.0 - coverage) * light * tint[c];
                out[(y * SIZE + x) * 3 + c] = (2.0 * value.clamp(0.0, 1.0) - 1.0) as f32;
            }
        }
    }
}

/// Signed distance (exact or a close bound) to the figure of `class`, which fills about the unit disc;
/// y points down.
fn distance(class: usize, [x, y]: [f64; 2]) -> f64 {
    let length = x.hypot(y);
    let boxed = |x: f64, y: f64, w: f64, h: f64| {
        let (dx, dy) = (x.abs() - w, y.abs() - h);
        dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
    };
    match class {
        0 => length - 0.9,
        1 => (length - 0.72).abs() - 0.2,
        2 => boxed(x, y, 0.75, 0.75),
        3 => boxed(x, y, 0.66, 0.66).abs() - 0.15,
        4 => {
            // Three half planes at 120 degrees, point upward.
            let slanted = |sign: f64| sign * x * 3f64.sqrt() / 2.0 - y / 2.0 - 0.48;
            (y - 0.48).max(slanted(1.0)).max(slanted(-1.0))
        }
        5 => star(x, y),
        6 => boxed(x, y, 0.9, 0.26).min(boxed(x, y, 0.26, 0.9)),
        7 => boxed(x, y + 0.6, 0.85, 0.17).min(boxed(x, y, 0.85, 0.17)).min(boxed(x, y - 0.6, 0.85, 0.17)),
        8 => (length - 0.9).max(0.7 - (x - 0.5).hypot(y)),
        _ => heart(x, y),
    }
}

/// A star of five points with outer radius 1 and inner radius 0.42, one point upward.
fn star(x: f64, y: f64) -> f64 {
    use std::f64::consts::{PI, TAU};
    let sector = TAU / 5.0;
    // Fold into one half of one point: the edge runs from the outer corner to the inner one.
    let angle = (x.atan2(-y).rem_euclid(sector) - sector * 0.5).abs();
    let angle = sector * 0.5 - angle;
    let (px, py) = (x.hypot(y) * angle.cos(), x.hypot(y) * angle.sin());
    let (inner_x, inner_y) = (0.42 * (PI / 5.0).cos(), 0.42 * (PI / 5.0).sin());
    let (ex, ey) = (inner_x - 1.0, inner_y);
    ((px - 1.0) * ey - py * ex) / ex.hypot(ey)
}

/// A square standing on its corner with a half disc on each upper side.
fn heart(x: f64, y: f64) -> f64 {
    let x = x.abs();
    let diagonal = std::f64::consts::FRAC_1_SQRT_2;
    let side = 0.52;
    let (u, v) = ((x + (y - 0.1)) * diagonal, (x - (y - 0.1)) * diagonal);
    let square = (u.abs() - side).max(v.abs() - side);
    let disc = u.hypot(v - side) - side;
    square.min(disc)
}

fn hsv(hue: f64, saturation: f64, value: f64) -> [f64; 3] {
    [0.0, 2.0 / 3.0, 1.0 / 3.0].map(|offset| {
        let ramp = (((hue + offset).rem_euclid(1.0)) * 6.0 - 3.0).abs() - 1.0;
        value * (1.0 - saturation * (1.0 - ramp.clamp(0.0, 1.0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(seed: u64, index: usize) -> Vec<f32> {
        let mut out = vec![0.0; SIZE * SIZE * 3];
        draw(seed, index, &mut out);
        out
    }

    #[test]
    fn pictures_are_functions_of_seed_and_index() {
        assert_eq!(picture(1, 3), picture(1, 3));
        assert_ne!(picture(1, 3), picture(2, 3));
        assert_ne!(picture(1, 3), picture(1, 13));
        assert!(picture(1, 3).iter().all(|v| (-1.0..=1.0).contains(v)));
    }

    #[test]
    fn every_class_is_visible_and_none_fills_the_picture() {
        for class in 0..10 {
            for index in 0..20 {
                let picture = picture(0, index * 10 + class);
                let bright = picture.chunks(3).filter(|p| p.iter().any(|&v| v > 0.3)).count();
                assert!((60..800).contains(&bright), "{} {index}: {bright} bright pixels", CLASSES[class]);
            }
        }
    }

    #[test]
    fn classes_are_told_apart_by_their_mean_pictures() {
        let mean = |seed: u64, class: usize| -> Vec<f64> {
            let mut sum = vec![0.0; SIZE * SIZE * 3];
            for i in 0..40 {
                picture(seed, i * 10 + class).iter().zip(&mut sum).for_each(|(v, s)| *s += *v as f64 / 40.0);
            }
            sum
        };
        let known: Vec<_> = (0..10).map(|class| mean(0, class)).collect();
        for class in 0..10 {
            let fresh = mean(9, class);
            let gap = |other: &Vec<f64>| fresh.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            let nearest = (0..10).min_by(|&a, &b| gap(&known[a]).total_cmp(&gap(&known[b]))).unwrap();
            assert_eq!(nearest, class);
        }
    }
}
