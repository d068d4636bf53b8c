//! Batches in front of the real kernel, over the loopback link.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use wg_core::{DatagramSource, SourceAddr};

use super::send::MAX_WAIT;
use super::singly::SINGLY_FOR;
use super::*;
use crate::cmsg::{self, Outgoing};

fn put(batch: &mut OutBatch, to: &Endpoint, traffic_class: u8, bytes: &[u8]) {
    batch.reserve(to, traffic_class, bytes.len()).expect("there is room").copy_from_slice(bytes);
    batch.commit(bytes.len());
}

fn receiver() -> (UdpSocket, Endpoint) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = Endpoint::new(socket.local_addr().unwrap());
    (socket, to)
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).expect("a datagram within five seconds");
    buffer.truncate(len);
    buffer
}

fn train_lens(batch: &OutBatch) -> Vec<(usize, u32)> {
    batch.trains.iter().map(|train| (train.len, train.count)).collect()
}

#[test]
fn datagrams_to_interleaved_endpoints_still_form_one_train_each() {
    let (a, b) = (Endpoint::new("192.0.2.1:1".parse().unwrap()), Endpoint::new("[fd00::1]:1".parse().unwrap()));
    let mut batch = OutBatch::new();
    for _ in 0..10 {
        put(&mut batch, &a, 0, &[1; 100]);
        put(&mut batch, &b, 0, &[2; 200]);
    }
    assert_eq!(train_lens(&batch), [(1000, 10), (2000, 10)]);
}

#[test]
fn a_train_ends_with_a_shorter_datagram_before_a_longer_one_at_another_class_or_source_and_when_full() {
    let to = Endpoint::new("192.0.2.1:1".parse().unwrap());
    let mut moved = to;
    moved.source = Some(SourceAddr { ip: "192.0.2.9".parse().unwrap(), ifindex: 3 });
    let mut batch = OutBatch::new();
    put(&mut batch, &to, 0, &[0; 100]);
    put(&mut batch, &to, 0, &[0; 99]);
    put(&mut batch, &to, 0, &[0; 99]);
    put(&mut batch, &to, 0, &[0; 101]);
    put(&mut batch, &to, 1, &[0; 101]);
    put(&mut batch, &moved, 1, &[0; 101]);
    assert_eq!(train_lens(&batch), [(199, 2), (99, 1), (101, 1), (101, 1), (101, 1)]);
    batch.clear();
    for _ in 0..65 {
        put(&mut batch, &to, 0, &[0; 10]);
    }
    assert_eq!(train_lens(&batch), [(640, 64), (10, 1)]);
    batch.clear();
    for _ in 0..46 {
        put(&mut batch, &to, 0, &[0; 1452]);
    }
    assert_eq!(train_lens(&batch), [(45 * 1452, 45), (1452, 1)]);
}

#[test]
fn a_reservation_that_is_not_committed_leaves_no_trace() {
    let (socket, to) = receiver();
    let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
    batch.reserve(&to, 0, 500).unwrap().fill(7);
    assert!(batch.is_empty());
    put(&mut batch, &to, 0, b"first");
    batch.reserve(&to, 0, 5).unwrap().fill(7);
    put(&mut batch, &to, 0, b"then");
    batch.reserve(&to, 0, 3).unwrap().fill(7);
    batch.send(&sockets, Instant::EPOCH);
    assert_eq!((received(&socket), received(&socket)), (b"first".to_vec(), b"then".to_vec()));
    put(&mut batch, &to, 0, b"end");
    batch.send(&sockets, Instant::EPOCH);
    assert_eq!(received(&socket), b"end");
}

#[test]
fn a_full_batch_refuses_and_takes_again_once_sent() {
    let mut batch = OutBatch::new();
    let to = |port: usize| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port as u16 + 1)));
    for port in 0..MAX_TRAINS {
        put(&mut batch, &to(port), 0, &[1]);
    }
    assert!(batch.reserve(&to(MAX_TRAINS), 0, 1).is_none());
    assert!(batch.reserve(&to(7), 0, 1).is_some());
    assert!(batch.reserve(&to(7), 0, MAX_TRAIN_LEN + 1).is_none());
    batch.clear();
    assert!(batch.reserve(&to(MAX_TRAINS), 0, 1).is_some());
}

