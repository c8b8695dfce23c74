//! Processes and objectives against closed forms.

use dnx_ir::interp::{Precision, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, DType, Graph, Tensor, Type};
use dnx_models::gmm::{Component, Gmm};
use dnx_models::network::{DitConfig, Inputs, MlpConfig};
use dnx_models::process::{
    Draws, Level, Loss, Model, Objective, Prediction, Preset, Process, ProcessConfig, Scene, Time, TimeDomain, TimeLaw,
    Times, Weighting, consistency_levels, epsilon_of, score_of, v_of, velocity_of, x0_of,
};
use dnx_models::step::key_array;
use dnx_models::{DataSpec, Network, Params, init};

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn mlp(process: &Process, classes: usize) -> Network {
    let config = MlpConfig { hidden: 12, layers: 2, time_width: 8, classes: Some(classes), ..MlpConfig::default() };
    let mut network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes }).unwrap();
    network.suit(process);
    network
}

fn normal_array(dims: &[usize], seed: u64) -> Array {
    init::Init::Normal { std: 1.0 }.draw(dims, key(seed))
}

fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1e-3), "{what}: {a}, not {b}");
}

const PATHS: [&str; 8] = [
    "path = \"linear\"",
    "path = \"cosine\"",
    "path = \"general_cosine\"\nkappa = 3.0\nangles = [0.01, 1.5]",
    "path = \"vp\"",
    "path = \"sub_vp\"",
    "path = \"trig\"\nsigma_data = 0.7",
    "path = \"ve\"",
    "path = \"discrete\"\nprediction = \"v\"",
];

/// The level of a share of the sampled range.
fn level(p: &Process, share: f64) -> Level<f64> {
    let [low, high] = p.time_range;
    let t = match p.path.domain() {
        TimeDomain::Sigma => low * (high / low).powf(share),
        TimeDomain::Step { .. } => (low + share * (high - low)).floor(),
        TimeDomain::Unit | TimeDomain::Angle => low + share * (high - low),
    };
    p.level(Time::new(p.path.domain(), t).unwrap()).unwrap()
}

#[test]
fn conversions_round_trip_on_every_path_and_agree_with_exact_scores() {
    let c = |weight, x, y, std| Component { weight, mean: vec![x, y], std };
    let gmm = Gmm { components: vec![c(0.5, 0.8, 0.2, 0.3), c(0.5, -0.6, 0.5, 0.25)] };
    use Prediction::{Epsilon, Score, V, Velocity, X0};
    for text in PATHS {
        let p = process(text);
        for share in [0.2, 0.5, 0.8] {
            let l = level(&p, share);
            let x = [0.4 * l.alpha + 0.3 * l.sigma, -0.2];
            let (x0, noise) = gmm.estimate(&x, &l);
            // The score of the mixture's density at this level, by differences of its logarithm.
            let log_density = |x: &[f64]| -> f64 {
                let parts = gmm.components.iter().map(|c| {
                    let var = (l.alpha * c.std).powi(2) + l.sigma * l.sigma;
                    let d2: f64 = x.iter().zip(&c.mean).map(|(x, m)| (x - l.alpha * m).powi(2)).sum();
                    c.weight * (-0.5 * d2 / var).exp() / var
                });
                parts.sum::<f64>().ln()
            };
            let h = 1e-5 * (1.0 + l.sigma);
            let score = (log_density(&[x[0] + h, x[1]]) - log_density(&[x[0] - h, x[1]])) / (2.0 * h);
            let all: &[Prediction] =
                if l.rates.is_some() { &[X0, Epsilon, V, Velocity, Score] } else { &[X0, Epsilon, V, Score] };
            for &from in all {
                let f = from.join(x0[0], noise[0], &l);
                let what = format!("{text} at {share} from {from:?}");
                close(score_of(from, x[0], f, &l), score, 1e-5, &what);
                close(x0_of(from, x[0], f, &l), x0[0], 1e-6, &what);
                close(epsilon_of(from, x[0], f, &l), noise[0], 1e-6, &what);
                close(v_of(from, x[0], f, &l), l.alpha * noise[0] - l.sigma * x0[0], 1e-6, &what);
                if let Some((a, s)) = l.rates {
                    close(velocity_of(from, x[0], f, &l), a * x0[0] + s * noise[0], 1e-6, &what);
                }
                for &to in all {
                    let there = from.convert(to, x[0], f, &l);
                    close(to.convert(from, x[0], there, &l), f, 1e-6, &format!("{what} to {to:?} and back"));
                }
            }
        }
    }
}

