//! Owns what was read from the TUN device: frames one behind the other, and the packets cut out of them when they are
//! asked for, in place.
//!
//! A segment's header is written directly in front of its payload, over the end of the segment before, which is done
//! with. The padding room behind a segment is the start of the next one's payload; it is saved when the segment is lent
//! out and put back when the next is asked for. So nothing but headers is ever copied.

use wg_core::packet::checksum::{fold, sum};
use wg_core::{PADDING_SLACK, PacketSlot, PacketSource};

use super::tunnel::Outer;
use super::*;
use crate::cmsg::{Pages, checksum_sum};

/// The longest frame: a packet of 65 535 bytes and its virtio header.
const MAX_FRAME_LEN: usize = 65_535 + TUNNEL_HEADER_LEN;
/// Bytes read before the first packet is sealed: a super-packet is worked on while it is in the cache, and many small
/// packets still leave together.
const READ_AHEAD: usize = 65_536;
/// Frames read before the first packet is sealed, for the same reason.
const MAX_FRAMES: usize = 64;
/// Packets given out before the sink must be emptied: bounds the trains one round can begin.
const MAX_ROUND: usize = 1024;
/// IP and transport headers of a super-packet, with room for IPv6 extension headers.
const MAX_HEADERS: usize = 256;

/// Frames read from the TUN device, as a source of packets.
///
/// One batch at a time: [`clear`](Self::clear); read into [`space`](Self::space) and [`push`](Self::push) what was read,
/// until the device is empty or there is no space; then let the engine take the packets, again and again until the batch
/// [is exhausted](Self::is_exhausted), with the sink emptied in between.
///
/// Whatever a virtio header says, nothing is read or written beyond the frame it came with.
#[derive(Debug)]
pub struct SplitBatch {
    memory: Pages,
    header_len: usize,
    frames: Vec<Frame>,
    top: usize,
    next: usize,
    segments: Option<Segments>,
    given_out: usize,
    saved: Option<(usize, [u8; PADDING_SLACK])>,
    malformed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its packet is.
    start: usize,
    len: usize,
    header: VirtioHeader,
    /// Where a packet within a tunnel begins, if the virtio header says it.
    inner_at: Option<usize>,
}

impl SplitBatch {
    /// For frames with a virtio header of `header_len` bytes: [`HEADER_LEN`], [`LONG_HEADER_LEN`] or [`TUNNEL_HEADER_LEN`],
    /// or none if that is 0.
    ///
    /// Panics if it is anything else.
    pub fn new(header_len: usize) -> SplitBatch {
        check_header_len(header_len);
        let frame_room = MAX_FRAME_LEN + PADDING_SLACK + 1;
        SplitBatch {
            memory: Pages::new(READ_AHEAD + frame_room + MAX_FRAMES * (PADDING_SLACK + 64)),
            header_len,
            frames: Vec::with_capacity(MAX_FRAMES),
            top: 0,
            next: 0,
            segments: None,
            given_out: 0,
            saved: None,
            malformed: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.segments = None;
        self.saved = None;
        (self.top, self.next) = (0, 0);
    }

    /// Room for the next frame; `None` once there is enough to work on.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        if self.frames.len() == MAX_FRAMES || self.top >= READ_AHEAD {
            return None;
        }
        Some(&mut self.memory[self.top..self.top + MAX_FRAME_LEN])
    }

    /// Takes the `len` bytes that were read into the space.
    ///
    /// Panics if there was no space, or not as much.
    pub fn push(&mut self, len: usize) {
        assert!(self.frames.len() < MAX_FRAMES && self.top < READ_AHEAD && len <= MAX_FRAME_LEN, "there is no space");
        let frame = &self.memory[self.top..self.top + len];
        let header = match self.header_len {
            0 => Some(VirtioHeader::default()),
            header_len if frame.len() < header_len => None,
            _ => VirtioHeader::parse(frame),
        };
        match header {
            Some(header) => {
                let start = self.top + self.header_len;
                let inner_at = tunnel::inner_at(&frame[..self.header_len]);
                self.frames.push(Frame { start, len: len - self.header_len, header, inner_at });
                // The next frame begins at a cache line, behind the padding room of this one.
                self.top = (self.top + len + PADDING_SLACK).next_multiple_of(64);
            }
            None => self.malformed += 1,
        }
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether every packet was given out; otherwise the round ended early, so that the sink can be emptied.
    pub fn is_exhausted(&self) -> bool {
        self.segments.is_none() && self.next == self.frames.len()
    }

    /// How many frames could not be understood since this was last asked.
    pub fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    fn lend(&mut self, start: usize, len: usize) -> PacketSlot<'_> {
        let end = start + len;
        self.given_out += 1;
        let slack = &self.memory[end..end + PADDING_SLACK];
        self.saved = Some((end, slack.try_into().expect("slack is cut to its length")));
        PacketSlot { buffer: &mut self.memory[start..end + PADDING_SLACK], len }
    }
}

