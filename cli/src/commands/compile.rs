//! `dnx compile`.

use super::{mesh_setting, open_device, open_devices, print};
use crate::args::{CompileArgs, Emit, ProgramKind, StatsFormat};
use dnx::codegen::exec::Executable;
use dnx::codegen::stats::Stats;
use dnx::codegen::{Compiled, Dump, GpuLimits, Options, Precision, Stage, Target, Wire, compile_with, emit};
use dnx::ir::Func;
use dnx::models::sample::forward_program;
use dnx::models::step::TrainProgram;
use dnx::models::{Layout, ParamSpec};
use dnx::runtime::DeviceKind;
use dnx::train::config::{Config, Resolved, read_source};
use dnx::train::data::Dataset;
use dnx::train::files::{create_folder, refuse_existing, write_atomic};
use dnx::train::plan::{Here, Machine, Plan};
use dnx::train::trainer::{build_loss, build_step};
use dnx::train::{Error, Result};
use std::path::Path;

/// What is compiled, and the texts of the stages before the compiler's own.
struct Input {
    func: Func,
    donate: Vec<(usize, usize)>,
    parameters: u64,
    trainable: u64,
    stages: Vec<(Stage, Func)>,
    forward: Option<Forward>,
    precision: Precision,
    wire: Wire,
}

/// What `--dump-ir=jvp` differentiates: a loss, by its parameters.
struct Forward {
    func: Func,
    wrt: Vec<usize>,
}

pub fn run(args: &CompileArgs) -> Result<()> {
    let stage = match args.dump_ir.as_deref() {
        Some("help") => return print(&Stage::help()),
        Some(name) => Some(stage_of(name)?),
        None => None,
    };
    if let Some(machine) = &args.plan {
        return plan(args, machine);
    }
    let input = read(args)?;
    let options = match &args.device {
        Some(device) => open_device(Some(device))?.options(),
        // Shaders are what most look for, and no driver is needed to write them.
        None => Options::new(Target::Gpu(GpuLimits::default())),
    };
    // What is recomputed is decided while the derivative is made, so at that stage the program is that before it.
    let recorded = if stage == Some(Stage::Remat) { Some(Stage::Partition) } else { stage };
    let mut dump = recorded.map_or(Dump::none(), |s| Dump::of(&[s]));
    for (stage, func) in &input.stages {
        dump.record(*stage, || func.to_string());
    }
    if let (true, Some(forward)) = (dump.wants(Stage::Jvp), &input.forward) {
        let derivative = dnx::autodiff::jvp(&forward.func, &forward.wrt)?;
        dump.record(Stage::Jvp, || derivative.to_string());
    }
    let options = options.with_donate(&input.donate).with_precision(input.precision).with_wire(input.wire);
    let compiled = compile_with(&input.func, &options, true, &mut dump)?;
    let stats = Stats::of(&compiled.exec, input.parameters, input.trainable);
    let mut output = Output { args, printed: String::new() };
    if let (Some(stage), Some(recorded)) = (stage, recorded) {
        let text = dump.text(recorded).ok_or_else(|| {
            Error::Usage(format!(
                "--dump-ir={stage}: this program does not pass through that stage ({})",
                stage.about()
            ))
        })?;
        output.put(&format!("{stage}.{}", extension(stage)), text.as_bytes())?;
    }
    if args.explain_fusion {
        let mut text = compiled.reasons.join("\n");
        text.push('\n');
        output.put("fusion.txt", text.as_bytes())?;
    }
    if let Some(form) = args.emit {
        emit_to(form, &compiled, &mut output)?;
    }
    match args.stats {
        Some(StatsFormat::Json) => output.put("stats.json", (stats.json() + "\n").as_bytes())?,
        Some(StatsFormat::Table) => output.printed.push_str(&stats.table()),
        None if output.printed.is_empty() && args.out.is_none() => output.printed.push_str(&summary(&compiled, &stats)),
        None => {}
    }
    print(&output.printed)
}

/// Where results go: files of `--out`, or stdout.
struct Output<'a> {
    args: &'a CompileArgs,
    printed: String,
}

