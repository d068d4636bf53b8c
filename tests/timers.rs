//! What happens by itself: rekeys, retransmissions, both kinds of keepalive, the end of keys. [W] 6.
//!
//! "Row n" in this and the other scenarios is row n of the table in `wg-core/src/tunnel.rs`: what boringtun does
//! differently, and where that is closed.
#![cfg(virtual_time)]

mod support;

use std::time::Duration;

use support::link::LinkConfig;
use support::oracle;
use support::pair::{Family, Kind, Pair, Setup, Side};
use wg_core::{DropReason, Event, Instant};

const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_JITTER: Duration = Duration::from_millis(333);
/// What the engine's wheel may add to a deadline.
const TICK: Duration = wg_core::deadlines::TICK;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Intervals between messages of one kind.
fn intervals(pair: &Pair, by: Side, kind: Kind) -> Vec<Duration> {
    let times: Vec<Instant> = pair.sent(by, kind).map(|sent| sent.at).collect();
    times.windows(2).map(|two| two[1].since(two[0])).collect()
}

fn set_keepalive(pair: &mut Pair, side: Side, seconds: u16) {
    pair.configure(side, |engine, peer, now| engine.set_persistent_keepalive(peer, seconds, now)).expect("it is there");
}

/// Row 39: boringtun stamps a session with the clock of its last poll.
#[test]
fn a_session_made_after_a_long_idle_time_lives_as_long_as_any() {
    for idle in [130, 170, 200, 300, 500, 539, 541, 600, 5000] {
        for initiator in Side::BOTH {
            let mut pair = Pair::connected(Setup::default(), Side::Left);
            pair.run_for(secs(idle));
            pair.wire.clear();
            // The session may be alive at 130 s and 170 s: then the initiator's packet asks for the next one.
            pair.run_with_traffic(secs(110), secs(1), &[(initiator, Family::V4), (initiator.other(), Family::V6)], 100);
            pair.run_for(secs(1));
            pair.assert_all_arrived_at(Side::Left);
            pair.assert_all_arrived_at(Side::Right);
            let handshakes = pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation);
            let allowed = if idle < 180 { 1..=1 } else { 1..=2 };
            assert!(allowed.contains(&handshakes), "{handshakes} initiations after {idle} s of silence");
        }
    }
}

/// Row 39, for a responder that then begins a handshake itself.
#[test]
fn a_session_accepted_after_a_long_idle_time_goes_on_while_the_responder_tries_to_renew_it() {
    for idle in [181, 300, 500, 600] {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        pair.run_for(secs(idle));
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        pair.run_for(secs(1));
        pair.wire.clear();
        // Nothing comes back, so that the responder tries a handshake after 15 s; its data passes all the time.
        let right = pair.right().address;
        pair.link.filter = Box::new(move |datagram| datagram.from == right && datagram.bytes[0] == 4);
        pair.run_with_traffic(secs(100), secs(1), &[(Side::Right, Family::V4)], 100);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Left);
        assert!(pair.count(Side::Right, Kind::Initiation) > 10);
    }
}

/// Row 13: boringtun measures the 15 s from the last thing received.
#[test]
fn a_request_with_its_reply_after_an_idle_time_makes_no_handshake() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    for _ in 0..4 {
        pair.run_for(secs(20));
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        pair.run_for(Duration::from_millis(30));
        pair.send_numbered(Side::Right, Family::V4, 1, 100);
    }
    pair.run_for(secs(15));
    assert_eq!(pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation), 0);
}

/// Rows 10 and 13: the listener's keepalive after 10 s keeps the talker from starting over after 15 s.
#[test]
fn one_packet_each_20_s_in_one_direction_makes_a_handshake_per_two_minutes_and_no_more() {
    for talker in Side::BOTH {
        let mut pair = Pair::with(Setup::default());
        pair.run_with_traffic(secs(900), secs(20), &[(talker, Family::V4)], 100);
        pair.assert_all_arrived_at(talker.other());
        let handshakes = pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation);
        assert!((5..=8).contains(&handshakes), "{handshakes} initiations");
    }
}

