//! Programs of the cpu device: planned kernels and the walk over the steps.

use super::attention::Attend;
use super::column::Column;
use super::contract::Contract;
use super::ops::{Ops, ops};
use super::planner::in_place;
use super::rows::{Multi, Rows};
use super::scatter::ScatterAdd;
use super::scratch::{Need, Scratch};
use super::threads::share;
use super::{CpuMemory, Queue};
use crate::company::{Company, Seat, Span, Stopped};
use dnx_codegen::exec::{ALIGN, BufRef, Executable, Part, Step};
use dnx_codegen::kernel::{Access, Kernel, Kind};
use std::collections::HashMap;
use std::sync::Arc;

/// A planned kernel.
pub(crate) enum Planned {
    Rows(Rows),
    Column(Column),
    Contract(Contract),
    Scatter(ScatterAdd),
    Attention(Box<Attend>),
    Multi(Multi),
}

impl Planned {
    /// Plans a kernel. `shared` marks arguments whose memory overlaps another's, one of them written.
    pub(crate) fn new(kernel: &Kernel, shared: &[bool]) -> Result<Planned, String> {
        let in_place: Vec<bool> = in_place(kernel).iter().zip(shared).map(|(a, b)| *a || *b).collect();
        Ok(match kernel.kind {
            Kind::Loop | Kind::Row => Planned::Rows(Rows::new(kernel, &in_place)?),
            Kind::Column => Planned::Column(Column::new(kernel, &in_place)?),
            Kind::Contract => Planned::Contract(Contract::new(kernel, &in_place)?),
            Kind::Attention => Planned::Attention(Box::new(Attend::new(kernel, &in_place)?)),
            Kind::Index => Planned::Scatter(ScatterAdd::new(kernel, &in_place)?),
            Kind::Multi => Planned::Multi(Multi::new(kernel, &in_place)?),
        })
    }

    pub(crate) fn need(&self, args: usize, segments: usize) -> Need {
        match self {
            Planned::Rows(k) => k.need(args),
            Planned::Column(k) => k.need(),
            Planned::Contract(k) => k.need(),
            Planned::Scatter(k) => k.need(),
            Planned::Attention(k) => k.need(),
            Planned::Multi(k) => k.need(args, segments),
        }
    }
}

/// A step with its plan.
enum Work {
    Kernel {
        plan: Arc<Planned>,
        args: Vec<BufRef>,
    },
    Multi {
        plan: Arc<Planned>,
        tasks: Vec<(usize, usize, usize)>,
        args: Vec<BufRef>,
        per: usize,
    },
    Copy {
        src: BufRef,
        dst: BufRef,
    },
    /// The operands and results of the meeting of this number.
    Collective {
        at: usize,
        parts: Vec<(BufRef, BufRef)>,
    },
}

/// An executable with its kernels planned, and the memory that belongs to it.
pub(crate) struct CpuProgram {
    queue: Arc<Queue>,
    work: Vec<Work>,
    slabs: Vec<CpuMemory>,
    constants: Vec<CpuMemory>,
    /// The rank's coordinates along the axes of the mesh.
    axes: Vec<CpuMemory>,
    scratch: Scratch,
}

/// A program with its memory resolved.
pub(crate) struct CpuBound {
    program: Arc<CpuProgram>,
    /// Keeps the memory alive that `steps` point into.
    _memory: Vec<CpuMemory>,
    steps: Vec<Resolved>,
}

/// The addresses of a step: arguments, or source and destination; the bytes of a copy; what a meeting exchanges.
struct Resolved {
    args: Vec<*mut u8>,
    bytes: usize,
    spans: Vec<Span>,
}

// The addresses are into memory that the bound keeps; runs take the queue.
unsafe impl Send for Resolved {}
unsafe impl Sync for Resolved {}

