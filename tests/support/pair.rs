//! Two engines, one virtual clock, one [`Pair::step`]. Nothing sleeps; everything random comes from one printed seed.
//!
//! The harness is a driver as the engine's contract asks for, and no better one: it calls the handshake thread only
//! when a report or a change of settings says so, and asks for the next deadline only then. A wake-up that the engine
//! forgets to announce is therefore a hang that shows as a failing test.
//!
//! 1. [`Pair::send`], [`Pair::inject`] and [`Pair::configure`] are what happens to a host at the present time.
//! 2. [`Pair::step`] goes to the next arrival or deadline and handles it; [`Pair::run_for`] does so for a while.
//! 3. [`Pair::wire`] is the log of all that was sent; what was delivered is in [`Host::delivered`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wg_core::packet::message;
use wg_core::{
    BatchReport, Datagram, DatagramSink, DatagramSource, DropReason, Endpoint, Engine, EngineConfig, Event, Instant,
    PacketSink, PacketSlot, PacketSource, PeerId, PeerState, PresharedKey, PrivateKey, PublicKey, SourceAddr,
    SourceChecked, StagingBudget,
};

use super::link::{InFlight, Link, LinkConfig, Random};
use super::oracle::{Model, Secret, Session};
use super::packets;

/// Where virtual time begins: early enough that whoever takes the epoch for "never" is found out.
pub const START: Instant = Instant::from_nanos(1_000_000_000);

/// The wall clock at [`START`]: 2030-01-01.
pub const WALL_CLOCK_AT_START: Duration = Duration::from_secs(1_893_456_000);

/// The state of a buffer nobody wrote to.
pub const UNWRITTEN: u8 = 0xa5;

/// Interface index on which every datagram arrives.
pub const IFINDEX: u32 = 7;

/// An address family, inside or outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];
}

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left = 0,
    Right = 1,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Left, Side::Right];

    pub fn other(self) -> Side {
        match self {
            Side::Left => Side::Right,
            Side::Right => Side::Left,
        }
    }
}

/// How a pair is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub link: LinkConfig,
    /// Family of the addresses outside.
    pub outer: Family,
    pub psk: Option<PresharedKey>,
    pub mtu: u16,
    pub staging_limit_bytes: usize,
    /// Whether each side is told where the other is.
    pub knows_endpoint: [bool; 2],
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            seed: 1,
            link: LinkConfig::default(),
            outer: Family::V4,
            psk: None,
            mtu: 1420,
            staging_limit_bytes: 32 << 20,
            knows_endpoint: [true, true],
        }
    }
}

/// One host: an engine and what a driver keeps beside it.
pub struct Host {
    pub engine: Engine,
    pub private_key: PrivateKey,
    /// The other host, as this one's engine names it.
    pub peer: PeerId,
    /// Its datagrams leave from here.
    pub address: SocketAddr,
    /// And it receives here.
    pub reachable_at: Vec<SocketAddr>,
    /// Inner packets for the TUN device, in order.
    pub delivered: Vec<Vec<u8>>,
    /// While set, the handshake thread gets no time.
    pub is_handshake_thread_stalled: bool,
    must_wake_handshakes: bool,
    next_timeout: Option<Instant>,
    sent_numbers: u64,
}

impl Host {
    pub fn state(&self) -> PeerState {
        self.engine.peer_state(self.peer).expect("the peer is configured")
    }

    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.state().endpoint
    }

    /// What was dropped for `reason` on the interface.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.engine.counters().drops.of(reason)
    }

    /// What was dropped for `reason` on the other host's account.
    pub fn peer_drops(&self, reason: DropReason) -> u64 {
        self.state().drops.of(reason)
    }

    pub fn public_key(&self) -> PublicKey {
        self.private_key.public_key()
    }

    /// The numbers of the packets delivered, in order.
    pub fn numbers(&self) -> Vec<u64> {
        self.delivered.iter().map(|packet| packets::number_of(packet)).collect()
    }

    /// Everything the engine has to tell.
    pub fn events(&self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    fn note(&mut self, report: BatchReport) {
        // A packet that pushes an older one out of the staging queue is staged, and the older one is dropped.
        let (at_least, at_most) = (report.passed + report.staged, report.passed + report.staged + report.dropped);
        assert!((at_least..=at_most).contains(&report.taken), "{report:?}");
        self.must_wake_handshakes |= report.handshakes_waiting;
        if report.deadline_moved {
            self.next_timeout = self.engine.poll_timeout();
        }
    }
}

