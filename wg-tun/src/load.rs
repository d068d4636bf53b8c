//! Owns what follows from how much a worker has to do: whether another one is needed, and how it is to be scheduled. Pure:
//! the time is told.

use std::time::Duration;

use wg_core::Instant;

use crate::cmsg::Scheduling;

/// How long a worker works before it looks at anything else, its own budget among it.
pub(crate) const MAX_TURN: Duration = Duration::from_millis(2);

/// How often a worker looks how busy it is, and which share of the time is busy.
const LOOK_AT_LOAD_EVERY: Duration = Duration::from_millis(500);
const BUSY: f64 = 0.7;

/// How much of every so long a worker may run in real time, and how much work in the one before makes it do so.
const BOOST_WINDOW: Duration = Duration::from_millis(20);
const BOOST_BUDGET: Duration = Duration::from_millis(16);
const BOOST_FROM: Duration = Duration::from_millis(1);
/// With fewer packets than this for each time it is woken it does not, for so long.
const FEW_PACKETS: u64 = 16;
const BOOST_PAUSE: Duration = Duration::from_millis(500);

/// How much of the time the thread had nothing to do. Time in which it had to wait for a processor is not among it.
#[derive(Debug)]
pub(crate) struct Load {
    since: Instant,
    asleep: Duration,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Load {
        Load { since: now, asleep: Duration::ZERO }
    }

    pub(crate) fn add_sleep(&mut self, slept: Duration) {
        self.asleep += slept;
    }

    /// Whether there was hardly a moment without work lately. Asked often, it answers with yes once every half second.
    pub(crate) fn is_busy(&mut self, now: Instant) -> bool {
        let passed = now.since(self.since);
        if passed < LOOK_AT_LOAD_EVERY {
            return false;
        }
        let is_busy = self.asleep < passed.mul_f64(1.0 - BUSY);
        *self = Load { since: now, asleep: Duration::ZERO };
        is_busy
    }
}

/// Real-time scheduling under load, within a budget.
///
/// A thread that is scheduled fairly waits, when it wakes up, until those that run have had their turn: a millisecond or
/// four, in which bulk senders put megabytes in front of it. So a worker with work to do runs before such threads, but for
/// no more than a share of the time, which is looked at each time it has worked for [`MAX_TURN`]. One that is mostly idle needs no help, and is woken sooner without it. One that is woken for every
/// small packet would keep its sender from sending the next ones: it does better when it waits.
#[derive(Debug)]
pub(crate) struct Boost {
    is_possible: bool,
    is_on: bool,
    /// When the window began, and what was done in it.
    window: Instant,
    used: Duration,
    wakes: u64,
    packets: u64,
    was_loaded: bool,
    /// Real time that was used and not yet earned: what is overdrawn in one window is missing in the next.
    debt: Duration,
    /// Until when it waits like others.
    off_until: Instant,
}

/// What a worker did between two waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) worked: Duration,
    pub(crate) packets: u64,
}

impl Boost {
    pub(crate) fn new(is_wanted: bool) -> Boost {
        Boost {
            is_possible: is_wanted,
            is_on: false,
            window: Instant::EPOCH,
            used: Duration::ZERO,
            wakes: 0,
            packets: 0,
            was_loaded: false,
            debt: Duration::ZERO,
            off_until: Instant::EPOCH,
        }
    }

    /// The kernel does not allow it.
    pub(crate) fn give_up(&mut self) {
        self.is_possible = false;
    }

