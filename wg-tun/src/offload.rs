//! Owns the virtio header in front of every packet of a TUN device, and with it segmentation ([`split`]) and coalescing
//! ([`coalesce`]) of inner packets. Pure functions on bytes: no descriptor, no system call.
//!
//! A **super-packet** is one IP packet of up to 64 KiB that stands for many, equal but for their payload, their place in
//! the flow and a shorter last one; its virtio header says how long the pieces are.

pub(crate) mod coalesce;
pub(crate) mod split;
#[cfg(test)]
mod tests;

/// Length in bytes of the virtio header that the kernel uses unless told otherwise.
pub(crate) const HEADER_LEN: usize = 10;
/// Length in bytes of the one variant that a foreign descriptor may use, with a field for merged buffers.
pub(crate) const LONG_HEADER_LEN: usize = 12;

/// The checksum field holds only the pseudo-header's sum; whoever needs it completes it.
pub(crate) const NEEDS_CHECKSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The first segment carries CWR, the others must not. RFC 3168 6.1.2.
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, in native byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VirtioHeader {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    /// Bytes in front of the payload; a hint.
    pub(crate) header_len: u16,
    /// Payload bytes per segment.
    pub(crate) segment_len: u16,
    /// Where checksumming starts: the transport header.
    pub(crate) checksum_start: u16,
    /// Where the checksum is, from there.
    pub(crate) checksum_offset: u16,
}

impl VirtioHeader {
    /// The header in the first ten bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<VirtioHeader> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(VirtioHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: field(2),
            segment_len: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
        })
    }

    /// Writes the header; what `bytes` has beyond ten bytes becomes zero.
    pub(crate) fn write(&self, bytes: &mut [u8]) {
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment_len.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes[HEADER_LEN..].fill(0);
    }
}

/// A kind of super-packet. The kernel may refuse one and take the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6];

    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Kind::Tcp4 | Kind::Tcp6)
    }

    pub(crate) fn is_v4(self) -> bool {
        matches!(self, Kind::Tcp4 | Kind::Udp4)
    }

    fn gso_type(self) -> u8 {
        match self {
            Kind::Tcp4 => GSO_TCP4,
            Kind::Tcp6 => GSO_TCP6,
            Kind::Udp4 | Kind::Udp6 => GSO_UDP,
        }
    }

    /// Where the checksum is in the transport header.
    fn checksum_offset(self) -> usize {
        if self.is_tcp() { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }
}

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Offsets in a TCP header. RFC 9293 3.1.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
/// Offset in a UDP header. RFC 768.
const UDP_CHECKSUM: usize = 6;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Partial sum of the pseudo-header's addresses and protocol; the length is added by the caller.
#[inline]
fn address_sum(header: &[u8], is_v4: bool, protocol: u8) -> u32 {
    let addresses = if is_v4 { word_sum::<8>(header, 12) } else { word_sum::<32>(header, 8) };
    addresses + u32::from(protocol)
}

/// Partial sum of `LEN` bytes, a small multiple of four, from `at`: at most `LEN / 2` times 0xffff.
#[inline]
fn word_sum<const LEN: usize>(bytes: &[u8], at: usize) -> u32 {
    let bytes: &[u8; LEN] = bytes[at..at + LEN].try_into().expect("a range of this length");
    bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}
