//! Making a step fit into memory: what is recomputed, and what to say when nothing helps.
//!
//! Peak memory is known when a step is compiled, before anything is allocated. A step that exceeds the limit is
//! compiled again with its blocks recomputed in the backward pass, which changes no number that the step means to
//! compute. Splitting the batch would change the noise it draws, so that is advised, never done unasked.

use super::build_step;
use crate::config::{Bytes, Resolved};
use crate::{Error, Result};
use dnx_codegen::exec::Executable;
use dnx_codegen::stats::Stats;
use dnx_codegen::{CompileError, Options};
use dnx_models::network::Remat;
use dnx_models::step::TrainProgram;
use dnx_runtime::{Device, Team};

/// A compiled step that fits.
pub struct Fitting {
    /// The step.
    pub program: TrainProgram,
    /// What a device loads.
    pub exec: Executable,
    /// The configuration it was built from: that given, but for what is recomputed.
    pub resolved: Resolved,
    /// What was changed to make it fit, and what that costs; `None` if nothing was.
    pub note: Option<String>,
}

/// Parts of a batch that are compiled to know the memory of any number.
const PARTS: usize = 8;

/// What became of one way to build the step.
enum Attempt {
    Fits(Box<(TrainProgram, Executable)>),
    /// Its peak memory, if it could be planned at all, and what says that it does not fit.
    Exceeds(Option<u64>, String),
}

/// Builds and compiles the step of a configuration for the devices of a team, each within `train.memory_limit` or,
/// without it, the memory it has.
///
/// # Errors
/// [`Error::Memory`] with the largest micro-batch that fits; those of building and compiling.
pub fn fit_step(resolved: Resolved, team: &Team) -> Result<Fitting> {
    let wanted = resolved.layout.devices();
    if wanted != team.size() {
        let message = format!(
            "asks for {wanted} devices, --device gives {}; write --device with as many, as cpu*{wanted} or gpu:0,gpu:1",
            team.size()
        );
        return Err(resolved.source.wrong("mesh.axes", &message));
    }
    // Devices of one kind in one process share what that kind has.
    let devices = team.devices();
    let sharing = |d: &Device| devices.iter().filter(|o| o.info().fingerprint() == d.info().fingerprint()).count();
    let memory = devices.iter().filter_map(|d| Some(d.info().memory? / sharing(d) as u64)).min();
    fit_within(resolved, &team.options(), memory, devices[0].name())
}

fn fit_within(resolved: Resolved, base: &Options, memory: Option<u64>, device: &str) -> Result<Fitting> {
    let given = resolved.config.train.memory_limit.map(|Bytes(n)| n);
    let limit = given.into_iter().chain(memory).min();
    let within = match given {
        Some(n) if Some(n) == limit => format!("train.memory_limit = {}", Bytes(n)),
        _ => format!("the memory of `{device}`, {}", Bytes(limit.unwrap_or(u64::MAX))),
    };
    let (peak, why) = match attempt(&resolved, base, limit)? {
        Attempt::Fits(step) => {
            let (program, exec) = *step;
            return Ok(Fitting { program, exec, resolved, note: None });
        }
        Attempt::Exceeds(peak, why) => (peak, why),
    };
    let recomputing = recomputing(&resolved);
    for changed in &recomputing {
        let Attempt::Fits(step) = attempt(changed, base, limit)? else { continue };
        let (program, exec) = *step;
        let before = peak.map_or("more than one buffer may hold".to_string(), |p| Bytes(p).to_string());
        let work = match attempt(&resolved, base, None)? {
            Attempt::Fits(kept) => {
                let flops = |exec: &Executable| Stats::of(exec, 0, 0).flops as f64;
                format!(", for {:.0} % more arithmetic", 100.0 * (flops(&exec) / flops(&kept.1) - 1.0))
            }
            Attempt::Exceeds(..) => String::new(),
        };
        let what = match changed.config.train.remat {
            Remat::None | Remat::Block => "blocks are",
            Remat::Group => "groups of blocks, then blocks, are",
        };
        let note = format!(
            "{what} recomputed in the backward pass to stay within {within}: peak memory {} instead of {before}{work}",
            Bytes(exec.peak_bytes)
        );
        return Ok(Fitting { program, exec, resolved: changed.clone(), note: Some(note) });
    }
    let smallest = recomputing.into_iter().next_back().unwrap_or(resolved);
    let advice = match micro_batch(&smallest, base, limit)? {
        Some((parts, peak)) => {
            let batch = smallest.batch() / parts;
            format!("a micro-batch of {batch} fits, with {}: --set train.accumulate={parts}", Bytes(peak))
        }
        None => "not even one sample at a time fits; choose a smaller model or another --device".to_string(),
    };
    let train = &smallest.config.train;
    let how = if train.remat == Remat::None { "" } else { ", its blocks recomputed," };
    let batch = smallest.batch() / train.accumulate;
    Err(Error::Memory(format!("a step on {batch} samples{how} does not fit {within}: {why}; {advice}")))
}

