//! Does the wheel keep its two promises, never early and at most a tick late? Compared with a plain list.

use std::time::Duration;

use proptest::prelude::*;
use wg_core::Instant;
use wg_core::deadlines::{TICK, Wheel, WheelNode};

/// What the list knows of one armed key.
#[derive(Clone, Copy)]
struct Armed {
    key: u32,
    at: Instant,
    /// From when on the promise counts: a deadline that had passed when it was armed is late anyhow.
    since: Instant,
    node: WheelNode,
}

impl Armed {
    /// When the wheel must be polled at the latest: in time to be less than a tick late.
    fn latest_poll(&self) -> Instant {
        match self.at > self.since {
            true => self.at + TICK - Duration::from_nanos(1),
            false => self.since + TICK,
        }
    }
}

struct Bench {
    wheel: Wheel,
    list: Vec<Armed>,
    /// Names of deadlines that are gone.
    stale: Vec<WheelNode>,
    now: Instant,
    next_key: u32,
}

#[derive(Clone, Debug)]
enum Step {
    Arm(Duration),
    ArmPast(Duration),
    Disarm(usize),
    Rearm(usize, Duration),
    Sleep(Duration),
    /// Sleeps until the wheel wants to be polled, this often.
    Follow(usize),
    UseStale(usize),
}

impl Bench {
    fn new(now: Instant) -> Self {
        Bench { wheel: Wheel::new(now), list: Vec::new(), stale: Vec::new(), now, next_key: 0 }
    }

    fn arm(&mut self, at: Instant) {
        let node = self.wheel.arm(self.next_key, at);
        self.list.push(Armed { key: self.next_key, at, since: self.now, node });
        self.next_key += 1;
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Arm(ahead) => self.arm(self.now + ahead),
            Step::ArmPast(ago) => self.arm(self.now - ago),
            Step::Disarm(nth) if !self.list.is_empty() => {
                let gone = self.list.swap_remove(nth % self.list.len());
                assert!(self.wheel.disarm(gone.node));
                self.stale.push(gone.node);
            }
            Step::Rearm(nth, ahead) if !self.list.is_empty() => {
                let nth = nth % self.list.len();
                let armed = &mut self.list[nth];
                (armed.at, armed.since) = (self.now + ahead, self.now);
                assert!(self.wheel.rearm(armed.node, armed.at));
            }
            Step::Disarm(_) | Step::Rearm(..) => {}
            Step::Sleep(length) => {
                self.now += length;
                self.poll();
            }
            Step::Follow(times) => {
                for _ in 0..times {
                    let Some(next) = self.wheel.next() else { return };
                    self.now = self.now.max(next);
                    self.poll();
                }
            }
            Step::UseStale(nth) => {
                if let Some(&node) = nth.checked_rem(self.stale.len()).and_then(|nth| self.stale.get(nth)) {
                    assert!(!self.wheel.disarm(node) && !self.wheel.rearm(node, self.now));
                }
            }
        }
        self.check();
    }

    fn poll(&mut self) {
        while let Some(key) = self.wheel.expire(self.now) {
            let nth = self.list.iter().position(|armed| armed.key == key).expect("armed, and not due before");
            let fired = self.list.swap_remove(nth);
            assert!(fired.at <= self.now, "{:?} is due before {:?}", self.now, fired.at);
            self.stale.push(fired.node);
        }
        for armed in &self.list {
            assert!(self.now < armed.latest_poll(), "{:?} is not due at {:?}", armed.at, self.now);
        }
        if let Some(next) = self.wheel.next() {
            assert!(next > self.now, "polling again at once would be of no use");
        }
    }

    fn check(&self) {
        assert_eq!((self.wheel.len(), self.wheel.is_empty()), (self.list.len(), self.list.is_empty()));
        match (self.wheel.next(), self.list.iter().map(Armed::latest_poll).min()) {
            (None, None) => {}
            (Some(next), Some(latest)) => assert!(next <= latest, "{next:?} misses {latest:?}"),
            (next, latest) => panic!("next is {next:?}, the list says {latest:?}"),
        }
    }
}

