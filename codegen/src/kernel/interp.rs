//! The kernel interpreter: obviously what the kernel IR means. The cpu device and the WGSL writers are tested
//! against it, and [`run_executable`] runs whole programs with no device at all.
//!
//! An instruction is computed once for every point of the dims it depends on ([`Kernel::dependence`]), into a
//! table; all loads come before all stores. Floats are summed in `f64` and rounded once. Nothing is trusted: an
//! index out of bounds, an element stored twice or never, or a read of memory that nothing wrote shows.

use super::attention::{self, Attention};
use super::{Access, DynTerm, Idx, Inst, InstId, Kernel, Kind, Role, Scatter};
use crate::exec::{BufRef, Collective, Executable, Part, Step};
use dnx_ir::interp::{Precision, eval_mesh, scalar};
use dnx_ir::{Array, Builder, DType, Error, Mesh, ReduceKind, Result, Scalar, Type, bail, threefry};

/// Runs a kernel on its arguments' device bytes, in place.
///
/// For a [`Kind::Multi`] kernel this is one segment, whose length is that of the arguments that are not scalars.
///
/// # Errors
/// If the kernel is malformed or breaks its own rules: sizes, bounds, single stores.
pub fn run(kernel: &Kernel, args: &mut [Vec<u8>]) -> Result<()> {
    if args.len() != kernel.args.len() {
        bail!("the kernel has {} arguments, {} are given", kernel.args.len(), args.len());
    }
    let segment = kernel.args.iter().zip(&*args).find(|(a, _)| kernel.kind == Kind::Multi && a.elems == 0);
    let length = segment.map_or(0, |(a, bytes)| bytes.len() / a.dtype.device_size());
    for (i, (arg, bytes)) in kernel.args.iter().zip(&*args).enumerate() {
        let elems = if arg.elems == 0 && kernel.kind == Kind::Multi { length } else { arg.elems };
        if bytes.len() != elems * arg.dtype.device_size() {
            bail!("argument {i} has {} bytes, not those of {elems} {}", bytes.len(), arg.dtype);
        }
    }
    let mut dims: Vec<usize> = kernel.dims.iter().map(|d| d.size).collect();
    if kernel.kind == Kind::Multi {
        if dims != [0] {
            bail!("a Multi kernel has the single dim 0, not {dims:?}");
        }
        dims[0] = length;
    }
    let tables = compute(kernel, &dims, args)?;
    let mut stored: Vec<Vec<u8>> =
        kernel.args.iter().zip(&*args).map(|(a, b)| vec![0; b.len() / a.dtype.device_size()]).collect();
    for store in &kernel.stores {
        let (arg, table) = (store.arg as usize, &tables[store.value.index()]);
        if kernel.args[arg].dtype != table.dtype {
            bail!("a {} is stored to argument {arg} of {}", table.dtype, kernel.args[arg].dtype);
        }
        if !store.index.checks.is_empty() {
            bail!("the store to argument {arg} has checks");
        }
        // The value may be the same along dims of the index (an iota, a constant).
        let over = Table::new(table.dtype, table.mask | store.index.dims(), &dims);
        over.each_point(&dims, |at| {
            let i = place(store.index.eval(at), arg, stored[arg].len())?;
            put(&mut args[arg], kernel.args[arg].dtype, i, table.at(at));
            stored[arg][i] = stored[arg][i].saturating_add(1);
            Ok(())
        })?;
    }
    if let Some(s) = &kernel.scatter {
        scatter(kernel, s, &dims, &tables, args)?;
        stored[s.out as usize].fill(1);
    }
    for (arg, counts) in stored.iter().enumerate() {
        let wanted = |&c: &u8| match kernel.args[arg].access {
            Access::Read => c == 0,
            Access::Write => c == 1,
            Access::ReadWrite => c <= 1,
        };
        if let Some(i) = counts.iter().position(|c| !wanted(c)) {
            bail!("element {i} of argument {arg} ({:?}) is stored {} times", kernel.args[arg].access, counts[i]);
        }
    }
    Ok(())
}

/// The values of an instruction over the dims of `mask`, row-major.
struct Table {
    dtype: DType,
    mask: u64,
    /// Per iteration dim; 0 outside the mask.
    strides: Vec<usize>,
    values: Vec<Scalar>,
}

