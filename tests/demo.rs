//! `wgd demo` as a person runs it: what it prints, what it returns, and that nothing is left afterwards, however it ends.
//!
//! Each test runs its own copy of the executable, so that its processes can be told from all others by their file. A
//! machine that forbids namespaces sees the fallback only; such a test says so and ends.
#![cfg(not(virtual_time))]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{fs, thread};

#[test]
fn every_claim_is_shown_and_nothing_is_left() {
    let place = Place::new();
    let mut demo = Demo::start(place.command(&["demo", "--seconds", "1"]));
    if !demo.read_until("Measure") {
        return skip(&demo);
    }
    assert!(place.processes().len() > 5, "the check for processes would find some: {:?}", place.processes());
    assert_eq!(traces_on_the_host(), Vec::<String>::new(), "while it runs");
    let status = demo.finish();
    assert_eq!(status.code(), Some(0), "{}", demo.text);
    for claim in ALL_CLAIMS {
        assert!(demo.has_shown(claim), "{claim}: {}", demo.text);
    }
    assert!(!demo.text.contains("FAILED") && !demo.text.contains('\x1b'), "{}", demo.text);
    place.assert_clean();
}

#[test]
fn an_unprivileged_user_sees_the_same() {
    // SAFETY: geteuid has no precondition.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("skipped: not root, so every other test is this one");
    }
    let place = Place::new();
    let mut command = place.command(&["demo", "--seconds", "1"]);
    command.uid(NOBODY).gid(NOBODY);
    let mut demo = Demo::start(command);
    if !demo.read_until("Measure") {
        return skip(&demo);
    }
    assert_eq!(demo.finish().code(), Some(0), "{}", demo.text);
    for claim in ALL_CLAIMS {
        assert!(demo.has_shown(claim), "{claim}: {}", demo.text);
    }
    place.assert_clean();
}

#[test]
fn in_memory_the_same_story_is_told_and_called_the_fallback() {
    let place = Place::new();
    let mut demo = Demo::start(place.command(&["demo", "--in-memory", "--seconds", "1"]));
    assert!(demo.read_until("Build"), "{}", demo.text);
    assert_eq!(place.processes().len(), 1, "no process but itself");
    assert_eq!(demo.finish().code(), Some(0), "{}", demo.text);
    assert!(demo.text.contains("in memory") && demo.text.contains("fallback"), "{}", demo.text);
    for claim in COMMON_CLAIMS {
        assert!(demo.has_shown(claim), "{claim}: {}", demo.text);
    }
    place.assert_clean();
}

#[test]
fn where_namespaces_are_forbidden_it_says_so_and_tells_the_story_in_memory() {
    let place = Place::new();
    let script = r#"echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", script, "sh"]).arg(&place.executable).args(["demo", "--seconds", "1"]);
    let mut demo = Demo::start(prepared(command));
    if !demo.read_until("Build") {
        return eprintln!("skipped: no unshare, setpriv or user namespaces to forbid them in: {}", demo.text);
    }
    assert_eq!(demo.finish().code(), Some(0), "{}", demo.text);
    assert!(demo.text.contains("not available here: a user namespace: "), "{}", demo.text);
    assert!(demo.text.contains("in memory"), "{}", demo.text);
    place.assert_clean();
}

#[test]
fn a_signal_half_way_leaves_nothing() {
    for (signal, code) in [(libc::SIGINT, Some(130)), (libc::SIGTERM, Some(143)), (libc::SIGKILL, None)] {
        let place = Place::new();
        let mut demo = Demo::start(place.command(&["demo"]));
        if !demo.read_until("Measure") {
            return skip(&demo);
        }
        assert!(place.processes().len() > 5, "the check for processes would find some");
        demo.signal(signal);
        let status = demo.finish();
        assert_eq!(status.code(), code, "signal {signal}: {}", demo.text);
        if code.is_some() {
            assert!(demo.text.contains("everything it had built is removed"), "{}", demo.text);
            place.assert_clean();
        } else {
            // Nobody could wait for the others, but they do not outlive it for long.
            assert_eq!(status.signal(), Some(signal));
            let deadline = Instant::now() + PATIENCE;
            while !place.processes().is_empty() && Instant::now() < deadline {
                thread::yield_now();
            }
            place.assert_clean();
        }
    }
}

#[test]
fn a_tunnel_that_dies_is_reported_with_code_1_and_nothing_is_left() {
    let place = Place::new();
    let mut demo = Demo::start(place.command(&["demo"]));
    if !demo.read_until("Measure") {
        return skip(&demo);
    }
    place.kill_daemon("wgB");
    assert_eq!(demo.finish().code(), Some(1), "{}", demo.text);
    assert!(demo.text.contains("FAILED") && demo.text.contains("Not every claim could be verified"), "{}", demo.text);
    assert!(
        demo.text.contains("wgB: its process has ended, signal: 9"),
        "the evidence names the tunnel: {}",
        demo.text
    );
    place.assert_clean();
}

