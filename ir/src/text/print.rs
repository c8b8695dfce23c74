//! Printing: see the module's header for the form.

use super::{constant, name_or_quoted, quoted};
use crate::{AttrValue, AxisName, Func, Node, Op, ReduceKind, ValueId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// Headers longer than this have one parameter a line.
const WIDTH: usize = 100;

/// The text of a function and of its callees. [`super::parse`] gives it back.
pub fn print(func: &Func) -> String {
    let mut printer = Printer::default();
    printer.taken.insert(func.name.to_string());
    printer.print_callees(func);
    let body = printer.body(func);
    printer.out + &format!("func @{}{body}", name_or_quoted(&func.name))
}

impl fmt::Display for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

/// The line of one node, callees by their own names, long constants cut: for messages.
pub(crate) fn node_line(func: &Func, node: &Node) -> String {
    const LONGEST: usize = 200;
    let line = Names::of(func).line(node, &HashMap::new());
    match line.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", &line[..cut]),
        None => line,
    }
}

/// Labels of callees by their address, which stays valid as long as the main function is borrowed.
type Labels = HashMap<*const Func, String>;

#[derive(Default)]
struct Printer {
    out: String,
    labels: Labels,
    /// Label by name and printed body: equal callees are printed once.
    printed: HashMap<(String, String), String>,
    taken: HashSet<String>,
}

impl Printer {
    fn print_callees(&mut self, func: &Func) {
        for node in &func.nodes {
            if let Op::Call { func, .. } | Op::Composite { func, .. } = &node.op {
                self.print_callee(func);
            }
        }
    }

    fn print_callee(&mut self, func: &Arc<Func>) {
        if self.labels.contains_key(&Arc::as_ptr(func)) {
            return;
        }
        self.print_callees(func);
        let key = (func.name.to_string(), self.body(func));
        let label = match self.printed.get(&key) {
            Some(label) => label.clone(),
            None => {
                let name = name_or_quoted(&func.name);
                let mut label = func.name.to_string();
                let mut n = 1;
                while !self.taken.insert(label.clone()) {
                    n += 1;
                    label = format!("{}_{n}", func.name);
                }
                let named = if n > 1 { format!("{} named @{name}", name_or_quoted(&label)) } else { name };
                self.out.push_str(&format!("func @{named}{}\n", key.1));
                self.printed.insert(key, label.clone());
                label
            }
        };
        self.labels.insert(Arc::as_ptr(func), label);
    }

    /// Everything after the name.
    fn body(&self, func: &Func) -> String {
        let names = Names::of(func);
        let leading = func.nodes.iter().take_while(|n| matches!(n.op, Op::Param { .. })).count();
        let params: Vec<String> = func.nodes[..leading]
            .iter()
            .map(|n| format!("{}: {}{}", names.list(&n.results), names.types(&n.results), path(n)))
            .collect();
        let results = match func.results[..] {
            [one] => names.ty(one),
            _ => format!("({})", func.results.iter().map(|&r| names.ty(r)).collect::<Vec<_>>().join(", ")),
        };
        let mesh = match func.mesh.axes[..] {
            [] => String::new(),
            _ => {
                let axes: Vec<String> = func.mesh.axes.iter().map(|(a, n)| format!("{a} = {n}")).collect();
                format!(" on [{}]", axes.join(", "))
            }
        };
        let mut header = format!("({}) -> {results}{mesh} {{\n", params.join(", "));
        if header.len() > WIDTH && !params.is_empty() {
            header = format!("(\n    {}\n) -> {results}{mesh} {{\n", params.join(",\n    "));
        }
        let mut out = header;
        for node in &func.nodes[leading..] {
            out.push_str(&format!("  {}\n", names.line(node, &self.labels)));
        }
        let results = names.list(&func.results);
        out.push_str(&format!("  return{}{results}\n}}\n", if results.is_empty() { "" } else { " " }));
        out
    }
}

/// What the values of a function are called.
struct Names<'f> {
    func: &'f Func,
    params: HashMap<ValueId, &'f str>,
}

impl<'f> Names<'f> {
    fn of(func: &'f Func) -> Names<'f> {
        Names { func, params: func.params.iter().map(|p| (p.value, &*p.name)).collect() }
    }

    fn value(&self, v: ValueId) -> String {
        match self.params.get(&v) {
            Some(name) => format!("%{}", name_or_quoted(name)),
            None => format!("%{}", v.0),
        }
    }

    fn list(&self, values: &[ValueId]) -> String {
        values.iter().map(|&v| self.value(v)).collect::<Vec<_>>().join(", ")
    }

    /// A type, also of a value that does not exist: the verifier prints broken functions.
    fn ty(&self, v: ValueId) -> String {
        self.func.values.get(v.index()).map_or("?".into(), |v| v.ty.to_string())
    }

    fn types(&self, values: &[ValueId]) -> String {
        match values {
            [one] => self.ty(*one),
            _ => format!("({})", values.iter().map(|&v| self.ty(v)).collect::<Vec<_>>().join(", ")),
        }
    }

    fn line(&self, node: &Node, labels: &Labels) -> String {
        let results = self.list(&node.results);
        let equals = if results.is_empty() { "" } else { " = " };
        let label = |func: &Arc<Func>| {
            format!("@{}", name_or_quoted(labels.get(&Arc::as_ptr(func)).map_or(&func.name, String::as_str)))
        };
        let operands = self.list(&node.operands);
        let space = if operands.is_empty() { "" } else { " " };
        let applied = match &node.op {
            Op::Const(array) => format!("const {}", constant::print_array(array)),
            Op::Compare(c) => format!("compare {}{space}{operands}", c.name()),
            Op::AllReduce { kind, .. } => format!("all_reduce {}{space}{operands}", reduce_name(*kind)),
            Op::Call { func, .. } => format!("call {}({operands})", label(func)),
            Op::Composite { name, func, .. } => {
                format!("composite {} {}({operands})", name_or_quoted(name), label(func))
            }
            op => format!("{}{space}{operands}", op.name()),
        };
        let attributes = attributes(&node.op);
        let attributes = if attributes.is_empty() { String::new() } else { format!(" {{{}}}", attributes.join(", ")) };
        format!("{results}{equals}{applied}{attributes} : {}{}", self.types(&node.results), path(node))
    }
}

fn path(node: &Node) -> String {
    if node.loc.is_empty() { String::new() } else { format!(" at {}", quoted(&node.loc)) }
}

/// What an all-reduce does, as it stands in text.
pub(super) fn reduce_name(kind: ReduceKind) -> &'static str {
    match kind {
        ReduceKind::Sum => "sum",
        ReduceKind::Max => "max",
    }
}

