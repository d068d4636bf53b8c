//! Owns the packet path of one interface: wait, read a batch, engine, write a batch. Knows nothing of links, ports or
//! keys; `control.rs` does.
//!
//! One round:
//! 1. `pump_tun`: read frames until the device is empty or there is enough for one batch; encrypt; send the trains.
//! 2. `pump_udp`: receive trains, at most half a millisecond's work; decrypt; write super-packets; send what that set
//!    free.
//! 3. Deadlines that are due.
//!
//! Queues: what was read is sent before more is read, so that nothing waits here longer than one round; a full socket
//! is waited for, for 10 ms at most. The two directions share nothing but the engine and may move to threads of their
//! own, or be there several times.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wg_core::{BatchReport, DropReason, Instant};

use crate::batch::{OutBatch, ReceiveBatch, SendReport};
use crate::cmsg::{self, Epoll, Ready};
use crate::control;
use crate::device::Shared;
use crate::offload::{CoalesceBatch, SplitBatch, VirtioHeader, for_each_packet};
use crate::tun::Tun;
use crate::udp::UdpSockets;

const WAKE: u64 = 0;
const TUN: u64 = 1;
/// The first socket; the others follow.
const UDP: u64 = 2;

/// Rounds before the wake descriptor and the deadlines are looked at again although there is more to do.
const MAX_ROUNDS: usize = 8;
/// How often the engine is told the wall clock while packets pass.
const WALL_CLOCK_EVERY: Duration = Duration::from_secs(1);

/// The state of one worker thread.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    epoll: Epoll,
    sockets: Option<Arc<UdpSockets>>,
    sockets_version: u64,
    outbound: Outbound,
    inbound: Inbound,
    wall_clock_at: Option<Instant>,
}

/// From the TUN device to the network.
struct Outbound {
    packets: SplitBatch,
    out: OutBatch,
}

/// From the network to the TUN device.
struct Inbound {
    datagrams: ReceiveBatch,
    up: CoalesceBatch,
    out: OutBatch,
}

