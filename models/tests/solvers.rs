//! Every solver against a Gaussian mixture in closed form: measured orders of convergence, laws, histories.

// `!(x < y)` is meant where it stands: it refuses NaN too.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Graph};
use dnx_models::gmm::{Component, Gmm};
use dnx_models::network::{Inputs, MlpConfig};
use dnx_models::params::Params;
use dnx_models::process::{Level, Path, Preset, Process, ProcessConfig, Time};
use dnx_models::sample::{
    Adaptive, Bh, Correction, Ddim, Ddpm, Denoiser, Diffusion, Dpm2, DpmSolver, Edm, Estimate, Euler, EulerAncestral,
    EulerMaruyama, Form, Generator, Grid, GridKind, Heun, History, LastStep, MeanFlow, Model, Multistep, NetworkCall,
    PosteriorVariance, Renoise, Rule, RungeKutta, SAMPLERS, SampleConfig, SampleNoise, Sampler, SamplerKind, SdeHeun,
    Tableau, Tcd, UniPc, invert, level_at_ratio, ratio, sample, sample_from,
};
use dnx_models::{DataSpec, Network};
use dnx_runtime::Device;
use std::cell::Cell;

fn mixture() -> Gmm {
    let c = |weight, x, y, std| Component { weight, mean: vec![x, y], std };
    Gmm { components: vec![c(0.5, 0.8, 0.2, 0.3), c(0.3, -0.6, 0.5, 0.25), c(0.2, -0.2, -0.9, 0.4)] }
}

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

/// The mixture's denoiser in f64.
fn known<'a>(gmm: &'a Gmm, process: &'a Process, batch: usize) -> Denoiser<'a> {
    Denoiser::known(process, &[batch, gmm.dim()], move |x, level| {
        let mut e = Estimate { x0: vec![], noise: vec![] };
        for x in x.chunks(gmm.dim()) {
            let (x0, noise) = gmm.estimate(x, level);
            e.x0.extend(x0);
            e.noise.extend(noise);
        }
        Ok(e)
    })
}

fn solve(sampler: &dyn Sampler, process: &Process, grid: &Grid, start: &[f64]) -> Vec<f64> {
    let gmm = mixture();
    let mut noise = SampleNoise::new(&[0; 4], 2);
    let mut d = known(&gmm, process, start.len() / 2);
    sample_from(start.to_vec(), sampler, &mut d, grid, &mut noise, &mut |_, _, _| {}).unwrap()
}

/// Levels between two ratios of sigma to alpha, evenly in `ln`, in time or in the ratio itself.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Even {
    Time,
    Log,
    /// Even in `ln`, but for a first step that is cut into ever shorter ones towards the beginning: without them a
    /// multistep solver of high order shows the error of its first, low-order steps.
    Warm,
    Ratio,
}

const FROM: f64 = 3.0;
const TO: f64 = 0.15;

fn grid(process: &Process, even: Even, n: usize) -> Grid {
    let domain = process.path.domain();
    let (a, b) = (level_at_ratio(process, FROM).unwrap(), level_at_ratio(process, TO).unwrap());
    let at = |i: usize| -> Level<f64> {
        let u = i as f64 / n as f64;
        match even {
            Even::Time if a.rates.is_some() => {
                process.level(Time::new(domain, a.time + u * (b.time - a.time)).unwrap()).unwrap()
            }
            Even::Log | Even::Warm => level_at_ratio(process, FROM * (TO / FROM).powf(u)).unwrap(),
            Even::Time | Even::Ratio => level_at_ratio(process, FROM + u * (TO - FROM)).unwrap(),
        }
    };
    let mut levels: Vec<Level<f64>> = (0..=n).map(at).collect();
    if even == Even::Warm {
        let first = (TO / FROM).ln() / n as f64;
        let halvings = (n as f64).log2().ceil() as i32;
        let at = |k: i32| level_at_ratio(process, FROM * (first * 0.5f64.powi(k)).exp()).unwrap();
        levels.splice(1..1, (1..=halvings).rev().map(at));
    }
    Grid { levels }
}

