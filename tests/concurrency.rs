//! One engine, many threads: packets, datagrams, handshakes, deadlines, settings and state at the same time, as drivers
//! and operators use it. A deadlock shows as a test that never ends, a lost update as a packet that does not arrive.
//!
//! The clock is the real one; nothing is asserted about time.
#![cfg(not(virtual_time))]

mod support;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use support::link::InFlight;
use support::packets::number_of;
use support::pair::{Datagrams, Family, Inbox, Outbox, Packets, Side, home, inner_address, numbered};
use wg_core::{Engine, EngineConfig, Instant, Prefix, PresharedKey, PrivateKey};

/// Packets sent in each direction once there is a session.
const PACKETS: u64 = 100_000;
/// Packets handed in at once.
const BATCH: u64 = 32;
/// Packets on the way at most, so that nothing waits without bound.
const WINDOW: u64 = 1024;

struct Node {
    side: Side,
    engine: Engine,
    /// Datagrams that have arrived.
    arrived: Mutex<VecDeque<InFlight>>,
    delivered: Mutex<Vec<u64>>,
    delivered_count: AtomicU64,
}

/// Lets the other threads end when one of them fails.
struct EndOnPanic<'a>(&'a AtomicBool);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

struct World {
    nodes: [Node; 2],
    start: std::time::Instant,
    is_over: AtomicBool,
}

