//! Owns what goes into an engine when it is made, and what it tells about itself: settings, states, counters, events.

use std::net::SocketAddr;
use std::time::Duration;

use crate::error::DropCounts;
use crate::key::{PresharedKey, PublicKey};
use crate::peer_id::PeerId;
use crate::prefix::Prefix;
use crate::staging::StagingBudget;

/// MTU of a new WireGuard interface in bytes, as in Linux: 1500 less 80 for IPv6, UDP and WireGuard headers.
pub const DEFAULT_MTU: u16 = 1420;

/// Peers one engine can hold: as many as its receiver indices can name.
pub const MAX_PEERS: usize = 1 << 20;

/// What an engine is made with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Randomness from the operating system. Receiver indices, jitter and hash tables are derived from it.
    pub seed: [u8; 32],
    /// MTU of the TUN device in bytes; padding does not go beyond it.
    pub mtu: u16,
    /// Memory for packets that wait for a session.
    pub staging: StagingBudget,
}

impl EngineConfig {
    /// The usual settings.
    pub fn new(seed: [u8; 32]) -> Self {
        EngineConfig { seed, mtu: DEFAULT_MTU, staging: StagingBudget::of_process() }
    }
}

/// One peer as it is now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerState {
    /// Its name inside the engine.
    pub id: PeerId,
    /// Its public key.
    pub public_key: PublicKey,
    /// The pre-shared key of the next handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Where it was configured to be, or was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// Interval of the persistent keepalive in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// When the last handshake was completed, since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// Bytes of UDP payload sent to it: data, keepalives and handshakes.
    pub tx_bytes: u64,
    /// Bytes of authentic UDP payload received from it.
    pub rx_bytes: u64,
    /// What it may send from and is sent to.
    pub allowed_ips: Vec<Prefix>,
    /// What was dropped on its account.
    pub drops: DropCounts,
    /// It holds memory for sessions or for a handshake.
    pub is_live: bool,
    /// Packets that wait for a session.
    pub staged_packets: usize,
}

/// Totals of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Inner packets encrypted.
    pub tx_packets: u64,
    /// Bytes of those packets.
    pub tx_bytes: u64,
    /// Inner packets delivered.
    pub rx_packets: u64,
    /// Bytes of those packets.
    pub rx_bytes: u64,
    /// Initiations sent, repetitions included.
    pub handshakes_initiated: u64,
    /// Handshakes that led to a session we send on.
    pub handshakes_completed: u64,
    /// Cookie replies sent.
    pub cookies_sent: u64,
    /// What was dropped.
    pub drops: DropCounts,
    /// Peers configured.
    pub peers: usize,
    /// Bytes staged by all engines that share this one's budget.
    pub staged_bytes: usize,
    /// Handshakes waiting for their turn.
    pub handshakes_waiting: usize,
}

/// Something an operator may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// There is a new session to send on.
    HandshakeCompleted {
        /// With whom.
        peer: PublicKey,
        /// Whether we began the handshake.
        initiator: bool,
    },
    /// The peer did not answer for about 90 seconds.
    HandshakeGaveUp {
        /// Who.
        peer: PublicKey,
    },
    /// The peer was heard from somewhere else.
    EndpointMoved {
        /// Who.
        peer: PublicKey,
        /// Its endpoint until now.
        from: Option<SocketAddr>,
        /// Its endpoint from now on.
        to: SocketAddr,
    },
    /// There was no new session for nine minutes, or the only one was never confirmed; all keys of the peer are gone.
    KeysWiped {
        /// Whose.
        peer: PublicKey,
    },
}

/// What [`Engine::handle_handshakes`](crate::Engine::handle_handshakes) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeReport {
    /// Handshake messages processed and initiations made.
    pub done: usize,
    /// There is more to do.
    pub still_waiting: bool,
    /// A deadline was armed that is earlier than any of its peer: ask `Engine::poll_timeout` again.
    pub deadline_moved: bool,
}
