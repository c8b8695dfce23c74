//! Types: dtype, static dims, and which mesh axes shard each dim.
//!
//! Text: `f32[8, 64@tp]` is 8 by 64, the second dim split over mesh axis `tp`;
//! `f32[8, 64]{unreduced tp}` is a value whose true content is the sum over `tp` of what each device holds.
//! Dims are always the *global* ones in a global program and the local ones in a per-device program,
//! where no type has a sharding.

use crate::DType;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Dims are smaller than this, so that an index along one fits an `i32` and sums of sizes never overflow.
pub const MAX_DIM: usize = 1 << 31;

/// Types have at most this many elements, so that sizes in bytes never overflow.
pub const MAX_ELEMS: usize = 1 << 48;

/// The name of a mesh axis.
pub type AxisName = Arc<str>;

/// A named grid of devices. Device ids are row-major over the axes in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mesh {
    /// Axis names and sizes, outermost first. Empty: one device.
    pub axes: Vec<(AxisName, usize)>,
}

impl Mesh {
    /// A mesh of one device.
    pub fn single() -> Mesh {
        Mesh::default()
    }

    /// A mesh with these axes, outermost first.
    pub fn new(axes: &[(&str, usize)]) -> Mesh {
        Mesh { axes: axes.iter().map(|&(n, s)| (Arc::from(n), s)).collect() }
    }

    /// The size of an axis, or `None` if the mesh has no such axis.
    pub fn size(&self, axis: &str) -> Option<usize> {
        self.axes.iter().find(|(n, _)| &**n == axis).map(|&(_, s)| s)
    }

    /// The number of devices.
    pub fn devices(&self) -> usize {
        self.axes.iter().map(|&(_, s)| s).product()
    }

    /// The coordinate of `device` along `axis`.
    pub fn coordinate(&self, device: usize, axis: &str) -> Option<usize> {
        let at = self.axes.iter().position(|(n, _)| &**n == axis)?;
        let inner: usize = self.axes[at + 1..].iter().map(|&(_, s)| s).product();
        Some(device / inner % self.axes[at].1)
    }
}

/// How a value is laid over the mesh.
///
/// `dims` is either empty (no dim is sharded) or has one entry per dim: the axes that split it, major first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sharding {
    /// Per dim the axes that split it; empty when no dim is split.
    pub dims: Vec<Vec<AxisName>>,
    /// Axes over which the true value is the sum of what the devices hold, sorted.
    pub unreduced: Vec<AxisName>,
}

impl Sharding {
    /// Every device holds the whole value.
    pub fn replicated() -> Sharding {
        Sharding::default()
    }

    /// A sharding from per-dim axes, normalised (all-empty becomes the empty list, `unreduced` sorted).
    pub fn new(dims: Vec<Vec<AxisName>>, mut unreduced: Vec<AxisName>) -> Sharding {
        unreduced.sort();
        let dims = if dims.iter().all(Vec::is_empty) { Vec::new() } else { dims };
        Sharding { dims, unreduced }
    }

    /// Whether every device holds the whole value.
    pub fn is_replicated(&self) -> bool {
        self.dims.is_empty() && self.unreduced.is_empty()
    }

    /// The axes that split dim `d`.
    pub fn dim(&self, d: usize) -> &[AxisName] {
        self.dims.get(d).map_or(&[], Vec::as_slice)
    }
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Static dims, outermost first. Empty: a scalar.
    pub dims: Vec<usize>,
    /// Placement over the mesh.
    pub sharding: Sharding,
}

impl Type {
    /// A replicated type.
    pub fn new(dtype: DType, dims: impl Into<Vec<usize>>) -> Type {
        Type { dtype, dims: dims.into(), sharding: Sharding::default() }
    }

    /// A replicated `f32` type.
    pub fn f32(dims: impl Into<Vec<usize>>) -> Type {
        Type::new(DType::F32, dims)
    }

    /// A scalar type.
    pub fn scalar(dtype: DType) -> Type {
        Type::new(dtype, [])
    }

    /// The same type with this sharding.
    pub fn with_sharding(mut self, sharding: Sharding) -> Type {
        self.sharding = sharding;
        self
    }

    /// The same dims and sharding with another dtype.
    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, ..self.clone() }
    }

    /// The number of dims.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The number of elements.
    pub fn elems(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether every dim is below [`MAX_DIM`] and the number of elements at most [`MAX_ELEMS`].
    pub fn is_addressable(&self) -> bool {
        let all = self.dims.iter().try_fold(1usize, |n, &d| if d < MAX_DIM { n.checked_mul(d.max(1)) } else { None });
        all.is_some_and(|n| n <= MAX_ELEMS)
    }

    /// Bytes on a device.
    pub fn device_bytes(&self) -> usize {
        self.elems() * self.dtype.device_size()
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        row_major_strides(&self.dims)
    }
}

/// Row-major strides, in elements, of an array with these dims.
pub fn row_major_strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d] * dims[d];
    }
    strides
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (d, n) in self.dims.iter().enumerate() {
            if d > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{n}")?;
            for axis in self.sharding.dim(d) {
                write!(f, "@{axis}")?;
            }
        }
        f.write_str("]")?;
        if !self.sharding.unreduced.is_empty() {
            write!(f, "{{unreduced {}}}", self.sharding.unreduced.join(" "))?;
        }
        Ok(())
    }
}
