//! Recordings of samplers: what they say is what the samplers do.

use dnx_models::process::{Preset, Process, ProcessConfig};
use dnx_models::sample::{
    Denoiser, Estimate, Evaluation, Grid, Guidance, Heun, Langevin, MOST_SLOTS, Noise, Recording, SAMPLERS,
    SampleConfig, Sampler, SamplerInfo, SamplerKind, sample_from,
};

const ELEMS: usize = 6;

fn processes() -> Vec<(&'static str, Process)> {
    let of = |text: &str| toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap();
    let vp = "path = \"vp\"\nprediction = \"epsilon\"";
    let cosine = "path = \"cosine\"\nprediction = \"v\"";
    vec![
        ("linear", of("")),
        ("edm", of("preset = \"edm\"")),
        ("ve", of("preset = \"ve\"")),
        ("vp", of(vp)),
        ("cosine", of(cosine)),
        ("chain", of("preset = \"ddpm\"")),
    ]
}

/// Every sampler on every path on which it has a meaning, and its grid of seven steps.
fn cases() -> Vec<(String, &'static SamplerInfo, Process, SampleConfig)> {
    let mut out = vec![];
    for (path, process) in processes() {
        for row in SAMPLERS {
            let few = (row.kind == SamplerKind::Langevin).then_some(3);
            let config = SampleConfig { sampler: row.kind, steps: 7, langevin_steps: few, ..Default::default() };
            if config.sampler(&process).is_ok() {
                out.push((format!("{} on {path}", row.name), row, process.clone(), config));
            }
        }
    }
    assert!(SAMPLERS.iter().all(|row| out.iter().any(|(_, seen, ..)| seen.kind == row.kind)));
    out
}

fn numbers(seed: f64) -> Vec<f64> {
    (0..ELEMS).map(|i| (1.0 + 7.3 * seed + 2.1 * i as f64).sin()).collect()
}

/// Draws that are known, times a factor, plus as many others.
struct Known(usize, [f64; 2]);

impl Noise for Known {
    fn draw(&mut self) -> Vec<f64> {
        self.0 += 1;
        mixed(100.0 + self.0 as f64, self.1)
    }
}

/// `p a + q b` of two arrays that a number stands for.
fn mixed(seed: f64, [p, q]: [f64; 2]) -> Vec<f64> {
    numbers(seed).iter().zip(numbers(seed + 0.5)).map(|(a, b)| p * a + q * b).collect()
}

/// The last state of a run whose network answers with what `network` says.
fn run(
    sampler: &dyn Sampler,
    process: &Process,
    grid: &Grid,
    mix: [f64; 2],
    network: &mut dyn FnMut(&[f64], f64, f64) -> Vec<f64>,
) -> Vec<f64> {
    let mut denoiser = Denoiser::known_jump(process, &[1, ELEMS], |x, from, to| {
        let c = process.coefficients(from);
        let seen: Vec<f64> = x.iter().map(|x| c.c_in * x).collect();
        let f = network(&seen, process.time_input(from), process.second_input(from, to));
        let [a, b, c, d] = c.solve(from);
        let of = |p: f64, q: f64| x.iter().zip(&f).map(|(x, f)| p * x + q * f).collect();
        Ok(Estimate { x0: of(a, b), noise: of(c, d) })
    });
    let start = mixed(1.0, mix);
    sample_from(start, sampler, &mut denoiser, grid, &mut Known(0, mix), &mut |_, _, _| {}).unwrap()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let size = b.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

/// A recording does what its sampler does, whatever the network: here one that is not linear in anything.
#[test]
fn replays_are_runs() {
    let network = |seen: &[f64], time: f64, second: f64| -> Vec<f64> {
        seen.iter().map(|u| (1.7 * u + 0.3 * time).sin() + 0.2 * u - (second + 0.1).cos()).collect()
    };
    let mut recorded = 0;
    for (name, row, process, config) in cases() {
        let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
        let recording = Recording::of(&*sampler, &process, &grid, &Guidance::NONE).unwrap();
        assert_eq!(recording.is_some(), !row.name.starts_with("rk23") && sampler.is_linear(), "{name}");
        let Some(recording) = recording else { continue };
        recorded += 1;
        let mut evaluations = 0;
        let want = run(&*sampler, &process, &grid, [1.0, 0.0], &mut |seen, time, second| {
            evaluations += 1;
            network(seen, time, second)
        });
        assert_eq!(recording.evaluations.len(), evaluations, "{name}");
        let noise = &mut Known(0, [1.0, 0.0]);
        let got = recording.replay(mixed(1.0, [1.0, 0.0]), noise, &mut |e, seen| {
            assert!(e.output < recording.slots && e.keep.is_none_or(|k| k < recording.slots));
            Ok(network(seen, e.time, e.second))
        });
        assert!(distance(&got.unwrap(), &want) < 1e-9, "{name}");
    }
    assert!(recorded > 150, "{recorded}");
}

/// What a sampler says of itself: with answers and draws that are given, runs of sums are sums of runs, and only then.
#[test]
fn linear_samplers_are_linear_and_others_are_not() {
    for (name, _, process, config) in cases() {
        let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
        // Answers are smooth in time, so that adaptive solvers come to an end, and the same whatever is asked.
        let of = |mix: [f64; 2]| {
            run(&*sampler, &process, &grid, mix, &mut |_, time, _| mixed(0.3 * time / (1.0 + time.abs()), mix))
        };
        let (a, b, both) = (of([1.0, 0.0]), of([0.0, 1.0]), of([2.0, -3.0]));
        let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 2.0 * a - 3.0 * b).collect();
        assert_eq!(distance(&both, &sum) < 1e-9, sampler.is_linear(), "{name}: {}", distance(&both, &sum));
    }
    let learned: SampleConfig = toml::from_str("sampler = \"ddpm\"\nvariance = \"learned\"").unwrap();
    let process = toml::from_str::<ProcessConfig>("preset = \"iddpm\"").unwrap().resolve().unwrap();
    assert!(!learned.sampler(&process).unwrap().is_linear());
}

