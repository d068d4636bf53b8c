//! Owns the table from prefix to peer and the check of inner source addresses against it. Knows a peer by its id only.
//!
//! How it is built: one binary trie per family, path-compressed, so that a node stands for an owned prefix or for the
//! place where two of them part. n prefixes make at most 2n - 1 nodes, and a lookup visits at most one node per bit.
//! Nodes lie in two parallel arrays: what a lookup reads on its way (`Step`) and what it reads at most once or not at
//! all (`Place`). The prefixes of one owner are a doubly linked list across both families, in order of insertion, so
//! that a peer is removed in the number of its own prefixes. Every walk is a loop; none keeps a stack.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::DropReason;
use crate::packet::IpPacket;
use crate::peer_id::PeerId;
use crate::prefix::Prefix;

/// Longest-prefix match from address to the peer that may send from it and is sent what goes to it. \[W\] 2.
///
/// A prefix has one owner: inserting it again moves it. IPv4-mapped IPv6 addresses are IPv6 addresses.
#[derive(Clone, Default)]
pub struct AllowedIps {
    v4: Trie<u32>,
    v6: Trie<u128>,
    /// First and last prefix of every owner that has one.
    owners: BTreeMap<PeerId, Ends>,
}

/// Proof that a decrypted packet's source address belongs to the peer that sent it. Only
/// [`AllowedIps::check_source`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceChecked {
    len: u32,
    peer: PeerId,
}

impl SourceChecked {
    /// The stated length of the packet in bytes, without padding.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a packet has a header, so it is never empty")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The peer that sent the packet.
    #[inline]
    pub fn peer(&self) -> PeerId {
        self.peer
    }
}

impl AllowedIps {
    /// An empty table.
    pub fn new() -> Self {
        AllowedIps::default()
    }

    /// Gives `prefix` to `owner`, as the last of its prefixes, and returns the owner it had before, if any.
    pub fn insert(&mut self, prefix: Prefix, owner: PeerId) -> Option<PeerId> {
        let (link, previous) = match prefix.addr() {
            IpAddr::V4(addr) => {
                let index = self.v4.node_at(addr.to_bits(), prefix.prefix_len());
                (Link::new(Family::V4, index), self.v4.set_owner(index, owner))
            }
            IpAddr::V6(addr) => {
                let index = self.v6.node_at(addr.to_bits(), prefix.prefix_len());
                (Link::new(Family::V6, index), self.v6.set_owner(index, owner))
            }
        };
        if let Some(previous) = previous {
            self.unlink(link, previous);
        }
        self.link_last(link, owner);
        previous
    }

    /// Takes `prefix` from `owner`. Returns `false` and changes nothing if the table has no such prefix or another
    /// peer owns it.
    pub fn remove(&mut self, prefix: Prefix, owner: PeerId) -> bool {
        let found = match prefix.addr() {
            IpAddr::V4(addr) => {
                self.v4.find(addr.to_bits(), prefix.prefix_len()).map(|index| Link::new(Family::V4, index))
            }
            IpAddr::V6(addr) => {
                self.v6.find(addr.to_bits(), prefix.prefix_len()).map(|index| Link::new(Family::V6, index))
            }
        };
        let Some(link) = found.filter(|&link| self.place(link).owner == Some(owner)) else { return false };
        self.unlink(link, owner);
        self.clear(link);
        true
    }

    /// Takes all prefixes from `owner` and returns how many it had. Cost: their number.
    pub fn remove_owner(&mut self, owner: PeerId) -> usize {
        let Some(ends) = self.owners.remove(&owner) else { return 0 };
        let mut removed = 0;
        let mut link = ends.first;
        while link != Link::NONE {
            let next = self.place(link).next;
            self.clear(link);
            link = next;
            removed += 1;
        }
        removed
    }

    /// The owner of the longest prefix that contains `addr`.
    #[inline]
    pub fn lookup(&self, addr: IpAddr) -> Option<PeerId> {
        match addr {
            IpAddr::V4(addr) => self.v4.lookup(addr.to_bits()),
            IpAddr::V6(addr) => self.v6.lookup(addr.to_bits()),
        }
    }

