//! Each reason for a drop that the engine knows is provoked, and counted once where it belongs.
#![cfg(virtual_time)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use support::link::InFlight;
use support::oracle::{InitiationParts, Model, Secret, tai64n};
use support::pair::{Datagrams, Family, Inbox, Outbox, Packets, Pair, Setup, Side, numbered};
use wg_core::{DropReason, PresharedKey, PrivateKey, PublicKey};

/// A reason that occurred, at the right host.
struct Provoked {
    pair: Pair,
    /// How often on the interface.
    times: u64,
    /// How often on the left host's account.
    for_peer: u64,
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn elsewhere() -> SocketAddr {
    "203.0.113.9:9".parse().expect("an address and a port")
}

/// Makes `reason` occur; `None` for those that only drivers give.
fn provoke(reason: DropReason) -> Option<Provoked> {
    let on_interface = |pair: Pair, times: u64| Some(Provoked { pair, times, for_peer: 0 });
    let for_peer = |pair: Pair, times: u64| Some(Provoked { pair, times, for_peer: times });
    let mut pair = Pair::new(1);
    pair.link.is_cut = true;
    let left = pair.left().address;
    let packet = numbered(Side::Right, Family::V4, 1, 100);
    match reason {
        DropReason::MalformedPacket => {
            let mut longer = packet.clone();
            longer[3] += 1;
            pair.send(Side::Right, vec![vec![0; 60], packet[..19].to_vec(), vec![], longer]);
            on_interface(pair, 4)
        }
        DropReason::DestinationNotAllowed => {
            let there = "10.0.0.3".parse().expect("an address");
            let here = "10.0.0.2".parse().expect("an address");
            pair.send(Side::Right, vec![support::packets::numbered(here, there, 1, 100)]);
            on_interface(pair, 1)
        }
        DropReason::NoEndpoint => {
            let mut pair = Pair::with(Setup { knows_endpoint: [true, false], ..Setup::default() });
            pair.send(Side::Right, vec![packet; 2]);
            for_peer(pair, 2)
        }
        DropReason::PacketTooBig => {
            pair.model_session(Side::Left);
            pair.send_numbered(Side::Right, Family::V4, 1, 65_507 - 32 + 1);
            pair.send_numbered(Side::Right, Family::V4, 1, 65_507 - 48);
            assert_eq!(pair.wire.last().map(|sent| sent.len), Some(65_496), "one that fits");
            for_peer(pair, 1)
        }
        DropReason::StagedOverflow => {
            pair.send(Side::Right, vec![packet; 130]);
            for_peer(pair, 2)
        }
        DropReason::StagedMemory => {
            let mut pair = Pair::with(Setup { staging_limit_bytes: 250, ..Setup::default() });
            pair.link.is_cut = true;
            pair.send(Side::Right, vec![packet; 3]);
            for_peer(pair, 1)
        }
        DropReason::StagedExpired => {
            pair.send(Side::Right, vec![packet; 3]);
            pair.run_for(secs(120));
            for_peer(pair, 3)
        }
        DropReason::InterfaceDown => {
            pair.configure(Side::Right, |engine, _, now| engine.bring_down(now));
            pair.send(Side::Right, vec![packet; 2]);
            pair.inject(Side::Right, left, &[vec![1; 148]]);
            on_interface(pair, 3)
        }
        DropReason::UnusableKey => {
            let mut low_order = [0; 32];
            low_order[0] = 1;
            pair.configure(Side::Right, |engine, peer, now| {
                engine.remove_peer(peer);
                let peer = engine.add_peer(PublicKey::from_bytes(low_order)).expect("there is room");
                engine.add_allowed_ip(peer, "10.0.0.1/32".parse().expect("a prefix")).expect("it exists");
                engine.set_endpoint(peer, left, now).expect("it exists");
            });
            let peer = pair.right().engine.peers()[0].id;
            pair.host_mut(Side::Right).peer = peer;
            pair.send(Side::Right, vec![packet; 2]);
            for_peer(pair, 2)
        }
        DropReason::SinkFull => {
            let session = pair.model_session(Side::Left);
            let engine = &pair.right().engine;
            engine.handle_packets(&mut Packets::new(vec![packet; 5]), &mut Outbox::with_room(3), pair.now);
            let datagrams = (1..4)
                .map(|counter| InFlight {
                    from: left,
                    to: pair.right().address,
                    traffic_class: 0,
                    bytes: session.seal(counter, &numbered(Side::Left, Family::V4, 1, 100)),
                })
                .collect();
            let mut up = Inbox::with_room(2);
            engine.handle_datagrams(&mut Datagrams::new(datagrams), &mut up, &mut Outbox::default(), pair.now);
            assert_eq!(up.packets.len(), 2);
            for_peer(pair, 3)
        }
        DropReason::MalformedMessage => {
            pair.inject(Side::Right, left, &[vec![], vec![1; 148], vec![4, 0, 0, 0, 1]]);
            on_interface(pair, 3)
        }
        DropReason::BadMac1 => {
            let mut message = pair.model_of(Side::Left).initiate_at(1, &mut pair.random).message;
            message[120] ^= 1;
            pair.inject(Side::Right, left, &[message]);
            on_interface(pair, 1)
        }
        DropReason::UnknownIndex => {
            let mut message = vec![0; 64];
            message[0] = 4;
            pair.inject(Side::Right, left, &[message]);
            on_interface(pair, 1)
        }
        DropReason::SessionExpired => {
            let session = pair.model_session(Side::Left);
            pair.run_for(secs(180));
            pair.inject(Side::Right, left, &[session.seal(1, &[])]);
            for_peer(pair, 1)
        }
        DropReason::CounterLimit => {
            let session = pair.model_session(Side::Left);
            pair.inject(Side::Right, left, &[session.seal(u64::MAX, &[])]);
            on_interface(pair, 1)
        }
        DropReason::Replay => {
            let session = pair.model_session(Side::Left);
            pair.inject(Side::Right, left, &vec![session.seal(1, &[]); 3]);
            for_peer(pair, 2)
        }
        DropReason::BadTag => {
            let session = pair.model_session(Side::Left);
            let mut message = session.seal(1, &[]);
            message[31] ^= 1;
            pair.inject(Side::Right, elsewhere(), &[message]);
            on_interface(pair, 1)
        }
        DropReason::MalformedInner => {
            let session = pair.model_session(Side::Left);
            pair.inject(Side::Right, left, &[session.seal(1, &[0x45; 32])]);
            for_peer(pair, 1)
        }
        DropReason::SourceNotAllowed | DropReason::SourceOwnedByOtherPeer => {
            let session = pair.model_session(Side::Left);
            pair.configure(Side::Right, |engine, _, _| {
                let other = engine.add_peer(PrivateKey::from_bytes([3; 32]).public_key()).expect("there is room");
                engine.add_allowed_ip(other, "10.5.0.0/16".parse().expect("a prefix")).expect("it exists");
            });
            let from = if reason == DropReason::SourceNotAllowed { "10.4.0.1" } else { "10.5.0.1" };
            let here = "10.0.0.2".parse().expect("an address");
            let packet = support::packets::numbered(from.parse().expect("an address"), here, 1, 100);
            pair.inject(Side::Right, left, &[session.seal(1, &packet)]);
            for_peer(pair, 1)
        }
        DropReason::HandshakeQueueFull => {
            pair.host_mut(Side::Right).is_handshake_thread_stalled = true;
            let message = pair.model_of(Side::Left).initiate_at(1, &mut pair.random).message;
            pair.inject(Side::Right, elsewhere(), &vec![message; 4097]);
            on_interface(pair, 1)
        }
        DropReason::CookieDemanded | DropReason::RateLimited => {
            pair.host_mut(Side::Right).is_handshake_thread_stalled = true;
            let model = pair.model_of(Side::Left);
            let message = model.initiate_at(1, &mut pair.random).message;
            pair.inject(Side::Right, left, &vec![message.clone(); 513]);
            pair.run_handshakes(Side::Right);
            if reason == DropReason::CookieDemanded {
                return on_interface(pair, 513);
            }
            let reply = pair.wire.last().expect("a cookie reply").head.clone();
            let cookie = model.open_cookie_reply(&reply, &message);
            let parts = InitiationParts {
                ephemeral: Secret::Honest([1; 32]),
                timestamp: tai64n(5),
                sender_index: 5,
                cookie,
                claims: None,
            };
            let proven = model.initiate(parts).message;
            pair.inject(Side::Right, left, &vec![proven; 7]);
            pair.run_handshakes(Side::Right);
            on_interface(pair, 2)
        }
        DropReason::UnknownPeer => {
            let stranger = Model::new(Secret::Honest([9; 32]), pair.right().public_key());
            let message = stranger.initiate_at(1, &mut pair.random).message;
            pair.inject(Side::Right, elsewhere(), &[message]);
            on_interface(pair, 1)
        }
        DropReason::InitiationTooSoon | DropReason::InitiationReplay => {
            let model = pair.model_of(Side::Left);
            for second in [5, 4] {
                let message = model.initiate_at(second, &mut pair.random).message;
                pair.inject(Side::Right, left, &[message]);
                if reason == DropReason::InitiationReplay {
                    pair.run_for(Duration::from_millis(20));
                }
            }
            for_peer(pair, 1)
        }
        DropReason::InvalidHandshake => {
            pair.configure(Side::Right, |engine, peer, _| {
                engine.set_preshared_key(peer, PresharedKey::from_bytes([1; 32]))
            })
            .expect("it exists");
            pair.send(Side::Right, vec![packet]);
            let initiation = pair.wire.last().expect("an initiation").head.clone();
            // The model does not know the shared key.
            let model = Model::new(Secret::of(&pair.left().private_key), pair.right().public_key());
            let (response, _) = model.respond(&initiation, 1, Secret::Honest([1; 32]));
            pair.inject(Side::Right, left, &[response]);
            for_peer(pair, 1)
        }
        DropReason::Unsolicited => {
            pair.send(Side::Right, vec![packet]);
            let initiation = pair.wire.last().expect("an initiation").head.clone();
            let model = pair.model_of(Side::Left);
            let (response, _) = model.respond(&initiation, 1, Secret::Honest([1; 32]));
            pair.inject(Side::Right, left, &vec![response; 3]);
            on_interface(pair, 2)
        }
        DropReason::SendFailed | DropReason::SendQueueFull | DropReason::DeviceWriteFailed => None,
        other => panic!("nothing provokes {other}"),
    }
}

#[test]
fn each_reason_is_counted_once_on_the_interface_and_on_the_account_of_the_peer_it_concerns() {
    let mut provoked = 0;
    for &reason in DropReason::ALL {
        let Some(Provoked { pair, times, for_peer }) = provoke(reason) else { continue };
        provoked += 1;
        assert_eq!(pair.right().drops(reason), times, "{reason} on the interface");
        assert_eq!(pair.right().peer_drops(reason), for_peer, "{reason} on the peer's account");
    }
    assert_eq!(provoked, DropReason::COUNT - 3);
}

#[test]
fn what_a_driver_drops_is_counted_on_the_interface() {
    let pair = Pair::new(1);
    pair.right().engine.count_drop(DropReason::SendFailed, 3);
    pair.right().engine.count_drop(DropReason::SendFailed, 4);
    assert_eq!(pair.right().drops(DropReason::SendFailed), 7);
    assert_eq!(pair.right().engine.counters().drops.total(), 7);
    assert_eq!(pair.right().state().drops.total(), 0);
}
