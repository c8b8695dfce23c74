//! The commands of `docs/sharding.md` are run and must print what stands there. With `UPDATE_DOCS=1` the page is rewritten
//! instead.

use std::path::Path;
use std::process::Command;

/// Runs a line of shell in which `dnx` is the program under test; gives what it printed.
fn shell(folder: &Path, line: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_dnx")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("bash").args(["-o", "pipefail", "-c", line]).env("PATH", path).current_dir(folder).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "$ {line}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout).lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

#[test]
fn the_tutorial_of_several_devices_shows_what_happens() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sharding.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    std::fs::write(dir.path().join("small_dit.toml"), config).unwrap();

    let (mut made, mut commands) = (String::new(), 0);
    for (i, part) in text.split("```").enumerate() {
        let block = part.strip_prefix("console\n").filter(|_| i % 2 == 1);
        made.push_str(if i > 0 { "```" } else { "" });
        let Some(block) = block else {
            made.push_str(part);
            continue;
        };
        made.push_str("console\n");
        for line in block.lines().filter_map(|l| l.strip_prefix("$ ")) {
            made.push_str(&format!("$ {line}\n{}", shell(dir.path(), line)));
            commands += 1;
        }
    }
    assert!(commands >= 20, "only {commands} commands were found");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, made).unwrap();
    } else {
        assert_eq!(made, text, "docs/sharding.md shows something else; UPDATE_DOCS=1 rewrites it");
    }
}
