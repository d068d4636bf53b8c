//! Owns packets that wait for a session: a bounded queue per peer and the memory that all of them share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Packets staged per peer; the oldest goes when one more comes, as in Linux.
pub(crate) const MAX_STAGED: usize = 128;

/// Bytes staged by all engines of a process together: 2000 full queues of 128 small packets, or 180 of full-size ones.
const PROCESS_LIMIT_BYTES: usize = 32 << 20;

/// Memory that several engines share for staged packets.
#[derive(Clone, Debug)]
pub struct StagingBudget {
    used_bytes: Arc<AtomicUsize>,
    limit_bytes: usize,
}

impl StagingBudget {
    /// A budget of its own.
    pub fn new(limit_bytes: usize) -> Self {
        StagingBudget { used_bytes: Arc::default(), limit_bytes }
    }

    /// The budget of the process, 32 MiB, which every engine uses unless told otherwise.
    pub fn of_process() -> Self {
        static PROCESS: OnceLock<StagingBudget> = OnceLock::new();
        PROCESS.get_or_init(|| StagingBudget::new(PROCESS_LIMIT_BYTES)).clone()
    }

    /// Bytes staged now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.limit_bytes;
        if !taken {
            self.give_back(bytes);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What became of a packet that was to be staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StageOutcome {
    /// It waits.
    Staged,
    /// It waits; the oldest one had to go.
    OldestDropped,
    /// It was dropped: the shared memory is used up.
    NoMemory,
}

/// The packets one peer has staged, oldest first. Gives its memory back when dropped.
#[derive(Debug)]
pub(crate) struct Staged {
    packets: VecDeque<Box<[u8]>>,
    budget: StagingBudget,
}

impl Staged {
    pub(crate) fn new(budget: StagingBudget) -> Self {
        Staged { packets: VecDeque::new(), budget }
    }

    pub(crate) fn push(&mut self, packet: &[u8]) -> StageOutcome {
        if !self.budget.take(packet.len()) {
            return StageOutcome::NoMemory;
        }
        let overflow = self.packets.len() >= MAX_STAGED && self.pop().is_some();
        self.packets.push_back(packet.into());
        if overflow { StageOutcome::OldestDropped } else { StageOutcome::Staged }
    }

    /// The oldest packet.
    pub(crate) fn pop(&mut self) -> Option<Box<[u8]>> {
        let packet = self.packets.pop_front()?;
        self.budget.give_back(packet.len());
        Some(packet)
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_packet_goes_when_the_queue_is_full() {
        let mut staged = Staged::new(StagingBudget::new(1 << 20));
        for number in 0..MAX_STAGED {
            assert_eq!(staged.push(&[number as u8]), StageOutcome::Staged);
        }
        assert_eq!(staged.push(&[255]), StageOutcome::OldestDropped);
        assert_eq!(staged.len(), MAX_STAGED);
        assert_eq!(staged.pop().as_deref(), Some([1].as_slice()));
    }

    #[test]
    fn the_budget_bounds_all_queues_together_and_gets_everything_back() {
        let budget = StagingBudget::new(100);
        let mut one = Staged::new(budget.clone());
        let mut two = Staged::new(budget.clone());
        assert_eq!(one.push(&[0; 60]), StageOutcome::Staged);
        assert_eq!(two.push(&[0; 60]), StageOutcome::NoMemory);
        assert_eq!(two.push(&[0; 40]), StageOutcome::Staged);
        assert_eq!(budget.used_bytes(), 100);
        drop(one);
        assert!(two.pop().is_some());
        assert_eq!(budget.used_bytes(), 0);
    }
}
