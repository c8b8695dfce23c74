//! How much work goes to the queue at once.
//!
//! A submission costs tens of microseconds, so few are better; but a GPU that is silent for two seconds is reset by some
//! systems, and one that gets a long step as a whole waits while the host encodes it. How long work takes is estimated
//! from its operations and bytes, at rates that the slowest of its class reaches: what is estimated too long costs a
//! submission more, what is estimated too short may cost the device.

use super::program::{GpuBound, Work};
use dnx_codegen::GpuClass;
use dnx_codegen::exec::Executable;
use dnx_codegen::stats::StepCost;

/// Most of a single run, in seconds: the GPU is at work while the host encodes what comes next.
pub(super) const LEAD: f64 = 0.02;

/// Most of several runs that are given at once: far from two seconds, and below the half second after which others on
/// the same GPU notice.
pub(super) const MOST: f64 = 0.3;

/// Floating-point operations and bytes per second that the slowest GPUs of a class reach in these kernels.
fn rates(class: GpuClass) -> (f64, f64) {
    match class {
        GpuClass::Nvidia => (1e12, 50e9),
        GpuClass::Amd | GpuClass::Apple => (0.2e12, 20e9),
        GpuClass::Intel | GpuClass::Other | GpuClass::Software => (50e9, 5e9),
    }
}

/// Estimated seconds of each step of an executable.
pub(super) fn estimates(exec: &Executable, class: GpuClass) -> Vec<f64> {
    let (flops, bytes) = rates(class);
    let of = |cost: StepCost| (cost.flops as f64 / flops).max(cost.bytes as f64 / bytes);
    exec.steps.iter().map(|step| of(StepCost::of(exec, step))).collect()
}

/// The work of several programs in portions: commands that go to the queue at once, of about `most` seconds each if one
/// command is not more by itself, or the begin or finish of an exchange, alone.
pub(super) fn portions<'b>(bounds: &[&'b GpuBound], most: f64) -> Vec<Vec<&'b Work>> {
    let mut all: Vec<Vec<&Work>> = vec![];
    let (mut portion, mut seconds) = (vec![], 0.0);
    for bound in bounds {
        for (work, took) in bound.work.iter().zip(&bound.seconds) {
            if work.is_exchange() {
                all.extend((!portion.is_empty()).then(|| std::mem::take(&mut portion)));
                all.push(vec![work]);
                seconds = 0.0;
                continue;
            }
            if !portion.is_empty() && seconds + took > most {
                all.push(std::mem::take(&mut portion));
                seconds = 0.0;
            }
            portion.push(work);
            seconds += took;
        }
    }
    all.extend((!portion.is_empty()).then_some(portion));
    all
}
