//! Runs over meshes: checkpoints in parts, resumed over other meshes, and what is refused.

use dnx_ir::Array;
use dnx_runtime::{Device, Team};
use dnx_train::checkpoint;
use dnx_train::config::{Config, Resolved, Source};
use dnx_train::data::Dataset;
use dnx_train::run::{Existing, RunFolder};
use dnx_train::{FitOptions, Trainer};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const BASE: &str = "[model]\nkind = \"dit\"\ndim = 64\ndepth = 1\nheads = 4\npatch = 8\n\
                    [data]\nkind = \"shapes\"\nbatch = 8\ncount = 64\n\
                    [train]\nsample_every = 0\ncheckpoint_every = 0\n[log]\ntensorboard = false\n";

/// `mesh` are axes and, after a bar, other settings.
fn resolved(steps: u64, mesh: &str) -> Result<(Resolved, Arc<Dataset>), dnx_train::Error> {
    let (axes, others) = mesh.split_once('|').unwrap_or((mesh, ""));
    let mut sets = vec![format!("train.steps={steps}"), format!("mesh.axes={{ {axes} }}")];
    sets.extend(others.split_whitespace().map(String::from));
    let source = Source::new("test.toml", BASE, &sets)?;
    let raw: Config = source.parse()?;
    let data = Arc::new(Dataset::open(&raw.data, 0)?);
    Ok((Config::resolve(source, Some(&data))?, data))
}

fn trainer(steps: u64, mesh: &str) -> Trainer {
    let (resolved, data) = resolved(steps, mesh).unwrap();
    let team = Team::open(Some(&format!("cpu*{}", resolved.layout.devices()))).unwrap();
    Trainer::over(resolved, &team, data).unwrap()
}

fn fit(trainer: &mut Trainer, folder: &Path, existing: Existing) {
    let options = FitOptions { existing: &existing, stop: &AtomicBool::new(false), quiet: true };
    trainer.fit(&RunFolder::at(folder), options).unwrap();
}

fn loss(trainer: &Trainer) -> f64 {
    trainer.metrics().unwrap().iter().find(|(name, _)| name == "loss").unwrap().1
}

fn sorted(mut tensors: Vec<(String, Array)>) -> Vec<(String, Array)> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// Saved over one mesh, loaded over any other: the same bits, and a loss that goes on as on one device.
#[test]
fn a_checkpoint_goes_on_over_any_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = trainer(4, "");
    fit(&mut whole, &dir.path().join("one"), Existing::Refuse);
    let goal = loss(&whole);
    for (from, to) in
        [("fsdp = 2, tensor = 2", "data = 2"), ("data = 4", "fsdp = 2"), ("fsdp = 4", ""), ("", "sequence = 2")]
    {
        let folder = dir.path().join(format!("{from} to {to}").replace([' ', '='], ""));
        fit(&mut trainer(2, from), &folder, Existing::Refuse);
        let saved = folder.join("checkpoints/step-000002");
        let (before, state) = checkpoint::read(&saved).unwrap();
        assert_eq!(state.mesh.len(), from.matches('=').count());
        assert_eq!(saved.join("model.safetensors.index.json").is_file(), from.contains("fsdp"));
        let mut on = trainer(4, to);
        on.restore(&saved).unwrap();
        let after = on.checkpoint().unwrap();
        for (a, b) in [(before.model, after.model), (before.ema, after.ema), (before.optimizer, after.optimizer)] {
            assert_eq!(sorted(a), sorted(b), "{from} to {to}");
        }
        fit(&mut on, &folder, Existing::Resume(None));
        let apart = (loss(&on) / goal - 1.0).abs();
        assert!(apart < 1e-5, "{from} to {to}: {} and {goal}", loss(&on));
    }
}

/// Interrupted and resumed over the same mesh, a run has the bits of one that never was.
#[test]
fn resume_over_a_mesh_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = "data = 2, fsdp = 2";
    fit(&mut trainer(3, mesh), &dir.path().join("a"), Existing::Refuse);
    fit(&mut trainer(1, mesh), &dir.path().join("b"), Existing::Refuse);
    fit(&mut trainer(3, mesh), &dir.path().join("b"), Existing::Resume(None));
    let read = |run: &str| checkpoint::read(&dir.path().join(run).join("checkpoints/step-000003")).unwrap().0;
    let (a, b) = (read("a"), read("b"));
    assert_eq!((a.model, a.ema, a.optimizer), (b.model, b.ema, b.optimizer));
}

/// Devices draw the pictures of a run side by side, in the places that one device draws them in.
#[test]
fn pictures_are_those_of_one_device() {
    let dir = tempfile::tempdir().unwrap();
    let drawn = |name: &str, mesh: &str| {
        let run = dir.path().join(name);
        let settings = "train.sample_every=2 train.sample_count=5 sample.steps=4";
        fit(&mut trainer(2, &format!("{mesh} | {settings}")), &run, Existing::Refuse);
        let picture = image::open(RunFolder::at(&run).picture(2)).unwrap().to_rgb8();
        (picture.dimensions(), picture.into_raw())
    };
    let (size, one) = drawn("one", "");
    for mesh in ["data = 2", "fsdp = 4"] {
        let (other, many) = drawn(mesh, mesh);
        assert_eq!(size, other);
        // Weights differ in their last bits.
        let apart = one.iter().zip(&many).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(apart <= 1, "{mesh}: a pixel is {apart} apart");
    }
    let kinds: std::collections::BTreeSet<u8> = one.into_iter().collect();
    assert!(kinds.len() > 16, "nothing was drawn");
}

