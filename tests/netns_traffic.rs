//! Content through the tunnel: what goes in at one end comes out at the other, byte by byte, whatever its size, its
//! family, its headers, and whatever happens to the session meanwhile.
//!
//! Speed is not asked here. `WGD_TEST_TRANSFER_MB` says how much the bulk transfer carries; the 10 GB of a thorough run:
//!
//! ```text
//! cargo build --release
//! WGD_TEST_DAEMON=$PWD/target/release/wgd WGD_TEST_TRANSFER_MB=10000 \
//!     cargo test --release --test netns_traffic keys_rotate -- --nocapture
//! ```
#![cfg(not(virtual_time))]

#[path = "support/flows.rs"]
mod flows;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/wire.rs"]
mod wire;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ring::digest::{Context, Digest, SHA256};

use flows::{Burst, Content, Pace, Receiving, STANDSTILL, Sending, TcpFlow, UdpFlow, Way, connect};
use netns::{Daemon, Host, Keys, SOON, cable, needs_namespaces, wait_until};
use wire::{Capture, Injector, Ip, Segment};

// --------------------------------------------------------------------------------------------------------------- sizes

#[test]
fn ipv4_datagrams_of_every_size_arrive_unchanged_and_in_order() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V4);
    for way in star.both_ways(1, Inner::V4) {
        udp_of_every_size(way, &[Sending::Singly, Sending::Segmented, Sending::WithoutChecksum]);
    }
}

#[test]
fn ipv6_datagrams_of_every_size_arrive_unchanged_and_in_order() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V6);
    for way in star.both_ways(1, Inner::V6) {
        udp_of_every_size(way, &[Sending::Singly, Sending::Segmented]);
    }
}

/// Every payload from one byte to what the MTU takes, then beyond it, as fragments, up to the longest datagram.
fn udp_of_every_size(way: Way<'_>, sendings: &[Sending]) {
    let most = MTU - way.ip_header_len() - UDP_HEADER_LEN;
    let longest = 65_535 - UDP_HEADER_LEN - if way.source.is_ipv4() { 20 } else { 0 };
    let fragmented = (most + 1..most + 40).chain((most + 40..longest).step_by(1_999)).chain([longest]);
    for &sending in sendings {
        let mut bursts: Vec<Burst> = match sending {
            // Three alike are joined on the way, and the shorter one is the last of them.
            Sending::Singly | Sending::WithoutChecksum => (1..=most)
                .map(|len| Burst { len, count: 3, last_len: if len % 5 == 0 { len / 2 } else { 0 } })
                .collect(),
            // Trains of two to seventeen, every thirty-first size as many as there may be; some end shorter.
            Sending::Segmented => (1..=most)
                .map(|len| {
                    let count = if len % 31 == 0 { (60_000 / len).min(63) } else { 2 + len % 16 };
                    Burst { len, count, last_len: len * (len % 4) / 4 }
                })
                .collect(),
        };
        if sending != Sending::Segmented {
            bursts.extend(fragmented.clone().map(Burst::one));
        }
        for receiving in [Receiving::Singly, Receiving::Joined] {
            let seed = most as u64 + receiving as u64;
            let report = UdpFlow { way, port: 4_000, sending, receiving, seed }.run(&bursts);
            if receiving == Receiving::Joined {
                assert!(report.joined > 0, "{sending:?}: nothing came joined: {report:?}");
            } else {
                assert_eq!(report.joined, 0, "{sending:?}: {report:?}");
            }
        }
    }
}

#[test]
fn tcp_over_ipv4_arrives_unchanged_with_writes_and_segments_of_every_size() {
    needs_namespaces!();
    tcp_of_every_size(&Star::new(1, Outer::V4), Inner::V4);
}

#[test]
fn tcp_over_ipv6_arrives_unchanged_with_writes_and_segments_of_every_size() {
    needs_namespaces!();
    tcp_of_every_size(&Star::new(1, Outer::V6), Inner::V6);
}

fn tcp_of_every_size(star: &Star, inner: Inner) {
    // From one byte to beyond the MTU; then super-packets, one more than the longest.
    let mut writes: Vec<usize> = (1..=MTU + 80).collect();
    writes.extend((1_500..70_000).step_by(1_777));
    writes.extend([1 << 17, 1 << 18]);
    for way in star.both_ways(1, inner) {
        TcpFlow { way, port: 5_000, pace: Pace::EachArrives, segment_len: None, seed: 5 }.run(&writes);
    }
    // Segments of every ninth length, in both directions at the same time.
    let longest = (MTU - 20 - star.way(1, inner).ip_header_len()) as u32;
    let segment_lens: Vec<u32> = (88..longest).step_by(9).chain(longest - 2..=longest).collect();
    thread::scope(|scope| {
        for (place, way) in star.both_ways(1, inner).into_iter().enumerate() {
            let segment_lens = &segment_lens;
            scope.spawn(move || {
                for &len in segment_lens {
                    let flow = TcpFlow {
                        way,
                        port: 5_001 + place as u16,
                        pace: Pace::Stream,
                        segment_len: Some(len),
                        seed: u64::from(len) << 1 | place as u64,
                    };
                    flow.run(&[300_000, 1, 70_001]);
                }
            });
        }
    });
}

// ------------------------------------------------------------------------------------------------------------- headers