/// The seed's EDM score is `-(x - tangent) / sigma^2`.
#[test]
fn defect_2_the_edm_score_is_that_of_the_denoiser() {
    let p = Preset::Edm.process();
    let l = p.level(Time::sigma(0.7).unwrap()).unwrap();
    let (x, d) = (1.3, 0.4);
    close(score_of(Prediction::X0, x, d, &l), (d - x) / 0.49, 1e-12, "score");
    // The tangent of the path is (x - D) / sigma.
    close(velocity_of(Prediction::X0, x, d, &l), (x - d) / 0.7, 1e-12, "tangent");
}

/// The seed's MeanFlow score asks for the mean velocity to r = 0 and divides by t^2.
#[test]
fn defect_3_the_mean_flow_score_is_that_of_the_instant_velocity() {
    let p = Preset::MeanFlow.process();
    let l = p.level(Time::unit(0.6).unwrap()).unwrap();
    let (x, v) = (0.9, -0.3);
    close(score_of(Prediction::Velocity, x, v, &l), -(x + 0.4 * v) / 0.6, 1e-12, "score");
    close(p.second_input(&l, &l), 0.0, 0.0, "the second time of r = t");
    let clean = p.path.clean();
    close(p.second_input(&l, &clean), 0.6, 1e-12, "the second time of r = 0");
}

/// `-D* / sigma` and so on: what SiT calls velocity and likelihood weights, on the noise.
#[test]
fn weightings_of_the_velocity_are_their_closed_forms() {
    for text in &PATHS[..6] {
        let p = process(text);
        let l = level(&p, 0.4);
        let c = Prediction::Epsilon.coefficients(p.preconditioning, 0.5, 0.002, &l);
        let (a, s) = l.rates.unwrap();
        // The negative of SiT's diffusion, (alpha' / alpha) sigma^2 - sigma sigma'.
        let d = l.sigma * s - a / l.alpha * l.sigma * l.sigma;
        close(Weighting::Velocity.factor(&l, &c, 0.5), (d / l.sigma).powi(2), 1e-9, text);
        close(Weighting::Likelihood.factor(&l, &c, 0.5), 2.0 * d / l.sigma.powi(2), 1e-9, text);
        let snr = (l.alpha / l.sigma).powi(2);
        close(Weighting::P2 { k: 1.0, gamma: 1.0 }.factor(&l, &c, 0.5), 1.0 / (1.0 + snr), 1e-9, text);
        close(Weighting::Data.factor(&l, &c, 0.5), 1.0 / snr, 1e-9, text);
    }
    let p = Preset::Sit.process();
    let l = p.level(Time::unit(0.3).unwrap()).unwrap();
    let c = p.coefficients(&l);
    close(Weighting::SigmaSqrt.factor(&l, &c, 0.5), 1.0 / 0.09, 1e-9, "sigma_sqrt");
    close(Weighting::Cosmap.factor(&l, &c, 0.5), 2.0 / (std::f64::consts::PI * (1.0 - 0.6 + 0.18)), 1e-9, "cosmap");
    close(Weighting::Data.factor(&l, &c, 0.5), 0.09, 1e-9, "x0 = x - sigma v");
}

/// Samples of a law on the host.
fn drawn(law: &TimeLaw, path: &str, shift: f64) -> Vec<f64> {
    let p = process(path);
    let g = Graph::new("times");
    let k = g.param("key", Type::new(DType::U32, [2]));
    let t = law.draw(&g, k, 1 << 14, &p.path, shift).values;
    let f = g.finish(&[t]).unwrap();
    eval(&f, &[key_array(key(11))], Precision::F32).unwrap()[0].to_f64_vec()
}