/// One line of the log of what was sent, whether or not it arrived.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: Instant,
    pub by: Side,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// Our own source address as the engine asked for it.
    pub source: Option<SourceAddr>,
    pub traffic_class: u8,
    pub kind: Kind,
    pub len: usize,
    /// The first 148 bytes: a handshake message whole, the head of transport data.
    pub head: Vec<u8>,
}

/// What a datagram is, by type and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Initiation,
    Response,
    CookieReply,
    Keepalive,
    Data,
}

impl Kind {
    pub fn of(datagram: &[u8]) -> Kind {
        match (datagram[0], datagram.len()) {
            (1, message::INITIATION_LEN) => Kind::Initiation,
            (2, message::RESPONSE_LEN) => Kind::Response,
            (3, message::COOKIE_REPLY_LEN) => Kind::CookieReply,
            (4, message::DATA_MIN_LEN) => Kind::Keepalive,
            (4, _) => Kind::Data,
            (kind, len) => panic!("the engine sent a message of type {kind} with {len} bytes"),
        }
    }
}

/// Two hosts and the link between them.
pub struct Pair {
    pub now: Instant,
    pub hosts: [Host; 2],
    pub link: Link,
    pub wire: Vec<Sent>,
    pub random: Random,
}

impl Pair {
    pub fn new(seed: u64) -> Self {
        Pair::with(Setup { seed, ..Setup::default() })
    }

    /// Two hosts that are up and know each other. Nothing has been sent.
    pub fn with(setup: Setup) -> Self {
        println!("seed {:#x}", setup.seed);
        let mut random = Random::new(setup.seed);
        let keys = [PrivateKey::from_bytes(random.bytes()), PrivateKey::from_bytes(random.bytes())];
        let hosts = Side::BOTH.map(|side| {
            let mut config = EngineConfig::new(random.bytes());
            config.mtu = setup.mtu;
            config.staging = StagingBudget::new(setup.staging_limit_bytes);
            let engine = Engine::new(config, START);
            engine.set_wall_clock(WALL_CLOCK_AT_START, START);
            engine.set_private_key(Some(keys[side as usize].clone()), START);
            let peer = engine.add_peer(keys[side.other() as usize].public_key()).expect("it is not our own key");
            engine.set_preshared_key(peer, setup.psk.clone()).expect("the peer exists");
            for family in Family::BOTH {
                let prefix = match family {
                    Family::V4 => "32",
                    Family::V6 => "128",
                };
                let prefix = format!("{}/{prefix}", inner_address(side.other(), family)).parse().expect("a prefix");
                engine.add_allowed_ip(peer, prefix).expect("the peer exists");
            }
            if setup.knows_endpoint[side as usize] {
                engine.set_endpoint(peer, home(side.other(), setup.outer), START).expect("the peer exists");
            }
            engine.bring_up(START);
            let address = home(side, setup.outer);
            Host {
                engine,
                private_key: keys[side as usize].clone(),
                peer,
                address,
                reachable_at: vec![address],
                delivered: Vec::new(),
                is_handshake_thread_stalled: false,
                must_wake_handshakes: true,
                next_timeout: None,
                sent_numbers: 0,
            }
        });
        let link = Link::new(setup.link, random.next());
        Pair { now: START, hosts, link, wire: Vec::new(), random }
    }

    /// A pair with a session that `initiator` began and that both use.
    pub fn connected(setup: Setup, initiator: Side) -> Self {
        let mut pair = Pair::with(setup);
        pair.connect(initiator);
        pair
    }

    /// Makes a session by sending one packet, which is forgotten with the log.
    pub fn connect(&mut self, initiator: Side) {
        self.send_numbered(initiator, Family::V4, 1, 100);
        self.run_until(Duration::from_secs(60), |pair| !pair.host(initiator.other()).delivered.is_empty());
        self.run_for(Duration::from_millis(200));
        self.forget_packets();
        self.wire.clear();
    }

    pub fn host(&self, side: Side) -> &Host {
        &self.hosts[side as usize]
    }

