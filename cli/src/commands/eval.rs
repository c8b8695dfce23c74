//! `dnx eval`.

use super::sample::{averaged, loaded, located, read_weights};
use super::{open_device, print};
use crate::args::{EvalArgs, Metric};
use dnx::models::sample::{Accuracy, Flow, Trace, bits_per_dim, dequantized};
use dnx::train::config::{Config, Resolved, read_source};
use dnx::train::data::Dataset;
use dnx::train::run::find_checkpoint;
use dnx::train::{Error, Result};

pub fn run(args: &EvalArgs) -> Result<()> {
    let (folder, run) = find_checkpoint(&args.run)?;
    let run = run.ok_or_else(|| {
        let message = format!("{} is in no run's folder, so its config.toml is not known", folder.display());
        Error::Checkpoint(message)
    })?;
    let resolved = Config::resolve(read_source(&run.config(), &args.set)?, None)?;
    let data = Dataset::open(&resolved.config.data, resolved.config.train.seed)?;
    if args.n == 0 || args.n > data.len() {
        return Err(Error::Usage(format!("--n {}: the data has 1 to {} samples to measure", args.n, data.len())));
    }
    let weights = read_weights(&folder, averaged(args.ema, args.no_ema, &folder)?, &resolved)?;
    let device = open_device(args.device.as_deref())?;
    let mut generator = loaded(&resolved, &device, &weights, args.batch.max(1).min(args.n))?;
    for metric in &args.metrics {
        match metric {
            Metric::Likelihood => likelihood(args, &resolved, &data, &mut generator)?,
        }
    }
    Ok(())
}

fn likelihood(
    args: &EvalArgs,
    resolved: &Resolved,
    data: &Dataset,
    generator: &mut dnx::models::sample::Generator,
) -> Result<()> {
    let elems = data.elems();
    let mut x = vec![0.0; args.n * elems];
    let labels: Vec<i32> =
        x.chunks_mut(elems).enumerate().map(|(i, out)| data.get(i, out).map(|l| l as i32)).collect::<Result<_>>()?;
    let labels = (resolved.config.model.classes() > 0).then_some(labels);
    let seeds: Vec<u64> = (0..args.n as u64).collect();
    let pictures = data.dims().len() == 3;
    let x = if pictures { dequantized(&x, &seeds) } else { x.iter().map(|&v| v as f64).collect() };
    let flow = Flow {
        trace: if args.probes == 0 { Trace::Exact } else { Trace::Hutchinson { probes: args.probes } },
        accuracy: args.steps.map_or(Flow::default().accuracy, |steps| Accuracy::Fixed { steps }),
        ..Flow::default()
    };
    let logs = generator
        .log_likelihood(&x, &seeds, labels.as_deref(), &flow)
        .map_err(|e| located(resolved, Error::Model(e)))?;
    let (unit, values): (&str, Vec<f64>) = match pictures {
        true => ("bits per dim", logs.iter().map(|&l| bits_per_dim(l, elems)).collect()),
        false => ("nats", logs.iter().map(|l| -l).collect()),
    };
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let error = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * (n - 1.0).max(1.0))).sqrt();
    let split = resolved.config.data.split;
    print(&match args.json {
        true => {
            let json = serde_json::json!({
                "metric": "likelihood", "unit": unit, "mean": mean, "standard_error": error, "samples": args.n,
                "split": split,
            });
            format!("{json}\n")
        }
        false => {
            format!("negative log-likelihood: {mean:.4} {unit}, standard error {error:.4}, of {} samples\n", args.n)
        }
    })
}
