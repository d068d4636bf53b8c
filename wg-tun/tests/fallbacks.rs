//! What happens when the kernel, a device or a path does not take trains or super-packets: nothing is lost, nobody else
//! notices, and it is tried again.
//!
//! ```text
//!                    v0  192.0.2.0/24, fd00:2::/64
//!   left -----------------------------------------------  near
//!    wg0 10.9.0.1    v1  198.51.100.0/24, fd00:3::/64      wg0 10.9.0.2
//!        fd00:9::1 --------------------------------------  far
//!                                                          wg0 10.9.0.3
//! ```

mod support;

#[path = "support/kernel.rs"]
mod kernel;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use kernel::{Kernel, Lacks, Sent, TCP4, TCP6, UDP};
use support::{Namespace, add_peer, can_make_namespaces, key, wait_for};
use wg_core::DropReason;
use wg_tun::{Device, DeviceConfig};

const PORT: u16 = 51820;

/// Outer addresses of the peers.
#[derive(Clone, Copy, Debug)]
struct Outer {
    near: IpAddr,
    far: IpAddr,
    /// Behind an address, for a route to it alone.
    prefix_len: u8,
}

fn outer_v4() -> Outer {
    Outer { near: [192, 0, 2, 2].into(), far: [198, 51, 100, 2].into(), prefix_len: 32 }
}

fn outer_v6() -> Outer {
    let ip = |text: &str| text.parse().expect("an address");
    Outer { near: ip("fd00:2::2"), far: ip("fd00:3::2"), prefix_len: 128 }
}

/// One device and two peers on links of their own; see the top.
struct Net {
    // Devices go before their namespaces.
    left: Device,
    near: Device,
    far: Device,
    kernel: Kernel,
    left_host: Namespace,
    near_host: Namespace,
    far_host: Namespace,
}

impl Net {
    /// The left device lives with a kernel that lacks something.
    fn new(outer: Outer, lacks: Lacks) -> Net {
        Net::prepared(outer, lacks, |_| {})
    }

    fn prepared(outer: Outer, lacks: Lacks, prepare: impl FnOnce([&Namespace; 3])) -> Net {
        let [left_host, near_host, far_host] = [(); 3].map(|()| Namespace::new());
        for (link, host, v4, v6) in
            [("v0", &near_host, "192.0.2", "fd00:2::"), ("v1", &far_host, "198.51.100", "fd00:3::")]
        {
            left_host.ip(&format!("link add {link} type veth peer name v0 netns {}", host.0));
            for (namespace, link, number) in [(&left_host, link, 1), (host, "v0", 2)] {
                namespace.ip(&format!("addr add {v4}.{number}/24 dev {link}"));
                namespace.ip(&format!("addr add {v6}{number}/64 dev {link} nodad"));
                namespace.ip(&format!("link set {link} up"));
            }
        }
        prepare([&left_host, &near_host, &far_host]);
        let kernel = Kernel::lacking(lacks);
        let left = kernel.open(&left_host, DeviceConfig::new("wg0"));
        let [near, far] = [&near_host, &far_host].map(|host| host.open("wg0").expect("a device"));
        left.configure(|engine, now| engine.set_private_key(Some(key(1)), now));
        let peers = [(&near, &near_host, 2, outer.near), (&far, &far_host, 3, outer.far)];
        for (device, host, number, ip) in peers {
            device.set_listen_port(PORT).expect("a port");
            device.configure(|engine, now| engine.set_private_key(Some(key(number)), now));
            add_peer(device, key(1).public_key(), None, &["10.9.0.1/32", "fd00:9::1/128"]);
            let (v4, v6) = (format!("10.9.0.{number}/32"), format!("fd00:9::{number}/128"));
            add_peer(&left, key(number).public_key(), Some(SocketAddr::new(ip, PORT)), &[&v4, &v6]);
            configure_link(device, host, number);
        }
        configure_link(&left, &left_host, 1);
        let net = Net { left, near, far, kernel, left_host, near_host, far_host };
        for peer in ["10.9.0.2", "10.9.0.3"] {
            net.left_host.run("ping", &format!("-c 1 -W 5 -q {peer}"));
        }
        net
    }

