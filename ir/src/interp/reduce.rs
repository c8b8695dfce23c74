//! Reductions, `dot_general` and `conv`.
//!
//! Floats are accumulated in `f64` in row-major order and rounded once, so that the reference is more exact than
//! what is compared with it; 16-bit floats are accumulated in `f32`, as the language says.

use super::Precision;
use super::data::{Data, Value, on_data};
use super::movement::Window;
use crate::types::row_major_strides;
use crate::{ConvDims, DType, DotDims, ReduceKind};

/// Rounds a partial sum of elements of this dtype.
fn partial(dtype: DType, p: Precision) -> fn(f64) -> f64 {
    match (dtype, p) {
        (DType::F16 | DType::BF16, Precision::F32) => |x| x as f32 as f64,
        _ => |x| x,
    }
}

/// The elements with the dims `last` moved behind the others, and how many each of the others has.
fn rows(x: &Value, last: &[usize]) -> (Data, Vec<usize>, usize) {
    let kept: Vec<usize> = (0..x.dims.len()).filter(|d| !last.contains(d)).collect();
    let perm: Vec<usize> = kept.iter().chain(last).copied().collect();
    let window = Window::whole(&x.dims).permuted(&perm);
    let n = last.iter().map(|&d| x.dims[d]).product();
    (on_data!(&*x.data, v => window.read(v)), kept.iter().map(|&d| x.dims[d]).collect(), n)
}

/// One value per row of `n` elements; rows may be empty.
fn fold<T: Copy, A>(v: &[T], n: usize, rows: usize, one: impl Fn(&[T]) -> A) -> Vec<A> {
    (0..rows).map(|r| one(&v[r * n..(r + 1) * n])).collect()
}

pub(super) fn reduce(kind: ReduceKind, x: &Value, dims: &[usize], p: Precision) -> Value {
    let (data, kept, n) = rows(x, dims);
    let count = kept.iter().product();
    let data = match (kind, &data) {
        (ReduceKind::Sum, Data::I32(v)) => {
            Data::I32(fold(v, n, count, |r| r.iter().copied().fold(0, i32::wrapping_add)))
        }
        (ReduceKind::Sum, Data::U32(v)) => {
            Data::U32(fold(v, n, count, |r| r.iter().copied().fold(0, u32::wrapping_add)))
        }
        (ReduceKind::Max, Data::I32(v)) => {
            Data::I32(fold(v, n, count, |r| r.iter().copied().max().unwrap_or(i32::MIN)))
        }
        (ReduceKind::Max, Data::U32(v)) => Data::U32(fold(v, n, count, |r| r.iter().copied().max().unwrap_or(0))),
        (ReduceKind::Sum, floats) => {
            let round = partial(x.dtype, p);
            let sums = fold(&floats.to_f64(), n, count, |r| r.iter().fold(0.0, |s, &x| round(s + x)));
            Data::floats(x.dtype, p, sums.into_iter())
        }
        (ReduceKind::Max, floats) => {
            let maxima = fold(&floats.to_f64(), n, count, |r| r.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x)));
            Data::floats(x.dtype, p, maxima.into_iter())
        }
    };
    Value::new(x.dtype, &kept, data)
}

pub(super) fn argmax(x: &Value, dim: usize) -> Value {
    let (data, kept, n) = rows(x, &[dim]);
    let first_greatest = |r: &[f64]| {
        let mut best = 0;
        for i in 1..r.len() {
            if r[i] > r[best] {
                best = i;
            }
        }
        best as i32
    };
    // Every dtype is exact in f64.
    let data = Data::I32(fold(&data.to_f64(), n, kept.iter().product(), first_greatest));
    Value::new(DType::I32, &kept, data)
}

pub(super) fn dot(d: &DotDims, out: DType, x: &Value, y: &Value, dims: &[usize], p: Precision) -> Value {
    let (x_free, y_free) = (d.lhs_free(x.dims.len()), d.rhs_free(y.dims.len()));
    let size = |v: &Value, list: &[usize]| list.iter().map(|&d| v.dims[d]).product::<usize>();
    let (b, m, n, k) = (size(x, &d.lhs_batch), size(x, &x_free), size(y, &y_free), size(x, &d.lhs_contract));
    // Left `[batch, m, k]`, right `[batch, k, n]`.
    let left = Window::whole(&x.dims).permuted(&[&d.lhs_batch[..], &x_free, &d.lhs_contract].concat());
    let right = Window::whole(&y.dims).permuted(&[&d.rhs_batch[..], &d.rhs_contract, &y_free].concat());
    let data = match (&*x.data, &*y.data) {
        (Data::I32(x), Data::I32(y)) => {
            let add = |s: i32, x: i32, y: i32| s.wrapping_add(x.wrapping_mul(y));
            Data::I32(matmul(&left.read(x), &right.read(y), [b, m, n, k], 0, add))
        }
        (Data::U32(x), Data::U32(y)) => {
            let add = |s: u32, x: u32, y: u32| s.wrapping_add(x.wrapping_mul(y));
            Data::U32(matmul(&left.read(x), &right.read(y), [b, m, n, k], 0, add))
        }
        (xs, ys) => {
            let (l, r) = (left.read(&xs.to_f64()), right.read(&ys.to_f64()));
            let sums = match (x.dtype, p) {
                (DType::F16 | DType::BF16, Precision::F32) => {
                    matmul(&l, &r, [b, m, n, k], 0.0, |s, x, y| (s + x * y) as f32 as f64)
                }
                _ => matmul(&l, &r, [b, m, n, k], 0.0, |s, x, y| s + x * y),
            };
            Data::floats(out, p, sums.into_iter())
        }
    };
    Value::new(out, dims, data)
}

