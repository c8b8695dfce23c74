//! Particle methods and speculative sampling against laws that are known in closed form.

use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Preset, Process, ProcessConfig};
use dnx_models::sample::{
    Cloud, Ddim, Ddpm, Denoiser, GaussianStep, Grid, GridKind, Measurement, Operator, Potential, Resampling,
    SampleNoise, Smc, Steering, Step, couple, geometric, marginal_std, sample, speculate, steer, twisted,
};

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

fn normal(mean: f64, std: f64) -> Gmm {
    Gmm { components: vec![Component { weight: 1.0, mean: vec![mean], std }] }
}

/// Mean and variance of what a Gaussian sampler makes of a normal law: its steps are linear, so it is normal again.
fn sampled(kernel: &dyn GaussianStep, p: &Process, grid: &Grid, mean: f64, std: f64) -> (f64, f64) {
    let (mut m, mut v) = (0.0, marginal_std(p, &grid.levels[0]).powi(2));
    for (index, pair) in grid.levels.windows(2).enumerate() {
        let step = Step { index, from: pair[0], to: pair[1] };
        let (law, l) = (kernel.law(&step), step.from);
        let gain = l.alpha * std * std / ((l.alpha * std).powi(2) + l.sigma * l.sigma);
        // x0 = mean + gain (x - alpha mean), n = (x - alpha x0) / sigma.
        let (a, b) = (gain, mean - gain * l.alpha * mean);
        let (c, d) = ((1.0 - l.alpha * a) / l.sigma, -l.alpha * b / l.sigma);
        let slope = law.state + law.data * a + law.noise * c;
        m = slope * m + law.data * b + law.noise * d;
        v = slope * slope * v + law.std * law.std;
    }
    (m, v)
}

fn log_normal(x: f64, mean: f64, var: f64) -> f64 {
    -0.5 * ((x - mean).powi(2) / var + (2.0 * std::f64::consts::PI * var).ln())
}