/// Four states at the first level, and where the ODE takes them: Runge-Kutta of fourth order by 3000 steps.
fn reference(process: &Process) -> (Vec<f64>, Vec<f64>) {
    let (a, b) = (level_at_ratio(process, FROM).unwrap(), level_at_ratio(process, TO).unwrap());
    let start: Vec<f64> = [0.9, -0.4, -1.7, 0.3, 0.2, 1.1, 2.9, -2.2].iter().map(|v| v * a.alpha).collect();
    let gmm = mixture();
    // In ln(sigma / alpha) of y = x / alpha on the path alpha = 1, which every path is seen as.
    let ve = Path::Ve;
    let slope = |y: &[f64], u: f64| -> Vec<f64> {
        let level = ve.level(Time::sigma(u.exp()).unwrap()).unwrap();
        y.chunks(2).flat_map(|y| gmm.estimate(y, &level).1.into_iter().map(move |n| u.exp() * n)).collect()
    };
    let mut y: Vec<f64> = start.iter().map(|x| x / a.alpha).collect();
    const N: usize = 3000;
    let h = (TO / FROM).ln() / N as f64;
    for i in 0..N {
        let u = FROM.ln() + h * i as f64;
        let step = |k: &[f64], c: f64| -> Vec<f64> { y.iter().zip(k).map(|(y, k)| y + c * h * k).collect() };
        let k1 = slope(&y, u);
        let k2 = slope(&step(&k1, 0.5), u + 0.5 * h);
        let k3 = slope(&step(&k2, 0.5), u + 0.5 * h);
        let k4 = slope(&step(&k3, 1.0), u + h);
        for i in 0..y.len() {
            y[i] += h / 6.0 * (k1[i] + 2.0 * k2[i] + 2.0 * k3[i] + k4[i]);
        }
    }
    (start, y.iter().map(|y| b.alpha * y).collect())
}

fn dpm(form: Form, history: History, order: usize, correction: Correction) -> Box<dyn Sampler> {
    let lower_order_final = false;
    Box::new(DpmSolver {
        form,
        history,
        order,
        stochastic: false,
        correction,
        lower_order_final,
        euler_at_final: false,
    })
}

fn unipc(order: usize, bh: Bh, corrector: bool) -> Box<dyn Sampler> {
    Box::new(UniPc { form: Form::Data, order, bh, corrector, lower_order_final: false })
}

fn multistep(rule: Rule, order: usize) -> Box<dyn Sampler> {
    Box::new(Multistep { rule, order, lower_order_final: false })
}

