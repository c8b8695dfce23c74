//! Data, trainer, checkpoints and metrics of dnx.
