//! The network of a sampler, compiled once for a device.

use super::play::{Look, Make, Reel};
use super::programs::{evaluation_program, jvp_program, vjp_program};
use super::sheet::Sheet;
use super::{
    Conditioned, Denoiser, Flow, Forcing, Grid, GuidanceKind, Inverse, Known, Noise, Recording, Repaint, SampleConfig,
    SampleNoise, Sampler, SamplerKind, Speculated, forced, inpaint, log_likelihood, marginal_std, noised, sample,
    sample_from, speculate,
};
use crate::network::Network;
use crate::process::{Level, Process, Variance};
use crate::{Error, Result};
use dnx_codegen::{Precision, compile};
use dnx_ir::{Array, Type};
use dnx_runtime::{Bound, Buffer, Device};

/// The programs of a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Guided,
    Jvp,
    Vjp,
}

/// Sees the states of a batch: the index of its first seed, the step, the level and the states. Step 0 is that of the
/// first state.
pub type Observe<'a> = dyn FnMut(usize, usize, &Level<f64>, &[f64]) + 'a;

/// What is asked of a generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// One sample per seed.
    pub seeds: &'a [u64],
    /// One class per seed; ignored by an unconditional network. `None` draws from all classes (the null label).
    pub labels: Option<&'a [i32]>,
    /// The class that classifier-free guidance moves away from; the network's null label if absent.
    pub negative: Option<i32>,
    /// What the samples begin with or keep.
    pub edit: Option<Edit<'a>>,
}

/// A sample that others are made of: of each seed a version.
#[derive(Clone, Copy, Debug)]
pub struct Edit<'a> {
    /// Its elements.
    pub init: &'a [f32],
    /// Share of the steps, from the end, that are taken: in `(0, 1]`. At 1 nothing but what is kept is left of it.
    pub strength: f64,
    /// The elements that are kept; none if absent.
    pub keep: Option<&'a [bool]>,
    /// How often what is filled in beside them is gone over.
    pub repaint: Repaint,
}

impl Edit<'_> {
    /// The sample, once for each of a batch.
    fn data(&self, batch: usize) -> Vec<f64> {
        self.init.iter().map(|&v| f64::from(v)).collect::<Vec<_>>().repeat(batch)
    }

    /// The first states of a batch.
    fn start(&self, batch: usize, first: &Level<f64>, noise: &mut dyn Noise) -> Vec<f64> {
        noised(&self.data(batch), first, noise)
    }
}

/// A network with weights on a device, drawing samples in batches of one size.
pub struct Generator {
    device: Device,
    pub(super) network: Network,
    process: Process,
    weights: Vec<Buffer>,
    pub(super) batch: usize,
    dims: Vec<usize>,
    precision: Precision,
    programs: Vec<(Form, Bound)>,
    /// Those of recordings, the last used at the end.
    reels: Vec<Reel>,
    guide: Option<Box<Generator>>,
}

/// Reels that are kept: one for pictures in training, and one for what they are measured by.
const REELS: usize = 2;

impl Generator {
    /// A generator with these weights (all parameters, in the network's order) that evaluates `batch` samples at
    /// once.
    pub fn new(
        device: &Device,
        network: &Network,
        process: &Process,
        weights: &[Array],
        batch: usize,
    ) -> Result<Generator> {
        let weights = device.upload_all(weights).map_err(failed)?;
        Generator::with_buffers(device, network, process, weights, batch)
    }

    /// The same with weights that are already on the device: a generator of a run in training reads its buffers.
    pub fn with_buffers(
        device: &Device,
        network: &Network,
        process: &Process,
        weights: Vec<Buffer>,
        batch: usize,
    ) -> Result<Generator> {
        let dims: Vec<usize> = std::iter::once(batch.max(1)).chain(network.sample_dims()?).collect();
        Ok(Generator {
            device: device.clone(),
            network: network.clone(),
            process: process.clone(),
            weights,
            batch: batch.max(1),
            dims,
            precision: Precision::F32,
            programs: vec![],
            reels: vec![],
            guide: None,
        })
    }

