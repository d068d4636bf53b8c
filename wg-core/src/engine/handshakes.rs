//! What is slow or timed: handshake cryptography, away from the packet path, and the deadlines.
//!
//! The handshake thread takes turns between peers that want something (an initiation, a keepalive) and messages that
//! arrived, so that neither a flood from outside nor many peers of our own can starve the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Engine, HANDSHAKE_TRAFFIC_CLASS, Wish};
use crate::batch::{BatchReport, DatagramSink, Endpoint};
use crate::config::{Event, HandshakeReport};
use crate::error::DropReason;
use crate::handshake_load::Waiting;
use crate::packet::message::{COOKIE_REPLY_LEN, INITIATION_LEN, Message};
use crate::peer::{Hot, Peer};
use crate::peer_id::PeerId;
use crate::time::Instant;
use crate::timers::{CONFIRM_WITHIN, Deadline, MAX_RETRIES, REKEY_TIMEOUT, ZERO_KEYS_AFTER};
use crate::tunnel::{CookieCheck, Identity};

/// Deadlines handled in one call, so that a herd of them neither keeps packets waiting nor overflows the sink.
const MAX_DUE: usize = 128;

impl Engine {
    /// Does up to `at_most` pieces of handshake work, each up to 200 us of cryptography, and sends what they yield.
    ///
    /// Call it off the packet path whenever a report says that handshakes are waiting, until it says there are none.
    pub fn handle_handshakes(&self, at_most: usize, out: &mut impl DatagramSink, now: Instant) -> HandshakeReport {
        let mut report = BatchReport::default();
        let mut done = 0;
        while done < at_most {
            let wanting = self.wanting.lock().pop_front();
            let waiting = self.load.lock().pop();
            if wanting.is_none() && waiting.is_none() {
                break;
            }
            if let Some(id) = wanting {
                done += 1;
                self.serve(id, out, &mut report, now);
            }
            if let Some(waiting) = waiting {
                done += 1;
                if let Err(reason) = self.receive_handshake(&waiting, out, &mut report, now) {
                    self.count_drop(reason, 1);
                }
            }
        }
        let still_waiting = !self.wanting.lock().is_empty() || self.load.lock().len() > 0;
        HandshakeReport { done, still_waiting, deadline_moved: report.deadline_moved }
    }

    /// Handles the deadlines that are due at `now`. Call it when [`Engine::poll_timeout`] says so.
    pub fn handle_timeout(&self, out: &mut impl DatagramSink, now: Instant) -> BatchReport {
        let mut report = BatchReport::default();
        for _ in 0..MAX_DUE {
            let Some(slot) = self.wheel.lock().expire(now) else { break };
            report.taken += 1;
            let Some(peer) = self.tables.read().slot(slot).cloned() else { continue };
            let mut hot = peer.hot.lock();
            if hot.removed {
                continue;
            }
            // Usually the node that has just fired; if the slot has a new peer since, its own.
            if let Some(node) = hot.wheel.take() {
                self.wheel.lock().disarm(node);
            }
            while let Some(due) = hot.live.as_mut().and_then(|live| live.deadlines.take_due(now)) {
                self.on_deadline(due, &peer, &mut hot, out, &mut report, now);
            }
            self.sync_wheel(&peer, &mut hot);
        }
        report.deadline_moved = true;
        report
    }

