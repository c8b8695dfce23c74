//! How a workgroup brings the tile of an operand to workgroup memory: every invocation fetches some quads to registers,
//! and puts them later.

use super::operand::Operand;
use crate::wgsl::writer::Writer;

/// The quads of one operand's tile and who fetches them.
pub(super) struct Fetch {
    pub(super) name: &'static str,
    letter: char,
    /// Depth of the tile.
    pub(super) depth: u32,
    /// Quads of rows or columns.
    pub(super) quads: u32,
    /// Whether a fetched quad lies along the depth.
    pub(super) depth_quads: bool,
    /// Whether neighbouring invocations fetch neighbouring depths.
    along_depth: bool,
    workgroup: u32,
    /// Quads one invocation fetches.
    each: u32,
}

impl Fetch {
    pub(super) fn new(operand: &Operand, depth: u32, quads: u32, workgroup: u32) -> Fetch {
        Fetch {
            name: operand.name,
            letter: operand.letter,
            depth,
            quads,
            depth_quads: operand.depth_quads,
            along_depth: operand.depth_contiguous,
            workgroup,
            each: (depth * quads).div_ceil(workgroup),
        }
    }

    /// Prints where each quad of this invocation is: its depth `k`, and its row or column `x`, within the tile.
    pub(super) fn places(&self, w: &mut Writer) {
        for e in 0..self.each {
            let (name, slot) = (self.name, format!("(lid + {}u)", e * self.workgroup));
            let (depth, quads) = (self.depth, self.quads);
            let (k, x) = if self.depth_quads {
                (format!("{slot} % {}u * 4u", depth / 4), format!("{slot} / {}u", depth / 4))
            } else if self.along_depth {
                (format!("{slot} % {depth}u"), format!("{slot} / {depth}u * 4u"))
            } else {
                (format!("{slot} / {quads}u"), format!("{slot} % {quads}u * 4u"))
            };
            w.line(format!("let {name}_k{e} = {k};"));
            w.line(format!("let {name}_x{e} = {x};"));
        }
    }

    pub(super) fn registers(&self, w: &mut Writer, t: &str) {
        for e in 0..self.each {
            w.line(format!("var {}_next{e} = vec4<{t}>();", self.name));
        }
    }

    /// Fetches this invocation's quads of the tile that begins at depth `from`. Parts are whole tiles deep, so only
    /// the last tile passes the end, where the operands are zero.
    pub(super) fn load(&self, w: &mut Writer, from: &str) {
        let (name, x) = (self.name, self.letter);
        for e in 0..self.each {
            w.line(format!("{name}_next{e} = {name}_quad(z, tile_{x} + {name}_x{e}, {from} + {name}_k{e});"));
        }
    }

    /// Puts the fetched quads: `print(writer, k, x, quad)` prints the store of one.
    pub(super) fn put(&self, w: &mut Writer, print: impl Fn(&mut Writer, &str, &str, &str)) {
        let name = self.name;
        for e in 0..self.each {
            // The last fetches may fall outside the tile for some invocations.
            let ragged = (e + 1) * self.workgroup > self.depth * self.quads;
            if ragged {
                let (at, end) = match (self.depth_quads, self.along_depth) {
                    (false, false) => ("k", self.depth),
                    _ => ("x", self.quads * 4),
                };
                w.open(format!("if ({name}_{at}{e} < {end}u) {{"));
            }
            print(w, &format!("{name}_k{e}"), &format!("{name}_x{e}"), &format!("{name}_next{e}"));
            if ragged {
                w.close();
            }
        }
    }
}
