//! Tracing: a Rust function over graph tensors, made a program once per signature.
//!
//! The *signature* is the list of argument types. The function runs only while tracing: what it computes on the
//! host becomes constants of that signature's program.

use crate::{Buffer, Device, Program, Result};
use dnx_ir::{Graph, Tensor, Type};
use std::collections::HashMap;
use std::sync::Mutex;

type Trace = dyn for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Vec<Tensor<'g>> + Send + Sync;

/// A function that is traced, compiled and cached per signature.
///
/// ```no_run
/// use dnx_runtime::{Device, Jit};
/// let norm = Jit::new(Device::cpu(), "norm", |_, args| vec![args[0].square().sum_all().sqrt()]);
/// ```
pub struct Jit {
    device: Device,
    name: String,
    donate: Vec<(usize, usize)>,
    trace: Box<Trace>,
    programs: Mutex<HashMap<Vec<Type>, Program>>,
}

impl Jit {
    /// A function for this device; `name` names its programs.
    pub fn new<F>(device: Device, name: &str, trace: F) -> Jit
    where
        F: for<'g> Fn(&'g Graph, &[Tensor<'g>]) -> Vec<Tensor<'g>> + Send + Sync + 'static,
    {
        let (name, trace, programs) = (name.to_string(), Box::new(trace), Mutex::default());
        Jit { device, name, donate: vec![], trace, programs }
    }

    /// The same function with these `(input, output)` pairs donated: each run overwrites those inputs.
    pub fn with_donate(mut self, donate: &[(usize, usize)]) -> Jit {
        self.donate = donate.to_vec();
        self
    }

    /// The program for arguments of these types, traced and compiled if it is the first time.
    pub fn program(&self, types: &[Type]) -> Result<Program> {
        let mut programs = self.programs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(program) = programs.get(types) {
            return Ok(program.clone());
        }
        let graph = Graph::new(&self.name);
        let args: Vec<Tensor<'_>> =
            types.iter().enumerate().map(|(i, ty)| graph.param(&format!("arg{i}"), ty.clone())).collect();
        let results = (self.trace)(&graph, &args);
        let program = self.device.compile(&graph.finish(&results)?, &self.donate)?;
        programs.insert(types.to_vec(), program.clone());
        Ok(program)
    }

    /// Runs on these arguments.
    pub fn run(&self, args: &[Buffer]) -> Result<Vec<Buffer>> {
        let types: Vec<Type> = args.iter().map(|b| b.ty().clone()).collect();
        self.program(&types)?.run(args)
    }

    /// How many signatures have been traced.
    pub fn signatures(&self) -> usize {
        self.programs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).len()
    }
}
