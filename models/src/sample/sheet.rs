//! A recording as numbers that a device reads: one row per evaluation, and where draws are put.
//!
//! A device keeps the state as a sum of two `f32`. An update `state x + sum c_k t_k` is written `keep x + d` with `keep`
//! the power of two that is nearest to the state's coefficient (no rounding) and `d = move x + sum c_k t_k` (rounded
//! once), so what rounding costs is a share of what the step changes, not of the state.

use super::record::{Recording, Sum, Term};

/// What recordings that are played by the same programs have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Rows of the table; a power of two, so that runs of other lengths find their programs made.
    pub rows: usize,
    /// Slots, the one for states that nobody wants included.
    pub slots: usize,
    /// Arrays of noise at once.
    pub draws: usize,
    /// Whether states are put into slots.
    pub keeps: bool,
}

/// Columns of a row before the coefficients of slots and draws.
#[derive(Clone, Copy)]
pub(super) enum Column {
    Time,
    Sigma,
    Second,
    /// The guidance scale less one.
    Push,
    /// Of the update: the power of two, and what the state's coefficient is more.
    Keep,
    Move,
    /// The state's coefficient in what the network sees.
    Input,
}

const COLUMNS: usize = 7;

/// Fewest rows of a table.
const ROWS: usize = 64;

impl Shape {
    /// Columns of the table: those of [`Column`], then coefficients of slots and of draws in the update, then of both in
    /// what the network sees. Slots are in the order of [`Row::order`].
    pub fn width(self) -> usize {
        COLUMNS + 2 * (self.slots + self.draws)
    }

    /// The columns of slots and draws in the update.
    pub fn update(self) -> std::ops::Range<usize> {
        COLUMNS..COLUMNS + self.slots + self.draws
    }

    /// The same in what the network sees.
    pub fn input(self) -> std::ops::Range<usize> {
        self.update().end..self.width()
    }
}

/// What the host knows of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Whether the network is evaluated under both labels.
    pub guided: bool,
    /// The slots: the one that is written, the one that takes the state if the shape keeps any, then the others.
    pub order: Vec<usize>,
    /// Draws to be put into these arrays of noise before this row runs.
    pub draws: Vec<(usize, usize)>,
    /// The states of the recording's levels that are there once this row has run.
    pub made: Vec<usize>,
}

/// A recording laid out for a device. The last row has no evaluation: it makes the last state.
#[derive(Clone, Debug)]
pub(super) struct Sheet {
    pub shape: Shape,
    pub table: Vec<f32>,
    pub rows: Vec<Row>,
    /// Per draw whether anything is made of it.
    pub wanted: Vec<bool>,
}

/// The power of two that is nearest to a coefficient, and the rest; nothing is kept of what changes its sign.
fn split(coefficient: f64) -> (f64, f64) {
    let keep = match coefficient {
        c if c > 1e-30 && c < 1e30 => {
            let below = c.log2().floor().exp2();
            if c <= 1.5 * below { below } else { 2.0 * below }
        }
        _ => 0.0,
    };
    (keep, coefficient - keep)
}

