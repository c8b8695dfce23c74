//! Quads: four points that follow each other along one dim, the first at a multiple of four, evaluated together.
//!
//! Where an index grows by one over a quad and is a multiple of four at its beginning, the argument is declared as an
//! array of vectors (it is *wide*) and the quad is one load or store. Instructions that don't depend on the dim are
//! printed once, the others once per point.

use super::writer::{Coord, Scope, Writer};
use crate::Result;
use crate::kernel::{Access, Arg, Atom, Check, Idx, Inst, InstId, Kernel};
use dnx_ir::DType;

/// Names of the components of a vector.
pub(super) const COMPONENTS: [char; 4] = ['x', 'y', 'z', 'w'];

/// Whether the index is a multiple of four where coordinate `dim` is, and grows by one with it over a quad.
fn steps(index: &Idx, dim: usize) -> bool {
    let mut units = 0;
    index.offset % 4 == 0
        && index.terms.iter().all(|(c, atom)| {
            let unit = *c == 1
                && match atom {
                    Atom::Dim(d) => *d as usize == dim,
                    Atom::Mod(inner, n) => n % 4 == 0 && steps(inner, dim),
                    Atom::Div(..) => false,
                };
            units += usize::from(unit);
            unit || (c % 4 == 0 && stays_atom(atom, dim))
        })
        && units == 1
}

/// Whether the atom is the same all over a quad.
fn stays_atom(atom: &Atom, dim: usize) -> bool {
    match atom {
        Atom::Dim(d) => *d as usize != dim,
        Atom::Div(inner, n) => inner.dims() >> dim & 1 == 0 || (n % 4 == 0 && steps(inner, dim)),
        Atom::Mod(inner, _) => inner.dims() >> dim & 1 == 0,
    }
}

/// Whether a check holds for all of a quad or for none of it.
fn stays_check(check: &Check, dim: usize) -> bool {
    check.index.dims() >> dim & 1 == 0
        || (check.multiple <= 1 && check.lo % 4 == 0 && check.hi % 4 == 0 && steps(&check.index, dim))
}

/// Whether an argument can be an array of vectors.
fn can_widen(arg: &Arg) -> bool {
    arg.elems.is_multiple_of(4) && !matches!(arg.dtype, DType::Bool | DType::F64)
}

/// Whether the elements of a quad along `dim` lie in one vector of the argument.
pub(super) fn is_quad(kernel: &Kernel, arg: u32, index: &Idx, dim: usize) -> bool {
    kernel.dims[dim].size.is_multiple_of(4)
        && can_widen(&kernel.args[arg as usize])
        && steps(index, dim)
        && index.checks.iter().all(|c| stays_check(c, dim))
}

/// Whether an instruction is a load of whole quads along `dim`.
pub(super) fn is_quad_load(kernel: &Kernel, dependence: &[u64], id: InstId, dim: usize) -> bool {
    let Inst::Load { arg, index, dynamic } = kernel.inst(id) else { return false };
    is_quad(kernel, *arg, index, dim)
        && dynamic.iter().all(|t| t.stride % 4 == 0 && dependence[t.value.index()] >> dim & 1 == 0)
}

/// The instructions that these need, themselves included, as far as the next reduction.
pub(super) fn needed(kernel: &Kernel, roots: &[InstId]) -> Vec<InstId> {
    let mut seen = vec![false; kernel.insts.len()];
    let mut stack = roots.to_vec();
    while let Some(id) = stack.pop() {
        if !seen[id.index()] {
            seen[id.index()] = true;
            if !kernel.inst(id).is_reduction() {
                stack.extend(kernel.inst(id).operands());
            }
        }
    }
    (0..seen.len()).filter(|&i| seen[i]).map(|i| InstId(i as u32)).collect()
}

/// The inputs that these instructions load as whole quads along `dim`.
pub(super) fn quad_inputs(kernel: &Kernel, roots: &[InstId], dim: usize) -> Vec<u32> {
    let dependence = kernel.dependence();
    let loads = needed(kernel, roots).into_iter().filter(|&id| is_quad_load(kernel, &dependence, id, dim));
    let args = loads.filter_map(|id| match kernel.inst(id) {
        Inst::Load { arg, .. } if kernel.args[*arg as usize].access == Access::Read => Some(*arg),
        _ => None,
    });
    args.collect()
}

