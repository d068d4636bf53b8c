//! Owns the two kinds of refusal: `ConfigError` for an operator, `DropReason` for a peer, the network or a limit.

use std::fmt;

/// Why a configuration change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The instance holds as many peers as its receiver indices can name.
    #[error("too many peers: an interface holds at most {limit}")]
    TooManyPeers {
        /// The limit.
        limit: usize,
    },
    /// The peer was removed meanwhile, or never existed.
    #[error("no such peer")]
    NoSuchPeer,
    /// The key is this interface's own public key.
    #[error("the peer's public key is this interface's own")]
    OwnKey,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $label:literal,)+) => {
        /// Why a packet, datagram or handshake went no further. One counter each, per peer and per interface.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// A stable name for metrics and JSON, in snake case.
            pub const fn label(self) -> &'static str {
                match self {
                    $(DropReason::$name => $label,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// Outbound: not IPv4 or IPv6, or shorter than its headers or its stated length.
    MalformedPacket => "malformed_packet",
    /// Outbound: no peer's allowed IPs contain the destination.
    DestinationNotAllowed => "destination_not_allowed",
    /// Outbound: the peer has no endpoint yet.
    NoEndpoint => "no_endpoint",
    /// Outbound: longer than a datagram can carry.
    PacketTooBig => "packet_too_big",
    /// Outbound: pushed out of the staging queue by a newer packet.
    StagedOverflow => "staged_overflow",
    /// Outbound: staging would exceed the memory all engines share.
    StagedMemory => "staged_memory",
    /// Outbound: while the packet was staged the handshake was given up, the keys were wiped, the interface went down,
    /// or the peer's key proved unusable.
    StagedExpired => "staged_expired",
    /// Outbound: the interface is down, or has no private key.
    InterfaceDown => "interface_down",
    /// The peer's public key is of low order, so that no handshake with it can be secure.
    UnusableKey => "unusable_key",
    /// The sink had no room left.
    SinkFull => "sink_full",
    /// Inbound: no known message type, or a wrong length for it.
    MalformedMessage => "malformed_message",
    /// Inbound: MAC1 does not match our public key.
    BadMac1 => "bad_mac1",
    /// Inbound: no session has this receiver index.
    UnknownIndex => "unknown_index",
    /// Inbound: the session behind the index is gone or too old. \[W\] 6.2.
    SessionExpired => "session_expired",
    /// Inbound: the counter is at or above the reject limit. \[W\] 6.2.
    CounterLimit => "counter_limit",
    /// Inbound: the counter was seen before, or is too old to tell. \[W\] 5.4.6.
    Replay => "replay",
    /// Inbound: the authentication tag does not match.
    BadTag => "bad_tag",
    /// Inbound: authentic, but the inner packet is not a whole IPv4 or IPv6 packet.
    MalformedInner => "malformed_inner",
    /// Inbound: no peer may send from this inner source address.
    SourceNotAllowed => "source_not_allowed",
    /// Inbound: the inner source address belongs to another peer.
    SourceOwnedByOtherPeer => "source_owned_by_other_peer",
    /// Inbound handshake: the queue is full.
    HandshakeQueueFull => "handshake_queue_full",
    /// Inbound handshake: under load, and the sender has not proved its address; a cookie was sent.
    CookieDemanded => "cookie_demanded",
    /// Inbound handshake: the source address exceeded its token bucket.
    RateLimited => "rate_limited",
    /// Inbound initiation: from a public key that is not configured.
    UnknownPeer => "unknown_peer",
    /// Inbound initiation: the last one from this peer is too recent.
    InitiationTooSoon => "initiation_too_soon",
    /// Inbound initiation: its timestamp is not newer than the last.
    InitiationReplay => "initiation_replay",
    /// Inbound handshake: it does not authenticate.
    InvalidHandshake => "invalid_handshake",
    /// Inbound response or cookie reply: nothing of ours asked for it.
    Unsolicited => "unsolicited",
    /// Driver: the socket refused the datagram.
    SendFailed => "send_failed",
    /// Driver: the socket stayed full for too long.
    SendQueueFull => "send_queue_full",
    /// Driver: the TUN device refused the packet.
    DeviceWriteFailed => "device_write_failed",
}

impl DropReason {
    /// Number of reasons.
    pub const COUNT: usize = DropReason::ALL.len();
}

impl fmt::Display for DropReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.label())
    }
}

/// A count per [`DropReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCounts([u64; DropReason::COUNT]);

impl Default for DropCounts {
    fn default() -> Self {
        DropCounts([0; DropReason::COUNT])
    }
}

impl DropCounts {
    /// The count for one reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds `count` to one reason.
    pub fn add(&mut self, reason: DropReason, count: u64) {
        self.0[reason as usize] += count;
    }

    /// Sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.of(reason))).filter(|&(_, count)| count > 0)
    }
}
