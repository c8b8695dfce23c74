//! Programs on GPUs. Loading allocates slabs and uploads constants; binding resolves every range, compiles the
//! pipelines it needs and makes all bind groups; running only encodes and submits.
//!
//! A dispatch may not see one buffer as readable through one binding and writable through another. Where an
//! argument that is only read shares its allocation with one that is written, the shader is compiled with that
//! binding widened to `read_write`; the bytes themselves must not overlap, which is checked.

use super::device::{Shared, Turn};
use super::exchange::{Exchange, Exchanger, OPEN};
use super::memory::{Allocation, GpuMemory};
use super::multi::batches;
use super::portions::{LEAD, MOST, estimates, portions};
use super::{GpuDevice, GpuError, Halt};
use crate::company::{Alone, Company, Seat};
use dnx_codegen::exec::{BufRef, Executable, KernelEntry, Part, Shader, Step};
use dnx_codegen::kernel::Access;
use dnx_codegen::wgsl::widen_access;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// A compiled shader.
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// An executable with its memory on the device.
pub(crate) struct GpuProgram {
    pub(super) device: GpuDevice,
    exec: Arc<Executable>,
    slabs: Vec<GpuMemory>,
    constants: Vec<GpuMemory>,
    /// The rank's coordinates along the axes of the mesh.
    axes: Vec<GpuMemory>,
    /// Whether work goes on during exchanges.
    overlap: bool,
    /// By kernel, stage and widened bindings.
    pipelines: Mutex<HashMap<Variant, Arc<Pipeline>>>,
}

/// A shader with some of its bindings widened, as a bit mask.
type Variant = (u32, usize, u64);

/// A program with its memory resolved.
pub(crate) struct GpuBound {
    pub(super) program: Arc<GpuProgram>,
    pub(super) work: Vec<Work>,
    /// How long each is estimated to take.
    pub(super) seconds: Vec<f64>,
    /// Host memory of the meetings.
    pub(super) exchanger: Option<Exchanger>,
}

/// One command, and the step of the executable that it is of.
pub(super) enum Work {
    Dispatch { pipeline: Arc<Pipeline>, group: wgpu::BindGroup, grid: [u32; 3], step: usize },
    Copy { src: GpuMemory, dst: GpuMemory, step: usize },
    Begin(Arc<Exchange>),
    Finish(Arc<Exchange>),
}

impl Work {
    /// The step of the executable that it is of.
    pub(super) fn step(&self) -> usize {
        match self {
            Work::Dispatch { step, .. } | Work::Copy { step, .. } => *step,
            Work::Begin(exchange) | Work::Finish(exchange) => exchange.step,
        }
    }

    /// Whether it needs the host.
    pub(super) fn is_exchange(&self) -> bool {
        matches!(self, Work::Begin(_) | Work::Finish(_))
    }
}

/// The stretches of work that reach the queue without the host: at most `most` commands, none of them of an exchange;
/// each begin and finish by itself.
pub(super) fn stretches(work: &[Work], most: usize) -> impl Iterator<Item = &[Work]> {
    work.chunk_by(|a, b| !a.is_exchange() && !b.is_exchange()).flat_map(move |stretch| stretch.chunks(most))
}

/// A dispatch before its pipeline exists.
struct Planned {
    variant: Variant,
    bindings: Vec<GpuMemory>,
    grid: [u32; 3],
    what: String,
    step: usize,
}

impl GpuDevice {
    /// Allocates a program's slabs and uploads its constants.
    ///
    /// # Errors
    /// If they don't fit, or the program was not compiled for a GPU.
    pub(crate) fn load(&self, exec: &Arc<Executable>, seat: Seat) -> Result<Arc<GpuProgram>, GpuError> {
        self.load_as_it_is(&self.trusted(exec)?, seat)
    }

