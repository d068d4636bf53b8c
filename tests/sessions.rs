//! Sessions against a peer that does whatever it likes with valid keys, and through every change of settings.
#![cfg(virtual_time)]

mod support;

use std::time::Duration;

use support::link::LinkConfig;
use support::oracle::{self, InitiationParts, Model, Secret, tai64n};
use support::packets;
use support::pair::{self, Family, Kind, Pair, Setup, Side, inner_address, numbered};
use wg_core::{ConfigError, DropReason, Event, Prefix, PresharedKey, PrivateKey, PublicKey};

/// [W] 6.1.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The seven u-coordinates of low order, with and without the ignored bit. RFC 7748 5, and its errata's list.
fn low_order_points() -> Vec<[u8; 32]> {
    let from_hex = |text: &str| -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..][..2], 16).expect("hex"))
    };
    let points = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    points
        .into_iter()
        .map(from_hex)
        .flat_map(|point| {
            let mut other = point;
            other[31] |= 0x80;
            [point, other]
        })
        .collect()
}

#[test]
fn the_model_and_the_engine_agree_as_initiator_and_as_responder_with_and_without_a_shared_key() {
    for psk in [None, PresharedKey::from_bytes([9; 32])] {
        let mut pair = Pair::with(Setup { psk, ..Setup::default() });
        let session = pair.model_session(Side::Left);
        let packet = numbered(Side::Left, Family::V4, 7, 100);
        pair.inject(Side::Right, pair.left().address, &[session.seal(1, &packet)]);
        assert_eq!(pair.right().delivered, [packet]);
        let packet = numbered(Side::Right, Family::V6, 8, 100);
        pair.send(Side::Right, vec![packet.clone()]);
        let (counter, plaintext) = session.open(&pair.last(Side::Right, Kind::Data).head).expect("it is for us");
        assert_eq!(counter, 0);
        assert_eq!(plaintext[..100], packet);

        pair.send_numbered(Side::Left, Family::V4, 1, 64);
        let initiation = pair.last(Side::Left, Kind::Initiation).head.clone();
        let ephemeral = Secret::Honest(pair.random.bytes());
        let (response, session) = pair.model_of(Side::Right).respond(&initiation, 0xdead_beef, ephemeral);
        pair.inject(Side::Left, pair.right().address, &[response]);
        let sent = pair.last(Side::Left, Kind::Data).head.clone();
        let (_, plaintext) = session.open(&sent).expect("it is for us");
        assert_eq!(plaintext, numbered(Side::Left, Family::V4, 0, 64));
    }
}

/// Row 1.
#[test]
fn packets_are_padded_with_zeros_to_16_bytes_but_not_beyond_the_mtu() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    for (len, padded) in [(40, 48), (48, 48), (49, 64), (100, 112)] {
        pair.send_numbered(Side::Right, Family::V4, 1, len);
        let sent = pair.last(Side::Right, Kind::Data);
        assert_eq!(sent.len, padded + 32);
        let (_, plaintext) = session.open(&sent.head).expect("it is for us");
        assert!(plaintext[len..].iter().all(|&byte| byte == 0), "padding is zeros: {plaintext:?}");
    }
    for (len, padded) in [(1400, 1408), (1409, 1420), (1420, 1420)] {
        pair.send_numbered(Side::Right, Family::V6, 1, len);
        assert_eq!(pair.last(Side::Right, Kind::Data).len, padded + 32);
    }
    pair.configure(Side::Right, |engine, _, _| engine.set_mtu(9000));
    pair.send_numbered(Side::Right, Family::V6, 1, 1409);
    assert_eq!(pair.last(Side::Right, Kind::Data).len, 1424 + 32);
}

#[test]
fn staged_packets_are_padded_as_any() {
    let mut pair = Pair::new(1);
    pair.send_numbered(Side::Left, Family::V4, 1, 49);
    pair.send_numbered(Side::Left, Family::V4, 1, 1420);
    pair.run_for(Duration::from_millis(100));
    assert_eq!(pair.sent(Side::Left, Kind::Data).map(|sent| sent.len).collect::<Vec<_>>(), [64 + 32, 1420 + 32]);
}

#[test]
fn packets_of_every_mtu_pass_whole() {
    for mtu in [1280, 1420, 1500, 9000] {
        let mut pair = Pair::with(Setup { mtu, ..Setup::default() });
        for len in [40, 57, usize::from(mtu) - 1, usize::from(mtu)] {
            for family in Family::BOTH {
                pair.send_numbered(Side::Left, family, 3, len.max(packets::MIN_NUMBERED_LEN));
            }
        }
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Right);
        let lens: Vec<_> = pair.right().delivered.iter().map(Vec::len).collect();
        assert!(lens.iter().all(|&len| len <= usize::from(mtu)) && lens.contains(&usize::from(mtu)), "{lens:?}");
    }
}

