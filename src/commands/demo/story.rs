//! Owns the story that is told with real packets: the topology, the claims in their order, and how each is verified.
//! Runs as the first process of the sandbox, where it may change everything and cleans up nothing.
//!
//! ```text
//! client 192.168.1.10 --- 192.168.1.1 router 198.51.100.1 --- 198.51.100.2 node A   (wgA === nodeA)
//!                                            203.0.113.1  --- 203.0.113.2  node B   (wgB === nodeB)
//! ```
//! Both nodes hold the service address 10.99.0.10, and both peers of the router are allowed 10.99.0.0/24.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::daemon::{Daemon, PeerSettings};
use super::namespaces::{Ip, Netns, mount_private_run};
use super::report::{Failure, Report, Stopped, amount, bit_rate, milliseconds, shown, shown_with};
use super::sandbox;
use super::traffic::{Asker, Direction, Echoes, Trip, answer_questions, ping, transfer};
use super::{DemoArgs, new_key};
use crate::uapi_client::PeerState;

/// Tells the whole story inside the sandbox. The code says whether every claim was verified.
///
/// Tells the outside, over the control socket, what is missing (`unavailable ...`) and which network namespaces there
/// are (`namespaces ...`).
pub(super) fn run(args: &DemoArgs) -> ExitCode {
    let mut control = match sandbox::enter() {
        Ok(control) => control,
        Err(error) => {
            eprintln!("wgd demo: {error}");
            return ExitCode::from(2);
        }
    };
    let begin = Instant::now();
    let stage = match Stage::build() {
        Ok(stage) => stage,
        Err(missing) => {
            let _ = writeln!(control, "unavailable {}", missing.replace('\n', "; "));
            return ExitCode::FAILURE;
        }
    };
    let _ = writeln!(control, "namespaces {}", stage.inodes());
    match tell(&stage, args, begin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stopped) => ExitCode::FAILURE,
    }
}

fn tell(stage: &Stage, args: &DemoArgs, begin: Instant) -> Result<(), Stopped> {
    let report = Report::new(args.colour());
    report.line(TITLE);
    report.line(&super::machine());
    report.line(PICTURE);
    report.heading("Build");
    report.step("client, router, node A, node B in network namespaces", || Ok(shown(milliseconds_since(begin))))?;
    let tunnels = Tunnels::start(stage, &report)?;
    let story = Story { stage, tunnels, report };
    story.overlap()?;
    story.report.heading("Route");
    let mut asker = story.first_packets()?;
    story.moves(&mut asker)?;
    story.report.heading("Measure (client - router - tunnel - node B)");
    story.measure(&mut asker, args.length())?;
    story.report.heading("State of the tunnels");
    story.state()
}

/// The namespaces and the cables between them, without tunnels.
struct Stage {
    ip: Ip,
    client: Netns,
    router: Netns,
    nodes: [Netns; 2],
}

impl Stage {
    /// Errors say what this machine does not offer.
    fn build() -> Result<Stage, String> {
        let ip = Ip::find()?;
        mount_private_run()?;
        let netns = |name| Netns::new(name).map_err(|error| format!("a network namespace: {error}"));
        let nodes = [netns(NODES[0].name)?, netns(NODES[1].name)?];
        let stage = Stage { ip, client: netns("client")?, router: netns("router")?, nodes };
        stage.router.set("ipv4/ip_forward", "1")?;
        // The host's own strictness is inherited; here a packet may come in where its answer does not go out.
        stage.router.set("ipv4/conf/all/rp_filter", "0")?;
        stage.router.set("ipv4/conf/default/rp_filter", "0")?;
        stage.probe_tun()?;
        stage.connect()?;
        Ok(stage)
    }

    fn probe_tun(&self) -> Result<(), String> {
        let missing = |said: String| format!("TUN devices (/dev/net/tun): {said}");
        self.ip.run(&self.router, "tuntap add dev probe mode tun").map_err(missing)?;
        self.ip.run(&self.router, "link delete dev probe").map_err(missing)
    }

