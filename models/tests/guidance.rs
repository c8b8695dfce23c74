//! Guidance, inpainting and posterior sampling against laws that are known in closed form.

use dnx_ir::Array;
use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Level, Preset, Process, ProcessConfig, Time};
use dnx_models::sample::{
    Branch, Classifier, Ddpm, Denoiser, Dps, Euler, Grid, GridKind, Guidance, Heun, Known, Measurement, Model,
    NetworkCall, Operator, Repaint, SampleNoise, Sampler, Twisted, inpaint, noised, sample, sample_from,
};

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

fn one(weight: f64, mean: &[f64], std: f64) -> Component {
    Component { weight, mean: mean.to_vec(), std }
}

fn level(p: &Process, time: f64) -> Level<f64> {
    p.level(Time::new(p.path.domain(), time).unwrap()).unwrap()
}

/// A network with a law per branch.
fn two_laws<'a>(p: &'a Process, own: &'a Gmm, contrast: &'a Gmm) -> impl FnMut(&NetworkCall<'_>) -> R + 'a {
    move |call| {
        let mut out = vec![];
        for branch in call.branches {
            let law = if *branch == Branch::Conditional { own } else { contrast };
            out.extend(law.network(p, &NetworkCall { branches: &[*branch], ..*call })?.to_f32_vec());
        }
        let mut dims = call.x.dims().to_vec();
        dims[0] *= call.branches.len();
        Ok(Array::f32(dims, &out))
    }
}

type R = dnx_models::Result<Array>;

/// On data, noise and velocity alike, guidance is `u + w (c - u)` of the estimates.
#[test]
fn guidance_is_linear_in_every_prediction() {
    let (c, u) =
        (Gmm { components: vec![one(1.0, &[0.6, -0.2], 0.3)] }, Gmm { components: vec![one(1.0, &[0.0; 2], 0.7)] });
    let x = [0.4, -0.3, 1.1, 0.2];
    let presets = [
        "",
        "preset = \"edm\"",
        "preset = \"ddpm\"",
        "path = \"cosine\"\nprediction = \"v\"",
        "path = \"vp\"\nprediction = \"score\"",
    ];
    for text in presets {
        let p = process(text);
        let at = level(&p, if text.contains("ddpm") { 400.0 } else { 0.6 });
        let guided = Denoiser::new(&p, &[2, 2], two_laws(&p, &c, &u))
            .with_guidance(Guidance::scale(2.5))
            .estimate(&x, &at)
            .unwrap();
        for (s, x) in x.chunks(2).enumerate() {
            let ((a, n), (b, m)) = (c.estimate(x, &at), u.estimate(x, &at));
            for i in 0..2 {
                let (x0, noise) = (b[i] + 2.5 * (a[i] - b[i]), m[i] + 2.5 * (n[i] - m[i]));
                assert!(
                    (guided.x0[2 * s + i] - x0).abs() < 2e-5 * (1.0 + x0.abs()),
                    "{text}: {} {x0}",
                    guided.x0[2 * s + i]
                );
                assert!((guided.noise[2 * s + i] - noise).abs() < 2e-5 * (1.0 + noise.abs()), "{text}");
            }
        }
    }
}

#[test]
fn guidance_at_scale_one_is_nothing_bit_for_bit() {
    let p = Preset::Sit.process();
    let (c, u) =
        (Gmm { components: vec![one(1.0, &[0.6, -0.2], 0.3)] }, Gmm { components: vec![one(1.0, &[0.0; 2], 0.7)] });
    let grid = Grid::new(&p, GridKind::Uniform, 12, 1.0).unwrap();
    let run = |guidance: Guidance, guided: bool| {
        let mut d = Denoiser::new(&p, &[3, 2], two_laws(&p, &c, &u)).with_guidance(guidance);
        if guided {
            d = d.with_guide(&p, u.model(&p));
        }
        sample(&Heun, &mut d, &grid, &mut SampleNoise::new(&[1, 2, 3], 2), &mut |_, _, _| {}).unwrap()
    };
    let plain = run(Guidance::NONE, false);
    let one = Guidance { rescale: 0.7, channels: Some(1), ..Guidance::scale(1.0) };
    assert_eq!(run(one, false), plain);
    assert_eq!(run(Guidance::scale(1.0), true), plain);
    let nowhere = Guidance { interval: Some([2.0, 3.0]), ..Guidance::scale(4.0) };
    assert_eq!(run(nowhere, false), plain);
    let mut other = run(Guidance::scale(2.0), false);
    assert_ne!(other, plain);
    // Only the first channel is touched.
    other = run(Guidance { channels: Some(1), ..Guidance::scale(2.0) }, false);
    for (a, b) in other.chunks(2).zip(plain.chunks(2)) {
        assert!(a[0] != b[0] && a[1] == b[1], "{a:?} {b:?}");
    }
}

/// A guide of another path and prediction is brought to the same noise level.
#[test]
fn guides_of_other_processes_mix_data() {
    let (own, worse) =
        (Gmm { components: vec![one(1.0, &[0.5, 0.1], 0.2)] }, Gmm { components: vec![one(1.0, &[0.4, 0.0], 0.5)] });
    let p = Preset::Sit.process();
    for text in
        ["", "preset = \"edm\"", "path = \"vp\"\nprediction = \"epsilon\"", "path = \"cosine\"\nprediction = \"v\""]
    {
        let q = process(text);
        let at = level(&p, 0.4);
        let x = [0.2, 0.7];
        let got = Denoiser::of(&p, &[1, 2], own.model(&p))
            .with_guide(&q, worse.model(&q))
            .with_guidance(Guidance::scale(3.0))
            .estimate(&x, &at)
            .unwrap();
        let (a, b) = (own.estimate(&x, &at).0, worse.estimate(&x, &at).0);
        for i in 0..2 {
            let want = b[i] + 3.0 * (a[i] - b[i]);
            assert!((got.x0[i] - want).abs() < 1e-5, "{text}: {} {want}", got.x0[i]);
            assert!((at.alpha * got.x0[i] + at.sigma * got.noise[i] - x[i]).abs() < 1e-9, "{text}");
        }
    }
}

/// With the gradient of the true `p(y | x_t)` of a mixture's component, samples are those of the component.
#[test]
fn classifier_guidance_samples_the_class() {
    const N: usize = 1500;
    let p = process("preset = \"edm\"");
    let class = one(1.0, &[0.9, -0.3], 0.3);
    let other = one(1.0, &[-0.8, 0.4], 0.5);
    let all = Gmm { components: vec![Component { weight: 0.5, ..class.clone() }, Component { weight: 0.5, ..other }] };
    let class = Gmm { components: vec![class] };
    // grad log p(y | x) = grad log p(x | y) - grad log p(x).
    let gradient = |x: &[f64], levels: &[Level<f64>]| {
        let of = |(x, l): (&[f64], &Level<f64>)| -> Vec<f64> {
            let (own, all) = (class.estimate(x, l).1, all.estimate(x, l).1);
            own.iter().zip(&all).map(|(a, b)| -(a - b) / l.sigma).collect()
        };
        Ok(x.chunks(2).zip(levels).flat_map(of).collect())
    };
    let seeds: Vec<u64> = (0..N as u64).collect();
    let grid = Grid::new(&p, GridKind::Karras, 40, 1.0).unwrap();
    let mut d = Denoiser::of(&p, &[N, 2], all.model(&p)).with_term(Classifier { scale: 1.0, gradient });
    let x = sample(&Heun, &mut d, &grid, &mut SampleNoise::new(&seeds, 2), &mut |_, _, _| {}).unwrap();
    for (i, mean) in [0.9, -0.3].into_iter().enumerate() {
        let (m, v) = moments(&x, 2, i);
        assert!((m - mean).abs() < 4.0 * 0.3 / (N as f64).sqrt() + 0.005, "{m} {mean}");
        assert!((v / 0.09 - 1.0).abs() < 0.12, "{v}");
    }
}

fn moments(x: &[f64], dim: usize, at: usize) -> (f64, f64) {
    let v: Vec<f64> = x.chunks(dim).map(|x| x[at]).collect();
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64)
}

