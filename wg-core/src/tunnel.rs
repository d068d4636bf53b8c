//! Owns the sessions with one peer: the Noise handshake, the ciphers and the replay window. The only file that names
//! boringtun; everything around the sessions (timers, staging, endpoint, counters) is in `peer.rs` and `engine.rs`.
//!
//! boringtun's `Tunn` is used as a box of sessions and nothing more:
//! 1. `encapsulate` is never called without a session, so that its queue stays empty.
//! 2. `update_timers` is called before an initiation is made or received and nowhere else ([`Tunnel::touch`]). Its stamps
//!    then all equal the time of the last handshake, which keeps its own rekey and keepalive rules silent.
//! 3. Its persistent keepalive is off and its rate limiter has no limit: both are ours.
//! 4. A mirror of its session ring lives beside it, so that age, role and index of every session are known here.
//!
//! It still takes two things from its surroundings: the clock (`CLOCK_BOOTTIME`, and the wall clock when a tunnel is
//! made) and the operating system's randomness (ephemeral keys). Under `--cfg virtual_time` the clock is the caller's.
//!
//! # What boringtun 0.7.1 does differently from the paper and from Linux, and where that is closed
//!
//! | # | topic | closed by |
//! | --- | --- | --- |
//! | 1 | no padding | `outbound.rs` pads to 16, not beyond the MTU |
//! | 2 | no message limits | [`Tunnel::open`] and [`Tunnel::seal`] refuse counters at the limit; rekey at 2^60 |
//! | 3 | age checked only when polled | [`Tunnel::sending_age`] and [`Tunnel::open`] check it on every use |
//! | 4 | no jitter | `timers.rs` |
//! | 5 | no handshake gate | `peer.rs`, one initiation or response per 5 s starts nothing new |
//! | 6 | gives up after 90 s and wipes working sessions | [`Tunnel::is_stale`]: a fresh `Tunn` takes over, the old one drains |
//! | 7 | staging of 256, newest dropped | `staging.rs` |
//! | 8 | a responder's queue is not flushed | flushed on key confirmation, `inbound.rs` |
//! | 9 | a keepalive although packets are queued | sent only if nothing was staged |
//! | 10-13 | keepalives and timers | `timers.rs` and `peer.rs` |
//! | 14 | an unconfirmed session may overwrite the current one | [`Tunnel::would_overwrite`]: a fresh `Tunn` takes the handshake, the old one drains |
//! | 15 | cookies bound to the address only | [`Identity::check_cookie`] binds them to address and port |
//! | 16, 17 | global rate limit | `handshake_load.rs` |
//! | 18 | cookie secret changes on a grid of 128 s | **accepted**: a cookie may die early, the sender then gets a new one |
//! | 19 | a cookie reply can be replayed | one per initiation or response is taken, [`Tunnel::receive_cookie_reply`] |
//! | 20 | a cookie reply counts as traffic | our timers ignore it |
//! | 21 | TAI64N to the nanosecond, from the clock at creation | a step of the wall clock retires the `Tunn`, `engine.rs`; the missing whitening is **accepted**: it tells an observer of our own initiations nothing but the time they see anyway |
//! | 22 | any newer initiation is accepted | one per 20 ms and peer, `handshakes.rs` |
//! | 23 | points of low order are accepted | refused: static keys whenever they would be used, ephemeral keys in [`Tunnel`] |
//! | 24 | predictable indices | `receiver_index.rs`: a random-looking index per `Tunn`; the eight low bits count up, which is **accepted**: they reveal that two handshakes belong to one association, as their addresses do |
//! | 25 | roams on cookie replies | never, `inbound.rs` and `handshakes.rs` |
//! | 26 | inner IPv4 lengths below 20 | `inbound.rs` parses again |
//! | 27 | source check per peer | longest match over all peers, `allowed_ips.rs` |
//! | 28, 29 | counters and handshake time | `peer.rs` |
//! | 30 | no ECN | `outbound.rs`, `inbound.rs` |
//! | 31 | replay window of 1024 | **accepted**: the size is fixed inside; drivers keep each peer's packets in order so that only the network reorders |
//! | 32 | a pre-shared key cannot change | [`Tunnel::is_stale`] by [`Tunnel::retire`]: the next handshake uses a fresh `Tunn` |
//! | 33 | a private key change keeps handshake state | all tunnels are dropped, `configure.rs`, and handshakes under way with the old key are refused, `handshakes.rs` |
//! | 34 | keys not wiped on drop | **accepted** here (no unsafe code); the daemon's allocator wipes freed memory |
//! | 35 | secrets in `Debug` | nothing here is printed |
//! | 36-38, 41, 42 | as the paper | - |
//! | 39 | sessions stamped with a stale clock | [`Tunnel::touch`] before an initiation is made or received; a response follows its initiation within six seconds, so that the stamp is at most that old |
//! | - | a fresh `Tunn` remembers no timestamp | an initiation accepted by one changes neither endpoint nor timers while we have a session or wait for one, `handshakes.rs` |
//! | - | of two sessions made at the same instant it may send on the other one than the mirror says | **accepted**: both are valid, and the mirror only decides when to make the next one |
//! | 40 | unknown destinations are dropped without an answer | ICMP "unreachable", `refusals.rs`; a local sender cannot be given the error number that Linux returns |

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;

