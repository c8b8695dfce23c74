//! Errors of the language: what is wrong, at which op and model path, and what to do.

use std::fmt;

/// What went wrong, where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong and, where there is one, the remedy.
    pub message: String,
    /// The op that was being built or checked, as printed in text, if any.
    pub op: Option<String>,
    /// The model path of the op, if it has one.
    pub loc: Option<String>,
}

/// A result of the language's own functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with only a message.
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), op: None, loc: None }
    }

    /// The same error, at this op.
    pub fn at_op(mut self, op: &str) -> Error {
        self.op.get_or_insert_with(|| op.to_string());
        self
    }

    /// The same error, at this model path (unless it is empty).
    pub fn at_loc(mut self, loc: &str) -> Error {
        if !loc.is_empty() {
            self.loc.get_or_insert_with(|| loc.to_string());
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(op) = &self.op {
            write!(f, "{op}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(loc) = &self.loc {
            write!(f, " (at {loc})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// `return Err(Error::new(format!(...)))`.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Error::new(format!($($arg)*))) };
}
