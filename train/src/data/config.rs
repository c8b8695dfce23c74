//! The `[data]` section.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// Built in: two interleaved half circles, standardised.
    #[default]
    TwoMoons,
    /// Built in: a spiral, standardised.
    SwissRoll,
    /// Built in: eight Gaussians on a ring.
    EightGaussians,
    /// Built in: the dark squares of a checkerboard.
    Checkerboard,
    /// Built in: sequences of points that go round a circle, left or right.
    Orbits,
    /// Built in: 32 by 32 RGB pictures of ten figures.
    Shapes,
    /// MNIST's idx files (Fashion-MNIST and others alike).
    Mnist,
    /// CIFAR-10's binary files.
    Cifar10,
    /// A folder of PNG and JPEG pictures, one folder per class.
    Images,
    /// Standard normal tensors of `dims`, for measuring and dry runs of networks whose data is elsewhere.
    Noise,
}

impl DataKind {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            DataKind::TwoMoons => "two_moons",
            DataKind::SwissRoll => "swiss_roll",
            DataKind::EightGaussians => "eight_gaussians",
            DataKind::Checkerboard => "checkerboard",
            DataKind::Orbits => "orbits",
            DataKind::Shapes => "shapes",
            DataKind::Mnist => "mnist",
            DataKind::Cifar10 => "cifar10",
            DataKind::Images => "images",
            DataKind::Noise => "noise",
        }
    }
}

/// Which part of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// The training part.
    #[default]
    Train,
    /// The test part.
    Test,
    /// Both.
    All,
}

impl Split {
    pub(super) fn idx_prefixes(self) -> &'static [&'static str] {
        match self {
            Split::Train => &["train"],
            Split::Test => &["t10k"],
            Split::All => &["train", "t10k"],
        }
    }
}

/// Colour of pictures read from a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Three channels.
    #[default]
    Rgb,
    /// One channel.
    Grey,
}

impl Channels {
    pub(super) fn count(self) -> usize {
        match self {
            Channels::Rgb => 3,
            Channels::Grey => 1,
        }
    }
}

/// The `[data]` section: what is read and how it is batched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is read.
    pub kind: DataKind,
    /// The folder of `mnist`, `cifar10` and `images`, relative to the working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `train`, `test` or `all` (mnist, cifar10).
    #[serde(default)]
    pub split: Split,
    /// Width and height: mnist and cifar10 are padded to it with black, `images` are cropped and resized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// `rgb` or `grey` (images).
    #[serde(default)]
    pub channels: Channels,
    /// Dims of a sample (noise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<usize>>,
    /// Number of classes (noise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Mirror half of the pictures, at random.
    #[serde(default)]
    pub hflip: bool,
    /// Points of a sequence (orbits); 8 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Samples in a built-in set.
    #[serde(default = "defaults::count")]
    pub count: usize,
    /// Noise of a built-in set of points, when not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// Seed of a built-in set; 0 when left out, so that runs with different seeds see the same data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Samples in a step.
    #[serde(default = "defaults::batch")]
    pub batch: usize,
    /// Threads that prepare batches; 0 prepares them in the training thread.
    #[serde(default = "defaults::workers")]
    pub workers: usize,
}

mod defaults {
    pub fn count() -> usize {
        10_000
    }
    pub fn batch() -> usize {
        256
    }
    pub fn workers() -> usize {
        1
    }
}

impl Default for DataConfig {
    fn default() -> DataConfig {
        DataConfig {
            kind: DataKind::default(),
            path: None,
            split: Split::default(),
            size: None,
            channels: Channels::default(),
            dims: None,
            classes: None,
            hflip: false,
            length: None,
            count: defaults::count(),
            noise: None,
            seed: None,
            batch: defaults::batch(),
            workers: defaults::workers(),
        }
    }
}

impl DataConfig {
    pub(super) fn path(&self) -> Result<&Path> {
        self.path.as_deref().ok_or_else(|| {
            Error::Config(format!(
                "[data] kind = \"{}\" needs path, the folder with its files (or --set data.path=FOLDER)",
                self.kind.name()
            ))
        })
    }
}
