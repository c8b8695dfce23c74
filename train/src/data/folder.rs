//! Folders of pictures: one folder per class, classes numbered in the order of their sorted names. A folder with
//! pictures directly in it is one class. PNG and JPEG; decoded when asked for, cut to the central square and
//! resized. Transparency is ignored.

use super::source::wrong;
use crate::{Error, Result};
use image::imageops::FilterType;
use std::path::{Path, PathBuf};

/// The files of an image folder with their classes.
#[derive(Debug)]
pub struct ImageFolder {
    /// Files, by class, then by name.
    pub files: Vec<PathBuf>,
    /// Class of each file.
    pub labels: Vec<u32>,
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
}

impl ImageFolder {
    /// Lists a folder.
    pub fn open(folder: &Path) -> Result<ImageFolder> {
        if !folder.is_dir() {
            return Err(wrong(folder, "no such folder; name one with --set data.path=FOLDER".into()));
        }
        let entries = sorted_entries(folder)?;
        let mut found = ImageFolder { files: vec![], labels: vec![], classes: vec![] };
        for class_folder in entries.iter().filter(|p| p.is_dir()) {
            let pictures: Vec<PathBuf> = sorted_entries(class_folder)?.into_iter().filter(|p| is_picture(p)).collect();
            if pictures.is_empty() {
                continue;
            }
            let label = found.classes.len() as u32;
            found.classes.push(name_of(class_folder));
            found.labels.extend(pictures.iter().map(|_| label));
            found.files.extend(pictures);
        }
        let direct: Vec<PathBuf> = entries.into_iter().filter(|p| is_picture(p)).collect();
        if found.files.is_empty() && !direct.is_empty() {
            found.classes.push(name_of(folder));
            found.labels = vec![0; direct.len()];
            found.files = direct;
        } else if !direct.is_empty() {
            let message = format!(
                "holds both class folders and {} pictures of no class (first: {}); move those into a folder",
                direct.len(),
                name_of(&direct[0])
            );
            return Err(wrong(folder, message));
        }
        if found.files.is_empty() {
            let message = "holds no .png, .jpg or .jpeg, neither directly nor one folder per class";
            return Err(wrong(folder, message.into()));
        }
        Ok(found)
    }
}

/// Decodes one picture into `[size, size, channels]` bytes: central square, resized with a smooth filter that
/// also averages when it shrinks.
pub fn decode(path: &Path, size: usize, channels: usize) -> Result<Vec<u8>> {
    let reader =
        image::ImageReader::open(path).and_then(|r| r.with_guessed_format()).map_err(Error::io("cannot read", path))?;
    let picture = reader.decode().map_err(|e| wrong(path, format!("cannot be decoded: {e}")))?;
    let side = picture.width().min(picture.height());
    let square = picture.crop_imm((picture.width() - side) / 2, (picture.height() - side) / 2, side, side);
    let sized = if side as usize == size {
        square
    } else {
        square.resize_exact(size as u32, size as u32, FilterType::CatmullRom)
    };
    Ok(if channels == 1 { sized.into_luma8().into_raw() } else { sized.into_rgb8().into_raw() })
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(Error::io("cannot list", folder))?
        .map(|entry| entry.map(|e| e.path()).map_err(Error::io("cannot list", folder)))
        .collect::<Result<_>>()?;
    entries.retain(|p| !name_of(p).starts_with('.'));
    entries.sort();
    Ok(entries)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    path.is_file() && matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &Path, width: u32, height: u32, at: impl Fn(u32, u32) -> [u8; 3]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb(at(x, y))).save(path).unwrap();
    }

    #[test]
    fn classes_are_sorted_folders() {
        let dir = tempfile::tempdir().unwrap();
        save(&dir.path().join("dog/b.png"), 4, 4, |_, _| [1, 2, 3]);
        save(&dir.path().join("dog/a.PNG"), 4, 4, |_, _| [1, 2, 3]);
        save(&dir.path().join("cat/z.jpg"), 4, 4, |_, _| [1, 2, 3]);
        std::fs::write(dir.path().join("cat/notes.txt"), "no picture").unwrap();
        let folder = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(folder.classes, ["cat", "dog"]);
        assert_eq!(folder.labels, [0, 1, 1]);
        assert!(folder.files[1].ends_with("a.PNG"));
    }

    #[test]
    fn the_central_square_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        // Red, green, blue thirds: the central square of a 12 by 4 picture is all green.
        let path = dir.path().join("a.png");
        save(&path, 12, 4, |x, _| [[255, 0, 0], [0, 255, 0], [0, 0, 255]][x as usize / 4]);
        assert_eq!(decode(&path, 4, 3).unwrap(), [0, 255, 0].repeat(16));
        assert_eq!(decode(&path, 2, 3).unwrap(), [0, 255, 0].repeat(4));
        assert_eq!(decode(&path, 2, 1).unwrap().len(), 4);
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ImageFolder::open(dir.path()).unwrap_err().to_string().contains("holds no .png"));
        let path = dir.path().join("broken.png");
        std::fs::write(&path, b"\x89PNG\r\n\x1a\nrubbish").unwrap();
        let error = decode(&path, 8, 3).unwrap_err().to_string();
        assert!(error.contains("broken.png") && error.contains("decoded"), "{error}");
    }
}