#[test]
fn time_laws_have_their_quantiles() {
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let cases: [(TimeLaw, &str, f64, [f64; 3]); 6] = [
        // Quartiles of a normal number are at 0.67449.
        (TimeLaw::logit_normal(-0.4, 1.0), "", 1.0, [-1.07449, -0.4, 0.27449].map(sigmoid)),
        (
            TimeLaw::LogTangent { mean: -1.0, std: 1.4 },
            "path = \"trig\"",
            1.0,
            [-0.67449, 0.0, 0.67449].map(|z: f64| ((-1.0 + 1.4 * z).exp() / 0.5).atan()),
        ),
        (
            TimeLaw::Mode { scale: 1.29 },
            "",
            1.0,
            [0.75, 0.5, 0.25]
                .map(|u: f64| 1.0 - u - 1.29 * ((u * std::f64::consts::FRAC_PI_2).cos().powi(2) - 1.0 + u)),
        ),
        (TimeLaw::Uniform { min: 0.2, max: 0.6 }, "", 1.0, [0.3, 0.4, 0.5]),
        (TimeLaw::Uniform { min: 0.0, max: 1.0 }, "", 3.0, [0.5, 0.75, 0.9]),
        // Truncated at its median: the quartiles are the quantiles 1/8, 1/4, 3/8 of the whole.
        (
            TimeLaw::LogitNormal { mean: 0.0, std: 1.0, min: 0.0, max: 0.5 },
            "",
            1.0,
            [-1.15035, -0.67449, -0.31864].map(sigmoid),
        ),
    ];
    for (law, path, shift, want) in cases {
        let mut t = drawn(&law, path, shift);
        t.sort_by(f64::total_cmp);
        for (i, want) in want.into_iter().enumerate() {
            let got = t[t.len() * (i + 1) / 4];
            assert!((got - want).abs() < 0.015, "{law:?}: quartile {} is {got}, not {want}", i + 1);
        }
    }
    let table = drawn(&TimeLaw::Table { times: vec![0.1, 0.7] }, "", 1.0);
    let first = table.iter().filter(|t| (**t - 0.1).abs() < 1e-6).count();
    assert!(table.iter().all(|t| (t - 0.1).abs() < 1e-6 || (t - 0.7).abs() < 1e-6));
    assert!((first as f64 / table.len() as f64 - 0.5).abs() < 0.02);
    // The seed's RAE law: never above 0.999 before its shift.
    let rae = drawn(&TimeLaw::LogitNormal { mean: 0.0, std: 4.0, min: 0.0, max: 0.999 }, "", 1.0);
    assert!(rae.iter().all(|&t| (0.0..=0.9990001).contains(&t)) && rae.iter().any(|&t| t > 0.99));
}

#[test]
fn the_shift_by_dimension_is_golden() {
    let p = process("time_shift = \"dimension\"");
    close(p.time_shift.factor(196_608), 48f64.sqrt(), 1e-12, "RAE's");
    close(p.time_shift.factor(32 * 32 * 4), 1.0, 1e-12, "SiT's");
}

/// Noise levels differ within a batch: one per sample, not one per batch.
#[test]
fn defect_of_002_every_sample_has_its_own_level() {
    for preset in [Preset::Dsm, Preset::Ssm, Preset::Sit] {
        let p = preset.process();
        let g = Graph::new("draw");
        let (seed, counter) = (g.constant(key_array(key(1))), g.scalar(DType::U32, 0.0));
        let x0 = g.full(DType::F32, &[64, 2], 0.0);
        let f = g.finish(&[p.draw(&g, seed, counter, x0).times.values]).unwrap();
        let mut t = eval(&f, &[], Precision::F32).unwrap()[0].to_f64_vec();
        t.sort_by(f64::total_cmp);
        t.dedup();
        assert!(t.len() >= 8, "{preset:?}: {t:?}");
    }
}

