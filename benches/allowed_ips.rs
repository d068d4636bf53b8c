//! How many nanoseconds does one lookup take, by family, by number of prefixes, and for one flow or many?
//!
//! `flow` asks for the same address again and again, as a bulk transfer does; `spread` asks for addresses of all
//! prefixes in random order, as a busy gateway does; `miss` asks for addresses between the prefixes.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime};
use wg_core::{AllowedIps, PeerId, Prefix};

#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    V6,
}

/// A table in which every prefix has its own peer, and addresses inside and outside its prefixes.
struct Input {
    table: AllowedIps,
    inside: Vec<IpAddr>,
    outside: Vec<IpAddr>,
}

/// Enough to defeat the branch predictor, few enough not to measure the list itself.
const QUERIES: usize = 4096;

impl Input {
    fn new(family: Family, prefixes: usize) -> Self {
        let mut random = Random(0x5eed);
        let mut table = AllowedIps::new();
        let mut stored = Vec::new();
        while table.len() < prefixes {
            // Half of the peers have a network, half a single address.
            let prefix = match (family, random.below(2)) {
                (Family::V4, 0) => Prefix::new(random.v4(10).into(), 24),
                (Family::V4, _) => Prefix::new(random.v4(10).into(), 32),
                (Family::V6, 0) => Prefix::new(random.v6(0xfd).into(), 64),
                (Family::V6, _) => Prefix::new(random.v6(0xfd).into(), 128),
            };
            let prefix = prefix.expect("a length of its family");
            table.insert(prefix, PeerId::new(stored.len() as u32, 0));
            stored.push(prefix);
        }
        let inside: Vec<IpAddr> = (0..QUERIES).map(|_| stored[random.below(stored.len())].addr()).collect();
        // Within the reach of the prefixes, so that a miss is not decided by the first bits.
        let nearby = std::iter::repeat_with(|| match family {
            Family::V4 => IpAddr::V4(random.v4(10)),
            Family::V6 => IpAddr::V6(random.v6(0xfd)),
        });
        let outside: Vec<IpAddr> = nearby.filter(|&addr| table.lookup(addr).is_none()).take(QUERIES).collect();
        assert!(inside.iter().all(|&addr| table.lookup(addr).is_some()));
        assert!(outside.iter().all(|&addr| table.lookup(addr).is_none()));
        assert_eq!(table.len(), prefixes);
        Input { table, inside, outside }
    }
}

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    fn below(&mut self, bound: usize) -> usize {
        (((self.bits() >> 32) * bound as u64) >> 32) as usize
    }

    /// An address whose first byte is `first`.
    fn v4(&mut self, first: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::from(first) << 24 | self.bits() as u32 >> 8)
    }

    fn v6(&mut self, first: u8) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::from(first) << 120 | u128::from(self.bits()) << 64 >> 8 | u128::from(self.bits()))
    }
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    prefixes: usize,
    table: &AllowedIps,
    addrs: &[IpAddr],
) {
    group.bench_function(BenchmarkId::new(name, prefixes), |bencher| {
        let mut queries = addrs.iter().cycle();
        bencher.iter(|| queries.next().map(|addr| table.lookup(*black_box(addr))));
    });
}

fn lookups(criterion: &mut Criterion) {
    for family in [Family::V4, Family::V6] {
        let mut group = criterion.benchmark_group(format!("allowed_ips/{family:?}"));
        for prefixes in [1, 16, 1_000, 100_000] {
            let input = Input::new(family, prefixes);
            measure(&mut group, "flow", prefixes, &input.table, &input.inside[..1]);
            measure(&mut group, "spread", prefixes, &input.table, &input.inside);
            measure(&mut group, "miss", prefixes, &input.table, &input.outside);
        }
        group.finish();
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);
