//! Devices on hosts of their own: what passes, and what follows from changes of the link and of the settings.

mod support;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use support::{Namespace, Pair, add_peer, can_make_namespaces, connect, key, wait_for};
use wg_core::DropReason;
use wg_tun::{Device, DeviceConfig, DeviceError, DeviceExit, TunSource};

#[test]
fn two_devices_carry_pings_of_both_families_over_both_families() {
    if !can_make_namespaces() {
        return;
    }
    for endpoint in ["192.0.2.2:51820", "[fd00:2::2]:51820"] {
        let pair = Pair::over(endpoint.parse().unwrap());
        pair.ping("10.9.0.2", 20);
        pair.ping("fd00:9::2", 20);
        let received = pair.right.engine().counters();
        assert!(received.rx_packets >= 40, "{received:?}");
        // Hosts ask for routers on every link that comes up; nobody's prefix has them.
        let drops = pair.left.engine().counters().drops;
        let expected = drops.of(DropReason::DestinationNotAllowed) + drops.of(DropReason::InterfaceDown);
        assert_eq!(drops.total(), expected, "{drops:?}");
    }
}

#[test]
fn a_link_has_no_address_that_nobody_gave_it() {
    if !can_make_namespaces() {
        return;
    }
    let host = Namespace::new();
    let _device = host.open("wg0").unwrap();
    host.ip("link set wg0 up");
    host.ip("address add 10.9.0.1/32 dev wg0");
    let addresses = host.ip("-brief address show dev wg0");
    assert!(addresses.contains("10.9.0.1/32") && !addresses.contains("fe80"), "{addresses}");
}

#[test]
fn a_local_sender_is_told_that_nobody_owns_the_destination() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    for (destination, route) in [("10.77.0.1", "10.77.0.0/16"), ("fd00:77::1", "fd00:77::/32")] {
        pair.left_host.ip(&format!("route add {route} dev wg0"));
        let ping = pair.left_host.command("ping").args(["-c", "1", "-W", "5", destination]).output().unwrap();
        let said = String::from_utf8_lossy(&ping.stdout);
        assert!(said.to_lowercase().contains("unreachable"), "{said}");
    }
}

/// Bytes that differ everywhere, so that nothing that is lost, doubled or moved goes unnoticed.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

/// Sends `len` bytes by TCP from left to right and back, and compares.
fn echo_tcp(pair: &Pair, address: &str, len: usize) {
    let listener = pair.right_host.inside(|| TcpListener::bind((address, 7000)).unwrap());
    let stream = thread::scope(|scope| {
        let accept = scope.spawn(|| listener.accept().unwrap().0);
        let stream = pair.left_host.inside(|| TcpStream::connect((address, 7000)).unwrap());
        (stream, accept.join().unwrap())
    });
    let (near, far) = stream;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let sent = pattern(len);
    thread::scope(|scope| {
        for (from, to) in [(&near, &far), (&far, &near)] {
            let sent = &sent;
            scope.spawn(move || {
                let mut from = from;
                from.write_all(sent).unwrap();
            });
            scope.spawn(move || {
                let (mut to, mut received) = (to, vec![0; len]);
                to.read_exact(&mut received).unwrap();
                assert!(received == *sent, "the bytes differ");
            });
        }
    });
}

#[test]
fn bulk_traffic_arrives_byte_for_byte_in_both_families_and_is_joined() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    pair.ping("10.9.0.2", 1);
    for address in ["10.9.0.2", "fd00:9::2"] {
        echo_tcp(&pair, address, 8 << 20);
    }
    let link = pair.right_host.ip("-s link show wg0");
    assert!(!link.contains("dropped 1"), "{link}");
    let counters = pair.right.engine().counters();
    assert_eq!(counters.drops.of(DropReason::DeviceWriteFailed), 0, "{counters:?}");
}

