//! Likelihood by the probability-flow ODE against densities that are known in closed form.

use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Process, ProcessConfig};
use dnx_models::sample::{
    Accuracy, Denoiser, Flow, Guidance, NetworkCall, Trace, bits_per_dim, dequantized, log_likelihood,
};

fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

fn mixture() -> Gmm {
    let c = |weight, x, y, std| Component { weight, mean: vec![x, y], std };
    Gmm { components: vec![c(0.5, 0.8, 0.2, 0.3), c(0.3, -0.6, 0.5, 0.25), c(0.2, -0.2, -0.9, 0.4)] }
}

const POINTS: [f64; 8] = [0.7, 0.3, -0.5, 0.4, 0.1, -0.2, -1.1, 1.0];

fn of(p: &Process, flow: &Flow, seeds: &[u64; 4]) -> Vec<f64> {
    let gmm = mixture();
    log_likelihood(&mut Denoiser::of(p, &[4, 2], gmm.model(p)), &POINTS, seeds, flow).unwrap()
}

/// The law of the data at the least time, which is what the flow starts from.
fn exact(p: &Process, start: f64) -> Vec<f64> {
    let level = p.level(dnx_models::process::Time::new(p.path.domain(), start).unwrap()).unwrap();
    let of = |x: &[f64]| {
        let x: Vec<f64> = x.iter().map(|x| level.alpha * x).collect();
        mixture().log_density(&x, &level) + 2.0 * level.alpha.ln()
    };
    POINTS.chunks(2).map(of).collect()
}

#[test]
fn likelihood_is_the_density() {
    for (text, start) in [
        ("", 1e-4),
        ("preset = \"edm\"", 0.002),
        ("path = \"vp\"\nprediction = \"epsilon\"", 1e-3),
        ("path = \"cosine\"\nprediction = \"v\"", 1e-4),
    ] {
        let p = process(text);
        let clean = mixture();
        let seeds = [0; 4];
        for accuracy in [Accuracy::Adaptive { tolerance: 1e-6 }, Accuracy::Fixed { steps: 150 }] {
            let flow = Flow { trace: Trace::Exact, accuracy, start: None };
            for ((got, want), x) in of(&p, &flow, &seeds).iter().zip(exact(&p, start)).zip(POINTS.chunks(2)) {
                assert!((got - want).abs() < 4e-3, "{text:?} {accuracy:?}: {got} for {want}");
                // What little noise there is at the start does not show.
                let data = clean.log_density(x, &p.path.clean());
                assert!((got - data).abs() < 2e-2, "{text:?}: {got} for {data}");
            }
        }
    }
}

/// Probes of all signs average to the trace itself, and random ones come near within their error.
#[test]
fn random_directions_are_unbiased() {
    let p = process("preset = \"edm\"");
    let accuracy = Accuracy::Fixed { steps: 60 };
    let exact = of(&p, &Flow { trace: Trace::Exact, accuracy, start: None }, &[0; 4]);
    const RUNS: u64 = 200;
    let flow = Flow { trace: Trace::Hutchinson { probes: 1 }, accuracy, start: None };
    let gmm = mixture();
    // All runs of a point as one batch.
    for (x, want) in POINTS.chunks(2).zip(exact) {
        let mut d = Denoiser::of(&p, &[RUNS as usize, 2], gmm.model(&p));
        let seeds: Vec<u64> = (0..RUNS).collect();
        let v = log_likelihood(&mut d, &x.repeat(RUNS as usize), &seeds, &flow).unwrap();
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        let error = (v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * n)).sqrt();
        assert!((mean - want).abs() < 4.0 * error + 1e-6, "{mean} for {want}, error {error}");
        assert!(error > 0.0, "one direction of two dims is not the trace");
    }
    let many = of(&p, &Flow { trace: Trace::Hutchinson { probes: 40 }, ..flow }, &[1, 2, 3, 4]);
    let one = of(&p, &flow, &[1, 2, 3, 4]);
    let exact = of(&p, &Flow { trace: Trace::Exact, ..flow }, &[0; 4]);
    let error = |v: &[f64]| v.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    assert!(error(&many) < error(&one), "{} {}", error(&many), error(&one));
    assert_eq!(of(&p, &flow, &[1, 9, 9, 9])[0], one[0], "a sample's directions are of its own seed");
}

#[test]
fn flows_that_make_no_sense_are_refused() {
    let p = process("");
    let gmm = mixture();
    let refused =
        |mut d: Denoiser<'_>, flow: Flow, x: &[f64]| log_likelihood(&mut d, x, &[0; 4], &flow).unwrap_err().to_string();
    let d = || Denoiser::of(&p, &[4, 2], gmm.model(&p));
    assert!(
        refused(d(), Flow { trace: Trace::Hutchinson { probes: 0 }, ..Flow::default() }, &POINTS).contains("0 probes")
    );
    assert!(refused(d(), Flow { start: Some(0.0), ..Flow::default() }, &POINTS).contains("time 0"));
    assert!(refused(d(), Flow::default(), &POINTS[..6]).contains("6 numbers"));
    assert!(refused(d().with_guidance(Guidance::scale(2.0)), Flow::default(), &POINTS).contains("guidance"));
    let accuracy = Accuracy::Adaptive { tolerance: 0.0 };
    assert!(refused(d(), Flow { accuracy, ..Flow::default() }, &POINTS).contains("tolerance"));
    let chain = process("preset = \"ddpm\"");
    assert!(refused(Denoiser::of(&chain, &[4, 2], gmm.model(&chain)), Flow::default(), &POINTS).contains("chain"));
    let plain = Denoiser::new(&p, &[4, 2], |call: &NetworkCall<'_>| gmm.network(&p, call));
    assert!(refused(plain, Flow::default(), &POINTS).contains("no derivative"));
}

/// Of uniform 8-bit noise, of density 1/2 per element, every element costs eight bits.
#[test]
fn bits_of_uniform_data_are_eight() {
    // Levels and the noise between them fill 256 / 127.5 of the line.
    let density = 127.5f64 / 256.0;
    assert!((bits_per_dim(3.0 * density.ln(), 3) - 8.0).abs() < 1e-12);
    let levels: Vec<f32> = (0..=255).map(|b| b as f32 / 127.5 - 1.0).collect();
    let noisy = dequantized(&levels, &[5]);
    for (a, b) in levels.iter().zip(&noisy) {
        assert!((*a as f64 - b).abs() <= 0.5 / 127.5 && *a as f64 != *b);
    }
    assert_eq!(dequantized(&[&levels[..], &levels].concat(), &[7, 5])[256..], noisy[..]);
}
