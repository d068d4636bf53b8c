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
//! is waited for, for 10 ms at most. Workers share nothing but the engine: each has its own queue of the device, its own
//! sockets and its own buffers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wg_core::{BatchReport, DropReason, Instant};

use crate::batch::{OutBatch, ReceiveBatch, SendReport};
use crate::cmsg::{self, Epoll, Ready, Timer};
use crate::control;
use crate::device::{Shared, WorkerSockets};
use crate::load::{Boost, Load, MAX_TURN, Turn};
use crate::offload::{CoalesceBatch, SplitBatch, VirtioHeader, for_each_packet};
use crate::tun::TunQueue;
use crate::udp::UdpSockets;

const WAKE: u64 = 0;
const TIMER: u64 = 1;
const TUN: u64 = 2;
/// The first socket; the others follow.
const UDP: u64 = 3;

/// Rounds before the wake descriptor and the deadlines are looked at again although there is more to do.
const MAX_ROUNDS: usize = 8;
/// How often the engine is told the wall clock while packets pass.
const WALL_CLOCK_EVERY: Duration = Duration::from_secs(1);

/// The state of one worker thread.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// 0 is the one that meets deadlines.
    index: usize,
    queue: TunQueue,
    epoll: Epoll,
    timer: Timer,
    /// When the timer rings.
    timer_at: Option<Instant>,
    sockets: Option<WorkerSockets>,
    sockets_version: u64,
    outbound: Outbound,
    inbound: Inbound,
    wall_clock_at: Option<Instant>,
    load: Load,
    boost: Boost,
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
    /// To be run on a thread of its own, with a queue of its own.
    pub(crate) fn new(shared: Arc<Shared>, index: usize, queue: TunQueue) -> io::Result<Worker> {
        let epoll = Epoll::new()?;
        epoll.add(shared.workers.wake_fd(index).as_fd(), WAKE)?;
        epoll.add(queue.as_fd(), TUN)?;
        let timer = Timer::new()?;
        epoll.add(timer.as_fd(), TIMER)?;
        let header_len = shared.tun.header_len();
        let joined_kinds = shared.tun.joined_kinds();
        let boost = Boost::new(shared.is_realtime);
        Ok(Worker {
            shared,
            index,
            queue,
            epoll,
            timer,
            timer_at: None,
            sockets: None,
            sockets_version: 0,
            outbound: Outbound { packets: SplitBatch::new(header_len), out: OutBatch::new() },
            inbound: Inbound {
                datagrams: ReceiveBatch::new(),
                up: CoalesceBatch::new(joined_kinds),
                out: OutBatch::new(),
            },
            wall_clock_at: None,
            load: Load::new(cmsg::boot_clock()),
            boost,
        })
    }

    /// Runs until the device is dropped.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut ready = [Ready::default(); 8];
        // Bit n: token n is ready.
        let mut pending = 0_u64;
        let (mut woken, mut packets) = (cmsg::boot_clock(), 0);
        while !self.shared.is_stopping.load(Ordering::Acquire) {
            self.set_timer()?;
            let timeout = (pending != 0).then_some(Duration::ZERO);
            let before = cmsg::boot_clock();
            self.schedule(Turn { worked: before.since(woken), packets }, before);
            let ready = self.epoll.wait(&mut ready, timeout)?;
            let now = cmsg::boot_clock();
            woken = now;
            self.load.add_sleep(now.since(before));
            // Sockets that were there before a packet came are used for it.
            if self.take_sockets()? {
                pending &= 1 << TUN;
            }
            for event in ready {
                match event.token {
                    TIMER => {
                        self.timer.drain();
                        self.timer_at = None;
                    }
                    WAKE => self.shared.workers.wake_fd(self.index).drain(),
                    TUN if event.is_error => self.end_tun(),
                    token => pending |= 1 << token,
                }
            }
            self.tell_wall_clock(now);
            let mut report = BatchReport::default();
            for _ in 0..MAX_ROUNDS {
                let now = cmsg::boot_clock();
                // Sockets that were replaced close when the last worker lets go of them.
                if pending == 0 || now.since(woken) > MAX_TURN || self.shared.sockets.version() != self.sockets_version
                {
                    break;
                }
                pending = self.round(pending, &mut report, now);
            }
            if self.index == 0 {
                self.meet_deadlines(&mut report, now);
            } else if report.deadline_moved {
                self.shared.workers.wake_first();
            }
            if self.shared.workers.limit() > 1 && self.load.is_busy(now) {
                self.shared.workers.is_busy.store(true, Ordering::Release);
                self.shared.control_wake.notify();
            }
            if report.handshakes_waiting {
                self.shared.control_wake.notify();
            }
            packets = report.taken as u64;
            control::log_events(&self.shared);
        }
        Ok(())
    }

    /// One turn for everything that is ready. Returns what has more.
    fn round(&mut self, pending: u64, report: &mut BatchReport, now: Instant) -> u64 {
        let mut more = 0;
        let sockets = self.sockets.as_ref().map(|own| &*own.sockets);
        if pending & (1 << TUN) != 0 {
            match pump_tun(&self.shared, &self.queue, sockets, &mut self.outbound, report, now) {
                Pumped::Dry => {}
                Pumped::More => more |= 1 << TUN,
                Pumped::Ended => self.end_tun(),
            }
        }
        let Some(WorkerSockets { sockets, receives: true }) = &self.sockets else { return more };
        for (token, socket) in (UDP..).zip(sockets.fds()) {
            if pending & (1 << token) != 0
                && pump_udp(&self.shared, &self.queue, sockets, socket, &mut self.inbound, report, now) == Pumped::More
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
            let sockets = self.sockets.as_ref().map(|own| &*own.sockets);
            flush(&self.shared, &mut self.outbound.out, sockets, now);
            if due.taken == 0 {
                break;
            }
        }
    }

    /// Sets the timer if a deadline is earlier; a later one is found out when it rings. So no timer is touched while
    /// packets pass.
    fn set_timer(&mut self) -> io::Result<()> {
        if self.index != 0 {
            return Ok(());
        }
        let Some(at) = self.shared.engine.poll_timeout() else { return Ok(()) };
        if self.timer_at.is_none_or(|set| at < set) {
            self.timer.set(at)?;
            self.timer_at = Some(at);
        }
        Ok(())
    }

    fn schedule(&mut self, turn: Turn, now: Instant) {
        if let Some(scheduling) = self.boost.spend(turn, now)
            && let Err(error) = cmsg::set_scheduling(scheduling)
        {
            tracing::debug!(%error, ?scheduling, "the worker is scheduled like everybody else");
            self.boost.give_up();
        }
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
        let (version, sockets) = self.shared.sockets.newer_than(self.sockets_version, self.index);
        if version == self.sockets_version {
            return Ok(false);
        }
        for fd in received_from(&self.sockets) {
            self.epoll.remove(fd);
        }
        self.sockets = sockets;
        self.sockets_version = version;
        (UDP..).zip(received_from(&self.sockets)).try_for_each(|(token, fd)| self.epoll.add(fd, token))?;
        Ok(true)
    }

    /// The control thread finds out what happened to the device; here it would only be ready for ever.
    fn end_tun(&self) {
        self.epoll.remove(self.queue.as_fd());
        self.shared.tun_ended.store(true, Ordering::Release);
        self.shared.control_wake.notify();
    }
}