impl Table {
    fn new(dtype: DType, mask: u64, dims: &[usize]) -> Table {
        let mut strides = vec![0; dims.len()];
        let mut n = 1;
        for d in (0..dims.len()).rev().filter(|d| mask >> d & 1 == 1) {
            strides[d] = n;
            n *= dims[d];
        }
        Table { dtype, mask, strides, values: Vec::new() }
    }

    fn at(&self, at: &[usize]) -> Scalar {
        self.values[at.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>()]
    }

    /// Calls `visit` at every point of the masked dims, in row-major order, the other coordinates being zero.
    fn each_point(&self, dims: &[usize], mut visit: impl FnMut(&[usize]) -> Result<()>) -> Result<()> {
        let mut at = vec![0; dims.len()];
        walk(self.mask, dims, &mut at, &mut visit)
    }
}

/// Calls `visit` for every setting of the coordinates of `mask` in `at`, row-major, and leaves them zero.
fn walk(mask: u64, dims: &[usize], at: &mut [usize], visit: &mut dyn FnMut(&[usize]) -> Result<()>) -> Result<()> {
    let free: Vec<usize> = (0..dims.len()).filter(|d| mask >> d & 1 == 1).collect();
    if free.iter().any(|&d| dims[d] == 0) {
        return Ok(());
    }
    loop {
        visit(at)?;
        let mut left = free.len();
        loop {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            let d = free[left];
            at[d] += 1;
            if at[d] < dims[d] {
                break;
            }
            at[d] = 0;
        }
    }
}

/// Every instruction at every point it depends on.
fn compute(kernel: &Kernel, dims: &[usize], args: &[Vec<u8>]) -> Result<Vec<Table>> {
    let reduce: u64 = (0..dims.len()).filter(|&d| kernel.dims[d].role == Role::Reduce).fold(0, |mask, d| mask | 1 << d);
    for (i, inst) in kernel.insts.iter().enumerate() {
        if let Some(o) = inst.operands().iter().find(|o| o.index() >= i) {
            bail!("instruction {i} reads instruction {}, which is not earlier", o.index());
        }
    }
    let mut tables: Vec<Table> = Vec::with_capacity(kernel.insts.len());
    for ((i, inst), mask) in kernel.insts.iter().enumerate().zip(kernel.dependence()) {
        let mut table = Table::new(kernel.dtypes[i], mask, dims);
        let mut values = Vec::new();
        if let Inst::Attention(a) = inst {
            table.values = attention_values(kernel, a, dims, &tables);
            tables.push(table);
            continue;
        }
        let at_inst = |e: Error| Error::new(format!("instruction {i} ({inst:?}): {}", e.message));
        table
            .each_point(dims, |at| {
                let value = if inst.is_reduction() {
                    reduction(inst, table.dtype, &tables, dims, reduce, at)?
                } else {
                    point(kernel, inst, &tables, args, at)?
                };
                if value.dtype() != table.dtype {
                    bail!("gives {}, its dtype is said to be {}", value.dtype(), table.dtype);
                }
                values.push(value);
                Ok(())
            })
            .map_err(at_inst)?;
        table.values = values;
        tables.push(table);
    }
    Ok(tables)
}

/// One result of attention at every point of the dims it lives on.
fn attention_values(kernel: &Kernel, a: &Attention, dims: &[usize], tables: &[Table]) -> Vec<Scalar> {
    let roles = [Role::Batch, Role::M, Role::N, Role::Reduce];
    let operand = |id: InstId, place: [usize; 4]| {
        let mut at = vec![0; dims.len()];
        for (role, mut left) in roles.into_iter().zip(place) {
            for d in (0..dims.len()).rev().filter(|&d| kernel.dims[d].role == role) {
                at[d] = left % dims[d];
                left /= dims[d];
            }
        }
        tables[id.index()].at(&at).to_f64()
    };
    let extents = kernel.attention_extents();
    let each = (0..extents[0]).flat_map(|batch| attention::evaluate(a, batch, extents, &operand));
    each.map(|x| scalar::float(DType::F32, x)).collect()
}