/// Row 10.
#[test]
fn a_listener_says_that_it_is_alive_ten_seconds_after_the_first_unanswered_packet() {
    for listener in Side::BOTH {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        pair.run_for(secs(30));
        pair.wire.clear();
        pair.send_numbered(listener.other(), Family::V6, 1, 100);
        let sent = pair.now;
        pair.run_for(secs(60));
        let arrived = sent + pair.link.config.latency;
        let keepalives: Vec<_> = pair.sent(listener, Kind::Keepalive).map(|sent| sent.at.since(arrived)).collect();
        assert!(
            keepalives.len() == 1 && (KEEPALIVE_TIMEOUT..=KEEPALIVE_TIMEOUT + TICK).contains(&keepalives[0]),
            "{keepalives:?}"
        );
        assert_eq!(pair.count(listener.other(), Kind::Keepalive), 0, "a keepalive is not answered");
        assert_eq!(pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation), 0);
    }
}

#[test]
fn a_listener_that_hears_more_meanwhile_repeats_its_keepalive_once_per_ten_seconds() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(30));
    pair.wire.clear();
    pair.run_with_traffic(secs(42), secs(2), &[(Side::Left, Family::V4)], 100);
    let gaps = intervals(&pair, Side::Right, Kind::Keepalive);
    assert_eq!(pair.count(Side::Right, Kind::Keepalive), 4);
    assert!(gaps.iter().all(|gap| (KEEPALIVE_TIMEOUT..=KEEPALIVE_TIMEOUT + secs(2) + TICK).contains(gap)), "{gaps:?}");
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 0);
}

#[test]
fn whoever_answers_within_ten_seconds_sends_no_keepalive() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    for _ in 0..5 {
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        pair.run_for(secs(9));
        pair.send_numbered(Side::Right, Family::V4, 1, 100);
        pair.run_for(secs(9));
    }
    assert_eq!(pair.count(Side::Left, Kind::Keepalive) + pair.count(Side::Right, Kind::Keepalive), 0);
}

/// Rows 4 and 13.
#[test]
fn a_talker_without_any_answer_starts_over_after_15_s_and_jitter() {
    for talker in Side::BOTH {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        pair.run_for(secs(40));
        pair.link.is_cut = true;
        pair.wire.clear();
        let first = pair.now;
        for _ in 0..14 {
            pair.send_numbered(talker, Family::V4, 1, 100);
            pair.run_for(secs(1));
        }
        pair.run_for(secs(2));
        let after = pair.last(talker, Kind::Initiation).at.since(first);
        assert!((secs(15)..=secs(15) + MAX_JITTER + TICK).contains(&after), "{after:?}");
        assert_eq!(pair.count(talker, Kind::Initiation), 1);
    }
}

/// Row 11, for 700 s.
#[test]
fn a_tunnel_with_nothing_but_keepalives_never_lacks_a_session() {
    for outer in Family::BOTH {
        for (left, right) in [(25, 0), (0, 25), (25, 25), (10, 0)] {
            let setup = Setup { outer, ..Setup::default() };
            let mut pair = Pair::with(setup);
            set_keepalive(&mut pair, Side::Left, left);
            set_keepalive(&mut pair, Side::Right, right);
            pair.run_for(secs(1));
            assert!(pair.left().state().last_handshake.is_some(), "the first keepalive goes out at once");
            let mut longest = Duration::ZERO;
            let end = pair.now + secs(700);
            while pair.now < end {
                pair.step(end);
                for side in Side::BOTH {
                    let last = pair.host(side).state().last_handshake.expect("there was one");
                    let now = support::pair::WALL_CLOCK_AT_START + pair.now.since(support::pair::START);
                    longest = longest.max(now - last);
                }
            }
            assert!(longest < secs(175), "{longest:?} without a new session");
            let handshakes = pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation);
            // Where both begin at the same moment, both are initiators and stay so.
            let most = if left == right { 14 } else { 7 };
            assert!((4..=most).contains(&handshakes), "{handshakes} initiations");
            assert_eq!(pair.count(Side::Left, Kind::Data) + pair.count(Side::Right, Kind::Data), 0);
        }
    }
}

#[test]
fn a_packet_passes_at_once_at_any_moment_of_a_tunnel_with_nothing_but_keepalives() {
    for moment in (5..700).step_by(13) {
        let mut pair = Pair::with(Setup::default());
        set_keepalive(&mut pair, Side::Left, 25);
        pair.run_for(secs(moment));
        for side in Side::BOTH {
            pair.send_numbered(side, Family::V4, 1, 100);
        }
        pair.run_for(Duration::from_millis(20));
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
    }
}