#[test]
fn trains_arrive_datagram_by_datagram_with_ecn_and_the_address_they_were_sent_to() {
    let (from, to) = (UdpSockets::bind(0, 0).unwrap(), UdpSockets::bind(0, 0).unwrap());
    for (family, ip) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
        let endpoint = Endpoint::new(SocketAddr::new(ip.parse().unwrap(), to.port()));
        let mut batch = OutBatch::new();
        let datagrams: Vec<Vec<u8>> = (0..30_u8).map(|n| vec![n; if n == 29 { 9 } else { 1452 }]).collect();
        for datagram in &datagrams {
            put(&mut batch, &endpoint, 0b1011_1001, datagram);
        }
        let report = batch.send(&from, Instant::EPOCH);
        assert_eq!((report.failed, report.queue_full), (0, 0));
        let mut got = Vec::new();
        let mut receive = ReceiveBatch::new();
        while got.len() < datagrams.len() {
            receive.receive(to.fd_of(family).unwrap()).unwrap();
            while let Some(datagram) = receive.next_datagram() {
                assert_eq!(datagram.ecn, 0b01);
                assert_eq!(datagram.from.remote.port(), from.port());
                assert_eq!(datagram.from.source.map(|source| source.ip), Some(endpoint.remote.ip()));
                got.push(datagram.bytes.to_vec());
            }
        }
        assert_eq!(got, datagrams);
    }
}

#[test]
fn a_source_address_that_is_gone_is_reported_and_nothing_is_lost() {
    // The kernel's words differ: no route for one family, an invalid argument for the other.
    for (home, gone) in [("127.0.0.1:0", "203.0.113.7"), ("[::1]:0", "2001:db8::7")] {
        let socket = UdpSocket::bind(home).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut to = Endpoint::new(socket.local_addr().unwrap());
        to.source = Some(SourceAddr { ip: gone.parse().unwrap(), ifindex: 1 });
        let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
        for _ in 0..3 {
            put(&mut batch, &to, 0, b"hello");
        }
        put(&mut batch, &to, 0, b"longer");
        let report = batch.send(&sockets, Instant::EPOCH);
        assert_eq!((report.failed, report.queue_full), (0, 0));
        assert_eq!(report.refused_sources, [to.remote]);
        for expected in ["hello", "hello", "hello", "longer"] {
            assert_eq!(received(&socket), expected.as_bytes());
        }
        // Trains were not to blame.
        assert!(batch.singly.is_empty());
    }
}

#[test]
fn an_endpoint_that_is_refused_is_counted_and_touches_no_other() {
    let (socket, good) = receiver();
    let bad = Endpoint::new("127.0.0.1:0".parse().unwrap());
    let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
    for _ in 0..4 {
        put(&mut batch, &bad, 0, b"lost");
        put(&mut batch, &good, 0, b"sent");
    }
    let report = batch.send(&sockets, Instant::EPOCH);
    assert_eq!((report.failed, report.queue_full), (4, 0));
    for _ in 0..4 {
        assert_eq!(received(&socket), b"sent");
    }
    assert!(batch.singly.is_empty());
}

#[test]
fn a_train_that_is_refused_after_a_full_queue_is_split_and_its_source_not_blamed() {
    let (socket, to) = receiver();
    let sockets = UdpSockets::bind(0, 0).unwrap();
    // More datagrams than the kernel takes in a train.
    let message = Outgoing {
        bytes: &[7; 200],
        segment_len: 1,
        remote: to.remote,
        source: Some("127.0.0.1".parse().unwrap()),
        traffic_class: 0,
    };
    for first in [libc::EAGAIN, libc::EINTR, libc::EINVAL] {
        let mut send = Send::default();
        let fd = sockets.fd_of(Family::V4).unwrap();
        send.rescue(fd, message, io::Error::from_raw_os_error(first));
        assert_eq!((send.report.failed, send.report.queue_full), (0, 0));
        assert!(send.report.refused_sources.is_empty());
        assert_eq!(send.refused_trains, [(to.remote, 1)]);
        for _ in 0..200 {
            assert_eq!(received(&socket), [7]);
        }
    }
}