    fn connect(&self) -> Result<(), String> {
        self.ip.cable((&self.client, "eth0"), (&self.router, "lan"))?;
        self.ip.run(&self.client, "address add 192.168.1.10/24 dev eth0")?;
        self.ip.run(&self.client, "link set eth0 up")?;
        self.ip.run(&self.client, "route add default via 192.168.1.1")?;
        self.ip.run(&self.router, "address add 192.168.1.1/24 dev lan")?;
        self.ip.run(&self.router, "link set lan up")?;
        for (node, plan) in self.nodes.iter().zip(&NODES) {
            self.ip.cable((node, "eth0"), (&self.router, plan.cable))?;
            self.ip.run(node, "link set lo up")?;
            self.ip.run(node, &format!("address add {SERVICE}/32 dev lo"))?;
            self.ip.run(node, &format!("address add {}/30 dev eth0", plan.outer))?;
            self.ip.run(node, "link set eth0 up")?;
            self.ip.run(&self.router, &format!("address add {}/30 dev {}", plan.router_outer, plan.cable))?;
            self.ip.run(&self.router, &format!("link set {} up", plan.cable))?;
        }
        Ok(())
    }

    /// The numbers of the namespaces, so that the outside can see that they are gone.
    fn inodes(&self) -> String {
        let all = [&self.client, &self.router, &self.nodes[0], &self.nodes[1]];
        let numbers = all.iter().filter_map(|netns| netns.inode().ok()).map(|inode| inode.to_string());
        numbers.collect::<Vec<_>>().join(" ")
    }
}

/// The four processes; `router[n]` and `node[n]` are the two ends of one tunnel.
struct Tunnels {
    router: [Daemon; 2],
    node: [Daemon; 2],
}

impl Tunnels {
    fn start(stage: &Stage, report: &Report) -> Result<Tunnels, Stopped> {
        let tunnels = report.step("four wgd processes, each with its TUN device and socket", || {
            let begin = Instant::now();
            let start = |place, interface| Daemon::start(place, interface);
            let tunnels = Tunnels {
                router: [start(&stage.router, NODES[0].router_link)?, start(&stage.router, NODES[1].router_link)?],
                node: [start(&stage.nodes[0], NODES[0].link)?, start(&stage.nodes[1], NODES[1].link)?],
            };
            for daemon in tunnels.all() {
                daemon.wait_until_ready()?;
            }
            Ok(shown_with(format!("ready in {}", milliseconds_since(begin)), tunnels))
        })?;
        report.step("keys, ports, peers set over their control sockets", || {
            let begin = Instant::now();
            for index in [A, B] {
                tunnels.configure(index)?;
                tunnels.bring_up(stage, index)?;
            }
            let route = format!("route add {SERVICE}/32 dev {}", NODES[A].router_link);
            stage.ip.run(&stage.router, &route)?;
            Ok(shown(milliseconds_since(begin)))
        })?;
        Ok(tunnels)
    }

    fn configure(&self, index: usize) -> Result<(), Failure> {
        let plan = &NODES[index];
        let (router_key, node_key) = (new_key()?, new_key()?);
        let to_node = PeerSettings {
            public_key: node_key.public_key(),
            endpoint: Some(SocketAddr::from((plan.outer, NODE_PORT))),
            allowed_ips: &[OVERLAP, &format!("{}/32", plan.inner)],
        };
        let to_router = PeerSettings {
            public_key: router_key.public_key(),
            // The node learns where the router is from the first handshake.
            endpoint: None,
            allowed_ips: &["192.168.1.0/24", &format!("{}/32", plan.router_inner)],
        };
        self.router[index].configure(&router_key, plan.router_port, &to_node)?;
        self.node[index].configure(&node_key, NODE_PORT, &to_router)
    }