#[test]
fn consistency_models_are_the_identity_at_the_least_level() {
    for preset in [Preset::Ct, Preset::Cd, Preset::Ict] {
        let p = preset.process();
        let l = p.level(Time::sigma(0.002).unwrap()).unwrap();
        assert_eq!(p.coefficients(&l).solve(&l)[..2], [1.0, 0.0], "{preset:?}");
        let l = p.level(Time::sigma(80.0).unwrap()).unwrap();
        let [a, b, c, d] = p.coefficients(&l).solve(&l);
        close(a, 0.25 / ((80.0 - 0.002f64).powi(2) + 0.25), 1e-12, "c_skip");
        close(b, 79.998 * 0.5 / (6400.25f64).sqrt(), 1e-12, "c_out");
        // What is no data is noise.
        close(a + l.sigma * c, 1.0, 1e-12, "x = x0 + sigma n");
        close(b + l.sigma * d, 0.0, 1e-12, "x = x0 + sigma n");
    }
    let trig = Preset::Sct.process();
    let l = trig.level(Time::new(TimeDomain::Angle, 0.0).unwrap()).unwrap();
    assert_eq!(trig.coefficients(&l).solve(&l)[0], 1.0);
    assert_eq!(trig.coefficients(&l).solve(&l)[1], 0.0);
}

#[test]
fn schedules_of_consistency_training_are_golden() {
    let of = |preset: Preset, steps: u64| {
        let mut p = preset.process();
        p.objective.set_steps(steps);
        let Objective::Consistency(c) = p.objective else { panic!("a consistency preset") };
        c
    };
    let ct = of(Preset::Ct, 800_000);
    let n = |k: f64| consistency_levels(&ct, k);
    assert_eq!((n(0.0), n(800_000.0)), (2.0, 201.0));
    // ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 half way.
    assert_eq!(n(400_000.0), ((0.5f64 * (201.0f64.powi(2) - 4.0) + 4.0).sqrt() - 1.0).ceil() + 1.0);
    let ict = of(Preset::Ict, 80_000);
    let n: Vec<f64> = (0..9).map(|i| consistency_levels(&ict, 10_000.0 * i as f64)).collect();
    assert_eq!(n, [11.0, 21.0, 41.0, 81.0, 161.0, 321.0, 641.0, 1281.0, 1281.0]);
    assert_eq!(consistency_levels(&ict, 9_999.0), 11.0);
    assert_eq!(consistency_levels(&of(Preset::Cd, 5), 3.0), 40.0);
    // mu(k) = exp(s0 ln mu0 / N(k)), in the graph, as N is.
    let g = Graph::new("decay");
    let step = g.param("step", Type::f32([]));
    let f = g.finish(&[ct.decay(step), consistency_levels(&ct, step), consistency_levels(&ict, step)]).unwrap();
    for k in [0.0f32, 1234.0, 400_000.0, 800_000.0] {
        let out = eval(&f, &[Array::f32([], &[k])], Precision::F32).unwrap();
        let want = consistency_levels(&ct, k as f64);
        assert_eq!(out[1].get(0).to_f64(), want, "levels at {k}");
        assert_eq!(out[2].get(0).to_f64(), consistency_levels(&ict, k as f64), "levels at {k}");
        close(out[0].get(0).to_f64(), (2.0 * 0.95f64.ln() / want).exp(), 1e-6, "mu");
    }
    // The steps that the average remembers at the end, whatever K is: what makes short runs of it fail.
    let out = eval(&f, &[Array::f32([], &[800_000.0])], Precision::F32).unwrap();
    close(1.0 / (1.0 - out[0].get(0).to_f64()), 1960.0, 2e-3, "the target's memory");
}

/// The losses of a scene on fixed data, as a function to be evaluated.
struct Stage {
    func: dnx_ir::Func,
    params: Vec<Array>,
}

