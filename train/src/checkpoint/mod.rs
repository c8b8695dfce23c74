//! Checkpoints: `checkpoints/step-000500/` with `model`, `ema` and `optimizer.safetensors` and `state.json`.
//!
//! A checkpoint is written into a folder beside its place, flushed, and renamed; a process killed at any instant
//! leaves whole checkpoints and at most one folder whose name begins with a dot, which is removed at the next
//! start. `state.json` is written last and lists the other files with their sizes, so a folder that was copied
//! incompletely is recognised too. All randomness is a function of (seed, stream, counter): nothing else needs
//! saving for an exact resume.

pub mod shards;
pub mod tensors;

use crate::files::{beside, create_folder, sync_folder, write_atomic};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tensors::Named;

/// Version of the folder's layout.
pub const VERSION: u32 = 1;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Version of the program that wrote it.
    pub dnx: String,
    /// Steps done.
    pub step: u64,
    /// Samples consumed: the position in the data's order.
    pub cursor: u64,
    /// The run's seed.
    pub seed: u64,
    /// Name of the device.
    pub device: String,
    /// The mesh of devices, by axis.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mesh: BTreeMap<String, usize>,
    /// The other files and their sizes in bytes.
    pub files: BTreeMap<String, u64>,
}

/// What a checkpoint holds, on the host.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Weights under their published names.
    pub model: Named,
    /// Averaged weights under the same names; empty when the run keeps none.
    pub ema: Named,
    /// Optimizer state.
    pub optimizer: Named,
}

/// The folder name of a step.
pub fn folder_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// Writes a checkpoint of `state.step` into `folder` (a run's `checkpoints/`) and gives its path. A checkpoint of
/// the same step is replaced.
pub fn write(folder: &Path, checkpoint: &Checkpoint, state: State) -> Result<PathBuf> {
    write_with(folder, state, |folder| {
        let parts = [("model", &checkpoint.model), ("ema", &checkpoint.ema), ("optimizer", &checkpoint.optimizer)];
        let mut files = vec![];
        for (name, tensors) in parts.into_iter().filter(|(_, tensors)| !tensors.is_empty()) {
            files.push(format!("{name}.safetensors"));
            tensors::write(&folder.join(&files[files.len() - 1]), tensors)?;
        }
        Ok(files)
    })
}

/// [`write`] of what `contents` puts into the folder that it is given; it gives the names of its files.
pub fn write_with(
    folder: &Path,
    mut state: State,
    contents: impl FnOnce(&Path) -> Result<Vec<String>>,
) -> Result<PathBuf> {
    create_folder(folder)?;
    let target = folder.join(folder_name(state.step));
    let temporary = beside(&target, "tmp");
    remove_if_there(&temporary)?;
    create_folder(&temporary)?;
    let filled = contents(&temporary).and_then(|files| fill(&temporary, files, &mut state));
    if let Err(error) = filled {
        // Room is what is missing most often, so the half-written folder goes; what stood before stays.
        fs::remove_dir_all(&temporary).ok();
        return Err(error);
    }
    if target.exists() {
        let old = beside(&target, "old");
        remove_if_there(&old)?;
        fs::rename(&target, &old).map_err(Error::io("cannot move aside", &target))?;
        fs::rename(&temporary, &target).map_err(Error::io("cannot put in place", &target))?;
        remove_if_there(&old)?;
    } else {
        fs::rename(&temporary, &target).map_err(Error::io("cannot put in place", &target))?;
    }
    sync_folder(folder)?;
    Ok(target)
}

/// Lists the files in `state.json`, which is written last.
fn fill(folder: &Path, files: Vec<String>, state: &mut State) -> Result<()> {
    state.files.clear();
    for file in files {
        let bytes = size_of(&folder.join(&file))?;
        state.files.insert(file, bytes);
    }
    let text = serde_json::to_string_pretty(state).map_err(|e| Error::Checkpoint(format!("state.json: {e}")))?;
    write_atomic(&folder.join("state.json"), text.as_bytes())?;
    sync_folder(folder)
}

