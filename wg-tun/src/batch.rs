//! Owns many datagrams per system call, in both directions, in per-peer order: trains laid out in memory as the kernel
//! takes and gives them (`UDP_SEGMENT`, `UDP_GRO`), and what is tried when the kernel refuses one.
//!
//! A **train** is a run of datagrams to one endpoint with one traffic class, of equal length but for a shorter last
//! one, one behind the other. One train per endpoint is open at a time; a datagram that does not fit ends it and begins
//! the next, so that the order towards one peer is the order of `reserve`.
//!
//! What the kernel refuses, `send.rs` finds a way for; `singly.rs` remembers it, endpoint by endpoint.

mod receive;
mod send;
mod singly;
mod source;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;

use wg_core::{DatagramSink, Endpoint, Instant};

pub(crate) use self::receive::{MAX_RECEIVED, MAX_RECEIVED_LEN, ReceiveBatch};
pub(crate) use self::send::SendReport;
use self::send::{Messages, Send, send_all};
use self::singly::Singly;
use self::source::{SourceCheck, Verdict};
use crate::cmsg::Pages;
use crate::udp::{Family, UdpSockets};

/// Datagrams in a train: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_SEGMENTS: u32 = 64;
/// Bytes in a train: the largest UDP payload over IPv4.
const MAX_TRAIN_LEN: usize = 65_507;
/// Distance of trains in memory. Not a power of two, so that their heads do not compete for one cache set.
const TRAIN_STRIDE: usize = 65_536 + 4_160;
/// Trains in a batch. A batch of 64 packets to 64 peers needs 64; what a new session sets free, two or three, or in the
/// worst case, lengths that alternate, 128. What finds no room is counted.
const MAX_TRAINS: usize = 256;

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
    singly: Singly,
    sources: SourceCheck,
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

impl OutBatch {
    pub(crate) fn new() -> OutBatch {
        OutBatch {
            memory: Pages::new(MAX_TRAINS * TRAIN_STRIDE),
            trains: Vec::new(),
            recent: 0,
            open: HashMap::new(),
            reserved: None,
            singly: Singly::default(),
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
        self.sources.begin(version, mark);
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
        let mut send = Send::default();
        for family in [Family::V4, Family::V6] {
            let is_there = |train: &&Train| train.count > 0 && Family::of(train.to.remote) == family;
            if !self.trains.iter().any(|train| is_there(&train)) {
                continue;
            }
            match sockets.fd_of(family) {
                Some(socket) => {
                    let messages = Messages::new(self, family, sockets.takes_trains(), now);
                    send_all(socket, messages, &mut send);
                }
                None => {
                    let count: u64 = self.trains.iter().filter(is_there).map(|train| u64::from(train.count)).sum();
                    send.report.failed += count;
                }
            }
        }
        self.clear();
        for (remote, segment_len) in send.refused_trains {
            self.singly.remember(remote, segment_len, now);
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
