//! From a function to an [`Executable`]: the back half of the pipeline.

use crate::depth::{gathers_ahead, without_barriers};
use crate::dumps::{fusion_text, memory_text, schedule_text};
use crate::exec::{BufRef, Collective, Executable, KernelEntry, Part, Port, Requires, Step, VERSION};
use crate::fuse::{Fusion, Group, Work, compute_nodes, fuse};
use crate::kernel::{Access, Inst, Kernel, Kind, Tile};
use crate::lower::Lowered;
use crate::memory::{Full, Life, Slabs};
use crate::options::{Options, Target};
use crate::passes::prepare_with;
use crate::schedule::{Depths, Place, Schedule, as_multi, schedule};
use crate::{CompileError, Dump, InStage, Result, Stage, wgsl};
use dnx_ir::{Func, Op, Type, ValueId};
use std::collections::HashMap;

/// A compiled program and what is known about how it came to be.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What a device runs.
    pub exec: Executable,
    /// The function that was fused: primitive ops, canonical.
    pub prepared: Func,
    /// One line per fusion and per refusal.
    pub reasons: Vec<String>,
}

/// Most arguments of a kernel on the cpu, which has no limit of its own: enough for anything readable.
const CPU_ARGS: usize = 48;

/// Compiles a function.
///
/// # Errors
/// Names the stage, the op and the model path of what can't be compiled, or the tensor that does not fit.
pub fn compile(func: &Func, options: &Options) -> Result<Compiled> {
    compile_with(func, options, cfg!(debug_assertions), &mut Dump::none())
}

/// [`compile`], recording the stages in `dump`; with `verify` the verifier runs after each pass.
///
/// # Errors
/// As [`compile`].
pub fn compile_with(func: &Func, options: &Options, verify: bool, dump: &mut Dump) -> Result<Compiled> {
    check_donations(func, options)?;
    let prepared = prepare_with(func, options, verify, dump)?;
    let (func, mut depths) = without_barriers(&prepared).in_stage(Stage::Fuse)?;
    let ahead = if options.gather_ahead { gathers_ahead(&func, &mut depths) } else { vec![] };
    // One binding is left for the scratch buffer of kernels in two stages.
    let max_args = match &options.target {
        Target::Cpu => CPU_ARGS,
        Target::Gpu(limits) => limits.storage_buffers.saturating_sub(1).clamp(2, CPU_ARGS as u32) as usize,
    };
    let Fusion { groups, reasons } = fuse(&func, &depths, max_args, options.fuse).in_stage(Stage::Fuse)?;
    dump.record(Stage::Fuse, || fusion_text(&func, &groups, &reasons));
    dump.record(Stage::Kernels, || groups.iter().filter_map(|g| g.work.kernel()).map(|k| format!("{k}\n")).collect());
    let plan = schedule(&func, &groups, Depths { of: &depths, ahead: &ahead }, &options.donate, options.bucket_bytes);
    dump.record(Stage::Schedule, || schedule_text(&func, &groups, &plan));
    let (exec, lives) = Planner::new(&func, &groups, &plan, options).plan()?;
    dump.record(Stage::Memory, || memory_text(&func, &exec, &lives));
    dump.record(Stage::Wgsl, || {
        let shader = |k: &KernelEntry| {
            k.shaders.iter().map(|s| format!("// {} {}\n{}\n", k.name, k.hash, s.wgsl)).collect::<String>()
        };
        exec.kernels.iter().map(shader).collect()
    });
    dump.record(Stage::Exec, || format!("{exec:#?}"));
    Ok(Compiled { exec, prepared, reasons })
}

fn check_donations(func: &Func, options: &Options) -> Result<()> {
    let mut seen: Vec<(usize, usize)> = vec![];
    for &(i, o) in &options.donate {
        let (Some(p), Some(&r)) = (func.params.get(i), func.results.get(o)) else {
            return Err(CompileError::Options(format!("input {i} or output {o} of a donation does not exist")));
        };
        if func.ty(p.value) != func.ty(r) {
            let (a, b) = (func.ty(p.value), func.ty(r));
            return Err(CompileError::Options(format!("input {i} ({}: {a}) is donated to output {o}, a {b}", p.name)));
        }
        if seen.iter().any(|&(a, b)| a == i || b == o) {
            return Err(CompileError::Options(format!("input {i} or output {o} is donated twice")));
        }
        seen.push((i, o));
    }
    Ok(())
}

