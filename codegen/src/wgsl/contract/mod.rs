//! Contractions, in four tiers: [`blocks`] for any hardware, [`matrix`] where it multiplies matrices, [`broadcast`] for
//! software rasterisers, [`serial`] for what is hardly a contraction. [`tiles`] chooses.
//!
//! All share the operands ([`operand`]: `lhs_quad` and `rhs_quad`, prologues included, zero outside the matrix) and
//! what follows the sums ([`finish`]: `finish_quad`, the epilogue and the stores, or the store to scratch).
//!
//! With a split, each part of the depth leaves its sums in scratch, `[part, result]`, and a second stage adds them in
//! order and finishes.

mod blocks;
mod broadcast;
mod fetch;
mod finish;
mod matrix;
mod operand;
mod serial;
mod tiles;

use super::writer::{Writer, refuse};
use crate::exec::Shader;
use crate::kernel::{Inst, InstId, Kernel, Role, Tier};
use crate::{GpuLimits, Result};

pub use tiles::{candidate_tiles, choose_tile};

pub(super) fn write(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<Shader>> {
    let plan = Plan::new(kernel, limits)?;
    let mut stages = vec![match plan.tier {
        Tier::Blocks => blocks::product(&plan, kernel, limits)?,
        Tier::Broadcast => broadcast::product(&plan, kernel, limits)?,
        Tier::Serial => serial::product(&plan, kernel, limits)?,
        Tier::Matrix => matrix::product(&plan, kernel, limits)?,
    }];
    if plan.parts > 1 {
        stages.push(plan.second(kernel, limits)?);
    }
    Ok(stages)
}

struct Plan {
    tier: Tier,
    dot: InstId,
    lhs: InstId,
    rhs: InstId,
    /// What is stored.
    stored: Vec<InstId>,
    accumulator: &'static str,
    /// The type in which operands are kept.
    element: &'static str,
    /// Extents: batch, rows, columns, depth.
    extent: [usize; 4],
    /// Rows, columns and depth of the block.
    block: [u32; 3],
    /// Rows and columns per invocation; of `Matrix`, per subgroup.
    each: [u32; 2],
    parts: usize,
    /// Depth of a part.
    part: usize,
    /// Invocations of a workgroup.
    workgroup: u32,
}

impl Plan {
    fn new(kernel: &Kernel, limits: &GpuLimits) -> Result<Plan> {
        let mut dots = (0..kernel.insts.len()).filter(|&i| kernel.insts[i].is_reduction());
        let (Some(dot), None) = (dots.next(), dots.next()) else {
            return refuse("a contract kernel has exactly one reduction, a dot");
        };
        let Inst::Dot { lhs, rhs } = kernel.insts[dot] else {
            return refuse("a contract kernel's reduction is a dot");
        };
        let tile = tiles::complete(kernel, limits);
        let (block, each) = (tile.block, tile.per_invocation);
        let workgroup = match tile.tier {
            Tier::Blocks => blocks_workgroup(block, each, limits)?,
            Tier::Broadcast => broadcast_workgroup(block, each, limits)?,
            Tier::Matrix => matrix::workgroup(kernel, block, each, limits)?,
            Tier::Serial => 64.min(limits.max_invocations.max(1)),
        };
        let extent = [Role::Batch, Role::M, Role::N, Role::Reduce].map(|r| kernel.extent(r));
        let depth = block[2] as usize;
        let parts = (tile.split.max(1) as usize).min(extent[3].div_ceil(depth)).max(1);
        let part = extent[3].div_ceil(parts).next_multiple_of(depth);
        let w = Writer::new(kernel, limits);
        let accumulator = w.accumulator(kernel.dtypes[dot])?;
        Ok(Plan {
            tier: tile.tier,
            dot: InstId(dot as u32),
            lhs,
            rhs,
            stored: kernel.stores.iter().map(|s| s.value).collect(),
            accumulator,
            element: if tile.tier == Tier::Matrix { "f16" } else { accumulator },
            extent,
            block,
            each,
            parts: extent[3].div_ceil(part.max(1)).max(1),
            part,
            workgroup,
        })
    }

    fn scratch_bytes(&self) -> u64 {
        if self.parts == 1 { 0 } else { self.parts as u64 * self.results() * 4 }
    }

    fn results(&self) -> u64 {
        self.extent[..3].iter().map(|&n| n as u64).product()
    }

    /// Blocks along rows and along columns.
    fn tiles(&self) -> [u64; 2] {
        [0, 1].map(|i| self.extent[1 + i].div_ceil(self.block[i] as usize) as u64)
    }

    fn workgroups(&self) -> u64 {
        let [m, n] = self.tiles();
        match self.tier {
            Tier::Serial => (self.results() * self.parts as u64).div_ceil(self.workgroup as u64),
            Tier::Blocks | Tier::Broadcast | Tier::Matrix => m * n * (self.extent[0] * self.parts) as u64,
        }
    }

    fn decode(&self, w: &mut Writer, roles: &[(Role, &str)]) {
        for (role, name) in roles {
            let dims = w.dims_of(*role);
            w.decode(&dims, name);
        }
    }

    /// Prints which block this workgroup has: `z`, `tile_m`, `tile_n`, and the depths from `begin` to `end`.
    fn print_place(&self, w: &mut Writer) {
        let [tiles_m, tiles_n] = self.tiles();
        w.workgroup_index("w", self.workgroups());
        w.line(format!("let tile_n = (w % {tiles_n}u) * {}u;", self.block[1]));
        w.line(format!("let tile_m = (w / {tiles_n}u % {tiles_m}u) * {}u;", self.block[0]));
        if self.parts > 1 {
            w.line(format!("let z = w / {}u % {}u;", tiles_n * tiles_m, self.extent[0]));
            w.line(format!("let part = w / {}u;", tiles_n * tiles_m * self.extent[0] as u64));
            w.line(format!("let begin = part * {}u;", self.part));
            w.line(format!("let end = min(begin + {}u, {}u);", self.part, self.extent[3]));
        } else {
            w.line(format!("let z = w / {}u;", tiles_n * tiles_m));
            w.line("let begin = 0u;");
            w.line(format!("let end = {}u;", self.extent[3]));
        }
    }

    fn second(&self, kernel: &Kernel, limits: &GpuLimits) -> Result<Shader> {
        let mut w = Writer::new(kernel, limits);
        let results = self.results();
        let workgroups = results.div_ceil(64);
        w.use_scratch();
        w.open_main(64);
        w.workgroup_index("w", workgroups);
        w.line("let i = w * 64u + lid;");
        w.line(format!("if (i >= {results}u) {{ return; }}"));
        w.line(format!("var sum = {}(0);", self.accumulator));
        w.open(format!("for (var part = 0u; part < {}u; part = part + 1u) {{", self.parts));
        w.line(format!("sum = sum + bitcast<{}>(scratch[part * {results}u + i]);", self.accumulator));
        w.close();
        if self.tier == Tier::Serial {
            w.decode(&serial::results_order(kernel), "i");
        } else {
            w.line(format!("let n = i % {}u;", self.extent[2]));
            w.line(format!("let m = i / {}u % {}u;", self.extent[2], self.extent[1]));
            w.line(format!("let z = i / {}u;", self.extent[2] * self.extent[1]));
            self.decode(&mut w, &[(Role::Batch, "z"), (Role::M, "m"), (Role::N, "n")]);
        }
        self.epilogue(&mut w)?;
        w.close();
        w.finish(&format!("contract, second stage: adds {} parts", self.parts), workgroups, self.scratch_bytes())
    }
}

/// Rows and columns per invocation must be multiples of four that divide the block.
fn check_division(block: [u32; 3], each: [u32; 2]) -> Result<()> {
    let divides = |i: usize| each[i].is_multiple_of(4) && each[i] != 0 && block[i].is_multiple_of(each[i]);
    if divides(0) && divides(1) && block[2] > 0 {
        return Ok(());
    }
    refuse(format!(
        "tile {block:?} with {each:?} per invocation: rows and columns per invocation must be multiples of 4 that \
         divide the block"
    ))
}

fn blocks_workgroup(block: [u32; 3], each: [u32; 2], limits: &GpuLimits) -> Result<u32> {
    check_division(block, each)?;
    let workgroup = (block[0] / each[0]) * (block[1] / each[1]);
    let bytes = block[2] * ((block[0] / 4 + 1) + (block[1] / 4 + 1)) * 16;
    if workgroup > limits.max_invocations || bytes > limits.workgroup_bytes {
        return refuse(format!(
            "tile {block:?} takes {workgroup} invocations and {bytes} bytes of workgroup memory; the device has {} \
             and {}",
            limits.max_invocations, limits.workgroup_bytes
        ));
    }
    Ok(workgroup)
}

fn broadcast_workgroup(block: [u32; 3], each: [u32; 2], limits: &GpuLimits) -> Result<u32> {
    check_division(block, each)?;
    let Some((lanes, most)) = limits.subgroup else {
        return refuse("tiles passed around a subgroup need a device whose shaders have subgroups");
    };
    let rows = block[0];
    let whole = |n: u32, of: u32| of > 0 && n.is_multiple_of(of);
    // A step of the left operand, `rows` x 4, is dealt out in whole quads whichever way they lie.
    let dealt = whole(rows, lanes) && whole(lanes, rows / 4) && whole(broadcast::DEPTH, lanes / (rows / 4));
    if lanes != most || each[0] != rows || block[1] != lanes * each[1] || block[2] != broadcast::DEPTH || !dealt {
        return refuse(format!(
            "tile {block:?} with {each:?} per invocation does not fit subgroups of {lanes} to {most} invocations"
        ));
    }
    Ok(lanes)
}
