//! Owns many datagrams per system call, in both directions, in per-peer order: trains laid out in memory as the kernel
//! takes and gives them (`UDP_SEGMENT`, `UDP_GRO`), and what is tried when the kernel refuses one.
//!
//! A **train** is a run of datagrams to one endpoint with one traffic class, of equal length but for a shorter last
//! one, one behind the other. One train per endpoint is open at a time; a datagram that does not fit ends it and begins
//! the next, so that the order towards one peer is the order of `reserve`.
//!
//! What the kernel refuses is retried in this order, for that message alone: wait while the socket is full; a train's
//! datagrams singly (and singly from the start for that endpoint, for a minute); without our source address; once more
//! for an error that an earlier datagram left at the socket. What then remains is counted and dropped.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use wg_core::{Datagram, DatagramSink, DatagramSource, Endpoint, Instant, SourceAddr};

use crate::cmsg::{self, Outgoing, Pages, Received};
use crate::link::RouteQuery;
use crate::udp::{Family, UdpSockets};

/// Datagrams in a train: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_SEGMENTS: u32 = 64;
/// Bytes in a train: the largest UDP payload over IPv4.
const MAX_TRAIN_LEN: usize = 65_507;
/// Distance of trains in memory. Not a power of two, so that their heads do not compete for one cache set.
const TRAIN_STRIDE: usize = 65_536 + 4_160;
/// Trains in a batch. A batch of 64 packets to 64 peers needs 64; what a new session sets free, two or three each.
const MAX_TRAINS: usize = 256;
/// How long a batch waits for full sockets, altogether, before it drops: no queue of ours grows meanwhile, but nothing
/// is received either.
const MAX_WAIT: Duration = Duration::from_millis(10);
/// One wait; the kernel calls a socket writable only when half its buffer is free, so ask again before that.
const WAIT_STEP: Duration = Duration::from_millis(1);
/// How long an endpoint is sent single datagrams after the kernel refused it a train.
const SINGLY_FOR: Duration = Duration::from_secs(60);
/// Endpoints remembered as such. The next one makes room by forgetting all, which costs one failed call each.
const MAX_REMEMBERED: usize = 1024;
/// Source addresses remembered as looked at: a few megabytes, if there are as many peers. The next one makes room by
/// forgetting all, which costs one look at a route each.
const MAX_VERDICTS: usize = 1 << 16;

/// Datagrams to be sent: the sink of the engine, and the call that empties it.
#[derive(Debug)]
pub(crate) struct OutBatch {
    memory: Pages,
    trains: Vec<Train>,
    /// The train that the last datagram went to.
    recent: usize,
    /// The open train of an endpoint.
    open: HashMap<SocketAddr, usize>,
    /// What is reserved and not yet committed: a train that may be new, and the length.
    reserved: Option<(usize, usize)>,
    /// Endpoints to which the kernel sends no trains, and until when we believe it.
    singly_until: HashMap<SocketAddr, Instant>,
    sources: SourceCheck,
}

/// Which source addresses were looked at since routes last changed, and what was found.
#[derive(Debug, Default)]
struct SourceCheck {
    query: Option<RouteQuery>,
    routes_version: u32,
    verdicts: HashMap<(SocketAddr, SourceAddr), Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It leads there by the interface the peer was heard on.
    Current,
    /// It does not, as was just found.
    NewlyOutdated,
    /// It does not, as is known: where the way back is another one, a peer is heard at such an address again and again.
    KnownOutdated,
}

impl SourceCheck {
    /// Whether datagrams from the source address still leave by the interface the peer was heard on. Linux's own
    /// WireGuard asks this of every route it looks up; one of ours is looked up once after each change of routes.
    fn verdict(&mut self, remote: SocketAddr, source: SourceAddr, mark: u32) -> Verdict {
        if let Some(&verdict) = self.verdicts.get(&(remote, source)) {
            return verdict;
        }
        if self.query.is_none() {
            self.query = RouteQuery::here().ok();
        }
        let Some(query) = &self.query else { return Verdict::Current };
        let (now, later) = match query.interface(remote, source.ip, mark) == Some(source.ifindex) {
            true => (Verdict::Current, Verdict::Current),
            false => (Verdict::NewlyOutdated, Verdict::KnownOutdated),
        };
        if self.verdicts.len() >= MAX_VERDICTS {
            self.verdicts.clear();
        }
        self.verdicts.insert((remote, source), later);
        now
    }
}

