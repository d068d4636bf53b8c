//! Owns the story as it is told where namespaces are forbidden: the same claims with four engines in this process, which
//! hand each other their datagrams. The router's routing table is one variable; no packet touches the kernel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant as Clock, SystemTime};

use wg_core::packet::checksum::checksum;
use wg_core::packet::ip::IpPacket;
use wg_core::{
    Datagram, DatagramSink, DatagramSource, Endpoint, Engine, EngineConfig, Instant, PADDING_SLACK, PacketSink,
    PacketSlot, PacketSource, Prefix, SourceChecked,
};

use super::report::{Failure, Report, Stopped, bit_rate, milliseconds, shown, shown_with};
use super::{DemoArgs, new_key, random};

/// Tells the story in memory. The result says whether every claim was verified.
pub(super) fn tell(args: &DemoArgs) -> Result<(), Stopped> {
    let report = Report::new(args.colour());
    report.heading("Build");
    let mut world = report.step("router with wgA and wgB, node A, node B: four engines", || {
        Ok(shown_with("in this process", World::new()?))
    })?;
    overlap(&report, &world)?;
    report.heading("Route");
    route(&report, &mut world)?;
    report.heading("Measure (one thread does the work of both ends)");
    measure(&report, &mut world, args.length())
}

fn overlap(report: &Report, world: &World) -> Result<(), Stopped> {
    report.step("AllowedIPs of wgA and of wgB contain 10.99.0.0/24", || {
        let expected: Prefix = OVERLAP.parse().expect("a constant prefix");
        for tunnel in &world.tunnels {
            let peers = tunnel.router.engine.peers();
            if !peers.iter().any(|peer| peer.allowed_ips.contains(&expected)) {
                return Err(Failure::new(format!("{} has not", tunnel.name)));
            }
        }
        Ok(shown("read back from both"))
    })
}

fn route(report: &Report, world: &mut World) -> Result<(), Stopped> {
    report.step("first packet to 10.99.0.10: answered by node A", || {
        let time = world.expect_answer(A)?;
        Ok(shown(format!("{} with handshake", milliseconds(time))))
    })?;
    report.step("wgB has sent nothing: no broadcast, no race", || {
        let counters = world.tunnels[B].router.engine.counters();
        match (counters.tx_packets, counters.handshakes_initiated) {
            (0, 0) => Ok(shown("0 B, no handshake")),
            (packets, handshakes) => Err(Failure::new(format!("{packets} packets, {handshakes} handshakes"))),
        }
    })?;
    report.step("route moved to wgB: next packet to node B", || {
        world.route = B;
        let time = world.expect_answer(B)?;
        Ok(shown(format!("{} with handshake", milliseconds(time))))
    })?;
    report.step(&format!("{MOVES} more moves, the very next packet followed each"), || {
        for target in [A, B].into_iter().cycle().take(MOVES) {
            world.route = target;
            world.expect_answer(target)?;
        }
        Ok(shown(format!("{MOVES} of {MOVES}")))
    })
}

fn measure(report: &Report, world: &mut World, length: Duration) -> Result<(), Stopped> {
    report.step(&format!("{ECHOES} packets there and back, through four ciphers each"), || {
        let (mut fastest, mut total) = (Duration::MAX, Duration::ZERO);
        for _ in 0..ECHOES {
            let time = world.expect_answer(B)?;
            fastest = fastest.min(time);
            total += time;
        }
        Ok(shown(format!("min {}, avg {}", milliseconds(fastest), milliseconds(total / ECHOES))))
    })?;
    for direction in [Direction::ToNode, Direction::ToClient] {
        let claim = match direction {
            Direction::ToNode => "1420-byte packets, client to node B, none lost",
            Direction::ToClient => "1420-byte packets, node B to client, none lost",
        };
        report.step(claim, || {
            let (packets, time) = world.fill(direction, length)?;
            let rate = bit_rate(packets * u64::from(wg_core::DEFAULT_MTU), time);
            Ok(shown(format!("{rate}, {:.0} kpps", packets as f64 / time.as_secs_f64() / 1e3)))
        })?;
    }
    report.step("every tunnel shook hands, nothing was dropped", || {
        for tunnel in &world.tunnels {
            for end in [&tunnel.router, &tunnel.node] {
                let counters = end.engine.counters();
                if counters.handshakes_completed == 0 || counters.drops.total() != 0 {
                    let drops: Vec<String> =
                        counters.drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                    let handshakes = counters.handshakes_completed;
                    return Err(Failure {
                        what: format!("{}: {handshakes} handshakes, {} drops", tunnel.name, counters.drops.total()),
                        evidence: drops,
                    });
                }
            }
        }
        Ok(shown("checked at all four engines"))
    })
}