#[test]
fn a_source_address_that_leads_elsewhere_is_reported_once_after_each_change_and_never_used() {
    let remote = "127.0.0.1:9".parse().unwrap();
    let mut batch = OutBatch::new();
    let mut check = |ifindex, version| {
        let mut to = Endpoint::new(remote);
        to.source = Some(SourceAddr { ip: "127.0.0.1".parse().unwrap(), ifindex });
        batch.clear();
        put(&mut batch, &to, 0, b"hello");
        let outdated = batch.check_sources(version, 0);
        (outdated, batch.trains[0].to.source)
    };
    // The first link is the loopback one.
    let used = Some(SourceAddr { ip: "127.0.0.1".parse().unwrap(), ifindex: 1 });
    assert_eq!(check(1, 1), (vec![], used));
    for version in [1, 2] {
        assert_eq!(check(77, version), (vec![remote], None));
        assert_eq!(check(77, version), (vec![], None));
        assert_eq!(check(1, version), (vec![], used));
    }
}

/// Runs a test in a network namespace of its own; not at all without the right to make one.
fn in_new_namespace(test: impl FnOnce() + std::marker::Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match cmsg::enter_new_namespace() {
            Ok(()) => {
                ip("link set lo up");
                test();
            }
            Err(error) => println!("skipped: a network namespace needs root: {error}"),
        });
        thread.join().expect("the test inside panicked");
    });
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &str) {
    let status = std::process::Command::new(program).args(arguments.split_whitespace()).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {arguments}");
}

/// Two sockets, and the endpoint of the second one.
fn pair_of_sockets() -> (UdpSockets, UdpSockets, Endpoint) {
    let (from, to) = (UdpSockets::bind(0, 0).unwrap(), UdpSockets::bind(0, 0).unwrap());
    let endpoint = Endpoint::new(SocketAddr::from(([127, 0, 0, 1], to.port())));
    (from, to, endpoint)
}

/// How many datagrams each message had that the socket received, and all their bytes.
fn received_trains(sockets: &UdpSockets, endpoint: &Endpoint) -> (Vec<usize>, Vec<u8>) {
    let mut receive = ReceiveBatch::new();
    let (mut counts, mut bytes) = (Vec::new(), Vec::new());
    let socket = sockets.fd_of(Family::of(endpoint.remote)).unwrap();
    loop {
        receive.receive(socket).unwrap();
        if receive.is_empty() {
            return (counts, bytes);
        }
        counts.extend(receive.datagrams_per_message());
        while let Some(datagram) = receive.next_datagram() {
            bytes.extend_from_slice(datagram.bytes);
        }
    }
}

#[test]
fn trains_that_do_not_fit_the_path_go_singly_for_a_minute_and_shorter_ones_and_other_endpoints_as_before() {
    in_new_namespace(|| {
        for (narrow_ip, other_ip) in [("127.0.0.2", "127.0.0.3"), ("fd00::2", "fd00::3")] {
            let (from, to, _) = pair_of_sockets();
            let endpoint = |ip: &str| Endpoint::new(SocketAddr::new(ip.parse().unwrap(), to.port()));
            let (narrow, other) = (endpoint(narrow_ip), endpoint(other_ip));
            let prefix = if narrow.remote.is_ipv4() { 32 } else { 128 };
            for ip_address in [narrow_ip, other_ip] {
                ip(&format!("address add {ip_address}/{prefix} dev lo"));
            }
            ip("link set lo mtu 1400");
            let mut batch = OutBatch::new();
            let mut exchange = |to_whom: &Endpoint, len: usize, now: Instant| {
                let sent: Vec<u8> = (0..10 * len).map(|at| (at / len) as u8).collect();
                sent.chunks(len).for_each(|datagram| put(&mut batch, to_whom, 0, datagram));
                let report = batch.send(&from, now);
                assert_eq!((report.failed, report.queue_full), (0, 0));
                let (counts, bytes) = received_trains(&to, to_whom);
                assert!(bytes == sent, "every byte arrives, in order");
                counts
            };
            let begin = Instant::EPOCH + Duration::from_secs(500);
            let last = begin + SINGLY_FOR - Duration::from_nanos(1);
            assert_eq!(exchange(&narrow, 1452, begin), [1; 10]);
            ip("link set lo mtu 65536");
            for now in [begin, last] {
                assert_eq!(exchange(&narrow, 1452, now), [1; 10], "the kernel is believed for a while");
                assert_eq!(exchange(&narrow, 1300, now), [10]);
                assert_eq!(exchange(&other, 1452, now), [10]);
            }
            assert_eq!(exchange(&narrow, 1452, begin + SINGLY_FOR), [10], "and tried again");
        }
    });
}