/// Builds `results` from a scene of a batch of samples; parameters are random.
fn stage(
    p: &Process,
    network: &Network,
    batch: usize,
    labelled: bool,
    results: impl for<'a, 'g> FnOnce(&Scene<'a, 'g>) -> Vec<Tensor<'g>>,
) -> Stage {
    let g = Graph::new("stage");
    let specs = network.specs().unwrap();
    let declared = Params::declare(&g, &specs);
    let root = declared.root();
    let x0 = g.constant(normal_array(&[batch, 2], 4));
    let (seed, counter) = (g.constant(key_array(key(1))), g.scalar(DType::U32, 3.0));
    let labels: Vec<i32> = (0..batch).map(|i| i as i32 % 3).collect();
    let out = root.enter("train", |own| {
        let scene = Scene {
            model: Model { process: p, network, scope: &root },
            target: None,
            teacher: None,
            own,
            x0,
            label: labelled.then(|| g.constant(Array::i32([batch], &labels))),
            draws: p.draw(&g, seed, counter, x0),
            seed: (seed, counter),
            step: g.scalar(DType::F32, 0.0),
            carry: vec![],
        };
        results(&scene)
    });
    let draw = |(i, s): (usize, &dnx_models::ParamSpec)| {
        let a = init::Init::Normal { std: 0.4 }.draw(&s.dims, key(50 + i as u64));
        Array::from_f64(a.ty().with_dtype(DType::F64), &a.to_f64_vec())
    };
    Stage { func: g.finish(&out).unwrap(), params: specs.iter().enumerate().map(draw).collect() }
}

impl Stage {
    fn run(&self) -> Vec<Vec<f64>> {
        eval(&self.func, &self.params, Precision::F64).unwrap().iter().map(Array::to_f64_vec).collect()
    }
}

fn mean_flow(more: &str) -> Process {
    process(&format!("preset = \"mean_flow\"\ntime_scale = 2.0\n{more}\n"))
}

#[test]
fn mean_flow_without_jumps_is_flow_matching() {
    let p = mean_flow("[objective]\nkind = \"mean_flow\"\ninstant = 1.0\npower = 0.0");
    let sit = process("time_scale = 2.0");
    let out = stage(&p, &mlp(&p, 0), 8, false, |scene| {
        let (own, _) = scene.loss();
        let times = Times { domain: TimeDomain::Unit, values: own.position };
        let draws = Draws { times, ..scene.draws };
        let plain: Loss = sit.loss(scene.model.network, scene.model.scope, scene.x0, None, &draws);
        vec![own.per_sample, plain.per_sample]
    })
    .run();
    for (own, plain) in out[0].iter().zip(&out[1]) {
        // A sum over two dims beside a mean.
        close(*own, 2.0 * plain, 1e-9, "loss");
    }
}

/// The regression target against central differences of the network along the path.
#[test]
fn the_jvp_in_the_mean_flow_loss_is_a_finite_difference() {
    let p = mean_flow(
        "time_law = { kind = \"table\", times = [0.25, 0.75] }\n[objective]\nkind = \"mean_flow\"\ninstant = 0.0\npower = 0.0",
    );
    // Times and step are exact in f32, as the graph's constants are.
    let h = 2f64.powi(-14);
    let out = stage(&p, &mlp(&p, 0), 16, false, |scene| {
        let (loss, _) = scene.loss();
        let t = loss.position;
        let mut all = vec![loss.per_sample, t];
        for (time, end) in [(0.75, 0.25), (0.75, 0.75), (0.25, 0.25)] {
            let u = |shift: f64| {
                let times = Times { domain: TimeDomain::Unit, values: t.full_like(time + shift) };
                let level = scene.model.process.path.levels(times);
                let mut call = scene.model.inputs(scene.state(&level), &level, None);
                call.second = Some(t.full_like(2.0 * (time + shift - end)));
                scene.model.network.forward(scene.model.scope, call)
            };
            let slope = (u(h) - u(-h)) / (2.0 * h);
            let target = (scene.draws.noise - scene.x0) - slope * (time - end);
            all.push((u(0.0) - target).square().sum(&[1]));
        }
        all
    })
    .run();
    let mut jumps = 0;
    for i in 0..16 {
        let (loss, late) = (out[0][i], out[1][i] > 0.5);
        let off = |k: usize| (out[k][i] - loss).abs() / loss.max(1e-3);
        if late {
            assert!(off(2) < 1e-6 || off(3) < 1e-6, "{loss}: neither {} nor {}", out[2][i], out[3][i]);
            jumps += (off(2) < 1e-6) as usize;
        } else {
            assert!(off(4) < 1e-6, "{loss}, not {}", out[4][i]);
        }
    }
    assert!(jumps >= 3, "{jumps} samples jump");
}

