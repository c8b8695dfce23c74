//! A run of a sampler written down before it happens, so that a device can make it without the host.
//!
//! The steps of most solvers are linear: the next state is a sum of the state, of what the network gave now and
//! earlier, and of draws of noise, with coefficients that follow from the grid. So the sampler itself is run once on
//! *coordinates*: a state is its list of coefficients over what it is made of, an evaluation of the network gives a new
//! unknown, and so does a draw. What the run asked for is its [`Recording`]: for each [`Evaluation`] the [`Sum`] that
//! the network sees. After every step the state is named anew, so sums stay short; what sums of later steps still name
//! (the history of a multistep solver) is kept in numbered slots. [`Recording::replay`] says what a recording means.
//!
//! The coefficients are `f64` and exact as far as the solver's own arithmetic is: where a solver takes the difference
//! of two large numbers, its recording has the small one.

use super::{Denoiser, Estimate, Grid, Guidance, Noise, Run, Sampler, Step};
use crate::Result;
use crate::process::{Level, Process};
use std::cell::RefCell;

/// Most slots of a recording; solvers that keep more than this many arrays are not recorded.
pub const MOST_SLOTS: usize = 16;

/// Something that a sum is over, beside the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// What a slot holds: an output of the network or an earlier state.
    Slot(usize),
    /// The draw of this number, from 0.
    Draw(usize),
}

/// `state x + sum_k c_k t_k`, element by element.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sum {
    /// Coefficient of the state.
    pub state: f64,
    /// The other terms, each once, with their coefficients; none is zero.
    pub terms: Vec<(Term, f64)>,
}

impl Sum {
    /// The state itself.
    fn nothing() -> Sum {
        Sum { state: 1.0, terms: vec![] }
    }
}

/// One evaluation of the network, and what happens before and after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The step that asked for it.
    pub step: usize,
    /// The level of the states.
    pub level: Level<f64>,
    /// What the network's time embedding is fed with.
    pub time: f64,
    /// What the second time embedding is fed with, of networks that have one.
    pub second: f64,
    /// The guidance scale; 1: the conditional network alone.
    pub scale: f64,
    /// First: the state of this step, from the one before and the slots as they were left.
    pub update: Sum,
    /// Then: this slot takes the state, if later steps want it.
    pub keep: Option<usize>,
    /// Then: what the network sees, `c_in` included, from the state and the slots.
    pub input: Sum,
    /// Last: the slot that takes the output.
    pub output: usize,
}

/// What a linear sampler does over a grid with a process and a guidance.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// The levels of the states: that of the first, and one after each step.
    pub levels: Vec<Level<f64>>,
    /// The evaluations, in order.
    pub evaluations: Vec<Evaluation>,
    /// The last state, after all evaluations.
    pub last: Sum,
    /// Per state of `levels`: the evaluation whose update makes it; as many as there are evaluations for the last state.
    pub made_at: Vec<usize>,
    /// How many slots there are.
    pub slots: usize,
    /// How many arrays are drawn in all, not counting the first state's.
    pub draws: usize,
}

/// What a coordinate is of.
#[derive(Clone, Copy, PartialEq)]
enum Basis {
    /// The state after this many updates.
    State(usize),
    /// The output of this evaluation.
    Output(usize),
    /// This draw.
    Draw(usize),
}

/// Coefficients over unknowns; zeros are left out.
type Coordinates = Vec<(Basis, f64)>;

/// What a run asked for, in terms of unknowns.
#[derive(Default)]
struct Tape {
    basis: Vec<Basis>,
    asked: Vec<Asked>,
    draws: usize,
    step: usize,
}

struct Asked {
    step: usize,
    from: Level<f64>,
    to: Level<f64>,
    input: Coordinates,
}

impl Tape {
    /// A further unknown as a vector of `width` coordinates.
    fn unknown(&mut self, what: Basis, width: usize) -> Vec<f64> {
        self.basis.push(what);
        // The first pass counts alone: all its unknowns are the same number.
        let at = (self.basis.len() - 1).min(width - 1);
        let mut out = vec![0.0; width];
        out[at] = 1.0;
        out
    }

    fn sparse(&self, x: &[f64]) -> Coordinates {
        self.basis.iter().zip(x).filter(|(_, c)| **c != 0.0).map(|(b, c)| (*b, *c)).collect()
    }
}

/// Draws of unknowns.
struct Drawn<'t> {
    tape: &'t RefCell<Tape>,
    width: usize,
}

impl Noise for Drawn<'_> {
    fn draw(&mut self) -> Vec<f64> {
        let mut tape = self.tape.borrow_mut();
        tape.draws += 1;
        let what = Basis::Draw(tape.draws - 1);
        tape.unknown(what, self.width)
    }
}

/// What a run did.
struct Walked {
    tape: Tape,
    /// The states' coordinates over what came before, from the second.
    updates: Vec<Coordinates>,
    /// Per state of the grid the number of updates before it.
    states: Vec<usize>,
}

