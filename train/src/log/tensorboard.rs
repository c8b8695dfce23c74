//! TensorBoard event files.
//!
//! A file is a sequence of records: length (u64), masked CRC-32C of the length, bytes, masked CRC-32C of the
//! bytes, all little-endian. Each record is an `Event` message in Protocol Buffers encoding; the few fields used
//! here are encoded by hand: `wall_time` = 1 (double), `step` = 2, `file_version` = 3, `summary` = 5,
//! `session_log` = 7; a summary's `value` = 1 with `tag` = 1, `simple_value` = 2 (float) and `image` = 4; an
//! image's `height` = 1, `width` = 2, `colorspace` = 3, `encoded_image_string` = 4.

use crate::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An open event file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a new event file in `folder`. With `resume`, readers are told to forget what earlier files of the
    /// run say about later steps.
    pub fn create(folder: &Path, resume: Option<u64>) -> Result<EventWriter> {
        let name = format!("events.out.tfevents.{}.{}.dnx", now() as u64, std::process::id());
        let path = folder.join(name);
        let file = File::create(&path).map_err(Error::io("cannot create", &path))?;
        let mut writer = EventWriter { path, file };
        let mut version = Message::default();
        version.bytes(3, b"brain.Event:2");
        writer.event(0, version)?;
        if let Some(step) = resume {
            let mut start = Message::default();
            start.varint(1, 1);
            let mut event = Message::default();
            event.bytes(7, &start.0);
            writer.event(step + 1, event)?;
        }
        Ok(writer)
    }

    /// Logs scalars of a step.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (name, value) in scalars {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.float(2, *value as f32);
            summary.bytes(1, &entry.0);
        }
        self.summary(step, summary)
    }

    /// Logs an encoded RGB picture of a step.
    pub fn image(&mut self, step: u64, name: &str, png: &[u8], width: u32, height: u32) -> Result<()> {
        let mut image = Message::default();
        image.varint(1, height as u64);
        image.varint(2, width as u64);
        image.varint(3, 3);
        image.bytes(4, png);
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes());
        entry.bytes(4, &image.0);
        let mut summary = Message::default();
        summary.bytes(1, &entry.0);
        self.summary(step, summary)
    }

    fn summary(&mut self, step: u64, summary: Message) -> Result<()> {
        let mut event = Message::default();
        event.bytes(5, &summary.0);
        self.event(step, event)
    }

    fn event(&mut self, step: u64, rest: Message) -> Result<()> {
        let mut event = Message::default();
        event.double(1, now());
        event.varint(2, step);
        event.0.extend(rest.0);
        self.file.write_all(&frame(&event.0)).map_err(Error::io("cannot write", &self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A record around these bytes.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(bytes.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(bytes);
    out.extend(masked_crc(bytes).to_le_bytes());
    out
}

/// A Protocol Buffers message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire: u64) {
        self.raw(field << 3 | wire);
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw(value.len() as u64);
        self.0.extend(value);
    }
}

/// CRC-32C, rotated and offset as the record format asks.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with the Castagnoli polynomial, reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &b| crc >> 8 ^ TABLE[((crc ^ b as u32) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_known_answers() {
        // The check value of CRC-32C, and the vectors of RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// A field of a message.
    #[derive(Debug, PartialEq)]
    enum Field {
        Varint(u64),
        Double(f64),
        Float(f32),
        Bytes(Vec<u8>),
    }

    /// Reads a message back, independently of how it was written.
    fn parse(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= ((byte & 0x7f) as u64) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut fields = vec![];
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let take = |bytes: &mut &[u8], n: usize| {
                let (head, tail) = bytes.split_at(n);
                *bytes = tail;
                head.to_vec()
            };
            let field = match key & 7 {
                0 => Field::Varint(varint(&mut bytes)),
                1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
                2 => {
                    let n = varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, n))
                }
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, field));
        }
        fields
    }

    fn events(folder: &Path) -> Vec<Vec<(u64, Field)>> {
        let path = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let (mut at, mut events) = (0, vec![]);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked_crc(&bytes[at..at + 8]));
            assert_eq!(word(at + 12 + n), masked_crc(&bytes[at + 12..at + 12 + n]));
            events.push(parse(&bytes[at + 12..at + 12 + n]));
            at += n + 16;
        }
        assert_eq!(at, bytes.len());
        events
    }

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), Some(299)).unwrap();
        writer.scalars(300, &[("loss".into(), 0.25), ("lr".into(), 1e-3)]).unwrap();
        writer.image(300, "samples", b"not really a png, but long enough to need a two-byte length: 0123456789012345678901234567890123456789012345678901234567890123456789", 64, 32).unwrap();
        let events = events(dir.path());
        assert_eq!(events.len(), 4);
        for event in &events {
            assert!(matches!(event[0], (1, Field::Double(t)) if t > 1e9));
        }
        assert_eq!(events[0][2], (3, Field::Bytes(b"brain.Event:2".to_vec())));
        assert_eq!(events[1][1..], [(2, Field::Varint(300)), (7, Field::Bytes(vec![8, 1]))]);
        assert_eq!(events[2][1], (2, Field::Varint(300)));
        let (5, Field::Bytes(summary)) = &events[2][2] else { panic!("no summary") };
        let values = parse(summary);
        let scalar = |i: usize| match &values[i] {
            (1, Field::Bytes(value)) => parse(value),
            other => panic!("{other:?}"),
        };
        assert_eq!(scalar(0), [(1, Field::Bytes(b"loss".to_vec())), (2, Field::Float(0.25))]);
        assert_eq!(scalar(1), [(1, Field::Bytes(b"lr".to_vec())), (2, Field::Float(1e-3))]);
        let (5, Field::Bytes(summary)) = &events[3][2] else { panic!("no summary") };
        let (1, Field::Bytes(value)) = &parse(summary)[0] else { panic!("no value") };
        let (4, Field::Bytes(image)) = &parse(value)[1] else { panic!("no image") };
        let image = parse(image);
        assert_eq!(image[..3], [(1, Field::Varint(32)), (2, Field::Varint(64)), (3, Field::Varint(3))]);
        assert!(matches!(&image[3], (4, Field::Bytes(png)) if png.len() > 127));
    }
}
