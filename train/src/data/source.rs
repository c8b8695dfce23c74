//! Reading data files whole, and the shape of their errors.

use crate::{Error, Result};
use std::io::Read;
use std::path::Path;

/// An error about a data file or folder: `PATH: MESSAGE`, or `PATH MESSAGE` where the message is a predicate.
pub fn wrong(path: &Path, message: String) -> Error {
    Error::Data(format!("{}: {message}", path.display()))
}

/// The bytes of a file, unpacked if it is gzipped (by its first two bytes, whatever its name).
pub fn read_maybe_gzipped(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(Error::io("cannot read", path))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len() * 4);
    flate2::read::MultiGzDecoder::new(&bytes[..])
        .read_to_end(&mut out)
        .map_err(|e| wrong(path, format!("gzip data is damaged or truncated ({e}); fetch it again")))?;
    Ok(out)
}
