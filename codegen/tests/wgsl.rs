//! The WGSL writers: everything they print passes naga, and a few shaders of each kind are kept as snapshots.

mod kernels;

use dnx_codegen::kernel::{Kernel, Tier, Tile};
use dnx_codegen::wgsl::{check, shaders, widen_access};
use dnx_codegen::{GpuClass, GpuLimits};
use dnx_ir::DType;
use dnx_ir::attention::Form;

fn limits(f16: bool) -> GpuLimits {
    GpuLimits { f16, ..GpuLimits::default() }
}

#[test]
fn every_kind_passes_naga() {
    for f16 in [false, true] {
        for (name, kernel) in kernels::gallery() {
            let stages = shaders(&kernel, &limits(f16)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(!stages.is_empty(), "{name} has no shader");
            for stage in &stages {
                assert!(!stage.bindings.is_empty(), "{name} binds nothing");
                assert!(stage.grid.iter().all(|&n| n <= 65_535), "{name} has grid {:?}", stage.grid);
            }
        }
    }
}

#[test]
fn odd_sizes_pass_naga() {
    for n in [1, 2, 3, 63, 64, 65, 257] {
        for kernel in [
            kernels::loop_silu(n),
            kernels::row_softmax(n, n, DType::F32),
            kernels::row_softmax(n, 1, DType::BF16),
            kernels::row_norm(n, 3, 4 * n),
            kernels::column_sum(n, 3, 0),
            kernels::column_sum(3, n, 2),
            kernels::contract_matmul(1, n, 1, 3, DType::F32, false),
            kernels::contract_matmul(1, 1, n, n, DType::F32, true),
            kernels::attention(Form::Forward, [1, n, 1, 3], 5, DType::F32, false, false),
            kernels::attention(Form::Jvp, [1, 5, 1, n], n, DType::F32, true, true),
            kernels::attention(Form::Backward, [1, 7, 1, 1], n, DType::F32, true, true),
        ] {
            shaders(&kernel, &limits(false)).unwrap();
        }
    }
}

#[test]
fn cooperative_matrices_pass_naga() {
    let tiles = [(8, [64, 64, 16], [32, 32]), (8, [16, 16, 8], [8, 8]), (16, [128, 128, 32], [64, 32])];
    for class in [GpuClass::Nvidia, GpuClass::Apple] {
        for (edge, block, per_invocation) in tiles {
            let subgroup = Some((32, 32));
            let limits = GpuLimits { class, subgroup, cooperative_matrix: Some(edge), ..limits(true) };
            let mut gallery: Vec<Kernel> = vec![kernels::contract_half(2, 33, 65, 63)];
            for layout in kernels::LAYOUTS {
                gallery.push(kernels::contract_layout(2, 68, 36, 100, DType::F16, layout));
                gallery.push(kernels::contract_layout(1, 67, 35, 101, DType::F16, layout));
            }
            for mut kernel in gallery {
                kernel.tile = Tile { tier: Tier::Matrix, workgroup: 0, block, per_invocation, split: 2 };
                let stages = shaders(&kernel, &limits).unwrap();
                assert!(stages[0].wgsl.contains(&format!("coop_mat{edge}x{edge}<f32, C>")));
            }
        }
    }
}

#[test]
fn matrices_are_for_halves_alone() {
    let limits = GpuLimits { subgroup: Some((32, 32)), cooperative_matrix: Some(16), ..limits(true) };
    let mut kernel = kernels::contract_matmul(1, 64, 64, 64, DType::F32, false);
    kernel.tile.tier = Tier::Matrix;
    let e = shaders(&kernel, &limits).unwrap_err();
    assert!(e.to_string().contains("f16 operands"), "{e}");
}

#[test]
fn naga_refuses_bad_text() {
    let e = check("// broken\n@compute @workgroup_size(1) fn main() { let x: f32 = 1u; }").unwrap_err();
    assert!(e.to_string().contains("broken"), "{e}");
}

#[test]
fn f64_is_refused_in_words() {
    let e = shaders(&kernels::loop_transpose(3, 4, DType::F64), &limits(true)).unwrap_err();
    assert!(e.to_string().contains("f64"), "{e}");
}

#[test]
fn a_tile_beyond_the_limits_is_refused() {
    let mut kernel = kernels::contract_matmul(1, 64, 64, 64, DType::F32, false);
    kernel.tile.block = [256, 256, 16];
    let e = shaders(&kernel, &limits(false)).unwrap_err();
    assert!(e.to_string().contains("workgroup memory"), "{e}");
}

#[test]
fn widening_changes_one_binding() {
    let text = &shaders(&kernels::loop_silu(5), &limits(false)).unwrap()[0].wgsl;
    let wide = widen_access(text, 1);
    assert!(wide.contains("@binding(1) var<storage, read_write> a1"));
    assert!(wide.contains("@binding(0) var<storage, read> a0"));
    check(&wide).unwrap();
}

#[test]
fn snapshots() {
    let kept = [
        "loop_silu",
        "loop_views",
        "loop_random",
        "loop_in_place_bf16",
        "row_softmax_short",
        "row_norm",
        "column_sum_split",
        "contract_conv",
        "contract_split",
        "attention",
        "attention_jvp",
        "attention_bwd",
        "index_scatter",
        "multi_momentum",
    ];
    for (name, kernel) in kernels::gallery() {
        if kept.contains(&name.as_str()) {
            let stages = shaders(&kernel, &limits(false)).unwrap();
            let text: Vec<String> = stages
                .iter()
                .map(|s| {
                    format!("// grid {:?}, bindings {:?}, scratch {}\n{}", s.grid, s.bindings, s.scratch_bytes, s.wgsl)
                })
                .collect();
            insta::assert_snapshot!(name, text.join("\n// ---- next stage ----\n"));
        }
    }
}

/// What only some devices are given: cooperative matrices, subgroups, a rasteriser's tiles.
#[test]
fn snapshots_of_other_devices() {
    let matrices = GpuLimits { subgroup: Some((32, 64)), cooperative_matrix: Some(16), ..limits(true) };
    let mut half = kernels::contract_layout(2, 36, 20, 28, DType::F16, "nt");
    half.tile = Tile { tier: Tier::Matrix, workgroup: 0, block: [32, 32, 16], per_invocation: [16, 16], split: 1 };
    let software = GpuLimits { class: GpuClass::Software, subgroup: Some((8, 8)), ..limits(true) };
    let mut broadcast = kernels::contract_layout(2, 36, 20, 28, DType::F32, "nn");
    broadcast.tile = Tile { tier: Tier::Broadcast, workgroup: 0, block: [8, 32, 4], per_invocation: [8, 4], split: 1 };
    let cases = [
        ("contract_matrix", half, matrices),
        ("contract_broadcast", broadcast, software),
        ("row_norm_subgroups", kernels::row_norm(2, 5, 768), GpuLimits { subgroup: Some((16, 32)), ..limits(false) }),
    ];
    for (name, kernel, limits) in cases {
        insta::assert_snapshot!(name, shaders(&kernel, &limits).unwrap()[0].wgsl);
    }
}