/// Lengths of time of every magnitude, from nanoseconds over all levels to beyond the wheel's horizon.
fn length() -> impl Strategy<Value = Duration> {
    let tick = TICK.as_nanos() as u64;
    prop_oneof![
        2 => 0..3 * tick,
        4 => 0..300 * tick,
        4 => 0..70_000 * tick,
        2 => 0..(1 << 24) * tick,
        1 => 0..(1 << 26) * tick,
        3 => (0_u64..70_000).prop_map(move |ticks| ticks * tick),
        2 => (0_u32..27).prop_map(move |power| tick << power),
    ]
    .prop_map(Duration::from_nanos)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => length().prop_map(Step::Arm),
        1 => length().prop_map(Step::ArmPast),
        3 => any::<usize>().prop_map(Step::Disarm),
        3 => (any::<usize>(), length()).prop_map(|(nth, ahead)| Step::Rearm(nth, ahead)),
        4 => length().prop_map(Step::Sleep),
        4 => (1_usize..8).prop_map(Step::Follow),
        1 => any::<usize>().prop_map(Step::UseStale),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_key_is_due_early_and_none_is_missed(
        start in prop_oneof![Just(0), 0..1_u64 << 50, Just((1 << 51) - 1), Just(1_790_000_000_000_000_000)],
        steps in proptest::collection::vec(step(), 1..100),
    ) {
        let mut bench = Bench::new(Instant::from_nanos(start));
        for step in &steps {
            bench.take(step);
        }
        // Whatever is armed comes in the end, in a number of polls that does not depend on how long it takes.
        bench.take(&Step::Follow(8 * bench.list.len()));
        prop_assert_eq!(bench.wheel.len(), 0);
    }
}

#[test]
fn keys_come_in_order_of_their_ticks_after_a_long_suspend() {
    let start = Instant::from_nanos(12_345);
    let mut wheel = Wheel::new(start);
    for key in (0..2000_u32).rev() {
        wheel.arm(key, start + TICK * 37 * key);
    }
    let keys: Vec<u32> = std::iter::from_fn(|| wheel.expire(start + Duration::from_secs(365 * 86_400))).collect();
    assert_eq!(keys, (0..2000).collect::<Vec<_>>());
    assert_eq!(wheel.next(), None);
}

#[test]
fn a_deadline_that_is_never_reached_does_no_harm() {
    let mut wheel = Wheel::new(Instant::EPOCH);
    let end_of_time = Instant::from_nanos(u64::MAX);
    let node = wheel.arm(1, end_of_time);
    wheel.arm(2, Instant::EPOCH);
    assert_eq!(wheel.expire(end_of_time), Some(2));
    assert_eq!(wheel.expire(end_of_time), None, "its tick ends after the end of time");
    assert_eq!(wheel.next(), Some(end_of_time));
    assert!(wheel.disarm(node));
    assert_eq!(wheel.next(), None);
}

#[test]
fn a_clock_that_goes_back_makes_nothing_due() {
    let late = Instant::EPOCH + TICK * 1000;
    let mut wheel = Wheel::new(Instant::EPOCH);
    wheel.arm(1, late);
    wheel.arm(2, late);
    assert!(wheel.expire(late).is_some());
    assert_eq!(wheel.expire(late - Duration::from_nanos(1)), None);
    assert!(wheel.expire(late).is_some());
}

#[test]
fn arming_a_past_deadline_for_every_key_that_is_due_comes_to_an_end() {
    let now = Instant::EPOCH + TICK * 5;
    let mut wheel = Wheel::new(Instant::EPOCH);
    wheel.arm(7, now);
    let mut due = 0;
    while let Some(key) = wheel.expire(now) {
        wheel.arm(key, now);
        due += 1;
    }
    assert_eq!((due, wheel.len()), (1, 1));
    assert_eq!(wheel.expire(now + TICK), Some(7));
}

#[test]
fn a_past_deadline_is_due_one_tick_after_the_last_poll() {
    let now = Instant::EPOCH + TICK * 1000;
    let mut wheel = Wheel::new(Instant::EPOCH);
    assert_eq!(wheel.expire(now), None);
    wheel.arm(1, Instant::EPOCH);
    assert_eq!((wheel.next(), wheel.expire(now)), (Some(now + TICK), None));
    assert_eq!(wheel.expire(now + TICK), Some(1));
}

#[test]
fn a_stale_name_does_not_reach_the_deadline_that_took_its_place() {
    let mut wheel = Wheel::new(Instant::EPOCH);
    let first = wheel.arm(1, Instant::EPOCH + TICK);
    assert!(wheel.disarm(first));
    let second = wheel.arm(2, Instant::EPOCH + TICK);
    assert!(!wheel.disarm(first) && !wheel.rearm(first, Instant::EPOCH + TICK * 9));
    assert_eq!(wheel.expire(Instant::EPOCH + TICK), Some(2));
    assert!(!wheel.disarm(second));
}