#[derive(Clone, Copy, Debug)]
struct Train {
    to: Endpoint,
    traffic_class: u8,
    /// Length of every datagram but the last.
    segment_len: usize,
    len: usize,
    count: u32,
    is_open: bool,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct SendReport {
    /// Datagrams the kernel refused.
    pub(crate) failed: u64,
    /// Datagrams for which a socket had no room in time.
    pub(crate) queue_full: u64,
    /// Endpoints that cannot be sent to from the source address they were last heard at.
    pub(crate) refused_sources: Vec<SocketAddr>,
}

impl OutBatch {
    pub(crate) fn new() -> OutBatch {
        OutBatch {
            memory: Pages::new(MAX_TRAINS * TRAIN_STRIDE),
            trains: Vec::new(),
            recent: 0,
            open: HashMap::new(),
            reserved: None,
            singly_until: HashMap::new(),
            sources: SourceCheck::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.trains.iter().all(|train| train.count == 0)
    }

    /// Looks at every source address once before it is used again, because routes have changed if `version` has; sends
    /// from none that does not lead to its endpoint any more. Returns the endpoints for which that is new. Makes system
    /// calls in the network namespace of the calling thread, which must be that of the sockets.
    pub(crate) fn check_sources(&mut self, version: u32, mark: u32) -> Vec<SocketAddr> {
        if version == 0 {
            return Vec::new();
        }
        if self.sources.routes_version != version {
            self.sources.routes_version = version;
            self.sources.verdicts.clear();
        }
        let mut outdated = Vec::new();
        for train in &mut self.trains {
            let Some(source) = train.to.source else { continue };
            let verdict = self.sources.verdict(train.to.remote, source, mark);
            if verdict != Verdict::Current {
                train.to.source = None;
            }
            if verdict == Verdict::NewlyOutdated {
                outdated.push(train.to.remote);
            }
        }
        outdated
    }

    /// Sends everything and is empty afterwards.
    pub(crate) fn send(&mut self, sockets: &UdpSockets, now: Instant) -> SendReport {
        self.reserved = None;
        let mut send = Send { report: SendReport::default(), waited: Duration::ZERO, trouble: Vec::new() };
        for family in [Family::V4, Family::V6] {
            let is_there = |train: &&Train| train.count > 0 && Family::of(train.to.remote) == family;
            if !self.trains.iter().any(|train| is_there(&train)) {
                continue;
            }
            match sockets.fd_of(family) {
                Some(socket) => self.send_family(socket, family, &mut send, now),
                None => {
                    let count: u64 = self.trains.iter().filter(is_there).map(|train| u64::from(train.count)).sum();
                    send.report.failed += count;
                }
            }
        }
        self.clear();
        for remote in send.trouble {
            if self.singly_until.len() >= MAX_REMEMBERED {
                self.singly_until.clear();
            }
            self.singly_until.insert(remote, now + SINGLY_FOR);
        }
        send.report
    }

    /// Forgets everything; returns how many datagrams that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let count = self.trains.iter().map(|train| u64::from(train.count)).sum();
        self.reserved = None;
        self.trains.clear();
        self.open.clear();
        count
    }

    fn send_family(&self, socket: BorrowedFd<'_>, family: Family, send: &mut Send, now: Instant) {
        let mut messages = Messages { batch: self, family, train: 0, offset: 0, now };
        loop {
            let refused = &send.report.refused_sources;
            match cmsg::send_messages(socket, messages.map(|message| without(refused, message))) {
                Ok(0) => return,
                Ok(count) => {
                    messages.nth(count - 1);
                }
                Err(error) => {
                    let Some(message) = messages.next() else { return };
                    let message = without(refused, message);
                    send.rescue(socket, message, error);
                }
            }
        }
    }

