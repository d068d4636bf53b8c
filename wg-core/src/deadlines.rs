//! Owns the wheel: which key is due when, and which is next. Does not know what a key or its deadline stands for.
//!
//! How it turns: time is cut into ticks, and a deadline belongs to the first tick that does not begin before it. Level 0
//! has a slot for each of the next 255 ticks; a slot of level 1 holds 256 ticks, one of level 2 holds 65536. When the
//! wheel reaches the start of a slot of a higher level, it moves that slot's entries down. A deadline beyond level 2, 26
//! days away, lies in the slot it will have in its last round, and is put there again once in every round before. The
//! wheel jumps from one occupied slot to the next, so that an hour of suspended time costs no more than a second.

use std::time::Duration;

use crate::time::Instant;

/// The wheel's resolution, 134 ms: a power of two, and half of the shortest time the engine waits for anything.
pub const TICK: Duration = Duration::from_nanos(1 << TICK_BITS);

/// A hierarchical timing wheel from deadline to `u32` key.
///
/// Nothing is due before its deadline; polled when [`Wheel::next`] says so, nothing is due more than a tick after it.
#[derive(Clone, Debug)]
pub struct Wheel {
    /// The tick up to which the wheel has turned. Level 0's slot for it holds what is due now.
    current: u64,
    levels: [Level; LEVELS],
    nodes: Vec<Node>,
    unused: u32,
    armed: usize,
}

/// Names one armed deadline until it is due or disarmed; afterwards it names nothing, also when its memory is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WheelNode {
    index: u32,
    use_count: u32,
}

impl Wheel {
    /// A wheel with nothing armed that has turned up to `now`.
    pub fn new(now: Instant) -> Self {
        Wheel {
            current: tick_at(now),
            levels: std::array::from_fn(|_| Level::default()),
            nodes: Vec::new(),
            unused: NO_NODE,
            armed: 0,
        }
    }

    /// Makes `key` due at `at`. A deadline that has passed is due at the next tick, so that whoever arms a past
    /// deadline for each key that is due still comes to an end.
    pub fn arm(&mut self, key: u32, at: Instant) -> WheelNode {
        let index = self.allocate(key, at);
        self.place(index, self.current + 1);
        WheelNode { index, use_count: self.nodes[index as usize].use_count }
    }

    /// Forgets the deadline. Returns `false` if it was due or disarmed before.
    pub fn disarm(&mut self, node: WheelNode) -> bool {
        let armed = self.is_armed(node);
        if armed {
            self.unlink(node.index);
            self.release(node.index);
        }
        armed
    }

    /// Moves the deadline to `at`, as [`Wheel::arm`] would place it. Returns `false`, with nothing armed, if it was due
    /// or disarmed before.
    pub fn rearm(&mut self, node: WheelNode, at: Instant) -> bool {
        let armed = self.is_armed(node);
        if armed {
            self.unlink(node.index);
            self.nodes[node.index as usize].due = tick_not_before(at);
            self.place(node.index, self.current + 1);
        }
        armed
    }

    /// When to call [`Wheel::expire`] next: never later than the earliest deadline rounded up to a tick, but earlier if
    /// the wheel has to move entries down before. `None` if nothing is armed. Cost: constant.
    pub fn next(&self) -> Option<Instant> {
        self.next_turn().map(|tick| Instant::from_nanos(tick.saturating_mul(1 << TICK_BITS)))
    }

    /// The next key that is due, which is no longer armed then; `None` when nothing more is due at `now`.
    ///
    /// Keys come in order of their ticks, and in no particular order within a tick. A `now` earlier than one before
    /// yields nothing. Cost: constant per key, over its life; the length of time that passed does not matter.
    pub fn expire(&mut self, now: Instant) -> Option<u32> {
        let target = tick_at(now);
        if target < self.current {
            return None;
        }
        loop {
            let first = self.levels[0].heads[slot_of(self.current, 0)];
            if let Some(node) = self.nodes.get(first as usize) {
                let key = node.key;
                self.unlink(first);
                self.release(first);
                return Some(key);
            }
            match self.next_turn() {
                Some(tick) if tick <= target => self.turn_to(tick),
                _ => {
                    self.current = target;
                    return None;
                }
            }
        }
    }

    /// The number of armed deadlines.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether nothing is armed.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// The tick at which the wheel has something to do: yield keys or move entries down.
    fn next_turn(&self) -> Option<u64> {
        let due = self.levels[0].slots_until_occupied(slot_of(self.current, 0)).map(|slots| self.current + slots);
        let moves = (1..LEVELS).filter_map(|level| {
            // The slot the wheel stands in has been moved down; what it holds is for the next round.
            let after = self.levels[level].slots_until_occupied(slot_of(self.current, level) + 1)?;
            Some(((self.current >> (SLOT_BITS * level)) + 1 + after) << (SLOT_BITS * level))
        });
        due.into_iter().chain(moves).min()
    }

    /// Turns the wheel to `tick`, with nothing to do in between, and moves down what begins there.
    fn turn_to(&mut self, tick: u64) {
        self.current = tick;
        for level in 1..LEVELS {
            if tick & ((1 << (SLOT_BITS * level)) - 1) != 0 {
                continue;
            }
            let mut index = self.levels[level].take(slot_of(tick, level));
            while let Some(&Node { next, .. }) = self.nodes.get(index as usize) {
                self.place(index, tick);
                index = next;
            }
        }
    }

