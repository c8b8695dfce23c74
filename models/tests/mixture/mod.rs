//! The law that solvers are measured on.

use dnx_models::gmm::{Component, Gmm};
use dnx_models::process::{Process, ProcessConfig};
use dnx_models::sample::{Denoiser, Estimate, Grid, SampleNoise, Sampler, sample};

/// Three normal laws in the plane.
pub fn mixture() -> Gmm {
    let c = |weight, x, y, std| Component { weight, mean: vec![x, y], std };
    Gmm { components: vec![c(0.5, 0.8, 0.2, 0.3), c(0.3, -0.6, 0.5, 0.25), c(0.2, -0.2, -0.9, 0.4)] }
}

/// A process by its configuration.
pub fn process(text: &str) -> Process {
    toml::from_str::<ProcessConfig>(text).unwrap().resolve().unwrap()
}

/// The mixture's denoiser in f64.
pub fn known<'a>(gmm: &'a Gmm, process: &'a Process, batch: usize) -> Denoiser<'a> {
    Denoiser::known(process, &[batch, gmm.dim()], move |x, level| {
        let mut e = Estimate { x0: vec![], noise: vec![] };
        for x in x.chunks(gmm.dim()) {
            let (x0, noise) = gmm.estimate(x, level);
            e.x0.extend(x0);
            e.noise.extend(noise);
        }
        Ok(e)
    })
}

/// Samples of seeds 0, 1 and so on.
pub fn draw(sampler: &dyn Sampler, process: &Process, grid: &Grid, count: usize) -> Vec<f64> {
    let gmm = mixture();
    let seeds: Vec<u64> = (0..count as u64).collect();
    let mut d = known(&gmm, process, count);
    sample(sampler, &mut d, grid, &mut SampleNoise::new(&seeds, 2), &mut |_, _, _| {}).unwrap()
}
