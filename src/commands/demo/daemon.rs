//! Owns the tunnels of the demonstration: one process of this executable per interface, and the conversation with it
//! over its control socket, as `wg` would have it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};
use std::{env, thread};

use wg_core::{PrivateKey, PublicKey};
use wg_router::InstanceName;

use super::namespaces::Netns;
use super::report::Failure;
use crate::control_socket::{DIRECTORY, path_of};
use crate::uapi_client::{self, PeerState};

/// One running tunnel.
pub(super) struct Daemon {
    interface: InstanceName,
    process: Mutex<Child>,
    log: PathBuf,
}

/// What an interface is told about its one peer.
pub(super) struct PeerSettings<'a> {
    /// Who it is.
    pub(super) public_key: PublicKey,
    /// Where it is; without it, it has to come to us.
    pub(super) endpoint: Option<SocketAddr>,
    /// What it may send and is sent.
    pub(super) allowed_ips: &'a [&'a str],
}

impl Daemon {
    /// Starts `wgd -f interface` inside `place`; see [`Daemon::wait_until_ready`].
    pub(super) fn start(place: &Netns, interface: &'static str) -> Result<Daemon, Failure> {
        let log = PathBuf::from(format!("/run/{interface}.log"));
        let process = File::create(&log).and_then(|file| {
            let errors = file.try_clone()?;
            place.within(|| {
                let mut command = Command::new("/proc/self/exe");
                command.arg0("wgd").args(["-f", interface]);
                // Nothing in the person's environment may change what the demonstration shows.
                command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("LOG_LEVEL", "info");
                command.env(super::sandbox::MARKER, "1");
                command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn()
            })
        });
        let process = process.map_err(|error| Failure::during(&format!("starting wgd -f {interface}"), &error))?;
        let interface = interface.parse().expect("a constant name");
        Ok(Daemon { interface, process: Mutex::new(process), log })
    }

    /// Waits until the process answers on its socket.
    pub(super) fn wait_until_ready(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            if self.ended().is_some() {
                return Err(self.failure(format!("wgd -f {} did not stay", self.interface)));
            }
            if Instant::now() > deadline {
                let socket = self.socket();
                return Err(self.failure(format!("no answer on {} after {START_TIMEOUT:?}", socket.display())));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Gives the interface its key, its port and its one peer.
    pub(super) fn configure(&self, key: &PrivateKey, port: u16, peer: &PeerSettings<'_>) -> Result<(), Failure> {
        let mut request = zeroize::Zeroizing::new(String::with_capacity(1024));
        request.push_str("set=1\nprivate_key=");
        request.push_str(&key.to_hex());
        let written = write!(request, "\nlisten_port={port}\nreplace_peers=true\n{}\n", peer_lines(peer));
        written.expect("writing to a string cannot fail");
        self.change(&request).map_err(|error| self.failure(format!("{}: control socket: {error}", self.interface)))
    }

    /// The state of its one peer.
    pub(super) fn status(&self) -> Result<PeerState, Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let state = uapi_client::fetch(Path::new(DIRECTORY), &self.interface, now);
        let state = state.map_err(|error| self.failure(format!("{}: {error}", self.interface)))?;
        state.peers.into_iter().next().ok_or_else(|| self.failure(format!("{} has no peer", self.interface)))
    }

    /// The name of its interface.
    pub(super) fn interface(&self) -> &InstanceName {
        &self.interface
    }

    /// A failure of this tunnel; the end of its log, and its own end if there was one, are the evidence.
    pub(super) fn failure(&self, what: impl Into<String>) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(EVIDENCE_LINES)..].iter();
        let mut evidence: Vec<String> = tail.map(|line| format!("{}: {line}", self.interface)).collect();
        if let Some(status) = self.ended() {
            evidence.push(format!("{}: its process has ended, {status}", self.interface));
        }
        Failure { what: what.into(), evidence }
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.process.lock().expect("nobody panics with it").try_wait().ok().flatten()
    }

    fn socket(&self) -> PathBuf {
        path_of(Path::new(DIRECTORY), &self.interface)
    }

    fn change(&self, request: &str) -> io::Result<()> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if answer == "errno=0\n" { Ok(()) } else { Err(io::Error::other(format!("it said {answer:?}"))) }
    }
}

fn peer_lines(peer: &PeerSettings<'_>) -> String {
    let mut lines = format!("public_key={}\nreplace_allowed_ips=true\n", peer.public_key.to_hex());
    if let Some(endpoint) = peer.endpoint {
        lines += &format!("endpoint={endpoint}\n");
    }
    for prefix in peer.allowed_ips {
        lines += &format!("allowed_ip={prefix}\n");
    }
    lines
}

const START_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const EVIDENCE_LINES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_described_with_its_prefixes_after_its_key() {
        let key = PublicKey::from_bytes([0xab; 32]);
        let peer = PeerSettings { public_key: key, endpoint: None, allowed_ips: &["10.0.0.0/8"] };
        let expected = format!("public_key={}\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n", "ab".repeat(32));
        assert_eq!(peer_lines(&peer), expected);
        let endpoint = Some(SocketAddr::from(([203, 0, 113, 1], 51820)));
        assert!(peer_lines(&PeerSettings { endpoint, ..peer }).contains("\nendpoint=203.0.113.1:51820\n"));
    }
}
