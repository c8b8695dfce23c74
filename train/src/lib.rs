//! Around the compiled training step: data, the loop, checkpoints, metrics and pictures.
//!
//! * [`data`]: sets of samples and the order they are visited in.
//! * [`checkpoint`]: weights and state on the disk, exact resume.
//! * [`log`]: metrics, TensorBoard, curves, pictures, progress.
//! * [`error`]: what can go wrong and which exit status it has; [`files`]: writing so that nothing is half there.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod files;
pub mod log;

pub use error::{Error, Result};
