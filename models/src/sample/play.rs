//! Recordings on a device: all that a step does beside the network is part of the network's own program.
//!
//! The program of an evaluation reads its row of the recording's table by a counter that it moves on itself. It makes
//! the state of its step (the sum of two `f32`, see [`super::sheet`]), what the network sees and the network's output,
//! which goes into a slot: state, counter and that slot are given up and taken back in place. So evaluations run one
//! after another without the host, which only brings the draws of stochastic samplers.
//!
//! Which slot is written differs from row to row, so a program is bound once for each order of the slots that occurs.

use super::Noise;
use super::guidance::Guidance;
use super::programs::{contrast, evaluated};
use super::sheet::{Column, Row, Shape, Sheet};
use crate::network::{Inputs, Network};
use crate::params::Params;
use crate::process::Level;
use crate::{Error, Result};
use dnx_codegen::{Precision, compile};
use dnx_ir::{Array, DType, Func, Graph, Op, Tensor, Type};
use dnx_runtime::{Bound, Buffer, Device, Program};
use std::collections::{HashMap, VecDeque};

/// What a reel is made for.
#[derive(Clone, Debug)]
pub(super) struct Make {
    pub device: Device,
    pub network: Network,
    pub weights: Vec<Buffer>,
    /// Dims of a batch.
    pub dims: Vec<usize>,
    pub precision: Precision,
    /// Of guidance only what does not differ from level to level counts.
    pub guidance: Guidance,
}

/// The programs of recordings of one shape, with their memory.
pub(super) struct Reel {
    make: Make,
    shape: Shape,
    /// The program of a plain and of a guided evaluation.
    programs: [Option<Program>; 2],
    /// By what the row of a table says: guided or not, and the order of the slots.
    bound: HashMap<(bool, Vec<usize>), Bound>,
    last: Bound,
    label: Option<Buffer>,
    contrast: Option<Buffer>,
    /// The row, `i32[2]`: number and 0.
    row: Buffer,
    table: Buffer,
    high: Buffer,
    low: Buffer,
    draws: Vec<Buffer>,
    slots: Vec<Buffer>,
    /// Whether slots and noise are finite: what is not is not made good by a coefficient of 0.
    clean: bool,
}

/// Sees the states of a batch: the step and its level.
pub(super) type Look<'a> = dyn FnMut(usize, &Level<f64>, &[f64]) + 'a;

/// A function whose inputs are partly given up for its results.
struct Giving {
    func: Func,
    donate: Vec<(usize, usize)>,
}

/// The parameters that all programs of a shape share, after weights and labels.
struct Shared<'g> {
    row: Tensor<'g>,
    table: Tensor<'g>,
    high: Tensor<'g>,
    low: Tensor<'g>,
    draws: Vec<Tensor<'g>>,
    slots: Vec<Tensor<'g>>,
}

/// What a row says.
#[derive(Clone, Copy)]
struct Read<'g>(Tensor<'g>);

impl<'g> Read<'g> {
    fn at(self, column: usize) -> Tensor<'g> {
        self.0.slice(1, column, column + 1).reshape(&[])
    }

    fn get(self, column: Column) -> Tensor<'g> {
        self.at(column as usize)
    }
}

impl<'g> Shared<'g> {
    fn declare(g: &'g Graph, shape: Shape, dims: &[usize]) -> Shared<'g> {
        let state = |name: &str| g.param(name, Type::f32(dims.to_vec()));
        Shared {
            row: g.param("row", Type::new(DType::I32, [2])),
            table: g.param("table", Type::f32([shape.rows, shape.width()])),
            high: state("high"),
            low: state("low"),
            draws: (0..shape.draws).map(|i| state(&format!("draw.{i}"))).collect(),
            slots: (0..shape.slots).map(|i| state(&format!("slot.{i}"))).collect(),
        }
    }

    /// The row, in memory before anything reads of it.
    fn read(&self, shape: Shape) -> Read<'g> {
        let row = self.table.apply(Op::DynamicSlice { sizes: vec![1, shape.width()] }, &[self.row]);
        Read(self.table.graph().barrier(&[row])[0])
    }

