//! `wgd` in the place of the kernel module, under Debian's `wg` and `wg-quick`: what a host's operator relies on.
//!
//! ```text
//!   left                                           right
//!   wg0  10.9.0.1  fd09::1                         wg0  10.9.0.2  fd09::2
//!   eth0 192.0.2.1 2001:db8::1 ------ cable ------ eth0 192.0.2.2 2001:db8::2
//! ```
#![cfg(not(virtual_time))]

#[path = "support/netns.rs"]
mod netns;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netns::{Daemon, Host, Keys, Process, SOON, cable, needs_namespaces, wait_until};

const TENTH: Duration = Duration::from_millis(100);

/// "Within a second", with an allowance for a machine that runs other tests too.
const A_SECOND: Duration = Duration::from_secs(3);

// ------------------------------------------------------------------------------------------------- up, down and files

#[test]
fn wg_quick_up_makes_a_tunnel_and_down_leaves_nothing() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    for target in ["10.9.0.2", "fd09::2"] {
        tunnel.left.reach(target);
    }
    let daemon = tunnel.left_daemon();

    let before = Instant::now();
    tunnel.left.wg_quick(Daemon::Wgd, "down", "wg0");
    println!(
        "wg-quick down returned after {:?}; wgd was gone {:?} later",
        before.elapsed(),
        daemon.ends_within(A_SECOND)
    );
    assert_nothing_left(&tunnel.left);
}

#[test]
fn show_tells_keys_times_and_bytes_as_the_kernel_does() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    assert_eq!(tunnel.left.first_peer("wg0").handshake, 0, "nobody has sent anything yet");
    tunnel.left.reach("10.9.0.2");

    assert_eq!(tunnel.left.sh("wg show wg0 public-key"), tunnel.left_keys.public);
    assert_eq!(tunnel.left.sh("wg show wg0 private-key"), tunnel.left_keys.private);
    let interface = format!("{}\t{}\t51820\toff", tunnel.left_keys.private, tunnel.left_keys.public);
    assert_eq!(tunnel.left.sh("wg show wg0 dump").lines().next(), Some(interface.as_str()));
    let peer = tunnel.left.first_peer("wg0");
    assert_eq!(peer.public_key, tunnel.right_keys.public);
    assert_eq!(peer.preshared_key, "(none)");
    assert_eq!(peer.endpoint, "192.0.2.2:51820");
    assert_eq!(peer.allowed_ips, "10.9.0.2/32,fd09::2/128");
    assert_eq!(peer.keepalive, "off");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(now.abs_diff(peer.handshake) < 30, "handshake at {}, now {now}", peer.handshake);
}

#[test]
fn transfer_counts_the_bytes_of_whole_datagrams() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    // The handshake's own keepalive may still be under way: wait for both sides to agree.
    let counts = |host: &Host| (host.first_peer("wg0").tx_bytes, host.first_peer("wg0").rx_bytes);
    let (sent, received) = wait_until("both ends count the same", SOON, || {
        let (left, right) = (counts(&tunnel.left), counts(&tunnel.right));
        (left.0 == right.1 && left.1 == right.0).then_some(left)
    });
    assert!(tunnel.left.ping("10.9.0.2", SOON));
    // An echo of 64 bytes is a packet of 84, padded to 96, in transport data of 32 bytes more.
    let after = counts(&tunnel.left);
    assert_eq!((after.0 - sent, after.1 - received), (128, 128));
}

#[test]
fn showconf_gives_back_what_setconf_was_told() {
    needs_namespaces!();
    let host = Host::new("left");
    host.start(Daemon::Wgd, "wg0");
    let (own, peer, preshared) = (Keys::new(), Keys::new(), Keys::preshared());
    let conf = format!(
        "[Interface]\nListenPort = 4711\nFwMark = 0x2a\nPrivateKey = {}\n\n\
         [Peer]\nPublicKey = {}\nPresharedKey = {preshared}\nAllowedIPs = 10.0.0.0/8, fd00::/8\n\
         Endpoint = [2001:db8::9]:99\nPersistentKeepalive = 25",
        own.private, peer.public
    );
    host.write_conf("told", &conf);
    host.sh("ip link set wg0 up; wg setconf wg0 /etc/wireguard/told.conf");
    assert_eq!(host.sh("wg showconf wg0"), conf);
}

