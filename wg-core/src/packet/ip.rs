//! Owns the view of one IPv4 or IPv6 packet and the one change the engine makes to it, the congestion mark.
//! Walks no IPv6 extension headers, except that a leading Fragment header is seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::checksum;

/// Length in bytes of an IPv4 header without options. RFC 791 3.1.
pub const IPV4_HEADER_LEN: usize = 20;

/// Length in bytes of an IPv6 header. RFC 8200 3.
pub const IPV6_HEADER_LEN: usize = 40;

/// The ECN field's value for "congestion experienced". RFC 3168 5.
pub const CONGESTION_EXPERIENCED: u8 = 0b11;

/// A view of one whole IPv4 or IPv6 packet: version, header length and stated length are consistent and within the
/// bytes. Checksums are not verified.
#[derive(Clone, Copy, Debug)]
pub struct IpPacket<'a> {
    header: Header<'a>,
    /// Exactly the stated length.
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
enum Header<'a> {
    V4(&'a [u8; IPV4_HEADER_LEN]),
    V6(&'a [u8; IPV6_HEADER_LEN]),
}

impl<'a> IpPacket<'a> {
    /// The packet at the start of `bytes`, in network order; bytes behind its stated length are ignored.
    ///
    /// `None` unless the version is 4 or 6, the header has its least length, and header length <= stated length <=
    /// `bytes.len()`. RFC 791 3.1, RFC 8200 3.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER_LEN] = bytes.first_chunk()?;
                let header_len = ipv4_header_len(header);
                let stated = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header_len < IPV4_HEADER_LEN || stated < header_len {
                    return None;
                }
                Some(IpPacket { header: Header::V4(header), bytes: bytes.get(..stated)? })
            }
            6 => {
                let header: &[u8; IPV6_HEADER_LEN] = bytes.first_chunk()?;
                let stated = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
                Some(IpPacket { header: Header::V6(header), bytes: bytes.get(..stated)? })
            }
            _ => None,
        }
    }

    /// The version: 4 or 6.
    #[inline]
    pub fn version(&self) -> u8 {
        match self.header {
            Header::V4(_) => 4,
            Header::V6(_) => 6,
        }
    }

    /// The source address.
    #[inline]
    pub fn source(&self) -> IpAddr {
        match self.header {
            Header::V4(header) => ipv4_addr(header, 12),
            Header::V6(header) => ipv6_addr(header, 8),
        }
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        match self.header {
            Header::V4(header) => ipv4_addr(header, 16),
            Header::V6(header) => ipv6_addr(header, 24),
        }
    }

    /// IPv4: the protocol. IPv6: the first next header, which may be an extension header.
    #[inline]
    pub fn protocol(&self) -> u8 {
        match self.header {
            Header::V4(header) => header[9],
            Header::V6(header) => header[6],
        }
    }

    /// The stated length in bytes: IPv4 total length, IPv6 payload length plus 40.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.bytes.len()
    }

    /// The header's length in bytes: IPv4 with options, IPv6 without extension headers.
    #[inline]
    pub fn header_len(&self) -> usize {
        match self.header {
            Header::V4(header) => ipv4_header_len(header),
            Header::V6(_) => IPV6_HEADER_LEN,
        }
    }

    /// Whether the packet is a piece of a larger one, the first or a later one.
    ///
    /// IPv6: whether the first next header is Fragment, even if it announces a single piece (RFC 6946); a Fragment
    /// header behind another extension header is not seen.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        match self.header {
            Header::V4(header) => ipv4_fragment_field(header) & (MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET) != 0,
            Header::V6(header) => header[6] == FRAGMENT_HEADER,
        }
    }

    /// Whether the packet is a fragment other than the first, so that its payload starts inside someone's payload.
    ///
    /// IPv6: as in [`IpPacket::is_fragment`]; a Fragment header that is cut short counts as a later one, because
    /// nothing behind it can be trusted to be a transport header.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        match self.header {
            Header::V4(header) => ipv4_fragment_field(header) & IPV4_FRAGMENT_OFFSET != 0,
            Header::V6(header) => header[6] == FRAGMENT_HEADER && ipv6_fragment_offset(self.payload()) != Some(0),
        }
    }

    /// The ECN field: the two low bits of TOS or traffic class. RFC 3168 5.
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.traffic_class() & CONGESTION_EXPERIENCED
    }

    /// TOS or traffic class: DSCP in the six high bits, ECN in the two low ones. RFC 2474 3, RFC 3168 5.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        match self.header {
            Header::V4(header) => header[1],
            Header::V6(header) => header[0] << 4 | header[1] >> 4,
        }
    }

    /// What follows the header, up to the stated length. IPv6: extension headers are part of it.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        // `parse` saw to it that the header ends within the packet.
        self.bytes.get(self.header_len()..).unwrap_or_default()
    }

    /// The whole packet, exactly as long as it states.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Writes "congestion experienced" into the ECN field of the packet at the start of `packet`, and corrects an IPv4
