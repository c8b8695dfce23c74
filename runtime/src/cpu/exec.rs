//! Running plans: chunk by chunk, step by step.

use super::native::Pass;
#[cfg(target_arch = "x86_64")]
use super::native::{STREAMS, Source, Storage, Stream};
use super::ops::{Ops, Src};
use super::plan::{Class, Domain, Load, Place, Plan, Step, StepOp, StoreTo, Walk};
use super::product::turn;
use super::space::{MAX_RANK, for_runs};
use dnx_ir::{DType, ReduceKind};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The memory of a dispatch: addresses of the arguments, and of the arrays that stand beside them.
pub(crate) type Args<'a> = &'a [*mut u8];

/// What one thread needs to run chunks.
#[derive(Clone, Copy)]
pub(crate) struct Env<'a> {
    pub(crate) ops: &'a Ops,
    pub(crate) args: Args<'a>,
    /// One entry per value of the plan.
    pub(crate) vals: *mut Src,
    /// Scratch words of the plan.
    pub(crate) words: *mut u32,
    /// Contraction: the block of results.
    pub(crate) acc: Block,
    /// Column: accumulators, one row of columns each.
    pub(crate) accumulators: *mut u32,
}

/// A block of a contraction's results: the element of `row` and `col` is at
/// `ptr + (row - row0) * ld + (col - col0)`.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) ptr: *const u32,
    pub(crate) row0: usize,
    pub(crate) col0: usize,
    pub(crate) ld: usize,
}

impl Block {
    pub(crate) const NONE: Block = Block { ptr: std::ptr::null(), row0: 0, col0: 0, ld: 0 };
}

/// A chunk: whole rows (`col` 0 and `cols` all), or a piece of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) col: usize,
    pub(crate) cols: usize,
}

impl Chunk {
    /// The first point in a domain, and how many there are.
    fn span(&self, domain: Domain, cols: usize) -> (usize, usize) {
        match domain {
            Domain::Uniform => (0, 1),
            Domain::Outer => (self.row, self.rows),
            Domain::Full => (self.row * cols + self.col, self.rows * self.cols),
        }
    }
}

// SAFETY of this module: the caller gives arguments with the elements the kernel declares, scratch of the plan's
// size and one `Src` per value, and runs no two chunks that store to the same elements at once. The compiler's
// indices stay within the arguments; gathered parts are clamped, checks guard the rest.
impl Plan {
    /// Computes the uniform values into `area`.
    pub(crate) unsafe fn start(&self, env: &Env, area: *mut u32) {
        let chunk = Chunk { row: 0, rows: 1, col: 0, cols: 1 };
        for step in &self.uniform {
            unsafe { self.step(env, step, &chunk) };
            // The worker's words serve other values next, and a view of an argument that is overwritten later must
            // not change.
            let place = unsafe { &mut *env.vals.add(step.dst) };
            let slot = unsafe { area.add(slot_of(step)) };
            unsafe { *slot = *place.ptr };
            *place = Src { ptr: slot, step: 0 };
        }
    }

    /// Makes the uniform values of `area` known to a thread.
    pub(crate) unsafe fn adopt(&self, env: &Env, area: *const u32) {
        for step in &self.uniform {
            unsafe { *env.vals.add(step.dst) = Src { ptr: area.add(slot_of(step)), step: 0 } };
        }
    }

    /// Stores the uniform values.
    pub(crate) unsafe fn end(&self, env: &Env) {
        let chunk = Chunk { row: 0, rows: 1, col: 0, cols: 1 };
        for step in &self.last {
            unsafe { self.step(env, step, &chunk) };
        }
    }

