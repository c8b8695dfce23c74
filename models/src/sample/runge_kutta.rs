//! Solvers of the probability-flow ODE by Runge-Kutta, from Euler to Tsitouras, as tables.
//!
//! At clean data most networks say nothing, so no stage lies there: the step to it is taken by a rule whose stages
//! all come before the end, of an order high enough that one such step does not lower the order of the whole.

use super::chart::{Point, is_pure_noise, level_at, level_at_ratio, transfer};
use super::{Denoiser, Grid, Noise, Run, Sampler, Step, Stepper};
use crate::process::{Level, Process, Time};
use crate::{Error, Result};

/// A rule: stage `i` is at `c[i]` of the step, from the slopes before it by `a[i]`; the step is `b` of all slopes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tableau {
    /// Where the stages are.
    pub c: Vec<f64>,
    /// Weights of the earlier slopes in each stage.
    pub a: Vec<Vec<f64>>,
    /// Weights of the slopes in the step.
    pub b: Vec<f64>,
    /// The same less those of the embedded rule: weights of the slopes in the estimated error.
    pub error: Option<Vec<f64>>,
    /// Order of the rule.
    pub order: usize,
}

impl Tableau {
    fn new(a: &[&[f64]], b: &[f64], order: usize) -> Tableau {
        let c = a.iter().map(|row| row.iter().sum()).collect();
        Tableau { c, a: a.iter().map(|r| r.to_vec()).collect(), b: b.to_vec(), error: None, order }
    }

    fn with_error(self, error: &[f64]) -> Tableau {
        Tableau { error: Some(error.to_vec()), ..self }
    }

    /// `x + h d(x, t)`.
    pub fn euler() -> Tableau {
        Tableau::new(&[&[]], &[1.0], 1)
    }

    /// Second order with the second slope at `alpha` of the step: 1 is Heun, 1/2 the midpoint, 2/3 Ralston.
    pub fn second_order(alpha: f64) -> Tableau {
        let w = 0.5 / alpha;
        Tableau::new(&[&[], &[alpha]], &[1.0 - w, w], 2)
    }