impl CpuProgram {
    pub(crate) fn new(queue: Arc<Queue>, exec: Arc<Executable>, seat: Seat) -> Result<CpuProgram, String> {
        let memory = |sizes: &[u64]| {
            CpuMemory::pack(sizes)
                .map_err(|_| format!("no memory for {} bytes of temporaries", sizes.iter().sum::<u64>()))
        };
        let slabs = memory(&exec.slabs)?;
        let constants = memory(&exec.constants.iter().map(|c| c.len() as u64).collect::<Vec<_>>())?;
        for (range, bytes) in constants.iter().zip(&exec.constants) {
            range.write(bytes);
        }
        let coordinates = exec.coordinates(seat.rank);
        let axes = memory(&vec![4; coordinates.len()])?;
        axes.iter().zip(&coordinates).for_each(|(range, c)| range.write(&c.to_le_bytes()));
        let mut meetings = 0;
        let mut plans: HashMap<(u32, Vec<bool>), Arc<Planned>> = HashMap::new();
        let mut plan = |kernel: u32, shared: Vec<bool>| -> Result<Arc<Planned>, String> {
            if let Some(plan) = plans.get(&(kernel, shared.clone())) {
                return Ok(plan.clone());
            }
            let entry = exec.kernels.get(kernel as usize).ok_or_else(|| format!("there is no kernel {kernel}"))?;
            let planned = Planned::new(&entry.kernel, &shared).map_err(|e| format!("kernel {}: {e}", entry.name))?;
            let planned = Arc::new(planned);
            plans.insert((kernel, shared), planned.clone());
            Ok(planned)
        };
        let mut need = Need::default();
        let mut work = Vec::with_capacity(exec.steps.len());
        for step in &exec.steps {
            work.push(match step {
                Step::Dispatch { kernel, args, loc, .. } => {
                    let entry = &exec.kernels[*kernel as usize];
                    check_ranges(&exec, &entry.kernel, args, None).map_err(|e| format!("{e} (at {loc})"))?;
                    let plan = plan(*kernel, overlaps(&entry.kernel, args))?;
                    need = need.max(plan.need(args.len(), 1));
                    Work::Kernel { plan, args: args.clone() }
                }
                Step::Multi { kernel, segments, loc } => {
                    let entry = &exec.kernels[*kernel as usize];
                    let mut shared = vec![false; entry.kernel.args.len()];
                    for (length, args) in segments {
                        check_ranges(&exec, &entry.kernel, args, Some(*length))
                            .map_err(|e| format!("{e} (at {loc})"))?;
                        for (all, one) in shared.iter_mut().zip(overlaps(&entry.kernel, args)) {
                            *all |= one;
                        }
                    }
                    let plan = plan(*kernel, shared)?;
                    let per = entry.kernel.args.len();
                    need = need.max(plan.need(per, segments.len()));
                    let lengths: Vec<usize> = segments.iter().map(|s| s.0 as usize).collect();
                    let Planned::Multi(multi) = &*plan else {
                        return Err(format!("kernel {} is run over segments but is not a Multi", entry.name));
                    };
                    let tasks = multi.tasks(&lengths);
                    let args = segments.iter().flat_map(|s| s.1.clone()).collect();
                    Work::Multi { plan, tasks, args, per }
                }
                Step::Copy { src, dst } => {
                    let (from, to) = (bytes_of(&exec, *src)?, bytes_of(&exec, *dst)?);
                    if from != to {
                        return Err(format!("a copy of {from} bytes to {to}"));
                    }
                    Work::Copy { src: *src, dst: *dst }
                }
                Step::Collective { parts, loc } => {
                    check_parts(&exec, parts).map_err(|e| format!("{e} (at {loc})"))?;
                    meetings += 1;
                    Work::Collective { at: meetings - 1, parts: parts.iter().map(|p| (p.src, p.dst)).collect() }
                }
            });
        }
        let scratch = Scratch::new(need, seat.threads)?;
        Ok(CpuProgram { queue, work, slabs, constants, axes, scratch })
    }

    pub(crate) fn bind(self: &Arc<Self>, inputs: Vec<CpuMemory>, outputs: Vec<CpuMemory>) -> CpuBound {
        let resolve = |r: &BufRef| match *r {
            BufRef::Input(i) => inputs[i as usize].ptr(),
            BufRef::Output(i) => outputs[i as usize].ptr(),
            BufRef::Constant(i) => self.constants[i as usize].ptr(),
            BufRef::Axis(i) => self.axes[i as usize].ptr(),
            BufRef::Slab { slab, offset, .. } => self.slabs[slab as usize].ptr().wrapping_add(offset as usize),
        };
        let length = |r: &BufRef| match *r {
            BufRef::Input(i) => inputs[i as usize].bytes(),
            BufRef::Output(i) => outputs[i as usize].bytes(),
            BufRef::Constant(i) => self.constants[i as usize].bytes(),
            BufRef::Axis(i) => self.axes[i as usize].bytes(),
            BufRef::Slab { bytes, .. } => bytes as usize,
        };
        let steps = self.work.iter().map(|work| match work {
            Work::Kernel { args, .. } | Work::Multi { args, .. } => {
                Resolved { args: args.iter().map(resolve).collect(), bytes: 0, spans: vec![] }
            }
            Work::Copy { src, dst } => {
                Resolved { args: vec![resolve(src), resolve(dst)], bytes: length(src), spans: vec![] }
            }
            Work::Collective { parts, .. } => {
                let span = |(src, dst): &(BufRef, BufRef)| Span { src: resolve(src), dst: resolve(dst) };
                Resolved { args: vec![], bytes: 0, spans: parts.iter().map(span).collect() }
            }
        });
        let steps = steps.collect();
        let memory = inputs.into_iter().chain(outputs).collect();
        CpuBound { program: self.clone(), _memory: memory, steps }
    }
}

