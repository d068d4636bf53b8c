//! Owns one WireGuard interface: its peers, tables and queues, and the order between them.
//!
//! A packet's way out is `outbound.rs`, a datagram's way in `inbound.rs`; handshakes and deadlines are `handshakes.rs`,
//! changes of settings `configure.rs`. This file holds what they share.
//!
//! Locks are taken in this order, each for a short time and none across a call to the outside: `tables`, then one
//! peer's `hot`, then one of `wheel`, `load`, `wanting`, `events`,
//! `refusals`. The packet path holds `tables` for reading over a
//! batch and one peer over a run of its packets. The handshake thread lets go of `tables` before it does cryptography.

mod configure;
mod handshakes;
mod inbound;
mod outbound;
mod refusals;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::refusals::Refusals;
use crate::allowed_ips::AllowedIps;
use crate::batch::{DatagramSink, Endpoint};
use crate::config::{Counters, EngineConfig, Event, PeerState};
use crate::deadlines::Wheel;
use crate::error::{DropCounts, DropReason};
use crate::handshake_load::{HandshakeLoad, mix};
use crate::key::{PrivateKey, PublicKey};
use crate::peer::{Hot, Live, Peer};
use crate::peer_id::PeerId;
use crate::receiver_index::ReceiverIndices;
use crate::staging::StagingBudget;
use crate::time::Instant;
use crate::timers::{MAX_JITTER, REKEY_TIMEOUT};
use crate::tunnel::{Identity, Tunnel};

/// DSCP AF41, with which Linux sends handshake messages.
const HANDSHAKE_TRAFFIC_CLASS: u8 = 0x88;

/// Events kept for [`Engine::poll_event`]; the oldest goes when nobody asks.
const MAX_EVENTS: usize = 256;

/// One WireGuard interface, without its device and sockets.
///
/// All methods take `&self`; packets may be handled by several threads at once. Packets of one flow keep their order
/// if the caller hands them in by one thread.
pub struct Engine {
    tables: RwLock<Tables>,
    identity: RwLock<Option<Arc<Identity>>>,
    indices: ReceiverIndices,
    wheel: Mutex<Wheel>,
    load: Mutex<HandshakeLoad>,
    /// Peers that want something from the handshake thread, each at most once.
    wanting: Mutex<VecDeque<PeerId>>,
    events: Mutex<VecDeque<Event>>,
    refusals: Mutex<Refusals>,
    totals: Totals,
    staging: StagingBudget,
    seed: [u64; 4],
    mtu: AtomicU16,
    is_up: AtomicBool,
    /// Unix time of the engine's epoch in nanoseconds.
    unix_epoch: AtomicU64,
    /// Counts the times the wall clock was set forward; tunnels from before send timestamps that peers may refuse.
    clock_epoch: AtomicU32,
}

/// Who is configured, and who owns which prefix.
struct Tables {
    allowed_ips: AllowedIps,
    by_key: BTreeMap<PublicKey, u32>,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    next_order: u64,
}

/// A place for one peer. Its receiver generation goes on counting from one peer to the next.
#[derive(Default)]
struct Slot {
    generation: u32,
    receiver_generation: u8,
    peer: Option<Arc<Peer>>,
}

impl Tables {
    #[inline]
    fn peer(&self, id: PeerId) -> Option<&Arc<Peer>> {
        self.slot(id.slot()).filter(|peer| peer.id == id)
    }

    #[inline]
    fn slot(&self, slot: u32) -> Option<&Arc<Peer>> {
        self.slots.get(slot as usize)?.peer.as_ref()
    }

    fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.slot(*self.by_key.get(key)?)
    }

    fn in_order(&self) -> Vec<Arc<Peer>> {
        let mut peers: Vec<_> = self.slots.iter().filter_map(|slot| slot.peer.clone()).collect();
        peers.sort_unstable_by_key(|peer| peer.order);
        peers
    }
}

