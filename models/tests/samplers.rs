//! Samplers against a Gaussian mixture, whose denoiser is known in closed form.

use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Level, Prediction, Preset, Process, ProcessConfig, Time};
use dnx_models::sample::{
    Ddim, Ddpm, Denoiser, Estimate, Euler, Grid, GridKind, Guidance, Heun, Langevin, Noise, SampleConfig, SampleNoise,
    Sampler, SamplerKind, Step, sample, sample_from,
};

fn mixture() -> Gmm {
    let c = |weight, x, y, std| Component { weight, mean: vec![x, y], std };
    Gmm { components: vec![c(0.5, 0.8, 0.2, 0.3), c(0.3, -0.6, 0.5, 0.25), c(0.2, -0.2, -0.9, 0.4)] }
}

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

fn denoiser<'a>(gmm: &'a Gmm, process: &'a Process, batch: usize) -> Denoiser<'a> {
    Denoiser::new(process, &[batch, gmm.dim()], move |call| gmm.network(process, call))
}

fn run(sampler: &dyn Sampler, process: &Process, kind: GridKind, steps: usize, batch: usize) -> Vec<f64> {
    let gmm = mixture();
    let grid = Grid::new(process, kind, steps, 1.0).unwrap();
    let seeds: Vec<u64> = (0..batch as u64).collect();
    let mut noise = SampleNoise::new(&seeds, 2);
    sample(sampler, &mut denoiser(&gmm, process, batch), &grid, &mut noise, &mut |_, _, _| {}).unwrap()
}

/// Fourth-order Runge-Kutta in f64 from one time of a continuous path to another: what the solvers converge to.
fn exact(process: &Process, gmm: &Gmm, x: &[f64], from: f64, to: f64) -> Vec<f64> {
    const N: usize = 2000;
    let slope = |x: &[f64], t: f64| -> Vec<f64> {
        let level = process.level(Time::new(process.path.domain(), t.max(0.0)).unwrap()).unwrap();
        let (a, b) = level.rates.unwrap();
        let (x0, n) = gmm.estimate(x, &level);
        x0.iter().zip(&n).map(|(x0, n)| a * x0 + b * n).collect()
    };
    let mut out = Vec::new();
    for x in x.chunks(2) {
        let mut x = x.to_vec();
        let h = (to - from) / N as f64;
        for i in 0..N {
            let t = from + h * i as f64;
            let step = |k: &[f64], c: f64| -> Vec<f64> { x.iter().zip(k).map(|(x, k)| x + c * h * k).collect() };
            let k1 = slope(&x, t);
            let k2 = slope(&step(&k1, 0.5), t + 0.5 * h);
            let k3 = slope(&step(&k2, 0.5), t + 0.5 * h);
            let k4 = slope(&step(&k3, 1.0), t + h);
            for i in 0..x.len() {
                x[i] += h / 6.0 * (k1[i] + 2.0 * k2[i] + 2.0 * k3[i] + k4[i]);
            }
        }
        out.extend(x);
    }
    out
}