    fn is_sent_singly(&self, remote: &SocketAddr, now: Instant) -> bool {
        !self.singly_until.is_empty() && self.singly_until.get(remote).is_some_and(|&until| now < until)
    }

    /// The open train of the endpoint, if a datagram of `len` may go behind it.
    #[inline]
    fn fitting_train(&self, to: &Endpoint, traffic_class: u8, len: usize) -> Option<usize> {
        let fits = |train: &Train| train.takes(to, traffic_class, len);
        if let Some(train) = self.trains.get(self.recent)
            && train.to.remote == to.remote
        {
            return fits(train).then_some(self.recent);
        }
        let index = *self.open.get(&to.remote)?;
        self.trains.get(index).is_some_and(fits).then_some(index)
    }

    fn begin_train(&mut self, to: &Endpoint, traffic_class: u8) -> Option<usize> {
        let train = Train { to: *to, traffic_class, segment_len: 0, len: 0, count: 0, is_open: true };
        // One that was begun and never committed to is begun again.
        if self.trains.last().is_some_and(|last| last.count == 0) {
            self.trains.pop();
        }
        if self.trains.len() == MAX_TRAINS {
            return None;
        }
        self.trains.push(train);
        Some(self.trains.len() - 1)
    }
}

impl DatagramSink for OutBatch {
    #[inline]
    fn reserve(&mut self, to: &Endpoint, traffic_class: u8, len: usize) -> Option<&mut [u8]> {
        self.reserved = None;
        if len > MAX_TRAIN_LEN {
            return None;
        }
        let index = match self.fitting_train(to, traffic_class, len) {
            Some(index) => index,
            None => self.begin_train(to, traffic_class)?,
        };
        self.reserved = Some((index, len));
        let at = index * TRAIN_STRIDE + self.trains[index].len;
        Some(&mut self.memory[at..at + len])
    }

    #[inline]
    fn commit(&mut self, len: usize) {
        let Some((index, reserved)) = self.reserved.take() else { return };
        let len = len.min(reserved);
        if len == 0 {
            return;
        }
        let train = &mut self.trains[index];
        if train.count == 0 {
            train.segment_len = len;
            self.open.insert(train.to.remote, index);
        }
        train.len += len;
        train.count += 1;
        train.is_open = len == train.segment_len && train.count < MAX_SEGMENTS;
        self.recent = index;
    }
}

impl Train {
    #[inline]
    fn takes(&self, to: &Endpoint, traffic_class: u8, len: usize) -> bool {
        self.is_open
            && self.count > 0
            && self.traffic_class == traffic_class
            && self.to == *to
            && len <= self.segment_len
            && self.len + len <= MAX_TRAIN_LEN
    }
}

/// The messages of one family that are still to be sent: trains, or the datagrams of those that must go singly.
#[derive(Clone, Copy)]
struct Messages<'a> {
    batch: &'a OutBatch,
    family: Family,
    train: usize,
    offset: usize,
    now: Instant,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Outgoing<'a>;

    fn next(&mut self) -> Option<Outgoing<'a>> {
        loop {
            let train = self.batch.trains.get(self.train)?;
            if self.offset == train.len || Family::of(train.to.remote) != self.family {
                self.train += 1;
                self.offset = 0;
                continue;
            }
            let at = self.train * TRAIN_STRIDE;
            let is_single = train.count == 1 || self.batch.is_sent_singly(&train.to.remote, self.now);
            let end = if is_single { train.len.min(self.offset + train.segment_len) } else { train.len };
            let bytes = &self.batch.memory[at + self.offset..at + end];
            self.offset = end;
            return Some(Outgoing {
                bytes,
                segment_len: if is_single { 0 } else { train.segment_len as u16 },
                remote: train.to.remote,
                source: train.to.source.map(|SourceAddr { ip, .. }| ip),
                traffic_class: train.traffic_class,
            });
        }
    }
}