/// The value of a metric in the last step, if it is there.
fn metric(trainer: &Trainer, wanted: &str) -> Option<f64> {
    trainer.metrics().unwrap().into_iter().find(|(name, _)| name == wanted).map(|(_, value)| value)
}

/// Twenty steps of AdamW whose exchange is rounded end as those whose exchange is not. In `f16` the loss is scaled: a step
/// in which a gradient overflows on its way is skipped, and the scale halved.
#[test]
fn narrow_transport_trains_alike() {
    let dir = tempfile::tempdir().unwrap();
    let train = |name: &str, mesh: &str| {
        let mut trainer = trainer(20, mesh);
        fit(&mut trainer, &dir.path().join(name), Existing::Refuse);
        trainer
    };
    for axes in ["data = 2", "fsdp = 2"] {
        let with = |transport: &str| {
            train(&format!("{axes} {transport}"), &format!("{axes} | optim.lr=1e-3 mesh.transport={transport}"))
        };
        let wide = loss(&with("f32"));
        for transport in ["bf16", "f16"] {
            let narrow = with(transport);
            let apart = (loss(&narrow) / wide - 1.0).abs();
            assert!(apart > 0.0 && apart < 1e-4, "{axes} {transport}: {apart:e}");
            assert_eq!(metric(&narrow, "skipped"), (transport == "f16").then_some(0.0));
        }
    }
    let large = train("overflow", "data = 2 | mesh.transport=f16 train.loss_scale=16777216");
    let (skipped, scale) = (metric(&large, "skipped").unwrap(), metric(&large, "loss_scale").unwrap());
    assert!(skipped >= 1.0 && scale == 2f64.powi(24 - skipped as i32), "{skipped} steps skipped, scale {scale}");
    assert!(loss(&large).is_finite());
    // On one device nothing crosses, and nothing is scaled.
    assert_eq!(metric(&train("one", "| mesh.transport=f16"), "skipped"), None);
}

#[test]
fn what_does_not_fit_a_mesh_is_said() {
    let refused = |mesh: &str, devices: &str| -> String {
        let made = resolved(1, mesh).and_then(|(resolved, data)| {
            Trainer::over(resolved, &Team::open(Some(devices)).unwrap(), data).map(|_| ())
        });
        made.unwrap_err().to_string()
    };
    for (mesh, devices, wanted) in [
        ("data = 2", "cpu", "asks for 2 devices"),
        ("data = 3", "cpu*3", "3 devices can't share evenly"),
        ("tensor = 3", "cpu*3", "does not divide the 4 heads"),
        ("odd = 2", "cpu*2", "splits nothing"),
        ("sequence = 3", "cpu*3", "sequence"),
    ] {
        let message = refused(mesh, devices);
        assert!(message.contains(wanted), "{mesh}: {message}");
    }
    let (resolved, data) = resolved(1, "").unwrap();
    assert!(Trainer::new(resolved, &Device::cpu(), data).is_ok());
}

/// Several processes, here threads with teams of their own, write one run with the bits of one process; a process reads only
/// the samples of its devices.
#[test]
fn processes_make_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let narrow = "data = 2, fsdp = 2 | mesh.transport=bf16";
    for mesh in ["data = 2, fsdp = 2", "data = 4", "fsdp = 2, tensor = 2", narrow] {
        let name = mesh.replace([' ', '=', ',', '|'], "");
        let (one, many) = (dir.path().join(format!("one{name}")), dir.path().join(format!("many{name}")));
        fit(&mut trainer(2, mesh), &one, Existing::Refuse);
        fit(&mut trainer(3, mesh), &one, Existing::Resume(None));
        for (steps, existing) in [(2, Existing::Refuse), (3, Existing::Resume(None))] {
            std::thread::scope(|scope| {
                for end in dnx_runtime::team::transport::channels(2) {
                    let (many, existing) = (&many, existing.clone());
                    scope.spawn(move || {
                        let (resolved, data) = resolved(steps, mesh).unwrap();
                        let own = vec![Device::cpu(), Device::cpu()];
                        let team = Team::across(own, end, std::time::Duration::from_secs(10)).unwrap();
                        fit(&mut Trainer::over(resolved, &team, data).unwrap(), many, existing);
                    });
                }
            });
        }
        let read = |run: &Path| checkpoint::read(&run.join("checkpoints/step-000003")).unwrap();
        let ((a, _), (b, state)) = (read(&one), read(&many));
        assert_eq!((a.model, a.ema, a.optimizer), (b.model, b.ema, b.optimizer), "{mesh}");
        assert_eq!(state.step, 3);
        let records = |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().count();
        assert_eq!(records(&one), records(&many), "{mesh}: only one process writes");
    }
}
