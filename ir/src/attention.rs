//! Attention and its derivatives as composites: each is named, so that a lowering may claim it, and defined by a
//! decomposition into ops.
//!
//! With `s = scale q k^T + bias` (minus infinity, nearly, where `causal` hides a key), `p = softmax(s)`, a prime for
//! tangents and `d` for cotangents:
//!
//! | form | operands | results |
//! |---|---|---|
//! | `attention` | q k v [bias] | `o = p v`, `lse = log sum exp s` |
//! | `attention_jvp` | q k v o lse q' k' v' [bias [bias']] | `o' = (p s') v + p v' - lse' o`, `lse' = sum p s'` |
//! | `attention_bwd` | q k v o lse do dlse [bias] | `dq = scale ds k`, `dk = scale ds^T q`, `dv = p^T do` |
//!
//! where `s' = scale (q' k^T + q k'^T) + bias'`, `ds = p (do v^T - sum(do o) + dlse)`, and both derivatives take the
//! weights as `exp(s - lse)`: no maximum and no sum stands between them and their operands. `attention_jvp` is linear in
//! the tangents and `attention_bwd` its transpose, so each is the other's transpose.
//!
//! `q` and `o` are `[B, Tq, H, d]`, `k` and `v` `[B, Tk, H, d]`, of one float dtype; `lse` is `f32[B, H, Tq]`; `bias` is
//! a float of dims `[B or 1, H or 1, Tq or 1, Tk or 1]`. Everything between is `f32`. A causal query `i` sees the keys
//! `0..=i`. A mask is a bias of 0 and [`HIDDEN`]; a row that sees no key at all then weighs them alike. (A causal row whose
//! first keys are all hidden too has finite weights that sum to one; a kernel may leave out keys after it.)

use crate::{
    AttrValue, Builder, CmpOp, DType, DotDims, Func, Graph, Mesh, Op, Result, Scalar, Sharding, Tensor, Type, ValueId,
    bail,
};
use std::sync::Arc;

/// Added to the score of a key that is not to be seen: finite, so that no row is without a maximum.
pub const HIDDEN: f64 = -1e30;

/// Scores of one head that a decomposition may hold at once; larger ones are computed in blocks of queries.
const BLOCK: usize = 1 << 20;

/// Which of the composites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `attention`.
    Forward,
    /// `attention_jvp`.
    Jvp,
    /// `attention_bwd`.
    Backward,
}

impl Form {
    /// The composite's name.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Forward => "attention",
            Form::Jvp => "attention_jvp",
            Form::Backward => "attention_bwd",
        }
    }

    /// The number of operands without those of the bias.
    pub const fn operands(self) -> usize {
        match self {
            Form::Forward => 3,
            Form::Jvp => 8,
            Form::Backward => 7,
        }
    }

    /// The operands it is linear in together (of those that every node of the form has).
    pub const fn linear(self) -> &'static [usize] {
        match self {
            Form::Forward => &[],
            Form::Jvp => &[5, 6, 7],
            Form::Backward => &[5, 6],
        }
    }

    const fn names(self) -> &'static [&'static str] {
        match self {
            Form::Forward => &["q", "k", "v", "bias"],
            Form::Jvp => &["q", "k", "v", "o", "lse", "dq", "dk", "dv", "bias", "dbias"],
            Form::Backward => &["q", "k", "v", "o", "lse", "do", "dlse", "bias"],
        }
    }
}

/// One of the composites with its attributes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Which one.
    pub form: Form,
    /// What products of queries and keys are multiplied with.
    pub scale: f64,
    /// Whether query `i` sees the keys up to `i` only.
    pub causal: bool,
}

impl Attention {
    /// What an op is, if it is one of these.
    pub fn of(op: &Op) -> Option<Attention> {
        let Op::Composite { name, attrs, func } = op else { return None };
        let form = [Form::Forward, Form::Jvp, Form::Backward].into_iter().find(|f| f.name() == &**name)?;
        let (mut scale, mut causal) = (None, None);
        for (key, value) in attrs {
            match (key.as_str(), value) {
                ("scale", AttrValue::Float(s)) => scale = Some(s.to_f64()),
                ("causal", AttrValue::Bool(c)) => causal = Some(*c),
                _ => return None,
            }
        }
        let spec = Attention { form, scale: scale?, causal: causal? };
        let types: Vec<&Type> = func.param_types();
        spec.check(&types).ok().map(|()| spec)
    }

    /// The same attributes in another form.
    pub fn with(self, form: Form) -> Attention {
        Attention { form, ..self }
    }

    /// The operand that is the bias, if there are that many operands.
    pub fn bias(self, operands: usize) -> Option<usize> {
        let at = self.form.operands();
        (operands > at).then_some(at)
    }

