//! Handshakes between two engines, in both roles and families, over links good and bad.
#![cfg(virtual_time)]

mod support;

use std::time::Duration;

use support::link::LinkConfig;
use support::pair::{Family, Kind, Pair, Setup, Side};
use wg_core::PresharedKey;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn the_first_packets_make_a_session_and_arrive_over_either_family_from_either_side() {
    for outer in Family::BOTH {
        for inner in Family::BOTH {
            for initiator in Side::BOTH {
                for psk in [None, PresharedKey::from_bytes([7; 32])] {
                    let mut pair = Pair::with(Setup { outer, psk, ..Setup::default() });
                    pair.send_numbered(initiator, inner, 5, 1400);
                    pair.run_for(Duration::from_millis(100));
                    pair.assert_all_arrived_at(initiator.other());
                    pair.send_numbered(initiator.other(), inner, 5, 200);
                    pair.run_for(Duration::from_millis(100));
                    pair.assert_all_arrived_at(initiator);
                    assert_eq!(pair.count(initiator, Kind::Initiation), 1);
                    assert_eq!(pair.count(initiator.other(), Kind::Response), 1);
                    assert_eq!(pair.count(initiator.other(), Kind::Initiation), 0);
                    assert_eq!(pair.count(initiator, Kind::Keepalive), 0, "the packets confirm the session");
                }
            }
        }
    }
}

#[test]
fn a_tunnel_comes_up_over_any_link_that_lets_something_through() {
    for (loss, reordering, duplication) in [(0, 50, 50), (30, 0, 0), (30, 50, 50), (60, 30, 30)] {
        for initiator in Side::BOTH {
            for outer in Family::BOTH {
                for seed in 0..5 {
                    let link = LinkConfig { loss, reordering, duplication, ..LinkConfig::default() };
                    let mut pair = Pair::with(Setup { seed, link, outer, ..Setup::default() });
                    let both = [(initiator, Family::V4), (initiator.other(), Family::V6)];
                    pair.run_with_traffic(secs(80), secs(2), &both, 100);
                    for side in Side::BOTH {
                        let numbers = pair.host(side).numbers();
                        let mut unique = numbers.clone();
                        unique.sort_unstable();
                        unique.dedup();
                        assert_eq!(unique.len(), numbers.len(), "nothing arrives twice");
                        assert!(!numbers.is_empty(), "{side:?} got nothing in 80 s, seed {seed}, loss {loss} %");
                    }
                    pair.link.config.loss = 0;
                    pair.run_for(secs(10));
                    pair.forget_packets();
                    for side in Side::BOTH {
                        pair.send_numbered(side, Family::V4, 3, 100);
                    }
                    pair.run_for(secs(11));
                    for side in Side::BOTH {
                        assert_eq!(pair.host(side).delivered.len(), 3);
                    }
                }
            }
        }
    }
}

#[test]
fn a_duplicated_initiation_makes_one_response() {
    let mut pair = Pair::new(1);
    pair.link.config.duplication = 100;
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(secs(30));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 1);
    assert_eq!(pair.count(Side::Right, Kind::Response), 1);
    assert_eq!(pair.right().numbers(), [0]);
}

#[test]
fn over_a_slow_link_one_handshake_suffices() {
    for one_way in [100, 1000, 2000, 2400] {
        let link = LinkConfig { latency: Duration::from_millis(one_way), ..LinkConfig::default() };
        let mut pair = Pair::with(Setup { link, ..Setup::default() });
        pair.run_with_traffic(secs(60), secs(1), &[(Side::Left, Family::V4), (Side::Right, Family::V4)], 100);
        pair.run_for(secs(10));
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
        assert!(pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation) <= 2);
    }
}

#[test]
fn one_engine_keeps_many_peers_apart() {
    use support::pair::{Inbox, Outbox, Packets, START, inner_address};
    use wg_core::{Engine, EngineConfig, PrivateKey};

    let mut pair = Pair::new(1);
    // Twenty more hosts with one address each, all connected with the right host.
    let right = pair.right().public_key();
    let spokes: Vec<_> = (1..=20u8)
        .map(|number| {
            let key = PrivateKey::from_bytes([number; 32]);
            let engine = Engine::new(EngineConfig::new([number; 32]), START);
            engine.set_private_key(Some(key.clone()), START);
            let peer = engine.add_peer(right).expect("there is room");
            engine.add_allowed_ip(peer, "0.0.0.0/0".parse().expect("a prefix")).expect("it exists");
            engine.set_endpoint(peer, "192.0.2.2:51820".parse().expect("an address"), START).expect("it exists");
            engine.bring_up(START);
            pair.configure(Side::Right, |engine, _, _| {
                let peer = engine.add_peer(key.public_key()).expect("there is room");
                engine.add_allowed_ip(peer, format!("10.3.0.{number}/32").parse().expect("a prefix")).expect("it");
            });
            engine
        })
        .collect();
    pair.link.is_cut = true;
    for (number, engine) in (1..).zip(&spokes) {
        let from = format!("10.3.0.{number}").parse().expect("an address");
        let packet = support::packets::numbered(from, inner_address(Side::Right, Family::V4), number, 100);
        let outer = format!("198.51.100.{number}:1").parse().expect("an address and a port");
        let mut out = Outbox::default();
        engine.handle_packets(&mut Packets::new(vec![packet]), &mut out, pair.now);
        engine.handle_handshakes(9, &mut out, pair.now);
        for _ in 0..2 {
            let sent: Vec<_> = out.datagrams.drain(..).map(|datagram| datagram.bytes).collect();
            pair.inject(Side::Right, outer, &sent);
            for answer in pair.wire.drain(..) {
                assert_eq!(answer.to, outer);
                let datagram =
                    support::link::InFlight { from: answer.from, to: outer, traffic_class: 0, bytes: answer.head };
                let mut datagrams = support::pair::Datagrams::new(vec![datagram]);
                engine.handle_datagrams(&mut datagrams, &mut Inbox::default(), &mut out, pair.now);
                engine.handle_handshakes(9, &mut out, pair.now);
            }
        }
    }
    assert_eq!(pair.right().numbers(), (1..=20).collect::<Vec<_>>());
    // One batch to all of them, each packet on its own session.
    let from = inner_address(Side::Right, Family::V4);
    let batch = (1..=20u64).chain(1..=20).map(|number| {
        support::packets::numbered(from, format!("10.3.0.{number}").parse().expect("an address"), number, 100)
    });
    pair.send(Side::Right, batch.collect());
    let to: Vec<_> = pair.sent(Side::Right, Kind::Data).map(|sent| sent.to.to_string()).collect();
    let expected: Vec<_> = (1..=20).chain(1..=20).map(|number| format!("198.51.100.{number}:1")).collect();
    assert_eq!(to, expected);
}