/// Rows 26 and 42.
#[test]
fn an_inner_packet_that_is_not_whole_is_dropped_although_authentic() {
    let whole4 = numbered(Side::Left, Family::V4, 1, 60);
    let whole6 = numbered(Side::Left, Family::V6, 1, 60);
    let mut broken: Vec<Vec<u8>> = Vec::new();
    for stated in [0u16, 5, 19, 61, 76, 0xffff] {
        let mut packet = whole4.clone();
        packet[2..4].copy_from_slice(&stated.to_be_bytes());
        broken.push(packet);
    }
    for stated in [21u16, 37, 0xffff] {
        let mut packet = whole6.clone();
        packet[4..6].copy_from_slice(&stated.to_be_bytes());
        broken.push(packet);
    }
    for version in [0u8, 1, 5, 7, 15] {
        let mut packet = whole4.clone();
        packet[0] = version << 4 | 5;
        broken.push(packet);
    }
    for words in [0u8, 4, 15] {
        let mut packet = whole4[..20].to_vec();
        packet[0] = 0x40 | words;
        packet[2..4].copy_from_slice(&20u16.to_be_bytes());
        broken.push(packet);
    }
    broken.extend((1..20).map(|len| whole4[..len].to_vec()));
    broken.extend((1..60).map(|len| whole6[..len].to_vec()));
    broken.push(vec![0; 16]);

    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let received = pair.right().state().rx_bytes;
    let mut bytes = 0;
    for (counter, packet) in (1..).zip(&broken) {
        let sealed = session.seal(counter, packet);
        bytes += sealed.len() as u64;
        let report = pair.inject(Side::Right, pair.left().address, &[sealed]);
        assert_eq!((report.dropped, pair.right().delivered.len()), (1, 0), "{packet:?}");
    }
    assert_eq!(pair.right().peer_drops(DropReason::MalformedInner), broken.len() as u64);
    assert_eq!(pair.right().drops(DropReason::MalformedInner), broken.len() as u64);
    assert_eq!(pair.right().state().rx_bytes - received, bytes, "they are authentic and counted as received");

    for (counter, whole) in (1000..).zip([&whole4, &whole6]) {
        for slack in [0, 4, 100] {
            let mut padded = whole.clone();
            padded.resize(whole.len() + slack, 0xee);
            pair.inject(Side::Right, pair.left().address, &[session.seal(counter * 10 + slack as u64, &padded)]);
            assert_eq!(pair.right().delivered.last(), Some(whole), "what follows the stated length is cut off");
        }
    }
    let mut shortest = whole4[..20].to_vec();
    shortest[2..4].copy_from_slice(&20u16.to_be_bytes());
    pair.inject(Side::Right, pair.left().address, &[session.seal(99_999, &shortest)]);
    assert_eq!(pair.right().delivered.last(), Some(&shortest));
}

/// Row 2.
#[test]
fn a_counter_at_the_limit_is_refused_and_the_one_before_is_not() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let packet = numbered(Side::Left, Family::V4, 1, 60);
    for counter in [u64::MAX, u64::MAX - 1, REJECT_AFTER_MESSAGES + 1, REJECT_AFTER_MESSAGES] {
        pair.inject(Side::Right, pair.left().address, &[session.seal(counter, &packet)]);
    }
    assert_eq!(pair.right().drops(DropReason::CounterLimit), 4);
    assert_eq!(pair.right().delivered.len(), 0);
    for counter in [1, REJECT_AFTER_MESSAGES - 1] {
        pair.inject(Side::Right, pair.left().address, &[session.seal(counter, &packet)]);
    }
    assert_eq!(pair.right().delivered.len(), 2);
    pair.inject(Side::Right, pair.left().address, &[session.seal(2, &packet)]);
    assert_eq!(pair.right().drops(DropReason::Replay), 1, "the window has moved");
}

#[test]
fn each_counter_is_taken_once_and_the_window_reaches_a_thousand_back() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let packet = numbered(Side::Left, Family::V4, 1, 60);
    let mut inject = |counter: u64| {
        let before = pair.right().delivered.len();
        pair.inject(Side::Right, pair.left().address, &[session.seal(counter, &packet)]);
        pair.right().delivered.len() - before
    };
    assert_eq!([5000, 5000, 4999, 4000, 4000, 5001].map(&mut inject), [1, 0, 1, 1, 0, 1]);
    assert_eq!([3900, 1, 0].map(&mut inject), [0, 0, 0], "too old to tell");
    assert_eq!(pair.right().peer_drops(DropReason::Replay), 5);
}

