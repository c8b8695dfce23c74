//! Named tensors in safetensors files. Names are the published ones of the network, so weights move both ways.

use crate::{Error, Result};
use dnx_ir::{Array, DType, Type};
use safetensors::SafeTensorError as E;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// Longest header that is believed, in bytes (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;

/// Tensors with their names, in the order the program takes them.
pub type Named = Vec<(String, Array)>;

/// Name, element type and dims of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Element type as the format spells it (`F32`).
    pub dtype: String,
    /// Dims.
    pub dims: Vec<usize>,
    /// Bytes.
    pub bytes: usize,
}

/// Writes tensors to a new file and waits until the disk has them.
pub fn write(path: &Path, tensors: &[(String, Array)]) -> Result<()> {
    // Wider elements first, as the format asks, so that every tensor is aligned to its element.
    let mut order: Vec<&(String, Array)> = tensors.iter().collect();
    order.sort_by_key(|(_, array)| std::cmp::Reverse(array.dtype().size()));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, array) in &order {
        let start = end;
        end += array.bytes().len();
        let entry = serde_json::json!({
            "dtype": to_format(array.dtype()).to_string(), "shape": array.dims(), "data_offsets": [start, end]
        });
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::Checkpoint(format!("{}: two tensors are called {name}", path.display())));
        }
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, array) in &order {
            out.write_all(array.bytes())?;
        }
        out.into_inner().map_err(|e| e.into_error())?.sync_all()
    };
    write().map_err(Error::io("cannot write", path))
}

/// Reads every tensor of a file, in the order of its data. `bf16` and `f16` stay what they are.
pub fn read(path: &Path) -> Result<Named> {
    let bytes = std::fs::read(path).map_err(Error::io("cannot read", path))?;
    let file = open(path, &bytes)?;
    let mut tensors = file.iter().collect::<Vec<_>>();
    tensors.sort_by_key(|(_, view)| view.data().as_ptr() as usize);
    tensors
        .into_iter()
        .map(|(name, view)| {
            let ty = Type::new(from_format(view.dtype(), name, path)?, view.shape().to_vec());
            Ok((name.to_string(), Array::from_bytes(ty, view.data().to_vec())))
        })
        .collect()
}

/// What a file holds, without reading its data, in the order of the data.
pub fn inspect(path: &Path) -> Result<Vec<TensorInfo>> {
    let mut file = File::open(path).map_err(Error::io("cannot read", path))?;
    let length = file.metadata().map_err(Error::io("cannot read", path))?.len();
    let mut prefix = [0; 8];
    let header_length = match file.read_exact(&mut prefix) {
        Ok(()) => u64::from_le_bytes(prefix),
        Err(_) => return Err(refusal(path, length, E::HeaderTooSmall)),
    };
    if header_length > MAX_HEADER {
        return Err(refusal(path, length, E::HeaderTooLarge));
    }
    let mut header = vec![0; header_length as usize];
    if file.read_exact(&mut header).is_err() {
        return Err(refusal(path, length, E::InvalidHeaderLength));
    }
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| refusal(path, length, E::InvalidHeaderDeserialization(e)))?;
    if 8 + header_length + metadata.data_len() as u64 != length {
        return Err(refusal(path, length, E::MetadataIncompleteBuffer));
    }
    let info = |name: String| {
        let tensor = metadata.info(&name)?;
        let bytes = tensor.data_offsets.1 - tensor.data_offsets.0;
        Some(TensorInfo { name, dtype: tensor.dtype.to_string(), dims: tensor.shape.clone(), bytes })
    };
    Ok(metadata.offset_keys().into_iter().filter_map(info).collect())
}

