//! What does the engine cost per packet beyond the cipher? One packet out and in, at 64, 576 and 1420 bytes, and a
//! train of 44, against `ring` sealing and opening the same bytes in the same run. Read the ratio, not the time.
//!
//! And what does the trie cost there? `out/prefixes` and `in/prefixes` are trains of 64 bytes whose addresses are spread
//! over all prefixes of the peer, so that no packet finds what the last one had in the cache.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wg_core::{
    DATA_OVERHEAD, Datagram, DatagramSink, DatagramSource, Endpoint, Engine, EngineConfig, Instant, PADDING_SLACK,
    PacketSink, PacketSlot, PacketSource, Prefix, PrivateKey, SourceChecked,
};

const SIZES: [usize; 3] = [64, 576, 1420];
const TRAIN: usize = 44;
const PREFIXES: [u32; 4] = [1, 16, 1_000, 100_000];

/// Sizes and how many packets of it are handled at once.
fn cases() -> impl Iterator<Item = (usize, usize)> {
    [1, TRAIN].into_iter().flat_map(|count| SIZES.map(|size| (size, count)))
}

/// Lends the same packet a number of times.
struct Repeated {
    packet: Vec<u8>,
    len: usize,
    left: usize,
}

impl PacketSource for Repeated {
    fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
        self.left = self.left.checked_sub(1)?;
        Some(PacketSlot { buffer: &mut self.packet, len: self.len })
    }
}

/// Keeps datagrams end to end, as a train.
#[derive(Default)]
struct Train {
    bytes: Vec<u8>,
    used: usize,
    lens: Vec<usize>,
}

impl Train {
    fn new() -> Self {
        Train { bytes: vec![0; 1 << 20], ..Train::default() }
    }

    fn clear(&mut self) {
        self.used = 0;
        self.lens.clear();
    }
}

impl DatagramSink for Train {
    fn reserve(&mut self, _to: &Endpoint, _traffic_class: u8, len: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.used..self.used + len)
    }

    fn commit(&mut self, len: usize) {
        self.used += len;
        self.lens.push(len);
    }
}

impl PacketSink for Train {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.used..self.used + len)
    }

    fn commit(&mut self, packet: SourceChecked) {
        self.used += packet.len();
        self.lens.push(packet.len());
    }
}

/// Lends the datagrams of a train.
struct Received<'a> {
    train: &'a Train,
    offset: usize,
    next: usize,
    from: Endpoint,
}

impl DatagramSource for Received<'_> {
    fn next_datagram(&mut self) -> Option<Datagram<'_>> {
        let len = *self.train.lens.get(self.next)?;
        self.next += 1;
        let bytes = &self.train.bytes[self.offset..self.offset + len];
        self.offset += len;
        Some(Datagram { bytes, from: self.from, ecn: 0 })
    }
}

struct Side {
    engine: Engine,
    at: Endpoint,
}

/// Two engines with a session; the left one has 10.0.0.1, the right one 10.0.0.2.
fn pair(now: Instant) -> (Side, Side) {
    let side = |number: u8| Side {
        engine: Engine::new(EngineConfig::new([number; 32]), now),
        at: Endpoint::new(SocketAddr::from(([192, 0, 2, number], 51820))),
    };
    let (left, right) = (side(1), side(2));
    let keys = [1u8, 2].map(|number| PrivateKey::from_bytes([number; 32]));
    for (own, other, side, far, far_number) in [(0, 1, &left, &right, 2), (1, 0, &right, &left, 1)] {
        side.engine.set_private_key(Some(keys[own].clone()), now);
        let peer = side.engine.add_peer(keys[other].public_key()).expect("room for one");
        side.engine.set_endpoint(peer, far.at.remote, now).expect("just added");
        let prefix = format!("10.0.0.{far_number}/32").parse().expect("a prefix");
        side.engine.add_allowed_ip(peer, prefix).expect("just added");
        side.engine.bring_up(now);
    }
    let (mut wire, mut up) = (Train::new(), Train::new());
    left.engine.handle_packets(&mut packets(64, 1), &mut wire, now);
    left.engine.handle_handshakes(8, &mut wire, now);
    for round in 0..4 {
        let (to, from) = if round % 2 == 0 { (&right, &left) } else { (&left, &right) };
        let mut answer = Train::new();
        let mut received = Received { train: &wire, offset: 0, next: 0, from: from.at };
        to.engine.handle_datagrams(&mut received, &mut up, &mut answer, now);
        to.engine.handle_handshakes(8, &mut answer, now);
        wire = answer;
    }
    assert_eq!(up.lens, [64], "the staged packet arrived, so there is a session");
    (left, right)
}

fn packets(len: usize, count: usize) -> Repeated {
    let mut packet = vec![0; len + PADDING_SLACK];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    Repeated { packet, len, left: count }
}

fn cipher() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes"))
}

fn outwards(criterion: &mut Criterion) {
    let now = Instant::from_nanos(1_000_000_000);
    let (left, _right) = pair(now);
    for (size, count) in cases() {
        let mut group = criterion.benchmark_group(format!("out/{size}x{count}"));
        group.throughput(Throughput::Elements(count as u64));
        let mut wire = Train::new();
        group.bench_function(BenchmarkId::from_parameter("engine"), |bencher| {
            let mut source = packets(size, count);
            bencher.iter(|| {
                wire.clear();
                source.left = count;
                let report = left.engine.handle_packets(&mut source, &mut wire, now);
                assert_eq!(report.passed, count);
            });
        });
        let key = cipher();
        group.bench_function(BenchmarkId::from_parameter("ring"), |bencher| {
            let mut bytes = vec![0; (size + DATA_OVERHEAD) * count];
            bencher.iter(|| {
                for packet in bytes.chunks_exact_mut(size + DATA_OVERHEAD) {
                    let nonce = Nonce::assume_unique_for_key([1; 12]);
                    let sealed = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet[16..16 + size]);
                    let tag = sealed.expect("short enough");
                    packet[16 + size..].copy_from_slice(tag.as_ref());
                }
                black_box(&mut bytes);
            });
        });
        group.finish();
    }
}

