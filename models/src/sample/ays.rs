//! Tables of "Align Your Steps" (Sabour et al., 2024): noise levels that were optimised for published models.

/// `sigma / alpha` of the ten levels before clean data.
pub const SD15: [f64; 10] = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152];
/// The same for Stable Diffusion XL.
pub const SDXL: [f64; 10] = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113];
/// The same for Stable Video Diffusion.
pub const SVD: [f64; 10] = [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034];

/// A table brought to `count` levels, linearly in the logarithm, as its authors do.
pub fn levels(table: &[f64], count: usize) -> Vec<f64> {
    let at = |i: usize| {
        let u = i as f64 * (table.len() - 1) as f64 / (count - 1).max(1) as f64;
        let low = (u as usize).min(table.len() - 2);
        let share = u - low as f64;
        ((1.0 - share) * table[low].ln() + share * table[low + 1].ln()).exp()
    };
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_levels_are_the_table() {
        for table in [SD15, SDXL, SVD] {
            for (a, b) in levels(&table, 10).iter().zip(table) {
                assert!((a / b - 1.0).abs() < 1e-12);
            }
            let many = levels(&table, 19);
            assert!((many[1] / (table[0] * table[1]).sqrt() - 1.0).abs() < 1e-12);
            assert!(many.windows(2).all(|w| w[0] > w[1]));
        }
    }
}
