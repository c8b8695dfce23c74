//! Samples from a network with weights on a device: one per seed, the same whatever the batch or the device.

use crate::config::Resolved;
use crate::{Error, Result};
use dnx_ir::Array;
use dnx_models::sample::{Generator, Request, SampleConfig};
use dnx_runtime::{Buffer, Device};
use std::ops::{Range, RangeInclusive};

/// Most samples computed at once for pictures.
pub const BATCH: usize = 64;

/// A generator whose weights are these buffers, which may go on changing.
pub fn generator(
    resolved: &Resolved,
    device: &Device,
    weights: &[(String, Buffer)],
    batch: usize,
) -> Result<Generator> {
    let network = &resolved.config.model;
    let ordered = network
        .specs()?
        .iter()
        .map(|spec| {
            let found = weights.iter().find(|(name, _)| *name == spec.name);
            let missing = || Error::Checkpoint(format!("tensor {} {} is missing", spec.name, spec.ty()));
            found.map(|(_, buffer)| buffer.clone()).ok_or_else(missing)
        })
        .collect::<Result<Vec<_>>>()?;
    let generator = Generator::with_buffers(device, network, &resolved.process, ordered, batch)?;
    Ok(generator.with_precision(resolved.config.train.precision))
}

/// Classes for `count` samples: all the same, or in turn; `None` for a network without classes.
pub fn labels(classes: usize, count: usize, class: Option<u32>) -> Result<Option<Vec<i32>>> {
    match class {
        Some(class) if class as usize >= classes => Err(Error::Usage(match classes {
            0 => format!("--class {class}: this network has no classes"),
            _ => format!("--class {class}: this network has classes 0 to {}", classes - 1),
        })),
        _ if classes == 0 => Ok(None),
        Some(class) => Ok(Some(vec![class as i32; count])),
        None => Ok(Some((0..count).map(|i| (i % classes) as i32).collect())),
    }
}

/// The states of a trajectory, first to last, for a GIF: `frames[i]` holds all samples at step `i`.
pub struct Trajectory {
    /// Flat samples per step.
    pub frames: Vec<Vec<f32>>,
}

/// Draws samples; with `trajectory` also the states after every step, the first one before them.
pub fn sample(
    generator: &mut Generator,
    config: &SampleConfig,
    seeds: &[u64],
    labels: Option<&[i32]>,
    trajectory: Option<&mut Trajectory>,
) -> Result<Array> {
    run(generator, config, &Request { seeds, labels, ..Request::default() }, trajectory)
}

/// The same of what is requested beyond seeds and labels.
pub fn run(
    generator: &mut Generator,
    config: &SampleConfig,
    request: &Request<'_>,
    trajectory: Option<&mut Trajectory>,
) -> Result<Array> {
    let Some(trajectory) = trajectory else {
        return Ok(generator.run(config, request, None)?);
    };
    let mut observe = |_: usize, step: usize, _: &dnx_models::process::Level<f64>, x: &[f64]| {
        if trajectory.frames.len() <= step {
            trajectory.frames.resize(step + 1, vec![]);
        }
        trajectory.frames[step].extend(x.iter().map(|&v| v as f32));
    };
    let last = generator.run(config, request, Some(&mut observe))?;
    trajectory.frames.retain(|frame| frame.len() == last.elems());
    Ok(last)
}

/// Has several devices, or what draws on them, do something for `count` samples at once: an even stretch of them each, in
/// order. cpu devices share the cores evenly.
///
/// # Errors
/// That of the first stretch that failed.
pub fn spread<H: Send, T: Send>(
    hands: &mut [H],
    count: usize,
    draw: impl Fn(&mut H, Range<usize>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if let [hand] = hands {
        return Ok(vec![draw(hand, 0..count)?]);
    }
    let n = hands.len();
    let threads = (rayon::current_num_threads() / n.max(1)).max(1);
    let at = |i: usize| count * i / n;
    std::thread::scope(|scope| {
        let busy = hands.iter_mut().enumerate().filter(|(i, _)| at(*i) < at(i + 1));
        let begun: Vec<_> = busy
            .map(|(i, hand)| {
                let draw = &draw;
                scope.spawn(move || {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    let pool = pool.map_err(|e| Error::Usage(format!("there are no threads to draw with: {e}")))?;
                    pool.install(|| draw(hand, at(i)..at(i + 1)))
                })
            })
            .collect();
        let ended = begun.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.collect()
    })
}

/// Seeds as `0-63`, `7`, or `3,5,8-11`.
pub fn parse_seeds(text: &str) -> Result<Vec<u64>> {
    let wrong = |why: &str| Error::Usage(format!("--seeds {text}: {why}; write 0-63, or 3,5,8-11"));
    let mut seeds = vec![];
    for part in text.split(',') {
        let number = |s: &str| s.trim().parse::<u64>().map_err(|_| wrong(&format!("{s:?} is no seed")));
        let range: RangeInclusive<u64> = match part.split_once('-') {
            Some((low, high)) => number(low)?..=number(high)?,
            None => number(part)?..=number(part)?,
        };
        if range.is_empty() {
            return Err(wrong(&format!("{part} ends before it begins")));
        }
        if range.end() - range.start() >= 10_000_000 {
            return Err(wrong("that is more than ten million samples"));
        }
        seeds.extend(range);
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_drawn_once_and_in_order() {
        for (devices, count) in [(1, 3), (2, 7), (3, 2), (4, 4)] {
            let mut hands = vec![0; devices];
            let drawn = spread(&mut hands, count, |hand, range| {
                *hand += 1;
                Ok(range.collect::<Vec<_>>())
            });
            let drawn = drawn.unwrap();
            assert!(drawn.iter().all(|d| !d.is_empty()) && drawn.len() == devices.min(count));
            assert_eq!(drawn.concat(), (0..count).collect::<Vec<_>>());
            assert_eq!(hands.iter().sum::<usize>(), drawn.len());
        }
        let fails = |_: &mut (), r: Range<usize>| match r.start {
            0 => Ok(()),
            _ => Err(Error::Usage("the second stretch".into())),
        };
        assert!(spread(&mut [(), ()], 4, fails).unwrap_err().to_string().contains("the second stretch"));
    }

    #[test]
    fn seeds_are_lists_of_ranges() {
        assert_eq!(parse_seeds("0-3").unwrap(), [0, 1, 2, 3]);
        assert_eq!(parse_seeds("7").unwrap(), [7]);
        assert_eq!(parse_seeds("3, 5,8-9").unwrap(), [3, 5, 8, 9]);
        for (text, why) in
            [("", "is no seed"), ("a-b", "is no seed"), ("5-3", "ends before"), ("0-99999999", "ten million")]
        {
            let message = parse_seeds(text).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn labels_take_turns_or_are_one() {
        assert_eq!(labels(3, 5, None).unwrap().unwrap(), [0, 1, 2, 0, 1]);
        assert_eq!(labels(3, 2, Some(2)).unwrap().unwrap(), [2, 2]);
        assert_eq!(labels(0, 2, None).unwrap(), None);
        assert!(labels(3, 2, Some(3)).unwrap_err().to_string().contains("classes 0 to 2"));
        assert!(labels(0, 2, Some(0)).unwrap_err().to_string().contains("no classes"));
    }
}