    /// The classical rule of fourth order.
    pub fn rk4() -> Tableau {
        let b = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0];
        Tableau::new(&[&[], &[0.5], &[0.0, 0.5], &[0.0, 0.0, 1.0]], &b, 4)
    }

    /// Third order with all stages before the end: the step of Bogacki and Shampine's rule.
    pub fn third_order() -> Tableau {
        Tableau::new(&[&[], &[0.5], &[0.0, 0.75]], &[2.0 / 9.0, 1.0 / 3.0, 4.0 / 9.0], 3)
    }

    /// Bogacki and Shampine, 1989: 3(2).
    pub fn bogacki_shampine() -> Tableau {
        let b = [2.0 / 9.0, 1.0 / 3.0, 4.0 / 9.0, 0.0];
        let low = [7.0 / 24.0, 0.25, 1.0 / 3.0, 0.125];
        let error: Vec<f64> = b.iter().zip(low).map(|(b, l)| b - l).collect();
        Tableau::new(&[&[], &[0.5], &[0.0, 0.75], &b[..3]], &b, 3).with_error(&error)
    }

    /// Dormand and Prince, 1980: 5(4).
    pub fn dormand_prince() -> Tableau {
        let b = [35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0];
        let low =
            [5179.0 / 57600.0, 0.0, 7571.0 / 16695.0, 393.0 / 640.0, -92097.0 / 339200.0, 187.0 / 2100.0, 1.0 / 40.0];
        let error: Vec<f64> = b.iter().zip(low).map(|(b, l)| b - l).collect();
        let a: [&[f64]; 7] = [
            &[],
            &[1.0 / 5.0],
            &[3.0 / 40.0, 9.0 / 40.0],
            &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
            &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
            &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
            &b[..6],
        ];
        Tableau::new(&a, &b, 5).with_error(&error)
    }

    /// Tsitouras, 2011: 5(4).
    pub fn tsitouras() -> Tableau {
        let b = [
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0.0,
        ];
        let error = [
            -0.001780011052225777,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            0.015151515151515152,
        ];
        let a: [&[f64]; 7] = [
            &[],
            &[0.161],
            &[-0.008480655492356989, 0.335480655492357],
            &[2.8971530571054935, -6.359448489975075, 4.3622954328695815],
            &[5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
            &[5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
            &b[..6],
        ];
        Tableau::new(&a, &b, 5).with_error(&error)
    }

    /// Whether the last slope is the next step's first.
    fn first_same_as_last(&self) -> bool {
        let last = self.c.len() - 1;
        self.b[last] == 0.0 && self.a[last][..] == self.b[..last]
    }

    /// The rule that takes the step to clean data in this one's stead, if this one would look there.
    fn closing(&self) -> Tableau {
        if self.c.iter().all(|&c| c < 1.0 - 1e-9) {
            self.clone()
        } else if self.order <= 2 {
            Tableau::euler()
        } else {
            Tableau::third_order()
        }
    }
}

/// The state after a step and the slopes it took, in the coordinates of [`Point`].
struct Moved {
    y: Vec<f64>,
    slopes: Vec<Vec<f64>>,
}

/// One step of a rule from the state `x`; `first` is its first slope where that is known.
fn advance(
    rule: &Tableau,
    x: &[f64],
    denoiser: &mut Denoiser<'_>,
    from: &Level<f64>,
    to: &Level<f64>,
    first: Option<Vec<f64>>,
) -> Result<Moved> {
    let process: &Process = denoiser.process();
    let (start, end) = (Point::of(from), Point::of(to));
    let h = end.s - start.s;
    let y: Vec<f64> = x.iter().map(|x| x / start.scale).collect();
    let sum = |weights: &[f64], slopes: &[Vec<f64>]| -> Vec<f64> {
        let mut out = y.clone();
        for (w, slope) in weights.iter().zip(slopes).filter(|(w, _)| **w != 0.0) {
            out.iter_mut().zip(slope).for_each(|(o, d)| *o += h * w * d);
        }
        out
    };
    let mut slopes: Vec<Vec<f64>> = first.into_iter().collect();
    for (c, a) in rule.c.iter().zip(&rule.a).skip(slopes.len()) {
        let level = match *c {
            0.0 => *from,
            c if (c - 1.0).abs() < 1e-9 => *to,
            c => level_at(process, from, start.s + c * h)?,
        };
        let point = Point::of(&level);
        let x: Vec<f64> = sum(a, &slopes).iter().map(|y| point.scale * y).collect();
        slopes.push(point.velocity(&denoiser.estimate(&x, &level)?));
    }
    Ok(Moved { y: sum(&rule.b, &slopes), slopes })
}

/// `x + h d(x, t)`: first order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Euler;

/// The mean of the slopes at both ends: second order, two evaluations a step. The second is a fresh evaluation at
/// the Euler step's end; the last step, to clean data, is Euler's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heun;

impl Sampler for Euler {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        RungeKutta::new(Tableau::euler()).start(run)
    }
}

impl Sampler for Heun {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        RungeKutta::second_order(1.0).start(run)
    }
}

/// A rule over the grid's own steps.
#[derive(Clone, Debug)]
pub struct RungeKutta {
    rule: Tableau,
    closing: Tableau,
}

impl RungeKutta {
    /// Steps by this rule.
    pub fn new(rule: Tableau) -> RungeKutta {
        RungeKutta { closing: rule.closing(), rule }
    }

    /// Second order with the second slope at `alpha` of the step; with 1, Heun, whose last step is Euler's.
    pub fn second_order(alpha: f64) -> RungeKutta {
        RungeKutta::new(Tableau::second_order(alpha))
    }

    /// Fourth order.
    pub fn rk4() -> RungeKutta {
        RungeKutta::new(Tableau::rk4())
    }
}

impl Sampler for RungeKutta {
    fn is_linear(&self) -> bool {
        true
    }

    fn start(&self, _: &Run<'_>) -> Result<Box<dyn Stepper>> {
        Ok(Box::new(self.clone()))
    }
}

impl Stepper for RungeKutta {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        // A chain that begins with no data at all has no `x / alpha` to follow there.
        if step.from.rates.is_none() && is_pure_noise(&step.from) {
            let e = denoiser.estimate(x, &step.from)?;
            x.copy_from_slice(&transfer(&e, &step.to));
            return Ok(());
        }
        let rule = if step.is_last() { &self.closing } else { &self.rule };
        let y = advance(rule, x, denoiser, &step.from, &step.to, None)?.y;
        put(x, &y, &step.to);
        Ok(())
    }
}