    /// The same generator with the network evaluated at this precision; states and noise stay `f32`.
    pub fn with_precision(self, precision: Precision) -> Generator {
        Generator { precision, programs: vec![], reels: vec![], ..self }
    }

    /// With a second network as the contrast of autoguidance. It is conditioned on the same labels if it has
    /// classes, by its own embedding; a guide without classes guides as an unconditional network.
    ///
    /// # Errors
    /// If samples, batch or number of classes differ.
    pub fn with_guide(self, guide: Generator) -> Result<Generator> {
        let (own, other) = (&self.dims, &guide.dims);
        if own != other {
            return Err(Error::Domain(format!("the guide makes samples of {other:?}, this network of {own:?}")));
        }
        let (own, other) = (self.network.classes(), guide.network.classes());
        if other != 0 && own != other {
            return Err(Error::Domain(format!("the guide has {other} classes, this network {own}")));
        }
        Ok(Generator { guide: Some(Box::new(guide)), ..self })
    }

    /// One sample per seed, `[seeds, ..dims]`, as [`Generator::run`].
    pub fn sample(
        &mut self,
        config: &SampleConfig,
        seeds: &[u64],
        labels: Option<&[i32]>,
        observe: Option<&mut Observe<'_>>,
    ) -> Result<Array> {
        self.run(config, &Request { seeds, labels, ..Request::default() }, observe)
    }

