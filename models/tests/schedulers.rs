//! Samplers against the schedulers of diffusers: the same levels, start, noise and exact network give the same
//! states. `scripts/samplers.py` writes the fixture.

// `!(x < y)` is meant where it stands: it refuses NaN too.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Level, Preset, Process, ProcessConfig};
use dnx_models::sample::{Denoiser, Estimate, Grid, GridKind, Noise, SampleConfig, Spacing, sample_from};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    diffusers: String,
    means: Vec<Vec<f64>>,
    stds: Vec<f64>,
    weights: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    path: String,
    config: String,
    levels: Vec<[f64; 3]>,
    start: Vec<f64>,
    /// States by the index of their level.
    states: Vec<(usize, Vec<f64>)>,
    noise: Vec<Vec<f64>>,
}

impl Fixture {
    fn read() -> Fixture {
        serde_json::from_str(include_str!("fixtures/samplers.json")).unwrap()
    }

    fn law(&self) -> Gmm {
        let component =
            |i: usize| Component { weight: self.weights[i], mean: self.means[i].clone(), std: self.stds[i] };
        Gmm { components: (0..self.stds.len()).map(component).collect() }
    }
}

impl Case {
    fn process(&self) -> Process {
        match &self.path[..] {
            "chain" => Preset::Ddpm.process(),
            "linear" => Preset::Sit.process(),
            "ve" => Preset::Edm.process(),
            other => panic!("no path {other}"),
        }
    }

    fn grid(&self) -> Grid {
        let rates = match &self.path[..] {
            "linear" => Some((-1.0, 1.0)),
            "ve" => Some((0.0, 1.0)),
            _ => None,
        };
        let level = |&[time, alpha, sigma]: &[f64; 3]| Level { time, alpha, sigma, rates };
        Grid { levels: self.levels.iter().map(level).collect() }
    }
}

/// The recorded noise, in order.
struct Recorded<'a>(&'a str, std::slice::Iter<'a, Vec<f64>>);

impl Noise for Recorded<'_> {
    fn draw(&mut self) -> Vec<f64> {
        self.1.next().unwrap_or_else(|| panic!("{}: more noise is asked for than was recorded", self.0)).clone()
    }
}

#[test]
fn samplers_agree_with_diffusers() {
    let fixture = Fixture::read();
    let law = fixture.law();
    assert!(fixture.cases.len() > 50, "{} cases of diffusers {}", fixture.cases.len(), fixture.diffusers);
    let mut wrong = vec![];
    for case in &fixture.cases {
        let (process, grid) = (case.process(), case.grid());
        let config: SampleConfig = toml::from_str(&case.config).unwrap();
        let sampler = config.sampler(&process).unwrap();
        let mut d = Denoiser::known(&process, &[1, 2], |x, level| {
            let (x0, noise) = law.estimate(x, level);
            Ok(Estimate { x0, noise })
        });
        let mut seen: Vec<Vec<f64>> = vec![];
        let mut noise = Recorded(&case.name, case.noise.iter());
        sample_from(case.start.clone(), &*sampler, &mut d, &grid, &mut noise, &mut |_, _, x| seen.push(x.to_vec()))
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let mut worst: (f64, usize) = (0.0, 0);
        for (index, want) in &case.states {
            for (got, want) in seen[*index].iter().zip(want) {
                let error = (got - want).abs() / want.abs().max(1.0);
                if !(error <= worst.0) {
                    worst = (error, *index);
                }
            }
        }
        if !(worst.0 <= 1e-5) {
            wrong.push(format!("{}: off by {:.1e} at level {} of {}", case.name, worst.0, worst.1, grid.steps()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Our own grids fall on diffusers' sigmas, where both mean the same by a name.
#[test]
fn grids_agree_with_diffusers() {
    let fixture = Fixture::read();
    let find = |name: &str| fixture.cases.iter().find(|c| c.name == name).unwrap().grid();
    let close = |ours: &Grid, theirs: &Grid, tolerance: f64, name: &str| {
        assert_eq!(ours.levels.len(), theirs.levels.len(), "{name}");
        for (a, b) in ours.levels.iter().zip(&theirs.levels) {
            let (a, b) = (a.sigma / a.alpha, b.sigma / b.alpha);
            assert!((a - b).abs() <= tolerance * b.max(1e-3), "{name}: {a} {b}");
        }
    };
    let edm = toml::from_str::<ProcessConfig>("preset = \"edm\"").unwrap().resolve().unwrap();
    for (name, kind) in [
        ("euler karras", GridKind::Karras),
        ("euler exponential", GridKind::Exponential),
        ("euler beta", GridKind::Beta),
    ] {
        // Their sigmas lie between the steps of the chain, ours on path ve with the chain's own range.
        let theirs = find(name);
        let (first, last) = (theirs.levels[0], theirs.levels[9]);
        let range = [last.sigma / last.alpha, first.sigma / first.alpha];
        let process = Process { time_range: range, ..edm.clone() };
        close(&Grid::spaced(&process, &Spacing::new(kind), 10).unwrap(), &theirs, 2e-6, name);
    }
    let chain = Preset::Ddpm.process();
    close(&Grid::new(&chain, GridKind::Leading, 10, 1.0).unwrap(), &find("ddim"), 1e-4, "leading");
    let sit = Preset::Sit.process();
    let flow = find("flow euler");
    let last = flow.levels[7].time;
    // Theirs ends at the shifted time 1/1000, ours at 1/N.
    let uniform = Grid::new(&sit, GridKind::Uniform, 8, 3.0).unwrap();
    assert!(last < uniform.levels[7].time && flow.levels[0].time == 1.0);
}
