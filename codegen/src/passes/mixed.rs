//! Mixed precision: contractions read 16-bit operands, and what they give is kept in 16 bits; everything is computed
//! and summed in `f32`.
//!
//! The pass runs on the whole training step, after differentiation. There a contraction of the backward pass is a
//! contraction like any other, so one table serves forward, backward and forward derivatives; and the weights, their
//! gradients, sums over micro-batches and the optimizer's state are `f32` because nothing narrows them, not because
//! they are recognised.
//!
//! What an op does with narrow values is said by [`role`]. In short:
//!
//! * `dot_general` and `conv` read their `f32` operands rounded to the storage type. The rounding happens where the
//!   operand is made, before the views through which it is read, so a weight is copied once per step and a value that
//!   is read through three slices is stored once.
//! * Attention that a kernel claims reads and gives narrow values.
//! * A value that a contraction has made or gone into (an activation, its tangent, its cotangent) is rounded for *all*
//!   its users if a contraction reads it: then it need not be kept in `f32` as well. So is the result of a contraction
//!   on which a further contraction depends, which leaves out gradients of weights. Inputs, noise and weights stay as
//!   they are for everybody else, and so do results of the function.
//! * Scores whose maximum is taken (softmax, cross-entropy) are not rounded.
//! * Norms, reductions, losses and all pointwise arithmetic compute in `f32` from what they are given.
//!
//! `f16` has a narrow range: gradients need loss scaling (the training step sees to it). `bf16` has the range of `f32`.
//! The fp8 formats are emulated, see [`super::fp8`]: operands of contractions are rounded to 256 values with one
//! power-of-two scale per tensor, held exactly in `f16`, and the product is scaled back.

use super::{copy_param, fp8};
use crate::{InStage, Precision, Result, Stage};
use dnx_ir::attention::Attention;
use dnx_ir::{BinaryOp, Builder, DType, Func, Node, Op, ReduceKind, ValueId};

/// What narrow storage means to an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Reads its operands narrow, sums in `f32`.
    Contracts,
    /// Attention that a kernel claims: reads and gives narrow values, its statistics and its bias are `f32`.
    Attends,
    /// The same elements elsewhere: narrow if its operand is.
    Views,
    /// Passes its operands on, each by itself.
    Passes,
    /// Computes in `f32`, element by element.
    Computes,
    /// Computes in `f32` from several elements, moves elements into new memory, or makes them.
    Gathers,
}

fn role(op: &Op) -> Role {
    match op {
        Op::Dot { .. } | Op::Conv { .. } => Role::Contracts,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } => Role::Views,
        Op::Slice { .. } | Op::Reverse { .. } => Role::Views,
        Op::OptimizationBarrier => Role::Passes,
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Convert(_) | Op::Bitcast(_) => Role::Computes,
        Op::Reduce { .. } | Op::Argmax { .. } | Op::Take { .. } | Op::ScatterAdd { .. } => Role::Gathers,
        Op::Pad { .. } | Op::Concat { .. } | Op::DynamicSlice { .. } | Op::DynamicUpdateSlice => Role::Gathers,
        Op::Param { .. } | Op::Const(_) | Op::Iota { .. } | Op::RandomBits { .. } => Role::Gathers,
        Op::AxisIndex { .. } | Op::Reshard { .. } | Op::AllReduce { .. } | Op::AllGather { .. } => Role::Gathers,
        Op::ReduceScatter { .. } | Op::AllToAll { .. } | Op::Ppermute { .. } => Role::Gathers,
        Op::Composite { .. } if Attention::of(op).is_some() => Role::Attends,
        Op::Call { .. } | Op::Composite { .. } => Role::Gathers,
    }
}

/// How narrow values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storage {
    Float(DType),
    Fp8(fp8::Format),
}