/// Row 11.
#[test]
fn a_persistent_keepalive_counts_from_the_last_authenticated_traffic_in_either_direction() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(30));
    set_keepalive(&mut pair, Side::Left, 25);
    assert_eq!(pair.count(Side::Left, Kind::Keepalive), 1, "turned on, one goes out at once");
    pair.run_for(secs(20));
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(50));
    pair.wire.clear();
    let heard = pair.now;
    pair.run_for(secs(26));
    // The passive keepalive at 10 s is traffic, too.
    let times: Vec<_> = pair.sent(Side::Left, Kind::Keepalive).map(|sent| sent.at.since(heard).as_secs()).collect();
    assert_eq!(times, [10]);
    pair.run_for(secs(10));
    let times: Vec<_> = pair.sent(Side::Left, Kind::Keepalive).map(|sent| sent.at.since(heard).as_secs()).collect();
    assert_eq!(times, [10, 35]);
    set_keepalive(&mut pair, Side::Left, 0);
    pair.wire.clear();
    pair.run_for(secs(100));
    assert_eq!(pair.count(Side::Left, Kind::Keepalive), 0, "turned off, it stays off");
}

#[test]
fn a_keepalive_that_found_no_room_is_tried_again_after_its_interval() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    set_keepalive(&mut pair, Side::Left, 25);
    // The other side's passive keepalive after 10 s puts it off to 35 s.
    pair.run_for(secs(30));
    pair.wire.clear();
    // The driver's sink is full when the deadline comes.
    pair.now += secs(6);
    let now = pair.now;
    let mut full = support::pair::Outbox::with_room(0);
    pair.configure(Side::Left, |engine, _, _| engine.handle_timeout(&mut full, now));
    assert_eq!(pair.left().peer_drops(DropReason::SinkFull), 1);
    pair.run_for(secs(26));
    assert_eq!(pair.count(Side::Left, Kind::Keepalive), 1);
}

/// Rows 6 and 11.
#[test]
fn with_a_persistent_keepalive_the_tunnel_comes_back_after_the_peer_was_away_for_long() {
    for interval in [5, 25, 60, 300] {
        let mut pair = Pair::with(Setup::default());
        set_keepalive(&mut pair, Side::Left, interval);
        pair.run_for(secs(30));
        pair.link.is_cut = true;
        pair.run_for(secs(1200));
        pair.link.is_cut = false;
        pair.wire.clear();
        let before = pair.right().state().last_handshake;
        let took =
            pair.run_until(secs(u64::from(interval)) + secs(6), |pair| pair.right().state().last_handshake != before);
        assert!(took <= secs(u64::from(interval)) + secs(1), "{took:?} with an interval of {interval}");
        pair.send_numbered(Side::Right, Family::V6, 3, 100);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Left);
    }
}

/// Rows 4, 5 and 6.
#[test]
fn an_unanswered_initiation_is_repeated_19_times_each_after_5_s_and_jitter_then_given_up() {
    let (mut shortest, mut longest) = (secs(99), Duration::ZERO);
    for seed in 0..8 {
        let mut pair = Pair::new(seed);
        pair.link.is_cut = true;
        pair.send_numbered(Side::Left, Family::V4, 3, 100);
        pair.run_for(secs(89));
        assert_eq!(pair.left().drops(DropReason::StagedExpired), 0);
        assert_eq!(pair.left().state().staged_packets, 3);
        pair.run_for(secs(300));
        assert_eq!(pair.count(Side::Left, Kind::Initiation), 20);
        assert_eq!(pair.left().peer_drops(DropReason::StagedExpired), 3);
        assert_eq!(pair.left().drops(DropReason::StagedExpired), 3);
        assert_eq!(pair.left().state().staged_packets, 0);
        let gave_up = Event::HandshakeGaveUp { peer: pair.right().public_key() };
        assert_eq!(pair.left().events(), [gave_up]);
        for gap in intervals(&pair, Side::Left, Kind::Initiation) {
            assert!((REKEY_TIMEOUT..=REKEY_TIMEOUT + MAX_JITTER + TICK).contains(&gap), "{gap:?}");
            (shortest, longest) = (shortest.min(gap), longest.max(gap));
        }
    }
    assert!(longest - shortest > Duration::from_millis(150), "no jitter between {shortest:?} and {longest:?}");
}