/// The greatest error of a solver with `n` even steps between two times.
fn error(sampler: &dyn Sampler, process: &Process, from: f64, to: f64, n: usize) -> f64 {
    let gmm = mixture();
    let domain = process.path.domain();
    let level = |i: usize| process.level(Time::new(domain, from + (to - from) * i as f64 / n as f64).unwrap()).unwrap();
    let grid = Grid { levels: (0..=n).map(level).collect() };
    let start = SampleNoise::new(&[1, 2, 3, 4], 2).draw();
    let mut noise = SampleNoise::new(&[0; 4], 2);
    let mut d = denoiser(&gmm, process, 4);
    let got = sample_from(start.clone(), sampler, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
    let want = exact(process, &gmm, &start, from, to);
    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn orders_of_convergence() {
    for text in ["", "path = \"cosine\"", "path = \"vp\"\nbeta = [0.1, 8.0]", "preset = \"edm\""] {
        let p = process(text);
        let (from, to) = (0.9, 0.1);
        let order = |s: &dyn Sampler, n: usize| (error(s, &p, from, to, n) / error(s, &p, from, to, 2 * n)).log2();
        let euler = order(&Euler, 80);
        assert!((euler - 1.0).abs() < 0.15, "Euler on {text:?} converges with order {euler}");
        let heun = order(&Heun, 20);
        assert!((heun - 2.0).abs() < 0.25, "Heun on {text:?} converges with order {heun}");
    }
}

#[test]
fn heun_evaluates_twice_but_for_the_last_step() {
    let (gmm, p) = (mixture(), Preset::Sit.process());
    let grid = Grid::new(&p, GridKind::Uniform, 5, 1.0).unwrap();
    for (sampler, count) in [(&Euler as &dyn Sampler, 5), (&Heun, 9)] {
        let mut d = denoiser(&gmm, &p, 1);
        sample(sampler, &mut d, &grid, &mut SampleNoise::new(&[0], 2), &mut |_, _, _| {}).unwrap();
        assert_eq!(d.evaluations(), count);
    }
    let (euler, heun) = (run(&Euler, &p, GridKind::Uniform, 5, 1), run(&Heun, &p, GridKind::Uniform, 5, 1));
    assert_ne!(euler, heun, "a second slope that repeats the first would make Heun Euler");
}

fn moments(x: &[f64], coordinate: usize) -> (f64, f64) {
    let v: Vec<f64> = x.chunks(2).map(|p| p[coordinate]).collect();
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64)
}

/// Every sampler on every kind of path reproduces the mixture's moments and the shares of its modes.
#[test]
fn samples_have_the_law_of_the_data() {
    const N: usize = 2000;
    let (mean, var) = mixture().moments();
    let langevin = process("preset = \"dsm\"\ntime_range = [0.02, 3.0]\nsigma_data = 0.75");
    let cases: Vec<(&str, Process, Box<dyn Sampler>, GridKind, usize)> = vec![
        ("euler sit", Preset::Sit.process(), Box::new(Euler), GridKind::Uniform, 100),
        ("heun sit", Preset::Sit.process(), Box::new(Heun), GridKind::Uniform, 24),
        ("heun edm", Preset::Edm.process(), Box::new(Heun), GridKind::Karras, 18),
        ("heun sit on a karras grid", Preset::Sit.process(), Box::new(Heun), GridKind::Karras, 18),
        ("heun vp epsilon", process("path = \"vp\"\nprediction = \"epsilon\""), Box::new(Heun), GridKind::Uniform, 60),
        ("euler ddpm", Preset::Ddpm.process(), Box::new(Euler), GridKind::Karras, 60),
        ("heun ddpm", Preset::Ddpm.process(), Box::new(Heun), GridKind::Karras, 24),
        ("ddim ddpm", Preset::Ddpm.process(), Box::new(Ddim { eta: 0.0 }), GridKind::Uniform, 100),
        ("ddim edm", Preset::Edm.process(), Box::new(Ddim { eta: 0.0 }), GridKind::Karras, 60),
        ("ddim half", Preset::Ddpm.process(), Box::new(Ddim { eta: 0.5 }), GridKind::Uniform, 100),
        ("ddpm", Preset::Ddpm.process(), Box::new(Ddpm::default()), GridKind::Uniform, 250),
        ("ddpm on sit", Preset::Sit.process(), Box::new(Ddpm::default()), GridKind::Uniform, 100),
        ("langevin", langevin, Box::new(Langevin { inner: 30, rate: 0.1 }), GridKind::Exponential, 20),
    ];
    for (name, process, sampler, kind, steps) in cases {
        let x = run(&*sampler, &process, kind, steps, N);
        for i in 0..2 {
            let (m, v) = moments(&x, i);
            // Four standard errors of the mean, and what coarse grids cost.
            let tolerance = 4.0 * (var[i] / N as f64).sqrt() + 0.02;
            assert!((m - mean[i]).abs() < tolerance, "{name}: mean {m} of coordinate {i}, not {}", mean[i]);
            assert!((v / var[i] - 1.0).abs() < 0.12, "{name}: variance {v} of coordinate {i}, not {}", var[i]);
        }
        let share = x.chunks(2).filter(|p| p[0] > 0.25).count() as f64 / N as f64;
        assert!((share - 0.515).abs() < 0.05, "{name}: {share} of the samples near the first mode");
    }
}

#[test]
fn ddim_with_eta_one_is_ancestral_sampling() {
    let p = Preset::Ddpm.process();
    let a = run(&Ddim { eta: 1.0 }, &p, GridKind::Uniform, 1000, 3);
    let b = run(&Ddpm::default(), &p, GridKind::Uniform, 1000, 3);
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 2e-4, "{a} {b}");
    }
}

