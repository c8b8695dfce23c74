//! Index expressions as WGSL: `u32` arithmetic, which wraps, so that negative intermediate sums do no harm.
//! Divisions of what may be negative (only ever in indices whose checks fail) round down explicitly.

use super::writer::Writer;
use crate::Result;
use crate::kernel::{Atom, Check, DynTerm, Idx, InstId, Kind};
use dnx_ir::DType;

impl Writer<'_> {
    /// The value of an index, checks aside, as a `u32` expression.
    pub(super) fn index(&mut self, index: &Idx) -> Result<String> {
        let mut terms: Vec<(i64, String)> = Vec::new();
        let mut rest: &[(i64, Atom)] = &index.terms;
        let shortened;
        if let Some((factor, others)) = self.linear_part(index) {
            if let Some(name) = self.scope.linear.clone() {
                terms.push((factor, name));
            }
            shortened = others;
            rest = &shortened;
        }
        for (coefficient, atom) in rest {
            let text = self.atom(atom)?;
            if text != "0u" {
                terms.push((*coefficient, text));
            }
        }
        let mut out = String::new();
        let all_negative = terms.iter().all(|(c, _)| *c < 0);
        if all_negative {
            out = format!("{}u", index.offset as u32);
        }
        // A positive term first, so that none needs a sign.
        terms.sort_by_key(|(c, _)| *c < 0);
        for (c, text) in &terms {
            let product = match c.unsigned_abs() {
                1 => text.clone(),
                n => format!("{text} * {}u", n as u32),
            };
            if out.is_empty() {
                out = product;
            } else {
                out = format!("{out} {} {product}", if *c < 0 { '-' } else { '+' });
            }
        }
        if !all_negative && index.offset != 0 {
            let sign = if index.offset < 0 { '-' } else { '+' };
            out = format!("{out} {sign} {}u", index.offset.unsigned_abs() as u32);
        }
        Ok(out)
    }

    /// If the index contains a multiple of the row-major index over the whole space, the factor and what remains.
    fn linear_part(&self, index: &Idx) -> Option<(i64, Vec<(i64, Atom)>)> {
        self.scope.linear.as_ref()?;
        let wide: Vec<usize> = (0..self.kernel.dims.len()).filter(|&d| self.kernel.dims[d].size != 1).collect();
        let factor = index.coef(*wide.last()?);
        let mut stride = 1i64;
        for &d in wide.iter().rev() {
            if factor <= 0 || index.coef(d) != factor * stride {
                return None;
            }
            stride *= self.kernel.dims[d].size as i64;
        }
        let others = index.terms.iter().filter(|(_, a)| !matches!(a, Atom::Dim(_))).cloned().collect();
        Some((factor, others))
    }

    fn atom(&mut self, atom: &Atom) -> Result<String> {
        let (inner, n, divide) = match atom {
            Atom::Dim(d) => return self.coord(*d as usize),
            Atom::Div(inner, n) => (inner, *n, true),
            Atom::Mod(inner, n) => (inner, *n, false),
        };
        let (low, high) = self.range(inner);
        if low >= 0 && high < n {
            return if divide { Ok("0u".to_string()) } else { Ok(format!("({})", self.index(inner)?)) };
        }
        let text = self.index(inner)?;
        Ok(match (low >= 0, divide) {
            (true, true) => format!("(({text}) / {n}u)"),
            (true, false) => format!("(({text}) % {n}u)"),
            (false, true) => format!("{}(i32({text}), {n}i)", self.library.call("floor_div")),
            (false, false) => format!("{}(i32({text}), {n}i)", self.library.call("floor_mod")),
        })
    }

    /// Least and greatest value of an index over the iteration space.
    pub(super) fn range(&self, index: &Idx) -> (i64, i64) {
        index.terms.iter().fold((index.offset, index.offset), |(low, high), (c, atom)| {
            let (l, h) = match atom {
                Atom::Dim(_) if self.kernel.kind == Kind::Multi => (0, u32::MAX as i64),
                Atom::Dim(d) => (0, self.kernel.dims[*d as usize].size as i64 - 1),
                Atom::Div(inner, n) => {
                    let (l, h) = self.range(inner);
                    (l.div_euclid(*n), h.div_euclid(*n))
                }
                Atom::Mod(inner, n) => {
                    let (l, h) = self.range(inner);
                    if l.div_euclid(*n) == h.div_euclid(*n) { (l.rem_euclid(*n), h.rem_euclid(*n)) } else { (0, n - 1) }
                }
            };
            if *c >= 0 { (low + c * l, high + c * h) } else { (low + c * h, high + c * l) }
        })
    }

    /// The conjunction of checks as a `bool` expression; `None` if they always hold.
    pub(super) fn checks(&mut self, checks: &[Check]) -> Result<Option<String>> {
        let mut parts = Vec::new();
        for check in checks {
            let (low, high) = self.range(&check.index);
            let inside = low >= check.lo && high < check.hi;
            if inside && check.multiple <= 1 {
                continue;
            }
            if check.hi <= check.lo {
                return Ok(Some("false".to_string()));
            }
            let mut from_low = check.index.clone();
            from_low.offset -= check.lo;
            let text = self.index(&from_low)?;
            // One unsigned comparison: what lies below `lo` wraps to something large.
            if !inside {
                parts.push(format!("({text}) < {}u", (check.hi - check.lo) as u32));
            }
            if check.multiple > 1 {
                parts.push(format!("({text}) % {}u == 0u", check.multiple));
            }
        }
        Ok(if parts.is_empty() { None } else { Some(parts.join(" && ")) })
    }

    /// Prints a load: guarded where the element may not exist, clamped where the index is a run-time value.
    pub(super) fn load_instruction(&mut self, id: InstId, arg: u32, index: &Idx, dynamic: &[DynTerm]) -> Result<()> {
        let mut at = self.element(index, dynamic)?;
        if self.kernel.kind == Kind::Multi {
            at = format!("offset_a{arg} + {at}");
        }
        let guard = self.checks(&index.checks)?;
        let simple = at.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !simple && self.wants_named_index(arg) {
            let name = self.index_name(id);
            self.line(format!("let {name} = {at};"));
            at = name;
        }
        let element = self.load(arg, &at)?;
        let Some(guard) = guard else {
            return self.bind(id, &element);
        };
        let name = self.value_name(id);
        let ty = self.register(self.kernel.dtype(id))?;
        self.line(format!("var {name}: {ty};"));
        self.line(format!("if ({guard}) {{ {name} = {element}; }}"));
        self.set(id, name);
        Ok(())
    }

    /// An index with its run-time parts, which must have names.
    pub(super) fn element(&mut self, index: &Idx, dynamic: &[DynTerm]) -> Result<String> {
        let mut at = self.index(index)?;
        for term in dynamic {
            let value = self.value(term.value)?;
            let (value, limit) = (value, term.limit.max(0));
            let clamped = match self.kernel.dtype(term.value) {
                DType::U32 => format!("min({value}, {limit}u)"),
                DType::Bool => format!("min(u32({value}), {limit}u)"),
                _ => format!("u32(clamp({value}, 0i, {}i))", limit.min(i32::MAX as i64)),
            };
            let product = if term.stride == 1 { clamped } else { format!("{clamped} * {}u", term.stride as u32) };
            at = if at == "0u" { product } else { format!("{at} + {product}") };
        }
        Ok(at)
    }
}