    /// [`GpuDevice::load`] without a trial of what drivers get wrong.
    pub(super) fn load_as_it_is(&self, exec: &Arc<Executable>, seat: Seat) -> Result<Arc<GpuProgram>, GpuError> {
        let shared = &self.shared;
        shared.check()?;
        for entry in &exec.kernels {
            if entry.shaders.is_empty() {
                let message = "it has no shaders: compile it for this device's target".to_string();
                return Err(GpuError::Program { what: format!("kernel `{}` of `{}`", entry.name, exec.name), message });
            }
        }
        let slab = |(i, &bytes): (usize, &u64)| {
            let allocation = Allocation::new(shared, bytes, &format!("slab {i} of program `{}`", exec.name))?;
            Ok(GpuMemory { bytes: allocation.bytes, allocation, offset: 0 })
        };
        let slabs = exec.slabs.iter().enumerate().map(slab).collect::<Result<Vec<_>, GpuError>>()?;
        let sizes: Vec<u64> = exec.constants.iter().map(|c| c.len() as u64).collect();
        let constants = self.alloc(&sizes)?;
        for (memory, bytes) in constants.iter().zip(&exec.constants) {
            self.write(memory, bytes)?;
        }
        let coordinates = exec.coordinates(seat.rank);
        let axes = self.alloc(&vec![4; coordinates.len()])?;
        for (memory, coordinate) in axes.iter().zip(&coordinates) {
            self.write(memory, &coordinate.to_le_bytes())?;
        }
        let pipelines = Mutex::default();
        let (device, exec, overlap) = (self.clone(), exec.clone(), seat.overlap);
        Ok(Arc::new(GpuProgram { device, exec, slabs, constants, axes, overlap, pipelines }))
    }
}

impl GpuProgram {
    /// Fixes inputs and outputs.
    ///
    /// # Errors
    /// If a shader or a binding is refused, or a kernel would read what it writes.
    pub(crate) fn bind(self: &Arc<Self>, inputs: &[GpuMemory], outputs: &[GpuMemory]) -> Result<GpuBound, GpuError> {
        let shared = &self.device.shared;
        shared.check()?;
        let resolve = Resolve { program: self, inputs, outputs };
        let mut plan: Vec<Result<Planned, Work>> = Vec::new();
        // Exchanges that have begun, and the step before which they must finish. They finish in the order in which they
        // began, which is that of every rank.
        let mut open: VecDeque<(usize, Arc<Exchange>)> = VecDeque::new();
        for (at, step) in self.exec.steps.iter().enumerate() {
            while open.iter().any(|(wanted, _)| *wanted == at) {
                plan.extend(open.pop_front().map(|(_, exchange)| Err(Work::Finish(exchange))));
            }
            if let Step::Collective { parts, loc } = step {
                if open.len() == OPEN {
                    plan.extend(open.pop_front().map(|(_, exchange)| Err(Work::Finish(exchange))));
                }
                let free = |slot: &usize| open.iter().all(|(_, e)| e.slot != *slot);
                let slot = (0..OPEN).find(free).expect("one was finished");
                let exchange = Arc::new(self.exchange(&resolve, at, parts, loc, slot)?);
                plan.push(Err(Work::Begin(exchange.clone())));
                open.push_back((if self.overlap { self.exec.wanted_at(at) } else { at + 1 }, exchange));
                continue;
            }
            self.plan(&resolve, at, step, &mut plan)?;
        }
        plan.extend(open.into_iter().map(|(_, exchange)| Err(Work::Finish(exchange))));
        self.compile(&plan)?;
        let work = plan.into_iter().map(|planned| match planned {
            Ok(planned) => self.dispatch(planned),
            Err(copy) => Ok(copy),
        });
        let work = work.collect::<Result<Vec<_>, GpuError>>()?;
        let exchanger = Exchanger::new(shared, &work)?;
        let steps = estimates(&self.exec, shared.limits.class);
        // The first command of a step stands for all of it.
        let first = |at: usize| at == 0 || work[at - 1].step() != work[at].step();
        let seconds = (0..work.len()).map(|at| if first(at) { steps[work[at].step()] } else { 0.0 }).collect();
        Ok(GpuBound { program: self.clone(), work, seconds, exchanger })
    }

