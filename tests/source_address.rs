//! Our own outer address: answers leave from where the peer reached us, until there is a reason to choose anew.
#![cfg(virtual_time)]

mod support;

use std::time::Duration;

use support::pair::{Family, IFINDEX, Kind, Pair, Setup, Side};
use wg_core::SourceAddr;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The source address of the last datagram of this kind.
fn last_source(pair: &Pair, side: Side, kind: Kind) -> Option<SourceAddr> {
    pair.last(side, kind).source
}

fn expected(pair: &Pair, side: Side) -> Option<SourceAddr> {
    Some(SourceAddr { ip: pair.host(side).address.ip(), ifindex: IFINDEX })
}

/// A connected pair of which left has sent and received.
fn warm(outer: Family) -> Pair {
    let mut pair = Pair::connected(Setup { outer, ..Setup::default() }, Side::Left);
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(50));
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair
}

#[test]
fn the_first_message_has_no_source_address_and_later_ones_keep_to_the_one_the_peer_used() {
    for outer in Family::BOTH {
        let mut pair = Pair::with(Setup { outer, ..Setup::default() });
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        assert_eq!(last_source(&pair, Side::Left, Kind::Initiation), None);
        pair.run_for(secs(1));
        assert_eq!(last_source(&pair, Side::Left, Kind::Data), expected(&pair, Side::Left));
        assert_eq!(last_source(&pair, Side::Right, Kind::Response), expected(&pair, Side::Right));
        pair.send_numbered(Side::Right, Family::V4, 1, 100);
        assert_eq!(last_source(&pair, Side::Right, Kind::Data), expected(&pair, Side::Right));
    }
}

#[test]
fn all_sources_are_forgotten_together_and_learnt_again() {
    let mut pair = warm(Family::V4);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), expected(&pair, Side::Left));
    pair.configure(Side::Left, |engine, _, _| engine.forget_sources());
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), None);
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(1));
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), expected(&pair, Side::Left));
}

#[test]
fn one_source_is_forgotten_when_the_kernel_refused_it_and_no_other() {
    let mut pair = warm(Family::V6);
    let elsewhere = "[2001:db8::99]:1".parse().expect("an address and a port");
    pair.configure(Side::Left, |engine, _, _| engine.forget_sources_of(&[elsewhere]));
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), expected(&pair, Side::Left));
    let remote = pair.right().address;
    pair.configure(Side::Left, |engine, _, _| engine.forget_sources_of(&[remote]));
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), None);
}

#[test]
fn setting_an_endpoint_forgets_the_source_also_if_it_is_the_same_endpoint() {
    let mut pair = warm(Family::V4);
    let remote = pair.right().address;
    pair.configure(Side::Left, |engine, peer, now| engine.set_endpoint(peer, remote, now)).expect("it exists");
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), None);
}

#[test]
fn the_source_is_forgotten_when_answers_stay_away() {
    let mut pair = warm(Family::V4);
    pair.run_for(secs(40));
    pair.link.is_cut = true;
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Data), expected(&pair, Side::Left));
    pair.run_for(secs(16));
    assert_eq!(last_source(&pair, Side::Left, Kind::Initiation), None, "15 s without an answer");

    // An initiation that is not answered is repeated from an address the kernel chooses.
    let mut pair = warm(Family::V4);
    pair.run_for(secs(121));
    pair.link.is_cut = true;
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    assert_eq!(last_source(&pair, Side::Left, Kind::Initiation), expected(&pair, Side::Left));
    pair.run_for(secs(6));
    assert_eq!(last_source(&pair, Side::Left, Kind::Initiation), None);
}
