//! Tuning: every contraction of a program is tried with every tile of the compiler's table on the device itself.
//!
//! A candidate must first give the numbers that the cpu device gives for the same kernel and random operands; of
//! those that do the quickest wins. What won is kept in a file per adapter and driver in the cache folder
//! (`$DNX_CACHE`, else the system's folder for caches), from which [`Device::options`] takes it. Deleting that file
//! is always safe; other tiles add in another order, so tuning may change the last bits of a run.

use crate::{Device, DeviceInfo, Error, Result};
use dnx_codegen::GpuLimits;
use dnx_codegen::compile::hash;
use dnx_codegen::exec::{BufRef, Executable, KernelEntry, Port, Requires, Step, VERSION};
use dnx_codegen::kernel::{Access, Kernel, Kind, Tile};
use dnx_codegen::wgsl::{candidate_tiles, shaders};
use dnx_ir::{Array, DType, Mesh, Type};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs of a candidate after the first two; the quickest counts.
const RUNS: usize = 5;

/// What tuning found for one kernel.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// Hash of the kernel without a tile.
    pub hash: String,
    /// Model path of its first use.
    pub name: String,
    /// The compiler's own choice, and its time.
    pub default: (Tile, Duration),
    /// The quickest right candidate, and its time.
    pub best: (Tile, Duration),
    /// Candidates tried.
    pub tried: usize,
    /// Candidates that were refused, with the reason.
    pub refused: Vec<(Tile, String)>,
}

/// Tries the tiles of every contraction of a program that was compiled for this device.
///
/// # Errors
/// If the device is not a GPU, or it fails.
pub fn tune(device: &Device, exec: &Executable) -> Result<Vec<Tuned>> {
    let target = device.target();
    let Some(limits) = target.gpu() else {
        return Err(Error::Unsupported {
            program: exec.name.clone(),
            device: device.name().to_string(),
            reason: "the cpu device has no tiles to choose; tune a GPU with --device".to_string(),
        });
    };
    let mut seen = BTreeSet::new();
    let mut found = vec![];
    for entry in exec.kernels.iter().filter(|k| k.kernel.kind == Kind::Contract) {
        let bare = Kernel { tile: Tile::default(), ..entry.kernel.clone() };
        if seen.insert(hash(&bare)) {
            found.extend(tune_kernel(device, limits, &bare, &entry.name)?);
        }
    }
    Ok(found)
}

/// Tunes one kernel; `None` if not even the compiler's own choice gives the right numbers, which is for the tests
/// to find and not for tuning to hide.
fn tune_kernel(device: &Device, limits: &GpuLimits, bare: &Kernel, name: &str) -> Result<Option<Tuned>> {
    let operands: Vec<Array> = bare.args.iter().enumerate().map(|(i, a)| random(a.dtype, a.elems, i as u32)).collect();
    let expected = Trial::new(&Device::cpu(), bare, None, &operands)?.results()?;
    let mut default = None;
    let mut best: Option<(Tile, Duration)> = None;
    let mut refused = vec![];
    let candidates = candidate_tiles(bare, limits);
    let tried = candidates.len();
    for tile in candidates {
        let kernel = Kernel { tile: tile.clone(), ..bare.clone() };
        let time = match Trial::new(device, &kernel, Some(limits), &operands) {
            Ok(trial) => match differs(&trial.results()?, &expected) {
                Some(why) => Err(why),
                None => Ok(trial.time()?),
            },
            // A tile too large for this adapter is refused when it is bound; the device goes on.
            Err(error) => Err(error.to_string()),
        };
        match time {
            Ok(time) => {
                default.get_or_insert((tile.clone(), time));
                if best.as_ref().is_none_or(|(_, least)| time < *least) {
                    best = Some((tile, time));
                }
            }
            Err(why) => {
                tracing::warn!("{name}: tile {tile:?} is refused: {why}");
                refused.push((tile, why));
            }
        }
    }
    let (Some(default), Some(best)) = (default, best) else { return Ok(None) };
    Ok(Some(Tuned { hash: hash(bare), name: name.to_string(), default, best, tried, refused }))
}

/// One kernel as a program of its own: every argument is an input, those it writes are donated.
struct Trial {
    bound: crate::Bound,
    written: Vec<usize>,
}

