//! Super-packets within a UDP tunnel, against packets that are built one by one from their description.

use super::*;

/// What a tunnel puts in front of an inner packet.
#[derive(Clone, Debug)]
struct TunnelModel {
    is_v4: bool,
    traffic_class: u8,
    identification: u16,
    dont_fragment: bool,
    flow_label: u32,
    ip_options: Vec<u8>,
    source_port: u16,
    has_checksum: bool,
    /// VXLAN or Geneve, and Ethernet.
    between: Vec<u8>,
}

impl TunnelModel {
    fn draw(draw: &mut Draw) -> TunnelModel {
        let is_v4 = draw.one_in(2);
        let option_words = if is_v4 && draw.one_in(4) { draw.below(11) } else { 0 };
        // VXLAN; Geneve with options up to the most there may be.
        let header_len = if draw.one_in(2) { 8 } else { 8 + 4 * draw.below(64) };
        let ethernet_len = [14, 18, 22][draw.below(3)];
        TunnelModel {
            is_v4,
            traffic_class: draw.next() as u8,
            identification: draw.next() as u16,
            dont_fragment: draw.one_in(2),
            flow_label: draw.next() as u32 & 0xf_ffff,
            ip_options: draw.bytes(4 * option_words),
            source_port: draw.next() as u16,
            has_checksum: draw.one_in(2),
            between: draw.bytes(header_len + ethernet_len),
        }
    }

    fn ip_len(&self) -> usize {
        if self.is_v4 { 20 + self.ip_options.len() } else { 40 }
    }

    fn inner_at(&self) -> usize {
        self.ip_len() + 8 + self.between.len()
    }

    fn addresses(&self) -> Vec<u8> {
        if self.is_v4 { vec![172, 16, 0, 1, 172, 16, 9, 2] } else { (0..32).map(|byte| byte * 7).collect() }
    }

    /// The packet around `inner`, with that checksum in its UDP header.
    fn around_with(&self, inner: &[u8], checksum: u16) -> Vec<u8> {
        let udp_len = 8 + self.between.len() + inner.len();
        let mut bytes = Vec::new();
        if self.is_v4 {
            bytes.extend([0x40 | (self.ip_len() / 4) as u8, self.traffic_class]);
            bytes.extend(((self.ip_len() + udp_len) as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, 64, 17, 0, 0]);
            bytes.extend(self.addresses());
            bytes.extend(&self.ip_options);
            let checksum = !slow_sum(&bytes);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            bytes.extend((6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label).to_be_bytes());
            bytes.extend((udp_len as u16).to_be_bytes());
            bytes.extend([17, 64]);
            bytes.extend(self.addresses());
        }
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(4789_u16.to_be_bytes());
        bytes.extend((udp_len as u16).to_be_bytes());
        bytes.extend(checksum.to_be_bytes());
        bytes.extend(&self.between);
        bytes.extend(inner);
        bytes
    }

    /// The packet around `inner` as its receiver would see it.
    fn around(&self, inner: &[u8]) -> Vec<u8> {
        let bytes = self.around_with(inner, 0);
        if !self.has_checksum {
            return bytes;
        }
        let udp_len = bytes.len() - self.ip_len();
        let mut covered = self.addresses();
        covered.extend([0, 0, 0, 17]);
        covered.extend((udp_len as u32).to_be_bytes());
        covered.extend(&bytes[self.ip_len()..]);
        let checksum = !slow_sum(&covered);
        self.around_with(inner, if checksum == 0 { 0xffff } else { checksum })
    }

    /// What stands in front of the super-packet around `inner`.
    fn header(&self, inner: &Model, segment_len: usize) -> VirtioHeader {
        let mut header = inner.header(segment_len);
        header.gso_type |= if self.is_v4 { 0x20 } else { 0x40 };
        header.flags |= if self.has_checksum { 8 } else { 0 };
        header.checksum_start += self.inner_at() as u16;
        header
    }

    /// One packet per segment.
    fn segments(&self, inner: &Model, segment_len: usize) -> Vec<Vec<u8>> {
        let mut outer = self.clone();
        let segments = inner.segments(segment_len);
        let around = |segment: &Model| {
            let packet = outer.around(&segment.packet());
            outer.identification = outer.identification.wrapping_add(1);
            packet
        };
        segments.iter().map(around).collect()
    }
}

fn push_tunnel(batch: &mut SplitBatch, header: VirtioHeader, inner_at: usize, packet: &[u8]) {
    let space = batch.space().expect("there is room");
    space[..TUNNEL_HEADER_LEN + packet.len() + PADDING_SLACK].fill(0xa5);
    header.write(&mut space[..TUNNEL_HEADER_LEN]);
    space[22..24].copy_from_slice(&(inner_at as u16).to_le_bytes());
    space[TUNNEL_HEADER_LEN..TUNNEL_HEADER_LEN + packet.len()].copy_from_slice(packet);
    batch.push(TUNNEL_HEADER_LEN + packet.len());
}

