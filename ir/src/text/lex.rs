//! Text to tokens, each with its place.

use super::is_name_char;
use crate::{Error, Result};
use std::fmt;

/// A place in a text, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pos {
    pub line: usize,
    pub column: usize,
}

impl Pos {
    /// The error that something is wrong here.
    pub(super) fn error(self, message: impl fmt::Display) -> Error {
        Error::new(format!("line {}, column {}: {message}", self.line, self.column))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// `word`, also keywords and op names.
    Word(String),
    /// A number as it stands: `1`, `-2.5e3`, `0x7fc00000`, `-inf`.
    Number(String),
    /// A string, unescaped.
    Str(String),
    /// `%name`, or `%"name"` (then `true`).
    Value(String, bool),
    /// `@name` or `@"name"`.
    At(String),
    /// `->`.
    Arrow,
    /// One of `(){}[],:=`.
    Mark(char),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(w) | Token::Number(w) => write!(f, "`{w}`"),
            Token::Str(s) => write!(f, "the string {s:?}"),
            Token::Value(v, _) => write!(f, "`%{v}`"),
            Token::At(name) => write!(f, "`@{name}`"),
            Token::Arrow => f.write_str("`->`"),
            Token::Mark(c) => write!(f, "`{c}`"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// All tokens of a text, [`Token::End`] last.
pub(super) fn lex(text: &str) -> Result<Vec<(Token, Pos)>> {
    let mut lexer = Lexer { chars: text.chars().collect(), at: 0, pos: Pos { line: 1, column: 1 } };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_space();
        let pos = lexer.pos;
        let token = lexer.token(pos)?;
        let end = token == Token::End;
        tokens.push((token, pos));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    pos: Pos,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn done(&self) -> bool {
        self.at >= self.chars.len()
    }

    fn next(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        if c == '\n' {
            self.pos = Pos { line: self.pos.line + 1, column: 1 };
        } else {
            self.pos.column += 1;
        }
        c
    }

    fn skip_space(&mut self) {
        while !self.done() {
            if self.peek(0) == '/' && self.peek(1) == '/' {
                while !self.done() && self.peek(0) != '\n' {
                    self.next();
                }
            } else if self.peek(0).is_whitespace() {
                self.next();
            } else {
                return;
            }
        }
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while !self.done() && keep(self.peek(0)) {
            self.next();
        }
        self.chars[start..self.at].iter().collect()
    }

    fn token(&mut self, pos: Pos) -> Result<Token> {
        if self.done() {
            return Ok(Token::End);
        }
        let c = self.peek(0);
        if c.is_ascii_digit() || (c == '-' && (self.peek(1).is_ascii_digit() || self.peek(1) == 'i')) {
            return Ok(Token::Number(self.number()));
        }
        if is_name_char(c) {
            return Ok(Token::Word(self.take_while(is_name_char)));
        }
        match c {
            '"' => Ok(Token::Str(self.string()?)),
            '-' if self.peek(1) == '>' => {
                self.next();
                self.next();
                Ok(Token::Arrow)
            }
            '%' | '@' => {
                self.next();
                let quoted = self.peek(0) == '"';
                let name = if quoted { self.string()? } else { self.take_while(is_name_char) };
                if name.is_empty() && !quoted {
                    return Err(pos.error(format!("expected a name after `{c}`")));
                }
                Ok(if c == '%' { Token::Value(name, quoted) } else { Token::At(name) })
            }
            '(' | ')' | '{' | '}' | '[' | ']' | ',' | ':' | '=' => {
                self.next();
                Ok(Token::Mark(c))
            }
            _ => Err(pos.error(format!("`{}` begins nothing that is known", c.escape_default()))),
        }
    }

    fn number(&mut self) -> String {
        let mut out = String::new();
        if self.peek(0) == '-' {
            out.push(self.next());
        }
        if self.peek(0) == 'i' {
            return out + &self.take_while(is_name_char);
        }
        if self.peek(0) == '0' && self.peek(1) == 'x' {
            return out + &self.take_while(|c| c.is_ascii_alphanumeric());
        }
        out += &self.take_while(|c| c.is_ascii_digit());
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            out.push(self.next());
            out += &self.take_while(|c| c.is_ascii_digit());
        }
        let signed = matches!(self.peek(1), '+' | '-') && self.peek(2).is_ascii_digit();
        if matches!(self.peek(0), 'e' | 'E') && (signed || self.peek(1).is_ascii_digit()) {
            out.push(self.next());
            out.push(self.next());
            out += &self.take_while(|c| c.is_ascii_digit());
        }
        out
    }

    fn string(&mut self) -> Result<String> {
        let start = self.pos;
        self.next();
        let mut out = String::new();
        loop {
            let pos = self.pos;
            if self.done() {
                return Err(start.error("this string does not end"));
            }
            match self.next() {
                '"' => return Ok(out),
                '\\' => out.push(match self.next() {
                    'n' => '\n',
                    't' => '\t',
                    c @ ('"' | '\\') => c,
                    'u' => self.unicode().ok_or_else(|| pos.error("expected `\\u{hexadecimal}`"))?,
                    _ => return Err(pos.error("expected one of the escapes \\n \\t \\\" \\\\ \\u{..}")),
                }),
                c => out.push(c),
            }
        }
    }

    fn unicode(&mut self) -> Option<char> {
        if self.next() != '{' {
            return None;
        }
        let hex = self.take_while(|c| c.is_ascii_hexdigit());
        let code = u32::from_str_radix(&hex, 16).ok()?;
        if self.next() != '}' { None } else { char::from_u32(code) }
    }
}