/// Mean and standard error.
fn mean_of(v: &[f64]) -> (f64, f64) {
    let n = v.len() as f64;
    let mean = v.iter().sum::<f64>() / n;
    (mean, (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt())
}

fn weighted(x: &[f64], w: &[f64], f: impl Fn(f64) -> f64) -> f64 {
    x.iter().zip(w).map(|(x, w)| w * f(*x)).sum::<f64>() / w.iter().sum::<f64>()
}

/// Data N(0.3, 0.8^2), measured as 1.4 with deviation 0.4.
const DATA: (f64, f64) = (0.3, 0.8);
const MEASURED: (f64, f64) = (1.4, 0.4);

fn chain() -> (Process, Grid) {
    let p = process("preset = \"edm\"\nsigma_data = 0.8");
    let grid = Grid::new(&p, GridKind::Karras, 12, 1.0).unwrap();
    (p, grid)
}

/// The evidence of a linear-Gaussian problem is unbiased with few particles, whatever the potential and the scheme,
/// and with many the mean is that of the posterior.
#[test]
fn steering_has_the_right_evidence_and_posterior() {
    let (p, grid) = chain();
    let law = normal(DATA.0, DATA.1);
    let (m, v) = sampled(&Ddpm::default(), &p, &grid, DATA.0, DATA.1);
    let run = |smc: &Smc, samples: usize, potential: Potential, std: f64| {
        let reward = |x: &[f64]| log_normal(MEASURED.0, x[0], std * std);
        let seeds: Vec<u64> = (0..samples as u64).collect();
        let mut d = Denoiser::of(&p, &[samples, 1], law.model(&p)).with_memory();
        let steering = Steering { potential, strength: 1.0 };
        let noise = &mut SampleNoise::new(&seeds, 1);
        let out = steer(&Ddpm::default(), &mut d, &grid, noise, smc, &steering, &mut |x| reward(x)).unwrap();
        assert_eq!(d.evaluations(), grid.steps(), "rewards need no evaluations of their own");
        out
    };
    for potential in [Potential::Difference, Potential::Max, Potential::Sum] {
        for scheme in Resampling::ALL {
            let threshold = if potential == Potential::Difference { 0.5 } else { 1.0 };
            let smc = Smc { scheme, threshold, ..Smc::new(8) };
            // The potentials of a whole path that favour early promise are large: a weaker reward keeps the estimate's
            // deviation within what so many groups can tell from a bias.
            let std = if potential == Potential::Difference { MEASURED.1 } else { 2.0 };
            let evidence = log_normal(MEASURED.0, m, v + std * std);
            let out = run(&smc, 8 * 250, potential, std);
            let ratios: Vec<f64> = out.cloud.log_evidence().iter().map(|l| (l - evidence).exp()).collect();
            let (mean, error) = mean_of(&ratios);
            assert!(
                (mean - 1.0).abs() < 4.0 * error,
                "{potential:?} {scheme:?}: {mean} of the evidence, error {error}"
            );
            assert!(error < 0.1 && out.cloud.resamplings() > 100, "{potential:?}: {error} {}", out.cloud.resamplings());
        }
    }
    let shrink = v / (v + MEASURED.1.powi(2));
    let want = m + shrink * (MEASURED.0 - m);
    let out = run(&Smc::new(4000), 4000, Potential::Difference, MEASURED.1);
    let w = out.cloud.weights();
    let mean = weighted(&out.x, &w, |x| x);
    let var = weighted(&out.x, &w, |x| (x - mean).powi(2));
    assert!((mean - want).abs() < 0.03, "{mean} {want}");
    assert!((var / (v * (1.0 - shrink)) - 1.0).abs() < 0.15, "{var}");
}

#[test]
fn without_potentials_nothing_is_resampled() {
    let (p, grid) = chain();
    let law = normal(DATA.0, DATA.1);
    let seeds: Vec<u64> = (0..20).collect();
    let mut d = Denoiser::of(&p, &[20, 1], law.model(&p)).with_memory();
    let steering = Steering { potential: Potential::Max, strength: 0.0 };
    let smc = Smc { threshold: 1.0, ..Smc::new(4) };
    let out = steer(&Ddpm::default(), &mut d, &grid, &mut SampleNoise::new(&seeds, 1), &smc, &steering, &mut |_| 7.0);
    let out = out.unwrap();
    assert_eq!(out.cloud.resamplings(), 0);
    assert!(out.cloud.log_evidence().iter().all(|l| l.abs() < 1e-12));
    let mut d = Denoiser::of(&p, &[20, 1], law.model(&p));
    let noise = &mut SampleNoise::new(&seeds, 1);
    assert_eq!(out.x, sample(&Ddpm::default(), &mut d, &grid, noise, &mut |_, _, _| {}).unwrap());
    assert_eq!(out.choose(3).len(), 5);
}

#[test]
fn clouds_that_make_no_sense_are_refused() {
    assert!(Cloud::new(&Smc::new(3), 10).unwrap_err().to_string().contains("whole groups of 3"));
    assert!(Cloud::new(&Smc { threshold: 1.5, ..Smc::new(2) }, 4).is_err());
    let mut cloud = Cloud::new(&Smc::new(2), 4).unwrap();
    assert!(cloud.weigh(&[0.0, f64::NAN, 0.0, 0.0]).unwrap_err().to_string().contains("particle 1"));
    let dead = f64::NEG_INFINITY;
    assert!(cloud.weigh(&[0.0, dead, dead, dead]).unwrap_err().to_string().contains("group 1"));
}

/// Twisting is right with few particles, even with a twist that is not the exact likelihood before the end.
#[test]
fn twisted_particles_have_the_posterior() {
    let (p, _) = chain();
    let grid = Grid::new(&p, GridKind::Karras, 36, 1.0).unwrap();
    let law = normal(DATA.0, DATA.1);
    let (m, v) = sampled(&Ddpm::default(), &p, &grid, DATA.0, DATA.1);
    let evidence = log_normal(MEASURED.0, m, v + MEASURED.1.powi(2));
    let shrink = v / (v + MEASURED.1.powi(2));
    let want = (m + shrink * (MEASURED.0 - m), v * (1.0 - shrink));
    let mask = Operator::Mask(vec![true]);
    let twist = Measurement::new(mask, vec![MEASURED.0], MEASURED.1).unwrap();
    // With the data's own deviation the twist is exact; with another it is not.
    let wrong = process("preset = \"edm\"\nsigma_data = 0.45");
    for (p, exact) in [(&p, true), (&wrong, false)] {
        const K: usize = 40;
        let samples = K * 100;
        let seeds: Vec<u64> = (0..samples as u64).collect();
        let mut d = Denoiser::of(p, &[samples, 1], law.model(p)).with_memory();
        let noise = &mut SampleNoise::new(&seeds, 1);
        let out = twisted(&Ddpm::default(), &mut d, &grid, noise, &Smc::new(K), &twist).unwrap();
        let own = sampled(&Ddpm::default(), p, &grid, DATA.0, DATA.1);
        let evidence = if exact { evidence } else { log_normal(MEASURED.0, own.0, own.1 + MEASURED.1.powi(2)) };
        let ratios: Vec<f64> = out.cloud.log_evidence().iter().map(|l| (l - evidence).exp()).collect();
        let (mean, error) = mean_of(&ratios);
        assert!((mean - 1.0).abs() < 4.0 * error + 1e-3, "exact {exact}: {mean} of the evidence, error {error}");
        assert!(error < 0.1, "exact {exact}: {error}");
        // Groups weighted by their evidence are one large cloud.
        let w: Vec<f64> = out.cloud.weights().iter().enumerate().map(|(i, w)| w * ratios[i / K]).collect();
        let mean = weighted(&out.x, &w, |x| x);
        let var = weighted(&out.x, &w, |x| (x - mean).powi(2));
        assert!((mean - want.0).abs() < 0.04, "exact {exact}: {mean} {}", want.0);
        assert!((var / want.1 - 1.0).abs() < 0.15, "exact {exact}: {var} {}", want.1);
    }
}

/// `q1^(1 - w) q2^w` of two normal laws is normal, and not what guidance of scale `w` samples.
#[test]
fn geometric_targets_are_reached() {
    const N: usize = 2500;
    let p = process("preset = \"edm\"");
    // The ancestral sampler itself loses an n-th of the variance or so in n steps.
    let grid = Grid::new(&p, GridKind::Karras, 250, 1.0).unwrap();
    let seeds: Vec<u64> = (0..N as u64).collect();
    let (first, second) = (normal(0.0, 1.0), normal(0.8, 0.7));
    for beta in [0.5, 2.0] {
        let precision = (1.0 - beta) / 1.0 + beta / 0.49;
        let mean = beta / 0.49 * 0.8 / precision;
        let (mut a, mut b) = (Denoiser::of(&p, &[N, 1], first.model(&p)), Denoiser::of(&p, &[N, 1], second.model(&p)));
        let run = |smc: &Smc, a: &mut Denoiser<'_>, b: &mut Denoiser<'_>| {
            geometric(&Ddpm::default(), a, b, beta, &grid, &mut SampleNoise::new(&seeds, 1), smc).unwrap()
        };
        let out = run(&Smc::new(N), &mut a, &mut b);
        let w = out.cloud.weights();
        let m = weighted(&out.x, &w, |x| x);
        let v = weighted(&out.x, &w, |x| (x - m).powi(2));
        assert!((m - mean).abs() < 0.04, "beta {beta}: mean {m}, not {mean}");
        assert!((v * precision - 1.0).abs() < 0.1, "beta {beta}: variance {v}, not {}", 1.0 / precision);
        // Without weights it is guidance, whose mean is another.
        let out = run(&Smc { threshold: 0.0, ..Smc::new(N) }, &mut a, &mut b);
        let (m, _) = mean_of(&out.x);
        assert!((m - mean).abs() > 0.08, "beta {beta}: unweighted {m}");
    }
}

/// Draws of the coupling are those of the target, and the draft is kept as often as the laws overlap.
#[test]
fn reflection_coupling_is_exact() {
    const N: usize = 20_000;
    for (draft, target, std) in [(0.3, 0.8, 0.5), (1.0, -1.0, 0.7), (0.2, 0.2, 1.3)] {
        let z = SampleNoise::new(&[11], N).at(0, 0);
        let mut uniforms = dnx_models::sample::Uniforms::new(11, 900);
        let (mut x, mut kept) = (vec![], 0);
        for z in z {
            let (v, k) = couple(&[draft], &[target], std, &[z], uniforms.draw());
            x.push((v[0] - target) / std);
            kept += k as usize;
        }
        let d = kolmogorov(&mut x, |x| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2));
        // The 1 % point of the statistic.
        assert!(d < 1.63 / (N as f64).sqrt(), "{draft} {target}: {d}");
        let overlap = libm::erfc(f64::abs(draft - target) / std / (2.0 * std::f64::consts::SQRT_2));
        let share = kept as f64 / N as f64;
        assert!((share - overlap).abs() < 4.0 * (0.25 / N as f64).sqrt() + 1e-12, "{share} kept of {overlap}");
    }
    // In several dimensions the noise keeps its length and is mirrored along the difference alone.
    let (x, kept) = couple(&[5.0, 0.0, 0.0], &[0.0, 0.0, 0.0], 1.0, &[0.4, -0.3, 1.1], 0.999);
    assert!(!kept);
    assert!((x[0] + 0.4).abs() < 1e-12 && x[1] == -0.3 && x[2] == 1.1, "{x:?}");
}

