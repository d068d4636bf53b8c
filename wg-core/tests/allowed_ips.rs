//! Is the trie a longest-prefix match? Compared with a linear scan that is written from the definition and shares no
//! code with it; prefixes are drawn close together, and queries next to every stored prefix.

use std::net::IpAddr;

use proptest::prelude::*;
use wg_core::{AllowedIps, PeerId, Prefix};

/// The address's bits as the definition sees them: one `bool` each, most significant first.
fn bits(addr: IpAddr) -> Vec<bool> {
    let octets = match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    octets.iter().flat_map(|octet| (0..8).map(move |bit| octet >> (7 - bit) & 1 == 1)).collect()
}

fn from_bits(bits: &[bool]) -> IpAddr {
    let octets: Vec<u8> =
        bits.chunks(8).map(|octet| octet.iter().fold(0, |sum, &bit| sum << 1 | u8::from(bit))).collect();
    match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets.as_slice()).expect("128 bits")),
    }
}

/// The model: what was inserted, in order of last insertion.
#[derive(Default)]
struct Scan(Vec<(Vec<bool>, usize, PeerId)>);

impl Scan {
    fn position(&self, prefix: Prefix) -> Option<usize> {
        let wanted = bits(prefix.addr());
        self.0.iter().position(|(addr, len, _)| *addr == wanted && *len == usize::from(prefix.prefix_len()))
    }

    fn insert(&mut self, prefix: Prefix, owner: PeerId) -> Option<PeerId> {
        let previous = self.position(prefix).map(|position| self.0.remove(position).2);
        self.0.push((bits(prefix.addr()), usize::from(prefix.prefix_len()), owner));
        previous
    }

    fn remove(&mut self, prefix: Prefix, owner: PeerId) -> bool {
        match self.position(prefix) {
            Some(position) if self.0[position].2 == owner => {
                self.0.remove(position);
                true
            }
            _ => false,
        }
    }

    fn remove_owner(&mut self, owner: PeerId) -> usize {
        let before = self.0.len();
        self.0.retain(|entry| entry.2 != owner);
        before - self.0.len()
    }

    fn lookup(&self, addr: IpAddr) -> Option<PeerId> {
        let addr = bits(addr);
        let containing = self.0.iter().filter(|(key, len, _)| key.len() == addr.len() && key[..*len] == addr[..*len]);
        containing.max_by_key(|(_, len, _)| *len).map(|entry| entry.2)
    }

    fn sorted(&self) -> Vec<(IpAddr, usize, PeerId)> {
        let mut entries = self.0.clone();
        entries.sort_by_key(|(key, len, _)| (key.len(), key.clone(), *len));
        entries.into_iter().map(|(key, len, owner)| (from_bits(&key), len, owner)).collect()
    }

    fn prefixes_of(&self, owner: PeerId) -> Vec<(IpAddr, usize)> {
        self.0.iter().filter(|entry| entry.2 == owner).map(|(key, len, _)| (from_bits(key), *len)).collect()
    }

    /// Addresses next to every stored prefix: its first and last, the last bit inside flipped, the first bit outside
    /// flipped, and the neighbours before and behind it.
    fn neighbours(&self) -> Vec<IpAddr> {
        let mut queries = Vec::new();
        for (key, len, _) in &self.0 {
            let mut last = key.clone();
            last[*len..].fill(true);
            for edge in [key.clone(), last] {
                queries.push(edge.clone());
                for flip in [len.checked_sub(1), Some(*len), Some(key.len() - 1)] {
                    if let Some(flip) = flip.filter(|&flip| flip < key.len()) {
                        let mut near = edge.clone();
                        near[flip] = !near[flip];
                        queries.push(near);
                    }
                }
            }
        }
        queries.iter().map(|bits| from_bits(bits)).collect()
    }
}

fn same(table: &AllowedIps, scan: &Scan, owners: &[PeerId], extra: &[IpAddr]) {
    let listed: Vec<_> =
        table.iter().map(|(prefix, owner)| (prefix.addr(), usize::from(prefix.prefix_len()), owner)).collect();
    assert_eq!(listed, scan.sorted());
    assert_eq!((table.len(), table.is_empty()), (scan.0.len(), scan.0.is_empty()));
    for &owner in owners {
        let own: Vec<_> =
            table.prefixes_of(owner).map(|prefix| (prefix.addr(), usize::from(prefix.prefix_len()))).collect();
        assert_eq!(own, scan.prefixes_of(owner));
    }
    for addr in scan.neighbours().into_iter().chain(extra.iter().copied()) {
        assert_eq!(table.lookup(addr), scan.lookup(addr), "{addr}");
    }
}

#[derive(Clone, Debug)]
enum Change {
    Insert(Prefix, PeerId),
    Remove(Prefix, PeerId),
    RemoveOwner(PeerId),
    /// Removes the n-th stored prefix from its owner, so that removals hit.
    RemoveStored(usize),
    /// Inserts the n-th stored prefix again, for this owner.
    InsertStored(usize, PeerId),
}

/// Slots repeat with another generation: those are different owners.
const OWNERS: [PeerId; 4] = [PeerId::new(0, 0), PeerId::new(1, 0), PeerId::new(1, 1), PeerId::new(u32::MAX, u32::MAX)];