    /// The operand that is the bias's tangent, if there are that many operands.
    pub fn bias_tangent(self, operands: usize) -> Option<usize> {
        (self.form == Form::Jvp && operands == 10).then_some(9)
    }

    /// The op on operands of these types.
    ///
    /// # Errors
    /// If the types do not fit together.
    pub fn op(self, types: &[&Type], mesh: &Mesh) -> Result<Op> {
        let attrs = vec![
            ("causal".to_string(), AttrValue::Bool(self.causal)),
            ("scale".to_string(), AttrValue::Float(Scalar::from_f64(DType::F64, self.scale))),
        ];
        let func = self.decomposition(types, mesh)?;
        Ok(Op::Composite { name: self.form.name().into(), attrs, func: Arc::new(func) })
    }

    /// Emits the op.
    ///
    /// # Errors
    /// If the operands' types do not fit together.
    pub fn emit(self, b: &mut Builder, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let types: Vec<&Type> = operands.iter().map(|&v| b.ty(v)).collect();
        let op = self.op(&types, &b.func().mesh)?;
        b.emit_multi(op, operands)
    }

    /// The function that defines the op.
    ///
    /// # Errors
    /// If the types do not fit together.
    pub fn decomposition(self, types: &[&Type], mesh: &Mesh) -> Result<Func> {
        self.check(types)?;
        self.define(self.form.name(), types, mesh, 0, &|d| d.results())
    }

    /// The same function for differentiation: where there are many scores, in blocks of queries that reverse mode
    /// recomputes, so that the scores of one block are all that is ever held.
    ///
    /// # Errors
    /// If the types do not fit together.
    pub fn in_blocks(self, types: &[&Type], mesh: &Mesh) -> Result<Func> {
        self.check(types)?;
        let sums: &[Option<usize>] = match self.form {
            Form::Forward | Form::Jvp => &[Some(1), Some(2)],
            Form::Backward => &[Some(1), None, None],
        };
        self.blocks(self.form.name(), types, mesh, sums, &|d| d.results())
    }

    /// The bias's cotangent from the operands of the backward form (a bias included), in blocks of queries.
    ///
    /// # Errors
    /// If the types do not fit together.
    pub fn bias_cotangent(self, types: &[&Type], mesh: &Mesh) -> Result<Func> {
        let this = self.with(Form::Backward);
        this.check(types)?;
        let Some(bias) = this.bias(types.len()) else { bail!("attention without a bias has no cotangent of one") };
        let along = if types[bias].dims[2] > 1 { Some(2) } else { None };
        this.blocks("attention_bwd_bias", types, mesh, &[along], &|d| vec![d.bias_cotangent()])
    }

    fn check(self, types: &[&Type]) -> Result<()> {
        let (least, names) = (self.form.operands(), self.form.names());
        if types.len() < least || types.len() > names.len() {
            bail!("{} takes {least} to {} operands, not {}", self.form.name(), names.len(), types.len());
        }
        let &[b, tq, h, d] = &types[0].dims[..] else {
            bail!("queries are [batch, queries, heads, head dim], not {}", types[0]);
        };
        let &[_, tk, ..] = &types[1].dims[..] else {
            bail!("keys are [batch, keys, heads, head dim], not {}", types[1])
        };
        let dtype = types[0].dtype;
        for (ty, name) in types.iter().zip(names) {
            let (wanted, fits) = match *name {
                "k" | "v" | "dk" | "dv" => (vec![b, tk, h, d], ty.dtype == dtype),
                "lse" | "dlse" => (vec![b, h, tq], ty.dtype == DType::F32),
                "bias" | "dbias" => {
                    let wanted = [b, h, tq, tk];
                    let broadcasts = ty.rank() == 4 && ty.dims.iter().zip(wanted).all(|(&n, w)| n == w || n == 1);
                    let as_bias = *name == "bias" || ty.dims == types[least].dims;
                    (if broadcasts && as_bias { ty.dims.clone() } else { wanted.to_vec() }, true)
                }
                _ => (vec![b, tq, h, d], ty.dtype == dtype),
            };
            if ty.dims != wanted || !fits || !ty.dtype.is_float() {
                bail!(
                    "operand {name} of {} is {ty}, which does not fit {} and dims {wanted:?}",
                    self.form.name(),
                    dtype
                );
            }
        }
        Ok(())
    }

    /// The decomposition of queries that begin at `first`; `results` says what is wanted of it.
    fn define(self, name: &str, types: &[&Type], mesh: &Mesh, first: usize, results: Results) -> Result<Func> {
        let g = Graph::on_mesh(name, mesh.clone());
        let x = self.params(&g, types);
        g.finish(&results(&Definition { spec: self, x: &x, first }))
    }