/// The arrays for these parameters, in their order, each converted to the parameter's dtype. Every difference is
/// named: tensors missing from the file, tensors the program has no use for, and shapes that do not fit.
pub fn fit(path: &Path, tensors: Named, wanted: &[(String, Type)]) -> Result<Vec<Array>> {
    let mut by_name: std::collections::HashMap<String, Array> = tensors.into_iter().collect();
    let (mut found, mut problems) = (Vec::with_capacity(wanted.len()), vec![]);
    for (name, ty) in wanted {
        match by_name.remove(name) {
            None => problems.push(format!("{name} {ty}: not in the file")),
            Some(array) if array.dims() != ty.dims => {
                problems.push(format!("{name}: the file has {}, the model needs {ty}", array.ty()));
            }
            Some(array) => found.push(converted(array, ty.dtype)),
        }
    }
    let mut spare: Vec<&String> = by_name.keys().collect();
    spare.sort();
    problems
        .extend(spare.into_iter().map(|name| format!("{name} {}: the model has no such tensor", by_name[name].ty())));
    if problems.is_empty() {
        return Ok(found);
    }
    const SHOWN: usize = 12;
    let more = problems.len().saturating_sub(SHOWN);
    let mut message = format!("{} does not fit the model:", path.display());
    problems.iter().take(SHOWN).for_each(|p| message.push_str(&format!("\n  {p}")));
    if more > 0 {
        message.push_str(&format!("\n  and {more} more"));
    }
    message.push_str("\nuse the configuration the weights were made with (config.toml in their run folder)");
    Err(Error::Checkpoint(message))
}

/// The same values in another dtype.
fn converted(array: Array, dtype: DType) -> Array {
    if array.dtype() == dtype {
        return array;
    }
    let ty = Type::new(dtype, array.dims().to_vec());
    Array::from_f64(ty, &array.to_f64_vec())
}

fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|e| refusal(path, bytes.len() as u64, e))
}

fn refusal(path: &Path, length: u64, reason: E) -> Error {
    let reason = match reason {
        E::HeaderTooSmall | E::InvalidHeaderLength | E::MetadataIncompleteBuffer => {
            format!("is truncated: its {length} bytes are not what its header announces")
        }
        E::HeaderTooLarge | E::InvalidHeaderDeserialization(_) | E::InvalidHeader(_) => {
            "is not a safetensors file".to_string()
        }
        other => format!("is damaged: {other}"),
    };
    Error::Checkpoint(format!("{} {reason}", path.display()))
}

fn to_format(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        DType::U32 => Dtype::U32,
        DType::Bool => Dtype::BOOL,
        DType::F64 => Dtype::F64,
    }
}

fn from_format(dtype: Dtype, name: &str, path: &Path) -> Result<DType> {
    Ok(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::BOOL => DType::Bool,
        Dtype::F64 => DType::F64,
        other => {
            let message = format!("{}: tensor {name} has element type {other}, which is not read", path.display());
            return Err(Error::Checkpoint(message));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Named {
        vec![
            ("b.weight".into(), Array::f32([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("a.bias".into(), Array::f32([3], &[f32::NAN, -0.0, 1e-42])),
            ("step".into(), Array::u32([], &[7])),
        ]
    }

    #[test]
    fn every_bit_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write(&path, &named()).unwrap();
        let mut back = read(&path).unwrap();
        back.sort_by(|a, b| a.0.cmp(&b.0));
        let mut wanted = named();
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(back, wanted);
        let total: usize = inspect(&path).unwrap().iter().map(|t| t.bytes).sum();
        assert_eq!(total, 6 * 4 + 3 * 4 + 4);
    }

    #[test]
    fn misfits_are_listed_by_name_and_shape() {
        let wanted = [("b.weight".to_string(), Type::f32([3, 2])), ("c.bias".to_string(), Type::f32([1]))];
        let message = fit(Path::new("x.safetensors"), named(), &wanted).unwrap_err().to_string();
        for part in [
            "b.weight: the file has f32[2, 3], the model needs f32[3, 2]",
            "c.bias f32[1]: not in the file",
            "a.bias f32[3]: the model has no such tensor",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn half_precision_weights_fit_f32_parameters() {
        let half = Array::from_f64(Type::new(DType::F16, [2]), &[0.5, -2.0]);
        let wanted = [("w".to_string(), Type::f32([2]))];
        let got = fit(Path::new("x"), vec![("w".into(), half)], &wanted).unwrap();
        assert_eq!(got[0], Array::f32([2], &[0.5, -2.0]));
    }

    #[test]
    fn truncated_and_foreign_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write(&path, &named()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for keep in [0, 4, 40, whole.len() - 1] {
            std::fs::write(&path, &whole[..keep]).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains("truncated") && message.contains("x.safetensors"), "{keep}: {message}");
            assert_eq!(message, inspect(&path).unwrap_err().to_string());
        }
        std::fs::write(&path, b"PK\x03\x04 this is a zip file, not tensors").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("not a safetensors file"));
        assert!(inspect(&path).unwrap_err().to_string().contains("not a safetensors file"));
    }
}
