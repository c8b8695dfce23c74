//! The inputs and results of a compiled step on one device or on a team: whole arrays on the host, parts on the devices.

use crate::{Error, Result};
use dnx_codegen::exec::Executable;
use dnx_ir::parts::{part, whole};
use dnx_ir::{Array, Func, Mesh, Type};
use dnx_runtime::{Bound, Buffer, Team, TeamBound};

/// A compiled step on its memory.
pub struct Placed {
    on: On,
    mesh: Mesh,
    /// Global types of inputs and results.
    inputs: Vec<Type>,
    results: Vec<Type>,
}

enum On {
    Device(Bound),
    Team(TeamBound),
}

impl Placed {
    /// Loads a step that was compiled from `func` on all devices of a team, with these inputs.
    ///
    /// # Errors
    /// If the devices refuse it or have no room, or there are not as many as its mesh wants.
    pub fn new(team: &Team, func: &Func, exec: Executable, inputs: &[Array]) -> Result<Placed> {
        let types = |all: Vec<&Type>| all.into_iter().cloned().collect::<Vec<Type>>();
        let (mesh, params, results) = (func.mesh.clone(), types(func.param_types()), types(func.result_types()));
        let on = match team.size() {
            1 => {
                let device = &team.devices()[0];
                On::Device(device.load(exec)?.bind(&device.upload_all(inputs)?)?)
            }
            _ => {
                let program = team.load(exec)?;
                let mut all = vec![];
                for rank in team.ranks() {
                    let own = inputs.iter().zip(&params).map(|(a, ty)| part(a, &ty.sharding, &mesh, rank));
                    let own = own.collect::<dnx_ir::Result<Vec<Array>>>().map_err(Error::Graph)?;
                    all.push(team.upload_all(rank, &own)?);
                }
                On::Team(program.bind(&all)?)
            }
        };
        Ok(Placed { on, mesh, inputs: params, results })
    }

    /// Runs the step.
    ///
    /// # Errors
    /// If a device failed; which one is said.
    pub fn run(&self) -> Result<()> {
        match &self.on {
            On::Device(bound) => Ok(bound.run()?),
            On::Team(bound) => Ok(bound.run()?),
        }
    }

    /// The executable, the same on every device.
    pub fn exec(&self) -> &Executable {
        match &self.on {
            On::Device(bound) => bound.program().exec(),
            On::Team(bound) => bound.program().exec(),
        }
    }

    /// The step on its one device.
    pub fn bound(&self) -> Option<&Bound> {
        match &self.on {
            On::Device(bound) => Some(bound),
            On::Team(_) => None,
        }
    }

    /// The step on its team.
    pub fn team(&self) -> Option<&TeamBound> {
        match &self.on {
            On::Device(_) => None,
            On::Team(bound) => Some(bound),
        }
    }

    /// The memory of input `i` where it is whole on one device.
    pub fn buffer(&self, i: usize) -> Option<&Buffer> {
        self.bound().map(|bound| &bound.inputs()[i])
    }

    /// The mesh it runs on.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The global type of input `i`.
    pub fn ty(&self, i: usize) -> &Type {
        &self.inputs[i]
    }

    /// Replaces input `i`.
    pub fn write(&self, i: usize, array: &Array) -> Result<()> {
        match &self.on {
            On::Device(bound) => Ok(bound.inputs()[i].write(array)?),
            On::Team(bound) => {
                for rank in bound.program().team().ranks() {
                    let own = part(array, &self.inputs[i].sharding, &self.mesh, rank).map_err(Error::Graph)?;
                    bound.inputs(rank)?[i].write(&own)?;
                }
                Ok(())
            }
        }
    }

    /// Input `i`, brought down.
    pub fn read(&self, i: usize) -> Result<Array> {
        match &self.on {
            On::Device(bound) => Ok(bound.inputs()[i].download()?),
            On::Team(bound) => self.joined(&self.inputs[i], |rank| Ok(bound.inputs(rank)?[i].download()?)),
        }
    }

    /// The part of input `i` that one device holds.
    pub fn read_part(&self, i: usize, rank: usize) -> Result<Array> {
        match &self.on {
            On::Device(bound) => Ok(bound.inputs()[i].download()?),
            On::Team(bound) => Ok(bound.inputs(rank)?[i].download()?),
        }
    }

    /// Result `i`, brought down.
    pub fn result(&self, i: usize) -> Result<Array> {
        match &self.on {
            On::Device(bound) => Ok(bound.outputs()[i].download()?),
            On::Team(bound) => self.joined(&self.results[i], |rank| Ok(bound.outputs(rank)?[i].download()?)),
        }
    }

    /// A whole array from its parts; one part is enough where all devices have the same.
    fn joined(&self, ty: &Type, of: impl Fn(usize) -> Result<Array>) -> Result<Array> {
        if ty.sharding.is_replicated() {
            return of(0);
        }
        let parts = (0..self.mesh.devices()).map(of).collect::<Result<Vec<Array>>>()?;
        whole(&parts, ty, &self.mesh).map_err(Error::Graph)
    }
}