#[test]
fn every_dscp_and_ecn_stays_with_its_own_packet() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V4);
    for inner in [Inner::V4, Inner::V6] {
        let way = star.way(1, inner);
        // Nobody listens there; the packets are looked at, not answered.
        let rules = "table inet quiet { chain in { type filter hook input priority -10; th dport 7000 drop; }; }";
        way.to.sh(&format!("nft '{rules}'"));
        let capture = Capture::start(way.to);
        let injector = Injector::new(way.from, way.target);
        for protocol in [wire::UDP, wire::TCP] {
            // All 256 in one burst, two of each: one flow without a gap, so nothing but this byte keeps them apart.
            let expected: Vec<u8> = (0..512_u32).map(|number| (number / 2) as u8).collect();
            let ip = Ip::new(way.source, way.target, protocol);
            for (place, &class) in expected.iter().enumerate() {
                let ip = Ip { traffic_class: class, ..ip.clone() };
                injector.send(&ip.with(&marked(&ip, place as u32, class)));
            }
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                let packet = capture.next(SOON, |packet| wire::source(packet) == Some(way.source));
                let packet = packet.unwrap_or_else(|| panic!("{} of {} came", seen.len(), expected.len()));
                seen.extend(marks(&packet, protocol));
            }
            let stated: Vec<u8> = seen.iter().map(|&(stated, _)| stated).collect();
            let carried: Vec<u8> = seen.iter().map(|&(_, carried)| carried).collect();
            assert_eq!(carried, expected, "{inner:?}, protocol {protocol}: order");
            assert_eq!(stated, expected, "{inner:?}, protocol {protocol}");
        }
    }
}

/// A datagram or segment of one flow that carries its own traffic class, [`MARKED_LEN`] times.
fn marked(ip: &Ip, place: u32, class: u8) -> Vec<u8> {
    let payload = [class; MARKED_LEN];
    if ip.protocol == wire::UDP {
        return ip.udp((7_000, 7_000), &payload);
    }
    let sequence = place * MARKED_LEN as u32;
    let segment = Segment { sequence, flags: wire::ACK, urgent: 0, options: &[], payload: &payload };
    ip.tcp((7_000, 7_000), &segment)
}

/// The traffic class that the header states and the one carried, of each packet that was joined to `packet`.
fn marks(packet: &[u8], protocol: u8) -> Vec<(u8, u8)> {
    let ip_header_len = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let header_len = ip_header_len + if protocol == wire::UDP { UDP_HEADER_LEN } else { 20 };
    let payload = &packet[header_len..];
    assert_eq!(payload.len() % MARKED_LEN, 0, "whole segments are joined");
    payload
        .chunks(MARKED_LEN)
        .map(|part| {
            assert!(part.iter().all(|&byte| byte == part[0]), "a segment of one packet: {part:?}");
            (wire::traffic_class(packet), part[0])
        })
        .collect()
}

const MARKED_LEN: usize = 100;

#[test]
fn packets_that_are_not_plain_tcp_or_udp_pass_as_they_are() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V4);
    for inner in [Inner::V4, Inner::V6] {
        for way in star.both_ways(1, inner) {
            let packets = match inner {
                Inner::V4 => odd_ipv4(way),
                Inner::V6 => odd_ipv6(way),
            };
            let capture = Capture::start(way.to);
            let injector = Injector::new(way.from, way.target);
            // Each alone, then all at once, each of them twice: equal neighbours are what joining looks for.
            for packet in &packets {
                injector.send(packet);
                assert_eq!(capture.next(SOON, from(way)).as_ref(), Some(packet), "{inner:?}, alone");
            }
            for packet in &packets {
                injector.send(packet);
                injector.send(packet);
            }
            for packet in packets.iter().flat_map(|packet| [packet, packet]) {
                assert_eq!(capture.next(SOON, from(way)).as_ref(), Some(packet), "{inner:?}, in a burst");
            }
        }
    }
}

fn from(way: Way<'_>) -> impl Fn(&[u8]) -> bool {
    move |packet| wire::source(packet) == Some(way.source)
}

/// Fragments, options, damaged packets, other protocols; IPv4.
fn odd_ipv4(way: Way<'_>) -> Vec<Vec<u8>> {
    let payload = [0xc3; 160];
    let udp = Ip::new(way.source, way.target, wire::UDP);
    let tcp = Ip::new(way.source, way.target, wire::TCP);
    let datagram = udp.udp((7_001, 7_001), &payload);
    let mut packets = vec![
        // The first, a middle and the last fragment of a datagram, of one of TCP, and one that was cut short.
        Ip { fragment: wire::MORE_FRAGMENTS, ..udp.clone() }.with(&datagram[..80]),
        Ip { fragment: wire::MORE_FRAGMENTS | 10, ..udp.clone() }.with(&datagram[80..160]),
        Ip { fragment: 20, ..udp.clone() }.with(&datagram[160..]),
        Ip { fragment: wire::MORE_FRAGMENTS, ..tcp.clone() }.with(&segment(&tcp, &payload)[..64]),
        Ip { fragment: 8, ..tcp.clone() }.with(&segment(&tcp, &payload)[64..]),
        Ip { fragment: wire::MORE_FRAGMENTS, ..udp.clone() }.with(&datagram[..8]),
        // Options: no operation and end; record route; router alert.
        Ip { options: vec![1, 1, 1, 0], ..udp.clone() }.with(&datagram),
        Ip { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..tcp.clone() }.with(&segment(&tcp, &payload)),
        Ip { options: vec![148, 4, 0, 0], ..udp.clone() }.with(&datagram),
    ];
    packets.extend(odd_transport(&udp, &tcp));
    packets
}