impl Writer<'_> {
    /// The four expressions of these elements of a wide argument's vector, and the vector's type.
    fn wide_parts(&mut self, dtype: DType, name: &str) -> Result<(String, [String; 4])> {
        if !self.is_packed(dtype) {
            let ty = self.register(dtype)?;
            return Ok((format!("vec4<{ty}>"), COMPONENTS.map(|c| format!("{name}.{c}"))));
        }
        let halves = [("x", false), ("x", true), ("y", false), ("y", true)];
        let parts = halves.map(|(word, high)| match (dtype, high) {
            (DType::BF16, false) => format!("bitcast<f32>({name}.{word} << 16u)"),
            (DType::BF16, true) => format!("bitcast<f32>({name}.{word} & 0xffff0000u)"),
            (_, false) => format!("{}({name}.{word} & 0xffffu)", self.library.call("f16_value")),
            (_, true) => format!("{}({name}.{word} >> 16u)", self.library.call("f16_value")),
        });
        Ok(("vec2<u32>".to_string(), parts))
    }

    /// Evaluates instructions at the four points of the quad that begins at the present coordinate of `dim`, and
    /// gives the scope of each point. `given` are values that already exist, as one expression per point.
    pub(super) fn emit_quad(
        &mut self,
        values: &[InstId],
        dim: usize,
        given: &[(InstId, [String; 4])],
    ) -> Result<Vec<Scope>> {
        self.coord(dim)?;
        for (id, parts) in given {
            self.set(*id, parts[0].clone());
        }
        self.hoist(values, 1 << dim)?;
        let mut loads: Vec<(InstId, [String; 4])> = given.to_vec();
        loads.extend(self.load_quads(values, dim)?);
        let mut scopes = self.quad_scopes(dim)?;
        for (c, scope) in scopes.iter_mut().enumerate() {
            std::mem::swap(&mut self.scope, scope);
            for (id, parts) in &loads {
                self.set(*id, parts[c].clone());
            }
            self.emit(values)?;
            std::mem::swap(&mut self.scope, scope);
        }
        Ok(scopes)
    }

    /// The scopes of the four points of the quad that begins at the present coordinate of `dim`.
    pub(super) fn quad_scopes(&mut self, dim: usize) -> Result<Vec<Scope>> {
        let first = self.coord(dim)?;
        let (outer, suffix) = (self.scope.clone(), self.suffix().to_string());
        let mut scopes = Vec::new();
        for c in 0..4 {
            self.scope = outer.clone();
            self.set_suffix(&format!("{suffix}_{c}"));
            if c > 0 {
                self.scope.coords[dim] = Coord::Ready(format!("({first} + {c}u)"));
            }
            scopes.push(std::mem::replace(&mut self.scope, outer.clone()));
        }
        Ok(scopes)
    }

    /// Prints the loads of whole quads that these values need and that have no name yet, each with the expressions of
    /// its four elements.
    pub(super) fn load_quads(&mut self, values: &[InstId], dim: usize) -> Result<Vec<(InstId, [String; 4])>> {
        let mut loads = Vec::new();
        for id in needed(self.kernel, values) {
            let Inst::Load { arg, index, dynamic } = self.kernel.inst(id) else { continue };
            let wide = self.wide.contains(arg) && is_quad_load(self.kernel, &self.dependence, id, dim);
            if !wide || self.has_value(id) {
                continue;
            }
            let at = self.element(index, dynamic)?;
            let name = format!("q{}{}", id.0, self.suffix());
            let (ty, parts) = self.wide_parts(self.kernel.dtype(id), &name)?;
            let vector = format!("{}[({at}) >> 2u]", self.arg(*arg));
            match self.checks(&index.checks)? {
                None => self.line(format!("let {name} = {vector};")),
                Some(guard) => {
                    self.line(format!("var {name}: {ty};"));
                    self.line(format!("if ({guard}) {{ {name} = {vector}; }}"));
                }
            }
            loads.push((id, parts));
        }
        Ok(loads)
    }

    /// Prints the store of a quad, whose values are in these scopes, to a wide argument.
    pub(super) fn store_quad(&mut self, store: usize, scopes: &[Scope]) -> Result<()> {
        let s = &self.kernel.stores[store];
        let at = self.index(&s.index)?;
        let dtype = self.kernel.args[s.arg as usize].dtype;
        let mut x = Vec::new();
        for scope in scopes {
            let outer = std::mem::replace(&mut self.scope, scope.clone());
            x.push(self.value(s.value)?);
            self.scope = outer;
        }
        let vector = if !self.is_packed(dtype) {
            format!("vec4<{}>({})", self.register(dtype)?, x.join(", "))
        } else if dtype == DType::BF16 {
            let word =
                |low: &str, high: &str| format!("(bitcast<u32>({low}) >> 16u) | (bitcast<u32>({high}) & 0xffff0000u)");
            format!("vec2<u32>({}, {})", word(&x[0], &x[1]), word(&x[2], &x[3]))
        } else {
            let bits = self.library.call("f16_bits");
            let word = |low: &str, high: &str| format!("{bits}({low}) | ({bits}({high}) << 16u)");
            format!("vec2<u32>({}, {})", word(&x[0], &x[1]), word(&x[2], &x[3]))
        };
        let a = self.arg(s.arg);
        self.line(format!("{a}[({at}) >> 2u] = {vector};"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idx(offset: i64, terms: Vec<(i64, Atom)>) -> Idx {
        Idx { offset, terms, checks: vec![] }
    }

    #[test]
    fn what_steps_by_one() {
        let dim = Atom::Dim;
        assert!(steps(&idx(8, vec![(12, dim(0)), (1, dim(1))]), 1));
        assert!(!steps(&idx(8, vec![(10, dim(0)), (1, dim(1))]), 1), "rows begin anywhere");
        assert!(!steps(&idx(2, vec![(12, dim(0)), (1, dim(1))]), 1));
        assert!(!steps(&idx(8, vec![(12, dim(0)), (2, dim(1))]), 1));
        assert!(!steps(&idx(8, vec![(12, dim(0))]), 1), "it stays");
        let inner = Box::new(idx(0, vec![(8, dim(0)), (1, dim(1))]));
        assert!(steps(&idx(0, vec![(1, Atom::Mod(inner.clone(), 12)), (40, Atom::Div(inner.clone(), 12))]), 1));
        assert!(!steps(&idx(0, vec![(1, Atom::Mod(inner.clone(), 6)), (40, Atom::Div(inner, 6))]), 1));
    }
}