/// A correlated Gaussian in the plane: `N(mean, [[a, b], [b, c]])`.
#[derive(Clone, Copy)]
struct Normal {
    mean: [f64; 2],
    covariance: [f64; 3],
}

impl Normal {
    /// `C alpha (alpha^2 C + sigma^2)^-1`, symmetric: what the estimated data moves with the state.
    fn gain(&self, l: &Level<f64>) -> [f64; 3] {
        let [a, b, c] = self.covariance;
        let (s, t) = (l.alpha * l.alpha, l.sigma * l.sigma);
        let (p, q, r) = (s * a + t, s * b, s * c + t);
        let det = p * r - q * q;
        [l.alpha * (a * r - b * q) / det, l.alpha * (b * p - a * q) / det, l.alpha * (c * p - b * q) / det]
    }

    fn law(self, p: &Process) -> NormalModel<'_> {
        NormalModel { normal: self, process: p }
    }

    /// Mean and variance of the second element given that the first, measured with this deviation, is `y`.
    fn given(&self, y: f64, std: f64) -> (f64, f64) {
        let [a, b, c] = self.covariance;
        let v = a + std * std;
        (self.mean[1] + b / v * (y - self.mean[0]), c - b * b / v)
    }
}

struct NormalModel<'a> {
    normal: Normal,
    process: &'a Process,
}