/// Reads `state.json` of a checkpoint and verifies that the files it lists are there, whole and readable as far
/// as their headers.
pub fn verify(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join("state.json");
    if !path.is_file() {
        let message = format!("{} is not a checkpoint: it has no state.json", checkpoint.display());
        return Err(Error::Checkpoint(message));
    }
    let text = fs::read_to_string(&path).map_err(Error::io("cannot read", &path))?;
    let state: State = serde_json::from_str(&text)
        .map_err(|e| Error::Checkpoint(format!("{}:{}: damaged: {e}", path.display(), e.line())))?;
    if state.version != VERSION {
        let message = format!(
            "{}: written in layout {} (by dnx {}); this program reads layout {VERSION}",
            path.display(),
            state.version,
            state.dnx
        );
        return Err(Error::Checkpoint(message));
    }
    for (name, &bytes) in &state.files {
        let file = checkpoint.join(name);
        if !file.is_file() {
            return Err(Error::Checkpoint(format!("{} is missing; state.json lists it", file.display())));
        }
        let found = size_of(&file)?;
        if found != bytes {
            let word = if found < bytes { "truncated" } else { "too long" };
            let message = format!("{} is {word}: {found} bytes, written with {bytes}", file.display());
            return Err(Error::Checkpoint(message));
        }
    }
    Ok(state)
}

/// Reads a whole checkpoint.
pub fn read(checkpoint: &Path) -> Result<(Checkpoint, State)> {
    let state = verify(checkpoint)?;
    let part = |name: &str| if has(checkpoint, name) { load(checkpoint, name) } else { Ok(vec![]) };
    Ok((Checkpoint { model: part("model")?, ema: part("ema")?, optimizer: part("optimizer")? }, state))
}

/// Whether a checkpoint's folder has `model`, `ema` or `optimizer`, in one file or in parts.
pub fn has(checkpoint: &Path, name: &str) -> bool {
    single(checkpoint, name).is_file() || shards::is_split(checkpoint, name)
}

/// The tensors of `model`, `ema` or `optimizer`, whole.
///
/// # Errors
/// If they are not there, or damaged.
pub fn load(checkpoint: &Path, name: &str) -> Result<Named> {
    match shards::is_split(checkpoint, name) {
        true => shards::read(checkpoint, name),
        false => tensors::read(&single(checkpoint, name)),
    }
}

/// The one file of `model`, `ema` or `optimizer`, which errors name too where it is in parts.
pub fn single(checkpoint: &Path, name: &str) -> PathBuf {
    checkpoint.join(format!("{name}.safetensors"))
}

/// The newest whole checkpoint of a `checkpoints/` folder, and why newer ones were passed over.
pub fn latest(folder: &Path) -> Result<(Option<PathBuf>, Vec<Error>)> {
    let mut refused = vec![];
    for (_, path) in list(folder)?.into_iter().rev() {
        match verify(&path) {
            Ok(_) => return Ok((Some(path), refused)),
            Err(error) => refused.push(error),
        }
    }
    Ok((None, refused))
}

