//! The order of samples: position `p` of training (batch `p / B`, place `p % B`) takes sample
//! `permutation_e(p % N)` of epoch `e = p / N`. The permutation is a keyed bijection computed on the spot, so a
//! batch is a function of (seed, step) alone, whatever the number of workers and wherever a run was resumed.

use super::random::{Random, Stream};
use dnx_ir::threefry::threefry2x32;

/// The order of `len` samples under a seed, over all epochs.
#[derive(Clone, Debug)]
pub struct Order {
    len: u64,
    half_bits: u32,
    seed: u64,
}

impl Order {
    /// An order of `len` samples (at least one).
    pub fn new(len: usize, seed: u64) -> Order {
        let len = (len as u64).max(1);
        let bits = u64::BITS - (len - 1).leading_zeros();
        Order { len, half_bits: bits.div_ceil(2).max(1), seed }
    }

    /// The sample at this position of training.
    pub fn sample(&self, position: u64) -> usize {
        let (epoch, place) = (position / self.len, position % self.len);
        let mut random = Random::new(self.seed, Stream::Order, epoch);
        let key = [random.bits(), random.bits()];
        // A Feistel network permutes the next power of four; walking its cycle until it lands below `len`
        // permutes the samples. Fewer than four steps are expected.
        let mut at = self.scramble(key, place);
        while at >= self.len {
            at = self.scramble(key, at);
        }
        at as usize
    }

    fn scramble(&self, key: [u32; 2], value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..6u32 {
            let [word, _] = threefry2x32(key, [right as u32, round]);
            (left, right) = (right, left ^ (word as u64 & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_sample_once() {
        for len in [1, 2, 3, 7, 64, 65, 1000] {
            let order = Order::new(len, 42);
            let mut epochs = vec![];
            for epoch in 0..3u64 {
                let visited: Vec<usize> = (0..len as u64).map(|p| order.sample(epoch * len as u64 + p)).collect();
                let mut sorted = visited.clone();
                sorted.sort();
                assert_eq!(sorted, (0..len).collect::<Vec<_>>(), "length {len}");
                epochs.push(visited);
            }
            if len >= 64 {
                assert_ne!(epochs[0], epochs[1]);
                assert_ne!(epochs[0], (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_order_is_well_mixed() {
        // Neighbours in training should not be neighbours in the set: with 10,000 samples the mean distance of
        // consecutive ones is a third of the length.
        let order = Order::new(10_000, 0);
        let gap = |p: u64| (order.sample(p) as f64 - order.sample(p + 1) as f64).abs();
        let mean = (0..9_999).map(gap).sum::<f64>() / 9_999.0;
        assert!((mean - 3_333.0).abs() < 100.0, "mean gap {mean}");
    }
}
