//! A link between two hosts with latency, loss, reordering, duplication and an MTU, all drawn from one seed.
//!
//! Knows addresses and bytes, not who sits behind them. Time is the caller's.

use std::net::SocketAddr;
use std::time::Duration;

use wg_core::Instant;

/// Randomness for tests: SplitMix64. The same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < u64::from(percent)
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// What a link does to datagrams. The default is a perfect link with 20 ms one way.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// Time one way.
    pub latency: Duration,
    /// Percentage of datagrams that vanish.
    pub loss: u32,
    /// Percentage of datagrams that arrive twice.
    pub duplication: u32,
    /// Percentage of datagrams that are held back for up to [`LinkConfig::hold_back`], so that later ones overtake them.
    pub reordering: u32,
    pub hold_back: Duration,
    /// Whether ECN-capable datagrams arrive with "congestion experienced".
    pub marks_congestion: bool,
    /// Longest UDP payload that passes, in bytes.
    pub max_datagram_len: usize,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            latency: Duration::from_millis(20),
            loss: 0,
            duplication: 0,
            reordering: 0,
            hold_back: Duration::from_millis(30),
            marks_congestion: false,
            max_datagram_len: 65_507,
        }
    }
}

/// One datagram on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub traffic_class: u8,
    pub bytes: Vec<u8>,
}

/// The link itself; both directions share its settings.
pub struct Link {
    pub config: LinkConfig,
    /// While set, nothing passes.
    pub is_cut: bool,
    /// Lets a datagram pass or not.
    pub filter: Box<dyn FnMut(&InFlight) -> bool>,
    random: Random,
    flying: Vec<(Instant, u64, InFlight)>,
    sent: u64,
}

impl Link {
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Link {
            config,
            is_cut: false,
            filter: Box::new(|_| true),
            random: Random::new(seed),
            flying: Vec::new(),
            sent: 0,
        }
    }

    pub fn send(&mut self, mut datagram: InFlight, now: Instant) {
        let lost = self.random.percent(self.config.loss);
        let copies = if self.random.percent(self.config.duplication) { 2 } else { 1 };
        if self.is_cut || lost || !(self.filter)(&datagram) || datagram.bytes.len() > self.config.max_datagram_len {
            return;
        }
        if self.config.marks_congestion && datagram.traffic_class & 3 != 0 {
            datagram.traffic_class |= 3;
        }
        for _ in 0..copies {
            let mut arrives = now + self.config.latency;
            if self.random.percent(self.config.reordering) {
                arrives += Duration::from_nanos(self.random.below(self.config.hold_back.as_nanos() as u64 + 1));
            }
            self.sent += 1;
            self.flying.push((arrives, self.sent, datagram.clone()));
        }
    }

    /// When the next datagram arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.flying.iter().map(|&(at, ..)| at).min()
    }

    /// The datagrams that have arrived by `now`, in the order of their arrival.
    pub fn arrived(&mut self, now: Instant) -> Vec<InFlight> {
        let mut due: Vec<_> = self.flying.extract_if(.., |(at, ..)| *at <= now).collect();
        due.sort_by_key(|&(at, order, _)| (at, order));
        due.into_iter().map(|(_, _, datagram)| datagram).collect()
    }

    /// Forgets what is under way.
    pub fn clear(&mut self) {
        self.flying.clear();
    }
}