/// header checksum incrementally, so that a wrong one stays wrong.
///
/// Returns whether the packet now carries the mark; `false`, with nothing changed, if it is not ECN-capable (field
/// zero) or not a whole packet. RFC 6040 4.2, RFC 3168 5, RFC 1624 3.
pub fn set_congestion_experienced(packet: &mut [u8]) -> bool {
    let Some(view) = IpPacket::parse(packet) else { return false };
    if view.ecn() == 0 {
        return false;
    }
    match view.version() {
        4 => {
            let old = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] |= CONGESTION_EXPERIENCED;
            let new = u16::from_be_bytes([packet[0], packet[1]]);
            let checksum = u16::from_be_bytes([packet[10], packet[11]]);
            packet[10..12].copy_from_slice(&checksum::update(checksum, old, new).to_be_bytes());
        }
        _ => packet[1] |= CONGESTION_EXPERIENCED << 4,
    }
    true
}

#[inline]
fn ipv4_header_len(header: &[u8; IPV4_HEADER_LEN]) -> usize {
    usize::from(header[0] & 0x0f) * 4
}

#[inline]
fn ipv4_fragment_field(header: &[u8; IPV4_HEADER_LEN]) -> u16 {
    u16::from_be_bytes([header[6], header[7]])
}

/// The offset in units of 8 bytes; `None` if the Fragment header is cut short. RFC 8200 4.5.
#[inline]
fn ipv6_fragment_offset(payload: &[u8]) -> Option<u16> {
    let fragment: &[u8; FRAGMENT_HEADER_LEN] = payload.first_chunk()?;
    Some(u16::from_be_bytes([fragment[2], fragment[3]]) >> 3)
}

#[inline]
fn ipv4_addr(header: &[u8; IPV4_HEADER_LEN], at: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]))
}

#[inline]
fn ipv6_addr(header: &[u8; IPV6_HEADER_LEN], at: usize) -> IpAddr {
    let octets: [u8; 16] = header[at..at + 16].try_into().expect("a range of sixteen");
    IpAddr::V6(Ipv6Addr::from(octets))
}