    pub fn host_mut(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    pub fn left(&self) -> &Host {
        self.host(Side::Left)
    }

    pub fn right(&self) -> &Host {
        self.host(Side::Right)
    }

    /// Starts counting packets anew.
    pub fn forget_packets(&mut self) {
        for host in &mut self.hosts {
            host.delivered.clear();
            host.sent_numbers = 0;
        }
    }

    /// Hands `packets` to a host's engine as one batch from its TUN device.
    pub fn send(&mut self, side: Side, packets: Vec<Vec<u8>>) -> BatchReport {
        let mut out = Outbox::default();
        let host = &mut self.hosts[side as usize];
        let report = host.engine.handle_packets(&mut Packets::new(packets), &mut out, self.now);
        host.note(report);
        self.transmit(side, out);
        self.settle();
        report
    }

    /// Sends `count` packets that go on counting where the last ones ended.
    pub fn send_numbered(&mut self, side: Side, family: Family, count: u64, len: usize) -> BatchReport {
        let host = &mut self.hosts[side as usize];
        let numbers = host.sent_numbers..host.sent_numbers + count;
        host.sent_numbers = numbers.end;
        let packets = numbers.map(|number| numbered(side, family, number, len)).collect();
        self.send(side, packets)
    }

    /// Lets datagrams arrive at a host, from anywhere.
    pub fn inject(&mut self, side: Side, from: SocketAddr, datagrams: &[Vec<u8>]) -> BatchReport {
        let to = self.host(side).address;
        let datagrams =
            datagrams.iter().map(|bytes| InFlight { from, to, traffic_class: 0, bytes: bytes.clone() }).collect();
        let report = self.deliver(side, datagrams);
        self.settle();
        report
    }

    /// Changes settings; wakes the host's threads as a driver must.
    pub fn configure<R>(&mut self, side: Side, change: impl FnOnce(&Engine, PeerId, Instant) -> R) -> R {
        let host = &mut self.hosts[side as usize];
        let result = change(&host.engine, host.peer, self.now);
        host.must_wake_handshakes = true;
        host.next_timeout = host.engine.poll_timeout();
        self.settle();
        result
    }

    /// Gives the handshake thread of a host time for all that waits, stalled or not.
    pub fn run_handshakes(&mut self, side: Side) {
        self.hosts[side as usize].must_wake_handshakes = true;
        let is_stalled = std::mem::take(&mut self.hosts[side as usize].is_handshake_thread_stalled);
        self.settle();
        self.hosts[side as usize].is_handshake_thread_stalled = is_stalled;
    }

    /// Goes to the next arrival or deadline, but not beyond `limit`, and handles what is due then.
    pub fn step(&mut self, limit: Instant) {
        let deadlines = self.hosts.iter().filter_map(|host| host.next_timeout);
        let next = deadlines.chain(self.link.next_arrival()).min().unwrap_or(limit);
        self.now = next.clamp(self.now, limit);
        for datagram_side in Side::BOTH {
            let host = &mut self.hosts[datagram_side as usize];
            if host.next_timeout.is_some_and(|at| at <= self.now) {
                let mut out = Outbox::default();
                let report = host.engine.handle_timeout(&mut out, self.now);
                host.must_wake_handshakes |= report.handshakes_waiting;
                host.next_timeout = host.engine.poll_timeout();
                self.transmit(datagram_side, out);
            }
        }
        let arrived = self.link.arrived(self.now);
        for side in Side::BOTH {
            let here: Vec<_> = arrived
                .iter()
                .filter(|datagram| self.host(side).reachable_at.contains(&datagram.to))
                .cloned()
                .collect();
            if !here.is_empty() {
                self.deliver(side, here);
            }
        }
        self.settle();
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step(end);
        }
    }

    /// Runs until `condition` holds; panics if it does not within `limit`. Returns how long it took.
    pub fn run_until(&mut self, limit: Duration, condition: impl Fn(&Pair) -> bool) -> Duration {
        let (start, end) = (self.now, self.now + limit);
        while !condition(self) {
            assert!(self.now < end, "not within {limit:?}");
            self.step(end);
        }
        self.now.since(start)
    }

    /// Runs for `duration` with packets of `len` bytes from each of `senders`, one each `interval`.
    pub fn run_with_traffic(&mut self, duration: Duration, interval: Duration, senders: &[(Side, Family)], len: usize) {
        let end = self.now + duration;
        while self.now < end {
            for &(side, family) in senders {
                self.send_numbered(side, family, 1, len);
            }
            self.run_for(interval);
        }
    }

    /// A model with a side's keys, to talk to the other side's engine in its place.
    pub fn model_of(&self, side: Side) -> Model {
        let mut model = Model::new(Secret::of(&self.host(side).private_key), self.host(side.other()).public_key());
        if let Some(psk) = self.host(side.other()).state().preshared_key {
            model.psk = *psk.as_bytes();
        }
        model
    }