/// Row 6.
#[test]
fn new_traffic_begins_anew_after_an_attempt_was_given_up() {
    let mut pair = Pair::new(3);
    pair.link.is_cut = true;
    pair.send_numbered(Side::Left, Family::V4, 3, 100);
    pair.run_for(secs(200));
    pair.link.is_cut = false;
    pair.forget_packets();
    pair.send_numbered(Side::Left, Family::V4, 3, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Right);
}

/// Row 6: boringtun wipes working sessions when it gives up.
#[test]
fn a_working_session_survives_handshakes_that_come_to_nothing() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(60));
    // Handshakes are lost, data passes.
    pair.link.filter = Box::new(|datagram| datagram.bytes[0] == 4);
    pair.run_with_traffic(secs(119), secs(1), &[(Side::Left, Family::V4), (Side::Right, Family::V4)], 100);
    pair.assert_all_arrived_at(Side::Left);
    pair.assert_all_arrived_at(Side::Right);
    assert!(pair.count(Side::Left, Kind::Initiation) >= 10);
}

/// Row 6: boringtun wipes working sessions after 90 s of trying.
#[test]
fn a_session_whose_handshakes_fail_for_two_minutes_goes_on_sending() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    // Nothing comes back: the initiator tries anew after 15 s, and its data passes all the time.
    let left = pair.left().address;
    pair.link.filter = Box::new(move |datagram| datagram.from == left && datagram.bytes[0] == 4);
    pair.run_with_traffic(secs(178), secs(1), &[(Side::Left, Family::V4)], 100);
    pair.assert_all_arrived_at(Side::Right);
    assert!(pair.count(Side::Left, Kind::Initiation) > 25, "it tried all the time");
}

/// Row 12: boringtun rekeys a session that nobody uses.
#[test]
fn an_idle_tunnel_sends_nothing_at_all_and_is_forgotten_after_nine_minutes() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(15));
    let _ = (pair.left().events(), pair.right().events());
    pair.wire.clear();
    pair.run_for(secs(520));
    for side in Side::BOTH {
        assert!(pair.host(side).state().is_live);
    }
    pair.run_for(secs(10));
    for side in Side::BOTH {
        assert!(!pair.host(side).state().is_live, "its keys are wiped after 540 s");
        let peer = pair.host(side.other()).public_key();
        assert_eq!(pair.host(side).events(), [Event::KeysWiped { peer }]);
    }
    pair.run_for(secs(10_000));
    assert_eq!(pair.wire.len(), 0);
    for side in Side::BOTH {
        assert_eq!(pair.host(side).engine.poll_timeout(), None, "nothing is armed for a peer without keys");
    }
}

/// Row 12: the initiator rekeys when it sends at 120 s or hears at 165 s, the responder never.
#[test]
fn the_initiator_rekeys_when_it_sends_after_120_s() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    let established = pair.now;
    pair.run_with_traffic(secs(130), Duration::from_millis(100), &[(Side::Left, Family::V4)], 100);
    let after = pair.last(Side::Left, Kind::Initiation).at.since(established);
    assert!((secs(119)..secs(121)).contains(&after), "{after:?}");
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 1);
    assert_eq!(pair.count(Side::Right, Kind::Initiation), 0);
}

/// Row 12.
#[test]
fn the_initiator_rekeys_when_it_hears_something_after_165_s() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    let established = pair.now;
    // The responder sends often enough for the initiator to owe keepalives, which ask for a rekey at 120 s as any
    // message sent does; so nothing is said until 166 s.
    pair.run_for(secs(160));
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(secs(1));
    assert_eq!(pair.count(Side::Left, Kind::Initiation), 0);
    pair.run_for(secs(5));
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(25));
    let after = pair.last(Side::Left, Kind::Initiation).at.since(established);
    assert!((secs(165)..secs(167)).contains(&after), "{after:?}");
    assert_eq!(pair.count(Side::Right, Kind::Initiation), 0);
}