    /// Checks that the source address of `packet` belongs to `from`, by longest-prefix match over *all* peers. \[W\] 2.
    #[inline]
    pub fn check_source(&self, packet: &IpPacket<'_>, from: PeerId) -> Result<SourceChecked, DropReason> {
        match self.lookup(packet.source()) {
            // A stated length has 16 bits, and IPv6 adds 40.
            Some(owner) if owner == from => Ok(SourceChecked { len: packet.total_len() as u32, peer: from }),
            Some(_) => Err(DropReason::SourceOwnedByOtherPeer),
            None => Err(DropReason::SourceNotAllowed),
        }
    }

    /// Every prefix with its owner, by family, address, length.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, PeerId)> + '_ {
        self.v4.iter().chain(self.v6.iter())
    }

    /// The prefixes of `owner`, in the order in which they were last inserted.
    pub fn prefixes_of(&self, owner: PeerId) -> impl Iterator<Item = Prefix> + '_ {
        let mut link = self.owners.get(&owner).map_or(Link::NONE, |ends| ends.first);
        std::iter::from_fn(move || {
            if link == Link::NONE {
                return None;
            }
            let prefix = self.prefix(link);
            link = self.place(link).next;
            Some(prefix)
        })
    }

    /// The number of prefixes.
    pub fn len(&self) -> usize {
        self.v4.owned + self.v6.owned
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn link_last(&mut self, link: Link, owner: PeerId) {
        let ends = self.owners.entry(owner).or_insert(Ends { first: link, last: Link::NONE });
        let before = std::mem::replace(&mut ends.last, link);
        if before != Link::NONE {
            self.place_mut(before).next = link;
        }
        let place = self.place_mut(link);
        (place.previous, place.next) = (before, Link::NONE);
    }

    fn unlink(&mut self, link: Link, owner: PeerId) {
        let Place { previous, next, .. } = *self.place(link);
        if previous == Link::NONE && next == Link::NONE {
            self.owners.remove(&owner);
            return;
        }
        if previous != Link::NONE {
            self.place_mut(previous).next = next;
        }
        if next != Link::NONE {
            self.place_mut(next).previous = previous;
        }
        if previous != Link::NONE && next != Link::NONE {
            return;
        }
        let ends = self.owners.get_mut(&owner).expect("an owner with a prefix has a list");
        if previous == Link::NONE {
            ends.first = next;
        } else {
            ends.last = previous;
        }
    }

    fn clear(&mut self, link: Link) {
        match link.family() {
            Family::V4 => self.v4.clear_owner(link.index()),
            Family::V6 => self.v6.clear_owner(link.index()),
        }
    }

    fn prefix(&self, link: Link) -> Prefix {
        match link.family() {
            Family::V4 => self.v4.prefix(link.index()),
            Family::V6 => self.v6.prefix(link.index()),
        }
    }

    fn place(&self, link: Link) -> &Place {
        match link.family() {
            Family::V4 => &self.v4.places[link.index() as usize],
            Family::V6 => &self.v6.places[link.index() as usize],
        }
    }

    fn place_mut(&mut self, link: Link) -> &mut Place {
        match link.family() {
            Family::V4 => &mut self.v4.places[link.index() as usize],
            Family::V6 => &mut self.v6.places[link.index() as usize],
        }
    }
}

impl fmt::Debug for AllowedIps {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

/// An address as a number, most significant bit first on the wire.
trait Key: Copy + Eq {
    /// The number of leading bits in which the two agree.
    fn common_len(self, other: Self) -> u8;

    /// Whether the first `len` bits of both agree.
    #[inline]
    fn starts_with(self, prefix: Self, len: u8) -> bool {
        self.common_len(prefix) >= len
    }

    /// The bit behind a prefix of `len` bits, as an index of a child. Of no meaning, but harmless, at full length.
    fn bit(self, len: u8) -> usize;

