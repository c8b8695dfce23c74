//! Random programs and their gradients on the gpu device (software Vulkan) against the reference, fused and op by op.

use dnx_ir::{Array, Func};
use dnx_runtime::Device;
use dnx_tests::differential::{self, on_device};
use dnx_tests::random_graph::Config;

fn device() -> Device {
    match Device::open(Some("vulkan:llvmpipe")) {
        Ok(device) => device,
        Err(e) => panic!("{e}\nThis test needs software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    }
}

fn check(seeds: std::ops::Range<u64>, cfg: &Config, tolerance: f64) {
    let device = std::panic::AssertUnwindSafe(device());
    let run = move |func: &Func, args: &[Array], fuse: bool| on_device(&device, func, args, fuse);
    differential::check(&run, seeds, cfg, tolerance);
}

#[test]
fn random_programs() {
    check(0..5, &Config::default(), 5e-5);
}

#[test]
fn random_programs_with_half_floats() {
    check(100..102, &Config { half: true, ..Config::default() }, 2e-2);
}

#[test]
fn gradients() {
    let device = std::panic::AssertUnwindSafe(device());
    let run = move |func: &Func, args: &[Array], fuse: bool| on_device(&device, func, args, fuse);
    let cfg = Config { scalar_first: true, ops: 8, ..Config::smooth() };
    differential::check_gradients(&run, 200..202, &cfg, 1e-4);
}

#[test]
fn attention_among_other_ops() {
    check(300..302, &Config { attention: true, ..Config::default() }, 5e-5);
}

/// Hundreds of programs; minutes. `cargo test -p dnx-tests --test gpu -- --ignored`
#[test]
#[ignore = "hundreds of random programs on software Vulkan: minutes"]
fn deep() {
    let half = Config { half: true, ..Config::default() };
    let results = [(Config::default(), 5e-5), (half, 2e-2)]
        .map(|(cfg, tolerance)| std::panic::catch_unwind(|| check(1000..1100, &cfg, tolerance)));
    assert!(results.iter().all(Result::is_ok));
}
