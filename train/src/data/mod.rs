//! Data: where samples come from and in which order.
//!
//! A [`Dataset`] is a numbered set of samples, each an `f32` array (a point `[2]`, a sequence of points `[T, 2]`,
//! or a picture `[H, W, C]` in [-1, 1]) with a class. A batch is a function of (seed, step) alone ([`order`]); [`Prefetch`] makes batches
//! ahead of time. What can be read: the built-in [`points`], [`orbits`] and [`shapes`], MNIST's [`idx`] files, [`cifar`]'s
//! binary files, and [`folder`]s of pictures.

pub mod cifar;
mod config;
pub mod folder;
pub mod idx;
pub mod orbits;
pub mod order;
pub mod points;
mod prefetch;
pub mod random;
pub mod shapes;
mod source;

pub use config::{DataConfig, DataKind, Split};
pub use prefetch::Prefetch;

use crate::{Error, Result};
use folder::ImageFolder;
use order::Order;
use points::PointSet;
use random::{Random, Stream};
use source::wrong;
use std::path::Path;

/// A numbered set of samples.
#[derive(Debug)]
pub struct Dataset {
    store: Store,
    dims: Vec<usize>,
    class_names: Vec<String>,
    hflip: bool,
    order: Order,
    seed: u64,
}

#[derive(Debug)]
enum Store {
    Points { points: Vec<[f32; 2]>, labels: Vec<u32> },
    Orbits { count: usize, seed: u64, noise: Option<f64> },
    Shapes { count: usize, seed: u64 },
    Pixels(Pixels),
    Folder(ImageFolder),
    Noise { count: usize, classes: usize, seed: u64 },
}

/// Pictures held in memory as bytes.
#[derive(Debug)]
pub struct Pixels {
    /// Height, width, channels.
    pub dims: [usize; 3],
    /// `[N, H, W, C]`.
    pub bytes: Vec<u8>,
    /// `[N]`.
    pub labels: Vec<u8>,
}

impl Pixels {
    /// Adds the pictures of another file of the same set.
    fn append(&mut self, other: Pixels, file: &Path) -> Result<()> {
        if other.dims != self.dims {
            let message = format!("pictures of {:?}, where the other files have {:?}", other.dims, self.dims);
            return Err(wrong(file, message));
        }
        self.bytes.extend(other.bytes);
        self.labels.extend(other.labels);
        Ok(())
    }
}

/// The samples of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[B, ..dims]`, row-major.
    pub samples: Vec<f32>,
    /// `[B]`.
    pub labels: Vec<u32>,
}

impl Dataset {
    /// Opens the data of a configuration. `seed` is the run's; `data.seed` overrides it for built-in sets.
    pub fn open(config: &DataConfig, seed: u64) -> Result<Dataset> {
        let set_seed = config.seed.unwrap_or(0);
        let point_set = |set: PointSet| {
            let (points, labels) = set.generate(config.count, set_seed, config.noise);
            let names = (0..set.classes()).map(|i| i.to_string()).collect();
            (Store::Points { points, labels }, vec![2], names)
        };
        if config.count == 0 {
            return Err(Error::Config("[data] count must be at least 1".into()));
        }
        let (store, dims, class_names): (Store, Vec<usize>, Vec<String>) = match config.kind {
            DataKind::TwoMoons => point_set(PointSet::TwoMoons),
            DataKind::SwissRoll => point_set(PointSet::SwissRoll),
            DataKind::EightGaussians => point_set(PointSet::EightGaussians),
            DataKind::Checkerboard => point_set(PointSet::Checkerboard),
            DataKind::Orbits => {
                let length = config.length.unwrap_or(orbits::LENGTH);
                if length < 2 {
                    return Err(Error::Config(format!("[data] length = {length}: an orbit has at least two points")));
                }
                let store = Store::Orbits { count: config.count, seed: set_seed, noise: config.noise };
                (store, vec![length, 2], orbits::CLASSES.map(String::from).to_vec())
            }
            DataKind::Shapes => {
                let size = config.size.unwrap_or(shapes::SIZE);
                if size != shapes::SIZE {
                    return Err(Error::Config(format!("[data] size = {size}: shapes are 32 by 32; leave size out")));
                }
                let names = shapes::CLASSES.map(String::from).to_vec();
                (Store::Shapes { count: config.count, seed: set_seed }, vec![size, size, 3], names)
            }
            DataKind::Mnist => {
                let pixels = idx::read_folder(config.path()?, config.split)?;
                let classes = pixels.labels.iter().max().map_or(0, |&m| m as usize + 1).max(10);
                let dims = padded(config, pixels.dims)?;
                (Store::Pixels(pixels), dims, (0..classes).map(|i| i.to_string()).collect())
            }
            DataKind::Cifar10 => {
                let pixels = cifar::read_folder(config.path()?, config.split)?;
                let dims = padded(config, pixels.dims)?;
                (Store::Pixels(pixels), dims, cifar::CLASSES.map(String::from).to_vec())
            }
            DataKind::Noise => {
                let Some(dims) = config.dims.clone().filter(|d| !d.is_empty() && !d.contains(&0)) else {
                    return Err(Error::Config("[data] kind = \"noise\" needs dims, as dims = [32, 32, 4]".into()));
                };
                let classes = config.classes.unwrap_or(0);
                let names = (0..classes).map(|i| i.to_string()).collect();
                (Store::Noise { count: config.count, classes, seed: set_seed }, dims, names)
            }
            DataKind::Images => {
                let folder = ImageFolder::open(config.path()?)?;
                let Some(size) = config.size.filter(|&s| s > 0) else {
                    let message = "[data] kind = \"images\" needs size, the width and height pictures are resized to";
                    return Err(Error::Config(message.into()));
                };
                let names = folder.classes.clone();
                (Store::Folder(folder), vec![size, size, config.channels.count()], names)
            }
        };
        let len = store.len();
        if len == 0 {
            return Err(Error::Data(format!("the {} data hold no samples", config.kind.name())));
        }
        if config.length.is_some() && config.kind != DataKind::Orbits {
            return Err(Error::Config(format!("[data] length: is read only by orbits, not by {}", config.kind.name())));
        }
        if config.hflip && dims.len() != 3 {
            return Err(Error::Config(format!("[data] hflip: {} are points, not pictures", config.kind.name())));
        }
        Ok(Dataset { store, dims, class_names, hflip: config.hflip, order: Order::new(len, seed), seed })
    }

