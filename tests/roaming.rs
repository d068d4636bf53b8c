//! Endpoints move after authentic messages, and after nothing else. [W] 2.1.
#![cfg(virtual_time)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use support::pair::{Family, Kind, Pair, Setup, Side, home, numbered};
use wg_core::{DropReason, Event};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// The left host goes on from elsewhere, and is no longer reached at home.
fn move_left(pair: &mut Pair, to: SocketAddr) {
    let left = pair.host_mut(Side::Left);
    left.address = to;
    left.reachable_at = vec![to];
}

/// Row 25.
#[test]
fn data_and_keepalives_from_elsewhere_move_the_endpoint_in_either_family() {
    for outer in Family::BOTH {
        for elsewhere in ["198.51.100.7:4242", "[2001:db8:9::7]:4242", "192.0.2.1:1"] {
            for kind in [Kind::Data, Kind::Keepalive] {
                let mut pair = Pair::connected(Setup { outer, ..Setup::default() }, Side::Left);
                let _ = pair.right().events();
                let elsewhere = address(elsewhere);
                move_left(&mut pair, elsewhere);
                if kind == Kind::Data {
                    pair.send_numbered(Side::Left, Family::V4, 1, 100);
                } else {
                    pair.configure(Side::Left, |engine, peer, now| engine.set_persistent_keepalive(peer, 25, now))
                        .expect("it exists");
                }
                pair.run_for(Duration::from_millis(30));
                assert_eq!(pair.count(Side::Left, kind), 1);
                assert_eq!(pair.right().endpoint(), Some(elsewhere));
                let peer = pair.left().public_key();
                let from = Some(home(Side::Left, outer));
                assert_eq!(pair.right().events(), [Event::EndpointMoved { peer, from, to: elsewhere }]);
                pair.send_numbered(Side::Right, Family::V4, 1, 100);
                pair.run_for(Duration::from_millis(30));
                pair.assert_all_arrived_at(Side::Left);
                assert_eq!(pair.last(Side::Right, Kind::Data).to, elsewhere);
            }
        }
    }
}

#[test]
fn a_response_from_elsewhere_moves_the_endpoint() {
    let mut pair = Pair::new(1);
    let elsewhere = address("198.51.100.8:99");
    pair.host_mut(Side::Right).address = elsewhere;
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(secs(1));
    assert_eq!(pair.last(Side::Left, Kind::Initiation).to, home(Side::Right, Family::V4));
    assert_eq!(pair.last(Side::Left, Kind::Data).to, elsewhere);
    assert_eq!(pair.left().endpoint(), Some(elsewhere));
}

#[test]
fn an_initiation_tells_a_host_without_endpoint_where_the_peer_is() {
    let mut pair = Pair::with(Setup { knows_endpoint: [true, false], ..Setup::default() });
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    assert_eq!(pair.right().peer_drops(DropReason::NoEndpoint), 1);
    pair.forget_packets();
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(secs(1));
    assert_eq!(pair.right().endpoint(), Some(pair.left().address));
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Left);
}

#[test]
fn nothing_that_does_not_authenticate_moves_the_endpoint() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let packet = numbered(Side::Left, Family::V4, 1, 60);
    let good = session.seal(5, &packet);
    pair.inject(Side::Right, pair.left().address, std::slice::from_ref(&good));
    let mut forged = session.seal(6, &packet);
    *forged.last_mut().expect("not empty") ^= 1;
    let mut strange = session.seal(7, &packet);
    strange[5] ^= 1;
    let old = pair.model_of(Side::Left).initiate_at(0, &mut pair.random).message;
    let elsewhere = address("203.0.113.9:9");
    pair.run_for(secs(1));
    pair.inject(Side::Right, elsewhere, &[good, forged, strange, old]);
    let right = pair.right();
    assert_eq!(right.endpoint(), Some(pair.left().address));
    let reasons = [DropReason::Replay, DropReason::BadTag, DropReason::UnknownIndex, DropReason::InitiationReplay];
    assert_eq!(reasons.map(|reason| right.drops(reason)), [1; 4]);
    pair.run_for(secs(200));
    pair.inject(Side::Right, elsewhere, &[session.seal(8, &packet)]);
    assert_eq!(pair.right().drops(DropReason::SessionExpired), 1);
    assert_eq!(pair.right().endpoint(), Some(pair.left().address));
}