    fn bring_up(&self, stage: &Stage, index: usize) -> Result<(), Failure> {
        let NodePlan { link, router_link, inner, router_inner, .. } = NODES[index];
        let (node, router) = (&stage.nodes[index], &stage.router);
        stage.ip.run(router, &format!("address add {router_inner} peer {inner} dev {router_link}"))?;
        stage.ip.run(router, &format!("link set {router_link} up"))?;
        stage.ip.run(node, &format!("address add {inner} peer {router_inner} dev {link}"))?;
        stage.ip.run(node, &format!("link set {link} up"))?;
        stage.ip.run(node, &format!("route add 192.168.1.0/24 dev {link}"))?;
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Daemon> {
        self.router.iter().chain(&self.node)
    }
}

struct Story<'a> {
    stage: &'a Stage,
    tunnels: Tunnels,
    report: Report,
}

impl Story<'_> {
    fn overlap(&self) -> Result<(), Stopped> {
        let claim = format!("AllowedIPs of wgA and of wgB contain {OVERLAP}");
        self.report.step(&claim, || {
            for daemon in &self.tunnels.router {
                let prefixes = daemon.status()?.allowed_ips;
                if !prefixes.iter().any(|prefix| prefix == OVERLAP) {
                    let interface = daemon.interface();
                    return Err(daemon.failure(format!("{interface} has {}", prefixes.join(", "))));
                }
            }
            Ok(shown("read back from both"))
        })
    }

    /// One packet through each tunnel, both of them idle until then.
    fn first_packets(&self) -> Result<Asker, Stopped> {
        let Story { stage, tunnels, report } = self;
        let mut asker = report.step("first packet to 10.99.0.10: answered by node A", || {
            let service = SocketAddrV4::new(SERVICE, QUESTIONS_PORT);
            for (place, plan) in stage.nodes.iter().zip(&NODES) {
                answer_questions(place, service, plan.letter)
                    .map_err(|error| Failure::during("answering questions", &error))?;
            }
            let mut asker = Asker::new(&stage.client, service).map_err(|error| Failure::during("asking", &error))?;
            let time = expect_answer(tunnels, &mut asker, A)?;
            Ok(shown_with(format!("{} with handshake", milliseconds(time)), asker))
        })?;
        report.step("wgB has sent nothing: no broadcast, no race", || {
            let daemon = &tunnels.router[B];
            match daemon.status()? {
                PeerState { tx_bytes: 0, last_handshake: None, .. } => Ok(shown("0 B, no handshake")),
                status => Err(daemon.failure(format!("wgB: {}", describe(&status)))),
            }
        })?;
        report.step("ip route replace 10.99.0.10 dev wgB: next packet to B", || {
            move_service(stage, B)?;
            let time = expect_answer(tunnels, &mut asker, B)?;
            Ok(shown(format!("{} with handshake", milliseconds(time))))
        })?;
        Ok(asker)
    }

    fn moves(&self, asker: &mut Asker) -> Result<(), Stopped> {
        let Story { stage, tunnels, report } = self;
        let claim = format!("{MOVES} more moves, the very next packet followed each");
        report.step(&claim, || {
            let mut slowest = Duration::ZERO;
            for target in [A, B].into_iter().cycle().take(MOVES) {
                move_service(stage, target)?;
                slowest = slowest.max(expect_answer(tunnels, asker, target)?);
            }
            Ok(shown(format!("{MOVES} of {MOVES}, {} at most", milliseconds(slowest))))
        })?;
        let claim = format!("{STEADY_MOVES} moves under 1000 packets/s: each to its node, none lost");
        report.step(&claim, || {
            let (trips, moves) = asker
                .ask_steadily(STEADY_COUNT, STEADY_INTERVAL, || move_steadily(stage))
                .map_err(|error| with_evidence(tunnels, Failure::during("asking steadily", &error)))?;
            let answers = judge(&trips, &moves?).map_err(|failure| with_evidence(tunnels, failure))?;
            Ok(shown(format!("{} to A, {} to B, 0 lost", answers[A], answers[B])))
        })
    }

    fn measure(&self, asker: &mut Asker, length: Duration) -> Result<(), Stopped> {
        let Story { stage, tunnels, report } = self;
        report.step(&format!("ping, {PINGS} echoes"), || {
            let echoes = ping(&stage.client, SERVICE, PINGS, PING_INTERVAL, || false);
            let echoes = echoes.map_err(|error| with_evidence(tunnels, Failure::during("ping", &error)))?;
            if echoes.received != echoes.sent {
                let lost = format!("{} of {} echoes were not answered", echoes.sent - echoes.received, echoes.sent);
                return Err(with_evidence(tunnels, Failure::new(lost)));
            }
            let (min, average) = (milliseconds(echoes.min), milliseconds(echoes.average));
            Ok(shown(format!("min {min}, avg {average}")))
        })?;
        let before = report.step("still served by node B", || {
            let time = expect_answer(tunnels, asker, B)?;
            Ok(shown_with(milliseconds(time), tunnels.router[B].status()?))
        })?;
        let to_node = bulk(report, stage, tunnels, Direction::ToNode, length)?;
        let to_client = bulk(report, stage, tunnels, Direction::ToClient, length)?;
        report.step("wgB carried at least these bytes", || {
            let after = tunnels.router[B].status()?;
            let sent = after.tx_bytes.saturating_sub(before.tx_bytes);
            let received = after.rx_bytes.saturating_sub(before.rx_bytes);
            let value = format!("{} out, {} in", amount(sent), amount(received));
            if sent < to_node || received < to_client {
                return Err(with_evidence(tunnels, Failure::new(format!("wgB counted only {value}"))));
            }
            Ok(shown(value))
        })
    }

    fn state(&self) -> Result<(), Stopped> {
        let Story { tunnels, report, .. } = self;
        for (daemon, plan) in tunnels.router.iter().zip(&NODES) {
            let claim = format!("{} to {}", plan.router_link, plan.name);
            report.step(&claim, || {
                let status = daemon.status()?;
                if status.last_handshake.is_none() || status.tx_bytes == 0 || status.rx_bytes == 0 {
                    return Err(daemon.failure(describe(&status)));
                }
                Ok(shown(describe(&status)))
            })?;
        }
        Ok(())
    }
}