impl NormalModel<'_> {
    fn times(gain: [f64; 3], v: [f64; 2]) -> [f64; 2] {
        [gain[0] * v[0] + gain[1] * v[1], gain[1] * v[0] + gain[2] * v[1]]
    }

    fn apply(&self, call: &NetworkCall<'_>, v: &Array, centred: bool) -> Array {
        let out: Vec<f32> = v
            .to_f64_vec()
            .chunks(2)
            .enumerate()
            .flat_map(|(s, v)| {
                let (l, c_in) = (&call.levels[s], call.input_scales[s]);
                let c = self.process.coefficients(l);
                let m = if centred { self.normal.mean } else { [0.0; 2] };
                let x = [v[0] / c_in, v[1] / c_in];
                let d = Self::times(self.normal.gain(l), [x[0] - l.alpha * m[0], x[1] - l.alpha * m[1]]);
                [0, 1].map(|i| {
                    let data = m[i] + d[i];
                    (c.p * data + c.q * (x[i] - l.alpha * data) / l.sigma) as f32
                })
            })
            .collect();
        Array::f32(v.dims(), &out)
    }
}

impl Model for NormalModel<'_> {
    fn forward(&mut self, call: &NetworkCall<'_>) -> R {
        Ok(self.apply(call, call.x, true))
    }
    fn jvp(&mut self, call: &NetworkCall<'_>, tangent: &Array) -> dnx_models::Result<(Array, Array)> {
        Ok((self.forward(call)?, self.apply(call, tangent, false)))
    }
    fn vjp(&mut self, call: &NetworkCall<'_>, cotangent: &Array) -> R {
        Ok(self.apply(call, cotangent, false))
    }
}

const NORMAL: Normal = Normal { mean: [0.3, -0.2], covariance: [1.0, 0.8, 1.0] };

