//! Arithmetic dtypes made explicit. A dtype may be good for storage and not for arithmetic: `bf16` everywhere, `f16`
//! where the target has no 16-bit arithmetic. Arithmetic on such values becomes convert, `f32` arithmetic, convert
//! back, which is what the language means by it: each op rounds its result once. Sums, `dot_general` and `conv` of
//! 16-bit floats accumulate in `f32`, so they give `f32` here on every target and are converted after.
//!
//! Views, selections and gathers move elements and stay in the storage dtype.

use super::rebuild;
use crate::{CompileError, InStage, Result, Stage, Target};
use dnx_ir::{Builder, DType, Func, Node, Op, UnaryOp, ValueId};

/// The function with arithmetic only in dtypes the target computes in.
///
/// # Errors
/// `f64` values: the interpreter alone computes in it.
pub fn precision(func: &Func, target: &Target) -> Result<Func> {
    if let Some(v) = func.values.iter().find(|v| v.ty.dtype == DType::F64) {
        let loc = func.nodes[v.node.index()].loc.clone();
        let what = format!("a value of type {}: f64 is for the interpreter alone; convert it to f32", v.ty);
        return Err(CompileError::unsupported(Stage::Precision, what, &loc));
    }
    if !func.values.iter().any(|v| matches!(v.ty.dtype, DType::F16 | DType::BF16)) {
        return Ok(func.clone());
    }
    let f16 = target.gpu().is_some_and(|limits| limits.f16);
    rebuild(func, |b, node, operands| widen(b, node, operands, f16)).in_stage(Stage::Precision)
}

/// How an op treats 16-bit floats.
enum Work {
    /// Moves elements, or converts them.
    Moves,
    /// Computes each result from few elements.
    Computes,
    /// Sums, in `f32`.
    Accumulates,
}

fn work(op: &Op) -> Work {
    match op {
        Op::Unary(UnaryOp::StopGradient) => Work::Moves,
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Argmax { .. } => Work::Computes,
        Op::Reduce { .. } | Op::Dot { .. } | Op::Conv { .. } | Op::ScatterAdd { .. } => Work::Accumulates,
        // They sum in `f32` themselves, and round once; widened before, twice the bytes would cross.
        Op::AllReduce { .. } | Op::ReduceScatter { .. } => Work::Moves,
        Op::Iota { .. } => Work::Computes,
        Op::Param { .. } | Op::Const(_) | Op::RandomBits { .. } | Op::AxisIndex { .. } => Work::Moves,
        Op::Convert(_) | Op::Bitcast(_) | Op::Select => Work::Moves,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => Work::Moves,
        Op::Pad { .. } | Op::Concat { .. } | Op::Reverse { .. } => Work::Moves,
        Op::DynamicSlice { .. } | Op::DynamicUpdateSlice | Op::Take { .. } => Work::Moves,
        Op::Reshard { .. } | Op::AllGather { .. } | Op::AllToAll { .. } | Op::Ppermute { .. } => Work::Moves,
        Op::Call { .. } | Op::Composite { .. } | Op::OptimizationBarrier => Work::Moves,
    }
}

