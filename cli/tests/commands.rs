//! The command as a user runs it: exit status, messages, files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn config(name: &str) -> String {
    root().join("configs").join(name).display().to_string()
}

fn dnx(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dnx")).args(args).current_dir(folder).output().unwrap()
}

/// Runs, expects this exit status, and gives stdout and stderr.
fn expect(folder: &Path, status: i32, args: &[&str]) -> (String, String) {
    let output = dnx(folder, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "dnx {}\n{out}\n{err}", args.join(" "));
    assert!(!err.contains("panicked"), "{err}");
    (out, err)
}

/// Trains two moons for a moment, with a network small enough for that.
fn train(folder: &Path, status: i32, more: &[&str]) -> (String, String) {
    let config = config("two_moons.toml");
    let mut args = vec!["train", &config, "--device", "cpu", "--run", "run"];
    args.extend(
        ["--set", "model.hidden=32", "--set", "data.batch=32", "--set", "train.sample_count=16"].iter().copied(),
    );
    args.extend(["--set", "sample.steps=4"].iter().copied());
    args.extend(more);
    expect(folder, status, &args)
}

fn metrics(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn devices_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (out, _) = expect(dir.path(), 0, &["devices"]);
    assert!(out.lines().any(|l| l.starts_with("cpu ")), "{out}");
    let (out, _) = expect(dir.path(), 0, &["devices", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(list.as_array().unwrap().iter().any(|d| d["kind"] == "cpu"), "{out}");
}

#[test]
fn a_run_leaves_everything_the_contract_names() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["--steps", "20", "--set", "train.log_every=5", "--set", "train.checkpoint_every=10"];
    let (out, err) = train(dir.path(), 0, &[&sets[..], &["--set", "train.sample_every=10"]].concat());
    assert_eq!(out.trim(), "run");
    assert!(err.contains("device: ") && err.contains("parameters"), "{err}");
    let run = dir.path().join("run");
    for file in [
        "config.toml",
        "metrics.jsonl",
        "loss.svg",
        "samples/step-000010.png",
        "samples/step-000020.png",
        "checkpoints/step-000010/model.safetensors",
        "checkpoints/step-000020/ema.safetensors",
        "checkpoints/step-000020/optimizer.safetensors",
        "checkpoints/step-000020/state.json",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let events = std::fs::read_dir(&run)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert_eq!(events.count(), 1);
    let records = metrics(dir.path());
    assert_eq!(records.iter().map(|r| r["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 5, 10, 15, 20]);
    for key in ["loss", "grad_norm", "lr", "step_ms", "samples_per_s", "peak_bytes"] {
        assert!(records[4][key].as_f64().unwrap() > 0.0 || key == "lr", "{key} in {}", records[4]);
    }

    // What is there is not overwritten.
    let (_, err) = train(dir.path(), 2, &["--steps", "20"]);
    assert!(err.contains("already holds a run") && err.contains("--resume"), "{err}");

    // Samples: a seed is a sample, whatever the batch.
    let sample = |out: &str, more: &[&str]| {
        let mut args = vec!["sample", "run", "--device", "cpu", "--out", out];
        args.extend(more);
        expect(dir.path(), 0, &args);
        std::fs::read(dir.path().join(out)).unwrap()
    };
    let many = sample("many.npy", &["--seeds", "0-7", "--batch", "3"]);
    let one = sample("one.npy", &["--seeds", "3"]);
    let data = |bytes: &[u8]| bytes[10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize..].to_vec();
    assert_eq!(data(&many)[3 * 8..4 * 8], data(&one)[..]);
    assert!(sample("a.png", &["--n", "5", "--sampler", "euler"]).starts_with(b"\x89PNG"));
    // Every sampler runs where it has a meaning, and says so where it has none.
    let (listed, _) = expect(dir.path(), 0, &["sample", "--list"]);
    for name in ["dpmpp_2m", "unipc", "tsit5", "karras", "ays_sdxl", "autoguidance"] {
        assert!(listed.contains(&format!("\n  {name} ")), "{listed}");
    }
    let names =
        listed.lines().skip(1).take_while(|l| l.starts_with("  ")).map(|l| l.split_whitespace().next().unwrap());
    for (i, name) in names.enumerate() {
        let out = format!("sampler-{i}.npy");
        let args = ["sample", "run", "--device", "cpu", "--n", "2", "--steps", "3", "--out", &out, "--sampler", name];
        match name {
            "langevin" | "lcm" | "mean_flow" => {
                let (_, err) = expect(dir.path(), 2, &args);
                assert!(err.contains("sampler"), "{err}");
            }
            _ => drop(expect(dir.path(), 0, &args)),
        }
    }
    assert!(sample("b.npy", &["--n", "2", "--sampler", "ddim", "--set", "sample.eta=0.5"]).len() > 16);
    assert!(sample("a.gif", &["--n", "5", "--no-ema"]).starts_with(b"GIF89a"));
    assert!(sample("a.npz", &["--n", "5"]).starts_with(b"PK"));
    let refused = |status: i32, more: &[&str], part: &str| {
        let mut args = vec!["sample", "run", "--device", "cpu"];
        args.extend(more);
        let (_, err) = expect(dir.path(), status, &args);
        assert!(err.contains(part), "{err}");
    };
    refused(2, &["--out", "a.png"], "--force");
    refused(2, &["--out", "b.png", "--class", "1"], "no classes");
    refused(2, &["--out", "b.png", "--cfg", "2"], "guidance");
    refused(2, &["--out", "b.png", "--sampler", "hun"], "did you mean `heun`?");
    refused(2, &["--out", "b.png", "--sampler", "heun", "--set", "sample.eta=0.5"], "is read only by ddim");
    refused(2, &["--out", "b.bmp"], ".png, .npy, .npz or .gif");
    refused(2, &["--out", "b.png", "--seeds", "5-2"], "--seeds 5-2");
    refused(2, &["--out", "b.png", "--guidance-interval", "0.5"], "--guidance-interval");

    let (out, _) = expect(dir.path(), 0, &["inspect", "run"]);
    assert!(out.contains("layers.0.weight") && out.contains("[32, 130]") && out.contains("step 20"), "{out}");
    let (out, _) = expect(dir.path(), 0, &["inspect", "run/checkpoints/step-000020/model.safetensors", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["tensors"][0]["shape"], serde_json::json!([32, 130]));

    // A checkpoint that was cut short: named, and nothing is harmed.
    let model = run.join("checkpoints/step-000020/model.safetensors");
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    let (_, err) = expect(dir.path(), 2, &["inspect", "run/checkpoints/step-000020/model.safetensors"]);
    assert!(err.contains("truncated"), "{err}");
    refused(
        2,
        &["--out", "b.png", "--set", "model.hidden=16"],
        "the file has f32[32, 130], the model needs f32[16, 130]",
    );
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sets = ["--set", "train.log_every=4", "--set", "train.checkpoint_every=8", "--set", "train.sample_every=0"];
    let sets = [&sets[..], &["--set", "optim.schedule.warmup=4"]].concat();
    let with = |more: &[&'static str]| [&sets[..], more].concat();
    train(whole.path(), 0, &with(&["--steps", "24"]));
    // The schedule's length is the run's: it is given, so that the shorter run is a part of the longer.
    train(parts.path(), 0, &with(&["--steps", "14", "--set", "optim.schedule.steps=24"]));
    // What a killed run logged after its last checkpoint.
    let log = parts.path().join("run/metrics.jsonl");
    let text = std::fs::read_to_string(&log).unwrap() + "{\"step\":99,\"loss\":1.0}\n{\"step\":100,\"lo";
    std::fs::write(&log, text).unwrap();
    std::fs::remove_dir_all(parts.path().join("run/checkpoints/step-000014")).unwrap();
    let (_, err) = train(parts.path(), 0, &with(&["--steps", "24", "--resume"]));
    assert!(err.contains("continuing from run/checkpoints/step-000008"), "{err}");
    for file in ["model", "ema", "optimizer"] {
        let read =
            |dir: &Path| std::fs::read(dir.join(format!("run/checkpoints/step-000024/{file}.safetensors"))).unwrap();
        assert!(read(whole.path()) == read(parts.path()), "{file} differs");
    }
    let losses = |dir: &Path| -> Vec<(u64, f64)> {
        metrics(dir).iter().map(|r| (r["step"].as_u64().unwrap(), r["loss"].as_f64().unwrap())).collect()
    };
    assert_eq!(losses(whole.path()), losses(parts.path()));
    let (_, err) = train(parts.path(), 2, &with(&["--steps", "30", "--resume", "--seed", "5"]));
    assert!(err.contains("seed 0, not 5"), "{err}");
    let (_, err) = train(parts.path(), 2, &with(&["--steps", "30", "--resume", "--set", "model.hidden=16"]));
    assert!(err.contains("does not fit the model") && err.contains("layers.0.weight"), "{err}");
}

#[test]
fn wrong_configurations_end_with_status_2_and_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |more: &[&str], parts: &[&str]| {
        let (_, err) = train(dir.path(), 2, more);
        for part in parts {
            assert!(err.contains(part), "{part} is not in: {err}");
        }
    };
    refused(&["--set", "train.stepz=3"], &["--set train.stepz=3", "did you mean `steps`?"]);
    refused(&["--set", "model.hidden=wide"], &["--set model.hidden=wide", "expected usize"]);
    refused(&["--set", "model.time_width=7"], &["--set model.time_width=7", "must be even"]);
    refused(&["--set", "optim.lr=0"], &["--set optim.lr=0", "must be positive"]);
    refused(&["--set", "data.batch=0"], &["data.batch=0", "at least 1"]);
    refused(&["--set", "train.accumulate=5"], &["--set train.accumulate=5", "does not divide"]);
    refused(&["--set", "data.kind=mnist"], &["needs path"]);
    refused(&["--set", "data.kind=mnist", "--set", "data.path=nowhere"], &["nowhere", "no such folder"]);
    refused(&["--mesh", "data=2"], &["--set mesh.axes", "asks for 2 devices", "cpu*2"]);
    refused(&["--mesh", "odd=2"], &["--set mesh.axes", "splits nothing", "tensor"]);
    refused(&["--mesh", "data"], &["data=2,fsdp=2"]);
    assert!(!dir.path().join("run").exists(), "a refused run left a folder");

    let write = |text: &str| std::fs::write(dir.path().join("c.toml"), text).unwrap();
    write("[model]\nkind = \"mlp\"\nhiden = 3\n\n[data]\nkind = \"two_moons\"\n");
    let (_, err) = expect(dir.path(), 2, &["train", "c.toml"]);
    assert!(err.contains("c.toml:3: [model] hiden: unknown key `hiden`; did you mean `hidden`?"), "{err}");
    write("[model]\nkind = \"dit\"\n\n[data]\nkind = \"two_moons\"\n");
    let (_, err) = expect(dir.path(), 2, &["train", "c.toml"]);
    assert!(err.contains("c.toml:2: [model] kind: a dit takes pictures"), "{err}");
    let (_, err) = expect(dir.path(), 2, &["train", "nowhere.toml"]);
    assert!(err.contains("nowhere.toml"), "{err}");
    let (_, err) = expect(dir.path(), 2, &["train", &config("two_moons.toml"), "--device", "tpu"]);
    assert!(err.contains("no device `tpu`") && err.contains("cpu"), "{err}");
    expect(dir.path(), 2, &["train"]);
    expect(dir.path(), 2, &["sample", "nowhere"]);
    expect(dir.path(), 2, &["inspect", "weights.pt"]);
    expect(dir.path(), 2, &["inspect", "nowhere.safetensors"]);
}

#[test]
fn a_loss_that_is_not_a_number_names_step_and_op_and_keeps_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["--steps", "60", "--set", "optim.kind=sgd", "--set", "optim.lr=1e30", "--set", "optim.clip=0"];
    let (_, err) = train(dir.path(), 1, &[&sets[..], &["--set", "train.log_every=10"]].concat());
    assert!(err.contains("is not finite") && err.contains("first in "), "{err}");
    let kept = dnx::train::checkpoint::latest(&dir.path().join("run/checkpoints")).unwrap().0.unwrap();
    let (saved, state) = dnx::train::checkpoint::read(&kept).unwrap();
    let named = format!("step {} ", state.step + 1);
    assert!(err.contains(&named) && err.contains(&kept.file_name().unwrap().to_string_lossy().into_owned()), "{err}");
    assert!(saved.model.iter().all(|(_, t)| t.to_f32_vec().iter().all(|v| v.is_finite())));
}

#[test]
fn a_full_disk_is_said_and_harms_nothing() {
    // A device that is always full stands for the disk, where there is one.
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sets = ["--steps", "4", "--set", "train.sample_every=0"];
    train(dir.path(), 0, &sets);
    let metrics = dir.path().join("run/metrics.jsonl");
    let before = std::fs::read(dir.path().join("run/checkpoints/step-000004/model.safetensors")).unwrap();
    let full = Command::new(env!("CARGO_BIN_EXE_dnx"))
        .args(["inspect", "run"])
        .current_dir(dir.path())
        .stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(1));
    let text = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(text.contains("cannot write to stdout"), "{text}");
    assert!(metrics.is_file());
    assert_eq!(before, std::fs::read(dir.path().join("run/checkpoints/step-000004/model.safetensors")).unwrap());
}

#[test]
fn a_full_file_system_ends_the_run_and_leaves_the_last_checkpoint_whole() {
    // A file system of a few hundred kilobytes, in a namespace of its own, fills up while the run writes to it.
    let dir = tempfile::tempdir().unwrap();
    let train = format!(
        "\"$DNX\" train '{}' --device cpu --run run --quiet --steps 4000 --set model.hidden=32 --set data.batch=8 \
         --set train.sample_every=0 --set train.checkpoint_every=2 --set train.keep=0",
        config("two_moons.toml")
    );
    let script = format!(
        "mount -t tmpfs -o size=600k none . && cd \"$PWD\" && echo mounted && {{ {train}; echo \"status $?\"; \
         \"$DNX\" inspect run; echo \"status $?\"; }}"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env("DNX", env!("CARGO_BIN_EXE_dnx"))
        .current_dir(dir.path())
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no unshare");
        return;
    };
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !out.starts_with("mounted") {
        eprintln!("skipped: a file system can't be mounted here: {err}");
        return;
    }
    let statuses: Vec<&str> = out.lines().filter(|l| l.starts_with("status ")).collect();
    assert_eq!(statuses, ["status 1", "status 0"], "{out}\n{err}");
    assert!(err.contains("cannot write") && err.contains("nothing older was touched"), "{err}");
    assert!(out.contains("layers.0.weight"), "no checkpoint is left: {out}");
}

#[test]
fn without_an_adapter_the_devices_there_are_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dnx"))
        .args(["train", &config("two_moons.toml"), "--device", "gpu", "--run", "run"])
        .envs([("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("no device `gpu`; there are: ") && err.contains("cpu:"), "{err}");
    assert!(!dir.path().join("run").exists(), "a refused run left a folder");
}

#[test]
fn what_does_not_fit_into_memory_is_refused_before_it_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let (_, err) = train(dir.path(), 2, &["--set", "data.batch=1000000000"]);
    assert!(err.contains("does not fit the memory of") && err.contains("train.accumulate="), "{err}");
    let (_, err) = train(dir.path(), 2, &["--set", "train.memory_limit=\"64KiB\""]);
    assert!(err.contains("train.memory_limit = 64 KiB") && err.contains("not even one sample"), "{err}");
    let (_, err) = train(dir.path(), 2, &["--set", "train.memory_limit=much"]);
    assert!(err.contains("--set train.memory_limit=much") && err.contains("24GiB"), "{err}");
    assert!(!dir.path().join("run").exists(), "a refused run left a folder");
}

#[test]
fn a_dry_run_says_what_a_step_costs_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (out, _) = train(dir.path(), 0, &["--dry-run"]);
    for part in ["parameters", "Gflop", "kernels", "peak memory", "ms a step"] {
        assert!(out.contains(part), "{out}");
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn compile_shows_every_stage_and_writes_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let moons = config("two_moons.toml");
    let compile = |status: i32, more: &[&str]| {
        let mut args = vec!["compile", &moons];
        args.extend(more);
        expect(dir.path(), status, &args)
    };
    let (help, _) = compile(0, &["--dump-ir=help"]);
    assert_eq!(help.lines().count(), 16);
    for line in help.lines() {
        let stage = line.split_whitespace().next().unwrap();
        let (text, _) = compile(0, &[&format!("--dump-ir={stage}")]);
        assert!(text.len() > 100, "stage {stage}: {text}");
        if !["fuse", "kernels", "schedule", "memory", "wgsl", "exec"].contains(&stage) {
            let func = dnx::ir::text::parse(&text).unwrap_or_else(|e| panic!("stage {stage} does not parse back: {e}"));
            assert_eq!(func.to_string(), text);
        }
    }
    let (step, _) = compile(0, &["--dump-ir"]);
    std::fs::write(dir.path().join("step.dnx"), &step).unwrap();
    let (out, _) = expect(dir.path(), 0, &["compile", "step.dnx", "--stats=json"]);
    let of_text: serde_json::Value = serde_json::from_str(&out).unwrap();
    let (out, _) = compile(0, &["--stats=json"]);
    let stats: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(stats["parameters"], 165_634);
    assert_eq!(stats["flops"], of_text["flops"]);
    for key in ["parameters_trainable", "bytes", "dispatches", "kernels", "peak_bytes"] {
        assert!(stats[key].as_u64().unwrap() > 0, "{key}");
    }
    compile(2, &["--program", "forward", "--dump-ir=grad"]);
    for program in ["loss", "forward", "sample"] {
        compile(0, &["--program", program, "--stats"]);
    }
    let (reasons, _) = compile(0, &["--explain-fusion"]);
    assert!(reasons.lines().count() > 10, "{reasons}");
    for form in ["dot", "json", "wgsl", "spirv"] {
        let (out, _) = compile(0, &["--emit", form, "--out", form]);
        assert!(out.lines().all(|l| dir.path().join(l).is_file()), "{out}");
    }
    let spirv = std::fs::read_dir(dir.path().join("spirv")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read(spirv).unwrap()[..4], 0x0723_0203u32.to_le_bytes());
    let (_, err) = compile(2, &["--emit", "dot", "--out", "dot"]);
    assert!(err.contains("--force"), "{err}");
    let (_, err) = compile(2, &["--dump-ir=canon"]);
    assert!(err.contains("did you mean `canonical`?"), "{err}");
    let (_, err) = compile(2, &["--emit", "spirv"]);
    assert!(err.contains("--out"), "{err}");
    let (_, err) = compile(2, &["--emit", "wgsl", "--device", "cpu"]);
    assert!(err.contains("no shaders"), "{err}");
    std::fs::write(dir.path().join("bad.dnx"), "func @f(").unwrap();
    expect(dir.path(), 2, &["compile", "bad.dnx"]);
}

#[test]
fn every_configuration_that_needs_no_download_resolves() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["swiss_roll", "eight_gaussians", "checkerboard", "shapes_dit"] {
        expect(dir.path(), 0, &["compile", &config(&format!("{name}.toml")), "--program", "forward"]);
    }
    for name in ["mnist_dit", "fashion_dit", "cifar10_dit"] {
        let (_, err) = expect(dir.path(), 2, &["compile", &config(&format!("{name}.toml"))]);
        assert!(err.contains("no such folder"), "{err}");
    }
    let (out, _) = expect(dir.path(), 0, &["compile", &config("dit_s2.toml"), "--program", "forward", "--stats=json"]);
    let stats: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(stats["parameters"], 32_957_200);
    assert_eq!(stats["parameters_trainable"], 32_858_896);
}

/// The program of an example, which cargo builds beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().parent().unwrap().join("examples").join(name)
}

#[test]
fn a_profile_names_the_kernels_and_their_roof() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("two_moons.toml");
    let mut devices = vec!["cpu"];
    // The software adapter of the tests has timestamps.
    devices.extend(dnx::runtime::Device::open(Some("llvmpipe")).is_ok().then_some("llvmpipe"));
    for device in devices {
        let trace = format!("{device}.json");
        let sets = ["--set", "model.hidden=32", "--set", "data.batch=32", "--runs", "2"];
        let args = [&["profile", &config, "--device", device, "--out", &trace][..], &sets].concat();
        let (out, _) = expect(dir.path(), 0, &args);
        assert!(
            out.contains("contract") && out.contains("Gflop/s") && out.contains("the roof of this device"),
            "{out}"
        );
        let text = std::fs::read_to_string(dir.path().join(&trace)).unwrap();
        let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let spent: f64 = events.iter().filter_map(|e| e["dur"].as_f64()).sum();
        assert!(events.len() > 10 && spent > 0.0, "{device}: {spent} us");
        expect(dir.path(), 2, &args);
    }
}

#[test]
fn tuned_tiles_are_kept_for_the_adapter_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("two_moons.toml");
    let tune = |device: &str| {
        Command::new(env!("CARGO_BIN_EXE_dnx"))
            .args(["tune", &config, "--device", device, "--set", "model.hidden=32", "--set", "data.batch=48"])
            .env("DNX_CACHE", dir.path().join("cache"))
            .output()
            .unwrap()
    };
    let on_cpu = tune("cpu");
    assert_eq!(on_cpu.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&on_cpu.stderr).contains("no tiles to choose"));
    let on_gpu = tune("llvmpipe");
    let out = String::from_utf8_lossy(&on_gpu.stdout);
    assert!(on_gpu.status.success() && out.contains("kernels tuned; kept in "), "{out}{on_gpu:?}");
    let kept: Vec<_> = std::fs::read_dir(dir.path().join("cache")).unwrap().map(|e| e.unwrap().path()).collect();
    let [table] = &kept[..] else { panic!("{kept:?}") };
    let table: serde_json::Value = serde_json::from_slice(&std::fs::read(table).unwrap()).unwrap();
    assert!(table["fingerprint"].as_str().unwrap().contains("llvmpipe"), "{table}");
}

