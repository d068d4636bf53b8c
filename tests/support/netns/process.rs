//! Processes of simulated hosts, seen from outside: owns finding out about them and ending them.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{SOON, wait_until};

/// Some process, by its number outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The number as the test sees it.
    pub pid: u32,
}

impl Process {
    /// The short name, as in `ps -o comm`.
    pub fn name(self) -> Option<String> {
        Some(fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?.trim_end().to_owned())
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        self.stat().is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X"))
    }

    /// Processor time used so far, in clock ticks of 10 ms.
    pub fn cpu_ticks(self) -> u64 {
        let fields = self.stat().expect("the process is alive");
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    }

    /// Resident memory.
    pub fn rss_bytes(self) -> u64 {
        let line = self.status("VmRSS").expect("the process is alive");
        line.trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
    }

    /// A line of `/proc/PID/status`, without its name.
    pub fn status(self, field: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    /// Sends a signal, by its name without `SIG`.
    pub fn signal(self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid.to_string()]).output().expect("kill starts");
        assert!(sent.status.success(), "kill -{name} {}: {}", self.pid, String::from_utf8_lossy(&sent.stderr));
    }

    /// How long it took to end from now on; panics when it is still there after `limit`.
    #[track_caller]
    pub fn ends_within(self, limit: Duration) -> Duration {
        let start = Instant::now();
        wait_until("the process ends", limit, || (!self.is_alive()).then_some(()));
        start.elapsed()
    }

    /// Fields of `/proc/PID/stat` from the state on.
    fn stat(self) -> Option<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (_, after_name) = text.rsplit_once(") ")?;
        Some(after_name.split_whitespace().map(str::to_owned).collect())
    }
}

/// A child of the test inside a host.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts `command`, which [`Host::command`] made.
    pub fn start(command: &mut Command) -> Running {
        Running { child: command.spawn().expect("the command starts") }
    }

    /// The program itself; the child of the test is `nsenter`.
    pub fn process(&self) -> Process {
        let find = || only_child(self.child.id()).map(|pid| Process { pid });
        wait_until("nsenter has started its program", SOON, find)
    }

    /// Waits for the program to end by itself; its exit code.
    #[track_caller]
    pub fn exit_code(&mut self, limit: Duration) -> Option<i32> {
        wait_until("the program ends", limit, || self.child.try_wait().expect("it is our child")).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), only_child(self.child.id())) {
            Process { pid }.signal("KILL");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first child of a process.
pub(super) fn only_child(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