    /// The first `len` bits, the others zero.
    fn masked(self, len: u8) -> Self;

    fn to_addr(self) -> IpAddr;
}

impl Key for u32 {
    #[inline]
    fn common_len(self, other: u32) -> u8 {
        (self ^ other).leading_zeros() as u8
    }

    #[inline]
    fn bit(self, len: u8) -> usize {
        (self.wrapping_shl(u32::from(len)) >> 31) as usize
    }

    fn masked(self, len: u8) -> u32 {
        self & !u32::MAX.checked_shr(u32::from(len)).unwrap_or(0)
    }

    fn to_addr(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(self))
    }
}

impl Key for u128 {
    #[inline]
    fn common_len(self, other: u128) -> u8 {
        (self ^ other).leading_zeros() as u8
    }

    #[inline]
    fn starts_with(self, prefix: u128, len: u8) -> bool {
        // A quarter faster per lookup than counting 128 bits: at most places one half decides.
        let (high, low) = (((self ^ prefix) >> 64) as u64, (self ^ prefix) as u64);
        match len {
            0..64 => (high >> 1) >> (63 - len) == 0,
            64..128 => high == 0 && (low >> 1) >> (127 - len) == 0,
            _ => high | low == 0,
        }
    }

    #[inline]
    fn bit(self, len: u8) -> usize {
        // One 64-bit shift instead of a 128-bit one.
        let half = if len < 64 { (self >> 64) as u64 } else { self as u64 };
        (half.wrapping_shl(u32::from(len)) >> 63) as usize
    }

    fn masked(self, len: u8) -> u128 {
        self & !u128::MAX.checked_shr(u32::from(len)).unwrap_or(0)
    }

    fn to_addr(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(self))
    }
}

/// One family's prefixes. An index is a node's place in both arrays.
#[derive(Clone)]
struct Trie<K> {
    steps: Vec<Step<K>>,
    places: Vec<Place>,
    root: u32,
    /// First of the unused nodes, which are chained by their parent link.
    unused: u32,
    /// Nodes in use.
    nodes: usize,
    /// Nodes with an owner.
    owned: usize,
}

/// What a lookup reads of every node on its way: 16 bytes for IPv4, 32 for IPv6.
#[derive(Clone, Copy)]
struct Step<K> {
    /// The prefix's bits; those behind `len` are zero.
    key: K,
    /// Nodes whose prefix continues this one with a 0 or a 1.
    children: [u32; 2],
    len: u8,
    is_owned: bool,
}

/// What else a node has: 24 bytes.
#[derive(Clone, Copy)]
struct Place {
    owner: Option<PeerId>,
    parent: u32,
    /// Neighbours among the owner's prefixes.
    previous: Link,
    next: Link,
}

/// First and last of an owner's prefixes.
#[derive(Clone, Copy)]
struct Ends {
    first: Link,
    last: Link,
}

/// A node of either family: its index, with the family in the lowest bit.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u32);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Link {
    const NONE: Link = Link(u32::MAX);

    fn new(family: Family, index: u32) -> Self {
        Link(index << 1 | u32::from(family == Family::V6))
    }

    fn family(self) -> Family {
        if self.0 & 1 == 0 { Family::V4 } else { Family::V6 }
    }

    fn index(self) -> u32 {
        self.0 >> 1
    }
}

impl<K> Default for Trie<K> {
    fn default() -> Self {
        Trie { steps: Vec::new(), places: Vec::new(), root: NO_NODE, unused: NO_NODE, nodes: 0, owned: 0 }
    }
}

impl<K: Key> Trie<K> {
    #[inline]
    fn lookup(&self, addr: K) -> Option<PeerId> {
        let mut best = NO_NODE;
        let mut at = self.root;
        // `NO_NODE` is beyond every array: the bounds check is the test for the end of the path.
        while let Some(step) = self.steps.get(at as usize) {
            if !addr.starts_with(step.key, step.len) {
                break;
            }
            if step.is_owned {
                best = at;
            }
            at = step.children[addr.bit(step.len)];
        }
        self.places.get(best as usize)?.owner
    }