    /// The commands of a step. Copies are already done (`Err`), dispatches still want their pipelines.
    fn plan(
        &self,
        resolve: &Resolve,
        at: usize,
        step: &Step,
        plan: &mut Vec<Result<Planned, Work>>,
    ) -> Result<(), GpuError> {
        match step {
            Step::Dispatch { kernel, args, scratch, loc } => {
                let what = self.what(at, loc);
                let entry = self.entry(*kernel, &what)?;
                let args = args.iter().map(|r| resolve.range(r, &what)).collect::<Result<Vec<_>, _>>()?;
                let scratch = scratch.as_ref().map(|r| resolve.range(r, &what)).transpose()?;
                for (stage, shader) in entry.shaders.iter().enumerate() {
                    if shader.grid.contains(&0) {
                        continue;
                    }
                    if let Some(scratch) = scratch.as_ref().filter(|s| s.bytes < shader.scratch_bytes) {
                        let message = format!("{} bytes of scratch instead of {}", scratch.bytes, shader.scratch_bytes);
                        return Err(GpuError::Program { what, message });
                    }
                    let bindings = bindings(shader, &args, scratch.as_ref(), &what)?;
                    plan.push(Ok(self.planned(at, *kernel, stage, bindings, shader.grid, &what)?));
                }
            }
            Step::Multi { kernel, segments, loc } => {
                let what = self.what(at, loc);
                let entry = self.entry(*kernel, &what)?;
                let resolved = segments
                    .iter()
                    .map(|(length, args)| {
                        Ok((*length, args.iter().map(|r| resolve.range(r, &what)).collect::<Result<Vec<_>, _>>()?))
                    })
                    .collect::<Result<Vec<_>, GpuError>>()?;
                let limit = self.device.shared.limits.binding_bytes;
                for batch in batches(&entry.kernel, resolved, limit, &what)? {
                    let bytes: &[u8] = bytemuck::cast_slice(&batch.table);
                    let table = self.device.alloc(&[bytes.len() as u64])?.remove(0);
                    self.device.write(&table, bytes)?;
                    let bindings = bindings(&entry.shaders[0], &batch.windows, Some(&table), &what)?;
                    plan.push(Ok(self.planned(at, *kernel, 0, bindings, batch.grid, &what)?));
                }
            }
            Step::Copy { src, dst } => {
                let what = self.what(at, "copy");
                self.plan_copy(resolve.range(src, &what)?, resolve.range(dst, &what)?, at, &what, plan)?;
            }
            Step::Collective { .. } => unreachable!("planned with the steps around it"),
        }
        Ok(())
    }

    /// The meeting that is step `at`.
    fn exchange(
        &self,
        resolve: &Resolve,
        at: usize,
        parts: &[Part],
        loc: &str,
        slot: usize,
    ) -> Result<Exchange, GpuError> {
        let what = self.what(at, loc);
        let mut ranges = Vec::with_capacity(parts.len());
        for part in parts {
            let malformed = |message: String| GpuError::Program { what: what.clone(), message };
            let (src, dst) = (resolve.range(&part.src, &what)?, resolve.range(&part.dst, &what)?);
            let result = part.op.result(&part.ty, &self.exec.mesh).map_err(|e| malformed(e.to_string()))?;
            let (from, to) = (part.ty.device_bytes() as u64, result.device_bytes() as u64);
            if (from, to) != (src.bytes, dst.bytes) {
                let message = format!("{from} bytes become {to}; there are {} and {}", src.bytes, dst.bytes);
                return Err(malformed(message));
            }
            ranges.push((src, dst));
        }
        let number = self.exec.steps[..at].iter().filter(|s| matches!(s, Step::Collective { .. })).count();
        Ok(Exchange { at: number, step: at, what, ranges, slot })
    }

