//! What follows the sums of a contraction: the epilogue and the stores, or the store to scratch.

use super::Plan;
use super::operand::innermost;
use crate::Result;
use crate::kernel::{Access, Inst, InstId, Role};
use crate::wgsl::quad::{COMPONENTS, is_quad, is_quad_load, quad_inputs};
use crate::wgsl::writer::{Writer, refuse};

impl Plan {
    /// Prints `finish_quad(z, m, n, sums)`, for columns `n` to `n + 3` of row `m`; what lies outside the result is
    /// dropped. With parts it is `finish_quad(part, z, m, n, sums)`.
    pub(super) fn print_finish(&self, w: &mut Writer) -> Result<()> {
        let (rows, columns, t) = (self.extent[1], self.extent[2], self.accumulator);
        let part = if self.parts > 1 { "part: u32, " } else { "" };
        let mut outside = Vec::new();
        if !rows.is_multiple_of(self.block[0] as usize) {
            outside.push(format!("m >= {rows}u"));
        }
        if !columns.is_multiple_of(self.block[1] as usize) {
            outside.push(format!("n >= {columns}u"));
        }
        let outside = outside.join(" || ");
        let quad_dim = if self.parts > 1 { None } else { self.quad_of_stores(w) };
        w.fresh_scope();
        if let Some(dim) = quad_dim {
            w.open(format!("fn finish_quad({part}z: u32, m: u32, n: u32, sums: vec4<{t}>) {{"));
            if !outside.is_empty() {
                w.line(format!("if ({outside}) {{ return; }}"));
            }
            self.decode(w, &[(Role::Batch, "z"), (Role::M, "m"), (Role::N, "n")]);
            let sums = COMPONENTS.map(|c| w.rounded(w.kernel.dtype(self.dot), &format!("sums.{c}")));
            let scopes = w.emit_quad(&self.stored, dim, &[(self.dot, sums)])?;
            for s in 0..w.kernel.stores.len() {
                w.store_quad(s, &scopes)?;
            }
        } else {
            w.open(format!("fn finish_at({part}z: u32, m: u32, n: u32, sum: {t}) {{"));
            if !outside.is_empty() {
                w.line(format!("if ({outside}) {{ return; }}"));
            }
            if self.parts > 1 {
                w.use_scratch();
                let at = format!("((part * {}u + z) * {rows}u + m) * {columns}u + n", self.extent[0]);
                w.line(format!("scratch[{at}] = bitcast<u32>(sum);"));
            } else {
                self.decode(w, &[(Role::Batch, "z"), (Role::M, "m"), (Role::N, "n")]);
                self.epilogue(w)?;
            }
            w.close();
            w.line("");
            w.open(format!("fn finish_quad({part}z: u32, m: u32, n: u32, sums: vec4<{t}>) {{"));
            let part = if self.parts > 1 { "part, " } else { "" };
            for (c, component) in COMPONENTS.into_iter().enumerate() {
                w.line(format!("finish_at({part}z, m, n + {c}u, sums.{component});"));
            }
        }
        w.close();
        w.line("");
        Ok(())
    }

    /// The dim along which every store is one of whole quads, if there is one. Declares the arguments wide.
    fn quad_of_stores(&self, w: &mut Writer) -> Option<usize> {
        let kernel = w.kernel;
        let dim = innermost(kernel, Role::N)?;
        let in_place_as_well = |arg: u32| {
            let loads = (0..kernel.insts.len() as u32).map(InstId);
            let mut loads = loads.filter(|&id| matches!(kernel.inst(id), Inst::Load { arg: a, .. } if *a == arg));
            kernel.args[arg as usize].access == Access::Write
                || loads.all(|id| is_quad_load(kernel, &w.dependence, id, dim))
        };
        let all = kernel.stores.iter().all(|s| is_quad(kernel, s.arg, &s.index, dim) && in_place_as_well(s.arg));
        if !all {
            return None;
        }
        w.wide.extend(kernel.stores.iter().map(|s| s.arg));
        w.wide.extend(quad_inputs(kernel, &self.stored, dim));
        Some(dim)
    }

    /// Prints what follows the sum, which is called `sum`, at the present coordinates.
    pub(super) fn epilogue(&self, w: &mut Writer) -> Result<()> {
        let kernel = w.kernel;
        let sum = w.rounded(kernel.dtype(self.dot), "sum");
        w.set(self.dot, sum.clone());
        if sum != "sum" {
            w.bind(self.dot, &sum)?;
        }
        w.emit(&self.stored)?;
        for s in 0..kernel.stores.len() {
            if w.store_is_full(s) {
                return refuse("a contract kernel stores results only, not its operands");
            }
            w.write_store(s)?;
        }
        Ok(())
    }
}