/// Whether a direction has more to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pumped {
    Dry,
    More,
    /// The TUN device has ended.
    Ended,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Worker> {
        let epoll = Epoll::new()?;
        epoll.add(shared.worker_wake.as_fd(), WAKE)?;
        epoll.add(shared.tun.as_fd(), TUN)?;
        let header_len = shared.tun.header_len();
        let joined_kinds = shared.tun.joined_kinds();
        Ok(Worker {
            shared,
            epoll,
            sockets: None,
            sockets_version: 0,
            outbound: Outbound { packets: SplitBatch::new(header_len), out: OutBatch::new() },
            inbound: Inbound {
                datagrams: ReceiveBatch::new(),
                up: CoalesceBatch::new(joined_kinds),
                out: OutBatch::new(),
            },
            wall_clock_at: None,
        })
    }

    /// Runs until the device is dropped.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut ready = [Ready::default(); 8];
        // Bit n: token n is ready.
        let mut pending = 0_u64;
        while !self.shared.is_stopping.load(Ordering::Acquire) {
            let timeout = if pending == 0 { self.time_to_deadline() } else { Some(Duration::ZERO) };
            let ready = self.epoll.wait(&mut ready, timeout)?;
            // Sockets that were there before a packet came are used for it.
            if self.take_sockets()? {
                pending &= 1 << TUN;
            }
            for event in ready {
                match event.token {
                    WAKE => self.shared.worker_wake.drain(),
                    TUN if event.is_error => self.end_tun(),
                    token => pending |= 1 << token,
                }
            }
            let now = cmsg::boot_clock();
            self.tell_wall_clock(now);
            let mut report = BatchReport::default();
            for _ in 0..MAX_ROUNDS {
                if pending == 0 {
                    break;
                }
                pending = self.round(pending, &mut report, now);
            }
            self.meet_deadlines(&mut report, now);
            if report.handshakes_waiting {
                self.shared.control_wake.notify();
            }
            control::log_events(&self.shared);
        }
        Ok(())
    }

    /// One turn for everything that is ready. Returns what has more.
    fn round(&mut self, pending: u64, report: &mut BatchReport, now: Instant) -> u64 {
        let mut more = 0;
        let sockets = self.sockets.as_deref();
        if pending & (1 << TUN) != 0 {
            match pump_tun(&self.shared, sockets, &mut self.outbound, report, now) {
                Pumped::Dry => {}
                Pumped::More => more |= 1 << TUN,
                Pumped::Ended => self.end_tun(),
            }
        }
        let Some(sockets) = self.sockets.as_deref() else { return more };
        for (token, socket) in (UDP..).zip(sockets.fds()) {
            if pending & (1 << token) != 0
                && pump_udp(&self.shared, sockets, socket, &mut self.inbound, report, now) == Pumped::More
            {
                more |= 1 << token;
            }
        }
        more
    }

    fn meet_deadlines(&mut self, report: &mut BatchReport, now: Instant) {
        let engine = &self.shared.engine;
        while engine.poll_timeout().is_some_and(|at| at <= now) {
            let due = engine.handle_timeout(&mut self.outbound.out, now);
            merge(report, due);
            flush(&self.shared, &mut self.outbound.out, self.sockets.as_deref(), now);
            if due.taken == 0 {
                break;
            }
        }
    }

    fn time_to_deadline(&self) -> Option<Duration> {
        let at = self.shared.engine.poll_timeout()?;
        Some(at.since(cmsg::boot_clock()))
    }

    fn tell_wall_clock(&mut self, now: Instant) {
        if self.wall_clock_at.is_none_or(|told| now.since(told) >= WALL_CLOCK_EVERY) {
            self.wall_clock_at = Some(now);
            control::tell_wall_clock(&self.shared.engine, now);
        }
    }

    /// Takes over new sockets, if there are any; the old ones close when nobody uses them any more. Returns whether
    /// there were.
    fn take_sockets(&mut self) -> io::Result<bool> {
        let (version, sockets) = self.shared.sockets.newer_than(self.sockets_version);
        if version == self.sockets_version {
            return Ok(false);
        }
        for fd in self.sockets.iter().flat_map(|sockets| sockets.fds()) {
            self.epoll.remove(fd);
        }
        self.sockets = sockets;
        self.sockets_version = version;
        let fds = self.sockets.iter().flat_map(|sockets| sockets.fds());
        (UDP..).zip(fds).try_for_each(|(token, fd)| self.epoll.add(fd, token))?;
        Ok(true)
    }

    /// The control thread finds out what happened to the device; here it would only be ready for ever.
    fn end_tun(&self) {
        self.epoll.remove(self.shared.tun.as_fd());
        self.shared.tun_ended.store(true, Ordering::Release);
        self.shared.control_wake.notify();
    }
}

/// Reads one batch from the TUN device and sends what becomes of it.
fn pump_tun(
    shared: &Shared,
    sockets: Option<&UdpSockets>,
    outbound: &mut Outbound,
    report: &mut BatchReport,
    now: Instant,
) -> Pumped {
    let Outbound { packets, out } = outbound;
    packets.clear();
    let pumped = read_frames(&shared.tun, packets);
    while !packets.is_empty() {
        let batch = shared.engine.handle_packets(packets, out, now);
        merge(report, batch);
        flush(shared, out, sockets, now);
        if batch.dropped > 0 {
            answer_refused(shared);
        }
        if packets.is_exhausted() {
            break;
        }
    }
    let malformed = packets.take_malformed();
    if malformed > 0 {
        shared.engine.count_drop(DropReason::MalformedPacket, malformed);
    }
    pumped
}

/// Tells local senders which packets could go nowhere.
fn answer_refused(shared: &Shared) {
    let header_len = shared.tun.header_len();
    while let Some(error) = shared.engine.poll_refusal() {
        let mut frame = vec![0; header_len];
        frame.extend_from_slice(&error);
        // The sender is none the wiser if the device does not take it.
        let _ = write_frame(&shared.tun, &frame);
    }
}