    fn plan_copy(
        &self,
        src: GpuMemory,
        dst: GpuMemory,
        step: usize,
        what: &str,
        plan: &mut Vec<Result<Planned, Work>>,
    ) -> Result<(), GpuError> {
        if src.bytes != dst.bytes {
            let message = format!("{} bytes are copied to {}", src.bytes, dst.bytes);
            return Err(GpuError::Program { what: what.to_string(), message });
        }
        if src.bytes == 0 || (src.same_allocation(&dst) && src.offset == dst.offset) {
            return Ok(());
        }
        if src.same_allocation(&dst) {
            // wgpu copies between different buffers only.
            let between = self.device.alloc(&[src.bytes])?.remove(0);
            plan.push(Err(Work::Copy { src, dst: between.clone(), step }));
            plan.push(Err(Work::Copy { src: between, dst, step }));
        } else {
            plan.push(Err(Work::Copy { src, dst, step }));
        }
        Ok(())
    }

    /// Checks the bindings of a stage and finds which must be widened.
    fn planned(
        &self,
        step: usize,
        kernel: u32,
        stage: usize,
        bindings: Vec<GpuMemory>,
        grid: [u32; 3],
        what: &str,
    ) -> Result<Planned, GpuError> {
        let entry = self.entry(kernel, what)?;
        let shader = &entry.shaders[stage];
        let limit = self.device.shared.limits.binding_bytes;
        let is_multi = grid != shader.grid;
        let mut widened = 0u64;
        for (b, memory) in bindings.iter().enumerate() {
            if memory.whole_words() > limit {
                let what = format!("binding {b} of {what}");
                return Err(GpuError::TooLarge { what, bytes: memory.bytes, limit });
            }
            for (c, other) in bindings.iter().enumerate() {
                if c == b || !writes(entry, shader, c) || !memory.same_allocation(other) {
                    continue;
                }
                // The windows of a Multi kernel overlap by design; its segments were checked by the planner.
                if !is_multi && memory.overlaps(other) {
                    let message = format!("bindings {b} and {c} overlap in memory and {c} is written");
                    return Err(GpuError::Program { what: what.to_string(), message });
                }
                if !writes(entry, shader, b) {
                    widened |= 1 << b;
                }
            }
        }
        Ok(Planned { variant: (kernel, stage, widened), bindings, grid, what: what.to_string(), step })
    }

    /// Makes the pipelines that are not there yet, in parallel.
    fn compile(&self, plan: &[Result<Planned, Work>]) -> Result<(), GpuError> {
        use rayon::prelude::*;
        let mut missing: Vec<&Planned> = Vec::new();
        {
            let have = self.pipelines();
            for planned in plan.iter().filter_map(|p| p.as_ref().ok()) {
                if !have.contains_key(&planned.variant) && missing.iter().all(|m| m.variant != planned.variant) {
                    missing.push(planned);
                }
            }
        }
        let made: Vec<(Variant, Arc<Pipeline>)> = missing
            .into_par_iter()
            .map(|planned| {
                let (kernel, stage, widened) = planned.variant;
                let entry = &self.exec.kernels[kernel as usize];
                Ok((planned.variant, pipeline(&self.device.shared, entry, stage, widened, &planned.what)?))
            })
            .collect::<Result<_, GpuError>>()?;
        self.pipelines().extend(made);
        Ok(())
    }

    fn pipelines(&self) -> std::sync::MutexGuard<'_, HashMap<Variant, Arc<Pipeline>>> {
        self.pipelines.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Makes the bind group of a dispatch whose pipeline is there.
    fn dispatch(&self, planned: Planned) -> Result<Work, GpuError> {
        let shared = &self.device.shared;
        let pipeline = self.pipelines()[&planned.variant].clone();
        let entries: Vec<wgpu::BindGroupEntry> = planned
            .bindings
            .iter()
            .enumerate()
            .map(|(b, memory)| wgpu::BindGroupEntry {
                binding: b as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &memory.allocation.buffer,
                    offset: memory.offset,
                    size: std::num::NonZeroU64::new(memory.whole_words()),
                }),
            })
            .collect();
        let group = shared.guarded(&planned.what, || {
            shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&planned.what),
                layout: &pipeline.layout,
                entries: &entries,
            })
        })?;
        Ok(Work::Dispatch { pipeline, group, grid: planned.grid, step: planned.step })
    }

    fn entry(&self, kernel: u32, what: &str) -> Result<&KernelEntry, GpuError> {
        let missing = || GpuError::Program { what: what.to_string(), message: format!("there is no kernel {kernel}") };
        self.exec.kernels.get(kernel as usize).ok_or_else(missing)
    }

    /// The name of a step in errors.
    fn what(&self, at: usize, loc: &str) -> String {
        format!("step {at} (`{loc}`) of program `{}`", self.exec.name)
    }
}