#[test]
fn save_keeps_the_private_key_and_the_saved_file_works() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    let with_save =
        tunnel.left.read_conf("wg0").replace("[Interface]\n", "[Interface]\nSaveConfig = true\nPostUp = true %i\n");
    tunnel.left.write_conf("wg0", &with_save);
    tunnel.up();
    tunnel.left.sh(&format!("wg set wg0 peer {} persistent-keepalive 21", tunnel.right_keys.public));
    tunnel.left.wg_quick(Daemon::Wgd, "save", "wg0");
    let saved = tunnel.left.read_conf("wg0");
    for line in [
        &format!("PrivateKey = {}", tunnel.left_keys.private),
        &format!("PublicKey = {}", tunnel.right_keys.public),
        "PersistentKeepalive = 21",
        "AllowedIPs = 10.9.0.2/32, fd09::2/128",
        "Endpoint = 192.0.2.2:51820",
        "ListenPort = 51820",
        "PostUp = true %i",
        "MTU = 1420",
    ] {
        assert!(saved.lines().any(|saved_line| saved_line == line), "no {line:?} in\n{saved}");
    }
    let daemon = tunnel.left_daemon();
    tunnel.left.wg_quick(Daemon::Wgd, "down", "wg0");
    daemon.ends_within(A_SECOND);
    tunnel.left.wg_quick(Daemon::Wgd, "up", "wg0");
    tunnel.left.reach("10.9.0.2");
}

#[test]
fn syncconf_of_the_same_file_changes_nothing() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("fd09::2");
    let settings = |host: &Host| host.sh("wg showconf wg0; wg show wg0 latest-handshakes");
    let before = settings(&tunnel.left);
    for _ in 0..3 {
        tunnel.left.sh("wg syncconf wg0 <(wg-quick strip wg0)");
    }
    assert_eq!(settings(&tunnel.left), before);
}

#[test]
fn syncconf_adds_a_peer_that_takes_a_prefix_and_removes_one_that_is_gone() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    let thief = Keys::new();
    let original = tunnel.left.read_conf("wg0");
    let with_thief = format!("{original}\n[Peer]\nPublicKey = {}\nAllowedIPs = fd09::2/128\n", thief.public);
    tunnel.left.write_conf("wg0", &with_thief);
    tunnel.left.sh("wg syncconf wg0 <(wg-quick strip wg0)");
    assert_eq!(tunnel.left.peer("wg0", &tunnel.right_keys.public).allowed_ips, "10.9.0.2/32");
    assert_eq!(tunnel.left.peer("wg0", &thief.public).allowed_ips, "fd09::2/128");
    assert!(tunnel.left.ping("10.9.0.2", SOON), "the other prefix stays where it was");
    assert!(!tunnel.left.ping("fd09::2", TENTH), "the thief has no endpoint");

    tunnel.left.write_conf("wg0", &original);
    tunnel.left.sh("wg syncconf wg0 <(wg-quick strip wg0)");
    assert_eq!(tunnel.left.sh("wg show wg0 peers"), tunnel.right_keys.public);
    assert!(tunnel.left.ping("fd09::2", SOON), "the prefix is back");
}

#[test]
fn a_link_that_is_down_keeps_its_settings_and_binds_nothing_until_it_is_up() {
    needs_namespaces!();
    // The order of newer wg-quicks: the interface, `wg addconf` while it is down, addresses, and the link comes up last.
    let tunnel = Tunnel::new();
    tunnel.right.wg_quick(Daemon::Wgd, "up", "wg0");
    let left = &tunnel.left;
    left.start(Daemon::Wgd, "wg0");
    left.sh("wg addconf wg0 <(wg-quick strip wg0)");
    assert_eq!(left.sh("ss -Hlun"), "", "no socket while the link is down");
    assert_eq!(left.sh("wg show wg0 listen-port"), "51820");
    left.sh("ip address add 10.9.0.1/24 dev wg0 && ip link set mtu 1420 up dev wg0");
    left.reach("10.9.0.2");
    assert!(left.sh("ss -Hlun").contains(":51820"));

    left.sh("ip link set wg0 down");
    wait_until("the sockets are closed", SOON, || left.sh("ss -Hlun").is_empty().then_some(()));
    left.sh("ip link set wg0 up");
    left.reach("10.9.0.2");
}

