//! Joining pairs of pointwise steps: a value that one step alone reads needs no memory of its own if both are done
//! at once. Products that are added are rounded once where the processor can.

use super::ops::Pointwise;
use super::plan::{Domain, Place, Step, StepOp, Val};

/// The operation that does a first one on two operands, and then a second one on its result and a third operand.
/// `left`: the result is the second one's left operand.
fn joined(first: Pointwise, second: Pointwise, left: bool) -> Option<Pointwise> {
    use Pointwise::*;
    Some(match (first, second) {
        (MulF, AddF) => MulAdd,
        (MulF, SubF) if left => MulSub,
        (MulF, SubF) => SubMul,
        (MulF, MulF) => MulMul,
        (AddF, AddF) => AddAdd,
        (AddF, MulF) => AddThenMul,
        (SubF, MulF) => SubThenMul,
        _ => return None,
    })
}

/// Joins what can be joined, sums of products first.
pub(super) fn join(work: &mut Vec<Step>) {
    let values = work.iter().map(|s| s.op.reads().into_iter().chain([s.dst]).max().unwrap_or(0) + 1).max();
    let values = values.unwrap_or(0);
    for products in [true, false] {
        let mut readers = vec![0usize; values];
        let mut made_at = vec![None; values];
        for (at, step) in work.iter().enumerate() {
            step.op.inputs().iter().for_each(|&v| readers[v] += 1);
            made_at[step.dst] = Some(at);
        }
        let mut gone = vec![false; work.len()];
        for at in 0..work.len() {
            let StepOp::Point(second, [x, y, _]) = work[at].op else { continue };
            let domain = work[at].domain;
            let producer = |v: Val| -> Option<(usize, Pointwise, [Val; 2])> {
                let from = made_at[v].filter(|_| readers[v] == 1)?;
                let step: &Step = &work[from];
                match step.op {
                    StepOp::Point(op, [a, b, _]) if step.domain == domain && step.place == Place::None => {
                        Some((from, op, [a, b]))
                    }
                    _ => None,
                }
            };
            let found = [(x, y, true), (y, x, false)].into_iter().find_map(|(v, other, left)| {
                let (from, first, operands) = producer(v)?;
                let op = joined(first, second, left)?;
                let wanted = !products || matches!(op, Pointwise::MulAdd | Pointwise::MulSub | Pointwise::SubMul);
                wanted.then_some((from, op, [operands[0], operands[1], other]))
            });
            if let Some((from, op, operands)) = found
                && domain != Domain::Uniform
            {
                gone[from] = true;
                work[at].op = StepOp::Point(op, operands);
            }
        }
        let mut at = 0;
        work.retain(|_| {
            at += 1;
            !gone[at - 1]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(op: Pointwise, operands: &[Val], dst: Val) -> Step {
        let mut all = [operands[0]; 3];
        all[..operands.len()].copy_from_slice(operands);
        Step { op: StepOp::Point(op, all), domain: Domain::Full, dst, place: Place::None }
    }

    fn run(mut work: Vec<Step>) -> Vec<String> {
        join(&mut work);
        work.iter().map(|s| format!("{} = {:?}", s.dst, s.op)).collect()
    }

    #[test]
    fn polynomials_become_fused_steps() {
        use Pointwise::*;
        // ((0 * 1 + 2) * 1 + 3) * 1
        let work = [
            point(MulF, &[0, 1], 10),
            point(AddF, &[10, 2], 11),
            point(MulF, &[11, 1], 12),
            point(AddF, &[3, 12], 13),
            point(MulF, &[13, 1], 14),
        ];
        let text = ["11 = Point(MulAdd, [0, 1, 2])", "13 = Point(MulAdd, [11, 1, 3])", "14 = Point(MulF, [13, 1, 13])"];
        assert_eq!(run(work.into()), text);
    }

    #[test]
    fn what_others_read_stays() {
        use Pointwise::*;
        let square = [point(AddF, &[0, 1], 10), point(MulF, &[10, 10], 11)];
        assert_eq!(run(square.into()).len(), 2);
        let twice = [point(MulF, &[0, 1], 10), point(SubF, &[2, 10], 11), point(AddF, &[10, 3], 12)];
        assert_eq!(run(twice.into()).len(), 3);
        let other = [point(MulF, &[0, 1], 10), point(SubF, &[2, 10], 11)];
        assert_eq!(run(other.into()), ["11 = Point(SubMul, [0, 1, 2])"]);
    }
}
