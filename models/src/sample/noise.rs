//! The noise of samplers.

use crate::streams;
use dnx_ir::random::normal_from_bits;
use dnx_ir::threefry::{Key, bits, fold_in, key};

/// A source of standard normal arrays like the state.
pub trait Noise {
    /// The next array.
    fn draw(&mut self) -> Vec<f64>;
}

/// Noise that is, for each sample, a function of the sample's own seed and the number of the draw.
#[derive(Clone, Debug)]
pub struct SampleNoise {
    keys: Vec<Key>,
    elems: usize,
    draws: u32,
}

impl SampleNoise {
    /// Noise for one sample per seed, each of `elems` elements.
    pub fn new(seeds: &[u64], elems: usize) -> SampleNoise {
        let keys = seeds.iter().map(|&s| fold_in(key(s), streams::SAMPLE)).collect();
        SampleNoise { keys, elems, draws: 0 }
    }

    /// Draw number `draw`, from 0, of one of the samples.
    pub fn at(&self, sample: usize, draw: u32) -> Vec<f64> {
        let key = fold_in(self.keys[sample], draw);
        (0..self.elems as u64).map(|i| normal_from_bits(bits(key, i))).collect()
    }
}

impl Noise for SampleNoise {
    fn draw(&mut self) -> Vec<f64> {
        let out = (0..self.keys.len()).flat_map(|s| self.at(s, self.draws)).collect();
        self.draws += 1;
        out
    }
}