struct Planner<'a> {
    func: &'a Func,
    groups: &'a [Group],
    plan: &'a Schedule,
    options: &'a Options,
    slabs: Slabs,
    at: HashMap<ValueId, BufRef>,
    constants: Vec<Vec<u8>>,
    kernels: Vec<KernelEntry>,
    by_kernel: HashMap<Kernel, u32>,
    steps: Vec<Step>,
    /// Every value placed in a slab.
    lives: Vec<Life>,
    /// The step being planned.
    now: usize,
}

impl<'a> Planner<'a> {
    fn new(func: &'a Func, groups: &'a [Group], plan: &'a Schedule, options: &'a Options) -> Planner<'a> {
        let slabs = match &options.target {
            Target::Cpu => Slabs::new(false, u64::MAX),
            Target::Gpu(limits) => Slabs::new(true, limits.buffer_bytes),
        };
        Planner {
            func,
            groups,
            plan,
            options,
            slabs,
            at: HashMap::new(),
            constants: vec![],
            kernels: vec![],
            by_kernel: HashMap::new(),
            steps: vec![],
            lives: vec![],
            now: 0,
        }
    }

    /// The memory of result `j`.
    fn result(&self, j: usize) -> BufRef {
        match self.plan.donated[j] {
            Some(i) => BufRef::Input(i as u32),
            None => BufRef::Output(j as u32),
        }
    }

    fn plan(mut self) -> Result<(Executable, Vec<Life>)> {
        let (func, groups) = (self.func, self.groups);
        for (i, p) in func.params.iter().enumerate() {
            self.at.insert(p.value, BufRef::Input(i as u32));
        }
        for (j, &r) in func.results.iter().enumerate() {
            if self.plan.places[j] == Place::Direct {
                self.at.insert(r, self.result(j));
            }
        }
        let saved = self.save_inputs()?;
        let last_use = self.last_uses();
        for (s, batch) in self.plan.steps.iter().enumerate() {
            self.now = s;
            let mut kernels = vec![];
            let mut exchanged = vec![];
            for &g in batch {
                match &groups[g].work {
                    Work::Kernel(lowered) => kernels.push(self.dispatch(g, lowered)?),
                    Work::Collective(op, operand) => exchanged.push((op, *operand, groups[g].outputs[0])),
                }
            }
            if !kernels.is_empty() {
                self.emit(batch, kernels)?;
            }
            let taken = self.exchange(batch, &exchanged, &last_use)?;
            for &g in batch {
                let group = &self.groups[g];
                for v in group.inputs().iter().chain(&group.outputs) {
                    if last_use.get(v) == Some(&s) && !taken.contains(v) {
                        self.slabs.free(self.at[v]);
                    }
                }
            }
        }
        for (j, &r) in func.results.iter().enumerate() {
            if self.plan.places[j] == Place::Copied {
                let src = match saved.get(&r) {
                    Some(&range) => range,
                    None => self.locate(r)?,
                };
                self.steps.push(Step::Copy { src, dst: self.result(j) });
            }
        }
        let mut lives = std::mem::take(&mut self.lives);
        let end = self.plan.steps.len();
        lives.iter_mut().for_each(|life| life.last = last_use.get(&life.value).copied().unwrap_or(end));
        Ok((self.finish(), lives))
    }

    /// Inputs that are returned in another place than their own, while their memory takes another result.
    fn save_inputs(&mut self) -> Result<HashMap<ValueId, BufRef>> {
        let mut saved = HashMap::new();
        for (j, &r) in self.func.results.iter().enumerate() {
            let given_up = self.plan.donated.iter().flatten().any(|&i| self.func.params[i].value == r);
            if self.plan.places[j] == Place::Copied && given_up && !saved.contains_key(&r) {
                let ty = self.func.ty(r).clone();
                let range = self.place(r, &ty, &[])?;
                self.steps.push(Step::Copy { src: self.at[&r], dst: range });
                saved.insert(r, range);
            }
        }
        Ok(saved)
    }

    /// The last step that touches each slab value; values that are copied at the end stay.
    fn last_uses(&self) -> HashMap<ValueId, usize> {
        let mut last = HashMap::new();
        for (s, batch) in self.plan.steps.iter().enumerate() {
            for &g in batch {
                let group = &self.groups[g];
                for &v in group.inputs().iter().chain(&group.outputs) {
                    last.insert(v, s);
                }
            }
        }
        for (j, r) in self.func.results.iter().enumerate() {
            if self.plan.places[j] == Place::Copied {
                last.remove(r);
            }
        }
        last
    }

    fn place(&mut self, v: ValueId, ty: &Type, reads: &[BufRef]) -> Result<BufRef> {
        let loc = &self.func.def(v).loc;
        let bytes = ty.device_bytes() as u64;
        let what = || format!("the value {ty} of {}", self.func.def(v).op.name());
        let range = self.place_bytes(bytes, reads, what, loc)?;
        self.lives.push(Life { value: v, bytes, first: self.now, last: self.now });
        Ok(range)
    }

    fn place_bytes(&mut self, bytes: u64, reads: &[BufRef], what: impl Fn() -> String, loc: &str) -> Result<BufRef> {
        let limit = match &self.options.target {
            Target::Cpu => u64::MAX,
            Target::Gpu(limits) => limits.binding_bytes.min(limits.buffer_bytes),
        };
        let too_large = || CompileError::TooLarge {
            stage: Stage::Memory,
            what: what(),
            bytes,
            limit,
            remedy: "make the batch smaller, or split it with train.accumulate".into(),
            loc: loc.to_string(),
        };
        if bytes > limit {
            return Err(too_large());
        }
        self.slabs.place(bytes, reads).map_err(|Full| too_large())
    }

    /// Where a value lives, constants placed on first use.
    fn locate(&mut self, v: ValueId) -> Result<BufRef> {
        if let Some(&range) = self.at.get(&v) {
            return Ok(range);
        }
        let node = self.func.def(v);
        let array = match &node.op {
            Op::Const(array) => array,
            Op::AxisIndex { axis } => {
                let at = self.func.mesh.axes.iter().position(|(name, _)| name == axis).expect("verified");
                self.at.insert(v, BufRef::Axis(at as u32));
                return Ok(BufRef::Axis(at as u32));
            }
            _ => return Err(CompileError::unsupported(Stage::Memory, "a value that no kernel makes", &node.loc)),
        };
        let bytes = if array.dtype() == dnx_ir::DType::Bool {
            array.bytes().iter().flat_map(|&b| u32::from(b != 0).to_le_bytes()).collect()
        } else {
            array.bytes().to_vec()
        };
        let range = BufRef::Constant(self.constants.len() as u32);
        self.constants.push(bytes);
        self.at.insert(v, range);
        Ok(range)
    }

    /// The kernel of a group with in-place arguments joined, and the memory of its arguments.
    fn dispatch(&mut self, g: usize, lowered: &Lowered) -> Result<(Kernel, Vec<BufRef>)> {
        let group = &self.groups[g];
        let mut args = vec![];
        for &v in group.inputs() {
            args.push(self.locate(v)?);
        }
        let reads = args.clone();
        for &v in &group.outputs {
            let range = match self.at.get(&v) {
                Some(&range) => range,
                None => self.place(v, &self.func.ty(v).clone(), &reads)?,
            };
            self.at.insert(v, range);
            args.push(range);
        }
        Ok(join_in_place(lowered.kernel.clone(), args, group.inputs().len()))
    }

    /// One meeting for these `(what, operand, result)`. Gives the operands whose memory their results have taken.
    fn exchange(
        &mut self,
        batch: &[usize],
        exchanged: &[(&Collective, ValueId, ValueId)],
        last_use: &HashMap<ValueId, usize>,
    ) -> Result<Vec<ValueId>> {
        let (mut parts, mut taken) = (vec![], vec![]);
        for &(op, operand, result) in exchanged {
            let src = self.locate(operand)?;
            let readers = exchanged.iter().filter(|(_, v, _)| *v == operand).count();
            let dies = last_use.get(&operand) == Some(&self.now) && matches!(src, BufRef::Slab { .. });
            let dst = match self.at.get(&result) {
                Some(&range) => range,
                None if op.in_place() && dies && readers == 1 => {
                    let bytes = self.func.ty(result).device_bytes() as u64;
                    self.lives.push(Life { value: result, bytes, first: self.now + 1, last: self.now });
                    taken.push(operand);
                    src
                }
                None => self.place(result, &self.func.ty(result).clone(), &[])?,
            };
            self.at.insert(result, dst);
            if self.func.ty(operand).elems() > 0 || self.func.ty(result).elems() > 0 {
                parts.push(Part { op: op.clone(), src, dst, ty: self.func.ty(operand).clone() });
            }
        }
        if !parts.is_empty() {
            self.steps.push(Step::Collective { parts, loc: self.name(batch[0]) });
        }
        Ok(taken)
    }

    /// What errors and profiles call a group.
    fn name(&self, g: usize) -> String {
        let node = &self.func.nodes[self.groups[g].members.last().expect("groups have members").index()];
        if node.loc.is_empty() { node.op.name().to_string() } else { node.loc.to_string() }
    }

    fn emit(&mut self, batch: &[usize], kernels: Vec<(Kernel, Vec<BufRef>)>) -> Result<()> {
        let loc = self.name(batch[0]);
        if let [(kernel, args)] = &kernels[..] {
            if kernel.points() == 0 && kernel.stores.iter().all(|s| kernel.args[s.arg as usize].elems == 0) {
                return Ok(());
            }
            let index = self.kernel(kernel, &loc)?;
            let bytes = self.kernels[index as usize].shaders.iter().map(|s| s.scratch_bytes).max().unwrap_or(0);
            let scratch = if bytes == 0 {
                None
            } else {
                let range = self.place_bytes(bytes, args, || "the scratch memory of a kernel".into(), &loc)?;
                self.slabs.free(range);
                Some(range)
            };
            self.steps.push(Step::Dispatch { kernel: index, args: args.clone(), scratch, loc });
            return Ok(());
        }
        // Batches were made of equal bodies; joining in place may have told some of them apart again.
        let mut bodies: Vec<(Kernel, Vec<(u64, Vec<BufRef>)>)> = vec![];
        for (kernel, args) in kernels {
            let length = kernel.dims[0].size as u64;
            let body = as_multi(&kernel).expect("batched kernels are bodies over segments");
            match bodies.iter_mut().find(|(b, _)| *b == body) {
                Some((_, segments)) => segments.push((length, args)),
                None => bodies.push((body, vec![(length, args)])),
            }
        }
        for (body, segments) in bodies {
            let kernel = self.kernel(&body, &loc)?;
            self.steps.push(Step::Multi { kernel, segments, loc: loc.clone() });
        }
        Ok(())
    }

    /// The index of a kernel, made if it is new.
    fn kernel(&mut self, kernel: &Kernel, loc: &str) -> Result<u32> {
        if let Some(&k) = self.by_kernel.get(kernel) {
            return Ok(k);
        }
        let mut tiled = kernel.clone();
        let shaders = match &self.options.target {
            Target::Cpu => vec![],
            Target::Gpu(limits) => {
                let free = kernel.kind == Kind::Contract && kernel.tile == Tile::default();
                let tuned = self.options.tuned.get(&hash(kernel)).filter(|_| free).and_then(|tile| {
                    // A table from elsewhere may hold what these limits don't allow.
                    let candidate = Kernel { tile: tile.clone(), ..kernel.clone() };
                    Some((wgsl::shaders(&candidate, limits).ok()?, candidate))
                });
                match tuned {
                    Some((shaders, candidate)) => {
                        tiled = candidate;
                        shaders
                    }
                    None => {
                        if free {
                            tiled.tile = wgsl::choose_tile(kernel, limits);
                        }
                        wgsl::shaders(&tiled, limits)?
                    }
                }
            }
        };
        let k = self.kernels.len() as u32;
        self.kernels.push(KernelEntry { hash: hash(&tiled), name: loc.to_string(), kernel: tiled, shaders });
        self.by_kernel.insert(kernel.clone(), k);
        Ok(k)
    }

    fn finish(self) -> Executable {
        let func = self.func;
        let port = |name: &str, v: ValueId, donated: Option<usize>| Port {
            name: name.to_string(),
            ty: func.ty(v).clone(),
            donated: donated.map(|i| i as u32),
        };
        let inputs: Vec<Port> = func.params.iter().map(|p| port(&p.name, p.value, None)).collect();
        let outputs: Vec<Port> = func.results.iter().zip(&self.plan.donated).map(|(&r, &d)| port("", r, d)).collect();
        let bytes = |p: &Port| p.ty.device_bytes() as u64;
        let slabs = self.slabs.sizes();
        let peak_bytes = inputs.iter().map(bytes).sum::<u64>()
            + outputs.iter().filter(|p| p.donated.is_none()).map(bytes).sum::<u64>()
            + self.constants.iter().map(|c| c.len() as u64).sum::<u64>()
            + slabs.iter().sum::<u64>();
        let args = self.kernels.iter().map(|k| k.kernel.args.len() as u32);
        let f16 = |k: &KernelEntry| k.kernel.args.iter().any(|a| a.dtype == dnx_ir::DType::F16);
        let largest = inputs.iter().chain(&outputs).map(bytes).chain(slabs.iter().copied()).max().unwrap_or(0);
        let requires = Requires {
            f16: self.kernels.iter().any(f16),
            storage_buffers: args.max().unwrap_or(0),
            binding_bytes: largest,
        };
        Executable {
            version: VERSION,
            name: func.name.to_string(),
            requires,
            mesh: func.mesh.clone(),
            inputs,
            outputs,
            slabs,
            constants: self.constants,
            kernels: self.kernels,
            steps: self.steps,
            peak_bytes,
        }
    }
}