/// Fragments, extension headers, damaged packets, other protocols; IPv6.
fn odd_ipv6(way: Way<'_>) -> Vec<Vec<u8>> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let payload = [0xc3; 160];
    let udp = Ip::new(way.source, way.target, wire::UDP);
    let tcp = Ip::new(way.source, way.target, wire::TCP);
    let datagram = udp.udp((7_001, 7_001), &payload);
    let stream = segment(&tcp, &payload);
    let padding = [1, 4, 0, 0, 0, 0];
    let behind = |first: u8, headers: &[(u8, &[u8])], transport: &[u8]| {
        let mut bytes = Vec::new();
        for &(next, body) in headers {
            bytes.extend([next, ((2 + body.len()) / 8 - 1) as u8]);
            bytes.extend(body);
        }
        bytes.extend(transport);
        Ip { protocol: first, ..udp.clone() }.with(&bytes)
    };
    let fragment = |next: u8, offset_and_more: u16, part: &[u8]| {
        let mut bytes = vec![next, 0];
        bytes.extend(offset_and_more.to_be_bytes());
        bytes.extend(0xdead_beef_u32.to_be_bytes());
        bytes.extend(part);
        Ip { protocol: FRAGMENT, ..udp.clone() }.with(&bytes)
    };
    let mut packets = vec![
        fragment(wire::UDP, 1, &datagram[..80]),
        fragment(wire::UDP, 80 | 1, &datagram[80..160]),
        fragment(wire::UDP, 160, &datagram[160..]),
        fragment(wire::TCP, 1, &stream[..64]),
        fragment(wire::TCP, 64, &stream[64..]),
        // An atomic fragment: whole, and yet with that header. RFC 6946.
        fragment(wire::UDP, 0, &datagram),
        behind(HOP_BY_HOP, &[(wire::UDP, &padding)], &datagram),
        behind(DESTINATION, &[(wire::TCP, &padding)], &stream),
        // Segments left: none.
        behind(ROUTING, &[(wire::UDP, &[4, 0, 0, 0, 0, 0])], &datagram),
        behind(HOP_BY_HOP, &[(DESTINATION, &padding), (ROUTING, &padding), (wire::TCP, &[4, 0, 0, 0, 0, 0])], &stream),
        // No next header.
        Ip { protocol: 59, ..udp.clone() }.with(&payload),
    ];
    packets.extend(odd_transport(&udp, &tcp));
    packets
}

/// What either family may carry and nobody may join, repair or drop.
fn odd_transport(udp: &Ip, tcp: &Ip) -> Vec<Vec<u8>> {
    let payload = [0x77; 120];
    let damaged = |mut transport: Vec<u8>, at: usize| {
        transport[at] ^= 0x40;
        transport
    };
    let with_flags = |flags: u8, urgent: u16, options: &[u8]| {
        let segment = Segment { sequence: 77, flags, urgent, options, payload: &payload };
        tcp.with(&tcp.tcp((7_001, 7_001), &segment))
    };
    let mut packets = vec![
        // Wrong checksums, of which the receiver must learn.
        udp.with(&damaged(udp.udp((7_001, 7_001), &payload), 6)),
        tcp.with(&damaged(segment(tcp, &payload), 16)),
        udp.with(&damaged(udp.udp((7_001, 7_001), &payload), 30)),
        tcp.with(&damaged(segment(tcp, &payload), 60)),
        // A datagram that says it is shorter, and one that says it is longer, than its packet.
        udp.with(&damaged(udp.udp((7_001, 7_001), &payload), 5)),
        udp.with(&damaged(udp.udp((7_001, 7_001), &payload), 4)),
        // No payload; no whole header.
        udp.with(&udp.udp((7_001, 7_001), &[])),
        tcp.with(&segment(tcp, &[])),
        tcp.with(&segment(tcp, &payload)[..19]),
        udp.with(&udp.udp((7_001, 7_001), &payload)[..7]),
        // What concerns one segment alone.
        with_flags(wire::SYN, 0, &[2, 4, 5, 100]),
        with_flags(wire::RST | wire::ACK, 0, &[]),
        with_flags(wire::URG | wire::ACK, 9, &[]),
    ];
    // ICMP of the other family, ESP, SCTP, UDP-Lite, and one that nobody has.
    for protocol in [if udp.source.is_ipv4() { 58 } else { 1 }, 50, 132, 136, 253] {
        packets.push(Ip { protocol, ..udp.clone() }.with(&payload));
    }
    // The longest packet and the shortest.
    let header_len = udp.with(&[]).len();
    packets.push(Ip { protocol: 253, ..udp.clone() }.with(&vec![0x99; MTU - header_len]));
    packets.push(Ip { protocol: 253, ..udp.clone() }.with(&[]));
    packets
}

fn segment(tcp: &Ip, payload: &[u8]) -> Vec<u8> {
    tcp.tcp((7_001, 7_001), &Segment { sequence: 9, flags: wire::ACK, urgent: 0, options: &[], payload })
}

// ------------------------------------------------------------------------------------------------------- key rotation

