//! Checkpoints of tensors that are split over devices: each device's parts in a file of its own, written side by side, and
//! an index that says how they make the whole.
//!
//! Of `model` over four devices there are `model-00000-of-00004.safetensors` to `model-00003-of-00004.safetensors`, and
//! `model.safetensors.index.json` with the mesh and, per tensor, the axes of its dims. What several devices hold is in one
//! file alone. Reading gives whole tensors again, so a run goes on over any other mesh.

use super::tensors::{self, Named};
use crate::files::write_atomic;
use crate::{Error, Result};
use dnx_ir::parts::whole;
use dnx_ir::{Array, AxisName, Mesh, Sharding, Type};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// A tensor to be saved.
pub struct Split {
    /// The file it belongs to: `model`, `ema` or `optimizer`.
    pub file: &'static str,
    /// Its name there.
    pub name: String,
    /// Its dims in the file.
    pub dims: Vec<usize>,
    /// Its global type; its dims have as many elements as those in the file.
    pub ty: Type,
    /// The input of the step that it is.
    pub input: usize,
}

/// `*.safetensors.index.json`.
#[derive(Serialize, Deserialize)]
struct Index {
    /// Axes of the mesh, outermost first.
    mesh: Vec<(String, usize)>,
    tensors: BTreeMap<String, Entry>,
}

/// How a tensor is split.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Its dims.
    dims: Vec<usize>,
    /// The dims in which it is split.
    grid: Vec<usize>,
    /// Per dim of the grid the axes that split it.
    axes: Vec<Vec<String>>,
    /// Per device the number of the file that has its part.
    parts: Vec<usize>,
}

fn index_name(file: &str) -> String {
    format!("{file}.safetensors.index.json")
}

fn part_name(file: &str, rank: usize, devices: usize) -> String {
    format!("{file}-{rank:05}-of-{devices:05}.safetensors")
}

/// Whether a folder has this file in parts.
pub fn is_split(folder: &Path, file: &str) -> bool {
    folder.join(index_name(file)).is_file()
}

/// Writes tensors of a mesh into a folder: the parts of these ranks, each by a thread of its own, and the indices if rank
/// 0 is among them. `read` gives a rank's part of an input. Gives the names of the files written.
pub fn write(
    folder: &Path,
    mesh: &Mesh,
    ranks: Range<usize>,
    tensors: &[Split],
    read: impl Fn(usize, usize) -> Result<Array> + Sync,
) -> Result<Vec<String>> {
    let devices = mesh.devices();
    let holders: Vec<Vec<usize>> = tensors.iter().enumerate().map(|(i, t)| holders(&t.ty, mesh, i)).collect();
    let one = |rank: usize| -> Result<Vec<String>> {
        let mut files: BTreeMap<&str, Named> = BTreeMap::new();
        for (t, holders) in tensors.iter().zip(&holders) {
            if holders.contains(&rank) {
                files.entry(t.file).or_default().push((t.name.clone(), read(t.input, rank)?));
            }
        }
        let mut names = vec![];
        for (file, named) in files {
            let name = part_name(file, rank, devices);
            tensors::write(&folder.join(&name), &named)?;
            names.push(name);
        }
        Ok(names)
    };
    let written: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.clone().map(|rank| scope.spawn(move || one(rank))).collect();
        let lost = || Err(Error::Checkpoint("a thread that was writing a part of a checkpoint panicked".into()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| lost())).collect()
    });
    let mut names = vec![];
    for part in written {
        names.extend(part?);
    }
    if ranks.contains(&0) {
        let mut indices: BTreeMap<&str, Index> = BTreeMap::new();
        for (t, parts) in tensors.iter().zip(holders) {
            let mesh = || mesh.axes.iter().map(|(name, size)| (name.to_string(), *size)).collect();
            let index = indices.entry(t.file).or_insert_with(|| Index { mesh: mesh(), tensors: BTreeMap::new() });
            let axes = |d: usize| t.ty.sharding.dim(d).iter().map(|a| a.to_string()).collect();
            let axes = (0..t.ty.rank()).map(axes).collect();
            let entry = Entry { dims: t.dims.clone(), grid: t.ty.dims.clone(), axes, parts };
            if index.tensors.insert(t.name.clone(), entry).is_some() {
                return Err(Error::Checkpoint(format!("{}: two tensors are called {}", index_name(t.file), t.name)));
            }
        }
        for (file, index) in indices {
            let name = index_name(file);
            let text = serde_json::to_string(&index).map_err(|e| Error::Checkpoint(format!("{name}: {e}")))?;
            write_atomic(&folder.join(&name), text.as_bytes())?;
            names.push(name);
        }
    }
    Ok(names)
}

/// Per device the one whose file has its part. Of devices with the same part, tensors take turns.
fn holders(ty: &Type, mesh: &Mesh, turn: usize) -> Vec<usize> {
    let place = |device: usize| -> Vec<Option<usize>> {
        ty.sharding.dims.iter().flatten().map(|axis| mesh.coordinate(device, axis)).collect()
    };
    let places: Vec<_> = (0..mesh.devices()).map(place).collect();
    let holder = |device: usize| {
        let group: Vec<usize> = (0..mesh.devices()).filter(|&d| places[d] == places[device]).collect();
        group[turn % group.len()]
    };
    (0..mesh.devices()).map(holder).collect()
}