/// Where an output takes an input's memory, the two arguments become one that is read and written.
fn join_in_place(mut kernel: Kernel, mut args: Vec<BufRef>, inputs: usize) -> (Kernel, Vec<BufRef>) {
    let mut gone = vec![];
    for out in inputs..args.len() {
        if let Some(input) = (0..inputs).find(|&i| args[i] == args[out]) {
            kernel.args[out].access = Access::ReadWrite;
            for inst in &mut kernel.insts {
                if let Inst::Load { arg, .. } = inst
                    && *arg == input as u32
                {
                    *arg = out as u32;
                }
            }
            gone.push(input);
        }
    }
    gone.sort_unstable();
    for &input in gone.iter().rev() {
        args.remove(input);
        kernel.args.remove(input);
        let shift = |arg: &mut u32| *arg -= u32::from(*arg > input as u32);
        for inst in &mut kernel.insts {
            if let Inst::Load { arg, .. } = inst {
                shift(arg);
            }
        }
        kernel.stores.iter_mut().for_each(|s| shift(&mut s.arg));
        if let Some(s) = &mut kernel.scatter {
            shift(&mut s.out);
            s.base.iter_mut().for_each(shift);
        }
    }
    (kernel, args)
}

/// Content hash of a kernel: the same for every run and build of one codegen version.
pub fn hash(kernel: &Kernel) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&VERSION.to_le_bytes());
    let text = serde_json::to_vec(kernel).expect("kernels are plain data");
    hasher.update(&text);
    hasher.finalize().to_hex()[..16].to_string()
}

/// The compute nodes of a prepared function, for tools that draw it.
pub fn clusters(func: &Func) -> Vec<bool> {
    compute_nodes(func)
}
