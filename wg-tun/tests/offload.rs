//! Segmentation and coalescing through the public module, against the model that the fuzz targets use too: what packets
//! rarely have (extension headers, options of IPv4, no checksum), and more segments than one round gives out.

#[path = "../../fuzz/src/segments.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the fuzz targets, which use more of it")]
mod model;

use model::{segments, sum};
use wg_core::packet::ip::IpPacket;
use wg_core::{AllowedIps, Instant, PADDING_SLACK, PacketSink, PacketSource, PeerId};
use wg_tun::offload::{CoalesceBatch, HEADER_LEN, Kind, NEEDS_CHECKSUM, SplitBatch, VirtioHeader};

/// The same numbers in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

const V4: [u8; 20] = [0x45, 0, 0, 0, 0xff, 0xfe, 0, 0, 64, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];

fn tcp(draw: &mut Draw) -> Vec<u8> {
    let options = draw.below(11) * 4;
    let mut header = vec![0, 80, 1, 0xbb, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, ((20 + options) * 4) as u8];
    header.extend([draw.below(256) as u8, 2, 0, 0, 0, 0, 0]);
    header.extend(draw.bytes(options));
    header
}

fn udp(len: usize) -> Vec<u8> {
    let [high, low] = ((8 + len) as u16).to_be_bytes();
    vec![0, 80, 1, 0xbb, high, low, 0, 0]
}

