//! The way in: datagrams become inner packets for the TUN device; handshakes are queued for their own thread.
//!
//! 1. Classify by message type and exact length, before anything else looks at the bytes.
//! 2. Transport data: find the peer by receiver index; for each run of messages from one peer lock it once.
//! 3. Per message: reserve, open in place, check the inner lengths and the source, carry the congestion mark, commit.
//! 4. At the end of a run: endpoint, counters, timers; if a session was confirmed, the staged packets leave.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::{Engine, Tables, Wish};
use crate::batch::{BatchReport, Datagram, DatagramSink, DatagramSource, Endpoint, PacketSink};
use crate::error::DropReason;
use crate::packet::ip::{IpPacket, set_congestion_experienced};
use crate::packet::message::{Message, TransportData};
use crate::peer::{Hot, Peer};
use crate::time::Instant;

/// The outer ECN field of a datagram that met congestion. RFC 3168 5.
const CONGESTION_EXPERIENCED: u8 = 0b11;

impl Engine {
    /// Decrypts a batch of datagrams into `up`; queues handshakes; sends to `out` what a confirmed session sets free.
    ///
    /// Packets from one peer are delivered in the order they came. Whatever does not authenticate is dropped, counted,
    /// and has no other effect.
    pub fn handle_datagrams(
        &self,
        datagrams: &mut impl DatagramSource,
        up: &mut impl PacketSink,
        out: &mut impl DatagramSink,
        now: Instant,
    ) -> BatchReport {
        let mut report = BatchReport::default();
        let tables = self.tables.read();
        let mut run: Option<InboundRun<'_>> = None;
        while let Some(datagram) = datagrams.next_datagram() {
            report.taken += 1;
            let outcome = match Message::parse(datagram.bytes) {
                _ if !self.is_up() => Err(DropReason::InterfaceDown),
                None => Err(DropReason::MalformedMessage),
                Some(Message::TransportData(data)) => {
                    let current = match (run.take(), self.find(&tables, data.receiver_index())) {
                        (Some(run), Some(peer)) if run.peer.id == peer.id => Some(run),
                        (ended, found) => {
                            if let Some(ended) = ended {
                                ended.end(self, out, &mut report, now);
                            }
                            found.map(InboundRun::begin)
                        }
                    };
                    run = current;
                    match &mut run {
                        Some(run) => run.receive(&tables, &data, &datagram, up, now),
                        None => Err(DropReason::UnknownIndex),
                    }
                }
                Some(Message::CookieReply(reply)) => {
                    if let Some(ended) = run.take() {
                        ended.end(self, out, &mut report, now);
                    }
                    self.receive_cookie_reply(&tables, reply.receiver_index(), datagram.bytes, now)
                }
                Some(Message::Initiation(_) | Message::Response(_)) => {
                    self.queue_handshake(datagram.bytes, datagram.from, now).inspect(|()| {
                        report.handshakes_waiting = true;
                    })
                }
            };
            match outcome {
                Ok(()) => report.passed += 1,
                Err(reason) => {
                    report.dropped += 1;
                    match &mut run {
                        Some(run) if run.is_to_blame_for(reason) => self.drop_for(&mut run.hot, reason, 1),
                        _ => self.count_drop(reason, 1),
                    }
                }
            }
        }
        if let Some(ended) = run {
            ended.end(self, out, &mut report, now);
        }
        report
    }

    /// The peer behind a receiver index. An index of an earlier tunnel of the same slot is found out later.
    #[inline]
    fn find<'a>(&self, tables: &'a Tables, receiver_index: u32) -> Option<&'a Peer> {
        let (slot, _) = self.indices.find(receiver_index >> 8);
        tables.slot(slot).map(|peer| &**peer)
    }

    fn receive_cookie_reply(
        &self,
        tables: &Tables,
        receiver_index: u32,
        message: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        let peer = self.find(tables, receiver_index).ok_or(DropReason::UnknownIndex)?;
        let mut hot = peer.hot.lock();
        let live = hot.live.as_mut().ok_or(DropReason::UnknownIndex)?;
        if live.tunnel.index() != receiver_index >> 8 {
            return Err(DropReason::UnknownIndex);
        }
        live.tunnel.receive_cookie_reply(message, now)
    }

    /// Lets an initiation or response wait for the handshake thread, if it was made for our key.
    fn queue_handshake(&self, message: &[u8], from: Endpoint, now: Instant) -> Result<(), DropReason> {
        let is_for_us = self.identity.read().as_ref().is_some_and(|identity| identity.verify_mac1(message));
        if !is_for_us {
            return Err(DropReason::BadMac1);
        }
        if self.load.lock().push(message, from, now) { Ok(()) } else { Err(DropReason::HandshakeQueueFull) }
    }
}