/// How far mean and variance of the unknown element are from the conditional's.
fn inpainted(times: usize, jump: usize, steps: usize) -> (f64, f64) {
    const N: usize = 1500;
    let p = process("path = \"vp\"\nprediction = \"epsilon\"\nsigma_data = 1.0");
    let grid = Grid::new(&p, GridKind::Uniform, steps, 1.0).unwrap();
    let seeds: Vec<u64> = (0..N as u64).collect();
    let known = Known { data: [1.5, 0.0].repeat(N), mask: [true, false].repeat(N) };
    let mut d = Denoiser::of(&p, &[N, 2], NORMAL.law(&p));
    let mut noise = SampleNoise::new(&seeds, 2);
    let start = noised(&vec![0.0; 2 * N], &Level { alpha: 0.0, sigma: 1.0, ..grid.levels[0] }, &mut noise);
    let repaint = Repaint { times, jump };
    let x = inpaint(start, &Ddpm::default(), &mut d, &grid, &mut noise, &known, repaint, &mut |_, _, _| {}).unwrap();
    assert!(x.chunks(2).all(|x| x[0] == 1.5), "what is known is kept");
    let (mean, var) = moments(&x, 2, 1);
    let (m, v) = NORMAL.given(1.5, 0.0);
    ((mean - m).abs(), (var / v - 1.0).abs())
}

/// Replacement alone misses the conditional's mean by more than a third of its deviation; going back ten times leaves a
/// sixth of the deviation at most.
#[test]
fn repaint_comes_nearer_to_the_conditional_than_replacement() {
    let deviation = NORMAL.given(0.0, 0.0).1.sqrt();
    let (replaced, _) = inpainted(1, 1, 100);
    let (repainted, spread) = inpainted(10, 10, 100);
    assert!(replaced > 0.3 * deviation, "replacement is off by {replaced}");
    assert!(repainted < 0.25 * replaced && repainted < deviation / 6.0, "{repainted} after {replaced}");
    assert!(spread < 0.2, "the variance is off by {spread}");
}

/// Of a Gaussian the twist is exact where the measured element's own variance is the process's, so that
/// pseudoinverse guidance reaches the conditional; DPS does for the mean, by a step that has to be chosen.
#[test]
fn measurements_are_conditioned_on() {
    const N: usize = 1500;
    let p = process("preset = \"edm\"\nsigma_data = 1.0");
    let seeds: Vec<u64> = (0..N as u64).collect();
    let grid = Grid::new(&p, GridKind::Karras, 40, 1.0).unwrap();
    let isotropic = Normal { covariance: [1.0, 0.0, 1.0], ..NORMAL };
    // y = 0.6 a + 0.8 b: of an isotropic Gaussian the twist is exact.
    let operator = Operator::Matrix(vec![vec![0.6, 0.8]]);
    let measurement = Measurement::new(operator, vec![1.2], 0.5).unwrap();
    let run = |sampler: &dyn Sampler, d: Denoiser<'_>| {
        let mut d = d;
        sample(sampler, &mut d, &grid, &mut SampleNoise::new(&seeds, 2), &mut |_, _, _| {}).unwrap()
    };
    let along = |x: &[f64]| {
        let v: Vec<f64> = x.chunks(2).flat_map(|x| [0.6 * x[0] + 0.8 * x[1], 0.8 * x[0] - 0.6 * x[1]]).collect();
        (moments(&v, 2, 0), moments(&v, 2, 1))
    };
    let (prior, shrink) = (0.6 * 0.3 - 0.8 * 0.2, 1.0 / 1.25);
    let want = (prior + shrink * (1.2 - prior), 1.0 - shrink);
    let twisted = Denoiser::of(&p, &[N, 2], isotropic.law(&p)).with_term(Twisted(measurement.clone()));
    let ((m, v), (other, free)) = along(&run(&Heun, twisted));
    let error = 4.0 / (N as f64).sqrt();
    assert!((m - want.0).abs() < error * want.1.sqrt() + 0.02, "{m} {}", want.0);
    assert!((v / want.1 - 1.0).abs() < 0.15, "{v} {}", want.1);
    assert!((other - (0.8 * 0.3 + 0.6 * 0.2)).abs() < error && (free - 1.0).abs() < 0.15, "{other} {free}");

    // DPS: unconditioned samples measure 0.02 on average, the measurement is 1.2; nine tenths of the way is there.
    let dps = Dps { inner: Ddpm::default(), measurement, step: 0.25 };
    let ((m, _), (other, _)) = along(&run(&dps, Denoiser::of(&p, &[N, 2], isotropic.law(&p)).with_memory()));
    assert!((m - 1.2).abs() < 0.12 && (other - 0.36).abs() < error, "{m} {other}");
}