/// What Linux does, too: the sender is authentic, whatever the packet is.
#[test]
fn an_authentic_message_moves_the_endpoint_also_if_its_packet_is_dropped() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let elsewhere = address("198.51.100.7:4242");
    pair.inject(Side::Right, elsewhere, &[session.seal(5, &[0xff; 50])]);
    assert_eq!(pair.right().endpoint(), Some(elsewhere));
}

#[test]
fn of_several_messages_in_one_batch_the_last_authentic_one_counts() {
    let mut pair = Pair::new(1);
    let session = pair.model_session(Side::Left);
    let packet = numbered(Side::Left, Family::V4, 1, 60);
    pair.link.filter = Box::new(|_| true);
    pair.link.is_cut = false;
    let to = pair.right().address;
    let mut forged = session.seal(9, &packet);
    forged[30] ^= 1;
    let datagrams = [
        ("198.51.100.1:1", session.seal(5, &packet)),
        ("198.51.100.2:2", session.seal(6, &packet)),
        ("198.51.100.3:3", forged),
    ];
    for (from, bytes) in datagrams {
        let datagram = support::link::InFlight { from: address(from), to, traffic_class: 0, bytes };
        pair.link.send(datagram, pair.now);
    }
    pair.run_for(secs(1));
    assert_eq!(pair.right().delivered.len(), 2);
    assert_eq!(pair.right().endpoint(), Some(address("198.51.100.2:2")));
}

/// Row 25: a recorded initiation, replayed when the responder has forgotten everything.
#[test]
fn a_replayed_initiation_after_a_cold_start_does_not_move_the_endpoint() {
    for outer in Family::BOTH {
        let mut pair = Pair::with(Setup { outer, ..Setup::default() });
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        let recorded = pair.last(Side::Left, Kind::Initiation).head.clone();
        pair.run_for(secs(600));
        assert!(!pair.right().state().is_live, "its keys are gone");
        let elsewhere = address("203.0.113.66:66");
        pair.wire.clear();
        let last_handshake = pair.right().state().last_handshake;
        pair.inject(Side::Right, elsewhere, std::slice::from_ref(&recorded));
        assert_eq!(pair.last(Side::Right, Kind::Response).to, elsewhere, "it may be the peer, so it is answered there");
        assert_eq!(pair.right().endpoint(), Some(home(Side::Left, outer)), "but nothing else goes there");
        pair.run_for(Duration::from_millis(100));
        pair.inject(Side::Right, elsewhere, &[recorded]);
        assert_eq!(pair.right().peer_drops(DropReason::InitiationReplay), 1, "the second time it is known");
        pair.forget_packets();
        pair.send_numbered(Side::Right, Family::V4, 2, 100);
        pair.run_for(secs(7));
        assert!(pair.sent(Side::Right, Kind::Initiation).all(|sent| sent.to == home(Side::Left, outer)));
        pair.assert_all_arrived_at(Side::Left);
        assert_ne!(pair.right().state().last_handshake, last_handshake);
    }
}

#[test]
fn a_replayed_initiation_alone_is_forgotten_when_its_session_could_not_be_used_any_more() {
    let mut pair = Pair::new(1);
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    let recorded = pair.last(Side::Left, Kind::Initiation).head.clone();
    pair.run_for(secs(600));
    pair.inject(Side::Right, address("203.0.113.66:66"), &[recorded]);
    assert!(pair.right().state().is_live);
    pair.run_for(secs(181));
    assert!(!pair.right().state().is_live, "an unconfirmed session is not kept for nine minutes");
}