/// The checkpoints of a folder by step, whole or not.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io("cannot list", folder))? {
        let entry = entry.map_err(Error::io("cannot list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-").and_then(|s| s.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what killed processes left behind: unfinished folders, and finished ones that were being replaced.
pub fn clean(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(Error::io("cannot list", folder))? {
        let entry = entry.map_err(Error::io("cannot list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(".step-") else { continue };
        if let Some((step, _)) = rest.split_once(".old-") {
            // Killed between the two renames of a replacement: the old one is the only one.
            let target = folder.join(format!("step-{step}"));
            if !target.exists() {
                fs::rename(entry.path(), &target).map_err(Error::io("cannot put back", &target))?;
                continue;
            }
        }
        remove_if_there(&entry.path())?;
    }
    Ok(())
}

/// Removes the oldest checkpoints so that `keep` stay (0 keeps all). Those at multiples of `keep_every` (if not
/// 0) stay in any case.
pub fn prune(folder: &Path, keep: usize, keep_every: u64) -> Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let all = list(folder)?;
    let old = all.len().saturating_sub(keep);
    for (step, path) in &all[..old] {
        if keep_every == 0 || !step.is_multiple_of(keep_every) {
            // Renamed first, so that a half-removed folder is never taken for a checkpoint.
            let doomed = beside(path, "gone");
            fs::rename(path, &doomed).map_err(Error::io("cannot remove", path))?;
            remove_if_there(&doomed)?;
        }
    }
    Ok(())
}

fn remove_if_there(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(Error::io("cannot remove", folder))?;
    }
    Ok(())
}

fn size_of(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(Error::io("cannot read", path))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dnx_ir::Array;

    fn checkpoint(value: f32) -> Checkpoint {
        let tensors = |name: &str| vec![(name.to_string(), Array::f32([4], &[value; 4]))];
        Checkpoint { model: tensors("w"), ema: vec![], optimizer: tensors("m/w") }
    }

    fn state(step: u64) -> State {
        State {
            version: VERSION,
            dnx: "test".into(),
            step,
            cursor: step * 8,
            seed: 1,
            device: "cpu".into(),
            mesh: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    #[test]
    fn a_checkpoint_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &checkpoint(1.5), state(500)).unwrap();
        assert!(path.ends_with("step-000500"));
        let (back, state) = read(&path).unwrap();
        assert_eq!((back.model, back.optimizer), (checkpoint(1.5).model, checkpoint(1.5).optimizer));
        assert!(back.ema.is_empty());
        assert_eq!((state.step, state.cursor), (500, 4000));
        assert_eq!(state.files.keys().collect::<Vec<_>>(), ["model.safetensors", "optimizer.safetensors"]);
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for step in [1, 2, 3] {
            write(dir.path(), &checkpoint(step as f32), state(step)).unwrap();
        }
        let newest = dir.path().join("step-000003");
        let model = newest.join("model.safetensors");
        let bytes = fs::read(&model).unwrap();
        fs::write(&model, &bytes[..bytes.len() - 3]).unwrap();
        let (found, refused) = latest(dir.path()).unwrap();
        assert_eq!(found.unwrap(), dir.path().join("step-000002"));
        let reason = refused[0].to_string();
        assert!(reason.contains("truncated") && reason.contains("model.safetensors"), "{reason}");

        fs::remove_file(&model).unwrap();
        assert!(verify(&newest).unwrap_err().to_string().contains("missing"));
        fs::write(newest.join("state.json"), "{").unwrap();
        assert!(verify(&newest).unwrap_err().to_string().contains("damaged"));
        fs::remove_file(newest.join("state.json")).unwrap();
        assert!(verify(&newest).unwrap_err().to_string().contains("no state.json"));
    }

    #[test]
    fn a_kill_at_any_file_operation_leaves_a_whole_checkpoint() {
        // Every intermediate state of a replacement, made by hand.
        let dir = tempfile::tempdir().unwrap();
        let good = write(dir.path(), &checkpoint(1.0), state(7)).unwrap();
        let whole = |folder: &Path| {
            clean(folder).unwrap();
            let (found, refused) = latest(folder).unwrap();
            assert!(refused.is_empty());
            assert_eq!(found.unwrap(), folder.join("step-000007"));
            assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "leftovers were not removed");
        };
        // Killed while filling the temporary folder: empty, some files, all but state.json.
        let temporary = dir.path().join(".step-000007.tmp-1");
        fs::create_dir(&temporary).unwrap();
        whole(dir.path());
        fs::create_dir(&temporary).unwrap();
        fs::copy(good.join("model.safetensors"), temporary.join("model.safetensors")).unwrap();
        whole(dir.path());
        // Killed between the two renames.
        fs::rename(&good, dir.path().join(".step-000007.old-1")).unwrap();
        whole(dir.path());
        // Killed after them.
        fs::create_dir(dir.path().join(".step-000007.old-1")).unwrap();
        whole(dir.path());
        // Killed while a pruned one was being removed.
        fs::create_dir(dir.path().join(".step-000003.gone-1")).unwrap();
        whole(dir.path());
    }

    #[test]
    fn a_failed_write_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &checkpoint(1.0), state(7)).unwrap();
        // A tensor name that occurs twice can't be written.
        let mut bad = checkpoint(2.0);
        bad.optimizer = vec![bad.model[0].clone(), bad.model[0].clone()];
        assert!(write(dir.path(), &bad, state(7)).is_err());
        assert_eq!(read(&dir.path().join("step-000007")).unwrap().0.model, checkpoint(1.0).model);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn pruning_keeps_the_newest_and_the_milestones() {
        let dir = tempfile::tempdir().unwrap();
        for step in 1..=6 {
            write(dir.path(), &checkpoint(0.0), state(step)).unwrap();
        }
        prune(dir.path(), 2, 3).unwrap();
        let left: Vec<u64> = list(dir.path()).unwrap().into_iter().map(|(s, _)| s).collect();
        assert_eq!(left, [3, 5, 6]);
    }
}