impl PacketSource for SplitBatch {
    fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
        if let Some((at, slack)) = self.saved.take() {
            self.memory[at..at + PADDING_SLACK].copy_from_slice(&slack);
        }
        if self.given_out == MAX_ROUND {
            self.given_out = 0;
            return None;
        }
        loop {
            if let Some(segments) = &mut self.segments {
                if let Some((start, len)) = segments.cut(&mut self.memory) {
                    return Some(self.lend(start, len));
                }
                self.segments = None;
            }
            let Some(&frame) = self.frames.get(self.next) else {
                self.given_out = 0;
                return None;
            };
            self.next += 1;
            match open(&mut self.memory, frame.start, frame.len, frame.header, frame.inner_at) {
                Some(Opened::Packet) => return Some(self.lend(frame.start, frame.len)),
                Some(Opened::Segments(segments)) => self.segments = Some(segments),
                None => self.malformed += 1,
            }
        }
    }
}

/// Calls `each` with every packet that the frame stands for, in order; not at all if the header contradicts the packet.
/// `packet` is scribbled on. For a super-packet that the device refused: its packets may be written one by one.
pub fn for_each_packet(packet: &mut [u8], header: VirtioHeader, mut each: impl FnMut(&[u8])) {
    match open(packet, 0, packet.len(), header, None) {
        Some(Opened::Packet) => each(packet),
        Some(Opened::Segments(mut segments)) => {
            while let Some((start, len)) = segments.cut(packet) {
                each(&packet[start..start + len]);
            }
        }
        None => {}
    }
}

#[expect(clippy::large_enum_variant, reason = "it is moved once, to where it stays until the last segment is cut")]
enum Opened {
    /// A packet as it is; its checksum has been completed.
    Packet,
    /// A super-packet.
    Segments(Segments),
}

/// `None` if the virtio header contradicts the packet.
fn open(memory: &mut [u8], start: usize, len: usize, header: VirtioHeader, inner_at: Option<usize>) -> Option<Opened> {
    if header.gso_type & tunnel::GSO_TUNNEL != 0 {
        return tunnel::open(&memory[start..start + len], start, header, inner_at?).map(Opened::Segments);
    }
    let packet = &mut memory[start..start + len];
    let kind = match header.gso_type & !GSO_ECN {
        GSO_NONE => {
            packet.first().filter(|first| matches!(**first >> 4, 4 | 6))?;
            if header.flags & NEEDS_CHECKSUM != 0 {
                complete_checksum(packet, header)?;
            }
            return Some(Opened::Packet);
        }
        _ => kind_of(packet, header)?,
    };
    Segments::open(packet, start, kind, header).map(Opened::Segments)
}

/// The kind of a super-packet, by what both its headers say.
pub(super) fn kind_of(packet: &[u8], header: VirtioHeader) -> Option<Kind> {
    let is_v4 = match packet.first()? >> 4 {
        4 => true,
        6 => false,
        _ => return None,
    };
    match (header.gso_type & !GSO_ECN, is_v4) {
        (GSO_TCP4, true) => Some(Kind::Tcp4),
        (GSO_TCP6, false) => Some(Kind::Tcp6),
        (GSO_UDP, true) => Some(Kind::Udp4),
        (GSO_UDP, false) => Some(Kind::Udp6),
        _ => None,
    }
}

/// Adds the sum of the bytes to what the checksum field holds, the pseudo-header's.
fn complete_checksum(packet: &mut [u8], header: VirtioHeader) -> Option<()> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > packet.len() {
        return None;
    }
    let checksum = !fold(checksum_sum(&packet[start..]));
    let is_udp = usize::from(header.checksum_offset) == UDP_CHECKSUM;
    put_u16(packet, at, if is_udp { not_zero(checksum) } else { checksum });
    Some(())
}

/// Zero would mean "no checksum" to UDP; all ones is the same number. RFC 768.
pub(super) fn not_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// A super-packet being cut. Offsets are into the memory it lies in.
#[derive(Debug)]
pub(super) struct Segments {
    /// The headers of a tunnel in front of each.
    pub(super) outer: Option<Outer>,
    kind: Kind,
    /// The headers of the first segment, with what differs between segments set to zero.
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// Where the transport header begins.
    transport: usize,
    /// The payload not yet cut.
    payload_at: usize,
    end: usize,
    segment_len: usize,
    is_first: bool,
    /// IPv4: sum of the header without length, identification and checksum.
    ip_sum: u32,
    identification: u16,
    /// Sum of pseudo-header and transport header without lengths, sequence number, flags and checksum.
    transport_sum: u32,
    sequence: u32,
    flags: u8,
}

