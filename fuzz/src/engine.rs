//! Any sequence of settings, packets, datagrams and time leaves two engines whole: no panic, every delivered packet one
//! that the other engine was given, memory bounded, no deadline in the past.
//!
//! Input: operations of one byte, each followed by its arguments.

use std::collections::BTreeSet;
use std::time::Duration;

use wg_core::{Instant, PresharedKey, PrivateKey, PublicKey};

use super::input::Input;
use super::memory::{Datagrams, Delivered, Host, Packets, START, Sent, host, packet, settle};

/// Operations looked at, so that an input costs milliseconds.
const MAX_OPERATIONS: usize = 60;

/// Applies the operations.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World {
        hosts: [host(0), host(1)],
        now: START,
        under_way: [Vec::new(), Vec::new()],
        given: [BTreeSet::new(), BTreeSet::new()],
        wall_clock: Duration::from_secs(1_893_456_000),
    };
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let operation = input.byte();
        world.operate(operation, &mut input);
        world.assert_whole();
    }
}

struct World {
    hosts: [Host; 2],
    now: Instant,
    /// Datagrams towards each host.
    under_way: [Vec<Vec<u8>>; 2],
    /// Packets that each host was given to send.
    given: [BTreeSet<Vec<u8>>; 2],
    wall_clock: Duration,
}

impl World {
    fn operate(&mut self, operation: u8, input: &mut Input<'_>) {
        let side = usize::from(operation >> 7);
        let Host { engine, peer, .. } = &self.hosts[side];
        let (peer, now) = (*peer, self.now);
        match operation & 0x7f {
            0..20 => {
                let packet = packet(side as u8, 20 + usize::from(input.byte()) * 8);
                self.given[side].insert(packet.clone());
                let mut sent = Sent::default();
                engine.handle_packets(&mut Packets::new(vec![packet; usize::from(operation % 20)]), &mut sent, now);
                self.forward(side, sent);
            }
            20..40 => self.arrive(side, usize::from(operation % 20)),
            40..50 => {
                let millis = u64::from(input.word()) * if operation.is_multiple_of(2) { 1 } else { 20 };
                self.now += Duration::from_millis(millis);
                self.wall_clock += Duration::from_millis(millis);
            }
            50..55 => {
                let mut sent = Sent::default();
                engine.handle_timeout(&mut sent, now);
                self.forward(side, sent);
            }
            55..60 => self.settle(side),
            60 => {
                let raw = input.byte();
                let raw = input.take(usize::from(raw)).to_vec();
                self.under_way[side].push(raw);
            }
            61 => {
                let (at, change) = (usize::from(input.word()), input.byte());
                if let Some(last) = self.under_way[side].last_mut()
                    && let Some(byte) = last.get_mut(at)
                {
                    *byte ^= change;
                }
            }
            62 => {
                let again = self.under_way[side].clone();
                self.under_way[side].extend(again.into_iter().take(20));
            }
            63 => self.under_way[side].clear(),
            64 => self.under_way[side].reverse(),
            65..70 => {
                let key = PresharedKey::from_bytes([operation % 5; 32]);
                let _ = engine.set_preshared_key(peer, key);
            }
            70..75 => {
                let _ = engine.set_persistent_keepalive(peer, u16::from(input.byte()), now);
            }
            75 => engine.bring_down(now),
            76 | 77 => engine.bring_up(now),
            78 => engine.set_private_key(None, now),
            79 | 80 => engine.set_private_key(Some(PrivateKey::from_bytes([side as u8 + 1; 32])), now),
            81 => engine.set_mtu(input.word()),
            82 => {
                engine.remove_peer(peer);
            }
            83 | 84 => self.add_again(side),
            85 => {
                let _ = engine.add_peer(PublicKey::from_bytes([input.byte(); 32]));
            }
            86 => {
                let back = Duration::from_secs(u64::from(input.word()));
                engine.set_wall_clock(self.wall_clock.saturating_sub(back), now);
            }
            87 => engine.set_wall_clock(self.wall_clock + Duration::from_secs(u64::from(input.word())), now),
            88 => engine.forget_sources(),
            89 => engine.clear_allowed_ips(peer),
            90 => {
                let raw = input.byte();
                let raw = input.take(usize::from(raw)).to_vec();
                self.given[side].insert(raw.clone());
                let mut sent = Sent::default();
                engine.handle_packets(&mut Packets::new([raw]), &mut sent, now);
                self.forward(side, sent);
            }
            91 => engine.send_staged(peer, now),
            _ => {}
        }
    }

    /// The peer as it was at first, whether or not it is there.
    fn add_again(&mut self, side: usize) {
        let other = &self.hosts[1 - side];
        let key = PrivateKey::from_bytes([2 - side as u8; 32]).public_key();
        let address = other.address;
        let engine = &self.hosts[side].engine;
        let Ok(peer) = engine.add_peer(key) else { return };
        let _ = engine.set_endpoint(peer, address, self.now);
        let prefix = format!("10.0.0.{}/32", 2 - side).parse().expect("a prefix");
        let _ = engine.add_allowed_ip(peer, prefix);
        self.hosts[side].peer = peer;
    }

    fn forward(&mut self, from: usize, sent: Sent) {
        let to = self.hosts[1 - from].address;
        let arriving = sent.datagrams.into_iter().filter(|(remote, _)| *remote == to).map(|(_, bytes)| bytes);
        self.under_way[1 - from].extend(arriving);
    }

    fn arrive(&mut self, side: usize, count: usize) {
        let waiting = &mut self.under_way[side];
        let arriving: Vec<_> = waiting.drain(..count.min(waiting.len())).collect();
        let from = self.hosts[1 - side].address;
        let (mut up, mut sent) = (Delivered::default(), Sent::default());
        let mut datagrams = Datagrams::new(from, arriving);
        let report = self.hosts[side].engine.handle_datagrams(&mut datagrams, &mut up, &mut sent, self.now);
        assert_eq!(report.taken, report.passed + report.dropped);
        for packet in up.packets {
            let is_given = self.given[1 - side].iter().any(|given| given.starts_with(&packet));
            assert!(is_given, "a packet that nobody sent was delivered");
        }
        self.forward(side, sent);
    }

    fn settle(&mut self, side: usize) {
        let mut sent = Sent::default();
        settle(&self.hosts[side], &mut sent, self.now);
        self.forward(side, sent);
    }

    fn assert_whole(&mut self) {
        for side in 0..2 {
            let Host { engine, peer, .. } = &self.hosts[side];
            let counters = engine.counters();
            assert!(counters.staged_bytes <= 1 << 20);
            assert!(counters.handshakes_waiting <= 4096);
            assert_eq!(counters.peers, engine.peers().len());
            if let Some(state) = engine.peer_state(*peer) {
                assert!(state.staged_packets <= 128);
            }
            self.under_way[side].truncate(200);
        }
    }
}
