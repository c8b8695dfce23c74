//! The `dnx` command. Results go to stdout; progress and errors to stderr. Exit status: 0 done, 1 it failed while
//! working, 2 the command line, the configuration or an input file is wrong, 130 interrupted.

mod args;
mod commands;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    without_windows();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Devices(args) => commands::devices::run(&args),
        Command::Compile(args) => commands::compile::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Sample(args) => commands::sample::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Profile(args) => commands::profile::run(&args),
        Command::Tune(args) => commands::tune::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_status() as u8)
        }
    }
}

/// Where there is no window system, keeps Mesa from looking for it: its layer that puts the adapter of the screen first
/// would print an error for every look.
fn without_windows() {
    let unset = |name: &str| std::env::var_os(name).is_none();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("NODEVICE_SELECT") {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
