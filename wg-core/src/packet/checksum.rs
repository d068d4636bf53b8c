//! Owns the Internet checksum: sums over bytes and pseudo-headers, and changes to a checksum that is already there.
//! Knows no header's layout; the caller says where a checksum lies. RFC 1071, RFC 1624.
//!
//! A *partial sum* is a `u32` that [`fold`] turns into 16 bits. Each function here returns at most 0xffff (a
//! pseudo-header at most 0x4_ffff), so that thousands of partial sums can be added before one must be folded.

use std::net::{Ipv4Addr, Ipv6Addr};

/// One's complement sum of `bytes` as big-endian 16-bit words, a last odd byte counting as the high half of a word.
///
/// The result is folded, at most 0xffff; partial sums of pieces may be added if every piece but the last has an even
/// length. RFC 1071 1.
#[inline]
pub fn sum(bytes: &[u8]) -> u32 {
    // The sum does not depend on byte order, nor on the width of the words added: swap once, fold at the end.
    // RFC 1071 2 (B), (C).
    let (blocks, rest) = bytes.as_chunks::<BLOCK_LEN>();
    let mut lanes = [0_u64; LANES];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    // A lane holds the sum of at most len/32 words of 32 bits, so it cannot overflow, nor can their sum.
    let mut total: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    u32::from(u16::from_be(fold_wide(total)))
}

/// The partial sum as 16 bits: carries are added back until there are none.
#[inline]
pub const fn fold(partial: u32) -> u16 {
    let once = (partial >> 16) + (partial & 0xffff);
    ((once >> 16) + (once & 0xffff)) as u16
}

/// The checksum of `bytes`: the complement of their sum. Over bytes that include a correct checksum it is zero.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// Partial sum of the pseudo-header in front of an upper-layer packet of `len` bytes. RFC 793 3.1, RFC 768.
#[inline]
pub fn pseudo_header_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> u32 {
    sum(&source.octets()) + sum(&destination.octets()) + u32::from(protocol) + u32::from(len)
}

/// Partial sum of the pseudo-header in front of an upper-layer packet of `len` bytes. RFC 8200 8.1.
#[inline]
pub fn pseudo_header_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: u32) -> u32 {
    sum(&source.octets()) + sum(&destination.octets()) + u32::from(protocol) + (len >> 16) + (len & 0xffff)
}

/// The checksum after one aligned 16-bit word it covers changed from `old` to `new`. RFC 1624 3, equation 3.
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u32 + !old as u32 + new as u32)
}

/// The checksum after aligned words it covers changed from `old` to `new`, of the same even length, such as an address.
///
/// RFC 1624 3, equation 3, over many words at once.
#[inline]
pub fn update_bytes(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    debug_assert!(old.len() == new.len() && old.len().is_multiple_of(2), "words are replaced by words");
    // The complement of a sum is the sum of complements: negation is linear.
    !fold(u32::from(!checksum) + u32::from(!fold(sum(old))) + sum(new))
}

#[inline]
fn fold_wide(sum: u64) -> u16 {
    let half = (sum >> 32) + (sum & 0xffff_ffff);
    let half = (half >> 32) + (half & 0xffff_ffff);
    fold(half as u32)
}