/// Rows 37 and 38.
#[test]
fn every_datagram_that_is_not_exactly_a_message_is_dropped_and_changes_nothing() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let model = pair.model_of(Side::Left);
    let initiation = model.initiate_at(5000, &mut pair.random).message;
    let from = pair.left().address;
    let packet = numbered(Side::Left, Family::V4, 1, 60);
    let data = session.seal(1, &packet);
    let before = pair.right().state();
    let mut bad: Vec<Vec<u8>> = vec![vec![]];
    for message in [&initiation, &data, &vec![2; 92], &vec![3; 64]] {
        bad.extend((1..message.len()).map(|len| message[..len].to_vec()));
        bad.extend((1..4).map(|at| {
            let mut changed = message.clone();
            changed[at] = 1;
            changed
        }));
        for kind in [0, 5, 6, 128, 255] {
            let mut changed = message.clone();
            changed[0] = kind;
            bad.push(changed);
        }
    }
    let mut longer = initiation.clone();
    longer.push(0);
    bad.push(longer);
    // Every bit of the packet counts, and every byte of its tag.
    for at in 4..data.len() {
        let mut changed = data.clone();
        changed[at] ^= 1;
        bad.push(changed);
    }
    for at in 0..initiation.len() - 16 {
        let mut changed = initiation.clone();
        changed[at] ^= 1;
        bad.push(changed);
    }
    let count = bad.len() as u64;
    for (index, datagram) in bad.into_iter().enumerate() {
        let report = pair.inject(Side::Right, "203.0.113.9:9".parse().expect("an address"), &[datagram]);
        assert_eq!(report.dropped, 1, "datagram {index}");
    }
    assert_eq!(pair.right().engine.counters().drops.total(), count);
    assert_eq!(pair.right().delivered.len(), 0);
    let after = pair.right().state();
    assert_eq!((after.rx_bytes, after.tx_bytes), (before.rx_bytes, before.tx_bytes));
    assert_eq!((after.endpoint, after.last_handshake), (before.endpoint, before.last_handshake));
    // And still both work as they were meant.
    pair.run_for(secs(1));
    pair.inject(Side::Right, from, &[data]);
    assert_eq!(pair.right().delivered, [packet]);
    pair.inject(Side::Right, from, &[initiation]);
    assert_eq!(pair.count(Side::Right, Kind::Response), 2);
}

/// boringtun panics on a short buffer before it looks at index or tag.
#[test]
fn datagrams_of_any_length_to_any_index_near_a_session_do_no_harm() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let from = pair.left().address;
    for low in 0..16 {
        for len in (32..200).chain([1500, 9000, 65_507]) {
            let mut datagram = vec![pair::UNWRITTEN; len];
            datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
            datagram[4..8].copy_from_slice(&(session.their_index & !15 | low).to_le_bytes());
            datagram[8..16].copy_from_slice(&3u64.to_le_bytes());
            pair.inject(Side::Right, from, &[datagram]);
        }
    }
    let refused = pair.right().drops(DropReason::UnknownIndex) + pair.right().drops(DropReason::BadTag);
    assert_eq!(refused, 16 * 171);
    assert!(pair.right().drops(DropReason::BadTag) == 171, "one of the indices is the session's");
    assert_eq!(pair.right().delivered.len(), 0);
}

/// Row 23.
#[test]
fn an_initiation_with_a_low_order_ephemeral_key_is_refused() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let model = pair.model_of(Side::Left);
    let from = pair.left().address;
    let points = low_order_points();
    assert_eq!(points.len(), 14);
    for (second, point) in (100..).zip(points) {
        let parts = InitiationParts {
            ephemeral: Secret::LowOrder(point),
            timestamp: tai64n(second),
            sender_index: 1,
            cookie: None,
            claims: None,
        };
        let message = model.initiate(parts).message;
        pair.inject(Side::Right, from, &[message]);
        pair.run_for(secs(1));
    }
    assert_eq!(pair.right().drops(DropReason::InvalidHandshake), 14);
    assert_eq!(pair.count(Side::Right, Kind::Response), 0);
    let honest = model.initiate_at(1000, &mut pair.random).message;
    pair.inject(Side::Right, from, &[honest]);
    assert_eq!(pair.count(Side::Right, Kind::Response), 1);
}

/// Row 23.
#[test]
fn a_response_with_a_low_order_ephemeral_key_is_refused() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    pair.send_numbered(Side::Left, Family::V4, 1, 60);
    let initiation = pair.last(Side::Left, Kind::Initiation).head.clone();
    let model = pair.model_of(Side::Right);
    let from = pair.right().address;
    for point in low_order_points() {
        let (response, _) = model.respond(&initiation, 5, Secret::LowOrder(point));
        pair.inject(Side::Left, from, &[response]);
    }
    assert_eq!(pair.left().peer_drops(DropReason::InvalidHandshake), 14);
    assert_eq!(pair.count(Side::Left, Kind::Data), 0);
    let (response, _) = model.respond(&initiation, 5, Secret::Honest([7; 32]));
    pair.inject(Side::Left, from, &[response]);
    assert_eq!(pair.count(Side::Left, Kind::Data), 1);
}

