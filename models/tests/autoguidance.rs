//! What guidance does on a tree-shaped mixture with known scores: networks that have learnt it badly, one of them worse.

use dnx_ir::Array;
use dnx_models::gmm::Gmm;
use dnx_models::process::{Preset, Process};
use dnx_models::sample::{Branch, Denoiser, Grid, GridKind, Guidance, Heun, NetworkCall, SampleNoise, sample};

const N: usize = 500;
const STEPS: usize = 24;

fn run(mut denoiser: Denoiser<'_>, process: &Process) -> Vec<f64> {
    let grid = Grid::new(process, GridKind::Karras, STEPS, 1.0).unwrap();
    let seeds: Vec<u64> = (0..N as u64).collect();
    sample(&Heun, &mut denoiser, &grid, &mut SampleNoise::new(&seeds, 2), &mut |_, _, _| {}).unwrap()
}

/// The logarithm of the true density of every sample, in order.
fn scored(tree: &Gmm, process: &Process, x: &[f64]) -> Vec<f64> {
    let mut logs: Vec<f64> = x.chunks(2).map(|x| tree.log_density(x, &process.path.clean())).collect();
    logs.sort_by(f64::total_cmp);
    logs
}

/// Half the difference of the shares that two sets of samples have of the tree's beads, branch by branch.
fn mismatch(tree: &Gmm, a: &[f64], b: &[f64]) -> f64 {
    let shares = |x: &[f64]| {
        let mut shares = vec![0.0; tree.components.len().div_ceil(6)];
        for p in x.chunks(2) {
            let distance = |i: &usize| {
                let m = &tree.components[*i].mean;
                (p[0] - m[0]).powi(2) + (p[1] - m[1]).powi(2)
            };
            let all = 0..tree.components.len();
            let nearest = all.min_by(|i, j| distance(i).total_cmp(&distance(j))).unwrap();
            shares[nearest / 6] += 2.0 / x.len() as f64;
        }
        shares
    };
    shares(a).iter().zip(shares(b)).map(|(a, b)| 0.5 * (a - b).abs()).sum()
}

/// Autoguidance brings samples back to the branches and keeps the branches' shares. Classifier-free guidance brings none
/// back and starves the branches that are near the other class.
#[test]
fn autoguidance_keeps_to_the_branches() {
    let p = Preset::Edm.process();
    let tree = Gmm::tree(Some(true));
    let (own, worse) = (tree.blurred(0.03), tree.blurred(0.09));
    let both = Gmm::tree(None).blurred(0.03);
    let truth = tree.draw(&(0..4000).collect::<Vec<u64>>());
    // Off the branches: less likely than all but one in a hundred of the true samples.
    let least = scored(&tree, &p, &truth)[40];
    let off = |x: &[f64]| scored(&tree, &p, x).iter().filter(|l| **l < least).count() as f64 / N as f64;

    let dims = [N, 2];
    let plain = run(Denoiser::of(&p, &dims, own.model(&p)), &p);
    let auto = run(
        Denoiser::of(&p, &dims, own.model(&p)).with_guide(&p, worse.model(&p)).with_guidance(Guidance::scale(2.0)),
        &p,
    );
    let branches = |call: &NetworkCall<'_>| {
        let mut out = vec![];
        for branch in call.branches {
            let law = if *branch == Branch::Conditional { &own } else { &both };
            out.extend(law.network(&p, &NetworkCall { branches: &[*branch], ..*call })?.to_f32_vec());
        }
        Ok(Array::f32([N * call.branches.len(), 2], &out))
    };
    let cfg = run(Denoiser::new(&p, &dims, branches).with_guidance(Guidance::scale(2.0)), &p);

    let (plain_off, auto_off, cfg_off) = (off(&plain), off(&auto), off(&cfg));
    let (plain_shares, auto_shares, cfg_shares) =
        (mismatch(&tree, &plain, &truth), mismatch(&tree, &auto, &truth), mismatch(&tree, &cfg, &truth));
    println!("off the branches: {plain_off:.3} unguided, {auto_off:.3} autoguided, {cfg_off:.3} cfg");
    println!("shares differ by: {plain_shares:.3} unguided, {auto_shares:.3} autoguided, {cfg_shares:.3} cfg");
    assert!(plain_off > 0.25, "{plain_off}");
    assert!(auto_off < 0.45 * plain_off, "{auto_off} after {plain_off}");
    assert!(cfg_off > 2.0 * auto_off, "{cfg_off} {auto_off}");
    assert!(auto_shares < plain_shares + 0.03, "{auto_shares} {plain_shares}");
    assert!(cfg_shares > 2.0 * auto_shares, "{cfg_shares} {auto_shares}");
}
