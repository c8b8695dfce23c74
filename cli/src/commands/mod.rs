//! One module per command.

pub mod bench;
pub mod compile;
pub mod devices;
pub mod eval;
pub mod inspect;
pub mod job;
pub mod profile;
pub mod sample;
pub mod train;
pub mod tune;

use dnx::runtime::{Device, Team};
use dnx::train::{Error, Result};
use std::io::Write;

/// Opens the device asked for and says in one line which it is.
pub fn open_device(selector: Option<&str>) -> Result<Device> {
    let device = Device::open(selector)?;
    let info = device.info();
    eprintln!("device: {} ({})", info.name, info.backend);
    Ok(device)
}

/// Opens the devices asked for, at least one, and says which the first is.
pub fn open_devices(selector: Option<&str>) -> Result<Vec<Device>> {
    let devices = Device::open_all(selector)?;
    let info = devices[0].info();
    let more = if devices.len() > 1 { format!(", {} devices", devices.len()) } else { String::new() };
    eprintln!("device: {} ({}){more}", info.name, info.backend);
    Ok(devices)
}

/// The devices of a team that are in this process, in one line.
fn describe(team: &Team) -> String {
    let mut names: Vec<(String, usize)> = vec![];
    for info in team.devices().iter().map(Device::info) {
        let name = format!("{} ({})", info.name, info.backend);
        match names.last_mut().filter(|(last, _)| *last == name) {
            Some((_, count)) => *count += 1,
            None => names.push((name, 1)),
        }
    }
    let shown = names.iter().map(|(name, count)| if *count == 1 { name.clone() } else { format!("{count} x {name}") });
    shown.collect::<Vec<_>>().join(", ")
}

/// Prints results. A reader that went away (`dnx ... | head`) ends the command quietly.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Error::io("cannot write to", "stdout")),
    }
}

/// `--mesh data=2,fsdp=2` as a setting of the configuration.
pub fn mesh_setting(mesh: &str) -> Result<String> {
    let wrong = || Error::Usage(format!("--mesh {mesh}: write axes with their sizes, as data=2,fsdp=2"));
    let mut axes = vec![];
    for axis in mesh.split(',') {
        let (name, size) = axis.split_once('=').ok_or_else(wrong)?;
        let size: usize = size.trim().parse().map_err(|_| wrong())?;
        if name.trim().is_empty() || size == 0 {
            return Err(wrong());
        }
        axes.push(format!("{} = {size}", name.trim()));
    }
    Ok(format!("mesh.axes={{ {} }}", axes.join(", ")))
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// A count with thousands separated.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}