#[test]
fn a_full_tunnel_carries_everything_but_its_own_datagrams_and_goes_without_a_trace() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    let (left, right) = (&tunnel.left, &tunnel.right);
    // What lies behind the right host can be reached on both ways, so only the rules decide.
    right.sh("ip addr add 203.0.113.99/32 dev lo; ip addr add 2001:db8:99::99/128 dev lo");
    left.sh("ip route add default via 192.0.2.2; ip route add default via 2001:db8::2");
    right.sh("nft -f - <<'END'\ntable inet watch { chain input { type filter hook input priority 0
        iifname eth0 icmp type echo-request counter
        iifname eth0 icmpv6 type echo-request counter
        }
    }\nEND");
    let conf = left.read_conf("wg0").replace("10.9.0.2/32, fd09::2/128", "0.0.0.0/0, ::/0");
    left.write_conf("wg0", &conf);
    let rules = "ip rule; ip -6 rule; ip route; ip -6 route show table main | sort; nft list ruleset";
    let before = left.sh(rules);
    tunnel.up();
    assert_eq!(left.sh("wg show wg0 fwmark"), "0xca6c");
    for target in ["203.0.113.99", "2001:db8:99::99"] {
        left.reach(target);
        assert!(left.sh(&format!("ip route get {target}")).contains("dev wg0"));
    }
    let outside = right.sh("nft list table inet watch");
    assert_eq!(outside.matches("counter packets 0 bytes 0").count(), 2, "nothing went around the tunnel:\n{outside}");
    left.wg_quick(Daemon::Wgd, "down", "wg0");
    assert_eq!(left.sh(rules), before);
}

// ------------------------------------------------------------------------------------------- changes while traffic runs

#[test]
fn no_change_of_settings_loses_a_packet_or_the_session() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    let (left, right) = (&tunnel.left, &tunnel.right);
    right.sh("ip addr add 192.0.2.22/24 dev eth0");
    tunnel.up();
    left.reach("10.9.0.2");
    let handshakes = || (left.first_peer("wg0").handshake, right.first_peer("wg0").handshake);
    let before = handshakes();
    let pings = left.ping_every(TENTH, "10.9.0.2");
    let (left_key, right_key) = (&tunnel.left_keys.public, &tunnel.right_keys.public);
    let preshared = Keys::preshared();
    let set_peer = |settings: &str| format!("wg set wg0 peer {right_key} {settings}");
    pings.wait_for(5);

    left.sh(&set_peer("endpoint 192.0.2.22:51820"));
    pings.wait_for(5);
    assert_eq!(left.first_peer("wg0").endpoint, "192.0.2.22:51820", "answers come from where the questions went");
    left.sh(&set_peer("endpoint [2001:db8::2]:51820"));
    pings.wait_for(5);
    assert_eq!(right.first_peer("wg0").endpoint, "[2001:db8::1]:51820");
    left.sh(&set_peer("allowed-ips 10.9.0.2/32,fd09::2/128,10.77.0.0/24"));
    pings.wait_for(5);
    let plus = format!("set=1\npublic_key={}\nallowed_ip=10.78.0.0/24\n\n", hex_key(left, right_key));
    assert_eq!(ask(left, &plus), "errno=0\n\n");
    pings.wait_for(5);
    assert_eq!(left.first_peer("wg0").allowed_ips, "10.9.0.2/32,fd09::2/128,10.77.0.0/24,10.78.0.0/24");
    left.sh("wg set wg0 fwmark 51820");
    pings.wait_for(5);
    left.sh("wg set wg0 fwmark 0");
    pings.wait_for(5);
    left.sh("wg set wg0 listen-port 40404");
    pings.wait_for(5);
    assert_eq!(right.first_peer("wg0").endpoint, "[2001:db8::1]:40404");
    for (host, peer) in [(left, right_key), (right, left_key)] {
        host.sh(&format!("wg set wg0 peer {peer} preshared-key <(echo {preshared})"));
        pings.wait_for(5);
        assert_eq!(host.first_peer("wg0").preshared_key, preshared);
    }
    left.sh(&set_peer("persistent-keepalive 25"));
    pings.wait_for(5);
    for host in [left, right] {
        host.sh("wg syncconf wg0 <(wg-quick strip wg0)");
        pings.wait_for(5);
    }
    assert_eq!(left.sh("wg show wg0 listen-port"), "51820", "syncconf went back to the file");
    left.sh("ip link set wg0 mtu 1380");
    pings.wait_for(5);

    pings.finish().assert_nothing_lost(50);
    assert_eq!(handshakes(), before, "not one of these changes calls for a handshake");
}