#[test]
fn every_size_of_datagram_arrives_as_it_was_sent() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    pair.ping("10.9.0.2", 1);
    for (near, far) in [("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")] {
        let sender = pair.left_host.inside(|| UdpSocket::bind((near, 0)).unwrap());
        let receiver = pair.right_host.inside(|| UdpSocket::bind((far, 7001)).unwrap());
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = vec![0; 2000];
        // Up to the MTU, and beyond it in fragments.
        for len in 0..1500 {
            let sent = pattern(len);
            sender.send_to(&sent, (far, 7001)).unwrap();
            let received = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{len} bytes to {far}: {error}"));
            assert!(buffer[..received] == sent, "{len} bytes to {far}");
        }
    }
}

#[test]
fn a_path_narrower_than_the_tunnel_loses_nothing() {
    if !can_make_namespaces() {
        return;
    }
    for endpoint in ["192.0.2.2:51820", "[fd00:2::2]:51820"] {
        let pair = Pair::over(endpoint.parse().unwrap());
        for host in [&pair.left_host, &pair.right_host] {
            host.ip("link set v0 mtu 1280");
        }
        pair.ping("10.9.0.2", 1);
        echo_tcp(&pair, "10.9.0.2", 1 << 20);
        assert_eq!(pair.left.engine().counters().drops.of(DropReason::SendFailed), 0);
    }
}

#[test]
fn a_link_that_goes_down_closes_the_port_and_opens_it_again_when_it_comes_up() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    pair.ping("10.9.0.2", 1);
    let is_free = || pair.right_host.inside(|| UdpSocket::bind("0.0.0.0:51820").is_ok());
    assert!(!is_free());
    pair.right_host.ip("link set wg0 down");
    wait_for("the port being closed", || !pair.right.is_up() && is_free());
    assert_eq!(pair.right.listen_port(), 51820);
    pair.right_host.ip("link set wg0 up");
    wait_for("the port being open", || pair.right.is_up() && !is_free());
    // The left one's session is unknown to the right one now; addresses of IPv6 went with the link.
    pair.left_host.ip("link set wg0 down");
    wait_for("the left one going down", || !pair.left.is_up());
    pair.left_host.ip("link set wg0 up");
    wait_for("the left one coming up", || pair.left.is_up());
    pair.ping("10.9.0.2", 3);
}

#[test]
fn a_port_is_open_while_the_link_is_up_however_often_that_changes() {
    if !can_make_namespaces() {
        return;
    }
    let host = Namespace::new();
    let device = host.open("wg0").unwrap();
    device.set_listen_port(40_009).unwrap();
    for _ in 0..20 {
        host.ip("link set wg0 up");
        wait_for("coming up being noticed", || device.is_up());
        // A program that another test starts has a copy of the old socket for a moment; the port is then tried again.
        wait_for("the port being open", || host.inside(|| UdpSocket::bind("0.0.0.0:40009").is_err()));
        host.ip("link set wg0 down");
        wait_for("going down being noticed", || !device.is_up());
    }
}

#[test]
fn the_engine_follows_the_links_mtu() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    assert_eq!(pair.left.mtu(), 1420);
    for (host, device) in [(&pair.left_host, &pair.left), (&pair.right_host, &pair.right)] {
        host.ip("link set wg0 mtu 1280");
        wait_for("the MTU being noticed", || device.mtu() == 1280);
    }
    pair.ping("10.9.0.2", 1);
    echo_tcp(&pair, "10.9.0.2", 1 << 20);
    for (host, device) in [(&pair.left_host, &pair.left), (&pair.right_host, &pair.right)] {
        host.ip("link set v0 mtu 9000");
        host.ip("link set wg0 mtu 8920");
        wait_for("the MTU being noticed", || device.mtu() == 8920);
    }
    echo_tcp(&pair, "10.9.0.2", 1 << 20);
}

