//! What sampling takes beside the network: run by hand, as timings are no tests.
//!
//! ```text
//! cargo test -p dnx-models --test overhead -- --ignored --nocapture
//! ```

use dnx_codegen::compile;
use dnx_ir::threefry::key;
use dnx_ir::{Array, Type};
use dnx_models::network::DitConfig;
use dnx_models::process::Preset;
use dnx_models::sample::{Denoiser, Generator, Request, SampleConfig, SampleNoise, forward_program, sample};
use dnx_models::{DataSpec, Network, init};
use dnx_runtime::Device;
use std::time::{Duration, Instant};

const BATCH: usize = 16;
/// Evaluations of 32 steps: two each, but for the last.
const EVALUATIONS: u32 = 63;

/// Heun-32 with guidance on the cpu device: as the device makes it by a recording, as many runs of the network's program
/// alone, and with the solver on the host, in alternation. The transformer is that of `configs/mnist_dit.toml`, and a
/// smaller one.
#[test]
#[ignore = "prints what docs/performance.md tells: a timing proves nothing on a busy machine"]
fn heun_with_guidance_beside_its_network() {
    let device = Device::cpu();
    for (dim, depth) in [(64, 2), (128, 4)] {
        let shape = DitConfig { dim: Some(dim), depth: Some(depth), heads: Some(4), patch: 4, ..DitConfig::default() };
        let network = Network::Dit(shape).resolve(&DataSpec { dims: vec![28, 28, 1], classes: 10 }).unwrap();
        let specs = network.specs().unwrap();
        let draw = |s: &dnx_models::ParamSpec| match s.trainable {
            true => init::Init::Normal { std: 0.05 }.draw(&s.dims, key(s.name.len() as u64)),
            false => s.init.draw(&s.dims, key(0)),
        };
        let weights: Vec<Array> = specs.iter().map(draw).collect();
        let program = forward_program(&network, BATCH, true).unwrap();
        let loaded = device.load(compile(&program.func, &device.options()).unwrap().exec).unwrap();
        let mut inputs = device.upload_all(&weights).unwrap();
        let types: Vec<Type> = program.inputs.iter().map(|p| p.ty.clone()).collect();
        inputs.extend(device.zeros_all(&types).unwrap());
        let bound = loaded.bind(&inputs).unwrap();
        let process = Preset::Sit.process();
        let generator = || Generator::new(&device, &network, &process, &weights, BATCH).unwrap();
        let (mut played, mut hosted) = (generator(), generator());
        let config: SampleConfig = toml::from_str("sampler = \"heun\"\nsteps = 32\ncfg = 2.0").unwrap();
        let (seeds, labels) = ((0..BATCH as u64).collect::<Vec<_>>(), vec![3; BATCH]);
        let request = Request { seeds: &seeds, labels: Some(&labels), ..Request::default() };
        let (sampler, grid) = (config.sampler(&process).unwrap(), config.grid(&process).unwrap());
        let mut timed = |what: usize| {
            let began = Instant::now();
            match what {
                0 => drop(played.run(&config, &request, None).unwrap()),
                1 => (0..EVALUATIONS).for_each(|_| bound.run().unwrap()),
                _ => {
                    let model = hosted.conditioned(&labels, 10);
                    let mut d = Denoiser::of(&process, &[BATCH, 28, 28, 1], model).with_guidance(config.guidance());
                    let noise = &mut SampleNoise::new(&seeds, 28 * 28);
                    sample(&*sampler, &mut d, &grid, noise, &mut |_, _, _| {}).unwrap();
                }
            }
            began.elapsed()
        };
        for what in 0..3 {
            timed(what);
        }
        let rounds: Vec<[Duration; 3]> = (0..9).map(|_| [0, 1, 2].map(&mut timed)).collect();
        // Whatever else the machine does only adds: the least of each is nearest to the thing itself.
        let least = |what: usize| rounds.iter().map(|r| r[what]).min().unwrap().as_secs_f64() * 1e3;
        let [device, alone, host] = [0, 1, 2].map(least);
        let beside = |whole: f64| 100.0 * (whole - alone) / whole;
        println!(
            "dim {dim}, depth {depth}: by the device {device:.1} ms, {:.1} % beside the network's {alone:.1} ms; by the host \
             {host:.1} ms, {:.1} %",
            beside(device),
            beside(host)
        );
    }
}
