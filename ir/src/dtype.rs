//! Element types.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE binary32, the working type.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: a storage type. WGSL has none, so it is converted at loads and stores.
    BF16,
    /// 32-bit signed integer, wrapping.
    I32,
    /// 32-bit unsigned integer, wrapping.
    U32,
    /// Truth value. Stored as one byte on the host and as `u32` on devices.
    Bool,
    /// IEEE binary64: the reference interpreter alone computes in it.
    F64,
}

impl DType {
    /// Every dtype, in printing order.
    pub const ALL: [DType; 7] = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::Bool, DType::F64];

    /// Bytes per element in host arrays.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Bool => 1,
        }
    }

    /// Bytes per element in device memory, where truth values take a word.
    pub const fn device_size(self) -> usize {
        match self {
            DType::Bool => 4,
            other => other.size(),
        }
    }

    /// `f32`, `f16`, `bf16` or `f64`: the types that have derivatives.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
    }

    /// `i32` or `u32`.
    pub const fn is_int(self) -> bool {
        matches!(self, DType::I32 | DType::U32)
    }

    /// The name used in text.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::Bool => "bool",
            DType::F64 => "f64",
        }
    }

    /// The dtype of this name, if there is one.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