fn put(x: &mut [f64], y: &[f64], level: &Level<f64>) {
    let scale = Point::of(level).scale;
    x.iter_mut().zip(y).for_each(|(x, y)| *x = scale * y);
}

/// A rule with an embedded one that measures its error, and steps as long as the tolerances allow. It chooses its
/// own times between the grid's ends. The worst sample of a batch sets the step, so a seed's sample depends on its
/// batch within the tolerances.
#[derive(Clone, Debug)]
pub struct Adaptive {
    /// A rule with an error estimate.
    pub rule: Tableau,
    /// Absolute tolerance.
    pub atol: f64,
    /// Relative tolerance.
    pub rtol: f64,
}

/// `sigma / alpha` at which an adaptive solver leaves the rest to one denoising step.
const CLEAN_ENOUGH: f64 = 1e-3;

/// Most steps, accepted and refused, between two levels.
const PATIENCE: usize = 20_000;

struct AdaptiveRun {
    solver: Adaptive,
    /// Length of the next step, and the error of the last one in units of the tolerance.
    length: Option<f64>,
    last_error: f64,
}

impl Sampler for Adaptive {
    fn levels(&self, process: &Process, grid: &Grid) -> Result<Grid> {
        let (first, last) = (grid.levels[0], grid.levels[grid.steps()]);
        if last.sigma != 0.0 {
            return Ok(Grid { levels: vec![first, last] });
        }
        let lowest = process.level(Time::new(process.path.domain(), process.time_range[0])?)?;
        let stop = if lowest.sigma > 0.0 { lowest } else { level_at_ratio(process, CLEAN_ENOUGH)? };
        let levels = if stop.sigma < first.sigma { vec![first, stop, last] } else { vec![first, last] };
        Ok(Grid { levels })
    }

    fn is_linear(&self) -> bool {
        false
    }

    fn start(&self, run: &Run<'_>) -> Result<Box<dyn Stepper>> {
        let first = &run.grid.levels[0];
        if first.rates.is_none() && is_pure_noise(first) {
            let message = "an adaptive solver follows x / alpha, which a chain that begins with no data has not; begin at a step below (process.time_range)";
            return Err(Error::config("sample.sampler", message));
        }
        Ok(Box::new(AdaptiveRun { solver: self.clone(), length: None, last_error: 1.0 }))
    }
}

impl AdaptiveRun {
    /// The greatest error of a sample, root mean square over its elements, in units of the tolerance.
    fn error(&self, batch: usize, from: &[f64], moved: &Moved, h: f64) -> f64 {
        let weights = self.solver.rule.error.as_deref().unwrap_or(&[]);
        let elems = from.len() / batch.max(1);
        let of = |i: usize| {
            let e: f64 = weights.iter().zip(&moved.slopes).map(|(w, d)| w * d[i]).sum();
            let within = self.solver.atol + self.solver.rtol * from[i].abs().max(moved.y[i].abs());
            (h * e / within).powi(2)
        };
        let sample = |s: usize| ((s * elems..(s + 1) * elems).map(of).sum::<f64>() / elems as f64).sqrt();
        (0..batch.max(1)).map(sample).fold(0.0, f64::max)
    }

    /// A first length: a hundredth of what would double the state.
    fn first_length(y: &[f64], slope: &[f64], whole: f64) -> f64 {
        let norm = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
        (0.01 * norm(y) / norm(slope).max(1e-12)).clamp(1e-6 * whole, 0.1 * whole)
    }
}

