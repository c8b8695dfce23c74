//! From a network's output to an estimate of data and noise, with guidance.

use super::Guidance;
use super::smc::gather;
use super::steer::ScoreTerm;
use crate::process::{Level, Process};
use crate::{Error, Result};
use dnx_ir::Array;

/// Which condition the network is evaluated under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// The sample's own label.
    Conditional,
    /// What classifier-free guidance moves away from: the null label of *this* network, or a negative label.
    Contrast,
}

/// One evaluation of the network that a denoiser asks for. Samples of a batch may be at different levels, and so may
/// the tokens of a sample: there are then as many levels as tokens, sample by sample.
#[derive(Clone, Copy, Debug)]
pub struct NetworkCall<'a> {
    /// What the network sees: the state times `c_in`, `[B, ..]`.
    pub x: &'a Array,
    /// What its time embedding is fed with, for each of the `B` samples.
    pub times: &'a [f64],
    /// What the second time embedding of a network of two times is fed with; 0 where no jump is meant.
    pub seconds: &'a [f64],
    /// The level of each sample, for networks that use the noise scale and for analytic ones.
    pub levels: &'a [Level<f64>],
    /// `c_in` of each sample.
    pub input_scales: &'a [f64],
    /// What is wanted: the output under each of these, one batch after the other, `[branches B, ..]`.
    pub branches: &'a [Branch],
}

/// A network as samplers see it. Any function of a [`NetworkCall`] is one, without derivatives.
pub trait Model {
    /// The outputs, `[branches B, ..]`.
    fn forward(&mut self, call: &NetworkCall<'_>) -> Result<Array>;

    /// The outputs, and of a network that learned the variances of a chain's steps their logarithms' places between
    /// those of the posterior (-1) and of the forward step (1), `[branches B, ..]` too.
    fn forward_ranges(&mut self, call: &NetworkCall<'_>) -> Result<(Array, Option<Array>)> {
        Ok((self.forward(call)?, None))
    }

    /// Output and its derivative along a direction of `x` (`[B, ..]` all), for a call of one branch.
    fn jvp(&mut self, _call: &NetworkCall<'_>, _tangent: &Array) -> Result<(Array, Array)> {
        Err(underivable())
    }

    /// The transposed derivative of the output by `x` applied to a cotangent, for a call of one branch.
    fn vjp(&mut self, _call: &NetworkCall<'_>, _cotangent: &Array) -> Result<Array> {
        Err(underivable())
    }
}

fn underivable() -> Error {
    Error::Domain("this network is a plain function, which has no derivative; give a Model that has".into())
}

impl<F: FnMut(&NetworkCall<'_>) -> Result<Array>> Model for F {
    fn forward(&mut self, call: &NetworkCall<'_>) -> Result<Array> {
        self(call)
    }
}

/// What a state is made of, `x = alpha x0 + sigma n`, element by element.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The data.
    pub x0: Vec<f64>,
    /// The noise.
    pub noise: Vec<f64>,
}

impl Estimate {
    /// The estimate whose data is `x0`, for states `x` at the level of each of `levels`.
    pub fn of_data(x0: Vec<f64>, x: &[f64], levels: &[Level<f64>]) -> Estimate {
        let each = x.len() / levels.len();
        let of = |i: usize| (x[i] - levels[i / each].alpha * x0[i]) / levels[i / each].sigma;
        let noise = (0..x.len()).map(of).collect();
        Estimate { x0, noise }
    }
}

/// Of states at a level, and the level of the jump.
type Known<'a> = Box<dyn FnMut(&[f64], &Level<f64>, &Level<f64>) -> Result<Estimate> + 'a>;

/// Where estimates come from.
enum Source<'a> {
    Model(Box<dyn Model + 'a>),
    Known(Known<'a>),
}

/// The outputs of each branch, and the first one's variances.
type Outputs = (Vec<Vec<f64>>, Option<Vec<f64>>);

/// A network and the process it was trained for.
struct Expert<'a> {
    process: &'a Process,
    source: Source<'a>,
}

/// The levels that states of a batch are at, and those they are to jump to: the same where no jump is meant.
#[derive(Clone, Copy)]
struct Jump<'a> {
    from: &'a [Level<f64>],
    to: &'a [Level<f64>],
}

/// A call's parts, owned.
struct Prepared {
    x: Array,
    times: Vec<f64>,
    seconds: Vec<f64>,
    scales: Vec<f64>,
}