use crate::error::DropReason;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::packet::message::{COOKIE_REPLY_LEN, INITIATION_LEN, TransportData};
use crate::time::Instant;
use crate::timers::{REJECT_AFTER_TIME, REKEY_TIMEOUT};

/// A session refuses counters from here on. \[W\] 6.1.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// A session asks for its successor from here on. \[W\] 6.1.
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// Sessions one `Tunn` holds; the slot of a session is its index modulo this.
const SESSIONS: usize = 8;

/// A `Tunn` whose own handshake has been under way for this long is about to wipe its sessions.
const STALE_AFTER: Duration = Duration::from_secs(80);

/// A response that takes longer than this belongs to an initiation that was sent again meanwhile.
const RESPONSE_WITHIN: Duration = REKEY_TIMEOUT.saturating_add(Duration::from_secs(1));

/// Our own key pair and what is derived from it to judge incoming handshakes.
pub(crate) struct Identity {
    private: PrivateKey,
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Checks MAC1 only; also handed to every `Tunn`.
    unlimited: Arc<RateLimiter>,
    /// Always asks for a cookie.
    demanding: RateLimiter,
    /// Turns address and port into the 16 bytes that cookies are bound to.
    address_key: [u8; 32],
}

/// What came of asking a sender for proof of its address.
pub(crate) enum CookieCheck {
    /// The message carries a valid cookie.
    Proven,
    /// It does not; this is the cookie reply to send back.
    Demanded([u8; COOKIE_REPLY_LEN]),
    /// It is not even a valid message.
    Invalid,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey, address_key: [u8; 32]) -> Self {
        // The age of cookies is counted from here, also when only the tests' clock moves.
        sync_clock(Instant::EPOCH);
        let secret = x25519::StaticSecret::from(*private.as_bytes());
        let public = x25519::PublicKey::from(&secret);
        Identity {
            private,
            secret,
            public,
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            demanding: RateLimiter::new(&public, 0),
            address_key,
        }
    }

    pub(crate) fn private_key(&self) -> &PrivateKey {
        &self.private
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.public.to_bytes())
    }

    /// Whether an initiation or response was made for our public key. Cost: one hash.
    pub(crate) fn verify_mac1(&self, message: &[u8]) -> bool {
        self.unlimited.verify_packet(None, message, &mut []).is_ok()
    }

    /// Whether an initiation or response proves that its sender receives at `from`. \[W\] 5.3.
    pub(crate) fn check_cookie(&self, message: &[u8], from: SocketAddr, now: Instant) -> CookieCheck {
        sync_clock(now);
        let mut reply = [0; COOKIE_REPLY_LEN];
        match self.demanding.verify_packet(Some(self.bind_address(from)), message, &mut reply) {
            Ok(_) => CookieCheck::Proven,
            Err(TunnResult::WriteToNetwork(_)) => CookieCheck::Demanded(reply),
            Err(_) => CookieCheck::Invalid,
        }
    }

    /// The static public key an initiation claims to come from. Not yet authenticated. Cost: one scalar multiplication.
    pub(crate) fn claimed_initiator(&self, message: &[u8]) -> Option<PublicKey> {
        if is_low_order_point(message.get(8..40)?) {
            return None;
        }
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(message) else { return None };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        Some(PublicKey::from_bytes(half.peer_static_public))
    }

    /// boringtun binds cookies to an address; this makes one of address and port.
    fn bind_address(&self, from: SocketAddr) -> IpAddr {
        let mut mac =
            <Blake2sMac<U16> as KeyInit>::new_from_slice(&self.address_key).expect("a 32-byte key suits BLAKE2s");
        match from.ip() {
            IpAddr::V4(ip) => mac.update(&ip.octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&from.port().to_be_bytes());
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::from(mac.finalize().into_bytes())))
    }
}

