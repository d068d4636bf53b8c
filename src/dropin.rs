//! Owns `wgd IFNAME` as users of wireguard-go and boringtun-cli know it: the environment, the way into the background,
//! readiness, and the end. What an interface is and does is the supervisor's business.
//!
//! The flow:
//! 1. `Settings::read` merges the command line with the environment.
//! 2. In the background (the default), this process starts itself once more and waits. A fork would be unsound once
//!    there are threads; a new process is the same, and easier to reason about. It inherits descriptors and environment.
//! 3. The new process, or this one in the foreground, opens its log, gives up privileges, begins to write the log, opens
//!    the interface and its control socket, and only then reports that it is ready.
//! 4. The waiting process returns 0; or prints what went wrong and returns 1.
//! 5. The daemon ends when its link or its socket file is removed, or on SIGINT or SIGTERM, and removes the rest.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ExitCode, ExitStatus, Stdio};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::level_filters::LevelFilter;
use wg_router::InstanceName;
use wg_tun::{DeviceExit, TunSource};

use crate::cli::DaemonArgs;
use crate::control_socket::{self, ControlSocketEnd};
use crate::descriptor;
use crate::logging::{self, LogDestination, LogFormat};
use crate::privileges;
use crate::supervisor::{ControlSource, InstanceEnd, InstanceSpec, StartError, Supervisor, Threads};

/// Runs the daemon, or starts it in the background and waits until it is ready.
pub fn run(args: DaemonArgs) -> ExitCode {
    let settings = match Settings::read(args, |name| env::var_os(name)) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("wgd: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match settings.role {
        Role::Launcher => launch(&settings),
        Role::Foreground => serve(settings, Starter::Nobody),
        Role::Background => serve(settings, Starter::Waiting(io::stdout())),
    }
}

/// Everything the daemon is told, by options and environment.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    name: InstanceName,
    role: Role,
    level: LevelFilter,
    is_level_asked_for: bool,
    level_not_understood: Option<String>,
    format: LogFormat,
    log_file: Option<PathBuf>,
    tun_fd: Option<RawFd>,
    uapi_fd: Option<RawFd>,
    privileges: Privileges,
    threads: Threads,
    /// Options of boringtun-cli that were given and have no meaning here.
    without_meaning: Vec<&'static str>,
}

/// What this process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Starts the daemon and waits until it is ready.
    Launcher,
    /// The daemon, with nobody waiting.
    Foreground,
    /// The daemon that a launcher waits for.
    Background,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privileges {
    Drop,
    Keep,
}

/// Why the settings make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum SettingsError {
    #[error("no interface name; try `wgd wg0`, or `wgd --help`")]
    NoName,
    #[error("{place}={value}: expected {expected}")]
    Value { place: &'static str, value: String, expected: &'static str },
}

