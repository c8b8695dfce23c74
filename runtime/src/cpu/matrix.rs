//! Matrices of an attention kernel, where they lie in arguments: one per batch entry, rows along queries or keys.

use super::exec::{copy_line, put_line};
use super::ops::Src;
use dnx_codegen::kernel::{Idx, Inst, InstId, Kernel, Role};
use dnx_ir::DType;
use half::{bf16, f16};

/// Rows and columns in memory: address, distance of rows, distance of columns, in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    pub(crate) ptr: *mut f32,
    pub(crate) row: isize,
    pub(crate) col: isize,
}

impl Tile {
    /// The tile that begins at this row and column.
    pub(crate) fn from(self, row: usize, col: usize) -> Tile {
        let at = row as isize * self.row + col as isize * self.col;
        Tile { ptr: self.ptr.wrapping_offset(at), ..self }
    }

    /// The same with rows and columns exchanged.
    pub(crate) fn turned(self) -> Tile {
        Tile { ptr: self.ptr, row: self.col, col: self.row }
    }
}

/// A matrix per batch entry in an argument, or one number.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    place: Place,
    /// Dims of the batch, of rows and of columns, with their extents.
    dims: [Vec<(usize, usize)>; 3],
    rank: usize,
}

/// Elements in memory: the first one's place, and the distances of rows and columns, in elements.
struct Stretch {
    memory: *mut u8,
    dtype: DType,
    at: i64,
    row: i64,
    col: i64,
}

#[derive(Clone, Debug)]
enum Place {
    Number(f32),
    Memory { arg: usize, dtype: DType, index: Idx, line: Option<(isize, isize)> },
}

/// The stride of an affine index along the flat order of these dims, if it has one.
fn line(index: &Idx, dims: &[(usize, usize)]) -> Option<isize> {
    let (mut stride, mut below) = (None, 1);
    for &(d, n) in dims.iter().rev().filter(|d| d.1 != 1) {
        let first = *stride.get_or_insert(index.coef(d));
        if index.coef(d) != first * below {
            return None;
        }
        below *= n as i64;
    }
    Some(stride.unwrap_or(0) as isize)
}

impl Matrix {
    /// The operand of an attention, over rows and columns of these roles.
    pub(crate) fn operand(kernel: &Kernel, mut id: InstId, roles: [Role; 2]) -> Result<Matrix, String> {
        while let Inst::Convert(_, x) = kernel.inst(id) {
            id = *x;
        }
        match kernel.inst(id) {
            Inst::Const(number) => {
                let place = Place::Number(number.to_f64() as f32);
                Ok(Matrix { place, dims: dims(kernel, roles), rank: kernel.dims.len() })
            }
            Inst::Load { arg, index, dynamic } if dynamic.is_empty() && index.checks.is_empty() => {
                Ok(Matrix::memory(kernel, *arg, index, roles))
            }
            other => Err(format!("an operand of attention is {other}")),
        }
    }

    /// An argument under an index.
    pub(crate) fn memory(kernel: &Kernel, arg: u32, index: &Idx, roles: [Role; 2]) -> Matrix {
        let dims = dims(kernel, roles);
        let dtype = kernel.args[arg as usize].dtype;
        let line = if index.is_affine() { line(index, &dims[1]).zip(line(index, &dims[2])) } else { None };
        let place = Place::Memory { arg: arg as usize, dtype, index: index.clone(), line };
        Matrix { place, dims, rank: kernel.dims.len() }
    }

    /// Whether it is used where it lies: `f32`, its columns side by side.
    pub(crate) fn is_plain(&self) -> bool {
        let single = self.dims[2].iter().all(|d| d.1 == 1);
        matches!(self.place, Place::Memory { dtype: DType::F32, line: Some((_, col)), .. } if col == 1 || single)
    }