#[test]
fn what_a_firewall_refuses_is_counted_and_nothing_else_is_concluded() {
    in_new_namespace(|| {
        let (from, to, endpoint) = pair_of_sockets();
        run("nft", "add table ip t");
        run("nft", "add chain ip t out { type filter hook output priority 0 ; }");
        run("nft", &format!("add rule ip t out udp dport {} drop", to.port()));
        let mut batch = OutBatch::new();
        let mut send = || {
            for _ in 0..10 {
                put(&mut batch, &endpoint, 0, &[7; 100]);
            }
            let report = batch.send(&from, Instant::EPOCH);
            assert!(report.refused_sources.is_empty() && report.queue_full == 0 && batch.singly.is_empty());
            report.failed
        };
        assert_eq!(send(), 10);
        run("nft", "delete table ip t");
        assert_eq!(send(), 0);
        assert_eq!(received_trains(&to, &endpoint).0, [10]);
    });
}

#[test]
fn a_socket_that_stays_full_is_waited_for_a_bounded_time_and_what_it_does_not_take_is_counted() {
    in_new_namespace(|| {
        // A link that sends nothing for hours.
        ip("link add v0 type veth peer name v1");
        ip("address add 192.0.2.1/24 dev v0");
        ip("link set v0 up");
        ip("link set v1 up");
        run("ip", "neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev v0");
        run("tc", "qdisc add dev v0 root tbf rate 8bit burst 2000 limit 1000000000");
        let sockets = UdpSockets::bind(0, 0).unwrap();
        let socket = sockets.fd_of(Family::V4).unwrap();
        cmsg::set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 20_000).unwrap();
        let mut batch = OutBatch::new();
        for port in 1..=200 {
            let to = Endpoint::new(SocketAddr::from(([192, 0, 2, 2], port)));
            for _ in 0..5 {
                put(&mut batch, &to, 0, &[7; 1000]);
            }
        }
        let mut send = Send::default();
        send_all(socket, Messages::new(&batch, Family::V4, true, Instant::EPOCH), &mut send);
        assert!(send.report.queue_full > 900 && send.report.queue_full % 5 == 0, "{:?}", send.report);
        assert_eq!((send.report.failed, send.waited), (0, MAX_WAIT));
        assert!(send.refused_trains.is_empty() && send.report.refused_sources.is_empty());
        // The next batch, to somebody else, is waited for anew.
        let (receiver, to) = receiver();
        cmsg::set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 2_000_000).unwrap();
        batch.clear();
        put(&mut batch, &to, 0, b"passes");
        assert_eq!(batch.send(&sockets, Instant::EPOCH).queue_full, 0);
        assert_eq!(received(&receiver), b"passes");
    });
}

#[test]
fn a_batch_of_the_longest_trains_a_host_can_send_itself_has_no_more_datagrams_than_announced() {
    const LEN: usize = 500;
    let (from, to, endpoint) = pair_of_sockets();
    let sent: Vec<u8> = (0..128 * LEN).map(|at| (at / LEN) as u8).collect();
    let train =
        Outgoing { bytes: &sent, segment_len: LEN as u16, remote: endpoint.remote, source: None, traffic_class: 0 };
    for _ in 0..8 {
        if let Err(error) = cmsg::send_messages(from.fd_of(Family::V4).unwrap(), std::iter::once(train)) {
            return println!("skipped: this kernel sends trains of 64 only: {error}");
        }
    }
    let mut receive = ReceiveBatch::new();
    receive.receive(to.fd_of(Family::V4).unwrap()).unwrap();
    for (index, expected) in (0..8).flat_map(|_| sent.chunks(LEN)).enumerate() {
        let datagram = receive.next_datagram().unwrap_or_else(|| panic!("{index} datagrams of 1024 arrived"));
        assert!(datagram.bytes == expected, "datagram {index}");
    }
    assert!(receive.next_datagram().is_none());
    assert_eq!(MAX_RECEIVED, 1024);
}

#[test]
fn a_kernel_that_does_not_know_trains_is_given_none() {
    let (_, to, endpoint) = pair_of_sockets();
    let mut batch = OutBatch::new();
    for datagram in [b"one", b"two", b"six"] {
        put(&mut batch, &endpoint, 0, datagram);
    }
    let lens = |takes_trains| {
        let messages = Messages::new(&batch, Family::V4, takes_trains, Instant::EPOCH);
        messages.map(|message| (message.bytes.len(), message.segment_len)).collect::<Vec<_>>()
    };
    assert_eq!(lens(true), [(9, 3)]);
    assert_eq!(lens(false), [(3, 0); 3]);
    drop(to);
}
