//! Under load: cookies, token buckets, the queue of handshakes and the gate for each peer's initiations. [W] 5.3.
#![cfg(virtual_time)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use support::oracle::{self, InitiationParts, Model, Secret, tai64n};
use support::pair::{Family, Kind, Outbox, Pair, Setup, Side};
use wg_core::{DropReason, PrivateKey};

/// A full queue.
const QUEUE_LEN: usize = 4096;
/// Under load from here on.
const UNDER_LOAD_LEN: usize = QUEUE_LEN / 8;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// A valid initiation from a key that nobody has configured.
fn strangers_initiation(pair: &mut Pair, side: Side) -> Vec<u8> {
    let model = Model::new(Secret::Honest([0x66; 32]), pair.host(side).public_key());
    model.initiate_at(1000, &mut pair.random).message
}

/// Brings a side under load for a second, by initiations nobody has time for.
fn overload(pair: &mut Pair, side: Side) {
    let message = strangers_initiation(pair, side);
    pair.host_mut(side).is_handshake_thread_stalled = true;
    let flood = vec![message; UNDER_LOAD_LEN + 1];
    pair.inject(side, address("203.0.113.1:4000"), &flood);
    pair.host_mut(side).is_handshake_thread_stalled = false;
    pair.run_handshakes(side);
    pair.wire.clear();
}

/// An initiation of the left host, as a model of it makes it.
fn initiation(pair: &Pair, second: u64, cookie: Option<[u8; 16]>) -> Vec<u8> {
    let parts = InitiationParts {
        ephemeral: Secret::Honest([second as u8; 32]),
        timestamp: tai64n(second),
        sender_index: 0x0101_0101,
        cookie,
        claims: None,
    };
    pair.model_of(Side::Left).initiate(parts).message
}

/// Rows 16 and 17.
#[test]
fn under_load_begins_with_an_eighth_of_the_queue_and_lasts_a_second_longer() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let from = pair.left().address;
    pair.host_mut(Side::Right).is_handshake_thread_stalled = true;
    let message = strangers_initiation(&mut pair, Side::Right);
    pair.inject(Side::Right, address("203.0.113.1:4000"), &vec![message; UNDER_LOAD_LEN - 1]);
    assert_eq!(pair.right().engine.counters().handshakes_waiting, UNDER_LOAD_LEN - 1);
    pair.run_handshakes(Side::Right);
    assert_eq!(pair.count(Side::Right, Kind::CookieReply), 0, "not yet");
    assert_eq!(pair.right().drops(DropReason::UnknownPeer), UNDER_LOAD_LEN as u64 - 1);
    overload(&mut pair, Side::Right);
    pair.run_for(Duration::from_millis(990));
    pair.inject(Side::Right, from, &[initiation(&pair, 1, None)]);
    assert_eq!((pair.count(Side::Right, Kind::CookieReply), pair.count(Side::Right, Kind::Response)), (1, 0));
    pair.run_for(Duration::from_millis(20));
    pair.inject(Side::Right, from, &[initiation(&pair, 2, None)]);
    assert_eq!((pair.count(Side::Right, Kind::CookieReply), pair.count(Side::Right, Kind::Response)), (1, 1));
}

#[test]
fn a_flood_without_proof_costs_no_cryptography_and_gets_one_cookie_each() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let message = strangers_initiation(&mut pair, Side::Right);
    pair.host_mut(Side::Right).is_handshake_thread_stalled = true;
    pair.inject(Side::Right, address("203.0.113.1:4000"), &vec![message; QUEUE_LEN + 10]);
    assert_eq!(pair.right().drops(DropReason::HandshakeQueueFull), 10);
    assert_eq!(pair.right().engine.counters().handshakes_waiting, QUEUE_LEN);
    pair.run_handshakes(Side::Right);
    assert_eq!(pair.right().drops(DropReason::CookieDemanded), QUEUE_LEN as u64);
    assert_eq!(pair.right().drops(DropReason::UnknownPeer), 0, "nobody looked who it claims to be");
    assert_eq!(pair.count(Side::Right, Kind::CookieReply), QUEUE_LEN);
    assert_eq!(pair.right().engine.counters().cookies_sent, QUEUE_LEN as u64);
    assert!(pair.wire.iter().all(|sent| sent.to == address("203.0.113.1:4000") && sent.len < 148));
}

/// Rows 15 to 17.
#[test]
fn two_engines_get_through_a_cookie_in_both_roles_of_the_loaded_one() {
    for outer in Family::BOTH {
        for loaded in Side::BOTH {
            let mut pair = Pair::with(Setup { outer, ..Setup::default() });
            // It stays under load until the second try.
            pair.send_numbered(Side::Left, Family::V4, 3, 100);
            pair.run_for(Duration::from_millis(10));
            for _ in 0..14 {
                overload(&mut pair, loaded);
                pair.run_for(Duration::from_millis(500));
            }
            pair.assert_all_arrived_at(Side::Right);
            assert!(pair.host(loaded).engine.counters().cookies_sent > 1);
        }
    }
}