impl Settings {
    /// Merges options with variables; an option wins over its variable, an empty variable counts as unset.
    fn read(args: DaemonArgs, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let text = |name| set(name).map(|value| value.to_string_lossy().into_owned());
        let name = args.interface.ok_or(SettingsError::NoName)?;

        let role = if set(BACKGROUND).is_some() {
            Role::Background
        } else if args.foreground || text("WG_PROCESS_FOREGROUND").as_deref() == Some("1") {
            Role::Foreground
        } else {
            Role::Launcher
        };

        let mut level_not_understood = None;
        let asked_level = match (args.verbosity, text("WG_LOG_LEVEL"), text("LOG_LEVEL")) {
            (Some(value), _, _) => Some(level("--verbosity", value)?),
            (None, Some(value), _) => Some(level("WG_LOG_LEVEL", value)?),
            // The variable is not ours alone, and wireguard-go takes anything: complain, but start.
            (None, None, Some(value)) => {
                level("LOG_LEVEL", value).map_err(|error| level_not_understood = Some(error.to_string())).ok()
            }
            (None, None, None) => None,
        };

        let format = match (args.log_format, text("WG_LOG_FORMAT").as_deref()) {
            (Some(format), _) => format,
            (None, None | Some("text")) => LogFormat::Text,
            (None, Some("json")) => LogFormat::Json,
            (None, Some(other)) => return Err(wrong("WG_LOG_FORMAT", other, "text or json")),
        };

        let keep =
            args.disable_drop_privileges || text("WG_SUDO").map_or(Ok(false), |value| switch("WG_SUDO", value))?;

        let asked = match text("WG_THREADS") {
            Some(value) => {
                Some(value.parse().map_err(|_| wrong("WG_THREADS", value, "a number of threads from 1 on"))?)
            }
            None => None,
        };
        let workers = if args.disable_multi_queue { Some(NonZeroUsize::MIN) } else { args.threads.or(asked) };
        let realtime = text("WGD_REALTIME").map_or(Ok(true), |value| switch("WGD_REALTIME", value))?;
        let without_meaning = [("--disable-connected-udp", args.disable_connected_udp)];

        let tun_fd = descriptor_number("WG_TUN_FD", args.tun_fd, text("WG_TUN_FD"))?;
        let uapi_fd = descriptor_number("WG_UAPI_FD", args.uapi_fd, text("WG_UAPI_FD"))?;
        if let Some(fd) = tun_fd
            && uapi_fd == tun_fd
        {
            return Err(wrong("WG_UAPI_FD", fd.to_string(), "another descriptor than WG_TUN_FD"));
        }

        Ok(Settings {
            name,
            role,
            level: asked_level.unwrap_or(LevelFilter::ERROR),
            is_level_asked_for: asked_level.is_some_and(|level| level != LevelFilter::OFF),
            level_not_understood,
            format,
            log_file: args.log.or_else(|| set("WG_LOG_FILE").map(PathBuf::from)),
            tun_fd,
            uapi_fd,
            privileges: if keep { Privileges::Keep } else { Privileges::Drop },
            threads: Threads { workers, realtime },
            without_meaning: without_meaning
                .into_iter()
                .filter(|(_, given)| *given)
                .map(|(option, _)| option)
                .collect(),
        })
    }
}

fn wrong(place: &'static str, value: impl Into<String>, expected: &'static str) -> SettingsError {
    SettingsError::Value { place, value: value.into(), expected }
}

/// The names of levels of wireguard-go, of boringtun-cli, and the usual ones.
fn level(place: &'static str, value: String) -> Result<LevelFilter, SettingsError> {
    match value.to_ascii_lowercase().as_str() {
        "silent" | "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "verbose" | "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(wrong(place, value, "silent, error, warn, info, verbose, debug or trace")),
    }
}

fn switch(place: &'static str, value: String) -> Result<bool, SettingsError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(wrong(place, value, "1, true, yes or on; or 0, false, no or off")),
    }
}

/// A descriptor's number; -1 is boringtun-cli's way to say none.
fn descriptor_number(
    place: &'static str,
    option: Option<i32>,
    variable: Option<String>,
) -> Result<Option<RawFd>, SettingsError> {
    let expected = "the number of an open descriptor, 3 or above";
    let number = match (option, variable) {
        (Some(number), _) => number,
        (None, Some(value)) => value.parse().map_err(|_| wrong(place, value, expected))?,
        (None, None) => return Ok(None),
    };
    match number {
        -1 => Ok(None),
        number if number > 2 => Ok(Some(number)),
        number => Err(wrong(place, number.to_string(), expected)),
    }
}

/// Starts this program once more as the daemon, waits until that is ready, and says so by the exit code.
fn launch(settings: &Settings) -> ExitCode {
    let passed_on: Vec<RawFd> = [settings.tun_fd, settings.uapi_fd].into_iter().flatten().collect();
    descriptor::pass_on_only(&passed_on);
    let started = start_daemon().and_then(|mut daemon| {
        let verdict = wait_until_ready(&mut daemon)?;
        Ok((daemon, verdict))
    });
    match started {
        Ok((_, Verdict::Ready)) => ExitCode::SUCCESS,
        Ok((mut daemon, Verdict::Failed(reason))) => {
            eprintln!("wgd: {reason}");
            // It is on its way out; whoever tries again should not meet it.
            let _ = daemon.wait();
            ExitCode::FAILURE
        }
        Ok((mut daemon, Verdict::Died)) => {
            eprintln!("wgd: the daemon ended before it was ready: {}", describe(daemon.wait().ok()));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("wgd: cannot start the daemon in the background: {error}; try `wgd -f`");
            ExitCode::FAILURE
        }
    }
}

