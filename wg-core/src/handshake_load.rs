//! Owns incoming handshakes that wait for their turn, and the judgement whether there are too many: queue depth, the
//! state "under load", and a token bucket per source address. Does no cryptography.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::batch::Endpoint;
use crate::packet::message::INITIATION_LEN;
use crate::time::Instant;

/// Handshakes that may wait; further ones are dropped. At 180 us each the last one waits 0.7 s.
pub(crate) const QUEUE_LEN: usize = 4096;

/// With this many waiting we are under load: an eighth of the queue, as in Linux.
pub(crate) const UNDER_LOAD_LEN: usize = QUEUE_LEN / 8;

/// Being under load lasts at least this long.
const UNDER_LOAD_FOR: Duration = Duration::from_secs(1);

/// A source address may begin this many handshakes per second while we are under load, as in Linux.
const RATE_PER_SECOND: u64 = 20;

/// And this many at once.
const BURST: u64 = 5;

/// Source addresses remembered at the same time; each entry takes 16 bytes, made when first needed.
const BUCKETS: usize = 8192;

/// Initiations and responses all fit.
const MESSAGE_LEN: usize = INITIATION_LEN;

/// An initiation or response with a valid MAC1, waiting.
pub(crate) struct Waiting {
    message: [u8; MESSAGE_LEN],
    len: u8,
    /// Where it came from.
    pub(crate) from: Endpoint,
}

impl Waiting {
    pub(crate) fn message(&self) -> &[u8] {
        &self.message[..usize::from(self.len)]
    }
}

/// The waiting handshakes of one engine.
pub(crate) struct HandshakeLoad {
    waiting: VecDeque<Waiting>,
    under_load_until: Instant,
    buckets: TokenBuckets,
}

impl HandshakeLoad {
    pub(crate) fn new(seed: u64) -> Self {
        HandshakeLoad { waiting: VecDeque::new(), under_load_until: Instant::EPOCH, buckets: TokenBuckets::new(seed) }
    }

    /// Queues a message of at most 148 bytes. Returns whether there was room.
    pub(crate) fn push(&mut self, message: &[u8], from: Endpoint, now: Instant) -> bool {
        if self.waiting.len() >= UNDER_LOAD_LEN {
            self.under_load_until = now + UNDER_LOAD_FOR;
        }
        if self.waiting.len() >= QUEUE_LEN || message.len() > MESSAGE_LEN {
            return false;
        }
        let mut copy = [0; MESSAGE_LEN];
        copy[..message.len()].copy_from_slice(message);
        self.waiting.push_back(Waiting { message: copy, len: message.len() as u8, from });
        true
    }

    /// The message that waits longest. An emptied queue gives back what an attack made it grow to.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let next = self.waiting.pop_front();
        if self.waiting.is_empty() && self.waiting.capacity() > UNDER_LOAD_LEN {
            self.waiting = VecDeque::new();
        }
        next
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether senders have to prove their address now. \[W\] 5.3.
    pub(crate) fn is_under_load(&self, now: Instant) -> bool {
        self.waiting.len() >= UNDER_LOAD_LEN || now < self.under_load_until
    }

    /// Whether a sender whose address is proven may have another handshake.
    pub(crate) fn admit(&mut self, from: SocketAddr, now: Instant) -> bool {
        self.buckets.admit(from.ip(), now)
    }

    pub(crate) fn clear(&mut self) {
        self.waiting = VecDeque::new();
    }
}

/// A token bucket per IPv4 address and per IPv6 /64, in a table of fixed size.
///
/// Two sources that fall into one place: the newer one takes it over if the other was quiet for a second, else they
/// share. Where a source falls is keyed by the engine's seed, so that nobody can aim at another's place.
struct TokenBuckets {
    seed: u64,
    places: Vec<Bucket>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    source: u64,
    /// The bucket is full again at this time; tokens are the distance to it.
    full_at: Instant,
}

impl TokenBuckets {
    const TOKEN: Duration = Duration::from_nanos(1_000_000_000 / RATE_PER_SECOND);

    fn new(seed: u64) -> Self {
        TokenBuckets { seed, places: Vec::new() }
    }

    fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.places.is_empty() {
            self.places = vec![Bucket::default(); BUCKETS];
        }
        let source = self.fingerprint(source);
        let bucket = &mut self.places[source as usize % BUCKETS];
        if bucket.source != source && now.since(bucket.full_at) >= Duration::from_secs(1) {
            *bucket = Bucket { source, full_at: now };
        }
        let full_at = bucket.full_at.max(now) + Self::TOKEN;
        let admitted = full_at.since(now) <= Self::TOKEN * BURST as u32;
        if admitted {
            bucket.full_at = full_at;
        }
        admitted
    }

    fn fingerprint(&self, source: IpAddr) -> u64 {
        let network = match source {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64 ^ 0x6464_6464_0000_0000,
        };
        mix(mix(network ^ self.seed) ^ self.seed.rotate_left(32))
    }
}

/// A permutation of 64-bit values with good avalanche (the finaliser of SplitMix64).
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const START: Instant = Instant::from_nanos(10_000_000_000);

    fn from(last: u8) -> Endpoint {
        Endpoint::new(SocketAddr::from(([192, 0, 2, last], 51820)))
    }

    #[test]
    fn an_eighth_of_the_queue_means_load_for_a_second_longer() {
        let mut load = HandshakeLoad::new(1);
        for _ in 0..UNDER_LOAD_LEN {
            assert!(!load.is_under_load(START));
            assert!(load.push(&[1; 148], from(1), START));
        }
        assert!(load.is_under_load(START));
        load.push(&[1; 148], from(1), START);
        while load.pop().is_some() {}
        assert!(load.is_under_load(START + Duration::from_millis(999)));
        assert!(!load.is_under_load(START + Duration::from_secs(1)));
    }

    #[test]
    fn a_full_queue_takes_nothing_more_and_keeps_the_order() {
        let mut load = HandshakeLoad::new(1);
        for number in 0..QUEUE_LEN {
            assert!(load.push(&(number as u32).to_le_bytes(), from(1), START));
        }
        assert!(!load.push(&[0; 4], from(1), START));
        assert_eq!(load.pop().expect("there are 4096").message(), 0u32.to_le_bytes());
        assert_eq!(load.len(), QUEUE_LEN - 1);
    }

    #[test]
    fn a_source_gets_five_at_once_and_twenty_a_second_and_others_do_not_suffer() {
        let mut buckets = TokenBuckets::new(7);
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let admitted = |buckets: &mut TokenBuckets, ip, now| (0..100).filter(|_| buckets.admit(ip, now)).count();
        assert_eq!(admitted(&mut buckets, one, START), 5);
        assert_eq!(admitted(&mut buckets, two, START), 5);
        assert_eq!(admitted(&mut buckets, one, START + Duration::from_millis(49)), 0);
        assert_eq!(admitted(&mut buckets, one, START + Duration::from_millis(100)), 2);
    }

    #[test]
    fn addresses_of_one_ipv6_64_share_a_bucket() {
        let mut buckets = TokenBuckets::new(7);
        let address = |last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
        assert_eq!((0..20).filter(|&last| buckets.admit(address(last), START)).count(), 5);
    }
}