/// The configurations that recompute more, if the network has blocks, in ascending order of work.
fn recomputing(resolved: &Resolved) -> Vec<Resolved> {
    let own = Remat::ALL.iter().position(|&r| r == resolved.config.train.remat).unwrap_or(0);
    let more = Remat::ALL[own + 1..].iter().map(|&remat| {
        let mut changed = resolved.clone();
        changed.config.train.remat = remat;
        changed.config.model.set_remat(remat);
        changed
    });
    more.filter(|changed| changed.config.model != resolved.config.model).collect()
}

fn attempt(resolved: &Resolved, base: &Options, limit: Option<u64>) -> Result<Attempt> {
    let program = build_step(resolved)?;
    let options = resolved.options(base.clone()).with_donate(&program.donate);
    match dnx_codegen::compile(&program.func, &options) {
        Ok(compiled) if limit.is_none_or(|l| compiled.exec.peak_bytes <= l) => {
            Ok(Attempt::Fits(Box::new((program, compiled.exec))))
        }
        Ok(compiled) => {
            let peak = compiled.exec.peak_bytes;
            Ok(Attempt::Exceeds(Some(peak), format!("it needs {}", Bytes(peak))))
        }
        Err(CompileError::TooLarge { what, bytes, limit, .. }) => {
            let why = format!("{what} takes {}, one buffer holds {}", Bytes(bytes), Bytes(limit));
            Ok(Attempt::Exceeds(None, why))
        }
        Err(error) => Err(error.into()),
    }
}

/// The fewest parts into which the batch must be split to fit, and about the peak memory then.
fn micro_batch(resolved: &Resolved, base: &Options, limit: Option<u64>) -> Result<Option<(usize, u64)>> {
    let mut parts = divisors(resolved.batch());
    parts.retain(|&p| p > resolved.config.train.accumulate);
    // More parts take less memory: halve the range in which the fewest that fit are.
    let (mut low, mut high, mut fitting) = (0, parts.len(), None);
    while low < high {
        let middle = (low + high) / 2;
        match attempt(&in_parts(resolved, parts[middle]), base, limit)? {
            Attempt::Fits(step) => (high, fitting) = (middle, Some((parts[middle], step.1.peak_bytes))),
            Attempt::Exceeds(..) => low = middle + 1,
        }
    }
    Ok(fitting)
}

/// The configuration with its batch in so many parts. Parts are worked through one after another, so a few of them
/// take about the memory of many, and are compiled sooner.
fn in_parts(resolved: &Resolved, parts: usize) -> Resolved {
    let mut split = resolved.clone();
    split.config.train.accumulate = parts.min(PARTS);
    split.config.data.batch = resolved.batch() / parts * parts.min(PARTS);
    split
}

