//! Declaring parameters by path while a network is built.
//!
//! A [`Params`] belongs to one graph and holds its parameters; a [`Scope`] is a path into it. Asking a scope for
//! a parameter declares it the first time and gives the same tensor afterwards, so a network may be applied
//! twice in one graph (guidance, two times) and its weights are shared. Names are the published tensor names,
//! as `blocks.3.attn.qkv.weight`, in PyTorch's layout (`[out, in]` for linear layers).
//!
//! Repeated blocks are built once as a function of their own and called per block: see [`Scope::call`].

use crate::{Error, Init, Layout, Result};
use dnx_ir::{Array, Func, Graph, Tensor, Type};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// A parameter of a network. Its dtype is `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Published tensor name.
    pub name: String,
    /// Dims.
    pub dims: Vec<usize>,
    /// How it starts.
    pub init: Init,
    /// Whether training changes it. Fixed tables that checkpoints store (`pos_embed`) are not trainable.
    pub trainable: bool,
    /// How many matrices are stacked along dim 0. Where it is more than 1 the tensor of a graph has a dim of its own for
    /// them, so that each can be split; files have the stack.
    pub stacked: usize,
}

impl ParamSpec {
    /// The type of the tensor in a graph.
    pub fn ty(&self) -> Type {
        match (self.stacked, &self.dims[..]) {
            (0 | 1, dims) => Type::f32(dims),
            (n, dims) => Type::f32([&[n, dims[0] / n], &dims[1..]].concat()),
        }
    }

    /// The number of elements.
    pub fn elems(&self) -> usize {
        self.dims.iter().product()
    }
}

/// The number of values in all parameters, and in the trainable ones.
pub fn count(specs: &[ParamSpec]) -> (usize, usize) {
    let sum = |all: bool| specs.iter().filter(|s| all || s.trainable).map(ParamSpec::elems).sum();
    (sum(true), sum(false))
}

/// Values for `specs` in their order, looked up by name.
///
/// # Errors
/// Names the first tensor that is missing or has other dims.
pub fn by_name(specs: &[ParamSpec], mut lookup: impl FnMut(&str) -> Option<Array>) -> Result<Vec<Array>> {
    specs
        .iter()
        .map(|s| {
            let wrong = |message: String| Error::Weights { name: s.name.clone(), message };
            let array = lookup(&s.name).ok_or_else(|| wrong("is missing".into()))?;
            if array.dims() != s.dims {
                return Err(wrong(format!("has dims {:?}, the network wants {:?}", array.dims(), s.dims)));
            }
            Ok(array.reshaped(s.ty().dims))
        })
        .collect()
}

/// The parameters of a graph under construction.
pub struct Params<'g> {
    graph: &'g Graph,
    layout: Layout,
    /// Where the names of these parameters go on in the network, which is what the layout's rules know.
    place: String,
    entries: RefCell<Vec<(ParamSpec, Tensor<'g>)>>,
    index: RefCell<HashMap<String, usize>>,
}

impl<'g> Params<'g> {
    /// No parameters yet; they become parameters of the graph in the order in which they are first asked for.
    pub fn new(graph: &'g Graph) -> Params<'g> {
        Params::laid(graph, &Layout::single())
    }

    /// No parameters yet, of a graph over the mesh of this layout.
    pub fn laid(graph: &'g Graph, layout: &Layout) -> Params<'g> {
        let layout = layout.clone();
        Params { graph, layout, place: String::new(), entries: RefCell::default(), index: RefCell::default() }
    }

    /// These parameters, already declared in the graph.
    pub fn of(graph: &'g Graph, specs: &[ParamSpec], tensors: &[Tensor<'g>]) -> Params<'g> {
        assert_eq!(specs.len(), tensors.len(), "one tensor per parameter");
        let params = Params::new(graph);
        for (spec, &tensor) in specs.iter().zip(tensors) {
            params.push(spec.clone(), tensor);
        }
        params
    }