/// Name, solver, spacing it is measured on, steps, and the order it must show.
fn deterministic() -> Vec<(&'static str, Box<dyn Sampler>, Even, usize, f64)> {
    use Correction::{Heun as Full, Midpoint};
    use Form::{Data, Noise};
    use History::{Multi, Single};
    vec![
        ("euler", Box::new(Euler), Even::Time, 160, 1.0),
        ("heun", Box::new(Heun), Even::Time, 40, 2.0),
        ("midpoint", Box::new(RungeKutta::second_order(0.5)), Even::Time, 40, 2.0),
        ("ralston", Box::new(RungeKutta::second_order(2.0 / 3.0)), Even::Time, 40, 2.0),
        ("rk4", Box::new(RungeKutta::rk4()), Even::Time, 40, 4.0),
        ("rk23, fixed steps", Box::new(RungeKutta::new(Tableau::bogacki_shampine())), Even::Time, 40, 3.0),
        ("rk45, fixed steps", Box::new(RungeKutta::new(Tableau::dormand_prince())), Even::Time, 24, 5.0),
        ("tsit5, fixed steps", Box::new(RungeKutta::new(Tableau::tsitouras())), Even::Time, 24, 5.0),
        ("edm, no churn", Box::new(Edm::default()), Even::Log, 40, 2.0),
        ("ddim", Box::new(Ddim { eta: 0.0 }), Even::Log, 160, 1.0),
        ("euler_ancestral, eta 0", Box::new(EulerAncestral { eta: 0.0 }), Even::Log, 160, 1.0),
        ("dpm2", Box::new(Dpm2 { eta: 0.0 }), Even::Log, 40, 2.0),
        ("lms, order 2", multistep(Rule::Lms, 2), Even::Log, 80, 2.0),
        ("lms, order 3", multistep(Rule::Lms, 3), Even::Warm, 80, 3.0),
        ("lms, order 4", multistep(Rule::Lms, 4), Even::Warm, 80, 4.0),
        ("deis, order 2", multistep(Rule::Deis, 2), Even::Log, 80, 2.0),
        ("deis, order 3, cold", multistep(Rule::Deis, 3), Even::Log, 80, 2.0),
        ("deis, order 3", multistep(Rule::Deis, 3), Even::Warm, 80, 3.0),
        ("ipndm, order 2, even in sigma", multistep(Rule::IPndm, 2), Even::Ratio, 160, 2.0),
        ("ipndm, order 4, uneven", multistep(Rule::IPndm, 4), Even::Log, 160, 2.0),
        ("plms, even in sigma", multistep(Rule::Plms, 4), Even::Ratio, 160, 4.0),
        ("pndm, even in sigma", multistep(Rule::Pndm, 4), Even::Ratio, 160, 4.0),
        ("dpmpp_2m", dpm(Data, Multi, 2, Midpoint), Even::Log, 80, 2.0),
        ("dpmpp_2m, heun", dpm(Data, Multi, 2, Full), Even::Log, 80, 2.0),
        ("dpmpp_3m", dpm(Data, Multi, 3, Midpoint), Even::Warm, 80, 2.0),
        ("dpmpp_3m, heun, cold", dpm(Data, Multi, 3, Full), Even::Log, 80, 2.0),
        ("dpmpp_3m, heun", dpm(Data, Multi, 3, Full), Even::Warm, 80, 3.0),
        ("dpmpp_2s", dpm(Data, Single, 2, Midpoint), Even::Log, 80, 2.0),
        ("dpmpp_3s", dpm(Data, Single, 3, Midpoint), Even::Log, 120, 3.0),
        ("dpmpp_3s, heun", dpm(Data, Single, 3, Full), Even::Log, 120, 3.0),
        ("dpm_2m", dpm(Noise, Multi, 2, Midpoint), Even::Log, 80, 2.0),
        ("dpm_3m, heun", dpm(Noise, Multi, 3, Full), Even::Warm, 80, 3.0),
        ("dpm_2s", dpm(Noise, Single, 2, Midpoint), Even::Log, 80, 2.0),
        ("dpm_3s, heun", dpm(Noise, Single, 3, Full), Even::Log, 120, 3.0),
        ("unipc, order 2", unipc(2, Bh::Bh2, true), Even::Log, 80, 3.0),
        ("unipc, order 2, bh1", unipc(2, Bh::Bh1, true), Even::Log, 80, 3.0),
        ("unipc, order 3", unipc(3, Bh::Bh2, true), Even::Warm, 160, 4.0),
        ("unipc, order 3, no corrector", unipc(3, Bh::Bh2, false), Even::Warm, 80, 3.0),
    ]
}

const PATHS: [(&str, &str); 5] = [
    ("linear", ""),
    ("cosine", "path = \"cosine\""),
    ("vp", "path = \"vp\"\nbeta = [0.1, 12.0]"),
    ("ve", "preset = \"edm\""),
    ("chain", "preset = \"ddpm\""),
];