impl World {
    fn new() -> Self {
        let start = std::time::Instant::now();
        let now = Instant::EPOCH;
        let key = |side: Side| PrivateKey::from_bytes([side as u8 + 1; 32]);
        let nodes = Side::BOTH.map(|side| {
            let engine = Engine::new(EngineConfig::new([side as u8 + 3; 32]), now);
            engine.set_private_key(Some(key(side)), now);
            let peer = engine.add_peer(key(side.other()).public_key()).expect("there is room");
            let prefix = Prefix::new(inner_address(side.other(), Family::V4), 32).expect("a prefix");
            engine.add_allowed_ip(peer, prefix).expect("it exists");
            engine.set_endpoint(peer, home(side.other(), Family::V4), now).expect("it exists");
            engine.bring_up(now);
            Node {
                side,
                engine,
                arrived: Mutex::default(),
                delivered: Mutex::default(),
                delivered_count: AtomicU64::new(0),
            }
        });
        World { nodes, start, is_over: AtomicBool::new(false) }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Does `turn` again and again until the test is over.
    fn repeat(&self, mut turn: impl FnMut()) {
        let _end = EndOnPanic(&self.is_over);
        while !self.is_over() {
            turn();
            thread::yield_now();
        }
    }

    /// Waits until `condition` holds or the test is over.
    fn wait_until(&self, condition: impl Fn() -> bool) {
        while !condition() && !self.is_over() {
            thread::yield_now();
        }
    }

    fn transmit(&self, from: &Node, out: Outbox) {
        let other = &self.nodes[from.side.other() as usize];
        let (source, target) = (home(from.side, Family::V4), home(other.side, Family::V4));
        let mut arrived = other.arrived.lock().expect("nobody panics with it");
        arrived.extend(
            out.datagrams.into_iter().filter(|datagram| datagram.to.remote == target).map(|datagram| InFlight {
                from: source,
                to: target,
                traffic_class: 0,
                bytes: datagram.bytes,
            }),
        );
    }

    fn send_packets(&self, node: &Node, numbers: std::ops::Range<u64>) {
        let mut out = Outbox::default();
        let packets = numbers.map(|number| numbered(node.side, Family::V4, number, 200)).collect();
        node.engine.handle_packets(&mut Packets::new(packets), &mut out, self.now());
        self.transmit(node, out);
    }

    fn receive(&self, node: &Node) {
        let datagrams: Vec<_> = node.arrived.lock().expect("nobody panics with it").drain(..).collect();
        let (mut out, mut up) = (Outbox::default(), Inbox::default());
        node.engine.handle_datagrams(&mut Datagrams::new(datagrams), &mut up, &mut out, self.now());
        let numbers: Vec<_> = up.packets.iter().map(|packet| number_of(packet)).collect();
        node.delivered_count.fetch_add(numbers.len() as u64, Ordering::Relaxed);
        node.delivered.lock().expect("nobody panics with it").extend(numbers);
        self.transmit(node, out);
    }

    /// All that an operator may do without ending a session, and all that may be asked.
    fn operate(&self, node: &Node, turn: u64) {
        let engine = &node.engine;
        let now = self.now();
        let peer = engine.peers()[0].id;
        let stranger = PrivateKey::from_bytes([100 + (turn % 50) as u8; 32]).public_key();
        let other = engine.add_peer(stranger).expect("there is room");
        let moving: Prefix = "10.77.0.0/16".parse().expect("a prefix");
        match turn % 8 {
            0 => drop(engine.set_preshared_key(other, PresharedKey::from_bytes([turn as u8; 32]))),
            1 => drop(engine.set_endpoint(peer, home(node.side.other(), Family::V4), now)),
            2 => drop(engine.add_allowed_ip(other, moving)),
            3 => drop(engine.set_persistent_keepalive(peer, (turn % 3) as u16, now)),
            4 => engine.forget_sources(),
            5 => drop(engine.set_endpoint(other, SocketAddr::from(([203, 0, 113, 1], 1)), now)),
            6 => drop(engine.set_persistent_keepalive(other, 1, now)),
            _ => drop(engine.remove_peer(other)),
        }
        assert!(engine.counters().peers <= 51);
        assert!(engine.peer_state(peer).is_some());
        let _ = engine.poll_event();
    }
}

#[test]
fn threads_that_do_everything_at_once_lose_nothing_and_end() {
    let world = World::new();
    thread::scope(|scope| {
        let _end = EndOnPanic(&world.is_over);
        for node in &world.nodes {
            let world = &world;
            scope.spawn(move || world.repeat(|| world.receive(node)));
            scope.spawn(move || {
                world.repeat(|| {
                    let mut out = Outbox::default();
                    node.engine.handle_handshakes(4, &mut out, world.now());
                    world.transmit(node, out);
                });
            });
            scope.spawn(move || {
                world.repeat(|| {
                    let mut out = Outbox::default();
                    node.engine.handle_timeout(&mut out, world.now());
                    world.transmit(node, out);
                });
            });
            let mut turn = 0;
            scope.spawn(move || {
                world.repeat(|| {
                    world.operate(node, turn);
                    turn += 1;
                });
            });
        }
        let senders: Vec<_> = world
            .nodes
            .iter()
            .map(|node| {
                let world = &world;
                scope.spawn(move || {
                    let receiver = &world.nodes[node.side.other() as usize];
                    // The first packet makes the session; what is staged may be overtaken by another thread's packets.
                    world.send_packets(node, 0..1);
                    let delivered = || receiver.delivered_count.load(Ordering::Relaxed);
                    world.wait_until(|| delivered() == 1);
                    let mut next = 1;
                    while next <= PACKETS && !world.is_over() {
                        world.wait_until(|| next - delivered() < WINDOW);
                        world.send_packets(node, next..next + BATCH);
                        next += BATCH;
                    }
                    world.wait_until(|| delivered() == next);
                    next
                })
            })
            .collect();
        let sent: Vec<_> = senders.into_iter().map(|sender| sender.join().expect("it does not panic")).collect();
        world.is_over.store(true, Ordering::Relaxed);
        for (node, sent) in world.nodes.iter().zip(sent) {
            let receiver = &world.nodes[node.side.other() as usize];
            let numbers = receiver.delivered.lock().expect("nobody panics with it");
            assert!(numbers.iter().copied().eq(0..sent), "in order and complete");
        }
    });
}
