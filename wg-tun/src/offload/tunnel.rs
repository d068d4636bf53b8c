//! Super-packets within a UDP tunnel: outer IP and UDP headers, those of VXLAN, Geneve or the like with an Ethernet header,
//! and behind them an inner super-packet. Owns what is outside the inner one, which `split.rs` cuts as any other.
//!
//! Each segment gets a copy of everything in front of the inner packet, with a length, an identification and a checksum of
//! its own. What the tunnel is called and what its header says is nobody's business here: the virtio header says where
//! the inner packet begins. Virtio 1.3 5.1.6.

use wg_core::packet::checksum::{fold, sum};

use super::split::{Segments, kind_of, not_zero};
use super::*;
use crate::cmsg::checksum_sum;

/// Bits of the type of a super-packet within a tunnel over IPv4, and over IPv6. `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_*`.
const GSO_TUNNEL4: u8 = 0x20;
const GSO_TUNNEL6: u8 = 0x40;
pub(super) const GSO_TUNNEL: u8 = GSO_TUNNEL4 | GSO_TUNNEL6;
/// The outer UDP header has a checksum too, and each segment wants its own. `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`.
const OUTER_CHECKSUM: u8 = 8;
/// Where the virtio header says where the inner packet begins.
const INNER_AT: usize = 22;
/// Outer headers: IPv6 and UDP, 260 bytes of Geneve with all options, Ethernet with two VLAN tags, and some to spare.
const MAX_OUTER: usize = 384;

/// Where the inner packet of a tunnel would begin, if the virtio header is one that says it.
pub(super) fn inner_at(virtio_header: &[u8]) -> Option<usize> {
    // Little-endian, as the standard has it, on every machine.
    let field = virtio_header.get(INNER_AT..TUNNEL_HEADER_LEN)?;
    Some(usize::from(u16::from_le_bytes([field[0], field[1]])))
}

/// Begins to cut a super-packet within a tunnel, which lies at `start`. `None` if the virtio header contradicts the packet.
pub(super) fn open(packet: &[u8], start: usize, header: VirtioHeader, inner_at: usize) -> Option<Segments> {
    let outer = Outer::read(packet, header, inner_at)?;
    let inner = packet.get(inner_at..)?;
    // To the kernel, all of these are little-endian once there is a tunnel.
    let field = |value: u16| u16::from_le_bytes(value.to_ne_bytes());
    let checksum_start = match header.flags & NEEDS_CHECKSUM {
        0 => 0,
        _ => usize::from(field(header.checksum_start)).checked_sub(inner_at)?,
    };
    let inner_header = VirtioHeader {
        flags: header.flags & NEEDS_CHECKSUM,
        gso_type: header.gso_type & !GSO_TUNNEL,
        header_len: field(header.header_len),
        segment_len: field(header.segment_len),
        checksum_start: checksum_start as u16,
        checksum_offset: field(header.checksum_offset),
    };
    let kind = kind_of(inner, inner_header)?;
    let mut segments = Segments::open(inner, start + inner_at, kind, inner_header)?;
    segments.outer = Some(outer);
    Some(segments)
}

/// What stands in front of the inner packet of every segment.
#[derive(Debug)]
pub(super) struct Outer {
    /// With what differs between segments set to zero.
    headers: [u8; MAX_OUTER],
    headers_len: usize,
    is_v4: bool,
    /// Where the UDP header begins.
    udp_at: usize,
    has_checksum: bool,
    /// IPv4: sum of the header without length, identification and checksum.
    ip_sum: u32,
    identification: u16,
    /// Sum of the pseudo-header without its length.
    address_sum: u32,
}

impl Outer {
    fn read(packet: &[u8], header: VirtioHeader, inner_at: usize) -> Option<Outer> {
        let (is_v4, udp_at) = match (packet.first()? >> 4, header.gso_type & GSO_TUNNEL) {
            (4, GSO_TUNNEL4) => (true, usize::from(packet[0] & 0x0f) * 4),
            (6, GSO_TUNNEL6) => (false, IPV6_HEADER_LEN),
            _ => return None,
        };
        let is_long_enough = udp_at >= IPV4_HEADER_LEN && inner_at >= udp_at + UDP_HEADER_LEN;
        if !is_long_enough || inner_at > MAX_OUTER || inner_at > packet.len() {
            return None;
        }
        // A tunnel sends neither fragments nor extension headers.
        if packet[if is_v4 { 9 } else { 6 }] != PROTOCOL_UDP || is_v4 && u16_at(packet, 6) & 0x3fff != 0 {
            return None;
        }
        let mut headers = [0; MAX_OUTER];
        headers[..inner_at].copy_from_slice(&packet[..inner_at]);
        let identification = if is_v4 { u16_at(&headers, 4) } else { 0 };
        if is_v4 {
            headers[2..6].fill(0);
            headers[10..12].fill(0);
        } else {
            headers[4..6].fill(0);
        }
        headers[udp_at + 4..udp_at + UDP_HEADER_LEN].fill(0);
        Some(Outer {
            headers_len: inner_at,
            is_v4,
            udp_at,
            has_checksum: header.flags & OUTER_CHECKSUM != 0,
            ip_sum: if is_v4 { sum(&headers[..udp_at]) } else { 0 },
            identification,
            address_sum: address_sum(&headers, is_v4, PROTOCOL_UDP),
            headers,
        })
    }

    /// Writes the headers in front of the inner packet of `inner_len` bytes at `inner_start`; returns where the packet
    /// begins now, and its length.
    pub(super) fn wrap(&mut self, memory: &mut [u8], inner_start: usize, inner_len: usize) -> (usize, usize) {
        let start = inner_start - self.headers_len;
        let len = self.headers_len + inner_len;
        let packet = &mut memory[start..start + len];
        copy_headers(&mut packet[..self.headers_len], &self.headers[..self.headers_len]);
        if self.is_v4 {
            put_u16(packet, 2, len as u16);
            put_u16(packet, 4, self.identification);
            put_u16(packet, 10, !fold(self.ip_sum + len as u32 + u32::from(self.identification)));
            self.identification = self.identification.wrapping_add(1);
        } else {
            put_u16(packet, 4, (len - IPV6_HEADER_LEN) as u16);
        }
        let udp_len = len - self.udp_at;
        put_u16(packet, self.udp_at + 4, udp_len as u16);
        if self.has_checksum {
            let total = self.address_sum + udp_len as u32 + checksum_sum(&packet[self.udp_at..]);
            put_u16(packet, self.udp_at + UDP_CHECKSUM, not_zero(!fold(total)));
        }
        (start, len)
    }
}
