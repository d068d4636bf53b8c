//! Split and coalesce against a model that builds every packet from its description and shares no code with them.

use wg_core::{Instant, PADDING_SLACK, PacketSink, PacketSource};

use super::*;

mod tunnel;

/// A small generator, so that one printed seed is the whole test.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A packet as its sender thinks of it.
#[derive(Clone, Debug)]
struct Model {
    is_v4: bool,
    is_tcp: bool,
    traffic_class: u8,
    hop_limit: u8,
    identification: u16,
    dont_fragment: bool,
    flow_label: u32,
    host: u8,
    source_port: u16,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    has_checksum: bool,
    payload: Vec<u8>,
}

impl Model {
    fn draw(draw: &mut Draw, payload_len: usize) -> Model {
        let is_v4 = draw.one_in(2);
        let is_tcp = draw.one_in(2);
        let words = if is_tcp { draw.below(11) } else { 0 };
        Model {
            is_v4,
            is_tcp,
            traffic_class: draw.next() as u8,
            hop_limit: 64,
            identification: draw.next() as u16,
            dont_fragment: draw.one_in(2),
            flow_label: draw.next() as u32 & 0xf_ffff,
            host: draw.next() as u8,
            source_port: draw.next() as u16,
            sequence: draw.next() as u32,
            acknowledgement: draw.next() as u32,
            flags: 0x10,
            window: draw.next() as u16,
            options: draw.bytes(words * 4),
            has_checksum: true,
            payload: draw.bytes(payload_len),
        }
    }

    fn headers_len(&self) -> usize {
        (if self.is_v4 { 20 } else { 40 }) + if self.is_tcp { 20 + self.options.len() } else { 8 }
    }

    fn addresses(&self) -> Vec<u8> {
        if self.is_v4 {
            vec![10, 0, 0, self.host, 10, 0, 1, 1]
        } else {
            let mut both = vec![0xfd; 32];
            both[15] = self.host;
            both
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(443_u16.to_be_bytes());
        if self.is_tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgement.to_be_bytes());
            bytes.push(((20 + self.options.len()) << 2) as u8);
            bytes.push(self.flags);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0, 0, 0, 0]);
            bytes.extend(&self.options);
        } else {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes
    }

    fn pseudo_header(&self) -> Vec<u8> {
        let len = (self.transport().len() + self.payload.len()) as u32;
        let mut bytes = self.addresses();
        bytes.extend([0, 0, 0, if self.is_tcp { 6 } else { 17 }]);
        bytes.extend(len.to_be_bytes());
        bytes
    }

    fn checksum_at(&self) -> usize {
        if self.is_tcp { 16 } else { 6 }
    }

    /// The packet as its receiver would see it.
    fn packet(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let at = self.checksum_at();
        if self.has_checksum {
            let mut covered = self.pseudo_header();
            covered.extend(&transport);
            covered.extend(&self.payload);
            let mut checksum = !slow_sum(&covered);
            if checksum == 0 && !self.is_tcp {
                checksum = 0xffff;
            }
            transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        self.with_ip_header(transport)
    }

    /// The packet as the kernel hands it over: its checksum field holds the pseudo-header's sum.
    fn partial(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let at = self.checksum_at();
        transport[at..at + 2].copy_from_slice(&slow_sum(&self.pseudo_header()).to_be_bytes());
        self.with_ip_header(transport)
    }

    fn with_ip_header(&self, transport: Vec<u8>) -> Vec<u8> {
        let inner_len = transport.len() + self.payload.len();
        let mut bytes = Vec::new();
        if self.is_v4 {
            bytes.extend([0x45, self.traffic_class]);
            bytes.extend((20 + inner_len as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0]);
            bytes.extend([self.hop_limit, if self.is_tcp { 6 } else { 17 }, 0, 0]);
            bytes.extend(self.addresses());
            let checksum = !slow_sum(&bytes);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            bytes.extend((6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label).to_be_bytes());
            bytes.extend((inner_len as u16).to_be_bytes());
            bytes.extend([if self.is_tcp { 6 } else { 17 }, self.hop_limit]);
            bytes.extend(self.addresses());
        }
        bytes.extend(transport);
        bytes.extend(&self.payload);
        bytes
    }

    /// What a network card would send for the super-packet.
    fn segments(&self, segment_len: usize) -> Vec<Model> {
        let count = self.payload.len().div_ceil(segment_len);
        let piece = |(index, payload): (usize, &[u8])| {
            let mut segment = self.clone();
            segment.payload = payload.to_vec();
            segment.identification = self.identification.wrapping_add(index as u16);
            segment.sequence = self.sequence.wrapping_add((index * segment_len) as u32);
            if index > 0 {
                segment.flags &= !0x80;
            }
            if index + 1 < count {
                segment.flags &= !0x09;
            }
            segment
        };
        self.payload.chunks(segment_len).enumerate().map(piece).collect()
    }

    fn header(&self, segment_len: usize) -> VirtioHeader {
        VirtioHeader {
            flags: 1,
            gso_type: match (self.is_tcp, self.is_v4) {
                _ if segment_len == 0 => 0,
                (true, true) => 1,
                (true, false) => 4,
                (false, _) => 5,
            },
            header_len: self.headers_len() as u16,
            segment_len: segment_len as u16,
            checksum_start: if self.is_v4 { 20 } else { 40 },
            checksum_offset: self.checksum_at() as u16,
        }
    }
}

