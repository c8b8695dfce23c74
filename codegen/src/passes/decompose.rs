//! Decompose.

use crate::{Result, Target};
use dnx_ir::Func;

/// The function itself.
pub fn decompose(func: &Func, _target: &Target) -> Result<Func> {
    Ok(func.clone())
}
