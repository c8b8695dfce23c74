//! What a program costs: dispatches, floating-point operations, bytes moved, memory. All of it is read off the
//! [`Executable`], so it is what will run and not what was meant.
//!
//! *flops*: 2 per point of a contraction, 1 per float instruction per point of the dims it depends on (a transcendental
//! is 1), 1 per reduced element; attention as if its parts shared one computation of the scores, hidden ones left out. Integer work, comparisons, selections and conversions are free.
//!
//! *collectives*: per kind and mesh axes how many, in how many meetings, and the bytes that a device moves, beside what the
//! ring algorithm would send.
//!
//! *bytes*: what must cross the memory bus if every kernel reads each element it can reach once and writes each result
//! once. A broadcast operand counts its own size, a gathered table at most the elements gathered.

use crate::exec::{BufRef, Executable, Step, group};
use crate::kernel::{Access, Inst, Kernel};
use dnx_ir::{BinaryOp, UnaryOp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Costs of one run of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Elements of the model's parameters.
    pub parameters: u64,
    /// Of those, the ones that are trained.
    pub parameters_trainable: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Kernel launches: dispatching steps times the shader stages of their kernel. A `Multi` step counts as one
    /// launch; a GPU may need several for its segments.
    pub dispatches: u64,
    /// Unique kernels.
    pub kernels: u64,
    /// Greatest number of bytes alive at once.
    pub peak_bytes: u64,
    /// The same per kernel, the most work first; all dispatches of a kernel together. Copies and collectives have
    /// a row each.
    pub per_kernel: Vec<KernelStats>,
    /// What devices exchange, per kind and mesh axes, in order of both. Empty for programs of one device.
    #[serde(default)]
    pub collectives: Vec<CollectiveStats>,
}

/// All collectives of one kind along the same mesh axes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectiveStats {
    /// Mesh axes, joined by `+`.
    pub axes: String,
    /// Name of the op.
    pub kind: String,
    /// Devices of a group.
    pub devices: u64,
    /// Values exchanged.
    pub count: u64,
    /// Meetings in which they are.
    pub steps: u64,
    /// Bytes that one device hands over and takes back, per run: its operands and its results.
    pub bytes: u64,
    /// Bytes one device would send over its link per run in the ring algorithm; see
    /// [`crate::exec::Collective::ring_bytes`].
    pub ring_bytes: u64,
}

/// Costs of all dispatches of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStats {
    /// Model path of the first place that uses it.
    pub name: String,
    /// Kernel kind, or `copy` or `collective`.
    pub kind: String,
    /// Steps that run it.
    pub count: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

impl KernelStats {
    /// Floating-point operations per byte.
    pub fn intensity(&self) -> f64 {
        intensity(self.flops, self.bytes)
    }
}

impl Stats {
    /// The costs of a program whose model has `parameters` elements, `trainable` of them trained.
    pub fn of(exec: &Executable, parameters: u64, trainable: u64) -> Stats {
        let row =
            |name: &str, kind: &str| KernelStats { name: name.into(), kind: kind.into(), count: 0, flops: 0, bytes: 0 };
        let mut rows: Vec<KernelStats> = exec.kernels.iter().map(|k| row(&k.name, k.kernel.kind.name())).collect();
        let (mut copies, mut collectives) = (row("copy", "copy"), row("collective", "collective"));
        let mut dispatches = 0;
        for step in &exec.steps {
            let cost = StepCost::of(exec, step);
            let row = match (cost.kernel, step) {
                (Some(k), _) => {
                    dispatches += exec.kernels[k as usize].shaders.len().max(1) as u64;
                    &mut rows[k as usize]
                }
                (None, Step::Collective { .. }) => &mut collectives,
                (None, _) => &mut copies,
            };
            row.add(cost.flops, cost.bytes);
        }
        rows.extend([copies, collectives]);
        rows.retain(|r| r.count > 0);
        rows.sort_by(|a, b| (b.flops, b.bytes, &a.name).cmp(&(a.flops, a.bytes, &b.name)));
        Stats {
            parameters,
            parameters_trainable: trainable,
            flops: rows.iter().map(|r| r.flops).sum(),
            bytes: rows.iter().map(|r| r.bytes).sum(),
            dispatches,
            kernels: exec.kernels.len() as u64,
            peak_bytes: exec.peak_bytes,
            per_kernel: rows,
            collectives: collectives_of(exec),
        }
    }

