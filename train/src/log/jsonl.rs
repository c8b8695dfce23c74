//! `metrics.jsonl`: one JSON object per logged step.

use crate::files::write_atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One logged step. Numbers that are not finite are written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// Every scalar of the step by name: `loss`, `grad_norm`, `lr`, `step_ms`, `samples_per_s`, `peak_bytes`...
    #[serde(flatten)]
    pub values: serde_json::Map<String, serde_json::Value>,
}

impl Record {
    /// A record of these scalars.
    pub fn new(step: u64, scalars: &[(String, f64)]) -> Record {
        let values = scalars.iter().map(|(name, value)| (name.clone(), serde_json::json!(value))).collect();
        Record { step, values }
    }

    /// A scalar, if the record has it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }
}

/// The open file.
pub struct Jsonl {
    path: PathBuf,
    file: File,
}

impl Jsonl {
    /// Opens the file for appending. What a killed run logged after step `resume` (its checkpoint) is cut off, so
    /// that no step is there twice; with `None` the file begins anew.
    pub fn open(path: &Path, resume: Option<u64>) -> Result<(Jsonl, Vec<Record>)> {
        let mut kept = vec![];
        if let Some(step) = resume
            && path.is_file()
        {
            kept = read(path)?;
            kept.retain(|record| record.step <= step);
        }
        let mut text = String::new();
        for record in &kept {
            text.push_str(&line(record, path)?);
        }
        write_atomic(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("cannot write", path))?;
        Ok((Jsonl { path: path.to_path_buf(), file }, kept))
    }

    /// Appends a record.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let line = line(record, &self.path)?;
        self.file.write_all(line.as_bytes()).map_err(Error::io("cannot write", &self.path))
    }
}

/// The records of a file. An incomplete last line (the run was killed while writing it) is left out.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("cannot read", path))?;
    let count = text.lines().count();
    let mut records = Vec::with_capacity(count);
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) if i + 1 == count && !text.ends_with('\n') => {}
            Err(e) => return Err(Error::Data(format!("{}:{}: not a record: {e}", path.display(), i + 1))),
        }
    }
    Ok(records)
}

fn line(record: &Record, path: &Path) -> Result<String> {
    let text = serde_json::to_string(record).map_err(|e| Error::Data(format!("{}: {e}", path.display())))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f64) -> Record {
        Record::new(step, &[("loss".into(), loss)])
    }

    #[test]
    fn resuming_cuts_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let (mut log, _) = Jsonl::open(&path, None).unwrap();
        for step in [10, 20, 30] {
            log.append(&record(step, 1.0 / step as f64)).unwrap();
        }
        // Killed in the middle of a line.
        log.file.write_all(b"{\"step\":40,\"lo").unwrap();
        let (mut log, kept) = Jsonl::open(&path, Some(20)).unwrap();
        assert_eq!(kept, [record(10, 0.1), record(20, 0.05)]);
        log.append(&record(30, 0.5)).unwrap();
        assert_eq!(read(&path).unwrap(), [record(10, 0.1), record(20, 0.05), record(30, 0.5)]);
        let (_, kept) = Jsonl::open(&path, None).unwrap();
        assert!(kept.is_empty());
    }

    #[test]
    fn losses_that_are_not_numbers_are_null() {
        let text = line(&record(1, f64::NAN), Path::new("m")).unwrap();
        assert_eq!(text, "{\"step\":1,\"loss\":null}\n");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap().get("loss"), None);
    }
}