fn widen(b: &mut Builder, node: &Node, operands: &[ValueId], f16: bool) -> dnx_ir::Result<Vec<ValueId>> {
    b.set_loc(node.loc.clone());
    let stores_only = |d: DType| d == DType::BF16 || (d == DType::F16 && !f16);
    let small = |d: DType| matches!(d, DType::BF16 | DType::F16);
    // A contraction reads 16-bit operands as they are; only its sum is wide.
    if let Op::Dot { out, .. } | Op::Conv { out, .. } = &node.op {
        if !small(*out) {
            return b.emit_multi(node.op.clone(), operands);
        }
        let wide = match node.op.clone() {
            Op::Dot { dims, .. } => Op::Dot { dims, out: DType::F32 },
            Op::Conv { dims, .. } => Op::Conv { dims, out: DType::F32 },
            other => other,
        };
        let sum = b.emit(wide, operands)?;
        return Ok(vec![b.convert(sum, *out)?]);
    }
    let dtype = match (&node.op, operands) {
        (Op::Iota { dtype, .. }, _) => *dtype,
        (_, [x, ..]) => b.ty(*x).dtype,
        (_, []) => return b.emit_multi(node.op.clone(), operands),
    };
    let wide = match work(&node.op) {
        Work::Moves => false,
        Work::Computes => stores_only(dtype),
        Work::Accumulates => small(dtype),
    };
    if !wide {
        return b.emit_multi(node.op.clone(), operands);
    }
    let mut wide = Vec::with_capacity(operands.len());
    for &x in operands {
        let narrow = b.ty(x).dtype == dtype;
        wide.push(if narrow { b.convert(x, DType::F32)? } else { x });
    }
    let op = match node.op.clone() {
        Op::Iota { dims, dim, .. } => Op::Iota { dtype: DType::F32, dims, dim },
        other => other,
    };
    let y = b.emit(op, &wide)?;
    Ok(vec![if b.ty(y).dtype == DType::F32 { b.convert(y, dtype)? } else { y }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GpuLimits;
    use dnx_ir::interp::{Precision, eval};
    use dnx_ir::{Array, Graph, Type};

    fn program(dtype: DType) -> Func {
        let g = Graph::new("f");
        let (x, w) = (g.param("x", Type::new(dtype, [3, 5])), g.param("w", Type::new(dtype, [5, 2])));
        let y = (x.exp() * x).matmul(w);
        g.finish(&[y, x.sum(&[1]), x.transpose(&[1, 0])]).unwrap()
    }

    fn arithmetic_in(f: &Func, dtype: DType) -> bool {
        f.nodes.iter().any(|n| {
            matches!(n.op, Op::Unary(_) | Op::Binary(_) | Op::Reduce { .. }) && f.ty(n.results[0]).dtype == dtype
        })
    }

    #[test]
    fn bf16_computes_in_f32_and_gives_the_same_numbers() {
        for dtype in [DType::BF16, DType::F16] {
            let f = program(dtype);
            let wide = precision(&f, &Target::Cpu).unwrap();
            assert!(arithmetic_in(&f, dtype) && !arithmetic_in(&wide, dtype));
            assert_eq!(f.result_types(), wide.result_types());
            let data: Vec<f64> = (0..15).map(|i| (i as f64 - 7.0) / 5.0).collect();
            let args = [
                Array::from_f64(Type::new(dtype, [3, 5]), &data),
                Array::from_f64(Type::new(dtype, [5, 2]), &data[..10]),
            ];
            let (a, b) = (eval(&f, &args, Precision::F32).unwrap(), eval(&wide, &args, Precision::F32).unwrap());
            assert_eq!(a, b, "each op rounds once, before and after");
        }
    }

    #[test]
    fn programs_of_16_bit_floats_compile_and_run() {
        let g = Graph::new("f");
        let x = g.param("x", Type::new(DType::BF16, [3, 5]));
        let h = g.param("h", Type::new(DType::F16, [3, 5]));
        let kept = x.gt(x.full_like(0.0)).select(x, x.full_like(0.5));
        let f = g.finish(&[g.concat(&[kept, x.exp()], 0), h * h + 1.0, h.max(&[1]), x.transpose(&[1, 0])]).unwrap();
        let data: Vec<f64> = (0..15).map(|i| (i as f64 - 7.0) / 5.0).collect();
        let args = [DType::BF16, DType::F16].map(|d| Array::from_f64(Type::new(d, [3, 5]), &data));
        let want = eval(&f, &args, Precision::F32).unwrap();
        let gpu = |f16| Target::Gpu(GpuLimits { f16, ..GpuLimits::default() });
        for target in [Target::Cpu, gpu(false), gpu(true)] {
            let exec = crate::compile(&f, &crate::Options::new(target)).unwrap().exec;
            assert_eq!(crate::kernel::interp::run_executable(&exec, &args).unwrap(), want, "{target:?}");
            for shader in exec.kernels.iter().flat_map(|k| &k.shaders) {
                crate::wgsl::check(&shader.wgsl).unwrap();
            }
        }
    }

    #[test]
    fn f16_arithmetic_stays_where_the_target_has_it_but_sums_are_wide() {
        let target = Target::Gpu(GpuLimits { f16: true, ..GpuLimits::default() });
        let f = precision(&program(DType::F16), &target).unwrap();
        assert!(f.nodes.iter().any(|n| matches!(n.op, Op::Binary(_)) && f.ty(n.results[0]).dtype == DType::F16));
        assert!(
            f.nodes
                .iter()
                .all(|n| !matches!(n.op, Op::Reduce { .. } | Op::Dot { .. }) || f.ty(n.results[0]).dtype == DType::F32)
        );
    }

    #[test]
    fn f32_programs_are_left_alone_and_f64_is_refused() {
        let f = program(DType::F32);
        assert_eq!(precision(&f, &Target::Cpu).unwrap(), f);
        let e = precision(&program(DType::F64), &Target::Cpu).unwrap_err().to_string();
        assert!(e.contains("f64") && e.contains("precision"), "{e}");
    }
}