struct Totals {
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    handshakes_initiated: AtomicU64,
    handshakes_completed: AtomicU64,
    cookies_sent: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Totals {
    fn new() -> Self {
        Totals {
            tx_packets: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            rx_packets: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            handshakes_initiated: AtomicU64::new(0),
            handshakes_completed: AtomicU64::new(0),
            cookies_sent: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::COUNT],
        }
    }
}

impl Engine {
    /// An engine without a key and without peers; its interface is down.
    pub fn new(config: EngineConfig, now: Instant) -> Self {
        let word = |index: usize| {
            u64::from_le_bytes(config.seed[index * 8..][..8].try_into().expect("eight of thirty-two bytes"))
        };
        let seed = [word(0), word(1), word(2), word(3)];
        let mut index_seed = [0; 16];
        index_seed[..8].copy_from_slice(&mix(seed[0] ^ 1).to_le_bytes());
        index_seed[8..].copy_from_slice(&mix(seed[1] ^ 2).to_le_bytes());
        Engine {
            tables: RwLock::new(Tables {
                allowed_ips: AllowedIps::new(),
                by_key: BTreeMap::new(),
                slots: Vec::new(),
                free_slots: Vec::new(),
                next_order: 0,
            }),
            identity: RwLock::new(None),
            indices: ReceiverIndices::new(index_seed),
            wheel: Mutex::new(Wheel::new(now)),
            load: Mutex::new(HandshakeLoad::new(mix(seed[2]))),
            wanting: Mutex::default(),
            events: Mutex::default(),
            refusals: Mutex::default(),
            totals: Totals::new(),
            staging: config.staging,
            seed,
            mtu: AtomicU16::new(config.mtu),
            is_up: AtomicBool::new(false),
            unix_epoch: AtomicU64::new(0),
            clock_epoch: AtomicU32::new(0),
        }
    }

    /// The peers in the order they were added.
    ///
    /// A copy: nothing is locked while the caller looks at it, and no more than one peer while it is made.
    pub fn peers(&self) -> Vec<PeerState> {
        let (peers, prefixes) = {
            let tables = self.tables.read();
            let peers = tables.in_order();
            let prefixes: Vec<Vec<_>> =
                peers.iter().map(|peer| tables.allowed_ips.prefixes_of(peer.id).collect()).collect();
            (peers, prefixes)
        };
        peers.iter().zip(prefixes).map(|(peer, prefixes)| state_of(peer, prefixes)).collect()
    }

    /// One peer.
    pub fn peer_state(&self, id: PeerId) -> Option<PeerState> {
        let tables = self.tables.read();
        let peer = tables.peer(id)?;
        Some(state_of(peer, tables.allowed_ips.prefixes_of(id).collect()))
    }

    /// Whether at least `count` peers have a session to send on. Looks at peers until it has found as many.
    pub fn has_sessions(&self, count: usize, now: Instant) -> bool {
        let tables = self.tables.read();
        let peers = tables.slots.iter().filter_map(|slot| slot.peer.as_ref());
        peers.filter(|peer| peer.hot.lock().sending_tunnel(now).is_some()).take(count).count() == count
    }

    /// The totals of the interface.
    pub fn counters(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut drops = DropCounts::default();
        for &reason in DropReason::ALL {
            drops.add(reason, load(&self.totals.drops[reason as usize]));
        }
        Counters {
            tx_packets: load(&self.totals.tx_packets),
            tx_bytes: load(&self.totals.tx_bytes),
            rx_packets: load(&self.totals.rx_packets),
            rx_bytes: load(&self.totals.rx_bytes),
            handshakes_initiated: load(&self.totals.handshakes_initiated),
            handshakes_completed: load(&self.totals.handshakes_completed),
            cookies_sent: load(&self.totals.cookies_sent),
            drops,
            peers: self.tables.read().by_key.len(),
            staged_bytes: self.staging.used_bytes(),
            handshakes_waiting: self.load.lock().len(),
        }
    }