/// A pointwise instruction at one point.
fn point(kernel: &Kernel, inst: &Inst, tables: &[Table], args: &[Vec<u8>], at: &[usize]) -> Result<Scalar> {
    let get = |id: &InstId| tables[id.index()].at(at);
    Ok(match inst {
        Inst::Const(c) => *c,
        Inst::Load { arg, index, dynamic } => {
            let dtype = kernel.args[*arg as usize].dtype;
            if !index.valid(at) {
                return Ok(Scalar::zero(dtype));
            }
            let bytes = &args[*arg as usize];
            let i = load_index(index, dynamic, tables, at);
            get_elem(bytes, dtype, place(i, *arg as usize, bytes.len() / dtype.device_size())?)?
        }
        Inst::Index(dtype, index) => match dtype {
            DType::I32 | DType::U32 => Scalar::from_bits(*dtype, index.eval(at) as u32 as u64),
            other => bail!("an index is i32 or u32, not {other}"),
        },
        Inst::Valid(checks) => scalar::boolean(checks.iter().all(|c| c.holds(at))),
        Inst::Unary(op, a) => scalar::unary(*op, get(a)),
        Inst::Binary(op, a, b) => {
            same(get(a), get(b))?;
            scalar::binary(*op, get(a), get(b))
        }
        Inst::Compare(op, a, b) => {
            same(get(a), get(b))?;
            scalar::compare_scalars(*op, get(a), get(b))
        }
        Inst::Select(c, a, b) => {
            same(get(a), get(b))?;
            same(get(c), Scalar::zero(DType::Bool))?;
            if get(c).bits() != 0 { get(a) } else { get(b) }
        }
        Inst::Convert(to, a) => scalar::convert(*to, get(a)),
        Inst::Bitcast(to, a) => Scalar::from_bits(*to, get(a).bits()),
        Inst::Threefry { k0, k1, counter } => {
            let key = [get(k0).bits() as u32, get(k1).bits() as u32];
            Scalar::from_bits(DType::U32, threefry::bits(key, get(counter).bits()) as u64)
        }
        Inst::Reduce(..) | Inst::Argmax(_) | Inst::Dot { .. } | Inst::Attention(_) => {
            unreachable!("a reduction is no point")
        }
    })
}

fn same(a: Scalar, b: Scalar) -> Result<()> {
    if a.dtype() == b.dtype() { Ok(()) } else { Err(Error::new(format!("mixes {} and {}", a.dtype(), b.dtype()))) }
}

fn load_index(index: &Idx, dynamic: &[DynTerm], tables: &[Table], at: &[usize]) -> i64 {
    dynamic.iter().fold(index.eval(at), |sum, d| {
        sum + (tables[d.value.index()].at(at).to_f64() as i64).clamp(0, d.limit) * d.stride
    })
}

/// A reduction at one point of the dims that are not reduced.
fn reduction(inst: &Inst, dtype: DType, tables: &[Table], dims: &[usize], reduce: u64, at: &[usize]) -> Result<Scalar> {
    let mut at = at.to_vec();
    let mut elems: Vec<Scalar> = Vec::new();
    let mut products: Vec<(Scalar, Scalar)> = Vec::new();
    walk(reduce, dims, &mut at, &mut |at| {
        match inst {
            Inst::Reduce(_, a) | Inst::Argmax(a) => elems.push(tables[a.index()].at(at)),
            Inst::Dot { lhs, rhs } => products.push((tables[lhs.index()].at(at), tables[rhs.index()].at(at))),
            other => unreachable!("{other:?} is no reduction"),
        }
        Ok(())
    })?;
    let wrapped = |x: i64| Scalar::from_bits(dtype, x as u32 as u64);
    let integer = |s: Scalar| s.to_f64() as i64;
    Ok(match inst {
        Inst::Reduce(ReduceKind::Sum, _) if dtype.is_float() => {
            scalar::float(dtype, elems.iter().fold(0.0, |s, x| s + x.to_f64()))
        }
        Inst::Reduce(ReduceKind::Sum, _) => wrapped(elems.iter().fold(0, |s, &x| s.wrapping_add(integer(x)))),
        Inst::Reduce(ReduceKind::Max, _) => {
            let least = match dtype {
                DType::I32 => i32::MIN as f64,
                DType::U32 => 0.0,
                _ => f64::NEG_INFINITY,
            };
            Scalar::from_f64(dtype, elems.iter().fold(least, |m, x| m.max(x.to_f64())))
        }
        Inst::Argmax(_) => {
            let mut best = 0;
            for i in 1..elems.len() {
                if elems[i].to_f64() > elems[best].to_f64() {
                    best = i;
                }
            }
            Scalar::from_bits(DType::I32, best as u64)
        }
        Inst::Dot { .. } if dtype.is_float() => {
            scalar::float(dtype, products.iter().fold(0.0, |s, (x, y)| s + x.to_f64() * y.to_f64()))
        }
        Inst::Dot { .. } => {
            wrapped(products.iter().fold(0, |s, &(x, y)| s.wrapping_add(integer(x).wrapping_mul(integer(y)))))
        }
        other => unreachable!("{other:?} is no reduction"),
    })
}

