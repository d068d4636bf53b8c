//! Segmentation and coalescing of inner packets, for a TUN device with a virtio header (`IFF_VNET_HDR`). Pure functions
//! on bytes: no descriptor, no system call, no clock. [`Device`](crate::Device) does all of this by itself; here it is for
//! programs that have a TUN loop of their own around an [`Engine`](wg_core::Engine).
//!
//! A **super-packet** is one IP packet of up to 64 KiB that stands for many, equal but for their payload, their place in
//! the flow and a shorter last one; its virtio header says how long the pieces are. Reading and writing a flow in
//! super-packets costs a twentieth of doing it packet by packet.
//!
//! * [`SplitBatch`] (GSO) is what was read from the device: a source of packets with headers and checksums of their own.
//! * [`CoalesceBatch`] (GRO) is a sink for decrypted packets, and hands out what is to be written to the device.
//!
//! The kernel describes and takes super-packets once it is told to, with `TUNSETOFFLOAD`; which ones, it may refuse.
//!
//! ```
//! use wg_core::{AllowedIps, Instant, PacketSink, PacketSource, PeerId, packet::ip::IpPacket};
//! use wg_tun::offload::{CoalesceBatch, HEADER_LEN, Kind, SplitBatch, VirtioHeader};
//!
//! // A super-packet of three times 100 bytes of UDP, as it is read from the device: headers for the whole, a checksum
//! // that covers only the pseudo-header, and a virtio header.
//! let header = VirtioHeader { flags: 1, gso_type: 5, header_len: 28, segment_len: 100, checksum_start: 20, checksum_offset: 6 };
//! let mut frame = vec![0; HEADER_LEN];
//! header.write(&mut frame);
//! frame.extend([0x45, 0, 1, 72, 0, 0, 0x40, 0, 64, 17, 0x25, 0xa3, 10, 0, 0, 1, 10, 0, 0, 2]);
//! frame.extend([0x30, 0x39, 0x01, 0xbb, 1, 52, 0x15, 0x48]);
//! frame.extend([7; 300]);
//!
//! let mut split = SplitBatch::new(HEADER_LEN);
//! let mut coalesce = CoalesceBatch::new(Kind::ALL);
//! coalesce.clear(Instant::EPOCH);
//! split.space().expect("it is empty")[..frame.len()].copy_from_slice(&frame);
//! split.push(frame.len());
//!
//! // Between the two there would be the engines of two machines.
//! let mut allowed_ips = AllowedIps::new();
//! let peer = PeerId::new(0, 0);
//! allowed_ips.insert("10.0.0.0/8".parse().expect("a prefix"), peer);
//! while let Some(slot) = split.next_packet() {
//!     let packet = &slot.buffer[..slot.len];
//!     assert_eq!(packet.len(), 128);
//!     let view = IpPacket::parse(packet).expect("it is whole");
//!     let checked = allowed_ips.check_source(&view, peer).expect("the source is the peer's");
//!     coalesce.reserve(packet.len()).expect("there is room")[..packet.len()].copy_from_slice(packet);
//!     coalesce.commit(checked);
//! }
//! let joined = coalesce.next_frame(HEADER_LEN).expect("a frame");
//! assert_eq!((joined.count, &*joined.bytes), (3, &frame[..]));
//! ```

mod coalesce;
mod split;
#[cfg(test)]
mod tests;
mod tunnel;

pub use coalesce::{CoalesceBatch, CoalescedFrame};
pub use split::{SplitBatch, for_each_packet};

pub use crate::cmsg::checksum_sum;

/// Length in bytes of the virtio header that the kernel uses unless told otherwise.
pub const HEADER_LEN: usize = 10;
/// Length in bytes of the one variant that a foreign descriptor may use, with a field for merged buffers.
pub const LONG_HEADER_LEN: usize = 12;

/// Length in bytes of the variant that also describes super-packets within UDP tunnels such as VXLAN and Geneve; Linux
/// 6.17 and later.
pub const TUNNEL_HEADER_LEN: usize = 24;

/// The checksum field holds only the pseudo-header's sum; whoever needs it completes it.
pub const NEEDS_CHECKSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The first segment carries CWR, the others must not. RFC 3168 6.1.2.
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, in native byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// [`NEEDS_CHECKSUM`] or 0.
    pub flags: u8,
    /// What kind of super-packet it is; 0 for a packet. `VIRTIO_NET_HDR_GSO_*` in the kernel's headers.
    pub gso_type: u8,
    /// Bytes in front of the payload; a hint.
    pub header_len: u16,
    /// Payload bytes per segment.
    pub segment_len: u16,
    /// Where checksumming starts: the transport header.
    pub checksum_start: u16,
    /// Where the checksum is, from there.
    pub checksum_offset: u16,
}

impl VirtioHeader {
    /// The header in the first ten bytes.
    pub fn parse(bytes: &[u8]) -> Option<VirtioHeader> {
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

    /// Writes the header; what `bytes` has beyond ten bytes becomes zero. Panics if it has fewer.
    pub fn write(&self, bytes: &mut [u8]) {
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
#[non_exhaustive]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4; Linux 6.2 and later.
    Udp4,
    /// UDP over IPv6; Linux 6.2 and later.
    Udp6,
}

impl Kind {
    /// All that are known here.
    pub const ALL: &'static [Kind] = &Self::EACH;
    const EACH: [Kind; 4] = [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6];

    fn is_tcp(self) -> bool {
        matches!(self, Kind::Tcp4 | Kind::Tcp6)
    }

    fn is_v4(self) -> bool {
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

/// Panics if no virtio header has that length; 0 stands for none.
fn check_header_len(header_len: usize) {
    let is_known = matches!(header_len, 0 | HEADER_LEN | LONG_HEADER_LEN | TUNNEL_HEADER_LEN);
    assert!(is_known, "a virtio header of {header_len} bytes");
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

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Copies headers; `to` and `from` are of one length. Cheaper than a call of `memcpy`, for the lengths that headers have.
#[inline]
fn copy_headers(to: &mut [u8], from: &[u8]) {
    match from.len() {
        16..32 => copy_halves::<16>(to, from),
        32..64 => copy_halves::<32>(to, from),
        64..=128 => copy_halves::<64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// Copies the first and the last `HALF` bytes, which meet or overlap.
#[inline]
fn copy_halves<const HALF: usize>(to: &mut [u8], from: &[u8]) {
    debug_assert!(to.len() == from.len() && from.len() <= 2 * HALF);
    let halves = (from.first_chunk::<HALF>().copied(), from.last_chunk::<HALF>().copied());
    let (Some(first), Some(last)) = halves else { return };
    to[..HALF].copy_from_slice(&first);
    let last_at = to.len() - HALF;
    to[last_at..].copy_from_slice(&last);
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