    /// Tells what the thread did since it was last told. Returns how it is to be scheduled, if that changes.
    pub(crate) fn spend(&mut self, turn: Turn, now: Instant) -> Option<Scheduling> {
        if !self.is_possible {
            return None;
        }
        self.used += turn.worked;
        self.packets += turn.packets;
        self.wakes += 1;
        if self.is_on {
            self.debt += turn.worked;
        }
        let passed = now.since(self.window);
        if passed >= BOOST_WINDOW {
            self.was_loaded = passed < 2 * BOOST_WINDOW && self.used >= BOOST_FROM;
            if self.is_on && self.was_loaded && self.packets < FEW_PACKETS * self.wakes {
                self.off_until = now + BOOST_PAUSE;
            }
            (self.window, self.used, self.packets, self.wakes) = (now, Duration::ZERO, 0, 0);
            self.debt =
                self.debt.saturating_sub(passed.mul_f64(BOOST_BUDGET.as_secs_f64() / BOOST_WINDOW.as_secs_f64()));
        }
        let is_on = self.was_loaded && self.debt < BOOST_BUDGET && now >= self.off_until;
        if is_on == self.is_on {
            return None;
        }
        self.is_on = is_on;
        Some(if is_on { Scheduling::Realtime } else { Scheduling::Fair })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn at(milliseconds: u64) -> Instant {
        Instant::EPOCH + Duration::from_secs(100) + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_loaded_worker_runs_in_real_time_for_no_more_than_its_budget_and_an_idle_one_never() {
        let mut boost = Boost::new(true);
        let mut spend = |worked: Duration, at| boost.spend(Turn { worked, packets: 100 }, at);
        assert_eq!(spend(Duration::ZERO, at(0)), None);
        // Little work in this window and the next.
        assert_eq!(spend(MILLISECOND / 2, at(10)), None);
        assert_eq!(spend(MILLISECOND / 4, at(20)), None);
        assert_eq!(spend(5 * MILLISECOND, at(30)), None, "what this window has counts in the next");
        assert_eq!(spend(5 * MILLISECOND, at(40)), Some(Scheduling::Realtime));
        assert_eq!(spend(15 * MILLISECOND, at(55)), None);
        assert_eq!(spend(MILLISECOND, at(56)), Some(Scheduling::Fair));
        assert_eq!(spend(3 * MILLISECOND, at(59)), None, "the budget is one of the window");
        assert_eq!(spend(MILLISECOND, at(60)), Some(Scheduling::Realtime));
        // It slept for longer than a window.
        assert_eq!(spend(2 * MILLISECOND, at(200)), Some(Scheduling::Fair));
        let turn = Turn { worked: 10 * MILLISECOND, packets: 100 };
        assert_eq!(Boost::new(false).spend(turn, at(300)), None);
    }

    #[test]
    fn the_budget_holds_however_long_the_turns_are() {
        for turn_len in [1, 3, 5, 7, 10, 12, 25] {
            let mut boost = Boost::new(true);
            let mut in_real_time = Duration::ZERO;
            let turn = Turn { worked: turn_len * MILLISECOND, packets: 100 };
            for number in 0..1000 {
                if boost.is_on {
                    in_real_time += turn.worked;
                }
                boost.spend(turn, at(u64::from(turn_len * number)));
            }
            let share = in_real_time.as_secs_f64() / (1000 * turn.worked).as_secs_f64();
            assert!((0.5..0.82).contains(&share), "{share} of the time with turns of {turn_len} ms");
        }
    }

    #[test]
    fn a_worker_that_is_woken_for_every_packet_waits_like_others_for_a_while() {
        let mut boost = Boost::new(true);
        let mut changes = Vec::new();
        for time in 0..600 {
            let turn = Turn { worked: MILLISECOND / 2, packets: FEW_PACKETS - 1 };
            changes.extend(boost.spend(turn, at(time)).map(|scheduling| (time, scheduling)));
        }
        let (on, off) = (Scheduling::Realtime, Scheduling::Fair);
        assert_eq!(changes, [(20, on), (40, off), (540, on), (560, off)]);
    }

    #[test]
    fn a_worker_is_busy_that_hardly_sleeps() {
        for (asleep, is_busy) in [(100, true), (200, false)] {
            let mut load = Load { since: at(0), asleep: Duration::ZERO };
            load.asleep += asleep * MILLISECOND;
            assert!(!load.is_busy(at(499)), "too early to tell");
            assert_eq!(load.is_busy(at(500)), is_busy, "asleep for {asleep} of 500 ms");
            assert!(!load.is_busy(at(501)), "it answers once");
        }
    }
}
