//! The loop.

use super::Trainer;
use crate::data::{Dataset, Prefetch};
use crate::files::write_atomic;
use crate::log::{EventWriter, Jsonl, Progress, Record, Status, curve, picture};
use crate::run::{Existing, RunFolder};
use crate::{Error, Result, checkpoint, sampling};
use dnx_models::sample::Generator;
use dnx_runtime::{Buffer, Device};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How the loop is run.
#[derive(Clone, Copy)]
pub struct FitOptions<'a> {
    /// What to do when the folder already holds a run.
    pub existing: &'a Existing,
    /// Set from outside (by Ctrl-C): the step at hand is finished, a checkpoint written, and the loop ends.
    pub stop: &'a AtomicBool,
    /// Shows no progress.
    pub quiet: bool,
}

/// What the loop writes to besides checkpoints.
struct Logs<'a> {
    run: &'a RunFolder,
    jsonl: Option<Jsonl>,
    events: Option<EventWriter>,
    curve: Vec<(u64, f64)>,
    /// The loss in each range of noise level, averaged over about the last ten records.
    levels: Vec<Option<f64>>,
    progress: Progress,
}

impl Logs<'_> {
    /// Takes the losses by noise level of a record into their averages.
    fn see_levels(&mut self, of: impl Fn(&str) -> Option<f64>) {
        for (i, average) in self.levels.iter_mut().enumerate() {
            if let Some(loss) = of(&super::level_name(i)).filter(|l| l.is_finite()) {
                let old = average.unwrap_or(loss);
                *average = Some(old + 0.1 * (loss - old));
            }
        }
    }
}

impl Trainer {
    /// Trains in `run` up to `train.steps` steps.
    pub fn fit(&mut self, run: &RunFolder, options: FitOptions) -> Result<()> {
        let from = match self.placed.is_first() {
            true => self.placed.together(run.open(options.existing))?,
            false => {
                self.placed.together(Ok(()))?;
                run.continues_from(options.existing)?
            }
        };
        if let Some(path) = &from {
            self.restore(path)?;
        }
        let resuming = matches!(options.existing, Existing::Resume(_));
        let opened = match self.placed.is_first() {
            true => write_atomic(&run.config(), self.resolved.config.to_toml()?.as_bytes())
                .and_then(|()| self.open_logs(run, resuming.then_some(self.step), options.quiet)),
            false => Ok(self.no_logs(run)),
        };
        let mut logs = self.placed.together(opened)?;
        if let Some(path) = &from {
            logs.progress.note(&format!("continuing from {}", path.display()));
        }
        let result = self.run_steps(&mut logs, options.stop);
        logs.progress.finish();
        result
    }

