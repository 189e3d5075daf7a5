//! The `gristmill` program; what it can do is in the library.

use clap::Parser;

fn main() -> std::process::ExitCode {
    gristmill::cli::Command::parse().run()
}