fn bulk(
    report: &Report,
    stage: &Stage,
    tunnels: &Tunnels,
    direction: Direction,
    length: Duration,
) -> Result<u64, Stopped> {
    let claim = match direction {
        Direction::ToNode => "TCP, one stream, client to node B",
        Direction::ToClient => "TCP, one stream, node B to client",
    };
    report.step(claim, || {
        let is_over = AtomicBool::new(false);
        let (transferred, echoes) = thread::scope(|scope| {
            let pinging = scope
                .spawn(|| ping(&stage.client, SERVICE, u32::MAX, PING_INTERVAL, || is_over.load(Ordering::Relaxed)));
            let places = (&stage.client, &stage.nodes[B]);
            let transferred = transfer(places, SocketAddrV4::new(SERVICE, BULK_PORT), direction, length);
            is_over.store(true, Ordering::Relaxed);
            (transferred, pinging.join().expect("the pinging thread does not panic"))
        });
        let transferred =
            transferred.map_err(|error| with_evidence(tunnels, Failure::during("TCP through the tunnel", &error)))?;
        if transferred.bytes == 0 {
            return Err(with_evidence(tunnels, Failure::new("not one byte arrived")));
        }
        let rate = bit_rate(transferred.bytes, transferred.time);
        Ok(shown_with(format!("{rate}{}", describe_echoes(echoes)), transferred.bytes))
    })
}

fn describe_echoes(echoes: io::Result<Echoes>) -> String {
    match echoes {
        Ok(echoes) if echoes.received > 0 => format!(", ping meanwhile {}", milliseconds(echoes.average)),
        _ => ", no ping came back meanwhile".to_owned(),
    }
}

