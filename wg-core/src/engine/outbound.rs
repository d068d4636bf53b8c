//! The way out: inner packets from the TUN device become transport data, or are staged until there is a session.
//!
//! 1. Parse the packet; look up its destination.
//! 2. For each run of packets to one peer: lock the peer once, choose the session once.
//! 3. Per packet: pad, reserve, seal in place, commit; or stage.
//! 4. At the end of a run: counters, timers, and a rekey if the session is due for one.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::{Engine, Wish};
use crate::batch::{BatchReport, DATA_OVERHEAD, DatagramSink, Endpoint, PacketSlot, PacketSource};
use crate::error::DropReason;
use crate::packet::ip::IpPacket;
use crate::peer::{Hot, Peer};
use crate::peer_id::PeerId;
use crate::time::Instant;
use crate::tunnel::REKEY_AFTER_MESSAGES;

/// Longest UDP payload over IPv4 in bytes. RFC 768, RFC 791 3.1.
const MAX_DATAGRAM_LEN: usize = 65_507;

/// Plaintext is padded to a multiple of this. \[W\] 5.4.6.
const PADDING: usize = 16;

/// The longest packet that always fits a datagram, padding included.
const MAX_PACKET_LEN: usize = (MAX_DATAGRAM_LEN - DATA_OVERHEAD) / PADDING * PADDING;

impl Engine {
    /// Encrypts a batch of inner packets, or stages them and asks for a handshake.
    ///
    /// Packets to one peer leave in the order they came. Packets without an owner are dropped and counted.
    pub fn handle_packets(
        &self,
        packets: &mut impl PacketSource,
        out: &mut impl DatagramSink,
        now: Instant,
    ) -> BatchReport {
        let mut report = BatchReport::default();
        let tables = self.tables.read();
        let mtu = usize::from(self.mtu.load(Ordering::Relaxed));
        let is_up = self.is_up() && self.identity.read().is_some();
        let mut last_lookup: Option<(IpAddr, Option<PeerId>)> = None;
        let mut run: Option<OutboundRun<'_>> = None;
        while let Some(slot) = packets.next_packet() {
            report.taken += 1;
            if !is_up {
                report.dropped += 1;
                self.count_drop(DropReason::InterfaceDown, 1);
                continue;
            }
            let Some(packet) = IpPacket::parse(&slot.buffer[..slot.len]) else {
                report.dropped += 1;
                self.count_drop(DropReason::MalformedPacket, 1);
                continue;
            };
            let destination = packet.destination();
            let owner = match last_lookup {
                Some((looked_up, owner)) if looked_up == destination => owner,
                _ => {
                    let owner = tables.allowed_ips.lookup(destination);
                    last_lookup = Some((destination, owner));
                    owner
                }
            };
            let Some(owner) = owner else {
                report.dropped += 1;
                self.count_drop(DropReason::DestinationNotAllowed, 1);
                self.refuse(&packet, now);
                continue;
            };
            let traffic_class = outer_traffic_class(packet.ecn());
            let len = packet.total_len();
            let current = match run.take() {
                Some(run) if run.peer.id == owner => run,
                other => {
                    if let Some(ended) = other {
                        ended.end(self, &mut report, now);
                    }
                    match tables.peer(owner) {
                        Some(peer) => OutboundRun::begin(self, peer, now),
                        None => unreachable!("the table of prefixes names configured peers only"),
                    }
                }
            };
            let current = run.insert(current);
            current.send(self, PacketSlot { buffer: slot.buffer, len }, traffic_class, mtu, out, now, &mut report);
        }
        if let Some(ended) = run {
            ended.end(self, &mut report, now);
        }
        report
    }

    /// Sends all staged packets on the session there is now, oldest first. Returns how many were sent.
    pub(super) fn flush_staged(&self, peer: &Peer, hot: &mut Hot, out: &mut impl DatagramSink, now: Instant) -> usize {
        let Some(endpoint) = hot.endpoint() else { return 0 };
        let Some(mut staged) = hot.take_staged() else { return 0 };
        let mtu = usize::from(self.mtu.load(Ordering::Relaxed));
        let mut sent = 0;
        let mut padded = Vec::new();
        while let Some(packet) = staged.pop() {
            let padded_len = padded_len(packet.len(), mtu);
            padded.clear();
            padded.extend_from_slice(&packet);
            padded.resize(padded_len, 0);
            let ecn = IpPacket::parse(&packet).map_or(0, |packet| packet.ecn());
            match self.seal(hot, &endpoint, outer_traffic_class(ecn), &padded, out, now) {
                Ok(_) => {
                    sent += 1;
                    self.totals.tx_packets.fetch_add(1, Ordering::Relaxed);
                    self.totals.tx_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
                }
                Err(reason) => self.drop_for(hot, reason, 1),
            }
        }
        if sent > 0 {
            let jitter = self.jitter(peer.id, now);
            let interval = hot.keepalive_interval();
            if let Some(live) = &mut hot.live {
                live.deadlines.on_sent(now, interval);
                live.deadlines.on_data_sent(now, jitter);
            }
        }
        sent
    }

