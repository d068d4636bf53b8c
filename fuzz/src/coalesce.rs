//! Whatever is decrypted, coalescing does not panic and loses nothing: what is written to the TUN device, taken apart by
//! a model, is what came in, packet by packet, in per-flow order.
//!
//! Input: a byte for the virtio header's length, one for the kinds that are joined, then operations of two bytes: which
//! flow, and what is special about its next packet; some are followed by arguments.

use std::collections::BTreeMap;

use wg_core::packet::ip::IpPacket;
use wg_core::{AllowedIps, Instant, PacketSink, PeerId, SourceChecked};
use wg_tun::offload::{CoalesceBatch, HEADER_LEN, Kind, LONG_HEADER_LEN, VirtioHeader};

use super::input::Input;
use super::segments::{complete, segments, sum};

/// Operations looked at, so that an input costs milliseconds.
const MAX_OPERATIONS: usize = 300;
/// Payload lengths of flows. Long ones fill a super-packet, short ones its count of segments.
const PAYLOAD_LENS: [usize; 8] = [1, 2, 31, 100, 537, 1200, 1388, 9000];

/// Delivers what the input says, takes out what is to be written, and compares.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let header_len = [0, HEADER_LEN, LONG_HEADER_LEN][usize::from(input.byte() % 3)];
    let kinds = input.byte();
    let kinds: Vec<_> =
        Kind::ALL.iter().enumerate().filter(|(bit, _)| kinds >> bit & 1 == 0).map(|(_, &kind)| kind).collect();
    let mut batch = CoalesceBatch::new(&kinds);
    batch.clear(Instant::EPOCH);
    let proofs = Proofs::new();
    let mut flows: Vec<Flow> = (0..32).map(Flow::new).collect();
    let mut sent: BTreeMap<Key, Vec<Vec<u8>>> = BTreeMap::new();
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let operation = input.byte();
        let packet = match operation >> 5 {
            7 => {
                let len = usize::from(input.byte()).max(20);
                let mut packet = input.take(len).to_vec();
                packet.resize(len, operation);
                packet
            }
            6 => {
                // A datagram that does not authenticate.
                if let Some(room) = batch.reserve(usize::from(input.word() % 2000)) {
                    room.fill(0x5a);
                }
                continue;
            }
            _ => flows[usize::from(operation & 31)].next(input.byte(), &mut input),
        };
        // Room for padding, and bytes behind the packet.
        let Some(room) = batch.reserve(packet.len() + 31) else { break };
        room.fill(0xa5);
        room[..packet.len()].copy_from_slice(&packet);
        batch.commit(proofs.of(packet.len()));
        sent.entry(key(&packet)).or_default().push(packet);
    }

    let mut received: BTreeMap<Key, Vec<(Vec<u8>, bool)>> = BTreeMap::new();
    while let Some(frame) = batch.next_frame(header_len) {
        let (header, joined) = (frame.header, frame.joined);
        let stated = VirtioHeader::parse(&frame.bytes[..header_len]);
        assert_eq!(stated, (header_len > 0).then_some(header));
        let packet = &frame.bytes[header_len..];
        assert!(packet.len() <= 65_535);
        let packets = match joined {
            None => {
                assert_eq!((frame.count, header), (1, VirtioHeader::default()));
                vec![packet.to_vec()]
            }
            Some(kind) => {
                assert!(kinds.contains(&kind));
                taken_apart(kind, header, packet)
            }
        };
        assert_eq!(packets.len(), frame.count as usize);
        for packet in packets {
            received.entry(key(&packet)).or_default().push((packet, joined.is_some()));
        }
    }
    assert_eq!(sent.len(), received.len());
    for (sent, received) in sent.values().zip(received.values()) {
        assert_eq!(sent.len(), received.len());
        for (sent, (received, was_joined)) in sent.iter().zip(received) {
            let allowed = if *was_joined { with_liberties(sent, received) } else { sent.clone() };
            assert_eq!(*received, allowed);
        }
    }
}

