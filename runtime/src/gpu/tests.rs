//! The gpu device against the kernel interpreter, on software Vulkan: hand-built kernels of every kind.

#[path = "../../../codegen/tests/kernels/mod.rs"]
mod kernels;
#[path = "matrix_tests.rs"]
mod matrix;

use super::device::GpuDevice;
use super::memory::GpuMemory;
use super::portions::{LEAD, MOST, estimates, portions};
use super::program::{GpuBound, Work};
use super::{GpuError, adapters};
use crate::company::Seat;
use crate::team::tests::collectives;
use dnx_codegen::exec::{BufRef, Executable, KernelEntry, Port, Requires, Step, VERSION};
use dnx_codegen::kernel::{Access, Kernel, Tier, Tile, interp};
use dnx_codegen::{GpuClass, GpuLimits, Options, Target, compile, wgsl};
use dnx_ir::{DType, Mesh, Scalar, Type};
use std::sync::{Arc, OnceLock};

/// The adapter that every test uses: a software one, so that results don't depend on the machine.
fn test_device() -> GpuDevice {
    static DEVICE: OnceLock<GpuDevice> = OnceLock::new();
    let open = || match GpuDevice::open(Some("llvmpipe")) {
        Ok(device) => device,
        Err(e) => panic!("{e}\nThese tests need software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"),
    };
    DEVICE.get_or_init(open).clone()
}

/// Deterministic numbers in [0, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// Device bytes of random elements: floats in [-2, 2), integers in [-8, 8).
fn random(dtype: DType, elems: usize, numbers: &mut Numbers) -> Vec<u8> {
    let values = (0..elems).map(|_| match dtype {
        DType::I32 => (numbers.next() * 16.0).floor() - 8.0,
        DType::U32 => (numbers.next() * 16.0).floor(),
        DType::Bool => (numbers.next() * 2.0).floor(),
        _ => numbers.next() * 4.0 - 2.0,
    });
    bytes(dtype, values)
}

fn bytes(dtype: DType, values: impl IntoIterator<Item = f64>) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        let bits = Scalar::from_f64(dtype, value).bits();
        out.extend_from_slice(&bits.to_le_bytes()[..dtype.device_size()]);
    }
    out
}

fn values(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let element = |c: &[u8]| {
        let mut word = [0u8; 8];
        word[..c.len()].copy_from_slice(c);
        Scalar::from_bits(dtype, u64::from_le_bytes(word)).to_f64()
    };
    bytes.chunks_exact(dtype.device_size()).map(element).collect()
}

/// A program of these steps over inputs alone (of no particular type).
fn executable(kernels: Vec<(Kernel, GpuLimits)>, inputs: usize, steps: Vec<Step>) -> Arc<Executable> {
    let kernels: Vec<KernelEntry> = kernels
        .into_iter()
        .map(|(kernel, limits)| {
            let shaders = wgsl::shaders(&kernel, &limits).unwrap();
            KernelEntry { hash: String::new(), name: format!("{:?}", kernel.kind), kernel, shaders }
        })
        .collect();
    let scratch = kernels.iter().flat_map(|k| &k.shaders).map(|s| s.scratch_bytes).max().unwrap_or(0);
    let port = Port { name: String::new(), ty: Type::scalar(DType::F32), donated: None };
    Arc::new(Executable {
        version: VERSION,
        name: "test".into(),
        requires: Requires::default(),
        mesh: Mesh::single(),
        inputs: vec![port; inputs],
        outputs: vec![],
        slabs: vec![scratch],
        constants: vec![],
        kernels,
        steps,
        peak_bytes: 0,
    })
}

fn upload(device: &GpuDevice, data: &[Vec<u8>], packed: bool) -> Vec<GpuMemory> {
    let sizes: Vec<u64> = data.iter().map(|d| d.len() as u64).collect();
    let memory = if packed {
        device.alloc(&sizes).unwrap()
    } else {
        sizes.iter().map(|&s| device.alloc(&[s]).unwrap().remove(0)).collect()
    };
    for (m, d) in memory.iter().zip(data) {
        device.write(m, d).unwrap();
    }
    memory
}