    /// The node of exactly this prefix, owned or not.
    fn find(&self, key: K, len: u8) -> Option<u32> {
        let mut at = self.root;
        while let Some(step) = self.steps.get(at as usize) {
            if step.len >= len {
                return (step.len == len && step.key == key).then_some(at);
            }
            if key.common_len(step.key) < step.len {
                return None;
            }
            at = step.children[key.bit(step.len)];
        }
        None
    }

    /// The node of exactly this prefix, which is made if there is none; the caller gives it an owner.
    fn node_at(&mut self, key: K, len: u8) -> u32 {
        let mut parent = NO_NODE;
        let mut at = self.root;
        while let Some(&step) = self.steps.get(at as usize) {
            let common = key.common_len(step.key).min(len).min(step.len);
            if common < step.len {
                return self.insert_above(at, key, len, common);
            }
            if step.len == len {
                return at;
            }
            parent = at;
            at = step.children[key.bit(step.len)];
        }
        let leaf = self.allocate(key, len, parent);
        self.set_child(parent, key, leaf);
        leaf
    }

    /// The new node of a prefix that shares only `common` bits with the longer prefix of `below`.
    fn insert_above(&mut self, below: u32, key: K, len: u8, common: u8) -> u32 {
        let parent = self.places[below as usize].parent;
        let below_key = self.steps[below as usize].key;
        let above = self.allocate(key.masked(common), common, parent);
        self.set_child(parent, key, above);
        self.steps[above as usize].children[below_key.bit(common)] = below;
        self.places[below as usize].parent = above;
        if common == len {
            return above;
        }
        let leaf = self.allocate(key, len, above);
        self.steps[above as usize].children[key.bit(common)] = leaf;
        leaf
    }

    fn set_owner(&mut self, index: u32, owner: PeerId) -> Option<PeerId> {
        self.steps[index as usize].is_owned = true;
        let previous = self.places[index as usize].owner.replace(owner);
        self.owned += usize::from(previous.is_none());
        previous
    }

    /// Takes the owner from a node that has one and is in no list, and removes the nodes nobody needs any more: itself,
    /// unless two paths part here, and then its parent, if that stood only for the parting.
    fn clear_owner(&mut self, index: u32) {
        self.steps[index as usize].is_owned = false;
        self.places[index as usize].owner = None;
        self.owned -= 1;
        let parent = self.places[index as usize].parent;
        self.remove_if_needless(index);
        if parent != NO_NODE {
            self.remove_if_needless(parent);
        }
        if self.nodes == 0 {
            *self = Trie::default();
        }
    }

    fn remove_if_needless(&mut self, index: u32) {
        let step = self.steps[index as usize];
        let child = match step.children {
            _ if step.is_owned => return,
            [child, NO_NODE] | [NO_NODE, child] => child,
            [_, _] => return,
        };
        let parent = self.places[index as usize].parent;
        self.set_child(parent, step.key, child);
        if child != NO_NODE {
            self.places[child as usize].parent = parent;
        }
        self.release(index);
    }

    /// Puts `child` on the way of `key` below `parent`, or at the root.
    fn set_child(&mut self, parent: u32, key: K, child: u32) {
        match self.steps.get_mut(parent as usize) {
            Some(step) => step.children[key.bit(step.len)] = child,
            None => self.root = child,
        }
    }

    fn allocate(&mut self, key: K, len: u8, parent: u32) -> u32 {
        let step = Step { key, children: [NO_NODE; 2], len, is_owned: false };
        let place = Place { owner: None, parent, previous: Link::NONE, next: Link::NONE };
        self.nodes += 1;
        let index = self.unused;
        if index == NO_NODE {
            let index = u32::try_from(self.steps.len()).expect("memory ends before 2^31 nodes");
            self.steps.push(step);
            self.places.push(place);
            return index;
        }
        self.unused = self.places[index as usize].parent;
        self.steps[index as usize] = step;
        self.places[index as usize] = place;
        index
    }