    fn params<'g>(self, g: &'g Graph, types: &[&Type]) -> Vec<Tensor<'g>> {
        types.iter().zip(self.form.names()).map(|(&ty, name)| g.param(name, ty.clone())).collect()
    }

    /// [`Attention::define`] over blocks of queries: results are joined along the dims in `joined`, others added.
    fn blocks(
        self,
        name: &str,
        types: &[&Type],
        mesh: &Mesh,
        joined: &[Option<usize>],
        results: Results,
    ) -> Result<Func> {
        let (queries, keys) = (types[0].dims[1], types[1].dims[1]);
        let count = (queries * keys).div_ceil(BLOCK).min(queries);
        if count <= 1 || !types[0].sharding.dim(1).is_empty() {
            return self.define(name, types, mesh, 0, results);
        }
        let rows = queries.div_ceil(count);
        let g = Graph::on_mesh(name, mesh.clone());
        let x = self.params(&g, types);
        let mut parts: Vec<Vec<Tensor>> = vec![vec![]; joined.len()];
        let mut made: Option<(usize, Arc<Func>)> = None;
        for first in (0..queries).step_by(rows) {
            let here = rows.min(queries - first);
            let mut args = Vec::with_capacity(x.len());
            for (&x, name) in x.iter().zip(self.form.names()) {
                args.push(match *name {
                    "q" | "o" | "dq" | "do" => x.slice(1, first, first + here),
                    "lse" | "dlse" => x.slice(2, first, first + here),
                    "bias" | "dbias" if x.dim(2) > 1 => x.slice(2, first, first + here),
                    _ => x,
                });
            }
            let func = match &made {
                Some((rows, func)) if *rows == here && !self.causal => func.clone(),
                _ => {
                    let types: Vec<Type> = args.iter().map(|t| t.ty()).collect();
                    Arc::new(self.define(name, &types.iter().collect::<Vec<_>>(), mesh, first, results)?)
                }
            };
            for (part, result) in parts.iter_mut().zip(g.call_remat(&func, &args)) {
                part.push(result);
            }
            made = Some((here, func));
        }
        let mut out = Vec::with_capacity(joined.len());
        for (parts, along) in parts.iter().zip(joined) {
            out.push(match along {
                Some(dim) => g.concat(parts, *dim),
                None => parts[1..].iter().fold(parts[0], |sum, &part| sum + part),
            });
        }
        g.finish(&out)
    }
}

/// What is wanted of a decomposition.
type Results<'r> = &'r dyn for<'a, 'g> Fn(&Definition<'a, 'g>) -> Vec<Tensor<'g>>;

/// A decomposition under construction.
struct Definition<'a, 'g> {
    spec: Attention,
    x: &'a [Tensor<'g>],
    /// Place of query 0.
    first: usize,
}