/// Row 23: without the check anybody could be such a peer.
#[test]
fn a_peer_with_a_low_order_key_can_be_configured_but_never_has_a_session() {
    for point in low_order_points() {
        let mut pair = Pair::new(1);
        pair.link.is_cut = true;
        let key = PublicKey::from_bytes(point);
        let from = pair.left().address;
        let weak = pair.configure(Side::Right, |engine, _, now| {
            let weak = engine.add_peer(key).expect("any key is accepted");
            engine.set_endpoint(weak, from, now).expect("it exists");
            engine.add_allowed_ip(weak, "10.9.0.0/16".parse().expect("a prefix")).expect("it exists");
            engine.set_persistent_keepalive(weak, 5, now).expect("it exists");
            weak
        });
        pair.run_for(secs(60));
        let packet =
            packets::numbered(inner_address(Side::Right, Family::V4), "10.9.0.1".parse().expect("an address"), 1, 100);
        pair.send(Side::Right, vec![packet]);
        pair.run_for(secs(60));
        assert_eq!(pair.wire.len(), 0, "nothing is ever sent to it");
        let model = Model::new(Secret::LowOrder(point), pair.right().public_key());
        let message = model.initiate_at(100, &mut pair.random).message;
        pair.inject(Side::Right, from, &[message]);
        assert_eq!(pair.wire.len(), 0, "and it is never answered");
        let state = pair.right().engine.peer_state(weak).expect("it is configured");
        assert_eq!(state.drops.of(DropReason::UnusableKey), 2, "one packet and one initiation");
        assert!(!state.is_live && state.last_handshake.is_none() && state.staged_packets == 0);
    }
}

/// Row 27.
#[test]
fn a_packet_is_taken_only_from_the_owner_of_the_longest_prefix_around_its_source() {
    let mut pair = Pair::new(1);
    let prefix = |text: &str| -> Prefix { text.parse().expect("a prefix") };
    // The left host owns wide prefixes here, a second peer narrower ones inside them.
    pair.configure(Side::Right, |engine, peer, _| {
        let other = engine.add_peer(PrivateKey::from_bytes([3; 32]).public_key()).expect("there is room");
        engine.add_allowed_ip(peer, prefix("10.1.0.0/16")).expect("it exists");
        engine.add_allowed_ip(other, prefix("10.1.2.0/24")).expect("it exists");
        engine.add_allowed_ip(peer, prefix("10.1.2.128/25")).expect("it exists");
        engine.add_allowed_ip(peer, prefix("fd01::/16")).expect("it exists");
        engine.add_allowed_ip(other, prefix("fd01::5/128")).expect("it exists");
    });
    let session = pair.model_session(Side::Left);
    let cases = [
        ("10.1.0.1", None),
        ("10.1.1.255", None),
        ("10.1.2.0", Some(DropReason::SourceOwnedByOtherPeer)),
        ("10.1.2.127", Some(DropReason::SourceOwnedByOtherPeer)),
        ("10.1.2.128", None),
        ("10.2.0.1", Some(DropReason::SourceNotAllowed)),
        ("10.0.0.2", Some(DropReason::SourceNotAllowed)),
        ("fd01::4", None),
        ("fd01::5", Some(DropReason::SourceOwnedByOtherPeer)),
        ("fd02::1", Some(DropReason::SourceNotAllowed)),
    ];
    for (counter, (source, expected)) in (1..).zip(cases) {
        let family = if source.contains(':') { Family::V6 } else { Family::V4 };
        let destination = inner_address(Side::Right, family);
        let packet = packets::numbered(source.parse().expect("an address"), destination, counter, 100);
        let before = pair.right().state().drops;
        let report = pair.inject(Side::Right, pair.left().address, &[session.seal(counter, &packet)]);
        let after = pair.right().state().drops;
        match expected {
            None => assert_eq!((report.dropped, pair.right().delivered.last()), (0, Some(&packet)), "{source}"),
            Some(reason) => {
                assert_eq!((report.dropped, after.of(reason) - before.of(reason)), (1, 1), "{source}");
                assert_ne!(pair.right().delivered.last(), Some(&packet));
            }
        }
    }
}

/// Row 24.
#[test]
fn receiver_indices_look_random_and_differ_between_engines_and_tunnels() {
    let mut indices = Vec::new();
    for seed in 0..20 {
        let mut pair = Pair::new(seed);
        for _ in 0..3 {
            pair.send_numbered(Side::Left, Family::V4, 1, 100);
            pair.run_for(secs(600));
            indices.push(oracle::le32(&pair.last(Side::Left, Kind::Initiation).head, 4) >> 8);
        }
    }
    let mut sorted = indices.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), indices.len(), "sixty tunnels, sixty indices");
    for bit in 0..24 {
        let ones = indices.iter().filter(|&&index| index >> bit & 1 == 1).count();
        assert!((12..=48).contains(&ones), "bit {bit} is set in {ones} of 60");
    }
}