#[test]
fn a_tail_of_the_grid_keeps_what_it_starts_from() {
    let p = Preset::Sit.process();
    let law = Gmm { components: vec![one(0.5, &[0.7], 0.1), one(0.5, &[-0.7], 0.1)] };
    let grid = Grid::new(&p, GridKind::Uniform, 20, 1.0).unwrap();
    assert_eq!(grid.tail(1.0).unwrap(), grid);
    assert_eq!(grid.tail(0.25).unwrap().levels[0].time, 0.25);
    assert!(grid.tail(0.01).unwrap_err().to_string().contains("strength"));
    assert!(grid.tail(0.0).is_err() && grid.tail(1.5).is_err() && grid.tail(f64::NAN).is_err());
    const N: usize = 400;
    let seeds: Vec<u64> = (0..N as u64).collect();
    let share = |strength: f64| {
        let tail = grid.tail(strength).unwrap();
        let mut noise = SampleNoise::new(&seeds, 1);
        let start = noised(&[0.55; N], &tail.levels[0], &mut noise);
        let mut d = Denoiser::of(&p, &[N, 1], law.model(&p));
        let x = sample_from(start, &Euler, &mut d, &tail, &mut noise, &mut |_, _, _| {}).unwrap();
        x.iter().filter(|x| **x > 0.0).count() as f64 / N as f64
    };
    let (weak, strong) = (share(0.15), share(1.0));
    assert!(weak > 0.98, "{weak} stay near the start");
    assert!((strong - 0.5).abs() < 0.1, "{strong}: at full strength nothing is left of it");
}

#[test]
fn derivatives_of_estimates_are_right_through_guidance() {
    let p = Preset::Edm.process();
    let (c, u) = (
        Gmm { components: vec![one(0.6, &[0.6, -0.2], 0.3), one(0.4, &[-0.5, 0.2], 0.4)] },
        Gmm { components: vec![one(1.0, &[0.0; 2], 0.7)] },
    );
    /// Both laws with their derivatives.
    struct Both<'a>(&'a Process, &'a Gmm, &'a Gmm);
    impl Both<'_> {
        fn law(&self, branch: Branch) -> &Gmm {
            if branch == Branch::Conditional { self.1 } else { self.2 }
        }
    }
    impl Model for Both<'_> {
        fn forward(&mut self, call: &NetworkCall<'_>) -> R {
            two_laws(self.0, self.1, self.2)(call)
        }
        fn vjp(&mut self, call: &NetworkCall<'_>, cotangent: &Array) -> R {
            self.law(call.branches[0]).model(self.0).vjp(call, cotangent)
        }
    }
    let levels = [level(&p, 0.5), level(&p, 1.3)];
    let x = [0.3, -0.4, 0.9, 0.1];
    let w = [0.7, -1.0, 0.2, 0.5];
    let mut d = Denoiser::of(&p, &[2, 2], Both(&p, &c, &u))
        .with_guidance(Guidance { channels: Some(1), ..Guidance::scale(2.0) });
    let back = d.pull_back(&x, &levels, &w).unwrap();
    for i in 0..4 {
        let mut along = |h: f64| {
            let mut moved = x;
            moved[i] += h;
            d.estimate_each(&moved, &levels).unwrap().x0.iter().zip(&w).map(|(a, b)| a * b).sum::<f64>()
        };
        let want = (along(1e-2) - along(-1e-2)) / 2e-2;
        assert!((back[i] - want).abs() < 2e-3, "{} {want}", back[i]);
    }
    let e = d.push_forward(&x, &levels, &w).unwrap_err().to_string();
    assert!(e.contains("guidance"), "{e}");
    let mut plain = Denoiser::new(&p, &[2, 2], |call: &NetworkCall<'_>| c.network(&p, call));
    assert!(plain.pull_back(&x, &levels, &w).unwrap_err().to_string().contains("no derivative"));
}