    /// Runs rows `rows.0 .. rows.1`, columns `cols.0 .. cols.1` of each.
    pub(crate) unsafe fn range(&self, env: &Env, rows: (usize, usize), cols: (usize, usize)) {
        let (most_rows, most_cols) = self.chunk;
        let whole = cols == (0, self.cols) && self.cols <= most_cols;
        let mut row = rows.0;
        while row < rows.1 {
            let n = if whole { most_rows.min(rows.1 - row).min(self.together - row % self.together) } else { 1 };
            if whole {
                unsafe { self.chunk(env, &Chunk { row, rows: n, col: 0, cols: self.cols }) };
            } else {
                let mut col = cols.0;
                while col < cols.1 {
                    let len = most_cols.min(cols.1 - col);
                    unsafe { self.chunk(env, &Chunk { row, rows: 1, col, cols: len }) };
                    col += len;
                }
            }
            row += n;
        }
    }

    /// Runs one chunk.
    pub(crate) unsafe fn chunk(&self, env: &Env, chunk: &Chunk) {
        for step in &self.steps {
            unsafe { self.step(env, step, chunk) };
        }
    }

    fn dims(&self, domain: Domain) -> &[usize] {
        match domain {
            Domain::Uniform => &[],
            Domain::Outer => &self.space.dims[..self.space.outer],
            Domain::Full => &self.space.dims,
        }
    }

    #[inline]
    unsafe fn step(&self, env: &Env, step: &Step, chunk: &Chunk) {
        let (at, n) = chunk.span(step.domain, self.cols);
        let src = |v: usize| unsafe { *env.vals.add(v) };
        let dst = match step.place {
            Place::None => std::ptr::null_mut(),
            Place::Slot(offset) => unsafe { env.words.add(offset) },
            Place::Direct(store) => unsafe {
                let to = &self.stores[store];
                (env.args[to.arg] as *mut u32).offset(self.base(&to.index, to.walk, to.domain, at) as isize)
            },
        };
        let value = match &step.op {
            StepOp::Point(op, [a, b, c]) => {
                unsafe { (env.ops.pointwise)(*op, n, dst, src(*a), src(*b), src(*c)) };
                Src { ptr: dst, step: 1 }
            }
            StepOp::Const(bits) => {
                unsafe { *dst = *bits };
                Src { ptr: dst, step: 0 }
            }
            StepOp::Load(load) => unsafe { self.load(env, load, step.domain, dst, chunk) },
            StepOp::Index(index) => {
                let (out, temp) = unsafe { self.buffers(env, dst as *mut i32, n) };
                index.fill(self.dims(step.domain), at, out, temp);
                Src { ptr: dst, step: 1 }
            }
            StepOp::Valid(tests) => {
                let (_, temp) = unsafe { self.buffers(env, dst as *mut i32, n) };
                let mask = unsafe { std::slice::from_raw_parts_mut(dst, n) };
                mask.fill(1);
                for test in tests {
                    test.fill(self.dims(step.domain), at, mask, temp);
                }
                Src { ptr: dst, step: 1 }
            }
            StepOp::Expand(v) => unsafe { expand(src(*v), dst, chunk) },
            StepOp::Reduce(kind, class, v) => {
                let v = src(*v);
                for row in 0..chunk.rows {
                    let begin = unsafe { v.ptr.add(row * chunk.cols) };
                    unsafe { *dst.add(row) = reduce(env.ops, *kind, *class, begin, chunk.cols) };
                }
                Src { ptr: dst, step: 1 }
            }
            StepOp::Argmax(class, v) => {
                let v = src(*v);
                for row in 0..chunk.rows {
                    let x = unsafe { std::slice::from_raw_parts(v.ptr.add(row * chunk.cols), chunk.cols) };
                    unsafe { *dst.add(row) = argmax(*class, x) };
                }
                Src { ptr: dst, step: 1 }
            }
            StepOp::Acc => {
                let block = &env.acc;
                let ptr = unsafe { block.ptr.add((chunk.row - block.row0) * block.ld + chunk.col - block.col0) };
                Src { ptr, step: 1 }
            }
            StepOp::Accumulate(kind, class, v, slot) => {
                let acc = unsafe { env.accumulators.add(slot * self.stride + chunk.col) };
                return unsafe { self.accumulate(env, *kind, *class, src(*v), acc, chunk) };
            }
            StepOp::AccumulateArgmax(class, v, slot) => {
                let best = unsafe { env.accumulators.add(slot * self.stride + chunk.col) };
                let place = unsafe { best.add(self.stride) };
                return unsafe { accumulate_argmax(*class, src(*v), best, place, chunk) };
            }
            StepOp::Room => Src { ptr: dst, step: 1 },
            StepOp::Pass(pass) => return unsafe { self.pass(env, pass, chunk) },
            StepOp::Store(store, v) => {
                if let Some(to) = self.stores.get(*store) {
                    unsafe { self.store(env, to, src(*v), chunk) };
                }
                return;
            }
        };
        // One value for all: a row of one is read as a scalar by its own domain alone.
        unsafe { *env.vals.add(step.dst) = value };
    }