#[test]
fn slots_are_few() {
    for (text, slots, keeps) in [
        ("sampler = \"euler\"", 1, false),
        ("sampler = \"heun\"", 2, false),
        ("sampler = \"ddim\"", 1, false),
        ("sampler = \"dpmpp_2m\"", 4, true),
        ("sampler = \"lms\"", 8, true),
    ] {
        let (process, config) = (Preset::Edm.process(), toml::from_str::<SampleConfig>(text).unwrap());
        let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
        let recording = Recording::of(&*sampler, &process, &grid, &Guidance::NONE).unwrap().unwrap();
        assert_eq!(recording.slots, slots, "{text}");
        assert_eq!(recording.evaluations.iter().any(|e| e.keep.is_some()), keeps, "{text}");
    }
}

/// What keeps too much is left to the host, and so is what is not linear.
#[test]
fn what_is_not_recorded_is_said() {
    let process = Preset::Dsm.process();
    let grid = SampleConfig { sampler: SamplerKind::Langevin, steps: 3, ..Default::default() }.grid(&process).unwrap();
    let of = |inner: usize| Recording::of(&Langevin { inner, rate: 0.1 }, &process, &grid, &Guidance::NONE).unwrap();
    assert!(of(MOST_SLOTS - 1).is_some() && of(MOST_SLOTS).is_none());
    assert_eq!(of(3).unwrap().draws, 9);
}

/// Each step's state is there when the evaluation runs that follows it, guidance where it acts.
#[test]
fn evaluations_know_their_step_and_scale() {
    let process = Preset::Sit.process();
    let config: SampleConfig = toml::from_str("steps = 4\ncfg = 3.0\nguidance_interval = [0.4, 0.8]").unwrap();
    let grid = config.grid(&process).unwrap();
    let r = Recording::of(&Heun, &process, &grid, &config.guidance()).unwrap().unwrap();
    let of = |f: &dyn Fn(&Evaluation) -> f64| r.evaluations.iter().map(f).collect::<Vec<f64>>();
    assert_eq!(of(&|e| e.step as f64), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    assert_eq!(of(&|e| e.time), [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]);
    assert_eq!(of(&|e| e.scale), [1.0, 3.0, 3.0, 3.0, 3.0, 1.0, 1.0]);
    assert_eq!(r.made_at, [0, 2, 4, 6, 7]);
    assert_eq!(r.levels.len(), 5);
}

/// A device binds its program once for each pair of slots that are written: they come round again soon.
#[test]
fn slots_that_are_written_come_round() {
    for (name, _, process, config) in cases() {
        let config = SampleConfig { steps: 200, ..config };
        let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
        let Some(recording) = Recording::of(&*sampler, &process, &grid, &Guidance::NONE).unwrap() else { continue };
        let mut pairs: Vec<_> = recording.evaluations.iter().map(|e| (e.output, e.keep)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        assert!(pairs.len() <= 16, "{name}: {} of {} evaluations", pairs.len(), recording.evaluations.len());
    }
}