/// Consecutive transport data from one peer, whose lock is held meanwhile.
struct InboundRun<'a> {
    peer: &'a Peer,
    hot: MutexGuard<'a, Hot>,
    /// Where the last authentic message came from.
    from: Option<Endpoint>,
    authentic_bytes: u64,
    data_messages: u64,
    delivered_packets: u64,
    delivered_bytes: u64,
    confirmed: bool,
}

impl<'a> InboundRun<'a> {
    fn begin(peer: &'a Peer) -> Self {
        InboundRun {
            peer,
            hot: peer.hot.lock(),
            from: None,
            authentic_bytes: 0,
            data_messages: 0,
            delivered_packets: 0,
            delivered_bytes: 0,
            confirmed: false,
        }
    }

    /// Whether a drop is the doing of this run's peer, and not of somebody who guessed an index.
    fn is_to_blame_for(&self, reason: DropReason) -> bool {
        matches!(
            reason,
            DropReason::MalformedInner
                | DropReason::SourceNotAllowed
                | DropReason::SourceOwnedByOtherPeer
                | DropReason::SessionExpired
                | DropReason::Replay
                | DropReason::SinkFull
        )
    }

    #[inline]
    fn receive(
        &mut self,
        tables: &Tables,
        data: &TransportData<'_>,
        datagram: &Datagram<'_>,
        up: &mut impl PacketSink,
        now: Instant,
    ) -> Result<(), DropReason> {
        let live = self.hot.live.as_mut().ok_or(DropReason::UnknownIndex)?;
        let is_current = live.tunnel.index() == data.receiver_index() >> 8;
        let tunnel = live.receiving_tunnel(data.receiver_index() >> 8).ok_or(DropReason::UnknownIndex)?;
        let slot = up.reserve(datagram.bytes.len()).ok_or(DropReason::SinkFull)?;
        let opened = tunnel.open(data, slot, now)?;
        self.from = Some(datagram.from);
        self.authentic_bytes += datagram.bytes.len() as u64;
        // A session of the tunnel before counts only as long as the newer tunnel has none.
        self.confirmed |= opened.confirmed && (is_current || live.tunnel.sending_age(now).is_none());
        let len = match opened.len {
            Some(0) => return Ok(()),
            other => {
                self.data_messages += 1;
                other.ok_or(DropReason::MalformedInner)?
            }
        };
        let packet = IpPacket::parse(&slot[..len]).ok_or(DropReason::MalformedInner)?;
        let checked = tables.allowed_ips.check_source(&packet, self.peer.id)?;
        if datagram.ecn == CONGESTION_EXPERIENCED {
            // A packet that cannot carry the mark is delivered without it, as in Linux.
            set_congestion_experienced(&mut slot[..len]);
        }
        self.delivered_packets += 1;
        self.delivered_bytes += checked.len() as u64;
        up.commit(checked);
        Ok(())
    }

    fn end(mut self, engine: &Engine, out: &mut impl DatagramSink, report: &mut BatchReport, now: Instant) {
        let (peer, hot) = (self.peer, &mut *self.hot);
        let Some(from) = self.from else { return };
        hot.rx_bytes += self.authentic_bytes;
        if self.delivered_packets > 0 {
            engine.totals.rx_packets.fetch_add(self.delivered_packets, Ordering::Relaxed);
            engine.totals.rx_bytes.fetch_add(self.delivered_bytes, Ordering::Relaxed);
        }
        engine.roam(peer, hot, from);
        if self.confirmed {
            engine.on_handshake_completed(peer, hot, now);
            engine.flush_staged(peer, hot, out, now);
        }
        let interval = hot.keepalive_interval();
        let mut rekey_due = false;
        if let Some(live) = &mut hot.live {
            live.deadlines.on_received(now, interval);
            for _ in 0..self.data_messages.min(2) {
                live.deadlines.on_data_received(now);
            }
            rekey_due = live.is_rekey_due_on_receive(now);
        }
        if rekey_due {
            report.handshakes_waiting |= engine.want(peer, hot, Wish::Handshake, now);
        }
        report.deadline_moved |= engine.sync_wheel(peer, hot);
    }
}
