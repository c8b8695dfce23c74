//! Adapters and devices.

use super::GpuError;
use super::memory::{Allocation, GpuMemory, Staging};
use super::program::Pipeline;
use crate::device::{DeviceInfo, DeviceKind};
use dnx_codegen::kernel::Tile;
use dnx_codegen::{GpuClass, GpuLimits};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Runs that may be in flight before the host waits for the oldest.
const IN_FLIGHT: usize = 16;

/// A GPU that could be opened.
pub(crate) struct GpuAdapter {
    adapter: wgpu::Adapter,
}

/// An open GPU. Clones are the same device.
#[derive(Clone)]
pub(crate) struct GpuDevice {
    pub(super) shared: Arc<Shared>,
}

/// The state of a device.
pub(super) struct Shared {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: GpuLimits,
    /// Whether shaders keep their bounds checks.
    pub(super) checked: bool,
    /// Pipelines by shader text.
    pub(super) pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    fault: Arc<Mutex<Option<GpuError>>>,
    turn: Mutex<Turn>,
    /// How often something was handed to the queue.
    submissions: AtomicU64,
    /// Tiles of cooperative matrices that were tried, and whether they are right.
    trials: Mutex<HashMap<Tile, bool>>,
}

/// What belongs to whoever has the device's turn.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) staging: Staging,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
}

/// Every GPU, discrete ones first, software last; the same GPU behind two interfaces is listed once for each.
pub(crate) fn adapters() -> Vec<GpuAdapter> {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        descriptor.flags = wgpu::InstanceFlags::empty();
        wgpu::Instance::new(descriptor)
    });
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<GpuAdapter> = found.into_iter().map(|adapter| GpuAdapter { adapter }).collect();
    adapters.sort_by_key(|a| a.kind());
    adapters
}