#[test]
fn ddim_and_euler_agree_on_the_straight_path() {
    // On it both are x' = alpha' x0 + sigma' n.
    let p = Preset::Sit.process();
    let (a, b) = (run(&Ddim { eta: 0.0 }, &p, GridKind::Uniform, 10, 4), run(&Euler, &p, GridKind::Uniform, 10, 4));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// What the network predicts must not matter to a perfect network.
#[test]
fn predictions_are_interchangeable() {
    let of = |prediction: Prediction| {
        let config = ProcessConfig {
            prediction: Some(prediction),
            path: Some(dnx_models::process::PathKind::Cosine),
            time_range: Some([1e-3, 0.99]),
            time_law: Some(dnx_models::process::TimeLaw::Uniform { min: 1e-3, max: 0.99 }),
            ..ProcessConfig::default()
        };
        run(&Heun, &config.resolve().unwrap(), GridKind::Uniform, 12, 3)
    };
    let want = of(Prediction::X0);
    use Prediction::*;
    for prediction in [Epsilon, V, Velocity, Score, ScaledScore] {
        for (a, b) in of(prediction).iter().zip(&want) {
            assert!((a - b).abs() < 2e-4, "{prediction:?}: {a} {b}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_sample_in_any_batch() {
    for (sampler, p) in [
        (&Heun as &dyn Sampler, Preset::Sit.process()),
        (&Ddpm::default(), Preset::Ddpm.process()),
        (&Ddim { eta: 0.7 }, Preset::Ddpm.process()),
    ] {
        let gmm = mixture();
        let grid = Grid::new(&p, GridKind::Uniform, 10, 1.0).unwrap();
        let of = |seeds: &[u64]| {
            let mut d = denoiser(&gmm, &p, seeds.len());
            sample(sampler, &mut d, &grid, &mut SampleNoise::new(seeds, 2), &mut |_, _, _| {}).unwrap()
        };
        let all = of(&[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(of(&[3]), all[6..8]);
        assert_eq!(of(&[5, 3])[2..], all[6..8]);
        assert_ne!(all[..2], all[2..4]);
    }
}

#[test]
fn guidance_acts_in_its_interval_alone() {
    let p = Preset::Sit.process();
    let gmm = mixture();
    let mut seen: Vec<(f64, usize)> = vec![];
    {
        let mut d = Denoiser::new(&p, &[1, 2], |call| {
            seen.push((call.levels[0].time, call.branches.len()));
            gmm.network(&p, call)
        })
        .with_guidance(Guidance { interval: Some([0.25, 0.75]), ..Guidance::scale(3.0) });
        let grid = Grid::new(&p, GridKind::Uniform, 8, 1.0).unwrap();
        sample(&Euler, &mut d, &grid, &mut SampleNoise::new(&[0], 2), &mut |_, _, _| {}).unwrap();
    }
    let guided: Vec<f64> = seen.iter().filter(|s| s.1 == 2).map(|s| s.0).collect();
    assert_eq!(guided, [0.75, 0.625, 0.5, 0.375, 0.25]);
    assert!(seen.iter().all(|s| s.1 == 2 || s.1 == 1));
}

#[test]
fn clipping_keeps_data_in_bounds_and_the_state_consistent() {
    let p = Preset::Ddpm.process();
    let gmm = Gmm { components: vec![Component { weight: 1.0, mean: vec![2.0, 0.1], std: 0.01 }] };
    let level = p.level(Time::step(300, 1000).unwrap()).unwrap();
    let x = [1.5, 0.2];
    let Estimate { x0, noise } = denoiser(&gmm, &p, 1).with_clip(Some(1.0)).estimate(&x, &level).unwrap();
    assert_eq!(x0[0], 1.0);
    for i in 0..2 {
        assert!((level.alpha * x0[i] + level.sigma * noise[i] - x[i]).abs() < 1e-6);
    }
}

#[test]
fn a_network_that_fails_is_reported_with_its_step() {
    let p = Preset::Sit.process();
    let grid = Grid::new(&p, GridKind::Uniform, 4, 1.0).unwrap();
    let mut calls = 0;
    let mut d = Denoiser::new(&p, &[1, 2], |call| {
        calls += 1;
        let v = if calls == 3 { f32::NAN } else { 0.0 };
        Ok(dnx_ir::Array::f32(call.x.dims(), &[v, v]))
    });
    let e = sample(&Euler, &mut d, &grid, &mut SampleNoise::new(&[0], 2), &mut |_, _, _| {}).unwrap_err();
    assert_eq!(e.to_string(), "the state became NaN in step 2 (from time 0.5)");
}

#[test]
fn observers_see_every_state() {
    let (gmm, p) = (mixture(), Preset::Sit.process());
    let grid = Grid::new(&p, GridKind::Uniform, 4, 1.0).unwrap();
    let mut times = vec![];
    let mut last = vec![];
    let mut d = denoiser(&gmm, &p, 1);
    let x = sample(&Heun, &mut d, &grid, &mut SampleNoise::new(&[0], 2), &mut |_, level: &Level<f64>, x| {
        times.push(level.time);
        last = x.to_vec();
    })
    .unwrap();
    assert_eq!(times, [1.0, 0.75, 0.5, 0.25, 0.0]);
    assert_eq!(last, x);
}

#[test]
fn configurations_are_checked() {
    let sit = Preset::Sit.process();
    let refused = |c: SampleConfig| c.sampler(&sit).err().expect("an error").to_string();
    let e = refused(SampleConfig { sampler: SamplerKind::Langevin, ..Default::default() });
    assert!(e.starts_with("sample.sampler") && e.contains("linear"), "{e}");
    let e = refused(SampleConfig { sampler: SamplerKind::Ddim, eta: Some(1.5), ..Default::default() });
    assert!(e.starts_with("sample.eta"), "{e}");
    let e = refused(SampleConfig { guidance_interval: Some([0.9, 0.1]), ..Default::default() });
    assert!(e.starts_with("sample.guidance_interval"), "{e}");
    assert!(toml::from_str::<SampleConfig>("sampler = \"dpm\"").is_err());
    assert!(toml::from_str::<SampleConfig>("step = 3").is_err());
}

/// A deterministic step must leave nothing out: from the exact state of a single point mass it lands on the point.
#[test]
fn a_point_mass_is_reached_in_one_step() {
    for text in ["", "preset = \"edm\"", "preset = \"ddpm\"", "path = \"cosine\"\nprediction = \"v\""] {
        let p = process(text);
        let gmm = Gmm { components: vec![Component { weight: 1.0, mean: vec![0.4, -0.7], std: 1e-6 }] };
        let grid = Grid::new(&p, GridKind::default_of(&p), 1, 1.0).unwrap();
        assert_eq!(grid.levels.len(), 2);
        assert_eq!(grid.levels[1], p.path.clean());
        for sampler in [&Ddim { eta: 0.0 } as &dyn Sampler, &Ddpm::default()] {
            let mut d = denoiser(&gmm, &p, 1);
            let x = sample(sampler, &mut d, &grid, &mut SampleNoise::new(&[9], 2), &mut |_, _, _| {}).unwrap();
            // At sigma 80 one f32 of the state is worth 1e-5.
            assert!((x[0] - 0.4).abs() < 1e-3 && (x[1] + 0.7).abs() < 1e-3, "{text:?}: {x:?}");
        }
        assert!(Step { index: 0, from: grid.levels[0], to: grid.levels[1] }.is_last());
    }
}