    /// What is requested, `[seeds, ..dims]`. States are brought to the host after every step only if there is an
    /// `observe` to see them.
    ///
    /// # Errors
    /// Names the key of the configuration, or the part of the request, that this network does not serve; the device's
    /// errors; a state that is no longer finite, with the step that made it so.
    pub fn run(
        &mut self,
        config: &SampleConfig,
        request: &Request<'_>,
        mut observe: Option<&mut Observe<'_>>,
    ) -> Result<Array> {
        let process = self.process.clone();
        let sampler = config.sampler(&process)?;
        let Request { seeds, edit, .. } = *request;
        let grid = config.grid(&process)?;
        let grid = edit.map_or(Ok(grid.clone()), |e| grid.tail(e.strength))?;
        if config.sampler == SamplerKind::MeanFlow && !self.network.second_time() {
            let message =
                "mean_flow jumps with a network of two times; this one takes one (process.preset = \"mean_flow\")";
            return Err(Error::config("sample.sampler", message));
        }
        let forcing = self.forcing(config, &process)?;
        if edit.is_some() && forcing.is_some() {
            let message = "gives tokens levels of their own, which no picture to begin with or keep has";
            return Err(Error::config("sample.forcing", message));
        }
        let (labels, contrast) = self.labels(config, request)?;
        let mut guide = self.guide.take();
        let guide_process = guide.as_ref().map(|g| g.process.clone());
        let elems: usize = self.dims[1..].iter().product();
        if let Some(edit) = edit
            && (edit.init.len() != elems || edit.keep.is_some_and(|k| k.len() != elems))
        {
            let dims = &self.dims[1..];
            return Err(Error::Domain(format!("what is edited, or its mask, is no sample of dims {dims:?}")));
        }
        // Of a sequence that is made in windows the samples are longer than the states.
        let mut dims = self.dims.clone();
        if let (Some(forcing), Some(tokens)) = (&forcing, dims.get_mut(1)) {
            *tokens = forcing.tokens(*tokens);
        }
        dims[0] = seeds.len();
        let each: usize = dims[1..].iter().product();
        let mut out: Vec<f32> = Vec::with_capacity(seeds.len() * each);
        let inverse = config.inverse.as_ref().filter(|_| edit.is_some());
        let measurement = match (inverse, edit) {
            (Some(inverse), Some(edit)) => {
                if edit.strength != 1.0 || edit.repaint.times > 1 {
                    let message = "begins at noise and walks once: leave strength and RePaint out";
                    return Err(Error::config("sample.inverse.method", message));
                }
                let init: Vec<f64> = edit.init.iter().map(|&v| v as f64).collect();
                Some((inverse, inverse.measurement(&init, &self.dims[1..], edit.keep)?))
            }
            _ => None,
        };
        // The particles of a sample are a batch.
        let particles = inverse.map_or(1, Inverse::particles);
        if particles > 1 && particles != self.batch {
            let own = self.batch;
            return Err(Error::Domain(format!("a batch of {own} is not the {particles} particles of one sample")));
        }
        let at_once = self.batch / particles;
        let alone = config.forcing.is_none() && inverse.is_none() && edit.is_none_or(|e| e.keep.is_none());
        let sheet = if alone { self.sheet(config, &*sampler, &process, &grid)? } else { None };
        let seen = observe.is_some();
        let mut batches = || -> Result<()> {
            for first in (0..seeds.len()).step_by(at_once) {
                let count = at_once.min(seeds.len() - first);
                // A short last batch repeats its last sample; what is repeated is dropped.
                let at = |i: usize| first + (i / particles).min(count - 1);
                // Particles have seeds of their own, the first one that of the sample.
                let batch_seeds: Vec<u64> =
                    (0..self.batch).map(|i| seeds[at(i)].wrapping_add(((i % particles) as u64) << 48)).collect();
                let batch_labels: Vec<i32> = (0..self.batch).map(|i| labels[at(i)]).collect();
                let dims = self.dims.clone();
                if let Some((recording, sheet)) = &sheet {
                    let mut look = |step: usize, level: &Level<f64>, x: &[f64]| {
                        if let Some(observe) = &mut observe {
                            observe(first, step, level, &x[..count * elems]);
                        }
                    };
                    let look: Option<&mut Look<'_>> = if seen { Some(&mut look) } else { None };
                    let noise = &mut SampleNoise::new(&batch_seeds, elems);
                    let labels = [&batch_labels[..], &vec![contrast; self.batch]];
                    let x = self.played(recording, sheet, labels, edit, noise, look)?;
                    // What is not finite is made again by the host, which sees where it goes wrong.
                    if x.iter().all(|x| x.is_finite()) {
                        out.extend(x[..count * each].iter().map(|&v| v as f32));
                        continue;
                    }
                    observe = None;
                }
                let mut noise = SampleNoise::new(&batch_seeds, elems);
                let model = self.conditioned(&batch_labels, contrast);
                let mut denoiser =
                    Denoiser::of(&process, &dims, model).with_guidance(config.guidance()).with_clip(config.clip());
                if let (Some(guide), Some(process)) = (&mut guide, &guide_process)
                    && config.guidance == GuidanceKind::Autoguidance
                {
                    let null = guide.network.classes() as i32;
                    denoiser = denoiser.with_guide(process, guide.conditioned(&batch_labels, null));
                }
                let noise: &mut dyn Noise = &mut noise;
                let observe = &mut |step: usize, level: &Level<f64>, x: &[f64]| {
                    if let Some(observe) = &mut observe {
                        observe(first, step, level, &x[..count * elems]);
                    }
                };
                let x = match (edit, &measurement, &forcing, sampler.law()) {
                    (_, Some((inverse, y)), ..) => {
                        inverse.run(y, &*sampler, denoiser, &grid, noise, seeds[first], observe)?
                    }
                    (Some(edit), ..) => edited(&edit, dims[0], &*sampler, &mut denoiser, &grid, noise, observe)?,
                    (None, None, Some(forcing), Some(law)) => {
                        forced(law, &mut denoiser, &grid, noise, forcing, observe)?
                    }
                    (None, None, ..) => sample(&*sampler, &mut denoiser, &grid, noise, observe)?,
                };
                out.extend(x[..count * each].iter().map(|&v| v as f32));
            }
            Ok(())
        };
        let done = batches();
        self.guide = guide;
        done?;
        Ok(Array::f32(dims, &out))
    }