/// The divisors of `n`, ascending.
fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<usize> = (1..).take_while(|d| d * d <= n).filter(|d| n.is_multiple_of(*d)).collect();
    let large: Vec<usize> = small.iter().rev().map(|d| n / d).filter(|d| d * d > n).collect();
    [small, large].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    fn resolved(more: &[&str]) -> Resolved {
        let text = "[model]\nkind = \"dit\"\ndim = 32\ndepth = 4\nheads = 2\npatch = 2\nimage = 16\nchannels = 1\n\
                    [process]\npreset = \"sit\"\n[data]\nkind = \"noise\"\ndims = [16, 16, 1]\nbatch = 6\n";
        let sets: Vec<String> = more.iter().map(|s| s.to_string()).collect();
        Config::resolve(Source::new("test.toml", text, &sets).unwrap(), None).unwrap()
    }

    fn peak(more: &[&str]) -> u64 {
        let Attempt::Fits(step) = attempt(&resolved(more), &Options::default(), None).unwrap() else {
            panic!("there is no limit")
        };
        step.1.peak_bytes
    }

    #[test]
    fn divisors_are_all_and_ascending() {
        assert_eq!(divisors(12), [1, 2, 3, 4, 6, 12]);
        assert_eq!(divisors(16), [1, 2, 4, 8, 16]);
        assert_eq!(divisors(1), [1]);
        assert_eq!(divisors(7), [1, 7]);
    }

    #[test]
    fn blocks_are_recomputed_only_where_memory_asks_for_it() {
        let (kept, recomputed) = (peak(&[]), peak(&["train.remat=block"]));
        assert!(recomputed * 3 < kept * 2, "recomputing blocks saves little: {kept} and {recomputed}");
        let fit = |limit: u64| {
            let limit = format!("train.memory_limit={limit}");
            fit_within(resolved(&[&limit]), &Options::default(), Some(1 << 40), "test")
        };
        let roomy = fit(kept).unwrap();
        assert!(roomy.note.is_none() && roomy.resolved.config.train.remat == Remat::None);
        let tight = fit(kept - 1).unwrap();
        assert_eq!(tight.resolved.config.train.remat, Remat::Block);
        assert_eq!(tight.exec.peak_bytes, recomputed);
        let note = tight.note.unwrap();
        assert!(note.contains("train.memory_limit") && note.contains("more arithmetic"), "{note}");
    }

    #[test]
    fn groups_of_blocks_are_recomputed_where_blocks_are_not_enough() {
        let (deep, wide) = ("model.depth=16", "data.batch=48");
        let (blocks, groups) = (peak(&[deep, wide, "train.remat=block"]), peak(&[deep, wide, "train.remat=group"]));
        assert!(groups * 10 < blocks * 9, "recomputing groups saves little: {blocks} and {groups}");
        let limit = format!("train.memory_limit={}", blocks - 1);
        let tight = fit_within(resolved(&[deep, wide, &limit]), &Options::default(), None, "test").unwrap();
        assert_eq!((tight.resolved.config.train.remat, tight.exec.peak_bytes), (Remat::Group, groups));
        let note = tight.note.unwrap();
        assert!(note.starts_with("groups of blocks, then blocks, are recomputed"), "{note}");
    }

    #[test]
    fn what_does_not_fit_is_told_the_micro_batch_that_does() {
        let two = peak(&["train.remat=block", "train.accumulate=3"]);
        let limit = format!("train.memory_limit={two}");
        let message = fit_within(resolved(&[&limit]), &Options::default(), None, "test").err().unwrap().to_string();
        assert!(message.contains("a micro-batch of 2 fits") && message.contains("train.accumulate=3"), "{message}");
        let error = fit_within(resolved(&[]), &Options::default(), Some(1000), "tiny").err().unwrap();
        assert!(error.to_string().contains("not even one sample") && error.to_string().contains("`tiny`"), "{error}");
        assert_eq!(error.exit_status(), 2);
    }
}