/// No handshake succeeds any more.
fn preshare_on_the_left_alone(tunnel: &Tunnel) {
    let (peer, preshared) = (&tunnel.right_keys.public, Keys::preshared());
    tunnel.left.sh(&format!("wg set wg0 peer {peer} preshared-key <(echo {preshared})"));
}

const DOWN_AND_UP: &str = "ip link set wg0 down; ip link set wg0 up; ip route replace 10.9.0.0/24 dev wg0";

#[test]
fn a_preshared_key_on_one_side_alone_stops_the_next_handshake_only() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    preshare_on_the_left_alone(&tunnel);
    assert!(tunnel.left.ping("10.9.0.2", SOON), "the session goes on");
    tunnel.left.sh(DOWN_AND_UP);
    assert!(!tunnel.left.ping("10.9.0.2", Duration::from_secs(2)), "a new session needs the same key on both sides");
}

#[test]
fn a_link_that_was_down_for_a_moment_has_no_session_left() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    preshare_on_the_left_alone(&tunnel);
    // A daemon that cannot look meanwhile hears of both changes at once.
    let daemon = tunnel.left_daemon();
    daemon.signal("STOP");
    tunnel.left.sh(DOWN_AND_UP);
    daemon.signal("CONT");
    assert!(!tunnel.left.ping("10.9.0.2", Duration::from_secs(2)), "the session outlived its link");
}

#[test]
fn a_new_private_key_ends_the_sessions_and_removes_the_peer_that_has_it() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    let new = Keys::new();
    tunnel.left.sh(&format!("wg set wg0 private-key <(echo {})", new.private));
    assert_eq!(tunnel.left.sh("wg show wg0 public-key"), new.public);
    assert!(!tunnel.left.ping("10.9.0.2", Duration::from_secs(1)), "the right host does not know the new key");
    tunnel.right.sh(&format!("wg set wg0 peer {} allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820", new.public));
    tunnel.right.reach("10.9.0.1");

    tunnel.left.sh(&format!("wg set wg0 private-key <(echo {})", tunnel.right_keys.private));
    assert_eq!(tunnel.left.sh("wg show wg0 peers"), "");
}

// ------------------------------------------------------------------------------------------------------- the process

#[test]
fn the_daemon_ends_with_its_link_its_socket_and_its_signals_and_leaves_nothing() {
    needs_namespaces!();
    let host = Host::new("host");
    let causes: [(&str, &dyn Fn(Process)); 4] = [
        ("link deleted", &|_| drop(host.sh("ip link delete wg0"))),
        ("socket deleted", &|_| drop(host.sh("rm /run/wireguard/wg0.sock"))),
        ("SIGTERM", &|daemon| daemon.signal("TERM")),
        ("SIGINT", &|daemon| daemon.signal("INT")),
    ];
    for (name, cause) in causes {
        for is_up in [false, true] {
            let daemon = host.start(Daemon::Wgd, "wg0");
            if is_up {
                host.sh("ip link set wg0 up");
            }
            cause(daemon);
            println!("{name}, link up: {is_up}: gone after {:?}", daemon.ends_within(A_SECOND));
            assert_nothing_left(&host);
        }
    }
}

