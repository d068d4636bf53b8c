//! Datagrams that mean harm: what they cost `wgd`, and what its legitimate peer notices.
//!
//! ```text
//!   friend 192.0.2.2 --- relay 192.0.2.254 ---+--- victim 192.0.2.1
//!   wg0 10.9.0.2                              |    wg0 10.9.0.1
//!                     attacker 192.0.2.66 ----+    (and 10.66.0.0/16, all of it the attacker's)
//! ```
//! The relay remembers what friend and victim say to each other, for the replays. All barrages are bounded in count.
#![cfg(not(virtual_time))]

#[path = "support/netns.rs"]
mod netns;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use netns::{Daemon, Host, Keys, Process, Relay, SOON, Toward, cable, needs_namespaces, wait_until};

#[test]
fn twenty_thousand_initiations_from_one_address_do_not_stop_the_friend() {
    needs_namespaces!();
    let scene = Scene::new();
    let socket = scene.attack_from(Ipv4Addr::new(192, 0, 2, 66));
    let barrage = scene.initiations();
    let report = scene.while_the_friend_pings(|| {
        for initiation in &barrage {
            let _ = socket.send_to(initiation, VICTIM);
        }
    });
    println!("one address: {report:?}");
    assert!(scene.answers_of(COOKIE_REPLY_LEN, &socket) > 0, "without a cookie reply the initiations were not valid");
}

#[test]
fn twenty_thousand_initiations_from_two_thousand_addresses_do_not_stop_the_friend() {
    needs_namespaces!();
    let scene = Scene::new();
    let sockets: Vec<UdpSocket> = (0..2_000_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            scene.attack_from(Ipv4Addr::new(10, 66, high, low))
        })
        .collect();
    let barrage = scene.initiations();
    let report = scene.while_the_friend_pings(|| {
        for (initiation, socket) in barrage.iter().zip(sockets.iter().cycle()) {
            let _ = socket.send_to(initiation, VICTIM);
        }
    });
    println!("2000 addresses: {report:?}");
}

#[test]
fn replays_move_no_endpoint_and_renew_nothing() {
    needs_namespaces!();
    let scene = Scene::new();
    let recorded: Vec<Vec<u8>> = scene
        .relay
        .seen()
        .into_iter()
        .filter(|(toward, _)| *toward == Toward::Server)
        .map(|(_, bytes)| bytes)
        .collect();
    assert!(recorded.iter().any(|bytes| bytes.len() == INITIATION_LEN), "the friend began");
    let socket = scene.attack_from(Ipv4Addr::new(192, 0, 2, 66));
    let report = scene.while_the_friend_pings(|| {
        for datagram in recorded.iter().cycle().take(20_000) {
            let _ = socket.send_to(datagram, VICTIM);
        }
    });
    println!("replays: {report:?}");
}

#[test]
fn truncations_and_single_byte_changes_of_every_message_are_nothing() {
    needs_namespaces!();
    let scene = Scene::new();
    let socket = scene.attack_from(Ipv4Addr::new(192, 0, 2, 66));
    let mut damaged: Vec<Vec<u8>> = (0..=64).map(|len| vec![0; len]).collect();
    for (_, message) in scene.relay.seen() {
        damaged.extend((0..message.len()).map(|len| message[..len].to_vec()));
        for place in 0..message.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = message.clone();
                changed[place] ^= change;
                damaged.push(changed);
            }
        }
        let longer = [&message[..], &[0; 16]].concat();
        damaged.push(longer);
    }
    let report = scene.while_the_friend_pings(|| {
        for datagram in damaged.iter().take(20_000) {
            let _ = socket.send_to(datagram, VICTIM);
        }
    });
    println!("{} damaged messages: {report:?}", damaged.len().min(20_000));
}

#[test]
fn bad_tags_at_full_rate_cost_no_session_and_no_memory() {
    needs_namespaces!();
    let scene = Scene::new();
    let socket = scene.attack_from(Ipv4Addr::new(192, 0, 2, 66));
    let mut forged = scene
        .relay
        .seen()
        .into_iter()
        .filter_map(|(toward, bytes)| (toward == Toward::Server && bytes[0] == 4).then_some(bytes))
        .next_back()
        .expect("the friend has sent data");
    forged.resize(1_452, 0xa5);
    let report = scene.while_the_friend_pings(|| {
        for number in 0..200_000_u64 {
            // A right receiver index, a counter ahead of everything, a wrong tag.
            forged[8..16].copy_from_slice(&(1_000_000 + number).to_le_bytes());
            let _ = socket.send_to(&forged, VICTIM);
        }
    });
    println!("200 000 bad tags: {report:?}");
}

// --------------------------------------------------------------------------------------------------------- the scene

