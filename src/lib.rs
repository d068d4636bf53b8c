//! The daemon `wgd` as a library, so that tests and fuzz targets reach its parts. Not a stable interface: embedders use
//! `wg-tun` and `wg-core`.
//!
//! Read `cli.rs` for what can be asked for, `dropin.rs` for `wgd IFNAME` from start to end, `supervisor.rs` for what an
//! instance is made of, `uapi.rs` for how it is configured.
#![deny(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod control_socket;
mod descriptor;
pub mod dropin;
mod log_queue;
pub mod logging;
pub mod privileges;
pub mod supervisor;
pub mod uapi;
pub mod uapi_client;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// Runs the program with these arguments, the first of which is its own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too. There is nobody left to tell if printing fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match cli.command {
        None => dropin::run(cli.daemon),
        Some(Command::Genkey) => commands::genkey::run(),
        Some(Command::Pubkey) => commands::pubkey::run(),
        Some(Command::Genpsk) => commands::genpsk::run(),
        Some(Command::Show(args)) => commands::show::run(&args),
        Some(Command::Demo(args)) => commands::demo::run(args),
        Some(Command::Completions { shell }) => commands::completions::run(shell),
        Some(Command::Man { command }) => commands::man::run(command.as_deref()),
    }
}