impl Prepared {
    fn call<'b>(&'b self, levels: &'b [Level<f64>], branches: &'b [Branch]) -> NetworkCall<'b> {
        NetworkCall {
            x: &self.x,
            times: &self.times,
            seconds: &self.seconds,
            levels,
            input_scales: &self.scales,
            branches,
        }
    }
}

impl Expert<'_> {
    fn model(&mut self) -> Result<&mut dyn Model> {
        match &mut self.source {
            Source::Model(model) => Ok(&mut **model),
            Source::Known(_) => Err(Error::Domain("a law in closed form is no network: it is not guided".into())),
        }
    }

    fn prepare(&self, x: &[f64], dims: &[usize], jump: Jump<'_>) -> Prepared {
        let levels = jump.from;
        let scales: Vec<f64> = levels.iter().map(|l| self.process.coefficients(l).c_in).collect();
        let times = levels.iter().map(|l| self.process.time_input(l)).collect();
        let seconds = levels.iter().zip(jump.to).map(|(from, to)| self.process.second_input(from, to)).collect();
        let each = x.len() / levels.len();
        let scaled: Vec<f32> = x.iter().enumerate().map(|(i, &v)| (scales[i / each] * v) as f32).collect();
        Prepared { x: Array::f32(dims, &scaled), times, seconds, scales }
    }

    /// The outputs, branch after branch, and the first branch's variances where the network has them.
    fn outputs(&mut self, x: &[f64], dims: &[usize], jump: Jump<'_>, branches: &[Branch]) -> Result<Outputs> {
        let prepared = self.prepare(x, dims, jump);
        let (output, range) = self.model()?.forward_ranges(&prepared.call(jump.from, branches))?;
        let mut want = dims.to_vec();
        want[0] *= branches.len();
        for got in std::iter::once(&output).chain(&range).map(Array::dims) {
            if got != want {
                return Err(Error::Domain(format!("the network gave dims {got:?} for a state of {want:?}")));
            }
        }
        let range = range.map(|r| r.to_f64_vec()[..x.len()].to_vec());
        Ok((output.to_f64_vec().chunks(x.len()).map(<[f64]>::to_vec).collect(), range))
    }

    /// Data and noise of states whose outputs these are.
    fn solve(&self, x: &[f64], output: &[f64], levels: &[Level<f64>]) -> Estimate {
        let each = x.len() / levels.len();
        let (mut x0, mut noise) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
        for (s, level) in levels.iter().enumerate() {
            let [a, b, c, d] = self.process.coefficients(level).solve(level);
            for i in s * each..(s + 1) * each {
                let (x, f) = (x[i], output[i]);
                x0.push(a * x + b * f);
                noise.push(c * x + d * f);
            }
        }
        Estimate { x0, noise }
    }

    /// The level of this network's path with the same `sigma / alpha`, and the factor that brings a state there.
    fn meet(&self, other: &Process, level: &Level<f64>) -> Result<(Level<f64>, f64)> {
        if self.process.path == other.path {
            return Ok((*level, 1.0));
        }
        let [_, most] = self.process.time_range;
        let domain = self.process.path.domain();
        let top = self.process.level(crate::process::Time::new(domain, most)?)?;
        // At an end that is all noise, and beyond what this path reaches, its own noisiest level has to do.
        if level.alpha == 0.0 || level.sigma / level.alpha > top.sigma / top.alpha {
            return Ok((top, top.sigma / level.sigma));
        }
        let own = self.process.level(self.process.path.time_of_ratio(level.sigma / level.alpha)?)?;
        Ok((own, own.alpha / level.alpha))
    }
}

/// A network seen through its process, with whatever steers its estimates.
pub struct Denoiser<'a> {
    main: Expert<'a>,
    dims: Vec<usize>,
    guidance: Guidance,
    guide: Option<Expert<'a>>,
    terms: Vec<Box<dyn ScoreTerm + 'a>>,
    clip: Option<f64>,
    memory: Option<Memory>,
    range: Option<Vec<f64>>,
    evaluations: usize,
}

/// The last estimate, for those who ask twice.
#[derive(Default)]
struct Memory(Option<(Vec<f64>, Vec<Level<f64>>, Vec<Level<f64>>, Estimate)>);

impl<'a> Denoiser<'a> {
    /// A denoiser of states of these dims `[B, ..]` by a network: a device's program or any function.
    pub fn new(
        process: &'a Process,
        dims: &[usize],
        network: impl FnMut(&NetworkCall<'_>) -> Result<Array> + 'a,
    ) -> Denoiser<'a> {
        Denoiser::of(process, dims, network)
    }