    /// Sends a keepalive if there is a session to send on. Returns whether there was.
    pub(super) fn send_keepalive(
        &self,
        peer: &Peer,
        hot: &mut Hot,
        out: &mut impl DatagramSink,
        report: &mut BatchReport,
        now: Instant,
    ) -> bool {
        let Some(endpoint) = hot.endpoint() else { return false };
        if hot.sending_tunnel(now).is_none() {
            return false;
        }
        if let Err(reason) = self.seal(hot, &endpoint, 0, &[], out, now) {
            self.drop_for(hot, reason, 1);
            return true;
        }
        let interval = hot.keepalive_interval();
        let mut rekey_due = false;
        if let Some(live) = &mut hot.live {
            live.deadlines.on_sent(now, interval);
            rekey_due = live.is_rekey_due_on_send(now);
        }
        if rekey_due {
            report.handshakes_waiting |= self.want(peer, hot, Wish::Handshake, now);
        }
        true
    }

    /// Seals one padded packet, or a keepalive, into the sink. Returns the message's counter.
    fn seal(
        &self,
        hot: &mut Hot,
        to: &Endpoint,
        traffic_class: u8,
        padded: &[u8],
        out: &mut impl DatagramSink,
        now: Instant,
    ) -> Result<u64, DropReason> {
        let tunnel = hot.sending_tunnel(now).ok_or(DropReason::SessionExpired)?;
        let len = padded.len() + DATA_OVERHEAD;
        let slot = out.reserve(to, traffic_class, len).ok_or(DropReason::SinkFull)?;
        let counter = tunnel.seal(padded, slot).ok_or(DropReason::SessionExpired)?;
        out.commit(len);
        hot.tx_bytes += len as u64;
        Ok(counter)
    }
}

/// What happens to the packets of a run; decided once, when it begins.
enum Fate {
    Seal(Endpoint),
    Stage,
    Drop(DropReason),
}

/// Consecutive packets to one peer, whose lock is held meanwhile.
struct OutboundRun<'a> {
    peer: &'a Peer,
    hot: MutexGuard<'a, Hot>,
    fate: Fate,
    sealed_packets: u64,
    sealed_bytes: u64,
    staged: usize,
    last_counter: u64,
}

impl<'a> OutboundRun<'a> {
    fn begin(engine: &Engine, peer: &'a Peer, now: Instant) -> Self {
        let mut hot = peer.hot.lock();
        let fate = match hot.endpoint() {
            // Asked again under the peer's lock: nothing may be staged behind the back of `bring_down`.
            _ if !engine.is_up() => Fate::Drop(DropReason::InterfaceDown),
            _ if peer.key.is_low_order() => Fate::Drop(DropReason::UnusableKey),
            None => Fate::Drop(DropReason::NoEndpoint),
            Some(_) if hot.sending_tunnel(now).is_none() => Fate::Stage,
            Some(endpoint) => Fate::Seal(endpoint),
        };
        OutboundRun { peer, hot, fate, sealed_packets: 0, sealed_bytes: 0, staged: 0, last_counter: 0 }
    }