/// The function with narrow storage between its kernels. It must be free of calls.
///
/// # Errors
/// None on a function that the verifier accepts.
pub fn mixed(func: &Func, precision: Precision) -> Result<Func> {
    let storage = match precision {
        Precision::F32 => return Ok(func.clone()),
        Precision::F16 => Storage::Float(DType::F16),
        Precision::Bf16Storage => Storage::Float(DType::BF16),
        Precision::Fp8E4m3 => Storage::Fp8(fp8::Format::E4m3),
        Precision::Fp8E5m2 => Storage::Fp8(fp8::Format::E5m2),
    };
    let rounded = match storage {
        Storage::Float(_) => rounded(func),
        Storage::Fp8(_) => vec![false; func.values.len()],
    };
    Narrower { func, storage, rounded, wide: vec![None; func.values.len()], narrow: vec![None; func.values.len()] }
        .run()
        .in_stage(Stage::Precision)
}

/// Where the elements that a contraction reads are made: views and barriers looked through.
fn origin(func: &Func, mut v: ValueId) -> ValueId {
    loop {
        let node = func.def(v);
        v = match role(&node.op) {
            Role::Views => node.operands[0],
            Role::Passes => node.operands[node.results.iter().position(|&r| r == v).expect("a result of its node")],
            Role::Contracts | Role::Attends | Role::Computes | Role::Gathers => return v,
        };
    }
}

/// Which operands a node reads narrow.
fn reads_narrow(func: &Func, node: &Node) -> Vec<bool> {
    let is_f32 = |v: &ValueId| func.ty(*v).dtype == DType::F32;
    match role(&node.op) {
        Role::Contracts => vec![node.operands.iter().chain(&node.results).all(is_f32); node.operands.len()],
        Role::Attends => {
            // Queries, keys, values, outputs and what belongs to them have four dims, row statistics three.
            let bias = Attention::of(&node.op).map_or(0, |a| a.form.operands());
            node.operands.iter().enumerate().map(|(i, v)| i < bias && func.ty(*v).rank() == 4 && is_f32(v)).collect()
        }
        Role::Views | Role::Passes | Role::Computes | Role::Gathers => vec![false; node.operands.len()],
    }
}

/// Values that are rounded for all their users.
fn rounded(func: &Func) -> Vec<bool> {
    let n = func.values.len();
    // Values that a contraction has gone into, forwards, and those that go into a contraction or a maximum, backwards.
    let (mut after, mut before, mut score) = (vec![false; n], vec![false; n], vec![false; n]);
    for node in &func.nodes {
        let contracts = matches!(role(&node.op), Role::Contracts | Role::Attends);
        let any = contracts || node.operands.iter().any(|o| after[o.index()]);
        for (i, r) in node.results.iter().enumerate() {
            after[r.index()] = if role(&node.op) == Role::Passes { after[node.operands[i].index()] } else { any };
        }
    }
    for node in func.nodes.iter().rev() {
        let any = |of: &[bool]| node.results.iter().any(|r| of[r.index()]);
        let (reaches, ranked) = match role(&node.op) {
            Role::Contracts | Role::Attends => (true, false),
            Role::Views | Role::Computes => (any(&before), any(&score)),
            Role::Gathers => {
                (any(&before), matches!(node.op, Op::Reduce { kind: ReduceKind::Max, .. } | Op::Argmax { .. }))
            }
            Role::Passes => {
                for (o, r) in node.operands.iter().zip(&node.results) {
                    before[o.index()] |= before[r.index()];
                    score[o.index()] |= score[r.index()];
                }
                continue;
            }
        };
        for o in &node.operands {
            before[o.index()] |= reaches;
            score[o.index()] |= ranked;
        }
    }
    let mut rounded = vec![false; n];
    for node in &func.nodes {
        for (&o, _) in node.operands.iter().zip(reads_narrow(func, node)).filter(|(_, narrow)| *narrow) {
            let made = origin(func, o);
            rounded[made.index()] |= after[made.index()];
        }
        if role(&node.op) == Role::Contracts {
            let result = node.results[0].index();
            rounded[result] |= before[result] && !score[result];
        }
    }
    for (v, r) in rounded.iter_mut().enumerate() {
        *r &= func.values[v].ty.dtype == DType::F32;
    }
    func.results.iter().for_each(|r| rounded[r.index()] = false);
    rounded
}

/// A value in narrow storage: the elements are `value * scale`, or `value` where there is no scale.
#[derive(Clone, Copy)]
struct Narrow {
    value: ValueId,
    scale: Option<ValueId>,
}