    /// The recording of a run of the network alone, if the sampler can be recorded and nothing else makes the steps: no
    /// bound of the data and no second network. Its programs are made.
    fn sheet(
        &mut self,
        config: &SampleConfig,
        sampler: &dyn Sampler,
        process: &Process,
        grid: &Grid,
    ) -> Result<Option<(Recording, Sheet)>> {
        let second = config.guidance == GuidanceKind::Autoguidance && config.cfg != 1.0;
        if second || config.clip().is_some() {
            return Ok(None);
        }
        let guidance = config.guidance();
        let Some(recording) = Recording::of(sampler, process, grid, &guidance)? else { return Ok(None) };
        let sheet = Sheet::of(&recording);
        match self.reels.iter().position(|reel| reel.fits(sheet.shape, &guidance)) {
            Some(at) => self.reels[at..].rotate_left(1),
            None => {
                self.check_weights(self.network.specs()?.len())?;
                let make = Make {
                    device: self.device.clone(),
                    network: self.network.clone(),
                    weights: self.weights.clone(),
                    dims: self.dims.clone(),
                    precision: self.precision,
                    guidance,
                };
                let reel = Reel::new(make, sheet.shape)?;
                if self.reels.len() == REELS {
                    self.reels.remove(0);
                }
                self.reels.push(reel);
            }
        }
        self.reels.last_mut().expect("one was put there").load(&sheet)?;
        Ok(Some((recording, sheet)))
    }

    /// A batch by the recording that was made last.
    fn played(
        &mut self,
        recording: &Recording,
        sheet: &Sheet,
        labels: [&[i32]; 2],
        edit: Option<Edit<'_>>,
        noise: &mut dyn Noise,
        look: Option<&mut Look<'_>>,
    ) -> Result<Vec<f64>> {
        let first = &recording.levels[0];
        let start = match edit {
            Some(edit) => edit.start(self.batch, first, noise),
            None => {
                let std = marginal_std(&self.process, first);
                noise.draw().iter().map(|z| std * z).collect()
            }
        };
        let reel = self.reels.last_mut().expect("the recording has one");
        reel.play(sheet, &recording.levels, labels, &start, noise, look)
    }

    fn check_weights(&self, want: usize) -> Result<()> {
        match self.weights.len() {
            got if got == want => Ok(()),
            got => Err(Error::Device(format!("the network has {want} tensors, {got} were given"))),
        }
    }

    /// What is requested, drawn by drafting windows of steps and verifying each by one evaluation ([`speculate`]):
    /// samples `[seeds, ..dims]`, and how many drafts were kept. The batch holds whole windows.
    ///
    /// # Errors
    /// As [`Generator::run`]; and of a sampler without Gaussian steps, of a batch that is no whole windows, and of an
    /// edit, which is not drafted.
    pub fn speculate(
        &mut self,
        config: &SampleConfig,
        request: &Request<'_>,
        window: usize,
    ) -> Result<(Array, Speculated)> {
        if window == 0 || !self.batch.is_multiple_of(window) {
            return Err(Error::Domain(format!("a batch of {} holds no whole windows of {window}", self.batch)));
        }
        if request.edit.is_some() || (config.guidance == GuidanceKind::Autoguidance && config.cfg != 1.0) {
            return Err(Error::Domain("speculation is without pictures to begin with and without a guide".into()));
        }
        if config.forcing.is_some() {
            return Err(Error::config("sample.forcing", "is not drafted: leave it or the speculation out"));
        }
        let process = self.process.clone();
        let (sampler, grid) = (config.sampler(&process)?, config.grid(&process)?);
        let kernel = sampler.gaussian().ok_or_else(|| {
            Error::config("sample.sampler", "has no Gaussian steps of one deviation to draft; take ddpm with variance small or large, or ddim with eta above 0")
        })?;
        let seeds = request.seeds;
        let (labels, contrast) = self.labels(config, request)?;
        let elems: usize = self.dims[1..].iter().product();
        let mut sum = Speculated { x: Vec::with_capacity(seeds.len() * elems), rounds: 0, drafted: 0, accepted: 0 };
        let at_once = self.batch / window;
        for first in (0..seeds.len()).step_by(at_once) {
            let count = at_once.min(seeds.len() - first);
            let at = |i: usize| first + i.min(count - 1);
            let batch_seeds: Vec<u64> = (0..at_once).map(|i| seeds[at(i)]).collect();
            let batch_labels: Vec<i32> = (0..self.batch).map(|i| labels[at(i / window)]).collect();
            let dims = self.dims.clone();
            let model = self.conditioned(&batch_labels, contrast);
            let mut denoiser =
                Denoiser::of(&process, &dims, model).with_guidance(config.guidance()).with_clip(config.clip());
            let part = speculate(kernel, &mut denoiser, &grid, &batch_seeds, window)?;
            sum.x.extend(&part.x[..count * elems]);
            sum.rounds += part.rounds;
            sum.drafted += part.drafted;
            sum.accepted += part.accepted;
        }
        let mut dims = self.dims.clone();
        dims[0] = seeds.len();
        Ok((Array::f32(dims, &sum.x.iter().map(|&v| v as f32).collect::<Vec<_>>()), sum))
    }