impl Output<'_> {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(folder) = &self.args.out else {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| Error::Usage(format!("{name} is binary; give --out DIR to write it there")))?;
            self.printed.push_str(text);
            return Ok(());
        };
        create_folder(folder)?;
        let path = folder.join(name);
        refuse_existing(&path, self.args.force)?;
        write_atomic(&path, bytes)?;
        self.printed.push_str(&format!("{}\n", path.display()));
        Ok(())
    }
}

fn stage_of(name: &str) -> Result<Stage> {
    Stage::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = Stage::ALL.iter().map(|s| s.name()).collect();
        let close = dnx::train::config::load::closest(name, &known);
        let hint = close.map_or(String::new(), |c| format!("; did you mean `{c}`?"));
        Error::Usage(format!("--dump-ir={name}: there is no such stage{hint} (--dump-ir=help lists them)"))
    })
}

/// Programs that print as IR text parse back; the others are descriptions.
fn extension(stage: Stage) -> &'static str {
    match stage {
        Stage::Fuse | Stage::Kernels | Stage::Schedule | Stage::Memory | Stage::Exec => "txt",
        Stage::Wgsl => "wgsl",
        Stage::Model
        | Stage::Jvp
        | Stage::Grad
        | Stage::Step
        | Stage::Inline
        | Stage::Canonical
        | Stage::Precision
        | Stage::Decompose
        | Stage::Partition
        | Stage::Remat => "dnx",
    }
}

fn read(args: &CompileArgs) -> Result<Input> {
    let path = &args.input;
    match path.extension().and_then(|e| e.to_str()) {
        Some("dnx") => read_text(path),
        Some("toml") => read_config(args),
        _ => Err(Error::Usage(format!("{}: give a configuration (.toml) or a program in text (.dnx)", path.display()))),
    }
}

/// What a step would take on the mesh, on machines that are not at hand.
fn plan(args: &CompileArgs, machine: &str) -> Result<()> {
    let machine = Machine::parse(machine)?;
    let resolved = resolve(args)?;
    let devices = open_devices(args.device.as_deref())?;
    let device = &devices[0];
    let compiled = |resolved: &Resolved| -> Result<(TrainProgram, Executable)> {
        let program = build_step(resolved)?;
        let options = resolved.options(device.options()).with_donate(&program.donate);
        let exec = compile_with(&program.func, &options, false, &mut Dump::none())?.exec;
        Ok((program, exec))
    };
    let alone = Resolved { layout: Layout::single(), ..resolved.clone() };
    let (program, one) = compiled(&alone)?;
    let here = match machine.rates {
        Some(rates) => Here::at(rates),
        // Several cpu devices are on this machine, each with its share of the cores.
        None if device.info().kind == DeviceKind::Cpu => Here::measured(device, devices.len(), &program, &one)?,
        None => Here::measured(device, 1, &program, &one)?,
    };
    let (_, exec) = compiled(&resolved)?;
    let plan = Plan::of(&exec, machine, here, &one);
    print(&plan.table())
}

fn read_text(path: &Path) -> Result<Input> {
    let text = std::fs::read_to_string(path).map_err(Error::io("cannot read", path))?;
    let func = dnx::ir::text::parse(&text).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
    dnx::ir::verify::verify(&func).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
    let stages = [Stage::Model, Stage::Step].map(|s| (s, func.clone())).to_vec();
    let (precision, wire) = (Precision::F32, Wire::F32);
    Ok(Input { func, donate: vec![], parameters: 0, trainable: 0, stages, forward: None, precision, wire })
}

fn resolve(args: &CompileArgs) -> Result<Resolved> {
    let mut sets = args.set.clone();
    if let Some(mesh) = &args.mesh {
        sets.push(mesh_setting(mesh)?);
    }
    let source = read_source(&args.input, &sets)?;
    // A network that says all about itself is compiled without its data at hand.
    match Config::resolve(source.clone(), None) {
        Ok(resolved) => Ok(resolved),
        Err(_) => {
            let raw: Config = source.parse()?;
            let data = Dataset::open(&raw.data, raw.train.seed)?;
            Config::resolve(source, Some(&data))
        }
    }
}