#[test]
fn a_long_transfer_arrives_whole_while_keys_rotate() {
    needs_namespaces!();
    let megabytes: u64 =
        std::env::var("WGD_TEST_TRANSFER_MB").map_or(TRANSFER_MB, |text| text.parse().expect("a number of megabytes"));
    let mut star = Star::new(1, Outer::V4);
    for host in [&star.hub, &star.spokes[0].host] {
        // A link that is down for a moment takes the IPv6 addresses along otherwise.
        host.sh("sysctl -qw net.ipv6.conf.wg0.keep_addr_on_down=1");
    }
    let start = Instant::now();
    let transfers = [Transfer::start(star.way(1, Inner::V4), megabytes), {
        Transfer::start(star.way(1, Inner::V6).back(), megabytes)
    }];
    let done = || transfers.iter().all(Transfer::is_received);
    let mut rotations = 0;
    while !done() {
        // Only a rotation under traffic counts: both directions must have moved since the last one.
        let before: Vec<u64> = transfers.iter().map(Transfer::received).collect();
        wait_until("the transfers go on", STANDSTILL, || {
            let moved = |(transfer, &before): (&Transfer, &u64)| transfer.is_received() || transfer.received() > before;
            transfers.iter().zip(&before).all(moved).then_some(())
        });
        thread::sleep(ROTATION);
        if !done() {
            star.rotate(rotations);
            rotations += 1;
        }
    }
    let took = start.elapsed();
    let mut total = 0;
    for transfer in transfers {
        let (sent, received) = transfer.finish();
        assert_eq!(sent.0, received.0, "bytes");
        assert_eq!(sent.1.as_ref(), received.1.as_ref(), "SHA-256 of what was sent and of what came");
        total += received.0;
    }
    assert_eq!(total, megabytes * 1_000_000);
    assert!(rotations >= 4, "{rotations} rotations, not one of each kind: give WGD_TEST_TRANSFER_MB");
    netns::say(&format!("{total} bytes in {took:?}, {rotations} rotations, SHA-256 equal"));
}

/// Takes some ten seconds with an unoptimised daemon.
const TRANSFER_MB: u64 = 600;
/// How long a session lives.
const ROTATION: Duration = Duration::from_millis(900);

/// Half of a long transfer: one TCP connection, hashed at both ends.
struct Transfer {
    threads: [thread::JoinHandle<(u64, Digest)>; 2],
    received: std::sync::Arc<AtomicU64>,
    total: u64,
}

impl Transfer {
    fn start(way: Way<'_>, megabytes: u64) -> Transfer {
        let total = megabytes * 1_000_000 / 2;
        let (sender, receiver) = connect(way, 5_100, None);
        sender.set_write_timeout(Some(STANDSTILL)).expect("a timeout can be set");
        receiver.set_read_timeout(Some(STANDSTILL)).expect("a timeout can be set");
        let received = std::sync::Arc::new(AtomicU64::new(0));
        let counter = received.clone();
        let threads = [
            thread::spawn(move || Transfer::send(sender, total)),
            thread::spawn(move || Transfer::receive(receiver, &counter)),
        ];
        Transfer { threads, received, total }
    }

    fn send(mut sender: TcpStream, total: u64) -> (u64, Digest) {
        let content = Content::new(total);
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; 1 << 18];
        let mut sent = 0;
        while sent < total {
            let len = (total - sent).min(buffer.len() as u64) as usize;
            content.fill(sent, &mut buffer[..len]);
            hash.update(&buffer[..len]);
            sender.write_all(&buffer[..len]).expect("the connection lasts");
            sent += len as u64;
        }
        sender.shutdown(Shutdown::Write).expect("the connection is open");
        (sent, hash.finish())
    }

    fn receive(mut receiver: TcpStream, counter: &AtomicU64) -> (u64, Digest) {
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; 1 << 18];
        let mut received = 0;
        loop {
            let len = receiver.read(&mut buffer).expect("the connection lasts");
            if len == 0 {
                return (received, hash.finish());
            }
            hash.update(&buffer[..len]);
            received += len as u64;
            counter.store(received, Ordering::Relaxed);
        }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether everything came, or nothing more will: the threads know.
    fn is_received(&self) -> bool {
        self.received() >= self.total || self.threads.iter().all(thread::JoinHandle::is_finished)
    }

    /// Bytes and hash at the sender and at the receiver.
    fn finish(self) -> ((u64, Digest), (u64, Digest)) {
        let [sent, received] =
            self.threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (sent, received)
    }
}

impl Star {
    /// Ends the session between the hub and the first spoke, each time in another way, and waits for the next one.
    #[track_caller]
    fn rotate(&mut self, number: usize) {
        let spoke = &mut self.spokes[0];
        match number % 4 {
            // The hub is told the new key first; a moment later the spoke has it, and a preshared key comes along.
            0 => {
                let old = std::mem::replace(&mut spoke.keys, Keys::new());
                let preshared = Keys::preshared();
                self.hub.sh(&format!("wg set wg0 peer {} remove", old.public));
                introduce(&self.hub, "wg0", spoke, &spoke.outer);
                preshare(&self.hub, "wg0", &spoke.keys.public, &preshared);
                preshare(&spoke.host, "wg0", &self.keys.public, &preshared);
                set_private_key(&spoke.host, "wg0", &spoke.keys);
            }
            1 => {
                let old = std::mem::replace(&mut self.keys, Keys::new());
                spoke.host.sh(&format!("wg set wg0 peer {} remove", old.public));
                spoke.introduce_hub(&self.keys.public);
                let preshared = Keys::preshared();
                preshare(&spoke.host, "wg0", &self.keys.public, &preshared);
                preshare(&self.hub, "wg0", &spoke.keys.public, &preshared);
                set_private_key(&self.hub, "wg0", &self.keys);
            }
            2 => drop(self.hub.sh("ip link set wg0 down; ip link set wg0 up")),
            _ => drop(spoke.host.sh("ip link set wg0 down; ip link set wg0 up")),
        }
    }
}

