//! `wgd` against other WireGuards: wireguard-go, and the one inside a real Linux kernel.
//!
//! ```text
//!   near: wgd                                                far: wireguard-go, or a kernel in a machine of its own
//!   wg0        10.9.0.1  fd09::1                             wg0  10.9.0.2  fd09::2
//!   eth0/tap0  192.0.2.1 2001:db8::1 --------- cable ------- eth0 192.0.2.2 2001:db8::2
//! ```
//! Whoever initiates knows the other's endpoint; the other one learns.
#![cfg(not(virtual_time))]

#[path = "support/interop.rs"]
mod interop;
#[path = "support/netns.rs"]
mod netns;

use std::thread;
use std::time::{Duration, Instant};

use interop::{Family, Kind, Rig, Side, Terms};
use netns::{Keys, SOON, needs_namespaces, wait_until};

/// Ends the test early, with the reason printed, where such a peer cannot be had.
macro_rules! needs {
    ($kind:expr) => {
        needs_namespaces!();
        if let Some(reason) = $kind.skip() {
            netns::say(&format!("skipped: {reason}"));
            return;
        }
    };
}

// ----------------------------------------------------------------------------------------------------------- handshake

#[test]
fn wireguard_go_and_wgd_shake_hands_whoever_begins() {
    needs!(Kind::WireguardGo);
    shake_hands_in_every_way(Kind::WireguardGo);
}

#[test]
fn the_kernel_and_wgd_shake_hands_whoever_begins() {
    needs!(Kind::Kernel);
    shake_hands_in_every_way(Kind::Kernel);
}

/// Either side first, both families outside and inside, with and without a preshared key. The very first packet of the
/// tunnel arrives: it waits for the handshake that it causes.
fn shake_hands_in_every_way(kind: Kind) {
    let rig = Rig::new(kind);
    for initiator in [Side::Near, Side::Far] {
        for family in [Family::V4, Family::V6] {
            for preshared in [None, Some(Keys::preshared())] {
                let terms = Terms { initiator, family, preshared };
                rig.agree(&terms);
                assert!(rig.ping(initiator, Family::V4), "first packet, {terms:?}");
                assert!(rig.ping(initiator, Family::V6), "IPv6 inside, {terms:?}");
                assert!(rig.ping(initiator.other(), Family::V4), "the other direction, {terms:?}");
                let learned = rig.peer_line(initiator.other()).endpoint;
                assert_eq!(learned, rig.outer(initiator, family), "the responder learns the endpoint, {terms:?}");
            }
        }
    }
}

#[test]
fn different_preshared_keys_make_no_session_with_wireguard_go() {
    needs!(Kind::WireguardGo);
    let rig = Rig::new(Kind::WireguardGo);
    rig.agree(&Terms { initiator: Side::Near, family: Family::V4, preshared: Some(Keys::preshared()) });
    rig.set(Side::Far, &format!("peer {} preshared-key /dev/null", rig.public_key(Side::Near)));
    assert!(!rig.ping(Side::Near, Family::V4));
    assert_eq!(rig.peer_line(Side::Near).handshake, 0);
}

// ---------------------------------------------------------------------------------------------------------------- bulk

#[test]
fn bulk_data_arrives_from_and_at_wireguard_go() {
    needs!(Kind::WireguardGo);
    move_bulk_data(Kind::WireguardGo, 64);
}

#[test]
fn bulk_data_arrives_from_and_at_the_kernel() {
    needs!(Kind::Kernel);
    move_bulk_data(Kind::Kernel, 8);
}

/// TCP in both directions over both families, and echoes of every size around the limits of padding and MTU.
fn move_bulk_data(kind: Kind, megabytes: u32) {
    let rig = Rig::new(kind);
    rig.agree(&Terms { initiator: Side::Near, family: Family::V4, preshared: None });
    for target in ["10.9.0.2", "fd09::2"] {
        for reverse in ["", "-R"] {
            let report = rig.iperf(&format!("-n {megabytes}M {reverse}"), target);
            let bytes = |end: &str| report["end"][end]["bytes"].as_u64().unwrap_or_else(|| panic!("{report}"));
            let (sent, received, wanted) = (bytes("sum_sent"), bytes("sum_received"), u64::from(megabytes) << 20);
            // The receiver stops counting when the sender says it is done; what is still in its buffers is missing. A
            // sender that the other end tells to stop may have sent more than was wanted.
            assert!(
                received > wanted / 2 && received <= sent,
                "{received} of {sent} bytes, {wanted} wanted {reverse} {target}"
            );
        }
    }
    for size in (0..=34).chain(1_358..=1_392) {
        rig.near.sh(&format!("ping -q -n -M do -c 1 -W 5 -s {size} 10.9.0.2"));
    }
    assert!(!rig.near.try_sh("ping -q -n -M do -c 1 -W 1 -s 1393 10.9.0.2").status.success(), "the MTU is 1420");
}

// --------------------------------------------------------------------------------------------------------------- rekey

#[test]
fn a_session_that_wgd_began_is_renewed_after_two_minutes_without_loss_with_wireguard_go() {
    needs!(Kind::WireguardGo);
    renew(Kind::WireguardGo, Side::Near);
}

