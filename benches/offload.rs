//! What do segmentation and coalescing cost per packet, in nanoseconds, by kind of traffic? And the checksum, by length,
//! against the one that is compiled for the least machine?
//!
//! `split` takes packets out of what was read from the TUN device; `coalesce` joins them to what will be written; `both`
//! does one after the other, packet by packet. The cipher that is between them in earnest would copy each packet: here
//! its bytes lie in place already and only its headers are written, so that no copy is measured.
//!
//! `44x1420` is one super-packet of a bulk transfer. `interleaved` is four of them whose packets come in turns, so that
//! each is copied behind its flow. `singles` are 64 packets of 64 bytes in as many flows, which nothing joins.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use wg_core::packet::checksum::{fold, sum};
use wg_core::packet::ip::IpPacket;
use wg_core::{AllowedIps, Instant, PacketSink, PacketSource, PeerId, SourceChecked};
use wg_tun::offload::{
    CoalesceBatch, HEADER_LEN, Kind, NEEDS_CHECKSUM, SplitBatch, VirtioHeader, checksum_sum, for_each_packet,
};

const PACKET_LEN: usize = 1420;
const TRAIN: usize = 44;
const FLOWS: usize = 4;
const SINGLES: usize = 64;
const SINGLE_LEN: usize = 64;

/// One read from the TUN device: a virtio header and a packet of `kind` whose payload stands for `count` packets of
/// `packet_len` bytes.
fn frame(kind: Kind, flow: usize, packet_len: usize, count: usize) -> Vec<u8> {
    let (is_v4, is_tcp) = (matches!(kind, Kind::Tcp4 | Kind::Udp4), matches!(kind, Kind::Tcp4 | Kind::Tcp6));
    let transport_at = if is_v4 { 20 } else { 40 };
    // With time stamps, as Linux sends it.
    let headers_len = transport_at + if is_tcp { 32 } else { 8 };
    let segment_len = packet_len - headers_len;
    let len = headers_len + segment_len * count;
    let mut packet: Vec<u8> = (0..len).map(|index| (index * 7 + flow) as u8).collect();
    let protocol = if is_tcp { 6 } else { 17 };
    if is_v4 {
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = !fold(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        packet[8..40].fill(0xfd);
    }
    let transport_len = (len - transport_at) as u16;
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let partial = fold(sum(&packet[addresses]) + u32::from(protocol) + u32::from(transport_len));
    let transport = &mut packet[transport_at..headers_len];
    transport[..4].copy_from_slice(&[10, flow as u8, 1, 0xbb]);
    let checksum_offset = if is_tcp { 16 } else { 6 };
    if is_tcp {
        transport[12..14].copy_from_slice(&[0x80, 0x10]);
        transport[18..24].copy_from_slice(&[0, 0, 1, 1, 8, 10]);
    } else {
        transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
    }
    transport[checksum_offset..checksum_offset + 2].copy_from_slice(&partial.to_be_bytes());
    let gso_type = match kind {
        _ if count == 1 => 0,
        Kind::Tcp4 => 1,
        Kind::Tcp6 => 4,
        _ => 5,
    };
    let header = VirtioHeader {
        flags: NEEDS_CHECKSUM,
        gso_type,
        header_len: headers_len as u16,
        segment_len: if count == 1 { 0 } else { segment_len as u16 },
        checksum_start: transport_at as u16,
        checksum_offset: checksum_offset as u16,
    };
    let mut frame = vec![0; HEADER_LEN];
    header.write(&mut frame);
    frame.extend(packet);
    frame
}

/// The packets of all frames, frame by frame.
fn packets(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for frame in frames {
        let header = VirtioHeader::parse(frame).expect("a frame begins with one");
        for_each_packet(&mut frame[HEADER_LEN..].to_vec(), header, |packet| packets.push(packet.to_vec()));
    }
    packets
}

/// The proofs that `commit` asks for; what they cost is another bench's question.
fn checked(packets: &[Vec<u8>]) -> Vec<SourceChecked> {
    let mut allowed_ips = AllowedIps::new();
    let peer = PeerId::new(0, 0);
    allowed_ips.insert("0.0.0.0/0".parse().expect("a prefix"), peer);
    allowed_ips.insert("::/0".parse().expect("a prefix"), peer);
    let check = |packet: &Vec<u8>| {
        let view = IpPacket::parse(packet).expect("a whole packet");
        allowed_ips.check_source(&view, peer).expect("every source is the peer's")
    };
    packets.iter().map(check).collect()
}

/// How much of a packet is written where it is opened.
#[derive(Clone, Copy)]
enum Written {
    All,
    /// As much as its headers and what another packet may have left over them; the rest is there since the last time.
    First(usize),
}

impl Written {
    #[inline]
    fn of(self, packet: &[u8]) -> usize {
        match self {
            Written::All => packet.len(),
            Written::First(len) => len,
        }
    }
}

fn push(split: &mut SplitBatch, frames: &[Vec<u8>]) {
    split.clear();
    for frame in frames {
        split.space().expect("there is room")[..frame.len()].copy_from_slice(frame);
        split.push(frame.len());
    }
}

fn deliver(coalesce: &mut CoalesceBatch, packets: &[Vec<u8>], checked: &[SourceChecked], written: Written) {
    coalesce.clear(Instant::EPOCH);
    for (packet, checked) in packets.iter().zip(checked) {
        let len = written.of(packet);
        coalesce.reserve(packet.len()).expect("there is room")[..len].copy_from_slice(&packet[..len]);
        coalesce.commit(*checked);
    }
}

fn drain(coalesce: &mut CoalesceBatch) -> usize {
    let mut frames = 0;
    while let Some(frame) = coalesce.next_frame(HEADER_LEN) {
        black_box(frame.bytes);
        frames += 1;
    }
    frames
}

/// Measures one kind of traffic. `frames` are what is read, `order` is the order in which their packets arrive at the
/// other end, and as many as `joined` are written there.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, frames: &[Vec<u8>], order: &[usize], joined: usize) {
    let in_order = packets(frames);
    let packets: Vec<Vec<u8>> = order.iter().map(|&index| in_order[index].clone()).collect();
    let checked = checked(&packets);
    let is_in_order = packets == in_order;
    let total = packets.len();
    // Where packets are moved from where they were opened, they must be written whole.
    let written = if is_in_order && joined < total { Written::First(72) } else { Written::All };
    group.throughput(Throughput::Elements(total as u64));
    let (mut split, mut coalesce) = (SplitBatch::new(HEADER_LEN), CoalesceBatch::new(Kind::ALL));

    let mut timed = |round: &mut dyn FnMut(&mut SplitBatch), rounds: u64| {
        let mut elapsed = Duration::ZERO;
        for _ in 0..rounds {
            push(&mut split, frames);
            let start = std::time::Instant::now();
            round(&mut split);
            elapsed += start.elapsed();
        }
        elapsed
    };
    group.bench_function("split", |bencher| {
        let mut round = |split: &mut SplitBatch| {
            let mut count = 0;
            while let Some(slot) = split.next_packet() {
                black_box(slot.buffer);
                count += 1;
            }
            assert_eq!(count, total);
        };
        bencher.iter_custom(|rounds| timed(&mut round, rounds));
    });
    deliver(&mut coalesce, &packets, &checked, Written::All);
    group.bench_function("coalesce", |bencher| {
        bencher.iter(|| {
            deliver(&mut coalesce, &packets, &checked, written);
            assert_eq!(drain(&mut coalesce), joined);
        });
    });
    if is_in_order {
        group.bench_function("both", |bencher| {
            let mut round = |split: &mut SplitBatch| {
                coalesce.clear(Instant::EPOCH);
                let mut checked = checked.iter();
                while let Some(slot) = split.next_packet() {
                    let packet = &slot.buffer[..slot.len];
                    let len = written.of(packet);
                    coalesce.reserve(packet.len()).expect("there is room")[..len].copy_from_slice(&packet[..len]);
                    coalesce.commit(*checked.next().expect("as many as packets"));
                }
                assert_eq!(drain(&mut coalesce), joined);
            };
            bencher.iter_custom(|rounds| timed(&mut round, rounds));
        });
        // What came together is what was taken apart.
        deliver(&mut coalesce, &packets, &checked, written);
        for frame in frames.iter().filter(|_| joined < total) {
            assert_eq!(coalesce.next_frame(HEADER_LEN).expect("a frame").bytes, frame);
        }
    }
}

