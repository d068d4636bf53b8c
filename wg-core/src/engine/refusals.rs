//! What local senders are told when their packets can go nowhere: ICMP errors, few at a time, for the driver to write
//! into the TUN device.

use std::collections::VecDeque;
use std::time::Duration;

use super::Engine;
use crate::packet::icmp::{host_unreachable, packet_too_big};
use crate::packet::ip::IpPacket;
use crate::time::Instant;

/// Refusals that may be sent at once, as in Linux (`icmp_msgs_burst`).
const BURST: u32 = 50;

/// Time in which one more may be sent.
const INTERVAL: Duration = Duration::from_millis(10);

/// ICMP errors that wait for the driver, never more than a burst of them.
#[derive(Default)]
pub(super) struct Refusals {
    waiting: VecDeque<Vec<u8>>,
    /// The allowance is full again at this time.
    full_at: Instant,
}

impl Engine {
    /// The next ICMP error for a local sender, a whole IP packet to be written into the TUN device as it is.
    ///
    /// Ask after [`Engine::handle_packets`] has reported drops, until `None`. There are at most 100 a second.
    pub fn poll_refusal(&self) -> Option<Vec<u8>> {
        self.refusals.lock().waiting.pop_front()
    }

    /// Tells the sender of `packet` that it cannot be delivered, unless it was told so often lately.
    pub(super) fn refuse(&self, packet: &IpPacket<'_>, now: Instant) {
        self.answer(now, || host_unreachable(packet));
    }

    /// Tells the sender of `packet` that none longer than `mtu` passes, unless it was told so often lately.
    pub(super) fn refuse_length(&self, packet: &IpPacket<'_>, mtu: u16, now: Instant) {
        self.answer(now, || packet_too_big(packet, mtu));
    }

    fn answer(&self, now: Instant, error: impl FnOnce() -> Option<Vec<u8>>) {
        let mut refusals = self.refusals.lock();
        let full_at = refusals.full_at.max(now) + INTERVAL;
        if full_at.since(now) > INTERVAL * BURST || refusals.waiting.len() >= BURST as usize {
            return;
        }
        if let Some(error) = error() {
            refusals.full_at = full_at;
            refusals.waiting.push_back(error);
        }
    }
}