/// What the kernel makes of a super-packet, having looked at its headers as it does.
fn taken_apart(kind: Kind, header: VirtioHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let (is_v4, is_tcp) = (matches!(kind, Kind::Tcp4 | Kind::Udp4), matches!(kind, Kind::Tcp4 | Kind::Tcp6));
    let start = if is_v4 { 20 } else { 40 };
    let offset = if is_tcp { 16 } else { 6 };
    let headers_len = start + if is_tcp { usize::from(packet[start + 12] / 16) * 4 } else { 8 };
    let expected = VirtioHeader {
        flags: 1,
        gso_type: if !is_tcp {
            5
        } else if is_v4 {
            1
        } else {
            4
        },
        header_len: headers_len as u16,
        segment_len: header.segment_len,
        checksum_start: start as u16,
        checksum_offset: offset as u16,
    };
    assert_eq!(header, expected);
    // The headers of the whole are right, and its checksum needs only the payload.
    if is_v4 {
        assert_eq!(sum(&[&packet[..20]]), 0xffff);
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
    }
    let whole = complete(packet, start, offset).expect("the checksum is inside");
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let len = (packet.len() - start) as u32;
    let protocol = [0, 0, 0, if is_tcp { 6 } else { 17 }];
    assert_eq!(sum(&[&whole[addresses], &protocol, &len.to_be_bytes(), &whole[start..]]), 0xffff);
    segments(packet, start, is_tcp, usize::from(header.segment_len)).expect("whole headers")
}