    fn on_deadline(
        &self,
        due: Deadline,
        peer: &Peer,
        hot: &mut Hot,
        out: &mut impl DatagramSink,
        report: &mut BatchReport,
        now: Instant,
    ) {
        let Some(live) = &mut hot.live else { return };
        live.end_draining(now);
        match due {
            Deadline::Retransmit if live.retries > MAX_RETRIES => {
                live.retries = 0;
                live.deadlines.disarm(Deadline::PassiveKeepalive);
                if live.deadlines.of(Deadline::ZeroKeys).is_none() {
                    live.deadlines.arm(Deadline::ZeroKeys, now + ZERO_KEYS_AFTER);
                }
                self.drop_staged(hot);
                self.emit(Event::HandshakeGaveUp { peer: peer.key });
            }
            Deadline::Retransmit => {
                live.retries += 1;
                // Our own address may be what keeps answers away.
                hot.forget_source();
                report.handshakes_waiting |= self.want(peer, hot, Wish::Repeat, now);
            }
            Deadline::NewHandshake => {
                // Our own address may be what keeps answers away.
                hot.forget_source();
                report.handshakes_waiting |= self.want(peer, hot, Wish::Handshake, now);
            }
            Deadline::PassiveKeepalive => {
                let owed_another = live.deadlines.owes_another_keepalive();
                self.keepalive_or_handshake(peer, hot, out, report, now);
                if let Some(live) = &mut hot.live {
                    live.deadlines.after_passive_keepalive(owed_another, now);
                }
            }
            Deadline::PersistentKeepalive => {
                // Armed again first: it must not end because nothing can be sent this time.
                if let Some(interval) = hot.keepalive_interval()
                    && let Some(live) = &mut hot.live
                {
                    live.deadlines.arm(Deadline::PersistentKeepalive, now + interval);
                    self.keepalive_or_handshake(peer, hot, out, report, now);
                }
            }
            // A handshake under way decides first; nothing older than REJECT_AFTER_TIME is used meanwhile.
            Deadline::ZeroKeys if live.deadlines.of(Deadline::Retransmit).is_some() => {
                live.deadlines.arm(Deadline::ZeroKeys, now + CONFIRM_WITHIN);
            }
            Deadline::ZeroKeys => {
                hot.end_sessions();
                self.drop_staged(hot);
                self.emit(Event::KeysWiped { peer: peer.key });
                if hot.persistent_keepalive > 0 {
                    report.handshakes_waiting |= self.want(peer, hot, Wish::Handshake, now);
                }
            }
        }
    }

    fn keepalive_or_handshake(
        &self,
        peer: &Peer,
        hot: &mut Hot,
        out: &mut impl DatagramSink,
        report: &mut BatchReport,
        now: Instant,
    ) {
        if !self.send_keepalive(peer, hot, out, report, now) {
            report.handshakes_waiting |= self.want(peer, hot, Wish::Handshake, now);
        }
    }

    /// Does what a peer in the queue wants.
    fn serve(&self, id: PeerId, out: &mut impl DatagramSink, report: &mut BatchReport, now: Instant) {
        let Some(peer) = self.tables.read().peer(id).cloned() else { return };
        let mut hot = peer.hot.lock();
        let wants = std::mem::take(&mut hot.wants);
        if hot.removed || !self.is_up() {
            return;
        }
        let kept_alive = wants.keepalive
            && hot.sending_tunnel(now).is_some()
            && (self.flush_staged(&peer, &mut hot, out, now) > 0
                || self.send_keepalive(&peer, &mut hot, out, report, now));
        if wants.handshake || wants.repeat || (wants.keepalive && !kept_alive) {
            let is_repeat = wants.repeat && !wants.handshake && !wants.keepalive;
            self.initiate(&peer, &mut hot, is_repeat, out, now);
        }
        report.deadline_moved |= self.sync_wheel(&peer, &mut hot);
    }

    fn initiate(&self, peer: &Peer, hot: &mut Hot, is_repeat: bool, out: &mut impl DatagramSink, now: Instant) {
        let (Some(identity), Some(endpoint)) = (self.identity(), hot.endpoint()) else { return };
        if peer.key.is_low_order() {
            self.drop_staged(hot);
            return;
        }
        if !hot.may_initiate(now) {
            self.retry_after_gate(peer, hot, now);
            return;
        }
        let mut message = [0; INITIATION_LEN];
        let interval = hot.keepalive_interval();
        let jitter = self.jitter(peer.id, now);
        let live = self.prepare_tunnel(&identity, peer, hot, now);
        if !live.tunnel.initiate(&mut message, now) {
            return;
        }
        if !is_repeat {
            live.retries = 0;
        }
        live.handshake_sent = Some(now);
        live.deadlines.on_sent(now, interval);
        live.deadlines.arm(Deadline::Retransmit, now + REKEY_TIMEOUT + jitter);
        self.totals.handshakes_initiated.fetch_add(1, Ordering::Relaxed);
        self.send_message(hot, &endpoint, HANDSHAKE_TRAFFIC_CLASS, &message, out);
    }

