//! The choice of a tile: a table of tiles per class of hardware, each with the speed it reaches when the machine is
//! full, and a cost that counts what ragged edges and idle units waste.

use super::operand::depth_is_contiguous;
use super::{blocks_workgroup, broadcast, broadcast_workgroup, matrix};
use crate::kernel::{Inst, Kernel, Role, Tier, Tile};
use crate::{GpuClass, GpuLimits};

/// A tile and its speed, relative to the best one of its table.
#[derive(Clone, Copy)]
struct Row {
    tier: Tier,
    block: [u32; 3],
    each: [u32; 2],
    speed: f64,
}

const fn blocks(block: [u32; 3], each: [u32; 2], speed: f64) -> Row {
    Row { tier: Tier::Blocks, block, each, speed }
}

/// Large register files: 8 x 8 per invocation.
const WIDE: &[Row] = &[
    blocks([128, 128, 8], [8, 8], 1.0),
    blocks([128, 64, 8], [8, 4], 0.8),
    blocks([64, 128, 8], [4, 8], 0.8),
    blocks([64, 64, 16], [4, 4], 0.6),
    blocks([32, 64, 16], [4, 4], 0.5),
    blocks([64, 32, 16], [4, 4], 0.5),
    blocks([32, 32, 16], [4, 4], 0.35),
    blocks([16, 64, 16], [4, 4], 0.3),
    blocks([64, 16, 16], [4, 4], 0.3),
    blocks([16, 16, 16], [4, 4], 0.08),
];

/// Small register files: 8 x 4 per invocation at most.
const NARROW: &[Row] = &[
    blocks([64, 64, 16], [8, 4], 1.0),
    blocks([64, 64, 16], [4, 4], 0.9),
    blocks([32, 64, 16], [4, 4], 0.75),
    blocks([64, 32, 16], [4, 4], 0.75),
    blocks([32, 32, 16], [4, 4], 0.6),
    blocks([16, 64, 16], [4, 4], 0.45),
    blocks([64, 16, 16], [4, 4], 0.45),
    blocks([16, 16, 16], [4, 4], 0.15),
];

const fn matrices(block: [u32; 3], each: [u32; 2], speed: f64) -> Row {
    Row { tier: Tier::Matrix, block, each, speed }
}

/// Cooperative matrices of 16 x 16.
const MATRICES_16: &[Row] = &[
    matrices([128, 128, 32], [64, 32], 8.0),
    matrices([64, 128, 32], [32, 32], 6.0),
    matrices([128, 64, 32], [32, 32], 6.0),
    matrices([64, 64, 32], [32, 32], 5.0),
    matrices([32, 64, 32], [16, 32], 3.0),
    matrices([64, 32, 32], [32, 16], 3.0),
    matrices([32, 32, 32], [16, 16], 2.0),
    matrices([16, 64, 32], [16, 16], 2.0),
    matrices([64, 16, 32], [16, 16], 2.0),
];

/// Cooperative matrices of 8 x 8.
const MATRICES_8: &[Row] = &[
    matrices([64, 64, 16], [32, 32], 2.0),
    matrices([32, 64, 16], [16, 32], 1.6),
    matrices([64, 32, 16], [32, 16], 1.6),
    matrices([32, 32, 16], [16, 16], 1.2),
];

/// Speed of one invocation per result.
const SERIAL: f64 = 0.04;

/// Depth a part of a split should at least have.
const PART: usize = 256;

/// Parts, at most.
const PARTS: usize = 64;

/// Bytes of scratch, at most.
const SCRATCH: usize = 256 << 20;

/// What the choice depends on beside the tiles: workgroups that fill the machine, and what another dispatch costs, in
/// products that could have been made meanwhile.
struct Machine {
    units: usize,
    dispatch: f64,
}

