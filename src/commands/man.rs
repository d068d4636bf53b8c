//! `wgd man`: prints the manual page made from the command line's definition.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::Cli;

/// Runs the command; `command` names a sub-command whose page is wanted.
pub fn run(command: Option<&str>) -> ExitCode {
    super::finish(print_page(command))
}

#[derive(Debug, thiserror::Error)]
enum ManError {
    #[error("there is no command `{unknown}`; commands are: {known}")]
    Unknown { unknown: String, known: String },
    #[error("cannot print the manual page: {0}")]
    Print(#[from] io::Error),
}

fn print_page(command: Option<&str>) -> Result<(), ManError> {
    let mut program = Cli::command();
    program.build();
    let page_of = match command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(found) => found.clone(),
            None => {
                let known: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
                return Err(ManError::Unknown { unknown: name.to_owned(), known: known.join(", ") });
            }
        },
    };
    let mut page = Vec::new();
    Man::new(page_of).section("8").manual("WireGuard in userspace").render(&mut page)?;
    Ok(super::print(&page)?)
}