fn preshare(host: &Host, interface: &str, peer: &str, preshared: &str) {
    host.sh(&format!("wg set {interface} peer {peer} preshared-key <(echo {preshared})"));
}

fn set_private_key(host: &Host, interface: &str, keys: &Keys) {
    host.sh(&format!("wg set {interface} private-key <(echo {})", keys.private));
}

// --------------------------------------------------------------------------------------------------------------- VXLAN

#[test]
fn vxlan_over_the_tunnel_carries_both_families_unchanged() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V4);
    let capture = Capture::start(&star.hub);
    carry_over_vxlan(&star, Inner::V4, VxlanChecksum::Set, VXLAN_MTU);
    look_at_vxlan(&star, &capture, VxlanChecksum::Set);
}

#[test]
fn vxlan_without_a_checksum_over_the_tunnel_carries_both_families_unchanged() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V4);
    let capture = Capture::start(&star.hub);
    carry_over_vxlan(&star, Inner::V4, VxlanChecksum::Zero, VXLAN_MTU);
    look_at_vxlan(&star, &capture, VxlanChecksum::Zero);
}

#[test]
fn vxlan_over_ipv6_in_the_tunnel_carries_both_families_unchanged() {
    needs_namespaces!();
    let star = Star::new(1, Outer::V4);
    carry_over_vxlan(&star, Inner::V6, VxlanChecksum::Set, VXLAN_MTU - 20);
}

/// Of VXLAN's own UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VxlanChecksum {
    Set,
    Zero,
}

/// What the hub has sent so far was VXLAN as it should be, in whole packets, and the longest one fills the tunnel's MTU.
fn look_at_vxlan(star: &Star, capture: &Capture, checksum: VxlanChecksum) {
    let way = star.way(1, Inner::V4);
    let (mut longest, mut count) = (0, 0);
    while let Some(packet) = capture.next(Duration::ZERO, from(way)) {
        // The echo that found out whether the tunnel is up.
        if packet[9] != wire::UDP {
            continue;
        }
        assert_eq!(packet[22..24], 4_789_u16.to_be_bytes(), "port of VXLAN");
        assert_eq!(u16::from_be_bytes([packet[6], packet[7]]) & !wire::DONT_FRAGMENT, 0, "no fragment");
        assert_eq!(packet[26..28] == [0, 0], checksum == VxlanChecksum::Zero, "the checksum of VXLAN's own UDP header");
        // Longer ones are super-packets on their way to the daemon, which cuts them.
        longest = longest.max(if packet.len() > MTU { 0 } else { packet.len() });
        count += 1;
    }
    assert!(count > 1_000, "only {count} packets were seen");
    assert_eq!(longest, MTU);
}

/// The tunnel's MTU without an Ethernet header, VXLAN's, UDP's and that of IPv4.
const VXLAN_MTU: usize = MTU - 14 - 8 - 8 - 20;

/// UDP and TCP of both families, both ways, between the "pods" of an overlay; nothing may be fragmented on its way.
fn carry_over_vxlan(star: &Star, underlay: Inner, checksum: VxlanChecksum, mtu: usize) {
    let [near, far] = star.overlay(underlay, checksum, mtu);
    let (from, to) = (&star.hub, &star.spokes[0].host);
    for (source, target) in [(near.0, far.0), (near.1, far.1)] {
        let way = Way { from, source, to, target };
        let most = mtu - way.ip_header_len() - UDP_HEADER_LEN;
        let lens = (1..=most).filter(|len| len % 11 == 1 || len + 20 > most);
        let bursts: Vec<Burst> = lens.map(|len| Burst { len, count: 5, last_len: len / 3 }).collect();
        let writes: Vec<usize> = (1..=mtu + 20).step_by(13).collect();
        for way in [way, way.back()] {
            for (sending, receiving) in [(Sending::Singly, Receiving::Joined), (Sending::Segmented, Receiving::Singly)]
            {
                UdpFlow { way, port: 4_100, sending, receiving, seed: mtu as u64 }.run(&bursts);
            }
            TcpFlow { way, port: 5_200, pace: Pace::EachArrives, segment_len: None, seed: 52 }.run(&writes);
            TcpFlow { way, port: 5_201, pace: Pace::Stream, segment_len: None, seed: 53 }.run(&[65_536; 64]);
        }
    }
    assert_nothing_fragmented(star);
}

fn assert_nothing_fragmented(star: &Star) {
    for host in [&star.hub, &star.spokes[0].host] {
        for counter in ["IpFragCreates", "IpReasmReqds", "Ip6FragCreates", "Ip6ReasmReqds"] {
            let line = host.sh(&format!("nstat -asz {counter} | grep {counter}"));
            let count = line.split_whitespace().nth(1);
            assert_eq!(count, Some("0"), "{counter} on {}", host.name());
        }
    }
}