/// The session we send on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    /// There is none.
    Missing,
    /// This one, by its full receiver index.
    Live(u32),
    /// A newer, unconfirmed session took its slot; nothing can be sent until that one is confirmed.
    Overwritten(u32),
}

/// What an authentic transport message turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Length of the inner packet in bytes; 0 for a keepalive; `None` if it is not a whole IP packet.
    pub(crate) len: Option<usize>,
    /// This message confirmed a new session, which is now the one we send on.
    pub(crate) confirmed: bool,
}

/// The sessions with one peer under one private and one pre-shared key.
pub(crate) struct Tunnel {
    tunn: Tunn,
    /// The 24 bits in front of each of our receiver indices.
    index: u32,
    current: Current,
    /// The full receiver index in each slot of the ring.
    slots: [Option<u32>; SESSIONS],
    /// When the session in each slot was established; strictly increasing in the order of establishment.
    established: [Instant; SESSIONS],
    last_established: Instant,
    /// Bit n: we initiated the session in slot n.
    initiated: u8,
    /// The index that was used last, in a message or for a session.
    last_index: u32,
    /// A responder session was confirmed, so that boringtun's memory of timestamps stops replays of older initiations.
    replay_guarded: bool,
    /// Since when boringtun waits for a response.
    waiting_since: Option<Instant>,
    /// The last initiation: its receiver index and when it was sent.
    initiation: Option<(u32, Instant)>,
    /// The last initiation or response may still be answered by a cookie reply.
    cookie_awaited: bool,
    /// The next handshake must use a fresh tunnel.
    retired: bool,
}

impl Tunnel {
    /// A tunnel without sessions. `index` has 24 bits. Cost: two scalar multiplications.
    pub(crate) fn new(
        identity: &Identity,
        peer: &PublicKey,
        psk: Option<&PresharedKey>,
        index: u32,
        now: Instant,
    ) -> Box<Self> {
        debug_assert!(index < 1 << 24, "boringtun drops the bits above");
        // Timestamps must grow from one tunnel to the next, also when only the tests' clock moves.
        sync_clock(Instant::EPOCH);
        let tunn = Tunn::new(
            identity.secret.clone(),
            x25519::PublicKey::from(*peer.as_bytes()),
            psk.map(|key| *key.as_bytes()),
            None,
            index,
            Some(Arc::clone(&identity.unlimited)),
        );
        sync_clock(now);
        Box::new(Tunnel {
            tunn,
            index,
            current: Current::Missing,
            slots: [None; SESSIONS],
            established: [Instant::EPOCH; SESSIONS],
            last_established: Instant::EPOCH,
            initiated: 0,
            last_index: index << 8,
            replay_guarded: false,
            waiting_since: None,
            initiation: None,
            cookie_awaited: false,
            retired: false,
        })
    }