struct Scene {
    relay: Relay,
    daemon: Process,
    victim_keys: Keys,
    victim: Host,
    friend: Host,
    attacker: Host,
    _middle: Host,
}

/// What a barrage did.
#[derive(Debug)]
#[expect(dead_code, reason = "printed for people")]
struct Report {
    took: Duration,
    pings_sent: u32,
    pings_lost: usize,
    rss_before: u64,
    rss_after: u64,
    ticks_used: u64,
}

const VICTIM: &str = "192.0.2.1:51820";
const INITIATION_LEN: usize = 148;
const COOKIE_REPLY_LEN: usize = 64;

impl Scene {
    /// Everything as in the picture, the friend with a session.
    fn new() -> Scene {
        let (victim, friend, attacker, middle) =
            (Host::new("victim"), Host::new("friend"), Host::new("attacker"), Host::new("middle"));
        middle.sh("ip link add br0 type bridge; ip addr add 192.0.2.254/24 dev br0; ip link set br0 up");
        for (number, host) in [&victim, &friend, &attacker].into_iter().enumerate() {
            let port = format!("port{number}");
            cable((host, "eth0"), (&middle, &port));
            middle.sh(&format!("ip link set {port} master br0"));
        }
        for (host, address) in [(&victim, "192.0.2.1"), (&friend, "192.0.2.2"), (&attacker, "192.0.2.66")] {
            host.sh(&format!("ip addr add {address}/24 dev eth0"));
        }
        victim.sh("ip route add 10.66.0.0/16 via 192.0.2.66");
        attacker.sh("ip route add local 10.66.0.0/16 dev lo");

        let relay = Relay::start(&middle, "192.0.2.254:51820", VICTIM);
        let (victim_keys, friend_keys) = (Keys::new(), Keys::new());
        let daemon = victim.start(Daemon::Wgd, "wg0");
        friend.start(Daemon::WireguardGo, "wg0");
        for (host, own, peer, address, peer_address, endpoint) in [
            (&victim, &victim_keys, &friend_keys, "10.9.0.1", "10.9.0.2", ""),
            (&friend, &friend_keys, &victim_keys, "10.9.0.2", "10.9.0.1", "endpoint 192.0.2.254:51820"),
        ] {
            host.sh(&format!("ip addr add {address}/24 dev wg0; ip link set wg0 mtu 1420 up"));
            host.sh(&format!(
                "wg set wg0 private-key <(echo {}) listen-port 51820 peer {} allowed-ips {peer_address}/32 {endpoint}",
                own.private, peer.public
            ));
        }
        friend.reach("10.9.0.1");
        Scene { relay, daemon, victim_keys, victim, friend, attacker, _middle: middle }
    }

    fn attack_from(&self, address: Ipv4Addr) -> UdpSocket {
        let socket = self.attacker.within(|| UdpSocket::bind((address, 0)).expect("the attacker owns that address"));
        socket.set_nonblocking(true).expect("a socket can be non-blocking");
        socket
    }

    /// Runs a barrage beside echo requests from the friend, and asserts what holds after each of them.
    #[track_caller]
    fn while_the_friend_pings(&self, barrage: impl FnOnce()) -> Report {
        let known = || (self.victim.first_peer("wg0").endpoint, self.victim.first_peer("wg0").handshake);
        let session = known();
        let (rss_before, ticks_before) = (self.daemon.rss_bytes(), self.daemon.cpu_ticks());
        let pings = self.friend.ping_every(Duration::from_millis(20), "10.9.0.1");
        pings.wait_for(3);
        let start = Instant::now();
        barrage();
        let took = start.elapsed();
        // On two processors the barrage itself crowds out others; when it is over, everything must be as before.
        pings.wait_for(20);
        let pings = pings.finish();
        assert!(self.friend.ping("10.9.0.1", SOON), "the friend's session survives");
        assert_eq!(known(), session, "and it is the same one, at the same place");
        let ticks_used = self.daemon.cpu_ticks() - ticks_before;
        wait_until("the victim's processor is idle again", SOON, || {
            let before = self.daemon.cpu_ticks();
            thread::sleep(Duration::from_secs(1));
            (self.daemon.cpu_ticks() - before <= 2).then_some(())
        });
        let rss_after = self.daemon.rss_bytes();
        assert!(rss_after < rss_before + (8 << 20), "memory grew from {rss_before} to {rss_after}");
        self.assert_newcomers_are_served();
        Report { took, pings_sent: pings.sent, pings_lost: pings.lost.len(), rss_before, rss_after, ticks_used }
    }

    /// A new session can be had: the friend begins again from nothing.
    #[track_caller]
    fn assert_newcomers_are_served(&self) {
        let key = &self.victim_keys.public;
        self.friend.sh(&format!(
            "wg set wg0 peer {key} remove; wg set wg0 peer {key} allowed-ips 10.9.0.1/32 endpoint 192.0.2.254:51820"
        ));
        self.friend.reach("10.9.0.1");
    }

