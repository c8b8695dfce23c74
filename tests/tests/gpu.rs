//! Random programs on the gpu device (software Vulkan) against the reference, fused and op by op.

use dnx_codegen::{Options, compile};
use dnx_ir::interp::{Precision, eval};
use dnx_ir::{Array, Func};
use dnx_runtime::Device;
use dnx_tests::random_graph::{Config, random_func};

fn device() -> Device {
    match Device::open(Some("vulkan:llvmpipe")) {
        Ok(device) => device,
        Err(e) => panic!("{e}\nThis test needs software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    }
}

/// What is wrong, if anything is.
fn compare(device: &Device, func: &Func, args: &[Array], fuse: bool, tolerance: f64) -> Result<(), String> {
    let want = eval(func, args, Precision::F32).map_err(|e| format!("reference: {e}"))?;
    let options = Options { fuse, ..Options::new(device.target()) };
    let compiled = compile(func, &options).map_err(|e| format!("compile: {e}"))?;
    let program = device.load(compiled.exec).map_err(|e| format!("load: {e}"))?;
    let inputs = device.upload_all(args).map_err(|e| format!("upload: {e}"))?;
    let got = program.run(&inputs).map_err(|e| format!("run: {e}"))?;
    for (r, (got, want)) in got.iter().zip(&want).enumerate() {
        let got = got.download().map_err(|e| format!("download: {e}"))?;
        let tolerance = if want.dtype().is_float() { tolerance } else { 0.0 };
        for (i, (x, y)) in got.to_f64_vec().iter().zip(want.to_f64_vec()).enumerate() {
            if (x - y).abs() > tolerance * y.abs().max(1.0) || x.is_nan() {
                return Err(format!("result {r}[{i}] ({}) is {x}, not {y}", want.ty()));
            }
        }
    }
    Ok(())
}

fn check(seeds: std::ops::Range<u64>, cfg: &Config, tolerance: f64) {
    let device = device();
    let failures: Vec<String> = seeds
        .flat_map(|seed| [false, true].map(|fuse| (seed, fuse)))
        .filter_map(|(seed, fuse)| {
            let (func, args) = random_func(seed, cfg);
            let why = compare(&device, &func, &args, fuse, tolerance).err()?;
            Some(format!("seed {seed} fuse {fuse}: {why}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures with {cfg:?}\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn random_programs() {
    check(0..5, &Config::default(), 5e-5);
}

#[test]
fn random_programs_with_half_floats() {
    check(100..102, &Config { half: true, ..Config::default() }, 2e-2);
}

/// Hundreds of programs; minutes. `cargo test -p dnx-tests --test gpu -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn deep() {
    let half = Config { half: true, ..Config::default() };
    let results = [(Config::default(), 5e-5), (half, 2e-2)]
        .map(|(cfg, tolerance)| std::panic::catch_unwind(|| check(1000..1100, &cfg, tolerance)));
    assert!(results.iter().all(Result::is_ok));
}
