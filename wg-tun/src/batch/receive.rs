//! Owns received datagrams: trains as the kernel joined them, cut into datagrams when they are asked for.

use std::io;
use std::os::fd::BorrowedFd;

use wg_core::{Datagram, DatagramSource};

use crate::cmsg::{self, Pages, Received};

/// Length of a receive buffer: the longest train, and more than any datagram.
const CHUNK_LEN: usize = 65_536;
/// Receive buffers: trains that are decrypted before the next look at anything else, about half a millisecond's work.
const CHUNKS: usize = 8;

/// Bytes a batch of received datagrams has at most.
pub(crate) const MAX_RECEIVED_LEN: usize = CHUNKS * CHUNK_LEN;
/// Datagrams a batch has at most.
pub(crate) const MAX_RECEIVED: usize = CHUNKS * MAX_RECEIVED_SEGMENTS;
/// Datagrams in a received train: the kernel joins 64, and one that was sent as a train on this host arrives as it is,
/// with up to 128 since Linux 6.9.
const MAX_RECEIVED_SEGMENTS: usize = 128;

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

    #[cfg(test)]
    pub(super) fn datagrams_per_message(&self) -> impl Iterator<Item = usize> {
        self.received.iter().map(|train| if train.segment_len == 0 { 1 } else { train.len.div_ceil(train.segment_len) })
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
