//! The `dnx` command.

fn main() {}
