//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use dnx::single::Single;
use std::path::PathBuf;

/// Trains and samples diffusion and flow-matching models on any GPU.
#[derive(Debug, Parser)]
#[command(name = "dnx", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists the devices that programs can run on.
    Devices(DevicesArgs),
    /// Compiles a configuration's program, or a program in text, and shows what became of it.
    Compile(CompileArgs),
    /// Trains a model.
    Train(TrainArgs),
    /// Draws samples from a trained model.
    Sample(Box<SampleArgs>),
    /// Measures a trained model.
    Eval(EvalArgs),
    /// Lists the tensors of a checkpoint or a weights file.
    Inspect(InspectArgs),
    /// Times every kernel of a training step on a device.
    Profile(ProfileArgs),
    /// Finds the quickest tile for every contraction of a training step, and keeps it for this GPU.
    Tune(TuneArgs),
    /// Times ops and models on a device.
    Bench(BenchArgs),
}

/// `dnx devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which program of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgramKind {
    /// The whole training step.
    Step,
    /// The loss.
    Loss,
    /// The network.
    Forward,
    /// A sampler's step.
    Sample,
}

/// What `--emit` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Emit {
    /// The prepared program as a Graphviz graph.
    Dot,
    /// The executable as JSON.
    Json,
    /// The shaders as WGSL, one file per kernel and stage.
    Wgsl,
    /// The shaders as SPIR-V.
    Spirv,
}

/// How `--stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// A table.
    Table,
    /// One JSON object.
    Json,
}

/// `dnx compile`.
#[derive(Debug, Args)]
pub struct CompileArgs {
    /// A configuration (.toml) or a program in text (.dnx).
    pub input: PathBuf,
    /// Which program of the configuration.
    #[arg(long, value_enum, default_value = "step")]
    pub program: ProgramKind,
    /// Prints the program at a stage; `help` lists the stages.
    #[arg(long, value_name = "STAGE", num_args = 0..=1, require_equals = true, default_missing_value = "step")]
    pub dump_ir: Option<String>,
    /// Writes the program in another form, to --out or stdout.
    #[arg(long, value_enum)]
    pub emit: Option<Emit>,
    /// Folder that --emit and --dump-ir write to.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prints costs: parameters, flops, bytes, dispatches, kernels, memory.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub stats: Option<StatsFormat>,
    /// Prints the reason for each fusion and each refusal.
    #[arg(long)]
    pub explain_fusion: bool,
    /// Axes of devices, as data=2,fsdp=2.
    #[arg(long, value_name = "AXES")]
    pub mesh: Option<String>,
    /// Estimates memory, exchange and time of a step on a mesh of machines like this, as link=100Gbit,gpu=60T:3.3T: a link
    /// in bit or B a second, and a device's operations and bytes a second, or gpu=here to measure the device. With --device
    /// cpu*4 four of the devices share this machine's cores.
    #[arg(long, value_name = "MACHINE")]
    pub plan: Option<String>,
    /// Device to compile for; without it, a GPU with common limits.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Changes a key of the configuration, as optim.lr=1e-3.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Replaces existing files.
    #[arg(long)]
    pub force: bool,
}

/// `dnx train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration.
    pub config: PathBuf,
    /// Folder of the run; runs/NAME of the configuration's name without it.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Steps in all.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// cpu, gpu, gpu:1, or part of an adapter's name.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Axes of devices, as data=2,fsdp=2.
    #[arg(long, value_name = "AXES")]
    pub mesh: Option<String>,
    /// Seed of everything random.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Changes a key of the configuration, as optim.lr=1e-3.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Continues the run in the folder, from its newest checkpoint or the one given.
    #[arg(long, value_name = "CKPT", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// Compiles, says what a step costs, and stops.
    #[arg(long)]
    pub dry_run: bool,
    /// Replaces a run that is already in the folder.
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// Shows no progress.
    #[arg(long)]
    pub quiet: bool,
}