fn read_frames(tun: &Tun, packets: &mut SplitBatch) -> Pumped {
    while let Some(space) = packets.space() {
        match tun.read(space) {
            Ok(len) => packets.push(len),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EBADFD | libc::EBADF | libc::ENODEV) => return Pumped::Ended,
                _ => return Pumped::Dry,
            },
        }
    }
    Pumped::More
}

/// Receives one batch from a socket, writes the packets to the TUN device and sends what they set free.
fn pump_udp(
    shared: &Shared,
    sockets: &UdpSockets,
    socket: BorrowedFd<'_>,
    inbound: &mut Inbound,
    report: &mut BatchReport,
    now: Instant,
) -> Pumped {
    let Inbound { datagrams, up, out } = inbound;
    let pumped = match datagrams.receive(socket) {
        Ok(true) => Pumped::More,
        // An error here is one that an earlier datagram left; there is nothing to do about it.
        Ok(false) | Err(_) => Pumped::Dry,
    };
    if !datagrams.is_empty() {
        up.clear(now);
        merge(report, shared.engine.handle_datagrams(datagrams, up, out, now));
        write_frames(shared, up, now);
        flush(shared, out, Some(sockets), now);
    }
    pumped
}

fn write_frames(shared: &Shared, up: &mut CoalesceBatch, now: Instant) {
    let header_len = shared.tun.header_len();
    let mut failed = 0;
    let mut refused = None;
    while let Some(frame) = up.next_frame(header_len) {
        let Err(error) = write_frame(&shared.tun, frame.bytes) else { continue };
        match frame.joined {
            Some(kind) if error.raw_os_error() == Some(libc::EINVAL) => {
                refused = Some(kind);
                failed += write_singly(&shared.tun, &mut frame.bytes[header_len..], frame.header, header_len);
            }
            _ => failed += u64::from(frame.count),
        }
    }
    if let Some(kind) = refused {
        tracing::warn!(?kind, "the kernel refused a super-packet: packets of this kind are written singly for a while");
        up.suspend(kind, now);
    }
    if failed > 0 {
        shared.engine.count_drop(DropReason::DeviceWriteFailed, failed);
    }
}

fn write_frame(tun: &Tun, frame: &[u8]) -> io::Result<()> {
    loop {
        match tun.write(frame) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes the packets of a refused super-packet one by one. Returns how many were refused too.
fn write_singly(tun: &Tun, packet: &mut [u8], header: VirtioHeader, header_len: usize) -> u64 {
    let mut failed = 0;
    let mut frame = Vec::new();
    for_each_packet(packet, header, |packet| {
        frame.clear();
        frame.resize(header_len, 0);
        frame.extend_from_slice(packet);
        failed += u64::from(write_frame(tun, &frame).is_err());
    });
    failed
}

/// Sends a batch and counts what could not be sent.
pub(crate) fn flush(shared: &Shared, out: &mut OutBatch, sockets: Option<&UdpSockets>, now: Instant) {
    if out.is_empty() {
        return;
    }
    let engine = &shared.engine;
    let routes_version = shared.routes_version.load(Ordering::Relaxed);
    let mut refused = out.check_sources(routes_version, sockets.map_or(0, UdpSockets::mark));
    let report = match sockets {
        Some(sockets) => out.send(sockets, now),
        None => SendReport { failed: out.clear(), ..SendReport::default() },
    };
    if report.failed > 0 {
        engine.count_drop(DropReason::SendFailed, report.failed);
    }
    if report.queue_full > 0 {
        engine.count_drop(DropReason::SendQueueFull, report.queue_full);
    }
    refused.extend(report.refused_sources);
    if !refused.is_empty() {
        engine.forget_sources_of(&refused);
    }
}

fn merge(total: &mut BatchReport, report: BatchReport) {
    total.taken += report.taken;
    total.passed += report.passed;
    total.staged += report.staged;
    total.dropped += report.dropped;
    total.handshakes_waiting |= report.handshakes_waiting;
    total.deadline_moved |= report.deadline_moved;
}