fn super_packets(criterion: &mut Criterion) {
    for kind in [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6] {
        let mut group = criterion.benchmark_group(format!("offload/{kind:?}/{TRAIN}x{PACKET_LEN}"));
        let order: Vec<usize> = (0..TRAIN).collect();
        measure(&mut group, &[frame(kind, 0, PACKET_LEN, TRAIN)], &order, 1);
        group.finish();
    }
}

fn interleaved(criterion: &mut Criterion) {
    let each = TRAIN / FLOWS;
    let mut group = criterion.benchmark_group(format!("offload/interleaved/{FLOWS}x{each}x{PACKET_LEN}"));
    let frames: Vec<_> = (0..FLOWS).map(|flow| frame(Kind::Tcp4, flow, PACKET_LEN, each)).collect();
    let order: Vec<usize> = (0..each).flat_map(|index| (0..FLOWS).map(move |flow| flow * each + index)).collect();
    measure(&mut group, &frames, &order, FLOWS);
    group.finish();
}

fn singles(criterion: &mut Criterion) {
    for kind in [Kind::Tcp4, Kind::Udp4, Kind::Udp6] {
        let mut group = criterion.benchmark_group(format!("offload/singles/{kind:?}/{SINGLES}x{SINGLE_LEN}"));
        let len = if kind == Kind::Tcp4 { 52 } else { SINGLE_LEN };
        let frames: Vec<_> = (0..SINGLES).map(|flow| frame(kind, flow, len, 1)).collect();
        let order: Vec<usize> = (0..SINGLES).collect();
        measure(&mut group, &frames, &order, SINGLES);
        group.finish();
    }
}

fn checksums(criterion: &mut Criterion) {
    for len in [64, 576, 1420, 65_535] {
        let mut group = criterion.benchmark_group(format!("checksum/{len}"));
        group.throughput(Throughput::Bytes(len as u64));
        // Not at a cache line, as behind most headers.
        let bytes: Vec<u8> = (0..len + 20).map(|index| (index * 31) as u8).collect();
        assert_eq!(checksum_sum(&bytes[20..]), sum(&bytes[20..]));
        group.bench_function("vectors", |bencher| bencher.iter(|| checksum_sum(black_box(&bytes[20..]))));
        group.bench_function("portable", |bencher| bencher.iter(|| sum(black_box(&bytes[20..]))));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = super_packets, interleaved, singles, checksums
}
criterion_main!(benches);