    /// `ln p` of each of the samples `x` `[seeds, ..dims]` in nats, under its label (of all classes without labels),
    /// as [`log_likelihood`]. Seeds are those of random directions.
    pub fn log_likelihood(
        &mut self,
        x: &[f64],
        seeds: &[u64],
        labels: Option<&[i32]>,
        flow: &Flow,
    ) -> Result<Vec<f64>> {
        let process = self.process.clone();
        let elems: usize = self.dims[1..].iter().product();
        if x.len() != seeds.len() * elems {
            let (got, n, dims) = (x.len(), seeds.len(), &self.dims[1..]);
            return Err(Error::Domain(format!("{got} numbers are no {n} samples of dims {dims:?}")));
        }
        let (labels, null) = self.labels(&SampleConfig::default(), &Request { seeds, labels, ..Request::default() })?;
        let mut out = Vec::with_capacity(seeds.len());
        for first in (0..seeds.len()).step_by(self.batch) {
            let count = self.batch.min(seeds.len() - first);
            let at = |i: usize| first + i.min(count - 1);
            let batch_seeds: Vec<u64> = (0..self.batch).map(|i| seeds[at(i)]).collect();
            let batch_labels: Vec<i32> = (0..self.batch).map(|i| labels[at(i)]).collect();
            let batch: Vec<f64> =
                (0..self.batch).flat_map(|i| x[at(i) * elems..(at(i) + 1) * elems].iter().copied()).collect();
            let dims = self.dims.clone();
            let mut denoiser = Denoiser::of(&process, &dims, self.conditioned(&batch_labels, null));
            out.extend(&log_likelihood(&mut denoiser, &batch, &batch_seeds, flow)?[..count]);
        }
        Ok(out)
    }

    /// The forcing that is asked for, of a network that can.
    fn forcing(&self, config: &SampleConfig, process: &Process) -> Result<Option<Forcing>> {
        let Some(forcing) = config.forcing else { return Ok(None) };
        let bad = |message: &str| Err(Error::config("sample.forcing", message));
        if self.network.tokens().is_none() {
            return bad("gives tokens noise levels of their own; the network has one for a whole sample");
        }
        if !process.objective.token_levels() {
            return bad(
                "gives tokens noise levels of their own; this network was trained with one for a whole sample \
                        (process.preset = \"diffusion_forcing\" has them)",
            );
        }
        Ok(Some(forcing))
    }