#[test]
fn the_socket_is_for_its_owner_alone_and_its_folder_for_all() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    assert_eq!(host.sh("stat -c %a /run/wireguard /run/wireguard/wg0.sock"), "755\n700");
}

#[test]
fn a_second_daemon_is_refused_and_does_no_harm_and_a_dead_socket_is_replaced() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    let program = Daemon::Wgd.program();
    let second = tunnel.left.try_sh(&format!("{} wg0", program.display()));
    assert!(!second.status.success(), "two daemons cannot serve one interface");
    assert!(tunnel.left.ping("10.9.0.2", SOON), "the first one goes on");
    assert_eq!(tunnel.left.processes(&Daemon::Wgd.process_name()).len(), 1);

    let daemon = tunnel.left_daemon();
    daemon.signal("KILL");
    daemon.ends_within(A_SECOND);
    assert!(tunnel.left.path("/run/wireguard/wg0.sock").exists(), "who is killed cannot clean up");
    wait_until("the link is gone", SOON, || (!tunnel.left.try_sh("ip link show wg0").status.success()).then_some(()));
    tunnel.left.wg_quick(Daemon::Wgd, "up", "wg0");
    tunnel.left.reach("10.9.0.2");
}

#[test]
fn in_the_foreground_it_stays_the_same_process_until_it_is_told() {
    needs_namespaces!();
    let host = Host::new("host");
    let program = Daemon::Wgd.program();
    let program = program.to_str().expect("a path in UTF-8");
    for (arguments, variable) in [(vec!["-f", "wg0"], "0"), (vec!["--foreground", "wg0"], "0"), (vec!["wg0"], "1")] {
        let mut command = host.command(program);
        let mut running = netns::Running::start(command.args(&arguments).env("WG_PROCESS_FOREGROUND", variable));
        wait_until("the socket is there", SOON, || host.path("/run/wireguard/wg0.sock").exists().then_some(()));
        wait_until("wg can talk to it", SOON, || host.try_sh("wg show wg0").status.success().then_some(()));
        assert_eq!(host.processes(&Daemon::Wgd.process_name()), [running.process()]);
        running.process().signal("TERM");
        assert_eq!(running.exit_code(SOON), Some(0), "{arguments:?}");
        assert_nothing_left(&host);
    }
}

#[test]
fn the_daemon_keeps_few_privileges_and_still_changes_mark_and_port() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    let daemon = tunnel.left_daemon();
    for set in ["CapEff", "CapPrm", "CapInh"] {
        let held = u64::from_str_radix(&daemon.status(set).expect("a line"), 16).expect("hexadecimal");
        let unneeded = held & !(CAP_NET_ADMIN | CAP_NET_BIND_SERVICE | CAP_SYS_NICE);
        assert_eq!(unneeded, 0, "{set} is {held:#x}");
    }
    for settings in ["fwmark 7", "listen-port 443", "fwmark 0", "listen-port 51820", "listen-port 0"] {
        tunnel.left.sh(&format!("wg set wg0 {settings}"));
        assert!(tunnel.left.ping("10.9.0.2", SOON), "after {settings}");
    }
    assert_ne!(tunnel.left.sh("wg show wg0 listen-port"), "0", "the port that was picked is told");
}

const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_NICE: u64 = 1 << 23;

#[test]
fn a_host_without_ipv6_has_a_tunnel_all_the_same() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.left.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let conf = tunnel.left.read_conf("wg0").replace(", fd09::1/64", "").replace(", fd09::2/128", "");
    tunnel.left.write_conf("wg0", &conf);
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    tunnel.left.sh("wg set wg0 listen-port 40404");
    assert!(tunnel.left.ping("10.9.0.2", SOON));
}