/// Reads a file that is in parts, whole.
///
/// # Errors
/// If the index is damaged, or a part is missing or of other dims than the index says.
pub fn read(folder: &Path, file: &str) -> Result<Named> {
    let path = folder.join(index_name(file));
    let text = std::fs::read_to_string(&path).map_err(Error::io("cannot read", &path))?;
    let damaged = |why: String| Error::Checkpoint(format!("{}: {why}", path.display()));
    let index: Index = serde_json::from_str(&text).map_err(|e| damaged(format!("damaged: {e}")))?;
    let axes: Vec<(&str, usize)> = index.mesh.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let mesh = Mesh::new(&axes);
    let count = index.mesh.iter().try_fold(1usize, |n, &(_, size)| n.checked_mul(size));
    let Some(devices @ 1..) = count else { return Err(damaged("its mesh has no devices, or too many".into())) };
    let mut parts: BTreeMap<usize, BTreeMap<String, Array>> = BTreeMap::new();
    for rank in index.tensors.values().flat_map(|t| &t.parts) {
        if !parts.contains_key(rank) {
            let own = tensors::read(&folder.join(part_name(file, *rank, devices)))?;
            parts.insert(*rank, own.into_iter().collect());
        }
    }
    let mut all = vec![];
    for (name, entry) in index.tensors {
        let mut own = Vec::with_capacity(devices);
        for rank in &entry.parts {
            let missing = || damaged(format!("{name} is not in {}", part_name(file, *rank, devices)));
            own.push(parts[rank].get(&name).ok_or_else(missing)?.clone());
        }
        let Some(first) = own.first() else { return Err(damaged(format!("{name} has no parts"))) };
        let split = entry.axes.iter().map(|axes| axes.iter().map(|a| AxisName::from(a.as_str())).collect());
        let ty = Type::new(first.dtype(), entry.grid).with_sharding(Sharding::new(split.collect(), vec![]));
        let dims = Type::new(ty.dtype, entry.dims.clone());
        if !ty.is_addressable() || !dims.is_addressable() || dims.elems() != ty.elems() {
            return Err(damaged(format!("{name} has dims {:?} and parts of {ty}", entry.dims)));
        }
        let array = whole(&own, &ty, &mesh).map_err(|e| damaged(format!("{name}: {e}")))?;
        all.push((name, array.reshaped(entry.dims)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::parts::part;

    #[test]
    fn parts_are_written_side_by_side_and_read_whole() {
        let mesh = Mesh::new(&[("data", 2), ("fsdp", 2), ("tensor", 2)]);
        let split = |axes: &[&[&str]]| {
            Sharding::new(axes.iter().map(|d| d.iter().map(|a| (*a).into()).collect()).collect(), vec![])
        };
        let types = [
            ("qkv", vec![12, 8], Type::f32([3, 4, 8]).with_sharding(split(&[&[], &["tensor"], &["fsdp"]]))),
            ("fc", vec![8, 4], Type::f32([8, 4]).with_sharding(split(&[&["tensor", "fsdp"], &[]]))),
            ("bias", vec![4], Type::f32([4])),
            ("step", vec![], Type::f32([])),
        ];
        let arrays: Vec<Array> = types
            .iter()
            .map(|(_, _, ty)| Array::f32(ty.dims.clone(), &(0..ty.elems()).map(|i| i as f32 * 0.5).collect::<Vec<_>>()))
            .collect();
        let tensors: Vec<Split> = types
            .iter()
            .enumerate()
            .map(|(input, (name, dims, ty))| Split {
                file: if *name == "step" { "optimizer" } else { "model" },
                name: name.to_string(),
                dims: dims.clone(),
                ty: ty.clone(),
                input,
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let of = |i: usize, rank: usize| Ok(part(&arrays[i], &types[i].2.sharding, &mesh, rank).unwrap());
        let names = write(dir.path(), &mesh, 0..8, &tensors, of).unwrap();
        assert!(names.contains(&"model.safetensors.index.json".to_string()), "{names:?}");
        assert!(is_split(dir.path(), "model") && !is_split(dir.path(), "ema"));
        // Nothing is stored twice: three tensors of 96, 32 and 4 elements.
        let data: usize = names
            .iter()
            .filter(|n| n.starts_with("model-"))
            .flat_map(|n| tensors::inspect(&dir.path().join(n)).unwrap())
            .map(|t| t.bytes)
            .sum();
        assert_eq!(data, 4 * (96 + 32 + 4));
        let back: BTreeMap<String, Array> = read(dir.path(), "model").unwrap().into_iter().collect();
        for ((name, dims, _), array) in types.iter().zip(&arrays).take(3) {
            assert_eq!(back[*name], array.reshaped(dims.clone()), "{name}");
        }
        let index = dir.path().join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).unwrap();
        for (from, to) in
            [("[\"tensor\",2]", "[\"tensor\",0]"), ("[12,8]", "[12,9]"), ("[3,4,8]", "[3,4]"), ("\"fsdp\"]", "\"up\"]")]
        {
            assert!(text.contains(from), "{from} in {text}");
            std::fs::write(&index, text.replacen(from, to, 1)).unwrap();
            assert!(read(dir.path(), "model").unwrap_err().to_string().contains("index.json"), "{to}");
        }
        std::fs::write(&index, text).unwrap();
        std::fs::remove_file(dir.path().join("model-00000-of-00008.safetensors")).unwrap();
        assert!(read(dir.path(), "model").unwrap_err().to_string().contains("model-00000-of-00008"));
    }
}
