//! Owns the ICMP errors we answer local senders with. Builds whole packets; does not decide when one is due.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::checksum;
use crate::packet::ip::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket};

const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEADER_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;

/// Longest ICMPv4 error: as much of the packet as fits 576 bytes. RFC 1812 4.3.2.3.
const MAX_ICMPV4_LEN: usize = 576;

/// Longest ICMPv6 error: the least MTU of a link. RFC 4443 2.4 (c).
const MAX_ICMPV6_LEN: usize = 1280;

/// The ICMP error "destination host unreachable" (ICMPv4 3/1) or "address unreachable" (ICMPv6 1/3) about `packet`.
///
/// It is addressed to the packet's source and comes from its destination, so that it enters the host by the interface
/// on which it would be expected. `None` if no error may be sent about this packet: it is an ICMP error itself, a later
/// fragment, or not between two single hosts. RFC 1122 3.2.2, RFC 4443 2.4 (e).
pub fn host_unreachable(packet: &IpPacket<'_>) -> Option<Vec<u8>> {
    answer(packet, Message { v4: [3, 1], v6: [1, 3], parameter: [0; 4] })
}

/// The ICMP error "fragmentation needed" (ICMPv4 3/4) or "packet too big" (ICMPv6 2/0) about `packet`: longer ones than
/// `mtu` bytes do not pass. Addressed like [`host_unreachable`], and `None` when that is. RFC 1191 4, RFC 4443 3.2.
pub fn packet_too_big(packet: &IpPacket<'_>, mtu: u16) -> Option<Vec<u8>> {
    let [high, low] = mtu.to_be_bytes();
    answer(packet, Message { v4: [3, 4], v6: [2, 0], parameter: [0, 0, high, low] })
}

/// What an error says: type and code in each family, and the four bytes behind the checksum.
#[derive(Clone, Copy)]
struct Message {
    v4: [u8; 2],
    v6: [u8; 2],
    parameter: [u8; 4],
}

fn answer(packet: &IpPacket<'_>, message: Message) -> Option<Vec<u8>> {
    if packet.is_later_fragment() || is_icmp_error(packet) {
        return None;
    }
    match (packet.source(), packet.destination()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) if is_host_v4(source) && is_host_v4(destination) => {
            Some(error_v4(packet.bytes(), source, destination, message))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) if is_host_v6(source) && is_host_v6(destination) => {
            Some(error_v6(packet.bytes(), source, destination, message))
        }
        _ => None,
    }
}

fn is_host_v4(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast())
}

/// Whether the packet is an ICMP message that is not an echo, so that an error about it could begin a loop.
fn is_icmp_error(packet: &IpPacket<'_>) -> bool {
    const ECHO_V4: [u8; 2] = [0, 8];
    let kind = packet.payload().first();
    match (packet.version(), packet.protocol()) {
        (4, ICMPV4) => kind.is_none_or(|kind| !ECHO_V4.contains(kind)),
        (6, ICMPV6) => kind.is_none_or(|&kind| kind < 128 || kind == 137),
        _ => false,
    }
}

