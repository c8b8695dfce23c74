//! Elementwise ops, iota and random bits.

use super::data::{Data, Value, on_pair};
use super::{Precision, scalar};
use crate::{BinaryOp, CmpOp, DType, UnaryOp, threefry, types};

pub(super) fn unary(op: UnaryOp, x: &Value, p: Precision) -> Value {
    let data = match (&*x.data, op) {
        (_, UnaryOp::StopGradient) => return x.clone(),
        (Data::F64(v), UnaryOp::IsFinite) => Data::Bool(v.iter().map(|x| x.is_finite()).collect()),
        (Data::F32(v), UnaryOp::IsFinite) => Data::Bool(v.iter().map(|x| x.is_finite()).collect()),
        (Data::F64(v), _) => Data::floats(x.dtype, p, v.iter().map(|&x| scalar::unary_float(op, x))),
        (Data::F32(v), _) => Data::floats(x.dtype, p, v.iter().map(|&x| scalar::unary_float(op, x as f64))),
        (Data::I32(v), _) => Data::I32(v.iter().map(|&x| scalar::unary_i32(op, x)).collect()),
        (Data::U32(v), _) => Data::U32(v.iter().map(|&x| scalar::unary_u32(op, x)).collect()),
        (Data::Bool(v), _) => Data::Bool(v.iter().map(|&x| !x).collect()),
    };
    let dtype = if op == UnaryOp::IsFinite { DType::Bool } else { x.dtype };
    Value::new(dtype, &x.dims, data)
}

pub(super) fn binary(op: BinaryOp, x: &Value, y: &Value, p: Precision) -> Value {
    let data = match (&*x.data, &*y.data) {
        (Data::F64(a), Data::F64(b)) => {
            Data::floats(x.dtype, p, a.iter().zip(b).map(|(&x, &y)| scalar::binary_float(op, x, y)))
        }
        (Data::F32(a), Data::F32(b)) => {
            Data::floats(x.dtype, p, a.iter().zip(b).map(|(&x, &y)| scalar::binary_float(op, x as f64, y as f64)))
        }
        (Data::I32(a), Data::I32(b)) => Data::I32(zip(a, b, |x, y| scalar::binary_i32(op, x, y))),
        (Data::U32(a), Data::U32(b)) => Data::U32(zip(a, b, |x, y| scalar::binary_u32(op, x, y))),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool(zip(a, b, |x, y| scalar::binary_bool(op, x, y))),
        _ => unreachable!("operands of one dtype have one kind of buffer"),
    };
    Value::new(x.dtype, &x.dims, data)
}

pub(super) fn compare(op: CmpOp, x: &Value, y: &Value) -> Value {
    let data = match (&*x.data, &*y.data) {
        (Data::F64(a), Data::F64(b)) => zip(a, b, |x, y| scalar::compare(op, x, y)),
        (Data::F32(a), Data::F32(b)) => zip(a, b, |x, y| scalar::compare(op, x, y)),
        (Data::I32(a), Data::I32(b)) => zip(a, b, |x, y| scalar::compare(op, x, y)),
        (Data::U32(a), Data::U32(b)) => zip(a, b, |x, y| scalar::compare(op, x, y)),
        (Data::Bool(a), Data::Bool(b)) => zip(a, b, |x, y| scalar::compare(op, x, y)),
        _ => unreachable!("operands of one dtype have one kind of buffer"),
    };
    Value::new(DType::Bool, &x.dims, Data::Bool(data))
}

fn zip<T: Copy, R>(a: &[T], b: &[T], f: impl Fn(T, T) -> R) -> Vec<R> {
    a.iter().zip(b).map(|(&x, &y)| f(x, y)).collect()
}

pub(super) fn select(c: &Value, x: &Value, y: &Value) -> Value {
    let c = c.bools();
    let data = on_pair!(&*x.data, &*y.data, (a, b) => {
        c.iter().zip(a.iter().zip(b)).map(|(&c, (&x, &y))| if c { x } else { y }).collect()
    });
    Value::new(x.dtype, &x.dims, data)
}

pub(super) fn convert(to: DType, x: &Value, p: Precision) -> Value {
    let values = x.data.to_f64();
    let data = match to {
        DType::Bool => Data::Bool(values.iter().map(|&x| x != 0.0).collect()),
        DType::I32 => Data::I32(values.iter().map(|&v| scalar::to_i32(x.dtype, v)).collect()),
        DType::U32 => Data::U32(values.iter().map(|&v| scalar::to_u32(x.dtype, v)).collect()),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Data::floats(to, p, values.into_iter()),
    };
    Value::new(to, &x.dims, data)
}

/// In [`Precision::F64`] a float's bits are those of the value rounded to its dtype.
pub(super) fn bitcast(to: DType, x: &Value, p: Precision) -> Value {
    let bits: Vec<u64> = match &*x.data {
        Data::F64(v) => v.iter().map(|&v| scalar::float_to_bits(x.dtype, v)).collect(),
        Data::F32(v) => v.iter().map(|&v| scalar::float_to_bits(x.dtype, v as f64)).collect(),
        Data::I32(v) => v.iter().map(|&v| v as u32 as u64).collect(),
        Data::U32(v) => v.iter().map(|&v| v as u64).collect(),
        Data::Bool(v) => v.iter().map(|&v| v as u64).collect(),
    };
    let data = match to {
        DType::I32 => Data::I32(bits.iter().map(|&b| b as u32 as i32).collect()),
        DType::U32 => Data::U32(bits.iter().map(|&b| b as u32).collect()),
        DType::Bool => Data::Bool(bits.iter().map(|&b| b != 0).collect()),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => {
            Data::floats(to, p, bits.iter().map(|&b| scalar::float_from_bits(to, b)))
        }
    };
    Value::new(to, &x.dims, data)
}

pub(super) fn iota(dtype: DType, dims: &[usize], dim: usize, p: Precision) -> Value {
    let (inner, n) = (dims[dim + 1..].iter().product::<usize>(), dims.iter().product());
    let counts = (0..n).map(|i| i / inner % dims[dim]);
    let data = match dtype {
        DType::I32 => Data::I32(counts.map(|c| c as i32).collect()),
        DType::U32 => Data::U32(counts.map(|c| c as u32).collect()),
        DType::Bool => unreachable!("infer refuses to count in bool"),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Data::floats(dtype, p, counts.map(|c| c as f64)),
    };
    Value::new(dtype, dims, data)
}

/// The counter is the linear index in `global`, modulo 2^32 (its high word is zero).
pub(super) fn random_bits(key: &Value, start: Option<&Value>, dims: &[usize], global: Option<&[usize]>) -> Value {
    let key = [key.u32s()[0], key.u32s()[1]];
    let strides = types::row_major_strides(global.unwrap_or(dims));
    let own = types::row_major_strides(dims);
    let start = start.map_or(vec![0; dims.len()], |s| s.data.to_i64());
    let base: i64 = start.iter().zip(&strides).map(|(&s, &k)| s * k as i64).sum();
    let n: usize = dims.iter().product();
    let bits = (0..n).map(|i| {
        let inside: usize = (0..dims.len()).map(|d| i / own[d] % dims[d] * strides[d]).sum();
        threefry::bits(key, (base + inside as i64) as u32 as u64)
    });
    Value::new(DType::U32, dims, Data::U32(bits.collect()))
}