    /// One JSON object.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings")
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{:<10} {:>6} {:>10} {:>10} {:>8}  name", "kind", "count", "flops", "bytes", "flop/B");
        for r in &self.per_kernel {
            let (f, b) = (si(r.flops), si(r.bytes));
            let _ = writeln!(out, "{:<10} {:>6} {f:>10} {b:>10} {:>8.2}  {}", r.kind, r.count, r.intensity(), r.name);
        }
        let (f, b) = (si(self.flops), si(self.bytes));
        let ratio = intensity(self.flops, self.bytes);
        let _ = writeln!(out, "{:<10} {:>6} {f:>10} {b:>10} {ratio:>8.2}", "total", self.dispatches);
        for c in &self.collectives {
            let (bytes, ring) = (si(c.bytes), si(c.ring_bytes));
            let _ = writeln!(
                out,
                "{} along {} of {} devices: {} in {} meetings, {bytes}B per device and step (ring: {ring}B)",
                c.kind, c.axes, c.devices, c.count, c.steps
            );
        }
        let _ = writeln!(
            out,
            "{} dispatches of {} kernels, peak memory {}B, {} parameters ({} trained)",
            self.dispatches,
            self.kernels,
            si(self.peak_bytes),
            self.parameters,
            self.parameters_trainable
        );
        out
    }
}

/// What one step of an executable is and costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepCost {
    /// Model path, `copy`, or what is exchanged.
    pub name: String,
    /// Kernel kind, or `copy` or `collective`.
    pub kind: &'static str,
    /// Index of its kernel.
    pub kernel: Option<u32>,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

impl StepCost {
    /// The cost of a step of this executable.
    pub fn of(exec: &Executable, step: &Step) -> StepCost {
        let moved = |kind: &'static str, bytes| StepCost { name: kind.into(), kind, kernel: None, flops: 0, bytes };
        let (kernel, loc, segments) = match step {
            Step::Dispatch { kernel, loc, .. } => (*kernel, loc, vec![0]),
            Step::Multi { kernel, segments, loc } => (*kernel, loc, segments.iter().map(|(n, _)| *n).collect()),
            Step::Copy { src, .. } => return moved("copy", 2 * length(exec, src)),
            Step::Collective { parts, loc } => {
                let bytes = parts.iter().map(|p| length(exec, &p.src) + length(exec, &p.dst)).sum();
                let name = match parts.len() {
                    1 => format!("{} {loc}", parts[0].op.name()),
                    n => format!("{} of {n} {loc}..", parts[0].op.name()),
                };
                return StepCost { name, ..moved("collective", bytes) };
            }
        };
        let body = &exec.kernels[kernel as usize].kernel;
        StepCost {
            name: loc.to_string(),
            kind: body.kind.name(),
            kernel: Some(kernel),
            flops: segments.iter().map(|&n| flops(body, n)).sum(),
            bytes: segments.iter().map(|&n| bytes(body, n)).sum(),
        }
    }
}

/// A row per kind and axes.
fn collectives_of(exec: &Executable) -> Vec<CollectiveStats> {
    let mut rows: BTreeMap<(String, &str), CollectiveStats> = BTreeMap::new();
    for step in &exec.steps {
        let Step::Collective { parts, .. } = step else { continue };
        for (i, part) in parts.iter().enumerate() {
            let (axes, kind) = (part.op.axes().join("+"), part.op.name());
            let devices = group(&exec.mesh, part.op.axes(), 0).len() as u64;
            let row = rows.entry((axes.clone(), kind)).or_insert_with(|| CollectiveStats {
                axes,
                kind: kind.to_string(),
                devices,
                count: 0,
                steps: 0,
                bytes: 0,
                ring_bytes: 0,
            });
            row.count += 1;
            row.steps += u64::from(i == 0);
            row.bytes += length(exec, &part.src) + length(exec, &part.dst);
            row.ring_bytes += part.op.ring_bytes(length(exec, &part.src), devices);
        }
    }
    rows.into_values().collect()
}

impl KernelStats {
    fn add(&mut self, flops: u64, bytes: u64) {
        self.count += 1;
        self.flops += flops;
        self.bytes += bytes;
    }
}

