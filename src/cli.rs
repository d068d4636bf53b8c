//! Owns the command line as types. Reads no environment: `dropin.rs` does, because a daemon's variables must not
//! disturb `wgd genkey`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use wg_router::InstanceName;

use crate::commands::demo::DemoArgs;
use crate::logging::LogFormat;

/// What was asked for.
#[derive(Debug, Parser)]
#[command(
    name = "wgd",
    version,
    about = "Userspace WireGuard: a daemon that wg and wg-quick configure, and tools around it",
    long_about = "Userspace WireGuard.\n\n`wgd IFNAME` creates a WireGuard interface without the kernel's module and \
        serves it until its link or its control socket is removed, or it gets SIGINT or SIGTERM. It returns once the \
        interface and its control socket are there, and prints nothing unless something is wrong. Configure it with wg; \
        or let wg-quick start it: WG_QUICK_USERSPACE_IMPLEMENTATION=wgd wg-quick up wg0.",
    after_long_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// A tool instead of the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// Options of `wgd IFNAME`.
#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    /// Interface to create; after `--`, or after any option, it may also be called like a command
    #[arg(value_name = "IFNAME", required = true)]
    pub interface: Option<InstanceName>,

    /// Stay in the foreground and log to standard error [env: WG_PROCESS_FOREGROUND=1]
    #[arg(short, long)]
    pub foreground: bool,

    /// What to log: silent, error, warn, info, verbose (or debug), trace [env: LOG_LEVEL, WG_LOG_LEVEL] [default: error]
    #[arg(short, long, value_name = "LEVEL")]
    pub verbosity: Option<String>,

    /// Append the log to this file instead of standard error [env: WG_LOG_FILE]
    #[arg(short, long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// How the log looks [env: WG_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// Take over an open TUN device instead of creating one [env: WG_TUN_FD]
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    pub tun_fd: Option<i32>,

    /// Take over a listening control socket, or one connected client [env: WG_UAPI_FD]
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    pub uapi_fd: Option<i32>,

    /// Keep every privilege; without this, all but net_admin, net_bind_service and sys_nice are given up [env: WG_SUDO=1]
    #[arg(long)]
    pub disable_drop_privileges: bool,

    /// Threads that move packets; without this, one, and more while it is busy with several peers [env: WG_THREADS]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Accepted for users of boringtun-cli; wgd does not connect its sockets
    #[arg(long)]
    pub disable_connected_udp: bool,

    /// Like --threads 1
    #[arg(long)]
    pub disable_multi_queue: bool,
}

/// The tools.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a new private key
    Genkey,
    /// Read a private key from standard input and print its public key
    Pubkey,
    /// Print a new preshared key
    Genpsk,
    /// Show interfaces of userspace WireGuard daemons and their peers
    Show(ShowArgs),
    /// Show what wgd does, on this machine, in under 20 seconds; changes nothing
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff; try `wgd man | man -l -`
    Man {
        /// The page of this command instead
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// Options of `wgd show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// An interface; `all` of them, which is the default; or `interfaces`, to list their names only
    #[arg(value_name = "IFNAME|all|interfaces")]
    pub what: Option<String>,

    /// Print JSON. Secret keys are left out unless WG_HIDE_KEYS=never
    #[arg(long)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Environment:
  WG_PROCESS_FOREGROUND=1  like --foreground
  LOG_LEVEL                like --verbosity; the daemon then keeps writing to standard error
  WG_LOG_LEVEL, WG_LOG_FILE, WG_LOG_FORMAT, WG_TUN_FD, WG_UAPI_FD, WG_THREADS
                           like the option of that name; an option wins over its variable
  WG_SUDO=1                like --disable-drop-privileges
  WGD_REALTIME=0           threads that move packets never run before those of other programs
  WG_COLOR_MODE, WG_HIDE_KEYS, NO_COLOR
                           as wg knows them, for `wgd show`

Files:
  /var/run/wireguard/IFNAME.sock  the control socket; remove it to end the daemon

Exit status:
  0  the interface is served (in the foreground: was served, and ended as asked)
  1  it could not be started, or it failed; standard error says why
  2  the command line or the environment is wrong

An interface called like a command: wgd -f show, or wgd -- show.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("wgd").chain(words.iter().copied()))
    }

    fn interface(words: &[&str]) -> String {
        let cli = parse(words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert!(cli.command.is_none(), "{words:?}");
        cli.daemon.interface.map(|name| name.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_word_is_an_interface_and_the_foreground_is_asked_for_before_or_after_it() {
        assert_eq!(interface(&["wg0"]), "wg0");
        for words in [["-f", "wg0"], ["wg0", "-f"], ["--foreground", "wg0"]] {
            assert_eq!(interface(&words), "wg0");
            assert!(parse(&words).expect("valid").daemon.foreground);
        }
        assert!(!parse(&["wg0"]).expect("valid").daemon.foreground);
    }

    #[test]
    fn an_interface_may_be_called_like_a_command_after_an_option_or_two_dashes() {
        for words in [&["-f", "show"][..], &["--", "show"], &["-f", "--", "show"]] {
            assert_eq!(interface(words), "show");
        }
        assert!(matches!(parse(&["show"]).expect("valid").command, Some(Command::Show(_))));
    }

    #[test]
    fn what_users_of_boringtun_cli_pass_is_taken() {
        let words = [
            "--disable-drop-privileges",
            "--disable-connected-udp",
            "--disable-multi-queue",
            "-t",
            "4",
            "-v",
            "debug",
            "-l",
            "/tmp/x",
            "--uapi-fd",
            "-1",
            "--tun-fd=7",
            "wg0",
        ];
        let daemon = parse(&words).expect("valid").daemon;
        assert_eq!((daemon.threads, daemon.uapi_fd, daemon.tun_fd), (NonZeroUsize::new(4), Some(-1), Some(7)));
        assert!(daemon.disable_drop_privileges && daemon.disable_connected_udp && daemon.disable_multi_queue);
    }

    #[test]
    fn no_interface_or_two_or_an_impossible_one_is_refused() {
        for words in [&[][..], &["-f"], &["wg0", "wg1"], &["../wg0"], &["an-interface-name-too-long"], &[""]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
