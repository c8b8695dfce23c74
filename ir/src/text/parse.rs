//! Parsing: functions, nodes, types. What belongs to single ops is in [`super::ops`].

use super::lex::{Pos, Token, lex};
use super::ops::{self, Head, Literal, Parts};
use crate::{AxisName, DType, Func, Mesh, Node, NodeId, Op, Param, Result, Sharding, Type, Value, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// The last function of a text, its callees in its ops. Types are taken as they stand: [`crate::verify`] checks them.
///
/// # Errors
/// Gives line and column, what was expected there, and what was found.
pub fn parse(text: &str) -> Result<Func> {
    let mut parser = Parser { tokens: lex(text)?, at: 0, funcs: HashMap::new() };
    loop {
        let (label, func) = parser.func()?;
        if parser.peek() == &Token::End {
            return Ok(func);
        }
        parser.funcs.insert(label, Arc::new(func));
    }
}

/// The values named so far in a function.
struct Scope {
    func: Func,
    names: HashMap<(String, bool), ValueId>,
}

/// Lists in lists, at most.
const DEEPEST: usize = 64;

struct Parser {
    tokens: Vec<(Token, Pos)>,
    at: usize,
    funcs: HashMap<String, Arc<Func>>,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn pos(&self) -> Pos {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn expected<T>(&self, what: &str) -> Result<T> {
        Err(self.pos().error(format!("expected {what}, found {}", self.peek())))
    }

    /// Goes past `token` if it comes next.
    fn eat(&mut self, token: &Token) -> bool {
        let there = self.peek() == token;
        if there {
            self.next();
        }
        there
    }

    fn eat_mark(&mut self, mark: char) -> bool {
        self.eat(&Token::Mark(mark))
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let there = matches!(self.peek(), Token::Word(w) if w == word);
        if there {
            self.next();
        }
        there
    }

    fn mark(&mut self, mark: char) -> Result<()> {
        if self.eat_mark(mark) { Ok(()) } else { self.expected(&format!("`{mark}`")) }
    }

    fn word(&mut self, what: &str) -> Result<String> {
        match self.peek() {
            Token::Word(w) => {
                let w = w.clone();
                self.next();
                Ok(w)
            }
            _ => self.expected(what),
        }
    }

    /// A word, or a string where the name is not plain.
    fn name(&mut self, what: &str) -> Result<String> {
        match self.peek() {
            Token::Str(s) => {
                let s = s.clone();
                self.next();
                Ok(s)
            }
            _ => self.word(what),
        }
    }

    fn at_name(&mut self, what: &str) -> Result<String> {
        match self.peek() {
            Token::At(name) => {
                let name = name.clone();
                self.next();
                Ok(name)
            }
            _ => self.expected(what),
        }
    }

    fn size(&mut self, what: &str) -> Result<usize> {
        let parsed = match self.peek() {
            Token::Number(n) => n.parse().ok(),
            _ => None,
        };
        match parsed {
            Some(n) => {
                self.next();
                Ok(n)
            }
            None => self.expected(what),
        }
    }

    /// Items between `open` and `close`, separated by commas.
    fn list<T>(&mut self, open: char, close: char, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.mark(open)?;
        let mut items = Vec::new();
        if self.eat_mark(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat_mark(close) {
                return Ok(items);
            }
            if !self.eat_mark(',') {
                return self.expected(&format!("`,` or `{close}`"));
            }
        }
    }

    /// `func @label [named @name](params) [-> types] [on [axes]] { nodes return values }`.
    fn func(&mut self) -> Result<(String, Func)> {
        if !self.eat_word("func") {
            return self.expected("`func`");
        }
        let label_pos = self.pos();
        let label = self.at_name("a function name as `@main`")?;
        if self.funcs.contains_key(&label) {
            return Err(label_pos.error(format!("there is a function `@{label}` already")));
        }
        let name = if self.eat_word("named") { self.at_name("a function name as `@main`")? } else { label.clone() };
        let mut scope = Scope::new(name.into());
        self.list('(', ')', |p| {
            let (pos, name) = p.value_name()?;
            p.mark(':')?;
            let ty = p.ty()?;
            let loc = p.loc()?;
            p.param(&mut scope, pos, name, ty, loc)
        })?;
        let results_pos = self.pos();
        let stated = if self.eat(&Token::Arrow) { Some(self.types()?) } else { None };
        if self.eat_word("on") {
            let axes = self.list('[', ']', |p| {
                let axis = p.word("a mesh axis")?;
                p.mark('=')?;
                Ok((AxisName::from(axis), p.size("the size of the axis")?))
            })?;
            scope.func.mesh = Mesh { axes };
        }
        self.mark('{')?;
        while !self.eat_word("return") {
            self.node(&mut scope)?;
        }
        if matches!(self.peek(), Token::Value(..)) {
            scope.func.results = self.values(&scope)?;
        }
        self.mark('}')?;
        let Scope { func, .. } = scope;
        if let Some(stated) = stated {
            let returned = func.result_types();
            if stated.iter().collect::<Vec<_>>() != returned {
                let shown = |types: &[&Type]| types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
                let (stated, returned) = (shown(&stated.iter().collect::<Vec<_>>()), shown(&returned));
                return Err(results_pos.error(format!("`@{label}` states results ({stated}) but returns ({returned})")));
            }
        }
        Ok((label, func))
    }

    fn value_name(&mut self) -> Result<(Pos, (String, bool))> {
        let pos = self.pos();
        match self.peek() {
            Token::Value(name, quoted) => {
                // `%x` and `%"x"` are one name; `%7` is a number and `%"7"` a parameter's name.
                let key = (name.clone(), *quoted || !name.starts_with(|c: char| c.is_ascii_digit()));
                self.next();
                Ok((pos, key))
            }
            _ => self.expected("a value as `%x`"),
        }
    }

    fn value(&mut self, scope: &Scope) -> Result<ValueId> {
        let (pos, name) = self.value_name()?;
        match scope.names.get(&name) {
            Some(&v) => Ok(v),
            None => Err(pos.error(format!("`%{}` is not defined before this use", name.0))),
        }
    }

    fn values(&mut self, scope: &Scope) -> Result<Vec<ValueId>> {
        let mut values = vec![self.value(scope)?];
        while self.eat_mark(',') {
            values.push(self.value(scope)?);
        }
        Ok(values)
    }

    fn param(&mut self, scope: &mut Scope, pos: Pos, name: (String, bool), ty: Type, loc: Arc<str>) -> Result<()> {
        let op = Op::Param { index: scope.func.params.len(), ty: ty.clone() };
        let param = name.0.as_str().into();
        scope.push(op, vec![], vec![(pos, name)], vec![ty], loc)?;
        let value = ValueId(scope.func.values.len() as u32 - 1);
        scope.func.params.push(Param { name: param, value });
        Ok(())
    }

    /// `results = op operands {attributes} : types at "path"`.
    fn node(&mut self, scope: &mut Scope) -> Result<()> {
        let mut names = Vec::new();
        if matches!(self.peek(), Token::Value(..)) {
            names.push(self.value_name()?);
            while self.eat_mark(',') {
                names.push(self.value_name()?);
            }
            self.mark('=')?;
        }
        let pos = self.pos();
        let op = self.word("an op or `return`")?;
        let head = self.head(&op)?;
        let operands = match head {
            Head::Callee { .. } => self.list('(', ')', |p| p.value(scope))?,
            _ if matches!(self.peek(), Token::Value(..)) => self.values(scope)?,
            _ => vec![],
        };
        let mut attributes = Vec::new();
        if self.peek() == &Token::Mark('{') {
            attributes = self.list('{', '}', |p| {
                let pos = p.pos();
                let key = p.name("an attribute")?;
                let value = if p.eat_mark('=') { p.literal()? } else { Literal::Word("true".into()) };
                Ok((key, value, pos))
            })?;
        }
        self.mark(':')?;
        let types_pos = self.pos();
        let types = self.types()?;
        if types.len() != names.len() {
            return Err(types_pos.error(format!("{} types for {} results", types.len(), names.len())));
        }
        let loc = self.loc()?;
        if op == "param" {
            return match (names.pop(), types.into_iter().next()) {
                (Some((pos, name)), Some(ty)) if names.is_empty() => self.param(scope, pos, name, ty, loc),
                _ => Err(pos.error("`param` has one result")),
            };
        }
        let op = ops::build(Parts { name: &op, pos, head, attributes, types: &types })?;
        scope.push(op, operands, names, types, loc)
    }

    /// What stands between an op's name and its operands.
    fn head(&mut self, op: &str) -> Result<Head> {
        let callee = |p: &mut Self, name: Option<String>| {
            let pos = p.pos();
            let label = p.at_name("a function as `@block`")?;
            match p.funcs.get(&label) {
                Some(func) => Ok(Head::Callee { name, func: func.clone() }),
                None => Err(pos.error(format!("there is no function `@{label}` before this one"))),
            }
        };
        match op {
            "const" => Ok(Head::Const(self.pos(), self.literal()?)),
            "compare" | "all_reduce" => Ok(Head::Word(self.pos(), self.word("what it does")?)),
            "call" => callee(self, None),
            "composite" => {
                let name = self.name("the composite's name")?;
                callee(self, Some(name))
            }
            _ => Ok(Head::None),
        }
    }

    /// A value of an attribute, or of a constant.
    fn literal(&mut self) -> Result<Literal> {
        self.nested_literal(0)
    }

    fn nested_literal(&mut self, depth: usize) -> Result<Literal> {
        if depth > DEEPEST {
            return self.expected(&format!("at most {DEEPEST} lists in each other"));
        }
        let first = match self.peek().clone() {
            Token::Mark('[') => Literal::List(self.list('[', ']', |p| p.nested_literal(depth + 1))?),
            Token::Number(n) => {
                self.next();
                Literal::Number(n)
            }
            Token::Str(s) => {
                self.next();
                Literal::Str(s)
            }
            Token::Word(w) => {
                self.next();
                match (&w[..], self.peek()) {
                    ("splat", Token::Number(_) | Token::Word(_)) => {
                        Literal::Splat(Box::new(self.nested_literal(depth + 1)?))
                    }
                    ("base64", Token::Str(_)) => Literal::Base64(self.name("a string")?),
                    _ => Literal::Word(w),
                }
            }
            _ => return self.expected("a value"),
        };
        if self.eat_word("x") || self.eat(&Token::Arrow) {
            return Ok(Literal::Pair(Box::new(first), Box::new(self.nested_literal(depth + 1)?)));
        }
        // A colon after a constant begins the type instead.
        if self.peek() == &Token::Mark(':') && matches!(self.tokens.get(self.at + 1), Some((Token::Number(_), _))) {
            self.next();
            return Ok(Literal::Pair(Box::new(first), Box::new(self.nested_literal(depth + 1)?)));
        }
        Ok(first)
    }

    fn loc(&mut self) -> Result<Arc<str>> {
        if !self.eat_word("at") {
            return Ok("".into());
        }
        match self.peek().clone() {
            Token::Str(path) => {
                self.next();
                Ok(path.into())
            }
            _ => self.expected("a model path in quotes"),
        }
    }

    /// A type, or any number of them in parentheses.
    fn types(&mut self) -> Result<Vec<Type>> {
        if self.peek() == &Token::Mark('(') { self.list('(', ')', Self::ty) } else { Ok(vec![self.ty()?]) }
    }

    /// `f32[8, 64@tp]{unreduced dp}`.
    fn ty(&mut self) -> Result<Type> {
        let pos = self.pos();
        let dtype = match self.peek() {
            Token::Word(w) => DType::from_name(w),
            _ => None,
        };
        let Some(dtype) = dtype else { return self.expected("a type as `f32[8, 64]`") };
        self.next();
        let dims = self.list('[', ']', |p| {
            let n = p.size("the size of a dim")?;
            let mut axes = Vec::new();
            while let Token::At(axis) = p.peek() {
                axes.push(AxisName::from(axis.as_str()));
                p.next();
            }
            Ok((n, axes))
        })?;
        let mut unreduced = Vec::new();
        let braced = self.peek() == &Token::Mark('{')
            && matches!(self.tokens.get(self.at + 1), Some((Token::Word(w), _)) if w == "unreduced");
        if braced {
            self.next();
            self.next();
            while !self.eat_mark('}') {
                unreduced.push(AxisName::from(self.word("a mesh axis or `}`")?));
            }
        }
        let (dims, axes) = dims.into_iter().unzip();
        let dims: Vec<usize> = dims;
        let ty = Type::new(dtype, dims).with_sharding(Sharding::new(axes, unreduced));
        if ty.is_addressable() { Ok(ty) } else { Err(pos.error(format!("{ty} is too large"))) }
    }
}

impl Scope {
    fn new(name: Arc<str>) -> Scope {
        let func = Func { name, mesh: Mesh::single(), params: vec![], values: vec![], nodes: vec![], results: vec![] };
        Scope { func, names: HashMap::new() }
    }

    fn push(
        &mut self,
        op: Op,
        operands: Vec<ValueId>,
        names: Vec<(Pos, (String, bool))>,
        types: Vec<Type>,
        loc: Arc<str>,
    ) -> Result<()> {
        let node = NodeId(self.func.nodes.len() as u32);
        let mut results = Vec::new();
        for (i, ((pos, name), ty)) in names.into_iter().zip(types).enumerate() {
            let v = ValueId(self.func.values.len() as u32);
            if let Some(_taken) = self.names.insert(name.clone(), v) {
                return Err(pos.error(format!("`%{}` is defined twice", name.0)));
            }
            self.func.values.push(Value { ty, node, result: i as u32 });
            results.push(v);
        }
        self.func.nodes.push(Node { op, operands, results, loc });
        Ok(())
    }
}