    /// The number of samples; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Dims of a sample: `[2]`, `[T, 2]` or `[H, W, C]`.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The number of elements of a sample.
    pub fn elems(&self) -> usize {
        self.dims.iter().product()
    }

    /// The number of classes; 0 where samples have no labels.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// Names of the classes.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Writes sample `index` into `out` and gives its class.
    pub fn get(&self, index: usize, out: &mut [f32]) -> Result<u32> {
        match &self.store {
            Store::Points { points, labels } => {
                out.copy_from_slice(&points[index]);
                Ok(labels[index])
            }
            Store::Orbits { seed, noise, .. } => {
                orbits::draw(*seed, index, *noise, out);
                Ok(orbits::label(index))
            }
            Store::Shapes { seed, .. } => {
                shapes::draw(*seed, index, out);
                Ok(shapes::label(index))
            }
            Store::Pixels(pixels) => {
                let n: usize = pixels.dims.iter().product();
                place(&pixels.bytes[index * n..(index + 1) * n], pixels.dims, &self.dims, out);
                Ok(pixels.labels[index] as u32)
            }
            Store::Folder(folder) => {
                let bytes = folder::decode(&folder.files[index], self.dims[0], self.dims[2])?;
                out.iter_mut().zip(&bytes).for_each(|(o, &b)| *o = scaled(b));
                Ok(folder.labels[index])
            }
            Store::Noise { classes, seed, .. } => {
                let mut random = Random::new(*seed, Stream::Noise, index as u64);
                out.iter_mut().for_each(|o| *o = random.normal() as f32);
                Ok(if *classes == 0 { 0 } else { random.bits() % *classes as u32 })
            }
        }
    }

    /// The batch of a step.
    pub fn batch(&self, step: u64, size: usize) -> Result<Batch> {
        self.batch_of(step, &vec![true; size])
    }

    /// The batch of a step, as many samples as `wanted` has entries; those not wanted are not read, and zero.
    pub fn batch_of(&self, step: u64, wanted: &[bool]) -> Result<Batch> {
        let (n, size) = (self.elems(), wanted.len());
        let mut batch = Batch { samples: vec![0.0; size * n], labels: Vec::with_capacity(size) };
        for (i, out) in batch.samples.chunks_exact_mut(n).enumerate() {
            if !wanted[i] {
                batch.labels.push(0);
                continue;
            }
            let position = step * size as u64 + i as u64;
            batch.labels.push(self.get(self.order.sample(position), out)?);
            if self.hflip && Random::new(self.seed, Stream::Flip, position).bits() & 1 == 1 {
                mirror(out, self.dims[1], self.dims[2]);
            }
        }
        Ok(batch)
    }
}