    /// The 24 bits that all receiver indices of this tunnel share.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Makes the next handshake use a fresh tunnel; the sessions stay.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
    }

    /// Whether the next handshake needs a fresh tunnel: because this one was retired, or because boringtun would wipe
    /// its sessions over a handshake that was never answered.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        self.retired || self.waiting_since.is_some_and(|since| now.since(since) >= STALE_AFTER)
    }

    /// Whether the session made by the next accepted initiation would take the place of the one we send on. The
    /// initiation that boringtun may repeat in [`Tunnel::touch`] takes an index of its own.
    pub(crate) fn would_overwrite(&self, now: Instant) -> bool {
        let Current::Live(current) = self.current else { return false };
        let is_in_its_place = |step: u32| slot_of(self.last_index.wrapping_add(step)) == slot_of(current);
        self.sending_age(now).is_some() && (is_in_its_place(1) || is_in_its_place(2))
    }

    /// Whether an initiation accepted now is certainly not a replay from before this tunnel was made.
    pub(crate) fn is_replay_guarded(&self) -> bool {
        self.replay_guarded
    }

    /// Age of the session we would send on; `None` if there is none that may be used.
    #[inline]
    pub(crate) fn sending_age(&self, now: Instant) -> Option<Duration> {
        let Current::Live(index) = self.current else { return None };
        let age = now.since(self.established[slot_of(index)]);
        (age < REJECT_AFTER_TIME).then_some(age)
    }

    /// Whether we initiated the session we send on.
    pub(crate) fn is_initiator(&self) -> bool {
        match self.current {
            Current::Live(index) => self.initiated & (1 << slot_of(index)) != 0,
            Current::Missing | Current::Overwritten(_) => false,
        }
    }

    /// Whether any session could still receive.
    pub(crate) fn can_receive(&self, now: Instant) -> bool {
        (0..SESSIONS).any(|slot| self.slots[slot].is_some() && now.since(self.established[slot]) < REJECT_AFTER_TIME)
    }

    /// Encrypts `packet` (empty for a keepalive) into `datagram`, which is exactly 32 bytes longer.
    ///
    /// The caller has checked [`Tunnel::sending_age`] with the `now` of its batch. Returns the message's counter, or
    /// `None` if there is no session after all.
    #[inline]
    pub(crate) fn seal(&mut self, packet: &[u8], datagram: &mut [u8]) -> Option<u64> {
        if !matches!(self.current, Current::Live(_)) {
            return None;
        }
        match self.tunn.encapsulate(packet, datagram) {
            TunnResult::WriteToNetwork(sealed) if sealed[0] == 4 => {
                let counter = u64::from_le_bytes(sealed[8..16].try_into().expect("eight bytes"));
                (counter < REJECT_AFTER_MESSAGES).then_some(counter)
            }
            _ => {
                // The mirror was wrong: boringtun had no session and has now queued the packet. Start over.
                self.current = Current::Missing;
                self.retired = true;
                None
            }
        }
    }

    /// Decrypts transport data into `buffer`, which is at least as long as the datagram.
    #[inline]
    pub(crate) fn open(
        &mut self,
        message: &TransportData<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        let index = message.receiver_index();
        let slot = slot_of(index);
        if self.slots[slot] != Some(index) {
            return Err(DropReason::UnknownIndex);
        }
        if now.since(self.established[slot]) >= REJECT_AFTER_TIME {
            return Err(DropReason::SessionExpired);
        }
        if message.counter() >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::CounterLimit);
        }
        assert!(buffer.len() >= message.bytes().len(), "the caller reserves the datagram's length");
        let len = match self.tunn.decapsulate(None, message.bytes(), buffer) {
            // An IPv4 packet may state a length of zero; only an empty message is a keepalive.
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Some(packet.len()).filter(|&len| len > 0)
            }
            TunnResult::Done => Some(0),
            TunnResult::Err(WireGuardError::InvalidPacket) => None,
            TunnResult::Err(error) => return Err(reason_of(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropReason::UnknownIndex),
        };
        Ok(Opened { len, confirmed: self.on_received(index) })
    }

    /// Follows boringtun's choice of the session to send on. Returns whether it changed.
    fn on_received(&mut self, index: u32) -> bool {
        let moves = match self.current {
            Current::Live(current) if current == index => return false,
            Current::Missing => true,
            Current::Live(current) | Current::Overwritten(current) => {
                self.established[slot_of(index)] >= self.established[slot_of(current)]
            }
        };
        if moves {
            self.current = Current::Live(index);
            self.replay_guarded |= self.initiated & (1 << slot_of(index)) == 0;
        }
        moves
    }

    /// Writes an initiation into `message`. \[W\] 5.4.2. Cost: three scalar multiplications.
    pub(crate) fn initiate(&mut self, message: &mut [u8; INITIATION_LEN], now: Instant) -> bool {
        let written = self.touch(message, now)
            || matches!(self.tunn.format_handshake_initiation(message, true), TunnResult::WriteToNetwork(_));
        if written {
            self.on_initiation(message, now);
        }
        written
    }

    fn on_initiation(&mut self, message: &[u8; INITIATION_LEN], now: Instant) {
        self.waiting_since.get_or_insert(now);
        self.last_index = index_at(message, 4);
        self.initiation = Some((self.last_index, now));
        self.cookie_awaited = true;
    }

    /// Accepts an initiation and writes the response into `reply`. \[W\] 5.4.3. Cost: four scalar multiplications.
    ///
    /// Returns the response's length in bytes. The session is not used for sending before the peer confirms it.
    pub(crate) fn receive_initiation(
        &mut self,
        message: &[u8],
        reply: &mut [u8; INITIATION_LEN],
        now: Instant,
    ) -> Result<usize, DropReason> {
        if is_low_order_point(&message[8..40]) {
            return Err(DropReason::InvalidHandshake);
        }
        let (awaited, cookie_awaited) = (self.initiation, self.cookie_awaited);
        if self.touch(reply, now) {
            // boringtun took the chance to repeat its own initiation; it is not sent, and the one before may still be
            // answered.
            self.on_initiation(reply, now);
            (self.initiation, self.cookie_awaited) = (awaited, cookie_awaited);
        }
        match self.tunn.decapsulate(None, message, reply) {
            TunnResult::WriteToNetwork(response) if response[0] == 2 => {
                let (index, len) = (index_at(response, 4), response.len());
                if let Current::Live(current) = self.current
                    && slot_of(current) == slot_of(index)
                {
                    self.current = Current::Overwritten(current);
                }
                self.on_established(index, now);
                self.last_index = index;
                self.initiated &= !(1 << slot_of(index));
                self.waiting_since = None;
                self.cookie_awaited = true;
                Ok(len)
            }
            TunnResult::Err(error) => Err(handshake_reason_of(&error)),
            _ => Err(DropReason::InvalidHandshake),
        }
    }

    /// Accepts a response and writes a keepalive into `reply`, which the caller sends if nothing else is to be sent.
    ///
    /// Returns the keepalive's length in bytes. The new session is the one we send on. Not preceded by a touch: the
    /// initiation's was at most six seconds ago, and a new one would make boringtun repeat the initiation.
    pub(crate) fn receive_response(
        &mut self,
        message: &[u8],
        reply: &mut [u8; INITIATION_LEN],
        now: Instant,
    ) -> Result<usize, DropReason> {
        if is_low_order_point(&message[12..44]) {
            return Err(DropReason::InvalidHandshake);
        }
        let answered = index_at(message, 8);
        if !self.initiation.is_some_and(|(index, sent)| index == answered && now.since(sent) < RESPONSE_WITHIN) {
            return Err(DropReason::Unsolicited);
        }
        sync_clock(now);
        match self.tunn.decapsulate(None, message, reply) {
            TunnResult::WriteToNetwork(keepalive) if keepalive[0] == 4 => {
                let len = keepalive.len();
                self.on_established(answered, now);
                self.initiated |= 1 << slot_of(answered);
                self.current = Current::Live(answered);
                self.waiting_since = None;
                self.initiation = None;
                Ok(len)
            }
            TunnResult::Err(error) => Err(handshake_reason_of(&error)),
            _ => Err(DropReason::InvalidHandshake),
        }
    }

    /// Whether a response or cookie reply to `index` is awaited. Costs nothing.
    pub(crate) fn awaits(&self, index: u32) -> bool {
        self.initiation.is_some_and(|(sent, _)| sent == index)
    }

    /// Takes the cookie for the next initiation or response. \[W\] 5.4.7. At most one cookie reply for each is taken.
    pub(crate) fn receive_cookie_reply(&mut self, message: &[u8], now: Instant) -> Result<(), DropReason> {
        if !self.cookie_awaited {
            return Err(DropReason::Unsolicited);
        }
        sync_clock(now);
        let mut unused = [0; INITIATION_LEN];
        match self.tunn.decapsulate(None, message, &mut unused) {
            TunnResult::Done => {
                self.cookie_awaited = false;
                Ok(())
            }
            TunnResult::Err(error) => Err(handshake_reason_of(&error)),
            _ => Err(DropReason::InvalidHandshake),
        }
    }

    fn on_established(&mut self, index: u32, now: Instant) {
        let slot = slot_of(index);
        self.last_established = now.max(self.last_established + Duration::from_nanos(1));
        self.established[slot] = self.last_established;
        self.slots[slot] = Some(index);
    }

    /// Brings boringtun's clock up to date; mandatory before a handshake, forbidden elsewhere.
    ///
    /// Returns whether it wrote an initiation of its own into `message`, which then has to be treated as sent.
    fn touch(&mut self, message: &mut [u8; INITIATION_LEN], now: Instant) -> bool {
        sync_clock(now);
        let initiated = match self.tunn.update_timers(message) {
            TunnResult::WriteToNetwork(written) => written[0] == 1,
            TunnResult::Err(_) => {
                self.waiting_since = None;
                false
            }
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => false,
        };
        if self.tunn.time_since_last_handshake().is_none() {
            self.current = Current::Missing;
        }
        initiated
    }
}