fn start_daemon() -> io::Result<Child> {
    refuse_in_background(env::var_os(BACKGROUND))?;
    let mut words = env::args_os();
    let called = words.next().unwrap_or_else(|| OsString::from("wgd"));
    std::process::Command::new(own_program(&called))
        .arg0(&called)
        .args(words)
        .env(BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
}

/// Keeps a process that was itself started this way from doing it again, whatever its role is taken for: a mistake in that
/// decision must not become processes without end.
fn refuse_in_background(marker: Option<OsString>) -> io::Result<()> {
    match marker {
        Some(value) if !value.is_empty() => {
            Err(io::Error::other(format!("{BACKGROUND} is set: this is the process in the background already")))
        }
        _ => Ok(()),
    }
}

/// The file this process runs; its real path, so that the daemon goes by its name in process lists.
fn own_program(called: &OsStr) -> PathBuf {
    match env::current_exe() {
        Ok(path) if path.exists() => path,
        // Replaced by an update while running: the old one can still be had.
        Ok(_) => PathBuf::from("/proc/self/exe"),
        Err(_) => PathBuf::from(called),
    }
}

/// What became of the daemon's start.
enum Verdict {
    Ready,
    Failed(String),
    /// It said nothing.
    Died,
}

/// Reads what the daemon has to say: one word, or why it cannot start.
fn wait_until_ready(daemon: &mut Child) -> io::Result<Verdict> {
    let Some(stdout) = daemon.stdout.take() else { return Ok(Verdict::Died) };
    let mut text = String::new();
    stdout.take(64 * 1024).read_to_string(&mut text)?;
    Ok(match text.trim_end() {
        READY => Verdict::Ready,
        "" => Verdict::Died,
        reason => Verdict::Failed(reason.to_owned()),
    })
}

fn describe(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exit status {code}"),
        Some((None, Some(signal))) => format!("killed by signal {signal}"),
        _ => "for an unknown reason".to_owned(),
    }
}

/// Who waits for the daemon to be ready.
enum Starter {
    Nobody,
    /// A launcher, at the other end of standard output.
    Waiting(io::Stdout),
}

/// Is the daemon: until it ends, and then it returns how.
fn serve(settings: Settings, mut starter: Starter) -> ExitCode {
    let outcome = Descriptors::take(&settings).and_then(|descriptors| {
        let runtime = prepare(&settings)?;
        runtime.block_on(live(settings, descriptors, &mut starter))
    });
    // Whoever did not come that far has lines to write all the same. That nothing can be written cannot be written.
    let _ = logging::begin_to_write();
    logging::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = with_causes(&error);
            match starter {
                Starter::Waiting(mut stdout) => {
                    // Nobody is left to tell if this fails.
                    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
                }
                Starter::Nobody => logging::complain(&text),
            }
            ExitCode::FAILURE
        }
    }
}

