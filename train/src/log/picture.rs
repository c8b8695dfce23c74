//! Pictures of samples: a grid of images, a scatter plot of points, a GIF of a denoising trajectory.

use crate::files::write_atomic;
use crate::{Error, Result};
use std::path::Path;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

/// Pixels between the cells of a grid.
const GAP: usize = 2;
/// Smaller images are enlarged to about this many pixels, by a whole factor.
const CELL: usize = 64;
/// Width and height of a scatter plot.
const PLOT: usize = 560;
/// Hundredths of a second that a frame of a GIF is shown, and the last one.
const FRAME_DELAY: u16 = 8;
const LAST_DELAY: u16 = 200;

/// Draws samples `[N, ..dims]`: points and sequences of them become a scatter plot (over `reference` points in grey, if
/// there are any), images in [-1, 1] a grid.
pub fn draw(samples: &[f32], dims: &[usize], reference: &[[f32; 2]]) -> Result<Picture> {
    match dims {
        [2] | [_, 2] => {
            let points: Vec<[f32; 2]> = samples.chunks_exact(2).map(|p| [p[0], p[1]]).collect();
            Ok(scatter(&points, reference))
        }
        &[height, width, channels @ (1 | 3)] => Ok(grid(samples, height, width, channels)),
        other => Err(Error::Usage(format!("samples of dims {other:?} can't be drawn; write them with --out FILE.npy"))),
    }
}

/// Images `[N, height, width, channels]` in [-1, 1] in about as many rows as columns.
fn grid(samples: &[f32], height: usize, width: usize, channels: usize) -> Picture {
    let count = (samples.len() / (height * width * channels)).max(1);
    let columns = (count as f64).sqrt().ceil() as usize;
    let rows = count.div_ceil(columns);
    let scale = (CELL / height.max(width)).max(1);
    let (cell_w, cell_h) = (width * scale + GAP, height * scale + GAP);
    let mut picture = Picture::filled(columns * cell_w + GAP, rows * cell_h + GAP, [24, 24, 28]);
    for (n, image) in samples.chunks_exact(height * width * channels).enumerate() {
        let (left, top) = (n % columns * cell_w + GAP, n / columns * cell_h + GAP);
        for y in 0..height * scale {
            for x in 0..width * scale {
                let at = ((y / scale) * width + x / scale) * channels;
                let value = |c: usize| byte(image[at + c.min(channels - 1)]);
                picture.set(left + x, top + y, [value(0), value(1), value(2)]);
            }
        }
    }
    picture
}

/// [-1, 1] to [0, 255]; what is not a number is black.
fn byte(value: f32) -> u8 {
    (value * 127.5 + 128.0).clamp(0.0, 255.0) as u8
}

/// Points in a square whose centre is the origin, large enough for all of `reference` (or [-3, 3]).
fn scatter(points: &[[f32; 2]], reference: &[[f32; 2]]) -> Picture {
    let mut picture = Picture::filled(PLOT, PLOT, [255, 255, 255]);
    let largest = reference.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
    let extent = if largest > 0.0 { largest * 1.12 } else { 3.0 };
    let place = |v: f32| (v / extent + 1.0) * 0.5 * PLOT as f32;
    for axis in [PLOT / 4, PLOT / 2, 3 * PLOT / 4] {
        for i in 0..PLOT {
            picture.set(axis, i, [236, 236, 240]);
            picture.set(i, axis, [236, 236, 240]);
        }
    }
    for &[x, y] in reference {
        picture.dot(place(x), place(-y), 1.3, [196, 198, 206], 0.5);
    }
    // Many points: smaller and more transparent dots, so that density stays visible.
    let alpha = (1500.0 / points.len().max(1) as f32).clamp(0.25, 0.85);
    for &[x, y] in points {
        picture.dot(place(x), place(-y), 1.7, [32, 84, 200], alpha);
    }
    picture
}

