//! Samples have the law of the data: of a mixture and of normal laws in closed form.

// `!(x < y)` is meant where it stands: it refuses NaN too.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

mod mixture;

use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Level, Preset, Time};
use dnx_models::sample::{
    Ddim, Denoiser, Diffusion, Estimate, EulerMaruyama, Grid, GridKind, Heun, LastStep, MeanFlow, Renoise, SAMPLERS,
    SampleConfig, SampleNoise, Sampler, SamplerKind, SdeHeun, Tcd, sample, sample_from,
};
use mixture::{draw, known, mixture, process};
use std::cell::Cell;

fn moments(x: &[f64]) -> [f64; 5] {
    let n = (x.len() / 2) as f64;
    let mean = |f: &dyn Fn(&[f64]) -> f64| x.chunks(2).map(f).sum::<f64>() / n;
    let (a, b) = (mean(&|p| p[0]), mean(&|p| p[1]));
    let cov = |i: usize, j: usize| mean(&|p| (p[i] - [a, b][i]) * (p[j] - [a, b][j]));
    [a, b, cov(0, 0), cov(0, 1), cov(1, 1)]
}

fn law(gmm: &Gmm) -> [f64; 5] {
    let (mean, var) = gmm.moments();
    let cov: f64 = gmm.components.iter().map(|c| c.weight * c.mean[0] * c.mean[1]).sum::<f64>() - mean[0] * mean[1];
    [mean[0], mean[1], var[0], cov, var[1]]
}