fn error_v4(about: &[u8], to: Ipv4Addr, from: Ipv4Addr, message: Message) -> Vec<u8> {
    let quoted = &about[..about.len().min(MAX_ICMPV4_LEN - IPV4_HEADER_LEN - ICMP_HEADER_LEN)];
    let total_len = IPV4_HEADER_LEN + ICMP_HEADER_LEN + quoted.len();
    let mut error = Vec::with_capacity(total_len);
    error.extend_from_slice(&[0x45, 0]);
    error.extend_from_slice(&(total_len as u16).to_be_bytes());
    error.extend_from_slice(&[0, 0, 0, 0, HOP_LIMIT, ICMPV4, 0, 0]);
    error.extend_from_slice(&from.octets());
    error.extend_from_slice(&to.octets());
    let header_checksum = checksum::checksum(&error);
    error[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    error.extend_from_slice(&message.v4);
    error.extend_from_slice(&[0; 2]);
    error.extend_from_slice(&message.parameter);
    error.extend_from_slice(quoted);
    let icmp_checksum = checksum::checksum(&error[IPV4_HEADER_LEN..]);
    error[IPV4_HEADER_LEN + 2..][..2].copy_from_slice(&icmp_checksum.to_be_bytes());
    error
}

fn error_v6(about: &[u8], to: Ipv6Addr, from: Ipv6Addr, message: Message) -> Vec<u8> {
    let quoted = &about[..about.len().min(MAX_ICMPV6_LEN - IPV6_HEADER_LEN - ICMP_HEADER_LEN)];
    let payload_len = ICMP_HEADER_LEN + quoted.len();
    let mut error = Vec::with_capacity(IPV6_HEADER_LEN + payload_len);
    error.extend_from_slice(&[0x60, 0, 0, 0]);
    error.extend_from_slice(&(payload_len as u16).to_be_bytes());
    error.extend_from_slice(&[ICMPV6, HOP_LIMIT]);
    error.extend_from_slice(&from.octets());
    error.extend_from_slice(&to.octets());
    error.extend_from_slice(&message.v6);
    error.extend_from_slice(&[0; 2]);
    error.extend_from_slice(&message.parameter);
    error.extend_from_slice(quoted);
    let pseudo = checksum::pseudo_header_v6(from, to, ICMPV6, payload_len as u32);
    let whole = u64::from(checksum::sum(&error[IPV6_HEADER_LEN..])) + u64::from(pseudo);
    error[IPV6_HEADER_LEN + 2..][..2].copy_from_slice(&fold(whole).to_be_bytes());
    error
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet_v4(protocol: u8, destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1];
        packet.extend_from_slice(&destination);
        packet.extend_from_slice(payload);
        let len = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&len);
        packet
    }

    fn packet_v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[protocol, 64]);
        packet.extend_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        packet.extend_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
        packet.extend_from_slice(payload);
        packet
    }

    /// The Internet checksum by its definition. RFC 1071 1.
    fn sums_to_zero(parts: &[&[u8]]) -> bool {
        let bytes = parts.concat();
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    #[test]
    fn an_ipv4_error_goes_back_to_the_sender_and_quotes_what_fits_576_bytes() {
        for payload_len in [0, 1, 300, 1400] {
            let about = packet_v4(17, [10, 0, 0, 9], &vec![7; payload_len]);
            let error = host_unreachable(&IpPacket::parse(&about).expect("whole")).expect("one is due");
            let view = IpPacket::parse(&error).expect("whole");
            assert_eq!(view.source(), IpAddr::from([10, 0, 0, 9]));
            assert_eq!(view.destination(), IpAddr::from([10, 0, 0, 1]));
            assert_eq!(view.payload()[..2], [3, 1]);
            assert_eq!(view.payload()[8..], about[..about.len().min(548)]);
            assert!(error.len() <= 576);
            assert!(sums_to_zero(&[&error[..20]]) && sums_to_zero(&[view.payload()]));
        }
    }

    #[test]
    fn a_packet_that_is_too_big_is_answered_with_the_size_that_passes() {
        let (v4, v6) = (packet_v4(17, [10, 0, 0, 9], &[7; 300]), packet_v6(17, &[7; 300]));
        for (about, kind) in [(&v4, [3, 4]), (&v6, [2, 0])] {
            let error = packet_too_big(&IpPacket::parse(about).expect("whole"), 0xffc0).expect("one is due");
            let view = IpPacket::parse(&error).expect("whole");
            assert_eq!((&view.payload()[..2], &view.payload()[4..8]), (&kind[..], &[0, 0, 0xff, 0xc0][..]));
        }
    }

    #[test]
    fn an_ipv6_error_goes_back_to_the_sender_and_quotes_what_fits_1280_bytes() {
        for payload_len in [0, 1, 300, 1400] {
            let about = packet_v6(17, &vec![7; payload_len]);
            let error = host_unreachable(&IpPacket::parse(&about).expect("whole")).expect("one is due");
            let view = IpPacket::parse(&error).expect("whole");
            assert_eq!(view.source(), IpPacket::parse(&about).expect("whole").destination());
            assert_eq!(view.payload()[..2], [1, 3]);
            assert_eq!(view.payload()[8..], about[..about.len().min(1232)]);
            let len = (view.payload().len() as u32).to_be_bytes();
            assert!(sums_to_zero(&[&error[8..40], &len, &[0, 0, 0, 58], view.payload()]));
        }
    }

    #[test]
    fn no_error_is_sent_about_errors_later_fragments_or_groups() {
        let none = |packet: &[u8]| host_unreachable(&IpPacket::parse(packet).expect("whole")).is_none();
        assert!(none(&packet_v4(ICMPV4, [10, 0, 0, 9], &[3, 1, 0, 0, 0, 0, 0, 0])));
        assert!(!none(&packet_v4(ICMPV4, [10, 0, 0, 9], &[8, 0, 0, 0, 0, 0, 0, 0])));
        assert!(none(&packet_v4(17, [224, 0, 0, 1], &[0; 8])));
        assert!(none(&packet_v4(17, [255; 4], &[0; 8])));
        let mut fragment = packet_v4(17, [10, 0, 0, 9], &[0; 8]);
        fragment[7] = 1;
        assert!(none(&fragment));
        assert!(none(&packet_v6(ICMPV6, &[1, 3, 0, 0, 0, 0, 0, 0])));
        assert!(!none(&packet_v6(ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0])));
    }
}
