//! The programs that samplers run: the network for a batch, under one label or two, and its derivatives.

use crate::network::{Inputs, Network, Outputs};
use crate::params::{ParamSpec, Params, Scope};
use crate::step::Port;
use crate::{Error, Result};
use dnx_ir::{DType, Func, Graph, Tensor, Type};
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
pub(super) fn evaluation_program(
    network: &Network,
    batch: usize,
    guided: bool,
    variances: bool,
) -> Result<ForwardProgram> {
    let g = Graph::new("forward");
    let params = network.specs()?;
    let declared = Params::declare(&g, &params);
    let inputs = Inputs::declare(&g, batch, network)?;
    let contrast = guided.then(|| contrast(&g, network, batch)).transpose()?;
    let outputs = evaluated(network, &declared.root(), inputs, contrast);
    let mut results = vec![outputs.prediction];
    results.extend(outputs.variance.filter(|_| variances));
    Ok(program(g.finish(&results)?, params))
}

/// Declares the labels of the contrast, `i32[B]`.
///
/// # Errors
/// If the network has no classes.
pub(super) fn contrast<'g>(g: &'g Graph, network: &Network, batch: usize) -> Result<Tensor<'g>> {
    if network.classes() == 0 {
        return Err(Error::config("sample.cfg", "guidance needs a network with classes; model.classes is 0"));
    }
    Ok(g.param("contrast", Type::new(DType::I32, [batch])))
}

/// The network at these inputs; with labels of a contrast under both labels, one batch after the other.
pub(super) fn evaluated<'g>(
    network: &Network,
    root: &Scope<'_, 'g>,
    inputs: Inputs<'g>,
    contrast: Option<Tensor<'g>>,
) -> Outputs<'g> {
    let (Some(label), Some(contrast)) = (inputs.label, contrast) else {
        return network.evaluate(root, inputs, None);
    };
    let twice = |t: Tensor<'g>| t.graph().concat(&[t, t], 0);
    let both = Inputs {
        x: twice(inputs.x),
        time: twice(inputs.time),
        sigma: twice(inputs.sigma),
        label: Some(label.graph().concat(&[label, contrast], 0)),
        second: inputs.second.map(twice),
    };
    network.evaluate(root, both, None)
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