/// The message without its source address, if that was refused earlier in the same batch.
fn without<'a>(refused: &[SocketAddr], message: Outgoing<'a>) -> Outgoing<'a> {
    let source = message.source.filter(|_| !refused.contains(&message.remote));
    Outgoing { source, ..message }
}

/// One run of `OutBatch::send`.
struct Send {
    report: SendReport,
    waited: Duration,
    /// Endpoints that were refused a train but take its datagrams.
    trouble: Vec<SocketAddr>,
}

enum Refusal {
    /// It is a train, which may be what is wrong with it.
    Train(io::Error),
    QueueFull,
    Failed,
}

impl Send {
    /// Finds a way for a message that the kernel refused.
    fn rescue(&mut self, socket: BorrowedFd<'_>, message: Outgoing<'_>, error: io::Error) {
        let count = match message.segment_len {
            0 => 1,
            segment_len => message.bytes.len().div_ceil(usize::from(segment_len)) as u64,
        };
        match self.send_again(socket, message, error) {
            Ok(()) => {}
            Err(Refusal::Train(error)) => self.send_singly(socket, message, error),
            Err(Refusal::QueueFull) => self.report.queue_full += count,
            Err(Refusal::Failed) => self.report.failed += count,
        }
    }

    /// Sends the datagrams of a train that was refused as one.
    fn send_singly(&mut self, socket: BorrowedFd<'_>, train: Outgoing<'_>, error: io::Error) {
        let train = without(&self.report.refused_sources, train);
        let mut rest = train;
        for bytes in train.bytes.chunks(usize::from(train.segment_len)) {
            let single = Outgoing { bytes, segment_len: 0, ..rest };
            if let Err(error) = cmsg::send_messages(socket, std::iter::once(single)) {
                self.rescue(socket, single, error);
            }
            rest = without(&self.report.refused_sources, rest);
        }
        // EINVAL may have meant the source address; then trains are not to blame.
        let source_was_refused = train.source.is_some() && rest.source.is_none();
        if !source_was_refused && !self.trouble.contains(&train.remote) {
            tracing::debug!(remote = %train.remote, %error, "sends single datagrams for a while");
            self.trouble.push(train.remote);
        }
    }

    fn send_again(
        &mut self,
        socket: BorrowedFd<'_>,
        mut message: Outgoing<'_>,
        mut error: io::Error,
    ) -> Result<(), Refusal> {
        let mut is_retried = false;
        loop {
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    if self.waited >= MAX_WAIT {
                        return Err(Refusal::QueueFull);
                    }
                    self.waited += WAIT_STEP;
                    let _ = cmsg::poll_writable(socket, WAIT_STEP);
                }
                // Before the source address is suspected: some errors may mean either.
                _ if message.segment_len != 0 && is_about_trains(&error) => return Err(Refusal::Train(error)),
                _ if message.source.is_some() && is_about_source(&error) => {
                    message.source = None;
                    self.report.refused_sources.push(message.remote);
                }
                _ if !is_retried => is_retried = true,
                _ => {
                    tracing::trace!(remote = %message.remote, %error, "datagram refused");
                    return Err(Refusal::Failed);
                }
            }
            error = match cmsg::send_messages(socket, std::iter::once(message)) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
        }
    }
}

/// The kernel, or the device, cannot segment; or a segment does not fit the path, which as a datagram is fragmented.
fn is_about_trains(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP | libc::EMSGSIZE | libc::ENOPROTOOPT)
    )
}

/// The address is gone, or nothing leads from it to there.
fn is_about_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV
                | libc::ENXIO
                | libc::ENETDOWN
        )
    )
}

/// Length of a receive buffer: the longest train, and more than any datagram.
const CHUNK_LEN: usize = 65_536;
/// Receive buffers: trains that are decrypted before the next look at anything else, about half a millisecond's work.
const CHUNKS: usize = 8;

/// Bytes a batch of received datagrams has at most.
pub(crate) const MAX_RECEIVED_LEN: usize = CHUNKS * CHUNK_LEN;
/// Datagrams a batch has at most.
pub(crate) const MAX_RECEIVED: usize = CHUNKS * MAX_SEGMENTS as usize;

