//! A WireGuard engine without sockets, threads or clocks.
//!
//! Time, randomness and bytes are arguments; what is to be sent or delivered goes to sinks that the caller brings. An
//! [`Engine`] is one interface: a private key, its peers and their prefixes. It talks to any implementation of the
//! paper, and behaves on the wire as Linux does.
//!
//! # What the engine promises
//!
//! * A datagram that does not authenticate has no effect but on a counter and, if it is a handshake, on a queue of fixed
//!   length. Nothing from outside makes the engine panic or allocate without bound.
//! * Only a packet whose source belongs to the peer that sent it, by longest match over the allowed IPs of all peers,
//!   reaches a [`PacketSink`]: no other gets the [`SourceChecked`] that `commit` asks for.
//! * Packets of one peer keep the order in which the caller hands them in. Those for a peer without a session are staged
//!   (128, the oldest go first) and leave in order once there is one. A rekey loses nothing.
//! * A peer that is configured and that nobody talks to costs memory only; no deadline is armed for it.
//! * Whatever goes no further is counted by its [`DropReason`], for the interface and for the peer that it concerns.
//!
//! # What the caller owes
//!
//! * A `now` that does not go back; it should go on while the machine sleeps, so that keys age. The wall clock comes in
//!   by [`Engine::set_wall_clock`], at the start and about once a second.
//! * To act on what a call returns. `handshakes_waiting` in a [`BatchReport`]: call [`Engine::handle_handshakes`] soon,
//!   off the packet path if that matters, until nothing waits. `deadline_moved`: ask [`Engine::poll_timeout`] again, and
//!   call [`Engine::handle_timeout`] at that time. After a change of settings both may be due.
//! * [`PADDING_SLACK`] bytes behind each packet, and sinks that give out exactly as many bytes as they are asked for.
//!
//! # Two engines in one process
//!
//! ```
//! use std::collections::VecDeque;
//! use std::net::SocketAddr;
//!
//! use wg_core::*;
//!
//! /// A queue to take packets or datagrams from, and one to put them into.
//! #[derive(Default)]
//! struct Queue {
//!     coming: VecDeque<Vec<u8>>,
//!     from: Option<SocketAddr>,
//!     buffer: Vec<u8>,
//!     going: VecDeque<Vec<u8>>,
//! }
//!
//! impl PacketSource for Queue {
//!     fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
//!         self.buffer = self.coming.pop_front()?;
//!         let len = self.buffer.len();
//!         self.buffer.resize(len + PADDING_SLACK, 0);
//!         Some(PacketSlot { buffer: &mut self.buffer, len })
//!     }
//! }
//!
//! impl DatagramSource for Queue {
//!     fn next_datagram(&mut self) -> Option<Datagram<'_>> {
//!         self.buffer = self.coming.pop_front()?;
//!         Some(Datagram { bytes: &self.buffer, from: Endpoint::new(self.from?), ecn: 0 })
//!     }
//! }
//!
//! impl DatagramSink for Queue {
//!     fn reserve(&mut self, _to: &Endpoint, _traffic_class: u8, len: usize) -> Option<&mut [u8]> {
//!         self.buffer = vec![0; len];
//!         Some(&mut self.buffer)
//!     }
//!     fn commit(&mut self, len: usize) {
//!         self.going.push_back(self.buffer[..len].to_vec());
//!     }
//! }
//!
//! impl PacketSink for Queue {
//!     fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
//!         self.buffer = vec![0; len];
//!         Some(&mut self.buffer)
//!     }
//!     fn commit(&mut self, packet: SourceChecked) {
//!         self.going.push_back(self.buffer[..packet.len()].to_vec());
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = Instant::from_nanos(1);
//! let outer: [SocketAddr; 2] = ["192.0.2.1:51820".parse()?, "192.0.2.2:51820".parse()?];
//! let inner: [Prefix; 2] = ["10.0.0.1/32".parse()?, "10.0.0.2/32".parse()?];
//! // In earnest keys and seeds are random.
//! let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
//! let engines = [3, 4].map(|byte| Engine::new(EngineConfig::new([byte; 32]), now));
//! for (own, other) in [(0, 1), (1, 0)] {
//!     engines[own].set_private_key(Some(keys[own].clone()), now);
//!     let peer = engines[own].add_peer(keys[other].public_key())?;
//!     engines[own].add_allowed_ip(peer, inner[other])?;
//!     engines[own].set_endpoint(peer, outer[other], now)?;
//!     engines[own].bring_up(now);
//! }
//!
//! // An IPv4 header without payload, from 10.0.0.1 to 10.0.0.2.
//! let packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
//!
//! // It is staged, and a handshake is wanted.
//! let mut tun = Queue { coming: [packet.clone()].into(), ..Queue::default() };
//! let mut wire = Queue::default();
//! let report = engines[0].handle_packets(&mut tun, &mut wire, now);
//! assert!(report.staged == 1 && report.handshakes_waiting);
//! engines[0].handle_handshakes(8, &mut wire, now);
//!
//! // The initiation goes there, the response comes back, the packet goes there.
//! let mut delivered = Queue::default();
//! for (own, other) in [(1, 0), (0, 1), (1, 0)] {
//!     let mut arrived = Queue { coming: wire.going, from: Some(outer[other]), ..Queue::default() };
//!     wire = Queue::default();
//!     engines[own].handle_datagrams(&mut arrived, &mut delivered, &mut wire, now);
//!     engines[own].handle_handshakes(8, &mut wire, now);
//! }
//! assert_eq!(delivered.going, [packet]);
//! # Ok(())
//! # }
//! ```
//!
//! # An I/O loop of one's own
//!
//! One turn of a loop that waits for the socket or the next deadline, whichever comes first. For brevity it reads one
//! datagram per turn and does handshakes on the same thread; a driver hands in whole batches and has a thread for them.
//!
//! ```
//! use std::io;
//! use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
//! use std::time::{Duration, SystemTime, UNIX_EPOCH};
//!
//! use wg_core::*;
//!
//! /// Stands for a TUN device: packets to send, and packets received.
//! #[derive(Default)]
//! struct Tun {
//!     to_send: Vec<Vec<u8>>,
//!     received: Vec<Vec<u8>>,
//!     buffer: Vec<u8>,
//! }
//!
//! impl PacketSource for Tun {
//!     fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
//!         self.buffer = self.to_send.pop()?;
//!         let len = self.buffer.len();
//!         self.buffer.resize(len + PADDING_SLACK, 0);
//!         Some(PacketSlot { buffer: &mut self.buffer, len })
//!     }
//! }
//!
//! impl PacketSink for Tun {
//!     fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
//!         self.buffer = vec![0; len];
//!         Some(&mut self.buffer)
//!     }
//!     fn commit(&mut self, packet: SourceChecked) {
//!         self.received.push(self.buffer[..packet.len()].to_vec());
//!     }
//! }
//!
//! /// A batch of at most one datagram.
//! struct Arrived {
//!     bytes: Vec<u8>,
//!     from: Option<SocketAddr>,
//! }
//!
//! impl DatagramSource for Arrived {
//!     fn next_datagram(&mut self) -> Option<Datagram<'_>> {
//!         let from = self.from.take()?;
//!         Some(Datagram { bytes: &self.bytes, from: Endpoint::new(from), ecn: 0 })
//!     }
//! }
//!
//! /// What the engine sends. It leaves after the call: inside, a peer is locked and nothing may block.
//! #[derive(Default)]
//! struct Outgoing {
//!     datagrams: Vec<(SocketAddr, Vec<u8>)>,
//!     reserved: Option<(SocketAddr, Vec<u8>)>,
//! }
//!
//! impl DatagramSink for Outgoing {
//!     fn reserve(&mut self, to: &Endpoint, _traffic_class: u8, len: usize) -> Option<&mut [u8]> {
//!         Some(&mut self.reserved.insert((to.remote, vec![0; len])).1)
//!     }
//!     fn commit(&mut self, _len: usize) {
//!         self.datagrams.extend(self.reserved.take());
//!     }
//! }
//!
//! struct Node {
//!     engine: Engine,
//!     socket: UdpSocket,
//!     start: std::time::Instant,
//! }
//!
//! impl Node {
//!     fn now(&self) -> Instant {
//!         Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
//!     }
//!
//!     fn turn(&self, tun: &mut Tun) -> io::Result<()> {
//!         let mut out = Outgoing::default();
//!         let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
//!         self.engine.set_wall_clock(unix, self.now());
//!         self.engine.handle_packets(tun, &mut out, self.now());
//!         self.engine.handle_timeout(&mut out, self.now());
//!         self.finish(out)?;
//!
//!         let due = self.engine.poll_timeout().map_or(Duration::MAX, |at| at.since(self.now()));
//!         let wait = due.clamp(Duration::from_millis(1), Duration::from_millis(10));
//!         self.socket.set_read_timeout(Some(wait))?;
//!         let mut bytes = vec![0; 65_535];
//!         let (len, from) = match self.socket.recv_from(&mut bytes) {
//!             Ok((len, from)) => (len, from),
//!             Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
//!             Err(error) => return Err(error),
//!         };
//!         bytes.truncate(len);
//!         let mut out = Outgoing::default();
//!         let mut arrived = Arrived { bytes, from: Some(from) };
//!         self.engine.handle_datagrams(&mut arrived, tun, &mut out, self.now());
//!         self.finish(out)
//!     }
//!
//!     /// Does the handshakes that wait, and sends.
//!     fn finish(&self, mut out: Outgoing) -> io::Result<()> {
//!         while self.engine.handle_handshakes(8, &mut out, self.now()).still_waiting {}
//!         for (to, datagram) in out.datagrams {
//!             self.socket.send_to(&datagram, to)?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two nodes on one host, one turn each at a time, until a packet has passed.
//! let start = std::time::Instant::now();
//! let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
//! let mut nodes = Vec::new();
//! for byte in [3, 4] {
//!     let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
//!     let engine = Engine::new(EngineConfig::new([byte; 32]), Instant::EPOCH);
//!     nodes.push(Node { engine, socket, start });
//! }
//! for (own, other) in [(0, 1), (1, 0)] {
//!     let (node, now) = (&nodes[own], nodes[own].now());
//!     node.engine.set_private_key(Some(keys[own].clone()), now);
//!     let peer = node.engine.add_peer(keys[other].public_key())?;
//!     node.engine.add_allowed_ip(peer, format!("10.0.0.{}/32", other + 1).parse()?)?;
//!     node.engine.set_endpoint(peer, nodes[other].socket.local_addr()?, now)?;
//!     node.engine.bring_up(now);
//! }
//! let packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
//! let mut tuns = [Tun { to_send: vec![packet.clone()], ..Tun::default() }, Tun::default()];
//! for _ in 0..1000 {
//!     for (node, tun) in nodes.iter().zip(&mut tuns) {
//!         node.turn(tun)?;
//!     }
//!     if !tuns[1].received.is_empty() {
//!         break;
//!     }
//! }
//! assert_eq!(tuns[1].received, [packet]);
//! # Ok(())
//! # }
//! ```
//!
//! Citations: `[W] n` is section n of the WireGuard paper (<https://www.wireguard.com/papers/wireguard.pdf>), `[N]` the
//! Noise specification; everything else is named in full.
#![forbid(unsafe_code)]

pub mod allowed_ips;
pub mod batch;
pub mod config;
pub mod deadlines;
mod engine;
pub mod error;
mod handshake_load;
pub mod key;
pub mod packet;
mod peer;
pub mod peer_id;
pub mod prefix;
pub mod receiver_index;
mod staging;
pub mod time;
mod timers;
mod tunnel;

pub use allowed_ips::{AllowedIps, SourceChecked};
pub use batch::{
    BatchReport, DATA_OVERHEAD, Datagram, DatagramSink, DatagramSource, Endpoint, PADDING_SLACK, PacketSink,
    PacketSlot, PacketSource, SourceAddr,
};
pub use config::{Counters, DEFAULT_MTU, EngineConfig, Event, HandshakeReport, MAX_PEERS, PeerState};
pub use engine::Engine;
pub use error::{ConfigError, DropCounts, DropReason};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use peer_id::PeerId;
pub use prefix::Prefix;
pub use staging::StagingBudget;
pub use time::Instant;
pub use timers::Deadline;