fn scatter(kernel: &Kernel, s: &Scatter, dims: &[usize], tables: &[Table], args: &mut [Vec<u8>]) -> Result<()> {
    let dtype = kernel.args[s.out as usize].dtype;
    let is_index = |d: usize| kernel.dims[d].role == Role::Reduce;
    // Strides of `[outer.., rows, inner..]`; the indices' dims share the place of `rows`.
    let mut strides = vec![0; dims.len()];
    let (mut n, mut row_stride) = (1, None);
    for d in (0..dims.len()).rev() {
        if is_index(d) {
            if row_stride.is_none() {
                row_stride = Some(n);
                n *= s.rows;
            }
        } else {
            strides[d] = n;
            n *= dims[d];
        }
    }
    // Without index dims there is one index, and where its row lies among the dims is not said.
    let Some(row_stride) = row_stride else { bail!("a scatter has no Reduce dim") };
    let elems = args[s.out as usize].len() / dtype.device_size();
    if elems != n {
        bail!("the scatter's output has {elems} elements, not {n}");
    }
    let mut sums: Vec<Scalar> = match s.base {
        Some(base) => (0..n).map(|i| get_elem(&args[base as usize], dtype, i)).collect::<Result<_>>()?,
        None => vec![Scalar::zero(dtype); n],
    };
    let mut floats: Vec<f64> = sums.iter().map(|x| x.to_f64()).collect();
    let (target, update) = (&tables[s.target.index()], &tables[s.update.index()]);
    let mut at = vec![0; dims.len()];
    walk((1u64 << dims.len()) - 1, dims, &mut at, &mut |at| {
        let row = (target.at(at).to_f64() as i64).clamp(0, s.rows as i64 - 1) as usize;
        let i = row * row_stride + (0..dims.len()).map(|d| at[d] * strides[d]).sum::<usize>();
        if dtype.is_float() {
            floats[i] += update.at(at).to_f64();
        } else {
            sums[i] = scalar::binary(dnx_ir::BinaryOp::Add, sums[i], update.at(at));
        }
        Ok(())
    })?;
    for i in 0..n {
        let value = if dtype.is_float() { scalar::float(dtype, floats[i]) } else { sums[i] };
        put(&mut args[s.out as usize], dtype, i, value);
    }
    Ok(())
}

/// An index within bounds.
fn place(i: i64, arg: usize, elems: usize) -> Result<usize> {
    if i >= 0 && (i as usize) < elems {
        return Ok(i as usize);
    }
    Err(Error::new(format!("index {i} is out of the {elems} elements of argument {arg}")))
}

fn get_elem(bytes: &[u8], dtype: DType, i: usize) -> Result<Scalar> {
    let n = dtype.device_size();
    let mut word = [0; 8];
    word[..n].copy_from_slice(&bytes[i * n..(i + 1) * n]);
    let bits = u64::from_le_bytes(word);
    if dtype == DType::Bool && bits > 1 {
        bail!("a bool in memory is {bits:#x}, neither 0 nor 1");
    }
    Ok(Scalar::from_bits(dtype, bits))
}

fn put(bytes: &mut [u8], dtype: DType, i: usize, value: Scalar) {
    let n = dtype.device_size();
    bytes[i * n..(i + 1) * n].copy_from_slice(&value.bits().to_le_bytes()[..n]);
}

/// The bytes of an array in device memory.
pub fn device_bytes(array: &Array) -> Vec<u8> {
    match array.dtype() {
        DType::Bool => array.bytes().iter().flat_map(|&b| (b as u32).to_le_bytes()).collect(),
        _ => array.bytes().to_vec(),
    }
}

/// The array of these bytes of device memory.
pub fn from_device_bytes(ty: &Type, bytes: &[u8]) -> Array {
    let host = match ty.dtype {
        DType::Bool => bytes.chunks_exact(4).map(|w| (w != [0; 4]) as u8).collect(),
        _ => bytes.to_vec(),
    };
    Array::from_bytes(Type::new(ty.dtype, ty.dims.clone()), host)
}

