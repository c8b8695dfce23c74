//! MNIST's idx files, plain or gzipped: `train-images-idx3-ubyte[.gz]` and so on, in one folder.
//! Fashion-MNIST and others in the same layout read alike.
//!
//! An idx file is big-endian: two zero bytes, the element type (0x08 is u8), the number of dims, each dim as u32,
//! then the elements row-major.

use super::source::{read_maybe_gzipped, wrong};
use super::{Pixels, Split};
use crate::Result;
use std::path::{Path, PathBuf};

/// An idx array of bytes.
#[derive(Debug)]
struct Idx {
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

/// Reads images and labels of a split from a folder of idx files.
pub fn read_folder(folder: &Path, split: Split) -> Result<Pixels> {
    let mut all: Option<Pixels> = None;
    for prefix in split.idx_prefixes() {
        let images = find(folder, prefix, "images-idx3-ubyte")?;
        let labels = find(folder, prefix, "labels-idx1-ubyte")?;
        let part = read_pair(&images, &labels)?;
        match &mut all {
            None => all = Some(part),
            Some(all) => all.append(part, &images)?,
        }
    }
    all.ok_or_else(|| wrong(folder, "no split was asked for".into()))
}

/// Reads one pair of files.
fn read_pair(images: &Path, labels: &Path) -> Result<Pixels> {
    let pictures = read(images, 3)?;
    let classes = read(labels, 1)?;
    let [count, height, width] = pictures.dims[..] else { unreachable!("read checks the number of dims") };
    if classes.dims[0] != count {
        let message = format!(
            "holds {} labels, but {} holds {count} images; the two files must come from the same set",
            classes.dims[0],
            images.display()
        );
        return Err(wrong(labels, message));
    }
    Ok(Pixels { dims: [height, width, 1], bytes: pictures.bytes, labels: classes.bytes })
}

/// The file `PREFIX-NAME[.gz]` of a folder; dots in place of the first dash occur too.
fn find(folder: &Path, prefix: &str, name: &str) -> Result<PathBuf> {
    let plain = format!("{prefix}-{name}");
    let dotted = plain.replace("-idx", ".idx");
    let candidates = [plain.clone(), format!("{plain}.gz"), dotted.clone(), format!("{dotted}.gz")];
    if let Some(found) = candidates.iter().map(|c| folder.join(c)).find(|p| p.is_file()) {
        return Ok(found);
    }
    let message = if folder.is_dir() {
        format!("has no {plain} (or {plain}.gz); put the four idx files of the set there")
    } else {
        "no such folder; put the four idx files of the set (train-images-idx3-ubyte.gz ...) there, \
         or name another with --set data.path=FOLDER"
            .to_string()
    };
    Err(wrong(folder, message))
}

fn read(path: &Path, rank: usize) -> Result<Idx> {
    let file = read_maybe_gzipped(path)?;
    let magic = [0, 0, 8, rank as u8];
    if file.len() < 4 || file[..4] != magic {
        let found = file.iter().take(4).map(|b| format!("{b:02x}")).collect::<String>();
        return Err(wrong(
            path,
            format!(
                "is not an idx file of {rank} dims of bytes: it begins with {found:?}, expected \"{}\"",
                magic.map(|b| format!("{b:02x}")).concat()
            ),
        ));
    }
    let header = 4 + 4 * rank;
    if file.len() < header {
        return Err(wrong(path, format!("is truncated: {} bytes where the header alone has {header}", file.len())));
    }
    let dims: Vec<usize> = (0..rank)
        .map(|d| {
            let at = 4 + 4 * d;
            u32::from_be_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]) as usize
        })
        .collect();
    let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let expected = elements.and_then(|n| n.checked_add(header));
    if expected != Some(file.len()) {
        let truncated = expected.is_none_or(|n| n > file.len());
        let expected = expected.map_or("more than memory holds".to_string(), |n| n.to_string());
        return Err(wrong(
            path,
            format!(
                "is {}: its header announces {dims:?}, {expected} bytes in all, and it has {}; fetch it again",
                if truncated { "truncated" } else { "too long" },
                file.len()
            ),
        ));
    }
    Ok(Idx { dims, bytes: file[header..].to_vec() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    pub(crate) fn encode(dims: &[usize], bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|&d| out.extend((d as u32).to_be_bytes()));
        out.extend(bytes);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        std::fs::write(folder.join(name), bytes).unwrap();
    }

    #[test]
    fn reads_plain_and_gzipped_and_both_splits() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "train-images-idx3-ubyte", &encode(&[2, 2, 3], &(0..12).collect::<Vec<u8>>()));
        write(dir.path(), "train-labels-idx1-ubyte.gz", &gzip(&encode(&[2], &[7, 3])));
        write(dir.path(), "t10k-images-idx3-ubyte.gz", &gzip(&encode(&[1, 2, 3], &[9; 6])));
        write(dir.path(), "t10k-labels-idx1-ubyte", &encode(&[1], &[1]));
        let train = read_folder(dir.path(), Split::Train).unwrap();
        assert_eq!((train.dims, train.labels.as_slice()), ([2, 3, 1], &[7, 3][..]));
        assert_eq!(train.bytes, (0..12).collect::<Vec<u8>>());
        let all = read_folder(dir.path(), Split::All).unwrap();
        assert_eq!(all.labels, [7, 3, 1]);
        assert_eq!(all.bytes[12..], [9; 6]);
    }

    #[test]
    fn refuses_with_file_name_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let message = |split| read_folder(dir.path(), split).unwrap_err().to_string();
        assert!(message(Split::Train).contains("train-images-idx3-ubyte"));

        write(dir.path(), "train-images-idx3-ubyte", &encode(&[2, 2, 3], &[0; 11]));
        write(dir.path(), "train-labels-idx1-ubyte", &encode(&[2], &[7, 3]));
        let text = message(Split::Train);
        assert!(text.contains("truncated") && text.contains("28 bytes in all") && text.contains("it has 27"), "{text}");

        write(dir.path(), "train-images-idx3-ubyte", &encode(&[2, 12], &[0; 24]));
        assert!(message(Split::Train).contains("begins with \"00000802\", expected \"00000803\""));

        write(dir.path(), "train-images-idx3-ubyte", &encode(&[3, 1, 1], &[0; 3]));
        let text = message(Split::Train);
        assert!(text.contains("holds 2 labels") && text.contains("holds 3 images"), "{text}");

        let mut broken = gzip(&encode(&[3, 1, 1], &[0; 3]));
        broken.truncate(broken.len() - 9);
        std::fs::remove_file(dir.path().join("train-images-idx3-ubyte")).unwrap();
        write(dir.path(), "train-images-idx3-ubyte.gz", &broken);
        assert!(message(Split::Train).contains("gzip"), "{}", message(Split::Train));

        let nowhere = read_folder(&dir.path().join("nowhere"), Split::Train).unwrap_err().to_string();
        assert!(nowhere.contains("no such folder") && nowhere.contains("data.path"), "{nowhere}");
    }

    #[test]
    fn huge_headers_do_not_overflow() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0, 0, 8, 3];
        bytes.extend([0xff; 12]);
        write(dir.path(), "train-images-idx3-ubyte", &bytes);
        write(dir.path(), "train-labels-idx1-ubyte", &encode(&[0], &[]));
        assert!(read_folder(dir.path(), Split::Train).is_err());
    }
}
