//! What does a configured peer cost that nobody talks to? Memory only, and little of it.
//!
//! A target of its own with a single test, because it measures the memory of its process. Its numbers are those of a
//! release build; a debug build has the same memory and no time to prove anything.
#![cfg(all(target_os = "linux", not(virtual_time)))]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant as Stopwatch;

use wg_core::{Engine, EngineConfig, Instant, Prefix, PrivateKey, PublicKey};

const PEERS: u32 = 1_000_000;
const MOST_BYTES_PER_PEER: usize = 500;
const NOW: Instant = Instant::from_nanos(1_000_000_000);

/// Resident memory in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the field");
    let kib: usize = line.split_ascii_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib * 1024
}

/// A key like any other, made without cryptography.
fn key(number: u32) -> PublicKey {
    let mut bytes = [0x5a; 32];
    for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let mixed = (u64::from(number) << 3 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&(mixed ^ mixed >> 29).to_le_bytes());
    }
    PublicKey::from_bytes(bytes)
}

#[test]
fn a_million_idle_peers_cost_memory_only_and_at_most_500_bytes_each() {
    let engine = Engine::new(EngineConfig::new([1; 32]), NOW);
    engine.set_private_key(Some(PrivateKey::from_bytes([1; 32])), NOW);
    engine.bring_up(NOW);
    let before = resident();
    let watch = Stopwatch::now();
    for number in 0..PEERS {
        let peer = engine.add_peer(key(number)).expect("there is room for 2^20");
        engine.set_endpoint(peer, SocketAddr::from(([192, 0, 2, 1], 51820)), NOW).expect("it exists");
        let prefix = Prefix::new(Ipv4Addr::from(0x0a00_0000 + number).into(), 32).expect("a prefix");
        engine.add_allowed_ip(peer, prefix).expect("it exists");
    }
    let each = (resident() - before) / PEERS as usize;
    println!("{each} bytes per peer; {PEERS} peers configured in {:?}", watch.elapsed());
    assert_eq!(engine.counters().peers, PEERS as usize);
    assert!(each <= MOST_BYTES_PER_PEER, "{each} bytes per peer");
    assert!(each > 100, "the measurement is broken");

    assert_eq!(engine.poll_timeout(), None, "no deadline is armed for an idle peer");
    let watch = Stopwatch::now();
    let peers = engine.peers();
    println!("all listed in {:?}", watch.elapsed());
    assert_eq!(peers.len(), PEERS as usize);
    for number in [0, 1, 77_777, PEERS - 1] {
        let state = &peers[number as usize];
        assert_eq!(state.public_key, key(number), "in the order they were added");
        assert_eq!(state.allowed_ips.len(), 1);
        assert!(!state.is_live);
    }
}