/// The sockets to receive from, if any.
fn received_from(sockets: &Option<WorkerSockets>) -> impl Iterator<Item = BorrowedFd<'_>> {
    sockets.iter().filter(|own| own.receives).flat_map(|own| own.sockets.fds())
}

/// Reads one batch from the TUN device and sends what becomes of it.
fn pump_tun(
    shared: &Shared,
    queue: &TunQueue,
    sockets: Option<&UdpSockets>,
    outbound: &mut Outbound,
    report: &mut BatchReport,
    now: Instant,
) -> Pumped {
    let Outbound { packets, out } = outbound;
    packets.clear();
    let pumped = read_frames(queue, packets);
    while !packets.is_empty() {
        let batch = shared.engine.handle_packets(packets, out, now);
        merge(report, batch);
        flush(shared, out, sockets, now);
        if batch.dropped > 0 {
            answer_refused(shared, queue);
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
fn answer_refused(shared: &Shared, queue: &TunQueue) {
    let header_len = shared.tun.header_len();
    while let Some(error) = shared.engine.poll_refusal() {
        let mut frame = vec![0; header_len];
        frame.extend_from_slice(&error);
        // The sender is none the wiser if the device does not take it.
        let _ = write_frame(queue, &frame);
    }
}

fn read_frames(queue: &TunQueue, packets: &mut SplitBatch) -> Pumped {
    while let Some(space) = packets.space() {
        match queue.read(space) {
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
    queue: &TunQueue,
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
        write_frames(shared, queue, up, now);
        flush(shared, out, Some(sockets), now);
    }
    pumped
}

fn write_frames(shared: &Shared, queue: &TunQueue, up: &mut CoalesceBatch, now: Instant) {
    let header_len = shared.tun.header_len();
    let mut failed = 0;
    let mut refused = None;
    while let Some(frame) = up.next_frame(header_len) {
        let Err(error) = write_frame(queue, frame.bytes) else { continue };
        match frame.joined {
            Some(kind) if error.raw_os_error() == Some(libc::EINVAL) => {
                refused = Some(kind);
                failed += write_singly(queue, &mut frame.bytes[header_len..], frame.header, header_len);
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

fn write_frame(queue: &TunQueue, frame: &[u8]) -> io::Result<()> {
    loop {
        match queue.write(frame) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes the packets of a refused super-packet one by one. Returns how many were refused too.
fn write_singly(queue: &TunQueue, packet: &mut [u8], header: VirtioHeader, header_len: usize) -> u64 {
    let mut failed = 0;
    let mut frame = Vec::new();
    for_each_packet(packet, header, |packet| {
        frame.clear();
        frame.resize(header_len, 0);
        frame.extend_from_slice(packet);
        failed += u64::from(write_frame(queue, &frame).is_err());
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
