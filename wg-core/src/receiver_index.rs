//! Owns the numbers that name our sessions on the wire, and the way back from a number to a peer's slot.
//! Holds no table and does not know which numbers are in use.
//!
//! A receiver index is a keyed permutation of (slot, generation): whoever does not know the key can neither tell slots
//! apart nor guess an index in use, and a number of an earlier generation leads to a generation that is no longer there.
//! That is what the paper's random index is for; it guards no secret. \[W\] 5.4.2.

/// Bits of a slot.
pub const SLOT_BITS: u32 = 20;
/// Bits of a generation.
pub const GENERATION_BITS: u32 = 4;
/// Bits of an index.
pub const INDEX_BITS: u32 = SLOT_BITS + GENERATION_BITS;

/// A keyed permutation over the 24-bit receiver indices: a Feistel network of four rounds over two halves of 12 bits.
#[derive(Clone)]
pub struct ReceiverIndices {
    round_keys: [u64; ROUNDS],
}

impl ReceiverIndices {
    /// The permutation that belongs to `seed`, 16 random bytes.
    pub fn new(seed: [u8; 16]) -> Self {
        let (low, high) = (u128::from_le_bytes(seed) as u64, (u128::from_le_bytes(seed) >> 64) as u64);
        // Each step is a bijection of the running key, so that different seeds have different round keys.
        let mut key = low;
        let round_keys = std::array::from_fn(|round| {
            key = mix(key.wrapping_add(GOLDEN_RATIO)) ^ high.rotate_left(16 * round as u32);
            key
        });
        ReceiverIndices { round_keys }
    }

    /// The index that names `slot` (below 2^20) in its `generation` (below 2^4); 24 bits.
    #[inline]
    pub fn issue(&self, slot: u32, generation: u8) -> u32 {
        debug_assert!(slot >> SLOT_BITS == 0 && generation >> GENERATION_BITS == 0, "slot and generation have a range");
        let name = u32::from(generation) << SLOT_BITS | slot;
        let (mut left, mut right) = (name >> HALF_BITS & HALF_MASK, name & HALF_MASK);
        for key in self.round_keys {
            (left, right) = (right, left ^ round(right, key));
        }
        left << HALF_BITS | right
    }

    /// The slot and generation that `index24` names; every 24-bit number names one. Higher bits are ignored.
    #[inline]
    pub fn find(&self, index24: u32) -> (u32, u8) {
        let (mut left, mut right) = (index24 >> HALF_BITS & HALF_MASK, index24 & HALF_MASK);
        for key in self.round_keys.into_iter().rev() {
            (left, right) = (right ^ round(left, key), left);
        }
        let name = left << HALF_BITS | right;
        (name & SLOT_MASK, (name >> SLOT_BITS) as u8)
    }
}

impl std::fmt::Debug for ReceiverIndices {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ReceiverIndices(hidden)")
    }
}

#[inline]
fn round(half: u32, key: u64) -> u32 {
    mix(u64::from(half) ^ key) as u32 & HALF_MASK
}

/// Spreads every input bit over all output bits: two multiplications by odd numbers, each followed by a fold.
#[inline]
fn mix(input: u64) -> u64 {
    let once = (input ^ input >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let twice = (once ^ once >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    twice ^ twice >> 32
}

/// Four rounds make a strong pseudo-random permutation out of pseudo-random functions (Luby and Rackoff, 1988).
const ROUNDS: usize = 4;
const HALF_BITS: u32 = INDEX_BITS / 2;
const HALF_MASK: u32 = (1 << HALF_BITS) - 1;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// 2^64 divided by the golden ratio; keeps a zero seed from giving zero keys.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u32 = 1 << SLOT_BITS;
    const GENERATIONS: u8 = 1 << GENERATION_BITS;

    fn sample(indices: &ReceiverIndices) -> Vec<u32> {
        (0..64).map(|step| indices.issue((step * 0x3fff) & SLOT_MASK, step as u8 % GENERATIONS)).collect()
    }

    #[test]
    fn every_name_has_its_own_index_of_24_bits_and_is_found_by_it() {
        let indices = ReceiverIndices::new([0x5a; 16]);
        let mut is_issued = vec![false; 1 << INDEX_BITS];
        for generation in 0..GENERATIONS {
            for slot in 0..SLOTS {
                let index = indices.issue(slot, generation);
                assert!(!std::mem::replace(&mut is_issued[index as usize], true), "{index} names two");
                assert_eq!(indices.find(index), (slot, generation));
            }
        }
        assert!(is_issued.iter().all(|&issued| issued));
    }

    #[test]
    fn seeds_that_differ_in_one_bit_give_other_permutations() {
        let zero = sample(&ReceiverIndices::new([0; 16]));
        for bit in 0..128 {
            let other = sample(&ReceiverIndices::new(u128::to_le_bytes(1 << bit)));
            let same = zero.iter().zip(&other).filter(|(left, right)| left == right).count();
            assert!(same <= 2, "bit {bit} leaves {same} of 64 indices as they were");
        }
        assert_eq!(zero, sample(&ReceiverIndices::new([0; 16])));
    }

    #[test]
    fn neighbouring_names_have_unrelated_indices() {
        let indices = ReceiverIndices::new(*b"0123456789abcdef");
        for bit in 0..INDEX_BITS {
            let flips = (0..1000_u32).map(|step| {
                let name = step.wrapping_mul(0x9e37_79b9) >> 8;
                let of = |name: u32| indices.issue(name & SLOT_MASK, (name >> SLOT_BITS) as u8);
                (of(name) ^ of(name ^ 1 << bit)).count_ones()
            });
            let mean = f64::from(flips.sum::<u32>()) / 1000.0;
            assert!((11.0..13.0).contains(&mean), "bit {bit} of a name flips {mean} of 24 bits");
        }
    }

    #[test]
    fn bits_above_the_index_do_not_matter_to_find() {
        let indices = ReceiverIndices::new([1; 16]);
        assert_eq!(indices.find(0xff00_0000 | indices.issue(77, 3)), (77, 3));
    }
}
