//! Owns how a batch is handed to the kernel, and what is tried when it refuses a message.
//!
//! In this order, for that message alone: wait while the socket is full; a train's datagrams singly (and singly from the
//! start for that endpoint, for a minute); without our source address; once more for an error that an earlier datagram
//! left at the socket. What then remains is counted and dropped: a firewall's or a route's refusal is no reason to try
//! anything else.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use wg_core::{Instant, SourceAddr};

use super::{OutBatch, TRAIN_STRIDE};
use crate::cmsg::{self, Outgoing};
use crate::udp::Family;

/// How long a batch waits for full sockets, altogether, before it drops: no queue of ours grows meanwhile, but nothing
/// is received either.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(10);
/// One wait; the kernel calls a socket writable only when half its buffer is free, so ask again before that.
const WAIT_STEP: Duration = Duration::from_millis(1);

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

/// The messages of one family that are still to be sent: trains, or the datagrams of those that must go singly.
#[derive(Clone, Copy)]
pub(super) struct Messages<'a> {
    batch: &'a OutBatch,
    family: Family,
    train: usize,
    offset: usize,
    takes_trains: bool,
    now: Instant,
}

impl<'a> Messages<'a> {
    pub(super) fn new(batch: &'a OutBatch, family: Family, takes_trains: bool, now: Instant) -> Messages<'a> {
        Messages { batch, family, train: 0, offset: 0, takes_trains, now }
    }
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
            let is_single = train.count == 1
                || !self.takes_trains
                || self.batch.singly.applies(&train.to.remote, train.segment_len, self.now);
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

/// Sends all that there is of one family.
pub(super) fn send_all(socket: BorrowedFd<'_>, mut messages: Messages<'_>, send: &mut Send) {
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

/// The message without its source address, if that was refused earlier in the same batch.
fn without<'a>(refused: &[SocketAddr], message: Outgoing<'a>) -> Outgoing<'a> {
    let source = message.source.filter(|_| !refused.contains(&message.remote));
    Outgoing { source, ..message }
}

/// One run of `OutBatch::send`.
#[derive(Default)]
pub(super) struct Send {
    pub(super) report: SendReport,
    pub(super) waited: Duration,
    /// Endpoints that were refused a train but take its datagrams, and how long those were; 0 if that does not matter.
    pub(super) refused_trains: Vec<(SocketAddr, usize)>,
}

enum Refusal {
    /// It is a train, which may be what is wrong with it.
    Train(io::Error),
    QueueFull,
    Failed,
}

impl Send {
    /// Finds a way for a message that the kernel refused.
    pub(super) fn rescue(&mut self, socket: BorrowedFd<'_>, message: Outgoing<'_>, error: io::Error) {
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
        let (failed_before, mut count) = (self.report.failed, 0);
        let mut rest = train;
        for bytes in train.bytes.chunks(usize::from(train.segment_len)) {
            count += 1;
            let single = Outgoing { bytes, segment_len: 0, ..rest };
            if let Err(error) = cmsg::send_messages(socket, std::iter::once(single)) {
                self.rescue(socket, single, error);
            }
            rest = without(&self.report.refused_sources, rest);
        }
        // EINVAL may have meant the source address, or any datagram to there; then trains are not to blame.
        let source_was_refused = train.source.is_some() && rest.source.is_none();
        if source_was_refused || self.report.failed - failed_before == count {
            return;
        }
        let segment_len = if is_about_length(&error) { usize::from(train.segment_len) } else { 0 };
        if !self.refused_trains.contains(&(train.remote, segment_len)) {
            tracing::debug!(remote = %train.remote, segment_len, %error, "sends single datagrams for a while");
            self.refused_trains.push((train.remote, segment_len));
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

/// A train of shorter datagrams may be taken: they do not fit the path. Linux before 6.15 calls that an invalid argument;
/// if it is another one, the shorter train is refused too.
fn is_about_length(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL))
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