/// Runs a kernel on the device; the arguments lie in one allocation or in one each.
fn run(device: &GpuDevice, kernel: &Kernel, limits: GpuLimits, data: &[Vec<u8>], packed: bool) -> Vec<Vec<u8>> {
    let args: Vec<BufRef> = (0..data.len()).map(|i| BufRef::Input(i as u32)).collect();
    let shaders = wgsl::shaders(kernel, &limits).unwrap();
    let scratch = shaders.iter().map(|s| s.scratch_bytes).max().filter(|&b| b > 0);
    let scratch = scratch.map(|bytes| BufRef::Slab { slab: 0, offset: 0, bytes });
    let step = Step::Dispatch { kernel: 0, args, scratch, loc: "test".into() };
    let exec = executable(vec![(kernel.clone(), limits)], data.len(), vec![step]);
    let memory = upload(device, data, packed);
    let bound = device.load(&exec, Seat::alone()).unwrap().bind(&memory, &[]).unwrap();
    bound.run().unwrap();
    memory.iter().map(|m| device.read(m).unwrap()).collect()
}

/// Compares every argument with what the interpreter leaves in it.
fn agree(name: &str, kernel: &Kernel, data: &[Vec<u8>], tolerance: f64) {
    let device = test_device();
    let mut expected = data.to_vec();
    interp::run(kernel, &mut expected).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (f16, packed) in [(true, false), (false, true)] {
        let limits = GpuLimits { f16, ..*device.limits() };
        let got = run(&device, kernel, limits, data, packed);
        for (a, arg) in kernel.args.iter().enumerate() {
            let name = format!("{name}, argument {a} (native f16: {f16}, packed: {packed})");
            close(&name, arg.dtype, &got[a], &expected[a], tolerance);
        }
    }
}

fn close(name: &str, dtype: DType, got: &[u8], expected: &[u8], tolerance: f64) {
    let unit = match dtype {
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
        DType::F32 => 0.0,
        _ => {
            assert_eq!(got, expected, "{name}");
            return;
        }
    };
    for (i, (g, e)) in values(dtype, got).into_iter().zip(values(dtype, expected)).enumerate() {
        let bound = (tolerance + unit) * e.abs().max(1.0);
        assert!(g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= bound, "{name}: element {i} is {g}, not {e}");
    }
}

fn fill(kernel: &Kernel, seed: u64) -> Vec<Vec<u8>> {
    let mut numbers = Numbers(seed);
    kernel.args.iter().map(|a| random(a.dtype, a.elems, &mut numbers)).collect()
}

fn agree_random(name: &str, kernel: &Kernel, tolerance: f64) {
    agree(name, kernel, &fill(kernel, 17), tolerance);
}

const SIZES: [usize; 7] = [1, 2, 3, 63, 64, 65, 257];
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const ALL: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::Bool];

#[test]
fn loops_of_ragged_sizes() {
    for n in SIZES {
        agree_random(&format!("silu {n}"), &kernels::loop_silu(n), 2e-6);
    }
}

#[test]
fn more_workgroups_than_one_row_has() {
    let mut kernel = kernels::loop_silu(65_537 + 13);
    kernel.tile.workgroup = 1;
    assert!(wgsl::shaders(&kernel, &GpuLimits::default()).unwrap()[0].grid[1] > 1);
    agree_random("many workgroups", &kernel, 2e-6);
}

#[test]
fn views_with_checks() {
    for (h, w) in [(1, 1), (5, 7), (8, 3), (16, 33)] {
        agree_random(&format!("views {h} {w}"), &kernels::loop_views(h, w), 0.0);
    }
    for dtype in ALL {
        for (m, n) in [(1, 1), (5, 13), (3, 65)] {
            agree_random(&format!("transpose {dtype} {m} {n}"), &kernels::loop_transpose(m, n, dtype), 0.0);
        }
    }
}

#[test]
fn functions_of_one_operand() {
    for dtype in FLOATS {
        let n = 257;
        let kernel = kernels::loop_functions(n, dtype);
        for scale in [0.01, 1.0, 10.0] {
            let mut data = fill(&kernel, 3);
            data[0] = bytes(dtype, (0..n).map(|i| (i as f64 / 128.0 - 1.0) * scale));
            agree(&format!("functions {dtype} {scale}"), &kernel, &data, 2e-6);
        }
    }
}

