//! Two ends of one tunnel, of which only the near one is ours: owns making them, telling them the same terms, and sending
//! traffic from either. What a test asserts is not here.

#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of the harness")]

use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::{
    Daemon, Host, KernelPeer, KernelPeerConfig, Keys, PeerLine, Pings, Process, SOON, cable, wait_until,
};

/// What is at the far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// wireguard-go, on a host of its own.
    WireguardGo,
    /// A Linux kernel with its own WireGuard.
    Kernel,
}

impl Kind {
    /// Why there is no such peer here, or `None`.
    pub fn skip(self) -> Option<String> {
        match self {
            Kind::WireguardGo => None,
            Kind::Kernel => KernelPeer::skip(),
        }
    }
}

/// One end of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ours.
    Near,
    /// The other implementation.
    Far,
}

impl Side {
    /// The end that this one talks to.
    pub fn other(self) -> Side {
        match self {
            Side::Near => Side::Far,
            Side::Far => Side::Near,
        }
    }

    fn number(self) -> u8 {
        match self {
            Side::Near => 1,
            Side::Far => 2,
        }
    }

    /// Its address inside the tunnel.
    pub fn inner(self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.9.0.{}", self.number()),
            Family::V6 => format!("fd09::{}", self.number()),
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What both ends are told.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who knows the other's endpoint.
    pub initiator: Side,
    /// Of the outer addresses.
    pub family: Family,
    /// In base64.
    pub preshared: Option<String>,
}

/// The two ends. Dropped in this order: the far end lives on a cable of the near one.
pub struct Rig {
    far: Far,
    next_port: AtomicU16,
    near_keys: Keys,
    far_keys: Keys,
    /// Our daemon.
    pub daemon: Process,
    /// Our host.
    pub near: Host,
}

enum Far {
    WireguardGo(Host),
    Kernel(KernelPeer),
}

impl Rig {
    /// Both ends up, with keys and addresses, strangers to each other.
    pub fn new(kind: Kind) -> Rig {
        let near = Host::new("near");
        let (near_keys, far_keys) = (Keys::new(), Keys::new());
        let far = match kind {
            Kind::WireguardGo => {
                let far = Host::new("far");
                cable((&near, "eth0"), (&far, "eth0"));
                for (host, side) in [(&near, Side::Near), (&far, Side::Far)] {
                    host.sh(&format!(
                        "ip addr add 192.0.2.{0}/24 dev eth0; ip addr add 2001:db8::{0}/64 dev eth0",
                        side.number()
                    ));
                }
                far.start(Daemon::WireguardGo, "wg0");
                configure_link(&far, Side::Far);
                Far::WireguardGo(far)
            }
            Kind::Kernel => Far::Kernel(KernelPeer::boot(
                &near,
                &KernelPeerConfig {
                    outer: &["192.0.2.2/24", "2001:db8::2/64"],
                    host_outer: &["192.0.2.1/24", "2001:db8::1/64"],
                    inner: &["10.9.0.2/24", "fd09::2/64"],
                    conf: "[Interface]\nListenPort = 51820\n",
                    life_seconds: LIFE.as_secs().try_into().expect("it is hours"),
                },
            )),
        };
        let daemon = near.start(Daemon::Wgd, "wg0");
        configure_link(&near, Side::Near);
        Rig { far, next_port: 5_300.into(), near_keys, far_keys, daemon, near }
    }

    /// Makes both ends forget each other, and tells them new terms.
    #[track_caller]
    pub fn agree(&self, terms: &Terms) {
        for side in [Side::Near, Side::Far] {
            let other = self.public_key(side.other());
            self.sh(side, &format!("wg set wg0 peer {other} remove"));
            let keys = self.keys(side);
            let preshared = terms.preshared.as_deref().unwrap_or_default();
            self.sh(side, &format!("umask 077; echo {} >/run/private; echo {preshared} >/run/preshared", keys.private));
            let mut settings = format!("private-key /run/private listen-port 51820 peer {other}");
            if terms.preshared.is_some() {
                settings += " preshared-key /run/preshared";
            }
            if side == terms.initiator {
                settings += &format!(" endpoint {}", self.outer(side.other(), terms.family));
            }
            let (v4, v6) = (side.other().inner(Family::V4), side.other().inner(Family::V6));
            self.set(side, &format!("{settings} allowed-ips {v4}/32,{v6}/128"));
        }
    }