    /// From left to near and to far.
    fn flows(&self, family: Family) -> [Flow; 2] {
        [(&self.near_host, 2), (&self.far_host, 3)]
            .map(|(host, number)| Flow::new((&self.left_host, 1), (host, number), family))
    }

    fn set_mtu(&self, mtu: u16) {
        for (host, device) in
            [(&self.left_host, &self.left), (&self.near_host, &self.near), (&self.far_host, &self.far)]
        {
            host.ip(&format!("link set wg0 mtu {mtu}"));
            wait_for("the MTU being noticed", || device.mtu() == mtu);
        }
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.left.engine().counters().drops.of(reason)
    }

    /// Nothing that was to be sent or handed up was lost by us.
    fn assert_no_drops(&self) {
        for device in [&self.left, &self.near, &self.far] {
            let drops = device.engine().counters().drops;
            for reason in [
                DropReason::SendFailed,
                DropReason::SendQueueFull,
                DropReason::DeviceWriteFailed,
                DropReason::SinkFull,
                DropReason::MalformedMessage,
                DropReason::BadTag,
            ] {
                assert_eq!(drops.of(reason), 0, "{}: {reason:?}", device.name());
            }
        }
    }
}

fn configure_link(device: &Device, host: &Namespace, number: u8) {
    host.ip(&format!("addr add 10.9.0.{number}/24 dev wg0"));
    host.ip(&format!("addr add fd00:9::{number}/64 dev wg0 nodad"));
    host.ip("link set wg0 up");
    wait_for("the interface coming up", || device.is_up());
}

/// Inner address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn inner(self, number: u8) -> IpAddr {
        match self {
            Family::V4 => [10, 9, 0, number].into(),
            Family::V6 => [0xfd00, 9, 0, 0, 0, 0, 0, u16::from(number)].into(),
        }
    }
}

/// UDP through the tunnel, from one host to another.
struct Flow {
    sender: UdpSocket,
    receiver: UdpSocket,
    to: SocketAddr,
    sent: u32,
    received: u32,
}