/// Points the router's route for the service address at one of its tunnels.
fn move_service(stage: &Stage, target: usize) -> Result<(), Failure> {
    let command = format!("route replace {SERVICE}/32 dev {}", NODES[target].router_link);
    stage.ip.run(&stage.router, &command).map_err(Failure::from)
}

/// One packet there and back, which the node with this index has to answer.
fn expect_answer(tunnels: &Tunnels, asker: &mut Asker, expected: usize) -> Result<Duration, Failure> {
    let name = NODES[expected].name;
    match asker.ask() {
        Ok((letter, time)) if letter == NODES[expected].letter => Ok(time),
        Ok((letter, _)) => {
            let seen = format!("expected an answer from {name}, node {} gave it", char::from(letter));
            Err(with_evidence(tunnels, Failure::new(seen)))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(with_evidence(tunnels, Failure::new(format!("no answer from {name}"))))
        }
        Err(error) => Err(with_evidence(tunnels, Failure::during(&format!("asking {name}"), &error))),
    }
}

/// One change of the route: from `begin` to `end` nobody can say which node a packet went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    begin: Instant,
    end: Instant,
    to: usize,
}

fn move_steadily(stage: &Stage) -> Result<Vec<Move>, Failure> {
    let pause = STEADY_INTERVAL * (STEADY_COUNT / (STEADY_MOVES + 1)) as u32;
    let mut moves = Vec::with_capacity(STEADY_MOVES);
    for to in [A, B].into_iter().cycle().take(STEADY_MOVES) {
        thread::sleep(pause);
        let begin = Instant::now();
        move_service(stage, to)?;
        moves.push(Move { begin, end: Instant::now(), to });
    }
    Ok(moves)
}

/// Checks that each packet was answered by the node its route named, and counts the answers per node.
///
/// A packet sent before a change has begun and answered after that may have gone either way.
fn judge(trips: &[Trip], moves: &[Move]) -> Result<[usize; 2], Failure> {
    let mut answers = [0; 2];
    for (number, trip) in trips.iter().enumerate() {
        let Some((answered, letter)) = trip.answered else {
            let lost = trips.iter().filter(|trip| trip.answered.is_none()).count();
            return Err(Failure::new(format!("{lost} of {} packets lost, number {number} first", trips.len())));
        };
        let node = if letter == NODES[A].letter { A } else { B };
        let last = moves.iter().rfind(|change| change.end <= trip.sent).map_or(B, |change| change.to);
        let may_be_either = moves.iter().any(|change| change.begin <= answered && trip.sent < change.end);
        if node != last && !may_be_either {
            let (seen, name) = (NODES[node].name, NODES[last].name);
            return Err(Failure::new(format!("packet {number} went to {seen}, the route named {name}")));
        }
        answers[node] += 1;
    }
    Ok(answers)
}

/// Adds what all tunnels say about themselves.
fn with_evidence(tunnels: &Tunnels, mut failure: Failure) -> Failure {
    for daemon in tunnels.all() {
        let interface = daemon.interface();
        failure.evidence.extend(daemon.status().ok().map(|status| format!("{interface}: {}", describe(&status))));
        failure.evidence.extend(daemon.failure("").evidence);
    }
    failure
}

fn describe(status: &PeerState) -> String {
    let handshake = match status.last_handshake {
        None => "no handshake".to_owned(),
        Some(at) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format!("handshake {:.1} s ago", now.saturating_sub(at).as_secs_f64())
        }
    };
    format!("{handshake}, {} out, {} in", amount(status.tx_bytes), amount(status.rx_bytes))
}

fn milliseconds_since(begin: Instant) -> String {
    format!("{:.0} ms", begin.elapsed().as_secs_f64() * 1e3)
}

