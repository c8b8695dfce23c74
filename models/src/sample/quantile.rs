//! Quantiles of the beta distribution.

use std::f64::consts::PI;

/// `ln gamma(x)`, `x > 0`, by the recurrence and Stirling's series.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 12.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r * (1.0 / 1680.0 - r / 1188.0)))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + series
}

/// The regularised incomplete beta function by its continued fraction (DLMF 8.17.22, Lentz's evaluation).
fn distribution(x: f64, a: f64, b: f64) -> f64 {
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - distribution(1.0 - x, b, a);
    }
    if x <= 0.0 {
        return 0.0;
    }
    let front = a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    const TINY: f64 = 1e-300;
    let away = |v: f64| if v.abs() < TINY { TINY } else { v };
    let (mut f, mut c, mut d) = (1.0f64, 1.0f64, 0.0f64);
    for i in 0..400 {
        let m = (i / 2) as f64;
        let term = match i {
            0 => 1.0,
            i if i % 2 == 0 => m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            _ => -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        };
        d = 1.0 / away(1.0 + term * d);
        c = away(1.0 + term / c);
        f *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front.exp() * (f - 1.0) / a
}

/// The `x` below which a share `p` of the beta distribution with parameters `a`, `b` lies.
pub fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if distribution(middle, a, b) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_quantiles() {
        // With a = b = 1/2 the law is the arcsine's, with b = 1 a power.
        for p in [0.01, 0.2, 0.5, 0.9, 0.999] {
            assert!((beta_quantile(p, 0.5, 0.5) - (0.5 * PI * p).sin().powi(2)).abs() < 1e-12);
            assert!((beta_quantile(p, 2.5, 1.0) - p.powf(0.4)).abs() < 1e-12);
        }
        assert!((ln_gamma(0.5) - 0.5 * PI.ln()).abs() < 1e-13);
        assert_eq!([beta_quantile(0.0, 0.6, 0.6), beta_quantile(1.0, 0.6, 0.6)], [0.0, 1.0]);
    }
}