/// Addresses that differ in few bits, so that prefixes nest and part at every depth.
fn near_addr() -> impl Strategy<Value = IpAddr> {
    let flips = || proptest::collection::vec(0_u32..128, 0..4);
    let v4 = (prop_oneof![Just(0), Just(u32::MAX), Just(0x0a00_0000), Just(0x0a00_00ff)], flips())
        .prop_map(|(base, flips)| IpAddr::V4(flips.iter().fold(base, |addr, bit| addr ^ 1 << (bit % 32)).into()));
    let mapped = 0xffff_0a00_0000;
    let v6 = (prop_oneof![Just(0), Just(u128::MAX), Just(0x2001_0db8 << 96), Just(mapped)], flips())
        .prop_map(|(base, flips)| IpAddr::V6(flips.iter().fold(base, |addr: u128, bit| addr ^ 1 << bit).into()));
    prop_oneof![v4, v6]
}

fn near_prefix() -> impl Strategy<Value = Prefix> {
    (near_addr(), prop_oneof![1 => Just(0), 2 => Just(128), 4 => Just(64), 8 => 0_u8..=128]).prop_map(|(addr, len)| {
        let len = if addr.is_ipv4() && len != 128 { len / 4 } else { len };
        Prefix::new(addr, if addr.is_ipv4() { len.min(32) } else { len }).expect("a length of its family")
    })
}

fn change() -> impl Strategy<Value = Change> {
    let owner = || prop::sample::select(&OWNERS);
    prop_oneof![
        20 => (near_prefix(), owner()).prop_map(|(prefix, owner)| Change::Insert(prefix, owner)),
        2 => (near_prefix(), owner()).prop_map(|(prefix, owner)| Change::Remove(prefix, owner)),
        10 => any::<usize>().prop_map(Change::RemoveStored),
        4 => (any::<usize>(), owner()).prop_map(|(nth, owner)| Change::InsertStored(nth, owner)),
        1 => owner().prop_map(Change::RemoveOwner),
    ]
}

fn stored(scan: &Scan, nth: usize) -> Option<(Prefix, PeerId)> {
    let (key, len, owner) = scan.0.get(nth.checked_rem(scan.0.len())?)?;
    Some((Prefix::new(from_bits(key), *len as u8).expect("stored before"), *owner))
}

fn apply(change: &Change, table: &mut AllowedIps, scan: &mut Scan) {
    match *change {
        Change::Insert(prefix, owner) => assert_eq!(table.insert(prefix, owner), scan.insert(prefix, owner)),
        Change::Remove(prefix, owner) => assert_eq!(table.remove(prefix, owner), scan.remove(prefix, owner)),
        Change::RemoveOwner(owner) => assert_eq!(table.remove_owner(owner), scan.remove_owner(owner)),
        Change::RemoveStored(nth) => {
            if let Some((prefix, owner)) = stored(scan, nth) {
                let other = OWNERS.into_iter().find(|&other| other != owner).expect("more than one owner");
                assert!(!table.remove(prefix, other), "only the owner's prefix can be removed");
                assert!(table.remove(prefix, owner) && scan.remove(prefix, owner));
            }
        }
        Change::InsertStored(nth, owner) => {
            if let Some((prefix, _)) = stored(scan, nth) {
                assert_eq!(table.insert(prefix, owner), scan.insert(prefix, owner));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_of_changes_leaves_what_a_linear_scan_finds(
        changes in proptest::collection::vec(change(), 1..80),
        queries in proptest::collection::vec(near_addr(), 0..20),
    ) {
        let (mut table, mut scan) = (AllowedIps::new(), Scan::default());
        for change in &changes {
            apply(change, &mut table, &mut scan);
            same(&table, &scan, &OWNERS, &queries);
        }
    }
}

/// All lengths of one address, in the given order.
fn chain(addr: IpAddr, lens: impl Iterator<Item = usize>) -> Vec<Prefix> {
    lens.map(|len| Prefix::new(addr, len as u8).expect("a length of its family")).collect()
}

#[test]
fn every_length_of_one_address_can_be_stored_at_once_and_removed_in_any_order() {
    for addr in ["203.0.113.77", "0.0.0.0", "2001:db8:5555:aaaa::77", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
        let addr: IpAddr = addr.parse().expect("an address");
        let full = bits(addr).len();
        let orders = [
            chain(addr, 0..=full),
            chain(addr, (0..=full).rev()),
            // 37 shares no factor with 33 or 129: every length comes once.
            chain(addr, (0..=full).map(|step| step * 37 % (full + 1))),
        ];
        for (inserted, removed) in orders.iter().zip(orders.iter().rev()) {
            let (mut table, mut scan) = (AllowedIps::new(), Scan::default());
            for (nth, &prefix) in inserted.iter().enumerate() {
                let owner = OWNERS[nth % OWNERS.len()];
                assert_eq!(table.insert(prefix, owner), scan.insert(prefix, owner));
            }
            same(&table, &scan, &OWNERS, &[]);
            for &prefix in removed {
                let owner = scan.0[scan.position(prefix).expect("stored")].2;
                assert!(table.remove(prefix, owner) && scan.remove(prefix, owner));
                same(&table, &scan, &OWNERS, &[addr]);
            }
            assert!(table.is_empty());
        }
    }
}

#[test]
fn a_whole_family_matches_every_address_of_it_and_none_of_the_other() {
    let mut table = AllowedIps::new();
    table.insert("0.0.0.0/0".parse().expect("a prefix"), OWNERS[0]);
    for (addr, owner) in [("0.0.0.0", Some(OWNERS[0])), ("255.255.255.255", Some(OWNERS[0])), ("::", None)] {
        assert_eq!(table.lookup(addr.parse().expect("an address")), owner, "{addr}");
    }
    table.insert("::/0".parse().expect("a prefix"), OWNERS[1]);
    for (addr, owner) in [("10.0.0.1", OWNERS[0]), ("::ffff:10.0.0.1", OWNERS[1]), ("ff02::1", OWNERS[1])] {
        assert_eq!(table.lookup(addr.parse().expect("an address")), Some(owner), "{addr}");
    }
}
