//! `dnx devices`.

use super::{bytes, print};
use crate::args::DevicesArgs;
use dnx::runtime::{Device, DeviceKind};
use dnx::train::{Error, Result};

pub fn run(args: &DevicesArgs) -> Result<()> {
    let devices = Device::list();
    if args.json {
        let text = serde_json::to_string_pretty(&devices).map_err(|e| Error::Usage(format!("devices as JSON: {e}")))?;
        return print(&(text + "\n"));
    }
    let mut text = String::new();
    let mut gpu = 0;
    for d in &devices {
        let selector = if d.kind == DeviceKind::Cpu {
            "cpu".to_string()
        } else {
            gpu += 1;
            format!("gpu:{}", gpu - 1)
        };
        let kind = match d.kind {
            DeviceKind::Discrete => "discrete GPU",
            DeviceKind::Integrated => "integrated GPU",
            DeviceKind::Cpu => "processor",
            DeviceKind::Other => "other adapter",
            DeviceKind::Software => "software rasteriser: only by name",
        };
        let memory = d.memory.map_or(String::new(), |m| format!(", {}", bytes(m)));
        text.push_str(&format!("{selector:<6} {} [{}; {}; {kind}{memory}]\n", d.name, d.backend, d.driver));
        if !d.features.is_empty() {
            text.push_str(&format!("       features: {}\n", d.features.join(", ")));
        }
        if !d.limits.is_empty() {
            let limits: Vec<String> = d.limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
            text.push_str(&format!("       limits: {}\n", limits.join(", ")));
        }
    }
    print(&text)
}
