//! The stages of compilation of one training step, a tiny network's, kept as snapshots: what each stage leaves for
//! the next can be read in order. Much of every stage is threefry, which is arithmetic like any other.

use dnx_codegen::{Dump, Options, Stage, compile::compile_with};
use dnx_models::layers::Activation;
use dnx_models::network::{MlpConfig, TimeFeatures};
use dnx_models::optim::{EmaConfig, OptimConfig, Rule};
use dnx_models::process::Preset;
use dnx_models::step::{StepOptions, TrainProgram, train_step};
use dnx_models::{DataSpec, Network};

fn tiny_step() -> TrainProgram {
    let (activation, time) = (Activation::Silu, TimeFeatures::Raw);
    let config = MlpConfig { hidden: 6, layers: 1, activation, time, ..MlpConfig::default() };
    let network = Network::Mlp(config).resolve(&DataSpec { dims: vec![2], classes: 0 }).unwrap();
    let options = StepOptions { batch: 5, accumulate: 1, level_bins: 0, scaling: None, ..StepOptions::default() };
    // Plain rules, for short snapshots; the kernels of AdamW are among those of named programs.
    let optim = OptimConfig { kind: Rule::Sgd, weight_decay: 0.0, clip: 0.0, ..OptimConfig::default() };
    let ema = EmaConfig { decay: 0.0, ..EmaConfig::default() };
    train_step(&network, &Preset::Sit.process(), &optim, &ema, &options).unwrap()
}

#[test]
fn stages_of_a_training_step() {
    let program = tiny_step();
    let mut dump = Dump::all();
    // The stages before compilation are recorded by who builds the program.
    dump.record(Stage::Model, || program.loss.to_string());
    dump.record(Stage::Grad, || program.grad.to_string());
    let options = Options::default().with_donate(&program.donate);
    compile_with(&program.func, &options, true, &mut dump).unwrap();
    use Stage::*;
    for stage in [Model, Grad, Inline, Canonical, Partition, Fuse, Kernels, Schedule, Memory] {
        let text = dump.text(stage).unwrap_or_else(|| panic!("no text of {stage}"));
        insta::with_settings!({ omit_expression => true, description => stage.about() }, {
            insta::assert_snapshot!(stage.name(), text);
        });
    }
}