    /// A label for each seed, and that of the contrast.
    fn labels(&self, config: &SampleConfig, request: &Request<'_>) -> Result<(Vec<i32>, i32)> {
        let classes = self.network.classes();
        let Request { seeds, labels, negative, .. } = *request;
        match config.guidance {
            _ if config.cfg == 1.0 => {}
            GuidanceKind::Cfg if classes == 0 => {
                return Err(Error::config("sample.cfg", "guidance needs a network with classes; model.classes is 0"));
            }
            GuidanceKind::Autoguidance if self.guide.is_none() => {
                let message = "is autoguidance, which needs a second network: give one with --guide";
                return Err(Error::config("sample.guidance", message));
            }
            GuidanceKind::Cfg | GuidanceKind::Autoguidance => {}
        }
        let null = classes as i32;
        let known = |l: i32| match (0..=null).contains(&l) {
            true => Ok(l),
            false => Err(Error::Domain(format!("there is no class {l}; the network has {classes}"))),
        };
        let labels = match labels {
            Some(l) if l.len() != seeds.len() => {
                return Err(Error::Domain(format!("{} labels for {} seeds", l.len(), seeds.len())));
            }
            Some(l) => l.iter().map(|&l| known(l)).collect::<Result<Vec<_>>>()?,
            None => vec![null; seeds.len()],
        };
        Ok((labels, negative.map_or(Ok(null), known)?))
    }

    /// The network under these labels, one per sample of a batch, and with this one as the contrast.
    pub fn conditioned<'a>(&'a mut self, labels: &'a [i32], contrast: i32) -> Conditioned<'a> {
        Conditioned { generator: self, labels, contrast }
    }

    /// The class count, which is the null label.
    pub fn null_label(&self) -> i32 {
        self.network.classes() as i32
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Dims of a batch.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Runs a program on inputs that follow the weights.
    pub(super) fn execute(&mut self, form: Form, inputs: &[Array]) -> Result<Vec<Array>> {
        let at = match self.programs.iter().position(|(f, _)| *f == form) {
            Some(at) => at,
            None => {
                let bound = self.compile(form)?;
                self.programs.push((form, bound));
                self.programs.len() - 1
            }
        };
        let bound = &self.programs[at].1;
        for (buffer, array) in bound.inputs()[self.weights.len()..].iter().zip(inputs) {
            buffer.write(array).map_err(failed)?;
        }
        bound.run().map_err(failed)?;
        bound.outputs().iter().map(|b| b.download().map_err(failed)).collect()
    }

    fn compile(&self, form: Form) -> Result<Bound> {
        let variances = self.process.variance != Variance::Fixed;
        let program = match form {
            Form::Plain => evaluation_program(&self.network, self.batch, false, variances)?,
            Form::Guided => evaluation_program(&self.network, self.batch, true, variances)?,
            Form::Jvp => jvp_program(&self.network, self.batch)?,
            Form::Vjp => vjp_program(&self.network, self.batch)?,
        };
        self.check_weights(program.params.len())?;
        let options = self.device.options().with_precision(self.precision);
        let compiled = compile(&program.func, &options).map_err(failed)?;
        let loaded = self.device.load(compiled.exec).map_err(failed)?;
        let mut inputs = self.weights.clone();
        let types: Vec<Type> = program.inputs.iter().map(|p| p.ty.clone()).collect();
        inputs.extend(self.device.zeros_all(&types).map_err(failed)?);
        loaded.bind(&inputs).map_err(failed)
    }
}

/// A batch of samples that begin with, or keep parts of, one.
fn edited(
    edit: &Edit<'_>,
    batch: usize,
    sampler: &dyn Sampler,
    denoiser: &mut Denoiser<'_>,
    grid: &Grid,
    noise: &mut dyn Noise,
    observe: &mut dyn FnMut(usize, &Level<f64>, &[f64]),
) -> Result<Vec<f64>> {
    let start = edit.start(batch, &grid.levels[0], noise);
    match edit.keep {
        None => sample_from(start, sampler, denoiser, grid, noise, observe),
        Some(keep) => {
            let known = Known { data: edit.data(batch), mask: keep.repeat(batch) };
            inpaint(start, sampler, denoiser, grid, noise, &known, edit.repaint, observe)
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device(error.to_string())
}
