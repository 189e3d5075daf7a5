//! The `gristmill` program; what it can do is in the library.

use clap::Parser;
use gristmill::extract::CHILD;

fn main() -> std::process::ExitCode {
    // Not a command for people: gristmill runs it itself, for each document it reads.
    if std::env::args().nth(1).as_deref() == Some(CHILD) {
        return gristmill::extract::child_main();
    }
    gristmill::cli::Command::parse().run()
}
