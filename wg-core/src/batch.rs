//! Owns the contract between the engine and whoever moves bytes: where packets and datagrams come from and go to.
//! Holds no buffer itself; the drivers lay memory out as the kernel wants it (trains, super-packets).

use std::net::{IpAddr, SocketAddr};

use crate::allowed_ips::SourceChecked;

/// Bytes of slack the engine needs behind an inner packet, for padding to a multiple of 16. \[W\] 5.4.6.
pub const PADDING_SLACK: usize = 15;

/// Bytes transport data adds to an inner packet: type 4, receiver index 4, counter 8, tag 16. \[W\] 5.4.6.
pub const DATA_OVERHEAD: usize = 32;

/// Our own outer address, as the kernel reported it with a datagram (`IP_PKTINFO`, `IPV6_PKTINFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceAddr {
    /// The local address a datagram was sent to.
    pub ip: IpAddr,
    /// The interface it arrived on.
    pub ifindex: u32,
}

/// Where a peer is: its outer address and port, and the source address we answer from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The peer's outer address and port.
    pub remote: SocketAddr,
    /// Our address to send from; `None` lets the kernel choose.
    pub source: Option<SourceAddr>,
}

impl Endpoint {
    /// An endpoint without a source address, as configuration gives it.
    pub const fn new(remote: SocketAddr) -> Self {
        Endpoint { remote, source: None }
    }
}

/// One inner packet on its way out, lent to the engine until the next one is taken.
pub struct PacketSlot<'a> {
    /// The packet in `buffer[..len]`, followed by at least [`PADDING_SLACK`] bytes that the engine overwrites.
    pub buffer: &'a mut [u8],
    /// Length of the packet in bytes.
    pub len: usize,
}

/// A batch of inner packets from the TUN device, taken one at a time, in order.
///
/// A source may cut the packets out of a super-packet only when they are asked for.
pub trait PacketSource {
    /// The next packet; `None` at the end of the batch.
    fn next_packet(&mut self) -> Option<PacketSlot<'_>>;
}

/// One datagram from the network, lent to the engine until the next one is taken.
pub struct Datagram<'a> {
    /// The UDP payload.
    pub bytes: &'a [u8],
    /// The sender, and the address of ours that it used.
    pub from: Endpoint,
    /// The outer ECN field: the two low bits of TOS or traffic class. RFC 3168 5.
    pub ecn: u8,
}

/// A batch of received datagrams, taken one at a time, in order.
pub trait DatagramSource {
    /// The next datagram; `None` at the end of the batch.
    fn next_datagram(&mut self) -> Option<Datagram<'_>>;
}

/// Takes datagrams to be sent. Space is reserved, filled in place, then committed.
///
/// The engine reserves under a peer's lock, so `reserve` and `commit` must not make system calls.
pub trait DatagramSink {
    /// Space of exactly `len` bytes for a datagram to `to` with outer `traffic_class` (DSCP and ECN).
    ///
    /// `None` if the sink is full; the engine then counts the datagram as dropped. A reservation that is not committed
    /// before the next call ends without a trace.
    fn reserve(&mut self, to: &Endpoint, traffic_class: u8, len: usize) -> Option<&mut [u8]>;

    /// Keeps the first `len` bytes of the last reservation as one datagram.
    fn commit(&mut self, len: usize);
}

/// Takes decrypted inner packets for the TUN device. Space is reserved, filled in place, then committed.
///
/// The engine reserves under a peer's lock, so `reserve` and `commit` must not make system calls.
pub trait PacketSink {
    /// Space of exactly `len` bytes; the packet will be shorter, the rest is scribbled on.
    ///
    /// `None` if the sink is full. A reservation that is not committed before the next call ends without a trace.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Keeps the packet at the start of the last reservation. Only a packet whose source was checked can be kept.
    fn commit(&mut self, packet: SourceChecked);
}

/// What one batch did, so that the driver knows what to do next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchReport {
    /// Packets or datagrams taken from the source.
    pub taken: usize,
    /// Packets that went to a sink; datagrams that were what they should be, keepalives and queued handshakes included.
    pub passed: usize,
    /// Packets that were staged to wait for a session.
    pub staged: usize,
    /// Packets or datagrams dropped, among them older ones pushed out of staging; the reasons are in the counters.
    pub dropped: usize,
    /// Handshake work is waiting: call `Engine::handle_handshakes` soon, off the packet path.
    pub handshakes_waiting: bool,
    /// A deadline was armed that is earlier than any of its peer: ask `Engine::poll_timeout` again.
    pub deadline_moved: bool,
}
