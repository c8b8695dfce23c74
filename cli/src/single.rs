//! Single operations, to be timed by themselves. One is written `NAME[:SIZES][:DTYPE][.PASS]`, as `matmul`,
//! `softmax:4096x1024.fb` or `attention:4x6x1024x64:f16.jvp`.
//!
//! | name | sizes | default |
//! |---|---|---|
//! | `matmul` | rows x depth x columns | 1024x1024x1024 |
//! | `conv2d` | batch x side x channels, 3 x 3 windows | 16x32x64 |
//! | `softmax`, `layernorm` | rows x columns | 4096x1024 |
//! | `attention` | batch x heads x tokens x width of a head | 4x6x256x64 |
//!
//! Operands and results are stored in DTYPE, `f32` (default) or `f16`; sums, maxima, exponentials and norms are
//! computed in `f32`, as in mixed-precision training. The passes are `f` forward (default), `fb` forward with the gradients
//! of every input for a given cotangent, `jvp` forward with the derivative in the direction of given tangents.

use dnx_autodiff::{jvp, value_and_grad};
use dnx_ir::{ConvDims, DType, Func, Graph, Op, Tensor, Type};
use dnx_models::attention::attention;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An operation, without sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[M, K] x [K, N]`.
    Matmul,
    /// 3 x 3 windows over `[B, S, S, C]`, as many channels out as in, padded to the same side.
    Conv2d,
    /// Over the columns of `[R, C]`.
    Softmax,
    /// Over the columns of `[R, C]`, with scale and shift of `[C]`.
    LayerNorm,
    /// `softmax(q k^T / sqrt(D)) v` of three `[B, H, T, D]`.
    Attention,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Matmul, Kind::Conv2d, Kind::Softmax, Kind::LayerNorm, Kind::Attention];

    fn name(self) -> &'static str {
        match self {
            Kind::Matmul => "matmul",
            Kind::Conv2d => "conv2d",
            Kind::Softmax => "softmax",
            Kind::LayerNorm => "layernorm",
            Kind::Attention => "attention",
        }
    }

    fn default_sizes(self) -> &'static [usize] {
        match self {
            Kind::Matmul => &[1024, 1024, 1024],
            Kind::Conv2d => &[16, 32, 64],
            Kind::Softmax | Kind::LayerNorm => &[4096, 1024],
            Kind::Attention => &[4, 6, 256, 64],
        }
    }
}

/// What is computed of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The operation.
    Forward,
    /// The operation, and the gradients of its inputs given a cotangent of its result.
    Gradients,
    /// The operation, and its derivative given tangents of its inputs.
    Jvp,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Forward, Pass::Gradients, Pass::Jvp];

    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "f",
            Pass::Gradients => "fb",
            Pass::Jvp => "jvp",
        }
    }
}

/// An operation of given sizes, storage and pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Single {
    /// The operation.
    pub kind: Kind,
    /// Its sizes, as many as its kind names.
    pub sizes: Vec<usize>,
    /// How operands and results are stored: `f32` or `f16`.
    pub dtype: DType,
    /// What is computed.
    pub pass: Pass,
}

impl fmt::Display for Single {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.sizes.iter().map(usize::to_string).collect();
        write!(f, "{}:{}:{}.{}", self.kind.name(), sizes.join("x"), self.dtype, self.pass.name())
    }
}

impl FromStr for Single {
    type Err = String;

    fn from_str(text: &str) -> Result<Single, String> {
        let names = |all: Vec<&str>| all.join(", ");
        let (body, pass) = text.split_once('.').unwrap_or((text, "f"));
        let pass = Pass::ALL.into_iter().find(|p| p.name() == pass).ok_or_else(|| {
            format!("{text}: no pass `{pass}`; there are {}", names(Pass::ALL.map(Pass::name).to_vec()))
        })?;
        let mut parts = body.split(':');
        let name = parts.next().unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| {
            format!("{text}: no operation `{name}`; there are {}", names(Kind::ALL.map(Kind::name).to_vec()))
        })?;
        let mut single = Single { kind, sizes: kind.default_sizes().to_vec(), dtype: DType::F32, pass };
        for part in parts {
            if let Some(dtype @ (DType::F32 | DType::F16)) = DType::from_name(part) {
                single.dtype = dtype;
                continue;
            }
            let sizes: Option<Vec<usize>> = part.split('x').map(|s| s.parse().ok().filter(|&n| n > 0)).collect();
            let wanted = kind.default_sizes();
            single.sizes = sizes.filter(|s| s.len() == wanted.len()).ok_or_else(|| {
                let wanted: Vec<String> = wanted.iter().map(usize::to_string).collect();
                format!("{text}: `{part}` is neither f32, f16 nor {} sizes as {}", wanted.len(), wanted.join("x"))
            })?;
        }
        Ok(single)
    }
}

impl Single {
    /// Dims of the inputs.
    fn inputs(&self) -> Vec<Vec<usize>> {
        match (self.kind, &self.sizes[..]) {
            (Kind::Matmul, &[m, k, n]) => vec![vec![m, k], vec![k, n]],
            (Kind::Conv2d, &[b, s, c]) => vec![vec![b, s, s, c], vec![3, 3, c, c]],
            (Kind::Softmax, &[r, c]) => vec![vec![r, c]],
            (Kind::LayerNorm, &[r, c]) => vec![vec![r, c], vec![c], vec![c]],
            (Kind::Attention, &[b, h, t, d]) => vec![vec![b, h, t, d]; 3],
            (kind, sizes) => unreachable!("{} of {} sizes", kind.name(), sizes.len()),
        }
    }

    fn params<'g>(&self, g: &'g Graph, prefix: &str) -> Vec<Tensor<'g>> {
        let param = |(i, dims)| g.param(&format!("{prefix}{i}"), Type::new(self.dtype, dims));
        self.inputs().into_iter().enumerate().map(param).collect()
    }

    fn body<'g>(&self, x: &[Tensor<'g>]) -> Tensor<'g> {
        let wide = |i: usize| x[i].convert(DType::F32);
        match self.kind {
            Kind::Matmul => x[0].matmul(x[1]),
            Kind::Conv2d => {
                let dims = ConvDims {
                    stride: vec![1, 1],
                    padding: vec![(1, 1), (1, 1)],
                    lhs_dilation: vec![1, 1],
                    rhs_dilation: vec![1, 1],
                    groups: 1,
                };
                x[0].apply(Op::Conv { dims, out: self.dtype }, &[x[1]])
            }
            Kind::Softmax => {
                let x = wide(0);
                let e = (x - x.max(&[1]).stop_gradient().unsqueeze(1)).exp();
                (e / e.sum(&[1]).unsqueeze(1)).convert(self.dtype)
            }
            Kind::LayerNorm => {
                let x = wide(0);
                let centred = x - x.mean(&[1]).unsqueeze(1);
                let scale = (centred.square().mean(&[1]).unsqueeze(1) + 1e-5).rsqrt();
                (centred * scale * wide(1) + wide(2)).convert(self.dtype)
            }
            Kind::Attention => {
                let [q, k, v] = [0, 1, 2].map(|i| x[i].transpose(&[0, 2, 1, 3]));
                attention(q, k, v, (q.dim(3) as f64).powf(-0.5)).transpose(&[0, 2, 1, 3])
            }
        }
    }

    fn forward(&self) -> dnx_ir::Result<Func> {
        let g = Graph::new("forward");
        let inputs = self.params(&g, "x");
        g.finish(&[self.body(&inputs)])
    }

    /// The program. Parameters: the inputs, then for [`Pass::Gradients`] the cotangent, for [`Pass::Jvp`] the
    /// tangents of the inputs. Results: the operation's, then the gradients or the tangent, and last one element of
    /// the operation's result, to be read back to wait for the device.
    ///
    /// # Errors
    /// If the sizes do not make an operation.
    pub fn func(&self) -> dnx_ir::Result<Func> {
        let g = Graph::new(self.kind.name());
        let inputs = self.params(&g, "x");
        let wrt: Vec<usize> = (0..inputs.len()).collect();
        let mut results = match self.pass {
            Pass::Forward => vec![self.body(&inputs)],
            Pass::Gradients => {
                let (weighted, ty) = {
                    let g = Graph::new("weighted");
                    let inputs = self.params(&g, "x");
                    let y = self.body(&inputs);
                    let ty = Type::new(self.dtype, y.dims());
                    let cotangent = g.param("cotangent", ty.clone());
                    (g.finish(&[(y * cotangent).sum_all(), y])?, ty)
                };
                let mut args = inputs.clone();
                args.push(g.param("cotangent", ty));
                // Without the weighted sum itself, which nobody wants.
                g.call(&Arc::new(value_and_grad(&weighted, &wrt)?), &args).split_off(1)
            }
            Pass::Jvp => {
                let derivative = Arc::new(jvp(&self.forward()?, &wrt)?);
                let mut args = inputs.clone();
                args.extend(self.params(&g, "tangent"));
                g.call(&derivative, &args)
            }
        };
        let y = results[0];
        results.push(y.reshape(&[y.dims().iter().product()]).slice(0, 0, 1));
        g.finish(&results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::Array;
    use dnx_ir::interp::{Precision, eval};

    #[test]
    fn names_say_everything_and_wrong_ones_what_is_wrong() {
        let all = ["matmul:8x4x2:f16.fb", "attention:1x2x16x8:f32.jvp", "softmax:3x5:f32.f"];
        for text in all {
            assert_eq!(text.parse::<Single>().unwrap().to_string(), text);
        }
        assert_eq!("layernorm".parse::<Single>().unwrap().to_string(), "layernorm:4096x1024:f32.f");
        for (text, part) in [
            ("matmul.b", "no pass `b`; there are f, fb, jvp"),
            ("dot", "no operation `dot`; there are matmul"),
            ("matmul:8x4", "3 sizes as 1024x1024x1024"),
            ("matmul:0x4x2", "`0x4x2` is neither"),
            ("softmax:bf16", "`bf16` is neither f32, f16 nor 2 sizes"),
        ] {
            let error = text.parse::<Single>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    /// For every operation the gradients and the jvp say the same of one direction, and the jvp what a central
    /// difference says.
    #[test]
    fn gradients_and_tangents_agree_with_differences() {
        for name in ["matmul:3x4x5", "conv2d:1x4x2", "softmax:3x5", "layernorm:3x6", "attention:1x2x4x3"] {
            let draw = |ty: &Type, seed: usize| {
                let wave = |i: usize| ((i * 7 + seed * 13) as f64 * 0.37).sin();
                Array::from_f64(ty.clone(), &(0..ty.elems()).map(wave).collect::<Vec<_>>())
            };
            let of = |pass: &str| format!("{name}.{pass}").parse::<Single>().unwrap().func().unwrap();
            let run = |f: &Func, args: &[Array]| eval(f, args, Precision::F64).unwrap();
            let values = |a: &Array| (0..a.ty().elems()).map(|i| a.get(i).to_f64()).collect::<Vec<_>>();
            let dot = |a: &Array, b: &Array| values(a).iter().zip(values(b)).map(|(a, b)| a * b).sum::<f64>();
            let forward = of("f");
            let types = forward.param_types();
            let x: Vec<Array> = types.iter().enumerate().map(|(i, ty)| draw(ty, i)).collect();
            let tangents: Vec<Array> = types.iter().enumerate().map(|(i, ty)| draw(ty, i + 5)).collect();
            let y = run(&forward, &x)[0].clone();
            let cotangent = draw(y.ty(), 11);
            let along = run(&of("jvp"), &[&x[..], &tangents].concat())[1].clone();
            let gradients = run(&of("fb"), &[&x[..], std::slice::from_ref(&cotangent)].concat());
            let by_gradients: f64 = tangents.iter().zip(&gradients[1..]).map(|(t, g)| dot(t, g)).sum();
            let want = dot(&cotangent, &along);
            assert!((by_gradients - want).abs() <= 1e-9 * want.abs().max(0.1), "{name}: {by_gradients} {want}");
            let h = 1e-4;
            let moved = |sign: f64| {
                let shift = |(a, t): (&Array, &Array)| {
                    let all: Vec<f64> = values(a).iter().zip(values(t)).map(|(a, t)| a + sign * h * t).collect();
                    Array::from_f64(Type::new(DType::F64, a.ty().dims.clone()), &all)
                };
                let x: Vec<Array> = x.iter().zip(&tangents).map(shift).collect();
                dot(&cotangent, &run(&forward, &x)[0])
            };
            let difference = (moved(1.0) - moved(-1.0)) / (2.0 * h);
            assert!((difference - want).abs() <= 1e-6 * want.abs().max(0.1), "{name}: {difference} {want}");
        }
    }
}