/// Runs the sampler on coordinates of this width. `None`: a coefficient was not finite, or a step without an evaluation
/// did something.
fn walk(sampler: &dyn Sampler, process: &Process, grid: &Grid, width: usize) -> Result<Option<Walked>> {
    let tape = RefCell::new(Tape::default());
    let mut noise = Drawn { tape: &tape, width };
    let mut stepper = sampler.start(&Run { process, grid })?;
    let mut denoiser = Denoiser::known_jump(process, &[1, width], |x, from, to| {
        let mut tape = tape.borrow_mut();
        let (at, step) = (tape.asked.len(), tape.step);
        let coefficients = process.coefficients(from);
        let input = tape.sparse(x).into_iter().map(|(b, c)| (b, coefficients.c_in * c)).collect();
        tape.asked.push(Asked { step, from: *from, to: *to, input });
        let output = tape.unknown(Basis::Output(at), width);
        let [a, b, c, d] = coefficients.solve(from);
        let of = |p: f64, q: f64| x.iter().zip(&output).map(|(x, f)| p * x + q * f).collect();
        Ok(Estimate { x0: of(a, b), noise: of(c, d) })
    });
    let mut x = tape.borrow_mut().unknown(Basis::State(0), width);
    let (mut updates, mut states) = (vec![], vec![0]);
    for (index, pair) in grid.levels.windows(2).enumerate() {
        let before = x.clone();
        let asked = {
            let mut tape = tape.borrow_mut();
            tape.step = index;
            tape.asked.len()
        };
        stepper.step(&mut x, &mut denoiser, &Step { index, from: pair[0], to: pair[1] }, &mut noise)?;
        let mut tape = tape.borrow_mut();
        if tape.asked.len() > asked {
            updates.push(tape.sparse(&x));
            x = tape.unknown(Basis::State(updates.len()), width);
        } else if x != before {
            return Ok(None);
        }
        states.push(updates.len());
    }
    drop(denoiser);
    let tape = tape.into_inner();
    let all = tape.asked.iter().map(|a| &a.input).chain(&updates);
    let finite = all.flatten().all(|(_, c)| c.is_finite());
    Ok(finite.then_some(Walked { tape, updates, states }))
}

impl Recording {
    /// Records what `sampler` does over `grid`. `None`: it does not say that it is linear, it keeps more than
    /// [`MOST_SLOTS`] arrays, or a coefficient is not finite; such a run is the host's.
    ///
    /// # Errors
    /// Those of the sampler on this path and grid.
    pub fn of(sampler: &dyn Sampler, process: &Process, grid: &Grid, guidance: &Guidance) -> Result<Option<Recording>> {
        if !sampler.is_linear() {
            return Ok(None);
        }
        let grid = sampler.levels(process, grid)?;
        let Some(counted) = walk(sampler, process, &grid, 1)? else { return Ok(None) };
        if counted.tape.asked.is_empty() {
            return Ok(None);
        }
        let Some(walked) = walk(sampler, process, &grid, counted.tape.basis.len())? else { return Ok(None) };
        Ok(Lives::of(&walked).place().map(|places| walked.recording(process, &grid, guidance, &places)))
    }

    /// The last state from the first one: what a recording means, in `f64` on the host. `network` gives the output for
    /// what the network is to see, guided where the evaluation says so.
    ///
    /// # Errors
    /// Those of `network`.
    pub fn replay(
        &self,
        start: Vec<f64>,
        noise: &mut dyn Noise,
        network: &mut dyn FnMut(&Evaluation, &[f64]) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let draws: Vec<Vec<f64>> = (0..self.draws).map(|_| noise.draw()).collect();
        let mut slots = vec![vec![0.0; start.len()]; self.slots];
        let sum = |sum: &Sum, x: &[f64], slots: &[Vec<f64>]| -> Vec<f64> {
            let of = |t: &Term, i: usize| match *t {
                Term::Slot(s) => slots[s][i],
                Term::Draw(d) => draws[d][i],
            };
            let element = |i: usize| sum.state * x[i] + sum.terms.iter().map(|(t, c)| c * of(t, i)).sum::<f64>();
            (0..x.len()).map(element).collect()
        };
        let mut x = start;
        for e in &self.evaluations {
            x = sum(&e.update, &x, &slots);
            if let Some(slot) = e.keep {
                slots[slot].clone_from(&x);
            }
            slots[e.output] = network(e, &sum(&e.input, &x, &slots))?;
        }
        Ok(sum(&self.last, &x, &slots))
    }
}

impl Walked {
    /// The coordinates of the state that is made before evaluation `at`, if one is; those of the last state at the end.
    fn update(&self, at: usize) -> Option<(usize, &Coordinates)> {
        let asked = &self.tape.asked;
        let made = self.state_at(at);
        let first = at == asked.len() || at == 0 || asked[at - 1].step != asked[at].step;
        (first && made > 0).then(|| (made, &self.updates[made - 1]))
    }

