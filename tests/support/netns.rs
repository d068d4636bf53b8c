//! Simulated hosts for the namespace tests: owns making them, joining them, running commands in them and removing them.
//!
//! One [`Host`] is a network namespace, a mount namespace with a `/run` and an `/etc/wireguard` of its own, and a process
//! namespace. None of it has a name, so tests run side by side and twice at once, any number of hosts may call their
//! interface `wg0`, and nothing can be left behind: the first process of the process namespace reads from a pipe whose
//! other end the test holds. However the test ends, the pipe closes, that process ends, and with it every process and
//! every link of the host.
//!
//! What a test asserts is not here. Needs root; see [`skip`].

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test target uses a part of the harness")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[path = "netns/daemon.rs"]
mod daemon;
#[path = "netns/kernel_peer.rs"]
mod kernel_peer;
#[path = "netns/ping.rs"]
mod ping;
#[path = "netns/process.rs"]
mod process;
#[path = "netns/relay.rs"]
mod relay;

pub use daemon::{Daemon, Keys, PeerLine};
pub use kernel_peer::{KernelPeer, KernelPeerConfig};
pub use ping::{PingReport, Pings};
use process::only_child;
pub use process::{Process, Running};
pub use relay::{Relay, Toward};

// ------------------------------------------------------------------------------------------------------ whether it can

/// Why the namespace tests cannot run here, or `None`.
///
/// A reason is printed by the test that is left out. Where the tests are meant to run (`CI=true`, as root) there is no
/// leaving out: a reason is a failure.
pub fn skip() -> Option<String> {
    static REASON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let reason = REASON.get_or_init(why_not).clone()?;
    let must_run = std::env::var("CI").is_ok_and(|value| value == "true") && is_root();
    assert!(!must_run, "the namespace tests cannot run: {reason}");
    Some(reason)
}

/// Ends the test early, with the reason printed, where namespaces or the tools of the tests are missing.
macro_rules! needs_namespaces {
    () => {
        if let Some(reason) = netns::skip() {
            netns::say(&format!("skipped: {reason}"));
            return;
        }
    };
}
pub(crate) use needs_namespaces;

/// Prints a line that people see whether the test passes or not.
pub fn say(line: &str) {
    // The macros' output is kept back by the test harness.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn why_not() -> Option<String> {
    if !is_root() {
        return Some("network namespaces with private mounts need root".into());
    }
    if let Some(tool) = TOOLS.iter().find(|tool| find_in_path(tool).is_none()) {
        return Some(format!("`{tool}` is not installed (.ci/run installs everything)"));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".into());
    }
    let probe = Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"]).output();
    match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("`unshare` says: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("`unshare`: {error}")),
    }
}

const TOOLS: &[&str] =
    &["bash", "ip", "iperf3", "nft", "nsenter", "ping", "sysctl", "unshare", "wg", "wg-quick", "wireguard-go"];

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Where `program` is, looked up like a shell does.
pub fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

// ------------------------------------------------------------------------------------------------------------- waiting

/// Returns what `probe` finds as soon as it finds something; panics with `what` when `limit` has passed without.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A limit for things that take moments; reached only when something is broken.
pub const SOON: Duration = Duration::from_secs(20);

// --------------------------------------------------------------------------------------------------------------- hosts

/// A simulated host; see the top of the file.
pub struct Host {
    name: String,
    holder: Child,
    init: u32,
}

impl Host {
    /// A host with nothing but a loopback interface. `name` appears in messages only.
    pub fn new(name: &str) -> Host {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["bash", "-euc", HOST_INIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut ready = String::new();
        let stdout = holder.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut ready).expect("the host's first process writes a line");
        assert_eq!(ready, "ready\n", "host {name} did not come up");
        let init = only_child(holder.id()).expect("unshare has one child");
        Host { name: name.into(), holder, init }
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's first process, as seen from outside: what `ip link set ... netns` wants.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A command that will run inside the host.
    pub fn command(&self, program: &str) -> Command {
        command_inside(self.init, program)
    }

    /// Runs a bash script inside the host and returns its standard output without the last newline. Panics when it fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(
            output.status.success(),
            "on {}: `{script}` ended with {}\n--- stdout\n{}--- stderr\n{}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("output is UTF-8").trim_end().to_owned()
    }