/// `out[b, m, n] = sum over k of x[b, m, k] * y[b, k, n]`, k ascending.
fn matmul<T: Copy>(x: &[T], y: &[T], [b, m, n, k]: [usize; 4], zero: T, add: impl Fn(T, T, T) -> T) -> Vec<T> {
    let mut out = vec![zero; b * m * n];
    for b in 0..b {
        for m_ in 0..m {
            let row = &mut out[(b * m + m_) * n..][..n];
            for k_ in 0..k {
                let xv = x[(b * m + m_) * k + k_];
                let ys = &y[(b * k + k_) * n..][..n];
                for (s, &yv) in row.iter_mut().zip(ys) {
                    *s = add(*s, xv, yv);
                }
            }
        }
    }
    out
}

pub(super) fn conv(c: &ConvDims, out: DType, x: &Value, w: &Value, dims: &[usize], p: Precision) -> Value {
    let spatial = c.stride.len();
    let round = partial(x.dtype, p);
    let (xs, ws) = (x.data.to_f64(), w.data.to_f64());
    let (channels, inner, features) = (x.dims[spatial + 1], w.dims[spatial], w.dims[spatial + 1]);
    let group_features = features / c.groups;
    let (in_dims, taps_dims, out_dims) = (&x.dims[1..=spatial], &w.dims[..spatial], &dims[1..=spatial]);
    let in_strides = row_major_strides(in_dims);
    let in_size: usize = in_dims.iter().product();
    let coordinates = |dims: &[usize]| -> Vec<Vec<usize>> {
        let strides = row_major_strides(dims);
        let n: usize = dims.iter().product();
        (0..n).map(|i| (0..dims.len()).map(|d| i / strides[d] % dims[d]).collect()).collect()
    };
    let (taps, places) = (coordinates(taps_dims), coordinates(out_dims));

    // The input element under a tap: none in the padding and between dilated elements.
    let under = |place: &[usize], tap: &[usize]| -> Option<usize> {
        let mut at = 0;
        for d in 0..spatial {
            let i = (place[d] * c.stride[d] + tap[d] * c.rhs_dilation[d]) as i64 - c.padding[d].0;
            let step = c.lhs_dilation[d] as i64;
            if i < 0 || i % step != 0 || i / step >= in_dims[d] as i64 {
                return None;
            }
            at += (i / step) as usize * in_strides[d];
        }
        Some(at)
    };

    let mut sums = vec![0.0; dims.iter().product()];
    for (po, place) in places.iter().enumerate() {
        for (t, tap) in taps.iter().enumerate() {
            let Some(at) = under(place, tap) else { continue };
            for n in 0..x.dims[0] {
                let sums = &mut sums[(n * places.len() + po) * features..][..features];
                let pixel = &xs[(n * in_size + at) * channels..][..channels];
                for (ch, &xv) in pixel.iter().enumerate() {
                    let (group, ci) = (ch / inner, ch % inner);
                    let o = group * group_features;
                    let weights = &ws[(t * inner + ci) * features + o..][..group_features];
                    for (s, &wv) in sums[o..o + group_features].iter_mut().zip(weights) {
                        *s = round(*s + xv * wv);
                    }
                }
            }
        }
    }
    debug_assert!(out.is_float());
    Value::new(out, dims, Data::floats(out, p, sums.into_iter()))
}

/// The reduction of equal-shaped values, first to last, as a reduction over a new leading dim.
pub(super) fn across(kind: ReduceKind, values: &[&Value], p: Precision) -> Value {
    let dims = [&[values.len()], &values[0].dims[..]].concat();
    let mut stacked = Data::zeros(values[0].dtype, p, dims.iter().product());
    let n = values[0].elems();
    for (i, v) in values.iter().enumerate() {
        stacked = super::data::on_pair!(stacked, &*v.data, (to, from) => {
            let mut to = to;
            to[i * n..(i + 1) * n].copy_from_slice(from);
            to
        });
    }
    reduce(kind, &Value::new(values[0].dtype, &dims, stacked), &[0], p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_sums_of_16_bit_floats_are_f32() {
        let x = 1.0 + 2f64.powi(-30);
        assert_eq!(partial(DType::F16, Precision::F32)(x), 1.0);
        assert_eq!(partial(DType::F32, Precision::F32)(x), x);
        assert_eq!(partial(DType::F16, Precision::F64)(x), x);
    }
}
