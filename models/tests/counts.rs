//! Parameter counts and names against the published ones.

use dnx_models::network::{DitConfig, DitSize, MlpConfig};
use dnx_models::{DataSpec, Network, params};

fn dit(size: DitSize, patch: usize, learn_sigma: bool) -> Network {
    Network::Dit(DitConfig { learn_sigma, ..DitConfig::of_size(size, patch, 32, 4, 1000) })
}

fn count(network: &Network) -> (usize, usize) {
    params::count(&network.specs().unwrap())
}

#[test]
fn dit_counts_are_the_published_ones() {
    use DitSize::*;
    // (size, patch, total with learned variances, its trainable part, total without, its trainable part)
    let table = [
        (S, 2, 32_963_360, 32_865_056, 32_957_200, 32_858_896),
        (S, 4, 32_945_024, 32_920_448, 32_920_384, 32_895_808),
        (S, 8, 33_148_160, 33_142_016, 33_049_600, 33_043_456),
        (B, 2, 130_512_416, 130_315_808, 130_500_112, 130_303_504),
        (B, 4, 130_475_648, 130_426_496, 130_426_432, 130_377_280),
        (B, 8, 130_881_536, 130_869_248, 130_684_672, 130_672_384),
        (L, 2, 458_102_816, 457_840_672, 458_086_416, 457_824_272),
        (L, 4, 458_053_760, 457_988_224, 457_988_160, 457_922_624),
        (L, 8, 458_594_816, 458_578_432, 458_332_416, 458_316_032),
        (XL, 2, 675_129_632, 674_834_720, 675_111_184, 674_816_272),
        (XL, 4, 675_074_432, 675_000_704, 675_000_640, 674_926_912),
        (XL, 8, 675_683_072, 675_664_640, 675_387_904, 675_369_472),
    ];
    for (size, patch, total2, train2, total, train) in table {
        assert_eq!(count(&dit(size, patch, true)), (total2, train2), "{size:?}/{patch} with variances");
        assert_eq!(count(&dit(size, patch, false)), (total, train), "{size:?}/{patch}");
    }
}

#[test]
fn dit_counts_of_other_pictures() {
    let of = |image, channels, classes, learn_sigma, size| {
        let config = DitConfig { learn_sigma, ..DitConfig::of_size(size, 2, image, channels, classes) };
        count(&Network::Dit(config))
    };
    assert_eq!(of(64, 4, 1000, true, DitSize::XL).0, 676_014_368);
    assert_eq!(of(32, 3, 10, false, DitSize::S), (32_573_964, 32_475_660));
    assert_eq!(of(28, 1, 10, false, DitSize::S), (32_544_772, 32_469_508));
}

#[test]
fn dit_names_and_layouts_are_the_published_ones() {
    let specs = dit(DitSize::S, 2, true).specs().unwrap();
    let dims = |name: &str| specs.iter().find(|s| s.name == name).map(|s| s.dims.clone());
    for (name, want) in [
        ("pos_embed", vec![1, 256, 384]),
        ("x_embedder.proj.weight", vec![384, 4, 2, 2]),
        ("x_embedder.proj.bias", vec![384]),
        ("t_embedder.mlp.0.weight", vec![384, 256]),
        ("t_embedder.mlp.2.weight", vec![384, 384]),
        ("y_embedder.embedding_table.weight", vec![1001, 384]),
        ("blocks.0.attn.qkv.weight", vec![1152, 384]),
        ("blocks.0.attn.proj.bias", vec![384]),
        ("blocks.11.mlp.fc1.weight", vec![1536, 384]),
        ("blocks.11.mlp.fc2.weight", vec![384, 1536]),
        ("blocks.11.adaLN_modulation.1.weight", vec![2304, 384]),
        ("final_layer.adaLN_modulation.1.weight", vec![768, 384]),
        ("final_layer.linear.weight", vec![32, 384]),
    ] {
        assert_eq!(dims(name), Some(want), "{name}");
    }
    assert_eq!(specs.len(), 1 + 2 + 4 + 1 + 12 * 10 + 4);
    assert!(specs.iter().all(|s| s.trainable == (s.name != "pos_embed")));
}

#[test]
fn two_moons_network() {
    let data = DataSpec { dims: vec![2], classes: 0 };
    let network = Network::Mlp(MlpConfig::default()).resolve(&data).unwrap();
    assert_eq!(count(&network), (165_634, 165_634));
}

#[test]
fn shapes_that_make_no_sense_are_refused_by_key() {
    let picture = DataSpec { dims: vec![28, 28, 1], classes: 10 };
    let base = DitConfig { size: Some(DitSize::S), ..DitConfig::default() };
    let refused = |config: DitConfig, data: &DataSpec| Network::Dit(config).resolve(data).unwrap_err().to_string();
    let e = refused(DitConfig { patch: 3, ..base.clone() }, &picture);
    assert!(e.starts_with("model.patch") && e.contains("28x28"), "{e}");
    let e = refused(DitConfig { heads: Some(7), ..base.clone() }, &picture);
    assert!(e.starts_with("model.heads") && e.contains("384"), "{e}");
    let e = refused(DitConfig { image: Some(32), ..base.clone() }, &picture);
    assert!(e.starts_with("model.image") && e.contains("28"), "{e}");
    let e = refused(DitConfig { classes: Some(5), ..base.clone() }, &picture);
    assert!(e.starts_with("model.classes"), "{e}");
    let e = refused(DitConfig { size: None, ..base.clone() }, &picture);
    assert!(e.starts_with("model.dim"), "{e}");
    let e = refused(base.clone(), &DataSpec { dims: vec![2], classes: 0 });
    assert!(e.starts_with("model.kind"), "{e}");
    assert_eq!(Network::Dit(base).resolve(&picture).unwrap().sample_dims().unwrap(), [28, 28, 1]);
    let e = Network::Mlp(MlpConfig::default()).resolve(&picture).unwrap_err().to_string();
    assert!(e.starts_with("model.kind"), "{e}");
}

#[test]
fn configuration_is_strict() {
    let ok: Network = toml::from_str("kind = \"dit\"\nsize = \"S\"\npatch = 4\n").unwrap();
    assert!(matches!(ok, Network::Dit(c) if c.patch == 4 && c.size == Some(DitSize::S)));
    let e = toml::from_str::<Network>("kind = \"dit\"\npatches = 4\n").unwrap_err().to_string();
    assert!(e.contains("patches"), "{e}");
    assert!(toml::from_str::<Network>("kind = \"resnet\"\n").is_err());
    let text = toml::to_string(&Network::Mlp(MlpConfig::default())).unwrap();
    assert_eq!(toml::from_str::<Network>(&text).unwrap(), Network::Mlp(MlpConfig::default()));
}
