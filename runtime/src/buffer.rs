//! Buffers: typed ranges of a device's memory.

use crate::device::{Device, Memory};
use crate::{Error, Result};
use dnx_ir::{Array, DType, Type};

/// A range of a device's memory that holds an array. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(crate) ty: Type,
    pub(crate) device: Device,
    pub(crate) memory: Memory,
}

impl Buffer {
    /// The type of the content.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The content, on the host. Waits for the work that writes it.
    pub fn download(&self) -> Result<Array> {
        let bytes = self.device.read(&self.memory)?;
        let ty = Type::new(self.ty.dtype, self.ty.dims.clone());
        Ok(Array::from_bytes(ty, to_host(self.ty.dtype, bytes)))
    }

    /// Replaces the content.
    pub fn write(&self, array: &Array) -> Result<()> {
        if array.dtype() != self.ty.dtype || array.dims() != self.ty.dims {
            return Err(Error::WriteType { expected: self.ty.clone().into(), got: array.ty().clone().into() });
        }
        self.device.write(&self.memory, &to_device(array))
    }
}

/// An array's bytes as a device holds them.
pub(crate) fn to_device(array: &Array) -> std::borrow::Cow<'_, [u8]> {
    match array.dtype() {
        DType::Bool => array.bytes().iter().flat_map(|&b| u32::from(b != 0).to_le_bytes()).collect::<Vec<u8>>().into(),
        DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::U32 | DType::F64 => array.bytes().into(),
    }
}

/// A device's bytes as host arrays hold them.
fn to_host(dtype: DType, bytes: Vec<u8>) -> Vec<u8> {
    match dtype {
        DType::Bool => bytes.chunks_exact(4).map(|w| u8::from(w != [0; 4])).collect(),
        DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::U32 | DType::F64 => bytes,
    }
}