    /// Gives both ends a preshared key, one right after the other.
    #[track_caller]
    pub fn preshare(&self, preshared: &str) {
        for side in [Side::Near, Side::Far] {
            self.sh(side, &format!("umask 077; echo {preshared} >/run/preshared"));
            self.set(side, &format!("peer {} preshared-key /run/preshared", self.public_key(side.other())));
        }
    }

    /// `wg set wg0 SETTINGS` on one end.
    #[track_caller]
    pub fn set(&self, side: Side, settings: &str) {
        self.sh(side, &format!("wg set wg0 {settings}"));
    }

    /// Runs a shell script on one end.
    #[track_caller]
    pub fn sh(&self, side: Side, script: &str) -> String {
        match (side, &self.far) {
            (Side::Near, _) => self.near.sh(script),
            (Side::Far, Far::WireguardGo(host)) => host.sh(script),
            (Side::Far, Far::Kernel(kernel)) => kernel.sh(script),
        }
    }

    /// The public key of one end.
    pub fn public_key(&self, side: Side) -> &str {
        &self.keys(side).public
    }

    fn keys(&self, side: Side) -> &Keys {
        match side {
            Side::Near => &self.near_keys,
            Side::Far => &self.far_keys,
        }
    }

    /// Where one end is, as `wg` writes it.
    pub fn outer(&self, side: Side, family: Family) -> String {
        match family {
            Family::V4 => format!("192.0.2.{}:51820", side.number()),
            Family::V6 => format!("[2001:db8::{}]:51820", side.number()),
        }
    }

    /// What one end says of the other.
    #[track_caller]
    pub fn peer_line(&self, side: Side) -> PeerLine {
        let dump = self.sh(side, "wg show wg0 dump");
        PeerLine::parse(dump.lines().nth(1).expect("there is a peer"))
    }

    /// Whether one single echo request from `side` to the other end is answered. Generous: it may have to wait for a
    /// handshake, but it is never repeated.
    #[track_caller]
    pub fn ping(&self, side: Side, family: Family) -> bool {
        let target = side.other().inner(family);
        match (side, &self.far) {
            (Side::Near, _) => self.near.ping(&target, PATIENCE),
            (Side::Far, Far::WireguardGo(host)) => host.ping(&target, PATIENCE),
            (Side::Far, Far::Kernel(kernel)) => {
                let patience = PATIENCE.as_secs();
                kernel.sh(&format!("ping -c 1 -W {patience} {target} >/dev/null && echo yes || echo no")) == "yes"
            }
        }
    }

    /// Ten echo requests a second from `side`, for that many seconds.
    #[track_caller]
    pub fn start_traffic(&self, side: Side, seconds: u32) -> Traffic<'_> {
        let target = side.other().inner(Family::V4);
        let until = Instant::now() + Duration::from_secs(seconds.into());
        match (side, &self.far) {
            (Side::Near, _) => Traffic::Host { until, pings: self.near.ping_every(TENTH, &target) },
            (Side::Far, Far::WireguardGo(host)) => Traffic::Host { until, pings: host.ping_every(TENTH, &target) },
            (Side::Far, Far::Kernel(kernel)) => {
                kernel.sh(&format!(
                    "rm -f /run/ping; (ping -i 0.1 -c {} -W 2 {target} >/run/ping.part; mv /run/ping.part /run/ping) >/dev/null 2>&1 &",
                    seconds * 10
                ));
                Traffic::Kernel { until, kernel }
            }
        }
    }

