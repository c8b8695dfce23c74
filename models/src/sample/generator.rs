//! The network of a sampler, compiled once for a device.

use super::{Denoiser, NetworkCall, Noise, SampleConfig, SampleNoise, sample};
use crate::network::{Inputs, Network};
use crate::params::{ParamSpec, Params};
use crate::process::{Level, Process};
use crate::step::Port;
use crate::{Error, Result};
use dnx_codegen::{Precision, compile};
use dnx_ir::{Array, DType, Func, Graph, Type};
use dnx_runtime::{Bound, Buffer, Device};

/// The network as a function of weights and one call.
#[derive(Clone, Debug)]
pub struct ForwardProgram {
    /// Inputs: all parameters in the network's order, then `inputs`. One result, like `x`.
    pub func: Func,
    /// The parameters.
    pub params: Vec<ParamSpec>,
    /// `x` `[B, ..]`, `time` `[B]`, `sigma` `[B]`, `label` `i32[B]` if the network is conditional, `second` `[B]` if it
    /// takes two times, and `guidance` `[]` if the program is guided.
    pub inputs: Vec<Port>,
}

/// Builds the network for a batch. A guided program evaluates the conditional and the unconditional network as one
/// batch of twice the size and gives `u + guidance (c - u)`; the null label is the network's class count.
///
/// # Errors
/// If guidance is asked of a network without classes.
pub fn forward_program(network: &Network, batch: usize, guided: bool) -> Result<ForwardProgram> {
    let classes = network.classes();
    if guided && classes == 0 {
        return Err(Error::config("sample.cfg", "guidance needs a network with classes; model.classes is 0"));
    }
    let g = Graph::new("forward");
    let params = network.specs()?;
    let declared = Params::declare(&g, &params);
    let inputs = Inputs::declare(&g, batch, network)?;
    let root = declared.root();
    let result = match inputs.label {
        Some(label) if guided => {
            let scale = g.param("guidance", Type::f32([]));
            let null = g.full(DType::I32, &[batch], classes as f64);
            let twice = |t| g.concat(&[t, t], 0);
            let both = Inputs {
                x: twice(inputs.x),
                time: twice(inputs.time),
                sigma: twice(inputs.sigma),
                label: Some(g.concat(&[label, null], 0)),
                second: inputs.second.map(twice),
            };
            let out = network.forward(&root, both);
            let (c, u) = (out.slice(0, 0, batch), out.slice(0, batch, 2 * batch));
            u + (c - u) * scale
        }
        _ => network.forward(&root, inputs),
    };
    let func = g.finish(&[result])?;
    let inputs = func.params[params.len()..]
        .iter()
        .map(|p| Port { name: p.name.to_string(), ty: func.ty(p.value).clone() })
        .collect();
    Ok(ForwardProgram { func, params, inputs })
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
    plain: Option<Bound>,
    guided: Option<Bound>,
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
            plain: None,
            guided: None,
        })
    }

    /// The same generator with the network evaluated at this precision; states and noise stay `f32`.
    pub fn with_precision(self, precision: Precision) -> Generator {
        Generator { precision, plain: None, guided: None, ..self }
    }

    /// One sample per seed, `[seeds, ..dims]`. `labels` has one class per seed and is ignored by an unconditional
    /// network; `None` draws from all classes (the null label). `observe` sees each batch's states: the index of its
    /// first seed, the step, the level and the states.
    pub fn sample(
        &mut self,
        config: &SampleConfig,
        seeds: &[u64],
        labels: Option<&[i32]>,
        observe: &mut dyn FnMut(usize, usize, &Level<f64>, &[f64]),
    ) -> Result<Array> {
        let process = self.process.clone();
        let sampler = config.sampler(&process)?;
        let grid = config.grid(&process)?;
        let classes = self.network.classes();
        if config.cfg != 1.0 && classes == 0 {
            return Err(Error::config("sample.cfg", "guidance needs a network with classes; model.classes is 0"));
        }
        let null = classes as i32;
        let labels = match labels {
            Some(l) if l.len() != seeds.len() => {
                return Err(Error::Domain(format!("{} labels for {} seeds", l.len(), seeds.len())));
            }
            Some(l) => match l.iter().find(|&&l| !(0..=null).contains(&l)) {
                Some(l) => return Err(Error::Domain(format!("there is no class {l}; the network has {classes}"))),
                None => l.to_vec(),
            },
            None => vec![null; seeds.len()],
        };
        let elems: usize = self.dims[1..].iter().product();
        let mut out: Vec<f32> = Vec::with_capacity(seeds.len() * elems);
        for first in (0..seeds.len()).step_by(self.batch) {
            let count = self.batch.min(seeds.len() - first);
            // A short last batch repeats its last sample; what is repeated is dropped.
            let at = |i: usize| first + i.min(count - 1);
            let batch_seeds: Vec<u64> = (0..self.batch).map(|i| seeds[at(i)]).collect();
            let batch_labels: Vec<i32> = (0..self.batch).map(|i| labels[at(i)]).collect();
            let dims = self.dims.clone();
            let mut noise = SampleNoise::new(&batch_seeds, elems);
            let mut denoiser = Denoiser::new(&process, &dims, |call| self.evaluate(call, &batch_labels))
                .with_guidance(config.guidance())
                .with_clip(config.clip());
            let noise: &mut dyn Noise = &mut noise;
            let x = sample(&*sampler, &mut denoiser, &grid, noise, &mut |step, level, x| {
                observe(first, step, level, &x[..count * elems])
            })?;
            out.extend(x[..count * elems].iter().map(|&v| v as f32));
        }
        let mut dims = self.dims.clone();
        dims[0] = seeds.len();
        Ok(Array::f32(dims, &out))
    }

    /// One evaluation of the network for a batch with these labels.
    pub fn evaluate(&mut self, call: &NetworkCall<'_>, labels: &[i32]) -> Result<Array> {
        let guided = call.guidance != 1.0;
        let conditional = self.network.classes() > 0;
        if guided && self.guided.is_none() {
            self.guided = Some(self.compile(true)?);
        } else if !guided && self.plain.is_none() {
            self.plain = Some(self.compile(false)?);
        }
        let bound = if guided { &self.guided } else { &self.plain };
        let bound = bound.as_ref().expect("compiled above");
        let each = |value: f64| Array::f32([self.batch], &vec![value as f32; self.batch]);
        let mut inputs = vec![call.x.clone(), each(call.time), each(call.level.sigma)];
        inputs.extend(conditional.then(|| Array::i32([self.batch], labels)));
        inputs.extend(self.network.second_time().then(|| each(call.second)));
        inputs.extend(guided.then(|| Array::f32([], &[call.guidance as f32])));
        for (buffer, array) in bound.inputs()[self.weights.len()..].iter().zip(&inputs) {
            buffer.write(array).map_err(failed)?;
        }
        bound.run().map_err(failed)?;
        bound.outputs()[0].download().map_err(failed)
    }

    fn compile(&self, guided: bool) -> Result<Bound> {
        let program = forward_program(&self.network, self.batch, guided)?;
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

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device(error.to_string())
}