    /// The number of the state at evaluation `at`.
    fn state_at(&self, at: usize) -> usize {
        self.tape.asked.get(at).map_or(self.updates.len(), |a| self.states[a.step])
    }

    fn recording(&self, process: &Process, grid: &Grid, guidance: &Guidance, places: &Places) -> Recording {
        let sum = |of: &Coordinates, current: usize| {
            let mut out = Sum::default();
            for &(basis, c) in of {
                match basis {
                    Basis::State(s) if s == current => out.state = c,
                    Basis::State(s) => out.terms.push((Term::Slot(places.state(s)), c)),
                    Basis::Output(e) => out.terms.push((Term::Slot(places.outputs[e]), c)),
                    Basis::Draw(d) => out.terms.push((Term::Draw(d), c)),
                }
            }
            out
        };
        let update = |at: usize| self.update(at).map_or_else(Sum::nothing, |(made, of)| sum(of, made - 1));
        let evaluation = |(at, asked): (usize, &Asked)| {
            let current = self.state_at(at);
            Evaluation {
                step: asked.step,
                level: asked.from,
                time: process.time_input(&asked.from),
                second: process.second_input(&asked.from, &asked.to),
                scale: guidance.at(&asked.from),
                update: update(at),
                keep: places.states[current].filter(|_| at == self.made_at(current)),
                input: sum(&asked.input, current),
                output: places.outputs[at],
            }
        };
        Recording {
            levels: grid.levels.clone(),
            evaluations: self.tape.asked.iter().enumerate().map(evaluation).collect(),
            last: update(self.tape.asked.len()),
            made_at: self.states.iter().map(|&s| self.made_at(s)).collect(),
            slots: places.slots,
            draws: self.tape.draws,
        }
    }

    /// The evaluation before which a state is made.
    fn made_at(&self, state: usize) -> usize {
        let asked = &self.tape.asked;
        asked.iter().position(|a| self.states[a.step] == state).unwrap_or(asked.len())
    }
}

/// When an array is written and when it is read for the last time. Time runs in quarters of an evaluation: at `4 e` the
/// update of evaluation `e` is made, at `4 e + 1` the state is kept, at `4 e + 2` it is known what the network sees, and
/// at `4 e + 3` its output is there.
#[derive(Clone, Copy)]
struct Life {
    born: usize,
    last: usize,
}

/// The lives of outputs, and of states that are read after they were left.
struct Lives {
    outputs: Vec<Life>,
    states: Vec<Option<Life>>,
}

/// Where outputs and kept states lie.
struct Places {
    outputs: Vec<usize>,
    states: Vec<Option<usize>>,
    slots: usize,
}

impl Places {
    fn state(&self, state: usize) -> usize {
        self.states[state].expect("a state that is read later is kept")
    }
}

impl Lives {
    fn of(walked: &Walked) -> Lives {
        let count = walked.tape.asked.len();
        let mut outputs: Vec<Life> = (0..count).map(|e| Life { born: 4 * e + 3, last: 4 * e + 3 }).collect();
        let mut states = vec![None; walked.updates.len() + 1];
        for at in 0..=count {
            let update = walked.update(at).map(|(made, of)| (of, made - 1, 4 * at));
            let input = walked.tape.asked.get(at).map(|a| (&a.input, walked.state_at(at), 4 * at + 2));
            for (of, current, now) in update.into_iter().chain(input) {
                for &(basis, _) in of {
                    match basis {
                        Basis::Output(e) => outputs[e].last = outputs[e].last.max(now),
                        Basis::State(s) if s != current => {
                            states[s] = Some(Life { born: 4 * walked.made_at(s) + 1, last: now });
                        }
                        Basis::State(_) | Basis::Draw(_) => {}
                    }
                }
            }
        }
        Lives { outputs, states }
    }

    /// A slot for each life, none of two at once; `None` if that takes too many.
    fn place(&self) -> Option<Places> {
        let mut order: Vec<(Life, Basis)> =
            self.outputs.iter().enumerate().map(|(e, life)| (*life, Basis::Output(e))).collect();
        order.extend(self.states.iter().enumerate().filter_map(|(s, life)| Some(((*life)?, Basis::State(s)))));
        order.sort_by_key(|(life, _)| life.born);
        let mut free_after: Vec<usize> = vec![];
        let mut places =
            Places { outputs: vec![0; self.outputs.len()], states: vec![None; self.states.len()], slots: 0 };
        for (life, what) in order {
            let slot = free_after.iter().position(|&last| last < life.born).unwrap_or(free_after.len());
            if slot == free_after.len() {
                free_after.push(0);
            }
            free_after[slot] = life.last;
            match what {
                Basis::Output(e) => places.outputs[e] = slot,
                Basis::State(s) => places.states[s] = Some(slot),
                Basis::Draw(_) => {}
            }
        }
        places.slots = free_after.len();
        (places.slots <= MOST_SLOTS).then_some(places)
    }
}