/// Bytes of a range.
fn bytes_of(exec: &Executable, r: BufRef) -> Result<u64, String> {
    let bytes = match r {
        BufRef::Input(i) => exec.inputs.get(i as usize).map(|p| p.ty.device_bytes() as u64),
        BufRef::Output(i) => exec.outputs.get(i as usize).map(|p| p.ty.device_bytes() as u64),
        BufRef::Constant(i) => exec.constants.get(i as usize).map(|c| c.len() as u64),
        BufRef::Axis(i) => exec.mesh.axes.get(i as usize).map(|_| 4),
        BufRef::Slab { slab, offset, bytes } => exec
            .slabs
            .get(slab as usize)
            .filter(|&&size| offset.checked_add(bytes).is_some_and(|end| end <= size) && offset % ALIGN == 0)
            .map(|_| bytes),
    };
    bytes.ok_or_else(|| format!("{r:?} is not a range of the program's memory"))
}

/// Operands and results have the bytes of their types.
fn check_parts(exec: &Executable, parts: &[Part]) -> Result<(), String> {
    for (i, part) in parts.iter().enumerate() {
        let result = part.op.result(&part.ty, &exec.mesh).map_err(|e| e.to_string())?;
        for (what, ty, range) in [("operand", &part.ty, part.src), ("result", &result, part.dst)] {
            let (needed, got) = (ty.device_bytes() as u64, bytes_of(exec, range)?);
            if needed != got {
                return Err(format!("the {what} {ty} of part {i} has {needed} bytes, its range has {got}"));
            }
        }
    }
    Ok(())
}

/// Every argument has a range with room for its elements.
fn check_ranges(exec: &Executable, kernel: &Kernel, args: &[BufRef], length: Option<u64>) -> Result<(), String> {
    if args.len() != kernel.args.len() {
        return Err(format!("a kernel of {} arguments is given {}", kernel.args.len(), args.len()));
    }
    for (i, (arg, r)) in kernel.args.iter().zip(args).enumerate() {
        let elems = match (arg.elems, length) {
            (0, Some(length)) => length,
            (n, _) => n as u64,
        };
        let (needed, got) = (elems * arg.dtype.device_size() as u64, bytes_of(exec, *r)?);
        if needed > got {
            return Err(format!("argument {i} needs {needed} bytes, its range has {got}"));
        }
    }
    Ok(())
}

/// Which arguments share memory with another one that is written (or are written and share with any).
fn overlaps(kernel: &Kernel, args: &[BufRef]) -> Vec<bool> {
    let written = |i: usize| kernel.args[i].access != Access::Read;
    let clash = |i: usize, j: usize| i != j && (written(i) || written(j)) && args[i].overlaps(&args[j]);
    (0..args.len()).map(|i| (0..args.len()).any(|j| clash(i, j))).collect()
}

impl CpuBound {
    /// Walks the steps.
    ///
    /// # Errors
    /// If the company stops it at a meeting.
    pub(crate) fn run(&self, company: &mut dyn Company) -> Result<(), Stopped> {
        let program = &self.program;
        let _turn = program.queue.enter();
        let ops = ops();
        for (i, (work, step)) in program.work.iter().zip(&self.steps).enumerate() {
            // SAFETY: `check_ranges` and `check_parts` saw that each argument has its elements, `DonatedTwice` that no
            // two inputs are written through one another, and the queue that nobody else touches the memory now but
            // those this device meets.
            unsafe {
                match work {
                    Work::Collective { at, .. } => company.meet(*at, i, &step.spans)?,
                    _ => work.run(ops, step, &program.scratch),
                }
            }
            company.done(i);
        }
        Ok(())
    }
}

impl Work {
    unsafe fn run(&self, ops: &Ops, step: &Resolved, scratch: &Scratch) {
        let args = &step.args[..];
        unsafe {
            match self {
                Work::Kernel { plan, .. } => match &**plan {
                    Planned::Rows(k) => k.run(ops, args, scratch),
                    Planned::Column(k) => k.run(ops, args, scratch),
                    Planned::Contract(k) => k.run(ops, args, scratch),
                    Planned::Scatter(k) => k.run(ops, args, scratch),
                    Planned::Attention(k) => k.run(ops, args, scratch),
                    Planned::Multi(_) => unreachable!("a Multi is a step of its own"),
                },
                Work::Multi { plan, tasks, per, .. } => match &**plan {
                    Planned::Multi(k) => k.run(ops, args, *per, tasks, scratch),
                    _ => unreachable!("checked when the program was made"),
                },
                Work::Copy { .. } => copy(args[0], args[1], step.bytes, scratch),
                Work::Collective { .. } => unreachable!("the company does it"),
            }
        }
    }
}

/// Bytes of a task of a copy.
const COPY: usize = 1 << 20;

unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize, scratch: &Scratch) {
    struct Ends(*const u8, *mut u8);
    unsafe impl Sync for Ends {}
    let ends = Ends(from, to);
    share(scratch.threads(), bytes.div_ceil(COPY), &|_, task| {
        let ends = &ends;
        let at = task * COPY;
        // SAFETY: tasks are disjoint; the ranges are the same or don't overlap.
        unsafe { std::ptr::copy(ends.0.add(at), ends.1.add(at), COPY.min(bytes - at)) };
    });
}