/// `v - (t - r) du/dt` of the exact mean velocity of a Gaussian is that mean velocity.
#[test]
fn the_mean_flow_target_is_the_mean_velocity_of_a_gaussian() {
    let (m, s) = (0.7, 0.4);
    let g = Graph::new("u");
    let [x, t, r] = ["x", "t", "r"].map(|n| g.param(n, Type::f32([5])));
    let [at_t, at_r] = [t, r].map(|t| ((1.0 - t) * (1.0 - t) * (s * s) + t * t).sqrt());
    let x_r = (1.0 - r) * m + at_r / at_t * (x - (1.0 - t) * m);
    let u = g.finish(&[(x - x_r) / (t - r)]).unwrap();
    let jvp = dnx_autodiff::jvp(&u, &[0, 1, 2]).unwrap();
    let (xs, ts, rs) = ([0.3, -1.0, 2.0, 0.0, 0.5], [0.9, 0.5, 1.0, 0.7, 0.2], [0.1, 0.4, 0.0, 0.2, 0.15]);
    // The marginal velocity, E[n - x0 | x].
    let v: Vec<f64> = (0..5)
        .map(|i| {
            let (x, t): (f64, f64) = (xs[i], ts[i]);
            let var = (1.0 - t).powi(2) * s * s + t * t;
            let pull = (x - (1.0 - t) * m) / var;
            t * pull - (m + (1.0 - t) * s * s * pull)
        })
        .collect();
    let of = |v: &[f64]| Array::from_f64(Type::new(DType::F64, [5]), v);
    let args = [of(&xs), of(&ts), of(&rs), of(&v), of(&[1.0; 5]), of(&[0.0; 5])];
    let out = eval(&jvp, &args, Precision::F64).unwrap();
    let (u, du) = (out[0].to_f64_vec(), out[1].to_f64_vec());
    for i in 0..5 {
        // The graph's constants are f32.
        close(v[i] - (ts[i] - rs[i]) * du[i], u[i], 1e-6, "target");
    }
}

/// Guided velocities are mixed of the network's own, with the network's own null label; `kappa = 0` is the same
/// network in the jvp as without guidance.
#[test]
fn defects_4_and_8_guided_velocities_are_the_formula() {
    let text = "label_dropout = 0.0\n[objective]\nkind = \"mean_flow\"\ninstant = 1.0\npower = 0.0";
    for (omega, kappa) in [(1.0, 0.0), (2.0, 0.0), (0.2, 0.92)] {
        let p = mean_flow(&format!("{text}\nomega = {omega:?}\nkappa = {kappa:?}\ninterval = [0.0, 0.5]"));
        let out = stage(&p, &mlp(&p, 3), 16, true, |scene| {
            let (own, _) = scene.loss();
            let level = p.path.levels(Times { domain: TimeDomain::Unit, values: own.position });
            let x = scene.state(&level);
            let v = scene.draws.noise - scene.x0;
            let label = scene.label.unwrap();
            let u = |label| scene.model.output(x, &level, Some(label));
            let (c, null) = (u(label), u(label.full_like(3.0)));
            let guided = v * omega + null * (1.0 - omega - kappa) + c * kappa;
            vec![own.per_sample, own.position, (c - guided).square().sum(&[1]), (c - v).square().sum(&[1])]
        })
        .run();
        for i in 0..16 {
            let want = if out[1][i] <= 0.5 { out[2][i] } else { out[3][i] };
            close(out[0][i], want, 1e-6, &format!("omega {omega} kappa {kappa} sample {i} at {}", out[1][i]));
        }
        assert!(out[1].iter().any(|&t| t > 0.5) && out[1].iter().any(|&t| t < 0.5));
    }
}

#[test]
fn dropped_labels_are_the_first_of_the_batch_and_unguided() {
    let p =
        mean_flow("label_dropout = 1.0\n[objective]\nkind = \"mean_flow\"\nomega = 3.0\ninstant = 1.0\npower = 0.0");
    let out = stage(&p, &mlp(&p, 3), 6, true, |scene| {
        let (own, _) = scene.loss();
        let level = p.path.levels(Times { domain: TimeDomain::Unit, values: own.position });
        let x = scene.state(&level);
        let null = scene.label.unwrap().full_like(3.0);
        let u = scene.model.output(x, &level, Some(null));
        vec![own.per_sample, (u - (scene.draws.noise - scene.x0)).square().sum(&[1])]
    })
    .run();
    for (own, want) in out[0].iter().zip(&out[1]) {
        close(*own, *want, 1e-9, "loss");
    }
}

