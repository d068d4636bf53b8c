//! WireGuard daemons on simulated hosts, and what `wg` says of them.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::{Host, Process, SOON, find_in_path};

/// Which userspace WireGuard runs on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The program under test.
    Wgd,
    /// The reference implementation.
    WireguardGo,
}

impl Daemon {
    /// What to run. `WGD_TEST_DAEMON` names another program in the place of wgd.
    pub fn program(self) -> PathBuf {
        match self {
            Daemon::Wgd => {
                std::env::var_os("WGD_TEST_DAEMON").map_or_else(|| env!("CARGO_BIN_EXE_wgd").into(), PathBuf::from)
            }
            Daemon::WireguardGo => find_in_path("wireguard-go").expect("wireguard-go is installed"),
        }
    }

    /// The name of its processes.
    pub fn process_name(self) -> String {
        let program = self.program();
        let name = program.file_name().and_then(|name| name.to_str()).expect("a program has a name");
        name.chars().take(15).collect()
    }
}

impl Host {
    /// Starts the daemon as `wg-quick` does, in the background, and returns its process.
    #[track_caller]
    pub fn start(&self, daemon: Daemon, interface: &str) -> Process {
        self.start_with(daemon, interface, &[])
    }

    /// Like [`Host::start`], with these variables.
    #[track_caller]
    pub fn start_with(&self, daemon: Daemon, interface: &str, variables: &[(&str, &str)]) -> Process {
        let before = self.processes(&daemon.process_name());
        let program = daemon.program();
        let mut command = self.command(program.to_str().expect("a path in UTF-8"));
        let started = command.arg(interface).envs(variables.iter().copied()).output().expect("nsenter starts");
        assert!(
            started.status.success(),
            "{} {interface}: {}\n{}",
            program.display(),
            started.status,
            String::from_utf8_lossy(&started.stderr)
        );
        let mut new = self.processes(&daemon.process_name());
        new.retain(|process| !before.contains(process));
        assert_eq!(new.len(), 1, "one daemon stays in the background");
        new[0]
    }

    /// Runs `wg-quick ACTION INTERFACE` with that daemon.
    pub fn try_wg_quick(&self, daemon: Daemon, action: &str, interface: &str) -> Output {
        self.command(&self.wg_quick_program())
            .args([action, interface])
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", daemon.program())
            .output()
            .expect("nsenter starts")
    }

    /// The same; panics when it fails. Standard output.
    #[track_caller]
    pub fn wg_quick(&self, daemon: Daemon, action: &str, interface: &str) -> String {
        let output = self.try_wg_quick(daemon, action, interface);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "on {}: wg-quick {action} {interface}: {}\n{errors}",
            self.name,
            output.status
        );
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    /// `wg-quick` as installed. Where the kernel has WireGuard of its own, a copy that does not get to see it: `wg-quick`
    /// would never ask for a daemon.
    fn wg_quick_program(&self) -> String {
        let wg_quick = find_in_path("wg-quick").expect("wg-quick is installed");
        let kernel_has_it = self.try_sh("ip link add probe type wireguard && ip link del probe").status.success();
        if !kernel_has_it {
            return wg_quick.to_str().expect("a path in UTF-8").to_owned();
        }
        self.sh(&format!(
            r#"[[ -e /run/hidden/wg-quick ]] || {{
                mkdir -p /run/hidden
                cp {} /run/hidden/wg-quick
                printf '#!/bin/bash\n[[ "$*" != "link add "*" type wireguard" ]] || exit 2\nexec %s "$@"\n' "$(command -v ip)" >/run/hidden/ip
                chmod 755 /run/hidden/*
                mount -t tmpfs tmpfs /sys/module
            }}"#,
            wg_quick.display()
        ));
        "/run/hidden/wg-quick".to_owned()
    }

    /// A new connection to the control socket of `interface`.
    #[track_caller]
    pub fn uapi(&self, interface: &str) -> UnixStream {
        let socket = self.path(&format!("/run/wireguard/{interface}.sock"));
        let stream = UnixStream::connect(&socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        stream.set_read_timeout(Some(SOON)).expect("a timeout can be set");
        stream
    }

    /// What `wg show INTERFACE dump` says of its first peer.
    #[track_caller]
    pub fn first_peer(&self, interface: &str) -> PeerLine {
        let dump = self.sh(&format!("wg show {interface} dump"));
        PeerLine::parse(dump.lines().nth(1).expect("there is a peer"))
    }

    /// What `wg show INTERFACE dump` says of the peer with that key.
    #[track_caller]
    pub fn peer(&self, interface: &str, public_key: &str) -> PeerLine {
        let dump = self.sh(&format!("wg show {interface} dump"));
        PeerLine::parse(dump.lines().skip(1).find(|line| line.starts_with(public_key)).expect("the peer is there"))
    }
}

/// One peer of `wg show INTERFACE dump`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLine {
    /// In base64.
    pub public_key: String,
    /// In base64, or `(none)`.
    pub preshared_key: String,
    /// `ADDRESS:PORT`, or `(none)`.
    pub endpoint: String,
    /// Comma-separated, or `(none)`.
    pub allowed_ips: String,
    /// Seconds since 1970, or 0.
    pub handshake: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Seconds, or `off`.
    pub keepalive: String,
}

impl PeerLine {
    /// Reads one line of a peer. Panics when it is not one.
    #[track_caller]
    pub fn parse(line: &str) -> PeerLine {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[public_key, preshared_key, endpoint, allowed_ips, handshake, rx_bytes, tx_bytes, keepalive] = &fields[..]
        else {
            panic!("not a peer: {line:?}");
        };
        PeerLine {
            public_key: public_key.into(),
            preshared_key: preshared_key.into(),
            endpoint: endpoint.into(),
            allowed_ips: allowed_ips.into(),
            handshake: handshake.parse().expect("seconds"),
            rx_bytes: rx_bytes.parse().expect("bytes"),
            tx_bytes: tx_bytes.parse().expect("bytes"),
            keepalive: keepalive.into(),
        }
    }
}

/// A private key and its public key, in base64.
#[derive(Clone)]
pub struct Keys {
    /// Of the host itself.
    pub private: String,
    /// For its peers.
    pub public: String,
}

impl Keys {
    /// Fresh ones, from `wg`.
    pub fn new() -> Keys {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", "key=$(wg genkey); echo $key; wg pubkey <<<$key"])
            .output()
            .expect("bash starts");
        let text = String::from_utf8(output.stdout).expect("base64 is UTF-8");
        let mut lines = text.lines().map(str::to_owned);
        let mut next = || lines.next().expect("wg prints keys");
        Keys { private: next(), public: next() }
    }

    /// A fresh preshared key.
    pub fn preshared() -> String {
        let output = Command::new("wg").arg("genpsk").output().expect("wg starts");
        String::from_utf8(output.stdout).expect("base64 is UTF-8").trim().to_owned()
    }
}