impl GpuAdapter {
    fn kind(&self) -> DeviceKind {
        match self.adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
            wgpu::DeviceType::Cpu => DeviceKind::Software,
            wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => DeviceKind::Other,
        }
    }

    /// `backend:name`, by which it can be selected.
    fn selector(&self) -> String {
        let info = self.adapter.get_info();
        format!("{}:{}", info.backend.to_str(), info.name)
    }

    /// What it is and can do.
    pub(crate) fn info(&self) -> DeviceInfo {
        let info = self.adapter.get_info();
        let limits = gpu_limits(&self.adapter);
        let mut features = Vec::new();
        for (name, feature) in [
            ("f16", wgpu::Features::SHADER_F16),
            ("subgroups", wgpu::Features::SUBGROUP),
            ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
            ("mappable buffers", wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            ("cooperative matrix", wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        ] {
            if self.adapter.features().contains(feature) {
                features.push(name.to_string());
            }
        }
        DeviceInfo {
            name: info.name.clone(),
            kind: self.kind(),
            backend: info.backend.to_str().to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            memory: None,
            features,
            limits: BTreeMap::from([
                ("storage buffers".to_string(), limits.storage_buffers as u64),
                ("binding bytes".to_string(), limits.binding_bytes),
                ("buffer bytes".to_string(), limits.buffer_bytes),
                ("workgroup bytes".to_string(), limits.workgroup_bytes as u64),
                ("invocations".to_string(), limits.max_invocations as u64),
            ]),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// If the driver refuses.
    pub(crate) fn open(&self) -> Result<GpuDevice, GpuError> {
        let name = self.adapter.get_info().name;
        let wanted = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        let matrices = match matrix_edge(&self.adapter) {
            Some(_) => wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            None => wgpu::Features::empty(),
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("dnx"),
            required_features: self.adapter.features() & (wanted | matrices),
            experimental_features: match matrices.is_empty() {
                true => wgpu::ExperimentalFeatures::disabled(),
                // SAFETY: of the experimental features only cooperative matrices are used, in shaders that naga
                // validates and whose results are tried before they count.
                false => unsafe { wgpu::ExperimentalFeatures::enabled() },
            },
            required_limits: self.adapter.limits(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(self.adapter.request_device(&descriptor))
            .map_err(|e| GpuError::Open { device: name.clone(), message: e.to_string() })?;
        let fault: Arc<Mutex<Option<GpuError>>> = Arc::default();
        let first = |fault: &Mutex<Option<GpuError>>, error: GpuError| {
            let mut slot = fault.lock().unwrap_or_else(|p| p.into_inner());
            // A loss explains whatever came before it.
            if slot.is_none() || matches!(error, GpuError::Lost { .. }) {
                *slot = Some(error);
            }
        };
        let (uncaptured, lost, lost_name) = (fault.clone(), fault.clone(), name.clone());
        device.on_uncaptured_error(Arc::new(move |error| {
            first(&uncaptured, GpuError::from_wgpu("work submitted to the GPU", error));
        }));
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the last handle also "loses" the device, and nobody is there to hear of it.
            first(&lost, GpuError::Lost { device: lost_name.clone(), message: format!("{reason:?} {message}") });
        });
        Ok(GpuDevice {
            shared: Arc::new(Shared {
                device,
                queue,
                limits: gpu_limits(&self.adapter),
                checked: cfg!(debug_assertions),
                pipelines: Mutex::default(),
                fault,
                turn: Mutex::default(),
                submissions: AtomicU64::new(0),
                trials: Mutex::default(),
            }),
        })
    }
}

/// The class of an adapter, by its PCI vendor.
fn class(info: &wgpu::AdapterInfo) -> GpuClass {
    match (info.device_type, info.vendor) {
        (wgpu::DeviceType::Cpu, _) => GpuClass::Software,
        (_, 0x10de) => GpuClass::Nvidia,
        (_, 0x1002) => GpuClass::Amd,
        (_, 0x8086) => GpuClass::Intel,
        (_, 0x106b) => GpuClass::Apple,
        // Metal reports no vendor; its GPUs on other machines are past.
        _ if info.backend == wgpu::Backend::Metal => GpuClass::Apple,
        _ => GpuClass::Other,
    }
}

/// The largest square cooperative matrices of `f16`, accumulated in `f32`, that WGSL has a name for.
fn matrix_edge(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed =
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
    if !adapter.features().contains(needed) {
        return None;
    }
    let all = adapter.cooperative_matrix_properties();
    [16, 8].into_iter().find(|&edge| {
        all.iter().any(|p| [p.m_size, p.n_size, p.k_size] == [edge; 3] && p.ab_type == F16 && p.cr_type == F32)
    })
}

/// What the compiler may rely on. Bindings stay below 2 GiB, so that byte offsets fit 31 bits in any driver.
fn gpu_limits(adapter: &wgpu::Adapter) -> GpuLimits {
    let (limits, features, info) = (adapter.limits(), adapter.features(), adapter.get_info());
    let whole_words = |bytes: u64| bytes.min((1 << 31) - 4) & !3;
    GpuLimits {
        class: class(&info),
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        binding_bytes: whole_words(limits.max_storage_buffer_binding_size),
        buffer_bytes: limits.max_buffer_size & !255,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
        max_workgroups_per_dim: limits.max_compute_workgroups_per_dimension,
        subgroup: features
            .contains(wgpu::Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size)),
        f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative_matrix: matrix_edge(adapter),
    }
}

impl GpuDevice {
    /// Opens the first GPU whose `backend:name` contains the selector, in any case; `None`: the first that is not
    /// software.
    ///
    /// # Errors
    /// If there is none, or it can't be opened.
    #[cfg_attr(not(test), expect(dead_code, reason = "the device list of the runtime chooses by position"))]
    pub(crate) fn open(selector: Option<&str>) -> Result<GpuDevice, GpuError> {
        let all = adapters();
        let found = all.iter().find(|a| match selector {
            Some(text) => a.selector().to_lowercase().contains(&text.to_lowercase()),
            None => a.kind() != DeviceKind::Software,
        });
        let Some(adapter) = found else {
            let available = all.iter().map(GpuAdapter::selector).collect();
            return Err(GpuError::NoAdapter { selector: selector.unwrap_or("gpu").to_string(), available });
        };
        adapter.open()
    }

    /// Loses the device, as a driver that resets it does.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.shared.device.destroy();
    }

    /// Whether the other handle is of the same device.
    pub(crate) fn same(&self, other: &GpuDevice) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// How often something was handed to its queue.
    pub(crate) fn submissions(&self) -> u64 {
        self.shared.submissions.load(Ordering::Relaxed)
    }

    /// What to compile for.
    pub(crate) fn limits(&self) -> &GpuLimits {
        &self.shared.limits
    }

    /// Zeroed memory of these sizes, packed in allocations that can each be bound whole, where the sizes allow it.
    ///
    /// # Errors
    /// If a size exceeds what one buffer may have, or there is no memory left.
    pub(crate) fn alloc(&self, bytes: &[u64]) -> Result<Vec<GpuMemory>, GpuError> {
        self.shared.check()?;
        Allocation::pack(&self.shared, bytes)
    }

    /// Replaces the content of a range.
    ///
    /// # Errors
    /// If the device has failed.
    pub(crate) fn write(&self, memory: &GpuMemory, bytes: &[u8]) -> Result<(), GpuError> {
        let _turn = self.shared.turn();
        self.shared.check()?;
        memory.write(&self.shared, bytes)?;
        self.shared.check()
    }

    /// The content of a range; waits for the work that writes it.
    ///
    /// # Errors
    /// If the device has failed: the content would not be what it should.
    pub(crate) fn read(&self, memory: &GpuMemory) -> Result<Vec<u8>, GpuError> {
        let mut turn = self.shared.turn();
        self.shared.check()?;
        let bytes = memory.read(&self.shared, &mut turn.staging)?;
        self.shared.check()?;
        Ok(bytes)
    }
}

impl Shared {
    /// Takes the device's turn.
    pub(super) fn turn(&self) -> MutexGuard<'_, Turn> {
        // What it guards is only kept to be reused: after a panic elsewhere it is still sound.
        self.turn.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// The verdicts on tiles of cooperative matrices.
    pub(super) fn trials(&self) -> MutexGuard<'_, HashMap<Tile, bool>> {
        self.trials.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn fault(&self) -> MutexGuard<'_, Option<GpuError>> {
        self.fault.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// The fault, if there was one. Others than a loss are reported once.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        let mut slot = self.fault();
        match &*slot {
            None => Ok(()),
            Some(lost @ GpuError::Lost { .. }) => Err(lost.clone()),
            Some(_) => Err(slot.take().expect("just seen")),
        }
    }

    /// Does something within error scopes; errors name `what`.
    pub(super) fn guarded<T>(&self, what: &str, action: impl FnOnce() -> T) -> Result<T, GpuError> {
        let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
            .map(|filter| self.device.push_error_scope(filter));
        let value = action();
        let mut errors = Vec::new();
        // Scopes end in the reverse of their order.
        for scope in scopes.into_iter().rev() {
            errors.extend(pollster::block_on(scope.pop()));
        }
        let Some(error) = errors.pop() else {
            return Ok(value);
        };
        // A lost device refuses everything; its loss is the reason to tell, and is heard of by polling.
        let _ = self.device.poll(wgpu::PollType::Poll);
        match &*self.fault() {
            Some(lost @ GpuError::Lost { .. }) => Err(lost.clone()),
            _ => Err(GpuError::from_wgpu(what, error)),
        }
    }

    /// Hands commands to the queue.
    pub(super) fn submit(&self, commands: impl IntoIterator<Item = wgpu::CommandBuffer>) -> wgpu::SubmissionIndex {
        self.submissions.fetch_add(1, Ordering::Relaxed);
        self.queue.submit(commands)
    }

    /// Waits until the queue is empty.
    pub(super) fn wait(&self, what: &str) -> Result<(), GpuError> {
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| GpuError::Driver { what: what.to_string(), message: e.to_string() })?;
        self.check()
    }

    /// Waits until a submission has run, and those before it.
    pub(super) fn wait_for(&self, index: wgpu::SubmissionIndex, what: &str) -> Result<(), GpuError> {
        self.device
            .poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None })
            .map_err(|e| GpuError::Driver { what: what.to_string(), message: e.to_string() })?;
        self.check()
    }

    /// Notes a submission, frees what finished ones held, and waits for the oldest if too many are in flight.
    pub(super) fn submitted(&self, turn: &mut Turn, index: wgpu::SubmissionIndex, what: &str) -> Result<(), GpuError> {
        turn.in_flight.push_back(index);
        let poll = match turn.in_flight.len() > IN_FLIGHT {
            true => wgpu::PollType::Wait { submission_index: turn.in_flight.pop_front(), timeout: None },
            false => wgpu::PollType::Poll,
        };
        self.device.poll(poll).map_err(|e| GpuError::Driver { what: what.to_string(), message: e.to_string() })?;
        self.check()
    }
}
