//! A generator as the network of a denoiser.

use super::generator::{Form, Generator};
use super::{Branch, Model, NetworkCall};
use crate::{Error, Result};
use dnx_ir::Array;

/// A generator's network with the labels of a batch: the [`Model`] that a [`Denoiser`] evaluates.
pub struct Conditioned<'a> {
    pub(super) generator: &'a mut Generator,
    pub(super) labels: &'a [i32],
    pub(super) contrast: i32,
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
