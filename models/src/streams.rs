//! Streams of a run's seed. Every draw is a function of `(seed, stream, counter)`, so nothing about random
//! numbers needs saving, and two uses never share numbers.

/// Initial weights; the counter is the parameter's name.
pub const INIT: u32 = 0;
/// Order and augmentation of the data; left to the loader.
pub const DATA: u32 = 1;
/// Times of training samples; the counter is the step.
pub const TIME: u32 = 2;
/// Noise of training samples; the counter is the step.
pub const NOISE: u32 = 3;
/// Which labels are dropped; the counter is the step.
pub const LABEL: u32 = 4;
/// Noise of samplers, of the *sample's* seed; the counter is the draw.
pub const SAMPLE: u32 = 5;