/// Runs a program on one device, with no device.
///
/// Memory begins as all ones bits, which is NaN in every float, so that a read of what nothing wrote shows.
///
/// # Errors
/// If an input has the wrong type, a kernel breaks its rules, or a dispatch writes memory that it also reads or
/// writes through another argument.
pub fn run_executable(exec: &Executable, inputs: &[Array]) -> Result<Vec<Array>> {
    run_executable_mesh(exec, &[inputs.to_vec()]).map(|mut r| r.remove(0))
}

/// Runs a per-device program on every device of its mesh in lockstep; inputs and outputs are per device.
///
/// # Errors
/// As [`run_executable`].
pub fn run_executable_mesh(exec: &Executable, inputs: &[Vec<Array>]) -> Result<Vec<Vec<Array>>> {
    if inputs.len() != exec.mesh.devices() {
        bail!("the program runs on {} devices; inputs are given for {}", exec.mesh.devices(), inputs.len());
    }
    let mut devices = inputs.iter().enumerate().map(|(d, i)| Memory::new(exec, d, i)).collect::<Result<Vec<_>>>()?;
    for (i, step) in exec.steps.iter().enumerate() {
        step_on(exec, step, &mut devices).map_err(|e| Error::new(format!("step {i}: {e}")))?;
    }
    Ok(devices.iter().map(|m| m.results(exec)).collect())
}

/// The memory of one device.
struct Memory {
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    constants: Vec<Vec<u8>>,
    /// Coordinates along the axes of the mesh.
    axes: Vec<Vec<u8>>,
    slabs: Vec<Vec<u8>>,
}

impl Memory {
    fn new(exec: &Executable, device: usize, inputs: &[Array]) -> Result<Memory> {
        if inputs.len() != exec.inputs.len() {
            bail!("the program has {} inputs, {} are given", exec.inputs.len(), inputs.len());
        }
        for (array, port) in inputs.iter().zip(&exec.inputs) {
            if array.dtype() != port.ty.dtype || array.dims() != port.ty.dims {
                bail!("input {:?} is {}, not {}", port.name, array.ty(), port.ty);
            }
        }
        let unwritten = |n: usize| vec![0xff; n];
        Ok(Memory {
            inputs: inputs.iter().map(device_bytes).collect(),
            outputs: exec.outputs.iter().map(|p| unwritten(p.ty.device_bytes())).collect(),
            constants: exec.constants.clone(),
            axes: exec.coordinates(device).iter().map(|c| c.to_le_bytes().to_vec()).collect(),
            slabs: exec.slabs.iter().map(|&n| unwritten(n as usize)).collect(),
        })
    }

    fn range(&mut self, at: &BufRef) -> Result<&mut [u8]> {
        let missing = || Error::new(format!("{at:?} does not exist"));
        let buffer = match *at {
            BufRef::Input(i) => self.inputs.get_mut(i as usize),
            BufRef::Output(i) => self.outputs.get_mut(i as usize),
            BufRef::Constant(i) => self.constants.get_mut(i as usize),
            BufRef::Axis(i) => self.axes.get_mut(i as usize),
            BufRef::Slab { slab, .. } => self.slabs.get_mut(slab as usize),
        };
        let buffer = buffer.ok_or_else(missing)?;
        match *at {
            BufRef::Slab { offset, bytes, .. } => {
                buffer.get_mut(offset as usize..(offset + bytes) as usize).ok_or_else(missing)
            }
            _ => Ok(buffer),
        }
    }

