//! Owns `wgd demo`: shows the main job on this machine, with real tunnels in namespaces of its own, and leaves nothing.
//! Where namespaces are forbidden it says so and tells the same story in memory.
//!
//! This file starts the sandbox, watches it and judges how it ended. Inside run, in this order: `sandbox` (the walls),
//! `namespaces` (the place), `daemon` (the tunnels), `traffic` (the packets), `story` (the claims). Instead of them,
//! `memory`. All of them write through `report`.

mod daemon;
mod memory;
mod namespaces;
mod report;
mod sandbox;
mod story;
mod traffic;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use wg_core::PrivateKey;

use report::{Colour, Failure, Report, shown};
use sandbox::{Ended, Powers, Sandbox};

/// Settings of the demonstration.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// Tell the story in memory, without namespaces and tunnels of the kernel
    #[arg(long)]
    in_memory: bool,

    /// Plain text, also on a terminal
    #[arg(long)]
    no_color: bool,

    /// Seconds to fill a TCP connection, per direction
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,

    /// This is the first process of the sandbox
    #[arg(long, hide = true)]
    inside: bool,
}

impl DemoArgs {
    fn colour(&self) -> Colour {
        if self.no_color { Colour::Off } else { Colour::Automatic }
    }

    fn length(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }

    /// The same settings for the process inside.
    fn for_inside(&self) -> Vec<String> {
        let mut words = vec!["demo".to_owned(), "--inside".to_owned(), format!("--seconds={}", self.seconds)];
        if self.no_color {
            words.push("--no-color".to_owned());
        }
        words
    }
}

/// Runs the demonstration. Success means that every claim in the report was verified.
pub fn run(args: DemoArgs) -> ExitCode {
    if args.inside {
        return story::run(&args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(watch(&args))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wgd demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn watch(args: &DemoArgs) -> io::Result<ExitCode> {
    let mut interrupts = Interrupts::new()?;
    let mut missing = Vec::new();
    if !args.in_memory {
        for &powers in Powers::to_try() {
            match tell_in_sandbox(powers, args, &mut interrupts).await? {
                Told::Unavailable(reason) => missing.push(explain(powers, reason)),
                Told::Finished(code) => return Ok(code),
            }
        }
    }
    tell_in_memory(args, &missing, &mut interrupts).await
}

/// Names the setting that most often stands behind a refusal in a user namespace.
fn explain(powers: Powers, reason: String) -> String {
    let is_restricted = |path| fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    if powers == Powers::UserNamespace && is_restricted("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") {
        return format!("{reason} (sysctl kernel.apparmor_restrict_unprivileged_userns is 1; root is not restricted)");
    }
    reason
}

/// What became of one attempt with a sandbox.
enum Told {
    /// This machine does not offer what the sandbox needs.
    Unavailable(String),
    /// The story was told, to its end or to an interruption.
    Finished(ExitCode),
}

async fn tell_in_sandbox(powers: Powers, args: &DemoArgs, interrupts: &mut Interrupts) -> io::Result<Told> {
    let words = args.for_inside();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let sandbox = match Sandbox::start(powers, &words) {
        Ok(sandbox) => sandbox,
        Err(reason) => return Ok(Told::Unavailable(reason)),
    };
    let limit = args.length() * 2 + TIME_LIMIT;
    let news = tokio::select! {
        news = listen(&sandbox) => news?,
        stop = interrupts.next() => {
            sandbox.kill()?;
            println!("\nwgd demo: {stop}; everything it had built is removed");
            return Ok(Told::Finished(ExitCode::from(stop.code())));
        }
        () = tokio::time::sleep(limit) => {
            sandbox.kill()?;
            println!("\nwgd demo: no end after {limit:?}; stopped, and everything it had built is removed");
            return Ok(Told::Finished(ExitCode::FAILURE));
        }
    };
    let ended = sandbox.wait()?;
    match news.unavailable {
        Some(reason) => Ok(Told::Unavailable(reason)),
        None => Ok(Told::Finished(conclude(args, ended, &news.namespaces))),
    }
}

/// What the inside told the outside.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    unavailable: Option<String>,
    namespaces: BTreeSet<u64>,
}

/// Listens until the inside ends.
async fn listen(sandbox: &Sandbox) -> io::Result<News> {
    let control = sandbox.control().try_clone()?;
    control.set_nonblocking(true)?;
    let mut lines = BufReader::new(UnixStream::from_std(control)?).lines();
    let mut news = News::default();
    // A process that is killed may end the stream with an error as well as with its end.
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split_once(' ') {
            Some(("unavailable", reason)) => news.unavailable = Some(reason.to_owned()),
            Some(("namespaces", numbers)) => {
                news.namespaces = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
            }
            _ => {}
        }
    }
    Ok(news)
}

/// Judges how the story ended, and sees for itself that nothing is left.
fn conclude(args: &DemoArgs, ended: Ended, namespaces: &BTreeSet<u64>) -> ExitCode {
    let report = Report::new(args.colour());
    report.heading("Clean-up");
    let removed = report.step("no process, namespace, link or file is left", || {
        match users_of(namespaces).map_err(|error| Failure::during("reading /proc", &error))? {
            users if users.is_empty() => Ok(shown("checked")),
            users => Err(Failure::new(format!("processes {} are still in them", users.join(", ")))),
        }
    });
    match ended {
        Ended::Code(0) if removed.is_ok() => {
            report.line(CLOSING);
            ExitCode::SUCCESS
        }
        Ended::Code(0 | 1) => {
            report.line(NOT_VERIFIED);
            ExitCode::FAILURE
        }
        ended => {
            report.line(&format!("\nThe story ended before its end: {ended:?}."));
            ExitCode::FAILURE
        }
    }
}

/// The processes that are in one of these network namespaces, as far as we may look.
fn users_of(namespaces: &BTreeSet<u64>) -> io::Result<Vec<String>> {
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let inside = fs::metadata(entry.path().join("ns/net")).is_ok_and(|netns| namespaces.contains(&netns.ino()));
        if inside {
            users.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(users)
}

/// Tells the story in memory, and first why.
async fn tell_in_memory(args: &DemoArgs, missing: &[String], interrupts: &mut Interrupts) -> io::Result<ExitCode> {
    let report = Report::new(args.colour());
    report.line(IN_MEMORY_TITLE);
    report.line(&machine());
    report.line(IN_MEMORY_LIMITS);
    for reason in missing.iter().collect::<BTreeSet<_>>() {
        report.line(&format!("  not available here: {reason}"));
    }
    if args.in_memory {
        report.line("  as asked with --in-memory");
    }
    let settings = args.clone();
    let mut story = tokio::task::spawn_blocking(move || memory::tell(&settings));
    let told = tokio::select! {
        told = &mut story => told.map_err(io::Error::other)?,
        stop = interrupts.next() => {
            println!("\nwgd demo: {stop}; nothing was built outside this process");
            // The thread that tells the story ends with the process.
            std::process::exit(stop.code().into());
        }
    };
    if told.is_err() {
        report.line(NOT_VERIFIED);
        return Ok(ExitCode::FAILURE);
    }
    report.line(IN_MEMORY_CLOSING);
    Ok(ExitCode::SUCCESS)
}

/// What the measured values depend on.
fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let build = if cfg!(debug_assertions) { ", built without optimisation" } else { "" };
    format!("wgd {}, Linux {}, {processors} processors{build}", env!("CARGO_PKG_VERSION"), kernel.trim())
}

fn new_key() -> Result<PrivateKey, Failure> {
    random().map(PrivateKey::from_bytes)
}

fn random() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new(format!("no randomness: {error}")))?;
    Ok(bytes)
}