/// Which way bulk packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToNode,
    ToClient,
}

/// The client, the router and the nodes.
struct World {
    tunnels: [Tunnel; 2],
    /// The routing table's one entry: the tunnel that the service address goes to.
    route: usize,
    begin: Clock,
    asked: u64,
}

/// An instance of the router and the node at its other end.
struct Tunnel {
    name: &'static str,
    letter: u8,
    router: End,
    node: End,
}

/// One engine with what came out of it.
struct End {
    engine: Engine,
    address: Endpoint,
    datagrams: Train,
    packets: Train,
}

impl World {
    fn new() -> Result<World, Failure> {
        let begin = Clock::now();
        let now = now_since(begin);
        let tunnels = [
            Tunnel::new("wgA", b'A', [198, 51, 100, 1], [198, 51, 100, 2], now)?,
            Tunnel::new("wgB", b'B', [203, 0, 113, 1], [203, 0, 113, 2], now)?,
        ];
        Ok(World { tunnels, route: A, begin, asked: 0 })
    }

    /// One packet from the client to the service and its answer, which the node with this index has to give.
    fn expect_answer(&mut self, expected: usize) -> Result<Duration, Failure> {
        self.asked += 1;
        let question = packet(CLIENT, SERVICE, &self.asked.to_be_bytes());
        let begin = Clock::now();
        let now = now_since(self.begin);
        let tunnel = &mut self.tunnels[self.route];
        tunnel.router.send(&question, 1, now);
        tunnel.settle(now);
        let arrived = tunnel.node.packets.take_only();
        if arrived.as_deref() != Some(question.as_slice()) {
            return Err(Failure::new(format!("the packet did not arrive behind {}", tunnel.name)));
        }
        let mut answer = self.asked.to_be_bytes().to_vec();
        answer.push(tunnel.letter);
        let answer = packet(SERVICE, CLIENT, &answer);
        tunnel.node.send(&answer, 1, now);
        tunnel.settle(now);
        let time = begin.elapsed();
        let arrived = tunnel.router.packets.take_only();
        if arrived.as_deref() != Some(answer.as_slice()) {
            return Err(Failure::new(format!("the answer did not come back through {}", tunnel.name)));
        }
        let letter = arrived.and_then(|packet| packet.last().copied());
        match letter {
            Some(letter) if letter == self.tunnels[expected].letter => Ok(time),
            _ => {
                Err(Failure::new(format!("expected an answer from node {}", char::from(self.tunnels[expected].letter))))
            }
        }
    }

    /// Sends full packets for `length`, in trains as the kernel's segmentation makes them.
    fn fill(&mut self, direction: Direction, length: Duration) -> Result<(u64, Duration), Failure> {
        let full = usize::from(wg_core::DEFAULT_MTU) - HEADERS_LEN;
        let bulk = match direction {
            Direction::ToNode => packet(CLIENT, SERVICE, &vec![0x5a; full]),
            Direction::ToClient => packet(SERVICE, CLIENT, &vec![0x5a; full]),
        };
        let begin = Clock::now();
        let mut packets = 0;
        while begin.elapsed() < length {
            let now = now_since(self.begin);
            let tunnel = &mut self.tunnels[self.route];
            let (from, to) = match direction {
                Direction::ToNode => (&mut tunnel.router, &mut tunnel.node),
                Direction::ToClient => (&mut tunnel.node, &mut tunnel.router),
            };
            from.send(&bulk, TRAIN, now);
            from.carry_to(to, now);
            if to.packets.lens.len() != TRAIN || to.packets.first() != bulk {
                let arrived = to.packets.lens.len();
                return Err(Failure::new(format!("{arrived} of {TRAIN} packets arrived after {packets}")));
            }
            to.packets.clear();
            packets += TRAIN as u64;
            tunnel.settle(now);
        }
        Ok((packets, begin.elapsed()))
    }
}

