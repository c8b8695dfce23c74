//! What can go wrong between an executable and its numbers.

use dnx_ir::Type;

/// An error of a device, a buffer or a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device answers to the selector.
    #[error("no device `{selector}`; there are: {}", .available.join(", "))]
    NoDevice {
        /// What was asked for.
        selector: String,
        /// The selectors and names that would do.
        available: Vec<String>,
    },
    /// A text that is no list of devices.
    #[error("`{part}` in the list of devices `{list}`: {why}. A list is written like cpu*4, gpu:0*2 or gpu:0,gpu:1")]
    DeviceList {
        /// The text.
        list: String,
        /// The part of it that is wrong.
        part: String,
        /// What is wrong.
        why: String,
    },
    /// A program was given another number of inputs than it takes.
    #[error("program `{program}` takes {expected} inputs, not {got}")]
    InputCount {
        /// The program.
        program: String,
        /// Inputs it takes.
        expected: usize,
        /// Inputs it was given.
        got: usize,
    },
    /// An input has another type than its port.
    #[error("input {index} (`{port}`) of program `{program}` is {expected}, not {got}")]
    InputType {
        /// The program.
        program: String,
        /// Position of the input.
        index: usize,
        /// Name of the input.
        port: String,
        /// Type of the port.
        expected: Box<Type>,
        /// Type of the buffer.
        got: Box<Type>,
    },
    /// One buffer is given as two inputs of which at least one is donated.
    #[error(
        "inputs `{first}` and `{second}` of program `{program}` share memory, but one of them is donated and would be \
         overwritten; give it a buffer of its own"
    )]
    DonatedTwice {
        /// The program.
        program: String,
        /// Name of one input.
        first: String,
        /// Name of the other.
        second: String,
    },
    /// A buffer is used with a device other than its own.
    #[error("{what} lives on device `{buffer}`, not on `{device}`; upload it there first")]
    DeviceMismatch {
        /// What does not match.
        what: String,
        /// Where it lives.
        buffer: String,
        /// Where it is wanted.
        device: String,
    },
    /// An array does not have the type of the buffer it is written to.
    #[error("an array {got} can't be written to a buffer {expected}")]
    WriteType {
        /// Type of the buffer.
        expected: Box<Type>,
        /// Type of the array.
        got: Box<Type>,
    },
    /// The program, or the buffers, need more memory than the device has.
    #[error(
        "{what} needs {} of memory, device `{device}` has {}; the largest parts: {}. Use a smaller (micro-)batch",
        mib(*.needed), mib(*.available), .largest.join(", ")
    )]
    OutOfMemory {
        /// What needs it.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// The device.
        device: String,
        /// The largest parts, readable.
        largest: Vec<String>,
    },
    /// The executable was made by another version of the compiler.
    #[error("the executable has version {got}, this runtime reads version {expected}; compile the program again")]
    Version {
        /// Version of this runtime.
        expected: u32,
        /// Version of the executable.
        got: u32,
    },
    /// Bytes that are not a serialised executable.
    #[error("these bytes are not an executable: {0}")]
    Decode(String),
    /// An executable could not be serialised.
    #[error("the executable can't be serialised: {0}")]
    Encode(String),
    /// An executable that breaks its own rules, or asks for what this device can't do.
    #[error("program `{program}` can't run on device `{device}`: {reason}")]
    Unsupported {
        /// The program.
        program: String,
        /// The device.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Running a program failed inside a kernel.
    #[error("program `{program}` failed: {reason}")]
    Run {
        /// The program.
        program: String,
        /// What the kernel reported.
        reason: String,
    },
    /// What can't be a team, or is not of one.
    #[error("{0}")]
    Team(String),
    /// One rank of a team failed; the others have stopped.
    #[error("rank {rank} of a team (device `{device}`), in program `{program}`: {source}")]
    Rank {
        /// The rank.
        rank: usize,
        /// Its device.
        device: String,
        /// The program.
        program: String,
        /// What happened to it.
        source: Box<Error>,
    },
    /// Another process of the team has ended the run.
    #[error("{why} (said process {process}, and this one has stopped)")]
    Elsewhere {
        /// The process.
        process: usize,
        /// What went wrong there.
        why: String,
    },
    /// Ranks did not come to a meeting; the others have stopped.
    #[error(
        "rank {} of a team did not come to step {step} (`{what}`) of program `{program}`, where rank {rank} has waited for          {:.1} s. A device that hangs shows so; if it is only slow, give it more time (Team::with_timeout)",
        .ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", "), .waited.as_secs_f64()
    )]
    Missing {
        /// The program.
        program: String,
        /// Who did not come.
        ranks: Vec<usize>,
        /// Who has waited.
        rank: usize,
        /// How long.
        waited: std::time::Duration,
        /// The step of the executable.
        step: usize,
        /// The step's name.
        what: String,
    },
    /// A GPU failed or refused.
    #[error(transparent)]
    Gpu(#[from] crate::gpu::GpuError),
    /// The graph is wrong.
    #[error(transparent)]
    Graph(#[from] dnx_ir::Error),
    /// The compiler refused the graph.
    #[error(transparent)]
    Compile(#[from] dnx_codegen::CompileError),
}

/// A result of the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes, readable.
pub(crate) fn mib(bytes: u64) -> String {
    match bytes {
        b if b >= 10 << 30 => format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / (1u64 << 20) as f64),
        b => format!("{b} bytes"),
    }
}
