//! Every solver against a Gaussian mixture in closed form: measured orders of convergence, tolerances, histories, costs.

// `!(x < y)` is meant where it stands: it refuses NaN too.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

mod mixture;

use dnx_models::process::{Level, Path, Preset, Process, Time};
use dnx_models::sample::{
    Adaptive, Bh, Correction, Ddim, Denoiser, Dpm2, DpmSolver, Edm, Estimate, Euler, EulerAncestral, Form, Grid,
    GridKind, Heun, History, Multistep, Rule, RungeKutta, SAMPLERS, SaSolver, SampleConfig, SampleNoise, Sampler,
    SamplerKind, Tableau, UniPc, invert, level_at_ratio, ratio, sample, sample_from,
};
use mixture::{draw, known, mixture, process};

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

fn sa(order: usize, correction: Correction, corrector: bool) -> Box<dyn Sampler> {
    let range = [0.0, f64::INFINITY];
    Box::new(SaSolver { order, tau: 0.0, range, corrector, correction, lower_order_final: false })
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
        ("sa_solver, tau 0, order 2", sa(2, Correction::Midpoint, true), Even::Log, 80, 2.0),
        ("sa_solver, tau 0, order 2, heun", sa(2, Full, true), Even::Log, 80, 2.0),
        ("sa_solver, tau 0, order 3", sa(3, Full, true), Even::Warm, 80, 3.0),
        ("sa_solver, tau 0, order 4, no corrector", sa(4, Full, false), Even::Warm, 160, 4.0),
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
        (SaSolver, 10),
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
        sa(1, Correction::Midpoint, false),
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