#[test]
fn a_deleted_link_ends_the_device_and_says_so() {
    if !can_make_namespaces() {
        return;
    }
    let host = Namespace::new();
    for state in ["down", "up"] {
        let device = host.open("wg0").unwrap();
        host.ip(&format!("link set wg0 {state}"));
        assert_eq!(device.exit_reason(), None);
        host.ip("link delete wg0");
        wait_for("the end being noticed", || device.exit_reason() == Some(DeviceExit::LinkDeleted));
        let mut exit = libc::pollfd { fd: device.exit_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry that lives through the call.
        assert_eq!(unsafe { libc::poll(&mut exit, 1, 0) }, 1);
        assert!(!device.is_up());
        device.set_listen_port(40_000).unwrap();
        drop(device);
    }
}

#[test]
fn a_dropped_device_leaves_nothing_behind() {
    if !can_make_namespaces() {
        return;
    }
    let host = Namespace::new();
    let device = host.open("wg0").unwrap();
    device.set_listen_port(51820).unwrap();
    host.ip("link set wg0 up");
    wait_for("the interface coming up", || device.listen_port() == 51820 && device.is_up());
    drop(device);
    // Not at once: other tests start programs, which have a copy of every descriptor until they begin.
    wait_for("the link going away", || !host.ip("link").contains("wg0"));
    wait_for("the port being free", || host.inside(|| UdpSocket::bind("0.0.0.0:51820").is_ok()));
    // The name is free again.
    host.open("wg0").unwrap();
}

#[test]
fn a_link_in_another_namespace_keeps_its_sockets_where_they_were_and_is_still_followed() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    pair.ping("10.9.0.2", 1);
    let inner = Namespace::new();
    pair.left_host.ip(&format!("link set wg0 netns {}", inner.0));
    inner.ip("addr add 10.9.0.1/24 dev wg0");
    inner.ip("link set wg0 up");
    wait_for("the move being noticed", || pair.left.is_up());
    let output = inner.run("ping", "-c 3 -i 0.01 -W 2 -q 10.9.0.2");
    assert!(output.contains(" 0% packet loss"), "{output}");
    // Nothing of the outer network is in there.
    assert!(!inner.ip("link").contains("v0"));

    inner.ip("link set wg0 mtu 1300");
    wait_for("the MTU being noticed", || pair.left.mtu() == 1300);
    inner.ip("link set wg0 down");
    wait_for("going down being noticed", || !pair.left.is_up());
    inner.ip("link set wg0 up");
    wait_for("coming up being noticed", || pair.left.is_up());
    assert_eq!(pair.left.exit_reason(), None);
    assert_eq!(pair.left.name(), "wg0");
    inner.ip("link delete wg0");
    wait_for("the end being noticed", || pair.left.exit_reason() == Some(DeviceExit::LinkDeleted));
}

#[test]
fn a_new_port_or_mark_loses_no_session_and_a_taken_port_is_refused() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    pair.ping("10.9.0.2", 1);
    let handshakes = pair.left.engine().counters().handshakes_completed;
    for port in [40_000, 0, 40_001] {
        let before = pair.left.listen_port();
        pair.left.set_listen_port(port).unwrap();
        let after = pair.left.listen_port();
        assert!(after != before && (port == 0 || after == port), "{after}");
        pair.ping("10.9.0.2", 3);
    }
    pair.left.set_fwmark(0x1234).unwrap();
    assert_eq!(pair.left.fwmark(), 0x1234);
    pair.ping("10.9.0.2", 3);
    // The mark is on what leaves: with this rule there is no route for it.
    pair.left_host.ip("rule add fwmark 0x1234 unreachable pref 10");
    let failed = pair.left.engine().counters().drops.of(DropReason::SendFailed);
    let lost = pair.left_host.command("ping").args(["-c", "1", "-W", "1", "10.9.0.2"]).output().unwrap();
    assert!(!lost.status.success());
    assert!(pair.left.engine().counters().drops.of(DropReason::SendFailed) > failed);
    pair.left.set_fwmark(0).unwrap();
    pair.ping("10.9.0.2", 3);

    let _taken = pair.left_host.inside(|| UdpSocket::bind("0.0.0.0:40002").unwrap());
    let refused = pair.left.set_listen_port(40_002).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    assert_eq!(pair.left.listen_port(), 40_001);
    pair.ping("10.9.0.2", 3);
    assert_eq!(pair.left.engine().counters().handshakes_completed, handshakes);
}

