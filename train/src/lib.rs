//! Around the compiled training step: data, the loop, checkpoints, metrics and pictures.
//!
//! * [`data`]: sets of samples and the order they are visited in.
//! * [`config`]: TOML configurations, `--set`, and errors that name the place.
//! * [`trainer`]: the compiled step, its state, and the loop; [`run`]: the folder it writes.
//! * [`checkpoint`]: weights and state on the disk, exact resume.
//! * [`teacher`]: trained networks that others learn from.
//! * [`sampling`]: samples from trained weights; [`npy`]: as NumPy's files.
//! * [`log`]: metrics, TensorBoard, curves, pictures, progress.
//! * [`estimate`]: time per step before it is run.
//! * [`plan`]: what a step would take on a mesh that is not at hand.
//! * [`error`]: what can go wrong and which exit status it has; [`files`]: writing so that nothing is half there.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod estimate;
pub mod files;
pub mod log;
pub mod npy;
pub mod plan;
pub mod profile;
pub mod run;
pub mod sampling;
pub mod teacher;
pub mod trainer;

pub use error::{Error, Result};
pub use trainer::{FitOptions, Trainer};
