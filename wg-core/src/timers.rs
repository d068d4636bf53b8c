//! Owns the named deadlines of one peer and the intervals of the paper. Pure: events and `now` in, instants out.
//! The wheel that wakes us is in `deadlines.rs`; what happens at a deadline is in `handshakes.rs`.

use std::time::Duration;

use crate::time::Instant;

/// After this a session asks for its successor. \[W\] 6.1.
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// After this a session is not used any more. \[W\] 6.1.
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// After this an unanswered initiation is repeated. \[W\] 6.1.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// After this a peer that heard something and had nothing to say sends a keepalive. \[W\] 6.1.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often REKEY_TIMEOUT fits into REKEY_ATTEMPT_TIME, 90 s. \[W\] 6.1. As in Linux an attempt ends when more than this
/// many repetitions went unanswered, after 20 initiations in all.
pub(crate) const MAX_RETRIES: u8 = 18;
/// Upper end of the random delay added to handshake deadlines. \[W\] 6.4.
pub(crate) const MAX_JITTER: Duration = Duration::from_millis(333);
/// On receiving, the initiator of a session older than this asks for its successor. \[W\] 6.2.
pub(crate) const REKEY_ON_RECEIVE_AFTER: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);
/// After this without a new session all keys of a peer are wiped. \[W\] 6.3.
pub(crate) const ZERO_KEYS_AFTER: Duration = Duration::from_secs(540);
/// A session that nobody confirmed within this time is wiped, if it is the peer's only one: it could not be used later.
pub(crate) const CONFIRM_WITHIN: Duration = REJECT_AFTER_TIME;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Deadline {
    /// The last initiation was not answered: repeat it, or give up. \[W\] 6.4.
    Retransmit,
    /// Something was sent and nothing came back: try a new handshake. \[W\] 6.2.
    NewHandshake,
    /// Something was received and nothing was sent back: say that we are alive. \[W\] 6.5.
    PassiveKeepalive,
    /// The configured interval without any authenticated traffic has passed. \[W\] 6.5.
    PersistentKeepalive,
    /// No new session for a long time: wipe the keys. \[W\] 6.3.
    ZeroKeys,
}

impl Deadline {
    const ALL: [Deadline; 5] = [
        Deadline::Retransmit,
        Deadline::NewHandshake,
        Deadline::PassiveKeepalive,
        Deadline::PersistentKeepalive,
        Deadline::ZeroKeys,
    ];
}

/// The deadlines of one peer; each is armed or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deadlines {
    at: [Option<Instant>; Deadline::ALL.len()],
    /// More was received while the passive keepalive was armed already.
    another_keepalive: bool,
}

impl Deadlines {
    pub(crate) fn of(&self, deadline: Deadline) -> Option<Instant> {
        self.at[deadline as usize]
    }

    pub(crate) fn arm(&mut self, deadline: Deadline, at: Instant) {
        self.at[deadline as usize] = Some(at);
    }

    pub(crate) fn disarm(&mut self, deadline: Deadline) {
        self.at[deadline as usize] = None;
    }

    /// The earliest deadline.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.at.iter().flatten().min().copied()
    }

    /// Takes one deadline that is due at `now`, in the order of [`Deadline`].
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Deadline> {
        let due = Deadline::ALL.into_iter().find(|&deadline| self.of(deadline).is_some_and(|at| at <= now))?;
        self.disarm(due);
        Some(due)
    }

    /// A packet with data was sent at `now`.
    pub(crate) fn on_data_sent(&mut self, now: Instant, jitter: Duration) {
        self.at[Deadline::NewHandshake as usize].get_or_insert(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter);
    }

    /// A packet with data was received at `now`.
    pub(crate) fn on_data_received(&mut self, now: Instant) {
        match self.of(Deadline::PassiveKeepalive) {
            Some(_) => self.another_keepalive = true,
            None => self.arm(Deadline::PassiveKeepalive, now + KEEPALIVE_TIMEOUT),
        }
    }

    /// Anything authenticated was sent: handshake, data or keepalive.
    pub(crate) fn on_sent(&mut self, now: Instant, persistent_keepalive: Option<Duration>) {
        self.disarm(Deadline::PassiveKeepalive);
        self.another_keepalive = false;
        self.on_traversal(now, persistent_keepalive);
    }

    /// Anything authenticated was received: handshake, data or keepalive.
    pub(crate) fn on_received(&mut self, now: Instant, persistent_keepalive: Option<Duration>) {
        self.disarm(Deadline::NewHandshake);
        self.on_traversal(now, persistent_keepalive);
    }

    fn on_traversal(&mut self, now: Instant, persistent_keepalive: Option<Duration>) {
        if let Some(interval) = persistent_keepalive {
            self.arm(Deadline::PersistentKeepalive, now + interval);
        }
    }

    /// The passive keepalive is being sent. Re-arms it if more was received since it was armed.
    pub(crate) fn after_passive_keepalive(&mut self, owed_another: bool, now: Instant) {
        if owed_another {
            self.arm(Deadline::PassiveKeepalive, now + KEEPALIVE_TIMEOUT);
        }
    }

    /// Whether more was received while the passive keepalive was armed.
    pub(crate) fn owes_another_keepalive(&self) -> bool {
        self.another_keepalive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(1_000_000_000);

    #[test]
    fn the_new_handshake_timer_runs_from_the_first_unanswered_packet() {
        let mut deadlines = Deadlines::default();
        deadlines.on_data_sent(START, Duration::ZERO);
        deadlines.on_data_sent(START + Duration::from_secs(9), Duration::ZERO);
        assert_eq!(deadlines.of(Deadline::NewHandshake), Some(START + Duration::from_secs(15)));
        deadlines.on_received(START + Duration::from_secs(10), None);
        assert_eq!(deadlines.of(Deadline::NewHandshake), None);
    }

    #[test]
    fn the_passive_keepalive_runs_from_the_first_packet_received_and_ends_with_anything_sent() {
        let mut deadlines = Deadlines::default();
        deadlines.on_data_received(START);
        deadlines.on_data_received(START + Duration::from_secs(9));
        assert_eq!(deadlines.of(Deadline::PassiveKeepalive), Some(START + Duration::from_secs(10)));
        assert!(deadlines.owes_another_keepalive());
        deadlines.on_sent(START + Duration::from_secs(9), None);
        assert_eq!(deadlines.of(Deadline::PassiveKeepalive), None);
        assert!(!deadlines.owes_another_keepalive());
    }

    #[test]
    fn the_persistent_keepalive_is_put_off_by_any_authenticated_traffic() {
        let mut deadlines = Deadlines::default();
        let interval = Some(Duration::from_secs(25));
        deadlines.on_sent(START, interval);
        deadlines.on_received(START + Duration::from_secs(20), interval);
        assert_eq!(deadlines.of(Deadline::PersistentKeepalive), Some(START + Duration::from_secs(45)));
        deadlines.on_received(START + Duration::from_secs(30), None);
        assert_eq!(deadlines.of(Deadline::PersistentKeepalive), Some(START + Duration::from_secs(45)));
    }

    #[test]
    fn due_deadlines_are_taken_once() {
        let mut deadlines = Deadlines::default();
        deadlines.arm(Deadline::ZeroKeys, START);
        deadlines.arm(Deadline::Retransmit, START);
        assert_eq!(deadlines.earliest(), Some(START));
        assert_eq!(deadlines.take_due(START), Some(Deadline::Retransmit));
        assert_eq!(deadlines.take_due(START), Some(Deadline::ZeroKeys));
        assert_eq!(deadlines.take_due(START), None);
    }
}
