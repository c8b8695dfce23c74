//! Laws.

use super::Law;

/// The laws of this file.
pub const LAWS: &[Law] = &[];