    /// Whether every element is zero.
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.place, Place::Number(x) if x == 0.0)
    }

    fn index(&self, index: &Idx, place: [usize; 3]) -> usize {
        // Kernels have few dims; a mask of 64 bits bounds them.
        let mut at = [0usize; 64];
        for (dims, mut left) in self.dims.iter().zip(place) {
            for &(d, n) in dims.iter().rev() {
                at[d] = left % n;
                left /= n;
            }
        }
        index.eval(&at[..self.rank]) as usize
    }

    /// The tile at a row and column of a matrix with strides.
    pub(crate) fn plain(&self, args: &[*mut u8], batch: usize, row: usize, col: usize) -> Tile {
        let Place::Memory { arg, dtype: DType::F32, index, line: Some((r, c)) } = &self.place else {
            unreachable!("asked of matrices of f32 with strides alone")
        };
        let base = Tile { ptr: args[*arg] as *mut f32, row: *r, col: *c };
        Tile { ptr: base.ptr.wrapping_add(self.index(index, [batch, 0, 0])), ..base }.from(row, col)
    }

    /// An element as `f32`.
    pub(crate) unsafe fn get(&self, args: &[*mut u8], batch: usize, row: usize, col: usize) -> f32 {
        match &self.place {
            Place::Number(x) => *x,
            Place::Memory { arg, dtype, index, .. } => unsafe {
                let at = self.index(index, [batch, row, col]);
                match dtype {
                    DType::F16 => (*(args[*arg] as *const f16).add(at)).to_f32(),
                    DType::BF16 => (*(args[*arg] as *const bf16).add(at)).to_f32(),
                    _ => *(args[*arg] as *const f32).add(at),
                }
            },
        }
    }

    /// The first elements of `rows` rows, into `to`.
    pub(crate) unsafe fn column(&self, args: &[*mut u8], batch: usize, (row, rows): (usize, usize), to: *mut f32) {
        match self.stretch(args, batch, row, 0) {
            Some(s) => unsafe { copy_line(s.dtype, s.memory, s.at, s.row, to as *mut u32, rows) },
            None => (0..rows).for_each(|r| unsafe { *to.add(r) = self.get(args, batch, row + r, 0) }),
        }
    }

    /// Sets the first elements of `rows` rows.
    pub(crate) unsafe fn set_column(&self, args: &[*mut u8], batch: usize, (row, rows): (usize, usize), x: *const f32) {
        match self.stretch(args, batch, row, 0) {
            Some(s) => {
                let x = Src { ptr: x as *const u32, step: 1 };
                unsafe { put_line(s.dtype, s.memory, s.at, s.row, x, rows) }
            }
            None => (0..rows).for_each(|r| unsafe { self.set(args, batch, row + r, 0, *x.add(r)) }),
        }
    }

    /// Sets `rows` rows of `cols` elements from a row on.
    pub(crate) unsafe fn put(
        &self,
        args: &[*mut u8],
        batch: usize,
        (row, rows): (usize, usize),
        cols: usize,
        tile: Tile,
    ) {
        let to = self.stretch(args, batch, row, 0).filter(|_| tile.col == 1);
        for r in 0..rows {
            let from = tile.from(r, 0);
            match &to {
                Some(s) => {
                    let x = Src { ptr: from.ptr as *const u32, step: 1 };
                    unsafe { put_line(s.dtype, s.memory, s.at + r as i64 * s.row, s.col, x, cols) }
                }
                None => (0..cols).for_each(|c| unsafe { self.set(args, batch, row + r, c, *from.from(0, c).ptr) }),
            }
        }
    }

    /// Where an element lies, and the distances of rows and columns, if they have any.
    fn stretch(&self, args: &[*mut u8], batch: usize, row: usize, col: usize) -> Option<Stretch> {
        let Place::Memory { arg, dtype, index, line: Some((r, c)) } = &self.place else { return None };
        let at = self.index(index, [batch, 0, 0]) as i64 + (row as isize * r + col as isize * c) as i64;
        Some(Stretch { memory: args[*arg], dtype: *dtype, at, row: *r as i64, col: *c as i64 })
    }

    /// Sets an element.
    pub(crate) unsafe fn set(&self, args: &[*mut u8], batch: usize, row: usize, col: usize, x: f32) {
        let Place::Memory { arg, dtype, index, .. } = &self.place else { unreachable!("results are in memory") };
        let at = self.index(index, [batch, row, col]);
        unsafe {
            match dtype {
                DType::F16 => *(args[*arg] as *mut f16).add(at) = f16::from_f32(x),
                DType::BF16 => *(args[*arg] as *mut bf16).add(at) = bf16::from_f32(x),
                _ => *(args[*arg] as *mut f32).add(at) = x,
            }
        }
    }

    /// `rows` rows of `cols` elements from a row and column on: where they lie, or packed.
    pub(crate) unsafe fn read(
        &self,
        args: &[*mut u8],
        batch: usize,
        (row, rows): (usize, usize),
        (col, cols): (usize, usize),
        pack: *mut f32,
    ) -> Tile {
        if self.is_plain() {
            return self.plain(args, batch, row, col);
        }
        let from = self.stretch(args, batch, row, col);
        for r in 0..rows {
            let to = unsafe { pack.add(r * cols) };
            match &from {
                Some(s) => {
                    let at = s.at + r as i64 * s.row;
                    unsafe { copy_line(s.dtype, s.memory, at, s.col, to as *mut u32, cols) }
                }
                None => (0..cols).for_each(|c| unsafe { *to.add(c) = self.get(args, batch, row + r, col + c) }),
            }
        }
        Tile { ptr: pack, row: cols as isize, col: 1 }
    }
}

fn dims(kernel: &Kernel, roles: [Role; 2]) -> [Vec<(usize, usize)>; 3] {
    let [rows, cols] = roles.map(|role| super::rows::dims_of(kernel, |r| r == role));
    [super::rows::dims_of(kernel, |r| r == Role::Batch), rows, cols]
}