#[test]
fn a_link_that_moves_to_another_namespace_keeps_its_outer_one() {
    needs_namespaces!();
    let tunnel = Tunnel::new();
    tunnel.up();
    tunnel.left.reach("10.9.0.2");
    let (left, inside) = (&tunnel.left, Host::new("inside"));
    left.give_link("wg0", &inside);
    inside.sh("ip address add 10.9.0.1/24 dev wg0 && ip link set wg0 up");
    inside.reach("10.9.0.2");
    assert!(left.sh("ss -Hlun").contains(":51820"), "the sockets stay where they were");
    assert_eq!(left.sh("wg show wg0 listen-port"), "51820", "and so does the control socket");
    let daemon = tunnel.left_daemon();
    inside.sh("ip link delete wg0");
    daemon.ends_within(A_SECOND);
}

// -------------------------------------------------------------------------------------------------- the control socket

#[test]
fn errors_are_negative_and_what_came_before_them_stays() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    assert_eq!(ask(&host, "set=1\nfwmark=7\nno_such_key=1\n\n"), "errno=-22\n\n");
    assert_eq!(host.sh("wg show wg0 fwmark"), "0x7");
    assert_eq!(ask(&host, "set=1\nprivate_key=abc\n\n"), "errno=-22\n\n");
    assert_eq!(ask(&host, "set=1\nno equals sign\n\n"), "errno=-71\n\n");
    assert_eq!(ask(&host, "set=1\nreplace_peers=false\n\n"), "errno=-22\n\n");
    assert!(ask(&host, "get=1\n\n").ends_with("errno=0\n\n"));
}

#[test]
fn a_minus_takes_an_allowed_ip_away_only_from_its_owner() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    let (owner, other) = (Keys::new(), Keys::new());
    for (keys, prefix) in [(&owner, "10.1.0.0/16,10.2.0.0/16"), (&other, "10.3.0.0/16")] {
        host.sh(&format!("wg set wg0 peer {} allowed-ips {prefix}", keys.public));
    }
    let minus = |keys: &Keys, prefix: &str| {
        ask(&host, &format!("set=1\npublic_key={}\nallowed_ip=-{prefix}\n\n", hex_key(&host, &keys.public)))
    };
    assert_eq!(minus(&other, "10.1.0.0/16"), "errno=0\n\n");
    assert_eq!(minus(&owner, "10.1.0.0/24"), "errno=0\n\n");
    assert_eq!(host.peer("wg0", &owner.public).allowed_ips, "10.1.0.0/16,10.2.0.0/16", "neither was exact and owned");
    assert_eq!(minus(&owner, "10.1.0.0/16"), "errno=0\n\n");
    assert_eq!(host.peer("wg0", &owner.public).allowed_ips, "10.2.0.0/16");
    assert_eq!(host.peer("wg0", &other.public).allowed_ips, "10.3.0.0/16");
}

#[test]
fn several_requests_fit_one_connection() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    let mut connection = host.uapi("wg0");
    for mark in 1..=5 {
        connection.write_all(format!("set=1\nfwmark={mark}\n\n").as_bytes()).expect("the daemon listens");
        assert_eq!(answer(&mut connection), "errno=0\n\n");
        connection.write_all(b"get=1\n\n").expect("the daemon listens");
        assert_eq!(answer(&mut connection), format!("fwmark={mark}\nerrno=0\n\n"));
    }
}

#[test]
fn clients_that_say_nothing_stop_halfway_or_come_by_the_hundred_do_no_harm() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    for _ in 0..50 {
        drop(host.uapi("wg0"));
    }
    let mut halfway = host.uapi("wg0");
    halfway.write_all(b"set=1\nfwmark=").expect("the daemon listens");
    let silent = host.uapi("wg0");
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| assert!(ask(&host, "get=1\n\n").ends_with("errno=0\n\n")));
        }
    });
    assert!(host.sh("wg show interfaces").contains("wg0"));
    drop((halfway, silent));
    assert_eq!(host.sh("wg show wg0 fwmark"), "off", "half a request is no request");
}