impl<'g> Definition<'_, 'g> {
    fn operand(&self, name: &str) -> Tensor<'g> {
        let names = self.spec.form.names();
        self.x[names.iter().position(|n| *n == name).expect("an operand of the form")]
    }

    /// An operand in `f32`. Every query sees all keys: where they are split over devices, they are gathered.
    fn at(&self, name: &str) -> Tensor<'g> {
        let x = self.operand(name);
        let sharding = x.ty().sharding;
        let x = match name {
            "k" | "v" | "dk" | "dv" if !sharding.dim(1).is_empty() => {
                let mut dims = sharding.dims;
                dims[1].clear();
                x.reshard(Sharding::new(dims, vec![]))
            }
            _ => x,
        };
        x.convert(DType::F32)
    }

    /// A cotangent laid out as its operand: what queries on several devices add to one key is summed.
    fn laid(&self, t: Tensor<'g>, name: &str) -> Tensor<'g> {
        let sharding = self.operand(name).ty().sharding;
        if t.ty().sharding == sharding { t } else { t.reshard(sharding) }
    }

    fn has(&self, name: &str) -> bool {
        self.spec.form.names().iter().position(|n| *n == name).is_some_and(|i| i < self.x.len())
    }

    /// `a b^T` per head: `[B, M, H, d]` and `[B, N, H, d]` to `[B, H, M, N]`.
    fn products(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        a.dot(b, DotDims { lhs_batch: vec![0, 2], rhs_batch: vec![0, 2], lhs_contract: vec![3], rhs_contract: vec![3] })
    }

    /// `w x` per head: `[B, H, M, N]` and `[B, N, H, d]` to `[B, M, H, d]`; with `over` 2 the sum is over M.
    fn weighted(&self, w: Tensor<'g>, over: usize, x: Tensor<'g>) -> Tensor<'g> {
        let dims =
            DotDims { lhs_batch: vec![0, 1], rhs_batch: vec![0, 2], lhs_contract: vec![over], rhs_contract: vec![1] };
        w.dot(x, dims).transpose(&[0, 2, 1, 3])
    }

    fn scores(&self) -> Tensor<'g> {
        let s = self.products(self.at("q"), self.at("k")) * self.spec.scale;
        let s = if self.has("bias") { s + self.at("bias") } else { s };
        if !self.spec.causal {
            return s;
        }
        let (g, dims) = (s.graph(), s.dims());
        let query = g.iota(DType::I32, &dims[2..], 0) + g.scalar(DType::I32, self.first as f64);
        let seen = g.iota(DType::I32, &dims[2..], 1).compare(CmpOp::Le, query);
        seen.select(s, g.scalar(DType::F32, HIDDEN))
    }

    /// The weights, from what the forward form found.
    fn weights(&self) -> Tensor<'g> {
        (self.scores() - self.at("lse").unsqueeze(3)).exp()
    }

    /// The cotangent of the scores, and the weights.
    fn score_cotangent(&self) -> (Tensor<'g>, Tensor<'g>) {
        let p = self.weights();
        let (o, ct) = (self.at("o"), self.at("do"));
        let row = (o * ct).sum(&[3]).transpose(&[0, 2, 1]) - self.at("dlse");
        (p * (self.products(ct, self.at("v")) - row.unsqueeze(3)), p)
    }

    fn results(&self) -> Vec<Tensor<'g>> {
        let (scale, dtype) = (self.spec.scale, self.x[0].dtype());
        match self.spec.form {
            Form::Forward => {
                let s = self.scores();
                let greatest = s.max(&[3]);
                let e = (s - greatest.unsqueeze(3)).exp();
                let sum = e.sum(&[3]);
                let o = self.weighted(e / sum.unsqueeze(3), 3, self.at("v"));
                vec![o.convert(dtype), greatest + sum.log()]
            }
            Form::Jvp => {
                let p = self.weights();
                let ds = self.products(self.at("dq"), self.at("k")) + self.products(self.at("q"), self.at("dk"));
                let ds = if self.has("dbias") { ds * scale + self.at("dbias") } else { ds * scale };
                let r = p * ds;
                let lse = r.sum(&[3]);
                let o = self.weighted(r, 3, self.at("v")) + self.weighted(p, 3, self.at("dv"));
                let o = o - self.at("o") * lse.transpose(&[0, 2, 1]).unsqueeze(3);
                vec![o.convert(dtype), lse]
            }
            Form::Backward => {
                let (ds, p) = self.score_cotangent();
                let q = self.weighted(ds, 3, self.at("k")) * scale;
                let k = self.weighted(ds, 2, self.at("q")) * scale;
                let v = self.weighted(p, 2, self.at("do"));
                vec![q, self.laid(k, "k"), self.laid(v, "v")].into_iter().map(|t| t.convert(dtype)).collect()
            }
        }
    }

    fn bias_cotangent(&self) -> Tensor<'g> {
        let (ds, _) = self.score_cotangent();
        let bias = self.x[self.spec.bias(self.x.len()).expect("checked by the caller")];
        let (own, dims) = (bias.dims(), ds.dims());
        let summed: Vec<usize> = (0..4).filter(|&d| own[d] == 1 && dims[d] > 1).collect();
        let ds = if summed.is_empty() { ds } else { ds.sum(&summed) };
        ds.reshape(&own).convert(bias.dtype())
    }
}

/// Attention of queries `[B, Tq, H, d]` over keys and values `[B, Tk, H, d]`: the result, like the queries, and the
/// logarithm of the sum of exponentials of each row's scores, `f32[B, H, Tq]`. See the module's head.
pub fn attention<'g>(
    q: Tensor<'g>,
    k: Tensor<'g>,
    v: Tensor<'g>,
    bias: Option<Tensor<'g>>,
    scale: f64,
    causal: bool,
) -> (Tensor<'g>, Tensor<'g>) {
    let g = q.graph();
    let operands: Vec<Tensor> = [q, k, v].into_iter().chain(bias).collect();
    let types: Vec<Type> = operands.iter().map(|t| t.ty()).collect();
    let op = Attention { form: Form::Forward, scale, causal }.op(&types.iter().collect::<Vec<_>>(), &g.mesh());
    match op {
        Ok(op) => match g.emit_multi(op, &operands, 2)[..] {
            [o, lse] => (o, lse),
            _ => unreachable!("two results are asked for"),
        },
        Err(error) => {
            g.fail(error.message);
            (q, q)
        }
    }
}