    /// How many datagrams of that length wait in the attacker's socket.
    fn answers_of(&self, len: usize, socket: &UdpSocket) -> usize {
        let mut buffer = [0; 2_048];
        std::iter::from_fn(|| socket.recv_from(&mut buffer).ok())
            .filter(|(received, _): &(usize, SocketAddr)| *received == len)
            .count()
    }

    /// 20 000 initiations with a valid MAC1 and nothing else that is valid.
    fn initiations(&self) -> Vec<[u8; INITIATION_LEN]> {
        let key = blake2s(&[], 32, &[b"mac1----", &decode_key(&self.victim_keys.public)]);
        let made = (0..20_000_u32).map(|number| {
            let mut message = [0; INITIATION_LEN];
            message[0] = 1;
            for (block, number) in message[4..116].chunks_mut(16).zip(number.wrapping_mul(7)..) {
                let noise = blake2s(&[], 32, &[&number.to_le_bytes()]);
                block.copy_from_slice(&noise[..16]);
            }
            let mac = blake2s(&key, 16, &[&message[..116]]);
            message[116..132].copy_from_slice(&mac[..16]);
            message
        });
        made.collect()
    }
}

fn decode_key(base64: &str) -> [u8; 32] {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let mut key = [0; 33];
    for (group, bytes) in base64.as_bytes().chunks(4).zip(key.chunks_mut(3)) {
        let bits = group.iter().fold(0, |bits, &letter| bits << 6 | u32::from(value(letter)));
        bytes.copy_from_slice(&bits.to_be_bytes()[1..]);
    }
    key[..32].try_into().expect("32 of 33 bytes")
}

// ---------------------------------------------------------------------------------------------- BLAKE2s, from RFC 7693

/// BLAKE2s of the parts one after the other; `len` bytes of the result count.
fn blake2s(key: &[u8], len: u8, parts: &[&[u8]]) -> [u8; 32] {
    let mut input = Vec::new();
    if !key.is_empty() {
        input.extend_from_slice(key);
        input.resize(BLOCK_LEN, 0);
    }
    input.extend(parts.concat());
    let total = input.len() as u64;
    input.resize(input.len().next_multiple_of(BLOCK_LEN).max(BLOCK_LEN), 0);

    let mut state = INITIAL;
    state[0] ^= 0x0101_0000 ^ (key.len() as u32) << 8 ^ u32::from(len);
    let blocks = input.len() / BLOCK_LEN;
    for (number, block) in input.chunks(BLOCK_LEN).enumerate() {
        let is_last = number + 1 == blocks;
        let counted = if is_last { total } else { ((number + 1) * BLOCK_LEN) as u64 };
        compress(&mut state, block, counted, is_last);
    }
    let mut digest = [0; 32];
    for (word, bytes) in state.iter().zip(digest.chunks_mut(4)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    digest
}

fn compress(state: &mut [u32; 8], block: &[u8], counted: u64, is_last: bool) {
    let words: Vec<u32> =
        block.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect();
    let mut v = [0; 16];
    v[..8].copy_from_slice(state);
    v[8..].copy_from_slice(&INITIAL);
    v[12] ^= counted as u32;
    v[13] ^= (counted >> 32) as u32;
    if is_last {
        v[14] = !v[14];
    }
    for order in &SIGMA {
        for (column, [a, b, c, d]) in LANES.into_iter().enumerate() {
            for (half, turns) in [[16, 12], [8, 7]].into_iter().enumerate() {
                v[a] = v[a].wrapping_add(v[b]).wrapping_add(words[order[2 * column + half]]);
                v[d] = (v[d] ^ v[a]).rotate_right(turns[0]);
                v[c] = v[c].wrapping_add(v[d]);
                v[b] = (v[b] ^ v[c]).rotate_right(turns[1]);
            }
        }
    }
    for (place, word) in state.iter_mut().enumerate() {
        *word ^= v[place] ^ v[place + 8];
    }
}

const BLOCK_LEN: usize = 64;
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const LANES: [[usize; 4]; 8] = [
    [0, 4, 8, 12],
    [1, 5, 9, 13],
    [2, 6, 10, 14],
    [3, 7, 11, 15],
    [0, 5, 10, 15],
    [1, 6, 11, 12],
    [2, 7, 8, 13],
    [3, 4, 9, 14],
];
const SIGMA: [[usize; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

#[test]
fn blake2s_of_abc_is_as_in_the_appendix_of_its_rfc() {
    let expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
    let digest: String = blake2s(&[], 32, &[b"a", b"bc"]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, expected);
}