/// A fresh tunnel knows no timestamps, so that it accepts every recorded initiation, each newer than the one before.
#[test]
fn recorded_initiations_neither_end_the_session_in_use_nor_keep_us_from_a_handshake() {
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(70));
    let recorded: Vec<_> = pair.sent(Side::Right, Kind::Initiation).map(|sent| sent.head.clone()).collect();
    assert!(recorded.len() >= 14, "{} were recorded", recorded.len());
    pair.configure(Side::Right, |engine, _, now| {
        engine.bring_down(now);
        engine.bring_up(now);
    });
    pair.link.is_cut = false;
    pair.forget_packets();
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
    let elsewhere = address("203.0.113.66:66");
    let (early, late) = recorded.split_at(12);
    for initiation in early {
        pair.inject(Side::Left, elsewhere, std::slice::from_ref(initiation));
        pair.run_for(Duration::from_millis(21));
    }
    assert!(pair.count(Side::Left, Kind::Response) >= 12, "each was accepted");
    pair.forget_packets();
    pair.wire.clear();
    for side in [Side::Left, Side::Right] {
        pair.send_numbered(side, Family::V4, 3, 100);
        pair.run_for(Duration::from_millis(100));
        pair.assert_all_arrived_at(side.other());
    }
    assert_eq!(pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation), 0);

    pair.run_for(secs(185));
    pair.wire.clear();
    pair.inject(Side::Left, elsewhere, std::slice::from_ref(&late[0]));
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(4900));
    pair.inject(Side::Left, elsewhere, std::slice::from_ref(&late[1]));
    pair.run_for(Duration::from_millis(500));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 1, "the replay does not put it off");
}

/// A tunnel that began its session itself has not seen any timestamp of the peer's.
#[test]
fn a_replayed_initiation_moves_nothing_beside_a_session_that_we_began() {
    let mut pair = Pair::new(1);
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    let recorded = pair.last(Side::Left, Kind::Initiation).head.clone();
    pair.run_for(secs(600));
    pair.connect(Side::Right);
    for side in Side::BOTH {
        pair.send_numbered(side, Family::V4, 1, 100);
    }
    pair.run_for(secs(1));
    pair.inject(Side::Right, address("203.0.113.66:66"), &[recorded]);
    assert_eq!(pair.count(Side::Right, Kind::Response), 1, "nothing tells it from a new one");
    assert_eq!(pair.right().endpoint(), Some(pair.left().address));
    pair.run_with_traffic(secs(60), secs(1), &[(Side::Left, Family::V4), (Side::Right, Family::V4)], 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Left);
    pair.assert_all_arrived_at(Side::Right);
    assert!(pair.sent(Side::Right, Kind::Data).all(|sent| sent.to == pair.left().address));
}

#[test]
fn the_peer_itself_may_move_and_begin_anew_after_a_cold_start() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(600));
    let elsewhere = address("198.51.100.7:4242");
    move_left(&mut pair, elsewhere);
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
    assert_eq!(pair.right().endpoint(), Some(elsewhere), "its data confirms where it is");
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Left);
}

/// With a session that the peer began and confirmed, an older initiation is known for a replay, so a new one counts.
#[test]
fn an_initiation_from_elsewhere_moves_the_endpoint_of_a_warm_tunnel() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(121));
    let elsewhere = address("198.51.100.7:4242");
    move_left(&mut pair, elsewhere);
    pair.link.filter = Box::new(|datagram| datagram.bytes[0] == 1);
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(30));
    assert_eq!(pair.count(Side::Right, Kind::Response), 1);
    assert_eq!(pair.right().endpoint(), Some(elsewhere));
}

#[test]
fn an_endpoint_set_by_the_operator_is_used_at_once_and_costs_no_session() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    let elsewhere = address("198.51.100.8:99");
    pair.host_mut(Side::Right).reachable_at.push(elsewhere);
    pair.configure(Side::Left, |engine, peer, now| engine.set_endpoint(peer, elsewhere, now)).expect("it exists");
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(30));
    assert_eq!(pair.last(Side::Left, Kind::Data).to, elsewhere);
    pair.assert_all_arrived_at(Side::Right);
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 0);
}

#[test]
fn both_may_move_at_once_if_one_is_still_heard_at_home() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    move_left(&mut pair, address("198.51.100.7:4242"));
    let right = pair.host_mut(Side::Right);
    right.address = address("198.51.100.8:99");
    right.reachable_at.push(right.address);
    pair.run_with_traffic(secs(60), secs(1), &[(Side::Left, Family::V4)], 100);
    pair.run_for(secs(1));
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
    pair.assert_all_arrived_at(Side::Left);
    assert_eq!(pair.left().endpoint(), Some(address("198.51.100.8:99")));
}