    /// The sum over slots and draws with the coefficients of these columns, onto `first`.
    fn sum(&self, first: Tensor<'g>, read: Read<'g>, columns: std::ops::Range<usize>) -> Tensor<'g> {
        let terms = self.slots.iter().chain(&self.draws).zip(columns);
        terms.fold(first, |sum, (term, column)| sum + read.at(column) * *term)
    }

    /// The next state, high and low part. The low part is what rounding took from the high one (Knuth's two-sum). The
    /// barrier keeps both in kernels of their own, so that no shader compiler, whatever it thinks of as fast, sees that
    /// exact arithmetic would make it zero.
    fn updated(&self, read: Read<'g>, shape: Shape) -> [Tensor<'g>; 2] {
        let kept = read.get(Column::Keep) * self.high;
        let moved = read.get(Column::Move) * self.high + read.get(Column::Keep) * self.low;
        let change = self.sum(moved, read, shape.update());
        let graph = self.high.graph();
        let apart = graph.barrier(&[kept + change, change]);
        let (high, change) = (apart[0], apart[1]);
        let kept = read.get(Column::Keep) * self.high;
        let other = high - kept;
        [high, (kept - (high - other)) + (change - other)]
    }
}

/// The program of one evaluation.
fn evaluation(make: &Make, shape: Shape, guided: bool) -> Result<Giving> {
    let Make { network, dims, .. } = make;
    let batch = dims[0];
    let g = Graph::new("sampling");
    let params = network.specs()?;
    let declared = Params::declare(&g, &params);
    let label = (network.classes() > 0).then(|| g.param("label", Type::new(DType::I32, [batch])));
    let contrast = guided.then(|| contrast(&g, network, batch)).transpose()?;
    let shared = Shared::declare(&g, shape, dims);
    let first = params.len() + usize::from(label.is_some()) + usize::from(guided);
    let read = shared.read(shape);
    let (seen, [high, low]) = g.scope("solver", || {
        let [high, low] = shared.updated(read, shape);
        let c = read.get(Column::Input);
        (shared.sum(c * high + c * low, read, shape.input()), [high, low])
    });
    let levels: Vec<usize> = std::iter::once(batch).chain(network.tokens()).collect();
    let inputs = Inputs {
        x: seen,
        time: read.get(Column::Time).broadcast_to(&levels),
        sigma: read.get(Column::Sigma).broadcast_to(&levels),
        label,
        second: network.second_time().then(|| read.get(Column::Second).broadcast_to(&[batch])),
    };
    let output = evaluated(network, &declared.root(), inputs, contrast).prediction;
    let output = match guided {
        false => output,
        true => g.scope("guidance", || mixed(output, read.get(Column::Push), &make.guidance)),
    };
    let next = shared.row + g.constant(Array::i32([2], &[1, 0]));
    let mut results = vec![next, high, low, output];
    results.extend(shape.keeps.then_some(high));
    let slots = first + 4 + shape.draws;
    let donate = [first, first + 2, first + 3, slots, slots + 1].into_iter().zip(0..results.len()).collect();
    Ok(Giving { func: g.finish(&results)?, donate })
}

/// What guidance makes of outputs under both labels, `[2 B, ..]`: as [`Guidance::mix`], with the scale less one.
fn mixed<'g>(both: Tensor<'g>, push: Tensor<'g>, guidance: &Guidance) -> Tensor<'g> {
    let parts = both.split(0, 2);
    let (own, contrast) = (parts[0], parts[1]);
    let (dims, rank) = (own.dims(), own.rank());
    let mut mixed = own + push * (own - contrast);
    if let Some(first) = guidance.channels {
        let channel = own.graph().iota(DType::I32, &dims, rank - 1);
        mixed = channel.lt(channel.full_like(first as f64)).select(mixed, own);
    }
    if guidance.rescale > 0.0 {
        let std = |t: Tensor<'g>| {
            let centred = t - t.mean_per_sample().expand_right(rank);
            centred.square().mean_per_sample().sqrt()
        };
        let (before, after) = (std(own), std(mixed));
        let some = after.gt(after.full_like(0.0));
        let ratio = before / some.select(after, after.full_like(1.0));
        let factor = some.select(ratio * guidance.rescale + (1.0 - guidance.rescale), ratio.full_like(1.0));
        mixed = mixed * factor.expand_right(rank);
    }
    mixed
}

