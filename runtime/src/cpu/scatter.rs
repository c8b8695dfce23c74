//! `Index` kernels: adding rows into a table, in the order of the indices.

use super::exec::{Block, Chunk, Env};
use super::ops::Ops;
use super::plan::{Class, Domain, Plan, Val};
use super::planner::{Planner, indices};
use super::rows::{SERIAL, Shared, dims_of};
use super::scratch::{Need, Scratch};
use super::threads::share;
use dnx_codegen::kernel::{Kernel, Role};
use dnx_ir::DType;
use half::{bf16, f16};

/// A planned scatter. The dims are `[outer.., indices.., inner..]`; a row of the plan is the inner dims.
pub(crate) struct ScatterAdd {
    plan: Plan,
    target: Val,
    target_unsigned: bool,
    target_domain: Domain,
    update: Val,
    dtype: DType,
    outer: usize,
    count: usize,
    inner: usize,
    table_rows: usize,
    base: Option<usize>,
    out: usize,
    args: usize,
}

impl ScatterAdd {
    pub(crate) fn new(kernel: &Kernel, in_place: &[bool]) -> Result<ScatterAdd, String> {
        let scatter = kernel.scatter.as_ref().ok_or("an index kernel without a scatter")?;
        let all = dims_of(kernel, |_| true);
        let is_index = |d: &(usize, usize)| kernel.dims[d.0].role == Role::Reduce;
        let first = all.iter().position(is_index).unwrap_or(all.len());
        let after = all.iter().rposition(is_index).map_or(first, |at| at + 1);
        let (outer, indices_, inner) = (&all[..first], &all[first..after], &all[after..]);
        let extent = |dims: &[(usize, usize)]| dims.iter().map(|d| d.1).product::<usize>();
        let mut planner = Planner::new(kernel, in_place, &all[..after], inner, &indices(kernel), false)?;
        let target = planner.value(scatter.target)?;
        let update = planner.value(scatter.update)?;
        let update = planner.everywhere(update);
        planner.keep(target);
        planner.keep(update);
        let target_domain = planner.domain(target);
        if target_domain == Domain::Full {
            return Err("a scatter whose rows depend on the inner dims".to_string());
        }
        Ok(ScatterAdd {
            plan: planner.finish(),
            target,
            target_unsigned: Class::of(kernel.dtype(scatter.target)) == Class::Unsigned,
            target_domain,
            update,
            dtype: kernel.args[scatter.out as usize].dtype,
            outer: extent(outer),
            count: extent(indices_),
            inner: extent(inner),
            table_rows: scatter.rows,
            base: scatter.base.map(|b| b as usize),
            out: scatter.out as usize,
            args: kernel.args.len(),
        })
    }

    pub(crate) fn need(&self) -> Need {
        Need { shared: self.plan.uniform_words, words: self.plan.words, vals: self.plan.vals, args: self.args }
    }

    pub(crate) unsafe fn run(&self, ops: &Ops, args: &[*mut u8], scratch: &Scratch) {
        let area = scratch.shared();
        let env = |worker: usize, args| {
            let worker = scratch.worker(worker);
            Env {
                ops,
                args,
                vals: worker.vals,
                words: worker.words,
                acc: Block::NONE,
                accumulators: std::ptr::null_mut(),
            }
        };
        unsafe { self.plan.start(&env(0, args), area) };
        // One task per table and stretch of columns: within it the additions keep their order.
        let width = self.plan.chunk.1.min(self.inner).max(1);
        let pieces = self.inner.div_ceil(width);
        let parallel = self.outer * self.count * self.inner * self.plan.cost >= SERIAL;
        let shared = Shared { args, area };
        share(if parallel { scratch.threads() } else { 1 }, self.outer * pieces, &|worker, task| {
            let shared = &shared;
            let env = env(worker, shared.args);
            let (table, col) = (task / pieces, task % pieces * width);
            let cols = width.min(self.inner - col);
            // SAFETY: tasks have distinct tables or columns.
            unsafe {
                self.plan.adopt(&env, shared.area);
                self.task(&env, table, col, cols);
            }
        });
    }

    unsafe fn task(&self, env: &Env, table: usize, col: usize, cols: usize) {
        let size = self.dtype.device_size();
        let line = |row: usize| (table * self.table_rows + row) * self.inner + col;
        let out = env.args[self.out];
        for row in 0..self.table_rows {
            let to = unsafe { out.add(line(row) * size) };
            match self.base {
                // The base may be the table itself.
                Some(base) => unsafe { std::ptr::copy(env.args[base].add(line(row) * size), to, cols * size) },
                None => unsafe { std::ptr::write_bytes(to, 0, cols * size) },
            }
        }
        let most = if cols == self.inner { self.plan.chunk.0 } else { 1 };
        let mut at = 0;
        while at < self.count {
            let rows = most.min(self.count - at);
            let chunk = Chunk { row: table * self.count + at, rows, col, cols };
            unsafe { self.plan.chunk(env, &chunk) };
            let (target, update) = unsafe { (*env.vals.add(self.target), *env.vals.add(self.update)) };
            for row in 0..rows {
                let step = if self.target_domain == Domain::Outer { target.step } else { 0 };
                let word = unsafe { *target.ptr.add(row * step) };
                let x = if self.target_unsigned { word as i64 } else { word as i32 as i64 };
                let place = x.min(self.table_rows as i64 - 1).max(0) as usize;
                let to = unsafe { out.add(line(place) * size) };
                for i in 0..cols {
                    unsafe { self.add(to, i, *update.ptr.add((row * cols + i) * update.step)) };
                }
            }
            at += rows;
        }
    }

    unsafe fn add(&self, line: *mut u8, i: usize, x: u32) {
        let f = f32::from_bits(x);
        unsafe {
            match self.dtype {
                DType::F32 => *(line as *mut f32).add(i) += f,
                DType::I32 | DType::U32 | DType::Bool | DType::F64 => {
                    let place = (line as *mut u32).add(i);
                    *place = (*place).wrapping_add(x);
                }
                DType::F16 => {
                    let place = (line as *mut f16).add(i);
                    *place = f16::from_f32((*place).to_f32() + f);
                }
                DType::BF16 => {
                    let place = (line as *mut bf16).add(i);
                    *place = bf16::from_f32((*place).to_f32() + f);
                }
            }
        }
    }
}
