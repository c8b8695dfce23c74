//! Errors of this crate.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A graph could not be built: the op and model path are in the message.
    #[error(transparent)]
    Graph(#[from] dnx_ir::Error),
    /// A configuration is not meaningful. `key` is its dotted path.
    #[error("{key}: {message}")]
    Config {
        /// Dotted key, as `model.heads`.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Weights given by name do not fit the network.
    #[error("tensor {name}: {message}")]
    Weights {
        /// Tensor name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A function the host was asked for has no value there (a time beyond its path, say).
    #[error("{0}")]
    Domain(String),
    /// A device failed.
    #[error("{0}")]
    Device(String),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A configuration error at this dotted key.
    pub fn config(key: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Config { key: key.into(), message: message.into() }
    }
}
