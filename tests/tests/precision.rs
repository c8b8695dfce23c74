//! Random programs and gradients in narrow storage against the reference interpreter on what the precision pass makes
//! of them. Devices sum in another order than the reference, so a value may be rounded to the neighbour; what follows
//! is then off by some times the storage type's last place.

use dnx_codegen::Precision;
use dnx_runtime::Device;
use dnx_tests::differential::check_mixed;
use dnx_tests::random_graph::Config;

/// Precisions and a few last places of their storage.
const HALVES: [(Precision, f64); 2] = [(Precision::F16, 4e-3), (Precision::Bf16Storage, 3e-2)];

fn programs() -> Config {
    Config { ops: 16, ..Config::default() }
}

fn gradients() -> Config {
    Config { ops: 8, ..Config::smooth() }
}

#[test]
fn cpu() {
    let device = Device::cpu();
    for (precision, tolerance) in HALVES {
        check_mixed(&device, precision, 300..330, &programs(), tolerance);
        check_mixed(&device, precision, 400..420, &gradients(), tolerance);
    }
}

#[test]
fn gpu() {
    let device = match Device::open(Some("vulkan:llvmpipe")) {
        Ok(device) => device,
        Err(e) => panic!("{e}\nThis test needs software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    };
    for (precision, tolerance) in HALVES {
        check_mixed(&device, precision, 300..302, &programs(), tolerance);
        check_mixed(&device, precision, 400..401, &gradients(), tolerance);
    }
}

/// Hundreds of programs; minutes. `cargo test -p dnx-tests --test precision -- --ignored`
#[test]
#[ignore = "hundreds of random programs: minutes"]
fn deep() {
    let device = Device::cpu();
    for (precision, tolerance) in HALVES {
        check_mixed(&device, precision, 2000..2400, &programs(), 2.0 * tolerance);
        check_mixed(&device, precision, 3000..3200, &gradients(), 2.0 * tolerance);
    }
}