#[test]
fn a_removed_peers_index_leads_nowhere_at_once_also_when_its_place_is_used_again() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let packet = numbered(Side::Left, Family::V4, 1, 60);
    let from = pair.left().address;
    pair.inject(Side::Right, from, &[session.seal(1, &packet)]);
    assert_eq!(pair.right().delivered.len(), 1);
    let key = pair.left().public_key();
    assert!(pair.configure(Side::Right, |engine, peer, _| engine.remove_peer(peer)));
    pair.inject(Side::Right, from, &[session.seal(2, &packet)]);
    assert_eq!(pair.right().drops(DropReason::UnknownIndex), 1);
    assert_eq!(pair.right().engine.peer(&key), None);
    assert!(!pair.configure(Side::Right, |engine, peer, _| engine.remove_peer(peer)), "it is gone already");
    // The same peer comes back into the same place: its old session does not.
    let old = pair.right().peer;
    let again = pair.configure(Side::Right, |engine, _, _| {
        let peer = engine.add_peer(key).expect("there is room");
        engine.add_allowed_ip(peer, "10.0.0.1/32".parse().expect("a prefix")).expect("it exists");
        peer
    });
    assert!(again.slot() == old.slot() && again != old);
    pair.inject(Side::Right, from, &[session.seal(3, &packet)]);
    assert_eq!(pair.right().drops(DropReason::UnknownIndex), 2);
    pair.host_mut(Side::Right).peer = again;
    pair.run_for(secs(6));
    pair.forget_packets();
    let fresh = pair.model_session(Side::Left);
    assert_ne!(fresh.their_index, session.their_index);
    pair.inject(Side::Right, from, &[session.seal(4, &packet), fresh.seal(1, &packet)]);
    assert_eq!(pair.right().delivered.len(), 1, "the new session works, the old one does not");
}

#[test]
fn removing_a_peer_ends_its_deadlines_and_its_staged_packets() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    pair.configure(Side::Left, |engine, peer, now| engine.set_persistent_keepalive(peer, 25, now)).expect("it exists");
    pair.send_numbered(Side::Left, Family::V4, 10, 100);
    assert!(pair.left().engine.counters().staged_bytes >= 1000);
    pair.configure(Side::Left, |engine, peer, _| engine.remove_peer(peer));
    let counters = pair.left().engine.counters();
    assert_eq!((counters.staged_bytes, counters.peers), (0, 0));
    assert_eq!(pair.left().engine.poll_timeout(), None);
    pair.wire.clear();
    pair.run_for(secs(100));
    assert_eq!(pair.wire.len(), 0);
}

/// Row 32.
#[test]
fn a_new_shared_key_on_both_sides_at_slightly_different_times_loses_nothing() {
    for first in Side::BOTH {
        // The second change comes before, around and after the rekey at 120 s of the initiator, who is left.
        for (start, gap_ms) in [(20, 0), (20, 900), (119, 400), (119, 2000), (119, 4000), (119, 7000), (100, 30_000)] {
            let mut pair = Pair::connected(Setup::default(), Side::Left);
            let senders = [(Side::Left, Family::V4), (Side::Right, Family::V6)];
            let every = Duration::from_millis(50);
            let change = |pair: &mut Pair, side: Side| {
                pair.configure(side, |engine, peer, _| {
                    engine.set_preshared_key(peer, PresharedKey::from_bytes([5; 32]))
                })
                .expect("it exists");
            };
            pair.run_with_traffic(secs(start), every, &senders, 200);
            change(&mut pair, first);
            pair.run_with_traffic(Duration::from_millis(gap_ms), every, &senders, 200);
            change(&mut pair, first.other());
            let before = pair.left().state().last_handshake;
            pair.run_with_traffic(secs(250), every, &senders, 200);
            pair.run_for(secs(1));
            pair.assert_all_arrived_at(Side::Left);
            pair.assert_all_arrived_at(Side::Right);
            assert_ne!(pair.left().state().last_handshake, before, "there was a rekey with the new key");
        }
    }
}

/// Row 32: several changes in a row, each followed by handshakes that cannot work.
#[test]
fn handshakes_that_fail_over_different_shared_keys_do_not_cost_the_session() {
    for responder_changes in [1, 2, 3, 5] {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        pair.run_for(secs(119));
        let senders = [(Side::Left, Family::V4), (Side::Right, Family::V6)];
        let every = Duration::from_millis(100);
        // Left rekeys every five seconds, and each of its initiations is accepted under a shared key it does not have.
        for change in 0..responder_changes {
            let psk = PresharedKey::from_bytes([change + 1; 32]);
            pair.configure(Side::Right, |engine, peer, _| engine.set_preshared_key(peer, psk)).expect("it exists");
            pair.run_with_traffic(secs(6), every, &senders, 200);
        }
        let psk = PresharedKey::from_bytes([responder_changes; 32]);
        pair.configure(Side::Left, |engine, peer, _| engine.set_preshared_key(peer, psk)).expect("it exists");
        pair.run_with_traffic(secs(60), every, &senders, 200);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
    }
}