impl GpuBound {
    /// Encodes and submits all work. Returns when it is queued; what follows on this device comes after it.
    ///
    /// # Errors
    /// If the device has failed, before or during the submission.
    pub(crate) fn run(&self) -> Result<(), GpuError> {
        match self.run_with(&mut Alone) {
            Ok(()) => Ok(()),
            Err(Halt::Gpu(error)) => Err(error),
            Err(Halt::Stopped) => Err(GpuError::Program {
                what: format!("program `{}`", self.program.exec.name),
                message: "a device on its own has nobody to meet".to_string(),
            }),
        }
    }

    /// Runs of programs of one device, one after another.
    ///
    /// # Errors
    /// As [`GpuBound::run`].
    pub(crate) fn run_all(bounds: &[&GpuBound]) -> Result<(), GpuError> {
        let Some(first) = bounds.first() else { return Ok(()) };
        // Who meets others does so by itself.
        if bounds.iter().any(|bound| bound.exchanger.is_some()) {
            return bounds.iter().try_for_each(|bound| bound.run());
        }
        let shared = &first.program.device.shared;
        let mut turn = shared.turn();
        shared.check()?;
        let what = format!("{} runs from program `{}` on", bounds.len(), first.program.exec.name);
        portions(bounds, MOST).iter().try_for_each(|portion| submit(shared, &mut turn, portion, &what))
    }

    /// [`GpuBound::run`] in company, whom the device meets at each exchange.
    ///
    /// # Errors
    /// If the device has failed, or the company stops it.
    pub(crate) fn run_with(&self, company: &mut dyn Company) -> Result<(), Halt> {
        let shared = &self.program.device.shared;
        let mut turn = shared.turn();
        shared.check()?;
        let what = format!("a run of program `{}`", self.program.exec.name);
        let _guard = self.exchanger.as_ref().map(Exchanger::guard);
        for portion in portions(&[self], LEAD) {
            match (&portion[..], &self.exchanger) {
                ([Work::Begin(exchange)], Some(exchanger)) => exchanger.begin(shared, exchange)?,
                ([Work::Finish(exchange)], Some(exchanger)) => exchanger.finish(shared, exchange, company)?,
                (commands, _) => submit(shared, &mut turn, commands, &what)?,
            }
        }
        if company.wants_the_end() {
            shared.wait(&what)?;
            self.work.last().into_iter().for_each(|last| company.done(last.step()));
        }
        Ok(())
    }

    /// Waits for all work of the device.
    ///
    /// # Errors
    /// If the device has failed.
    #[cfg_attr(not(test), expect(dead_code, reason = "reads wait by themselves"))]
    pub(crate) fn wait(&self) -> Result<(), GpuError> {
        self.program.device.shared.wait(&format!("program `{}`", self.program.exec.name))
    }
}

/// One submission of these commands.
fn submit(shared: &Shared, turn: &mut Turn, commands: &[&Work], what: &str) -> Result<(), GpuError> {
    let index = shared.guarded(what, || {
        let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode(&mut encoder, commands);
        shared.submit([encoder.finish()])
    })?;
    shared.submitted(turn, index, what)
}

/// Encodes commands: neighbouring dispatches share a pass, copies stand between passes.
fn encode(encoder: &mut wgpu::CommandEncoder, work: &[&Work]) {
    let mut rest = work;
    while let Some(&first) = rest.first() {
        if let Work::Copy { src, dst, .. } = first {
            let (from, to) = (&src.allocation.buffer, &dst.allocation.buffer);
            encoder.copy_buffer_to_buffer(from, src.offset, to, dst.offset, src.whole_words());
            rest = &rest[1..];
            continue;
        }
        if let Work::Begin(_) | Work::Finish(_) = first {
            unreachable!("exchanges are no commands");
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        while let Some(Work::Dispatch { pipeline, group, grid: [x, y, z], .. }) = rest.first() {
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
            rest = &rest[1..];
        }
    }
}

/// Where the ranges of a program are.
struct Resolve<'a> {
    program: &'a GpuProgram,
    inputs: &'a [GpuMemory],
    outputs: &'a [GpuMemory],
}

