//! Builders of valid inner packets of both families, numbered so that loss, duplication and order can be told exactly.
//!
//! Everything is written from RFC 791 and RFC 8200; no code of the crates is used.

use std::net::IpAddr;

/// Length of the shortest numbered packet in bytes, in either family.
pub const MIN_NUMBERED_LEN: usize = 40 + NUMBER_LEN;

/// Bytes of the number behind the header.
const NUMBER_LEN: usize = 8;

/// The ECN field. RFC 3168 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    NotCapable = 0,
    Capable1 = 1,
    Capable0 = 2,
    CongestionExperienced = 3,
}

impl Ecn {
    pub const ALL: [Ecn; 4] = [Ecn::NotCapable, Ecn::Capable1, Ecn::Capable0, Ecn::CongestionExperienced];
}

/// A packet of `len` bytes from `source` to `destination`, both of one family, that carries `number`.
pub fn numbered(source: IpAddr, destination: IpAddr, number: u64, len: usize) -> Vec<u8> {
    with_ecn(source, destination, number, len, Ecn::NotCapable)
}

/// As [`numbered`], with an ECN field.
pub fn with_ecn(source: IpAddr, destination: IpAddr, number: u64, len: usize, ecn: Ecn) -> Vec<u8> {
    let mut packet = vec![0x5c; len];
    let header_len = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet[..20].fill(0);
            packet[0] = 0x45;
            // DSCP EF, so that a copied DSCP would show outside.
            packet[1] = 46 << 2 | ecn as u8;
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[8] = 64;
            packet[9] = 253;
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
            let sum = ipv4_checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            20
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet[..40].fill(0);
            let class = 46 << 2 | ecn as u8;
            packet[0] = 0x60 | class >> 4;
            packet[1] = class << 4;
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            packet[6] = 253;
            packet[7] = 64;
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..40].copy_from_slice(&destination.octets());
            40
        }
        _ => panic!("{source} and {destination} are not of one family"),
    };
    packet[header_len..header_len + NUMBER_LEN].copy_from_slice(&number.to_be_bytes());
    packet
}

/// The number inside a packet made by [`numbered`].
pub fn number_of(packet: &[u8]) -> u64 {
    let header_len = if packet[0] >> 4 == 4 { 20 } else { 40 };
    u64::from_be_bytes(packet[header_len..header_len + NUMBER_LEN].try_into().expect("a numbered packet"))
}

/// The ECN field of a packet.
pub fn ecn_of(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] & 3 } else { packet[1] >> 4 & 3 }
}

/// The header checksum computed from scratch, as if the checksum field were zero. RFC 791 3.1.
pub fn ipv4_checksum(header: &[u8]) -> u16 {
    let mut sum = 0u32;
    for (index, pair) in header.chunks(2).enumerate() {
        if index != 5 {
            sum += u32::from(pair[0]) << 8 | u32::from(pair[1]);
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