fn read_config(args: &CompileArgs) -> Result<Input> {
    let resolved = resolve(args)?;
    let (config, batch) = (&resolved.config, resolved.batch());
    let (precision, wire) = (config.train.precision, config.mesh.transport);
    let count = |specs: &[ParamSpec]| specs.iter().map(|s| s.elems() as u64).sum::<u64>();
    let specs = config.model.specs()?;
    let parameters = count(&specs);
    let trainable = parameters - specs.iter().filter(|s| !s.trainable).map(|s| s.elems() as u64).sum::<u64>();
    let plain = |func: Func| Input {
        stages: vec![(Stage::Model, func.clone()), (Stage::Step, func.clone())],
        func,
        donate: vec![],
        parameters,
        trainable,
        forward: None,
        precision,
        wire,
    };
    Ok(match args.program {
        ProgramKind::Step => {
            let program = build_step(&resolved)?;
            let stages = vec![
                (Stage::Model, (*program.loss).clone()),
                (Stage::Grad, (*program.grad).clone()),
                (Stage::Step, program.func.clone()),
            ];
            let wrt = (0..program.params.len()).collect();
            let forward = Some(Forward { func: (*program.loss).clone(), wrt });
            Input {
                func: program.func,
                donate: program.donate,
                parameters,
                trainable,
                stages,
                forward,
                precision,
                wire,
            }
        }
        ProgramKind::Loss => plain(build_loss(&resolved)?.func),
        ProgramKind::Forward => plain(forward_program(&config.model, batch, false)?.func),
        ProgramKind::Sample => plain(forward_program(&config.model, batch, config.model.classes() > 0)?.func),
    })
}

fn emit_to(form: Emit, compiled: &Compiled, output: &mut Output) -> Result<()> {
    match form {
        Emit::Dot => output.put("program.dot", emit::func_dot(&compiled.prepared).as_bytes()),
        Emit::Json => {
            let text = emit::executable_json(&compiled.exec).map_err(|e| Error::Usage(format!("--emit json: {e}")))?;
            output.put("program.json", (text + "\n").as_bytes())
        }
        Emit::Wgsl => {
            for (name, wgsl) in shaders(&compiled.exec)? {
                let header = if output.args.out.is_none() { format!("// {name}\n") } else { String::new() };
                output.put(&format!("{name}.wgsl"), format!("{header}{wgsl}\n").as_bytes())?;
            }
            Ok(())
        }
        Emit::Spirv => {
            if output.args.out.is_none() {
                return Err(Error::Usage("--emit spirv writes binary files: give --out DIR".into()));
            }
            for (name, wgsl) in shaders(&compiled.exec)? {
                let words = dnx::codegen::wgsl::spirv(wgsl)?;
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                output.put(&format!("{name}.spv"), &bytes)?;
            }
            Ok(())
        }
    }
}

/// The shaders with names that are stable and tell them apart: kernel hash and stage.
fn shaders(exec: &Executable) -> Result<Vec<(String, &str)>> {
    let mut found = vec![];
    for kernel in &exec.kernels {
        for (i, shader) in kernel.shaders.iter().enumerate() {
            let short = &kernel.hash[..kernel.hash.len().min(16)];
            let stage = if kernel.shaders.len() > 1 { format!(".{i}") } else { String::new() };
            found.push((format!("{short}{stage}"), shader.wgsl.as_str()));
        }
    }
    if found.is_empty() {
        let message = "the cpu device runs kernel IR and has no shaders; leave --device out, or name a GPU";
        return Err(Error::Usage(message.into()));
    }
    Ok(found)
}

fn summary(compiled: &Compiled, stats: &Stats) -> String {
    format!(
        "@{}: {} inputs, {} outputs, {} kernels, {} dispatches, {:.3} Gflop, peak memory {}\n",
        compiled.exec.name,
        compiled.exec.inputs.len(),
        compiled.exec.outputs.len(),
        stats.kernels,
        stats.dispatches,
        stats.flops as f64 / 1e9,
        super::bytes(stats.peak_bytes)
    )
}
