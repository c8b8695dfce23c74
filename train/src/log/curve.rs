//! `loss.svg`: the loss over the steps, raw and smoothed.

use crate::files::write_atomic;
use crate::{Error, Result};
use plotters::prelude::*;
use std::path::Path;

/// Draws `(step, loss)` pairs. Losses that are not finite are left out; positive losses get a logarithmic axis.
pub fn save(path: &Path, points: &[(u64, f64)]) -> Result<()> {
    write_atomic(path, draw(points)?.as_bytes())
}

fn draw(points: &[(u64, f64)]) -> Result<String> {
    let points: Vec<(f64, f64)> =
        points.iter().filter(|(_, loss)| loss.is_finite()).map(|&(step, loss)| (step as f64, loss)).collect();
    let mut svg = String::new();
    if points.is_empty() {
        svg.push_str("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"450\"/>\n");
        return Ok(svg);
    }
    let smooth = smoothed(&points);
    let (low, high) = points.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
    let (first, last) = (points[0].0, points[points.len() - 1].0.max(points[0].0 + 1.0));
    let failed = |e: &dyn std::fmt::Display| Error::Usage(format!("loss.svg: {e}"));
    {
        let root = SVGBackend::with_string(&mut svg, (800, 450)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let mut chart = ChartBuilder::on(&root);
        chart.margin(16).caption("loss", ("sans-serif", 20)).x_label_area_size(36).y_label_area_size(64);
        // Both kinds of axis draw the same two lines.
        macro_rules! lines {
            ($range:expr) => {{
                let mut axes = chart.build_cartesian_2d(first..last, $range).map_err(|e| failed(&e))?;
                axes.configure_mesh()
                    .light_line_style(TRANSPARENT)
                    .bold_line_style(RGBColor(225, 225, 230))
                    .x_desc("step")
                    .x_label_formatter(&|v| format!("{v:.0}"))
                    .draw()
                    .map_err(|e| failed(&e))?;
                axes.draw_series(LineSeries::new(points.iter().copied(), RGBColor(180, 196, 232)))
                    .map_err(|e| failed(&e))?;
                axes.draw_series(LineSeries::new(smooth.iter().copied(), RGBColor(32, 84, 200).stroke_width(2)))
                    .map_err(|e| failed(&e))?;
            }};
        }
        let span = if high > low { high - low } else { high.abs().max(1.0) };
        if low > 0.0 {
            lines!((low * 0.9..high * 1.1).log_scale());
        } else {
            lines!(low - 0.05 * span..high + 0.05 * span);
        }
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(svg)
}

/// Draws the loss over ranges of noise level, from the least; ranges without a loss are left out.
pub fn save_levels(path: &Path, levels: &[Option<f64>]) -> Result<()> {
    write_atomic(path, draw_levels(levels)?.as_bytes())
}

fn draw_levels(levels: &[Option<f64>]) -> Result<String> {
    let bars: Vec<(usize, f64)> = levels.iter().enumerate().filter_map(|(i, l)| Some((i, (*l)?))).collect();
    let mut svg = String::new();
    if bars.is_empty() {
        svg.push_str("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"450\"/>\n");
        return Ok(svg);
    }
    let (low, high) = bars.iter().fold((0f64, 0f64), |(l, h), b| (l.min(b.1), h.max(b.1)));
    let high = if high > low { high } else { low + 1.0 };
    let n = levels.len() as f64;
    let failed = |e: &dyn std::fmt::Display| Error::Usage(format!("levels.svg: {e}"));
    {
        let root = SVGBackend::with_string(&mut svg, (800, 450)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let mut axes = ChartBuilder::on(&root)
            .margin(16)
            .caption("loss by noise level", ("sans-serif", 20))
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..n, low..high * 1.05)
            .map_err(|e| failed(&e))?;
        axes.configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 230))
            .x_desc("share of the sampled range of noise levels, from the least")
            .x_label_formatter(&|v| format!("{:.1}", v / n))
            .draw()
            .map_err(|e| failed(&e))?;
        axes.draw_series(bars.iter().map(|&(i, loss)| {
            let x = i as f64;
            Rectangle::new([(x + 0.08, 0.0), (x + 0.92, loss)], RGBColor(32, 84, 200).filled())
        }))
        .map_err(|e| failed(&e))?;
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(svg)
}

/// An exponential average over about a twentieth of the points, started from the first loss.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let weight = 1.0 / (points.len() as f64 / 20.0).max(1.0);
    let mut average = points[0].1;
    points
        .iter()
        .map(|&(step, loss)| {
            average += weight * (loss - average);
            (step, average)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_of_all_kinds_are_drawn() {
        let falling: Vec<(u64, f64)> = (1..100).map(|i| (i * 10, 1.0 / i as f64)).collect();
        let svg = draw(&falling).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.matches("<polyline").count() >= 2);
        for points in [vec![], vec![(1, f64::NAN)], vec![(5, 0.5)], vec![(1, -1.0), (2, -1.0)]] {
            assert!(draw(&points).unwrap().contains("<svg"), "{points:?}");
        }
    }

    #[test]
    fn smoothing_keeps_constants_and_damps_noise() {
        let constant: Vec<(f64, f64)> = (0..50).map(|i| (i as f64, 2.0)).collect();
        assert!(smoothed(&constant).iter().all(|p| p.1 == 2.0));
        let noisy: Vec<(f64, f64)> = (0..400).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert!(smoothed(&noisy)[200..].iter().all(|p| (p.1 - 0.5).abs() < 0.05));
    }
}
