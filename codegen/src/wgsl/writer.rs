//! What all writers share: names, coordinates, memory access and the text of one shader.
//!
//! A writer keeps a *scope*: which instructions already have a name, and which coordinates. [`Writer::emit`]
//! prints, in order, the instructions that its roots need and that have no name yet, each as one `let`. A writer
//! that opens a WGSL block saves the scope before and restores it after ([`Writer::open`], [`Writer::close`]).
//!
//! In registers `bf16` is an `f32` that is already rounded, and so is `f16` where shaders have none. In memory both
//! take half a word; a half word is stored by two atomics on its word, which no other invocation's half notices.

use super::library::Library;
use crate::exec::Shader;
use crate::kernel::{Access, Inst, InstId, Kernel, Kind, Role};
use crate::{CompileError, GpuLimits, Result, Stage};
use dnx_ir::DType;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Largest number of workgroups a writer puts along x before it begins a second row.
const GRID_X: u64 = 65_535;

/// A coordinate of the iteration space.
#[derive(Clone, Debug)]
pub(super) enum Coord {
    /// An expression that costs nothing: a name or a literal.
    Ready(String),
    /// Decoded by a `let` where it is first wanted.
    Lazy(String),
    /// Not in scope.
    Absent,
}

/// What has a name at this point of the text.
#[derive(Clone, Default)]
pub(super) struct Scope {
    /// Per instruction, the expression that stands for it.
    values: Vec<Option<String>>,
    /// Per dim.
    pub(super) coords: Vec<Coord>,
    /// The row-major index over all dims, where there is a name for it.
    pub(super) linear: Option<String>,
    /// Appended to names, so that unrolled copies differ.
    suffix: String,
}

impl Scope {
    /// Takes over the names of these instructions from another scope.
    pub(super) fn adopt(&mut self, other: &Scope, ids: &[InstId]) {
        for id in ids {
            self.values[id.index()] = other.values[id.index()].clone();
        }
    }

    /// Takes over every name this scope lacks.
    pub(super) fn adopt_all(&mut self, other: &Scope) {
        for (mine, theirs) in self.values.iter_mut().zip(&other.values) {
            if mine.is_none() {
                mine.clone_from(theirs);
            }
        }
    }
}

/// The text of one shader under construction.
pub(super) struct Writer<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) limits: &'a GpuLimits,
    pub(super) scope: Scope,
    /// Dims each instruction depends on.
    pub(super) dependence: Vec<u64>,
    pub(super) library: Library,
    /// Constants that WGSL has no literal for, by their bits.
    bits: BTreeSet<u32>,
    args: BTreeSet<u32>,
    /// Arguments declared as arrays of vectors; see [`super::quad`].
    pub(super) wide: BTreeSet<u32>,
    scratch: bool,
    f16: bool,
    matrices: bool,
    declarations: String,
    text: String,
    indent: usize,
    saved: Vec<Scope>,
}

/// The refusal of a kernel.
pub(super) fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(CompileError::unsupported(Stage::Wgsl, what, ""))
}

