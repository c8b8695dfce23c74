//! Errors of GPUs.

/// What went wrong on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no such GPU.
    #[error(
        "no GPU answers to `{selector}`; there are: {}. Check the driver with `vulkaninfo --summary`, or use --device cpu",
        if available.is_empty() { "none".to_string() } else { available.join(", ") }
    )]
    NoAdapter {
        /// What was asked for.
        selector: String,
        /// `backend:name` of those there are.
        available: Vec<String>,
    },
    /// The driver would not open the device.
    #[error("GPU `{device}` can't be opened: {message}. Update its driver, or use another --device")]
    Open {
        /// The device.
        device: String,
        /// wgpu's words.
        message: String,
    },
    /// wgpu refused something: a bug of the compiler or the runtime, never of the model.
    #[error("{what} was refused: {message}. This is a bug of dnx; please report it with this message")]
    Validation {
        /// What was being done.
        what: String,
        /// wgpu's words.
        message: String,
    },
    /// The GPU has no memory left.
    #[error("the GPU has no memory left for {what}. Use a smaller (micro-)batch, or close what else uses the GPU")]
    OutOfMemory {
        /// What was being done, with its bytes.
        what: String,
    },
    /// One thing is larger than the GPU's limit for such things.
    #[error("{what} takes {bytes} bytes; this GPU allows {limit} for one. Use a smaller (micro-)batch")]
    TooLarge {
        /// The allocation or the argument of a kernel.
        what: String,
        /// Its bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A program breaks a rule that the device relies on.
    #[error("{what}: {message}. This is a bug of dnx; please report it with this message")]
    Program {
        /// The program and the step.
        what: String,
        /// The rule.
        message: String,
    },
    /// The driver gave the device up; nothing of its memory can be read any more.
    #[error(
        "GPU `{device}` was lost: {message}. The driver reset it or it was unplugged; start again from the last \
         checkpoint, with a smaller (micro-)batch if a step takes seconds"
    )]
    Lost {
        /// The device.
        device: String,
        /// The driver's words.
        message: String,
    },
    /// The driver failed.
    #[error("{what} failed in the driver: {message}. Update the driver, or use another --device")]
    Driver {
        /// What was being done.
        what: String,
        /// The driver's words.
        message: String,
    },
}

impl GpuError {
    /// What wgpu reports about an action.
    pub(super) fn from_wgpu(what: &str, error: wgpu::Error) -> GpuError {
        let what = what.to_string();
        match error {
            wgpu::Error::OutOfMemory { .. } => GpuError::OutOfMemory { what },
            wgpu::Error::Validation { description, .. } => {
                GpuError::Validation { what, message: one_line(&description) }
            }
            wgpu::Error::Internal { description, .. } => GpuError::Driver { what, message: one_line(&description) },
        }
    }
}

/// wgpu's multi-line descriptions as one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