/// A network's jvp against central differences, through attention and blocks that are recomputed.
#[test]
fn jvps_of_networks_are_finite_differences() {
    let p = Preset::MeanFlow.process();
    for remat in [dnx_models::network::Remat::None, dnx_models::network::Remat::Block] {
        let config = DitConfig {
            dim: Some(8),
            depth: Some(2),
            heads: Some(2),
            mlp_ratio: 2.0,
            patch: 2,
            remat,
            ..DitConfig::default()
        };
        let mut network = Network::Dit(config).resolve(&DataSpec { dims: vec![4, 4, 1], classes: 0 }).unwrap();
        network.suit(&p);
        let g = Graph::new("jvp");
        let specs = network.specs().unwrap();
        let declared = Params::declare(&g, &specs);
        let root = declared.root();
        let h = g.param("h", Type::f32([]));
        let (x, d) = (g.constant(normal_array(&[2, 4, 4, 1], 1)), g.constant(normal_array(&[2, 4, 4, 1], 2)));
        let wide = |v: f64| g.full(DType::F32, &[2], v);
        let moved = |sign: f64| {
            let hs = h * sign;
            Inputs {
                x: x + d * hs,
                time: wide(0.7) + wide(1.5) * hs,
                sigma: wide(0.7),
                label: None,
                second: Some(wide(0.4) + wide(-0.5) * hs),
            }
        };
        let model = Model { process: &p, network: &network, scope: &root };
        let zero = Inputs { x, time: wide(0.7), sigma: wide(0.7), label: None, second: Some(wide(0.4)) };
        let direction = Inputs { x: d, time: wide(1.5), sigma: wide(0.0), label: None, second: Some(wide(-0.5)) };
        let (y, slope) = model.jvp(&zero, &direction);
        let f = g
            .finish(&[
                y,
                slope,
                network.forward(&root, moved(1.0)),
                network.forward(&root, moved(-1.0)),
                network.forward(&root, zero),
            ])
            .unwrap();
        let mut args: Vec<Array> = specs
            .iter()
            .enumerate()
            .map(|(i, s)| init::Init::Normal { std: 0.3 }.draw(&s.dims, key(50 + i as u64)))
            .collect();
        let step = 1e-5;
        args.push(Array::from_f64(Type::new(DType::F64, []), &[step]));
        let out: Vec<Vec<f64>> = eval(&f, &args, Precision::F64).unwrap().iter().map(Array::to_f64_vec).collect();
        for i in 0..out[0].len() {
            close(out[0][i], out[4][i], 1e-12, "primal");
            close(out[1][i], (out[2][i] - out[3][i]) / (2.0 * step), 1e-5, "tangent");
        }
    }
}