/// Every sampler of the table that a perfect network of one time can drive, on every path it accepts: the mean and
/// the covariance of the data within Monte-Carlo error and what its steps cost.
#[test]
fn samples_have_mean_and_covariance_of_the_data() {
    use SamplerKind::*;
    const N: usize = 2500;
    let want = law(&mixture());
    let mut wrong = vec![];
    for row in SAMPLERS {
        // A jump's network is no denoiser, and to clean data at once is right only for a consistency function.
        if matches!(row.kind, MeanFlow | Consistency | Scm | StochasticFlow | Lcm | Tcd) {
            continue;
        }
        for (path, text) in [
            ("linear", ""),
            ("vp", "path = \"vp\"\ntime_range = [1e-3, 1.0]"),
            ("ve", "preset = \"edm\"\nsigma_data = 0.75\ntime_range = [0.01, 20.0]"),
            ("chain", "preset = \"ddpm\""),
        ] {
            let p = process(text);
            let steps = match row.kind {
                Ddpm | EulerMaruyama | PredictorCorrector | EulerAncestral => 300,
                Langevin => 20,
                _ => 60,
            };
            let mut c = SampleConfig { sampler: row.kind, steps, ..Default::default() };
            if path != "ve" && matches!(row.kind, EulerMaruyama | SdeHeun) {
                c.steps = 300;
            }
            if row.kind == Langevin {
                c.langevin_steps = Some(40);
            }
            if path == "chain" {
                c.grid = Some(GridKind::Karras);
            }
            let Ok(sampler) = c.sampler(&p) else { continue };
            let x = draw(&*sampler, &p, &c.grid(&p).unwrap(), N);
            let got = moments(&x);
            let se = [(want[2] / N as f64).sqrt(), (want[4] / N as f64).sqrt()];
            for i in 0..5 {
                let tolerance = if i < 2 { 4.0 * se[i] + 0.02 } else { 0.06 };
                if !((got[i] - want[i]).abs() < tolerance) {
                    wrong.push(format!("{} on {path}: moment {i} is {:.3}, not {:.3}", row.name, got[i], want[i]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ddim_fresh_noise_takes_the_place_of_old() {
    // With eta > 0 the direction term shrinks; else the variance of states would grow with every step.
    let p = Preset::Ddpm.process();
    let grid = Grid::new(&p, GridKind::Uniform, 50, 1.0).unwrap();
    let want = law(&mixture());
    for eta in [0.3, 1.0] {
        let got = moments(&draw(&Ddim { eta }, &p, &grid, 4000));
        assert!((got[2] - want[2]).abs() < 0.06 && (got[4] - want[4]).abs() < 0.06, "{eta}: {got:?}, {want:?}");
    }
}

/// The reverse SDE with its whole `g^2` and the ODE have the same marginals half-way; with a diffusion whose score
/// term does not match its noise the variance would be off.
#[test]
fn ode_and_sde_share_marginals() {
    let p = process("time_range = [0.0, 0.99]");
    let (gmm, half) = (mixture(), p.level(Time::unit(0.4).unwrap()).unwrap());
    let levels: Vec<Level<f64>> =
        (0..=200).map(|i| p.level(Time::unit(0.99 + (0.4 - 0.99) * i as f64 / 200.0).unwrap()).unwrap()).collect();
    let grid = Grid { levels };
    let data = law(&gmm);
    let a2 = half.alpha * half.alpha;
    let s2 = half.sigma * half.sigma;
    let want = [half.alpha * data[0], half.alpha * data[1], a2 * data[2] + s2, a2 * data[3], a2 * data[4] + s2];
    let mut samplers: Vec<(String, Box<dyn Sampler>)> = vec![("the ODE".into(), Box::new(Heun))];
    for diffusion in Diffusion::ALL {
        let sde = EulerMaruyama { diffusion, scale: diffusion.usual_scale(), last: LastStep::Mean };
        samplers.push((format!("{diffusion:?}"), Box::new(sde)));
        samplers.push((format!("{diffusion:?} by Heun"), Box::new(SdeHeun(sde))));
    }
    const N: usize = 4000;
    for (name, sampler) in samplers {
        // The start has the marginal's own law at 0.99: data and noise are drawn, not noise alone.
        let noise = |seed: u64| SampleNoise::new(&[seed], 2);
        let mut start = vec![];
        for i in 0..N as u64 {
            use dnx_models::sample::Noise;
            let mut z = noise(i + 1_000_000);
            let (n, e) = (z.draw(), z.draw());
            let c = &gmm.components[[0, 0, 0, 0, 0, 1, 1, 1, 2, 2][i as usize % 10]];
            let first = &grid.levels[0];
            start.extend((0..2).map(|k| first.alpha * (c.mean[k] + c.std * e[k]) + first.sigma * n[k]));
        }
        let seeds: Vec<u64> = (0..N as u64).collect();
        let mut d = known(&gmm, &p, N);
        let mut z = SampleNoise::new(&seeds, 2);
        let x = sample_from(start, &*sampler, &mut d, &grid, &mut z, &mut |_, _, _| {}).unwrap();
        for (i, (got, want)) in moments(&x).iter().zip(want).enumerate() {
            assert!((got - want).abs() < 0.04, "{name}: moment {i} is {got:.4}, not {want:.4}");
        }
    }
}

/// A flow map of a Gaussian jumps exactly, in one step or in many.
#[test]
fn mean_flow_jumps() {
    let p = Preset::Sit.process();
    let (mean, std) = (0.4, 0.3f64);
    let spread = |t: f64| ((1.0 - t) * std).hypot(t);
    let calls = Cell::new(0);
    let run = |steps: usize| {
        let mut d = Denoiser::new(&p, &[1, 2], |call| {
            calls.set(calls.get() + 1);
            let (t, r) = (call.levels[0].time, call.levels[0].time - call.seconds[0]);
            let jump = |x: f64| (1.0 - r) * mean + spread(r) / spread(t) * (x - (1.0 - t) * mean);
            let u = call.x.to_f64_vec().into_iter().map(|x| ((x - jump(x)) / (t - r)) as f32);
            Ok(dnx_ir::Array::f32(call.x.dims(), &u.collect::<Vec<_>>()))
        });
        let grid = Grid::new(&p, GridKind::Uniform, steps, 1.0).unwrap();
        sample(&MeanFlow, &mut d, &grid, &mut SampleNoise::new(&[7], 2), &mut |_, _, _| {}).unwrap()
    };
    let (one, four) = (run(1), run(4));
    assert_eq!(calls.get(), 5);
    for (a, b) in one.iter().zip(&four) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// With the exact consistency function of a Gaussian all the samplers that go to clean data and back keep its law.
#[test]
fn consistency_samplers_keep_the_law() {
    let p = Preset::Edm.process();
    let (mean, std) = (0.4, 0.5f64);
    const N: usize = 8000;
    for floor in [0.0, 0.002] {
        let mut d = Denoiser::known(&p, &[N, 2], |x, level| {
            let scale = std / std.hypot(level.sigma);
            let x0: Vec<f64> = x.iter().map(|x| mean + scale * (x - mean)).collect();
            let noise = x.iter().zip(&x0).map(|(x, x0)| (x - x0) / level.sigma).collect();
            Ok(Estimate { x0, noise })
        });
        let grid = Grid::new(&p, GridKind::Karras, 4, 1.0).unwrap();
        let seeds: Vec<u64> = (0..N as u64).collect();
        let mut noise = SampleNoise::new(&seeds, 2);
        let x = sample(&Renoise { floor }, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
        let m = moments(&x);
        assert!((m[0] - mean).abs() < 0.025 && (m[2] - std * std).abs() < 0.015, "{m:?}");
    }
}

#[test]
fn tcd_without_gamma_is_ddim() {
    let p = Preset::Ddpm.process();
    let grid = Grid::new(&p, GridKind::Trailing, 12, 1.0).unwrap();
    let (a, b) = (draw(&Tcd { gamma: 0.0 }, &p, &grid, 3), draw(&Ddim { eta: 0.0 }, &p, &grid, 3));
    a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
}

/// A chain that ends with no data at all is sampled from its very end: to begin a step before it would leave the mean
/// of the data in the noise (Lin et al., 2023). So is any path from pure noise, by solvers that divide by alpha.
#[test]
fn pure_noise_is_where_sampling_begins() {
    let chain =
        process("preset = \"ddpm\"\nprediction = \"v\"\nschedule = \"scaled_linear\"\nzero_terminal_snr = true");
    let far = Gmm { components: vec![Component { weight: 1.0, mean: vec![3.0, -2.0], std: 0.2 }] };
    for (p, grid) in [(&chain, GridKind::Trailing), (&Preset::Sit.process(), GridKind::Uniform)] {
        let grid = Grid::new(p, grid, 20, 1.0).unwrap();
        assert_eq!(grid.levels[0].alpha, 0.0);
        for row in SAMPLERS {
            use SamplerKind::*;
            let c = SampleConfig { sampler: row.kind, steps: 20, ..Default::default() };
            let Ok(sampler) = c.sampler(p) else { continue };
            if matches!(row.kind, MeanFlow | Rk23 | Rk45 | Tsit5 | EulerMaruyama | SdeHeun | PredictorCorrector | Lcm) {
                continue;
            }
            let mut d = known(&far, p, 200);
            let mut noise = SampleNoise::new(&(0..200).collect::<Vec<_>>(), 2);
            let x = sample(&*sampler, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
            let m = moments(&x);
            let name = row.name;
            assert!((m[0] - 3.0).abs() < 0.1 && (m[1] + 2.0).abs() < 0.1, "{name} on {}: {m:?}", p.path.name());
        }
    }
}
