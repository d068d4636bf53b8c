//! Packets that wait for a session: how many, how much memory, in which order.
#![cfg(virtual_time)]

mod support;

use std::time::Duration;

use support::pair::{Family, Kind, Outbox, Packets, Pair, START, Setup, Side, numbered};
use wg_core::{DropReason, Engine, EngineConfig, PrivateKey, StagingBudget};

const MAX_STAGED: u64 = 128;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Row 7.
#[test]
fn of_more_than_128_packets_the_oldest_go() {
    for outer in Family::BOTH {
        let mut pair = Pair::with(Setup { outer, ..Setup::default() });
        pair.link.is_cut = true;
        for _ in 0..50 {
            pair.send_numbered(Side::Left, Family::V4, 4, 100);
        }
        assert_eq!(pair.left().state().staged_packets as u64, MAX_STAGED);
        assert_eq!(pair.left().engine.counters().staged_bytes, 12_800);
        assert_eq!(pair.left().peer_drops(DropReason::StagedOverflow), 200 - MAX_STAGED);
        assert_eq!(pair.left().drops(DropReason::StagedOverflow), 200 - MAX_STAGED);
        pair.link.is_cut = false;
        pair.run_for(secs(7));
        assert_eq!(pair.right().numbers(), (200 - MAX_STAGED..200).collect::<Vec<_>>(), "the newest, in order");
        assert_eq!(pair.left().engine.counters().staged_bytes, 0);
    }
}

#[test]
fn packets_sent_while_the_handshake_runs_follow_those_before() {
    let mut pair = Pair::new(1);
    pair.link.config.latency = Duration::from_millis(500);
    for _ in 0..30 {
        pair.send_numbered(Side::Left, Family::V6, 3, 100);
        pair.run_for(Duration::from_millis(50));
    }
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
}

#[test]
fn a_batch_across_peers_stages_each_packet_for_its_own() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    let other = PrivateKey::from_bytes([4; 32]).public_key();
    let other = pair.configure(Side::Left, |engine, _, now| {
        let peer = engine.add_peer(other).expect("there is room");
        engine.add_allowed_ip(peer, "10.7.0.0/16".parse().expect("a prefix")).expect("it exists");
        engine.set_endpoint(peer, "198.51.100.1:1".parse().expect("an address"), now).expect("it exists");
        peer
    });
    let elsewhere = |number| {
        support::packets::numbered(
            "10.0.0.1".parse().expect("an address"),
            "10.7.0.1".parse().expect("an address"),
            number,
            100,
        )
    };
    let batch = (0..10)
        .map(|number| if number % 3 == 0 { elsewhere(number) } else { numbered(Side::Left, Family::V4, number, 100) });
    let report = pair.send(Side::Left, batch.collect());
    assert_eq!((report.taken, report.passed, report.staged, report.dropped), (10, 6, 4, 0));
    assert_eq!(pair.left().engine.peer_state(other).expect("it exists").staged_packets, 4);
    pair.run_for(secs(1));
    assert_eq!(pair.right().numbers(), [1, 2, 4, 5, 7, 8]);
}

#[test]
fn memory_for_staged_packets_is_shared_by_all_engines_of_one_budget() {
    let budget = StagingBudget::new(1000);
    let engines = [1u8, 2].map(|seed| {
        let mut config = EngineConfig::new([seed; 32]);
        config.staging = budget.clone();
        let engine = Engine::new(config, START);
        engine.set_private_key(Some(PrivateKey::from_bytes([seed; 32])), START);
        let peer = engine.add_peer(PrivateKey::from_bytes([9; 32]).public_key()).expect("there is room");
        engine.add_allowed_ip(peer, "10.0.0.2/32".parse().expect("a prefix")).expect("it exists");
        engine.set_endpoint(peer, "192.0.2.9:9".parse().expect("an address"), START).expect("it exists");
        engine.bring_up(START);
        (engine, peer)
    });
    let send = |engine: &Engine, count: u64| {
        let packets = (0..count).map(|number| numbered(Side::Left, Family::V4, number, 100)).collect();
        engine.handle_packets(&mut Packets::new(packets), &mut Outbox::default(), START)
    };
    assert_eq!(send(&engines[0].0, 7).staged, 7);
    let report = send(&engines[1].0, 7);
    assert_eq!((report.staged, report.dropped), (3, 4));
    let (engine, peer) = &engines[1];
    let state = engine.peer_state(*peer).expect("it exists");
    assert_eq!((state.staged_packets, state.drops.of(DropReason::StagedMemory)), (3, 4));
    assert_eq!(budget.used_bytes(), 1000);
    engines[0].0.remove_all_peers();
    assert_eq!(budget.used_bytes(), 300);
    assert_eq!(send(&engines[1].0, 7).staged, 7);
    drop(engines);
    assert_eq!(budget.used_bytes(), 0, "an engine gives everything back");
}

#[test]
fn settings_that_change_send_what_waits() {
    let mut pair = Pair::with(Setup { knows_endpoint: [false, false], ..Setup::default() });
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(pair.left().peer_drops(DropReason::NoEndpoint), 1, "nothing waits for a peer nobody can find");
    let remote = pair.right().address;
    pair.configure(Side::Left, |engine, peer, now| engine.set_endpoint(peer, remote, now)).expect("it exists");
    pair.configure(Side::Left, |engine, peer, now| engine.send_staged(peer, now));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 0, "there is nothing to send");
    pair.link.is_cut = true;
    pair.forget_packets();
    pair.send_numbered(Side::Left, Family::V4, 2, 100);
    pair.run_for(secs(200));
    pair.send_numbered(Side::Left, Family::V4, 2, 100);
    pair.wire.clear();
    pair.run_for(Duration::from_millis(5100));
    pair.link.is_cut = false;
    pair.configure(Side::Left, |engine, peer, now| engine.send_staged(peer, now));
    pair.run_for(secs(7));
    assert_eq!(pair.right().numbers(), [2, 3]);
}