#[test]
fn a_port_that_is_taken_when_the_link_comes_up_is_bound_once_it_is_free() {
    if !can_make_namespaces() {
        return;
    }
    let host = Namespace::new();
    let taken = host.inside(|| UdpSocket::bind("0.0.0.0:40003").unwrap());
    let device = host.open("wg0").unwrap();
    device.set_listen_port(40_003).unwrap();
    host.ip("link set wg0 up");
    wait_for("the interface coming up", || device.is_up());
    drop(taken);
    wait_for("the port being bound", || host.inside(|| UdpSocket::bind("0.0.0.0:40003").is_err()));
}

#[test]
fn packets_pass_by_another_port_chosen_while_the_first_was_taken() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    pair.left_host.ip("link set wg0 down");
    wait_for("the left one going down", || !pair.left.is_up());
    let _taken = pair.left_host.inside(|| UdpSocket::bind("0.0.0.0:40006").unwrap());
    let also_taken = pair.left_host.inside(|| UdpSocket::bind("0.0.0.0:40007").unwrap());
    pair.left.set_listen_port(40_006).unwrap();
    pair.left_host.ip("link set wg0 up");
    wait_for("the left one coming up", || pair.left.is_up());
    assert_eq!(pair.left.set_listen_port(40_007).unwrap_err().kind(), ErrorKind::AddrInUse);
    // What is hunted from now on is what was asked for last.
    assert_eq!(pair.left.listen_port(), 40_007);
    drop(also_taken);
    wait_for("the port being bound", || pair.left_host.inside(|| UdpSocket::bind("0.0.0.0:40007").is_err()));
    pair.ping("10.9.0.2", 3);

    pair.left_host.ip("link set wg0 down");
    wait_for("the left one going down again", || !pair.left.is_up());
    pair.left.set_listen_port(40_006).unwrap();
    pair.left_host.ip("link set wg0 up");
    wait_for("the left one coming up again", || pair.left.is_up());
    pair.left.set_listen_port(40_008).unwrap();
    pair.ping("10.9.0.2", 3);
}

#[test]
fn a_host_without_ipv6_has_ipv4() {
    if !can_make_namespaces() {
        return;
    }
    let pair = {
        let pair = Pair::new();
        for host in [&pair.left_host, &pair.right_host] {
            host.run("sysctl", "-qw net.ipv6.conf.all.disable_ipv6=1");
        }
        pair
    };
    pair.left.set_listen_port(40_004).unwrap();
    pair.ping("10.9.0.2", 3);
}

#[test]
fn a_source_address_that_goes_away_is_replaced_and_no_packet_is_lost() {
    if !can_make_namespaces() {
        return;
    }
    let (left_host, right_host) = (Namespace::new(), Namespace::new());
    connect(&left_host, &right_host);
    right_host.ip("addr add 192.0.2.77/24 dev v0");
    let left = left_host.open("wg0").unwrap();
    let right = right_host.open("wg0").unwrap();
    right.set_listen_port(51820).unwrap();
    left.configure(|engine, now| engine.set_private_key(Some(key(1)), now));
    right.configure(|engine, now| engine.set_private_key(Some(key(2)), now));
    add_peer(&left, key(2).public_key(), Some("192.0.2.77:51820".parse().unwrap()), &["10.9.0.2/32"]);
    add_peer(&right, key(1).public_key(), None, &["10.9.0.1/32"]);
    for (device, host, number) in [(&left, &left_host, 1), (&right, &right_host, 2)] {
        host.ip(&format!("addr add 10.9.0.{number}/24 dev wg0"));
        host.ip("link set wg0 up");
        wait_for("the interface coming up", || device.is_up());
    }
    let pair = Pair { left, right, left_host, right_host };
    pair.ping("10.9.0.2", 3);
    let endpoint = || pair.left.engine().peers()[0].endpoint.unwrap();
    // Answers come from the address that was asked.
    assert_eq!(endpoint(), "192.0.2.77:51820".parse().unwrap());
    pair.right_host.ip("addr del 192.0.2.77/24 dev v0");
    let output = pair.right_host.run("ping", "-c 1 -W 1 -q 10.9.0.1");
    assert!(output.contains(" 0% packet loss"), "{output}");
    assert_eq!(endpoint(), "192.0.2.2:51820".parse().unwrap());
    assert_eq!(pair.right.engine().counters().drops.of(DropReason::SendFailed), 0);
}

