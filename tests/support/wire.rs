//! Single packets, byte by byte: owns building them, putting them on a host's network as they are, and reading what
//! another host's interfaces see. Written from RFC 791, 768, 8200 and 9293; no code of the crates is used.

#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of the harness")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Host;

/// Everything that the interfaces of a host see from now on, in both directions.
pub struct Capture {
    socket: UdpSocket,
}

impl Capture {
    /// Begins now.
    pub fn start(host: &Host) -> Capture {
        // ETH_P_ALL, in network order as packet(7) wants it; SOCK_DGRAM leaves out link headers.
        let every_protocol = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = host.within(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(every_protocol)));
        let socket = socket.expect("root may listen");
        setsockopt(&socket, RcvBufForce, &(32 << 20)).expect("root sets any buffer size");
        Capture { socket: socket.into() }
    }

    /// The next packet for which `is_wanted` holds, or `None` if none comes within `patience`.
    pub fn next(&self, patience: Duration, is_wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            self.socket.set_read_timeout(Some(left)).expect("a timeout can be set");
            match self.socket.recv(&mut buffer) {
                Ok(len) if is_wanted(&buffer[..len]) => return Some(buffer[..len].to_vec()),
                Ok(_) => {}
                Err(_) if Instant::now() >= deadline => return None,
                Err(_) => {}
            }
        }
    }
}

/// Sends packets of one family as they are. The kernel writes the checksum of an IPv4 header, and nothing else.
pub struct Injector {
    socket: Socket,
}

impl Injector {
    /// On `host`, for packets to addresses of the family of `target`.
    pub fn new(host: &Host, target: IpAddr) -> Injector {
        let domain = if target.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        // Of this protocol, raw(7) expects headers to be there, in either family.
        let with_header = Some(Protocol::from(libc::IPPROTO_RAW));
        let socket = host.within(|| Socket::new(domain, Type::RAW, with_header)).expect("root may send anything");
        Injector { socket }
    }

    /// Sends one.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        let to = SockAddr::from(SocketAddr::new(destination(packet), 0));
        let sent = self.socket.send_to(packet, &to);
        assert_eq!(sent.map_err(|error| error.to_string()), Ok(packet.len()), "sending {packet:02x?}");
    }
}

// ------------------------------------------------------------------------------------------------------------ building

/// The parts of a packet of either family.
#[derive(Clone, Debug)]
pub struct Ip {
    pub source: IpAddr,
    pub target: IpAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv4.
    pub identification: u16,
    /// IPv4: flags and offset.
    pub fragment: u16,
    /// IPv6, 20 bits.
    pub flow_label: u32,
    pub hop_limit: u8,
    /// IPv4, padded to a multiple of four.
    pub options: Vec<u8>,
    /// Protocol of what follows; of the first extension header if there is one.
    pub protocol: u8,
}

/// IPv4: may not be fragmented.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

impl Ip {
    /// A header of that protocol with the usual in every other field.
    pub fn new(source: IpAddr, target: IpAddr, protocol: u8) -> Ip {
        Ip {
            source,
            target,
            traffic_class: 0,
            identification: 0x1234,
            fragment: DONT_FRAGMENT,
            flow_label: 0x5_a5a5,
            hop_limit: 61,
            options: Vec::new(),
            protocol,
        }
    }

    /// The packet with that behind its header.
    pub fn with(&self, behind: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let header_len = 20 + self.options.len();
                packet.extend([0x40 | (header_len / 4) as u8, self.traffic_class]);
                packet.extend(((header_len + behind.len()) as u16).to_be_bytes());
                packet.extend(self.identification.to_be_bytes());
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([self.hop_limit, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(target.octets());
                packet.extend(&self.options);
                let checksum = checksum(&packet);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
                packet.extend(first.to_be_bytes());
                packet.extend((behind.len() as u16).to_be_bytes());
                packet.extend([self.protocol, self.hop_limit]);
                packet.extend(source.octets());
                packet.extend(target.octets());
            }
            _ => panic!("two families in one packet"),
        }
        packet.extend(behind);
        packet
    }

    /// A UDP header in front of `payload`, for behind this header or any other with the same addresses.
    pub fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(ports.0.to_be_bytes());
        datagram.extend(ports.1.to_be_bytes());
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let checksum = match self.transport_checksum(UDP, &datagram) {
            0 => 0xffff,
            checksum => checksum,
        };
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        datagram
    }

    /// A TCP header in front of `payload`.
    pub fn tcp(&self, ports: (u16, u16), segment: &Segment<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(ports.0.to_be_bytes());
        bytes.extend(ports.1.to_be_bytes());
        bytes.extend(segment.sequence.to_be_bytes());
        bytes.extend(0x0102_0304_u32.to_be_bytes());
        bytes.extend([(((20 + segment.options.len()) / 4) << 4) as u8, segment.flags]);
        bytes.extend(512_u16.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(segment.urgent.to_be_bytes());
        bytes.extend(segment.options);
        bytes.extend(segment.payload);
        let checksum = self.transport_checksum(TCP, &bytes);
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn transport_checksum(&self, protocol: u8, transport: &[u8]) -> u16 {
        let mut bytes = Vec::new();
        for address in [self.source, self.target] {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend((transport.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, protocol]);
        bytes.extend(transport);
        checksum(&bytes)
    }
}

/// What is of interest in a TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub sequence: u32,
    pub flags: u8,
    pub urgent: u16,
    /// Padded to a multiple of four.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut total: u32 = words.sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

// ------------------------------------------------------------------------------------------------------------- reading

/// Where an IP packet comes from; `None` if it is none.
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?)),
        _ => None,
    }
}

/// DSCP and ECN of an IP packet.
pub fn traffic_class(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

fn destination(packet: &[u8]) -> IpAddr {
    match packet[0] >> 4 {
        4 => IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).expect("four bytes")),
        _ => IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).expect("sixteen bytes")),
    }
}