#[test]
fn functions_far_out() {
    let points = [1e-30, 1e-5, 0.999_999, 1.000_001, 20.0, 88.0, 1e3, 1e4, 1e5, -1e3, -20.0, -88.0, 3e38];
    let mut kernel = kernels::loop_functions(points.len(), DType::F32);
    // exp, tanh, erf, log, sqrt: sin and cos lose their meaning at 3e38.
    kernel.stores.retain(|s| s.arg != 4 && s.arg != 5);
    for arg in [4, 5] {
        kernel.args[arg].access = Access::Read;
    }
    let mut data = fill(&kernel, 3);
    data[0] = bytes(DType::F32, points);
    agree("far out", &kernel, &data, 4e-6);
    let points = [100.0, 999.5, -1e3, 1e4, 5e4];
    let kernel = kernels::loop_functions(points.len(), DType::F32);
    let mut data = fill(&kernel, 3);
    data[0] = bytes(DType::F32, points);
    let device = test_device();
    let got = run(&device, &kernel, *device.limits(), &data, false);
    let (sin, cos) = (values(DType::F32, &got[4]), values(DType::F32, &got[5]));
    for (i, x) in points.into_iter().enumerate() {
        assert!((sin[i] - x.sin()).abs() < 5e-7, "sin({x}) is {}", sin[i]);
        assert!((cos[i] - x.cos()).abs() < 5e-7, "cos({x}) is {}", cos[i]);
    }
}

#[test]
fn relative_accuracy_where_drivers_lose_it() {
    let points: Vec<f64> = (1..200).map(|i| (i as f64 * 1e-4) as f32 as f64).collect();
    let kernel = kernels::loop_functions(points.len(), DType::F32);
    let device = test_device();
    let run_at = |data: &[f64]| {
        let mut all = fill(&kernel, 3);
        all[0] = bytes(DType::F32, data.iter().copied());
        let out = run(&device, &kernel, *device.limits(), &all, false);
        out.iter().map(|o| values(DType::F32, o)).collect::<Vec<_>>()
    };
    let near_zero = run_at(&points);
    let above_one: Vec<f64> = points.iter().map(|x| (1.0 + x) as f32 as f64).collect();
    let near_one = run_at(&above_one);
    for (i, &x) in points.iter().enumerate() {
        let relative = |got: f64, exact: f64| ((got - exact) / exact).abs();
        assert!(relative(near_zero[6][i], x.tanh()) < 4e-7, "tanh({x})");
        assert!(
            relative(near_zero[7][i], 2.0 / std::f64::consts::PI.sqrt() * (x - x.powi(3) / 3.0)) < 4e-7,
            "erf({x})"
        );
        assert!(relative(near_one[3][i], above_one[i].ln()) < 4e-7, "log({})", above_one[i]);
    }
}

#[test]
fn functions_of_two_operands() {
    for dtype in ALL {
        agree_random(&format!("binary {dtype}"), &kernels::loop_binary(257, dtype), 2e-6);
        agree_random(&format!("compare {dtype}"), &kernels::loop_compare(257, dtype), 0.0);
    }
    for (dtype, edges) in [(DType::I32, [-2147483648.0, 2147483647.0]), (DType::U32, [4294967295.0, 2147483648.0])] {
        let interesting = [edges[0], edges[1], 0.0, 1.0, if dtype == DType::I32 { -1.0 } else { 33.0 }, 7.0];
        let kernel = kernels::loop_binary(36, dtype);
        let mut data = fill(&kernel, 5);
        data[0] = bytes(dtype, (0..36).map(|i| interesting[i / 6]));
        data[1] = bytes(dtype, (0..36).map(|i| interesting[i % 6]));
        agree(&format!("edges of {dtype}"), &kernel, &data, 0.0);
    }
}

#[test]
fn conversions() {
    for dtype in ALL {
        agree_random(&format!("convert {dtype}"), &kernels::loop_convert(257, dtype), 0.0);
    }
    let edges = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, 1e10, -1e10, 65504.0, 65520.0, 1e-7, 6e-8, 3e-8, 1e-40, 3.4e38];
    let edges = edges.into_iter().chain([f64::INFINITY, f64::NEG_INFINITY]);
    let edges: Vec<f64> = edges.chain((0..48).map(|i| (1.0 + i as f64 / 4096.0) * 1.7f64.powi(i - 30))).collect();
    let kernel = kernels::loop_convert(edges.len(), DType::F32);
    let mut data = fill(&kernel, 5);
    data[0] = bytes(DType::F32, edges.iter().copied());
    // Every bit of the software path to 16 bits.
    let device = test_device();
    let mut expected = data.clone();
    interp::run(&kernel, &mut expected).unwrap();
    let got = run(&device, &kernel, GpuLimits { f16: false, ..*device.limits() }, &data, false);
    for (a, arg) in kernel.args.iter().enumerate().skip(2) {
        // 1e-40 is a subnormal: drivers may flush it.
        let word = |v: &[u8]| v.chunks_exact(arg.dtype.device_size()).map(<[u8]>::to_vec).collect::<Vec<_>>();
        for (i, (g, e)) in word(&got[a]).into_iter().zip(word(&expected[a])).enumerate() {
            assert!(g == e || edges[i] == 1e-40, "{} to {}: bits {g:?}, not {e:?}", edges[i], arg.dtype);
        }
    }
}