impl Segments {
    pub(super) fn open(packet: &[u8], start: usize, kind: Kind, header: VirtioHeader) -> Option<Segments> {
        let ip_len = if kind.is_v4() { ip_header_len_v4(packet) } else { IPV6_HEADER_LEN };
        let protocol = if kind.is_tcp() { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let needs_checksum = header.flags & NEEDS_CHECKSUM != 0;
        let transport = match needs_checksum {
            true => usize::from(header.checksum_start),
            // Joined by a network card or another machine's kernel, which found the checksums right: then nobody says
            // where they are.
            false if *packet.get(if kind.is_v4() { 9 } else { 6 })? == protocol => ip_len,
            false => return None,
        };
        // Only IPv6 may have something between its header and the transport header.
        let is_in_place = if kind.is_v4() { transport == ip_len } else { transport >= ip_len };
        if !is_in_place || ip_len < IPV4_HEADER_LEN || header.segment_len == 0 {
            return None;
        }
        let transport_len =
            if kind.is_tcp() { usize::from(*packet.get(transport + 12)? >> 4) * 4 } else { UDP_HEADER_LEN };
        let headers_len = transport + transport_len;
        let has_header = transport_len >= if kind.is_tcp() { TCP_HEADER_LEN } else { UDP_HEADER_LEN };
        if !has_header || headers_len > MAX_HEADERS || headers_len >= packet.len() {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers[..headers_len].copy_from_slice(&packet[..headers_len]);
        let identification = if kind.is_v4() { u16_at(&headers, 4) } else { 0 };
        let (mut sequence, mut flags) = (0, 0);
        if kind.is_v4() {
            headers[2..6].fill(0);
            headers[10..12].fill(0);
        } else {
            headers[4..6].fill(0);
        }
        let field = &mut headers[transport..headers_len];
        if kind.is_tcp() {
            sequence = u32_at(field, TCP_SEQUENCE);
            flags = field[TCP_FLAGS];
            field[TCP_SEQUENCE..TCP_SEQUENCE + 4].fill(0);
            field[TCP_FLAGS] = 0;
        } else {
            field[4..6].fill(0);
        }
        let checksum_at = kind.checksum_offset();
        let partial = u16_at(field, checksum_at);
        field[checksum_at..checksum_at + 2].fill(0);
        let header_sum = sum(field);
        let is_plain = if kind.is_v4() { ip_len == IPV4_HEADER_LEN } else { transport == IPV6_HEADER_LEN };
        let pseudo_sum = match is_plain || !needs_checksum {
            true => address_sum(&headers, kind.is_v4(), protocol),
            // A source route may have put another destination into the header than the checksum is about: only the
            // kernel's sum knows it. It has the length of the whole.
            false => u32::from(partial) + u32::from(!fold((packet.len() - transport) as u32)),
        };
        let transport_sum = header_sum + pseudo_sum;
        Some(Segments {
            outer: None,
            kind,
            headers_len,
            transport,
            payload_at: start + headers_len,
            end: start + packet.len(),
            segment_len: usize::from(header.segment_len),
            is_first: true,
            ip_sum: if kind.is_v4() { sum(&headers[..ip_len]) } else { 0 },
            identification,
            transport_sum,
            sequence,
            flags,
            headers,
        })
    }

    /// Makes the next segment a packet; returns where it is and how long.
    fn cut(&mut self, memory: &mut [u8]) -> Option<(usize, usize)> {
        if self.payload_at >= self.end {
            return None;
        }
        let payload_len = self.segment_len.min(self.end - self.payload_at);
        let is_last = self.payload_at + payload_len == self.end;
        let start = self.payload_at - self.headers_len;
        let packet = &mut memory[start..self.payload_at + payload_len];
        let len = packet.len();
        let payload_sum = checksum_sum(&packet[self.headers_len..]);

        copy_headers(&mut packet[..self.headers_len], &self.headers[..self.headers_len]);
        if self.kind.is_v4() {
            put_u16(packet, 2, len as u16);
            put_u16(packet, 4, self.identification);
            let header_sum = self.ip_sum + len as u32 + u32::from(self.identification);
            put_u16(packet, 10, !fold(header_sum));
            self.identification = self.identification.wrapping_add(1);
        } else {
            put_u16(packet, 4, (len - IPV6_HEADER_LEN) as u16);
        }
        let transport_len = (len - self.transport) as u32;
        let header = &mut packet[self.transport..self.headers_len];
        // The pseudo-header has the length too.
        let mut total = self.transport_sum + transport_len + payload_sum;
        if self.kind.is_tcp() {
            let mut flags = self.flags;
            if !self.is_first {
                flags &= !CWR;
            }
            if !is_last {
                flags &= !(FIN | PSH);
            }
            header[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&self.sequence.to_be_bytes());
            header[TCP_FLAGS] = flags;
            total += (self.sequence >> 16) + (self.sequence & 0xffff) + u32::from(flags);
            put_u16(header, TCP_CHECKSUM, !fold(total));
            self.sequence = self.sequence.wrapping_add(payload_len as u32);
        } else {
            put_u16(header, 4, transport_len as u16);
            total += transport_len;
            put_u16(header, UDP_CHECKSUM, not_zero(!fold(total)));
        }
        self.payload_at += payload_len;
        self.is_first = false;
        match &mut self.outer {
            Some(outer) => Some(outer.wrap(memory, start, len)),
            None => Some((start, len)),
        }
    }
}

fn ip_header_len_v4(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0x0f) * 4
}
