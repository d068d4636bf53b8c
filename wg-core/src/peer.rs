//! Owns one peer: its settings, endpoint, counters, staged packets, sessions and deadlines, behind one lock.
//! Reads no table and sends nothing by itself; `engine/` drives it.

use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;

use crate::batch::{Endpoint, SourceAddr};
use crate::deadlines::WheelNode;
use crate::error::{DropCounts, DropReason};
use crate::key::{PresharedKey, PublicKey};
use crate::peer_id::PeerId;
use crate::staging::{StageOutcome, Staged, StagingBudget};
use crate::time::Instant;
use crate::timers::{Deadline, Deadlines, REKEY_AFTER_TIME, REKEY_ON_RECEIVE_AFTER, REKEY_TIMEOUT};
use crate::tunnel::Tunnel;

/// Accepted initiations of one peer are at least this far apart: 50 per second, as in Linux.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// A configured peer. What changes is behind the lock.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) key: PublicKey,
    /// Position in the order of configuration.
    pub(crate) order: u64,
    pub(crate) hot: Mutex<Hot>,
}

/// The changing part of a peer.
pub(crate) struct Hot {
    /// No longer configured; whoever still holds a reference leaves it alone.
    pub(crate) removed: bool,
    /// Apart, because most peers have none and a million peers are held in memory.
    pub(crate) psk: Option<Box<PresharedKey>>,
    /// Seconds; 0 is off.
    pub(crate) persistent_keepalive: u16,
    /// Counts the tunnels this slot ever had, modulo 16: part of the receiver index.
    pub(crate) generation: u8,
    /// The peer's outer address; our own is part of what exists only for a live peer.
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) live: Option<Box<Live>>,
    staged: Option<Box<Staged>>,
    pub(crate) wants: Wants,
    pub(crate) last_handshake: Option<Duration>,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
    drops: Option<Box<DropCounts>>,
    /// The peer's place in the wheel, and for when that is armed.
    pub(crate) wheel: Option<WheelNode>,
    pub(crate) wheel_at: Instant,
}

/// What a peer wants from the handshake thread; with none of these it is not in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// A new handshake.
    pub(crate) handshake: bool,
    /// The last initiation repeated.
    pub(crate) repeat: bool,
    /// A keepalive, or a handshake if there is no session.
    pub(crate) keepalive: bool,
}

/// What exists only for a peer with keys or with a handshake under way.
pub(crate) struct Live {
    /// Handshakes happen here.
    pub(crate) tunnel: Box<Tunnel>,
    /// The tunnel before: it sends until the new one has a session, and receives until its sessions are too old.
    pub(crate) draining: Option<Box<Tunnel>>,
    /// Our own address towards the peer, as it was last heard from.
    pub(crate) source: Option<SourceAddr>,
    pub(crate) deadlines: Deadlines,
    /// Initiations repeated in this attempt.
    pub(crate) retries: u8,
    /// When we last sent an initiation or response.
    pub(crate) handshake_sent: Option<Instant>,
    initiation_accepted: Option<Instant>,
    /// A successor of the current session was asked for on receiving.
    pub(crate) asked_on_receive: bool,
    /// The wall clock's epoch in which the tunnel was made.
    pub(crate) clock_epoch: u32,
}

impl Peer {
    pub(crate) fn new(id: PeerId, key: PublicKey, order: u64, generation: u8) -> Self {
        let hot = Hot {
            removed: false,
            psk: None,
            persistent_keepalive: 0,
            generation,
            remote: None,
            live: None,
            staged: None,
            wants: Wants::default(),
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            drops: None,
            wheel: None,
            wheel_at: Instant::EPOCH,
        };
        Peer { id, key, order, hot: Mutex::new(hot) }
    }
}

impl Hot {
    pub(crate) fn keepalive_interval(&self) -> Option<Duration> {
        (self.persistent_keepalive > 0).then(|| Duration::from_secs(u64::from(self.persistent_keepalive)))
    }

    /// Where to send to, and from where.
    #[inline]
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        let source = self.live.as_ref().and_then(|live| live.source);
        self.remote.map(|remote| Endpoint { remote, source })
    }

    /// The next packet goes from whatever address the kernel chooses.
    pub(crate) fn forget_source(&mut self) {
        if let Some(live) = &mut self.live {
            live.source = None;
        }
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason, count: u64) {
        self.drops.get_or_insert_default().add(reason, count);
    }

    pub(crate) fn drops(&self) -> DropCounts {
        self.drops.as_deref().copied().unwrap_or_default()
    }

    /// Lets `packet` wait for a session. Returns why a packet, this one or the oldest, was dropped.
    pub(crate) fn stage(&mut self, packet: &[u8], budget: &StagingBudget) -> Option<DropReason> {
        let staged = self.staged.get_or_insert_with(|| Box::new(Staged::new(budget.clone())));
        match staged.push(packet) {
            StageOutcome::Staged => None,
            StageOutcome::OldestDropped => Some(DropReason::StagedOverflow),
            StageOutcome::NoMemory => Some(DropReason::StagedMemory),
        }
    }

    /// The staged packets; the peer has none afterwards.
    pub(crate) fn take_staged(&mut self) -> Option<Box<Staged>> {
        self.staged.take()
    }

    pub(crate) fn staged_len(&self) -> usize {
        self.staged.as_ref().map_or(0, |staged| staged.len())
    }

    /// Ends all sessions and handshakes and forgets their keys. Settings, endpoint and counters stay.
    pub(crate) fn end_sessions(&mut self) {
        self.live = None;
    }

    /// The tunnel to send on at `now`.
    #[inline]
    pub(crate) fn sending_tunnel(&mut self, now: Instant) -> Option<&mut Tunnel> {
        self.live.as_mut()?.sending_tunnel(now)
    }

    /// Whether an initiation may be sent now: none and no response was sent for five seconds. \[W\] 6.1.
    pub(crate) fn may_initiate(&self, now: Instant) -> bool {
        let sent = self.live.as_ref().and_then(|live| live.handshake_sent);
        sent.is_none_or(|sent| now.since(sent) >= REKEY_TIMEOUT)
    }
}

