//! Ops that move elements. All of them read or write through a [`Window`]: a base and a stride per dim.

use super::Precision;
use super::data::{Data, Value, on_data, on_pair};
use crate::DType;
use crate::types::row_major_strides;

/// Where element `i` of an array with these dims lies in a buffer: `base + sum of i[d] * strides[d]`.
pub(super) struct Window {
    pub base: isize,
    pub dims: Vec<usize>,
    pub strides: Vec<isize>,
}

impl Window {
    /// All of a row-major array.
    pub fn whole(dims: &[usize]) -> Window {
        let strides = row_major_strides(dims).into_iter().map(|s| s as isize).collect();
        Window { base: 0, dims: dims.to_vec(), strides }
    }

    /// The dims of this window in another order.
    pub fn permuted(&self, perm: &[usize]) -> Window {
        Window {
            base: self.base,
            dims: perm.iter().map(|&d| self.dims[d]).collect(),
            strides: perm.iter().map(|&d| self.strides[d]).collect(),
        }
    }

    /// Calls `visit` with the position of every element, in row-major order.
    pub fn for_each(&self, mut visit: impl FnMut(usize)) {
        if self.dims.contains(&0) {
            return;
        }
        let Some((&inner, outer)) = self.dims.split_last() else {
            return visit(self.base as usize);
        };
        let step = self.strides[outer.len()];
        let mut at = vec![0; outer.len()];
        let mut row = self.base;
        loop {
            for i in 0..inner as isize {
                visit((row + i * step) as usize);
            }
            let mut d = outer.len();
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                at[d] += 1;
                row += self.strides[d];
                if at[d] < outer[d] {
                    break;
                }
                row -= self.strides[d] * at[d] as isize;
                at[d] = 0;
            }
        }
    }

    /// The elements seen through the window.
    pub fn read<T: Copy>(&self, from: &[T]) -> Vec<T> {
        let mut out = Vec::with_capacity(self.dims.iter().product());
        self.for_each(|i| out.push(from[i]));
        out
    }

    /// `to` with the elements seen through the window replaced by `values`.
    pub fn write<T: Copy>(&self, mut to: Vec<T>, values: &[T]) -> Vec<T> {
        let mut values = values.iter();
        self.for_each(|i| to[i] = *values.next().expect("as many values as places"));
        to
    }

    fn view(&self, x: &Value) -> Value {
        Value::new(x.dtype, &self.dims, on_data!(&*x.data, v => self.read(v)))
    }
}

pub(super) fn reshape(x: &Value, dims: &[usize]) -> Value {
    Value { dtype: x.dtype, dims: dims.to_vec(), data: x.data.clone() }
}

pub(super) fn transpose(x: &Value, perm: &[usize]) -> Value {
    Window::whole(&x.dims).permuted(perm).view(x)
}

pub(super) fn broadcast(x: &Value, dims: &[usize], map: &[usize]) -> Value {
    let own = row_major_strides(&x.dims);
    let mut strides = vec![0; dims.len()];
    for (i, &m) in map.iter().enumerate() {
        strides[m] = if x.dims[i] == 1 { 0 } else { own[i] as isize };
    }
    Window { base: 0, dims: dims.to_vec(), strides }.view(x)
}

pub(super) fn slice(x: &Value, start: &[usize], stride: &[usize], dims: &[usize]) -> Value {
    let mut w = Window::whole(&x.dims);
    for d in 0..dims.len() {
        w.base += start[d] as isize * w.strides[d];
        w.strides[d] *= stride[d] as isize;
    }
    w.dims = dims.to_vec();
    w.view(x)
}

pub(super) fn reverse(x: &Value, dims: &[usize]) -> Value {
    let mut w = Window::whole(&x.dims);
    for &d in dims {
        w.base += (x.dims[d] as isize - 1) * w.strides[d];
        w.strides[d] = -w.strides[d];
    }
    w.view(x)
}

pub(super) fn pad(x: &Value, value: &Value, low: &[usize], interior: &[usize], dims: &[usize]) -> Value {
    let mut w = Window::whole(dims);
    for d in 0..dims.len() {
        w.base += low[d] as isize * w.strides[d];
        w.strides[d] *= interior[d] as isize + 1;
    }
    w.dims = x.dims.clone();
    let n = dims.iter().product();
    let data = on_pair!(&*x.data, &*value.data, (v, s) => w.write(vec![s[0]; n], v));
    Value::new(x.dtype, dims, data)
}