    fn receive_handshake(
        &self,
        waiting: &Waiting,
        out: &mut impl DatagramSink,
        report: &mut BatchReport,
        now: Instant,
    ) -> Result<(), DropReason> {
        let identity = self.identity().ok_or(DropReason::InterfaceDown)?;
        if !self.is_up() {
            return Err(DropReason::InterfaceDown);
        }
        if self.load.lock().is_under_load(now) {
            self.demand_proof(&identity, waiting, out, now)?;
        }
        match Message::parse(waiting.message()) {
            Some(Message::Initiation(_)) => self.receive_initiation(&identity, waiting, out, report, now),
            Some(Message::Response(response)) => {
                self.receive_response(response.receiver_index(), waiting, out, report, now)
            }
            _ => Err(DropReason::MalformedMessage),
        }
    }

    /// Under load only senders that proved their address are served, and only so often. \[W\] 5.3.
    fn demand_proof(
        &self,
        identity: &Identity,
        waiting: &Waiting,
        out: &mut impl DatagramSink,
        now: Instant,
    ) -> Result<(), DropReason> {
        match identity.check_cookie(waiting.message(), waiting.from.remote, now) {
            CookieCheck::Invalid => Err(DropReason::InvalidHandshake),
            CookieCheck::Demanded(reply) => {
                if let Some(slot) = out.reserve(&waiting.from, HANDSHAKE_TRAFFIC_CLASS, COOKIE_REPLY_LEN) {
                    slot.copy_from_slice(&reply);
                    out.commit(COOKIE_REPLY_LEN);
                    self.totals.cookies_sent.fetch_add(1, Ordering::Relaxed);
                    Err(DropReason::CookieDemanded)
                } else {
                    Err(DropReason::SinkFull)
                }
            }
            CookieCheck::Proven if self.load.lock().admit(waiting.from.remote, now) => Ok(()),
            CookieCheck::Proven => Err(DropReason::RateLimited),
        }
    }

    fn receive_initiation(
        &self,
        identity: &Arc<Identity>,
        waiting: &Waiting,
        out: &mut impl DatagramSink,
        report: &mut BatchReport,
        now: Instant,
    ) -> Result<(), DropReason> {
        let claimed = identity.claimed_initiator(waiting.message()).ok_or(DropReason::InvalidHandshake)?;
        let peer = self.tables.read().by_key(&claimed).cloned().ok_or(DropReason::UnknownPeer)?;
        let mut hot = peer.hot.lock();
        if hot.removed {
            return Err(DropReason::UnknownPeer);
        }
        // The key may have been changed, or the interface brought down, since the message was looked at; the peer's
        // sessions have ended then and must not come back.
        if !self.is_up() || !self.identity().is_some_and(|now| Arc::ptr_eq(&now, identity)) {
            return Err(DropReason::InterfaceDown);
        }
        if let Err(reason) = self.accept_initiation(identity, &peer, &mut hot, waiting, out, now) {
            hot.count_drop(reason, 1);
            return Err(reason);
        }
        report.deadline_moved |= self.sync_wheel(&peer, &mut hot);
        Ok(())
    }

