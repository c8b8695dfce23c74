//! Runs that are killed and continued end where an uninterrupted one does, bit for bit.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const STEPS: &str = "12000";

fn command(folder: &Path, more: &[&str], steps: &str) -> Command {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/two_moons.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dnx"));
    command.arg("train").arg(config).args(["--device", "cpu", "--run", "run", "--steps", steps]);
    for set in [
        "model.hidden=32",
        "data.batch=32",
        "data.workers=2",
        "train.checkpoint_every=170",
        "train.log_every=250",
        "train.sample_every=3000",
        "train.sample_count=8",
        "sample.steps=2",
    ] {
        command.args(["--set", set]);
    }
    command.args(more).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn result(folder: &Path) -> Vec<Vec<u8>> {
    let checkpoint: PathBuf = folder.join("run/checkpoints").join(format!("step-{STEPS:0>6}"));
    let files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];
    files.iter().map(|f| std::fs::read(checkpoint.join(f)).unwrap()).collect()
}

fn steps_logged(folder: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let step = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap();
    text.lines().map(step).collect()
}

#[test]
fn killed_a_dozen_times_and_resumed_is_bit_identical() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let began = std::time::Instant::now();
    assert!(command(whole.path(), &[], STEPS).status().unwrap().success());
    let alone = began.elapsed();
    // Instants spread from start-up to a quarter of the run, in an order that is not even; together they exceed it.
    let mut kills = 0;
    for i in 0..12u32 {
        // A process killed before it made its folder leaves nothing to resume.
        let begun = killed.path().join("run/checkpoints").is_dir();
        let more: &[&str] = if begun { &["--resume"] } else { &[] };
        let mut child = command(killed.path(), more, STEPS).spawn().unwrap();
        let share = 0.03 + 0.22 * ((i * 7 + 3) % 12) as f64 / 11.0;
        std::thread::sleep(Duration::from_secs_f64(alone.as_secs_f64() * share));
        // Kill is SIGKILL: the process has no say.
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            kills += 1;
        }
    }
    assert!(kills >= 3, "only {kills} of 12 processes were killed in time; the test shows nothing");
    let begun = dnx::train::checkpoint::latest(&killed.path().join("run/checkpoints")).unwrap().0;
    assert!(begun.is_some(), "every process was killed before its first checkpoint; the test shows nothing");
    assert!(command(killed.path(), &["--resume"], STEPS).status().unwrap().success());
    assert!(result(whole.path()) == result(killed.path()), "the parameters differ after {kills} kills");
    assert_eq!(steps_logged(whole.path()), steps_logged(killed.path()));
    let hidden = |folder: &Path| {
        let entries = std::fs::read_dir(folder.join("run/checkpoints")).unwrap();
        entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
    };
    assert_eq!(hidden(killed.path()), 0, "leftovers of killed processes");
}

#[test]
fn ctrl_c_finishes_the_step_and_writes_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), &["--set", "train.keep=2"], "1000000").spawn().unwrap();
    let metrics = dir.path().join("run/metrics.jsonl");
    let begun = std::time::Instant::now();
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "training did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let kept = dnx::train::checkpoint::latest(&dir.path().join("run/checkpoints")).unwrap().0;
    assert!(kept.is_some(), "no checkpoint was written");
}