impl Trial {
    fn new(device: &Device, kernel: &Kernel, limits: Option<&GpuLimits>, operands: &[Array]) -> Result<Trial> {
        let shaders = limits.map_or(Ok(vec![]), |limits| shaders(kernel, limits))?;
        let scratch = shaders.iter().map(|s| s.scratch_bytes).max().filter(|&bytes| bytes > 0);
        let args = (0..operands.len()).map(|i| BufRef::Input(i as u32)).collect();
        let scratch_at = scratch.map(|bytes| BufRef::Slab { slab: 0, offset: 0, bytes });
        let port = |ty: &Type, donated| Port { name: String::new(), ty: ty.clone(), donated };
        let written: Vec<usize> = (0..kernel.args.len()).filter(|&i| kernel.args[i].access != Access::Read).collect();
        let exec = Executable {
            version: VERSION,
            name: "a kernel to tune".into(),
            requires: Requires::default(),
            mesh: Mesh::single(),
            inputs: operands.iter().map(|a| port(a.ty(), None)).collect(),
            outputs: written.iter().map(|&i| port(operands[i].ty(), Some(i as u32))).collect(),
            slabs: scratch.into_iter().collect(),
            constants: vec![],
            kernels: vec![KernelEntry { hash: String::new(), name: "tuned".into(), kernel: kernel.clone(), shaders }],
            steps: vec![Step::Dispatch { kernel: 0, args, scratch: scratch_at, loc: "tuned".into() }],
            peak_bytes: 0,
        };
        let bound = device.load(exec)?.bind(&device.upload_all(operands)?)?;
        Ok(Trial { bound, written })
    }

    /// Runs once and brings down what is written.
    fn results(&self) -> Result<Vec<Array>> {
        self.bound.run()?;
        self.written.iter().map(|&i| self.bound.inputs()[i].download()).collect()
    }

    /// The least time of a few runs, on the device's clock if it has one.
    fn time(&self) -> Result<Duration> {
        let once = || match self.bound.profile() {
            Ok(steps) => Ok(steps.iter().sum()),
            Err(Error::Unsupported { .. }) => {
                let began = Instant::now();
                self.results()?;
                Ok(began.elapsed())
            }
            Err(error) => Err(error),
        };
        once()?;
        let mut least: Duration = once()?;
        for _ in 0..RUNS {
            least = least.min(once()?);
        }
        Ok(least)
    }
}

/// Why these are not the expected numbers, if they are not.
fn differs(got: &[Array], expected: &[Array]) -> Option<String> {
    for (g, e) in got.iter().zip(expected) {
        let (g_all, e_all) = (g.to_f64_vec(), e.to_f64_vec());
        let largest = e_all.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
        // Sums in another order, and the last place of a narrow result.
        let bound = largest
            * match g.dtype() {
                DType::F16 => 2e-3,
                DType::BF16 => 1.6e-2,
                dtype if dtype.is_float() => 1e-4,
                _ => 0.0,
            };
        let same = |g: f64, e: f64| g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= bound;
        if let Some(i) = (0..g_all.len()).find(|&i| !same(g_all[i], e_all[i])) {
            return Some(format!("element {i} is {}, not {}", g_all[i], e_all[i]));
        }
    }
    None
}

/// Repeatable operands: floats in [-1, 1), small integers.
fn random(dtype: DType, elems: usize, seed: u32) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9) ^ 0x2545_f491;
    let values: Vec<f64> = (0..elems)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let unit = f64::from(state >> 8) / f64::from(1u32 << 24);
            if dtype.is_float() { 2.0 * unit - 1.0 } else { (unit * 2.0).floor() }
        })
        .collect();
    Array::from_f64(Type::new(dtype, [elems]), &values)
}

/// Tiles by kernel, of one adapter and driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Version of the compiler whose kernels these are.
    version: u32,
    /// [`DeviceInfo::fingerprint`].
    fingerprint: String,
    /// By the hash of a kernel without a tile.
    tiles: BTreeMap<String, Tile>,
}

impl Table {
    /// The table kept for a device; empty if there is none, or it is of another version.
    pub fn load(info: &DeviceInfo) -> Table {
        let empty = Table { version: VERSION, fingerprint: info.fingerprint(), tiles: BTreeMap::new() };
        let Some(text) = file(info).and_then(|path| std::fs::read_to_string(path).ok()) else { return empty };
        match serde_json::from_str::<Table>(&text) {
            Ok(table) if table.version == VERSION && table.fingerprint == empty.fingerprint => table,
            Ok(_) => empty,
            Err(error) => {
                tracing::warn!("the table of tuned tiles is not readable and is passed over: {error}");
                empty
            }
        }
    }

