//! Random programs and their gradients on the cpu device against the reference, fused and op by op.

use dnx_ir::{Array, Func};
use dnx_runtime::Device;
use dnx_tests::differential::{self, on_device};
use dnx_tests::random_graph::Config;

fn run(func: &Func, args: &[Array], fuse: bool) -> Result<Vec<Array>, String> {
    on_device(&Device::cpu(), func, args, fuse)
}

#[test]
fn random_programs() {
    differential::check(&run, 0..60, &Config { ops: 24, ..Config::default() }, 3e-5);
}

#[test]
fn random_programs_with_half_floats() {
    differential::check(&run, 0..40, &Config { half: true, ..Config::default() }, 2e-2);
}

#[test]
fn gradients() {
    differential::check_gradients(&run, 200..230, &Config { scalar_first: true, ..Config::smooth() }, 1e-4);
}

#[test]
fn attention_among_other_ops() {
    differential::check(&run, 300..340, &Config { attention: true, ..Config::default() }, 5e-5);
    differential::check_gradients(&run, 340..360, &Config { attention: true, ops: 8, ..Config::smooth() }, 1e-4);
}

/// Thousands of programs; minutes. `cargo test -p dnx-tests --test cpu -- --ignored`
#[test]
#[ignore = "thousands of random programs: minutes"]
fn deep() {
    differential::check(&run, 1000..3000, &Config { ops: 32, ..Config::default() }, 5e-5);
}