/// Rows 15 and 19.
#[test]
fn a_cookie_is_bound_to_address_and_port() {
    for outer in Family::BOTH {
        let mut pair = Pair::with(Setup { outer, ..Setup::default() });
        pair.link.is_cut = true;
        overload(&mut pair, Side::Right);
        let model = pair.model_of(Side::Left);
        let home = pair.left().address;
        let first = initiation(&pair, 1, None);
        pair.inject(Side::Right, home, std::slice::from_ref(&first));
        let reply = pair.last(Side::Right, Kind::CookieReply);
        assert_eq!(reply.to, home);
        let cookie = model.open_cookie_reply(&reply.head, &first).expect("it is for this message");
        let mut other_port = home;
        other_port.set_port(home.port() + 1);
        let other_address = SocketAddr::new("198.51.100.77".parse().expect("an address"), home.port());
        for elsewhere in [other_port, other_address] {
            pair.inject(Side::Right, elsewhere, &[initiation(&pair, 2, Some(cookie))]);
            assert_eq!(pair.count(Side::Right, Kind::Response), 0, "{elsewhere} has not proved anything");
        }
        let mut wrong = cookie;
        wrong[0] ^= 1;
        pair.inject(Side::Right, home, &[initiation(&pair, 3, Some(wrong))]);
        assert_eq!(pair.count(Side::Right, Kind::Response), 0);
        pair.inject(Side::Right, home, &[initiation(&pair, 4, Some(cookie))]);
        assert_eq!(pair.count(Side::Right, Kind::Response), 1);
        assert_eq!(pair.right().drops(DropReason::CookieDemanded), 4 + UNDER_LOAD_LEN as u64 + 1);
    }
}

/// Row 18: the secret changes every two minutes.
#[test]
fn a_cookie_does_not_live_longer_than_two_minutes() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    overload(&mut pair, Side::Right);
    let model = pair.model_of(Side::Left);
    let home = pair.left().address;
    let first = initiation(&pair, 1, None);
    pair.inject(Side::Right, home, std::slice::from_ref(&first));
    let reply = pair.last(Side::Right, Kind::CookieReply).head.clone();
    let cookie = model.open_cookie_reply(&reply, &first).expect("it is for this message");
    pair.run_for(secs(129));
    overload(&mut pair, Side::Right);
    pair.inject(Side::Right, home, &[initiation(&pair, 2, Some(cookie))]);
    assert_eq!((pair.count(Side::Right, Kind::CookieReply), pair.count(Side::Right, Kind::Response)), (1, 0));
}

/// Row 19: at most one cookie reply for each message sent.
#[test]
fn a_cookie_reply_is_taken_once_and_only_if_asked_for() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let model = pair.model_of(Side::Right);
    let from = pair.right().address;
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    let sent = pair.last(Side::Left, Kind::Initiation).head.clone();
    assert_eq!(sent[132..], [0; 16], "no cookie, no MAC2");
    let reply = |cookie: u8, nonce: u8| model.cookie_reply(&sent, [cookie; 16], [nonce; 24]);
    let mut wrong = reply(1, 1);
    wrong[63] ^= 1;
    pair.inject(Side::Left, from, &[wrong]);
    assert_eq!(pair.left().drops(DropReason::InvalidHandshake), 1);
    pair.inject(Side::Left, from, &[reply(1, 1)]);
    pair.inject(Side::Left, from, &[reply(1, 1), reply(2, 2)]);
    assert_eq!(pair.left().drops(DropReason::Unsolicited), 2);
    let mut elsewhere = reply(3, 3);
    elsewhere[7] ^= 1;
    pair.inject(Side::Left, from, &[elsewhere]);
    assert_eq!(pair.left().drops(DropReason::UnknownIndex), 1);
    pair.run_for(secs(6));
    let repeated = pair.last(Side::Left, Kind::Initiation).head.clone();
    let mut expected = repeated[..].to_vec();
    oracle::remac(&mut expected, &pair.right().public_key(), Some([1; 16]));
    assert_eq!(repeated, expected, "the next one carries MAC2 by the first cookie");
}

/// Row 20.
#[test]
fn a_cookie_reply_is_not_traffic() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(119));
    pair.link.is_cut = true;
    pair.run_for(secs(2));
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    let unanswered = pair.now;
    let received = pair.left().state().rx_bytes;
    let sent = pair.last(Side::Left, Kind::Initiation).head.clone();
    let reply = pair.model_of(Side::Right).cookie_reply(&sent, [1; 16], [2; 24]);
    pair.run_for(secs(2));
    pair.inject(Side::Left, address("203.0.113.5:5"), &[reply]);
    assert_eq!(pair.left().drops(DropReason::Unsolicited) + pair.left().drops(DropReason::InvalidHandshake), 0);
    assert_eq!(pair.left().state().rx_bytes, received);
    assert_eq!(pair.left().endpoint(), Some(pair.right().address), "and it moves no endpoint");
    pair.wire.clear();
    pair.run_for(secs(4));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 1, "the initiation is repeated at its time");
    let at = pair.last(Side::Left, Kind::Initiation).at.since(unanswered);
    assert!((secs(5)..secs(6)).contains(&at), "{at:?}");
}