pub(super) fn concat(parts: &[&Value], dim: usize, dims: &[usize], p: Precision) -> Value {
    let mut out = Data::zeros(parts[0].dtype, p, dims.iter().product());
    let mut at = 0;
    for part in parts {
        let mut w = Window::whole(dims);
        w.base = at * w.strides[dim];
        w.dims = part.dims.clone();
        out = on_pair!(out, &*part.data, (to, v) => w.write(to, v));
        at += part.dims[dim] as isize;
    }
    Value::new(parts[0].dtype, dims, out)
}

/// The window of `sizes` that begins at `start`, moved to fit.
fn block(dims: &[usize], sizes: &[usize], start: &Value) -> Window {
    let mut w = Window::whole(dims);
    for (d, &s) in start.data.to_i64().iter().enumerate() {
        w.base += s.clamp(0, (dims[d] - sizes[d]) as i64) as isize * w.strides[d];
    }
    w.dims = sizes.to_vec();
    w
}

pub(super) fn dynamic_slice(x: &Value, start: &Value, sizes: &[usize]) -> Value {
    block(&x.dims, sizes, start).view(x)
}

pub(super) fn dynamic_update_slice(x: &Value, update: &Value, start: &Value) -> Value {
    let w = block(&x.dims, &update.dims, start);
    let data = on_pair!(&*x.data, &*update.data, (v, u) => w.write(v.clone(), u));
    Value::new(x.dtype, &x.dims, data)
}

/// Views `x` as `[outer, rows, inner]` around `dim`: the products of the dims before and after it.
fn around(dims: &[usize], dim: usize) -> (usize, usize) {
    (dims[..dim].iter().product(), dims[dim + 1..].iter().product())
}

/// The indices clamped into `0..rows`.
fn clamped(indices: &Value, rows: usize) -> Vec<usize> {
    indices.data.to_i64().into_iter().map(|i| i.clamp(0, rows as i64 - 1) as usize).collect()
}

pub(super) fn take(x: &Value, indices: &Value, dim: usize) -> Value {
    let ((outer, inner), rows) = (around(&x.dims, dim), x.dims[dim]);
    let picks = clamped(indices, rows);
    let data = on_data!(&*x.data, v => {
        let mut out = Vec::with_capacity(outer * picks.len() * inner);
        for o in 0..outer {
            for &row in &picks {
                let at = (o * rows + row) * inner;
                out.extend_from_slice(&v[at..at + inner]);
            }
        }
        out
    });
    let dims = [&x.dims[..dim], &indices.dims, &x.dims[dim + 1..]].concat();
    Value::new(x.dtype, &dims, data)
}

/// Floats are summed in `f64` and rounded once.
pub(super) fn scatter_add(x: &Value, indices: &Value, update: &Value, dim: usize, p: Precision) -> Value {
    let ((outer, inner), rows) = (around(&x.dims, dim), x.dims[dim]);
    if rows == 0 {
        return x.clone();
    }
    let picks = clamped(indices, rows);
    let each = |add: &mut dyn FnMut(usize, usize)| {
        for o in 0..outer {
            for (i, &row) in picks.iter().enumerate() {
                for k in 0..inner {
                    add((o * rows + row) * inner + k, (o * picks.len() + i) * inner + k);
                }
            }
        }
    };
    let data = match (&*x.data, &*update.data) {
        (Data::I32(v), Data::I32(u)) => {
            let mut out = v.clone();
            each(&mut |to, from| out[to] = out[to].wrapping_add(u[from]));
            Data::I32(out)
        }
        (Data::U32(v), Data::U32(u)) => {
            let mut out = v.clone();
            each(&mut |to, from| out[to] = out[to].wrapping_add(u[from]));
            Data::U32(out)
        }
        (v, u) => {
            let (mut out, u) = (v.to_f64(), u.to_f64());
            each(&mut |to, from| out[to] += u[from]);
            Data::floats(x.dtype, p, out.into_iter())
        }
    };
    debug_assert_ne!(x.dtype, DType::Bool);
    Value::new(x.dtype, &x.dims, data)
}