fn table(limits: &GpuLimits) -> (Vec<Row>, Machine) {
    let hardware = |rows: &[Row], units: usize| (rows.to_vec(), Machine { units, dispatch: 3e7 });
    let (mut rows, machine) = match limits.class {
        GpuClass::Nvidia => hardware(WIDE, 160),
        GpuClass::Amd => hardware(WIDE, 120),
        GpuClass::Other => hardware(WIDE, 96),
        GpuClass::Intel => hardware(NARROW, 64),
        GpuClass::Apple => hardware(NARROW, 64),
        GpuClass::Software => {
            let lanes = limits.subgroup.map_or(0, |(least, _)| least);
            let row = |rows: u32, each: u32, speed: f64| Row {
                tier: Tier::Broadcast,
                block: [rows, lanes * each, broadcast::DEPTH],
                each: [rows, each],
                speed,
            };
            // Without subgroups these don't fit, and the small tiles are left.
            let mut all = vec![row(16, 8, 1.0), row(16, 4, 0.7), row(8, 8, 0.6), row(8, 4, 0.45)];
            all.extend(NARROW.iter().map(|r| Row { speed: r.speed * 0.12, ..*r }));
            (all, Machine { units: 8, dispatch: 1e6 })
        }
    };
    // A rasteriser's matrices are for trying shaders.
    if limits.class != GpuClass::Software {
        match limits.cooperative_matrix {
            Some(16) => rows.extend(MATRICES_16),
            Some(8) => rows.extend(MATRICES_8),
            _ => {}
        }
    }
    rows.push(Row { tier: Tier::Serial, block: [1, 1, 1], each: [1, 1], speed: SERIAL });
    (rows, machine)
}

fn fits(row: &Row, kernel: &Kernel, limits: &GpuLimits) -> bool {
    match row.tier {
        Tier::Blocks => blocks_workgroup(row.block, row.each, limits).is_ok(),
        Tier::Broadcast => broadcast_workgroup(row.block, row.each, limits).is_ok(),
        Tier::Matrix => matrix::workgroup(kernel, row.block, row.each, limits).is_ok(),
        // Neighbouring invocations would each read along rows of their own.
        Tier::Serial => kernel.insts.iter().all(|inst| match inst {
            Inst::Dot { lhs, rhs } => !depth_is_contiguous(kernel, *lhs) && !depth_is_contiguous(kernel, *rhs),
            _ => true,
        }),
    }
}

/// The tile of least estimated time for a contraction.
pub fn choose_tile(kernel: &Kernel, limits: &GpuLimits) -> Tile {
    let all = estimates(kernel, limits);
    let least = all.into_iter().reduce(|best, other| if other.0 < best.0 { other } else { best });
    least.map(|(_, tile)| tile).unwrap_or_default()
}

/// Every tile of the table that a contraction could run with, the most promising first.
pub fn candidate_tiles(kernel: &Kernel, limits: &GpuLimits) -> Vec<Tile> {
    let mut all = estimates(kernel, limits);
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.into_iter().map(|(_, tile)| tile).collect()
}

/// The tiles that fit a contraction, whole and in parts, with their estimated times.
fn estimates(kernel: &Kernel, limits: &GpuLimits) -> Vec<(f64, Tile)> {
    let [z, m, n, k] = [Role::Batch, Role::M, Role::N, Role::Reduce].map(|r| kernel.extent(r).max(1));
    let (rows, machine) = table(limits);
    let mut all = vec![];
    for row in rows.iter().filter(|row| fits(row, kernel, limits)) {
        let (area, tiles) = match row.tier {
            Tier::Serial => (64, (z * m * n).div_ceil(64)),
            Tier::Blocks | Tier::Broadcast | Tier::Matrix => {
                let [bm, bn] = [row.block[0] as usize, row.block[1] as usize];
                (bm * bn, z * m.div_ceil(bm) * n.div_ceil(bn))
            }
        };
        let mut split = 1;
        while split == 1 || (split <= PARTS && k / split >= PART && split * z * m * n * 4 <= SCRATCH) {
            let depth = k.div_ceil(split).next_multiple_of(row.block[2] as usize);
            // Fewer workgroups than units leave some idle.
            let mut cost = ((tiles * split).max(machine.units) * area * depth) as f64 / row.speed;
            if split > 1 {
                // Sums go through memory, at some forty products per element.
                cost += machine.dispatch + 40.0 * (z * m * n * split) as f64;
            }
            let tile =
                Tile { tier: row.tier, workgroup: 0, block: row.block, per_invocation: row.each, split: split as u32 };
            all.push((cost, tile));
            split *= 2;
        }
    }
    all
}

