//! Errors of training, data, checkpoints and logs. Each says what is wrong, where, and what to do, and knows
//! which exit status the command ends with ([`Error::exit_status`]).

use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file or a `--set` is wrong; the message carries file, line and key.
    #[error("{0}")]
    Config(String),
    /// An argument or combination of arguments is wrong.
    #[error("{0}")]
    Usage(String),
    /// A data file is missing, truncated or of another kind; the message names it.
    #[error("{0}")]
    Data(String),
    /// A checkpoint or weights file is missing, truncated or does not fit; the message names file and tensor.
    #[error("{0}")]
    Checkpoint(String),
    /// The operating system refused a file operation.
    #[error("{doing} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was being done, as `cannot write`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
    /// A network, process or step could not be built. Errors of the configuration are turned into
    /// [`Error::Config`] where the place in the file is known.
    #[error("{0}")]
    Model(#[from] dnx_models::Error),
    /// A graph could not be built or interpreted.
    #[error("{0}")]
    Graph(#[from] dnx_ir::Error),
    /// The device failed or refused.
    #[error("{0}")]
    Device(#[from] dnx_runtime::Error),
    /// A step does not fit into memory; the message says what would.
    #[error("{0}")]
    Memory(String),
    /// The loss is not a number.
    #[error("{0}")]
    NonFinite(String),
    /// Another process of the run failed in what all of them do, and said why.
    #[error("another process of this run failed; its own message says why")]
    Process,
    /// Ctrl-C: the step was finished and a checkpoint written.
    #[error("interrupted at step {step}; continue with --resume")]
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<dnx_codegen::CompileError> for Error {
    fn from(error: dnx_codegen::CompileError) -> Error {
        Error::Device(error.into())
    }
}

impl Error {
    /// The exit status of a command that ends with this error: 2 when what the user gave is wrong, 130 for an
    /// interrupt, else 1.
    pub fn exit_status(&self) -> i32 {
        match self {
            Error::Config(_) | Error::Usage(_) | Error::Data(_) | Error::Checkpoint(_) | Error::Memory(_) => 2,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 2,
            Error::Model(dnx_models::Error::Config { .. } | dnx_models::Error::Weights { .. }) => 2,
            // Refused before any work: another device or a smaller batch is for the user to choose.
            Error::Device(e) if is_choice(e) => 2,
            Error::Io { .. } | Error::Model(_) | Error::Graph(_) | Error::Device(_) => 1,
            Error::NonFinite(_) | Error::Process => 1,
            Error::Interrupted { .. } => 130,
        }
    }

    /// Turns an operating-system error into one that names the file.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { doing, path, source }
    }
}

fn is_choice(error: &dnx_runtime::Error) -> bool {
    use dnx_codegen::CompileError;
    use dnx_runtime::Error as E;
    matches!(error, E::NoDevice { .. } | E::OutOfMemory { .. } | E::Compile(CompileError::TooLarge { .. }))
}

fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            " (nothing older was touched; free some space and continue with --resume)"
        }
        std::io::ErrorKind::PermissionDenied => " (choose another folder with --run or --out)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("cannot write", "runs/a/loss.svg")(full);
        assert!(error.to_string().starts_with("cannot write runs/a/loss.svg: "), "{error}");
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(error.exit_status(), 1);
    }
}
