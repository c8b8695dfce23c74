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
/// Which particles have children, of the particles' seed.
pub const RESAMPLE: u32 = 16;
/// Which drafted steps are accepted, of the sample's seed; the counter is the step.
pub const ACCEPT: u32 = 17;
/// Directions along which a trace is estimated, of the sample's seed; the counter is the probe.
pub const PROBE: u32 = 18;
/// Noise between the levels of 8-bit data, of the sample's seed.
pub const DEQUANTIZE: u32 = 19;
/// The first of those of objectives with draws of their own; the counter is the step.
pub const OBJECTIVE: u32 = 32;
