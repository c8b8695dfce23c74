//! Reading a TOML file with `--set` on top, and saying where it is wrong: file, line, key and the closest known key.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A configuration's text with the settings laid over it, kept so that later errors can name the place.
#[derive(Clone, Debug)]
pub struct Source {
    file: String,
    text: String,
    sets: Vec<(String, Value)>,
    forgotten: Vec<String>,
}

impl Source {
    /// A file's text with `a.b=v` settings in order. Values are TOML; what is not is taken as a string.
    pub fn new(file: &str, text: &str, sets: &[String]) -> Result<Source> {
        let sets = sets.iter().map(|s| parse_set(s)).collect::<Result<_>>()?;
        Ok(Source { file: file.to_string(), text: text.to_string(), sets, forgotten: vec![] })
    }

    /// Leaves out what the file says to this dotted key; a setting for it still counts.
    pub fn forget(&mut self, path: &str) {
        self.forgotten.push(path.to_string());
    }

    /// The configuration.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let mut table: Table = self.text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| self.line_of(span.start));
            Error::Config(format!("{}:{line}: not TOML: {}", self.file, e.message()))
        })?;
        for path in &self.forgotten {
            remove(&mut table, path);
        }
        for (path, value) in &self.sets {
            overlay(&mut table, path, value.clone())?;
        }
        table.clone().try_into().map_err(|e: toml::de::Error| self.explain::<T>(&table, &e))
    }

    /// An error found after reading, about the key of this dotted path.
    pub fn wrong(&self, path: &str, message: &str) -> Error {
        Error::Config(format!("{}: {message}", self.place(path)))
    }

    /// Where a key was given: `--set a.b=v` or `FILE:LINE: [section] key`.
    pub fn place(&self, path: &str) -> String {
        if let Some((_, value)) = self.sets.iter().rev().find(|(p, _)| p == path) {
            return format!("--set {path}={}", compact(value));
        }
        let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
        let at = |line: usize| if line == 0 { self.file.clone() } else { format!("{}:{line}", self.file) };
        match (self.line(path), section) {
            (Some(line), "") => format!("{}: {key}", at(line)),
            (Some(line), _) => format!("{}: [{section}] {key}", at(line)),
            (None, "") => format!("{}: {key}", self.file),
            (None, _) => format!("{}: [{section}] {key}", at(self.line(section).unwrap_or(0))),
        }
    }

    /// The line on which the key of a dotted path stands.
    fn line(&self, path: &str) -> Option<usize> {
        let document = toml_edit::Document::parse(self.text.as_str()).ok()?;
        let mut table: &dyn toml_edit::TableLike = document.as_table();
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            let (found, item) = table.get_key_value(key)?;
            match keys.peek() {
                Some(_) => table = item.as_table_like()?,
                None => {
                    let span = item.as_table().and_then(|t| t.span()).or_else(|| found.span()).or_else(|| item.span());
                    return span.map(|s| self.line_of(s.start));
                }
            }
        }
        None
    }

    fn line_of(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|&&b| b == b'\n').count() + 1
    }

    /// Turns serde's message into one that names the place and the closest known name.
    fn explain<T: DeserializeOwned>(&self, table: &Table, error: &toml::de::Error) -> Error {
        let message = error.message();
        if let Some(field) = message.strip_prefix("missing field ").map(|m| m.trim_matches('`')) {
            let shown = error.to_string();
            let section = shown.lines().find_map(|l| l.strip_prefix("in `")?.strip_suffix('`'));
            return Error::Config(match section {
                Some(section) => format!("{} is missing; give it", self.place(&format!("{section}.{field}"))),
                None => format!("{}: [{field}] is missing; give it", self.file),
            });
        }
        match culprit::<T>(table) {
            Some(path) => self.wrong(&path, &reworded(message)),
            None => Error::Config(format!("{}: {}", self.file, reworded(message))),
        }
    }
}

