//! `dnx inspect`.

use super::{bytes, print, thousands};
use crate::args::InspectArgs;
use dnx::train::checkpoint::tensors::{self, TensorInfo};
use dnx::train::run::find_checkpoint;
use dnx::train::{Error, Result, checkpoint};
use std::path::{Path, PathBuf};

pub fn run(args: &InspectArgs) -> Result<()> {
    let path = &args.path;
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if matches!(extension.as_str(), "pt" | "pth" | "pkl" | "ckpt") {
        let message =
            format!("{}: .{extension} files are not read yet; save the weights as .safetensors", path.display());
        return Err(Error::Usage(message));
    }
    let mut text = String::new();
    let files: Vec<PathBuf> = if path.is_dir() {
        let (folder, _) = find_checkpoint(path)?;
        let state = checkpoint::verify(&folder)?;
        if !args.json {
            let cursor = thousands(state.cursor);
            text.push_str(&format!(
                "{}: step {}, {cursor} samples, seed {}, on {}, by dnx {}\n",
                folder.display(),
                state.step,
                state.seed,
                state.device,
                state.dnx
            ));
        }
        state.files.keys().map(|name| folder.join(name)).collect()
    } else {
        vec![path.clone()]
    };
    let mut listed = vec![];
    for file in &files {
        listed.push((file, tensors::inspect(file)?));
    }
    if args.json {
        let all: Vec<serde_json::Value> = listed.iter().map(|(file, tensors)| json(file, tensors)).collect();
        let value =
            if path.is_dir() { serde_json::Value::Array(all) } else { all.into_iter().next().unwrap_or_default() };
        return print(&format!("{value:#}\n"));
    }
    for (file, tensors) in &listed {
        text.push_str(&table(file, tensors));
    }
    print(&text)
}

fn elements(tensor: &TensorInfo) -> u64 {
    tensor.dims.iter().product::<usize>() as u64
}

fn table(file: &Path, tensors: &[TensorInfo]) -> String {
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    let total: u64 = tensors.iter().map(elements).sum();
    let size: u64 = tensors.iter().map(|t| t.bytes as u64).sum();
    let mut text = format!("{}\n", file.display());
    for t in tensors {
        text.push_str(&format!("  {:<width$}  {:<4}  {:?}\n", t.name, t.dtype, t.dims));
    }
    text.push_str(&format!("  {} tensors, {} values, {}\n", tensors.len(), thousands(total), bytes(size)));
    text
}

fn json(file: &Path, tensors: &[TensorInfo]) -> serde_json::Value {
    let rows: Vec<serde_json::Value> = tensors
        .iter()
        .map(|t| serde_json::json!({ "name": t.name, "dtype": t.dtype, "shape": t.dims, "bytes": t.bytes }))
        .collect();
    let total: u64 = tensors.iter().map(elements).sum();
    serde_json::json!({ "file": file.display().to_string(), "values": total, "tensors": rows })
}
