//! What the engine counts, to the byte, as Linux counts it: UDP payload of everything sent for a peer and of everything
//! authentic received from it, handshakes and keepalives included.
#![cfg(virtual_time)]

mod support;

use std::time::Duration;

use support::pair::{Family, Kind, Pair, Setup, Side};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Row 28.
#[test]
fn a_peers_bytes_are_udp_payload_with_handshakes_and_keepalives() {
    for initiator in Side::BOTH {
        let mut pair = Pair::with(Setup::default());
        let (one, other) = (initiator, initiator.other());
        pair.send_numbered(one, Family::V4, 1, 100);
        assert_eq!((pair.host(one).state().tx_bytes, pair.host(one).state().rx_bytes), (148, 0));
        pair.run_for(secs(1));
        // The packet is padded to 112 bytes.
        assert_eq!((pair.host(one).state().tx_bytes, pair.host(one).state().rx_bytes), (148 + 112 + 32, 92));
        assert_eq!((pair.host(other).state().tx_bytes, pair.host(other).state().rx_bytes), (92, 148 + 144));
        pair.run_for(secs(10));
        // The other's passive keepalive.
        assert_eq!((pair.host(one).state().tx_bytes, pair.host(one).state().rx_bytes), (292, 92 + 32));
        assert_eq!((pair.host(other).state().tx_bytes, pair.host(other).state().rx_bytes), (92 + 32, 292));
        let counters = pair.host(one).engine.counters();
        assert_eq!((counters.tx_packets, counters.tx_bytes), (1, 100), "inner packets, unpadded");
        assert_eq!((counters.rx_packets, counters.rx_bytes), (0, 0), "a keepalive is no packet");
        assert_eq!((counters.handshakes_initiated, counters.handshakes_completed), (1, 1));
        let counters = pair.host(other).engine.counters();
        assert_eq!((counters.rx_packets, counters.rx_bytes), (1, 100));
        assert_eq!((counters.handshakes_initiated, counters.handshakes_completed), (0, 1));
    }
}

#[test]
fn over_a_long_time_both_sides_count_what_is_on_the_wire() {
    for outer in Family::BOTH {
        let mut pair = Pair::connected(Setup { outer, ..Setup::default() }, Side::Left);
        let before = Side::BOTH.map(|side| pair.host(side).state());
        pair.configure(Side::Right, |engine, peer, now| engine.set_persistent_keepalive(peer, 7, now))
            .expect("it exists");
        pair.run_with_traffic(secs(300), secs(9), &[(Side::Left, Family::V6)], 333);
        pair.run_for(secs(1));
        for side in Side::BOTH {
            let on_wire: u64 = pair.wire.iter().filter(|sent| sent.by == side).map(|sent| sent.len as u64).sum();
            let state = pair.host(side).state();
            assert_eq!(state.tx_bytes - before[side as usize].tx_bytes, on_wire, "sent by {side:?}");
            let other = pair.host(side.other()).state();
            assert_eq!(other.rx_bytes - before[side.other() as usize].rx_bytes, on_wire, "received from {side:?}");
        }
        assert!(pair.count(Side::Right, Kind::Keepalive) > 30);
        assert!(pair.count(Side::Left, Kind::Initiation) > 1);
    }
}

#[test]
fn what_is_lost_or_repeated_on_the_link_is_counted_by_who_saw_it() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    let before = Side::BOTH.map(|side| pair.host(side).state());
    pair.link.config.duplication = 100;
    pair.send_numbered(Side::Left, Family::V4, 10, 112);
    pair.run_for(secs(1));
    assert_eq!(pair.left().state().tx_bytes - before[0].tx_bytes, 10 * 144);
    assert_eq!(pair.right().state().rx_bytes - before[1].rx_bytes, 10 * 144, "a repetition is not authentic");
    pair.link.is_cut = true;
    pair.send_numbered(Side::Left, Family::V4, 10, 112);
    pair.run_for(secs(1));
    assert_eq!(pair.left().state().tx_bytes - before[0].tx_bytes, 20 * 144);
    assert_eq!(pair.right().state().rx_bytes - before[1].rx_bytes, 10 * 144);
}

#[test]
fn counters_outlive_sessions_and_begin_at_zero_with_the_peer() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    let before = pair.left().state();
    pair.run_for(secs(700));
    let after = pair.left().state();
    assert!(before.is_live && !after.is_live);
    assert_eq!((after.tx_bytes, after.last_handshake), (before.tx_bytes, before.last_handshake));
    let key = pair.right().public_key();
    let again = pair.configure(Side::Left, |engine, peer, _| {
        engine.remove_peer(peer);
        engine.add_peer(key).expect("there is room")
    });
    let state = pair.left().engine.peer_state(again).expect("it exists");
    assert_eq!((state.tx_bytes, state.rx_bytes, state.last_handshake), (0, 0, None));
    assert_eq!((state.endpoint, state.allowed_ips.len(), state.drops.total()), (None, 0, 0));
}