/// The dotted path of the key that keeps `table` from being read. serde knows the section, and the key too unless
/// the section has a `kind`; there it is the first key without which the message changes.
fn culprit<T: DeserializeOwned>(table: &Table) -> Option<String> {
    let text = toml::to_string(table).ok()?;
    let error = toml::from_str::<T>(&text).err()?;
    let start = error.span()?.start;
    let line = text[start..].find('\n').map_or(text.len(), |n| start + n);
    let header = |l: &str| l.strip_prefix('[').and_then(|l| l.strip_suffix(']')).map(str::to_string);
    let before: Vec<&str> = text[..line].lines().collect();
    let section = before.iter().rev().find_map(|l| header(l));
    let last = before.last()?;
    if header(last).is_none()
        && let Some((key, _)) = last.split_once(" = ")
    {
        return Some(section.map_or(key.to_string(), |s| format!("{s}.{key}")));
    }
    let section = section?;
    let mut leaves = vec![];
    collect(table, "", &mut leaves);
    leaves.retain(|path| path.strip_prefix(&section).is_some_and(|rest| rest.starts_with('.')));
    // Without its kind a section can't be read at all, so that is tried last.
    leaves.sort_by_key(|path| path.ends_with(".kind"));
    let changed = |path: &String, missing_counts: bool| {
        let mut without = table.clone();
        remove(&mut without, path);
        match without.try_into::<T>() {
            Ok(_) => true,
            Err(e) => e.message() != error.message() && (missing_counts || !e.message().starts_with("missing field")),
        }
    };
    let found = leaves.iter().find(|p| changed(p, false)).or_else(|| leaves.iter().find(|p| changed(p, true)));
    Some(found.cloned().unwrap_or(section))
}

/// serde's message in the words of the person who wrote the file.
fn reworded(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (kind, names) = match quoted.split_first() {
        Some((_, known)) if message.starts_with("unknown field") => ("key", known),
        Some((_, known)) if message.starts_with("unknown variant") => ("value", known),
        _ => return message.to_string(),
    };
    let mut text = format!("unknown {kind} `{}`", quoted[0]);
    if let Some(close) = closest(quoted[0], names) {
        text.push_str(&format!("; did you mean `{close}`?"));
    }
    if names.is_empty() {
        text.push_str("; there are none here");
    } else {
        text.push_str(&format!(" (known: {})", names.join(", ")));
    }
    text
}

/// The known name nearest to `name`, if one is near at all.
pub fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known.iter().min_by_key(|k| distance(name, k))?;
    let near = distance(name, best) <= (name.len().max(best.len()) / 2).max(1);
    near.then_some(*best)
}

/// The least number of insertions, removals, replacements and swaps of neighbours between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn parse_set(set: &str) -> Result<(String, Value)> {
    let wrong = |why: &str| Error::Usage(format!("--set {set}: {why}; write --set section.key=value"));
    let (path, text) = set.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    let path = path.trim();
    if path.split('.').any(|key| key.is_empty()) {
        return Err(wrong("the key is empty"));
    }
    let value = match format!("v = {text}").parse::<Table>() {
        Ok(mut table) if table.len() == 1 => table.remove("v").unwrap_or_else(|| Value::String(text.to_string())),
        _ => Value::String(text.trim().to_string()),
    };
    Ok((path.to_string(), value))
}

fn overlay(table: &mut Table, path: &str, value: Value) -> Result<()> {
    let (first, rest) = match path.split_once('.') {
        None => {
            table.insert(path.to_string(), value);
            return Ok(());
        }
        Some(parts) => parts,
    };
    match table.entry(first).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => overlay(inner, rest, value),
        other => Err(Error::Usage(format!("--set {path}: {first} is a {}, not a section", other.type_str()))),
    }
}

fn remove(table: &mut Table, path: &str) {
    match path.split_once('.') {
        None => {
            table.remove(path);
        }
        Some((first, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                remove(inner, rest);
            }
        }
    }
}

/// Dotted paths of all keys, sections after what is in them.
fn collect(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if let Value::Table(inner) = value {
            collect(inner, &path, out);
        }
        out.push(path);
    }
}