    /// Declares all of `specs` as the graph's next parameters.
    pub fn declare(graph: &'g Graph, specs: &[ParamSpec]) -> Params<'g> {
        Params::new(graph).with(specs)
    }

    /// The same with all of `specs` declared as the graph's next parameters.
    pub fn with(self, specs: &[ParamSpec]) -> Params<'g> {
        for spec in specs {
            self.push(spec.clone(), self.graph.param(&spec.name, self.stored(spec)));
        }
        self
    }

    /// The path of the whole network.
    pub fn root(&self) -> Scope<'_, 'g> {
        Scope { params: self, path: String::new(), ahead: String::new() }
    }

    /// The path of a scope, in these parameters.
    pub fn scope(&self, like: &Scope<'_, 'g>) -> Scope<'_, 'g> {
        Scope { params: self, path: like.path.clone(), ahead: like.ahead.clone() }
    }

    /// What has been declared so far, in order.
    pub fn specs(&self) -> Vec<ParamSpec> {
        self.entries.borrow().iter().map(|(s, _)| s.clone()).collect()
    }

    /// What has been declared so far, with its tensors.
    pub fn entries(&self) -> Vec<(ParamSpec, Tensor<'g>)> {
        self.entries.borrow().clone()
    }

    /// Makes a tensor a parameter of this name.
    pub fn push(&self, spec: ParamSpec, tensor: Tensor<'g>) {
        let mut entries = self.entries.borrow_mut();
        self.index.borrow_mut().insert(spec.name.clone(), entries.len());
        entries.push((spec, tensor));
    }

    /// The type of a parameter as it is stored.
    fn stored(&self, spec: &ParamSpec) -> Type {
        self.layout.stored(&self.placed(spec))
    }

    /// The parameter under its full name.
    fn placed(&self, spec: &ParamSpec) -> ParamSpec {
        ParamSpec { name: joined(&self.place, &spec.name), ..spec.clone() }
    }

    /// The parameter as it is computed with: gathered over the axes that only store it in parts.
    fn used(&self, spec: ParamSpec) -> Tensor<'g> {
        let used = self.layout.used(&self.placed(&spec));
        let tensor = self.get(spec);
        if tensor.ty().sharding == used { tensor } else { tensor.reshard(used) }
    }

    /// The parameter as it is stored.
    fn get(&self, spec: ParamSpec) -> Tensor<'g> {
        let known = self.index.borrow().get(&spec.name).copied();
        if let Some(at) = known {
            let (old, tensor) = &self.entries.borrow()[at];
            if old.dims != spec.dims {
                let message = format!("{} was declared with dims {:?}, now {:?}", spec.name, old.dims, spec.dims);
                self.graph.fail(message);
            }
            return *tensor;
        }
        let tensor = self.graph.param(&spec.name, self.stored(&spec));
        self.push(spec, tensor);
        tensor
    }
}

/// A path into the parameters of a graph.
pub struct Scope<'a, 'g> {
    params: &'a Params<'g>,
    path: String,
    /// The end of the path that the graph's has not got yet.
    ahead: String,
}

fn joined(path: &str, segment: &str) -> String {
    match (path, segment) {
        ("", alone) | (alone, "") => alone.to_string(),
        _ => format!("{path}.{segment}"),
    }
}

/// A block built once and called many times: a function of its inputs, then its parameters.
pub struct Block {
    func: Arc<Func>,
    specs: Vec<ParamSpec>,
}

impl Block {
    /// Builds a block that is to be called from `scope`, under paths like `place`: `body` gets its graph's scope and inputs of
    /// these types. Wherever it is called its parameters lie as they do at `place`.
    pub fn build(
        scope: &Scope<'_, '_>,
        place: &str,
        name: &str,
        inputs: &[(&str, Type)],
        body: impl for<'b> FnOnce(&Scope<'_, 'b>, &[Tensor<'b>]) -> Vec<Tensor<'b>>,
    ) -> Result<Block> {
        let graph = Graph::on_mesh(name, scope.layout().mesh().clone());
        let inputs: Vec<_> = inputs.iter().map(|(n, ty)| graph.param(n, ty.clone())).collect();
        let place = joined(&scope.params.place, &joined(&scope.path, place));
        let params = Params { place, ..Params::laid(&graph, scope.layout()) };
        let results = body(&params.root(), &inputs);
        let func = Arc::new(graph.finish(&results)?);
        Ok(Block { func, specs: params.specs() })
    }
}

