//! How long the graph passes take on the largest published step: DiT-XL/2 with AdamW and averages.
//!
//! Prints one line per measurement; `docs/performance.md` keeps the ones worth keeping.

use dnx_codegen::passes::prepare_with;
use dnx_codegen::{Dump, Options};
use dnx_models::network::{DitConfig, DitSize, Network};
use dnx_models::optim::{EmaConfig, OptimConfig};
use dnx_models::process::Preset;
use dnx_models::step::{StepOptions, train_step};
use std::time::Instant;

fn main() {
    for (name, size) in [("DiT-S/2", DitSize::S), ("DiT-XL/2", DitSize::XL)] {
        let network = Network::Dit(DitConfig::of_size(size, 2, 32, 4, 1000));
        let options = StepOptions { batch: 8, accumulate: 1, level_bins: 0, scaling: None, ..StepOptions::default() };
        let start = Instant::now();
        let (optim, ema) = (OptimConfig::default(), EmaConfig::default());
        let step = train_step(&network, &Preset::Sit.process(), &optim, &ema, &options).expect("a published size");
        let built = start.elapsed();
        let inlined = dnx_codegen::passes::inline::inline(&step.func, &Options::default()).expect("inlines");
        let start = Instant::now();
        let prepared = prepare_with(&step.func, &Options::default(), false, &mut Dump::none()).expect("prepares");
        let time = start.elapsed();
        println!(
            "{name}: built in {:.3} s; {} nodes prepared to {} in {:.3} s",
            built.as_secs_f64(),
            inlined.nodes.len(),
            prepared.nodes.len(),
            time.as_secs_f64()
        );
    }
}
