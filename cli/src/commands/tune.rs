//! `dnx tune`: the quickest right tile for every contraction of a training step, kept for this adapter and driver.

use super::{open_device, print};
use crate::args::TuneArgs;
use dnx::codegen::{Options, compile};
use dnx::runtime::tune::{Table, tune};
use dnx::train::config::{Config, read_source};
use dnx::train::data::Dataset;
use dnx::train::trainer::build_step;
use dnx::train::{Error, Result};

pub fn run(args: &TuneArgs) -> Result<()> {
    let source = read_source(&args.config, &args.set)?;
    let raw: Config = source.parse()?;
    let data = Dataset::open(&raw.data, raw.train.seed)?;
    let resolved = Config::resolve(source, Some(&data))?;
    let device = open_device(args.device.as_deref())?;
    let program = build_step(&resolved)?;
    // From the compiler's own choices, not from what an earlier tuning made of them.
    let precision = resolved.config.train.precision;
    let options = Options::new(device.target()).with_donate(&program.donate).with_precision(precision);
    let found = tune(&device, &compile(&program.func, &options)?.exec)?;
    let mut text = format!("{:>10} {:>10} {:>7} {:>6}  kernel\n", "ms before", "ms after", "ratio", "tried");
    for t in &found {
        let [before, after] = [t.default.1, t.best.1].map(|d| d.as_secs_f64() * 1e3);
        let ratio = before / after.max(1e-9);
        text.push_str(&format!("{before:>10.3} {after:>10.3} {ratio:>7.2} {:>6}  {}\n", t.tried, t.name));
        for (tile, why) in &t.refused {
            text.push_str(&format!("{:38}refused {:?} {:?}: {why}\n", "", tile.tier, tile.block));
        }
    }
    let mut table = Table::load(device.info());
    table.merge(&found);
    let path = table.save(device.info()).map_err(|source| Error::Io {
        doing: "cannot keep the tuned tiles in",
        path: "the cache folder".into(),
        source,
    })?;
    text.push_str(&format!("{} kernels tuned; kept in {}\n", found.len(), path.display()));
    print(&text)
}