    /// Takes an address from one end and gives it another of the same network, at once. Other addresses stay.
    #[track_caller]
    pub fn move_address(&self, side: Side, old: &str, new: &str) {
        let device = match side {
            Side::Near => self.near_device(),
            Side::Far => "eth0",
        };
        self.sh(side, &format!("ip addr del {old}/24 dev {device} && ip addr add {new}/24 dev {device}"));
    }

    /// Our end of the cable.
    pub fn near_device(&self) -> &'static str {
        match self.far {
            Far::WireguardGo(_) => "eth0",
            Far::Kernel(_) => "tap0",
        }
    }

    /// Runs `iperf3` at the near end against a server of its own at the far end; its report.
    ///
    /// A server that stays would not do: iperf3 closes its listening socket after each run and opens it again.
    #[track_caller]
    pub fn iperf(&self, arguments: &str, target: &str) -> serde_json::Value {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        self.sh(Side::Far, &format!("iperf3 -s -1 -D -p {port}"));
        wait_until("iperf3 listens", SOON, || {
            self.sh(Side::Far, "ss -Hltn").contains(&format!(":{port} ")).then_some(())
        });
        let report = self.near.sh(&format!("timeout 60 iperf3 -J {arguments} -p {port} -c {target}"));
        serde_json::from_str(&report).expect("iperf3 prints JSON")
    }
}

/// A running series of echo requests from one end.
pub enum Traffic<'rig> {
    /// From a host of the test.
    Host {
        /// When it is to end.
        until: Instant,
        /// The series.
        pings: Pings,
    },
    /// From inside the kernel peer.
    Kernel {
        /// When it will end.
        until: Instant,
        /// Where.
        kernel: &'rig KernelPeer,
    },
}

/// What became of a series of echo requests.
#[derive(Debug)]
pub struct Tally {
    /// How many went out.
    pub sent: u32,
    /// How many were never answered.
    pub lost: u32,
}

impl Traffic<'_> {
    /// Waits for the end and counts.
    #[track_caller]
    pub fn finish(self) -> Tally {
        match self {
            Traffic::Host { until, pings } => {
                thread::sleep(until.saturating_duration_since(Instant::now()));
                let report = pings.finish();
                Tally { sent: report.sent, lost: report.lost.len().try_into().expect("it was counted in u32") }
            }
            Traffic::Kernel { until, kernel } => {
                thread::sleep(until.saturating_duration_since(Instant::now()));
                // Emulated, it is late by some seconds.
                let text = wait_until("ping ends inside the kernel peer", Duration::from_secs(60), || {
                    thread::sleep(Duration::from_millis(500));
                    let text = kernel.sh("[ ! -e /run/ping ] || cat /run/ping");
                    (!text.is_empty()).then_some(text)
                });
                Tally::of_ping(&text)
            }
        }
    }
}

impl Tally {
    /// Reads the summary that `ping` prints.
    #[track_caller]
    fn of_ping(text: &str) -> Tally {
        let summary = text.lines().find(|line| line.contains("packets transmitted")).expect("ping prints a summary");
        let numbers: Vec<u32> =
            summary.split(", ").take(2).filter_map(|part| part.split(' ').next()?.parse().ok()).collect();
        let &[sent, received] = &numbers[..] else { panic!("not a summary: {summary:?}") };
        Tally { sent, lost: sent - received }
    }
}

fn configure_link(host: &Host, side: Side) {
    host.sh(&format!(
        "ip addr add {}/24 dev wg0; ip addr add {}/64 dev wg0; ip link set wg0 mtu 1420 up",
        side.inner(Family::V4),
        side.inner(Family::V6)
    ));
}

const TENTH: Duration = Duration::from_millis(100);

/// For one echo that may have to wait for a handshake, which is tried again after five seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// A kernel peer is ended after this long even if nobody does it.
const LIFE: Duration = Duration::from_secs(3 * 3_600);