impl Picture {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Picture {
        Picture { width, height, rgb: colour.repeat(width * height) }
    }

    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let at = (y * self.width + x) * 3;
        self.rgb[at..at + 3].copy_from_slice(&colour);
    }

    /// An antialiased disc, blended with `alpha`.
    fn dot(&mut self, x: f32, y: f32, radius: f32, colour: [u8; 3], alpha: f32) {
        if !(x.is_finite() && y.is_finite()) {
            return;
        }
        let reach = radius + 1.0;
        let range = |centre: f32, size: usize| {
            let (low, high) = ((centre - reach).floor().max(0.0), (centre + reach).ceil().min(size as f32 - 1.0));
            low as usize..(high + 1.0).max(0.0) as usize
        };
        for py in range(y, self.height) {
            for px in range(x, self.width) {
                let distance = (px as f32 + 0.5 - x).hypot(py as f32 + 0.5 - y);
                let cover = (radius + 0.5 - distance).clamp(0.0, 1.0) * alpha;
                let at = (py * self.width + px) * 3;
                for c in 0..3 {
                    let old = self.rgb[at + c] as f32;
                    self.rgb[at + c] = (old + (colour[c] as f32 - old) * cover).round() as u8;
                }
            }
        }
    }

    /// The picture as PNG.
    pub fn png(&self) -> Result<Vec<u8>> {
        use image::ImageEncoder;
        let mut out = vec![];
        image::codecs::png::PngEncoder::new(&mut out)
            .write_image(&self.rgb, self.width as u32, self.height as u32, image::ExtendedColorType::Rgb8)
            .map_err(|e| Error::Usage(format!("PNG: {e}")))?;
        Ok(out)
    }
}

/// An endlessly repeated GIF of these pictures (of equal size) that rests on the last.
pub fn gif(frames: &[Picture]) -> Result<Vec<u8>> {
    let wrong = |e: String| Error::Usage(format!("GIF: {e}"));
    let first = frames.first().ok_or_else(|| wrong("there are no frames".into()))?;
    let side =
        |n: usize| u16::try_from(n).map_err(|_| wrong(format!("{n} pixels are more than 65,535; give a smaller --n")));
    let (width, height) = (side(first.width)?, side(first.height)?);
    let mut out = vec![];
    {
        let mut encoder = gif::Encoder::new(&mut out, width, height, &[]).map_err(|e| wrong(e.to_string()))?;
        encoder.set_repeat(gif::Repeat::Infinite).map_err(|e| wrong(e.to_string()))?;
        for (i, picture) in frames.iter().enumerate() {
            let mut frame = gif::Frame::from_rgb_speed(width, height, &picture.rgb, 10);
            frame.delay = if i + 1 == frames.len() { LAST_DELAY } else { FRAME_DELAY };
            encoder.write_frame(&frame).map_err(|e| wrong(e.to_string()))?;
        }
    }
    Ok(out)
}

/// Writes a picture as PNG.
pub fn save_png(path: &Path, picture: &Picture) -> Result<()> {
    write_atomic(path, &picture.png()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_place_images_row_by_row() {
        // Three images of 32 by 32: white, black, red; scaled by two into a 2 by 2 grid.
        let white = vec![1.0; 32 * 32 * 3];
        let black = vec![-1.0; 32 * 32 * 3];
        let red = [1.0, -1.0, -1.0].repeat(32 * 32);
        let picture = draw(&[white, black, red].concat(), &[32, 32, 3], &[]).unwrap();
        assert_eq!((picture.width, picture.height), (2 * 66 + 2, 2 * 66 + 2));
        let at = |x: usize, y: usize| &picture.rgb[(y * picture.width + x) * 3..][..3];
        assert_eq!(at(GAP, GAP), [255, 255, 255]);
        assert_eq!(at(GAP + 66, GAP), [0, 0, 0]);
        assert_eq!(at(GAP + 63, GAP + 66 + 63), [255, 0, 0]);
        assert_eq!(at(GAP + 66, GAP + 66), [24, 24, 28]);
    }

    #[test]
    fn png_decodes_to_the_same_pixels() {
        let picture = scatter(&[[0.0, 0.0], [1.0, -1.0], [f32::NAN, 9.0], [99.0, 0.0]], &[]);
        let decoded = image::load_from_memory(&picture.png().unwrap()).unwrap().into_rgb8();
        assert_eq!(decoded.into_raw(), picture.rgb);
    }

    #[test]
    fn a_point_is_drawn_where_it_is() {
        let picture = scatter(&[[1.5, 1.5]], &[]);
        let dark = |x: usize, y: usize| picture.rgb[(y * PLOT + x) * 3] < 128;
        assert!(dark(3 * PLOT / 4, PLOT / 4), "up and to the right of the centre");
        assert!(!dark(PLOT / 4, PLOT / 4) && !dark(3 * PLOT / 4, 3 * PLOT / 4));
    }

    #[test]
    fn gifs_have_their_frames() {
        let frames: Vec<Picture> = (0..4).map(|i| Picture::filled(8, 6, [i * 60, 0, 0])).collect();
        let bytes = gif(&frames).unwrap();
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(&bytes[..]).unwrap();
        let mut seen = vec![];
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            seen.push((frame.delay, frame.buffer[0]));
        }
        assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [8, 8, 8, 200]);
        assert!(seen.windows(2).all(|w| w[0].1 < w[1].1));
        assert!(gif(&[]).is_err());
    }
}
