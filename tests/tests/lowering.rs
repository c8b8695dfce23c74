//! Compiled programs against the reference: random functions and their gradients, fused and op by op, run by the
//! kernel interpreter.

use dnx_tests::differential::{check, check_gradients, interpreted};
use dnx_tests::random_graph::Config;

#[test]
fn pointwise() {
    check(&interpreted, 0..40, &Config::pointwise(), 1e-5);
}

#[test]
fn views() {
    check(&interpreted, 0..40, &Config { views: true, ..Config::pointwise() }, 1e-5);
}

#[test]
fn reductions() {
    check(&interpreted, 0..40, &Config { reduce: true, views: true, ..Config::pointwise() }, 2e-5);
}

#[test]
fn contractions() {
    check(&interpreted, 0..40, &Config { dot: true, conv: true, ints: false, ..Config::pointwise() }, 2e-5);
}

#[test]
fn indices_and_randomness() {
    check(&interpreted, 0..40, &Config { index: true, random: true, ..Config::pointwise() }, 2e-5);
}

#[test]
fn everything() {
    check(&interpreted, 0..60, &Config { ops: 24, ..Config::default() }, 3e-5);
}

#[test]
fn half() {
    check(&interpreted, 0..40, &Config { half: true, ..Config::default() }, 2e-2);
}

#[test]
fn gradients() {
    check_gradients(&interpreted, 200..230, &Config { scalar_first: true, ..Config::smooth() }, 1e-4);
}

/// Thousands of programs; minutes. `cargo test -p dnx-tests --test lowering -- --ignored`
#[test]
#[ignore = "thousands of random programs: minutes"]
fn deep() {
    let half = Config { half: true, ..Config::default() };
    let results = [(Config::default(), 3e-5), (Config { ops: 32, ..Config::default() }, 5e-5), (half, 2e-2)]
        .map(|(cfg, tolerance)| std::panic::catch_unwind(|| check(&interpreted, 1000..2000, &cfg, tolerance)));
    assert!(results.iter().all(Result::is_ok));
}
