//! Times of single steps, by timestamp queries: every command in a pass of its own between two timestamps.

use super::GpuError;
use super::program::{GpuBound, Work, stretches};
use std::time::Duration;

/// Commands per submission; a query set holds two timestamps for each.
const COMMANDS: usize = 64;

impl GpuBound {
    /// Whether the device can tell the times of single steps.
    pub(crate) fn has_timestamps(&self) -> bool {
        self.program.device.shared.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// Runs once and gives the time on the device of each of the executable's `steps` steps.
    ///
    /// # Errors
    /// If the device has failed.
    pub(crate) fn profile(&self, steps: usize) -> Result<Vec<Duration>, GpuError> {
        let shared = &self.program.device.shared;
        let device = &shared.device;
        let mut turn = shared.turn();
        shared.check()?;
        let what = "a profiled run";
        let period = f64::from(shared.queue.get_timestamp_period());
        let mut nanos = vec![0.0; steps];
        for chunk in stretches(&self.work, COMMANDS) {
            if let [Work::Begin(exchange) | Work::Finish(exchange)] = chunk {
                let (what, message) = (exchange.what.clone(), "a device on its own has nobody to meet".to_string());
                return Err(GpuError::Program { what, message });
            }
            let queries = 2 * chunk.len() as u32;
            let bytes = 8 * u64::from(queries);
            let (index, staging) = shared.guarded(what, || {
                let ty = wgpu::QueryType::Timestamp;
                let set = device.create_query_set(&wgpu::QuerySetDescriptor { label: None, ty, count: queries });
                let buffer = |usage| {
                    let mapped_at_creation = false;
                    device.create_buffer(&wgpu::BufferDescriptor {
                        label: None,
                        size: bytes,
                        usage,
                        mapped_at_creation,
                    })
                };
                let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
                let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
                let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                for (i, work) in chunk.iter().enumerate() {
                    let (begin, end) = (2 * i as u32, 2 * i as u32 + 1);
                    let pass = |encoder: &mut wgpu::CommandEncoder, begin, end, work: Option<&Work>| {
                        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                            label: None,
                            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                                query_set: &set,
                                beginning_of_pass_write_index: begin,
                                end_of_pass_write_index: end,
                            }),
                        });
                        if let Some(Work::Dispatch { pipeline, group, grid: [x, y, z], .. }) = work {
                            pass.set_pipeline(&pipeline.pipeline);
                            pass.set_bind_group(0, group, &[]);
                            pass.dispatch_workgroups(*x, *y, *z);
                        }
                    };
                    match work {
                        Work::Dispatch { .. } => pass(&mut encoder, Some(begin), Some(end), Some(work)),
                        Work::Copy { src, dst, .. } => {
                            // A copy is no pass: two empty ones stand around it.
                            pass(&mut encoder, None, Some(begin), None);
                            let (from, to) = (&src.allocation.buffer, &dst.allocation.buffer);
                            encoder.copy_buffer_to_buffer(from, src.offset, to, dst.offset, src.whole_words());
                            pass(&mut encoder, Some(end), None, None);
                        }
                        Work::Begin(_) | Work::Finish(_) => unreachable!("exchanges are no commands"),
                    }
                }
                encoder.resolve_query_set(&set, 0..queries, &resolved, 0);
                encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
                (shared.submit([encoder.finish()]), staging)
            })?;
            staging.map_async(wgpu::MapMode::Read, .., |_| {});
            shared.submitted(&mut turn, index, what)?;
            shared.wait(what)?;
            let failed = |e: wgpu::MapRangeError| GpuError::Driver { what: what.into(), message: e.to_string() };
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).map_err(failed)?);
            for (work, pair) in chunk.iter().zip(ticks.chunks(2)) {
                // Timestamps of some drivers are coarse and may stand still, or step back between passes.
                nanos[work.step()] += pair[1].saturating_sub(pair[0]) as f64 * period;
            }
        }
        Ok(nanos.into_iter().map(|n| Duration::from_nanos(n as u64)).collect())
    }
}
