//! The network of a sampler, compiled once for a device.

use super::{
    Branch, Denoiser, Flow, Forcing, Grid, GuidanceKind, Inverse, Known, Model, NetworkCall, Noise, Repaint,
    SampleConfig, SampleNoise, Sampler, SamplerKind, Speculated, forced, inpaint, log_likelihood, noised, sample,
    sample_from, speculate,
};
use crate::network::{Inputs, Network};
use crate::params::{ParamSpec, Params};
use crate::process::{Level, Process, Variance};
use crate::step::Port;
use crate::{Error, Result};
use dnx_codegen::{Precision, compile};
use dnx_ir::{Array, DType, Func, Graph, Tensor, Type};
use dnx_runtime::{Bound, Buffer, Device};
use std::sync::Arc;

/// The network as a function of weights and one call.
#[derive(Clone, Debug)]
pub struct ForwardProgram {
    /// Inputs: all parameters in the network's order, then `inputs`. The first result is like `x`, or twice as long.
    pub func: Func,
    /// The parameters.
    pub params: Vec<ParamSpec>,
    /// `x` `[B, ..]`, `time` `[B]`, `sigma` `[B]`, `label` `i32[B]` if the network is conditional, `second` `[B]` if it
    /// takes two times, and `contrast` `i32[B]` if the program has two branches; a derivative's direction last.
    pub inputs: Vec<Port>,
}

/// Builds the network for a batch. A guided program evaluates it under `label` and under `contrast` as one batch of
/// twice the size, and gives `[2 B, ..]`: what is made of the two is the [`super::Guidance`]'s.
///
/// # Errors
/// If guidance is asked of a network without classes.
pub fn forward_program(network: &Network, batch: usize, guided: bool) -> Result<ForwardProgram> {
    evaluation_program(network, batch, guided, false)
}

/// [`forward_program`], with the network's variances as a second result if they are wanted.
fn evaluation_program(network: &Network, batch: usize, guided: bool, variances: bool) -> Result<ForwardProgram> {
    let classes = network.classes();
    if guided && classes == 0 {
        return Err(Error::config("sample.cfg", "guidance needs a network with classes; model.classes is 0"));
    }
    let g = Graph::new("forward");
    let params = network.specs()?;
    let declared = Params::declare(&g, &params);
    let inputs = Inputs::declare(&g, batch, network)?;
    let root = declared.root();
    let outputs = match inputs.label {
        Some(label) if guided => {
            let contrast = g.param("contrast", Type::new(DType::I32, [batch]));
            let twice = |t| g.concat(&[t, t], 0);
            let both = Inputs {
                x: twice(inputs.x),
                time: twice(inputs.time),
                sigma: twice(inputs.sigma),
                label: Some(g.concat(&[label, contrast], 0)),
                second: inputs.second.map(twice),
            };
            network.evaluate(&root, both, None)
        }
        _ => network.evaluate(&root, inputs, None),
    };
    let mut results = vec![outputs.prediction];
    results.extend(outputs.variance.filter(|_| variances));
    Ok(program(g.finish(&results)?, params))
}

fn program(func: Func, params: Vec<ParamSpec>) -> ForwardProgram {
    let inputs = func.params[params.len()..]
        .iter()
        .map(|p| Port { name: p.name.to_string(), ty: func.ty(p.value).clone() })
        .collect();
    ForwardProgram { func, params, inputs }
}

/// The output and its derivative along a direction of `x`, which is the last input.
pub fn jvp_program(network: &Network, batch: usize) -> Result<ForwardProgram> {
    let ForwardProgram { func, params, .. } = forward_program(network, batch, false)?;
    let derived = dnx_autodiff::jvp(&func, &[params.len()])?;
    Ok(program(derived, params))
}

/// The transposed derivative of the output by `x`, applied to a cotangent, which is the last input.
pub fn vjp_program(network: &Network, batch: usize) -> Result<ForwardProgram> {
    let ForwardProgram { func, params, .. } = forward_program(network, batch, false)?;
    let func = Arc::new(func);
    let g = Graph::new("along");
    let args: Vec<Tensor> = func.params.iter().map(|p| g.param(&p.name, func.ty(p.value).clone())).collect();
    let cotangent = g.param("cotangent", func.ty(func.results[0]).clone());
    let output = g.call(&func, &args)[0];
    let along = g.finish(&[(output * cotangent).sum_all()])?;
    Ok(program(dnx_autodiff::grad(&along, &[params.len()])?, params))
}

/// The programs of a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Guided,
    Jvp,
    Vjp,
}

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

