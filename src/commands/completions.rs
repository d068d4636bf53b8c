//! `wgd completions SHELL`: prints a completion script made from the command line's definition.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Runs the command.
pub fn run(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wgd", &mut script);
    super::finish(super::print(&script))
}