impl Store {
    fn len(&self) -> usize {
        match self {
            Store::Points { points, .. } => points.len(),
            Store::Orbits { count, .. } | Store::Shapes { count, .. } => *count,
            Store::Pixels(pixels) => pixels.labels.len(),
            Store::Folder(folder) => folder.files.len(),
            Store::Noise { count, .. } => *count,
        }
    }
}

/// A byte on the scale of samples.
fn scaled(byte: u8) -> f32 {
    byte as f32 / 127.5 - 1.0
}

/// Dims after padding to `data.size`.
fn padded(config: &DataConfig, [height, width, channels]: [usize; 3]) -> Result<Vec<usize>> {
    let Some(size) = config.size else { return Ok(vec![height, width, channels]) };
    if size < height || size < width {
        return Err(Error::Config(format!(
            "[data] size = {size}: the pictures are {height} by {width} and are padded, not shrunk; \
             give at least {}",
            height.max(width)
        )));
    }
    Ok(vec![size, size, channels])
}

/// Puts a picture in the middle of a larger black one.
fn place(bytes: &[u8], [height, width, channels]: [usize; 3], dims: &[usize], out: &mut [f32]) {
    let (top, left) = ((dims[0] - height) / 2, (dims[1] - width) / 2);
    if (height, width) != (dims[0], dims[1]) {
        out.fill(-1.0);
    }
    for y in 0..height {
        let row = &bytes[y * width * channels..(y + 1) * width * channels];
        let at = ((y + top) * dims[1] + left) * channels;
        out[at..at + row.len()].iter_mut().zip(row).for_each(|(o, &b)| *o = scaled(b));
    }
}

/// Left to right.
fn mirror(picture: &mut [f32], width: usize, channels: usize) {
    for row in picture.chunks_exact_mut(width * channels) {
        for x in 0..width / 2 {
            for c in 0..channels {
                row.swap(x * channels + c, (width - 1 - x) * channels + c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_centres_on_black() {
        let mut out = vec![9.0; 4 * 4];
        place(&[255, 0, 51, 204], [2, 2, 1], &[4, 4, 1], &mut out);
        let mut expected = [-1.0f32; 16];
        (expected[5], expected[6], expected[9], expected[10]) = (1.0, -1.0, -0.6, 0.6);
        approx::assert_abs_diff_eq!(out.as_slice(), expected.as_slice(), epsilon = 1e-6);
    }

    #[test]
    fn mirrors_keep_channels_together() {
        let mut picture = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        mirror(&mut picture, 3, 2);
        assert_eq!(picture, [5.0, 6.0, 3.0, 4.0, 1.0, 2.0]);
    }

    #[test]
    fn flips_are_half_and_repeatable() {
        let config = DataConfig { kind: DataKind::Shapes, count: 10, hflip: true, ..DataConfig::default() };
        let flipped = Dataset::open(&config, 1).unwrap();
        let plain = Dataset::open(&DataConfig { hflip: false, ..config }, 1).unwrap();
        let n = plain.elems();
        let (a, b) = (flipped.batch(2, 64).unwrap(), plain.batch(2, 64).unwrap());
        assert_eq!(a.labels, b.labels);
        let same = a.samples.chunks(n).zip(b.samples.chunks(n)).filter(|(x, y)| x == y).count();
        assert!((16..48).contains(&same), "{same} of 64 unflipped");
        assert_eq!(a, flipped.batch(2, 64).unwrap());
    }

    #[test]
    fn batches_larger_than_the_set_repeat_it() {
        let config = DataConfig { kind: DataKind::TwoMoons, count: 3, ..DataConfig::default() };
        let batch = Dataset::open(&config, 0).unwrap().batch(0, 6).unwrap();
        let mut points: Vec<_> = batch.samples.chunks(2).map(|p| [p[0].to_bits(), p[1].to_bits()]).collect();
        points.sort();
        points.dedup();
        assert_eq!(points.len(), 3);
    }

    #[test]
    fn wrong_settings_are_refused() {
        let message = |config: DataConfig| Dataset::open(&config, 0).unwrap_err().to_string();
        let moons = DataConfig { kind: DataKind::TwoMoons, ..DataConfig::default() };
        assert!(message(DataConfig { hflip: true, ..moons.clone() }).contains("hflip"));
        assert!(message(DataConfig { count: 0, ..moons.clone() }).contains("count"));
        assert!(message(DataConfig { kind: DataKind::Mnist, ..moons.clone() }).contains("path"));
        assert!(message(DataConfig { kind: DataKind::Shapes, size: Some(8), ..moons }).contains("32"));
    }
}