fn inwards(criterion: &mut Criterion) {
    let now = Instant::from_nanos(1_000_000_000);
    for (size, count) in cases() {
        let mut group = criterion.benchmark_group(format!("in/{size}x{count}"));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter("engine"), |bencher| {
            // Each message can be opened once, so they are sealed first, outside the measured time.
            bencher.iter_custom(|rounds| {
                let (left, right) = pair(now);
                let (mut wire, mut up, mut none) = (Train::new(), Train::new(), Train::new());
                let mut source = packets(size, count);
                let mut elapsed = Duration::ZERO;
                for _ in 0..rounds {
                    wire.clear();
                    up.clear();
                    source.left = count;
                    left.engine.handle_packets(&mut source, &mut wire, now);
                    let mut received = Received { train: &wire, offset: 0, next: 0, from: left.at };
                    let start = std::time::Instant::now();
                    let report = right.engine.handle_datagrams(&mut received, &mut up, &mut none, now);
                    elapsed += start.elapsed();
                    assert_eq!(report.passed, count);
                }
                elapsed
            });
        });
        let key = cipher();
        group.bench_function(BenchmarkId::from_parameter("ring"), |bencher| {
            let mut sealed = vec![0; size];
            let tag = key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key([1; 12]), Aad::empty(), &mut sealed)
                .expect("short enough");
            sealed.extend_from_slice(tag.as_ref());
            let mut bytes = sealed.clone();
            bencher.iter_custom(|rounds| {
                let mut elapsed = Duration::ZERO;
                for _ in 0..rounds {
                    let start = std::time::Instant::now();
                    for _ in 0..count {
                        bytes.copy_from_slice(&sealed);
                        let nonce = Nonce::assume_unique_for_key([1; 12]);
                        key.open_in_place(nonce, Aad::empty(), &mut bytes).expect("authentic");
                    }
                    elapsed += start.elapsed();
                }
                elapsed
            });
        });
        group.finish();
    }
}

/// The host's address in the prefix with this number, among those of the engine on one side.
fn inner_address(side: u8, number: u32) -> [u8; 4] {
    // Neighbours in number are far apart in the trie.
    let [_, a, b, c] = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
    [10 + side, a, b, c]
}

/// Lends packets to, and from, one prefix after the other.
struct Spread {
    packet: Repeated,
    prefixes: u32,
    next: u32,
}

impl PacketSource for Spread {
    fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
        self.next = (self.next + 1) % self.prefixes;
        self.packet.packet[12..16].copy_from_slice(&inner_address(1, self.next));
        self.packet.packet[16..20].copy_from_slice(&inner_address(2, self.next));
        self.packet.next_packet()
    }
}

fn spread(prefixes: u32) -> Spread {
    Spread { packet: packets(64, TRAIN), prefixes, next: 0 }
}

/// Like `pair`, and each peer has this many prefixes more.
fn pair_with(prefixes: u32, now: Instant) -> (Side, Side) {
    let (left, right) = pair(now);
    for (side, far) in [(&left, 2), (&right, 1)] {
        let peer = side.engine.peers()[0].id;
        for number in 0..prefixes {
            let prefix = Prefix::new(inner_address(far, number).into(), 32).expect("a length of its family");
            side.engine.add_allowed_ip(peer, prefix).expect("it exists");
        }
    }
    (left, right)
}

fn trie(criterion: &mut Criterion) {
    let now = Instant::from_nanos(1_000_000_000);
    for prefixes in PREFIXES {
        let (left, right) = pair_with(prefixes, now);
        let (mut wire, mut up, mut none) = (Train::new(), Train::new(), Train::new());
        let mut source = spread(prefixes);
        let mut group = criterion.benchmark_group("out/prefixes");
        group.throughput(Throughput::Elements(TRAIN as u64));
        group.bench_function(BenchmarkId::from_parameter(prefixes), |bencher| {
            bencher.iter(|| {
                wire.clear();
                source.packet.left = TRAIN;
                assert_eq!(left.engine.handle_packets(&mut source, &mut wire, now).passed, TRAIN);
            });
        });
        group.finish();
        let mut group = criterion.benchmark_group("in/prefixes");
        group.throughput(Throughput::Elements(TRAIN as u64));
        group.bench_function(BenchmarkId::from_parameter(prefixes), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut elapsed = Duration::ZERO;
                for _ in 0..rounds {
                    wire.clear();
                    up.clear();
                    source.packet.left = TRAIN;
                    left.engine.handle_packets(&mut source, &mut wire, now);
                    let mut received = Received { train: &wire, offset: 0, next: 0, from: left.at };
                    let start = std::time::Instant::now();
                    let report = right.engine.handle_datagrams(&mut received, &mut up, &mut none, now);
                    elapsed += start.elapsed();
                    assert_eq!((report.passed, up.lens.len()), (TRAIN, TRAIN));
                }
                elapsed
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = outwards, inwards, trie
}
criterion_main!(benches);