/// The error and what it came from, as far as it does not say so itself.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error("cannot open the log file {0}: {1}; its directory must exist and be writable")]
    LogFile(PathBuf, io::Error),
    #[error("cannot start the thread that writes the log: {0}")]
    LogThread(io::Error),
    #[error("cannot give up privileges: {0}; --disable-drop-privileges keeps them")]
    Privileges(io::Error),
    #[error("{place}={fd} is not an open descriptor: {source}; the process that starts wgd must pass it on")]
    Descriptor { place: &'static str, fd: RawFd, source: io::Error },
    #[error("cannot set up the event loop: {0}")]
    Runtime(io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the process that started this one is gone: {0}")]
    StarterGone(io::Error),
    #[error("interface {0} ended: {1}")]
    Ended(InstanceName, String),
}

/// What the parent process passed on.
struct Descriptors {
    tun: Option<OwnedFd>,
    control: Option<OwnedFd>,
}

impl Descriptors {
    /// Takes them before this process opens anything, so that a number that was not passed on cannot mean a file of ours.
    fn take(settings: &Settings) -> Result<Self, DaemonError> {
        Ok(Descriptors {
            tun: settings.tun_fd.map(|fd| take_descriptor("WG_TUN_FD", fd)).transpose()?,
            control: settings.uapi_fd.map(|fd| take_descriptor("WG_UAPI_FD", fd)).transpose()?,
        })
    }
}

/// Everything that must happen before there is a second thread; and the first of those, which writes the log.
fn prepare(settings: &Settings) -> Result<tokio::runtime::Runtime, DaemonError> {
    let destination = match &settings.log_file {
        Some(path) => logging::open_file(path)
            .map(LogDestination::File)
            .map_err(|error| DaemonError::LogFile(path.clone(), error))?,
        None => LogDestination::Stderr,
    };
    logging::start(settings.level, settings.format, destination);
    if let Some(complaint) = &settings.level_not_understood {
        tracing::error!("{complaint}; logging errors");
    }
    for option in &settings.without_meaning {
        tracing::info!("{option} is accepted for users of boringtun-cli and has no effect");
    }
    if settings.role == Role::Background {
        // Away from the terminal and from directories that somebody may want to unmount. Neither is worth failing for.
        let _ = rustix::process::setsid();
        let _ = rustix::process::chdir("/");
    }
    match settings.privileges {
        Privileges::Drop => privileges::drop_unneeded().map_err(DaemonError::Privileges)?,
        Privileges::Keep => {
            tracing::info!("keeping every privilege, as asked");
            privileges::hide_memory().map_err(DaemonError::Privileges)?;
        }
    }
    logging::begin_to_write().map_err(DaemonError::LogThread)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DaemonError::Runtime)
}

/// Starts the interface, reports, and waits for the end.
async fn live(settings: Settings, descriptors: Descriptors, starter: &mut Starter) -> Result<(), DaemonError> {
    // Before anything exists that a signal would leave behind.
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let spec = InstanceSpec {
        name: settings.name.clone(),
        tun: descriptors.tun.map_or(TunSource::Create, TunSource::Fd),
        control: match descriptors.control {
            Some(fd) => ControlSource::Fd(fd, control_socket::DIRECTORY.into()),
            None => ControlSource::Create(control_socket::DIRECTORY.into()),
        },
        threads: settings.threads,
    };
    let mut supervisor = Supervisor::new();
    supervisor.start(spec).await?;
    if let Starter::Waiting(stdout) = starter {
        report_ready(stdout, &settings).map_err(DaemonError::StarterGone)?;
        *starter = Starter::Nobody;
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "interface {} is ready", settings.name);

    let outcome = tokio::select! {
        end = supervisor.next_end() => match end {
            Some((name, end)) => explain(name, end),
            None => Ok(()),
        },
        _ = interrupt.recv() => {
            tracing::info!("interrupted");
            Ok(())
        }
        _ = terminate.recv() => {
            tracing::info!("asked to terminate");
            Ok(())
        }
    };
    supervisor.stop_all().await;
    outcome
}

fn listen(kind: SignalKind) -> Result<Signal, DaemonError> {
    signal(kind).map_err(DaemonError::Runtime)
}

/// Whether an interface's end is what somebody wanted.
fn explain(name: InstanceName, end: InstanceEnd) -> Result<(), DaemonError> {
    let failure = match end {
        InstanceEnd::Device(DeviceExit::LinkDeleted) => {
            tracing::info!("link {name} was deleted");
            return Ok(());
        }
        InstanceEnd::ControlSocket(ControlSocketEnd::FileRemoved(path)) => {
            tracing::info!("{} was removed", path.display());
            return Ok(());
        }
        InstanceEnd::ControlSocket(ControlSocketEnd::ClientGone) => {
            tracing::info!("the client of {name} closed its connection");
            return Ok(());
        }
        InstanceEnd::ControlSocket(ControlSocketEnd::Failed(error)) => format!("its control socket failed: {error}"),
        InstanceEnd::Device(reason) => format!("its device failed: {reason:?}"),
        InstanceEnd::Panicked(text) => format!("a fault in wgd: {text}; please report it"),
    };
    tracing::error!("interface {name} ended: {failure}");
    Err(DaemonError::Ended(name, failure))
}

