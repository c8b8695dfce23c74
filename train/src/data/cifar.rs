//! CIFAR-10's binary files, plain or gzipped: records of 3,073 bytes, a label and 1,024 bytes each of red, green
//! and blue. Any number of `data_batch_*.bin` is a training set; `test_batch.bin` is the test set.

use super::source::{read_maybe_gzipped, wrong};
use super::{Pixels, Split};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Names of the classes, in order.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

const PLANE: usize = 32 * 32;
const RECORD: usize = 1 + 3 * PLANE;

/// Reads the batches of a split from a folder, in order of their names.
pub fn read_folder(folder: &Path, split: Split) -> Result<Pixels> {
    if !folder.is_dir() {
        let message = "no such folder; put data_batch_1.bin ... (plain or .gz) of CIFAR-10's binary version there, \
                       or name another with --set data.path=FOLDER";
        return Err(wrong(folder, message.into()));
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(Error::io("cannot list", folder))?
        .map(|entry| entry.map(|e| e.path()).map_err(Error::io("cannot list", folder)))
        .collect::<Result<_>>()?;
    files.retain(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        let wanted = |prefix: &str| stem.starts_with(prefix) && stem.ends_with(".bin");
        match split {
            Split::Train => wanted("data_batch"),
            Split::Test => wanted("test_batch"),
            Split::All => wanted("data_batch") || wanted("test_batch"),
        }
    });
    files.sort();
    if files.is_empty() {
        let name = if split == Split::Test { "test_batch.bin" } else { "data_batch_*.bin" };
        return Err(wrong(folder, format!("has no {name} (or .gz); put CIFAR-10's binary files there")));
    }
    let mut pixels = Pixels { dims: [32, 32, 3], bytes: vec![], labels: vec![] };
    for file in files {
        append_batch(&file, &mut pixels)?;
    }
    Ok(pixels)
}

fn append_batch(path: &Path, pixels: &mut Pixels) -> Result<()> {
    let file = read_maybe_gzipped(path)?;
    if file.is_empty() || !file.len().is_multiple_of(RECORD) {
        let message = format!(
            "has {} bytes, which is no multiple of the {RECORD} of a record: truncated, or not CIFAR-10's binary version",
            file.len()
        );
        return Err(wrong(path, message));
    }
    for (i, record) in file.chunks_exact(RECORD).enumerate() {
        if record[0] > 9 {
            return Err(wrong(path, format!("record {i} has label {}; CIFAR-10 has 0 to 9", record[0])));
        }
        pixels.labels.push(record[0]);
        let planes = &record[1..];
        pixels.bytes.extend((0..PLANE).flat_map(|p| [planes[p], planes[PLANE + p], planes[2 * PLANE + p]]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(label: u8, rgb: [u8; 3]) -> Vec<u8> {
        let mut bytes = vec![label];
        rgb.iter().for_each(|&v| bytes.extend([v; PLANE]));
        bytes
    }

    #[test]
    fn batches_are_interleaved_in_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data_batch_2.bin"), record(2, [4, 5, 6])).unwrap();
        std::fs::write(dir.path().join("data_batch_1.bin"), record(1, [1, 2, 3])).unwrap();
        std::fs::write(dir.path().join("test_batch.bin"), record(9, [7, 8, 9])).unwrap();
        let train = read_folder(dir.path(), Split::Train).unwrap();
        assert_eq!(train.labels, [1, 2]);
        assert_eq!(train.bytes[..6], [1, 2, 3, 1, 2, 3]);
        assert_eq!(train.bytes[RECORD - 1..][..3], [4, 5, 6]);
        assert_eq!(read_folder(dir.path(), Split::Test).unwrap().labels, [9]);
        assert_eq!(read_folder(dir.path(), Split::All).unwrap().labels, [1, 2, 9]);
    }

    #[test]
    fn refuses_truncated_foreign_and_missing() {
        let dir = tempfile::tempdir().unwrap();
        let message = || read_folder(dir.path(), Split::Train).unwrap_err().to_string();
        assert!(message().contains("has no data_batch_*.bin"));
        std::fs::write(dir.path().join("data_batch_1.bin"), &record(1, [0; 3])[..3000]).unwrap();
        assert!(message().contains("3000 bytes"), "{}", message());
        std::fs::write(dir.path().join("data_batch_1.bin"), record(10, [0; 3])).unwrap();
        assert!(message().contains("record 0 has label 10"), "{}", message());
    }
}