/// Anybody who knows both public keys can write an initiation that claims to come from the peer.
#[test]
fn forged_initiations_cost_no_session_and_no_memory() {
    for forged in 13..18 {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        let attacker = Model::new(Secret::Honest([0x66; 32]), pair.right().public_key());
        // With a new shared key set, the next handshake takes a fresh tunnel.
        for side in Side::BOTH {
            let psk = PresharedKey::from_bytes([8; 32]);
            pair.configure(side, |engine, peer, _| engine.set_preshared_key(peer, psk)).expect("it exists");
        }
        for second in 0..forged {
            let parts = InitiationParts {
                ephemeral: Secret::Honest(pair.random.bytes()),
                timestamp: tai64n(1 << 40 | second),
                sender_index: 1,
                cookie: None,
                claims: Some(pair.left().public_key()),
            };
            let message = attacker.initiate(parts).message;
            pair.inject(Side::Right, "203.0.113.9:9".parse().expect("an address"), &[message]);
        }
        assert_eq!(pair.right().peer_drops(DropReason::InvalidHandshake), forged);
        assert_eq!(pair.count(Side::Right, Kind::Response), 0);
        assert_eq!(pair.right().endpoint(), Some(pair.left().address));
        let every = Duration::from_millis(100);
        pair.run_with_traffic(secs(118), every, &[(Side::Left, Family::V4), (Side::Right, Family::V6)], 200);
        // Slow enough for packets on the old session to arrive after the new one was made.
        pair.link.config.latency = secs(1);
        pair.run_with_traffic(secs(10), every, &[(Side::Left, Family::V4), (Side::Right, Family::V6)], 200);
        pair.run_for(secs(2));
        assert!(pair.count(Side::Left, Kind::Initiation) > 0);
        pair.assert_all_arrived_at(Side::Right);
        pair.assert_all_arrived_at(Side::Left);
    }
    let mut pair = Pair::new(2);
    let parts = InitiationParts {
        ephemeral: Secret::Honest([1; 32]),
        timestamp: tai64n(1),
        sender_index: 1,
        cookie: None,
        claims: Some(pair.left().public_key()),
    };
    let message = Model::new(Secret::Honest([0x66; 32]), pair.right().public_key()).initiate(parts).message;
    pair.inject(Side::Right, "203.0.113.9:9".parse().expect("an address"), &[message]);
    assert!(!pair.right().state().is_live);
}

#[test]
fn a_session_confirmed_late_sets_the_staged_packets_free_although_a_newer_tunnel_waits() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    pair.send_numbered(Side::Right, Family::V4, 5, 100);
    pair.run_for(secs(4));
    pair.link.is_cut = false;
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_until(secs(1), |pair| pair.count(Side::Right, Kind::Response) == 1);
    // The confirmation takes so long that the responder begins a handshake itself, with a shared key left does not have.
    pair.link.config.latency = secs(6);
    pair.configure(Side::Right, |engine, peer, _| engine.set_preshared_key(peer, PresharedKey::from_bytes([3; 32])))
        .expect("it exists");
    pair.run_until(secs(1), |pair| pair.count(Side::Left, Kind::Data) == 1);
    pair.link.config.latency = Duration::from_millis(20);
    pair.run_until(secs(7), |pair| !pair.right().delivered.is_empty());
    assert_eq!(pair.count(Side::Right, Kind::Initiation), 2);
    pair.send_numbered(Side::Right, Family::V4, 5, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Left);
    let left = pair.left().public_key();
    assert!(pair.right().events().contains(&Event::HandshakeCompleted { peer: left, initiator: false }));
}

#[test]
fn different_shared_keys_make_no_session() {
    let mut pair = Pair::new(1);
    pair.configure(Side::Left, |engine, peer, _| engine.set_preshared_key(peer, PresharedKey::from_bytes([1; 32])))
        .expect("it exists");
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(60));
    assert_eq!(pair.count(Side::Left, Kind::Data) + pair.count(Side::Right, Kind::Data), 0);
    assert!(pair.left().peer_drops(DropReason::InvalidHandshake) > 5);
    assert_eq!(pair.left().state().last_handshake, None);
    assert_eq!(pair.right().state().last_handshake, None, "a handshake nobody confirmed is none");
}

/// Row 33.
#[test]
fn a_new_private_key_ends_all_sessions_and_those_in_use_come_back_under_it() {
    for changer in Side::BOTH {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        let other = changer.other();
        pair.run_for(secs(1));
        let key = PrivateKey::from_bytes([0x77; 32]);
        // One packet is under way when the key changes.
        pair.send_numbered(other, Family::V4, 1, 100);
        pair.configure(changer, |engine, _, now| engine.set_private_key(Some(key.clone()), now));
        pair.run_for(secs(1));
        assert_eq!(pair.host(changer).delivered.len(), 0);
        assert_eq!(pair.host(changer).drops(DropReason::UnknownIndex), 1);
        assert_eq!(pair.host(changer).engine.public_key(), Some(key.public_key()));
        // The other side is told the new key; everything else about the peer is configured anew.
        let address = pair.host(changer).address;
        let peer = pair.configure(other, |engine, old, now| {
            assert!(engine.remove_peer(old));
            let peer = engine.add_peer(key.public_key()).expect("there is room");
            engine.set_endpoint(peer, address, now).expect("it exists");
            for family in Family::BOTH {
                let len = if family == Family::V4 { 32 } else { 128 };
                let prefix = Prefix::new(inner_address(changer, family), len).expect("a prefix");
                engine.add_allowed_ip(peer, prefix).expect("it exists");
            }
            peer
        });
        pair.host_mut(other).peer = peer;
        pair.host_mut(changer).private_key = key;
        pair.forget_packets();
        pair.send_numbered(changer, Family::V6, 2, 100);
        pair.send_numbered(other, Family::V4, 2, 100);
        pair.run_for(secs(12));
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
    }
}

