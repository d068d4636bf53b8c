//! The trie answers as a linear scan over all prefixes does, after any sequence of insertions and removals.
//!
//! Input: operations of 1 byte for what, 1 for the owner, 1 for the length, 2 for the address. Addresses are few and
//! close together, so that prefixes meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wg_core::{AllowedIps, PeerId, Prefix};

use super::input::Input;

/// Bits of an address, the first one highest.
fn bits(addr: IpAddr) -> (bool, u128) {
    match addr {
        IpAddr::V4(addr) => (true, u128::from(u32::from(addr)) << 96),
        IpAddr::V6(addr) => (false, u128::from(addr)),
    }
}

fn contains(prefix: &Prefix, addr: IpAddr) -> bool {
    let ((one, prefix_bits), (other, addr_bits)) = (bits(prefix.addr()), bits(addr));
    one == other && (0..prefix.prefix_len()).all(|bit| (prefix_bits ^ addr_bits) << bit >> 127 == 0)
}

/// Two bytes spread over the whole address, so that both ends of it matter.
fn address(is_v4: bool, high: u8, low: u8) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(high, 0, 0, low).into()
    } else {
        let mut octets = [0; 16];
        (octets[0], octets[8], octets[15]) = (high, high ^ low, low);
        Ipv6Addr::from(octets).into()
    }
}

/// Applies the operations to trie and list, and asks both.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut trie = AllowedIps::new();
    let mut list: Vec<(Prefix, PeerId)> = Vec::new();
    let mut asked = Vec::new();
    while !input.is_empty() {
        let (operation, owner, len) = (input.byte(), PeerId::new(u32::from(input.byte() % 4), 0), input.byte());
        let is_v4 = operation & 0x80 == 0;
        let addr = address(is_v4, input.byte(), input.byte());
        asked.push(addr);
        let prefix = Prefix::new(addr, len % if is_v4 { 33 } else { 129 }).expect("within the family's length");
        match operation % 8 {
            0..5 => {
                let previous = list.iter().position(|&(known, _)| known == prefix);
                let previous = previous.map(|at| list.swap_remove(at).1).filter(|&previous| previous != owner);
                list.push((prefix, owner));
                assert_eq!(trie.insert(prefix, owner).filter(|&previous| previous != owner), previous);
            }
            5 | 6 => {
                let at = list.iter().position(|&known| known == (prefix, owner));
                at.map(|at| list.swap_remove(at));
                assert_eq!(trie.remove(prefix, owner), at.is_some());
            }
            _ => {
                let before = list.len();
                list.retain(|&(_, known)| known != owner);
                assert_eq!(trie.remove_owner(owner), before - list.len());
            }
        }
        assert_eq!(trie.len(), list.len());
    }
    let model = |addr: IpAddr| {
        let around = list.iter().filter(|(prefix, _)| contains(prefix, addr));
        around.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|&(_, owner)| owner)
    };
    for addr in asked {
        let flipped = match addr {
            IpAddr::V4(addr) => {
                [u32::from(addr) ^ 1, u32::from(addr) ^ 1 << 31].map(|bits| Ipv4Addr::from(bits).into())
            }
            IpAddr::V6(addr) => {
                [u128::from(addr) ^ 1, u128::from(addr) ^ 1 << 127].map(|bits| Ipv6Addr::from(bits).into())
            }
        };
        for addr in [addr, flipped[0], flipped[1]] {
            assert_eq!(trie.lookup(addr), model(addr), "{addr}");
        }
    }
    let mut all: Vec<_> = trie.iter().collect();
    all.sort_unstable();
    list.sort_unstable();
    assert_eq!(all, list);
    for owner in (0..4).map(|slot| PeerId::new(slot, 0)) {
        let mut of_trie: Vec<_> = trie.prefixes_of(owner).collect();
        of_trie.sort_unstable();
        let of_list: Vec<_> = list.iter().filter(|&&(_, known)| known == owner).map(|&(prefix, _)| prefix).collect();
        assert_eq!(of_trie, of_list);
    }
}