/// Opens a TUN device as a helper with privileges would.
fn open_tun(host: &Namespace, name: &str, flags: i32) -> OwnedFd {
    host.inside(|| {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: zero is a value of ifreq; TUNSETIFF reads one, which lives through the call.
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = flags as i16;
            assert_eq!(libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request), 0);
        }
        OwnedFd::from(file)
    })
}

#[test]
fn open_descriptors_are_taken_over_with_and_without_a_virtio_header() {
    if !can_make_namespaces() {
        return;
    }
    for (flags, long_header) in [(0, false), (libc::IFF_VNET_HDR, false), (libc::IFF_VNET_HDR, true)] {
        let mut pair = Pair::new();
        let fd = open_tun(&pair.left_host, "wg1", libc::IFF_TUN | libc::IFF_NO_PI | flags);
        if long_header {
            let len: libc::c_int = 12;
            // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
            assert_eq!(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) }, 0);
        }
        let mut config = DeviceConfig::new("ignored");
        config.tun = TunSource::Fd(fd);
        let left = pair.left_host.inside(|| Device::open(config)).unwrap();
        assert_eq!(left.name(), "wg1");
        left.configure(|engine, now| engine.set_private_key(Some(key(1)), now));
        add_peer(&left, key(2).public_key(), Some("192.0.2.2:51820".parse().unwrap()), &["10.9.0.2/32"]);
        pair.left = left;
        wait_for("the first link going away", || !pair.left_host.ip("link").contains("wg0"));
        pair.left_host.ip("addr add 10.9.0.1/24 dev wg1");
        pair.left_host.ip("link set wg1 up mtu 1420");
        wait_for("the interface coming up", || pair.left.is_up() && pair.left.mtu() == 1420);
        pair.ping("10.9.0.2", 3);
        echo_tcp(&pair, "10.9.0.2", 1 << 20);
    }
}

#[test]
fn what_cannot_be_opened_is_named_with_what_to_do_about_it() {
    if !can_make_namespaces() {
        return;
    }
    let host = Namespace::new();
    let _first = host.open("wg0").unwrap();
    assert!(matches!(host.open("wg0"), Err(DeviceError::NameInUse { .. })));
    host.ip("link add v1 type veth peer name v2");
    assert!(matches!(host.open("v1"), Err(DeviceError::NameInUse { .. })));
    for name in ["", "a/b", "sixteen-letters-", "a b", "..", "a:b", "%d%d", "a%"] {
        assert!(matches!(host.open(name), Err(DeviceError::BadName { .. })), "{name:?}");
    }
    for flags in [None, Some(libc::IFF_TAP | libc::IFF_NO_PI)] {
        let mut config = DeviceConfig::new("wg9");
        config.tun = TunSource::Fd(match flags {
            Some(flags) => open_tun(&host, "tap0", flags),
            None => File::open("/dev/null").unwrap().into(),
        });
        assert!(matches!(host.inside(|| Device::open(config)), Err(DeviceError::BadDescriptor { .. })));
    }
}

