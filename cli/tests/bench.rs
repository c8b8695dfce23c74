//! `dnx bench` and the worker of comparisons, at sizes that take no time.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn dnx(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dnx")).args(args).output().unwrap()
}

fn worker(args: &[&str]) -> Command {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_dnx")).with_file_name("examples").join("bench_worker");
    let mut command = Command::new(path);
    command.args(args);
    command
}

#[test]
fn operations_are_timed_against_the_roof() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bench.json");
    let ops = ["matmul:32x16x8:f32.f", "conv2d:1x8x4:f16.fb", "attention:1x2x16x8:f32.jvp"];
    let mut args = vec!["bench", "--device", "cpu", "--seconds", "0", "--json", file.to_str().unwrap()];
    ops.iter().for_each(|op| args.extend(["--op", op]));
    let output = dnx(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("roof, measured") && ops.iter().all(|op| text.contains(op)), "{text}");
    let value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{value}"));
    let roof = &value["roof"];
    assert!(["f32_flops", "f16_flops", "bytes"].iter().all(|k| number(&roof[*k]) > 1e6), "{roof}");
    let rows = value["results"].as_array().unwrap();
    assert_eq!(rows.len(), ops.len());
    for (row, op) in rows.iter().zip(ops) {
        assert_eq!(row["name"], op);
        let [least, median, greatest] = ["min_ms", "median_ms", "max_ms"].map(|k| number(&row[k]));
        assert!(0.0 < least && least <= median && median <= greatest, "{row}");
        let share = number(&row["gflop_per_s"]) * 1e9 / number(&roof["f16_flops"]).min(number(&roof["f32_flops"]));
        assert!(number(&row["of_flop_roof"]) > 0.0 && number(&row["of_flop_roof"]) <= share * 1.001, "{row}");
    }
    // A product of 32 x 16 by 16 x 8 is 8192 operations.
    let flops = number(&rows[0]["gflop_per_s"]) * number(&rows[0]["median_ms"]) * 1e6;
    assert!((flops - 8192.0).abs() < 1.0, "{flops}");
}

#[test]
fn wrong_operations_end_with_status_2_and_what_there_is() {
    for (args, part) in [
        (vec!["bench", "--op", "dot.f"], "there are matmul, conv2d"),
        (vec!["bench", "--op", "matmul:8x8"], "3 sizes"),
        (vec!["bench", "--op", "matmul", "--suite", "ops"], "cannot be used with"),
        (vec!["bench", "--op", "matmul", "--device", "cpu", "--seconds", "-1"], "--seconds"),
    ] {
        let output = dnx(&args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(part), "{args:?}: {text}");
    }
}

#[test]
fn the_worker_times_operations_and_half_precision() {
    let small = "{\"img\":8,\"patch\":4,\"dim\":16,\"depth\":1,\"heads\":2,\"batch\":2}";
    for (args, request) in [
        (vec!["ops"], "run 2 attention:1x2x16x8:f16.fb"),
        (vec!["ops"], "run 2 softmax:4x8.jvp"),
        (vec!["dit", "--spec", small, "--precision", "f16"], "run 2"),
    ] {
        let mut child = worker(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut read = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        let ready = read();
        assert!(ready["ready"] == 1 && ready["adapter"].is_string(), "{ready}");
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{request}").unwrap();
        let done = read();
        assert!(done["n"] == 2 && done["ms"].as_f64().unwrap() > 0.0 && done["loss"].as_f64().unwrap().is_finite());
        writeln!(stdin, "quit").unwrap();
        assert!(child.wait().unwrap().success());
    }
    for (args, part) in [
        (vec!["dit", "--precision", "f8"], "unknown variant `f8`"),
        (vec!["ops", "--key", "dot", "--profile", "1"], "no operation `dot`"),
    ] {
        let output = worker(&args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(part), "{args:?}: {text}");
    }
}
