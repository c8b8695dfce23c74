//! Scalars and host arrays.

use crate::{DType, Type};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One element, kept as the bits of its dtype so that equality and hashing are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scalar {
    dtype: DType,
    bits: u64,
}

impl Scalar {
    /// `value` rounded to `dtype` (truncated toward zero and wrapped for integers; nonzero is true).
    pub fn from_f64(dtype: DType, value: f64) -> Scalar {
        let bits = match dtype {
            DType::F64 => value.to_bits(),
            DType::F32 => (value as f32).to_bits() as u64,
            DType::F16 => f16::from_f64(value).to_bits() as u64,
            DType::BF16 => bf16::from_f64(value).to_bits() as u64,
            DType::I32 => (value as i64 as i32) as u32 as u64,
            DType::U32 => (value as i64 as u32) as u64,
            DType::Bool => (value != 0.0) as u64,
        };
        Scalar { dtype, bits }
    }

    /// A scalar of this dtype with these bits (of the dtype's own width).
    pub fn from_bits(dtype: DType, bits: u64) -> Scalar {
        Scalar { dtype, bits }
    }

    /// Zero, or false.
    pub fn zero(dtype: DType) -> Scalar {
        Scalar::from_f64(dtype, 0.0)
    }

    /// One, or true.
    pub fn one(dtype: DType) -> Scalar {
        Scalar::from_f64(dtype, 1.0)
    }

    /// The dtype.
    pub fn dtype(self) -> DType {
        self.dtype
    }

    /// The bits, of the dtype's own width.
    pub fn bits(self) -> u64 {
        self.bits
    }

    /// The value; exact for every dtype.
    pub fn to_f64(self) -> f64 {
        match self.dtype {
            DType::F64 => f64::from_bits(self.bits),
            DType::F32 => f32::from_bits(self.bits as u32) as f64,
            DType::F16 => f16::from_bits(self.bits as u16).to_f64(),
            DType::BF16 => bf16::from_bits(self.bits as u16).to_f64(),
            DType::I32 => (self.bits as u32 as i32) as f64,
            DType::U32 => (self.bits as u32) as f64,
            DType::Bool => self.bits as f64,
        }
    }

    /// Appends the host bytes of this element.
    pub fn write_bytes(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bits.to_le_bytes()[..self.dtype.size()]);
    }
}

/// A host array: a replicated type and its little-endian bytes, row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Array {
    ty: Type,
    bytes: Arc<Vec<u8>>,
}

impl Array {
    /// An array of these bytes. Panics if their number is not that of the type.
    pub fn from_bytes(ty: Type, bytes: Vec<u8>) -> Array {
        assert_eq!(bytes.len(), ty.elems() * ty.dtype.size(), "{ty} does not have {} bytes", bytes.len());
        Array { ty, bytes: Arc::new(bytes) }
    }

    /// All zeros.
    pub fn zeros(ty: Type) -> Array {
        let n = ty.elems() * ty.dtype.size();
        Array::from_bytes(ty, vec![0; n])
    }

    /// Every element the same.
    pub fn splat(dims: impl Into<Vec<usize>>, value: Scalar) -> Array {
        let ty = Type::new(value.dtype(), dims);
        let mut bytes = Vec::with_capacity(ty.elems() * ty.dtype.size());
        for _ in 0..ty.elems() {
            value.write_bytes(&mut bytes);
        }
        Array::from_bytes(ty, bytes)
    }

    /// An `f32` array.
    pub fn f32(dims: impl Into<Vec<usize>>, data: &[f32]) -> Array {
        Array::from_bytes(Type::f32(dims), bytemuck::cast_slice(data).to_vec())
    }

    /// An `i32` array.
    pub fn i32(dims: impl Into<Vec<usize>>, data: &[i32]) -> Array {
        Array::from_bytes(Type::new(DType::I32, dims), bytemuck::cast_slice(data).to_vec())
    }

    /// A `u32` array.
    pub fn u32(dims: impl Into<Vec<usize>>, data: &[u32]) -> Array {
        Array::from_bytes(Type::new(DType::U32, dims), bytemuck::cast_slice(data).to_vec())
    }

    /// An array of any dtype from `f64` values, each rounded to the dtype.
    pub fn from_f64(ty: Type, data: &[f64]) -> Array {
        assert_eq!(data.len(), ty.elems(), "{ty} does not have {} elements", data.len());
        let mut bytes = Vec::with_capacity(data.len() * ty.dtype.size());
        for &x in data {
            Scalar::from_f64(ty.dtype, x).write_bytes(&mut bytes);
        }
        Array::from_bytes(ty, bytes)
    }

    /// The type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// The dtype.
    pub fn dtype(&self) -> DType {
        self.ty.dtype
    }

    /// The dims.
    pub fn dims(&self) -> &[usize] {
        &self.ty.dims
    }

    /// The number of elements.
    pub fn elems(&self) -> usize {
        self.ty.elems()
    }

    /// The host bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Element `i` in row-major order.
    pub fn get(&self, i: usize) -> Scalar {
        let n = self.ty.dtype.size();
        let mut word = [0u8; 8];
        word[..n].copy_from_slice(&self.bytes[i * n..(i + 1) * n]);
        Scalar::from_bits(self.ty.dtype, u64::from_le_bytes(word))
    }

    /// Every element as `f64`, exactly.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        (0..self.elems()).map(|i| self.get(i).to_f64()).collect()
    }

    /// Every element as `f32` (rounded where the dtype is wider).
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match self.ty.dtype {
            DType::F32 => bytemuck::pod_collect_to_vec(&self.bytes[..]),
            _ => (0..self.elems()).map(|i| self.get(i).to_f64() as f32).collect(),
        }
    }

    /// Every element as `u32`; for `u32`, `i32` (same bits) and `bool`.
    pub fn to_u32_vec(&self) -> Vec<u32> {
        (0..self.elems()).map(|i| self.get(i).bits() as u32).collect()
    }

    /// Every element as `i32`; for `i32`, `u32` (same bits) and `bool`.
    pub fn to_i32_vec(&self) -> Vec<i32> {
        self.to_u32_vec().into_iter().map(|x| x as i32).collect()
    }

    /// The value every element has, if they are all the same bits (and there is at least one).
    pub fn as_splat(&self) -> Option<Scalar> {
        let n = self.ty.dtype.size();
        let first = self.bytes.get(..n)?;
        self.bytes.chunks_exact(n).all(|c| c == first).then(|| self.get(0))
    }

    /// The same elements with other dims of the same number of elements.
    pub fn reshaped(&self, dims: impl Into<Vec<usize>>) -> Array {
        let ty = Type::new(self.ty.dtype, dims);
        assert_eq!(ty.elems(), self.elems(), "{} does not reshape to {ty}", self.ty);
        Array { ty, bytes: self.bytes.clone() }
    }
}