/// The flag that announces further fragments. RFC 791 3.1.
const MORE_FRAGMENTS: u16 = 0x2000;
/// The bits of the fragment offset. RFC 791 3.1.
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
/// The next header value of a Fragment header. RFC 8200 4.5.
const FRAGMENT_HEADER: u8 = 44;
/// Length in bytes of a Fragment header. RFC 8200 4.5.
const FRAGMENT_HEADER_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of 28 bytes with four bytes of options, DSCP 46 and ECT(0), behind it four bytes that are not its own.
    fn ipv4() -> Vec<u8> {
        let mut packet = vec![0xa5; 32];
        packet[..20]
            .copy_from_slice(&[0x46, 0xba, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7]);
        packet[20..24].copy_from_slice(&[7, 4, 1, 0]);
        let checksum = oracle_checksum(&packet[..24]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// A packet of 48 bytes with DSCP 46, ECT(0) and a flow label, behind it four bytes that are not its own.
    fn ipv6() -> Vec<u8> {
        let mut packet = vec![0xa5; 52];
        packet[..8].copy_from_slice(&[0x6b, 0xa1, 0x23, 0x45, 0, 8, 58, 255]);
        packet[8..24].copy_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
        packet[24..40].copy_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
        packet
    }

    /// From the definition: the complement of the sum of all words, with the carries added back. RFC 791 3.1.
    fn oracle_checksum(header: &[u8]) -> u16 {
        let mut header = header.to_vec();
        header[10..12].fill(0);
        let mut sum: u64 = header.chunks(2).map(|word| u64::from(word[0]) * 256 + u64::from(word[1])).sum();
        while sum > 0xffff {
            sum = sum % 0x10000 + sum / 0x10000;
        }
        !(sum as u16)
    }

    fn check_every_promise(bytes: &[u8]) {
        let Some(packet) = IpPacket::parse(bytes) else { return };
        assert!(packet.total_len() <= bytes.len());
        assert_eq!(packet.bytes(), &bytes[..packet.total_len()]);
        assert_eq!(packet.header_len() + packet.payload().len(), packet.total_len());
        assert_eq!(packet.version() == 4, packet.source().is_ipv4() && packet.destination().is_ipv4());
        assert!(packet.is_fragment() || !packet.is_later_fragment());
        assert_eq!(packet.ecn(), packet.traffic_class() & 3);
        assert_eq!(packet.protocol(), bytes[if packet.version() == 4 { 9 } else { 6 }]);
    }

    #[test]
    fn an_ipv4_packet_says_what_its_header_says() {
        let bytes = ipv4();
        let packet = IpPacket::parse(&bytes).expect("a packet");
        assert_eq!((packet.version(), packet.header_len(), packet.total_len()), (4, 24, 28));
        assert_eq!(packet.source(), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(packet.destination(), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)));
        assert_eq!((packet.protocol(), packet.traffic_class(), packet.ecn()), (17, 0xba, 0b10));
        assert_eq!((packet.payload(), packet.bytes()), (&bytes[24..28], &bytes[..28]));
    }

    #[test]
    fn an_ipv6_packet_says_what_its_header_says() {
        let bytes = ipv6();
        let packet = IpPacket::parse(&bytes).expect("a packet");
        assert_eq!((packet.version(), packet.header_len(), packet.total_len()), (6, 40, 48));
        assert_eq!(packet.source().to_string(), "2001:db8::1");
        assert_eq!(packet.destination().to_string(), "2001:db8::2");
        assert_eq!((packet.protocol(), packet.traffic_class(), packet.ecn()), (58, 0xba, 0b10));
        assert_eq!((packet.payload(), packet.bytes()), (&bytes[40..48], &bytes[..48]));
    }

    #[test]
    fn a_packet_shorter_than_it_states_is_refused_and_one_of_exactly_that_length_is_not() {
        for (bytes, stated) in [(ipv4(), 28), (ipv6(), 48)] {
            for len in 0..=bytes.len() {
                assert_eq!(IpPacket::parse(&bytes[..len]).is_some(), len >= stated, "{len} of {stated}");
            }
        }
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let with = |mut bytes: Vec<u8>, at: usize, value: u8| {
            bytes[at] = value;
            IpPacket::parse(&bytes).map(|packet| (packet.header_len(), packet.total_len()))
        };
        assert_eq!(with(ipv4(), 0, 0x44), None, "a header of 16 bytes");
        assert_eq!(with(ipv4(), 0, 0x45), Some((20, 28)));
        assert_eq!(with(ipv4(), 0, 0x47), Some((28, 28)), "all header");
        assert_eq!(with(ipv4(), 0, 0x48), None, "a header longer than the packet");
        assert_eq!(with(ipv4(), 3, 23), None, "a packet shorter than its header");
        assert_eq!(with(ipv4(), 3, 24), Some((24, 24)));
        assert_eq!(with(ipv4(), 2, 1), None, "the high byte counts");
        assert_eq!(with(ipv6(), 5, 0), Some((40, 40)));
        assert_eq!(with(ipv6(), 5, 12), Some((40, 52)));
        assert_eq!(with(ipv6(), 5, 13), None);
        assert_eq!(with(ipv6(), 4, 1), None, "the high byte counts");
        for version in (0..16).filter(|version| ![4, 6].contains(version)) {
            assert_eq!(with(ipv4(), 0, version << 4 | 6), None, "version {version}");
        }
    }

    #[test]
    fn an_ipv4_packet_is_a_fragment_by_its_offset_or_by_more_to_come() {
        let mut bytes = ipv4();
        // flags and offset, is a fragment, is a later one
        let cases = [
            (0x0000, false, false),
            (0x4000, false, false),
            (0x8000, false, false),
            (0x2000, true, false),
            (0x2001, true, true),
            (0x0001, true, true),
            (0x1000, true, true),
            (0x00ff, true, true),
        ];
        for (field, is_fragment, is_later) in cases {
            bytes[6..8].copy_from_slice(&u16::to_be_bytes(field));
            let packet = IpPacket::parse(&bytes).expect("a packet");
            assert_eq!((packet.is_fragment(), packet.is_later_fragment()), (is_fragment, is_later), "{field:#06x}");
        }
    }

    #[test]
    fn an_ipv6_packet_is_a_fragment_by_its_first_next_header() {
        let mut bytes = ipv6();
        let fragment = |bytes: &[u8]| {
            let packet = IpPacket::parse(bytes).expect("a packet");
            (packet.is_fragment(), packet.is_later_fragment())
        };
        assert_eq!(fragment(&bytes), (false, false));
        bytes[6] = FRAGMENT_HEADER;
        bytes[42..44].copy_from_slice(&[0, 1]);
        assert_eq!(fragment(&bytes), (true, false), "the first, more to come");
        bytes[42..44].copy_from_slice(&[0, 8]);
        assert_eq!(fragment(&bytes), (true, true));
        bytes[42..44].copy_from_slice(&[0x80, 0]);
        assert_eq!(fragment(&bytes), (true, true));
        bytes[42..44].copy_from_slice(&[0, 0]);
        assert_eq!(fragment(&bytes), (true, false));
        bytes[5] = 7;
        assert_eq!(fragment(&bytes), (true, true), "the Fragment header is cut short");
    }

    #[test]
    fn the_congestion_mark_changes_the_field_and_the_checksum_and_nothing_else() {
        for ecn in 0..4 {
            for identification in 0..=u16::MAX {
                let mut bytes = ipv4();
                bytes[1] = 0xb8 | ecn;
                bytes[4..6].copy_from_slice(&identification.to_be_bytes());
                let checksum = oracle_checksum(&bytes[..24]);
                bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
                let mut expected = bytes.clone();
                if ecn != 0 {
                    expected[1] = 0xbb;
                    let checksum = oracle_checksum(&expected[..24]);
                    expected[10..12].copy_from_slice(&checksum.to_be_bytes());
                }
                assert_eq!(set_congestion_experienced(&mut bytes), ecn != 0);
                assert_eq!(bytes, expected, "{ecn} {identification}");
            }
        }
        for ecn in 0..4 {
            let mut bytes = ipv6();
            bytes[1] = 0x81 | ecn << 4;
            let mut expected = bytes.clone();
            if ecn != 0 {
                expected[1] = 0xb1;
            }
            assert_eq!(set_congestion_experienced(&mut bytes), ecn != 0);
            assert_eq!(bytes, expected, "{ecn}");
        }
    }

    #[test]
    fn the_congestion_mark_leaves_a_wrong_checksum_wrong_and_half_a_packet_alone() {
        let mut bytes = ipv4();
        bytes[11] ^= 0x10;
        assert!(set_congestion_experienced(&mut bytes));
        assert_ne!(bytes[10..12], oracle_checksum(&bytes[..24]).to_be_bytes());
        for (bytes, stated) in [(ipv4(), 28), (ipv6(), 48)] {
            for len in 0..stated {
                let mut cut = bytes[..len].to_vec();
                assert!(!set_congestion_experienced(&mut cut));
                assert_eq!(cut, bytes[..len]);
            }
        }
    }

    #[test]
    fn no_truncation_and_no_change_of_one_byte_breaks_a_promise() {
        for valid in [ipv4(), ipv6()] {
            for len in 0..=valid.len() {
                check_every_promise(&valid[..len]);
            }
            for at in 0..valid.len() {
                for value in 0..=u8::MAX {
                    let mut bytes = valid.clone();
                    bytes[at] = value;
                    check_every_promise(&bytes);
                    set_congestion_experienced(&mut bytes);
                }
            }
        }
    }
}
