//! The text of functions: every function prints, and parses back to itself.
//!
//! ```text
//! func @block(%x: f32[8, 4], %w: f32[4, 4]) -> f32[8, 4] {
//!   %2 = dot_general %x, %w {contract = [1] x [0]} : f32[8, 4] at "block.mlp"
//!   return %2
//! }
//!
//! func @main(%x: f32[8, 4@tp], %"0": f32[4, 4]) -> f32[8, 4] on [tp = 2] {
//!   ...
//! }
//! ```
//!
//! * The *last* function of a text is the main one; those before it are the callees of `call` and
//!   `composite`, each before its first caller, equal ones once. Of different functions with one name all but one
//!   get a numbered label: `func @block_2 named @block(...)`.
//! * Parameters are printed by name, other values by number. The leading run of parameters stands in the
//!   header; a parameter made after other nodes is a line `%late = param : f32[2]`. Where a name is not made of
//!   letters, digits, `_` and `.` (or begins with a digit) it is quoted.
//! * A node is `results = op operands {attributes} : types at "model path"`. What the result type tells
//!   (dims of `reshape`, dtype of `convert`, sharding of `reshard`...) is not an attribute. Attributes with their
//!   usual value (no batch dims, stride 1, no padding...) are left out.
//! * Constants: a scalar is a number, an array a nested list, equal elements are `splat 0.5`, no elements are
//!   `empty`, and what is longer than 32 elements is `base64 "..."` of its little-endian bytes. Floats print in the
//!   shortest form that parses back; a number in hexadecimal is the *bits* of an element, as NaN needs.
//! * `//` starts a comment. White space has no meaning.
//!
//! Printing never fails and is exact for every function that verifies. Parsing checks names and form only; types are
//! checked by [`crate::verify`], so that a wrong program can be written down and looked at.

mod constant;
mod lex;
mod ops;
mod parse;
mod print;

pub use parse::parse;
pub(crate) use print::node_line;
pub use print::print;

/// Letters, digits, `_` and `.`, not beginning with a digit or a dot: printed without quotes.
fn is_plain_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(is_name_char)
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// A string in quotes, with escapes.
fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A name, quoted where it must be.
fn name_or_quoted(name: &str) -> String {
    if is_plain_name(name) { name.to_string() } else { quoted(name) }
}
