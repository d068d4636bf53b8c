//! The view of a packet agrees with a reading straight from the RFCs, and a congestion mark changes nothing else.
//!
//! Input: the bytes of a packet.

use wg_core::packet::ip::{IpPacket, set_congestion_experienced};
use wg_core::packet::message::Message;

/// What the bytes state, read field by field: version, length, ECN. RFC 791 3.1, RFC 8200 3.
fn stated(bytes: &[u8]) -> Option<(u8, usize, u8)> {
    let byte = |at: usize| bytes.get(at).copied();
    match byte(0)? / 16 {
        4 => {
            let header = usize::from(byte(0)? % 16) * 4;
            let total = usize::from(byte(2)?) * 256 + usize::from(byte(3)?);
            let is_whole = bytes.len() >= 20 && header >= 20 && header <= total && total <= bytes.len();
            is_whole.then_some((4, total, byte(1)? % 4))
        }
        6 => {
            let total = 40 + usize::from(byte(4)?) * 256 + usize::from(byte(5)?);
            let is_whole = bytes.len() >= 40 && total <= bytes.len();
            is_whole.then_some((6, total, byte(1)? / 16 % 4))
        }
        _ => None,
    }
}

/// Ones' complement sum of a header, all ones if its checksum is right. RFC 1071 1.
fn sum(header: &[u8]) -> u16 {
    let mut sum = header.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum::<u64>();
    while sum > 0xffff {
        sum = sum % 0x1_0000 + sum / 0x1_0000;
    }
    sum as u16
}

/// Compares the view with the statement, then marks the packet.
pub fn check(bytes: &[u8]) {
    let view = IpPacket::parse(bytes);
    assert_eq!(view.map(|view| (view.version(), view.total_len(), view.ecn())), stated(bytes));
    if let Some(view) = view {
        assert_eq!(view.bytes(), &bytes[..view.total_len()]);
        assert_eq!(view.payload().len() + view.header_len(), view.total_len());
        assert_eq!((view.source().is_ipv4(), view.destination().is_ipv4()), (view.version() == 4, view.version() == 4));
        assert!(view.is_fragment() || !view.is_later_fragment());
    }
    let mut marked = bytes.to_vec();
    let is_marked = set_congestion_experienced(&mut marked);
    match stated(bytes) {
        Some((version, total, ecn)) if ecn != 0 => {
            assert!(is_marked);
            assert_eq!(stated(&marked), Some((version, total, 3)));
            let header = if version == 4 { 20 } else { 2 };
            assert_eq!(marked[header..], bytes[header..]);
            if version == 4 {
                // A right checksum stays right, and a wrong one as wrong as it was.
                let is_right = |bytes: &[u8]| sum(&bytes[..usize::from(bytes[0] % 16) * 4]) == 0xffff;
                assert_eq!(is_right(&marked), is_right(bytes));
            }
        }
        _ => assert!(!is_marked && marked == bytes),
    }
    if let Some(message) = Message::parse(bytes) {
        let len = bytes.len();
        let is_consistent = match message {
            Message::Initiation(_) => bytes[..4] == [1, 0, 0, 0] && len == 148,
            Message::Response(_) => bytes[..4] == [2, 0, 0, 0] && len == 92,
            Message::CookieReply(_) => bytes[..4] == [3, 0, 0, 0] && len == 64,
            Message::TransportData(_) => bytes[..4] == [4, 0, 0, 0] && len >= 32,
        };
        assert!(is_consistent);
    }
}
