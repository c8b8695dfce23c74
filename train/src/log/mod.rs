//! What a run says about itself: `metrics.jsonl`, TensorBoard events, the loss curve, pictures of samples, and
//! progress for the person watching.

pub mod curve;
pub mod jsonl;
pub mod picture;
mod progress;
pub mod tensorboard;

pub use jsonl::{Jsonl, Record};
pub use picture::Picture;
pub use progress::{Progress, Status};
pub use tensorboard::EventWriter;