#[test]
fn special_values() {
    let kernel = kernels::loop_special(12);
    let mut data = fill(&kernel, 5);
    let inf = f64::INFINITY;
    data[0] = bytes(DType::F32, [-2.0, -2.0, 0.0, 0.0, 4.0, 2.0, 1.0, inf, f64::NAN, 10.0, -3.0, 0.5]);
    data[1] = bytes(DType::F32, [3.0, 2.0, 2.0, 0.0, 0.5, -1.0, 77.0, 2.0, 1.0, 3.3, 5.0, 20.0]);
    agree("special", &kernel, &data, 4e-6);
}

#[test]
fn random_bits_are_exact() {
    agree_random("random", &kernels::loop_random(257), 0.0);
}

#[test]
fn gathers_clamp() {
    for dtype in ALL {
        agree_random(&format!("take {dtype}"), &kernels::loop_take(9, 5, 7, dtype), 0.0);
    }
}

#[test]
fn updates_in_place() {
    for dtype in FLOATS {
        for n in SIZES {
            agree_random(&format!("in place {dtype} {n}"), &kernels::loop_in_place(n, dtype), 2e-6);
        }
    }
}

#[test]
fn rows() {
    for (rows, n) in [(1, 1), (70, 5), (3, 9), (65, 31), (2, 33), (3, 257), (1, 1000), (2, 3000)] {
        agree_random(&format!("softmax {rows} {n}"), &kernels::row_softmax(rows, n, DType::F32), 4e-6);
    }
    for dtype in [DType::F16, DType::BF16] {
        for (rows, n) in [(3, 1), (5, 7), (3, 65), (2, 2500)] {
            agree_random(&format!("softmax {dtype} {rows} {n}"), &kernels::row_softmax(rows, n, dtype), 4e-6);
        }
    }
    for (a, b, n) in [(1, 1, 1), (2, 5, 65), (3, 3, 300), (1, 2, 2111)] {
        agree_random(&format!("norm {a} {b} {n}"), &kernels::row_norm(a, b, n), 2e-5);
    }
}

/// Teams of hardware: several subgroups wide, or without subgroups at all.
#[test]
fn teams_of_every_size() {
    let device = test_device();
    let of = |class, subgroup| GpuLimits { class, subgroup, ..*device.limits() };
    for limits in
        [of(GpuClass::Other, device.limits().subgroup), of(GpuClass::Other, Some((4, 128))), of(GpuClass::Other, None)]
    {
        let gallery = [
            kernels::row_softmax(3, 36, DType::F32),
            kernels::row_softmax(2, 1000, DType::BF16),
            kernels::row_norm(2, 3, 300),
            kernels::row_argmax(3, 7, 11, DType::F32),
            kernels::row_argmax(2, 50, 60, DType::I32),
            kernels::column_sum(300, 3, 2),
            kernels::column_total(3000),
        ];
        for (i, kernel) in gallery.iter().enumerate() {
            let data = fill(kernel, 29);
            let mut expected = data.clone();
            interp::run(kernel, &mut expected).unwrap();
            let got = run(&device, kernel, limits, &data, false);
            for (a, arg) in kernel.args.iter().enumerate() {
                let name = format!("kernel {i}, argument {a}, {:?}", limits.subgroup);
                close(&name, arg.dtype, &got[a], &expected[a], 2e-5);
            }
        }
    }
}

#[test]
fn argmax_takes_the_first() {
    for dtype in [DType::F32, DType::I32, DType::U32] {
        for (rows, h, w) in [(1, 1, 1), (3, 7, 11), (70, 2, 3), (2, 50, 60)] {
            // Few values, so that there are ties.
            let kernel = kernels::row_argmax(rows, h, w, dtype);
            let mut data = fill(&kernel, 9);
            let mut numbers = Numbers(4);
            data[0] = bytes(dtype, (0..rows * h * w).map(|_| (numbers.next() * 4.0).floor()));
            agree(&format!("argmax {dtype} {rows} {h} {w}"), &kernel, &data, 0.0);
        }
    }
    let kernel = kernels::row_argmax(2, 3, 40, DType::F32);
    let mut data = fill(&kernel, 9);
    data[0] = bytes(DType::F32, (0..240).map(|_| f64::NEG_INFINITY));
    agree("argmax of nothing but -inf", &kernel, &data, 0.0);
}