    /// The tiles.
    pub fn tiles(&self) -> &BTreeMap<String, Tile> {
        &self.tiles
    }

    /// Takes over what tuning found: tiles that beat the compiler's choice; its choice again where none did.
    pub fn merge(&mut self, found: &[Tuned]) {
        for t in found {
            if t.best.0 == t.default.0 {
                self.tiles.remove(&t.hash);
            } else {
                self.tiles.insert(t.hash.clone(), t.best.0.clone());
            }
        }
    }

    /// Writes the table where [`Table::load`] finds it, and says where that is.
    ///
    /// # Errors
    /// The operating system's, if there is no folder for caches or it can't be written.
    pub fn save(&self, info: &DeviceInfo) -> std::io::Result<PathBuf> {
        let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "there is no folder for caches; set DNX_CACHE");
        let path = file(info).ok_or_else(none)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let beside = path.with_extension(format!("tmp-{}", std::process::id()));
        std::fs::write(&beside, serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?)?;
        std::fs::rename(&beside, &path)?;
        Ok(path)
    }
}

/// The file of a device's table.
fn file(info: &DeviceInfo) -> Option<PathBuf> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = info.fingerprint().chars().map(plain).collect();
    Some(cache_folder()?.join(format!("tiles-{name}.json")))
}

/// `$DNX_CACHE`, else the system's folder for caches.
fn cache_folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || var("HOME");
    var("DNX_CACHE").or_else(|| {
        let caches = if cfg!(windows) {
            var("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home().map(|h| h.join("Library/Caches"))
        } else {
            var("XDG_CACHE_HOME").or_else(|| home().map(|h| h.join(".cache")))
        };
        caches.map(|c| c.join("dnx"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_codegen::{Options, Target, compile};
    use dnx_ir::Graph;

    fn product() -> dnx_ir::Func {
        let g = Graph::new("product");
        let (a, b) = (g.param("a", Type::f32([65, 33])), g.param("b", Type::f32([33, 40])));
        g.finish(&[a.matmul(b).tanh()]).unwrap()
    }

    #[test]
    fn candidates_are_held_to_the_numbers_of_the_cpu_and_the_quickest_wins() {
        let device = Device::open(Some("llvmpipe")).expect("the tests need software Vulkan");
        let program = device.compile(&product(), &[]).unwrap();
        let found = tune(&device, program.exec()).unwrap();
        let [one] = &found[..] else { panic!("{found:?}") };
        assert!(one.tried > 1 && one.best.1 <= one.default.1, "{one:?}");
        assert!(one.refused.is_empty(), "{:?}", one.refused);

        let mut table = Table { version: VERSION, fingerprint: String::new(), tiles: BTreeMap::new() };
        let other = Tile { block: [16, 16, 16], per_invocation: [4, 4], split: 1, ..Tile::default() };
        let won = Tuned { best: (other.clone(), Duration::ZERO), ..one.clone() };
        table.merge(std::slice::from_ref(&won));
        assert_eq!(table.tiles().get(&one.hash), Some(&other));
        // What was tuned is what is compiled from then on, and computes the same.
        let options = Options::new(device.target()).with_tuned(table.tiles().clone());
        let tuned = compile(&product(), &options).unwrap().exec;
        assert_eq!(tuned.kernels[0].kernel.tile, other);
        table.merge(&[Tuned { best: one.default.clone(), ..one.clone() }]);
        assert!(table.tiles().is_empty());
    }

    #[test]
    fn wrong_numbers_are_refused() {
        let array = |values: &[f64]| vec![Array::from_f64(Type::f32([values.len()]), values)];
        assert_eq!(differs(&array(&[1.0, f64::NAN, 2.0]), &array(&[1.0, f64::NAN, 2.00001])), None);
        assert!(differs(&array(&[1.0, 2.0]), &array(&[1.0, 2.1])).unwrap().contains("element 1"));
        assert!(differs(&array(&[f64::NAN]), &array(&[0.0])).is_some());
    }

    #[test]
    fn the_cpu_device_has_nothing_to_tune() {
        let exec = compile(&product(), &Options::new(Target::Cpu)).unwrap().exec;
        let message = tune(&Device::cpu(), &exec).unwrap_err().to_string();
        assert!(message.contains("no tiles to choose"), "{message}");
    }
}