/// Tells the launcher, then lets go of everything that belongs to it.
fn report_ready(stdout: &mut io::Stdout, settings: &Settings) -> io::Result<()> {
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    // Like wireguard-go: who asked for a log level wants to see something, and finds it where the start was typed.
    if !settings.is_level_asked_for || settings.log_file.is_some() {
        logging::flush();
        rustix::stdio::dup2_stderr(&nowhere)?;
    }
    Ok(())
}

/// Takes ownership of a descriptor that the parent process passed on.
#[expect(unsafe_code, reason = "the environment names descriptors by number")]
fn take_descriptor(place: &'static str, fd: RawFd) -> Result<OwnedFd, DaemonError> {
    // SAFETY: `Settings::read` lets no standard stream and no number twice through, and `Descriptors::take` is called
    // once, before this process opens anything.
    unsafe { descriptor::take(fd) }.map_err(|source| DaemonError::Descriptor { place, fd, source })
}

/// Set for the process in the background; what it writes to standard output goes to the waiting launcher.
const BACKGROUND: &str = "WGD_IN_BACKGROUND";

/// What a daemon says that is ready.
const READY: &str = "ready";

/// Exit code for a command line or an environment that makes no sense.
const EXIT_USAGE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> DaemonArgs {
        DaemonArgs {
            interface: Some("wg0".parse().expect("a name")),
            foreground: false,
            verbosity: None,
            log: None,
            log_format: None,
            tun_fd: None,
            uapi_fd: None,
            disable_drop_privileges: false,
            threads: None,
            disable_connected_udp: false,
            disable_multi_queue: false,
        }
    }

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::read(args(), |name| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn without_any_variable_it_goes_to_the_background_and_logs_errors_nobody_asked_for() {
        let settings = read(&[]).expect("valid");
        assert_eq!((settings.role, settings.level), (Role::Launcher, LevelFilter::ERROR));
        assert!(!settings.is_level_asked_for);
        assert_eq!(settings.privileges, Privileges::Drop);
    }

    #[test]
    fn the_foreground_is_asked_for_by_exactly_one() {
        assert_eq!(read(&[("WG_PROCESS_FOREGROUND", "1")]).expect("valid").role, Role::Foreground);
        assert_eq!(read(&[("WG_PROCESS_FOREGROUND", "0")]).expect("valid").role, Role::Launcher);
        assert_eq!(read(&[(BACKGROUND, "1"), ("WG_PROCESS_FOREGROUND", "1")]).expect("valid").role, Role::Background);
    }

    #[test]
    fn a_process_in_the_background_starts_no_other_even_if_it_takes_itself_for_a_launcher() {
        assert!(refuse_in_background(None).is_ok());
        // An empty variable counts as unset here too, and is never what marks a process.
        assert!(refuse_in_background(Some("".into())).is_ok());
        let refusal = refuse_in_background(Some("1".into())).expect_err("refused").to_string();
        assert!(refusal.contains(BACKGROUND), "{refusal}");
    }

    #[test]
    fn levels_of_both_predecessors_are_understood_and_their_own_variables_are_strict() {
        for (value, level) in
            [("verbose", LevelFilter::DEBUG), ("silent", LevelFilter::OFF), ("INFO", LevelFilter::INFO)]
        {
            assert_eq!(read(&[("LOG_LEVEL", value)]).expect("valid").level, level);
            assert_eq!(read(&[("WG_LOG_LEVEL", value)]).expect("valid").level, level);
        }
        assert!(!read(&[("LOG_LEVEL", "silent")]).expect("valid").is_level_asked_for);
        assert!(read(&[("LOG_LEVEL", "error")]).expect("valid").is_level_asked_for);
        let lenient = read(&[("LOG_LEVEL", "loud")]).expect("wireguard-go takes anything");
        assert_eq!(lenient.level, LevelFilter::ERROR);
        assert!(lenient.level_not_understood.is_some());
        assert!(read(&[("WG_LOG_LEVEL", "loud")]).is_err());
    }

    #[test]
    fn a_switch_is_one_or_true_and_nonsense_names_the_variable() {
        for value in ["1", "true", "TRUE", "yes", "on"] {
            assert_eq!(read(&[("WG_SUDO", value)]).expect("valid").privileges, Privileges::Keep, "{value}");
        }
        for value in ["0", "false", "no", "off", ""] {
            assert_eq!(read(&[("WG_SUDO", value)]).expect("valid").privileges, Privileges::Drop, "{value}");
        }
        let text = read(&[("WG_SUDO", "maybe")]).expect_err("nonsense").to_string();
        assert!(text.starts_with("WG_SUDO=maybe: expected 1"), "{text}");
    }

    #[test]
    fn descriptors_are_numbers_above_the_standard_streams_and_minus_one_is_none() {
        assert_eq!(read(&[("WG_TUN_FD", "7")]).expect("valid").tun_fd, Some(7));
        assert_eq!(read(&[("WG_UAPI_FD", "-1")]).expect("valid").uapi_fd, None);
        for value in ["x", "2", "-2", "99999999999"] {
            assert!(read(&[("WG_TUN_FD", value)]).is_err(), "{value}");
        }
        assert!(read(&[("WG_TUN_FD", "7"), ("WG_UAPI_FD", "8")]).is_ok());
        assert!(read(&[("WG_TUN_FD", "7"), ("WG_UAPI_FD", "7")]).is_err());
    }

    #[test]
    fn an_option_wins_over_its_variable() {
        let with_options = DaemonArgs {
            verbosity: Some("info".into()),
            log_format: Some(LogFormat::Text),
            uapi_fd: Some(9),
            log: Some("/option".into()),
            ..args()
        };
        let variables =
            [("WG_LOG_LEVEL", "trace"), ("WG_LOG_FORMAT", "json"), ("WG_UAPI_FD", "5"), ("WG_LOG_FILE", "/v")];
        let settings = Settings::read(with_options, |name| {
            variables.iter().find(|(set, _)| *set == name).map(|(_, value)| value.into())
        })
        .expect("valid");
        assert_eq!(settings.level, LevelFilter::INFO);
        assert_eq!(settings.format, LogFormat::Text);
        assert_eq!(settings.uapi_fd, Some(9));
        assert_eq!(settings.log_file, Some("/option".into()));
    }

    #[test]
    fn workers_are_chosen_and_nonsense_about_them_is_named() {
        let threads = |variables: &[(&str, &str)]| read(variables).map(|settings| settings.threads);
        assert_eq!(threads(&[]), Ok(Threads { workers: None, realtime: true }));
        let chosen = threads(&[("WG_THREADS", "4"), ("WGD_REALTIME", "no")]);
        assert_eq!(chosen, Ok(Threads { workers: NonZeroUsize::new(4), realtime: false }));
        for (name, value) in [("WG_THREADS", "many"), ("WG_THREADS", "0"), ("WGD_REALTIME", "sometimes")] {
            let error = threads(&[(name, value)]).expect_err(value).to_string();
            assert!(error.starts_with(&format!("{name}={value}: expected ")), "{error}");
        }
        let single = Settings::read(DaemonArgs { disable_multi_queue: true, ..args() }, |_| None).expect("valid");
        assert_eq!(single.threads.workers, Some(NonZeroUsize::MIN));
    }

    #[test]
    fn what_has_no_meaning_here_is_accepted_and_named_and_nonsense_is_not() {
        let given = DaemonArgs { disable_connected_udp: true, ..args() };
        let settings = Settings::read(given, |_| None).expect("valid");
        assert_eq!(settings.without_meaning, ["--disable-connected-udp"]);
        assert!(read(&[("WG_LOG_FORMAT", "xml")]).is_err());
    }
}
