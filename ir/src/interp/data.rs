//! Values inside the interpreter: a type and a typed buffer.
//!
//! In [`Precision::F64`] every float is kept as `f64` and nothing is rounded. In [`Precision::F32`] 16-bit floats
//! are kept as `f32`s that are exact in their dtype.

use super::{Precision, scalar};
use crate::{Array, DType, Result, Type, bail};
use std::sync::Arc;

/// Elements, row-major.
#[derive(Clone, Debug)]
pub(super) enum Data {
    F64(Vec<f64>),
    F32(Vec<f32>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    Bool(Vec<bool>),
}

/// A value on one device.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub data: Arc<Data>,
}

/// Runs the same code on whichever buffer it is: `on_data!(data, v => body)` where `body` gives a `Vec` of the
/// same element type.
macro_rules! on_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::interp::data::Data::F64($v) => $crate::interp::data::Data::F64($body),
            $crate::interp::data::Data::F32($v) => $crate::interp::data::Data::F32($body),
            $crate::interp::data::Data::I32($v) => $crate::interp::data::Data::I32($body),
            $crate::interp::data::Data::U32($v) => $crate::interp::data::Data::U32($body),
            $crate::interp::data::Data::Bool($v) => $crate::interp::data::Data::Bool($body),
        }
    };
}
pub(super) use on_data;

/// The same for two buffers of one element type.
macro_rules! on_pair {
    ($x:expr, $y:expr, ($a:ident, $b:ident) => $body:expr) => {{
        use $crate::interp::data::Data;
        match ($x, $y) {
            (Data::F64($a), Data::F64($b)) => Data::F64($body),
            (Data::F32($a), Data::F32($b)) => Data::F32($body),
            (Data::I32($a), Data::I32($b)) => Data::I32($body),
            (Data::U32($a), Data::U32($b)) => Data::U32($body),
            (Data::Bool($a), Data::Bool($b)) => Data::Bool($body),
            _ => unreachable!("operands of one dtype have one kind of buffer"),
        }
    }};
}
pub(super) use on_pair;

impl Data {
    /// `n` zeros in the buffer that holds `dtype`.
    pub fn zeros(dtype: DType, p: Precision, n: usize) -> Data {
        match dtype {
            DType::I32 => Data::I32(vec![0; n]),
            DType::U32 => Data::U32(vec![0; n]),
            DType::Bool => Data::Bool(vec![false; n]),
            DType::F64 => Data::F64(vec![0.0; n]),
            DType::F32 | DType::F16 | DType::BF16 => match p {
                Precision::F64 => Data::F64(vec![0.0; n]),
                Precision::F32 => Data::F32(vec![0.0; n]),
            },
        }
    }

    /// Floats (not yet rounded) in the buffer that holds `dtype`.
    pub fn floats(dtype: DType, p: Precision, values: impl Iterator<Item = f64>) -> Data {
        match (p, dtype) {
            (Precision::F64, _) | (_, DType::F64) => Data::F64(values.collect()),
            (Precision::F32, DType::F32) => Data::F32(values.map(|x| x as f32).collect()),
            (Precision::F32, _) => Data::F32(values.map(|x| scalar::round(dtype, x) as f32).collect()),
        }
    }

    /// Every element as `f64`, exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Data::F64(v) => v.clone(),
            Data::F32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::I32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::Bool(v) => v.iter().map(|&x| x as u8 as f64).collect(),
        }
    }

    /// Every element of an integer buffer as `i64`.
    pub fn to_i64(&self) -> Vec<i64> {
        match self {
            Data::I32(v) => v.iter().map(|&x| x as i64).collect(),
            Data::U32(v) => v.iter().map(|&x| x as i64).collect(),
            Data::F64(_) | Data::F32(_) | Data::Bool(_) => unreachable!("infer admits only integers here"),
        }
    }
}

impl Value {
    pub fn new(dtype: DType, dims: &[usize], data: Data) -> Value {
        Value { dtype, dims: dims.to_vec(), data: Arc::new(data) }
    }

    pub fn elems(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn u32s(&self) -> &[u32] {
        match &*self.data {
            Data::U32(v) => v,
            _ => unreachable!("infer admits only u32 here"),
        }
    }

    pub fn bools(&self) -> &[bool] {
        match &*self.data {
            Data::Bool(v) => v,
            _ => unreachable!("infer admits only bool here"),
        }
    }

    /// The value of an array where one of type `ty` is wanted.
    pub fn from_array(array: &Array, ty: &Type, p: Precision) -> Result<Value> {
        let fits =
            array.dtype() == ty.dtype || (p == Precision::F64 && ty.dtype.is_float() && array.dtype().is_float());
        if array.dims() != ty.dims || !fits {
            bail!("is {}, not {ty}", array.ty());
        }
        let n = array.elems();
        let data = match (ty.dtype, p) {
            (DType::I32, _) => Data::I32(array.to_i32_vec()),
            (DType::U32, _) => Data::U32(array.to_u32_vec()),
            (DType::Bool, _) => Data::Bool((0..n).map(|i| array.get(i).bits() != 0).collect()),
            (DType::F32, Precision::F32) => Data::F32(array.to_f32_vec()),
            (dtype, _) => Data::floats(dtype, p, (0..n).map(|i| array.get(i).to_f64())),
        };
        Ok(Value::new(ty.dtype, &ty.dims, data))
    }

    /// The array of this value: of its dtype, or of `f64` where floats are kept so.
    pub fn to_array(&self) -> Array {
        let ty = |dtype| Type::new(dtype, self.dims.clone());
        match &*self.data {
            Data::F64(v) => Array::from_bytes(ty(DType::F64), bytemuck::cast_slice(v).to_vec()),
            Data::F32(v) if self.dtype == DType::F32 => Array::f32(self.dims.clone(), v),
            Data::F32(v) => {
                let mut bytes = Vec::with_capacity(2 * v.len());
                for &x in v {
                    scalar::float(self.dtype, x as f64).write_bytes(&mut bytes);
                }
                Array::from_bytes(ty(self.dtype), bytes)
            }
            Data::I32(v) => Array::i32(self.dims.clone(), v),
            Data::U32(v) => Array::u32(self.dims.clone(), v),
            Data::Bool(v) => Array::from_bytes(ty(DType::Bool), v.iter().map(|&b| b as u8).collect()),
        }
    }
}
