//! A datagram that is not exactly one the peer has made yields nothing for the TUN device and moves nothing.
//!
//! Input: a byte that chooses a valid message of a live handshake or session, or raw bytes; then how it is changed.

use super::input::Input;
use super::memory::{Datagrams, Delivered, Packets, START, Sent, host, packet, settle};

/// Feeds one message, changed as the input says, to an engine with a session.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let hosts = [host(0), host(1)];
    let mut now = START;
    // One packet from the first to the second host: the messages on the way are kept.
    let mut kept: Vec<Vec<u8>> = vec![vec![]];
    let mut sent = Sent::default();
    hosts[0].engine.handle_packets(&mut Packets::new([packet(0, 100)]), &mut sent, now);
    settle(&hosts[0], &mut sent, now);
    let mut up = Delivered::default();
    for receiver in [1, 0, 1] {
        let arriving: Vec<_> = std::mem::take(&mut sent).datagrams.into_iter().map(|(_, bytes)| bytes).collect();
        kept.extend(arriving.iter().cloned());
        let from = hosts[1 - receiver].address;
        hosts[receiver].engine.handle_datagrams(&mut Datagrams::new(from, arriving), &mut up, &mut sent, now);
        settle(&hosts[receiver], &mut sent, now);
    }
    assert_eq!(up.packets.len(), 1, "the session works");
    // And one that has not arrived yet.
    hosts[0].engine.handle_packets(&mut Packets::new([packet(0, 60)]), &mut sent, now);
    let fresh = sent.datagrams.pop().expect("there is a session").1;
    kept.push(fresh.clone());

    now += std::time::Duration::from_secs(1);
    let choice = usize::from(input.byte()) % kept.len();
    let mut datagram = kept.swap_remove(choice);
    if choice == 0 {
        datagram = input.rest().to_vec();
    } else {
        let len = usize::from(input.word());
        if len > 0 {
            datagram.resize(len.min(2048), input.byte());
        }
        while !input.is_empty() {
            let at = usize::from(input.word());
            let change = input.byte();
            if let Some(byte) = datagram.get_mut(at) {
                *byte ^= change;
            }
        }
    }
    let is_fresh = datagram == fresh;
    let receiver = &hosts[1];
    let before = receiver.engine.peer_state(receiver.peer).expect("it is configured");
    let elsewhere = "203.0.113.66:66".parse().expect("an address and a port");
    let mut up = Delivered::default();
    let mut sent = Sent::default();
    let report = receiver.engine.handle_datagrams(&mut Datagrams::new(elsewhere, [datagram]), &mut up, &mut sent, now);
    settle(receiver, &mut sent, now);
    let after = receiver.engine.peer_state(receiver.peer).expect("it is configured");
    assert_eq!(report.taken, 1);
    if is_fresh {
        assert_eq!(up.packets, [packet(0, 60)]);
        assert_eq!(after.endpoint, Some(elsewhere));
        return;
    }
    assert!(up.packets.is_empty(), "a datagram that nobody made was delivered");
    assert!(sent.datagrams.is_empty(), "a datagram that nobody made was answered");
    assert_eq!((after.endpoint, after.rx_bytes), (before.endpoint, before.rx_bytes));
    // The session still works.
    let mut up = Delivered::default();
    let from = hosts[0].address;
    receiver.engine.handle_datagrams(&mut Datagrams::new(from, [fresh]), &mut up, &mut sent, now);
    assert_eq!(up.packets, [packet(0, 60)]);
}
