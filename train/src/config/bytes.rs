//! Amounts of memory as people write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// An amount of memory: `"24GiB"`, `"24GB"`, `"900 MB"`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Units and what they stand for, the longer names first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let wrong =
            || format!("`{text}` is no amount of memory; write it as \"24GiB\", \"900MB\" or a number of bytes");
        let text = text.trim();
        let lower = text.to_lowercase();
        let unit = UNITS.iter().find(|(name, _)| lower.ends_with(&name.to_lowercase()));
        let (number, factor) = match unit {
            Some((name, factor)) => (&text[..text.len() - name.len()], *factor),
            None => (text, 1),
        };
        let value: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = value * factor as f64;
        // Beyond 2^53 a number of bytes is a slip of the pen.
        if bytes.is_finite() && (1.0..9e15).contains(&bytes) { Ok(Bytes(bytes as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        match UNITS[..4].iter().find(|(_, unit)| n >= *unit) {
            Some((name, unit)) if n.is_multiple_of(*unit) => write!(f, "{} {name}", n / unit),
            Some((name, unit)) => write!(f, "{:.2} {name}", n as f64 / *unit as f64),
            None => write!(f, "{n} B"),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // As it was meant, exactly: text that rounds would move the limit.
        match UNITS[..4].iter().find(|(_, unit)| self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => s.serialize_str(&format!("{}{name}", self.0 / unit)),
            None => s.serialize_u64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an amount of memory, as \"24GiB\" or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Bytes, E> {
                n.to_string().parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Bytes, E> {
                Ok(Bytes(n))
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written() {
        let read = |text: &str| text.parse::<Bytes>().unwrap().0;
        assert_eq!(read("24GiB"), 24 << 30);
        assert_eq!(read("24 gb"), 24_000_000_000);
        assert_eq!(read("1.5MiB"), 3 << 19);
        assert_eq!(read("4096"), 4096);
        for bad in ["", "GiB", "-1", "0", "much", "1e30"] {
            assert!(bad.parse::<Bytes>().unwrap_err().contains("24GiB"), "{bad}");
        }
        assert_eq!([Bytes(3 << 30), Bytes(1_500_000), Bytes(12)].map(|b| b.to_string()), ["3 GiB", "1.43 MiB", "12 B"]);
        let toml = |b| serde_json::to_string(&Bytes(b)).unwrap();
        assert_eq!([toml(6 << 30), toml(1001)], ["\"6GiB\"", "1001"]);
        for n in [6 << 30, 1001, 24_000_000_000] {
            assert_eq!(serde_json::from_str::<Bytes>(&toml(n)).unwrap(), Bytes(n));
        }
    }
}