struct NodePlan {
    name: &'static str,
    letter: u8,
    /// The tunnel's interface on the node and on the router.
    link: &'static str,
    router_link: &'static str,
    /// The router's end of the cable to the node.
    cable: &'static str,
    outer: Ipv4Addr,
    router_outer: Ipv4Addr,
    inner: Ipv4Addr,
    router_inner: Ipv4Addr,
    router_port: u16,
}

const A: usize = 0;
const B: usize = 1;
const NODES: [NodePlan; 2] = [
    NodePlan {
        name: "node A",
        letter: b'A',
        link: "nodeA",
        router_link: "wgA",
        cable: "wanA",
        outer: Ipv4Addr::new(198, 51, 100, 2),
        router_outer: Ipv4Addr::new(198, 51, 100, 1),
        inner: Ipv4Addr::new(192, 168, 5, 4),
        router_inner: Ipv4Addr::new(192, 168, 5, 104),
        router_port: 51824,
    },
    NodePlan {
        name: "node B",
        letter: b'B',
        link: "nodeB",
        router_link: "wgB",
        cable: "wanB",
        outer: Ipv4Addr::new(203, 0, 113, 2),
        router_outer: Ipv4Addr::new(203, 0, 113, 1),
        inner: Ipv4Addr::new(192, 168, 5, 5),
        router_inner: Ipv4Addr::new(192, 168, 5, 105),
        router_port: 51825,
    },
];
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 10);
const OVERLAP: &str = "10.99.0.0/24";
const NODE_PORT: u16 = 51820;
const QUESTIONS_PORT: u16 = 7;
const BULK_PORT: u16 = 5001;
/// An even number, so that the service ends where it began.
const MOVES: usize = 20;
const STEADY_MOVES: usize = 6;
const STEADY_COUNT: usize = 1000;
const STEADY_INTERVAL: Duration = Duration::from_millis(1);
const PINGS: u32 = 100;
const PING_INTERVAL: Duration = Duration::from_millis(10);

const TITLE: &str = "wgd demo: two nodes claim the same prefix, and the routing table decides";
const PICTURE: &str = "
                       +-- wgA ===tunnel=== node A (10.99.0.10)
    client --- router -+
                       +-- wgB ===tunnel=== node B (10.99.0.10)";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, millis: u64) -> Instant {
        begin + Duration::from_millis(millis)
    }

    fn trip(begin: Instant, sent: u64, answered: u64, letter: u8) -> Trip {
        Trip { sent: at(begin, sent), answered: Some((at(begin, answered), letter)) }
    }

    #[test]
    fn a_packet_sent_after_a_move_must_reach_the_new_node() {
        let begin = Instant::now();
        let moves = [Move { begin: at(begin, 10), end: at(begin, 12), to: A }];
        assert_eq!(judge(&[trip(begin, 1, 2, b'B'), trip(begin, 12, 13, b'A')], &moves), Ok([1, 1]));
        assert!(judge(&[trip(begin, 12, 13, b'B')], &moves).is_err());
        assert!(judge(&[trip(begin, 1, 2, b'A')], &moves).is_err());
    }

    #[test]
    fn a_packet_that_was_under_way_during_a_move_may_reach_either() {
        let begin = Instant::now();
        let moves = [Move { begin: at(begin, 10), end: at(begin, 12), to: A }];
        for letter in [b'A', b'B'] {
            assert!(judge(&[trip(begin, 9, 11, letter)], &moves).is_ok());
            assert!(judge(&[trip(begin, 11, 14, letter)], &moves).is_ok());
        }
    }

    #[test]
    fn a_lost_packet_is_a_failure() {
        let begin = Instant::now();
        let lost = Trip { sent: begin, answered: None };
        let failure = judge(&[trip(begin, 1, 2, b'B'), lost, lost], &[]).expect_err("two are lost");
        assert_eq!(failure.what, "2 of 3 packets lost, number 1 first");
    }

    #[test]
    fn the_service_ends_on_node_b_where_it_is_measured() {
        assert_eq!((MOVES % 2, STEADY_MOVES % 2), (0, 0));
    }
}