/// Received datagrams, cut out of their trains when they are asked for.
#[derive(Debug)]
pub(crate) struct ReceiveBatch {
    memory: Pages,
    received: Vec<Received>,
    next: usize,
    offset: usize,
}

impl ReceiveBatch {
    pub(crate) fn new() -> ReceiveBatch {
        ReceiveBatch { memory: Pages::new(MAX_RECEIVED_LEN), received: Vec::with_capacity(CHUNKS), next: 0, offset: 0 }
    }

    /// Receives what is there, in place of what was. Returns whether there may be more.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        (self.next, self.offset) = (0, 0);
        match cmsg::receive_messages(socket, &mut self.memory, CHUNK_LEN, &mut self.received) {
            Ok(()) => Ok(self.received.len() == CHUNKS),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }
}

impl DatagramSource for ReceiveBatch {
    #[inline]
    fn next_datagram(&mut self) -> Option<Datagram<'_>> {
        loop {
            let train = self.received.get(self.next)?;
            // An empty datagram is one too: it counts as malformed.
            if self.offset >= train.len.max(1) {
                self.next += 1;
                self.offset = 0;
                continue;
            }
            let step = if train.segment_len == 0 { train.len } else { train.segment_len };
            let start = self.next * CHUNK_LEN + self.offset;
            let end = self.next * CHUNK_LEN + train.len.min(self.offset + step);
            self.offset += step.max(1);
            return Some(Datagram { bytes: &self.memory[start..end], from: train.from, ecn: train.ecn });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use wg_core::DatagramSink;

    use super::*;

    fn put(batch: &mut OutBatch, to: &Endpoint, traffic_class: u8, bytes: &[u8]) {
        batch.reserve(to, traffic_class, bytes.len()).expect("there is room").copy_from_slice(bytes);
        batch.commit(bytes.len());
    }

    fn receiver() -> (UdpSocket, Endpoint) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = Endpoint::new(socket.local_addr().unwrap());
        (socket, to)
    }

