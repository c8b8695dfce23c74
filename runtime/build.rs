//! With feature `mpi`: compiles the few functions of MPI that dnx uses with `mpicc`, which knows where its library is.
//! Without it there is nothing to do.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "src/team/transport/mpi.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    if std::env::var_os("CARGO_FEATURE_MPI").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=MPICC");
    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".to_string());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where"));
    let (object, library) = (out.join("dnx_mpi.o"), out.join("libdnx_mpi.a"));
    run(&mpicc, &["-O2", "-fPIC", "-c", SOURCE, "-o", text(&object)]);
    let _ = std::fs::remove_file(&library);
    run("ar", &["crs", text(&library), text(&object)]);
    println!("cargo:rustc-link-search=native={}", text(&out));
    println!("cargo:rustc-link-lib=static=dnx_mpi");
    // Open MPI has the first word for it, MPICH and its kin the second.
    let flags = ["--showme:link", "-link_info"].iter().find_map(|ask| {
        let asked = Command::new(&mpicc).arg(ask).output().ok()?;
        asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).into_owned())
    });
    let flags = flags.unwrap_or_else(|| panic!("{mpicc} does not say how to link with its library"));
    for flag in flags.split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={folder}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of plain characters")
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).status();
    let done = done.unwrap_or_else(|e| {
        panic!("{program} can't be run ({e}): feature `mpi` needs an MPI library to build (Debian: apt-get install libopenmpi-dev)")
    });
    assert!(done.success(), "{program} {} failed", args.join(" "));
}
