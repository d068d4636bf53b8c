//! Tunnels over the tunnel: VXLAN and Geneve devices on top of `wg0`, with every byte checked, where the kernel hands
//! their super-packets over whole (Linux 6.17 and later) and where it does not.
//!
//! ```text
//!   left  overlay 192.168.0.1 fd15:0::1            right  overlay 192.168.0.2 fd15:0::2
//!             wg0 10.9.0.1 fd09::1                            wg0 10.9.0.2 fd09::2
//!            eth0 192.0.2.1 ------------------------------- eth0 192.0.2.2
//! ```
#![cfg(not(virtual_time))]

#[path = "support/flows.rs"]
mod flows;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/wire.rs"]
mod wire;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::thread;
use std::time::Duration;

use flows::{Burst, Pace, Receiving, Sending, TcpFlow, UdpFlow, Way};
use netns::{Daemon, Host, Keys, cable, needs_namespaces, say};
use wire::Capture;

// --------------------------------------------------------------------------------------------------------------- tests

#[test]
fn vxlan_over_ipv4_without_a_checksum_arrives_unchanged() {
    needs_namespaces!();
    whole_super_packets(Overlay { kind: Kind::Vxlan, over: Family::V4, checksum: Checksum::Zero });
}

#[test]
fn vxlan_over_ipv4_with_a_checksum_arrives_unchanged() {
    needs_namespaces!();
    whole_super_packets(Overlay { kind: Kind::Vxlan, over: Family::V4, checksum: Checksum::Set });
}

#[test]
fn vxlan_over_ipv6_without_a_checksum_arrives_unchanged() {
    needs_namespaces!();
    whole_super_packets(Overlay { kind: Kind::Vxlan, over: Family::V6, checksum: Checksum::Zero });
}

#[test]
fn vxlan_over_ipv6_with_a_checksum_arrives_unchanged() {
    needs_namespaces!();
    whole_super_packets(Overlay { kind: Kind::Vxlan, over: Family::V6, checksum: Checksum::Set });
}

#[test]
fn geneve_arrives_unchanged() {
    needs_namespaces!();
    if !Host::new("probe").try_sh("ip link add probe type geneve id 1 remote 192.0.2.9").status.success() {
        say("skipped: this kernel has no Geneve");
        return;
    }
    for over in [Family::V4, Family::V6] {
        for checksum in [Checksum::Set, Checksum::Zero] {
            whole_super_packets(Overlay { kind: Kind::Geneve, over, checksum });
        }
    }
}

/// On devices that wgd made.
#[track_caller]
fn whole_super_packets(overlay: Overlay) {
    let pair = Pair::new(Link::Made);
    let seen = carry(&pair, overlay);
    if pair.left.within(knows_tunnels) {
        assert!(seen.super_packets > 100, "{overlay:?}: the kernel segmented them itself: {seen:?}");
    } else {
        say("this kernel segments tunnels itself: only that was tried");
    }
}