fn compact(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        model: Model,
        #[serde(default)]
        train: Train,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Model {
        Mlp(Mlp),
        Dit(Dit),
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Mlp {
        hidden: usize,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Dit {
        depth: usize,
        patch: usize,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Train {
        steps: u64,
        lr: f64,
        name: String,
    }

    fn parse(text: &str, sets: &[&str]) -> Result<Sample> {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        Source::new("c.toml", text, &sets)?.parse()
    }

    fn message(text: &str, sets: &[&str]) -> String {
        parse(text, sets).unwrap_err().to_string()
    }

    const GOOD: &str = "[model]\nkind = \"dit\"\ndepth = 4\npatch = 2\n\n[train]\nsteps = 10\n";

    #[test]
    fn settings_lie_over_the_file_typed_as_toml() {
        let sample = parse(GOOD, &["train.steps=20", "train.lr=1e-3", "train.name=a b", "model.depth = 6"]).unwrap();
        assert_eq!(sample.train, Train { steps: 20, lr: 1e-3, name: "a b".into() });
        assert_eq!(sample.model, Model::Dit(Dit { depth: 6, patch: 2 }));
        let replaced = parse("[train]\nlr = 1", &["model={kind=\"mlp\", hidden=3}"]).unwrap();
        assert_eq!(replaced.model, Model::Mlp(Mlp { hidden: 3 }));
    }

    #[test]
    fn messages_name_file_line_key_and_the_closest_known() {
        let at = |from: &str, to: &str| message(&GOOD.replace(from, to), &[]);
        assert_eq!(
            at("steps", "stpes"),
            "c.toml:7: [train] stpes: unknown key `stpes`; did you mean `steps`? (known: steps, lr, name)"
        );
        assert_eq!(
            at("depth", "dept"),
            "c.toml:3: [model] dept: unknown key `dept`; did you mean `depth`? (known: depth, patch)"
        );
        assert_eq!(
            at("\"dit\"", "\"dti\""),
            "c.toml:2: [model] kind: unknown value `dti`; did you mean `dit`? (known: mlp, dit)"
        );
        assert_eq!(
            at("[train]", "[trian]"),
            "c.toml:6: trian: unknown key `trian`; did you mean `train`? (known: model, train)"
        );
        assert_eq!(
            at("patch = 2", "patch = \"two\""),
            "c.toml:4: [model] patch: invalid type: string \"two\", expected usize"
        );
        assert_eq!(
            at("steps = 10", "steps = 1.5"),
            "c.toml:7: [train] steps: invalid type: floating point `1.5`, expected u64"
        );
        assert!(at("steps = 10", "steps = ").starts_with("c.toml:7: not TOML: "));
        assert_eq!(at("patch = 2\n", ""), "c.toml:1: [model] patch is missing; give it");
        assert_eq!(message("", &[]), "c.toml: [model] is missing; give it");
    }

    #[test]
    fn settings_are_named_as_such() {
        assert_eq!(
            message(GOOD, &["train.stepz=3"]),
            "--set train.stepz=3: unknown key `stepz`; did you mean `steps`? (known: steps, lr, name)"
        );
        assert_eq!(
            message(GOOD, &["model.depth=deep"]),
            "--set model.depth=deep: invalid type: string \"deep\", expected usize"
        );
        assert!(message(GOOD, &["train"]).contains("there is no `=`"));
        assert!(message(GOOD, &["train.=3"]).contains("the key is empty"));
        assert!(message(GOOD, &["train.steps.x=3"]).contains("steps is a integer"));
    }

    #[test]
    fn later_errors_find_their_place() {
        let source = Source::new("c.toml", GOOD, &["train.lr=0.5".to_string()]).unwrap();
        assert_eq!(source.wrong("model.patch", "too large").to_string(), "c.toml:4: [model] patch: too large");
        assert_eq!(source.wrong("train.lr", "too large").to_string(), "--set train.lr=0.5: too large");
        assert_eq!(source.wrong("model.heads", "is not set").to_string(), "c.toml:1: [model] heads: is not set");
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("stpes", "steps"), 1);
        assert_eq!(closest("zzz", &["steps", "lr"]), None);
    }
}