#[test]
fn super_packets_within_a_tunnel_are_split_into_whole_packets_of_the_tunnel() {
    for seed in 0..800 {
        let mut draw = Draw(seed);
        let mut batch = SplitBatch::new(TUNNEL_HEADER_LEN);
        let mut expected = Vec::new();
        for _ in 0..1 + draw.below(4) {
            let most = [3, 200, 3000, 20_000][draw.below(4)];
            let payload_len = 1 + draw.below(most);
            let mut inner = Model::draw(&mut draw, payload_len);
            if inner.is_tcp {
                inner.flags = 0x10 | draw.next() as u8 & 0xc9;
            }
            let segment_len = 1 + draw.below(1500);
            if draw.one_in(4) {
                // Others may come between.
                push_tunnel(&mut batch, inner.header(segment_len), draw.below(200), &inner.partial());
                expected.extend(inner.segments(segment_len).iter().map(Model::packet));
                continue;
            }
            let tunnel = TunnelModel::draw(&mut draw);
            // Whatever the sum in the outer header is of, it is not used.
            let partial = tunnel.around_with(&inner.partial(), draw.next() as u16 * u16::from(tunnel.has_checksum));
            push_tunnel(&mut batch, tunnel.header(&inner, segment_len), tunnel.inner_at(), &partial);
            expected.extend(tunnel.segments(&inner, segment_len));
        }
        let packets = drain(&mut batch);
        assert_eq!(packets.len(), expected.len(), "seed {seed}");
        for (index, (packet, expected)) in packets.iter().zip(&expected).enumerate() {
            assert_eq!(packet, expected, "seed {seed}, packet {index}");
        }
        assert_eq!(batch.take_malformed(), 0);
    }
}

#[test]
fn a_header_that_contradicts_its_tunnel_yields_nothing_and_is_counted() {
    for is_v4 in [true, false] {
        let mut draw = Draw(4);
        let mut inner = Model::draw(&mut draw, 3000);
        (inner.is_v4, inner.is_tcp, inner.options) = (true, true, Vec::new());
        let tunnel =
            TunnelModel { is_v4, ip_options: Vec::new(), between: vec![9; 22], ..TunnelModel::draw(&mut draw) };
        let good = tunnel.header(&inner, 1000);
        let inner_at = tunnel.inner_at();
        let packet = tunnel.around_with(&inner.partial(), 0);
        let count = |header: VirtioHeader, inner_at: usize, packet: &[u8]| {
            let mut batch = SplitBatch::new(TUNNEL_HEADER_LEN);
            push_tunnel(&mut batch, header, inner_at, packet);
            let packets = drain(&mut batch).len();
            assert_eq!(batch.take_malformed(), u64::from(packets == 0));
            packets
        };
        assert_eq!(count(good, inner_at, &packet), 3);
        // Whoever joined it has looked at the checksums, and does not say where they are.
        assert_eq!(count(VirtioHeader { flags: good.flags & !1, checksum_start: 0, ..good }, inner_at, &packet), 3);
        let other_family = good.gso_type ^ 0x60;
        let bad_headers = [
            VirtioHeader { gso_type: other_family, ..good },
            VirtioHeader { gso_type: good.gso_type | 0x60, ..good },
            VirtioHeader { gso_type: good.gso_type & 0x60, ..good },
            VirtioHeader { gso_type: good.gso_type ^ 1 ^ 4, ..good },
            VirtioHeader { segment_len: 0, ..good },
            VirtioHeader { checksum_start: inner_at as u16 - 2, ..good },
            VirtioHeader { checksum_start: good.checksum_start + 4, ..good },
            VirtioHeader { checksum_start: u16::MAX, ..good },
        ];
        for header in bad_headers {
            assert_eq!(count(header, inner_at, &packet), 0, "{header:?}");
        }
        for inner_at in [0, tunnel.ip_len() + 7, inner_at - 1, inner_at + 1, packet.len(), 65_535] {
            assert_eq!(count(good, inner_at, &packet), 0, "an inner packet at {inner_at}");
        }
        let changes: &[(usize, u8)] =
            if is_v4 { &[(0, 0x44), (9, 6), (6, 0x20), (7, 1)] } else { &[(6, 44), (0, 0x50)] };
        for &(at, byte) in changes {
            let mut packet = packet.clone();
            packet[at] = byte;
            assert_eq!(count(good, inner_at, &packet), 0, "{byte:#x} at {at}");
        }
        for len in 0..good.checksum_start as usize + 21 {
            assert_eq!(count(good, inner_at, &packet[..len]), 0, "the first {len} bytes");
        }
        // Without room for where the inner packet begins, nothing is known of it.
        let mut batch = SplitBatch::new(LONG_HEADER_LEN);
        push(&mut batch, good, &packet, LONG_HEADER_LEN);
        assert_eq!((drain(&mut batch).len(), batch.take_malformed()), (0, 1));
    }
}

#[test]
fn no_tunnel_makes_splitting_panic() {
    for seed in 0..3000 {
        let mut draw = Draw(seed);
        let payload_len = draw.below(300);
        let inner = Model::draw(&mut draw, payload_len);
        let tunnel = TunnelModel::draw(&mut draw);
        let mut packet = tunnel.around_with(&inner.partial(), 0);
        let mut header = tunnel.header(&inner, 1 + draw.below(100));
        let mut inner_at = tunnel.inner_at();
        for _ in 0..draw.below(4) {
            let at = draw.below(packet.len());
            packet[at] = draw.next() as u8;
        }
        match draw.below(5) {
            0 => header.checksum_start = draw.next() as u16 % 500,
            1 => header.checksum_offset = draw.next() as u16 % 500,
            2 => packet.truncate(draw.below(packet.len() + 1)),
            3 => inner_at = draw.below(500),
            _ => header.gso_type = draw.next() as u8,
        }
        let mut batch = SplitBatch::new(TUNNEL_HEADER_LEN);
        push_tunnel(&mut batch, header, inner_at, &packet);
        let total: usize = drain(&mut batch).iter().map(Vec::len).sum();
        assert!(total <= packet.len() * (packet.len() + 1), "seed {seed}");
    }
}