/// The program that makes the last state.
fn ending(shape: Shape, dims: &[usize]) -> Result<Func> {
    let g = Graph::new("sampled");
    let shared = Shared::declare(&g, shape, dims);
    let [high, low] = shared.updated(shared.read(shape), shape);
    Ok(g.finish(&[high + low])?)
}

impl Reel {
    /// Memory for recordings of this shape, and the program that ends them. The network's programs follow when a
    /// recording asks for them.
    pub fn new(make: Make, shape: Shape) -> Result<Reel> {
        let device = &make.device;
        let labels = Type::new(DType::I32, [make.dims[0]]);
        let buffer = |ty: Type| device.zeros(&ty).map_err(failed);
        let states = |count: usize| -> Result<Vec<Buffer>> {
            (0..count).map(|_| buffer(Type::f32(make.dims.clone()))).collect()
        };
        let label = (make.network.classes() > 0).then(|| buffer(labels.clone())).transpose()?;
        let contrast = label.is_some().then(|| buffer(labels)).transpose()?;
        let (row, table) = (buffer(Type::new(DType::I32, [2]))?, buffer(Type::f32([shape.rows, shape.width()]))?);
        let (mut state, draws, slots) = (states(2)?, states(shape.draws)?, states(shape.slots)?);
        let (low, high) = (state.pop().expect("two"), state.pop().expect("two"));
        let mut inputs = vec![row.clone(), table.clone(), high.clone(), low.clone()];
        inputs.extend(draws.iter().chain(&slots).cloned());
        let last = compile(&ending(shape, &make.dims)?, &device.options()).map_err(failed)?;
        let last = device.load(last.exec).and_then(|p| p.bind(&inputs)).map_err(failed)?;
        let (programs, bound) = ([None, None], HashMap::new());
        Ok(Reel {
            make,
            shape,
            programs,
            bound,
            last,
            label,
            contrast,
            row,
            table,
            high,
            low,
            draws,
            slots,
            clean: true,
        })
    }

    /// Whether recordings laid out like this, with this guidance, are played by these programs.
    pub fn fits(&self, shape: Shape, guidance: &Guidance) -> bool {
        let own = &self.make.guidance;
        self.shape == shape && own.channels == guidance.channels && own.rescale == guidance.rescale
    }

    /// Binds the programs that a recording wants, and brings its table.
    pub fn load(&mut self, sheet: &Sheet) -> Result<()> {
        let evaluations = &sheet.rows[..sheet.rows.len() - 1];
        for Row { guided, order, .. } in evaluations {
            let wanted = (*guided, order.clone());
            if !self.bound.contains_key(&wanted) {
                let bound = self.bind(*guided, order)?;
                self.bound.insert(wanted, bound);
            }
        }
        let table = Array::f32([self.shape.rows, self.shape.width()], &sheet.table);
        self.table.write(&table).map_err(failed)
    }

    fn bind(&mut self, guided: bool, order: &[usize]) -> Result<Bound> {
        let program = &mut self.programs[usize::from(guided)];
        if program.is_none() {
            let giving = evaluation(&self.make, self.shape, guided)?;
            let device = &self.make.device;
            let options = device.options().with_precision(self.make.precision).with_donate(&giving.donate);
            let compiled = compile(&giving.func, &options).map_err(failed)?;
            *program = Some(device.load(compiled.exec).map_err(failed)?);
        }
        let mut inputs = self.make.weights.clone();
        inputs.extend(self.label.clone());
        inputs.extend(self.contrast.clone().filter(|_| guided));
        inputs.extend([&self.row, &self.table, &self.high, &self.low].map(Buffer::clone));
        inputs.extend(self.draws.iter().cloned());
        inputs.extend(order.iter().map(|&slot| self.slots[slot].clone()));
        program.as_ref().expect("made above").bind(&inputs).map_err(failed)
    }