impl Star {
    /// A VXLAN device on the hub and on the first spoke, as Calico sets them up: nothing is learnt, every neighbour is
    /// written down. The addresses of one "pod" on each, of both families.
    fn overlay(&self, underlay: Inner, checksum: VxlanChecksum, mtu: usize) -> [(IpAddr, IpAddr); 2] {
        let (device, option) = match (underlay, checksum) {
            (Inner::V4, VxlanChecksum::Set) => ("vxlan.calico", "udpcsum"),
            (Inner::V4, VxlanChecksum::Zero) => ("vxlan.calico", "noudpcsum"),
            (Inner::V6, VxlanChecksum::Set) => ("vxlan-v6.calico", "noudp6zerocsumtx noudp6zerocsumrx"),
            (Inner::V6, VxlanChecksum::Zero) => ("vxlan-v6.calico", "udp6zerocsumtx udp6zerocsumrx"),
        };
        let ends = [(&self.hub, 0), (&self.spokes[0].host, 1)];
        for (host, number) in ends {
            let other = 1 - number;
            let (own, remote) = (underlay.address(0, number), underlay.address(0, other));
            host.sh(&format!(
                "ip link add {device} address 66:00:00:00:00:0{number} mtu {mtu} \
                     type vxlan id 4096 dev wg0 local {own} dstport 4789 nolearning {option}
                 ip link set {device} up
                 ip addr add 192.168.{number}.0/32 dev {device}
                 ip addr add fd15:{number}::/128 dev {device}
                 ip addr add 192.168.{number}.1/32 dev lo
                 ip addr add fd15:{number}::1/128 dev lo
                 bridge fdb add 66:00:00:00:00:0{other} dev {device} dst {remote}
                 ip neigh add 192.168.{other}.0 lladdr 66:00:00:00:00:0{other} dev {device} nud permanent
                 ip neigh add fd15:{other}:: lladdr 66:00:00:00:00:0{other} dev {device} nud permanent
                 ip route add 192.168.{other}.0/26 via 192.168.{other}.0 dev {device} onlink
                 ip route add fd15:{other}::/64 via fd15:{other}:: dev {device} onlink"
            ));
        }
        ends.map(|(_, number)| (address(&format!("192.168.{number}.1")), address(&format!("fd15:{number}::1"))))
    }
}

// ------------------------------------------------------------------------------------------------------- several peers

#[test]
fn two_peers_of_one_interface_get_each_their_own() {
    needs_namespaces!();
    let star = Star::new(2, Outer::V4);
    all_at_once(&star.all_ways());
}

#[test]
fn three_peers_of_one_interface_get_each_their_own() {
    needs_namespaces!();
    let star = Star::new(3, Outer::V4);
    all_at_once(&star.all_ways());
}

#[test]
fn what_one_peer_sends_to_another_through_the_hub_arrives_unchanged() {
    needs_namespaces!();
    let star = Star::new(3, Outer::V4);
    star.hub.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let mut ways = Vec::new();
    for (one, other) in [(1, 2), (2, 3), (3, 1)] {
        for inner in [Inner::V4, Inner::V6] {
            ways.push(Way {
                from: &star.spokes[one - 1].host,
                source: inner.address(0, one),
                to: &star.spokes[other - 1].host,
                target: inner.address(0, other),
            });
        }
    }
    all_at_once(&ways);
}

#[test]
fn two_interfaces_of_one_host_keep_their_traffic_apart() {
    needs_namespaces!();
    let mut star = Star::new(1, Outer::V4);
    star.add_interface();
    let mut ways = star.all_ways();
    let second = &star.spokes[1].host;
    for inner in [Inner::V4, Inner::V6] {
        let way = Way { from: &star.hub, source: inner.address(1, 0), to: second, target: inner.address(1, 2) };
        ways.extend([way, way.back()]);
    }
    all_at_once(&ways);
}

#[test]
fn several_workers_share_the_peers_of_one_interface() {
    needs_namespaces!();
    let star = Star::with_hub(4, Outer::V4, &[("WG_THREADS", "3")]);
    assert_eq!(star.hub_workers(), 3);
    assert_eq!(star.hub_sockets(51_820), 3, "a socket for each worker");
    all_at_once(&star.all_ways());

    star.hub.sh("wg set wg0 listen-port 40404");
    assert_eq!(star.hub_sockets(40_404), 3);
    let reach_all = || star.all_ways().iter().step_by(2).for_each(|way| way.from.reach(&way.target.to_string()));
    reach_all();
    star.hub.sh("ip link set wg0 down");
    assert_eq!(star.hub_sockets(40_404), 0);
    // With the link, its IPv6 addresses went down.
    let addresses = format!("ip addr add {}/64 dev wg0", Inner::V6.address(0, 0));
    star.hub.sh(&format!("ip link set wg0 up; {addresses}"));
    reach_all();
    assert_eq!(star.hub_sockets(40_404), 3);
    all_at_once(&star.all_ways());
}

#[test]
fn an_interface_that_is_busy_with_several_peers_gets_another_worker() {
    needs_namespaces!();
    if thread::available_parallelism().is_ok_and(|processors| processors.get() == 1) {
        return netns::say("left out: there is one processor, and never more than one worker");
    }
    // In real time it may be done with everything too soon.
    let star = Star::with_hub(2, Outer::V4, &[("WGD_REALTIME", "0")]);
    assert_eq!(star.hub_workers(), 1);
    let begun = Instant::now();
    while star.hub_workers() == 1 {
        assert!(begun.elapsed() < SOON, "the hub stays with one worker");
        together(&star.all_ways(), |seed, way| {
            let flow = TcpFlow { way, port: 6_300 + seed as u16, pace: Pace::Stream, segment_len: None, seed };
            flow.run(&[1 << 20; 8]);
        });
    }
    all_at_once(&star.all_ways());
}