struct Narrower<'f> {
    func: &'f Func,
    storage: Storage,
    rounded: Vec<bool>,
    /// Per old value the new one.
    wide: Vec<Option<ValueId>>,
    /// Per old value its narrow form, if it has been asked for.
    narrow: Vec<Option<Narrow>>,
}

impl Narrower<'_> {
    fn run(mut self) -> dnx_ir::Result<Func> {
        let func = self.func;
        let mut b = Builder::on_mesh(&func.name, func.mesh.clone());
        for (i, p) in func.params.iter().enumerate() {
            self.wide[p.value.index()] = Some(copy_param(&mut b, func, i));
        }
        for node in &func.nodes {
            if matches!(node.op, Op::Param { .. }) {
                continue;
            }
            b.set_loc(node.loc.clone());
            let results = match role(&node.op) {
                Role::Contracts => self.contraction(&mut b, node)?,
                Role::Attends => {
                    self.attention(&mut b, node)?;
                    continue;
                }
                Role::Passes => {
                    self.barrier(&mut b, node)?;
                    continue;
                }
                Role::Views | Role::Computes | Role::Gathers => {
                    let operands: Vec<ValueId> = node.operands.iter().map(|&o| self.wide(o)).collect();
                    b.emit_multi(node.op.clone(), &operands)?
                }
            };
            for (&old, new) in node.results.iter().zip(results) {
                self.wide[old.index()] = Some(new);
                if self.rounded[old.index()] {
                    let narrow = self.narrow(&mut b, old)?;
                    self.wide[old.index()] = Some(b.convert(narrow.value, DType::F32)?);
                }
            }
        }
        let results: Vec<ValueId> = func.results.iter().map(|&r| self.wide(r)).collect();
        Ok(b.finish(&results))
    }

    fn wide(&self, v: ValueId) -> ValueId {
        self.wide[v.index()].expect("values are defined before their users")
    }

    /// A value in narrow storage.
    fn narrow(&mut self, b: &mut Builder, v: ValueId) -> dnx_ir::Result<Narrow> {
        if let Some(narrow) = self.narrow[v.index()] {
            return Ok(narrow);
        }
        let node = self.func.def(v);
        let here = b.loc().clone();
        let narrow = match role(&node.op) {
            Role::Views => {
                let inner = self.narrow(b, node.operands[0])?;
                b.set_loc(node.loc.clone());
                Narrow { value: b.emit(node.op.clone(), &[inner.value])?, ..inner }
            }
            // What lives in memory anyway is not computed again behind a barrier: one copy serves both sides.
            Role::Passes if self.is_given(v) => {
                let at = node.results.iter().position(|&r| r == v).expect("a result of its node");
                self.narrow(b, node.operands[at])?
            }
            Role::Passes | Role::Contracts | Role::Attends | Role::Computes | Role::Gathers => {
                b.set_loc(node.loc.clone());
                let x = self.wide(v);
                match self.storage {
                    Storage::Float(dtype) => Narrow { value: b.convert(x, dtype)?, scale: None },
                    Storage::Fp8(format) => {
                        let (value, scale) = fp8::quantize(b, x, format)?;
                        Narrow { value: b.convert(value, DType::F16)?, scale: Some(scale) }
                    }
                }
            }
        };
        b.set_loc(here);
        self.narrow[v.index()] = Some(narrow);
        Ok(narrow)
    }

    /// Whether the elements are those of a parameter or a constant.
    fn is_given(&self, v: ValueId) -> bool {
        matches!(self.func.def(origin(self.func, v)).op, Op::Param { .. } | Op::Const(_))
    }

    fn contraction(&mut self, b: &mut Builder, node: &Node) -> dnx_ir::Result<Vec<ValueId>> {
        if reads_narrow(self.func, node).contains(&false) {
            let operands: Vec<ValueId> = node.operands.iter().map(|&o| self.wide(o)).collect();
            return b.emit_multi(node.op.clone(), &operands);
        }
        let [x, y] = [self.narrow(b, node.operands[0])?, self.narrow(b, node.operands[1])?];
        let product = b.emit(node.op.clone(), &[x.value, y.value])?;
        let (Some(s), Some(t)) = (x.scale, y.scale) else { return Ok(vec![product]) };
        let scale = b.emit(Op::Binary(BinaryOp::Mul), &[s, t])?;
        let dims = b.dims(product).to_vec();
        let scale = b.broadcast(scale, &dims, &[])?;
        Ok(vec![b.emit(Op::Binary(BinaryOp::Mul), &[product, scale])?])
    }

    /// Attention in the storage type; in `f32` where operands would need scales.
    fn attention(&mut self, b: &mut Builder, node: &Node) -> dnx_ir::Result<()> {
        let mut operands = vec![];
        for (&o, narrow) in node.operands.iter().zip(reads_narrow(self.func, node)) {
            let narrow = narrow && matches!(self.storage, Storage::Float(_));
            operands.push(if narrow { self.narrow(b, o)?.value } else { self.wide(o) });
        }
        let Some(attention) = Attention::of(&node.op) else { unreachable!("its role says so") };
        for (&old, new) in node.results.iter().zip(attention.emit(b, &operands)?) {
            self.wide[old.index()] = Some(b.convert(new, self.func.ty(old).dtype)?);
            if b.ty(new).dtype != self.func.ty(old).dtype {
                self.narrow[old.index()] = Some(Narrow { value: new, scale: None });
            }
        }
        Ok(())
    }

    /// What is stored narrow stays so behind a barrier.
    fn barrier(&mut self, b: &mut Builder, node: &Node) -> dnx_ir::Result<()> {
        let stored: Vec<bool> = node.operands.iter().map(|&o| self.rounded[origin(self.func, o).index()]).collect();
        let mut operands = vec![];
        for (&o, &stored) in node.operands.iter().zip(&stored) {
            operands.push(if stored { self.narrow(b, o)?.value } else { self.wide(o) });
        }
        let results = b.emit_multi(node.op.clone(), &operands)?;
        for ((&old, new), stored) in node.results.iter().zip(results).zip(stored) {
            self.wide[old.index()] = Some(new);
            if stored {
                self.narrow[old.index()] = Some(Narrow { value: new, scale: None });
                self.wide[old.index()] = Some(b.convert(new, DType::F32)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::interp::run_executable;
    use crate::passes::canonical::canonical;
    use crate::{Options, Target, compile};
    use dnx_ir::interp::{self, eval};
    use dnx_ir::{Array, Graph, Type};

    /// The loss of two layers with a smooth activation between them and a normalisation after them.
    fn loss() -> Func {
        let g = Graph::new("loss");
        let (w1, w2) = (g.param("w1", Type::f32([7, 5])), g.param("w2", Type::f32([5, 3])));
        let (b1, x) = (g.param("b1", Type::f32([5])), g.param("x", Type::f32([6, 7])));
        let h = (x.matmul(w1) + b1).silu();
        let y = h.matmul(w2);
        let centred = y - y.mean(&[1]).unsqueeze(1);
        g.finish(&[(centred * (centred.square().mean(&[1]).unsqueeze(1) + 0.1).rsqrt() * x.slice(1, 0, 3)).mean_all()])
            .unwrap()
    }

    fn gradient() -> Func {
        canonical(&dnx_autodiff::value_and_grad(&loss(), &[0, 1, 2]).unwrap()).unwrap()
    }

    fn args(f: &Func) -> Vec<Array> {
        let value = |i: usize| ((i * 37 + 11) % 64) as f64 / 32.0 - 1.0;
        let array = |ty: &Type| Array::from_f64(ty.clone(), &(0..ty.elems()).map(value).collect::<Vec<_>>());
        f.param_types().into_iter().map(array).collect()
    }

    const HALVES: [(Precision, DType); 2] = [(Precision::F16, DType::F16), (Precision::Bf16Storage, DType::BF16)];

    #[test]
    fn contractions_read_narrow_and_gradients_are_wide() {
        for (precision, dtype) in HALVES {
            let f = canonical(&mixed(&gradient(), precision).unwrap()).unwrap();
            let mut dots = 0;
            for node in f.nodes.iter().filter(|n| matches!(n.op, Op::Dot { .. })) {
                assert!(node.operands.iter().all(|&o| f.ty(o).dtype == dtype));
                assert_eq!(f.ty(node.results[0]).dtype, DType::F32);
                dots += 1;
            }
            assert_eq!(dots, 5, "two forward, two for the weights, one for the activation");
            for p in &f.params {
                let users = f.nodes.iter().filter(|n| n.operands.contains(&p.value));
                let copies = users.filter(|n| n.op == Op::Convert(dtype)).count();
                assert_eq!(copies, (*p.name != *"b1") as usize, "{} is copied once or not at all", p.name);
            }
            let arithmetic = |n: &&Node| matches!(n.op, Op::Unary(_) | Op::Binary(_) | Op::Reduce { .. });
            for node in f.nodes.iter().filter(arithmetic) {
                assert_eq!(f.ty(node.results[0]).dtype, DType::F32, "{}", node.op.name());
            }
            for &r in &f.results {
                let made = f.def(origin(&f, r));
                let narrow = made.operands.iter().any(|&o| f.ty(o).dtype == dtype);
                assert!(!(narrow && matches!(made.op, Op::Convert(_))), "a result was rounded");
            }
        }
    }

    #[test]
    fn what_lies_between_kernels_is_narrow() {
        let f = gradient();
        for (precision, dtype) in HALVES {
            let compiled = compile(&f, &Options::default().with_precision(precision)).unwrap();
            let func = &compiled.prepared;
            // Matrices that kernels hand over: [6, 5] and [6, 3] activations and their cotangents.
            for kernel in &compiled.exec.kernels {
                let wide = kernel.kernel.args.iter().filter(|a| a.dtype == DType::F32 && a.elems == 30).count();
                assert_eq!(wide, 0, "{}\n{}", kernel.kernel, dnx_ir::text::print(func));
            }
            assert!(
                compiled.exec.kernels.iter().any(|k| k.kernel.args.iter().any(|a| a.dtype == dtype && a.elems == 30))
            );
        }
    }

    #[test]
    fn scores_and_results_are_not_rounded() {
        let g = Graph::new("f");
        let (x, w) = (g.param("x", Type::f32([4, 4])), g.param("w", Type::f32([4, 4])));
        let s = x.matmul(w) * 3.0;
        let p = (s - s.max(&[1]).unsqueeze(1)).exp();
        let hidden = p.matmul(w);
        let f = g.finish(&[hidden.matmul(w), hidden]).unwrap();
        let m = mixed(&f, Precision::F16).unwrap();
        let widened = |n: &&Node| n.op == Op::Convert(DType::F32);
        assert_eq!(m.nodes.iter().filter(widened).count(), 1, "the weights of the softmax alone are rounded for all");
        let narrowed = m.nodes.iter().filter(|n| n.op == Op::Convert(DType::F16)).count();
        assert_eq!(narrowed, 4, "x, w, the softmax, and a copy of the result");
    }

    #[test]
    fn attention_reads_and_gives_narrow_values_and_f32_statistics() {
        let g = Graph::new("f");
        let x = g.param("x", Type::f32([2, 4, 6]));
        let w = g.param("w", Type::f32([6, 6]));
        let bias = g.param("bias", Type::f32([1, 1, 4, 4]));
        let heads = x.matmul(w).reshape(&[2, 4, 3, 2]);
        let (o, lse) = dnx_ir::attention::attention(heads, heads, heads, Some(bias), 0.7, true);
        let f = g.finish(&[(o.sum_all() + lse.sum_all())]).unwrap();
        let f = dnx_autodiff::value_and_grad(&f, &[1]).unwrap();
        for (precision, dtype) in HALVES {
            let m = mixed(&f, precision).unwrap();
            dnx_ir::verify::verify(&m).unwrap();
            let nodes: Vec<&Node> = m.nodes.iter().filter(|n| Attention::of(&n.op).is_some()).collect();
            assert_eq!(nodes.len(), 2, "forward and backward");
            for node in nodes {
                let wide = |v: &&ValueId| m.ty(**v).dtype == DType::F32;
                let bias_and_statistics = node.operands.iter().filter(wide).map(|&v| m.ty(v).dims.clone());
                assert!(bias_and_statistics.into_iter().all(|d| d == [1, 1, 4, 4] || d == [2, 3, 4]));
                assert_eq!(m.ty(node.operands[0]).dtype, dtype);
            }
            let args = args(&f);
            let [exact, narrow] = [&f, &m].map(|f| eval(f, &args, interp::Precision::F32).unwrap());
            for (a, b) in exact.iter().zip(&narrow).flat_map(|(a, b)| a.to_f64_vec().into_iter().zip(b.to_f64_vec())) {
                assert!((a - b).abs() <= 0.02 * a.abs().max(1.0), "{precision:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn behind_a_barrier_narrow_values_stay_narrow() {
        let g = Graph::new("f");
        let (x, w) = (g.param("x", Type::f32([4, 4])), g.param("w", Type::f32([4, 4])));
        let h = x.matmul(w).tanh();
        let behind = [h.transpose(&[1, 0]), w].map(|t| t.apply(Op::OptimizationBarrier, &[]));
        let f = g.finish(&[h.matmul(w), behind[0].exp().matmul(behind[1]), behind[0].matmul(w)]).unwrap();
        let m = canonical(&mixed(&f, Precision::Bf16Storage).unwrap()).unwrap();
        let barrier = m.nodes.iter().find(|n| n.op == Op::OptimizationBarrier).unwrap();
        assert_eq!(m.ty(barrier.operands[0]).dtype, DType::BF16);
        let copies =
            |n: &&Node| n.op == Op::Convert(DType::BF16) && matches!(m.def(n.operands[0]).op, Op::Param { .. });
        assert_eq!(m.nodes.iter().filter(copies).count(), 2, "w is copied once");
        dnx_ir::verify::verify(&m).unwrap();
    }

    #[test]
    fn what_passes_a_barrier_beside_an_activation_is_not_taken_for_one() {
        let g = Graph::new("f");
        let (x, w) = (g.param("x", Type::f32([4, 4])), g.param("w", Type::f32([4, 4])));
        let (h, sum) = (x.matmul(w).tanh(), w.matmul(x));
        let behind = g.barrier(&[h, sum]);
        let f = g.finish(&[behind[0].matmul(w), behind[1] + 1.0]).unwrap();
        let m = mixed(&f, Precision::F16).unwrap();
        let barrier = m.nodes.iter().find(|n| n.op == Op::OptimizationBarrier).unwrap();
        let dtypes: Vec<DType> = barrier.operands.iter().map(|&v| m.ty(v).dtype).collect();
        assert_eq!(dtypes, [DType::F16, DType::F32]);
    }

    #[test]
    fn kernels_give_what_the_pass_says_and_that_is_close_to_f32() {
        let f = gradient();
        let args = args(&f);
        let exact = eval(&f, &args, interp::Precision::F32).unwrap();
        let cases = [
            (Precision::F16, 4e-3),
            (Precision::Bf16Storage, 3e-2),
            (Precision::Fp8E4m3, 0.25),
            (Precision::Fp8E5m2, 0.5),
        ];
        for (precision, bound) in cases {
            let want = eval(&mixed(&f, precision).unwrap(), &args, interp::Precision::F32).unwrap();
            let gpu = |f16| Target::Gpu(crate::GpuLimits { f16, ..crate::GpuLimits::default() });
            for target in [Target::Cpu, gpu(false), gpu(true)] {
                let compiled = compile(&f, &Options::new(target).with_precision(precision)).unwrap();
                let got = run_executable(&compiled.exec, &args).unwrap();
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    // A sum in another order may round to the neighbour.
                    for (x, y) in got.to_f64_vec().iter().zip(want.to_f64_vec()) {
                        assert!((x - y).abs() <= bound / 4.0 * y.abs().max(0.05), "{precision:?} result {i}: {x} {y}");
                    }
                }
                for shader in compiled.exec.kernels.iter().flat_map(|k| &k.shaders) {
                    crate::wgsl::check(&shader.wgsl).unwrap();
                }
            }
            for (got, want) in want.iter().zip(&exact) {
                let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                let (a, b) = (got.to_f64_vec(), want.to_f64_vec());
                let error = norm(&a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(&b);
                assert!(error <= bound, "{precision:?}: {error}");
            }
        }
    }
}