/// Enough lanes for two vectors of 256 bits, or four of 128.
const LANES: usize = 8;
const BLOCK_LEN: usize = LANES * 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// From the definition: pairs of bytes as numbers, added; a last odd byte with a zero behind it; carries added back.
    /// RFC 1071 1.
    fn oracle(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) * 256 + pair.get(1).map_or(0, |&low| u64::from(low));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Bytes that look random, the same in every run.
    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(draw).take(len).collect()
    }

    #[test]
    fn the_examples_of_the_rfcs_come_out() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2, "RFC 1071 3");
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000, "RFC 1624 4");
    }

    #[test]
    fn every_length_at_every_alignment_sums_like_pairs_of_bytes() {
        let bytes = noise(400, 1);
        for start in 0..40 {
            for end in start..bytes.len() {
                assert_eq!(sum(&bytes[start..end]), u32::from(oracle(&bytes[start..end])), "{start}..{end}");
            }
        }
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        for len in [1, 2, 31, 32, 33, 1419, 1420, 65_535, 1 << 20] {
            for byte in [0x00, 0x01, 0x80, 0xff] {
                let bytes = vec![byte; len];
                assert_eq!(sum(&bytes), u32::from(oracle(&bytes)), "{len} times {byte}");
            }
        }
    }

    #[test]
    fn a_carry_out_of_a_carry_is_not_lost() {
        // 2^33 - 1 in 32-bit words: its two halves add up to 2^32.
        for one in [[1, 0, 0, 0], [0, 0, 0, 1]] {
            let bytes = [[0xff; 4], [0xff; 4], one].concat();
            assert_eq!(sum(&bytes), u32::from(oracle(&bytes)));
        }
    }

    #[test]
    fn a_fold_adds_every_carry_back() {
        for (partial, folded) in [
            (0, 0),
            (0xffff, 0xffff),
            (0x1_0000, 1),
            (0x1_ffff, 1),
            (0xffff_0000, 0xffff),
            (0xffff_0001, 1),
            (u32::MAX, 0xffff),
        ] {
            assert_eq!(fold(partial), folded, "{partial:#x}");
        }
    }

    #[test]
    fn pieces_of_even_length_add_up_to_the_whole() {
        let bytes = noise(333, 2);
        for cut in (0..bytes.len()).step_by(2) {
            let (left, right) = bytes.split_at(cut);
            assert_eq!(fold(sum(left) + sum(right)), oracle(&bytes), "{cut}");
        }
    }

    #[test]
    fn a_packet_with_its_checksum_filled_in_sums_to_zero_and_a_changed_one_does_not() {
        for seed in 0..500 {
            let mut bytes = noise(40 + seed as usize % 7, seed);
            bytes[16..18].fill(0);
            let filled = checksum(&bytes).to_be_bytes();
            bytes[16..18].copy_from_slice(&filled);
            assert_eq!(checksum(&bytes), 0);
            bytes[5] ^= 1;
            assert_ne!(checksum(&bytes), 0);
        }
    }

    #[test]
    fn pseudo_headers_sum_like_their_bytes() {
        for seed in 0..500 {
            let bytes = noise(40, seed);
            let quad = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
            let len = u16::from_be_bytes([bytes[8], bytes[9]]);
            let mut header = bytes[..8].to_vec();
            header.extend([0, bytes[10], bytes[8], bytes[9]]);
            assert_eq!(fold(pseudo_header_v4(quad(0), quad(4), bytes[10], len)), oracle(&header));

            let addr = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen"));
            let len = u32::from_be_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]);
            let mut header = bytes[..36].to_vec();
            header.extend([0, 0, 0, bytes[36]]);
            assert_eq!(fold(pseudo_header_v6(addr(0), addr(16), bytes[36], len)), oracle(&header));
        }
        let most = Ipv6Addr::from([0xff; 16]);
        assert!(pseudo_header_v6(most, most, u8::MAX, u32::MAX) <= 0x4_ffff, "thousands of these can be added");
    }

    #[test]
    fn an_updated_checksum_is_the_recomputed_one() {
        for seed in 0..2000 {
            let mut bytes = noise(64, seed);
            let before = checksum(&bytes);
            let at = 2 * (seed as usize % 24);
            let replacement = match seed % 5 {
                0 => vec![0x00; 16],
                1 => vec![0xff; 16],
                _ => noise(16, seed + 1_000_000),
            };
            let old: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen");
            let mut with_one_word = bytes.clone();
            with_one_word[at..at + 2].copy_from_slice(&replacement[..2]);
            let new_word = u16::from_be_bytes([replacement[0], replacement[1]]);
            assert_eq!(update(before, u16::from_be_bytes([old[0], old[1]]), new_word), checksum(&with_one_word));
            bytes[at..at + 16].copy_from_slice(&replacement);
            assert_eq!(update_bytes(before, &old, &replacement), checksum(&bytes));
        }
    }

    #[test]
    fn an_update_that_changes_nothing_never_turns_a_checksum_into_another() {
        for checksum in 0..0xffff {
            for word in [0x0000, 0x0001, 0x7fff, 0x8000, 0xffff] {
                assert_eq!(update(checksum, word, word), checksum, "{checksum:#x} {word:#x}");
            }
        }
    }
}