/// Row 3.
#[test]
fn a_session_of_180_s_is_used_in_neither_direction() {
    for sender in Side::BOTH {
        let mut pair = Pair::connected(Setup::default(), Side::Left);
        // Data of the last moment, delivered when it is too late; a successor is not to come meanwhile.
        pair.link.filter = Box::new(|datagram| datagram.bytes[0] == 4);
        pair.link.config.latency = secs(3);
        pair.run_for(secs(178));
        pair.send_numbered(sender, Family::V4, 1, 100);
        assert_eq!(pair.count(sender, Kind::Data), 1, "sent while the session was good");
        pair.run_for(secs(3));
        assert_eq!(pair.host(sender.other()).delivered.len(), 0);
        assert_eq!(pair.host(sender.other()).drops(DropReason::SessionExpired), 1);
        assert_eq!(pair.host(sender.other()).peer_drops(DropReason::SessionExpired), 1);
        pair.wire.clear();
        pair.forget_packets();
        pair.send_numbered(sender, Family::V4, 1, 100);
        assert_eq!(pair.count(sender, Kind::Data), 0, "nothing leaves on an old session");
        pair.link.config.latency = Duration::from_millis(20);
        pair.link.filter = Box::new(|_| true);
        pair.run_for(secs(10));
        pair.assert_all_arrived_at(sender.other());
    }
}

/// Row 41, and the gate of row 5: both begin at the same time.
#[test]
fn two_simultaneous_initiations_make_one_working_tunnel() {
    for seed in 0..4 {
        let mut pair = Pair::new(seed);
        for _ in 0..700 {
            for side in Side::BOTH {
                pair.send_numbered(side, Family::V4, 2, 100);
            }
            pair.run_for(secs(1));
        }
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
        for side in Side::BOTH {
            let count = pair.count(side, Kind::Initiation);
            assert!((1..=7).contains(&count), "{side:?} sent {count} initiations in 700 s");
        }
    }
}

#[test]
fn a_rekey_under_traffic_loses_and_reorders_nothing() {
    for outer in Family::BOTH {
        let mut pair = Pair::connected(Setup { outer, ..Setup::default() }, Side::Left);
        let senders = [(Side::Left, Family::V4), (Side::Right, Family::V6)];
        pair.run_with_traffic(secs(700), Duration::from_millis(10), &senders, 300);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
        let handshakes = pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation);
        assert_eq!(handshakes, 5, "initiations after the first, one each 120 s");
    }
}

#[test]
fn under_loss_reordering_and_duplication_nothing_arrives_twice_and_only_the_link_loses() {
    for (seed, loss) in [(1, 0), (2, 5), (3, 20)] {
        let link = LinkConfig { loss, reordering: 30, duplication: 20, ..LinkConfig::default() };
        let mut pair = Pair::connected(Setup { seed, link, ..Setup::default() }, Side::Right);
        pair.run_with_traffic(secs(600), Duration::from_millis(20), &[(Side::Left, Family::V4)], 200);
        pair.run_for(secs(1));
        let mut numbers = pair.right().numbers();
        let arrived = numbers.len();
        let is_reordered = !numbers.is_sorted();
        numbers.sort_unstable();
        numbers.dedup();
        assert!(is_reordered && numbers.len() == arrived, "the network reorders, and nothing comes twice");
        let replays = pair.right().drops(DropReason::Replay);
        assert!(replays > 3000, "{replays} duplicates");
        assert_eq!(pair.right().peer_drops(DropReason::Replay), replays);
        let expected = 30_000 * (100 - u64::from(loss)) / 100;
        let arrived = arrived as u64;
        // Three standard deviations of the link's own loss, and a second's packets around lost handshakes.
        assert!(arrived.abs_diff(expected) < 260, "{arrived} of {expected} arrived with a loss of {loss} %");
    }
}

/// In boringtun a late response leaves its own timer running.
#[test]
fn a_response_that_comes_too_late_costs_one_more_handshake_and_no_session() {
    for one_way in [2400, 2600, 2750, 3000] {
        let mut pair = Pair::new(one_way);
        pair.link.config.latency = Duration::from_millis(one_way);
        pair.send_numbered(Side::Left, Family::V4, 2, 100);
        pair.run_for(secs(5) + MAX_JITTER + TICK);
        pair.link.config.latency = Duration::from_millis(20);
        pair.run_for(secs(6));
        pair.assert_all_arrived_at(Side::Right);
        let handshakes = pair.count(Side::Left, Kind::Initiation);
        assert!(handshakes <= 3, "{handshakes} initiations");
        pair.wire.clear();
        pair.run_for(secs(90));
        assert_eq!(pair.count(Side::Left, Kind::Initiation) + pair.count(Side::Right, Kind::Initiation), 0);
        pair.send_numbered(Side::Right, Family::V4, 2, 100);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Left);
        assert_eq!(pair.count(Side::Right, Kind::Initiation), 0, "the session is still there");
    }
}