    #[expect(clippy::too_many_arguments, reason = "one call site; the arguments are the batch's loop state")]
    #[inline]
    fn send(
        &mut self,
        engine: &Engine,
        packet: PacketSlot<'_>,
        traffic_class: u8,
        mtu: usize,
        out: &mut impl DatagramSink,
        now: Instant,
        report: &mut BatchReport,
    ) {
        let dropped = match &self.fate {
            Fate::Seal(endpoint) => {
                let padded_len = padded_len(packet.len, mtu).min(packet.buffer.len());
                packet.buffer[packet.len..padded_len].fill(0);
                if padded_len + DATA_OVERHEAD > MAX_DATAGRAM_LEN {
                    if let Some(packet) = IpPacket::parse(&packet.buffer[..packet.len]) {
                        engine.refuse_length(&packet, MAX_PACKET_LEN as u16, now);
                    }
                    Some(DropReason::PacketTooBig)
                } else {
                    let endpoint = *endpoint;
                    let padded = &packet.buffer[..padded_len];
                    match engine.seal(&mut self.hot, &endpoint, traffic_class, padded, out, now) {
                        Ok(counter) => {
                            self.last_counter = counter;
                            self.sealed_packets += 1;
                            self.sealed_bytes += packet.len as u64;
                            report.passed += 1;
                            return;
                        }
                        Err(reason) => Some(reason),
                    }
                }
            }
            Fate::Stage => {
                let dropped = self.hot.stage(&packet.buffer[..packet.len], &engine.staging);
                if dropped != Some(DropReason::StagedMemory) {
                    self.staged += 1;
                    report.staged += 1;
                }
                dropped
            }
            Fate::Drop(reason) => {
                if *reason != DropReason::InterfaceDown
                    && let Some(packet) = IpPacket::parse(&packet.buffer[..packet.len])
                {
                    engine.refuse(&packet, now);
                }
                Some(*reason)
            }
        };
        if let Some(reason) = dropped {
            report.dropped += 1;
            engine.drop_for(&mut self.hot, reason, 1);
        }
    }

    fn end(mut self, engine: &Engine, report: &mut BatchReport, now: Instant) {
        let (peer, hot) = (self.peer, &mut *self.hot);
        if self.sealed_packets > 0 {
            engine.totals.tx_packets.fetch_add(self.sealed_packets, Ordering::Relaxed);
            engine.totals.tx_bytes.fetch_add(self.sealed_bytes, Ordering::Relaxed);
            let jitter = engine.jitter(peer.id, now);
            let interval = hot.keepalive_interval();
            let mut rekey_due = self.last_counter >= REKEY_AFTER_MESSAGES;
            if let Some(live) = &mut hot.live {
                live.deadlines.on_sent(now, interval);
                live.deadlines.on_data_sent(now, jitter);
                rekey_due |= live.is_rekey_due_on_send(now);
            }
            if rekey_due {
                report.handshakes_waiting |= engine.want(peer, hot, Wish::Handshake, now);
            }
        }
        if self.staged > 0 {
            report.handshakes_waiting |= engine.want(peer, hot, Wish::Handshake, now);
        }
        report.deadline_moved |= engine.sync_wheel(peer, hot);
    }
}

/// Length of the plaintext for a packet: a multiple of 16, but no longer than the MTU. \[W\] 5.4.6.
///
/// A packet above the MTU (it was lowered meanwhile) is padded as if its last MTU-sized piece stood alone, as in Linux.
#[inline]
fn padded_len(len: usize, mtu: usize) -> usize {
    let full_pieces = if len > mtu && mtu > 0 { (len - 1) / mtu * mtu } else { 0 };
    let rest = len - full_pieces;
    full_pieces + rest.next_multiple_of(PADDING).min(mtu.max(rest))
}

/// The outer ECN field for an inner one; DSCP is not copied. RFC 3168 9.1.1, as in Linux: a congestion mark inside was
/// made before the tunnel and stays inside.
#[inline]
fn outer_traffic_class(inner_ecn: u8) -> u8 {
    const CONGESTION_EXPERIENCED: u8 = 0b11;
    const CAPABLE_0: u8 = 0b10;
    if inner_ecn == CONGESTION_EXPERIENCED { CAPABLE_0 } else { inner_ecn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_reaches_a_multiple_of_16_but_never_beyond_the_mtu() {
        assert_eq!(padded_len(0, 1420), 0);
        assert_eq!(padded_len(1, 1420), 16);
        assert_eq!(padded_len(16, 1420), 16);
        assert_eq!(padded_len(1409, 1420), 1420);
        assert_eq!(padded_len(1420, 1420), 1420);
        assert_eq!(padded_len(1421, 1420), 1420 + 16);
        assert_eq!(padded_len(2840, 1420), 2840);
        assert_eq!(padded_len(20, 0), 20);
    }

    #[test]
    fn the_outer_packet_carries_the_inner_ecn_field_but_no_mark_from_before() {
        assert_eq!([0, 1, 2, 3].map(outer_traffic_class), [0, 1, 2, 2]);
    }
}