/// The kernel's tile with the blanks filled in.
pub(super) fn complete(kernel: &Kernel, limits: &GpuLimits) -> Tile {
    let asked = &kernel.tile;
    if asked.tier == Tier::Serial {
        return Tile { block: [1, 1, 1], per_invocation: [1, 1], ..asked.clone() };
    }
    if asked.block == [0; 3] && asked.tier == Tier::Blocks {
        let chosen = choose_tile(kernel, limits);
        let split = if asked.split == 0 { chosen.split } else { asked.split };
        return Tile { split, ..chosen };
    }
    let or = |asked: u32, default: u32| if asked == 0 { default } else { asked };
    let [block, each] = [[64, 64, 16], [4, 4, 0]];
    Tile {
        block: [0, 1, 2].map(|i| or(asked.block[i], block[i])),
        per_invocation: [0, 1].map(|i| or(asked.per_invocation[i], each[i])),
        ..asked.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Arg, Dim, Idx, InstId, Kind, Store};
    use dnx_ir::DType;

    /// A product whose operands depend on the depth and on their own dims.
    fn product(z: usize, m: usize, n: usize, k: usize) -> Kernel {
        let sizes = [(z, Role::Batch), (m, Role::M), (n, Role::N), (k, Role::Reduce)];
        let arg = |elems, access| Arg { dtype: DType::F32, elems, access };
        let load = |arg, coefs: [usize; 4]| {
            let terms = coefs.iter().enumerate().filter(|(_, c)| **c > 0);
            let terms = terms.map(|(d, &c)| (c as i64, crate::kernel::Atom::Dim(d as u32))).collect();
            Inst::Load { arg, index: Idx { terms, ..Idx::default() }, dynamic: vec![] }
        };
        use crate::kernel::Access::{Read, Write};
        Kernel {
            kind: Kind::Contract,
            dims: sizes.map(|(size, role)| Dim { size, role }).to_vec(),
            args: vec![arg(z * m * k, Read), arg(z * k * n, Read), arg(z * m * n, Write)],
            insts: vec![
                load(0, [1, z, 0, z * m]),
                load(1, [1, 0, z, z * n]),
                Inst::Dot { lhs: InstId(0), rhs: InstId(1) },
            ],
            dtypes: vec![DType::F32; 3],
            stores: vec![Store { arg: 2, index: Idx::default(), value: InstId(2) }],
            scatter: None,
            tile: Tile::default(),
        }
    }

    fn chosen(class: GpuClass, [z, m, n, k]: [usize; 4]) -> Tile {
        let subgroup = Some(if class == GpuClass::Software { (8, 8) } else { (32, 32) });
        choose_tile(&product(z, m, n, k), &GpuLimits { class, subgroup, ..GpuLimits::default() })
    }

    #[test]
    fn large_products_take_large_tiles() {
        assert_eq!(chosen(GpuClass::Nvidia, [1, 4096, 4096, 4096]).block, [128, 128, 8]);
        assert_eq!(chosen(GpuClass::Intel, [1, 4096, 4096, 4096]).block, [64, 64, 16]);
    }

    #[test]
    fn small_deep_ones_are_split() {
        let tile = chosen(GpuClass::Nvidia, [1, 192, 192, 65536]);
        assert!(tile.split >= 8, "{tile:?}");
        assert_eq!(chosen(GpuClass::Nvidia, [1, 4096, 4096, 65536]).split, 1);
    }

    #[test]
    fn narrow_ones_take_narrow_tiles() {
        assert_eq!(chosen(GpuClass::Nvidia, [1, 65536, 3, 1152]).block[1], 16);
        assert_eq!(chosen(GpuClass::Nvidia, [1, 32, 1152, 384]).block[0], 32);
    }

    #[test]
    fn depthwise_ones_are_serial() {
        assert_eq!(chosen(GpuClass::Nvidia, [256, 4096, 1, 9]).tier, Tier::Serial);
        let weights = chosen(GpuClass::Nvidia, [256, 9, 1, 65536]);
        assert!(weights.tier == Tier::Serial && weights.split > 4, "{weights:?}");
    }

    #[test]
    fn software_broadcasts() {
        assert_eq!(chosen(GpuClass::Software, [1, 2048, 768, 192]).tier, Tier::Broadcast);
    }

    #[test]
    fn half_products_take_matrices_where_there_are_some() {
        let limits = GpuLimits {
            class: GpuClass::Nvidia,
            subgroup: Some((32, 32)),
            f16: true,
            cooperative_matrix: Some(16),
            ..GpuLimits::default()
        };
        let mut kernel = product(1, 4096, 4096, 4096);
        assert_eq!(choose_tile(&kernel, &limits).tier, Tier::Blocks, "f32 operands stay f32");
        kernel.dtypes[..2].fill(DType::F16);
        assert_eq!(choose_tile(&kernel, &limits).tier, Tier::Matrix);
        assert_eq!(choose_tile(&kernel, &GpuLimits { cooperative_matrix: None, ..limits }).tier, Tier::Blocks);
    }
}
