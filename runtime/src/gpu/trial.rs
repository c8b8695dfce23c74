//! The trial of cooperative matrices: before a program's first use of a tile of them, the device multiplies with it
//! and without, and if the numbers differ in one bit, such kernels run without from then on.
//!
//! Drivers get these wrong in silence. Operands are small multiples of 1/8, so every sum is exact in `f32` and must
//! come out the same in any order, while accumulation in `f16` or a tile read before it is written shows.

use super::{GpuDevice, GpuError, GpuMemory};
use crate::company::Seat;
use dnx_codegen::exec::{Executable, KernelEntry};
use dnx_codegen::kernel::{Kernel, Tier, Tile};
use dnx_codegen::{GpuLimits, Options, Target, compile, wgsl};
use dnx_ir::{DType, DotDims, Graph, Op, Type};
use std::sync::Arc;

/// Rows, columns and depth of the trial product: several tiles of any size, all of them ragged.
const SIZES: [usize; 3] = [150, 140, 232];

impl GpuDevice {
    /// The program with every kernel that multiplies matrices as the device should be given it.
    ///
    /// # Errors
    /// If a kernel can't be written without them either.
    pub(super) fn trusted(&self, exec: &Arc<Executable>) -> Result<Arc<Executable>, GpuError> {
        let uses_matrices = |entry: &&KernelEntry| entry.kernel.tile.tier == Tier::Matrix && !entry.shaders.is_empty();
        if !exec.kernels.iter().any(|entry| uses_matrices(&entry)) {
            return Ok(exec.clone());
        }
        let plain = GpuLimits { cooperative_matrix: None, ..self.shared.limits };
        let mut replaced = Executable::clone(exec);
        for entry in replaced.kernels.iter_mut().filter(|entry| uses_matrices(&&**entry)) {
            if self.matrices_are_right(&entry.kernel.tile) {
                continue;
            }
            // Parts would want scratch memory that was planned for another tile.
            let chosen = Tile { split: 1, ..wgsl::choose_tile(&entry.kernel, &plain) };
            let kernel = Kernel { tile: chosen, ..entry.kernel.clone() };
            entry.shaders = shaders(&kernel, &plain)?;
            entry.kernel = kernel;
        }
        Ok(Arc::new(replaced))
    }

    /// Whether a tile gives the right numbers here; tried once.
    fn matrices_are_right(&self, tile: &Tile) -> bool {
        let tile = Tile { split: 1, ..tile.clone() };
        let tried = |device: &GpuDevice| device.shared.trials().get(&tile).copied();
        if let Some(right) = tried(self) {
            return right;
        }
        let outcome = self.try_matrices(&tile);
        if let Err(reason) = &outcome {
            eprintln!(
                "dnx: products of f16 run without this GPU's cooperative matrices: tile {:?}: {reason}",
                tile.block
            );
        }
        self.shared.trials().insert(tile, outcome.is_ok());
        outcome.is_ok()
    }

    /// Multiplies with the tile and without, from both layouts of both operands.
    fn try_matrices(&self, tile: &Tile) -> Result<(), String> {
        let plain = GpuLimits { cooperative_matrix: None, ..self.shared.limits };
        for transposed in [false, true] {
            let exec = product(transposed, &plain)?;
            let expected = self.multiply(&exec).map_err(|e| e.to_string())?;
            let mut with = exec;
            let entry = &mut with.kernels[0];
            entry.kernel.tile = tile.clone();
            entry.shaders = shaders(&entry.kernel, &self.shared.limits).map_err(|e| e.to_string())?;
            let got = self.multiply(&with).map_err(|e| e.to_string())?;
            let numbers = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
            let (got, expected) = (numbers(&got), numbers(&expected));
            if let Some(i) = (0..got.len()).find(|&i| got[i] != expected[i]) {
                let (row, column) = (i / SIZES[1], i % SIZES[1]);
                return Err(format!("element ({row}, {column}) of a product is {}, not {}", got[i], expected[i]));
            }
        }
        Ok(())
    }

    /// Runs the trial product.
    fn multiply(&self, exec: &Executable) -> Result<Vec<u8>, GpuError> {
        let exec = Arc::new(exec.clone());
        let bytes = |i: usize| exec.inputs[i].ty.device_bytes() as u64;
        let result = exec.outputs[0].ty.device_bytes() as u64;
        let memory: Vec<GpuMemory> = self.alloc(&[bytes(0), bytes(1), result])?;
        for (i, m) in memory[..2].iter().enumerate() {
            self.write(m, &eighths(bytes(i) as usize / 2, i as u32))?;
        }
        let bound = self.load_as_it_is(&exec, Seat::alone())?.bind(&memory[..2], &memory[2..])?;
        bound.run()?;
        self.read(&memory[2])
    }
}

fn shaders(kernel: &Kernel, limits: &GpuLimits) -> Result<Vec<dnx_codegen::exec::Shader>, GpuError> {
    wgsl::shaders(kernel, limits)
        .map_err(|e| GpuError::Program { what: "a product of f16".to_string(), message: e.to_string() })
}

/// The trial product, its operands contiguous along the depth or (`transposed`) across it.
fn product(transposed: bool, limits: &GpuLimits) -> Result<Executable, String> {
    let [m, n, k] = SIZES;
    let g = Graph::new("trial of cooperative matrices");
    let side = |name: &str, rows: usize| {
        let dims = if transposed { [k, rows] } else { [rows, k] };
        g.param(name, Type::new(DType::F16, dims))
    };
    let depth = vec![usize::from(!transposed)];
    let dims = DotDims { lhs_contract: depth.clone(), rhs_contract: depth, ..DotDims::default() };
    let product = side("lhs", m).apply(Op::Dot { dims, out: DType::F32 }, &[side("rhs", n)]);
    let func = g.finish(&[product]).map_err(|e| e.to_string())?;
    compile(&func, &Options::new(Target::Gpu(*limits))).map(|c| c.exec).map_err(|e| e.to_string())
}

/// Bytes of `f16` multiples of 1/8 from -1 to 1.
fn eighths(elems: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) ^ 0x5851_f42d;
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        half::f16::from_f32(((state >> 16) % 17) as f32 / 8.0 - 1.0).to_le_bytes()
    };
    (0..elems).flat_map(number).collect()
}
