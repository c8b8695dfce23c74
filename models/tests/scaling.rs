//! Dynamic loss scaling, run by the reference interpreter.

use dnx_codegen::passes::{inline::inline, mixed::mixed};
use dnx_codegen::{Options, Precision};
use dnx_ir::interp::{self, eval};
use dnx_ir::threefry::key;
use dnx_ir::{Array, Func};
use dnx_models::network::MlpConfig;
use dnx_models::optim::{EmaConfig, OptimConfig};
use dnx_models::process::Preset;
use dnx_models::step::{LossScaling, NO_BAD_STEP, Role, StepOptions, TrainProgram, train_step};
use dnx_models::{DataSpec, Network, init};
use std::collections::HashMap;

fn program(accumulate: usize, scaling: Option<LossScaling>) -> TrainProgram {
    let config = MlpConfig { hidden: 16, layers: 2, time_width: 8, ..MlpConfig::default() };
    let network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 0 }).unwrap();
    let optim = OptimConfig { lr: 1e-2, clip: 1.0, ..OptimConfig::default() };
    let options = StepOptions { batch: 8, accumulate, level_bins: 2, scaling, ..StepOptions::default() };
    train_step(&network, &Preset::Sit.process(), &optim, &EmaConfig::default(), &options).unwrap()
}

fn scaling(initial: u32, growth_every: u32) -> Option<LossScaling> {
    Some(LossScaling { initial, growth_every })
}

struct Run<'a> {
    program: &'a TrainProgram,
    func: Func,
    state: Vec<Array>,
}

struct Metrics(HashMap<String, f64>);

impl Metrics {
    fn get(&self, name: &str) -> f64 {
        self.0[name]
    }
}

impl<'a> Run<'a> {
    fn new(program: &'a TrainProgram, precision: Precision) -> Run<'a> {
        let func = mixed(&inline(&program.func, &Options::default()).unwrap(), precision).unwrap();
        Run { program, func, state: program.initial_state(7) }
    }

    /// Runs a step and gives its metrics by name.
    fn step(&mut self, batch: &Array) -> Metrics {
        let constants = self.program.constants(7);
        let args: Vec<Array> = self.state.iter().chain(&constants).chain([batch]).cloned().collect();
        let mut results = eval(&self.func, &args, interp::Precision::F32).unwrap();
        let metrics = results.split_off(self.program.state.len());
        self.state = results;
        let names = self.program.metrics.iter().map(|p| p.name.clone());
        Metrics(names.zip(metrics.iter().map(|m| m.get(0).to_f64())).collect())
    }

    fn scalar(&self, role: Role, name: &str) -> f64 {
        self.state[self.program.state_index(role, name).unwrap()].get(0).to_f64()
    }

    /// Parameters, moments and averages.
    fn weights(&self) -> Vec<Array> {
        let spec = |role: Role| matches!(role, Role::Param | Role::Moment(_) | Role::Ema);
        let state = self.program.state.iter().zip(&self.state);
        state.filter(|(s, _)| spec(s.role)).map(|(_, a)| a.clone()).collect()
    }
}

fn batch(seed: u64) -> Array {
    init::Init::Normal { std: 1.0 }.draw(&[8, 2], key(seed))
}

fn spoilt(seed: u64) -> Array {
    let mut data = batch(seed).to_f32_vec();
    data[3] = 1e30;
    Array::f32([8, 2], &data)
}

#[test]
fn in_f32_a_scaled_step_is_the_step() {
    for accumulate in [1, 2] {
        let (plain, scaled) = (program(accumulate, None), program(accumulate, scaling(1 << 12, 100)));
        let (mut a, mut b) = (Run::new(&plain, Precision::F32), Run::new(&scaled, Precision::F32));
        for i in 0..3 {
            let (x, y) = (a.step(&batch(i)), b.step(&batch(i)));
            assert_eq!((x.get("loss"), x.get("grad_norm")), (y.get("loss"), y.get("grad_norm")));
        }
        // A power of two goes through products and sums without a trace.
        assert!(a.weights() == b.weights());
    }
}

#[test]
fn a_step_that_overflows_is_skipped_and_training_goes_on() {
    let program = program(1, scaling(1 << 10, 3));
    let mut run = Run::new(&program, Precision::F16);
    run.step(&batch(0));
    let before = run.weights();
    let metrics = run.step(&spoilt(1));
    assert!(run.weights() == before, "a skipped step moved something");
    assert_eq!((metrics.get("loss_scale"), metrics.get("skipped")), (512.0, 1.0));
    assert_eq!(run.scalar(Role::Step, "step"), 2.0, "a skipped step has had its batch");
    assert_eq!(run.scalar(Role::BadStep, "bad_step"), NO_BAD_STEP as f64);
    // The two good steps so far count for nothing: three in a row are wanted.
    for (i, want) in [512.0, 512.0, 1024.0, 1024.0].into_iter().enumerate() {
        let metrics = run.step(&batch(2 + i as u64));
        assert_eq!((metrics.get("loss_scale"), metrics.get("skipped")), (want, 1.0), "step {i}");
        assert!(metrics.get("loss").is_finite() && metrics.get("grad_norm").is_finite());
    }
    assert!(run.weights() != before);
}

#[test]
fn a_scale_too_large_for_f16_comes_down_by_itself() {
    let program = program(1, scaling(1 << 24, 1000));
    let mut run = Run::new(&program, Precision::F16);
    let mut scales = vec![];
    for i in 0..20 {
        scales.push(run.step(&batch(i)).get("loss_scale"));
    }
    let skipped = run.scalar(Role::Skipped, "skipped");
    assert!((2.0..19.0).contains(&skipped), "{scales:?}");
    assert_eq!(scales[19], (1u64 << 24) as f64 / 2f64.powf(skipped));
    let metrics = run.step(&batch(99));
    assert!(metrics.get("loss").is_finite() && metrics.get("grad_norm").is_finite());
}

#[test]
fn at_the_least_scale_a_bad_step_stops_the_run() {
    let program = program(1, scaling(2, 100));
    let mut run = Run::new(&program, Precision::F16);
    run.step(&batch(0));
    run.step(&spoilt(1));
    assert_eq!(run.scalar(Role::LossScale, "loss_scale"), 1.0);
    let before = run.state.clone();
    run.step(&spoilt(2));
    assert_eq!(run.scalar(Role::BadStep, "bad_step"), 2.0);
    run.step(&batch(3));
    let last = before.len() - 1;
    assert!(run.state[..last] == before[..last], "the state of the bad step is kept for its replay");
}

#[test]
fn growth_ends_at_the_greatest_scale() {
    let program = program(1, scaling(1 << 23, 1));
    let mut run = Run::new(&program, Precision::F32);
    let scales: Vec<f64> = (0..3).map(|i| run.step(&batch(i)).get("loss_scale")).collect();
    assert_eq!(scales, [(1 << 24) as f64; 3]);
}
