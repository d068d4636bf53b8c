//! Owns the name of a peer inside one engine.

/// Names a peer inside one engine, as long as it is configured: its slot, and how often the slot was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    slot: u32,
    generation: u32,
}

impl PeerId {
    /// The peer in `slot`, the `generation`-th to live there.
    pub const fn new(slot: u32, generation: u32) -> Self {
        PeerId { slot, generation }
    }

    /// The peer's place in the engine's table.
    #[inline]
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// How many peers had this slot before.
    #[inline]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}
