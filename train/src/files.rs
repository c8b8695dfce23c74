//! Writing files so that a reader never sees half of one: beside the target, flushed to the disk, then renamed.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes `bytes` to `path` by way of a temporary file in the same folder. Whatever stood there before stays
/// until the new content is safely on the disk.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = beside(path, "tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(source) = write() {
        // The half-written file is of no use to anyone; failing to remove it changes nothing.
        fs::remove_file(&temporary).ok();
        return Err(Error::Io { doing: "cannot write", path: path.to_path_buf(), source });
    }
    fs::rename(&temporary, path).map_err(Error::io("cannot replace", path))?;
    sync_folder(parent(path))
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("cannot create", path))
}

/// Makes the names in a folder durable (a rename is only in memory until then).
pub fn sync_folder(path: &Path) -> Result<()> {
    // Windows can't open folders as files; its renames are journalled.
    if cfg!(unix) {
        File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("cannot flush", path))?;
    }
    Ok(())
}

/// `folder/.name.tag-PID`: a neighbour of `path` that only this process uses.
pub fn beside(path: &Path, tag: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{tag}-{}", std::process::id()))
}

/// The folder a path is in; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// An error when `path` exists and may not be replaced.
pub fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        return Err(Error::Usage(format!("{} exists; give --force to replace it", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_replace_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_what_stood_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, b"one").unwrap();
        // A folder stands where the temporary file would go, so the write must fail.
        fs::create_dir(beside(&path, "tmp")).unwrap();
        let error = write_atomic(&path, b"two").unwrap_err();
        assert!(error.to_string().contains("a.txt"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }
}
