//! What guidance does, on a tree with known scores: true samples, those of a network that has learnt the right bough
//! badly, the same guided by the tree as a whole (classifier-free), and guided by a worse network (autoguidance).
//!
//! `cargo run --release --example autoguidance -- docs/autoguidance.png`

use dnx::ir::Array;
use dnx::models::gmm::Gmm;
use dnx::models::process::Preset;
use dnx::models::sample::{Branch, Denoiser, Grid, GridKind, Guidance, Heun, NetworkCall, SampleNoise, sample};
use dnx::train::log::picture::{Picture, draw, save_png};
use std::path::PathBuf;

const N: usize = 3000;
/// Centre and half the side of the square that is shown.
const CENTRE: [f64; 2] = [0.55, 0.25];
const REACH: f64 = 0.9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = PathBuf::from(std::env::args().nth(1).unwrap_or("autoguidance.png".into()));
    let process = Preset::Edm.process();
    let grid = Grid::new(&process, GridKind::Karras, 32, 1.0)?;
    let seeds: Vec<u64> = (0..N as u64).collect();
    let tree = Gmm::tree(Some(true));
    let (own, worse, all) = (tree.blurred(0.03), tree.blurred(0.09), Gmm::tree(None).blurred(0.03));
    let truth = tree.draw(&seeds);

    let run = |mut denoiser: Denoiser<'_>| {
        sample(&Heun, &mut denoiser, &grid, &mut SampleNoise::new(&seeds, 2), &mut |_, _, _| {})
    };
    let dims = [N, 2];
    let either = |call: &NetworkCall<'_>| {
        let mut out = vec![];
        for branch in call.branches {
            let law = if *branch == Branch::Conditional { &own } else { &all };
            out.extend(law.network(&process, &NetworkCall { branches: &[*branch], ..*call })?.to_f32_vec());
        }
        Ok(Array::f32([N * call.branches.len(), 2], &out))
    };
    let unguided = run(Denoiser::of(&process, &dims, own.model(&process)))?;
    let cfg = run(Denoiser::new(&process, &dims, either).with_guidance(Guidance::scale(2.0)))?;
    let auto = run(Denoiser::of(&process, &dims, own.model(&process))
        .with_guide(&process, worse.model(&process))
        .with_guidance(Guidance::scale(2.0)))?;

    // Pictures show what their grey points need, round the origin: all of them the same square.
    let shown = |x: &[f64]| [0, 1].map(|i| ((x[i] - CENTRE[i]) / REACH) as f32);
    let inside = |p: &[f32; 2]| p.iter().all(|v| v.abs() < 1.0);
    let grey: Vec<[f32; 2]> = truth.chunks(2).map(shown).filter(inside).chain([[-1.0, -1.0], [1.0, 1.0]]).collect();
    let panels = [&truth, &unguided, &cfg, &auto]
        .map(|x| draw(&x.chunks(2).map(shown).filter(inside).flatten().collect::<Vec<f32>>(), &[2], &grey))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    save_png(&file, &beside(&panels))?;
    println!("{}: true samples, unguided, classifier-free guidance 2, autoguidance 2", file.display());
    Ok(())
}

/// Pictures of one height in a row.
fn beside(panels: &[Picture]) -> Picture {
    let (width, height) = (panels.iter().map(|p| p.width).sum(), panels[0].height);
    let rows =
        (0..height).flat_map(|y| panels.iter().flat_map(move |p| &p.rgb[y * p.width * 3..(y + 1) * p.width * 3]));
    Picture { width, height, rgb: rows.copied().collect() }
}
