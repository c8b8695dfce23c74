//! Random numbers for data as functions of (seed, stream, counter): threefry, the generator of `random_bits`,
//! so that data is the same on every machine and needs no saved state.

use dnx_ir::threefry::{Key, fold_in, key, threefry2x32};

/// What a sequence of numbers is for. Two uses never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// The points of a built-in set.
    Points = 0,
    /// The pictures of `shapes`.
    Shapes = 1,
    /// The order of samples in an epoch.
    Order = 2,
    /// Which samples of a batch are mirrored.
    Flip = 3,
    /// The tensors of `noise`.
    Noise = 4,
}

/// An endless sequence of random words under one (seed, stream, item).
#[derive(Clone, Debug)]
pub struct Random {
    key: Key,
    counter: u64,
    spare: Option<u32>,
}

impl Random {
    /// The sequence of this seed, stream and item (an index, an epoch).
    pub fn new(seed: u64, stream: Stream, item: u64) -> Random {
        let stream = fold_in(fold_in(key(seed), dnx_models::streams::DATA), stream as u32);
        let key = threefry2x32(stream, [(item >> 32) as u32, item as u32]);
        Random { key, counter: 0, spare: None }
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        if let Some(word) = self.spare.take() {
            return word;
        }
        let [a, b] = threefry2x32(self.key, [(self.counter >> 32) as u32, self.counter as u32]);
        self.counter += 1;
        self.spare = Some(b);
        a
    }

    /// Uniform in [0, 1), a multiple of 2^-32.
    pub fn uniform(&mut self) -> f64 {
        self.bits() as f64 / 4_294_967_296.0
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal (Box-Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_moments() {
        let mut random = Random::new(7, Stream::Points, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.04, "mean {mean}, variance {var}");
    }

    #[test]
    fn streams_and_items_differ() {
        let first = |stream, item| Random::new(1, stream, item).bits();
        assert_ne!(first(Stream::Points, 0), first(Stream::Order, 0));
        assert_ne!(first(Stream::Points, 0), first(Stream::Points, 1));
    }
}