/// Row 16: a valid cookie is no licence.
#[test]
fn a_source_that_proved_its_address_gets_five_handshakes_at_once_and_twenty_a_second() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let stranger = Model::new(Secret::Honest([0x66; 32]), pair.right().public_key());
    let message_at = |second: u64, cookie| {
        let ephemeral = Secret::Honest([second as u8; 32]);
        let parts = InitiationParts { ephemeral, timestamp: tai64n(second), sender_index: 9, cookie, claims: None };
        stranger.initiate(parts).message
    };
    overload(&mut pair, Side::Right);
    let from = address("198.51.100.9:999");
    let first = message_at(0, None);
    pair.inject(Side::Right, from, std::slice::from_ref(&first));
    let reply = pair.last(Side::Right, Kind::CookieReply).head.clone();
    let cookie = stranger.open_cookie_reply(&reply, &first);
    let unknown = |pair: &Pair| pair.right().drops(DropReason::UnknownPeer);
    let flood: Vec<_> = (1..21).map(|second| message_at(second, cookie)).collect();
    pair.inject(Side::Right, from, &flood);
    assert_eq!((unknown(&pair), pair.right().drops(DropReason::RateLimited)), (5, 15));
    pair.run_for(Duration::from_millis(100));
    pair.inject(Side::Right, from, &flood);
    assert_eq!((unknown(&pair), pair.right().drops(DropReason::RateLimited)), (7, 33));
    // Another address is not affected.
    let other = address("198.51.100.10:999");
    pair.inject(Side::Right, other, std::slice::from_ref(&first));
    let reply = pair.last(Side::Right, Kind::CookieReply).head.clone();
    let cookie = stranger.open_cookie_reply(&reply, &first);
    pair.inject(Side::Right, other, &[message_at(50, cookie)]);
    assert_eq!(unknown(&pair), 8);
}

#[test]
fn a_peer_with_a_session_is_served_while_the_handshakes_are_flooded() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    for _ in 0..20 {
        overload(&mut pair, Side::Right);
        for side in Side::BOTH {
            pair.send_numbered(side, Family::V4, 5, 500);
        }
        pair.run_for(Duration::from_millis(100));
    }
    pair.assert_all_arrived_at(Side::Left);
    pair.assert_all_arrived_at(Side::Right);
}

/// Row 22.
#[test]
fn initiations_of_one_peer_are_accepted_every_20_ms() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let from = pair.left().address;
    let mut try_one = |second: u64, after_ms: u64| {
        pair.run_for(Duration::from_millis(after_ms));
        let before = pair.count(Side::Right, Kind::Response);
        pair.inject(Side::Right, from, &[initiation(&pair, second, None)]);
        pair.count(Side::Right, Kind::Response) - before
    };
    assert_eq!(try_one(1, 0), 1);
    assert_eq!(try_one(2, 0), 0);
    assert_eq!(try_one(3, 19), 0);
    assert_eq!(try_one(4, 1), 1);
    assert_eq!(try_one(5, 10), 0);
    assert_eq!(try_one(6, 10), 1);
    assert_eq!(pair.right().peer_drops(DropReason::InitiationTooSoon), 3);
}

#[test]
fn a_message_for_another_key_does_not_take_a_place_in_the_queue() {
    let mut pair = Pair::new(1);
    pair.host_mut(Side::Right).is_handshake_thread_stalled = true;
    let other = PrivateKey::from_bytes([0x12; 32]).public_key();
    let message = Model::new(Secret::Honest([1; 32]), other).initiate_at(1, &mut pair.random).message;
    let from = pair.left().address;
    pair.inject(Side::Right, from, &vec![message; 100]);
    assert_eq!(pair.right().engine.counters().handshakes_waiting, 0);
    assert_eq!(pair.right().drops(DropReason::BadMac1), 100);
}

#[test]
fn an_emptied_queue_waits_for_nothing_and_a_key_change_empties_it() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    pair.host_mut(Side::Right).is_handshake_thread_stalled = true;
    let message = strangers_initiation(&mut pair, Side::Right);
    pair.inject(Side::Right, address("203.0.113.1:4000"), &vec![message; 300]);
    let mut out = Outbox::default();
    let report = pair.right().engine.handle_handshakes(100, &mut out, pair.now);
    assert_eq!((report.done, report.still_waiting), (100, true));
    pair.configure(Side::Right, |engine, _, now| {
        engine.set_private_key(Some(PrivateKey::from_bytes([0x55; 32])), now);
    });
    assert_eq!(pair.right().engine.counters().handshakes_waiting, 0);
    let report = pair.right().engine.handle_handshakes(100, &mut out, pair.now);
    assert_eq!((report.done, report.still_waiting), (0, false));
}