/// The greatest distance of the empirical distribution from a continuous one.
fn kolmogorov(x: &mut [f64], distribution: impl Fn(f64) -> f64) -> f64 {
    x.sort_by(f64::total_cmp);
    let n = x.len() as f64;
    let gap = |(i, x): (usize, &f64)| {
        let f = distribution(*x);
        (f - i as f64 / n).abs().max((f - (i + 1) as f64 / n).abs())
    };
    x.iter().enumerate().map(gap).fold(0.0, f64::max)
}

/// The greatest distance between two empirical distributions.
fn between(a: &[f64], b: &[f64]) -> f64 {
    let mut b = b.to_vec();
    b.sort_by(f64::total_cmp);
    let below = |x: f64| b.partition_point(|v| *v <= x) as f64 / b.len() as f64;
    kolmogorov(&mut a.to_vec(), below)
}

/// Speculation has the law of plain sampling at a fraction of the evaluations, on chains with much and little noise.
#[test]
fn speculative_samples_are_those_of_the_sampler() {
    const N: usize = 1500;
    let law = Gmm {
        components: vec![
            Component { weight: 0.6, mean: vec![0.7, 0.1], std: 0.25 },
            Component { weight: 0.4, mean: vec![-0.6, -0.4], std: 0.35 },
        ],
    };
    for (p, kernel, least) in [
        (Preset::Ddpm.process(), &Ddpm::default() as &dyn Kernel, 0.8),
        (Preset::Edm.process(), &Ddim { eta: 1.0 }, 0.5),
    ] {
        let kind = GridKind::default_of(&p);
        let grid = Grid::new(&p, kind, 60, 1.0).unwrap();
        let seeds: Vec<u64> = (0..N as u64).collect();
        let mut d = Denoiser::of(&p, &[N, 2], law.model(&p));
        let other: Vec<u64> = seeds.iter().map(|s| s + 1_000_000).collect();
        let plain =
            sample(kernel.sampler(), &mut d, &grid, &mut SampleNoise::new(&other, 2), &mut |_, _, _| {}).unwrap();
        const WINDOW: usize = 5;
        let mut d = Denoiser::of(&p, &[N * WINDOW, 2], law.model(&p));
        let out = speculate(kernel.step(), &mut d, &grid, &seeds, WINDOW).unwrap();
        assert_eq!(out.rounds, d.evaluations());
        for i in 0..2 {
            let of = |x: &[f64]| x.chunks(2).map(|x| x[i]).collect::<Vec<f64>>();
            let distance = between(&of(&out.x), &of(&plain));
            // The 1 % point for two samples of this size.
            assert!(distance < 1.63 * (2.0 / N as f64).sqrt(), "coordinate {i}: {distance}");
        }
        println!("acceptance {:.3}, {} rounds for {} steps", out.acceptance(), out.rounds, grid.steps());
        assert!(out.acceptance() > least && out.acceptance() < 1.0, "{}", out.acceptance());
        // Alone, a sample takes fewer evaluations than steps; a batch waits for its slowest.
        let mut d = Denoiser::of(&p, &[WINDOW, 2], law.model(&p));
        let one = speculate(kernel.step(), &mut d, &grid, &seeds[3..4], WINDOW).unwrap();
        assert!(one.rounds * 3 < grid.steps() * 2, "{} rounds", one.rounds);
        for i in 0..2 {
            assert!((one.x[i] - out.x[6 + i]).abs() < 1e-6, "a seed gives the same sample in any batch");
        }
    }
    let p = Preset::Edm.process();
    let grid = Grid::new(&p, GridKind::Karras, 4, 1.0).unwrap();
    let mut d = Denoiser::of(&p, &[5, 2], law.model(&p));
    assert!(speculate(&Ddpm::default(), &mut d, &grid, &[1, 2], 2).is_err());
}