    /// Counts what a driver had to drop.
    pub fn count_drop(&self, reason: DropReason, count: u64) {
        self.totals.drops[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The next thing worth telling an operator.
    pub fn poll_event(&self) -> Option<Event> {
        self.events.lock().pop_front()
    }

    /// When [`Engine::handle_timeout`] has something to do; `None` if nothing is armed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.lock().next()
    }

    fn emit(&self, event: Event) {
        let mut events = self.events.lock();
        if events.len() >= MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.read().clone()
    }

    fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    fn wall_clock(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.unix_epoch.load(Ordering::Relaxed).wrapping_add(now.as_nanos()))
    }

    fn jitter(&self, id: PeerId, now: Instant) -> Duration {
        let drawn = mix(self.seed[3] ^ now.as_nanos() ^ u64::from(id.slot()).rotate_left(40));
        Duration::from_nanos(drawn % (MAX_JITTER.as_nanos() as u64 + 1))
    }

    /// Drops on a peer's account.
    fn drop_for(&self, hot: &mut Hot, reason: DropReason, count: u64) {
        hot.count_drop(reason, count);
        self.count_drop(reason, count);
    }

    /// Puts the peer's earliest deadline into the wheel. Returns whether the wheel may have to wake earlier now.
    ///
    /// Deadlines that moved away are left to fire in vain, so that a busy peer costs one wheel operation in seconds.
    fn sync_wheel(&self, peer: &Peer, hot: &mut Hot) -> bool {
        let Some(earliest) = hot.live.as_ref().and_then(|live| live.deadlines.earliest()) else { return false };
        match hot.wheel {
            Some(_) if hot.wheel_at <= earliest => return false,
            Some(node) => {
                // If it has just fired, whoever took it out comes here next, once it has the peer's lock.
                self.wheel.lock().rearm(node, earliest);
            }
            None => hot.wheel = Some(self.wheel.lock().arm(peer.id.slot(), earliest)),
        }
        hot.wheel_at = earliest;
        true
    }

    /// Queues the peer for the handshake thread. Returns whether the thread has to be woken.
    fn want(&self, peer: &Peer, hot: &mut Hot, wish: Wish, now: Instant) -> bool {
        if hot.removed || !self.is_up() {
            return false;
        }
        if matches!(wish, Wish::Handshake) && !hot.may_initiate(now) {
            self.retry_after_gate(peer, hot, now);
            return false;
        }
        let queued = hot.wants != Default::default();
        match wish {
            Wish::Handshake => hot.wants.handshake = true,
            Wish::Repeat => hot.wants.repeat = true,
            Wish::Keepalive => hot.wants.keepalive = true,
        }
        if !queued {
            self.wanting.lock().push_back(peer.id);
        }
        !queued
    }

    /// A handshake is wanted, but we took part in one less than five seconds ago. Whoever waits is not forgotten: if
    /// that one comes to nothing, the retransmission timer begins another.
    fn retry_after_gate(&self, peer: &Peer, hot: &mut Hot, now: Instant) {
        let jitter = self.jitter(peer.id, now);
        let waits = hot.staged_len() > 0;
        if let Some(live) = &mut hot.live {
            live.retries = 0;
            if waits
                && live.deadlines.of(crate::Deadline::Retransmit).is_none()
                && let Some(sent) = live.handshake_sent
            {
                live.deadlines.arm(crate::Deadline::Retransmit, sent + REKEY_TIMEOUT + jitter);
            }
        }
    }

    /// A tunnel for the peer, with receiver indices that no other tunnel of the peer uses: forged initiations, each of
    /// which may ask for a fresh tunnel, must not lead the generations round to one in use.
    fn fresh_tunnel(&self, identity: &Identity, peer: &Peer, hot: &mut Hot, now: Instant) -> Box<Tunnel> {
        let index = loop {
            hot.generation = (hot.generation + 1) % 16;
            let index = self.indices.issue(peer.id.slot(), hot.generation);
            if hot.live.as_mut().is_none_or(|live| live.receiving_tunnel(index).is_none()) {
                break index;
            }
        };
        Tunnel::new(identity, &peer.key, hot.psk.as_deref(), index, now)
    }

