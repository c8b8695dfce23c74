//! Operands of contractions as functions of coordinates, with their pointwise prologues.

use super::Plan;
use crate::Result;
use crate::kernel::{Atom, Idx, Inst, InstId, Kernel, Role};
use crate::wgsl::quad::quad_inputs;
use crate::wgsl::writer::Writer;

/// One operand.
///
/// [`Operand::print`] prints `<name>_quad(z, m, k)` (`n` for the right operand): four values along the operand's
/// *axis*, zero outside the matrix, so that ragged sizes need no other care.
pub(super) struct Operand {
    pub(super) name: &'static str,
    value: InstId,
    role: Role,
    /// `m` or `n`.
    pub(super) letter: char,
    /// Where a quad is one load: the dim it lies along.
    dim: Option<usize>,
    /// Whether quads lie along the depth; otherwise along rows or columns.
    pub(super) depth_quads: bool,
    /// Whether memory is contiguous along the depth.
    pub(super) depth_contiguous: bool,
}

/// The innermost dim of a role that is longer than one.
pub(super) fn innermost(kernel: &Kernel, role: Role) -> Option<usize> {
    (0..kernel.dims.len()).rfind(|&d| kernel.dims[d].role == role && kernel.dims[d].size > 1)
}

impl Operand {
    /// `depth` is that of a tile, along which whole quads must fit.
    pub(super) fn new(kernel: &Kernel, value: InstId, role: Role, depth: u32) -> Operand {
        let largest = |dim: Option<usize>| {
            let inputs = dim.map(|d| quad_inputs(kernel, &[value], d)).unwrap_or_default();
            inputs.iter().map(|&a| kernel.args[a as usize].elems).max()
        };
        let along = [innermost(kernel, role), innermost(kernel, Role::Reduce).filter(|_| depth.is_multiple_of(4))];
        let depth_quads = largest(along[1]) > largest(along[0]);
        let dim = if depth_quads { along[1] } else { along[0].filter(|_| largest(along[0]).is_some()) };
        Operand {
            name: if role == Role::M { "lhs" } else { "rhs" },
            value,
            role,
            letter: if role == Role::M { 'm' } else { 'n' },
            dim,
            depth_quads,
            depth_contiguous: depth_is_contiguous(kernel, value),
        }
    }

    pub(super) fn print(&self, w: &mut Writer, plan: &Plan) -> Result<()> {
        let (name, x, t) = (self.name, self.letter, plan.element);
        let side = if self.role == Role::M { 0 } else { 1 };
        let (edge, depth) = (plan.extent[1 + side], plan.extent[3]);
        let mut outside = Vec::new();
        if !edge.is_multiple_of(plan.block[side] as usize) {
            outside.push(format!("{x} >= {edge}u"));
        }
        if !depth.is_multiple_of(plan.block[2] as usize) {
            outside.push(format!("k >= {depth}u"));
        }
        let outside = outside.join(" || ");
        w.fresh_scope();
        if let Some(dim) = self.dim {
            w.wide.extend(quad_inputs(w.kernel, &[self.value], dim));
            w.open(format!("fn {name}_quad(z: u32, {x}: u32, k: u32) -> vec4<{t}> {{"));
            if !outside.is_empty() {
                w.line(format!("if ({outside}) {{ return vec4<{t}>(); }}"));
            }
            self.decode(w, plan);
            let scopes = w.emit_quad(&[self.value], dim, &[])?;
            let mut parts = Vec::new();
            for scope in scopes {
                w.scope = scope;
                parts.push(self.kept(w, plan)?);
            }
            w.line(format!("return vec4<{t}>({});", parts.join(", ")));
        } else {
            w.open(format!("fn {name}_at(z: u32, {x}: u32, k: u32) -> {t} {{"));
            if !outside.is_empty() {
                w.line(format!("if ({outside}) {{ return {t}(0); }}"));
            }
            self.decode(w, plan);
            w.emit(&[self.value])?;
            let value = self.kept(w, plan)?;
            w.line(format!("return {value};"));
            w.close();
            w.line("");
            w.open(format!("fn {name}_quad(z: u32, {x}: u32, k: u32) -> vec4<{t}> {{"));
            let parts = [0, 1, 2, 3].map(|c| format!("{name}_at(z, {x} + {c}u, k)"));
            w.line(format!("return vec4<{t}>({});", parts.join(", ")));
        }
        w.close();
        w.line("");
        Ok(())
    }

    /// The value in the type in which it is kept.
    fn kept(&self, w: &Writer, plan: &Plan) -> Result<String> {
        let value = w.value(self.value)?;
        Ok(if plan.element == "f16" { value } else { w.widened(w.kernel.dtype(self.value), &value) })
    }

    fn decode(&self, w: &mut Writer, plan: &Plan) {
        plan.decode(w, &[(Role::Batch, "z"), (self.role, &self.letter.to_string()), (Role::Reduce, "k")]);
    }
}

/// Whether the operand's largest argument is contiguous along the innermost `Reduce` dim.
pub(super) fn depth_is_contiguous(kernel: &Kernel, value: InstId) -> bool {
    let Some(innermost) = innermost(kernel, Role::Reduce) else { return false };
    let mut stack = vec![value];
    let mut best: Option<(usize, bool)> = None;
    while let Some(id) = stack.pop() {
        if let Inst::Load { arg, index, .. } = kernel.inst(id) {
            let elems = kernel.args[*arg as usize].elems;
            if best.is_none_or(|(n, _)| elems > n) {
                best = Some((elems, steps_by_one(index, innermost)));
            }
        }
        stack.extend(kernel.inst(id).operands());
    }
    best.is_some_and(|(_, contiguous)| contiguous)
}

/// Whether the index grows by one with this dim (for most coordinates).
fn steps_by_one(index: &Idx, dim: usize) -> bool {
    index.terms.iter().any(|(c, atom)| match atom {
        Atom::Dim(d) => *d as usize == dim && *c == 1,
        Atom::Mod(inner, _) => *c == 1 && steps_by_one(inner, dim),
        Atom::Div(..) => false,
    })
}