impl Stepper for AdaptiveRun {
    fn step(&mut self, x: &mut [f64], denoiser: &mut Denoiser<'_>, step: &Step, _: &mut dyn Noise) -> Result<()> {
        if step.is_last() {
            let y = advance(&Tableau::euler(), x, denoiser, &step.from, &step.to, None)?.y;
            put(x, &y, &step.to);
            return Ok(());
        }
        let process: &Process = denoiser.process();
        let (mut from, end) = (step.from, Point::of(&step.to));
        let whole = (end.s - Point::of(&from).s).abs();
        let sign = (end.s - Point::of(&from).s).signum();
        let mut slope = Some(Point::of(&from).velocity(&denoiser.estimate(x, &from)?));
        // The error falls with one power more than the embedded rule's order, which is that of the rule itself.
        let power = self.solver.rule.order as f64;
        for _ in 0..PATIENCE {
            let start = Point::of(&from);
            let y: Vec<f64> = x.iter().map(|x| x / start.scale).collect();
            let first = slope.take();
            let length = match (self.length, &first) {
                (Some(length), _) => length,
                (None, Some(slope)) => AdaptiveRun::first_length(&y, slope, whole),
                (None, None) => 0.01 * whole,
            };
            let left = (end.s - start.s).abs();
            let last = length >= left * (1.0 - 1e-9);
            let to = if last { step.to } else { level_at(process, &from, start.s + sign * length)? };
            let taken = if last { left } else { length };
            let moved = advance(&self.solver.rule, x, denoiser, &from, &to, first)?;
            let error = self.error(denoiser.dims()[0], &y, &moved, taken);
            if !error.is_finite() {
                let time = from.time;
                return Err(Error::Domain(format!("the solver's error is {error} at time {time}")));
            }
            let (now, before) = (error.max(1e-10), self.last_error.max(1e-10));
            if error <= 1.0 {
                let factor = 0.9 * now.powf(-0.7 / power) * before.powf(0.4 / power);
                self.last_error = now;
                // A step cut short by the end says little about how long the next one may be.
                let next = taken * factor.clamp(0.2, 5.0);
                self.length = Some(if last { next.max(length) } else { next });
                put(x, &moved.y, &to);
                if last {
                    return Ok(());
                }
                slope = moved.slopes.into_iter().next_back().filter(|_| self.solver.rule.first_same_as_last());
                from = to;
            } else {
                self.length = Some(taken * (0.9 * now.powf(-1.0 / power)).clamp(0.1, 0.9));
                slope = moved.slopes.into_iter().next();
            }
        }
        let (atol, rtol) = (self.solver.atol, self.solver.rtol);
        let message =
            format!("{PATIENCE} steps do not reach atol {atol}, rtol {rtol}; the network is not smooth enough");
        Err(Error::config("sample.atol", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Tableau> {
        vec![
            Tableau::euler(),
            Tableau::second_order(1.0),
            Tableau::second_order(0.5),
            Tableau::second_order(2.0 / 3.0),
            Tableau::third_order(),
            Tableau::rk4(),
            Tableau::bogacki_shampine(),
            Tableau::dormand_prince(),
            Tableau::tsitouras(),
        ]
    }

    /// The conditions that a rule of order 1 to 4 fulfils (Hairer, Norsett and Wanner, table II.2.1), and of order 5
    /// those on the quadrature and the longest chain.
    #[test]
    fn rules_have_their_order() {
        for rule in all() {
            let dot = |w: &[f64], v: &[f64]| w.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
            let apply = |v: &[f64]| rule.a.iter().map(|row| dot(row, v)).collect::<Vec<f64>>();
            let c = &rule.c;
            let power = |k: i32| c.iter().map(|c| c.powi(k)).collect::<Vec<f64>>();
            let times = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f64>>();
            let chain = |k: usize| (0..k).fold(vec![1.0; c.len()], |v, _| apply(&v));
            let mut conditions = vec![(1, power(0), 1.0), (2, power(1), 0.5), (3, power(2), 1.0 / 3.0)];
            conditions.push((3, apply(c), 1.0 / 6.0));
            conditions.push((4, power(3), 0.25));
            conditions.push((4, times(c, &apply(c)), 0.125));
            conditions.push((4, apply(&power(2)), 1.0 / 12.0));
            conditions.push((4, chain(3), 1.0 / 24.0));
            conditions.push((5, power(4), 0.2));
            conditions.push((5, chain(4), 1.0 / 120.0));
            let mut fails = 0;
            for (order, v, want) in conditions {
                let got = dot(&rule.b, &v);
                if order <= rule.order {
                    assert!((got - want).abs() < 1e-12, "order {order}: {got}, not {want}, of {rule:?}");
                } else {
                    fails += usize::from((got - want).abs() > 1e-6);
                }
            }
            assert!(fails > 0 || rule.order == 5, "{rule:?} is of higher order than it says");
            if let Some(error) = &rule.error {
                assert!(error.iter().sum::<f64>().abs() < 1e-12);
                assert!(dot(error, c).abs() < 1e-12);
                assert!(rule.first_same_as_last());
            }
        }
    }

    #[test]
    fn no_rule_looks_at_clean_data() {
        for rule in all() {
            assert!(rule.closing().c.iter().all(|&c| c < 1.0), "{rule:?}");
        }
    }
}