    fn release(&mut self, index: u32) {
        self.nodes -= 1;
        self.places[index as usize].parent = std::mem::replace(&mut self.unused, index);
    }

    fn prefix(&self, index: u32) -> Prefix {
        let step = &self.steps[index as usize];
        Prefix::new(step.key.to_addr(), step.len).expect("a node's length fits its family")
    }

    /// Owned nodes, a node before those below it, 0 before 1: that is by address, then length.
    fn iter(&self) -> impl Iterator<Item = (Prefix, PeerId)> + '_ {
        let mut at = self.root;
        std::iter::from_fn(move || {
            while at != NO_NODE {
                let index = at;
                at = self.after(index);
                if let Some(owner) = self.places[index as usize].owner {
                    return Some((self.prefix(index), owner));
                }
            }
            None
        })
    }

    /// The node behind `index` in the order of [`Trie::iter`].
    fn after(&self, index: u32) -> u32 {
        match self.steps[index as usize].children {
            [NO_NODE, NO_NODE] => {}
            [NO_NODE, child] | [child, _] => return child,
        }
        let mut below = index;
        loop {
            let parent = self.places[below as usize].parent;
            let Some(step) = self.steps.get(parent as usize) else { return NO_NODE };
            let [zero, one] = step.children;
            if below == zero && one != NO_NODE {
                return one;
            }
            below = parent;
        }
    }
}