#[test]
fn a_worker_runs_before_others_under_load_and_like_others_afterwards() {
    needs_namespaces!();
    if !may_schedule() {
        return netns::say("left out: it needs CAP_SYS_NICE");
    }
    let star = Star::new(1, Outer::V4);
    assert_eq!(star.hub_scheduling(), [FAIR]);
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Ordering::Relaxed) {
                together(&star.all_ways(), |seed, way| {
                    let flow = TcpFlow { way, port: 7_300 + seed as u16, pace: Pace::Stream, segment_len: None, seed };
                    flow.run(&[1 << 20; 4]);
                });
            }
        });
        let _end = EndOnDrop(&has_ended);
        wait_until("the worker is preferred", SOON, || {
            star.hub_scheduling().iter().any(|policy| policy == PREFERRED).then_some(())
        });
    });
    star.hub.ping_every(Duration::from_millis(10), "10.9.0.2").wait_for(20);
    wait_until("it is like others again", SOON, || (star.hub_scheduling() == [FAIR]).then_some(()));
}

/// `SCHED_OTHER` and `SCHED_RR`, as `/proc` has them.
const FAIR: &str = "0";
const PREFERRED: &str = "2";

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether this process, and so the daemons it starts, may prefer threads.
fn may_schedule() -> bool {
    const CAP_SYS_NICE: u64 = 1 << 23;
    let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line about capabilities");
    u64::from_str_radix(held.trim(), 16).is_ok_and(|held| held & CAP_SYS_NICE != 0)
}

/// Flows of every way at the same time, all on the same port, each with a content of its own.
fn all_at_once(ways: &[Way<'_>]) {
    // UDP alone first: unless TCP fills the queues, nothing may be lost.
    for (sending, receiving) in [(Sending::Singly, Receiving::Joined), (Sending::Segmented, Receiving::Singly)] {
        let bursts: Vec<Burst> =
            (1..=300).map(|number| Burst { len: 1 + number * 37 % 1_370, count: 7, last_len: 0 }).collect();
        together(ways, |seed, way| {
            UdpFlow { way, port: 4_200, sending, receiving, seed }.run(&bursts);
        });
    }
    together(ways, |seed, way| {
        let flow = TcpFlow { way, port: 5_300 + seed as u16, pace: Pace::Stream, segment_len: None, seed };
        flow.run(&[20_011; 400]);
    });
}

fn together(ways: &[Way<'_>], flow: impl Fn(u64, Way<'_>) + Sync) {
    thread::scope(|scope| {
        for (seed, &way) in ways.iter().enumerate() {
            let flow = &flow;
            scope.spawn(move || flow(seed as u64, way));
        }
    });
}

// ---------------------------------------------------------------------------------------------------------------- star

/// A hub and its spokes, each on a cable of its own; the hub's `wg0` has them all as peers.
///
/// ```text
///   spoke N  192.0.N.2 2001:db8:N::2 --- 192.0.N.1 2001:db8:N::1  hub
///     wg0  10.9.0.(N+1) fd09:0::(N+1)       wg0  10.9.0.1 fd09:0::1
/// ```
/// [`Star::add_interface`] adds a spoke with another one of the hub's interfaces: `wg1`, 10.9.1.1, fd09:1::1.
struct Star {
    spokes: Vec<Spoke>,
    hub: Host,
    keys: Keys,
    outer: Outer,
}

struct Spoke {
    host: Host,
    keys: Keys,
    /// Where the hub finds it.
    outer: String,
    /// Where it finds the hub.
    hub_outer: String,
    /// What belongs to it.
    allowed_ips: String,
    /// What belongs to the hub and what is behind it.
    hub_allowed_ips: String,
}

/// Family of the outer addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outer {
    V4,
    V6,
}

/// Family inside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    V4,
    V6,
}

impl Inner {
    /// Of a node on the network of the hub's interface of that number; the hub is node 0.
    fn address(self, interface: usize, node: usize) -> IpAddr {
        match self {
            Inner::V4 => address(&format!("10.9.{interface}.{}", node + 1)),
            Inner::V6 => address(&format!("fd09:{interface}::{}", node + 1)),
        }
    }
}

const MTU: usize = 1_420;
const UDP_HEADER_LEN: usize = 8;

impl Star {
    fn new(spokes: usize, outer: Outer) -> Star {
        Star::with_hub(spokes, outer, &[])
    }

    /// The hub's daemon has these variables.
    fn with_hub(spokes: usize, outer: Outer, variables: &[(&str, &str)]) -> Star {
        let mut star = Star { spokes: Vec::new(), hub: Host::new("hub"), keys: Keys::new(), outer };
        star.hub.start_with(Daemon::Wgd, "wg0", variables);
        configure(&star.hub, "wg0", &star.keys, 0, 0);
        for _ in 0..spokes {
            star.add_spoke("wg0", 0);
        }
        star
    }

    /// One more interface of the hub, with one spoke.
    fn add_interface(&mut self) {
        bring_up(&self.hub, "wg1", &self.keys, 1, 0);
        self.add_spoke("wg1", 1);
    }