    fn received(socket: &UdpSocket) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let len = socket.recv(&mut buffer).expect("a datagram within five seconds");
        buffer.truncate(len);
        buffer
    }

    fn train_lens(batch: &OutBatch) -> Vec<(usize, u32)> {
        batch.trains.iter().map(|train| (train.len, train.count)).collect()
    }

    #[test]
    fn datagrams_to_interleaved_endpoints_still_form_one_train_each() {
        let (a, b) = (Endpoint::new("192.0.2.1:1".parse().unwrap()), Endpoint::new("[fd00::1]:1".parse().unwrap()));
        let mut batch = OutBatch::new();
        for _ in 0..10 {
            put(&mut batch, &a, 0, &[1; 100]);
            put(&mut batch, &b, 0, &[2; 200]);
        }
        assert_eq!(train_lens(&batch), [(1000, 10), (2000, 10)]);
    }

    #[test]
    fn a_train_ends_with_a_shorter_datagram_before_a_longer_one_at_another_class_or_source_and_when_full() {
        let to = Endpoint::new("192.0.2.1:1".parse().unwrap());
        let mut moved = to;
        moved.source = Some(SourceAddr { ip: "192.0.2.9".parse().unwrap(), ifindex: 3 });
        let mut batch = OutBatch::new();
        put(&mut batch, &to, 0, &[0; 100]);
        put(&mut batch, &to, 0, &[0; 99]);
        put(&mut batch, &to, 0, &[0; 99]);
        put(&mut batch, &to, 0, &[0; 101]);
        put(&mut batch, &to, 1, &[0; 101]);
        put(&mut batch, &moved, 1, &[0; 101]);
        assert_eq!(train_lens(&batch), [(199, 2), (99, 1), (101, 1), (101, 1), (101, 1)]);
        batch.clear();
        for _ in 0..65 {
            put(&mut batch, &to, 0, &[0; 10]);
        }
        assert_eq!(train_lens(&batch), [(640, 64), (10, 1)]);
        batch.clear();
        for _ in 0..46 {
            put(&mut batch, &to, 0, &[0; 1452]);
        }
        assert_eq!(train_lens(&batch), [(45 * 1452, 45), (1452, 1)]);
    }

    #[test]
    fn a_reservation_that_is_not_committed_leaves_no_trace() {
        let (socket, to) = receiver();
        let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
        batch.reserve(&to, 0, 500).unwrap().fill(7);
        assert!(batch.is_empty());
        put(&mut batch, &to, 0, b"first");
        batch.reserve(&to, 0, 5).unwrap().fill(7);
        put(&mut batch, &to, 0, b"then");
        batch.reserve(&to, 0, 3).unwrap().fill(7);
        batch.send(&sockets, Instant::EPOCH);
        assert_eq!((received(&socket), received(&socket)), (b"first".to_vec(), b"then".to_vec()));
        put(&mut batch, &to, 0, b"end");
        batch.send(&sockets, Instant::EPOCH);
        assert_eq!(received(&socket), b"end");
    }

    #[test]
    fn a_full_batch_refuses_and_takes_again_once_sent() {
        let mut batch = OutBatch::new();
        let to = |port: usize| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port as u16 + 1)));
        for port in 0..MAX_TRAINS {
            put(&mut batch, &to(port), 0, &[1]);
        }
        assert!(batch.reserve(&to(MAX_TRAINS), 0, 1).is_none());
        assert!(batch.reserve(&to(7), 0, 1).is_some());
        assert!(batch.reserve(&to(7), 0, MAX_TRAIN_LEN + 1).is_none());
        batch.clear();
        assert!(batch.reserve(&to(MAX_TRAINS), 0, 1).is_some());
    }

    #[test]
    fn trains_arrive_datagram_by_datagram_with_ecn_and_the_address_they_were_sent_to() {
        let (from, to) = (UdpSockets::bind(0, 0).unwrap(), UdpSockets::bind(0, 0).unwrap());
        for (family, ip) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
            let endpoint = Endpoint::new(SocketAddr::new(ip.parse().unwrap(), to.port()));
            let mut batch = OutBatch::new();
            let datagrams: Vec<Vec<u8>> = (0..30_u8).map(|n| vec![n; if n == 29 { 9 } else { 1452 }]).collect();
            for datagram in &datagrams {
                put(&mut batch, &endpoint, 0b1011_1001, datagram);
            }
            let report = batch.send(&from, Instant::EPOCH);
            assert_eq!((report.failed, report.queue_full), (0, 0));
            let mut got = Vec::new();
            let mut receive = ReceiveBatch::new();
            while got.len() < datagrams.len() {
                receive.receive(to.fd_of(family).unwrap()).unwrap();
                while let Some(datagram) = receive.next_datagram() {
                    assert_eq!(datagram.ecn, 0b01);
                    assert_eq!(datagram.from.remote.port(), from.port());
                    assert_eq!(datagram.from.source.map(|source| source.ip), Some(endpoint.remote.ip()));
                    got.push(datagram.bytes.to_vec());
                }
            }
            assert_eq!(got, datagrams);
        }
    }

    #[test]
    fn a_source_address_that_is_gone_is_reported_and_nothing_is_lost() {
        // The kernel's words differ: no route for one family, an invalid argument for the other.
        for (home, gone) in [("127.0.0.1:0", "203.0.113.7"), ("[::1]:0", "2001:db8::7")] {
            let socket = UdpSocket::bind(home).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut to = Endpoint::new(socket.local_addr().unwrap());
            to.source = Some(SourceAddr { ip: gone.parse().unwrap(), ifindex: 1 });
            let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
            for _ in 0..3 {
                put(&mut batch, &to, 0, b"hello");
            }
            put(&mut batch, &to, 0, b"longer");
            let report = batch.send(&sockets, Instant::EPOCH);
            assert_eq!((report.failed, report.queue_full), (0, 0));
            assert_eq!(report.refused_sources, [to.remote]);
            for expected in ["hello", "hello", "hello", "longer"] {
                assert_eq!(received(&socket), expected.as_bytes());
            }
            // Trains were not to blame.
            assert!(batch.singly_until.is_empty());
        }
    }

    #[test]
    fn an_endpoint_that_is_refused_is_counted_and_touches_no_other() {
        let (socket, good) = receiver();
        let bad = Endpoint::new("127.0.0.1:0".parse().unwrap());
        let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
        for _ in 0..4 {
            put(&mut batch, &bad, 0, b"lost");
            put(&mut batch, &good, 0, b"sent");
        }
        let report = batch.send(&sockets, Instant::EPOCH);
        assert_eq!((report.failed, report.queue_full), (4, 0));
        for _ in 0..4 {
            assert_eq!(received(&socket), b"sent");
        }
        assert!(!batch.is_sent_singly(&good.remote, Instant::EPOCH));
    }

    #[test]
    fn a_train_that_is_refused_after_a_full_queue_is_split_and_its_source_not_blamed() {
        let (socket, to) = receiver();
        let sockets = UdpSockets::bind(0, 0).unwrap();
        // More datagrams than the kernel takes in a train.
        let message = Outgoing {
            bytes: &[7; 200],
            segment_len: 1,
            remote: to.remote,
            source: Some("127.0.0.1".parse().unwrap()),
            traffic_class: 0,
        };
        for first in [libc::EAGAIN, libc::EINTR, libc::EINVAL] {
            let mut send = Send { report: SendReport::default(), waited: Duration::ZERO, trouble: Vec::new() };
            let fd = sockets.fd_of(Family::V4).unwrap();
            send.rescue(fd, message, io::Error::from_raw_os_error(first));
            assert_eq!((send.report.failed, send.report.queue_full), (0, 0));
            assert!(send.report.refused_sources.is_empty());
            assert_eq!(send.trouble, [to.remote]);
            for _ in 0..200 {
                assert_eq!(received(&socket), [7]);
            }
        }
    }

    #[test]
    fn a_source_address_that_leads_elsewhere_is_reported_once_after_each_change_and_never_used() {
        let remote = "127.0.0.1:9".parse().unwrap();
        let mut batch = OutBatch::new();
        let mut check = |ifindex, version| {
            let mut to = Endpoint::new(remote);
            to.source = Some(SourceAddr { ip: "127.0.0.1".parse().unwrap(), ifindex });
            batch.clear();
            put(&mut batch, &to, 0, b"hello");
            let outdated = batch.check_sources(version, 0);
            (outdated, batch.trains[0].to.source)
        };
        // The first link is the loopback one.
        let used = Some(SourceAddr { ip: "127.0.0.1".parse().unwrap(), ifindex: 1 });
        assert_eq!(check(1, 1), (vec![], used));
        for version in [1, 2] {
            assert_eq!(check(77, version), (vec![remote], None));
            assert_eq!(check(77, version), (vec![], None));
            assert_eq!(check(1, version), (vec![], used));
        }
    }

    #[test]
    fn an_endpoint_that_takes_no_trains_is_sent_single_datagrams_until_it_is_tried_again() {
        let (socket, to) = receiver();
        let (sockets, mut batch) = (UdpSockets::bind(0, 0).unwrap(), OutBatch::new());
        batch.singly_until.insert(to.remote, Instant::EPOCH + SINGLY_FOR);
        put(&mut batch, &to, 0, b"one");
        put(&mut batch, &to, 0, b"two");
        put(&mut batch, &to, 0, b"3");
        let at = |now| Messages { batch: &batch, family: Family::V4, train: 0, offset: 0, now };
        assert_eq!(at(Instant::EPOCH).map(|message| message.segment_len).collect::<Vec<_>>(), [0, 0, 0]);
        assert_eq!(at(Instant::EPOCH + SINGLY_FOR).map(|message| message.segment_len).collect::<Vec<_>>(), [3]);
        batch.send(&sockets, Instant::EPOCH);
        assert_eq!([received(&socket), received(&socket), received(&socket)].concat(), b"onetwo3");
    }
}
