//! NumPy's `.npy` (one array) and `.npz` (a zip of them, stored), so that samples are read where people work.

use dnx_ir::{Array, DType};

/// An array as `.npy`, format version 1.0.
pub fn npy(array: &Array) -> Vec<u8> {
    let kind = match array.dtype() {
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::F64 => "<f8",
        DType::I32 => "<i4",
        DType::U32 => "<u4",
        DType::Bool => "|b1",
        // NumPy has no bfloat16: its bits are kept.
        DType::BF16 => "<u2",
    };
    let dims: String = array.dims().iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Data begins at a multiple of 64, after magic, version, length and the header's newline.
    let unpadded = 10 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(array.bytes());
    out
}

/// Named arrays as `.npz`: a zip archive without compression.
pub fn npz(arrays: &[(&str, &Array)]) -> Vec<u8> {
    let (mut out, mut directory) = (vec![], vec![]);
    for (name, array) in arrays {
        let (name, data) = (format!("{name}.npy"), npy(array));
        let mut crc = flate2::Crc::new();
        crc.update(&data);
        // Version needed 2.0, no flags, stored, 1 January 1980; then checksum, sizes, name.
        let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        fields.extend(crc.sum().to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        let offset = out.len() as u32;
        out.extend(b"PK\x03\x04");
        out.extend(&fields);
        out.extend(name.as_bytes());
        out.extend(&data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&fields);
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, length, count) = (out.len() as u32, directory.len() as u32, arrays.len() as u16);
    out.extend(directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_bytes_are_numpys_own() {
        // What numpy.save writes for np.arange(6, dtype=np.float32).reshape(2, 3), but for trailing spaces.
        let bytes = npy(&Array::f32([2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        assert_eq!((bytes.len() - 24) % 64, 0);
        let header = String::from_utf8(bytes[10..bytes.len() - 24].to_vec()).unwrap();
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, ), }"), "{header}");
        assert!(header.ends_with(" \n"));
        assert_eq!(&bytes[bytes.len() - 4..], 5f32.to_le_bytes());
        let scalar = npy(&Array::u32([], &[7]));
        assert!(String::from_utf8_lossy(&scalar).contains("'shape': ()"));
    }

    #[test]
    fn npz_is_a_zip_whose_directory_points_at_its_members() {
        let (a, b) = (Array::f32([1], &[1.0]), Array::u32([2], &[3, 4]));
        let zip = npz(&[("samples", &a), ("seeds", &b)]);
        let end = zip.len() - 22;
        assert_eq!(&zip[end..end + 4], b"PK\x05\x06");
        let word = |at: usize| u32::from_le_bytes(zip[at..at + 4].try_into().unwrap()) as usize;
        let mut at = word(end + 16);
        for (name, array) in [("samples.npy", &a), ("seeds.npy", &b)] {
            assert_eq!(&zip[at..at + 4], b"PK\x01\x02");
            let local = word(at + 42);
            assert_eq!(&zip[local..local + 4], b"PK\x03\x04");
            assert_eq!(&zip[local + 30..local + 30 + name.len()], name.as_bytes());
            let data = local + 30 + name.len();
            assert_eq!(&zip[data..data + word(local + 18)], npy(array));
            assert_eq!(word(local + 14), word(at + 16), "checksums");
            at += 46 + name.len();
        }
        assert_eq!(at, end);
    }
}