fn intensity(flops: u64, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { flops as f64 / bytes as f64 }
}

/// `1.23M`: four significant places and a decimal prefix.
fn si(n: u64) -> String {
    let (mut x, mut prefix) = (n as f64, "");
    for p in ["k", "M", "G", "T", "P"] {
        if x < 1000.0 {
            break;
        }
        (x, prefix) = (x / 1000.0, p);
    }
    if prefix.is_empty() { n.to_string() } else { format!("{x:.2}{prefix}") }
}

fn length(exec: &Executable, range: &BufRef) -> u64 {
    match range {
        BufRef::Input(i) => exec.inputs[*i as usize].ty.device_bytes() as u64,
        BufRef::Output(i) => exec.outputs[*i as usize].ty.device_bytes() as u64,
        BufRef::Constant(i) => exec.constants[*i as usize].len() as u64,
        BufRef::Axis(_) => 4,
        BufRef::Slab { bytes, .. } => *bytes,
    }
}

/// The points of the dims in a mask; in a `Multi` kernel its dim stands for a segment of `segment` elements.
fn points(kernel: &Kernel, mask: u64, segment: u64) -> u64 {
    let size = |n: usize| if kernel.kind == crate::kernel::Kind::Multi { segment } else { n as u64 };
    kernel.dims.iter().enumerate().filter(|(d, _)| mask >> d & 1 == 1).map(|(_, dim)| size(dim.size)).product()
}

/// Floating-point operations of one dispatch; `segment` is the length of a `Multi` kernel's segment.
pub fn flops(kernel: &Kernel, segment: u64) -> u64 {
    let masks = kernel.dependence();
    let reduce = masks_of(kernel, |r| r == crate::kernel::Role::Reduce);
    let mut total = 0;
    for (i, inst) in kernel.insts.iter().enumerate() {
        if !kernel.dtypes[i].is_float() {
            continue;
        }
        total += match inst {
            Inst::Dot { lhs, rhs } => 2 * points(kernel, masks[lhs.index()] | masks[rhs.index()] | reduce, segment),
            Inst::Attention(a) => a.flops(kernel),
            Inst::Reduce(_, x) => points(kernel, masks[x.index()] | reduce, segment),
            Inst::Unary(op, _) if counts_unary(*op) => points(kernel, masks[i], segment),
            Inst::Binary(op, ..) if counts_binary(*op) => points(kernel, masks[i], segment),
            Inst::Unary(..) | Inst::Binary(..) => 0,
            Inst::Const(_) | Inst::Load { .. } | Inst::Index(..) | Inst::Valid(_) | Inst::Compare(..) => 0,
            Inst::Select(..) | Inst::Convert(..) | Inst::Bitcast(..) | Inst::Threefry { .. } | Inst::Argmax(_) => 0,
        };
    }
    match &kernel.scatter {
        Some(s) if kernel.dtype(s.update).is_float() => total + points(kernel, u64::MAX, segment),
        _ => total,
    }
}

fn masks_of(kernel: &Kernel, wanted: impl Fn(crate::kernel::Role) -> bool) -> u64 {
    kernel.dims.iter().enumerate().filter(|(_, d)| wanted(d.role)).fold(0, |m, (i, _)| m | 1 << i)
}

fn counts_unary(op: UnaryOp) -> bool {
    use UnaryOp::*;
    match op {
        Neg | Exp | Log | Sin | Cos | Tanh | Erf | Sqrt | Rsqrt | Abs | Sign | Floor => true,
        Not | IsFinite | StopGradient => false,
    }
}

fn counts_binary(op: BinaryOp) -> bool {
    use BinaryOp::*;
    match op {
        Add | Sub | Mul | Div | Pow | Max | Min | Rem => true,
        And | Or | Xor | Shl | Shr => false,
    }
}