    /// What a process writes that is not the first one: nothing.
    fn no_logs<'a>(&self, run: &'a RunFolder) -> Logs<'a> {
        Logs {
            run,
            jsonl: None,
            events: None,
            curve: vec![],
            levels: vec![],
            progress: Progress::new(self.resolved.config.train.steps, self.step, true),
        }
    }

    fn open_logs<'a>(&self, run: &'a RunFolder, resume: Option<u64>, quiet: bool) -> Result<Logs<'a>> {
        let log = &self.resolved.config.log;
        let progress = Progress::new(self.resolved.config.train.steps, self.step, quiet);
        let mut logs = Logs { levels: vec![None; log.levels], progress, ..self.no_logs(run) };
        if log.jsonl {
            let (jsonl, kept) = Jsonl::open(&run.metrics(), resume)?;
            logs.jsonl = Some(jsonl);
            logs.curve = kept.iter().filter_map(|r| Some((r.step, r.get("loss")?))).collect();
            for record in &kept {
                logs.see_levels(|name| record.get(name));
            }
        }
        if log.tensorboard {
            logs.events = Some(EventWriter::create(run.path(), resume)?);
        }
        Ok(logs)
    }

    fn run_steps(&mut self, logs: &mut Logs, stop: &AtomicBool) -> Result<()> {
        let train = self.resolved.config.train.clone();
        let mut prefetch =
            Prefetch::of_rows(self.data.clone(), self.rows(), self.step, self.resolved.config.data.workers);
        let mut sampling: Option<Sampling> = None;
        let due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every);
        // Time spent stepping since the last record: pictures and checkpoints do not count.
        let (mut busy, mut steps) = (Duration::ZERO, 0u32);
        while self.step < train.steps {
            let began = Instant::now();
            let samples = prefetch.next_batch()?;
            self.step(&samples)?;
            let last = self.step == train.steps;
            let logging = last || self.step == 1 || due(self.step, train.log_every);
            // Processes agree where they meet anyway: one that stops stops all.
            let interrupted = match self.placed.has_others() {
                true => logging && self.placed.any(stop.load(Ordering::Relaxed))?,
                false => stop.load(Ordering::Relaxed),
            };
            let saving = last || interrupted || due(self.step, train.checkpoint_every);
            let drawing = train.sample_every > 0 && (last || due(self.step, train.sample_every));
            if logging || saving || drawing {
                let metrics = self.metrics()?;
                if let Some(bad) = self.bad_step()? {
                    return Err(self.fail(bad, &logs.run.checkpoints()));
                }
                busy += began.elapsed();
                steps += 1;
                if logging {
                    self.record(logs, metrics, busy / steps)?;
                    (busy, steps) = (Duration::ZERO, 0);
                }
            } else {
                busy += began.elapsed();
                steps += 1;
            }
            if saving {
                self.save(&logs.run.checkpoints())?;
                if self.placed.is_first() {
                    curve::save(&logs.run.loss(), &logs.curve)?;
                }
                if !logs.levels.is_empty() {
                    curve::save_levels(&logs.run.levels(), &logs.levels)?;
                }
            }
            if interrupted && !last {
                return Err(Error::Interrupted { step: self.step });
            }
            if drawing {
                let sampling = match &mut sampling {
                    Some(sampling) => sampling,
                    None => sampling.insert(self.prepare_sampling()?),
                };
                self.draw(logs, sampling)?;
            }
        }
        Ok(())
    }

    fn record(&self, logs: &mut Logs, mut scalars: Vec<(String, f64)>, each: Duration) -> Result<()> {
        let seconds = each.as_secs_f64().max(1e-9);
        let samples_per_s = self.resolved.batch() as f64 / seconds;
        scalars.push(("step_ms".into(), seconds * 1e3));
        scalars.push(("samples_per_s".into(), samples_per_s));
        scalars.push(("peak_bytes".into(), self.executable().peak_bytes as f64));
        let record = Record::new(self.step, &scalars);
        let loss = scalars.iter().find(|(name, _)| name == "loss").map_or(f64::NAN, |(_, v)| *v);
        logs.curve.push((self.step, loss));
        logs.see_levels(|name| scalars.iter().find(|(n, _)| n == name).map(|(_, v)| *v));
        if let Some(jsonl) = &mut logs.jsonl {
            jsonl.append(&record)?;
        }
        if let Some(events) = &mut logs.events {
            events.scalars(self.step, &scalars)?;
        }
        logs.progress.show(Status { step: self.step, loss, steps_per_s: 1.0 / seconds, samples_per_s });
        Ok(())
    }

    /// Samples with the settings of `[sample]` and the averaged weights, and saves the picture.
    fn draw(&self, logs: &mut Logs, sampling: &mut Sampling) -> Result<()> {
        let Sampling { hands, seeds, labels } = sampling;
        self.refresh(hands.iter().map(|hand| &hand.weights[..]))?;
        if !self.placed.is_first() {
            return Ok(());
        }
        let config = &self.resolved.config.sample;
        let samples = sampling::spread(hands, seeds.len(), |hand, range| {
            let labels = labels.as_ref().map(|l| &l[range.clone()]);
            let samples = sampling::sample(&mut hand.generator, config, &seeds[range], labels, None)?;
            Ok(samples.to_f32_vec())
        })?;
        let drawn = picture::draw(&samples.concat(), self.data.dims(), &reference_points(&self.data)?)?;
        let png = drawn.png()?;
        write_atomic(&logs.run.picture(self.step), &png)?;
        if let Some(events) = &mut logs.events {
            events.image(self.step, "samples", &png, drawn.width as u32, drawn.height as u32)?;
        }
        logs.progress.note(&format!(
            "{}: {}",
            checkpoint::folder_name(self.step),
            logs.run.picture(self.step).display()
        ));
        Ok(())
    }

    fn prepare_sampling(&self) -> Result<Sampling> {
        let count = self.resolved.config.train.sample_count.max(1);
        let everywhere = self.weights_everywhere()?;
        let batch = count.div_ceil(everywhere.len()).min(sampling::BATCH);
        let hand = |(device, weights): (Device, Vec<(String, Buffer)>)| {
            Ok(Hand { generator: sampling::generator(&self.resolved, &device, &weights, batch)?, weights })
        };
        let hands = everywhere.into_iter().map(hand).collect::<Result<Vec<Hand>>>()?;
        let labels = sampling::labels(self.resolved.config.model.classes(), count, None)?;
        Ok(Sampling { hands, seeds: (0..count as u64).collect(), labels })
    }
}

/// What pictures are drawn with: always the same seeds and classes, so that progress is seen.
struct Sampling {
    /// One per device.
    hands: Vec<Hand>,
    seeds: Vec<u64>,
    labels: Option<Vec<i32>>,
}

/// What draws on one device.
struct Hand {
    generator: Generator,
    /// What the generator reads.
    weights: Vec<(String, Buffer)>,
}

/// Up to 2000 points of a set of points, or of sequences of them; nothing for sets of pictures.
pub fn reference_points(data: &Dataset) -> Result<Vec<[f32; 2]>> {
    let each = match data.dims() {
        [2] => 1,
        &[tokens, 2] => tokens,
        _ => return Ok(vec![]),
    };
    let mut sample = vec![0f32; 2 * each];
    let mut points = vec![];
    for i in 0..data.len().min(2000 / each) {
        data.get(i, &mut sample)?;
        points.extend(sample.chunks_exact(2).map(|p| [p[0], p[1]]));
    }
    Ok(points)
}