    /// Runs a bash script inside the host, whatever comes of it. Waits for everything that keeps its output open.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("bash").args(["-euo", "pipefail", "-c", script]).output().expect("nsenter starts")
    }

    /// Starts a program inside the host; it is ended at the latest with the returned value.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(program);
        Running::start(command.args(arguments).stdout(Stdio::null()))
    }

    /// Runs `work` on a thread inside the host's network namespace. Sockets that it makes stay in that namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.init)).expect("the host is alive");
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: `namespace` is an open descriptor for the length of the call; the call changes the network
                // namespace of this thread alone, and the thread ends with the closure.
                let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(done, 0, "setns: {}", std::io::Error::last_os_error());
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves a link to another host.
    #[track_caller]
    pub fn give_link(&self, device: &str, to: &Host) {
        // Numbers of processes mean something else inside the host; its network alone is entered.
        let moved = Command::new("nsenter")
            .args(["-n", "-t", &self.init.to_string(), "--", "ip", "link", "set", device])
            .args(["netns", &to.init.to_string()])
            .output()
            .expect("nsenter starts");
        assert!(moved.status.success(), "{device}: {}", String::from_utf8_lossy(&moved.stderr));
    }

    /// The path under which this test reaches a file of the host.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Writes `/etc/wireguard/NAME.conf`.
    pub fn write_conf(&self, interface: &str, text: &str) {
        let file = self.path(&format!("/etc/wireguard/{interface}.conf"));
        fs::write(&file, text).expect("the configuration can be written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("the mode can be set");
    }

    /// Reads `/etc/wireguard/NAME.conf` back.
    pub fn read_conf(&self, interface: &str) -> String {
        fs::read_to_string(self.path(&format!("/etc/wireguard/{interface}.conf"))).expect("the configuration is there")
    }

    /// Every process of the host with that name (as in `ps -o comm`), as seen from outside; the dead do not count.
    pub fn processes(&self, name: &str) -> Vec<Process> {
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.init)).expect("the host is alive");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let process = Process { pid };
            let same_host = fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == own);
            if same_host && process.name().as_deref() == Some(name) && process.is_alive() {
                found.push(process);
            }
        }
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.holder.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        // Already gone, as a rule; --kill-child takes the rest along.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A command that will run inside the host with that first process.
fn command_inside(init: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-n", "-m", "-p", "-t", &init.to_string(), "--", program]);
    command.stdin(Stdio::null());
    command
}

/// The first process of a host. bash, because it also reaps the daemons that end.
const HOST_INIT: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=700 tmpfs /etc/wireguard
mount -t sysfs sysfs /sys || :
ip link set lo up
sysctl -qw net.ipv4.ping_group_range="0 0"
for scope in all default; do
    sysctl -qw net.ipv6.conf.$scope.accept_dad=0 net.ipv6.conf.$scope.accept_ra=0 || :
done
echo ready
exec >&2
while read -r _; do :; done
"#;

/// Joins two hosts by a cable: a veth pair, both ends up, without addresses.
#[track_caller]
pub fn cable(left: (&Host, &str), right: (&Host, &str)) {
    let made = Command::new("ip")
        .args(["link", "add", left.1, "netns", &left.0.init.to_string(), "type", "veth"])
        .args(["peer", "name", right.1, "netns", &right.0.init.to_string()])
        .status()
        .expect("ip starts");
    assert!(made.success(), "no cable between {} and {}", left.0.name, right.0.name);
    for (host, device) in [left, right] {
        host.sh(&format!("ip link set {device} up"));
    }
}