#[test]
fn ten_thousand_peers_are_set_and_dumped() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    let mut conf = format!("[Interface]\nPrivateKey = {}\n", Keys::new().private);
    for number in 0..10_000_u32 {
        let [_, high, middle, low] = number.to_be_bytes();
        writeln!(
            conf,
            "[Peer]\nPublicKey = {}\nAllowedIPs = 10.{high}.{middle}.{low}/32, fd00::{number:x}/128\nEndpoint = 192.0.2.9:{}",
            numbered_key(number),
            1 + number % 60_000
        )
        .expect("a String takes everything");
    }
    host.write_conf("many", &conf);
    let start = Instant::now();
    host.sh("wg setconf wg0 /etc/wireguard/many.conf");
    let set = start.elapsed();
    let dump = host.sh("wg show wg0 dump");
    println!("10 000 peers: set {set:?}, dumped {:?}", start.elapsed() - set);
    assert_eq!(dump.lines().count(), 10_001);
    assert!(
        dump.lines().nth(9_001).expect("it is there").starts_with(&numbered_key(9_000)),
        "in the order they were added"
    );
    assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
}

// ----------------------------------------------------------------------------------------------------- the two hosts

struct Tunnel {
    left: Host,
    right: Host,
    left_keys: Keys,
    right_keys: Keys,
}

impl Tunnel {
    /// Two joined hosts with a `wg0.conf` each; no interface yet.
    fn new() -> Tunnel {
        let tunnel = Tunnel {
            left: Host::new("left"),
            right: Host::new("right"),
            left_keys: Keys::new(),
            right_keys: Keys::new(),
        };
        cable((&tunnel.left, "eth0"), (&tunnel.right, "eth0"));
        for (host, own, number, peer, peer_number) in [
            (&tunnel.left, &tunnel.left_keys, 1, &tunnel.right_keys, 2),
            (&tunnel.right, &tunnel.right_keys, 2, &tunnel.left_keys, 1),
        ] {
            host.sh(&format!("ip addr add 192.0.2.{number}/24 dev eth0; ip addr add 2001:db8::{number}/64 dev eth0"));
            host.write_conf(
                "wg0",
                &format!(
                    "[Interface]\nAddress = 10.9.0.{number}/24, fd09::{number}/64\nPrivateKey = {}\nListenPort = 51820\nMTU = 1420\n\n\
                     [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.{peer_number}/32, fd09::{peer_number}/128\n\
                     Endpoint = 192.0.2.{peer_number}:51820\n",
                    own.private, peer.public
                ),
            );
        }
        tunnel
    }

    /// `wg-quick up wg0` on both.
    #[track_caller]
    fn up(&self) {
        for host in [&self.left, &self.right] {
            host.wg_quick(Daemon::Wgd, "up", "wg0");
        }
    }

    fn left_daemon(&self) -> Process {
        let found = self.left.processes(&Daemon::Wgd.process_name());
        assert_eq!(found.len(), 1, "one daemon serves one interface");
        found[0]
    }
}

#[track_caller]
fn assert_nothing_left(host: &Host) {
    assert_eq!(host.processes(&Daemon::Wgd.process_name()), []);
    assert!(!host.try_sh("ip link show wg0").status.success(), "the link is still there");
    assert_eq!(host.sh("ls -A /run/wireguard"), "");
    assert_eq!(host.sh("ss -Hlun"), "");
}

/// One request on a connection of its own, which is half-closed after it; everything that comes back.
#[track_caller]
fn ask(host: &Host, request: &str) -> String {
    let mut connection = host.uapi("wg0");
    connection.write_all(request.as_bytes()).expect("the daemon listens");
    connection.shutdown(std::net::Shutdown::Write).expect("a stream can be half-closed");
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("the daemon answers or closes");
    text
}

/// One answer on a connection that stays open.
fn answer(connection: &mut impl Read) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\n\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("the daemon answers");
        text.extend(byte);
    }
    String::from_utf8(text).expect("answers are ASCII")
}

fn hex_key(host: &Host, base64: &str) -> String {
    host.sh(&format!("base64 -d <<<'{base64}' | od -An -v -tx1 | tr -d ' \\n'"))
}

/// Some public key, in base64, from a number.
fn numbered_key(number: u32) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key = [0x5a; 33];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key[32] = 0;
    let mut text: String = key
        .chunks(3)
        .flat_map(|group| {
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift) as usize & 63]))
        })
        .collect();
    text.replace_range(43.., "=");
    text
}
