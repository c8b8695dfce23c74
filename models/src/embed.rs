//! Embeddings: of time (sinusoids), of labels (a table), of positions (fixed 2-D sinusoids).

use crate::{Init, Scope};
use dnx_ir::{Array, DType, Tensor};

/// `[cos(t f), sin(t f)]` of width `width`, `f_i = exp(-ln(1e4) i / (width / 2))`: `t` is `[B]`, the result
/// `[B, width]`.
pub fn sinusoid(t: Tensor<'_>, width: usize) -> Tensor<'_> {
    let g = t.graph();
    let half = width / 2;
    if half == 0 || !width.is_multiple_of(2) {
        g.fail(format!("a sinusoidal embedding has an even, positive width, not {width}"));
        return t.unsqueeze(1);
    }
    // The frequencies are a table: exp of an f32 product would lose digits that times up to 1000 multiply.
    let freqs: Vec<f32> = (0..half).map(|i| (-(1e4f64.ln()) * i as f64 / half as f64).exp() as f32).collect();
    let angle = t.unsqueeze(1) * g.constant(Array::f32([1, half], &freqs));
    g.concat(&[angle.cos(), angle.sin()], 1)
}

/// Rows of a learned table `embedding_table.weight` `[rows, width]`, initialised N(0, 0.02): labels `[B]` integers.
pub fn label<'g>(s: &Scope<'_, 'g>, labels: Tensor<'g>, rows: usize, width: usize) -> Tensor<'g> {
    s.enter("embedding_table", |s| s.param("weight", &[rows, width], Init::Normal { std: 0.02 })).take(labels)
}

/// The fixed position embedding of a `height` by `width` grid, `[1, height * width, dim]`: the first half of the
/// channels encodes the column, the second the row, each as `[sin(w pos), cos(w pos)]`, `w_i = 1e4^(-i / (dim / 4))`.
pub fn grid_positions(height: usize, width: usize, dim: usize) -> Array {
    let quarter = dim / 4;
    let mut data = Vec::with_capacity(height * width * dim);
    for row in 0..height {
        for column in 0..width {
            for pos in [column, row] {
                let angle = |i: usize| pos as f64 * 1e4f64.powf(-(i as f64) / quarter as f64);
                data.extend((0..quarter).map(|i| angle(i).sin() as f32));
                data.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
    }
    Array::f32([1, height * width, dim], &data)
}

/// Labels with the null label where `drop` (`bool[B]`) is true.
pub fn drop_labels<'g>(labels: Tensor<'g>, drop: Tensor<'g>, null: usize) -> Tensor<'g> {
    drop.select(labels.graph().scalar(DType::I32, null as f64), labels)
}
