//! Two engines in memory that know each other, and the sources and sinks between them.

use std::collections::VecDeque;
use std::net::SocketAddr;

use wg_core::{
    Datagram, DatagramSink, DatagramSource, Endpoint, Engine, EngineConfig, Instant, PADDING_SLACK, PacketSink,
    PacketSlot, PacketSource, PeerId, PrivateKey, SourceChecked, StagingBudget,
};

/// Where time begins.
pub const START: Instant = Instant::from_nanos(1_000_000_000);

/// Longest reservation any call may make in bytes: a datagram's greatest length.
const MAX_RESERVATION: usize = 65_535;

/// An engine, its only peer, and its outer address.
pub struct Host {
    pub engine: Engine,
    pub peer: PeerId,
    pub address: SocketAddr,
}

/// The host with this number, 0 or 1, whose peer is the other one.
pub fn host(number: u8) -> Host {
    let key = |number: u8| PrivateKey::from_bytes([number + 1; 32]);
    let address = |number: u8| SocketAddr::from(([192, 0, 2, number + 1], 51_820));
    let other = 1 - number;
    let mut config = EngineConfig::new([number + 7; 32]);
    config.staging = StagingBudget::new(1 << 20);
    let engine = Engine::new(config, START);
    engine.set_wall_clock(std::time::Duration::from_secs(1_893_456_000), START);
    engine.set_private_key(Some(key(number)), START);
    let peer = engine.add_peer(key(other).public_key()).expect("there is room");
    engine.add_allowed_ip(peer, format!("10.0.0.{}/32", other + 1).parse().expect("a prefix")).expect("it exists");
    engine.add_allowed_ip(peer, format!("fd00::{}/128", other + 1).parse().expect("a prefix")).expect("it exists");
    engine.set_endpoint(peer, address(other), START).expect("it exists");
    engine.bring_up(START);
    Host { engine, peer, address: address(number) }
}

/// A whole IPv4 packet from this host to the other.
pub fn packet(number: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0x5c; len.max(20)];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 0]);
    let total_len = packet.len() as u16;
    packet[2..4].copy_from_slice(&total_len.to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 0, 0, number + 1, 10, 0, 0, 2 - number]);
    packet
}

/// Inner packets for an engine.
pub struct Packets(VecDeque<Vec<u8>>, Vec<u8>);

impl Packets {
    pub fn new(packets: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Packets(packets.into_iter().collect(), Vec::new())
    }
}

impl PacketSource for Packets {
    fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
        self.1 = self.0.pop_front()?;
        let len = self.1.len();
        self.1.resize(len + PADDING_SLACK, 0xa5);
        Some(PacketSlot { buffer: &mut self.1, len })
    }
}

/// Datagrams for an engine, all from one address.
pub struct Datagrams(SocketAddr, VecDeque<Vec<u8>>, Vec<u8>);

impl Datagrams {
    pub fn new(from: SocketAddr, datagrams: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Datagrams(from, datagrams.into_iter().collect(), Vec::new())
    }
}

impl DatagramSource for Datagrams {
    fn next_datagram(&mut self) -> Option<Datagram<'_>> {
        self.2 = self.1.pop_front()?;
        Some(Datagram { bytes: &self.2, from: Endpoint::new(self.0), ecn: 0 })
    }
}

/// Takes what an engine sends.
#[derive(Default)]
pub struct Sent {
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    reserved: Option<(SocketAddr, Vec<u8>)>,
}

impl DatagramSink for Sent {
    fn reserve(&mut self, to: &Endpoint, _traffic_class: u8, len: usize) -> Option<&mut [u8]> {
        assert!(len <= MAX_RESERVATION);
        Some(&mut self.reserved.insert((to.remote, vec![0xa5; len])).1)
    }

    fn commit(&mut self, len: usize) {
        let (to, mut bytes) = self.reserved.take().expect("a commit follows a reservation");
        bytes.truncate(len);
        self.datagrams.push((to, bytes));
    }
}

/// Takes what an engine delivers.
#[derive(Default)]
pub struct Delivered {
    pub packets: Vec<Vec<u8>>,
    reserved: Option<Vec<u8>>,
}

impl PacketSink for Delivered {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        assert!(len <= MAX_RESERVATION);
        Some(self.reserved.insert(vec![0xa5; len]))
    }

    fn commit(&mut self, packet: SourceChecked) {
        let mut bytes = self.reserved.take().expect("a commit follows a reservation");
        bytes.truncate(packet.len());
        self.packets.push(bytes);
    }
}

/// Lets the handshake thread of `host` work until it waits.
pub fn settle(host: &Host, sent: &mut Sent, now: Instant) {
    while host.engine.handle_handshakes(16, sent, now).still_waiting {}
}