#[test]
fn columns() {
    for (rows, n, split) in [(1, 1, 0), (3, 65, 0), (257, 1, 0), (300, 65, 4), (5, 3, 7), (1000, 5, 0), (700, 130, 3)] {
        agree_random(&format!("column {rows} {n} {split}"), &kernels::column_sum(rows, n, split), 2e-5);
    }
    for n in [1, 63, 257, 30_001] {
        agree_random(&format!("total {n}"), &kernels::column_total(n), 1e-5);
    }
}

#[test]
fn contractions_of_ragged_sizes() {
    let sizes = [(1, 1, 1, 1), (1, 3, 2, 5), (2, 17, 33, 16), (1, 65, 63, 17), (1, 64, 64, 64), (3, 1, 65, 31)];
    for (z, m, n, k) in sizes {
        for transposed in [false, true] {
            let kernel = kernels::contract_matmul(z, m, n, k, DType::F32, transposed);
            agree_random(&format!("matmul {z} {m} {n} {k} {transposed}"), &kernel, 3e-5);
        }
    }
    for dtype in [DType::F16, DType::BF16, DType::I32, DType::U32] {
        let kernel = kernels::contract_matmul(2, 13, 21, 35, dtype, false);
        agree_random(&format!("matmul {dtype}"), &kernel, 3e-5);
    }
}

/// Tiles of every tier: rows, columns and depth of the block, rows and columns per invocation, parts.
fn tiles() -> Vec<Tile> {
    let of = |tier, block, per_invocation, split| Tile { tier, workgroup: 0, block, per_invocation, split };
    let blocks = |block, each, split| of(Tier::Blocks, block, each, split);
    vec![
        blocks([16, 16, 16], [4, 4], 1),
        blocks([64, 64, 16], [4, 4], 3),
        blocks([64, 64, 8], [8, 8], 1),
        blocks([32, 64, 12], [8, 4], 2),
        blocks([128, 128, 8], [8, 8], 1),
        blocks([64, 16, 6], [4, 4], 1),
        of(Tier::Broadcast, [16, 64, 4], [16, 8], 1),
        of(Tier::Broadcast, [8, 32, 4], [8, 4], 3),
        of(Tier::Serial, [1, 1, 1], [1, 1], 1),
        of(Tier::Serial, [1, 1, 1], [1, 1], 3),
    ]
}

/// Compares with the interpreter once, each argument in an allocation of its own.
fn agree_once(name: &str, kernel: &Kernel, tolerance: f64) {
    let device = test_device();
    let data = fill(kernel, 17);
    let mut expected = data.clone();
    interp::run(kernel, &mut expected).unwrap_or_else(|e| panic!("{name}: {e}"));
    let got = run(&device, kernel, *device.limits(), &data, false);
    for (a, arg) in kernel.args.iter().enumerate() {
        close(&format!("{name}, argument {a}"), arg.dtype, &got[a], &expected[a], tolerance);
    }
}

#[test]
fn contractions_with_every_tile() {
    // Ragged, and with whole quads along rows, columns and depth.
    let shapes = [(2, 37, 70, 101), (2, 68, 36, 100), (1, 65, 63, 3), (1, 3, 64, 64)];
    for (i, tile) in tiles().into_iter().enumerate() {
        for (z, m, n, k) in [shapes[i % 2], shapes[i % 4]] {
            let transposed = i % 3 == 0;
            let mut kernel = kernels::contract_matmul(z, m, n, k, DType::F32, transposed);
            kernel.tile = tile.clone();
            agree_once(&format!("{z} {m} {n} {k} {transposed} {tile:?}"), &kernel, 5e-5);
        }
    }
}

