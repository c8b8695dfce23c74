//! Devices of dnx: wgpu and cpu.