    fn dispatch(&mut self, kernel: &Kernel, args: &[BufRef]) -> Result<()> {
        if args.len() != kernel.args.len() {
            bail!("the kernel has {} arguments, {} are bound", kernel.args.len(), args.len());
        }
        for (i, a) in args.iter().enumerate() {
            let written = kernel.args[i].access != Access::Read;
            if written && matches!(a, BufRef::Constant(_) | BufRef::Axis(_)) {
                bail!("argument {i} writes a constant");
            }
            if let Some(j) = (0..args.len()).find(|&j| j != i && written && a.overlaps(&args[j])) {
                bail!("argument {i} writes {a:?}, which argument {j} also touches ({:?})", args[j]);
            }
        }
        let mut bytes = args.iter().map(|a| self.range(a).map(|r| r.to_vec())).collect::<Result<Vec<_>>>()?;
        run(kernel, &mut bytes)?;
        for (a, (arg, bytes)) in args.iter().zip(kernel.args.iter().zip(&bytes)) {
            if arg.access != Access::Read {
                self.range(a)?.copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn results(&self, exec: &Executable) -> Vec<Array> {
        let bytes = |i: usize| match exec.outputs[i].donated {
            Some(input) => &self.inputs[input as usize],
            None => &self.outputs[i],
        };
        (0..exec.outputs.len()).map(|i| from_device_bytes(&exec.outputs[i].ty, bytes(i))).collect()
    }
}

fn step_on(exec: &Executable, step: &Step, devices: &mut [Memory]) -> Result<()> {
    let kernel = |i: u32| {
        let entry = exec.kernels.get(i as usize);
        entry.map(|e| (&e.kernel, &e.name)).ok_or_else(|| Error::new(format!("kernel {i} does not exist")))
    };
    match step {
        Step::Dispatch { kernel: k, args, loc, .. } => {
            let (k, name) = kernel(*k)?;
            devices.iter_mut().try_for_each(|m| m.dispatch(k, args).map_err(|e| e.at_op(name).at_loc(loc)))
        }
        Step::Multi { kernel: k, segments, loc } => {
            let (k, name) = kernel(*k)?;
            for m in devices {
                for (length, args) in segments {
                    for (i, (arg, at)) in k.args.iter().zip(args).enumerate() {
                        let (has, elem) = (m.range(at)?.len(), arg.dtype.device_size());
                        if arg.elems == 0 && has != *length as usize * elem {
                            bail!("argument {i} of @{name} has {has} bytes in a segment of {length} elements");
                        }
                    }
                    m.dispatch(k, args).map_err(|e| e.at_op(name).at_loc(loc))?;
                }
            }
            Ok(())
        }
        Step::Copy { src, dst } => devices.iter_mut().try_for_each(|m| {
            let bytes = m.range(src)?.to_vec();
            let to = m.range(dst)?;
            if bytes.len() != to.len() {
                bail!("copies {} bytes from {src:?} to the {} of {dst:?}", bytes.len(), to.len());
            }
            to.copy_from_slice(&bytes);
            Ok(())
        }),
        Step::Collective { parts, loc } => {
            check_parts(parts).map_err(|e| e.at_loc(loc))?;
            // Nothing is written before everything is read: parts are exchanged at once.
            let mut exchanged = vec![];
            for Part { op, src, ty, .. } in parts {
                let args = devices.iter_mut().map(|m| Ok(vec![from_device_bytes(ty, m.range(src)?)]));
                exchanged.push(collective(&exec.mesh, op, ty, &args.collect::<Result<Vec<_>>>()?)?);
            }
            for (Part { op, dst, .. }, results) in parts.iter().zip(&exchanged) {
                for (m, r) in devices.iter_mut().zip(results) {
                    let (to, bytes) = (m.range(dst)?, device_bytes(r));
                    if to.len() != bytes.len() {
                        bail!("{op:?} gives {} bytes, {dst:?} has {}", bytes.len(), to.len());
                    }
                    to.copy_from_slice(&bytes);
                }
            }
            Ok(())
        }
    }
}

/// The rules of [`Step::Collective`].
fn check_parts(parts: &[Part]) -> Result<()> {
    for (i, part) in parts.iter().enumerate() {
        if part.op.axes() != parts[0].op.axes() {
            bail!("part {i} exchanges along {:?}, part 0 along {:?}", part.op.axes(), parts[0].op.axes());
        }
        if matches!(part.dst, BufRef::Constant(_) | BufRef::Axis(_)) {
            bail!("part {i} writes a constant");
        }
        if part.src.overlaps(&part.dst) && !(part.op.in_place() && part.src == part.dst) {
            bail!("part {i} writes {:?}, which it also reads ({:?})", part.dst, part.src);
        }
        let others = parts.iter().enumerate().filter(|&(j, _)| j != i);
        if let Some((j, _)) = { others }.find(|(_, p)| part.dst.overlaps(&p.src) || part.dst.overlaps(&p.dst)) {
            bail!("part {i} writes {:?}, which part {j} also touches", part.dst);
        }
    }
    Ok(())
}

/// A collective is what the reference interpreter says of the op it came from.
fn collective(mesh: &Mesh, op: &Collective, ty: &Type, args: &[Vec<Array>]) -> Result<Vec<Array>> {
    let mut b = Builder::on_mesh("collective", mesh.clone());
    let x = b.param("x", Type::new(ty.dtype, ty.dims.clone()));
    let y = b.emit(op.op(), &[x])?;
    let results = eval_mesh(&b.finish(&[y]), args, Precision::F32)?;
    Ok(results.into_iter().map(|mut r| r.remove(0)).collect())
}

#[cfg(test)]
mod tests;