/// An IPv4 header with options in front of a transport header and its payload.
fn with_options(protocol: u8, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let mut packet = V4.to_vec();
    packet[0] += (options.len() / 4) as u8;
    packet[9] = protocol;
    packet.extend(options);
    let len = (packet.len() + inner.len()) as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let checksum = !sum(&[&packet]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(inner);
    packet
}

/// An IPv6 header and as many options headers of 8 bytes, in front of a transport header and its payload.
fn with_extension_headers(protocol: u8, count: usize, inner: &[u8]) -> Vec<u8> {
    const DESTINATION_OPTIONS: u8 = 60;
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, if count > 0 { DESTINATION_OPTIONS } else { protocol }, 64];
    packet.extend([0xfd; 32]);
    for index in 0..count {
        let next = if index + 1 < count { DESTINATION_OPTIONS } else { protocol };
        packet.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    packet.extend(inner);
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet
}

fn checksum(packet: &mut [u8], transport: usize, is_tcp: bool) {
    let at = transport + if is_tcp { 16 } else { 6 };
    let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let len = (packet.len() - transport) as u32;
    let protocol = [0, 0, 0, if is_tcp { 6 } else { 17 }];
    packet[at..at + 2].fill(0);
    let checksum = !sum(&[&packet[addresses], &protocol, &len.to_be_bytes(), &packet[transport..]]);
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Splits one super-packet as the engine takes it apart; also returns how many rounds that took.
fn split(header: VirtioHeader, packet: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let mut batch = SplitBatch::new(HEADER_LEN);
    let space = batch.space().expect("it is empty");
    header.write(&mut space[..HEADER_LEN]);
    space[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(packet);
    batch.push(HEADER_LEN + packet.len());
    let (mut packets, mut rounds) = (Vec::new(), 0);
    while !batch.is_exhausted() {
        rounds += 1;
        while let Some(slot) = batch.next_packet() {
            packets.push(slot.buffer[..slot.len].to_vec());
            slot.buffer[slot.len..slot.len + PADDING_SLACK].fill(0);
        }
    }
    assert_eq!(batch.take_malformed(), 0);
    (packets, rounds)
}

/// Delivers the packets and returns what is to be written.
fn join(packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut allowed_ips = AllowedIps::new();
    let peer = PeerId::new(0, 0);
    for all in ["0.0.0.0/0", "::/0"] {
        allowed_ips.insert(all.parse().expect("a prefix"), peer);
    }
    let mut batch = CoalesceBatch::new(Kind::ALL);
    batch.clear(Instant::EPOCH);
    for packet in packets {
        let view = IpPacket::parse(packet).expect("a whole packet");
        let checked = allowed_ips.check_source(&view, peer).expect("every source is the peer's");
        batch.reserve(packet.len() + 16).expect("there is room")[..packet.len()].copy_from_slice(packet);
        batch.commit(checked);
    }
    let mut frames = Vec::new();
    while let Some(frame) = batch.next_frame(0) {
        frames.push((frame.header, frame.bytes.to_vec()));
    }
    frames
}

#[test]
fn headers_of_any_length_are_repeated_in_front_of_each_segment() {
    for seed in 0..800 {
        let mut draw = Draw(seed);
        let (is_v4, is_tcp) = (draw.below(2) == 0, draw.below(2) == 0);
        let len = 1 + draw.below(8000);
        let mut inner = if is_tcp { tcp(&mut draw) } else { udp(len) };
        inner.extend(draw.bytes(len));
        let protocol = if is_tcp { 6 } else { 17 };
        let extra = draw.below(9);
        let (packet, transport) = if is_v4 {
            (with_options(protocol, &draw.bytes(extra * 4), &inner), 20 + extra * 4)
        } else {
            (with_extension_headers(protocol, extra, &inner), 40 + extra * 8)
        };
        let header = VirtioHeader {
            flags: NEEDS_CHECKSUM,
            gso_type: if !is_tcp {
                5
            } else if is_v4 {
                1
            } else {
                4
            },
            header_len: 0,
            segment_len: 1 + draw.below(1500) as u16,
            checksum_start: transport as u16,
            checksum_offset: if is_tcp { 16 } else { 6 },
        };
        let expected = segments(&packet, transport, is_tcp, usize::from(header.segment_len));
        assert_eq!(Some(split(header, &packet).0), expected, "seed {seed}");
    }
}

#[test]
fn behind_a_source_route_the_checksum_is_about_the_last_destination() {
    let last = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77];
    let mut inner = udp(3000);
    inner.extend(Draw(5).bytes(3000));
    let mut packet = with_extension_headers(17, 1, &inner);
    let (transport, whole_len) = (48, inner.len() as u16);
    let sum_to = |packet: &[u8], len: u16| sum(&[&packet[8..24], &last, &[0, 17], &len.to_be_bytes()]);
    // What the kernel leaves in the checksum field.
    let partial = sum_to(&packet, whole_len);
    packet[transport + 6..transport + 8].copy_from_slice(&partial.to_be_bytes());
    let header = VirtioHeader {
        flags: NEEDS_CHECKSUM,
        gso_type: 5,
        header_len: 0,
        segment_len: 1000,
        checksum_start: transport as u16,
        checksum_offset: 6,
    };
    let (segments, _) = split(header, &packet);
    assert_eq!(segments.len(), 3);
    for segment in segments {
        let len = (segment.len() - transport) as u16;
        let addresses = sum_to(&segment, len).to_be_bytes();
        assert_eq!(sum(&[&addresses, &segment[transport..]]), 0xffff, "its receiver finds the checksum right");
    }
}

#[test]
fn what_follows_a_fragment_of_its_flow_does_not_overtake_it() {
    let mut draw = Draw(6);
    let mut datagram = |is_fragment: bool| -> Vec<u8> {
        let mut packet = with_options(17, &[], &[udp(100), draw.bytes(100)].concat());
        // Linux forbids fragments of what is short, and cannot of what it fragments itself.
        packet[6] = if is_fragment { 0x20 } else { 0x40 };
        checksum(&mut packet, 20, false);
        let header_sum = {
            packet[10..12].fill(0);
            !sum(&[&packet[..20]])
        };
        packet[10..12].copy_from_slice(&header_sum.to_be_bytes());
        packet
    };
    let packets = [datagram(false), datagram(false), datagram(true), datagram(false), datagram(false)];
    let written = join(&packets);
    assert_eq!(written.len(), 3);
    assert_eq!(written[1].1, packets[2], "the fragment stays in its place");
}

#[test]
fn a_super_packet_with_more_segments_than_a_round_is_given_out_in_several() {
    let mut inner = tcp(&mut Draw(1));
    let headers_len = 20 + inner.len();
    inner.extend(Draw(2).bytes(65_535 - headers_len));
    let packet = with_options(6, &[], &inner);
    for segment_len in [1, 3, 536] {
        let header = VirtioHeader {
            flags: NEEDS_CHECKSUM,
            gso_type: 1,
            header_len: headers_len as u16,
            segment_len,
            checksum_start: 20,
            checksum_offset: 16,
        };
        let expected = segments(&packet, 20, true, usize::from(segment_len)).expect("it is whole");
        let (packets, rounds) = split(header, &packet);
        assert_eq!(rounds > 1, packets.len() > 1024);
        assert!(packets == expected, "segments of {segment_len} bytes");
    }
}

#[test]
fn packets_with_extension_headers_or_options_are_never_joined_and_stay_as_they_are() {
    let mut draw = Draw(3);
    let mut packets = Vec::new();
    for _ in 0..5 {
        let inner = [udp(100), draw.bytes(100)].concat();
        let mut packet = with_options(17, &[1; 8], &inner);
        checksum(&mut packet, 28, false);
        packets.push(packet);
        let mut packet = with_extension_headers(17, 2, &inner);
        checksum(&mut packet, 56, false);
        packets.push(packet);
    }
    let alone: Vec<_> = packets.iter().map(|packet| (VirtioHeader::default(), packet.clone())).collect();
    assert_eq!(join(&packets), alone);
}

#[test]
fn datagrams_without_a_checksum_are_joined_over_ipv4_and_leave_with_a_right_one() {
    let mut draw = Draw(4);
    let packets: Vec<Vec<u8>> = (0..10)
        .map(|index: u8| {
            let mut packet = with_options(17, &[], &[udp(301), draw.bytes(301)].concat());
            // Each its own identification, as a tunnel endpoint counts; together they may not be fragmented.
            packet[4..8].copy_from_slice(&[0, index, 0x40, 0]);
            packet[10..12].fill(0);
            let checksum = !sum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            packet
        })
        .collect();
    let joined = join(&packets);
    let [(header, whole)] = &joined[..] else { panic!("{} frames", joined.len()) };
    assert_eq!((header.gso_type, header.segment_len), (5, 301));
    let apart = split(*header, whole).0;
    assert_eq!(apart.len(), packets.len());
    for (packet, mut received) in packets.iter().zip(apart) {
        assert_ne!(received[26..28], [0, 0], "segmentation does not know that there was none");
        let pseudo_header = [&received[12..20], &[0, 0, 0, 17], &(received.len() as u32 - 20).to_be_bytes()].concat();
        assert_eq!(sum(&[&pseudo_header, &received[20..]]), 0xffff);
        received[26..28].fill(0);
        assert_eq!(*packet, received);
    }
    // With and without are two different things to the receiver.
    let mut mixed = packets.clone();
    checksum(&mut mixed[5], 20, false);
    assert_eq!(join(&mixed).len(), 3);
    // Without a checksum, over IPv6, it is not for the flow. RFC 8200 8.1.
    let bare = with_extension_headers(17, 0, &[udp(301), draw.bytes(301)].concat());
    assert_eq!(join(&[bare.clone(), bare]).len(), 2);
}

#[test]
fn a_congestion_mark_is_neither_lost_nor_spread() {
    for seed in 0..200 {
        let mut draw = Draw(seed);
        let marked: Vec<bool> = (0..30).map(|_| draw.below(5) == 0).collect();
        let packets: Vec<Vec<u8>> = marked
            .iter()
            .map(|is_marked| {
                let mut packet = with_extension_headers(17, 0, &[udp(99), draw.bytes(99)].concat());
                packet[1] = if *is_marked { 0x30 } else { 0x20 };
                checksum(&mut packet, 40, false);
                packet
            })
            .collect();
        let changes = marked.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let joined = join(&packets);
        assert_eq!(joined.len(), changes + 1);
        let apart = joined.iter().flat_map(|(header, packet)| match header.gso_type {
            0 => vec![packet.clone()],
            _ => split(*header, packet).0,
        });
        assert_eq!(apart.collect::<Vec<_>>(), packets, "seed {seed}");
    }
}

#[test]
#[should_panic(expected = "a virtio header of 11 bytes")]
fn a_virtio_header_that_no_device_has_is_refused() {
    SplitBatch::new(11);
}

#[test]
#[should_panic(expected = "there is no space")]
fn more_than_was_lent_cannot_be_pushed() {
    let mut batch = SplitBatch::new(HEADER_LEN);
    let len = batch.space().expect("it is empty").len();
    batch.push(len + 1);
}