#[test]
fn a_session_that_wireguard_go_began_is_renewed_after_two_minutes_without_loss() {
    needs!(Kind::WireguardGo);
    renew(Kind::WireguardGo, Side::Far);
}

#[test]
fn a_session_that_wgd_began_is_renewed_after_two_minutes_without_loss_with_the_kernel() {
    needs!(Kind::Kernel);
    renew(Kind::Kernel, Side::Near);
}

#[test]
fn a_session_that_the_kernel_began_is_renewed_after_two_minutes_without_loss() {
    needs!(Kind::Kernel);
    renew(Kind::Kernel, Side::Far);
}

/// Ten echoes a second for longer than a session lives. On the way both sides get a preshared key: the running session is
/// not touched, and the next one uses it.
fn renew(kind: Kind, initiator: Side) {
    let rig = Rig::new(kind);
    rig.agree(&Terms { initiator, family: Family::V4, preshared: None });
    assert!(rig.ping(initiator, Family::V4));
    let first = rig.peer_line(Side::Near).handshake;
    let traffic = rig.start_traffic(initiator, 128);
    thread::sleep(Duration::from_secs(30));
    let preshared = Keys::preshared();
    rig.preshare(&preshared);
    let report = traffic.finish();
    assert!(report.lost == 0 && report.sent >= 1_200, "{report:?}");
    for side in [Side::Near, Side::Far] {
        let line = rig.peer_line(side);
        assert!((118..=127).contains(&(line.handshake - first)), "{side:?}: renewed after {}", line.handshake - first);
        assert_eq!(line.preshared_key, preshared);
    }
}

// ------------------------------------------------------------------------------------------------------------- roaming

#[test]
fn wireguard_go_and_wgd_follow_each_other_to_new_addresses() {
    needs!(Kind::WireguardGo);
    roam(Kind::WireguardGo);
}

#[test]
fn the_kernel_and_wgd_follow_each_other_to_new_addresses() {
    needs!(Kind::Kernel);
    roam(Kind::Kernel);
}

/// Each side in turn moves while it sends. What was under way to the old place is lost, and no more.
fn roam(kind: Kind) {
    let rig = Rig::new(kind);
    rig.agree(&Terms { initiator: Side::Near, family: Family::V4, preshared: None });
    assert!(rig.ping(Side::Near, Family::V4));
    let handshake = rig.peer_line(Side::Near).handshake;
    let move_far: (&dyn Fn(), &str) = match kind {
        // wireguard-go stays mute when the address that it answered from is gone; it can move to another port.
        Kind::WireguardGo => (&|| rig.set(Side::Far, "listen-port 40404"), "192.0.2.2:40404"),
        Kind::Kernel => (&|| rig.move_address(Side::Far, "192.0.2.2", "192.0.2.22"), "192.0.2.22:51820"),
    };
    let move_near: (&dyn Fn(), &str) =
        (&|| rig.move_address(Side::Near, "192.0.2.1", "192.0.2.11"), "192.0.2.11:51820");
    for (mover, (go, expected)) in [(Side::Near, move_near), (Side::Far, move_far)] {
        let traffic = rig.start_traffic(mover, 6);
        thread::sleep(Duration::from_secs(2));
        go();
        let report = traffic.finish();
        assert!(report.lost <= 5 && report.sent >= 50, "{mover:?} moves: {report:?}");
        wait_until("the other side has followed", SOON, || {
            (rig.peer_line(mover.other()).endpoint == expected).then_some(())
        });
    }
    assert_eq!(rig.peer_line(Side::Near).handshake, handshake, "moving calls for no handshake");
}

// ---------------------------------------------------------------------------------------------------- silent receivers

#[test]
fn one_way_traffic_makes_wgd_say_something_so_that_the_kernel_sees_no_dead_peer() {
    needs!(Kind::Kernel);
    receive_one_way(Kind::Kernel);
}

#[test]
fn one_way_traffic_makes_wgd_say_something_so_that_wireguard_go_sees_no_dead_peer() {
    needs!(Kind::WireguardGo);
    receive_one_way(Kind::WireguardGo);
}

/// The far side sends datagrams nobody answers. After 10 s of silence wgd owes an empty one; without it the far side would
/// begin a handshake after 15 s.
fn receive_one_way(kind: Kind) {
    let rig = Rig::new(kind);
    rig.agree(&Terms { initiator: Side::Far, family: Family::V4, preshared: None });
    assert!(rig.ping(Side::Far, Family::V4));
    rig.near.sh("nft add table inet quiet; nft add chain inet quiet input '{ type filter hook input priority 0; }'; nft add rule inet quiet input iifname wg0 drop");
    let before = rig.peer_line(Side::Near);
    let start = Instant::now();
    let traffic = rig.start_traffic(Side::Far, 40);
    let report = traffic.finish();
    assert_eq!(report.lost, report.sent, "nobody answered");
    let after = rig.peer_line(Side::Near);
    assert!(after.rx_bytes > before.rx_bytes && start.elapsed() > Duration::from_secs(30));
    let keepalives = (after.tx_bytes - before.tx_bytes) / 32;
    assert!((2..=4).contains(&keepalives), "{keepalives} keepalives in 40 s");
    assert_eq!(after.handshake, before.handshake, "a needless handshake");
}