    /// A session between a model of `side`, which initiates and confirms it with counter 0, and the other side's engine.
    ///
    /// From here on nothing reaches `side`'s own engine. Timestamps are those of virtual time.
    pub fn model_session(&mut self, side: Side) -> Session {
        self.link.is_cut = true;
        let model = self.model_of(side);
        let waiting = model.initiate_at(self.now.since(Instant::EPOCH).as_secs(), &mut self.random);
        let from = self.host(side).address;
        self.inject(side.other(), from, std::slice::from_ref(&waiting.message));
        let response = self.last(side.other(), Kind::Response).head.clone();
        let session = model.finish(&waiting, &response).expect("the response is authentic");
        self.inject(side.other(), from, &[session.seal(0, &[])]);
        session
    }

    /// How many messages of this kind a host has sent since the log was cleared.
    pub fn count(&self, by: Side, kind: Kind) -> usize {
        self.sent(by, kind).count()
    }

    /// The messages of this kind in the log, oldest first.
    pub fn sent(&self, by: Side, kind: Kind) -> impl DoubleEndedIterator<Item = &Sent> {
        self.wire.iter().filter(move |sent| sent.by == by && sent.kind == kind)
    }

    /// The last message of this kind.
    pub fn last(&self, by: Side, kind: Kind) -> &Sent {
        self.sent(by, kind).next_back().unwrap_or_else(|| panic!("{by:?} has not sent any {kind:?}"))
    }

    /// Asserts that a host got exactly the packets numbered from 0 that the other has sent, in their order.
    pub fn assert_all_arrived_at(&self, side: Side) {
        let (numbers, sent) = (self.host(side).numbers(), self.host(side.other()).sent_numbers);
        let wrong = numbers.iter().zip(0..).position(|(&number, expected)| number != expected);
        if let Some(at) = wrong {
            panic!("{side:?} got number {} where {at} was due", numbers[at]);
        }
        assert_eq!(numbers.len() as u64, sent, "the last packets did not arrive at {side:?}");
    }

    fn deliver(&mut self, side: Side, datagrams: Vec<InFlight>) -> BatchReport {
        let (mut out, mut up) = (Outbox::default(), Inbox::default());
        let host = &mut self.hosts[side as usize];
        let report = host.engine.handle_datagrams(&mut Datagrams::new(datagrams), &mut up, &mut out, self.now);
        host.note(report);
        host.delivered.extend(up.packets);
        self.transmit(side, out);
        report
    }

    /// Lets the handshake threads work until they wait.
    fn settle(&mut self) {
        for side in Side::BOTH {
            loop {
                let host = &mut self.hosts[side as usize];
                if !host.must_wake_handshakes || host.is_handshake_thread_stalled {
                    break;
                }
                let mut out = Outbox::default();
                let report = host.engine.handle_handshakes(4, &mut out, self.now);
                host.must_wake_handshakes = report.still_waiting;
                if report.deadline_moved {
                    host.next_timeout = host.engine.poll_timeout();
                }
                self.transmit(side, out);
            }
            let host = &self.hosts[side as usize];
            if !host.is_handshake_thread_stalled {
                assert_eq!(host.engine.counters().handshakes_waiting, 0, "nobody was told that handshakes wait");
            }
            let (known, actual) = (host.next_timeout, host.engine.poll_timeout());
            let is_known = actual.is_none_or(|actual| known.is_some_and(|known| known <= actual));
            assert!(is_known, "nobody was told that a deadline moved from {known:?} to {actual:?}");
        }
    }

    fn transmit(&mut self, by: Side, out: Outbox) {
        let from = self.host(by).address;
        for SentDatagram { to, traffic_class, bytes } in out.datagrams {
            let kind = Kind::of(&bytes);
            let head = bytes[..bytes.len().min(message::INITIATION_LEN)].to_vec();
            self.wire.push(Sent {
                at: self.now,
                by,
                from,
                to: to.remote,
                source: to.source,
                traffic_class,
                kind,
                len: bytes.len(),
                head,
            });
            self.link.send(InFlight { from, to: to.remote, traffic_class, bytes }, self.now);
        }
    }
}

/// A packet with `number` from one side to the other.
pub fn numbered(from: Side, family: Family, number: u64, len: usize) -> Vec<u8> {
    packets::numbered(inner_address(from, family), inner_address(from.other(), family), number, len)
}

