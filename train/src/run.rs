//! The run folder: which file is where, and when one may be begun, continued or replaced.

use crate::checkpoint;
use crate::files::create_folder;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A run's folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// What to do when the folder already holds a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Continue from its newest whole checkpoint, or from the one given.
    Resume(Option<PathBuf>),
    /// Remove it and begin anew.
    Replace,
}

impl RunFolder {
    /// The folder at `path`; nothing is touched.
    pub fn at(path: impl Into<PathBuf>) -> RunFolder {
        RunFolder { path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `loss.svg`.
    pub fn loss(&self) -> PathBuf {
        self.path.join("loss.svg")
    }

    /// `levels.svg`.
    pub fn levels(&self) -> PathBuf {
        self.path.join("levels.svg")
    }

    /// `checkpoints/`.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `samples/step-000500.png`.
    pub fn picture(&self, step: u64) -> PathBuf {
        self.path.join("samples").join(format!("{}.png", checkpoint::folder_name(step)))
    }

    /// Whether a run was ever begun here.
    pub fn exists(&self) -> bool {
        self.config().is_file() || self.checkpoints().is_dir()
    }

    /// Refuses a folder that holds a run (unless told to continue or replace it) and one that holds something
    /// else. Nothing is touched.
    pub fn check(&self, existing: &Existing) -> Result<()> {
        let shown = self.path.display();
        match existing {
            Existing::Refuse if self.exists() => Err(Error::Usage(format!(
                "{shown} already holds a run; give --resume to continue it, --force to replace it, \
                 or --run FOLDER for another place"
            ))),
            Existing::Refuse | Existing::Replace if !self.exists() && self.path.is_dir() && !is_empty(&self.path)? => {
                let message = format!("{shown} is not empty and holds no run; give --run FOLDER for another place");
                Err(Error::Usage(message))
            }
            Existing::Refuse | Existing::Replace | Existing::Resume(_) => Ok(()),
        }
    }

    /// Makes the folder ready and gives the checkpoint to continue from, if any. Refuses what
    /// [`RunFolder::check`] refuses.
    pub fn open(&self, existing: &Existing) -> Result<Option<PathBuf>> {
        self.check(existing)?;
        let shown = self.path.display();
        match existing {
            Existing::Refuse | Existing::Replace => {
                if *existing == Existing::Replace {
                    self.remove_run()?;
                }
                self.create()?;
                Ok(None)
            }
            Existing::Resume(given) => {
                let checkpoint = match given {
                    Some(path) => {
                        checkpoint::verify(path)?;
                        path.clone()
                    }
                    None => {
                        checkpoint::clean(&self.checkpoints())?;
                        let (found, refused) = checkpoint::latest(&self.checkpoints())?;
                        refused.iter().for_each(|why| eprintln!("passed over: {why}"));
                        match found {
                            Some(found) => found,
                            None if !self.exists() => {
                                let message = format!("there is no run in {shown} to continue; leave --resume out");
                                return Err(Error::Checkpoint(message));
                            }
                            // Killed before its first checkpoint: from the beginning is where it continues.
                            None => {
                                self.create()?;
                                return Ok(None);
                            }
                        }
                    }
                };
                self.create()?;
                Ok(Some(checkpoint))
            }
        }
    }

    /// The checkpoint to continue from, once [`RunFolder::open`] has made the folder ready: for processes that do not open
    /// it themselves.
    pub fn continues_from(&self, existing: &Existing) -> Result<Option<PathBuf>> {
        match existing {
            Existing::Refuse | Existing::Replace => Ok(None),
            Existing::Resume(Some(path)) => Ok(Some(path.clone())),
            Existing::Resume(None) => Ok(checkpoint::latest(&self.checkpoints())?.0),
        }
    }

    fn create(&self) -> Result<()> {
        create_folder(&self.path)?;
        create_folder(&self.checkpoints())?;
        create_folder(&self.path.join("samples"))
    }

    /// Removes what runs write, and nothing else.
    fn remove_run(&self) -> Result<()> {
        if !self.path.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.path).map_err(Error::io("cannot list", &self.path))? {
            let path = entry.map_err(Error::io("cannot list", &self.path))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let folder = matches!(name.as_str(), "checkpoints" | "samples");
            let file = matches!(name.as_str(), "config.toml" | "metrics.jsonl" | "loss.svg" | "levels.svg")
                || name.starts_with("events.out.tfevents.");
            let removed = match (folder, file) {
                (true, _) => fs::remove_dir_all(&path),
                (_, true) => fs::remove_file(&path),
                _ => Ok(()),
            };
            removed.map_err(Error::io("cannot remove", &path))?;
        }
        Ok(())
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(fs::read_dir(folder).map_err(Error::io("cannot list", folder))?.next().is_none())
}

/// The checkpoint that `path` means: a checkpoint's folder, or a run's folder and then its newest whole one. Gives
/// also the run folder, if the checkpoint is in one.
pub fn find_checkpoint(path: &Path) -> Result<(PathBuf, Option<RunFolder>)> {
    if path.join("state.json").is_file() || checkpoint::has(path, "model") {
        let run = path.parent().and_then(Path::parent).map(RunFolder::at).filter(|r| r.config().is_file());
        return Ok((path.to_path_buf(), run));
    }
    let run = RunFolder::at(path);
    if !path.exists() {
        return Err(Error::Checkpoint(format!(
            "there is no {}; give a run's folder or a checkpoint's",
            path.display()
        )));
    }
    let (found, refused) = checkpoint::latest(&run.checkpoints())?;
    match (found, refused.into_iter().next()) {
        (Some(found), _) => Ok((found, Some(run))),
        (None, Some(why)) => Err(why),
        (None, None) => {
            let message = format!("{} holds no checkpoint; train first, or give a checkpoint's folder", path.display());
            Err(Error::Checkpoint(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_not_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::at(dir.path().join("run"));
        assert_eq!(run.open(&Existing::Refuse).unwrap(), None);
        fs::write(run.config(), "x").unwrap();
        fs::write(run.path().join("notes.txt"), "mine").unwrap();
        let message = run.open(&Existing::Refuse).unwrap_err().to_string();
        assert!(message.contains("--resume") && message.contains("--force"), "{message}");
        assert_eq!(run.open(&Existing::Resume(None)).unwrap(), None);
        assert!(run.config().is_file());
        run.open(&Existing::Replace).unwrap();
        assert!(!run.config().exists());
        assert!(run.path().join("notes.txt").is_file(), "a file that is no part of a run was removed");
    }

    #[test]
    fn foreign_folders_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let run = RunFolder::at(dir.path());
        assert!(run.open(&Existing::Refuse).is_err());
        assert!(run.open(&Existing::Replace).is_err());
        let nowhere = RunFolder::at(dir.path().join("no"));
        assert!(nowhere.open(&Existing::Resume(None)).unwrap_err().to_string().contains("no run"));
    }
}
