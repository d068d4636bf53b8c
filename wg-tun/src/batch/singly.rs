//! Owns what is known of endpoints that the kernel sends no trains to. Bounded, and forgotten after a minute: paths and
//! devices change.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use wg_core::Instant;

/// How long an endpoint is sent single datagrams after the kernel refused it a train.
pub(super) const SINGLY_FOR: Duration = Duration::from_secs(60);
/// Endpoints remembered. The next one makes room by forgetting all, which costs one failed call each.
const MAX_REMEMBERED: usize = 1024;

/// Endpoints that are sent single datagrams for a while.
#[derive(Debug, Default)]
pub(super) struct Singly {
    endpoints: HashMap<SocketAddr, Refused>,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    /// Length of the shortest datagrams a train of which was refused. Trains of shorter ones may fit the path.
    from_len: usize,
    until: Instant,
}

impl Singly {
    /// Whether datagrams of this length, and what stands behind them in their train, are to be sent one by one.
    #[inline]
    pub(super) fn applies(&self, remote: &SocketAddr, segment_len: usize, now: Instant) -> bool {
        !self.endpoints.is_empty()
            && self.endpoints.get(remote).is_some_and(|refused| segment_len >= refused.from_len && now < refused.until)
    }

    /// The kernel refused the endpoint a train of datagrams of this length; 0 if the length was not the reason.
    pub(super) fn remember(&mut self, remote: SocketAddr, segment_len: usize, now: Instant) {
        let until = now + SINGLY_FOR;
        let known = self.endpoints.get(&remote).filter(|known| now < known.until);
        let from_len = known.map_or(segment_len, |known| known.from_len.min(segment_len));
        if self.endpoints.len() >= MAX_REMEMBERED && !self.endpoints.contains_key(&remote) {
            self.endpoints.clear();
        }
        self.endpoints.insert(remote, Refused { from_len, until });
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    #[test]
    fn a_refusal_concerns_its_endpoint_and_length_for_a_minute() {
        let mut singly = Singly::default();
        let begin = Instant::EPOCH + Duration::from_secs(1000);
        let last = begin + SINGLY_FOR - Duration::from_nanos(1);
        singly.remember(remote(1), 1400, begin);
        for now in [begin, last] {
            assert!(singly.applies(&remote(1), 1400, now) && singly.applies(&remote(1), 9000, now));
            assert!(!singly.applies(&remote(1), 1399, now) && !singly.applies(&remote(2), 1400, now));
        }
        assert!(!singly.applies(&remote(1), 1400, begin + SINGLY_FOR));
    }

    #[test]
    fn the_shortest_refused_length_counts_until_all_is_forgotten() {
        let mut singly = Singly::default();
        let begin = Instant::EPOCH;
        singly.remember(remote(1), 1400, begin);
        singly.remember(remote(1), 1000, begin);
        singly.remember(remote(1), 1200, begin);
        assert!(singly.applies(&remote(1), 1000, begin) && !singly.applies(&remote(1), 999, begin));
        // A refusal that has run out says nothing about the next one.
        let later = begin + SINGLY_FOR;
        singly.remember(remote(1), 1400, later);
        assert!(!singly.applies(&remote(1), 1000, later) && singly.applies(&remote(1), 1400, later));
        singly.remember(remote(1), 0, later);
        assert!(singly.applies(&remote(1), 1, later));
    }

    #[test]
    fn no_number_of_endpoints_makes_it_grow_without_bound() {
        let mut singly = Singly::default();
        for number in 0..5000 {
            singly.remember(remote(number), 0, Instant::EPOCH);
            assert!(singly.endpoints.len() <= MAX_REMEMBERED);
            assert!(singly.applies(&remote(number), 1, Instant::EPOCH));
        }
    }
}