#[test]
fn a_link_handed_over_keeps_its_virtio_header_and_the_kernel_segments_unless_that_has_room_for_tunnels() {
    needs_namespaces!();
    for (header_len, has_room) in [(0, false), (10, false), (12, false), (24, true)] {
        let pair = Pair::new(Link::Adopted { header_len });
        for checksum in [Checksum::Set, Checksum::Zero] {
            let overlay = Overlay { kind: Kind::Vxlan, over: Family::V4, checksum };
            let seen = carry(&pair, overlay);
            let are_whole = has_room && pair.left.within(knows_tunnels);
            assert_eq!(seen.super_packets > 100, are_whole, "a header of {header_len} bytes, {overlay:?}: {seen:?}");
            assert!(are_whole || seen.super_packets == 0, "a header of {header_len} bytes, {overlay:?}: {seen:?}");
            pair.remove_overlay();
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- traffic

/// What the left end of the overlay handed to `wg0`.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    packets: usize,
    /// Longer than the MTU.
    super_packets: usize,
}

/// UDP and TCP of both families, both ways, over the overlay. Nothing may be fragmented, nor have a wrong checksum.
#[track_caller]
fn carry(pair: &Pair, overlay: Overlay) -> Seen {
    pair.add_overlay(overlay);
    // What came before the other end had its device is not of interest.
    let before = pair.complaints();
    let capture = Capture::start(&pair.left);
    let mut seen = Seen::default();
    for (source, target) in [("192.168.0.1", "192.168.0.2"), ("fd15::1", "fd15::2")] {
        let way = Way { from: &pair.left, source: address(source), to: &pair.right, target: address(target) };
        let most = overlay.mtu() - way.ip_header_len() - UDP_HEADER_LEN;
        let lens = (1..=most).filter(|len| len % 89 == 1 || len + 3 > most);
        let bursts: Vec<Burst> = lens.map(|len| Burst { len, count: 7, last_len: len / 3 }).collect();
        // Shorter than a segment, one, a few, and as many as there may be, one byte more or less.
        let segment = overlay.mtu() - way.ip_header_len() - TCP_HEADER_LEN;
        let writes: Vec<usize> =
            [1, 2, 5, 20, 44].iter().flat_map(|count| segment * count - 3..segment * count + 2).collect();
        for way in [way, way.back()] {
            for (sending, receiving) in [(Sending::Singly, Receiving::Joined), (Sending::Segmented, Receiving::Singly)]
            {
                UdpFlow { way, port: 4_100, sending, receiving, seed: segment as u64 }.run(&bursts);
            }
            TcpFlow { way, port: 5_200, pace: Pace::EachArrives, segment_len: None, seed: 52 }.run(&writes);
            seen.look(&capture, overlay);
        }
        // Segments of other sizes, and both ways at once.
        for segment_len in [None, Some(536), Some(1_111)] {
            thread::scope(|scope| {
                for (place, way) in [way, way.back()].into_iter().enumerate() {
                    let port = 5_201 + place as u16;
                    let flow = TcpFlow { way, port, pace: Pace::Stream, segment_len, seed: 53 + place as u64 };
                    scope.spawn(move || flow.run(&[65_536; 40]));
                }
            });
            seen.look(&capture, overlay);
        }
    }
    assert_eq!(pair.complaints(), before, "{overlay:?}");
    seen
}

impl Seen {
    /// Adds what was captured since the last time. In small portions: a capture holds 32 MB.
    fn look(&mut self, capture: &Capture, overlay: Overlay) {
        let is_sent = |packet: &[u8]| wire::source(packet) == Some(overlay.over.address(1));
        while let Some(packet) = capture.next(Duration::ZERO, is_sent) {
            let (protocol, udp_at) = if overlay.over == Family::V4 { (packet[9], 20) } else { (packet[6], 40) };
            if protocol != wire::UDP {
                continue;
            }
            let has_checksum = packet[udp_at + 6..udp_at + 8] != [0, 0];
            assert_eq!(has_checksum, overlay.checksum == Checksum::Set, "{overlay:?}");
            self.packets += 1;
            self.super_packets += usize::from(packet.len() > MTU);
        }
    }
}

// --------------------------------------------------------------------------------------------------------------- hosts

const MTU: usize = 1_420;
const UDP_HEADER_LEN: usize = 8;
const TCP_HEADER_LEN: usize = 20;

/// Where the left host's `wg0` comes from.
#[derive(Clone, Copy, Debug)]
enum Link {
    /// From wgd.
    Made,
    /// From us, with a virtio header of that length, or none if it is 0.
    Adopted { header_len: libc::c_int },
}

/// A device on top of `wg0`.
#[derive(Clone, Copy, Debug)]
struct Overlay {
    kind: Kind,
    /// Family of its own addresses.
    over: Family,
    checksum: Checksum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vxlan,
    Geneve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Of the tunnel's own UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    Set,
    Zero,
}

impl Family {
    /// Of the left (1) or right (2) host inside wg0.
    fn address(self, host: usize) -> IpAddr {
        match self {
            Family::V4 => address(&format!("10.9.0.{host}")),
            Family::V6 => address(&format!("fd09::{host}")),
        }
    }
}

impl Overlay {
    /// What of wg0's MTU is left behind IP, UDP, the tunnel's header of eight bytes, and Ethernet.
    fn mtu(self) -> usize {
        let ip_header_len = if self.over == Family::V4 { 20 } else { 40 };
        MTU - ip_header_len - UDP_HEADER_LEN - 8 - 14
    }

    fn options(self, own: IpAddr, remote: IpAddr) -> String {
        let checksum = match (self.over, self.checksum) {
            (Family::V4, Checksum::Set) => "udpcsum",
            (Family::V4, Checksum::Zero) => "noudpcsum",
            (Family::V6, Checksum::Set) => "noudp6zerocsumtx noudp6zerocsumrx",
            (Family::V6, Checksum::Zero) => "udp6zerocsumtx udp6zerocsumrx",
        };
        match self.kind {
            Kind::Vxlan => format!("vxlan id 7 dev wg0 local {own} remote {remote} dstport 4789 {checksum}"),
            Kind::Geneve => format!("geneve id 7 remote {remote} {checksum}"),
        }
    }
}

struct Pair {
    left: Host,
    right: Host,
}

impl Pair {
    #[track_caller]
    fn new(link: Link) -> Pair {
        let (left, right) = (Host::new("left"), Host::new("right"));
        cable((&left, "eth0"), (&right, "eth0"));
        let keys = [Keys::new(), Keys::new()];
        for (host, number) in [(&left, 1), (&right, 2)] {
            let other = 3 - number;
            match link {
                Link::Adopted { header_len } if number == 1 => adopt(host, header_len),
                _ => {
                    host.start(Daemon::Wgd, "wg0");
                }
            }
            let (own, theirs) = (&keys[number - 1].private, &keys[other - 1].public);
            host.sh(&format!(
                "ip addr add 192.0.2.{number}/24 dev eth0
                 wg set wg0 private-key <(echo {own}) listen-port 51820 peer {theirs} endpoint 192.0.2.{other}:51820 \
                     allowed-ips 10.9.0.{other}/32,fd09::{other}/128
                 ip addr add 10.9.0.{number}/24 dev wg0
                 ip addr add fd09::{number}/64 dev wg0
                 ip link set wg0 mtu {MTU} up"
            ));
        }
        left.sh("ping -q -c 1 -W 10 10.9.0.2");
        Pair { left, right }
    }

    #[track_caller]
    fn add_overlay(&self, overlay: Overlay) {
        for (host, number) in [(&self.left, 1), (&self.right, 2)] {
            let options = overlay.options(overlay.over.address(number), overlay.over.address(3 - number));
            host.sh(&format!(
                "ip link add overlay mtu {} type {options}
                 ip addr add 192.168.0.{number}/24 dev overlay
                 ip addr add fd15::{number}/64 dev overlay
                 ip link set overlay up",
                overlay.mtu()
            ));
        }
        self.left.sh("ping -q -c 1 -W 10 192.168.0.2; ping -q -c 1 -W 10 fd15::2");
    }

    /// What either kernel counted of packets in pieces and of wrong checksums.
    #[track_caller]
    fn complaints(&self) -> [String; 2] {
        const COUNTERS: &str = "IpReasmReqds Ip6ReasmReqds UdpInCsumErrors Udp6InCsumErrors TcpInCsumErrors";
        [&self.left, &self.right].map(|host| host.sh(&format!("nstat -asz {COUNTERS} | grep -v '^#'")))
    }

    #[track_caller]
    fn remove_overlay(&self) {
        for host in [&self.left, &self.right] {
            host.sh("ip link del overlay");
        }
    }
}

/// Starts wgd on a TUN device of ours.
#[track_caller]
fn adopt(host: &Host, header_len: libc::c_int) {
    const NUMBER: libc::c_int = 10;
    let tun = host.within(|| open_tun("wg0", header_len)).expect("a TUN device");
    let program = Daemon::Wgd.program();
    let mut command = host.command(program.to_str().expect("a path in UTF-8"));
    command.arg("ignored").env("WG_TUN_FD", NUMBER.to_string());
    let descriptor = tun.as_raw_fd();
    // SAFETY: `dup2` may be called between fork and exec, and touches no memory.
    let pass_on = move || match unsafe { libc::dup2(descriptor, NUMBER) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: the closure only calls `dup2`.
    let output = unsafe { command.pre_exec(pass_on) }.output().expect("nsenter starts");
    assert!(output.status.success(), "{output:?}");
}

/// A TUN device of that name, with a virtio header of `header_len` bytes unless that is 0.
fn open_tun(name: &str, header_len: libc::c_int) -> io::Result<OwnedFd> {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let virtio = if header_len > 0 { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | virtio) as libc::c_short;
    // SAFETY: `request` lives for the length of the call and is what TUNSETIFF reads and writes.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    if header_len > 0 {
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives for the length of the call.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as libc::Ioctl, &raw const header_len) };
        assert_eq!(set, 0, "a header of {header_len} bytes: {}", io::Error::last_os_error());
    }
    Ok(OwnedFd::from(file))
}

/// Whether the kernel hands over super-packets within tunnels.
fn knows_tunnels() -> bool {
    const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x080;
    let tun = open_tun("probe", 24).expect("a TUN device");
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | TUN_F_UDP_TUNNEL_GSO;
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as libc::Ioctl, libc::c_ulong::from(offloads)) == 0 }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
