//! One file per sub-command: what it prints and returns.

pub mod completions;
#[allow(unsafe_code, reason = "namespaces have no safe interface in the standard library")]
pub mod demo;
pub mod genkey;
pub mod genpsk;
pub mod man;
pub mod pubkey;
pub mod show;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Turns a sub-command's outcome into an exit code; an error is printed as one line.
fn finish(outcome: Result<(), impl std::fmt::Display>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wgd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output. A reader that has seen enough, like `head`, is no error.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