fn error(sampler: &dyn Sampler, process: &Process, even: Even, n: usize) -> f64 {
    let (start, want) = reference(process);
    let got = solve(sampler, process, &grid(process, even, n), &start);
    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Each solver has its order on each path; and where it shows more, it is because the table says too little.
#[test]
fn orders_of_convergence() {
    let mut wrong = vec![];
    for (name, sampler, even, n, order) in deterministic() {
        for (path, text) in PATHS {
            let p = process(text);
            let (a, b) = (error(&*sampler, &p, even, n), error(&*sampler, &p, even, 2 * n));
            let measured = (a / b).log2();
            // Before their errors drown in rounding, rules of fifth order are not yet at their own slope.
            let more = if order < 5.0 { 0.95 } else { 3.0 };
            if !(order - 0.3..order + more).contains(&measured) {
                wrong.push(format!("{name} on {path}: {measured:.2}, not {order} ({a:.1e}, {b:.1e})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The table of docs/solvers.md.
#[test]
#[ignore = "prints the table of docs/solvers.md: cargo test -p dnx-models --test solvers -- --ignored --nocapture"]
fn print_orders() {
    println!("| solver | steps | {} |", PATHS.map(|(name, _)| name).join(" | "));
    println!("|---|---|{}", PATHS.map(|_| "---|").concat());
    for (name, sampler, even, n, _) in deterministic() {
        let cells = PATHS.map(|(_, text)| {
            let p = process(text);
            let (a, b) = (error(&*sampler, &p, even, n), error(&*sampler, &p, even, 2 * n));
            format!("{:.2} ({b:.0e})", (a / b).log2())
        });
        println!("| {name} | {} | {} |", 2 * n, cells.join(" | "));
    }
}

/// The error of adaptive solvers falls with the tolerance, and stays within a small multiple of it.
#[test]
fn adaptive_solvers_keep_their_tolerance() {
    for rule in [Tableau::bogacki_shampine(), Tableau::dormand_prince(), Tableau::tsitouras()] {
        for (path, text) in PATHS {
            let p = process(text);
            let of = |tolerance: f64| {
                let solver = Adaptive { rule: rule.clone(), atol: tolerance, rtol: tolerance };
                let (start, want) = reference(&p);
                let gmm = mixture();
                let mut d = known(&gmm, &p, 4);
                let mut noise = SampleNoise::new(&[0; 4], 2);
                let ends = grid(&p, Even::Log, 1);
                let got = sample_from(start, &solver, &mut d, &ends, &mut noise, &mut |_, _, _| {}).unwrap();
                let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                (error, d.evaluations())
            };
            let ((coarse, few), (fine, many)) = (of(1e-3), of(1e-7));
            assert!(coarse < 2e-2 && fine < 2e-6, "order {} on {path}: {coarse:.1e}, {fine:.1e}", rule.order);
            assert!(many > few && few < 150, "order {} on {path}: {few}, {many} evaluations", rule.order);
        }
    }
}

#[test]
fn adaptive_solvers_choose_their_own_times_between_the_grids_ends() {
    let (gmm, p) = (mixture(), Preset::Sit.process());
    let solver = Adaptive { rule: Tableau::dormand_prince(), atol: 1e-6, rtol: 1e-4 };
    let run = |steps: usize| {
        let grid = Grid::new(&p, GridKind::Uniform, steps, 1.0).unwrap();
        let mut d = known(&gmm, &p, 3);
        let x = sample(&solver, &mut d, &grid, &mut SampleNoise::new(&[1, 2, 3], 2), &mut |_, _, _| {}).unwrap();
        (x, d.evaluations())
    };
    assert_eq!(run(2), run(50));
}

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

fn draw(sampler: &dyn Sampler, process: &Process, grid: &Grid, count: usize) -> Vec<f64> {
    let gmm = mixture();
    let seeds: Vec<u64> = (0..count as u64).collect();
    let mut d = known(&gmm, process, count);
    sample(sampler, &mut d, grid, &mut SampleNoise::new(&seeds, 2), &mut |_, _, _| {}).unwrap()
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

/// The seed of this field's oldest mistake: a second slope that repeats the first network output makes Heun Euler.
#[test]
fn heun_second_slope_is_fresh() {
    let p = Preset::Sit.process();
    let grid = Grid::new(&p, GridKind::Uniform, 5, 1.0).unwrap();
    let gmm = mixture();
    let seen = std::cell::RefCell::new(vec![]);
    let mut d = Denoiser::known(&p, &[1, 2], |x, level| {
        seen.borrow_mut().push((x.to_vec(), level.time));
        let (x0, noise) = gmm.estimate(x, level);
        Ok(Estimate { x0, noise })
    });
    sample(&Heun, &mut d, &grid, &mut SampleNoise::new(&[0], 2), &mut |_, _, _| {}).unwrap();
    let seen = seen.borrow();
    assert_eq!(seen.len(), 9);
    for pair in seen.windows(2).step_by(2) {
        assert!(pair[0].0 != pair[1].0 && pair[0].1 > pair[1].1, "{pair:?}");
    }
}

/// A stepper remembers its own run alone: the second run of one sampler is the first's equal.
#[test]
fn history_ends_with_the_run() {
    let p = Preset::Ddpm.process();
    for row in SAMPLERS {
        let c = SampleConfig { sampler: row.kind, steps: 8, grid: Some(GridKind::Karras), ..Default::default() };
        let Ok(sampler) = c.sampler(&p) else { continue };
        let grid = c.grid(&p).unwrap();
        assert_eq!(draw(&*sampler, &p, &grid, 3), draw(&*sampler, &p, &grid, 3), "{}", row.name);
    }
}

/// What each sampler costs on ten steps to clean data.
#[test]
fn evaluations_are_counted() {
    use SamplerKind::*;
    let p = Preset::Edm.process();
    for (kind, want) in [
        (Euler, 10),
        (Heun, 19),
        (Midpoint, 20),
        (Rk4, 39),
        (Edm, 19),
        (Ddim, 10),
        (Dpm2, 19),
        (Dpm2Ancestral, 19),
        (Lms, 10),
        (Ipndm, 10),
        (Plms, 11),
        (Pndm, 19),
        (Deis, 10),
        (Dpmpp2m, 10),
        (Dpmpp3m, 10),
        (Dpmpp2s, 10),
        (DpmppSde, 19),
        (Unipc, 10),
        (EulerMaruyama, 10),
        (SdeHeun, 19),
        (PredictorCorrector, 20),
    ] {
        let c = SampleConfig { sampler: kind, steps: 10, ..Default::default() };
        let gmm = mixture();
        let mut d = known(&gmm, &p, 1);
        let grid = c.grid(&p).unwrap();
        let mut noise = SampleNoise::new(&[0], 2);
        sample(&*c.sampler(&p).unwrap(), &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
        assert_eq!(d.evaluations(), want, "{kind:?}");
    }
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

#[test]
fn inversion_undoes_ddim() {
    let (gmm, p) = (mixture(), process("time_range = [0.0, 0.95]"));
    let grid = Grid::new(&p, GridKind::Uniform, 400, 1.0).unwrap();
    let data = [0.7, 0.3, -0.5, 0.4];
    let up = invert(data.to_vec(), &mut known(&gmm, &p, 2), &grid).unwrap();
    let mut d = known(&gmm, &p, 2);
    let mut noise = SampleNoise::new(&[0, 1], 2);
    let down = sample_from(up, &Ddim { eta: 0.0 }, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
    for (a, b) in data.iter().zip(&down) {
        assert!((a - b).abs() < 5e-3, "{a} {b}");
    }
    let pure = Grid::new(&Preset::Sit.process(), GridKind::Uniform, 4, 1.0).unwrap();
    let sit = Preset::Sit.process();
    assert!(invert(data.to_vec(), &mut known(&gmm, &sit, 2), &pure).is_err());
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

/// First order of every exponential form is DDIM, whose step each of them begins with.
#[test]
fn first_orders_are_ddim() {
    let p = Preset::Ddpm.process();
    let grid = Grid::new(&p, GridKind::Trailing, 9, 1.0).unwrap();
    let want = draw(&Ddim { eta: 0.0 }, &p, &grid, 3);
    let all: Vec<Box<dyn Sampler>> = vec![
        dpm(Form::Data, History::Multi, 1, Correction::Midpoint),
        dpm(Form::Noise, History::Multi, 1, Correction::Midpoint),
        dpm(Form::Noise, History::Single, 1, Correction::Midpoint),
        unipc(1, Bh::Bh2, false),
        multistep(Rule::Lms, 1),
        multistep(Rule::Deis, 1),
        multistep(Rule::IPndm, 1),
        Box::new(EulerAncestral { eta: 0.0 }),
    ];
    for sampler in all {
        for (a, b) in draw(&*sampler, &p, &grid, 3).iter().zip(&want) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }
    let last = grid.levels[grid.steps() - 1];
    assert!(ratio(&last) > 0.0);
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

/// Data of a normal law with the variances of its reverse steps: those of the posterior, and what is not known of the
/// data on top. The network says where they lie between the posterior's and the forward step's.
struct Reverse<'a> {
    process: &'a Process,
    grid: &'a Grid,
    variance: f64,
}

impl Model for Reverse<'_> {
    fn forward(&mut self, call: &NetworkCall<'_>) -> dnx_models::Result<Array> {
        Ok(self.forward_ranges(call)?.0)
    }

    fn forward_ranges(&mut self, call: &NetworkCall<'_>) -> dnx_models::Result<(Array, Option<Array>)> {
        let from = call.levels[0];
        let at = self.grid.levels.iter().position(|l| l.time == from.time).expect("a level of the grid");
        let to = self.grid.levels[at + 1];
        let total = from.alpha.powi(2) * self.variance + from.sigma.powi(2);
        let noise: Vec<f64> = call.x.to_f64_vec().iter().map(|x| from.sigma / total * x).collect();
        // var(x_to | x_from) of the joint normal law.
        let before = to.alpha.powi(2) * self.variance + to.sigma.powi(2);
        let wanted = before - (from.alpha / to.alpha * before).powi(2) / total;
        let large = from.sigma.powi(2) - (from.alpha / to.alpha * to.sigma).powi(2);
        let small = large * (to.sigma / from.sigma).powi(2);
        let share = (wanted / small).ln() / (large / small).ln();
        let array = |v: &[f64]| Array::f32(call.x.dims(), &v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        assert_eq!(self.process.time_input(&from), call.times[0]);
        Ok((array(&noise), Some(array(&vec![if to.sigma > 0.0 { 2.0 * share - 1.0 } else { 0.0 }; noise.len()]))))
    }
}

/// With the right variances ancestral sampling is exact however few its steps are; with those of the posterior given
/// the data samples spread too little, with those of the forward step too much.
#[test]
fn learned_variances_make_few_steps_exact() {
    let p = process("preset = \"iddpm\"");
    let deviation = |variance: PosteriorVariance| {
        let grid = Grid::new(&p, GridKind::Uniform, 6, 1.0).unwrap();
        let model = Reverse { process: &p, grid: &grid, variance: 0.49 };
        let mut d = Denoiser::of(&p, &[20_000, 2], model);
        let mut noise = SampleNoise::new(&(0..20_000).collect::<Vec<_>>(), 2);
        let sampler = Ddpm { variance };
        // The chain's first state is normal with the deviation of its own level.
        let x = sample(&sampler, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap();
        (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt()
    };
    let [small, large, learned] =
        [PosteriorVariance::Small, PosteriorVariance::Large, PosteriorVariance::Learned].map(deviation);
    println!("deviations of samples of 0.7: small {small}, large {large}, learned {learned}");
    let last = Grid::new(&p, GridKind::Uniform, 6, 1.0).unwrap().levels[5];
    // The last step gives the mean, which takes what is not known of the data at the last level away.
    let rest = 1.0 / (1.0 / 0.49 + (last.alpha / last.sigma).powi(2));
    let want = (0.49 - rest).sqrt();
    assert!((learned - want).abs() < 0.006, "{learned}, not {want}");
    assert!(small < want - 0.02 && large > want + 0.02, "{small} {large}");
}

/// They are what a process that learned them is sampled with, and only such a process is.
#[test]
fn learned_variances_are_for_those_who_learned_them() {
    let ddpm: SampleConfig = toml::from_str("sampler = \"ddpm\"").unwrap();
    for (preset, want) in [(Preset::Iddpm, PosteriorVariance::Learned), (Preset::Ddpm, PosteriorVariance::Small)] {
        assert_eq!(ddpm.resolved(&preset.process()).variance, Some(want));
        let sampler = ddpm.sampler(&preset.process()).unwrap();
        assert_eq!(sampler.gaussian().is_some(), want == PosteriorVariance::Small);
    }
    let learned: SampleConfig = toml::from_str("sampler = \"ddpm\"\nvariance = \"learned\"").unwrap();
    let e = learned.sampler(&Preset::Ddpm.process()).err().unwrap().to_string();
    assert!(e.starts_with("sample.variance"), "{e}");
    // A function that gives none is no network of such a process.
    let p = Preset::Iddpm.process();
    let grid = Grid::new(&p, GridKind::Uniform, 3, 1.0).unwrap();
    let mut d = Denoiser::new(&p, &[1, 2], |call| Ok(call.x.clone()));
    let mut noise = SampleNoise::new(&[0], 2);
    let sampler = learned.sampler(&p).unwrap();
    let e = sample(&*sampler, &mut d, &grid, &mut noise, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(e.contains("no variances"), "{e}");
}

/// A generator's network says its variances with its output, under guidance those of the wanted label.
#[test]
fn generators_read_the_second_half_of_the_output() {
    let p = process("preset = \"iddpm\"\ntime_scale = 0.1");
    let config = MlpConfig { hidden: 8, layers: 1, time_width: 4, classes: Some(2), ..MlpConfig::default() };
    let mut network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 2 }).unwrap();
    network.suit(&p);
    let specs = network.specs().unwrap();
    let weights: Vec<Array> = specs
        .iter()
        .enumerate()
        .map(|(i, s)| dnx_models::Init::Normal { std: 0.4 }.draw(&s.dims, dnx_ir::threefry::key(i as u64)))
        .collect();
    let g = Graph::new("both");
    let declared = Params::declare(&g, &specs);
    let inputs = Inputs::declare(&g, 2, &network).unwrap();
    let outputs = network.evaluate(&declared.root(), inputs, None);
    let func = g.finish(&[outputs.prediction, outputs.variance.unwrap()]).unwrap();
    let mut generator = Generator::new(&Device::cpu(), &network, &p, &weights, 2).unwrap();
    let level = p.level(Time::step(500, 1000).unwrap()).unwrap();
    let x = [0.3, -1.2, 0.7, 0.4];
    for cfg in [1.0, 2.5] {
        let labels = [1, 0];
        let guidance = SampleConfig { cfg, ..Default::default() }.guidance();
        let mut d = Denoiser::of(&p, &[2, 2], generator.conditioned(&labels, 2)).with_guidance(guidance);
        d.estimate(&x, &level).unwrap();
        let range = d.range().expect("variances").to_vec();
        let mut args = weights.clone();
        let floats = |v: &[f64]| Array::f32([v.len()], &v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        args.push(Array::f32([2, 2], &x.map(|v| v as f32)));
        args.extend([floats(&[50.0; 2]), floats(&[level.sigma; 2]), Array::i32([2], &labels)]);
        let want = eval(&func, &args, Precision::F32).unwrap()[1].to_f64_vec();
        for (a, b) in range.iter().zip(&want) {
            assert!((a - b).abs() < 1e-4, "{range:?}, not {want:?}");
        }
    }
}

/// A chain without data at its end is trained with every weighting that it may have.
#[test]
fn zero_terminal_snr_leaves_losses_finite() {
    for weighting in ["uniform", "noise", "data", "edm", "min_snr", "p2"] {
        for prediction in ["v", "x0"] {
            let kind = match weighting {
                "min_snr" => "{ kind = \"min_snr\", gamma = 5.0 }".to_string(),
                "p2" => "{ kind = \"p2\", gamma = 1.0, k = 1.0 }".to_string(),
                other => format!("{{ kind = \"{other}\" }}"),
            };
            let p = process(&format!(
                "preset = \"ddpm\"\nprediction = \"{prediction}\"\nzero_terminal_snr = true\nweighting = {kind}"
            ));
            let last = p.level(Time::step(999, 1000).unwrap()).unwrap();
            assert_eq!(last.alpha, 0.0);
            let factor = p.weighting.factor(&last, &p.coefficients(&last), p.sigma_data);
            // What says how far the noise is known says nothing here.
            let none = matches!(weighting, "noise" | "min_snr" | "p2");
            assert!(if none { factor == 0.0 } else { factor > 0.0 && factor.is_finite() }, "{weighting}: {factor}");
        }
    }
}