#[test]
fn contractions_of_every_layout_and_dtype() {
    let tiles = [tiles()[2].clone(), tiles()[6].clone(), tiles()[8].clone()];
    for (i, layout) in kernels::LAYOUTS.into_iter().enumerate() {
        for (j, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().enumerate() {
            let mut kernel = kernels::contract_layout(2, 36, 20, 28, dtype, layout);
            kernel.tile = tiles[(i + j) % 3].clone();
            agree_once(&format!("{layout} {dtype} {:?}", kernel.tile), &kernel, 5e-5);
        }
    }
}

#[test]
fn convolutions() {
    for (n, s, c, o, stride) in [(1, 3, 1, 1, 1), (2, 7, 3, 5, 1), (2, 7, 3, 5, 2), (1, 12, 9, 17, 2)] {
        agree_random(&format!("conv {n} {s} {c} {o} {stride}"), &kernels::contract_conv(n, s, c, o, stride), 3e-5);
    }
    for tile in [tiles()[2].clone(), tiles()[6].clone(), tiles()[8].clone()] {
        let mut kernel = kernels::contract_conv(2, 7, 8, 12, 1);
        kernel.tile = tile.clone();
        agree_once(&format!("conv {tile:?}"), &kernel, 3e-5);
    }
}

#[test]
fn scatters() {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::I32] {
        for base in [false, true] {
            let kernel = kernels::index_scatter(2, 9, 4, 3, dtype, base);
            agree_random(&format!("scatter {dtype} {base}"), &kernel, 1e-5);
        }
    }
    agree_random("scatter large", &kernels::index_scatter(1, 65, 10, 33, DType::F32, false), 1e-5);
}

#[test]
fn multi_over_many_segments() {
    let device = test_device();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let kernel = kernels::multi_momentum(dtype);
        let lengths: Vec<usize> =
            [1, 3, 63, 64, 65, 257, 1023, 1024, 1025, 5000, 1, 2].into_iter().cycle().take(40).collect();
        let mut numbers = Numbers(8);
        let mut data: Vec<Vec<u8>> = vec![bytes(DType::F32, [0.1])];
        let mut segments = vec![];
        let mut expected = vec![data[0].clone()];
        for &length in &lengths {
            let first = data.len() as u32;
            data.push(random(dtype, length, &mut numbers));
            data.push(random(DType::F32, length, &mut numbers));
            data.push(random(DType::F32, length, &mut numbers));
            let args = [first, first + 1, first + 2, 0];
            segments.push((length as u64, args.map(BufRef::Input).to_vec()));
            let mut one: Vec<Vec<u8>> = args.iter().map(|&a| data[a as usize].clone()).collect();
            interp::run(&kernel, &mut one).unwrap();
            expected.extend(one.into_iter().take(3));
        }
        for packed in [true, false] {
            let step = Step::Multi { kernel: 0, segments: segments.clone(), loc: "test".into() };
            let exec = executable(vec![(kernel.clone(), *device.limits())], data.len(), vec![step]);
            let memory = upload(&device, &data, packed);
            let bound = device.load(&exec, Seat::alone()).unwrap().bind(&memory, &[]).unwrap();
            bound.run().unwrap();
            for (i, m) in memory.iter().enumerate() {
                let dtype = if i > 0 && (i - 1) % 3 == 0 { dtype } else { DType::F32 };
                close(&format!("multi {dtype} {i} {packed}"), dtype, &device.read(m).unwrap(), &expected[i], 1e-6);
            }
        }
    }
}

/// A program of many steps, with a copy between ranges of one allocation at its end: what it adds to the third input.
fn counting(device: &GpuDevice) -> (Vec<GpuMemory>, GpuBound) {
    let kernel = kernels::loop_in_place(65, DType::F32);
    let args = vec![BufRef::Input(0), BufRef::Input(1)];
    let mut steps: Vec<Step> = (0..130)
        .map(|_| Step::Dispatch { kernel: 0, args: args.clone(), scratch: None, loc: "again".into() })
        .collect();
    steps.push(Step::Copy { src: BufRef::Input(0), dst: BufRef::Input(2) });
    let exec = executable(vec![(kernel, *device.limits())], 3, steps);
    let data = vec![bytes(DType::F32, vec![0.0; 65]), bytes(DType::F32, vec![1.0; 65]), vec![0; 65 * 4]];
    let memory = upload(device, &data, true);
    let bound = device.load(&exec, Seat::alone()).unwrap().bind(&memory, &[]).unwrap();
    (memory, bound)
}

#[test]
fn a_bound_program_runs_again_and_again() {
    let device = test_device();
    let (memory, bound) = counting(&device);
    for _ in 0..40 {
        bound.run().unwrap();
    }
    bound.wait().unwrap();
    assert_eq!(values(DType::F32, &device.read(&memory[2]).unwrap()), vec![40.0 * 130.0; 65]);
}