impl Resolve<'_> {
    fn range(&self, range: &BufRef, what: &str) -> Result<GpuMemory, GpuError> {
        let found = match range {
            BufRef::Input(i) => self.inputs.get(*i as usize).cloned(),
            BufRef::Output(i) => self.outputs.get(*i as usize).cloned(),
            BufRef::Constant(i) => self.program.constants.get(*i as usize).cloned(),
            BufRef::Axis(i) => self.program.axes.get(*i as usize).cloned(),
            BufRef::Slab { slab, offset, bytes } => self
                .program
                .slabs
                .get(*slab as usize)
                .filter(|s| offset + bytes <= s.bytes)
                .map(|s| GpuMemory { allocation: s.allocation.clone(), offset: *offset, bytes: *bytes }),
        };
        let missing = || GpuError::Program { what: what.to_string(), message: format!("there is no {range:?}") };
        found.ok_or_else(missing)
    }
}

/// The ranges a stage binds, in order.
fn bindings(
    shader: &Shader,
    args: &[GpuMemory],
    last: Option<&GpuMemory>,
    what: &str,
) -> Result<Vec<GpuMemory>, GpuError> {
    let range = |binding: &Option<u32>| {
        let found = match binding {
            Some(arg) => args.get(*arg as usize),
            None => last,
        };
        let missing = || GpuError::Program {
            what: what.to_string(),
            message: match binding {
                Some(arg) => format!("argument {arg} is missing"),
                None => "its scratch memory is missing".to_string(),
            },
        };
        found.cloned().ok_or_else(missing)
    };
    shader.bindings.iter().map(range).collect()
}

/// Whether a stage may write this binding as its text declares it.
fn writes(entry: &KernelEntry, shader: &Shader, binding: usize) -> bool {
    match shader.bindings[binding] {
        Some(arg) => entry.kernel.args[arg as usize].access != Access::Read,
        // Scratch, or the segment table, which is only read.
        None => shader.scratch_bytes > 0,
    }
}

/// Compiles one variant of a shader, unless the device has it.
fn pipeline(
    shared: &Shared,
    entry: &KernelEntry,
    stage: usize,
    widened: u64,
    what: &str,
) -> Result<Arc<Pipeline>, GpuError> {
    let shader = &entry.shaders[stage];
    let mut text = shader.wgsl.clone();
    for b in (0..shader.bindings.len()).filter(|b| widened >> b & 1 == 1) {
        text = widen_access(&text, b as u32);
    }
    if let Some(found) = shared.pipelines.lock().unwrap_or_else(|p| p.into_inner()).get(&text) {
        return Ok(found.clone());
    }
    let made = shared.guarded(&format!("the shader of kernel `{}` ({what})", entry.name), || {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&entry.name),
            source: wgpu::ShaderSource::Wgsl(text.as_str().into()),
        };
        let module = if shared.checked {
            shared.device.create_shader_module(descriptor)
        } else {
            // SAFETY: every index of a shader is made by the compiler; the tests run the same text with checks.
            unsafe { shared.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..shader.bindings.len())
            .map(|b| wgpu::BindGroupLayoutEntry {
                binding: b as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage {
                        read_only: !writes(entry, shader, b) && widened >> b & 1 == 0,
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = shared
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&entry.name), entries: &entries });
        let pipeline_layout = shared.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&entry.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = shared.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&entry.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Every shader writes workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Arc::new(Pipeline { pipeline, layout })
    })?;
    shared.pipelines.lock().unwrap_or_else(|p| p.into_inner()).insert(text, made.clone());
    Ok(made)
}