/// `dnx sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run's folder (its newest checkpoint) or a checkpoint's.
    #[arg(required_unless_present = "list")]
    pub run: Option<PathBuf>,
    /// Lists samplers with the keys of [sample] they read, grids and kinds of guidance, and stops.
    #[arg(long)]
    pub list: bool,
    /// Sampler: euler, heun, ddim, dpmpp_2m, unipc... (see --list).
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<String>,
    /// Steps of the sampler.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Times the sampler visits: uniform, karras... (see --list).
    #[arg(long, value_name = "NAME")]
    pub grid: Option<String>,
    /// Number of samples.
    #[arg(long, value_name = "N")]
    pub n: Option<u64>,
    /// Seeds, one per sample, as 0-63 or 3,5,8-11.
    #[arg(long, value_name = "LIST", conflicts_with = "n")]
    pub seeds: Option<String>,
    /// Class of all samples; without it, classes take turns.
    #[arg(long, value_name = "K")]
    pub class: Option<u32>,
    /// Scale of classifier-free guidance; 1 is none.
    #[arg(long, value_name = "W")]
    pub cfg: Option<f64>,
    /// What guidance moves away from: cfg, autoguidance.
    #[arg(long, value_name = "NAME")]
    pub guidance: Option<String>,
    /// The second network of autoguidance: a run's folder or a checkpoint's. Implies --guidance autoguidance.
    #[arg(long, value_name = "RUN")]
    pub guide: Option<PathBuf>,
    /// Class that classifier-free guidance moves away from; without it, no class at all.
    #[arg(long, value_name = "K", conflicts_with = "guide")]
    pub negative_label: Option<u32>,
    /// A picture that the samples begin with.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Share of the steps that are taken from --init, 0 to 1 (1 with --mask, 0.5 without).
    #[arg(long, value_name = "S", requires = "init")]
    pub strength: Option<f64>,
    /// A picture that is white where --init is painted over and black where it is kept.
    #[arg(long, value_name = "FILE", requires = "init")]
    pub mask: Option<PathBuf>,
    /// Times that each stretch of ten steps is walked with --mask (RePaint); 1 walks once.
    #[arg(long, value_name = "N", requires = "mask", default_value_t = 1)]
    pub repaint: usize,
    /// Makes samples agree with what is measured of --init, its pixels that --mask keeps or its boxes: replacement
    /// (the default), dps, pinv, tds, steer (see --list).
    #[arg(long, value_name = "NAME", requires = "init")]
    pub method: Option<String>,
    /// Measures the means of boxes of so many pixels' side of --init.
    #[arg(long, value_name = "SIDE", requires = "init", conflicts_with = "mask")]
    pub downsample: Option<usize>,
    /// Particles of a sample, of --method tds and steer; 8 without it.
    #[arg(long, value_name = "N", requires = "method")]
    pub particles: Option<usize>,
    /// Drafts windows of so many steps and verifies each by one evaluation (samplers ddpm and ddim with eta).
    #[arg(long, value_name = "STEPS", conflicts_with_all = ["guide", "init"])]
    pub speculate: Option<usize>,
    /// Times between which guidance acts, as 0.1,0.8.
    #[arg(long, value_name = "LOW,HIGH")]
    pub guidance_interval: Option<String>,
    /// Uses the averaged weights (the default where they are kept).
    #[arg(long, overrides_with = "no_ema")]
    pub ema: bool,
    /// Uses the weights themselves.
    #[arg(long)]
    pub no_ema: bool,
    /// Where to: .png a grid, .npy or .npz the numbers, .gif the trajectory.
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    pub out: PathBuf,
    /// Samples computed at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub batch: u64,
    /// cpu, gpu, gpu:1, or part of an adapter's name; of several, as cpu*2 or gpu:0,gpu:1, each draws some of the samples.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Devices that draw samples side by side, as data=2.
    #[arg(long, value_name = "AXES")]
    pub mesh: Option<String>,
    /// Changes a key of the run's configuration.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Replaces an existing file.
    #[arg(long)]
    pub force: bool,
}

/// What `dnx eval` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Of the run's data under the model, by the probability-flow ODE: bits per dim of pictures, nats of points.
    Likelihood,
}

/// `dnx eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run's folder (its newest checkpoint) or a checkpoint's.
    pub run: PathBuf,
    /// What is measured.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "likelihood")]
    pub metrics: Vec<Metric>,
    /// Samples of the data that are measured, from the first; --set data.split=test takes those that training left.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub n: usize,
    /// Random directions that likelihood is estimated along; 0 takes all there are, which is exact.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub probes: usize,
    /// Steps of the ODE; without it, as many as a tolerance of 1e-4 needs.
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Uses the averaged weights (the default where they are kept).
    #[arg(long, overrides_with = "no_ema")]
    pub ema: bool,
    /// Uses the weights themselves.
    #[arg(long)]
    pub no_ema: bool,
    /// Samples computed at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub batch: usize,
    /// cpu, gpu, gpu:1, or part of an adapter's name.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Changes a key of the run's configuration.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// `dnx inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A run's or checkpoint's folder, or a .safetensors file.
    pub path: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `dnx bench` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Single ops.
    Ops,
    /// Training steps of networks.
    Models,
    /// Both.
    All,
}

/// `dnx profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// The configuration.
    pub config: PathBuf,
    /// cpu, gpu, gpu:1, or part of an adapter's name.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Runs that medians are taken of.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub runs: usize,
    /// Writes a trace that Perfetto (ui.perfetto.dev) opens.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Changes a key of the configuration, as data.batch=16.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Replaces an existing file.
    #[arg(long)]
    pub force: bool,
}

/// `dnx tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// The configuration.
    pub config: PathBuf,
    /// gpu, gpu:1, or part of an adapter's name.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Changes a key of the configuration, as data.batch=16.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `dnx bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is timed.
    #[arg(long, value_enum, default_value = "all")]
    pub suite: Suite,
    /// Times this operation and no suite, as matmul:512x512x512:f16.fb or attention:4x6x1024x64.jvp; may be repeated.
    #[arg(long = "op", value_name = "OP", conflicts_with = "suite")]
    pub ops: Vec<Single>,
    /// How long each row is timed, in seconds.
    #[arg(long, value_name = "S", default_value_t = 1.0, allow_negative_numbers = true)]
    pub seconds: f64,
    /// cpu, gpu, gpu:1, or part of an adapter's name.
    #[arg(long, value_name = "D")]
    pub device: Option<String>,
    /// Writes the results as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Replaces an existing file.
    #[arg(long)]
    pub force: bool,
}