    /// The last state of a batch from its first one, by the recording that was loaded. `look` sees the states; without
    /// it they stay where they are.
    ///
    /// # Errors
    /// The device's. A state that is not finite is none.
    pub fn play(
        &mut self,
        sheet: &Sheet,
        levels: &[Level<f64>],
        [labels, contrast]: [&[i32]; 2],
        start: &[f64],
        noise: &mut dyn Noise,
        mut look: Option<&mut Look<'_>>,
    ) -> Result<Vec<f64>> {
        let batch = self.make.dims[0];
        let put = |buffer: &Buffer, array: Array| buffer.write(&array).map_err(failed);
        let like = |x: Vec<f32>| Array::f32(self.make.dims.clone(), &x);
        for (buffer, labels) in [(&self.label, labels), (&self.contrast, contrast)] {
            buffer.as_ref().map_or(Ok(()), |b| put(b, Array::i32([batch], labels)))?;
        }
        put(&self.row, Array::i32([2], &[0, 0]))?;
        put(&self.high, like(start.iter().map(|&x| x as f32).collect()))?;
        put(&self.low, like(start.iter().map(|&x| (x - f64::from(x as f32)) as f32).collect()))?;
        if !std::mem::replace(&mut self.clean, false) {
            let zero = like(vec![0.0; start.len()]);
            self.slots.iter().chain(&self.draws).try_for_each(|b| put(b, zero.clone()))?;
        }
        if let Some(look) = &mut look {
            look(0, &levels[0], start);
        }
        let mut drawn = VecDeque::new();
        let mut first = 0;
        let mut ahead: Vec<&Bound> = vec![];
        for (at, row) in sheet.rows.iter().enumerate() {
            let is_last = at + 1 == sheet.rows.len();
            if !row.draws.is_empty() {
                Bound::run_all(&ahead).map_err(failed)?;
                ahead.clear();
            }
            for &(draw, place) in &row.draws {
                while first + drawn.len() <= draw {
                    let wanted = sheet.wanted[first + drawn.len()];
                    drawn.push_back(Some(noise.draw()).filter(|_| wanted));
                }
                let z = drawn[draw - first].take().expect("a draw is put in one place");
                put(&self.draws[place], like(z.into_iter().map(|z| z as f32).collect()))?;
                while drawn.front().is_some_and(Option::is_none) {
                    drawn.pop_front();
                    first += 1;
                }
            }
            ahead.push(if is_last { &self.last } else { &self.bound[&(row.guided, row.order.clone())] });
            let Some(look) = look.as_mut().filter(|_| row.made.iter().any(|&state| state > 0)) else { continue };
            Bound::run_all(&ahead).map_err(failed)?;
            ahead.clear();
            let x = if is_last { downloaded(&self.last.outputs()[0])? } else { self.state()? };
            row.made.iter().filter(|&&state| state > 0).for_each(|&state| look(state, &levels[state], &x));
        }
        Bound::run_all(&ahead).map_err(failed)?;
        let x = downloaded(&self.last.outputs()[0])?;
        self.clean = x.iter().all(|x| x.is_finite());
        Ok(x)
    }

    fn state(&self) -> Result<Vec<f64>> {
        let (high, low) = (downloaded(&self.high)?, downloaded(&self.low)?);
        Ok(high.iter().zip(low).map(|(a, b)| a + b).collect())
    }
}

fn downloaded(buffer: &Buffer) -> Result<Vec<f64>> {
    Ok(buffer.download().map_err(failed)?.to_f64_vec())
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device(error.to_string())
}