/// A network with weights on a device, drawing samples in batches of one size.
pub struct Generator {
    device: Device,
    network: Network,
    process: Process,
    weights: Vec<Buffer>,
    batch: usize,
    dims: Vec<usize>,
    precision: Precision,
    programs: Vec<(Form, Bound)>,
    guide: Option<Box<Generator>>,
}

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
            guide: None,
        })
    }

    /// The same generator with the network evaluated at this precision; states and noise stay `f32`.
    pub fn with_precision(self, precision: Precision) -> Generator {
        Generator { precision, programs: vec![], ..self }
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
        observe: &mut dyn FnMut(usize, usize, &Level<f64>, &[f64]),
    ) -> Result<Array> {
        self.run(config, &Request { seeds, labels, ..Request::default() }, observe)
    }

    /// What is requested, `[seeds, ..dims]`. `observe` sees each batch's states: the index of its first seed, the
    /// step, the level and the states.
    pub fn run(
        &mut self,
        config: &SampleConfig,
        request: &Request<'_>,
        observe: &mut dyn FnMut(usize, usize, &Level<f64>, &[f64]),
    ) -> Result<Array> {
        let process = self.process.clone();
        let sampler = config.sampler(&process)?;
        let Request { seeds, edit, .. } = *request;
        let grid = config.grid(&process)?;
        let grid = edit.map_or(Ok(grid.clone()), |e| grid.tail(e.strength))?;
        if config.sampler == SamplerKind::MeanFlow && !self.network.second_time() {
            let message =
                "mean_flow jumps with a network of two times; this one takes one (process.preset = \"meanflow\")";
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
                    observe(first, step, level, &x[..count * elems]);
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
    fn execute(&mut self, form: Form, inputs: &[Array]) -> Result<Vec<Array>> {
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
        if program.params.len() != self.weights.len() {
            let (want, got) = (program.params.len(), self.weights.len());
            return Err(Error::Device(format!("the network has {want} tensors, {got} were given")));
        }
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
    let data: Vec<f64> = edit.init.iter().map(|&v| v as f64).collect::<Vec<_>>().repeat(batch);
    let start = noised(&data, &grid.levels[0], noise);
    match edit.keep {
        None => sample_from(start, sampler, denoiser, grid, noise, observe),
        Some(keep) => {
            let known = Known { data, mask: keep.repeat(batch) };
            inpaint(start, sampler, denoiser, grid, noise, &known, edit.repaint, observe)
        }
    }
}

/// A generator's network with the labels of a batch: the [`Model`] that a [`Denoiser`] evaluates.
pub struct Conditioned<'a> {
    generator: &'a mut Generator,
    labels: &'a [i32],
    contrast: i32,
}

impl Conditioned<'_> {
    /// The inputs of a call under these branches.
    fn inputs(&self, call: &NetworkCall<'_>) -> Result<Vec<Array>> {
        let batch = self.generator.batch;
        let dims: Vec<usize> = std::iter::once(batch).chain(self.generator.network.tokens()).collect();
        // One level of a sample is that of all its tokens.
        let (wanted, given) = (dims.iter().product::<usize>(), call.levels.len());
        if given != batch && given != wanted {
            return Err(Error::Domain(format!("{given} noise levels, where the network takes {wanted}")));
        }
        let copies = wanted / given;
        let each = |v: &[f64]| {
            let all: Vec<f32> = v.iter().flat_map(|&v| std::iter::repeat_n(v as f32, copies)).collect();
            Array::f32(dims.clone(), &all)
        };
        let sigmas: Vec<f64> = call.levels.iter().map(|l| l.sigma).collect();
        let mut inputs = vec![call.x.clone(), each(call.times), each(&sigmas)];
        let mut labels = call.branches.iter().filter_map(|&b| self.label(b));
        inputs.extend(labels.next());
        inputs.extend(self.generator.network.second_time().then(|| each(call.seconds)));
        inputs.extend(labels);
        Ok(inputs)
    }

    /// The labels of a branch, if the network is conditional.
    fn label(&self, branch: Branch) -> Option<Array> {
        let batch = self.generator.batch;
        (self.generator.network.classes() > 0).then(|| match branch {
            Branch::Conditional => Array::i32([batch], self.labels),
            Branch::Contrast => Array::i32([batch], &vec![self.contrast; batch]),
        })
    }

    fn single(&self, call: &NetworkCall<'_>) -> Result<Vec<Array>> {
        let [_] = call.branches else {
            return Err(Error::Domain(format!("a derivative is of one branch, not of {}", call.branches.len())));
        };
        self.inputs(call)
    }
}

impl Model for Conditioned<'_> {
    fn forward(&mut self, call: &NetworkCall<'_>) -> Result<Array> {
        Ok(self.forward_ranges(call)?.0)
    }

    fn forward_ranges(&mut self, call: &NetworkCall<'_>) -> Result<(Array, Option<Array>)> {
        let form = match call.branches {
            [_] => Form::Plain,
            [Branch::Conditional, Branch::Contrast] => Form::Guided,
            other => return Err(Error::Domain(format!("a network is not evaluated under {other:?}"))),
        };
        let mut results = self.generator.execute(form, &self.inputs(call)?)?.into_iter();
        let output = results.next().ok_or_else(|| Error::Device("the network gave nothing".into()))?;
        Ok((output, results.next()))
    }

    fn jvp(&mut self, call: &NetworkCall<'_>, tangent: &Array) -> Result<(Array, Array)> {
        let mut inputs = self.single(call)?;
        inputs.push(tangent.clone());
        let mut results = self.generator.execute(Form::Jvp, &inputs)?;
        let moved = results.swap_remove(1);
        Ok((results.swap_remove(0), moved))
    }

    fn vjp(&mut self, call: &NetworkCall<'_>, cotangent: &Array) -> Result<Array> {
        let mut inputs = self.single(call)?;
        inputs.push(cotangent.clone());
        Ok(self.generator.execute(Form::Vjp, &inputs)?.swap_remove(0))
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device(error.to_string())
}