    /// Runs a pass over a chunk.
    #[cfg(target_arch = "x86_64")]
    unsafe fn pass(&self, env: &Env, pass: &Pass, chunk: &Chunk) {
        let (at, points) = chunk.span(Domain::Full, self.cols);
        let line = 4 * chunk.cols as isize;
        let mut streams = [Stream { ptr: std::ptr::null_mut(), row: 0 }; STREAMS];
        let mut dense = pass.flat;
        for (stream, source) in streams.iter_mut().zip(&pass.sources) {
            let value = |v: usize| unsafe { *env.vals.add(v) };
            *stream = match *source {
                Source::Points(v) => Stream { ptr: value(v).ptr as *mut u8, row: line },
                Source::Block(v) => {
                    let row = 4 * env.acc.ld as isize;
                    dense &= row == line || chunk.rows == 1;
                    Stream { ptr: value(v).ptr as *mut u8, row }
                }
                Source::Lines(which, row) => {
                    let lines = &pass.lines[which];
                    let base = self.base(&lines.index, Walk::Runs, Domain::Full, at) as isize;
                    let bytes = lines.storage.bytes() as isize;
                    dense &= row as usize == chunk.cols || chunk.rows == 1;
                    Stream { ptr: env.args[lines.arg].wrapping_offset(bytes * base), row: bytes * row as isize }
                }
                Source::Row(v) => Stream { ptr: value(v).ptr as *mut u8, row: 4 * value(v).step as isize },
                Source::Uniform(v) => Stream { ptr: value(v).ptr as *mut u8, row: 0 },
                Source::Store(store, row) => {
                    let to = &self.stores[store];
                    let base = self.base(&to.index, to.walk, to.domain, at) as isize;
                    let bytes = Storage::of(to.dtype).bytes() as isize;
                    dense &= row as usize == chunk.cols || chunk.rows == 1;
                    Stream { ptr: env.args[to.arg].wrapping_offset(bytes * base), row: bytes * row as isize }
                }
                Source::Accumulator(slot) => {
                    let words = unsafe { env.accumulators.add(slot * self.stride + chunk.col) };
                    Stream { ptr: words as *mut u8, row: 0 }
                }
            };
        }
        let streams = &mut streams[..pass.sources.len()];
        // SAFETY: the streams are those of the pass, with the points of the chunk behind them.
        unsafe {
            match dense {
                true => pass.code.run(streams, 1, points),
                false => pass.code.run(streams, chunk.rows, chunk.cols),
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn pass(&self, _: &Env, _: &Pass, _: &Chunk) {
        unreachable!("plans have passes where there is code for them")
    }

    /// The words of `out` and the index buffers.
    unsafe fn buffers(&self, env: &Env, out: *mut i32, n: usize) -> (&'static mut [i32], &'static mut [i32]) {
        let temp = unsafe { env.words.add(self.temp) } as *mut i32;
        let room = self.words - self.temp;
        // The lifetimes end with the step: nothing keeps them.
        unsafe { (std::slice::from_raw_parts_mut(out, n), std::slice::from_raw_parts_mut(temp, room)) }
    }

    /// The element at which a contiguous stretch begins.
    fn base(&self, index: &super::space::Index, walk: Walk, domain: Domain, at: usize) -> i64 {
        if walk == Walk::View(true) {
            return index.offset + at as i64;
        }
        let dims = self.dims(domain);
        let mut place = [0; MAX_RANK];
        let mut rest = at;
        for d in (0..dims.len()).rev() {
            place[d] = rest % dims[d];
            rest /= dims[d];
        }
        index.at(&place[..dims.len()])
    }

    unsafe fn load(&self, env: &Env, load: &Load, domain: Domain, dst: *mut u32, chunk: &Chunk) -> Src {
        let (at, n) = chunk.span(domain, self.cols);
        let memory = env.args[load.arg];
        let dims = self.dims(domain);
        let words = memory as *const u32;
        match load.walk {
            Walk::View(_) => {
                let base = self.base(&load.index, load.walk, domain, at);
                Src { ptr: words.wrapping_offset(base as isize), step: 1 }
            }
            Walk::Runs => {
                let plain = load.tests.is_empty() && load.dynamic.is_empty();
                if let Some((base, step)) = load.index.turned(dims, at, n).filter(|_| plain) {
                    let cols = dims[dims.len() - 1];
                    unsafe { turn_lines(load.dtype, memory, base, step, dst, (n / cols, cols)) };
                    return Src { ptr: dst, step: 1 };
                }
                let step = load.index.step(dims.len());
                let mut view = None;
                for_runs(dims, at, n, |place, done, len| {
                    let out = unsafe { dst.add(done) };
                    let (mut from, mut to) = (0, len);
                    for test in &load.tests {
                        let (a, b) = test.clip(place, len);
                        (from, to) = (from.max(a), to.min(b));
                    }
                    if from >= to {
                        return unsafe { std::ptr::write_bytes(out, 0, len) };
                    }
                    let mut base = load.index.at(place) + from as i64 * step;
                    for d in &load.dynamic {
                        let v = unsafe { *env.vals.add(d.value) };
                        let row = if d.per_row { (at + done) / self.cols.max(1) - chunk.row } else { 0 };
                        base += d.clamp(unsafe { *v.ptr.add(row * v.step) }) * d.stride;
                    }
                    if to - from == n && load.dtype.size() == 4 && step == 1 {
                        view = Some(Src { ptr: unsafe { words.offset(base as isize) }, step: 1 });
                        return;
                    }
                    unsafe {
                        std::ptr::write_bytes(out, 0, from);
                        copy_line(load.dtype, memory, base, step, out.add(from), to - from);
                        std::ptr::write_bytes(out.add(to), 0, len - to);
                    }
                });
                view.unwrap_or(Src { ptr: dst, step: 1 })
            }
            Walk::Gather => {
                let (_, temp) = unsafe { self.buffers(env, dst as *mut i32, 0) };
                let (index, temp) = temp.split_at_mut(n);
                load.index.fill(dims, at, index, temp);
                for d in &load.dynamic {
                    let v = unsafe { *env.vals.add(d.value) };
                    for (i, x) in index.iter_mut().enumerate() {
                        let word = unsafe { *v.ptr.add(i * v.step) };
                        *x = x.wrapping_add((d.clamp(word) * d.stride) as i32);
                    }
                }
                let out = unsafe { std::slice::from_raw_parts_mut(dst, n) };
                if load.tests.is_empty() {
                    for (o, &i) in out.iter_mut().zip(index.iter()) {
                        *o = unsafe { element(load.dtype, memory, i as isize) };
                    }
                } else {
                    let (mask, temp) = temp.split_at_mut(n);
                    let mask: &mut [u32] = bytemuck::cast_slice_mut(mask);
                    mask.fill(1);
                    for test in &load.tests {
                        test.fill(dims, at, mask, temp);
                    }
                    for ((o, &i), &m) in out.iter_mut().zip(index.iter()).zip(mask.iter()) {
                        *o = if m != 0 { unsafe { element(load.dtype, memory, i as isize) } } else { 0 };
                    }
                }
                Src { ptr: dst, step: 1 }
            }
        }
    }

    unsafe fn store(&self, env: &Env, to: &StoreTo, v: Src, chunk: &Chunk) {
        // A value per row is stored with the row's first piece.
        if to.domain == Domain::Outer && chunk.col != 0 {
            return;
        }
        let (at, n) = chunk.span(to.domain, self.cols);
        let memory = env.args[to.arg];
        let dims = self.dims(to.domain);
        match to.walk {
            Walk::View(_) => {
                let base = self.base(&to.index, to.walk, to.domain, at);
                unsafe { put_line(to.dtype, memory, base, 1, v, n) };
            }
            Walk::Runs => {
                let step = to.index.step(dims.len());
                for_runs(dims, at, n, |place, done, len| {
                    let v = Src { ptr: unsafe { v.ptr.add(done * v.step) }, step: v.step };
                    unsafe { put_line(to.dtype, memory, to.index.at(place), step, v, len) };
                });
            }
            Walk::Gather => {
                let (_, temp) = unsafe { self.buffers(env, std::ptr::dangling_mut(), 0) };
                let (index, temp) = temp.split_at_mut(n);
                to.index.fill(dims, at, index, temp);
                for (i, &x) in index.iter().enumerate() {
                    let v = Src { ptr: unsafe { v.ptr.add(i * v.step) }, step: 0 };
                    unsafe { put_line(to.dtype, memory, x as i64, 1, v, 1) };
                }
            }
        }
    }

    unsafe fn accumulate(&self, env: &Env, kind: ReduceKind, class: Class, v: Src, acc: *mut u32, chunk: &Chunk) {
        if chunk.cols == 1 && v.step == 1 {
            let part = unsafe { reduce(env.ops, kind, class, v.ptr, chunk.rows) };
            return unsafe { *acc = combine(kind, class, *acc, part) };
        }
        for row in 0..chunk.rows {
            let line = Src { ptr: unsafe { v.ptr.add(row * chunk.cols * v.step) }, step: v.step };
            match (kind, class) {
                (ReduceKind::Sum, Class::Float) => unsafe { (env.ops.accumulate)(chunk.cols, acc as *mut f32, line) },
                (ReduceKind::Max, Class::Float) => unsafe {
                    (env.ops.accumulate_max)(chunk.cols, acc as *mut f32, line)
                },
                _ => {
                    for i in 0..chunk.cols {
                        let x = unsafe { *line.ptr.add(i * line.step) };
                        unsafe { *acc.add(i) = combine(kind, class, *acc.add(i), x) };
                    }
                }
            }
        }
    }
}

fn slot_of(step: &Step) -> usize {
    match step.place {
        Place::Slot(slot) => slot,
        Place::None | Place::Direct(_) => unreachable!("uniform values have slots"),
    }
}

impl super::plan::Dynamic {
    #[inline(always)]
    fn clamp(&self, word: u32) -> i64 {
        let x = if self.unsigned { word as i64 } else { word as i32 as i64 };
        x.max(0).min(self.limit)
    }
}

/// An outer value for all points of its rows: a scalar if there is one row, the value itself if rows have one
/// point, else a copy.
unsafe fn expand(v: Src, dst: *mut u32, chunk: &Chunk) -> Src {
    if chunk.rows == 1 {
        return Src { ptr: v.ptr, step: 0 };
    }
    if chunk.cols == 1 {
        return v;
    }
    for row in 0..chunk.rows {
        unsafe {
            let x = *v.ptr.add(row * v.step);
            std::slice::from_raw_parts_mut(dst.add(row * chunk.cols), chunk.cols).fill(x);
        }
    }
    Src { ptr: dst, step: 1 }
}

/// Two partial results of a reduction.
pub(crate) fn combine(kind: ReduceKind, class: Class, a: u32, b: u32) -> u32 {
    match (kind, class) {
        (ReduceKind::Sum, Class::Float) => (f32::from_bits(a) + f32::from_bits(b)).to_bits(),
        (ReduceKind::Sum, Class::Signed | Class::Unsigned) => a.wrapping_add(b),
        (ReduceKind::Max, Class::Float) => {
            if f32::from_bits(b) > f32::from_bits(a) {
                b
            } else {
                a
            }
        }
        (ReduceKind::Max, Class::Signed) => (a as i32).max(b as i32) as u32,
        (ReduceKind::Max, Class::Unsigned) => a.max(b),
    }
}

unsafe fn reduce(ops: &Ops, kind: ReduceKind, class: Class, x: *const u32, n: usize) -> u32 {
    match (kind, class) {
        (ReduceKind::Sum, Class::Float) => unsafe { (ops.sum)(x as *const f32, n) }.to_bits(),
        (ReduceKind::Max, Class::Float) => unsafe { (ops.max)(x as *const f32, n) }.to_bits(),
        _ => {
            let x = unsafe { std::slice::from_raw_parts(x, n) };
            x.iter().fold(class.identity(kind), |acc, &x| combine(kind, class, acc, x))
        }
    }
}

/// Whether `a` is greater than `b`.
fn greater(class: Class, a: u32, b: u32) -> bool {
    match class {
        Class::Float => f32::from_bits(a) > f32::from_bits(b),
        Class::Signed => a as i32 > b as i32,
        Class::Unsigned => a > b,
    }
}

fn argmax(class: Class, x: &[u32]) -> u32 {
    let mut best = 0;
    for i in 1..x.len() {
        if greater(class, x[i], x[best]) {
            best = i;
        }
    }
    best as u32
}

/// Keeps the greatest value and its row; a place of `u32::MAX` means there is none yet.
unsafe fn accumulate_argmax(class: Class, v: Src, best: *mut u32, place: *mut u32, chunk: &Chunk) {
    for row in 0..chunk.rows {
        for i in 0..chunk.cols {
            unsafe {
                let x = *v.ptr.add((row * chunk.cols + i) * v.step);
                if *place.add(i) == u32::MAX || greater(class, x, *best.add(i)) {
                    *best.add(i) = x;
                    *place.add(i) = (chunk.row + row) as u32;
                }
            }
        }
    }
}

/// Merges a later part's argmax into an earlier one's.
pub(crate) fn combine_argmax(class: Class, best: &mut u32, place: &mut u32, x: u32, at: u32) {
    if at != u32::MAX && (*place == u32::MAX || greater(class, x, *best)) {
        (*best, *place) = (x, at);
    }
}

/// One element as a word of a register.
#[inline(always)]
unsafe fn element(dtype: DType, memory: *const u8, at: isize) -> u32 {
    unsafe {
        match dtype {
            DType::F16 => (*(memory as *const f16).offset(at)).to_f32().to_bits(),
            DType::BF16 => (*(memory as *const bf16).offset(at)).to_f32().to_bits(),
            DType::F32 | DType::I32 | DType::U32 | DType::Bool | DType::F64 => *(memory as *const u32).offset(at),
        }
    }
}

/// Elements `base, base + step..` of an argument into words.
pub(crate) unsafe fn copy_line(dtype: DType, memory: *const u8, base: i64, step: i64, out: *mut u32, n: usize) {
    let (base, step) = (base as isize, step as isize);
    unsafe {
        match (dtype, step) {
            (_, 0) => std::slice::from_raw_parts_mut(out, n).fill(element(dtype, memory, base)),
            (DType::F16, 1) => {
                let from = std::slice::from_raw_parts((memory as *const f16).offset(base), n);
                from.convert_to_f32_slice(std::slice::from_raw_parts_mut(out as *mut f32, n));
            }
            (DType::BF16, 1) => {
                let from = std::slice::from_raw_parts((memory as *const u16).offset(base), n);
                for (o, &x) in std::slice::from_raw_parts_mut(out, n).iter_mut().zip(from) {
                    *o = (x as u32) << 16;
                }
            }
            (DType::F16 | DType::BF16, _) => {
                for i in 0..n {
                    *out.add(i) = element(dtype, memory, base + i as isize * step);
                }
            }
            (_, 1) => std::ptr::copy_nonoverlapping((memory as *const u32).offset(base), out, n),
            _ => {
                let from = (memory as *const u32).offset(base);
                for i in 0..n {
                    *out.add(i) = *from.offset(i as isize * step);
                }
            }
        }
    }
}

/// `rows` rows of `cols` words each of an argument: those of a row lie `step` apart, those of a column side by side.
unsafe fn turn_lines(
    dtype: DType,
    memory: *const u8,
    base: i64,
    step: i64,
    out: *mut u32,
    (rows, cols): (usize, usize),
) {
    /// Elements of 16 bits are widened so many at a time before they are turned.
    const WIDE: (usize, usize) = (64, 16);
    unsafe {
        if dtype.size() != 2 {
            let from = (memory as *const f32).offset(base as isize);
            return turn((rows, cols), from, step as isize, out as *mut f32, cols);
        }
        let mut wide = [0u32; WIDE.0 * WIDE.1];
        for row in (0..rows).step_by(WIDE.0) {
            let m = WIDE.0.min(rows - row);
            for col in (0..cols).step_by(WIDE.1) {
                let n = WIDE.1.min(cols - col);
                for j in 0..n {
                    let at = base + row as i64 + (col + j) as i64 * step;
                    copy_line(dtype, memory, at, 1, wide.as_mut_ptr().add(j * WIDE.0), m);
                }
                let to = out.add(row * cols + col) as *mut f32;
                turn((m, n), wide.as_ptr() as *const f32, WIDE.0 as isize, to, cols);
            }
        }
    }
}

/// Words into elements `base, base + step..` of an argument.
pub(crate) unsafe fn put_line(dtype: DType, memory: *mut u8, base: i64, step: i64, v: Src, n: usize) {
    let (base, step) = (base as isize, step as isize);
    unsafe {
        match dtype {
            DType::F16 if step == 1 && v.step == 1 => {
                let to = std::slice::from_raw_parts_mut((memory as *mut f16).offset(base), n);
                to.convert_from_f32_slice(std::slice::from_raw_parts(v.ptr as *const f32, n));
            }
            DType::BF16 if step == 1 && v.step == 1 => {
                let to = std::slice::from_raw_parts_mut((memory as *mut u16).offset(base), n);
                for (o, &x) in to.iter_mut().zip(std::slice::from_raw_parts(v.ptr as *const f32, n)) {
                    *o = (super::ops::round_bf16(x).to_bits() >> 16) as u16;
                }
            }
            DType::F16 | DType::BF16 => {
                let to = (memory as *mut u16).offset(base);
                for i in 0..n {
                    let x = f32::from_bits(*v.ptr.add(i * v.step));
                    let bits = match dtype {
                        DType::F16 => f16::from_f32(x).to_bits(),
                        _ => (super::ops::round_bf16(x).to_bits() >> 16) as u16,
                    };
                    *to.offset(i as isize * step) = bits;
                }
            }
            DType::F32 | DType::I32 | DType::U32 | DType::Bool | DType::F64 => {
                let to = (memory as *mut u32).offset(base);
                match (step, v.step) {
                    // In place a value may be stored where it was read.
                    (1, 1) => std::ptr::copy(v.ptr, to, n),
                    (1, _) => std::slice::from_raw_parts_mut(to, n).fill(*v.ptr),
                    _ => {
                        for i in 0..n {
                            *to.offset(i as isize * step) = *v.ptr.add(i * v.step);
                        }
                    }
                }
            }
        }
    }
}
