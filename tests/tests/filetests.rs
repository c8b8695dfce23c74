//! File tests: input and expected output in one file, `filetests/<room>/*.dnx`.
//!
//! A file begins with a directive, `// test: <kind> <key>=<value>...`. Then come cases: functions as text, followed
//! by the expected output as lines that begin with `//>`. As these are comments, a case can be pasted anywhere
//! a function is read.
//!
//! When the output differs the test writes what it got to `<file>.new` beside the file; read it, and move it
//! over the file to accept it. Kinds are the arms of [`run_case`]; a new one is a new arm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dnx_codegen::passes::canonical;
use dnx_ir::{text, verify};

/// What the last line of a canonical form begins with.
const LAWS: &str = "laws: ";

/// What stands after `// test:`.
struct Directive {
    kind: String,
    options: BTreeMap<String, String>,
}

/// The output of one case. Errors are outputs too: many files hold what must be refused.
fn run_case(directive: &Directive, input: &str) -> Result<String, String> {
    let func = match (text::parse(input), &directive.kind[..]) {
        (Ok(func), _) => func,
        (Err(error), _) => return Ok(error.to_string()),
    };
    match &directive.kind[..] {
        // The canonical form; it must parse back to the same function.
        "text" => {
            let printed = text::print(&func);
            match text::parse(&printed) {
                Ok(back) if back == func => Ok(printed),
                Ok(back) => Err(format!("prints as\n{printed}which reads as\n{back}")),
                Err(error) => Err(format!("prints as\n{printed}which does not parse: {error}")),
            }
        }
        "verify" => Ok(verify::verify(&func).map_or_else(|e| e.to_string(), |()| "ok".into())),
        // Derivatives in the parameters `wrt`.
        "grad" | "value_and_grad" | "jvp" => {
            let wrt = directive.options.get("wrt").ok_or("the directive has no wrt=<indices>")?;
            let wrt: Vec<usize> =
                wrt.split(',').map(|i| i.parse().map_err(|_| format!("wrt={i}"))).collect::<Result<_, _>>()?;
            let derive = match &directive.kind[..] {
                "grad" => dnx_autodiff::grad,
                "value_and_grad" => dnx_autodiff::value_and_grad,
                _ => dnx_autodiff::jvp,
            };
            let derived = match derive(&func, &wrt) {
                Ok(derived) => derived,
                Err(error) => return Ok(error.to_string()),
            };
            verify::verify(&derived).map_err(|e| format!("{derived}\n{e}"))?;
            Ok(text::print(&derived))
        }
        // The canonical form, and the laws that led to it.
        "canonical" => {
            verify::verify(&func).map_err(|e| e.to_string())?;
            let (found, mut laws) = canonical::explained(&func, true).map_err(|e| e.to_string())?;
            verify::verify(&found).map_err(|e| format!("{found}\n{e}"))?;
            laws.sort_unstable();
            laws.dedup();
            if laws.is_empty() {
                laws.push("none");
            }
            Ok(format!("{}// {LAWS}{}", text::print(&found), laws.join(", ")))
        }
        kind => Err(format!("there is no kind of test `{kind}`")),
    }
}

struct Case {
    input: Vec<String>,
    expected: Vec<String>,
}