/// The signals by which a person ends a program.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Interrupt,
    Terminate,
}

impl Interrupts {
    fn new() -> io::Result<Interrupts> {
        Ok(Interrupts { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }
}

impl Stop {
    /// What a shell reports for a program that this signal ended.
    fn code(self) -> u8 {
        let signal = match self {
            Stop::Interrupt => libc::SIGINT,
            Stop::Terminate => libc::SIGTERM,
        };
        128 + signal as u8
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Stop::Interrupt => "interrupted",
            Stop::Terminate => "asked to stop",
        })
    }
}

/// Beyond the time for TCP: the rest takes four seconds on an idle machine.
const TIME_LIMIT: Duration = Duration::from_secs(30);

const CLOSING: &str = "
Shown with real packets: instances with the same AllowedIPs live side by side, each with its own key and
port, and the kernel's routing table chooses between them, from one packet to the next.
Next: `wgd IFNAME` and `wg`, or `WG_QUICK_USERSPACE_IMPLEMENTATION=wgd wg-quick up wg0`; see `wgd --help`.";

const NOT_VERIFIED: &str = "\nNot every claim could be verified: see the marked line above.";

const IN_MEMORY_TITLE: &str = "wgd demo, in memory: two nodes claim the same prefix, and a route decides";

const IN_MEMORY_LIMITS: &str = "
This is the fallback: the engines and their cryptography are real; the network, the TUN devices and the
routing table are not.";

const IN_MEMORY_CLOSING: &str = "
Shown in memory: instances with the same AllowedIPs live side by side, each with its own key, and whoever
chooses the instance chooses the node, from one packet to the next.
Next: run it as root, or where user namespaces and /dev/net/tun are allowed, to see it with real packets.";