/// Row 14: handshakes whose responses are lost must not make the responder send on keys nobody has.
#[test]
fn lost_responses_make_the_responder_wait_and_not_send_into_the_void() {
    let mut pair = Pair::connected(Setup::default(), Side::Left);
    pair.run_for(secs(100));
    pair.link.filter = Box::new(|datagram| datagram.bytes[0] != 2);
    let both = [(Side::Left, Family::V4), (Side::Right, Family::V4)];
    pair.run_with_traffic(secs(75), secs(1), &both, 100);
    assert!(pair.count(Side::Right, Kind::Response) >= 9, "enough to go round the ring of eight sessions");
    pair.link.filter = Box::new(|_| true);
    pair.run_with_traffic(secs(20), secs(1), &both, 100);
    pair.run_for(secs(1));
    pair.assert_all_arrived_at(Side::Left);
}

/// Row 5.
#[test]
fn initiations_are_never_closer_than_five_seconds_whatever_asks_for_them() {
    for seed in 0..3 {
        let link = LinkConfig { loss: 60, ..LinkConfig::default() };
        let mut pair = Pair::with(Setup { seed, link, ..Setup::default() });
        set_keepalive(&mut pair, Side::Left, 3);
        pair.run_with_traffic(secs(600), Duration::from_millis(700), &[(Side::Left, Family::V4)], 100);
        for gap in intervals(&pair, Side::Left, Kind::Initiation) {
            assert!(gap >= REKEY_TIMEOUT, "{gap:?}");
        }
        assert!(pair.count(Side::Left, Kind::Initiation) > 10);
    }
}

/// Row 5: a response counts, too.
#[test]
fn whoever_has_just_answered_an_initiation_does_not_begin_one() {
    let mut pair = Pair::new(9);
    // The responder's packets stay staged, since the initiator's confirmation is lost.
    pair.link.filter = Box::new(|datagram| datagram.bytes[0] != 4);
    pair.send_numbered(Side::Left, Family::V4, 1, 100);
    pair.run_for(Duration::from_millis(100));
    pair.send_numbered(Side::Right, Family::V4, 1, 100);
    let answered = pair.last(Side::Right, Kind::Response).at;
    pair.run_for(secs(6));
    let began = pair.last(Side::Right, Kind::Initiation).at.since(answered);
    assert!((REKEY_TIMEOUT..=REKEY_TIMEOUT + MAX_JITTER + TICK).contains(&began), "{began:?}");
    assert_eq!(pair.count(Side::Right, Kind::Initiation), 1);
}

/// Row 8.
#[test]
fn a_responders_staged_packets_leave_on_confirmation_and_before_newer_ones() {
    for outer in Family::BOTH {
        let mut pair = Pair::with(Setup { outer, ..Setup::default() });
        pair.link.is_cut = true;
        pair.send_numbered(Side::Right, Family::V4, 5, 100);
        pair.link.clear();
        pair.link.is_cut = false;
        pair.run_for(secs(1));
        pair.send_numbered(Side::Left, Family::V4, 1, 100);
        pair.run_until(secs(1), |pair| pair.count(Side::Right, Kind::Response) == 1);
        assert_eq!(pair.count(Side::Right, Kind::Data), 0, "nothing is sent before the initiator has confirmed");
        pair.run_until(secs(1), |pair| pair.count(Side::Right, Kind::Data) == 5);
        pair.send_numbered(Side::Right, Family::V4, 5, 100);
        pair.run_for(secs(1));
        pair.assert_all_arrived_at(Side::Left);
        pair.assert_all_arrived_at(Side::Right);
    }
}

/// Row 9: the keepalive confirms the session only where no packet can.
#[test]
fn an_initiator_without_packets_confirms_with_a_keepalive() {
    let mut pair = Pair::new(4);
    set_keepalive(&mut pair, Side::Left, 25);
    pair.run_for(Duration::from_millis(100));
    assert_eq!(pair.count(Side::Left, Kind::Keepalive), 1);
    assert!(pair.right().state().last_handshake.is_some());
    let counter = oracle::le32(&pair.last(Side::Left, Kind::Keepalive).head, 8);
    assert_eq!(counter, 0, "it is the session's first message");
}
