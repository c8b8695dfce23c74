//! Whole training steps in narrow storage beside the same steps in `f32`: how far their gradients are apart.

use dnx::codegen::{Options, compile};
use dnx::ir::Array;
use dnx::models::step::Role;
use dnx::runtime::{Bound, Buffer, Device};
use dnx::train::config::{Config, Source};
use dnx::train::data::Dataset;
use dnx::train::trainer::build_step;
use std::path::Path;
use std::sync::Arc;

/// What one step gave.
#[derive(Clone, Copy, Debug)]
struct Row {
    loss: f64,
    /// Relative difference of the losses.
    loss_error: f64,
    /// `|narrow - wide| / |wide|` of the gradients of all parameters as one vector.
    gradient_error: f64,
    /// Whether the narrow step was skipped.
    skipped: bool,
}

/// Runs `steps` steps in `f32`; before each, the same step from the same state is made at `precision`.
///
/// The optimizer is Adam: its first moment is `m + (1 - beta) (g - m)`, so that the difference of two new moments is
/// that of the gradients, but for a factor.
fn rows(text: &str, precision: &str, steps: u64) -> Vec<Row> {
    let device = Device::cpu();
    let prepare = |precision: &str| {
        let sets = [format!("train.precision={precision}")];
        let source = Source::new("parity.toml", text, &sets).unwrap();
        let raw: Config = source.parse().unwrap();
        let data = Arc::new(Dataset::open(&raw.data, raw.train.seed).unwrap());
        let resolved = Config::resolve(source, Some(&data)).unwrap();
        let program = build_step(&resolved).unwrap();
        let options = Options::new(device.target()).with_precision(resolved.config.train.precision);
        let loaded = device.load(compile(&program.func, &options).unwrap().exec).unwrap();
        let seed = resolved.config.train.seed;
        let mut inputs = program.initial_state(seed);
        inputs.extend(program.constants(seed));
        inputs.extend(program.batch.iter().map(|port| Array::zeros(port.ty.clone())));
        (program, loaded, inputs, data, resolved)
    };
    let (wide, wide_loaded, wide_inputs, data, resolved) = prepare("f32");
    let (narrow, narrow_loaded, narrow_inputs, ..) = prepare(precision);
    let wide_buffers = device.upload_all(&wide_inputs).unwrap();
    // Shared by name, so that both see the same weights and batch; the loss scale is the narrow program's own.
    let shared = |name: &str| {
        let at = wide.func.params.iter().position(|p| *p.name == *name);
        at.map(|at| wide_buffers[at].clone())
    };
    let own = device.upload_all(&narrow_inputs).unwrap();
    let narrow_buffers: Vec<Buffer> =
        narrow.func.params.iter().zip(own).map(|(p, own)| shared(&p.name).unwrap_or(own)).collect();
    let wide_bound = wide_loaded.bind(&wide_buffers).unwrap();
    let narrow_bound = narrow_loaded.bind(&narrow_buffers).unwrap();

    let beta = resolved.config.optim.betas[0];
    let output = |bound: &Bound, i: usize| bound.outputs()[i].download().unwrap();
    (0..steps)
        .map(|step| {
            let batch = data.batch(step, resolved.batch()).unwrap();
            let labels: Vec<i32> = batch.labels.iter().map(|&l| l as i32).collect();
            let samples =
                [Array::f32(wide.batch[0].ty.dims.clone(), &batch.samples), Array::i32([labels.len()], &labels)];
            for (array, i) in samples.iter().zip(wide.batch_inputs()) {
                wide_bound.inputs()[i].write(array).unwrap();
            }
            wide_bound.run().unwrap();
            narrow_bound.run().unwrap();
            let metric = |bound: &Bound, first: usize, i: usize| output(bound, first + i).get(0).to_f64();
            let (loss, norm) = (
                metric(&wide_bound, wide.metric_results().start, 0),
                metric(&wide_bound, wide.metric_results().start, 1),
            );
            let narrow_loss = metric(&narrow_bound, narrow.metric_results().start, 0);
            let mut squares = 0.0;
            for (i, spec) in wide.state.iter().enumerate().filter(|(_, s)| s.role == Role::Moment(0)) {
                let other = narrow.state_index(spec.role, &spec.name).unwrap();
                let (a, b) = (output(&wide_bound, i).to_f32_vec(), output(&narrow_bound, other).to_f32_vec());
                squares += a.iter().zip(&b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>();
            }
            let skipped = narrow
                .state_index(Role::Skipped, "skipped")
                .is_some_and(|i| output(&narrow_bound, i).get(0).to_f64() > 0.0);
            for i in 0..wide.state.len() {
                wide_buffers[i].write(&output(&wide_bound, i)).unwrap();
            }
            let gradient_error = squares.sqrt() / (1.0 - beta) / norm;
            if step % 20 == 19 {
                println!("{precision}, step {}: loss {loss:.4}, gradient off by {gradient_error:.1e}", step + 1);
            }
            Row { loss, loss_error: (narrow_loss - loss).abs() / loss, gradient_error, skipped }
        })
        .collect()
}

const SMALL: &str = r#"
[model]
kind = "dit"
dim = 48
depth = 2
heads = 3
patch = 8
[process]
preset = "sit"
time_scale = 1000.0
[data]
kind = "shapes"
batch = 4
[optim]
kind = "adam"
lr = 1e-3
[ema]
decay = 0.0
"#;

#[test]
fn gradients_of_a_small_transformer() {
    let cases = [("f16", 4e-3, 12), ("bf16-storage", 3e-2, 6), ("fp8-e4m3", 0.25, 3), ("fp8-e5m2", 0.5, 3)];
    for (precision, bound, steps) in cases {
        for (step, row) in rows(SMALL, precision, steps).iter().enumerate() {
            assert!(!row.skipped, "{precision}: step {step} was skipped");
            assert!(row.gradient_error < bound && row.loss_error < bound / 4.0, "{precision}: step {step} {row:?}");
        }
    }
}

const DIT_S2: &str = r#"
[model]
kind = "dit"
size = "S"
patch = 2
[process]
preset = "sit"
time_scale = 1000.0
[data]
DATA
batch = 2
[optim]
kind = "adam"
lr = 1e-4
[ema]
decay = 0.0
"#;

/// DiT-S/2 on 256 tokens, 200 steps on photographs (on noise of their shape where they are not at hand); many minutes on
/// two cores.
/// `cargo test -p dnx-tests --test parity -- --ignored --nocapture`
#[test]
#[ignore = "200 steps of DiT-S/2 on 256 tokens in two precisions: many minutes"]
fn gradients_of_dit_s2_over_200_steps() {
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/cifar10");
    let data = match photos.is_dir() {
        true => format!("kind = \"cifar10\"\npath = {photos:?}"),
        false => "kind = \"noise\"\ndims = [32, 32, 3]\nclasses = 10".to_string(),
    };
    println!("on {data}");
    let rows = rows(&DIT_S2.replace("DATA", &data), "f16", 200);
    let mut errors: Vec<f64> = rows.iter().map(|r| r.gradient_error).collect();
    errors.sort_by(f64::total_cmp);
    let loss_error = rows.iter().map(|r| r.loss_error).fold(0.0, f64::max);
    println!(
        "loss {:.4} to {:.4}, off by at most {loss_error:.1e}; gradients off by {:.1e} (median), {:.1e} (greatest)",
        rows[0].loss, rows[199].loss, errors[100], errors[199]
    );
    assert!(rows.iter().all(|r| !r.skipped));
    assert!(errors[199] < 4e-3 && loss_error < 1e-3);
}
