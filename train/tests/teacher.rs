//! Learning from a trained network: what is loaded, where training starts, what a checkpoint holds.

use dnx_runtime::Device;
use dnx_train::config::{Config, Resolved, Source};
use dnx_train::data::Dataset;
use dnx_train::run::{Existing, RunFolder};
use dnx_train::trainer::build_loss;
use dnx_train::{FitOptions, Trainer, teacher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const BASE: &str = "[model]\nkind = \"mlp\"\nhidden = 16\nlayers = 2\ntime_width = 8\nclasses = 2\n\
                    [data]\nkind = \"two_moons\"\nbatch = 16\n[train]\nsteps = 4\nsample_every = 0\ncheckpoint_every = 0\n\
                    [log]\ntensorboard = false\n[process]\n";

fn resolved(text: &str) -> Result<(Resolved, Arc<Dataset>), dnx_train::Error> {
    let source = Source::new("test.toml", text, &[])?;
    let raw: Config = source.parse()?;
    let data = Arc::new(Dataset::open(&raw.data, 0)?);
    Ok((Config::resolve(source, Some(&data))?, data))
}

fn trainer(text: &str) -> Result<Trainer, dnx_train::Error> {
    let (resolved, data) = resolved(text)?;
    Trainer::new(resolved, &Device::cpu(), data)
}

fn fit(trainer: &mut Trainer, folder: &Path, existing: Existing) {
    let options = FitOptions { existing: &existing, stop: &AtomicBool::new(false), quiet: true };
    trainer.fit(&RunFolder::at(folder), options).unwrap();
}

#[test]
fn students_start_from_their_teacher_where_its_weights_mean_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let edm = dir.path().join("edm");
    fit(&mut trainer(&format!("{BASE}preset = \"edm\"\n")).unwrap(), &edm, Existing::Refuse);
    let student = |preset: &str, more: &str| {
        format!("{BASE}preset = \"{preset}\"\n[teacher]\npath = \"{}\"\n{more}", edm.display())
    };
    for preset in ["cd", "dmd2"] {
        let t = trainer(&student(preset, "")).unwrap();
        let (r, _) = resolved(&student(preset, "")).unwrap();
        let teacher = teacher::load(&r).unwrap().unwrap();
        let start = teacher::initial(&r, t.program(), Some(&teacher)).unwrap();
        for (spec, array) in t.program().params.iter().zip(&start) {
            let name = spec.name.strip_prefix("train.fake.").unwrap_or(&spec.name);
            let specs = teacher.network.specs().unwrap();
            match specs.iter().position(|s| s.name == name) {
                Some(at) => assert_eq!(array, &teacher.weights[at], "{preset} {}", spec.name),
                None => assert!(spec.name.starts_with("train.head."), "{}", spec.name),
            }
        }
        let other =
            teacher::initial(&resolved(&student(preset, "start = false\n")).unwrap().0, t.program(), Some(&teacher));
        assert_ne!(other.unwrap()[0], start[0]);
    }
    // The loss alone is a function of the teacher's weights too.
    for preset in ["cd", "scd", "dmd2"] {
        let (r, _) = resolved(&student(preset, "")).unwrap();
        let program = build_loss(&r).unwrap();
        let teacher = teacher::load(&r).unwrap().unwrap();
        let of_teacher = program.frozen.iter().filter(|s| s.name.starts_with("teacher."));
        assert_eq!(of_teacher.count(), teacher.weights.len(), "{preset}");
    }
    // A TrigFlow student reads an EDM teacher through its process, and can't take its weights.
    trainer(&student("scd", "")).unwrap();
    let e = trainer(&student("scd", "start = true\n")).err().unwrap().to_string();
    assert!(e.contains("[teacher] start") && e.contains("path"), "{e}");
    let e = trainer(&student("sit", "")).err().unwrap().to_string();
    assert!(e.contains("[teacher] path") && e.contains("regression"), "{e}");
    let e = trainer(&format!("{BASE}preset = \"cd\"\n")).err().unwrap().to_string();
    assert!(e.contains("[teacher] path") && e.contains("not set"), "{e}");
}

/// Fake networks, discriminators, averaged targets: training goes on from a checkpoint as if never interrupted, and
/// its weights are those of the network alone.
#[test]
fn states_of_objectives_survive_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let edm = dir.path().join("edm");
    fit(&mut trainer(&format!("{BASE}preset = \"edm\"\n")).unwrap(), &edm, Existing::Refuse);
    for (name, text) in [
        ("dmd2", format!("preset = \"dmd2\"\n[teacher]\npath = \"{}\"\n", edm.display())),
        ("ct", "preset = \"ct\"\n".to_string()),
        (
            "resampled",
            "preset = \"ddpm\"\nsteps = 50\nresampling = { kind = \"loss_second_moment\", history = 2 }\n".into(),
        ),
        ("edm2", "preset = \"edm2\"\n".into()),
    ] {
        let text = format!("{BASE}{text}");
        let folder = dir.path().join(name);
        let mut whole = trainer(&text).unwrap();
        fit(&mut whole, &folder, Existing::Refuse);
        let saved = whole.checkpoint().unwrap();
        assert!(
            saved.model.iter().chain(&saved.ema).all(|(n, _)| !n.starts_with("train.") && !n.starts_with("teacher."))
        );
        assert_eq!(saved.model.len(), whole.resolved().config.model.specs().unwrap().len(), "{name}");
        let (path, _) = dnx_train::run::find_checkpoint(&folder).unwrap();
        let mut again = trainer(&text).unwrap();
        again.restore(&path).unwrap();
        for step in 4..7 {
            let batch = whole.data().batch(step, 16).unwrap();
            whole.step(&batch).unwrap();
            again.step(&batch).unwrap();
        }
        let (a, b) = (whole.checkpoint().unwrap(), again.checkpoint().unwrap());
        assert_eq!(a.model, b.model, "{name}");
        assert_eq!(a.ema, b.ema, "{name}");
        assert_eq!(a.optimizer, b.optimizer, "{name}");
        assert_eq!(whole.bad_step().unwrap(), None);
    }
}