fn parse_file(content: &str) -> Result<(Directive, Vec<Case>), String> {
    let mut lines = content.lines();
    let first = lines.next().unwrap_or_default();
    let Some(words) = first.strip_prefix("// test:") else {
        return Err("the first line is not `// test: <kind>`".into());
    };
    let mut words = words.split_whitespace();
    let kind = words.next().ok_or("the directive names no kind")?.to_string();
    let options = words
        .map(|w| w.split_once('=').map(|(k, v)| (k.into(), v.into())).ok_or(format!("option `{w}` has no `=`")))
        .collect::<Result<_, _>>()?;
    let mut cases: Vec<Case> = Vec::new();
    let mut open = Case { input: vec![], expected: vec![] };
    for line in lines {
        if let Some(expected) = line.strip_prefix("//>") {
            open.expected.push(expected.strip_prefix(' ').unwrap_or(expected).to_string());
        } else {
            if !open.expected.is_empty() {
                cases.push(std::mem::replace(&mut open, Case { input: vec![], expected: vec![] }));
            }
            open.input.push(line.to_string());
        }
    }
    // What follows the last expectation and holds a function is a case that has none yet.
    if !open.expected.is_empty() || open.input.iter().any(|l| !l.trim().is_empty() && !l.starts_with("//")) {
        cases.push(open);
    }
    Ok((Directive { kind, options }, cases))
}

/// What is wrong in this file, if anything is.
fn run_file(path: &Path) -> Result<usize, String> {
    let content = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (directive, cases) = parse_file(&content)?;
    if cases.is_empty() {
        return Err("holds no case".into());
    }
    let mut blessed = vec![content.lines().next().unwrap_or_default().to_string()];
    let mut wrong = Vec::new();
    for case in &cases {
        let input = case.input.join("\n");
        let output = run_case(&directive, &input).map_err(|e| format!("{e}\n{input}"))?;
        let output: Vec<String> = output.trim_end().lines().map(|l| l.trim_end().to_string()).collect();
        blessed.extend(case.input.iter().cloned());
        blessed.extend(output.iter().map(|l| format!("//> {l}").trim_end().to_string()));
        if output != case.expected {
            wrong.push(format!("{input}\n  expected\n{}\n  got\n{}", case.expected.join("\n"), output.join("\n")));
        }
    }
    if wrong.is_empty() {
        return Ok(cases.len());
    }
    let new = path.with_extension("dnx.new");
    std::fs::write(&new, blessed.join("\n") + "\n").map_err(|e| e.to_string())?;
    Err(format!("{}\n  (the whole file as it would pass is in {})", wrong.join("\n\n"), new.display()))
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|e| e == "dnx") {
            out.push(path);
        }
    }
}

#[test]
fn every_file_gives_its_expected_output() {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests"), &mut paths);
    paths.sort();
    let mut cases = 0;
    let mut failures = Vec::new();
    for path in &paths {
        match run_file(path) {
            Ok(n) => cases += n,
            Err(what) => failures.push(format!("{}:\n{what}", path.display())),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
    assert!(cases > 0);
}

#[test]
fn every_law_has_a_case() {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/canonical"), &mut paths);
    let contents: Vec<String> = paths.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let lines = contents.iter().flat_map(|c| c.lines()).filter_map(|l| l.strip_prefix("//> // ")?.strip_prefix(LAWS));
    let met: Vec<&str> = lines.flat_map(|l| l.split(", ")).collect();
    let missing: Vec<&str> = canonical::laws().map(|l| l.name).filter(|name| !met.contains(name)).collect();
    assert!(missing.is_empty(), "no case in filetests/canonical applies {missing:?}");
}

#[test]
fn a_case_without_its_output_is_found() {
    let (directive, cases) = parse_file("// test: grad wrt=0,1\nfunc a\n//> x\n//>\n//> y\n\nfunc b\n").unwrap();
    assert_eq!((&directive.kind[..], &directive.options["wrt"][..]), ("grad", "0,1"));
    assert_eq!(cases.len(), 2);
    assert_eq!(cases[0].expected, ["x", "", "y"]);
    assert!(cases[1].expected.is_empty());
    assert!(parse_file("func a").is_err());
}

#[test]
fn random_programs_verify_and_read_back() {
    use dnx_tests::random_graph::{Config, random_func};
    for seed in 0..200 {
        let (func, _) = random_func(seed, &Config::default());
        verify::verify(&func).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let text = func.to_string();
        assert_eq!(text::parse(&text).as_ref(), Ok(&func), "seed {seed}:\n{text}");
    }
}
