//! Random numbers for data as functions of (seed, stream, counter): threefry2x32, the generator of
//! `random_bits`, so that data is the same on every machine and needs no saved state.

/// What a sequence of numbers is for. Two uses never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// The points of a built-in set.
    Points = 0x6461_0001,
    /// The pictures of `shapes`.
    Shapes = 0x6461_0002,
    /// The order of samples in an epoch.
    Order = 0x6461_0003,
    /// Which samples of a batch are mirrored.
    Flip = 0x6461_0004,
}

/// An endless sequence of random words under one (seed, stream, item).
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    counter: u64,
    spare: Option<u32>,
}

impl Random {
    /// The sequence of this seed, stream and item (an index, an epoch).
    pub fn new(seed: u64, stream: Stream, item: u64) -> Random {
        let seeded = threefry2x32([seed as u32, (seed >> 32) as u32], [stream as u32, 0]);
        let key = threefry2x32(seeded, [item as u32, (item >> 32) as u32]);
        Random { key, counter: 0, spare: None }
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        if let Some(word) = self.spare.take() {
            return word;
        }
        let [a, b] = threefry2x32(self.key, [self.counter as u32, (self.counter >> 32) as u32]);
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

/// One word pair of threefry2x32 with 20 rounds.
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd1_1bda];
    let (mut a, mut b) = (counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1]));
    for group in 0..5usize {
        for rotation in ROTATIONS[group % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(rotation) ^ a;
        }
        a = a.wrapping_add(keys[(group + 1) % 3]);
        b = b.wrapping_add(keys[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threefry_known_answers() {
        // The known-answer vectors of the generator's authors (threefry2x32, 20 rounds).
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]), [0xc492_3a9c, 0x483d_f7a0]);
    }

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
