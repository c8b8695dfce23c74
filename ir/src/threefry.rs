//! Threefry-2x32, 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed
//! bijection of 64-bit counters. All randomness of dnx is a pure function of `(seed, stream, counter)`:
//! a *key* is made from the seed by [`key`], one stream per use is derived from it by [`fold_in`], and element
//! `i` of a draw is [`bits`] at counter `i`. Nothing is kept between draws, so a resumed run, another mesh or
//! another batch order sees the same numbers.

/// Two words of key.
pub type Key = [u32; 2];

/// Rotations of one group of four rounds, for even and odd groups.
pub const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

/// The constant that completes the key schedule.
pub const PARITY: u32 = 0x1BD1_1BDA;

/// The image of a counter under a key.
pub fn threefry2x32(key: Key, counter: [u32; 2]) -> [u32; 2] {
    let schedule = [key[0], key[1], PARITY ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(key[0]), counter[1].wrapping_add(key[1])];
    for group in 0..5 {
        for r in ROTATIONS[group % 2] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(r) ^ x[0];
        }
        x[0] = x[0].wrapping_add(schedule[(group + 1) % 3]);
        x[1] = x[1].wrapping_add(schedule[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    x
}

/// The key of a seed: its high word, then its low word.
pub fn key(seed: u64) -> Key {
    [(seed >> 32) as u32, seed as u32]
}

/// The key of stream `data` under `key`: the image of the counter `(0, data)`.
pub fn fold_in(key: Key, data: u32) -> Key {
    threefry2x32(key, [0, data])
}

/// `n` keys under `key`: those of streams `0..n`.
pub fn split(key: Key, n: u32) -> Vec<Key> {
    (0..n).map(|i| fold_in(key, i)).collect()
}

/// 32 uniform bits: the two words of the image of `(index's high word, its low word)`, xored.
/// Element `index` (row-major) of [`crate::Op::RandomBits`].
pub fn bits(key: Key, index: u64) -> u32 {
    let [a, b] = threefry2x32(key, [(index >> 32) as u32, index as u32]);
    a ^ b
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that the authors publish with Random123.
    #[test]
    fn known_answers() {
        for (counter, key, image) in [
            ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            ([!0, !0], [!0, !0], [0x1cb9_96fc, 0xbb00_2be7]),
            ([0x243f_6a88, 0x85a3_08d3], [0x1319_8a2e, 0x0370_7344], [0xc492_3a9c, 0x483d_f7a0]),
        ] {
            assert_eq!(threefry2x32(key, counter), image, "counter {counter:08x?} key {key:08x?}");
        }
    }

    #[test]
    fn streams_are_distinct() {
        let mut keys = split(key(7), 1000);
        keys.extend(split(key(7 << 32), 1000));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 2000);
        assert_eq!(split(key(7), 3)[2], fold_in(key(7), 2));
        assert_ne!(bits(key(1), 5), bits(key(1), 5 | 1 << 32));
    }
}