    fn add_spoke(&mut self, interface: &str, interface_number: usize) {
        let number = self.spokes.len() + 1;
        let host = Host::new(&format!("spoke {number}"));
        let device = format!("eth{number}");
        cable((&self.hub, &device), (&host, "eth0"));
        for (host, device, end) in [(&self.hub, &*device, 1), (&host, "eth0", 2)] {
            host.sh(&format!(
                "ip addr add 192.0.{number}.{end}/24 dev {device}; ip addr add 2001:db8:{number}::{end}/64 dev {device}"
            ));
        }
        let outer_of = |end: usize, port: usize| match self.outer {
            Outer::V4 => format!("192.0.{number}.{end}:{port}"),
            Outer::V6 => format!("[2001:db8:{number}::{end}]:{port}"),
        };
        let own = [Inner::V4, Inner::V6].map(|inner| inner.address(interface_number, number).to_string());
        let spoke = Spoke {
            keys: Keys::new(),
            outer: outer_of(2, 51_820),
            hub_outer: outer_of(1, 51_820 + interface_number),
            allowed_ips: own.join(","),
            hub_allowed_ips: format!("10.9.{interface_number}.0/24,fd09:{interface_number}::/64"),
            host,
        };
        bring_up(&spoke.host, "wg0", &spoke.keys, interface_number, number);
        spoke.introduce_hub(&self.keys.public);
        introduce(&self.hub, interface, &spoke, &spoke.outer);
        spoke.host.reach(&Inner::V4.address(interface_number, 0).to_string());
        self.spokes.push(spoke);
    }

    /// From the hub to a spoke of `wg0`, counted from 1.
    fn way(&self, spoke: usize, inner: Inner) -> Way<'_> {
        Way {
            from: &self.hub,
            source: inner.address(0, 0),
            to: &self.spokes[spoke - 1].host,
            target: inner.address(0, spoke),
        }
    }

    fn both_ways(&self, spoke: usize, inner: Inner) -> [Way<'_>; 2] {
        let way = self.way(spoke, inner);
        [way, way.back()]
    }

    /// Both families and directions between the hub and the spokes of `wg0`.
    fn all_ways(&self) -> Vec<Way<'_>> {
        let on_first = self.spokes.iter().filter(|spoke| spoke.hub_outer.ends_with(":51820")).count();
        let pairs = (1..=on_first).flat_map(|spoke| [(spoke, Inner::V4), (spoke, Inner::V6)]);
        pairs.flat_map(|(spoke, inner)| self.both_ways(spoke, inner)).collect()
    }
}

impl Star {
    /// How many threads of the hub's daemon move packets.
    fn hub_workers(&self) -> usize {
        self.hub_worker_threads().len()
    }

    fn hub_worker_threads(&self) -> Vec<PathBuf> {
        let daemon = self.hub.processes(&Daemon::Wgd.process_name())[0];
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("the daemon runs");
        let is_worker = |thread: &PathBuf| {
            let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
            name.starts_with("wgd") && name.trim_end().ends_with("-wg0")
        };
        threads.filter_map(|thread| Some(thread.ok()?.path())).filter(is_worker).collect()
    }

    /// The scheduling policies of the hub's workers.
    fn hub_scheduling(&self) -> Vec<String> {
        const POLICY: usize = 40;
        self.hub_worker_threads()
            .iter()
            .filter_map(|thread| fs::read_to_string(thread.join("stat")).ok())
            .filter_map(|stat| stat.split_whitespace().nth(POLICY).map(str::to_owned))
            .collect()
    }

    /// How many IPv4 sockets of the hub listen on a port.
    fn hub_sockets(&self, port: u16) -> usize {
        let end = format!(":{port:04X}");
        let sockets = self.hub.sh("cat /proc/net/udp");
        sockets.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&end))).count()
    }
}

impl Spoke {
    #[track_caller]
    fn introduce_hub(&self, public_key: &str) {
        let (endpoint, allowed_ips) = (&self.hub_outer, &self.hub_allowed_ips);
        self.host.sh(&format!("wg set wg0 peer {public_key} endpoint {endpoint} allowed-ips {allowed_ips}"));
    }
}

#[track_caller]
fn introduce(hub: &Host, interface: &str, spoke: &Spoke, endpoint: &str) {
    let (key, allowed_ips) = (&spoke.keys.public, &spoke.allowed_ips);
    hub.sh(&format!("wg set {interface} peer {key} endpoint {endpoint} allowed-ips {allowed_ips}"));
}

/// Starts a daemon and gives its interface keys, a port and addresses.
#[track_caller]
fn bring_up(host: &Host, interface: &str, keys: &Keys, network: usize, node: usize) {
    host.start(Daemon::Wgd, interface);
    configure(host, interface, keys, network, node);
}

#[track_caller]
fn configure(host: &Host, interface: &str, keys: &Keys, network: usize, node: usize) {
    set_private_key(host, interface, keys);
    // A spoke has one interface; the hub's have ports of their own.
    let port = if node == 0 { 51_820 + network } else { 51_820 };
    host.sh(&format!(
        "wg set {interface} listen-port {port}
         ip addr add {}/24 dev {interface}
         ip addr add {}/64 dev {interface}
         ip link set {interface} mtu {MTU} up",
        Inner::V4.address(network, node),
        Inner::V6.address(network, node)
    ));
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