/// A Gaussian sampler in both its roles.
trait Kernel {
    fn sampler(&self) -> &dyn dnx_models::sample::Sampler;
    fn step(&self) -> &dyn GaussianStep;
}

impl<T: dnx_models::sample::Sampler + GaussianStep> Kernel for T {
    fn sampler(&self) -> &dyn dnx_models::sample::Sampler {
        self
    }
    fn step(&self) -> &dyn GaussianStep {
        self
    }
}

/// With a window of one nothing is drafted: it is the sampler itself, bit for bit.
#[test]
fn a_window_of_one_is_plain_sampling() {
    let p = Preset::Edm.process();
    let law = normal(0.4, 0.6);
    let grid = Grid::new(&p, GridKind::Karras, 10, 1.0).unwrap();
    let seeds = [4, 5, 6];
    let mut d = Denoiser::of(&p, &[3, 1], law.model(&p));
    let out = speculate(&Ddpm::default(), &mut d, &grid, &seeds, 1).unwrap();
    assert_eq!((out.rounds, out.drafted), (10, 0));
    let mut d = Denoiser::of(&p, &[3, 1], law.model(&p));
    let plain = sample(&Ddpm::default(), &mut d, &grid, &mut SampleNoise::new(&seeds, 1), &mut |_, _, _| {}).unwrap();
    assert_eq!(out.x, plain);
}
