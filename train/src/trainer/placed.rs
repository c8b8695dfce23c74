//! The inputs and results of a compiled step on one device or on a team: whole arrays on the host, parts on the devices.

use crate::{Error, Result};
use dnx_codegen::exec::Executable;
use dnx_ir::parts::{part, whole};
use dnx_ir::{Array, Builder, Func, Graph, Mesh, Op, ReduceKind, Sharding, Type};
use dnx_runtime::{Bound, Buffer, Team, TeamBound};

/// A compiled step on its memory.
pub struct Placed {
    on: On,
    mesh: Mesh,
    /// Global types of inputs and results.
    inputs: Vec<Type>,
    results: Vec<Type>,
    /// Of several processes: the greatest of a number of each.
    vote: Option<TeamBound>,
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
        let vote = if team.ranks().len() < team.size() { Some(vote(team, &mesh)?) } else { None };
        Ok(Placed { on, mesh, inputs: params, results, vote })
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
            On::Team(bound) => self.joined(bound, &self.inputs[i], |rank| Ok(bound.inputs(rank)?[i].clone())),
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
            On::Team(bound) => self.joined(bound, &self.results[i], |rank| Ok(bound.outputs(rank)?[i].clone())),
        }
    }

    /// A whole array from its parts; one part is enough where all devices have the same. Parts of other processes are
    /// gathered, so all processes must call this.
    fn joined(&self, bound: &TeamBound, ty: &Type, of: impl Fn(usize) -> Result<Buffer>) -> Result<Array> {
        let team = bound.program().team();
        if ty.sharding.is_replicated() {
            return Ok(of(team.ranks().start)?.download()?);
        }
        let parts = team.ranks().map(of).collect::<Result<Vec<Buffer>>>()?;
        if parts.len() == self.mesh.devices() {
            let parts = parts.iter().map(Buffer::download).collect::<dnx_runtime::Result<Vec<Array>>>()?;
            return whole(&parts, ty, &self.mesh).map_err(Error::Graph);
        }
        let g = Graph::on_mesh("gather", self.mesh.clone());
        let x = g.param("x", ty.clone());
        let gather = team.compile(&g.finish(&[x.reshard(Sharding::replicated())])?, &[])?;
        let results = gather.run(&parts.into_iter().map(|part| vec![part]).collect::<Vec<_>>())?;
        Ok(results[0][0].download()?)
    }

    /// Whether this is the process of the first rank, which writes the run's folder.
    pub fn is_first(&self) -> bool {
        self.team().is_none_or(|bound| bound.program().team().ranks().start == 0)
    }

    /// Whether there are other processes.
    pub fn has_others(&self) -> bool {
        self.vote.is_some()
    }

    /// Whether any process says so. All processes must call this; each waits for the others.
    pub fn any(&self, here: bool) -> Result<bool> {
        let Some(vote) = &self.vote else { return Ok(here) };
        let ranks = vote.program().team().ranks();
        for rank in ranks.clone() {
            vote.inputs(rank)?[0].write(&Array::f32([1], &[f32::from(u8::from(here))]))?;
        }
        vote.run()?;
        Ok(vote.outputs(ranks.start)?[0].download()?.get(0).to_f64() > 0.0)
    }

    /// What this process made of something that all of them do; an error also if another process failed in it.
    pub fn together<T>(&self, here: Result<T>) -> Result<T> {
        let failed = self.any(here.is_err())?;
        match here {
            Ok(_) if failed => Err(Error::Process),
            here => here,
        }
    }
}

/// The greatest of one number per device.
fn vote(team: &Team, mesh: &Mesh) -> Result<TeamBound> {
    let mut b = Builder::on_mesh("vote", mesh.clone());
    let x = b.param("x", Type::f32([1]));
    let axes = mesh.axes.iter().map(|(name, _)| name.clone()).collect();
    let y = b.emit(Op::AllReduce { kind: ReduceKind::Max, axes }, &[x])?;
    let zeros = |rank| team.zeros_all(rank, &[Type::f32([1])]);
    let inputs = team.ranks().map(zeros).collect::<dnx_runtime::Result<Vec<Vec<Buffer>>>>()?;
    Ok(team.compile(&b.finish(&[y]), &[])?.bind(&inputs)?)
}