/// `sent` with what joining may change: the identification of a packet that is never fragmented, RFC 6864 4.1, and a UDP
/// checksum that was not there.
fn with_liberties(sent: &[u8], received: &[u8]) -> Vec<u8> {
    let mut allowed = sent.to_vec();
    if sent.len() != received.len() || sent[0] >> 4 != 4 {
        return allowed;
    }
    if sent[6] & 0x40 != 0 {
        allowed[4..6].copy_from_slice(&received[4..6]);
        allowed[10..12].fill(0);
        let checksum = !sum(&[&allowed[..20]]);
        allowed[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    if sent[9] == 17 && sent[26..28] == [0, 0] {
        let len = (sent.len() - 20) as u32;
        let checksum = !sum(&[&sent[12..20], &[0, 0, 0, 17], &len.to_be_bytes(), &sent[20..]]);
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        allowed[26..28].copy_from_slice(&checksum.to_be_bytes());
    }
    allowed
}

/// What must keep its order: the packets of a flow, or those of none. Version, protocol, addresses and ports.
type Key = Option<(u8, u8, Vec<u8>)>;

fn key(packet: &[u8]) -> Key {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let is_known = |protocol| protocol == 6 || protocol == 17;
    match packet {
        [0x45, ..] if packet.len() >= 24 && word(2) == packet.len() && word(6) & 0x3fff == 0 => {
            is_known(packet[9]).then(|| (4, packet[9], packet[12..24].to_vec()))
        }
        [0x60..=0x6f, ..] if packet.len() >= 44 && word(4) + 40 == packet.len() => {
            is_known(packet[6]).then(|| (6, packet[6], packet[8..44].to_vec()))
        }
        _ => None,
    }
}

/// Proofs that a source was checked, for packets of any length; what else they are does not matter here.
struct Proofs(AllowedIps);

impl Proofs {
    fn new() -> Self {
        let mut allowed_ips = AllowedIps::new();
        allowed_ips.insert("10.0.0.0/8".parse().expect("a prefix"), PeerId::new(0, 0));
        Proofs(allowed_ips)
    }

    fn of(&self, len: usize) -> SourceChecked {
        let mut packet = vec![0; len];
        packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        let view = IpPacket::parse(&packet).expect("a whole packet");
        self.0.check_source(&view, PeerId::new(0, 0)).expect("the source is the peer's")
    }
}

/// Who sends, and what its next packet has in common with the one before.
struct Flow {
    is_v4: bool,
    is_tcp: bool,
    number: u8,
    payload_len: usize,
    identification: u16,
    sequence: u32,
}

impl Flow {
    fn new(number: u8) -> Self {
        let payload_len = PAYLOAD_LENS[usize::from(number / 4 % 8)];
        let (identification, sequence) = (0_u16.wrapping_sub(u16::from(number)), 0_u32.wrapping_sub(5000));
        Flow { is_v4: number & 1 == 0, is_tcp: number & 2 == 0, number, payload_len, identification, sequence }
    }

    /// The next packet. `special` says in what it differs from what would be joined.
    fn next(&mut self, special: u8, input: &mut Input<'_>) -> Vec<u8> {
        let (change, value) = (special % 16, special / 16);
        let len = match change {
            1 => self.payload_len - 1 - usize::from(value).min(self.payload_len - 1),
            2 => self.payload_len + usize::from(value),
            _ => self.payload_len,
        };
        let payload: Vec<u8> = (0..len).map(|index| (self.sequence as usize + index) as u8).collect();
        let mut flags = 0x10;
        let mut traffic_class = 0;
        let mut options: Vec<u8> =
            if self.number & 4 == 0 { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { vec![] };
        let mut has_checksum = true;
        match change {
            3 => flags |= 1 << (value % 8),
            4 => traffic_class = value,
            5 => self.sequence = self.sequence.wrapping_add(u32::from(value)),
            6 => self.identification = self.identification.wrapping_add(u16::from(value)),
            7 => options = vec![1; usize::from(value) % 11 * 4],
            8 => has_checksum = false,
            // A time stamp that goes on.
            10 if !options.is_empty() => options[7] ^= value,
            _ => {}
        }
        let mut transport = vec![self.number, 7, 1, 0xbb];
        if self.is_tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 1, ((20 + options.len()) * 4) as u8, flags, 2, 0, 0, 0, 0, 0]);
            transport.extend(options);
        } else {
            transport.extend((8 + payload.len() as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(&payload);
        let mut packet = self.ip_header(transport.len(), traffic_class);
        let start = packet.len();
        packet.extend(transport);
        if has_checksum {
            let addresses = if self.is_v4 { 12..20 } else { 8..40 };
            let protocol = [0, 0, 0, if self.is_tcp { 6 } else { 17 }];
            let len = (packet.len() - start) as u32;
            let checksum = match !sum(&[&packet[addresses], &protocol, &len.to_be_bytes(), &packet[start..]]) {
                0 if !self.is_tcp => 0xffff,
                checksum => checksum,
            };
            let at = start + if self.is_tcp { 16 } else { 6 };
            packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        self.sequence = self.sequence.wrapping_add(len as u32);
        self.identification = self.identification.wrapping_add(1);
        if change == 9 {
            let at = usize::from(input.word()) % packet.len();
            packet[at] ^= 1 << (value % 8);
        }
        packet
    }

    fn ip_header(&self, len: usize, traffic_class: u8) -> Vec<u8> {
        let protocol = if self.is_tcp { 6 } else { 17 };
        if self.is_v4 {
            let may_fragment = if self.number & 8 == 0 { 0x40 } else { 0 };
            let mut header = vec![0x45, traffic_class, 0, 0, 0, 0, may_fragment, 0, 64, protocol, 0, 0];
            header.extend([10, 0, 0, self.number, 10, 0, 0, 1]);
            header[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&self.identification.to_be_bytes());
            let checksum = !sum(&[&header]);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        } else {
            let mut header = vec![0x60 | traffic_class >> 4, traffic_class << 4, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            header.extend([0xfd; 15]);
            header.push(self.number);
            header.extend([0xfd; 16]);
            header
        }
    }
}