/// The inner address of a side.
pub fn inner_address(side: Side, family: Family) -> IpAddr {
    let text = match (side, family) {
        (Side::Left, Family::V4) => "10.0.0.1",
        (Side::Right, Family::V4) => "10.0.0.2",
        (Side::Left, Family::V6) => "fd00::1",
        (Side::Right, Family::V6) => "fd00::2",
    };
    text.parse().expect("an address")
}

/// The outer address of a side.
pub fn home(side: Side, family: Family) -> SocketAddr {
    let text = match (side, family) {
        (Side::Left, Family::V4) => "192.0.2.1:51820",
        (Side::Right, Family::V4) => "192.0.2.2:51820",
        (Side::Left, Family::V6) => "[2001:db8:1::1]:51820",
        (Side::Right, Family::V6) => "[2001:db8:2::2]:51820",
    };
    text.parse().expect("an address and a port")
}

/// A datagram that an engine has sent.
#[derive(Clone, Debug)]
pub struct SentDatagram {
    pub to: Endpoint,
    pub traffic_class: u8,
    pub bytes: Vec<u8>,
}

/// Takes what an engine sends. Every reservation starts [`UNWRITTEN`].
pub struct Outbox {
    pub datagrams: Vec<SentDatagram>,
    /// Reservations granted before the sink is full.
    pub room: usize,
    reserved: Option<SentDatagram>,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox::with_room(usize::MAX)
    }
}

impl Outbox {
    pub fn with_room(room: usize) -> Self {
        Outbox { datagrams: Vec::new(), room, reserved: None }
    }
}

impl DatagramSink for Outbox {
    fn reserve(&mut self, to: &Endpoint, traffic_class: u8, len: usize) -> Option<&mut [u8]> {
        self.reserved = None;
        if self.datagrams.len() >= self.room {
            return None;
        }
        let reserved = self.reserved.insert(SentDatagram { to: *to, traffic_class, bytes: vec![UNWRITTEN; len] });
        Some(&mut reserved.bytes)
    }

    fn commit(&mut self, len: usize) {
        let mut datagram = self.reserved.take().expect("a commit follows a reservation");
        datagram.bytes.truncate(len);
        self.datagrams.push(datagram);
    }
}

/// Takes what an engine delivers. Every reservation starts [`UNWRITTEN`].
pub struct Inbox {
    pub packets: Vec<Vec<u8>>,
    pub room: usize,
    reserved: Option<Vec<u8>>,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox::with_room(usize::MAX)
    }
}

impl Inbox {
    pub fn with_room(room: usize) -> Self {
        Inbox { packets: Vec::new(), room, reserved: None }
    }
}

impl PacketSink for Inbox {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.reserved = None;
        if self.packets.len() >= self.room {
            return None;
        }
        Some(self.reserved.insert(vec![UNWRITTEN; len]))
    }

    fn commit(&mut self, packet: SourceChecked) {
        let mut bytes = self.reserved.take().expect("a commit follows a reservation");
        bytes.truncate(packet.len());
        self.packets.push(bytes);
    }
}

/// A batch of inner packets, each in a buffer whose slack is [`UNWRITTEN`].
pub struct Packets {
    packets: VecDeque<Vec<u8>>,
    lent: Vec<u8>,
}

impl Packets {
    pub fn new(packets: Vec<Vec<u8>>) -> Self {
        Packets { packets: packets.into(), lent: Vec::new() }
    }
}

impl PacketSource for Packets {
    fn next_packet(&mut self) -> Option<PacketSlot<'_>> {
        self.lent = self.packets.pop_front()?;
        let len = self.lent.len();
        self.lent.resize(len + wg_core::PADDING_SLACK, UNWRITTEN);
        Some(PacketSlot { buffer: &mut self.lent, len })
    }
}

/// A batch of datagrams as they come from the link.
pub struct Datagrams {
    datagrams: VecDeque<InFlight>,
    lent: Option<InFlight>,
}

impl Datagrams {
    pub fn new(datagrams: Vec<InFlight>) -> Self {
        Datagrams { datagrams: datagrams.into(), lent: None }
    }
}

impl DatagramSource for Datagrams {
    fn next_datagram(&mut self) -> Option<Datagram<'_>> {
        self.lent = self.datagrams.pop_front();
        let lent = self.lent.as_ref()?;
        let source = Some(SourceAddr { ip: lent.to.ip(), ifindex: IFINDEX });
        Some(Datagram { bytes: &lent.bytes, from: Endpoint { remote: lent.from, source }, ecn: lent.traffic_class & 3 })
    }
}