/// Row 33.
#[test]
fn a_peer_with_our_own_key_is_refused_and_removed_when_we_get_its_key() {
    let mut pair = Pair::new(1);
    let own = pair.left().public_key();
    let refused = pair.configure(Side::Left, |engine, _, _| engine.add_peer(own));
    assert_eq!(refused, Err(ConfigError::OwnKey));
    let key = pair.right().private_key.clone();
    pair.configure(Side::Left, |engine, _, now| engine.set_private_key(Some(key), now));
    assert_eq!(pair.left().engine.peers().len(), 0);
}

#[test]
fn without_a_private_key_nothing_passes_and_a_key_starts_what_waits() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.configure(Side::Left, |engine, peer, now| {
        engine.set_persistent_keepalive(peer, 25, now).expect("it exists");
        engine.set_private_key(None, now);
    });
    pair.wire.clear();
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(10));
    assert_eq!(pair.left().drops(DropReason::InterfaceDown), 1);
    assert_eq!(pair.left().delivered.len() + pair.right().delivered.len(), 0);
    assert!(pair.wire.iter().all(|sent| sent.by == Side::Right));
    let key = pair.left().private_key.clone();
    pair.wire.clear();
    pair.configure(Side::Left, |engine, _, now| engine.set_private_key(Some(key), now));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 1, "the persistent keepalive wants a session");
}

#[test]
fn an_interface_that_goes_down_is_silent_and_comes_up_with_its_settings() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.configure(Side::Left, |engine, peer, now| engine.set_persistent_keepalive(peer, 25, now)).expect("it exists");
    pair.run_for(secs(10));
    let before = pair.left().state();
    pair.configure(Side::Left, |engine, _, now| engine.bring_down(now));
    pair.wire.clear();
    pair.send_numbered(Side::Left, Family::V4, 3, 100);
    pair.send_numbered(Side::Right, Family::V4, 2, 100);
    pair.run_for(secs(300));
    assert_eq!(pair.sent(Side::Left, Kind::Data).count() + pair.count(Side::Left, Kind::Initiation), 0);
    assert_eq!(pair.count(Side::Left, Kind::Keepalive), 0);
    assert_eq!(pair.left().delivered.len(), 0);
    assert!(pair.left().drops(DropReason::InterfaceDown) >= 5, "three packets out, two in and what follows");
    let after = pair.left().state();
    assert!(!after.is_live);
    assert_eq!((after.endpoint, after.tx_bytes, after.rx_bytes), (before.endpoint, before.tx_bytes, before.rx_bytes));
    assert_eq!((after.last_handshake, after.allowed_ips), (before.last_handshake, before.allowed_ips));
    pair.wire.clear();
    pair.configure(Side::Left, |engine, _, now| engine.bring_up(now));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 1, "the persistent keepalive is due at once");
    pair.forget_packets();
    pair.send_numbered(Side::Left, Family::V4, 3, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
}

#[test]
fn going_down_drops_what_is_staged() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    pair.send_numbered(Side::Left, Family::V4, 7, 100);
    pair.configure(Side::Left, |engine, _, now| engine.bring_down(now));
    assert_eq!(pair.left().peer_drops(DropReason::StagedExpired), 7);
    assert_eq!(pair.left().engine.counters().staged_bytes, 0);
}

/// Row 21: a peer refuses timestamps that are not newer; a clock set forward must show in the next initiation.
#[test]
fn a_wall_clock_set_forward_takes_a_fresh_tunnel_and_keeps_the_session() {
    let index_of_next_initiation = |shift: i64| {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        let first = oracle::le32(&pair.last(Side::Left, Kind::Data).head, 4);
        let _ = first;
        let unix = pair::WALL_CLOCK_AT_START + pair.now.since(pair::START);
        let shifted = Duration::from_secs((unix.as_secs() as i64 + shift) as u64);
        let before = pair.now;
        pair.configure(Side::Left, |engine, _, now| engine.set_wall_clock(shifted, now));
        let every = Duration::from_millis(100);
        let senders = [(Side::Left, Family::V4), (Side::Right, Family::V4)];
        pair.run_with_traffic(secs(130), every, &senders, 100);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Right);
        pair.assert_all_arrived_at(Side::Left);
        let at = pair.left().state().last_handshake.expect("there was one");
        let expected = shifted + pair.last(Side::Left, Kind::Initiation).at.since(before);
        assert!(at.abs_diff(expected) < secs(2), "{at:?} is not by the new clock, {expected:?}");
        oracle::le32(&pair.last(Side::Left, Kind::Initiation).head, 4) >> 8
    };
    let unshifted = index_of_next_initiation(0);
    assert_ne!(index_of_next_initiation(3600), unshifted, "forward: new timestamps need a fresh tunnel");
    assert_eq!(index_of_next_initiation(-3600), unshifted, "back: the old timestamps go on");
}