impl<'g> Scope<'_, 'g> {
    /// The graph.
    pub fn graph(&self) -> &'g Graph {
        self.params.graph
    }

    /// Where tensors lie.
    pub fn layout(&self) -> &Layout {
        &self.params.layout
    }

    /// The full name of `name` here.
    pub fn name(&self, name: &str) -> String {
        joined(&self.path, name)
    }

    /// A trainable parameter.
    pub fn param(&self, name: &str, dims: &[usize], init: Init) -> Tensor<'g> {
        self.stack(name, dims, init, 1)
    }

    /// A trainable parameter that is a stack of so many matrices along dim 0: over several devices along `tensor` its tensor
    /// is `[stacked, dims[0] / stacked, ..]`, so that each matrix is split.
    pub fn stack(&self, name: &str, dims: &[usize], init: Init, stacked: usize) -> Tensor<'g> {
        let stacked = if self.layout().tensor() > 1 { stacked } else { 1 };
        self.params.used(ParamSpec { name: self.name(name), dims: dims.to_vec(), init, trainable: true, stacked })
    }

    /// A parameter that checkpoints store and training leaves alone.
    pub fn frozen(&self, name: &str, value: Array) -> Tensor<'g> {
        let dims = value.dims().to_vec();
        let init = Init::Table(value);
        self.params.used(ParamSpec { name: self.name(name), dims, init, trainable: false, stacked: 1 })
    }

    /// Runs `body` one segment down, in the parameters' path and in the graph's model path.
    pub fn enter<R>(&self, segment: &str, body: impl FnOnce(&Scope<'_, 'g>) -> R) -> R {
        let inner = Scope { params: self.params, path: self.name(segment), ahead: String::new() };
        self.graph().scope(&joined(&self.ahead, segment), || body(&inner))
    }

    /// The block at `inputs`, with its parameters declared under this path, and its derivative in the direction in which
    /// the inputs `wrt` (float ones, in ascending order) move by `tangents`: the results, then their tangents.
    ///
    /// # Errors
    /// If the block has no derivative by one of these inputs.
    pub fn jvp(
        &self,
        block: &Block,
        inputs: &[Tensor<'g>],
        wrt: &[usize],
        tangents: &[Tensor<'g>],
    ) -> Result<(Vec<Tensor<'g>>, Vec<Tensor<'g>>)> {
        let func = Arc::new(dnx_autodiff::jvp(&block.func, wrt)?);
        let mut args = self.arguments(block, inputs);
        for (&t, &i) in tangents.iter().zip(wrt) {
            let sharding = inputs[i].ty().sharding;
            args.push(if t.ty().sharding == sharding { t } else { t.reshard(sharding) });
        }
        let mut primals = self.graph().call(&func, &args);
        let moved = primals.split_off(block.func.results.len().min(primals.len()));
        Ok((primals, moved))
    }

    /// All parameters known so far, as constants of the derivative.
    pub fn stopped(&self) -> Params<'g> {
        let place = self.params.place.clone();
        let stopped = Params { place, ..Params::laid(self.graph(), self.layout()) };
        for (spec, tensor) in self.params.entries.borrow().iter() {
            stopped.push(spec.clone(), tensor.stop_gradient());
        }
        stopped
    }

    fn arguments(&self, block: &Block, inputs: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
        let mut args = inputs.to_vec();
        args.extend(block.specs.iter().map(|s| {
            let name = self.name(&s.name);
            self.params.get(ParamSpec { name, ..s.clone() })
        }));
        args
    }

    /// One segment down from here on: in the parameters' path at once, in the graph's with the next [`Scope::enter`].
    pub fn under(&self, segment: &str) -> Scope<'_, 'g> {
        Scope { params: self.params, path: self.name(segment), ahead: joined(&self.ahead, segment) }
    }

    /// Calls a block with its parameters declared under this path. With `remat` the backward pass recomputes the
    /// block instead of keeping its intermediates.
    ///
    /// Where parameters are stored in parts they are gathered inside the block, and not before its first input is there:
    /// the whole weights of one block are all that is held at a time.
    pub fn call(&self, block: &Block, inputs: &[Tensor<'g>], remat: bool) -> Vec<Tensor<'g>> {
        let mut args = self.arguments(block, inputs);
        let (own, params) = args.split_at(inputs.len());
        let gathered = |(t, spec): (&Tensor<'g>, &ParamSpec)| {
            let name = self.name(&spec.name);
            self.layout().used(&self.params.placed(&ParamSpec { name, ..spec.clone() })) != t.ty().sharding
        };
        if !own.is_empty() && params.iter().zip(&block.specs).any(gathered) {
            let waiting: Vec<Tensor> = params.iter().chain(&own[..1]).copied().collect();
            let ready = self.graph().barrier(&waiting);
            args.splice(inputs.len().., ready[..params.len()].iter().copied());
        }
        match remat {
            true => self.graph().call_remat(&block.func, &args),
            false => self.graph().call(&block.func, &args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_tensor() {
        let g = Graph::new("f");
        let params = Params::new(&g);
        let root = params.root();
        let a = root.enter("a", |s| s.param("weight", &[2], Init::Zeros));
        let b = root.enter("a", |s| s.param("weight", &[2], Init::Zeros));
        assert_eq!(a.id(), b.id());
        assert_eq!(params.specs().len(), 1);
        assert_eq!(params.specs()[0].name, "a.weight");
        root.enter("a", |s| s.param("weight", &[3], Init::Zeros));
        let error = g.finish(&[a]).unwrap_err().to_string();
        assert!(error.contains("a.weight") && error.contains("[2]") && error.contains("[3]"), "{error}");
    }

    #[test]
    fn blocks_share_their_function_and_not_their_parameters() {
        let ty = Type::f32([4]);
        let g = Graph::new("f");
        let x = g.param("x", ty.clone());
        let params = Params::new(&g);
        let root = params.root();
        let block =
            Block::build(&root, "blocks.0", "scale", &[("x", ty)], |s, x| vec![x[0] * s.param("w", &[4], Init::Ones)])
                .unwrap();
        let y = (0..3).fold(x, |x, i| root.enter(&format!("blocks.{i}"), |s| s.call(&block, &[x], i == 1)[0]));
        let names: Vec<_> = params.specs().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["blocks.0.w", "blocks.1.w", "blocks.2.w"]);
        let f = g.finish(&[y]).unwrap();
        let remats: Vec<bool> = f
            .nodes
            .iter()
            .filter_map(|n| if let dnx_ir::Op::Call { remat, .. } = &n.op { Some(*remat) } else { None })
            .collect();
        assert_eq!(remats, [false, true, false]);
    }

    #[test]
    fn a_name_may_be_ahead_of_the_place() {
        let g = Graph::new("f");
        let params = Params::new(&g);
        let root = params.root();
        let teacher = root.under("teacher");
        assert_eq!((teacher.name("w"), g.path()), ("teacher.w".to_string(), String::new()));
        let [name, path] = teacher.enter("block", |s| [s.name("w"), g.path()]);
        assert_eq!([&name[..], &path], ["teacher.block.w", "teacher.block"]);
    }

    #[test]
    fn weights_are_checked_by_name_and_dims() {
        let spec = ParamSpec { name: "w".into(), dims: vec![2, 3], init: Init::Zeros, trainable: true, stacked: 1 };
        let missing = by_name(std::slice::from_ref(&spec), |_| None).unwrap_err().to_string();
        assert_eq!(missing, "tensor w: is missing");
        let other = by_name(&[spec], |_| Some(Array::zeros(Type::f32([3, 2])))).unwrap_err().to_string();
        assert!(other.contains("[3, 2]") && other.contains("[2, 3]"), "{other}");
    }
}