impl Sheet {
    pub fn of(recording: &Recording) -> Sheet {
        let count = recording.evaluations.len();
        let keeps = recording.evaluations.iter().any(|e| e.keep.is_some());
        let (places, writes, draws) = noise(recording);
        let shape = Shape {
            rows: (count + 1).next_power_of_two().max(ROWS),
            slots: recording.slots + usize::from(keeps),
            draws,
            keeps,
        };
        let mut table = Vec::with_capacity(shape.rows * shape.width());
        let mut rows = Vec::with_capacity(count + 1);
        // Rows of one step put the same state into the same slot.
        let (mut step, mut kept) = (usize::MAX, None);
        for at in 0..=count {
            let evaluation = recording.evaluations.get(at);
            if let Some(e) = evaluation
                && e.step != step
            {
                (step, kept) = (e.step, e.keep);
            }
            let mut order: Vec<usize> = evaluation.map(|e| e.output).into_iter().collect();
            if keeps && evaluation.is_some() {
                order.push(kept.unwrap_or(recording.slots));
            }
            order.extend((0..shape.slots).filter(|s| !order.contains(s)).collect::<Vec<_>>());
            let mut row = vec![0f32; shape.width()];
            let update = evaluation.map_or(&recording.last, |e| &e.update);
            let (keep, rest) = split(update.state);
            row[Column::Keep as usize] = keep as f32;
            row[Column::Move as usize] = rest as f32;
            fill(&mut row[shape.update()], update, &order, &places);
            if let Some(e) = evaluation {
                row[Column::Time as usize] = e.time as f32;
                row[Column::Sigma as usize] = e.level.sigma as f32;
                row[Column::Second as usize] = e.second as f32;
                row[Column::Push as usize] = (e.scale - 1.0) as f32;
                row[Column::Input as usize] = e.input.state as f32;
                fill(&mut row[shape.input()], &e.input, &order, &places);
            }
            table.extend(row);
            rows.push(Row {
                guided: evaluation.is_some_and(|e| e.scale != 1.0),
                order,
                draws: writes[at].clone(),
                made: (0..recording.made_at.len()).filter(|&s| recording.made_at[s] == at).collect(),
            });
        }
        table.resize(shape.rows * shape.width(), 0.0);
        Sheet { shape, table, rows, wanted: places.iter().map(Option::is_some).collect() }
    }
}

/// Puts a sum's coefficients where slots and draws have theirs.
fn fill(row: &mut [f32], sum: &Sum, order: &[usize], places: &[Option<usize>]) {
    for (term, c) in &sum.terms {
        let at = match *term {
            Term::Slot(slot) => order.iter().position(|&s| s == slot),
            Term::Draw(draw) => places[draw].map(|p| order.len() + p),
        };
        row[at.expect("slots and draws of a sum have a place")] = *c as f32;
    }
}

/// For each draw the array of noise it is put into, if anything is made of it; per row what is put where before it; and
/// how many arrays there are. Draws are put in place before the first row of the step that wants them, and stay to the
/// end of the last such step: the rows of a step need nothing of the host.
#[expect(clippy::type_complexity, reason = "three lists that are wanted once")]
fn noise(recording: &Recording) -> (Vec<Option<usize>>, Vec<Vec<(usize, usize)>>, usize) {
    let count = recording.evaluations.len();
    // What is made of the last row is a step of its own.
    let step_of = |at: usize| recording.evaluations.get(at).map_or(usize::MAX, |e| e.step);
    let first_row = |at: usize| (0..=at).rev().take_while(|&r| step_of(r) == step_of(at)).last().unwrap_or(at);
    let mut life: Vec<Option<(usize, usize)>> = vec![None; recording.draws];
    for at in 0..=count {
        let evaluation = recording.evaluations.get(at);
        let sums = [Some(evaluation.map_or(&recording.last, |e| &e.update)), evaluation.map(|e| &e.input)];
        for (term, _) in sums.into_iter().flatten().flat_map(|s| &s.terms) {
            if let Term::Draw(d) = *term {
                let born = life[d].map_or_else(|| first_row(at), |(born, _)| born);
                life[d] = Some((born, at));
            }
        }
    }
    let mut order: Vec<usize> = (0..life.len()).filter(|&d| life[d].is_some()).collect();
    order.sort_by_key(|&d| life[d]);
    let mut free_after: Vec<usize> = vec![];
    let mut places = vec![None; life.len()];
    let mut writes = vec![vec![]; count + 1];
    for d in order {
        let Some((born, last)) = life[d] else { continue };
        let free = |&until: &usize| until < born && step_of(until) != step_of(born);
        let place = free_after.iter().position(free).unwrap_or(free_after.len());
        if place == free_after.len() {
            free_after.push(0);
        }
        free_after[place] = last;
        places[d] = Some(place);
        writes[born].push((d, place));
    }
    (places, writes, free_after.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_power_of_two() {
        for (c, keep) in [(1.0, 1.0), (0.72, 0.5), (0.8, 1.0), (1.7, 2.0), (0.26, 0.25), (0.0, 0.0), (-0.9, 0.0)] {
            let (kept, rest) = split(c);
            assert_eq!(kept, keep, "{c}");
            assert_eq!(kept + rest, c);
        }
    }
}