/// Bytes one dispatch reads and writes; `segment` is the length of a `Multi` kernel's segment.
pub fn bytes(kernel: &Kernel, segment: u64) -> u64 {
    let masks = kernel.dependence();
    let mut total = 0;
    for (a, arg) in kernel.args.iter().enumerate() {
        let whole = if arg.elems == 0 { segment } else { arg.elems as u64 };
        let mut elems = 0;
        if arg.access != Access::Write {
            let mut loads: Vec<(&Inst, u64)> = vec![];
            for (inst, &mask) in kernel.insts.iter().zip(&masks) {
                if matches!(inst, Inst::Load { arg, .. } if *arg == a as u32) && !loads.iter().any(|(i, _)| *i == inst)
                {
                    loads.push((inst, points(kernel, mask, segment)));
                }
            }
            let reached: u64 = loads.iter().map(|(_, n)| n).sum();
            let base = kernel.scatter.as_ref().and_then(|s| s.base) == Some(a as u32);
            elems += if base { whole } else { reached.min(whole) };
        }
        if arg.access != Access::Read {
            elems += whole;
        }
        total += elems * arg.dtype.device_size() as u64;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Target, compile};
    use dnx_ir::{DType, Graph, Type};

    fn stats(build: impl for<'g> Fn(&'g Graph) -> Vec<dnx_ir::Tensor<'g>>) -> Stats {
        let g = Graph::new("f");
        let results = build(&g);
        let f = g.finish(&results).unwrap();
        Stats::of(&compile(&f, &Options::new(Target::Cpu)).unwrap().exec, 12, 10)
    }

    #[test]
    fn a_contraction_costs_two_per_point_and_its_operands_once() {
        let s = stats(|g| {
            let (x, w) = (g.param("x", Type::f32([32, 64])), g.param("w", Type::f32([64, 48])));
            vec![x.matmul(w)]
        });
        assert_eq!(s.flops, 2 * 32 * 64 * 48);
        assert_eq!(s.bytes, 4 * (32 * 64 + 64 * 48 + 32 * 48));
        assert_eq!((s.dispatches, s.kernels), (1, 1));
        assert_eq!(s.per_kernel[0].kind, "contract");
        assert_eq!(s.peak_bytes, s.bytes);
    }

    #[test]
    fn broadcast_operands_count_their_own_size_and_slices_what_they_reach() {
        let s = stats(|g| {
            let (x, b) = (g.param("x", Type::f32([32, 64])), g.param("b", Type::f32([64])));
            vec![(x + b).exp()]
        });
        assert_eq!(s.flops, 2 * 32 * 64);
        assert_eq!(s.bytes, 4 * (2 * 32 * 64 + 64));

        let s = stats(|g| vec![g.param("x", Type::f32([32, 64])).slice(1, 0, 16).exp()]);
        assert_eq!(s.bytes, 4 * 2 * 32 * 16);

        let s = stats(|g| {
            let (t, i) = (g.param("t", Type::f32([1000, 8])), g.param("i", Type::new(DType::I32, [5])));
            vec![t.take(i)]
        });
        assert_eq!(s.bytes, 4 * (5 * 8 + 5 + 5 * 8));
        assert_eq!(s.flops, 0);
    }

    #[test]
    fn a_row_reduction_counts_each_element_once() {
        let s = stats(|g| vec![g.param("x", Type::f32([32, 64])).sum(&[1])]);
        assert_eq!(s.flops, 32 * 64);
        assert_eq!(s.bytes, 4 * (32 * 64 + 32));
    }

    #[test]
    fn totals_are_sums_and_json_has_the_agreed_names() {
        let s = stats(|g| {
            let x = g.param("x", Type::f32([32, 64]));
            vec![x.exp().sum(&[0]), x.transpose(&[1, 0])]
        });
        assert_eq!(s.flops, s.per_kernel.iter().map(|r| r.flops).sum::<u64>());
        assert_eq!(s.bytes, s.per_kernel.iter().map(|r| r.bytes).sum::<u64>());
        let json: serde_json::Value = serde_json::from_str(&s.json()).unwrap();
        let names = ["parameters", "parameters_trainable", "flops", "bytes", "dispatches", "kernels", "peak_bytes"];
        assert!(names.iter().all(|n| json[n].is_u64()), "{json}");
        let row = &json["per_kernel"][0];
        assert!(row["name"].is_string() && row["kind"].is_string() && row["count"].is_u64());
        assert!(row["flops"].is_u64() && row["bytes"].is_u64());
        assert_eq!(s.table().lines().count(), s.per_kernel.len() + 3);
    }

    #[test]
    fn numbers_have_prefixes() {
        assert_eq!([si(0), si(999), si(1000), si(1_234_567)], ["0", "999", "1.00k", "1.23M"]);
    }
}
