//! The readers on real data sets, where they lie beside the repository.

use dnx_train::data::{DataConfig, DataKind, Dataset, Split};
use std::path::{Path, PathBuf};

fn folder(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if !path.is_dir() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn open(kind: DataKind, path: PathBuf, more: DataConfig) -> Dataset {
    Dataset::open(&DataConfig { kind, path: Some(path), ..more }, 0).unwrap()
}

/// Mean and deviation of all elements on [0, 1], and the number of samples per class.
fn statistics(data: &Dataset) -> (f64, f64, Vec<usize>) {
    let mut sample = vec![0.0; data.elems()];
    let (mut sum, mut squares, mut counts) = (0.0, 0.0, vec![0; data.classes()]);
    for i in 0..data.len() {
        counts[data.get(i, &mut sample).unwrap() as usize] += 1;
        for &v in &sample {
            let v = (v as f64 + 1.0) / 2.0;
            sum += v;
            squares += v * v;
        }
    }
    let n = (data.len() * data.elems()) as f64;
    (sum / n, (squares / n - (sum / n).powi(2)).sqrt(), counts)
}

#[test]
fn mnist() {
    let Some(path) = folder("mnist") else { return };
    let test = open(DataKind::Mnist, path.clone(), DataConfig { split: Split::Test, ..DataConfig::default() });
    assert_eq!((test.len(), test.dims(), test.classes()), (10_000, &[28, 28, 1][..], 10));
    let mut sample = vec![0.0; test.elems()];
    let labels: Vec<u32> = (0..5).map(|i| test.get(i, &mut sample).unwrap()).collect();
    assert_eq!(labels, [7, 2, 1, 0, 4]);
    let (_, _, counts) = statistics(&test);
    assert_eq!(counts, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    let train = open(DataKind::Mnist, path, DataConfig { size: Some(32), ..DataConfig::default() });
    assert_eq!((train.len(), train.dims()), (60_000, &[32, 32, 1][..]));
    let (mean, ..) = statistics(&train);
    // The published mean of the unpadded pictures, thinned by the black border.
    assert!((mean - 0.1307 * (28.0 * 28.0) / (32.0 * 32.0)).abs() < 1e-4, "mean {mean}");
}

#[test]
fn fashion_mnist() {
    let Some(path) = folder("fashion_mnist") else { return };
    let train = open(DataKind::Mnist, path, DataConfig::default());
    let (mean, std, counts) = statistics(&train);
    assert!((mean - 0.28604).abs() < 1e-5 && (std - 0.35302).abs() < 1e-5, "mean {mean}, deviation {std}");
    assert_eq!(counts, [6000; 10]);
}

#[test]
fn cifar10() {
    let Some(path) = folder("cifar10") else { return };
    let train = open(DataKind::Cifar10, path.clone(), DataConfig::default());
    assert_eq!((train.len(), train.dims()), (20_000, &[32, 32, 3][..]));
    let (first, second) = (
        [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981],
        [984, 1007, 1010, 995, 1010, 988, 1008, 1026, 987, 985],
    );
    let both: Vec<usize> = first.iter().zip(second).map(|(a, b)| a + b).collect();
    assert_eq!(statistics(&train).2, both);
    let test = open(DataKind::Cifar10, path, DataConfig { split: Split::Test, ..DataConfig::default() });
    assert_eq!(statistics(&test).2, [1000; 10]);
    assert_eq!(test.class_names()[3], "cat");
    let mut sample = vec![0.0; test.elems()];
    assert_eq!(test.get(0, &mut sample).unwrap(), 3, "the first test picture is a cat");
}

#[test]
fn folders_of_photographs() {
    let Some(path) = folder("sign_digits") else { return };
    let more = DataConfig { size: Some(32), ..DataConfig::default() };
    let data = open(DataKind::Images, path, more);
    assert_eq!((data.len(), data.dims()), (300, &[32, 32, 3][..]));
    assert_eq!(data.class_names(), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    let batch = data.batch(0, 8).unwrap();
    assert!(batch.samples.iter().all(|v| (-1.0..=1.0).contains(v)));
    let spread = batch.samples.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    assert!(spread.1 - spread.0 > 0.5, "flat pictures: {spread:?}");
}