#[test]
fn examples_run() {
    for (name, args) in [("quickstart", vec!["cpu"]), ("sample_embedded", vec![]), ("custom_loss", vec!["cpu"])] {
        let output = Command::new(example(name)).args(&args).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_worker_speaks_its_protocol() {
    use std::io::{BufRead, BufReader, Write};
    for workload in [
        vec!["TINY"],
        vec!["small-mlp", "--spec", "{\"hidden\":8,\"layers\":2,\"batch\":4,\"lr\":0.001}"],
        vec![
            "small-sampler",
            "--spec",
            "{\"img\":8,\"patch\":4,\"dim\":16,\"depth\":1,\"heads\":2,\"batch\":2,\"steps\":2}",
        ],
    ] {
        let mut worker = Command::new(example("bench_worker"))
            .args(&workload)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        let mut read = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        let ready = read();
        assert_eq!(ready["ready"], 1);
        assert!(ready["t_first"].as_f64().unwrap() >= ready["t_main"].as_f64().unwrap());
        let stdin = worker.stdin.as_mut().unwrap();
        writeln!(stdin, "run 3").unwrap();
        let done = read();
        assert_eq!(done["n"], 3);
        assert!(done["ms"].as_f64().unwrap() > 0.0 && done["loss"].as_f64().unwrap().is_finite(), "{done}");
        writeln!(worker.stdin.as_mut().unwrap(), "quit").unwrap();
        assert!(worker.wait().unwrap().success());
    }
}