/// Row 29.
#[test]
fn the_last_handshake_is_the_wall_clock_at_the_response_and_at_the_first_confirmed_data() {
    let mut pair = Pair::new(1);
    // The confirmation takes a second longer than the rest.
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_until(secs(1), |pair| pair.count(Side::Right, Kind::Response) == 1);
    assert_eq!(pair.right().state().last_handshake, None, "not confirmed");
    assert_eq!(pair.left().state().last_handshake, None, "not answered");
    pair.link.config.latency = secs(1);
    pair.run_until(secs(1), |pair| pair.left().state().last_handshake.is_some());
    let since_start = |at: Option<Duration>| at.expect("there was one") - pair::WALL_CLOCK_AT_START;
    assert_eq!(since_start(pair.left().state().last_handshake), Duration::from_millis(40));
    assert_eq!(pair.right().state().last_handshake, None, "not confirmed");
    pair.run_until(secs(2), |pair| pair.right().state().last_handshake.is_some());
    assert_eq!(since_start(pair.right().state().last_handshake), Duration::from_millis(1040));
    let (left, right) = (pair.left().public_key(), pair.right().public_key());
    assert_eq!(pair.left().events(), [Event::HandshakeCompleted { peer: right, initiator: true }]);
    assert_eq!(
        pair.right().events()[0],
        Event::HandshakeCompleted { peer: left, initiator: false },
        "the endpoint was configured and did not move"
    );
    pair.run_for(secs(400));
    let state = pair.left().state();
    assert!(state.last_handshake.is_some(), "it is not forgotten with the session");
}

/// Row 22 is in `overload.rs`; here is what an honest peer's second initiation may not be.
#[test]
fn an_initiation_whose_timestamp_is_not_newer_is_a_replay() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let model = pair.model_of(Side::Left);
    let from = pair.left().address;
    for (second, expected) in [(1000, 1), (1000, 1), (999, 1), (1, 1), (1001, 2)] {
        let message = model.initiate_at(second, &mut pair.random).message;
        pair.inject(Side::Right, from, &[message]);
        assert_eq!(pair.count(Side::Right, Kind::Response), expected, "timestamp {second}");
        pair.run_for(Duration::from_millis(100));
    }
    assert_eq!(pair.right().peer_drops(DropReason::InitiationReplay), 3);
}

/// Row 30.
#[test]
fn the_ecn_field_is_copied_out_and_marks_come_in() {
    use packets::Ecn;
    for family in Family::BOTH {
        for marks_congestion in [false, true] {
            let link = LinkConfig { marks_congestion, ..LinkConfig::default() };
            let mut pair = Pair::connected(Setup { link, ..Setup::default() }, Side::Left);
            for ecn in Ecn::ALL {
                let (source, destination) = (inner_address(Side::Left, family), inner_address(Side::Right, family));
                let packet = packets::with_ecn(source, destination, 1, 100, ecn);
                pair.send(Side::Left, vec![packet.clone()]);
                pair.run_for(Duration::from_millis(30));
                let outer = pair.last(Side::Left, Kind::Data).traffic_class;
                // RFC 6040 4.1 in compatibility with RFC 3168 9.1.1, as Linux does it; DSCP is not copied.
                let expected = if ecn == Ecn::CongestionExperienced { Ecn::Capable0 } else { ecn };
                assert_eq!(outer, expected as u8, "{ecn:?}");
                let arrived = pair.right().delivered.last().expect("it arrived");
                let marked = marks_congestion && ecn != Ecn::NotCapable || ecn == Ecn::CongestionExperienced;
                let expected = if marked { Ecn::CongestionExperienced } else { ecn };
                assert_eq!(packets::ecn_of(arrived), expected as u8, "{ecn:?} {marks_congestion}");
                if family == Family::V4 {
                    let stated = u16::from_be_bytes([arrived[10], arrived[11]]);
                    assert_eq!(stated, packets::ipv4_checksum(&arrived[..20]), "the checksum follows");
                }
                let mut unmarked = arrived.clone();
                unmarked[..12].copy_from_slice(&packet[..12]);
                assert_eq!(unmarked, packet, "nothing else changed");
            }
            assert_eq!(pair.right().delivered.len(), 4, "a mark on a packet that cannot carry it is no reason to drop");
        }
    }
}

#[test]
fn a_congestion_mark_around_a_packet_that_cannot_carry_it_is_ignored() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.link.filter = Box::new(|_| true);
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    for datagram in pair.link.arrived(pair.now + secs(1)) {
        let marked = support::link::InFlight { traffic_class: 3, ..datagram };
        pair.link.send(marked, pair.now);
    }
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
    assert_eq!(packets::ecn_of(&pair.right().delivered[0]), 0);
}

/// Row 30.
#[test]
fn handshakes_travel_as_af41_and_keepalives_as_best_effort() {
    let mut pair = Pair::new(1);
    pair.configure(Side::Left, |engine, peer, now| engine.set_persistent_keepalive(peer, 5, now)).expect("it exists");
    pair.run_for(secs(20));
    for sent in &pair.wire {
        let expected = if matches!(sent.kind, Kind::Initiation | Kind::Response) { 0x88 } else { 0 };
        assert_eq!(sent.traffic_class, expected, "{:?}", sent.kind);
    }
    assert!(pair.count(Side::Left, Kind::Keepalive) > 2);
}
