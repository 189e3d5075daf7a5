//! The binary; what it can do is in the library.

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some("extract-child") {
        return gristmill::extract::child_main();
    }
    std::process::ExitCode::FAILURE
}