impl Live {
    pub(crate) fn new(tunnel: Box<Tunnel>, clock_epoch: u32) -> Self {
        Live {
            tunnel,
            draining: None,
            source: None,
            deadlines: Deadlines::default(),
            retries: 0,
            handshake_sent: None,
            initiation_accepted: None,
            asked_on_receive: false,
            clock_epoch,
        }
    }

    #[inline]
    pub(crate) fn sending_tunnel(&mut self, now: Instant) -> Option<&mut Tunnel> {
        if self.tunnel.sending_age(now).is_some() {
            return Some(&mut self.tunnel);
        }
        self.draining.as_deref_mut().filter(|tunnel| tunnel.sending_age(now).is_some())
    }

    /// The tunnel whose receiver indices begin with `index`.
    #[inline]
    pub(crate) fn receiving_tunnel(&mut self, index: u32) -> Option<&mut Tunnel> {
        if self.tunnel.index() == index {
            return Some(&mut self.tunnel);
        }
        self.draining.as_deref_mut().filter(|tunnel| tunnel.index() == index)
    }

    /// Whether the next handshake needs a fresh tunnel.
    pub(crate) fn needs_fresh_tunnel(&self, clock_epoch: u32, now: Instant) -> bool {
        self.clock_epoch != clock_epoch || self.tunnel.is_stale(now) || self.tunnel.would_overwrite(now)
    }

    /// Makes `fresh` the tunnel for handshakes. What the old one can still send or receive goes on.
    ///
    /// An old tunnel whose handshakes came to nothing does not displace one whose session is in use.
    pub(crate) fn replace_tunnel(&mut self, fresh: Box<Tunnel>, clock_epoch: u32, now: Instant) {
        let old = std::mem::replace(&mut self.tunnel, fresh);
        let is_in_use = self.draining.as_ref().is_some_and(|draining| draining.sending_age(now).is_some());
        if old.sending_age(now).is_some() || (old.can_receive(now) && !is_in_use) {
            self.draining = Some(old);
        }
        self.clock_epoch = clock_epoch;
    }

    /// Forgets the old tunnel once nothing can be received with it.
    pub(crate) fn end_draining(&mut self, now: Instant) {
        if self.draining.as_ref().is_some_and(|tunnel| !tunnel.can_receive(now)) {
            self.draining = None;
        }
    }

    /// Whether the session we send on is due for a successor because of what was just sent. \[W\] 6.2.
    pub(crate) fn is_rekey_due_on_send(&mut self, now: Instant) -> bool {
        self.sending_tunnel(now).is_some_and(|tunnel| {
            tunnel.is_initiator() && tunnel.sending_age(now).is_some_and(|age| age >= REKEY_AFTER_TIME)
        })
    }

    /// Whether it is due because of what was just received; true at most once per session. \[W\] 6.2.
    pub(crate) fn is_rekey_due_on_receive(&mut self, now: Instant) -> bool {
        let due = !self.asked_on_receive
            && self.sending_tunnel(now).is_some_and(|tunnel| {
                tunnel.is_initiator() && tunnel.sending_age(now).is_some_and(|age| age >= REKEY_ON_RECEIVE_AFTER)
            });
        self.asked_on_receive |= due;
        due
    }

    /// Whether an initiation may be accepted, that is: whether the last one was long enough ago.
    pub(crate) fn may_accept_initiation(&self, now: Instant) -> bool {
        self.initiation_accepted.is_none_or(|last| now.since(last) >= INITIATION_INTERVAL)
    }

    pub(crate) fn on_initiation_accepted(&mut self, now: Instant) {
        self.initiation_accepted = Some(now);
    }

    /// There is a new session to send on.
    pub(crate) fn on_handshake_completed(&mut self, now: Instant) {
        self.deadlines.disarm(Deadline::Retransmit);
        self.deadlines.arm(Deadline::ZeroKeys, now + crate::timers::ZERO_KEYS_AFTER);
        self.retries = 0;
        self.asked_on_receive = false;
        self.end_draining(now);
    }
}