    fn accept_initiation(
        &self,
        identity: &Arc<Identity>,
        peer: &Peer,
        hot: &mut Hot,
        waiting: &Waiting,
        out: &mut impl DatagramSink,
        now: Instant,
    ) -> Result<(), DropReason> {
        if peer.key.is_low_order() {
            return Err(DropReason::UnusableKey);
        }
        if hot.live.as_ref().is_some_and(|live| !live.may_accept_initiation(now)) {
            return Err(DropReason::InitiationTooSoon);
        }
        let mut reply = [0; INITIATION_LEN];
        let clock_epoch = self.clock_epoch.load(Ordering::Relaxed);
        // A fresh tunnel is installed only once the initiation has proved authentic: nobody can make us spend memory
        // on a peer, or put its tunnel aside, by writing its public key into a message.
        let len = match &mut hot.live {
            Some(live) if !live.needs_fresh_tunnel(clock_epoch, now) => {
                live.tunnel.receive_initiation(waiting.message(), &mut reply, now)?
            }
            _ => {
                let mut fresh = self.fresh_tunnel(identity, peer, hot, now);
                let len = fresh.receive_initiation(waiting.message(), &mut reply, now)?;
                Self::install(hot, fresh, clock_epoch, now);
                len
            }
        };
        self.on_initiation_accepted(peer, hot, waiting.from, now);
        self.send_message(hot, &waiting.from, HANDSHAKE_TRAFFIC_CLASS, &reply[..len], out);
        Ok(())
    }

    fn on_initiation_accepted(&self, peer: &Peer, hot: &mut Hot, from: Endpoint, now: Instant) {
        hot.rx_bytes += INITIATION_LEN as u64;
        let interval = hot.keepalive_interval();
        let waits = hot.staged_len() > 0 || interval.is_some();
        let Some(live) = &mut hot.live else { return };
        live.on_initiation_accepted(now);
        let is_guarded = live.tunnel.is_replay_guarded();
        let has_session = live.sending_tunnel(now).is_some();
        // The initiation may be a replay from before the tunnel was made. Then it must not keep us from beginning a
        // handshake of our own, and only data over the new session proves that the peer is alive, and where.
        if is_guarded || !(waits || has_session) {
            live.handshake_sent = Some(now);
            live.deadlines.on_received(now, interval);
            live.deadlines.on_sent(now, interval);
        }
        let zero_after = if has_session && is_guarded { ZERO_KEYS_AFTER } else { CONFIRM_WITHIN };
        if live.deadlines.of(Deadline::ZeroKeys).is_none_or(|at| at < now + zero_after) {
            live.deadlines.arm(Deadline::ZeroKeys, now + zero_after);
        }
        if is_guarded || hot.remote.is_none() {
            self.roam(peer, hot, from);
        }
    }

    fn receive_response(
        &self,
        receiver_index: u32,
        waiting: &Waiting,
        out: &mut impl DatagramSink,
        report: &mut BatchReport,
        now: Instant,
    ) -> Result<(), DropReason> {
        let (slot, _) = self.indices.find(receiver_index >> 8);
        let peer = self.tables.read().slot(slot).cloned().ok_or(DropReason::Unsolicited)?;
        let mut hot = peer.hot.lock();
        let hot = &mut *hot;
        let interval = hot.keepalive_interval();
        let live = hot.live.as_mut().ok_or(DropReason::Unsolicited)?;
        if live.tunnel.index() != receiver_index >> 8 || !live.tunnel.awaits(receiver_index) {
            return Err(DropReason::Unsolicited);
        }
        let mut reply = [0; INITIATION_LEN];
        let keepalive_len = match live.tunnel.receive_response(waiting.message(), &mut reply, now) {
            Ok(len) => len,
            Err(reason) => {
                hot.count_drop(reason, 1);
                return Err(reason);
            }
        };
        live.deadlines.on_received(now, interval);
        hot.rx_bytes += waiting.message().len() as u64;
        self.roam(&peer, hot, waiting.from);
        self.on_handshake_completed(&peer, hot, now);
        // The peer may send only after it heard from us on the new session: with data if there is any. [W] 5.4.4.
        if self.flush_staged(&peer, hot, out, now) == 0 {
            self.send_message(hot, &waiting.from, 0, &reply[..keepalive_len], out);
            if let Some(live) = &mut hot.live {
                live.deadlines.on_sent(now, interval);
            }
        }
        report.deadline_moved |= self.sync_wheel(&peer, hot);
        Ok(())
    }
}