#[inline]
fn slot_of(index: u32) -> usize {
    index as usize % SESSIONS
}

fn index_at(message: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(message[offset..offset + 4].try_into().expect("four bytes"))
}

/// Whether an ephemeral key inside a message is of low order.
fn is_low_order_point(point: &[u8]) -> bool {
    point.try_into().is_ok_and(|bytes| PublicKey::from_bytes(bytes).is_low_order())
}

fn reason_of(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replay,
        WireGuardError::InvalidAeadTag => DropReason::BadTag,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::UnknownIndex,
        WireGuardError::WrongTai64nTimestamp => DropReason::InitiationReplay,
        WireGuardError::UnexpectedPacket => DropReason::Unsolicited,
        _ => DropReason::InvalidHandshake,
    }
}

/// As [`reason_of`], for a handshake message: a wrong tag or key in it is a handshake that does not authenticate.
fn handshake_reason_of(error: &WireGuardError) -> DropReason {
    match reason_of(error) {
        DropReason::BadTag => DropReason::InvalidHandshake,
        other => other,
    }
}

/// Sets boringtun's clock to `now` where a test drives time; a running program's clock moves by itself.
#[inline]
fn sync_clock(now: Instant) {
    #[cfg(virtual_time)]
    mock_instant::MockClock::set_time(Duration::from_nanos(now.as_nanos()));
    #[cfg(not(virtual_time))]
    let _ = now;
}