impl Tunnel {
    fn new(name: &'static str, letter: u8, router: [u8; 4], node: [u8; 4], now: Instant) -> Result<Tunnel, Failure> {
        let (router_key, node_key) = (new_key()?, new_key()?);
        let tunnel = Tunnel { name, letter, router: End::new(router, now)?, node: End::new(node, now)? };
        let ends = [
            (&tunnel.router, &router_key, node_key.public_key(), OVERLAP),
            (&tunnel.node, &node_key, router_key.public_key(), CLIENTS),
        ];
        for (end, key, peer, prefix) in ends {
            end.engine.set_private_key(Some(key.clone()), now);
            let refused = |error: wg_core::ConfigError| Failure::new(format!("{name}: {error}"));
            let peer = end.engine.add_peer(peer).map_err(refused)?;
            end.engine.add_allowed_ip(peer, prefix.parse().expect("a constant prefix")).map_err(refused)?;
            if prefix == OVERLAP {
                // The node learns where the router is from the first handshake.
                end.engine.set_endpoint(peer, tunnel.node.address.remote, now).map_err(refused)?;
            }
            end.engine.bring_up(now);
        }
        Ok(tunnel)
    }

    /// Carries datagrams to and fro until there are none.
    fn settle(&mut self, now: Instant) {
        let Tunnel { router, node, .. } = self;
        for end in [&mut *router, &mut *node] {
            end.do_what_is_due(now);
        }
        while !router.datagrams.lens.is_empty() || !node.datagrams.lens.is_empty() {
            router.carry_to(node, now);
            node.carry_to(router, now);
        }
    }
}

impl End {
    fn new(address: [u8; 4], now: Instant) -> Result<End, Failure> {
        let engine = Engine::new(EngineConfig::new(random()?), now);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        engine.set_wall_clock(wall, now);
        let address = Endpoint::new(SocketAddr::from((address, 51820)));
        Ok(End { engine, address, datagrams: Train::default(), packets: Train::default() })
    }

    /// Gives the engine the same packet `count` times, as if read from the TUN device.
    fn send(&mut self, packet: &[u8], count: usize, now: Instant) {
        let mut buffer = vec![0; packet.len() + PADDING_SLACK];
        buffer[..packet.len()].copy_from_slice(packet);
        let mut source = Repeated { buffer, len: packet.len(), left: count };
        self.engine.handle_packets(&mut source, &mut self.datagrams, now);
    }

    /// Gives all datagrams that came out here to the engine of `to`.
    fn carry_to(&mut self, to: &mut End, now: Instant) {
        let mut received = Received { train: &self.datagrams, next: 0, offset: 0, from: self.address };
        to.engine.handle_datagrams(&mut received, &mut to.packets, &mut to.datagrams, now);
        self.datagrams.clear();
        to.do_what_is_due(now);
    }

    fn do_what_is_due(&mut self, now: Instant) {
        if self.engine.poll_timeout().is_some_and(|at| at <= now) {
            self.engine.handle_timeout(&mut self.datagrams, now);
        }
        while self.engine.handle_handshakes(HANDSHAKES_AT_ONCE, &mut self.datagrams, now).still_waiting {}
    }
}

/// Datagrams or packets end to end.
#[derive(Default)]
struct Train {
    bytes: Vec<u8>,
    used: usize,
    lens: Vec<usize>,
}

impl Train {
    fn clear(&mut self) {
        self.used = 0;
        self.lens.clear();
    }

    /// What is in it, if it is one packet; it is empty afterwards.
    fn take_only(&mut self) -> Option<Vec<u8>> {
        let only = (self.lens.len() == 1).then(|| self.first().to_vec());
        self.clear();
        only
    }