    /// The same by a [`Model`], which may have derivatives.
    pub fn of(process: &'a Process, dims: &[usize], model: impl Model + 'a) -> Denoiser<'a> {
        Denoiser::by(process, dims, Source::Model(Box::new(model)))
    }

    /// A denoiser by a law that is known in closed form, in `f64` throughout: what solvers are measured against. Its
    /// samples are all at one level.
    pub fn known(
        process: &'a Process,
        dims: &[usize],
        mut estimate: impl FnMut(&[f64], &Level<f64>) -> Result<Estimate> + 'a,
    ) -> Denoiser<'a> {
        Denoiser::known_jump(process, dims, move |x, from, _| estimate(x, from))
    }

    /// [`Denoiser::known`] by a law that also looks at the level gone to, as networks of two times do.
    pub fn known_jump(
        process: &'a Process,
        dims: &[usize],
        estimate: impl FnMut(&[f64], &Level<f64>, &Level<f64>) -> Result<Estimate> + 'a,
    ) -> Denoiser<'a> {
        Denoiser::by(process, dims, Source::Known(Box::new(estimate)))
    }

    fn by(process: &'a Process, dims: &[usize], source: Source<'a>) -> Denoiser<'a> {
        Denoiser {
            main: Expert { process, source },
            dims: dims.to_vec(),
            guidance: Guidance::NONE,
            guide: None,
            terms: vec![],
            clip: None,
            memory: None,
            range: None,
            evaluations: 0,
        }
    }

    /// With guidance: classifier-free, or away from the guide if there is one.
    pub fn with_guidance(self, guidance: Guidance) -> Denoiser<'a> {
        Denoiser { guidance, ..self }
    }

    /// With a second network as what guidance moves away from (autoguidance). It has a process of its own: its states
    /// are brought to the level of its path with the same `sigma / alpha`, and data is mixed.
    pub fn with_guide(self, process: &'a Process, model: impl Model + 'a) -> Denoiser<'a> {
        Denoiser { guide: Some(Expert { process, source: Source::Model(Box::new(model)) }), ..self }
    }

    /// With a term added to the score: a classifier's gradient, a measurement's.
    pub fn with_term(mut self, term: impl ScoreTerm + 'a) -> Denoiser<'a> {
        self.terms.push(Box::new(term));
        self
    }

    /// With estimated data kept within `[-bound, bound]` (the noise estimate follows); before terms are added.
    pub fn with_clip(self, bound: Option<f64>) -> Denoiser<'a> {
        Denoiser { clip: bound, ..self }
    }

    /// Remembering the last estimate: asked again for the same states, the network is not evaluated.
    pub fn with_memory(self) -> Denoiser<'a> {
        Denoiser { memory: Some(Memory::default()), ..self }
    }

    /// The process.
    pub fn process(&self) -> &'a Process {
        self.main.process
    }

    /// Dims of the states, `[B, ..]`.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Where the network put the logarithms of the last estimate's variances, see [`Model::forward_ranges`]: those of
    /// the conditional branch, which guidance does not change.
    pub fn range(&self) -> Option<&[f64]> {
        self.range.as_deref()
    }

    /// How many times the network was evaluated (a guided evaluation counts once).
    pub fn evaluations(&self) -> usize {
        self.evaluations
    }

    /// The estimate of what the states `x` at a level are made of.
    pub fn estimate(&mut self, x: &[f64], level: &Level<f64>) -> Result<Estimate> {
        self.estimate_jump(x, level, level)
    }

    /// The estimate that a network of two times has for the jump from a level to `target`. With MeanFlow its velocity
    /// is the mean one over the jump, so that one Euler step makes it. A network of one time does not know the target.
    pub fn estimate_jump(&mut self, x: &[f64], level: &Level<f64>, target: &Level<f64>) -> Result<Estimate> {
        let samples = self.dims[0];
        self.look(x, Jump { from: &vec![*level; samples], to: &vec![*target; samples] })
    }

    /// [`Denoiser::estimate`] with a level for each sample, or for each token of networks whose tokens have them.
    pub fn estimate_each(&mut self, x: &[f64], levels: &[Level<f64>]) -> Result<Estimate> {
        self.look(x, Jump { from: levels, to: levels })
    }

    /// Puts what is remembered of the last states in the order of their children.
    pub(super) fn select(&mut self, parents: &[usize]) {
        if let Some(Memory(Some((x, from, to, estimate)))) = &mut self.memory {
            let each = x.len() / from.len();
            let rows = |v: &[f64]| gather(v, parents, each);
            (*x, estimate.x0, estimate.noise) = (rows(x), rows(&estimate.x0), rows(&estimate.noise));
            (*from, *to) = (gather(from, parents, 1), gather(to, parents, 1));
            self.range = self.range.take().map(|r| gather(&r, parents, each));
        }
    }

    fn look(&mut self, x: &[f64], jump: Jump<'_>) -> Result<Estimate> {
        let levels = jump.from;
        if let Some(Memory(Some((of, from, to, estimate)))) = &self.memory
            && of == x
            && from == levels
            && to == jump.to
        {
            return Ok(estimate.clone());
        }
        let mut estimate = self.plain(x, jump)?;
        if !self.terms.is_empty() {
            let mut terms = std::mem::take(&mut self.terms);
            let mut sum = vec![0.0; x.len()];
            let base = estimate.clone();
            let added = terms.iter_mut().try_for_each(|t| t.add(self, x, levels, &base, &mut sum));
            self.terms = terms;
            added?;
            let each = x.len() / levels.len();
            // The score of a state is (alpha x0 - x) / sigma^2: what it gains, the data gains times sigma^2 / alpha.
            for (i, gain) in sum.into_iter().enumerate() {
                let level = &levels[i / each];
                estimate.noise[i] -= level.sigma * gain;
                estimate.x0[i] += if level.alpha > 0.0 { level.sigma.powi(2) / level.alpha * gain } else { 0.0 };
            }
        }
        if let Some(memory) = &mut self.memory {
            memory.0 = Some((x.to_vec(), levels.to_vec(), jump.to.to_vec(), estimate.clone()));
        }
        Ok(estimate)
    }

    /// The estimate by networks and guidance alone, without terms.
    fn plain(&mut self, x: &[f64], jump: Jump<'_>) -> Result<Estimate> {
        let levels = jump.from;
        let rows = levels.len();
        let whole = rows > 0 && rows.is_multiple_of(self.dims[0]) && x.len().is_multiple_of(rows);
        if !whole || x.len() != self.dims.iter().product::<usize>() {
            let (got, want) = (x.len(), &self.dims);
            return Err(Error::Domain(format!("{got} numbers at {rows} levels are no states of {want:?}")));
        }
        if levels.iter().any(|l| l.sigma == 0.0) {
            return Err(Error::Domain("a clean state was given to the denoiser".into()));
        }
        let scales: Vec<f64> = levels.iter().map(|l| self.guidance.at(l)).collect();
        let guided = scales.iter().any(|&s| s != 1.0);
        self.evaluations += 1;
        let (each, width) = (x.len() / rows, self.width());
        let mut estimate = match &mut self.main.source {
            Source::Known(known) if levels.iter().all(|l| *l == levels[0]) => known(x, &levels[0], &jump.to[0])?,
            Source::Known(_) => {
                return Err(Error::Domain("a law in closed form is asked for one level at a time".into()));
            }
            Source::Model(_) => {
                let branches: &[Branch] = match guided && self.guide.is_none() {
                    true => &[Branch::Conditional, Branch::Contrast],
                    false => &[Branch::Conditional],
                };
                let (mut outputs, range) = self.main.outputs(x, &self.dims, jump, branches)?;
                self.range = range;
                let contrast = outputs.split_off(1).pop();
                let mut output = outputs.swap_remove(0);
                if let Some(contrast) = contrast {
                    for (s, scale) in scales.iter().enumerate() {
                        let range = s * each..(s + 1) * each;
                        self.guidance.mix(&mut output[range.clone()], &contrast[range], *scale, width);
                    }
                }
                self.main.solve(x, &output, levels)
            }
        };
        if let Some(guide) = self.guide.as_mut().filter(|_| guided) {
            let meet = |levels: &[Level<f64>], guide: &Expert<'_>| {
                levels.iter().map(|l| guide.meet(self.main.process, l)).collect::<Result<Vec<_>>>()
            };
            let met = meet(levels, guide)?;
            let own: Vec<f64> = x.iter().enumerate().map(|(i, &v)| v * met[i / each].1).collect();
            let at: Vec<Level<f64>> = met.iter().map(|m| m.0).collect();
            let to: Vec<Level<f64>> = meet(jump.to, guide)?.iter().map(|m| m.0).collect();
            let (outputs, _) = guide.outputs(&own, &self.dims, Jump { from: &at, to: &to }, &[Branch::Conditional])?;
            let contrast = guide.solve(&own, &outputs[0], &at).x0;
            for (s, &scale) in scales.iter().enumerate().filter(|(_, scale)| **scale != 1.0) {
                let range = s * each..(s + 1) * each;
                self.guidance.mix(&mut estimate.x0[range.clone()], &contrast[range.clone()], scale, width);
                for i in range {
                    estimate.noise[i] = (x[i] - levels[s].alpha * estimate.x0[i]) / levels[s].sigma;
                }
            }
        }
        if let Some(bound) = self.clip {
            for (i, x0) in estimate.x0.iter_mut().enumerate() {
                if x0.abs() > bound {
                    let level = &levels[i / each];
                    *x0 = x0.clamp(-bound, bound);
                    estimate.noise[i] = (x[i] - level.alpha * *x0) / level.sigma;
                }
            }
        }
        Ok(estimate)
    }

    /// Channels: the size of the last axis.
    fn width(&self) -> usize {
        self.dims.last().copied().filter(|_| self.dims.len() > 1).unwrap_or(1)
    }

    /// The conditional network's data estimate and its derivative along a direction of the states, all `[B, ..]`.
    ///
    /// # Errors
    /// With guidance, terms or a bound in force, whose derivative this is not.
    pub fn push_forward(&mut self, x: &[f64], levels: &[Level<f64>], tangent: &[f64]) -> Result<(Estimate, Vec<f64>)> {
        let guided = levels.iter().any(|l| self.guidance.at(l) != 1.0);
        if guided || self.clip.is_some() || !self.terms.is_empty() {
            let message = "a derivative along a direction is of the network alone: take guidance, terms and clip away";
            return Err(Error::Domain(message.into()));
        }
        let prepared = self.main.prepare(x, &self.dims, Jump { from: levels, to: levels });
        let each = x.len() / levels.len();
        let scaled: Vec<f32> =
            tangent.iter().enumerate().map(|(i, t)| (prepared.scales[i / each] * t) as f32).collect();
        let direction = Array::f32(self.dims.clone(), &scaled);
        let (output, moved) = self.main.model()?.jvp(&prepared.call(levels, &[Branch::Conditional]), &direction)?;
        self.evaluations += 1;
        let estimate = self.main.solve(x, &output.to_f64_vec(), levels);
        let moved = moved.to_f64_vec();
        let of = |i: usize, solved: &[[f64; 4]]| solved[i / each][0] * tangent[i] + solved[i / each][1] * moved[i];
        let solved: Vec<[f64; 4]> = levels.iter().map(|l| self.main.process.coefficients(l).solve(l)).collect();
        Ok((estimate, (0..x.len()).map(|i| of(i, &solved)).collect()))
    }

    /// The transposed derivative of the data estimate by the states, applied to a cotangent `[B, ..]`.
    ///
    /// # Errors
    /// With autoguidance or rescaled guidance in force, whose derivative is not taken, and if the network has none.
    pub fn pull_back(&mut self, x: &[f64], levels: &[Level<f64>], cotangent: &[f64]) -> Result<Vec<f64>> {
        let scales: Vec<f64> = levels.iter().map(|l| self.guidance.at(l)).collect();
        let guided = scales.iter().any(|&s| s != 1.0);
        if guided && (self.guide.is_some() || self.guidance.rescale > 0.0) {
            let message = "no derivative is taken through autoguidance or rescaled guidance; use plain cfg";
            return Err(Error::Domain(message.into()));
        }
        let prepared = self.main.prepare(x, &self.dims, Jump { from: levels, to: levels });
        let (each, width) = (x.len() / levels.len(), self.width());
        let solved: Vec<[f64; 4]> = levels.iter().map(|l| self.main.process.coefficients(l).solve(l)).collect();
        let mut out: Vec<f64> = cotangent.iter().enumerate().map(|(i, c)| solved[i / each][0] * c).collect();
        for (k, branch) in [Branch::Conditional, Branch::Contrast].into_iter().enumerate().take(1 + guided as usize) {
            let share = |i: usize| match scales[i / each] {
                1.0 => [1.0, 0.0][k],
                scale => self.guidance.weights(scale, i % each % width)[k],
            };
            let given: Vec<f32> =
                cotangent.iter().enumerate().map(|(i, c)| (solved[i / each][1] * share(i) * c) as f32).collect();
            let given = Array::f32(self.dims.clone(), &given);
            let back = self.main.model()?.vjp(&prepared.call(levels, &[branch]), &given)?.to_f64_vec();
            out.iter_mut().zip(back).enumerate().for_each(|(i, (o, b))| *o += prepared.scales[i / each] * b);
        }
        Ok(out)
    }
}