#[test]
fn a_source_address_is_given_up_when_the_route_leads_elsewhere_and_kept_when_it_does_not() {
    if !can_make_namespaces() {
        return;
    }
    let pair = Pair::new();
    // A second way between the hosts.
    pair.left_host.ip(&format!("link add v1 type veth peer name v1 netns {}", pair.right_host.0));
    for (host, number) in [(&pair.left_host, 1), (&pair.right_host, 2)] {
        host.ip(&format!("addr add 198.51.100.{number}/24 dev v1"));
        host.ip("link set v1 up");
        host.run("sysctl", "-qw net.ipv4.conf.all.rp_filter=0");
        host.run("sysctl", "-qw net.ipv4.conf.v0.rp_filter=0");
        host.run("sysctl", "-qw net.ipv4.conf.v1.rp_filter=0");
    }
    pair.ping("10.9.0.2", 3);
    let endpoint = || pair.left.engine().peers()[0].endpoint.unwrap();
    assert_eq!(endpoint(), "192.0.2.2:51820".parse().unwrap());
    let send_back = || {
        let output = pair.right_host.run("ping", "-c 1 -W 2 -q 10.9.0.1");
        assert!(output.contains(" 0% packet loss"), "{output}");
    };
    // A route that has nothing to do with it changes nothing.
    pair.right_host.ip("route add 203.0.113.0/24 via 198.51.100.1");
    thread::sleep(Duration::from_millis(100));
    send_back();
    assert_eq!(endpoint(), "192.0.2.2:51820".parse().unwrap());
    // One that leads to the peer by the other way does.
    pair.right_host.ip("route add 192.0.2.1/32 via 198.51.100.1 src 198.51.100.2");
    wait_for("the other address being used", || {
        send_back();
        endpoint() == "198.51.100.2:51820".parse().unwrap()
    });
}

/// Takes CAP_SYS_ADMIN, without which no namespace can be entered, from the calling thread.
fn give_up_namespaces() {
    const CAP_SYS_ADMIN: u32 = 21;
    // Version 3 of the header: two words of each set.
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: both calls take a header and two triples of words, which live through them, and concern this thread.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()), 0);
        sets[0] &= !(1 << CAP_SYS_ADMIN);
        sets[1] &= !(1 << CAP_SYS_ADMIN);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
    }
}

#[test]
fn a_link_in_a_namespace_that_may_not_be_entered_is_followed_by_its_descriptor() {
    if !can_make_namespaces() {
        return;
    }
    let (outer, inner) = (Namespace::new(), Namespace::new());
    let device = outer.inside(|| {
        give_up_namespaces();
        Device::open(DeviceConfig::new("wg0")).unwrap()
    });
    outer.ip(&format!("link set wg0 netns {}", inner.0));
    for mtu in [1300, 1380] {
        inner.ip(&format!("link set wg0 up mtu {mtu}"));
        wait_for("coming up being noticed", || device.is_up() && device.mtu() == mtu);
        inner.ip("link set wg0 down");
        wait_for("going down being noticed", || !device.is_up());
    }
    assert_eq!(device.exit_reason(), None);
    // Back home, it tells of itself again.
    inner.ip(&format!("link set wg0 netns {}", outer.0));
    outer.ip("link set wg0 up mtu 1310");
    wait_for("coming up at home being noticed", || device.is_up() && device.mtu() == 1310);
    outer.ip(&format!("link set wg0 netns {}", inner.0));
    wait_for("the second move being noticed", || !device.is_up());
    inner.ip("link delete wg0");
    wait_for("the end being noticed", || device.exit_reason() == Some(DeviceExit::LinkDeleted));
}

#[test]
fn a_strangers_link_of_the_same_name_is_not_followed() {
    if !can_make_namespaces() {
        return;
    }
    let (ours, theirs) = (Namespace::new(), Namespace::new());
    ours.ip("link add wg0 mtu 1400 type veth peer name other");
    let mut config = DeviceConfig::new("ignored");
    config.tun = TunSource::Fd(open_tun(&theirs, "wg0", libc::IFF_TUN | libc::IFF_NO_PI));
    let device = ours.inside(|| {
        give_up_namespaces();
        Device::open(config).unwrap()
    });
    ours.ip("link set wg0 up");
    theirs.ip("link set wg0 up mtu 1300");
    wait_for("coming up being noticed", || device.is_up() && device.mtu() == 1300);
    ours.ip("link set wg0 down mtu 1200");
    ours.ip("link delete wg0");
    theirs.ip("link set wg0 mtu 1290");
    wait_for("the MTU being noticed", || device.mtu() == 1290);
    assert!(device.is_up() && device.exit_reason().is_none());
}