    fn first(&self) -> &[u8] {
        &self.bytes[..self.lens.first().copied().unwrap_or(0)]
    }

    fn space(&mut self, len: usize) -> Option<&mut [u8]> {
        let end = self.used + len;
        if end > TRAIN_LIMIT_BYTES {
            return None;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        Some(&mut self.bytes[self.used..end])
    }

    fn keep(&mut self, len: usize) {
        self.used += len;
        self.lens.push(len);
    }
}

impl DatagramSink for Train {
    fn reserve(&mut self, _to: &Endpoint, _traffic_class: u8, len: usize) -> Option<&mut [u8]> {
        self.space(len)
    }

    fn commit(&mut self, len: usize) {
        self.keep(len);
    }
}

impl PacketSink for Train {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.space(len)
    }

    fn commit(&mut self, packet: SourceChecked) {
        self.keep(packet.len());
    }
}

struct Repeated {
    buffer: Vec<u8>,
    len: usize,
    left: usize,
}

impl PacketSource for Repeated {
    fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
        self.left = self.left.checked_sub(1)?;
        Some(PacketSlot { buffer: &mut self.buffer, len: self.len })
    }
}

struct Received<'a> {
    train: &'a Train,
    next: usize,
    offset: usize,
    from: Endpoint,
}

impl DatagramSource for Received<'_> {
    fn next_datagram(&mut self) -> Option<Datagram<'_>> {
        let len = *self.train.lens.get(self.next)?;
        let bytes = &self.train.bytes[self.offset..self.offset + len];
        self.next += 1;
        self.offset += len;
        Some(Datagram { bytes, from: self.from, ecn: 0 })
    }
}

/// A UDP packet without a UDP checksum, which IPv4 allows. RFC 791, RFC 768.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total_len = (HEADERS_LEN + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, UDP, 0, 0];
    packet[2..4].copy_from_slice(&total_len.to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 7, 0, 7]);
    packet.extend((total_len - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend_from_slice(payload);
    debug_assert!(IpPacket::parse(&packet).is_some_and(|view| view.source() == IpAddr::V4(source)));
    packet
}

fn now_since(begin: Clock) -> Instant {
    Instant::EPOCH + begin.elapsed()
}

const A: usize = 0;
const B: usize = 1;
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 10);
const CLIENTS: &str = "192.168.1.0/24";
const OVERLAP: &str = "10.99.0.0/24";
const UDP: u8 = 17;
/// IPv4 and UDP.
const HEADERS_LEN: usize = 28;
/// An even number, so that the service ends at node B.
const MOVES: usize = 20;
const ECHOES: u32 = 10_000;
/// Full packets in a super-packet of 64 KiB.
const TRAIN: usize = 44;
/// Far more than one train; a sink has to have a bound.
const TRAIN_LIMIT_BYTES: usize = 1 << 20;
const HANDSHAKES_AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_the_other_node_is_noticed() {
        let mut world = World::new().expect("constant settings");
        world.expect_answer(A).expect("the route names A");
        assert!(world.expect_answer(B).is_err());
        world.route = B;
        world.expect_answer(B).expect("the route names B");
        assert!(world.expect_answer(A).is_err());
    }

    #[test]
    fn a_peer_that_is_not_allowed_the_service_address_breaks_the_story() {
        let mut world = World::new().expect("constant settings");
        let router = &world.tunnels[A].router.engine;
        router.clear_allowed_ips(router.peers()[0].id);
        assert!(world.expect_answer(A).is_err());
    }

    #[test]
    fn packets_that_do_not_arrive_are_noticed_in_both_directions() {
        for direction in [Direction::ToNode, Direction::ToClient] {
            let mut world = World::new().expect("constant settings");
            world.expect_answer(A).expect("a session");
            world.fill(direction, Duration::from_millis(5)).expect("all arrive");
            let node = &world.tunnels[A].node.engine;
            node.clear_allowed_ips(node.peers()[0].id);
            assert!(world.fill(direction, Duration::from_millis(5)).is_err(), "{direction:?}");
        }
    }
}