/// The next datagram, also if a signal came first: with a timeout, the kernel does not wait again by itself.
fn received(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

impl Flow {
    fn new(from: (&Namespace, u8), to: (&Namespace, u8), family: Family) -> Flow {
        let bind = |(host, number): (&Namespace, u8)| {
            host.inside(|| UdpSocket::bind((family.inner(number), 0)).expect("an address of the tunnel"))
        };
        let (sender, receiver) = (bind(from), bind(to));
        for (socket, option) in [(&sender, libc::SO_SNDBUFFORCE), (&receiver, libc::SO_RCVBUFFORCE)] {
            set_option(socket, libc::SOL_SOCKET, option, 8 << 20);
        }
        receiver.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
        let to = receiver.local_addr().expect("it is bound");
        Flow { sender, receiver, to, sent: 0, received: 0 }
    }

    /// Sends datagrams in one call, as a program that segments does.
    fn send(&mut self, count: u32, len: usize) {
        let mut bytes = Vec::new();
        for _ in 0..count {
            bytes.extend(content(self.sent, len));
            self.sent += 1;
        }
        set_option(&self.sender, libc::SOL_UDP, libc::UDP_SEGMENT, if count > 1 { len as libc::c_int } else { 0 });
        self.sender.send_to(&bytes, self.to).expect("the tunnel's link takes it");
    }

    /// Every datagram arrives, in order, as it was sent.
    #[track_caller]
    fn receive(&mut self, count: u32, len: usize) {
        let mut buffer = vec![0; 65_536];
        for _ in 0..count {
            let found = received(&self.receiver, &mut buffer);
            let found = found.unwrap_or_else(|error| panic!("datagram {} of {len} bytes: {error}", self.received));
            assert!(buffer[..found] == content(self.received, len), "datagram {} of {len} bytes", self.received);
            self.received += 1;
        }
    }

    #[track_caller]
    fn exchange(&mut self, count: u32, len: usize) {
        self.send(count, len);
        self.receive(count, len);
    }
}

/// Both flows at the same time.
#[track_caller]
fn exchange_both(flows: &mut [Flow; 2], count: u32, len: usize) {
    flows.iter_mut().for_each(|flow| flow.send(count, len));
    flows.iter_mut().for_each(|flow| flow.receive(count, len));
}

/// Bytes that differ from datagram to datagram and everywhere inside.
fn content(number: u32, len: usize) -> Vec<u8> {
    let seed = number.wrapping_mul(0x85eb_ca6b) ^ len as u32;
    (0..len as u32).map(|at| (at.wrapping_add(seed).wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

fn set_option(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    let (len, value) = (size_of::<libc::c_int>() as u32, std::ptr::from_ref(&value));
    // SAFETY: four bytes are read from `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), len) };
    assert_eq!(result, 0, "option {name}: {}", std::io::Error::last_os_error());
}

/// TCP from one host to another and back, byte for byte; with a segment size of its own, if that is not 0.
#[track_caller]
fn echo_tcp(from: &Namespace, to: (&Namespace, u8), family: Family, len: usize, segment_len: libc::c_int) {
    let address = SocketAddr::new(family.inner(to.1), 0);
    let limit = |socket: &dyn AsRawFd| {
        if segment_len != 0 {
            set_option(&socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MAXSEG, segment_len);
        }
    };
    let listener = to.0.inside(|| TcpListener::bind(address).expect("an address of the tunnel"));
    limit(&listener);
    let address = listener.local_addr().expect("it is bound");
    let near = from.inside(|| TcpStream::connect(address).expect("the tunnel passes TCP"));
    limit(&near);
    let (far, _) = listener.accept().expect("somebody has connected");
    let sent = content(7, len);
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
        socket.set_write_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
    }
    thread::scope(|scope| {
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            let sent = &sent;
            scope.spawn(move || from.write_all(sent).expect("the other side reads"));
            scope.spawn(move || {
                let mut received = vec![0; len];
                to.read_exact(&mut received).expect("everything arrives");
                assert!(received == *sent, "the bytes differ");
            });
        }
    });
}

// --------------------------------------------------------------------------------------------------- trains refused

#[test]
fn a_peer_that_is_refused_trains_gets_every_datagram_singly_and_the_other_one_keeps_its_trains() {
    if !can_make_namespaces() {
        return;
    }
    for (outer, errno) in [
        (outer_v4(), libc::EIO),
        (outer_v6(), libc::EIO),
        (outer_v4(), libc::EINVAL),
        (outer_v6(), libc::EOPNOTSUPP),
        (outer_v4(), libc::EMSGSIZE),
    ] {
        let net = Net::new(outer, Lacks::default());
        net.kernel.refuse_trains(outer.far, errno);
        let mut flows = net.flows(Family::V4);
        for _ in 0..20 {
            exchange_both(&mut flows, 40, 1000);
        }
        let (near, far) = (net.kernel.sent(outer.near), net.kernel.sent(outer.far));
        assert_eq!((far.trains, far.refused_trains, far.refused_singles), (0, 1, 0), "{errno}: {far:?}");
        assert!(far.singles >= 800, "{errno}: {far:?}");
        assert!(near.trains >= 20 && near.refused_trains == 0 && near.singles < 20, "{errno}: {near:?}");
        net.assert_no_drops();
    }
}

#[test]
fn a_kernel_without_trains_is_given_single_datagrams() {
    if !can_make_namespaces() {
        return;
    }
    let net = Net::new(outer_v4(), Lacks { trains: true, ..Lacks::default() });
    let mut flows = net.flows(Family::V4);
    for _ in 0..5 {
        exchange_both(&mut flows, 40, 1000);
    }
    echo_tcp(&net.left_host, (&net.near_host, 2), Family::V6, 1 << 20, 0);
    for to in [outer_v4().near, outer_v4().far] {
        let sent = net.kernel.sent(to);
        assert!(sent.trains == 0 && sent.refused_trains == 0 && sent.singles >= 200, "{sent:?}");
    }
    assert!(net.kernel.refused_options() > 0);
    net.assert_no_drops();
}

#[test]
fn a_peer_behind_a_narrow_route_loses_nothing_and_keeps_its_trains_of_short_datagrams() {
    if !can_make_namespaces() {
        return;
    }
    for outer in [outer_v4(), outer_v6()] {
        let net = Net::new(outer, Lacks::default());
        net.left_host.ip(&format!("route add {}/{} dev v1 mtu 1400", outer.far, outer.prefix_len));
        let mut flows = net.flows(Family::V4);
        for _ in 0..5 {
            exchange_both(&mut flows, 40, 1380);
            exchange_both(&mut flows, 40, 500);
        }
        echo_tcp(&net.left_host, (&net.far_host, 3), Family::V6, 1 << 20, 0);
        echo_tcp(&net.left_host, (&net.near_host, 2), Family::V6, 1 << 20, 0);
        let (near, far) = (net.kernel.sent(outer.near), net.kernel.sent(outer.far));
        assert!(far.refused_trains > 0 && far.refused_singles == 0 && far.singles >= 200, "{far:?}");
        assert!(far.trains >= 5 && far.longest >= 40, "{far:?}");
        assert!(near.refused_trains == 0 && near.trains >= 10, "{near:?}");
        net.assert_no_drops();
    }
}

#[test]
fn a_path_mtu_that_was_learned_from_a_router_is_followed() {
    if !can_make_namespaces() {
        return;
    }
    // left --v1-- router --v2, MTU 1400-- behind
    for (outer, is_v4) in [("203.0.113.2", true), ("fd00:5::2", false)] {
        let [left_host, router, behind_host] = [(); 3].map(|()| Namespace::new());
        left_host.ip(&format!("link add v1 type veth peer name v1 netns {}", router.0));
        router.ip(&format!("link add v2 mtu 1400 type veth peer name v2 mtu 1400 netns {}", behind_host.0));
        for (host, link, v4, v6) in [
            (&left_host, "v1", "198.51.100.1/24", "fd00:3::1/64"),
            (&router, "v1", "198.51.100.9/24", "fd00:3::9/64"),
            (&router, "v2", "203.0.113.9/24", "fd00:5::9/64"),
            (&behind_host, "v2", "203.0.113.2/24", "fd00:5::2/64"),
        ] {
            host.ip(&format!("addr add {v4} dev {link}"));
            host.ip(&format!("addr add {v6} dev {link} nodad"));
            host.ip(&format!("link set {link} up"));
        }
        router.run("sysctl", "-qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for (host, v4, v6) in [(&left_host, "198.51.100.9", "fd00:3::9"), (&behind_host, "203.0.113.9", "fd00:5::9")] {
            host.ip(&format!("route add default via {v4}"));
            host.ip(&format!("-6 route add default via {v6}"));
        }
        let kernel = Kernel::lacking(Lacks::default());
        let left = kernel.open(&left_host, DeviceConfig::new("wg0"));
        let behind = behind_host.open("wg0").expect("a device");
        behind.set_listen_port(PORT).expect("a port");
        left.configure(|engine, now| engine.set_private_key(Some(key(1)), now));
        behind.configure(|engine, now| engine.set_private_key(Some(key(2)), now));
        let ip: IpAddr = outer.parse().expect("an address");
        add_peer(&left, key(2).public_key(), Some(SocketAddr::new(ip, PORT)), &["10.9.0.2/32"]);
        add_peer(&behind, key(1).public_key(), None, &["10.9.0.1/32"]);
        configure_link(&left, &left_host, 1);
        configure_link(&behind, &behind_host, 2);
        left_host.run("ping", "-c 1 -W 5 -q 10.9.0.2");
        let mut flow = Flow::new((&left_host, 1), (&behind_host, 2), Family::V4);
        if is_v4 {
            // Nobody has said anything yet: the router fragments, and trains pass.
            flow.exchange(40, 1380);
            assert!(kernel.sent(ip).trains == 1 && kernel.sent(ip).refused_trains == 0, "{:?}", kernel.sent(ip));
        }
        // Another program asks; the router answers.
        let asked = left_host.command("ping").args(["-c", "1", "-W", "5", "-M", "do", "-s", "1440", outer]).output();
        assert!(!asked.expect("ping starts").status.success());
        assert!(left_host.ip(&format!("route get {outer}")).contains("mtu 1400"));
        for _ in 0..5 {
            flow.exchange(40, 1380);
        }
        let sent = kernel.sent(ip);
        assert!(sent.refused_trains == 1 && sent.refused_singles == 0 && sent.singles >= 200, "{sent:?}");
        flow.exchange(40, 500);
        assert_eq!(kernel.sent(ip).trains, sent.trains + 1);
        assert_eq!(left.engine().counters().drops.of(DropReason::SendFailed), 0);
        drop((left, behind));
    }
}

#[test]
fn what_a_firewall_or_a_route_refuses_to_one_peer_is_counted_and_forgotten_when_it_is_over() {
    if !can_make_namespaces() {
        return;
    }
    let outer = outer_v4();
    let far = outer.far;
    // What begins it, what ends it, and how often a train of forty is tried at most: without our source address, and
    // once more.
    let obstacles = [
        (format!("nft add rule inet t out ip daddr {far} drop"), "nft flush table inet t".to_owned(), 3),
        (format!("ip route add unreachable {far}/32"), format!("ip route del unreachable {far}/32"), 3),
        (format!("ip route add prohibit {far}/32"), format!("ip route del prohibit {far}/32"), 3),
        // An invalid argument, which may be the train: its datagrams are tried too.
        (format!("ip route add blackhole {far}/32"), format!("ip route del blackhole {far}/32"), 3 * 41),
        ("ip link set v1 down".to_owned(), "ip link set v1 up".to_owned(), 3),
    ];
    let net = Net::new(outer, Lacks::default());
    let shell = |line: &str| {
        let (program, arguments) = line.split_once(' ').expect("a program and its arguments");
        net.left_host.run(program, arguments);
    };
    shell("nft add table inet t");
    shell("nft add chain inet t out { type filter hook output priority 0 ; }");
    let mut flows = net.flows(Family::V4);
    exchange_both(&mut flows, 40, 1000);
    let mut expected = 0;
    for (begin, end, most_tries) in &obstacles {
        shell(begin);
        let before = (net.kernel.sent(outer.near), net.kernel.sent(far));
        for _ in 0..5 {
            flows[1].send(40, 1000);
            flows[0].exchange(40, 1000);
        }
        expected += 200;
        wait_for("everything being counted", || net.drops(DropReason::SendFailed) == expected);
        let refused = |sent: &Sent| sent.refused_trains + sent.refused_singles;
        let after = (net.kernel.sent(outer.near), net.kernel.sent(far));
        assert_eq!(after.1.trains, before.1.trains, "{begin}");
        let tries = refused(&after.1) - refused(&before.1);
        assert!(tries <= 5 * most_tries, "{begin}: {tries} tries");
        assert_eq!((after.0.trains - before.0.trains, after.0.refused_trains), (5, 0), "{begin}");

        shell(end);
        let reach = || net.left_host.command("ping").args(["-c", "1", "-W", "1", "-q", &far.to_string()]).output();
        wait_for("the peer being reachable again", || reach().expect("ping starts").status.success());
        flows[1].received = flows[1].sent;
        flows[1].exchange(40, 1000);
        let again = net.kernel.sent(far);
        assert_eq!((again.trains - after.1.trains, again.refused_trains), (1, after.1.refused_trains), "{end}");
    }
    assert_eq!(net.drops(DropReason::SendQueueFull), 0);
}

// ----------------------------------------------------------------------------------------------- devices and sockets

#[test]
fn network_cards_without_offloads_carry_everything() {
    if !can_make_namespaces() {
        return;
    }
    const OFF: &str = "tx off rx off sg off tso off gso off gro off tx-udp-segmentation off";
    let net = Net::new(outer_v4(), Lacks::default());
    for (host, link) in [(&net.left_host, "v0"), (&net.left_host, "v1"), (&net.near_host, "v0"), (&net.far_host, "v0")]
    {
        host.run("ethtool", &format!("-K {link} {OFF}"));
    }
    for family in [Family::V4, Family::V6] {
        let mut flows = net.flows(family);
        for _ in 0..5 {
            exchange_both(&mut flows, 40, 1000);
            exchange_both(&mut flows, 3, 1);
        }
        echo_tcp(&net.left_host, (&net.near_host, 2), family, 1 << 20, 0);
    }
    net.assert_no_drops();
}

#[test]
fn a_kernel_that_joins_no_received_datagrams_hands_them_over_singly() {
    if !can_make_namespaces() {
        return;
    }
    let net = Net::new(outer_v6(), Lacks { received_trains: true, ..Lacks::default() });
    assert!(net.kernel.refused_options() >= 2, "one for each family");
    let mut flow = Flow::new((&net.near_host, 2), (&net.left_host, 1), Family::V4);
    for _ in 0..5 {
        flow.exchange(40, 1000);
    }
    echo_tcp(&net.left_host, (&net.near_host, 2), Family::V4, 1 << 20, 0);
    net.assert_no_drops();
}

#[test]
fn a_tun_device_without_udp_super_packets_takes_those_of_tcp() {
    if !can_make_namespaces() {
        return;
    }
    let net = Net::new(outer_v4(), Lacks { udp_super_packets: true, ..Lacks::default() });
    assert!(net.kernel.refused_options() > 0);
    let features = net.left_host.run("ethtool", "-k wg0");
    assert!(
        features.contains("tx-udp-segmentation: off") && features.contains("tx-tcp-segmentation: on"),
        "{features}"
    );
    for family in [Family::V4, Family::V6] {
        let mut up = Flow::new((&net.near_host, 2), (&net.left_host, 1), family);
        let mut out = Flow::new((&net.left_host, 1), (&net.near_host, 2), family);
        for _ in 0..5 {
            up.exchange(40, 1000);
            out.exchange(40, 1000);
        }
        echo_tcp(&net.left_host, (&net.near_host, 2), family, 4 << 20, 0);
    }
    let written = net.kernel.written();
    assert!(!written.taken.contains_key(&UDP) && written.taken[&0] >= 400, "{written:?}");
    assert!(written.taken.contains_key(&TCP4) && written.taken.contains_key(&TCP6), "{written:?}");
    net.assert_no_drops();
}

#[test]
fn a_kind_of_super_packet_that_the_tun_device_refuses_is_written_packet_by_packet_and_the_others_are_not() {
    if !can_make_namespaces() {
        return;
    }
    for refused in [UDP, TCP4, TCP6] {
        let net = Net::new(outer_v4(), Lacks { written_types: vec![refused], ..Lacks::default() });
        for family in [Family::V4, Family::V6] {
            let mut flow = Flow::new((&net.near_host, 2), (&net.left_host, 1), family);
            for _ in 0..10 {
                flow.exchange(40, 1000);
            }
            echo_tcp(&net.near_host, (&net.left_host, 1), family, 2 << 20, 0);
        }
        let written = net.kernel.written();
        // Those of one batch for each kind; both families' UDP has the same number.
        let tries = written.refused.get(&refused).copied().unwrap_or_default();
        assert!((1..=16).contains(&tries) && !written.taken.contains_key(&refused), "{written:?}");
        for kind in [UDP, TCP4, TCP6].into_iter().filter(|&kind| kind != refused) {
            assert!(written.taken.contains_key(&kind), "{written:?}");
        }
        net.assert_no_drops();
    }
}

#[test]
fn what_a_full_socket_does_not_take_is_counted_and_the_rest_arrives() {
    if !can_make_namespaces() {
        return;
    }
    let net = Net::new(outer_v4(), Lacks::default());
    let mut flows = net.flows(Family::V4);
    flows[1].exchange(1, 100);
    net.left_host.run("tc", "qdisc add dev v1 root tbf rate 4mbit burst 4000 limit 100000000");
    let socket = net.kernel.socket().expect("something was sent");
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 10_000);
    const COUNT: u64 = 2000;
    for _ in 0..COUNT / 40 {
        flows[1].send(40, 1000);
    }
    let receiver = flows[1].receiver.try_clone().expect("a descriptor");
    receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout can be set");
    let mut buffer = [0; 2000];
    let mut arrived = 0;
    let is_complete = |arrived| arrived + net.drops(DropReason::SendQueueFull) == COUNT;
    wait_for("every datagram being received or counted", || {
        while received(&receiver, &mut buffer).is_ok() {
            arrived += 1;
        }
        is_complete(arrived)
    });
    assert!(arrived > 0 && net.drops(DropReason::SendQueueFull) > 0, "{arrived} arrived");
    assert_eq!(net.drops(DropReason::SendFailed), 0);
    // Nothing is left of it.
    net.left_host.run("tc", "qdisc del dev v1 root");
    flows[1].received = flows[1].sent;
    exchange_both(&mut flows, 40, 1000);
    for to in [outer_v4().near, outer_v4().far] {
        let sent = net.kernel.sent(to);
        assert!(sent.refused_singles == 0 && sent.trains > 0, "{sent:?}");
    }
}

// -------------------------------------------------------------------------------------------------------------- sizes

#[test]
fn super_packets_of_more_segments_than_a_train_has_arrive_whole() {
    if !can_make_namespaces() {
        return;
    }
    let outer = outer_v4();
    let net = Net::new(outer, Lacks::default());
    for family in [Family::V4, Family::V6] {
        // The smallest segment size that Linux takes.
        echo_tcp(&net.left_host, (&net.near_host, 2), family, 1 << 20, 88);
        let mut flows = net.flows(family);
        for len in [1, 2, 15, 16, 17, 499, 511] {
            exchange_both(&mut flows, 64, len);
        }
    }
    let sent = net.kernel.sent(outer.near);
    assert!(sent.longest == 64 && sent.refused_trains == 0, "{sent:?}");
    net.assert_no_drops();
}

#[test]
fn senders_on_a_link_wider_than_a_datagram_are_told_what_passes() {
    if !can_make_namespaces() {
        return;
    }
    let net = Net::new(outer_v4(), Lacks::default());
    net.set_mtu(65_535);
    for family in [Family::V4, Family::V6] {
        echo_tcp(&net.left_host, (&net.near_host, 2), family, 1 << 20, 0);
        assert!(net.left_host.ip(&format!("route get {}", family.inner(2))).contains("mtu 65472"));
    }
    assert!(net.drops(DropReason::PacketTooBig) > 0);
    net.assert_no_drops();
}

#[test]
fn links_of_every_mtu_carry_packets_up_to_it() {
    if !can_make_namespaces() {
        return;
    }
    for underlay in [1500, 9000, 65_535] {
        let net = Net::prepared(outer_v4(), Lacks::default(), |[left, near, far]| {
            for (host, link) in [(left, "v0"), (left, "v1"), (near, "v0"), (far, "v0")] {
                host.ip(&format!("link set {link} mtu {underlay}"));
            }
        });
        let mut flows = [Family::V4, Family::V6].map(|family| net.flows(family));
        for mtu in [1280, 1281, 1420, 1499, 2304, 8920, 9001, 32_768, 65_472, 65_475] {
            net.set_mtu(mtu);
            for (flows, headers_len) in flows.iter_mut().zip([28, 48]) {
                for short_by in [0, 1, 15, 16] {
                    let len = usize::from(mtu) - headers_len - short_by;
                    exchange_both(flows, (65_000 / len as u32).clamp(1, 20), len);
                }
            }
            for family in [Family::V4, Family::V6] {
                echo_tcp(&net.left_host, (&net.near_host, 2), family, 1 << 20, 0);
            }
        }
        net.assert_no_drops();
    }
}
