//! `dnx sample` with guides, labels and pictures, and `dnx eval`, as a user runs them.

use std::path::Path;
use std::process::Command;

/// Runs, expects this exit status, and gives stdout and stderr.
fn expect(folder: &Path, status: i32, args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dnx")).args(args).current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "dnx {}\n{out}\n{err}", args.join(" "));
    assert!(!err.contains("panicked"), "{err}");
    (out, err)
}

fn config(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("configs").join(name).display().to_string()
}

/// Trains a tiny transformer on shapes for a moment.
fn shapes(folder: &Path, run: &str, steps: &str) {
    let config = config("shapes_dit.toml");
    let mut args = vec!["train", &config, "--device", "cpu", "--run", run, "--steps", steps, "--quiet"];
    for set in [
        "model.dim=16",
        "model.depth=1",
        "model.heads=2",
        "model.patch=8",
        "data.count=40",
        "data.batch=8",
        "train.sample_every=0",
        "sample.steps=4",
        "optim.schedule={kind = \"constant\"}",
    ] {
        args.extend(["--set", set]);
    }
    expect(folder, 0, &args);
}

/// The numbers of a .npy file of `f32`.
fn numbers(file: &[u8]) -> impl Iterator<Item = f32> {
    let header = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
    file[header..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[test]
fn samples_are_guided_and_begin_with_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    shapes(folder, "run", "12");
    shapes(folder, "worse", "2");
    let sample = |out: &str, more: &[&str]| {
        let args = [&["sample", "run", "--device", "cpu", "--n", "2", "--no-ema", "--out", out], more].concat();
        expect(folder, 0, &args);
        std::fs::read(folder.join(out)).unwrap()
    };
    let plain = sample("plain.npy", &["--class", "3", "--cfg", "1"]);
    let one = sample("one.npy", &["--class", "3", "--guide", "worse", "--cfg", "1"]);
    assert!(one == plain, "scale 1 changes nothing");
    let auto = sample("auto.npy", &["--class", "3", "--guide", "worse", "--cfg", "2"]);
    let null = sample("null.npy", &["--class", "3", "--cfg", "2"]);
    let negative = sample("negative.npy", &["--class", "3", "--cfg", "2", "--negative-label", "5"]);
    assert!(auto != plain && null != plain && negative != null && auto != null);
    let channels = sample("channels.npy", &["--class", "3", "--cfg", "2", "--set", "sample.cfg_channels=1"]);
    assert!(channels != null && channels != plain);

    let picture = sample("picture.png", &["--class", "3"]);
    assert!(!picture.is_empty());
    let near = sample("near.npy", &["--init", "picture.png", "--strength", "0.25"]);
    let filled = sample("filled.npy", &["--init", "picture.png", "--mask", "picture.png", "--repaint", "2"]);
    assert!(near != filled);

    let measured = ["--class", "3", "--cfg", "1", "--sampler", "ddpm", "--steps", "5", "--init", "picture.png"];
    let mut seen = vec![];
    for method in ["replacement", "dps", "pinv", "tds", "steer"] {
        let out = format!("{method}.npy");
        seen.push(sample(&out, &[&measured[..], &["--mask", "picture.png", "--method", method]].concat()));
        if method != "replacement" {
            let boxes = [&measured[..], &["--downsample", "8", "--method", method]].concat();
            seen.push(sample(&out.replace('.', "-boxes."), &boxes));
        }
    }
    let three = [&measured[..], &["--downsample", "8", "--method", "tds", "--particles", "3"]].concat();
    seen.push(sample("three.npy", &three));
    for (i, a) in seen.iter().enumerate() {
        assert!(seen[..i].iter().all(|b| a != b), "no two methods give the same");
    }

    let ddpm = ["--class", "3", "--sampler", "ddpm", "--steps", "12", "--cfg", "2"];
    let stepped = sample("stepped.npy", &ddpm);
    let alone = sample("alone.npy", &[&ddpm[..], &["--speculate", "1"]].concat());
    // To rounding: the sampler's steps are made by the device, those of a window by the host.
    let apart = numbers(&alone).zip(numbers(&stepped)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(alone.len() == stepped.len() && apart < 2e-5, "a window of one is the sampler itself, but for {apart}");
    let args = ["sample", "run", "--device", "cpu", "--n", "2", "--no-ema", "--out", "drafted.npy", "--speculate", "4"];
    let (_, said) = expect(folder, 0, &[&args, &ddpm[..]].concat());
    assert!(said.contains("% of drafts kept"), "{said}");

    let refused = |more: &[&str]| {
        let args = [&["sample", "run", "--device", "cpu", "--n", "1", "--out", "no.png"], more].concat();
        expect(folder, 2, &args).1
    };
    assert!(refused(&["--negative-label", "99"]).contains("classes 0 to 9"));
    assert!(refused(&["--negative-label", "3", "--cfg", "1"]).contains("other than 1"));
    assert!(refused(&["--guide", "worse", "--guidance", "cfg"]).contains("autoguidance"));
    assert!(refused(&["--guidance", "autoguidance", "--cfg", "2"]).contains("--guide"));
    assert!(refused(&["--speculate", "4", "--sampler", "heun"]).contains("ddpm"));
    assert!(refused(&["--mask", "picture.png"]).contains("--init"));
    assert!(refused(&["--init", "picture.png", "--strength", "2"]).contains("--strength 2"));
    let tds = ["--init", "picture.png", "--downsample", "8", "--method", "tds"];
    assert!(refused(&tds).contains("Gaussian steps"));
    assert!(refused(&[&tds[..], &["--sampler", "ddpm", "--particles", "0"]].concat()).contains("particles"));
    assert!(refused(&["--method", "dps"]).contains("--init"));
    assert!(refused(&["--init", "picture.png", "--method", "dps"]).contains("mask"));
    assert!(refused(&["--init", "picture.png", "--method", "replacement"]).contains("mask"));
    assert!(refused(&["--init", "picture.png", "--downsample", "5", "--method", "dps"]).contains("5 by 5"));
    assert!(refused(&["--init", "picture.png", "--downsample", "8"]).contains("method"));
    assert!(refused(&["--init", "picture.png", "--downsample", "8", "--method", "magic"]).contains("steer"));
    assert!(refused(&["--set", "sample.forcing={}", "--sampler", "ddim"]).contains("sample.forcing"));
    assert!(refused(&["--set", "sample.guidance=cgf"]).contains("guidance"));
    let (out, _) = expect(folder, 0, &["sample", "--list"]);
    assert!(out.contains("cfg") && out.contains("autoguidance") && out.contains("--repaint"), "{out}");
    assert!(["dps", "pinv", "tds", "steer", "forcing"].iter().all(|name| out.contains(name)), "{out}");
}

/// Sequences: trained with a level for each token, rolled out to any length, and by a network that knows its own.
#[test]
fn sequences_are_rolled_out() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let orbits = config("orbits.toml");
    let train = |run: &str, more: &[&str]| {
        let common = ["train", &orbits, "--device", "cpu", "--run", run, "--steps", "3", "--quiet"];
        let small = ["--set", "model.dim=16", "--set", "data.batch=4", "--set", "train.sample_count=4"];
        expect(folder, 0, &[&common[..], &small, more].concat());
    };
    train("teacher", &[]);
    train(
        "own",
        &[
            "--set",
            "process.preset=self_forcing",
            "--set",
            "process.objective={kind=\"self_forcing\", steps=2}",
            "--set",
            "teacher.path=teacher",
            "--set",
            "sample.sampler=consistency",
        ],
    );
    for run in ["teacher", "own"] {
        let sample = |out: &str, more: &[&str]| {
            let args = ["sample", run, "--device", "cpu", "--n", "3", "--steps", "3", "--force", "--out", out];
            expect(folder, 0, &[&args, more].concat());
            std::fs::read(folder.join(out)).unwrap()
        };
        let plain = sample("plain.npy", &[]);
        let long = sample("long.npy", &["--set", "sample.forcing={length=20}"]);
        // 3 sequences of 8 and of 20 points behind a header of 128 bytes.
        assert_eq!((plain.len() - 128, long.len() - 128), (3 * 8 * 2 * 4, 3 * 20 * 2 * 4));
        assert!(sample("pyramid.npy", &["--set", "sample.forcing={lag=1}"]) != plain);
        sample("plain.png", &[]);
        assert!(folder.join(run).join("samples/step-000003.png").is_file());
    }
}

#[test]
fn models_are_evaluated_by_likelihood() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let moons = config("two_moons.toml");
    let train = |steps: &str, run: &str| {
        let mut args = vec!["train", &moons, "--device", "cpu", "--run", run, "--steps", steps, "--quiet"];
        args.extend(["--set", "model.hidden=64", "--set", "train.sample_every=0", "--set", "ema.decay=0"]);
        expect(folder, 0, &args);
    };
    let nats = |run: &str| {
        let args =
            ["eval", run, "--device", "cpu", "--n", "100", "--batch", "50", "--probes", "0", "--steps", "60", "--json"];
        let (out, _) = expect(folder, 0, &args);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((json["unit"].as_str(), json["samples"].as_u64()), (Some("nats"), Some(100)));
        json["mean"].as_f64().unwrap()
    };
    train("20", "young");
    train("800", "old");
    let (young, old) = (nats("young"), nats("old"));
    // Two moons of unit variance: a Gaussian of that variance would need 2.84 nats.
    assert!(old < young - 0.2 && old < 2.9, "{old} after {young}");
    let (out, _) = expect(folder, 0, &["eval", "old", "--device", "cpu", "--n", "4", "--steps", "10"]);
    assert!(out.contains("nats") && out.contains("4 samples"), "{out}");
    let (_, e) = expect(folder, 2, &["eval", "old", "--device", "cpu", "--n", "0"]);
    assert!(e.contains("--n 0"), "{e}");
}