/// RFC 1071, word by word.
fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

fn push(batch: &mut SplitBatch, header: VirtioHeader, packet: &[u8], header_len: usize) {
    let space = batch.space().expect("there is room");
    space[..header_len + packet.len() + PADDING_SLACK].fill(0xa5);
    if header_len > 0 {
        header.write(&mut space[..header_len]);
    }
    space[header_len..header_len + packet.len()].copy_from_slice(packet);
    batch.push(header_len + packet.len());
}

/// Takes every packet as the engine does, which writes padding behind it.
fn drain(batch: &mut SplitBatch) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    loop {
        while let Some(slot) = batch.next_packet() {
            packets.push(slot.buffer[..slot.len].to_vec());
            slot.buffer[slot.len..slot.len + PADDING_SLACK].fill(0);
        }
        if batch.is_exhausted() {
            return packets;
        }
    }
}

#[test]
fn super_packets_are_split_into_what_a_network_card_would_send() {
    for seed in 0..600 {
        let mut draw = Draw(seed);
        let header_len = if draw.one_in(2) { HEADER_LEN } else { LONG_HEADER_LEN };
        let mut batch = SplitBatch::new(header_len);
        let mut expected = Vec::new();
        for _ in 0..1 + draw.below(4) {
            let most = [3, 200, 3000, 20_000][draw.below(4)];
            let payload_len = 1 + draw.below(most);
            let mut model = Model::draw(&mut draw, payload_len);
            if model.is_tcp {
                model.flags = 0x10 | draw.next() as u8 & 0xc9;
            }
            let segment_len = 1 + draw.below(1500);
            push(&mut batch, model.header(segment_len), &model.partial(), header_len);
            expected.extend(model.segments(segment_len).iter().map(Model::packet));
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
fn a_checksum_that_the_kernel_left_open_is_completed_and_others_are_left_alone() {
    for seed in 0..200 {
        let mut draw = Draw(seed);
        let payload_len = draw.below(1400);
        let model = Model::draw(&mut draw, payload_len);
        let mut batch = SplitBatch::new(HEADER_LEN);
        push(&mut batch, model.header(0), &model.partial(), HEADER_LEN);
        push(&mut batch, VirtioHeader::default(), &model.partial(), HEADER_LEN);
        assert_eq!(drain(&mut batch), [model.packet(), model.partial()], "seed {seed}");
    }
}

#[test]
fn without_a_virtio_header_frames_are_packets() {
    let mut draw = Draw(7);
    let packets: Vec<_> = (0..5).map(|_| Model::draw(&mut draw, 99).packet()).collect();
    let mut batch = SplitBatch::new(0);
    for packet in &packets {
        push(&mut batch, VirtioHeader::default(), packet, 0);
    }
    assert_eq!(drain(&mut batch), packets);
}

#[test]
fn a_virtio_header_that_contradicts_its_packet_yields_nothing_and_is_counted() {
    let mut draw = Draw(1);
    let mut model = Model::draw(&mut draw, 3000);
    (model.is_v4, model.is_tcp, model.options) = (true, true, Vec::new());
    let good = model.header(1000);
    let bad = [
        VirtioHeader { segment_len: 0, ..good },
        VirtioHeader { gso_type: 4, ..good },
        VirtioHeader { gso_type: 3, ..good },
        VirtioHeader { gso_type: 0x21, ..good },
        VirtioHeader { checksum_start: 24, ..good },
        VirtioHeader { checksum_start: 0, ..good },
        VirtioHeader { checksum_start: 4000, ..good },
        VirtioHeader { gso_type: 0, checksum_start: 3039, ..good },
        VirtioHeader { gso_type: 0, checksum_offset: 65_535, ..good },
    ];
    for header in bad {
        let mut batch = SplitBatch::new(HEADER_LEN);
        push(&mut batch, header, &model.partial(), HEADER_LEN);
        assert_eq!(drain(&mut batch).len(), 0, "{header:?}");
        assert_eq!(batch.take_malformed(), 1, "{header:?}");
    }
    let mut batch = SplitBatch::new(HEADER_LEN);
    push(&mut batch, good, &model.partial(), HEADER_LEN);
    assert_eq!(drain(&mut batch).len(), 3);
}

#[test]
fn a_super_packet_whose_checksums_somebody_has_looked_at_is_split_all_the_same() {
    const DATA_VALID: u8 = 2;
    for seed in 0..400 {
        let mut draw = Draw(seed);
        let mut model = Model::draw(&mut draw, 3000);
        // What is in front of an extension header's transport header nobody says then.
        if !model.is_v4 {
            model.options = Vec::new();
        }
        let whole = model.header(1000);
        let mut batch = SplitBatch::new(HEADER_LEN);
        push(&mut batch, whole, &model.partial(), HEADER_LEN);
        let expected = drain(&mut batch);
        assert_eq!(expected.len(), 3, "seed {seed}");
        for flags in [0, DATA_VALID] {
            let header = VirtioHeader { flags, checksum_start: 0, checksum_offset: 0, ..whole };
            push(&mut batch, header, &model.packet(), HEADER_LEN);
            assert_eq!(drain(&mut batch), expected, "seed {seed}");
        }
    }
}

#[test]
fn no_frame_makes_splitting_panic() {
    for seed in 0..3000 {
        let mut draw = Draw(seed);
        let payload_len = draw.below(300);
        let model = Model::draw(&mut draw, payload_len);
        let mut packet = model.partial();
        let segment_len = draw.below(100);
        let mut header = model.header(segment_len);
        for _ in 0..draw.below(4) {
            let at = draw.below(packet.len());
            packet[at] = draw.next() as u8;
        }
        match draw.below(4) {
            0 => header.checksum_start = draw.next() as u16 % 400,
            1 => header.checksum_offset = draw.next() as u16 % 400,
            2 => packet.truncate(draw.below(packet.len() + 1)),
            _ => header.gso_type = draw.next() as u8,
        }
        let mut batch = SplitBatch::new(HEADER_LEN);
        push(&mut batch, header, &packet, HEADER_LEN);
        let total: usize = drain(&mut batch).iter().map(Vec::len).sum();
        assert!(total <= packet.len() * (packet.len() + 1), "seed {seed}");
    }
}

/// What the driver writes: per frame its header and its bytes.
fn frames(batch: &mut CoalesceBatch) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(frame) = batch.next_frame(HEADER_LEN) {
        assert_eq!(VirtioHeader::parse(frame.bytes), Some(frame.header));
        frames.push((frame.header, frame.bytes[HEADER_LEN..].to_vec()));
    }
    frames
}

/// Delivers a packet as the engine does: the room is longer, and all of it is written to.
fn deliver(batch: &mut CoalesceBatch, packet: &[u8]) {
    let room = batch.reserve(packet.len() + 32).expect("there is room");
    room.fill(0xa5);
    room[..packet.len()].copy_from_slice(packet);
    batch.commit_for_test(packet.len());
}

/// Reserves as the engine does for a datagram that then does not authenticate.
fn disappoint(batch: &mut CoalesceBatch, len: usize) {
    if let Some(room) = batch.reserve(len) {
        room.fill(0x5a);
    }
}

fn join(packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut batch = CoalesceBatch::new(Kind::ALL);
    batch.clear(Instant::EPOCH);
    for packet in packets {
        deliver(&mut batch, packet);
    }
    frames(&mut batch)
}

fn split(frames: Vec<(VirtioHeader, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (header, mut bytes) in frames {
        for_each_packet(&mut bytes, header, |packet| packets.push(packet.to_vec()));
    }
    packets
}

/// What joining may change: the identification of packets that are never fragmented (RFC 6864 4.1), and a UDP checksum
/// that was not there. Whatever stands there instead must be right.
fn without_liberties(packet: &[u8], checksum_was_there: bool) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 && packet[6] & 0x40 != 0 && slow_sum(&packet[..20]) == 0xffff {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    if !checksum_was_there && packet[0] == 0x45 && packet[9] == 17 && packet.len() >= 28 {
        packet[26..28].fill(0);
    }
    packet
}

#[test]
fn what_is_joined_comes_apart_again_flow_by_flow() {
    let mut joined = 0;
    for seed in 0..1500 {
        let mut draw = Draw(seed);
        let mut batch = CoalesceBatch::new(Kind::ALL);
        let mut sent: Vec<Vec<Vec<u8>>> = Vec::new();
        let mut flows: Vec<Model> = Vec::new();
        for index in 0..1 + draw.below(20) {
            let payload_len = [1, 30, 100, 1388][draw.below(4)];
            let mut flow = Model::draw(&mut draw, payload_len);
            flow.host = index as u8;
            flow.has_checksum = !(flow.is_v4 && !flow.is_tcp && draw.one_in(4));
            flows.push(flow);
            sent.push(Vec::new());
        }
        batch.clear(Instant::EPOCH);
        let mut index = 0;
        for _ in 0..draw.below(300) {
            if draw.one_in(4) {
                index = draw.below(flows.len());
            }
            let flow = &mut flows[index];
            let mut packet = flow.clone();
            packet.payload = draw.bytes(flow.payload.len());
            match draw.below(60) {
                0 => packet.payload.truncate(draw.below(flow.payload.len() + 1)),
                1 => packet.payload.extend([1, 2, 3]),
                2 => packet.flags |= [0x08, 0x01, 0x02, 0x04, 0x20, 0x40, 0x80][draw.below(7)],
                3 => packet.traffic_class ^= 3,
                4 => packet.hop_limit -= 1,
                5 => packet.window ^= 1,
                6 => packet.acknowledgement += 1,
                7 => packet.sequence = packet.sequence.wrapping_add(1),
                8 => packet.identification = draw.next() as u16,
                9 => packet.has_checksum ^= packet.is_v4 && !packet.is_tcp,
                10 => packet.flow_label ^= 1,
                11 if packet.is_tcp => packet.options = draw.bytes(12),
                12 => packet.dont_fragment ^= true,
                13 => {
                    let len = 33 + draw.below(1500);
                    disappoint(&mut batch, len);
                    continue;
                }
                _ => {}
            }
            flow.sequence = packet.sequence.wrapping_add(packet.payload.len() as u32);
            flow.identification = packet.identification.wrapping_add(1);
            let mut bytes = packet.packet();
            if draw.one_in(50) {
                // A wrong checksum must stay wrong. In the ports, it would be another flow.
                let ports_end = if packet.is_v4 { 24 } else { 44 };
                let at = draw.below(bytes.len() - ports_end) + ports_end;
                bytes[at] ^= 0x10;
            }
            deliver(&mut batch, &bytes);
            sent[index].push(bytes);
        }
        let frames = frames(&mut batch);
        joined += frames.iter().filter(|(header, _)| header.gso_type != 0).count();
        let mut received: Vec<Vec<Vec<u8>>> = vec![Vec::new(); flows.len()];
        for packet in split(frames) {
            let host = if packet[0] >> 4 == 4 { packet[15] } else { packet[23] };
            received[usize::from(host)].push(packet);
        }
        for (flow, (sent, received)) in sent.iter().zip(&received).enumerate() {
            assert_eq!(sent.len(), received.len(), "seed {seed}, flow {flow}");
            for (number, (sent, received)) in sent.iter().zip(received).enumerate() {
                let had_checksum = !(sent[0] == 0x45 && sent[9] == 17 && sent[26..28] == [0, 0]);
                let (sent, received) =
                    (without_liberties(sent, had_checksum), without_liberties(received, had_checksum));
                assert_eq!(sent, received, "seed {seed}, flow {flow}, packet {number}");
            }
        }
    }
    assert!(joined > 3000, "only {joined} super-packets: this tests nothing");
}

fn train(model: &Model, count: usize, payload_len: usize) -> Vec<Vec<u8>> {
    let mut super_packet = model.clone();
    super_packet.payload = Draw(5).bytes(count * payload_len);
    super_packet.segments(payload_len).iter().map(Model::packet).collect()
}

fn all_kinds() -> [Model; 4] {
    [(true, true), (true, false), (false, true), (false, false)].map(|(is_v4, is_tcp)| {
        let mut model = Model::draw(&mut Draw(3), 0);
        (model.is_v4, model.is_tcp, model.dont_fragment) = (is_v4, is_tcp, false);
        model.options = if is_tcp { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { Vec::new() };
        model
    })
}

#[test]
fn a_train_of_each_kind_becomes_one_super_packet_as_the_kernel_would_describe_it() {
    for model in all_kinds() {
        for payload_len in [1, 16, 17, 1300, 1388] {
            let packets = train(&model, 40, payload_len);
            let mut whole = model.clone();
            whole.payload = Draw(5).bytes(40 * payload_len);
            assert_eq!(join(&packets), [(whole.header(payload_len), whole.partial())], "{payload_len} of {model:?}");
        }
    }
}

#[test]
fn a_shorter_packet_a_push_and_an_end_close_a_run_and_a_longer_one_begins_the_next() {
    for model in all_kinds() {
        let mut packets = train(&model, 6, 500);
        let mut short = model.clone();
        short.sequence = model.sequence.wrapping_add(3 * 500);
        short.identification = model.identification.wrapping_add(3);
        short.payload = vec![9; 499];
        packets[3] = short.packet();
        // The fifth does not follow the shorter one in a TCP flow, nor may anything be joined behind that.
        assert_eq!(join(&packets).len(), 2, "{model:?}");
        if model.is_tcp {
            for flag in [0x08, 0x01] {
                let mut whole = model.clone();
                whole.flags |= flag;
                whole.payload = vec![1; 2000];
                let mut packets: Vec<_> = whole.segments(500).iter().map(Model::packet).collect();
                let mut next = model.clone();
                next.sequence = model.sequence.wrapping_add(2000);
                next.identification = model.identification.wrapping_add(4);
                next.payload = vec![1; 500];
                packets.push(next.packet());
                let joined = join(&packets);
                assert_eq!(joined.len(), 2);
                assert_eq!(joined[0], (whole.header(500), whole.partial()));
            }
        }
    }
}

#[test]
fn nothing_is_joined_across_a_difference_that_splitting_could_not_restore() {
    type Change = (&'static str, fn(&mut Model), fn(&Model) -> bool);
    let changes: [Change; 14] = [
        ("nothing", |_| {}, |_| false),
        ("traffic class", |model| model.traffic_class ^= 1, |_| true),
        ("hop limit", |model| model.hop_limit -= 1, |_| true),
        ("flow label", |model| model.flow_label ^= 1, |model| !model.is_v4),
        ("identification", |model| model.identification ^= 0x100, |model| model.is_v4),
        ("don't fragment", |model| model.dont_fragment = true, |model| model.is_v4),
        ("port", |model| model.source_port ^= 1, |_| true),
        ("address", |model| model.host ^= 1, |_| true),
        ("sequence", |model| model.sequence = model.sequence.wrapping_add(1), |model| model.is_tcp),
        ("acknowledgement", |model| model.acknowledgement ^= 1, |model| model.is_tcp),
        ("window", |model| model.window ^= 1, |model| model.is_tcp),
        ("ECN echo", |model| model.flags ^= 0x40, |model| model.is_tcp),
        (
            "options",
            |model| {
                if model.is_tcp {
                    model.options[7] ^= 1
                }
            },
            |model| model.is_tcp,
        ),
        ("checksum", |model| model.has_checksum = false, |_| true),
    ];
    for model in all_kinds() {
        for (what, change, matters) in &changes {
            let mut packets = train(&model, 2, 700);
            let mut second = model.clone();
            second.sequence = model.sequence.wrapping_add(700);
            second.identification = model.identification.wrapping_add(1);
            second.payload = Draw(5).bytes(1400)[700..].to_vec();
            change(&mut second);
            packets[1] = second.packet();
            let count = if matters(&model) { 2 } else { 1 };
            let joined = join(&packets);
            assert_eq!(joined.len(), count, "{what} of {model:?}");
            if count == 2 {
                assert_eq!(split(joined), packets, "{what}");
            }
        }
    }
}

#[test]
fn what_is_not_plain_tcp_or_udp_passes_as_it_is() {
    let mut draw = Draw(11);
    for model in all_kinds() {
        let train = train(&model, 2, 600);
        let mut fragments = train.clone();
        let mut trailing = train.clone();
        for packet in &mut fragments {
            if model.is_v4 {
                packet[6] |= 0x20;
            } else {
                packet[6] = 44;
            }
        }
        for packet in &mut trailing {
            packet.extend([0; 3]);
        }
        for packets in [fragments, trailing, vec![vec![], vec![0x45], vec![0x60; 39], draw.bytes(100)]] {
            assert_eq!(split_plain(join(&packets)), packets);
        }
    }
}

fn split_plain(frames: Vec<(VirtioHeader, Vec<u8>)>) -> Vec<Vec<u8>> {
    frames
        .into_iter()
        .map(|(header, bytes)| {
            assert_eq!(header, VirtioHeader::default());
            bytes
        })
        .collect()
}

#[test]
fn a_kind_that_the_kernel_refused_is_not_joined_for_a_while_and_then_again() {
    let mut batch = CoalesceBatch::new(Kind::ALL);
    let [tcp, udp, ..] = all_kinds();
    let count = |batch: &mut CoalesceBatch, at: u64, model: &Model| {
        batch.clear(Instant::from_nanos(at * 1_000_000_000));
        for packet in train(model, 3, 100) {
            deliver(batch, &packet);
        }
        frames(batch).len()
    };
    assert_eq!(count(&mut batch, 1, &tcp), 1);
    batch.suspend(Kind::Tcp4, Instant::from_nanos(1_000_000_000));
    assert_eq!(count(&mut batch, 2, &tcp), 3);
    assert_eq!(count(&mut batch, 2, &udp), 1);
    assert_eq!(count(&mut batch, 61, &tcp), 1);
    let mut without_udp = CoalesceBatch::new(&[Kind::Tcp4, Kind::Tcp6]);
    assert_eq!(count(&mut without_udp, 1, &udp), 3);
    without_udp.suspend(Kind::Udp4, Instant::from_nanos(0));
    assert_eq!(count(&mut without_udp, 1000, &udp), 3);
}

#[test]
fn a_received_batch_of_any_sizes_always_finds_room() {
    use crate::batch::{MAX_RECEIVED, MAX_RECEIVED_LEN};
    for seed in 0..20 {
        let mut draw = Draw(seed);
        let mut batch = CoalesceBatch::new(Kind::ALL);
        batch.clear(Instant::EPOCH);
        let mut flow = Model::draw(&mut draw, 900);
        (flow.is_tcp, flow.options) = (true, Vec::new());
        let (mut bytes, mut count) = (0, 0);
        while count < MAX_RECEIVED {
            let mut packet = flow.clone();
            packet.host = draw.below(40) as u8;
            packet.flags = if draw.one_in(3) { 0x18 } else { 0x10 };
            let packet = packet.packet();
            if bytes + packet.len() + 32 > MAX_RECEIVED_LEN {
                break;
            }
            bytes += packet.len() + 32;
            count += 1;
            deliver(&mut batch, &packet);
        }
        assert_eq!(split(frames(&mut batch)).len(), count);
    }
}

#[test]
fn the_fast_sum_is_the_slow_one() {
    let mut draw = Draw(2);
    for len in (0..300).chain([1419, 1420, 65_535]) {
        let bytes = draw.bytes(len);
        assert_eq!(crate::cmsg::checksum_sum(&bytes) % 0xffff, u32::from(slow_sum(&bytes)) % 0xffff, "{len}");
        let ones = vec![0xff; len];
        assert_eq!(crate::cmsg::checksum_sum(&ones) % 0xffff, u32::from(slow_sum(&ones)) % 0xffff, "{len}");
    }
}