    /// Makes sure that the peer's tunnel may be used for a handshake.
    fn prepare_tunnel<'a>(
        &self,
        identity: &Identity,
        peer: &Peer,
        hot: &'a mut Hot,
        now: Instant,
    ) -> &'a mut Box<Live> {
        let clock_epoch = self.clock_epoch.load(Ordering::Relaxed);
        let needs_fresh = hot.live.as_ref().is_none_or(|live| live.needs_fresh_tunnel(clock_epoch, now));
        if needs_fresh {
            let fresh = self.fresh_tunnel(identity, peer, hot, now);
            Self::install(hot, fresh, clock_epoch, now);
        }
        hot.live.as_mut().expect("installed above if there was none")
    }

    fn install(hot: &mut Hot, fresh: Box<Tunnel>, clock_epoch: u32, now: Instant) {
        match &mut hot.live {
            Some(live) => live.replace_tunnel(fresh, clock_epoch, now),
            None => hot.live = Some(Box::new(Live::new(fresh, clock_epoch))),
        }
    }

    /// The peer was heard from `from`, authentically.
    fn roam(&self, peer: &Peer, hot: &mut Hot, from: Endpoint) {
        if let Some(live) = &mut hot.live {
            live.source = from.source;
        }
        let known = hot.remote.replace(from.remote);
        if known != Some(from.remote) {
            self.emit(Event::EndpointMoved { peer: peer.key, from: known, to: from.remote });
        }
    }

    /// There is a new session to send on.
    fn on_handshake_completed(&self, peer: &Peer, hot: &mut Hot, now: Instant) {
        let Some(live) = &mut hot.live else { return };
        live.on_handshake_completed(now);
        let initiator = live.sending_tunnel(now).is_some_and(|tunnel| tunnel.is_initiator());
        hot.last_handshake = Some(self.wall_clock(now));
        self.totals.handshakes_completed.fetch_add(1, Ordering::Relaxed);
        self.emit(Event::HandshakeCompleted { peer: peer.key, initiator });
    }

    /// Sends one message of a handshake.
    fn send_message(
        &self,
        hot: &mut Hot,
        to: &Endpoint,
        traffic_class: u8,
        message: &[u8],
        out: &mut impl DatagramSink,
    ) {
        match out.reserve(to, traffic_class, message.len()) {
            Some(slot) => {
                slot.copy_from_slice(message);
                out.commit(message.len());
                hot.tx_bytes += message.len() as u64;
            }
            None => self.drop_for(hot, DropReason::SinkFull, 1),
        }
    }
}

/// One thing a peer can want from the handshake thread; see [`Wants`](crate::peer::Wants).
#[derive(Clone, Copy, Debug)]
enum Wish {
    Handshake,
    Repeat,
    Keepalive,
}

fn state_of(peer: &Peer, allowed_ips: Vec<crate::Prefix>) -> PeerState {
    let hot = peer.hot.lock();
    PeerState {
        id: peer.id,
        public_key: peer.key,
        preshared_key: hot.psk.as_deref().cloned(),
        endpoint: hot.remote,
        persistent_keepalive: hot.persistent_keepalive,
        last_handshake: hot.last_handshake,
        tx_bytes: hot.tx_bytes,
        rx_bytes: hot.rx_bytes,
        allowed_ips,
        drops: hot.drops(),
        is_live: hot.live.is_some(),
        staged_packets: hot.staged_len(),
    }
}

impl Engine {
    /// The interface's private key.
    pub fn private_key(&self) -> Option<PrivateKey> {
        self.identity().map(|identity| identity.private_key().clone())
    }

    /// The interface's public key.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.identity().map(|identity| identity.public_key())
    }
}