/// The attributes of an op that neither its name, its head nor its result type tells.
fn attributes(op: &Op) -> Vec<String> {
    let axes = |axes: &[AxisName]| format!("axes = [{}]", axes.join(", "));
    let unless = |usual: bool, text: String| if usual { None } else { Some(text) };
    match op {
        Op::Param { .. } | Op::Const(_) | Op::Unary(_) | Op::Convert(_) | Op::Bitcast(_) => vec![],
        Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Reshape { .. } | Op::DynamicSlice { .. } => vec![],
        Op::DynamicUpdateSlice | Op::Reshard { .. } | Op::OptimizationBarrier => vec![],
        Op::Iota { dim, .. } | Op::Concat { dim } | Op::Argmax { dim } => vec![format!("dim = {dim}")],
        Op::Take { dim } | Op::ScatterAdd { dim } => vec![format!("dim = {dim}")],
        Op::RandomBits { global, .. } => global.iter().map(|g| format!("global = {g:?}")).collect(),
        Op::AxisIndex { axis } => vec![format!("axis = {axis}")],
        Op::Transpose { perm } => vec![format!("perm = {perm:?}")],
        Op::Broadcast { map, .. } => vec![format!("map = {map:?}")],
        Op::Slice { start, limit, stride } => [
            Some(format!("start = {start:?}, limit = {limit:?}")),
            unless(*stride == vec![1; start.len()], format!("stride = {stride:?}")),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Op::Pad { low, high, interior } => [
            Some(format!("low = {low:?}, high = {high:?}")),
            unless(*interior == vec![0; low.len()], format!("interior = {interior:?}")),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Op::Reverse { dims } | Op::Reduce { dims, .. } => vec![format!("dims = {dims:?}")],
        Op::Dot { dims: d, .. } => [
            Some(format!("contract = {:?} x {:?}", d.lhs_contract, d.rhs_contract)),
            unless(
                d.lhs_batch.is_empty() && d.rhs_batch.is_empty(),
                format!("batch = {:?} x {:?}", d.lhs_batch, d.rhs_batch),
            ),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Op::Conv { dims: c, .. } => {
            let padding: Vec<String> = c.padding.iter().map(|(l, h)| format!("{l}:{h}")).collect();
            let ones = vec![1; c.stride.len()];
            [
                Some(format!("stride = {:?}", c.stride)),
                unless(c.padding == vec![(0, 0); c.stride.len()], format!("padding = [{}]", padding.join(", "))),
                unless(c.lhs_dilation == ones, format!("lhs_dilation = {:?}", c.lhs_dilation)),
                unless(c.rhs_dilation == ones, format!("rhs_dilation = {:?}", c.rhs_dilation)),
                unless(c.groups == 1, format!("groups = {}", c.groups)),
            ]
            .into_iter()
            .flatten()
            .collect()
        }
        Op::AllReduce { axes: a, .. } => vec![axes(a)],
        Op::AllGather { axis, dim } | Op::ReduceScatter { axis, dim } => vec![format!("axis = {axis}, dim = {dim}")],
        Op::AllToAll { axis, split, concat } => vec![format!("axis = {axis}, split = {split}, concat = {concat}")],
        Op::Ppermute { axis, pairs } => {
            let pairs: Vec<String> = pairs.iter().map(|(f, t)| format!("{f} -> {t}")).collect();
            vec![format!("axis = {axis}, pairs = [{}]", pairs.join(", "))]
        }
        Op::Call { remat, .. } => unless(!remat, "remat".into()).into_iter().collect(),
        Op::Composite { attrs, .. } => {
            attrs.iter().map(|(key, value)| format!("{} = {}", name_or_quoted(key), attr_value(value))).collect()
        }
    }
}

fn attr_value(value: &AttrValue) -> String {
    match value {
        AttrValue::Bool(b) => b.to_string(),
        AttrValue::Int(i) => i.to_string(),
        AttrValue::Float(s) => constant::print_scalar(*s),
        AttrValue::Ints(list) => format!("{list:?}"),
        AttrValue::Str(s) => quoted(s),
    }
}