/// Work goes to the queue in portions of so many seconds, whatever program it is of.
#[test]
fn work_is_submitted_in_portions() {
    let device = GpuDevice::open(Some("llvmpipe")).unwrap();
    let (memory, mut bound) = counting(&device);
    // A copy goes by way of other memory: two commands.
    assert_eq!(bound.work.len(), 132);
    let submissions = |action: &dyn Fn()| {
        let before = device.submissions();
        action();
        device.submissions() - before
    };
    assert_eq!(submissions(&|| bound.run().unwrap()), 1, "so little goes at once");
    assert_eq!(submissions(&|| GpuBound::run_all(&[&bound; 5]).unwrap()), 1);
    assert_eq!(submissions(&|| GpuBound::run_all(&[]).unwrap()), 0);
    // Ten commands of a single run at once, and 150 of several.
    bound.seconds = vec![LEAD / 10.01; 132];
    assert_eq!(submissions(&|| bound.run().unwrap()), 14);
    assert_eq!(portions(&[&bound], LEAD).iter().map(Vec::len).collect::<Vec<_>>(), [vec![10; 13], vec![2]].concat());
    assert_eq!(submissions(&|| GpuBound::run_all(&[&bound; 2]).unwrap()), (264.0 * LEAD / 10.01 / MOST).ceil() as u64);
    // What is too much by itself goes alone.
    bound.seconds[40] = 2.0 * MOST;
    let parts: Vec<usize> = portions(&[&bound], MOST).iter().map(Vec::len).collect();
    assert_eq!(parts[..2], [40, 1]);
    bound.wait().unwrap();
    assert_eq!(values(DType::F32, &device.read(&memory[2]).unwrap()), vec![9.0 * 130.0; 65]);
}

/// Estimates grow with the work and are longer for classes whose slowest are slower.
#[test]
fn estimates_are_of_the_work_and_the_class() {
    let exec = executable(vec![(kernels::loop_in_place(1 << 20, DType::F32), GpuLimits::default())], 2, vec![]);
    let step = |_| Step::Dispatch {
        kernel: 0,
        args: vec![BufRef::Input(0), BufRef::Input(1)],
        scratch: None,
        loc: "step".into(),
    };
    let exec = Executable { steps: (0..3).map(step).collect(), ..(*exec).clone() };
    let seconds = |class| estimates(&exec, class);
    let slow = seconds(GpuClass::Intel);
    assert_eq!(slow.len(), 3);
    // Two arrays of 4 MiB read and one written, at 5 GB/s.
    assert!((slow[0] - 3.0 * (4 << 20) as f64 / 5e9).abs() < 1e-4, "{slow:?}");
    assert!(seconds(GpuClass::Nvidia)[0] < 0.2 * slow[0]);
}

#[test]
fn memory_round_trips() {
    let device = test_device();
    let sizes = [1u64, 2, 3, 4, 5, 255, 256, 257, 0, 70 << 20];
    let memory = device.alloc(&sizes).unwrap();
    for (m, &size) in memory.iter().zip(&sizes) {
        assert_eq!(device.read(m).unwrap(), vec![0; size as usize]);
        let data: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
        device.write(m, &data).unwrap();
        assert!(device.read(m).unwrap() == data, "{size} bytes come back otherwise");
    }
}

#[test]
fn what_is_too_large_is_said() {
    let device = test_device();
    let limit = device.limits().buffer_bytes;
    let Err(e) = device.alloc(&[limit + 1]) else { panic!("{} bytes were allocated", limit + 1) };
    assert!(matches!(e, GpuError::TooLarge { .. }), "{e}");
    // One binding too large.
    let bytes = device.limits().binding_bytes + 4;
    let kernel = kernels::loop_in_place((bytes / 4) as usize, DType::F32);
    let step = Step::Dispatch {
        kernel: 0,
        args: vec![BufRef::Input(0), BufRef::Input(1)],
        scratch: None,
        loc: "net.layer".into(),
    };
    let exec = executable(vec![(kernel, *device.limits())], 2, vec![step]);
    let memory = device.alloc(&[bytes, bytes]).unwrap();
    let Err(e) = device.load(&exec, Seat::alone()).unwrap().bind(&memory, &[]) else { panic!("it was bound") };
    assert!(matches!(e, GpuError::TooLarge { .. }) && e.to_string().contains("net.layer"), "{e}");
}

#[test]
fn overlapping_reads_and_writes_are_refused() {
    let device = test_device();
    let exec = executable(
        vec![(kernels::loop_in_place(64, DType::F32), *device.limits())],
        1,
        vec![Step::Dispatch {
            kernel: 0,
            args: vec![BufRef::Input(0), BufRef::Input(0)],
            scratch: None,
            loc: "net.layer".into(),
        }],
    );
    let memory = device.alloc(&[256]).unwrap();
    let Err(e) = device.load(&exec, Seat::alone()).unwrap().bind(&memory, &[]) else { panic!("it was bound") };
    assert!(matches!(e, GpuError::Program { .. }) && e.to_string().contains("net.layer"), "{e}");
}

