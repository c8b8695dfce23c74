//! Cooperative matrices against the kernel interpreter, on software Vulkan that has them. Where the installed one has
//! none, the test runs itself again on a newer one, if there is a tool at hand that unpacks it.

use super::super::adapters;
use super::*;
use std::path::Path;
use std::process::Command;

/// Set for the second run.
const AGAIN: &str = "DNX_TEST_NEWER_VULKAN";

fn has_matrices() -> bool {
    test_device().limits().cooperative_matrix.is_some()
}

#[test]
fn cooperative_matrices() {
    if has_matrices() {
        every_tile_and_layout();
        a_program_uses_what_passes_the_trial();
        return;
    }
    assert!(std::env::var_os(AGAIN).is_none(), "the newer software Vulkan has no cooperative matrices");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a workspace");
    let (tool, folder) = (root.join("../shared/tools/newer-vulkan"), root.join("target/newer-vulkan"));
    if !tool.exists() {
        println!("not tried: this software Vulkan has no cooperative matrices, and there is no newer one at hand");
        return;
    }
    let unpacked = Command::new(&tool).arg(&folder).output().expect("the tool runs");
    if !unpacked.status.success() {
        println!("not tried: no newer software Vulkan: {}", String::from_utf8_lossy(&unpacked.stderr));
        return;
    }
    let mut again = Command::new(folder.join("run"));
    again.arg(std::env::current_exe().expect("a path"));
    again.args(["--exact", "gpu::tests::matrix::cooperative_matrices", "--nocapture"]).env(AGAIN, "1");
    let out = again.output().expect("it runs");
    let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(out.status.success() && text.contains("1 passed"), "on the newer software Vulkan:\n{text}");
}

fn matrices(block: [u32; 3], per_invocation: [u32; 2], split: u32) -> Tile {
    Tile { tier: Tier::Matrix, workgroup: 0, block, per_invocation, split }
}

/// One run on the device against the interpreter; `edge` may be other than what the device advertises.
fn agree_with(name: &str, kernel: &Kernel, edge: u32) {
    let device = test_device();
    let limits = GpuLimits { cooperative_matrix: Some(edge), ..*device.limits() };
    let data = fill(kernel, 23);
    let mut expected = data.clone();
    interp::run(kernel, &mut expected).unwrap_or_else(|e| panic!("{name}: {e}"));
    let got = run(&device, kernel, limits, &data, false);
    for (a, arg) in kernel.args.iter().enumerate() {
        close(&format!("{name}, argument {a}"), arg.dtype, &got[a], &expected[a], 5e-5);
    }
}

fn every_tile_and_layout() {
    let tiles = [
        (8, matrices([16, 32, 8], [8, 16], 1)),
        (8, matrices([32, 32, 16], [16, 16], 3)),
        (16, matrices([32, 32, 32], [16, 16], 1)),
    ];
    for (edge, tile) in tiles {
        for (layout, [m, n, k]) in
            kernels::LAYOUTS.into_iter().zip([[36, 20, 28], [64, 65, 63], [3, 68, 64], [1, 1, 3]])
        {
            let mut kernel = kernels::contract_layout(2, m, n, k, DType::F16, layout);
            kernel.tile = tile.clone();
            agree_with(&format!("{layout} {m} {n} {k} {tile:?}"), &kernel, edge);
        }
    }
    let mut kernel = kernels::contract_half(1, 33, 31, 40);
    kernel.tile = matrices([32, 32, 16], [16, 16], 1);
    agree_with("prologue and bias", &kernel, 8);
}

fn a_program_uses_what_passes_the_trial() {
    let device = test_device();
    let mut kernel = kernels::contract_layout(1, 20, 24, 28, DType::F16, "nt");
    kernel.tile = matrices([32, 32, 16], [16, 16], 1);
    let step = |args: usize| Step::Dispatch {
        kernel: 0,
        args: (0..args as u32).map(BufRef::Input).collect(),
        scratch: None,
        loc: "net.layer".into(),
    };
    let exec = executable(vec![(kernel.clone(), *device.limits())], 4, vec![step(4)]);
    assert_eq!(device.trusted(&exec).unwrap().kernels[0].kernel.tile, kernel.tile, "the trial passes");
    // A driver that multiplies wrongly: the verdict is remembered, and the kernel runs without matrices.
    device.shared.trials().insert(kernel.tile.clone(), false);
    let replaced = device.trusted(&exec).unwrap();
    assert_ne!(replaced.kernels[0].kernel.tile.tier, Tier::Matrix);
    assert!(replaced.kernels[0].shaders.iter().all(|s| !s.wgsl.contains("coop")));
    device.shared.trials().clear();
}

#[test]
fn adapters_say_what_matrices_they_have() {
    for adapter in adapters() {
        let info = adapter.info();
        let listed = info.features.iter().any(|f| f == "cooperative matrix");
        assert!(listed || adapter.open().unwrap().limits().cooperative_matrix.is_none(), "{}", info.name);
    }
}