const NO_NODE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    //! What `tests/allowed_ips.rs` cannot see: the shape of the trie, and who may write to the TUN device.

    use super::*;

    const LEFT: PeerId = PeerId::new(1, 0);
    const RIGHT: PeerId = PeerId::new(2, 0);

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Checks every link of the trie and returns the nodes in use.
    fn nodes_of<K: Key>(trie: &Trie<K>) -> usize {
        let (mut seen, mut owned) = (0, 0);
        let mut waiting = vec![(NO_NODE, trie.root)];
        while let Some((parent, index)) = waiting.pop() {
            let (Some(step), Some(place)) = (trie.steps.get(index as usize), trie.places.get(index as usize)) else {
                continue;
            };
            seen += 1;
            owned += usize::from(step.is_owned);
            assert_eq!((place.parent, place.owner.is_some()), (parent, step.is_owned));
            assert!(step.is_owned || !step.children.contains(&NO_NODE), "an ownerless node is a parting of two paths");
            if let Some(above) = trie.steps.get(parent as usize) {
                assert!(above.len < step.len && above.key == step.key.masked(above.len));
                assert_eq!(above.children[step.key.bit(above.len)], index);
            }
            waiting.extend(step.children.map(|child| (index, child)));
        }
        assert_eq!((seen, owned), (trie.nodes, trie.owned));
        assert!(seen <= (2 * owned).saturating_sub(1));
        seen
    }

    #[test]
    fn the_longest_prefix_wins_and_removing_it_uncovers_the_shorter_one() {
        let mut table = AllowedIps::new();
        table.insert(prefix("10.0.0.0/24"), LEFT);
        table.insert(prefix("10.0.0.0/25"), RIGHT);
        assert_eq!(table.lookup(addr("10.0.0.127")), Some(RIGHT));
        assert_eq!(table.lookup(addr("10.0.0.128")), Some(LEFT));
        assert_eq!(table.lookup(addr("10.0.1.0")), None);
        assert!(table.remove(prefix("10.0.0.0/25"), RIGHT));
        assert_eq!(table.lookup(addr("10.0.0.127")), Some(LEFT));
    }

    #[test]
    fn a_prefix_moves_to_its_new_owner_and_to_the_end_of_its_list() {
        let mut table = AllowedIps::new();
        for text in ["10.0.0.0/24", "2001:db8::/32", "10.0.0.0/8"] {
            assert_eq!(table.insert(prefix(text), LEFT), None);
        }
        assert_eq!(table.insert(prefix("2001:db8::/32"), RIGHT), Some(LEFT));
        assert_eq!(table.insert(prefix("10.0.0.0/24"), LEFT), Some(LEFT));
        let of = |owner| table.prefixes_of(owner).map(|prefix| prefix.to_string()).collect::<Vec<_>>();
        assert_eq!(of(LEFT), ["10.0.0.0/8", "10.0.0.0/24"]);
        assert_eq!(of(RIGHT), ["2001:db8::/32"]);
        assert!(!table.remove(prefix("2001:db8::/32"), LEFT), "no longer its own");
    }

    #[test]
    fn every_history_keeps_the_trie_compressed_and_its_end_gives_the_memory_back() {
        let mut table = AllowedIps::new();
        let mut state = 1_u64;
        let mut draw = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for step in 0..20_000 {
            // Few addresses and owners, so that prefixes nest, part, move and come back.
            let bits = (draw(8) << 29 | draw(4) << 6 | draw(4)) as u32;
            let any_addr: IpAddr = match draw(2) {
                0 => Ipv4Addr::from_bits(bits).into(),
                _ => Ipv6Addr::from_bits(u128::from(bits) << draw(97)).into(),
            };
            let len = draw(if any_addr.is_ipv4() { 33 } else { 129 }) as u8;
            let prefix = Prefix::new(any_addr, len).expect("a length of its family");
            let owner = PeerId::new(draw(9) as u32, 0);
            match draw(200) {
                0 => {
                    table.remove_owner(owner);
                }
                1..100 => {
                    table.insert(prefix, owner);
                }
                _ => {
                    table.remove(prefix, owner);
                }
            }
            if step % 16 == 0 {
                nodes_of(&table.v4);
                nodes_of(&table.v6);
            }
        }
        assert!(!table.is_empty());
        for slot in 0..9 {
            table.remove_owner(PeerId::new(slot, 0));
        }
        assert_eq!((nodes_of(&table.v4), nodes_of(&table.v6)), (0, 0));
        assert_eq!((table.v4.steps.capacity(), table.v6.places.capacity(), table.owners.len()), (0, 0, 0));
    }

    #[test]
    fn the_memory_of_removed_prefixes_is_used_again() {
        let mut table = AllowedIps::new();
        table.insert(prefix("0.0.0.0/0"), LEFT);
        for round in 0..1000_u32 {
            let host = Prefix::host(Ipv4Addr::from_bits(round << 8).into());
            table.insert(host, RIGHT);
            table.insert(prefix("255.0.0.0/8"), RIGHT);
            assert_eq!(table.remove_owner(RIGHT), 2);
        }
        assert_eq!(table.v4.steps.len(), 3, "the whole family and two prefixes that part in it");
    }

    #[test]
    fn a_node_of_either_family_keeps_its_size() {
        assert_eq!(size_of::<Step<u32>>() + size_of::<Place>(), 40);
        assert_eq!(size_of::<Step<u128>>() + size_of::<Place>(), 56);
    }

    #[test]
    fn a_source_is_accepted_from_its_owner_alone_even_inside_a_wider_prefix_of_the_sender() {
        let mut packet = [0; 24];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 21]);
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        let packet = IpPacket::parse(&packet).expect("a packet");
        let mut table = AllowedIps::new();
        assert_eq!(table.check_source(&packet, LEFT), Err(DropReason::SourceNotAllowed));
        table.insert(prefix("10.0.0.0/8"), LEFT);
        let checked = table.check_source(&packet, LEFT).expect("its own address");
        assert_eq!((checked.len(), checked.peer()), (21, LEFT));
        table.insert(prefix("10.0.0.1/32"), RIGHT);
        assert_eq!(table.check_source(&packet, LEFT), Err(DropReason::SourceOwnedByOtherPeer));
        assert_eq!(table.check_source(&packet, RIGHT).map(|checked| checked.peer()), Ok(RIGHT));
        assert_eq!(table.check_source(&packet, PeerId::new(2, 1)), Err(DropReason::SourceOwnedByOtherPeer));
    }
}
