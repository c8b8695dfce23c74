//! Errors of the compiler: the stage that refused, what is wrong, where, and what to do.

use crate::stages::Stage;

/// Why a program was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// An ill-formed function: what was given, or (a bug) what a pass made of it.
    #[error("stage {stage}: {source}")]
    Ir {
        /// The stage at whose end, or within which, it was found.
        stage: Stage,
        /// What is wrong with it.
        source: dnx_ir::Error,
    },
    /// A thing the compiler can't do.
    #[error("stage {stage}: {what}{}", at(loc))]
    Unsupported {
        /// The stage that refused.
        stage: Stage,
        /// What can't be done, and what to do instead.
        what: String,
        /// Model path; may be empty.
        loc: String,
    },
    /// The program does not fit the device.
    #[error("stage {stage}: {what} takes {bytes} bytes, the device allows {limit}{}; {remedy}", at(loc))]
    TooLarge {
        /// The stage that refused.
        stage: Stage,
        /// The tensor or the sum of memory.
        what: String,
        /// Its bytes.
        bytes: u64,
        /// The limit it exceeds.
        limit: u64,
        /// What would make it fit.
        remedy: String,
        /// Model path; may be empty.
        loc: String,
    },
    /// A shader the checker refuses: a bug in the writer.
    #[error("stage wgsl: the shader of kernel {kernel} is not valid: {message}")]
    Shader {
        /// Kernel name.
        kernel: String,
        /// The checker's words.
        message: String,
    },
    /// Options that contradict the program.
    #[error("options: {0}")]
    Options(String),
}

/// A result of the compiler.
pub type Result<T, E = CompileError> = std::result::Result<T, E>;

impl CompileError {
    /// A thing this stage can't do, said with the remedy.
    pub fn unsupported(stage: Stage, what: impl Into<String>, loc: &str) -> CompileError {
        CompileError::Unsupported { stage, what: what.into(), loc: loc.to_string() }
    }
}

/// Names the stage an error of the language came up in.
pub trait InStage<T> {
    /// The same result, with the stage in its error.
    ///
    /// # Errors
    /// The error it had.
    fn in_stage(self, stage: Stage) -> Result<T>;
}

impl<T> InStage<T> for dnx_ir::Result<T> {
    fn in_stage(self, stage: Stage) -> Result<T> {
        self.map_err(|source| CompileError::Ir { stage, source })
    }
}

fn at(loc: &str) -> String {
    if loc.is_empty() { String::new() } else { format!(" (at {loc})") }
}