impl<'a> Writer<'a> {
    pub(super) fn new(kernel: &'a Kernel, limits: &'a GpuLimits) -> Writer<'a> {
        let scope = empty_scope(kernel);
        Writer {
            kernel,
            limits,
            scope,
            dependence: kernel.dependence(),
            library: Library::default(),
            bits: BTreeSet::new(),
            args: BTreeSet::new(),
            wide: BTreeSet::new(),
            scratch: false,
            f16: false,
            matrices: false,
            declarations: String::new(),
            text: String::new(),
            indent: 0,
            saved: Vec::new(),
        }
    }

    // ---- text ----

    /// One line at the current indentation.
    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        for _ in 0..self.indent {
            self.text.push_str("    ");
        }
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// A line that opens a block; what is named inside is forgotten by [`Writer::close`].
    pub(super) fn open(&mut self, line: impl AsRef<str>) {
        self.line(line);
        self.indent += 1;
        self.saved.push(self.scope.clone());
    }

    /// Ends the block begun by the last [`Writer::open`].
    pub(super) fn close(&mut self) {
        self.indent -= 1;
        if let Some(scope) = self.saved.pop() {
            self.scope = scope;
        }
        self.line("}");
    }

    /// A line of module scope, before all functions.
    pub(super) fn declare(&mut self, line: impl AsRef<str>) {
        self.declarations.push_str(line.as_ref());
        self.declarations.push('\n');
    }

    /// Begins a copy of the scope in which names end in `suffix`.
    pub(super) fn set_suffix(&mut self, suffix: &str) {
        self.scope.suffix = suffix.to_string();
    }

    /// What names end in.
    pub(super) fn suffix(&self) -> &str {
        &self.scope.suffix
    }

    /// Forgets every value and coordinate: the beginning of a function.
    pub(super) fn fresh_scope(&mut self) {
        self.scope = empty_scope(self.kernel);
    }

    // ---- values ----

    /// Names the value of an instruction.
    pub(super) fn set(&mut self, id: InstId, expression: impl Into<String>) {
        self.scope.values[id.index()] = Some(expression.into());
    }

    /// The expression of an instruction that was emitted.
    pub(super) fn value(&self, id: InstId) -> Result<String> {
        match &self.scope.values[id.index()] {
            Some(v) => Ok(v.clone()),
            None => refuse(format!("instruction %{} is used where it has no value: ill-formed kernel", id.0)),
        }
    }

    /// Whether an instruction has a name.
    pub(super) fn has_value(&self, id: InstId) -> bool {
        self.scope.values[id.index()].is_some()
    }

    /// Prints what is needed for these instructions and has no name yet.
    pub(super) fn emit(&mut self, roots: &[InstId]) -> Result<()> {
        let mut needed = vec![false; self.kernel.insts.len()];
        let mut stack: Vec<InstId> = roots.to_vec();
        while let Some(id) = stack.pop() {
            if !needed[id.index()] && self.scope.values[id.index()].is_none() {
                needed[id.index()] = true;
                stack.extend(self.kernel.inst(id).operands());
            }
        }
        for i in (0..needed.len()).filter(|&i| needed[i]) {
            let id = InstId(i as u32);
            if self.kernel.inst(id).is_reduction() {
                return refuse(format!("reduction %{i} is used before it is complete"));
            }
            self.instruction(id)?;
        }
        Ok(())
    }

    /// Among what these instructions need, prints what does not depend on the dims of `mask`: hoists it out of a
    /// loop over them.
    pub(super) fn hoist(&mut self, roots: &[InstId], mask: u64) -> Result<()> {
        let mut seen = vec![false; self.kernel.insts.len()];
        let mut stack: Vec<InstId> = roots.to_vec();
        let mut free = Vec::new();
        while let Some(id) = stack.pop() {
            if seen[id.index()] || self.scope.values[id.index()].is_some() {
                continue;
            }
            seen[id.index()] = true;
            let inst = self.kernel.inst(id);
            if self.dependence[id.index()] & mask == 0 && !self.needs_pending_reduction(id) {
                free.push(id);
            } else {
                stack.extend(inst.operands());
            }
        }
        self.emit(&free)
    }

    /// Whether a reduction without a value stands between this instruction and its inputs.
    fn needs_pending_reduction(&self, id: InstId) -> bool {
        let mut stack = vec![id];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if !seen.insert(id) || self.scope.values[id.index()].is_some() {
                continue;
            }
            if self.kernel.inst(id).is_reduction() {
                return true;
            }
            stack.extend(self.kernel.inst(id).operands());
        }
        false
    }

    /// `let <name>: <type> = <expression>`, and the name stands for the instruction.
    pub(super) fn bind(&mut self, id: InstId, expression: &str) -> Result<()> {
        let name = format!("v{}{}", id.0, self.scope.suffix);
        let ty = self.register(self.kernel.dtype(id))?;
        self.line(format!("let {name}: {ty} = {expression};"));
        self.set(id, name);
        Ok(())
    }

    /// Whether the shader computes `f16` natively.
    pub(super) fn native_f16(&self) -> bool {
        self.limits.f16
    }

    /// The WGSL type of a value of this dtype.
    pub(super) fn register(&mut self, dtype: DType) -> Result<&'static str> {
        Ok(match dtype {
            DType::F32 | DType::BF16 => "f32",
            DType::F16 if self.limits.f16 => {
                self.f16 = true;
                "f16"
            }
            DType::F16 => "f32",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::Bool => "bool",
            DType::F64 => return refuse("f64 does not exist on GPUs; convert to f32 first"),
        })
    }

    /// The type in which values of this dtype are accumulated.
    pub(super) fn accumulator(&self, dtype: DType) -> Result<&'static str> {
        Ok(match dtype {
            DType::F32 | DType::F16 | DType::BF16 => "f32",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::Bool | DType::F64 => return refuse(format!("{dtype} can't be reduced on a GPU")),
        })
    }

    /// A register value as its accumulator type.
    pub(super) fn widened(&self, dtype: DType, value: &str) -> String {
        if dtype == DType::F16 && self.limits.f16 { format!("f32({value})") } else { value.to_string() }
    }

    /// An `f32` expression rounded to the register form of a float dtype; other dtypes pass.
    pub(super) fn rounded(&mut self, dtype: DType, value: &str) -> String {
        match dtype {
            DType::F16 if self.limits.f16 => format!("f16({value})"),
            DType::F16 => format!("{}({value})", self.library.call("f16_round")),
            DType::BF16 => format!("{}({value})", self.library.call("bf16_round")),
            DType::F32 | DType::F64 | DType::I32 | DType::U32 | DType::Bool => value.to_string(),
        }
    }

    /// `f32` constant of these bits, whatever they are.
    pub(super) fn f32_bits(&mut self, bits: u32) -> String {
        let x = f32::from_bits(bits);
        if x.is_normal() || bits == 0 {
            return format!("{x:?}f");
        }
        // No literal: infinities, NaNs, subnormals, and -0 (which some front ends fold to 0).
        self.bits.insert(bits);
        format!("bitcast<f32>(bits_{bits:08x})")
    }

    /// The least value of an accumulator type.
    pub(super) fn lowest(&mut self, accumulator: &str) -> String {
        match accumulator {
            "i32" => "bitcast<i32>(0x80000000u)".to_string(),
            "u32" => "0u".to_string(),
            _ => self.f32_bits(f32::NEG_INFINITY.to_bits()),
        }
    }

    // ---- coordinates ----

    /// The dims of a role, in order.
    pub(super) fn dims_of(&self, role: Role) -> Vec<usize> {
        (0..self.kernel.dims.len()).filter(|&d| self.kernel.dims[d].role == role).collect()
    }

    /// Lets these dims be decoded, row-major, from a `u32` expression.
    pub(super) fn decode(&mut self, dims: &[usize], linear: &str) {
        let size = |d: usize| self.kernel.dims[d].size.max(1);
        let outermost = dims.iter().copied().find(|&d| size(d) > 1);
        let mut stride = 1usize;
        for &d in dims.iter().rev() {
            let n = size(d);
            let quotient = if stride == 1 { linear.to_string() } else { format!("{linear} / {stride}u") };
            self.scope.coords[d] = if n == 1 {
                Coord::Ready("0u".to_string())
            } else if Some(d) != outermost {
                Coord::Lazy(format!("{quotient} % {n}u"))
            } else if stride == 1 {
                Coord::Ready(quotient)
            } else {
                Coord::Lazy(quotient)
            };
            stride *= n;
        }
    }

    /// The name of a coordinate.
    pub(super) fn coord(&mut self, d: usize) -> Result<String> {
        match self.scope.coords[d].clone() {
            Coord::Ready(name) => Ok(name),
            Coord::Lazy(expression) => {
                let name = format!("c{d}{}", self.scope.suffix);
                self.line(format!("let {name} = {expression};"));
                self.scope.coords[d] = Coord::Ready(name.clone());
                Ok(name)
            }
            Coord::Absent => refuse(format!("an index uses dim {d} where it has no coordinate: ill-formed kernel")),
        }
    }

    // ---- memory ----

    /// Notes the use of an argument and gives its variable.
    pub(super) fn arg(&mut self, arg: u32) -> String {
        self.args.insert(arg);
        format!("a{arg}")
    }

    /// Notes the use of the scratch buffer (in `Multi` kernels: the segment table).
    pub(super) fn use_scratch(&mut self) {
        self.scratch = true;
    }

    /// Whether an argument is an array of half words packed in `u32`.
    fn packed(&self, arg: u32) -> bool {
        self.is_packed(self.kernel.args[arg as usize].dtype)
    }

    /// Whether elements of this dtype are half words packed in `u32`.
    pub(super) fn is_packed(&self, dtype: DType) -> bool {
        match dtype {
            DType::BF16 => true,
            DType::F16 => !self.limits.f16,
            DType::F32 | DType::I32 | DType::U32 | DType::Bool | DType::F64 => false,
        }
    }

    /// Whether the index of a load of the argument is used more than once, so that it must be a name or a literal.
    pub(super) fn wants_named_index(&self, arg: u32) -> bool {
        self.packed(arg) || self.wide.contains(&arg)
    }

    /// The element of an argument at an index; see [`Writer::wants_named_index`].
    pub(super) fn load(&mut self, arg: u32, index: &str) -> Result<String> {
        let a = self.arg(arg);
        let dtype = self.kernel.args[arg as usize].dtype;
        self.register(dtype)?;
        if !self.packed(arg) {
            return Ok(match dtype {
                DType::Bool => format!("({a}[{index}] != 0u)"),
                _ if self.wide.contains(&arg) => format!("{a}[{index} >> 2u][{index} & 3u]"),
                _ => format!("{a}[{index}]"),
            });
        }
        let word = match self.kernel.args[arg as usize].access {
            _ if self.wide.contains(&arg) => format!("{a}[{index} >> 2u][({index} >> 1u) & 1u]"),
            Access::Read => format!("{a}[{index} >> 1u]"),
            Access::Write | Access::ReadWrite => format!("atomicLoad(&{a}[{index} >> 1u])"),
        };
        let half = format!("({word} >> (({index} & 1u) * 16u))");
        Ok(match dtype {
            DType::BF16 => format!("bitcast<f32>({half} << 16u)"),
            _ => format!("{}({half} & 0xffffu)", self.library.call("f16_value")),
        })
    }

    /// Prints the store of a register value.
    pub(super) fn store(&mut self, arg: u32, index: &str, value: &str) -> Result<()> {
        let a = self.arg(arg);
        let dtype = self.kernel.args[arg as usize].dtype;
        self.register(dtype)?;
        if !self.packed(arg) {
            let value = if dtype == DType::Bool { format!("select(0u, 1u, {value})") } else { value.to_string() };
            self.line(format!("{a}[{index}] = {value};"));
            return Ok(());
        }
        let bits = match dtype {
            DType::BF16 => format!("bitcast<u32>({value}) >> 16u"),
            _ => format!("{}({value})", self.library.call("f16_bits")),
        };
        self.open("{");
        self.line(format!("let at = {index};"));
        self.line("let shift = (at & 1u) * 16u;");
        self.line(format!("atomicAnd(&{a}[at >> 1u], ~(0xffffu << shift));"));
        self.line(format!("atomicOr(&{a}[at >> 1u], ({bits}) << shift);"));
        self.close();
        Ok(())
    }

    /// Prints a store of the kernel; its value must have been emitted.
    pub(super) fn write_store(&mut self, store: usize) -> Result<()> {
        let store = &self.kernel.stores[store];
        let value = self.value(store.value)?;
        let index = self.index(&store.index)?;
        self.store(store.arg, &index, &value)
    }

    /// Dims of role `Reduce`, as a mask.
    pub(super) fn reduce_mask(&self) -> u64 {
        self.dims_of(Role::Reduce).iter().fold(0, |m, d| m | 1 << d)
    }

    /// Whether a store lives on the `Reduce` dims.
    pub(super) fn store_is_full(&self, store: usize) -> bool {
        let s = &self.kernel.stores[store];
        (self.dependence[s.value.index()] | s.index.dims()) & self.reduce_mask() != 0
    }

    // ---- the whole ----

    /// Prints `let <name> = <linear workgroup id>` for a grid made by [`grid`].
    pub(super) fn workgroup_index(&mut self, name: &str, workgroups: u64) {
        let [x, y, _] = grid(workgroups);
        let expression = if y > 1 { format!("wid.y * {x}u + wid.x") } else { "wid.x".to_string() };
        self.line(format!("let {name} = {expression};"));
    }

    /// Begins the entry point.
    pub(super) fn open_main(&mut self, workgroup: u32) {
        self.line(format!("@compute @workgroup_size({workgroup})"));
        self.open("fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lid: u32) {");
    }

    /// Begins the entry point of workgroups of one subgroup; `lane` is the invocation in it.
    pub(super) fn open_subgroup_main(&mut self, lanes: u32) {
        self.line(format!("@compute @workgroup_size({lanes})"));
        self.open("fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {");
    }

    /// Begins the entry point of workgroups of several subgroups: `subgroup` is the number of this one, `lanes` its
    /// size, `lane` the invocation in it.
    pub(super) fn open_matrix_main(&mut self, workgroup: u32) {
        self.line(format!("@compute @workgroup_size({workgroup})"));
        self.line("fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lid: u32,");
        self.line("        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) lanes: u32,");
        self.open("        @builtin(subgroup_invocation_id) lane: u32) {");
    }

    /// Notes the use of cooperative matrices of `f16`.
    pub(super) fn use_matrices(&mut self) -> Result<()> {
        self.matrices = true;
        self.register(DType::F16).map(|_| ())
    }

    /// The shader. `what` says in a phrase what this stage does.
    pub(super) fn finish(self, what: &str, workgroups: u64, scratch_bytes: u64) -> Result<Shader> {
        let kernel = self.kernel;
        let mut out = format!("// {what}\n// dims:");
        for d in &kernel.dims {
            let _ = write!(out, " {:?} {}", d.role, d.size);
        }
        out.push('\n');
        if self.f16 {
            out.push_str("enable f16;\n");
        }
        if self.matrices {
            out.push_str("enable wgpu_cooperative_matrix;\n");
        }
        out.push('\n');
        let mut bindings = Vec::new();
        for &arg in &self.args {
            let a = &kernel.args[arg as usize];
            let wide = self.wide.contains(&arg);
            let (access, atomic) =
                if a.access == Access::Read { ("read", false) } else { ("read_write", self.packed(arg)) };
            let element = match a.dtype {
                _ if wide && self.packed(arg) => "vec2<u32>",
                DType::F32 if wide => "vec4<f32>",
                DType::I32 if wide => "vec4<i32>",
                DType::U32 if wide => "vec4<u32>",
                DType::F16 if wide => "vec4<f16>",
                DType::F32 => "f32",
                DType::I32 => "i32",
                DType::F16 if self.limits.f16 => "f16",
                _ if atomic => "atomic<u32>",
                _ => "u32",
            };
            let binding = bindings.len();
            let count = if kernel.kind == Kind::Multi { String::new() } else { format!(" // {} {}", a.elems, a.dtype) };
            let _ =
                writeln!(out, "@group(0) @binding({binding}) var<storage, {access}> a{arg}: array<{element}>;{count}");
            bindings.push(Some(arg));
        }
        if self.scratch {
            let access = if kernel.kind == Kind::Multi { "read" } else { "read_write" };
            let name = if kernel.kind == Kind::Multi { "table" } else { "scratch" };
            let _ = writeln!(out, "@group(0) @binding({}) var<storage, {access}> {name}: array<u32>;", bindings.len());
            bindings.push(None);
        }
        for bits in &self.bits {
            let _ = writeln!(out, "var<private> bits_{bits:08x}: u32 = 0x{bits:08x}u;");
        }
        out.push_str(&self.declarations);
        out.push('\n');
        out.push_str(&self.library.text());
        out.push_str(&self.text);
        super::check(&out)?;
        let grid = if kernel.kind == Kind::Multi { [0; 3] } else { grid(workgroups) };
        Ok(Shader { wgsl: out, bindings, grid, scratch_bytes })
    }

    /// Prints one instruction.
    fn instruction(&mut self, id: InstId) -> Result<()> {
        match self.kernel.inst(id) {
            Inst::Load { arg, index, dynamic } => self.load_instruction(id, *arg, index, dynamic),
            other => {
                let expression = self.expression(id, other)?;
                if matches!(other, Inst::Const(_)) && self.inlines(id) {
                    self.set(id, expression);
                    return Ok(());
                }
                self.bind(id, &expression)
            }
        }
    }
}

fn empty_scope(kernel: &Kernel) -> Scope {
    Scope { values: vec![None; kernel.insts.len()], coords: vec![Coord::Absent; kernel.dims.len()], ..Scope::default() }
}

/// A grid of this many workgroups: one row, or rows of equal length when one is not enough.
pub(super) fn grid(workgroups: u64) -> [u32; 3] {
    if workgroups <= GRID_X {
        return [workgroups as u32, 1, 1];
    }
    let rows = workgroups.div_ceil(GRID_X);
    [workgroups.div_ceil(rows) as u32, rows as u32, 1]
}