#[test]
fn outside_a_sandbox_the_inside_refuses_to_run() {
    let place = Place::new();
    let mut demo = Demo::start(place.command(&["demo", "--inside"]));
    assert_eq!(demo.finish().code(), Some(2), "{}", demo.text);
    assert_eq!(demo.text, "");
}

/// A folder with the test's own copy of the executable. One test at a time: they fill two cores each.
struct Place {
    executable: PathBuf,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Place {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our own folder");
        let executable = folder.path().join("wgd");
        fs::copy(env!("CARGO_BIN_EXE_wgd"), &executable).expect("the executable is there");
        Place { executable, _folder: folder, _turn: turn }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(arguments);
        prepared(command)
    }

    /// The processes that execute our copy, on either side of any namespace.
    fn processes(&self) -> Vec<(i32, String)> {
        let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours =
            numbers.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.executable));
        let words = |pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        ours.map(|pid| (pid, words(pid))).collect()
    }

    fn kill_daemon(&self, interface: &str) {
        let processes = self.processes();
        let wanted = format!("wgd -f {interface} ");
        let (pid, _) = processes.iter().find(|(_, words)| *words == wanted).expect("the daemon runs");
        // SAFETY: a process of ours; kill touches no memory.
        assert_eq!(unsafe { libc::kill(*pid, libc::SIGKILL) }, 0);
    }

    fn assert_clean(&self) {
        assert_eq!(self.processes(), []);
        assert_eq!(traces_on_the_host(), Vec::<String>::new());
    }
}

/// Links and sockets of the demonstration where only the host's own should be.
fn traces_on_the_host() -> Vec<String> {
    let links = ["wgA", "wgB", "nodeA", "nodeB", "wanA", "wanB"];
    let paths = links.iter().flat_map(|link| {
        [format!("/sys/class/net/{link}"), format!("/var/run/wireguard/{link}.sock"), format!("/run/{link}.log")]
    });
    paths.filter(|path| Path::new(path).exists()).collect()
}

fn prepared(mut command: Command) -> Command {
    // Without a UTF-8 locale the marks are words, and the report is the same on every machine.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// A demonstration under way, and what it has said so far.
struct Demo {
    process: Option<Child>,
    output: Option<BufReader<ChildStdout>>,
    text: String,
}

impl Demo {
    fn start(mut command: Command) -> Demo {
        let Ok(mut process) = command.spawn() else {
            return Demo { process: None, output: None, text: format!("{command:?} cannot be started") };
        };
        let output = process.stdout.take().map(BufReader::new);
        Demo { process: Some(process), output, text: String::new() }
    }

    /// Reads whole lines until one starts with `heading`; false if it ends, or turns out to be the fallback, before.
    fn read_until(&mut self, heading: &str) -> bool {
        let Some(output) = &mut self.output else { return false };
        loop {
            let before = self.text.len();
            match output.read_line(&mut self.text) {
                Ok(0) | Err(_) => return false,
                Ok(_) if self.text[before..].starts_with("Measure (one thread") => return false,
                Ok(_) if self.text[before..].starts_with(heading) => return true,
                Ok(_) => {}
            }
        }
    }

    fn signal(&self, signal: i32) {
        let process = self.process.as_ref().expect("started");
        // SAFETY: our child, not yet waited for; kill touches no memory.
        assert_eq!(unsafe { libc::kill(process.id() as i32, signal) }, 0);
    }

    fn finish(&mut self) -> ExitStatus {
        // With SIGKILL the others may hold the pipe for a moment longer; all output ends when they do.
        let status = self.process.as_mut().expect("started").wait().expect("our child");
        if let Some(mut output) = self.output.take() {
            let mut rest = Vec::new();
            output.read_to_end(&mut rest).expect("a pipe");
            self.text += &String::from_utf8_lossy(&rest);
        }
        status
    }

    fn has_shown(&self, claim: &str) -> bool {
        self.text.lines().any(|line| line.trim_start().strip_prefix("ok").is_some_and(|rest| rest.contains(claim)))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn skip(demo: &Demo) {
    let is_fallback = demo.text.contains("not available here: ");
    assert!(is_fallback, "neither the story nor the fallback: {}", demo.text);
    eprintln!("skipped: {}", demo.text);
}

/// Claims of both ways to tell the story.
const COMMON_CLAIMS: [&str; 4] = [
    "AllowedIPs of wgA and of wgB contain 10.99.0.0/24",
    "answered by node A",
    "wgB has sent nothing",
    "more moves, the very next packet followed each",
];

const ALL_CLAIMS: [&str; 16] = [
    "client, router, node A, node B in network namespaces",
    "four wgd processes",
    "keys, ports, peers",
    COMMON_CLAIMS[0],
    COMMON_CLAIMS[1],
    COMMON_CLAIMS[2],
    "ip route replace 10.99.0.10 dev wgB: next packet to B",
    COMMON_CLAIMS[3],
    "moves under 1000 packets/s: each to its node, none lost",
    "ping, 100 echoes",
    "TCP, one stream, client to node B",
    "TCP, one stream, node B to client",
    "wgB carried at least these bytes",
    "wgA to node A",
    "wgB to node B",
    "no process, namespace, link or file is left",
];

const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(10);