#[test]
fn a_refused_shader_is_a_validation_error() {
    let device = test_device();
    let step = Step::Dispatch {
        kernel: 0,
        args: vec![BufRef::Input(0), BufRef::Input(1)],
        scratch: None,
        loc: "net.layer".into(),
    };
    let mut exec = executable(vec![(kernels::loop_in_place(64, DType::F32), *device.limits())], 2, vec![step]);
    let entry = &mut Arc::get_mut(&mut exec).unwrap().kernels[0];
    entry.shaders[0].wgsl = entry.shaders[0].wgsl.replace("let", "lett");
    let memory = device.alloc(&[256, 256]).unwrap();
    let Err(e) = device.load(&exec, Seat::alone()).unwrap().bind(&memory, &[]) else { panic!("it was bound") };
    assert!(matches!(e, GpuError::Validation { .. }) && e.to_string().contains("net.layer"), "{e}");
    // And the device is as good as before.
    agree_random("after a refusal", &kernels::loop_silu(3), 2e-6);
}

#[test]
fn errors_outside_any_scope_fail_the_next_run() {
    // A device of its own: the fault is the device's.
    let device = GpuDevice::open(Some("llvmpipe")).unwrap();
    let memory = device.alloc(&[256]).unwrap();
    let _ = device.shared.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 6,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::MAP_WRITE,
        mapped_at_creation: false,
    });
    let Err(e) = device.read(&memory[0]) else { panic!("the fault went unnoticed") };
    assert!(matches!(e, GpuError::Validation { .. }), "{e}");
    device.read(&memory[0]).unwrap();
}

#[test]
fn a_lost_device_says_so() {
    let device = GpuDevice::open(Some("llvmpipe")).unwrap();
    let memory = device.alloc(&[256]).unwrap();
    device.shared.device.destroy();
    let _ = device.shared.wait("the loss");
    let Err(e) = device.read(&memory[0]) else { panic!("a lost device was read") };
    assert!(matches!(e, GpuError::Lost { .. }), "{e:?}");
    assert!(matches!(device.alloc(&[4]), Err(GpuError::Lost { .. })));
}

#[test]
fn adapters_are_listed() {
    let all = adapters();
    let info = all.iter().map(|a| a.info()).find(|i| i.name.contains("llvmpipe")).expect("llvmpipe is listed");
    assert_eq!(info.kind, crate::DeviceKind::Software);
    assert_eq!(info.backend, "vulkan");
    let Err(e) = GpuDevice::open(Some("no such gpu")) else { panic!("it was opened") };
    assert!(matches!(&e, GpuError::NoAdapter { .. }) && e.to_string().contains("llvmpipe"), "{e}");
}

/// What stands between the begin of an exchange and its finish is on its way while the host meets the others.
#[test]
fn work_that_does_not_want_an_exchange_goes_on_meanwhile() {
    let device = test_device();
    let func = collectives::gradients(&Mesh::new(&[("a", 2)]));
    let options = Options::new(Target::Gpu(*device.limits())).with_bucket_bytes(1);
    let exec = Arc::new(compile(&func, &options).unwrap().exec);
    let sizes = |types: Vec<&Type>| types.iter().map(|t| t.device_bytes() as u64).collect::<Vec<_>>();
    let inputs = device.alloc(&sizes(func.param_types())).unwrap();
    let outputs = device.alloc(&sizes(func.result_types())).unwrap();
    let overlapped = |overlap: bool| {
        let seat = Seat { rank: 0, threads: 1, overlap };
        let bound = device.load(&exec, seat).unwrap().bind(&inputs, &outputs).unwrap();
        let place = |wanted: &dyn Fn(&Work) -> bool| bound.work.iter().position(wanted).unwrap();
        let (mut commands, mut last) = (0, 0);
        for number in 0..4 {
            let begin = place(&|w| matches!(w, Work::Begin(e) if e.at == number));
            let finish = place(&|w| matches!(w, Work::Finish(e) if e.at == number));
            assert!(begin < finish && last < finish, "exchange {number} begins at {begin} and finishes at {finish}");
            last = finish;
            let is_command = |w: &&Work| matches!(w, Work::Dispatch { .. } | Work::Copy { .. });
            commands += bound.work[begin..finish].iter().filter(is_command).count();
        }
        commands
    };
    assert_eq!(overlapped(false), 0);
    assert!(overlapped(true) >= 6, "{} commands", overlapped(true));
}