/// Resampled steps of a chain: drawn as remembered losses say, weighted so that the mean is that of uniform steps.
#[test]
fn resampling_draws_by_the_second_moment_and_stays_unbiased() {
    const T: usize = 50;
    let p = process(
        "preset = \"ddpm\"\nsteps = 50\nresampling = { kind = \"loss_second_moment\", history = 2, uniform = 0.1 }",
    );
    let plain = process("preset = \"ddpm\"\nsteps = 50");
    let batch = 4096;
    // Squares whose mean is (t + 1)^2.
    let history: Vec<f32> = (0..T).flat_map(|t| [0.5, 1.5].map(|c| c * ((t + 1) * (t + 1)) as f32)).collect();
    let out = stage(&p, &mlp(&p, 0), batch, false, |scene| {
        let g = scene.x0.graph();
        let carry = vec![g.constant(Array::f32([T, 2], &history)), g.full(DType::F32, &[T], 2.0)];
        let full = Scene {
            model: scene.model,
            target: None,
            teacher: None,
            own: scene.own,
            x0: scene.x0,
            label: None,
            draws: scene.draws,
            seed: scene.seed,
            step: scene.step,
            carry,
        };
        let (own, carry) = full.loss();
        let step = (own.position * (T - 1) as f64 + 0.5).floor();
        let times = Times { domain: TimeDomain::Step { count: T }, values: step };
        let draws = Draws { times, ..scene.draws };
        let same = plain.loss(scene.model.network, scene.model.scope, scene.x0, None, &draws);
        vec![own.per_sample, step, same.per_sample, carry[0], carry[1]]
    })
    .run();
    let total: f64 = (1..=T).map(|t| t as f64).sum();
    let p: Vec<f64> = (0..T).map(|t| 0.9 * (t + 1) as f64 / total + 0.1 / T as f64).collect();
    let (mut count, mut squares) = ([0.0; T], [0.0; T]);
    for i in 0..batch {
        let t = out[1][i] as usize;
        count[t] += 1.0;
        squares[t] += out[2][i] * out[2][i];
        close(out[0][i], out[2][i] / (T as f64 * p[t]), 1e-4, "importance");
    }
    let mut chi2 = 0.0;
    for t in 0..T {
        let expected = p[t] * batch as f64;
        chi2 += (count[t] - expected).powi(2) / expected;
        if count[t] > 0.0 {
            close(out[3][2 * t], history[2 * t + 1] as f64, 1e-6, "the older loss moves up");
            close(out[3][2 * t + 1], squares[t] / count[t], 1e-4, "the newest loss");
        }
        close(out[4][t], 2.0, 1e-9, "the count stays at the history's length");
    }
    // 85.4 is passed by chance once in a thousand seeds.
    assert!(chi2 < 85.4, "chi-square {chi2} with 49 degrees of freedom");
}

/// The bound of iDDPM's learned variances against the divergence of two Gaussians, on the host.
#[test]
fn the_variational_bound_is_a_divergence_of_gaussians() {
    let text = "preset = \"iddpm\"\nsteps = 40\nschedule = \"linear\"\n";
    let p = process(&format!("{text}variance = {{ kind = \"learned_range\", weight = 3.0, bins = 0 }}"));
    let out = stage(&p, &mlp(&p, 0), 64, false, |scene| {
        let (own, _) = scene.loss();
        let level = p.path.levels(scene.draws.times);
        let x = scene.state(&level);
        let o = scene.model.outputs(x, &level, None, None);
        let variance = o.variance.expect("variances are learned");
        vec![own.per_sample, level.time, o.prediction, variance, x, scene.x0, scene.draws.noise]
    })
    .run();
    let betas = dnx_models::process::Betas::Linear.betas(40);
    let mut bars = vec![1.0];
    betas.iter().for_each(|b| bars.push(bars[bars.len() - 1] * (1.0 - b)));
    let small = |t: usize| betas[t] * (1.0 - bars[t]) / (1.0 - bars[t + 1]);
    let mut first = 0;
    for i in 0..64 {
        let t = out[1][i] as usize;
        first += (t == 0) as usize;
        let (bar, before, beta) = (bars[t + 1], bars[t], betas[t]);
        let (mut error, mut bound) = (0.0, 0.0);
        for k in 2 * i..2 * i + 2 {
            let (eps, x, x0) = (out[2][k], out[4][k], out[5][k]);
            error += 0.5 * (eps - out[6][k]).powi(2);
            let mean = |x0: f64| {
                before.sqrt() * beta / (1.0 - bar) * x0 + (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - bar) * x
            };
            let (own, wanted) = (mean((x - (1.0 - bar).sqrt() * eps) / bar.sqrt()), mean(x0));
            let f = 0.5 * (out[3][k] + 1.0);
            let least = small(t.max(1));
            let log = f * beta.ln() + (1.0 - f) * least.ln();
            bound += 0.5
                * match t {
                    0 => 0.5 * (log + std::f64::consts::TAU.ln() + (x0 - own).powi(2) / log.exp()),
                    _ => 0.5 * (log - least.ln() - 1.0 + (least + (wanted - own).powi(2)) / log.exp()),
                };
        }
        close(out[0][i], error + 3.0 * 40.0 * bound / 2f64.ln(), 1e-3, &format!("step {t}"));
    }
    assert!(first > 0, "the first step is among them");
}
