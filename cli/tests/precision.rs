//! Runs in narrow storage as a user sees them.

use std::path::{Path, PathBuf};
use std::process::Command;

fn config() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/two_moons.toml").display().to_string()
}

/// Runs, expects this exit status, and gives stdout and stderr.
fn expect(folder: &Path, status: i32, args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dnx")).args(args).current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "dnx {}\n{out}\n{err}", args.join(" "));
    (out, err)
}

fn train(folder: &Path, status: i32, steps: &str, more: &[&str], sets: &[&str]) -> (String, String) {
    let config = config();
    let mut args = vec!["train", &config, "--device", "cpu", "--run", "run", "--steps", steps];
    args.extend(more);
    let own = ["model.hidden=32", "data.batch=32", "train.sample_every=0", "train.keep=0", "train.log_every=1"];
    for set in own.iter().chain(sets) {
        args.extend(["--set", set]);
    }
    expect(folder, status, &args)
}

fn metrics(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn files(folder: &Path, step: &str) -> Vec<Vec<u8>> {
    let checkpoint: PathBuf = folder.join("run/checkpoints").join(step);
    let files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];
    files.iter().map(|f| std::fs::read(checkpoint.join(f)).unwrap()).collect()
}

/// In `f16`, with a loss scale that overflows at first: steps are skipped, the scale comes down, and a resumed run is
/// bit-identical to a whole one although the scale moves on both sides of the checkpoint.
#[test]
fn f16_skips_what_overflows_and_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let sets =
        ["train.precision=f16", "train.loss_scale=16777216", "train.loss_scale_every=5", "train.checkpoint_every=10"];
    train(dir.path(), 0, "40", &[], &sets);
    let records = metrics(dir.path());
    let number = |i: usize, key: &str| records[i][key].as_f64().unwrap_or_else(|| panic!("no {key} in {}", records[i]));
    assert!(number(0, "loss_scale") < 16777216.0 && number(0, "skipped") == 1.0);
    assert!(number(39, "skipped") >= 3.0 && number(39, "skipped") < 30.0, "{}", records[39]);
    let scales: Vec<f64> = (0..40).map(|i| number(i, "loss_scale")).collect();
    assert!(scales.windows(2).any(|w| w[1] > w[0]) && scales.windows(2).any(|w| w[1] < w[0]), "{scales:?}");
    let whole = files(dir.path(), "step-000040");
    for step in ["step-000030", "step-000040"] {
        std::fs::remove_dir_all(dir.path().join("run/checkpoints").join(step)).unwrap();
    }
    let (_, err) = train(dir.path(), 0, "40", &["--resume"], &sets);
    assert!(err.contains("step-000020"), "{err}");
    assert!(files(dir.path(), "step-000040") == whole, "the resumed run ended elsewhere");
    assert_eq!(metrics(dir.path()).len(), 40);

    // Another precision takes over the weights; the scale starts anew or is left behind.
    train(dir.path(), 0, "42", &["--resume"], &["train.precision=f32"]);
    assert!(metrics(dir.path())[41].get("loss_scale").is_none());
    train(dir.path(), 0, "44", &["--resume"], &["train.precision=f16"]);
    assert_eq!(metrics(dir.path())[43]["skipped"].as_f64(), Some(0.0));
}

#[test]
fn every_precision_trains_and_samples_alike() {
    let dir = tempfile::tempdir().unwrap();
    let mut points: Vec<Vec<f32>> = vec![];
    for precision in ["f32", "f16", "bf16-storage", "fp8-e4m3", "fp8-e5m2"] {
        let set = format!("train.precision={precision}");
        train(dir.path(), 0, "6", &["--force"], &[&set]);
        let losses: Vec<f64> = metrics(dir.path()).iter().map(|r| r["loss"].as_f64().unwrap()).collect();
        assert!(losses.len() == 6 && losses.iter().all(|l| l.is_finite()), "{precision}: {losses:?}");
        let sample = ["sample", "run", "--device", "cpu", "--n", "16", "--steps", "4", "--out", "x.npy", "--force"];
        expect(dir.path(), 0, &sample);
        let bytes = std::fs::read(dir.path().join("x.npy")).unwrap();
        let data = &bytes[10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize..];
        points.push(data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect());
    }
    let distance = |i: usize| {
        let squares: f32 = points[i].iter().zip(&points[0]).map(|(a, b)| (a - b).powi(2)).sum();
        (squares / points[0].len() as f32).sqrt()
    };
    for (i, bound) in [(1, 0.01), (2, 0.05), (3, 0.3), (4, 0.6)] {
        assert!(distance(i) > 0.0 && distance(i) < bound, "samples of precision {i} are {} away", distance(i));
    }
}

#[test]
fn a_run_that_overflows_at_any_scale_stops() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["train.precision=f16", "train.loss_scale=4", "optim.lr=1e30", "optim.clip=0.0"];
    let (_, err) = train(dir.path(), 1, "40", &[], &sets);
    assert!(err.contains("not finite") && err.contains("bf16-storage"), "{err}");
}

#[test]
fn the_pass_is_shown_and_wrong_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let dump = |precision: &str| {
        let set = format!("train.precision={precision}");
        expect(dir.path(), 0, &["compile", &config, "--dump-ir=precision", "--set", &set]).0
    };
    assert!(dump("f16").contains("f16["));
    assert!(dump("bf16-storage").contains("bf16["));
    assert!(!dump("f32").contains("f16["));
    let (_, err) = train(dir.path(), 2, "1", &[], &["train.precision=half"]);
    assert!(err.contains("half") && err.contains("bf16-storage"), "{err}");
    let (_, err) = train(dir.path(), 2, "1", &[], &["train.loss_scale=1000"]);
    assert!(err.contains("loss_scale") && err.contains("power of two"), "{err}");
}