    /// Links an unlinked node into the slot for its tick, but none before `earliest`.
    fn place(&mut self, index: u32, earliest: u64) {
        let due = self.nodes[index as usize].due.max(earliest);
        let level = match due - self.current {
            0..LEVEL_1 => 0,
            LEVEL_1..LEVEL_2 => 1,
            _ => 2,
        };
        let slot = slot_of(due, level);
        let next = self.levels[level].push(slot, index);
        if let Some(node) = self.nodes.get_mut(next as usize) {
            node.previous = index;
        }
        let node = &mut self.nodes[index as usize];
        (node.previous, node.next) = (NO_NODE, next);
        (node.level, node.slot) = (level as u8, slot as u8);
    }

    fn unlink(&mut self, index: u32) {
        let Node { previous, next, level, slot, .. } = self.nodes[index as usize];
        if let Some(node) = self.nodes.get_mut(next as usize) {
            node.previous = previous;
        }
        match self.nodes.get_mut(previous as usize) {
            Some(node) => node.next = next,
            None => self.levels[usize::from(level)].set_head(usize::from(slot), next),
        }
    }

    fn is_armed(&self, node: WheelNode) -> bool {
        self.nodes.get(node.index as usize).is_some_and(|found| found.use_count == node.use_count)
    }

    fn allocate(&mut self, key: u32, at: Instant) -> u32 {
        self.armed += 1;
        let due = tick_not_before(at);
        let index = self.unused;
        if let Some(node) = self.nodes.get_mut(index as usize) {
            self.unused = node.next;
            (node.key, node.due) = (key, due);
            return index;
        }
        self.nodes.push(Node { due, key, use_count: 0, previous: NO_NODE, next: NO_NODE, level: 0, slot: 0 });
        u32::try_from(self.nodes.len() - 1).expect("memory ends before 2^32 nodes")
    }

    fn release(&mut self, index: u32) {
        self.armed -= 1;
        let node = &mut self.nodes[index as usize];
        node.use_count = node.use_count.wrapping_add(1);
        node.next = std::mem::replace(&mut self.unused, index);
    }
}

#[derive(Clone, Debug)]
struct Node {
    /// The tick at which the key is due.
    due: u64,
    key: u32,
    /// How often this memory held a deadline before.
    use_count: u32,
    previous: u32,
    next: u32,
    level: u8,
    slot: u8,
}

/// 256 lists, and a bit for each that is not empty.
#[derive(Clone, Debug)]
struct Level {
    occupied: [u64; SLOTS / 64],
    heads: [u32; SLOTS],
}

impl Default for Level {
    fn default() -> Self {
        Level { occupied: [0; SLOTS / 64], heads: [NO_NODE; SLOTS] }
    }
}

impl Level {
    /// Makes `index` the first of `slot` and returns the one it precedes.
    fn push(&mut self, slot: usize, index: u32) -> u32 {
        let next = self.heads[slot];
        self.set_head(slot, index);
        next
    }

    fn take(&mut self, slot: usize) -> u32 {
        let first = self.heads[slot];
        self.set_head(slot, NO_NODE);
        first
    }

    fn set_head(&mut self, slot: usize, index: u32) {
        self.heads[slot] = index;
        let bit = 1 << (slot % 64);
        if index == NO_NODE {
            self.occupied[slot / 64] &= !bit;
        } else {
            self.occupied[slot / 64] |= bit;
        }
    }

    /// The distance from slot `from`, which may be one past the last, to the first occupied one, going round.
    fn slots_until_occupied(&self, from: usize) -> Option<u64> {
        let from = from % SLOTS;
        let (word, bit) = (from / 64, from % 64);
        // The word `from` lies in comes first without the bits before it, and last with them.
        let ahead = self.occupied[word] >> bit;
        if ahead != 0 {
            return Some(u64::from(ahead.trailing_zeros()));
        }
        (1..=self.occupied.len()).find_map(|step| {
            let bits = self.occupied[(word + step) % self.occupied.len()];
            (bits != 0).then(|| (step * 64 - bit) as u64 + u64::from(bits.trailing_zeros()))
        })
    }
}

/// The last tick that has begun at `now`.
fn tick_at(now: Instant) -> u64 {
    now.as_nanos() >> TICK_BITS
}

/// The first tick that does not begin before `at`.
fn tick_not_before(at: Instant) -> u64 {
    at.as_nanos().div_ceil(1 << TICK_BITS)
}

fn slot_of(tick: u64, level: usize) -> usize {
    (tick >> (SLOT_BITS * level)) as usize % SLOTS
}

const TICK_BITS: u32 = 27;
const SLOT_BITS: usize = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 3;
/// Ticks ahead from which on a deadline belongs to level 1.
const LEVEL_1: u64 = 1 << SLOT_BITS;
/// Ticks ahead from which on a deadline belongs to level 2.
const LEVEL_2: u64 = 1 << (2 * SLOT_BITS);
const NO_NODE: u32 = u32::MAX;
