//! Initial values of parameters: a function of the run's seed and the parameter's name alone, so that adding a
//! layer, or building in another order, changes no other parameter's start.

use crate::params::ParamSpec;
use crate::streams;
use dnx_ir::threefry::{Key, bits, fold_in, key};
use dnx_ir::{Array, Scalar, Type};

/// How a parameter starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half width.
        bound: f64,
    },
    /// These values; the array has the parameter's dims.
    Table(Array),
}

impl Init {
    /// Xavier (Glorot) uniform: variance `2 / (fan_in + fan_out)`.
    pub fn xavier_uniform(fan_in: usize, fan_out: usize) -> Init {
        Init::Uniform { bound: (6.0 / (fan_in + fan_out) as f64).sqrt() }
    }

    /// Kaiming (He) normal: variance `2 / fan_in`.
    pub fn kaiming_normal(fan_in: usize) -> Init {
        Init::Normal { std: (2.0 / fan_in as f64).sqrt() }
    }

    /// Uniform with bound `1 / sqrt(fan_in)`: PyTorch's default for linear and convolution layers.
    pub fn fan_in_uniform(fan_in: usize) -> Init {
        Init::Uniform { bound: 1.0 / (fan_in as f64).sqrt() }
    }

    /// The values of a parameter of these dims, drawn under `key`.
    pub fn draw(&self, dims: &[usize], key: Key) -> Array {
        let n: usize = dims.iter().product();
        let from = |f: &dyn Fn(u64) -> f64| {
            let data: Vec<f32> = (0..n as u64).map(|i| f(i) as f32).collect();
            Array::f32(dims, &data)
        };
        match self {
            Init::Zeros => Array::zeros(Type::f32(dims)),
            Init::Ones => Array::splat(dims, Scalar::one(dnx_ir::DType::F32)),
            Init::Normal { std } => from(&|i| std * normal(key, i)),
            Init::Uniform { bound } => from(&|i| bound * (2.0 * uniform(key, i) - 1.0)),
            Init::Table(array) => array.clone(),
        }
    }
}

/// Initial values of all parameters, in their order.
pub fn init(specs: &[ParamSpec], seed: u64) -> Vec<Array> {
    let stream = fold_in(key(seed), streams::INIT);
    specs.iter().map(|s| s.init.draw(&s.dims, name_key(stream, &s.name)).reshaped(s.ty().dims)).collect()
}

/// The key of a name under a key: both words of the name's FNV-1a hash folded in.
fn name_key(key: Key, name: &str) -> Key {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    fold_in(fold_in(key, (hash >> 32) as u32), hash as u32)
}

/// Uniform in `[0, 1)`: element `index` of a draw under `key`, in steps of 2^-24 as on devices.
pub fn uniform(key: Key, index: u64) -> f64 {
    (bits(key, index) >> 8) as f64 * 2f64.powi(-24)
}

/// Standard normal: element `index` of a draw under `key`. The same number that [`dnx_ir::random::normal`] gives
/// on a device, up to that function's rounding; computed in `f64` with `libm`, so the same on every host.
pub fn normal(key: Key, index: u64) -> f64 {
    dnx_ir::random::normal_from_bits(bits(key, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dims: &[usize], init: Init) -> ParamSpec {
        ParamSpec { name: name.into(), dims: dims.to_vec(), init, trainable: true, stacked: 1 }
    }

    #[test]
    fn depends_on_seed_and_name_but_not_on_order() {
        let a = spec("a.weight", &[5, 3], Init::Normal { std: 0.5 });
        let b = spec("b.weight", &[5, 3], Init::Normal { std: 0.5 });
        let ab = init(&[a.clone(), b.clone()], 1);
        let ba = init(&[b.clone(), a.clone()], 1);
        assert_eq!(ab[0], ba[1]);
        assert_eq!(ab[1], ba[0]);
        assert_ne!(ab[0], ab[1]);
        assert_ne!(init(&[a], 2)[0], ab[0]);
    }

    #[test]
    fn moments_and_bounds() {
        let draw = |i: Init| init(&[spec("w", &[100, 200], i)], 3)[0].to_f64_vec();
        let moments = |v: &[f64]| {
            let mean = v.iter().sum::<f64>() / v.len() as f64;
            (mean, (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt())
        };
        let (mean, std) = moments(&draw(Init::kaiming_normal(200)));
        assert!(mean.abs() < 3e-3 && (std - 0.1).abs() < 2e-3, "{mean} {std}");
        let v = draw(Init::xavier_uniform(200, 100));
        let bound = (6.0f64 / 300.0).sqrt();
        assert!(v.iter().all(|x| x.abs() <= bound));
        let (mean, std) = moments(&v);
        assert!(mean.abs() < 3e-3 && (std - bound / 3f64.sqrt()).abs() < 2e-3, "{mean} {std}");
        assert!(draw(Init::Zeros).iter().all(|&x| x == 0.0));
        assert!(draw(Init::Ones).iter().all(|&x| x == 1.0));
    }
}
